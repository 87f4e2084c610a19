//! Commands that wait before they touch the device: for their turn (`order.rs`), for memory, or for a range that another
//! command has to itself.
//!
//! A command that has its range to itself ([`pollux_scsi::Job::is_exclusive`]) claims it in the unit's table, which
//! sends everybody's commands the long way. There they look whether they overlap ([`ScsiWorker::waits_for_claims`]).
//! What was under way before is found by asking: each worker looks through what it has in flight, and answers when the
//! overlapping of it has ended ([`Fence`]). When all have answered, and claims made before it are gone, the command
//! starts. When it has ended, whoever waits for its range is told by message.
//!
//! Memory goes round: a job or copy that is between two pieces gives its own up for those who wait, in the one order in which
//! commands and copies came to wait, and comes behind them.
//!
//! Who waits is *barred*: it has a slot, and its queue takes nothing more meanwhile, so a worker has at most one such
//! command for each queue (and few jobs between two pieces), and within a queue nothing overtakes it.

use pollux_core::{Cx, IoError};
use pollux_scsi::{Class, Order, Place, Rule, rule};

use crate::jobs::working;
use crate::message::{Body, ControllerId, Message, UnitId};
use crate::order::Turn;
use crate::port::{Kind, Long, Phase, Port, Slot};
use crate::worker::ScsiWorker;

/// Ports and slots that are looked at in a pass, for all fences together.
const LOOKS: usize = 256;

/// Why a command waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// For its turn in the task set; so many workers have not said that what came before has ended.
    Turn(Turn, usize),
    /// For memory.
    Memory,
    /// For claims before this place in the order.
    Claims(Order),
    /// For its own claim to become good: so many workers have not answered.
    Fence(Order, Span, usize),
}

/// A command that waits.
pub(crate) struct Barred {
    number: usize,
    head: u16,
    why: Why,
    arrival: u64,
}

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
    /// Port, head and turn of those that had not ended when they were last looked at.
    pub(crate) commands: Vec<(usize, u16, u16)>,
}

impl ScsiWorker {
    /// Has a command wait.
    pub(crate) fn bar(&mut self, port: &mut Port, head: u16, why: Why) {
        port.slots[usize::from(head)].phase = Phase::Barred;
        port.waiting += 1;
        self.memory_waiters += usize::from(why == Why::Memory);
        let arrival = self.arrive();
        self.barred.push(Barred { number: port.number(), head, why, arrival });
    }

    /// Whether a command has to wait for a claim; if so, it does. Where the claim is that of a format or a sanitize, which
    /// take long, the command ends here: had it come a moment later, it would have been told that the unit is not ready.
    pub(crate) fn waits_for_claims(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) -> bool {
        let slot = &port.slots[usize::from(head)];
        let logical = &self.units.look(self.luns.get(slot.lun).unit).logical;
        if !logical.is_claimed() {
            return false;
        }
        let (offset, len) = slot.span();
        match logical.admit(offset, len, self.worker) {
            Ok(()) => false,
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

    /// Whether somebody waits for memory.
    pub(crate) const fn memory_is_waited_for(&self) -> bool {
        self.memory_waiters > 0
    }

    /// Has this worker look at who waits, when nothing is in use.
    pub(crate) fn look_again(&mut self) {
        self.outbox.push_back((self.worker, Message(Body::Look)));
    }

    /// The place of one that comes to wait now.
    pub(crate) const fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Looks at who waits, in the order in which they came, and has those go on who can.
    pub(crate) fn look_at_barred(&mut self, cx: &mut Cx<'_>) {
        let mut kept = Vec::new();
        let mut copies = std::mem::take(&mut self.memory_queue);
        for entry in std::mem::take(&mut self.barred) {
            if entry.why == Why::Memory {
                self.lend_to_copies(&mut copies, entry.arrival, cx);
            }
            let mut port = self.take_port(entry.number).expect("a port stays while its requests are in flight");
            if self.is_let_in(&port, &entry) {
                port.waiting -= 1;
                self.let_in(&mut port, &entry, cx);
                self.put_port(entry.number, port);
                self.activate(entry.number);
            } else {
                self.put_port(entry.number, port);
                kept.push(entry);
            }
        }
        // What has come to wait meanwhile comes last.
        kept.append(&mut self.barred);
        self.barred = kept;
        self.lend_to_copies(&mut copies, u64::MAX, cx);
        self.look_at_copies(cx);
    }

    fn is_let_in(&self, port: &Port, entry: &Barred) -> bool {
        let order = match entry.why {
            Why::Memory => return self.pool.has_some_for(port.key.session),
            Why::Turn(_, missing) | Why::Fence(_, _, missing) if missing > 0 => return false,
            Why::Turn(turn, _) => return self.has_its_turn(port, entry.head, turn),
            Why::Fence(order, ..) | Why::Claims(order) => order,
        };
        let slot = &port.slots[usize::from(entry.head)];
        let (offset, len) = slot.span();
        self.units.look(self.luns.get(slot.lun).unit).logical.may_start(order, offset, len, self.worker)
    }

    fn let_in(&mut self, port: &mut Port, entry: &Barred, cx: &mut Cx<'_>) {
        let is_job = matches!(port.slots[usize::from(entry.head)].long.as_deref(), Some(Long::Job(_)));
        match entry.why {
            Why::Turn(turn, _) => self.wake(port, entry.head, turn, cx),
            Why::Memory => {
                self.memory_waiters -= 1;
                self.lend(port, entry.head, cx);
            }
            Why::Claims(_) | Why::Fence(..) if is_job => self.work(port, entry.head, cx),
            Why::Claims(_) | Why::Fence(..) => self.go(port, entry.head, cx),
        }
    }

    /// Ends those who wait and were aborted.
    pub(crate) fn drop_barred(&mut self, cx: &mut Cx<'_>) {
        let mut kept = Vec::new();
        for entry in std::mem::take(&mut self.barred) {
            let mut port = self.take_port(entry.number).expect("a port stays while its requests are in flight");
            let slot = &port.slots[usize::from(entry.head)];
            let aborted = slot.aborted.is_some();
            if aborted {
                let unit = self.luns.get(slot.lun).unit;
                self.give_up(unit, entry.why);
                port.waiting -= 1;
                self.finish(&mut port, entry.head, Err(IoError::Aborted), cx);
            }
            self.put_port(entry.number, port);
            if aborted {
                self.activate(entry.number);
            } else {
                kept.push(entry);
            }
        }
        kept.append(&mut self.barred);
        self.barred = kept;
    }

    fn give_up(&mut self, unit: UnitId, why: Why) {
        match why {
            Why::Memory => self.memory_waiters -= 1,
            Why::Claims(_) => {}
            Why::Fence(order, span, _) => self.ask_no_more(unit, Mark::Claim(order, span)),
            Why::Turn(turn, missing) => {
                if missing > 0 {
                    self.ask_no_more(unit, Mark::Turn(turn.place));
                }
                self.turn_over(unit, turn);
            }
        }
    }

    /// Nobody needs to find out any more.
    fn ask_no_more(&mut self, unit: UnitId, mark: Mark) {
        for worker in 0..self.workers {
            self.outbox.push_back((worker, Message(Body::Unfence { unit, mark })));
        }
    }

    /// A worker asks when what came before its mark has ended here.
    pub(crate) fn fence(&mut self, unit: UnitId, mark: Mark, from: usize) {
        let before = self.barred.iter().filter(|entry| match (mark, entry.why) {
            (Mark::Claim(order, _), Why::Claims(of)) => of <= order,
            (Mark::Turn(place), Why::Turn(turn, _)) => turn.place < place,
            _ => false,
        });
        let commands = before.filter_map(|entry| {
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

    /// A worker says that nothing of before is under way there any more.
    pub(crate) fn fenced(&mut self, unit: UnitId, mark: Mark, cx: &mut Cx<'_>) {
        for at in 0..self.barred.len() {
            let Barred { number, head, why, .. } = self.barred[at];
            let of_unit = self.port(number).map(|port| self.luns.get(port.slots[usize::from(head)].lun).unit);
            if of_unit != Some(unit) {
                continue;
            }
            let asked = match (why, mark) {
                (Why::Fence(of, span, missing), Mark::Claim(order, _)) if of == order => {
                    Some((Why::Fence(of, span, missing - 1), missing))
                }
                (Why::Turn(turn, missing), Mark::Turn(place)) if turn.place == place => {
                    Some((Why::Turn(turn, missing - 1), missing))
                }
                _ => None,
            };
            if let Some((why, missing)) = asked {
                self.barred[at].why = why;
                if missing == 1 {
                    self.look_at_barred(cx);
                }
                return;
            }
        }
        self.wipe_fenced(unit, mark, cx);
    }

    /// Whether some fence has not looked at everything yet.
    pub(crate) fn looks_for_fences(&self) -> bool {
        self.fences.iter().any(|fence| fence.next.is_some())
    }

    /// Goes on looking, as far as a pass allows, and answers where nothing is under way any more.
    pub(crate) fn advance_fences(&mut self) {
        if self.fences.is_empty() {
            return;
        }
        let mut fences = std::mem::take(&mut self.fences);
        let mut looks = LOOKS;
        for fence in &mut fences {
            while looks > 0
                && let Some((number, from)) = fence.next
            {
                looks = looks.saturating_sub(self.look_through(fence, number, from, looks));
            }
        }
        fences.retain_mut(|fence| {
            if fence.next.is_some() {
                return true;
            }
            let Fence { unit, mark, from, .. } = *fence;
            fence.commands.retain(|&command| self.is_under_way(command, unit, mark));
            let busy = !fence.commands.is_empty() || self.has_background(unit, mark);
            if !busy {
                self.outbox.push_back((from, Message(Body::Fenced { unit, mark })));
            }
            busy
        });
        self.fences = fences;
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
                fence.commands.push((number, (from + at) as u16, slot.turn));
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
            Phase::Barred => self.barred.iter().any(|entry| {
                (entry.number, entry.head) == (number, head) && matches!(entry.why, Why::Claims(of) if of <= order)
            }),
        }
    }
}
