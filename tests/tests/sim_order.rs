//! SIMPLE, ORDERED and HEAD OF QUEUE on a unit that two guests share, on several reactors: who waits for whom, and that
//! nobody waits for what is gone.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_scsi::{Identity, LogicalUnit, Sections};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Response, Ticket, Tmf, cdb};
use pollux_tests::sim::{Effect, Fault, Kind, LUN, PATIENT, Shelf, SimAppliance, SimBdev, SimWorld, backing, unit_of};
use uuid::Uuid;

const BLOCKS: u64 = 256;
const REACTORS: usize = 3;
const QUEUES: usize = 6;
const SIMPLE: u8 = 0;
const ORDERED: u8 = 1;
const HEAD: u8 = 2;

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    fronts: Vec<FrontEnd>,
    answers: Vec<(usize, Ticket, Response)>,
}

/// A command that was sent: of which guest, and its name there.
type Sent = (usize, Ticket);

impl Scene {
    fn new(seed: u64) -> Result<Scene> {
        Scene::with(seed, |bdev| unit_of("disk", bdev))
    }

    fn with(seed: u64, unit: impl Fn(&SimBdev) -> Arc<LogicalUnit>) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 100_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        let bdev = SimBdev::new(&world, BLOCKS * 512);
        let unit = unit(&bdev);
        let device: Arc<dyn Bdev> = Arc::new(bdev);
        let mut fronts = Vec::new();
        for name in ["one", "other"] {
            appliance.controller(name, &[(0, 0, backing("disk", &unit, &device))])?;
            let memory = vec![(0x10_0000, 8 << 20)];
            let options =
                DriverOptions { request_queues: QUEUES, queue_size: 64, memory, seed, ..DriverOptions::default() };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut scene = Scene { world, appliance, fronts, answers: Vec::new() };
        for guest in [0, 1] {
            // Its unit attentions.
            for _ in 0..4 {
                let told = scene.ready(guest, 0, SIMPLE)?;
                scene.answer(told)?;
            }
        }
        Ok(scene)
    }

    /// Sends a command and lets everything happen that can.
    fn send(&mut self, guest: usize, queue: usize, task_attr: u8, cdb: &[u8], out: &[u8], len: usize) -> Result<Sent> {
        let command = Command { task_attr, ..Command::new(LUN, cdb, out, len) };
        let queue = FIRST_REQUEST_QUEUE + queue;
        let ticket = self.fronts[guest].submit(queue, &command).context("no room")?;
        self.turn()?;
        Ok((guest, ticket))
    }

    fn ready(&mut self, guest: usize, queue: usize, task_attr: u8) -> Result<Sent> {
        self.send(guest, queue, task_attr, &cdb::TEST_UNIT_READY, &[], 0)
    }

    fn turn(&mut self) -> Result<()> {
        self.appliance.machine.run();
        for (guest, front) in self.fronts.iter_mut().enumerate() {
            for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
                while let Some((ticket, response)) = front.poll(queue)? {
                    self.answers.push((guest, ticket, response));
                }
            }
        }
        Ok(())
    }

    /// Takes a command's answer, which has to be there.
    fn answer(&mut self, (guest, ticket): Sent) -> Result<Response> {
        let at = self.answers.iter().position(|(of, name, _)| (*of, *name) == (guest, ticket));
        Ok(self.answers.remove(at.context("a command is not answered")?).2)
    }

    fn good(&mut self, sent: Sent) -> Result<()> {
        let response = self.answer(sent)?;
        ensure!(response.good(), "{response:?}");
        Ok(())
    }

    fn waits(&self, (guest, ticket): Sent) -> bool {
        !self.answers.iter().any(|(of, name, _)| (*of, *name) == (guest, ticket))
    }

    /// A write that the device does not end.
    fn stuck(&mut self, guest: usize, queue: usize) -> Result<Sent> {
        self.world.fault(Fault::always(Kind::Write, Effect::Stuck));
        let sent = self.send(guest, queue, SIMPLE, &cdb::write10(0, 2, false), &[5; 1024], 0)?;
        self.world.heal();
        ensure!(self.waits(sent), "the write is stuck");
        Ok(sent)
    }

    fn function(&mut self, guest: usize, function: Tmf, tag: Ticket) -> Result<u8> {
        let front = &mut self.fronts[guest];
        let asked = front.driver.submit_tmf(function, LUN.bytes(), tag).context("no room")?;
        front.driver.queues[CONTROL_QUEUE].flush();
        self.turn()?;
        let answer = self.fronts[guest].driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?;
        let (ticket, response, ..) = answer.context("a function is not answered")?;
        ensure!(ticket == asked, "another function was answered");
        Ok(response[0])
    }

    fn end(mut self) -> Result<()> {
        self.turn()?;
        ensure!(self.answers.is_empty(), "answers that nobody has looked at: {:?}", self.answers);
        for front in self.fronts {
            self.appliance.disconnect(front);
        }
        self.appliance.shutdown()
    }
}

fn for_seeds(run: impl Fn(u64) -> Result<()>) -> Result<()> {
    (1..=5).try_for_each(|seed| run(seed).with_context(|| format!("seed {seed}")))
}

#[test]
fn what_came_before_an_ordered_command_ends_before_it_begins_and_what_comes_after_waits() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        let write = scene.stuck(0, (seed % 3) as usize)?;
        // None of these touches a block.
        let ordered = scene.ready(1, 0, ORDERED)?;
        ensure!(scene.waits(ordered), "an ORDERED command does not wait for a write of another guest");
        let second = scene.send(0, 3, ORDERED, &cdb::read10(0, 2), &[], 1024)?;
        let (simple, mode) = (scene.ready(1, 1, SIMPLE)?, scene.send(0, 4, SIMPLE, &cdb::mode_sense10(8), &[], 64)?);
        ensure!([second, simple, mode].iter().all(|sent| scene.waits(*sent)), "it does not hold up what came after it");
        // HEAD OF QUEUE goes before all of them, and has them wait for it, too.
        let head = scene.send(1, 2, HEAD, &cdb::read10(100, 1), &[], 512)?;
        scene.good(head)?;
        scene.world.release();
        scene.turn()?;
        let read = scene.answer(second)?;
        ensure!(read.good() && read.data == [5; 1024], "{:?}", read.sense_key());
        [write, ordered, simple].into_iter().try_for_each(|sent| scene.good(sent))?;
        ensure!(scene.answer(mode)?.good(), "MODE SENSE failed");
        scene.end()
    })
}

#[test]
fn a_running_head_of_queue_holds_up_what_has_not_begun() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        scene.world.fault(Fault::always(Kind::Read, Effect::Stuck));
        let head = scene.send(0, 0, HEAD, &cdb::read10(0, 1), &[], 512)?;
        scene.world.heal();
        let (simple, ordered) = (scene.ready(1, 0, SIMPLE)?, scene.ready(1, 1, ORDERED)?);
        let write = scene.send(0, 1, SIMPLE, &cdb::write10(200, 1, false), &[1; 512], 0)?;
        ensure!([head, simple, ordered, write].iter().all(|sent| scene.waits(*sent)), "somebody did not wait");
        let second = scene.ready(0, 2, HEAD)?;
        scene.good(second)?;
        scene.world.release();
        scene.turn()?;
        [head, simple, ordered, write].into_iter().try_for_each(|sent| scene.good(sent))?;
        scene.end()
    })
}

/// An ORDERED command that waits, and one that waits for it, while a write of the first guest is stuck.
fn waiting(seed: u64, give_up: impl Fn(&mut Scene, Sent) -> Result<()>) -> Result<()> {
    let mut scene = Scene::new(seed)?;
    let write = scene.stuck(0, 0)?;
    let ordered = scene.send(1, 0, ORDERED, &cdb::write10(8, 1, false), &[7; 512], 0)?;
    let simple = scene.ready(0, 1, SIMPLE)?;
    ensure!(scene.waits(ordered) && scene.waits(simple), "nobody waits");
    ensure!(scene.function(1, Tmf::QueryTask, ordered.1)? == 10, "it is there");
    give_up(&mut scene, ordered)?;
    scene.turn()?;
    scene.good(simple).context("it waits for a command that is gone")?;
    let read = scene.send(0, 1, ORDERED, &cdb::read10(8, 1), &[], 512)?;
    ensure!(scene.waits(read), "the write is still stuck");
    scene.world.release();
    scene.turn()?;
    scene.good(write)?;
    let read = scene.answer(read)?;
    ensure!(read.good() && read.data == [0; 512], "what was ended before it began has been done");
    scene.end()
}

#[test]
fn an_ordered_command_that_waits_can_be_aborted() -> Result<()> {
    for_seeds(|seed| {
        waiting(seed, |scene, ordered| {
            ensure!(scene.function(1, Tmf::AbortTask, ordered.1)? == 0, "the abort failed");
            let response = scene.answer(ordered)?;
            ensure!(response.response == 2 && response.residual == 512, "{response:?}");
            Ok(())
        })
    })
}

#[test]
fn those_behind_an_ordered_command_that_is_aborted_go_on() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        let write = scene.stuck(0, 0)?;
        scene.world.fault(Fault::always(Kind::Read, Effect::Stuck));
        let head = scene.send(0, 1, HEAD, &cdb::read10(0, 1), &[], 512)?;
        scene.world.heal();
        // Both wait for the first; the second, on the same reactor, has not asked for more.
        let (ordered, simple) = (scene.ready(1, 0, ORDERED)?, scene.ready(1, 0, SIMPLE)?);
        ensure!(scene.function(0, Tmf::AbortTask, head.1)? == 0, "the abort failed");
        ensure!(scene.answer(head)?.response == 2 && scene.waits(ordered) && scene.waits(simple), "nobody waits");
        ensure!(scene.function(1, Tmf::AbortTask, ordered.1)? == 0, "the abort failed");
        ensure!(scene.answer(ordered)?.response == 2, "it was not aborted");
        scene.good(simple).context("it waits for a command that is gone")?;
        scene.world.release();
        scene.turn()?;
        scene.good(write)?;
        scene.end()
    })
}

#[test]
fn an_ordered_command_that_waits_goes_with_its_session() -> Result<()> {
    for_seeds(|seed| {
        waiting(seed, |scene, _| {
            let front = scene.fronts.pop().context("two guests")?;
            scene.appliance.disconnect(front);
            Ok(())
        })
    })
}

#[test]
fn a_reset_ends_all_who_wait_for_their_turn() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        let write = scene.stuck(0, 0)?;
        let waiting: Vec<Sent> = [(1, ORDERED), (0, SIMPLE), (1, SIMPLE), (0, ORDERED)]
            .into_iter()
            .enumerate()
            .map(|(at, (guest, attribute))| scene.ready(guest, at + 1, attribute))
            .collect::<Result<_>>()?;
        ensure!(scene.function(0, Tmf::LunReset, 0)? == 0, "the reset failed");
        for sent in [write].into_iter().chain(waiting) {
            let response = scene.answer(sent)?;
            // One that waited for another may have been a moment faster than the reset on its own reactor.
            let faster = sent != write && response.good();
            ensure!(response.response == 4 || faster, "{response:?}");
        }
        for guest in [0, 1] {
            let told = scene.ready(guest, 0, ORDERED)?;
            ensure!(scene.answer(told)?.sense_key() == Some((6, 0x29, 3)), "guest {guest} was not told");
            let ready = scene.ready(guest, 0, ORDERED)?;
            scene.good(ready)?;
        }
        scene.end()
    })
}

#[test]
fn aca_and_attributes_that_there_are_not_are_refused() -> Result<()> {
    let mut scene = Scene::new(1)?;
    for attribute in [3, 4, 255] {
        for cdb in [&cdb::TEST_UNIT_READY[..], &cdb::read10(0, 1)] {
            let sent = scene.send(0, 0, attribute, cdb, &[], if cdb.len() == 6 { 0 } else { 512 })?;
            let response = scene.answer(sent)?;
            ensure!(response.sense_key() == Some((5, 0x49, 0)), "attribute {attribute}: {response:?}");
        }
    }
    scene.end()
}

#[test]
fn changes_that_have_to_be_saved_go_one_after_the_other() -> Result<()> {
    const REGISTER_AND_IGNORE: [u8; 10] = [0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0];
    let durable = |key: u64| {
        let mut list = [[0; 8], key.to_be_bytes(), [0; 8]].concat();
        list[20] = 1;
        list
    };
    for_seeds(|seed| {
        let shelf = Arc::new(Shelf::default());
        let mut scene = Scene::with(seed, |bdev| {
            let identity = Identity::from_uuid(Uuid::from_u128(7), "simulated");
            LogicalUnit::kept(identity, Some(bdev.shape()), shelf.clone(), Some(&Sections::new()))
        })?;
        let changes: Vec<Sent> = (1..=4)
            .map(|key| scene.send(key % 2, key / 2, SIMPLE, &REGISTER_AND_IGNORE, &durable(key as u64), 0))
            .collect::<Result<_>>()?;
        let write = scene.send(0, 4, SIMPLE, &cdb::write10(0, 1, false), &[1; 512], 0)?;
        scene.good(write).context("others wait for a save")?;
        let ordered = scene.ready(0, 4, ORDERED)?;
        // One of those who wait is aborted.
        ensure!(scene.function(changes[2].0, Tmf::AbortTask, changes[2].1)? == 0, "the abort failed");
        ensure!(scene.answer(changes[2])?.response == 2, "it was not aborted");
        for at in [0, 1, 3] {
            ensure!(scene.waits(changes[at]) && scene.waits(ordered), "answered before it was saved");
            let mut saves = shelf.take();
            ensure!(saves.len() == 1, "{} saves at once", saves.len());
            let save = saves.pop().context("nothing to be saved")?;
            let key = format!("{:016x}", at + 1);
            ensure!(save.text().contains(&key), "not in their order: {} without {key}", save.text());
            save.done(true);
            scene.turn()?;
            scene.good(changes[at])?;
        }
        scene.good(ordered)?;
        scene.end()
    })
}
