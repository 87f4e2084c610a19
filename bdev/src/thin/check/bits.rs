//! A set of numbers, one bit each, that takes memory only near those that are in it.

use std::collections::HashMap;

const WORDS: usize = 64;

/// See the module's description.
#[derive(Default)]
pub(super) struct Bits {
    chunks: HashMap<u64, Box<[u64; WORDS]>>,
    count: u64,
}

impl Bits {
    const fn place(at: u64) -> (u64, usize, u64) {
        (at / 64 / WORDS as u64, (at / 64 % WORDS as u64) as usize, 1 << (at % 64))
    }

    /// Puts a number in; whether it was not there before.
    pub(super) fn set(&mut self, at: u64) -> bool {
        let (chunk, word, bit) = Self::place(at);
        let word = &mut self.chunks.entry(chunk).or_insert_with(|| Box::new([0; WORDS]))[word];
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u64::from(new);
        new
    }

    /// Takes a number out.
    pub(super) fn clear(&mut self, at: u64) {
        let (chunk, word, bit) = Self::place(at);
        if let Some(words) = self.chunks.get_mut(&chunk) {
            self.count -= u64::from(words[word] & bit != 0);
            words[word] &= !bit;
        }
    }

    /// Whether a number is in it.
    pub(super) fn get(&self, at: u64) -> bool {
        let (chunk, word, bit) = Self::place(at);
        self.chunks.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }

    /// 64 of them, from this times 64 on.
    pub(super) fn word(&self, at: u64) -> u64 {
        self.chunks.get(&(at / WORDS as u64)).map_or(0, |words| words[(at % WORDS as u64) as usize])
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// One of those from here to before there, if there is one.
    pub(super) fn any_in(&self, from: u64, to: u64) -> Option<u64> {
        let per_chunk = WORDS as u64 * 64;
        let (first, last) = (from / per_chunk, to.div_ceil(per_chunk));
        let look = |chunk: u64| {
            let words = self.chunks.get(&chunk)?;
            let inside =
                |at: &u64| (from..to).contains(at) && words[(at / 64 % WORDS as u64) as usize] >> (at % 64) & 1 == 1;
            (0..per_chunk).map(|at| chunk * per_chunk + at).find(inside)
        };
        if last.saturating_sub(first) <= self.chunks.len() as u64 {
            (first..last).find_map(look)
        } else {
            self.chunks.keys().filter(|chunk| (first..last).contains(chunk)).find_map(|chunk| look(*chunk))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), prop_oneof![0..200u64, 1u64 << 40..(1 << 40) + 9000, Just(u64::MAX)]), 0..200)) {
            let (mut bits, mut model) = (Bits::default(), BTreeSet::new());
            for (on, at) in steps {
                if on {
                    prop_assert_eq!(bits.set(at), model.insert(at));
                } else {
                    bits.clear(at);
                    model.remove(&at);
                }
                prop_assert_eq!(bits.get(at), on);
                prop_assert_eq!(bits.word(at / 64) >> (at % 64) & 1 == 1, on);
            }
            prop_assert_eq!(bits.count(), model.len() as u64);
            for (from, to) in [(0, 5), (3, 200), (100, 1 << 41), (0, u64::MAX), (7, 7)] {
                let found = bits.any_in(from, to);
                prop_assert_eq!(found.is_some(), model.range(from..to).next().is_some());
                prop_assert!(found.is_none_or(|at| model.contains(&at) && (from..to).contains(&at)));
            }
        }
    }
}
