//! Volumes that stand on less, or on something else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use pollux_core::{IoError, IoFlags};

use super::judge::{again, clean};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::{Answer, Handed, Order, Progress};

fn world() -> World {
    World::fresh(16 * MIB)
}

fn inflation(volume: u128, decouple: bool) -> (Order, Arc<Progress>) {
    let progress = Arc::<Progress>::default();
    let (uuid, way) = (uuid(volume), Handed::default());
    (Order::Inflate { uuid, decouple, progress: progress.clone(), way }, progress)
}

fn inflate(world: &mut World, volume: u128, decouple: bool) -> Answer {
    world.order(inflation(volume, decouple).0)
}

/// A volume of 12 clusters on two snapshots; returns what it holds.
fn chain(world: &mut World) -> (LaneId, Vec<u8>) {
    world.create_volume(10, 12 * CLUSTER);
    let lane = world.lane(10, 0);
    let mut held = vec![0; 12 * CLUSTER as usize];
    let mut put = |world: &mut World, at: u64, byte: u8, len: u64| {
        world.write(lane, at, byte, len);
        held[at as usize..(at + len) as usize].fill(byte);
    };
    put(world, 0, 1, 6 * CLUSTER);
    world.snapshot(10, 11);
    put(world, 2 * CLUSTER, 2, CLUSTER);
    put(world, 3 * CLUSTER + 4096, 2, 8192);
    put(world, 8 * CLUSTER, 2, 4096);
    world.discard(lane, 5 * CLUSTER, CLUSTER);
    world.snapshot(10, 12);
    put(world, 3 * CLUSTER + 8192 + 512, 3, 512);
    put(world, 9 * CLUSTER, 3, 4096);
    world.discard(lane, CLUSTER, 4096);
    held[5 * CLUSTER as usize..6 * CLUSTER as usize].fill(0);
    held[CLUSTER as usize..CLUSTER as usize + 4096].fill(0);
    (lane, held)
}

fn holds(world: &mut World, lane: LaneId, held: &[u8], when: &str) {
    let found = world.read(lane, 0, held.len() as u64);
    if let Some(at) = (0..held.len()).find(|at| found[*at] != held[*at]) {
        panic!("{when}: byte {at} is {} and should be {}", found[at], held[at]);
    }
}

fn names(world: &mut World) -> Vec<(String, Option<uuid::Uuid>)> {
    world.info().volumes.iter().map(|volume| (volume.name.clone(), volume.parent)).collect()
}

#[test]
fn a_decoupled_volume_needs_its_parent_no_more() {
    let mut world = world();
    let (lane, held) = chain(&mut world);
    assert_eq!(inflate(&mut world, 11, true).unwrap_err().reason(), "unfit");
    inflate(&mut world, 10, true).unwrap();
    holds(&mut world, lane, &held, "decoupled");
    assert_eq!(names(&mut world)[2], ("v10".into(), Some(uuid(11))));
    let owned = world.info().volumes[2].owned_bytes;
    world.order(Order::Delete { uuid: uuid(12) }).unwrap();
    world.floor.settle(2_000_000_000);
    let after = world.info();
    assert_eq!(after.volumes.len(), 2);
    assert_eq!(after.volumes[1].owned_bytes, owned, "it had all of it");
    holds(&mut world, lane, &held, "without the snapshot");
    let mut world = again(world);
    let lane = world.lane(10, 0);
    inflate(&mut world, 10, true).unwrap();
    assert_eq!(names(&mut world)[1], ("v10".into(), None));
    assert_eq!(inflate(&mut world, 10, true).unwrap_err().reason(), "no_parent");
    world.order(Order::Delete { uuid: uuid(11) }).unwrap();
    world.floor.settle(2_000_000_000);
    holds(&mut world, lane, &held, "alone");
    let mut world = again(world);
    let lane = world.lane(10, 1);
    holds(&mut world, lane, &held, "opened again");
    let info = world.info();
    assert_eq!((info.volumes.len(), info.volumes[0].reserved_bytes), (1, 0));
}

#[test]
fn an_inflated_volume_stands_alone_and_all_of_it_is_kept() {
    let mut world = world();
    let (lane, held) = chain(&mut world);
    let (order, progress) = inflation(10, false);
    world.order(order).unwrap();
    assert_eq!(progress.get(), (12 * CLUSTER, 12 * CLUSTER));
    holds(&mut world, lane, &held, "inflated");
    let info = world.info();
    let volume = &info.volumes[2];
    assert_eq!((volume.parent, volume.reserved_bytes), (None, 12 * CLUSTER));
    for snapshot in [11, 12] {
        world.order(Order::Delete { uuid: uuid(snapshot) }).unwrap();
    }
    world.floor.settle(2_000_000_000);
    // Somebody else takes all the space that there is, and it still can be written.
    world.create_volume(20, 64 * MIB);
    let other = world.lane(20, 1);
    let mut at = 0;
    while world.floor.write(other, at, &[9; CLUSTER as usize], IoFlags::empty()).is_ok() {
        at += CLUSTER;
    }
    world.write(lane, 0, 4, 12 * CLUSTER);
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &vec![4; 12 * CLUSTER as usize], "written in full");
}

/// What is kept for a volume that is inflated has to be there before it begins.
#[test]
fn what_cannot_be_kept_is_not_begun() {
    let mut world = world();
    world.create_volume(10, 64 * MIB);
    let free = world.info().free_bytes;
    assert_eq!(inflate(&mut world, 10, false).unwrap_err().reason(), "no_space");
    world.order(Order::Limit { uuid: uuid(10), quota: Some(CLUSTER), reserved: None }).unwrap();
    assert_eq!(inflate(&mut world, 10, false).unwrap_err().reason(), "no_space");
    assert_eq!(world.info().free_bytes, free);
}

/// Guests write, discard and read while it is under way; the medium does things in any order.
#[test]
fn guests_use_it_meanwhile() {
    for seed in 0..12 {
        let medium = Medium::new(Geometry::with_512(16 * MIB), Arrival::Seeded(seed));
        World::create(&medium);
        let mut world = World::open(&medium, Floor::seeded(seed), 2, 1).unwrap();
        let (lane, mut held) = chain(&mut world);
        let other = world.lane(10, 1);
        let (order, _) = inflation(10, seed % 2 == 0);
        let answer = world.send(order);
        let mut nth = 0u64;
        while answer.try_recv().is_err() {
            nth += 1;
            assert!(nth < 100_000, "never answered");
            if nth.is_multiple_of(3) && nth < 600 {
                let at = (nth * 7919) % (12 * CLUSTER / 512 - 32) * 512;
                let len = 512 * (1 + nth % 17);
                let lane = if nth.is_multiple_of(2) { lane } else { other };
                if nth.is_multiple_of(5) {
                    world.discard(lane, at, len);
                } else {
                    world.write(lane, at, nth as u8, len);
                }
                held[at as usize..(at + len) as usize].fill(if nth.is_multiple_of(5) { 0 } else { nth as u8 });
            }
            world.floor.step();
        }
        holds(&mut world, lane, &held, "under load");
        let mut world = again(world);
        let lane = world.lane(10, 0);
        holds(&mut world, lane, &held, "opened again");
    }
}

fn run_until(world: &mut World, answer: &Receiver<Answer>) -> Answer {
    for _ in 0..1_000_000 {
        if let Ok(answer) = answer.try_recv() {
            return answer;
        }
        world.floor.stir();
        world.floor.step();
    }
    panic!("never answered");
}

/// Snapshots, smaller sizes, rollbacks and deletions of snapshots while it is under way.
#[test]
fn it_may_change_meanwhile() {
    for decouple in [true, false] {
        for what in 0..5 {
            for early in [1, 10, 40, 100, 200] {
                let mut world = world();
                let (lane, mut held) = chain(&mut world);
                let answer = world.send(inflation(10, decouple).0);
                (0..early).for_each(|_| {
                    world.floor.step();
                });
                match what {
                    0 => world.snapshot(10, 13),
                    1 => {
                        let order = Order::Resize { uuid: uuid(10), bytes: 4 * CLUSTER, allow_shrink: true };
                        world.order(order).unwrap();
                        held.truncate(4 * CLUSTER as usize);
                    }
                    2 => drop(world.order(Order::Delete { uuid: uuid(11) }).unwrap()),
                    3 => drop(world.order(Order::Delete { uuid: uuid(12) }).unwrap()),
                    _ => {
                        let rolled_back = world.order(Order::Rollback { uuid: uuid(10), to: uuid(12) });
                        if rolled_back.is_ok() {
                            let snapshot = world.lane(12, 1);
                            held = world.read(snapshot, 0, 12 * CLUSTER);
                            world.close(snapshot);
                        }
                    }
                }
                let when = format!("decouple {decouple}, {what} after {early}");
                run_until(&mut world, &answer).unwrap_or_else(|error| panic!("{when}: {error}"));
                holds(&mut world, lane, &held, &when);
                world.floor.settle(2_000_000_000);
                holds(&mut world, lane, &held, &when);
                let parents = names(&mut world);
                let parent = parents.iter().find(|(name, _)| name == "v10").unwrap().1;
                let allowed = match (decouple, what) {
                    // The snapshot may be of the inflated volume, or of what it was before.
                    (false, 0) => vec![None, Some(uuid(13))],
                    (false, _) => vec![None],
                    (true, 0) => vec![Some(uuid(11)), Some(uuid(13))],
                    (true, 2) => vec![None],
                    (true, _) => vec![Some(uuid(11)), None],
                };
                assert!(allowed.contains(&parent), "{when}: {parents:?}");
                let mut world = again(world);
                let lane = world.lane(10, 0);
                holds(&mut world, lane, &held, &when);
                if what == 0 {
                    let snapshot = world.lane(13, 1);
                    holds(&mut world, snapshot, &held, &when);
                }
            }
        }
    }
}

#[test]
fn a_crash_in_the_middle_changes_nothing() {
    for decouple in [true, false] {
        let mut world = world();
        let (lane, held) = chain(&mut world);
        world.floor.flush(lane).unwrap();
        let answer = world.send(inflation(10, decouple).0);
        let (mut known, mut parents) = (BTreeSet::new(), BTreeSet::new());
        let mut done = false;
        while !done {
            done = answer.try_recv().is_ok_and(|answer| answer.is_ok());
            for (choice, left) in world.medium.crashes(2, Arrival::InOrder) {
                if !known.insert((left.digest(), done)) {
                    continue;
                }
                clean(&left, "after the crash").unwrap_or_else(|what| panic!("{choice:?}: {what}"));
                let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
                let lane = after.lane(10, 0);
                holds(&mut after, lane, &held, "after the crash");
                let parent = names(&mut after)[2].1;
                assert!(!done || parent == if decouple { Some(uuid(11)) } else { None }, "it was answered");
                parents.insert(parent);
                clean(&after.shut(), "after it was closed").unwrap_or_else(|what| panic!("{choice:?}: {what}"));
            }
            world.floor.step();
        }
        assert!(known.len() > 20 && parents.len() == 2, "{} media, {parents:?}", known.len());
    }
}

#[test]
fn it_can_be_cancelled_and_fail() {
    let mut world = world();
    let (lane, held) = chain(&mut world);
    let (order, progress) = inflation(10, false);
    let answer = world.send(order);
    while progress.get().1 == 0 {
        world.floor.step();
    }
    let twice = inflate(&mut world, 10, true);
    assert_eq!(twice.unwrap_err().reason(), "busy");
    progress.cancel();
    assert_eq!(run_until(&mut world, &answer).unwrap_err().reason(), "cancelled");
    holds(&mut world, lane, &held, "cancelled");
    assert_eq!(world.info().volumes[2].reserved_bytes, 0);
    // A source that cannot be read.
    world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(pollux_core::Op::Read));
    assert_eq!(inflate(&mut world, 10, false).unwrap_err().reason(), "io");
    world.medium.clear_rules();
    inflate(&mut world, 10, false).unwrap();
    holds(&mut world, lane, &held, "at last");
    drop(again(world));
}

/// What is kept for a volume is kept for nobody when it is a snapshot.
#[test]
fn a_volume_that_is_inflated_does_not_become_a_snapshot() {
    let mut world = world();
    let (_, held) = chain(&mut world);
    let answer = world.send(inflation(10, false).0);
    let read_only = Order::SetReadOnly { uuid: uuid(10) };
    assert_eq!(world.order(read_only.clone()).unwrap_err().reason(), "busy");
    run_until(&mut world, &answer).unwrap();
    world.order(read_only).unwrap();
    let info = world.info();
    assert_eq!(info.volumes[2].reserved_bytes, 0);
    let owned: u64 = info.volumes.iter().map(|volume| volume.owned_bytes).sum();
    world.floor.settle(2_000_000_000);
    let info = world.info();
    assert_eq!(info.free_bytes + info.quarantined_bytes + owned, info.total_bytes, "{info:?}");
    let lane = world.lane(10, 1);
    holds(&mut world, lane, &held, "as a snapshot");
}

/// SPDK's rules, and what is read afterwards.
#[test]
fn a_volume_gets_another_parent() {
    let mut world = world();
    let (lane, mut held) = chain(&mut world);
    world.create_volume(20, 12 * CLUSTER);
    let other = world.lane(20, 1);
    world.write(other, 0, 7, 12 * CLUSTER);
    world.snapshot(20, 21);
    let set = |world: &mut World, volume: u128, parent: u128| {
        let order = Order::SetParent { uuid: uuid(volume), parent: uuid(parent) };
        world.order(order).map_err(|error| error.reason())
    };
    assert_eq!(set(&mut world, 10, 12).unwrap_err(), "exists_same");
    assert_eq!(set(&mut world, 10, 20).unwrap_err(), "unfit");
    assert_eq!(set(&mut world, 11, 21).unwrap_err(), "unfit");
    world.create_volume(30, 4 * CLUSTER);
    assert_eq!(set(&mut world, 30, 21).unwrap_err(), "invalid");
    let flying = world.floor.submit(lane, Request::read(0, 12 * CLUSTER));
    set(&mut world, 10, 21).unwrap();
    assert!(world.floor.take(flying).expect("it has ended").is_ok());
    // What it had itself stays: two writes, and zeroes.
    let mut own = vec![7; 12 * CLUSTER as usize];
    let edge = (3 * CLUSTER + 8192) as usize;
    own[edge..edge + 4096].copy_from_slice(&held[edge..edge + 4096]);
    own[9 * CLUSTER as usize..][..4096].fill(3);
    own[CLUSTER as usize..][..4096].fill(0);
    held = own;
    holds(&mut world, lane, &held, "on another snapshot");
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "opened again");
    let parents = names(&mut world);
    assert_eq!(parents.iter().find(|(name, _)| name == "v10").unwrap().1, Some(uuid(21)));
    // A snapshot that is newer than the volume goes into it all the same.
    world.order(Order::Delete { uuid: uuid(20) }).unwrap();
    world.order(Order::Delete { uuid: uuid(21) }).unwrap();
    world.floor.settle(2_000_000_000);
    holds(&mut world, lane, &held, "alone");
    let mut world = again(world);
    let lane = world.lane(10, 0);
    holds(&mut world, lane, &held, "alone, opened again");
}

/// After a crash it stands on the one or on the other, and has all of what that has.
#[test]
fn a_crash_leaves_the_old_parent_or_the_new_one() {
    let mut world = world();
    world.create_volume(20, 12 * CLUSTER);
    let other = world.lane(20, 1);
    world.write(other, 0, 7, 12 * CLUSTER);
    world.snapshot(20, 21);
    let (lane, old) = chain(&mut world);
    world.floor.flush(lane).unwrap();
    let answer = world.send(Order::SetParent { uuid: uuid(10), parent: uuid(21) });
    let (mut known, mut parents, mut done) = (BTreeSet::new(), BTreeSet::new(), false);
    while !done {
        done = answer.try_recv().is_ok_and(|answer| answer.is_ok());
        for (choice, left) in world.medium.crashes(2, Arrival::InOrder) {
            if !known.insert((left.digest(), done)) {
                continue;
            }
            clean(&left, "after the crash").unwrap_or_else(|what| panic!("{choice:?}: {what}"));
            let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
            let parent = names(&mut after).iter().find(|(name, _)| name == "v10").unwrap().1.unwrap();
            assert!(parent == uuid(21) || parent == uuid(12) && !done, "{parent}, answered: {done}");
            parents.insert(parent);
            let lane = after.lane(10, 0);
            let found = after.read(lane, 0, 12 * CLUSTER);
            let last = found[11 * CLUSTER as usize];
            assert!(if parent == uuid(21) { last == 7 } else { found == old }, "{parent}: {last}");
            after.forget();
        }
        world.floor.step();
    }
    assert_eq!(parents.len(), 2);
}
