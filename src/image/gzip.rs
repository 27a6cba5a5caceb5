//! Deterministic gzip on several cores: the same bytes in give the same bytes out, however many threads worked.
//!
//! The input is cut into blocks of [`BLOCK`] bytes. Each is a raw deflate stream of its own, primed with the last
//! 32 KiB of the block before it and ended by a sync flush, so that the blocks put together are one deflate stream
//! (as pigz does it). The header carries no name and no time.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Compression, FlushCompress};

/// Input bytes per block. Part of the format's identity: another size gives other bytes.
pub const BLOCK: usize = 256 * 1024;
/// What a block may refer back to; deflate's window.
const WINDOW: usize = 32 * 1024;
/// Names what decides about the bytes that come out. Change it whenever the output for equal input changes.
pub const SCHEME: &str = "gzip-l3-b256k-zlibrs1";
/// On 120 MB of programs level 3 gives 47.9 MB in 1.5 s of CPU, about what others' default gives (Go's: 48.0 MB); level 2
/// 49.6 MB in 1.2 s, level 6 46.3 MB in 2.3 s.
const LEVEL: u32 = 3;

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A last, empty deflate block.
const END: [u8; 2] = [0x03, 0x00];

struct Job {
    plain: Vec<u8>,
    /// The end of the block before.
    dictionary: Vec<u8>,
    done: SyncSender<Block>,
}

struct Block {
    packed: io::Result<Vec<u8>>,
    crc: crc32fast::Hasher,
    length: u64,
}

enum Next {
    Block(Receiver<Block>),
    End,
}

/// How many threads compress: the cores there are, at most four, so that memory stays bounded.
#[must_use]
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

/// Compresses all of `input`. Each plain block goes through `seen` on this thread; compressed pieces go, in order,
/// to `emit` on another one, until it answers false.
///
/// Memory: about `2 * workers + 2` blocks, plain and compressed, whatever the length of the input.
///
/// # Errors
/// When `input` cannot be read. No end mark is emitted then.
pub fn compress(
    input: &mut dyn Read,
    workers: usize,
    mut seen: impl FnMut(&[u8]),
    emit: impl FnMut(Vec<u8>) -> bool + Send,
) -> io::Result<()> {
    let (jobs, work) = sync_channel::<Job>(1);
    let (order, ordered) = sync_channel::<Next>(workers + 1);
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| work_on(&work));
        }
        let writer = scope.spawn(move || write(&ordered, emit));
        let mut dictionary = Vec::new();
        let read = loop {
            let mut plain = Vec::with_capacity(BLOCK);
            if let Err(error) = input.take(BLOCK as u64).read_to_end(&mut plain) {
                break Err(error);
            }
            if plain.is_empty() {
                let _ = order.send(Next::End);
                break Ok(());
            }
            seen(&plain);
            let tail = plain[plain.len().saturating_sub(WINDOW)..].to_vec();
            let (done, block) = sync_channel(1);
            let job = Job { plain, dictionary: std::mem::replace(&mut dictionary, tail), done };
            // Either fails only when the writer was told to stop.
            if order.send(Next::Block(block)).is_err() || jobs.send(job).is_err() {
                break Ok(());
            }
        };
        drop((jobs, order));
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the compressor stopped")));
        read.and(written)
    })
}

fn work_on(work: &Mutex<Receiver<Job>>) {
    loop {
        let job = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { plain, dictionary, done }) = job else { return };
        let packed = pack(&plain, &dictionary);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&plain);
        // Nobody waits for it when the writer was told to stop.
        let _ = done.send(Block { packed, crc, length: plain.len() as u64 });
    }
}

fn pack(plain: &[u8], dictionary: &[u8]) -> io::Result<Vec<u8>> {
    // A new one for each block: after `reset` zlib-rs remembers enough of the block before to choose other matches,
    // and then the output would depend on which thread got which block.
    let mut compress = Compress::new(Compression::new(LEVEL), false);
    if !dictionary.is_empty() {
        compress.set_dictionary(dictionary)?;
    }
    // Room for all of it: where the output is interrupted shows in the output, too.
    let mut packed = Vec::with_capacity(plain.len() + plain.len() / 64 + 1024);
    loop {
        let taken = usize::try_from(compress.total_in()).unwrap_or(usize::MAX).min(plain.len());
        let before = packed.len();
        compress.compress_vec(&plain[taken..], &mut packed, FlushCompress::Sync)?;
        let all_in = compress.total_in() == plain.len() as u64;
        // Room left over means that the flush is complete.
        if all_in && packed.len() < packed.capacity() {
            return Ok(packed);
        }
        if packed.len() == before && packed.len() < packed.capacity() {
            return Err(io::Error::other("the compressor makes no progress"));
        }
        packed.reserve_exact(plain.len() / 4 + 1024);
    }
}

fn write(ordered: &Receiver<Next>, mut emit: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    let mut crc = crc32fast::Hasher::new();
    let mut length: u64 = 0;
    if !emit(HEADER.to_vec()) {
        return Ok(());
    }
    // When the other end is gone without a word, the input failed: no end mark.
    while let Ok(next) = ordered.recv() {
        match next {
            Next::Block(block) => {
                let block = block.recv().map_err(|_| io::Error::other("the compressor stopped"))?;
                crc.combine(&block.crc);
                length += block.length;
                if !emit(block.packed?) {
                    return Ok(());
                }
            }
            Next::End => {
                let mut end = END.to_vec();
                end.extend(crc.finalize().to_le_bytes());
                // gzip keeps the length modulo 2^32.
                end.extend(&length.to_le_bytes()[..4]);
                emit(end);
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8], workers: usize) -> Vec<u8> {
        let mut out = Vec::new();
        compress(
            &mut &bytes[..],
            workers,
            |_| {},
            |piece| {
                out.extend(piece);
                true
            },
        )
        .unwrap();
        out
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
            flate2::read::GzDecoder::new(&packed(&plain, 2)[..]).read_to_end(&mut back).unwrap();
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
        let mut backwards: Vec<Vec<u8>> = Vec::new();
        for at in (0..blocks.len()).rev() {
            let before = if at == 0 { &[][..] } else { &blocks[at - 1][BLOCK - WINDOW..] };
            backwards.push(pack(blocks[at], before).unwrap());
        }
        backwards.reverse();
        assert!(once[HEADER.len()..once.len() - END.len() - 8] == backwards.concat());
    }

    #[test]
    fn bytes_that_do_not_compress_pass() {
        let mut plain = vec![0; 2 * BLOCK];
        getrandom::fill(&mut plain).unwrap();
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(&packed(&plain, 2)[..]).read_to_end(&mut back).unwrap();
        assert!(back == plain);
    }

    #[test]
    fn a_reader_that_fails_ends_it_without_an_end_mark() {
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
        let result = compress(
            &mut Failing(BLOCK + 5),
            2,
            |_| {},
            |piece| {
                out.extend(piece);
                true
            },
        );
        assert!(result.is_err());
        assert!(flate2::read::GzDecoder::new(&out[..]).read_to_end(&mut Vec::new()).is_err());
    }
}
