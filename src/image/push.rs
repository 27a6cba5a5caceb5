//! A push: what the registry lacks is read, compressed and sent, several layers at a time; the configuration next,
//! the manifest last.
//!
//! What the registry has is asked as seldom as can be: a repository that still has the image of the last push has its
//! blobs, which one question tells while the source is being read. The registry itself looks at all of them when it is given
//! the manifest; if it lacks one after all, it is asked for each.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::cache::{Cache, Last, Remembered};
use super::compress::{Method, Pool};
use super::layer::{Packed, Packing, Work};
use super::look::{Check, Look, Looked};
use super::registry::{Registry, Sent};
use super::relayer::{self, Part};
use super::report::{Layer as LayerReport, Push as Report, State};
use super::source::{Anatomy, Image, Layer, Manifest, Stored, Sweep, Swept};
use super::{Digest, Error, manifest};
use futures_util::future::{join, try_join};
use futures_util::stream::FuturesUnordered;
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

/// Names layers in the cache that were gzip'd by whoever wrote the source.
const STORED: &str = "stored";
/// Layers that are read and sent at the same time, each by itself.
const LANES: usize = 3;
/// Questions to the registry at the same time.
const QUESTIONS: usize = 8;

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
    /// Pushes what the same source became before. `None` when the registry lacks some of it.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn remembered(
        &self,
        known: Remembered,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Option<Report>, Error> {
        let began = Instant::now();
        let manifest = Manifest { media_type: known.media_type, bytes: known.manifest.into_bytes() };
        if !self.registry.has_manifest(&Digest::of(&manifest.bytes)).await? {
            return Ok(None);
        }
        if !self.settings.dry_run {
            match self.tag(&manifest, &known.layers, known.config.as_bytes()).await {
                // It lacks a blob, whatever it said. All of them are looked at then.
                Err(Error::Answer { .. }) => return Ok(None),
                tagged => tagged?,
            }
        }
        let of = Some(known.layers.len());
        for (index, layer) in known.layers.iter().enumerate() {
            events(Event::Done { index, of, layer });
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
        look: Look,
        key: Option<&Digest>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Report, Error> {
        let began = Instant::now();
        let (looked, known) = join(look.end(), self.known()).await;
        let Looked { image, anatomy, mut check } = looked?;
        let image = &image;
        let jobs = self.jobs(image, anatomy.as_ref());
        let own = image.manifest.as_ref().filter(|_| anatomy.is_none());
        let finish = async |done: Vec<Option<Done>>, check: Option<&mut Check>| {
            let config = match &anatomy {
                None => image.config.clone(),
                Some(_) => split_configuration(image, &jobs, &done)?,
            };
            self.finish(image.path(), &config, own, done, check, key, began).await
        };
        let done = self.layers(image, &jobs, &known, events).await?;
        match finish(done, check.as_mut()).await {
            // It has the last image and lacks one of its blobs.
            Err(Error::Answer { .. }) if !known.is_empty() => {
                finish(self.layers(image, &jobs, &HashSet::new(), events).await?, check.as_mut()).await
            }
            result => result,
        }
    }

    /// Sees to it that the registry has these layers. It has those that are known.
    async fn layers(
        &self,
        image: &Image,
        jobs: &[Job],
        known: &HashSet<Digest>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Vec<Option<Done>>, Error> {
        let present = jobs.iter().map(|job| job.known.as_ref().map(|known| &known.digest));
        let present = self.present(present, known).await?;
        let total =
            jobs.iter().zip(&present).filter(|(_, p)| !**p).map(|(job, _)| job.layer.stored_size).sum();
        events(Event::Begin { total });
        let mut done = self.send(image, jobs, &present, events).await?;
        self.share(jobs, &mut done);
        Ok(done)
    }

    /// Blobs that the repository has: those of the image that was pushed last, if it still has that.
    async fn known(&self) -> HashSet<Digest> {
        let last = self.cache.last(self.registry.repository()).filter(|_| !self.settings.verify);
        match last {
            Some(last) if matches!(self.registry.has_manifest(&last.manifest).await, Ok(true)) => {
                last.blobs.into_iter().collect()
            }
            _ => HashSet::new(),
        }
    }

    /// The layers of the image to be, lowest first.
    fn jobs(&self, image: &Image, anatomy: Option<&Anatomy>) -> Vec<Job> {
        let scheme = self.settings.method.scheme();
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
            return jobs.collect();
        };
        let parts = relayer::plan(anatomy, &image.config, self.settings.max_layers);
        let jobs = parts.into_iter().filter_map(|part| {
            let layer = image.piece(anatomy, &part)?;
            let diff_id = self.cache.part(&part.content);
            let known = diff_id.as_ref().and_then(|diff_id| self.cache.get(diff_id, scheme));
            Some(Job { layer, part: Some(part), known, diff_id })
        });
        jobs.collect()
    }

    /// Which of these blobs the repository has. What has no name yet is not there.
    async fn present<'d>(
        &self,
        blobs: impl Iterator<Item = Option<&'d Digest>>,
        known: &HashSet<Digest>,
    ) -> Result<Vec<bool>, Error> {
        let ask = async |digest: Option<&Digest>| match digest {
            Some(digest) if known.contains(digest) => Ok(true),
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
            let missing_layers = missing.iter().map(|at| (*at, &jobs[*at].layer));
            let mut left = missing.clone();
            if let Some(sweep) = image.sweep(missing_layers)? {
                left = self.sweep(sweep, image, jobs, &pool, events, &tell).await?;
            }
            // Large ones first.
            left.sort_by_key(|at| std::cmp::Reverse(jobs[*at].layer.stored_size));
            let one =
                async |index: usize| (index, self.one(image, index, &jobs[index], &pool, None, events).await);
            let mut sent = futures_util::stream::iter(left.into_iter().map(one)).buffer_unordered(LANES);
            while let Some((index, done)) = sent.next().await {
                tell(index, done?);
            }
        }
        Ok(results.into_inner())
    }

    /// Sends layers of a compressed archive as they come. Gives back those that have to be read by themselves.
    async fn sweep(
        &self,
        mut sweep: Sweep,
        image: &Image,
        jobs: &[Job],
        pool: &Arc<Pool>,
        events: &dyn Fn(Event<'_>),
        tell: &dyn Fn(usize, Done),
    ) -> Result<Vec<usize>, Error> {
        let (mut running, mut left, mut is_over) = (FuturesUnordered::new(), Vec::new(), false);
        while !is_over || !running.is_empty() {
            tokio::select! {
                swept = sweep.next(), if !is_over => match swept {
                    Some(Swept::Layer(index, reader)) => running.push(async move {
                        (index, self.one(image, index, &jobs[index], pool, Some(reader), events).await)
                    }),
                    Some(Swept::Later(index)) => left.push(index),
                    None => is_over = true,
                },
                Some((index, done)) = running.next() => {
                    tell(index, done?);
                    sweep.done();
                }
            }
        }
        Ok(left)
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

    /// Sends one layer, the first time from `reader` if there is one.
    async fn one(
        &self,
        image: &Image,
        index: usize,
        job: &Job,
        pool: &Arc<Pool>,
        reader: Option<Box<dyn Read + Send>>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Done, Error> {
        let began = Instant::now();
        // What is in a cache was true once; the source says what is true now.
        let diff_id = job.layer.diff_id.clone();
        let once = Mutex::new(reader);
        let start = |skip| {
            let reader = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            Packing::start(Work {
                reader: reader.map_or_else(|| image.read_layer(&job.layer), Ok)?,
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

    /// Configuration, manifest and tags, once all layers are there and what is still being checked is well.
    #[expect(clippy::too_many_arguments, reason = "all that was learned of an image by now")]
    pub(super) async fn finish(
        &self,
        path: &Path,
        config: &[u8],
        own: Option<&Manifest>,
        done: Vec<Option<Done>>,
        check: Option<&mut Check>,
        key: Option<&Digest>,
        began: Instant,
    ) -> Result<Report, Error> {
        let checked = async {
            match check {
                Some(check) => check.end().await.map(Some),
                None => Ok(None),
            }
        };
        let sent = async {
            match self.settings.dry_run {
                true => Ok(Sent::Kept),
                false => Ok(self.registry.push_bytes(config).await?.1),
            }
        };
        let count = done.len();
        let done: Vec<Done> = done.into_iter().flatten().collect();
        let packed: Vec<&Packed> = done.iter().filter_map(|done| done.packed.as_ref()).collect();
        let layers: Vec<LayerReport> = done.iter().map(|done| done.report.clone()).collect();
        let (config_sent, marks) = try_join(sent, checked).await?;
        // A dry run may not know what the layers will be.
        if packed.len() != count {
            let unknown = Manifest { media_type: String::new(), bytes: Vec::new() };
            let mut report = self.report(&unknown, 0, 0, layers, began);
            (report.digest, report.size) = (None, None);
            return Ok(report);
        }
        let manifest = match own {
            Some(manifest) => manifest.clone(),
            None => manifest::write(path, config, &done, self.settings.method)?,
        };
        let size = packed.iter().map(|packed| packed.size).sum::<u64>() + config.len() as u64;
        let mut uploaded: u64 =
            layers.iter().filter(|layer| layer.state == State::Sent).filter_map(|l| l.size).sum();
        if !self.settings.dry_run {
            if config_sent == Sent::Sent {
                uploaded += config.len() as u64;
            }
            self.tag(&manifest, &layers, config).await?;
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
            if let Some(marks) = marks {
                self.cache.put_marks(self.registry.repository(), marks);
            }
            if uploaded > 0 {
                self.cache.put_repository(self.registry.repository());
            }
        }
        Ok(self.report(&manifest, size, uploaded, layers, began))
    }

    async fn tag(&self, manifest: &Manifest, layers: &[LayerReport], config: &[u8]) -> Result<(), Error> {
        for tag in self.tags {
            self.registry.push_manifest(tag, &manifest.media_type, &manifest.bytes).await?;
        }
        let mut blobs: Vec<Digest> = layers.iter().filter_map(|layer| layer.digest.clone()).collect();
        blobs.push(Digest::of(config));
        let last = Last { manifest: Digest::of(&manifest.bytes), blobs };
        self.cache.put_last(self.registry.repository(), &last);
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

    /// Under what name the cache has what became of a layer.
    pub(super) fn scheme(&self, stored: Stored) -> &'static str {
        if stored == Stored::Plain { self.settings.method.scheme() } else { STORED }
    }
}

/// The configuration of an image whose layer was split.
fn split_configuration(image: &Image, jobs: &[Job], done: &[Option<Done>]) -> Result<Vec<u8>, Error> {
    let diff_ids: Vec<Digest> = done.iter().flatten().filter_map(|done| done.diff_id.clone()).collect();
    let parts: Vec<Part> = jobs.iter().filter_map(|job| job.part.clone()).collect();
    relayer::configuration(&image.config, &parts, &diff_ids).map_err(|why| Error::lie(image.path(), why))
}

pub(super) fn state(sent: Sent) -> State {
    match sent {
        Sent::Kept => State::Kept,
        Sent::Mounted => State::Mounted,
        Sent::Sent => State::Sent,
    }
}
