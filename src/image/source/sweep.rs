//! A compressed archive gone through once for many layers.
//!
//! A decompressor goes forward only, and the layers of a split image are made of pieces that lie among those of others. So
//! one thread goes through the archive and hands each piece to the layer that it belongs to; whoever sends the layer reads
//! it as if it were a file. Few layers are open at the same time: one whose first piece comes while too many are is left for
//! later, when it is read by itself.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{self as std_mpsc, Receiver, SyncSender, sync_channel};

use indexmap::IndexSet;
use tokio::sync::mpsc;

use super::unpack::{Packed, Reel};
use super::{END_MARK, Image, Layer, Location, Storage};
use crate::image::Error;
use crate::image::block::fill;

/// Bytes handed over at once.
const CHUNK: usize = 128 * 1024;
/// Chunks that wait for a layer's reader.
const WAITING: usize = 1;
/// Layers whose last piece has not come. A group of small store paths and one of the smallest, a large one amidst them, what
/// is outside the store and two more that are opened ahead.
const OPEN_AT_MOST: usize = 7;
/// Layers that are opened before their first piece comes, so that the registry has answered by then.
const AHEAD: usize = 2;
/// Layers that are being sent. More than are open, so that there is always one that needs nothing more to be done.
const RUNNING_AT_MOST: usize = OPEN_AT_MOST + 2;

/// What a sweep comes to; the numbers are those it was given.
pub enum Swept {
    /// A layer, to be read once.
    Layer(usize, Box<dyn Read + Send>),
    /// One that has to be read by itself, after all others.
    Later(usize),
}

/// A sweep under way. It stops when this is dropped.
pub struct Sweep {
    found: mpsc::UnboundedReceiver<Swept>,
    done: std_mpsc::Sender<()>,
}

impl std::fmt::Debug for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sweep")
    }
}

impl Sweep {
    /// The next layer; `None` when there is none left.
    pub async fn next(&mut self) -> Option<Swept> {
        self.found.recv().await
    }

    /// A layer needs nothing more: another one can be begun.
    pub fn done(&self) {
        // The sweep may be over.
        let _ = self.done.send(());
    }
}

impl Image {
    /// Starts to go through a compressed archive for these layers, which are named by numbers of the caller's. `None`: its
    /// layers can be read in any order, each by itself.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn sweep<'l>(
        &self,
        layers: impl Iterator<Item = (usize, &'l Layer)>,
    ) -> Result<Option<Sweep>, Error> {
        let Storage::PackedTar(_, packed, _) = &self.source.storage else { return Ok(None) };
        let mut plan = Plan::default();
        for (number, layer) in layers {
            plan.add(number, &layer.location);
        }
        let (begun, found) = mpsc::unbounded_channel();
        let (done, over) = std_mpsc::channel();
        let packed = packed.clone();
        std::thread::Builder::new()
            .name("sweep".to_owned())
            .spawn(move || plan.run(&packed, &begun, &over))
            .map_err(|error| Error::io(&self.source.path, error))?;
        Ok(Some(Sweep { found, done }))
    }
}

/// Pieces of the archive and whose they are.
#[derive(Default)]
struct Plan {
    layers: Vec<Target>,
    pieces: Vec<(Range<u64>, usize)>,
}

struct Target {
    number: usize,
    /// Headers that come before its pieces.
    before: Arc<[u8]>,
    /// Whether a tar's end mark comes after them.
    ends: bool,
    length: u64,
    /// Pieces that are to come.
    left: usize,
    state: State,
}

enum State {
    Waits,
    Open(SyncSender<io::Result<Vec<u8>>>),
    /// All of it has come, or nobody wants more of it.
    Over,
}

impl Plan {
    fn add(&mut self, number: usize, location: &Location) {
        let at = self.layers.len();
        let whole;
        let (before, ends, base, ranges): (Arc<[u8]>, _, _, &[Range<u64>]) = match location {
            Location::Pieces { of, before, ranges } => {
                let base = if let Location::Member(place) = &**of { place.offset } else { 0 };
                (Arc::clone(before), true, base, ranges)
            }
            Location::Member(place) => {
                whole = 0..place.size;
                (Arc::default(), false, place.offset, std::slice::from_ref(&whole))
            }
            // No archive holds such.
            Location::File(_) => (Arc::default(), false, 0, &[]),
        };
        let pieces = ranges.iter().map(|range| (base + range.start..base + range.end, at));
        self.pieces.extend(pieces);
        self.layers.push(Target {
            number,
            before,
            ends,
            length: ranges.iter().map(|range| range.end - range.start).sum(),
            left: ranges.len(),
            state: State::Waits,
        });
    }

    fn run(mut self, packed: &Packed, begun: &mpsc::UnboundedSender<Swept>, over: &Receiver<()>) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.sort_by_key(|(range, _)| range.start);
        let order: IndexSet<usize> = pieces.iter().map(|(_, at)| *at).collect();
        let later = |layer: &mut Target| {
            layer.state = State::Over;
            begun.send(Swept::Later(layer.number)).is_ok()
        };
        for layer in self.layers.iter_mut().filter(|layer| layer.left == 0) {
            later(layer);
        }
        let mut turn = Turn { begun, over, running: 0, open: 0 };
        let mut reel: Option<Reel> = None;
        let mut position = 0;
        for (range, at) in pieces {
            let layer = &mut self.layers[at];
            if matches!(layer.state, State::Waits) {
                // Of two layers that overlap, as no honest image has them, the second is read by itself.
                let goes_on = match range.start >= position && turn.wait() {
                    true => turn.begin(layer),
                    false => later(layer),
                };
                if !goes_on {
                    return;
                }
            }
            let rank = order.get_index_of(&at).unwrap_or_default();
            for next in order.iter().skip(rank + 1).take(AHEAD) {
                let next = &mut self.layers[*next];
                if matches!(next.state, State::Waits) && turn.is_free() && !turn.begin(next) {
                    return;
                }
            }
            let layer = &mut self.layers[at];
            layer.left -= 1;
            if let State::Open(to) = &layer.state {
                let handed = (|| {
                    if range.start < position {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    let reel = match &mut reel {
                        Some(reel) => reel,
                        none => none.insert(packed.at(range.start)?),
                    };
                    reel.go_to(range.start)?;
                    position = range.start;
                    hand_over(reel, &range, &mut position, to)
                })();
                let goes_on = match handed {
                    Ok(goes_on) => goes_on,
                    Err(error) => {
                        // Its reader may be gone.
                        let _ = to.send(Err(error));
                        false
                    }
                };
                if layer.left == 0 || !goes_on {
                    layer.state = State::Over;
                    turn.open -= 1;
                }
            }
        }
    }
}

/// Whether its reader took all of it.
fn hand_over(
    reel: &mut Reel,
    range: &Range<u64>,
    position: &mut u64,
    to: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<bool> {
    while *position < range.end {
        let want = usize::try_from(range.end - *position).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = Vec::new();
        fill(&mut chunk, want, reel)?;
        if chunk.len() < want {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *position += want as u64;
        if to.send(Ok(chunk)).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Who may be begun when.
struct Turn<'a> {
    begun: &'a mpsc::UnboundedSender<Swept>,
    over: &'a Receiver<()>,
    running: usize,
    open: usize,
}

impl Turn<'_> {
    /// Whether one more can be begun without waiting.
    fn is_free(&mut self) -> bool {
        while self.over.try_recv().is_ok() {
            self.running -= 1;
        }
        self.open < OPEN_AT_MOST && self.running < RUNNING_AT_MOST
    }

    /// Waits until one more can be begun. False: too many want more pieces, which would never end.
    fn wait(&mut self) -> bool {
        if self.open >= OPEN_AT_MOST {
            return false;
        }
        while !self.is_free() {
            match self.over.recv() {
                Ok(()) => self.running -= 1,
                Err(_) => return true,
            }
        }
        true
    }

    /// False when nobody wants layers any more.
    fn begin(&mut self, layer: &mut Target) -> bool {
        let (to, chunks) = sync_channel(WAITING);
        let pieces = Handed { chunks, chunk: io::Cursor::default(), left: layer.length };
        let before = io::Cursor::new(Arc::clone(&layer.before));
        let end: &[u8] = if layer.ends { &END_MARK } else { &[] };
        layer.state = State::Open(to);
        self.open += 1;
        self.running += 1;
        self.begun.send(Swept::Layer(layer.number, Box::new(before.chain(pieces).chain(end)))).is_ok()
    }
}

/// The pieces of one layer, as they come.
struct Handed {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: io::Cursor<Vec<u8>>,
    left: u64,
}

impl Read for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let count = self.chunk.read(buffer)?;
            if count > 0 || self.left == 0 {
                self.left -= count as u64;
                return Ok(count);
            }
            // What ends before its length is cut.
            let chunk = self.chunks.recv().map_err(|_| io::ErrorKind::UnexpectedEof)??;
            self.chunk = io::Cursor::new(chunk);
        }
    }
}
