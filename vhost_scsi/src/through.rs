//! Commands that go to a whole SCSI device as they are, and its answers on their way back.
//!
//! Such a command takes a slot, room on its unit and the guest's buffers like a transfer; what goes down is its CDB,
//! and what comes up is the device's status, sense and residual, or how it was lost on the way, which virtio-scsi has
//! words for.

use std::collections::BTreeSet;

use pollux_core::{Cx, Delivery, Direction, IoError, IoFlags, Op, ScsiAnswer, ScsiCommand, Tag, segment};
use pollux_scsi::{Cdb, Key, Pass, Sense, code, direction};

use crate::background::BACKGROUND;
use crate::message::{AbortId, ControllerId, UnitId};
use crate::pieces::Copied;
use crate::port::{Answer, Long, Phase, Port};
use crate::request::{COMMAND_LEN, RESPONSE_LEN, Response};
use crate::serve::{Encoded, Given, to_u32};
use crate::worker::ScsiWorker;

/// Tags with this bit, beside that of background commands, belong to resets of a device.
pub(crate) const RESET: Tag = 1 << 61;

/// What a slot keeps of such a command.
pub(crate) struct Passing {
    cdb: [u8; 32],
    direction: Direction,
    pass: Pass,
    /// Parameter data that its unit has looked at: this goes to the device, and not what the guest has by then.
    looked_at: Option<Copied>,
}

impl ScsiWorker {
    /// Starts a command whose chain lies in `self.segments`.
    pub(crate) fn start_pass(&mut self, port: &mut Port, given: &Given, cdb: &Cdb, pass: Pass, cx: &mut Cx<'_>) {
        let looked_at = usize::try_from(given.used).ok().filter(|len| *len > 0);
        let looked_at = looked_at.map(|len| Copied::new(&self.parameters[..len]));
        let (direction, len) = match looked_at {
            Some(_) => (Direction::Out, given.used),
            None => direction(given.data_out, given.data_in),
        };
        let slot = port.claim(given.head);
        self.put_response(slot, given.readable);
        let (readable, writable) = self.segments.as_slice().split_at(given.readable);
        let (op, from, skip) = match direction {
            Direction::In => (Op::Read, writable, RESPONSE_LEN),
            Direction::Out => (Op::Write, readable, COMMAND_LEN),
            Direction::None => (Op::Flush, readable, COMMAND_LEN),
        };
        let bytes = usize::try_from(len).expect("a chain fits into memory");
        let got = segment::for_range(from, skip, bytes, |part| slot.pieces.push(part));
        assert_eq!(got as u64, len, "the chain holds what it was counted to hold");
        (slot.op, slot.flags, slot.offset, slot.len) = (op, IoFlags::empty(), 0, len);
        (slot.lun, slot.name, slot.residual, slot.started) = (given.lun, given.name, to_u32(given.residual(0)), cx.now);
        slot.long = Some(Box::new(Long::Pass(Passing { cdb: *cdb.as_bytes(), direction, pass, looked_at })));
        self.luns.get_mut(given.lun).inflight += 1;
        self.go(port, given.head, cx);
    }

    /// Hands a slot's command to the device.
    pub(crate) fn submit_pass(&mut self, port: &mut Port, head: u16, unit: UnitId, cx: &mut Cx<'_>) {
        let tag = port.tag(head);
        let slot = &mut port.slots[usize::from(head)];
        slot.phase = Phase::Running;
        let Some(Long::Pass(passing)) = slot.long.as_deref() else {
            unreachable!("the caller has seen that it is one")
        };
        let Passing { cdb, direction, pass: Pass { cdb_len, timeout_ms }, ref looked_at } = *passing;
        let data = looked_at.as_ref().map_or_else(|| slot.pieces.data(), Copied::data);
        let command = ScsiCommand { tag, cdb, cdb_len, direction, len: slot.len, data, timeout_ms };
        if let Err(error) = self.units.submit_scsi(unit, command, slot.charge(), cx) {
            self.pass_done(port, head, Err(error), cx);
        }
    }

    /// The device has ended a slot's command, or it never came there.
    pub(crate) fn pass_done(&mut self, port: &mut Port, head: u16, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let tag = port.tag(head);
        let slot = &port.slots[usize::from(head)];
        let (len, all) = (slot.len, u64::from(slot.residual));
        let lun = self.luns.get_mut(slot.lun);
        lun.inflight -= 1;
        let lost = if result == Err(IoError::Aborted) { Delivery::Aborted } else { Delivery::Gone };
        let answer = self.units.take_answer(lun.unit, tag).unwrap_or(ScsiAnswer::undelivered(lost, len));
        let good = answer.delivery == Delivery::Answered;
        // Of what the device has not answered nothing was moved, whatever its driver says.
        let moved = if good { len - answer.residual.min(len) } else { 0 };
        lun.stats.ended(slot.op, moved, cx.now.saturating_sub(slot.started), good);
        if let Some(response) = slot.aborted {
            port.answer_slot(head, &Answer::response(response, all));
            return;
        }
        let data_in = if slot.op == Op::Read { moved } else { 0 };
        let residual = all - moved;
        let Some(response) = response_of(answer.delivery) else {
            let sense = Encoded::fixed(Some(&Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_CDB)));
            port.answer_slot(head, &sense.check_condition(all));
            return;
        };
        let (status, sense) = (answer.status, answer.sense());
        port.answer_slot(head, &Answer { response, status, sense, residual, data_in });
    }

    /// A controller's guest has gone: devices that it had whole let go what they keep for it.
    pub(crate) fn nexus_lost(&mut self, controller: ControllerId) {
        let units: BTreeSet<UnitId> = self.luns.of(controller).map(|lun| self.luns.get(lun).unit).collect();
        units.into_iter().for_each(|unit| self.units.nexus_lost(unit));
    }

    /// Has a unit's device reset, for a task management function that waits for it.
    pub(crate) fn reset_device(&mut self, unit: UnitId, id: AbortId, cx: &mut Cx<'_>) {
        if !self.units.reset(unit, BACKGROUND | RESET | id.number, cx) {
            self.reset_ended(id, false);
        }
    }

    /// A unit's device has been reset, or could not be.
    pub(crate) fn reset_done(&mut self, unit: UnitId, tag: Tag, result: Result<(), IoError>) {
        self.units.reset_ended(unit);
        let id = AbortId { worker: self.worker, number: tag & !(BACKGROUND | RESET) };
        self.reset_ended(id, result.is_ok());
    }
}

/// What a guest is told of a command that its device has not answered; `None`: what the device would say of a command that
/// asks for too much at once.
const fn response_of(delivery: Delivery) -> Option<Response> {
    Some(match delivery {
        Delivery::Answered => Response::Ok,
        Delivery::TooLong => return None,
        Delivery::Gone => Response::BadTarget,
        Delivery::Busy => Response::Busy,
        Delivery::Reset => Response::Reset,
        Delivery::Aborted => Response::Aborted,
        Delivery::Transport => Response::TransportFailure,
        Delivery::Target => Response::TargetFailure,
        Delivery::Nexus => Response::NexusFailure,
        Delivery::Failed => Response::Failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_its_word() {
        let words: Vec<_> = Delivery::ALL.into_iter().map(|delivery| response_of(delivery).map(|r| r as u8)).collect();
        // virtio 1.2, 5.6.6.1.2: OK, (none), BAD_TARGET, BUSY, RESET, ABORTED, TRANSPORT_, TARGET_, NEXUS_FAILURE, FAILURE
        let want = [Some(0), None, Some(3), Some(5), Some(4), Some(2), Some(6), Some(7), Some(8), Some(9)];
        assert_eq!(words, want);
    }
}
