//! A base that fails, lies, or forgets: a pool that cannot write says so and is read-only, what is damaged is found, and
//! nobody is given data that are not his.

use pollux_core::{IoError, IoFlags, Op};

use super::driver::Driver;
use super::judge::{Live, checked, clean};
use super::world::{MIB, World, uuid};
use crate::rng::Rng;
use crate::testing::expect::{Expect, Id};
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Order, Rule};
use crate::thin::check::Verdict;
use crate::thin::format::{LogHeader, SLOTS, slot_block};

const NONE: IoFlags = IoFlags::empty();
const CLUSTER: u64 = 128;

/// A pool with two volumes and a snapshot that hold something, some of it in the trees and some in the log only.
fn pool() -> (Driver, [Id; 2]) {
    let medium = Medium::new(Geometry::with_512(6 * MIB), Order::InOrder);
    World::create(&medium);
    let world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    let mut driver = Driver::new(world, Expect::new());
    let volumes = [driver.create(4 * CLUSTER), driver.create(4 * CLUSTER)];
    driver.finish().unwrap();
    driver.write(volumes[0], 0, 0, 2 * CLUSTER, NONE);
    driver.write(volumes[1], 1, 5, CLUSTER, NONE);
    driver.finish().unwrap();
    driver.snapshot(&volumes);
    driver.finish().unwrap();
    driver.checkpoint();
    driver.finish().unwrap();
    driver.write(volumes[0], 0, 3, 20, NONE);
    driver.finish().unwrap();
    driver.flush(volumes[0], 1);
    driver.finish().unwrap();
    (driver, volumes)
}

/// Writes, flushes, makes a checkpoint; answers are as they may be.
fn work(driver: &mut Driver, [a, b]: [Id; 2]) {
    driver.write(a, 0, CLUSTER, 40, NONE);
    driver.write(b, 1, 3 * CLUSTER, 8, NONE);
    driver.finish().unwrap();
    driver.flush(a, 0);
    driver.finish().unwrap();
    driver.checkpoint();
    driver.finish().unwrap();
}

/// What a medium holds agrees with what was told, or it says that it is damaged.
fn agrees(medium: &Medium, expect: &Expect) -> Result<bool, String> {
    let damaged = checked(medium).verdict != Verdict::Clean;
    let mut world = match World::open(medium, Floor::in_order(), 2, 7 + medium.instants()) {
        Ok(world) => world,
        Err(_) if damaged => return Ok(false),
        Err(error) => return Err(format!("the checker finds nothing, and it does not open: {error}")),
    };
    let mut live = Live::new(&mut world, 2)?;
    let found = expect.bears(&mut live);
    let read = live.end();
    world.forget();
    match (damaged, read.and(found)) {
        (_, Ok(())) => Ok(true),
        // Damage that was found: an error, never other data. Which data are missing the checker says.
        (true, Err(_)) => Ok(false),
        (false, Err(what)) => Err(what),
    }
}

#[test]
fn a_base_that_fails_makes_the_pool_read_only_and_nothing_is_lost() {
    let steps = ["commit.barrier", "commit.log", "checkpoint.page", "checkpoint.barrier", "checkpoint.superblock"];
    let effects = [
        Effect::Fail(IoError::Medium),
        Effect::Fail(IoError::NoSpace),
        Effect::FailHalf(IoError::Medium),
        Effect::FailAndLose(IoError::Medium),
    ];
    for step in steps {
        for effect in effects {
            let (mut driver, volumes) = pool();
            let medium = driver.world.medium.clone();
            medium.rule(Rule::new(effect).step(step));
            work(&mut driver, volumes);
            assert!(medium.hits() == 1 && !driver.errors.is_empty(), "{step}: {:?}", driver.errors);
            assert!(driver.world.info().failed, "{step} {effect:?}");
            // Reads go on, and nothing else does.
            let before = driver.errors.len();
            driver.read(volumes[0], 0, 0, 4 * CLUSTER);
            driver.finish().unwrap();
            assert_eq!(driver.errors.len(), before, "{step} {effect:?}: reads go on");
            driver.write(volumes[1], 0, 0, 1, NONE);
            driver.flush(volumes[1], 1);
            driver.snapshot(&[volumes[0]]);
            driver.finish().unwrap();
            assert_eq!(driver.errors.len(), before + 3, "{step} {effect:?}: {:?}", driver.errors);
            let Driver { world, expect, .. } = driver;
            medium.clear_rules();
            world.forget();
            for choice in [Crash::None, Crash::All, Crash::Seeded(1), Crash::Seeded(2)] {
                let left = medium.crash(choice, Order::InOrder);
                clean(&left, "after the base has failed").unwrap_or_else(|what| panic!("{step} {effect:?}: {what}"));
                assert_eq!(agrees(&left, &expect), Ok(true), "{step} {effect:?} {choice:?}");
            }
        }
    }
}

/// What only a superblock says is not forgotten because that one cannot be read when the pool is opened.
#[test]
fn a_superblock_that_cannot_be_read_once_still_counts() {
    let (mut driver, _) = pool();
    driver.rename_pool("another");
    driver.finish().unwrap();
    let (medium, _) = driver.shut();
    let mut refused = 0;
    for slot in 0..SLOTS {
        let left = medium.crash(Crash::None, Order::InOrder);
        let place = slot_block(slot) * 4096;
        left.rule(Rule::new(Effect::Fail(IoError::Medium)).op(Op::Read).at(place..place + 4096));
        match World::open(&left, Floor::in_order(), 2, 7) {
            Ok(world) => world.forget(),
            Err(error) => {
                assert_eq!(error.reason(), "io", "{error}");
                refused += 1;
            }
        }
        assert_eq!(left.hits(), 1);
        let left = left.crash(Crash::All, Order::InOrder);
        let mut world = World::open(&left, Floor::in_order(), 2, 8).unwrap();
        assert_eq!(world.info().name, "another", "place {slot}");
        world.forget();
    }
    assert_eq!(refused, 2, "that of the newest, and that of the next, which nobody has seen");
}

#[test]
fn data_that_cannot_be_written_or_read_is_one_requests_affair() {
    for (op, error) in [(Op::Write, IoError::Medium), (Op::Write, IoError::NoSpace), (Op::Read, IoError::Medium)] {
        let (mut driver, [a, b]) = pool();
        let medium = driver.world.medium.clone();
        // No step: what a guest asks for.
        medium.rule(Rule::new(Effect::Fail(error)).op(op).at(3 * MIB..6 * MIB));
        match op {
            Op::Read => driver.read(a, 0, 0, 4),
            _ => driver.write(a, 0, 2 * CLUSTER, 16, NONE),
        }
        driver.finish().unwrap();
        assert_eq!((medium.hits(), driver.errors.len()), (1, 1), "{op:?}");
        work(&mut driver, [a, b]);
        assert!(driver.errors.len() == 1 && !driver.world.info().failed, "{:?}", driver.errors);
        let Driver { world, expect, .. } = driver;
        world.forget();
        assert_eq!(agrees(&medium.crash(Crash::None, Order::InOrder), &expect), Ok(true));
    }
}

#[test]
fn a_base_without_space_for_data_has_space_for_what_the_pool_needs() {
    let (mut driver, [a, b]) = pool();
    let medium = driver.world.medium.clone();
    medium.limit_space(Some(medium.space()));
    driver.write(a, 0, 3 * CLUSTER, CLUSTER, NONE);
    driver.finish().unwrap();
    assert_eq!(driver.errors.len(), 1, "{:?}", driver.errors);
    driver.zero(a, 0, Op::Discard, 0, 4 * CLUSTER, NONE);
    driver.finish().unwrap();
    driver.delete(b);
    driver.checkpoint();
    driver.finish().unwrap();
    driver.world.floor.settle(2_000_000_000);
    assert!(driver.errors.len() == 1 && !driver.world.info().failed, "{:?}", driver.errors);
    let Driver { world, expect, .. } = driver;
    world.forget();
    assert_eq!(agrees(&medium.crash(Crash::None, Order::InOrder), &expect), Ok(true));
}

#[test]
fn metadata_that_is_lost_or_lands_elsewhere_is_found_and_never_taken_for_data() {
    let (mut good, mut found) = (0, 0);
    for step in ["commit.log", "checkpoint.page", "checkpoint.superblock"] {
        for effect in [Effect::Lose, Effect::Tear, Effect::Misdirect(1 << 20), Effect::Misdirect(256 << 10)] {
            for skip in 0..6 {
                let (mut driver, volumes) = pool();
                let medium = driver.world.medium.clone();
                medium.rule(Rule::new(effect).step(step).skip(skip));
                work(&mut driver, volumes);
                if medium.hits() == 0 {
                    continue;
                }
                // Something durable comes behind it, or nobody could know.
                work(&mut driver, volumes);
                let Driver { world, expect, .. } = driver;
                world.forget();
                let left = medium.crash(Crash::None, Order::InOrder);
                match agrees(&left, &expect) {
                    Ok(true) => good += 1,
                    Ok(false) => found += 1,
                    Err(what) => panic!("{step} {effect:?} {skip}: {what}"),
                }
            }
        }
    }
    assert!(good > 0 && found > 0, "{good} {found}");
}

#[test]
fn no_block_of_the_pools_own_that_is_changed_gives_other_data_or_a_panic() {
    let (driver, _) = pool();
    let Driver { world, expect, .. } = driver;
    let medium = world.medium.clone();
    world.forget();
    let medium = medium.crash(Crash::None, Order::InOrder);
    let metadata = 3 * MIB / 4096;
    let batch = |block: u64| {
        let bytes: Option<[u8; 4096]> = medium.peek(block * 4096, 4096).try_into().ok();
        bytes.and_then(|bytes| LogHeader::open(&bytes, uuid(1)).map(|(header, _)| header.batch))
    };
    // The last batch is a torn tail, if it is changed: nothing says that it was durable.
    let last = (0..metadata).filter_map(batch).max();
    let (mut rng, mut found) = (Rng::new(1), 0);
    for block in 0..metadata {
        if medium.peek(block * 4096, 4096).iter().all(|byte| *byte == 0) || (last.is_some() && batch(block) == last) {
            continue;
        }
        let left = medium.crash(Crash::All, Order::InOrder);
        let at = block * 4096 + rng.below(4096);
        left.poke(at, &[!left.peek(at, 1)[0]]);
        match agrees(&left, &expect) {
            Ok(true) => {}
            Ok(false) => found += 1,
            Err(what) => panic!("byte {at}: {what}"),
        }
    }
    assert!(found > 4, "{found}");
}
