//! Volumes that become smaller: what lies behind the new end is gone for good, and its space comes back.

use pollux_core::{IoError, IoFlags, Op};

use super::judge::again;
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::Request;
use crate::thin::orders::Order;
use crate::thin::{ExtentKind, PoolError};

fn world() -> World {
    World::fresh(16 * MIB)
}

fn resize(world: &mut World, bytes: u64) -> Result<(), PoolError> {
    world.order(Order::Resize { uuid: uuid(10), bytes, allow_shrink: true }).map(|_| ())
}

fn all(byte: u8, clusters: u64) -> Vec<u8> {
    vec![byte; (clusters * CLUSTER) as usize]
}

#[test]
fn what_was_cut_off_is_zero_when_the_volume_is_larger_again() {
    for with_snapshot in [false, true] {
        let mut world = world();
        let free = world.info().free_bytes;
        world.create_volume(10, 8 * CLUSTER);
        let lane = world.lane(10, 0);
        world.write(lane, 0, 1, 8 * CLUSTER);
        if with_snapshot {
            world.snapshot(10, 11);
            world.write(lane, 3 * CLUSTER, 2, 2 * CLUSTER);
        }
        let refused = world.order(Order::Resize { uuid: uuid(10), bytes: 4 * CLUSTER, allow_shrink: false });
        assert_eq!(refused.unwrap_err().reason(), "would_shrink");
        assert_eq!(resize(&mut world, 4 * CLUSTER + 512).unwrap_err().reason(), "invalid");
        resize(&mut world, 4 * CLUSTER).unwrap();
        let past = world.floor.write(lane, 4 * CLUSTER, &[9; 512], IoFlags::empty());
        assert_eq!(past, Err(IoError::OutOfRange));
        let left = [all(1, 3), all(if with_snapshot { 2 } else { 1 }, 1)].concat();
        assert!(world.read(lane, 0, 4 * CLUSTER) == left, "while the rest is on its way out");
        world.floor.settle(2_000_000_000);
        let held = if with_snapshot { 8 + 1 } else { 4 };
        assert_eq!(world.info().free_bytes, free - held * CLUSTER, "what only it had behind the end is free");
        resize(&mut world, 8 * CLUSTER).unwrap();
        let check = |world: &mut World, lane| {
            assert!(world.read(lane, 0, 8 * CLUSTER) == [left.clone(), all(0, 4)].concat());
            if with_snapshot {
                let snapshot = world.lane(11, 1);
                assert!(world.read(snapshot, 0, 8 * CLUSTER) == all(1, 8), "the snapshot has what it had");
                world.close(snapshot);
            }
        };
        check(&mut world, lane);
        // A part of a sub-block: the rest of it is zero, and not the snapshot's.
        world.write(lane, 5 * CLUSTER + 512, 3, 512);
        let mut edge = vec![0; 4096];
        edge[512..1024].fill(3);
        assert!(world.read(lane, 5 * CLUSTER, 4096) == edge);
        world.discard(lane, 5 * CLUSTER, CLUSTER);
        let mut world = again(world);
        let lane = world.lane(10, 0);
        check(&mut world, lane);
        if with_snapshot {
            let (volume, snapshot) = (world.pool.volume(uuid(10)).unwrap(), world.pool.volume(uuid(11)).unwrap());
            let delta = world.meanwhile(|| volume.delta(&snapshot, 0, 100)).unwrap();
            let told: Vec<_> = delta.extents.iter().map(|e| (e.offset / CLUSTER, e.len / CLUSTER, e.kind)).collect();
            assert_eq!(told, [(3, 1, ExtentKind::Data), (4, 4, ExtentKind::Zero)]);
            // The snapshot goes into the volume, which still sees no more of it.
            world.order(Order::Delete { uuid: uuid(11) }).unwrap();
            world.floor.settle(2_000_000_000);
            assert!(world.read(lane, 0, 8 * CLUSTER) == [left.clone(), all(0, 4)].concat());
            assert_eq!(world.info().free_bytes, free - 4 * CLUSTER);
            let mut world = again(world);
            let lane = world.lane(10, 0);
            assert!(world.read(lane, 0, 8 * CLUSTER) == [left, all(0, 4)].concat());
        }
    }
}

/// Where the volume itself has nothing, not even a leaf of its map, what was cut off is still told.
#[test]
fn what_was_cut_off_is_in_the_delta() {
    const LEAF: u64 = 504 * CLUSTER;
    let mut world = world();
    world.create_volume(10, 3 * LEAF);
    let lane = world.lane(10, 0);
    world.write(lane, 2 * LEAF + CLUSTER, 1, CLUSTER);
    world.snapshot(10, 11);
    resize(&mut world, LEAF + 4 * CLUSTER).unwrap();
    resize(&mut world, 3 * LEAF).unwrap();
    let (volume, snapshot) = (world.pool.volume(uuid(10)).unwrap(), world.pool.volume(uuid(11)).unwrap());
    let told = |world: &mut World, since: bool| {
        let ask = || if since { volume.delta(&snapshot, 0, 100) } else { volume.own(0, 100) };
        world
            .meanwhile(ask)
            .unwrap()
            .extents
            .iter()
            .map(|e| (e.offset / CLUSTER, e.len / CLUSTER, e.kind))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&mut world, true), [(504 + 4, 2 * 504 - 4, ExtentKind::Zero)]);
    assert_eq!(told(&mut world, false), [], "it has nothing itself");
}

/// Requests that are in flight end; what they have written behind the new end is not there.
#[test]
fn a_volume_becomes_smaller_under_its_users() {
    let mut world = world();
    world.create_volume(10, 8 * CLUSTER);
    let (near, far) = (world.lane(10, 0), world.lane(10, 1));
    world.write(near, 0, 1, 8 * CLUSTER);
    let write = |world: &mut World, lane, cluster: u64| {
        world.floor.submit(lane, Request::write(cluster * CLUSTER + 512, vec![7; 1024], IoFlags::empty()))
    };
    let tickets = [write(&mut world, near, 1), write(&mut world, far, 6)];
    let answer = world.send(Order::Resize { uuid: uuid(10), bytes: 2 * CLUSTER, allow_shrink: true });
    while answer.try_recv().is_err() {
        world.floor.step();
    }
    world.floor.settle(2_000_000_000);
    let [here, cut_off] = tickets.map(|ticket| world.floor.take(ticket).expect("it has ended"));
    assert_eq!(here, Ok(Vec::new()));
    assert!(cut_off == Ok(Vec::new()) || cut_off == Err(IoError::OutOfRange), "{cut_off:?}");
    let late = world.floor.write(far, 7 * CLUSTER, &[8; 512], IoFlags::empty());
    assert_eq!(late, Err(IoError::OutOfRange));
    resize(&mut world, 8 * CLUSTER).unwrap();
    let mut expected = [all(1, 2), all(0, 6)].concat();
    expected[CLUSTER as usize + 512..][..1024].fill(7);
    assert!(world.read(far, 0, 8 * CLUSTER) == expected);
}

/// Snapshots of all sizes on top of each other, and what is left when some of them are deleted.
#[test]
fn a_chain_of_sizes_holds_what_each_had() {
    for deleted in [[21, 22, 23], [23, 22, 21], [22, 21, 23]] {
        let mut world = world();
        world.create_volume(10, 8 * CLUSTER);
        let lane = world.lane(10, 0);
        let mut held = Vec::new();
        for (nth, clusters) in [(1u8, 8), (2, 3), (3, 6), (4, 5)] {
            resize(&mut world, clusters * CLUSTER).unwrap();
            world.write(lane, (clusters - 1) * CLUSTER, nth, CLUSTER);
            world.write(lane, u64::from(nth) * 8192, nth, 4096);
            if nth < 4 {
                world.snapshot(10, 20 + u128::from(nth));
                let snapshot = world.lane(20 + u128::from(nth), 1);
                held.push((20 + u128::from(nth), world.read(snapshot, 0, clusters * CLUSTER)));
                world.close(snapshot);
            }
        }
        resize(&mut world, 8 * CLUSTER).unwrap();
        let mut expected = all(0, 8);
        (1..5u8).for_each(|nth| expected[usize::from(nth) * 8192..][..4096].fill(nth));
        for (cluster, nth) in [(2u64, 2u8), (4, 4)] {
            expected[(cluster * CLUSTER) as usize..][..CLUSTER as usize].fill(nth);
        }
        assert!(world.read(lane, 0, 8 * CLUSTER) == expected);
        for snapshot in deleted {
            world.order(Order::Delete { uuid: uuid(snapshot) }).unwrap();
            world.floor.settle(2_000_000_000);
            held.retain(|(number, _)| *number != snapshot);
            assert!(world.read(lane, 0, 8 * CLUSTER) == expected, "without {snapshot}");
            for (number, bytes) in &held {
                let other = world.lane(*number, 1);
                assert!(world.read(other, 0, bytes.len() as u64) == *bytes, "{number} without {snapshot}");
                world.close(other);
            }
        }
        let mut world = again(world);
        let lane = world.lane(10, 0);
        assert!(world.read(lane, 0, 8 * CLUSTER) == expected);
        assert_eq!(world.info().volumes[0].owned_bytes, 3 * CLUSTER);
    }
}

/// A thick volume needs no space to give some back.
#[test]
fn a_thick_volume_becomes_smaller_in_a_full_pool() {
    let mut world = world();
    let bytes = 32 * CLUSTER;
    let order = Order::Create { uuid: uuid(10), name: "t".into(), bytes, reserved: bytes, created: 1 };
    world.order(order).unwrap();
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, bytes);
    world.create_volume(11, 64 * MIB);
    let other = world.lane(11, 1);
    let mut at = 0;
    while world.floor.write(other, at, &all(3, 1), IoFlags::empty()).is_ok() {
        at += CLUSTER;
    }
    let before = world.info();
    assert!(before.full);
    resize(&mut world, 28 * CLUSTER).unwrap();
    (0..28).for_each(|cluster| world.write(lane, cluster * CLUSTER, 2, 4096));
    world.floor.settle(2_000_000_000);
    let info = world.info();
    let thick = &info.volumes[1];
    assert_eq!((thick.owned_bytes, thick.reserved_bytes), (28 * CLUSTER, 28 * CLUSTER));
    assert!(info.free_bytes > before.free_bytes, "{} and {}", info.free_bytes, before.free_bytes);
    assert_eq!(world.read(lane, 0, 8192), [[2; 4096], [1; 4096]].concat());
    drop(again(world));
}

/// A guest does not know at once, and what it asks for may lie behind all that there is of the map.
#[test]
fn whoever_asks_for_what_was_far_behind_the_end_is_told_so() {
    let mut world = world();
    world.create_volume(10, 100 << 30);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    resize(&mut world, 4 * CLUSTER).unwrap();
    for at in [4 * CLUSTER, 50 << 30, 1 << 60] {
        assert_eq!(world.floor.write(lane, at, &[9; 4096], IoFlags::empty()), Err(IoError::OutOfRange), "{at}");
        assert_eq!(world.floor.read(lane, at, 4096), Err(IoError::OutOfRange), "{at}");
        assert_eq!(world.floor.zero(lane, Op::Discard, at, CLUSTER), Err(IoError::OutOfRange), "{at}");
    }
    assert!(world.read(lane, 0, CLUSTER) == all(1, 1));
}
