//! virtio-scsi on the wire (virtio 1.3, 5.6.6): the one request format so far.
//!
//! A slot has one place in guest memory for header and response. Everything in it is written when it is laid; for each
//! I/O only two words change (operation, LBA, and what of the CDB lies between), and one word of the response says whether
//! it went well. [`Wire`] is all that the queue code knows of the format, so another one (virtio-blk) is another `Wire`.

use crate::memory::Memory;

/// Bytes of a command's header with a CDB of the default size.
pub(crate) const HEADER_LEN: u32 = 51;
/// Bytes of its response with sense data of the default size.
pub(crate) const RESPONSE_LEN: u32 = 108;
/// Where the response lies from the header on: on cache lines of its own, as in guests. (Sharing the header's line would
/// make requests cheaper for a target than any guest's are.)
pub(crate) const RESPONSE_AT: usize = 68;
/// Bytes from one place to the next.
pub(crate) const PLACE_LEN: usize = 192;
/// Bytes of an UNMAP parameter list with one range.
pub(crate) const UNMAP_LEN: u32 = 24;

/// The two words of the header that change: task attribute to third byte of the LBA, and on.
const FIRST_WORD: usize = 16;
/// Residual, status qualifier, status and response.
const VERDICT: usize = RESPONSE_AT + 4;
/// All of that is zero if everything went well, except the qualifier, which says nothing then (SPDK leaves it as it was).
const MATTERS: u64 = 0xffff_0000_ffff_ffff;
/// Of an UNMAP the residual says nothing either: SPDK counts its parameter list as not transferred. A flush has no data.
const MATTERS_TO_REST: u64 = 0xffff_0000_0000_0000;
/// The operation code.
const SYNCHRONIZE_CACHE: u8 = 0x35;
/// What no device answers: residual and response are impossible.
const POISON: u64 = u64::MAX;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Unmap,
    /// SYNCHRONIZE CACHE of the whole disk.
    Flush,
}

impl Op {
    pub(crate) const COUNT: usize = 4;

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Unmap => "trim",
            Op::Flush => "flush",
        }
    }
}

/// How requests of one size to one logical unit look.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    lun: [u8; 8],
    /// Whether reads and writes are the sixteen-byte commands.
    long: bool,
    /// The CDB of each operation with LBA 0.
    cdbs: [Vec<u8>; Op::COUNT],
    /// Their changing words.
    words: [[u64; 2]; Op::COUNT],
}

impl Wire {
    /// For requests of `blocks` that end at or before block `end`.
    pub(crate) fn new(lun: [u8; 8], blocks: u32, end: u64) -> Self {
        // The ten-byte commands where they reach, as guests do it.
        let long = end > 1 << 32 || blocks > u32::from(u16::MAX);
        let cdbs = if long {
            [sixteen(0x88, blocks), sixteen(0x8a, blocks), unmap(), ten(SYNCHRONIZE_CACHE, 0)]
        } else {
            [ten(0x28, blocks as u16), ten(0x2a, blocks as u16), unmap(), ten(SYNCHRONIZE_CACHE, 0)]
        };
        let words = [0, 1, 2, 3].map(|op: usize| header_words(&cdbs[op]));
        Wire { lun, long, cdbs, words }
    }

    /// Writes the whole header of a slot for an operation.
    pub(crate) fn lay(&self, memory: &Memory, at: usize, tag: u64, op: Op) {
        self.lay_cdb(memory, at, tag, &self.cdbs[op as usize]);
    }

    /// Writes the whole header of a slot for any command.
    pub(crate) fn lay_cdb(&self, memory: &Memory, at: usize, tag: u64, cdb: &[u8]) {
        let mut header = [0; HEADER_LEN as usize];
        header[..8].copy_from_slice(&self.lun);
        header[8..16].copy_from_slice(&tag.to_le_bytes());
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        memory.write(at, &header);
        memory.store_u64(at + VERDICT, POISON);
    }

    /// Makes a slot that was laid for this operation ask for this LBA, and its response one that no device gives.
    #[inline(always)]
    pub(crate) fn address(&self, memory: &Memory, at: usize, op: Op, lba: u64) {
        let [mut first, mut second] = self.words[op as usize];
        if matches!(op, Op::Read | Op::Write) {
            // Big endian from byte 21 of the header on.
            let bytes = if self.long { lba.swap_bytes() } else { u64::from((lba as u32).swap_bytes()) };
            first |= bytes << 40;
            second |= bytes >> 24;
        }
        memory.store_u64(at + FIRST_WORD, first);
        memory.store_u64(at + FIRST_WORD + 8, second);
        memory.store_u64(at + VERDICT, POISON);
    }

    /// Asks for what an answer is read from, and what the next request is written to.
    #[inline(always)]
    pub(crate) fn prefetch(memory: &Memory, at: usize) {
        memory.prefetch(at);
        memory.prefetch(at + VERDICT);
    }

    /// Whether a request went well: everything transferred, GOOD.
    #[inline(always)]
    pub(crate) fn good(memory: &Memory, at: usize, op: Op) -> bool {
        let matters = if matches!(op, Op::Read | Op::Write) { MATTERS } else { MATTERS_TO_REST };
        memory.load_u64(at + VERDICT) & matters == 0
    }

    /// What the device answered.
    pub(crate) fn answer(memory: &Memory, at: usize) -> Answer {
        let verdict = memory.load_u64(at + VERDICT);
        let sense_len = (memory.load_u32(at + RESPONSE_AT) as usize).min(96);
        Answer {
            written: verdict != POISON,
            residual: verdict as u32,
            status: (verdict >> 48) as u8,
            response: (verdict >> 56) as u8,
            sense: if verdict == POISON { Vec::new() } else { memory.bytes(at + RESPONSE_AT + 12, sense_len) },
        }
    }
}

/// The words of a header from byte 16 on that hold the first thirteen bytes of a CDB.
fn header_words(cdb: &[u8]) -> [u64; 2] {
    let mut bytes = [0; 16];
    let len = cdb.len().min(13);
    bytes[3..3 + len].copy_from_slice(&cdb[..len]);
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    [word(0), word(8)]
}

fn ten(opcode: u8, blocks: u16) -> Vec<u8> {
    let [high, low] = blocks.to_be_bytes();
    vec![opcode, 0, 0, 0, 0, 0, 0, high, low, 0]
}

fn sixteen(opcode: u8, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// UNMAP, whose range is in its parameter list.
fn unmap() -> Vec<u8> {
    vec![0x42, 0, 0, 0, 0, 0, 0, 0, UNMAP_LEN as u8, 0]
}

/// Writes the parameter list of an UNMAP of one range.
pub(crate) fn write_unmap_list(memory: &Memory, at: usize, lba: u64, blocks: u32) {
    memory.store_u64(at, u64::from_le_bytes([0, 22, 0, 16, 0, 0, 0, 0]));
    memory.store_u64(at + 8, lba.swap_bytes());
    memory.store_u64(at + 16, u64::from(blocks.swap_bytes()));
}

/// The eight bytes that address a LUN (SAM, flat addressing as Linux writes it).
pub(crate) const fn lun_bytes(target: u8, lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    [1, target, high | 0x40, low, 0, 0, 0, 0]
}

/// What a device answered to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Whether the response was written at all.
    pub(crate) written: bool,
    /// Bytes that were not transferred.
    pub(crate) residual: u32,
    /// SCSI status.
    pub(crate) status: u8,
    /// virtio-scsi response.
    pub(crate) response: u8,
    pub(crate) sense: Vec<u8>,
}

impl Answer {
    /// GOOD, whatever was transferred.
    pub(crate) const fn done(&self) -> bool {
        self.written && self.status == 0 && self.response == 0
    }

    /// Sense key and additional sense code with qualifier, from either format.
    pub(crate) fn sense_key(&self) -> Option<(u8, u8, u8)> {
        let byte = |at: usize| self.sense.get(at).copied();
        match byte(0)? & 0x7f {
            0x70 | 0x71 => Some((byte(2)? & 0xf, byte(12)?, byte(13)?)),
            0x72 | 0x73 => Some((byte(1)? & 0xf, byte(2)?, byte(3)?)),
            _ => None,
        }
    }

    /// Whether the same command may just be sent again: unit attention, BUSY, TASK SET FULL.
    pub(crate) fn retry(&self) -> bool {
        let attention = self.status == 2 && self.sense_key().is_some_and(|(key, ..)| key == 6);
        self.written && self.response == 0 && (attention || matches!(self.status, 0x08 | 0x28)) || self.busy()
    }

    /// The transport's own "try again".
    const fn busy(&self) -> bool {
        self.written && self.response == 5
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.written {
            return f.write_str("the request came back without a response");
        }
        match self.response {
            0 => {}
            3 => return f.write_str("BAD TARGET: there is no such target"),
            code => return write!(f, "virtio-scsi response {code}"),
        }
        match (self.status, self.sense_key()) {
            (0, _) => write!(f, "GOOD, but {} bytes were not transferred", self.residual),
            (status, Some((key, asc, ascq))) => {
                write!(f, "status {status:#04x}, sense {key:x}/{asc:02x}/{ascq:02x}")
            }
            (status, None) => write!(f, "status {status:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HugePages;
    use proptest::prelude::*;

    fn memory() -> Memory {
        Memory::new(1, HugePages::Off).expect("memory")
    }

    /// The CDB in the header of a request, whose other parts are checked here.
    fn cdb_of(memory: &Memory, wire: &Wire, op: Op, lba: u64) -> Vec<u8> {
        wire.lay(memory, PLACE_LEN, 7, op);
        for lba in [u64::MAX, 0, lba] {
            wire.address(memory, PLACE_LEN, op, lba);
        }
        let header = memory.bytes(PLACE_LEN, HEADER_LEN as usize);
        assert_eq!(header[..8], [1, 3, 0x41, 0x23, 0, 0, 0, 0]);
        assert_eq!(header[8..19], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        header[19..].to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn short_commands(lba in 0u64..1 << 32, blocks in 1u16..) {
            let (memory, wire) = (memory(), Wire::new(lun_bytes(3, 0x123), blocks.into(), 1 << 32));
            for (op, code) in [(Op::Read, 0x28), (Op::Write, 0x2a)] {
                let cdb = cdb_of(&memory, &wire, op, lba);
                prop_assert_eq!(&cdb[0..2], &[code, 0]);
                prop_assert_eq!(&cdb[2..6], &(lba as u32).to_be_bytes());
                prop_assert_eq!((cdb[6], &cdb[7..9], cdb[9]), (0, &blocks.to_be_bytes()[..], 0));
                prop_assert!(cdb[10..].iter().all(|b| *b == 0));
            }
        }

        #[test]
        fn long_commands(lba in any::<u64>(), blocks in 1u32..) {
            let (memory, wire) = (memory(), Wire::new(lun_bytes(3, 0x123), blocks, u64::MAX));
            for (op, code) in [(Op::Read, 0x88), (Op::Write, 0x8a)] {
                let cdb = cdb_of(&memory, &wire, op, lba);
                prop_assert_eq!(&cdb[0..2], &[code, 0]);
                prop_assert_eq!(&cdb[2..10], &lba.to_be_bytes());
                prop_assert_eq!(&cdb[10..14], &blocks.to_be_bytes());
                prop_assert!(cdb[14..].iter().all(|b| *b == 0));
            }
        }

        #[test]
        fn unmap_lists(lba in any::<u64>(), blocks in any::<u32>()) {
            let (memory, wire) = (memory(), Wire::new(lun_bytes(3, 0x123), 8, 1 << 20));
            prop_assert_eq!(&cdb_of(&memory, &wire, Op::Unmap, lba)[..10], &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
            write_unmap_list(&memory, 4096, lba, blocks);
            let list = memory.bytes(4096, 24);
            prop_assert_eq!(&list[..8], &[0, 22, 0, 16, 0, 0, 0, 0]);
            prop_assert_eq!(&list[8..16], &lba.to_be_bytes());
            prop_assert_eq!(&list[16..20], &blocks.to_be_bytes());
            prop_assert_eq!(&list[20..], &[0; 4]);
        }
    }

    #[test]
    fn a_flush_is_of_the_whole_disk_whatever_the_place() {
        let (memory, wire) = (memory(), Wire::new(lun_bytes(3, 0x123), 8, 1 << 20));
        assert_eq!(cdb_of(&memory, &wire, Op::Flush, 77)[..10], [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_long_form_is_used_where_the_short_one_does_not_reach() {
        let long = |blocks, end| Wire::new(lun_bytes(0, 0), blocks, end).long;
        assert_eq!((long(8, 1 << 32), long(8, (1 << 32) + 1)), (false, true));
        assert_eq!((long(65535, 1 << 20), long(65536, 1 << 20)), (false, true));
    }

    #[test]
    fn answers() {
        let (memory, wire) = (memory(), Wire::new(lun_bytes(0, 0), 8, 1 << 20));
        wire.lay(&memory, 0, 1, Op::Read);
        assert!(!Wire::good(&memory, 0, Op::Read));
        let silent = Wire::answer(&memory, 0);
        assert!(!silent.done() && !silent.retry(), "{silent}");
        let answer = |bytes: &[u8]| {
            memory.write(RESPONSE_AT, bytes);
            (Wire::good(&memory, 0, Op::Read), Wire::answer(&memory, 0))
        };
        let (good, full) = answer(&[0; 108]);
        assert!(good && full.done() && !full.retry());
        assert!(answer(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]).0, "the qualifier of a good answer");
        let (good, short) = answer(&[0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        assert!(!good && short.done() && short.to_string().contains("512"));
        assert!(Wire::good(&memory, 0, Op::Unmap) && Wire::good(&memory, 0, Op::Flush));
        let (good, target) = answer(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert!(!good && !target.done() && target.to_string().contains("BAD TARGET"));
        // Fixed format, unit attention; then descriptor format, medium error.
        let mut check = vec![18, 0, 0, 0, 0, 16, 0, 0, 0, 0, 2, 0, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0];
        check.resize(108, 0);
        let (good, attention) = answer(&check);
        assert!(!good && attention.retry() && attention.sense_key() == Some((6, 0x29, 0)));
        check.splice(12..16, [0x72, 3, 0x11, 4]);
        let (_, medium) = answer(&check);
        assert!(!medium.retry() && medium.to_string().contains("3/11/04"), "{medium}");
        let (_, full) = answer(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x28, 0]);
        assert!(full.retry());
    }
}
