//! OCI image layout: `index.json` names a manifest, the manifest names blobs under `blobs/sha256/`. The manifest
//! and every blob go to the registry byte for byte, so the digest is the layout's own.

use std::collections::HashMap;

use super::{Codec, Config, Image, Layer, MAX_LAYERS, Manifest, Source, Storage, Stored};
use crate::image::{Digest, Error};

#[derive(serde::Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(serde::Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(serde::Deserialize)]
struct Document {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

const INDEX: &str = "index.json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(super) fn read(source: Source, wanted: Option<&str>) -> Result<Image, Error> {
    if !source.has(INDEX) {
        return Err(Error::NoSource {
            path: source.path,
            why: "a tar with neither manifest.json (docker-archive) nor index.json (OCI layout)".to_owned(),
        });
    }
    let mut bytes = source.document(INDEX, "the layout")?;
    let mut media_type = String::new();
    // index.json → manifest, or index.json → index → manifest; deeper nesting is not written by anyone.
    for _ in 0..3 {
        let index: Index = source.parse(INDEX, &bytes)?;
        // Build attestations stand in an index with the platform unknown/unknown.
        let images: Vec<&Descriptor> = index
            .manifests
            .iter()
            .filter(|d| {
                d.platform
                    .as_ref()
                    .is_none_or(|p| (p.os.as_str(), p.architecture.as_str()) != ("unknown", "unknown"))
            })
            .collect();
        let meant: Vec<&Descriptor> = match images.len() {
            1 => images.clone(),
            _ => images
                .iter()
                .copied()
                .filter(|image| wanted.is_some_and(|wanted| is_meant(image, wanted)))
                .collect(),
        };
        let [image] = meant[..] else {
            let names: Vec<String> = images.iter().take(20).map(|image| described(image)).collect();
            return Err(super::choose(&source, wanted, meant.len(), &names));
        };
        bytes = blob(&source, image, INDEX)?;
        media_type.clone_from(&image.media_type);
        if !media_type.contains("index") && !media_type.contains("manifest.list") {
            break;
        }
    }
    let document: Document = source.parse("the manifest", &bytes)?;
    if !document.media_type.is_empty() {
        media_type = document.media_type;
    } else if media_type.is_empty() {
        OCI_MANIFEST.clone_into(&mut media_type);
    }
    let config = blob(&source, &document.config, "the manifest")?;
    // Artifacts carry configurations of other kinds; then there are no diffIDs to compare with.
    let diff_ids = serde_json::from_slice::<Config>(&config)
        .ok()
        .and_then(|config| config.rootfs)
        .map(|rootfs| rootfs.diff_ids)
        .filter(|ids| ids.len() == document.layers.len());
    if document.layers.len() > MAX_LAYERS {
        return Err(source.lie(format!("{} layers; at most {MAX_LAYERS} are taken", document.layers.len())));
    }
    let mut layers = Vec::with_capacity(document.layers.len());
    for (at, descriptor) in document.layers.iter().enumerate() {
        let (location, stored_size) = source.demand(&name(&descriptor.digest), "the manifest")?;
        if stored_size != descriptor.size {
            return Err(source.lie(format!(
                "the layer {} is {stored_size} bytes long, its manifest says {}",
                descriptor.digest, descriptor.size
            )));
        }
        layers.push(Layer {
            location,
            stored_size,
            stored: Stored::AsIs,
            diff_id: diff_ids.as_ref().and_then(|ids| ids.get(at)).cloned(),
            digest: Some(descriptor.digest.clone()),
        });
    }
    let kind = match source.storage {
        Storage::Directory => "OCI layout",
        Storage::PackedTar(_, ref packed, _) if packed.codec == Codec::Gzip => "OCI layout, gzip'd tar",
        Storage::PackedTar(..) => "OCI layout, zstd'd tar",
        _ => "OCI layout, tar",
    };
    Ok(Image { kind, config, layers, manifest: Some(Manifest { media_type, bytes }), source: source.into() })
}

/// By reference name, platform (`linux/amd64`) or a beginning of the digest.
fn is_meant(image: &Descriptor, wanted: &str) -> bool {
    let named = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
    named.iter().any(|key| image.annotations.get(*key).is_some_and(|name| name == wanted))
        || image.platform.as_ref().is_some_and(|p| format!("{}/{}", p.os, p.architecture) == wanted)
        || (wanted.len() >= 6
            && (image.digest.hex().starts_with(wanted) || image.digest.as_str().starts_with(wanted)))
}

fn described(image: &Descriptor) -> String {
    let name = image.annotations.get("org.opencontainers.image.ref.name").cloned();
    let platform = image.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture));
    let words: Vec<String> = name.into_iter().chain(platform).collect();
    if words.is_empty() { image.digest.short().to_owned() } else { words.join(" ") }
}

fn name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob, checked against its descriptor.
fn blob(source: &Source, descriptor: &Descriptor, namer: &str) -> Result<Vec<u8>, Error> {
    let bytes = source.document(&name(&descriptor.digest), namer)?;
    if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
        return Err(source.lie(format!("the blob {} is not what its name says", descriptor.digest)));
    }
    Ok(bytes)
}
