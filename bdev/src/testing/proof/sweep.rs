//! One workload, cut at every instant, and each medium that may be left of it.

use std::collections::BTreeMap;
use std::fmt;

use super::run::{Run, live, look};
use super::{Act, Subject};
use crate::testing::expect::Expect;
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Geometry, Medium, Order, Seen};

/// Whether each act waits for the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// It does.
    OneByOne,
    /// All are under way at once.
    AtOnce,
}

/// A pool that workloads begin with.
pub struct Start {
    medium: Medium,
    expect: Expect,
}

/// How much a sweep has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Instants at which the power was cut.
    pub cuts: u64,
    /// Media that were opened and looked at.
    pub crashes: u64,
}

/// What a sweep has found, and how to find it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The workload.
    pub acts: Vec<Act>,
    /// The instant of the cut; `None`: before any.
    pub cut: Option<u64>,
    /// What was left.
    pub crash: Option<Crash>,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}, power off after instant {:?}, {:?})", self.why, self.acts, self.cut, self.crash)
    }
}

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A flush does nothing.
    DropFlush(&'static str),
    /// A write with FUA is like one without.
    DropFua(&'static str),
    /// Something is not waited for.
    DropWait(&'static str),
    /// The second may become durable before the first.
    Swap(Option<&'static str>, Option<&'static str>),
}

impl Mutation {
    pub(super) fn spoil(self, medium: &Medium) {
        match self {
            Mutation::DropFlush(label) => medium.drop_flush(label),
            Mutation::DropFua(label) => medium.drop_fua(label),
            Mutation::DropWait(label) => medium.drop_wait(label),
            Mutation::Swap(before, after) => medium.swap(before, after),
        }
    }

    /// All that can be left out of these steps, and these pairs.
    #[must_use]
    pub fn all(
        steps: &BTreeMap<&'static str, Seen>,
        pairs: &[(Option<&'static str>, Option<&'static str>)],
    ) -> Vec<Mutation> {
        let of = |(label, seen): (&&'static str, &Seen)| {
            let kinds = [
                (seen.flushes, Mutation::DropFlush(label)),
                (seen.fua, Mutation::DropFua(label)),
                (seen.waits, Mutation::DropWait(label)),
            ];
            kinds.into_iter().filter(|(count, _)| *count > 0).map(|(_, mutation)| mutation)
        };
        let swaps = pairs.iter().map(|(before, after)| Mutation::Swap(*before, *after));
        steps.iter().flat_map(of).chain(swaps).collect()
    }
}

impl Start {
    /// A pool that these acts have been done to, one after the other.
    ///
    /// # Errors
    /// What is wrong without any crash.
    pub fn new<S: Subject>(geometry: Geometry, acts: &[Act]) -> Result<Start, String> {
        let medium = Medium::new(geometry, Order::InOrder);
        S::create(&medium);
        let expect = live::<S>(&medium, Floor::in_order(), Expect::new(), |run| run_acts(run, acts, Pace::OneByOne))?;
        let medium = medium.crash(Crash::All, Order::InOrder);
        let expect = look::<S>(&medium, expect)?;
        Ok(Start { medium, expect })
    }

    /// Runs the workload until the power goes off; gives the medium then.
    fn run<S: Subject>(
        &self,
        acts: &[Act],
        pace: Pace,
        cut: Option<u64>,
        mutation: Option<Mutation>,
    ) -> Result<(Medium, Expect), String> {
        let medium = self.medium.crash(Crash::All, Order::InOrder);
        if let Some(mutation) = mutation {
            mutation.spoil(&medium);
        }
        if let Some(cut) = cut {
            medium.stop_after(cut);
        }
        let expect = self.expect.clone();
        let expect = live::<S>(&medium, Floor::in_order(), expect, |run| run_acts(run, acts, pace))?;
        Ok((medium, expect))
    }
}

fn run_acts<S: Subject>(run: &mut Run<S>, acts: &[Act], pace: Pace) -> Result<(), String> {
    for act in acts {
        run.begin(act)?;
        if pace == Pace::OneByOne {
            run.settle()?;
        }
    }
    run.settle()
}

/// Cuts the power at every instant of a workload.
///
/// # Errors
/// The first thing that is wrong.
pub fn sweep<S: Subject>(
    start: &Start,
    acts: &[Act],
    pace: Pace,
    mutation: Option<Mutation>,
    seeds: u64,
) -> Result<Tally, Failure> {
    let failure = |cut, crash, why| Failure { acts: acts.to_vec(), cut, crash, why };
    let mut tally = Tally::default();
    let (whole, _) = start.run::<S>(acts, pace, None, mutation).map_err(|why| failure(None, None, why))?;
    for cut in 0..=whole.instants() {
        let (medium, expect) =
            start.run::<S>(acts, pace, Some(cut), mutation).map_err(|why| failure(Some(cut), None, why))?;
        tally.cuts += 1;
        for (crash, left) in medium.crashes(seeds, Order::InOrder) {
            tally.crashes += 1;
            look::<S>(&left, expect.clone()).map_err(|why| failure(Some(cut), Some(crash), why))?;
        }
    }
    Ok(tally)
}

/// The mutations that none of the workloads shows.
pub fn mutants<S: Subject>(start: &Start, workloads: &[Vec<Act>], all: &[Mutation], seeds: u64) -> Vec<Mutation> {
    let shows = |mutation: Mutation| {
        let paces = [Pace::OneByOne, Pace::AtOnce];
        let red = |acts: &Vec<Act>, pace| sweep::<S>(start, acts, pace, Some(mutation), seeds).is_err();
        paces.iter().any(|pace| workloads.iter().any(|acts| red(acts, *pace)))
    };
    all.iter().copied().filter(|mutation| !shows(*mutation)).collect()
}

/// The steps that these workloads go through.
///
/// # Errors
/// What is wrong without any crash.
pub fn steps<S: Subject>(start: &Start, workloads: &[Vec<Act>]) -> Result<BTreeMap<&'static str, Seen>, String> {
    let mut all: BTreeMap<&'static str, Seen> = BTreeMap::new();
    for acts in workloads {
        let (medium, _) = start.run::<S>(acts, Pace::OneByOne, None, None)?;
        for (label, seen) in medium.steps() {
            all.entry(label).or_default().add(seen);
        }
    }
    Ok(all)
}
