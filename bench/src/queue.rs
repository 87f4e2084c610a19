//! One request queue with its slots, and the path of an I/O through it.
//!
//! A slot is a request that is laid once (descriptors, header, place for the response, data) and sent again and again;
//! only its LBA changes. [`Queue::visit`] takes all answers that wait, starts each slot's next request, and publishes them
//! together. A slot is idle (`start` is 0) or in flight, and an answer counts only if its slot was in flight.

mod setup;

use std::sync::Arc;

use crate::BenchError;
use crate::event::Event;
use crate::layout::{QueuePlace, Shape};
use crate::memory::Memory;
use crate::ring::Ring;
use crate::run::Run;
use crate::scsi::{Op, UNMAP_LEN, Wire, write_unmap_list};
use crate::work::{Data, Job, Work};

pub(crate) use setup::QueueParts;

/// No slot has this head.
const NONE: u16 = u16::MAX;
/// Of so many batches the client's own time is measured in one: reading the clock takes time, too.
const SAMPLE: u64 = 16;

/// What all requests of a pass have in common.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) wire: Wire,
    pub(crate) shape: Shape,
    /// Blocks of one request.
    pub(crate) blocks: u32,
    /// The block where request 0 is.
    pub(crate) first: u64,
}

struct Slot {
    /// When it was sent; 0: idle.
    start: u64,
    chunk: u64,
    /// Header and response.
    place: usize,
    data: usize,
    head: u16,
    /// What it is laid for.
    op: Op,
}

impl Slot {
    const fn job(&self) -> Job {
        Job { op: self.op, chunk: self.chunk }
    }
}

/// The eventfds of a queue.
pub(crate) struct Doorbell {
    pub(crate) kick: Event,
    pub(crate) call: Event,
}

/// One request queue.
pub(crate) struct Queue {
    /// Counted over all sessions.
    index: usize,
    memory: Arc<Memory>,
    ring: Ring,
    place: QueuePlace,
    indirect: bool,
    kick_always: bool,
    doorbell: Doorbell,
    pass: Pass,
    slots: Vec<Slot>,
    slot_of_head: Vec<u16>,
    /// Slots that were put into the ring and not yet published.
    fresh: Vec<u16>,
    /// When the next request may start, if there is a gap before each; 0: it has started.
    due: u64,
}

impl Queue {
    /// Lays one slot for an operation.
    #[cold]
    fn lay_slot(&mut self, n: u16, op: Op) {
        let slot = &mut self.slots[usize::from(n)];
        slot.op = op;
        self.pass.wire.lay(&self.memory, slot.place, tag(self.index, n), op);
        let len = match op {
            Op::Read | Op::Write => self.pass.shape.bytes as u32,
            Op::Unmap => UNMAP_LEN,
            Op::Flush => 0,
        };
        self.lay_chain(n, op == Op::Read, len);
    }

    /// Starts a request in every idle slot.
    pub(crate) fn prime<W: Work>(&mut self, work: &mut W, run: &mut Run<'_>) -> Result<(), BenchError> {
        for n in 0..self.slots.len() as u16 {
            if self.slots[usize::from(n)].start == 0
                && let Some(job) = work.next(self.index)
            {
                self.put(n, job, work);
                self.fresh.push(n);
            }
        }
        self.publish(run)
    }

    /// Takes all answers that wait and starts the next requests. Returns how many there were.
    #[inline(always)]
    pub(crate) fn visit<W: Work>(&mut self, work: &mut W, run: &mut Run<'_>) -> Result<u16, BenchError> {
        let waiting = self.ring.waiting(&self.memory);
        if waiting != 0 {
            self.reap(waiting, work, run)?;
        }
        Ok(waiting)
    }

    fn reap<W: Work>(&mut self, waiting: u16, work: &mut W, run: &mut Run<'_>) -> Result<(), BenchError> {
        let now = run.clock.now_after_loads();
        run.last_seen = now;
        if waiting > self.ring.in_flight() {
            return Err(self.broken(format_args!("{waiting} answers to {} requests", self.ring.in_flight())));
        }
        if self.ring.wants_interrupts() {
            self.ring.want_interrupts(&self.memory, false);
        }
        // All lines of the batch are asked for before the first is used.
        for n in 0..waiting {
            let slot = self.slot_of(n)?;
            Wire::prefetch(&self.memory, self.slots[usize::from(slot)].place);
        }
        for n in 0..waiting {
            let slot = self.slot_of(n)?;
            self.take(slot, now, work, run)?;
        }
        self.ring.advance(&self.memory, waiting);
        self.publish(run)?;
        let counts = &mut run.counts;
        counts.batches += 1;
        if counts.batches.is_multiple_of(SAMPLE) {
            counts.busy_ticks += run.clock.now_after_loads() - now;
            counts.busy_ios += u64::from(waiting);
        }
        Ok(())
    }

    /// The slot of used element `n`.
    #[inline(always)]
    fn slot_of(&self, n: u16) -> Result<u16, BenchError> {
        let (head, _) = self.ring.used(&self.memory, n);
        match self.slot_of_head.get(head as usize) {
            Some(slot) if usize::from(*slot) < self.slots.len() => Ok(*slot),
            _ => Err(self.broken(format_args!("an answer to request {head}, which was never sent"))),
        }
    }

    /// Takes one answer and starts the slot's next request.
    #[inline(always)]
    fn take<W: Work>(&mut self, n: u16, now: u64, work: &mut W, run: &mut Run<'_>) -> Result<(), BenchError> {
        let slot = &mut self.slots[usize::from(n)];
        let start = std::mem::replace(&mut slot.start, 0);
        if start == 0 {
            let head = slot.head;
            return Err(self.broken(format_args!("an answer to request {head}, which is not in flight")));
        }
        let mut next = None;
        if Wire::good(&self.memory, slot.place, slot.op) && !W::CHECKED {
            run.counts.tallies[slot.op as usize].record(now - start);
        } else {
            let job = slot.job();
            match self.settle(n, now - start, work, run) {
                Settled::Next => {}
                Settled::Then(job) => next = Some(job),
                Settled::Again => {
                    self.put_again(n, job, start);
                    return Ok(());
                }
            }
        }
        if next.is_none() && !run.stopping {
            if run.gap != 0 {
                self.due = run.clock.now() + run.gap;
                return Ok(());
            }
            next = work.next(self.index);
        }
        if let Some(job) = next {
            self.put(n, job, work);
            self.fresh.push(n);
        }
        Ok(())
    }

    /// An answer that is not simply good, or whose data is compared.
    #[inline(never)]
    fn settle<W: Work>(&mut self, n: u16, latency: u64, work: &mut W, run: &mut Run<'_>) -> Settled {
        let slot = &self.slots[usize::from(n)];
        let good = Wire::good(&self.memory, slot.place, slot.op);
        if !good {
            let answer = Wire::answer(&self.memory, slot.place);
            if answer.retry() {
                run.retries += 1;
                return Settled::Again;
            }
            let lba = self.pass.first + slot.chunk * u64::from(self.pass.blocks);
            run.failed(format_args!("{} of {} blocks at LBA {lba}: {answer}", slot.op.name(), self.pass.blocks));
        }
        let data = Data { memory: &self.memory, at: slot.data, len: self.pass.shape.bytes as usize };
        if good && work.counts(self.index, slot.job()) {
            run.counts.tallies[slot.op as usize].record(latency);
        }
        match work.after(self.index, slot.job(), good, data) {
            Some(job) => Settled::Then(job),
            None => Settled::Next,
        }
    }

    /// Puts a request into the ring, to be published.
    #[inline(always)]
    fn put<W: Work>(&mut self, n: u16, job: Job, work: &mut W) {
        if self.slots[usize::from(n)].op != job.op {
            self.lay_slot(n, job.op);
        }
        let slot = &mut self.slots[usize::from(n)];
        slot.chunk = job.chunk;
        let lba = self.pass.first + job.chunk * u64::from(self.pass.blocks);
        self.pass.wire.address(&self.memory, slot.place, job.op, lba);
        if job.op == Op::Unmap {
            write_unmap_list(&self.memory, slot.data, lba, self.pass.blocks);
        }
        if W::CHECKED {
            work.before(
                self.index,
                job,
                Data { memory: &self.memory, at: slot.data, len: self.pass.shape.bytes as usize },
            );
        }
        self.ring.offer(&self.memory, slot.head);
    }

    /// Puts the same request into the ring once more: its time goes on.
    #[cold]
    fn put_again(&mut self, n: u16, job: Job, start: u64) {
        let slot = &mut self.slots[usize::from(n)];
        slot.start = start;
        let lba = self.pass.first + job.chunk * u64::from(self.pass.blocks);
        self.pass.wire.address(&self.memory, slot.place, job.op, lba);
        self.ring.offer(&self.memory, slot.head);
    }

    /// Publishes what was put into the ring, and kicks if that is wanted.
    #[inline(always)]
    fn publish(&mut self, run: &mut Run<'_>) -> Result<(), BenchError> {
        if self.ring.unpublished() == 0 {
            return Ok(());
        }
        let start = run.clock.now();
        for n in self.fresh.drain(..) {
            self.slots[usize::from(n)].start = start;
        }
        if self.ring.publish(&self.memory) || self.kick_always {
            run.counts.kicks += 1;
            self.doorbell.kick.signal()?;
        }
        Ok(())
    }

    /// Starts the next request if its gap is over.
    pub(crate) fn wake<W: Work>(&mut self, now: u64, work: &mut W, run: &mut Run<'_>) -> Result<(), BenchError> {
        if self.due != 0 && now >= self.due && !run.stopping {
            self.due = 0;
            self.prime(work, run)?;
        }
        Ok(())
    }

    /// When the gap is over; `None` if there is none.
    pub(crate) fn due(&self) -> Option<u64> {
        (self.due != 0).then_some(self.due)
    }

    pub(crate) const fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// When the oldest request in flight was sent.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.slots.iter().map(|slot| slot.start).filter(|start| *start != 0).min()
    }

    /// Asks for an interrupt at the next answer; whether answers wait already.
    pub(crate) fn arm(&mut self) -> bool {
        if !self.ring.wants_interrupts() {
            self.ring.want_interrupts(&self.memory, true);
        }
        self.ring.waiting(&self.memory) != 0
    }

    pub(crate) const fn call(&self) -> &Event {
        &self.doorbell.call
    }

    fn broken(&self, what: std::fmt::Arguments<'_>) -> BenchError {
        BenchError::Target(format!("the target broke the ring of queue {}: {what}", self.index))
    }
}

/// How an answer was taken.
enum Settled {
    /// The slot goes on with new work.
    Next,
    /// It goes on with this.
    Then(Job),
    /// The same again.
    Again,
}

/// The tag of a slot, unique in its session.
const fn tag(queue: usize, slot: u16) -> u64 {
    (queue as u64) << 16 | slot as u64
}

#[cfg(test)]
mod tests;
