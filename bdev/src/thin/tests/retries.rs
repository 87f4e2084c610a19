//! A base that fails once, or for a while, and is well again: nobody is worse off for longer than that.

use pollux_core::{IoError, IoFlags, Op};

use super::judge::{clean, counted};
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::Floor;
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::Order;

const LEAF: u64 = 504 * CLUSTER;

fn open(medium: &Medium, salt: u64) -> World {
    World::open(medium, Floor::in_order(), 2, salt).unwrap()
}

/// A volume of four leaves, a snapshot with all that and more, and nothing of it in memory.
fn world() -> World {
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = open(&medium, 1);
    world.create_volume(10, 4 * LEAF);
    let lane = world.lane(10, 0);
    (0..4).for_each(|leaf| world.write(lane, leaf * LEAF, 1, CLUSTER));
    world.snapshot(10, 11);
    (0..4).for_each(|leaf| world.write(lane, leaf * LEAF, 2, 4096));
    let mut world = open(&world.shut(), 2);
    // What it reads by itself it has read.
    world.floor.settle(1000);
    world
}

/// The next reads of pages of the pool's own fail.
fn pages_fail(world: &World, times: u64) {
    world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Read).when(|io| io.len == 4096).times(times));
}

fn at_rest(world: &mut World) -> crate::thin::PoolInfo {
    world.order(Order::Checkpoint).unwrap();
    world.floor.settle(2_000_000_000);
    world.info()
}

#[test]
fn a_leaf_that_could_not_be_read_once_can_be_read_later() {
    let mut world = world();
    let lane = world.lane(10, 0);
    pages_fail(&world, 1);
    assert_eq!(world.floor.read(lane, 0, 512), Err(IoError::Medium));
    assert_eq!(world.floor.read(lane, 0, 512), Err(IoError::Medium), "who asks at once is not the reason to try again");
    assert_eq!(world.read(lane, LEAF, 512), vec![2; 512]);
    world.floor.settle(1_100_000_000);
    assert_eq!(world.read(lane, 0, 512), vec![2; 512]);
    world.floor.write(lane, 4096, &[3; 4096], IoFlags::empty()).unwrap();
    pages_fail(&world, u64::MAX);
    for _ in 0..3 {
        world.floor.settle(1_100_000_000);
        assert_eq!(world.floor.read(lane, 3 * LEAF, 512), Err(IoError::Medium));
    }
    world.medium.clear_rules();
    world.floor.settle(1_100_000_000);
    assert_eq!(world.read(lane, 3 * LEAF, 512), vec![2; 512]);
    clean(&world.shut(), "after it was closed").unwrap();
}

#[test]
fn a_deleted_volume_gives_everything_back_when_it_can_be_read() {
    let mut world = world();
    for number in [10, 11] {
        pages_fail(&world, 2);
        world.order(Order::Delete { uuid: uuid(number) }).unwrap();
        world.floor.settle(2_000_000_000);
        let info = world.info();
        assert!(info.volumes.iter().any(|volume| volume.uuid.is_nil()), "it is not gone: {info:?}");
        world.floor.settle(11_000_000_000);
    }
    let info = at_rest(&mut world);
    assert_eq!((info.volumes.len(), info.free_bytes), (0, info.total_bytes));
    counted(&info, &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

#[test]
fn a_deleted_snapshot_goes_when_it_can_be_read() {
    let mut world = world();
    let lane = world.lane(10, 0);
    // A map first, then data that are to be copied.
    for what in [4096, CLUSTER - 4096] {
        let rule = Rule::new(Effect::Fail(IoError::Medium)).op(Op::Read).when(move |io| io.len == what);
        world.medium.rule(rule);
    }
    world.order(Order::Delete { uuid: uuid(11) }).unwrap();
    world.floor.settle(2_000_000_000);
    assert_eq!(world.info().volumes.len(), 2);
    world.floor.settle(25_000_000_000);
    assert_eq!((world.info().volumes.len(), world.medium.hits()), (1, 2));
    for leaf in 0..4 {
        assert_eq!(world.read(lane, leaf * LEAF, 8192), [[2; 4096], [1; 4096]].concat());
    }
    let info = at_rest(&mut world);
    counted(&info, &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// What was folded before something failed is not folded once more: its clusters are the child's now, or free and others'.
#[test]
fn a_fold_that_begins_anew_goes_on_where_it_was() {
    const MANY: u64 = 40;
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = open(&medium, 1);
    world.create_volume(10, 9 * LEAF);
    let lane = world.lane(10, 0);
    // Some leaves that are gone through as a whole, and one within which it fails.
    let places: Vec<u64> =
        (0..8).map(|leaf| leaf * LEAF).chain((0..MANY).map(|nth| 8 * LEAF + nth * CLUSTER)).collect();
    places.iter().for_each(|at| world.write(lane, *at, 1, CLUSTER));
    world.snapshot(10, 11);
    // Every other one is freed, and the one before the last is copied.
    places.iter().step_by(2).for_each(|at| world.write(lane, *at, 2, CLUSTER));
    let copied = 8 * LEAF + (MANY - 2) * CLUSTER + CLUSTER;
    world.write(lane, copied, 3, 4096);
    world.floor.flush(lane).unwrap();
    let rule = Rule::new(Effect::Fail(IoError::Medium)).op(Op::Read).when(|io| io.len == CLUSTER - 4096);
    world.medium.rule(rule);
    world.order(Order::Delete { uuid: uuid(11) }).unwrap();
    world.floor.settle(2_000_000_000);
    assert_eq!((world.info().volumes.len(), world.medium.hits()), (2, 1));
    let check = |world: &mut World| {
        for (nth, at) in places.iter().enumerate() {
            let bytes = world.read(lane, *at, CLUSTER);
            let (front, rest) = if *at == copied { (3, 1) } else { (2 - nth as u8 % 2, 2 - nth as u8 % 2) };
            assert!(bytes[..4096].iter().all(|byte| *byte == front), "cluster {nth}: {}", bytes[0]);
            assert!(bytes[4096..].iter().all(|byte| *byte == rest), "cluster {nth}: {}", bytes[4096]);
        }
    };
    check(&mut world);
    // What is free is used by somebody else meanwhile.
    world.create_volume(20, 64 * CLUSTER);
    let other = world.lane(20, 1);
    world.write(other, 0, 9, 64 * CLUSTER);
    world.floor.settle(25_000_000_000);
    assert_eq!(world.info().volumes.len(), 2, "it has not gone");
    check(&mut world);
    assert!(world.read(other, 0, 64 * CLUSTER).iter().all(|byte| *byte == 9));
    let info = at_rest(&mut world);
    counted(&info, &clean(&world.shut(), "after it was closed").unwrap()).unwrap();
}

/// It has to be closed before it can be opened again.
#[test]
fn a_pool_that_fails_while_a_snapshot_is_folded_can_be_closed() {
    let mut world = world();
    let lane = world.lane(10, 0);
    world.medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(|io| io.len == CLUSTER - 4096));
    world.order(Order::Delete { uuid: uuid(11) }).unwrap();
    while world.medium.hits() == 0 {
        assert!(world.floor.step(), "nothing is copied");
    }
    world.medium.rule(Rule::new(Effect::Fail(IoError::Medium)).step("commit.log"));
    world.write(lane, LEAF + 4096, 3, 4096);
    assert!(world.floor.flush(lane).is_err() && world.info().failed);
    world.medium.release();
    world.floor.settle(2_000_000_000);
    assert_eq!(world.read(lane, 0, 8192), [[2; 4096], [1; 4096]].concat());
    let medium = world.shut();
    let mut world = open(&medium, 3);
    world.floor.settle(2_000_000_000);
    assert_eq!(world.info().volumes.len(), 1);
    clean(&world.shut(), "after it was closed").unwrap();
}
