//! The home of a pool: one state machine on one reactor that does what is done for the pool and not for one request.
//!
//! It commits, loads leaves, gives out clusters and takes them back, carries out what the control plane orders, removes
//! layers in the background, and has the store make checkpoints. Channels on all reactors share memory with it
//! (`shared`) and wake it; it never waits.

mod checks;
mod commit;
mod copier;
mod erasing;
mod evict;
mod fold;
mod gather;
mod inflate;
mod load;
mod loads;
mod nodes;
mod orders;
mod removal;
mod space;
mod swaps;
mod telling;
mod thresholds;
mod untold;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{Bdev, Cx, IoError, Next, OpenError, Resident};
use uuid::Uuid;

use self::commit::{Commit, OWN_COMMIT_NS};
use self::copier::Copier;
use self::evict::Evicting;
use self::fold::Fold;
use self::inflate::Inflation;
use self::load::Load;
use self::loads::{Company, Spare, Unread};
pub(crate) use self::nodes::Directory;
use self::nodes::{Nodes, Standing};
use self::orders::Doing;
use self::removal::Removal;
use self::space::Quarantine;
use self::swaps::Swaps;
use self::telling::Telling;
use self::thresholds::Alarms;
use super::format::LayerKind;
use super::info::{DiscardInfo, PoolInfo, Role, VolumeInfo};
use super::orders::Orders;
use super::shared::{LayerMap, Shared, Volume};
use super::store::{Event, Store};

/// How often the engine looks whether what it waits for has come, where nobody tells: a lock that is free, epochs that are
/// over.
const LOOK_NS: u64 = 1_000_000;

/// See the module's description.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    store: Store,
    orders: Arc<Orders>,
    directory: Arc<Directory>,
    nodes: Nodes,
    /// What removals and folds want to have in the next commit.
    to_log: Load,
    /// The layers that have changed since the last commit, and those that are gone.
    layers_to_log: BTreeSet<u64>,
    /// Those that stand on something else, and are to be said before any of their entries.
    moved_to_log: BTreeSet<u64>,
    gone_to_log: Vec<u64>,
    commit: Option<Commit>,
    /// Since when something has been changed that is in no commit.
    dirty_since: Option<u64>,
    /// The next commit is not to wait for its time.
    hurry: bool,
    quarantine: Quarantine,
    telling: Telling,
    loading: HashMap<(u64, u64), Arc<LayerMap>>,
    /// The first one is tried again first.
    unread: VecDeque<Unread>,
    spare: Spare,
    company: Company,
    /// Leaves that were made ready and that no commit has heard of.
    fresh: HashSet<u32>,
    /// Since when somebody waits for space and gets none.
    short_since: Option<u64>,
    evicting: Evicting,
    doing: Option<Doing>,
    removal: Option<Removal>,
    fold: Option<Fold>,
    inflation: Inflation,
    /// Layers on their way out that cannot go because something of them cannot be read: until then, or at all.
    stuck: BTreeMap<u64, Option<u64>>,
    copier: Copier,
    swaps: Swaps,
    /// Copies for swaps.
    mover: Copier,
    failed: Option<IoError>,
    commits: u64,
    checkpoints: u64,
    checkpoint_wanted: bool,
    /// Until the first checkpoint has said what a crash has made of what layers own.
    unsettled: Option<Unsettled>,
    leaving: bool,
    left: bool,
    /// Something could not be done because requests that began long ago have not ended.
    lacks_epochs: bool,
    /// Nothing is to be done until then, unless somebody calls.
    rests_until: u64,
    /// It waits for readers that it has not looked at since it said so, or something could go on now.
    looks_again: bool,
    now: u64,
    events: Vec<Event>,
    clusters: Vec<u32>,
    /// The volumes for which something is kept.
    kept_by: Vec<Arc<Volume>>,
    /// Those for which something was kept.
    not_kept_by: Vec<Arc<Volume>>,
    /// Clusters that the order at hand will have kept for volumes.
    pledged: u64,
    alarms: Alarms,
}

/// A pool after a crash, of which nobody knows yet what its layers own.
struct Unsettled {
    /// What the catalog said of their clusters and sub-blocks when it was opened.
    counted: BTreeMap<u64, (u64, u64)>,
    /// Clusters that the log has freed since: no layer owns less than it is thought to by more than that.
    freed: u64,
}

impl Engine {
    /// Of an opened pool.
    pub(crate) fn new(
        store: Store,
        base: &Arc<dyn Bdev>,
        shared: Arc<Shared>,
        orders: Arc<Orders>,
        directory: Arc<Directory>,
    ) -> Result<Engine, OpenError> {
        let (copier, mover) = (Copier::new(base, store.geometry())?, Copier::new(base, store.geometry())?);
        let inflation = Inflation::new(base, store.geometry())?;
        let nodes = Nodes::new(store.layers(), store.geometry());
        for node in nodes.by_id().values().filter(|node| node.is_known()) {
            directory.put(nodes.volume(node.layer.id));
        }
        let counted = store.layers().values().map(|layer| (layer.id, (layer.owned, layer.here))).collect();
        let unsettled = store.is_unsettled().then(|| Unsettled { counted, freed: store.freed() });
        let mut engine = Engine {
            shared,
            orders,
            directory,
            nodes,
            to_log: Load::default(),
            layers_to_log: BTreeSet::new(),
            moved_to_log: BTreeSet::new(),
            gone_to_log: Vec::new(),
            commit: None,
            dirty_since: None,
            hurry: false,
            quarantine: Quarantine::default(),
            telling: Telling::default(),
            loading: HashMap::new(),
            unread: VecDeque::new(),
            spare: Spare::default(),
            company: Company::default(),
            fresh: HashSet::new(),
            short_since: None,
            evicting: Evicting::default(),
            doing: None,
            removal: None,
            fold: None,
            inflation,
            stuck: BTreeMap::new(),
            copier,
            swaps: Swaps::default(),
            mover,
            failed: None,
            commits: 0,
            checkpoints: 0,
            checkpoint_wanted: unsettled.is_some(),
            unsettled,
            leaving: false,
            left: false,
            lacks_epochs: false,
            rests_until: 0,
            looks_again: false,
            now: 0,
            events: Vec::new(),
            clusters: Vec::new(),
            kept_by: Vec::new(),
            not_kept_by: Vec::new(),
            pledged: 0,
            alarms: Alarms::default(),
            store,
        };
        engine.tell_of_what_was_freed();
        engine.review_reserves();
        engine.say_supply();
        Ok(engine)
    }

    fn take_events(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut events = std::mem::take(&mut self.events);
        let count = self.store.poll(cx, &mut events);
        for event in events.drain(..) {
            match event {
                Event::Durable(batch) => self.batch_is_durable(batch),
                Event::Loaded { layer, leaf, entries } => self.loaded(layer, leaf, entries),
                Event::Discarded(id, result) => self.discarded(id, result),
                Event::Checkpointed(_) => self.checkpointed(),
                Event::Failed(error) => self.fail(error),
            }
        }
        self.events = events;
        count
    }

    fn checkpointed(&mut self) {
        self.checkpoints += 1;
        let Some(Unsettled { counted, .. }) = self.unsettled.take() else { return };
        for (id, (owned, here)) in counted {
            if let (Some(node), Some(layer)) = (self.nodes.by_id().get(&id), self.store.layers().get(&id)) {
                let usage = &node.map.usage;
                usage.owned.fetch_add(layer.owned.wrapping_sub(owned), Relaxed);
                usage.here.fetch_add(layer.here.wrapping_sub(here), Relaxed);
            }
        }
        // Whether a quota's threshold was reached was not known either.
        self.alarms.forget_volumes();
        self.review_reserves();
        self.shared.tell_waiters();
    }

    fn advance_checkpoint(&mut self) {
        if (self.checkpoint_wanted || self.store.wants_checkpoint())
            && !self.store.is_checkpointing()
            && self.failed.is_none()
        {
            self.checkpoint_wanted = false;
            self.store.checkpoint();
        }
    }

    /// Whether the base has nothing to answer.
    fn has_nothing_in_flight(&self) -> bool {
        self.store.is_idle() && self.copier.is_idle() && self.mover.is_idle() && self.inflation.is_idle()
    }

    /// Whether nothing is left to be done before the pool can be closed: all is in the trees.
    fn advance_leaving(&mut self) {
        if !self.leaving || self.left {
            return;
        }
        self.end_orders();
        let busy = self.commit.is_some() || self.has_to_say() || self.shared.leaves.any_dirty();
        let idle = self.has_nothing_in_flight() && !self.has_to_tell();
        if self.failed.is_some() {
            self.left = idle;
        } else if busy {
            self.hurry = true;
        } else if self.store.is_dirty() {
            self.checkpoint_wanted = true;
        } else {
            self.left = idle;
        }
    }

    fn volume_info(&self, id: u64, below: Standing, size: u64, sub_block: u64) -> VolumeInfo {
        let node = self.nodes.get(id);
        let (owned, here) = node.usage();
        let layer = &node.layer;
        VolumeInfo {
            uuid: layer.uuid,
            name: layer.name.clone(),
            role: match layer.kind {
                LayerKind::Head => Role::Volume,
                LayerKind::Snapshot => Role::Snapshot,
                LayerKind::Unnamed | LayerKind::Going => Role::Leaving,
            },
            bytes: layer.size,
            parent: below.known,
            origin: below.origin.or_else(|| self.inflation.leaves_origin(layer.uuid)),
            children: Vec::new(),
            created: layer.created,
            owned_bytes: owned.saturating_mul(size),
            written_bytes: here.saturating_mul(sub_block),
            shared_bytes: below.clusters.saturating_mul(size),
            quota_bytes: layer.quota.saturating_mul(size),
            quota_threshold: self.quota_threshold_info(layer.uuid, layer.warn_percent),
            reserved_bytes: layer.reserved.saturating_mul(size),
        }
    }

    fn discard_info(&self) -> DiscardInfo {
        let (clusters, waiting_parts) = self.telling.waiting();
        let waiting_bytes = clusters * self.nodes.cluster_size();
        DiscardInfo { rate: self.store.discard_rate(), waiting_bytes, waiting_parts }
    }

    fn info(&self) -> PoolInfo {
        let geometry = self.store.geometry();
        let size = u64::from(geometry.cluster_size);
        let sub_block = u64::from(geometry.sub_block());
        let below = self.nodes.below();
        let known = self.nodes.by_id().keys().map(|id| self.volume_info(*id, below[id], size, sub_block));
        let mut volumes: Vec<VolumeInfo> = known.collect();
        let mut children = HashMap::<Uuid, Vec<Uuid>>::new();
        for volume in volumes.iter().filter(|volume| volume.role != Role::Leaving) {
            volume.parent.into_iter().for_each(|parent| children.entry(parent).or_default().push(volume.uuid));
        }
        for volume in volumes.iter_mut().filter(|volume| volume.role == Role::Snapshot) {
            volume.children = children.remove(&volume.uuid).unwrap_or_default();
        }
        PoolInfo {
            uuid: self.store.uuid(),
            name: self.store.name().to_owned(),
            cluster_size: geometry.cluster_size,
            base_bytes: u64::from(geometry.clusters) * size,
            total_bytes: self.store.total_clusters() * size,
            free_bytes: (self.store.free_clusters() + self.leased() + self.kept_at_hand()) * size,
            quarantined_bytes: (self.quarantine.len() + self.telling.held_back()) * size,
            discards: self.discard_info(),
            failed: self.failed.is_some(),
            full: self.shared.full.load(Relaxed),
            composite_bytes: self.shared.composites.used() as u64,
            commits: self.commits,
            checkpoints: self.checkpoints,
            thresholds: self.threshold_info(),
            crossings: self.alarms.crossings(),
            volumes,
        }
    }
}

impl Engine {
    /// Up to which epoch something waits for readers, who call when they get on; 0: nothing does.
    fn awaited(&self) -> u64 {
        let waits = [
            self.doing.as_ref().and_then(Doing::awaited),
            self.swaps.awaited(),
            self.quarantine.awaited(),
            self.evicting.awaited(),
            self.removal.as_ref().and_then(Removal::awaited),
            self.fold.as_ref().and_then(Fold::awaited),
            self.inflation.awaited(),
        ];
        waits.into_iter().flatten().max().unwrap_or(0)
    }

    /// When there is something to do that neither the base nor a reader tells of.
    fn own_next(&self) -> Next {
        if self.failed.is_some() {
            return Next::Idle;
        }
        let is_wanted = self.hurry || self.shared.commits.is_wanted();
        let may_begin = self.commit.is_none() && !self.doing.as_ref().is_some_and(Doing::has_closed_gates);
        let is_at_work = self.commit.as_ref().is_some_and(Commit::is_at_work);
        let has_work = is_at_work || self.spare.more_wanted() || self.quarantine.has_more();
        let mut next = if may_begin && is_wanted || has_work { Next::Now } else { Next::Idle };
        if let Some(since) = self.dirty_since {
            next = next.or(Next::At(since + OWN_COMMIT_NS));
        }
        // It may wait for a lock, which nobody tells of.
        let waits_for_locks = self.fold.as_ref().is_some_and(|fold| fold.awaited().is_none());
        if !self.leaving {
            next = next.or(self.telling.wakes(self.now, self.hurries_to_tell()));
        }
        if waits_for_locks { next.or(Next::At(self.now + LOOK_NS)) } else { next }
    }
}

impl Resident for Engine {
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.store.attach(cx)?;
        if let Err(error) = self.copier.attach(cx) {
            self.store.detach(cx);
            return Err(error);
        }
        if let Err(error) = self.inflation.copier().attach(cx) {
            self.copier.detach(cx);
            self.store.detach(cx);
            return Err(error);
        }
        if let Err(error) = self.mover.attach(cx) {
            self.inflation.copier().detach(cx);
            self.copier.detach(cx);
            self.store.detach(cx);
            return Err(error);
        }
        self.shared.engine_is(cx.ring.waker());
        Ok(())
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        if cx.now < self.rests_until && !self.shared.is_called() {
            return 0;
        }
        self.now = cx.now;
        self.lacks_epochs = false;
        let mut count = self.take_events(cx) + self.advance_retries();
        let called = self.shared.was_called();
        let was_gathering = self.is_gathering();
        if !was_gathering {
            count += self.advance_orders(&*cx.ring);
            count += self.advance_swaps(cx);
        }
        count += self.advance_commit();
        if !self.is_gathering() {
            count += self.advance_eviction();
        }
        if called || count > 0 || self.short_since.is_some() || self.spare.more_wanted() {
            count += self.begin_loads() + self.make_ready() + self.give_out();
        }
        count += self.advance_quarantine();
        count += self.advance_telling();
        if !self.is_gathering() {
            count += self.advance_removal();
            count += self.advance_fold(cx);
            count += self.advance_inflation(cx);
        }
        self.advance_checkpoint();
        self.advance_leaving();
        // What has stood still while a commit was gathered goes on.
        let goes_on = was_gathering && !self.is_gathering();
        self.looks_again = self.shared.await_epoch(self.awaited()) || goes_on;
        self.rests_until = match self.next() {
            // What the base answers ends a time that is waited for, too.
            _ if count > 0 || !self.has_nothing_in_flight() => 0,
            Next::Idle | Next::Ring => u64::MAX,
            Next::At(until) => until,
            _ => 0,
        };
        count
    }

    fn next(&self) -> Next {
        if self.looks_again || self.leaving && !self.left {
            return Next::Now;
        }
        let mut next = self.store.next().or(self.copier.next()).or(self.mover.next()).or(self.inflation.next(self.now));
        next = next.or(self.own_next());
        if self.awaited() > 0 {
            next = next.or(Next::Ring);
        }
        if let Some(until) = self.next_retry() {
            next = next.or(Next::At(until));
        }
        if self.lacks_epochs {
            next = next.or(Next::At(self.now + LOOK_NS));
        }
        if let Some(since) = self.short_since.filter(|_| !self.shared.full.load(Relaxed)) {
            next = next.or(Next::At(since.saturating_add(self.shared.patience.load(Relaxed))));
        }
        next
    }

    fn ask_to_leave(&mut self) {
        (self.leaving, self.rests_until) = (true, 0);
    }

    fn has_left(&self) -> bool {
        self.left
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.inflation.copier().detach(cx);
        self.mover.detach(cx);
        self.copier.detach(cx);
        self.store.detach(cx);
    }
}
