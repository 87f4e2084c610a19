//! A store alone, without an engine: on memory here, on a medium that crashes in `crash`.

mod basics;
mod checkpoints;

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_core::{Bdev, Cx, Next, Ring};
use uuid::Uuid;

use super::*;
use crate::testing::{FileRing, ram};
use crate::thin::format::{Entry, LayerKind};

pub(super) const POOL: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
pub(super) const CLUSTER: u32 = 64 << 10;

pub(super) fn params(force: bool) -> CreateParams {
    CreateParams { name: "pool".into(), uuid: POOL, cluster_size: CLUSTER, created: 7, overcommit: 200, salt: 1, force }
}

/// A base of so many MiB.
pub(super) fn memory(mib: u64) -> Arc<dyn Bdev> {
    ram(512, mib << 11)
}

pub(super) fn blocking<R>(base: &Arc<dyn Bdev>, f: impl FnOnce(&mut Blocking<'_>) -> R) -> R {
    let mut ring = FileRing::default();
    let mut wait = |_: &mut dyn Ring| {};
    let mut blocking = Blocking::new(&**base, &mut ring, &mut wait).unwrap();
    f(&mut blocking)
}

pub(super) fn make(base: &Arc<dyn Bdev>) {
    blocking(base, |blocking| create(blocking, &params(false))).unwrap();
}

/// A store that is driven until it is idle.
pub(super) struct Rig {
    pub(super) store: Store,
    ring: FileRing,
}

impl Rig {
    pub(super) fn open(base: &Arc<dyn Bdev>, salt: u64) -> Result<Rig, StoreError> {
        let opened = blocking(base, |blocking| open(blocking, salt))?;
        let mut ring = FileRing::default();
        let mut store = Store::new(opened, base, None)?;
        store.attach(&mut Cx { now: 1, reactor: 0, ring: &mut ring }).unwrap();
        Ok(Rig { store, ring })
    }

    pub(super) fn run(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..1_000_000 {
            self.store.poll(&mut Cx { now: 1, reactor: 0, ring: &mut self.ring }, &mut events);
            if self.store.is_idle() && self.store.next() == Next::Idle {
                return events;
            }
        }
        panic!("the store never becomes idle");
    }

    pub(super) fn append(&mut self, records: &[Record]) {
        let id = self.store.append(records);
        let events = self.run();
        assert!(events.contains(&Event::Durable(id)), "{events:?}");
    }

    pub(super) fn load(&mut self, layer: u64, leaf: u64) -> BTreeMap<u64, Entry> {
        self.store.load(layer, leaf);
        for event in self.run() {
            if let Event::Loaded { layer: l, leaf: f, entries } = event {
                assert_eq!((l, f), (layer, leaf));
                return of_leaf(leaf, entries.unwrap().as_deref());
            }
        }
        panic!("no answer");
    }

    pub(super) fn allocate(&mut self, want: usize) -> Vec<u32> {
        let mut out = Vec::new();
        self.store.allocate(want, &mut out);
        out
    }

    pub(super) fn close(mut self) {
        self.run();
        self.store.detach(&mut Cx { now: 1, reactor: 0, ring: &mut self.ring });
    }
}

pub(super) fn of_leaf(leaf: u64, bits: Option<&LeafBits>) -> BTreeMap<u64, Entry> {
    let bits = bits.into_iter().flatten().zip(leaf * 504..);
    bits.map(|(bits, at)| (at, Entry::from_bits(*bits).unwrap())).filter(|(_, entry)| *entry != Entry::EMPTY).collect()
}

pub(super) fn layer(id: u64, size: u64) -> Layer {
    Layer {
        id,
        parent: None,
        uuid: Uuid::from_u128(u128::from(id)),
        kind: LayerKind::Head,
        name: format!("volume{id}"),
        size,
        levels: 0,
        root: Pointer::NONE,
        owned: 0,
        here: 0,
        quota: 0,
        reserved: 0,
        created: 9,
        origin: None,
    }
}

pub(super) fn new_layer(id: u64, size: u64) -> Record {
    Record::Layer(Box::new(layer(id, size)))
}

pub(super) fn entry(layer: u64, cluster: u64, entry: Entry) -> Record {
    Record::Entry { layer, cluster, entry }
}
