//! Writes that count as a whole or not at all: which entries change for one, all at once.
//!
//! The channel locks all sub-blocks of the clusters, writes the data where nobody looks for it yet, and hands the *swap* to
//! the engine, which alone takes clusters away from entries. The engine copies what else the old clusters hold, changes the
//! entries, and says all of it in one batch of the log. The locks are the channel's until it has seen the end.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::LayerMap;

const OPEN: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// One cluster of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Of the volume.
    pub(crate) cluster: u64,
    /// The leaf with its entry, and which one that is.
    pub(crate) leaf: u32,
    pub(crate) slot: usize,
    /// The cluster of the base that its entry is on.
    pub(crate) from: u32,
    /// Where the data was written: the same one if nothing was here that is written, else one that is nobody's.
    pub(crate) to: u32,
    /// The sub-blocks that were written.
    pub(crate) mask: u16,
}

/// See the module's description.
pub(crate) struct Swap {
    pub(crate) map: Arc<LayerMap>,
    pub(crate) moved: Vec<Moved>,
    state: AtomicU8,
}

impl Swap {
    pub(crate) fn new(map: Arc<LayerMap>, moved: Vec<Moved>) -> Swap {
        Swap { map, moved, state: AtomicU8::new(OPEN) }
    }

    /// Whether it was done; `None`: nobody knows yet.
    pub(crate) fn outcome(&self) -> Option<bool> {
        match self.state.load(Acquire) {
            OPEN => None,
            state => Some(state == DONE),
        }
    }

    /// For the engine: it was done, or nothing of it was. Nothing of it is looked at any more.
    pub(crate) fn end(&self, done: bool) {
        self.state.store(if done { DONE } else { FAILED }, Release);
    }
}
