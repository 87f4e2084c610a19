//! Bdevs outside of a pool that its volumes stand on (*origins*): who may use them, and when they are there.
//!
//! - An origin is known by its UUID, which is on disk with the volume. It may be called and reached differently later.
//! - As long as something stands on it, it is claimed by that: others may stand on it too, and nobody writes it. Who has the claim is
//!   worked out anew whenever a pool's volumes may be others, so nothing has to be given back.
//! - A volume whose origin is not there, or is not what it was, is listed as missing and can be deleted. It is there again as
//!   soon as its origin is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pollux_bdev::thin::{Origin, PoolInfo, ThinVolume, VolumeInfo};
use pollux_bdev::{BdevError, Entry, Kind as BdevKind, Measured};
use pollux_core::Bdev;
use uuid::Uuid;

use super::open::known;
use super::volumes::{refuse_taken, volume_info, whole};
use super::{OpenPool, PoolName, hidden, seconds};
use crate::node::notify::Kind;
use crate::node::{Node, NodeError, Reason};

impl Node {
    /// Makes a writable child of any bdev, which nobody writes from now on; its size is rounded up to whole clusters.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn clone_bdev(&self, bdev: &str, pool: &PoolName, name: &str) -> Result<Uuid, NodeError> {
        let _changes = self.change();
        let open = self.find_pool(pool)?;
        let info = open.refresh()?;
        let entry = self.bdevs.get(bdev).ok_or_else(|| NodeError::no_bdev(bdev))?;
        let of = entry.uuid();
        refuse_taken(&info, name, |known| known.parent.is_none() && known.origin.is_some_and(|its| its.uuid == of))?;
        let has = self.check_origin(&open, &entry)?;
        let (uuid, origin) = (Uuid::new_v4(), Origin { uuid: of, bytes: has });
        self.lend(&entry, &format!("{}/{name}", info.name))?;
        let made =
            whole(&info, has).and_then(|bytes| Ok(open.pool.clone_bdev(origin, uuid, name, bytes, seconds())?));
        match made {
            Ok(()) => self.show_new(&open, uuid, name)?,
            Err(error) => {
                self.look_again(&open);
                return Err(error);
            }
        }
        Ok(uuid)
    }

    /// What a volume has not itself it has from this bdev from now on, as far as both go. Refused while a front end is connected
    /// to a controller that exports it, unless with `force`: then every initiator is told that the medium may be another one.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn set_parent_bdev(&self, name: &str, parent: &str, force: bool) -> Result<(), NodeError> {
        let changes = self.change();
        let (open, entry) = self.find_volume(name)?;
        let below = self.bdevs.get(parent).ok_or_else(|| NodeError::no_bdev(parent))?;
        self.refuse_counted_on(&entry)?;
        if let Some(by) = entry.claimed_by() {
            let why = format!("'{name}' is in use by '{by}', which stands on it; delete that first");
            return Err(NodeError::new(Reason::InUse, why));
        }
        if hidden::stands_on_hidden(&open.pool.info()?, entry.uuid()) {
            // What it has written before that snapshot is there, and it would lose it.
            let why = format!("'{name}' is being exported: wait for that, or cancel it (job_get_jobs)");
            return Err(NodeError::new(Reason::Busy, why));
        }
        let volume = volume_info(&*open.refresh()?, entry.uuid())?.clone();
        let of_this = volume.parent.is_none() && volume.origin.is_some_and(|its| its.uuid == below.uuid());
        if of_this {
            let why = format!("'{parent}' is the parent of '{name}' already");
            return Err(NodeError::new(Reason::ExistsSame, why));
        }
        let bytes = self.check_origin(&open, &below)?.min(volume.bytes);
        if !force {
            self.refuse_connected(&changes, std::slice::from_ref(&entry), name)?;
        }
        self.lend(&below, &format!("{}/{}", open.last_info().name, volume.name))?;
        let set = open.pool.set_origin(entry.uuid(), Origin { uuid: below.uuid(), bytes });
        self.look_again(&open);
        set?;
        self.stands_on_another(&open, &entry);
        self.tell_other_medium(&entry);
        Ok(())
    }

    /// Whether volumes of a pool can stand on a bdev: its bytes.
    fn check_origin(&self, open: &OpenPool, entry: &Arc<Entry>) -> Result<u64, NodeError> {
        if entry.kind() == BdevKind::Sg {
            let why = format!("'{}' is a whole SCSI device, not a block device: nothing can stand on it", entry.name());
            return Err(NodeError::new(Reason::Invalid, why));
        }
        let below = self.below(entry);
        let is_of_pool = |below: &Arc<Entry>| self.pool_of(below).is_some_and(|its| its.uuid() == open.uuid());
        if below.iter().any(is_of_pool) {
            let why = format!(
                "'{}' is a volume or snapshot of pool '{}', or stands on one: clone a snapshot of it with bdev_lvol_clone",
                entry.name(),
                open.last_info().name
            );
            return Err(NodeError { reason: "same_pool", ..NodeError::new(Reason::Invalid, why) });
        }
        let in_memory = |all: &[Arc<Entry>]| all.iter().any(|below| below.kind() == BdevKind::Malloc);
        if in_memory(&below) && !in_memory(&self.below(open.base())) {
            let why = format!(
                "'{}' is in memory and comes back empty after a restart, and pool '{}' as it was: copy it into a file, or into a \
                 volume (bdev_lvol_start_shallow_copy, bdev_lvol_import), and use that",
                entry.name(),
                open.last_info().name
            );
            return Err(NodeError { reason: "not_persistent", ..NodeError::new(Reason::Invalid, why) });
        }
        let device = entry.device().ok_or_else(|| crate::node::bdevs::missing(entry))?;
        let (shape, base) = (device.shape(), block_size(open));
        if shape.block_size > base {
            let why = format!(
                "'{}' has blocks of {} bytes, and the pool's volumes of {base}: it cannot be read by those",
                entry.name(),
                shape.block_size
            );
            return Err(NodeError::new(Reason::Invalid, why));
        }
        Ok(shape.bytes())
    }

    /// A bdev is one's that is about to stand on it, beside those that do so already.
    fn lend(&self, entry: &Entry, to: &str) -> Result<(), NodeError> {
        let mut by =
            entry.claim().filter(|claim| claim.kind == BdevKind::Clone).map_or_else(Vec::new, |claim| claim.by);
        by.push(to.to_owned());
        Ok(self.bdevs.share(entry.name(), BdevKind::Clone, by)?)
    }

    /// A volume of a pool with what it stands on.
    ///
    /// # Errors
    /// [`BdevError::Missing`] if what it stands on is not there, or is not what it was.
    pub(super) fn whole_volume(&self, open: &OpenPool, uuid: Uuid) -> Result<ThinVolume, NodeError> {
        let volume = open.pool.volume(uuid).ok_or_else(|| NodeError::no_bdev(&uuid.to_string()))?;
        Ok(self.with_origin(open, volume)?)
    }

    /// The same of one that was looked up.
    pub(super) fn with_origin(&self, open: &OpenPool, volume: ThinVolume) -> Result<ThinVolume, BdevError> {
        match volume.origin() {
            None => volume.stands_alone(),
            Some(origin) => match self.origin_of(open, volume.uuid(), origin) {
                Ok(device) => volume.stands_over(origin.uuid, device),
                Err(error) => {
                    volume.stands_alone();
                    return Err(error);
                }
            },
        }
        Ok(volume)
    }

    fn origin_of(&self, open: &OpenPool, volume: Uuid, origin: Origin) -> Result<Arc<dyn Bdev>, BdevError> {
        let missing = |why: String| BdevError::Missing { name: volume.to_string(), why };
        let name = origin.uuid.to_string();
        let entry =
            self.bdevs.get(&name).ok_or_else(|| missing(format!("it stands on bdev {name}, which there is not")))?;
        let device =
            entry.device().ok_or_else(|| missing(format!("bdev '{}' is missing, on which it stands", entry.name())))?;
        let shape = device.shape();
        if shape.bytes() < origin.bytes || shape.block_size > block_size(open) {
            let (is, was) = (shape.bytes(), origin.bytes);
            let why = format!("bdev '{}', on which it stands, has {is} bytes, and had {was} or more", entry.name());
            return Err(missing(why));
        }
        // Nobody else may have begun to write it meanwhile; who had it before the daemon was started anew has it still.
        self.refuse_exported(&entry).map_err(|error| missing(error.to_string()))?;
        let by = entry.claim().map(|claim| claim.kind);
        if by != Some(BdevKind::Clone) {
            self.bdevs
                .share(entry.name(), BdevKind::Clone, vec![volume.to_string()])
                .map_err(|error| missing(error.to_string()))?;
        }
        Ok(Arc::new(Measured::new(device, entry.stats().clone())))
    }

    /// Refuses a bdev that guests have, or are to have again when the restore has come so far.
    fn refuse_exported(&self, entry: &Entry) -> Result<(), NodeError> {
        match self.document().attachments(entry.name()).next() {
            None => Ok(()),
            Some((ctrlr, _)) => {
                let why = format!("bdev '{}', on which it stands, is exported by controller '{ctrlr}'", entry.name());
                Err(NodeError::new(Reason::InUse, why))
            }
        }
    }

    /// What volumes stand on is theirs, as pools say now, and nobody's that is not needed any more. While a change is late it may
    /// still come to need what it was lent, so nothing is given back.
    pub(super) fn review_origins(&self) {
        let lost = |wanted: &BTreeMap<Uuid, Vec<String>>| {
            let mine = |entry: &Arc<Entry>| entry.claim().is_some_and(|claim| claim.kind == BdevKind::Clone);
            self.bdevs.list().iter().any(|entry| mine(entry) && !wanted.contains_key(&entry.uuid()))
        };
        let mut wanted = self.origins();
        if lost(&wanted) {
            // What a pool has told may be older than what it was just asked for.
            self.pools.all().iter().for_each(|open| drop(open.refresh()));
            wanted = self.origins();
        }
        let is_late = self.pools.all().iter().any(|open| open.pool.is_late());
        for entry in self.bdevs.list() {
            let mut by = wanted.remove(&entry.uuid()).unwrap_or_default();
            let theirs = entry.claim().filter(|claim| claim.kind == BdevKind::Clone);
            let is_theirs = theirs.is_some();
            if is_late {
                let kept = theirs.into_iter().flat_map(|claim| claim.by).filter(|lent| !by.contains(lent));
                by.extend(kept.collect::<Vec<_>>());
            }
            if !is_theirs && by.is_empty() {
                continue;
            }
            let shared =
                self.refuse_exported(&entry).and_then(|()| Ok(self.bdevs.share(entry.name(), BdevKind::Clone, by)?));
            let is_news = self.pools.is_contested(entry.uuid(), shared.is_err());
            if let Err(error) = shared.as_ref()
                && is_news
            {
                tracing::error!("volumes stand on bdev '{}', which others use: {error}", entry.name());
            }
        }
    }

    /// By what is stood on each origin.
    fn origins(&self) -> BTreeMap<Uuid, Vec<String>> {
        let mut all: BTreeMap<Uuid, Vec<String>> = BTreeMap::new();
        for open in self.pools.all() {
            let info = open.last_info();
            for (volume, origin) in known(&info).filter_map(|volume| Some((volume, volume.origin?))) {
                all.entry(origin.uuid).or_default().push(format!("{}/{}", info.name, volume.name));
            }
        }
        all
    }

    /// Volumes whose origin is there now, or is there again (one of `back`), get it. Returns those that somebody waits for, with
    /// what stands on them.
    pub(in crate::node) fn mend_volumes(&self, back: &[Arc<Entry>]) -> Vec<Uuid> {
        let _changes = self.change();
        let (mut mended, bdevs) = (Vec::new(), self.bdevs_by_uuid());
        for open in self.pools.all() {
            let info = open.last_info();
            for (volume, origin) in known(&info).filter_map(|volume| Some((volume, volume.origin?))) {
                let Some(entry) = bdevs.get(&volume.uuid) else { continue };
                let is_old = back.iter().any(|back| back.uuid() == origin.uuid);
                let is_whole = || self.whole_volume(&open, volume.uuid).is_ok();
                if (entry.device().is_none() || is_old)
                    && is_whole()
                    && self.place_volume(&open, &info.name, volume.uuid, &volume.name).is_ok()
                {
                    tracing::info!("volume '{}/{}' has what it stands on", info.name, volume.name);
                    self.notifications.add(Kind::BdevOnline, &volume.uuid.to_string());
                    mended.extend(self.above(entry).iter().map(|above| above.uuid()));
                }
            }
        }
        if !mended.is_empty() {
            self.review_origins();
        }
        mended
    }

    /// A volume does not stand on a bdev any more: who opens it does not need that. Who has it open gives that up by himself.
    pub(super) fn stands_on_less(&self, open: &OpenPool, uuid: Uuid) {
        let info = open.last_info();
        if let Ok(volume) = volume_info(&info, uuid) {
            self.undo("a volume", self.place_volume(open, &info.name, uuid, &volume.name));
        }
    }

    /// All bdevs, for who looks for many of them.
    #[must_use]
    pub fn bdevs_by_uuid(&self) -> HashMap<Uuid, Arc<Entry>> {
        self.bdevs.list().into_iter().map(|entry| (entry.uuid(), entry)).collect()
    }

    /// What an operator should know of volumes that lack what they stand on.
    pub(super) fn origin_warnings(&self, info: &PoolInfo) -> Vec<String> {
        let mut lacking: BTreeMap<Uuid, usize> = BTreeMap::new();
        let bdevs = self.bdevs_by_uuid();
        for (volume, origin) in known(info).filter_map(|volume| Some((volume, volume.origin?))) {
            if is_degraded(&bdevs, volume) {
                *lacking.entry(origin.uuid).or_default() += 1;
            }
        }
        let told = lacking.into_iter().map(|(origin, count)| {
            format!("pool {}: {count} volumes and snapshots wait for bdev {origin}, on which they stand", info.name)
        });
        told.collect()
    }
}

/// Whether a volume, or what it stands on, is not there.
#[must_use]
pub fn is_degraded(bdevs: &HashMap<Uuid, Arc<Entry>>, volume: &VolumeInfo) -> bool {
    let is_missing = |uuid: Uuid| bdevs.get(&uuid).is_none_or(|entry| entry.device().is_none());
    is_missing(volume.uuid) || volume.origin.is_some_and(|origin| is_missing(origin.uuid))
}

/// Bytes of a block of a pool's volumes.
fn block_size(open: &OpenPool) -> u32 {
    open.base().device().map_or(512, |device| device.shape().block_size)
}
