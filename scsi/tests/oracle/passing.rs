//! What may go on to a whole device, said a second time: opcodes by what they need, not by what they are. Used by the test
//! of random commands and by the fuzz target.

use pollux_scsi::{Allow, Pass};

const NEVER: &[u8] = &[0x18, 0x39, 0x3A, 0x83, 0x84, 0x86, 0x87, 0xA0];
const FREE: &[u8] =
    &[0x00, 0x03, 0x12, 0x15, 0x1A, 0x1C, 0x1D, 0x1E, 0x3B, 0x3C, 0x4D, 0x55, 0x5A, 0x8C, 0x9B, 0xA2, 0xA3, 0xA4];
const FREE_DISK: &[u8] = &[
    0x01, 0x08, 0x0A, 0x0B, 0x1B, 0x25, 0x28, 0x2A, 0x2B, 0x2C, 0x2E, 0x2F, 0x34, 0x35, 0x37, 0x3E, 0x41, 0x42, 0x7F,
    0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x94, 0x95, 0x9A, 0x9C, 0x9E, 0xA8, 0xAA, 0xAC, 0xAE, 0xAF,
    0xB7,
];
const FREE_TAPE: &[u8] = &[
    0x01, 0x04, 0x05, 0x08, 0x0A, 0x0B, 0x0F, 0x10, 0x11, 0x13, 0x14, 0x19, 0x1B, 0x2B, 0x34, 0x44, 0x80, 0x81, 0x82,
    0x88, 0x8A, 0x8D, 0x8F, 0x91, 0x92, 0x93, 0xB5,
];
const FREE_OPTICAL: &[u8] = &[
    0x04, 0x1B, 0x23, 0x25, 0x28, 0x2A, 0x2B, 0x2E, 0x2F, 0x35, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x4A, 0x4B,
    0x4E, 0x51, 0x52, 0x53, 0x54, 0x58, 0x5B, 0x5C, 0x5D, 0xA1, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xAA, 0xAC, 0xAD,
    0xB6, 0xB9, 0xBA, 0xBB, 0xBD, 0xBE, 0xBF,
];
const FREE_CHANGER: &[u8] = &[0x07, 0x1B, 0x2B, 0x37, 0x44, 0x8D, 0xA5, 0xA6, 0xA7, 0xB4, 0xB6, 0xB8];

const fn is_disk(device_type: u8) -> bool {
    matches!(device_type, 0x00 | 0x04 | 0x07 | 0x0E | 0x14)
}

/// What an opcode needs at least; `None`: nothing.
fn needs(device_type: u8, cdb: &[u8; 32]) -> Option<Allow> {
    let own = match device_type {
        0x01 => FREE_TAPE,
        0x05 => FREE_OPTICAL,
        0x08 => FREE_CHANGER,
        disk if is_disk(disk) => FREE_DISK,
        _ => &[],
    };
    if own.contains(&cdb[0]) || FREE.contains(&cdb[0]) {
        return fields(device_type, cdb);
    }
    Some(match cdb[0] {
        0x16 | 0x17 | 0x56 | 0x57 | 0x5E | 0x5F => Allow::RESERVATIONS,
        0x04 | 0x07 | 0x38 | 0x3F | 0x48 | 0x9F if is_disk(device_type) => Allow::FORMAT,
        0x85 | 0xA1 => Allow::ATA,
        0xB5 => Allow::SECURITY,
        0x4C => Allow::SETTINGS,
        _ => Allow::OTHER,
    })
}

/// What the fields of a command need that is free otherwise: those that did harm or could.
fn fields(device_type: u8, cdb: &[u8; 32]) -> Option<Allow> {
    let (action, mode) = (cdb[1] & 0x1F, cdb[1] & 0x1F);
    match cdb[0] {
        0x15 | 0x55 if cdb[1] & 1 != 0 => Some(Allow::SETTINGS),
        0x4D if cdb[1] & 1 != 0 => Some(Allow::SETTINGS),
        0x1D if cdb[1] & 3 != 0 || cdb[1] >= 0xA0 || cdb[3..5] != [0, 0] => Some(Allow::SETTINGS),
        0x3B if mode != 2 && mode != 0x0A => Some(Allow::FIRMWARE),
        0x3C | 0x9B if mode == 1 || mode >= 0x10 => Some(Allow::OTHER),
        0xA3 if device_type != 5 && !matches!(action, 0x05 | 0x0A..=0x0F) => Some(Allow::OTHER),
        0xA4 if device_type != 5 && action != 0x0F => Some(Allow::SETTINGS),
        0x94 if action > 0x10 => Some(Allow::OTHER),
        0x95 if action == 8 => Some(Allow::FORMAT),
        0x95 if action > 9 => Some(Allow::OTHER),
        0x9E if (0x18..=0x1A).contains(&action) => Some(Allow::FORMAT),
        0x9E if !(0x10..=0x17).contains(&action) => Some(Allow::OTHER),
        0x7F if cdb[8..10] == [0x1F, 0xF0] => Some(Allow::ATA),
        0x7F if cdb[8] != 0 || !(9..=0x0F).contains(&cdb[9]) => Some(Allow::OTHER),
        0xB5 if cdb[1] != 0x20 => Some(Allow::SECURITY),
        _ => None,
    }
}

/// A command goes on: it may, it is as long as it says, and it ends some day. `list` is what was looked at of its
/// parameter data.
pub(crate) fn check(device_type: u8, allow: Allow, cdb: &[u8; 32], list: Option<&[u8]>, pass: Pass) {
    assert!(!NEVER.contains(&cdb[0]), "{cdb:02x?} goes beyond the device");
    let needed = needs(device_type, cdb).unwrap_or(Allow::empty());
    assert!(allow.contains(needed), "{cdb:02x?} needs {needed:?} on {device_type:#x}, and there is {allow:?}");
    let len = match cdb[0] {
        0x00..=0x1F => 6,
        0x20..=0x5F => 10,
        0x7F => usize::from(cdb[7]) + 8,
        0xA0..=0xBF => 12,
        _ => 16,
    };
    assert!(usize::from(pass.cdb_len) == len && len <= 32, "{cdb:02x?} is sent as {} bytes", pass.cdb_len);
    assert!((60_000..i32::MAX as u32).contains(&pass.timeout_ms), "{cdb:02x?}: {} ms", pass.timeout_ms);
    let control = if cdb[0] == 0x7F { 1 } else { len - 1 };
    assert!(cdb[0] >= 0xC0 || cdb[control] & 7 == 0, "{cdb:02x?}: NACA or LINK");
    let (list_len, descriptors) = match cdb[0] {
        0x15 => (usize::from(cdb[4]), 3..4),
        0x55 => (usize::from(u16::from_be_bytes([cdb[7], cdb[8]])), 6..8),
        _ => return assert!(list.is_none(), "{cdb:02x?}: a list of what has none"),
    };
    let free = list_len == 0 || matches!(device_type, 1 | 5) || allow.intersects(Allow::SETTINGS | Allow::FORMAT);
    match list {
        None => assert!(free, "{cdb:02x?} goes to {device_type:#x} with a list that nobody has looked at"),
        Some(list) => {
            assert_eq!(list.len(), list_len);
            assert!(list[descriptors].iter().all(|byte| *byte == 0), "{cdb:02x?}: {list:02x?}");
        }
    }
}
