//! A ring that has a clock and nothing else.

use std::os::fd::RawFd;
use std::sync::Arc;

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, Wake};

/// Nobody on a floor sleeps.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// What the channels of a floor get for a ring: a medium in memory needs no kernel.
#[derive(Debug, Default)]
pub(super) struct ClockRing {
    pub(super) now: u64,
}

impl Ring for ClockRing {
    fn now_ns(&self) -> u64 {
        self.now
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(Awake)
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
