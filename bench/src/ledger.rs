//! What every piece of a disk has to hold.
//!
//! A piece is what one request of the load covers. Pieces that are being written or read are busy: nothing else is done
//! to them until the request (and its read-back) has ended, so what a read has to return is always known exactly.

use crate::BenchError;
use crate::memory::Memory;
use crate::stamp::{SECTOR, Stamp, Wrong};

const GENERATION: u32 = (1 << 28) - 1;
/// The request in flight is the read-back of a write.
const READ_BACK: u32 = 1 << 28;
/// Nobody knows what it holds: never written in this run, or a write failed.
const UNKNOWN: u32 = 1 << 29;
/// It was discarded after its last write: each block may hold zeroes, or still what was written.
const TRIMMED: u32 = 1 << 30;
const BUSY: u32 = 1 << 31;

/// The pieces of one disk's range.
pub(crate) struct Ledger {
    mark: u64,
    /// The sector where the range begins.
    first: u64,
    /// Sectors of a piece, and of a block of the disk.
    piece: u64,
    block: u64,
    /// Whether discarded blocks read as zeroes.
    zeroes: bool,
    states: Vec<u32>,
}

/// A piece that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The first block that is wrong.
    pub(crate) lba: u64,
    /// Which write it should have held.
    pub(crate) generation: u32,
    pub(crate) what: Wrong,
    /// How many of its sectors are wrong, and how many it has.
    pub(crate) wrong: u64,
    pub(crate) of: u64,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let torn = if self.wrong < self.of && self.what.left_behind() { "torn write, " } else { "" };
        write!(
            f,
            "LBA {}: {torn}{} of {} bytes wrong, {} (generation {} is due)",
            self.lba,
            self.wrong * SECTOR as u64,
            self.of * SECTOR as u64,
            self.what,
            self.generation
        )
    }
}

/// Where a disk's range lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// First byte and length.
    pub(crate) first: u64,
    pub(crate) bytes: u64,
    /// Bytes of a request and of a block.
    pub(crate) piece: u64,
    pub(crate) block: u64,
}

impl Ledger {
    /// Nothing is known of any piece.
    pub(crate) fn new(extent: Extent, mark: u64, zeroes: bool) -> Result<Self, BenchError> {
        let pieces = extent.bytes / extent.piece;
        let mut states = Vec::new();
        if states.try_reserve_exact(usize::try_from(pieces).unwrap_or(usize::MAX)).is_err() {
            return Err(BenchError::Usage(format!(
                "--verify has no memory for {pieces} requests' places: give a --size"
            )));
        }
        states.resize(pieces as usize, UNKNOWN);
        let sectors = |bytes: u64| bytes / SECTOR as u64;
        Ok(Ledger {
            mark,
            first: sectors(extent.first),
            piece: sectors(extent.piece),
            block: sectors(extent.block),
            zeroes,
            states,
        })
    }

    pub(crate) const fn pieces(&self) -> u64 {
        self.states.len() as u64
    }

    /// Sectors of a piece.
    pub(crate) const fn piece(&self) -> u64 {
        self.piece
    }

    fn state(&mut self, piece: u64) -> &mut u32 {
        &mut self.states[piece as usize]
    }

    /// This piece, or the next that is not busy; it is busy then. Fewer than all are.
    pub(crate) fn claim(&mut self, mut piece: u64) -> u64 {
        while self.states[piece as usize] & BUSY != 0 {
            piece = (piece + 1) % self.pieces();
        }
        *self.state(piece) |= BUSY;
        piece
    }

    /// Nothing is in flight to it any more.
    pub(crate) fn release(&mut self, piece: u64) {
        *self.state(piece) &= !(BUSY | READ_BACK);
    }

    /// What comes now is the read-back.
    pub(crate) fn read_back(&mut self, piece: u64) {
        *self.state(piece) |= READ_BACK;
    }

    pub(crate) fn is_read_back(&self, piece: u64) -> bool {
        self.states[piece as usize] & READ_BACK != 0
    }

    /// Whether it is known what it holds.
    pub(crate) fn is_known(&self, piece: u64) -> bool {
        self.states[piece as usize] & UNKNOWN == 0
    }

    /// Nobody knows any more what it holds.
    pub(crate) fn forget(&mut self, piece: u64) {
        *self.state(piece) |= UNKNOWN;
    }

    /// A write is about to be sent: its data.
    pub(crate) fn write(&mut self, piece: u64, memory: &Memory, at: usize) {
        let state = self.state(piece);
        let generation = state.wrapping_add(1) & GENERATION;
        *state = (*state & BUSY) | generation;
        for n in 0..self.piece {
            self.stamp(piece, n).write(memory, at + n as usize * SECTOR);
        }
    }

    /// A discard is about to be sent.
    pub(crate) fn trim(&mut self, piece: u64) {
        let zeroes = self.zeroes;
        *self.state(piece) |= if zeroes { TRIMMED } else { UNKNOWN };
    }

    fn stamp(&self, piece: u64, n: u64) -> Stamp {
        let generation = self.states[piece as usize] & GENERATION;
        Stamp { mark: self.mark, sector: self.first + piece * self.piece + n, generation }
    }

    /// Compares what was read with what was written; what is wrong is reported once.
    pub(crate) fn compare(&mut self, piece: u64, memory: &Memory, at: usize) -> Option<Finding> {
        let trimmed = self.states[piece as usize] & TRIMMED != 0;
        let mut finding: Option<Finding> = None;
        for n in 0..self.piece {
            let stamp = self.stamp(piece, n);
            let what = match stamp.compare(memory, at + n as usize * SECTOR) {
                None => continue,
                Some(Wrong::Zeroes) if trimmed => continue,
                Some(what) => what,
            };
            let (lba, generation, of) = (stamp.sector / self.block, stamp.generation, self.piece);
            finding.get_or_insert(Finding { lba, generation, what, wrong: 0, of }).wrong += 1;
        }
        if finding.is_some() {
            self.forget(piece);
        }
        finding
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HugePages;

    /// Ten pieces of 4 KiB from byte 8192 on, on a disk of 1 KiB blocks.
    fn ledger(zeroes: bool) -> (Memory, Ledger) {
        let extent = Extent { first: 8192, bytes: 40960, piece: 4096, block: 1024 };
        (Memory::new(1, HugePages::Off).expect("memory"), Ledger::new(extent, 3, zeroes).expect("a ledger"))
    }

    #[test]
    fn what_was_written_is_right_and_what_was_not_is_found() {
        let (memory, mut ledger) = ledger(true);
        assert!(!ledger.is_known(4));
        ledger.write(4, &memory, 0);
        assert!(ledger.is_known(4));
        assert_eq!(ledger.compare(4, &memory, 0), None);
        let old = memory.bytes(0, 4096);
        ledger.write(4, &memory, 0);
        // The second block of the piece is still the old one.
        memory.write(1024, &old[1024..2048]);
        let finding = ledger.compare(4, &memory, 0).expect("a finding");
        assert_eq!((finding.lba, finding.wrong, finding.of), (8 + 16 + 1, 2, 8));
        assert_eq!(finding.what, Wrong::Stale { generation: 1 });
        let text = finding.to_string();
        assert!(text.contains("LBA 25") && text.contains("torn"), "{text}");
        // Told once; a later write makes it known again, with a generation of its own.
        assert!(!ledger.is_known(4));
        ledger.write(4, &memory, 0);
        assert_eq!(ledger.compare(4, &memory, 0), None);
        memory.write(0, &old);
        let finding = ledger.compare(4, &memory, 0).expect("a finding");
        assert!(finding.wrong == 8 && !finding.to_string().contains("torn"), "{finding}");
    }

    #[test]
    fn another_pieces_data_is_misplaced() {
        let (memory, mut ledger) = ledger(true);
        ledger.write(1, &memory, 0);
        ledger.write(2, &memory, 4096);
        let finding = ledger.compare(1, &memory, 4096).expect("a finding");
        assert_eq!((finding.lba, finding.what), (12, Wrong::Misplaced { sector: 32 }));
        assert_eq!(finding.to_string().matches("byte 16384").count(), 1);
    }

    #[test]
    fn discarded_blocks_are_zeroes_or_as_they_were() {
        let (memory, mut ledger) = ledger(true);
        ledger.write(0, &memory, 0);
        ledger.trim(0);
        assert!(ledger.is_known(0));
        memory.write(0, &[0; 1024]);
        assert_eq!(ledger.compare(0, &memory, 0), None);
        memory.write(512, &[1]);
        assert!(ledger.compare(0, &memory, 0).is_some());
        // What is written later is due again.
        ledger.write(0, &memory, 0);
        memory.write(0, &[0; 1024]);
        assert_eq!(ledger.compare(0, &memory, 0).map(|finding| finding.what), Some(Wrong::Zeroes));
    }

    #[test]
    fn where_discarded_blocks_may_hold_anything_nothing_is_known() {
        let (memory, mut ledger) = ledger(false);
        ledger.write(0, &memory, 0);
        ledger.trim(0);
        assert!(!ledger.is_known(0));
    }

    #[test]
    fn busy_pieces_are_passed_over() {
        let (_, mut ledger) = ledger(true);
        assert_eq!((ledger.claim(9), ledger.claim(9), ledger.claim(0)), (9, 0, 1));
        ledger.read_back(0);
        assert!(ledger.is_read_back(0));
        ledger.release(0);
        assert!(!ledger.is_read_back(0));
        assert_eq!(ledger.claim(9), 0);
    }
}
