//! A pool and its volumes as the control plane holds them.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use pollux_core::{
    AtomicWrite, Bdev, Channel, CopyRange, Discard, Erasure, Extent, Histogram, MOST_THRESHOLDS, OpenArgs, OpenError,
    Provisioning, Resident, Shape, Threshold,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::PoolError;
use super::channel::{ATOMIC_MAX, ATOMIC_SUB_BLOCK, ThinChannel};
use super::copy::ThinEnd;
use super::engine::{Directory, Engine};
use super::format::{Origin, THRESHOLDS};
use super::info::PoolInfo;
use super::orders::{Handed, Order, Orders, Progress, Settled, SnapshotOf};
use super::origin::{Holes, OriginDevice, Way};
use super::shared::{CLOSED, Reader, Shared, Stay, Volume};
use super::steps::Steps;
use super::store::{self, Blocking, Store};
use crate::{BdevError, Device};

/// How often somebody is told how far something is.
const LOOK: Duration = Duration::from_millis(100);
/// Memory that a leaf of a map takes.
const MAP_PAGE: u64 = 4160;

/// How a pool is opened.
#[derive(Clone)]
pub struct PoolOptions {
    /// How many reactors may have channels of its volumes.
    pub reactors: usize,
    /// Most bytes of maps in memory.
    pub map_bytes: u64,
    /// Most bytes of what channels remember of long chains, for all volumes together.
    pub composite_bytes: usize,
    /// How long a write waits for space, in nanoseconds, before it fails.
    pub patience_ns: u64,
    /// How long the control plane waits for an order to be carried out.
    pub order_time: Duration,
    /// Any random number that no other start has had.
    pub salt: u64,
    /// Told what the pool is about to write; for tests.
    pub steps: Option<Arc<dyn Steps>>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        let salt = Uuid::new_v4().as_u64_pair().0;
        PoolOptions {
            reactors: 1,
            map_bytes: 2 << 30,
            composite_bytes: 64 << 20,
            patience_ns: 5_000_000_000,
            order_time: Duration::from_secs(60),
            salt,
            steps: None,
        }
    }
}

/// What a snapshot is to be.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Of which volume.
    pub volume: Uuid,
    /// What it is known by.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// An open pool. Everything that it does is done by its engine, which a reactor has to host.
pub struct Pool {
    uuid: Uuid,
    base: Arc<dyn Bdev>,
    shared: Arc<Shared>,
    orders: Arc<Orders>,
    directory: Arc<Directory>,
}

impl Pool {
    /// Makes a pool on a base. It is to be opened afterwards.
    ///
    /// # Errors
    /// [`PoolError::Store`] says why there can be none.
    pub fn create(blocking: &mut Blocking<'_>, params: &store::CreateParams) -> Result<(), PoolError> {
        Ok(store::create(blocking, params)?)
    }

    /// Opens the pool on a base, and makes its engine, for a reactor to host before anything is asked of the pool.
    ///
    /// # Errors
    /// [`PoolError::Store`] if there is none, or it cannot be opened.
    pub fn open(
        base: Arc<dyn Bdev>,
        blocking: &mut Blocking<'_>,
        options: &PoolOptions,
    ) -> Result<(Pool, Box<dyn Resident>), PoolError> {
        let opened = store::open(blocking, options.salt)?;
        let store = Store::new(opened, &base, options.steps.clone())?;
        let leaves = (options.map_bytes / MAP_PAGE).clamp(64, 1 << 28) as usize;
        let shared = Arc::new(Shared::new(store.geometry().cluster_size, options.reactors, leaves));
        shared.patience.store(options.patience_ns, Relaxed);
        shared.composites.set_limit(options.composite_bytes);
        let (orders, directory) = (Arc::new(Orders::new(options.order_time)), Arc::<Directory>::default());
        let uuid = store.uuid();
        let engine = Engine::new(store, &base, shared.clone(), orders.clone(), directory.clone());
        let engine = engine.map_err(store::StoreError::Open)?;
        Ok((Pool { uuid, base, shared, orders, directory }, Box::new(engine)))
    }

    /// By which it is known.
    #[must_use]
    pub const fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// How it is now. What channels have given up is dropped by who asks.
    ///
    /// # Errors
    /// [`PoolError::Closed`].
    pub fn info(&self) -> Result<PoolInfo, PoolError> {
        while let Some(way) = self.shared.left.pop() {
            drop(way);
        }
        let info = self.orders.ask(&self.shared, Order::Info)?;
        info.map(|info| *info).ok_or(PoolError::Closed)
    }

    /// Makes a volume; `reserved`: so many bytes are kept for it.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn create_volume(
        &self,
        uuid: Uuid,
        name: &str,
        bytes: u64,
        reserved: u64,
        created: u64,
    ) -> Result<(), PoolError> {
        self.order(Order::Create { uuid, name: name.to_owned(), bytes, reserved, created })
    }

    /// Makes snapshots of volumes, all of one instant, or none.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn snapshot(&self, snapshots: &[NewSnapshot], created: u64) -> Result<(), PoolError> {
        let of = snapshots.iter().map(|new| SnapshotOf { volume: new.volume, uuid: new.uuid, name: new.name.clone() });
        self.order(Order::Snapshot { of: of.collect(), created })
    }

    /// Makes a writable child of a snapshot.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn clone_snapshot(&self, of: Uuid, uuid: Uuid, name: &str, created: u64) -> Result<(), PoolError> {
        self.order(Order::Clone { of, uuid, name: name.to_owned(), created })
    }

    /// Makes a writable child of a bdev outside of the pool, which nobody writes as long as something stands on it. What lies
    /// behind the bytes that count of it is zero.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn clone_bdev(&self, of: Origin, uuid: Uuid, name: &str, bytes: u64, created: u64) -> Result<(), PoolError> {
        self.order(Order::CloneBdev { of, uuid, name: name.to_owned(), bytes, created })
    }

    /// Deletes a volume or snapshot. Nobody has a channel of it. Its space comes back in the background.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn delete(&self, uuid: Uuid) -> Result<(), PoolError> {
        self.order(Order::Delete { uuid })
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// [`PoolError::Shrinks`] if it would lose something and that was not asked for.
    pub fn resize(&self, uuid: Uuid, bytes: u64, allow_shrink: bool) -> Result<(), PoolError> {
        self.order(Order::Resize { uuid, bytes, allow_shrink })
    }

    /// Gives a volume or snapshot another name.
    ///
    /// # Errors
    /// [`PoolError::Exists`].
    pub fn rename(&self, uuid: Uuid, name: &str) -> Result<(), PoolError> {
        self.order(Order::Rename { uuid, name: name.to_owned() })
    }

    /// A volume is a snapshot from now on, under the same name and UUID. One that is a snapshot already stays one.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_read_only(&self, uuid: Uuid) -> Result<(), PoolError> {
        self.order(Order::SetReadOnly { uuid })
    }

    /// A volume is as its last snapshot was.
    ///
    /// # Errors
    /// [`PoolError::Unfit`] if it does not stand on that snapshot.
    pub fn roll_back(&self, uuid: Uuid, to: Uuid) -> Result<(), PoolError> {
        self.order(Order::Rollback { uuid, to })
    }

    /// Limits what a volume may own, in bytes (0: no limit), and keeps bytes for it. What is not said stays.
    ///
    /// # Errors
    /// [`PoolError::NoSpace`] if there is not as much.
    pub fn set_limits(&self, uuid: Uuid, quota: Option<u64>, reserved: Option<u64>) -> Result<(), PoolError> {
        self.order(Order::Limit { uuid, quota, reserved })
    }

    /// How much of the pool may be used before somebody is told: 1 to 100 percent, else bytes; 0: none.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_thresholds(&self, thresholds: [u64; THRESHOLDS]) -> Result<(), PoolError> {
        self.order(Order::Thresholds { thresholds })
    }

    /// Passes no more than so many bytes a second of discards down to the base; [`u64::MAX`]: as many as there are, 0: as many
    /// as it would if nobody had said anything.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_discard_rate(&self, rate: u64) -> Result<(), PoolError> {
        self.order(Order::DiscardRate { rate })
    }

    /// The same for the quota of a volume, in percent.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_quota_threshold(&self, uuid: Uuid, percent: u8) -> Result<(), PoolError> {
        self.order(Order::WarnAt { uuid, percent })
    }

    /// Makes everything durable that has been acknowledged.
    ///
    /// # Errors
    /// [`PoolError::Failed`].
    pub fn commit(&self) -> Result<(), PoolError> {
        self.order(Order::Commit)
    }

    /// Puts everything that is in the log into the trees.
    ///
    /// # Errors
    /// [`PoolError::Failed`].
    pub fn checkpoint(&self) -> Result<(), PoolError> {
        self.order(Order::Checkpoint)
    }

    /// What was told of the last order about pages: the last batch that was durable, and whether they were held.
    pub(super) fn held(&self) -> (u64, bool) {
        (self.shared.held.0.load(Acquire), self.shared.held.1.load(Acquire))
    }

    /// Pages of the trees stay as they are from now on. Returns the last batch of the log that is durable.
    pub(super) fn hold_pages(&self) -> Result<u64, PoolError> {
        self.order(Order::HoldPages)?;
        Ok(self.held().0)
    }

    /// They need not any more. Returns whether they were until now.
    pub(super) fn let_go_pages(&self) -> Result<bool, PoolError> {
        self.order(Order::LetGoPages)?;
        Ok(self.held().1)
    }

    /// Gives a volume all that it has from snapshots, and keeps for it what it has not; with `decouple` it only stands no
    /// longer on its parent, but on what that stands on. `watch` is told bytes that are done, and all, several times a
    /// second, and says whether to go on; what has been copied stays in any case.
    ///
    /// # Errors
    /// [`PoolError`]; [`PoolError::NoOrigin`] if it stands on a bdev that `volume` does not lead to.
    pub fn inflate(
        &self,
        volume: &ThinVolume,
        decouple: bool,
        watch: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), PoolError> {
        let progress = Arc::<Progress>::default();
        let (uuid, way) = (volume.uuid(), Handed::new(volume.way(&mut || watch(0, 0))));
        let order = Order::Inflate { uuid, decouple, progress: progress.clone(), way };
        let answer = self.orders.send(&self.shared, order)?;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return answer.map(|_| ()),
                Err(RecvTimeoutError::Disconnected) => return Err(PoolError::Closed),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let (done, total) = progress.get();
            if !watch(done, total) {
                progress.cancel();
            }
        }
    }

    /// What a volume has not itself it has from this snapshot from now on. Whoever uses the volume finds other data.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_parent(&self, uuid: Uuid, parent: Uuid) -> Result<(), PoolError> {
        self.order(Order::SetParent { uuid, parent })
    }

    /// The same with a bdev outside of the pool. Nobody has a channel of the volume that is to be used any more.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn set_origin(&self, uuid: Uuid, origin: Origin) -> Result<(), PoolError> {
        self.order(Order::SetOrigin { uuid, origin })
    }

    /// Gives the pool another name.
    ///
    /// # Errors
    /// [`PoolError::Invalid`] if it cannot be one.
    pub fn rename_pool(&self, name: &str) -> Result<(), PoolError> {
        self.order(Order::RenamePool { name: name.to_owned() })
    }

    /// Takes what the base has now. What is more than before can be used when this has answered.
    ///
    /// # Errors
    /// [`PoolError::Failed`].
    pub fn grow(&self) -> Result<(), PoolError> {
        self.order(Order::Grow { bytes: self.base.shape().bytes() })
    }

    /// How long, in nanoseconds, nothing new was begun of volumes while they became others: cut by a snapshot, say.
    #[must_use]
    pub fn pauses(&self) -> &Histogram {
        &self.shared.pauses
    }

    /// How long a write waits for space before it fails.
    pub fn set_patience(&self, ns: u64) {
        self.shared.patience.store(ns, Release);
    }

    /// Whether an order takes longer than it was waited for: then others are refused at once.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.orders.is_late()
    }

    /// Orders that took longer than was waited for, and have ended since this was asked last: what the pool holds may be
    /// another than what was answered.
    #[must_use]
    pub fn take_settled(&self) -> Vec<Settled> {
        self.orders.take_settled()
    }

    /// A volume or snapshot as a device.
    #[must_use]
    pub fn volume(&self, uuid: Uuid) -> Option<ThinVolume> {
        let volume = self.directory.get(uuid)?;
        let (base, shared) = (self.base.clone(), self.shared.clone());
        Some(ThinVolume { pool: self.uuid, base, shared, volume })
    }

    fn order(&self, order: Order) -> Result<(), PoolError> {
        self.orders.ask(&self.shared, order).map(|_| ())
    }

    /// For tests that drive the engine on the calling thread: asks and does not wait.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn send(&self, order: Order) -> Result<std::sync::mpsc::Receiver<super::orders::Answer>, PoolError> {
        self.orders.send(&self.shared, order)
    }
}

/// A volume or a snapshot.
#[derive(Clone)]
pub struct ThinVolume {
    pool: Uuid,
    base: Arc<dyn Bdev>,
    pub(super) shared: Arc<Shared>,
    pub(super) volume: Arc<Volume>,
}

/// A volume or snapshot that cannot be deleted while this is there.
pub struct Hold {
    shared: Arc<Shared>,
    volume: Arc<Volume>,
    /// Never looks at a map, so nobody waits for it.
    reader: Arc<Reader>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.leave(&self.volume, &self.reader);
        self.volume.holds.fetch_sub(1, Relaxed);
    }
}

impl ThinVolume {
    /// By which it is known.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.volume.uuid
    }

    /// The bdev outside of the pool that it stands on now.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.volume.chain().origin
    }

    /// The bdev that it stands on is there: whoever opens the volume from now on reads it.
    pub fn stands_over(&self, uuid: Uuid, device: Arc<dyn Bdev>) {
        self.volume.set_outside(Some(OriginDevice { uuid, device }));
    }

    /// The bdev that it stands on is not there, or it does not stand on one any more.
    pub fn stands_alone(&self) {
        self.volume.set_outside(None);
    }

    /// The bdev that another one stands on is there for this one, too.
    pub fn stands_over_the_same(&self, other: &ThinVolume) {
        self.volume.set_outside(other.volume.outside());
    }

    /// A way into what it stands on, for one request at a time, if that is there. Its holes are looked for as long as `goes_on`
    /// says; that may wait.
    pub(super) fn way(&self, goes_on: &mut dyn FnMut() -> bool) -> Option<Way> {
        let (of, origin) = (self.volume.chain().origin?, self.volume.outside()?);
        let way = (of.uuid == origin.uuid).then(|| Way::open(&*origin.device, of, OpenArgs { depth: 1, seed: 0 }));
        let mut way = way?.ok()?;
        way.holes = Some(Arc::new(Holes::find(&*origin.device, of, 1 << self.shared.sub_shift(), goes_on)));
        Some(way)
    }

    /// Keeps it from being deleted.
    ///
    /// # Errors
    /// If it is being deleted.
    pub fn hold(&self) -> Result<Hold, PoolError> {
        let reader = self.shared.reader();
        if !self.shared.enter(&self.volume, &reader) {
            return Err(PoolError::NotFound(self.volume.uuid.to_string()));
        }
        // Whoever looks at it has made sure otherwise that nobody takes hold of it meanwhile.
        self.volume.holds.fetch_add(1, Relaxed);
        Ok(Hold { shared: self.shared.clone(), volume: self.volume.clone(), reader })
    }

    /// Whether something keeps it from being deleted that does not read it for a guest.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.volume.holds.load(Relaxed) > 0
    }
}

impl Bdev for ThinVolume {
    fn shape(&self) -> Shape {
        let base = self.base.shape();
        let chain = self.volume.chain();
        let sub_block = 1u32 << self.shared.sub_shift();
        Shape {
            block_size: base.block_size,
            physical_block_size: base.physical_block_size.max(base.block_size),
            num_blocks: chain.bytes / u64::from(base.block_size),
            read_only: chain.read_only || self.shared.commits.have_failed(),
            // Maps are in memory until a flush, whatever the base is.
            volatile_cache: true,
            discard: Some(Discard { granularity: sub_block, alignment: 0, reads_zero: true }),
            optimal_io: 1 << self.shared.cluster_shift,
            rotation_rate: base.rotation_rate,
            atomic_write: (sub_block <= ATOMIC_SUB_BLOCK).then_some(AtomicWrite {
                max: ATOMIC_MAX,
                granularity: sub_block,
                alignment: sub_block,
            }),
        }
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        let reader = self.shared.reader();
        if !self.shared.enter(&self.volume, &reader) {
            return Extent::mapped(len);
        }
        // Nothing is taken out of the maps meanwhile, nor are the layers others.
        let mut stay = Stay::new();
        let (epoch, word) = stay.begin(&reader, &self.shared.epoch, self.volume.word());
        stay.go_by(&reader, word);
        let extent = if word & CLOSED == 0 {
            super::channel::extent(&self.shared, &self.volume.chain(), offset, len)
        } else {
            Extent::mapped(len)
        };
        stay.end(&reader, epoch);
        self.shared.leave(&self.volume, &reader);
        extent
    }

    fn erasure(&self) -> Erasure {
        let chain = self.volume.chain();
        if chain.layers.len() > 1 || chain.origin.is_some() { Erasure::Shared } else { Erasure::InPlace }
    }

    fn copy_range(&self, offset: u64, _: u64) -> Option<CopyRange> {
        Some(CopyRange::new(Arc::new(ThinEnd(self.clone())), offset))
    }

    fn provisioning(&self) -> Option<Provisioning> {
        let (volume, supply) = (&self.volume, &self.shared.supply);
        let (grain, owned) = (1u64 << self.shared.cluster_shift, volume.owned());
        let kept = volume.reserved.load(Relaxed).saturating_sub(owned);
        let most = volume.most_clusters();
        let left = if most == 0 { u64::MAX } else { most.saturating_sub(owned) };
        let all = supply.available().saturating_add(kept);
        let of_quota = volume.warn.load(Relaxed);
        let mut thresholds = [None; MOST_THRESHOLDS];
        let of_pool = supply.thresholds().map(|clusters| Threshold::Available(clusters.saturating_mul(grain)));
        let all_of_them = of_pool.chain((of_quota > 0).then_some(Threshold::Used(of_quota.saturating_mul(grain))));
        thresholds.iter_mut().zip(all_of_them).for_each(|(place, threshold)| *place = Some(threshold));
        Some(Provisioning {
            grain,
            available: all.min(left).saturating_mul(grain),
            dedicated: kept >= left || volume.is_thick(),
            used: owned.saturating_mul(grain),
            thresholds,
        })
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        ThinChannel::open(self.shared.clone(), self.volume.clone(), &self.base, args)
    }
}

impl Device for ThinVolume {
    fn product_name(&self) -> &'static str {
        "Logical Volume"
    }

    fn driver_specific(&self) -> Value {
        json!({ "lvol": { "lvol_store_uuid": self.pool, "thin_provision": true } })
    }

    fn resize(&self, _: u64) -> Result<(), BdevError> {
        Err(BdevError::Unsupported { name: self.volume.uuid.to_string(), what: "resize: use bdev_lvol_resize" })
    }
}
