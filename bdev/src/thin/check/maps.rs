//! Who owns which cluster: all maps are walked once, with one bit for each cluster. If one has two owners, they are
//! walked again to name both.

use std::collections::BTreeMap;

use super::bits::Bits;
use super::catalog::{Layers, map_tree};
use super::medium::Medium;
use super::report::{Findings, Flaw};
use super::trees::{Seen, Trees, clusters_of};
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Extent, Layer, Superblock};

/// Clusters with two owners whose owners are named.
const NAMED: usize = 100;
/// Owners of one cluster that are named.
const OWNERS: usize = 4;

/// What a layer owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) owned: u64,
    pub(super) here: u64,
    /// Whether its whole map could be read.
    pub(super) whole: bool,
}

impl Totals {
    /// An entry comes.
    pub(super) fn add(&mut self, entry: Entry) {
        self.owned = self.owned.wrapping_add(u64::from(entry.cluster().is_some()));
        self.here = self.here.wrapping_add(u64::from(entry.here().count_ones()));
    }

    /// An entry goes.
    pub(super) fn remove(&mut self, entry: Entry) {
        self.owned = self.owned.wrapping_sub(u64::from(entry.cluster().is_some()));
        self.here = self.here.wrapping_sub(u64::from(entry.here().count_ones()));
    }
}

/// What the maps say.
#[derive(Default)]
pub(super) struct Owned {
    /// Clusters that somebody owns.
    pub(super) clusters: Bits,
    pub(super) layers: BTreeMap<u64, Totals>,
}

/// The clusters that can hold data.
pub(super) struct DataArea {
    first: u32,
    end: u32,
    /// By their first cluster.
    metadata: Vec<Extent>,
}

impl DataArea {
    pub(super) fn new(superblock: &Superblock) -> DataArea {
        let mut metadata = superblock.extents.clone();
        metadata.sort_unstable_by_key(|extent| extent.first);
        DataArea { first: superblock.geometry.first_free, end: superblock.geometry.clusters, metadata }
    }

    /// Whether this is one of them.
    pub(super) fn contains(&self, cluster: u32) -> bool {
        let before = self.metadata.partition_point(|extent| extent.first <= cluster);
        let metadata = before.checked_sub(1).map(|at| self.metadata[at]);
        (self.first..self.end).contains(&cluster)
            && metadata.is_none_or(|extent| cluster - extent.first >= extent.count)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        let metadata = self.metadata.iter().filter(|extent| extent.first >= self.first);
        let metadata: u64 = metadata.map(|extent| u64::from(extent.count)).sum();
        u64::from(self.end - self.first).saturating_sub(metadata)
    }
}

/// Walks the maps of all layers.
pub(super) fn walk(
    trees: &mut Trees,
    medium: &mut Medium,
    findings: &mut Findings,
    superblock: &Superblock,
    layers: &Layers,
) -> Owned {
    let mut owned = Owned::default();
    let mut twice = BTreeMap::new();
    let data = DataArea::new(superblock);
    for (id, layer) in layers {
        let tree = map_tree(layer, &superblock.geometry, superblock.generation);
        let size = clusters_of(layer.size, &superblock.geometry);
        let (mut totals, mut sane) = (Totals::default(), true);
        let whole = trees.walk(medium, findings, &tree, &mut |findings, seen| {
            let Seen::Leaf { index, block, page, .. } = seen else { return 0 };
            for at in 0..ENTRIES_PER_PAGE {
                let cluster = index * ENTRIES_PER_PAGE as u64 + at as u64;
                let Some(entry) = page.entry(at) else {
                    sane = false;
                    findings.add(Flaw::EntryInvalid, Some(*block), Some(*id), || {
                        format!("layer {id} has an entry for its cluster {cluster} that makes no sense")
                    });
                    continue;
                };
                if cluster >= size && entry != Entry::EMPTY {
                    findings.add(Flaw::EntryBeyondSize, Some(*block), Some(*id), || {
                        format!("layer {id} has {entry:?} for its cluster {cluster}, and its size is {size} clusters")
                    });
                }
                totals.add(entry);
                let Some(on) = entry.cluster() else { continue };
                if !data.contains(on) {
                    findings.add(Flaw::ClusterOutside, Some(*block), Some(*id), || {
                        format!("cluster {on}, which layer {id} has for its cluster {cluster}, is not one for data")
                    });
                } else if !owned.clusters.set(u64::from(on)) && twice.len() < NAMED {
                    twice.insert(on, Vec::new());
                }
            }
            0
        });
        owned.layers.insert(*id, Totals { whole: whole && sane, ..totals });
        compare(layer, owned.layers[id], findings);
    }
    if !twice.is_empty() {
        name_owners(trees, medium, superblock, layers, &mut twice);
        for (cluster, owners) in &twice {
            let owners: Vec<_> = owners.iter().map(|(id, at)| format!("layer {id} for its cluster {at}")).collect();
            let who = owners.join(", ");
            let layer = twice[cluster].last().map(|(id, _)| *id);
            findings.add(Flaw::ClusterOwnedTwice, None, layer, || format!("cluster {cluster} belongs to {who}"));
        }
    }
    owned
}

/// The counters of the catalog.
fn compare(layer: &Layer, found: Totals, findings: &mut Findings) {
    if !found.whole {
        return;
    }
    let id = layer.id;
    if layer.owned != found.owned {
        findings.add(Flaw::OwnedCount, None, Some(id), || {
            format!("layer {id} owns {} clusters, and the catalog says {}", found.owned, layer.owned)
        });
    }
    if layer.here != found.here {
        findings.add(Flaw::HereCount, None, Some(id), || {
            format!("layer {id} has {} sub-blocks, and the catalog says {}", found.here, layer.here)
        });
    }
}

/// Second walk: who has these clusters?
fn name_owners(
    trees: &mut Trees,
    medium: &mut Medium,
    superblock: &Superblock,
    layers: &Layers,
    twice: &mut BTreeMap<u32, Vec<(u64, u64)>>,
) {
    let mut again = Trees::new(superblock);
    for (id, layer) in layers {
        let tree = map_tree(layer, &superblock.geometry, superblock.generation);
        // All that is wrong was said the first time.
        let mut silent = Findings::default();
        again.walk(medium, &mut silent, &tree, &mut |_, seen| {
            let Seen::Leaf { index, page, .. } = seen else { return 0 };
            for at in 0..ENTRIES_PER_PAGE {
                let owners = page.entry(at).and_then(Entry::cluster).and_then(|on| twice.get_mut(&on));
                if let Some(owners) = owners.filter(|owners| owners.len() < OWNERS) {
                    owners.push((*id, index * ENTRIES_PER_PAGE as u64 + at as u64));
                }
            }
            0
        });
    }
    trees.lost |= again.lost;
}
