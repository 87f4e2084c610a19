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
    with_ring(base, |blocking| Ok(work(blocking).map_err(PoolError::from)?))
}

/// The same for work that fails in its own words.
///
/// # Errors
/// Those of `work`, or why there is no ring.
pub(super) fn with_ring<T>(
    base: &dyn Bdev,
    work: impl FnOnce(&mut Blocking<'_>) -> Result<T, NodeError>,
) -> Result<T, NodeError> {
    let mut ring = WaitingRing::new().map_err(|error| NodeError::new(Reason::Os, error))?;
    let waits = ring.clone();
    let mut wait = move |_: &mut dyn Ring| waits.wait();
    let mut blocking = Blocking::new(base, &mut ring, &mut wait).map_err(PoolError::Store)?;
    work(&mut blocking)
}
