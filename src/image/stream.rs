//! Sources that can be read only once: standard input, pipes, and the output of a script such as `streamLayeredImage` makes.
//!
//! The archive's list of layers may come last, so every member that looks like a layer is sent as it passes. Names of
//! members mostly are digests: what the cache and the registry know by them is only hashed, to see that it is true.
//! Nothing is tagged before the end was reached, the list is right, and a script has ended well.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::compress::Pool;
use super::layer::{self, Expected, Feed, Packed, Packing};
use super::push::{Done, Event, Push, state};
use super::report::{Layer as LayerReport, Push as Report, State};
use super::source::{Image, Member, Stored};
use super::{Digest, Error};

/// How often a script is run when the registry breaks off.
const RUNS: u32 = 3;

/// Where a stream comes from.
#[derive(Debug, Clone)]
pub enum Stream {
    /// Standard input.
    Stdin,
    /// The standard output of a program that is run without arguments.
    Script(PathBuf),
    /// A pipe with a name, such as a shell makes of `<(…)`.
    Pipe(PathBuf),
}

impl Stream {
    /// What can be read only once: `-`, a pipe, and a script or program, which is run and not read. `None`: it is
    /// something else, or not there.
    #[must_use]
    pub fn of(source: &Path) -> Option<Self> {
        if source == Path::new("-") {
            return Some(Self::Stdin);
        }
        let kind = std::fs::metadata(source).ok()?.file_type();
        if kind.is_fifo() || kind.is_char_device() {
            return Some(Self::Pipe(source.to_owned()));
        }
        let mut magic = [0; 4];
        std::fs::File::open(source).and_then(|mut file| file.read_exact(&mut magic)).ok()?;
        let is_program = magic.starts_with(b"#!") || magic == *b"\x7fELF";
        is_program.then(|| Self::Script(source.to_owned()))
    }

    /// Reads all of it, to see what image it is; `each` is shown what looks like a layer.
    ///
    /// # Errors
    /// When it is no image, or a script fails.
    pub fn look(
        &self,
        name: Option<&str>,
        each: &mut dyn FnMut(&Member<'_>, &mut dyn Read) -> io::Result<()>,
    ) -> Result<Image, Error> {
        let (input, child) = self.open()?;
        let image = Image::read_stream(self.path(), input, name, each);
        let status = child.map(|mut child| child.wait()).transpose();
        match status.map_err(|error| Error::io(self.path(), error))?.filter(|status| !status.success()) {
            Some(status) if image.is_ok() || status.code().is_some() => Err(self.failed(status)),
            _ => image,
        }
    }

    fn failed(&self, status: ExitStatus) -> Error {
        Error::lie(self.path(), format!("the script failed: {status}"))
    }

    /// As errors name it.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Stdin => Path::new("standard input"),
            Self::Script(path) | Self::Pipe(path) => path,
        }
    }

    fn open(&self) -> Result<(Box<dyn Read + Send>, Option<Child>), Error> {
        match self {
            Self::Stdin => Ok((Box::new(io::stdin()), None)),
            Self::Pipe(path) => {
                let pipe = std::fs::File::open(path).map_err(|error| Error::io(path, error))?;
                Ok((Box::new(pipe), None))
            }
            Self::Script(path) => {
                // A name without slash would be looked for in PATH.
                let program = path.canonicalize().map_err(|error| Error::io(path, error))?;
                let mut child = Command::new(program)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .map_err(|error| Error::io(path, error))?;
                let output = child.stdout.take().ok_or_else(|| Error::lie(path, "has no output"))?;
                Ok((Box::new(output), Some(child)))
            }
        }
    }
}

/// A member that looks like a layer.
struct Ask {
    position: u64,
    size: u64,
    stored: Stored,
    /// What its name says that it is.
    named: Option<Digest>,
    answer: std_mpsc::SyncSender<Answer>,
}

/// What is to be done with it.
enum Answer {
    /// Read, compress, hand over.
    Send(Feed),
    /// Read and see whether it is this.
    Check(Expected),
}

impl Push<'_> {
    /// Pushes an image that comes as a stream. Layers stay as they are: how one is best split can be said only when
    /// all of it was seen.
    ///
    /// # Errors
    /// When the source is at fault, a script fails, or the registry does not take something after retries.
    pub async fn stream(
        &self,
        stream: &Stream,
        name: Option<&str>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Report, Error> {
        let mut run = 1;
        loop {
            match self.stream_once(stream, name, events).await {
                Err(Error::Interrupted { .. }) if run < RUNS && matches!(stream, Stream::Script(_)) => {
                    run += 1
                }
                result => return result,
            }
        }
    }

    async fn stream_once(
        &self,
        stream: &Stream,
        name: Option<&str>,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Report, Error> {
        let began = Instant::now();
        let path = stream.path();
        let pool = Pool::start().map_err(|error| Error::io(path, error))?;
        let (input, mut child) = stream.open()?;
        let (ask, mut asked) = mpsc::channel::<Ask>(1);
        let (tell, told) = oneshot::channel();
        let (reader_path, wanted, method) = (path.to_owned(), name.map(str::to_owned), self.settings.method);
        let read = move || {
            let each = &mut |member: &Member<'_>, bytes: &mut dyn Read| {
                pass_on(&ask, member, bytes, &reader_path, method, &pool)
            };
            let image = Image::read_stream(&reader_path, input, wanted.as_deref(), each);
            // Whoever waits for more layers knows now that there are none.
            drop(ask);
            let _ = tell.send(image);
        };
        std::thread::Builder::new()
            .name("stream".to_owned())
            .spawn(read)
            .map_err(|error| Error::io(path, error))?;
        let mut passed: HashMap<u64, Done> = HashMap::new();
        let mut failed = None;
        while let Some(ask) = asked.recv().await {
            let position = ask.position;
            let index = passed.len();
            match self.pass(path, index, ask, events).await {
                Ok(done) => {
                    events(Event::Done { index, of: None, layer: &done.report });
                    passed.insert(position, done);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(asked);
        let image = told.await.unwrap_or_else(|_| Err(Error::stopped(path)));
        // By now it has either written all or its output is closed.
        let status = child.as_mut().map(Child::wait).transpose().map_err(|error| Error::io(path, error))?;
        // A script that failed is the cause of whatever is wrong with what it wrote. One that a closed pipe ended was
        // stopped by the push.
        let is_cause = matches!(failed, None | Some(Error::Lie { .. } | Error::Interrupted { .. }));
        if let Some(status) = status.filter(|status| is_cause && !status.success())
            && (status.code().is_some_and(|code| code < 128) || failed.is_none())
        {
            return Err(stream.failed(status));
        }
        if let Some(error) = failed {
            // The source's own fault is told better by its reader.
            return Err(match (error, image) {
                (Error::Interrupted { .. } | Error::Unreachable { .. }, Err(source @ Error::Lie { .. })) => {
                    source
                }
                (error, _) => error,
            });
        }
        let image = image?;
        let mut own = image.manifest.as_ref();
        let done = image.layers.iter().map(|layer| {
            let done = passed.get(&image.position(layer)).cloned();
            let done = done.ok_or_else(|| Error::lie(path, "a layer did not pass by"))?;
            let is = (&done.diff_id, &layer.diff_id);
            if let (Some(is), Some(said)) = is
                && is != said
            {
                return Err(Error::lie(
                    path,
                    format!("a layer hashes to {is}, the configuration says {said}: one of them is damaged"),
                ));
            }
            let is = done.packed.as_ref().map(|packed| &packed.digest);
            if let (Some(is), Some(said)) = (is, &layer.digest)
                && is != said
            {
                // A plain layer of a layout, compressed before it could be known that a manifest names it.
                own = None;
                if done.diff_id.as_ref() != Some(said) {
                    return Err(Error::lie(
                        path,
                        format!("a layer hashes to {is}, its name is {said}: it is damaged"),
                    ));
                }
            }
            Ok(Some(done))
        });
        let done: Vec<Option<Done>> = done.collect::<Result<_, Error>>()?;
        self.finish(path, &image.config, own, done, None, None, began).await
    }

    /// One layer of a stream.
    async fn pass(
        &self,
        path: &Path,
        index: usize,
        ask: Ask,
        events: &dyn Fn(Event<'_>),
    ) -> Result<Done, Error> {
        let began = Instant::now();
        let Ask { size, stored, named, answer, .. } = ask;
        // A plain member is named by what it hashes to, a compressed one by itself.
        let known = match (&named, stored) {
            (Some(named), Stored::Plain) => self.cache.get(named, self.scheme(stored)),
            (Some(named), _) => Some(Packed { digest: named.clone(), size }),
            (None, _) => None,
        };
        let done = |packed: Option<Packed>, diff_id: Option<Digest>, state: State| Done {
            report: LayerReport {
                diff_id: diff_id.clone(),
                digest: packed.as_ref().map(|packed| packed.digest.clone()),
                size: packed.as_ref().map(|packed| packed.size),
                stored_size: size,
                state,
                seconds: began.elapsed().as_secs_f64(),
                paths: Vec::new(),
            },
            packed,
            diff_id,
            stored,
        };
        let expected = |is_plain: bool| Expected {
            path: path.to_owned(),
            stored,
            diff_id: named.clone().filter(|_| is_plain),
            digest: named.clone().filter(|_| !is_plain),
        };
        if let Some(known) = known
            && (self.settings.dry_run || self.registry.has_blob(&known.digest).await?)
        {
            let is_there = !self.settings.dry_run || self.registry.has_blob(&known.digest).await?;
            let plain = stored == Stored::Plain;
            let _ = answer.send(Answer::Check(expected(plain)));
            let diff_id = named.clone().filter(|_| plain);
            return Ok(done(Some(known), diff_id, if is_there { State::Kept } else { State::WouldSend }));
        }
        if self.settings.dry_run {
            let _ = answer.send(Answer::Check(Expected { diff_id: None, digest: None, ..expected(true) }));
            return Ok(done(None, None, State::WouldSend));
        }
        let (packing, feed) = Packing::fed();
        let _ = answer.send(Answer::Send(feed));
        let once = Mutex::new(Some(packing));
        let start = |_| {
            let packing = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            packing.ok_or_else(|| Error::Interrupted { path: path.to_owned() })
        };
        let reading = |read| events(Event::Reading { index, read });
        let (outcome, sent) = self.registry.push_layer(&start, None, &[], &reading).await?;
        if let Some(diff_id) = &outcome.diff_id {
            self.cache.put(diff_id, self.scheme(stored), &outcome.packed);
        }
        self.cache.put_place(&outcome.packed.digest, self.registry.repository());
        Ok(done(Some(outcome.packed), outcome.diff_id, state(sent)))
    }
}

/// On the reader's thread: asks what is to be done with a layer, and does it.
fn pass_on(
    ask: &mpsc::Sender<Ask>,
    member: &Member<'_>,
    bytes: &mut dyn Read,
    path: &Path,
    method: super::compress::Method,
    pool: &Arc<Pool>,
) -> io::Result<()> {
    let stopped = || io::Error::other("the push stopped");
    let (answer, answered) = std_mpsc::sync_channel(1);
    let question = Ask {
        position: member.position,
        size: member.size,
        stored: member.stored,
        named: named(member.name),
        answer,
    };
    ask.blocking_send(question).map_err(|_| stopped())?;
    match answered.recv().map_err(|_| stopped())? {
        Answer::Send(feed) => {
            let work = layer::Work {
                reader: Box::new(io::empty()),
                path: path.to_owned(),
                stored: member.stored,
                diff_id: None,
                digest: None,
                method,
                pool: Arc::clone(pool),
                skip: 0,
            };
            if feed.run(bytes, &work) { Ok(()) } else { Err(stopped()) }
        }
        Answer::Check(expected) => match layer::check(bytes, &expected) {
            Ok(_) => Ok(()),
            Err(layer::Broken::Source(error)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
            }
            Err(layer::Broken::Abandoned) => Err(stopped()),
        },
    }
}

/// The digest in a member's name: `<hex>/layer.tar`, `<hex>.tar`, `<hex>.tar.gz`, `sha256:<hex>`,
/// `blobs/sha256/<hex>`.
fn named(name: &str) -> Option<Digest> {
    let hex = |part: &str| {
        let digits = part.strip_prefix("sha256:").unwrap_or(part).split('.').next()?;
        Digest::parse(&format!("sha256:{digits}"))
    };
    name.split('/').find_map(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_found_in_names() {
        let hex = Digest::of(b"x").hex().to_owned();
        for name in [
            "{}/layer.tar",
            "{}.tar",
            "{}.tar.gz",
            "sha256:{}",
            "blobs/sha256/{}",
            "sha256:{}.tar.gz",
            "./{}.tar",
        ] {
            assert_eq!(named(&name.replace("{}", &hex)), Some(Digest::of(b"x")), "{name}");
        }
        assert_eq!(named("l1/layer.tar"), None);
    }
}
