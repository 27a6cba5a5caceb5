//! One layer on its way: read once, hashed, compressed where needed, hashed again, given out as chunks.
//!
//! A thread does the work and a small bounded channel carries the chunks, so memory does not depend on the
//! layer's size. The last check (does the layer hash to what the image says?) is made before the stream ends: a layer
//! that lies breaks the stream, and with it the upload.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::block::fill;
use super::chunks::{Chunk, Chunks};
use super::compress::{Method, Pool};
use super::digest::Hasher;
use super::source::{Stored, Unpacker};
use super::{Digest, Error};

/// Bytes read at once where nothing is compressed.
const CHUNK: usize = 128 * 1024;
/// Chunks that wait to be sent.
const WAITING: usize = 4;

/// A layer as the registry gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the bytes sent.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// A layer that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was sent.
    pub packed: Packed,
    /// Digest of the plain tar; none where stored bytes went as they are.
    pub diff_id: Option<Digest>,
}

/// Why a layer's stream ended early.
#[derive(Debug)]
pub enum Broken {
    /// The source is at fault; trying again is no use.
    Source(Error),
    /// The reader went away.
    Abandoned,
}

/// A layer being read. Take [`chunks`](Self::chunks) once, then ask for the [`outcome`](Self::outcome).
#[derive(Debug)]
pub struct Packing {
    chunks: Chunks,
    outcome: oneshot::Receiver<Result<Outcome, Broken>>,
    read: Arc<AtomicU64>,
}

/// What is to be read, and what is known of it.
pub struct Work {
    /// The layer's bytes as they are stored.
    pub reader: Box<dyn Read + Send>,
    /// The source, for errors.
    pub path: PathBuf,
    /// How it is stored.
    pub stored: Stored,
    /// What the plain tar must hash to.
    pub diff_id: Option<Digest>,
    /// What the stored bytes must hash to.
    pub digest: Option<Digest>,
    /// What becomes of a plain tar.
    pub method: Method,
    /// Who does it.
    pub pool: Arc<Pool>,
    /// How many of the bytes to send the registry has already.
    pub skip: u64,
}

/// What a layer is said to be.
#[derive(Debug)]
pub struct Expected {
    /// The source, for errors.
    pub path: PathBuf,
    /// How it is stored.
    pub stored: Stored,
    /// What the plain tar must hash to.
    pub diff_id: Option<Digest>,
    /// What the stored bytes must hash to.
    pub digest: Option<Digest>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Packing {
    /// Starts a thread that reads the layer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut work: Work) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (tell, outcome) = oneshot::channel();
        let read = Arc::new(AtomicU64::new(0));
        let path = work.path.clone();
        let inner = std::mem::replace(&mut work.reader, Box::new(io::empty()));
        let mut source = Counting { inner, read: Arc::clone(&read) };
        let run = move || {
            let result = pack(&mut source, &work, &sender);
            if let Err(Trouble::Source(_)) = &result {
                // The request must break off: an end of stream here would look like a whole body.
                let _ = sender.blocking_send(Err(io::Error::other("the source of the layer is damaged")));
            }
            // The position in a compressed source goes back before the next layer is opened.
            drop(source);
            let _ = tell.send(result.map_err(|trouble| trouble.at(&work.path)));
        };
        std::thread::Builder::new()
            .name("layer".to_owned())
            .spawn(run)
            .map_err(|error| Error::io(&path, error))?;
        Ok(Self { chunks: Chunks::new(receiver), outcome, read })
    }

    /// A layer whose chunks come from a thread that somebody else runs, with [`Feed::run`].
    #[must_use]
    pub fn fed() -> (Self, Feed) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (tell, outcome) = oneshot::channel();
        let read = Arc::new(AtomicU64::new(0));
        let feed = Feed { sender, tell, read: Arc::clone(&read) };
        (Self { chunks: Chunks::new(receiver), outcome, read }, feed)
    }

    /// The chunks, for the bodies of requests.
    #[must_use]
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Bytes of the source read so far.
    #[must_use]
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.read)
    }

    /// What was read. Whoever asks wants no more chunks: an unfinished layer is abandoned.
    ///
    /// # Errors
    /// [`Broken::Source`] when the source is at fault, [`Broken::Abandoned`] when chunks were left over.
    pub async fn outcome(self) -> Result<Outcome, Broken> {
        self.chunks.close();
        self.outcome.await.unwrap_or(Err(Broken::Abandoned))
    }
}

enum Trouble {
    Source(Reason),
    Abandoned,
}

enum Reason {
    Io(io::Error),
    Lie(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Source(Reason::Io(error))
    }
}

impl Trouble {
    fn at(self, path: &Path) -> Broken {
        match self {
            Self::Abandoned => Broken::Abandoned,
            Self::Source(Reason::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Broken::Source(Error::lie(path, "a layer is cut: the source ends in the middle of it"))
            }
            Self::Source(Reason::Io(error)) => Broken::Source(Error::io(path, error)),
            Self::Source(Reason::Lie(what)) => Broken::Source(Error::lie(path, what)),
        }
    }
}

/// The other end of a [`Packing`] whose layer somebody else reads.
#[derive(Debug)]
pub struct Feed {
    sender: mpsc::Sender<Chunk>,
    tell: oneshot::Sender<Result<Outcome, Broken>>,
    read: Arc<AtomicU64>,
}

impl Feed {
    /// Reads the layer on this thread. True when all of it was read and taken.
    pub fn run(self, reader: &mut dyn Read, work: &Work) -> bool {
        let mut source = Counting { inner: reader, read: self.read };
        let result = pack(&mut source, work, &self.sender);
        if let Err(Trouble::Source(_)) = &result {
            let _ = self.sender.blocking_send(Err(io::Error::other("the source of the layer is damaged")));
        }
        let well = result.is_ok();
        drop(self.sender);
        let _ = self.tell.send(result.map_err(|trouble| trouble.at(&work.path)));
        well
    }
}

fn pack(source: &mut impl Read, work: &Work, sender: &mpsc::Sender<Chunk>) -> Result<Outcome, Trouble> {
    let mut plain = Hasher::default();
    let mut packed = Hasher::default();
    let mut gone = false;
    let mut skip = work.skip;
    let mut send = |mut piece: Vec<u8>| {
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= known as u64;
        if known > 0 {
            piece.drain(..known);
        }
        piece.is_empty() || sender.blocking_send(Ok(piece)).is_ok()
    };
    let diff_id = match work.stored {
        Stored::Plain => {
            work.pool.compress(
                work.method,
                source,
                |block| plain.update(block),
                |piece| {
                    packed.update(&piece);
                    gone = !send(piece);
                    !gone
                },
            )?;
            Some(plain.finish())
        }
        Stored::Packed(codec) => {
            let mut unpacked = Unpacker::new(codec, plain).map_err(damaged)?;
            pass(source, &mut packed, &mut send, &mut gone, |chunk| unpacked.write(chunk))?;
            // An abandoned layer is cut here, which is no fault of the source.
            if gone { None } else { Some(unpacked.finish().map_err(damaged)?.finish()) }
        }
        Stored::AsIs => {
            pass(source, &mut packed, &mut send, &mut gone, |_| Ok(()))?;
            None
        }
    };
    if gone {
        return Err(Trouble::Abandoned);
    }
    let packed = Packed { size: packed.length(), digest: packed.finish() };
    if let (Some(is), Some(said)) = (&diff_id, &work.diff_id)
        && is != said
    {
        return Err(lie(format!(
            "a layer hashes to {is}, the configuration says {said}: one of them is damaged"
        )));
    }
    if let Some(said) = &work.digest
        && packed.digest != *said
    {
        return Err(lie(format!("a layer hashes to {}, its name is {said}: it is damaged", packed.digest)));
    }
    Ok(Outcome { packed, diff_id })
}

/// Reads a layer and sends it nowhere: what it would become is known already, and whether it is what it is said to
/// be is to be seen. The digest of its plain tar, where that can be told.
///
/// # Errors
/// [`Broken::Source`] when it is not, or cannot be read.
pub fn check(reader: &mut dyn Read, expected: &Expected) -> Result<Option<Digest>, Broken> {
    let mut run = || -> Result<Option<Digest>, Trouble> {
        let mut plain = Hasher::default();
        let mut stored = Hasher::default();
        let no = &mut false;
        let diff_id = match expected.stored {
            Stored::Plain => {
                pass(reader, &mut plain, &mut |_| true, no, |_| Ok(()))?;
                Some(plain.finish())
            }
            Stored::Packed(codec) => {
                let mut unpacked = Unpacker::new(codec, plain).map_err(damaged)?;
                pass(reader, &mut stored, &mut |_| true, no, |chunk| unpacked.write(chunk))?;
                Some(unpacked.finish().map_err(damaged)?.finish())
            }
            Stored::AsIs => {
                pass(reader, &mut stored, &mut |_| true, no, |_| Ok(()))?;
                None
            }
        };
        let digest = (expected.stored != Stored::Plain).then(|| stored.finish());
        for (is, said) in [(&diff_id, &expected.diff_id), (&digest, &expected.digest)] {
            if let (Some(is), Some(said)) = (is, said)
                && is != said
            {
                let what = format!("a layer hashes to {is}, it is said to be {said}: one of them is damaged");
                return Err(lie(what));
            }
        }
        Ok(diff_id)
    };
    run().map_err(|trouble| trouble.at(&expected.path))
}

fn lie(what: String) -> Trouble {
    Trouble::Source(Reason::Lie(what))
}

fn damaged(error: io::Error) -> Trouble {
    lie(format!("a compressed layer is damaged: {error}"))
}

/// Hands the bytes on as they are.
fn pass(
    source: &mut (impl Read + ?Sized),
    packed: &mut Hasher,
    send: &mut impl FnMut(Vec<u8>) -> bool,
    gone: &mut bool,
    mut seen: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Trouble> {
    loop {
        let mut chunk = Vec::new();
        fill(&mut chunk, CHUNK, source)?;
        if chunk.is_empty() {
            return Ok(());
        }
        packed.update(&chunk);
        seen(&chunk).map_err(damaged)?;
        if !send(chunk) {
            *gone = true;
            return Ok(());
        }
    }
}

/// Counts what is read, for a progress bar.
struct Counting<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
