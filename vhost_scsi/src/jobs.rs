//! Commands that look at data on its way: they get memory of the worker's own, wait until they may touch their range,
//! and do their tasks one after the other.
//!
//! In this order, so that nobody waits in a circle: memory first, then the range (`fence.rs`). Who has both waits for the
//! device alone. A job without a range to itself gives the memory to others between two pieces, if they wait for it.

use pollux_core::{Cx, IoError, IoFlags, Op, SegmentList, segment};
use pollux_scsi::{Job, Order, Outcome, Task};

use crate::barred::Why;
use crate::line::Charge;
use crate::message::UnitId;
use crate::own::Own;
use crate::port::{Answer, Long, Port};
use crate::serve::{Encoded, Given, answer_of, to_u32};
use crate::worker::ScsiWorker;

/// A job in a slot.
pub(crate) struct Working {
    pub(crate) job: Job,
    /// None while it waits for memory.
    own: Option<Own>,
    /// What it has claimed.
    pub(crate) claim: Option<Order>,
}

impl Working {
    /// What its present task takes of its unit. Without data of the guest's there is no end to what one command asks for.
    pub(crate) const fn charge(&self, len: u64) -> Charge {
        Charge { slots: Charge::plain(len).slots, bulk: self.job.data_out() == 0 }
    }

    /// Where the data of its present task is.
    pub(crate) fn data(&mut self, op: Op, len: u64) -> SegmentList {
        self.own.as_mut().expect("a job at work has memory").data(op, len)
    }
}

impl ScsiWorker {
    /// Starts a command that looks at data on its way.
    pub(crate) fn start_job(&mut self, port: &mut Port, given: &Given, job: Job, cx: &mut Cx<'_>) {
        let data_out = job.data_out();
        if data_out > given.data_out {
            self.overrun(port, given);
            return;
        }
        let slot = self.claim_slot(port, given, data_out);
        slot.started = cx.now;
        slot.residual = to_u32(given.residual(data_out));
        slot.long = Some(Box::new(Long::Job(Working { job, own: None, claim: None })));
        self.luns.get_mut(given.lun).inflight += 1;
        if self.memory_is_waited_for() {
            self.bar(port, given.head, Why::Memory);
            self.look_again();
        } else {
            self.lend(port, given.head, cx);
        }
    }

    /// Gives a job memory, if there is any, and has it go on.
    pub(crate) fn lend(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        match self.pool.take(port.key.session) {
            Some(own) => {
                working(port, head).own = Some(own);
                self.enter(port, head, cx);
            }
            None => self.bar(port, head, Why::Memory),
        }
    }

    /// A job that has memory comes to its range, or to the next piece of it.
    fn enter(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        if working(port, head).job.is_exclusive() {
            self.claim_range(port, head, cx);
        } else if !self.waits_for_claims(port, head, cx) {
            self.work(port, head, cx);
        }
    }

    /// Does a job's tasks up to the next that the device does, or to its end.
    pub(crate) fn work(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        let slot = &mut port.slots[usize::from(head)];
        let Some(Long::Job(Working { job, own: Some(own), .. })) = slot.long.as_deref_mut() else {
            unreachable!("a job at work has memory");
        };
        let outcome = loop {
            let (sent, held) = own.pieces();
            let (op, flags, offset, len) = match job.next(sent, held) {
                Task::Fetch { at, len } => {
                    let at = usize::try_from(at).expect("a chain fits into memory");
                    segment::copy_from(slot.pieces.data().as_slice(), at, &mut sent[..len]);
                    own.fetches(len);
                    continue;
                }
                Task::Load { offset, len } => (Op::Read, IoFlags::empty(), offset, len),
                Task::Store { offset, len, flags } => (Op::Write, flags, offset, len),
                Task::Pause => {
                    self.pause(port, head, cx);
                    return;
                }
                Task::End(outcome) => break outcome,
            };
            (slot.op, slot.flags, slot.offset, slot.len) = (op, flags, offset, len as u64);
            self.go(port, head, cx);
            return;
        };
        self.end_job(port, head, &outcome, cx);
    }

    /// Between two pieces.
    fn pause(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        if !self.memory_is_waited_for() {
            self.enter(port, head, cx);
            return;
        }
        let own = working(port, head).own.take();
        self.bar(port, head, Why::Memory);
        self.let_go(port, own);
    }

    /// A device has done a job's task, or the job was ended while it waited.
    pub(crate) fn task_done(&mut self, port: &mut Port, head: u16, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let slot = &port.slots[usize::from(head)];
        match (slot.aborted, result) {
            (None, Ok(())) => self.work(port, head, cx),
            (None, Err(error)) => {
                let outcome = working(port, head).job.fail_outcome(error);
                self.end_job(port, head, &outcome, cx);
            }
            (Some(response), _) => {
                let residual = slot.residual_of_nothing();
                self.leave(port, head, false, cx);
                port.answer_slot(head, &Answer::response(response, residual));
            }
        }
    }

    fn end_job(&mut self, port: &mut Port, head: u16, outcome: &Outcome, cx: &mut Cx<'_>) {
        let unit = self.leave(port, head, *outcome == Outcome::GOOD, cx);
        let sense = Encoded::new(&self.units.look(unit).logical, outcome.sense.as_ref());
        let residual = u64::from(port.slots[usize::from(head)].residual);
        port.answer_slot(head, &answer_of(outcome, &sense, residual, 0));
    }

    /// A job ends: it gives back what it has.
    fn leave(&mut self, port: &mut Port, head: u16, good: bool, cx: &mut Cx<'_>) -> UnitId {
        let slot = &mut port.slots[usize::from(head)];
        let lun = self.luns.get_mut(slot.lun);
        lun.inflight -= 1;
        lun.stats.ended(slot.op, slot.len, cx.now.saturating_sub(slot.started), good);
        let unit = lun.unit;
        let job = working(port, head);
        let (own, claim) = (job.own.take(), job.claim.take());
        self.let_go(port, own);
        if let Some(order) = claim {
            self.release_claim(unit, order);
        }
        unit
    }

    /// Gives a claim up and tells those who wait for its range.
    pub(crate) fn release_claim(&mut self, unit: UnitId, order: Order) {
        let waiters = self.units.look(unit).logical.release(order);
        self.tell(unit, waiters);
    }

    fn let_go(&mut self, port: &Port, own: Option<Own>) {
        self.give_back(own, port.key.session);
    }

    /// A session's job or copy has no use for its memory any more.
    pub(crate) fn give_back(&mut self, own: Option<Own>, session: u64) {
        let Some(own) = own else { return };
        self.pool.give(own, session);
        if self.memory_is_waited_for() {
            self.look_again();
        }
    }
}

/// The job in a slot.
pub(crate) fn working(port: &mut Port, head: u16) -> &mut Working {
    match port.slots[usize::from(head)].long.as_deref_mut() {
        Some(Long::Job(working)) => working,
        _ => unreachable!("the slot has a job"),
    }
}
