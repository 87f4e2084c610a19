//! What a checkpoint writes is what was logged, and the log can be cut.

use std::collections::BTreeMap;

use super::*;
use crate::rng::Rng;

impl Rig {
    pub(super) fn checkpoint(&mut self) {
        self.store.checkpoint();
        let events = self.run();
        assert!(
            events.iter().any(|event| matches!(event, Event::Checkpointed(_))),
            "{events:?} {:?}",
            self.store.failure()
        );
    }
}

/// What a pool should hold, and what is done to it.
struct Model {
    layers: BTreeMap<u64, BTreeMap<u64, Entry>>,
    rng: Rng,
    /// The clusters of a layer that are used.
    span: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Model { layers: BTreeMap::new(), rng: Rng::new(seed), span: 200_000 }
    }

    /// One random batch.
    fn batch(&mut self, rig: &mut Rig) {
        let (mut records, mut freed) = (Vec::new(), Vec::new());
        if self.layers.len() < 3 || self.rng.below(20) == 0 {
            let id = rig.store.next_layer();
            self.layers.insert(id, BTreeMap::new());
            records.push(new_layer(id, 1 << 40));
        }
        for _ in 0..self.rng.below(40) {
            let nth = self.rng.below(self.layers.len() as u64) as usize;
            let id = *self.layers.keys().nth(nth).unwrap();
            let map = self.layers.get_mut(&id).unwrap();
            let at = self.rng.below(self.span) / (1 << self.rng.below(12));
            let old = map.get(&at).copied().unwrap_or_default();
            let mut new = match self.rng.below(4) {
                0 => Entry::EMPTY.with_zero(self.rng.next() as u16),
                1 => old.with_zero(self.rng.next() as u16),
                _ => old,
            };
            if new == old {
                let Some(cluster) = new.cluster().or_else(|| rig.allocate(1).first().copied()) else { continue };
                new = Entry::on(cluster).with_zero(old.zero()).with_here(self.rng.next() as u16);
            }
            if let Some(cluster) = old.cluster().filter(|cluster| Some(*cluster) != new.cluster()) {
                freed.push(cluster);
            }
            map.insert(at, new);
            records.push(entry(id, at, new));
        }
        if self.layers.len() > 3 && self.rng.below(10) == 0 {
            let (id, map) = self.layers.pop_first().unwrap();
            freed.extend(map.values().filter_map(|entry| entry.cluster()));
            records.push(Record::Gone(id));
        }
        records.extend(freed.iter().map(|cluster| Record::Free { first: *cluster, count: 1 }));
        if rig.store.room() < records.len() * 300 {
            rig.checkpoint();
        }
        rig.append(&records);
        freed.iter().for_each(|cluster| rig.store.release(*cluster, 1));
    }

    /// Compares all of it.
    fn check(&self, rig: &mut Rig) {
        assert_eq!(rig.store.layers().keys().collect::<Vec<_>>(), self.layers.keys().collect::<Vec<_>>());
        let mut used = 0;
        for (id, map) in &self.layers {
            for leaf in 0..=self.span / 504 {
                let expected = map.range(leaf * 504..(leaf + 1) * 504).map(|(at, entry)| (*at, *entry));
                let expected: BTreeMap<_, _> = expected.filter(|(_, entry)| *entry != Entry::EMPTY).collect();
                assert_eq!(rig.load(*id, leaf), expected, "leaf {leaf} of layer {id}");
            }
            used += map.values().filter(|entry| entry.cluster().is_some()).count() as u64;
        }
        let metadata: u64 = rig.store.superblock.extents[1..].iter().map(|extent| u64::from(extent.count)).sum();
        assert_eq!(rig.store.free_clusters() + used + metadata, rig.store.total_clusters());
    }

    /// After a checkpoint with nothing logged since: what layers own is what they have.
    fn check_owned(&self, rig: &Rig) {
        for (id, map) in &self.layers {
            let layer = &rig.store.layers()[id];
            let owned = map.values().filter(|entry| entry.cluster().is_some()).count() as u64;
            let here: u32 = map.values().map(|entry| entry.here().count_ones()).sum();
            assert_eq!((layer.owned, layer.here), (owned, u64::from(here)), "layer {id}");
        }
    }
}

#[test]
fn random_batches_checkpoints_and_starts() {
    for seed in 0..8 {
        let base = memory(64 + seed * 40);
        make(&base);
        let mut model = Model::new(seed);
        let mut salt = 2;
        let mut rig = Rig::open(&base, salt).unwrap();
        for step in 0..60 {
            model.batch(&mut rig);
            match model.rng.below(8) {
                0 => {
                    rig.checkpoint();
                    model.check_owned(&rig);
                }
                1 => {
                    rig.close();
                    salt += 1;
                    rig = Rig::open(&base, salt).unwrap();
                }
                _ => {}
            }
            if step % 20 == 19 {
                model.check(&mut rig);
            }
        }
        rig.checkpoint();
        model.check(&mut rig);
        model.check_owned(&rig);
        rig.close();
        let mut rig = Rig::open(&base, 1000).unwrap();
        model.check(&mut rig);
        model.check_owned(&rig);
        rig.close();
    }
}
