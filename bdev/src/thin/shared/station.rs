//! One reactor's place in a pool: clusters to give out, and whether somebody there waits for the engine.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use pollux_core::Wake;

/// Clusters that the engine puts into a lease at most; there is room for as many that come back.
pub(crate) const LEASE: usize = 512;

/// See the module's description.
pub(crate) struct Station {
    /// Clusters that belong to nobody and may be put into entries.
    lease: ArrayQueue<u32>,
    /// Below so many the engine is called for more.
    low: AtomicUsize,
    /// Somebody found none.
    starving: AtomicBool,
    waiting: AtomicBool,
    wake: OnceLock<Arc<dyn Wake>>,
}

impl Station {
    pub(crate) fn new() -> Station {
        Station {
            lease: ArrayQueue::new(2 * LEASE),
            low: AtomicUsize::new(0),
            starving: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            wake: OnceLock::new(),
        }
    }

    /// How its reactor is woken.
    pub(crate) fn reactor_is(&self, wake: impl FnOnce() -> Arc<dyn Wake>) {
        self.wake.get_or_init(wake);
    }

    /// A cluster, if there is one; and whether the engine is to be called for more. Who finds none calls once: what comes
    /// later comes from the engine, which tells.
    #[inline]
    pub(crate) fn take(&self) -> (Option<u32>, bool) {
        let cluster = self.lease.pop();
        let is_news = if cluster.is_none() { !self.starving.swap(true, SeqCst) } else { self.is_low() };
        (cluster, is_news)
    }

    /// Whether the engine should look for more.
    #[inline]
    fn is_low(&self) -> bool {
        let left = self.left();
        left == 0 || left < self.low.load(Relaxed)
    }

    /// For the engine: a full lease has so many.
    pub(crate) fn lease_is(&self, most: usize) {
        self.low.store(most / 2, Relaxed);
    }

    /// For the engine: whether somebody found no cluster, and there is none now.
    pub(crate) fn is_starving(&self) -> bool {
        self.left() == 0 && self.starving.load(SeqCst)
    }

    /// For the engine: takes a cluster back.
    pub(crate) fn take_back(&self) -> Option<u32> {
        self.lease.pop()
    }

    /// How many clusters there are.
    pub(crate) fn left(&self) -> usize {
        self.lease.len()
    }

    /// More clusters, or one that was taken and not used; gives it back if there is no room.
    pub(crate) fn put(&self, cluster: u32) -> Result<(), u32> {
        self.starving.store(false, Relaxed);
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
