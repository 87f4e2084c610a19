//! The orders of a storm: which there are, and how often each is given.

use std::collections::BTreeSet;

use super::super::world::MIB;
use super::Storm;
use crate::testing::expect::Id;

/// Volumes and snapshots, about.
const MOST: usize = 12;

/// What there is to give an order about: for sure there, and not about to be deleted.
pub(super) struct Scene {
    snapshots: Vec<Id>,
    volumes: Vec<Id>,
    /// There are many already.
    many: bool,
}

/// One kind of order. Where there is nothing to do it to it is not given.
struct Kind {
    /// How often: of the sum of all.
    weight: u64,
    give: fn(&mut Storm<'_>, &Scene) -> Option<()>,
}

const fn kind(weight: u64, give: fn(&mut Storm<'_>, &Scene) -> Option<()>) -> Kind {
    Kind { weight, give }
}

/// All of them. One at a time is under way, and requests are.
const ORDERS: &[Kind] = &[
    kind(4, create),
    kind(6, snapshot),
    kind(2, clone_of),
    kind(2, clone_outside),
    kind(2, delete_snapshot),
    kind(2, delete),
    kind(2, grow),
    kind(2, shrink),
    kind(2, inflate),
    kind(3, decouple),
    kind(2, rollback),
    kind(1, set_read_only),
    kind(2, set_parent),
    kind(1, set_parent_bdev),
    kind(4, checkpoint),
    kind(1, rename_pool),
    kind(1, grow_pool),
];

impl Storm<'_> {
    /// Gives some order.
    pub(super) fn order(&mut self) {
        self.orders += 1;
        let present = self.driver.expect.present();
        let many = present.len() >= MOST;
        let stays = present.into_iter().filter(|id| Some(*id) != self.closing);
        let (snapshots, volumes) = stays.partition(|id| self.driver.expect.is_snapshot(*id));
        let scene = Scene { snapshots, volumes, many };
        let mut drawn = self.rng.below(ORDERS.iter().map(|kind| kind.weight).sum());
        let drawn = ORDERS.iter().find(|kind| {
            let here = drawn < kind.weight;
            drawn = drawn.saturating_sub(kind.weight);
            here
        });
        drawn.and_then(|kind| (kind.give)(self, &scene));
    }

    /// The size of a cluster in sectors.
    pub(super) fn cluster(&self) -> u64 {
        self.weather.cluster / 512
    }
}

fn create(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let clusters = storm.weather.sizes[storm.rng.below(4) as usize];
    let sectors = clusters * storm.cluster();
    if !scene.many {
        storm.driver.create(sectors);
    }
    Some(())
}

/// Of one or several volumes.
fn snapshot(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let some: BTreeSet<Id> = (0..1 + storm.rng.below(3)).filter_map(|_| storm.pick(&scene.volumes)).collect();
    (!scene.many && !some.is_empty()).then(|| drop(storm.driver.snapshot(&some.into_iter().collect::<Vec<_>>())))
}

fn clone_of(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let snapshot = storm.pick(&scene.snapshots)?;
    if !scene.many {
        storm.driver.clone_of(snapshot);
    }
    Some(())
}

/// Of a bdev outside of the pool, of which all counts that the clone has, or a part that ends anywhere.
fn clone_outside(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let sectors = storm.weather.sizes[storm.rng.below(4) as usize].min(8) * storm.cluster();
    let counts = if storm.rng.below(2) == 0 { sectors } else { 1 + storm.rng.below(sectors) };
    if !scene.many {
        storm.driver.clone_outside(sectors, counts);
    }
    Some(())
}

/// When nothing of it is in flight any more.
fn delete_snapshot(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let snapshot = storm.pick(&scene.snapshots)?;
    storm.closing.get_or_insert(snapshot);
    Some(())
}

fn delete(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let all = scene.volumes.iter().chain(scene.snapshots.iter().filter(|_| scene.many));
    let id = storm.pick(&all.copied().collect::<Vec<_>>())?;
    storm.closing.get_or_insert(id);
    Some(())
}

fn grow(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    let more = storm.cluster() * (1 + storm.rng.below(2));
    storm.driver.resize(id, storm.driver.expect.sectors(id) + more);
    Some(())
}

/// To any number of clusters.
fn shrink(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    let clusters = 1 + storm.rng.below(storm.driver.expect.sectors(id) / storm.cluster());
    storm.driver.resize(id, clusters * storm.cluster());
    Some(())
}

fn inflate(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    storm.driver.inflate(id, false);
    Some(())
}

fn decouple(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    storm.driver.inflate(id, true);
    Some(())
}

/// To the snapshot that it stands on.
fn rollback(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let below = |id: &Id| storm.driver.parents.get(id).map(|snapshot| (*id, *snapshot));
    let pairs: Vec<(Id, Id)> =
        scene.volumes.iter().filter_map(below).filter(|(_, below)| scene.snapshots.contains(below)).collect();
    let (volume, snapshot) = *pairs.get(storm.rng.below(pairs.len().max(1) as u64) as usize)?;
    storm.driver.rollback(volume, snapshot);
    Some(())
}

/// With many snapshots there are enough that nobody writes.
fn set_read_only(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    (!scene.many && scene.volumes.len() > 1).then(|| storm.driver.set_read_only(id))
}

/// Any snapshot of its size.
fn set_parent(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    let (sectors, below) = (storm.driver.expect.sectors(id), storm.driver.parents.get(&id).copied());
    let fits = |other: &Id| storm.driver.expect.sectors(*other) == sectors && Some(*other) != below;
    let snapshots: Vec<Id> = scene.snapshots.iter().copied().filter(fits).collect();
    let snapshot = storm.pick(&snapshots)?;
    storm.driver.set_parent(id, snapshot);
    Some(())
}

/// A bdev outside of the pool, of which a part counts that ends anywhere, or all that the volume has, if that is not much.
fn set_parent_bdev(storm: &mut Storm<'_>, scene: &Scene) -> Option<()> {
    let id = storm.pick(&scene.volumes)?;
    let sectors = storm.driver.expect.sectors(id).min(8 * storm.cluster());
    let counts = if storm.rng.below(2) == 0 { sectors } else { 1 + storm.rng.below(sectors) };
    storm.driver.set_parent_bdev(id, counts);
    Some(())
}

fn checkpoint(storm: &mut Storm<'_>, _: &Scene) -> Option<()> {
    storm.driver.checkpoint();
    Some(())
}

fn rename_pool(storm: &mut Storm<'_>, _: &Scene) -> Option<()> {
    let name = format!("pool{}", storm.rng.below(100));
    storm.driver.rename_pool(&name);
    Some(())
}

fn grow_pool(storm: &mut Storm<'_>, _: &Scene) -> Option<()> {
    let bytes = storm.driver.world.medium.geometry().bytes + MIB;
    (bytes <= storm.weather.most).then(|| storm.driver.grow_pool(bytes))
}
