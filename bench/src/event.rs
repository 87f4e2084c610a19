//! An eventfd that both rustix and the vhost crate take.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::BenchError;

/// An eventfd that never blocks.
pub(crate) struct Event(EventFd);

impl Event {
    pub(crate) fn new() -> Result<Self, BenchError> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        fd.map(Event).map_err(|error| BenchError::Setup(format!("no eventfd: {error}; raise the limit with ulimit -n")))
    }

    /// For messages that hand it over.
    pub(crate) const fn inner(&self) -> &EventFd {
        &self.0
    }

    /// Signals it.
    pub(crate) fn signal(&self) -> Result<(), BenchError> {
        match self.0.write(1) {
            // Full: it is readable anyway.
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                Err(BenchError::Setup(format!("cannot kick a queue: {error}")))
            }
            _ => Ok(()),
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
