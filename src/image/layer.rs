//! One layer on its way: read once, hashed, compressed where needed, hashed again, given out as chunks.
//!
//! A thread does the work and a small bounded channel carries the chunks, so memory does not depend on the
//! layer's size. The last check (does the layer hash to what the image says?) is made before the stream ends: a layer
//! that lies breaks the stream, and with it the upload.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};

use super::digest::Hasher;
use super::source::{Image, Layer, Stored};
use super::{Digest, Error, gzip};

/// Bytes read at once where nothing is compressed.
const CHUNK: usize = 128 * 1024;

/// A layer as the registry gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the bytes sent.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// Why a layer's stream ended early.
#[derive(Debug)]
pub enum Broken {
    /// The source is at fault; trying again is no use.
    Source(Error),
    /// The reader went away.
    Abandoned,
}

type Chunk = io::Result<Vec<u8>>;

/// A layer being read. Take [`chunks`](Self::chunks) once, then ask for the [`outcome`](Self::outcome).
#[derive(Debug)]
pub struct Packing {
    receiver: Arc<Mutex<mpsc::Receiver<Chunk>>>,
    outcome: oneshot::Receiver<Result<Packed, Broken>>,
    read: Arc<AtomicU64>,
}

impl Packing {
    /// Starts a thread that reads the layer.
    ///
    /// # Errors
    /// When the source cannot be opened or no thread can be started.
    pub fn start(image: &Image, layer: &Layer) -> Result<Self, Error> {
        let source = image.read_layer(layer)?;
        let path = image.path().to_owned();
        let layer = layer.clone();
        let (sender, receiver) = mpsc::channel(2);
        let (tell, outcome) = oneshot::channel();
        let read = Arc::new(AtomicU64::new(0));
        let mut source = Counting { inner: source, read: Arc::clone(&read) };
        let work = move || {
            let result = pack(&mut source, &layer, &sender);
            if let Err(Trouble::Source(_)) = &result {
                // The request must break off: an end of stream here would look like a whole body.
                let _ = sender.blocking_send(Err(io::Error::other("the source of the layer is damaged")));
            }
            // The position in a compressed source goes back before the next layer is opened.
            drop(source);
            let _ = tell.send(result.map_err(|trouble| match trouble {
                Trouble::Abandoned => Broken::Abandoned,
                Trouble::Source(Reason::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Broken::Source(Error::lie(&path, "a layer is cut: the source ends in the middle of it"))
                }
                Trouble::Source(Reason::Io(error)) => Broken::Source(Error::io(&path, error)),
                Trouble::Source(Reason::Lie(what)) => Broken::Source(Error::lie(&path, what)),
            }));
        };
        std::thread::Builder::new()
            .name("layer".to_owned())
            .spawn(work)
            .map_err(|error| Error::io(image.path(), error))?;
        Ok(Self { receiver: Arc::new(Mutex::new(receiver)), outcome, read })
    }

    /// The chunks, for a request's body.
    #[must_use]
    pub fn chunks(&self) -> Chunks {
        Chunks(Arc::clone(&self.receiver))
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
    pub async fn outcome(self) -> Result<Packed, Broken> {
        {
            let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.close();
            while receiver.try_recv().is_ok() {}
        }
        self.outcome.await.unwrap_or(Err(Broken::Abandoned))
    }
}

/// The body of an upload.
#[derive(Debug)]
pub struct Chunks(Arc<Mutex<mpsc::Receiver<Chunk>>>);

impl futures_core::Stream for Chunks {
    type Item = Chunk;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Chunk>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
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

fn pack(source: &mut impl Read, layer: &Layer, sender: &mpsc::Sender<Chunk>) -> Result<Packed, Trouble> {
    let mut plain = Hasher::default();
    let mut packed = Hasher::default();
    let mut gone = false;
    let diff_id = match layer.stored {
        Stored::Plain => {
            gzip::compress(
                source,
                gzip::workers(),
                |block| plain.update(block),
                |piece| {
                    packed.update(&piece);
                    gone = sender.blocking_send(Ok(piece)).is_err();
                    !gone
                },
            )?;
            Some(plain.finish())
        }
        Stored::Gzip => {
            let mut unpacked = flate2::write::MultiGzDecoder::new(plain);
            pass(source, &mut packed, sender, &mut gone, |chunk| io::Write::write_all(&mut unpacked, chunk))?;
            // An abandoned layer is cut here, which is no fault of the source.
            if gone { None } else { Some(unpacked.finish().map_err(damaged)?.finish()) }
        }
        Stored::AsIs => {
            pass(source, &mut packed, sender, &mut gone, |_| Ok(()))?;
            None
        }
    };
    if gone {
        return Err(Trouble::Abandoned);
    }
    let packed = Packed { size: packed.length(), digest: packed.finish() };
    if let (Some(is), Some(said)) = (&diff_id, &layer.diff_id)
        && is != said
    {
        return Err(lie(format!(
            "a layer hashes to {is}, the configuration says {said}: one of them is damaged"
        )));
    }
    if let Some(said) = &layer.digest
        && packed.digest != *said
    {
        return Err(lie(format!("a layer hashes to {}, its name is {said}: it is damaged", packed.digest)));
    }
    Ok(packed)
}

fn lie(what: String) -> Trouble {
    Trouble::Source(Reason::Lie(what))
}

fn damaged(error: io::Error) -> Trouble {
    lie(format!("a gzip'd layer is damaged: {error}"))
}

/// Hands the bytes on as they are.
fn pass(
    source: &mut impl Read,
    packed: &mut Hasher,
    sender: &mpsc::Sender<Chunk>,
    gone: &mut bool,
    mut seen: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Trouble> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        source.take(CHUNK as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        packed.update(&chunk);
        seen(&chunk).map_err(damaged)?;
        if sender.blocking_send(Ok(chunk)).is_err() {
            *gone = true;
            return Ok(());
        }
    }
}

/// Counts what is read, for a progress bar.
struct Counting {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
