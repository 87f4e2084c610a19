//! Every request that reaches the base fails, one at a time: those of workloads of a few operations, of what the pool does by itself
//! afterwards, of a flush and a checkpoint, and of the start that comes behind.
//!
//! It fails once, having done nothing or all, or all fail from then on; or the base has no space: for that write, for all
//! from then on, or for what it has none for yet. Whichever it is: what guests read is right, every error is one that
//! this may give, and the pool goes on as if nothing had been, when the base is well again, or it says that it is read-only and serves
//! what it has. What a power cut leaves then, and what is left when it is closed, is as it may be.

use std::collections::{BTreeMap, HashMap};

use pollux_core::{IoError, IoFlags, Op};

use super::driver::{Driver, Refused, uuid_of};
use super::judge::{Found, judge, tidy};
use super::sweep::{RARE, Run, STEPS, Start, Step};
use super::world::World;
use crate::rng::mix;
use crate::testing::floor::Floor;
use crate::testing::medium::{Crash, Effect, Event, Happened, Medium, Order, Rule};
use crate::testing::stamp::SECTOR;
use crate::thin::PoolError;

const NONE: IoFlags = IoFlags::empty();
/// Media whose content is remembered.
const KNOWN: usize = 4000;
/// Longer than anything waits before it is tried again.
const RETRIED_NS: u64 = 25_000_000_000;

/// The pool commits by itself meanwhile.
const REST_NS: u64 = 600_000_000;
/// One fault out of so many is tried, unless all are asked for.
const STRIDE: u64 = 16;
/// The same of starts, which have few requests.
const STARTS_STRIDE: u64 = 8;

/// How a base fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Once; of a flush that fails all that it covered is lost.
    Once,
    /// Once, and what was asked for has happened.
    Done,
    /// From then on.
    Always,
    /// A write, once, for want of space.
    NoSpaceOnce,
    /// All writes from then on.
    NoSpace,
    /// What is written where nothing is, from then on.
    Full,
}

const KINDS: [Kind; 6] = [Kind::Once, Kind::Done, Kind::Always, Kind::NoSpaceOnce, Kind::NoSpace, Kind::Full];

impl Kind {
    const fn error(self) -> IoError {
        match self {
            Kind::Once | Kind::Done | Kind::Always => IoError::Medium,
            Kind::NoSpaceOnce | Kind::NoSpace | Kind::Full => IoError::NoSpace,
        }
    }

    /// The rule by which what comes behind so many requests fails.
    fn rule(self, skip: u64) -> Option<Rule> {
        let takes_space = |io: &pollux_core::Io| matches!(io.op, Op::Write | Op::WriteZeroes);
        let rule = match self {
            Kind::Once => Rule::new(Effect::FailAndLose(self.error())),
            Kind::Done => Rule::new(Effect::FailDone(self.error())),
            Kind::Always => Rule::new(Effect::Fail(self.error())).always(),
            Kind::NoSpaceOnce => Rule::new(Effect::Fail(self.error())).when(takes_space),
            Kind::NoSpace => Rule::new(Effect::Fail(self.error())).when(takes_space).always(),
            Kind::Full => return None,
        };
        Some(rule.skip(skip))
    }
}

/// A base that fails in this way behind so many requests. (One that is full: behind so many instants.)
#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: Kind,
    at: u64,
}

/// How many requests a workload has: of all kinds, those that take space, and instants.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    all: u64,
    writes: u64,
    instants: u64,
}

impl Lengths {
    const fn of(self, kind: Kind) -> u64 {
        match kind {
            Kind::Once | Kind::Done | Kind::Always => self.all,
            Kind::NoSpaceOnce | Kind::NoSpace => self.writes,
            Kind::Full => self.instants,
        }
    }
}

/// What has been tried.
struct Tried {
    /// What media of this content and size hold.
    known: HashMap<(u128, u64), Result<Found, String>>,
    /// Of all faults one out of so many is tried.
    stride: u64,
    workloads: u64,
    /// Of runs, of starts.
    faults: [u64; 2],
    /// After which the pool was read-only.
    read_only: u64,
    /// Power cuts, and what was left by pools that were closed.
    media: u64,
}

impl Tried {
    /// Whether this is as it may be, of what a crash leaves.
    fn bears(&mut self, medium: &Medium, bears: impl FnOnce(&Found) -> Result<(), String>) -> Result<(), String> {
        if self.known.len() > KNOWN {
            self.known.clear();
        }
        self.media += 1;
        let of = (medium.digest(), medium.geometry().bytes);
        let found = self.known.entry(of).or_insert_with(|| judge(medium, 2));
        found.as_ref().map_err(Clone::clone).and_then(bears)
    }

    /// All faults of a workload, of those that the stride has; `false`: it cannot be done.
    fn workload(&mut self, start: &Start, steps: &[Step]) -> Result<bool, String> {
        let Some(lengths) = self.run(start, steps, None)? else { return Ok(false) };
        self.workloads += 1;
        for kind in KINDS {
            // Begins somewhere else in each.
            let first = mix(self.workloads ^ mix(kind as u64)) % self.stride;
            for at in (first..lengths.of(kind)).step_by(self.stride as usize) {
                let fault = Fault { kind, at };
                let told = Told(steps, fault);
                self.run(start, steps, Some(fault)).map_err(|what| format!("{fault:?}: {what}"))?;
                drop(told);
            }
        }
        Ok(true)
    }

    /// Runs a workload, and on a base that fails looks what becomes of the pool. `None`: it cannot be done.
    fn run(&mut self, start: &Start, steps: &[Step], fault: Option<Fault>) -> Result<Option<Lengths>, String> {
        let mut run = Run::new(start);
        let medium = run.driver.world.medium.clone();
        let (events, instants) = (medium.events().len(), medium.instants());
        let mut full = None;
        if let Some(Fault { kind, at }) = fault {
            run.driver.fails = true;
            kind.rule(at).into_iter().for_each(|rule| medium.rule(rule));
            full = (kind == Kind::Full).then_some(instants + at);
        }
        for (nth, step) in steps.iter().enumerate() {
            run.forget_what_is_gone();
            if run.driver.fails && run.driver.world.info().failed {
                break;
            }
            let possible = (step.begin)(&mut run);
            if fault.is_none() && !possible {
                assert!(nth + 1 == steps.len(), "it could be done before");
                run.driver.world.forget();
                return Ok(None);
            }
            finish(&mut run.driver, &mut full)?;
        }
        if fault.is_none() {
            let left = medium.crash(Crash::Seeded(self.workloads), Order::InOrder);
            self.starts(&run.driver, &left)?;
        }
        rest(&mut run.driver, REST_NS, &mut full)?;
        run.driver.flush(start.a, 1);
        finish(&mut run.driver, &mut full)?;
        run.driver.checkpoint();
        finish(&mut run.driver, &mut full)?;
        rest(&mut run.driver, REST_NS, &mut full)?;
        let Some(fault) = fault else {
            let events = &medium.events()[events..];
            let asked = |event: &&Event| event.what == Happened::Submitted;
            let takes = |event: &&Event| matches!(event.op, Op::Write | Op::WriteZeroes);
            let (all, writes) =
                (events.iter().filter(asked).count(), events.iter().filter(asked).filter(takes).count());
            run.driver.world.forget();
            return Ok(Some(Lengths {
                all: all as u64,
                writes: writes as u64,
                instants: medium.instants() - instants,
            }));
        };
        self.faults[0] += 1;
        assert!(medium.hits() > 0 || fault.kind == Kind::Full && full.is_none(), "a run is like the one before");
        self.afterwards(run, fault).map(|()| None)
    }

    /// Opens what a power cut has left while the base fails: that is why it cannot be opened, or it can, and nothing is lost.
    fn starts(&mut self, driver: &Driver, left: &Medium) -> Result<(), String> {
        for kind in KINDS {
            let first = mix(self.workloads ^ mix(kind as u64)) % STARTS_STRIDE.min(self.stride);
            for at in (first..).step_by(STARTS_STRIDE.min(self.stride) as usize) {
                let copy = left.crash(Crash::All, Order::InOrder);
                let Some(rule) = kind.rule(at) else { break };
                copy.rule(rule);
                match World::open(&copy, Floor::in_order(), 2, 3) {
                    Ok(world) => world.forget(),
                    Err(error) if error.reason() == "io" && copy.hits() > 0 => {}
                    Err(error) => return Err(format!("{kind:?} at {at}, and it cannot be opened: {error}")),
                }
                if copy.hits() == 0 {
                    break;
                }
                self.faults[1] += 1;
                for choice in [Crash::None, Crash::All] {
                    let bears = self.bears(&copy.crash(choice, Order::InOrder), |found| driver.bears(found));
                    bears.map_err(|what| format!("{kind:?} at {at} when it is opened, {choice:?}: {what}"))?;
                }
            }
        }
        Ok(())
    }

    /// What a pool is, and becomes, on a base that has failed.
    fn afterwards(&mut self, mut run: Run<'_>, fault: Fault) -> Result<(), String> {
        let is_read_only = run.driver.world.info().failed;
        self.read_only += u64::from(is_read_only);
        let medium = run.driver.world.medium.clone();
        errors_are_right(&run.driver.errors, fault.kind, is_read_only)?;
        is_rightly(is_read_only, fault.kind, &medium.events())?;
        for choice in [Crash::None, Crash::All, Crash::Seeded(fault.at)] {
            let left = medium.crash(choice, Order::InOrder);
            self.bears(&left, |found| run.driver.bears(found)).map_err(|what| format!("{choice:?}: {what}"))?;
        }
        run.driver.fails = false;
        // Every other one is closed while the base is as it is.
        let is_well = mix(fault.at).is_multiple_of(2);
        if is_well {
            medium.clear_rules();
            medium.limit_space(None);
            well_again(&mut run, is_read_only)?;
        }
        let Driver { world, expect, .. } = run.driver;
        let closed = if is_well && !is_read_only { tidy(world)? } else { world.shut() };
        for choice in [Crash::None, Crash::All] {
            let left = closed.crash(choice, Order::InOrder);
            let bears = |mut found: &Found| expect.bears(&mut found);
            self.bears(&left, bears).map_err(|what| format!("closed, then {choice:?}: {what}"))?;
        }
        Ok(())
    }

    /// Runs all workloads that begin with these steps and have `more` of `of` at most.
    fn all(&mut self, start: &Start, of: &[Step], steps: &mut Vec<Step>, more: usize) -> Result<(), String> {
        for step in of {
            steps.push(*step);
            let possible = self.workload(start, steps).map_err(|what| format!("{steps:?}: {what}"))?;
            if possible && more > 1 {
                self.all(start, of, steps, more - 1)?;
            }
            steps.pop();
        }
        Ok(())
    }
}

/// Says what it was if the run panics.
struct Told<'a>(&'a [Step], Fault);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the workload was {:?}, with {:?}", self.0, self.1);
        }
    }
}

/// Has the base be full when its time has come.
fn fill(driver: &Driver, full: &mut Option<u64>) {
    let medium = &driver.world.medium;
    if full.take_if(|at| medium.instants() >= *at).is_some() {
        medium.limit_space(Some(medium.space()));
    }
}

/// Runs until everything is answered.
fn finish(driver: &mut Driver, full: &mut Option<u64>) -> Result<(), String> {
    while driver.in_flight() != (0, 0) || driver.copying() > 0 {
        fill(driver, full);
        if !driver.step(u64::MAX)? {
            return Err(format!("never answered: {:?}", driver.in_flight()));
        }
    }
    Ok(())
}

/// Leaves it to itself for so long.
fn rest(driver: &mut Driver, ns: u64, full: &mut Option<u64>) -> Result<(), String> {
    let deadline = driver.world.floor.now() + ns;
    driver.world.floor.stir();
    loop {
        fill(driver, full);
        if !driver.step(deadline)? {
            return Ok(());
        }
    }
}

/// Errors are the base's own, or say that the pool is read-only and it is, or are such as it gives on a base that is well.
fn errors_are_right(errors: &[Refused], kind: Kind, is_read_only: bool) -> Result<(), String> {
    let of_base = |error: &IoError| *error == kind.error();
    let is_right = |refused: &&Refused| match refused {
        Refused::Request(Op::Flush, error) => is_read_only && *error == IoError::FlushFailed,
        Refused::Request(Op::Read, error) => of_base(error) && kind.error() == IoError::Medium,
        Refused::Request(_, IoError::ReadOnly | IoError::FlushFailed) => is_read_only,
        Refused::Request(_, error) => of_base(error) || *error == IoError::NoSpace,
        Refused::Order(PoolError::Failed(error)) | Refused::Copy(PoolError::Failed(error)) => {
            is_read_only && of_base(error)
        }
        Refused::Copy(PoolError::Copy(error)) => of_base(error),
        Refused::Order(_) => true,
        Refused::Copy(error) => {
            matches!(error, PoolError::NoSpace(_) | PoolError::Unfit { .. } | PoolError::NoParent { .. })
        }
    };
    match errors.iter().find(|refused| !is_right(refused)) {
        None => Ok(()),
        Some(refused) => Err(format!("{refused:?}, and read-only: {is_read_only}")),
    }
}

/// It is read-only if something of its own could not be written or read, and never for what is written, moved or given back for
/// somebody.
fn is_rightly(read_only: bool, kind: Kind, events: &[Event]) -> Result<(), String> {
    let failed = |event: &&Event| matches!(event.what, Happened::Completed(Err(_)));
    let own = |event: &&Event| event.label.is_some_and(|label| label != "checkpoint.extent");
    let may = |event: &&Event| event.label.is_some() || event.op == Op::Read;
    let (must, may) = (events.iter().filter(failed).find(own), events.iter().filter(failed).find(may));
    match (read_only, must, may) {
        (false, Some(event), _) => Err(format!("it is not read-only, and there was {event:?}")),
        (true, _, None) => Err("it is read-only for nothing of its own".into()),
        (true, ..) if kind == Kind::Full => Err("it is read-only, and has all the space of its own".into()),
        _ => Ok(()),
    }
}

/// On a base that is well again all that is there can be read, and a pool that is not read-only takes what comes.
fn well_again(run: &mut Run<'_>, is_read_only: bool) -> Result<(), String> {
    let (driver, a) = (&mut run.driver, run.start.a);
    rest(driver, RETRIED_NS, &mut None)?;
    let before = driver.errors.len();
    // One that was becoming smaller when the pool failed may be so until it is opened again.
    let has: BTreeMap<_, _> = driver.world.info().volumes.iter().map(|volume| (volume.uuid, volume.bytes)).collect();
    for id in driver.expect.present() {
        let sectors = has[&uuid_of(id)] / SECTOR as u64;
        driver.read(id, 0, 0, sectors.min(driver.expect.sectors(id)));
    }
    driver.finish()?;
    driver.write(a, 0, run.sub, run.sub, NONE);
    driver.finish()?;
    driver.flush(a, 1);
    driver.finish()?;
    driver.checkpoint();
    driver.finish()?;
    let errors = &driver.errors[before..];
    let as_it_is = match (is_read_only, errors) {
        (false, [] | [Refused::Request(Op::Write, IoError::NoSpace)]) => true,
        (true, [Refused::Request(Op::Write, one), Refused::Request(Op::Flush, other), Refused::Order(order)]) => {
            (*one, *other) == (IoError::ReadOnly, IoError::FlushFailed) && matches!(order, PoolError::Failed(_))
        }
        _ => false,
    };
    if as_it_is { Ok(()) } else { Err(format!("read-only: {is_read_only}, and well again: {errors:?}")) }
}

/// All workloads of up to so many operations with all of their faults, or those of two with one fault out of `stride`.
fn faults(block: u32) {
    let began = std::time::Instant::now();
    let asked = std::env::var("POLLUX_FAULTS").ok().and_then(|text| text.parse().ok());
    let stride = if asked.is_some() { 1 } else { STRIDE };
    let of: Vec<Step> = STEPS.iter().chain(RARE).copied().collect();
    let start = Start::new(block);
    let mut tried = Tried { known: HashMap::new(), stride, workloads: 0, faults: [0; 2], read_only: 0, media: 0 };
    let done = tried.all(&start, &of, &mut Vec::new(), asked.unwrap_or(2));
    let Tried { workloads, faults: [runs, starts], read_only, media, .. } = tried;
    eprintln!(
        "{workloads} workloads, {runs} faults ({read_only} read-only), {starts} of starts, {media} media, {:?}",
        began.elapsed()
    );
    done.unwrap_or_else(|what| panic!("{what}"));
    assert!(asked.is_some() || (runs > 500 && read_only > 100 && runs - read_only > 100), "few faults");
}

#[test]
fn every_request_that_fails_is_borne_on_512() {
    faults(512);
}

#[test]
fn every_request_that_fails_is_borne_on_4096() {
    faults(4096);
}
