//! Pruning on a registry that only knows the OCI protocol: times come from the images' configurations.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{Found, Rules, decide, shown};
use crate::image::registry::Registry;
use crate::image::report::{Prune as Report, Tag as TagReport, Verdict};
use crate::image::{Digest, Error};

#[derive(serde::Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(serde::Deserialize)]
struct Descriptor {
    digest: Digest,
}

#[derive(serde::Deserialize)]
struct Config {
    created: Option<String>,
}

/// What a manifest tells.
#[derive(Clone)]
struct Known {
    created: Option<Timestamp>,
    children: Vec<Digest>,
}

pub(super) async fn run(registry: &Registry, rules: &Rules, dry_run: bool) -> Result<Report, Error> {
    let mut known: HashMap<Digest, Known> = HashMap::new();
    let mut found = Vec::new();
    for tag in registry.tags().await?.unwrap_or_default() {
        // Tags may vanish between the list and the look.
        let Some((bytes, _, digest)) = registry.read_manifest(&tag).await? else { continue };
        if !known.contains_key(&digest) {
            known.insert(digest.clone(), look(registry, &bytes).await?);
        }
        let created = known.get(&digest).and_then(|known| known.created);
        found.push(Found { tag, created, order: None, digest: Some(digest) });
    }
    let mut decided = decide(found, rules)?;
    // A digest goes only when no tag that stays needs it, by itself or as part of a list.
    let mut needed: HashSet<Digest> = HashSet::new();
    for (tag, _) in decided.iter().filter(|(_, verdict)| *verdict != Verdict::WouldDelete) {
        if let Some(digest) = &tag.digest {
            needed.extend(known.get(digest).map(|known| known.children.clone()).unwrap_or_default());
            needed.insert(digest.clone());
        }
    }
    let mut gone: HashMap<Digest, Verdict> = HashMap::new();
    for (tag, verdict) in decided.iter_mut().rev().filter(|(_, verdict)| *verdict == Verdict::WouldDelete) {
        let Some(digest) = tag.digest.as_ref().filter(|digest| !needed.contains(*digest)) else {
            *verdict = Verdict::Spared;
            continue;
        };
        if dry_run {
            continue;
        }
        *verdict = match gone.get(digest) {
            Some(verdict) => *verdict,
            None if registry.delete_manifest(digest).await? => Verdict::Deleted,
            None => Verdict::Gone,
        };
        gone.insert(digest.clone(), *verdict);
    }
    let tags = decided
        .into_iter()
        .map(|(tag, verdict)| TagReport { tag: tag.tag, created: tag.created.map(shown), verdict })
        .collect();
    Ok(Report { repository: registry.repository().to_string(), by: "oci", tags, parts: 0, dry_run })
}

/// The images that a manifest names, if it is a list.
pub(super) fn children(manifest: &[u8]) -> Vec<Digest> {
    let document: Option<Document> = serde_json::from_slice(manifest).ok();
    document.into_iter().flat_map(|list| list.manifests).map(|child| child.digest).collect()
}

/// The time of an image: its configuration's; of a list, the newest of its images'.
async fn look(registry: &Registry, manifest: &[u8]) -> Result<Known, Error> {
    let mut known = Known { created: None, children: Vec::new() };
    let Ok(document) = serde_json::from_slice::<Document>(manifest) else { return Ok(known) };
    let mut configs: Vec<Digest> = document.config.into_iter().map(|config| config.digest).collect();
    for child in document.manifests {
        if let Some((bytes, _, _)) = registry.read_manifest(child.digest.as_str()).await?
            && let Ok(inner) = serde_json::from_slice::<Document>(&bytes)
        {
            configs.extend(inner.config.map(|config| config.digest));
        }
        known.children.push(child.digest);
    }
    for config in configs {
        let bytes = registry.read_blob(&config).await?;
        let created = serde_json::from_slice::<Config>(&bytes).ok().and_then(|config| config.created);
        known.created = known.created.max(created.and_then(|created| created.parse().ok()));
    }
    Ok(known)
}
