//! docker-archive: `manifest.json` names the configuration and the layers, lowest first. Written by `docker
//! save`, dockerTools, podman, skopeo and kaniko.

use super::{Config, Image, Layer, MAX_LAYERS, Source, Storage};
use crate::image::Error;

#[derive(serde::Deserialize)]
struct Entry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

const MANIFEST: &str = "manifest.json";

pub(super) fn read(source: Source) -> Result<Image, Error> {
    let entries: Vec<Entry> = source.parse(MANIFEST, &source.document(MANIFEST, "the archive")?)?;
    let [entry] = &entries[..] else {
        let names: Vec<String> =
            entries.iter().take(20).map(|entry| entry.tags.clone().unwrap_or_default().join(" ")).collect();
        return Err(Error::NoSource {
            path: source.path,
            why: format!(
                "holds {} images ({}), wanted one; save the one you mean by itself",
                entries.len(),
                names.join(", ")
            ),
        });
    };
    let config = source.document(&entry.config, MANIFEST)?;
    let parsed: Config = source.parse(&entry.config, &config)?;
    let diff_ids = parsed.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if entry.layers.len() > MAX_LAYERS {
        return Err(source.lie(format!("{} layers; at most {MAX_LAYERS} are taken", entry.layers.len())));
    }
    if diff_ids.len() != entry.layers.len() {
        return Err(source.lie(format!(
            "{MANIFEST} names {} layers, the configuration {}",
            entry.layers.len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (name, diff_id) in entry.layers.iter().zip(diff_ids) {
        let (location, stored_size) = source.demand(name, MANIFEST)?;
        let stored = source.probe(&location)?;
        layers.push(Layer { location, stored_size, stored, diff_id: Some(diff_id), digest: None });
    }
    let kind = match source.storage {
        Storage::GzipTar(..) => "docker-archive, gzip",
        _ => "docker-archive",
    };
    Ok(Image { kind, config, layers, manifest: None, source })
}
