//! How long somebody who finds no work goes on looking before he asks to be woken: learnt from the gaps between work.
//!
//! A wake-up costs time (the system call, the processor's way out of its idle state, for a queue the guest's
//! notification); looking costs a core. A wake-up is priced at `max` of looking, so with gaps `G` a budget `b` costs
//!
//! ```text
//! E[ G if G <= b, else b + max ]
//! ```
//!
//! and the budget is the `b` between 0 and `max` for which the gaps of late would have cost least. A gap that is always
//! the same is looked through if it is below `max`, and not waited for at all if it is longer; bursts are looked through
//! to the end of their short gaps and no further. Always to look for `max` would cost at most twice what somebody pays
//! who knows each gap before; this costs no more than that.
//!
//! A gap that was slept through looks longer than it was, by the time it takes to wake up. Where that is more than
//! `max`, sleeping would never be seen to be wrong, so one long gap in `PROBE_EVERY` is looked at for `max`; if work
//! comes in that time, learning starts afresh.
//!
//! Nothing is counted while work follows work: only a gap's first vain look and its end touch anything here.

/// The end of the shortest bucket of gaps, in nanoseconds; each next one ends at twice that.
const FIRST_END: u64 = 1 << 10;
/// How many buckets there are; gaps beyond `max` are counted behind them.
const BUCKETS: usize = 11;
/// The longest `max`, in nanoseconds: a millisecond. Who wants to look for longer does not want to sleep at all.
pub const SPIN_MAX_NS: u64 = FIRST_END << (BUCKETS - 1);
/// After so many gaps the budget is worked out again; at first after one, two and four.
const EVERY: u8 = 8;
/// When so many gaps are counted, all counts are halved: what is older weighs less.
const KEPT: u8 = 64;
/// One in so many gaps that were not looked through is looked at for `max`.
const PROBE_EVERY: u8 = 64;

/// No gap is under way.
const NONE: u64 = u64::MAX;

/// The budget of one who looks for work, and what it is learnt from.
#[derive(Clone, Debug)]
pub struct SpinBudget {
    max: u64,
    budget: u64,
    /// When the first look of this gap was in vain.
    since: u64,
    /// Gaps by length; the last place is for those beyond `max`.
    counts: [u8; BUCKETS + 1],
    counted: u8,
    /// Gaps until the budget is worked out.
    until: u8,
    /// Long gaps until one is probed.
    until_probe: u8,
    probing: bool,
}

impl SpinBudget {
    /// A budget between 0 and `max_ns` (at most [`SPIN_MAX_NS`]); `max_ns` until something is learnt.
    #[must_use]
    pub fn new(max_ns: u64) -> Self {
        let max = max_ns.min(SPIN_MAX_NS);
        SpinBudget {
            max,
            budget: max,
            since: NONE,
            counts: [0; BUCKETS + 1],
            counted: 0,
            until: 1,
            until_probe: PROBE_EVERY,
            probing: false,
        }
    }

    /// Work was found at `now`.
    #[inline]
    pub fn worked(&mut self, now: u64) {
        if self.since != NONE {
            self.gap_ended(now);
        }
    }

    /// A look at `now` was in vain. Returns whether the budget is spent: it is time to ask to be woken.
    #[inline]
    pub fn in_vain(&mut self, now: u64) -> bool {
        if self.since == NONE {
            self.since = now;
        }
        now.saturating_sub(self.since) >= self.budget_ns()
    }

    /// The budget now.
    #[inline]
    #[must_use]
    pub const fn budget_ns(&self) -> u64 {
        if self.probing { self.max } else { self.budget }
    }

    #[cold]
    fn gap_ended(&mut self, now: u64) {
        let gap = now.saturating_sub(self.since);
        self.since = NONE;
        if self.probing && gap > self.budget && gap <= self.max {
            *self = SpinBudget::new(self.max);
        }
        self.probing = false;
        self.count(gap);
        self.until -= 1;
        if self.until == 0 {
            self.until = self.counted.min(EVERY);
            self.budget = self.best();
        }
        if gap > self.budget {
            self.until_probe -= 1;
            if self.until_probe == 0 {
                self.until_probe = PROBE_EVERY;
                self.probing = true;
            }
        }
    }

    fn count(&mut self, gap: u64) {
        self.counts[if gap > self.max { BUCKETS } else { bucket_of(gap) }] += 1;
        self.counted += 1;
        if self.counted == KEPT {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.counted = self.counts.iter().sum();
        }
    }

    /// The budget with which the counted gaps would have cost least.
    fn best(&self) -> u64 {
        let mut longer = u64::from(self.counted);
        let (mut best, mut least, mut looked_through) = (0, longer * self.max, 0);
        for (bucket, &count) in self.counts[..BUCKETS].iter().enumerate() {
            let budget = end_of(bucket).min(self.max);
            longer -= u64::from(count);
            // On the average a gap lies in the middle of its bucket.
            looked_through += u64::from(count) * (end_of(bucket) / 4 * 3).min(self.max);
            let cost = looked_through + longer * (budget + self.max);
            if cost < least {
                (best, least) = (budget, cost);
            }
            if budget == self.max {
                break;
            }
        }
        best
    }
}

const fn end_of(bucket: usize) -> u64 {
    FIRST_END << bucket
}

/// The bucket whose end is the first not below the gap.
const fn bucket_of(gap: u64) -> usize {
    (u64::BITS - (gap.saturating_sub(1) / FIRST_END).leading_zeros()) as usize
}

#[cfg(test)]
#[path = "spin_tests.rs"]
mod tests;
