//! OCI image layout: `index.json` names a manifest, the manifest names blobs under `blobs/sha256/`. The manifest
//! and every blob go to the registry byte for byte, so the digest is the layout's own. The same for skopeo's directories,
//! which only name the files in another way.

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
        let image = pick(&source, &index, wanted)?;
        bytes = blob(&source, image, INDEX, name)?;
        media_type.clone_from(&image.media_type);
        if !media_type.contains("index") && !media_type.contains("manifest.list") {
            break;
        }
    }
    image(source, media_type, bytes, name)
}

/// A directory as skopeo writes it: the manifest as `manifest.json`, every blob under the digits of its digest.
pub(super) fn read_dir(source: Source, manifest: Vec<u8>, wanted: Option<&str>) -> Result<Image, Error> {
    let index: Option<Index> = serde_json::from_slice(&manifest).ok();
    let Some(index) = index.filter(|index| !index.manifests.is_empty()) else {
        return image(source, String::new(), manifest, |digest| digest.hex().to_owned());
    };
    let meant = pick(&source, &index, wanted)?;
    let bytes = blob(&source, meant, "manifest.json", |digest| format!("{}.manifest.json", digest.hex()))?;
    image(source, meant.media_type.clone(), bytes, |digest| digest.hex().to_owned())
}

/// The image of a list that is meant.
fn pick<'a>(source: &Source, index: &'a Index, wanted: Option<&str>) -> Result<&'a Descriptor, Error> {
    // Build attestations stand in an index with the platform unknown/unknown.
    let is_image = |image: &&Descriptor| {
        let unknown = |p: &Platform| (p.os.as_str(), p.architecture.as_str()) == ("unknown", "unknown");
        !image.platform.as_ref().is_some_and(unknown)
    };
    let images: Vec<&Descriptor> = index.manifests.iter().filter(is_image).collect();
    if let [image] = images[..] {
        return Ok(image);
    }
    let is_meant = |image: &&&Descriptor| wanted.is_some_and(|wanted| is_meant(image, wanted));
    let meant: Vec<&&Descriptor> = images.iter().filter(is_meant).collect();
    match meant[..] {
        [image] => Ok(image),
        _ => {
            let names: Vec<String> = images.iter().take(20).map(|image| described(image)).collect();
            Err(super::choose(source, wanted, meant.len(), &names))
        }
    }
}

/// The image of a manifest whose blobs have these names.
fn image(
    source: Source,
    mut media_type: String,
    bytes: Vec<u8>,
    name: fn(&Digest) -> String,
) -> Result<Image, Error> {
    let document: Document = source.parse("the manifest", &bytes)?;
    if !document.media_type.is_empty() {
        media_type = document.media_type;
    } else if media_type.is_empty() {
        OCI_MANIFEST.clone_into(&mut media_type);
    }
    let config = blob(&source, &document.config, "the manifest", name)?;
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
        let diff_id = diff_ids.as_ref().and_then(|ids| ids.get(at)).cloned();
        // Where the configuration says what a compressed layer unpacks to, that is looked at.
        let stored = match diff_id.is_some() && !source.is_read() {
            true => match source.probe(&location)? {
                Stored::Plain => Stored::AsIs,
                packed => packed,
            },
            false => Stored::AsIs,
        };
        let digest = Some(descriptor.digest.clone());
        layers.push(Layer { location, stored_size, stored, diff_id, digest });
    }
    let kind = match source.storage {
        Storage::Directory if source.has(INDEX) => "OCI layout",
        Storage::Directory => "directory of blobs",
        Storage::PackedTar(_, ref packed, _) if packed.codec == Codec::Gzip => "OCI layout, gzip'd tar",
        Storage::PackedTar(..) => "OCI layout, zstd'd tar",
        _ => "OCI layout, tar",
    };
    Ok(Image { kind, config, layers, manifest: Some(Manifest { media_type, bytes }), source: source.into() })
}

/// The images of a list, with their platforms. `None`: it is no list.
pub(crate) fn listed(document: &[u8]) -> Option<Vec<(Digest, String)>> {
    let index: Index = serde_json::from_slice(document).ok().filter(|i: &Index| !i.manifests.is_empty())?;
    let name = |image: &Descriptor| match &image.platform {
        Some(platform) => format!("{}/{}", platform.os, platform.architecture),
        None => String::new(),
    };
    Some(index.manifests.iter().map(|image| (image.digest.clone(), name(image))).collect())
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
fn blob(
    source: &Source,
    descriptor: &Descriptor,
    namer: &str,
    name: fn(&Digest) -> String,
) -> Result<Vec<u8>, Error> {
    let bytes = source.document(&name(&descriptor.digest), namer)?;
    if bytes.len() as u64 != descriptor.size || Digest::of(&bytes) != descriptor.digest {
        return Err(source.lie(format!("the blob {} is not what its name says", descriptor.digest)));
    }
    Ok(bytes)
}
