//! Pairs of steps in the wrong order, one pair at a time: what the second of them writes may be durable while what the first
//! has written is not any more, although that was durable before. Of all pairs of steps that change the medium, each is
//! noticed by the storms, or has an argument here why it need not hold.

use std::collections::BTreeSet;

use super::mutations::{CRASHES, steps};
use super::storm::spoiled;
use crate::testing::medium::Mutation;

/// Seeds that are tried for each; most pairs need a few.
const SEEDS: u64 = 400;

/// `None`: what guests write.
type Label = Option<&'static str>;

const EXTENT: Label = Some("checkpoint.extent");
const PAGE: Label = Some("checkpoint.page");
const CHECKPOINT: Label = Some("checkpoint.superblock");
const LOG: Label = Some("commit.log");
const START: Label = Some("open.superblock");

const GUESTS: &str = "what guests write has to be durable before the log says where it is, and all that a superblock or an extent \
                      follows is in the log before";
const ZEROES: &str = "the zeroes of an extent give it space of its own on the base; nobody reads them, and pages that are written \
                      there later come after them";
const RARE: &str = "an extent is zeroed where clusters were free: what is true of guests who write into clusters that are given out \
                    again, and noticed there, is true of it; storms come to extents too seldom to say so";

/// Seeds that notice rare ones: they are tried first.
const HINTS: &[(Label, Label, u64)] = &[(LOG, CHECKPOINT, 63)];

/// Pairs that nobody notices, and why that is as it should be.
const NOT_ORDERED: &[(Label, Label, &str)] = &[
    (None, EXTENT, GUESTS),
    (None, CHECKPOINT, GUESTS),
    (None, START, GUESTS),
    (EXTENT, None, ZEROES),
    (EXTENT, EXTENT, ZEROES),
    (EXTENT, PAGE, ZEROES),
    (EXTENT, CHECKPOINT, ZEROES),
    (EXTENT, LOG, ZEROES),
    (EXTENT, START, ZEROES),
    (PAGE, EXTENT, RARE),
    (CHECKPOINT, EXTENT, RARE),
    (LOG, EXTENT, RARE),
    (START, EXTENT, RARE),
];

/// All pairs of steps that change something while a pool is in use.
fn pairs() -> Vec<(Label, Label)> {
    let changes = steps().into_iter().filter(|(_, seen)| seen.fua + seen.changes > 0);
    let labels = changes.map(|(label, _)| Some(label)).filter(|label| label.is_none_or(|l| !l.starts_with("create.")));
    let labels: Vec<Label> = [None].into_iter().chain(labels).collect();
    labels.iter().flat_map(|before| labels.iter().map(|after| (*before, *after))).collect()
}

/// The first seed whose storm notices that these two are swapped, and what it says.
fn noticed(before: Label, after: Label) -> Option<(u64, String)> {
    let swap = Mutation::Swap(before, after);
    let hint = HINTS.iter().filter(|(first, second, _)| (*first, *second) == (before, after)).map(|(.., seed)| *seed);
    hint.chain(1..=SEEDS).find_map(|seed| Some((seed, spoiled(seed, CRASHES, &|medium| medium.spoil(swap)).err()?)))
}

#[test]
fn each_order_of_steps_is_missed_when_it_is_swapped() {
    let argued: BTreeSet<_> = NOT_ORDERED.iter().map(|(before, after, _)| (*before, *after)).collect();
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
            Some((seed, what)) if is_argued => panic!("{name} is noticed, seed {seed}: {what}"),
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
