//! Guests that fence each other in the simulated world: after PREEMPT AND ABORT nothing of the preempted guest reaches the
//! disk any more, whatever it had in flight and keeps sending, on all reactors; and a change that has to be saved is
//! answered when it is, whatever task management does meanwhile.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_core::Bdev;
use pollux_scsi::{Identity, LogicalUnit, Sections};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Response, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{LUN, Shelf, SimAppliance, SimBdev, SimWorld, backing, unit_of};
use pollux_vhost_scsi::Patience;
use uuid::Uuid;

const BLOCKS: u64 = 256;
const REACTORS: usize = 3;
const CONFLICT: u8 = 0x18;
/// The response of a command that was aborted.
const ABORTED: u8 = 2;

const REGISTER_AND_IGNORE: u8 = 6;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
const APTPL: u8 = 1;

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    bdev: SimBdev,
    fronts: Vec<FrontEnd>,
    rng: Rng,
}

fn scene(seed: u64, unit: impl Fn(&SimBdev) -> Arc<LogicalUnit>) -> Result<Scene> {
    let world = SimWorld::new(seed);
    world.set_latency(5_000, 400_000);
    let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
    let bdev = SimBdev::new(&world, BLOCKS * 512);
    let device: Arc<dyn Bdev> = Arc::new(bdev.clone());
    let unit = unit(&bdev);
    let mut fronts = Vec::new();
    for name in ["one", "other"] {
        appliance.controller(name, &[(0, 0, backing("disk", &unit, &device))])?;
        let memory = vec![(0x10_0000, 8 << 20)];
        let options = DriverOptions { request_queues: 3, queue_size: 64, memory, seed, ..DriverOptions::default() };
        fronts.push(appliance.connect(name, &options)?);
    }
    Ok(Scene { world, appliance, bdev, fronts, rng: Rng::new(seed ^ 0xfe7ce) })
}

fn out_cdb(action: u8, kind: u8) -> [u8; 10] {
    [0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

fn list(key: u64, new_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), new_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

impl Scene {
    /// One command, answered when the machine is idle, repeated over unit attentions.
    fn good(&mut self, of: usize, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Vec<u8>> {
        for _ in 0..8 {
            let command = Command::new(LUN, cdb, out, in_len);
            self.fronts[of].submit(FIRST_REQUEST_QUEUE, &command).context("no room")?;
            self.appliance.machine.run();
            let (_, response) = self.fronts[of].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
            match response.sense_key() {
                Some((6, ..)) => {}
                _ if response.good() => return Ok(response.data),
                sense => bail!("{cdb:02x?}: status {} sense {sense:?}", response.status),
            }
        }
        bail!("unit attentions without end")
    }

    fn out(&mut self, of: usize, action: u8, keys: (u64, u64)) -> Result<()> {
        self.good(of, &out_cdb(action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY), &list(keys.0, keys.1, 0), 0).map(drop)
    }

    /// The other guest writes wherever it has room.
    fn write_on(&mut self) {
        for _ in 0..self.rng.below(6) {
            let queue = FIRST_REQUEST_QUEUE + self.rng.index(3);
            let blocks = self.rng.between(1, 16);
            let lba = self.rng.below(BLOCKS - blocks);
            let data = vec![self.rng.below(255) as u8 + 1; blocks as usize * 512];
            let cdb = cdb::write10(lba as u32, blocks as u16, false);
            let _ = self.fronts[1].submit(queue, &Command::new(LUN, &cdb, &data, 0));
        }
    }

    fn answers(&mut self, of: usize) -> Result<Vec<Response>> {
        let mut answers = Vec::new();
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + 3 {
            while let Some((_, response)) = self.fronts[of].poll(queue)? {
                answers.push(response);
            }
        }
        Ok(answers)
    }

    fn functions_answered(&mut self, of: usize) -> Result<usize> {
        let mut count = 0;
        while self.fronts[of].driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    fn content(&self) -> Vec<u8> {
        self.world.disk(self.bdev.disk(), |disk| disk.visible().to_vec())
    }

    fn end(mut self) -> Result<()> {
        for front in self.fronts {
            self.appliance.disconnect(front);
        }
        self.appliance.shutdown()
    }
}

#[derive(Debug, Default)]
struct Tally {
    written: u64,
    aborted: u64,
    refused: u64,
    told: u64,
}

impl Tally {
    fn add(&mut self, answers: Vec<Response>) -> Result<()> {
        for answer in answers {
            match (answer.response, answer.status, answer.sense_key()) {
                (0, 0, None) => self.written += 1,
                (2, ..) => self.aborted += 1,
                (0, CONFLICT, None) => self.refused += 1,
                (0, 2, Some((6, 0x2A, 0x05))) => self.told += 1,
                other => bail!("a write of the preempted guest ended with {other:?}"),
            }
        }
        Ok(())
    }
}

/// One guest takes the disk from the other under full load; what the disk holds when it is told so is what it holds.
fn takeover(seed: u64, tally: &mut Tally) -> Result<()> {
    let mut scene = scene(seed, |bdev| unit_of("disk", bdev))?;
    for (of, key) in [(0, 1), (1, 2)] {
        scene.good(of, &[0; 6], &[], 0)?;
        scene.out(of, REGISTER_AND_IGNORE, (0, key))?;
    }
    // Who preempts takes what the other holds, or what it holds itself already.
    let holder = (seed % 2) as usize;
    scene.out(holder, RESERVE, (holder as u64 + 1, 0))?;
    for _ in 0..scene.rng.between(5, 60) {
        scene.write_on();
        let rounds = scene.rng.below(6);
        scene.appliance.machine.rounds(rounds);
        tally.add(scene.answers(1)?)?;
    }
    let cdb = out_cdb(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY);
    let queue = FIRST_REQUEST_QUEUE + scene.rng.index(3);
    scene.fronts[0].submit(queue, &Command::new(LUN, &cdb, &list(1, 2, 0), 0)).context("no room")?;
    let mut answer = None;
    for _ in 0..100_000 {
        scene.write_on();
        let rounds = scene.rng.between(1, 3);
        scene.appliance.machine.rounds(rounds);
        tally.add(scene.answers(1)?)?;
        answer = scene.answers(0)?.pop();
        if answer.is_some() {
            break;
        }
    }
    let answer = answer.context("PREEMPT AND ABORT was never answered")?;
    ensure!(answer.good(), "PREEMPT AND ABORT: status {} response {}", answer.status, answer.response);
    let content = scene.content();
    for _ in 0..20 {
        scene.write_on();
        scene.appliance.machine.rounds(3);
        tally.add(scene.answers(1)?)?;
    }
    for front in &mut scene.fronts {
        front.driver.queues.iter_mut().for_each(pollux_tests::guest::Queue::flush);
    }
    scene.appliance.machine.run();
    tally.add(scene.answers(1)?)?;
    ensure!(scene.content() == content, "a preempted guest has written after PREEMPT AND ABORT was answered");
    scene.good(0, &cdb::write10(0, 1, false), &[0xEE; 512], 0)?;
    scene.end()
}

#[test]
fn a_preempted_guest_writes_nothing_after_the_answer() -> Result<()> {
    let mut tally = Tally::default();
    for seed in 1..=40 {
        takeover(seed, &mut tally).with_context(|| format!("seed {seed}"))?;
    }
    ensure!(tally.written > 300 && tally.aborted > 100 && tally.refused > 1000 && tally.told == 40, "{tally:?}");
    Ok(())
}

#[test]
fn a_change_is_answered_when_it_is_saved() -> Result<()> {
    let shelf = Arc::new(Shelf::default());
    let kept = |bdev: &SimBdev| {
        let identity = Identity::from_uuid(Uuid::from_u128(7), "simulated");
        LogicalUnit::kept(identity, Some(bdev.shape()), shelf.clone(), Some(&Sections::new()))
    };
    let mut scene = scene(1, kept)?;
    scene.good(0, &[0; 6], &[], 0)?;
    let register = out_cdb(REGISTER_AND_IGNORE, 0);
    for (saved, key) in [(true, 1), (false, 2)] {
        let durable = list(0, key, APTPL);
        scene.fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &register, &durable, 0)).context("no room")?;
        scene.appliance.machine.run();
        ensure!(scene.answers(0)?.is_empty(), "answered before it was saved");
        // Others go on meanwhile.
        scene.good(0, &cdb::write10(0, 1, false), &[1; 512], 0)?;
        shelf.take().pop().context("nothing to be saved")?.done(saved);
        scene.appliance.machine.run();
        let answer = scene.answers(0)?.pop().context("no answer")?;
        let expected = if saved { (0, None) } else { (2, Some((4, 0x44, 0))) };
        ensure!((answer.status, answer.sense_key()) == expected, "{answer:?}");
    }
    let keys = scene.good(0, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 16, 0], &[], 16)?;
    ensure!(keys[8..] == 1u64.to_be_bytes(), "{keys:?}");
    scene.end()
}

/// What ends a command that waits for a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    AbortTask,
    LunRemoved,
    SessionGone,
}

/// Whatever ends it waits for the save, is done when that is, and the change counts.
#[test]
fn a_command_that_waits_for_a_save_ends_once() -> Result<()> {
    const LONG: Duration = Duration::from_secs(60);
    let patience =
        Patience { requests: Duration::from_millis(50), cancelled: LONG, sessions: LONG, ..Patience::default() };
    for (seed, end) in [(1, End::AbortTask), (2, End::LunRemoved), (3, End::SessionGone)] {
        let shelf = Arc::new(Shelf::default());
        let units = Mutex::new(None);
        let kept = |bdev: &SimBdev| {
            let identity = Identity::from_uuid(Uuid::from_u128(7), "simulated");
            let unit = LogicalUnit::kept(identity, Some(bdev.shape()), shelf.clone(), Some(&Sections::new()));
            *units.lock().unwrap() = Some(unit.clone());
            unit
        };
        let mut scene = scene(seed, kept)?;
        scene.appliance.target.set_patience(patience);
        scene.good(0, &[0; 6], &[], 0)?;
        let (cdb, list) = (out_cdb(REGISTER_AND_IGNORE, 0), list(0, 5, APTPL));
        let ticket =
            scene.fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &cdb, &list, 0)).context("no room")?;
        scene.appliance.machine.run();
        ensure!(scene.answers(0)?.is_empty(), "answered before it was saved");
        let save = || shelf.take().into_iter().for_each(|save| save.done(true));
        match end {
            End::AbortTask => {
                let driver = &mut scene.fronts[0].driver;
                driver.submit_tmf(Tmf::AbortTask, LUN.bytes(), ticket).context("no room")?;
                driver.queues[CONTROL_QUEUE].flush();
                scene.appliance.machine.run();
                ensure!(scene.functions_answered(0)? == 0, "an abort was answered before its command");
                save();
                scene.appliance.machine.run();
                ensure!(scene.functions_answered(0)? == 1, "an abort was not answered");
                let answer = scene.answers(0)?.pop().context("no answer")?;
                ensure!(answer.response == ABORTED, "{answer:?}");
                scene.end()?;
            }
            End::LunRemoved => {
                let mut steps = 0;
                let act = || {
                    steps += 1;
                    if steps == 300 {
                        save();
                    }
                };
                let target = scene.appliance.target.clone();
                scene.appliance.machine.call_beside(|| target.remove_lun("one", 0, None), act)?;
                ensure!(steps >= 300, "a LUN has gone and its command was still there");
                scene.appliance.machine.run();
                let answer = scene.answers(0)?.pop().context("no answer")?;
                ensure!(answer.response == ABORTED, "{answer:?}");
                scene.end()?;
            }
            End::SessionGone => {
                drop(scene.fronts.remove(0));
                for _ in 0..3 {
                    let sessions = scene.appliance.call(|target| target.controllers()[0].sessions.len());
                    ensure!(sessions == 1, "a session has ended and its command was still there");
                }
                save();
                scene.appliance.await_sessions(1);
                scene.end()?;
            }
        }
        let unit = units.into_inner().ok().flatten().context("a unit")?;
        ensure!(unit.reservations().registrations.len() == 1, "{end:?}: what was saved counts");
    }
    Ok(())
}
