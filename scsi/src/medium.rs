//! What a unit may ask its device beside I/O: the numbers of LOG SENSE, and what GET LBA STATUS reports.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_core::{CopyRange, Erasure, Extent, Lane, Provisioning};

/// Who knows a unit's device. Asked on a reactor, where it must not wait for anything but a short lock.
pub trait Medium: Debug + Send + Sync {
    /// What the device has done so far.
    fn transfers(&self) -> Transfers;

    /// As [`Bdev::extent`](pollux_core::Bdev::extent) of the device. Not asked on a reactor if
    /// [`Medium::extent_waits`].
    fn extent(&self, offset: u64, len: u64) -> Extent;

    /// As [`Bdev::extent_waits`](pollux_core::Bdev::extent_waits).
    fn extent_waits(&self) -> bool {
        false
    }

    /// As [`Bdev::provisioning`](pollux_core::Bdev::provisioning) of the device.
    fn provisioning(&self) -> Option<Provisioning> {
        None
    }

    /// As [`Bdev::lane`](pollux_core::Bdev::lane) of the device.
    fn lane(&self) -> Option<Lane> {
        None
    }

    /// As [`Bdev::erasure`](pollux_core::Bdev::erasure) of the device.
    fn erasure(&self) -> Erasure {
        Erasure::Plain
    }

    /// As [`Bdev::copy_range`](pollux_core::Bdev::copy_range) of the device.
    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        let _ = (offset, len);
        None
    }
}

/// Totals of a device. They only grow, and may wrap around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Reads.
    pub read: Share,
    /// Writes.
    pub written: Share,
}

/// The totals of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Requests that ended well.
    pub requests: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// How long they took, added up, in nanoseconds.
    pub time_ns: u64,
}

/// What a device has done since a moment, for LOG SENSE.
#[derive(Clone, Debug)]
pub(crate) struct Statistics {
    pub(crate) medium: Arc<dyn Medium>,
    before: Transfers,
    began: Instant,
    idle: Duration,
}

impl Statistics {
    /// Begins now, at zero.
    pub(crate) fn new(medium: Arc<dyn Medium>) -> Statistics {
        Statistics { before: medium.transfers(), medium, began: Instant::now(), idle: Duration::ZERO }
    }

    /// What was done since then, and for how long at least nothing was.
    ///
    /// Nobody counts idle time, which would cost every request; what is left of the time when that of all requests is taken
    /// away is a lower bound of it, exact where requests do not overlap. It never goes down.
    pub(crate) fn look(&mut self) -> (Transfers, Duration) {
        self.look_at(self.began.elapsed())
    }

    fn look_at(&mut self, elapsed: Duration) -> (Transfers, Duration) {
        let done = self.medium.transfers().since(&self.before);
        let busy = Duration::from_nanos(done.read.time_ns.saturating_add(done.written.time_ns));
        self.idle = self.idle.max(elapsed.saturating_sub(busy));
        (done, self.idle)
    }
}

impl Transfers {
    /// What has come on top since `before`.
    fn since(&self, before: &Transfers) -> Transfers {
        Transfers { read: self.read.since(before.read), written: self.written.since(before.written) }
    }
}

impl Share {
    fn since(self, before: Share) -> Share {
        Share {
            requests: self.requests.wrapping_sub(before.requests),
            bytes: self.bytes.wrapping_sub(before.bytes),
            time_ns: self.time_ns.wrapping_sub(before.time_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug)]
    struct Busy(AtomicU64);

    impl Medium for Busy {
        fn transfers(&self) -> Transfers {
            let time_ns = self.0.load(Ordering::Relaxed);
            Transfers { read: Share { requests: 1, bytes: 1, time_ns }, written: Share::default() }
        }

        fn extent(&self, _: u64, len: u64) -> Extent {
            Extent::mapped(len)
        }
    }

    #[test]
    fn idle_time_is_what_is_left_and_never_goes_down() {
        let busy = Arc::new(Busy(AtomicU64::new(500)));
        let mut statistics = Statistics::new(busy.clone());
        let mut idle = |busy_ns, elapsed_ns| {
            busy.0.store(500 + busy_ns, Ordering::Relaxed);
            let (done, idle) = statistics.look_at(Duration::from_nanos(elapsed_ns));
            assert_eq!((done.read.time_ns, done.read.requests), (busy_ns, 0));
            idle.as_nanos()
        };
        assert_eq!(
            [idle(0, 100), idle(30, 150), idle(90, 200), idle(400, 300), idle(400, 530)],
            [100, 120, 120, 120, 130]
        );
    }
}
