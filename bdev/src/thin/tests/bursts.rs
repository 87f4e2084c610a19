//! What goes the short way together.

use pollux_core::{IoFlags, Op};

use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::Request;
use crate::testing::medium::{Effect, Rule};
use crate::thin::shared::fence_readers;

const SUB: u64 = CLUSTER / 16;
const NONE: IoFlags = IoFlags::empty();

fn overwrite(at: u64, len: u64) -> Request {
    Request::write(at, vec![2; len as usize], NONE)
}

/// The channel says that it goes by the closed gate while a write of this pass is in flight: nothing more begins with that.
#[test]
fn nobody_joins_a_burst_behind_a_closed_gate() {
    let mut world = World::fresh(64 * MIB);
    world.create_volume(10, 8 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    world.floor.flush(lane).unwrap();
    let volume = world.pool.volume(uuid(10)).unwrap().volume;
    let medium = world.medium.clone();
    medium.rule(Rule::new(Effect::Hold).op(Op::Write).always());
    let before = medium.hits();
    let first = world.floor.submit(lane, overwrite(0, SUB));
    volume.close_gate();
    fence_readers();
    assert!(!volume.is_still(), "it has something in flight, and has not seen it");
    let joins = world.floor.submit(lane, overwrite(SUB, SUB));
    assert_eq!(medium.hits() - before, 2, "until it has, what begins belongs to what is in flight");
    // Of another length: it begins by itself.
    let other = world.floor.submit(lane, overwrite(2 * SUB, 2 * SUB));
    assert!(volume.is_still());
    let late = world.floor.submit(lane, overwrite(4 * SUB, SUB));
    assert_eq!(medium.hits() - before, 2);
    volume.open_gate(None);
    medium.clear_rules();
    medium.release();
    for ticket in [first, joins, other, late] {
        assert_eq!(world.floor.run_until(ticket), Ok(Vec::new()));
    }
}

/// The engine waits for what began before it took something out of the maps, and for what has joined that since.
#[test]
fn what_joins_a_burst_counts_as_begun_with_it() {
    let mut world = World::fresh(64 * MIB);
    world.create_volume(10, 8 * MIB);
    let lane = world.lane(10, 0);
    world.write(lane, 0, 1, CLUSTER);
    let thin = world.pool.volume(uuid(10)).unwrap();
    let medium = world.medium.clone();
    let first = world.floor.submit(lane, Request::read(0, SUB));
    let ended = thin.shared.epoch.raise();
    assert!(!thin.volume.is_past(ended));
    medium.rule(Rule::new(Effect::Hold).op(Op::Read).when(|io| io.len == SUB).always());
    let joins = world.floor.submit(lane, Request::read(SUB, SUB));
    medium.clear_rules();
    assert_eq!(world.floor.run_until(first), Ok(vec![1; SUB as usize]));
    assert!(!thin.volume.is_past(ended), "the second looked at the map after the first");
    medium.release();
    assert_eq!(world.floor.run_until(joins), Ok(vec![1; SUB as usize]));
    assert!(thin.volume.is_past(ended));
}
