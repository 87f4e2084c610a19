//! How long a device may take for a command. When that is over the host's kernel aborts the command and resets what it has
//! to, so it is generous: a guest has its own, shorter patience, and a tape that is being erased takes hours.

use crate::Cdb;

const SECOND: u32 = 1000;
const MINUTE: u32 = 60 * SECOND;
const HOUR: u32 = 60 * MINUTE;

/// Everyday commands of devices that are fast.
const USUAL: u32 = MINUTE;
/// A drive that winds, a robot that moves, a disk that spins up.
const MECHANICAL: u32 = 15 * MINUTE;
/// A whole tape, or a whole optical disc.
const MEDIUM: u32 = 5 * HOUR;
/// A whole disk: large ones take more than a day to format.
const DISK: u32 = 72 * HOUR;

/// The time for a command, in milliseconds.
pub(crate) fn of(device_type: u8, cdb: &Cdb) -> u32 {
    match (device_type, cdb.opcode()) {
        // Self-tests run in the foreground if they are asked to; firmware is written to flash.
        (_, 0x1D) => DISK,
        (_, 0x3B) => MECHANICAL,
        (0x01, opcode) => tape(opcode),
        (0x08, _) => MECHANICAL,
        (0x05, opcode) => optical(opcode),
        // FORMAT UNIT, FORMAT WITH PRESET, SANITIZE, and what takes a disk's elements away or rebuilds it
        (_, 0x04 | 0x38 | 0x48) => DISK,
        (_, 0x9E) if cdb.service_action() >= 0x18 => DISK,
        // REASSIGN BLOCKS, START STOP UNIT, SYNCHRONIZE CACHE, WRITE SAME and UNMAP of long ranges, ERASE
        (_, 0x07 | 0x1B | 0x35 | 0x91 | 0x41 | 0x42 | 0x93 | 0x2C | 0xAC) => MECHANICAL,
        // VERIFY, which moves no data and may be of any length
        (_, 0x2F | 0x8F | 0xAF) => MECHANICAL,
        _ => USUAL,
    }
}

const fn tape(opcode: u8) -> u32 {
    match opcode {
        0x00 | 0x03 | 0x12 | 0x1A | 0x5A | 0x4D => MECHANICAL / 3,
        // FORMAT MEDIUM, SPACE, VERIFY, ERASE, LOCATE, REWIND, LOAD UNLOAD
        0x01 | 0x04 | 0x11 | 0x13 | 0x19 | 0x1B | 0x2B | 0x8F | 0x91 | 0x92 | 0x93 => MEDIUM,
        _ => MECHANICAL,
    }
}

const fn optical(opcode: u8) -> u32 {
    match opcode {
        // FORMAT UNIT, BLANK, CLOSE TRACK/SESSION, REPAIR TRACK, SEND OPC INFORMATION, SYNCHRONIZE CACHE
        0x04 | 0xA1 | 0x5B | 0x58 | 0x54 | 0x35 => MEDIUM,
        _ => MECHANICAL / 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(device_type: u8, opcode: u8) -> u32 {
        of(device_type, &Cdb::from_slice(&[opcode]))
    }

    #[test]
    fn slow_commands_have_time() {
        assert_eq!(time(0, 0x28), MINUTE);
        assert!(time(0, 0x04) >= 48 * HOUR && time(0, 0x48) >= 48 * HOUR);
        assert!(time(1, 0x19) >= 4 * HOUR && time(1, 0x11) >= 4 * HOUR && time(1, 0x0A) >= 10 * MINUTE);
        assert!(time(8, 0xA5) >= 10 * MINUTE);
        assert!(time(5, 0xA1) >= 4 * HOUR);
    }

    #[test]
    fn every_time_is_one_that_the_kernel_takes() {
        for device_type in 0..0x20 {
            for opcode in 0..=0xFF {
                assert!((MINUTE..i32::MAX as u32).contains(&time(device_type, opcode)));
            }
        }
    }
}
