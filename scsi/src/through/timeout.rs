//! How long a device may take for a command. When that is over the host's kernel aborts the command and resets what it has
//! to, so it is generous: a guest has its own, shorter patience, and a tape that is being erased takes hours.

use super::filter::self_test;
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

/// What a disk does without moving data is given a millisecond for so many blocks, which is 8 MiB/s with small ones.
const BLOCKS_IN_MS: u32 = 16;

/// The time for a command, in milliseconds.
pub(crate) fn of(device_type: u8, cdb: &Cdb) -> u32 {
    match (device_type, cdb.opcode()) {
        // Self-tests in the foreground, of all of the medium if they are asked to; firmware is written to flash.
        (_, 0x1D) if self_test(cdb) > 4 => DISK,
        (_, 0x3B) => MECHANICAL,
        (0x01, opcode) => tape(opcode),
        (0x08, _) => MECHANICAL,
        (0x05, opcode) => optical(opcode),
        // FORMAT UNIT, FORMAT WITH PRESET, SANITIZE, and what takes a disk's elements away or rebuilds it
        (_, 0x04 | 0x38 | 0x48) => DISK,
        (_, 0x9E) if cdb.service_action() >= 0x18 => DISK,
        // The default self-test
        (_, 0x1D) => MECHANICAL / 3,
        // REASSIGN BLOCKS, START STOP UNIT, SYNCHRONIZE CACHE, UNMAP of long ranges
        (_, 0x07 | 0x1B | 0x35 | 0x91 | 0x42) => MECHANICAL,
        _ => blocks(cdb).map_or(USUAL, |blocks| (USUAL + blocks / BLOCKS_IN_MS).min(DISK)),
    }
}

/// How many blocks a command goes over for which few or no data is moved.
fn blocks(cdb: &Cdb) -> Option<u32> {
    let to_the_end = |blocks: u32| if blocks == 0 { u32::MAX } else { blocks };
    Some(match cdb.opcode() {
        // VERIFY
        0x2F => cdb.be16(7).into(),
        0xAF => cdb.be32(6),
        0x8F => cdb.be32(10),
        0x7F if cdb.service_action() == 0x0A => cdb.be32(28),
        // WRITE SAME, ERASE
        0x41 | 0x2C => to_the_end(cdb.be16(7).into()),
        0xAC => to_the_end(cdb.be32(6)),
        0x93 => to_the_end(cdb.be32(10)),
        0x7F if cdb.service_action() == 0x0D => to_the_end(cdb.be32(28)),
        _ => return None,
    })
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
    fn what_goes_over_many_blocks_has_time_for_them_and_no_more() {
        let of = |cdb: &[u8]| of(0, &Cdb::from_slice(cdb));
        let ten = |opcode, count: u8| of(&[opcode, 0, 0, 0, 0, 0, 0, count, 0, 0]);
        let twelve = |opcode, count: u8| of(&[opcode, 0, 0, 0, 0, 0, count, 0, 0, 0]);
        let sixteen = |opcode, count: u8| of(&[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, count, 0, 0, 0]);
        let long = |action, count: u8| {
            let mut cdb = [0; 32];
            (cdb[0], cdb[9], cdb[28]) = (0x7F, action, count);
            of(&cdb)
        };
        assert_eq!((ten(0x2F, 0), ten(0x2F, 0x80)), (USUAL, USUAL + (0x8000 >> 4)));
        assert_eq!((ten(0x41, 0), ten(0x41, 0x80)), (DISK, USUAL + (0x8000 >> 4)));
        assert_eq!((ten(0x2C, 0), ten(0x2C, 1)), (DISK, USUAL + 16));
        for (verify, same) in [(twelve(0xAF, 1), twelve(0xAC, 1)), (sixteen(0x8F, 1), sixteen(0x93, 1))] {
            assert_eq!((verify, same), (USUAL + (1 << 20), USUAL + (1 << 20)));
        }
        assert_eq!((long(0x0A, 1), long(0x0D, 1)), (USUAL + (1 << 20), USUAL + (1 << 20)));
        assert_eq!((sixteen(0x93, 0), sixteen(0x8F, 0), sixteen(0x8F, 0xFF)), (DISK, USUAL, DISK));
        assert_eq!((long(0x09, 1), long(0x0B, 1), sixteen(0x88, 1)), (USUAL, USUAL, USUAL), "what moves its data");
    }

    #[test]
    fn self_tests_in_the_foreground_have_time_and_others_are_short() {
        for device_type in [0x00, 0x05, 0x14, 0x0D] {
            let of = |test: u8| of(device_type, &Cdb::from_slice(&[0x1D, test]));
            assert!(of(0xA0) == DISK && of(0xC0) == DISK);
            assert!([0x04, 0x20, 0x44, 0x80].iter().all(|test| of(*test) <= MECHANICAL / 3));
        }
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
