//! How much space a pool has, for whoever asks without the engine: words that the engine keeps up.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};

use crate::thin::format::THRESHOLDS;

/// See the module's description. In clusters.
#[derive(Default)]
pub(crate) struct Supply {
    available: AtomicU64,
    total: AtomicU64,
    /// Clusters in use at which somebody is told; 0: none.
    thresholds: [AtomicU64; THRESHOLDS],
}

impl Supply {
    /// For the engine: how much could be given out, of how much.
    pub(crate) fn say(&self, available: u64, total: u64) {
        self.available.store(available, Release);
        self.total.store(total, Release);
    }

    /// For the engine: the thresholds.
    pub(crate) fn say_thresholds(&self, used: [u64; THRESHOLDS]) {
        self.thresholds.iter().zip(used).for_each(|(word, used)| word.store(used, Release));
    }

    /// What could be given out.
    pub(crate) fn available(&self) -> u64 {
        self.available.load(Acquire)
    }

    /// What is available when each of the thresholds is reached.
    pub(crate) fn thresholds(&self) -> impl Iterator<Item = u64> {
        let total = self.total.load(Acquire);
        let used = self.thresholds.iter().map(|word| word.load(Acquire));
        used.filter(|used| *used > 0).map(move |used| total.saturating_sub(used))
    }
}
