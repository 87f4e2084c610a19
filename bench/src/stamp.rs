//! What verified data looks like: every 512 bytes say which write they belong to.
//!
//! A sector (always 512 bytes here, whatever the disk's blocks are) begins with the run's mark, its place on the disk and
//! its generation; the rest is a pattern that depends on all three. So data that is not what was written last can be told
//! apart: an older write (lost), another place's (misplaced), another run's, a half-written or a damaged one.

use std::fmt;

use crate::memory::Memory;
use crate::rng::mix;

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
const WORDS: usize = SECTOR / 8;
/// Before a read each word of the buffer is this: a read that transfers nothing is seen.
const UNTOUCHED: u64 = 0xdead_dead_dead_dead;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which write a sector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The run's and the disk's mark.
    pub(crate) mark: u64,
    /// Place on the disk, in sectors.
    pub(crate) sector: u64,
    /// Counts the writes of this place.
    pub(crate) generation: u32,
}

impl Stamp {
    fn words(self) -> [u64; WORDS] {
        let generation = u64::from(self.generation);
        let key = mix(self.mark ^ mix(self.sector ^ mix(generation)));
        let mut words = [0; WORDS];
        let mut value = key;
        for word in &mut words {
            value = value.wrapping_add(STEP);
            *word = value;
        }
        words[..3].copy_from_slice(&[self.mark, self.sector, generation]);
        words
    }

    /// Writes a sector.
    pub(crate) fn write(self, memory: &Memory, at: usize) {
        for (n, word) in self.words().into_iter().enumerate() {
            memory.store_u64(at + 8 * n, word);
        }
    }

    /// What a sector holds in place of this; `None`: this.
    pub(crate) fn compare(self, memory: &Memory, at: usize) -> Option<Wrong> {
        let mut found = [0; WORDS];
        for (n, word) in found.iter_mut().enumerate() {
            *word = memory.load_u64(at + 8 * n);
        }
        let wanted = self.words();
        if found == wanted { None } else { Some(self.classify(&found, &wanted)) }
    }

    fn classify(self, found: &[u64; WORDS], wanted: &[u64; WORDS]) -> Wrong {
        if found.iter().all(|word| *word == 0) {
            return Wrong::Zeroes;
        }
        if found.iter().all(|word| *word == UNTOUCHED) {
            return Wrong::Untouched;
        }
        let claims = Stamp { mark: found[0], sector: found[1], generation: found[2] as u32 };
        if claims.words() != *found {
            let word = found.iter().zip(wanted).position(|(found, wanted)| found != wanted).unwrap_or(0);
            let byte = ((found[word] ^ wanted[word]).trailing_zeros() / 8) as usize;
            return Wrong::Corrupt { byte: 8 * word + byte };
        }
        match claims {
            Stamp { mark, .. } if mark != self.mark => Wrong::Foreign,
            Stamp { sector, .. } if sector != self.sector => Wrong::Misplaced { sector },
            Stamp { generation, .. } if generation < self.generation => Wrong::Stale { generation },
            Stamp { generation, .. } => Wrong::Newer { generation },
        }
    }
}

/// Makes a buffer such that what is not read into it is seen.
pub(crate) fn untouch(memory: &Memory, at: usize, len: usize) {
    (at..at + len).step_by(8).for_each(|at| memory.store_u64(at, UNTOUCHED));
}

/// What a sector, or a piece of several, holds instead of what was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The read transferred nothing into it.
    Untouched,
    /// Zeroes: never written, or discarded.
    Zeroes,
    /// An older write: a later one was lost.
    Stale { generation: u32 },
    /// A later write than the last that was acknowledged.
    Newer { generation: u32 },
    /// What was written to another place.
    Misplaced { sector: u64 },
    /// What another run, or the load on another socket, wrote.
    Foreign,
    /// No stamp at all, or a damaged one.
    Corrupt { byte: usize },
}

impl Wrong {
    /// Whether a write that was done only in part leaves this in the other part.
    pub(crate) const fn left_behind(self) -> bool {
        matches!(self, Wrong::Zeroes | Wrong::Stale { .. } | Wrong::Foreign)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Untouched => f.write_str("nothing was read: the buffer was not touched"),
            Wrong::Zeroes => f.write_str("lost: zeroes"),
            Wrong::Stale { generation } => write!(f, "lost: still the write of generation {generation}"),
            Wrong::Newer { generation } => write!(f, "from a write of generation {generation}, which came later"),
            Wrong::Misplaced { sector } => write!(f, "misplaced: it was written to byte {}", sector * SECTOR as u64),
            Wrong::Foreign => f.write_str("lost, or overwritten by somebody else: the stamp of another run or socket"),
            Wrong::Corrupt { byte } => write!(f, "corrupt: differs from byte {byte} of its 512 on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HugePages;
    use proptest::prelude::*;

    const STAMP: Stamp = Stamp { mark: 7, sector: 1000, generation: 5 };

    fn memory() -> Memory {
        Memory::new(1, HugePages::Off).expect("memory")
    }

    #[test]
    fn each_kind_of_wrong_is_told_from_the_others() {
        let memory = memory();
        let holds = |stamp: Stamp| {
            stamp.write(&memory, 512);
            STAMP.compare(&memory, 512)
        };
        assert_eq!(holds(STAMP), None);
        assert_eq!(holds(Stamp { generation: 4, ..STAMP }), Some(Wrong::Stale { generation: 4 }));
        assert_eq!(holds(Stamp { generation: 6, ..STAMP }), Some(Wrong::Newer { generation: 6 }));
        assert_eq!(holds(Stamp { sector: 1001, ..STAMP }), Some(Wrong::Misplaced { sector: 1001 }));
        assert_eq!(holds(Stamp { mark: 8, generation: 4, ..STAMP }), Some(Wrong::Foreign));
        untouch(&memory, 512, 512);
        assert_eq!(STAMP.compare(&memory, 512), Some(Wrong::Untouched));
        (512..1024).step_by(8).for_each(|at| memory.store_u64(at, 0));
        assert_eq!(STAMP.compare(&memory, 512), Some(Wrong::Zeroes));
    }

    #[test]
    fn a_sector_of_two_writes_is_corrupt() {
        let memory = memory();
        Stamp { generation: 4, ..STAMP }.write(&memory, 0);
        let old = memory.bytes(256, 256);
        STAMP.write(&memory, 0);
        memory.write(256, &old);
        assert_eq!(STAMP.compare(&memory, 0), Some(Wrong::Corrupt { byte: 256 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_changed_byte_is_seen(byte in 0usize..512, value in 1u8..) {
            let memory = memory();
            STAMP.write(&memory, 0);
            let was = memory.bytes(byte, 1)[0];
            memory.write(byte, &[was ^ value]);
            prop_assert_eq!(STAMP.compare(&memory, 0), Some(Wrong::Corrupt { byte }));
        }
    }
}
