//! One reactor's place in a pool: clusters to give out, and whether somebody there waits for the engine.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use pollux_core::Wake;

/// Clusters that the engine puts into a lease at most; there is room for as many that come back.
pub(crate) const LEASE: usize = 512;
/// Below so many the engine is called for more.
pub(crate) const LOW: usize = LEASE / 2;

/// See the module's description.
pub(crate) struct Station {
    /// Clusters that belong to nobody and may be put into entries.
    lease: ArrayQueue<u32>,
    waiting: AtomicBool,
    wake: OnceLock<Arc<dyn Wake>>,
}

impl Station {
    pub(crate) fn new() -> Station {
        Station { lease: ArrayQueue::new(2 * LEASE), waiting: AtomicBool::new(false), wake: OnceLock::new() }
    }

    /// How its reactor is woken.
    pub(crate) fn reactor_is(&self, wake: impl FnOnce() -> Arc<dyn Wake>) {
        self.wake.get_or_init(wake);
    }

    /// A cluster, if there is one.
    #[inline]
    pub(crate) fn take(&self) -> Option<u32> {
        self.lease.pop()
    }

    /// How many clusters there are.
    pub(crate) fn left(&self) -> usize {
        self.lease.len()
    }

    /// More clusters, or one that was taken and not used; gives it back if there is no room.
    pub(crate) fn put(&self, cluster: u32) -> Result<(), u32> {
        self.lease.push(cluster)
    }

    /// Somebody waits. It looks once more at what it waits for.
    pub(crate) fn wait(&self) {
        if !self.waiting.load(Relaxed) {
            self.waiting.store(true, SeqCst);
        }
        std::sync::atomic::fence(SeqCst);
    }

    /// Its reactor makes a pass.
    pub(crate) fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake.wake();
        }
    }

    /// For the engine, after a fence: something has happened that is waited for.
    pub(crate) fn tell(&self) {
        if self.waiting.load(Relaxed)
            && self.waiting.swap(false, SeqCst)
            && let Some(wake) = self.wake.get()
        {
            wake.wake();
        }
    }
}
