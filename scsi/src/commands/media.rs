//! READ, WRITE, SYNCHRONIZE CACHE (SBC-4, clause 5), and the commands that Linux and firmware send to wake a disk.

use pollux_core::{IoFlags, Op};

use crate::cdb::Blocks;
use crate::commands::Call;
use crate::{Action, Inventory, Outcome, Plan, Sense};

/// READ(6), (10), (12), (16). DPO and FUA are accepted and change nothing: there is no cache in front of the device
/// that could hold older data than the device.
pub(crate) fn read(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    no_protection(call)?;
    transfer(call, Op::Read, IoFlags::empty())
}

/// WRITE(6), (10), (12), (16).
pub(crate) fn write(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const FUA: u8 = 0x08;
    no_protection(call)?;
    let fua = !is_short(call) && call.cdb.bit(1, FUA);
    transfer(call, Op::Write, call.geometry.write_flags(fua))
}

fn transfer(call: &Call<'_>, op: Op, flags: IoFlags) -> Result<Action, Sense> {
    let Blocks { lba, count } = call.cdb.blocks();
    let (offset, len) = call.geometry.range(lba, count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if len == 0 {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Io { op, flags, offset, len })
}

/// Whether byte 1 is part of the address and not flags.
fn is_short(call: &Call<'_>) -> bool {
    call.cdb.opcode() < 0x20
}

/// RDPROTECT and WRPROTECT have to be 0: there is no protection information (SBC-4, clause 4.21).
pub(crate) fn no_protection(call: &Call<'_>) -> Result<(), Sense> {
    const PROTECT: u8 = 0xE0;
    if !is_short(call) && call.cdb.bit(1, PROTECT) { Err(Sense::invalid_field(1, Some(7))) } else { Ok(()) }
}

/// SYNCHRONIZE CACHE(10), (16). The range is checked, and then everything is made durable: devices flush as a whole.
pub(crate) fn synchronize_cache(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const IMMED: u8 = 0x02;
    let Blocks { lba, count } = call.cdb.blocks();
    call.geometry.range_or_rest(lba, count).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    Ok(Action::Plan(Plan::flush(call.cdb.bit(1, IMMED))))
}

/// START STOP UNIT. A disk that is always ready has nothing to start; stopping it makes it durable, as the standard
/// asks for before a stop, and leaves it ready. There is nothing to eject and there are no power conditions.
pub(crate) fn start_stop(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const IMMED: u8 = 0x01;
    const POWER_CONDITION: u8 = 0xF0;
    const NO_FLUSH: u8 = 0x04;
    const LOEJ: u8 = 0x02;
    const START: u8 = 0x01;
    if call.cdb.byte(3) != 0 {
        return Err(Sense::invalid_field(3, Some(3)));
    }
    if call.cdb.bit(4, POWER_CONDITION) {
        return Err(Sense::invalid_field(4, Some(7)));
    }
    if call.cdb.bit(4, LOEJ) {
        return Err(Sense::invalid_field(4, Some(1)));
    }
    if call.cdb.bit(4, START | NO_FLUSH) {
        return Ok(Action::Done(Outcome::GOOD));
    }
    Ok(Action::Plan(Plan::flush(call.cdb.bit(1, IMMED))))
}

/// PREVENT ALLOW MEDIUM REMOVAL: the medium cannot be removed anyway.
pub(crate) fn prevent_allow(_: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(Action::Done(Outcome::GOOD))
}
