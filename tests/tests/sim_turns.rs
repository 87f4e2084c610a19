//! What it costs others that a command waits for its turn on a disk that guests share: their other disks go on, what is
//! looked at is bounded, and nobody fends off being preempted.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_scsi::{Identity, LogicalUnit, Sections};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, Ticket, cdb};
use pollux_tests::sim::{Effect, Fault, Kind, PATIENT, Shelf, SimAppliance, SimBdev, SimWorld, backing, unit_of};
use uuid::Uuid;

const BLOCKS: u64 = 1024;
const REACTORS: usize = 2;
const NAMES: [&str; 3] = ["one", "two", "three"];
const SHARED: Lun = Lun::new(0, 0);
const PRIVATE: Lun = Lun::new(0, 1);

const SIMPLE: u8 = 0;
const ORDERED: u8 = 1;
const HEAD: u8 = 2;

const ABORTED: u8 = 2;
const CONFLICT: u8 = 0x18;
const BUSY: u8 = 8;

const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

/// Guest, queue and name of a command that was sent.
type Sent = (usize, usize, Ticket);

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    fronts: Vec<FrontEnd>,
    queues: usize,
    shelf: Arc<Shelf>,
    answers: Vec<(Sent, Response)>,
}

impl Scene {
    /// Guests that share a disk and have one each besides.
    fn new(seed: u64, guests: usize, queues: usize) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 100_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        let shelf = Arc::new(Shelf::default());
        let bdev = SimBdev::new(&world, BLOCKS * 512);
        let identity = Identity::from_uuid(Uuid::from_u128(7), "simulated");
        let unit = LogicalUnit::kept(identity, Some(bdev.shape()), shelf.clone(), Some(&Sections::new()));
        let device: Arc<dyn Bdev> = Arc::new(bdev);
        let mut fronts = Vec::new();
        for name in &NAMES[..guests] {
            let private: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * 512));
            let own = unit_of(name, &*private);
            let luns = [(0, 0, backing("shared", &unit, &device)), (0, 1, backing(name, &own, &private))];
            appliance.controller(name, &luns)?;
            let memory = vec![(0x10_0000, 64 << 20)];
            let options = DriverOptions { request_queues: queues, queue_size: 256, memory, seed, ..Default::default() };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut scene = Scene { world, appliance, fronts, queues, shelf, answers: Vec::new() };
        for guest in 0..guests {
            for lun in [SHARED, PRIVATE].repeat(4) {
                let told = scene.send_to(lun, guest, 0, SIMPLE, &cdb::TEST_UNIT_READY, &[], 0)?;
                scene.answer(told)?;
            }
        }
        Ok(scene)
    }

    fn submit(
        &mut self,
        lun: Lun,
        to: (usize, usize),
        task_attr: u8,
        cdb: &[u8],
        out: &[u8],
        len: usize,
    ) -> Result<Sent> {
        let (guest, queue) = to;
        let command = Command { task_attr, ..Command::new(lun, cdb, out, len) };
        let ticket = self.fronts[guest].submit(FIRST_REQUEST_QUEUE + queue, &command).context("no room")?;
        Ok((guest, queue, ticket))
    }

    /// Sends a command and lets everything happen that can.
    #[allow(clippy::too_many_arguments)] // a command, and where it goes
    fn send_to(
        &mut self,
        lun: Lun,
        guest: usize,
        queue: usize,
        task_attr: u8,
        cdb: &[u8],
        out: &[u8],
        len: usize,
    ) -> Result<Sent> {
        let sent = self.submit(lun, (guest, queue), task_attr, cdb, out, len)?;
        self.turn()?;
        Ok(sent)
    }

    fn read(&mut self, lun: Lun, guest: usize, queue: usize, task_attr: u8) -> Result<Sent> {
        self.send_to(lun, guest, queue, task_attr, &cdb::read10(8, 1), &[], 512)
    }

    /// PERSISTENT RESERVE OUT, of registrants only.
    fn out(&mut self, guest: usize, queue: usize, task_attr: u8, action: u8, keys: (u64, u64)) -> Result<Sent> {
        self.send_to(SHARED, guest, queue, task_attr, &out_cdb(action), &list(keys), 0)
    }

    /// All guests are registered, with keys 1 and up, and the first has the reservation.
    fn registered(&mut self) -> Result<()> {
        for guest in 0..self.fronts.len() {
            let key = guest as u64 + 1;
            let sent = self.out(guest, 0, SIMPLE, REGISTER_AND_IGNORE, (0, key))?;
            self.good(sent)?;
        }
        let sent = self.out(0, 0, SIMPLE, RESERVE, (1, 0))?;
        self.good(sent)
    }

    fn turn(&mut self) -> Result<()> {
        self.appliance.machine.run();
        self.collect()
    }

    fn collect(&mut self) -> Result<()> {
        for (guest, front) in self.fronts.iter_mut().enumerate() {
            for queue in 0..self.queues {
                while let Some((ticket, response)) = front.poll(FIRST_REQUEST_QUEUE + queue)? {
                    self.answers.push(((guest, queue, ticket), response));
                }
            }
        }
        Ok(())
    }

    fn waits(&self, sent: Sent) -> bool {
        !self.answers.iter().any(|(of, _)| *of == sent)
    }

    /// Takes a command's answer, which has to be there.
    fn answer(&mut self, sent: Sent) -> Result<Response> {
        let at = self.answers.iter().position(|(of, _)| *of == sent);
        Ok(self.answers.swap_remove(at.context("a command is not answered")?).1)
    }

    fn good(&mut self, sent: Sent) -> Result<()> {
        let response = self.answer(sent)?;
        ensure!(response.good(), "{response:?}");
        Ok(())
    }

    /// A command with something of this kind that the device keeps.
    fn kept(&mut self, guest: usize, effect: Effect, kind: Kind, cdb: &[u8], out: &[u8]) -> Result<Sent> {
        self.world.fault(Fault::always(kind, effect));
        let sent = self.send_to(SHARED, guest, 0, SIMPLE, cdb, out, 0)?;
        self.world.heal();
        ensure!(self.waits(sent), "the device does not keep it");
        Ok(sent)
    }

    fn stuck_write(&mut self, guest: usize, effect: Effect) -> Result<Sent> {
        self.kept(guest, effect, Kind::Write, &cdb::write10(0, 1, false), &[9; 512])
    }

    fn looks(&mut self) -> u64 {
        (0..REACTORS).map(|reactor| self.appliance.machine.worker(reactor).looks()).sum()
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

fn out_cdb(action: u8) -> [u8; 10] {
    const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
    [0x5F, action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0, 0, 0, 0, 0, 24, 0]
}

fn list((key, other): (u64, u64)) -> Vec<u8> {
    [key.to_be_bytes(), other.to_be_bytes(), [0; 8]].concat()
}

fn for_seeds(run: impl Fn(u64) -> Result<()>) -> Result<()> {
    (1..=5).try_for_each(|seed| run(seed).with_context(|| format!("seed {seed}")))
}

#[test]
fn who_waits_for_its_turn_on_one_disk_goes_on_with_the_others() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed, 2, 3)?;
        let mut waiting = vec![scene.stuck_write(0, Effect::Stuck)?, scene.read(SHARED, 1, 0, ORDERED)?];
        for queue in 0..3 {
            for at in 0..50 {
                let attribute = if at % 25 == 10 { ORDERED } else { SIMPLE };
                waiting.push(scene.read(SHARED, 0, queue, attribute)?);
            }
            let other = scene.read(PRIVATE, 0, queue, SIMPLE)?;
            scene.good(other).context("another disk of the guest waits, too")?;
        }
        let other = scene.read(PRIVATE, 1, 0, SIMPLE)?;
        scene.good(other).context("another disk of the guest with the ORDERED command waits, too")?;
        ensure!(waiting.iter().all(|sent| scene.waits(*sent)), "nothing waits");
        scene.world.release();
        scene.turn()?;
        waiting.into_iter().try_for_each(|sent| scene.good(sent))?;
        scene.end()
    })
}

#[test]
fn a_queue_keeps_few_commands_for_which_others_wait() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed, 2, 3)?;
        let mut waiting = vec![scene.stuck_write(0, Effect::Stuck)?];
        for _ in 0..8 {
            waiting.push(scene.read(SHARED, 1, 0, ORDERED)?);
        }
        let behind = scene.read(PRIVATE, 1, 0, SIMPLE)?;
        let beside = scene.read(PRIVATE, 1, 1, SIMPLE)?;
        scene.good(beside)?;
        ensure!(scene.waits(behind), "a queue takes ORDERED commands without end");
        scene.world.release();
        scene.turn()?;
        waiting.into_iter().chain([behind]).try_for_each(|sent| scene.good(sent))?;
        scene.end()
    })
}

#[test]
fn many_that_wait_for_many_are_looked_at_little() -> Result<()> {
    const HEADS: u64 = 200;
    const QUEUES: usize = 24;
    for_seeds(|seed| {
        let mut scene = Scene::new(seed, 2, QUEUES)?;
        let before = scene.looks();
        let read = cdb::read10(8, 1);
        let mut sent = Vec::new();
        for _ in 0..HEADS {
            sent.push(scene.submit(SHARED, (0, 0), HEAD, &read, &[], 512)?);
        }
        scene.appliance.machine.rounds(8);
        for queue in 1..QUEUES {
            for _ in 0..4 {
                sent.push(scene.submit(SHARED, (0, queue), SIMPLE, &read, &[], 512)?);
            }
        }
        scene.turn()?;
        let looks = scene.looks() - before;
        let simple = sent.len() as u64 - HEADS;
        ensure!(looks >= simple / 2, "{looks} looks: they did not wait");
        ensure!(looks < HEADS + 2 * simple, "{looks} looks for {HEADS} commands that {simple} waited for");
        sent.into_iter().try_for_each(|sent| scene.good(sent))?;
        scene.end()
    })
}

/// Whoever is to be preempted has a command at the device, and behind it all that others could wait for.
fn dug_in(seed: u64, queues: usize) -> Result<(Scene, Sent, Vec<Sent>)> {
    let mut scene = Scene::new(seed, 2, 10)?;
    scene.registered()?;
    let verify = scene.kept(0, Effect::Stuck, Kind::Read, &cdb::verify16(0, 8, 0), &[])?;
    let mut behind = Vec::new();
    for queue in 0..queues {
        behind.push(scene.read(SHARED, 0, queue, ORDERED)?);
        for _ in 0..4 {
            behind.push(scene.out(0, queue, SIMPLE, REGISTER_AND_IGNORE, (0, 1))?);
        }
    }
    Ok((scene, verify, behind))
}

#[test]
fn who_is_to_be_preempted_does_not_fend_it_off() -> Result<()> {
    for_seeds(|seed| {
        for (attribute, action) in
            [(SIMPLE, PREEMPT), (SIMPLE, PREEMPT_AND_ABORT), (HEAD, PREEMPT), (HEAD, PREEMPT_AND_ABORT)]
        {
            let (mut scene, verify, behind) = dug_in(seed, 10)?;
            let preempt = scene.out(1, (seed % 3) as usize, attribute, action, (2, 1))?;
            scene.good(preempt).with_context(|| format!("attribute {attribute}, action {action}"))?;
            if action == PREEMPT_AND_ABORT {
                ensure!(scene.answer(verify)?.response == ABORTED, "it was not aborted");
            } else {
                ensure!(scene.waits(verify), "PREEMPT ends no command");
                scene.world.release();
                scene.turn()?;
                scene.good(verify)?;
            }
            scene.turn()?;
            for sent in behind {
                let response = scene.answer(sent)?;
                let told = matches!(response.sense_key(), Some((6, 0x2A, _)));
                let refused = matches!(response.status, BUSY | CONFLICT);
                ensure!(response.good() || told || refused || response.response == ABORTED, "{response:?}");
            }
            let write = scene.send_to(SHARED, 1, 0, SIMPLE, &cdb::write10(1, 1, false), &[1; 512], 0)?;
            scene.good(write)?;
            scene.end()?;
        }
        Ok(())
    })
}

#[test]
fn who_preempts_in_order_gets_it() -> Result<()> {
    for_seeds(|seed| {
        let (mut scene, verify, behind) = dug_in(seed, 5)?;
        let preempt = scene.out(1, 0, ORDERED, PREEMPT, (2, 1))?;
        ensure!(scene.waits(preempt), "an ORDERED command has overtaken others");
        scene.world.release();
        scene.turn()?;
        scene.good(preempt)?;
        for sent in behind.into_iter().chain([verify]) {
            scene.answer(sent)?;
        }
        scene.end()
    })
}

#[test]
fn others_save_while_the_commands_of_the_preempted_end() -> Result<()> {
    for_seeds(|seed| {
        for (attribute, durable) in [(SIMPLE, false), (SIMPLE, true), (HEAD, false)] {
            let mut scene = Scene::new(seed, 3, 3)?;
            scene.registered()?;
            let write = scene.stuck_write(0, Effect::Deaf)?;
            if durable {
                let mut list = list((0, 2));
                list[20] = 1;
                let sent = scene.send_to(SHARED, 1, 1, SIMPLE, &out_cdb(REGISTER_AND_IGNORE), &list, 0)?;
                scene.shelf.take().into_iter().for_each(|save| save.done(true));
                scene.turn()?;
                scene.good(sent)?;
            }
            let preempt = scene.out(1, 0, attribute, PREEMPT_AND_ABORT, (2, 1))?;
            let third = scene.out(2, 0, SIMPLE, REGISTER_AND_IGNORE, (0, 5))?;
            if durable {
                ensure!(scene.waits(third), "two changes at once");
                for _ in 0..2 {
                    let saves = scene.shelf.take();
                    ensure!(saves.len() == 1, "{} saves", saves.len());
                    saves.into_iter().for_each(|save| save.done(true));
                    scene.turn()?;
                }
            }
            ensure!(scene.waits(write) && scene.waits(preempt), "nobody waits for the device");
            if attribute == SIMPLE {
                scene.good(third).context("a change waits for commands that are being aborted")?;
                let (select, list) = cdb::set_wce(false);
                let sent = scene.send_to(SHARED, 2, 1, SIMPLE, &select, &list, 0)?;
                scene.good(sent)?;
                let read = scene.read(SHARED, 2, 2, SIMPLE)?;
                scene.good(read)?;
            } else {
                ensure!(scene.waits(third), "what has not begun waits for HEAD OF QUEUE");
                let head = scene.out(2, 1, HEAD, REGISTER_AND_IGNORE, (0, 6))?;
                scene.good(head)?;
            }
            let ordered = scene.read(SHARED, 2, 2, ORDERED)?;
            ensure!(scene.waits(ordered), "an ORDERED command does not wait for what came before it");
            scene.world.release();
            scene.turn()?;
            scene.good(preempt)?;
            scene.good(ordered)?;
            if attribute == HEAD {
                scene.good(third)?;
            }
            ensure!(scene.answer(write)?.response == ABORTED, "it was not aborted");
            scene.end()?;
        }
        Ok(())
    })
}
