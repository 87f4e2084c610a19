//! virtio-scsi on the wire (virtio 1.2, 5.6.6): addresses, request headers, responses, and how they may be laid out.

use super::ring::Buffer;
use crate::rng::Rng;

/// Length of a command's request header with the default CDB size.
pub const REQUEST_LEN: usize = 51;
/// Length of a command's response with the default sense size.
pub const RESPONSE_LEN: usize = 108;

/// A logical unit as a driver addresses it: target and LUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun {
    /// Target, 0 to 255.
    pub target: u8,
    /// LUN, 0 to 16383.
    pub lun: u16,
    /// Whether a LUN below 256 is written without the flat addressing bits (`01 t 00 l` instead of `01 t 40 l`).
    pub peripheral: bool,
}

impl Lun {
    /// In flat addressing, as Linux writes it.
    #[must_use]
    pub const fn new(target: u8, lun: u16) -> Self {
        Lun { target, lun, peripheral: false }
    }

    /// The eight bytes of the LUN field.
    #[must_use]
    pub const fn bytes(self) -> [u8; 8] {
        let [high, low] = self.lun.to_be_bytes();
        [1, self.target, if self.peripheral { high } else { high | 0x40 }, low, 0, 0, 0, 0]
    }
}

/// How a request is laid out in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Header and outgoing data follow each other in one piece of memory.
    pub merge_out: bool,
    /// Response and incoming data follow each other in one piece of memory.
    pub merge_in: bool,
    /// Cut the header, the response and the data at random places.
    pub cuts: bool,
    /// Use an indirect table where it is negotiated.
    pub indirect: bool,
    /// Put the data at odd addresses.
    pub skew: u8,
}

impl Framing {
    /// As Linux does it.
    pub const PLAIN: Framing = Framing { merge_out: false, merge_in: false, cuts: false, indirect: true, skew: 0 };

    /// Any.
    pub fn random(rng: &mut Rng) -> Self {
        Framing {
            merge_out: rng.chance(1, 3),
            merge_in: rng.chance(1, 3),
            cuts: rng.chance(1, 2),
            indirect: rng.chance(1, 2),
            skew: if rng.chance(1, 4) { rng.below(64) as u8 } else { 0 },
        }
    }
}

/// Cuts a piece of memory into buffers: one, or up to `most` at random places.
pub(super) fn cut(gpa: u64, len: usize, writable: bool, most: usize, rng: Option<&mut Rng>, out: &mut Vec<Buffer>) {
    let mut at = 0;
    if let Some(rng) = rng {
        let pieces = rng.between(1, most as u64);
        for _ in 1..pieces {
            let left = len - at;
            if left <= 1 {
                break;
            }
            // One byte, a sector, or anything.
            let take = match rng.below(3) {
                0 => 1,
                1 => (left - 1).min(512),
                _ => rng.between(1, left as u64 - 1) as usize,
            };
            out.push(Buffer { gpa: gpa + at as u64, len: take as u32, writable });
            at += take;
        }
    }
    if at < len {
        out.push(Buffer { gpa: gpa + at as u64, len: (len - at) as u32, writable });
    }
}

/// The header of a command.
#[must_use]
pub fn request_header(lun: [u8; 8], tag: u64, task_attr: u8, cdb: &[u8]) -> [u8; REQUEST_LEN] {
    let mut header = [0; REQUEST_LEN];
    header[..8].copy_from_slice(&lun);
    header[8..16].copy_from_slice(&tag.to_le_bytes());
    header[16] = task_attr;
    header[19..19 + cdb.len()].copy_from_slice(cdb);
    header
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// SCSI status: 0 GOOD, 2 CHECK CONDITION ...
    pub status: u8,
    /// virtio-scsi response: 0 OK, 1 OVERRUN, 2 ABORTED, 3 BAD_TARGET ...
    pub response: u8,
    /// Bytes of the buffers that were not transferred.
    pub residual: u32,
    /// Sense data, as long as the device says.
    pub sense: Vec<u8>,
    /// The whole incoming data buffer.
    pub data: Vec<u8>,
    /// What the used element says was written.
    pub written: u32,
}

impl Response {
    pub(super) fn parse(bytes: &[u8], data: Vec<u8>, written: u32) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sense_len = (word(0) as usize).min(RESPONSE_LEN - 12);
        Response {
            status: bytes[10],
            response: bytes[11],
            residual: word(4),
            sense: bytes[12..12 + sense_len].to_vec(),
            data,
            written,
        }
    }

    /// Whether the command was done.
    #[must_use]
    pub const fn good(&self) -> bool {
        self.response == 0 && self.status == 0
    }

    /// Sense key, additional sense code and its qualifier, from either format.
    #[must_use]
    pub fn sense_key(&self) -> Option<(u8, u8, u8)> {
        match self.sense.first()? & 0x7f {
            0x70 | 0x71 if self.sense.len() >= 14 => Some((self.sense[2] & 0xf, self.sense[12], self.sense[13])),
            0x72 | 0x73 if self.sense.len() >= 4 => Some((self.sense[1] & 0xf, self.sense[2], self.sense[3])),
            _ => None,
        }
    }
}

/// Task management functions (virtio 1.2, 5.6.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tmf {
    /// Ends one command.
    AbortTask = 0,
    /// Ends the nexus' commands.
    AbortTaskSet = 1,
    /// Refused by a target without ACA.
    ClearAca = 2,
    /// Ends everybody's commands.
    ClearTaskSet = 3,
    /// As a transport reset.
    NexusReset = 4,
    /// Ends everything on the unit and resets it.
    LunReset = 5,
    /// Is this command there?
    QueryTask = 6,
    /// Is any command there?
    QueryTaskSet = 7,
}

/// Command descriptor blocks.
pub mod cdb {
    /// TEST UNIT READY.
    pub const TEST_UNIT_READY: [u8; 6] = [0; 6];

    fn ten(op: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
        let (l, n) = (lba.to_be_bytes(), blocks.to_be_bytes());
        [op, flags, l[0], l[1], l[2], l[3], 0, n[0], n[1], 0]
    }

    fn sixteen(op: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (op, flags);
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    /// READ (10).
    #[must_use]
    pub fn read10(lba: u32, blocks: u16) -> [u8; 10] {
        ten(0x28, 0, lba, blocks)
    }

    /// READ (16).
    #[must_use]
    pub fn read16(lba: u64, blocks: u32) -> [u8; 16] {
        sixteen(0x88, 0, lba, blocks)
    }

    /// WRITE (10).
    #[must_use]
    pub fn write10(lba: u32, blocks: u16, fua: bool) -> [u8; 10] {
        ten(0x2a, u8::from(fua) << 3, lba, blocks)
    }

    /// WRITE (16).
    #[must_use]
    pub fn write16(lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
        sixteen(0x8a, u8::from(fua) << 3, lba, blocks)
    }

    /// SYNCHRONIZE CACHE (10), everything.
    #[must_use]
    pub fn sync10() -> [u8; 10] {
        ten(0x35, 0, 0, 0)
    }

    /// SYNCHRONIZE CACHE (16).
    #[must_use]
    pub fn sync16(lba: u64, blocks: u32) -> [u8; 16] {
        sixteen(0x91, 0, lba, blocks)
    }

    /// WRITE SAME (16); `unmap` and `ndob` as the bits of those names.
    #[must_use]
    pub fn write_same16(lba: u64, blocks: u32, unmap: bool, ndob: bool) -> [u8; 16] {
        sixteen(0x93, u8::from(unmap) << 3 | u8::from(ndob), lba, blocks)
    }

    /// COMPARE AND WRITE.
    #[must_use]
    pub fn compare_and_write(lba: u64, blocks: u8, fua: bool) -> [u8; 16] {
        sixteen(0x89, u8::from(fua) << 3, lba, u32::from(blocks))
    }

    /// ORWRITE (16).
    #[must_use]
    pub fn or_write16(lba: u64, blocks: u32) -> [u8; 16] {
        sixteen(0x8b, 0, lba, blocks)
    }

    /// WRITE ATOMIC (16), without a boundary.
    #[must_use]
    pub fn write_atomic16(lba: u64, blocks: u16, fua: bool) -> [u8; 16] {
        sixteen(0x9c, u8::from(fua) << 3, lba, u32::from(blocks))
    }

    /// VERIFY (16).
    #[must_use]
    pub fn verify16(lba: u64, blocks: u32, bytchk: u8) -> [u8; 16] {
        sixteen(0x8f, bytchk << 1, lba, blocks)
    }

    /// WRITE AND VERIFY (16).
    #[must_use]
    pub fn write_and_verify16(lba: u64, blocks: u32, bytchk: u8) -> [u8; 16] {
        sixteen(0x8e, bytchk << 1, lba, blocks)
    }

    /// UNMAP, and its parameter list for these ranges (LBA, blocks).
    #[must_use]
    pub fn unmap(ranges: &[(u64, u32)]) -> ([u8; 10], Vec<u8>) {
        let mut list = vec![0; 8];
        for (lba, blocks) in ranges {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&blocks.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        let len = list.len() as u16;
        list[..2].copy_from_slice(&(len - 2).to_be_bytes());
        list[2..4].copy_from_slice(&(len - 8).to_be_bytes());
        (ten(0x42, 0, 0, len), list)
    }

    /// GET LBA STATUS (16).
    #[must_use]
    pub fn get_lba_status16(lba: u64, len: u32) -> [u8; 16] {
        sixteen(0x9E, 0x12, lba, len)
    }

    /// INQUIRY, standard or a vital product data page.
    #[must_use]
    pub fn inquiry(page: Option<u8>, len: u16) -> [u8; 6] {
        let n = len.to_be_bytes();
        [0x12, u8::from(page.is_some()), page.unwrap_or(0), n[0], n[1], 0]
    }

    /// READ CAPACITY (16).
    #[must_use]
    pub fn read_capacity16() -> [u8; 16] {
        let mut cdb = sixteen(0x9e, 0x10, 0, 32);
        cdb[14] = 0;
        cdb
    }

    /// REPORT LUNS.
    #[must_use]
    pub fn report_luns(len: u32) -> [u8; 12] {
        let n = len.to_be_bytes();
        [0xa0, 0, 0, 0, 0, 0, n[0], n[1], n[2], n[3], 0, 0]
    }

    /// REQUEST SENSE.
    #[must_use]
    pub const fn request_sense() -> [u8; 6] {
        [3, 0, 0, 0, 252, 0]
    }

    /// MODE SENSE (10) of one page, current values, without block descriptors.
    #[must_use]
    pub const fn mode_sense10(page: u8) -> [u8; 10] {
        [0x5a, 8, page, 0, 0, 0, 0, 0, 252, 0]
    }

    /// MODE SELECT (10) of a caching page with this WCE bit, and its parameter list.
    #[must_use]
    pub fn set_wce(on: bool) -> ([u8; 10], Vec<u8>) {
        let mut list = vec![0; 8 + 20];
        (list[8], list[9], list[10]) = (8, 18, u8::from(on) << 2);
        ([0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_everything_in_order() {
        let mut rng = Rng::new(2);
        for len in [1, 2, 51, 108, 4096] {
            for _ in 0..50 {
                let mut out = Vec::new();
                cut(100, len, true, 9, Some(&mut rng), &mut out);
                let mut at = 100;
                for piece in &out {
                    assert_eq!(piece.gpa, at);
                    assert!(piece.len > 0);
                    at += u64::from(piece.len);
                }
                assert_eq!(at, 100 + len as u64);
            }
        }
    }

    #[test]
    fn both_forms_of_an_address() {
        assert_eq!(Lun::new(3, 0x123).bytes(), [1, 3, 0x41, 0x23, 0, 0, 0, 0]);
        assert_eq!(Lun { target: 3, lun: 5, peripheral: true }.bytes(), [1, 3, 0, 5, 0, 0, 0, 0]);
    }
}
