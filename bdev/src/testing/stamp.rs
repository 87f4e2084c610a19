//! Content that tells where it belongs: each sector holds, over and over, the volume and the sector that it was written to
//! and the number of the write.

/// Bytes of a sector: the oracle's grain, whatever the block size is.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x504f_4c4c_5558_2121;
/// Bytes of one copy.
const TILE: usize = 32;

/// Whose a sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The volume it was written to.
    pub volume: u64,
    /// The write: numbered over all volumes.
    pub write: u64,
    /// The sector of the volume.
    pub sector: u64,
}

impl Stamp {
    /// What the sectors hold of the bdev of this number outside of a pool.
    #[must_use]
    pub const fn of_outside(outside: u64, sector: u64) -> Value {
        Value::Stamp(Stamp { volume: outside, write: 0, sector })
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Zeroes.
    Zero,
    /// What a write has put there.
    Stamp(Stamp),
}

impl Value {
    /// The bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        if let Value::Stamp(stamp) = self {
            for tile in bytes.chunks_mut(TILE) {
                let words = [MAGIC, stamp.volume, stamp.write, stamp.sector];
                for (to, word) in tile.chunks_mut(8).zip(words) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// What these bytes are; `None`: nothing that anybody has written as a whole.
    ///
    /// # Panics
    /// If they are not a sector.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Value> {
        assert_eq!(bytes.len(), SECTOR, "a sector");
        let word = |nth: usize| bytes[nth * 8..][..8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        // Copies of the first one, all of them.
        if bytes[TILE..] != bytes[..SECTOR - TILE] {
            return None;
        }
        match [word(0), word(1), word(2), word(3)] {
            [0, 0, 0, 0] => Some(Value::Zero),
            [MAGIC, volume, write, sector] => Some(Value::Stamp(Stamp { volume, write, sector })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_whose_they_are_and_whether_they_are_whole() {
        let value = Value::Stamp(Stamp { volume: 3, write: 1 << 40, sector: 77 });
        let bytes = value.bytes();
        assert_eq!(Value::of(&bytes), Some(value));
        assert_eq!(Value::of(&[0; SECTOR]), Some(Value::Zero));
        for at in [0, 7, 8, 100, 511] {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(Value::of(&torn), None);
            let mut torn = [0; SECTOR];
            torn[at] = 1;
            assert_eq!(Value::of(&torn), None);
        }
    }
}
