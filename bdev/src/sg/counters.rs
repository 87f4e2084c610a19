//! What has become of a device's commands, counted by the helpers of its channels.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pollux_core::{Delivery, ScsiAnswer};

/// Counters of a device.
#[derive(Debug, Default)]
pub struct Counters {
    deliveries: [AtomicU64; Delivery::ALL.len()],
    good: AtomicU64,
}

impl Counters {
    pub(super) fn ended(&self, answer: &ScsiAnswer) {
        self.deliveries[answer.delivery as usize].fetch_add(1, Relaxed);
        if answer.delivery == Delivery::Answered && answer.status == 0 {
            self.good.fetch_add(1, Relaxed);
        }
    }

    /// Commands that ended so.
    #[must_use]
    pub fn delivered(&self, delivery: Delivery) -> u64 {
        self.deliveries[delivery as usize].load(Relaxed)
    }

    /// Of those that the device has answered, those with status GOOD.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.good.load(Relaxed)
    }
}
