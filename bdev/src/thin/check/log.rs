//! The log, batch by batch, and where it ends.
//!
//! A batch that is not whole ends the log. That is what a crash leaves, unless somebody has said that the batch was
//! durable: a superblock, by naming a later start, or a later block of the log. Batches are numbered one after the other;
//! a start begins above every number that it saw, so that what an earlier one left of a batch is never taken for its own.

use super::medium::Medium;
use super::report::{Findings, Flaw};
use crate::thin::format::{Geometry, LogHeader, LogSpan, Record, Records, Superblock};

/// Numbers of blocks and batches stay below it.
pub(super) const END: u64 = 1 << 62;

/// A batch that counts.
pub(super) struct Batch {
    pub(super) number: u64,
    /// Where its first block lies.
    pub(super) block: u64,
    pub(super) records: Vec<Record>,
}

/// See the module's description.
pub(super) struct Log<'a> {
    superblock: &'a Superblock,
    /// The next block.
    seq: u64,
    /// The next batch.
    batch: u64,
    /// Behind the last block that there can be.
    end: u64,
}

/// What lies in the place of a block.
enum Found {
    /// The block that belongs there.
    Block(LogHeader, Vec<u8>),
    /// Something else, or an older one.
    Other,
    Unreadable(String),
}

impl<'a> Log<'a> {
    /// `None`: it cannot be read at all.
    pub(super) fn new(superblock: &'a Superblock, medium: &Medium, findings: &mut Findings) -> Option<Log<'a>> {
        let Superblock { log_from, batch_from, spans, geometry, .. } = superblock;
        let Geometry { log_start, log_blocks, .. } = *geometry;
        // `check` has seen that the log lies inside; on a medium that was cut it may not.
        let there = log_blocks.min(medium.len().saturating_sub(log_start));
        let end = log_from.saturating_add(there);
        let first = spans.first().map_or(u64::MAX, |span| span.from);
        let last = spans.last().map_or(0, |span| span.from);
        if first > *log_from || *log_from >= END || *batch_from >= END || last > log_from + log_blocks {
            findings.add(Flaw::LogSpan, None, None, || {
                format!("the log counts from block {log_from} on, and its starts were at blocks {first} to {last}")
            });
            return None;
        }
        Some(Log { superblock, seq: *log_from, batch: *batch_from, end })
    }

    /// The next batch; `None`: there is none, or none that can be believed.
    pub(super) fn next(&mut self, medium: &mut Medium, findings: &mut Findings) -> Option<Batch> {
        let (first, batch) = (self.seq, self.batch);
        let Some((header, mut payload)) = self.expected(medium, findings, first)? else {
            return self.ends(medium, findings);
        };
        let starts = self.superblock.spans.iter().any(|span| span.from == first);
        let follows = header.batch == batch || starts && header.batch > batch;
        if !follows || header.index != 0 || u64::from(header.count) > self.end - first {
            return self.wrong(findings, &header);
        }
        for index in 1..header.count {
            let Some((part, more)) = self.expected(medium, findings, first + u64::from(index))? else {
                return self.ends(medium, findings);
            };
            if part != (LogHeader { index, seq: part.seq, durable: part.durable, ..header }) {
                return self.wrong(findings, &part);
            }
            payload.extend_from_slice(&more);
        }
        self.seq = first + u64::from(header.count);
        let batch = header.batch;
        self.batch = batch.saturating_add(1);
        let block = self.superblock.geometry.log_block(first);
        match Records::parse(&payload) {
            Ok(records) => Some(Batch { number: batch, block, records }),
            Err(error) => {
                findings.add(Flaw::LogRecord, Some(block), None, || format!("batch {batch} of the log: {error}"));
                None
            }
        }
    }

    /// A block, or `Some(None)` if it is not there, or `None` if nobody can know.
    fn expected(&self, medium: &mut Medium, findings: &mut Findings, seq: u64) -> Option<Option<(LogHeader, Vec<u8>)>> {
        if seq >= self.end {
            return Some(None);
        }
        match self.find(medium, seq) {
            Found::Block(header, payload) => Some(Some((header, payload))),
            Found::Other => Some(None),
            Found::Unreadable(error) => {
                let block = self.superblock.geometry.log_block(seq);
                findings.add(Flaw::LogUnreadable, Some(block), None, || {
                    format!("block {seq} of the log cannot be read: {error}")
                });
                None
            }
        }
    }

    fn find(&self, medium: &mut Medium, seq: u64) -> Found {
        let bytes = match medium.read(self.superblock.geometry.log_block(seq)) {
            Ok(bytes) => bytes,
            Err(error) => return Found::Unreadable(error.to_string()),
        };
        match LogHeader::open(&bytes, self.superblock.pool) {
            Some((header, payload)) if header.seq == seq && Some(header.salt) == self.salt(seq) => {
                Found::Block(header, payload.to_vec())
            }
            _ => Found::Other,
        }
    }

    /// What blocks of the start carry that wrote this one.
    fn salt(&self, seq: u64) -> Option<u64> {
        let spans = &self.superblock.spans;
        spans.iter().rev().find(|span: &&LogSpan| span.from <= seq).map(|span| span.salt)
    }

    fn wrong(&self, findings: &mut Findings, found: &LogHeader) -> Option<Batch> {
        let LogHeader { seq, batch, index, count, .. } = *found;
        let block = self.superblock.geometry.log_block(seq);
        findings.add(Flaw::LogOrder, Some(block), None, || {
            format!(
                "block {seq} of the log is number {index} of {count} of batch {batch}, and batch {} comes next",
                self.batch
            )
        });
        None
    }

    /// The next batch is not whole: whether that is a crash or damage.
    fn ends(&mut self, medium: &mut Medium, findings: &mut Findings) -> Option<Batch> {
        let (seq, batch) = (self.seq, self.batch);
        let block = Some(self.superblock.geometry.log_block(seq));
        let start = self.superblock.spans.last().map_or(0, |span| span.from);
        if seq < start {
            findings.add(Flaw::LogGap, block, None, || {
                format!("batch {batch} of the log, from block {seq} on, is not whole, and a later start began at block {start}")
            });
            return None;
        }
        for place in seq..self.end {
            let at = self.superblock.geometry.log_block(place);
            let bytes = match medium.read(at) {
                Ok(bytes) => bytes,
                Err(error) => {
                    findings.add(Flaw::LogUnreadable, Some(at), None, || format!("block {place} of the log: {error}"));
                    return None;
                }
            };
            let Some((later, _)) = LogHeader::open(&bytes, self.superblock.pool) else { continue };
            let proof = match self.proves(&later, place) {
                Some(Flaw::LogGap) => format!("block {} says that batch {} is durable", later.seq, later.durable),
                Some(_) => format!("block {} is of a superblock that is lost", later.seq),
                None => continue,
            };
            findings.add(self.proves(&later, place).unwrap_or(Flaw::LogGap), block, None, || {
                format!("batch {batch} of the log, from block {seq} on, is not whole, and {proof}")
            });
            return None;
        }
        None
    }

    /// What a block behind the last whole batch proves: that there was more, or that there was a later superblock.
    fn proves(&self, later: &LogHeader, place: u64) -> Option<Flaw> {
        let LogHeader { salt, seq, batch, durable, .. } = *later;
        let Superblock { log_from, batch_from, spans, geometry, .. } = self.superblock;
        if seq % geometry.log_blocks != place % geometry.log_blocks || seq < self.seq {
            return None;
        }
        let of_its_start = self.salt(seq) == Some(salt);
        let known = spans.iter().any(|span| span.salt == salt);
        if of_its_start && seq - log_from >= geometry.log_blocks || !known && batch >= *batch_from {
            return Some(Flaw::LogNewer);
        }
        (of_its_start && durable >= self.batch).then_some(Flaw::LogGap)
    }
}
