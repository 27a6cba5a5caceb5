//! What an image is made of, from a source or from a registry.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::AtomicBool;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::cache::Cache;
use super::compress::Method;
use super::digest::Digest;
use super::registry::Registry;
use super::relayer;
use super::source::{self, Image, Member, Names, Stored};
use super::stream::Stream;
use super::{Error, report};

/// Questions to the registry at the same time.
const QUESTIONS: usize = 8;

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
    /// Made by splitting the source's one layer, as a push does.
    pub split: bool,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// One layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Layer {
    /// Digest as it is stored, or as a push made it before, where known.
    pub digest: Option<Digest>,
    /// Digest of the plain tar, where known.
    pub diff_id: Option<Digest>,
    /// Bytes as it is stored.
    pub size: u64,
    /// Whether a push compresses it.
    pub plain: bool,
    /// Names in `/nix/store`.
    pub paths: Vec<String>,
    /// Whether a registry has it, where one was asked and the digest is known.
    pub there: Option<bool>,
}

/// Widest bar of the picture, in characters.
const BAR: u64 = 24;

impl Inspection {
    /// Describes a source, as a push would split it if `split`.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn of_source(image: &Image, cache: &Cache, split: bool) -> Result<Self, Error> {
        Self::of_image(image, cache, split, |layer| image.store_paths(layer))
    }

    /// Describes what can be read only once.
    ///
    /// # Errors
    /// When it is no image, or a script fails.
    pub fn of_stream(stream: &Stream, name: Option<&str>, cache: &Cache) -> Result<Self, Error> {
        let mut passed = HashMap::new();
        let each = &mut |member: &Member<'_>, bytes: &mut dyn Read| {
            passed.insert(member.position, source::store_paths(member.stored, bytes));
            Ok(())
        };
        let image = stream.look(name, each)?;
        let paths = |layer: &source::Layer| Ok(passed.remove(&image.position(layer)).unwrap_or_default());
        Self::of_image(&image, cache, false, paths)
    }

    fn of_image(
        image: &Image,
        cache: &Cache,
        split: bool,
        mut paths: impl FnMut(&source::Layer) -> Result<Vec<String>, Error>,
    ) -> Result<Self, Error> {
        let anatomy = match split && image.layers.len() == 1 {
            true => image.anatomy(&mut Names::default())?.ok(),
            false => None,
        };
        if anatomy.is_some() {
            image.check_whole(&[], &AtomicBool::new(false))?;
        }
        let known = |diff_id: Option<&Digest>| {
            diff_id.and_then(|id| cache.get(id, Method::Gzip.scheme())).map(|packed| packed.digest)
        };
        let layers = match &anatomy {
            None => {
                let layers = image.layers.iter().zip(0..).map(|(layer, at)| {
                    // Who made the layers may say in the history what is in them.
                    let told = told(&image.config, at);
                    Ok(Layer {
                        digest: layer.digest.clone().or_else(|| known(layer.diff_id.as_ref())),
                        diff_id: layer.diff_id.clone(),
                        size: layer.stored_size,
                        plain: layer.stored == Stored::Plain,
                        paths: if told.is_empty() { paths(layer)? } else { told },
                        there: None,
                    })
                });
                layers.collect::<Result<_, Error>>()?
            }
            Some(anatomy) => {
                let parts = relayer::plan(anatomy, &image.config, relayer::MAX_LAYERS);
                let layers = parts.into_iter().map(|part| {
                    let diff_id = cache.part(&part.content);
                    let digest = known(diff_id.as_ref());
                    Layer { digest, diff_id, size: part.bytes, plain: true, paths: part.paths, there: None }
                });
                layers.collect()
            }
        };
        Ok(Self {
            name: image.path().display().to_string(),
            kind: image.kind.to_owned(),
            digest: image.manifest.as_ref().map(|manifest| Digest::of(&manifest.bytes)),
            config: Digest::of(&image.config),
            split: anatomy.is_some(),
            layers,
        })
    }

    /// Asks a registry which layers it has.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn compare(&mut self, registry: &Registry) -> Result<(), Error> {
        let ask = async |digest: Option<Digest>| match digest {
            Some(digest) => registry.has_blob(&digest).await,
            None => Ok(false),
        };
        let digests: Vec<Option<Digest>> = self.layers.iter().map(|layer| layer.digest.clone()).collect();
        let there = futures_util::stream::iter(digests.into_iter().map(ask)).buffered(QUESTIONS);
        let there: Vec<bool> = there.try_collect().await?;
        for (layer, there) in self.layers.iter_mut().zip(there) {
            layer.there = Some(there);
        }
        Ok(())
    }

    /// Describes a tag of a registry; `wanted` says which image of a list: its platform or a beginning of its digest.
    ///
    /// # Errors
    /// When it is not there, or is a list of images of which none was chosen.
    pub async fn of_tag(registry: &Registry, tag: &str, wanted: Option<&str>) -> Result<Self, Error> {
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
        let (mut bytes, mut kind, mut digest) = read.ok_or_else(|| wrong("there is no such tag"))?;
        if let Some(list) = source::listed(&bytes) {
            let meant = match (&list[..], wanted) {
                ([one], _) => Some(one),
                (_, Some(wanted)) => list.iter().find(|(child, name)| {
                    name == wanted || (wanted.len() >= 6 && child.hex().starts_with(hex(wanted)))
                }),
                _ => None,
            };
            let Some((child, _)) = meant else {
                let names: Vec<String> =
                    list.iter().take(20).map(|(child, name)| format!("{name} {}", child.short())).collect();
                return Err(Error::Argument {
                    given: name,
                    why: format!(
                        "a list of {} images; say which with --image: {}",
                        list.len(),
                        names.join(", ")
                    ),
                });
            };
            let read = registry.read_manifest(child.as_str()).await?;
            (bytes, kind, digest) = read.ok_or_else(|| wrong(&format!("its image {child} is not there")))?;
        }
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|_| wrong(&format!("{kind} is no image manifest")))?;
        let config = registry.read_blob(&document.config.digest).await?;
        let parsed: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        let mut diff_ids = parsed["rootfs"]["diff_ids"].as_array().into_iter().flatten();
        let layers = document.layers.into_iter().zip(0..).map(|(layer, at)| Layer {
            digest: Some(layer.digest),
            diff_id: diff_ids.next().and_then(|id| Digest::parse(id.as_str()?)),
            size: layer.size,
            plain: false,
            paths: told(&config, at),
            there: None,
        });
        Ok(Self {
            kind,
            digest: Some(digest),
            config: document.config.digest,
            split: false,
            layers: layers.collect(),
            name,
        })
    }

    /// A picture for people: one line a layer, the lowest first, a bar as long as its share of the largest.
    #[must_use]
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{}  {}\n", self.name, self.kind);
        if let Some(digest) = &self.digest {
            let _ = writeln!(text, "manifest {digest}");
        }
        let _ = writeln!(text, "config   {}", self.config);
        let largest = self.layers.iter().map(|layer| layer.size).max().unwrap_or(0).max(1);
        for layer in &self.layers {
            let digest =
                layer.digest.as_ref().or(layer.diff_id.as_ref()).map_or("not known yet", Digest::short);
            let eighths = (u128::from(layer.size) * u128::from(BAR * 8) / u128::from(largest)) as u64;
            let there = match layer.there {
                None => "",
                Some(true) => "  there",
                Some(false) => "  to send",
            };
            let _ = writeln!(
                text,
                "{digest:<13}  {:>9}  {}{there:<9}  {}",
                report::bytes(layer.size),
                bar(eighths),
                report::content(&layer.paths)
            );
        }
        let total: u64 = self.layers.iter().map(|layer| layer.size).sum();
        let plain = if self.layers.iter().any(|layer| layer.plain) { " before compression" } else { "" };
        let _ = writeln!(text, "{} layers, {}{plain}", self.layers.len(), report::bytes(total));
        if self.layers.iter().any(|layer| layer.there.is_some()) {
            let missing = || self.layers.iter().filter(|layer| layer.there != Some(true));
            let bytes = missing().map(|layer| layer.size).sum();
            let _ = writeln!(text, "{} layers to send, {}{plain}", missing().count(), report::bytes(bytes));
        }
        text
    }
}

/// The store paths that an image's history names for a layer.
fn told(config: &[u8], layer: usize) -> Vec<String> {
    let config: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    let history = config["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = history.iter().filter(|entry| entry["empty_layer"] != true).nth(layer);
    let comment = entry.and_then(|entry| entry["comment"].as_str());
    comment.map(relayer::paths_in_comment).unwrap_or_default()
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn bar(eighths: u64) -> String {
    let full = usize::try_from(eighths / 8).unwrap_or(0);
    let mut bar = "█".repeat(full);
    bar.push_str(["▏", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][usize::try_from(eighths % 8).unwrap_or(0)]);
    if eighths.is_multiple_of(8) && full > 0 {
        bar.pop();
    }
    let width = bar.chars().count();
    bar.push_str(&" ".repeat((BAR as usize + 1).saturating_sub(width)));
    bar
}
