//! Things that meet at a bad moment: leaves that leave memory and are wanted again, orders that begin when something ends, and
//! requests that take long while much else happens.

use pollux_core::{IoFlags, Op};

use super::judge::clean;
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::PoolError;
use crate::thin::orders::{Order, SnapshotOf};
use crate::thin::shared::{CLOSED, Stay};

const NONE: IoFlags = IoFlags::empty();
const LEAF: u64 = 504 * CLUSTER;

/// Some steps, and not so much time that something is done by itself.
fn steps(world: &mut World, count: u32) {
    let until = world.floor.now() + 1_000_000;
    (0..count).for_each(|_| _ = world.floor.step_until(until));
}

fn snapshot(volume: u128, number: u128) -> Order {
    let of = vec![SnapshotOf { volume: uuid(volume), uuid: uuid(number), name: format!("s{number}") }];
    Order::Snapshot { of, created: 6 }
}

/// A first write is on its way when its leaf leaves memory. Somebody wants the leaf again, but as many are being loaded as
/// may be. The write ends, and the leaf is put back as it is: it must not be loaded over that afterwards.
#[test]
fn a_leaf_that_is_put_back_is_not_loaded_as_well() {
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 1, 0).unwrap();
    world.create_volume(10, 100 * LEAF);
    let lane = world.lane(10, 0);
    for leaf in 0..60 {
        world.write(lane, leaf * LEAF, 1, 4096);
        world.floor.flush(lane).unwrap();
    }
    let medium = world.shut();
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 2, 0).unwrap();
    let (lane, other) = (world.lane(10, 0), world.lane(10, 1));
    world.read(lane, 0, 512);
    medium.rule(Rule::new(Effect::Hold).op(Op::Write).when(|io| io.len == 8192));
    let write = world.floor.submit(lane, Request::write(CLUSTER, vec![7; 8192], NONE));
    // So many that the first ones leave.
    for leaf in 1..=50 {
        world.read(other, leaf * LEAF, 512);
    }
    let is_page = |io: &pollux_core::Io| io.len == 4096;
    medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(is_page).always());
    let before = medium.hits();
    // None beside another: those would be read together.
    let many = [51, 53, 55, 57].map(|leaf| world.floor.submit(other, Request::read(leaf * LEAF, 512)));
    steps(&mut world, 50);
    assert_eq!(medium.hits() - before, 4, "so many are loaded at once");
    let late = world.floor.submit(other, Request::read(CLUSTER, 8192));
    steps(&mut world, 50);
    medium.release_op(Op::Write);
    assert_eq!(world.floor.run_until(write), Ok(Vec::new()));
    steps(&mut world, 200);
    medium.clear_rules();
    medium.release();
    for ticket in many {
        assert!(world.floor.run_until(ticket).is_ok());
    }
    assert_eq!(world.floor.run_until(late), Ok(vec![7; 8192]));
    steps(&mut world, 200);
    assert_eq!(world.read(lane, CLUSTER, 8192), vec![7; 8192], "it was acknowledged");
    world.floor.flush(lane).unwrap();
    let medium = world.shut();
    clean(&medium, "after it was closed").unwrap();
    let mut world = World::open(&medium, Floor::in_order(), 2, 3).unwrap();
    let lane = world.lane(10, 0);
    assert_eq!(world.read(lane, CLUSTER, 8192), vec![7; 8192], "and flushed");
}

/// An unnamed snapshot has two children. One is removed, and the other gets another parent, at about the same time: what the
/// old one has does not go into it.
#[test]
fn a_volume_that_gets_another_parent_takes_nothing_of_the_old_one() {
    for early in 0..30 {
        let medium = Medium::new(Geometry::with_512(16 * MIB), Arrival::InOrder);
        World::create(&medium);
        let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
        for (number, byte) in [(10, 1), (20, 7)] {
            world.create_volume(number, 4 * CLUSTER);
            let lane = world.lane(number, 0);
            world.write(lane, 0, byte, 4 * CLUSTER);
            world.snapshot(number, number + 1);
            world.close(lane);
        }
        world.clone_of(11, 12);
        world.order(Order::Delete { uuid: uuid(11) }).unwrap();
        let lane = world.lane(10, 1);
        let gone = world.send(Order::Delete { uuid: uuid(12) });
        steps(&mut world, early);
        // Something is in flight, so that the gate takes a turn to close.
        medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(|io| io.len == 1536));
        let read = world.floor.submit(lane, Request::read(0, 1536));
        let is_folded = world.pool.volume(uuid(10)).unwrap().volume.chain().layers.len() == 1;
        let set = world.send(Order::SetParent { uuid: uuid(10), parent: uuid(21) });
        steps(&mut world, 200);
        medium.release();
        assert!(world.floor.run_until(read).is_ok());
        world.floor.settle(2_000_000_000);
        gone.try_recv().unwrap().unwrap();
        let is_set = set.try_recv().unwrap();
        // What it had taken over before is its own.
        let expected = if is_set.is_ok() && !is_folded { 7 } else { 1 };
        assert!(is_set.is_ok() || early > 0 && is_set.unwrap_err().reason() == "busy", "after {early} steps");
        let check = |world: &mut World, lane| {
            let bytes = world.read(lane, 0, 4 * CLUSTER);
            assert!(bytes.iter().all(|byte| *byte == expected), "after {early} steps: {}", bytes[0]);
        };
        check(&mut world, lane);
        let medium = world.shut();
        clean(&medium, "after it was closed").unwrap();
        let mut world = World::open(&medium, Floor::in_order(), 2, 2).unwrap();
        let lane = world.lane(10, 0);
        check(&mut world, lane);
    }
}

/// One request of a volume hangs. Whatever happens to another volume meanwhile, only so many epochs are open; what needs one
/// more waits, and guests do not.
#[test]
fn no_more_epochs_are_open_than_a_reader_can_tell_apart() {
    const MANY: u128 = 40;
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 16 * MIB);
    world.create_volume(20, 16 * MIB);
    let (lane, slow) = (world.lane(10, 0), world.lane(20, 1));
    world.write(slow, 0, 2, CLUSTER);
    medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(|io| io.len == 1536));
    let hangs = world.floor.submit(slow, Request::read(0, 1536));
    let answers: Vec<_> = (0..MANY).map(|nth| world.send(snapshot(10, 100 + nth))).collect();
    for nth in 0..MANY as u64 {
        world.write(lane, nth * CLUSTER, 3, CLUSTER);
        world.discard(lane, nth * CLUSTER, CLUSTER);
        world.floor.settle(600_000_000);
        // The slow one goes on beginning and ending requests.
        assert_eq!(world.read(slow, 512, 512), vec![2; 512]);
    }
    let done = answers.iter().filter(|answer| answer.try_recv().is_ok()).count();
    assert!((4..MANY as usize).contains(&done), "{done} snapshots");
    medium.release();
    assert!(world.floor.run_until(hangs).is_ok());
    world.floor.settle(20_000_000_000);
    let late = answers.iter().filter(|answer| answer.try_recv().is_ok_and(|answer| answer.is_ok())).count();
    assert_eq!(done + late, MANY as usize);
    world.floor.settle(2_000_000_000);
    assert_eq!(world.info().quarantined_bytes, 0);
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Leaves of volumes that are deleted while somebody has asked for them: their memory is somebody else's afterwards.
#[test]
fn memory_of_leaves_that_come_too_late_is_not_lost() {
    const MANY: u128 = 70;
    let medium = Medium::new(Geometry::with_512(32 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 1, 0).unwrap();
    for number in 0..MANY {
        world.create_volume(100 + number, MIB);
        let lane = world.lane(100 + number, 0);
        world.write(lane, 0, 1, 4096);
        world.close(lane);
    }
    world.create_volume(10, 100 * LEAF);
    let medium = world.shut();
    let mut world = World::open_with(&medium, Floor::in_order(), 2, 2, 0).unwrap();
    for number in 0..MANY {
        medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(|io| io.len == 4096).always());
        let lane = world.lane(100 + number, 1);
        let read = world.floor.submit(lane, Request::read(0, 512));
        steps(&mut world, 20);
        world.floor.cancel(lane, read);
        assert!(world.floor.run_until(read).is_err());
        world.close(lane);
        let gone = world.send(Order::Delete { uuid: uuid(100 + number) });
        steps(&mut world, 100);
        medium.clear_rules();
        medium.release();
        world.floor.settle(2_000_000_000);
        gone.try_recv().unwrap().unwrap();
    }
    assert_eq!(world.info().volumes.len(), 1);
    let lane = world.lane(10, 0);
    for leaf in 0..40 {
        world.write(lane, leaf * LEAF, leaf as u8, 4096);
    }
    clean(&world.shut(), "after it was closed").unwrap();
}

/// The pool is closed while an order waits for somebody who still begins something: nobody finds the gate closed for ever.
#[test]
fn a_pool_that_is_closed_leaves_no_gate_closed() {
    let medium = Medium::new(Geometry::with_512(16 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, MIB);
    let thin = world.pool.volume(uuid(10)).unwrap();
    let (reader, mut stay) = (thin.shared.reader(), Stay::new());
    assert!(thin.shared.enter(&thin.volume, &reader));
    let (epoch, _) = stay.begin(&reader, &thin.shared.epoch, thin.volume.word());
    let answer = world.send(snapshot(10, 11));
    steps(&mut world, 100);
    let is_closed = || thin.volume.word().load(std::sync::atomic::Ordering::Relaxed) & CLOSED != 0;
    assert!(is_closed());
    world.shut();
    assert_eq!(answer.try_recv(), Ok(Err(PoolError::Closed)));
    assert!(!is_closed());
    stay.end(&reader, epoch);
}
