//! What the log says beyond the last checkpoint: entries by layer and leaf, and which layers have changed.
//!
//! There are two at most: the one that a checkpoint is writing, and the one for what came since. A leaf as it is now is
//! the page on disk, the first over it, the second over that.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use crate::thin::format::{ENTRIES_PER_PAGE, Entry, POINTERS_PER_PAGE, Record, levels_for};

/// Bits of the entries of a leaf.
pub type LeafBits = [u64; ENTRIES_PER_PAGE];

/// What is known of a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LeafDelta {
    /// All that `few` and `many` do not say is this.
    pub(super) whole: Option<Entry>,
    /// By place, ascending, as long as they are few.
    few: Vec<(u16, Entry)>,
    /// Then all of them.
    many: Option<Box<Many>>,
}

/// Places that something is said of, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Many {
    said: [u64; ENTRIES_PER_PAGE.div_ceil(64)],
    entries: LeafBits,
}

impl Many {
    fn set(&mut self, at: u16, entry: Entry) {
        self.said[usize::from(at) / 64] |= 1 << (at % 64);
        self.entries[usize::from(at)] = entry.bits();
    }
}

impl LeafDelta {
    /// Returns how much more memory that takes, roughly.
    fn set(&mut self, at: u16, entry: Entry) -> usize {
        if let Some(many) = &mut self.many {
            many.set(at, entry);
            return 0;
        }
        if self.few.last().is_none_or(|(last, _)| *last < at) {
            self.few.push((at, entry));
        } else {
            match self.few.binary_search_by_key(&at, |(at, _)| *at) {
                Ok(found) => {
                    self.few[found].1 = entry;
                    return 0;
                }
                Err(place) => self.few.insert(place, (at, entry)),
            }
        }
        if self.few.len() < MANY { ENTRY_COST } else { self.become_many() }
    }

    /// Making room among them would take longer than the room is worth.
    fn become_many(&mut self) -> usize {
        let mut many = Box::new(Many { said: Default::default(), entries: [0; ENTRIES_PER_PAGE] });
        for (at, entry) in std::mem::take(&mut self.few) {
            many.set(at, entry);
        }
        self.many = Some(many);
        MANY_COST
    }

    /// Puts it over what lies below.
    pub(super) fn apply(&self, bits: &mut LeafBits) {
        if let Some(entry) = self.whole {
            bits.fill(entry.bits());
        }
        for (at, entry) in &self.few {
            bits[usize::from(*at)] = entry.bits();
        }
        let Some(many) = &self.many else { return };
        for (at, entry) in many.entries.iter().enumerate() {
            if many.said[at / 64] >> (at % 64) & 1 == 1 {
                bits[at] = *entry;
            }
        }
    }
}

const PER_LEAF: u64 = ENTRIES_PER_PAGE as u64;
/// Bytes of memory that a leaf takes, roughly.
const LEAF_COST: usize = 160;
const ENTRY_COST: usize = 16;
/// Entries of a leaf from which on it has a place for each, and what that takes beyond them.
const MANY: usize = 32;
const MANY_COST: usize = size_of::<Many>() - (MANY - 1) * ENTRY_COST;

/// See the module's description.
#[derive(Default)]
pub(super) struct Overlay {
    /// By layer and leaf.
    pub(super) leaves: BTreeMap<(u64, u64), LeafDelta>,
    /// Layers that are new, have changed or are gone.
    pub(super) changed: BTreeSet<u64>,
    /// Layers with leaves here, and how many pages of their maps these need.
    touched: BTreeMap<u64, u64>,
    /// Of these pages: those of layers that have shrunk since, so that they may lie behind their ends.
    behind: u64,
    /// Pages above the leaves that a checkpoint has to write, by layer, level and place.
    above: HashSet<(u64, u8, u64)>,
    bytes: usize,
}

impl Overlay {
    /// Takes a record; `leaves` says how many leaves a layer has.
    pub(super) fn apply(&mut self, record: &Record, leaves: impl Fn(u64) -> u64) {
        match record {
            Record::Entry { layer, cluster, entry } => {
                self.apply_entries(*layer, cluster / PER_LEAF, [(*cluster, *entry)], leaves);
            }
            Record::Leaf { layer, leaf, entry } => {
                self.reach(*layer, *leaf, &leaves);
                self.leaves.insert((*layer, *leaf), LeafDelta { whole: Some(*entry), ..LeafDelta::default() });
            }
            Record::Layer(layer) => {
                self.changed.insert(layer.id);
            }
            Record::Gone(layer) => {
                self.changed.insert(*layer);
                let gone: Vec<_> = self.leaves.range((*layer, 0)..=(*layer, u64::MAX)).map(|(at, _)| *at).collect();
                gone.iter().for_each(|at| drop(self.leaves.remove(at)));
                if self.touched.remove(layer).is_some() {
                    self.above.retain(|(of, ..)| of != layer);
                }
            }
            Record::Free { .. } => {}
        }
    }

    /// Takes entries of one leaf, by cluster.
    pub(super) fn apply_entries(
        &mut self,
        layer: u64,
        leaf: u64,
        entries: impl IntoIterator<Item = (u64, Entry)>,
        leaves: impl Fn(u64) -> u64,
    ) {
        self.reach(layer, leaf, &leaves);
        let delta = self.leaves.entry((layer, leaf)).or_default();
        for (cluster, entry) in entries {
            self.bytes += delta.set((cluster % PER_LEAF) as u16, entry);
        }
    }

    /// A leaf will have to be written, and the pages above it.
    fn reach(&mut self, layer: u64, leaf: u64, leaves: &impl Fn(u64) -> u64) {
        if self.leaves.contains_key(&(layer, leaf)) {
            return;
        }
        self.bytes += LEAF_COST;
        let pages = self.touched.entry(layer).or_default();
        *pages += 1;
        let levels = levels_for(leaves(layer).max(leaf + 1));
        let mut at = leaf;
        for level in 1..levels {
            at /= POINTERS_PER_PAGE as u64;
            if !self.above.insert((layer, level, at)) {
                return;
            }
            *pages += 1;
        }
    }

    /// What is known of a leaf.
    pub(super) fn leaf(&self, layer: u64, leaf: u64) -> Option<&LeafDelta> {
        self.leaves.get(&(layer, leaf))
    }

    /// Bytes of memory, roughly.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pages of maps that a checkpoint may have to write for it.
    pub(super) fn pages(&self) -> usize {
        self.leaves.len() + self.above.len()
    }

    /// The same, without those that may lie behind the ends of their maps.
    pub(super) fn pages_inside(&self) -> u64 {
        (self.pages() as u64).saturating_sub(self.behind)
    }

    /// A layer has become smaller.
    pub(super) fn shrunk(&mut self, layer: u64) {
        self.behind += self.touched.get(&layer).copied().unwrap_or(0);
    }

    /// Layers that change, or whose maps do, at most.
    pub(super) fn layers(&self) -> usize {
        self.changed.len() + self.touched.len()
    }

    /// The last leaf of each layer that has leaves here.
    pub(super) fn last_leaves(&self) -> impl Iterator<Item = (u64, u64)> {
        let last = |layer: &u64| self.leaves.range((*layer, 0)..=(*layer, u64::MAX)).next_back();
        self.touched.keys().filter_map(last).map(|(place, _)| *place)
    }

    /// The leaf that comes after this one, or the first one.
    pub(super) fn leaf_after(&self, place: Option<(u64, u64)>) -> Option<(u64, u64)> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.leaves.range((from, Bound::Unbounded)).next().map(|(place, _)| *place)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty() && self.changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let mut overlay = Overlay::default();
        let entry = |cluster, entry| Record::Entry { layer: 1, cluster, entry };
        overlay.apply(&entry(505, Entry::on(7)), |_| 300);
        overlay.apply(&entry(504, Entry::on(8)), |_| 300);
        overlay.apply(&entry(505, Entry::EMPTY), |_| 300);
        assert_eq!((overlay.leaves.len(), overlay.pages()), (1, 3), "a leaf, the page above, the top");
        let mut bits = [9; ENTRIES_PER_PAGE];
        overlay.leaf(1, 1).unwrap().apply(&mut bits);
        assert_eq!(bits[..3], [8, 0, 9]);

        let whole = Entry::EMPTY.with_zero(5);
        overlay.apply(&Record::Leaf { layer: 1, leaf: 1, entry: whole }, |_| 300);
        overlay.apply(&entry(506, Entry::on(3)), |_| 300);
        overlay.leaf(1, 1).unwrap().apply(&mut bits);
        assert_eq!(bits[..4], [whole.bits(), whole.bits(), 3, whole.bits()]);

        overlay.apply(&Record::Gone(1), |_| 300);
        assert!(overlay.leaf(1, 1).is_none() && overlay.pages() == 0 && overlay.changed.contains(&1));
    }

    /// Few or many, in any order, each said several times: the last word counts, and what nobody has said stays as it is.
    #[test]
    fn few_and_many_say_the_same() {
        let order = |nth: u64, count: u64| nth * 101 % 504 % count;
        for count in [1, MANY as u64 - 1, MANY as u64, 100, 504] {
            let (mut overlay, mut expected) = (Overlay::default(), [9; ENTRIES_PER_PAGE]);
            for nth in 0..1008 {
                let (at, entry) = (order(nth, count), Entry::on(1 + nth as u32).with_here(nth as u16));
                overlay.apply(&Record::Entry { layer: 1, cluster: 504 + at, entry }, |_| 300);
                expected[at as usize] = entry.bits();
            }
            let mut bits = [9; ENTRIES_PER_PAGE];
            overlay.leaf(1, 1).unwrap().apply(&mut bits);
            assert!(bits == expected, "{count}");
            let least = LEAF_COST + if count < MANY as u64 { count as usize * ENTRY_COST } else { size_of::<Many>() };
            assert_eq!(overlay.bytes(), least, "{count}: said once or often, it takes the same");
        }
    }
}
