//! The manifest of a pushed image, of Docker's kind where it can be and of OCI's where not.
//!
//! Formats: Docker's "Image Manifest Version 2, Schema 2" and OCI's image specification 1.1, "manifest.md".

use std::borrow::Cow;
use std::path::Path;

use super::compress::Method;
use super::push::Done;
use super::source::{Codec, MAX_DOCUMENT, Manifest, Stored};
use super::{Digest, Error};

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

#[derive(serde::Serialize)]
struct Written<'a> {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
}

#[derive(serde::Serialize)]
struct Descriptor<'a> {
    #[serde(rename = "mediaType")]
    media_type: Cow<'a, str>,
    size: u64,
    digest: &'a Digest,
}

/// A manifest of Docker's kind where all layers are gzip'd, of OCI's kind where not: Docker's knows nothing else.
///
/// # Errors
/// When it would be larger than registries take.
pub(super) fn write(path: &Path, config: &[u8], layers: &[Done], method: Method) -> Result<Manifest, Error> {
    // How a layer is compressed in the registry, as the last part of its media type.
    let packing = |layer: &Done| match (layer.stored, method) {
        (Stored::Packed(Codec::Zstd), _) | (Stored::Plain, Method::Zstd) => "+zstd",
        (Stored::Plain, Method::None) => "",
        _ => "+gzip",
    };
    let docker = layers.iter().all(|layer| packing(layer) == "+gzip");
    let layer_type = |layer: &Done| match docker {
        true => DOCKER_LAYER.to_owned(),
        false => format!("{OCI_LAYER}{}", packing(layer)),
    };
    let media_type = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
    let digest = Digest::of(config);
    let layers = layers.iter().filter_map(|layer| {
        let packed = layer.packed.as_ref()?;
        let media_type = layer_type(layer).into();
        Some(Descriptor { media_type, size: packed.size, digest: &packed.digest })
    });
    let manifest = Written {
        schema_version: 2,
        media_type,
        config: Descriptor {
            media_type: if docker { DOCKER_CONFIG } else { OCI_CONFIG }.into(),
            size: config.len() as u64,
            digest: &digest,
        },
        layers: layers.collect(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| Error::lie(path, error.to_string()))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::lie(path, "the manifest would be larger than registries take"));
    }
    Ok(Manifest { media_type: media_type.to_owned(), bytes })
}
