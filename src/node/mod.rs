//! The node: everything that RPC methods act upon, and the order in which a change happens.
//!
//! Changes come one at a time, under `Node::change`'s lock. What is created is made first and saved second (undone if
//! it cannot be saved); what is deleted is saved first and taken away second (saved again as it was if it cannot be taken
//! away). So the answer "done" means that the state file says so, and the file never promises more than a restart can
//! bring back. Listings take no part in this: they look at the live objects.

pub mod bdevs;
pub mod document;
mod error;
pub mod identity;
pub mod jobs;
pub mod notify;
mod options;
pub mod pools;
mod reservations;
mod restore;
mod scheduler;
mod through;
mod units;
mod unrestored;
pub mod vhost;
mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use pollux_bdev::Registry;
use pollux_reactor::ReactorStats;
use pollux_scsi::{Identity, LogicalUnit};
use pollux_vhost_scsi::Target;
use uuid::Uuid;

use crate::config::Settings;
use crate::logging::Logging;
use crate::state::Store;
use crate::units::UnitSaver;
use document::Document;
pub use error::{NodeError, Reason};
use jobs::Jobs;
use notify::Notifications;
use pools::Pools;
pub use restore::RestoreError;
pub use scheduler::Scheduler;
use unrestored::Unrestored;
pub use watch::Watch;

/// What the node is made of.
pub struct Parts {
    /// What the daemon was started with.
    pub settings: Settings,
    /// All bdevs.
    pub bdevs: Arc<Registry>,
    /// All controllers.
    pub target: Arc<Target>,
    /// The reactors' counters.
    pub reactors: Vec<Arc<ReactorStats>>,
    /// Where the state is kept; none: nowhere.
    pub store: Option<Store>,
    /// Keeps what guests make durable; none: nothing does.
    pub units: Option<UnitSaver>,
    /// The log's levels.
    pub logging: Logging,
}

/// Everything that RPC methods act upon.
pub struct Node {
    /// What the daemon was started with.
    pub settings: Settings,
    /// When it was started.
    pub started: Instant,
    /// All bdevs.
    pub bdevs: Arc<Registry>,
    /// All controllers.
    pub target: Arc<Target>,
    /// All pools.
    pub pools: Pools,
    /// What takes long and runs, or has run.
    pub jobs: Arc<Jobs>,
    /// The reactors' counters.
    pub reactors: Vec<Arc<ReactorStats>>,
    /// What has happened lately.
    pub notifications: Notifications,
    /// The log's levels.
    pub logging: Logging,
    units: Mutex<HashMap<Uuid, Arc<LogicalUnit>>>,
    /// What units show that were given an identity, by the UUID of their disk.
    identities: Mutex<HashMap<Uuid, Identity>>,
    unit_saver: Option<UnitSaver>,
    metrics: OnceLock<SocketAddr>,
    /// Bdevs that are there and whose LUNs are not: the next look tries again.
    waiting: Mutex<Vec<Uuid>>,
    /// What of controllers did not come back.
    unrestored: Mutex<Vec<Unrestored>>,
    shown: Arc<RwLock<Arc<Document>>>,
    changes: Mutex<Changes>,
}

/// What one change at a time may touch.
struct Changes {
    document: Document,
    store: Option<Store>,
    /// The file may hold a change that was refused: even a change of nothing has to save.
    stale: bool,
    /// The same document for those who only look: they do not wait for a change to end.
    shown: Arc<RwLock<Arc<Document>>>,
}

impl Changes {
    /// Makes `next` what a restart brings back.
    fn save(&mut self, next: Document) -> Result<(), NodeError> {
        if let Some(store) = &self.store
            && let Err(error) = store.save(&next)
        {
            tracing::error!("{error}");
            // The file is as it was, unless only the directory's sync failed: then this puts it back.
            let put_back = store.save(&self.document);
            if let Err(error) = &put_back {
                let file = store.file();
                tracing::error!(
                    "{} may hold a change that was refused, and cannot be put back: {error}; the next change saves \
                     it again, until then a restart may bring back what was refused",
                    file.display()
                );
            }
            self.stale = put_back.is_err();
            return Err(error.into());
        }
        self.stale = false;
        self.show(next);
        Ok(())
    }

    /// As `save`, but does nothing if the file says so already.
    fn save_if_new(&mut self, next: Document) -> Result<(), NodeError> {
        if next == self.document && !self.stale { Ok(()) } else { self.save(next) }
    }

    /// Makes `next` the present document without saving it.
    fn show(&mut self, next: Document) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next.clone());
        self.document = next;
    }
}

impl Node {
    /// A node without bdevs and controllers.
    #[must_use]
    pub fn new(parts: Parts) -> Node {
        let shown = Arc::<RwLock<Arc<Document>>>::default();
        Node {
            settings: parts.settings,
            started: Instant::now(),
            bdevs: parts.bdevs,
            target: parts.target,
            pools: Pools::default(),
            jobs: Arc::default(),
            reactors: parts.reactors,
            notifications: Notifications::default(),
            logging: parts.logging,
            units: Mutex::default(),
            identities: Mutex::default(),
            unit_saver: parts.units,
            metrics: OnceLock::new(),
            waiting: Mutex::default(),
            unrestored: Mutex::default(),
            shown: Arc::clone(&shown),
            changes: Mutex::new(Changes { document: Document::default(), store: parts.store, stale: false, shown }),
        }
    }

    /// What a restart would bring back.
    #[must_use]
    pub fn document(&self) -> Arc<Document> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where metrics are served, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.get().copied()
    }

    /// Says where metrics are served; once.
    pub fn set_metrics_address(&self, address: SocketAddr) {
        let _ = self.metrics.set(address);
    }

    fn change(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unrestored(&self) -> MutexGuard<'_, Vec<Unrestored>> {
        self.unrestored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Uuid>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn units(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<LogicalUnit>>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn what_could_not_be_put_back_is_saved_by_the_next_change_even_of_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), Duration::ZERO).expect("opened");
        let (file, obstacle) = (store.file(), dir.path().join("state.json.new"));
        let document = Document::default();
        let shown = Arc::default();
        let mut changes = Changes { document: document.clone(), store: Some(store), stale: false, shown };
        changes.save_if_new(document.clone()).expect("nothing to do");
        assert!(!file.exists(), "a change of nothing was written");
        fs::create_dir(&obstacle).expect("in the way");
        assert!(changes.save(document.clone()).is_err());
        assert!(changes.save_if_new(document.clone()).is_err(), "acknowledged though the file may say otherwise");
        fs::remove_dir(&obstacle).expect("out of the way");
        changes.save_if_new(document.clone()).expect("saved");
        assert!(file.exists());
        fs::remove_file(&file).expect("removed");
        changes.save_if_new(document).expect("nothing to do");
        assert!(!file.exists(), "a change of nothing was written");
    }
}
