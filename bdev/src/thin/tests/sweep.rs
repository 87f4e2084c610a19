//! Every workload of a few operations, cut at every instant, with every subset of what was not durable.
//!
//! The prefix of a workload is a workload of its own, so a cut is looked for in its last operation only, and in what the pool
//! does by itself afterwards. Nothing happens between two steps of the floor, and in one step of a medium that does things
//! in order at most one request completes that counts; so the end of each step stands for all instants in it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use pollux_core::{IoFlags, Op};

use super::driver::{Before, Driver};
use super::judge::{Found, judge};
use super::world::{MIB, World};
use crate::rng::mix;
use crate::testing::expect::{Expect, Id};
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Geometry, Medium, Order};

/// Media whose content is remembered: workloads that begin alike leave the same ones.
const KNOWN: usize = 4000;
const NONE: IoFlags = IoFlags::empty();

/// One operation. Two volumes, `a` on one reactor and `b` on the other.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) name: &'static str,
    /// Begins it; `false`: it cannot be done.
    pub(super) begin: fn(&mut Run<'_>) -> bool,
    /// When it is answered everything that was acknowledged before is durable, and nothing waits for a commit.
    commits: bool,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn step(name: &'static str, begin: fn(&mut Run<'_>) -> bool) -> Step {
    Step { name, begin, commits: false }
}

const fn commit(name: &'static str, begin: fn(&mut Run<'_>) -> bool) -> Step {
    Step { name, begin, commits: true }
}

/// What pools are there for, and what they do to volumes most.
pub(super) const STEPS: &[Step] = &[
    // Whole sub-blocks of `a`, of `b`.
    step("write a", |run| run.write(run.start.a, 0, run.sub, 2 * run.sub, NONE)),
    step("write b", |run| run.b().is_some_and(|b| run.write(b, 1, 15 * run.sub, 2 * run.sub, NONE))),
    // A part of a sub-block, of `a`; of the clone, or else of `b`.
    step("edge a", |run| run.write(run.start.a, 0, 2 * run.sub + run.sub / 2, run.sub, NONE)),
    step("edge c", |run| run.other().is_some_and(|other| run.write(other, 1, run.sub / 2, run.sub / 2, NONE))),
    step("write fua", |run| run.is_whole() && run.write(run.start.a, 1, 16 * run.sub, run.sub, IoFlags::FUA)),
    commit("flush", |run| {
        run.driver.flush(run.start.a, 0);
        true
    }),
    step("discard", |run| {
        run.is_whole().then(|| run.driver.zero(run.start.a, 0, Op::Discard, run.sub, 16 * run.sub, NONE)).is_some()
    }),
    commit("snapshot", |run| run.snapshot_of(&[run.start.a])),
    commit("group", |run| run.b().is_some_and(|b| run.snapshot_of(&[run.start.a, b]))),
    commit("clone", |run| {
        let Some(snapshot) = run.snapshot.filter(|_| run.clone.is_none()) else { return false };
        run.clone = Some(run.driver.clone_of(snapshot));
        true
    }),
    // The clone, or else `b`.
    commit("delete", |run| {
        let Some(other) = run.other() else { return false };
        run.driver.delete(other);
        run.b_is_there &= other != run.start.b;
        run.clone = None;
        true
    }),
    commit("delete snapshot", |run| run.snapshot.take().map(|snapshot| run.driver.delete(snapshot)).is_some()),
    commit("grow", |run| {
        let sectors = run.driver.expect.sectors(run.start.a) + run.sub;
        run.driver.resize(run.start.a, sectors);
        true
    }),
    commit("shrink", |run| run.is_whole().then(|| run.driver.resize(run.start.a, 16 * run.sub)).is_some()),
    commit("inflate", |run| {
        run.driver.inflate(run.start.a, false);
        true
    }),
    commit("decouple", |run| run.snapshot.map(|_| run.driver.inflate(run.start.a, true)).is_some()),
    commit("rollback", |run| run.snapshot.map(|snapshot| run.driver.rollback(run.start.a, snapshot)).is_some()),
    commit("checkpoint", |run| {
        run.driver.checkpoint();
        true
    }),
];

/// Orders that come seldom.
pub(super) const RARE: &[Step] = &[
    // The clone, or else `b`: it is the snapshot that those that want one take from now on.
    commit("set read-only", |run| {
        let Some(other) = run.other() else { return false };
        run.driver.set_read_only(other);
        run.b_is_there &= other != run.start.b;
        (run.clone, run.snapshot) = (None, Some(other));
        true
    }),
    // The clone, or else `b`, or else `a`: whichever does not stand on it already.
    commit("set parent", |run| {
        let (Some(snapshot), expect) = (run.snapshot, &run.driver.expect) else { return false };
        let fits = |volume: &Id| {
            expect.sectors(*volume) == expect.sectors(snapshot) && run.driver.parents.get(volume) != Some(&snapshot)
        };
        let volume = [run.clone, run.b(), Some(run.start.a)].into_iter().flatten().find(fits);
        volume.map(|volume| run.driver.set_parent(volume, snapshot)).is_some()
    }),
    // Of which not all of a sub-block counts.
    commit("set parent bdev", |run| {
        run.driver.set_parent_bdev(run.start.a, run.start.cluster / 2 + run.sub / 2);
        true
    }),
    commit("clone bdev", |run| {
        let counts = run.sub + run.sub / 2;
        (run.clone.is_none())
            .then(|| run.clone = Some(run.driver.clone_outside(2 * run.start.cluster, counts)))
            .is_some()
    }),
    commit("grow pool", |run| {
        let bytes = run.driver.world.medium.geometry().bytes + MIB;
        run.driver.grow_pool(bytes);
        true
    }),
    commit("rename pool", |run| {
        run.driver.rename_pool("another");
        true
    }),
];

/// What goes together with those.
fn around() -> Vec<Step> {
    let names = [
        "write a",
        "write b",
        "edge a",
        "edge c",
        "flush",
        "discard",
        "snapshot",
        "clone",
        "delete snapshot",
        "rollback",
    ];
    let some = STEPS.iter().filter(|step| names.contains(&step.name));
    RARE.iter().chain(some).copied().collect()
}

/// What every workload begins with.
pub(super) struct Start {
    pub(super) medium: Medium,
    before: Before,
    pub(super) a: Id,
    b: Id,
    /// Sectors of a cluster.
    cluster: u64,
}

impl Start {
    /// A pool with next to no space: `a` holds something, `b` nothing of its own, and somebody else has nearly all the rest.
    pub(super) fn new(block: u32) -> Start {
        let (geometry, cluster, others) = match block {
            512 => (Geometry::with_512(4 * MIB), 64 << 10, 11),
            _ => (Geometry::with_4096(4 * MIB), 128 << 10, 3),
        };
        let medium = Medium::new(Geometry { garbles: true, ..geometry }, Order::InOrder);
        World::create_of(&medium, cluster);
        let world = World::open(&medium, Floor::in_order(), 2, 1).expect("it was made");
        let mut driver = Driver::new(world, Expect::new());
        let cluster = cluster / 512;
        // `b` stands on a bdev outside of the pool, of which not all of a sub-block counts.
        let (a, b) = (driver.create(2 * cluster), driver.clone_outside(2 * cluster, cluster + cluster / 32));
        let rest = driver.create(others * cluster);
        driver.finish().expect("the medium works");
        for nth in 0..others {
            driver.write(rest, 0, nth * cluster, u64::from(block / 512), NONE);
        }
        driver.write(a, 0, 0, cluster / 8, NONE);
        driver.finish().expect("the medium works");
        driver.flush(a, 0);
        driver.flush(rest, 0);
        driver.finish().expect("the medium works");
        let (medium, before) = driver.shut();
        Start { medium, before, a, b, cluster }
    }
}

/// Which cuts are looked at, and what became of them.
#[derive(Default)]
pub(super) struct Sweep {
    /// What media of this content hold.
    known: HashMap<(u128, u64), Result<Found, String>>,
    pub(super) cuts: u64,
    /// Of those that are not in `known` any more.
    media: usize,
    pub(super) workloads: u64,
    /// Workloads of this length are tried only one out of so many.
    sampled: Option<(usize, u64)>,
    /// Only workloads are looked at in which one of the rare orders is.
    rare: bool,
}

/// A workload that runs.
pub(super) struct Run<'a> {
    pub(super) start: &'a Start,
    pub(super) driver: Driver,
    /// Sectors of a sub-block.
    pub(super) sub: u64,
    clone: Option<Id>,
    snapshot: Option<Id>,
    b_is_there: bool,
    /// Media that were found good since the oracle has last heard something.
    good: BTreeSet<u128>,
    seen: (u64, u64),
}

impl<'a> Run<'a> {
    pub(super) fn new(start: &'a Start) -> Run<'a> {
        let medium = start.medium.crash(Crash::All, Order::InOrder);
        let world = World::open(&medium, Floor::in_order(), 2, 2).expect("it was closed");
        let driver = Driver::behind(world, &start.before);
        let (sub, seen) = (start.cluster / 16, (u64::MAX, 0));
        Run { start, driver, sub, clone: None, snapshot: None, b_is_there: true, good: BTreeSet::new(), seen }
    }

    /// What the oracle does not know to be there is not used any more.
    pub(super) fn forget_what_is_gone(&mut self) {
        let present = self.driver.expect.present();
        let is_there = |id: &Id| present.contains(id);
        (self.clone, self.snapshot) = (self.clone.filter(is_there), self.snapshot.filter(is_there));
        self.b_is_there &= is_there(&self.start.b);
    }

    /// Whether `a` has as much as it had, at least.
    fn is_whole(&self) -> bool {
        self.driver.expect.sectors(self.start.a) >= 2 * self.start.cluster
    }

    fn b(&self) -> Option<Id> {
        self.b_is_there.then_some(self.start.b)
    }

    /// The clone, or else `b`.
    fn other(&self) -> Option<Id> {
        self.clone.or(self.b())
    }

    pub(super) fn write(&mut self, volume: Id, reactor: usize, first: u64, count: u64, flags: IoFlags) -> bool {
        self.driver.write(volume, reactor, first, count, flags);
        true
    }

    fn snapshot_of(&mut self, volumes: &[Id]) -> bool {
        self.snapshot = self.driver.snapshot(volumes).first().copied();
        true
    }

    /// Runs to the end of the step and looks at every cut on the way.
    fn watch(&mut self, sweep: &mut Sweep) -> Result<(), String> {
        self.look(sweep)?;
        while self.driver.in_flight() != (0, 0) || self.driver.copying() > 0 {
            if !self.driver.step(u64::MAX)? {
                return Err(format!("never answered: {:?}", self.driver.in_flight()));
            }
            self.look(sweep)?;
        }
        let deadline = self.driver.world.floor.now() + 600_000_000;
        self.driver.world.floor.stir();
        while self.driver.step(deadline)? {
            self.look(sweep)?;
        }
        Ok(())
    }

    /// Cuts the power now, in every way.
    fn look(&mut self, sweep: &mut Sweep) -> Result<(), String> {
        let medium = &self.driver.world.medium;
        let now = (medium.instants(), self.driver.answers);
        if now == self.seen {
            return Ok(());
        }
        if now.1 != self.seen.1 {
            self.good.clear();
        }
        self.seen = now;
        for (choice, crashed) in medium.crashes(2, Order::InOrder) {
            let digest = crashed.digest();
            if !self.good.insert(digest) {
                continue;
            }
            sweep.cuts += 1;
            if sweep.known.len() >= KNOWN {
                sweep.media += sweep.known.len();
                sweep.known.clear();
            }
            let of = (digest, crashed.geometry().bytes);
            let found = sweep.known.entry(of).or_insert_with(|| judge(&crashed, 2));
            let found = found.as_ref().map_err(Clone::clone);
            let checked = found.and_then(|found| self.driver.bears(found));
            if let Err(what) = checked {
                let unsynced = medium.unsynced();
                return Err(format!("instant {}, {choice:?} of {unsynced:#?}: {what}", now.0));
            }
        }
        Ok(())
    }
}

impl Sweep {
    /// Runs a workload; `false`: it cannot be done, and nor can one that begins like it.
    pub(super) fn workload(&mut self, start: &Start, steps: &[Step]) -> Result<bool, String> {
        let mut run = Run::new(start);
        let (last, before) = steps.split_last().expect("it has a step");
        for step in before {
            assert!((step.begin)(&mut run), "it could be done before");
            run.driver.finish()?;
        }
        if !(last.begin)(&mut run) {
            run.driver.world.forget();
            return Ok(false);
        }
        let result = if !self.rare || has_a_rare_one(steps) {
            self.workloads += 1;
            run.watch(self)
        } else {
            run.driver.finish()
        };
        run.driver.world.forget();
        result.map(|()| true)
    }

    /// Whether a workload is tried.
    fn takes(&self, steps: &[Step]) -> bool {
        let number = |number, step: &Step| step.name.bytes().fold(number, |number, byte| mix(number ^ u64::from(byte)));
        self.sampled.is_none_or(|(length, of)| length != steps.len() || steps.iter().fold(7, number) % of == 0)
    }

    /// Runs all workloads that begin with these steps and have `more` of `of` at most.
    pub(super) fn all(&mut self, start: &Start, of: &[Step], steps: &mut Vec<Step>, more: usize) -> Result<(), String> {
        if more == 0 {
            return Ok(());
        }
        for step in of {
            steps.push(*step);
            let is_last = more == 1 && self.rare && !has_a_rare_one(steps);
            if is_last || !self.takes(steps) {
                steps.pop();
                continue;
            }
            let told = Told(steps);
            let possible = self.workload(start, told.0).map_err(|what| format!("{:?}: {what}", told.0))?;
            drop(told);
            if possible && !is_like_a_shorter_one(steps) {
                self.all(start, of, steps, more - 1)?;
            }
            steps.pop();
        }
        Ok(())
    }
}

fn has_a_rare_one(steps: &[Step]) -> bool {
    steps.iter().any(|step| RARE.iter().any(|rare| rare.name == step.name))
}

/// Whether what comes behind these steps is what comes behind all but the last of them, so that a shorter workload has it: a
/// flush behind a step that commits finds nothing that is not durable, changes nothing, neither in memory nor on the medium,
/// and only has the base flush once more. (The flush itself is cut like every last step.)
fn is_like_a_shorter_one(steps: &[Step]) -> bool {
    matches!(steps, [.., before, last] if before.commits && last.name == "flush")
}

/// Says what it was if the run panics.
struct Told<'a>(&'a [Step]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the workload was {:?}", self.0);
        }
    }
}

/// All workloads of these steps that are shorter than `longest`, and one out of `sampled` of those that are as long.
fn sweep(block: u32, of: &[Step], rare: bool, longest: usize, sampled: Option<u64>) -> Sweep {
    let began = std::time::Instant::now();
    let sampled = sampled.map(|of| (longest, of));
    let mut sweep = Sweep { sampled, rare, ..Sweep::default() };
    let start = Start::new(block);
    let done = sweep.all(&start, of, &mut Vec::new(), longest);
    let Sweep { cuts, workloads, .. } = sweep;
    let media = sweep.media + sweep.known.len();
    eprintln!("{workloads} workloads, {cuts} crashes, {media} media, {:?}", began.elapsed());
    done.unwrap_or_else(|what| panic!("{what}"));
    sweep
}

/// `POLLUX_SWEEP`: all workloads of up to so many operations.
fn asked_for() -> Option<usize> {
    std::env::var("POLLUX_SWEEP").ok().and_then(|text| text.parse().ok())
}

/// All workloads of up to three operations, and one out of sixteen of four.
fn common(block: u32) {
    let all = asked_for();
    let Sweep { cuts, workloads, .. } = sweep(block, STEPS, false, all.unwrap_or(4), all.is_none().then_some(16));
    assert!(all.is_some() || (workloads > 3000 && cuts > 20_000), "few workloads");
}

/// All workloads of up to two operations with a rare one, and one out of eight of three. `POLLUX_SWEEP`: of one less.
fn rare(block: u32) {
    let all = asked_for().map(|all| all - 1);
    let Sweep { cuts, workloads, .. } = sweep(block, &around(), true, all.unwrap_or(3), all.is_none().then_some(8));
    assert!(all.is_some() || (workloads > 250 && cuts > 2000), "few workloads");
}

#[test]
fn every_short_workload_bears_every_crash_on_512() {
    common(512);
}

#[test]
fn every_short_workload_bears_every_crash_on_4096() {
    common(4096);
}

#[test]
fn every_short_workload_with_a_rare_order_bears_every_crash_on_512() {
    rare(512);
}

#[test]
fn every_short_workload_with_a_rare_order_bears_every_crash_on_4096() {
    rare(4096);
}
