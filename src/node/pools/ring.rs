//! A base for code that waits: by a ring of the calling thread.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_bdev::thin::PoolError;
use pollux_bdev::thin::store::Blocking;
use pollux_core::{Bdev, ClientId, Done, Entry, FileSlot, Ring, RingError, Wake};
use pollux_reactor::{RingConfig, UringRing};

use crate::node::{NodeError, Reason};

/// The longest that the ring sleeps before the base's channel is looked at again: it may wait for something else than
/// the ring.
const LOOK: Duration = Duration::from_millis(1);

/// The ring, for the channel; the one who waits has it too.
struct Shared(Rc<RefCell<UringRing>>);

impl Ring for Shared {
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

/// Has `work` read and write a base, and waits.
///
/// # Errors
/// Those of `work`, or why there is no ring.
pub(super) fn on_base<T, E>(
    base: &dyn Bdev,
    work: impl FnOnce(&mut Blocking<'_>) -> Result<T, E>,
) -> Result<T, NodeError>
where
    PoolError: From<E>,
{
    let config = RingConfig { submissions: 128, completions: 512, files: 16, ..RingConfig::default() };
    let ring = UringRing::new(&config).map_err(|error| NodeError::new(Reason::Os, error))?;
    let ring = Rc::new(RefCell::new(ring));
    let entered = ring.clone();
    let mut wait = move |_: &mut dyn Ring| {
        entered.borrow_mut().enter(Some(LOOK));
    };
    let mut shared = Shared(ring);
    let mut blocking = Blocking::new(base, &mut shared, &mut wait).map_err(PoolError::Store)?;
    Ok(work(&mut blocking).map_err(PoolError::from)?)
}
