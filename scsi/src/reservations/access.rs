//! What each command needs of a reserved unit: the tables of SPC-5 (clause 5.14.1, "commands that are allowed in the
//! presence of various reservations"), SBC-4 (clause 4.17) and SPC-2 (clause 5.5.1), by opcode and service action.
//!
//! The opcode table asks here for each of its rows while it is compiled, so a row without an entry does not build.

use crate::Cdb;

/// The entry of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Allowed whatever is reserved.
    Always,
    /// Allowed under every persistent reservation, refused while another initiator has reserved by RESERVE.
    Looks,
    /// Refused under exclusive access.
    Reads,
    /// Refused under write exclusive and exclusive access.
    Writes,
    /// Always allowed if the bits of this byte are so, else as [`Access::Writes`].
    AlwaysIf { byte: u8, mask: u8, is: u8 },
    /// PERSISTENT RESERVE IN and OUT: refused while anybody has reserved by RESERVE; their handlers know the rest.
    Persistent,
    /// RESERVE and RELEASE: their handlers know.
    Classic,
}

/// What a command needs, its CDB considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing that a reservation could refuse.
    Nothing,
    /// What only RESERVE keeps from others.
    Notice,
    Reading,
    Writing,
}

impl Access {
    pub(crate) fn need(self, cdb: &Cdb) -> Need {
        match self {
            Access::Always | Access::Persistent | Access::Classic => Need::Nothing,
            Access::Looks => Need::Notice,
            Access::Reads => Need::Reading,
            Access::Writes => Need::Writing,
            Access::AlwaysIf { byte, mask, is } if cdb.byte(byte as usize) & mask == is => Need::Nothing,
            Access::AlwaysIf { .. } => Need::Writing,
        }
    }
}

/// START STOP UNIT: START=1, and no power condition.
const STARTS: Access = Access::AlwaysIf { byte: 4, mask: 0xF1, is: 0x01 };
/// PREVENT ALLOW MEDIUM REMOVAL: PREVENT=0.
const ALLOWS_REMOVAL: Access = Access::AlwaysIf { byte: 4, mask: 0x03, is: 0x00 };

/// The entry of a command; 0 stands for no service action.
///
/// # Panics
/// If there is none.
#[rustfmt::skip]
pub(crate) const fn of(opcode: u8, service_action: Option<u16>) -> Access {
    let action = match service_action { Some(action) => action, None => 0 };
    match (opcode, action) {
        // REQUEST SENSE, INQUIRY, READ CAPACITY, LOG SENSE, REPORT LUNS
        (0x03 | 0x12 | 0x25 | 0x4D | 0xA0, _) | (0x9E, 0x10) => Access::Always,
        // TEST UNIT READY; REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, ALIASES, PRIORITY, TIMESTAMP; READ MEDIA
        // SERIAL NUMBER
        (0x00, _) | (0xA3, 0x05 | 0x0A | 0x0B | 0x0E | 0x0F) | (0xAB, 0x01) => Access::Looks,
        // READ, VERIFY, PRE-FETCH, READ DEFECT DATA, GET LBA STATUS
        (0x08 | 0x28 | 0xA8 | 0x88 | 0x2F | 0xAF | 0x8F | 0x34 | 0x90 | 0x37 | 0xB7, _) => Access::Reads,
        (0x7F, 0x09 | 0x0A) | (0x9E, 0x12) => Access::Reads,
        // MODE SENSE, RECEIVE DIAGNOSTIC RESULTS, READ BUFFER, REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT
        // FUNCTIONS, RECEIVE COPY ..., POPULATE TOKEN
        (0x1A | 0x5A | 0x1C | 0x3C | 0x9B | 0x84, _) | (0xA3, 0x0C | 0x0D) | (0x83, 0x10) => Access::Reads,
        // WRITE, WRITE AND VERIFY, WRITE SAME, WRITE ATOMIC, ORWRITE, COMPARE AND WRITE, UNMAP
        (0x0A | 0x2A | 0xAA | 0x8A | 0x2E | 0xAE | 0x8E | 0x41 | 0x93 | 0x9C | 0x8B | 0x89 | 0x42, _) => Access::Writes,
        (0x7F, 0x0B..=0x0E) => Access::Writes,
        // SYNCHRONIZE CACHE, FORMAT UNIT, SANITIZE, MODE SELECT, LOG SELECT, SEND DIAGNOSTIC, WRITE BUFFER
        (0x35 | 0x91 | 0x04 | 0x48 | 0x15 | 0x55 | 0x4C | 0x1D | 0x3B, _) => Access::Writes,
        // EXTENDED COPY, WRITE USING TOKEN, COPY OPERATION ABORT; SET IDENTIFYING INFORMATION, TARGET PORT GROUPS,
        // TIMESTAMP
        (0x83 | 0xA4, _) => Access::Writes,
        (0x1B, _) => STARTS,
        (0x1E, _) => ALLOWS_REMOVAL,
        (0x5E | 0x5F, _) => Access::Persistent,
        (0x16 | 0x17 | 0x56 | 0x57, _) => Access::Classic,
        _ => panic!("what the command needs of a reserved unit is not in the table"),
    }
}
