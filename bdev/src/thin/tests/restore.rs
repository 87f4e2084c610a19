//! What goes without moving data, and what is gone for good: ranges that are as a snapshot has them again, and erased volumes.

use std::sync::atomic::AtomicBool;

use pollux_core::{Bdev, CopyError, CopyWay, Erasure, IoFlags, Op, PairCopy};

use super::judge::clean;
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Crash, Geometry, Happened, Medium, Order as Arrival};

const SUB: u64 = CLUSTER / 16;
const NONE: IoFlags = IoFlags::empty();

fn world() -> (World, LaneId) {
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).expect("it was made");
    world.create_volume(10, 4 * MIB);
    let lane = world.lane(10, 0);
    (world, lane)
}

/// Copies a range of one volume or snapshot to the same place of another, as far as they do so by themselves.
fn restore(world: &World, from: u128, to: u128, offset: u64, len: u64) -> (u64, Result<(), CopyError>) {
    let at = |number| world.pool.volume(uuid(number)).expect("it is there").copy_range(offset, len).expect("it copies");
    let pair = PairCopy::new(at(from), at(to));
    assert_eq!(pair.way(0, len, len), CopyWay::Together(len));
    pair.run(0, len, &AtomicBool::new(false), &mut || 0)
}

/// Bytes that were written to the base since there were so many events.
fn written(medium: &Medium, since: usize) -> u64 {
    let events = medium.events();
    let data = events[since..].iter().filter(|event| event.op == Op::Write && event.what == Happened::Submitted);
    data.filter(|event| event.offset >= 2 * MIB).map(|event| event.len).sum()
}

#[test]
fn a_range_is_as_the_snapshot_has_it_and_nothing_is_moved() {
    let (mut world, lane) = world();
    world.write(lane, 0, 1, 8 * CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, 0, 2, 3 * CLUSTER);
    world.write(lane, 4 * CLUSTER + 512, 3, 512);
    world.discard(lane, 5 * CLUSTER, CLUSTER);
    world.write(lane, 9 * CLUSTER, 4, CLUSTER);
    world.floor.flush(lane).expect("the medium works");
    world.floor.settle(1_000_000_000);
    let (free, since) = (world.info().free_bytes, world.medium.events().len());
    assert_eq!(restore(&world, 11, 10, SUB, 10 * CLUSTER - SUB), (10 * CLUSTER - SUB, Ok(())));
    let bytes = world.read(lane, 0, 16 * CLUSTER);
    for (at, byte) in bytes.iter().enumerate() {
        let expected = match at as u64 {
            at if at < SUB => 2,
            at if at < 8 * CLUSTER => 1,
            _ => 0,
        };
        assert_eq!(*byte, expected, "byte {at}");
    }
    world.floor.flush(lane).expect("the medium works");
    assert_eq!(written(&world.medium, since), 0, "only the map has changed");
    world.floor.settle(2_000_000_000);
    // The head had five clusters; of one it still has a sub-block.
    assert_eq!(world.info().free_bytes, free + 4 * CLUSTER);
    // Again it is nothing, and it bears a power cut.
    assert_eq!(restore(&world, 11, 10, SUB, 2 * CLUSTER), (2 * CLUSTER, Ok(())));
    let crashed = world.medium.crash(Crash::None, Arrival::InOrder);
    clean(&crashed, "after the crash").unwrap_or_else(|what| panic!("{what}"));
    let mut after = World::open(&crashed, Floor::in_order(), 2, 9).expect("it is whole");
    let lane = after.lane(10, 0);
    assert!(after.read(lane, 0, 16 * CLUSTER) == bytes);
    after.forget();
    world.forget();
}

#[test]
fn what_would_show_something_newer_is_read_and_written() {
    let (mut world, lane) = world();
    world.write(lane, 0, 1, 4 * CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, CLUSTER, 2, SUB);
    world.snapshot(10, 12);
    world.write(lane, 0, 3, 4 * CLUSTER);
    assert_eq!(restore(&world, 11, 10, 2 * CLUSTER, CLUSTER), (CLUSTER, Ok(())), "nothing lies between");
    assert_eq!(restore(&world, 11, 10, CLUSTER, SUB).1, Err(CopyError::Apart), "the later snapshot has it");
    assert_eq!(restore(&world, 12, 10, 0, 2 * CLUSTER), (2 * CLUSTER, Ok(())));
    let bytes = world.read(lane, 0, 4 * CLUSTER);
    let at = |offset: u64| bytes[offset as usize];
    assert_eq!([at(0), at(CLUSTER), at(CLUSTER + SUB), at(2 * CLUSTER), at(3 * CLUSTER)], [1, 2, 1, 1, 3]);
    world.clone_of(11, 13);
    assert_eq!(restore(&world, 12, 13, 0, CLUSTER).1, Err(CopyError::Apart), "it does not stand on that");
    assert_eq!(restore(&world, 10, 13, 0, CLUSTER).1, Err(CopyError::Apart));
    let refused = restore(&world, 11, 12, 0, CLUSTER).1;
    assert_eq!(refused, Err(CopyError::Target(pollux_core::IoError::ReadOnly)));
}

/// A copy runs on a thread that would wait.
#[test]
fn a_range_is_not_waited_for_without_end() {
    let (mut world, lane) = world();
    world.write(lane, 0, 1, CLUSTER);
    world.snapshot(10, 11);
    world.write(lane, 0, 2, CLUSTER);
    let volume = world.pool.volume(uuid(10)).expect("it is there");
    volume.volume.close_gate();
    assert_eq!(restore(&world, 11, 10, 0, CLUSTER).1, Err(CopyError::Target(pollux_core::IoError::Busy)));
    volume.volume.open_gate(None);
    assert_eq!(restore(&world, 11, 10, 0, CLUSTER), (CLUSTER, Ok(())));
}

/// Erased: first where it lies, then it is given back. From the first flush on nothing of it is anywhere.
#[test]
fn nothing_of_an_erased_volume_is_left_on_the_base() {
    let (mut world, lane) = world();
    let secret = b"what nobody is to read".repeat(24)[..512].to_vec();
    for cluster in 0..6 {
        let data = secret.repeat(3 * SUB as usize / 512);
        world.floor.write(lane, cluster * CLUSTER + SUB, &data, NONE).expect("there is room");
    }
    world.floor.flush(lane).expect("the medium works");
    let is_there = |medium: &Medium| {
        let bytes = medium.peek(0, 32 << 20);
        bytes.chunks(512).any(|sector| sector == &secret[..])
    };
    assert!(is_there(&world.medium.crash(Crash::None, Arrival::InOrder)));
    let erase = |world: &mut World, flags| {
        let ticket = world.floor.submit(lane, Request::plain(Op::WriteZeroes, flags, 0, 4 * MIB));
        world.floor.run_until(ticket).expect("the medium works");
        world.floor.flush(lane).expect("the medium works");
    };
    erase(&mut world, IoFlags::ERASE);
    let owned = world.info().volumes[0].owned_bytes;
    assert_eq!(owned, 6 * CLUSTER, "it has not given anything back");
    for choice in [Crash::None, Crash::All, Crash::Seeded(1), Crash::Seeded(2)] {
        assert!(!is_there(&world.medium.crash(choice, Arrival::InOrder)), "{choice:?}");
    }
    erase(&mut world, IoFlags::MAY_DEALLOCATE);
    world.floor.settle(2_000_000_000);
    assert_eq!(world.info().volumes[0].owned_bytes, 0);
    assert!(world.read(lane, 0, 4 * MIB).iter().all(|byte| *byte == 0) && !is_there(&world.medium));
}

#[test]
fn a_volume_that_shares_with_a_snapshot_says_so() {
    let (mut world, lane) = world();
    let erasure = |world: &World| world.pool.volume(uuid(10)).expect("it is there").erasure();
    world.write(lane, 0, 1, CLUSTER);
    assert_eq!(erasure(&world), Erasure::InPlace);
    world.snapshot(10, 11);
    assert_eq!(erasure(&world), Erasure::Shared);
    world.order(crate::thin::orders::Order::Delete { uuid: uuid(11) }).expect("nobody uses it");
    world.floor.settle(2_000_000_000);
    assert_eq!(erasure(&world), Erasure::InPlace, "it has been folded into the volume");
}

/// What an inflation counts on is not given up under it, and what it cuts off is not shown any more.
#[test]
fn a_range_that_is_restored_while_a_volume_is_inflated_stays() {
    let mut together = 0;
    for steps in 0..80 {
        let (mut world, lane) = world();
        world.write(lane, 0, 1, 6 * CLUSTER);
        world.snapshot(10, 11);
        world.write(lane, 0, 2, 6 * CLUSTER);
        world.floor.flush(lane).expect("the medium works");
        let (order, _) = world.inflation(uuid(10), false);
        let answer = world.send(order);
        (0..steps).for_each(|_| _ = world.floor.step());
        let (_, result) = restore(&world, 11, 10, CLUSTER, 2 * CLUSTER);
        together += u64::from(result.is_ok());
        world.floor.settle(2_000_000_000);
        answer.try_recv().expect("it has ended").expect("there is room");
        let bytes = world.read(lane, 0, 6 * CLUSTER);
        for (at, byte) in bytes.iter().enumerate() {
            let restored = result.is_ok() && (CLUSTER..3 * CLUSTER).contains(&(at as u64));
            assert_eq!(*byte, if restored { 1 } else { 2 }, "byte {at} after {steps} steps: {result:?}");
        }
        assert_eq!(restore(&world, 11, 10, CLUSTER, CLUSTER).1, Err(CopyError::Apart), "it stands on nothing");
    }
    assert!((1..80).contains(&together), "{together}");
}

#[test]
fn what_a_volume_has_cut_off_is_not_shown_by_its_snapshot() {
    let (mut world, lane) = world();
    world.write(lane, 0, 1, 8 * CLUSTER);
    world.snapshot(10, 11);
    world.close(lane);
    for (bytes, allow_shrink) in [(4 * CLUSTER, true), (4 * MIB, false)] {
        world.order(crate::thin::orders::Order::Resize { uuid: uuid(10), bytes, allow_shrink }).expect("it may");
    }
    let lane = world.lane(10, 0);
    world.write(lane, 2 * CLUSTER, 2, 4 * CLUSTER);
    assert_eq!(restore(&world, 11, 10, 2 * CLUSTER, 2 * CLUSTER), (2 * CLUSTER, Ok(())));
    assert_eq!(restore(&world, 11, 10, 4 * CLUSTER, CLUSTER).1, Err(CopyError::Apart), "it does not see so far down");
    let bytes = world.read(lane, 0, 8 * CLUSTER);
    let at = |cluster: u64| bytes[(cluster * CLUSTER) as usize];
    assert_eq!([at(0), at(2), at(3), at(4), at(5), at(6)], [1, 1, 1, 2, 2, 0]);
}
