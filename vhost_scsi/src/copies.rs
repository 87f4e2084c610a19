//! Copies from unit to unit ([`pollux_scsi::Copy`]): the worker that took the command does them, beside its queues, with memory
//! of its own. It has both ends: LUNs of the controller that was asked, or of others of the same initiator that it serves.
//!
//! A copy is bulk for the units of both its ends, whether its command was answered already or waits for it. Each piece is
//! read and written as any initiator's READ and WRITE: it waits for ranges that others have to themselves, in the order of
//! claims, and others' fences wait for it. It has memory from before a read until its write has ended; between two pieces it
//! gives that to those who wait for some, and whatever else it does it does without. What it waits for: `copy_waits.rs`.
//!
//! What the devices of both ends copy by themselves goes to a helper thread instead (`together.rs`).
//!
//! A command that waits for its copy is *parked*: it has a slot, so task management finds it, and it takes no room of a
//! device. Copies hold the LUNs of all their ends, so none goes while one is read or written.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pollux_core::{Cx, Io, IoError, IoFlags, Op, SegmentList, Tag};
use pollux_scsi::{Class, Copy, CopyOrder, CopyTask, Designator, End, Order, Outcome, Rule, rule};

use crate::abort::is_in_scope;
use crate::background::BACKGROUND;
use crate::copy_waits::{For, Wait};
use crate::fence::{Mark, Span};
use crate::line::{Charge, Source};
use crate::message::{Scope, UnitId};
use crate::own::Own;
use crate::port::{Answer, Long, Phase, Port};
use crate::request::Response;
use crate::serve::{Encoded, Given};
use crate::together;
use crate::worker::ScsiWorker;

/// With [`BACKGROUND`]: the tag of a copy's request.
pub(crate) const COPY: Tag = 1 << 62;

/// A copy's place among the worker's, and its number, which is never used again.
pub(crate) type CopyId = (usize, u64);

/// A copy on its way.
pub(crate) struct Copying {
    pub(crate) copy: Copy,
    pub(crate) number: u64,
    /// The parked command that waits for it.
    asker: Option<Tag>,
    pub(crate) session: u64,
    /// From before a read until its write has ended.
    pub(crate) own: Option<Own>,
    pub(crate) stage: Stage,
    /// Where it waits, if not for a device, a helper thread, or in a line.
    pub(crate) wait: Option<Wait>,
    pub(crate) request: Request,
    /// The places in their units' orders of claims that its request's ranges have come at, if they were asked.
    places: [Option<Order>; 2],
    pub(crate) started: u64,
    /// Tells the helper thread to end at its next step.
    pub(crate) stop: Arc<AtomicBool>,
    /// What the helper threads have of it.
    pub(crate) given: Option<together::Given>,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To begin.
    Begin,
    Memory,
    /// Claims before this place in the order, on the range of its request.
    Claims(Order),
    /// What came before this place in the order, on this range of its unit; so many workers have not answered.
    Settling(Order, Span, usize),
    /// Its turn in the unit's line.
    Line,
    Device,
    /// The devices, which copy together.
    Helper,
}

/// Its present request.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) lun: u32,
    pub(crate) unit: UnitId,
    pub(crate) op: Op,
    flags: IoFlags,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Where in its memory a write's bytes begin.
    skip: u64,
    /// Whence, if the devices copy it together.
    pub(crate) source: Option<Whence>,
}

/// The source of what devices copy together.
#[derive(Clone, Copy)]
pub(crate) struct Whence {
    pub(crate) lun: u32,
    pub(crate) unit: UnitId,
    offset: u64,
}

impl Request {
    /// What it touches, first what it writes.
    fn ranges(&self) -> impl Iterator<Item = (UnitId, u64, u64)> {
        let source = self.source.map(|source| (source.unit, source.offset, self.len));
        std::iter::once((self.unit, self.offset, self.len)).chain(source)
    }
}

impl Copying {
    /// Whether a claim of this place in the order has to wait for it.
    pub(crate) fn is_in_the_way(&self, unit: UnitId, order: Order, span: Span) -> bool {
        let started = match self.stage {
            Stage::Begin | Stage::Memory | Stage::Settling(..) => false,
            // One with two ranges comes to both anew, behind the claims that there are then.
            Stage::Claims(_) => self.request.source.is_none(),
            Stage::Line | Stage::Device | Stage::Helper => true,
        };
        // A token makes nobody wait, so pieces that have come after it go on: it does not wait for those.
        let before = |place: Option<Order>| place.is_none_or(|place| place <= order);
        let mut ranges = self.request.ranges().zip(self.places);
        started && ranges.any(|((of, offset, len), place)| of == unit && before(place) && span.overlaps((offset, len)))
    }

    pub(crate) const fn charge(&self) -> Charge {
        // Past the channel a range is all that is asked for.
        let op = if self.request.source.is_some() { Op::WriteZeroes } else { self.request.op };
        Charge { bulk: true, ..Charge::step(op, self.request.len, true) }
    }
}

impl ScsiWorker {
    /// Starts a copy; the command's chain lies in `self.segments`.
    pub(crate) fn start_copy(&mut self, port: &mut Port, given: &Given, order: CopyOrder, cx: &mut Cx<'_>) {
        let started = order.start(self.end_of(given.lun), &mut |name| self.find_end(given.lun, name), cx.now);
        let copy = match started {
            Ok(copy) => copy,
            Err(outcome) => {
                let sense =
                    Encoded::new(&self.units.look(self.luns.get(given.lun).unit).logical, outcome.sense.as_ref());
                self.answer_done(port, given, &outcome, &sense);
                return;
            }
        };
        let index = self.copies.iter().position(Option::is_none).unwrap_or(self.copies.len());
        if index == self.copies.len() {
            self.copies.push(None);
        }
        let asker = if copy.is_in_background() {
            let writable = &self.segments.as_slice()[given.readable..];
            port.answer(given.head, writable, &Answer::response(Response::Ok, given.residual(given.used)));
            None
        } else {
            let tag = self.park(port, given);
            port.slots[usize::from(given.head)].long = Some(Box::new(Long::Copy { index }));
            Some(tag)
        };
        copy.places().for_each(|lun| self.luns.get_mut(lun).inflight += 1);
        let (lun, unit) = (given.lun, self.luns.get(given.lun).unit);
        let flags = IoFlags::empty();
        let request = Request { lun, unit, op: Op::Flush, flags, offset: 0, len: 0, skip: 0, source: None };
        let session = port.key.session;
        self.copies_begun += 1;
        let number = self.copies_begun;
        let started = cx.now;
        self.copies[index] = Some(Copying {
            copy,
            number,
            asker,
            session,
            own: None,
            stage: Stage::Begin,
            wait: None,
            request,
            places: [None; 2],
            started,
            stop: Arc::default(),
            given: None,
        });
        // The port is in use here: it begins when this worker looks who waits.
        self.copy_waits_for(index, For::Begin);
        self.look_again();
    }

    fn end_of(&self, lun: u32) -> End {
        let entry = self.luns.get(lun);
        End { unit: self.units.look(entry.unit).logical.clone(), path: entry.path.clone(), place: lun }
    }

    /// The unit of this name among the LUNs of the controller that was asked, or of other controllers that are paths of the same
    /// initiator: what that can address, and nothing else.
    fn find_end(&self, asked: u32, name: &Designator) -> Option<End> {
        let asked = self.luns.get(asked);
        let named = |lun: &u32| self.units.look(self.luns.get(*lun).unit).logical.is_called(name);
        let others = || self.luns.of_initiator(asked.path.nexus().initiator()).find(named);
        self.luns.of(asked.controller).find(named).or_else(others).map(|lun| self.end_of(lun))
    }

    /// A worker says that nothing of before this place is under way there any more; whether a copy has asked.
    pub(crate) fn copy_fenced(&mut self, unit: UnitId, mark: Mark) -> bool {
        let asked = self.copies.iter_mut().enumerate().find_map(|(index, copying)| {
            let copying = copying.as_mut().filter(|copying| copying.request.unit == unit)?;
            match (&mut copying.stage, mark) {
                (Stage::Settling(of, _, missing), Mark::Claim(order, _)) if *of == order => Some((index, missing)),
                _ => None,
            }
        });
        let Some((index, missing)) = asked else { return false };
        *missing -= 1;
        if *missing == 0 {
            self.copy_waits_for(index, For::Claims(unit));
            self.note_look(Some(unit));
        }
        true
    }

    pub(crate) fn copying(&mut self, index: usize) -> &mut Copying {
        self.copies[index].as_mut().expect("a copy stays until it has ended")
    }

    /// The next task of a copy.
    pub(crate) fn copy_on(&mut self, index: usize, cx: &mut Cx<'_>) {
        loop {
            let leaves = self.copying(index).copy.places().collect::<Vec<_>>();
            if leaves.into_iter().any(|lun| !self.luns.get(lun).removing.is_empty()) {
                // Who takes a LUN away waits for this.
                self.copying(index).copy.cancel();
            }
            let copy = &mut self.copying(index).copy;
            copy.pass_time(cx.now);
            match copy.next_task() {
                CopyTask::Do { op: Op::Read, .. } if self.copying(index).own.is_none() => {
                    // It is asked again when there is memory: what it may do is looked at then.
                    self.copying(index).copy.not_begun();
                    if !self.copy_takes_memory(index) {
                        return;
                    }
                }
                CopyTask::Do { place: lun, op, flags, offset, len, skip } => {
                    if op == Op::WriteZeroes {
                        self.copy_gives_memory_back(index);
                    }
                    let unit = self.luns.get(lun).unit;
                    let copying = self.copying(index);
                    copying.request = Request { lun, unit, op, flags, offset, len, skip, source: None };
                    copying.started = cx.now;
                    self.copy_enter(index, cx);
                    return;
                }
                CopyTask::Together { source, from, destination: lun, to: offset, len } => {
                    self.copy_gives_memory_back(index);
                    let unit = self.luns.get(lun).unit;
                    let source = Some(Whence { lun: source, unit: self.luns.get(source).unit, offset: from });
                    let copying = self.copying(index);
                    copying.request =
                        Request { lun, unit, op: Op::Write, flags: IoFlags::empty(), offset, len, skip: 0, source };
                    copying.started = cx.now;
                    self.copy_enter(index, cx);
                    return;
                }
                CopyTask::Settle { place: lun, order, offset, len } => {
                    let (unit, span, workers) = (self.luns.get(lun).unit, Span { offset, len }, self.workers);
                    let copying = self.copying(index);
                    (copying.request.lun, copying.request.unit) = (lun, unit);
                    copying.stage = Stage::Settling(order, span, workers);
                    self.ask_around(unit, Mark::Claim(order, span));
                    return;
                }
                CopyTask::Pause if self.memory_is_waited_for() => self.copy_gives_memory_back(index),
                CopyTask::Pause => {}
                CopyTask::End(outcome) => {
                    self.copy_ended(index, &outcome);
                    return;
                }
            }
        }
    }

    /// Gets memory for a read; if that has to wait, so does the copy, and this says so.
    fn copy_takes_memory(&mut self, index: usize) -> bool {
        let session = self.copying(index).session;
        if !self.memory_is_waited_for() {
            self.copying(index).own = self.pool.take(session);
        }
        let has_some = self.copying(index).own.is_some();
        if !has_some {
            self.copying(index).stage = Stage::Memory;
            self.copy_waits_for(index, For::Memory(session));
            if self.pool.has_some_for(session) {
                self.look_again();
            }
        }
        has_some
    }

    fn copy_gives_memory_back(&mut self, index: usize) {
        let copying = self.copying(index);
        let (own, session) = (copying.own.take(), copying.session);
        self.give_back(own, session);
    }

    /// A request comes to its range.
    pub(crate) fn copy_enter(&mut self, index: usize, cx: &mut Cx<'_>) {
        let request = self.copying(index).request;
        self.copying(index).places = [None; 2];
        for (at, (unit, offset, len)) in request.ranges().enumerate() {
            let logical = &self.units.look(unit).logical;
            if !logical.is_claimed() {
                continue;
            }
            let changes = at == 0 && request.op != Op::Read;
            let admitted = logical.admit(offset, len, changes, self.worker);
            if admitted.is_err() && logical.is_wiping() {
                // Formatted or sanitized: that takes long, and what it says to others is that it is not ready.
                self.copy_failed(index, IoError::NotReady);
                return;
            }
            let (Ok(order) | Err(order)) = admitted;
            self.copying(index).places[at] = Some(order);
            if admitted.is_err() {
                self.copying(index).stage = Stage::Claims(order);
                self.copy_waits_for(index, For::Claims(unit));
                return;
            }
        }
        self.copy_go(index, cx);
    }

    pub(crate) fn copy_go(&mut self, index: usize, cx: &mut Cx<'_>) {
        let copying = self.copying(index);
        let (unit, charge) = (copying.request.unit, copying.charge());
        copying.stage = Stage::Line;
        let open = self.units.get(unit);
        if open.lets_by(Source::BACKGROUND, charge) {
            self.submit_copy(index, cx);
        } else {
            open.line.join(Source::BACKGROUND, charge, tag_of(index));
        }
    }

    /// There is room for a copy's request.
    pub(crate) fn submit_copy(&mut self, index: usize, cx: &mut Cx<'_>) {
        let copying = self.copying(index);
        if copying.request.source.is_some() {
            self.submit_together(index);
            return;
        }
        copying.stage = Stage::Device;
        let Request { unit, op, flags, offset, len, skip, .. } = copying.request;
        let data = match (op, &mut copying.own) {
            (Op::Read | Op::Write, Some(own)) => own.copied(skip, len),
            _ => SegmentList::EMPTY,
        };
        let io = Io { tag: tag_of(index), op, flags, offset, len, data };
        let charge = copying.charge();
        if let Err(error) = self.units.submit(unit, io, charge, cx) {
            self.copy_failed(index, error);
        }
    }

    /// A device has done a copy's request.
    pub(crate) fn copy_done(&mut self, unit: UnitId, tag: Tag, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let index = index_of(tag);
        let copying = self.copying(index);
        let Request { lun, op, len, .. } = copying.request;
        let (charge, latency) = (copying.charge(), cx.now.saturating_sub(copying.started));
        let open = self.units.get(unit);
        open.ended(charge);
        open.stats.ended(op, len, latency, result);
        self.luns.get(lun).stats.ended(op, len, latency, result.is_ok());
        match result {
            Ok(()) => self.copy_on(index, cx),
            Err(error) => self.copy_failed(index, error),
        }
    }

    pub(crate) fn copy_failed(&mut self, index: usize, error: IoError) {
        let outcome = self.copying(index).copy.fail_outcome(error);
        self.copy_ended(index, &outcome);
    }

    /// A copy ends: it gives back what it has, and its command is answered.
    pub(crate) fn copy_ended(&mut self, index: usize, outcome: &Outcome) {
        self.copy_waits_no_more(index);
        let Some(Copying { copy, asker, session, own, .. }) = self.copies[index].take() else { return };
        self.give_back(own, session);
        copy.places().for_each(|lun| self.luns.get_mut(lun).inflight -= 1);
        copy.end(outcome);
        if let Some(tag) = asker {
            self.unpark(tag, outcome);
        }
    }

    /// Ends a copy as soon as the device lets go.
    pub(crate) fn end_copy(&mut self, index: usize, cx: &mut Cx<'_>) {
        let Some(copying) = self.copies.get(index).and_then(Option::as_ref) else { return };
        copying.copy.cancel();
        let (unit, stage, tag) = (copying.request.unit, copying.stage, tag_of(index));
        if stage == Stage::Device {
            self.units.cancel(unit, tag, cx);
            return;
        }
        if stage == Stage::Helper {
            self.end_together(index, cx);
            return;
        }
        match stage {
            Stage::Line => drop(self.units.get(unit).line.leave(tag)),
            Stage::Settling(order, span, 1..) => self.ask_no_more(unit, Mark::Claim(order, span)),
            _ => {}
        }
        self.copy_failed(index, IoError::Aborted);
    }

    /// Ends the copies of which an end is in scope, and says which have not ended yet. CLEAR TASK SET leaves those
    /// alone whose command was answered; what is about single commands finds a copy by its command.
    pub(crate) fn end_copies_in_scope(&mut self, scope: Scope, how: Response, cx: &mut Cx<'_>) -> Vec<CopyId> {
        let mut ended = Vec::new();
        let (answered, of_unit) = match scope {
            Scope::Preempted { .. } => (true, true),
            Scope::Unit { .. } | Scope::Nexus { .. } => (how == Response::Reset, true),
            Scope::Task { .. } | Scope::TaskSet { .. } => (false, false),
            // Ended when the control plane asked (`end_copies`).
            Scope::Queue { .. } | Scope::Leaving { .. } | Scope::Device { .. } => (false, false),
        };
        if !of_unit || rule(scope.class(), Class::Copy) != Rule::Ends {
            return ended;
        }
        for index in 0..self.copies.len() {
            let Some(copying) = &self.copies[index] else { continue };
            let in_scope = |lun| is_in_scope(scope, copying.session, self.luns.get(lun), 0);
            if (answered || copying.asker.is_some()) && copying.copy.places().any(in_scope) {
                ended.push((index, copying.number));
                self.end_copy(index, cx);
            }
        }
        ended.retain(|&copy| self.is_copying(copy));
        ended
    }

    /// Whether a copy goes on.
    pub(crate) fn is_copying(&self, (index, number): CopyId) -> bool {
        self.copies.get(index).and_then(Option::as_ref).is_some_and(|copying| copying.number == number)
    }

    /// Ends the copies of which an end is one of some LUNs.
    pub(crate) fn end_copies(&mut self, of: impl Fn(&Self, u32) -> bool, cx: &mut Cx<'_>) {
        for index in 0..self.copies.len() {
            let Some(copying) = &self.copies[index] else { continue };
            if copying.copy.places().any(|lun| of(self, lun)) {
                self.end_copy(index, cx);
            }
        }
    }

    /// The copy that a parked command waits for.
    pub(crate) fn copy_of(port: &Port, head: u16) -> Option<usize> {
        let slot = &port.slots[usize::from(head)];
        match slot.long.as_deref() {
            Some(&Long::Copy { index }) if slot.phase == Phase::Parked => Some(index),
            _ => None,
        }
    }
}

const fn tag_of(index: usize) -> Tag {
    BACKGROUND | COPY | index as u64
}

/// The copy that a tag with [`COPY`] names.
pub(crate) const fn index_of(tag: Tag) -> usize {
    (tag & !(BACKGROUND | COPY)) as usize
}
