//! Commands that wait before they touch the device: for memory, or for a range that another command has to itself
//! (`fence.rs`). (Those that wait for their turn have not begun: `order.rs`.)
//!
//! Who waits is *barred*: it has a slot, and its queue takes nothing more meanwhile. So within a queue nothing overtakes it,
//! and a worker has few such commands: one for each queue, jobs between two pieces, and what was dormant before.
//!
//! That what they wait for may be there is only noted when it is told ([`Due`]). Who waits is looked at in the pass, where
//! something has changed and nowhere else, and a bounded number: what one guest's commands cause costs the others little.
//! Who waits for memory is looked at only if its session could get some. Memory goes round: a job or copy that is between
//! two pieces gives its own up for those who wait, in the one order in which commands and copies came to wait, and comes
//! behind them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pollux_core::{Cx, IoError};
use pollux_scsi::Order;

use crate::fence::{Mark, Span};
use crate::message::{Body, Message, UnitId};
use crate::port::{Long, Phase, Port};
use crate::worker::ScsiWorker;

/// Commands that wait and are looked at in a pass, and of one unit before those of the next.
const LOOKS: usize = 256;
const LOOKS_OF_UNIT: usize = 128;
/// How many looks it is worth that one goes on.
pub(crate) const GOING_ON: usize = 4;

/// Why a command waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// For memory.
    Memory,
    /// For claims before this place in the order.
    Claims(Order),
    /// For its own claim to become good: so many workers have not answered.
    Fence(Order, Span, usize),
}

/// A command that waits.
pub(crate) struct Barred {
    pub(crate) number: usize,
    pub(crate) head: u16,
    pub(crate) why: Why,
    arrival: u64,
}

/// Who is next to be looked at of those who wait for memory.
enum Next {
    /// A command of this session.
    Command(u64),
    /// A copy.
    Copy(usize),
}

/// Some who wait for the same. Who was looked at in vain comes last.
#[derive(Default)]
struct Row {
    waiting: VecDeque<Barred>,
    /// How many of them are to be looked at.
    left: usize,
}

/// Those of a worker.
#[derive(Default)]
pub(crate) struct AllBarred {
    /// For memory, by session.
    memory: BTreeMap<u64, Row>,
    /// For claims, by unit.
    units: BTreeMap<UnitId, Row>,
}

impl AllBarred {
    /// Those who wait for claims of a unit.
    pub(crate) fn on(&self, unit: UnitId) -> impl Iterator<Item = &Barred> {
        self.units.get(&unit).into_iter().flat_map(|row| &row.waiting)
    }

    pub(crate) fn on_mut(&mut self, unit: UnitId) -> impl Iterator<Item = &mut Barred> {
        self.units.get_mut(&unit).into_iter().flat_map(|row| &mut row.waiting)
    }
}

/// What is to be looked at.
#[derive(Default)]
pub(crate) struct Due {
    pub(crate) memory: bool,
    pub(crate) units: BTreeSet<UnitId>,
    /// The unit that was looked at last.
    last: UnitId,
}

impl Due {
    pub(crate) fn is_empty(&self) -> bool {
        !self.memory && self.units.is_empty()
    }

    /// The units, the one behind the last first.
    fn take_units(&mut self) -> Vec<UnitId> {
        let units = std::mem::take(&mut self.units);
        let at = self.last;
        units.range(at.saturating_add(1)..).chain(units.range(..=at)).copied().collect()
    }
}

impl ScsiWorker {
    /// Has a command wait.
    pub(crate) fn bar(&mut self, port: &mut Port, head: u16, why: Why) {
        let slot = &mut port.slots[usize::from(head)];
        slot.phase = Phase::Barred;
        port.waiting += 1;
        let unit = self.luns.get(slot.lun).unit;
        let barred = Barred { number: port.number(), head, why, arrival: self.arrive() };
        let row = if why == Why::Memory {
            self.memory_waiters += 1;
            self.barred.memory.entry(port.key.session).or_default()
        } else {
            self.barred.units.entry(unit).or_default()
        };
        row.waiting.push_back(barred);
    }

    /// Whether somebody waits for memory.
    pub(crate) const fn memory_is_waited_for(&self) -> bool {
        self.memory_waiters > 0
    }

    /// Has this worker look at who waits for memory, when nothing is in use.
    pub(crate) fn look_again(&mut self) {
        self.outbox.push_back((self.worker, Message(Body::Look { unit: None })));
    }

    /// The place of one that comes to wait now.
    pub(crate) const fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Notes that what some wait for may be there: claims or turns of this unit, or memory.
    pub(crate) fn note_look(&mut self, unit: Option<UnitId>) {
        let Some(unit) = unit else {
            self.due.memory = true;
            return;
        };
        self.copy_waits.note(unit);
        self.due.units.insert(unit);
        if let Some(row) = self.barred.units.get_mut(&unit) {
            row.left = row.waiting.len();
        }
    }

    /// Has a barred command that was aborted looked at.
    pub(crate) fn note_abort(&mut self, session: u64, unit: UnitId) {
        if let Some(row) = self.barred.memory.get_mut(&session) {
            self.due.memory = true;
            row.left = row.waiting.len();
        }
        self.note_look(Some(unit));
    }

    /// Looks at those who wait for what may be there, and has those go on who can. Returns whether some are left to look at.
    /// No port is in use.
    pub(crate) fn look_at_due(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.due.is_empty() && !self.copy_waits.are_due() {
            return false;
        }
        let mut looks = LOOKS;
        if std::mem::take(&mut self.due.memory) {
            self.look_for_memory(&mut looks, cx);
        }
        for unit in self.due.take_units() {
            if looks == 0 {
                self.due.units.insert(unit);
                continue;
            }
            self.due.last = unit;
            let of_unit = looks.min(LOOKS_OF_UNIT);
            let mut left = of_unit;
            let all = self.look_at_claims(unit, &mut left, cx) && self.look_at_turns(unit, &mut left, cx);
            if !all {
                self.due.units.insert(unit);
            }
            looks -= of_unit - left;
        }
        let copies = self.look_at_copies(cx);
        self.look_at_wipes(cx);
        copies || !self.due.is_empty()
    }

    /// Looks at those who wait for memory and whose session could get some, and at those that were aborted.
    fn look_for_memory(&mut self, looks: &mut usize, cx: &mut Cx<'_>) {
        while let Some(next) = self.next_for_memory() {
            if *looks == 0 {
                self.due.memory = true;
                break;
            }
            match next {
                Next::Copy(index) => self.lend_to_copy(index, looks, cx),
                Next::Command(session) => self.look_for_memory_of(session, looks, cx),
            }
        }
    }

    /// Looks at the command of a session that has waited for memory for longest.
    fn look_for_memory_of(&mut self, session: u64, looks: &mut usize, cx: &mut Cx<'_>) {
        let Some(row) = self.barred.memory.get_mut(&session) else { return };
        let Some(entry) = row.waiting.pop_front() else { return };
        let last = row.left == 1;
        row.left = row.left.saturating_sub(1);
        if let Some(entry) = self.look_at_one(entry, looks, cx) {
            self.barred.memory.entry(session).or_default().waiting.push_back(entry);
        }
        if let Some(row) = self.barred.memory.get_mut(&session) {
            if last {
                // Some may have come meanwhile.
                row.waiting.make_contiguous().sort_by_key(|entry| entry.arrival);
            }
            if row.waiting.is_empty() {
                self.barred.memory.remove(&session);
            }
        }
    }

    /// Who of those is next: the first that came.
    fn next_for_memory(&self) -> Option<Next> {
        let rows = self.barred.memory.iter().filter(|&(&of, row)| row.left > 0 || self.pool.has_some_for(of));
        let commands = rows.filter_map(|(&of, row)| Some((row.waiting.front()?.arrival, Next::Command(of))));
        let copies = self.copy_waits.first_for_memory().filter(|&(of, ..)| self.pool.has_some_for(of));
        let copies = copies.map(|(_, arrival, index)| (arrival, Next::Copy(index)));
        commands.chain(copies).min_by_key(|(arrival, _)| *arrival).map(|(_, next)| next)
    }

    /// Looks at those who wait for claims of a unit. Returns whether these were all.
    fn look_at_claims(&mut self, unit: UnitId, looks: &mut usize, cx: &mut Cx<'_>) -> bool {
        while let Some(row) = self.barred.units.get_mut(&unit) {
            if row.left == 0 || *looks == 0 {
                return row.left == 0;
            }
            row.left -= 1;
            let Some(entry) = row.waiting.pop_front() else { break };
            if let Some(entry) = self.look_at_one(entry, looks, cx) {
                self.barred.units.entry(unit).or_default().waiting.push_back(entry);
            } else if self.barred.on(unit).next().is_none() {
                self.barred.units.remove(&unit);
            }
        }
        true
    }

    /// Has one go on, or end if it was aborted; gives it back if it has to wait.
    fn look_at_one(&mut self, entry: Barred, looks: &mut usize, cx: &mut Cx<'_>) -> Option<Barred> {
        self.looks += 1;
        *looks = looks.saturating_sub(1);
        let mut port = self.take_port(entry.number).expect("a port stays while its requests are in flight");
        let slot = &port.slots[usize::from(entry.head)];
        let (aborted, unit) = (slot.aborted.is_some(), self.luns.get(slot.lun).unit);
        if !aborted && !self.is_let_in(&port, &entry) {
            self.put_port(entry.number, port);
            return Some(entry);
        }
        *looks = looks.saturating_sub(GOING_ON);
        port.waiting -= 1;
        if aborted {
            self.give_up(unit, entry.why);
            self.finish(&mut port, entry.head, Err(IoError::Aborted), cx);
        } else {
            self.let_in(&mut port, &entry, cx);
        }
        self.put_port(entry.number, port);
        self.activate(entry.number);
        None
    }

    fn is_let_in(&self, port: &Port, entry: &Barred) -> bool {
        let order = match entry.why {
            Why::Memory => return self.pool.has_some_for(port.key.session),
            Why::Fence(_, _, missing) if missing > 0 => return false,
            Why::Fence(order, ..) | Why::Claims(order) => order,
        };
        let slot = &port.slots[usize::from(entry.head)];
        let (offset, len) = slot.span();
        self.units.look(self.luns.get(slot.lun).unit).logical.may_start(order, offset, len, self.worker)
    }

    fn let_in(&mut self, port: &mut Port, entry: &Barred, cx: &mut Cx<'_>) {
        let is_job = matches!(port.slots[usize::from(entry.head)].long.as_deref(), Some(Long::Job(_)));
        match entry.why {
            Why::Memory => {
                self.memory_waiters -= 1;
                self.lend(port, entry.head, cx);
            }
            Why::Claims(_) | Why::Fence(..) if is_job => self.work(port, entry.head, cx),
            Why::Claims(_) | Why::Fence(..) => self.go(port, entry.head, cx),
        }
    }

    fn give_up(&mut self, unit: UnitId, why: Why) {
        match why {
            Why::Memory => self.memory_waiters -= 1,
            Why::Claims(_) => {}
            Why::Fence(order, span, _) => self.ask_no_more(unit, Mark::Claim(order, span)),
        }
    }
}
