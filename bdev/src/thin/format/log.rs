//! Blocks of the log: a ring of 4 KiB blocks, written in batches. A batch counts when all of its blocks are there.
//!
//! ```text
//! bytes  0..4   "PLXL"                      4..8   CRC-32C             8..16  the front of the pool's UUID
//!       16..24  salt, new at each start    24..32  its number since the pool was made
//!       32..40  batch                      40..42  which block of the batch      42..44  blocks of the batch
//!       44..46  bytes of payload           48..56  last batch known durable when this one was written
//!       64..    payload
//! ```
//! A device may write the blocks of one batch in any order, so what a crash leaves of the last batch proves nothing; a
//! batch that is not whole although a later block calls it durable was damaged.

use uuid::Uuid;

use super::{BLOCK, HEADER, is_sealed, seal};

const MAGIC: [u8; 4] = *b"PLXL";

/// Bytes of records in a block.
pub const PAYLOAD_LEN: usize = BLOCK - HEADER;

/// What a block of the log says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    /// Whose log it is.
    pub pool: Uuid,
    /// Of which start of the pool.
    pub salt: u64,
    /// Which block, counted since the pool was made.
    pub seq: u64,
    /// Which batch.
    pub batch: u64,
    /// Which block of it.
    pub index: u16,
    /// How many it has.
    pub count: u16,
    /// The last batch that was known to be durable.
    pub durable: u64,
}

impl LogHeader {
    /// A block with this payload.
    ///
    /// # Panics
    /// If there is too much of it.
    #[must_use]
    pub fn close(&self, payload: &[u8]) -> Box<[u8; BLOCK]> {
        let mut bytes = Box::new([0; BLOCK]);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.pool.as_bytes()[..8]);
        for (at, number) in [(16, self.salt), (24, self.seq), (32, self.batch), (48, self.durable)] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let len = u16::try_from(payload.len()).expect("a block holds less than 4 KiB");
        for (at, number) in [(40, self.index), (42, self.count), (44, len)] {
            bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }
        bytes[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        seal(&mut bytes);
        bytes
    }

    /// What a block is, and its payload; `None`: not a block of this pool's log.
    #[must_use]
    pub fn open(bytes: &[u8; BLOCK], pool: Uuid) -> Option<(LogHeader, &[u8])> {
        if bytes[..4] != MAGIC || bytes[8..16] != pool.as_bytes()[..8] || !is_sealed(bytes) {
            return None;
        }
        let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside"));
        let short = |at: usize| u16::from_le_bytes(*bytes[at..].first_chunk().expect("inside"));
        let (salt, seq, batch, durable) = (long(16), long(24), long(32), long(48));
        let header = LogHeader { pool, salt, seq, batch, index: short(40), count: short(42), durable };
        let sane = header.index < header.count && durable < batch;
        bytes[HEADER..].get(..usize::from(short(44))).filter(|_| sane).map(|payload| (header, payload))
    }
}

/// The blocks of a batch with these records; `first` is the header of the first, its `count` is worked out here.
///
/// # Panics
/// If there are more records than a batch can hold.
pub fn batch_blocks(first: LogHeader, records: &[u8]) -> impl Iterator<Item = Box<[u8; BLOCK]>> {
    let count = u16::try_from(records.len().div_ceil(PAYLOAD_LEN).max(1)).expect("a batch has few blocks");
    (0..count).map(move |index| {
        let payload = records.chunks(PAYLOAD_LEN).nth(usize::from(index)).unwrap_or_default();
        LogHeader { index, count, seq: first.seq + u64::from(index), ..first }.close(payload)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: Uuid = Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888);
    const FIRST: LogHeader = LogHeader { pool: POOL, salt: 3, seq: 100, batch: 9, index: 0, count: 0, durable: 7 };

    #[test]
    fn a_batch_is_cut_into_blocks() {
        for (len, blocks) in [(0, 1), (1, 1), (PAYLOAD_LEN, 1), (PAYLOAD_LEN + 1, 2), (PAYLOAD_LEN * 3, 3)] {
            let records: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let all: Vec<_> = batch_blocks(FIRST, &records).collect();
            assert_eq!(all.len(), blocks);
            let mut read = Vec::new();
            for (bytes, index) in all.iter().zip(0..) {
                let (header, payload) = LogHeader::open(bytes, POOL).unwrap();
                let seq = 100 + u64::from(index);
                assert_eq!(header, LogHeader { seq, index, count: blocks as u16, ..FIRST });
                read.extend_from_slice(payload);
            }
            assert_eq!(read, records);
        }
    }

    #[test]
    fn what_is_no_block_of_this_log() {
        let bytes = FIRST_OF_ONE.close(&[1, 2, 3]);
        assert_eq!(LogHeader::open(&bytes, POOL).unwrap(), (FIRST_OF_ONE, &[1, 2, 3][..]));
        assert!(LogHeader::open(&bytes, Uuid::from_u128(1)).is_none());
        for at in [0, 4, 20, HEADER, BLOCK - 1] {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert!(LogHeader::open(&torn, POOL).is_none(), "byte {at}");
        }
        let mut long = bytes;
        long[44..46].copy_from_slice(&(PAYLOAD_LEN as u16 + 1).to_le_bytes());
        seal(&mut long);
        assert!(LogHeader::open(&long, POOL).is_none());
        for wrong in [LogHeader { index: 1, ..FIRST_OF_ONE }, LogHeader { durable: 9, ..FIRST_OF_ONE }] {
            assert!(LogHeader::open(&wrong.close(&[]), POOL).is_none(), "{wrong:?}");
        }
    }

    const FIRST_OF_ONE: LogHeader = LogHeader { count: 1, ..FIRST };
}
