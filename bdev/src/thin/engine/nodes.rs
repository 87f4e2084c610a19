//! The layers of a pool as the engine knows them: a forest, with the volumes that show them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::thin::PoolError;
use crate::thin::format::{Geometry, Layer, LayerKind, Origin, Pointer};
use crate::thin::shared::{Chain, LayerMap, Usage, Volume};
use crate::thin::store::Weight;

/// The volumes and snapshots that can be opened, by UUID: what the engine makes known to the control plane.
#[derive(Default)]
pub(crate) struct Directory(Mutex<BTreeMap<Uuid, Arc<Volume>>>);

impl Directory {
    pub(crate) fn get(&self, uuid: Uuid) -> Option<Arc<Volume>> {
        self.lock().get(&uuid).cloned()
    }

    pub(crate) fn put(&self, volume: Arc<Volume>) {
        self.lock().insert(volume.uuid, volume);
    }

    pub(crate) fn remove(&self, uuid: Uuid) {
        self.lock().remove(&uuid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Volume>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One layer.
pub(super) struct Node {
    /// As it is in the catalog, but for what only a checkpoint knows: where its map is, and what it owned then.
    pub(super) layer: Layer,
    pub(super) map: Arc<LayerMap>,
    pub(super) children: BTreeSet<u64>,
    /// As much is kept for it as it has, because it is being inflated.
    pub(super) inflating: bool,
}

/// What a layer stands on.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    /// Clusters of all layers below.
    pub(super) clusters: u64,
    /// The bdev outside of the pool in the end.
    pub(super) origin: Option<Origin>,
    /// The nearest layer below that its users know.
    pub(super) known: Option<Uuid>,
}

/// All of them.
pub(super) struct Nodes {
    by_id: BTreeMap<u64, Node>,
    cluster_size: u64,
    /// Which of them are looked for in every pass, until one of them changes.
    sought: OnceCell<Sought>,
}

/// Layers of a kind that is rare, however many there are.
struct Sought {
    /// For which something is kept.
    keeping: Vec<u64>,
    /// On their way out.
    going: Vec<u64>,
}

impl Nodes {
    /// Those that the catalog has.
    pub(super) fn new(layers: &BTreeMap<u64, Layer>, geometry: &Geometry) -> Nodes {
        let cluster_size = u64::from(geometry.cluster_size);
        let mut nodes = Nodes { by_id: BTreeMap::new(), cluster_size, sought: OnceCell::new() };
        for layer in layers.values() {
            let usage = Usage { owned: layer.owned.into(), here: layer.here.into() };
            let map = LayerMap::new(layer.id, nodes.clusters(layer.size), false, Arc::new(usage));
            nodes.insert(layer.clone(), Arc::new(map));
        }
        layers.keys().for_each(|id| nodes.join(*id));
        nodes
    }

    /// Bytes of a cluster.
    pub(super) const fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// How many clusters so many bytes are.
    pub(super) const fn clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size)
    }

    fn insert(&mut self, layer: Layer, map: Arc<LayerMap>) {
        self.sought = OnceCell::new();
        self.by_id.insert(layer.id, Node { layer, map, children: BTreeSet::new(), inflating: false });
    }

    /// A new head, with nothing in it.
    pub(super) fn add(&mut self, layer: Layer) {
        let map = LayerMap::new(layer.id, self.clusters(layer.size), true, Arc::default());
        let id = layer.id;
        self.insert(layer, Arc::new(map));
        self.join(id);
    }

    /// Its parent knows it.
    fn join(&mut self, id: u64) {
        if let Some(parent) = self.by_id[&id].layer.parent.and_then(|parent| self.find_mut(parent)) {
            parent.children.insert(id);
        }
    }

    /// A layer stands on something else.
    pub(super) fn stand(&mut self, id: u64, on: Below) {
        let layer = &mut self.get_mut(id).layer;
        let before = std::mem::replace(&mut layer.parent, on.parent);
        layer.sees = on.sees;
        layer.stand_on(on.origin);
        if let Some(before) = before.and_then(|before| self.find_mut(before)) {
            before.children.remove(&id);
        }
        self.join(id);
    }

    /// Takes one out that has no children.
    pub(super) fn remove(&mut self, id: u64) {
        self.sought = OnceCell::new();
        let Some(node) = self.by_id.remove(&id) else { return };
        if let Some(parent) = node.layer.parent.and_then(|parent| self.find_mut(parent)) {
            parent.children.remove(&id);
        }
    }

    /// Takes one out whose only child goes on standing on what it stood on.
    pub(super) fn take_out(&mut self, id: u64) {
        self.sought = OnceCell::new();
        let Some(node) = self.by_id.remove(&id) else { return };
        for child in &node.children {
            let child = &mut self.get_mut(*child).layer;
            child.parent = node.layer.parent;
            child.stand_on(node.layer.stands_on());
            child.sees = least(child.sees, node.layer.sees).filter(|_| !node.is_bottom());
        }
        if let Some(parent) = node.layer.parent.and_then(|parent| self.find_mut(parent)) {
            parent.children.remove(&id);
            parent.children.extend(&node.children);
        }
    }

    /// A layer and all that stand on it.
    pub(super) fn above(&self, id: u64) -> Vec<u64> {
        let mut all = vec![id];
        let mut at = 0;
        while let Some(id) = all.get(at) {
            all.extend(&self.by_id[id].children);
            at += 1;
        }
        all
    }

    /// What a layer stands on, as far as its users know.
    pub(super) fn known_below(&self, id: u64) -> impl Iterator<Item = u64> {
        let mut next = self.by_id[&id].layer.parent;
        let below = std::iter::from_fn(move || {
            let node = self.by_id.get(&next?)?;
            next = node.layer.parent;
            Some(node)
        });
        below.filter(|node| node.is_known()).map(|node| node.layer.id)
    }

    /// For each layer, what it stands on. Each is looked at once, however long the chains are.
    pub(super) fn below(&self) -> HashMap<u64, Standing> {
        let mut below = HashMap::<u64, Standing>::with_capacity(self.by_id.len());
        let mut way = Vec::new();
        for id in self.by_id.keys() {
            let mut next = self.by_id.get(id);
            while let Some(node) = next.filter(|node| !below.contains_key(&node.layer.id)) {
                way.push(node);
                next = node.layer.parent.and_then(|id| self.by_id.get(&id));
            }
            while let Some(node) = way.pop() {
                let parent = node.layer.parent.and_then(|id| self.by_id.get(&id));
                let stands = match parent.map(|parent| (parent, below[&parent.layer.id])) {
                    None => Standing { clusters: 0, origin: node.layer.stands_on(), known: None },
                    Some((parent, its)) => Standing {
                        clusters: parent.usage().0.saturating_add(its.clusters),
                        origin: its.origin,
                        known: if parent.is_known() { Some(parent.layer.uuid) } else { its.known },
                    },
                };
                below.insert(node.layer.id, stands);
            }
        }
        below
    }

    /// The layer that a UUID leads to, if it is a volume or a snapshot.
    pub(super) fn find(&self, uuid: Uuid) -> Result<u64, PoolError> {
        let known = |node: &&Node| node.layer.uuid == uuid && node.is_known();
        let found = self.by_id.values().find(known).map(|node| node.layer.id);
        found.ok_or_else(|| PoolError::NotFound(uuid.to_string()))
    }

    /// Whether a name and a UUID are nobody's.
    pub(super) fn check_free(&self, name: &str, uuid: Uuid) -> Result<(), PoolError> {
        let mut known = self.by_id.values().filter(|node| node.is_known());
        match known.find(|node| node.layer.name == name || node.layer.uuid == uuid) {
            Some(node) if node.layer.name == name => Err(PoolError::Exists(name.to_owned())),
            Some(_) => Err(PoolError::Exists(uuid.to_string())),
            None => Ok(()),
        }
    }

    /// The maps from a layer down.
    pub(super) fn chain(&self, id: u64, settled: bool) -> Chain {
        let (mut layers, mut ends) = (Vec::new(), Vec::new());
        let mut next = Some(id);
        while let Some(node) = next.and_then(|id| self.by_id.get(&id)) {
            layers.push(node.map.clone());
            ends.extend(node.layer.sees.map(|bytes| (layers.len(), self.clusters(bytes))));
            next = node.layer.parent;
        }
        let (layer, origin) = (&self.by_id[&id].layer, self.origin(id));
        let (bytes, read_only) = (layer.size, layer.kind != LayerKind::Head);
        Chain { layers, ends, origin, bytes, read_only, word: 0, settled: settled.into() }
    }

    /// The bdev outside of the pool that a layer stands on in the end.
    pub(super) fn origin(&self, id: u64) -> Option<Origin> {
        let mut at = &self.by_id[&id];
        while let Some(below) = at.layer.parent.and_then(|id| self.by_id.get(&id)) {
            at = below;
        }
        at.layer.stands_on()
    }

    /// The volume that shows a layer.
    pub(super) fn volume(&self, id: u64) -> Arc<Volume> {
        let layer = &self.by_id[&id].layer;
        Arc::new(Volume::new(layer.uuid, self.chain(id, true), layer.quota, layer.reserved))
    }

    /// Clusters that are kept for volumes which do not own them yet, if each may own `too_many` fewer than it is thought to.
    pub(super) fn promised(&self, too_many: u64) -> u64 {
        let keeping = self.sought().keeping.iter().map(|id| self.get(*id)).map(|node| (node, self.kept_for(node)));
        keeping
            .map(|(node, kept)| kept.saturating_sub(self.will_own(node).saturating_sub(too_many)))
            .fold(0, u64::saturating_add)
    }

    /// Clusters that are kept for a layer, with those that it owns.
    pub(super) fn kept_for(&self, node: &Node) -> u64 {
        node.layer.reserved.max(if node.inflating { self.clusters(node.layer.size) } else { 0 })
    }

    /// Clusters that a layer owns, and those of what goes into it.
    pub(super) fn will_own(&self, node: &Node) -> u64 {
        let (mut owned, mut next) = (node.usage().0, node.layer.parent);
        while let Some(below) = next.and_then(|id| self.by_id.get(&id)).filter(|n| n.layer.kind == LayerKind::Going) {
            owned = owned.saturating_add(below.usage().0);
            next = below.layer.parent;
        }
        owned
    }

    /// Bytes of all volumes.
    pub(super) fn provisioned(&self) -> u64 {
        let heads = self.by_id.values().filter(|node| node.layer.kind == LayerKind::Head);
        heads.map(|node| node.layer.size).fold(0, u64::saturating_add)
    }

    /// Whether there may be more layers: what they take in memory is within what a pool is opened with.
    pub(super) fn may_be_more(&self) -> bool {
        Weight::of(self.by_id.values().map(|node| &node.layer)).is_ok_and(|weight| weight.is_within(1))
    }

    pub(super) fn get(&self, id: u64) -> &Node {
        &self.by_id[&id]
    }

    pub(super) fn get_mut(&mut self, id: u64) -> &mut Node {
        self.find_mut(id).expect("whoever names a layer has looked it up")
    }

    /// To be changed, if it is still there.
    pub(super) fn find_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.sought = OnceCell::new();
        self.by_id.get_mut(&id)
    }

    /// All of them, by number.
    pub(super) const fn by_id(&self) -> &BTreeMap<u64, Node> {
        &self.by_id
    }

    /// Those on their way out.
    pub(super) fn going(&self) -> impl Iterator<Item = &Node> {
        self.sought().going.iter().map(|id| self.get(*id))
    }

    fn sought(&self) -> &Sought {
        self.sought.get_or_init(|| {
            let of = |is_one: &dyn Fn(&Node) -> bool| {
                self.by_id.iter().filter(|(_, node)| is_one(node)).map(|(id, _)| *id).collect()
            };
            Sought {
                keeping: of(&|node| self.kept_for(node) > 0),
                going: of(&|node| node.layer.kind == LayerKind::Going),
            }
        })
    }
}

/// The lower of two limits, where `None` is none.
fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// What a layer stands on: a layer, a bdev outside of the pool, or nothing; and how many bytes it sees of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Below {
    pub(super) parent: Option<u64>,
    pub(super) origin: Option<Origin>,
    pub(super) sees: Option<u64>,
}

impl Below {
    pub(super) const fn is_nothing(&self) -> bool {
        self.parent.is_none() && self.origin.is_none()
    }
}

impl Node {
    /// Whether it stands on nothing.
    pub(super) const fn is_bottom(&self) -> bool {
        self.layer.parent.is_none() && self.layer.origin.is_none()
    }

    /// How many clusters it sees of what it stands on.
    pub(super) fn sees(&self, cluster_size: u64) -> u64 {
        self.layer.sees.map_or(u64::MAX, |bytes| bytes / cluster_size).min(self.map.clusters())
    }

    /// Whether it is there for its users.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.layer.kind, LayerKind::Head | LayerKind::Snapshot)
    }

    /// As the log says it.
    pub(super) fn logged(&self) -> Layer {
        Layer { root: Pointer::NONE, levels: 0, owned: 0, here: 0, ..self.layer.clone() }
    }

    /// Clusters and sub-blocks that it has now.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.map.usage.owned(), self.map.usage.here())
    }
}
