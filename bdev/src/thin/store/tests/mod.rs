//! A store alone, without an engine: on memory here, on a medium that crashes in `crash`.

mod basics;
mod checkpoints;
mod crafted;
mod crash;
mod model;
mod replays;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;

use pollux_core::{Bdev, Cx, Next, Ring};
use uuid::Uuid;

use super::*;
use crate::testing::medium::Medium;
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

/// The power went off.
pub(super) struct Off;

/// Leaves whatever waits for a medium without power.
pub(super) fn leave_if(off: bool) {
    if off {
        std::panic::resume_unwind(Box::new(Off));
    }
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

/// Blocking code on a medium that announces its steps, and whose power may go off.
pub(super) fn on_medium<R>(medium: &Medium, f: impl FnOnce(&mut Blocking<'_>) -> R) -> R {
    let mut ring = FileRing::default();
    let mut wait = |_: &mut dyn Ring| leave_if(!medium.powered());
    let blocking = Blocking::new(medium, &mut ring, &mut wait).unwrap();
    f(&mut blocking.with_steps(Some(Arc::new(medium.clone()))))
}

/// A store that is driven until it is idle.
pub(super) struct Rig {
    pub(super) store: Store,
    ring: FileRing,
    medium: Option<Medium>,
}

impl Rig {
    pub(super) fn open(base: &Arc<dyn Bdev>, salt: u64) -> Result<Rig, StoreError> {
        let opened = blocking(base, |blocking| open(blocking, salt))?;
        Self::with(opened, base, None)
    }

    /// On a medium whose power may go off: then this, and whatever waits, ends with [`Off`].
    pub(super) fn on(medium: &Medium, salt: u64) -> Result<Rig, StoreError> {
        let base: Arc<dyn Bdev> = Arc::new(medium.clone());
        let opened = on_medium(medium, |blocking| open(blocking, salt))?;
        Self::with(opened, &base, Some(medium.clone()))
    }

    fn with(opened: Opened, base: &Arc<dyn Bdev>, medium: Option<Medium>) -> Result<Rig, StoreError> {
        let mut ring = FileRing::default();
        let steps = medium.clone().map(|medium| Arc::new(medium) as Arc<dyn Steps>);
        let mut store = Store::new(opened, base, steps)?;
        store.attach(&mut Cx { now: 1, reactor: 0, ring: &mut ring }).unwrap();
        Ok(Rig { store, ring, medium })
    }

    pub(super) fn run(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..1_000_000 {
            self.store.poll(&mut Cx { now: 1, reactor: 0, ring: &mut self.ring }, &mut events);
            leave_if(self.medium.as_ref().is_some_and(|medium| !medium.powered()));
            if self.store.is_idle() && self.store.next() == Next::Idle {
                return events;
            }
        }
        panic!("the store never becomes idle");
    }

    /// One poll.
    pub(super) fn turn(&mut self) {
        let mut events = Vec::new();
        self.store.poll(&mut Cx { now: 1, reactor: 0, ring: &mut self.ring }, &mut events);
        assert!(events.is_empty(), "{events:?}");
    }

    pub(super) fn checkpoint(&mut self) {
        self.store.checkpoint();
        let events = self.run();
        let done = events.iter().any(|event| matches!(event, Event::Checkpointed(_)));
        assert!(done, "{events:?} {:?}", self.store.failure());
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
        origin_bytes: 0,
        sees: None,
        warn_percent: 0,
    }
}

pub(super) fn new_layer(id: u64, size: u64) -> Record {
    Record::Layer(Box::new(layer(id, size)))
}

pub(super) fn entry(layer: u64, cluster: u64, entry: Entry) -> Record {
    Record::Entry { layer, cluster, entry }
}
