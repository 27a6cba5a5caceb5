//! docker-archive: `manifest.json` names the configuration and the layers, lowest first. Written by `docker
//! save`, dockerTools, podman, skopeo and kaniko.

use super::{Codec, Config, Image, Layer, MAX_LAYERS, Source, Storage};
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

pub(super) fn read(source: Source, name: Option<&str>) -> Result<Image, Error> {
    let entries: Vec<Entry> = source.parse(MANIFEST, &source.document(MANIFEST, "the archive")?)?;
    let is_meant = |entry: &&Entry| {
        name.is_none_or(|name| {
            entry.tags.iter().flatten().any(|tag| is_name(tag, name)) || is_config(&entry.config, name)
        })
    };
    let meant: Vec<&Entry> = entries.iter().filter(is_meant).collect();
    let [entry] = meant[..] else {
        let names: Vec<String> =
            entries.iter().take(20).map(|entry| entry.tags.clone().unwrap_or_default().join(" ")).collect();
        return Err(super::choose(&source, name, meant.len(), &names));
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
        Storage::PackedTar(_, ref packed, _) if packed.codec == Codec::Gzip => "docker-archive, gzip",
        Storage::PackedTar(..) => "docker-archive, zstd",
        _ => "docker-archive",
    };
    Ok(Image { kind, config, layers, manifest: None, source: source.into() })
}

/// `app` means `app:latest`; a registry's name in front may be left out.
fn is_name(tag: &str, wanted: &str) -> bool {
    let with_tag = |name: &str| match name.rsplit('/').next() {
        Some(last) if last.contains(':') => name.to_owned(),
        _ => format!("{name}:latest"),
    };
    let (tag, wanted) = (with_tag(tag), with_tag(wanted));
    tag == wanted || tag.strip_suffix(&wanted).is_some_and(|front| front.ends_with('/'))
}

/// A beginning of the image's ID, of at least six digits.
fn is_config(config: &str, wanted: &str) -> bool {
    let id = config.rsplit('/').next().unwrap_or(config);
    wanted.len() >= 6 && id.strip_prefix("sha256:").unwrap_or(id).starts_with(wanted)
}
