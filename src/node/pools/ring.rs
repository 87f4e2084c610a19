//! A base for code that waits: by a ring of the calling thread.

use pollux_bdev::thin::PoolError;
use pollux_bdev::thin::store::Blocking;
use pollux_core::{Bdev, Ring};
use pollux_reactor::WaitingRing;

use crate::node::{NodeError, Reason};

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
    let mut ring = WaitingRing::new().map_err(|error| NodeError::new(Reason::Os, error))?;
    let waits = ring.clone();
    let mut wait = move |_: &mut dyn Ring| waits.wait();
    let mut blocking = Blocking::new(base, &mut ring, &mut wait).map_err(PoolError::Store)?;
    Ok(work(&mut blocking).map_err(PoolError::from)?)
}
