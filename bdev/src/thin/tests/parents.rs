//! A volume that stands on something else: whatever a power cut leaves, what nobody has written is what it stands on then.

use pollux_core::{IoFlags, Op};

use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, Request};
use crate::testing::medium::{Crash, Geometry, Medium, Order as Arrival};
use crate::thin::orders::Order;

const LEAF: u64 = 504 * CLUSTER;
const LEAVES: u64 = 60;
const NONE: IoFlags = IoFlags::empty();

/// The commit that says so is of several batches, and a guest writes a part of a sub-block of which the rest comes from what the
/// volume stands on: all of that sub-block is from one of the two.
#[test]
fn a_part_of_a_sub_block_is_not_filled_from_what_the_volume_does_not_stand_on() {
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    // Of each leaf the last cluster is what is looked at.
    let last = |leaf: u64| leaf * LEAF + 503 * CLUSTER;
    for (volume, snapshot, byte) in [(10, 11, 1), (20, 21, 2)] {
        world.create_volume(volume, LEAVES * LEAF);
        let lane = world.lane(volume, 0);
        [30, 31].into_iter().for_each(|leaf| world.write(lane, last(leaf), byte, CLUSTER));
        world.floor.flush(lane).unwrap();
        world.snapshot(volume, snapshot);
    }
    let lane = world.lane(10, 0);
    for leaf in 0..LEAVES {
        world.floor.zero(lane, Op::Discard, leaf * LEAF, 503 * CLUSTER).unwrap();
    }
    let answer = world.send(Order::SetParent { uuid: uuid(10), parent: uuid(21) });
    // As soon as it stands there for its users.
    let volume = world.pool.volume(uuid(10)).unwrap();
    let below = |volume: &crate::thin::ThinVolume| volume.volume.chain().layers[1].id;
    let before = below(&volume);
    while below(&volume) == before {
        world.floor.stir();
        world.floor.step();
    }
    let written = world.floor.submit(lane, Request::write(last(30), vec![3; 512], NONE));
    let (mut instants, mut seen) = (0, [0; 4]);
    while answer.try_recv().is_err() {
        world.floor.stir();
        world.floor.step();
        if world.medium.instants() == instants {
            continue;
        }
        instants = world.medium.instants();
        let left = world.medium.crash(Crash::None, Arrival::InOrder);
        let mut after = World::open(&left, Floor::in_order(), 2, 9).unwrap();
        let lane = after.lane(10, 0);
        let stands_on = after.read(lane, last(31), 512)[0];
        let bytes = after.read(lane, last(30), 4096);
        let is_written = bytes[0] == 3;
        assert!(bytes[512..].iter().all(|byte| *byte == stands_on), "on {stands_on}: {} and {}", bytes[0], bytes[512]);
        seen[usize::from(stands_on == 2) * 2 + usize::from(is_written)] += 1;
        after.forget();
    }
    world.floor.run_until(written).unwrap();
    assert!(seen[0] > 0 && seen[3] > 0 && seen[1] == 0, "{seen:?}");
    world.forget();
}
