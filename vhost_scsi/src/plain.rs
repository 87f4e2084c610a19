//! The everyday command: READ or WRITE (10) or (16) of a unit that the queue has just worked on, in the layout that every
//! driver makes, with a slot of the device free. It takes this file and nothing else from the copied header to the
//! device; the answer is `complete_all`'s.
//!
//! [`ScsiWorker::plain`] either takes such a command or leaves everything as it was: whatever is not plain goes the long
//! way (`any_command`), which takes the plain ones just as well. `tests` holds the two against each other.

use pollux_core::{Cx, Io, Op};
use pollux_scsi::PlainIo;
use pollux_vhost_user::Chain;

use crate::line::Charge;
use crate::port::{Phase, Port};
use crate::request::{COMMAND_LEN, Command, RESPONSE_LEN};
use crate::worker::ScsiWorker;

impl ScsiWorker {
    /// Takes a plain command whose chain lies in `self.segments`; false, and nothing has happened, if it is not plain.
    #[inline(always)]
    pub(crate) fn plain(&mut self, port: &mut Port, chain: &Chain, command: &Command, cx: &mut Cx<'_>) -> bool {
        if port.route.field != command.lun() || port.route.epoch != self.luns.epoch() {
            return false;
        }
        let lun = self.luns.get_mut(port.route.lun);
        let unit = self.units.get(lun.unit);
        let Some(PlainIo { op, flags, offset, len }) = unit.logical.plain_io(&lun.path, command.cdb(), command.odd())
        else {
            return false;
        };
        let data_out = chain.readable_bytes - COMMAND_LEN as u64;
        let data_in = chain.writable_bytes - RESPONSE_LEN as u64;
        let fits = if op == Op::Read { (data_in, data_out) == (len, 0) } else { (data_in, data_out) == (0, len) };
        if !fits || !unit.is_clear() || !port.is_patient_with_one_more() {
            return false;
        }
        let (readable, writable) = self.segments.as_slice().split_at(chain.readable);
        let ([header, more_out @ ..], [response, more_in @ ..]) = (readable, writable) else { return false };
        if header.len() < COMMAND_LEN || response.len() < RESPONSE_LEN {
            return false;
        }
        // The data follows the header or the response, in the same piece of memory or in the next.
        let (first, more) = match op {
            Op::Read => (response.slice(RESPONSE_LEN, usize::MAX), more_in),
            _ => (header.slice(COMMAND_LEN, usize::MAX), more_out),
        };
        let number = port.route.lun;
        let slot = port.claim(chain.head);
        slot.phase = Phase::Running;
        (slot.op, slot.flags, slot.offset, slot.len) = (op, flags, offset, len);
        (slot.lun, slot.name, slot.residual, slot.started) = (number, command.tag(), 0, cx.now);
        slot.pieces.fill(response.slice(0, RESPONSE_LEN), first, more);
        let data = slot.pieces.data();
        if unit.bounces(data.as_slice()) {
            port.stats.bounces.add(1);
        }
        let (tag, unit) = (port.tag(chain.head), lun.unit);
        lun.inflight += 1;
        let submitted = self.units.submit(unit, Io { tag, op, flags, offset, len, data }, Charge::plain(len), cx);
        debug_assert!(submitted.is_ok(), "the unit was ready");
        true
    }
}
