//! Memory that several channels share out among themselves.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// At first nothing.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl Budget {
    /// So many bytes from now on. What is taken already stays so.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Relaxed);
    }

    /// Bytes in all.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Bytes that are taken.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Takes bytes, if there are as many.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit());
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    /// Gives bytes back.
    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_more_is_taken_than_there_is() {
        let budget = Budget::default();
        assert!(!budget.take(1));
        budget.set_limit(10);
        assert!(budget.take(6) && !budget.take(5) && budget.take(4));
        budget.give(6);
        assert_eq!((budget.used(), budget.take(7), budget.take(6)), (4, false, true));
    }
}
