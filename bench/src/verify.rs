//! Work whose data is compared: the load with read-backs, filling with stamps, and the check of everything at the end.

use crate::ledger::{Finding, Ledger};
use crate::scsi::Op;
use crate::stamp::{SECTOR, untouch};
use crate::work::{Data, Job, Stream, Work};

/// How many findings are kept.
const KEPT: usize = 8;

/// What was compared and found so far.
#[derive(Default)]
pub(crate) struct Findings {
    /// Bytes that were compared.
    pub(crate) bytes: u64,
    /// Pieces that were wrong.
    pub(crate) errors: u64,
    /// The first of them, in words.
    pub(crate) messages: Vec<String>,
}

impl Findings {
    /// Compares a piece if it is known what it has to hold.
    fn compare(&mut self, ledger: &mut Ledger, piece: u64, data: Data<'_>, at: usize, when: &str) {
        if !ledger.is_known(piece) {
            return;
        }
        self.bytes += ledger.piece() * SECTOR as u64;
        if let Some(finding) = ledger.compare(piece, data.memory, at) {
            self.found(&finding, when);
        }
    }

    #[cold]
    fn found(&mut self, finding: &Finding, when: &str) {
        self.errors += 1;
        if self.messages.len() < KEPT {
            self.messages.push(format!("{when}: {finding}"));
        }
    }
}

/// The load: each write is read back by the slot that made it, each read of something known is compared.
pub(crate) struct Checked<'a> {
    pub(crate) streams: Vec<Stream>,
    /// Queues of each disk.
    pub(crate) share: usize,
    pub(crate) ledgers: &'a mut [Ledger],
    pub(crate) findings: &'a mut Findings,
}

impl Checked<'_> {
    fn ledger(&mut self, queue: usize) -> &mut Ledger {
        &mut self.ledgers[queue / self.share]
    }
}

impl Work for Checked<'_> {
    const CHECKED: bool = true;

    fn next(&mut self, queue: usize) -> Option<Job> {
        let job = self.streams[queue].next();
        let chunk = self.ledger(queue).claim(job.chunk);
        Some(Job { chunk, ..job })
    }

    fn before(&mut self, queue: usize, job: Job, data: Data<'_>) {
        let ledger = self.ledger(queue);
        match job.op {
            Op::Read => untouch(data.memory, data.at, data.len),
            Op::Write => ledger.write(job.chunk, data.memory, data.at),
            Op::Unmap => ledger.trim(job.chunk),
            Op::Flush => {}
        }
    }

    fn after(&mut self, queue: usize, job: Job, good: bool, data: Data<'_>) -> Option<Job> {
        let ledger = &mut self.ledgers[queue / self.share];
        match (job.op, good) {
            (Op::Read, true) => {
                let when = if ledger.is_read_back(job.chunk) { "read back" } else { "read" };
                self.findings.compare(ledger, job.chunk, data, data.at, when);
            }
            (Op::Read, false) => {}
            (_, true) => {
                ledger.read_back(job.chunk);
                return Some(Job { op: Op::Read, chunk: job.chunk });
            }
            (_, false) => ledger.forget(job.chunk),
        }
        ledger.release(job.chunk);
        None
    }

    fn counts(&self, queue: usize, job: Job) -> bool {
        job.op != Op::Read || !self.ledgers[queue / self.share].is_read_back(job.chunk)
    }
}

/// What one queue still has to go over, in requests of several pieces.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// The piece that request 0 begins with.
    pub(crate) from: u64,
    /// Pieces of one request.
    pub(crate) pieces: u64,
    pub(crate) left: std::ops::Range<u64>,
}

impl Span {
    fn of(&self, chunk: u64) -> std::ops::Range<u64> {
        let first = self.from + chunk * self.pieces;
        first..first + self.pieces
    }
}

/// Everything once: written with stamps, or read and compared.
pub(crate) struct Sweep<'a> {
    pub(crate) op: Op,
    pub(crate) spans: Vec<Span>,
    pub(crate) share: usize,
    pub(crate) ledgers: &'a mut [Ledger],
    pub(crate) findings: &'a mut Findings,
}

impl Work for Sweep<'_> {
    const CHECKED: bool = true;

    fn next(&mut self, queue: usize) -> Option<Job> {
        let ledger = &self.ledgers[queue / self.share];
        let span = &mut self.spans[queue];
        while let Some(chunk) = span.left.next() {
            // Where nothing is known there is nothing to compare.
            if self.op == Op::Write || span.of(chunk).any(|piece| ledger.is_known(piece)) {
                return Some(Job { op: self.op, chunk });
            }
        }
        None
    }

    fn before(&mut self, queue: usize, job: Job, data: Data<'_>) {
        let ledger = &mut self.ledgers[queue / self.share];
        if self.op == Op::Read {
            return untouch(data.memory, data.at, data.len);
        }
        let step = ledger.piece() as usize * SECTOR;
        for (n, piece) in self.spans[queue].of(job.chunk).enumerate() {
            ledger.write(piece, data.memory, data.at + n * step);
        }
    }

    fn after(&mut self, queue: usize, job: Job, good: bool, data: Data<'_>) -> Option<Job> {
        let ledger = &mut self.ledgers[queue / self.share];
        let step = ledger.piece() as usize * SECTOR;
        for (n, piece) in self.spans[queue].of(job.chunk).enumerate() {
            match (self.op, good) {
                (Op::Read, true) => self.findings.compare(ledger, piece, data, data.at + n * step, "final check"),
                (Op::Read, false) => {}
                (_, true) => {}
                (_, false) => ledger.forget(piece),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Extent;
    use crate::memory::Memory;
    use crate::options::{HugePages, Mode, Options};

    const PIECES: u64 = 32;

    struct World {
        memory: Memory,
        ledgers: Vec<Ledger>,
        findings: Findings,
    }

    fn world() -> World {
        let extent = Extent { first: 0, bytes: PIECES * 1024, piece: 1024, block: 512 };
        World {
            memory: Memory::new(1, HugePages::Off).expect("memory"),
            ledgers: vec![Ledger::new(extent, 9, true).expect("a ledger")],
            findings: Findings::default(),
        }
    }

    fn checked<'a>(world: &'a mut World, mode: Mode) -> (Checked<'a>, &'a Memory) {
        let mut options = Options::new(Vec::new());
        options.mode = mode;
        let streams = vec![Stream::new(&options, PIECES, 0, 1, 3)];
        let World { memory, ledgers, findings } = world;
        (Checked { streams, share: 1, ledgers, findings }, memory)
    }

    /// A disk of which `lie` changes what is done.
    fn serve(disk: &mut [Vec<u8>], job: Job, data: Data<'_>, lie: bool) {
        let place = job.chunk as usize;
        match job.op {
            Op::Write if !lie => disk[place] = data.memory.bytes(data.at, 1024),
            Op::Read => data.memory.write(data.at, &disk[place]),
            _ => {}
        }
    }

    #[test]
    fn each_write_is_read_back_and_a_lost_one_is_found_once() {
        for lost in [None, Some(70)] {
            let mut world = world();
            let mut disk = vec![vec![0; 1024]; PIECES as usize];
            let (mut work, memory) = checked(&mut world, Mode::RandWrite);
            let data = Data { memory, at: 0, len: 1024 };
            for n in 0..200 {
                let job = work.next(0).expect("a request");
                work.before(0, job, data);
                serve(&mut disk, job, data, lost == Some(n));
                assert!(work.counts(0, job));
                let back = work.after(0, job, true, data).expect("a read-back");
                assert_eq!(back, Job { op: Op::Read, ..job });
                assert!(!work.counts(0, back));
                work.before(0, back, data);
                serve(&mut disk, back, data, false);
                assert_eq!(work.after(0, back, true, data), None);
            }
            assert_eq!(world.findings.errors, u64::from(lost.is_some()), "{:?}", world.findings.messages);
            assert_eq!(world.findings.bytes, 200 * 1024);
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing_to_compare() {
        let mut world = world();
        let (mut work, memory) = checked(&mut world, Mode::Write);
        let data = Data { memory, at: 0, len: 1024 };
        let job = work.next(0).expect("a request");
        work.before(0, job, data);
        assert_eq!(work.after(0, job, false, data), None);
        assert!(!work.ledgers[0].is_known(job.chunk));
        assert_eq!(work.ledgers[0].claim(job.chunk), job.chunk, "it is free again");
    }

    #[test]
    fn what_changes_later_is_found_in_the_end() {
        let mut world = world();
        let mut disk = vec![Vec::new(); PIECES as usize];
        // Requests of four pieces, from the ninth on.
        let span = Span { from: 8, pieces: 4, left: 0..6 };
        for op in [Op::Write, Op::Read] {
            let World { memory, ledgers, findings } = &mut world;
            let mut work = Sweep { op, spans: vec![span.clone()], share: 1, ledgers, findings };
            let data = Data { memory, at: 4096, len: 4096 };
            while let Some(job) = work.next(0) {
                work.before(0, job, data);
                for n in 0..4 {
                    let place = (8 + job.chunk * 4) as usize + n;
                    match op {
                        Op::Write => disk[place] = memory.bytes(4096 + 1024 * n, 1024),
                        _ => memory.write(4096 + 1024 * n, &disk[place]),
                    }
                }
                assert_eq!(work.after(0, job, true, data), None);
            }
            disk[13][700] ^= 1;
            disk[14] = disk[15].clone();
        }
        assert_eq!((world.findings.errors, world.findings.bytes), (2, 24 * 1024));
        let messages = world.findings.messages.join("\n");
        assert!(messages.contains("LBA 27: 512 of 1024 bytes wrong, corrupt"), "{messages}");
        assert!(messages.contains("LBA 28: 1024 of 1024 bytes wrong, misplaced"), "{messages}");
    }

    #[test]
    fn the_end_reads_only_what_is_known() {
        let mut world = world();
        world.ledgers[0].write(20, &world.memory, 0);
        let World { ledgers, findings, .. } = &mut world;
        let spans = vec![Span { from: 0, pieces: 4, left: 0..8 }];
        let mut work = Sweep { op: Op::Read, spans, share: 1, ledgers, findings };
        assert_eq!(work.next(0), Some(Job { op: Op::Read, chunk: 5 }));
        assert_eq!(work.next(0), None);
    }
}
