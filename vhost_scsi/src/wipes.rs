//! Operations that give a unit's whole medium new content (FORMAT UNIT, SANITIZE), as a worker does them.
//!
//! An operation belongs to its unit. The worker that finds one that nobody does takes it: when a command has begun one,
//! when the unit is opened, when its device comes back, and with each command that comes for the unit. It claims the whole
//! medium, so it starts when all that was under way has ended (`fence.rs`; new commands end with NOT READY), and then does
//! one step after the other, each in its turn as bulk that no guest waits for. A worker that loses the device gives the
//! operation back to the unit.
//!
//! A command that waits for the end is *parked* on its worker. All workers are told when it comes. Task management ends
//! such a command at once: a format with it, never a sanitize.

use pollux_core::{Cx, Io, IoError, IoFlags, Op, Tag};
use pollux_scsi::{Begun, Order, Outcome, PATTERN_STEP_LEN, Saved, Wipe, WipeEnd};

use crate::background::{BACKGROUND, parts};
use crate::fence::{Mark, Span};
use crate::line::{Charge, Source};
use crate::message::{Body, Message, UnitId};
use crate::pieces::Pattern;
use crate::port::{Answer, Port};
use crate::request::Response;
use crate::serve::{Given, writable_of};
use crate::worker::ScsiWorker;

/// Tags with this bit, among those of the background, belong to these operations; the unit's number is the rest.
const WIPE: Tag = 1 << 60;

/// How often a step is tried that a shortage of the host has ended.
const TRIES: u32 = 1000;

/// An operation that this worker does.
pub(crate) struct Wiping {
    unit: UnitId,
    wipe: Wipe,
    claim: Order,
    stage: Stage,
    /// The pattern of a pass.
    pattern: Option<(u8, Pattern)>,
    step: Io,
    started: u64,
    /// How often this step was tried.
    tries: u32,
    /// The device goes: no further step.
    leaving: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// So many workers have not said that nothing of before is under way.
    Fencing(usize),
    /// Claims made before it are not gone yet.
    Claims,
    /// A step waits for room.
    Waiting,
    /// A step is with the device.
    Running,
}

/// A command that waits for its unit's operation to end.
pub(crate) struct Waiter {
    unit: UnitId,
    number: u64,
    tag: Tag,
}

impl Wiping {
    const fn charge(&self) -> Charge {
        Charge::step(self.step.op, self.step.len, true)
    }
}

/// Whether a tag of the background is one of these operations'.
pub(crate) const fn is_wipe(tag: Tag) -> bool {
    tag & WIPE != 0
}

const fn unit_of(tag: Tag) -> UnitId {
    (tag & u32::MAX as Tag) as UnitId
}

impl ScsiWorker {
    /// A command has begun an operation.
    pub(crate) fn start_wipe(&mut self, port: &mut Port, given: &Given, begun: Begun) {
        let unit = self.luns.get(given.lun).unit;
        if begun.immediate {
            let residual = given.residual(given.used);
            port.answer(
                given.head,
                writable_of(&self.segments, given.readable),
                &Answer::response(Response::Ok, residual),
            );
        } else {
            let tag = self.park(port, given);
            self.wipe_waiters.push(Waiter { unit, number: begun.number, tag });
        }
        self.adopt_wipe(unit);
    }

    /// The same for one that had to be saved first, and whose command is parked.
    pub(crate) fn wipe_begun(&mut self, tag: Tag, unit: UnitId, begun: Begun) {
        if begun.immediate {
            self.unpark(tag, &Outcome::GOOD);
        } else if let Some(outcome) = self.units.look(unit).logical.wipe_outcome(begun.number) {
            // Another worker has done it before this one was told that it may begin.
            self.unpark(tag, &outcome);
        } else {
            self.wipe_waiters.push(Waiter { unit, number: begun.number, tag });
            self.end_aborted_waiters();
        }
        self.adopt_wipe(unit);
    }

    /// Takes a unit's operation, if there is one that nobody does and the device is there.
    pub(crate) fn adopt_wipe(&mut self, unit: UnitId) {
        let open = self.units.look(unit);
        if !open.is_ready() || !open.logical.is_wipe_due() || self.wipes.iter().any(|wiping| wiping.unit == unit) {
            return;
        }
        let Some(wipe) = open.logical.take_wipe() else { return };
        let (offset, len) = wipe.span();
        let claim = open.logical.claim(offset, len);
        let tag = BACKGROUND | WIPE | Tag::from(unit);
        let step = Io::without_data(tag, Op::Flush, IoFlags::empty(), 0, 0);
        let stage = Stage::Fencing(self.workers);
        self.wipes.push(Wiping { unit, wipe, claim, stage, pattern: None, step, started: 0, tries: 0, leaving: false });
        self.ask_around(unit, Mark::Claim(claim, Span { offset, len }));
    }

    fn wiping(&self, unit: UnitId) -> Option<usize> {
        self.wipes.iter().position(|wiping| wiping.unit == unit)
    }

    /// A worker says that nothing of before is under way there any more.
    pub(crate) fn wipe_fenced(&mut self, unit: UnitId, mark: Mark, cx: &mut Cx<'_>) {
        let Mark::Claim(order, _) = mark else { return };
        let Some(at) = self.wiping(unit).filter(|&at| self.wipes[at].claim == order) else { return };
        if let Stage::Fencing(missing) = self.wipes[at].stage {
            self.wipes[at].stage = if missing > 1 { Stage::Fencing(missing - 1) } else { Stage::Claims };
            self.look_at_wipes(cx);
        }
    }

    /// Lets those begin that have their medium to themselves now.
    pub(crate) fn look_at_wipes(&mut self, cx: &mut Cx<'_>) {
        let waiting = |wiping: &&Wiping| wiping.stage == Stage::Claims;
        let units: Vec<UnitId> = self.wipes.iter().filter(waiting).map(|wiping| wiping.unit).collect();
        for unit in units {
            let Some(at) = self.wiping(unit) else { continue };
            let Wiping { wipe, claim, .. } = &self.wipes[at];
            let (offset, len) = wipe.span();
            if self.units.look(unit).logical.may_start(*claim, offset, len, self.worker) {
                self.next_of_wipe(at, cx);
            }
        }
    }

    fn next_of_wipe(&mut self, at: usize, cx: &mut Cx<'_>) {
        let wiping = &mut self.wipes[at];
        let Some(step) = wiping.wipe.next() else { return self.wipe_ended(at, Ok(())) };
        let pass = wiping.wipe.pass();
        if step.op() == Op::Write && wiping.pattern.as_ref().is_none_or(|(of, _)| *of != pass) {
            wiping.pattern = Some((pass, Pattern::new(&wiping.wipe.pattern(), PATTERN_STEP_LEN)));
        }
        let (op, flags, offset, len) = parts(step);
        wiping.step = Io::without_data(wiping.step.tag, op, flags, offset, len);
        wiping.tries = 0;
        self.wipe_go(at, cx);
    }

    fn wipe_go(&mut self, at: usize, cx: &mut Cx<'_>) {
        let wiping = &mut self.wipes[at];
        wiping.tries += 1;
        (wiping.stage, wiping.started) = (Stage::Waiting, cx.now);
        let (unit, tag, charge) = (wiping.unit, wiping.step.tag, wiping.charge());
        let open = self.units.get(unit);
        if open.lets_by(Source::BACKGROUND, charge) {
            self.submit_wipe(tag, cx);
        } else {
            open.line.join(Source::BACKGROUND, charge, tag);
        }
    }

    /// There is room for the step of this tag.
    pub(crate) fn submit_wipe(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let at = self.wiping(unit_of(tag)).expect("an operation stays until its step has ended");
        let wiping = &mut self.wipes[at];
        wiping.stage = Stage::Running;
        let mut io = wiping.step;
        if let (Op::Write, Some((_, pattern))) = (io.op, &mut wiping.pattern) {
            io.data = pattern.data(io.len);
        }
        let (unit, charge) = (wiping.unit, wiping.charge());
        if self.units.submit(unit, io, charge, cx).is_err() {
            self.leave_wipe_at(at);
        }
    }

    /// The step of this tag has ended.
    pub(crate) fn wipe_done(&mut self, unit: UnitId, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let at = self.wiping(unit).expect("an operation stays until its step has ended");
        let wiping = &self.wipes[at];
        let (Io { op, len, .. }, charge, started) = (wiping.step, wiping.charge(), wiping.started);
        let (leaving, tries) = (wiping.leaving, wiping.tries);
        let open = self.units.get(unit);
        open.ended(charge);
        open.stats.ended(op, len, cx.now.saturating_sub(started), result);
        match result {
            _ if leaving => self.leave_wipe_at(at),
            Ok(()) => self.next_of_wipe(at, cx),
            Err(IoError::Busy) if tries < TRIES => self.wipe_go(at, cx),
            // Not the medium's fault: whoever has the device next does it.
            Err(IoError::NotReady | IoError::Aborted | IoError::Busy) => self.leave_wipe_at(at),
            Err(error) => self.wipe_ended(at, Err(error)),
        }
    }

    /// The unit's device goes from this worker.
    pub(crate) fn leave_wipe(&mut self, unit: UnitId, cx: &mut Cx<'_>) {
        let Some(at) = self.wiping(unit) else { return };
        let tag = self.wipes[at].step.tag;
        if self.wipes[at].stage == Stage::Running {
            self.wipes[at].leaving = true;
            self.units.cancel(unit, tag, cx);
            return;
        }
        self.units.get(unit).line.leave(tag);
        self.leave_wipe_at(at);
    }

    fn leave_wipe_at(&mut self, at: usize) {
        let Wiping { unit, wipe, claim, stage, .. } = self.wipes.swap_remove(at);
        if matches!(stage, Stage::Fencing(_)) {
            let (offset, len) = wipe.span();
            let mark = Mark::Claim(claim, Span { offset, len });
            for worker in 0..self.workers {
                self.outbox.push_back((worker, Message(Body::Unfence { unit, mark })));
            }
        }
        let number = wipe.number();
        let outcome = wipe.leave();
        self.release_claim(unit, claim);
        if let Some(outcome) = outcome {
            self.tell_wipe_ended(unit, number, outcome);
        }
    }

    fn wipe_ended(&mut self, at: usize, result: Result<(), IoError>) {
        let Wiping { unit, wipe, claim, .. } = self.wipes.swap_remove(at);
        let number = wipe.number();
        let end = wipe.end(result);
        self.release_claim(unit, claim);
        match end {
            WipeEnd::Answer(outcome) => self.tell_wipe_ended(unit, number, outcome),
            WipeEnd::Save(save) => {
                let told = move |saved: Saved| Body::WipeEnded { unit, number, outcome: saved.outcome };
                self.start_save(*save, 0..self.workers, told);
            }
        }
    }

    fn tell_wipe_ended(&mut self, unit: UnitId, number: u64, outcome: Outcome) {
        for worker in 0..self.workers {
            self.outbox.push_back((worker, Message(Body::WipeEnded { unit, number, outcome })));
        }
    }

    /// Answers the commands that have waited for this operation of a unit.
    pub(crate) fn answer_wipe_waiters(&mut self, unit: UnitId, number: u64, outcome: &Outcome) {
        let waiters = std::mem::take(&mut self.wipe_waiters);
        let of = |waiter: &Waiter| (waiter.unit, waiter.number) == (unit, number);
        let (ended, kept): (Vec<_>, Vec<_>) = waiters.into_iter().partition(of);
        self.wipe_waiters = kept;
        for Waiter { tag, .. } in ended {
            self.unpark(tag, outcome);
        }
    }

    /// Ends those who wait and were aborted, and a format with its command.
    pub(crate) fn end_aborted_waiters(&mut self) {
        let aborted = |worker: &Self, tag| worker.parked_is_aborted(tag);
        let waiters = std::mem::take(&mut self.wipe_waiters);
        let (ended, kept): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|waiter| aborted(self, waiter.tag));
        self.wipe_waiters = kept;
        for Waiter { unit, number, tag } in ended {
            self.units.look(unit).logical.cancel_format(number);
            self.unpark(tag, &Outcome::GOOD);
        }
    }
}
