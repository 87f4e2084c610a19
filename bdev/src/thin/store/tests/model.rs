//! What a pool should hold, and random things that are done to it as an engine would.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::rng::Rng;

/// A random batch, and what it changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    pub(super) freed: Vec<u32>,
    /// Clusters that got an owner: it has written to them before.
    pub(super) given: Vec<(u32, u64, u64)>,
}

/// See the module's description.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) layers: BTreeMap<u64, BTreeMap<u64, Entry>>,
    rng: Rng,
    /// Which clusters of a layer are used.
    places: Vec<u64>,
    span: u64,
}

impl Model {
    /// All over the first `span` clusters.
    pub(super) fn new(seed: u64, span: u64) -> Self {
        Model { layers: BTreeMap::new(), rng: Rng::new(seed), places: Vec::new(), span }
    }

    /// At these places only.
    pub(super) fn at(seed: u64, places: &[u64]) -> Self {
        Model { places: places.to_vec(), ..Model::new(seed, 0) }
    }

    pub(super) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn place(&mut self) -> u64 {
        match self.places.len() as u64 {
            0 => self.rng.below(self.span) / (1 << self.rng.below(12)),
            count => self.places[self.rng.below(count) as usize],
        }
    }

    /// A random batch of up to so many entries, as if it were durable.
    pub(super) fn draw(&mut self, rig: &mut Rig, most: u64) -> Batch {
        let mut batch = Batch::default();
        if self.layers.len() < 3 || self.rng.below(20) == 0 {
            let id = rig.store.next_layer();
            self.layers.insert(id, BTreeMap::new());
            batch.records.push(new_layer(id, 1 << 40));
        }
        let mut places = BTreeSet::new();
        for _ in 0..self.rng.below(most) {
            let nth = self.rng.below(self.layers.len() as u64) as usize;
            let id = *self.layers.keys().nth(nth).unwrap();
            let at = self.place();
            if places.insert((id, at)) {
                self.change(id, at, rig, &mut batch);
            }
        }
        if self.layers.len() > 3 && self.rng.below(6) == 0 {
            self.end_one(&mut batch);
        }
        batch.records.extend(batch.freed.iter().map(|cluster| Record::Free { first: *cluster, count: 1 }));
        batch
    }

    fn change(&mut self, id: u64, at: u64, rig: &mut Rig, batch: &mut Batch) {
        let old = self.layers[&id].get(&at).copied().unwrap_or_default();
        let new = match self.rng.below(4) {
            0 => Entry::EMPTY.with_zero(self.rng.next() as u16),
            1 => old.with_zero(self.rng.next() as u16),
            _ => {
                let given = if old.cluster().is_none() { rig.allocate(1).first().copied() } else { None };
                batch.given.extend(given.map(|cluster| (cluster, id, at)));
                let Some(cluster) = old.cluster().or(given) else { return };
                Entry::on(cluster).with_zero(old.zero()).with_here(self.rng.next() as u16)
            }
        };
        batch.freed.extend(old.cluster().filter(|cluster| Some(*cluster) != new.cluster()));
        self.layers.get_mut(&id).unwrap().insert(at, new);
        batch.records.push(entry(id, at, new));
    }

    /// The oldest layer goes, if the batch has nothing of it.
    fn end_one(&mut self, batch: &mut Batch) {
        let id = *self.layers.keys().next().unwrap();
        let named = |record: &Record| matches!(record, Record::Entry { layer, .. } if *layer == id);
        if batch.records.iter().any(named) {
            return;
        }
        for (at, old) in self.layers.remove(&id).unwrap() {
            if let Some(cluster) = old.cluster() {
                batch.records.push(entry(id, at, Entry::EMPTY));
                batch.freed.push(cluster);
            }
        }
        batch.records.push(Record::Gone(id));
    }

    /// Draws a batch and appends it.
    pub(super) fn batch(&mut self, rig: &mut Rig) {
        let batch = self.draw(rig, 40);
        if rig.store.room() < batch.records.len() * 300 {
            rig.checkpoint();
        }
        rig.append(&batch.records);
        batch.freed.iter().for_each(|cluster| rig.store.release(*cluster, 1));
    }

    fn leaves(&self) -> BTreeSet<u64> {
        let places = self.places.iter().map(|at| at / 504);
        if self.places.is_empty() { (0..=self.span / 504).collect() } else { places.collect() }
    }

    /// What differs from what is there.
    pub(super) fn difference(&self, rig: &mut Rig) -> Option<String> {
        let there: Vec<u64> = rig.store.layers().keys().copied().collect();
        if !there.iter().eq(self.layers.keys()) {
            return Some(format!("layers {there:?} instead of {:?}", self.layers.keys()));
        }
        let mut used = 0;
        for (id, map) in &self.layers {
            for leaf in self.leaves() {
                let expected = map.range(leaf * 504..(leaf + 1) * 504).map(|(at, entry)| (*at, *entry));
                let expected: BTreeMap<_, _> = expected.filter(|(_, entry)| *entry != Entry::EMPTY).collect();
                let found = rig.load(*id, leaf);
                if found != expected {
                    return Some(format!("leaf {leaf} of layer {id} is {found:?} instead of {expected:?}"));
                }
            }
            used += map.values().filter(|entry| entry.cluster().is_some()).count() as u64;
        }
        let metadata: u64 = rig.store.superblock.extents[1..].iter().map(|extent| u64::from(extent.count)).sum();
        let (free, total) = (rig.store.free_clusters(), rig.store.total_clusters());
        (free + used + metadata != total).then(|| format!("{free} free, {used} used, {metadata} metadata of {total}"))
    }

    /// Compares all of it.
    pub(super) fn check(&self, rig: &mut Rig) {
        assert_eq!(self.difference(rig), None);
    }

    /// After a checkpoint with nothing logged since: what layers own is what they have.
    pub(super) fn check_owned(&self, rig: &Rig) {
        for (id, map) in &self.layers {
            let layer = &rig.store.layers()[id];
            let owned = map.values().filter(|entry| entry.cluster().is_some()).count() as u64;
            let here: u32 = map.values().map(|entry| entry.here().count_ones()).sum();
            assert_eq!((layer.owned, layer.here), (owned, u64::from(here)), "layer {id}");
        }
    }
}
