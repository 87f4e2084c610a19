//! What the log says, applied to what the trees say: the state that a start finds.
//!
//! The trees give every cluster one owner; each batch is then held to keep that: what is lost is freed or taken, what is
//! taken was free or lost, and nothing else is freed. So no second walk is needed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::catalog::{Layers, MOST_LAYERS, map_tree, merged};
use super::log::Batch;
use super::maps::{DataArea, Owned, Totals};
use super::medium::Medium;
use super::report::{Findings, Flaw};
use super::trees::{Seen, Trees, clusters_of};
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Layer, Page, Pointer, Record, Superblock};

const PER_LEAF: u64 = ENTRIES_PER_PAGE as u64;

/// A leaf as the log says that it is.
#[derive(Default)]
pub(super) struct Logged {
    /// All of its entries, but for those that follow.
    whole: Option<Entry>,
    entries: BTreeMap<u16, Entry>,
}

/// See the module's description.
pub(super) struct Replay<'a> {
    superblock: &'a Superblock,
    data: DataArea,
    /// As the catalog has them.
    before: &'a Layers,
    /// Whether those are all.
    whole: bool,
    pub(super) layers: Layers,
    pub(super) owned: Owned,
    gone: HashSet<u64>,
    pub(super) logged: BTreeMap<(u64, u64), Logged>,
}

impl Logged {
    /// Whether it says all of its leaf.
    pub(super) fn is_all(&self) -> bool {
        self.whole.is_some()
    }

    pub(super) fn entry(&self, at: u16) -> Option<Entry> {
        self.entries.get(&at).copied().or(self.whole)
    }
}

/// What is wrong with a record, and the layer that it is about.
type Complaint = (Flaw, u64, String);

/// What a batch does to clusters.
#[derive(Default)]
struct Moves {
    lost: BTreeMap<u32, u64>,
    /// By which layer, for which of its clusters.
    taken: BTreeMap<u32, (u64, u64)>,
    freed: Vec<(u32, u32)>,
    /// Something was lost that nobody knows, because it could not be read.
    unknown: bool,
    gone: Vec<u64>,
}

impl<'a> Replay<'a> {
    pub(super) fn new(superblock: &'a Superblock, before: &'a Layers, whole: bool, owned: Owned) -> Replay<'a> {
        let data = DataArea::new(superblock);
        let (gone, logged) = (HashSet::new(), BTreeMap::new());
        Replay { superblock, data, before, whole, layers: before.clone(), owned, gone, logged }
    }

    /// Applies a batch.
    pub(super) fn apply(&mut self, batch: &Batch, trees: &mut Trees, medium: &mut Medium, findings: &mut Findings) {
        let mut moves = Moves::default();
        for record in &batch.records {
            let complaint = match record {
                Record::Free { first, count } => {
                    moves.freed.push((*first, *count));
                    None
                }
                Record::Layer(layer) => self.layer(layer).err(),
                Record::Entry { layer: id, .. } | Record::Leaf { layer: id, .. } | Record::Gone(id)
                    if !self.layers.contains_key(id) || moves.gone.contains(id) =>
                {
                    // A layer that cannot be read may be there.
                    moves.unknown |= self.is_hidden(*id);
                    let what = format!("is about layer {id}, which is not there");
                    (!self.is_hidden(*id)).then_some((Flaw::LogLayerUnknown, *id, what))
                }
                Record::Gone(id) => {
                    moves.gone.push(*id);
                    None
                }
                Record::Entry { layer, cluster, entry } => {
                    self.set(*layer, *cluster, *entry, &mut moves, trees, medium)
                }
                Record::Leaf { layer, leaf, entry } => {
                    self.fill(*layer, *leaf, *entry, &mut moves, trees, medium);
                    None
                }
            };
            if let Some((flaw, layer, what)) = complaint {
                findings
                    .add(flaw, Some(batch.block), Some(layer), || format!("batch {} of the log {what}", batch.number));
            }
        }
        self.settle(batch, &moves, findings);
    }

    /// Whether this may be a layer of the catalog that cannot be read.
    fn is_hidden(&self, id: u64) -> bool {
        !self.whole && id < self.superblock.next_layer && !self.gone.contains(&id)
    }

    /// A record of a layer.
    fn layer(&mut self, layer: &Layer) -> Result<(), Complaint> {
        let id = layer.id;
        let old = self.layers.get(&id);
        let again = id < self.superblock.next_layer || self.gone.contains(&id);
        if old.is_none() && !self.is_hidden(id) && (again || id >= MOST_LAYERS) {
            let what = format!("makes layer {id}, whose number was given out before, or never will be");
            return Err((Flaw::LayerNumber, id, what));
        }
        let totals = Totals { whole: !self.is_hidden(id), ..Totals::default() };
        self.owned.layers.entry(id).or_insert(totals);
        let merged = merged(layer, old);
        self.layers.insert(id, merged);
        let plain = (layer.root, layer.levels, layer.owned, layer.here) == (Pointer::NONE, 0, 0, 0);
        if plain {
            Ok(())
        } else {
            Err((Flaw::LogLayerMap, id, format!("says of layer {id} what only the catalog says")))
        }
    }

    /// A record of an entry.
    fn set(
        &mut self,
        layer: u64,
        cluster: u64,
        entry: Entry,
        moves: &mut Moves,
        trees: &mut Trees,
        medium: &mut Medium,
    ) -> Option<Complaint> {
        let (leaf, at) = (cluster / PER_LEAF, (cluster % PER_LEAF) as u16);
        let logged = self.logged.get(&(layer, leaf)).and_then(|logged| logged.entry(at));
        let old = match logged {
            Some(entry) => Some(entry),
            None => self.page(layer, leaf, trees, medium).and_then(|page| entry_of(page.as_ref(), at)),
        };
        self.logged.entry((layer, leaf)).or_default().entries.insert(at, entry);
        let on = self.exchange((layer, cluster), old, entry, moves)?;
        Some((Flaw::ClusterOutside, layer, format!("gives cluster {on} to layer {layer}, and it is not one for data")))
    }

    /// A record of a leaf.
    fn fill(&mut self, layer: u64, leaf: u64, entry: Entry, moves: &mut Moves, trees: &mut Trees, medium: &mut Medium) {
        let all = Logged { whole: Some(entry), entries: BTreeMap::new() };
        let logged = self.logged.insert((layer, leaf), all).unwrap_or_default();
        let page = if logged.whole.is_some() { Some(None) } else { self.page(layer, leaf, trees, medium) };
        for at in 0..ENTRIES_PER_PAGE as u16 {
            let old = logged.entry(at).or_else(|| entry_of(page.as_ref()?.as_ref(), at));
            let cluster = leaf.saturating_mul(PER_LEAF).saturating_add(u64::from(at));
            self.exchange((layer, cluster), old, entry, moves);
        }
    }

    /// A leaf as the trees have it; `None`: nobody can know.
    fn page(&self, layer: u64, leaf: u64, trees: &mut Trees, medium: &mut Medium) -> Option<Option<Page>> {
        match self.before.get(&layer) {
            Some(before) => {
                let tree = map_tree(before, &self.superblock.geometry, self.superblock.generation);
                trees.leaf(medium, &tree, leaf)
            }
            None if !self.whole && layer < self.superblock.next_layer => None,
            None => Some(None),
        }
    }

    /// Exchanges an entry. Answers a cluster that cannot be given away.
    fn exchange(&mut self, place: (u64, u64), old: Option<Entry>, new: Entry, moves: &mut Moves) -> Option<u32> {
        let totals = self.owned.layers.entry(place.0).or_default();
        totals.add(new);
        match old {
            Some(old) => totals.remove(old),
            None => (totals.whole, moves.unknown) = (false, true),
        }
        let (old, new) = (old.and_then(Entry::cluster), new.cluster());
        if old == new {
            return None;
        }
        if let Some(cluster) = old {
            // Given and taken back in one batch: as if nothing had been.
            if moves.taken.get(&cluster) == Some(&place) {
                moves.taken.remove(&cluster);
            }
            if self.owned.clusters.get(u64::from(cluster)) {
                moves.lost.insert(cluster, place.0);
            }
        }
        let cluster = new?;
        if !self.data.contains(cluster) {
            return Some(cluster);
        }
        if moves.taken.insert(cluster, place).is_some() {
            // Two take it in one batch: the second one takes what the first one has.
            moves.lost.remove(&cluster);
            self.owned.clusters.set(u64::from(cluster));
        }
        None
    }

    /// Whether a batch as a whole keeps what has to be kept.
    fn settle(&mut self, batch: &Batch, moves: &Moves, findings: &mut Findings) {
        let (number, block) = (batch.number, Some(batch.block));
        for (cluster, (layer, _)) in &moves.taken {
            if !self.owned.clusters.set(u64::from(*cluster)) && !moves.lost.contains_key(cluster) && !moves.unknown {
                findings.add(Flaw::LogClusterTaken, block, Some(*layer), || {
                    format!("batch {number} of the log gives cluster {cluster} to layer {layer}, and another has it")
                });
            }
        }
        let free = moves.lost.iter().filter(|(cluster, _)| !moves.taken.contains_key(cluster));
        let mut left: BTreeSet<u32> = free.map(|(cluster, _)| *cluster).collect();
        left.iter().for_each(|cluster| self.owned.clusters.clear(u64::from(*cluster)));
        for (first, count) in &moves.freed {
            let end = first.saturating_add(*count);
            let covered: Vec<u32> = left.range(first..&end).copied().collect();
            covered.iter().for_each(|cluster| _ = left.remove(cluster));
            if covered.len() as u64 != u64::from(*count) && !moves.unknown {
                let extra = (*first..end).zip(covered.iter().map(Some).chain(std::iter::repeat(None)));
                let extra = extra.into_iter().find(|(a, b)| Some(a) != *b).map_or(*first, |(a, _)| a);
                findings.add(Flaw::LogFree, block, None, || {
                    format!("batch {number} of the log frees cluster {extra}, and nobody loses it there")
                });
            }
        }
        for cluster in left {
            let layer = moves.lost[&cluster];
            findings.add(Flaw::LogLeak, block, Some(layer), || {
                format!("batch {number} of the log takes cluster {cluster} from layer {layer} and does not free it")
            });
        }
        for id in &moves.gone {
            let totals = self.owned.layers.remove(id).unwrap_or_default();
            if totals.whole && totals.owned != 0 {
                findings.add(Flaw::LogGone, block, Some(*id), || {
                    format!("batch {number} of the log ends layer {id}, which has {} clusters", totals.owned)
                });
            }
            self.layers.remove(id);
            self.gone.insert(*id);
            let leaves: Vec<_> = self.logged.range((*id, 0)..=(*id, u64::MAX)).map(|(key, _)| *key).collect();
            leaves.iter().for_each(|key| _ = self.logged.remove(key));
        }
    }

    /// What the log has made of the ends of volumes: nothing is behind them.
    pub(super) fn finish(&self, medium: &mut Medium, findings: &mut Findings) {
        let beyond = |id: u64, cluster: u64, entry: Entry, size: u64, findings: &mut Findings| {
            findings.add(Flaw::EntryBeyondSize, None, Some(id), || {
                format!(
                    "layer {id} has {entry:?} for its cluster {cluster} after the log, and its size is {size} clusters"
                )
            });
        };
        let geometry = &self.superblock.geometry;
        for ((id, leaf), logged) in &self.logged {
            let Some(layer) = self.layers.get(id) else { continue };
            let size = clusters_of(layer.size, geometry);
            let cluster = |at: u64| leaf.saturating_mul(PER_LEAF).saturating_add(at);
            let whole = logged.whole.filter(|entry| *entry != Entry::EMPTY && cluster(PER_LEAF - 1) >= size);
            let first =
                logged.entries.iter().find(|(at, entry)| **entry != Entry::EMPTY && cluster(u64::from(**at)) >= size);
            if let Some((at, entry)) =
                first.map(|(at, entry)| (u64::from(*at), *entry)).or(whole.map(|entry| (PER_LEAF - 1, entry)))
            {
                beyond(*id, cluster(at), entry, size, findings);
            }
        }
        // The trees of layers that shrank are looked through again.
        let mut again = Trees::new(self.superblock);
        for (id, old) in self.before {
            let Some(layer) = self.layers.get(id).filter(|layer| layer.size < old.size) else { continue };
            let size = clusters_of(layer.size, geometry);
            let tree = map_tree(old, geometry, self.superblock.generation);
            again.walk(medium, &mut Findings::default(), &tree, &mut |_, seen| {
                let Seen::Leaf { index, page, .. } = seen else { return 0 };
                let logged = self.logged.get(&(*id, *index));
                if logged.is_some_and(|logged| logged.whole.is_some()) {
                    return 0;
                }
                for at in 0..ENTRIES_PER_PAGE as u16 {
                    let cluster = index * PER_LEAF + u64::from(at);
                    let known = logged.is_some_and(|logged| logged.entries.contains_key(&at));
                    let entry =
                        page.entry(usize::from(at)).filter(|entry| *entry != Entry::EMPTY && !known && cluster >= size);
                    if let Some(entry) = entry {
                        beyond(*id, cluster, entry, size, findings);
                    }
                }
                0
            });
        }
    }
}

fn entry_of(page: Option<&Page>, at: u16) -> Option<Entry> {
    page.map_or(Some(Entry::EMPTY), |page| page.entry(usize::from(at)))
}
