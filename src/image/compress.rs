//! Deterministic compression on several cores: the same bytes in give the same bytes out, however many threads worked.
//!
//! The input is cut into blocks of fixed length, which a pool of threads shared by all layers compresses. With gzip each
//! block is a member of its own, with neither name nor time; members in a row are one gzip file. With zstd each block is
//! a frame, and frames in a row are one zstd file.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor};

use super::block::fill;

/// What is done with a plain layer on its way to the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// gzip, which every registry and runtime knows.
    #[default]
    Gzip,
    /// zstd, smaller and quicker to unpack; containerd 1.5 (k3s 1.22), Docker 23 or newer.
    Zstd,
    /// Nothing.
    None,
}

impl Method {
    /// Names what decides about the bytes that come out. Changes whenever the output for equal input does.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Gzip => "gzip-l1-b512k-libdeflate1",
            Self::Zstd => "zstd-l3-b1m-1",
            Self::None => "none",
        }
    }

    /// Input bytes per block. Part of the format's identity: another length gives other bytes.
    fn block(self) -> usize {
        match self {
            Self::None => 128 * 1024,
            // A member knows nothing of the one before: shorter ones are larger together, and more often handed on.
            Self::Gzip => 512 * 1024,
            // Nor does a frame, and its window is larger.
            Self::Zstd => 1024 * 1024,
        }
    }
}

/// On 120 MB of programs libdeflate's level 1 gives 38.4 MB in 0.56 s of CPU. Go's default, which others use, gives
/// 37.3 MB, as zlib-rs's level 3 does in 1.18 s; zlib-rs's level 2 gives 38.8 MB in 0.97 s; libdeflate's level 6 gives
/// 35.1 MB in 1.08 s.
const GZIP_LEVEL: i32 = 1;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

struct Job {
    method: Method,
    plain: Vec<u8>,
    done: SyncSender<io::Result<Vec<u8>>>,
}

/// A block that is being compressed.
type Block = Receiver<io::Result<Vec<u8>>>;

/// Plain blocks that were compressed, to be filled again: a new one would have to be cleared first.
#[derive(Debug, Default)]
struct Spent(Mutex<Vec<Vec<u8>>>);

impl Spent {
    /// As many as one layer has under way.
    const KEPT: usize = 4;

    fn put(&self, block: Vec<u8>) {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() < Self::KEPT {
            blocks.push(block);
        }
    }

    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }
}

/// The threads that compress, as many as there are cores, at most four. They end with the pool.
#[derive(Debug)]
pub struct Pool {
    jobs: SyncSender<Job>,
    spent: Arc<Spent>,
    workers: usize,
}

impl Pool {
    /// Starts them.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Arc<Self>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_workers(cores.min(4))
    }

    fn with_workers(workers: usize) -> io::Result<Arc<Self>> {
        // One waits for each thread, so that none stands still while the reader takes its turn.
        let (jobs, work) = sync_channel::<Job>(workers);
        let work = Arc::new(Mutex::new(work));
        let spent = Arc::<Spent>::default();
        for _ in 0..workers {
            let (work, spent) = (Arc::clone(&work), Arc::clone(&spent));
            std::thread::Builder::new().name("compress".to_owned()).spawn(move || work_on(&work, &spent))?;
        }
        Ok(Arc::new(Self { jobs, spent, workers }))
    }

    /// Compresses all of `input`. Each plain block goes through `seen` on this thread; compressed pieces go, in
    /// order, to `emit`, on another thread where there is more than one block, until it answers false.
    ///
    /// Memory: about `workers + 5` blocks, plain and compressed, and a few that wait to be filled again, whatever the length
    /// of the input.
    ///
    /// # Errors
    /// When `input` cannot be read. What was emitted by then is a beginning, and may look like a whole.
    pub fn compress(
        &self,
        method: Method,
        input: &mut dyn Read,
        mut seen: impl FnMut(&[u8]),
        mut emit: impl FnMut(Vec<u8>) -> bool + Send,
    ) -> io::Result<()> {
        let size = method.block();
        let mut first = self.spent.take();
        fill(&mut first, size, input)?;
        seen(&first);
        if first.len() < size {
            // Most layers of a split image: no thread is worth it.
            emit(Worker::default().pack(method, &first)?);
            self.spent.put(first);
            return Ok(());
        }
        let (order, ordered) = sync_channel::<Block>(self.workers + 2);
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || write(&ordered, emit));
            let mut plain = first;
            let read = loop {
                if plain.is_empty() {
                    break Ok(());
                }
                let (done, block) = sync_channel(1);
                let job = Job { method, plain, done };
                // Either fails only when the writer was told to stop.
                if order.send(block).is_err() || self.jobs.send(job).is_err() {
                    break Ok(());
                }
                plain = self.spent.take();
                if let Err(error) = fill(&mut plain, size, input) {
                    break Err(error);
                }
                seen(&plain);
            };
            drop(order);
            let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the compressor stopped")));
            read.and(written)
        })
    }
}

fn work_on(queue: &Mutex<Receiver<Job>>, spent: &Spent) {
    let mut worker = Worker::default();
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { method, plain, done }) = job else { return };
        // Nobody waits for it when the writer was told to stop.
        let _ = done.send(worker.pack(method, &plain));
        spent.put(plain);
    }
}

/// What compresses one block after the other. It remembers nothing of those before.
#[derive(Default)]
struct Worker {
    gzip: Option<Compressor>,
    /// Where a block is compressed to before its length is known.
    room: Vec<u8>,
}

impl Worker {
    fn pack(&mut self, method: Method, plain: &[u8]) -> io::Result<Vec<u8>> {
        match method {
            Method::Gzip => self.gzip(plain),
            Method::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL),
            Method::None => Ok(plain.to_vec()),
        }
    }

    fn gzip(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let failed = |error: String| io::Error::other(format!("the compressor failed: {error}"));
        let compressor = match &mut self.gzip {
            Some(compressor) => compressor,
            none => {
                let level = CompressionLvl::new(GZIP_LEVEL).map_err(|error| failed(format!("{error:?}")))?;
                none.insert(Compressor::new(level))
            }
        };
        let bound = compressor.gzip_compress_bound(plain.len());
        if self.room.len() < bound {
            self.room.resize(bound, 0);
        }
        let length = compressor.gzip_compress(plain, &mut self.room);
        let length = length.map_err(|error| failed(error.to_string()))?;
        Ok(self.room[..length].to_vec())
    }
}

fn write(ordered: &Receiver<Block>, mut emit: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    while let Ok(block) = ordered.recv() {
        let block = block.recv().map_err(|_| io::Error::other("the compressor stopped"))?;
        if !emit(block?) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512 * 1024;

    fn packed_by(method: Method, bytes: &[u8], workers: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let pool = Pool::with_workers(workers).unwrap();
        let emit = |piece| {
            out.extend(piece);
            true
        };
        pool.compress(method, &mut &bytes[..], |_| {}, emit).unwrap();
        out
    }

    fn packed(bytes: &[u8], workers: usize) -> Vec<u8> {
        packed_by(Method::Gzip, bytes, workers)
    }

    #[test]
    fn zstd_and_none_give_the_same_bytes_back_too() {
        for length in [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 77] {
            let plain = sample(length);
            let packed = packed_by(Method::Zstd, &plain, 2);
            assert!(packed == packed_by(Method::Zstd, &plain, 1));
            let mut back = Vec::new();
            zstd::stream::read::Decoder::new(&packed[..]).unwrap().read_to_end(&mut back).unwrap();
            assert!(back == plain, "{length}");
            assert!(packed_by(Method::None, &plain, 2) == plain, "{length}");
        }
    }

    fn sample(length: usize) -> Vec<u8> {
        let mut state: u32 = 1;
        (0..length)
            .map(|at| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if at % 7 < 4 { b'a' + (at % 13) as u8 } else { (state >> 24) as u8 }
            })
            .collect()
    }

    #[test]
    fn any_gzip_reader_gets_the_same_bytes_back() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77] {
            let plain = sample(length);
            let mut back = Vec::new();
            flate2::read::MultiGzDecoder::new(&packed(&plain, 2)[..]).read_to_end(&mut back).unwrap();
            assert!(back == plain, "{length}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        // Programs are what shows it: a generator's bytes are too regular.
        let program = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let mut plain = Vec::new();
        program.take(6 * BLOCK as u64 + 3).read_to_end(&mut plain).unwrap();
        let once = packed(&plain, 1);
        assert!(once == packed(&plain, 4));
        // And not what was compressed before: each block by itself, in the other order.
        let blocks: Vec<&[u8]> = plain.chunks(BLOCK).collect();
        let mut worker = Worker::default();
        let mut backwards: Vec<Vec<u8>> =
            blocks.iter().rev().map(|block| worker.pack(Method::Gzip, block).unwrap()).collect();
        backwards.reverse();
        assert!(once == backwards.concat());
    }

    #[test]
    fn bytes_that_do_not_compress_pass() {
        let mut plain = vec![0; 2 * BLOCK];
        getrandom::fill(&mut plain).unwrap();
        let mut back = Vec::new();
        flate2::read::MultiGzDecoder::new(&packed(&plain, 2)[..]).read_to_end(&mut back).unwrap();
        assert!(back == plain);
    }

    #[test]
    fn a_reader_that_fails_is_no_end() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let count = buffer.len().min(self.0);
                self.0 -= count;
                Ok(count)
            }
        }
        let mut out = Vec::new();
        let emit = |piece| {
            out.extend(piece);
            true
        };
        let pool = Pool::with_workers(2).unwrap();
        let result = pool.compress(Method::Gzip, &mut Failing(BLOCK + 5), |_| {}, emit);
        assert!(result.is_err());
        assert!(out.len() < BLOCK, "what could not be read to its end was given out");
    }
}
