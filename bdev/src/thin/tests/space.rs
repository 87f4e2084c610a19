//! Pools with little left: whoever asks gets what there is, metadata has its own, and what is freed can be used again.

use pollux_core::{IoError, IoFlags, Op};
use uuid::Uuid;

use super::judge::{clean, counted};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::info::{Role, VolumeInfo};
use crate::thin::orders::{Order, SnapshotOf};

const NONE: IoFlags = IoFlags::empty();

fn world(bytes: u64, seed: u64, reactors: usize) -> World {
    let medium = Medium::new(Geometry::with_512(bytes), Arrival::Seeded(seed));
    World::create(&medium);
    World::open(&medium, Floor::seeded(seed), reactors, 1).unwrap()
}

/// Writes a sub-block into each of these places until there is no space; how many could be written.
fn fill(world: &mut World, lanes: &[LaneId], places: impl Iterator<Item = u64>, byte: u8) -> u64 {
    let mut written = 0;
    for (nth, at) in places.enumerate() {
        match world.floor.write(lanes[nth % lanes.len()], at, &[byte; 4096], NONE) {
            Ok(()) => written += 1,
            Err(error) => {
                assert_eq!(error, IoError::NoSpace);
                break;
            }
        }
    }
    written
}

#[test]
fn no_write_fails_while_another_reactor_has_clusters_of_no_use() {
    for (seed, bytes) in [(1, 6 * MIB), (2, 7 * MIB), (3, 40 * MIB), (4, 300 * MIB)] {
        let mut world = world(bytes, seed, 4);
        let info = world.info();
        let total = info.total_bytes / CLUSTER;
        assert_eq!(info.free_bytes, info.total_bytes);
        world.create_volume(10, 512 * MIB);
        let idle = [world.lane(10, 1), world.lane(10, 2), world.lane(10, 3)];
        let busy = world.lane(10, 0);
        assert_eq!(fill(&mut world, &idle, (0..3).map(|nth| nth * CLUSTER), 1), 3);
        let written = 3 + fill(&mut world, &[busy], (3..).map(|nth| nth * CLUSTER), 2);
        let info = world.info();
        let next_extent = if bytes < 256 * MIB { 16 } else { 64 };
        let held_back = next_extent.min(total / 32);
        assert!(info.full, "{info:?}");
        assert_eq!(written, total - held_back, "of {total} clusters");
        // Those who had given up what they had get what becomes free.
        world.discard(busy, 0, CLUSTER);
        world.write(idle[2], written * CLUSTER, 3, CLUSTER);
        let again = world.floor.write(idle[0], (written + 1) * CLUSTER, &[1; 512], NONE);
        assert_eq!(again, Err(IoError::NoSpace));
        let medium = world.shut();
        clean(&medium, "after it was closed").unwrap();
    }
}

/// The maps of a sparse volume need far more pages than there are at first: the pool finds room for them until it is full,
/// and what is freed then can be used again.
#[test]
fn a_pool_never_gets_stuck_for_lack_of_pages() {
    const LEAF: u64 = 504 * CLUSTER;
    const LEAVES: u64 = 2000;
    for (seed, bytes) in [(1, 5 * MIB), (2, 9 * MIB), (3, 24 * MIB), (4, 60 * MIB)] {
        let mut world = world(bytes, seed, 2);
        world.create_volume(10, LEAVES * LEAF);
        world.create_volume(11, LEAVES * LEAF);
        let lanes = [world.lane(10, 0), world.lane(10, 1)];
        let others = [world.lane(11, 1), world.lane(11, 0)];
        let mut least = u64::MAX;
        for round in 1..=3 {
            let places = |from: u64| (0..LEAVES).map(move |leaf| leaf * LEAF + from * CLUSTER);
            let written = fill(&mut world, &lanes, places(round), round as u8);
            least = least.min(written);
            assert!(written > bytes / MIB, "{bytes}, round {round}: {written} leaves");
            // What is there can be written, and made durable, and made more of.
            world.write(lanes[1], round * CLUSTER + 4096, 7, 512);
            world.floor.flush(lanes[0]).unwrap();
            world.order(Order::Checkpoint).unwrap();
            world.write(lanes[0], (written - 1) * LEAF + round * CLUSTER, 9, 4096);
            world.floor.flush(lanes[1]).unwrap();
            for leaf in 0..written {
                let bytes = world.read(lanes[0], leaf * LEAF + round * CLUSTER, 4096);
                let expected = if leaf + 1 == written { 9 } else { round as u8 };
                assert!(bytes.iter().all(|byte| *byte == expected), "{leaf}");
            }
            for leaf in 0..written {
                world.discard(lanes[leaf as usize % 2], leaf * LEAF + round * CLUSTER, CLUSTER);
            }
            world.floor.settle(2_000_000_000);
            // The other volume's maps take the pages now.
            let other = fill(&mut world, &others, places(round), 5);
            assert!(other * 2 > written, "{bytes}, round {round}: {other} of {written}");
            world.floor.zero(others[0], Op::Discard, 0, LEAVES * LEAF).unwrap();
            world.floor.settle(2_000_000_000);
            let info = world.info();
            assert_eq!((info.volumes[0].owned_bytes, info.volumes[1].owned_bytes), (0, 0), "round {round}");
        }
        // What is logged may need another extent when it is closed.
        world.order(Order::Checkpoint).unwrap();
        let (info, medium) = (world.info(), world.shut());
        counted(&info, &clean(&medium, "after it was closed").unwrap()).unwrap();
        assert!(least < 100 || medium.steps()["checkpoint.extent"].changes > 0, "pages were added");
    }
}

/// Who makes a layer asks whether there are pages for it, whatever else he does.
#[test]
fn a_pool_without_pages_for_more_layers_rolls_nothing_back() {
    const LEAF: u64 = 504 * CLUSTER;
    let mut world = world(5 * MIB, 1, 2);
    world.create_volume(10, 4000 * LEAF);
    world.snapshot(10, 11);
    let lane = world.lane(10, 0);
    fill(&mut world, &[lane], (0..4000).map(|leaf| leaf * LEAF), 1);
    let mut made = 0;
    let refused = loop {
        world.order(Order::Checkpoint).unwrap();
        made += 1;
        assert!(made < 20_000, "there is always room");
        let (number, name) = (uuid(1000 + made), format!("m{made}"));
        match world.order(Order::Create { uuid: number, name, bytes: MIB, reserved: 0, created: 1 }) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(refused.reason(), "no_space");
    let back = world.order(Order::Rollback { uuid: uuid(10), to: uuid(11) });
    assert_eq!(back.unwrap_err().reason(), "no_space");
    world.order(Order::Delete { uuid: uuid(1001) }).unwrap();
}

/// A sparse file on a full file system: what is there can be used, read, deleted, and what needs no more metadata goes on.
#[test]
fn a_pool_whose_base_has_no_space_for_more_metadata_goes_on_without() {
    const LEAF: u64 = 504 * CLUSTER;
    // In the larger one several pieces of an extent are on their way at once.
    for bytes in [64 * MIB, 300 * MIB] {
        let mut world = world(bytes, 1, 2);
        world.create_volume(10, 4000 * LEAF);
        let lane = world.lane(10, 0);
        let full = || Rule::new(Effect::Fail(IoError::NoSpace)).step("checkpoint.extent");
        let mut leaf = 0;
        for rule in [full(), full().skip(1), full().always()] {
            world.medium.clear_rules();
            world.medium.rule(rule);
            let before = world.medium.hits();
            while world.medium.hits() == before && leaf < 2000 {
                assert_eq!(fill(&mut world, &[lane], (leaf..leaf + 8).map(|leaf| leaf * LEAF), 1), 8);
                world.order(Order::Checkpoint).unwrap();
                leaf += 8;
            }
            let crashed = world.medium.crash(Crash::All, Arrival::InOrder);
            clean(&crashed, "after a crash without more metadata").unwrap();
        }
        assert!(world.medium.hits() >= 3, "it needs no more metadata");
        assert!(!world.info().failed && world.read(lane, 0, 4096).iter().all(|byte| *byte == 1));
        world.write(lane, 0, 2, 4096);
        world.discard(lane, LEAF, CLUSTER);
        world.snapshot(10, 11);
        world.order(Order::Delete { uuid: uuid(11) }).unwrap();
        // There is space again: it takes what it needs.
        world.medium.clear_rules();
        assert_eq!(fill(&mut world, &[lane], (leaf..leaf + 64).map(|leaf| leaf * LEAF), 3), 64);
        world.floor.settle(5_000_000_000);
        assert!(world.read(lane, (leaf + 63) * LEAF, 4096).iter().all(|byte| *byte == 3));
        let info = world.info();
        counted(&info, &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
    }
}

/// What is said of a group goes into one batch of the log, which has an end.
#[test]
fn a_group_is_not_larger_than_a_batch() {
    const MANY: u128 = 240;
    let mut world = world(64 * MIB, 2, 2);
    (0..MANY).for_each(|nth| world.create_volume(1000 + nth, MIB));
    let group = |from: u128, count: u128| {
        let one = |nth| SnapshotOf { volume: uuid(1000 + nth), uuid: uuid(2000 + nth), name: format!("s{nth}") };
        Order::Snapshot { of: (from..from + count).map(one).collect(), created: 1 }
    };
    let refused = world.order(group(0, MANY)).unwrap_err();
    assert!(refused.reason() == "invalid" && refused.to_string().contains("at most 111"), "{refused}");
    world.order(group(0, 111)).unwrap();
    world.order(group(111, 111)).unwrap();
    world.floor.settle(2_000_000_000);
    assert_eq!(world.info().volumes.len(), MANY as usize + 222);
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Requests that come while the pool is full wait, and go on when somebody deletes something.
#[test]
fn writes_wait_for_space_that_comes() {
    let mut world = world(6 * MIB, 5, 2);
    world.create_volume(10, 16 * MIB);
    world.create_volume(11, 16 * MIB);
    let (lane, other) = (world.lane(10, 0), world.lane(11, 1));
    world.write(other, 0, 1, 4 * CLUSTER);
    fill(&mut world, &[lane], (0..).map(|nth| nth * CLUSTER), 1);
    let late = (0..4).map(|nth| 8 * MIB + nth * CLUSTER);
    let waiting: Vec<_> = late.map(|at| world.floor.submit(lane, Request::write(at, vec![3; 4096], NONE))).collect();
    world.floor.settle(500_000_000);
    world.close(other);
    world.order(Order::Delete { uuid: uuid(11) }).unwrap();
    for ticket in waiting {
        assert_eq!(world.floor.run_until(ticket), Ok(Vec::new()));
    }
}

/// What was answered outlives a power cut; each threshold is told once, and again after the use has gone down.
#[test]
fn thresholds_are_kept_and_seen() {
    let mut world = world(64 * MIB, 6, 2);
    world.create_volume(10, 256 * MIB);
    let lane = world.lane(10, 0);
    let refused = world.order(Order::Thresholds { thresholds: [65 * MIB, 0, 0, 0] });
    assert_eq!(refused.unwrap_err().reason(), "invalid");
    assert_eq!(world.order(Order::WarnAt { uuid: uuid(10), percent: 50 }).unwrap_err().reason(), "unfit");
    // One checkpoint is under way already: the answer waits for another one.
    world.write(lane, 0, 1, CLUSTER);
    let running = world.send(Order::Checkpoint);
    world.order(Order::Thresholds { thresholds: [50, 40 * MIB, 0, 0] }).unwrap();
    running.recv().unwrap().unwrap();
    world.order(Order::Limit { uuid: uuid(10), quota: Some(200 * CLUSTER), reserved: None }).unwrap();
    world.order(Order::WarnAt { uuid: uuid(10), percent: 50 }).unwrap();
    let told = |world: &mut World| {
        let info = world.info();
        let pool: Vec<_> = info.thresholds.iter().map(|one| (one.reached, one.crossings)).collect();
        let volume = info.volumes[0].quota_threshold.map(|one| (one.reached, one.crossings));
        (pool, volume)
    };
    let write = |world: &mut World, lane, clusters: std::ops::Range<u64>| {
        clusters.for_each(|cluster| world.write(lane, cluster * CLUSTER, 1, 4096));
        world.floor.flush(lane).unwrap();
    };
    assert_eq!(told(&mut world), (vec![(false, 0); 2], Some((false, 0))));
    write(&mut world, lane, 0..110);
    assert_eq!(told(&mut world), (vec![(false, 0); 2], Some((true, 1))));
    world.order(Order::Limit { uuid: uuid(10), quota: Some(0), reserved: None }).unwrap();
    write(&mut world, lane, 110..500);
    assert_eq!(told(&mut world), (vec![(true, 1), (false, 0)], None));
    write(&mut world, lane, 500..650);
    assert_eq!(told(&mut world), (vec![(true, 1); 2], None));
    world.discard(lane, 0, 200 * CLUSTER);
    world.floor.settle(2_000_000_000);
    write(&mut world, lane, 0..100);
    assert_eq!(told(&mut world), (vec![(true, 2), (false, 1)], None));
    // What is set anew has been reached as often as before, and one that is none counts where all are counted.
    world.order(Order::Limit { uuid: uuid(10), quota: Some(1000 * CLUSTER), reserved: None }).unwrap();
    assert_eq!(told(&mut world).1, Some((true, 1)));
    world.order(Order::Limit { uuid: uuid(10), quota: Some(0), reserved: None }).unwrap();
    world.order(Order::Thresholds { thresholds: [0, 40 * MIB, 0, 0] }).unwrap();
    assert_eq!((told(&mut world), world.info().crossings), ((vec![(false, 1)], None), 3));
    world.order(Order::Thresholds { thresholds: [50, 40 * MIB, 0, 0] }).unwrap();
    assert_eq!((told(&mut world).0, world.info().crossings), (vec![(true, 2), (false, 1)], 3));
    let shown = pollux_core::Bdev::provisioning(&world.pool.volume(uuid(10)).unwrap()).unwrap();
    assert_eq!((shown.grain, shown.used, shown.dedicated), (CLUSTER, 550 * CLUSTER, false));
    let total = world.info().total_bytes;
    assert_eq!(shown.available, total - (550 + 16) * CLUSTER, "but for what is held back");
    let at = |bytes| Some(pollux_core::Threshold::Available(bytes));
    assert_eq!(shown.thresholds[..3], [at(total / 2), at(total - 40 * MIB), None]);
    let medium = world.medium.clone();
    world.forget();
    let left = medium.crash(Crash::None, Arrival::InOrder);
    let mut world = World::open(&left, Floor::in_order(), 2, 9).unwrap();
    assert_eq!(told(&mut world), (vec![(true, 0), (false, 0)], None), "what is reached already is no news");
    clean(&world.shut(), "after all").unwrap();
}

const SECOND: u64 = 1_000_000_000;

/// A pool of a volume with four written clusters, in order, with a read of the first on another reactor that hangs.
fn with_a_hung_read() -> (World, LaneId, LaneId, crate::testing::floor::Ticket) {
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 16 * MIB);
    let (lane, other) = (world.lane(10, 0), world.lane(10, 1));
    world.write(lane, 0, 1, 4 * CLUSTER);
    world.floor.flush(lane).unwrap();
    medium.rule(Rule::new(Effect::Hold).op(Op::Read));
    let hung = world.floor.submit(other, Request::read(0, 4096));
    world.floor.settle(1_000_000);
    (world, lane, other, hung)
}

/// While the engine waits for a request of another reactor nobody turns; when it ends the engine is woken and goes on.
#[test]
fn an_engine_that_waits_for_a_reader_rests_until_it_is_woken() {
    let (mut world, lane, _, hung) = with_a_hung_read();
    world.discard(lane, CLUSTER, CLUSTER);
    world.floor.flush(lane).unwrap();
    world.floor.settle(10_000_000);
    let before = world.floor.steps();
    world.floor.settle(100 * SECOND);
    assert!(world.floor.steps() - before < 10, "{} steps", world.floor.steps() - before);
    assert_eq!(world.info().quarantined_bytes, CLUSTER, "the request may still read it");
    world.floor.settle(10_000_000);
    world.medium.release();
    assert!(world.floor.run_until(hung).is_ok());
    world.floor.settle(10_000_000);
    assert_eq!(world.info().quarantined_bytes, 0);
}

/// The same for what was in flight when a snapshot was cut, and for a gate that is closed: it is opened at once.
#[test]
fn a_snapshot_waits_for_a_reader_at_rest() {
    let (mut world, lane, _, hung) = with_a_hung_read();
    let of = vec![SnapshotOf { volume: uuid(10), uuid: uuid(20), name: "s".into() }];
    let answer = world.send(Order::Snapshot { of, created: 6 });
    world.floor.settle(10_000_000);
    world.write(lane, 0, 2, 4096);
    let before = world.floor.steps();
    world.floor.settle(SECOND / 4);
    assert!(world.floor.steps() - before < 10, "{} steps", world.floor.steps() - before);
    assert!(answer.try_recv().is_err(), "what was in flight has not ended");
    world.medium.release();
    assert_eq!(world.floor.run_until(hung).unwrap(), vec![1; 4096]);
    world.floor.settle(10_000_000);
    answer.try_recv().expect("it was answered").expect("it was made");
}

/// A write that waits in a full pool, on the engine's reactor and elsewhere, costs nobody any turns: not when nothing can be
/// had, nor when something can be had later.
#[test]
fn a_write_that_waits_for_space_is_at_rest() {
    for (reactor, hangs) in [(0, false), (1, false), (0, true), (1, true)] {
        let medium = Medium::new(Geometry::with_512(6 * MIB), Arrival::InOrder);
        World::create(&medium);
        let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
        world.create_volume(10, 16 * MIB);
        let (lane, other) = (world.lane(10, reactor), world.lane(10, 1));
        fill(&mut world, &[lane], (0..).map(|nth| nth * CLUSTER), 1);
        world.floor.flush(lane).unwrap();
        let hung = hangs.then(|| {
            medium.rule(Rule::new(Effect::Hold).op(Op::Read));
            let hung = world.floor.submit(other, Request::read(0, 4096));
            world.floor.settle(1_000_000);
            world.discard(lane, CLUSTER, CLUSTER);
            world.floor.flush(lane).unwrap();
            hung
        });
        let before = world.floor.steps();
        let waiting = world.floor.submit(lane, Request::write(8 * MIB, vec![3; 4096], NONE));
        world.floor.settle(SECOND * 9 / 10);
        let steps = world.floor.steps() - before;
        assert!(steps < 100, "reactor {reactor}, hangs {hangs}: {steps} steps");
        medium.release();
        if !hangs {
            world.discard(lane, 0, CLUSTER);
        }
        assert_eq!(world.floor.run_until(waiting), Ok(Vec::new()), "reactor {reactor}, hangs {hangs}");
        hung.into_iter().for_each(|hung| assert!(world.floor.run_until(hung).is_ok()));
        clean(&world.shut(), "after it was closed").unwrap();
    }
}

/// The same for a write that waits for a leaf of a map, for which there are no pages.
#[test]
fn a_write_that_waits_for_pages_is_at_rest() {
    const LEAF: u64 = 504 * CLUSTER;
    let medium = Medium::new(Geometry::with_512(5 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 4000 * LEAF);
    let lane = world.lane(10, 0);
    // Discards of a sub-block each, which need leaves and no clusters, behind a snapshot.
    world.write(lane, 0, 1, CLUSTER);
    let written = fill(&mut world, &[lane], (1..).map(|nth| nth * LEAF), 1);
    assert!(written > 1);
    let before = world.floor.steps();
    let waiting = world.floor.submit(lane, Request::write(3000 * LEAF, vec![3; 4096], NONE));
    world.floor.settle(SECOND * 9 / 10);
    let steps = world.floor.steps() - before;
    assert!(steps < 1000, "{steps} steps");
    assert_eq!(world.floor.run_until(waiting), Err(IoError::NoSpace));
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Chains and clones: what a layer stands on is all that is below it, and a snapshot that has only left its name behind is
/// nobody's child.
#[test]
fn what_a_layer_stands_on_is_told_of_each() {
    let mut world = world(64 * MIB, 5, 1);
    world.create_volume(10, 16 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, 4 * CLUSTER);
    world.snapshot(10, 20);
    world.write(lane, 0, 2, 2 * CLUSTER);
    world.snapshot(10, 21);
    world.write(lane, 0, 3, CLUSTER);
    for (snapshot, clone) in [(20, 30), (21, 31), (21, 32)] {
        world.clone_of(snapshot, clone);
    }
    let told = |world: &mut World| {
        let volumes = world.info().volumes.into_iter().filter(|volume| volume.role != Role::Leaving);
        let of = |volume: VolumeInfo| {
            (volume.uuid, volume.owned_bytes / CLUSTER, volume.shared_bytes / CLUSTER, volume.children)
        };
        let mut all: Vec<_> = volumes.map(of).collect();
        all.sort_unstable();
        all
    };
    let some = |children: &[u128]| children.iter().map(|child| uuid(*child)).collect::<Vec<_>>();
    let mut expected = vec![
        (uuid(10), 1, 6, Vec::new()),
        (uuid(20), 4, 0, some(&[21, 30])),
        (uuid(21), 2, 4, some(&[10, 31, 32])),
        (uuid(30), 0, 4, Vec::new()),
        (uuid(31), 0, 6, Vec::new()),
        (uuid(32), 0, 6, Vec::new()),
    ];
    let sorted = |mut all: Vec<(Uuid, u64, u64, Vec<Uuid>)>| {
        all.iter_mut().for_each(|(.., children)| children.sort_unstable());
        all
    };
    assert_eq!(sorted(told(&mut world)), expected);
    world.order(Order::Delete { uuid: uuid(21) }).unwrap();
    expected.remove(2);
    expected[1].3 = some(&[10, 30, 31, 32]);
    assert_eq!(sorted(told(&mut world)), expected);
    clean(&world.shut(), "after it was closed").unwrap();
}
