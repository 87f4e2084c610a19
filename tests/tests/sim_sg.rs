//! Guests on whole SCSI devices in the simulated world: answers come late and in any order, commands are lost on the way,
//! aborted and reset, the device vanishes, and VMMs die with commands in it. Every run is a number: the seed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_scsi::{Allow, LogicalUnit};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, Lun, Response, Tmf, cdb,
};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{SimAppliance, SimSg, SimWorld, backing, unit_of};
use pollux_vhost_scsi::{Patience, Target, TargetError, WorkerConfig};

const LUN: Lun = Lun::new(0, 0);
const BLOCK: usize = 512;
/// Each queue works on blocks of its own.
const AREA: u64 = 64;
const QUEUES: usize = 2;
/// First address and length of a guest's memory that can be searched.
const MEMORY: (u64, u64) = (0x10_0000, 1 << 20);
/// Of a request's answer that has no data.
const RESPONSE_LEN: usize = 108;

fn for_seeds(few: u64, test: impl Fn(u64) -> Result<()>) -> Result<()> {
    let of = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let count = of("POLLUX_SIM_SEEDS").unwrap_or(few);
    let seeds = of("POLLUX_SIM_SEED").map_or(0..count, |first| first..first + 1);
    seeds.into_iter().try_for_each(|seed| test(seed).with_context(|| format!("POLLUX_SIM_SEED={seed}")))
}

struct Bench {
    appliance: SimAppliance,
    device: SimSg,
    unit: Arc<LogicalUnit>,
    rng: Rng,
}

/// A command under way: what it writes, or where it reads.
struct Open {
    queue: usize,
    first: u64,
    write: Option<Vec<u8>>,
}

impl Bench {
    fn new(seed: u64) -> Result<Bench> {
        let world = SimWorld::new(seed);
        // The device's answers are a matter of time, which passes in the simulated world when nobody spins.
        let config = WorkerConfig { spin_max_ns: Some(0), ..WorkerConfig::default() };
        let mut appliance = SimAppliance::with(&world, 1 + (seed % 3) as usize, seed, config)?;
        let device = SimSg::new(QUEUES * AREA as usize, seed);
        let bdev: Arc<dyn Bdev> = Arc::new(device.clone());
        let unit = unit_of("sg", &*bdev);
        unit.pass_through(Allow::empty());
        unit.set_device_type(0);
        appliance.controller("vm", &[(0, 0, backing("sg", &unit, &bdev))])?;
        Ok(Bench { appliance, device, unit, rng: Rng::new(seed ^ 0x5eed) })
    }

    fn connect(&mut self) -> Result<FrontEnd> {
        let options = DriverOptions { request_queues: QUEUES, ..DriverOptions::default() };
        let mut front = self.appliance.connect("vm", &options)?;
        for _ in 0..4 {
            self.one(&mut front, &cdb::TEST_UNIT_READY)?;
        }
        Ok(front)
    }

    fn one(&mut self, front: &mut FrontEnd, cdb: &[u8]) -> Result<Response> {
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, cdb, &[], 0)).context("room")?;
        self.answer(front)
    }

    fn answer(&mut self, front: &mut FrontEnd) -> Result<Response> {
        loop {
            self.appliance.machine.rounds(3);
            if let Some((_, response)) = front.poll(FIRST_REQUEST_QUEUE)? {
                return Ok(response);
            }
        }
    }

    /// Starts a random READ or WRITE of one block in a queue's own area.
    fn start(&mut self, front: &mut FrontEnd, open: &mut HashMap<u64, Open>) {
        let nth = self.rng.index(QUEUES);
        let queue = FIRST_REQUEST_QUEUE + nth;
        let first = nth as u64 * AREA + self.rng.below(AREA);
        if open.values().any(|of| of.first == first) || open.len() > 40 {
            return;
        }
        let mut data = vec![0; BLOCK];
        self.rng.fill(&mut data);
        let write = self.rng.chance(1, 2);
        let cdb = if write { cdb::write10(first as u32, 1, false) } else { cdb::read10(first as u32, 1) };
        let framing = Framing::random(&mut self.rng);
        // Now and then more room than the command has a use for.
        let spare = if !write && self.rng.chance(1, 8) { 100 } else { 0 };
        let (out, in_len) = if write { (&data[..], 0) } else { (&[][..], BLOCK + spare) };
        let command = Command { framing, ..Command::new(LUN, &cdb, out, in_len) };
        if let Some(ticket) = front.submit(queue, &command) {
            open.insert(ticket, Open { queue, first, write: write.then_some(data) });
        }
    }

    /// Takes answers and holds them against the image; a block whose write was lost holds either.
    fn take(&mut self, front: &mut FrontEnd, open: &mut HashMap<u64, Open>, image: &mut Image) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
            while let Some((ticket, response)) = front.poll(queue)? {
                let of = open.remove(&ticket).context("an answer to nothing, or a second one")?;
                ensure!(of.queue == queue, "it comes where it went");
                image.ended(&of, &response)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, front: &mut FrontEnd, open: &mut HashMap<u64, Open>, image: &mut Image) -> Result<()> {
        for _ in 0..100_000 {
            if open.is_empty() {
                return Ok(());
            }
            self.appliance.machine.rounds(2);
            self.take(front, open, image)?;
        }
        anyhow::bail!("{} commands are never answered", open.len())
    }
}

/// What each block may hold.
struct Image {
    blocks: Vec<Vec<Vec<u8>>>,
    good: u64,
    /// By virtio-scsi response.
    lost: HashMap<u8, u64>,
}

impl Image {
    fn new() -> Image {
        Image { blocks: vec![vec![vec![0; BLOCK]]; QUEUES * AREA as usize], good: 0, lost: HashMap::new() }
    }

    fn ended(&mut self, of: &Open, response: &Response) -> Result<()> {
        let block = &mut self.blocks[of.first as usize];
        if response.response == 0 && response.status == 0 {
            self.good += 1;
            match &of.write {
                Some(data) => *block = vec![data.clone()],
                None => {
                    ensure!(response.residual as usize == response.data.len() - BLOCK, "{response:02x?}");
                    let data = &response.data[..BLOCK];
                    ensure!(block.iter().any(|may| may == data), "block {} holds something else", of.first);
                    *block = vec![data.to_vec()];
                }
            }
            return Ok(());
        }
        if response.response == 0 {
            let told = response.sense_key();
            ensure!(told.is_some_and(|(key, asc, _)| key == 6 || (key, asc) == (5, 0x24)), "{response:02x?}");
        }
        let room = of.write.as_ref().map_or(response.data.len(), Vec::len);
        let nothing = (response.residual as usize, response.written as usize) == (room, RESPONSE_LEN);
        ensure!(nothing, "of what is lost nothing was moved: {response:02x?}");
        *self.lost.entry(response.response).or_default() += 1;
        if let Some(data) = &of.write {
            block.push(data.clone());
        }
        Ok(())
    }
}

#[test]
fn answers_that_come_late_and_in_any_order_are_the_right_ones() -> Result<()> {
    for_seeds(6, |seed| {
        let mut bench = Bench::new(seed)?;
        let (mut front, mut open, mut image) = (bench.connect()?, HashMap::new(), Image::new());
        for _ in 0..600 {
            bench.start(&mut front, &mut open);
            let rounds = bench.rng.below(4);
            bench.appliance.machine.rounds(rounds);
            bench.take(&mut front, &mut open, &mut image)?;
        }
        bench.finish(&mut front, &mut open, &mut image)?;
        ensure!(image.good > 200 && image.lost.is_empty(), "{} good, lost {:?}", image.good, image.lost);
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()
    })
}

/// Where in the guest's memory these bytes are.
fn places(front: &FrontEnd, bytes: &[u8]) -> Vec<u64> {
    let (from, len) = MEMORY;
    let all = front.driver.memory.bytes(from, len as usize);
    let found = all.windows(bytes.len()).enumerate().filter(|(_, part)| *part == bytes);
    found.map(|(at, _)| from + at as u64).collect()
}

#[test]
fn a_block_descriptor_never_reaches_a_disk_even_if_it_comes_late() -> Result<()> {
    const SELECT: [u8; 6] = [0x15, 0x10, 0, 0, 16, 0];
    let (mut good, mut late) = ([0x5A; 16], 0u32);
    good[3] = 0;
    let mut evil = good;
    evil[3] = 8;
    for seed in 0..8 {
        let mut bench = Bench::new(seed)?;
        let options = DriverOptions { memory: vec![MEMORY], ..DriverOptions::default() };
        let mut front = bench.appliance.connect("vm", &options)?;
        for _ in 0..4 {
            bench.one(&mut front, &cdb::TEST_UNIT_READY)?;
        }
        for list in [&evil[..], &evil[..15]] {
            front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &SELECT, list, 0)).context("room")?;
            let response = bench.answer(&mut front)?;
            let whole = list.len() == 16;
            let refused = if whole { response.sense_key() == Some((5, 0x26, 0)) } else { response.response == 1 };
            ensure!(refused && bench.device.modes().is_empty(), "{response:02x?}");
        }
        // More than the list: the rest stays here.
        let longer = [&good[..], &[1; 20]].concat();
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &SELECT, &longer, 0)).context("room")?;
        for rounds in 0.. {
            bench.appliance.machine.rounds(1);
            if let Some((_, response)) = front.poll(FIRST_REQUEST_QUEUE)? {
                let seen = bench.device.modes();
                let refused = response.sense_key() == Some((5, 0x26, 0)) && seen.is_empty();
                ensure!(refused || response.good() && response.residual == 20 && seen == good, "{seen:02x?}");
                late += u32::from(!refused && rounds > 0);
                break;
            }
            for at in places(&front, &good) {
                front.driver.memory.write(at, &evil);
            }
        }
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()?;
    }
    ensure!(late > 0, "no list was changed after it was looked at");
    Ok(())
}

#[test]
fn commands_lost_on_the_way_are_told_by_their_words_and_hurt_no_others() -> Result<()> {
    for_seeds(6, |seed| {
        let mut bench = Bench::new(seed)?;
        let (mut front, mut open, mut image) = (bench.connect()?, HashMap::new(), Image::new());
        bench.device.set_lossy(4);
        for _ in 0..600 {
            bench.start(&mut front, &mut open);
            bench.appliance.machine.rounds(2);
            bench.take(&mut front, &mut open, &mut image)?;
        }
        bench.finish(&mut front, &mut open, &mut image)?;
        let words: Vec<u8> = (2..=9).filter(|word| image.lost.contains_key(word)).collect();
        ensure!(words.len() >= 7 && image.good > 100, "{} good, lost {:?}", image.good, image.lost);
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()
    })
}

#[test]
fn aborts_and_resets_are_answered_when_the_commands_have_ended() -> Result<()> {
    for_seeds(8, |seed| {
        let mut bench = Bench::new(seed)?;
        let (mut front, mut open, mut image) = (bench.connect()?, HashMap::new(), Image::new());
        for round in 0..20 {
            for _ in 0..20 {
                bench.start(&mut front, &mut open);
                let rounds = bench.rng.below(2);
                bench.appliance.machine.rounds(rounds);
            }
            let before: Vec<u64> = open.keys().copied().collect();
            let function = if round % 2 == 0 { Tmf::LunReset } else { Tmf::AbortTaskSet };
            front.driver.submit_tmf(function, LUN.bytes(), 0).context("room")?;
            front.driver.queues[CONTROL_QUEUE].flush();
            let answer = loop {
                bench.appliance.machine.rounds(1);
                if let Some((_, bytes, ..)) =
                    front.driver.poll_raw(CONTROL_QUEUE).map_err(|e| anyhow::anyhow!("{e:?}"))?
                {
                    break bytes[0];
                }
            };
            ensure!(answer == 0, "{function:?}: {answer}");
            bench.take(&mut front, &mut open, &mut image)?;
            ensure!(before.iter().all(|ticket| !open.contains_key(ticket)), "{function:?} was answered too soon");
        }
        bench.finish(&mut front, &mut open, &mut image)?;
        ensure!(bench.device.ended_by_reset() > 0, "the device was reset with commands in it");
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()
    })
}

#[test]
fn a_vmm_that_dies_with_commands_in_the_device_leaves_it_to_the_next() -> Result<()> {
    for_seeds(6, |seed| {
        let mut bench = Bench::new(seed)?;
        let mut image = Image::new();
        for nth in 0..4 {
            let (mut front, mut open) = (bench.connect()?, HashMap::new());
            // Each reactor has a channel, and each was told of the guests before.
            let told = bench.device.nexuses_lost();
            ensure!(told == nth * (1 + seed % 3), "told {told} times of {nth} guests");
            for _ in 0..60 {
                bench.start(&mut front, &mut open);
                let rounds = bench.rng.below(3);
                bench.appliance.machine.rounds(rounds);
                bench.take(&mut front, &mut open, &mut image)?;
            }
            // Nobody hears of the rest: what they write is there or not.
            for of in open.values() {
                if let Some(data) = &of.write {
                    image.blocks[of.first as usize].push(data.clone());
                }
            }
            bench.appliance.disconnect(front);
        }
        let (mut front, mut open) = (bench.connect()?, HashMap::new());
        for _ in 0..200 {
            bench.start(&mut front, &mut open);
            bench.appliance.machine.rounds(4);
            bench.take(&mut front, &mut open, &mut image)?;
        }
        bench.finish(&mut front, &mut open, &mut image)?;
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()
    })
}

/// Other changes of the node wait while one waits for a device: for so long once, and not again each time it is asked for.
#[test]
fn a_command_that_takes_hours_holds_the_control_plane_up_once() -> Result<()> {
    const SHORT: Duration = Duration::from_millis(10);
    const FOR_EVER: Duration = Duration::from_secs(24 * 3600);
    let all = |long| Patience { requests: SHORT, cancelled: long, sessions: long, ..Patience::default() };
    for_seeds(3, |seed| {
        for whole in [false, true] {
            let mut bench = Bench::new(seed)?;
            let mut front = bench.connect()?;
            bench.device.keep_busy(true);
            let read = cdb::read10(0, 1);
            front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &read, &[], BLOCK)).context("room")?;
            bench.appliance.machine.rounds(5);
            let take_away = move |target: &Target| match whole {
                false => target.remove_lun("vm", 0, None).map(drop),
                true => target.delete_controller("vm", true),
            };
            for long in [SHORT, FOR_EVER] {
                bench.appliance.target.set_patience(all(long));
                let refused = bench.appliance.call(take_away);
                ensure!(matches!(refused, Err(TargetError::Draining)), "{refused:?}");
            }
            bench.device.keep_busy(false);
            if !whole {
                ensure!(bench.answer(&mut front)?.response <= 2, "it has ended, or it was cancelled");
            }
            loop {
                bench.appliance.machine.rounds(3);
                match bench.appliance.call(take_away) {
                    Err(TargetError::Draining) => {}
                    taken => break taken?,
                }
            }
            bench.appliance.machine.call(move || drop(front));
            bench.appliance.await_sessions(0);
            bench.appliance.shutdown()?;
        }
        Ok(())
    })
}

#[test]
fn a_device_that_vanishes_is_a_bad_target_and_what_is_in_it_ends() -> Result<()> {
    for_seeds(4, |seed| {
        let mut bench = Bench::new(seed)?;
        let (mut front, mut open, mut image) = (bench.connect()?, HashMap::new(), Image::new());
        for step in 0..300 {
            if step == 100 {
                bench.device.vanish();
            }
            bench.start(&mut front, &mut open);
            bench.appliance.machine.rounds(1);
            bench.take(&mut front, &mut open, &mut image)?;
        }
        bench.finish(&mut front, &mut open, &mut image)?;
        ensure!(image.lost.keys().all(|word| *word == 3) && image.lost[&3] > 50, "{:?}", image.lost);
        // The reactors let go of it: the same word, without a device.
        let unit = Arc::clone(&bench.unit);
        bench.appliance.call(|target| target.device_changed(&unit, None))?;
        let response = bench.one(&mut front, &cdb::TEST_UNIT_READY)?;
        ensure!(response.response == 3, "{response:02x?}");
        let luns = bench.one(&mut front, &cdb::report_luns(0))?;
        ensure!(luns.good(), "REPORT LUNS is the front end's: {luns:02x?}");
        bench.appliance.disconnect(front);
        bench.appliance.shutdown()
    })
}
