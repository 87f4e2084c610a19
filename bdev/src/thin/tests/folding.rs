//! Deleted snapshots on their way into what stands on them.

use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::Order;

use super::world::{CLUSTER, MIB, World, uuid};

#[test]
fn a_snapshot_is_what_it_was_until_its_deletion_is_durable() {
    let medium = Medium::new(Geometry::with_512(8 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 4 * CLUSTER);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.floor.flush(lane).unwrap();
    world.snapshot(10, 11);
    medium.rule(Rule::new(Effect::Hold).step("commit.log"));
    let answer = world.send(Order::Delete { uuid: uuid(11) });
    (0..1000).for_each(|_| {
        world.floor.step();
    });
    let write = world.floor.submit(lane, Request::write(0, vec![2; 4096], pollux_core::IoFlags::empty()));
    (0..1000).for_each(|_| {
        world.floor.step();
    });
    assert!(answer.try_recv().is_err(), "it is not durable");
    assert_eq!(world.floor.take(write).unwrap(), Ok(Vec::new()));
    let (mut there, mut gone) = (0, 0);
    for (choice, left) in medium.crashes(4, Arrival::InOrder) {
        let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
        if after.pool.volume(uuid(11)).is_none() {
            gone += 1;
        } else {
            there += 1;
            let snapshot = after.lane(11, 0);
            assert!(after.read(snapshot, 0, CLUSTER).iter().all(|byte| *byte == 1), "{choice:?}");
        }
        after.forget();
    }
    assert!(there > 0 && gone > 0, "{there} {gone}");
    world.forget();
}

/// Far more leaves than there is room for in memory, of the snapshot and of what it goes into; guests go on beside it.
#[test]
fn a_fold_of_more_leaves_than_fit_into_memory_ends() {
    const LEAF: u64 = 504 * CLUSTER;
    const MANY: u64 = 100;
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 1, 0).unwrap();
    world.create_volume(10, MANY * LEAF);
    let lane = world.lane(10, 0);
    for leaf in 0..MANY {
        world.write(lane, leaf * LEAF, 1, 8192);
        world.write(lane, (leaf * 5 + 7) % 504 * CLUSTER + leaf * LEAF, 2, 4096);
        world.floor.flush(lane).unwrap();
    }
    world.snapshot(10, 11);
    for leaf in 0..MANY {
        world.write(lane, leaf * LEAF + 4096, 3, 4096);
        world.floor.flush(lane).unwrap();
    }
    let expected = [[1; 4096], [3; 4096]].concat();
    let answer = world.send(Order::Delete { uuid: uuid(11) });
    for leaf in (0..MANY).rev().chain(0..MANY) {
        let at = (leaf * 5 + 7) % 504 * CLUSTER;
        let bytes = world.read(lane, leaf * LEAF, 8192);
        assert!(at < 8192 || bytes == expected, "leaf {leaf} meanwhile");
        world.write(lane, leaf * LEAF + 3 * CLUSTER, 5, 4096);
    }
    world.floor.settle(20_000_000_000);
    assert_eq!(answer.try_recv().unwrap().unwrap(), None);
    let info = world.info();
    assert_eq!(info.volumes.len(), 1, "it is still there");
    for leaf in 0..MANY {
        let at = (leaf * 5 + 7) % 504 * CLUSTER;
        if at >= 8192 && at != 3 * CLUSTER {
            assert!(world.read(lane, leaf * LEAF, 8192) == expected, "leaf {leaf}");
            assert!(world.read(lane, leaf * LEAF + at, 4096) == [2; 4096], "leaf {leaf}");
        }
        assert!(world.read(lane, leaf * LEAF + 3 * CLUSTER, 4096) == [5; 4096], "leaf {leaf}");
    }
    super::judge::counted(&world.info(), &super::judge::clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// A reader remembers where the layers below the head have their data; folding one of them frees clusters that it remembers,
/// bit by bit, and others write there at once.
#[test]
fn what_is_remembered_of_a_chain_is_forgotten_when_a_fold_frees_it() {
    const MANY: u64 = 60;
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, MANY * CLUSTER);
    let lane = world.lane(10, 0);
    for (nth, len) in [(0, CLUSTER), (1, 4096), (2, 4096)] {
        for cluster in 0..MANY {
            world.write(lane, cluster * CLUSTER + nth * 4096, nth as u8 + 1, len);
        }
        world.snapshot(10, 11 + u128::from(nth));
    }
    world.create_volume(20, 64 * MIB);
    let other = world.lane(20, 1);
    let mut next = 0;
    let mut fill = |world: &mut World| {
        let bytes = vec![9; CLUSTER as usize];
        let written = world.floor.write(other, next * CLUSTER, &bytes, pollux_core::IoFlags::empty());
        next += u64::from(written.is_ok());
        written.is_ok()
    };
    while fill(&mut world) {}
    let expected = world.read(lane, 0, MANY * CLUSTER);
    assert!(world.info().composite_bytes > 0);
    let answer = world.send(Order::Delete { uuid: uuid(12) });
    let mut reused = 0;
    for _ in 0..100 * MANY {
        reused += u64::from(fill(&mut world));
        assert!(world.read(lane, 0, MANY * CLUSTER) == expected, "after {reused} clusters that were freed");
        if reused == MANY {
            break;
        }
    }
    assert_eq!((answer.try_recv().unwrap().unwrap(), reused), (None, MANY));
    world.forget();
}
