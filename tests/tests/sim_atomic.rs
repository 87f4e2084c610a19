//! COMPARE AND WRITE and ORWRITE of two guests on one disk, through controllers of their own and on several reactors:
//! nobody comes between what they read and what they write, while commands are aborted, the unit is reset, and queues
//! move.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, Lun, Response, Ticket, Tmf, cdb,
};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{
    Asked, Effect, Fault, Kind, Name, PATIENT, SimAppliance, SimBdev, SimWorld, backing, filled, unit_of, value_of,
};

const BLOCK: usize = 512;
const BLOCKS: u64 = 256;
const REACTORS: usize = 3;
const LUN: Lun = Lun::new(0, 0);
const NAMES: [&str; 2] = ["one", "other"];
/// Each counter takes as many blocks as its number and one, all of which hold its value; far from the next.
const COUNTERS: usize = 4;
const COUNTER_STEP: u64 = 8;
/// Blocks whose bits are set by ORWRITE.
const BITS_AT: u64 = 64;
const BITS_BLOCKS: usize = 2;
/// Blocks for everything else.
const REST_AT: u64 = 128;

fn counter(number: usize) -> (u64, usize) {
    (number as u64 * COUNTER_STEP, number + 1)
}

/// What a command was to do.
enum Doing {
    Increment { counter: usize, from: u64 },
    Look { counter: usize, at_least: u64 },
    SetBit { bit: usize },
    Other,
}

/// What all guests together have done.
struct Ledger {
    /// Increments that ended GOOD, and those that were ended early: done or not.
    good: [u64; COUNTERS],
    unknown: [u64; COUNTERS],
    /// Counter values that somebody has replaced.
    replaced: HashSet<(usize, u64)>,
    bits: Vec<u8>,
    next_bit: usize,
    miscompares: u64,
    ended: u64,
    moved: u64,
}

struct Guest {
    front: FrontEnd,
    rng: Rng,
    known: [u64; COUNTERS],
    asked: Asked<Doing>,
}

impl Guest {
    fn connect(appliance: &mut SimAppliance, name: &str, seed: u64) -> Result<Guest> {
        let mut rng = Rng::new(seed);
        let options = DriverOptions {
            request_queues: rng.between(2, 4) as usize,
            queue_size: 64,
            memory: vec![(0x10_0000, 8 << 20)],
            seed,
            ..DriverOptions::default()
        };
        let front = appliance.connect(name, &options)?;
        Ok(Guest { front, rng, known: [0; COUNTERS], asked: Asked::default() })
    }

    fn submit(&mut self, doing: Doing, cdb: &[u8], out: &[u8], in_len: usize) -> Option<Name> {
        let queues = self.front.driver.queues.len() - FIRST_REQUEST_QUEUE;
        let queue = FIRST_REQUEST_QUEUE + self.rng.index(queues);
        let framing = if self.rng.chance(1, 3) { Framing::random(&mut self.rng) } else { Framing::PLAIN };
        let command = Command { framing, ..Command::new(LUN, cdb, out, in_len) };
        let ticket = self.front.submit(queue, &command)?;
        self.asked.put((queue, ticket), doing);
        Some((queue, ticket))
    }

    fn act(&mut self, ledger: &mut Ledger) {
        if self.asked.commands() >= 24 {
            return;
        }
        let number = self.rng.index(COUNTERS);
        let (lba, blocks) = counter(number);
        match self.rng.below(10) {
            0..4 => {
                let from = self.known[number];
                let out = [filled(from, blocks * BLOCK), filled(from + 1, blocks * BLOCK)].concat();
                let cdb = cdb::compare_and_write(lba, blocks as u8, self.rng.chance(1, 4));
                self.submit(Doing::Increment { counter: number, from }, &cdb, &out, 0);
            }
            4..6 => {
                let at_least = ledger.good[number];
                let cdb = cdb::read10(lba as u32, blocks as u16);
                self.submit(Doing::Look { counter: number, at_least }, &cdb, &[], blocks * BLOCK);
            }
            6..8 if ledger.next_bit < BITS_BLOCKS * BLOCK * 8 => {
                let bit = ledger.next_bit;
                ledger.next_bit += 1;
                let mut out = vec![0; BITS_BLOCKS * BLOCK];
                out[bit / 8] = 1 << (bit % 8);
                self.submit(Doing::SetBit { bit }, &cdb::or_write16(BITS_AT, BITS_BLOCKS as u32), &out, 0);
            }
            8 => {
                let (lba, blocks) = (REST_AT + self.rng.below(100), self.rng.between(1, 20));
                let out = vec![7; blocks as usize * BLOCK];
                self.submit(Doing::Other, &cdb::write10(lba as u32, blocks as u16, false), &out, 0);
            }
            // Over everything: every claim is in its way, and the other way round.
            9 => {
                let bytchk = 0;
                self.submit(Doing::Other, &cdb::verify16(0, BLOCKS as u32, bytchk), &[], 0);
            }
            _ => {}
        }
    }

    /// Aborts a command, or resets the unit.
    fn function(&mut self) {
        let all: Vec<Name> = self.asked.sorted().into_iter().map(|(name, _)| name).collect();
        if all.is_empty() {
            return;
        }
        let (function, tag, scope) = if self.rng.chance(1, 4) {
            (Tmf::LunReset, 0, all)
        } else {
            let one = all[self.rng.index(all.len())];
            (Tmf::AbortTask, one.1, vec![one])
        };
        self.asked.function(&mut self.front, function, LUN, tag, scope);
    }

    fn take(&mut self, ledger: &mut Ledger) -> Result<()> {
        for (doing, response) in self.asked.take(&mut self.front)? {
            self.answered(&doing, &response, ledger)?;
        }
        Ok(())
    }

    fn answered(&mut self, doing: &Doing, response: &Response, ledger: &mut Ledger) -> Result<()> {
        let sense = response.sense_key();
        let early = matches!(response.response, 2 | 4);
        ledger.ended += u64::from(early);
        let told = matches!(sense, Some((6, ..)));
        let miscompare = matches!(doing, Doing::Increment { .. }) && sense == Some((0xE, 0x1D, 0));
        ensure!(response.good() || early || told || miscompare, "{response:?}");
        match *doing {
            Doing::Increment { counter, from } if response.good() => {
                ledger.good[counter] += 1;
                ensure!(ledger.replaced.insert((counter, from)), "counter {counter}: {from} was replaced twice");
                self.known[counter] = from + 1;
            }
            Doing::Increment { counter, .. } => {
                ledger.unknown[counter] += u64::from(early);
                ledger.miscompares += u64::from(miscompare);
            }
            Doing::Look { counter, at_least } if response.good() => {
                let value = value_of(&response.data)?;
                ensure!(value >= at_least, "counter {counter} was {at_least} and is {value}");
                self.known[counter] = value;
            }
            Doing::SetBit { bit } if response.good() => ledger.bits[bit / 8] |= 1 << (bit % 8),
            _ => {}
        }
        Ok(())
    }
}

struct Scene {
    appliance: SimAppliance,
    guests: Vec<Guest>,
    rng: Rng,
    ledger: Ledger,
}

impl Scene {
    fn new(seed: u64) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 200_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * BLOCK as u64));
        let unit = unit_of("disk", &*bdev);
        let mut guests = Vec::new();
        for (at, name) in NAMES.iter().enumerate() {
            appliance.controller(name, &[(0, 0, backing("disk", &unit, &bdev))])?;
            guests.push(Guest::connect(&mut appliance, name, seed * 2 + at as u64)?);
        }
        let ledger = Ledger {
            good: [0; COUNTERS],
            unknown: [0; COUNTERS],
            replaced: HashSet::new(),
            bits: vec![0; BITS_BLOCKS * BLOCK],
            next_bit: 0,
            miscompares: 0,
            ended: 0,
            moved: 0,
        };
        Ok(Scene { appliance, guests, rng: Rng::new(seed ^ 0xa70), ledger })
    }

    fn run(&mut self, steps: u64, functions: bool, moves: bool) -> Result<()> {
        for _ in 0..steps {
            step(&mut self.guests, &mut self.rng, &mut self.ledger, functions)?;
            self.appliance.machine.rounds(self.rng.below(6));
            if moves && self.rng.chance(1, 24) {
                self.move_one()?;
            }
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        self.appliance.machine.run();
        for guest in &mut self.guests {
            guest.take(&mut self.ledger)?;
            guest.asked.ensure_none()?;
        }
        Ok(())
    }

    fn move_one(&mut self) -> Result<()> {
        while self.guests.iter().any(|guest| guest.asked.has_functions()) {
            step(&mut self.guests, &mut self.rng, &mut self.ledger, false)?;
            self.appliance.machine.rounds(1);
        }
        let Scene { appliance, guests, rng, ledger } = self;
        let moved = appliance.move_one(rng, |rng| step(guests, rng, ledger, false))?;
        ledger.moved += u64::from(moved);
        Ok(())
    }

    /// Reads some blocks when nothing else happens.
    fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>> {
        let read = cdb::read10(lba as u32, blocks as u16);
        self.good(0, &Command::new(LUN, &read, &[], blocks * BLOCK))
    }

    /// One command, answered GOOD when the machine is idle.
    fn good(&mut self, guest: usize, command: &Command<'_>) -> Result<Vec<u8>> {
        for _ in 0..8 {
            let front = &mut self.guests[guest].front;
            front.submit(FIRST_REQUEST_QUEUE, command).context("no room")?;
            self.appliance.machine.run();
            let (_, response) = self.guests[guest].front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
            if response.good() {
                return Ok(response.data);
            }
            ensure!(matches!(response.sense_key(), Some((6, ..))), "{response:?}");
        }
        Err(anyhow!("unit attentions without end"))
    }

    fn judge(&mut self) -> Result<()> {
        for number in 0..COUNTERS {
            let (lba, blocks) = counter(number);
            let value = value_of(&self.read(lba, blocks)?)?;
            let (good, unknown) = (self.ledger.good[number], self.ledger.unknown[number]);
            ensure!(
                (good..=good + unknown).contains(&value),
                "counter {number} is {value} after {good} increments and {unknown} that were ended early"
            );
        }
        let bits = self.read(BITS_AT, BITS_BLOCKS)?;
        let lost: u32 = self.ledger.bits.iter().zip(&bits).map(|(want, is)| (want & !is).count_ones()).sum();
        ensure!(lost == 0, "{lost} bits were set and are not");
        Ok(())
    }

    fn end(mut self) -> Result<Ledger> {
        for guest in self.guests {
            self.appliance.disconnect(guest.front);
        }
        self.appliance.shutdown()?;
        Ok(self.ledger)
    }
}

fn step(guests: &mut [Guest], rng: &mut Rng, ledger: &mut Ledger, functions: bool) -> Result<()> {
    let guest = &mut guests[rng.index(NAMES.len())];
    for _ in 0..rng.below(4) {
        guest.act(ledger);
    }
    if functions && rng.chance(1, 24) {
        guest.function();
    }
    if rng.chance(1, 2) { guest.take(ledger) } else { Ok(()) }
}

/// Increments, miscompares, commands that were ended early, and moves, of all runs.
fn storm(seeds: std::ops::RangeInclusive<u64>, steps: u64, functions: bool, moves: bool) -> Result<[u64; 4]> {
    let mut sums = [0; 4];
    for seed in seeds {
        let mut scene = Scene::new(seed)?;
        scene.run(steps, functions, moves).and_then(|()| scene.judge()).with_context(|| format!("seed {seed}"))?;
        let ledger = scene.end()?;
        let of_run = [ledger.good.iter().sum(), ledger.miscompares, ledger.ended, ledger.moved];
        sums.iter_mut().zip(of_run).for_each(|(sum, of_run)| *sum += of_run);
    }
    Ok(sums)
}

#[test]
fn counters_of_two_guests_lose_no_increment() -> Result<()> {
    let [good, miscompares, ..] = storm(1..=6, 1000, false, false)?;
    ensure!(good > 200 && miscompares > 300, "{good} increments, {miscompares} miscompares");
    Ok(())
}

#[test]
fn counters_lose_no_increment_while_commands_are_aborted_and_queues_move() -> Result<()> {
    let [good, miscompares, ended, moved] = storm(11..=18, 500, true, true)?;
    ensure!(
        good > 200 && miscompares > 200 && ended > 200 && moved > 30,
        "{good} increments, {miscompares} miscompares, {ended} ended early, {moved} moves"
    );
    Ok(())
}

/// What a guest does at once to blocks that hold `before`, while the other writes `WRITTEN` there.
struct Against {
    cdb: [u8; 16],
    out: Vec<u8>,
    /// What may be there in the end.
    left: Vec<u64>,
}

const BEFORE: u64 = 0x0101;
const WRITTEN: u64 = 0xf0f0;
const BITS: u64 = 0x0808;

/// A plain WRITE of one guest at the same moment as a command of the other that reads and writes: whichever comes first,
/// what was written is not lost.
fn a_write_is_not_lost(seed: u64, against: &Against, blocks: usize) -> Result<()> {
    let mut scene = Scene::new(seed)?;
    let (before, written) = (filled(BEFORE, blocks * BLOCK), filled(WRITTEN, blocks * BLOCK));
    let write = cdb::write10(0, blocks as u16, false);
    for round in 0..60 {
        scene.good(1, &Command::new(LUN, &write, &before, 0))?;
        // The other guest's unit attentions are over, too.
        scene.good(0, &Command::new(LUN, &cdb::read10(0, 1), &[], BLOCK))?;
        let writes = scene.rng.between(1, 3);
        for at in 0..=writes {
            let (guest, cdb, out): (_, &[u8], _) =
                if at == 0 { (0, &against.cdb, &against.out) } else { (1, &write, &written) };
            let turns = scene.rng.below(8);
            scene.appliance.machine.rounds(turns);
            scene.guests[guest].submit(Doing::Other, cdb, out, 0).context("no room")?;
        }
        scene.appliance.machine.run();
        for guest in &mut scene.guests {
            for (_, response) in guest.asked.take(&mut guest.front)? {
                let miscompare = response.sense_key() == Some((0xE, 0x1D, 0));
                ensure!(response.good() || miscompare, "{response:?}");
            }
            guest.asked.ensure_none()?;
        }
        let left = value_of(&scene.read(0, blocks)?)?;
        ensure!(against.left.contains(&left), "seed {seed}, round {round}: {left:#x} is left");
    }
    scene.end().map(|_| ())
}

#[test]
fn compare_and_write_does_not_undo_a_write_that_came_meanwhile() -> Result<()> {
    let blocks = 2;
    let out = [filled(BEFORE, blocks * BLOCK), filled(BEFORE + 1, blocks * BLOCK)].concat();
    let against = Against { cdb: cdb::compare_and_write(0, 2, false), out, left: vec![WRITTEN] };
    (1..=4).try_for_each(|seed| a_write_is_not_lost(seed, &against, blocks))
}

#[test]
fn orwrite_does_not_undo_a_write_that_came_meanwhile() -> Result<()> {
    let blocks = 2;
    let left = vec![WRITTEN, WRITTEN | BITS];
    let against = Against { cdb: cdb::or_write16(0, 2), out: filled(BITS, blocks * BLOCK), left };
    (1..=4).try_for_each(|seed| a_write_is_not_lost(seed, &against, blocks))
}

/// A claim that waits for a stuck WRITE of the other guest, and commands that wait for the claim.
fn waiting_claim(seed: u64, give_up: impl FnOnce(&mut Scene, (usize, Ticket)) -> Result<()>) -> Result<()> {
    let mut scene = Scene::new(seed)?;
    let world = scene.appliance.machine.world().clone();
    let read = cdb::read10(0, 1);
    for guest in [0, 1] {
        scene.good(guest, &Command::new(LUN, &read, &[], BLOCK))?;
    }
    world.fault(Fault::always(Kind::Write, Effect::Stuck));
    let write = scene.guests[0]
        .submit(Doing::Other, &cdb::write10(0, 2, false), &filled(5, 2 * BLOCK), 0)
        .context("no room")?;
    scene.appliance.machine.run();
    world.heal();
    let out = [filled(0, 2 * BLOCK), filled(1, 2 * BLOCK)].concat();
    let claim =
        scene.guests[1].submit(Doing::Other, &cdb::compare_and_write(0, 2, false), &out, 0).context("no room")?;
    scene.appliance.machine.run();
    // What comes after the claim waits for it, also where the device would be free; what is elsewhere does not.
    let waits = scene.guests[0].submit(Doing::Other, &read, &[], BLOCK).context("no room")?;
    scene.appliance.machine.run();
    let elsewhere = FIRST_REQUEST_QUEUE + usize::from(waits.0 == FIRST_REQUEST_QUEUE);
    let command = cdb::read10(200, 1);
    scene.guests[0].front.submit(elsewhere, &Command::new(LUN, &command, &[], BLOCK)).context("no room")?;
    scene.appliance.machine.run();
    let answer = scene.guests[0].front.poll(elsewhere)?.context("a command elsewhere waits")?;
    ensure!(answer.1.good() && ![write.1, waits.1].contains(&answer.0), "{answer:?}");
    ensure!(scene.guests[1].front.poll(claim.0)?.is_none(), "the claim did not wait");
    ensure!(scene.guests[0].front.poll(waits.0)?.is_none(), "a command overtakes a claim that came before it");
    give_up(&mut scene, claim)?;
    scene.appliance.machine.run();
    let (ticket, response) =
        scene.guests[0].front.poll(waits.0)?.context("a command waits for a claim that is gone")?;
    ensure!(ticket == waits.1 && response.good() && response.data == [0; BLOCK], "{response:?}");
    world.release();
    scene.appliance.machine.run();
    let (ticket, response) = scene.guests[0].front.poll(write.0)?.context("the write is not answered")?;
    ensure!(ticket == write.1 && response.good(), "{response:?}");
    ensure!(value_of(&scene.read(0, 2)?)? == 5, "the write was done");
    scene.end().map(|_| ())
}

#[test]
fn a_claim_that_waits_can_be_aborted() -> Result<()> {
    (1..=4).try_for_each(|seed| {
        waiting_claim(seed, |scene, claim| {
            let front = &mut scene.guests[1].front;
            let abort = front.driver.submit_tmf(Tmf::AbortTask, LUN.bytes(), claim.1);
            front.driver.queues[CONTROL_QUEUE].flush();
            scene.appliance.machine.run();
            let front = &mut scene.guests[1].front;
            let answer = front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?;
            ensure!(
                answer.is_some_and(|(ticket, response, ..)| Some(ticket) == abort && response[0] == 0),
                "no answer"
            );
            let (ticket, response) = front.poll(claim.0)?.context("the abort is done and the command is not")?;
            ensure!(ticket == claim.1 && response.response == 2, "{response:?}");
            Ok(())
        })
    })
}

#[test]
fn a_claim_goes_with_its_session() -> Result<()> {
    (1..=4).try_for_each(|seed| {
        waiting_claim(seed, |scene, _| {
            let guest = scene.guests.pop().context("two guests")?;
            scene.appliance.disconnect(guest.front);
            Ok(())
        })
    })
}

/// One guest, one command at a time, in every framing, against what the standard says of each.
#[test]
fn each_command_does_what_it_says_to_ranges_of_any_length() -> Result<()> {
    const LARGE: usize = 1024;
    let world = SimWorld::new(5);
    let mut appliance = SimAppliance::new(&world, 2, 5)?;
    let bdev = SimBdev::new(&world, (LARGE * BLOCK) as u64);
    let disk = bdev.disk();
    let bdev: Arc<dyn Bdev> = Arc::new(bdev);
    let unit = unit_of("disk", &*bdev);
    appliance.controller("one", &[(0, 0, backing("disk", &unit, &bdev))])?;
    let options = DriverOptions { memory: vec![(0x10_0000, 16 << 20)], ..DriverOptions::default() };
    let mut front = appliance.connect("one", &options)?;
    let (mut rng, mut medium, mut miscompares) = (Rng::new(5), vec![0u8; LARGE * BLOCK], 0);
    for round in 0..300 {
        let kind = rng.below(6);
        let most = if kind == 0 { 255 } else { 700 };
        let count = if rng.chance(1, 3) { rng.between(1, 4) } else { rng.between(1, most) } as usize;
        let first = rng.below((LARGE - count) as u64 + 1) as usize;
        let (from, to) = (first * BLOCK, (first + count) * BLOCK);
        let (lba, blocks) = (first as u64, count as u32);
        let noise = |rng: &mut Rng, len: usize| (0..len).map(|_| rng.below(256) as u8).collect::<Vec<_>>();
        let mut same = medium[from..to].to_vec();
        let wrong = rng.chance(1, 3).then(|| rng.index(same.len()));
        wrong.into_iter().for_each(|at| same[at] ^= 0x10);
        let mut after = medium.clone();
        let mut differs = wrong;
        let (cdb, out) = match kind {
            0 => {
                let new = noise(&mut rng, to - from);
                if wrong.is_none() {
                    after[from..to].copy_from_slice(&new);
                }
                (cdb::compare_and_write(lba, count as u8, rng.chance(1, 2)), [same, new].concat())
            }
            1 => {
                let bits = noise(&mut rng, to - from);
                after[from..to].iter_mut().zip(&bits).for_each(|(byte, bits)| *byte |= bits);
                differs = None;
                (cdb::or_write16(lba, blocks), bits)
            }
            2 => {
                differs = None;
                (cdb::verify16(lba, blocks, 0), Vec::new())
            }
            3 => (cdb::verify16(lba, blocks, 1), same),
            4 => {
                let block = medium[from..from + BLOCK].to_vec();
                differs = medium[from..to].chunks(BLOCK).enumerate().find_map(|(number, other)| {
                    other.iter().zip(&block).position(|(a, b)| a != b).map(|at| number * BLOCK + at)
                });
                (cdb::verify16(lba, blocks, 3), block)
            }
            _ => {
                let new = noise(&mut rng, to - from);
                after[from..to].copy_from_slice(&new);
                differs = None;
                (cdb::write_and_verify16(lba, blocks, rng.below(2) as u8), new)
            }
        };
        let command = Command { framing: Framing::random(&mut rng), ..Command::new(LUN, &cdb, &out, 0) };
        let response = loop {
            front.submit(FIRST_REQUEST_QUEUE, &command).context("no room")?;
            appliance.machine.run();
            let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
            if !matches!(response.sense_key(), Some((6, ..))) {
                break response;
            }
        };
        let what = format!("round {round}: {cdb:02x?} differs at {differs:?}: {response:?}");
        match differs {
            None => ensure!(response.good() && response.residual == 0, "{what}"),
            Some(at) => {
                miscompares += 1;
                ensure!(response.sense_key() == Some((0xE, 0x1D, 0)), "{what}");
                let information = u32::from_be_bytes(response.sense[3..7].try_into()?);
                ensure!(response.sense[0] == 0xF0 && information as usize == at, "{what}");
            }
        }
        medium = after;
        let kept = world.disk(disk, |disk| disk.visible() == medium);
        ensure!(kept, "round {round}: {cdb:02x?} left something else on the disk");
    }
    ensure!(miscompares > 30, "{miscompares} miscompares");
    appliance.disconnect(front);
    appliance.shutdown()
}
