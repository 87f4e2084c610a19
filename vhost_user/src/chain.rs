//! From one head to the host addresses of its buffers.
//!
//! Each descriptor is copied out of guest memory once; all decisions are made on the copy. The walk ends after at most
//! as many descriptors as the queue has, plus 1024 of one indirect table.

use crate::mapping::Window;
use crate::memory::{Memory, MemoryFault};
use crate::rings::{Descriptor, Rings};
use crate::segments::SegmentBuf;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const DESCRIPTOR_BYTES: u32 = 16;
/// Entries of an indirect table, whatever the size of the queue.
const INDIRECT_MAX: u32 = 1024;

/// One request of the driver's. Its segments are in the [`SegmentBuf`]: readable ones first, then writable ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Names the chain when it is completed.
    pub head: u16,
    /// How many leading segments are device-readable.
    pub readable: usize,
    /// Bytes in those.
    pub readable_bytes: u64,
    /// Bytes in the others. All bytes together fit into 32 bits.
    pub writable_bytes: u64,
}

/// What is wrong with a chain. No well-behaved driver makes one like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// A buffer, or an indirect table, is not in memory.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// `next` beyond the end of the table.
    #[error("descriptor {0} is beyond the end of its table")]
    NextBeyondTable(u16),
    /// More descriptors than the table has: a loop.
    #[error("the descriptor chain loops")]
    Loop,
    /// A device-readable buffer after a device-writable one.
    #[error("a readable buffer after a writable one")]
    ReadableAfterWritable,
    /// More than 2^32 - 1 bytes in one chain.
    #[error("a chain of more than 32 bits of bytes")]
    TooLong,
    /// An indirect table without the feature.
    #[error("indirect descriptors were not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("an indirect table inside an indirect table")]
    IndirectNested,
    /// An indirect descriptor that goes on.
    #[error("an indirect descriptor with a successor")]
    IndirectWithNext,
    /// An indirect table that is empty, broken off or too large.
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
}

/// Collects one chain.
pub(crate) struct Walk<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) segments: &'a mut SegmentBuf,
    pub(crate) indirect: bool,
}

/// What was collected so far.
struct Sum {
    readable: usize,
    readable_bytes: u64,
    /// Cannot overflow: fewer than 2^32 buffers of fewer than 2^32 bytes.
    bytes: u64,
    writable: bool,
}

impl Sum {
    /// From here on buffers are writable.
    #[inline(always)]
    fn turn(&mut self, segments: &mut SegmentBuf) {
        self.writable = true;
        self.readable = segments.len();
        self.readable_bytes = self.bytes;
        segments.set_border();
    }
}

impl Walk<'_> {
    /// `near` is the region that held the last buffer.
    #[inline(always)]
    pub(crate) fn chain(mut self, rings: &Rings, head: u16, near: &mut Window) -> Result<Chain, ChainFault> {
        self.segments.clear();
        let mut sum = Sum { readable: 0, readable_bytes: 0, bytes: 0, writable: false };
        let size = rings.size();
        let (mut index, mut left) = (head, size);
        loop {
            let descriptor = rings.descriptor(index);
            if descriptor.flags & INDIRECT != 0 {
                self.table(descriptor, near, &mut sum)?;
                break;
            }
            self.buffer(descriptor, near, &mut sum)?;
            if descriptor.flags & NEXT == 0 {
                break;
            }
            index = descriptor.next;
            left -= 1;
            if index >= size || left == 0 {
                return Err(if left == 0 { ChainFault::Loop } else { ChainFault::NextBeyondTable(index) });
            }
        }
        if !sum.writable {
            sum.turn(self.segments);
        }
        if sum.bytes > u64::from(u32::MAX) {
            return Err(ChainFault::TooLong);
        }
        let Sum { readable, readable_bytes, bytes, .. } = sum;
        Ok(Chain { head, readable, readable_bytes, writable_bytes: bytes - readable_bytes })
    }

    #[inline(always)]
    fn buffer(&mut self, descriptor: Descriptor, near: &mut Window, sum: &mut Sum) -> Result<(), ChainFault> {
        if (descriptor.flags & WRITE != 0) != sum.writable {
            if sum.writable {
                return Err(ChainFault::ReadableAfterWritable);
            }
            sum.turn(self.segments);
        }
        // A buffer of no bytes touches no memory: wherever it points, it is skipped.
        if descriptor.len == 0 {
            return Ok(());
        }
        let len = u64::from(descriptor.len);
        sum.bytes += len;
        Ok(self.memory.translate_near(descriptor.addr, len, near, self.segments)?)
    }

    /// An indirect table ends the chain it stands in. Its WRITE flag means nothing (virtio 1.3, 2.7.5.3.2).
    #[inline(never)]
    fn table(&mut self, at: Descriptor, near: &mut Window, sum: &mut Sum) -> Result<(), ChainFault> {
        if !self.indirect {
            return Err(ChainFault::IndirectNotNegotiated);
        }
        if at.flags & NEXT != 0 {
            return Err(ChainFault::IndirectWithNext);
        }
        let entries = at.len / DESCRIPTOR_BYTES;
        if entries == 0 || entries > INDIRECT_MAX || !at.len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(ChainFault::IndirectLength(at.len));
        }
        at.addr.checked_add(u64::from(at.len)).ok_or(MemoryFault::Overflow)?;
        // The table need not be where the buffers are: a window of its own.
        let mut table = *near;
        let mut index = 0u16;
        for _ in 0..entries {
            let entry = at.addr + u64::from(index) * u64::from(DESCRIPTOR_BYTES);
            let descriptor = Descriptor::from_words(self.memory.descriptor(entry, &mut table)?);
            if descriptor.flags & INDIRECT != 0 {
                return Err(ChainFault::IndirectNested);
            }
            self.buffer(descriptor, near, sum)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if u32::from(index) >= entries {
                return Err(ChainFault::NextBeyondTable(index));
            }
        }
        Err(ChainFault::Loop)
    }
}
