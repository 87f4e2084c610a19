//! A flush that ends an erasure: nothing that a volume held, or has given back, is left on the base, whatever was to be
//! discarded later, lies in leases, or was never discarded.

use pollux_core::{IoError, IoFlags, Op};

use super::judge::clean;
use super::world::{CLUSTER, MIB, World};
use crate::testing::floor::{Floor, LaneId, Request, Ticket};
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::Order;

const SECOND: u64 = 1_000_000_000;
const SUB: u64 = CLUSTER / 16;
const NONE: IoFlags = IoFlags::empty();
const CLUSTERS: u64 = 256;
const BYTES: u64 = 32 * MIB;

fn secret() -> Vec<u8> {
    b"what nobody is to read".repeat(24)[..512].to_vec()
}

fn sectors_of(medium: &Medium, what: &[u8]) -> usize {
    medium.peek(0, BYTES as usize).chunks(512).filter(|sector| *sector == what).count()
}

/// A volume full of secrets, and another one.
fn world(discard: Option<u32>, rate: u64) -> (World, LaneId, LaneId) {
    let medium = Medium::new(Geometry { discard, ..Geometry::with_512(BYTES) }, Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.order(Order::DiscardRate { rate }).unwrap();
    world.create_volume(10, CLUSTERS * CLUSTER);
    world.create_volume(11, 4 * MIB);
    let (lane, other) = (world.lane(10, 1), world.lane(11, 0));
    let data = secret().repeat(CLUSTER as usize / 512);
    for cluster in 0..CLUSTERS {
        world.floor.write(lane, cluster * CLUSTER, &data, NONE).unwrap();
    }
    world.floor.flush(lane).unwrap();
    (world, lane, other)
}

/// Overwrites what the volume has, and begins the flush that ends that.
fn erase(world: &mut World, lane: LaneId) -> Ticket {
    world.floor.run(lane, Request::plain(Op::WriteZeroes, IoFlags::ERASE, 0, CLUSTERS * CLUSTER)).unwrap();
    world.floor.submit(lane, Request::plain(Op::Flush, IoFlags::ERASE, 0, 0))
}

fn is_gone(world: &World) {
    for choice in [Crash::None, Crash::All, Crash::Seeded(1), Crash::Seeded(2)] {
        let left = sectors_of(&world.medium.crash(choice, Arrival::InOrder), &secret());
        assert_eq!(left, 0, "{choice:?}");
    }
}

/// `waits`: it is erased before the base has been told of anything; else after it has been told of all that it can be.
fn nothing_is_left(discard: Option<u32>, rate: u64, waits: bool) {
    let (mut world, lane, other) = world(discard, rate);
    // Whole clusters, and parts of others.
    world.discard(lane, 0, CLUSTERS / 2 * CLUSTER);
    for cluster in CLUSTERS / 2..CLUSTERS * 3 / 4 {
        world.discard(lane, cluster * CLUSTER + SUB, 5 * SUB);
    }
    if waits {
        world.floor.flush(lane).unwrap();
        world.floor.settle(SECOND);
    }
    assert!(sectors_of(&world.medium, &secret()) > 0);
    let flush = erase(&mut world, lane);
    // Others go on.
    for at in 0..16 {
        world.write(other, at * SUB, 7, SUB);
    }
    world.floor.run_until(flush).unwrap();
    is_gone(&world);
    assert!(world.read(other, 0, 16 * SUB).iter().all(|byte| *byte == 7));
    assert_eq!(world.info().quarantined_bytes, 0);
    // All of the pool can be used.
    world.discard(lane, 0, CLUSTERS * CLUSTER);
    world.floor.flush(lane).unwrap();
    world.write(lane, 0, 9, CLUSTERS * CLUSTER);
    assert!(world.read(lane, 0, CLUSTERS * CLUSTER).iter().all(|byte| *byte == 9));
    clean(&world.shut(), "after it was closed").unwrap();
}

#[test]
fn what_waits_to_be_discarded_is_gone() {
    nothing_is_left(Some(4096), 16 << 10, false);
    nothing_is_left(Some(4096), 16 << 10, true);
}

/// Of clusters that reactors have in their leases the base is not told.
#[test]
fn what_lies_in_leases_is_gone() {
    nothing_is_left(Some(4096), 0, true);
}

#[test]
fn what_was_given_back_to_a_base_that_does_not_discard_is_gone() {
    nothing_is_left(None, 0, false);
    nothing_is_left(None, 0, true);
}

/// It waits for what the base is discarding, and for readers of what was given back.
#[test]
fn a_discard_that_is_under_way_is_waited_for() {
    let (mut world, lane, other) = world(Some(4096), 0);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Discard).times(u64::MAX));
    world.discard(lane, 0, CLUSTERS * CLUSTER);
    world.floor.flush(lane).unwrap();
    world.floor.settle(SECOND);
    let flush = erase(&mut world, lane);
    world.floor.settle(SECOND);
    assert!(world.floor.take(flush).is_none(), "the base still has it");
    world.write(other, 0, 7, SUB);
    world.medium.clear_rules();
    world.medium.release();
    world.floor.run_until(flush).unwrap();
    is_gone(&world);
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Discards that the base refuses are made good; what it does not write over either is an error, until it does.
#[test]
fn what_cannot_be_written_over_is_an_error() {
    let (mut world, lane, _) = world(Some(4096), 0);
    world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Discard).times(u64::MAX));
    world.discard(lane, 0, CLUSTERS * CLUSTER);
    world.floor.flush(lane).unwrap();
    world.floor.settle(SECOND);
    assert!(world.medium.hits() > 0 && world.info().discards.waiting_bytes == 0);
    world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::WriteZeroes));
    let flush = erase(&mut world, lane);
    assert_eq!(world.floor.run_until(flush), Err(IoError::Medium));
    assert!(sectors_of(&world.medium, &secret()) > 0);
    let flush = erase(&mut world, lane);
    world.floor.run_until(flush).unwrap();
    is_gone(&world);
    clean(&world.shut(), "after it was closed").unwrap();
}
