//! Commands that keep their turn in their unit's task set: ORDERED and HEAD OF QUEUE, what waits for them, and what may not
//! go on beside its like (`pollux_scsi`'s table says which).
//!
//! Who has to wait before it begins is *dormant*: its header is kept, nothing of it has been looked at, and it has a
//! slot, so that task management finds it. It is barred like others that wait (`fence.rs`), so its queue takes nothing
//! more. When it is its turn it is taken again, as if it came now, under the same name: head and turn of its slot.
//!
//! An ORDERED command asks all workers, as a claim does, when what was under way has ended: everything on the unit that
//! came before its place, whatever it waits for.

use std::sync::Arc;

use pollux_core::{Cx, IoFlags, Op};
use pollux_scsi::{Cdb, Entered, LogicalUnit, Place, Rank};

use crate::fence::{Mark, Why};
use crate::message::{Body, Message, UnitId};
use crate::port::{Long, Phase, Port};
use crate::request::Command;
use crate::serve::{Given, to_u32};
use crate::worker::ScsiWorker;

/// A command's place in its unit's task set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) place: Place,
    pub(crate) rank: Rank,
}

/// A command that has begun and that others wait for until it has ended.
pub(crate) struct Begun {
    logical: Arc<LogicalUnit>,
    place: Place,
    /// Port, head and turn of its slot.
    command: (usize, u16, u16),
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
        (slot.op, slot.flags, slot.offset, slot.len) = (Op::Flush, IoFlags::empty(), 0, 0);
        (slot.lun, slot.name, slot.started) = (given.lun, given.name, cx.now);
        slot.residual = to_u32(given.residual(0));
        slot.long = Some(Box::new(Long::Dormant(*command)));
        self.luns.get_mut(given.lun).inflight += 1;
        let mut missing = 0;
        if rank.asks_around() {
            missing = self.workers;
            self.ask_around(unit, Mark::Turn(place));
        }
        self.bar(port, given.head, Why::Turn(turn, missing));
        port.slots[usize::from(given.head)].phase = Phase::Dormant;
    }

    /// Whether a dormant command may begin.
    pub(crate) fn has_its_turn(&self, port: &Port, head: u16, turn: Turn) -> bool {
        let unit = self.luns.get(port.slots[usize::from(head)].lun).unit;
        self.units.look(unit).logical.may_begin(turn.place, turn.rank, self.worker)
    }

    /// Takes a dormant command again.
    pub(crate) fn wake(&mut self, port: &mut Port, head: u16, turn: Turn, cx: &mut Cx<'_>) {
        let slot = &mut port.slots[usize::from(head)];
        let (of_slot, lun) = (slot.turn, slot.lun);
        let Some(Long::Dormant(command)) = slot.long.as_deref() else {
            unreachable!("a dormant command has its header")
        };
        let command = *command;
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
        let slot = &mut port.slots[usize::from(head)];
        if slot.phase == Phase::Free {
            slot.turn = of_slot;
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
        let (logical, command) = (self.units.look(unit).logical.clone(), (port.number(), head, slot.turn));
        self.begun.push(Begun { logical, place: turn.place, command });
        self.draining = true;
    }

    /// A command has ended, whether it had begun or not: who waits for it is told.
    pub(crate) fn turn_over(&mut self, unit: UnitId, turn: Turn) {
        if turn.rank.is_known() {
            let logical = self.units.look(unit).logical.clone();
            self.left(&logical, turn.place);
        }
    }

    fn left(&mut self, logical: &LogicalUnit, place: Place) {
        for waiter in logical.leave(place) {
            self.outbox.push_back((waiter, Message(Body::Look)));
        }
    }

    /// Looks which of the commands that others wait for have ended. Returns whether some have not. No port is in use.
    pub(crate) fn collect_begun(&mut self) -> bool {
        if self.begun.is_empty() {
            return false;
        }
        for begun in std::mem::take(&mut self.begun) {
            if self.is_running(begun.command) {
                self.begun.push(begun);
            } else {
                self.left(&begun.logical, begun.place);
            }
        }
        !self.begun.is_empty()
    }
}
