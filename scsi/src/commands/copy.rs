//! EXTENDED COPY in its two forms, COPY OPERATION ABORT, and what tells of copies: RECEIVE COPY STATUS, OPERATING
//! PARAMETERS and FAILURE DETAILS (SPC-5, clauses 6.3 ff. and 6.22 ff.). How copies are made is in [`crate::copy`].

use std::sync::Arc;

use crate::commands::Call;
use crate::copy::{self, Progress, State};
use crate::{Action, Inventory, Outcome, SENSE_LEN, Sense, Status};

/// PARAMETER LIST LENGTH and ALLOCATION LENGTH of all commands in here.
const LENGTH: usize = 10;

/// EXTENDED COPY: the CDB.
pub(crate) fn extended_copy(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    list_of(call, copy::LONGEST_LIST)
}

/// A parameter list comes, of at most `most` bytes.
pub(crate) fn list_of(call: &Call<'_>, most: usize) -> Result<Action, Sense> {
    match call.cdb.be32(LENGTH) as usize {
        0 => Ok(Action::Done(Outcome::GOOD)),
        len if len > most => Err(Sense::LIST_LENGTH),
        len => Ok(Action::DataOut { len }),
    }
}

/// EXTENDED COPY(LID1): the list.
pub(crate) fn lid1_list(_: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    Ok(Action::Copy(Box::new(copy::lid1(list)?)))
}

/// EXTENDED COPY(LID4): the list.
pub(crate) fn lid4_list(_: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    Ok(Action::Copy(Box::new(copy::lid4(list)?)))
}

/// COPY OPERATION ABORT: the copy ends as soon as it can.
pub(crate) fn abort(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let copy = find(call, call.cdb.be32(LID4))?;
    if copy.state() != State::Running {
        return Err(unknown());
    }
    copy.cancel();
    Ok(Action::Done(Outcome::GOOD))
}

/// LIST IDENTIFIER of four bytes, and where that of one is.
pub(crate) const LID4: usize = 2;

pub(crate) fn find(call: &Call<'_>, number: u32) -> Result<Arc<Progress>, Sense> {
    call.unit.find_copy(call.path, number).ok_or_else(unknown)
}

/// No copy of the nexus has this list identifier.
pub(crate) fn unknown() -> Sense {
    Sense::invalid_field(LID4 as u16, None)
}

/// RECEIVE COPY STATUS(LID1).
pub(crate) fn status_lid1(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let copy = find(call, u32::from(call.cdb.byte(LID4)))?;
    let state = copy.state();
    let status = match &state {
        State::Running => 0x00,
        State::Ended(Outcome { status: Status::Good, .. }) => 0x01,
        State::Ended(_) | State::Terminated => 0x02,
    };
    let [segments_high, segments_low] = copy.segments().to_be_bytes();
    let (units, count) = in_units(copy.moved());
    call.data.put(&[0, 0, 0, 8, status, segments_high, segments_low, units]);
    call.data.put(&count.to_be_bytes());
    if state != State::Running {
        call.unit.forget_copy(call.path, copy.id());
    }
    Ok(call.data.answer(call.cdb.be32(LENGTH) as usize))
}

/// TRANSFER COUNT UNITS (bytes, KiB, MiB ...) and a TRANSFER COUNT of four bytes.
fn in_units(bytes: u64) -> (u8, u32) {
    let (mut units, mut count) = (0, bytes);
    while count > u64::from(u32::MAX) {
        (units, count) = (units + 1, count >> 10);
    }
    (units, count as u32)
}

/// RECEIVE COPY STATUS(LID4).
pub(crate) fn status_lid4(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let copy = find(call, call.cdb.be32(LID4))?;
    put_status(call, &copy);
    finish(call)
}

/// Sets the length of parameter data that begins with it.
pub(crate) fn finish(call: &mut Call<'_>) -> Result<Action, Sense> {
    let len = call.data.len() as u32 - 4;
    call.data.set(0, &len.to_be_bytes());
    Ok(call.data.answer(call.cdb.be32(LENGTH) as usize))
}

/// The parameter data of RECEIVE COPY STATUS(LID4), with which that of RECEIVE ROD TOKEN INFORMATION begins.
pub(crate) fn put_status(call: &mut Call<'_>, copy: &Progress) {
    /// How long to wait before asking again, in milliseconds; the other: it has ended.
    const AGAIN_MS: u32 = 100;
    const NEVER: u32 = 0xFFFF_FFFE;
    const BYTES: u8 = 0x00;
    const BLOCKS: u8 = 0xF1;
    let (units, unit) = if copy.is_about_tokens() { (BLOCKS, call.geometry.block_size()) } else { (BYTES, 1) };
    let state = copy.state();
    let (status, delay) = match &state {
        State::Running => (if copy.background { 0x12 } else { 0x11 }, AGAIN_MS),
        State::Ended(Outcome { status: Status::Good, .. }) => (0x01, NEVER),
        State::Ended(_) => (0x02, NEVER),
        State::Terminated => (0x60, NEVER),
    };
    let mut sense = [0; SENSE_LEN];
    let (completion, sense_len) = match &state {
        State::Ended(outcome) => (outcome.status as u8, encode(call, outcome, &mut sense)),
        State::Running | State::Terminated => (0, 0),
    };
    let mut header = [0; 32];
    (header[4], header[5]) = (copy.action, status);
    header[8..12].copy_from_slice(&delay.to_be_bytes());
    (header[12], header[13], header[14], header[15]) = (completion, sense_len as u8, sense_len as u8, units);
    header[16..24].copy_from_slice(&(copy.moved() / u64::from(unit)).to_be_bytes());
    header[24..26].copy_from_slice(&copy.segments().to_be_bytes());
    call.data.put(&header);
    call.data.put(&sense[..sense_len]);
}

fn encode(call: &Call<'_>, outcome: &Outcome, bytes: &mut [u8; SENSE_LEN]) -> usize {
    outcome.sense.map_or(0, |sense| sense.encode(call.unit.descriptor_sense(), bytes))
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub(crate) fn operating_parameters(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const SNLID: u8 = 0x01;
    let mut data = [0; 44];
    data[4] = SNLID;
    data[8..10].copy_from_slice(&copy::MOST_ENDS.to_be_bytes());
    data[10..12].copy_from_slice(&copy::MOST_SEGMENTS.to_be_bytes());
    data[12..16].copy_from_slice(&copy::MOST_DESCRIPTOR_BYTES.to_be_bytes());
    data[16..20].copy_from_slice(&copy::MOST_SEGMENT_BYTES.to_be_bytes());
    data[34..36].copy_from_slice(&u16::from(copy::MOST_COPIES).to_be_bytes());
    data[36] = copy::MOST_COPIES;
    data[37] = granularity(call.geometry.block_size());
    data[43] = copy::DESCRIPTOR_TYPES.len() as u8;
    call.data.put(&data);
    call.data.put(&copy::DESCRIPTOR_TYPES);
    finish(call)
}

/// DATA SEGMENT GRANULARITY: a block, as a power of two.
pub(crate) fn granularity(block_size: u32) -> u8 {
    block_size.trailing_zeros() as u8
}

/// RECEIVE COPY FAILURE DETAILS(LID1): how a copy failed, nothing if it did not.
pub(crate) fn failure_details(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let copy = find(call, u32::from(call.cdb.byte(LID4)))?;
    let failed = match copy.state() {
        State::Ended(outcome) if outcome.status != Status::Good => Some(outcome),
        State::Ended(_) | State::Running | State::Terminated => None,
    };
    let mut data = [0; 60];
    let Some(outcome) = failed else {
        call.data.put(&data[..4]);
        return finish(call);
    };
    let mut sense = [0; SENSE_LEN];
    let len = encode(call, &outcome, &mut sense);
    data[56] = outcome.status as u8;
    data[58..60].copy_from_slice(&(len as u16).to_be_bytes());
    call.data.put(&data);
    call.data.put(&sense[..len]);
    finish(call)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
