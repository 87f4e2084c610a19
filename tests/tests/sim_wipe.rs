//! FORMAT UNIT and SANITIZE in the simulated world: what they write, whom they keep from the disk, and what becomes of them
//! when commands are aborted, units reset, LUNs taken away and devices lost.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use pollux_core::Bdev;
use pollux_scsi::{Chosen, Identity, LogicalUnit};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Queue, Response, Ticket, Tmf, cdb,
};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Effect, Fault, Kind, LUN, SimAppliance, SimBdev, SimWorld, backing};
use uuid::Uuid;

const BYTES: u64 = 4 << 20;
const BLOCKS: u64 = BYTES / 512;
const REACTORS: usize = 3;
const QUEUES: usize = 3;
const FORMAT: [u8; 6] = [0x04, 0, 0, 0, 0, 0];
const ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
const IMMED: u8 = 0x80;
const FORMAT_IN_PROGRESS: Option<(u8, u8, u8)> = Some((2, 0x04, 0x04));
const SANITIZE_IN_PROGRESS: Option<(u8, u8, u8)> = Some((2, 0x04, 0x1B));
const FORMAT_CORRUPTED: Option<(u8, u8, u8)> = Some((3, 0x31, 0x00));

/// OVERWRITE with a pattern of one byte.
fn overwrite(passes: u8, byte: u8, flags: u8) -> ([u8; 10], Vec<u8>) {
    ([0x48, 0x01 | flags, 0, 0, 0, 0, 0, 0, 5, 0], vec![passes, 0, 0, 1, byte])
}

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    bdev: SimBdev,
    unit: Arc<LogicalUnit>,
    /// Both of one initiator: nobody else may use a disk that is wiped.
    fronts: Vec<FrontEnd>,
    rng: Rng,
}

impl Scene {
    fn new(seed: u64) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 400_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        let bdev = SimBdev::new(&world, BYTES);
        world.disk(bdev.disk(), |disk| disk.write(0, &vec![0x11; BYTES as usize], true));
        let chosen = Chosen { allow_sanitize: Some(true), ..Chosen::default() };
        let identity = Identity::from_uuid(Uuid::from_u128(9), "simulated").with(&chosen)?;
        let unit = LogicalUnit::new(identity, Some(bdev.shape()));
        let device: Arc<dyn Bdev> = Arc::new(bdev.clone());
        let mut fronts = Vec::new();
        for name in ["one", "other"] {
            appliance.controller(name, &[(0, 0, backing("disk", &unit, &device))])?;
            let memory = vec![(0x10_0000, 8 << 20)];
            let options =
                DriverOptions { request_queues: QUEUES, queue_size: 64, memory, seed, ..DriverOptions::default() };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut scene = Scene { world, appliance, bdev, unit, fronts, rng: Rng::new(seed ^ 0x0f0f) };
        for front in 0..2 {
            while scene.ask(front, &[0; 6], &[])?.sense_key().is_some() {}
        }
        Ok(scene)
    }

    fn submit(&mut self, front: usize, queue: usize, cdb: &[u8], out: &[u8]) -> Result<Ticket> {
        let command = Command::new(LUN, cdb, out, 0);
        self.fronts[front].submit(FIRST_REQUEST_QUEUE + queue, &command).context("no room")
    }

    /// One command, answered when the machine is idle.
    fn ask(&mut self, front: usize, cdb: &[u8], out: &[u8]) -> Result<Response> {
        self.submit(front, 0, cdb, out)?;
        self.appliance.machine.run();
        Ok(self.fronts[front].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?.1)
    }

    fn answers(&mut self, front: usize) -> Result<Vec<(Ticket, Response)>> {
        let mut answers = Vec::new();
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
            while let Some(answer) = self.fronts[front].poll(queue)? {
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    /// Takes turns until a command of the front end fails in this way.
    fn until_told(&mut self, front: usize, sense: Option<(u8, u8, u8)>) -> Result<()> {
        for _ in 0..10_000 {
            self.submit(front, 1, &[0; 6], &[])?;
            self.appliance.machine.rounds(2);
            if self.answers(front)?.iter().any(|(_, answer)| answer.sense_key() == sense) {
                return Ok(());
            }
        }
        bail!("nobody is told {sense:x?}")
    }

    fn tmf(&mut self, front: usize, function: Tmf, tag: Ticket) -> Result<()> {
        self.fronts[front].driver.submit_tmf(function, LUN.bytes(), tag).context("no room")?;
        self.fronts[front].driver.queues.iter_mut().for_each(Queue::flush);
        Ok(())
    }

    fn is_done(&mut self, front: usize) -> Result<bool> {
        let answer = self.fronts[front].driver.poll_raw(CONTROL_QUEUE).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(answer.is_some_and(|(_, response, ..)| response[0] == 0))
    }

    fn content(&self) -> Vec<u8> {
        self.world.disk(self.bdev.disk(), |disk| disk.durable().to_vec())
    }

    fn holds(&self, byte: u8) -> bool {
        self.content().iter().all(|held| *held == byte)
    }

    fn end(mut self) -> Result<()> {
        for front in self.fronts {
            self.appliance.disconnect(front);
        }
        self.appliance.shutdown()
    }
}

/// Formats under load: what was written before is gone, what came meanwhile is refused.
fn format_under_load(seed: u64, tally: &mut [u64; 2]) -> Result<()> {
    let mut scene = Scene::new(seed)?;
    let mut pending: Vec<(Ticket, u64, u64)> = Vec::new();
    let write = |scene: &mut Scene, pending: &mut Vec<(Ticket, u64, u64)>| {
        if pending.len() >= 8 {
            return;
        }
        let queue = FIRST_REQUEST_QUEUE + scene.rng.index(QUEUES);
        let (lba, blocks) = (scene.rng.below(BLOCKS - 16), scene.rng.between(1, 16));
        let command = cdb::write10(lba as u32, blocks as u16, false);
        let data = vec![0x77; blocks as usize * 512];
        if let Some(ticket) = scene.fronts[1].submit(queue, &Command::new(LUN, &command, &data, 0)) {
            pending.push((ticket, lba, blocks));
        }
    };
    for _ in 0..40 {
        write(&mut scene, &mut pending);
        scene.appliance.machine.rounds(1);
        for (ticket, _) in scene.answers(1)? {
            pending.retain(|(pending, ..)| *pending != ticket);
        }
    }
    scene.submit(0, 1, &FORMAT, &[])?;
    'load: for _ in 0..10_000 {
        write(&mut scene, &mut pending);
        scene.appliance.machine.rounds(1);
        for (ticket, answer) in scene.answers(1)? {
            pending.retain(|(pending, ..)| *pending != ticket);
            match answer.sense_key() {
                None => ensure!(answer.good(), "status {}", answer.status),
                // The second is that of who came while the disk was being cleared of others.
                FORMAT_IN_PROGRESS | Some((2, 4, 0)) => {
                    tally[0] += 1;
                    break 'load;
                }
                other => bail!("a write ended with {other:x?}"),
            }
        }
    }
    scene.fronts[1].driver.queues.iter_mut().for_each(Queue::flush);
    scene.appliance.machine.run();
    let [(_, answer)] = &scene.answers(0)?[..] else { bail!("the format was not answered once") };
    ensure!(answer.good(), "{:?}", answer.sense_key());
    // Who was late, and came when it was all over, has written.
    let mut late = Vec::new();
    for (ticket, answer) in scene.answers(1)? {
        tally[0] += u64::from(!answer.good());
        if answer.good() {
            late.extend(pending.iter().filter(|(pending, ..)| *pending == ticket).copied());
        }
    }
    let visible = scene.world.disk(scene.bdev.disk(), |disk| disk.visible().to_vec());
    for (block, bytes) in visible.chunks(512).enumerate() {
        let written = late.iter().any(|(_, lba, blocks)| (*lba..lba + blocks).contains(&(block as u64)));
        tally[1] += u64::from(bytes[0] != 0);
        ensure!(written || bytes.iter().all(|byte| *byte == 0), "block {block} holds {:#x}", bytes[0]);
    }
    scene.end()
}

#[test]
fn a_format_leaves_nothing_of_what_was_written_before() -> Result<()> {
    let mut tally = [0; 2];
    for seed in 1..=60 {
        format_under_load(seed, &mut tally).with_context(|| format!("seed {seed}"))?;
    }
    ensure!(tally[0] >= 60 && tally[1] < 60, "[refused writes, blocks of late ones]: {tally:?}");
    Ok(())
}

#[test]
fn an_overwrite_goes_on_whatever_becomes_of_its_command() -> Result<()> {
    for seed in 1..=30 {
        let mut scene = Scene::new(seed)?;
        let immediate = seed % 3 == 0;
        let (cdb, list) = overwrite(3, 0x5C, if immediate { IMMED } else { 0 });
        let ticket = scene.submit(0, 0, &cdb, &list)?;
        scene.until_told(1, SANITIZE_IN_PROGRESS)?;
        let function = if seed % 2 == 0 { Tmf::LunReset } else { Tmf::AbortTask };
        scene.tmf(0, function, ticket)?;
        let mut done = false;
        for _ in 0..1000 {
            scene.appliance.machine.rounds(1);
            done |= scene.is_done(0)?;
            if done {
                break;
            }
        }
        ensure!(done, "seed {seed}: the function waits for the sanitize");
        let answers = scene.answers(0)?;
        ensure!(answers.iter().all(|(_, answer)| immediate == answer.good()), "seed {seed}: {answers:?}");
        scene.appliance.machine.run();
        ensure!(scene.answers(0)?.is_empty() || immediate, "answered twice");
        for front in 0..2 {
            while matches!(scene.ask(front, &[0; 6], &[])?.sense_key(), Some((6, ..))) {}
            ensure!(scene.ask(front, &[0; 6], &[])?.good(), "seed {seed}");
        }
        ensure!(scene.holds(0x5C), "seed {seed}: not all is overwritten, and durable");
        scene.end()?;
    }
    Ok(())
}

#[test]
fn an_aborted_format_leaves_a_corrupted_medium_until_the_next() -> Result<()> {
    for seed in 1..=30 {
        let mut scene = Scene::new(seed)?;
        // With a pattern, which takes some steps.
        let list = [0, 0x88, 0, 0, 0, 1, 0, 1, 0x42];
        let ticket = scene.submit(0, 0, &[0x04, 0x10, 0, 0, 0, 0], &list)?;
        scene.until_told(1, FORMAT_IN_PROGRESS)?;
        let function = [Tmf::LunReset, Tmf::AbortTask, Tmf::NexusReset][seed as usize % 3];
        scene.tmf(0, function, ticket)?;
        scene.appliance.machine.run();
        ensure!(scene.is_done(0)?, "seed {seed}: {function:?}");
        let answers = scene.answers(0)?;
        ensure!(answers.len() == 1 && answers[0].1.response != 0, "seed {seed}: {answers:?}");
        let mut sense = scene.ask(1, &[0; 6], &[])?.sense_key();
        while matches!(sense, Some((6, ..))) {
            sense = scene.ask(1, &[0; 6], &[])?.sense_key();
        }
        ensure!(sense == FORMAT_CORRUPTED, "seed {seed}: {sense:x?}");
        while matches!(scene.ask(0, &[0; 6], &[])?.sense_key(), Some((6, ..))) {}
        ensure!(scene.ask(0, &FORMAT, &[])?.good(), "seed {seed}");
        ensure!(scene.holds(0) && scene.ask(1, &[0; 6], &[])?.good(), "seed {seed}");
        scene.end()?;
    }
    Ok(())
}

#[test]
fn of_many_formats_at_once_each_is_done_or_told_of_another() -> Result<()> {
    for seed in 1..=10 {
        let mut scene = Scene::new(seed)?;
        for number in 0..16 {
            scene.submit(number % 2, number / 2 % QUEUES, &FORMAT, &[])?;
        }
        scene.appliance.machine.run();
        let answers = [scene.answers(0)?, scene.answers(1)?].concat();
        ensure!(answers.len() == 16, "seed {seed}: {} answers", answers.len());
        let done = answers.iter().filter(|(_, answer)| answer.good()).count();
        let told = answers.iter().filter(|(_, answer)| answer.sense_key() == FORMAT_IN_PROGRESS).count();
        ensure!(done >= 1 && done + told == 16, "seed {seed}: {done} done, {told} told");
        ensure!(scene.holds(0), "seed {seed}");
        scene.end()?;
    }
    Ok(())
}

#[test]
fn a_sanitize_outlives_its_luns_and_its_device() -> Result<()> {
    for seed in 1..=20 {
        let mut scene = Scene::new(seed)?;
        let (cdb, list) = overwrite(2, 0x3E, if seed % 2 == 0 { IMMED } else { 0 });
        scene.submit(0, 0, &cdb, &list)?;
        scene.until_told(1, SANITIZE_IN_PROGRESS)?;
        // It stops at its next step, which ends when somebody wants that.
        scene.world.fault(Fault::once(Kind::Write, Effect::Stuck));
        let device: Arc<dyn Bdev> = Arc::new(scene.bdev.clone());
        let unit = scene.unit.clone();
        if seed % 4 < 2 {
            // The device goes and comes back, perhaps as another one: it begins again, and nobody has to ask for anything.
            let (gone, back) = (unit.clone(), unit.clone());
            scene.appliance.call(move |target| -> Result<()> {
                gone.set_shape(None);
                Ok(target.device_changed(&gone, None)?)
            })?;
            ensure!(!scene.holds(0x3E), "seed {seed}: it was done before the device went");
            scene.world.heal();
            let shape = device.shape();
            scene.appliance.call(move |target| -> Result<()> {
                target.device_changed(&back, Some(device))?;
                back.set_shape(Some(shape));
                target.device_is_ready(&back);
                Ok(())
            })?;
        } else {
            // All LUNs are taken away, and added again: it goes on with the first.
            for name in ["one", "other"] {
                scene.appliance.call(|target| target.remove_lun(name, 0, None).map(drop))?;
            }
            ensure!(unit.is_wipe_due() && !scene.holds(0x3E), "seed {seed}");
            scene.world.heal();
            for name in ["one", "other"] {
                let backing = backing("disk", &unit, &device);
                scene.appliance.call(|target| target.add_lun(name, Some(0), 0, backing).map(drop))?;
            }
        }
        scene.appliance.machine.run();
        ensure!(scene.holds(0x3E), "seed {seed}: not all is overwritten");
        for _ in 0..5 {
            scene.ask(1, &[0; 6], &[])?;
        }
        ensure!(scene.ask(1, &[0; 6], &[])?.good(), "seed {seed}");
        scene.end()?;
    }
    Ok(())
}

#[test]
fn an_erase_that_the_device_refuses_closes_the_disk() -> Result<()> {
    let mut scene = Scene::new(5)?;
    scene.world.fault(Fault::once(Kind::Fallocate, Effect::Error(5)));
    let answer = scene.ask(0, &ERASE, &[])?;
    ensure!(answer.sense_key() == Some((3, 0x31, 0x03)), "{:x?}", answer.sense_key());
    for front in 0..2 {
        let read = scene.ask(front, &cdb::read10(0, 1), &[])?;
        ensure!(read.sense_key() == Some((3, 0x31, 0x03)), "{:x?}", read.sense_key());
    }
    ensure!(scene.ask(1, &ERASE, &[])?.good() && scene.holds(0), "another one makes it good");
    scene.end()
}

#[test]
fn a_shortage_of_the_host_does_not_end_a_sanitize() -> Result<()> {
    for seed in 1..=5 {
        let mut scene = Scene::new(seed)?;
        let (cdb, list) = overwrite(1, 0x77, IMMED);
        // Some steps fail for a while, or one for longer than anybody tries.
        let goes_on = seed % 2 == 0;
        let lasting = Fault::always(Kind::Write, Effect::Error(libc::ENOMEM));
        scene.world.fault(if goes_on { Fault { percent: 50, ..lasting } } else { lasting });
        ensure!(scene.ask(0, &cdb, &list)?.good());
        let sense = scene.ask(0, &cdb::read10(0, 1), &[])?.sense_key();
        ensure!(goes_on || sense == SANITIZE_IN_PROGRESS, "seed {seed}: {sense:x?}");
        scene.world.heal();
        for _ in 0..2 {
            scene.ask(1, &[0; 6], &[])?;
        }
        ensure!(scene.ask(1, &[0; 6], &[])?.good() && scene.holds(0x77), "seed {seed}");
        scene.end()?;
    }
    Ok(())
}
