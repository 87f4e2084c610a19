//! The pool itself: its name and its size change, and are the old or the new ones after a power cut at any instant.

use std::collections::BTreeSet;

use pollux_core::IoFlags;

use super::judge::clean;
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId};
use crate::testing::medium::{Geometry, Medium, Order as Arrival};
use crate::thin::orders::{Answer, Order};
use crate::thin::{PoolError, PoolInfo};

const BEFORE: u64 = 8 * MIB;
const AFTER: u64 = 12 * MIB + 4096;

fn world() -> (World, LaneId) {
    let medium = Medium::new(Geometry::with_512(BEFORE), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 64 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, 3 * CLUSTER);
    (world, lane)
}

/// Carries an order out and cuts the power at every instant; `seen` looks at what is there afterwards, and is told whether
/// the order had been answered.
fn cut_everywhere(world: &mut World, order: Order, mut seen: impl FnMut(&PoolInfo, bool)) -> Answer {
    let answer = world.send(order);
    let (mut known, mut answered) = (BTreeSet::new(), None);
    loop {
        for (choice, left) in world.medium.crashes(3, Arrival::InOrder) {
            if !known.insert((left.digest(), answered.is_some())) {
                continue;
            }
            clean(&left, "after the crash").unwrap_or_else(|what| panic!("{choice:?}: {what}"));
            let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
            seen(&after.info(), answered.is_some());
            let lane = after.lane(10, 1);
            assert_eq!(after.read(lane, 0, CLUSTER), vec![1; CLUSTER as usize], "{choice:?}");
            clean(&after.shut(), "after it was closed").unwrap_or_else(|what| panic!("{choice:?}: {what}"));
        }
        if let Some(answer) = answered {
            assert!(known.len() > 5, "{} media", known.len());
            return answer;
        }
        assert!(world.floor.step(), "never answered");
        answered = answer.try_recv().ok();
    }
}

#[test]
fn a_pool_has_its_old_name_or_its_new_one() {
    let (mut world, lane) = world();
    world.floor.flush(lane).unwrap();
    let (mut old, mut new) = (0, 0);
    let order = Order::RenamePool { name: "other".into() };
    cut_everywhere(&mut world, order, |info, answered| match info.name.as_str() {
        "pool" if !answered => old += 1,
        "other" => new += 1,
        name => panic!("{name}, answered: {answered}"),
    })
    .unwrap();
    assert!(old > 0 && new > 0, "{old} {new}");
    assert_eq!(world.info().name, "other");
    let bad = world.order(Order::RenamePool { name: "a/b".into() });
    assert!(matches!(bad, Err(PoolError::Invalid { .. })), "{bad:?}");
}

#[test]
fn a_pool_takes_what_its_base_has_grown_by_or_not_yet() {
    let (mut world, lane) = world();
    world.floor.flush(lane).unwrap();
    let before = world.info();
    world.medium.grow(AFTER);
    let sizes = BTreeSet::from([BEFORE, 12 * MIB]);
    let mut found = BTreeSet::new();
    let order = Order::Grow { bytes: AFTER };
    cut_everywhere(&mut world, order.clone(), |info, answered| {
        assert!(sizes.contains(&info.base_bytes) && (!answered || info.base_bytes == 12 * MIB), "{info:?}");
        found.insert(info.base_bytes);
    })
    .unwrap();
    assert_eq!(found, sizes);
    let after = world.info();
    assert_eq!(after.total_bytes - before.total_bytes, 4 * MIB);
    assert_eq!(after.free_bytes - before.free_bytes, 4 * MIB);
    // It can be used, and comes back.
    let mut at = 3 * CLUSTER;
    while world.floor.write(lane, at, &[2; CLUSTER as usize], IoFlags::empty()).is_ok() {
        at += CLUSTER;
    }
    assert!(at > BEFORE, "{at} bytes");
    world.order(order).unwrap();
    let mut world = World::open(&world.shut(), Floor::in_order(), 2, 3).unwrap();
    assert_eq!(world.info().base_bytes, 12 * MIB);
    world.order(Order::Delete { uuid: uuid(10) }).unwrap();
    world.floor.settle(2_000_000_000);
    assert!(world.info().free_bytes > before.total_bytes);
}

/// A checkpoint that runs already says what was so before; the answer waits for one that knows better.
#[test]
fn a_new_name_waits_for_a_checkpoint_of_its_own() {
    let (mut world, _) = world();
    let first = world.send(Order::Checkpoint);
    let mut steps = 0;
    while first.try_recv().is_err() {
        world.floor.step();
        steps += 1;
    }
    for early in 0..steps {
        let (mut world, _) = self::world();
        let first = world.send(Order::Checkpoint);
        (0..early).for_each(|_| {
            world.floor.step();
        });
        drop(first);
        world.order(Order::RenamePool { name: "other".into() }).unwrap();
        let left = world.medium.crash(crate::testing::medium::Crash::None, Arrival::InOrder);
        let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
        assert_eq!(after.info().name, "other", "asked for {early} steps after a checkpoint");
        after.forget();
        world.forget();
    }
}
