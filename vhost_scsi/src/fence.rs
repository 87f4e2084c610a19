//! Claims and their fences: a command that has its range to itself ([`pollux_scsi::Job::is_exclusive`]) claims it in the
//! unit's table, which sends everybody's commands the long way. There they look whether they overlap
//! ([`ScsiWorker::waits_for_claims`]). What was under way before is found by asking: each worker looks through what it has
//! in flight, and answers when the overlapping of it has ended ([`Fence`]). When all have answered, and claims made before
//! it are gone, the command starts. When it has ended, whoever waits for its range is told by message.
//!
//! An ORDERED command asks in the same way for all that came before it (`order.rs`).

use std::collections::VecDeque;

use pollux_core::{Cx, IoError};
use pollux_scsi::{Class, Order, Place, Rule, rule};

use crate::barred::Why;
use crate::jobs::working;
use crate::message::{Body, ControllerId, Message, UnitId};
use crate::port::{Kind, Phase, Port, Slot};
use crate::worker::ScsiWorker;

/// Ports and slots that are looked at in a pass, for all fences together.
const LOOKS: usize = 256;
/// Commands that were found and are looked at again in a pass, for all fences together; one of each in any case.
const LOOKS_AGAIN: usize = 256;

/// A range of a unit, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Span {
    pub(crate) const fn overlaps(self, (offset, len): (u64, u64)) -> bool {
        self.len > 0 && len > 0 && self.offset < offset + len && offset < self.offset + self.len
    }
}

/// What a command wants to have behind it before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// What overlaps the range that it has claimed and had started before.
    Claim(Order, Span),
    /// All that came before its place in the task set.
    Turn(Place),
}

impl Mark {
    /// The class of who makes it.
    const fn class(self) -> Class {
        match self {
            Mark::Claim(..) => Class::Atomic,
            Mark::Turn(_) => Class::Ordered,
        }
    }
}

/// A question of a worker: when has what came before this mark ended?
pub(crate) struct Fence {
    unit: UnitId,
    mark: Mark,
    from: usize,
    /// Whose ports may have something of it.
    controllers: Vec<ControllerId>,
    /// The port and slot that are looked at next; `None` when all were.
    next: Option<(usize, usize)>,
    /// Port, head and turn of those that had not ended when they were last looked at; who was looked at last is last. In
    /// so few that all are looked at long before a slot has had as many turns as it counts.
    pub(crate) commands: VecDeque<(usize, u16, u16)>,
}

impl ScsiWorker {
    /// Whether a command has to wait for a claim; if so, it does. Where the claim is that of a format or a sanitize, which
    /// take long, the command ends here: had it come a moment later, it would have been told that the unit is not ready.
    pub(crate) fn waits_for_claims(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) -> bool {
        let slot = &port.slots[usize::from(head)];
        let logical = &self.units.look(self.luns.get(slot.lun).unit).logical;
        if !logical.is_claimed() {
            return false;
        }
        let (offset, len) = slot.span();
        match logical.admit(offset, len, slot.changes(), self.worker) {
            Ok(_) => false,
            Err(_) if logical.is_wiping() => {
                self.finish(port, head, Err(IoError::NotReady), cx);
                true
            }
            Err(order) => {
                self.bar(port, head, Why::Claims(order));
                true
            }
        }
    }

    /// Claims a job's range and asks everybody when it is free.
    pub(crate) fn claim_range(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        let unit = self.luns.get(port.slots[usize::from(head)].lun).unit;
        let job = working(port, head);
        let (offset, len) = job.job.span();
        let logical = &self.units.look(unit).logical;
        let order = logical.claim(offset, len);
        let wiping = logical.is_wiping();
        job.claim = Some(order);
        if wiping {
            return self.finish(port, head, Err(IoError::NotReady), cx);
        }
        let span = Span { offset, len };
        self.bar(port, head, Why::Fence(order, span, self.workers));
        self.ask_around(unit, Mark::Claim(order, span));
    }

    /// Asks everybody to say when what came before has ended.
    pub(crate) fn ask_around(&mut self, unit: UnitId, mark: Mark) {
        for worker in 0..self.workers {
            // This worker, too, takes it as a message: the port is in use here.
            self.outbox.push_back((worker, Message(Body::Fence { unit, mark, from: self.worker })));
        }
    }

    /// Nobody needs to find out any more.
    pub(crate) fn ask_no_more(&mut self, unit: UnitId, mark: Mark) {
        for worker in 0..self.workers {
            self.outbox.push_back((worker, Message(Body::Unfence { unit, mark })));
        }
    }

    /// A worker asks when what came before its mark has ended here.
    pub(crate) fn fence(&mut self, unit: UnitId, mark: Mark, from: usize) {
        // Dormant ones are asked for by their places.
        let before = |why: Why| matches!((mark, why), (Mark::Claim(order, _), Why::Claims(of)) if of <= order);
        let commands = self.barred.on(unit).filter(|entry| before(entry.why)).filter_map(|entry| {
            let slot = self.port(entry.number)?.slots.get(usize::from(entry.head))?;
            self.is_in_the_way(slot, unit, mark).then_some((entry.number, entry.head, slot.turn))
        });
        let commands = commands.collect();
        let controllers = self.luns.busy_with(unit);
        let next = (!controllers.is_empty()).then_some((0, 0));
        self.fences.push(Fence { unit, mark, from, controllers, next, commands });
    }

    /// It does not ask any more.
    pub(crate) fn unfence(&mut self, unit: UnitId, mark: Mark) {
        self.fences.retain(|fence| (fence.unit, fence.mark) != (unit, mark));
    }

    /// A dormant command has begun: who asks for what came to the unit before a later place waits for it.
    pub(crate) fn fence_command(&mut self, unit: UnitId, place: Place, command: (usize, u16, u16)) {
        for fence in self.fences.iter_mut().filter(|fence| fence.unit == unit) {
            if matches!(fence.mark, Mark::Turn(of) if place < of) {
                fence.commands.push_back(command);
            }
        }
    }

    /// A worker says that nothing of before is under way there any more.
    pub(crate) fn fenced(&mut self, unit: UnitId, mark: Mark, cx: &mut Cx<'_>) {
        let order = match mark {
            Mark::Turn(place) => return self.turn_fenced(unit, place),
            Mark::Claim(order, _) => order,
        };
        let mut asking = self.barred.on_mut(unit).filter_map(|entry| match &mut entry.why {
            Why::Fence(of, _, missing) if *of == order => Some(missing),
            _ => None,
        });
        let Some(missing) = asking.next() else {
            drop(asking);
            if !self.copy_fenced(unit, mark) {
                self.wipe_fenced(unit, mark, cx);
            }
            return;
        };
        *missing -= 1;
        if *missing == 0 {
            drop(asking);
            self.note_look(Some(unit));
        }
    }

    /// Goes on looking, as far as a pass allows, and answers where nothing is under way any more. Returns whether some fence
    /// has not looked at everything yet.
    pub(crate) fn advance_fences(&mut self) -> bool {
        let mut fences = std::mem::take(&mut self.fences);
        let (mut looks, mut again) = (LOOKS, LOOKS_AGAIN);
        let mut unlooked = false;
        fences.retain_mut(|fence| {
            while looks > 0
                && let Some((number, from)) = fence.next
            {
                looks = looks.saturating_sub(self.look_through(fence, number, from, looks));
            }
            if fence.next.is_some() {
                unlooked = true;
                return true;
            }
            let Fence { unit, mark, from, .. } = *fence;
            let rest = self.look_at_found(fence, &mut again);
            unlooked |= rest;
            let dormant = matches!(mark, Mark::Turn(place) if self.dormants.are_before(unit, place));
            let busy = !fence.commands.is_empty() || dormant || self.has_background(unit, mark);
            if !busy {
                self.outbox.push_back((from, Message(Body::Fenced { unit, mark })));
            }
            busy
        });
        self.fences = fences;
        unlooked
    }

    /// Forgets those of a fence's commands that have ended, up to one that has not, as far as a pass allows. Returns
    /// whether some may be left that it did not come to.
    fn look_at_found(&self, fence: &mut Fence, looks: &mut usize) -> bool {
        let mut left = (*looks).max(1);
        while left > 0
            && let Some(command) = fence.commands.pop_front()
        {
            left -= 1;
            *looks = looks.saturating_sub(1);
            if self.is_under_way(command, fence.unit, fence.mark) {
                fence.commands.push_back(command);
                return false;
            }
        }
        !fence.commands.is_empty()
    }

    /// Looks through a part of one port's slots; returns how many looks it took.
    fn look_through(&self, fence: &mut Fence, number: usize, from: usize, looks: usize) -> usize {
        if number >= self.places() {
            fence.next = None;
            return 0;
        }
        fence.next = Some((number + 1, 0));
        let Some(port) = self.port(number) else { return 1 };
        let concerned = port.kind == Kind::Requests && fence.controllers.contains(&port.controller);
        if !concerned || port.inflight == 0 {
            return 1;
        }
        // Another, smaller queue may have come into its place.
        let from = from.min(port.slots.len());
        let to = port.slots.len().min(from + looks);
        for (at, slot) in port.slots[from..to].iter().enumerate() {
            let before = match slot.phase {
                Phase::Running | Phase::Waiting => true,
                // Whatever it waits for, it has begun.
                Phase::Barred | Phase::Parked | Phase::Away => matches!(fence.mark, Mark::Turn(_)),
                Phase::Free | Phase::Dormant => false,
            };
            if before && self.is_in_the_way(slot, fence.unit, fence.mark) {
                fence.commands.push_back((number, (from + at) as u16, slot.turn));
            }
        }
        if to < port.slots.len() {
            fence.next = Some((number, to));
        }
        to - from + 1
    }

    /// Whether a command that came before a mark has to be waited for. Of those that claim, the table knows the order.
    fn is_in_the_way(&self, slot: &Slot, unit: UnitId, mark: Mark) -> bool {
        let Some(class) = slot.class() else { return false };
        let concerns = match (rule(mark.class(), class), mark) {
            (Rule::Waits, _) => true,
            (Rule::Overlap, Mark::Claim(_, span)) => class != Class::Atomic && span.overlaps(slot.span()),
            _ => false,
        };
        concerns && self.luns.get(slot.lun).unit == unit
    }

    /// Whether something that goes on without its guest has to be waited for.
    fn has_background(&self, unit: UnitId, mark: Mark) -> bool {
        let Mark::Claim(order, span) = mark else { return false };
        let waits_for = |class| rule(mark.class(), class) == Rule::Overlap;
        let mut tasks = self.background.iter().flatten();
        let mut copies = self.copies.iter().flatten();
        (waits_for(Class::Background) && tasks.any(|task| task.touches(unit, span)))
            || (waits_for(Class::Copy) && copies.any(|copy| copy.is_in_the_way(unit, order, span)))
    }

    fn is_under_way(&self, (number, head, turn): (usize, u16, u16), unit: UnitId, mark: Mark) -> bool {
        let Some(slot) = self.port(number).and_then(|port| port.slots.get(usize::from(head))) else { return false };
        // The LUN of a command that has ended may be gone.
        if slot.phase == Phase::Free || slot.turn != turn || !self.is_in_the_way(slot, unit, mark) {
            return false;
        }
        let Mark::Claim(order, _) = mark else { return true };
        match slot.phase {
            Phase::Free | Phase::Parked | Phase::Away | Phase::Dormant => false,
            Phase::Running | Phase::Waiting => true,
            // A job between two pieces does not come before the claim any more.
            Phase::Barred => self.barred.on(unit).any(|entry| {
                (entry.number, entry.head) == (number, head) && matches!(entry.why, Why::Claims(of) if of <= order)
            }),
        }
    }
}
