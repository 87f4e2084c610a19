//! Power cuts: which of the changes that were not durable are on the medium afterwards.

use std::collections::BTreeMap;
use std::ops::Range;

use super::cache::{Seq, Unsynced};
use crate::rng::mix;

/// Most pieces that one change tears into.
const PIECES: u64 = 4096;

/// What is left after a power cut. Numbers are places in [`Medium::unsynced`](super::Medium::unsynced).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// What is durable, and nothing else.
    None,
    /// Everything, what is in flight, too.
    All,
    /// What is durable, and this one.
    Only(usize),
    /// Everything but this one.
    AllBut(usize),
    /// Everything, but of this one the first half only (of one that cannot be torn: nothing).
    Half(usize),
    /// What is durable, and those whose bits are set.
    Subset(u64),
    /// Each change kept, lost, or torn unit by unit, as the seed has it; of two in flight at once either may win.
    Seeded(u64),
}

/// Up to how many unsynced changes all their subsets are tried.
const ALL_SUBSETS: usize = 10;

impl Crash {
    /// The choices that a sweep tries if so many changes are unsynced: all subsets, if there are at most 10, else none, all,
    /// each alone and all but one; each cut in half; and `seeds` with everything drawn.
    pub fn sweep(unsynced: usize, seeds: u64) -> impl Iterator<Item = Crash> {
        let few = unsynced <= ALL_SUBSETS;
        let subsets = if few { 1u64 << unsynced } else { 0 };
        let each = if few { 0 } else { unsynced };
        (0..subsets)
            .map(Crash::Subset)
            .chain([Crash::None, Crash::All].into_iter().filter(move |_| !few))
            .chain((0..each).flat_map(|nth| [Crash::Only(nth), Crash::AllBut(nth)]))
            .chain((0..unsynced).map(Crash::Half))
            .chain((0..seeds).map(Crash::Seeded))
    }

    pub(super) fn fate(self, nth: usize, change: &Unsynced, tear: u64) -> Fate {
        let kept = match self {
            Crash::None => false,
            Crash::All => true,
            Crash::Only(only) => nth == only,
            Crash::AllBut(but) => nth != but,
            Crash::Half(half) if nth == half => {
                let keeps = change.len / 2 / tear * tear;
                return if keeps == 0 { Fate::Lost } else { Fate::Until(change.offset + keeps) };
            }
            Crash::Half(_) => true,
            Crash::Subset(bits) => nth < 64 && bits >> nth & 1 == 1,
            Crash::Seeded(seed) => match mix(seed ^ mix(change.seq.wrapping_add(1))) % 3 {
                0 => true,
                1 => false,
                _ => return Fate::Torn(seed),
            },
        };
        if kept { Fate::Kept } else { Fate::Lost }
    }
}

/// What becomes of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// Only what lies before this byte is kept.
    Until(u64),
    /// Each unit of it is kept or lost, as the seed has it.
    Torn(u64),
}

/// The parts of one piece of a change that survive.
pub(super) fn surviving(fate: Fate, seq: Seq, change: Range<u64>, piece: &Range<u64>, tear: u64) -> Vec<Range<u64>> {
    match fate {
        Fate::Kept => vec![piece.clone()],
        Fate::Lost => Vec::new(),
        Fate::Until(end) => std::iter::once(piece.start..piece.end.min(end)).filter(|r| r.start < r.end).collect(),
        Fate::Torn(seed) => {
            let unit = ((change.end - change.start) / PIECES).max(1).next_multiple_of(tear);
            (piece.start / unit..piece.end.div_ceil(unit))
                .filter(|nth| mix(seed ^ mix(seq.wrapping_mul(0x1_0001) ^ mix(nth + 1))) & 1 == 1)
                .map(|nth| piece.start.max(nth * unit)..piece.end.min((nth + 1) * unit))
                .collect()
        }
    }
}

/// Which change each byte comes from: two crashes with the same one leave the same medium.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Cover(BTreeMap<u64, (u64, Seq)>);

impl Cover {
    pub(super) fn put(&mut self, range: Range<u64>, seq: Seq) {
        let before = self.0.range(..range.end).rev().take_while(|(_, (end, _))| *end > range.start);
        let hidden: Vec<(u64, (u64, Seq))> = before.map(|(start, rest)| (*start, *rest)).collect();
        for (start, (end, old)) in hidden {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, (range.start, old));
            }
            if end > range.end {
                self.0.insert(range.end, (end, old));
            }
        }
        self.0.insert(range.start, (range.end, seq));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_tries_every_subset_of_few_and_the_named_ones_of_many() {
        let choices: Vec<Crash> = Crash::sweep(3, 2).collect();
        assert_eq!(choices.len(), 8 + 3 + 2);
        assert!((0..8).all(|bits| choices.contains(&Crash::Subset(bits))));
        assert_eq!(Crash::sweep(10, 0).filter(|choice| matches!(choice, Crash::Subset(_))).count(), 1024);
        let many: Vec<Crash> = Crash::sweep(11, 0).collect();
        assert_eq!(many.len(), 2 + 2 * 11 + 11);
        assert!(many.contains(&Crash::None) && many.contains(&Crash::All) && many.contains(&Crash::AllBut(10)));
    }

    #[test]
    fn a_cover_knows_the_last_of_each_byte() {
        let mut cover = Cover::default();
        cover.put(0..10, 1);
        cover.put(20..30, 2);
        cover.put(5..25, 3);
        cover.put(7..8, 4);
        let all: Vec<_> = cover.0.iter().map(|(start, (end, seq))| (*start, *end, *seq)).collect();
        assert_eq!(all, [(0, 5, 1), (5, 7, 3), (7, 8, 4), (8, 25, 3), (25, 30, 2)]);
    }

    #[test]
    fn a_tear_keeps_whole_units_and_some_seeds_keep_some() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let kept = surviving(Fate::Torn(seed), 5, 4096..8192, &(4096..8192), 512);
            assert!(kept.iter().all(|r| r.start % 512 == 0 && r.end % 512 == 0 && r.start >= 4096 && r.end <= 8192));
            seen.insert(kept.iter().map(|r| r.end - r.start).sum::<u64>() / 512);
        }
        assert!(seen.len() > 4, "{seen:?}");
    }
}
