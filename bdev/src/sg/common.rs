//! What all channels of a device share: what it takes, what has become of its commands, and its resets.
//!
//! A reset is not the device's business alone: the kernel stops the whole host adapter until it is done, so one device's
//! guest would stop those of others with it. So one is done at a time, and none within a second of the one before.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::counters::Counters;

/// From the end of a reset to the next.
const SPACE: Duration = Duration::from_secs(1);
/// How often it is looked whether another channel's reset has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What is asked of the kernel past a device's commands.
pub(super) trait Driver: Send + Sync {
    /// Resets the logical unit, and waits for that.
    fn reset(&self, fd: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Has the device let its medium go again, and waits for that.
    fn allow_removal(&self, fd: BorrowedFd<'_>) -> Result<(), Errno>;
}

pub(super) struct Common {
    /// The device has gone. Never taken back.
    gone: AtomicBool,
    pub(super) counters: Arc<Counters>,
    /// The most data of one command, in bytes.
    pub(super) most: u64,
    pub(super) driver: Box<dyn Driver>,
    /// When the last reset has ended. Held over each.
    reset: Mutex<Option<Instant>>,
}

impl Common {
    pub(super) fn new(most: u64, driver: Box<dyn Driver>) -> Arc<Common> {
        Arc::new(Common {
            gone: AtomicBool::new(false),
            counters: Arc::default(),
            most,
            driver,
            reset: Mutex::default(),
        })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Resets the device; `None` if it is not time for that yet.
    pub(super) fn reset(&self, fd: BorrowedFd<'_>, now: Instant) -> Option<Result<(), Errno>> {
        let mut last = match self.reset.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if last.is_some_and(|last| now < last + SPACE) {
            return None;
        }
        let result = self.driver.reset(fd);
        *last = Some(Instant::now());
        Some(result)
    }

    /// How long it is at least until a reset may be done.
    pub(super) fn until_reset(&self, now: Instant) -> Duration {
        match self.reset.try_lock() {
            Ok(last) => last.map_or(Duration::ZERO, |last| (last + SPACE).saturating_duration_since(now)),
            Err(TryLockError::Poisoned(_)) => Duration::ZERO,
            Err(TryLockError::WouldBlock) => LOOK,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sg::tests::{Recorder, pair};

    #[test]
    fn resets_are_a_second_apart_whoever_asks() {
        let recorder = Recorder::default();
        let common = Common::new(1, Box::new(recorder.clone()));
        let (fd, _other) = pair();
        let start = Instant::now();
        assert_eq!((common.until_reset(start), common.reset(fd.as_fd(), start)), (Duration::ZERO, Some(Ok(()))));
        assert_eq!(common.reset(fd.as_fd(), start), None);
        assert!(common.until_reset(start) >= SPACE);
        let later = Instant::now() + SPACE;
        assert_eq!((common.until_reset(later), common.reset(fd.as_fd(), later)), (Duration::ZERO, Some(Ok(()))));
        assert_eq!(recorder.resets(), 2);
    }

    #[test]
    fn there_is_one_reset_at_a_time() {
        let recorder = Recorder::default();
        let common = Common::new(1, Box::new(recorder.clone()));
        let (fd, _other) = pair();
        let under_way = common.reset.lock();
        assert_eq!((common.reset(fd.as_fd(), Instant::now()), recorder.resets()), (None, 0));
        assert_eq!(common.until_reset(Instant::now()), LOOK);
        drop(under_way);
        assert_eq!(common.reset(fd.as_fd(), Instant::now()), Some(Ok(())));
    }
}
