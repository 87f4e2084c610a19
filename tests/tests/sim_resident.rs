//! What reactors do for nobody's request: residents are hosted, woken and evicted beside guests, and commands that wait
//! for a resident of another reactor are answered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_core::{
    Alignment, Bdev, Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, OpenError, Resident, Shape,
    Tag, Wake,
};
use pollux_tests::guest::ScsiMix;
use pollux_tests::rng::Rng;
use pollux_tests::scribe::{Desk, Scribe};
use pollux_tests::sim::{Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimGuest, SimWorld, backing, unit_of};
use pollux_vhost_scsi::{HostedId, Patience, TargetError};

const REACTORS: usize = 3;
const BLOCKS: u64 = 256;

/// An appliance with a guest, and a scribe that is hosted nowhere yet.
struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    guest: SimGuest,
    book: SimBdev,
    desk: Arc<Desk>,
    rng: Rng,
}

fn appliance(world: &SimWorld, seed: u64) -> Result<SimAppliance> {
    world.set_latency(5_000, 200_000);
    let appliance = SimAppliance::new(world, REACTORS, seed)?;
    appliance.target.set_patience(PATIENT);
    Ok(appliance)
}

fn scene(seed: u64) -> Result<Scene> {
    let world = SimWorld::new(seed);
    let mut appliance = appliance(&world, seed)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * 512));
    appliance.controller("vm", &[(0, 0, backing("disk", &unit_of("disk", &*bdev), &bdev))])?;
    let guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    let book = SimBdev::new(&world, 4096);
    Ok(Scene { world, appliance, guest, book, desk: Arc::default(), rng: Rng::new(seed ^ 0x5c71be) })
}

fn host(appliance: &mut SimAppliance, reactor: usize, resident: Box<dyn Resident>) -> Result<HostedId> {
    appliance.call(|target| target.host(reactor, resident)).map_err(|refused| anyhow!("{refused}"))
}

impl Scene {
    fn host(&mut self, reactor: usize) -> Result<HostedId> {
        host(&mut self.appliance, reactor, Scribe::on(&self.book, &self.desk))
    }

    fn page(&self) -> Vec<u8> {
        self.world.disk(self.book.disk(), |disk| disk.visible()[..512].to_vec())
    }

    /// What the guest does, and now and then a line for the scribe.
    fn step(guest: &mut SimGuest, desk: &Desk, rng: &mut Rng) -> Result<()> {
        for _ in 0..rng.below(3) {
            guest.act();
        }
        if rng.chance(1, 4) {
            desk.ask();
        }
        guest.take()
    }

    /// The scribe goes to another reactor while everything else goes on.
    fn move_scribe(&mut self, from: HostedId) -> Result<HostedId> {
        let to = self.rng.index(REACTORS);
        let Scene { appliance, guest, desk, rng, .. } = self;
        let target = Arc::clone(&appliance.target);
        let mut wrong = Ok(());
        let moved = appliance.machine.call_beside(
            || {
                let resident = target.evict(from)?;
                target.host(to, resident).map_err(|refused| refused.error)
            },
            || {
                if wrong.is_ok() {
                    wrong = Self::step(guest, desk, rng);
                }
            },
        )?;
        wrong?;
        // What it was asked while it was nowhere has woken the wrong reactor.
        desk.wake();
        ensure!(moved != from && moved.reactor() == to, "{from:?} -> {moved:?}");
        Ok(moved)
    }

    fn end(mut self) -> Result<()> {
        self.guest.finish(&mut self.appliance)?;
        self.guest.verify(&mut self.appliance)?;
        self.appliance.disconnect(self.guest.front);
        self.appliance.shutdown()
    }
}

#[test]
fn a_resident_sees_what_memory_asks_when_its_reactor_is_woken_and_not_before() -> Result<()> {
    let mut scene = scene(1)?;
    for reactor in 0..REACTORS {
        let id = scene.host(reactor)?;
        // The guest's queues are looked at for a while before they wait for a kick.
        for _ in 0..4 {
            scene.world.tick(1_000_000);
            scene.appliance.machine.run();
        }
        let before = scene.desk.written();
        scene.desk.ask_quietly();
        scene.appliance.machine.run();
        ensure!(scene.desk.written() == before, "the machine does not know how to sleep");
        scene.desk.wake();
        scene.appliance.machine.run();
        ensure!(scene.desk.written() == before + 1 && scene.page() == scene.desk.block());
        drop(scene.appliance.call(|target| target.evict(id))?);
        scene.desk.ask();
        scene.appliance.machine.run();
        ensure!(!scene.desk.is_attached() && scene.desk.written() == before + 1, "it works on after it has left");
        // The next one begins where this one has stopped.
        ensure!(matches!(scene.appliance.call(|target| target.evict(id)), Err(TargetError::NoResident(_))));
    }
    scene.end()
}

/// A guest's load and lines for a scribe that is moved about; returns the lines, the moves and the time.
fn beside_a_guest(seed: u64) -> Result<(u64, u64, u64)> {
    let mut scene = scene(seed)?;
    let mut at = scene.host(0)?;
    let mut moves = 0;
    for _ in 0..300 {
        Scene::step(&mut scene.guest, &scene.desk, &mut scene.rng)?;
        scene.appliance.machine.rounds(scene.rng.below(6));
        if scene.rng.chance(1, 24) {
            at = scene.move_scribe(at)?;
            moves += 1;
        }
    }
    scene.appliance.machine.run();
    let (asked, written) = (scene.desk.asked(), scene.desk.written());
    ensure!(asked == written, "the machine is idle with {written} of {asked} lines written");
    ensure!(scene.page() == scene.desk.block());
    drop(scene.appliance.call(|target| target.evict(at))?);
    let clock = scene.world.now();
    scene.end()?;
    Ok((written, moves, clock))
}

#[test]
fn residents_work_beside_guests_and_move() -> Result<()> {
    let (mut lines, mut moves) = (0, 0);
    for seed in 1..=12 {
        let ran = beside_a_guest(seed).with_context(|| format!("seed {seed}"))?;
        (lines, moves) = (lines + ran.0, moves + ran.1);
    }
    ensure!(lines > 500 && moves > 50, "{lines} lines, {moves} moves");
    Ok(())
}

#[test]
fn equal_seeds_give_equal_runs() -> Result<()> {
    let (one, other) = (beside_a_guest(5)?, beside_a_guest(5)?);
    ensure!(one == other, "{one:?} and {other:?}");
    Ok(())
}

#[test]
fn one_that_has_a_write_in_flight_leaves_when_that_has_ended() -> Result<()> {
    let mut scene = scene(3)?;
    let id = scene.host(1)?;
    let page = scene.world.clone();
    scene.world.fault(Fault { times: 1, ..Fault::always(Kind::Write, Effect::Stuck) });
    scene.desk.ask();
    scene.appliance.machine.run();
    ensure!(scene.world.transfers().len() == 1, "its write is stuck");
    scene.desk.ask();
    scene.appliance.target.set_patience(Patience { cancelled: Duration::from_millis(20), ..PATIENT });
    for _ in 0..2 {
        let evicted = scene.appliance.call(|target| target.evict(id));
        ensure!(matches!(evicted, Err(TargetError::Draining)), "it has left with a write in flight");
        ensure!(scene.desk.is_attached());
    }
    scene.appliance.target.set_patience(PATIENT);
    let target = Arc::clone(&scene.appliance.target);
    let mut steps = 0;
    let guest = &mut scene.guest;
    let evicted = scene.appliance.machine.call_beside(
        || target.evict(id),
        || {
            steps += 1;
            guest.act();
            if steps == 20 {
                page.release();
            }
        },
    );
    drop(evicted?);
    ensure!(steps >= 20 && !scene.desk.is_attached());
    ensure!(scene.desk.written() == 1, "it has taken something new");
    ensure!(scene.page() == scene.desk.block());
    scene.end()
}

#[test]
fn one_that_nobody_waits_for_any_more_leaves_all_the_same() -> Result<()> {
    let mut scene = scene(4)?;
    let id = scene.host(2)?;
    scene.world.fault(Fault { times: 1, ..Fault::always(Kind::Write, Effect::Stuck) });
    scene.desk.ask();
    scene.appliance.machine.run();
    scene.appliance.target.set_patience(Patience { cancelled: Duration::ZERO, ..PATIENT });
    ensure!(matches!(scene.appliance.call(|target| target.evict(id)), Err(TargetError::Draining)));
    scene.world.release();
    scene.appliance.machine.run();
    ensure!(!scene.desk.is_attached() && scene.desk.written() == 1);
    // Late, but not too late.
    drop(scene.appliance.call(|target| target.evict(id))?);
    scene.end()
}

#[test]
fn one_that_does_not_fit_is_given_back_as_it_was() -> Result<()> {
    let mut scene = scene(2)?;
    scene.desk.refuse(true);
    let scribe = Scribe::on(&scene.book, &scene.desk);
    let Err(refused) = scene.appliance.call(|target| target.host(REACTORS, scribe)) else { bail!("no such reactor") };
    ensure!(matches!(refused.error, TargetError::NoReactor(REACTORS)), "{refused:?}");
    let scribe = refused.resident.context("it is given back")?;
    let Err(refused) = scene.appliance.call(|target| target.host(0, scribe)) else { bail!("it did not want to") };
    ensure!(matches!(refused.error, TargetError::Resident(IoError::Busy)), "{refused:?}");
    let scribe = refused.resident.context("it is given back")?;
    ensure!(!scene.desk.is_attached());
    scene.desk.refuse(false);
    let id = host(&mut scene.appliance, 0, scribe)?;
    scene.desk.ask();
    scene.appliance.machine.run();
    ensure!(scene.page() == scene.desk.block() && scene.desk.written() == 1);
    drop(scene.appliance.call(|target| target.evict(id))?);
    scene.end()
}

/// Passes a count on to another like it, and never says that it did something.
struct Silent {
    count: Arc<AtomicU64>,
    /// Whether it takes the odd ones.
    odd: bool,
    wakers: Arc<Mutex<Vec<Arc<dyn Wake>>>>,
}

impl Resident for Silent {
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.wakers.lock().unwrap().push(cx.ring.waker());
        Ok(())
    }

    fn poll(&mut self, _: &mut Cx<'_>) -> u32 {
        let count = self.count.load(SeqCst);
        if count > 0 && (count % 2 == 1) == self.odd {
            self.count.store(count - 1, SeqCst);
            self.wakers.lock().unwrap().iter().for_each(|waker| waker.wake());
        }
        0
    }

    fn next(&self) -> Next {
        Next::Idle
    }

    fn ask_to_leave(&mut self) {}

    fn has_left(&self) -> bool {
        true
    }

    fn detach(&mut self, _: &mut Cx<'_>) {}
}

#[test]
fn residents_that_only_wake_each_other_keep_the_machine_going() -> Result<()> {
    let world = SimWorld::new(6);
    let mut appliance = appliance(&world, 6)?;
    let (count, wakers) = (Arc::new(AtomicU64::new(0)), Arc::default());
    let mut hosted = Vec::new();
    for (reactor, odd) in [(0, false), (1, true)] {
        let silent = Silent { count: Arc::clone(&count), odd, wakers: Arc::clone(&wakers) };
        hosted.push(host(&mut appliance, reactor, Box::new(silent))?);
    }
    count.store(1000, SeqCst);
    appliance.machine.run();
    ensure!(count.load(SeqCst) == 1000, "nobody has woken them");
    wakers.lock().unwrap()[0].wake();
    appliance.machine.run();
    ensure!(count.load(SeqCst) == 0, "{} are left", count.load(SeqCst));
    for id in hosted {
        drop(appliance.call(|target| target.evict(id))?);
    }
    appliance.shutdown()
}

/// A device whose flushes are done by a resident, one for all that wait, whichever reactor they come from.
struct Grouped {
    base: SimBdev,
    group: Arc<Group>,
}

/// What its channels share with the resident.
#[derive(Default)]
struct Group {
    /// Flushes that wait, by channel.
    asked: Mutex<Vec<(u64, Tag)>>,
    /// Those that were done.
    done: Mutex<Vec<(u64, Tag)>>,
    /// Whom to wake: the channels' reactors by channel, and the resident's as `RESIDENT`.
    wakers: Mutex<BTreeMap<u64, Arc<dyn Wake>>>,
    /// Nobody is woken.
    mute: AtomicBool,
}

const RESIDENT: u64 = u64::MAX;

impl Group {
    fn wake(&self, whom: u64) {
        if !self.mute.load(SeqCst)
            && let Some(waker) = self.wakers.lock().unwrap().get(&whom)
        {
            waker.wake();
        }
    }

    fn enter(&self, who: u64, cx: &Cx<'_>) {
        self.wakers.lock().unwrap().insert(who, cx.ring.waker());
    }
}

impl Bdev for Grouped {
    fn shape(&self) -> Shape {
        self.base.shape()
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let (base, group) = (self.base.open(args)?, Arc::clone(&self.group));
        Ok(Box::new(GroupedChannel { number: args.seed, base, group, flushes: 0 }))
    }
}

struct GroupedChannel {
    number: u64,
    base: Box<dyn Channel>,
    group: Arc<Group>,
    flushes: u32,
}

impl Channel for GroupedChannel {
    fn depth(&self) -> u32 {
        self.base.depth()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.group.enter(self.number, cx);
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        assert_eq!(self.flushes, 0);
        self.base.detach(cx);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        if io.op != Op::Flush {
            return self.base.submit(io, cx);
        }
        self.flushes += 1;
        self.group.asked.lock().unwrap().push((self.number, io.tag));
        self.group.wake(RESIDENT);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.base.poll(cx, done);
        let mine = |(number, _): &mut (u64, Tag)| *number == self.number;
        for (_, tag) in self.group.done.lock().unwrap().extract_if(.., mine) {
            self.flushes -= 1;
            done.push(Completion { tag, result: Ok(()) });
        }
    }

    fn next(&self) -> Next {
        if self.flushes > 0 { self.base.next().or(Next::Ring) } else { self.base.next() }
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        self.base.cancel(tag, cx);
    }
}

struct Grouper {
    base: Box<dyn Channel>,
    group: Arc<Group>,
    /// Those that the flush in flight is for.
    under_way: Vec<(u64, Tag)>,
    leaving: bool,
}

impl Grouper {
    fn on(device: &Grouped) -> Box<dyn Resident> {
        let base = device.base.open(OpenArgs { depth: 1, seed: 0 }).expect("the device opens");
        Box::new(Grouper { base, group: Arc::clone(&device.group), under_way: Vec::new(), leaving: false })
    }
}

impl Resident for Grouper {
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.group.enter(RESIDENT, cx);
        self.base.attach(cx)
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        let mut done = Vec::new();
        self.base.poll(cx, &mut done);
        let ended = if done.is_empty() { Vec::new() } else { std::mem::take(&mut self.under_way) };
        self.group.done.lock().unwrap().extend(&ended);
        for (number, _) in ended {
            self.group.wake(number);
        }
        if self.under_way.is_empty() && !self.leaving {
            self.under_way = std::mem::take(&mut *self.group.asked.lock().unwrap());
            if !self.under_way.is_empty() {
                self.base.submit(Io::without_data(0, Op::Flush, IoFlags::empty(), 0, 0), cx);
            }
        }
        done.len() as u32
    }

    fn next(&self) -> Next {
        self.base.next()
    }

    fn ask_to_leave(&mut self) {
        self.leaving = true;
    }

    fn has_left(&self) -> bool {
        self.under_way.is_empty()
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }
}

/// A guest whose flushes are done on another reactor; with `mute`, nobody is woken in the middle of the run. Returns
/// whether all was answered by itself.
fn grouped(seed: u64, mute: bool) -> Result<bool> {
    let world = SimWorld::new(seed);
    let mut appliance = appliance(&world, seed)?;
    let group = Arc::<Group>::default();
    let device = Arc::new(Grouped { base: SimBdev::new(&world, BLOCKS * 512), group: Arc::clone(&group) });
    let bdev: Arc<dyn Bdev> = Arc::clone(&device) as _;
    appliance.controller("vm", &[(0, 0, backing("disk", &unit_of("disk", &*bdev), &bdev))])?;
    let mut guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    guest.mix = ScsiMix { sync: 30, ..ScsiMix::default() };
    let id = host(&mut appliance, seed as usize % REACTORS, Grouper::on(&device))?;
    group.mute.store(mute, SeqCst);
    let mut rng = Rng::new(seed);
    for _ in 0..200 {
        guest.act();
        appliance.machine.rounds(rng.below(6));
        guest.take()?;
    }
    for queue in &mut guest.front.driver.queues {
        queue.flush();
    }
    appliance.machine.run();
    guest.take()?;
    let by_itself = guest.load.in_flight() == 0;
    group.mute.store(false, SeqCst);
    let all: Vec<_> = group.wakers.lock().unwrap().keys().copied().collect();
    all.iter().for_each(|whom| group.wake(*whom));
    guest.finish(&mut appliance)?;
    guest.verify(&mut appliance)?;
    drop(appliance.call(|target| target.evict(id))?);
    appliance.disconnect(guest.front);
    appliance.shutdown()?;
    Ok(by_itself)
}

#[test]
fn commands_that_wait_for_a_resident_of_another_reactor_are_answered() -> Result<()> {
    for seed in 1..=12 {
        ensure!(grouped(seed, false).with_context(|| format!("seed {seed}"))?, "seed {seed}: a wake was lost");
    }
    Ok(())
}

#[test]
fn wakes_that_are_left_out_are_noticed() -> Result<()> {
    let mut noticed = 0;
    for seed in 1..=6 {
        noticed += u32::from(!grouped(seed, true)?);
    }
    ensure!(noticed > 0, "the machine polls reactors that sleep");
    Ok(())
}
