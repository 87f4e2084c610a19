//! What a disk may return: an oracle for any mix of reads, writes, flushes and crashes, many of them at once.
//!
//! Every write has a stamp of its own, and a block's content is made from stamp and address, so a block that is read
//! tells who wrote it (and whether it is whole). A read may return a write unless another one that was *submitted after
//! it had completed* has itself completed before the read began, or unless a read that has ended before this one began
//! found another in its place when it had ended: what was replaced once does not come back. All this holds whoever
//! writes: several guests have one model together. After a crash the same holds with "is durable" in place of "has
//! completed": durable is what was written with FUA, and what had completed before a flush was submitted that was
//! acknowledged.

use std::collections::HashMap;
use std::ops::Range;

/// Names a write; 0 is zeroes.
pub type Stamp = u64;
type Time = u64;

#[derive(Clone, Copy, Debug)]
struct Write {
    stamp: Stamp,
    begun: Time,
    ended: Option<Time>,
    /// It succeeded, so it replaces what was before.
    good: bool,
    durable: bool,
    /// When a read ended that began after this one had ended and found another: it was replaced by then.
    replaced: Option<Time>,
}

/// Names an operation of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(u64);

struct Open {
    first: u64,
    count: u64,
    begun: Time,
}

/// The oracle for one disk.
pub struct Model {
    block_size: usize,
    blocks: Vec<Vec<Write>>,
    open: HashMap<OpId, Open>,
    time: Time,
    next_stamp: Stamp,
    keeps_unflushed: bool,
}

const ZEROES: Write = Write { stamp: 0, begun: 0, ended: Some(0), good: true, durable: true, replaced: None };

impl Model {
    /// A disk of zeroes.
    #[must_use]
    pub fn new(block_size: usize, blocks: u64) -> Self {
        assert!(block_size.is_multiple_of(16), "a block holds whole (stamp, address) pairs");
        Model {
            block_size,
            blocks: (0..blocks).map(|_| vec![ZEROES]).collect(),
            open: HashMap::new(),
            time: 1,
            next_stamp: 1,
            keeps_unflushed: true,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// How many blocks the disk has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn tick(&mut self) -> Time {
        self.time += 1;
        self.time
    }

    fn begin(&mut self, first: u64, count: u64) -> OpId {
        let begun = self.tick();
        self.open.insert(OpId(begun), Open { first, count, begun });
        OpId(begun)
    }

    fn end(&mut self, op: OpId) -> (Open, Time) {
        let open = self.open.remove(&op).expect("an operation ends once");
        (open, self.tick())
    }

    /// The content of a block.
    #[must_use]
    pub fn content(&self, stamp: Stamp, block: u64) -> Vec<u8> {
        if stamp == 0 {
            return vec![0; self.block_size];
        }
        let mut bytes = Vec::with_capacity(self.block_size);
        while bytes.len() < self.block_size {
            bytes.extend_from_slice(&stamp.to_le_bytes());
            bytes.extend_from_slice(&block.to_le_bytes());
        }
        bytes
    }

    /// A write of `count` blocks is submitted; gives the bytes to be written.
    pub fn begin_write(&mut self, first: u64, count: u64) -> (OpId, Vec<u8>) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        let data = (first..first + count).flat_map(|block| self.content(stamp, block)).collect();
        (self.begin_change(first, count, stamp), data)
    }

    /// Zeroes (or a discard that reads zero) for a range are submitted.
    pub fn begin_zero(&mut self, first: u64, count: u64) -> OpId {
        self.begin_change(first, count, 0)
    }

    fn begin_change(&mut self, first: u64, count: u64, stamp: Stamp) -> OpId {
        let op = self.begin(first, count);
        let write = Write { stamp, begun: op.0, ended: None, good: false, durable: false, replaced: None };
        for block in first..first + count {
            self.blocks[block as usize].push(write);
        }
        op
    }

    /// It was answered.
    pub fn end_write(&mut self, op: OpId, good: bool, fua: bool) {
        let (open, now) = self.end(op);
        for block in open.first..open.first + open.count {
            let writes = &mut self.blocks[block as usize];
            let write = writes.iter_mut().find(|w| w.begun == open.begun).expect("it was put there when it began");
            (write.ended, write.good, write.durable) = (Some(now), good, good && fua);
        }
        self.prune(open.first..open.first + open.count);
    }

    /// Forgets writes that no read under way can return any more, nor any after a crash.
    fn prune(&mut self, blocks: Range<u64>) {
        let oldest = self.open.values().map(|open| open.begun).min().unwrap_or(self.time);
        let keeps = self.keeps_unflushed;
        for writes in &mut self.blocks[blocks.start as usize..blocks.end as usize] {
            // The latest beginning of a write that has replaced, for everybody, all that had ended before it.
            let settled = |w: &&Write| w.good && (w.durable || !keeps) && w.ended.is_some_and(|ended| ended < oldest);
            if let Some(begun) = writes.iter().filter(settled).map(|w| w.begun).max() {
                writes.retain(|w| w.ended.is_none_or(|ended| ended >= begun));
            }
        }
    }

    /// There will be no crash: what was replaced can be forgotten before it is flushed.
    pub fn without_crashes(&mut self) {
        self.keeps_unflushed = false;
    }

    /// A flush is submitted.
    pub fn begin_flush(&mut self) -> OpId {
        self.begin(0, 0)
    }

    /// It was answered.
    pub fn end_flush(&mut self, op: OpId, good: bool) {
        let (open, _) = self.end(op);
        if good {
            for write in self.blocks.iter_mut().flatten() {
                write.durable |= write.good && write.ended.is_some_and(|ended| ended < open.begun);
            }
        }
    }

    /// A read is submitted.
    pub fn begin_read(&mut self, first: u64, count: u64) -> OpId {
        self.begin(first, count)
    }

    /// It was answered with this data.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn end_read(&mut self, op: OpId, data: &[u8]) -> Result<(), String> {
        let (open, now) = self.end(op);
        for (block, bytes) in (open.first..open.first + open.count).zip(data.chunks(self.block_size)) {
            let begun = |w: &Write| w.begun < now && w.replaced.is_none_or(|replaced| replaced > open.begun);
            let stamp = self.check(block, bytes, begun, |w| w.good && w.ended.is_some_and(|e| e < open.begun))?;
            for write in &mut self.blocks[block as usize] {
                if write.stamp != stamp && write.ended.is_some_and(|ended| ended < open.begun) {
                    write.replaced.get_or_insert(now);
                }
            }
        }
        Ok(())
    }

    /// It failed.
    pub fn end_failed_read(&mut self, op: OpId) {
        let _ = self.end(op);
    }

    /// It will never be answered: a write may take effect at any time from now on.
    pub fn abandon(&mut self, op: OpId) {
        let _ = self.end(op);
    }

    fn check(
        &self,
        block: u64,
        bytes: &[u8],
        begun: impl Fn(&Write) -> bool,
        final_: impl Fn(&Write) -> bool,
    ) -> Result<Stamp, String> {
        let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("a block has eight bytes"));
        if bytes != self.content(stamp, block) {
            return Err(format!("block {block} is torn or foreign: it begins with {:02x?}", &bytes[..32]));
        }
        let writes = &self.blocks[block as usize];
        let may_be = |w: &Write| {
            begun(w) && !writes.iter().any(|later| final_(later) && w.ended.is_some_and(|ended| ended < later.begun))
        };
        if writes.iter().any(|w| w.stamp == stamp && may_be(w)) {
            return Ok(stamp);
        }
        let known: Vec<&Write> = writes.iter().filter(|w| may_be(w)).collect();
        Err(format!("block {block} holds write {stamp}, which it cannot; it may hold one of {known:?}"))
    }

    /// How many blocks of `disk` hold what a read before the crash could not have returned any more: acknowledged writes
    /// that are lost, with or without a promise.
    #[must_use]
    pub fn lost(&self, disk: &[u8]) -> usize {
        let gone = |(block, bytes): &(usize, &[u8])| {
            self.check(*block as u64, bytes, |_| true, |w| w.good && w.ended.is_some()).is_err()
        };
        disk.chunks(self.block_size).enumerate().filter(gone).count()
    }

    /// The power failed and came back, and this is what the whole disk holds now. The model goes on from there.
    ///
    /// # Errors
    /// If something that was acknowledged as durable is lost, or a block holds what was never written to it.
    pub fn crashed(&mut self, disk: &[u8]) -> Result<(), String> {
        self.open.clear();
        for (block, bytes) in disk.chunks(self.block_size).enumerate() {
            let stamp = self.check(block as u64, bytes, |_| true, |w| w.durable)?;
            self.blocks[block] = vec![Write { stamp, ..ZEROES }];
        }
        Ok(())
    }

    /// Forgets history that no longer matters. Nothing may be under way.
    pub fn settle(&mut self) {
        assert!(self.open.is_empty(), "history is dropped with nothing under way");
        for writes in &mut self.blocks {
            let all = writes.clone();
            writes
                .retain(|w| !all.iter().any(|later| later.durable && w.ended.is_some_and(|ended| ended < later.begun)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(model: &mut Model, fua: bool) -> Vec<u8> {
        let (op, data) = model.begin_write(0, 1);
        model.end_write(op, true, fua);
        data
    }

    #[test]
    fn a_read_sees_the_last_write_and_no_other() {
        let mut model = Model::new(512, 1);
        let old = write(&mut model, false);
        let new = write(&mut model, false);
        let read = model.begin_read(0, 1);
        assert!(model.end_read(read, &old).is_err());
        let read = model.begin_read(0, 1);
        assert_eq!(model.end_read(read, &new), Ok(()));
    }

    #[test]
    fn a_read_beside_a_write_sees_either() {
        for pick in [false, true] {
            let mut model = Model::new(512, 1);
            let old = write(&mut model, false);
            let (op, new) = model.begin_write(0, 1);
            let read = model.begin_read(0, 1);
            assert_eq!(model.end_read(read, if pick { &old } else { &new }), Ok(()));
            model.end_write(op, true, false);
        }
    }

    #[test]
    fn of_two_writers_at_once_either_may_win_and_then_it_has_won() {
        for pick in [0, 1] {
            let mut model = Model::new(512, 1);
            let old = write(&mut model, false);
            let both = [model.begin_write(0, 1), model.begin_write(0, 1)];
            let begun_before = model.begin_read(0, 1);
            model.end_write(both[0].0, true, false);
            model.end_write(both[1].0, pick == 0, false);
            let read = model.begin_read(0, 1);
            assert_eq!(model.end_read(read, &both[pick].1), Ok(()), "either, one that failed too");
            let read = model.begin_read(0, 1);
            assert!(model.end_read(read, &both[1 - pick].1).is_err(), "what was replaced has come back");
            let read = model.begin_read(0, 1);
            assert!(model.end_read(read, &old).is_err(), "one of them has succeeded");
            assert_eq!(model.end_read(begun_before, &both[1 - pick].1), Ok(()), "it may have read long ago");
        }
    }

    #[test]
    fn a_crash_may_undo_what_was_not_flushed_and_nothing_else() {
        let zero = vec![0; 512];
        let mut model = Model::new(512, 1);
        write(&mut model, false);
        assert_eq!(model.crashed(&zero), Ok(()));
        write(&mut model, true);
        assert!(model.crashed(&zero).is_err(), "a write with FUA is lost");
        let mut model = Model::new(512, 1);
        let flush = model.begin_flush();
        let one = write(&mut model, false);
        model.end_flush(flush, true);
        assert_eq!(model.crashed(&zero), Ok(()), "the flush was submitted before the write had completed");
        let mut model = Model::new(512, 1);
        assert!(model.crashed(&one).is_err(), "nobody wrote that");
        let data = write(&mut model, false);
        let flush = model.begin_flush();
        model.end_flush(flush, true);
        model.settle();
        assert!(model.crashed(&zero).is_err());
        let mut torn = data.clone();
        torn[300] ^= 1;
        assert!(model.crashed(&torn).is_err());
        assert_eq!(model.crashed(&data), Ok(()));
    }
}
