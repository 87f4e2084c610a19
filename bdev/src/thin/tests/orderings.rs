//! Pairs of steps in the wrong order, one pair at a time: what the second of them writes may be durable while what the first
//! has written is not any more, although that was durable before. Of all pairs of steps that change the medium, each is
//! noticed by the storms, or by a pool that is made to need extents of pages, or has an argument here why it need not hold.

use std::collections::BTreeSet;

use pollux_core::IoFlags;

use super::driver::Driver;
use super::judge::{Live, clean, open};
use super::mutations::{CRASHES, steps, with_more_pages};
use super::storm::spoiled;
use super::world::{MIB, World};
use crate::testing::expect::Expect;
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Effect, Geometry, Medium, Mutation, Order, Rule};

/// Seeds that are tried for each; most pairs need a few.
const SEEDS: u64 = 400;

/// `None`: what guests write.
type Label = Option<&'static str>;

const EXTENT: Label = Some("checkpoint.extent");
const PAGE: Label = Some("checkpoint.page");
const CHECKPOINT: Label = Some("checkpoint.superblock");
const LOG: Label = Some("commit.log");
const START: Label = Some("open.superblock");

const CHECKPOINTS: &str = "what the barrier of a checkpoint makes durable, and no barrier of a commit has, nobody was promised, and no batch \
                           speaks of: the superblock says what the log could say without it";
const STARTS: &str = "what the barrier of a start makes durable was left by a process that was killed, and nobody was promised it: the log, \
                      whose batches come after a barrier of their own, does not speak of it";
const ZEROES: &str = "the zeroes of an extent give it space of its own on the base; nobody reads them, and pages that are written \
                      there later come after them";

/// Seeds that notice rare ones: they are tried first.
const HINTS: &[(Label, Label, u64)] = &[(LOG, CHECKPOINT, 28)];

/// Pairs that nobody notices, and why that is as it should be.
const NOT_ORDERED: &[(Label, Label, &str)] = &[
    (None, CHECKPOINT, CHECKPOINTS),
    (None, START, STARTS),
    (EXTENT, None, ZEROES),
    (EXTENT, EXTENT, ZEROES),
    (EXTENT, PAGE, ZEROES),
    (EXTENT, CHECKPOINT, ZEROES),
    (EXTENT, LOG, ZEROES),
    (EXTENT, START, ZEROES),
];

/// What extents are to follow, beside what guests have flushed and a start (see below). Storms come to extents too seldom to say so: a pool does that is made to need them.
const BEFORE_EXTENTS: [Label; 3] = [PAGE, CHECKPOINT, LOG];

/// All pairs of steps that change something while a pool is in use.
fn pairs() -> Vec<(Label, Label)> {
    let changes = steps().into_iter().filter(|(_, seen)| seen.fua + seen.changes > 0);
    let labels = changes.map(|(label, _)| Some(label)).filter(|label| label.is_none_or(|l| !l.starts_with("create.")));
    let labels: Vec<Label> = [None].into_iter().chain(labels).collect();
    labels.iter().flat_map(|before| labels.iter().map(|after| (*before, *after))).collect()
}

/// What a power cut leaves while extents are filled with zeroes and afterwards, on a medium that swaps these pairs: the first thing
/// that is wrong; and how many were looked at.
fn wrong_with_extents(pairs: &[(Label, Label)]) -> (Option<String>, u64) {
    let (mut wrong, mut looks) = (None, 0);
    let spoil =
        |medium: &Medium| pairs.iter().for_each(|(before, after)| medium.spoil(Mutation::Swap(*before, *after)));
    with_more_pages(&spoil, |driver| {
        let medium = &driver.world.medium;
        let unsynced = medium.unsynced();
        let extent = unsynced.iter().position(|change| change.label == EXTENT);
        if wrong.is_some() || unsynced.is_empty() {
            return;
        }
        for choice in extent.map(Crash::Only).into_iter().chain([Crash::Seeded(looks)]) {
            looks += 1;
            wrong = bears(driver, choice).err();
            if let Some(wrong) = &mut wrong {
                *wrong = format!("{choice:?}: {wrong}");
                return;
            }
        }
    });
    (wrong, looks)
}

fn bears(driver: &Driver, choice: Crash) -> Result<(), String> {
    let left = driver.world.medium.crash(choice, Order::InOrder);
    clean(&left, "after the crash")?;
    let mut world = open(&left, Floor::in_order(), 2, 9)?;
    let agrees = {
        let mut live = Live::new(&mut world, 2)?;
        let agrees = driver.expect.bears(&mut live);
        live.end().and(agrees)
    };
    world.forget();
    agrees
}

/// Writes to ever more leaves, some at a time, each time with a flush, until a checkpoint needs an extent of pages, whose zeroes are
/// on their way for long. What a power cut leaves then that keeps these.
///
/// Of a start: the power fails before each checkpoint, so that it is the first one of a start that goes on with the log; and while the
/// zeroes are on their way something more is written and flushed, into the log of that start.
fn with_zeroes_on_their_way(swap: Option<Label>, of_a_start: bool) -> Result<(), String> {
    const LEAF: u64 = 504 * 128;
    let spoil = |medium: &Medium| {
        swap.into_iter().for_each(|before| medium.spoil(Mutation::Swap(before, EXTENT)));
        medium.rule(Rule::new(Effect::Hold).step("checkpoint.extent").always());
    };
    let first = Medium::new(Geometry::with_512(128 * MIB), Order::InOrder);
    World::create(&first);
    spoil(&first);
    let mut driver = Driver::new(open(&first, Floor::in_order(), 2, 1)?, Expect::new());
    let volume = driver.create(2000 * LEAF);
    driver.finish()?;
    for some in 0..50 {
        (0..20).for_each(|nth| driver.write(volume, 0, (some * 20 + nth) * LEAF, 8, IoFlags::empty()));
        driver.finish()?;
        driver.flush(volume, 1);
        driver.finish()?;
        // In place: what makes this durable is a barrier alone, the last one.
        driver.write(volume, 0, 0, 8, IoFlags::empty());
        driver.finish()?;
        driver.flush(volume, 1);
        driver.finish()?;
        let mut later = None;
        if of_a_start {
            let left = first.crash(Crash::None, Order::InOrder);
            spoil(&left);
            later = Some(Driver::new(open(&left, Floor::in_order(), 2, 2)?, driver.expect.clone()));
        } else {
            driver.checkpoint();
        }
        let now = later.as_mut().unwrap_or(&mut driver);
        now.world.floor.settle(1_000_000);
        let medium = now.world.medium.clone();
        let zeroes = || medium.unsynced().iter().position(|change| change.label == EXTENT);
        let mut bears_it = None;
        if zeroes().is_some() {
            if of_a_start {
                assert!(!medium.steps().contains_key("checkpoint.superblock"), "it is the first one");
                now.write(volume, 0, 16, 8, IoFlags::empty());
                now.finish()?;
                now.flush(volume, 0);
                now.finish()?;
            }
            bears_it = zeroes().map(|nth| bears(now, Crash::Only(nth)));
        }
        later.into_iter().for_each(|later| later.world.forget());
        if let Some(bears_it) = bears_it {
            driver.world.forget();
            return bears_it;
        }
    }
    panic!("no checkpoint needs an extent");
}

#[test]
fn an_extent_comes_after_what_was_flushed_and_after_the_start() {
    for (before, of_a_start) in [(None, false), (START, true)] {
        with_zeroes_on_their_way(None, of_a_start).unwrap();
        let wrong = with_zeroes_on_their_way(Some(before), of_a_start).expect_err("nobody misses it");
        eprintln!("{before:?} {EXTENT:?}: {}", wrong.chars().take(160).collect::<String>());
    }
}

#[test]
fn extents_come_after_what_is_durable_and_need_not_be_durable_themselves() {
    for before in BEFORE_EXTENTS {
        let (wrong, looks) = wrong_with_extents(&[(before, EXTENT)]);
        let wrong = wrong.unwrap_or_else(|| panic!("nobody misses ({before:?}, {EXTENT:?}) in {looks} looks"));
        eprintln!("{before:?} {EXTENT:?}: {}", wrong.chars().take(160).collect::<String>());
    }
    let of_zeroes: Vec<_> =
        NOT_ORDERED.iter().filter(|(before, ..)| *before == EXTENT).map(|(a, b, _)| (*a, *b)).collect();
    assert_eq!(of_zeroes.len(), 6);
    let (wrong, looks) = wrong_with_extents(&of_zeroes);
    assert_eq!(wrong, None, "{looks} looks");
    assert!(looks > 20, "{looks}");
}

/// The first seed whose storm notices that these two are swapped, and what it says.
fn noticed(before: Label, after: Label) -> Option<(u64, String)> {
    let swap = Mutation::Swap(before, after);
    let hint = HINTS.iter().filter(|(first, second, _)| (*first, *second) == (before, after)).map(|(.., seed)| *seed);
    hint.chain(1..=SEEDS).find_map(|seed| Some((seed, spoiled(seed, CRASHES, &|medium| medium.spoil(swap)).err()?)))
}

#[test]
fn each_order_of_steps_is_missed_when_it_is_swapped() {
    let extents = BEFORE_EXTENTS.into_iter().chain([None, START]).map(|before| (before, EXTENT));
    let argued: BTreeSet<_> = NOT_ORDERED.iter().map(|(before, after, _)| (*before, *after)).chain(extents).collect();
    // Some part of a pair's name, to have only those, argued or not.
    let only = std::env::var("POLLUX_ORDERINGS").ok();
    let pairs = pairs();
    assert!(argued.iter().all(|pair| pairs.contains(pair)), "an argument is about something that happens");
    let mut unnoticed = Vec::new();
    for (before, after) in pairs {
        let is_argued = argued.contains(&(before, after));
        let name = format!("{before:?} {after:?}");
        if only.as_ref().map_or(is_argued, |only| !name.contains(only)) {
            continue;
        }
        match noticed(before, after) {
            // Pairs of extents are looked at by the other test.
            Some((seed, what)) if is_argued && after != EXTENT => panic!("{name} is noticed, seed {seed}: {what}"),
            Some((seed, what)) => {
                eprintln!("{name}: seed {seed}: {}", what.chars().take(160).collect::<String>());
            }
            None if is_argued => {}
            None => {
                eprintln!("{name}: nobody");
                unnoticed.push((before, after));
            }
        }
    }
    assert!(unnoticed.is_empty(), "nobody misses {unnoticed:?}");
}
