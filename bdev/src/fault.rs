//! A device that fails on demand: for tests, and for operators' drills.
//!
//! Three things, together or apart:
//! - [`rules`]: the next so many requests of a kind fail, get stuck, come late, are corrupted, or are torn (a part of
//!   the blocks is written, then an error is answered);
//! - a volatile write [`cache`]: acknowledged writes stay in memory until a flush (FUA writes go through), and
//!   [`Fault::power_cut`] loses of the rest what a seed says;
//! - a record of what reaches the base, in order, from which its content at any power cut can be made.
//!
//! All reactors share the rules and the cache under a short lock each. Elsewhere on the data path that is forbidden;
//! here it is allowed because a cache with one content on all reactors needs one order of its changes, and because
//! nobody puts this device under load that counts.

#[cfg(test)]
mod atomic_tests;
pub mod cache;
mod channel;
mod record;
pub mod rules;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_core::{Bdev, Channel, Erasure, Extent, Lane, Op, OpenArgs, OpenError, Shape};
use serde_json::{Value, json};

use crate::{BdevError, Device, FaultSpec};
use cache::{Cache, PowerCut};
use channel::FaultChannel;
use record::Recorded;
use rules::{Rule, Rules};

/// What all channels share.
struct Shared {
    rules: Mutex<Rules>,
    /// Whether there are rules: spares the lock when there are none.
    armed: AtomicBool,
    /// Counts the calls of [`Fault::resume`].
    resumed: AtomicU64,
    cache: Option<Mutex<Cache>>,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> Option<MutexGuard<'_, Cache>> {
        self.cache.as_ref().map(|cache| cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The device.
pub struct Fault {
    base_name: String,
    base: Arc<dyn Bdev>,
    /// The base again, if it is recorded.
    record: Option<Arc<Recorded>>,
    shared: Arc<Shared>,
}

impl Fault {
    /// A device as `spec` says on `base`.
    ///
    /// # Errors
    /// If the record cannot be opened, or its file holds something else.
    pub fn new(spec: &FaultSpec, base: Arc<dyn Bdev>) -> Result<Self, BdevError> {
        let below = |path: &String| Recorded::new(base.clone(), path).map(Arc::new);
        let record = spec.record.as_ref().map(below).transpose()?;
        let base = record.clone().map_or(base, |recorded| recorded as Arc<dyn Bdev>);
        let block_size = base.shape().block_size;
        let limit = u64::from(spec.cache_mib) << 20;
        Ok(Fault {
            base_name: spec.base_name.clone(),
            base,
            record,
            shared: Arc::new(Shared {
                rules: Mutex::default(),
                armed: AtomicBool::new(false),
                resumed: AtomicU64::new(0),
                cache: spec.volatile_cache.then(|| Mutex::new(Cache::new(block_size, limit))),
            }),
        })
    }

    /// Sets the rule for an operation, or for all of them (each with the full count); it replaces the one there was.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] for a rule that could do nothing.
    pub fn inject(&self, op: Option<Op>, rule: Rule) -> Result<(), BdevError> {
        rule.check()?;
        let mut rules = self.shared.rules();
        let ops = op.as_ref().map_or(&Op::ALL[..], std::slice::from_ref);
        ops.iter().for_each(|op| rules.set(*op, rule));
        self.shared.armed.store(true, Relaxed);
        Ok(())
    }

    /// Forgets all rules. What is stuck stays stuck.
    pub fn clear(&self) {
        *self.shared.rules() = Rules::default();
        self.shared.armed.store(false, Relaxed);
    }

    /// Lets everything that is stuck go on, within some ten milliseconds.
    pub fn resume(&self) {
        self.shared.resumed.fetch_add(1, Relaxed);
    }

    /// What is left of the rule for an operation.
    #[must_use]
    pub fn rule(&self, op: Op) -> Option<Rule> {
        self.shared.rules().get(op)
    }

    /// A power cut of the disk, without the host noticing: of the writes that were acknowledged and not flushed, each
    /// is kept, lost or torn (block by block) as the seed says. What a flush or FUA is writing back at this moment is
    /// kept. `None` without a volatile cache.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Option<PowerCut> {
        self.shared.cache().map(|mut cache| cache.power_cut(seed))
    }

    /// A power cut that loses everything it can.
    #[must_use]
    pub fn drop_cache(&self) -> Option<PowerCut> {
        self.shared.cache().map(|mut cache| cache.lose_all())
    }

    /// Bytes in the volatile cache. 0 without one.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        self.shared.cache().map_or(0, |cache| cache.bytes())
    }
}

impl Bdev for Fault {
    fn shape(&self) -> Shape {
        let base = self.base.shape();
        let cached = self.shared.cache.is_some();
        // The cache is written back, and torn, block by block.
        let atomic_write = base.atomic_write.filter(|_| !cached);
        Shape { volatile_cache: base.volatile_cache || cached, atomic_write, ..base }
    }

    /// What the base knows, unless the cache may hold something that the base does not.
    fn extent(&self, offset: u64, len: u64) -> Extent {
        if self.shared.cache.is_some() { Extent::mapped(len) } else { self.base.extent(offset, len) }
    }

    fn extent_waits(&self) -> bool {
        self.shared.cache.is_none() && self.base.extent_waits()
    }

    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        FaultChannel::open(&self.base, self.shared.clone(), args)
    }
}

impl Device for Fault {
    fn product_name(&self) -> &'static str {
        "Error Injection Disk"
    }

    fn driver_specific(&self) -> Value {
        let mut shown = json!({ "error_disk": { "base_bdev": self.base_name } });
        if let Some(record) = &self.record {
            shown["error_disk"]["record"] = record.shown();
        }
        shown
    }

    fn as_fault(&self) -> Option<&Fault> {
        Some(self)
    }
}
