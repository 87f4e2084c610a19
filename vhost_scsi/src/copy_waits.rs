//! Copies that wait before they go on: to begin, for memory, or for claims of a unit. Each is in one place at most, under
//! its arrival there, and leaves it when it ends, so nothing is left behind.
//!
//! A guest may have many copies (16 at each unit), so only those are looked at whose wait may be over, and a bounded
//! number in a pass, beside what commands may take of it. Who is looked at in vain comes last. For memory, commands and
//! copies wait in one order and are looked at together (`barred.rs`).

use std::collections::{BTreeMap, BTreeSet};

use pollux_core::{Cx, IoError};

use crate::barred::GOING_ON;
use crate::copies::{Request, Stage};
use crate::fence::Span;
use crate::message::UnitId;
use crate::worker::ScsiWorker;

/// How many looks copies are worth in a pass, and of those, the ones that begin.
const LOOKS: usize = 128;
const LOOKS_TO_BEGIN: usize = 64;

/// Where a copy waits, and its arrival there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    what: For,
    arrival: u64,
}

/// What a copy waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// To begin: the port of its command is in use.
    Begin,
    /// For memory, of which this session has a part.
    Memory(u64),
    /// For claims of this unit.
    Claims(UnitId),
}

/// Copies by their arrivals.
type Row = BTreeMap<u64, usize>;

/// Those that wait for claims of a unit.
#[derive(Default)]
struct AtUnit {
    copies: Row,
    /// How many of them are to be looked at.
    left: usize,
}

/// The copies of a worker that wait.
#[derive(Default)]
pub(crate) struct CopyWaits {
    begin: Row,
    /// By session.
    memory: BTreeMap<u64, Row>,
    units: BTreeMap<UnitId, AtUnit>,
    /// The units whose copies are to be looked at, and the one that was looked at last.
    due: BTreeSet<UnitId>,
    last: UnitId,
}

impl CopyWaits {
    fn put(&mut self, index: usize, Wait { what, arrival }: Wait) {
        match what {
            For::Begin => self.begin.insert(arrival, index),
            For::Memory(session) => self.memory.entry(session).or_default().insert(arrival, index),
            For::Claims(unit) => self.units.entry(unit).or_default().copies.insert(arrival, index),
        };
    }

    fn take(&mut self, Wait { what, arrival }: Wait) {
        match what {
            For::Begin => {
                self.begin.remove(&arrival);
            }
            For::Memory(session) => {
                let Some(row) = self.memory.get_mut(&session) else { return };
                row.remove(&arrival);
                if row.is_empty() {
                    self.memory.remove(&session);
                }
            }
            For::Claims(unit) => {
                let Some(at) = self.units.get_mut(&unit) else { return };
                at.copies.remove(&arrival);
                at.left = at.left.min(at.copies.len());
                if at.copies.is_empty() {
                    self.units.remove(&unit);
                }
            }
        }
    }

    /// Notes that what the copies that wait at this unit want may be there.
    pub(crate) fn note(&mut self, unit: UnitId) {
        if let Some(at) = self.units.get_mut(&unit) {
            at.left = at.copies.len();
            self.due.insert(unit);
        }
    }

    /// Whether some are to be looked at.
    pub(crate) fn are_due(&self) -> bool {
        !self.begin.is_empty() || !self.due.is_empty()
    }

    /// The first that waits for memory of each session that waits: the session, its arrival, and which it is.
    pub(crate) fn first_for_memory(&self) -> impl Iterator<Item = (u64, u64, usize)> {
        let first = |(&session, row): (&u64, &Row)| row.first_key_value().map(|(&at, &index)| (session, at, index));
        self.memory.iter().filter_map(first)
    }

    /// The next that is to be looked at of those that wait at this unit.
    fn next_at(&mut self, unit: UnitId) -> Option<usize> {
        let at = self.units.get_mut(&unit).filter(|at| at.left > 0)?;
        at.left -= 1;
        at.copies.first_key_value().map(|(_, &index)| index)
    }
}

impl ScsiWorker {
    /// Has a copy wait, behind those that wait for the same.
    pub(crate) fn copy_waits_for(&mut self, index: usize, what: For) {
        debug_assert!(self.copying(index).wait.is_none(), "a copy waits in one place");
        let wait = Wait { what, arrival: self.arrive() };
        self.memory_waiters += usize::from(matches!(what, For::Memory(_)));
        self.copy_waits.put(index, wait);
        self.copying(index).wait = Some(wait);
    }

    /// A copy does not wait any more: it goes on or ends.
    pub(crate) fn copy_waits_no_more(&mut self, index: usize) {
        let Some(wait) = self.copying(index).wait.take() else { return };
        self.memory_waiters -= usize::from(matches!(wait.what, For::Memory(_)));
        self.copy_waits.take(wait);
    }

    /// Gives memory, which there is, to a copy that has waited for it.
    pub(crate) fn lend_to_copy(&mut self, index: usize, looks: &mut usize, cx: &mut Cx<'_>) {
        self.looks += 1;
        *looks = looks.saturating_sub(1 + GOING_ON);
        self.copy_waits_no_more(index);
        let copying = self.copies[index].as_mut().expect("a copy stays until it has ended");
        copying.own = self.pool.take(copying.session);
        self.copy_on(index, cx);
    }

    /// Has those copies go on that find what they wait for, memory aside. Returns whether some are left to look at.
    pub(crate) fn look_at_copies(&mut self, cx: &mut Cx<'_>) -> bool {
        let mut looks = LOOKS_TO_BEGIN;
        while looks > 0
            && let Some((_, &index)) = self.copy_waits.begin.first_key_value()
        {
            self.looks += 1;
            looks = looks.saturating_sub(1 + GOING_ON);
            self.copy_waits_no_more(index);
            self.copy_on(index, cx);
        }
        looks += LOOKS - LOOKS_TO_BEGIN;
        let due = std::mem::take(&mut self.copy_waits.due);
        let last = self.copy_waits.last;
        for &unit in due.range(last.saturating_add(1)..).chain(due.range(..=last)) {
            if looks == 0 {
                self.copy_waits.due.insert(unit);
                continue;
            }
            self.copy_waits.last = unit;
            while looks > 0
                && let Some(index) = self.copy_waits.next_at(unit)
            {
                self.look_at_copy(index, unit, &mut looks, cx);
            }
            if self.copy_waits.units.get(&unit).is_some_and(|at| at.left > 0) {
                self.copy_waits.due.insert(unit);
            }
        }
        self.copy_waits.are_due()
    }

    /// Has a copy that waits for claims of a unit go on, if it can.
    fn look_at_copy(&mut self, index: usize, unit: UnitId, looks: &mut usize, cx: &mut Cx<'_>) {
        self.looks += 1;
        *looks = looks.saturating_sub(1);
        self.copy_waits_no_more(index);
        let copying = self.copying(index);
        let (stage, Request { unit: of, offset, len, source, .. }) = (copying.stage, copying.request);
        let logical = &self.units.look(of).logical;
        let may_start = |order, offset, len| logical.may_start(order, offset, len, self.worker);
        match stage {
            // With two ranges it comes to both anew.
            Stage::Claims(_) if source.is_some() => self.copy_enter(index, cx),
            Stage::Claims(order) if may_start(order, offset, len) => self.copy_go(index, cx),
            Stage::Settling(order, Span { offset, len }, 0) if may_start(order, offset, len) => self.copy_on(index, cx),
            Stage::Settling(..) if logical.is_wiping() => self.copy_failed(index, IoError::NotReady),
            _ => self.copy_waits_for(index, For::Claims(unit)),
        }
        if self.copies[index].as_ref().is_none_or(|copying| copying.wait.is_none()) {
            *looks = looks.saturating_sub(GOING_ON);
        }
    }
}
