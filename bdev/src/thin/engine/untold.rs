//! Free clusters of which the base has not been told yet: a bitmap in parts, of which there are as many as have something.
//!
//! A cluster may be given out again while it is in here; who tells the base looks at that first.

use std::collections::BTreeMap;

/// Clusters of a part.
const PART: u32 = 1 << 15;
const WORDS: usize = PART as usize / 64;

/// See the module's description.
#[derive(Default)]
pub(super) struct Untold {
    parts: BTreeMap<u32, Box<[u64; WORDS]>>,
    count: u64,
    /// Where to look next.
    cursor: u32,
}

impl Untold {
    /// How many clusters there are.
    pub(super) const fn len(&self) -> u64 {
        self.count
    }

    /// These clusters are free.
    pub(super) fn put(&mut self, first: u32, count: u32) {
        for_parts(first, count, |nth, at, count| {
            let words = self.parts.entry(nth).or_insert_with(|| Box::new([0; WORDS]));
            let (mut at, end) = (at, at + count);
            while at < end {
                let many = (end - at).min(64 - at % 64);
                let bits = (u64::MAX >> (64 - many)) << (at % 64);
                let word = &mut words[at as usize / 64];
                self.count += u64::from((bits & !*word).count_ones());
                *word |= bits;
                at += many;
            }
        });
    }

    /// Takes this one out; whether it was in here.
    pub(super) fn remove(&mut self, cluster: u32) -> bool {
        let (nth, at) = (cluster / PART, cluster % PART);
        let Some(words) = self.parts.get_mut(&nth) else { return false };
        let (word, bit) = (&mut words[at as usize / 64], 1 << (at % 64));
        let was = *word & bit != 0;
        *word &= !bit;
        self.count -= u64::from(was);
        if was && words.iter().all(|word| *word == 0) {
            self.parts.remove(&nth);
        }
        was
    }

    /// Puts all of another one in here.
    pub(super) fn append(&mut self, more: Untold) {
        for (nth, more) in more.parts {
            let words = self.parts.entry(nth).or_insert_with(|| Box::new([0; WORDS]));
            for (word, more) in words.iter_mut().zip(*more) {
                self.count += u64::from((more & !*word).count_ones());
                *word |= more;
            }
        }
    }

    /// Takes out a run of at most so many clusters that lie together: the next one, in the order in which they lie.
    pub(super) fn take(&mut self, most: u32) -> Option<(u32, u32)> {
        let cursor = self.cursor;
        let first = self.find(cursor).or_else(|| self.find(0))?;
        let (nth, from) = (first / PART, first % PART);
        let words = self.parts.get_mut(&nth)?;
        let mut at = from;
        while at < PART && at - from < most && words[at as usize / 64] >> (at % 64) & 1 == 1 {
            words[at as usize / 64] &= !(1 << (at % 64));
            at += 1;
        }
        if words.iter().all(|word| *word == 0) {
            self.parts.remove(&nth);
        }
        self.count -= u64::from(at - from);
        self.cursor = first.saturating_add(at - from);
        Some((first, at - from))
    }

    /// The first one from this one on.
    fn find(&self, from: u32) -> Option<u32> {
        self.parts.range(from / PART..).find_map(|(nth, words)| {
            let start = if *nth == from / PART { from % PART } else { 0 };
            let mut at = start;
            while at < PART {
                let left = words[at as usize / 64] >> (at % 64);
                if left != 0 {
                    return Some(nth * PART + at + left.trailing_zeros());
                }
                at = (at / 64 + 1) * 64;
            }
            None
        })
    }
}

fn for_parts(first: u32, count: u32, mut f: impl FnMut(u32, u32, u32)) {
    let (mut at, end) = (u64::from(first), u64::from(first) + u64::from(count));
    while at < end {
        let (nth, inside) = (at / u64::from(PART), at % u64::from(PART));
        let part = (end - at).min(u64::from(PART) - inside);
        f(nth as u32, inside as u32, part as u32);
        at += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_together_in_the_order_in_which_they_lie() {
        let mut untold = Untold::default();
        for (first, count) in [(100, 3), (103, 4), (50, 2), (PART - 2, 5), (101, 2), (640, 300)] {
            untold.put(first, count);
        }
        assert_eq!(untold.len(), 314);
        let mut taken = Vec::new();
        while let Some(run) = untold.take(6) {
            taken.push(run);
        }
        let large: Vec<_> = (0..50).map(|nth| (640 + nth * 6, 6)).collect();
        assert_eq!(taken[..3], [(50, 2), (100, 6), (106, 1)]);
        assert!(taken[3..53] == large && taken[53..] == [(PART - 2, 2), (PART, 3)], "{taken:?}");
        assert!(untold.len() == 0 && untold.parts.is_empty());
    }

    #[test]
    fn single_ones_are_taken_out_and_two_become_one() {
        let mut one = Untold::default();
        one.put(PART - 1, 2);
        assert!(one.remove(PART) && !one.remove(PART) && !one.remove(7));
        let mut other = Untold::default();
        other.put(PART - 2, 3);
        one.append(other);
        assert_eq!((one.len(), one.take(9), one.take(9)), (3, Some((PART - 2, 2)), Some((PART, 1))));
        assert!(one.parts.is_empty());
    }

    #[test]
    fn what_lies_before_the_last_one_comes_in_the_next_round() {
        let mut untold = Untold::default();
        untold.put(10, 1);
        untold.put(20, 1);
        assert_eq!(untold.take(1), Some((10, 1)));
        untold.put(5, 1);
        assert_eq!((untold.take(1), untold.take(1), untold.take(1)), (Some((20, 1)), Some((5, 1)), None));
    }
}
