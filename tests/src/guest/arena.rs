//! The guest's allocator: first fit over a range of guest addresses.

use std::collections::BTreeMap;

/// Free ranges of guest memory.
pub struct Arena {
    free: BTreeMap<u64, u64>,
}

impl Arena {
    /// All of `gpa..gpa + len` is free.
    #[must_use]
    pub fn new(gpa: u64, len: u64) -> Self {
        Arena { free: BTreeMap::from([(gpa, len)]) }
    }

    /// Takes `len` bytes at a multiple of `align` plus `skew`; `None` if there is no room.
    pub fn alloc(&mut self, len: u64, align: u64, skew: u64) -> Option<u64> {
        let len = len.max(1);
        let fit = |from: u64| from.saturating_sub(skew).next_multiple_of(align) + skew;
        let (&from, &size) = self.free.iter().find(|&(&from, &size)| fit(from) + len <= from + size)?;
        let at = fit(from);
        self.free.remove(&from);
        if at > from {
            self.free.insert(from, at - from);
        }
        if from + size > at + len {
            self.free.insert(at + len, from + size - at - len);
        }
        Some(at)
    }

    /// Gives a range back.
    pub fn free(&mut self, mut gpa: u64, len: u64) {
        let mut len = len.max(1);
        if let Some((&before, &size)) = self.free.range(..gpa).next_back() {
            assert!(before + size <= gpa, "{gpa:#x} was free already");
            if before + size == gpa {
                self.free.remove(&before);
                (gpa, len) = (before, len + size);
            }
        }
        if let Some(size) = self.free.remove(&(gpa + len)) {
            len += size;
        }
        assert!(self.free.range(gpa..gpa + len).next().is_none(), "{gpa:#x} was free already");
        self.free.insert(gpa, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn what_is_taken_is_disjoint_and_all_comes_back() {
        let (mut rng, mut arena, mut held) = (Rng::new(1), Arena::new(4096, 1 << 20), Vec::<(u64, u64)>::new());
        for _ in 0..2000 {
            let (len, skew) = (rng.between(1, 9000), rng.below(5));
            if let Some(at) = arena.alloc(len, 512, skew) {
                assert_eq!(at % 512, skew);
                assert!(held.iter().all(|&(a, l)| at >= a + l || a >= at + len), "overlap at {at:#x}");
                held.push((at, len));
            }
            if !held.is_empty() && rng.chance(2, 5) {
                let (at, len) = held.swap_remove(rng.index(held.len()));
                arena.free(at, len);
            }
        }
        held.drain(..).for_each(|(at, len)| arena.free(at, len));
        assert_eq!(arena.free, BTreeMap::from([(4096, 1 << 20)]));
    }
}
