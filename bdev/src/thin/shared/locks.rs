//! Locks of sub-blocks: whoever changes what an entry says of a sub-block holds its lock meanwhile, so that one that
//! fills the edges of a sub-block and one that overwrites it do not miss each other.
//!
//! A lock is a bit in a table of words, found by hash. Two clusters that share a word are sometimes taken for one, which
//! costs a wait and nothing else. Nobody waits for a lock while holding one that is not on its way to be released.
//!
//! Who has taken one looks at the entry afterwards, and who changes an entry without one fences and looks whether somebody has
//! it: one of the two sees what the other has done (`SeqCst`).

use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// Words of the table; a power of two.
const WORDS: usize = 1 << WORD_BITS;
const WORD_BITS: u32 = 12;

/// See the module's description.
pub(crate) struct SubLocks(Box<[AtomicU16; WORDS]>);

impl SubLocks {
    pub(crate) fn new() -> SubLocks {
        SubLocks(Box::new([const { AtomicU16::new(0) }; WORDS]))
    }

    #[inline]
    fn word(&self, layer: u64, cluster: u64) -> &AtomicU16 {
        let hash = (layer.rotate_left(40) ^ cluster).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.0[(hash >> (64 - WORD_BITS)) as usize]
    }

    /// Locks these sub-blocks of a cluster of a layer, all or none; whether it could.
    #[inline]
    pub(crate) fn try_lock(&self, layer: u64, cluster: u64, mask: u16) -> bool {
        let word = self.word(layer, cluster);
        let mut now = word.load(Relaxed);
        while now & mask == 0 {
            match word.compare_exchange_weak(now, now | mask, SeqCst, Relaxed) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Whether somebody holds one of these. Who has read of an entry that a sub-block is here, and then finds no lock on it,
    /// knows that the entry is marked, too: it was changed and marked by somebody who held the lock.
    #[inline]
    pub(crate) fn is_locked(&self, layer: u64, cluster: u64, mask: u16) -> bool {
        self.word(layer, cluster).load(Acquire) & mask != 0
    }

    /// Releases what was locked.
    #[inline]
    pub(crate) fn unlock(&self, layer: u64, cluster: u64, mask: u16) {
        let before = self.word(layer, cluster).fetch_and(!mask, Release);
        debug_assert_eq!(before & mask, mask, "it was locked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_block_has_one_holder() {
        let locks = SubLocks::new();
        assert!(locks.try_lock(1, 2, 0x00ff));
        assert!(!locks.try_lock(1, 2, 0x0180), "all or none");
        assert!(locks.is_locked(1, 2, 0x0180) && !locks.is_locked(1, 2, 0xff00) && !locks.is_locked(1, 3, 0x00ff));
        assert!(locks.try_lock(1, 2, 0x0100) && locks.try_lock(1, 3, 0xffff) && locks.try_lock(2, 2, 0xffff));
        locks.unlock(1, 2, 0x00ff);
        assert!(locks.try_lock(1, 2, 0x0001) && !locks.try_lock(1, 2, 0x0100));
    }
}
