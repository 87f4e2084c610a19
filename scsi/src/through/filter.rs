//! Which commands a guest may send to a whole device that it was given.
//!
//! The guest is a tenant: what is on the medium is its own, to read, write and erase; the device is the owner's. So what
//! moves data or asks questions goes through; what outlives the tenant otherwise (firmware, passwords, saved settings, the
//! format), what speaks in the host's name to others (reservations), and what nobody knows does not, unless the owner
//! allows it. What reaches beyond the device (third-party copies and tokens, access controls) never does: the device
//! takes the host for who asks.
//!
//! The tables list what is known, by device type, because opcodes mean different things on different types. What is in no
//! table is refused. Sources: SPC-5, SBC-4, ZBC, SSC-4, SMC-3, MMC-6.

use bitflags::bitflags;

use crate::{Cdb, Sense};

bitflags! {
    /// What an owner may allow beyond what every guest may do.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Allow: u8 {
        /// PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE: the guest acts in the name of the host's port.
        const RESERVATIONS = 1;
        /// What reformats or reshapes a disk: FORMAT UNIT, SANITIZE, REASSIGN BLOCKS, WRITE LONG, REMOVE ELEMENT ...
        const FORMAT = 1 << 1;
        /// WRITE BUFFER with microcode and the like.
        const FIRMWARE = 1 << 2;
        /// ATA PASS-THROUGH.
        const ATA = 1 << 3;
        /// SECURITY PROTOCOL OUT: passwords and locks of the device.
        const SECURITY = 1 << 4;
        /// What outlives the guest: saved mode pages, LOG SELECT, diagnostic pages, MAINTENANCE OUT.
        const SETTINGS = 1 << 5;
        /// What is in no table: vendor-specific commands, other device types.
        const OTHER = 1 << 6;
    }
}

impl Allow {
    /// The name of each in the configuration.
    pub const NAMES: [(&'static str, Allow); 7] = [
        ("reservations", Allow::RESERVATIONS),
        ("format", Allow::FORMAT),
        ("firmware", Allow::FIRMWARE),
        ("ata", Allow::ATA),
        ("security", Allow::SECURITY),
        ("settings", Allow::SETTINGS),
        ("other", Allow::OTHER),
    ];

    /// What a name stands for.
    #[must_use]
    pub fn named(name: &str) -> Option<Allow> {
        Allow::NAMES.iter().find(|(known, _)| *known == name).map(|(_, allow)| *allow)
    }
}

/// Whether a command goes through.
#[derive(Clone, Copy)]
enum Rule {
    /// It does.
    Free,
    /// If the owner allows this.
    If(Allow),
    /// Its fields say.
    Look(fn(&Cdb) -> Gate),
    /// It does not.
    Never,
}

/// What a command's fields say.
#[derive(Clone, Copy)]
enum Gate {
    Open,
    Opcode(Allow),
    /// Without the permission, this field is invalid: its byte and the number of its highest bit.
    Field(Allow, u16, u8),
}

use Rule::{Free, If, Look, Never};

type Table = &'static [(u8, Rule)];

/// Whether a command goes to a device of this type; how long its CDB is.
///
/// # Errors
/// With what the guest is told: 20h/00h, or 24h/00h where one field is the reason.
pub(crate) fn check(device_type: u8, cdb: &Cdb, allow: Allow) -> Result<u8, Sense> {
    let gate = match rule(device_type, cdb.opcode()) {
        Some(Free) => Gate::Open,
        Some(If(needed)) => Gate::Opcode(needed),
        Some(Look(look)) => look(cdb),
        Some(Never) => return Err(Sense::INVALID_OPCODE),
        None => Gate::Opcode(Allow::OTHER),
    };
    match gate {
        Gate::Opcode(needed) if !allow.contains(needed) => return Err(Sense::INVALID_OPCODE),
        Gate::Field(needed, byte, bit) if !allow.contains(needed) => {
            return Err(Sense::invalid_field(byte, Some(bit)));
        }
        _ => {}
    }
    let len = length(cdb).ok_or(Sense::INVALID_OPCODE)?;
    check_control(cdb, len)?;
    Ok(len)
}

fn rule(device_type: u8, opcode: u8) -> Option<Rule> {
    let find = |table: Table| table.iter().find(|(known, _)| *known == opcode).map(|(_, rule)| *rule);
    let own: Table = match device_type {
        0x00 | 0x04 | 0x07 | 0x0E | 0x14 => DISK,
        0x01 => TAPE,
        0x05 => OPTICAL,
        0x08 => CHANGER,
        _ => &[],
    };
    // What reaches others comes first: no table of a type lets it through.
    find(BEYOND).or_else(|| find(own)).or_else(|| find(COMMON))
}

/// The length of a CDB by its group code; that of a vendor-specific one is not known, and 16 bytes are what every transport
/// carries. Commands of variable length say their own.
fn length(cdb: &Cdb) -> Option<u8> {
    const VARIABLE: u8 = 0x7F;
    match cdb.opcode() >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        3 if cdb.opcode() == VARIABLE => {
            cdb.byte(7).checked_add(8).filter(|len| *len >= 12 && *len <= 32 && len % 4 == 0)
        }
        3 => None,
        5 => Some(12),
        _ => Some(16),
    }
}

/// CONTROL: no auto contingent allegiance, which the host could not clear, and no linked commands.
fn check_control(cdb: &Cdb, len: u8) -> Result<(), Sense> {
    const NACA_LINK: u8 = 0x07;
    let at = match cdb.opcode() {
        0x7F => 1,
        0xC0.. => return Ok(()),
        _ => usize::from(len) - 1,
    };
    if cdb.bit(at, NACA_LINK) { Err(Sense::invalid_field(at as u16, Some(2))) } else { Ok(()) }
}

/// What would reach beyond the device.
const BEYOND: Table = &[
    (0x18, Never), // COPY
    (0x39, Never), // COMPARE (of two units)
    (0x3A, Never), // COPY AND VERIFY
    (0x83, Never), // EXTENDED COPY, POPULATE TOKEN, WRITE USING TOKEN
    (0x84, Never), // RECEIVE COPY STATUS, RECEIVE ROD TOKEN INFORMATION
    (0x86, Never), // ACCESS CONTROL IN
    (0x87, Never), // ACCESS CONTROL OUT
    (0xA0, Never), // REPORT LUNS is the front end's
];

/// SPC.
const COMMON: Table = &[
    (0x00, Free), // TEST UNIT READY
    (0x03, Free), // REQUEST SENSE
    (0x12, Free), // INQUIRY
    (0x15, Look(mode_select)),
    (0x16, If(Allow::RESERVATIONS)), // RESERVE (6)
    (0x17, If(Allow::RESERVATIONS)), // RELEASE (6)
    (0x1A, Free),                    // MODE SENSE (6)
    (0x1C, Free),                    // RECEIVE DIAGNOSTIC RESULTS
    (0x1D, Look(send_diagnostic)),
    (0x1E, Free), // PREVENT ALLOW MEDIUM REMOVAL
    (0x3B, Look(write_buffer)),
    (0x3C, Look(read_buffer)),   // READ BUFFER (10)
    (0x4C, If(Allow::SETTINGS)), // LOG SELECT
    (0x4D, Look(log_sense)),
    (0x55, Look(mode_select)),
    (0x56, If(Allow::RESERVATIONS)), // RESERVE (10)
    (0x57, If(Allow::RESERVATIONS)), // RELEASE (10)
    (0x5A, Free),                    // MODE SENSE (10)
    (0x5E, If(Allow::RESERVATIONS)), // PERSISTENT RESERVE IN
    (0x5F, If(Allow::RESERVATIONS)), // PERSISTENT RESERVE OUT
    (0x85, If(Allow::ATA)),          // ATA PASS-THROUGH (16)
    (0x8C, Free),                    // READ ATTRIBUTE
    (0x9B, Look(read_buffer)),       // READ BUFFER (16)
    (0xA1, If(Allow::ATA)),          // ATA PASS-THROUGH (12)
    (0xA2, Free),                    // SECURITY PROTOCOL IN
    (0xA3, Look(maintenance_in)),
    (0xA4, Look(maintenance_out)),
    (0xB5, If(Allow::SECURITY)), // SECURITY PROTOCOL OUT
];

/// SBC and ZBC.
const DISK: Table = &[
    (0x01, Free),              // REZERO UNIT
    (0x04, If(Allow::FORMAT)), // FORMAT UNIT
    (0x07, If(Allow::FORMAT)), // REASSIGN BLOCKS
    (0x08, Free),              // READ (6)
    (0x0A, Free),              // WRITE (6)
    (0x0B, Free),              // SEEK (6)
    (0x1B, Free),              // START STOP UNIT
    (0x25, Free),              // READ CAPACITY (10)
    (0x28, Free),              // READ (10)
    (0x2A, Free),              // WRITE (10)
    (0x2B, Free),              // SEEK (10)
    (0x2C, Free),              // ERASE (10)
    (0x2E, Free),              // WRITE AND VERIFY (10)
    (0x2F, Free),              // VERIFY (10)
    (0x34, Free),              // PRE-FETCH (10)
    (0x35, Free),              // SYNCHRONIZE CACHE (10)
    (0x37, Free),              // READ DEFECT DATA (10)
    (0x38, If(Allow::FORMAT)), // FORMAT WITH PRESET
    (0x3E, Free),              // READ LONG (10)
    (0x3F, If(Allow::FORMAT)), // WRITE LONG (10)
    (0x41, Free),              // WRITE SAME (10)
    (0x42, Free),              // UNMAP
    (0x48, If(Allow::FORMAT)), // SANITIZE
    (0x7F, Look(variable_length)),
    (0x88, Free), // READ (16)
    (0x89, Free), // COMPARE AND WRITE
    (0x8A, Free), // WRITE (16)
    (0x8B, Free), // ORWRITE (16)
    (0x8E, Free), // WRITE AND VERIFY (16)
    (0x8F, Free), // VERIFY (16)
    (0x90, Free), // PRE-FETCH (16)
    (0x91, Free), // SYNCHRONIZE CACHE (16)
    (0x93, Free), // WRITE SAME (16)
    (0x94, Look(zbc_out)),
    (0x95, Look(zbc_in)),
    (0x9A, Free), // WRITE STREAM (16)
    (0x9C, Free), // WRITE ATOMIC (16)
    (0x9E, Look(disk_in_16)),
    (0x9F, If(Allow::FORMAT)), // WRITE LONG (16)
    (0xA8, Free),              // READ (12)
    (0xAA, Free),              // WRITE (12)
    (0xAC, Free),              // ERASE (12)
    (0xAE, Free),              // WRITE AND VERIFY (12)
    (0xAF, Free),              // VERIFY (12)
    (0xB7, Free),              // READ DEFECT DATA (12)
];

/// SSC. Formatting a tape is its user's own business.
const TAPE: Table = &[
    (0x01, Free), // REWIND
    (0x04, Free), // FORMAT MEDIUM
    (0x05, Free), // READ BLOCK LIMITS
    (0x08, Free), // READ (6)
    (0x0A, Free), // WRITE (6)
    (0x0B, Free), // SET CAPACITY
    (0x0F, Free), // READ REVERSE (6)
    (0x10, Free), // WRITE FILEMARKS (6)
    (0x11, Free), // SPACE (6)
    (0x13, Free), // VERIFY (6)
    (0x14, Free), // RECOVER BUFFERED DATA
    (0x19, Free), // ERASE (6)
    (0x1B, Free), // LOAD UNLOAD
    (0x2B, Free), // LOCATE (10)
    (0x34, Free), // READ POSITION
    (0x44, Free), // REPORT DENSITY SUPPORT
    (0x80, Free), // WRITE FILEMARKS (16)
    (0x81, Free), // READ REVERSE (16)
    (0x82, Free), // ALLOW OVERWRITE
    (0x88, Free), // READ (16)
    (0x8A, Free), // WRITE (16)
    (0x8D, Free), // WRITE ATTRIBUTE
    (0x8F, Free), // VERIFY (16)
    (0x91, Free), // SPACE (16)
    (0x92, Free), // LOCATE (16)
    (0x93, Free), // ERASE (16)
    (0xB5, Look(tape_security)),
];

/// MMC.
const OPTICAL: Table = &[
    (0x04, Free), // FORMAT UNIT
    (0x1B, Free), // START STOP UNIT
    (0x23, Free), // READ FORMAT CAPACITIES
    (0x25, Free), // READ CAPACITY
    (0x28, Free), // READ (10)
    (0x2A, Free), // WRITE (10)
    (0x2B, Free), // SEEK (10)
    (0x2E, Free), // WRITE AND VERIFY (10)
    (0x2F, Free), // VERIFY (10)
    (0x35, Free), // SYNCHRONIZE CACHE
    (0x42, Free), // READ SUB-CHANNEL
    (0x43, Free), // READ TOC/PMA/ATIP
    (0x44, Free), // READ HEADER
    (0x45, Free), // PLAY AUDIO (10)
    (0x46, Free), // GET CONFIGURATION
    (0x47, Free), // PLAY AUDIO MSF
    (0x48, Free), // PLAY AUDIO TRACK INDEX
    (0x4A, Free), // GET EVENT STATUS NOTIFICATION
    (0x4B, Free), // PAUSE/RESUME
    (0x4E, Free), // STOP PLAY/SCAN
    (0x51, Free), // READ DISC INFORMATION
    (0x52, Free), // READ TRACK INFORMATION
    (0x53, Free), // RESERVE TRACK
    (0x54, Free), // SEND OPC INFORMATION
    (0x58, Free), // REPAIR TRACK
    (0x5B, Free), // CLOSE TRACK/SESSION
    (0x5C, Free), // READ BUFFER CAPACITY
    (0x5D, Free), // SEND CUE SHEET
    (0xA1, Free), // BLANK
    (0xA3, Look(send_key)),
    (0xA4, Free), // REPORT KEY
    (0xA5, Free), // PLAY AUDIO (12)
    (0xA6, Free), // LOAD/UNLOAD MEDIUM
    (0xA7, Free), // SET READ AHEAD
    (0xA8, Free), // READ (12)
    (0xAA, Free), // WRITE (12)
    (0xAC, Free), // GET PERFORMANCE
    (0xAD, Free), // READ DISC STRUCTURE
    (0xB6, Free), // SET STREAMING
    (0xB9, Free), // READ CD MSF
    (0xBA, Free), // SCAN
    (0xBB, Free), // SET CD SPEED
    (0xBD, Free), // MECHANISM STATUS
    (0xBE, Free), // READ CD
    (0xBF, Free), // SEND DISC STRUCTURE
];

/// SMC. Whoever has the robot has all of its slots.
const CHANGER: Table = &[
    (0x07, Free), // INITIALIZE ELEMENT STATUS
    (0x1B, Free), // OPEN/CLOSE IMPORT/EXPORT ELEMENT
    (0x2B, Free), // POSITION TO ELEMENT
    (0x37, Free), // INITIALIZE ELEMENT STATUS WITH RANGE
    (0x44, Free), // REPORT VOLUME TYPES SUPPORTED
    (0x8D, Free), // WRITE ATTRIBUTE
    (0xA5, Free), // MOVE MEDIUM
    (0xA6, Free), // EXCHANGE MEDIUM
    (0xA7, Free), // MOVE MEDIUM ATTACHED
    (0xB4, Free), // READ ELEMENT STATUS ATTACHED
    (0xB6, Free), // SEND VOLUME TAG
    (0xB8, Free), // READ ELEMENT STATUS
];

/// SP: the pages outlive the guest. What else does is in the list, at which `modes` looks.
fn mode_select(cdb: &Cdb) -> Gate {
    const SP: u8 = 0x01;
    if cdb.bit(1, SP) { Gate::Field(Allow::SETTINGS, 1, 0) } else { Gate::Open }
}

/// The default self-test and those in the background are anybody's. One in the foreground takes hours in which the device
/// does nothing else; pages may do anything; and the two bits concern others.
fn send_diagnostic(cdb: &Cdb) -> Gate {
    const DEVOFFL_UNITOFFL: u8 = 0x03;
    match (cdb.be16(3), self_test(cdb)) {
        (0, _) if cdb.bit(1, DEVOFFL_UNITOFFL) => Gate::Field(Allow::SETTINGS, 1, 1),
        // None, background short, background extended, abort background
        (0, 0 | 1 | 2 | 4) => Gate::Open,
        (0, _) => Gate::Field(Allow::SETTINGS, 1, 7),
        _ => Gate::Field(Allow::SETTINGS, 3, 7),
    }
}

/// SELF-TEST CODE.
pub(super) const fn self_test(cdb: &Cdb) -> u8 {
    cdb.byte(1) >> 5
}

/// SP: the parameters are saved.
fn log_sense(cdb: &Cdb) -> Gate {
    const SP: u8 = 0x01;
    if cdb.bit(1, SP) { Gate::Field(Allow::SETTINGS, 1, 0) } else { Gate::Open }
}

/// The echo buffer and the data buffer hold data; all other modes are microcode and the like.
fn write_buffer(cdb: &Cdb) -> Gate {
    const MODE: u8 = 0x1F;
    const DATA: u8 = 0x02;
    const ECHO: u8 = 0x0A;
    match cdb.byte(1) & MODE {
        DATA | ECHO => Gate::Open,
        _ => Gate::Opcode(Allow::FIRMWARE),
    }
}

/// What WRITE BUFFER may have written, and where microcode stands. Other modes are vendors' and those of the device's own
/// history, which is that of others, too.
fn read_buffer(cdb: &Cdb) -> Gate {
    const MODE: u8 = 0x1F;
    match cdb.byte(1) & MODE {
        // Header and data, data, descriptor, echo buffer, its descriptor, microcode status
        0x00 | 0x02 | 0x03 | 0x0A | 0x0B | 0x0F => Gate::Open,
        _ => Gate::Opcode(Allow::OTHER),
    }
}

fn maintenance_in(cdb: &Cdb) -> Gate {
    match cdb.service_action() {
        // REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, ALIASES, SUPPORTED OPERATION CODES, SUPPORTED TASK MANAGEMENT
        // FUNCTIONS, PRIORITY, TIMESTAMP
        0x05 | 0x0A..=0x0F => Gate::Open,
        _ => Gate::Opcode(Allow::OTHER),
    }
}

fn zbc_out(cdb: &Cdb) -> Gate {
    match cdb.service_action() {
        // CLOSE, FINISH, OPEN ZONE, RESET WRITE POINTER, SEQUENTIALIZE ZONE
        0x01..=0x04 | 0x10 => Gate::Open,
        _ => Gate::Opcode(Allow::OTHER),
    }
}

/// ZONE ACTIVATE makes other zones of the disk for good, although it is among the commands that ask.
fn zbc_in(cdb: &Cdb) -> Gate {
    match cdb.service_action() {
        // REPORT ZONES, REPORT REALMS, REPORT ZONE DOMAINS, ZONE QUERY
        0x00 | 0x06 | 0x07 | 0x09 => Gate::Open,
        0x08 => Gate::Opcode(Allow::FORMAT),
        _ => Gate::Opcode(Allow::OTHER),
    }
}

/// The clock may be set: drives lose it with their power.
fn maintenance_out(cdb: &Cdb) -> Gate {
    const SET_TIMESTAMP: u16 = 0x0F;
    if cdb.service_action() == SET_TIMESTAMP { Gate::Open } else { Gate::Opcode(Allow::SETTINGS) }
}

fn variable_length(cdb: &Cdb) -> Gate {
    match cdb.service_action() {
        // READ, VERIFY, WRITE, WRITE AND VERIFY, WRITE SAME, ORWRITE, WRITE ATOMIC (32)
        0x09..=0x0F => Gate::Open,
        0x1FF0 => Gate::Opcode(Allow::ATA),
        _ => Gate::Opcode(Allow::OTHER),
    }
}

fn disk_in_16(cdb: &Cdb) -> Gate {
    match cdb.service_action() {
        // READ CAPACITY, READ LONG, GET LBA STATUS, REPORT REFERRALS, STREAM CONTROL, BACKGROUND CONTROL, GET STREAM
        // STATUS, GET PHYSICAL ELEMENT STATUS
        0x10..=0x17 => Gate::Open,
        // REMOVE ELEMENT AND TRUNCATE, RESTORE ELEMENTS AND REBUILD, REMOVE ELEMENT AND MODIFY ZONES
        0x18..=0x1A => Gate::Opcode(Allow::FORMAT),
        _ => Gate::Opcode(Allow::OTHER),
    }
}

/// The tape data encryption protocol sets the key of what is written; the others lock the drive.
fn tape_security(cdb: &Cdb) -> Gate {
    const TAPE_DATA_ENCRYPTION: u8 = 0x20;
    if cdb.byte(1) == TAPE_DATA_ENCRYPTION { Gate::Open } else { Gate::Opcode(Allow::SECURITY) }
}

/// A drive's region can be set a few times in its life.
fn send_key(cdb: &Cdb) -> Gate {
    const KEY_FORMAT: u8 = 0x3F;
    const REGION: u8 = 0x06;
    if cdb.byte(10) & KEY_FORMAT == REGION { Gate::Field(Allow::SETTINGS, 10, 5) } else { Gate::Open }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TYPES: [u8; 9] = [0x00, 0x01, 0x03, 0x05, 0x07, 0x08, 0x0D, 0x14, 0x1F];

    fn result(device_type: u8, cdb: &[u8], allow: Allow) -> Result<u8, Sense> {
        check(device_type, &Cdb::from_slice(cdb), allow)
    }

    fn free(device_type: u8, cdb: &[u8]) -> bool {
        result(device_type, cdb, Allow::empty()).is_ok()
    }

    #[test]
    fn nothing_reaches_beyond_the_device_whatever_is_allowed() {
        for device_type in TYPES {
            for opcode in [0x18, 0x39, 0x3A, 0x83, 0x84, 0x86, 0x87, 0xA0] {
                for action in 0..=0x1F {
                    let refused = result(device_type, &[opcode, action, 0, 0, 0, 0, 0, 0], Allow::all());
                    assert_eq!(refused, Err(Sense::INVALID_OPCODE), "{opcode:02x}/{action:02x}");
                }
            }
        }
    }

    #[test]
    fn what_is_the_owners_needs_its_permission() {
        let cases: &[(u8, &[u8], Allow)] = &[
            (0, &[0x5F, 1], Allow::RESERVATIONS),
            (1, &[0x16], Allow::RESERVATIONS),
            (0, &[0x04], Allow::FORMAT),
            (0, &[0x48, 1], Allow::FORMAT),
            (0x14, &[0x9E, 0x18], Allow::FORMAT),
            (0, &[0x9F, 0x11], Allow::FORMAT),
            (0, &[0x3B, 0x05], Allow::FIRMWARE),
            (5, &[0x3B, 0x0E], Allow::FIRMWARE),
            (8, &[0x3B, 0x00], Allow::FIRMWARE),
            (0, &[0x85], Allow::ATA),
            (1, &[0xA1], Allow::ATA),
            (0, &[0x7F, 0, 0, 0, 0, 0, 0, 24, 0x1F, 0xF0], Allow::ATA),
            (0, &[0xB5, 0x20], Allow::SECURITY),
            (1, &[0xB5, 0x00], Allow::SECURITY),
            (0, &[0xA4, 0x0A], Allow::SETTINGS),
            (0x0D, &[0x4C], Allow::SETTINGS),
            (0, &[0xC1], Allow::OTHER),
            (0x14, &[0x95, 0x08], Allow::FORMAT),
            (0x14, &[0x95, 0x1F], Allow::OTHER),
            (0x14, &[0x95, 0x05], Allow::OTHER),
            (0x14, &[0x94, 0x05], Allow::OTHER),
            (0, &[0xA3, 0x1F], Allow::OTHER),
            (8, &[0xA3, 0x00], Allow::OTHER),
            (1, &[0xA3, 0x10], Allow::OTHER),
            (0, &[0x3C, 0x01], Allow::OTHER),
            (1, &[0x3C, 0x1C], Allow::OTHER),
            (0, &[0x9B, 0x3C], Allow::OTHER),
            (1, &[0x02], Allow::OTHER),
            (3, &[0x08], Allow::OTHER),
            (0, &[0x7F, 0, 0, 0, 0, 0, 0, 24, 0, 3], Allow::OTHER),
        ];
        for (device_type, cdb, needed) in cases {
            assert_eq!(result(*device_type, cdb, Allow::all() - *needed), Err(Sense::INVALID_OPCODE), "{cdb:x?}");
            assert!(result(*device_type, cdb, *needed).is_ok(), "{cdb:x?}");
        }
    }

    #[test]
    fn fields_that_are_the_owners_are_pointed_at() {
        let cases: &[(u8, &[u8], u16, u8)] = &[
            (0, &[0x15, 0x11], 1, 0),
            (1, &[0x55, 0x01], 1, 0),
            (0x0D, &[0x1D, 0x10, 0, 0, 8], 3, 7),
            (0, &[0x1D, 0x06, 0, 0, 0], 1, 1),
            (0, &[0x1D, 0xA0, 0, 0, 0], 1, 7),
            (1, &[0x1D, 0xD0, 0, 0, 0], 1, 7),
            (0, &[0x1D, 0xE0, 0, 0, 0], 1, 7),
            (0, &[0x4D, 0x01, 0x40], 1, 0),
            (5, &[0xA3, 0, 0, 0, 0, 0, 0, 0, 0, 8, 6], 10, 5),
        ];
        for (device_type, cdb, byte, bit) in cases {
            let refused = result(*device_type, cdb, Allow::all() - Allow::SETTINGS);
            assert_eq!(refused, Err(Sense::invalid_field(*byte, Some(*bit))), "{cdb:x?}");
            assert!(result(*device_type, cdb, Allow::SETTINGS).is_ok());
        }
        for (device_type, cdb) in [(0, &[0x15, 0x10][..]), (0, &[0x1D, 0x04]), (0, &[0x3B, 0x02]), (1, &[0xB5, 0x20])] {
            assert!(free(device_type, cdb), "{cdb:x?}");
        }
    }

    #[test]
    fn an_opcode_means_what_it_means_on_the_type() {
        assert!(free(8, &[0x07]) && !free(0, &[0x07]), "INITIALIZE ELEMENT STATUS, REASSIGN BLOCKS");
        assert!(free(1, &[0x04]) && free(5, &[0x04]) && !free(0, &[0x04]), "FORMAT");
        assert!(free(5, &[0xA1]) && !free(0, &[0xA1]), "BLANK, ATA PASS-THROUGH (12)");
        assert!(free(5, &[0x48]) && !free(0, &[0x48]), "PLAY AUDIO TRACK INDEX, SANITIZE");
        assert!(free(0, &[0x28]) && !free(1, &[0x28]), "a tape has no blocks to address");
    }

    #[test]
    fn the_everyday_commands_of_each_type_go_through() {
        for opcode in [0x00, 0x12, 0x25, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x88, 0x89, 0x8A, 0x93, 0x1A, 0x5A, 0x4D, 0x3C] {
            assert!(free(0, &[opcode]), "{opcode:02x}");
        }
        for opcode in [0x00, 0x01, 0x05, 0x08, 0x0A, 0x10, 0x11, 0x19, 0x1B, 0x2B, 0x34, 0x44, 0x8C, 0x8D, 0x92] {
            assert!(free(1, &[opcode]), "{opcode:02x}");
        }
        assert!([0xA5, 0xA6, 0xB8, 0x07].iter().all(|opcode| free(8, &[*opcode])));
        assert!([0x43, 0x46, 0x4A, 0x51, 0xBE].iter().all(|opcode| free(5, &[*opcode])));
        assert!(free(0, &[0x7F, 0, 0, 0, 0, 0, 0, 24, 0, 0x0B]));
        assert!([0x01, 0x02, 0x03, 0x04, 0x10].iter().all(|action| free(0x14, &[0x94, *action])));
        assert!([0x00, 0x06, 0x07, 0x09].iter().all(|action| free(0x14, &[0x95, *action])));
        assert!([0x05, 0x0A, 0x0C, 0x0D, 0x0F].iter().all(|action| free(1, &[0xA3, *action])));
        assert!([0x02, 0x0A, 0x0B, 0x62].iter().all(|mode| free(0, &[0x3C, *mode]) && free(1, &[0x9B, *mode])));
        assert!([0x04, 0x24, 0x44, 0x80].iter().all(|test| free(0, &[0x1D, *test])));
    }

    #[test]
    fn tables_name_each_opcode_once() {
        for table in [BEYOND, COMMON, DISK, TAPE, OPTICAL, CHANGER] {
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted");
        }
    }

    #[test]
    fn lengths_and_control() {
        let long = |add| result(0, &[0x7F, 0, 0, 0, 0, 0, 0, add, 0, 9], Allow::empty());
        assert_eq!(
            (long(24), long(25), long(28), long(255)),
            (Ok(32), Err(Sense::INVALID_OPCODE), Err(Sense::INVALID_OPCODE), Err(Sense::INVALID_OPCODE))
        );
        assert_eq!(result(0, &[0xC0], Allow::OTHER), Ok(16));
        assert_eq!(result(0, &[0x60], Allow::all()), Err(Sense::INVALID_OPCODE), "a reserved group has no length");
        for bit in [0x01, 0x02, 0x04] {
            assert_eq!(result(0, &[0, 0, 0, 0, 0, bit], Allow::all()), Err(Sense::invalid_field(5, Some(2))));
            let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, bit];
            assert_eq!(result(0, &cdb, Allow::empty()), Err(Sense::invalid_field(9, Some(2))));
        }
    }

    #[test]
    fn names_lead_to_all_permissions() {
        let all = Allow::NAMES.iter().fold(Allow::empty(), |all, (_, allow)| all | *allow);
        assert_eq!(all, Allow::all());
        assert_eq!((Allow::named("format"), Allow::named("Format")), (Some(Allow::FORMAT), None));
    }

    proptest! {
        #[test]
        fn more_permissions_never_refuse_more(
            device_type in 0u8..0x20, bytes in any::<[u8; 32]>(), some in 0u8..0x80, more in 0u8..0x80,
        ) {
            let cdb = Cdb::new(bytes);
            let (some, more) = (Allow::from_bits_truncate(some), Allow::from_bits_truncate(some | more));
            if let Ok(len) = check(device_type, &cdb, some) {
                prop_assert!((6..=32).contains(&len));
                prop_assert_eq!(check(device_type, &cdb, more), Ok(len));
            }
        }
    }
}
