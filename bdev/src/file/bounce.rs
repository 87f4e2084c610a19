//! Memory between the kernel and a guest, where the guest's is not aligned as direct I/O wants it.
//!
//! Buffers come in two sizes. Of the small ones there are as many as the channel has requests in flight, so whoever fits
//! into one never waits. Of the large ones there are a few: a longer request takes one and goes through it in pieces; who
//! finds none waits until one comes back. Neither takes the other's, so no stream of small requests holds up a long one,
//! nor the other way round.
//!
//! Address space for all is taken when a channel opens; a page costs memory from when it is first used until the channel
//! closes. What came back last is taken first, so only as much is ever touched as was in use at once.

use pollux_core::Segment;
use rustix::io::Errno;

use crate::memory::Mapping;

/// Length of a large buffer.
pub(super) const LARGE_LEN: usize = 128 << 10;
/// Length of a small buffer: what most guests ask for at once, in two pages.
pub(super) const SMALL_LEN: usize = 8 << 10;
/// Most large buffers of a channel.
pub(super) const LARGE_MOST: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

impl Size {
    /// The one that a request takes which has so many bytes to move.
    const fn fitting(left: u64) -> Self {
        if left <= SMALL_LEN as u64 { Size::Small } else { Size::Large }
    }

    const fn bytes(self) -> usize {
        match self {
            Size::Small => SMALL_LEN,
            Size::Large => LARGE_LEN,
        }
    }
}

/// A buffer that is taken. Given back with [`Pool::give`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BounceBuffer {
    /// Where it begins in the pool's memory.
    at: usize,
    size: Size,
}

impl BounceBuffer {
    /// How many of the bytes that a request has left go through it at once.
    pub(super) const fn piece(&self, left: u64) -> usize {
        let len = self.size.bytes();
        if left < len as u64 { left as usize } else { len }
    }
}

/// The buffers of one channel.
pub(super) struct Pool {
    memory: Option<Mapping>,
    /// Where free buffers begin.
    small: Vec<usize>,
    large: Vec<usize>,
}

impl Pool {
    /// Buffers for a channel of this depth.
    pub(super) fn new(depth: u32) -> Result<Self, Errno> {
        let (small, large) = (depth as usize, depth.min(LARGE_MOST) as usize);
        let first_small = large * LARGE_LEN;
        Ok(Pool {
            memory: Some(Mapping::new(first_small + small * SMALL_LEN)?),
            small: (0..small).rev().map(|n| first_small + n * SMALL_LEN).collect(),
            large: (0..large).rev().map(|n| n * LARGE_LEN).collect(),
        })
    }

    /// No buffers, for a channel that never needs one.
    pub(super) const fn none() -> Self {
        Pool { memory: None, small: Vec::new(), large: Vec::new() }
    }

    fn free(&mut self, size: Size) -> &mut Vec<usize> {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }

    /// A buffer for a request that has so many bytes left. `None`: it is a long one and has to wait.
    pub(super) fn take(&mut self, left: u64) -> Option<BounceBuffer> {
        let size = Size::fitting(left);
        let at = self.free(size).pop();
        assert!(at.is_some() || size == Size::Large, "there is a small buffer for each request of the channel's depth");
        at.map(|at| BounceBuffer { at, size })
    }

    pub(super) fn give(&mut self, BounceBuffer { at, size }: BounceBuffer) {
        let free = self.free(size);
        debug_assert!(!free.contains(&at), "a buffer is given back once");
        free.push(at);
    }

    /// Whether one who waits can go on.
    pub(super) const fn has_large(&self) -> bool {
        !self.large.is_empty()
    }

    /// The first `len` bytes of a buffer.
    pub(super) fn segment(&self, buffer: &BounceBuffer, len: usize) -> Segment {
        assert!(len <= buffer.size.bytes(), "a piece fits into a buffer");
        let memory = self.memory.as_ref().expect("a pool that has given a buffer has memory");
        memory.segment(buffer.at, len)
    }

    /// Gives the memory up, because the kernel may still use it.
    pub(super) fn leak(&mut self) {
        if let Some(memory) = self.memory.take() {
            memory.leak();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_takes_the_size_that_fits() {
        let mut pool = Pool::new(2).unwrap();
        for (left, piece) in [
            (1, 1),
            (512, 512),
            (SMALL_LEN as u64, SMALL_LEN),
            (SMALL_LEN as u64 + 1, SMALL_LEN + 1),
            (LARGE_LEN as u64, LARGE_LEN),
            (u64::MAX, LARGE_LEN),
        ] {
            let buffer = pool.take(left).unwrap();
            assert_eq!(buffer.size == Size::Small, left <= SMALL_LEN as u64, "{left} bytes");
            assert_eq!(buffer.piece(left), piece);
            assert_eq!(pool.segment(&buffer, piece).len(), piece);
            pool.give(buffer);
        }
    }

    #[test]
    fn everybody_has_a_small_one_and_few_have_a_large_one() {
        for depth in [1, 16, 17, 256, 1024] {
            let mut pool = Pool::new(depth).unwrap();
            let large: Vec<_> = std::iter::from_fn(|| pool.take(u64::MAX)).collect();
            assert_eq!(large.len() as u32, depth.min(LARGE_MOST));
            assert!(!pool.has_large());
            let small: Vec<_> = (0..depth).map(|_| pool.take(1).unwrap()).collect();
            let whole = |b: &BounceBuffer| pool.segment(b, b.size.bytes());
            let mut places: Vec<_> = large.iter().chain(&small).map(|b| (whole(b).addr(), whole(b).len())).collect();
            places.sort_unstable();
            assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "buffers overlap at depth {depth}");
            assert!(places.iter().all(|(at, _)| at.is_multiple_of(4096)));
            large.into_iter().chain(small).for_each(|b| pool.give(b));
            assert!(pool.has_large());
            assert_eq!(pool.small.len() as u32, depth);
        }
    }

    #[test]
    fn what_was_used_last_is_used_again() {
        let mut pool = Pool::new(8).unwrap();
        let (one, two) = (pool.take(1).unwrap(), pool.take(1).unwrap());
        let at = one.at;
        pool.give(two);
        pool.give(one);
        assert_eq!(pool.take(1).unwrap().at, at);
    }

    #[test]
    #[should_panic(expected = "a piece fits into a buffer")]
    fn nothing_reaches_into_the_next_buffer() {
        let mut pool = Pool::new(2).unwrap();
        let buffer = pool.take(1).unwrap();
        let _ = pool.segment(&buffer, SMALL_LEN + 1);
    }
}
