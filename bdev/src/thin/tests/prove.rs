//! The pool as what `testing::proof` proves: by its orders, its volumes' channels, and its checker.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use super::driver::{id_of, name_of, uuid_of};
use super::judge::{clean, counted};
use super::world::World;
use crate::testing::expect::Id;
use crate::testing::floor::{Floor, LaneId};
use crate::testing::medium::Medium;
use crate::testing::proof::{self, Subject};
use crate::testing::stamp::SECTOR;
use crate::thin::Role;
use crate::thin::orders::{Answer, Order, SnapshotOf};

/// Longer than the pool waits for anything by itself.
const PATIENCE_NS: u64 = 3_000_000_000;

/// A pool on a medium with blocks of so many sectors.
pub(super) struct Proved<const BLOCK: u64> {
    world: World,
    orders: BTreeMap<u64, Receiver<Answer>>,
    next: u64,
}

impl<const BLOCK: u64> Subject for Proved<BLOCK> {
    const REACTORS: usize = 3;
    const BLOCK: u64 = BLOCK;

    fn create(medium: &Medium) {
        World::create(medium);
    }

    fn open(medium: &Medium, floor: Floor<'static>) -> Result<Self, String> {
        clean(medium, "before it is opened")?;
        let world = World::open(medium, floor, Self::REACTORS, 5 + medium.instants());
        let world = world.map_err(|error| error.to_string())?;
        Ok(Proved { world, orders: BTreeMap::new(), next: 0 })
    }

    fn floor(&mut self) -> &mut Floor<'static> {
        &mut self.world.floor
    }

    fn lane(&mut self, volume: Id, reactor: usize) -> LaneId {
        self.world.lane(uuid_of(volume).as_u128(), reactor)
    }

    fn order(&mut self, order: &proof::Order) -> u64 {
        let created = 1;
        let size = |sectors: u64| sectors * SECTOR as u64;
        let named = |id: &Id| uuid_of(*id);
        let order = match order {
            proof::Order::Create { volume, sectors } => {
                let (uuid, name, bytes) = (named(volume), name_of(*volume), size(*sectors));
                Order::Create { uuid, name, bytes, reserved: 0, created }
            }
            proof::Order::Snapshot(of) => {
                let one =
                    |(of, made): &(Id, Id)| SnapshotOf { volume: named(of), uuid: named(made), name: name_of(*made) };
                Order::Snapshot { of: of.iter().map(one).collect(), created }
            }
            proof::Order::Clone { snapshot, volume } => {
                Order::Clone { of: named(snapshot), uuid: named(volume), name: name_of(*volume), created }
            }
            proof::Order::Delete(id) => Order::Delete { uuid: named(id) },
            proof::Order::Rollback { volume, snapshot } => Order::Rollback { uuid: named(volume), to: named(snapshot) },
            proof::Order::Checkpoint => Order::Checkpoint,
            proof::Order::Resize { volume, sectors } => {
                Order::Resize { uuid: named(volume), bytes: size(*sectors), allow_shrink: true }
            }
        };
        self.next += 1;
        let answer = self.world.send(order);
        self.orders.insert(self.next, answer);
        self.next
    }

    fn answer(&mut self, order: u64) -> Option<Result<(), String>> {
        let answer = self.orders.get(&order)?.try_recv().ok()?;
        self.orders.remove(&order);
        Some(answer.map(|_| ()).map_err(|error| error.to_string()))
    }

    fn volumes(&mut self) -> Vec<(Id, u64)> {
        let info = self.world.info();
        let there = info.volumes.iter().filter(|volume| volume.role != Role::Leaving);
        there.filter_map(|volume| Some((id_of(volume.uuid)?, volume.bytes / SECTOR as u64))).collect()
    }

    fn check(&mut self) -> Result<(), String> {
        self.world.floor.settle(PATIENCE_NS);
        self.world.order(Order::Commit).map_err(|error| format!("no commit: {error}"))?;
        self.world.floor.settle(PATIENCE_NS);
        let report = clean(&self.world.medium, "after it was opened and committed")?;
        counted(&self.world.info(), &report)
    }
}
