//! Appends to the log: what came before is made durable, then a batch is written with FUA; one at a time, in order.
//!
//! One barrier serves all batches that wait when it is submitted. A batch is durable when all of its blocks are, and only
//! then the next one is written; so there is one torn tail at most.

use std::collections::VecDeque;

use uuid::Uuid;

use super::disk::{Class, Disk};
use super::labels;
use super::{BatchId, Job};
use crate::thin::format::{BLOCK, Geometry, LogHeader, PAYLOAD_LEN, batch_blocks};

/// Blocks of a batch at most.
const MOST_BLOCKS: u64 = 256;
/// Blocks that are written with one request at most.
const PIECE: usize = 32;

struct Batch {
    id: BatchId,
    /// Empty: it is a barrier alone.
    records: Vec<u8>,
    seq: u64,
    number: u64,
}

enum Stage {
    Idle,
    /// A barrier runs that serves so many of the batches that wait.
    Barrier(usize),
    /// So many requests are under way for the batch with this number.
    Writing {
        id: BatchId,
        number: u64,
        left: u32,
    },
}

/// See the module's description.
pub(super) struct Log {
    geometry: Geometry,
    pool: Uuid,
    salt: u64,
    /// The first block that counts.
    tail: u64,
    /// The block that the next batch begins with, and its number.
    head: u64,
    number: u64,
    /// The last batch of the log that is durable.
    durable: u64,
    waiting: VecDeque<Batch>,
    stage: Stage,
    /// How many of those that wait have had their barrier.
    served: usize,
    last_id: u64,
    /// The last one that is durable.
    durable_id: u64,
}

/// Where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The next block.
    pub(super) seq: u64,
    /// The next batch.
    pub(super) batch: u64,
    /// The last one that was appended.
    pub(super) id: BatchId,
}

impl Log {
    pub(super) fn new(
        geometry: Geometry,
        pool: Uuid,
        salt: u64,
        tail: u64,
        head: u64,
        number: u64,
        durable: u64,
    ) -> Self {
        let (waiting, stage) = (VecDeque::new(), Stage::Idle);
        let (served, last_id, durable_id) = (0, 0, 0);
        Log { geometry, pool, salt, tail, head, number, durable, waiting, stage, served, last_id, durable_id }
    }

    /// Where the next batch goes.
    pub(super) const fn position(&self) -> Position {
        Position { seq: self.head, batch: self.number, id: BatchId(self.last_id) }
    }

    /// Whether everything before a position is durable.
    pub(super) const fn is_durable(&self, position: Position) -> bool {
        self.durable_id >= position.id.0
    }

    /// The last batch that is durable.
    pub(super) const fn durable_batch(&self) -> u64 {
        self.durable
    }

    /// Blocks that count or are about to.
    pub(super) const fn used(&self) -> u64 {
        self.head - self.tail
    }

    /// Bytes of records that a batch may have.
    pub(super) fn room(&self) -> usize {
        let free = self.geometry.log_blocks - self.used();
        (free as usize * PAYLOAD_LEN).min(self.most())
    }

    /// The same of an empty log.
    pub(super) fn most(&self) -> usize {
        MOST_BLOCKS.min(self.geometry.log_blocks / 4) as usize * PAYLOAD_LEN
    }

    /// What lies before is not needed any more.
    pub(super) fn cut(&mut self, tail: u64) {
        assert!((self.tail..=self.head).contains(&tail), "the log's tail moves towards its head");
        self.tail = tail;
    }

    /// Takes a batch.
    ///
    /// # Panics
    /// If there is no room for it.
    pub(super) fn append(&mut self, records: Vec<u8>) -> BatchId {
        assert!(records.len() <= self.room(), "who appends has asked how much room there is");
        self.last_id += 1;
        let id = BatchId(self.last_id);
        let (seq, number) = (self.head, self.number);
        if !records.is_empty() {
            self.head += records.len().div_ceil(PAYLOAD_LEN) as u64;
            self.number += 1;
        }
        self.waiting.push_back(Batch { id, records, seq, number });
        id
    }

    /// Names a batch that never becomes durable.
    pub(super) const fn refuse(&mut self) -> BatchId {
        self.last_id += 1;
        BatchId(self.last_id)
    }

    /// Whether nothing waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && matches!(self.stage, Stage::Idle)
    }

    /// Whether [`Log::advance`] can do something.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Idle) && !self.waiting.is_empty()
    }

    /// The barrier has completed.
    pub(super) fn barrier_done(&mut self) {
        if let Stage::Barrier(serves) = self.stage {
            self.served = serves;
            self.stage = Stage::Idle;
        }
    }

    /// A piece of the batch is durable.
    pub(super) fn piece_done(&mut self, done: &mut Vec<BatchId>) {
        if let Stage::Writing { id, number, left } = &mut self.stage {
            *left -= 1;
            if *left == 0 {
                self.durable = *number;
                self.durable_id = id.0;
                done.push(*id);
                self.stage = Stage::Idle;
            }
        }
    }

    /// Nothing more is to be written.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
        self.stage = Stage::Idle;
    }

    /// Starts what comes next.
    pub(super) fn advance(&mut self, disk: &mut Disk<Job>, done: &mut Vec<BatchId>) {
        while let Stage::Idle = self.stage {
            if self.waiting.is_empty() {
                return;
            }
            if self.served == 0 {
                self.stage = Stage::Barrier(self.waiting.len());
                return disk.flush(Job::LogBarrier, labels::COMMIT_BARRIER);
            }
            let Some(batch) = self.waiting.pop_front() else { return };
            self.served -= 1;
            if batch.records.is_empty() {
                self.durable_id = batch.id.0;
                done.push(batch.id);
            } else {
                self.write(&batch, disk);
            }
        }
    }

    fn write(&mut self, batch: &Batch, disk: &mut Disk<Job>) {
        let Batch { id, seq, number, .. } = *batch;
        let first = LogHeader {
            pool: self.pool,
            salt: self.salt,
            seq,
            batch: number,
            index: 0,
            count: 0,
            durable: self.durable,
        };
        let (mut bytes, mut start, mut left) = (Vec::new(), seq, 0);
        let blocks = batch.records.len().div_ceil(PAYLOAD_LEN) as u64;
        for (block, at) in batch_blocks(first, &batch.records).zip(seq..) {
            bytes.extend_from_slice(&*block);
            let ends = at + 1 == seq + blocks || (at + 1).is_multiple_of(self.geometry.log_blocks);
            if ends || bytes.len() == PIECE * BLOCK {
                let place = self.geometry.log_block(start);
                disk.write(Job::LogPiece, Class::Urgent, place, &bytes, true, labels::COMMIT_LOG);
                (start, left) = (at + 1, left + 1);
                bytes.clear();
            }
        }
        self.stage = Stage::Writing { id, number, left };
    }
}
