//! Who waits for what, and who overtakes whom.

use pollux_core::{IoFlags, Op};

use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::{Order, SnapshotOf};

const LEAF: u64 = 504 * CLUSTER;
const SUB: u64 = CLUSTER / 16;

fn world() -> World {
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 4 * LEAF);
    world
}

/// Until it is unlocked the entry may not be marked, so a commit may not know of it.
#[test]
fn what_is_written_in_place_waits_for_whoever_is_making_it_so() {
    let mut world = world();
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.order(Order::Commit).unwrap();
    let volume = world.pool.volume(uuid(10)).unwrap();
    let (locks, head) = (&volume.shared.locks, volume.volume.chain().head().id);
    let requests = [
        Request::write(SUB, vec![2; SUB as usize], IoFlags::empty()),
        Request::write(SUB + 512, vec![2; 512], IoFlags::FUA),
        Request::write(0, vec![2; 4 * SUB as usize], IoFlags::empty()),
        Request::plain(Op::WriteZeroes, IoFlags::FUA, SUB + 512, 512),
        Request::plain(Op::WriteZeroes, IoFlags::ERASE, 0, CLUSTER),
        Request::discard(0, CLUSTER),
    ];
    for request in requests {
        assert!(locks.try_lock(head, 0, 1 << 1));
        let what = format!("{:?} of {} bytes at {}", request.op, request.len, request.offset);
        let asked = world.floor.submit(lane, request);
        for _ in 0..2000 {
            world.floor.step();
        }
        assert!(world.floor.take(asked).is_none(), "{what}");
        assert_eq!(world.read(lane, 2 * SUB, SUB).len() as u64, SUB, "who reads does not wait");
        locks.unlock(head, 0, 1 << 1);
        assert!(world.floor.run_until(asked).is_ok(), "{what}");
    }
}

/// A queue goes on while the map for one of its requests is on its way.
#[test]
fn who_waits_for_a_leaf_is_overtaken() {
    let mut world = world();
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.write(lane, LEAF, 2, CLUSTER);
    let medium = world.shut();
    let mut world = World::open(&medium, Floor::in_order(), 2, 2).unwrap();
    let lane = world.lane(10, 0);
    assert!(world.read(lane, 0, CLUSTER).iter().all(|byte| *byte == 1));
    medium.rule(Rule::new(Effect::Hold).op(Op::Read));
    let slow = [
        world.floor.submit(lane, Request::read(LEAF, SUB)),
        world.floor.submit(lane, Request::write(LEAF + SUB, vec![3; SUB as usize], IoFlags::empty())),
    ];
    for cluster in 0..4 {
        world.write(lane, cluster * CLUSTER, 4, SUB);
    }
    world.discard(lane, 4 * CLUSTER, CLUSTER);
    assert!(slow.iter().all(|ticket| world.floor.take(*ticket).is_none()));
    medium.clear_rules();
    medium.release();
    assert_eq!(world.floor.run_until(slow[0]), Ok(vec![2; SUB as usize]));
    assert!(world.floor.run_until(slow[1]).is_ok());
    assert_eq!(world.read(lane, LEAF + SUB, SUB), vec![3; SUB as usize]);
}

/// What a commit has to say is gathered and told in parts, and requests go on in between.
#[test]
fn a_long_commit_takes_many_passes() {
    let passes_of = |entries: u64| {
        let mut world = world();
        world.snapshot(10, 11);
        let lane = world.lane(10, 0);
        world.discard(lane, 0, entries * CLUSTER);
        let before = world.passes();
        world.order(Order::Commit).unwrap();
        (world.passes() - before, world)
    };
    let (short, _) = passes_of(1);
    // Not all of the last leaf, which would be one record.
    let (long, mut world) = passes_of(4 * 504 - 1);
    assert!(long >= short + 6, "{long} passes, and {short} for one entry");
    assert!(long < short + 60, "{long} passes, and {short} for one entry");
    let lane = world.lane(10, 1);
    world.write(lane, LEAF, 5, SUB);
    world.floor.flush(lane).unwrap();
    assert_eq!(world.read(lane, LEAF, SUB), vec![5; SUB as usize]);
}

/// A first write that is on its way when its volume is cut ends in the layer that it began in, which counts it; and leaves no
/// lock behind.
#[test]
fn a_first_write_in_flight_is_the_snapshots() {
    const LEN: u64 = 3 * SUB;
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 4 * LEAF);
    let lane = world.lane(10, 0);
    // Its leaf is there from now on.
    world.write(lane, 0, 1, SUB);
    world.order(Order::Commit).unwrap();
    medium.rule(Rule::new(Effect::Hold).op(Op::Write).when(|io| io.len == LEN));
    let first = world.floor.submit(lane, Request::write(CLUSTER, vec![2; LEN as usize], IoFlags::empty()));
    let of = vec![SnapshotOf { volume: uuid(10), uuid: uuid(11), name: "s".into() }];
    let answer = world.send(Order::Snapshot { of, created: 6 });
    for _ in 0..2000 {
        world.floor.step();
    }
    // The head is another one already.
    world.write(lane, 2 * CLUSTER, 3, SUB);
    assert!(world.floor.take(first).is_none() && answer.try_recv().is_err());
    medium.clear_rules();
    medium.release();
    assert!(world.floor.run_until(first).is_ok());
    for _ in 0..2000 {
        world.floor.step();
    }
    answer.try_recv().expect("all that was in flight has ended").expect("there is room");
    let used = |world: &mut World, number: u128| {
        let volumes = world.info().volumes;
        let info = volumes.iter().find(|volume| volume.uuid == uuid(number)).unwrap();
        (info.owned_bytes / CLUSTER, info.written_bytes / SUB)
    };
    assert_eq!((used(&mut world, 11), used(&mut world, 10)), ((2, 4), (1, 1)));
    assert_eq!(world.read(lane, CLUSTER, LEN), vec![2; LEN as usize]);
    world.write(lane, CLUSTER, 4, SUB);
    let snapshot = world.lane(11, 1);
    assert_eq!(world.read(snapshot, CLUSTER, LEN), vec![2; LEN as usize]);
    assert_eq!(world.read(snapshot, 2 * CLUSTER, SUB), vec![0; SUB as usize]);
    assert_eq!((used(&mut world, 11), used(&mut world, 10)), ((2, 4), (2, 2)));
}
