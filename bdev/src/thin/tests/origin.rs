//! Volumes that stand on a bdev outside of the pool.

use std::collections::BTreeSet;
use std::sync::mpsc::TryRecvError;

use pollux_core::{Bdev, Erasure, IoError, IoFlags, Op, OpenArgs, OpenError};

use super::judge::{clean, counted};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::{Answer, Order};
use crate::thin::{ExtentKind, Origin};

/// The bdev: it ends in the middle of a sub-block.
const OF: Origin = Origin { uuid: uuid(77), bytes: 10 * CLUSTER + 4096 + 1536 };
/// Its clone.
const BYTES: u64 = 12 * CLUSTER;

fn world() -> World {
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    World::open(&medium, Floor::in_order(), 2, 1).unwrap()
}

/// A clone, and what it holds.
fn clone_of_bdev(world: &mut World) -> (LaneId, Vec<u8>) {
    let order = Order::CloneBdev { of: OF, uuid: uuid(10), name: "c".into(), bytes: BYTES, created: 1 };
    world.order(order).unwrap();
    let mut held = world.outside(OF).peek(0, OF.bytes as usize);
    held.resize(BYTES as usize, 0);
    assert!(held[..OF.bytes as usize].iter().any(|byte| *byte != 0));
    (world.lane(10, 0), held)
}

fn holds(world: &mut World, lane: LaneId, held: &[u8], when: &str) {
    let found = world.read(lane, 0, held.len() as u64);
    if let Some(at) = (0..held.len()).find(|at| found[*at] != held[*at]) {
        panic!("{when}: byte {at} is {} and should be {}", found[at], held[at]);
    }
}

fn put(world: &mut World, lane: LaneId, held: &mut [u8], at: u64, byte: u8, len: u64) {
    world.write(lane, at, byte, len);
    held[at as usize..(at + len) as usize].fill(byte);
}

/// Zeroes, by a discard or by zeroes.
fn zero(world: &mut World, lane: LaneId, held: &mut [u8], op: Op, at: u64, len: u64) {
    world.floor.zero(lane, op, at, len).unwrap();
    held[at as usize..(at + len) as usize].fill(0);
}

/// At rest, and everything adds up; opened again.
fn again(mut world: World) -> World {
    world.order(Order::Checkpoint).unwrap();
    world.floor.settle(2_000_000_000);
    let info = world.info();
    let medium = world.shut();
    counted(&info, &clean(&medium, "after it was closed").unwrap()).unwrap();
    World::open(&medium, Floor::in_order(), 2, 2).unwrap()
}

fn inflate(world: &mut World, volume: u128, decouple: bool) -> Answer {
    let (order, _) = world.inflation(uuid(volume), decouple);
    world.order(order)
}

/// Writes and discards at the edges of everything.
fn change(world: &mut World, lane: LaneId, held: &mut [u8]) {
    put(world, lane, held, CLUSTER + 512, 1, 512);
    put(world, lane, held, 2 * CLUSTER, 2, 4096);
    put(world, lane, held, 3 * CLUSTER - 1024, 3, CLUSTER + 2048);
    // The end of what counts, and behind it.
    put(world, lane, held, 10 * CLUSTER + 4096 + 512, 4, 512);
    put(world, lane, held, 11 * CLUSTER + 512, 5, 512);
    zero(world, lane, held, Op::Discard, 5 * CLUSTER, 2 * CLUSTER);
    zero(world, lane, held, Op::Discard, 7 * CLUSTER + 512, 8192);
    zero(world, lane, held, Op::WriteZeroes, 8 * CLUSTER + 4096, 4096 + 512);
    zero(world, lane, held, Op::Discard, 3 * CLUSTER, 4096);
    put(world, lane, held, 5 * CLUSTER + 512, 6, 512);
}

#[test]
fn a_clone_is_the_bdev_under_what_is_written_and_zero_behind_it() {
    let mut world = world();
    let (lane, mut held) = clone_of_bdev(&mut world);
    holds(&mut world, lane, &held, "fresh");
    assert_eq!(world.info().volumes[0].owned_bytes, 0, "what the bdev has is not the pool's");
    change(&mut world, lane, &mut held);
    holds(&mut world, lane, &held, "written");
    world.floor.write(lane, 9 * CLUSTER + 512, &[7; 512], IoFlags::FUA).unwrap();
    held[9 * CLUSTER as usize + 512..][..512].fill(7);
    let other = world.lane(10, 1);
    holds(&mut world, other, &held, "by another reactor");
    let mut world = again(world);
    let lane = world.lane(10, 1);
    holds(&mut world, lane, &held, "opened again");
    let info = world.info();
    assert_eq!((info.volumes[0].origin, info.volumes[0].parent), (Some(OF), None));
    let before = world.outside(OF);
    let pristine = world.outside(Origin { uuid: uuid(78), ..OF });
    assert_ne!(before.digest(), pristine.digest());
    assert!(before.unsynced().is_empty(), "nobody writes to it");
}

#[test]
fn snapshots_and_their_clones_stand_on_it_too_however_long_the_chain() {
    let mut world = world();
    let (lane, mut held) = clone_of_bdev(&mut world);
    let mut snapshots = Vec::new();
    for nth in 0..5u64 {
        put(&mut world, lane, &mut held, nth * 2 * CLUSTER + 8192, nth as u8 + 1, 4096);
        zero(&mut world, lane, &mut held, Op::Discard, (nth * 2 + 1) * CLUSTER, 4096);
        world.snapshot(10, 20 + u128::from(nth));
        snapshots.push((20 + u128::from(nth), held.clone()));
    }
    change(&mut world, lane, &mut held);
    world.clone_of(23, 30);
    let all = |world: &mut World, when: &str| {
        for (snapshot, held) in &snapshots {
            let lane = world.lane(*snapshot, 1);
            holds(world, lane, held, when);
            world.close(lane);
        }
        let clone = world.lane(30, 1);
        holds(world, clone, &snapshots[3].1, when);
        world.close(clone);
    };
    holds(&mut world, lane, &held, "behind five snapshots");
    all(&mut world, "at once");
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "opened again");
    all(&mut world, "opened again");
    // One after the other goes: into another layer, and the last one leaves the bdev to what stood on it.
    for snapshot in [22, 20, 21, 24] {
        world.order(Order::Delete { uuid: uuid(snapshot) }).unwrap();
        world.floor.settle(2_000_000_000);
        holds(&mut world, lane, &held, &format!("without {snapshot}"));
    }
    world.order(Order::Delete { uuid: uuid(30) }).unwrap();
    world.order(Order::Delete { uuid: uuid(23) }).unwrap();
    world.floor.settle(2_000_000_000);
    let info = world.info();
    assert_eq!((info.volumes.len(), info.volumes[0].origin), (1, Some(OF)));
    let mut world = again(world);
    let lane = world.lane(10, 1);
    holds(&mut world, lane, &held, "alone");
}

#[test]
fn what_is_cut_off_stays_cut_off() {
    let mut world = world();
    let (lane, mut held) = clone_of_bdev(&mut world);
    change(&mut world, lane, &mut held);
    for (bytes, allow_shrink) in [(4 * CLUSTER, true), (20 * CLUSTER, false)] {
        world.order(Order::Resize { uuid: uuid(10), bytes, allow_shrink }).unwrap();
        held.resize(bytes as usize, 0);
    }
    holds(&mut world, lane, &held, "at once");
    world.floor.settle(2_000_000_000);
    holds(&mut world, lane, &held, "folded");
    zero(&mut world, lane, &mut held, Op::Discard, 3 * CLUSTER, 2 * CLUSTER);
    put(&mut world, lane, &mut held, 6 * CLUSTER + 512, 9, 512);
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "opened again");
}

/// Decoupled from a snapshot it goes on standing on the bdev, decoupled once more or inflated it does not.
#[test]
fn a_volume_that_has_all_of_it_needs_the_bdev_no_more() {
    for decouple in [true, false] {
        let mut world = world();
        let (lane, mut held) = clone_of_bdev(&mut world);
        change(&mut world, lane, &mut held);
        world.snapshot(10, 11);
        put(&mut world, lane, &mut held, 512, 8, 512);
        zero(&mut world, lane, &mut held, Op::Discard, 9 * CLUSTER, 4096);
        if decouple {
            inflate(&mut world, 10, true).unwrap();
            let head = world.info().volumes.last().unwrap().clone();
            assert_eq!((head.parent, head.origin), (None, Some(OF)));
            holds(&mut world, lane, &held, "without its snapshot");
        }
        inflate(&mut world, 10, decouple).unwrap();
        let info = world.info();
        let head = info.volumes.last().unwrap();
        assert_eq!((head.parent, head.origin), (None, None));
        assert_eq!(head.reserved_bytes, if decouple { 0 } else { BYTES });
        assert_eq!(info.volumes[0].origin, Some(OF), "its snapshot still stands on it");
        // Whoever has it open reads on, and who opens it needs nothing.
        holds(&mut world, lane, &held, "alone");
        if decouple {
            assert_eq!(inflate(&mut world, 10, true).unwrap_err().reason(), "no_parent");
        }
        let mut world = again(world);
        world.pool.volume(uuid(10)).unwrap().open(OpenArgs { depth: 1, seed: 0 }).unwrap();
        let lane = world.lane(10, 0);
        holds(&mut world, lane, &held, "alone, opened again");
    }
}

/// What takes no space on the bdev takes none of the pool's either: sub-blocks, clusters, up to its end.
#[test]
fn a_hole_of_the_bdev_is_not_copied() {
    for decouple in [true, false] {
        let mut world = world();
        let whole = world.outside(OF);
        let sparse = Medium::new(whole.geometry(), Arrival::InOrder);
        // Two clusters; two sub-blocks at the end of one; one in the middle; and the end, which is not a whole one.
        let (in_the_middle, end) = (6 * CLUSTER + 4096..6 * CLUSTER + 8192, 10 * CLUSTER..u64::MAX);
        let holes = [CLUSTER..3 * CLUSTER, 5 * CLUSTER - 8192..5 * CLUSTER, in_the_middle, end];
        for at in (0..OF.bytes).step_by(4096).filter(|at| !holes.iter().any(|hole| hole.contains(at))) {
            sparse.poke(at, &whole.peek(at, 4096));
        }
        world.outside.insert(OF.uuid, sparse);
        let (lane, mut held) = clone_of_bdev(&mut world);
        world.snapshot(10, 11);
        put(&mut world, lane, &mut held, 2 * CLUSTER + 512, 1, 512);
        zero(&mut world, lane, &mut held, Op::Discard, 8 * CLUSTER, CLUSTER);
        let own = 1;
        if decouple {
            inflate(&mut world, 10, true).unwrap();
            holds(&mut world, lane, &held, "without its snapshot");
        }
        inflate(&mut world, 10, decouple).unwrap();
        holds(&mut world, lane, &held, "alone");
        let head = world.info().volumes.last().unwrap().clone();
        assert_eq!((head.parent, head.origin), (None, None));
        // Ten whole ones and a part, but for two holes, the end and what was given back; one of the holes was written.
        assert_eq!(head.owned_bytes, (7 + own) * CLUSTER);
        assert_eq!(head.written_bytes, 7 * CLUSTER - 8192 - 4096 + 4096);
        let mut world = again(world);
        let lane = world.lane(10, 0);
        holds(&mut world, lane, &held, "opened again");
    }
}

#[test]
fn guests_use_it_while_it_is_inflated_and_it_may_change() {
    for seed in 0..12 {
        let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::Seeded(seed));
        World::create(&medium);
        let mut world = World::open(&medium, Floor::seeded(seed), 2, 1).unwrap();
        let (lane, mut held) = clone_of_bdev(&mut world);
        let other = world.lane(10, 1);
        let (order, _) = world.inflation(uuid(10), seed % 2 == 0);
        let answer = world.send(order);
        let mut nth = 0u64;
        while answer.try_recv().is_err() {
            nth += 1;
            assert!(nth < 100_000, "never answered");
            if nth == 40 * (seed + 1) && seed % 3 == 0 {
                world.snapshot(10, 11);
            }
            if nth.is_multiple_of(5) && nth < 600 {
                let at = (nth * 7919) % (BYTES / 512 - 32) * 512;
                let len = 512 * (1 + nth % 17);
                let lane = if nth.is_multiple_of(2) { lane } else { other };
                if nth.is_multiple_of(3) {
                    zero(&mut world, lane, &mut held, Op::Discard, at, len);
                } else {
                    put(&mut world, lane, &mut held, at, nth as u8, len);
                }
            }
            world.floor.step();
        }
        holds(&mut world, lane, &held, "under load");
        let mut world = again(world);
        let lane = world.lane(10, 0);
        holds(&mut world, lane, &held, "opened again");
    }
}

/// Nobody else notices.
#[test]
fn a_bdev_that_is_missing_or_fails() {
    let mut world = world();
    let (lane, mut held) = clone_of_bdev(&mut world);
    put(&mut world, lane, &mut held, 0, 1, CLUSTER);
    world.create_volume(12, 4 * CLUSTER);
    let missing = world.pool.volume(uuid(10)).unwrap();
    missing.stands_alone();
    assert_eq!(missing.open(OpenArgs { depth: 1, seed: 0 }).err(), Some(OpenError::Missing));
    missing.stands_over(uuid(1), std::sync::Arc::new(world.outside(OF)));
    assert_eq!(missing.open(OpenArgs { depth: 1, seed: 0 }).err(), Some(OpenError::Missing));
    assert_eq!(missing.erasure(), Erasure::Shared);
    let order = |decouple| {
        let (progress, way) = Default::default();
        Order::Inflate { uuid: uuid(10), decouple, progress, way }
    };
    for decouple in [true, false] {
        assert_eq!(world.order(order(decouple)).unwrap_err().reason(), "missing");
    }
    let outside = world.outside(OF);
    outside.rule(Rule::new(Effect::Fail(IoError::Medium)).always());
    assert_eq!(world.floor.read(lane, 4 * CLUSTER, 512), Err(IoError::Medium));
    assert_eq!(world.floor.write(lane, 4 * CLUSTER, &[1; 512], IoFlags::empty()), Err(IoError::Medium));
    put(&mut world, lane, &mut held, 4 * CLUSTER, 2, 4096);
    assert_eq!(world.read(lane, 0, CLUSTER), vec![1; CLUSTER as usize], "what is its own");
    let behind = world.read(lane, 11 * CLUSTER, CLUSTER);
    assert!(behind.iter().all(|byte| *byte == 0));
    assert_eq!(inflate(&mut world, 10, false).unwrap_err().reason(), "io");
    outside.clear_rules();
    holds(&mut world, lane, &held, "when it works again");
    inflate(&mut world, 10, false).unwrap();
    holds(&mut world, lane, &held, "inflated");
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "opened again");
}

/// Whoever had the volume open reads what is its own; the rest is not ready until it is opened again.
#[test]
fn a_volume_gets_a_bdev_to_stand_on() {
    let mut world = world();
    world.create_volume(10, BYTES);
    let old = world.lane(10, 0);
    world.write(old, 0, 1, 4096 + 512);
    world.discard(old, CLUSTER, 4096);
    let set = |world: &mut World, volume: u128, origin: Origin| {
        world.order(Order::SetOrigin { uuid: uuid(volume), origin }).map_err(|error| error.reason())
    };
    assert_eq!(set(&mut world, 10, Origin { bytes: BYTES + 512, ..OF }).unwrap_err(), "invalid");
    assert_eq!(set(&mut world, 10, Origin { bytes: 100, ..OF }).unwrap_err(), "invalid");
    set(&mut world, 10, OF).unwrap();
    assert_eq!(set(&mut world, 10, OF).unwrap_err(), "exists_same");
    let mut held = world.outside(OF).peek(0, OF.bytes as usize);
    held.resize(BYTES as usize, 0);
    held[..4096 + 512].fill(1);
    held[4096 + 512..8192].fill(0);
    assert_eq!(world.floor.read(old, 0, 4096), Ok(vec![1; 4096]));
    assert_eq!(world.floor.read(old, 8192, 4096), Err(IoError::NotReady));
    assert_eq!(world.floor.read(old, 4096, 8192), Err(IoError::NotReady));
    assert_eq!(world.floor.write(old, 8192, &[1; 512], IoFlags::empty()), Err(IoError::NotReady));
    world.close(old);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "on the bdev");
    // On a snapshot, and from there on another bdev.
    world.create_volume(20, BYTES);
    world.snapshot(20, 21);
    world.order(Order::SetParent { uuid: uuid(10), parent: uuid(21) }).unwrap();
    held[8192..].fill(0);
    holds(&mut world, lane, &held, "on a snapshot");
    assert_eq!(set(&mut world, 21, OF).unwrap_err(), "unfit");
    let other = Origin { uuid: uuid(79), bytes: CLUSTER };
    set(&mut world, 10, other).unwrap();
    let (mut world, old) = (again(world), held);
    held = world.outside(other).peek(0, CLUSTER as usize);
    held.resize(BYTES as usize, 0);
    held[..8192].copy_from_slice(&old[..8192]);
    let lane = world.lane(10, 1);
    holds(&mut world, lane, &held, "on another one");
    assert!(world.order(Order::Limit { uuid: uuid(10), quota: None, reserved: Some(BYTES) }).is_ok());
    assert_eq!(set(&mut world, 10, OF).unwrap_err(), "invalid", "a thick one");
}

#[test]
fn what_the_bdev_has_counts_as_data() {
    let mut world = world();
    let (lane, _) = clone_of_bdev(&mut world);
    world.discard(lane, 2 * CLUSTER, CLUSTER);
    world.write(lane, 11 * CLUSTER, 1, 4096);
    let volume = world.volume(uuid(10));
    let found = volume.allocated(0, 100).unwrap();
    let of: Vec<_> = found.extents.iter().map(|extent| (extent.offset, extent.len, extent.kind)).collect();
    let end = 10 * CLUSTER + 8192;
    let data = |from: u64, to: u64| (from, to - from, ExtentKind::Data);
    let expected = [data(0, 2 * CLUSTER), data(3 * CLUSTER, end), data(11 * CLUSTER, 11 * CLUSTER + 4096)];
    assert_eq!((&of[..], found.next_offset), (&expected[..], None));
    let page = volume.allocated(CLUSTER, 1).unwrap();
    assert_eq!((page.extents[0].offset, page.next_offset), (CLUSTER, Some(3 * CLUSTER)));
    let mapped = |at: u64| volume.extent(at, BYTES - at);
    assert_eq!((mapped(0).mapped, mapped(0).len), (true, 2 * CLUSTER));
    assert_eq!((mapped(2 * CLUSTER).mapped, mapped(2 * CLUSTER).len), (false, CLUSTER));
    assert_eq!((mapped(end).mapped, mapped(end).len), (false, 11 * CLUSTER - end));
    world.snapshot(10, 11);
    world.write(lane, 4 * CLUSTER, 2, 4096);
    let (volume, snapshot) = (world.volume(uuid(10)), world.volume(uuid(11)));
    let delta = volume.delta(&snapshot, 0, 100).unwrap();
    assert_eq!(delta.extents.len(), 1, "what lies below both is no difference");
    assert_eq!(volume.own(0, 100).unwrap().extents.len(), 1, "nor its own");
}

/// The bdev ends in the middle of a sub-block, and a read may begin anywhere.
#[test]
fn a_read_may_begin_behind_the_end_of_the_bdev() {
    let mut world = world();
    let (lane, held) = clone_of_bdev(&mut world);
    for at in (9 * CLUSTER..BYTES).step_by(512) {
        let len = 1024.min(BYTES - at);
        let found = world.read(lane, at, len);
        assert!(
            found == held[at as usize..(at + len) as usize],
            "{} bytes behind the end",
            at as i64 - OF.bytes as i64
        );
    }
}

/// When a volume has all of it the bdev may be given to somebody else at once: who still reads it is waited for.
#[test]
fn nobody_reads_the_bdev_any_more_when_a_volume_needs_it_no_more() {
    let mut world = world();
    let (lane, held) = clone_of_bdev(&mut world);
    let outside = world.outside(OF);
    outside.rule(Rule::new(Effect::Hold).op(Op::Read).at(4 * CLUSTER..4 * CLUSTER + 512));
    let read = world.floor.submit(lane, Request::read(4 * CLUSTER, 512));
    let (order, progress) = world.inflation(uuid(10), true);
    let answer = world.send(order);
    world.floor.settle(5_000_000_000);
    let (done, total) = progress.get();
    assert!(done == total && total > 0, "all is copied");
    assert_eq!(answer.try_recv().map(|_| ()), Err(TryRecvError::Empty), "somebody reads the bdev");
    assert_eq!(world.info().volumes[0].origin, Some(OF), "so it is still its");
    outside.release();
    assert_eq!(world.floor.run_until(read), Ok(held[4 * CLUSTER as usize..][..512].to_vec()));
    world.floor.settle(1_000_000_000);
    answer.try_recv().expect("nobody does any more").unwrap();
    assert_eq!(world.info().volumes[0].origin, None);
    assert!(
        !world.volume(uuid(10)).shared.left.is_empty(),
        "the way that the order had is dropped by somebody who may wait"
    );
}

/// The volume is there with all that the bdev has, or it is not; it stands on the bdev, or has all of it.
#[test]
fn a_crash_in_the_middle_of_anything() {
    for what in ["clone", "decouple", "inflate", "set"] {
        let mut world = world();
        let before = |world: &mut World| {
            let (lane, mut held) = clone_of_bdev(world);
            change(world, lane, &mut held);
            world.floor.flush(lane).unwrap();
            held
        };
        let mut held = world.outside(OF).peek(0, OF.bytes as usize);
        held.resize(BYTES as usize, 0);
        let mut was = None;
        let order = match what {
            "clone" => Order::CloneBdev { of: OF, uuid: uuid(10), name: "c".into(), bytes: BYTES, created: 1 },
            "set" => {
                world.create_volume(10, BYTES);
                was = Some(vec![0; BYTES as usize]);
                Order::SetOrigin { uuid: uuid(10), origin: OF }
            }
            what => {
                held = before(&mut world);
                was = Some(held.clone());
                world.inflation(uuid(10), what == "decouple").0
            }
        };
        let answer = world.send(order);
        let (mut known, mut outcomes, mut done) = (BTreeSet::new(), BTreeSet::new(), false);
        while !done {
            done = answer.try_recv().is_ok_and(|answer| answer.is_ok());
            for (choice, left) in world.medium.crashes(2, Arrival::InOrder) {
                if !known.insert((left.digest(), done)) {
                    continue;
                }
                clean(&left, "after the crash").unwrap_or_else(|why| panic!("{what}: {choice:?}: {why}"));
                let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
                let origin = after.info().volumes.first().map(|volume| volume.origin);
                let is_done = match what {
                    "clone" => origin.is_some(),
                    "set" => origin == Some(Some(OF)),
                    _ => origin == Some(None),
                };
                assert!(is_done || !done, "{what}: it was answered, and is {origin:?}");
                outcomes.insert(is_done);
                if let Some(expected) = if is_done { Some(&held) } else { was.as_ref() } {
                    let lane = after.lane(10, 0);
                    holds(&mut after, lane, expected, what);
                }
                after.forget();
            }
            world.floor.step();
        }
        assert_eq!(outcomes.len(), 2, "{what}: {} media", known.len());
    }
}
