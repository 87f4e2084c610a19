//! What is written is read, whatever happens to the volume meanwhile.

use pollux_core::{IoFlags, Op};

use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::{Order, SnapshotOf};

fn world() -> World {
    World::fresh(64 * MIB)
}

fn again(world: World) -> World {
    world.reopened()
}

#[test]
fn a_volume_holds_what_was_written() {
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 0);
    assert!(world.read(lane, 0, MIB).iter().all(|byte| *byte == 0));
    world.write(lane, 4096, 1, 8192);
    world.write(lane, CLUSTER - 512, 2, 1024);
    world.write(lane, 5 * CLUSTER + 1024, 3, 512);
    world.floor.flush(lane).unwrap();
    let check = |world: &mut World, lane| {
        let bytes = world.read(lane, 0, 8 * CLUSTER);
        for (at, byte) in bytes.iter().enumerate() {
            let at = at as u64;
            let expected = match at {
                4096..12288 => 1,
                at if (CLUSTER - 512..CLUSTER + 512).contains(&at) => 2,
                at if (5 * CLUSTER + 1024..5 * CLUSTER + 1536).contains(&at) => 3,
                _ => 0,
            };
            assert_eq!(*byte, expected, "byte {at}");
        }
    };
    check(&mut world, lane);
    let info = world.info();
    assert_eq!(info.volumes[0].owned_bytes, 3 * CLUSTER);
    assert_eq!(info.volumes[0].written_bytes, 5 * 4096);
    let mut world = again(world);
    let lane = world.lane(10, 1);
    check(&mut world, lane);
    let info = world.info();
    assert_eq!((info.volumes[0].owned_bytes, info.volumes[0].written_bytes), (3 * CLUSTER, 5 * 4096));
}

#[test]
fn snapshots_and_clones_hold_what_there_was() {
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, 3 * CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, CLUSTER, 2, CLUSTER);
    world.write(lane, 2 * CLUSTER + 512, 3, 512);
    world.clone_of(11, 12);
    let clone = world.lane(12, 1);
    world.write(clone, 0, 4, 4096);
    world.discard(clone, CLUSTER, CLUSTER);
    let snapshot = world.lane(11, 0);
    let check = |world: &mut World, volume, snapshot, clone| {
        let at = |bytes: &[u8], cluster: u64| {
            let from = (cluster * CLUSTER) as usize;
            bytes[from..from + CLUSTER as usize].to_vec()
        };
        let one = vec![1; CLUSTER as usize];
        let bytes = world.read(snapshot, 0, 4 * CLUSTER);
        assert_eq!((at(&bytes, 0), at(&bytes, 1), at(&bytes, 2)), (one.clone(), one.clone(), one.clone()));
        let bytes = world.read(volume, 0, 4 * CLUSTER);
        assert_eq!((at(&bytes, 0), at(&bytes, 1)), (one.clone(), vec![2; CLUSTER as usize]));
        let edge = at(&bytes, 2);
        assert!(edge[..512].iter().all(|b| *b == 1) && edge[512..1024].iter().all(|b| *b == 3));
        assert!(edge[1024..].iter().all(|b| *b == 1), "the rest of the sub-block comes from the snapshot");
        let bytes = world.read(clone, 0, 4 * CLUSTER);
        assert!(bytes[..4096].iter().all(|b| *b == 4) && bytes[4096..CLUSTER as usize].iter().all(|b| *b == 1));
        assert_eq!((at(&bytes, 1), at(&bytes, 2)), (vec![0; CLUSTER as usize], one));
    };
    check(&mut world, lane, snapshot, clone);
    let mut world = again(world);
    let (volume, snapshot, clone) = (world.lane(10, 0), world.lane(11, 1), world.lane(12, 1));
    check(&mut world, volume, snapshot, clone);
    let info = world.info();
    let names: Vec<_> = info.volumes.iter().map(|v| (v.name.as_str(), v.parent)).collect();
    assert_eq!(names, [("s11", None), ("v10", Some(uuid(11))), ("c12", Some(uuid(11)))]);
}

#[test]
fn space_comes_back() {
    let mut world = world();
    let free = world.info().free_bytes;
    world.create_volume(10, 256 * MIB);
    let lane = world.lane(10, 0);
    for cluster in 0..100 {
        world.write(lane, cluster * CLUSTER, 1, CLUSTER);
    }
    assert_eq!(world.info().free_bytes, free - 100 * CLUSTER);
    for cluster in 0..50 {
        world.discard(lane, cluster * CLUSTER, CLUSTER);
    }
    // By itself, within a second.
    world.floor.advance(600_000_000);
    world.floor.settle(600_000_000);
    let info = world.info();
    assert_eq!((info.free_bytes, info.quarantined_bytes), (free - 50 * CLUSTER, 0));
    assert_eq!(info.volumes[0].owned_bytes, 50 * CLUSTER);
    world.close(lane);
    world.order(Order::Delete { uuid: uuid(10) }).unwrap();
    world.floor.advance(600_000_000);
    world.floor.settle(600_000_000);
    let info = world.info();
    assert_eq!((info.free_bytes, info.quarantined_bytes, info.volumes.len()), (free, 0, 0));
    let mut world = again(world);
    assert_eq!(world.info().free_bytes, free);
}

#[test]
fn a_full_pool_refuses_what_it_has_no_space_for_and_nothing_else() {
    let mut world = world();
    world.create_volume(10, 256 * MIB);
    let lane = world.lane(10, 0);
    let mut cluster = 0;
    let full = loop {
        match world.floor.write(lane, cluster * CLUSTER, &vec![1; CLUSTER as usize], IoFlags::empty()) {
            Ok(()) => cluster += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, pollux_core::IoError::NoSpace);
    assert!(world.info().full && cluster * CLUSTER > 50 * MIB, "{cluster} clusters");
    world.write(lane, 0, 2, CLUSTER);
    world.discard(lane, CLUSTER, CLUSTER);
    world.write(lane, cluster * CLUSTER, 3, CLUSTER);
    assert!(world.read(lane, cluster * CLUSTER, CLUSTER).iter().all(|byte| *byte == 3));
}

/// Snapshots are deleted in every order while a volume and a clone stand on them; what is read stays.
#[test]
fn deleted_snapshots_go_into_what_stands_on_them() {
    for (nth, deleted) in [[11, 12, 13], [12, 11, 13], [13, 12, 11], [12, 13, 11]].into_iter().enumerate() {
        let mut world = world();
        let free = world.info().free_bytes;
        world.create_volume(10, 16 * MIB);
        let lane = world.lane(10, 0);
        let mut expected = vec![0u8; 8 * CLUSTER as usize];
        let mut put = |world: &mut World, offset: u64, byte: u8, len: u64| {
            world.write(lane, offset, byte, len);
            expected[offset as usize..(offset + len) as usize].fill(byte);
        };
        put(&mut world, 0, 1, 6 * CLUSTER);
        world.snapshot(10, 11);
        put(&mut world, CLUSTER, 2, 3 * CLUSTER);
        put(&mut world, 4 * CLUSTER + 8192, 3, 4096);
        world.snapshot(10, 12);
        put(&mut world, 2 * CLUSTER + 512, 4, 512);
        put(&mut world, 7 * CLUSTER, 5, 4096);
        world.snapshot(10, 13);
        world.discard(lane, 3 * CLUSTER, CLUSTER);
        expected[3 * CLUSTER as usize..4 * CLUSTER as usize].fill(0);
        let with_clone = nth == 3;
        let clone = with_clone.then(|| {
            world.clone_of(12, 14);
            world.lane(14, 1)
        });
        let cloned = clone.map(|clone| world.read(clone, 0, 8 * CLUSTER));
        for snapshot in deleted {
            world.order(Order::Delete { uuid: uuid(snapshot) }).unwrap();
            assert!(world.read(lane, 0, 8 * CLUSTER) == expected, "{nth}: right after {snapshot} was deleted");
            world.floor.settle(2_000_000_000);
            assert!(world.read(lane, 0, 8 * CLUSTER) == expected, "{nth}: when {snapshot} is gone");
            if let Some(clone) = clone {
                assert!(Some(world.read(clone, 0, 8 * CLUSTER)) == cloned, "{nth}: the clone, without {snapshot}");
            }
        }
        let info = world.info();
        // With a clone one layer stays that two stand on.
        assert_eq!(info.volumes.len(), if with_clone { 3 } else { 1 }, "{nth}: {info:?}");
        let owned: u64 = info.volumes.iter().map(|volume| volume.owned_bytes).sum();
        assert_eq!(info.free_bytes, free - owned, "{nth}");
        if !with_clone {
            assert_eq!((owned, info.volumes[0].written_bytes), (6 * CLUSTER, 5 * CLUSTER + 4096), "{nth}");
        }
        let mut world = again(world);
        let lane = world.lane(10, 1);
        assert!(world.read(lane, 0, 8 * CLUSTER) == expected, "{nth}: after the pool was opened again");
        if with_clone {
            world.order(Order::Delete { uuid: uuid(14) }).unwrap();
            world.floor.settle(2_000_000_000);
            assert!(world.read(lane, 0, 8 * CLUSTER) == expected);
            assert_eq!(world.info().volumes.len(), 1, "the last one that two stood on has gone");
        }
    }
}

#[test]
fn a_volume_is_as_its_snapshot_was_again() {
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, 2 * CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, 0, 2, 4096);
    world.snapshot(10, 12);
    world.write(lane, CLUSTER, 3, 512);
    for to in [12, 11] {
        world.order(Order::Rollback { uuid: uuid(10), to: uuid(to) }).unwrap();
        let first = world.read(lane, 0, 2 * CLUSTER);
        assert!(first[..4096].iter().all(|byte| *byte == if to == 12 { 2 } else { 1 }));
        assert!(first[4096..].iter().all(|byte| *byte == 1));
    }
    world.write(lane, 0, 4, 512);
    assert_eq!(world.read(lane, 0, 1024), [[4; 512], [1; 512]].concat());
}

#[test]
fn a_volume_grows_under_its_users() {
    let mut world = world();
    world.create_volume(10, MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, 4096);
    let past = world.floor.write(lane, MIB, &[2; 512], IoFlags::empty());
    assert_eq!(past, Err(pollux_core::IoError::OutOfRange));
    world.order(Order::Resize { uuid: uuid(10), bytes: 8 * MIB, allow_shrink: false }).unwrap();
    world.write(lane, MIB, 2, 512);
    let mut world = again(world);
    let lane = world.lane(10, 0);
    assert_eq!(world.read(lane, MIB, 1024), [[2; 512], [0; 512]].concat());
    assert!(world.read(lane, 0, 4096).iter().all(|byte| *byte == 1));
}

#[test]
fn what_is_in_use_is_not_deleted() {
    let mut world = world();
    world.create_volume(10, MIB);
    let lane = world.lane(10, 0);
    let refused = world.order(Order::Delete { uuid: uuid(10) });
    assert_eq!(refused.unwrap_err().reason(), "unfit");
    world.write(lane, 0, 1, 4096);
    let kept = world.pool.volume(uuid(10)).unwrap();
    world.close(lane);
    world.order(Order::Delete { uuid: uuid(10) }).unwrap();
    let channel = pollux_core::Bdev::open(&kept, pollux_core::OpenArgs { depth: 1, seed: 0 }).unwrap();
    assert!(world.floor.channel(0, channel).is_err(), "who still holds it cannot open it any more");
}

#[test]
fn what_is_kept_for_a_volume_is_there() {
    let mut world = world();
    let thick = |number: u128, bytes: u64| {
        let name = format!("t{number}");
        Order::Create { uuid: uuid(number), name, bytes, reserved: bytes, created: 1 }
    };
    world.order(thick(20, 16 * MIB)).unwrap();
    assert_eq!(world.order(thick(21, 60 * MIB)).unwrap_err().reason(), "no_space");
    world.create_volume(10, 256 * MIB);
    let (thin, thick) = (world.lane(10, 0), world.lane(20, 1));
    let one = vec![1; CLUSTER as usize];
    let none = IoFlags::empty();
    (0..100).for_each(|cluster| world.write(thick, cluster * CLUSTER, 1, CLUSTER));
    let mut cluster = 0;
    while world.floor.write(thin, cluster * CLUSTER, &one, none).is_ok() {
        cluster += 1;
    }
    assert!((25 * MIB..45 * MIB).contains(&(cluster * CLUSTER)), "{cluster}");
    let of = SnapshotOf { volume: uuid(20), uuid: uuid(22), name: "s".into() };
    let refused = world.order(Order::Snapshot { of: vec![of], created: 1 });
    assert_eq!(refused.unwrap_err().reason(), "no_space", "its new head would not have what is kept for it");
    for cluster in 0..16 * MIB / CLUSTER {
        world.write(thick, cluster * CLUSTER, 2, CLUSTER);
    }
    world.order(Order::Limit { uuid: uuid(20), quota: None, reserved: Some(0) }).unwrap();
    world.discard(thick, 0, CLUSTER);
    world.floor.settle(2_000_000_000);
    world.write(thin, cluster * CLUSTER, 3, CLUSTER);
}

#[test]
fn a_volume_owns_no_more_than_it_may() {
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    world.order(Order::Limit { uuid: uuid(10), quota: Some(3 * CLUSTER), reserved: None }).unwrap();
    let lane = world.lane(10, 0);
    (0..3).for_each(|cluster| world.write(lane, cluster * CLUSTER, 1, 4096));
    let more = world.floor.write(lane, 3 * CLUSTER, &[1; 4096], IoFlags::empty());
    assert_eq!(more, Err(pollux_core::IoError::NoSpace));
    world.write(lane, 0, 2, CLUSTER);
}

/// More leaves than there is memory for: they come and go, also under writes in flight.
#[test]
fn maps_leave_memory_and_come_back() {
    const LEAF: u64 = 504 * CLUSTER;
    const LEAVES: u64 = 200;
    let medium = Medium::new(Geometry::with_512(256 * MIB), Arrival::Seeded(3));
    World::create(&medium);
    let mut world = World::open_with(&medium, Floor::seeded(4), 2, 1, 0).unwrap();
    world.create_volume(10, LEAVES * LEAF);
    let lanes = [world.lane(10, 0), world.lane(10, 1)];
    let mut expected = std::collections::BTreeMap::new();
    let mut rng = crate::rng::Rng::new(5);
    for round in 0..40u64 {
        let mut tickets = Vec::new();
        for nth in 0..16 {
            let at = rng.below(LEAVES) * LEAF + rng.below(4) * CLUSTER + rng.below(2) * 4096;
            if tickets.iter().any(|(other, _)| *other == at) {
                continue;
            }
            let byte = (round * 16 + nth) as u8;
            let request = Request::write(at, vec![byte; 4096], IoFlags::empty());
            tickets.push((at, world.floor.submit(lanes[nth as usize % 2], request)));
            expected.insert(at, byte);
        }
        tickets.into_iter().for_each(|(_, ticket)| assert!(world.floor.run_until(ticket).is_ok()));
        if round % 8 == 7 {
            world.floor.flush(lanes[0]).unwrap();
        }
    }
    for (at, byte) in &expected {
        let bytes = world.read(lanes[0], *at, 4096);
        assert!(bytes.iter().all(|found| found == byte), "at {at}");
    }
    let medium = world.shut();
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 2, 0).unwrap();
    let lane = world.lane(10, 0);
    for (at, byte) in &expected {
        assert!(world.read(lane, *at, 4096).iter().all(|found| found == byte), "at {at}, opened again");
    }
}

#[test]
fn a_map_says_what_is_there_and_what_has_changed() {
    use crate::thin::{ExtentKind, MapExtent};
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 4096, 1, 8192);
    world.write(lane, 3 * CLUSTER, 1, 2 * CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, 3 * CLUSTER + 4096, 2, 4096);
    world.discard(lane, 4 * CLUSTER, 8192);
    world.write(lane, 16 * MIB - 512, 3, 512);
    let (volume, snapshot) = (world.pool.volume(uuid(10)).unwrap(), world.pool.volume(uuid(11)).unwrap());
    let all = |survey: &dyn Fn(u64) -> crate::thin::Survey| {
        let (mut extents, mut at) = (Vec::new(), Some(0));
        while let Some(offset) = at {
            let part = survey(offset);
            extents.extend(part.extents);
            at = part.next_offset;
        }
        extents
    };
    let data = |offset, len| MapExtent { offset, len, kind: ExtentKind::Data };
    let zero = |offset, len| MapExtent { offset, len, kind: ExtentKind::Zero };
    let last = data(16 * MIB - 4096, 4096);
    for most in [1, 2, 100] {
        let there = all(&|offset| volume.allocated(offset, most).unwrap());
        let expected = [data(4096, 8192), data(3 * CLUSTER, CLUSTER), data(4 * CLUSTER + 8192, CLUSTER - 8192), last];
        assert_eq!(there, expected, "{most} at once");
        let changed = all(&|offset| volume.delta(&snapshot, offset, most).unwrap());
        assert_eq!(changed, [data(3 * CLUSTER + 4096, 4096), zero(4 * CLUSTER, 8192), last]);
        let before = all(&|offset| snapshot.allocated(offset, most).unwrap());
        assert_eq!(before, [data(4096, 8192), data(3 * CLUSTER, 2 * CLUSTER)]);
    }
    assert!(snapshot.delta(&volume, 0, 1).is_err(), "it does not stand on its child");
}

/// A snapshot pauses guests until each reactor has come round, and not for the medium; that is counted. A clone pauses nobody.
#[test]
fn a_snapshot_pauses_guests_for_a_round_of_the_reactors() {
    let mut world = world();
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 1);
    world.write(lane, 0, 1, CLUSTER);
    let count = |world: &World| world.pool.pauses().counts().sum::<u64>();
    assert_eq!(count(&world), 0);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Flush).times(u64::MAX));
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Write).times(u64::MAX));
    let under_way = world.floor.submit(lane, Request::write(0, vec![2; 4096], IoFlags::empty()));
    let of = vec![SnapshotOf { volume: uuid(10), uuid: uuid(11), name: "s".into() }];
    let answer = world.send(Order::Snapshot { of, created: 6 });
    world.floor.settle(1_000_000_000);
    assert!(answer.try_recv().is_err() && world.floor.take(under_way).is_none(), "the medium answers nothing");
    assert_eq!(count(&world), 1);
    let paused = world.pool.pauses().sum();
    assert!((1..100_000).contains(&paused), "{paused} ns");
    assert!(world.read(lane, 0, 4096).iter().all(|byte| [1, 2].contains(byte)), "what is read is not held up");
    world.medium.clear_rules();
    world.medium.release();
    world.floor.run_until(under_way).unwrap();
    world.clone_of(11, 12);
    assert_eq!((count(&world), world.pool.pauses().sum()), (1, paused));
}
