//! A push: what the registry lacks is read, compressed and sent, several layers at a time; the configuration next,
//! the manifest last.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::cache::{Cache, Remembered};
use super::compress::{Method, Pool};
use super::layer::{Packed, Packing, Work};
use super::registry::{Registry, Sent};
use super::relayer::{self, Part};
use super::report::{Layer as LayerReport, Push as Report, State};
use super::source::{Anatomy, Codec, Image, Layer, MAX_DOCUMENT, Manifest, Stored};
use super::{Digest, Error};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};

/// What is to be pushed where, and how.
#[derive(Debug)]
pub struct Push<'a> {
    /// The repository, opened for [`super::registry::Access::Push`].
    pub registry: &'a Registry,
    /// What earlier pushes learned.
    pub cache: &'a Cache,
    /// The tags; at least one.
    pub tags: &'a [String],
    /// What becomes of the layers.
    pub settings: &'a Settings,
}

/// What becomes of the layers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only look what would be sent.
    pub dry_run: bool,
    /// How plain layers are compressed.
    pub method: Method,
    /// Whether a layer is split.
    pub layering: Layering,
    /// The most layers that a split makes.
    pub max_layers: usize,
    /// Read everything, even a file that has not changed since it was pushed.
    pub verify: bool,
}

impl Settings {
    /// All that decides about the manifest, for [`super::cache::source_key`].
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{} {:?} {}", self.method.scheme(), self.layering, self.max_layers)
    }
}

/// Whether the one layer of a Nix image is split by store paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layering {
    /// Where it can be.
    Auto,
    /// It must be.
    StorePaths,
    /// Never.
    Keep,
}

/// What happens during a push, for a progress display.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many bytes of the source are to be read in all.
    Begin {
        /// In bytes.
        total: u64,
    },
    /// A layer is being read; the counter says how many of its stored bytes were. A layer may be read again.
    Reading {
        /// Position among all layers, from 0.
        index: usize,
        /// Bytes read so far.
        read: Arc<AtomicU64>,
    },
    /// A layer is done.
    Done {
        /// Position among all layers, from 0.
        index: usize,
        /// How many layers there are, where that is known.
        of: Option<usize>,
        /// What became of it.
        layer: &'a LayerReport,
    },
}

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Names layers in the cache that were gzip'd by whoever wrote the source.
const STORED: &str = "stored";
/// Layers that are read and sent at the same time, where the source allows it.
const LANES: usize = 3;
/// Questions to the registry at the same time.
const QUESTIONS: usize = 8;

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
    media_type: Cow<'a, str>,
    size: u64,
    digest: &'a Digest,
}

/// A layer of the pushed image.
struct Job {
    layer: Layer,
    part: Option<Part>,
    /// What it will be, if that is known before it is read.
    known: Option<Packed>,
    diff_id: Option<Digest>,
}

/// A layer that is in the registry, or would be.
#[derive(Clone)]
pub(super) struct Done {
    pub(super) packed: Option<Packed>,
    pub(super) diff_id: Option<Digest>,
    pub(super) report: LayerReport,
    /// How it is compressed, for its media type.
    pub(super) stored: Stored,
}

impl Push<'_> {
    /// Pushes what the same source became before. `None` when that is not known, or the registry lacks some of it.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn remembered(
        &self,
        key: &Digest,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Option<Report>, Error> {
        let began = Instant::now();
        let Some(known) = self.cache.source(key).filter(|_| !self.settings.verify) else { return Ok(None) };
        let mut blobs: Vec<Digest> = known.layers.iter().filter_map(|layer| layer.digest.clone()).collect();
        if blobs.len() != known.layers.len() {
            return Ok(None);
        }
        blobs.push(Digest::of(known.config.as_bytes()));
        if self.present(blobs.iter().map(Some)).await?.contains(&false) {
            return Ok(None);
        }
        let of = Some(known.layers.len());
        for (index, layer) in known.layers.iter().enumerate() {
            events(Event::Done { index, of, layer });
        }
        let manifest = Manifest { media_type: known.media_type, bytes: known.manifest.into_bytes() };
        if !self.settings.dry_run {
            self.tag(&manifest).await?;
        }
        let size =
            known.layers.iter().filter_map(|layer| layer.size).sum::<u64>() + known.config.len() as u64;
        Ok(Some(self.report(&manifest, size, 0, known.layers, began)))
    }

    /// Pushes an image. Nothing is tagged unless every blob is there.
    ///
    /// # Errors
    /// When the source is at fault, or the registry does not take something after retries.
    pub async fn image(
        &self,
        image: &Image,
        key: Option<&Digest>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Report, Error> {
        let began = Instant::now();
        let (jobs, anatomy) = self.jobs(image)?;
        let present = self.present(jobs.iter().map(|job| job.known.as_ref().map(|k| &k.digest))).await?;
        let total =
            jobs.iter().zip(&present).filter(|(_, p)| !**p).map(|(job, _)| job.layer.stored_size).sum();
        events(Event::Begin { total });
        let mut done = self.send(image, &jobs, &present, events).await?;
        self.share(&jobs, &mut done);
        let config = match &anatomy {
            None => image.config.clone(),
            Some(_) => {
                let diff_ids: Vec<Digest> =
                    done.iter().flatten().filter_map(|done| done.diff_id.clone()).collect();
                let parts: Vec<Part> = jobs.iter().filter_map(|job| job.part.clone()).collect();
                relayer::configuration(&image.config, &parts, &diff_ids)
                    .map_err(|why| Error::lie(image.path(), why))?
            }
        };
        let own = image.manifest.as_ref().filter(|_| anatomy.is_none());
        self.finish(image.path(), &config, own, done, key, began).await
    }

    /// The layers of the image to be, lowest first.
    fn jobs(&self, image: &Image) -> Result<(Vec<Job>, Option<Anatomy>), Error> {
        let scheme = self.settings.method.scheme();
        let anatomy = match self.settings.layering {
            Layering::Keep => None,
            Layering::Auto if image.layers.len() != 1 => None,
            Layering::Auto => image.anatomy()?.ok(),
            Layering::StorePaths => Some(image.anatomy()?.map_err(|why| relayer::cannot(image, &why))?),
        };
        let Some(anatomy) = anatomy else {
            let jobs = image.layers.iter().map(|layer| {
                let known = match &layer.digest {
                    Some(digest) => Some(Packed { digest: digest.clone(), size: layer.stored_size }),
                    None => {
                        layer.diff_id.as_ref().and_then(|id| self.cache.get(id, self.scheme(layer.stored)))
                    }
                };
                Job { layer: layer.clone(), part: None, known, diff_id: layer.diff_id.clone() }
            });
            return Ok((jobs.collect(), None));
        };
        let parts = relayer::plan(&anatomy, &image.config, self.settings.max_layers);
        let jobs = parts.into_iter().filter_map(|part| {
            let layer = image.piece(&anatomy, &part)?;
            let diff_id = self.cache.part(&part.content);
            let known = diff_id.as_ref().and_then(|diff_id| self.cache.get(diff_id, scheme));
            Some(Job { layer, part: Some(part), known, diff_id })
        });
        Ok((jobs.collect(), Some(anatomy)))
    }

    /// Which of these blobs the repository has. What is not known is not there.
    async fn present<'d>(&self, blobs: impl Iterator<Item = Option<&'d Digest>>) -> Result<Vec<bool>, Error> {
        let ask = async |digest: Option<&Digest>| match digest {
            Some(digest) => self.registry.has_blob(digest).await,
            None => Ok(false),
        };
        futures_util::stream::iter(blobs.map(ask)).buffered(QUESTIONS).try_collect().await
    }

    /// Sends what is not there.
    async fn send(
        &self,
        image: &Image,
        jobs: &[Job],
        present: &[bool],
        events: &dyn Fn(Event<'_>),
    ) -> Result<Vec<Option<Done>>, Error> {
        let results: RefCell<Vec<Option<Done>>> = RefCell::new(vec![None; jobs.len()]);
        let tell = |index: usize, done: Done| {
            events(Event::Done { index, of: Some(jobs.len()), layer: &done.report });
            results.borrow_mut()[index] = Some(done);
        };
        let mut first: HashMap<&Digest, usize> = HashMap::new();
        let mut missing = Vec::new();
        for (index, job) in jobs.iter().enumerate() {
            // The same layer may stand in an image twice; it gets what the first one got.
            let name = job.diff_id.as_ref().or(job.layer.digest.as_ref());
            if name.is_some_and(|name| *first.entry(name).or_insert(index) != index) {
                continue;
            }
            match present[index] {
                true => tell(index, self.done(job, job.known.clone(), None, State::Kept, 0.0)),
                false if self.settings.dry_run => {
                    tell(index, self.done(job, job.known.clone(), None, State::WouldSend, 0.0));
                }
                false => missing.push(index),
            }
        }
        if !missing.is_empty() {
            let pool = Pool::start().map_err(|error| Error::io(image.path(), error))?;
            let lanes = lanes(image, jobs, missing);
            let queues: Vec<RefCell<VecDeque<usize>>> = lanes.into_iter().map(RefCell::new).collect();
            let workers = (0..LANES.max(queues.len())).filter_map(|at| match queues.len() {
                // Any lane takes the next.
                1 if image.is_random_access() => Some(&queues[0]),
                _ => queues.get(at),
            });
            let (pool, tell) = (&pool, &tell);
            let work = workers.map(async |queue| {
                loop {
                    let next = queue.borrow_mut().pop_front();
                    let Some(index) = next else { return Ok::<(), Error>(()) };
                    let done = self.one(image, index, &jobs[index], pool, events).await?;
                    tell(index, done);
                }
            });
            try_join_all(work).await?;
        }
        Ok(results.into_inner())
    }

    /// Gives layers that stand in the image more than once what the first of them got.
    fn share(&self, jobs: &[Job], done: &mut [Option<Done>]) {
        for at in 0..jobs.len() {
            if done[at].is_none() {
                let same = |job: &Job| {
                    (&job.diff_id, &job.layer.digest) == (&jobs[at].diff_id, &jobs[at].layer.digest)
                };
                let first = jobs.iter().position(same).and_then(|first| done[first].clone());
                done[at] = first.map(|mut done| {
                    if done.report.state == State::Sent {
                        done.report.state = State::Kept;
                    }
                    done
                });
            }
        }
    }

    async fn one(
        &self,
        image: &Image,
        index: usize,
        job: &Job,
        pool: &Arc<Pool>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Done, Error> {
        let began = Instant::now();
        // What is in a cache was true once; the source says what is true now.
        let diff_id = job.layer.diff_id.clone();
        let start = |skip| {
            Packing::start(Work {
                reader: image.read_layer(&job.layer)?,
                path: image.path().to_owned(),
                stored: job.layer.stored,
                diff_id: diff_id.clone(),
                digest: job.layer.digest.clone(),
                method: self.settings.method,
                pool: Arc::clone(pool),
                skip,
            })
        };
        let elsewhere =
            job.known.as_ref().map(|known| self.cache.places(&known.digest, self.registry.repository()));
        let (outcome, sent) = self
            .registry
            .push_layer(&start, job.known.as_ref(), &elsewhere.unwrap_or_default(), &|read| {
                events(Event::Reading { index, read });
            })
            .await?;
        let diff_id = outcome.diff_id.or_else(|| job.diff_id.clone());
        if let (Some(diff_id), None) = (&diff_id, &job.layer.digest) {
            self.cache.put(diff_id, self.scheme(job.layer.stored), &outcome.packed);
            if let Some(part) = &job.part {
                self.cache.put_part(&part.content, diff_id);
            }
        }
        self.cache.put_place(&outcome.packed.digest, self.registry.repository());
        Ok(self.done(job, Some(outcome.packed), diff_id, state(sent), began.elapsed().as_secs_f64()))
    }

    fn done(
        &self,
        job: &Job,
        packed: Option<Packed>,
        diff_id: Option<Digest>,
        state: State,
        seconds: f64,
    ) -> Done {
        let diff_id = diff_id.or_else(|| job.diff_id.clone());
        let report = LayerReport {
            diff_id: diff_id.clone(),
            digest: packed.as_ref().map(|packed| packed.digest.clone()),
            size: packed.as_ref().map(|packed| packed.size),
            stored_size: job.layer.stored_size,
            state,
            seconds,
            paths: job.part.as_ref().map(|part| part.paths.clone()).unwrap_or_default(),
        };
        Done { packed, diff_id, report, stored: job.layer.stored }
    }

    /// Configuration, manifest and tags, once all layers are there.
    pub(super) async fn finish(
        &self,
        path: &Path,
        config: &[u8],
        own: Option<&Manifest>,
        done: Vec<Option<Done>>,
        key: Option<&Digest>,
        began: Instant,
    ) -> Result<Report, Error> {
        let count = done.len();
        let done: Vec<Done> = done.into_iter().flatten().collect();
        let packed: Vec<&Packed> = done.iter().filter_map(|done| done.packed.as_ref()).collect();
        let layers: Vec<LayerReport> = done.iter().map(|done| done.report.clone()).collect();
        // A dry run may not know what the layers will be.
        if packed.len() != count {
            let unknown = Manifest { media_type: String::new(), bytes: Vec::new() };
            let mut report = self.report(&unknown, 0, 0, layers, began);
            (report.digest, report.size) = (None, None);
            return Ok(report);
        }
        let manifest = match own {
            Some(manifest) => manifest.clone(),
            None => self.manifest(path, config, &done)?,
        };
        let size = packed.iter().map(|packed| packed.size).sum::<u64>() + config.len() as u64;
        let mut uploaded: u64 =
            layers.iter().filter(|layer| layer.state == State::Sent).filter_map(|l| l.size).sum();
        if !self.settings.dry_run {
            if self.registry.push_bytes(config).await?.1 == Sent::Sent {
                uploaded += config.len() as u64;
            }
            self.tag(&manifest).await?;
            if let (Some(key), Ok(config), Ok(text)) =
                (key, String::from_utf8(config.to_vec()), String::from_utf8(manifest.bytes.clone()))
            {
                let layers = layers.iter().cloned().map(|mut layer| {
                    (layer.state, layer.seconds) = (State::Kept, 0.0);
                    layer
                });
                let (media_type, layers) = (manifest.media_type.clone(), layers.collect());
                self.cache.put_source(key, &Remembered { config, manifest: text, media_type, layers });
            }
            if uploaded > 0 {
                self.cache.put_repository(self.registry.repository());
            }
        }
        Ok(self.report(&manifest, size, uploaded, layers, began))
    }

    async fn tag(&self, manifest: &Manifest) -> Result<(), Error> {
        for tag in self.tags {
            self.registry.push_manifest(tag, &manifest.media_type, &manifest.bytes).await?;
        }
        Ok(())
    }

    fn report(
        &self,
        manifest: &Manifest,
        size: u64,
        uploaded: u64,
        layers: Vec<LayerReport>,
        began: Instant,
    ) -> Report {
        Report {
            repository: self.registry.repository().to_string(),
            tags: self.tags.to_vec(),
            size: Some(size),
            digest: Some(Digest::of(&manifest.bytes)),
            uploaded,
            layers,
            seconds: began.elapsed().as_secs_f64(),
            dry_run: self.settings.dry_run,
        }
    }

    /// A manifest of Docker's kind where all layers are gzip'd, of OCI's kind where not: Docker's knows nothing else.
    fn manifest(&self, path: &Path, config: &[u8], layers: &[Done]) -> Result<Manifest, Error> {
        let method = self.settings.method;
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
            Some(DescriptorJson { media_type, size: packed.size, digest: &packed.digest })
        });
        let manifest = ManifestJson {
            schema_version: 2,
            media_type,
            config: DescriptorJson {
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

    /// Under what name the cache has what became of a layer.
    pub(super) fn scheme(&self, stored: Stored) -> &'static str {
        if stored == Stored::Plain { self.settings.method.scheme() } else { STORED }
    }
}

pub(super) fn state(sent: Sent) -> State {
    match sent {
        Sent::Kept => State::Kept,
        Sent::Mounted => State::Mounted,
        Sent::Sent => State::Sent,
    }
}

/// Who sends which layer. Of a file that can be read anywhere: one queue for all, large ones first. Of a compressed
/// one, which is read from the front: what stands together in one queue, what is picked from all over in another, so
/// that each goes through the archive once.
fn lanes(image: &Image, jobs: &[Job], mut missing: Vec<usize>) -> Vec<VecDeque<usize>> {
    if image.is_random_access() {
        missing.sort_by_key(|at| std::cmp::Reverse(jobs[*at].layer.stored_size));
        return vec![missing.into()];
    }
    missing.sort_by_key(|at| image.position(&jobs[*at].layer));
    let is_picked = |at: &usize| jobs[*at].part.as_ref().is_some_and(|part| part.grouped);
    let (picked, together): (Vec<usize>, Vec<usize>) = missing.into_iter().partition(is_picked);
    vec![together.into(), picked.into()]
}
