//! The table of commands: one row per opcode and service action, with everything that is true of it. Decoding, the
//! checks before a handler, and REPORT SUPPORTED OPERATION CODES all read this table; a new command is a row and a
//! handler.

pub(crate) mod atomic;
pub(crate) mod buffer;
pub(crate) mod capacity;
pub(crate) mod copy;
pub(crate) mod copy_page;
pub(crate) mod defects;
pub(crate) mod diagnostic;
pub(crate) mod discovery;
pub(crate) mod format;
pub(crate) mod identifying;
pub(crate) mod lba_status;
pub(crate) mod log;
pub(crate) mod media;
pub(crate) mod mode;
pub(crate) mod opcodes;
pub(crate) mod persistent;
pub(crate) mod ports;
pub(crate) mod power;
pub(crate) mod provisioning;
pub(crate) mod sanitize;
pub(crate) mod timeouts;
pub(crate) mod timestamp;
pub(crate) mod token;
pub(crate) mod verify;
pub(crate) mod vpd;
pub(crate) mod write_atomic;

use bitflags::bitflags;

use crate::commands::timeouts::Takes;
use crate::data_in::DataIn;
use crate::geometry::{Flags, Geometry};
use crate::modes::leftmost;
use crate::reservations::access::{self, Access};
use crate::wipe::Blocked;
use crate::{Action, Cdb, Inventory, LogicalUnit, Path, Sense};

/// A command being executed.
pub(crate) struct Call<'a> {
    pub(crate) unit: &'a LogicalUnit,
    pub(crate) path: &'a Path,
    pub(crate) cdb: &'a Cdb,
    /// The unit as it was when the command came in; one moment for the whole command.
    pub(crate) geometry: Geometry,
    /// Whether an initiator has stopped it.
    pub(crate) stopped: bool,
    /// Whether FORMAT UNIT or SANITIZE keeps everybody from the medium.
    pub(crate) blocked: Option<Blocked>,
    pub(crate) data: DataIn<'a>,
}

type Handler = fn(&mut Call<'_>, &dyn Inventory) -> Result<Action, Sense>;
type ParameterHandler = fn(&mut Call<'_>, &[u8]) -> Result<Action, Sense>;

bitflags! {
    /// What kind of command it is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct RowFlags: u16 {
        /// Data goes to the initiator.
        const DATA_IN = 1;
        /// Data comes from the initiator.
        const DATA_OUT = 1 << 1;
        /// Served while a unit attention is pending, which stays pending (SAM-5, clause 5.14.4).
        const WITH_ATTENTION = 1 << 2;
        /// Served while the device is missing.
        const WHEN_MISSING = 1 << 3;
        /// Refused while the medium is write-protected.
        const CHANGES_MEDIUM = 1 << 4;
        /// Exists only where the device discards.
        const NEEDS_DISCARD = 1 << 5;
        /// Served where there is no unit.
        const WITHOUT_UNIT = 1 << 6;
        /// Served while the unit is stopped: does not touch the medium.
        const WHEN_STOPPED = 1 << 7;
        /// Exists only where something can be kept over a restart.
        const NEEDS_KEEPER = 1 << 8;
        /// Served while the medium is being formatted or sanitized.
        const WHEN_WIPING = 1 << 9;
        /// Served while the medium must not be used because that has failed.
        const WHEN_CORRUPT = 1 << 10;
        /// Exists only where the operator allows it.
        const NEEDS_SANITIZE = 1 << 11;
        /// Exists only where the device has atomic writes.
        const NEEDS_ATOMIC = 1 << 12;
    }
}

/// A command.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) opcode: u8,
    pub(crate) service_action: Option<u16>,
    /// The name in the standard, for people who read the table and for tests.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) name: &'static str,
    /// The CDB USAGE DATA of REPORT SUPPORTED OPERATION CODES (SPC-5, clause 6.34.3): the opcode, then a 1 for each bit
    /// that may be set, and the service action in its place. As long as the CDB. What the standard defines and this
    /// target does not do (RDPROTECT, ANCHOR, power conditions ...) is 0 here like a reserved bit, and refused.
    pub(crate) usage: &'static [u8],
    /// Bits that are ignored, by byte: obsolete ones and GROUP NUMBER. All other bits that are not in use are reserved.
    pub(crate) ignored: &'static [(u8, u8)],
    pub(crate) flags: RowFlags,
    /// What it needs of a reserved unit.
    pub(crate) access: Access,
    /// How long it may take.
    pub(crate) takes: Takes,
    pub(crate) handler: Handler,
    /// Takes the parameter data of commands that have some.
    pub(crate) parameters: Option<ParameterHandler>,
}

/// ADDITIONAL CDB LENGTH of commands of variable length.
const ADDITIONAL_LENGTH: usize = 7;
/// CONTROL: NACA, which is refused (NORMACA is 0).
const NACA: u8 = 0x04;
/// CONTROL: vendor-specific bits, and the obsolete FLAG and LINK.
const CONTROL_IGNORED: u8 = 0xC3;
/// The logical unit number that SCSI-2 had in byte 1.
const SCSI2_LUN: (u8, u8) = (1, 0xE0);
/// RELADR, in byte 1.
const RELADR: (u8, u8) = (1, 0x01);
/// SCSI2_LUN and RELADR.
const LUN_RELADR: (u8, u8) = (1, 0xE1);
/// FUA_NV, in byte 1.
const FUA_NV: (u8, u8) = (1, 0x02);
/// FUA_NV and RELADR.
const FUA_NV_RELADR: (u8, u8) = (1, 0x03);
/// RARC: there is no rebuild assist mode, so it means nothing (SBC-4, clause 5.15).
const RARC_FUA_NV: (u8, u8) = (1, 0x06);
/// RARC, FUA_NV and RELADR.
const RARC_FUA_NV_RELADR: (u8, u8) = (1, 0x07);

const IN: RowFlags = RowFlags::DATA_IN;
const OUT: RowFlags = RowFlags::DATA_OUT;
const NONE: RowFlags = RowFlags::empty();
/// Data about the unit to the initiator.
const ASK: RowFlags = IN.union(RowFlags::WHEN_STOPPED).union(RowFlags::WHEN_CORRUPT);
/// Data about the unit from the initiator.
const TELL: RowFlags = OUT.union(RowFlags::WHEN_STOPPED).union(RowFlags::WHEN_CORRUPT);
/// No data, and nothing to do with the medium.
const BARE: RowFlags = RowFlags::WHEN_STOPPED.union(RowFlags::WHEN_CORRUPT);
/// What says which commands there are.
const ASK_COMMANDS: RowFlags = ASK.union(RowFlags::WHEN_WIPING);
const ALWAYS: RowFlags =
    ASK_COMMANDS.union(RowFlags::WITH_ATTENTION).union(RowFlags::WHEN_MISSING).union(RowFlags::WITHOUT_UNIT);
/// About what has to be kept over a restart.
const ASK_KEPT: RowFlags = ASK.union(RowFlags::NEEDS_KEEPER);
const TELL_KEPT: RowFlags = TELL.union(RowFlags::NEEDS_KEEPER);
const CHANGE: RowFlags = OUT.union(RowFlags::CHANGES_MEDIUM);
const DISCARD: RowFlags = CHANGE.union(RowFlags::NEEDS_DISCARD);
const ATOMIC: RowFlags = CHANGE.union(RowFlags::NEEDS_ATOMIC);
const FORMAT: RowFlags = CHANGE.union(RowFlags::WHEN_CORRUPT);
const SANITIZE: RowFlags = FORMAT.union(RowFlags::NEEDS_SANITIZE);
const ERASE: RowFlags = SANITIZE.union(RowFlags::NEEDS_DISCARD);

/// PERSISTENT RESERVE IN and OUT need no device.
const RESERVE_IN: RowFlags = ASK.union(RowFlags::WHEN_MISSING);
const RESERVE_OUT: RowFlags = TELL.union(RowFlags::WHEN_MISSING);

const F: u8 = 0xFF;

macro_rules! row {
    ($opcode:literal $(/ $action:literal)?, $name:literal, $usage:expr, $ignored:expr, $flags:expr, $handler:expr $(, $parameters:expr)?) => {
        Row {
            opcode: $opcode,
            service_action: row!(@option $($action)?),
            name: $name,
            usage: &$usage,
            ignored: &$ignored,
            flags: $flags,
            access: access::of($opcode, row!(@option $($action)?)),
            takes: timeouts::of($opcode, row!(@option $($action)?)),
            handler: $handler,
            parameters: row!(@option $($parameters)?),
        }
    };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
}

/// The usage of a command of variable length that names blocks (SBC-4, clause 5.18 ff.): GROUP NUMBER in byte 6,
/// ADDITIONAL CDB LENGTH, the service action, flags in byte 10, the address from byte 12, the tags of protection
/// information, the count.
macro_rules! long {
    ($action:literal, $flags:literal) => {
        [
            0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, $action, $flags, 0, F, F, F, F, F, F, F, F, 0, 0, 0, 0, 0, 0, 0, 0, F, F,
            F, F,
        ]
    };
}

/// What is ignored in all of them: GROUP NUMBER, and the tags, which mean something only with protection information.
macro_rules! long_ignored {
    ($($more:expr)?) => {
        [(6, 0x3F), $($more,)? (20, F), (21, F), (22, F), (23, F), (24, F), (25, F), (26, F), (27, F)]
    };
}

/// Every command, by opcode, then service action.
#[rustfmt::skip]
pub(crate) static ROWS: &[Row] = &[
    row!(0x00, "TEST UNIT READY", [0x00, 0, 0, 0, 0, 0], [SCSI2_LUN], NONE, discovery::test_unit_ready),
    row!(0x03, "REQUEST SENSE", [0x03, 0x01, 0, 0, F, 0], [SCSI2_LUN], ALWAYS, discovery::request_sense),
    row!(0x04, "FORMAT UNIT", [0x04, 0x3F, 0, 0, 0, 0], [(2, F), (3, F)], FORMAT, format::format, format::format_list),
    row!(0x08, "READ(6)", [0x08, 0x1F, F, F, F, 0], [SCSI2_LUN], IN, media::read),
    row!(0x0A, "WRITE(6)", [0x0A, 0x1F, F, F, F, 0], [SCSI2_LUN], CHANGE, media::write),
    row!(0x12, "INQUIRY", [0x12, 0x01, F, F, F, 0], [SCSI2_LUN], ALWAYS, discovery::inquiry),
    row!(0x15, "MODE SELECT(6)", [0x15, 0x13, 0, 0, F, 0], [SCSI2_LUN], TELL, mode::select, mode::select_list),
    row!(0x16, "RESERVE(6)", [0x16, 0, 0, 0, 0, 0], [SCSI2_LUN, (2, F), (3, F), (4, F)], BARE, persistent::reserve_classic),
    row!(0x17, "RELEASE(6)", [0x17, 0, 0, 0, 0, 0], [SCSI2_LUN, (2, F), (3, F), (4, F)], BARE, persistent::release_classic),
    row!(0x1A, "MODE SENSE(6)", [0x1A, 0x08, F, F, F, 0], [SCSI2_LUN], ASK, mode::sense),
    row!(0x1B, "START STOP UNIT", [0x1B, 0x01, 0, 0, 0x05, 0], [SCSI2_LUN], BARE, power::start_stop),
    row!(0x1C, "RECEIVE DIAGNOSTIC RESULTS", [0x1C, 0x01, F, F, F, 0], [SCSI2_LUN], ASK, diagnostic::receive),
    row!(0x1D, "SEND DIAGNOSTIC", [0x1D, 0x17, 0, F, F, 0], [], TELL, diagnostic::send, diagnostic::send_list),
    row!(0x1E, "PREVENT ALLOW MEDIUM REMOVAL", [0x1E, 0, 0, 0, 0x03, 0], [SCSI2_LUN], BARE, power::prevent_allow),
    row!(0x25, "READ CAPACITY(10)", [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], [LUN_RELADR, (2, F), (3, F), (4, F), (5, F), (8, 0x01)], ASK, capacity::read_capacity_10),
    row!(0x28, "READ(10)", [0x28, 0x18, F, F, F, F, 0, F, F, 0], [RARC_FUA_NV_RELADR, (6, 0x3F)], IN, media::read),
    row!(0x2A, "WRITE(10)", [0x2A, 0x18, F, F, F, F, 0, F, F, 0], [FUA_NV_RELADR, (6, 0x3F)], CHANGE, media::write),
    row!(0x2E, "WRITE AND VERIFY(10)", [0x2E, 0x16, F, F, F, F, 0, F, F, 0], [RELADR, (6, 0x3F)], CHANGE, verify::write_and_verify),
    row!(0x2F, "VERIFY(10)", [0x2F, 0x16, F, F, F, F, 0, F, F, 0], [RELADR, (6, 0x3F)], OUT, verify::verify),
    row!(0x34, "PRE-FETCH(10)", [0x34, 0x02, F, F, F, F, 0, F, F, 0], [RELADR, (6, 0x3F)], NONE, media::pre_fetch),
    row!(0x35, "SYNCHRONIZE CACHE(10)", [0x35, 0x02, F, F, F, F, 0, F, F, 0], [(1, 0xE5), (6, 0x3F)], NONE, media::synchronize_cache),
    row!(0x37, "READ DEFECT DATA(10)", [0x37, 0, 0x1F, 0, 0, 0, 0, F, F, 0], [SCSI2_LUN], IN, defects::read_10),
    row!(0x3B, "WRITE BUFFER", [0x3B, 0x1F, F, F, F, F, F, F, F, 0], [], TELL, buffer::write, buffer::write_data),
    row!(0x3C, "READ BUFFER", [0x3C, 0x1F, F, F, F, F, F, F, F, 0], [], ASK, buffer::read),
    row!(0x41, "WRITE SAME(10)", [0x41, 0x08, F, F, F, F, 0, F, F, 0], [RELADR, (6, 0x3F)], CHANGE, provisioning::write_same, provisioning::write_same_block),
    row!(0x42, "UNMAP", [0x42, 0, 0, 0, 0, 0, 0, F, F, 0], [SCSI2_LUN, (6, 0x3F)], DISCARD, provisioning::unmap, provisioning::unmap_list),
    row!(0x48/0x01, "SANITIZE, OVERWRITE", [0x48, 0xE1, 0, 0, 0, 0, 0, F, F, 0], [], SANITIZE, sanitize::overwrite, sanitize::overwrite_list),
    row!(0x48/0x02, "SANITIZE, BLOCK ERASE", [0x48, 0xE2, 0, 0, 0, 0, 0, 0, 0, 0], [], ERASE, sanitize::block_erase),
    row!(0x48/0x1F, "SANITIZE, EXIT FAILURE MODE", [0x48, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0], [], SANITIZE, sanitize::exit_failure_mode),
    row!(0x4C, "LOG SELECT", [0x4C, 0x02, F, F, 0, 0, 0, F, F, 0], [SCSI2_LUN], TELL, log::select, log::select_list),
    row!(0x4D, "LOG SENSE", [0x4D, 0, F, F, 0, F, F, F, F, 0], [SCSI2_LUN], ASK, log::sense),
    row!(0x55, "MODE SELECT(10)", [0x55, 0x13, 0, 0, 0, 0, 0, F, F, 0], [SCSI2_LUN], TELL, mode::select, mode::select_list),
    row!(0x56, "RESERVE(10)", [0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], [SCSI2_LUN, (2, F), (3, F)], BARE, persistent::reserve_classic),
    row!(0x57, "RELEASE(10)", [0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0], [SCSI2_LUN, (2, F), (3, F)], BARE, persistent::release_classic),
    row!(0x5A, "MODE SENSE(10)", [0x5A, 0x18, F, F, 0, 0, 0, F, F, 0], [SCSI2_LUN], ASK, mode::sense),
    row!(0x5E/0x00, "PERSISTENT RESERVE IN, READ KEYS", [0x5E, 0x00, 0, 0, 0, 0, 0, F, F, 0], [], RESERVE_IN, persistent::read_keys),
    row!(0x5E/0x01, "PERSISTENT RESERVE IN, READ RESERVATION", [0x5E, 0x01, 0, 0, 0, 0, 0, F, F, 0], [], RESERVE_IN, persistent::read_reservation),
    row!(0x5E/0x02, "PERSISTENT RESERVE IN, REPORT CAPABILITIES", [0x5E, 0x02, 0, 0, 0, 0, 0, F, F, 0], [], RESERVE_IN, persistent::report_capabilities),
    row!(0x5E/0x03, "PERSISTENT RESERVE IN, READ FULL STATUS", [0x5E, 0x03, 0, 0, 0, 0, 0, F, F, 0], [], RESERVE_IN, persistent::read_full_status),
    row!(0x5F/0x00, "PERSISTENT RESERVE OUT, REGISTER", [0x5F, 0x00, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::register),
    row!(0x5F/0x01, "PERSISTENT RESERVE OUT, RESERVE", [0x5F, 0x01, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::reserve),
    row!(0x5F/0x02, "PERSISTENT RESERVE OUT, RELEASE", [0x5F, 0x02, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::reserve),
    row!(0x5F/0x03, "PERSISTENT RESERVE OUT, CLEAR", [0x5F, 0x03, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::reserve),
    row!(0x5F/0x04, "PERSISTENT RESERVE OUT, PREEMPT", [0x5F, 0x04, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::reserve),
    row!(0x5F/0x05, "PERSISTENT RESERVE OUT, PREEMPT AND ABORT", [0x5F, 0x05, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::reserve),
    row!(0x5F/0x06, "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", [0x5F, 0x06, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::register),
    row!(0x5F/0x07, "PERSISTENT RESERVE OUT, REGISTER AND MOVE", [0x5F, 0x07, F, 0, 0, F, F, F, F, 0], [], RESERVE_OUT, persistent::out, persistent::register_and_move),
    row!(0x7F/0x09, "READ(32)", long!(0x09, 0x18), long_ignored!((10, 0x06)), IN, media::read),
    row!(0x7F/0x0A, "VERIFY(32)", long!(0x0A, 0x16), long_ignored!(), OUT, verify::verify),
    row!(0x7F/0x0B, "WRITE(32)", long!(0x0B, 0x18), long_ignored!((10, 0x02)), CHANGE, media::write),
    row!(0x7F/0x0C, "WRITE AND VERIFY(32)", long!(0x0C, 0x16), long_ignored!(), CHANGE, verify::write_and_verify),
    row!(0x7F/0x0D, "WRITE SAME(32)", long!(0x0D, 0x09), long_ignored!(), CHANGE, provisioning::write_same, provisioning::write_same_block),
    row!(0x83/0x00, "EXTENDED COPY(LID1)", [0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [], OUT, copy::extended_copy, copy::lid1_list),
    row!(0x83/0x01, "EXTENDED COPY(LID4)", [0x83, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [], OUT, copy::extended_copy, copy::lid4_list),
    row!(0x83/0x10, "POPULATE TOKEN", [0x83, 0x10, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], OUT, token::populate, token::populate_list),
    row!(0x83/0x11, "WRITE USING TOKEN", [0x83, 0x11, 0, 0, 0, 0, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], CHANGE, token::write_using, token::write_using_list),
    row!(0x83/0x1C, "COPY OPERATION ABORT", [0x83, 0x1C, F, F, F, F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [], BARE, copy::abort),
    row!(0x84/0x00, "RECEIVE COPY STATUS(LID1)", [0x84, 0x00, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, copy::status_lid1),
    row!(0x84/0x03, "RECEIVE COPY OPERATING PARAMETERS", [0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [(2, F)], ASK, copy::operating_parameters),
    row!(0x84/0x04, "RECEIVE COPY FAILURE DETAILS(LID1)", [0x84, 0x04, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, copy::failure_details),
    row!(0x84/0x05, "RECEIVE COPY STATUS(LID4)", [0x84, 0x05, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, copy::status_lid4),
    row!(0x84/0x07, "RECEIVE ROD TOKEN INFORMATION", [0x84, 0x07, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, token::information),
    row!(0x84/0x08, "REPORT ALL ROD TOKENS", [0x84, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, token::report_all),
    row!(0x88, "READ(16)", [0x88, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [RARC_FUA_NV, (14, 0x3F)], IN, media::read),
    row!(0x89, "COMPARE AND WRITE", [0x89, 0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0], [FUA_NV, (14, 0x3F)], CHANGE, atomic::compare_and_write),
    row!(0x8A, "WRITE(16)", [0x8A, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [FUA_NV, (14, 0x3F)], CHANGE, media::write),
    row!(0x8B, "ORWRITE(16)", [0x8B, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [FUA_NV, (14, 0x3F)], CHANGE, atomic::or_write),
    row!(0x8E, "WRITE AND VERIFY(16)", [0x8E, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], CHANGE, verify::write_and_verify),
    row!(0x8F, "VERIFY(16)", [0x8F, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], OUT, verify::verify),
    row!(0x90, "PRE-FETCH(16)", [0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [RELADR, (14, 0x3F)], NONE, media::pre_fetch),
    row!(0x91, "SYNCHRONIZE CACHE(16)", [0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [(1, 0x05), (14, 0x3F)], NONE, media::synchronize_cache),
    row!(0x93, "WRITE SAME(16)", [0x93, 0x09, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], CHANGE, provisioning::write_same, provisioning::write_same_block),
    row!(0x9C, "WRITE ATOMIC(16)", [0x9C, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [(14, 0x3F)], ATOMIC, write_atomic::write_atomic),
    row!(0x9E/0x10, "READ CAPACITY(16)", [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], [(2, F), (3, F), (4, F), (5, F), (6, F), (7, F), (8, F), (9, F), (14, 0x01)], ASK, capacity::read_capacity_16),
    row!(0x9E/0x12, "GET LBA STATUS(16)", [0x9E, 0x12, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], [], IN, lba_status::get),
    row!(0xA0, "REPORT LUNS", [0xA0, 0, F, 0, 0, 0, F, F, F, F, 0, 0], [SCSI2_LUN], ALWAYS, discovery::report_luns_of_unit),
    row!(0xA3/0x05, "REPORT IDENTIFYING INFORMATION", [0xA3, 0x05, 0, 0, 0, 0, F, F, F, F, 0xFE, 0], [], ASK_KEPT, identifying::report),
    row!(0xA3/0x0A, "REPORT TARGET PORT GROUPS", [0xA3, 0x2A, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, ports::report_groups),
    row!(0xA3/0x0C, "REPORT SUPPORTED OPERATION CODES", [0xA3, 0x0C, 0x87, F, F, F, F, F, F, F, 0, 0], [], ASK_COMMANDS, opcodes::report),
    row!(0xA3/0x0D, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", [0xA3, 0x0D, 0x80, 0, 0, 0, F, F, F, F, 0, 0], [], ASK_COMMANDS, opcodes::report_task_functions),
    row!(0xA3/0x0F, "REPORT TIMESTAMP", [0xA3, 0x0F, 0, 0, 0, 0, F, F, F, F, 0, 0], [], ASK, timestamp::report),
    row!(0xA4/0x06, "SET IDENTIFYING INFORMATION", [0xA4, 0x06, 0, 0, 0, 0, F, F, F, F, 0xFE, 0], [], TELL_KEPT, identifying::set, identifying::set_list),
    row!(0xA4/0x0F, "SET TIMESTAMP", [0xA4, 0x0F, 0, 0, 0, 0, F, F, F, F, 0, 0], [], TELL, timestamp::set, timestamp::set_list),
    row!(0xA8, "READ(12)", [0xA8, 0x18, F, F, F, F, F, F, F, F, 0, 0], [RARC_FUA_NV_RELADR, (10, 0x3F)], IN, media::read),
    row!(0xAA, "WRITE(12)", [0xAA, 0x18, F, F, F, F, F, F, F, F, 0, 0], [FUA_NV_RELADR, (10, 0x3F)], CHANGE, media::write),
    row!(0xAE, "WRITE AND VERIFY(12)", [0xAE, 0x16, F, F, F, F, F, F, F, F, 0, 0], [RELADR, (10, 0x3F)], CHANGE, verify::write_and_verify),
    row!(0xAF, "VERIFY(12)", [0xAF, 0x16, F, F, F, F, F, F, F, F, 0, 0], [RELADR, (10, 0x3F)], OUT, verify::verify),
    row!(0xB7, "READ DEFECT DATA(12)", [0xB7, 0x1F, F, F, F, F, F, F, F, F, 0, 0], [SCSI2_LUN], IN, defects::read_12),
];

/// For each opcode the number of its first row, or that of no row.
static FIRST: [u8; 256] = {
    let mut first = [u8::MAX; 256];
    let mut index = ROWS.len();
    while index > 0 {
        index -= 1;
        first[ROWS[index].opcode as usize] = index as u8;
    }
    first
};

/// The rows of an opcode that this unit has: none, one, or one per service action.
pub(crate) fn rows_of(opcode: u8, geometry: Geometry) -> impl Iterator<Item = &'static Row> {
    let rows = ROWS.get(usize::from(FIRST[usize::from(opcode)])..).unwrap_or_default();
    rows.iter().take_while(move |row| row.opcode == opcode).filter(move |row| row.exists(geometry))
}

/// The row of a command: 20h/00h if there is none for the opcode, 24h/00h if there is none for its service action.
pub(crate) fn find(cdb: &Cdb, geometry: Geometry) -> Result<&'static Row, Sense> {
    let mut known = false;
    for row in rows_of(cdb.opcode(), geometry) {
        known = true;
        if row.service_action.is_none_or(|action| action == cdb.service_action()) {
            return Ok(row);
        }
    }
    match (known, cdb.opcode()) {
        (false, _) => Err(Sense::INVALID_OPCODE),
        (true, 0x7F) => Err(Sense::invalid_field(8, None)),
        (true, _) => Err(Sense::invalid_field(1, Some(4))),
    }
}

impl Row {
    /// Whether a unit like this has the command. While the device is missing every command exists that a device could
    /// have, and is not ready.
    pub(crate) fn exists(&self, geometry: Geometry) -> bool {
        let may = |flag| geometry.has(flag) || !geometry.has(Flags::READY);
        let sanitizes = geometry.has(Flags::SANITIZES);
        (!self.flags.contains(RowFlags::NEEDS_DISCARD) || may(Flags::DISCARDS))
            && (!self.flags.contains(RowFlags::NEEDS_ATOMIC) || may(Flags::ATOMIC))
            && (!self.flags.contains(RowFlags::NEEDS_KEEPER) || geometry.has(Flags::KEEPS))
            && (!self.flags.contains(RowFlags::NEEDS_SANITIZE) || sanitizes)
    }

    /// Bits of a byte that are in use in the table and that a unit like this refuses all the same, as what they ask for is
    /// not there.
    pub(crate) fn refused(&self, geometry: Geometry) -> Option<(usize, u8)> {
        match (self.opcode, self.service_action) {
            // SP of MODE SELECT: there is nothing to save to.
            (0x15 | 0x55, _) if !geometry.has(Flags::KEEPS) => Some((1, mode::SP)),
            // UNMAP of WRITE SAME.
            (0x41 | 0x93, _) if !geometry.has(Flags::DISCARDS) => Some((1, provisioning::UNMAP)),
            (0x7F, Some(0x0D)) if !geometry.has(Flags::DISCARDS) => Some((10, provisioning::UNMAP)),
            _ => None,
        }
    }

    /// Where the CONTROL byte is.
    fn control(&self) -> usize {
        if self.opcode == 0x7F { 1 } else { self.usage.len() - 1 }
    }

    /// Whether a CDB sets only bits that are in use or ignored; 24h/00h with the first one that is not. NACA is such a
    /// bit.
    pub(crate) fn check(&self, cdb: &Cdb) -> Result<(), Sense> {
        for at in 1..self.usage.len() {
            let mut wrong = cdb.byte(at) & !self.usage[at];
            if wrong != 0 {
                wrong &= !self.ignored_in(at);
            }
            if wrong != 0 {
                return Err(Sense::invalid_field(at as u16, Some(leftmost(wrong))));
            }
        }
        if self.opcode == 0x7F && usize::from(cdb.byte(ADDITIONAL_LENGTH)) + 8 != self.usage.len() {
            return Err(Sense::invalid_field(ADDITIONAL_LENGTH as u16, None));
        }
        Ok(())
    }

    #[cold]
    fn ignored_in(&self, at: usize) -> u8 {
        let control = if at == self.control() { CONTROL_IGNORED & !NACA } else { 0 };
        self.ignored.iter().filter(|(byte, _)| usize::from(*byte) == at).fold(control, |all, (_, mask)| all | mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sections;
    use crate::testing::{Bench, shape};
    use pollux_core::Shape;
    use std::sync::Arc;

    #[test]
    fn rows_are_sorted_and_complete() {
        let mut last = None;
        for row in ROWS {
            let key = Some((row.opcode, row.service_action));
            assert!(last < key, "{} is out of order", row.name);
            last = key;
            assert_eq!(row.usage[0], row.opcode, "{}", row.name);
            let long = matches!(row.opcode, 0x7F);
            assert!(long || row.usage.len() == Cdb::group_len(row.opcode), "{}", row.name);
            if let (Some(action), false) = (row.service_action, long) {
                assert_eq!(u16::from(row.usage[1] & 0x1F), action, "{}", row.name);
            }
            assert_eq!(row.usage[row.control()], 0, "{}: no bit of CONTROL is in use", row.name);
            for (byte, mask) in row.ignored {
                assert_eq!(row.usage[usize::from(*byte)] & mask, 0, "{}: ignored and in use", row.name);
            }
            assert!(row.parameters.is_none() || row.flags.contains(RowFlags::DATA_OUT), "{}", row.name);
            assert!(!row.flags.contains(RowFlags::DATA_IN | RowFlags::DATA_OUT), "{}", row.name);
        }
    }

    #[test]
    fn reserved_bits_are_refused_and_pointed_at() {
        let mut bench = Bench::kept(&Arc::default(), Some(&Sections::new()));
        bench.allow_sanitize(true);
        for row in ROWS {
            for at in 1..row.usage.len() {
                for bit in 0..8 {
                    let mask = 1 << bit;
                    if (row.usage[at] | row.ignored_in(at)) & mask != 0 {
                        continue;
                    }
                    let mut cdb = [0; 32];
                    let action = row.service_action.unwrap_or_default();
                    if row.opcode == 0x7F {
                        (cdb[7], cdb[8], cdb[9]) = (0x18, (action >> 8) as u8, action as u8);
                    } else {
                        cdb[1] = action as u8;
                    }
                    cdb[0] = row.opcode;
                    cdb[at] |= mask;
                    let in_action = if row.opcode == 0x7F { at == 8 || at == 9 } else { at == 1 && bit < 5 };
                    if row.service_action.is_some() && in_action {
                        continue;
                    }
                    assert_eq!(bench.sense(&cdb), Sense::invalid_field(at as u16, Some(bit)), "{}", row.name);
                }
            }
        }
    }

    #[test]
    fn naca_is_refused_and_link_is_ignored() {
        let mut bench = Bench::new();
        assert_eq!(bench.sense(&[0, 0, 0, 0, 0, 0x04]), Sense::invalid_field(5, Some(2)));
        assert_eq!(bench.sense(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0x04]), Sense::invalid_field(9, Some(2)));
        bench.good(&[0, 0xE0, 0, 0, 0, 0xC3]);
    }

    #[test]
    fn unknown_opcodes_and_service_actions() {
        let mut bench = Bench::new();
        for opcode in 0..=0xFF {
            if rows_of(opcode, bench.unit.geometry()).next().is_none() {
                assert_eq!(bench.sense(&[opcode]), Sense::INVALID_OPCODE, "{opcode:02X}");
            }
        }
        assert_eq!(bench.sense(&[0x9E, 0x1F]), Sense::invalid_field(1, Some(4)));
        assert_eq!(bench.sense(&[0xA3, 0x00]), Sense::invalid_field(1, Some(4)));
        assert_eq!(bench.sense(&[0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x01]), Sense::invalid_field(8, None));
    }

    #[test]
    fn whatever_changes_the_medium_is_refused_where_it_is_protected() {
        let mut bench = Bench::with(Some(Shape { read_only: true, ..shape() }));
        bench.allow_sanitize(true);
        let by_name = |row: &Row| {
            ["WRITE", "UNMAP", "ORWRITE", "COMPARE AND WRITE", "FORMAT", "SANITIZE"]
                .iter()
                .any(|verb| row.name.starts_with(verb) && row.name != "WRITE BUFFER")
        };
        let changing: Vec<&Row> = ROWS.iter().filter(|row| by_name(row)).collect();
        assert!(changing.len() > 10);
        for row in changing {
            assert!(row.flags.contains(RowFlags::CHANGES_MEDIUM), "{}", row.name);
            let mut cdb = [0; 32];
            let action = row.service_action.unwrap_or_default();
            cdb[0] = row.opcode;
            if row.opcode == 0x7F {
                (cdb[7], cdb[9]) = (0x18, action as u8);
            } else {
                cdb[1] = action as u8;
            }
            assert_eq!(bench.sense(&cdb).code(), 0x2700, "{}", row.name);
        }
    }

    #[test]
    fn a_command_of_variable_length_is_as_long_as_it_says() {
        let mut bench = Bench::new();
        for len in [0x00, 0x08, 0x10] {
            let sense = bench.sense(&[0x7F, 0, 0, 0, 0, 0, 0, len, 0, 0x09]);
            assert_eq!(sense, Sense::invalid_field(7, None), "{len:02X}");
        }
        let naca = bench.sense(&[0x7F, 0x04, 0, 0, 0, 0, 0, 0x18, 0, 0x09]);
        assert_eq!(naca, Sense::invalid_field(1, Some(2)));
        bench.good(&[0x7F, 0xC3, 0, 0, 0, 0, 0x3F, 0x18, 0, 0x09]);
    }

    #[test]
    fn unmap_exists_where_the_device_discards() {
        let mut bench = Bench::with(Some(Shape { discard: None, ..shape() }));
        assert_eq!(bench.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), Sense::INVALID_OPCODE);
    }
}
