//! The maps as they have to be: what could be read, with what the log says, and without what cannot be.

use std::collections::{BTreeMap, BTreeSet};

use super::super::bits::Bits;
use super::super::maps::{DataArea, Totals};
use super::super::medium::Medium;
use super::super::replay::Logged;
use super::super::trees::{Trees, clusters_of, map_leaves};
use super::gather::{Gathered, Place};
use super::{Losses, SUB};
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Kind, Layer, Page, PageHeader, PageId, Superblock};

const PER_LEAF: u64 = ENTRIES_PER_PAGE as u64;

/// A leaf as it will be.
pub(super) enum Leaf {
    /// It stays.
    Keep(Place),
    /// It is written anew.
    New(Page),
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Rebuilt {
    pub(super) leaves: BTreeMap<(u64, u64), Leaf>,
    pub(super) totals: BTreeMap<u64, Totals>,
    /// Clusters that somebody owns.
    pub(super) clusters: Bits,
}

/// What it is made from.
pub(super) struct Sources<'a> {
    pub(super) superblock: &'a Superblock,
    pub(super) gathered: &'a Gathered,
    pub(super) layers: &'a BTreeMap<u64, Layer>,
    pub(super) logged: &'a BTreeMap<(u64, u64), Logged>,
    /// The pages that the repaired pool has.
    pub(super) inside: &'a Trees,
}

impl Sources<'_> {
    /// Puts the maps together. What trees lead to comes first, so that nobody loses a cluster to a leaf that was found.
    pub(super) fn rebuild(&self, medium: &mut Medium, losses: &mut Losses) -> Rebuilt {
        let mut rebuilt = Rebuilt::default();
        let data = DataArea::new(self.superblock);
        let mut keys: BTreeSet<(u64, u64)> = self.gathered.leaves.keys().copied().collect();
        keys.extend(self.logged.keys());
        for found in [false, true] {
            for (id, leaf) in &keys {
                let place = self.gathered.leaves.get(&(*id, *leaf)).copied();
                let Some(layer) = self.layers.get(id).filter(|_| place.is_some_and(|it| it.found) == found) else {
                    continue;
                };
                if *leaf >= map_leaves(layer.size, &self.superblock.geometry) {
                    continue;
                }
                self.leaf(layer, *leaf, place, &data, medium, losses, &mut rebuilt);
            }
        }
        rebuilt
    }

    #[expect(clippy::too_many_arguments, reason = "one leaf, and all that it depends on")]
    fn leaf(
        &self,
        layer: &Layer,
        leaf: u64,
        place: Option<Place>,
        data: &DataArea,
        medium: &mut Medium,
        losses: &mut Losses,
        rebuilt: &mut Rebuilt,
    ) {
        let geometry = &self.superblock.geometry;
        let old = place.and_then(|place| self.read(layer.id, leaf, place, medium));
        let logged = self.logged.get(&(layer.id, leaf));
        let size = clusters_of(layer.size, geometry);
        let (mut page, mut changed) = (old.clone().unwrap_or_default(), old.is_none());
        if place.is_some() && old.is_none() {
            losses.leaves(layer, leaf, leaf.saturating_add(1), geometry);
        }
        let totals = rebuilt.totals.entry(layer.id).or_default();
        for at in 0..ENTRIES_PER_PAGE {
            let cluster = leaf.saturating_mul(PER_LEAF).saturating_add(at as u64);
            let before = page.entry(at);
            let mut entry = match logged.and_then(|logged| logged.entry(at as u16)).or(before) {
                Some(entry) => entry,
                None => {
                    losses.sub_blocks(layer, cluster, u16::MAX, geometry, "its entry makes no sense");
                    Entry::EMPTY
                }
            };
            if cluster >= size {
                entry = Entry::EMPTY;
            }
            if let Some(on) = entry.cluster() {
                let why = if !data.contains(on) {
                    Some("it lay where no data can be")
                } else if !rebuilt.clusters.set(u64::from(on)) {
                    Some("its cluster belongs to another one, too")
                } else {
                    None
                };
                if let Some(why) = why {
                    losses.sub_blocks(layer, cluster, entry.here(), geometry, why);
                    // Zeroes, not what the parent has: that is older than what was here.
                    entry = Entry::EMPTY.with_zero(entry.here() | entry.zero());
                }
            }
            totals.add(entry);
            if before != Some(entry) {
                page.set_entry(at, entry);
                changed = true;
            }
        }
        // A leaf that is newer than the pool cannot stay as it is.
        let fits =
            |place: &Place| place.generation <= self.superblock.generation && self.inside.number(place.block).is_some();
        let stays = place.filter(|place| !changed && fits(place));
        if let Some(place) = stays {
            rebuilt.leaves.insert((layer.id, leaf), Leaf::Keep(place));
        } else if !page.is_empty() {
            rebuilt.leaves.insert((layer.id, leaf), Leaf::New(page));
        }
    }

    fn read(&self, layer: u64, index: u64, place: Place, medium: &mut Medium) -> Option<Page> {
        let id = PageId { kind: Kind::Map, layer, level: 0, index };
        let Place { block, generation, .. } = place;
        let header = PageHeader { id, generation, block, pool: self.superblock.pool };
        medium.read(block).ok().and_then(|bytes| Page::open(bytes, &header).ok())
    }
}

/// Bytes of a volume that a cluster's sub-blocks are, as ranges.
pub(super) fn ranges(cluster: u64, mask: u16, cluster_size: u32) -> Vec<(u64, u64)> {
    let (start, sub) = (cluster.saturating_mul(u64::from(cluster_size)), u64::from(cluster_size) / SUB);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for at in (0..SUB).filter(|at| mask >> at & 1 == 1) {
        let (from, to) = (start.saturating_add(at * sub), start.saturating_add((at + 1) * sub));
        match ranges.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => ranges.push((from, to)),
        }
    }
    ranges
}
