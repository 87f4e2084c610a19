//! Queues that move from reactor to reactor in the simulated world, with requests in flight: while the control plane
//! moves one, its guest goes on, aborts and resets, stops it, loses the LUN, or dies. Every run is a number: the seed.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_tests::guest::{Command, DriverOptions, Lun, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{
    Call, Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimGuest, SimWorld, VERY_PATIENT, backing, unit_of,
};
use pollux_vhost_scsi::{Backing, QueuePlace, Target, TargetError, WorkerConfig};
use vhost::VhostBackend as _;

const BLOCKS: u64 = 512;
const REACTORS: usize = 3;
const LUN: Lun = Lun::new(0, 0);

fn appliance_and_disk(world: &SimWorld, seed: u64) -> Result<(SimAppliance, Backing)> {
    let mut appliance = SimAppliance::new(world, REACTORS, seed)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(world, BLOCKS * 512));
    let disk = backing("vm", &unit_of("vm", &*bdev), &bdev);
    appliance.controller("vm", &[(0, 0, disk.clone())])?;
    Ok((appliance, disk))
}

fn appliance(world: &SimWorld, seed: u64) -> Result<SimAppliance> {
    Ok(appliance_and_disk(world, seed)?.0)
}

fn places(appliance: &mut SimAppliance) -> Vec<QueuePlace> {
    appliance.call(Target::queue_places)
}

/// How moves went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moves {
    moved: u64,
    /// Of those, with requests in flight when the queue was offered. Its reactor counts them: what other threads see of
    /// it, and when, depends on more than the seed.
    loaded: u64,
    /// Not at once: task management was at work, or the queue had stopped.
    stayed: u64,
    /// The clocks of the worlds when all was done.
    clock: u64,
}

impl Moves {
    fn add(&mut self, other: &Moves) {
        self.moved += other.moved;
        self.loaded += other.loaded;
        self.stayed += other.stayed;
        self.clock += other.clock;
    }

    /// A test of moves is worth something if there were many, and most of them of queues at work.
    fn are_worth(&self, least: u64) -> Result<()> {
        ensure!(self.moved >= least, "only {} moves: {self:?}", self.moved);
        ensure!(self.loaded * 2 >= self.moved, "few moves with requests in flight: {self:?}");
        Ok(())
    }
}

/// A queue that is to go somewhere.
#[derive(Clone)]
struct Way {
    from: QueuePlace,
    to: usize,
}

impl Way {
    /// Of a random queue that runs, to another reactor.
    fn random(appliance: &SimAppliance, rng: &mut Rng) -> Option<Way> {
        let mut places = appliance.target.queue_places();
        if places.is_empty() {
            return None;
        }
        let from = places.swap_remove(rng.index(places.len()));
        let to = (from.reactor + 1 + rng.index(REACTORS - 1)) % REACTORS;
        Some(Way { from, to })
    }

    fn queue(&self) -> usize {
        usize::from(self.from.index)
    }

    fn of<'a>(&self, places: &'a [QueuePlace]) -> Option<&'a QueuePlace> {
        places.iter().find(|place| (place.session, place.index) == (self.from.session, self.from.index))
    }

    fn go(&self, target: &Target) -> Result<Said> {
        match target.move_queue(&self.from.ctrlr, self.from.session, self.from.index, self.to) {
            // It had been stopped before.
            Err(TargetError::NoQueue { .. }) => Ok(Said::Moved(false)),
            other => Ok(Said::Moved(other?)),
        }
    }
}

/// What a call beside the machine came to.
enum Said {
    Moved(bool),
    Stopped(u16),
    Removed,
    Died,
}

/// Queues that were offered with requests in flight.
fn offered_at_work(appliance: &mut SimAppliance) -> u64 {
    (0..REACTORS).map(|reactor| appliance.machine.worker(reactor).offered_at_work()).sum()
}

type Also<'a> = Vec<(u64, Call<'a, Result<Said>>)>;

/// Moves a queue after so many steps, and makes other calls, while `act` goes on.
fn go_beside(
    appliance: &mut SimAppliance,
    way: &Way,
    steps: u64,
    also: Also<'_>,
    mut act: impl FnMut() -> Result<()>,
) -> Result<(Moves, Vec<Said>)> {
    let target = Arc::clone(&appliance.target);
    let before = offered_at_work(appliance);
    let mut calls: Also<'_> = vec![(steps, Box::new(|| way.go(&target)))];
    calls.extend(also);
    calls.sort_by_key(|(steps, _)| *steps);
    let mut wrong = Ok(());
    let said = appliance.machine.calls_beside(calls, || {
        if wrong.is_ok() {
            wrong = act();
        }
    });
    wrong?;
    let said = said.into_iter().collect::<Result<Vec<Said>>>()?;
    let mut moves = Moves::default();
    if said.iter().any(|said| matches!(said, Said::Moved(true))) {
        moves.moved = 1;
        moves.loaded = offered_at_work(appliance) - before;
    } else {
        moves.stayed = 1;
    }
    Ok((moves, said))
}

/// Something that a guest does while a queue of it moves.
fn go_on(guest: &mut SimGuest, rng: &mut Rng, tmf: bool) -> Result<()> {
    for _ in 0..rng.below(4) {
        guest.act();
    }
    if tmf && rng.chance(1, 24) {
        guest.tmf();
    }
    if rng.chance(1, 2) { guest.take() } else { Ok(()) }
}

fn loaded_world(seed: u64) -> SimWorld {
    let world = SimWorld::new(seed);
    world.set_latency(10_000, 300_000);
    world
}

/// A guest on its appliance.
struct Scene<'a> {
    appliance: &'a mut SimAppliance,
    guest: &'a mut SimGuest,
    rng: &'a mut Rng,
    disk: &'a Backing,
}

/// A guest that does random things, and `event` of it now and then.
fn scenario(seed: u64, mut event: impl FnMut(Scene<'_>) -> Result<Moves>) -> Result<Moves> {
    let world = loaded_world(seed);
    let (mut appliance, disk) = appliance_and_disk(&world, seed)?;
    appliance.target.set_patience(PATIENT);
    let mut guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut moves = Moves::default();
    for _ in 0..240 {
        guest.act();
        if rng.chance(1, 2) {
            appliance.machine.rounds(rng.below(6));
            guest.take()?;
        }
        if rng.chance(1, 12) {
            moves.add(&event(Scene { appliance: &mut appliance, guest: &mut guest, rng: &mut rng, disk: &disk })?);
        }
    }
    guest.verify(&mut appliance)?;
    let stats = appliance.target.move_stats();
    ensure!(stats.moved() == moves.moved, "{} moves are counted of {moves:?}", stats.moved());
    moves.clock = world.now();
    let good = guest.load.good;
    ensure!(good > 20, "only {good} commands were done");
    appliance.disconnect(guest.front);
    appliance.shutdown()?;
    Ok(moves)
}

fn move_one(Scene { appliance, guest, rng, .. }: Scene<'_>, tmf: bool) -> Result<Moves> {
    let Some(way) = Way::random(appliance, rng) else { return Ok(Moves::default()) };
    let (moves, _) = go_beside(appliance, &way, 0, Vec::new(), || go_on(guest, rng, tmf))?;
    let now = appliance.target.queue_places();
    let now = way.of(&now).context("the queue still runs")?;
    let expected = if moves.moved > 0 { way.to } else { way.from.reactor };
    ensure!(now.reactor == expected, "it is on reactor {}, not on {expected}", now.reactor);
    Ok(moves)
}

/// Stops a queue while it moves, before it does, or just after.
fn stop_beside(Scene { appliance, guest, rng, .. }: Scene<'_>) -> Result<Moves> {
    let Some(way) = Way::random(appliance, rng) else { return Ok(Moves::default()) };
    let (session, queue) = (guest.front.session.clone(), way.queue());
    let stop = move || Ok(Said::Stopped(session.get_vring_base(queue).context("GET_VRING_BASE")? as u16));
    let also: Also<'_> = vec![(rng.below(30), Box::new(stop))];
    let (moves, said) = go_beside(appliance, &way, rng.below(10), also, || go_on(guest, rng, false))?;
    let base = said.iter().find_map(|said| if let Said::Stopped(base) = said { Some(*base) } else { None });
    let base = base.context("the queue was not stopped")?;
    guest.stopped(queue, base)?;
    ensure!(way.of(&appliance.target.queue_places()).is_none(), "a queue that was stopped is listed");
    for _ in 0..rng.below(3) {
        go_on(guest, rng, false)?;
        appliance.machine.rounds(2);
    }
    guest.start(appliance, queue)?;
    let now = appliance.target.queue_places();
    let now = way.of(&now).context("the queue runs again")?;
    let expected = if moves.moved > 0 { way.to } else { way.from.reactor };
    ensure!(now.reactor == expected, "it began again on reactor {}, and was on {expected}", now.reactor);
    Ok(moves)
}

/// Takes the LUN away while a queue moves, and gives it back.
fn remove_beside(Scene { appliance, guest, rng, disk }: Scene<'_>) -> Result<Moves> {
    let Some(way) = Way::random(appliance, rng) else { return Ok(Moves::default()) };
    let target = Arc::clone(&appliance.target);
    let remove = || {
        target.remove_lun("vm", 0, None)?;
        Ok(Said::Removed)
    };
    let also: Also<'_> = vec![(rng.below(30), Box::new(remove))];
    let (moves, said) = go_beside(appliance, &way, rng.below(10), also, || go_on(guest, rng, false))?;
    ensure!(said.iter().any(|said| matches!(said, Said::Removed)), "the LUN was not removed");
    go_on(guest, rng, false)?;
    appliance.machine.rounds(4);
    appliance.call(|target| target.add_lun("vm", Some(0), 0, disk.clone()))?;
    Ok(moves)
}

fn for_seeds(seeds: std::ops::RangeInclusive<u64>, run: impl Fn(u64) -> Result<Moves>) -> Result<Moves> {
    let mut all = Moves::default();
    for seed in seeds {
        all.add(&run(seed).with_context(|| format!("seed {seed}"))?);
    }
    Ok(all)
}

#[test]
fn what_a_moving_queue_is_asked_is_answered_once_and_right() -> Result<()> {
    let moves = for_seeds(1..=5, |seed| scenario(seed, |scene| move_one(scene, false)))?;
    ensure!(moves.stayed == 0, "with patience, every queue goes: {moves:?}");
    moves.are_worth(60)
}

#[test]
fn aborts_and_resets_find_what_they_are_about_wherever_it_is() -> Result<()> {
    let moves = for_seeds(11..=16, |seed| {
        scenario(seed, |Scene { appliance, guest, rng, disk }| {
            while guest.functions() > 0 {
                appliance.machine.rounds(1);
                go_on(guest, rng, false)?;
            }
            if rng.chance(1, 4) {
                guest.tmf();
                appliance.machine.rounds(rng.below(8));
            }
            move_one(Scene { appliance, guest, rng, disk }, true)
        })
    })?;
    ensure!(moves.stayed > 0, "no function was ever at work: {moves:?}");
    moves.are_worth(40)
}

#[test]
fn a_queue_is_stopped_and_started_while_it_moves() -> Result<()> {
    let moves = for_seeds(21..=25, |seed| scenario(seed, stop_beside))?;
    ensure!(moves.stayed > 0, "no queue was ever stopped first: {moves:?}");
    moves.are_worth(40)
}

#[test]
fn a_lun_goes_while_queues_move() -> Result<()> {
    let moves = for_seeds(31..=34, |seed| scenario(seed, remove_beside))?;
    moves.are_worth(40)
}

#[test]
fn a_reactor_without_room_is_given_no_queue() -> Result<()> {
    const FULL: usize = 5;
    let world = SimWorld::new(1);
    let config = WorkerConfig { queues_max: FULL, ..WorkerConfig::default() };
    let mut appliance = SimAppliance::with(&world, 2, 1, config)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * 512));
    appliance.controller("vm", &[(0, 0, backing("vm", &unit_of("vm", &*bdev), &bdev))])?;
    // Queues 2, 4 and 6 begin beside the control and the event queue, which is all that reactor 0 has room for.
    let options = DriverOptions { request_queues: 6, ..DriverOptions::default() };
    let mut front = appliance.connect("vm", &options)?;
    let session = places(&mut appliance)[0].session;
    let go = |appliance: &mut SimAppliance, queue, to| appliance.call(|t| t.move_queue("vm", session, queue, to));
    let at = |appliance: &SimAppliance, queue: u16| {
        appliance.target.queue_places().iter().find(|place| place.index == queue).map(|place| place.reactor)
    };
    let refused = go(&mut appliance, 3, 0);
    ensure!(matches!(refused, Err(TargetError::NoRoom(0))), "a full reactor was given a queue: {refused:?}");
    ensure!(at(&appliance, 3) == Some(1), "it is not where it was");
    ensure!(go(&mut appliance, 2, 1)?, "there is room on reactor 1");
    ensure!(go(&mut appliance, 3, 0)? && go(&mut appliance, 3, 1)?, "there is room again, each time");
    // One that stops keeps no room, and begins elsewhere if others have taken it.
    let base = appliance.machine.call(|| front.stop_queue(2))?;
    for queue in [4, 6] {
        ensure!(go(&mut appliance, queue, 1)?, "there is room for queue {queue}");
    }
    appliance.machine.call(|| front.start_queue(2, base))?;
    ensure!(at(&appliance, 2) == Some(0), "it has begun somewhere else than where there is room");
    let read = cdb::read10(0, 1);
    for queue in 2..8 {
        for _ in 0..4 {
            front.submit(queue, &Command::new(LUN, &read, &[], 512)).context("no room")?;
            appliance.machine.run();
            ensure!(front.poll(queue)?.is_some(), "queue {queue} is not served");
        }
    }
    appliance.disconnect(front);
    appliance.shutdown()
}

#[test]
fn a_queue_counts_what_it_was_given_to_do_wherever_it_is() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = appliance(&world, 1)?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    let (small, large) = (cdb::read10(0, 1), cdb::read10(0, 256));
    let (mut requests, mut data) = (0, 0);
    for round in 0..12 {
        for (cdb, len) in [(&small, 512), (&large, 256 * 512)] {
            front.submit(2, &Command::new(LUN, cdb, &[], len)).context("no room")?;
            if round % 4 == 1 {
                // Nothing is aborted; but the command may be taken for this, before its turn.
                front.driver.submit_tmf(Tmf::AbortTask, LUN.bytes(), u64::MAX).context("no room")?;
                front.driver.queues[0].flush();
            }
            appliance.machine.run();
            ensure!(front.poll(2)?.is_some(), "no answer");
            (requests, data) = (requests + 1, data + len as u64);
        }
        let place = places(&mut appliance)[0].clone();
        ensure!(place.requests == requests, "{} requests of {requests}", place.requests);
        // Each has a header and a response, too.
        let all = data..data + requests * 256;
        ensure!(all.contains(&place.bytes), "{} bytes of {data}", place.bytes);
        ensure!(appliance.call(|target| target.move_queue("vm", place.session, 2, (place.reactor + 1) % REACTORS))?);
    }
    appliance.disconnect(front);
    appliance.shutdown()
}

#[test]
fn order_is_kept_over_a_move_by_what_task_management_took_too() -> Result<()> {
    let mut moved = 0;
    for seed in 1..=8 {
        let world = SimWorld::new(seed);
        let mut appliance = appliance(&world, seed)?;
        appliance.target.set_patience(PATIENT);
        let options = DriverOptions { queue_size: 1024, indirect: true, ..DriverOptions::default() };
        let mut front = appliance.connect("vm", &options)?;
        // Answered at once, so what was asked first is answered first.
        let ready = Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0);
        let mut asked = Vec::new();
        for _ in 0..1000 {
            asked.push(front.driver.submit(2, &ready).context("no room")?);
        }
        front.driver.queues[2].flush();
        // Aborts nothing, but all that the guest has asked is taken out of its ring to see that, and waits for its turn.
        front.driver.submit_tmf(Tmf::AbortTask, LUN.bytes(), u64::MAX).context("no room")?;
        front.driver.queues[0].flush();
        while front.driver.in_flight(0) > 0 {
            appliance.machine.rounds(1);
            front.driver.poll_raw(0).map_err(|why| anyhow!("control queue: {why:?}"))?;
        }
        let place = appliance.target.queue_places()[0].clone();
        let (target, to) = (Arc::clone(&appliance.target), (place.reactor + 1) % REACTORS);
        let done = appliance
            .machine
            .call_beside(|| target.move_queue("vm", place.session, 2, to), || asked.extend(front.submit(2, &ready)))?;
        moved += u64::from(done);
        appliance.machine.run();
        for (at, asked) in asked.iter().enumerate() {
            let (answered, _) = front.poll(2)?.with_context(|| format!("seed {seed}: {at} was not answered"))?;
            ensure!(answered == *asked, "seed {seed}: {at} was answered as {answered} and asked as {asked}");
        }
        appliance.disconnect(front);
        appliance.shutdown()?;
    }
    ensure!(moved == 8, "{moved} of 8 moved");
    Ok(())
}

#[test]
fn a_run_is_its_seed() -> Result<()> {
    type Event = fn(Scene<'_>) -> Result<Moves>;
    for event in [|scene: Scene<'_>| move_one(scene, true), stop_beside as Event, remove_beside as Event] {
        let [one, other] = [scenario(7, event)?, scenario(7, event)?];
        ensure!(one == other, "one seed, two runs: {one:?} and {other:?}");
    }
    let [one, other] = [lives(7)?, lives(7)?];
    ensure!(one == other, "one seed, two runs: {one:?} and {other:?}");
    Ok(())
}

/// A guest whose VMM dies over and over, while a queue of it moves or just before or after that.
fn lives(seed: u64) -> Result<Moves> {
    let world = loaded_world(seed);
    let mut appliance = appliance(&world, seed)?;
    appliance.target.set_patience(VERY_PATIENT);
    let mut rng = Rng::new(seed);
    let mut guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    let mut all = Moves::default();
    for life in 0..8 {
        for _ in 0..20 + rng.below(40) {
            guest.act();
            appliance.machine.rounds(rng.below(3));
        }
        guest.take()?;
        let way = Way::random(&appliance, &mut rng).context("queues run")?;
        let (alive, load) = (Mutex::new(Some(guest)), Mutex::new(None));
        let die = || {
            let (front, of_guest) = taken(&alive).context("it dies once")?.leave();
            drop(front);
            *load.lock().unwrap_or_else(PoisonError::into_inner) = Some(of_guest);
            Ok(Said::Died)
        };
        // As a call, it happens while everything else waits: what others see of it is the seed's matter, too.
        let also: Also<'_> = vec![(rng.below(30), Box::new(die))];
        let (moves, _) = go_beside(&mut appliance, &way, 0, also, || {
            let mut alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
            alive.as_mut().map_or(Ok(()), |guest| go_on(guest, &mut rng, true))
        })?;
        all.add(&moves);
        appliance.await_sessions(0);
        let load = taken(&load).context("a guest that has died leaves a load")?;
        guest = SimGuest::connect_with(&mut appliance, "vm", seed * 100 + life, load)?;
    }
    guest.verify(&mut appliance)?;
    all.clock = world.now();
    appliance.disconnect(guest.front);
    appliance.shutdown()?;
    Ok(all)
}

fn taken<T>(from: &Mutex<Option<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[test]
fn a_vmm_dies_while_its_queues_move() -> Result<()> {
    for_seeds(41..=46, lives)?.are_worth(30)
}

#[test]
fn a_queue_whose_requests_do_not_end_stays_and_goes_on() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = appliance(&world, 1)?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    let mut run = |appliance: &mut SimAppliance, cdb: &[u8], len: usize| -> Result<Option<bool>> {
        front.submit(2, &Command::new(LUN, cdb, &[], len)).context("no room")?;
        appliance.machine.run();
        Ok(front.poll(2)?.map(|(_, response)| response.good()))
    };
    let read = cdb::read10(0, 1);
    while run(&mut appliance, &read, 512)? != Some(true) {}
    world.fault(Fault::always(Kind::Sync, Effect::Stuck));
    ensure!(run(&mut appliance, &cdb::sync10(), 0)?.is_none(), "the flush is stuck");
    ensure!(appliance.target.controllers()[0].sessions[0].inflight == 1, "listings show it in flight");
    let place = places(&mut appliance)[0].clone();
    let to = (place.reactor + 1) % REACTORS;
    let moved = appliance.call(|target| target.move_queue("vm", place.session, 2, to))?;
    ensure!(!moved, "a queue with a stuck request was moved");
    ensure!(appliance.target.move_stats().given_up() == 1, "it is counted");
    ensure!(run(&mut appliance, &read, 512)? == Some(true), "the queue does not go on");
    for bad in [
        appliance.call(|target| target.move_queue("vm", place.session, 0, to)),
        appliance.call(|target| target.move_queue("vm", place.session, 7, to)),
        appliance.call(|target| target.move_queue("vm", place.session, 2, 99)),
        appliance.call(|target| target.move_queue("other", place.session, 2, to)),
    ] {
        ensure!(bad.is_err(), "a move of nothing, or to nowhere, was taken");
    }
    appliance.disconnect(front);
    appliance.shutdown()
}

#[test]
fn a_kick_and_an_interrupt_on_the_way_are_not_lost() -> Result<()> {
    for event_idx in [false, true] {
        let world = SimWorld::new(1);
        let mut appliance = appliance(&world, 1)?;
        let options = DriverOptions { event_idx, ..DriverOptions::default() };
        let mut front = appliance.connect("vm", &options)?;
        let read = cdb::read10(0, 1);
        // Rests, so that its kick is armed, before each move.
        for round in 0..6 {
            front.submit(2, &Command::new(LUN, &read, &[], 512)).context("no room")?;
            appliance.machine.run();
            ensure!(front.poll(2)?.is_some(), "round {round}: no answer");
            let place = places(&mut appliance)[0].clone();
            let to = (place.reactor + 1) % REACTORS;
            // Made available, and kicked for if that is wanted, while nobody turns.
            front.submit(2, &Command::new(LUN, &read, &[], 512)).context("no room")?;
            ensure!(appliance.call(|target| target.move_queue("vm", place.session, 2, to))?, "it did not move");
            appliance.machine.run();
            ensure!(front.poll(2)?.is_some(), "round {round}: what was asked before the move was forgotten");
            ensure!(front.driver.queues[2].interrupts() > 0, "round {round}: no interrupt");
        }
        appliance.disconnect(front);
        appliance.shutdown()?;
    }
    Ok(())
}
