//! A ring for code that waits: not a reactor's, but of a thread that does one thing and sleeps until it is done.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_core::{ClientId, Done, Entry, FileSlot, Ring, RingError, Wake};

use crate::{RingConfig, SetupError, UringRing};

/// The longest that the ring sleeps before channels are looked at again: they may wait for something else than the ring.
const LOOK: Duration = Duration::from_millis(1);
/// Enough for what is done one after the other.
const SIZE: (u32, u32, u32) = (128, 512, 16);

/// A small ring in two hands: a channel has it as its ring, and who waits for the channel has it [`wait`](Self::wait).
#[derive(Clone)]
pub struct WaitingRing(Rc<RefCell<UringRing>>);

impl WaitingRing {
    /// A ring of the calling thread.
    ///
    /// # Errors
    /// If the kernel gives none.
    pub fn new() -> Result<WaitingRing, SetupError> {
        let (submissions, completions, files) = SIZE;
        let config = RingConfig { submissions, completions, files, ..RingConfig::default() };
        Ok(WaitingRing(Rc::new(RefCell::new(UringRing::new(&config)?))))
    }

    /// Submits what was pushed, and sleeps until something has completed or a millisecond has passed.
    pub fn wait(&self) {
        self.0.borrow_mut().enter(Some(LOOK));
    }
}

impl Ring for WaitingRing {
    fn now_ns(&self) -> u64 {
        self.0.borrow().now_ns()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.0.borrow().waker()
    }

    fn add_client(&mut self, depth: u32) -> Result<ClientId, RingError> {
        self.0.borrow_mut().add_client(depth)
    }

    fn remove_client(&mut self, client: ClientId) {
        self.0.borrow_mut().remove_client(client);
    }

    fn add_file(&mut self, fd: RawFd) -> Result<FileSlot, RingError> {
        self.0.borrow_mut().add_file(fd)
    }

    fn remove_file(&mut self, file: FileSlot) {
        self.0.borrow_mut().remove_file(file);
    }

    fn push(&mut self, entry: Entry) {
        self.0.borrow_mut().push(entry);
    }

    fn reap(&mut self, client: ClientId, done: &mut Vec<Done>) {
        self.0.borrow_mut().reap(client, done);
    }
}
