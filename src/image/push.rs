//! A push: each layer read once and sent unless the registry has it, then the configuration, the manifest last.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::cache::Cache;
use super::layer::{Packed, Packing};
use super::registry::{Registry, Sent};
use super::report::{Layer as LayerReport, Push as Report, State};
use super::source::{Image, Layer, MAX_DOCUMENT, Manifest, Stored};
use super::{Digest, Error, gzip};

/// What is to be pushed where.
#[derive(Debug)]
pub struct Push<'a> {
    /// The image.
    pub image: &'a Image,
    /// The repository, opened for [`super::registry::Access::Push`].
    pub registry: &'a Registry,
    /// Where compressed layers are remembered.
    pub cache: &'a Cache,
    /// The tags; at least one.
    pub tags: &'a [String],
    /// Only look what would be sent.
    pub dry_run: bool,
}

/// What happens during a push, for a progress display.
#[derive(Debug)]
pub enum Event<'a> {
    /// A layer is being read; the counter says how many of its stored bytes were.
    Reading {
        /// Position among all layers, from 0.
        index: usize,
        /// Length of the layer in the source, in bytes.
        stored_size: u64,
        /// Bytes read so far.
        read: Arc<AtomicU64>,
    },
    /// A layer is done.
    Done {
        /// Position among all layers, from 0.
        index: usize,
        /// How many layers there are.
        of: usize,
        /// What became of it.
        layer: &'a LayerReport,
    },
}

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Names layers in the cache that were gzip'd by whoever wrote the source.
const STORED: &str = "stored";

#[derive(serde::Serialize)]
struct ManifestJson<'a> {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    config: DescriptorJson<'a>,
    layers: Vec<DescriptorJson<'a>>,
}

#[derive(serde::Serialize)]
struct DescriptorJson<'a> {
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    size: u64,
    digest: &'a Digest,
}

impl Push<'_> {
    /// Pushes. Nothing is tagged unless every blob is there.
    ///
    /// # Errors
    /// When the source is at fault, or the registry does not take something after retries.
    pub async fn run(&self, events: &dyn Fn(Event<'_>)) -> Result<Report, Error> {
        let began = Instant::now();
        let image = self.image;
        let mut packed: HashMap<usize, Packed> = HashMap::new();
        let mut reports: HashMap<usize, LayerReport> = HashMap::new();
        // The same layer may stand in an image twice.
        let mut seen: HashMap<Digest, Packed> = HashMap::new();
        for index in image.reading_order() {
            let layer = &image.layers[index];
            let began = Instant::now();
            let known = self.known(layer, &seen);
            let reading = |read| events(Event::Reading { index, stored_size: layer.stored_size, read });
            let (result, state) = self.layer(layer, known.as_ref(), &reading).await?;
            if let (Some(diff_id), Some(result)) = (&layer.diff_id, &result) {
                seen.insert(diff_id.clone(), result.clone());
            }
            let report = LayerReport {
                diff_id: layer.diff_id.clone(),
                digest: result.as_ref().map(|result| result.digest.clone()),
                size: result.as_ref().map(|result| result.size),
                stored_size: layer.stored_size,
                state,
                seconds: began.elapsed().as_secs_f64(),
            };
            events(Event::Done { index, of: image.layers.len(), layer: &report });
            packed.extend(result.map(|result| (index, result)));
            reports.insert(index, report);
        }
        let layers: Vec<LayerReport> =
            (0..image.layers.len()).filter_map(|index| reports.remove(&index)).collect();
        let ordered: Vec<Packed> =
            (0..image.layers.len()).filter_map(|index| packed.remove(&index)).collect();
        let mut uploaded: u64 =
            layers.iter().filter(|layer| layer.state == State::Sent).filter_map(|l| l.size).sum();
        let mut digest = None;
        // A dry run may not know what the layers will be.
        if ordered.len() == image.layers.len() {
            let manifest = self.manifest(&ordered)?;
            digest = Some(Digest::of(&manifest.bytes));
            if !self.dry_run {
                if self.registry.push_bytes(&image.config).await?.1 == Sent::Sent {
                    uploaded += image.config.len() as u64;
                }
                for tag in self.tags {
                    self.registry.push_manifest(tag, &manifest.media_type, &manifest.bytes).await?;
                }
            }
        }
        let size = ordered.iter().map(|packed| packed.size).sum::<u64>() + image.config.len() as u64;
        Ok(Report {
            repository: self.registry.repository().to_string(),
            tags: self.tags.to_vec(),
            size: digest.is_some().then_some(size),
            digest,
            uploaded,
            layers,
            seconds: began.elapsed().as_secs_f64(),
            dry_run: self.dry_run,
        })
    }

    /// What a layer will be in the registry, if that is known before it is read.
    fn known(&self, layer: &Layer, seen: &HashMap<Digest, Packed>) -> Option<Packed> {
        if let Some(digest) = &layer.digest {
            return Some(Packed { digest: digest.clone(), size: layer.stored_size });
        }
        let diff_id = layer.diff_id.as_ref()?;
        seen.get(diff_id).cloned().or_else(|| self.cache.get(diff_id, scheme(layer)))
    }

    async fn layer(
        &self,
        layer: &Layer,
        known: Option<&Packed>,
        reading: &dyn Fn(Arc<AtomicU64>),
    ) -> Result<(Option<Packed>, State), Error> {
        if let Some(known) = known
            && self.registry.has_blob(&known.digest).await?
        {
            return Ok((Some(known.clone()), State::Kept));
        }
        if self.dry_run {
            return Ok((known.cloned(), State::WouldSend));
        }
        let start = || Packing::start(self.image, layer);
        let (packed, sent) = self.registry.push_layer(start, known, reading).await?;
        if let (Some(diff_id), None) = (&layer.diff_id, &layer.digest) {
            self.cache.put(diff_id, scheme(layer), &packed);
        }
        let state = match sent {
            Sent::Kept => State::Kept,
            Sent::Mounted => State::Mounted,
            Sent::Sent => State::Sent,
        };
        Ok((Some(packed), state))
    }

    /// The source's own manifest, or one of Docker's kind for a docker-archive.
    fn manifest(&self, layers: &[Packed]) -> Result<Manifest, Error> {
        if let Some(manifest) = &self.image.manifest {
            return Ok(manifest.clone());
        }
        let config = Digest::of(&self.image.config);
        let manifest = ManifestJson {
            schema_version: 2,
            media_type: DOCKER_MANIFEST,
            config: DescriptorJson {
                media_type: DOCKER_CONFIG,
                size: self.image.config.len() as u64,
                digest: &config,
            },
            layers: layers
                .iter()
                .map(|layer| DescriptorJson {
                    media_type: DOCKER_LAYER,
                    size: layer.size,
                    digest: &layer.digest,
                })
                .collect(),
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::lie(self.image.path(), error.to_string()))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::lie(self.image.path(), "the manifest would be larger than registries take"));
        }
        Ok(Manifest { media_type: DOCKER_MANIFEST.to_owned(), bytes })
    }
}

fn scheme(layer: &Layer) -> &'static str {
    if layer.stored == Stored::Plain { gzip::SCHEME } else { STORED }
}
