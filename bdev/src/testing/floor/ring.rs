//! A ring that has a clock and a waker and nothing else.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, Wake};

/// Whether a reactor was woken since it was looked at.
#[derive(Debug, Default)]
pub(super) struct Bell(AtomicBool);

impl Bell {
    /// Whether it has rung; it is quiet then.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Relaxed)
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.store(true, Relaxed);
    }
}

/// What the channels of a floor get for a ring: a medium in memory needs no kernel.
#[derive(Debug, Default)]
pub(super) struct ClockRing {
    pub(super) now: u64,
    pub(super) bell: Arc<Bell>,
}

impl Ring for ClockRing {
    fn now_ns(&self) -> u64 {
        self.now
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.bell.clone()
    }

    fn add_client(&mut self, _depth: u32) -> Result<ClientId, RingError> {
        Err(RingError::Full)
    }

    fn remove_client(&mut self, client: ClientId) {
        panic!("{client:?} was never registered");
    }

    fn add_file(&mut self, _fd: RawFd) -> Result<FileSlot, RingError> {
        Err(RingError::Full)
    }

    fn remove_file(&mut self, file: FileSlot) {
        panic!("{file:?} was never registered");
    }

    fn push(&mut self, entry: Entry) {
        panic!("{entry:?} is of nobody who is registered");
    }

    fn reap(&mut self, client: ClientId, _done: &mut Vec<Done>) {
        panic!("{client:?} was never registered");
    }
}
