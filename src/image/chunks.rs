//! The bytes of a layer between the thread that makes them and the requests that send them.
//!
//! A short layer is taken in as a whole, so that one request of known length carries it, and again if need be. A long one
//! goes in one request or in several, one after the other. While an answer is awaited nothing is sent; what is made in that
//! time is taken in, up to a limit, so that nobody who makes bytes stands still because a registry writes them.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};

/// A piece of a layer, or the news that the rest cannot be had.
pub type Chunk = io::Result<Vec<u8>>;

/// Bytes taken in between two requests.
const AHEAD: usize = 2 * 1024 * 1024;
/// The most bytes of a layer that counts as short.
const SHORT: usize = 1024 * 1024;
/// Bytes that the short layers on their way take together; there is room for few of the longest, and for many short ones.
const ROOM: usize = 2 * 1024 * 1024;

/// The memory for short layers of one registry.
#[derive(Debug)]
pub struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(ROOM))
    }
}

/// All bytes of a short layer.
#[derive(Debug)]
pub struct Whole<'r> {
    /// What is sent.
    pub bytes: Bytes,
    _room: SemaphorePermit<'r>,
}

/// What is made of a layer and not sent yet.
#[derive(Debug, Clone)]
pub struct Chunks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Told when a request has all that it is to have.
    part_over: Notify,
}

#[derive(Debug)]
struct Queue {
    made: mpsc::Receiver<Chunk>,
    ahead: VecDeque<Chunk>,
    ahead_bytes: usize,
    /// Bytes that the request under way may still have.
    left: u64,
    is_over: bool,
}

impl Queue {
    /// The next chunk, whoever wants it.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Chunk>> {
        if let Some(chunk) = self.ahead.pop_front() {
            self.ahead_bytes -= length(&chunk);
            return Poll::Ready(Some(chunk));
        }
        let chunk = std::task::ready!(self.made.poll_recv(context));
        self.is_over |= chunk.is_none();
        Poll::Ready(chunk)
    }

    /// Takes chunks in until there are `enough` bytes of them. False: the layer ended before.
    fn poll_ahead(&mut self, enough: usize, context: &mut Context<'_>) -> Poll<bool> {
        while self.ahead_bytes < enough && !self.is_over {
            match std::task::ready!(self.made.poll_recv(context)) {
                Some(chunk) => {
                    self.ahead_bytes += length(&chunk);
                    self.ahead.push_back(chunk);
                }
                None => self.is_over = true,
            }
        }
        Poll::Ready(self.ahead_bytes >= enough)
    }
}

fn length(chunk: &Chunk) -> usize {
    // Never nothing: an error has to be sent, too.
    chunk.as_ref().map_or(1, Vec::len).max(1)
}

impl Chunks {
    /// Those that come out of this channel.
    #[must_use]
    pub fn new(made: mpsc::Receiver<Chunk>) -> Self {
        let queue = Queue { made, ahead: VecDeque::new(), ahead_bytes: 0, left: 0, is_over: false };
        Self(Arc::new(Shared { queue: Mutex::new(queue), part_over: Notify::new() }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the next request: what is left of the layer, but no more than `limit` bytes and the rest of a chunk.
    #[must_use]
    pub fn part(&self, limit: u64) -> Part {
        self.queue().left = limit;
        Part(self.clone())
    }

    /// Takes in what is made once the request under way has all of its bytes. Never ends.
    pub async fn read_ahead(&self) -> std::convert::Infallible {
        // It may be the end of the request before that was told of.
        while !self.is_part_over() {
            self.0.part_over.notified().await;
        }
        std::future::poll_fn(|context| self.queue().poll_ahead(AHEAD, context)).await;
        std::future::pending().await
    }

    /// Whether the last request got all that it was to have.
    #[must_use]
    pub fn is_part_over(&self) -> bool {
        let queue = self.queue();
        queue.left == 0 || queue.is_over
    }

    /// Takes in the whole layer. `None`: it is too long, there is no room for it now, or its source fails; what was taken in
    /// goes with the next request.
    pub async fn whole<'r>(&self, room: &'r Room) -> Option<Whole<'r>> {
        let mut taken = room.0.try_acquire_many(0).ok()?;
        loop {
            let has = self.queue().ahead_bytes;
            let is_over = !std::future::poll_fn(|context| self.queue().poll_ahead(has + 1, context)).await;
            let mut queue = self.queue();
            if queue.ahead_bytes > SHORT || queue.ahead.back().is_some_and(Result::is_err) {
                return None;
            }
            let more = u32::try_from(queue.ahead_bytes - has).ok()?;
            taken.merge(room.0.try_acquire_many(more).ok()?);
            if is_over {
                let mut bytes = Vec::with_capacity(queue.ahead_bytes);
                queue.ahead.drain(..).flatten().for_each(|chunk| bytes.extend_from_slice(&chunk));
                queue.ahead_bytes = 0;
                return Some(Whole { bytes: bytes.into(), _room: taken });
            }
        }
    }

    /// Whether there is something for one more request. Waits for it.
    pub async fn has_more(&self) -> bool {
        std::future::poll_fn(|context| self.queue().poll_ahead(1, context)).await
    }

    /// Takes no more of them.
    pub fn close(&self) {
        let mut queue = self.queue();
        queue.made.close();
        queue.ahead.clear();
        while queue.made.try_recv().is_ok() {}
    }
}

/// The body of one request.
#[derive(Debug)]
pub struct Part(Chunks);

impl futures_core::Stream for Part {
    type Item = Chunk;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Chunk>> {
        let mut queue = self.0.queue();
        let chunk = match queue.left {
            0 => None,
            _ => std::task::ready!(queue.poll(context)),
        };
        match &chunk {
            Some(chunk) => queue.left = queue.left.saturating_sub(length(chunk) as u64),
            None => self.0.0.part_over.notify_one(),
        }
        Poll::Ready(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(lengths: &[usize], fails: bool) -> Chunks {
        let (sender, made) = mpsc::channel(lengths.len() + 1);
        for (at, length) in lengths.iter().enumerate() {
            sender.try_send(Ok(vec![at as u8; *length])).unwrap();
        }
        if fails {
            sender.try_send(Err(io::ErrorKind::InvalidData.into())).unwrap();
        }
        Chunks::new(made)
    }

    fn whole<'r>(chunks: &Chunks, room: &'r Room) -> Option<Whole<'r>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(chunks.whole(room))
    }

    /// The bytes of the next request, and whether it breaks off.
    fn request(chunks: &Chunks) -> (usize, bool) {
        let mut part = std::pin::pin!(chunks.part(u64::MAX));
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut length = 0;
        while let Poll::Ready(Some(chunk)) = futures_core::Stream::poll_next(part.as_mut(), &mut context) {
            match chunk {
                Ok(chunk) => length += chunk.len(),
                Err(_) => return (length, true),
            }
        }
        (length, false)
    }

    #[test]
    fn a_short_layer_is_taken_in_in_its_order() {
        let room = Room::default();
        let got = whole(&chunks(&[2, 3], false), &room).unwrap();
        assert_eq!(&got.bytes[..], [0, 0, 1, 1, 1]);
        assert_eq!(whole(&chunks(&[SHORT], false), &room).unwrap().bytes.len(), SHORT);
    }

    #[test]
    fn what_was_taken_in_of_a_long_layer_goes_with_the_next_request() {
        let chunks = chunks(&[SHORT, 1, 5], false);
        assert!(whole(&chunks, &Room::default()).is_none());
        assert_eq!(request(&chunks), (SHORT + 6, false));
    }

    #[test]
    fn a_layer_whose_source_fails_is_not_whole() {
        let chunks = chunks(&[7], true);
        assert!(whole(&chunks, &Room::default()).is_none());
        assert_eq!(request(&chunks), (7, true));
    }

    #[test]
    fn there_is_room_for_some_and_again_when_they_have_arrived() {
        let room = Room::default();
        let layer = || chunks(&[SHORT / 2, SHORT / 2], false);
        let mut kept: Vec<Whole> = (0..ROOM / SHORT).map(|_| whole(&layer(), &room).unwrap()).collect();
        let last = layer();
        assert!(whole(&last, &room).is_none());
        assert_eq!(request(&last), (SHORT, false), "it goes all the same");
        kept.pop();
        assert!(whole(&layer(), &room).is_some());
    }
}
