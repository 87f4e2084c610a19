//! Promises broken on purpose, one at a time: a barrier that does nothing, a write that is not forced. Each time the storms, or
//! what a pool is made on, have to notice. (Steps that are durable in another order: `orderings`.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use uuid::Uuid;

use super::driver::Driver;
use super::judge::{Live, checked, clean};
use super::storm::{Spoil, Storm, spoiled};
use super::world::{MIB, World, uuid};
use crate::testing::expect::Expect;
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Geometry, Medium, Mutation, Off, Order, Seen};
use crate::thin::check::{Finding, Flaw};
use crate::thin::store::LABELS;

/// Seeds that are tried for each, and crashes of each of them.
pub(super) const SEEDS: u64 = 120;
pub(super) const CRASHES: u64 = 40;

/// Superblocks whose FUA no storm misses. That of a start: the barrier of the first batch behind it makes it durable, too, and nothing
/// before that speaks of it or goes where the one before leads. That of a checkpoint is missed by `store::tests::crash`, which aims at it.
const NOT_MISSED_HERE: [&str; 2] = ["open.superblock", "checkpoint.superblock"];

/// What honest storms go through.
pub(super) fn steps() -> BTreeMap<&'static str, Seen> {
    let media = Mutex::new(Vec::new());
    let remember = |medium: &Medium| media.lock().unwrap().push(medium.clone());
    for seed in 1..=8 {
        Storm::new(seed, &remember).and_then(|mut storm| storm.run(30)).unwrap();
    }
    let mut all: BTreeMap<&'static str, Seen> = BTreeMap::new();
    let mut media = media.into_inner().unwrap();
    // Small pools do not come to a further extent of metadata.
    media.push(with_more_pages(&|_| {}, |_| {}));
    for medium in media {
        medium.steps().into_iter().for_each(|(label, seen)| all.entry(label).or_default().add(seen));
    }
    all
}

/// A pool whose maps need more pages than it was made with; `spoil` is done to its medium, and `look` sees it at many
/// instants of that. What is written is flushed.
pub(super) fn with_more_pages(spoil: Spoil<'_>, mut look: impl FnMut(&Driver)) -> Medium {
    const LEAF: u64 = 504 * 128;
    const LEAVES: u64 = 210;
    let medium = Medium::new(Geometry::with_512(128 * MIB), Order::Seeded(3));
    World::create(&medium);
    spoil(&medium);
    let world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    let mut driver = Driver::new(world, Expect::new());
    let volume = driver.create(LEAVES * LEAF);
    driver.finish().unwrap();
    for round in 0..3 {
        for leaf in 0..LEAVES {
            driver.write(volume, 0, leaf * LEAF + round * 8, 8, pollux_core::IoFlags::empty());
        }
        driver.finish().unwrap();
        driver.flush(volume, 1);
        driver.finish().unwrap();
        driver.checkpoint();
        let mut instants = 0;
        while driver.in_flight() != (0, 0) {
            driver.step(u64::MAX).unwrap();
            let now = driver.world.medium.instants();
            if now > instants + 3 {
                instants = now;
                look(&driver);
            }
        }
    }
    look(&driver);
    assert_eq!(driver.errors, [], "there is space for all");
    let Driver { world, .. } = driver;
    world.forget();
    medium
}

#[test]
fn pages_are_added_and_a_crash_meanwhile_is_borne() {
    let mut looks = 0;
    let medium = with_more_pages(&|_| {}, |driver| {
        let crashed = driver.world.medium.crash(Crash::Seeded(looks), Order::InOrder);
        looks += 1;
        clean(&crashed, "after a crash").unwrap();
        let mut world = World::open(&crashed, Floor::in_order(), 2, 9).unwrap();
        let mut live = Live::new(&mut world, 2).unwrap();
        let agrees = driver.expect.bears(&mut live);
        live.end().and(agrees).unwrap();
        world.forget();
    });
    assert!(looks > 10 && medium.steps()["checkpoint.extent"].changes > 0, "{looks}");
}

#[test]
fn each_promise_is_missed_when_it_is_broken() {
    let steps = steps();
    let seen: BTreeSet<_> = steps.keys().copied().collect();
    let announced: BTreeSet<_> = LABELS.iter().copied().collect();
    assert_eq!(seen, announced, "what is announced is what happens");
    let mut unnoticed = Vec::new();
    for mutation in Mutation::all(&steps, &[]) {
        // Of these nobody knows who has not just made the pool: see below.
        if matches!(mutation, Mutation::DropFlush(label) | Mutation::DropFua(label) if label.starts_with("create.")) {
            continue;
        }
        if matches!(mutation, Mutation::DropFua(label) if NOT_MISSED_HERE.contains(&label)) {
            continue;
        }
        // Storms seldom come to the moments that show these: `discards` aims at each.
        if matches!(mutation, Mutation::DropWait(_)) {
            continue;
        }
        let red = (1..=SEEDS).find_map(|seed| Some((seed, spoiled(seed, CRASHES, &|m| m.spoil(mutation)).err()?)));
        match red {
            Some((seed, what)) => {
                eprintln!("{mutation:?}: seed {seed}: {}", what.chars().take(160).collect::<String>());
            }
            None => unnoticed.push(mutation),
        }
    }
    assert!(unnoticed.is_empty(), "nobody misses {unnoticed:?}");
}

/// A medium with a pool on it whose log is not empty, and what it holds.
fn old_pool() -> (Medium, Expect) {
    let medium = Medium::new(Geometry::with_512(4 * MIB), Order::InOrder);
    World::create(&medium);
    let world = World::open(&medium, Floor::in_order(), 2, 1).unwrap();
    let mut driver = Driver::new(world, Expect::new());
    let volume = driver.create(256);
    driver.finish().unwrap();
    driver.write(volume, 0, 3, 70, pollux_core::IoFlags::empty());
    driver.finish().unwrap();
    driver.flush(volume, 1);
    driver.finish().unwrap();
    let Driver { world, expect, .. } = driver;
    world.forget();
    (medium.crash(Crash::None, Order::InOrder), expect)
}

/// Makes a pool where there is one, with a power cut at every instant: the old one is there as it was, or none that opens, or
/// the new one. Afterwards the new one is.
fn made_anew(mutation: Option<Mutation>) -> Result<u64, String> {
    let (old, expect) = old_pool();
    let mut cuts = 0;
    for stop in 1.. {
        let medium = old.crash(Crash::All, Order::InOrder);
        mutation.into_iter().for_each(|mutation| medium.spoil(mutation));
        medium.stop_after(stop);
        medium.when_off(Off::Failing);
        let made = World::make(&medium, super::world::CLUSTER, true).is_ok();
        for (choice, left) in medium.crashes(6, Order::InOrder) {
            cuts += 1;
            let found = what_is_there(&left, &expect, uuid(1), made)
                .map_err(|what| format!("instant {stop}, {choice:?}: {what}"))?;
            if made && found != There::New {
                return Err(format!("it was made, and {choice:?} leaves {found:?}"));
            }
        }
        if made {
            return Ok(cuts);
        }
    }
    unreachable!("it is made some time")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Old,
    None,
    New,
}

fn what_is_there(medium: &Medium, expect: &Expect, old: Uuid, made: bool) -> Result<There, String> {
    let before = medium.crash(Crash::All, Order::InOrder);
    let Ok(mut world) = World::open(medium, Floor::in_order(), 2, 3) else { return Ok(There::None) };
    if world.pool.uuid() != old {
        world.forget();
        let findings = checked(&before).findings;
        // Until it is made, superblocks may be missing.
        let tolerated = |finding: &Finding| !made && finding.finding == Flaw::SuperblockUnreadable;
        return match findings.iter().find(|finding| !tolerated(finding)) {
            None => Ok(There::New),
            Some(finding) => Err(format!("of the new pool the checker says {finding:?}")),
        };
    }
    let mut live = Live::new(&mut world, 2)?;
    let agrees = expect.bears(&mut live);
    live.end().and(agrees)?;
    world.forget();
    Ok(There::Old)
}

#[test]
fn a_new_pool_takes_the_place_of_an_old_one_as_a_whole() {
    assert!(made_anew(None).unwrap() > 50);
    let promises = [
        Mutation::DropFlush("create.wipe"),
        Mutation::DropFlush("create.barrier"),
        Mutation::DropFua("create.superblock"),
    ];
    for mutation in promises {
        match made_anew(Some(mutation)) {
            Err(what) => eprintln!("{mutation:?}: {}", what.chars().take(160).collect::<String>()),
            Ok(_) => panic!("nobody misses {mutation:?}"),
        }
    }
}
