//! What the slots of the queues do: an endless stream of reads and writes, or once over the disk.

use crate::memory::Memory;
use crate::options::{Mode, Options};
use crate::rng::{Rng, below};
use crate::scsi::Op;

/// One request: what, and which of the equal pieces of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) op: Op,
    pub(crate) chunk: u64,
}

/// The data of a slot.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// Where requests come from. Queues are counted over all sessions.
pub(crate) trait Work {
    /// Whether [`Work::before`] and [`Work::after`] do anything.
    const CHECKED: bool;

    /// The next request of a queue; `None` if there is none (left).
    fn next(&mut self, queue: usize) -> Option<Job>;

    /// A request is about to be sent: its data may be made.
    fn before(&mut self, _queue: usize, _job: Job, _data: Data<'_>) {}

    /// A request has ended: its data may be looked at. What is returned is done next in its slot.
    fn after(&mut self, _queue: usize, _job: Job, _good: bool, _data: Data<'_>) -> Option<Job> {
        None
    }

    /// Whether a request that ended well counts in the figures.
    fn counts(&self, _queue: usize, _job: Job) -> bool {
        true
    }
}

/// The places and operations of one queue.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    random: bool,
    first: Op,
    second: Op,
    /// Of 2^32 requests, how many are `first`.
    share: u64,
    rng: Rng,
    /// Pieces of the whole range.
    chunks: u64,
    /// Sequential: the own part of it, and where in it the next request goes.
    begin: u64,
    end: u64,
    at: u64,
}

impl Stream {
    /// For queue `n` of `of` on one disk of `chunks` pieces; `seed` is the queue's own.
    pub(crate) fn new(options: &Options, chunks: u64, n: u64, of: u64, seed: u64) -> Self {
        let (first, second) = match options.mode {
            Mode::Read | Mode::RandRead => (Op::Read, Op::Read),
            Mode::Write | Mode::RandWrite => (Op::Write, Op::Write),
            Mode::ReadWrite | Mode::RandReadWrite => (Op::Read, Op::Write),
            Mode::Trim | Mode::RandTrim => (Op::Unmap, Op::Unmap),
        };
        let part = |n: u64| (u128::from(chunks) * u128::from(n) / u128::from(of)) as u64;
        // More queues than pieces: all use the whole range.
        let (begin, end) = if part(n) < part(n + 1) { (part(n), part(n + 1)) } else { (0, chunks) };
        Stream {
            random: options.mode.random(),
            first,
            second,
            share: (u64::from(options.read_percent) << 32) / 100,
            rng: Rng::new(seed),
            chunks,
            begin,
            end,
            at: begin,
        }
    }

    /// What the first request does.
    pub(crate) const fn op(&self) -> Op {
        self.first
    }

    /// Pieces of the whole range.
    pub(crate) const fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Where it goes if it is sequential.
    pub(crate) const fn part(&self) -> std::ops::Range<u64> {
        self.begin..self.end
    }

    #[inline(always)]
    pub(crate) fn next(&mut self) -> Job {
        let random = self.rng.next_u64();
        let op = if random & 0xffff_ffff < self.share { self.first } else { self.second };
        if self.random {
            return Job { op, chunk: below(random, self.chunks) };
        }
        let chunk = self.at;
        self.at += 1;
        if self.at == self.end {
            self.at = self.begin;
        }
        Job { op, chunk }
    }
}

/// A stream for each queue, nothing compared.
pub(crate) struct Plain(pub(crate) Vec<Stream>);

impl Work for Plain {
    const CHECKED: bool = false;

    #[inline(always)]
    fn next(&mut self, queue: usize) -> Option<Job> {
        Some(self.0[queue].next())
    }
}

/// Every piece once, in order, by one operation.
pub(crate) struct Once {
    op: Op,
    /// What is left for each queue.
    left: Vec<std::ops::Range<u64>>,
}

impl Once {
    pub(crate) const fn new(op: Op, left: Vec<std::ops::Range<u64>>) -> Self {
        Once { op, left }
    }
}

impl Work for Once {
    const CHECKED: bool = false;

    fn next(&mut self, queue: usize) -> Option<Job> {
        self.left[queue].next().map(|chunk| Job { op: self.op, chunk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(mode: Mode, n: u64, of: u64) -> Stream {
        let mut options = Options::new(Vec::new());
        options.mode = mode;
        Stream::new(&options, 1000, n, of, 5 + n)
    }

    #[test]
    fn sequential_queues_share_the_range() {
        let mut seen = vec![0; 1000];
        for n in 0..3 {
            let mut stream = stream(Mode::Read, n, 3);
            let places: Vec<u64> = (0..400).map(|_| stream.next().chunk).collect();
            assert!(places.windows(2).all(|w| w[1] == w[0] + 1 || w[1] == stream.begin));
            places.iter().for_each(|at| seen[*at as usize] += 1);
        }
        assert!(seen.iter().all(|n| *n > 0));
    }

    #[test]
    fn random_places_reach_the_whole_range() {
        let mut stream = stream(Mode::RandWrite, 0, 1);
        let mut seen = vec![false; 1000];
        for _ in 0..20_000 {
            let job = stream.next();
            assert_eq!(job.op, Op::Write);
            seen[job.chunk as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn mixes_keep_their_share_everywhere() {
        let mut stream = stream(Mode::RandReadWrite, 0, 1);
        let jobs: Vec<Job> = (0..100_000).map(|_| stream.next()).collect();
        for half in [0..500, 500..1000] {
            let here: Vec<_> = jobs.iter().filter(|job| half.contains(&job.chunk)).collect();
            let reads = here.iter().filter(|job| job.op == Op::Read).count() as f64 / here.len() as f64;
            assert!((0.69..0.71).contains(&reads), "{reads}");
        }
    }

    #[test]
    fn all_or_nothing_is_exact() {
        let mut options = Options::new(Vec::new());
        options.mode = Mode::ReadWrite;
        for (percent, op) in [(0, Op::Write), (100, Op::Read)] {
            options.read_percent = percent;
            let mut stream = Stream::new(&options, 10, 0, 1, 3);
            assert!((0..10_000).all(|_| stream.next().op == op));
        }
    }
}
