//! What all openers of one device came to, added up.
//!
//! Each opener counts into an [`IoStats`] of its own (one writer, no shared cache line). The set holds them all; one
//! that only the set still holds has lost its opener and is folded into a sum, so totals never go down. A reset (for
//! `bdev_reset_iostat`) only remembers where the totals stood; what Prometheus reads stays monotonic.

use std::sync::{Arc, Mutex, PoisonError};

use pollux_core::stats::BUCKETS;
use pollux_core::{Histogram, IoError, IoStats, Op};

/// Latencies of one operation, added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencySnapshot {
    /// The count of each bucket of [`Histogram`].
    pub counts: [u64; BUCKETS],
    /// The sum in nanoseconds.
    pub sum_ns: u64,
    /// The least value in nanoseconds since the extremes were reset; 0 if there was none.
    pub min_ns: u64,
    /// The greatest value in nanoseconds since the extremes were reset; 0 if there was none.
    pub max_ns: u64,
}

impl Default for LatencySnapshot {
    fn default() -> Self {
        LatencySnapshot { counts: [0; BUCKETS], sum_ns: 0, min_ns: 0, max_ns: 0 }
    }
}

impl LatencySnapshot {
    fn add(&mut self, of: &Histogram) {
        let mut any = false;
        for (sum, count) in self.counts.iter_mut().zip(of.counts()) {
            any |= count > 0;
            *sum = sum.wrapping_add(count);
        }
        self.sum_ns = self.sum_ns.wrapping_add(of.sum());
        if any && of.max() > 0 {
            let least = if self.max_ns == 0 { of.min() } else { self.min_ns.min(of.min()) };
            (self.min_ns, self.max_ns) = (least, self.max_ns.max(of.max()));
        }
    }

    fn subtract(&mut self, baseline: &LatencySnapshot) {
        for (count, before) in self.counts.iter_mut().zip(&baseline.counts) {
            *count = count.wrapping_sub(*before);
        }
        self.sum_ns = self.sum_ns.wrapping_sub(baseline.sum_ns);
    }
}

/// One operation's share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpSnapshot {
    /// Requests that ended well.
    pub ops: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How long the good ones took.
    pub latency: LatencySnapshot,
}

/// The sums at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoSnapshot {
    /// By operation, in the order of [`Op::ALL`].
    pub ops: [OpSnapshot; Op::ALL.len()],
    /// Failed requests by reason, in the order of [`IoError::ALL`].
    pub errors: [u64; IoError::ALL.len()],
    /// Requests in flight.
    pub inflight: u64,
    /// Requests that needed a bounce buffer.
    pub bounces: u64,
}

impl IoSnapshot {
    /// One operation's share.
    #[must_use]
    pub fn op(&self, op: Op) -> &OpSnapshot {
        &self.ops[op as usize]
    }

    /// Failed requests with this reason.
    #[must_use]
    pub fn errors(&self, error: IoError) -> u64 {
        self.errors[error as usize]
    }

    fn add(&mut self, of: &IoStats) {
        for op in Op::ALL {
            let (sum, part) = (&mut self.ops[op as usize], of.op(op));
            sum.ops = sum.ops.wrapping_add(part.ops.get());
            sum.bytes = sum.bytes.wrapping_add(part.bytes.get());
            sum.errors = sum.errors.wrapping_add(part.errors.get());
            sum.latency.add(&part.latency);
        }
        for error in IoError::ALL {
            self.errors[error as usize] = self.errors[error as usize].wrapping_add(of.errors(error));
        }
        self.inflight = self.inflight.wrapping_add(of.inflight.get());
        self.bounces = self.bounces.wrapping_add(of.bounces.get());
    }

    fn subtract(&mut self, baseline: &IoSnapshot) {
        for (part, before) in self.ops.iter_mut().zip(&baseline.ops) {
            part.ops = part.ops.wrapping_sub(before.ops);
            part.bytes = part.bytes.wrapping_sub(before.bytes);
            part.errors = part.errors.wrapping_sub(before.errors);
            part.latency.subtract(&before.latency);
        }
        for (count, before) in self.errors.iter_mut().zip(&baseline.errors) {
            *count = count.wrapping_sub(*before);
        }
        self.bounces = self.bounces.wrapping_sub(baseline.bounces);
    }

    fn forget_extremes(&mut self) {
        for part in &mut self.ops {
            (part.latency.min_ns, part.latency.max_ns) = (0, 0);
        }
    }
}

/// What a reset forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetMode {
    /// Everything.
    All,
    /// The least and greatest latencies.
    MaxMin,
    /// The errors.
    Error,
    /// Nothing.
    None,
}

#[derive(Debug, Default)]
struct Inner {
    live: Vec<Arc<IoStats>>,
    gone: IoSnapshot,
    baseline: IoSnapshot,
}

impl Inner {
    /// Folds in whoever has gone. Nobody else can get hold of an `Arc` that only the set holds.
    fn sweep(&mut self) {
        let gone = &mut self.gone;
        self.live.retain(|stats| {
            let held = Arc::strong_count(stats) > 1;
            if !held {
                // Pairs with the release of the last other handle: what its owner counted is visible here.
                std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
                gone.add(stats);
                gone.inflight = 0;
            }
            held
        });
    }

    fn total(&mut self) -> IoSnapshot {
        self.sweep();
        let mut sum = self.gone.clone();
        self.live.iter().for_each(|stats| sum.add(stats));
        sum
    }
}

/// The counters of one device.
#[derive(Debug, Default)]
pub struct StatsSet(Mutex<Inner>);

impl StatsSet {
    /// A set without openers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counters for a new opener, whose only writer it is. They stay in the set as long as the opener holds them, and
    /// what they counted stays in the sums for ever.
    #[must_use]
    pub fn new_stats(&self) -> Arc<IoStats> {
        let stats = Arc::new(IoStats::default());
        let mut inner = self.lock();
        inner.sweep();
        inner.live.push(stats.clone());
        stats
    }

    /// The sums since the device was made. Never goes down, whatever is reset (except latency extremes and gauges).
    #[must_use]
    pub fn snapshot(&self) -> IoSnapshot {
        self.lock().total()
    }

    /// The sums since the last reset.
    #[must_use]
    pub fn since_reset(&self) -> IoSnapshot {
        let mut inner = self.lock();
        let mut sum = inner.total();
        sum.subtract(&inner.baseline);
        sum
    }

    /// Each present opener's own counters since it opened.
    #[must_use]
    pub fn per_opener(&self) -> Vec<IoSnapshot> {
        let mut inner = self.lock();
        inner.sweep();
        let snapshot = |stats: &Arc<IoStats>| {
            let mut sum = IoSnapshot::default();
            sum.add(stats);
            sum
        };
        inner.live.iter().map(snapshot).collect()
    }

    /// Starts [`StatsSet::since_reset`] anew.
    pub fn reset(&self, mode: ResetMode) {
        let mut inner = self.lock();
        let total = inner.total();
        match mode {
            ResetMode::None => return,
            ResetMode::Error => {
                inner.baseline.errors = total.errors;
                for op in Op::ALL {
                    inner.baseline.ops[op as usize].errors = total.op(op).errors;
                }
                return;
            }
            ResetMode::All => inner.baseline = total,
            ResetMode::MaxMin => {}
        }
        inner.gone.forget_extremes();
        for stats in &inner.live {
            Op::ALL.iter().for_each(|op| stats.op(*op).latency.reset_extremes());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while it was held leaves counters that are still counters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(stats: &IoStats, latency: u64) {
        stats.started();
        stats.ended(Op::Read, 512, latency, Ok(()));
    }

    #[test]
    fn totals_survive_their_openers() {
        let set = StatsSet::new();
        let (a, b) = (set.new_stats(), set.new_stats());
        count(&a, 100);
        count(&b, 50);
        b.started();
        b.ended(Op::Write, 512, 1, Err(IoError::NoSpace));
        a.started();
        assert_eq!((set.snapshot().op(Op::Read).ops, set.snapshot().inflight), (2, 1));
        assert_eq!(set.per_opener().len(), 2);
        drop(a);
        let after = set.snapshot();
        assert_eq!((after.op(Op::Read).ops, after.op(Op::Read).bytes, after.inflight), (2, 1024, 0));
        assert_eq!((after.op(Op::Write).errors, after.errors(IoError::NoSpace)), (1, 1));
        let latency = &after.op(Op::Read).latency;
        assert_eq!((latency.min_ns, latency.max_ns, latency.sum_ns), (50, 100, 150));
        assert_eq!(latency.counts.iter().sum::<u64>(), 2);
        assert_eq!(set.per_opener().len(), 1);
    }

    #[test]
    fn a_reset_starts_anew_without_touching_the_totals() {
        let set = StatsSet::new();
        let stats = set.new_stats();
        count(&stats, 100);
        set.reset(ResetMode::None);
        assert_eq!(set.since_reset().op(Op::Read).ops, 1);
        set.reset(ResetMode::All);
        let since = set.since_reset();
        assert_eq!(since, IoSnapshot::default());
        count(&stats, 30);
        assert_eq!(set.since_reset().op(Op::Read).ops, 1);
        assert_eq!(set.since_reset().op(Op::Read).latency.max_ns, 30);
        assert_eq!(set.snapshot().op(Op::Read).ops, 2);
        set.reset(ResetMode::MaxMin);
        assert_eq!((set.since_reset().op(Op::Read).ops, set.since_reset().op(Op::Read).latency.max_ns), (1, 0));
    }

    #[test]
    fn errors_can_be_reset_alone() {
        let set = StatsSet::new();
        let stats = set.new_stats();
        count(&stats, 1);
        stats.started();
        stats.ended(Op::Read, 0, 0, Err(IoError::Medium));
        set.reset(ResetMode::Error);
        let since = set.since_reset();
        assert_eq!((since.op(Op::Read).ops, since.op(Op::Read).errors, since.errors(IoError::Medium)), (1, 0, 0));
        assert_eq!(set.snapshot().errors(IoError::Medium), 1);
    }
}
