//! Memory between the kernel and a guest, where the guest's is not aligned as direct I/O wants it.
//!
//! Taken when a channel opens; it costs nothing until it is used. A request takes one buffer and goes through it in
//! pieces; who finds none waits until one comes back.

use pollux_core::Segment;
use rustix::io::Errno;

use crate::memory::Mapping;

/// Length of a buffer.
pub(super) const BOUNCE_LEN: usize = 128 << 10;
/// Most buffers of a channel.
const MOST: u32 = 16;

/// A buffer that is taken. Given back with [`Pool::give`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BounceBuffer(u32);

/// The buffers of one channel.
pub(super) struct Pool {
    memory: Option<Mapping>,
    free: Vec<u32>,
}

impl Pool {
    /// Buffers for a channel of this depth.
    pub(super) fn new(depth: u32) -> Result<Self, Errno> {
        let count = depth.min(MOST);
        Ok(Pool { memory: Some(Mapping::new(count as usize * BOUNCE_LEN)?), free: (0..count).collect() })
    }

    /// No buffers, for a channel that never needs one.
    pub(super) const fn none() -> Self {
        Pool { memory: None, free: Vec::new() }
    }

    pub(super) fn take(&mut self) -> Option<BounceBuffer> {
        self.free.pop().map(BounceBuffer)
    }

    pub(super) fn give(&mut self, BounceBuffer(index): BounceBuffer) {
        debug_assert!(!self.free.contains(&index), "a buffer is given back once");
        self.free.push(index);
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// The first `len` bytes of a buffer.
    pub(super) fn segment(&self, buffer: &BounceBuffer, len: usize) -> Segment {
        assert!(len <= BOUNCE_LEN, "a piece fits into a buffer");
        let memory = self.memory.as_ref().expect("a pool that has given a buffer has memory");
        memory.segment(buffer.0 as usize * BOUNCE_LEN, len)
    }

    /// Gives the memory up, because the kernel may still use it.
    pub(super) fn leak(&mut self) {
        if let Some(memory) = self.memory.take() {
            memory.leak();
        }
    }
}
