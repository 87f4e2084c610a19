//! What is kept for a volume is there when it is wanted, and what a volume may own at most it does not own more of.

use pollux_core::{Bdev, IoError, IoFlags, Op};

use super::judge::clean;
use super::world::{CLUSTER, MIB, World, uuid};
use crate::testing::floor::{Floor, LaneId, Request};
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order as Arrival, Rule};
use crate::thin::orders::Order;
use crate::thin::shared::Volume;

const NONE: IoFlags = IoFlags::empty();

fn world(bytes: u64, seed: u64, reactors: usize) -> World {
    let medium = Medium::new(Geometry::with_512(bytes), Arrival::Seeded(seed));
    World::create(&medium);
    World::open(&medium, Floor::seeded(seed), reactors, 1).unwrap()
}

fn create(world: &mut World, number: u128, bytes: u64, reserved: u64) -> Result<(), String> {
    let order = Order::Create { uuid: uuid(number), name: format!("v{number}"), bytes, reserved, created: 5 };
    world.order(order).map(|_| ()).map_err(|error| error.reason().to_owned())
}

fn resize(world: &mut World, number: u128, bytes: u64) -> Result<(), String> {
    let order = Order::Resize { uuid: uuid(number), bytes, allow_shrink: false };
    world.order(order).map(|_| ()).map_err(|error| error.reason().to_owned())
}

fn limit(world: &mut World, number: u128, quota: Option<u64>, reserved: Option<u64>) -> Result<(), String> {
    let order = Order::Limit { uuid: uuid(number), quota, reserved };
    world.order(order).map(|_| ()).map_err(|error| error.reason().to_owned())
}

fn reserved(world: &mut World, number: u128) -> u64 {
    world.info().volumes.iter().find(|volume| volume.uuid == uuid(number)).unwrap().reserved_bytes
}

fn available(world: &World, number: u128) -> u64 {
    world.pool.volume(uuid(number)).unwrap().provisioning().unwrap().available
}

/// Writes into each of these clusters until it fails; how many could be written, and how it failed.
fn fill(world: &mut World, lane: LaneId, clusters: std::ops::Range<u64>) -> (u64, Option<IoError>) {
    let from = clusters.start;
    for cluster in clusters.clone() {
        if let Err(error) = world.floor.write(lane, cluster * CLUSTER, &[1; 4096], NONE) {
            return (cluster - from, Some(error));
        }
    }
    (clusters.end - from, None)
}

/// What lies in the leases of reactors is promised only when it has been taken back.
#[test]
fn all_that_is_kept_can_be_written_whatever_thin_volumes_do() {
    for seed in 1..=4 {
        let mut world = world(40 * MIB, seed, 2);
        create(&mut world, 10, 512 * MIB, 0).unwrap();
        let thin = [world.lane(10, 0), world.lane(10, 1)];
        assert_eq!(fill(&mut world, thin[0], 0..1).0 + fill(&mut world, thin[1], 1..2).0, 2);
        // All that there is, but for what is in leases and a few that thin volumes get.
        let all = available(&world, 10) / CLUSTER;
        assert_eq!(create(&mut world, 11, (all + 1) * CLUSTER, (all + 1) * CLUSTER), Err("no_space".into()));
        let kept = all - 8;
        create(&mut world, 11, 512 * MIB, kept * CLUSTER).unwrap();
        let thick = world.lane(11, 1);
        assert_eq!(fill(&mut world, thin[0], 2..600), (8, Some(IoError::NoSpace)), "seed {seed}");
        assert_eq!(fill(&mut world, thick, 0..kept), (kept, None), "seed {seed}");
        clean(&world.shut(), "after it was closed").unwrap();
    }
}

/// Also what is promised by a change that has to wait until requests have ended.
#[test]
fn all_that_a_thick_volume_grows_by_can_be_written() {
    let mut world = world(40 * MIB, 9, 2);
    create(&mut world, 10, 512 * MIB, 0).unwrap();
    create(&mut world, 11, 4 * MIB, 4 * MIB).unwrap();
    let (thin, thick) = (world.lane(10, 0), world.lane(11, 1));
    fill(&mut world, thin, 0..1);
    let all = available(&world, 10);
    assert_eq!(resize(&mut world, 11, 4 * MIB + all + CLUSTER), Err("no_space".into()));
    resize(&mut world, 11, 4 * MIB + all).unwrap();
    assert_eq!(fill(&mut world, thin, 1..600), (0, Some(IoError::NoSpace)));
    let clusters = (4 * MIB + all) / CLUSTER;
    assert_eq!(fill(&mut world, thick, 0..clusters), (clusters, None));
}

#[test]
fn a_thick_volume_grows_with_what_is_kept_and_a_part_stays_a_part() {
    let mut world = world(40 * MIB, 3, 1);
    create(&mut world, 10, 1 << 30, 0).unwrap();
    limit(&mut world, 10, None, Some(MIB)).unwrap();
    resize(&mut world, 10, (1 << 30) + MIB).unwrap();
    assert_eq!(reserved(&mut world, 10), MIB, "no more than before is kept");
    create(&mut world, 11, 4 * MIB, 4 * MIB).unwrap();
    limit(&mut world, 11, Some(6 * MIB), None).unwrap();
    resize(&mut world, 11, 6 * MIB).unwrap();
    assert_eq!(reserved(&mut world, 11), 6 * MIB);
    assert_eq!(resize(&mut world, 11, 8 * MIB), Err("unfit".into()), "its quota is less");
    limit(&mut world, 11, Some(0), None).unwrap();
    assert_eq!(resize(&mut world, 11, 80 * MIB), Err("no_space".into()));
    resize(&mut world, 11, 8 * MIB).unwrap();
    assert_eq!(reserved(&mut world, 11), 8 * MIB);
    create(&mut world, 12, 1 << 30, 0).unwrap();
    let lane = world.lane(12, 0);
    assert_eq!(fill(&mut world, lane, 0..200), (200, None), "others have the rest");
    clean(&world.shut(), "after it was closed").unwrap();
}

#[test]
fn a_quota_of_everything_is_refused_and_a_large_one_is_shown() {
    let mut world = world(40 * MIB, 3, 1);
    create(&mut world, 10, 1 << 30, 0).unwrap();
    for quota in [u64::MAX, (1 << 50) + 1] {
        assert_eq!(limit(&mut world, 10, Some(quota), None), Err("invalid".into()), "{quota}");
    }
    assert_eq!(limit(&mut world, 10, None, Some(u64::MAX)), Err("invalid".into()));
    limit(&mut world, 10, Some(1 << 50), None).unwrap();
    assert_eq!(world.info().volumes[0].quota_bytes, 1 << 50);
}

/// A write that was under way gives back what it has taken of what was kept, when nothing is kept any more.
#[test]
fn what_comes_back_late_is_not_lost() {
    let mut world = world(40 * MIB, 3, 1);
    create(&mut world, 10, 64 * MIB, MIB).unwrap();
    let lane = world.lane(10, 0);
    assert_eq!(fill(&mut world, lane, 0..1), (1, None));
    let all = world.info();
    let volume: &Volume = &world.pool.volume(uuid(10)).unwrap().volume;
    let cluster = volume.take_back().unwrap();
    limit(&mut world, 10, None, Some(0)).unwrap();
    volume.keep(cluster).unwrap();
    assert_eq!(fill(&mut world, lane, 1..2), (1, None));
    world.floor.settle(2_000_000_000);
    let info = world.info();
    assert_eq!(info.free_bytes + CLUSTER, all.free_bytes, "all but what has been written since");
}

/// A pool after a crash, whose log says more than its trees, and whose first checkpoint does not get on.
fn crashed(before: &mut World) -> (World, Medium) {
    before.floor.settle(2_000_000_000);
    let left = before.medium.crash(Crash::None, Arrival::InOrder);
    let world = World::open(&left, Floor::in_order(), 2, 9).unwrap();
    left.rule(Rule::new(Effect::Hold).step("checkpoint.page"));
    (world, left)
}

/// The same with a thick volume (10) of this size, empty since the last checkpoint, and a thin one (11).
fn crashed_without_count(size: u64) -> (World, Medium) {
    let mut before = world(40 * MIB, 5, 2);
    create(&mut before, 10, size, size).unwrap();
    create(&mut before, 11, 64 * MIB, 0).unwrap();
    let (thick, clusters) = (before.lane(10, 0), size / CLUSTER);
    assert_eq!(fill(&mut before, thick, 0..clusters), (clusters, None));
    before.floor.flush(thick).unwrap();
    before.order(Order::Checkpoint).unwrap();
    before.floor.zero(thick, Op::Discard, 0, size).unwrap();
    before.floor.flush(thick).unwrap();
    crashed(&mut before)
}

/// Until the first checkpoint nobody knows what a volume owns: nothing fails because of that.
#[test]
fn a_pool_is_not_full_because_nobody_has_counted_yet() {
    let mut before = world(40 * MIB, 5, 2);
    create(&mut before, 10, 24 * MIB, 24 * MIB).unwrap();
    create(&mut before, 11, 64 * MIB, 0).unwrap();
    before.order(Order::Checkpoint).unwrap();
    let thick = before.lane(10, 0);
    (0..24).for_each(|at| before.write(thick, at * MIB, 1, MIB));
    before.floor.flush(thick).unwrap();
    let (mut world, medium) = crashed(&mut before);
    let lane = world.lane(11, 1);
    let write = |at: u64| Request::write(at * CLUSTER, vec![2; 4096], NONE);
    let all: Vec<_> = (0..100).map(|at| world.floor.submit(lane, write(at))).collect();
    world.floor.settle(10_000_000);
    assert!(medium.hits() > 0 && !world.info().full);
    medium.release();
    all.into_iter().for_each(|ticket| assert_eq!(world.floor.run_until(ticket), Ok(Vec::new())));
    clean(&world.shut(), "after it was closed").unwrap();
}

/// The log has freed what a thick volume owned: it has a claim to that again, also before anybody has counted.
#[test]
fn what_is_promised_is_kept_before_anybody_has_counted() {
    let size = 20 * MIB;
    let (mut world, medium) = crashed_without_count(size);
    let clusters = size / CLUSTER;
    let (thin, thick) = (world.lane(11, 1), world.lane(10, 0));
    let write = |at: u64| Request::write(at * CLUSTER, vec![2; 4096], NONE);
    let all: Vec<_> = (0..30).map(|at| world.floor.submit(thin, write(at))).collect();
    world.floor.settle(10_000_000);
    assert!(medium.hits() > 0, "nobody has counted");
    medium.release();
    all.into_iter().for_each(|ticket| assert_eq!(world.floor.run_until(ticket), Ok(Vec::new())));
    let (_, error) = fill(&mut world, thin, 30..1000);
    assert_eq!(error, Some(IoError::NoSpace));
    assert_eq!(fill(&mut world, thick, 0..clusters), (clusters, None), "it was promised");
    clean(&world.shut(), "after it was closed").unwrap();
}

/// The same while others take all that they can get.
#[test]
fn nobody_gets_what_is_promised_while_nobody_has_counted() {
    let size = 30 * MIB;
    let (mut world, medium) = crashed_without_count(size);
    let clusters = size / CLUSTER;
    let (thin, thick) = (world.lane(11, 1), world.lane(10, 0));
    let mut taken = 0;
    for at in 0..400 {
        let ticket = world.floor.submit(thin, Request::write(at * CLUSTER, vec![2; 4096], NONE));
        world.floor.settle(1_000_000);
        match world.floor.take(ticket) {
            Some(written) => assert_eq!(written, Ok(Vec::new())),
            None => break,
        }
        taken += 1;
    }
    assert!(taken < 400, "it has taken what is promised");
    medium.release();
    world.floor.settle(3_000_000_000);
    assert_eq!(fill(&mut world, thick, 0..clusters), (clusters, None), "it was promised");
    clean(&world.shut(), "after it was closed").unwrap();
}

/// Rolled back to a smaller snapshot less is kept for a volume, and others are not promised less for that.
#[test]
fn a_volume_that_is_rolled_back_has_at_hand_what_is_kept_for_it() {
    let mut world = world(40 * MIB, 3, 2);
    create(&mut world, 10, 10 * CLUSTER, 10 * CLUSTER).unwrap();
    world.snapshot(10, 11);
    resize(&mut world, 10, 60 * CLUSTER).unwrap();
    create(&mut world, 12, 200 * CLUSTER, 200 * CLUSTER).unwrap();
    create(&mut world, 13, 64 * MIB, 0).unwrap();
    world.floor.settle(2_000_000_000);
    world.order(Order::Rollback { uuid: uuid(10), to: uuid(11) }).unwrap();
    assert_eq!(reserved(&mut world, 10), 10 * CLUSTER);
    let (thin, other, rolled) = (world.lane(13, 0), world.lane(12, 1), world.lane(10, 1));
    assert_eq!(fill(&mut world, thin, 0..1000).1, Some(IoError::NoSpace));
    assert_eq!(fill(&mut world, other, 0..200), (200, None), "it was promised");
    assert_eq!(fill(&mut world, rolled, 0..10), (10, None));
    clean(&world.shut(), "after it was closed").unwrap();
}

#[test]
fn a_quota_is_kept_to_when_it_has_been_counted() {
    let mut before = world(40 * MIB, 5, 2);
    create(&mut before, 10, 64 * MIB, 0).unwrap();
    limit(&mut before, 10, Some(100 * CLUSTER), None).unwrap();
    before.order(Order::Checkpoint).unwrap();
    let lane = before.lane(10, 0);
    assert_eq!(fill(&mut before, lane, 0..90), (90, None));
    before.floor.flush(lane).unwrap();
    let (mut world, medium) = crashed(&mut before);
    let lane = world.lane(10, 1);
    world.floor.zero(lane, Op::Discard, 0, 50 * CLUSTER).unwrap();
    world.floor.flush(lane).unwrap();
    let ticket = world.floor.submit(lane, Request::write(200 * CLUSTER, vec![2; 4096], NONE));
    world.floor.settle(10_000_000);
    assert!(world.floor.take(ticket).is_none(), "it waits until somebody knows");
    let atomic = world.floor.submit(lane, Request::write(201 * CLUSTER, vec![2; 4096], IoFlags::ATOMIC));
    world.floor.settle(10_000_000);
    assert!(world.floor.take(atomic).is_none(), "one that counts as a whole does, too");
    let info = world.info();
    assert!(info.volumes[0].owned_bytes <= 100 * CLUSTER, "{info:?}");
    medium.release();
    assert_eq!(world.floor.run_until(ticket), Ok(Vec::new()));
    assert_eq!(world.floor.run_until(atomic), Ok(Vec::new()));
    assert_eq!(fill(&mut world, lane, 300..400), (58, Some(IoError::NoSpace)), "40 were left, and two were written");
    assert_eq!(world.info().volumes[0].owned_bytes, 100 * CLUSTER);
    clean(&world.shut(), "after it was closed").unwrap();
}
