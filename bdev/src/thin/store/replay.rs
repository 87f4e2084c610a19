//! Finds out what of the log counts: pure, over the ring as it was read.
//!
//! Batches are followed from where the superblock says, each of them whole, up to one that is not. Its blocks may have
//! been under way when the power went, in any order, and nobody was told that they were durable: a *torn tail*, the end
//! of the log. It is damage instead if something proves that more was there:
//!
//! - a later block of a start that the superblock knows calls the batch durable, or one after it;
//! - a start that the superblock knows began writing further behind, having read up to there;
//! - a block that only a later superblock would explain (of an unknown start, or from so far on that the ring has come
//!   round): then the newest superblock is lost, and with it nobody knows what.
//!
//! A start writes with a salt of its own, from right behind the last whole batch on, and with numbers of batches above
//! all that it saw in the ring. So what it left of a torn tail is never taken for its own, nor, once the salt is forgotten,
//! for that of an unknown start: its batch is below those that the superblock says count.

use std::ops::Range;

use super::error::StoreError;
use crate::thin::format::{BLOCK, LogHeader, Record, Records, Superblock};

/// Numbers of blocks and batches stay below it.
const END: u64 = 1 << 62;

/// The ring in memory.
pub(super) struct Ring<'a> {
    superblock: &'a Superblock,
    bytes: &'a [u8],
}

/// What counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The blocks of each batch, in order.
    pub(super) batches: Vec<Range<u64>>,
    /// The block after them.
    pub(super) end: u64,
    /// The batch after them, if nothing else was begun.
    pub(super) next_batch: u64,
    /// The number of the next batch: above all that were seen.
    pub(super) new_batch: u64,
    /// Whether the last start has left no block.
    pub(super) last_start_unseen: bool,
}

impl<'a> Ring<'a> {
    /// Of these blocks, all of the ring.
    pub(super) fn new(superblock: &'a Superblock, bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len() as u64, superblock.geometry.log_blocks * BLOCK as u64, "the whole ring");
        Ring { superblock, bytes }
    }

    fn len(&self) -> u64 {
        self.superblock.geometry.log_blocks
    }

    /// The block of the log that lies at a place of the ring.
    fn at(&self, place: u64) -> Option<(LogHeader, &[u8])> {
        let bytes = self.bytes[place as usize * BLOCK..].first_chunk()?;
        let (header, payload) = LogHeader::open(bytes, self.superblock.pool)?;
        (header.seq % self.len() == place && header.seq < END && header.batch < END).then_some((header, payload))
    }

    /// A block by its number.
    fn block(&self, seq: u64) -> Option<(LogHeader, &[u8])> {
        self.at(seq % self.len()).filter(|(header, _)| header.seq == seq)
    }

    /// Which start wrote a block.
    fn span(&self, seq: u64) -> Option<usize> {
        self.superblock.spans.iter().rposition(|span| span.from <= seq)
    }

    /// Where the next start began writing.
    fn span_end(&self, span: usize) -> u64 {
        self.superblock.spans.get(span + 1).map_or(u64::MAX, |next| next.from)
    }

    /// The number of the whole batch that begins here, and how many blocks it has.
    fn batch(&self, seq: u64, least: u64) -> Option<(u64, u64)> {
        let span = self.span(seq)?;
        let (first, _) = self.block(seq)?;
        let starts = self.superblock.spans[span].from == seq;
        let expected = first.batch == least || (starts && first.batch > least);
        let end = seq + u64::from(first.count);
        let fits = end <= self.span_end(span) && end - self.superblock.log_from <= self.len();
        let part = |index: u16| {
            let expected = LogHeader { seq: seq + u64::from(index), index, ..first };
            self.block(expected.seq).is_some_and(|(header, _)| header == expected)
        };
        let ours = first.salt == self.superblock.spans[span].salt;
        (expected && fits && ours && (0..first.count).all(part)).then_some((first.batch, end))
    }

    /// What counts.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if something is missing.
    pub(super) fn scan(&self) -> Result<Found, StoreError> {
        let superblock = self.superblock;
        if self.span(superblock.log_from).is_none() || superblock.log_from >= END || superblock.batch_from >= END {
            return Err(StoreError::damaged("the superblock does not say which start wrote the log"));
        }
        let (mut batches, mut seq, mut batch) = (Vec::new(), superblock.log_from, superblock.batch_from);
        while let Some((found, end)) = self.batch(seq, batch) {
            batches.push(seq..end);
            (seq, batch) = (end, found + 1);
        }
        let (highest, last_start_unseen) = self.look_behind(seq, batch)?;
        let new_batch = batch.max(highest + 1);
        Ok(Found { batches, end: seq, next_batch: batch, new_batch, last_start_unseen })
    }

    /// Looks for a proof that more was there; gives the highest batch that was seen.
    fn look_behind(&self, end: u64, batch: u64) -> Result<(u64, bool), StoreError> {
        let spans = &self.superblock.spans;
        let missing =
            |what: String| StoreError::Damaged(format!("batch {batch} of the log is missing at block {end}: {what}"));
        let last = spans.last().expect("a superblock has a start");
        if last.from > end {
            return Err(missing(format!("a later start has read up to block {}", last.from)));
        }
        let (mut highest, mut unseen) = (0, true);
        for (header, _) in (0..self.len()).filter_map(|place| self.at(place)) {
            highest = highest.max(header.batch);
            unseen &= header.salt != last.salt;
            let LogHeader { seq, salt, durable, .. } = header;
            if seq < end {
                continue;
            }
            let known = spans.iter().any(|span| span.salt == salt);
            let written_then = self.span(seq).is_some_and(|span| spans[span].salt == salt);
            if written_then && durable >= batch {
                return Err(missing(format!("block {seq} says that batch {durable} is durable")));
            }
            let later = !known && header.batch >= self.superblock.batch_from;
            if later || (written_then && seq - self.superblock.log_from >= self.len()) {
                let what = format!("block {seq} of the log is of a superblock that cannot be read any more");
                return Err(StoreError::Damaged(what));
            }
        }
        Ok((highest, unseen))
    }

    /// The records of a batch.
    ///
    /// # Errors
    /// If they make no sense.
    pub(super) fn records(&self, batch: &Range<u64>) -> Result<Vec<Record>, StoreError> {
        let mut payload = Vec::new();
        for (_, part) in batch.clone().filter_map(|seq| self.block(seq)) {
            payload.extend_from_slice(part);
        }
        Records::parse(&payload).map_err(|error| {
            StoreError::Damaged(format!("the batch of the log at block {} cannot be read: {error}", batch.start))
        })
    }
}
