//! What of the log counts: torn tails are the end of it, damage is told.

use super::*;
use crate::thin::format::{Extent, Geometry, LogHeader, PAYLOAD_LEN, batch_blocks};
use crate::thin::store::replay::{Found, Ring as Log};

const BLOCKS: u64 = 256;

/// A ring, written as by several starts.
struct Tape {
    superblock: Superblock,
    bytes: Vec<u8>,
    seq: u64,
    batch: u64,
    durable: u64,
}

impl Tape {
    /// That begins at this block, with these starts and where each began.
    fn new(log_from: u64, spans: &[(u64, u64)]) -> Tape {
        let geometry = Geometry::new(64 << 20, CLUSTER).unwrap();
        assert_eq!(geometry.log_blocks, BLOCKS);
        let superblock = Superblock {
            pool: POOL,
            name: "pool".into(),
            created: 0,
            generation: 9,
            geometry,
            next_layer: 1,
            log_from,
            batch_from: 50,
            spans: spans.iter().map(|(salt, from)| LogSpan { salt: *salt, from: *from }).collect(),
            overcommit: 0,
            catalog: (0, Pointer::NONE),
            space: (0, Pointer::NONE),
            pages: (0, Pointer::NONE),
            extents: vec![Extent { first: geometry.metadata.0, count: geometry.metadata.1 }],
            thresholds: [0; 4],
            discard_rate: 0,
            unknown: (0, Vec::new()),
        };
        Tape { superblock, bytes: vec![0; BLOCKS as usize * BLOCK], seq: log_from, batch: 50, durable: 49 }
    }

    /// A batch of so many blocks, without those listed.
    fn write(&mut self, salt: u64, blocks: u64, without: &[u64]) {
        let first =
            LogHeader { pool: POOL, salt, seq: self.seq, batch: self.batch, index: 0, count: 0, durable: self.durable };
        let records = vec![0; blocks as usize * PAYLOAD_LEN];
        for (block, nth) in batch_blocks(first, &records).zip(0..) {
            if !without.contains(&nth) {
                self.put(self.seq + nth, &block[..]);
            }
        }
        self.durable = self.batch;
        self.seq += blocks;
        self.batch += 1;
    }

    fn put(&mut self, seq: u64, block: &[u8]) {
        self.bytes[(seq % BLOCKS) as usize * BLOCK..][..BLOCK].copy_from_slice(block);
    }

    fn damage(&mut self, seq: u64) {
        self.bytes[(seq % BLOCKS) as usize * BLOCK + 100] ^= 1;
    }

    fn scan(&self) -> Result<Found, StoreError> {
        Log::new(&self.superblock, &self.bytes).scan()
    }

    /// It counts up to this block, and these batches.
    fn ends(&self, end: u64, batches: usize) -> Found {
        let found = self.scan().unwrap();
        assert_eq!((found.end, found.batches.len()), (end, batches), "{found:?}");
        found
    }

    fn is_damaged(&self, why: &str) {
        let error = self.scan().unwrap_err();
        assert!(error.reason() == "damaged" && error.to_string().contains(why), "{error}");
    }
}

#[test]
fn an_empty_ring_and_whole_batches() {
    for from in [0, 7, 255, 1000] {
        let mut tape = Tape::new(from, &[(1, from)]);
        let found = tape.ends(from, 0);
        assert_eq!((found.next_batch, found.new_batch, found.last_start_unseen), (50, 50, true));
        for blocks in [1, 3, 60, 1] {
            tape.write(1, blocks, &[]);
        }
        let found = tape.ends(from + 65, 4);
        assert_eq!((found.next_batch, found.new_batch, found.last_start_unseen), (54, 54, false));
    }
}

#[test]
fn a_ring_that_is_full_and_one_that_went_round() {
    let mut tape = Tape::new(300, &[(1, 10)]);
    (0..4).for_each(|_| tape.write(1, 64, &[]));
    tape.ends(556, 4);
    // The tail is further on: what is before it are old blocks, and what is behind the head, too.
    tape.superblock.log_from = 428;
    tape.superblock.batch_from = 52;
    tape.ends(556, 2);
    // The tail was moved and the ring went round, but the superblock that says so is lost.
    tape.superblock.log_from = 300;
    tape.superblock.batch_from = 50;
    tape.write(1, 1, &[]);
    tape.is_damaged("is durable");
}

#[test]
fn a_block_from_so_far_on_that_the_ring_has_come_round() {
    let mut tape = Tape::new(300, &[(1, 10)]);
    (tape.seq, tape.batch, tape.durable) = (556, 60, 49);
    tape.write(1, 1, &[]);
    tape.is_damaged("cannot be read any more");
}

#[test]
fn what_is_missing_of_the_last_batch_is_a_torn_tail() {
    for missing in [&[0][..], &[1], &[2], &[0, 1], &[0, 1, 2]] {
        let mut tape = Tape::new(254, &[(1, 254)]);
        tape.write(1, 2, &[]);
        tape.write(1, 3, missing);
        let found = tape.ends(256, 1);
        assert_eq!(found.new_batch, if missing.len() == 3 { 51 } else { 52 }, "above all that was seen");
    }
}

#[test]
fn what_is_missing_before_is_damage() {
    let mut tape = Tape::new(0, &[(1, 0)]);
    (0..3).for_each(|_| tape.write(1, 2, &[]));
    tape.ends(6, 3);
    for seq in [0, 1, 2, 3] {
        tape.damage(seq);
        tape.is_damaged("is durable");
        tape.damage(seq);
    }
    // Nothing says that the last one was durable.
    tape.damage(4);
    tape.ends(4, 2);
    tape.damage(5);
    tape.ends(4, 2);
}

#[test]
fn a_start_begins_behind_the_last_whole_batch() {
    // The first start leaves a batch of five without its first block; the second one writes over its front.
    let mut tape = Tape::new(0, &[(1, 0)]);
    tape.write(1, 2, &[]);
    tape.write(1, 5, &[0]);
    let found = tape.ends(2, 1);
    tape.superblock.spans.push(LogSpan { salt: 2, from: 2 });
    tape.ends(2, 1);
    (tape.seq, tape.batch, tape.durable) = (found.end, found.new_batch, found.next_batch - 1);
    tape.write(2, 1, &[]);
    tape.write(2, 1, &[]);
    let found = tape.ends(4, 3);
    assert_eq!((found.next_batch, found.new_batch), (54, 54));
    // A torn one again, at the place where a block of the first start lies.
    tape.write(2, 3, &[0]);
    tape.ends(4, 3);
    // After a checkpoint the first start is forgotten; its blocks stay what they are.
    tape.superblock.spans.remove(0);
    (tape.superblock.log_from, tape.superblock.batch_from) = (4, 54);
    tape.ends(4, 0);
}

#[test]
fn a_start_proves_what_it_has_read() {
    let mut tape = Tape::new(0, &[(1, 0)]);
    tape.write(1, 2, &[]);
    tape.write(1, 2, &[]);
    tape.superblock.spans.push(LogSpan { salt: 2, from: 4 });
    tape.ends(4, 2);
    tape.damage(3);
    tape.is_damaged("a later start has read up to block 4");
}

#[test]
fn a_start_that_no_superblock_knows_is_damage() {
    let mut tape = Tape::new(0, &[(1, 0)]);
    tape.write(1, 2, &[]);
    tape.write(3, 1, &[]);
    tape.is_damaged("cannot be read any more");
}

#[test]
fn blocks_elsewhere_and_of_others_do_not_count() {
    let mut tape = Tape::new(0, &[(1, 0)]);
    tape.write(1, 2, &[]);
    let block = tape.bytes[..BLOCK].to_vec();
    tape.put(2, &block);
    tape.put(77, &block);
    tape.ends(2, 1);
    let other = LogHeader { pool: Uuid::from_u128(5), salt: 1, seq: 2, batch: 51, index: 0, count: 1, durable: 50 };
    tape.put(2, &other.close(&[])[..]);
    tape.ends(2, 1);
    for (seq, batch) in [(u64::MAX, 51), (u64::MAX - 253, u64::MAX), (2, u64::MAX)] {
        let absurd = LogHeader { pool: POOL, salt: 1, seq, batch, index: 0, count: 9, durable: batch - 1 };
        tape.put(2, &absurd.close(&[])[..]);
        tape.ends(2, 1);
    }
}
