//! What a commit says is gathered in parts, so that no pass takes long, however much has changed.
//!
//! A commit takes the dirty stack when it begins. Then the leaves are sorted, then what has changed of their entries goes
//! into batches. Both go on while requests change entries: one that is changed after the commit has begun is in it or in the
//! next one, and whoever waits for a commit waits for one that begins later. What else changes maps, the engine itself
//! (orders, swaps, folds, removals, evictions), stands still until all is gathered: what belongs together is never half
//! said.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

use super::Engine;
use super::load::Load;
use super::space::runs;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Record};
use crate::thin::shared::{DIRTY_WORDS, DirtyLeaves};

/// Entries that are looked at in one pass, roughly: some tens of microseconds.
pub(super) const PART: usize = 128;
/// What sorting a leaf costs, in entries.
const SORTING: usize = 2;

/// In the order in which they are said: those that the log has no place for yet come last, then as they lie, which makes
/// the log smaller and checkpoints straighter.
type Place = (bool, (u64, u64));

/// A commit's leaves, and what is to be said beside their entries.
pub(super) struct Gathering {
    /// Those that have changed and are not sorted yet.
    stack: DirtyLeaves,
    sorted: BTreeMap<Place, u32>,
    /// Clusters that what removals and folds say has named.
    named: HashSet<u32>,
    /// What has changed of the layers: behind all that the log has a place for, before the rest.
    structure: Option<Load>,
    /// Of these: how many, and their bytes.
    layers: (u64, u64),
    /// The batch that is filled.
    load: Load,
    /// The next leaf goes into the same batch as the one before.
    bound: bool,
    /// Nothing has been said yet.
    silent: bool,
}

impl Gathering {
    /// Pages that a checkpoint needs for what it holds.
    pub(super) fn pages(&self) -> u64 {
        self.load.pages() + self.structure.as_ref().map_or(0, Load::pages)
    }

    /// A batch is full.
    fn say(&mut self, loads: &mut VecDeque<Load>) {
        self.silent = false;
        loads.push_back(std::mem::take(&mut self.load));
    }
}

impl Engine {
    /// A commit begins: what has changed until now is in it.
    pub(super) fn begin_gathering(&mut self) -> Gathering {
        let mut load = std::mem::take(&mut self.to_log);
        self.say_moved(&mut load);
        let structure = self.structure();
        Gathering {
            stack: self.shared.leaves.take_dirty(),
            sorted: BTreeMap::new(),
            named: load.named(),
            layers: structure.layers,
            structure: Some(structure).filter(|said| !said.records.is_empty()),
            load,
            bound: false,
            silent: true,
        }
    }

    /// Goes on for a while; batches that are full come to the end of `loads`. Returns whether that was all, in one batch at
    /// least, if it is an empty one.
    pub(super) fn gather(&mut self, number: u64, gathering: &mut Gathering, loads: &mut VecDeque<Load>) -> bool {
        let shared = self.shared.clone();
        let mut left = PART;
        while let Some(leaf) = gathering.stack.next(&shared.leaves) {
            let key @ (layer, index) = shared.leaves.get(leaf).key();
            // One that is bound to the next has its place beside it.
            let last = index + u64::from(self.swaps.is_bound(key));
            gathering.sorted.insert((!self.has_place_for(layer, last), key), leaf);
            left = left.saturating_sub(SORTING);
            if left == 0 {
                return false;
            }
        }
        while left > 0 || gathering.bound {
            let Some(((is_new, key), leaf)) = gathering.sorted.pop_first() else {
                self.end_gathering(gathering, loads);
                return true;
            };
            if is_new {
                gathering.load.append(gathering.structure.take());
            }
            let is_bound = self.swaps.is_bound(key);
            if is_bound && !gathering.bound && !gathering.load.records.is_empty() {
                // Two that belong together are not to be much more than any other batch.
                gathering.say(loads);
            }
            gathering.bound = is_bound;
            let Gathering { named, load, .. } = gathering;
            let looked_at = self.gather_leaf(number, (leaf, key), named, load);
            left = left.saturating_sub(looked_at + 1);
            if gathering.load.is_full(self.limits(gathering.layers)) && !is_bound {
                gathering.say(loads);
            }
        }
        false
    }

    fn end_gathering(&mut self, gathering: &mut Gathering, loads: &mut VecDeque<Load>) {
        gathering.load.append(gathering.structure.take());
        self.swaps.gathered();
        if !gathering.load.records.is_empty() || gathering.silent {
            gathering.say(loads);
        }
    }

    /// What has changed of the layers themselves, as it is now: behind what was written before, so that whatever a power
    /// cut leaves of a commit, a snapshot that is there has all that was acknowledged before it; and in one batch, so that
    /// of a group there are all or none.
    fn structure(&mut self) -> Load {
        let mut load = Load::default();
        for id in std::mem::take(&mut self.layers_to_log) {
            if let Some(node) = self.nodes.by_id().get(&id) {
                load.push(Record::Layer(Box::new(node.logged())));
            }
        }
        for id in std::mem::take(&mut self.gone_to_log) {
            load.push(Record::Gone(id));
        }
        load
    }

    /// What stands on something else than before comes before its entries: those may hold what that has, beside what a guest
    /// has written of a sub-block. The log knows the layers, and what they stand on: an order waits for its commit.
    fn say_moved(&mut self, load: &mut Load) {
        for id in std::mem::take(&mut self.moved_to_log) {
            if let Some(node) = self.nodes.by_id().get(&id) {
                load.push(Record::Layer(Box::new(node.logged())));
            }
        }
    }

    /// Whether the next commit has something to say that no entry says.
    pub(super) fn has_to_say(&self) -> bool {
        let of_layers = !self.layers_to_log.is_empty() || !self.moved_to_log.is_empty() || !self.gone_to_log.is_empty();
        of_layers || !self.to_log.records.is_empty()
    }

    /// Whether the log knows the layer of a leaf, and that it is large enough.
    pub(super) fn has_place(&self, leaf: u32) -> bool {
        let (layer, index) = self.shared.leaves.get(leaf).key();
        self.has_place_for(layer, index)
    }

    fn has_place_for(&self, layer: u64, index: u64) -> bool {
        let end = (index + 1) * ENTRIES_PER_PAGE as u64;
        self.store.layers().get(&layer).is_some_and(|known| {
            let clusters = |size| self.nodes.clusters(size);
            let is_same = self.nodes.by_id().get(&layer).is_none_or(|node| node.layer.size == known.size);
            is_same || end <= clusters(known.size)
        })
    }

    /// What has changed of a leaf goes into a batch; how many entries that are.
    fn gather_leaf(
        &mut self,
        number: u64,
        (leaf, key): (u32, (u64, u64)),
        said: &HashSet<u32>,
        load: &mut Load,
    ) -> usize {
        let shared = self.shared.clone();
        let page = shared.leaves.get(leaf);
        let dirty = page.take_dirty(number);
        if page.key() != key {
            // It has become another one since: it is that one's next commit that has it.
            slots(&dirty).for_each(|slot| self.shared.mark(leaf, slot));
            return 0;
        }
        let (layer, index) = key;
        let pared = page.take_pared(&dirty);
        let mut freed = self.swaps.take_replaced(leaf);
        self.fresh.remove(&leaf);
        let first = index * ENTRIES_PER_PAGE as u64;
        // Of one on its way out, too: what the log has not heard of cannot be given back.
        let Some(node) = self.nodes.by_id().get(&layer) else { return 0 };
        let changed = dirty.iter().map(|word| word.count_ones()).sum::<u32>() as usize;
        let takes_discards = self.store.takes_discards();
        let (mut entries, mut last) = ([Entry::EMPTY; ENTRIES_PER_PAGE], None);
        for slot in slots(&dirty) {
            let cluster = first + slot as u64;
            let mut entry = page.entry(slot);
            let is_said = |on: u32| said.contains(&on) && !self.store.is_named(on);
            if let Some(on) = entry.cluster().filter(|_| entry.here() == 0) {
                if is_said(on) {
                    // The same commit gives it to this layer: it is taken away by the next one, which can say that it is free.
                    self.shared.mark(leaf, slot);
                    (entries[slot], last) = (entry, Some(entry));
                    continue;
                }
                entry = self.withdraw(layer, cluster, leaf, slot);
                if entry.cluster().is_none() {
                    node.map.usage.owned.fetch_sub(1, Relaxed);
                    freed.push(on);
                }
            }
            (entries[slot], last) = (entry, Some(entry));
            let lost = pared[slot / 64] >> (slot % 64) & 1 == 1 && takes_discards;
            if entry.here() == 0 {
                self.telling.forget(layer, cluster);
            } else {
                load.freed.parts.extend(self.telling.gathered(layer, cluster, number, lost));
            }
        }
        if last == Some(Entry::EMPTY) && (0..ENTRIES_PER_PAGE).all(|slot| page.entry(slot) == Entry::EMPTY) {
            self.evicting.may_be_empty(leaf);
        }
        if changed == ENTRIES_PER_PAGE && entries.iter().all(|entry| *entry == entries[0] && entry.cluster().is_none())
        {
            load.push(Record::Leaf { layer, leaf: index, entry: entries[0] });
        } else {
            load.push_entries(layer, index, slots(&dirty).map(|slot| (first + slot as u64, entries[slot])));
        }
        // One that was claimed since the last commit, and has lost what was there, is in no batch that counts.
        let (named, unnamed) = freed.into_iter().partition(|cluster| self.store.is_named(*cluster));
        load.free(named);
        load.freed.clusters.extend(runs(unnamed));
        changed
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
