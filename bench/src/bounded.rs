//! Work with an end: a number of requests, or each place once; and flushes between writes.
//!
//! Places that are used once and in random order are a permutation that is worked out as it goes ([`Shuffle`]), so nothing
//! has to be remembered of a disk of any size.

use crate::options::Options;
use crate::rng::mix;
use crate::scsi::Op;
use crate::work::{Job, Stream, Work};

/// Streams of all queues, one session after another, within bounds.
pub(crate) struct Bounded {
    queues: Vec<One>,
    /// Writes between two flushes; 0: no flushes.
    flush_every: u64,
}

/// One queue.
struct One {
    stream: Stream,
    /// Requests that it may still send.
    left: u64,
    /// Its places, if each is used once.
    places: Option<Places>,
    /// Writes since its last flush.
    writes: u64,
}

/// Every so many places of a disk.
struct Places {
    shuffle: Option<Shuffle>,
    at: std::iter::StepBy<std::ops::Range<u64>>,
}

impl Bounded {
    /// Over what these streams use: `options.queues` of them for each session.
    pub(crate) fn new(options: &Options, streams: Vec<Stream>) -> Self {
        let (share, all) = (u64::from(options.queues), streams.len() as u64);
        let part =
            |n: u64| options.ios.map_or(u64::MAX, |ios| (u128::from(ios) * u128::from(n) / u128::from(all)) as u64);
        let queues = streams.into_iter().zip(0..).map(|(stream, n)| One {
            left: if options.ios.is_some() { part(n + 1) - part(n) } else { u64::MAX },
            places: options.once.then(|| Places::new(options, &stream, n / share, n % share)),
            stream,
            writes: 0,
        });
        Bounded { queues: queues.collect(), flush_every: options.flush_every.unwrap_or(0) }
    }
}

impl Places {
    fn new(options: &Options, stream: &Stream, session: u64, queue: u64) -> Self {
        if !options.mode.random() {
            return Places { shuffle: None, at: stream.part().step_by(1) };
        }
        let shuffle = Shuffle::new(stream.chunks(), mix(options.seed ^ session << 48));
        Places { shuffle: Some(shuffle), at: (queue..stream.chunks()).step_by(usize::from(options.queues)) }
    }

    fn next(&mut self) -> Option<u64> {
        let at = self.at.next()?;
        Some(self.shuffle.as_ref().map_or(at, |shuffle| shuffle.place(at)))
    }
}

impl Work for Bounded {
    const CHECKED: bool = false;

    #[inline]
    fn next(&mut self, queue: usize) -> Option<Job> {
        let one = &mut self.queues[queue];
        if self.flush_every != 0 && one.writes >= self.flush_every {
            one.writes = 0;
            return Some(Job { op: Op::Flush, chunk: 0 });
        }
        if one.left == 0 {
            return None;
        }
        let mut job = one.stream.next();
        if let Some(places) = &mut one.places {
            job.chunk = places.next()?;
        }
        one.left -= 1;
        one.writes += u64::from(job.op == Op::Write);
        Some(job)
    }
}

/// The numbers below a limit in another order.
///
/// Steps that can each be undone mix the bits of a number below the next power of two; a result beyond the limit is mixed
/// again until it is not. As every step is a bijection, so is the whole.
struct Shuffle {
    len: u64,
    bits: u32,
    keys: [u64; 4],
}

impl Shuffle {
    fn new(len: u64, seed: u64) -> Self {
        let bits = (64 - len.saturating_sub(1).leading_zeros()).max(2);
        Shuffle { len, bits, keys: [1, 2, 3, 4].map(|n| mix(seed ^ n)) }
    }

    #[inline]
    fn place(&self, number: u64) -> u64 {
        let mut at = number;
        loop {
            at = self.mixed(at);
            if at < self.len {
                return at;
            }
        }
    }

    #[inline]
    fn mixed(&self, number: u64) -> u64 {
        let mask = u64::MAX >> (64 - self.bits);
        self.keys.iter().fold(number, |at, key| {
            // Adding, multiplying by an odd number and folding the upper half down can all be undone.
            let at = at.wrapping_add(*key).wrapping_mul(key | 1) & mask;
            at ^ at >> self.bits.div_ceil(2)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Mode;
    use proptest::prelude::*;

    fn bounded(change: impl FnOnce(&mut Options), chunks: u64, sessions: u64) -> Bounded {
        let mut options = Options::new(vec!["/s".into(); sessions as usize]);
        options.mode = Mode::RandWrite;
        change(&mut options);
        let queues = u64::from(options.queues);
        let stream = |n| Stream::new(&options, chunks, n % queues, queues, n);
        let streams = (0..sessions * queues).map(stream).collect();
        Bounded::new(&options, streams)
    }

    fn all(work: &mut Bounded, queue: usize) -> Vec<Job> {
        std::iter::from_fn(|| work.next(queue)).take(100_000).collect()
    }

    proptest! {
        #[test]
        fn a_shuffle_has_every_number_once(len in 1..5000u64, seed: u64) {
            let shuffle = Shuffle::new(len, seed);
            let mut seen = vec![false; len as usize];
            for n in 0..len {
                prop_assert!(!std::mem::replace(&mut seen[shuffle.place(n) as usize], true));
            }
        }
    }

    #[test]
    fn a_shuffle_spreads_its_first_numbers_evenly() {
        for len in [1 << 16, 100_000, 917_504] {
            let (shuffle, count) = (Shuffle::new(len, 7), 16_000);
            let mut parts = [0u64; 16];
            (0..count).for_each(|n| parts[(shuffle.place(n) * 16 / len) as usize] += 1);
            let right = parts.iter().all(|part| (count / 16).abs_diff(*part) < count / 16 / 5);
            assert!(right, "{len}: {parts:?}");
            let next_to = (1..count).filter(|n| shuffle.place(*n).abs_diff(shuffle.place(n - 1)) < 16).count();
            assert!(next_to < 40, "{len}: {next_to} neighbours");
        }
    }

    #[test]
    fn queues_use_each_place_once_and_another_seed_gives_another_order() {
        for mode in [Mode::RandWrite, Mode::Write] {
            let order = |seed| {
                let mut work = bounded(|o| (o.once, o.queues, o.mode, o.seed) = (true, 3, mode, seed), 1000, 1);
                (0..3).flat_map(|queue| all(&mut work, queue)).map(|job| job.chunk).collect::<Vec<_>>()
            };
            let mut places = order(1);
            assert_eq!(order(1), places);
            assert_eq!(order(2) == places, mode == Mode::Write);
            places.sort_unstable();
            assert_eq!(places, (0..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn requests_are_counted_over_all_queues_and_sessions() {
        let mut work = bounded(|o| (o.ios, o.queues) = (Some(101), 2), 1000, 2);
        let counts: Vec<usize> = (0..4).map(|queue| all(&mut work, queue).len()).collect();
        assert_eq!((counts.iter().sum::<usize>(), counts[0]), (101, 25));
        let mut work = bounded(|o| (o.ios, o.once) = (Some(500), true), 30, 1);
        assert_eq!(all(&mut work, 0).len(), 30, "all places have been used");
    }

    #[test]
    fn flushes_come_between_writes_and_are_not_counted() {
        let mut work = bounded(|o| (o.ios, o.flush_every) = (Some(10), Some(4)), 1000, 1);
        let ops: Vec<Op> = all(&mut work, 0).iter().map(|job| job.op).collect();
        let at: Vec<usize> = (0..ops.len()).filter(|n| ops[*n] == Op::Flush).collect();
        assert_eq!((ops.len(), at), (12, vec![4, 9]));
        let reads = |o: &mut Options| {
            (o.mode, o.read_percent, o.ios, o.flush_every) = (Mode::RandReadWrite, 100, Some(9), Some(1));
        };
        assert!(all(&mut bounded(reads, 1000, 1), 0).iter().all(|job| job.op == Op::Read));
    }
}
