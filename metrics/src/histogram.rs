//! Latency histograms as Prometheus wants them: cumulative, in seconds, one bucket to a power of two.
//!
//! The counting side has four buckets to each power of two, from 0 ns on. They are folded here to the ends
//! 2^10 ns (1.024 µs), 2^11, ... 2^34 (17.2 s); what is slower counts in `+Inf` only. A bucket of the counting side ends
//! before its end, `le` includes its own: a value of exactly 2^k ns counts in the next bucket.

use pollux_core::Histogram;
use pollux_core::stats::BUCKETS;
use prometheus::proto;

const FIRST_EXPONENT: u32 = 10;
const LAST_EXPONENT: u32 = 34;
const NS_PER_SECOND: f64 = 1e9;

/// What one or several histograms came to at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    counts: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        HistogramSnapshot { counts: [0; BUCKETS], sum_ns: 0 }
    }
}

impl HistogramSnapshot {
    /// From the counts of [`Histogram::counts`] and the sum in nanoseconds, read elsewhere; counts that are missing are
    /// zero.
    ///
    /// # Panics
    /// If there are more counts than a [`Histogram`] has buckets.
    #[must_use]
    pub fn from_counts(counts: impl IntoIterator<Item = u64>, sum_ns: u64) -> Self {
        let mut snapshot = HistogramSnapshot { sum_ns, ..HistogramSnapshot::default() };
        for (bucket, count) in counts.into_iter().enumerate() {
            snapshot.counts[bucket] = count;
        }
        snapshot
    }

    /// Adds what a histogram holds now.
    pub fn add(&mut self, histogram: &Histogram) {
        for (total, count) in self.counts.iter_mut().zip(histogram.counts()) {
            *total += count;
        }
        self.sum_ns = self.sum_ns.wrapping_add(histogram.sum());
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(crate) fn to_proto(&self) -> proto::Histogram {
        let mut buckets = Vec::new();
        let mut below = 0;
        let mut counts = self.counts.iter().enumerate().peekable();
        for exponent in FIRST_EXPONENT..=LAST_EXPONENT {
            let end = 1u64 << exponent;
            while let Some((_, count)) = counts.next_if(|(index, _)| Histogram::bucket_end(*index) <= end) {
                below += count;
            }
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(end as f64 / NS_PER_SECOND);
            bucket.set_cumulative_count(below);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(self.count());
        histogram.set_sample_sum(self.sum_ns as f64 / NS_PER_SECOND);
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cumulative(snapshot: &HistogramSnapshot) -> Vec<u64> {
        snapshot.to_proto().get_bucket().iter().map(proto::Bucket::cumulative_count).collect()
    }

    #[test]
    fn ends_are_powers_of_two_from_a_microsecond_to_seventeen_seconds() {
        let histogram = HistogramSnapshot::default().to_proto();
        let ends: Vec<f64> = histogram.get_bucket().iter().map(proto::Bucket::upper_bound).collect();
        assert_eq!((ends.len(), ends[0], ends[24]), (25, 0.000_001_024, 17.179_869_184));
        assert!(ends.windows(2).all(|pair| (pair[1] / pair[0] - 2.0).abs() < 1e-12));
    }

    #[test]
    fn values_fall_below_their_end_and_the_slowest_into_infinity_only() {
        let histogram = Histogram::default();
        for ns in [0, 1023, 1024, 1500, 2047, 2048, (1 << 34) - 1, 1 << 34, u64::MAX / 4] {
            histogram.record(ns);
        }
        let mut snapshot = HistogramSnapshot::default();
        snapshot.add(&histogram);
        let below = cumulative(&snapshot);
        assert_eq!(below[..3], [2, 5, 6]);
        assert_eq!((below[23], below[24], snapshot.count()), (6, 7, 9));
        assert!(below.is_sorted());
    }

    #[test]
    fn every_value_is_below_the_first_end_above_it() {
        for exponent in 0..36u32 {
            for ns in [1u64 << exponent, (1 << exponent) + (1 << exponent >> 2), (2 << exponent) - 1] {
                let counts = (0..BUCKETS).map(|bucket| u64::from(bucket == Histogram::bucket_of(ns)));
                let below = cumulative(&HistogramSnapshot::from_counts(counts, ns));
                let first = (FIRST_EXPONENT..=LAST_EXPONENT).position(|end| ns < 1 << end);
                assert_eq!(below.iter().position(|count| *count == 1), first, "{ns}");
            }
        }
    }

    #[test]
    fn several_reactors_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.record(2_000_000_000);
        b.record(500_000_000);
        let mut snapshot = HistogramSnapshot::default();
        snapshot.add(&a);
        snapshot.add(&b);
        let proto = snapshot.to_proto();
        assert_eq!((proto.get_sample_count(), proto.get_sample_sum()), (2, 2.5));
        assert_eq!(snapshot, HistogramSnapshot::from_counts(snapshot.counts, 2_500_000_000));
    }
}
