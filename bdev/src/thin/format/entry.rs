//! What a layer says of one of its clusters: eight bytes, changed at once.
//!
//! ```text
//! bits  0..30  the cluster of the base that holds it, 0: none
//! bit      31  0
//! bits 32..47  sub-blocks that are here
//! bits 48..63  sub-blocks that are zero, whatever the parent has
//! ```
//! All other sub-blocks are the parent's, or zero if there is none.

use std::fmt;

/// Sub-blocks of a cluster.
pub const SUB_BLOCKS: u32 = 16;

/// See the module's description. `here` and `zero` never overlap, and nothing is here without a cluster.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Entry(u64);

impl Entry {
    /// All is the parent's.
    pub const EMPTY: Entry = Entry(0);

    /// The largest cluster number.
    pub const MAX_CLUSTER: u32 = (1 << 31) - 1;

    /// Nothing of it is here yet, but this cluster is its.
    ///
    /// # Panics
    /// If there can be no such cluster.
    #[must_use]
    pub const fn on(cluster: u32) -> Entry {
        assert!(cluster > 0 && cluster <= Entry::MAX_CLUSTER);
        Entry(cluster as u64)
    }

    /// From its bits; `None`: they are nobody's.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Entry> {
        let entry = Entry(bits);
        let sane = bits & (1 << 31) == 0 && entry.here() & entry.zero() == 0 && (entry.here() == 0 || bits as u32 != 0);
        if sane { Some(entry) } else { None }
    }

    /// From the bits of an entry.
    #[inline]
    pub(in crate::thin) const fn of_entry(bits: u64) -> Entry {
        debug_assert!(Entry::from_bits(bits).is_some());
        Entry(bits)
    }

    /// As it is stored.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Where what is here lies.
    #[must_use]
    pub const fn cluster(self) -> Option<u32> {
        let cluster = self.0 as u32;
        if cluster == 0 { None } else { Some(cluster) }
    }

    /// The sub-blocks that are here.
    #[must_use]
    pub const fn here(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The sub-blocks that are zero.
    #[must_use]
    pub const fn zero(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The sub-blocks that only the parent knows of.
    #[must_use]
    pub const fn parent(self) -> u16 {
        !(self.here() | self.zero())
    }

    /// These sub-blocks are here now.
    ///
    /// # Panics
    /// If there is no cluster.
    #[must_use]
    pub const fn with_here(self, mask: u16) -> Entry {
        assert!(self.cluster().is_some());
        Entry((self.0 | (mask as u64) << 32) & !((mask as u64) << 48))
    }

    /// These sub-blocks are zero now.
    #[must_use]
    pub const fn with_zero(self, mask: u16) -> Entry {
        Entry((self.0 | (mask as u64) << 48) & !((mask as u64) << 32))
    }

    /// These sub-blocks are the parent's again.
    #[must_use]
    pub const fn with_parent(self, mask: u16) -> Entry {
        Entry(self.0 & !((mask as u64) << 32 | (mask as u64) << 48))
    }

    /// On this cluster, with nothing here; what is zero or the parent's stays so.
    ///
    /// # Panics
    /// If it has a cluster, or there can be no such cluster.
    #[must_use]
    pub const fn with_cluster(self, cluster: u32) -> Entry {
        assert!(self.cluster().is_none());
        Entry(self.0 | Entry::on(cluster).0)
    }

    /// Without its cluster, and so with nothing here.
    #[must_use]
    pub const fn without_cluster(self) -> Entry {
        Entry((self.zero() as u64) << 48)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, here {:04x}, zero {:04x})", self.0 as u32, self.here(), self.zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sub_block_is_in_one_place() {
        let entry = Entry::on(7).with_here(0x00ff).with_zero(0x0f0f);
        assert_eq!((entry.cluster(), entry.here(), entry.zero(), entry.parent()), (Some(7), 0x00f0, 0x0f0f, 0xf000));
        assert_eq!(entry.with_here(0x0001).zero(), 0x0f0e);
        assert_eq!(entry.with_parent(0x00ff), Entry::on(7).with_zero(0x0f00));
        assert_eq!(entry.without_cluster(), Entry::EMPTY.with_zero(0x0f0f));
        assert_eq!(entry.without_cluster().with_cluster(9), Entry::on(9).with_zero(0x0f0f));
        assert_eq!(Entry::EMPTY.parent(), 0xffff);
    }

    #[test]
    fn bits_that_make_no_sense() {
        for bits in [1 << 31, 1 << 32, 1 << 32 | 1 << 48 | 5] {
            assert_eq!(Entry::from_bits(bits), None, "{bits:x}");
        }
        assert_eq!(Entry::from_bits(1 << 48), Some(Entry::EMPTY.with_zero(1)));
    }

    proptest! {
        #[test]
        fn what_is_done_to_one_makes_sense(cluster in 1..=Entry::MAX_CLUSTER, steps in prop::collection::vec((0..3u8, any::<u16>()), 0..9)) {
            let mut entry = Entry::on(cluster);
            for (kind, mask) in steps {
                entry = match kind {
                    0 => entry.with_here(mask),
                    1 => entry.with_zero(mask),
                    _ => entry.with_parent(mask),
                };
                let [here, zero, parent] = [entry.here(), entry.zero(), entry.parent()];
                prop_assert_eq!(here ^ zero ^ parent, 0xffff);
                prop_assert_eq!([here, zero, parent][usize::from(kind)] & mask, mask);
                prop_assert_eq!(Entry::from_bits(entry.bits()), Some(entry));
                prop_assert_eq!(entry.cluster(), Some(cluster));
            }
        }
    }
}
