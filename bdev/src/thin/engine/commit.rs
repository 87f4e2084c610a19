//! Commits: everything that has changed goes into the log, after the data that it speaks of.
//!
//! A commit is one or more batches. The first begins with what removals and folds have to say; then come the entries of the
//! leaves on the dirty stack, then what has changed of the layers, then the entries of layers that are new. An entry
//! that is on a cluster and has nothing there loses it here, and nowhere else: its batch says that the cluster is free. The
//! store puts a barrier before each batch, so data is on the medium before a map leads to it.

use std::collections::{HashSet, VecDeque};

use pollux_core::IoError;

use super::Engine;
use crate::thin::format::{BITS_PER_PAGE, ENTRIES_PER_PAGE, Entry, LAYER_LEN, LAYERS_PER_PAGE, Record};
use crate::thin::shared::DIRTY_WORDS;
use crate::thin::store::{BatchId, PAGES_PER_LEAF};

/// A batch is closed when it has so many bytes.
const BATCH: usize = 256 << 10;
/// The pool commits by itself when something has been changed for so long.
pub(super) const OWN_COMMIT_NS: u64 = 500_000_000;

/// What goes into one batch, and what is free when it is durable.
#[derive(Default)]
pub(super) struct Load {
    pub(super) records: Vec<Record>,
    /// At most so many bytes are they in the log.
    bytes: usize,
    /// Leaves of trees that they change.
    leaves: HashSet<Leaf>,
    /// The last ones of maps and of the space tree: what comes next is mostly there, too.
    last: [Option<Leaf>; 2],
    /// How many layers are among them, and how many bytes these have.
    layers: (u64, u64),
    freed: Vec<u32>,
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
    bytes: usize,
    pages: u64,
}

impl Load {
    /// Says something more.
    pub(super) fn push(&mut self, record: Record) {
        self.bytes += match &record {
            Record::Layer(_) => LAYER_LEN + 1,
            Record::Entry { .. } | Record::Leaf { .. } => 32,
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
    fn append(&mut self, more: Option<Load>) {
        more.into_iter().flat_map(|more| more.records).for_each(|record| self.push(record));
    }

    /// Whether it says something of a cluster of a layer.
    pub(super) fn speaks_of(&self, of: u64, of_cluster: u64) -> bool {
        let is_it = |record: &Record| matches!(record, Record::Entry { layer, cluster, .. } if (*layer, *cluster) == (of, of_cluster));
        self.records.iter().any(is_it)
    }

    /// The clusters of the base that its entries name.
    fn named(&self) -> HashSet<u32> {
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
    pub(super) fn free(&mut self, mut clusters: Vec<u32>) {
        clusters.sort_unstable();
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            self.push(Record::Free { first: run[0], count: run.len() as u32 });
        }
        self.freed.append(&mut clusters);
    }
}

/// A commit that has begun.
pub(super) struct Commit {
    number: u64,
    /// What is not in the log yet.
    left: VecDeque<Load>,
    /// What is on its way there, and what is free then.
    flying: Option<(BatchId, Vec<u32>)>,
}

impl Commit {
    /// Pages that a checkpoint needs for what the store has not heard of yet.
    pub(super) fn unsaid_pages(&self) -> u64 {
        self.left.iter().map(Load::pages).sum()
    }
}

impl Engine {
    /// Begins a commit if one is wanted and none is under way, and sends what there is room for.
    pub(super) fn advance_commit(&mut self) -> u32 {
        if self.failed.is_some() {
            return 0;
        }
        if self.commit.is_none() && self.wants_commit() {
            let number = self.shared.commits.begin();
            let left = self.gather(number);
            self.commit = Some(Commit { number, left, flying: None });
            self.dirty_since = None;
        }
        let Some(commit) = &mut self.commit else { return 0 };
        if commit.flying.is_some() {
            return 0;
        }
        let Some(load) = commit.left.front() else { return 0 };
        if !load.records.is_empty() && !self.store.has_room(load.bytes, load.pages()) {
            self.store.checkpoint();
            return 0;
        }
        let Some(Load { records, freed, .. }) = commit.left.pop_front() else { return 0 };
        commit.flying = Some((self.store.append(&records), freed));
        1
    }

    fn wants_commit(&mut self) -> bool {
        let changed = self.shared.leaves.any_dirty() || self.has_to_say();
        if !changed {
            self.hurry = false;
        } else if self.dirty_since.is_none() {
            self.dirty_since = Some(self.now);
        }
        let old = self.dirty_since.is_some_and(|since| self.now >= since + OWN_COMMIT_NS);
        self.shared.commits.is_wanted() || changed && (old || self.hurry)
    }

    /// A batch is durable.
    pub(super) fn batch_is_durable(&mut self, batch: BatchId) {
        let Some(commit) = &mut self.commit else { return };
        let Some((_, freed)) = commit.flying.take_if(|(flying, _)| *flying == batch) else { return };
        let ended = commit.left.is_empty().then_some(commit.number);
        self.quarantine.freed(freed);
        if let Some(number) = ended {
            self.shared.commits.end(number);
            self.commit = None;
            self.commits += 1;
            self.hurry = false;
            self.review_alarms();
            self.shared.tell_waiters();
        }
    }

    /// Nothing is written any more: everybody is told.
    pub(super) fn fail(&mut self, error: IoError) {
        if self.failed.is_none() {
            self.failed = Some(error);
            self.shared.commits.fail();
            self.shared.tell_waiters();
        }
    }

    /// What a batch is not to exceed: it has to find room in an empty log.
    pub(super) fn limits(&self, (layers, bytes): (u64, u64)) -> Limits {
        let (bytes, pages) = self.store.batch(layers, bytes);
        Limits { bytes: bytes.min(BATCH), pages }
    }

    /// Everything that has changed, in batches: at least one, if it is empty.
    fn gather(&mut self, number: u64) -> VecDeque<Load> {
        let mut loads = VecDeque::new();
        let mut load = std::mem::take(&mut self.to_log);
        let named = load.named();
        let said = self.structure();
        let limits = self.limits(said.layers);
        let mut taken = std::mem::take(&mut self.taken);
        self.shared.leaves.take_dirty(&mut taken);
        // In the order in which they lie, which makes the log smaller and checkpoints straighter; but those that the log has
        // no place for yet come last.
        taken.sort_by_cached_key(|leaf| (!self.has_place(*leaf), self.shared.leaves.get(*leaf).key()));
        let first_new = taken.partition_point(|leaf| self.has_place(*leaf));
        let mut said = Some(said).filter(|said| !said.records.is_empty());
        let mut was_bound = false;
        for (nth, leaf) in taken.drain(..).enumerate() {
            if nth == first_new {
                load.append(said.take());
            }
            let is_bound = self.swaps.is_bound(self.shared.leaves.get(leaf).key());
            if is_bound && !was_bound && !load.records.is_empty() {
                // Two that belong together are not to be much more than any other batch.
                loads.push_back(std::mem::take(&mut load));
            }
            was_bound = is_bound;
            self.gather_leaf(number, leaf, &named, &mut load);
            if load.is_full(limits) && !is_bound {
                loads.push_back(std::mem::take(&mut load));
            }
        }
        load.append(said);
        self.taken = taken;
        self.swaps.gathered();
        if !load.records.is_empty() || loads.is_empty() {
            loads.push_back(load);
        }
        loads
    }

    /// What has changed of the layers themselves, as it is now: behind what was written before, so that whatever a power
    /// cut leaves of a commit, a snapshot that is there has all that was acknowledged before it; and in one batch, so that
    /// of a group there are all or none.
    fn structure(&mut self) -> Load {
        let mut load = Load::default();
        for id in std::mem::take(&mut self.layers_to_log) {
            if let Some(node) = self.nodes.by_id.get(&id) {
                load.push(Record::Layer(Box::new(node.logged())));
            }
        }
        for id in std::mem::take(&mut self.gone_to_log) {
            load.push(Record::Gone(id));
        }
        load
    }

    /// Whether the next commit has something to say that no entry says.
    pub(super) fn has_to_say(&self) -> bool {
        !self.to_log.records.is_empty() || !self.layers_to_log.is_empty() || !self.gone_to_log.is_empty()
    }

    /// Whether the log knows the layer of a leaf, and that it is large enough.
    pub(super) fn has_place(&self, leaf: u32) -> bool {
        let (layer, index) = self.shared.leaves.get(leaf).key();
        let end = (index + 1) * ENTRIES_PER_PAGE as u64;
        self.store.layers().get(&layer).is_some_and(|known| {
            let clusters = |size| self.nodes.clusters(size);
            let is_same = self.nodes.by_id.get(&layer).is_none_or(|node| node.layer.size == known.size);
            is_same || end <= clusters(known.size)
        })
    }

    fn gather_leaf(&mut self, number: u64, leaf: u32, said: &HashSet<u32>, load: &mut Load) {
        let mut freed = self.swaps.take_replaced(leaf);
        let shared = self.shared.clone();
        let page = shared.leaves.get(leaf);
        let (layer, index) = page.key();
        self.fresh.remove(&leaf);
        let dirty = page.take_dirty(number);
        let first = index * ENTRIES_PER_PAGE as u64;
        // Of one on its way out, too: what the log has not heard of cannot be given back.
        let Some(node) = self.nodes.by_id.get(&layer) else { return };
        let mut entries = [Entry::EMPTY; ENTRIES_PER_PAGE];
        for slot in slots(&dirty) {
            let cluster = first + slot as u64;
            let mut entry = page.entry(slot);
            let is_said = |on: u32| said.contains(&on) && !self.store.is_named(on);
            if let Some(on) = entry.cluster().filter(|_| entry.here() == 0) {
                if is_said(on) {
                    // The same commit gives it to this layer: it is taken away by the next one, which can say that it is free.
                    self.shared.mark(leaf, slot);
                    entries[slot] = entry;
                    continue;
                }
                entry = self.withdraw(layer, cluster, leaf, slot);
                if entry.cluster().is_none() {
                    node.map.usage.owned.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    freed.push(on);
                }
            }
            entries[slot] = entry;
        }
        let emptied = slots(&dirty).last().is_some_and(|last| entries[last] == Entry::EMPTY);
        if emptied && (0..ENTRIES_PER_PAGE).all(|slot| page.entry(slot) == Entry::EMPTY) {
            self.evicting.may_be_empty(leaf);
        }
        if dirty.iter().map(|word| word.count_ones()).sum::<u32>() as usize == ENTRIES_PER_PAGE
            && entries.iter().all(|entry| *entry == entries[0] && entry.cluster().is_none())
        {
            load.push(Record::Leaf { layer, leaf: index, entry: entries[0] });
        } else {
            for slot in slots(&dirty) {
                load.push(Record::Entry { layer, cluster: first + slot as u64, entry: entries[slot] });
            }
        }
        // One that was claimed since the last commit, and has lost what was there, is in no batch that counts.
        let (named, unnamed) = freed.into_iter().partition(|cluster| self.store.is_named(*cluster));
        load.free(named);
        load.freed.extend::<Vec<u32>>(unnamed);
    }

    /// Takes an entry's cluster away if nothing is there and nobody is about to put something there. Returns the entry as
    /// it is then.
    fn withdraw(&self, layer: u64, cluster: u64, leaf: u32, slot: usize) -> Entry {
        let page = self.shared.leaves.get(leaf);
        // Whoever puts data there holds a lock until the entry says so.
        if !self.shared.locks.try_lock(layer, cluster, u16::MAX) {
            self.shared.mark(leaf, slot);
            return page.entry(slot);
        }
        let mut now = page.entry(slot);
        while now.here() == 0 && now.cluster().is_some() {
            match page.change(slot, now, now.without_cluster()) {
                Ok(()) => now = now.without_cluster(),
                Err(other) => now = other,
            }
        }
        self.shared.locks.unlock(layer, cluster, u16::MAX);
        now
    }
}

fn space_leaf(cluster: u32) -> u32 {
    cluster / BITS_PER_PAGE as u32
}

/// The set bits.
fn slots(dirty: &[u64; DIRTY_WORDS]) -> impl Iterator<Item = usize> {
    dirty.iter().enumerate().flat_map(|(nth, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            left &= left.checked_sub(1)?;
            Some(nth * 64 + bit as usize)
        })
    })
}
