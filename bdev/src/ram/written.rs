//! Which parts of the medium may hold something: one bit for each grain, set when a byte of it has been written, taken
//! away when the whole grain has been given back. Where no bit is, there are zeroes, and nobody has to look.
//!
//! Writers and those who give back come from several reactors and helper threads, without locks, and a bit that lacks
//! under data would be a lie for ever. So: **who gives back takes the bits away first and drops the pages then; who
//! writes stores first and looks at the bit then.** If data has outlived a drop of its page, its store came after the drop
//! and ran into a page that was not there. The kernel let it go on under the lock of the page table that the drop had
//! held, hence the look at the bit, which comes after the store, sees it gone and sets it again. A store before the drop is
//! lost with its page, and then it does not matter what the look has seen. That is why only pages that the kernel drops
//! count as given back, not zeroes that somebody has written.

use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence, fence};

use crate::memory::PAGE;

/// What a bit stands for.
pub(super) const GRAIN: usize = 2 << 20;
const BITS: usize = u64::BITS as usize;

/// The bits of a medium.
pub(super) struct Written {
    words: Box<[AtomicU64]>,
    /// Bytes of the medium.
    len: usize,
}

impl Written {
    /// Those of a medium of so many bytes to which nothing has been written.
    pub(super) fn new(len: usize) -> Self {
        let words = len.div_ceil(GRAIN).div_ceil(BITS);
        Written { words: (0..words).map(|_| AtomicU64::new(0)).collect(), len }
    }

    /// Bytes have been stored, `len` of them, which is not 0.
    #[inline]
    pub(super) fn stored(&self, at: usize, len: usize) {
        // The stores come before the looks; no instruction is needed for what the processor must not swap (see above).
        compiler_fence(SeqCst);
        let (first, last) = (at / GRAIN, (at + len - 1) / GRAIN);
        if first != last || !self.has(first) {
            self.take(first..last + 1);
        }
    }

    #[inline]
    fn has(&self, grain: usize) -> bool {
        self.words[grain / BITS].load(Relaxed) >> (grain % BITS) & 1 != 0
    }

    /// Sets the bits of these grains.
    #[cold]
    pub(super) fn take(&self, grains: Range<usize>) {
        for grain in grains.filter(|grain| !self.has(*grain)) {
            self.words[grain / BITS].fetch_or(1 << (grain % BITS), SeqCst);
        }
    }

    /// The whole grains of a range, whose pages are about to be dropped, hold nothing any more. Returns which.
    pub(super) fn drop_whole(&self, at: usize, len: usize) -> Range<usize> {
        let end = at + len;
        // The last one may be shorter, but has to end with a page.
        let last = if end == self.len && end.is_multiple_of(PAGE) { end.div_ceil(GRAIN) } else { end / GRAIN };
        let grains = at.div_ceil(GRAIN)..last;
        for grain in grains.clone().filter(|grain| self.has(*grain)) {
            self.words[grain / BITS].fetch_and(!(1 << (grain % BITS)), SeqCst);
        }
        fence(SeqCst);
        grains
    }

    /// How many bytes from `at` on hold nothing; 0 if the first may hold something.
    pub(super) fn nothing_from(&self, at: usize) -> usize {
        let mut grain = at / GRAIN;
        while let Some(word) = self.words.get(grain / BITS) {
            // Those before `grain` do not count; what is shifted in counts as empty, and is in the next word.
            let empty = (word.load(SeqCst) >> (grain % BITS)).trailing_zeros() as usize;
            let rest = BITS - grain % BITS;
            if empty < rest {
                grain += empty;
                break;
            }
            grain += rest;
        }
        (grain * GRAIN).min(self.len).saturating_sub(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn grains_are_empty_until_something_is_stored() {
        let written = Written::new(200 * GRAIN + 3 * PAGE);
        assert_eq!(written.nothing_from(0), 200 * GRAIN + 3 * PAGE);
        written.stored(130 * GRAIN + 5, 1);
        assert_eq!(written.nothing_from(7), 130 * GRAIN - 7);
        assert_eq!(written.nothing_from(130 * GRAIN + 600), 0);
        assert_eq!(written.nothing_from(131 * GRAIN), 69 * GRAIN + 3 * PAGE);
        written.stored(2 * GRAIN - 1, 2);
        assert_eq!([0, GRAIN, 2 * GRAIN, 3 * GRAIN].map(|at| written.nothing_from(at)), [GRAIN, 0, 0, 127 * GRAIN]);
        assert_eq!(written.nothing_from(usize::MAX / 2), 0, "there is nothing behind the end");
    }

    #[test]
    fn only_whole_grains_are_given_back() {
        let written = Written::new(3 * GRAIN + 512);
        written.stored(0, 3 * GRAIN + 512);
        assert_eq!(written.drop_whole(1, GRAIN), 1..1);
        assert_eq!(written.drop_whole(1, 3 * GRAIN - 2), 1..2);
        assert_eq!([0, GRAIN, 2 * GRAIN].map(|at| written.nothing_from(at)), [0, GRAIN, 0]);
        assert_eq!(written.drop_whole(0, 3 * GRAIN + 512), 0..3, "the end is written, not dropped");
        assert_eq!(written.nothing_from(3 * GRAIN), 0);
        written.take(1..2);
        assert_eq!([0, GRAIN].map(|at| written.nothing_from(at)), [GRAIN, 0]);
        let whole = Written::new(GRAIN + PAGE);
        whole.stored(GRAIN, PAGE);
        assert_eq!((whole.drop_whole(GRAIN, PAGE), whole.nothing_from(0)), (1..2, GRAIN + PAGE));
    }

    proptest! {
        #[test]
        fn bits_are_those_of_a_list(
            steps in prop::collection::vec((any::<bool>(), 0usize..150 * 16, 1usize..400), 1..40), at in 0usize..150 * 16,
        ) {
            const UNIT: usize = GRAIN / 16;
            let (written, mut model) = (Written::new(150 * GRAIN), vec![false; 150 * 16]);
            let mut kept = [false; 150];
            for (store, from, len) in steps {
                let to = (from + len).min(model.len());
                if store {
                    written.stored(from * UNIT, (to - from) * UNIT);
                } else {
                    written.drop_whole(from * UNIT, (to - from) * UNIT);
                }
                model[from..to].fill(store);
                for (grain, kept) in kept.iter_mut().enumerate() {
                    let (first, last) = (grain * 16, grain * 16 + 16);
                    *kept = if from <= first && last <= to { store } else { *kept || store && from < last && first < to };
                }
            }
            let nothing = written.nothing_from(at * UNIT) / UNIT;
            prop_assert!(model[at..at + nothing].iter().all(|holds| !holds), "what holds data is told");
            prop_assert!(at + nothing == model.len() || kept[(at + nothing) / 16], "no further than it has to");
        }
    }
}
