//! Where commands come in: what is looked at before a command's own handler, and in which order.

use pollux_core::{IoFlags, Op};

use crate::cdb::{Blocks, Everyday, everyday};
use crate::commands::{self, Call, RowFlags, discovery};
use crate::data_in::DataIn;
use crate::geometry::{Flags, Geometry};
use crate::unit::Standing;
use crate::wipe::Blocked;
use crate::{Action, Cdb, LogicalUnit, Nexus, Outcome, Path, SCRATCH_MIN, Sense};

/// The units that a target has, for REPORT LUNS.
pub trait Inventory {
    /// Visits the number of every unit, in ascending order.
    fn luns(&self, visit: &mut dyn FnMut(u16));

    /// Whether the front end serves the well-known REPORT LUNS unit (C1h 01h) with [`execute_well_known`].
    fn well_known(&self) -> bool {
        false
    }
}

/// A transfer between the initiator's buffer and the device. `len` is not 0; the range lies inside the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainIo {
    /// `Read` or `Write`.
    pub op: Op,
    /// `FUA` where the write has to be durable before it is answered.
    pub flags: IoFlags,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl LogicalUnit {
    /// Takes a command. `scratch` is the caller's own memory, [`SCRATCH_LEN`](crate::SCRATCH_LEN) bytes of it ideally;
    /// data-in is put there.
    ///
    /// # Panics
    /// If `scratch` is shorter than [`SCRATCH_MIN`].
    pub fn execute(&self, path: &Path, cdb: &Cdb, inventory: &dyn Inventory, scratch: &mut [u8]) -> Action {
        match self.plain_io(path, cdb.as_bytes(), 0) {
            Some(PlainIo { op, flags, offset, len }) => Action::Io { op, flags, offset, len },
            None => self.execute_any(path, cdb, inventory, scratch),
        }
    }

    /// What READ and WRITE (10) and (16) in their everyday form ask for, without the table: nothing pending, no
    /// reservation that might keep the path from it, no bit set that needs a second thought, a range inside the
    /// capacity. `odd` is not 0 if the front end knows a reason for a second thought, such as a task attribute.
    /// Anything else is `None`, and nothing has happened: [`LogicalUnit::execute`] finds out what it is.
    #[inline(always)]
    #[must_use]
    pub fn plain_io(&self, path: &Path, cdb: &[u8; 32], odd: u8) -> Option<PlainIo> {
        let Everyday { write, fua, blocks: Blocks { lba, count } } = everyday(cdb, odd)?;
        let geometry = self.geometry();
        if !path.is_clear() || !geometry.has(Flags::PLAIN) {
            return None;
        }
        let (offset, len) = geometry.some_range(lba, count)?;
        if !write {
            return Some(PlainIo { op: Op::Read, flags: IoFlags::empty(), offset, len });
        }
        if geometry.writable().is_err() {
            return None;
        }
        Some(PlainIo { op: Op::Write, flags: geometry.write_flags(fua), offset, len })
    }

    /// Goes on with a command that was answered with [`Action::DataOut`], with the parameter data: the bytes that the
    /// guest really sent, if it had less than was asked for.
    pub fn execute_out(&self, path: &Path, cdb: &Cdb, parameters: &[u8], scratch: &mut [u8]) -> Action {
        if let Some(through) = self.through.get() {
            return through.send_on(cdb, Some(parameters));
        }
        let Standing { geometry, stopped, blocked } = self.standing();
        let row = match commands::find(cdb, geometry) {
            Ok(row) => row,
            Err(sense) => return sense.into(),
        };
        let mut call = Call { unit: self, path, cdb, geometry, stopped, blocked, data: DataIn::new(scratch) };
        let ready = usable(&call, row.flags);
        ready.and_then(|()| row.parameters.ok_or(Sense::INVALID_OPCODE)?(&mut call, parameters)).into()
    }

    fn execute_any(&self, path: &Path, cdb: &Cdb, inventory: &dyn Inventory, scratch: &mut [u8]) -> Action {
        assert!(scratch.len() >= SCRATCH_MIN, "{} bytes of scratch", scratch.len());
        if let Some(through) = self.through.get() {
            return self.execute_through(through, path, cdb, inventory, scratch);
        }
        let Standing { geometry, stopped, blocked } = self.standing();
        let row = commands::find(cdb, geometry);
        let exempt = row.is_ok_and(|row| row.flags.contains(RowFlags::WITH_ATTENTION));
        // SAM-5, clause 5.14.4: the attention comes before anything that is wrong with the command.
        if !exempt && let Some(attention) = path.take() {
            return attention.sense().into();
        }
        // Behind the attention, which may say why (SAM-5, clause 5.3.3), and before anything that is wrong with the
        // command.
        if row.is_ok_and(|row| self.conflicts(path, row.access, cdb)) {
            return Action::Done(Outcome::CONFLICT);
        }
        let mut call = Call { unit: self, path, cdb, geometry, stopped, blocked, data: DataIn::new(scratch) };
        let run = |row: &'static commands::Row| {
            row.check(cdb)?;
            usable(&call, row.flags)?;
            (row.handler)(&mut call, inventory)
        };
        row.and_then(run).into()
    }
}

/// Whether the unit is in a state to serve a command of this kind.
fn usable(call: &Call<'_>, flags: RowFlags) -> Result<(), Sense> {
    if !flags.contains(RowFlags::WHEN_MISSING) && !call.geometry.has(Flags::READY) {
        return Err(Sense::NOT_READY);
    }
    if let Some(Blocked { sense, in_progress }) = call.blocked {
        let least = if in_progress { RowFlags::WHEN_WIPING } else { RowFlags::WHEN_WIPING | RowFlags::WHEN_CORRUPT };
        if !flags.intersects(least) {
            return Err(sense);
        }
    }
    if !flags.contains(RowFlags::WHEN_STOPPED) && call.stopped {
        return Err(Sense::STOPPED);
    }
    if flags.contains(RowFlags::CHANGES_MEDIUM) { call.geometry.writable() } else { Ok(()) }
}

/// A command for a number of an existing target that has no unit behind it (SPC-5, clause 4.7.1 and SAM-5, clause
/// 5.11): INQUIRY says so with peripheral qualifier 3, REPORT LUNS and REQUEST SENSE work, all else ends with 25h/00h.
pub fn execute_absent(cdb: &Cdb, nexus: &Nexus, inventory: &dyn Inventory, scratch: &mut [u8]) -> Action {
    const NOT_CAPABLE: u8 = 0x7F;
    execute_without_unit(cdb, nexus, inventory, scratch, NOT_CAPABLE, Sense::LUN_NOT_SUPPORTED)
}

/// A command for the well-known REPORT LUNS unit (SPC-5, clause 8.2).
pub fn execute_well_known(cdb: &Cdb, nexus: &Nexus, inventory: &dyn Inventory, scratch: &mut [u8]) -> Action {
    const WELL_KNOWN: u8 = 0x1E;
    if cdb.opcode() == 0x00 {
        return match commands::find(cdb, Geometry::missing(Flags::empty())).and_then(|row| row.check(cdb)) {
            Ok(()) => Action::Done(Outcome::GOOD),
            Err(sense) => sense.into(),
        };
    }
    execute_without_unit(cdb, nexus, inventory, scratch, WELL_KNOWN, Sense::NONE)
}

/// INQUIRY, REPORT LUNS, REQUEST SENSE where there is no disk. `peripheral` is what INQUIRY shows; `sense` is what
/// REQUEST SENSE reports, and 25h/00h or 20h/00h ends everything else.
fn execute_without_unit(
    cdb: &Cdb,
    nexus: &Nexus,
    inventory: &dyn Inventory,
    scratch: &mut [u8],
    peripheral: u8,
    sense: Sense,
) -> Action {
    let other = if sense == Sense::NONE { Sense::INVALID_OPCODE } else { sense };
    let row = match commands::find(cdb, Geometry::missing(Flags::empty())) {
        Ok(row) if row.flags.contains(RowFlags::WITHOUT_UNIT) => row,
        _ => return other.into(),
    };
    let mut data = DataIn::new(scratch);
    let answer = row.check(cdb).and_then(|()| match cdb.opcode() {
        0x12 => discovery::inquiry_without_unit(cdb, peripheral, &mut data),
        0xA0 => discovery::report_luns(cdb, nexus, inventory, &mut data),
        _ => Ok(discovery::sense_data(cdb, sense, &mut data)),
    });
    answer.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bench, Luns, shape, two_paths};
    use crate::{Attention, SCRATCH_LEN};
    use pollux_core::Shape;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_fast_way_answers_what_the_table_answers(
            opcode in prop::sample::select(vec![0x28, 0x2A, 0x88, 0x8A]),
            flags in prop::sample::select(vec![0, 0x08, 0x10, 0x18, 0x02, 0x20, 0x04]),
            lba in 0u16..5000, count in 0u8..4, rest in prop::sample::select(vec![0, 0, 0x04, 0x40]),
            read_only in any::<bool>(),
        ) {
            let (unit, [path, _]) = two_paths(Some(Shape { read_only, ..shape() }));
            let mut cdb = [0; 32];
            (cdb[0], cdb[1]) = (opcode, flags);
            let (lba_at, count_at, group, control) = if opcode < 0x80 { (4, 8, 6, 9) } else { (8, 13, 14, 15) };
            cdb[lba_at..lba_at + 2].copy_from_slice(&lba.to_be_bytes());
            (cdb[count_at], cdb[group], cdb[control]) = (count, rest & 0x40, rest & 0x04);
            let cdb = Cdb::new(cdb);
            let mut scratch = vec![0; SCRATCH_LEN];
            let table = unit.execute_any(&path, &cdb, &Luns, &mut scratch);
            if let Some(PlainIo { op, flags, offset, len }) = unit.plain_io(&path, cdb.as_bytes(), 0) {
                let fast = Action::Io { op, flags, offset, len };
                prop_assert_eq!(format!("{fast:?}"), format!("{table:?}"));
            } else {
                let everyday = flags & !0x18 == 0 && rest == 0 && !(read_only && opcode & 2 != 0);
                let inside = count > 0 && u64::from(lba) + u64::from(count) <= shape().num_blocks;
                prop_assert!(!(everyday && inside), "the everyday form went the long way");
            }
        }
    }

    #[test]
    fn an_attention_stops_the_fast_way_once() {
        let mut bench = Bench::new();
        let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        bench.path.raise(Attention::CapacityChanged);
        assert_eq!(bench.sense(&read).code(), 0x2A09);
        assert!(matches!(bench.execute(&read), Action::Io { .. }));
    }

    #[test]
    fn parameters_for_a_command_that_has_none_or_is_unknown() {
        let (unit, [path, _]) = two_paths(Some(shape()));
        let mut scratch = vec![0; SCRATCH_MIN];
        for opcode in [0x00, 0x28, 0xFF] {
            let action = unit.execute_out(&path, &Cdb::from_slice(&[opcode]), &[0; 64], &mut scratch);
            assert_eq!(crate::testing::sense_of(&action), Sense::INVALID_OPCODE);
        }
        unit.set_shape(None);
        let action = unit.execute_out(&path, &Cdb::from_slice(&[0x15]), &[0; 64], &mut scratch);
        assert_eq!(crate::testing::sense_of(&action), Sense::NOT_READY);
    }
}
