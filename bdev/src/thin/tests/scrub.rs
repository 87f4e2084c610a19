//! A pool that is checked while it is used: it is seen as it was, and its pages come back.

use std::sync::Arc;

use pollux_core::Bdev;

use super::world::{CLUSTER, MIB, World};
use crate::testing::floor::{Floor, LaneId};
use crate::testing::medium::{Geometry, Medium, Order as Arrival};
use crate::thin::check::Report;
use crate::thin::format::ENTRIES_PER_PAGE;
use crate::thin::orders::Order;
use crate::thin::scrub::Image;

const LEAVES: u64 = 8;
const LEAF: u64 = ENTRIES_PER_PAGE as u64 * CLUSTER;

fn world() -> (World, LaneId) {
    let medium = Medium::new(Geometry::with_512(64 * MIB), Arrival::InOrder);
    World::create(&medium);
    let mut world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    world.create_volume(10, LEAVES * LEAF);
    let lane = world.lane(10, 0);
    (world, lane)
}

/// Changes every leaf, and has that written, so many times.
fn churn(world: &mut World, lane: LaneId, rounds: std::ops::Range<u64>) {
    for round in rounds {
        for leaf in 0..LEAVES {
            world.write(lane, leaf * LEAF + round * 4096, 1, 4096);
        }
        // A checkpoint has what is in the log by then.
        world.order(Order::Commit).unwrap();
        world.order(Order::Checkpoint).unwrap();
    }
}

fn capture(world: &mut World, batch: u64) -> Image {
    let base: Arc<dyn Bdev> = Arc::new(world.medium.clone());
    world.floor.blocking(&base, None, |blocking| Image::capture(blocking, batch)).unwrap()
}

fn check(world: &mut World, image: &Image) -> Report {
    let base: Arc<dyn Bdev> = Arc::new(world.medium.clone());
    world.floor.blocking(&base, None, |blocking| image.check(blocking, &mut || true, &mut |_, _| {}))
}

fn hold(world: &mut World) -> u64 {
    world.order(Order::HoldPages).unwrap();
    world.pool.held().0
}

fn let_go(world: &mut World) -> bool {
    world.order(Order::LetGoPages).unwrap();
    world.pool.held().1
}

#[test]
fn it_is_seen_as_it_was_whatever_is_written_meanwhile() {
    let (mut world, lane) = world();
    churn(&mut world, lane, 0..2);
    world.write(lane, 9 * 4096, 1, 4096);
    world.order(Order::Commit).unwrap();
    let batch = hold(&mut world);
    assert!(world.order(Order::HoldPages).is_err(), "one at a time");
    let image = capture(&mut world, batch);
    let before = check(&mut world, &image);
    assert!(before.is_clean() && before.batches > 0, "{:?}", before.findings);
    churn(&mut world, lane, 2..7);
    let after = check(&mut world, &image);
    assert!(after.is_clean(), "{:?}", after.findings);
    assert_eq!(serde_json::to_value(&before).unwrap(), serde_json::to_value(&after).unwrap());
    assert!(let_go(&mut world));
    // What was held can be used again, and is not lost.
    churn(&mut world, lane, 7..60);
    let now = capture(&mut world, u64::MAX);
    let report = check(&mut world, &now);
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[test]
fn without_holding_nothing_of_it_means_anything() {
    let (mut world, lane) = world();
    churn(&mut world, lane, 0..2);
    let image = capture(&mut world, u64::MAX);
    churn(&mut world, lane, 2..60);
    assert!(!check(&mut world, &image).is_clean(), "its pages were written again");
}

#[test]
fn a_pool_that_needs_its_pages_has_them() {
    let (mut world, lane) = world();
    hold(&mut world);
    churn(&mut world, lane, 0..60);
    assert!(!let_go(&mut world), "and it says so");
    assert!(hold(&mut world) > 0 && let_go(&mut world));
}

#[test]
fn of_the_log_no_more_counts_than_was_durable() {
    let (mut world, lane) = world();
    let batch = hold(&mut world);
    world.write(lane, 0, 1, 4096);
    world.order(Order::Commit).unwrap();
    let (then, now) = (capture(&mut world, batch), capture(&mut world, u64::MAX));
    let (then, now) = (check(&mut world, &then), check(&mut world, &now));
    assert!(then.is_clean() && now.is_clean() && then.batches < now.batches, "{} {}", then.batches, now.batches);
}
