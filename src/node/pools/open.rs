//! Pools are found on bases, opened, and made.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use pollux_bdev::thin::format::Geometry;
use pollux_bdev::thin::store::{CreateParams, StoreError, probe};
use pollux_bdev::thin::{Pool, PoolInfo, PoolOptions, Role, VolumeInfo};
use pollux_bdev::{Claim, Device, Entry, Kind as BdevKind, Measured, Placing};
use pollux_core::Bdev;
use uuid::Uuid;

use super::ring::on_base;
use super::{ClosedPool, OpenPool, hidden, seconds};
use crate::node::document::Document;
use crate::node::jobs::Job;
use crate::node::notify::Kind;
use crate::node::{Node, NodeError, Reason};

/// The clusters of a pool for which nobody has said anything else.
const CLUSTER: u32 = 64 << 10;

/// A pool to be made.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// On what: a bdev's name, alias or UUID.
    pub base: String,
    /// Its name.
    pub name: String,
    /// Bytes of a cluster.
    pub cluster_size: Option<u32>,
    /// How much may be promised of what there is, in percent; 0: anything.
    pub overcommit: u32,
    /// Whether a pool that is there may be lost.
    pub force: bool,
}

impl Node {
    /// The base of a pool that is to be made, if it can be as far as one can tell without looking at the base.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn check_new_pool(&self, new: &NewPool) -> Result<Arc<Entry>, NodeError> {
        let entry = self.bdevs.get(&new.base).ok_or_else(|| NodeError::no_bdev(&new.base))?;
        check_name("lvs_name", &new.name)?;
        if let Some(open) = self.pools.all().into_iter().find(|open| open.last_info().name == new.name) {
            let same = open.base.name() == entry.name();
            let reason = if same { Reason::ExistsSame } else { Reason::ExistsDifferent };
            return Err(NodeError::new(
                reason,
                format!("pool '{}' exists already, on bdev '{}'", new.name, open.base.name()),
            ));
        }
        if let Some(base) = self.base_of_pool(&new.name).filter(|base| base != entry.name()) {
            let why = format!("pool '{}' is being made on bdev '{base}'", new.name);
            return Err(NodeError::new(Reason::ExistsDifferent, why));
        }
        Ok(entry)
    }

    /// The bdev that belongs to a pool of this name, which is open or is being made.
    pub(super) fn base_of_pool(&self, name: &str) -> Option<String> {
        let is_its = |entry: &Arc<Entry>| {
            entry.claim().is_some_and(|claim| claim.kind == BdevKind::Pool && claim.by.iter().any(|by| by == name))
        };
        self.bdevs.list().into_iter().find(is_its).map(|entry| entry.name().to_owned())
    }

    /// Makes a pool and opens it; returns its UUID. What is long is to write log and metadata in full: a job that is
    /// cancelled leaves a base with no pool.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn create_pool(&self, new: &NewPool, job: &Arc<Job>) -> Result<Uuid, NodeError> {
        let uuid = Uuid::new_v4();
        let structure = self.pools.structure();
        let entry = self.check_new_pool(new)?;
        self.claimed(&entry, &new.name, || {
            // That takes long, and nobody else needs what is claimed, base and name.
            drop(structure);
            self.write_pool(new, uuid, &entry, job)?;
            let _structure = self.pools.structure();
            self.open_on(&entry)
        })?;
        tracing::info!("pool '{}' ({uuid}) is made on bdev '{}'", new.name, entry.name());
        Ok(uuid)
    }

    fn write_pool(&self, new: &NewPool, uuid: Uuid, entry: &Entry, job: &Arc<Job>) -> Result<(), NodeError> {
        let device = self.base_of(entry)?;
        let params = CreateParams {
            name: new.name.clone(),
            uuid,
            cluster_size: new.cluster_size.unwrap_or(CLUSTER),
            created: seconds(),
            overcommit: new.overcommit,
            salt: salt(),
            force: new.force,
        };
        let geometry = Geometry::new(device.shape().bytes(), params.cluster_size);
        job.progress(0, geometry.map_or(0, |geometry| geometry.written_at_creation()));
        let writing = Arc::clone(job);
        let made = on_base(&*device, |blocking| {
            blocking.watch(Box::new(move |bytes| {
                writing.add(bytes);
                !writing.is_cancelled()
            }));
            Pool::create(blocking, &params)
        });
        // The answer of a job that was cancelled is that, and not what it came upon.
        made.map_err(|error| job.check().err().unwrap_or(error))
    }

    /// Looks whether there is a pool on a bdev, and opens it. Returns the volumes that have come back and that somebody
    /// waits for.
    pub fn examine(&self, entry: &Arc<Entry>) -> Vec<Uuid> {
        let _structure = self.pools.structure();
        let Some(device) = entry.device() else { return Vec::new() };
        let claim = entry.claim();
        let lent = claim.as_ref().filter(|claim| claim.kind == BdevKind::Clone);
        if entry.kind() == BdevKind::Sg || (claim.is_some() && lent.is_none()) {
            return Vec::new();
        }
        let found = match on_base(&*device, probe) {
            Ok(found) => found,
            Err(error) if error.reason == StoreError::NotAPool.reason() => {
                self.pools.set_closed(entry.name(), None);
                return Vec::new();
            }
            // Those who stand on it tell what they cannot read.
            Err(_) if lent.is_some() => return Vec::new(),
            Err(error) => {
                self.cannot_open(entry, Uuid::nil(), "", &error);
                return Vec::new();
            }
        };
        if let Some(lent) = lent {
            // An image with a pool in it, or one whose contents were given up for a pool while they were away.
            let why = format!(
                "volumes stand on bdev '{}' ({}, the first is '{}'), and a pool that is open changes it. If it was made after \
                 them it has overwritten what they had: delete them; else inflate them. Then bdev_examine it",
                entry.name(),
                lent.by.len(),
                lent.by.first().map_or("", String::as_str)
            );
            self.cannot_open(entry, found.pool, &found.name, &NodeError::new(Reason::InUse, why));
            return Vec::new();
        }
        let twin = |open: &Arc<OpenPool>| open.uuid() == found.pool || open.last_info().name == found.name;
        let opened = match (self.pools.all().into_iter().find(twin), self.base_of_pool(&found.name)) {
            (Some(open), _) => Err(duplicate(open.base.name(), (open.uuid() != found.pool).then_some(&found.name))),
            (None, Some(base)) => Err(duplicate(&base, Some(&found.name))),
            (None, None) => self.claimed(entry, &found.name, || self.open_on(entry)),
        };
        match opened {
            Ok(back) => {
                tracing::info!("pool '{}' ({}) is open on bdev '{}'", found.name, found.pool, entry.name());
                back
            }
            Err(error) => {
                self.cannot_open(entry, found.pool, &found.name, &error);
                Vec::new()
            }
        }
    }

    fn cannot_open(&self, entry: &Entry, uuid: Uuid, name: &str, error: &NodeError) {
        tracing::error!("the pool '{name}' on bdev '{}' is not opened: {error}", entry.name());
        let closed = ClosedPool { uuid, name: name.to_owned(), state: error.reason, why: error.detail.clone() };
        self.pools.set_closed(entry.name(), Some(closed));
    }

    /// Does something with a base that a pool owns, or is to own; if it fails, the base is free again.
    fn claimed<T>(
        &self,
        entry: &Entry,
        pool: &str,
        work: impl FnOnce() -> Result<T, NodeError>,
    ) -> Result<T, NodeError> {
        self.bdevs.claim(entry.name(), Claim { kind: BdevKind::Pool, by: vec![pool.to_owned()] })?;
        work().inspect_err(|_| self.bdevs.unclaim(entry.name(), BdevKind::Pool))
    }

    fn base_of(&self, entry: &Entry) -> Result<Arc<dyn Bdev>, NodeError> {
        let device = entry.device().ok_or_else(|| crate::node::bdevs::missing(entry))?;
        Ok(Arc::new(Measured::new(device, entry.stats().clone())))
    }

    /// Opens the pool on a base that is claimed for it, and lists what is in it.
    fn open_on(&self, entry: &Arc<Entry>) -> Result<Vec<Uuid>, NodeError> {
        let base = self.base_of(entry)?;
        let options = PoolOptions {
            reactors: self.reactors.len(),
            order_time: self.settings.pool_timeout,
            salt: salt(),
            map_bytes: self.settings.map_bytes,
            composite_bytes: usize::try_from(self.settings.chain_bytes).unwrap_or(usize::MAX),
            ..PoolOptions::default()
        };
        let (pool, engine) = on_base(&*base, |blocking| Pool::open(base.clone(), blocking, &options))?;
        let reactor = self.pools.hosted.fetch_add(1, Relaxed) % self.reactors.len().max(1);
        let id = self.target.host(reactor, engine).map_err(|refused| refused.error)?;
        let info = match pool.info() {
            Ok(info) => info,
            Err(error) => {
                self.undo("the engine of a pool", self.target.evict(id));
                return Err(error.into());
            }
        };
        let mut shown = info.clone();
        hidden::conceal(&mut shown);
        let (shown, users) = (std::sync::RwLock::new(Arc::new(shown)), AtomicUsize::new(0));
        let told = super::thresholds::Told::default();
        let left = AtomicBool::new(false);
        let open = Arc::new(OpenPool { pool, id, base: entry.clone(), info: shown, users, left, told });
        open.left_behind(!hidden::take_away(&open, &info));
        let info = open.last_info();
        self.pools.opened(open.clone());
        self.pools.set_closed(entry.name(), None);
        let _changes = self.change();
        let waited_for = known(&info).filter_map(|volume| self.show(&open, &info, volume)).collect();
        self.review_origins();
        Ok(waited_for)
    }

    /// Lists a volume or a snapshot. Returns it if somebody has waited for it.
    fn show(&self, open: &OpenPool, info: &PoolInfo, volume: &VolumeInfo) -> Option<Uuid> {
        let waited_for = self.bdevs.get(&volume.uuid.to_string()).is_some();
        match self.place_volume(open, &info.name, volume.uuid, &volume.name) {
            Ok(_) => {
                let event = if waited_for { Kind::BdevOnline } else { Kind::BdevRegister };
                self.notifications.add(event, &volume.uuid.to_string());
                waited_for.then_some(volume.uuid)
            }
            Err(error) => {
                tracing::error!("volume '{}/{}' cannot be used: {error}", info.name, volume.name);
                None
            }
        }
    }

    /// Puts a volume that is there into the registry.
    pub(super) fn place_volume(
        &self,
        open: &OpenPool,
        pool: &str,
        uuid: Uuid,
        name: &str,
    ) -> Result<Arc<Entry>, NodeError> {
        let volume = open.pool.volume(uuid).ok_or_else(|| NodeError::no_bdev(&uuid.to_string()))?;
        let device = self.with_origin(open, volume).map(|volume| -> Arc<dyn Device> { Arc::new(volume) });
        if let Err(error) = &device {
            tracing::warn!("volume '{pool}/{name}' is missing: {error}");
        }
        Ok(self.bdevs.place(placing(uuid, Some(format!("{pool}/{name}")), device))?)
    }

    /// Lists volumes that the state needs and that no spec will make: their pool is to bring them.
    pub(in crate::node) fn expect_volumes(&self, document: &Document) {
        let luns = document.controllers.iter().flat_map(|record| &record.luns).map(|lun| &lun.bdev);
        for name in luns.chain(document.identities.keys()) {
            let Some(uuid) = Uuid::try_parse(name).ok().filter(|uuid| uuid.to_string() == *name) else { continue };
            if self.bdevs.get(name).is_some() {
                continue;
            }
            let why = "its pool has not been found; it comes back when the bdev does that the pool is on".to_owned();
            let missing = pollux_bdev::BdevError::Missing { name: name.clone(), why };
            tracing::warn!("volume '{name}' is missing: {missing}");
            if let Err(error) = self.bdevs.place(placing(uuid, None, Err(missing))) {
                tracing::error!("volume '{name}' cannot be listed: {error}");
            }
        }
    }

    /// Whether what is on a bdev may be looked at without being asked for: not if a guest writes it.
    pub(in crate::node) fn is_examined(&self, entry: &Entry, document: &Document) -> bool {
        let made_now = matches!(entry.kind(), BdevKind::Null | BdevKind::Malloc);
        !made_now && document.attachments(entry.name()).next().is_none() && !self.stands_on_volume(entry)
    }

    fn stands_on_volume(&self, entry: &Entry) -> bool {
        let mut name = entry.name().to_owned();
        loop {
            let Some(entry) = self.bdevs.get(&name) else { return true };
            if entry.kind() == BdevKind::Lvol {
                return true;
            }
            match self.base_name(&entry) {
                Some(base) => name = base,
                None => return false,
            }
        }
    }
}

/// What can be opened of a pool.
pub(super) fn known(info: &PoolInfo) -> impl Iterator<Item = &VolumeInfo> {
    info.volumes.iter().filter(|volume| volume.role != Role::Leaving)
}

fn placing(uuid: Uuid, alias: Option<String>, device: Result<Arc<dyn Device>, pollux_bdev::BdevError>) -> Placing {
    Placing { uuid, alias, kind: BdevKind::Lvol, product_name: "Logical Volume", device }
}

/// There is one like it on a bdev, or one that has only its name.
fn duplicate(base: &str, name: Option<&String>) -> NodeError {
    let detail = match name {
        None => format!("it is the pool that is open on bdev '{base}', or a copy of it: delete one of the two bdevs"),
        Some(name) => format!(
            "another pool of the name '{name}' is on bdev '{base}': rename that one, then this one can be opened (bdev_examine)"
        ),
    };
    NodeError { reason: "duplicate", ..NodeError::new(Reason::ExistsDifferent, detail) }
}

/// A name that can be a part of an alias, given as `parameter`.
pub(super) fn check_name(parameter: &str, name: &str) -> Result<(), NodeError> {
    let good = (1..=64).contains(&name.len()) && !name.contains('/') && !name.chars().any(char::is_control);
    let why = || format!("{parameter}: must be 1 to 64 bytes without '/' and control characters");
    if good { Ok(()) } else { Err(NodeError::new(Reason::Invalid, why())) }
}

fn salt() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}
