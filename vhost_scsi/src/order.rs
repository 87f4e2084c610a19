//! Commands that keep their turn in their unit's task set: ORDERED and HEAD OF QUEUE, what waits for them, and what may not
//! go on beside its like (`pollux_scsi`'s table says which).
//!
//! Who has to wait before it begins is *dormant*: its header is kept, nothing of it has been looked at, and it has a
//! slot, so that task management finds it. Its queue goes on with what comes behind it, for this unit or for others: each
//! has its own place. When it is its turn it is taken again, as if it came now, under the same name: head and turn of
//! its slot.
//!
//! An ORDERED command asks all workers, as a claim does, when what was under way has ended: everything on the unit that
//! came before its place, whatever it waits for. It asks when it is next in the task set, so one for each unit asks.
//!
//! What waits is kept by unit and place, and looked at when something of that unit has ended, once in a pass however much
//! that was. The first that has to go on waiting ends the look, because so do those behind it; those who save are few and
//! are each looked at.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use pollux_core::{Cx, IoError, IoFlags, Op};
use pollux_scsi::{Cdb, Entered, LogicalUnit, Place, Rank};

use crate::barred::GOING_ON;
use crate::fence::Mark;
use crate::message::{Body, Message, UnitId};
use crate::port::{Long, Phase, Port};
use crate::request::Command;
use crate::serve::{Given, to_u32};
use crate::worker::ScsiWorker;

/// Of one queue, dormant commands for which others wait; one more stops the queue. So no guest fills the task set of a unit
/// by waiting.
const MOST_RANKED: u32 = 4;
/// Commands that have begun and are looked at in a pass, whether they have ended, and, where there are more, those of one
/// unit before it is another's turn.
const LOOKS: usize = 256;
const LOOKS_OF_UNIT: usize = 64;

/// A command's place in its unit's task set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) place: Place,
    pub(crate) rank: Rank,
}

/// A command that waits for its turn.
struct Dormant {
    /// Port and head.
    command: (usize, u16),
    rank: Rank,
    /// Its queue takes nothing more until it has begun.
    stops: bool,
    /// So many workers have not said that what came before has ended; `None`: they have not been asked.
    missing: Option<usize>,
}

/// The dormant commands of one unit.
#[derive(Default)]
struct OfUnit {
    /// Those who save.
    saving: BTreeMap<Place, Dormant>,
    /// The others: while one waits, so do those behind it.
    others: BTreeMap<Place, Dormant>,
}

impl OfUnit {
    fn row(&mut self, rank: Rank) -> &mut BTreeMap<Place, Dormant> {
        if rank.is_waited_with() { &mut self.others } else { &mut self.saving }
    }

    fn find(&mut self, place: Place) -> Option<&mut Dormant> {
        self.others.get_mut(&place).or_else(|| self.saving.get_mut(&place))
    }

    fn is_empty(&self) -> bool {
        self.saving.is_empty() && self.others.is_empty()
    }
}

/// The dormant commands of a worker.
#[derive(Default)]
pub(crate) struct Dormants(BTreeMap<UnitId, OfUnit>);

impl Dormants {
    fn add(&mut self, unit: UnitId, place: Place, dormant: Dormant) {
        self.0.entry(unit).or_default().row(dormant.rank).insert(place, dormant);
    }

    fn take(&mut self, unit: UnitId, turn: Turn) -> Option<Dormant> {
        let of = self.0.get_mut(&unit)?;
        let dormant = of.row(turn.rank).remove(&turn.place);
        if of.is_empty() {
            self.0.remove(&unit);
        }
        dormant
    }

    fn find(&mut self, unit: UnitId, place: Place) -> Option<&mut Dormant> {
        self.0.get_mut(&unit)?.find(place)
    }

    fn saving(&self, unit: UnitId) -> Vec<Turn> {
        let rows = self.0.get(&unit).into_iter().flat_map(|of| &of.saving);
        rows.map(|(&place, dormant)| Turn { place, rank: dormant.rank }).collect()
    }

    fn first_of_others(&self, unit: UnitId) -> Option<Turn> {
        let (&place, dormant) = self.0.get(&unit)?.others.first_key_value()?;
        Some(Turn { place, rank: dormant.rank })
    }

    /// Whether one has come to the unit before this place.
    pub(crate) fn are_before(&self, unit: UnitId, place: Place) -> bool {
        let first = |row: &BTreeMap<Place, Dormant>| row.keys().next().is_some_and(|first| *first < place);
        self.0.get(&unit).is_some_and(|of| first(&of.saving) || first(&of.others))
    }
}

/// A command that has begun and that others wait for until it has ended.
struct Begun {
    place: Place,
    /// Port, head and turn of its slot.
    command: (usize, u16, u16),
}

/// Those of a worker, by unit.
#[derive(Default)]
pub(crate) struct AllBegun(VecDeque<(UnitId, Arc<LogicalUnit>, VecDeque<Begun>)>);

impl AllBegun {
    fn add(&mut self, unit: UnitId, logical: &Arc<LogicalUnit>, begun: Begun) {
        match self.0.iter_mut().find(|(of, known, _)| *of == unit && Arc::ptr_eq(known, logical)) {
            Some((.., all)) => all.push_back(begun),
            None => self.0.push_back((unit, logical.clone(), VecDeque::from([begun]))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn count(&self) -> usize {
        self.0.iter().map(|(.., all)| all.len()).sum()
    }
}

impl ScsiWorker {
    /// Takes a command to its unit's task set, where others have to be looked at: it begins, waits, or is refused.
    pub(crate) fn enter_task_set(
        &mut self,
        port: &mut Port,
        given: Given,
        command: &Command,
        rank: Rank,
        cx: &mut Cx<'_>,
    ) {
        let unit = self.luns.get(given.lun).unit;
        let Some(Entered { place, free }) = self.units.look(unit).logical.enter(rank, self.worker) else {
            self.answer_outcome(port, &given, &rank.refusal());
            return;
        };
        let turn = Turn { place, rank };
        if free && !rank.asks_around() {
            self.begin(port, given, &Cdb::new(*command.cdb()), turn, cx);
            return;
        }
        let slot = port.claim(given.head);
        self.put_response(slot, given.readable);
        slot.phase = Phase::Dormant;
        (slot.op, slot.flags, slot.offset, slot.len) = (Op::Flush, IoFlags::empty(), 0, 0);
        (slot.lun, slot.name, slot.started) = (given.lun, given.name, cx.now);
        slot.residual = to_u32(given.residual(0));
        slot.long = Some(Box::new(Long::Dormant(*command, turn)));
        self.luns.get_mut(given.lun).inflight += 1;
        let missing = free.then(|| self.ask_for(unit, place));
        let ranked = rank.is_known();
        port.ranked += u32::from(ranked);
        let stops = ranked && port.ranked > MOST_RANKED;
        port.waiting += u32::from(stops);
        let command = (port.number(), given.head);
        self.dormants.add(unit, place, Dormant { command, rank, stops, missing });
    }

    /// Asks all workers when what came before this place has ended; how many have to answer.
    fn ask_for(&mut self, unit: UnitId, place: Place) -> usize {
        self.ask_around(unit, Mark::Turn(place));
        self.workers
    }

    /// A worker says that nothing of before this place is under way there any more.
    pub(crate) fn turn_fenced(&mut self, unit: UnitId, place: Place) {
        let dormant = self.dormants.find(unit, place);
        if let Some(missing) = dormant.and_then(|dormant| dormant.missing.as_mut()) {
            *missing -= 1;
            if *missing == 0 {
                self.note_look(Some(unit));
            }
        }
    }

    /// Has those dormant commands of a unit begin whose turn it is, as far as a pass allows. Returns whether these were all.
    pub(crate) fn look_at_turns(&mut self, unit: UnitId, looks: &mut usize, cx: &mut Cx<'_>) -> bool {
        for turn in self.dormants.saving(unit) {
            if *looks == 0 {
                return false;
            }
            self.look_at_turn(unit, turn, looks, cx);
        }
        while let Some(turn) = self.dormants.first_of_others(unit) {
            if *looks == 0 {
                return false;
            }
            if !self.look_at_turn(unit, turn, looks, cx) {
                break;
            }
        }
        true
    }

    /// Has a dormant command begin if it is its turn.
    fn look_at_turn(&mut self, unit: UnitId, turn: Turn, looks: &mut usize, cx: &mut Cx<'_>) -> bool {
        self.looks += 1;
        *looks = looks.saturating_sub(1);
        let Turn { place, rank } = turn;
        let logical = &self.units.look(unit).logical;
        let Some(dormant) = self.dormants.find(unit, place) else { return false };
        match dormant.missing {
            None if rank.asks_around() => {
                if logical.is_next(place, rank, self.worker) {
                    dormant.missing = Some(self.workers);
                    self.ask_for(unit, place);
                }
                return false;
            }
            Some(missing) if missing > 0 => return false,
            _ if !logical.may_begin(place, rank, self.worker) => return false,
            _ => {}
        }
        let (number, head) = dormant.command;
        *looks = looks.saturating_sub(GOING_ON);
        let mut port = self.take_port(number).expect("a port stays while its requests are in flight");
        self.take_dormant(&mut port, unit, turn);
        self.wake(&mut port, head, turn, cx);
        self.put_port(number, port);
        self.activate(number);
        // Who asks for what came before it, and those behind, find it begun.
        self.due.units.insert(unit);
        true
    }

    /// Takes a dormant command out of the rows.
    fn take_dormant(&mut self, port: &mut Port, unit: UnitId, turn: Turn) -> Option<Dormant> {
        let dormant = self.dormants.take(unit, turn)?;
        port.ranked -= u32::from(turn.rank.is_known());
        port.waiting -= u32::from(dormant.stops);
        Some(dormant)
    }

    /// Ends a dormant command that was aborted.
    pub(crate) fn drop_dormant(&mut self, port: &mut Port, head: u16, cx: &mut Cx<'_>) {
        let slot = &port.slots[usize::from(head)];
        let unit = self.luns.get(slot.lun).unit;
        let Some(&Long::Dormant(_, turn)) = slot.long.as_deref() else { return };
        let Some(dormant) = self.take_dormant(port, unit, turn) else { return };
        if dormant.missing.is_some_and(|missing| missing > 0) {
            self.ask_no_more(unit, Mark::Turn(turn.place));
        }
        self.turn_over(unit, turn);
        // Those behind it here have not asked past it.
        self.due.units.insert(unit);
        self.finish(port, head, Err(IoError::Aborted), cx);
    }

    /// Takes a dormant command again.
    fn wake(&mut self, port: &mut Port, head: u16, turn: Turn, cx: &mut Cx<'_>) {
        let slot = &mut port.slots[usize::from(head)];
        let (of_slot, lun) = (slot.turn, slot.lun);
        let Some(&Long::Dormant(command, _)) = slot.long.as_deref() else {
            unreachable!("a dormant command has its header")
        };
        port.reopen(head);
        let unit = self.luns.get(lun).unit;
        self.luns.get_mut(lun).inflight -= 1;
        match self.look_up_head(port, head) {
            Some(chain) => {
                let given = Given::new(&chain, lun, &command);
                if self.refuses_both_ways(port, &given) {
                    self.turn_over(unit, turn);
                } else {
                    self.begin(port, given, &Cdb::new(*command.cdb()), turn, cx);
                }
            }
            // The session is ending.
            None => self.turn_over(unit, turn),
        }
        let number = port.number();
        let slot = &mut port.slots[usize::from(head)];
        if slot.phase == Phase::Free {
            slot.turn = of_slot;
        } else {
            self.fence_command(unit, turn.place, (number, head, slot.turn));
        }
    }

    /// A command begins; it is in no slot.
    fn begin(&mut self, port: &mut Port, given: Given, cdb: &Cdb, turn: Turn, cx: &mut Cx<'_>) {
        let (head, unit) = (given.head, self.luns.get(given.lun).unit);
        self.perform(port, given, cdb, cx);
        if !turn.rank.is_known() {
            return;
        }
        let slot = &port.slots[usize::from(head)];
        if slot.phase == Phase::Free {
            self.turn_over(unit, turn);
            return;
        }
        let begun = Begun { place: turn.place, command: (port.number(), head, slot.turn) };
        self.begun.add(unit, &self.units.look(unit).logical, begun);
        self.draining = true;
        if slot.phase == Phase::Parked && self.is_preempting(port.tag(head)) {
            self.let_others_save(unit, turn.place);
        }
    }

    /// The change of a command that has begun, and has a slot, counts.
    pub(crate) fn change_counts(&mut self, unit: UnitId, command: (usize, u16, u16)) {
        let of_unit = self.begun.0.iter().find(|(of, ..)| *of == unit);
        let begun = of_unit.and_then(|(.., all)| all.iter().find(|begun| begun.command == command));
        if let Some(place) = begun.map(|begun| begun.place) {
            self.let_others_save(unit, place);
        }
    }

    fn let_others_save(&mut self, unit: UnitId, place: Place) {
        let waiters = self.units.look(unit).logical.change_counts(place);
        self.tell(unit, waiters);
    }

    /// A command has ended, whether it had begun or not: who waits for it is told.
    fn turn_over(&mut self, unit: UnitId, turn: Turn) {
        if turn.rank.is_known() {
            let waiters = self.units.look(unit).logical.leave(turn.place);
            self.tell(unit, waiters);
        }
    }

    /// Has these workers look at who waits on a unit.
    pub(crate) fn tell(&mut self, unit: UnitId, waiters: Vec<usize>) {
        for waiter in waiters {
            self.outbox.push_back((waiter, Message(Body::Look { unit: Some(unit) })));
        }
    }

    /// Looks which of the commands that others wait for have ended, a bounded number of them. Returns whether some have not
    /// been looked at. No port is in use.
    pub(crate) fn collect_begun(&mut self) -> bool {
        let count = self.begun.count();
        let of_unit = if count > LOOKS { LOOKS_OF_UNIT } else { LOOKS };
        let mut left = LOOKS.min(count);
        while left > 0
            && let Some((unit, logical, mut all)) = self.begun.0.pop_front()
        {
            for _ in 0..all.len().min(of_unit).min(left) {
                left -= 1;
                let Some(begun) = all.pop_front() else { break };
                if self.is_running(begun.command) {
                    all.push_back(begun);
                } else {
                    self.tell(unit, logical.leave(begun.place));
                }
            }
            if !all.is_empty() {
                self.begun.0.push_back((unit, logical, all));
            }
        }
        count > LOOKS
    }
}
