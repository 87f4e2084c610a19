//! Everything that a READ or WRITE has to know of the unit, in one atomic word, so that a plain command takes no lock
//! and never sees the capacity of one moment with the flags of another.
//!
//! ```text
//! 63                      17   16    15      13 12       0
//! | capacity in blocks       | flag | shift - 9 | flags  |
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;
use pollux_core::{IoFlags, Shape};

use crate::commands::write_atomic::AtomicLimits;
use crate::{Key, Sense, code};

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Flags: u64 {
        /// There is a device with at least one block.
        const READY = 1;
        /// The device refuses writes.
        const READ_ONLY = 1 << 1;
        /// An initiator has set SWP.
        const SOFTWARE_PROTECTED = 1 << 2;
        /// There is a volatile cache and WCE is 0: what changes data is FUA.
        const WRITE_THROUGH = 1 << 3;
        /// Sense data is in descriptor format.
        const D_SENSE = 1 << 4;
        /// The device discards (LBPME).
        const DISCARDS = 1 << 5;
        /// There is a volatile cache and WCE is 1.
        const WRITE_BACK = 1 << 6;
        /// Commands have ranges to themselves ([`LogicalUnit::claim`](crate::LogicalUnit::claim)), or tokens stand for some.
        const CLAIMED = 1 << 7;
        /// `READY`, and a READ or WRITE need not ask for anything that is kept under the unit's lock. The short way looks
        /// at this one bit, so each reason to go the long way costs it nothing: whatever is one takes the bit away.
        const PLAIN = 1 << 8;
        /// What is to survive a restart can be kept.
        const KEEPS = 1 << 9;
        /// Commands keep their turn ([`LogicalUnit::enter`](crate::LogicalUnit::enter)).
        const ORDERING = 1 << 10;
        /// SANITIZE is allowed.
        const SANITIZES = 1 << 11;
        /// There is a FORMAT UNIT or SANITIZE that nobody does ([`LogicalUnit::take_wipe`](crate::LogicalUnit::take_wipe)).
        const WIPE_DUE = 1 << 12;
        /// The device has atomic writes, of a length that we can give it.
        const ATOMIC = 1 << 16;
    }
}

const SHIFT_AT: u32 = 13;
const BLOCKS_AT: u32 = 17;
const BLOCKS_MAX: u64 = (1 << (64 - BLOCKS_AT)) - 1;

/// The word, as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry(u64);

impl Geometry {
    /// The state of a unit without a device; `flags` are those that do not come from the device.
    pub(crate) fn missing(flags: Flags) -> Geometry {
        Geometry(flags.bits())
    }

    /// The state of a unit on a device like this.
    ///
    /// # Panics
    /// If the block size is not a power of two from 512 on; devices promise 512 or 4096.
    pub(crate) fn of(shape: &Shape, flags: Flags) -> Geometry {
        assert!(shape.block_size >= 512 && shape.block_size.is_power_of_two(), "block size {}", shape.block_size);
        let shift = shape.block_size.trailing_zeros();
        // Sizes in bytes stay below 2^63.
        let blocks = shape.num_blocks.min(BLOCKS_MAX).min(i64::MAX as u64 >> shift);
        if blocks == 0 {
            return Geometry::missing(flags);
        }
        let mut flags = flags | Flags::READY | Flags::PLAIN;
        flags.set(Flags::READ_ONLY, shape.read_only);
        flags.set(Flags::DISCARDS, shape.discard.is_some());
        flags.set(Flags::ATOMIC, AtomicLimits::of(shape).is_some());
        Geometry(blocks << BLOCKS_AT | u64::from(shift - 9) << SHIFT_AT | flags.bits())
    }

    /// As it is while commands have ranges to themselves, or tokens stand for some.
    pub(crate) const fn claimed(self) -> Geometry {
        Geometry(self.0 & !Flags::PLAIN.bits() | Flags::CLAIMED.bits())
    }

    /// As it is while commands keep their turn.
    pub(crate) const fn ordering(self) -> Geometry {
        Geometry(self.0 & !Flags::PLAIN.bits() | Flags::ORDERING.bits())
    }

    pub(crate) const fn has(self, flags: Flags) -> bool {
        self.0 & flags.bits() == flags.bits()
    }

    /// Whether commands have ranges to themselves.
    pub(crate) const fn is_claimed(self) -> bool {
        self.has(Flags::CLAIMED)
    }

    /// Whether commands keep their turn.
    pub(crate) const fn is_ordering(self) -> bool {
        self.has(Flags::ORDERING)
    }

    /// Capacity in blocks.
    pub(crate) const fn blocks(self) -> u64 {
        self.0 >> BLOCKS_AT
    }

    const fn shift(self) -> u32 {
        (self.0 >> SHIFT_AT) as u32 % 8 + 9
    }

    /// Logical block length in bytes.
    pub(crate) const fn block_size(self) -> u32 {
        1 << self.shift()
    }

    /// The range of `count` blocks from `lba` on in bytes, `None` if it is not inside the capacity. An empty range may
    /// start right behind the last block.
    pub(crate) const fn range(self, lba: u64, count: u64) -> Option<(u64, u64)> {
        let capacity = self.blocks();
        if lba > capacity || count > capacity - lba {
            return None;
        }
        Some((lba << self.shift(), count << self.shift()))
    }

    /// Whether a range of bytes, of whole blocks, lies inside the capacity.
    pub(crate) const fn holds(self, offset: u64, len: u64) -> bool {
        let capacity = self.blocks() << self.shift();
        offset <= capacity && len <= capacity - offset
    }

    /// Like [`Geometry::range`], but `None` for an empty one, too.
    pub(crate) const fn some_range(self, lba: u64, count: u64) -> Option<(u64, u64)> {
        let capacity = self.blocks();
        // One comparison for an empty range and for one that is too long.
        if lba >= capacity || count.wrapping_sub(1) >= capacity - lba {
            return None;
        }
        Some((lba << self.shift(), count << self.shift()))
    }

    /// Like [`Geometry::range`], with a count of 0 meaning up to the last block.
    pub(crate) const fn range_or_rest(self, lba: u64, count: u64) -> Option<(u64, u64)> {
        let capacity = self.blocks();
        if count == 0 && lba < capacity { self.range(lba, capacity - lba) } else { self.range(lba, count) }
    }

    /// What a command that changes data adds because of WCE=0, or because it has its own FUA bit.
    pub(crate) const fn write_flags(self, fua: bool) -> IoFlags {
        if fua || self.has(Flags::WRITE_THROUGH) { IoFlags::FUA } else { IoFlags::empty() }
    }

    /// Whether the medium may be changed.
    pub(crate) const fn writable(self) -> Result<(), Sense> {
        if self.has(Flags::READ_ONLY) {
            return Err(Sense::new(Key::DataProtect, code::WRITE_PROTECTED));
        }
        if self.has(Flags::SOFTWARE_PROTECTED) {
            return Err(Sense::new(Key::DataProtect, code::SOFTWARE_WRITE_PROTECTED));
        }
        Ok(())
    }
}

/// The word, shared.
#[derive(Debug)]
pub(crate) struct AtomicGeometry(AtomicU64);

impl AtomicGeometry {
    pub(crate) fn new(geometry: Geometry) -> AtomicGeometry {
        AtomicGeometry(AtomicU64::new(geometry.0))
    }

    #[inline]
    pub(crate) fn load(&self) -> Geometry {
        Geometry(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn store(&self, geometry: Geometry) {
        self.0.store(geometry.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::shape;
    use proptest::prelude::*;

    #[test]
    fn the_word_holds_what_was_put_in() {
        let geometry = Geometry::of(&Shape { block_size: 4096, num_blocks: 77, ..shape() }, Flags::D_SENSE);
        assert_eq!((geometry.blocks(), geometry.block_size()), (77, 4096));
        assert!(geometry.has(Flags::READY | Flags::D_SENSE | Flags::DISCARDS));
        assert!(!geometry.has(Flags::READ_ONLY));
        let empty = Geometry::of(&Shape { num_blocks: 0, ..shape() }, Flags::empty());
        assert_eq!(empty, Geometry::missing(Flags::empty()), "nothing can be read from no blocks");
    }

    #[test]
    fn an_absurd_size_is_cut_to_what_bytes_can_count() {
        let geometry = Geometry::of(&Shape { num_blocks: u64::MAX, block_size: 4096, ..shape() }, Flags::empty());
        let (_, len) = geometry.range(0, geometry.blocks()).unwrap();
        assert!(len <= i64::MAX as u64);
    }

    proptest! {
        #[test]
        fn ranges_stay_inside(blocks in 1u64..1 << 40, lba in any::<u64>(), count in any::<u64>(), small in 0u32..64) {
            let geometry = Geometry::of(&Shape { num_blocks: blocks, ..shape() }, Flags::empty());
            let (lba, count) = (lba >> small, count >> small);
            let inside = u128::from(lba) + u128::from(count) <= u128::from(blocks);
            prop_assert_eq!(geometry.range(lba, count), inside.then(|| (lba * 512, count * 512)));
            let some = geometry.range(lba, count).filter(|(_, len)| *len > 0);
            prop_assert_eq!(geometry.some_range(lba, count), some);
            if let Some((offset, len)) = geometry.range_or_rest(lba, 0) {
                prop_assert_eq!(offset + len, blocks * 512);
            }
        }
    }
}
