//! What an image is made of, from a source or from a registry.

use super::digest::Digest;
use super::registry::Registry;
use super::source::{Image, Stored};
use super::{Error, report};

/// An image's parts.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Inspection {
    /// Where it was found, as asked.
    pub name: String,
    /// docker-archive, OCI layout, or the manifest's media type.
    pub kind: String,
    /// The manifest's digest, where there is a manifest.
    pub digest: Option<Digest>,
    /// The configuration's digest: the image's ID.
    pub config: Digest,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Layer {
    /// Digest as it is stored, where known.
    pub digest: Option<Digest>,
    /// Digest of the plain tar, where known.
    pub diff_id: Option<Digest>,
    /// Bytes as it is stored.
    pub size: u64,
    /// Whether a push compresses it.
    pub plain: bool,
}

impl Inspection {
    /// Describes a source.
    #[must_use]
    pub fn of_source(image: &Image) -> Self {
        let layers = image.layers.iter().map(|layer| Layer {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.stored_size,
            plain: layer.stored == Stored::Plain,
        });
        Self {
            name: image.path().display().to_string(),
            kind: image.kind.to_owned(),
            digest: image.manifest.as_ref().map(|manifest| Digest::of(&manifest.bytes)),
            config: Digest::of(&image.config),
            layers: layers.collect(),
        }
    }

    /// Describes a tag of a registry.
    ///
    /// # Errors
    /// When it is not there, or is a list of images.
    pub async fn of_tag(registry: &Registry, tag: &str) -> Result<Self, Error> {
        #[derive(serde::Deserialize)]
        struct Document {
            config: Descriptor,
            layers: Vec<Descriptor>,
        }
        #[derive(serde::Deserialize)]
        struct Descriptor {
            digest: Digest,
            size: u64,
        }
        let name = format!("{}:{tag}", registry.repository());
        let wrong = |why: &str| Error::Answer {
            what: "reading a manifest".to_owned(),
            url: name.clone(),
            why: why.to_owned(),
            status: 0,
        };
        let read = registry.read_manifest(tag).await?;
        let (bytes, kind, digest) = read.ok_or_else(|| wrong("there is no such tag"))?;
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|_| wrong(&format!("{kind} is no image manifest")))?;
        let layers = document.layers.into_iter().map(|layer| Layer {
            digest: Some(layer.digest),
            diff_id: None,
            size: layer.size,
            plain: false,
        });
        Ok(Self {
            kind,
            digest: Some(digest),
            config: document.config.digest,
            layers: layers.collect(),
            name,
        })
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{}  {}\n", self.name, self.kind);
        if let Some(digest) = &self.digest {
            let _ = writeln!(text, "manifest {digest}");
        }
        let _ = writeln!(text, "config   {}", self.config);
        for layer in &self.layers {
            let digest = layer.digest.as_ref().or(layer.diff_id.as_ref()).map_or("?", Digest::as_str);
            let plain = if layer.plain { "  plain" } else { "" };
            let _ = writeln!(text, "layer    {digest}  {:>9}{plain}", report::bytes(layer.size));
        }
        let total = self.layers.iter().map(|layer| layer.size).sum();
        let _ = writeln!(text, "{} layers, {}", self.layers.len(), report::bytes(total));
        text
    }
}
