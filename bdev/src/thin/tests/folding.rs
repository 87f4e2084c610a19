//! Deleted snapshots on their way into what stands on them.

use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::Order;

use super::world::{CLUSTER, MIB, World, uuid};

#[test]
fn a_snapshot_is_what_it_was_until_its_deletion_is_durable() {
    let medium = Medium::new(Geometry::with_512(8 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, 4 * CLUSTER);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.floor.flush(lane).unwrap();
    world.snapshot(10, 11);
    medium.rule(Rule::new(Effect::Hold).step("commit.log"));
    let answer = world.send(Order::Delete { uuid: uuid(11) });
    (0..1000).for_each(|_| {
        world.floor.step();
    });
    let write = world.floor.submit(lane, Request::write(0, vec![2; 4096], pollux_core::IoFlags::empty()));
    (0..1000).for_each(|_| {
        world.floor.step();
    });
    assert!(answer.try_recv().is_err(), "it is not durable");
    assert_eq!(world.floor.take(write).unwrap(), Ok(Vec::new()));
    let (mut there, mut gone) = (0, 0);
    for (choice, left) in medium.crashes(4, Arrival::InOrder) {
        let mut after = World::open(&left, Floor::in_order(), 2, 2).unwrap();
        if after.pool.volume(uuid(11)).is_none() {
            gone += 1;
        } else {
            there += 1;
            let snapshot = after.lane(11, 0);
            assert!(after.read(snapshot, 0, CLUSTER).iter().all(|byte| *byte == 1), "{choice:?}");
        }
        after.forget();
    }
    assert!(there > 0 && gone > 0, "{there} {gone}");
    world.forget();
}
