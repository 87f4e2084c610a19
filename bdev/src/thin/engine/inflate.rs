//! Volumes that are to stand on less: what they have from layers below is copied into them, while they are used.
//!
//! Cluster by cluster, with the volume's sub-blocks locked: what only layers below have goes into a cluster of the volume's own.
//! What a guest reads stays the same, so a crash in the middle leaves a volume that has some of it already. When all of it
//! is durable one record says what the volume stands on from then on.
//!
//! A copy reads a cluster that belongs to a layer below: as long as it is under way no fold and no removal takes a step, so
//! nobody gives that cluster away. Between two copies each of them gets its turn.
//!
//! A bdev outside of the pool that a volume stands on is copied from by a way that comes with the order, but for its holes.
//!
//! Meanwhile everything may happen to the volume. With a new head (a snapshot, a rollback, another size) it begins anew:
//! inflating with the head, decoupling with the layer that stands on the parent in question. If what lies between has changed
//! since all was looked at, it is looked at once more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{Bdev, Cx, IoError, Next, OpenError};
use uuid::Uuid;

use super::copier::Copier;
use super::nodes::Below;
use super::{Engine, LOOK_NS};
use crate::thin::PoolError;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Geometry, LayerKind, Origin};
use crate::thin::orders::{Answer, Asked, Order, Progress};
use crate::thin::origin::{Holes, covered};
use crate::thin::shared::{LayerMap, Miss, Place, Shared};

/// Clusters that are looked at in one pass.
const A_PASS: u32 = 1024;

/// A volume that is to stand on less.
struct Task {
    asked: Asked,
    volume: Uuid,
    /// The layer that it is not to stand on any more; `None`: on nothing.
    until: Option<u64>,
    /// Whether all of it is to be kept for it.
    thick: bool,
    progress: Arc<Progress>,
    /// The layer that is copied into.
    into: u64,
    /// The next of its clusters.
    next: u64,
    /// What lay below when the first cluster was looked at.
    below: Vec<(u64, LayerKind)>,
    stage: Stage,
    /// What it stood on outside of the pool until it ended.
    origin: Option<Origin>,
    /// What is known of the holes of that.
    holes: Option<Arc<Holes>>,
}

enum Stage {
    Copying,
    /// All has been copied, which has to be durable.
    Copied(u64),
    /// It stands on less, which has to be durable, and what began before has to end: it may still read what is not needed
    /// any more, and is then somebody else's.
    Ending {
        commit: u64,
        epoch: u64,
    },
}

/// A copy that is under way.
struct Copy {
    into: u64,
    cluster: u64,
    to: u32,
    mask: u16,
}

/// See the module's description.
pub(super) struct Inflation {
    /// The first of them is at work.
    tasks: VecDeque<Task>,
    copier: Copier,
    copy: Option<Copy>,
    /// How the last copy failed.
    failed: Option<IoError>,
    waits: bool,
}

/// How a task gets on.
enum Pace {
    On,
    Waits,
    Done,
}

/// Where sub-blocks are copied from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Cluster(u32),
    /// The same cluster of the origin.
    Origin,
}

/// What is to be done with one cluster: sub-blocks to be copied from somewhere, and sub-blocks that are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    copy: Option<(Where, u16)>,
    zero: u16,
}

/// A layer that is copied from, and how many clusters it sees of what is below.
type Source = (Arc<LayerMap>, u64);

/// All that is copied from.
struct Sources {
    layers: Vec<Source>,
    /// The bytes that count of what is below all of them outside of the pool.
    origin: u64,
    /// What is zero of these, and needs no copy.
    holes: Option<Arc<Holes>>,
}

impl Inflation {
    pub(super) fn new(base: &Arc<dyn Bdev>, geometry: &Geometry) -> Result<Inflation, OpenError> {
        let copier = Copier::new(base, geometry)?;
        Ok(Inflation { tasks: VecDeque::new(), copier, copy: None, failed: None, waits: false })
    }

    pub(super) const fn copier(&mut self) -> &mut Copier {
        &mut self.copier
    }

    /// Whether folds and removals have to stand still.
    pub(super) const fn is_copying(&self) -> bool {
        self.copy.is_some()
    }

    /// Whether a layer's leaves are to stay in memory.
    pub(super) fn holds(&self, layer: u64) -> bool {
        self.copy.as_ref().is_some_and(|copy| copy.into == layer)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.copy.is_none()
    }

    /// Up to which epoch the one at work waits for readers.
    pub(super) fn awaited(&self) -> Option<u64> {
        self.tasks.front().and_then(|task| match task.stage {
            Stage::Ending { epoch, .. } => Some(epoch),
            Stage::Copying | Stage::Copied(_) => None,
        })
    }

    /// The bdev outside of the pool that somebody may still read for this volume, though it does not stand on that any more.
    pub(super) fn leaves_origin(&self, volume: Uuid) -> Option<Origin> {
        self.tasks.iter().find(|task| task.volume == volume).and_then(|task| task.origin)
    }

    /// Whether something is done with this volume.
    pub(super) fn has(&self, volume: Uuid) -> bool {
        self.tasks.iter().any(|task| task.volume == volume)
    }

    pub(super) fn next(&self, now: u64) -> Next {
        match (&self.copy, self.tasks.is_empty()) {
            (Some(_), _) => self.copier.next(),
            (None, true) => Next::Idle,
            (None, false) if self.waits => Next::At(now + LOOK_NS),
            (None, false) => Next::Now,
        }
    }
}

impl Engine {
    /// Takes such an order, which is answered when it has ended; others are carried out meanwhile.
    pub(super) fn begin_inflation(&mut self, asked: Asked) {
        let Order::Inflate { uuid, decouple, progress, way } = &asked.order else { return };
        let (volume, progress, thick) = (*uuid, progress.clone(), !decouple);
        match self.check_inflation(volume, *decouple) {
            Err(error) => {
                self.give_up_way(&asked.order);
                asked.answer(Err(error));
            }
            Ok((into, until)) => {
                self.nodes.get_mut(into).inflating = thick;
                self.directory.get(volume).iter().for_each(|volume| volume.begins_inflating());
                let (next, below, stage) = (0, self.below(into, until), Stage::Copying);
                let (origin, holes) = (None, way.holes());
                self.inflation.tasks.push_back(Task {
                    asked,
                    volume,
                    until,
                    thick,
                    progress,
                    into,
                    next,
                    below,
                    stage,
                    origin,
                    holes,
                });
            }
        }
    }

    fn check_inflation(&self, volume: Uuid, decouple: bool) -> Result<(u64, Option<u64>), PoolError> {
        let id = self.is_kind(volume, LayerKind::Head, "is a snapshot: what it stands on does not change")?;
        let layer = &self.nodes.get(id).layer;
        if self.inflation.has(volume) {
            return Err(PoolError::busy(&layer.name, "is being inflated or decoupled already"));
        }
        if decouple {
            let parent = self.nodes.known_below(id).next();
            if parent.is_none() && self.nodes.origin(id).is_none() {
                return Err(PoolError::NoParent { name: layer.name.clone() });
            }
            return Ok((id, parent));
        }
        let clusters = self.nodes.clusters(layer.size);
        if layer.quota > 0 && layer.quota < clusters {
            return Err(PoolError::NoSpace(format!("the quota of {} is less than its size", layer.name)));
        }
        let has = self.nodes.will_own(self.nodes.get(id)).max(layer.reserved);
        self.check_room(0, clusters.saturating_sub(has) * self.nodes.cluster_size())?;
        Ok((id, None))
    }

    /// Goes on with what is being copied.
    pub(super) fn advance_inflation(&mut self, cx: &mut Cx<'_>) -> u32 {
        if self.inflation.is_copying() {
            let Some(result) = self.inflation.copier.poll(cx) else { return 0 };
            self.copy_ended(result);
            return 1;
        }
        let Some(mut task) = self.inflation.tasks.pop_front() else { return 0 };
        let pace = self.inflate(&mut task, cx);
        self.inflation.waits = matches!(pace, Ok(Pace::Waits));
        match pace {
            Ok(Pace::Waits) => {
                self.inflation.tasks.push_front(task);
                return 0;
            }
            Ok(Pace::On) => {
                self.inflation.tasks.push_front(task);
                return 1;
            }
            Ok(Pace::Done) => self.end_inflation(&task, Ok(None)),
            Err(error) => self.end_inflation(&task, Err(error)),
        }
        if let Ok(Some(way)) = self.inflation.copier.set_origin(None, cx) {
            self.shared.left.push(way);
        }
        1
    }

    /// A way that was not needed: it is dropped where nobody waits for that.
    fn give_up_way(&self, order: &Order) {
        if let Order::Inflate { way, .. } = order
            && let Some(way) = way.take()
        {
            self.shared.left.push(way);
        }
    }

    fn end_inflation(&mut self, task: &Task, answer: Answer) {
        self.give_up_way(&task.asked.order);
        if let Some(node) = self.nodes.find_mut(task.into) {
            node.inflating = false;
        }
        self.directory.get(task.volume).iter().for_each(|volume| volume.ends_inflating());
        task.asked.answer(answer);
    }

    fn inflate(&mut self, task: &mut Task, cx: &mut Cx<'_>) -> Result<Pace, PoolError> {
        if let Some(error) = self.failed {
            return Err(PoolError::Failed(error));
        }
        if let Stage::Ending { commit, epoch } = task.stage {
            let is_over = self.shared.commits.is_done(commit) && self.is_over(epoch);
            return Ok(if is_over { Pace::Done } else { Pace::Waits });
        }
        if self.leaving {
            return Err(PoolError::Closed);
        }
        if task.progress.is_cancelled() {
            return Err(PoolError::Cancelled);
        }
        if let Some(error) = self.inflation.failed.take() {
            return Err(PoolError::Copy(error));
        }
        // Gates may be closed, and what lies below a new head is not final before all of that has ended.
        if self.doing.as_ref().is_some_and(|doing| doing.awaited().is_some()) {
            return Ok(Pace::Waits);
        }
        let Some(into) = self.inflates_into(task)? else { return Ok(Pace::Done) };
        if into != task.into || self.below(into, task.until) != task.below {
            // What lay further down may lie higher up now.
            self.begin_anew(task, into);
        }
        match task.stage {
            Stage::Copied(ticket) if !self.shared.commits.is_done(ticket) => Ok(Pace::Waits),
            Stage::Copied(_) => self.stand_on_less(task),
            _ => self.inflate_clusters(task, cx),
        }
    }

    fn begin_anew(&mut self, task: &mut Task, into: u64) {
        if let Some(node) = self.nodes.find_mut(task.into) {
            node.inflating = false;
        }
        self.nodes.get_mut(into).inflating = task.thick;
        (task.into, task.next, task.stage) = (into, 0, Stage::Copying);
        task.below = self.below(into, task.until);
    }

    /// The layer that is copied into; `None`: the volume does not stand on that any more.
    fn inflates_into(&self, task: &Task) -> Result<Option<u64>, PoolError> {
        let head = self.nodes.find(task.volume)?;
        if task.thick {
            return Ok(Some(head));
        }
        let (mut into, mut at) = (head, head);
        while let Some(parent) = self.nodes.get(at).layer.parent {
            if Some(parent) == task.until {
                return Ok(Some(into));
            }
            if self.nodes.get(parent).is_known() {
                into = parent;
            }
            at = parent;
        }
        // Then it is the one that stands on the origin.
        Ok((task.until.is_none() && self.nodes.get(at).layer.origin.is_some()).then_some(into))
    }

    /// The layers that are copied from. Those that go into the last of them are among them: they may go at any time.
    fn below(&self, into: u64, until: Option<u64>) -> Vec<(u64, LayerKind)> {
        let (mut below, mut next, mut ended) = (Vec::new(), self.nodes.get(into).layer.parent, false);
        while let Some(node) = next.and_then(|id| self.nodes.by_id().get(&id)) {
            if ended && node.layer.kind != LayerKind::Going {
                break;
            }
            ended |= Some(node.layer.id) == until;
            below.push((node.layer.id, node.layer.kind));
            next = node.layer.parent;
        }
        below
    }

    /// What is left below them, and how many bytes a layer sees of that through all of them.
    fn left_below(&self, task: &Task) -> Below {
        let last = task.below.last().filter(|_| task.until.is_some());
        let Some(last) = last.map(|(id, _)| &self.nodes.get(*id).layer) else { return Below::default() };
        let all = std::iter::once(&task.into).chain(task.below.iter().map(|(id, _)| id));
        let sees = all.filter_map(|id| self.nodes.get(*id).layer.sees).min();
        let left = Below { parent: last.parent, origin: last.stands_on(), sees };
        if left.is_nothing() { Below::default() } else { left }
    }

    fn sources(&self, task: &Task) -> Sources {
        let size = self.nodes.cluster_size();
        let layers = task.below.iter().map(|(id, _)| self.nodes.get(*id)).map(|n| (n.map.clone(), n.sees(size)));
        let origin = self.nodes.origin(task.into).filter(|_| task.until.is_none());
        let holes = task.holes.clone().filter(|holes| origin.is_some_and(|origin| holes.are_of(origin)));
        Sources { layers: layers.collect(), origin: origin.map_or(0, |origin| origin.bytes), holes }
    }

    fn inflate_clusters(&mut self, task: &mut Task, cx: &mut Cx<'_>) -> Result<Pace, PoolError> {
        let size = self.nodes.cluster_size();
        let sources = self.sources(task);
        let nothing = sources.layers.is_empty() && sources.origin == 0;
        let end = if nothing { 0 } else { self.nodes.get(task.into).sees(size) };
        for _ in 0..A_PASS {
            if task.next >= end {
                task.stage = Stage::Copied(self.shared.commits.ticket());
                break;
            }
            match self.inflate_cluster(task, &sources, cx)? {
                Pace::On if self.inflation.is_copying() => break,
                Pace::On => {}
                pace => return Ok(pace),
            }
        }
        task.progress.is(task.next.min(end) * size, end * size);
        Ok(Pace::On)
    }

    /// Looks at one cluster; it is looked at again when something of it has been copied.
    fn inflate_cluster(&mut self, task: &mut Task, sources: &Sources, cx: &mut Cx<'_>) -> Result<Pace, PoolError> {
        let cluster = task.next;
        let (leaf, slot) = Shared::slot(cluster);
        let is_empty = |(map, _): &Source| cluster >= map.clusters() || map.place(leaf) == Place::Empty;
        let is_origins = cluster << self.shared.cluster_shift < sources.origin;
        if !is_origins && sources.layers.iter().all(is_empty) {
            task.next = (leaf + 1) * ENTRIES_PER_PAGE as u64;
            return Ok(Pace::On);
        }
        let keeps_zeroes = !self.left_below(task).is_nothing();
        let map = self.nodes.get(task.into).map.clone();
        let plan = self.shared.entry(&map, cluster).and_then(|mine| self.plan(mine, sources, cluster, keeps_zeroes));
        let nothing = Plan { copy: None, zero: 0 };
        match plan {
            Ok(plan) if plan == nothing => {
                task.next += 1;
                return Ok(Pace::On);
            }
            Ok(_) => {}
            Err(miss) => return self.missing(task, miss),
        }
        let number = match self.shared.leaf_to_change(&map, leaf) {
            Ok(number) => number,
            Err(miss) => return self.missing(task, miss),
        };
        if !self.shared.locks.try_lock(map.id, cluster, u16::MAX) {
            return Ok(Pace::Waits);
        }
        let mine = self.shared.leaves.get(number).entry(slot);
        let started = match self.plan(mine, sources, cluster, keeps_zeroes) {
            Ok(Plan { copy, zero }) => {
                self.call_zero(&map, number, slot, zero);
                copy.map(|copy| self.start_copy(task, &map, number, copy, cx)).transpose()
            }
            Err(miss) => self.missing(task, miss).map(Some),
        };
        match started {
            // It stays locked until the copy has ended.
            Ok(Some(Pace::On)) => return Ok(Pace::On),
            Ok(None) => task.next += 1,
            Ok(Some(_)) | Err(_) => {}
        }
        self.shared.locks.unlock(map.id, cluster, u16::MAX);
        Ok(started?.unwrap_or(Pace::On))
    }

    /// What has to be copied first for this cluster. Whatever is below a layer that sees no more is not seen.
    fn plan(&self, mine: Entry, sources: &Sources, cluster: u64, keeps_zeroes: bool) -> Result<Plan, Miss> {
        let (mut open, mut zero) = (mine.parent(), 0);
        for (map, sees) in &sources.layers {
            let entry = self.shared.entry(map, cluster)?;
            zero |= if keeps_zeroes { entry.zero() & open } else { 0 };
            if let Some(from) = entry.cluster().filter(|_| entry.here() & open != 0) {
                return Ok(Plan { copy: Some((Where::Cluster(from), entry.here() & open)), zero });
            }
            open &= !entry.zero();
            if cluster >= *sees {
                open = 0;
            }
            if open == 0 {
                break;
            }
        }
        let holes = sources.holes.as_ref().map_or(0, |holes| holes.of_cluster(&self.shared, cluster));
        let of_origin = open & covered(&self.shared, cluster, sources.origin) & !holes;
        Ok(Plan { copy: (of_origin != 0).then_some((Where::Origin, of_origin)), zero })
    }

    fn call_zero(&self, map: &LayerMap, number: u32, slot: usize, mask: u16) {
        if mask != 0 {
            self.shared.punch(map, number, slot, mask, false);
        }
    }

    /// Copies into the cluster that an entry is on, or is put on.
    fn start_copy(
        &mut self,
        task: &Task,
        map: &Arc<LayerMap>,
        number: u32,
        (from, mask): (Where, u16),
        cx: &mut Cx<'_>,
    ) -> Result<Pace, PoolError> {
        if from == Where::Origin {
            self.reach_origin(task, cx)?;
        }
        let (_, slot) = Shared::slot(task.next);
        let page = self.shared.leaves.get(number);
        let mut now = page.entry(slot);
        let to = match now.cluster() {
            Some(to) => to,
            None => {
                let mut found = self.cluster_for(task)?;
                if found.is_none() {
                    // Nobody may have use for what lies in leases.
                    self.take_leases_back();
                    found = self.cluster_for(task)?;
                }
                let Some(to) = found else { return self.missing(task, Miss::Space) };
                let page = self.shared.leaves.get(number);
                while let Err(other) = page.change(slot, now, now.with_cluster(to)) {
                    // All is locked: nobody else puts it on a cluster.
                    now = other;
                }
                map.usage.owned.fetch_add(1, Relaxed);
                to
            }
        };
        match from {
            Where::Cluster(from) => self.inflation.copier.start(from, to, mask, cx),
            Where::Origin => self.inflation.copier.start_from_origin(task.next, to, mask, cx),
        }
        self.inflation.copy = Some(Copy { into: map.id, cluster: task.next, to, mask });
        Ok(Pace::On)
    }

    /// The copier can read what is below all layers outside of the pool.
    fn reach_origin(&mut self, task: &Task, cx: &mut Cx<'_>) -> Result<(), PoolError> {
        if self.inflation.copier.has_origin() {
            return Ok(());
        }
        let (Order::Inflate { way, .. }, Some(origin)) = (&task.asked.order, self.nodes.origin(task.into)) else {
            return Ok(());
        };
        let Some(way) = way.take_if(|way| way.leads_to(origin)) else {
            let name = self.nodes.get(task.into).layer.name.clone();
            return Err(PoolError::NoOrigin { name, origin: origin.uuid });
        };
        self.inflation.copier.set_origin(Some(way), cx).map(drop).map_err(|(error, way)| {
            self.shared.left.push(way);
            PoolError::Copy(error)
        })
    }

    /// A cluster for the layer, of what is kept for it or of what is nobody's.
    fn cluster_for(&mut self, task: &Task) -> Result<Option<u32>, PoolError> {
        let node = self.nodes.get(task.into);
        let (owned, layer) = (node.usage().0, &node.layer);
        if layer.quota > 0 && owned >= layer.quota {
            return Err(PoolError::NoSpace(format!("{} owns as much as its quota allows", layer.name)));
        }
        let is_kept = owned < self.nodes.kept_for(node);
        if !is_kept && self.unreserved() == 0 {
            return Ok(None);
        }
        let mut clusters = Vec::new();
        self.store.allocate(1, &mut clusters);
        Ok(clusters.pop())
    }

    /// Something that is needed is not there.
    fn missing(&mut self, task: &Task, miss: Miss) -> Result<Pace, PoolError> {
        match miss {
            Miss::Wait => Ok(Pace::Waits),
            Miss::Lost | Miss::Apart => {
                let name = self.nodes.get(task.into).layer.name.clone();
                Err(PoolError::Unfit {
                    name,
                    what: "stands on something of which a part is lost: see pollux pool check",
                })
            }
            Miss::Space => {
                let held_back = self.telling.held_back() > 0;
                let could_be_had =
                    held_back || !self.quarantine.is_empty() || self.removal.is_some() || self.fold.is_some();
                if could_be_had || self.shared.leaves.any_dirty() || self.has_to_say() || self.commit.is_some() {
                    self.hurry = true;
                    return Ok(Pace::Waits);
                }
                Err(PoolError::NoSpace("not all could be copied; what was is the volume's own now".into()))
            }
        }
    }

    fn copy_ended(&mut self, result: Result<(), IoError>) {
        let Some(Copy { into, cluster, to, mask }) = self.inflation.copy.take() else { return };
        let map = self.nodes.get(into).map.clone();
        let (leaf, slot) = Shared::slot(cluster);
        if let Place::At(number) = map.place(leaf) {
            match result {
                Ok(()) => drop(self.shared.publish(&map, number, slot, to, mask)),
                // The cluster may be of no use now.
                Err(_) => self.shared.mark(number, slot),
            }
        }
        self.shared.locks.unlock(into, cluster, u16::MAX);
        self.inflation.failed = result.err();
    }

    /// All is there and durable: the layer stands on what is left.
    fn stand_on_less(&mut self, task: &mut Task) -> Result<Pace, PoolError> {
        let into = task.into;
        if let Some((parent, LayerKind::Going)) = task.below.first() {
            if self.stuck.contains_key(parent) {
                return self.missing(task, Miss::Lost);
            }
            // It goes into this one, and has to find it.
            return Ok(Pace::Waits);
        }
        if !self.may_raise() {
            return Ok(Pace::Waits);
        }
        task.origin = self.nodes.origin(into);
        let left = self.left_below(task);
        self.nodes.stand(into, left);
        let clusters = self.nodes.clusters(self.nodes.get(into).layer.size);
        let node = self.nodes.get_mut(into);
        if task.thick {
            (node.layer.reserved, node.inflating) = (clusters, false);
        }
        self.log_layer(into);
        self.review_unnamed();
        self.renew_chains(into);
        self.review_reserves();
        task.stage = Stage::Ending { commit: self.shared.commits.ticket(), epoch: self.raise_epoch() };
        Ok(Pace::On)
    }
}
