//! SANITIZE (SBC-4, clause 5.30): after it nothing that the unit has held can be read from it, whatever becomes of the
//! command and of this process. Only where the operator allows it. What the host's file system, or the device below,
//! keeps of blocks that it was told to give back is theirs.
//!
//! There is no CRYPTOGRAPHIC ERASE, as there is no key.

use crate::commands::Call;
use crate::wipe::{Content, Purpose};
use crate::{Action, Inventory, Key, Sense, code};

const OPTIONS: usize = 1;
const IMMED: u8 = 0x80;
const AUSE: u8 = 0x20;
/// OVERWRITE's parameter list before the pattern.
const HEADER: usize = 4;

/// BLOCK ERASE: everything reads as zeroes, and the space is given back. ZNR is about zones.
pub(crate) fn block_erase(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(begin(call, Content::Zeroes))
}

/// OVERWRITE: the CDB. A list that cannot hold a pattern of 1 byte to a block is an error of the CDB.
pub(crate) fn overwrite(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const PARAMETER_LIST_LENGTH: usize = 7;
    let len = usize::from(call.cdb.be16(PARAMETER_LIST_LENGTH));
    if len <= HEADER || len > HEADER + call.geometry.block_size() as usize {
        return Err(Sense::invalid_field(PARAMETER_LIST_LENGTH as u16, None));
    }
    Ok(Action::DataOut { len })
}

/// OVERWRITE: the parameter list. A count or a length that cannot be is INVALID FIELD IN CDB to the public suite.
pub(crate) fn overwrite_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    const INVERT: u8 = 0x80;
    const TEST: u8 = 0x60;
    const OVERWRITE_COUNT: u8 = 0x1F;
    const IMPOSSIBLE: Sense = Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_CDB);
    let Some((header, pattern)) = list.split_at_checked(HEADER) else { return Err(Sense::LIST_LENGTH) };
    if header[0] & TEST != 0 {
        return Err(Sense::invalid_parameter(0, Some(6)));
    }
    if header[1] != 0 {
        return Err(Sense::invalid_parameter(1, None));
    }
    let passes = header[0] & OVERWRITE_COUNT;
    let len = usize::from(header[2]) << 8 | usize::from(header[3]);
    if passes == 0 || len == 0 || len > call.geometry.block_size() as usize {
        return Err(IMPOSSIBLE);
    }
    let bytes = pattern.get(..len).ok_or(Sense::LIST_LENGTH)?.into();
    Ok(begin(call, Content::Pattern { bytes, passes, invert: header[0] & INVERT != 0 }))
}

/// EXIT FAILURE MODE: a unit whose sanitize has failed, and which may be used all the same, can be used.
pub(crate) fn exit_failure_mode(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(call.unit.exit_failure_mode(call.path))
}

fn begin(call: &Call<'_>, content: Content) -> Action {
    let purpose = Purpose::Sanitize { unrestricted: call.cdb.bit(OPTIONS, AUSE) };
    call.unit.begin_wipe(call.path, purpose, content, call.cdb.bit(OPTIONS, IMMED))
}
