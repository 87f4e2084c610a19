//! Which pools are open, where they are, and on which reactor each has its engine.
//!
//! A pool owns its base: it claims the base in the registry before it is opened and gives it back when it has left its
//! reactor. Its volumes and snapshots are listed in the registry while it is open; those that LUNs need stay there,
//! missing, while it is not. Nothing of a pool is in the state file: pools are found on their bases.
//!
//! Locks, in this order: `Pools::structure` (a pool is opened, made, closed or deleted), then the node's changes. Listings
//! and metrics take neither: they look at what each pool has told last.

mod above;
mod alter;
mod close;
mod export;
mod find;
mod hidden;
mod identity;
mod import;
mod info;
mod map;
mod open;
mod origins;
mod parents;
mod place;
mod ring;
mod scrub;
mod shallow;
#[cfg(test)]
mod testing;
mod thresholds;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use pollux_bdev::Entry;
use pollux_bdev::thin::{Pool, PoolError, PoolInfo};
use pollux_core::Histogram;
use pollux_vhost_scsi::HostedId;
use uuid::Uuid;

pub(in crate::node) use above::who;
pub use export::{Export, Exporting};
pub use find::PoolName;
pub use import::{Import, Importing};
pub use info::clusters;
pub use open::NewPool;
pub use origins::is_degraded;
pub use place::Place;
pub use scrub::Scrub;
pub use shallow::{SHALLOW_COPY, ShallowCopy};
pub use volumes::{NewVolume, VolumeSize};

use super::{NodeError, Reason};

/// All pools.
#[derive(Default)]
pub struct Pools {
    structure: Mutex<()>,
    open: RwLock<Vec<Arc<OpenPool>>>,
    /// Pools that were found and cannot be opened, by base.
    closed: RwLock<BTreeMap<String, ClosedPool>>,
    /// Origins of which it was said that others use them.
    contested: Mutex<BTreeSet<Uuid>>,
    /// Counts pools, so that their engines go round the reactors.
    hosted: AtomicUsize,
}

/// A pool that is open.
pub struct OpenPool {
    pool: Pool,
    id: HostedId,
    base: Arc<Entry>,
    info: RwLock<Arc<PoolInfo>>,
    /// Jobs that read or write its volumes: it is not closed before they have ended.
    users: AtomicUsize,
    /// Whether a job may have left something that it could not delete.
    left: AtomicBool,
    told: thresholds::Told,
}

/// A pool that is not closed while this is there.
pub struct PoolUse(Arc<OpenPool>);

impl PoolUse {
    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &OpenPool {
        &self.0
    }
}

impl Drop for PoolUse {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Release);
    }
}

/// A pool that was found and could not be opened.
#[derive(Clone, Debug)]
pub struct ClosedPool {
    /// By which it is known, if that could be read.
    pub uuid: Uuid,
    /// Its name, if that could be read.
    pub name: String,
    /// The word for what is wrong.
    pub state: &'static str,
    /// What is wrong, for people.
    pub why: String,
}

impl OpenPool {
    /// What it has told last.
    #[must_use]
    pub fn last_info(&self) -> Arc<PoolInfo> {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long guests were held up by what changes volumes themselves: a snapshot, say. In nanoseconds.
    #[must_use]
    pub fn pauses(&self) -> &Histogram {
        self.pool.pauses()
    }

    /// What it tells now.
    ///
    /// # Errors
    /// If it is being closed.
    pub fn refresh(&self) -> Result<Arc<PoolInfo>, NodeError> {
        let mut info = self.pool.info()?;
        hidden::conceal(&mut info);
        let info = Arc::new(info);
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = info.clone();
        Ok(info)
    }

    /// Its base.
    #[must_use]
    pub const fn base(&self) -> &Arc<Entry> {
        &self.base
    }

    /// The reactor of its engine.
    #[must_use]
    pub const fn reactor(&self) -> usize {
        self.id.reactor()
    }

    /// By which it is known.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.pool.uuid()
    }

    /// Keeps it open for a job. Who calls this holds the node's changes: nobody closes it meanwhile.
    fn enter(self: Arc<Self>) -> PoolUse {
        self.users.fetch_add(1, Relaxed);
        PoolUse(self)
    }

    /// Refuses to close it while a job uses it.
    fn refuse_busy(&self) -> Result<(), NodeError> {
        let why =
            || format!("pool '{}' is in use by a job: wait for it, or cancel it (job_get_jobs)", self.last_info().name);
        if self.is_used() { Err(NodeError::new(Reason::InUse, why())) } else { Ok(()) }
    }

    fn is_used(&self) -> bool {
        self.users.load(Acquire) > 0
    }

    /// Whether there may be something that a job has left ([`hidden::tidy`]).
    fn left_behind(&self, something: bool) {
        self.left.store(something, Release);
    }

    fn has_left_behind(&self) -> bool {
        self.left.load(Acquire)
    }

    fn holds(&self, uuid: Uuid) -> bool {
        self.pool.volume(uuid).is_some()
    }
}

impl Pools {
    /// Those that are open, in the order in which they were opened.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<OpenPool>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that could not be opened, by base.
    #[must_use]
    pub fn closed(&self) -> BTreeMap<String, ClosedPool> {
        self.closed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn structure(&self) -> MutexGuard<'_, ()> {
        self.structure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same if it comes in time: who has it may be looking at a base that does not answer.
    fn structure_within(&self, patience: Duration) -> Option<MutexGuard<'_, ()>> {
        let until = Instant::now() + patience;
        loop {
            match self.structure.try_lock() {
                Ok(structure) => return Some(structure),
                Err(TryLockError::Poisoned(structure)) => return Some(structure.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn opened(&self, pool: Arc<OpenPool>) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).push(pool);
    }

    fn gone(&self, uuid: Uuid) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).retain(|open| open.uuid() != uuid);
    }

    /// Notes whether others use an origin; whether that is news.
    fn is_contested(&self, origin: Uuid, is: bool) -> bool {
        let mut all = self.contested.lock().unwrap_or_else(PoisonError::into_inner);
        if is { all.insert(origin) } else { all.remove(&origin) }
    }

    fn set_closed(&self, base: &str, closed: Option<ClosedPool>) {
        let mut all = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        match closed {
            Some(closed) => drop(all.insert(base.to_owned(), closed)),
            None => drop(all.remove(base)),
        }
    }
}

impl From<PoolError> for NodeError {
    fn from(error: PoolError) -> Self {
        let reason = match &error {
            PoolError::Exists(_) => Reason::ExistsDifferent.word(),
            error => error.reason(),
        };
        NodeError { reason, errno: error.errno(), detail: error.to_string() }
    }
}

/// Now, in seconds since 1970.
pub(in crate::node) fn seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
