//! Latencies in log-linear buckets: 64 to each power of two, so a value is told to 0.8 % (half a bucket).
//!
//! Values are clock ticks; recording is a shift, an addition and an increment. Beyond the last bucket (2^46 ticks, hours)
//! values are counted in it.

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
const LAST_EXPONENT: u32 = 45;
const BUCKETS: usize = (LAST_EXPONENT - SUB_BITS + 2) as usize * SUB;

/// A histogram.
#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    sum: u64,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: Box::new([0; BUCKETS]), sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    #[inline(always)]
    const fn bucket(value: u64) -> usize {
        // Below 2^SUB_BITS each value has a bucket of its own.
        let exponent = 63 - (value | SUB as u64).leading_zeros();
        let row = exponent - SUB_BITS;
        let index = row as usize * SUB + (value >> row) as usize;
        if index < BUCKETS { index } else { BUCKETS - 1 }
    }

    /// The middle of a bucket.
    const fn middle(bucket: usize) -> f64 {
        if bucket < 2 * SUB {
            return bucket as f64;
        }
        let row = bucket / SUB - 1;
        let low = (bucket - row * SUB) as f64;
        (low + 0.5) * (1u64 << row) as f64
    }

    /// Counts a value.
    #[inline(always)]
    pub(crate) fn record(&mut self, value: u64) {
        self.buckets[Self::bucket(value)] += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds what another one counted.
    pub(crate) fn add(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(other.buckets.iter()).for_each(|(to, from)| *to += from);
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The least value; 0 if there is none.
    pub(crate) const fn min(&self) -> u64 {
        if self.min == u64::MAX { 0 } else { self.min }
    }

    /// The greatest value.
    pub(crate) const fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 if there is none.
    pub(crate) fn mean(&self) -> f64 {
        self.sum as f64 / self.count().max(1) as f64
    }

    /// The value that `share` (0 to 1) of all values do not exceed; 0 if there is none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Self::middle(bucket).clamp(self.min as f64, self.max as f64);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_told_to_one_percent(value in any::<u64>(), shift in 18u32..64) {
            let value = value >> shift;
            let told = Histogram::middle(Histogram::bucket(value));
            prop_assert!((told - value as f64).abs() <= value as f64 * 0.01, "{value} is told as {told}");
        }

        #[test]
        fn greater_values_have_no_lesser_buckets(a in any::<u64>(), b in any::<u64>(), shift in 0u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert!(Histogram::bucket(a.min(b)) <= Histogram::bucket(a.max(b)));
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.min(), histogram.mean()), (0.0, 0, 0.0));
        (1..=100).for_each(|value| histogram.record(value * 1000));
        for (share, value) in [(0.0, 1e3), (0.01, 1e3), (0.5, 50e3), (0.99, 99e3), (1.0, 100e3)] {
            let told = histogram.quantile(share);
            assert!((told - value).abs() <= value * 0.01, "{share}: {told}");
        }
        assert_eq!((histogram.count(), histogram.min(), histogram.max()), (100, 1000, 100_000));
        assert!((histogram.mean() - 50_500.0).abs() < 1e-6);
        let mut both = histogram.clone();
        both.add(&histogram);
        assert_eq!((both.count(), both.quantile(0.5)), (200, histogram.quantile(0.5)));
    }
}
