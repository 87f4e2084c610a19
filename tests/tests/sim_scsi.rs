//! Guests in the simulated world: random commands in random framings on several queues and reactors, while queues stop
//! and start, commands are aborted, units reset, LUNs come and go, and VMMs die. Every run is a number: the seed.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, Tmf, cdb,
};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Effect, Fault, Kind, SimAppliance, SimBdev, SimWorld, backing, unit_of};

const LUN: Lun = Lun::new(0, 0);
const BLOCKS: u64 = 512;

/// How many seeds a test tries: `POLLUX_SIM_SEEDS`, or few.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first.map_or(0..count, |first| first..first + 1)
}

fn for_seeds(few: u64, test: impl Fn(u64) -> Result<()>) -> Result<()> {
    seeds(few).try_for_each(|seed| test(seed).with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)")))
}

/// A guest with a load on LUN 0 of target 0.
struct SimGuest {
    front: FrontEnd,
    load: ScsiLoad,
    mix: ScsiMix,
    rng: Rng,
    /// The queues that run.
    running: Vec<bool>,
    tmfs: usize,
}

impl SimGuest {
    fn connect(appliance: &mut SimAppliance, ctrlr: &str, seed: u64) -> Result<Self> {
        let load = ScsiLoad::new(LUN, 512, BLOCKS, seed);
        Self::connect_with(appliance, ctrlr, seed, load)
    }

    fn connect_with(appliance: &mut SimAppliance, ctrlr: &str, seed: u64, load: ScsiLoad) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let options = DriverOptions {
            request_queues: rng.between(1, 4) as usize,
            queue_size: 1 << rng.between(5, 7),
            event_idx: rng.chance(1, 2),
            indirect: rng.chance(1, 2),
            events: true,
            memory: vec![(0x10_0000, 8 << 20)],
            seed,
        };
        let mut front = appliance.connect(ctrlr, &options)?;
        front.driver.post_events(4, 16);
        let running = vec![true; front.driver.queues.len()];
        Ok(SimGuest { front, load, mix: ScsiMix::default(), rng, running, tmfs: 0 })
    }

    fn request_queue(&mut self) -> usize {
        FIRST_REQUEST_QUEUE + self.rng.index(self.front.driver.queues.len() - FIRST_REQUEST_QUEUE)
    }

    /// Something random a guest does.
    fn act(&mut self) {
        let queue = self.request_queue();
        if self.load.in_flight() < 48 {
            self.load.submit(&mut self.front.driver, queue, &self.mix);
        }
        if self.rng.chance(2, 3) && self.running[queue] {
            self.front.driver.queues[queue].flush();
        }
    }

    /// Takes all answers.
    fn take(&mut self) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((ticket, response)) = self.front.poll(queue)? {
                let known = self.load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
                ensure!(known, "queue {queue}: an answer to {ticket}, which nobody asked");
            }
        }
        while let Some((_, response, ..)) =
            self.front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("control queue: {why:?}"))?
        {
            ensure!(matches!(response[0], 0 | 10), "a task management function was answered with {}", response[0]);
            self.tmfs -= 1;
        }
        Ok(())
    }

    /// Sends a random task management function.
    fn tmf(&mut self) {
        let queue = self.request_queue();
        let tickets = self.load.tickets(queue);
        let (function, tag) = if tickets.is_empty() || self.rng.chance(1, 4) {
            (Tmf::LunReset, 0)
        } else {
            (Tmf::AbortTask, tickets[self.rng.index(tickets.len())])
        };
        if self.front.driver.submit_tmf(function, LUN.bytes(), tag).is_some() {
            self.tmfs += 1;
        }
        self.front.driver.queues[CONTROL_QUEUE].flush();
    }

    /// Stops a queue and, sooner or later, starts it where it stopped.
    fn stop_or_start(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        let queue = self.request_queue();
        let front = &mut self.front;
        if self.running[queue] {
            let base = appliance.machine.call(|| front.stop_queue(queue))?;
            self.running[queue] = false;
            let taken = base.wrapping_sub(self.front.driver.queues[queue].ring.last_used());
            self.take()?;
            let left = base.wrapping_sub(self.front.driver.queues[queue].ring.last_used());
            ensure!(left == 0, "queue {queue} stopped with {left} of {taken} requests taken and not answered");
        } else {
            self.start(appliance, queue)?;
        }
        Ok(())
    }

    fn start(&mut self, appliance: &mut SimAppliance, queue: usize) -> Result<()> {
        let base = self.front.driver.queues[queue].ring.last_used();
        let front = &mut self.front;
        appliance.machine.call(|| front.start_queue(queue, base))?;
        self.running[queue] = true;
        self.front.driver.queues[queue].flush();
        self.front.driver.queues[queue].kick();
        Ok(())
    }

    /// Lets everything that was asked be answered.
    fn finish(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..self.running.len() {
            if !self.running[queue] {
                self.start(appliance, queue)?;
            }
        }
        for queue in &mut self.front.driver.queues {
            queue.flush();
        }
        appliance.machine.run();
        self.take()?;
        ensure!(
            self.load.in_flight() == 0 && self.tmfs == 0,
            "the machine is idle with {} commands and {} task management functions unanswered",
            self.load.in_flight(),
            self.tmfs
        );
        Ok(())
    }

    /// One command, answered when the machine is idle.
    fn command(&mut self, appliance: &mut SimAppliance, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Vec<u8>> {
        for _ in 0..8 {
            let ticket = self.front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, cdb, out, in_len));
            appliance.machine.run();
            let (answered, response) = self.front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
            ensure!(Some(answered) == ticket, "an answer to another command");
            match response.sense_key() {
                Some((6, ..)) => {}
                _ if response.good() => return Ok(response.data),
                sense => bail!("{cdb:02x?}: status {} sense {sense:?}", response.status),
            }
        }
        bail!("unit attentions without end")
    }

    /// Reads the whole disk and asks the oracle.
    fn verify(&mut self, appliance: &mut SimAppliance) -> Result<()> {
        self.finish(appliance)?;
        let read = self.load.model.begin_read(0, BLOCKS);
        let mut data = Vec::new();
        for at in (0..BLOCKS).step_by(64) {
            data.extend(self.command(appliance, &cdb::read10(at as u32, 64), &[], 64 * 512)?);
        }
        self.load.model.end_read(read, &data).map_err(|why| anyhow!(why))
    }
}

/// An appliance with one controller per guest, all over one device each.
fn appliance(world: &SimWorld, seed: u64, guests: usize) -> Result<(SimAppliance, Vec<SimBdev>)> {
    let reactors = 1 + (seed % 3) as usize;
    let mut appliance = SimAppliance::new(world, reactors, seed)?;
    let mut disks = Vec::new();
    for guest in 0..guests {
        let disk = SimBdev::new(world, BLOCKS * 512);
        let name = format!("vm{guest}");
        let bdev: Arc<dyn Bdev> = Arc::new(disk.clone());
        let unit = unit_of(&name, &*bdev);
        appliance.controller(&name, &[(0, 0, backing(&name, &unit, &bdev))])?;
        disks.push(disk);
    }
    Ok((appliance, disks))
}

/// Whether a command that did not end GOOD met a unit attention.
fn attention(other: &(u8, u8, Option<(u8, u8, u8)>)) -> bool {
    matches!(other, (0, 2, Some((6, ..))))
}

/// Two guests at once; `extra` is what else happens now and then.
fn scenario(
    seed: u64,
    steps: u64,
    mut extra: impl FnMut(&mut SimAppliance, &mut SimGuest, &mut Rng) -> Result<()>,
) -> Result<Vec<ScsiLoad>> {
    let world = SimWorld::new(seed);
    let (mut appliance, _) = appliance(&world, seed, 2)?;
    let mut rng = Rng::new(seed ^ 0xfeed);
    let mut guests = Vec::new();
    for n in 0..2 {
        guests.push(SimGuest::connect(&mut appliance, &format!("vm{n}"), seed * 2 + n)?);
    }
    for _ in 0..steps {
        let which = rng.index(guests.len());
        guests[which].act();
        if rng.chance(1, 2) {
            appliance.machine.rounds(rng.below(6));
            guests[which].take()?;
        }
        extra(&mut appliance, &mut guests[which], &mut rng)?;
    }
    for guest in &mut guests {
        guest.verify(&mut appliance)?;
    }
    let mut loads = Vec::new();
    for SimGuest { front, load, .. } in guests {
        appliance.disconnect(front);
        loads.push(load);
    }
    appliance.shutdown()?;
    Ok(loads)
}

#[test]
fn random_commands_are_answered_once_and_right() -> Result<()> {
    for_seeds(12, |seed| {
        for load in scenario(seed, 800, |_, _, _| Ok(()))? {
            ensure!(load.good > 60, "only {} commands were done", load.good);
            ensure!(load.others.iter().all(attention), "commands failed: {:?}", load.others);
        }
        Ok(())
    })
}

#[test]
fn queues_stop_and_start_with_requests_in_flight() -> Result<()> {
    for_seeds(8, |seed| {
        scenario(seed, 300, |appliance, guest, rng| {
            if rng.chance(1, 12) { guest.stop_or_start(appliance) } else { Ok(()) }
        })?
        .iter()
        .try_for_each(|load| Ok(ensure!(load.good > 20, "only {} commands were done", load.good)))
    })
}

#[test]
fn aborts_and_resets_end_what_they_name_and_nothing_else_goes_wrong() -> Result<()> {
    let ended = std::cell::Cell::new(0);
    for_seeds(10, |seed| {
        let tmf = |_: &mut SimAppliance, guest: &mut SimGuest, rng: &mut Rng| {
            if rng.chance(1, 12) {
                guest.tmf();
            }
            Ok(())
        };
        for load in scenario(seed, 500, tmf)? {
            ensure!(load.good > 30, "only {} commands were done", load.good);
            // ABORTED and RESET; the rest are unit attentions.
            let by_tmf = |other: &&(u8, u8, _)| matches!(other.0, 2 | 4);
            ended.set(ended.get() + load.others.iter().filter(by_tmf).count());
            ensure!(load.others.iter().all(|o| by_tmf(&o) || attention(o)), "commands failed: {:?}", load.others);
        }
        Ok(())
    })?;
    ensure!(ended.get() > 0, "no command was ever ended early");
    Ok(())
}

#[test]
fn a_vmm_that_dies_with_requests_in_flight_leaves_the_disk_to_the_next() -> Result<()> {
    for_seeds(8, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let mut guest = SimGuest::connect(&mut appliance, "vm0", seed)?;
        for round in 0..5 {
            for _ in 0..100 {
                guest.act();
                appliance.machine.rounds(guest.rng.below(4));
                guest.take()?;
            }
            let SimGuest { front, mut load, .. } = guest;
            for queue in FIRST_REQUEST_QUEUE..front.driver.queues.len() {
                load.abandon(queue);
            }
            appliance.disconnect(front);
            guest = SimGuest::connect_with(&mut appliance, "vm0", seed * 100 + round, load)?;
        }
        guest.verify(&mut appliance)?;
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

#[test]
fn a_disk_that_errs_costs_the_commands_that_meet_it() -> Result<()> {
    for_seeds(6, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        world.fault(Fault { percent: 10, ..Fault::always(Kind::Write, Effect::Error(libc::EIO)) });
        world.fault(Fault { percent: 10, ..Fault::always(Kind::Read, Effect::Error(libc::EIO)) });
        let mut guest = SimGuest::connect(&mut appliance, "vm0", seed)?;
        for _ in 0..500 {
            guest.act();
            appliance.machine.rounds(guest.rng.below(4));
            guest.take()?;
        }
        world.heal();
        guest.verify(&mut appliance)?;
        let medium = guest.load.others.iter().filter(|(.., sense)| matches!(sense, Some((3, ..)))).count();
        ensure!(medium > 5, "MEDIUM ERROR: {medium}, others {:?}", guest.load.others);
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

#[test]
fn data_that_changes_below_is_noticed() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, disks) = appliance(&world, 1, 1)?;
    let mut guest = SimGuest::connect(&mut appliance, "vm0", 1)?;
    guest.verify(&mut appliance)?;
    world.disk(disks[0].disk(), |disk| disk.write(7 * 512, &[1; 512], true));
    ensure!(guest.verify(&mut appliance).is_err(), "the oracle did not see a foreign block");
    appliance.disconnect(guest.front);
    appliance.shutdown()
}

#[test]
fn equal_seeds_give_equal_runs() -> Result<()> {
    let run = |seed| -> Result<(u64, u64, u64)> {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let mut guest = SimGuest::connect(&mut appliance, "vm0", seed)?;
        for _ in 0..200 {
            guest.act();
            appliance.machine.rounds(guest.rng.below(4));
            guest.take()?;
        }
        guest.finish(&mut appliance)?;
        let end = (world.now(), world.changes(), guest.load.good);
        appliance.disconnect(guest.front);
        appliance.shutdown()?;
        Ok(end)
    };
    for seed in seeds(6) {
        let (first, second) = (run(seed)?, run(seed)?);
        ensure!(first == second, "seed {seed}: {first:?} and {second:?}");
    }
    Ok(())
}

#[test]
fn luns_come_and_go_under_load() -> Result<()> {
    for_seeds(6, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let second = SimBdev::new(&world, BLOCKS * 512);
        let bdev: Arc<dyn Bdev> = Arc::new(second);
        let unit = unit_of("second", &*bdev);
        let mut guest = SimGuest::connect(&mut appliance, "vm0", seed)?;
        let mut other = ScsiLoad::new(Lun::new(1, 3), 512, BLOCKS, seed + 1);
        let mut there = false;
        for _ in 0..300 {
            guest.act();
            let queue = guest.request_queue();
            if there && other.in_flight() < 8 {
                other.submit(&mut guest.front.driver, queue, &ScsiMix::default());
                guest.front.driver.queues[queue].flush();
            }
            appliance.machine.rounds(guest.rng.below(4));
            take_both(&mut guest, &mut other)?;
            if guest.rng.chance(1, 20) {
                let backing = backing("second", &unit, &bdev);
                appliance.call(|target| -> Result<()> {
                    if there {
                        target.remove_lun("vm0", 1, Some(3))?;
                    } else {
                        target.add_lun("vm0", Some(1), 3, backing)?;
                    }
                    Ok(())
                })?;
                there = !there;
            }
        }
        appliance.machine.run();
        take_both(&mut guest, &mut other)?;
        ensure!(other.in_flight() == 0, "{} commands to the LUN that came and went", other.in_flight());
        guest.verify(&mut appliance)?;
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

fn take_both(guest: &mut SimGuest, other: &mut ScsiLoad) -> Result<()> {
    for queue in FIRST_REQUEST_QUEUE..guest.front.driver.queues.len() {
        while let Some((ticket, response)) = guest.front.poll(queue)? {
            let known = guest.load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?
                || other.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
            ensure!(known, "an answer to {ticket}, which nobody asked");
        }
    }
    Ok(())
}
