//! What is said together: one batch of the log, and what it needs there and of a checkpoint.

use std::collections::HashSet;

use super::space::{Freed, runs};
use crate::thin::format::{BITS_PER_PAGE, ENTRIES_PER_PAGE, Entry, LAYER_LEN, LAYERS_PER_PAGE, Record};
use crate::thin::store::PAGES_PER_LEAF;

/// What an entry takes in the log, at most.
const ENTRY_BYTES: usize = 32;

/// What goes into one batch, and what is free when it is durable.
#[derive(Default)]
pub(super) struct Load {
    pub(super) records: Vec<Record>,
    /// At most so many bytes are they in the log.
    pub(super) bytes: usize,
    /// Leaves of trees that they change.
    leaves: HashSet<Leaf>,
    /// The last ones of maps and of the space tree: what comes next is mostly there, too.
    last: [Option<Leaf>; 2],
    /// How many layers are among them, and how many bytes these have.
    pub(super) layers: (u64, u64),
    pub(super) freed: Freed,
}

/// Which leaf of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Leaf {
    Map(u64, u64),
    Space(u32),
    Catalog(u64),
}

/// What a batch is not to exceed by more than a leaf.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: usize,
    pub(super) pages: u64,
}

impl Load {
    /// Says something more.
    pub(super) fn push(&mut self, record: Record) {
        self.bytes += match &record {
            Record::Layer(_) => LAYER_LEN + 1,
            Record::Entry { .. } | Record::Leaf { .. } => ENTRY_BYTES,
            Record::Free { .. } | Record::Gone(_) => 12,
        };
        match &record {
            Record::Layer(layer) => {
                self.layers = (self.layers.0 + 1, self.layers.1.saturating_add(layer.size));
                self.touch(Leaf::Catalog(layer.id / LAYERS_PER_PAGE as u64));
            }
            Record::Gone(layer) => self.touch(Leaf::Catalog(*layer / LAYERS_PER_PAGE as u64)),
            Record::Leaf { layer, leaf, .. } => self.touch(Leaf::Map(*layer, *leaf)),
            Record::Entry { layer, cluster, entry } => {
                self.touch(Leaf::Map(*layer, cluster / ENTRIES_PER_PAGE as u64));
                entry.cluster().into_iter().for_each(|cluster| self.touch(Leaf::Space(space_leaf(cluster))));
            }
            Record::Free { first, count } => {
                let last = first.saturating_add(count.saturating_sub(1));
                (space_leaf(*first)..=space_leaf(last)).for_each(|leaf| self.touch(Leaf::Space(leaf)));
            }
        }
        self.records.push(record);
    }

    /// Says how some clusters of one leaf of a layer's map are.
    pub(super) fn push_entries(&mut self, layer: u64, leaf: u64, entries: impl Iterator<Item = (u64, Entry)>) {
        let before = self.records.len();
        for (cluster, entry) in entries {
            debug_assert_eq!(cluster / ENTRIES_PER_PAGE as u64, leaf);
            if let Some(on) = entry.cluster() {
                self.touch(Leaf::Space(space_leaf(on)));
            }
            self.records.push(Record::Entry { layer, cluster, entry });
        }
        self.bytes += (self.records.len() - before) * ENTRY_BYTES;
        if self.records.len() > before {
            self.touch(Leaf::Map(layer, leaf));
        }
    }

    #[inline]
    fn touch(&mut self, leaf: Leaf) {
        let last = &mut self.last[usize::from(matches!(leaf, Leaf::Space(_)))];
        if *last != Some(leaf) {
            *last = Some(leaf);
            self.leaves.insert(leaf);
        }
    }

    /// Pages that a checkpoint of it needs at most: each leaf, and one above it.
    pub(super) fn pages(&self) -> u64 {
        self.leaves.len() as u64 * PAGES_PER_LEAF
    }

    /// Says something more, in the same batch.
    pub(super) fn append(&mut self, more: Option<Load>) {
        more.into_iter().flat_map(|more| more.records).for_each(|record| self.push(record));
    }

    /// Whether it says something of a cluster of a layer.
    pub(super) fn speaks_of(&self, of: u64, of_cluster: u64) -> bool {
        let is_it = |record: &Record| matches!(record, Record::Entry { layer, cluster, .. } if (*layer, *cluster) == (of, of_cluster));
        self.records.iter().any(is_it)
    }

    /// The clusters of the base that its entries name.
    pub(super) fn named(&self) -> HashSet<u32> {
        let on = |record: &Record| match record {
            Record::Entry { entry, .. } => entry.cluster(),
            _ => None,
        };
        self.records.iter().filter_map(on).collect()
    }

    /// Whether what comes next belongs into another batch.
    pub(super) fn is_full(&self, limits: Limits) -> bool {
        self.bytes >= limits.bytes || self.pages() >= limits.pages
    }

    /// These clusters are nobody's any more.
    pub(super) fn free(&mut self, clusters: Vec<u32>) {
        for (first, count) in runs(clusters) {
            self.push(Record::Free { first, count });
            self.freed.clusters.push((first, count));
        }
    }
}

fn space_leaf(cluster: u32) -> u32 {
    cluster / BITS_PER_PAGE as u32
}
