//! Counters and histograms with one writer.
//!
//! A reactor counts into its own instance with plain loads and stores (no locked instruction, no shared cache line);
//! whoever scrapes reads all instances and adds them up. A reader may see one counter before and another after an
//! event, never a torn value.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{IoError, Op};

/// A number that one thread changes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the one writer calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` off (for gauges). Only the one writer calls this.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets the value. Only the one writer calls this.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

const SUB_BITS: u32 = 2;
/// Buckets of a [`Histogram`]: four to each power of two, from 0 to beyond 2^36 ns (69 s).
pub const BUCKETS: usize = 36 << SUB_BITS;

/// Latencies in nanoseconds, in buckets of a quarter of a power of two.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
    max: Counter,
    /// The least value plus one; 0 while there is none.
    min: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            buckets: [const { Counter(AtomicU64::new(0)) }; BUCKETS],
            sum: Counter::default(),
            max: Counter::default(),
            min: Counter::default(),
        }
    }
}

impl Histogram {
    /// The bucket that a value falls into.
    #[must_use]
    pub const fn bucket_of(ns: u64) -> usize {
        if ns < 1 << SUB_BITS {
            return ns as usize;
        }
        let exponent = 63 - ns.leading_zeros();
        let sub = (ns >> (exponent - SUB_BITS)) as usize & ((1 << SUB_BITS) - 1);
        let index = ((exponent - SUB_BITS + 1) << SUB_BITS) as usize + sub;
        if index < BUCKETS { index } else { BUCKETS - 1 }
    }

    /// One past the greatest value of a bucket (the last bucket has no end: `u64::MAX`).
    #[must_use]
    pub const fn bucket_end(index: usize) -> u64 {
        if index + 1 >= BUCKETS {
            return u64::MAX;
        }
        let next = index + 1;
        if next < 1 << SUB_BITS {
            return next as u64;
        }
        let exponent = (next >> SUB_BITS) as u32 + SUB_BITS - 1;
        let sub = next as u64 & ((1 << SUB_BITS) - 1);
        ((1 << SUB_BITS) + sub) << (exponent - SUB_BITS)
    }

    /// Counts one value.
    #[inline]
    pub fn record(&self, ns: u64) {
        self.record_many(ns, 1);
    }

    /// Counts one value so many times.
    #[inline]
    pub fn record_many(&self, ns: u64, times: u64) {
        self.buckets[Self::bucket_of(ns)].add(times);
        self.sum.add(ns.wrapping_mul(times));
        if ns > self.max.get() {
            self.max.set(ns);
        }
        let min = self.min.get();
        if min == 0 || ns + 1 < min {
            self.min.set(ns + 1);
        }
    }

    /// The count of each bucket.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(Counter::get)
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// The greatest value since the last [`Histogram::reset_extremes`]; 0 if there was none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max.get()
    }

    /// The least value since the last [`Histogram::reset_extremes`]; 0 if there was none.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.min.get().saturating_sub(1)
    }

    /// Forgets the greatest and the least value. May be called beside the writer; a value that is being recorded at
    /// that moment may or may not be forgotten.
    pub fn reset_extremes(&self) {
        self.max.set(0);
        self.min.set(0);
    }
}

/// What one submitter's requests to one device came to, on one reactor.
#[derive(Debug, Default)]
pub struct IoStats {
    ops: [OpStats; Op::ALL.len()],
    errors: [Counter; IoError::ALL.len()],
    /// Requests in flight now (a gauge).
    pub inflight: Counter,
    /// Requests that needed a bounce buffer because of their alignment.
    pub bounces: Counter,
}

/// The share of one operation.
#[derive(Debug, Default)]
pub struct OpStats {
    /// Requests that ended well.
    pub ops: Counter,
    /// Bytes of those.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// How long the good ones took.
    pub latency: Histogram,
}

impl IoStats {
    /// The share of one operation.
    #[must_use]
    pub fn op(&self, op: Op) -> &OpStats {
        &self.ops[op as usize]
    }

    /// Requests that failed for this reason.
    #[must_use]
    pub fn errors(&self, error: IoError) -> u64 {
        self.errors[error as usize].get()
    }

    /// A request was submitted.
    #[inline]
    pub fn started(&self) {
        self.inflight.add(1);
    }

    /// So many requests ended well that are alike: of so many bytes each, and begun at the same time.
    #[inline]
    pub fn ended_well(&self, op: Op, count: u64, bytes: u64, latency_ns: u64) {
        if count > 0 {
            self.inflight.sub(count);
            let of = self.op(op);
            of.ops.add(count);
            of.bytes.add(count * bytes);
            of.latency.record_many(latency_ns, count);
        }
    }

    /// A request ended.
    #[inline]
    pub fn ended(&self, op: Op, bytes: u64, latency_ns: u64, result: Result<(), IoError>) {
        self.inflight.sub(1);
        let of = self.op(op);
        match result {
            Ok(()) => {
                of.ops.add(1);
                of.bytes.add(bytes);
                of.latency.record(latency_ns);
            }
            Err(error) => {
                of.errors.add(1);
                self.errors[error as usize].add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket(ns in any::<u64>(), shift in 0u32..64) {
            let ns = ns >> shift;
            let bucket = Histogram::bucket_of(ns);
            prop_assert!(ns < Histogram::bucket_end(bucket) || bucket == BUCKETS - 1);
            prop_assert!(bucket == 0 || ns >= Histogram::bucket_end(bucket - 1));
        }
    }

    #[test]
    fn powers_of_two_are_bucket_ends() {
        for exponent in 0..36 {
            let end = 1u64 << exponent;
            assert_eq!(Histogram::bucket_end(Histogram::bucket_of(end - 1)), end);
        }
    }

    #[test]
    fn a_device_counts_what_ended() {
        let stats = IoStats::default();
        stats.started();
        stats.started();
        stats.ended(Op::Write, 4096, 1000, Ok(()));
        stats.ended(Op::Write, 4096, 10, Err(IoError::NoSpace));
        let write = stats.op(Op::Write);
        assert_eq!((write.ops.get(), write.bytes.get(), write.errors.get()), (1, 4096, 1));
        assert_eq!((write.latency.sum(), write.latency.min(), write.latency.max()), (1000, 1000, 1000));
        assert_eq!((stats.errors(IoError::NoSpace), stats.inflight.get()), (1, 0));
        write.latency.reset_extremes();
        assert_eq!((write.latency.min(), write.latency.max()), (0, 0));
    }
}
