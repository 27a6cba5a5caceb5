//! OCI image layout: `index.json` names a manifest, the manifest names blobs under `blobs/sha256/`. The manifest
//! and every blob go to the registry byte for byte, so the digest is the layout's own.

use super::{Config, Image, Layer, MAX_LAYERS, Manifest, Source, Storage, Stored};
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

pub(super) fn read(source: Source) -> Result<Image, Error> {
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
        let [image] = images[..] else {
            return Err(Error::NoSource {
                path: source.path,
                why: format!("the layout holds {} images, wanted one", images.len()),
            });
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
        Storage::Tar(_) => "OCI layout, tar",
        Storage::GzipTar(..) => "OCI layout, gzip'd tar",
    };
    Ok(Image { kind, config, layers, manifest: Some(Manifest { media_type, bytes }), source })
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
