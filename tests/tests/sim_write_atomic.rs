//! WRITE ATOMIC of two guests on one disk, through controllers of their own and on several reactors. Nobody ever reads a
//! part of one, while commands are aborted, the unit is reset, and queues move; and after a power cut each is on the medium
//! as a whole or not at all. With plain WRITEs, and with a medium that tears, the same tests see parts.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_bdev::{Ram, RamSpec};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, Lun, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{
    Asked, PATIENT, SimAppliance, SimBdev, SimWorld, Switches, backing, filled, unit_of, value_of,
};

const BLOCK: usize = 512;
const LUN: Lun = Lun::new(0, 0);
const NAMES: [&str; 2] = ["one", "other"];
const REACTORS: usize = 3;
/// What is written at once.
const SLOTS: u64 = 8;
/// The longest that there is.
const SLOT_BLOCKS: u64 = 256;
/// Slots of one long READ.
const LONG: u64 = 6;

enum Doing {
    Write,
    Read,
}

struct Guest {
    front: FrontEnd,
    asked: Asked<Doing>,
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    written: u64,
    read: u64,
    torn: u64,
    early: u64,
    moved: u64,
}

struct Scene {
    appliance: SimAppliance,
    guests: Vec<Guest>,
    rng: Rng,
    /// Whether writes are atomic.
    atomic: bool,
    next_value: u64,
    seen: Seen,
}

impl Scene {
    fn new(seed: u64, atomic: bool) -> Result<Scene> {
        let world = SimWorld::new(seed);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        // In memory a long request is done in several turns, and others get theirs in between.
        let num_blocks = SLOTS * SLOT_BLOCKS;
        let spec = RamSpec { name: "ram".into(), block_size: 512, num_blocks, physical_block_size: None, uuid: None };
        let bdev: Arc<dyn Bdev> = Arc::new(Ram::new(&spec)?);
        let unit = unit_of("ram", &*bdev);
        let mut guests = Vec::new();
        for (at, name) in NAMES.iter().enumerate() {
            appliance.controller(name, &[(0, 0, backing("ram", &unit, &bdev))])?;
            let options = DriverOptions {
                request_queues: 3,
                queue_size: 64,
                memory: vec![(0x10_0000, 32 << 20)],
                seed: seed * 2 + at as u64,
                ..DriverOptions::default()
            };
            guests.push(Guest { front: appliance.connect(name, &options)?, asked: Asked::default() });
        }
        Ok(Scene { appliance, guests, rng: Rng::new(seed ^ 0xa70_31c), atomic, next_value: 1, seen: Seen::default() })
    }

    fn act(&mut self) {
        let Scene { guests, rng, atomic, next_value, .. } = self;
        let guest = &mut guests[rng.index(NAMES.len())];
        if guest.asked.commands() >= 24 {
            return;
        }
        let queue = FIRST_REQUEST_QUEUE + rng.index(guest.front.driver.queues.len() - FIRST_REQUEST_QUEUE);
        let framing = if rng.chance(1, 3) { Framing::random(rng) } else { Framing::PLAIN };
        let (doing, command, out, in_len) = if rng.chance(1, 2) {
            *next_value += 1;
            let lba = rng.below(SLOTS) * SLOT_BLOCKS;
            let cdb = if *atomic {
                cdb::write_atomic16(lba, SLOT_BLOCKS as u16, rng.chance(1, 4))
            } else {
                cdb::write16(lba, SLOT_BLOCKS as u32, false)
            };
            (Doing::Write, cdb, filled(*next_value, SLOT_BLOCKS as usize * BLOCK), 0)
        } else {
            let slots = if rng.chance(1, 2) { 1 } else { LONG };
            // Not always whole ones, so that a turn of the device does not end with a write.
            let (lba, blocks) = (rng.below(SLOTS - slots + 1) * SLOT_BLOCKS, slots * SLOT_BLOCKS - rng.below(200));
            (Doing::Read, cdb::read16(lba, blocks as u32), Vec::new(), blocks as usize * BLOCK)
        };
        let command = Command { framing, ..Command::new(LUN, &command, &out, in_len) };
        if let Some(ticket) = guest.front.submit(queue, &command) {
            guest.asked.put((queue, ticket), doing);
        }
    }

    /// Aborts a command, or resets the unit.
    fn function(&mut self) {
        let guest = &mut self.guests[self.rng.index(NAMES.len())];
        let all: Vec<_> = guest.asked.sorted().into_iter().map(|(name, _)| name).collect();
        if all.is_empty() {
            return;
        }
        let (function, tag, scope) = if self.rng.chance(1, 6) {
            (Tmf::LunReset, 0, all)
        } else {
            let one = all[self.rng.index(all.len())];
            (Tmf::AbortTask, one.1, vec![one])
        };
        guest.asked.function(&mut guest.front, function, LUN, tag, scope);
    }

    fn take(&mut self) -> Result<()> {
        for guest in &mut self.guests {
            for (doing, response) in guest.asked.take(&mut guest.front)? {
                let early = matches!(response.response, 2 | 4) || matches!(response.sense_key(), Some((6, ..)));
                ensure!(response.good() || early, "{response:?}");
                self.seen.early += u64::from(early);
                match doing {
                    Doing::Write => self.seen.written += u64::from(response.good()),
                    Doing::Read if response.good() => {
                        self.seen.read += 1;
                        let torn =
                            response.data.chunks(SLOT_BLOCKS as usize * BLOCK).filter(|slot| value_of(slot).is_err());
                        self.seen.torn += torn.count() as u64;
                    }
                    Doing::Read => {}
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, steps: u64) -> Result<()> {
        for _ in 0..steps {
            for _ in 0..self.rng.below(12) {
                self.act();
            }
            if self.rng.chance(1, 32) {
                self.function();
            }
            self.appliance.machine.rounds(self.rng.below(3));
            if self.rng.chance(1, 2) {
                self.take()?;
            }
            if self.rng.chance(1, 40) && !self.guests.iter().any(|guest| guest.asked.has_functions()) {
                self.seen.moved += u64::from(self.appliance.move_one(&mut self.rng, |_| Ok(()))?);
            }
        }
        self.appliance.machine.run();
        self.take()?;
        self.guests.iter().try_for_each(|guest| guest.asked.ensure_none())
    }

    fn end(mut self) -> Result<Seen> {
        for guest in self.guests {
            self.appliance.disconnect(guest.front);
        }
        self.appliance.shutdown()?;
        Ok(self.seen)
    }
}

fn storm(atomic: bool) -> Result<Seen> {
    let mut all = Seen::default();
    for seed in 1..=3 {
        let mut scene = Scene::new(seed, atomic)?;
        scene.run(250).with_context(|| format!("seed {seed}"))?;
        let Seen { written, read, torn, early, moved } = scene.end()?;
        all.written += written;
        all.read += read;
        all.torn += torn;
        all.early += early;
        all.moved += moved;
    }
    println!("atomic {atomic}: {all:?}");
    ensure!(all.written > 100 && all.read > 100 && all.early > 5 && all.moved > 2, "{all:?}");
    Ok(all)
}

#[test]
fn nobody_reads_a_part_of_an_atomic_write() -> Result<()> {
    let seen = storm(true)?;
    ensure!(seen.torn == 0, "{seen:?}");
    Ok(())
}

#[test]
fn the_storm_sees_parts_of_plain_writes() -> Result<()> {
    let seen = storm(false)?;
    ensure!(seen.torn > 0, "{seen:?}");
    Ok(())
}

/// Blocks of an atomic write on the medium that crashes.
const UNIT_BLOCKS: u64 = 32;
const UNITS: u64 = 4;

/// A power cut after so many changes of the medium. `None`: all was done before; else what was torn or lost.
fn cut(seed: u64, stop: u64, switches: Switches) -> Result<Option<Vec<String>>> {
    let world = SimWorld::new(seed);
    let mut appliance = SimAppliance::new(&world, 2, seed)?;
    let unit_len = UNIT_BLOCKS as usize * BLOCK;
    let bdev = SimBdev::new(&world, UNITS * unit_len as u64).that_writes_atomically(unit_len as u32);
    let disk = bdev.disk();
    let bdev: Arc<dyn Bdev> = Arc::new(bdev);
    appliance.controller("one", &[(0, 0, backing("disk", &unit_of("disk", &*bdev), &bdev))])?;
    let options = DriverOptions { memory: vec![(0x10_0000, 8 << 20)], seed, ..DriverOptions::default() };
    let mut front = appliance.connect("one", &options)?;
    front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &[0; 6], &[], 0)).context("no room")?;
    appliance.machine.run();
    front.poll(FIRST_REQUEST_QUEUE)?.context("the first attention")?;
    world.set_switches(switches);
    world.stop_after(stop);
    let (mut rng, mut asked) = (Rng::new(seed), Asked::<(usize, u64, bool)>::default());
    // Of each unit: the last value that was written, and the last of which it is known that it is durable.
    let (mut last, mut durable) = ([0; UNITS as usize], [0; UNITS as usize]);
    for value in 1..=40 {
        let unit = rng.index(UNITS as usize);
        let fua = rng.chance(1, 4);
        let cdb = cdb::write_atomic16(unit as u64 * UNIT_BLOCKS, UNIT_BLOCKS as u16, fua);
        let queue = FIRST_REQUEST_QUEUE;
        // What comes before it on the same unit has ended, so that the order is known.
        while asked.sorted().iter().any(|(_, (other, ..))| *other == unit) && world.powered() {
            appliance.machine.rounds(1);
            landed(&mut asked, &mut front, &mut durable)?;
        }
        if !world.powered() {
            break;
        }
        let ticket = front.submit(queue, &Command::new(LUN, &cdb, &filled(value, unit_len), 0)).context("no room")?;
        asked.put((queue, ticket), (unit, value, fua));
        last[unit] = value;
        appliance.machine.rounds(rng.below(6));
        landed(&mut asked, &mut front, &mut durable)?;
    }
    let crashed = !world.powered();
    world.crash(seed ^ stop);
    appliance.disconnect(front);
    appliance.shutdown()?;
    world.revive();
    let wrong = world.disk(disk, |disk| {
        let units = disk.visible().chunks(unit_len).enumerate();
        let wrong = units.filter_map(|(unit, bytes)| match value_of(bytes) {
            Err(why) => Some(format!("unit {unit}: {why}")),
            Ok(value) if value < durable[unit] || value > last[unit] => Some(format!("unit {unit} is {value}")),
            Ok(_) => None,
        });
        wrong.collect()
    });
    Ok(crashed.then_some(wrong))
}

fn landed(asked: &mut Asked<(usize, u64, bool)>, front: &mut FrontEnd, durable: &mut [u64]) -> Result<()> {
    for ((unit, value, fua), response) in asked.take(front)? {
        if response.good() && fua {
            durable[unit] = value;
        }
    }
    Ok(())
}

/// Cuts after each change; how many there were and what was wrong.
fn sweep(seed: u64, switches: Switches) -> Result<(u64, Vec<String>)> {
    let (mut cuts, mut wrong) = (0, Vec::new());
    for stop in 1.. {
        let Some(found) = cut(seed, stop, switches)? else { break };
        cuts += 1;
        wrong.extend(found.into_iter().map(|what| format!("seed {seed}, after change {stop}: {what}")));
    }
    Ok((cuts, wrong))
}

#[test]
fn an_atomic_write_survives_a_power_cut_as_a_whole_or_not_at_all() -> Result<()> {
    for seed in 1..=3 {
        let (cuts, wrong) = sweep(seed, Switches::default())?;
        ensure!(cuts > 20, "only {cuts} cuts");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    Ok(())
}

#[test]
fn the_sweep_notices_a_medium_that_tears() -> Result<()> {
    let (_, wrong) = sweep(1, Switches { atomic_tears: true, ..Switches::default() })?;
    ensure!(wrong.iter().any(|what| what.contains("a part")), "{wrong:?}");
    Ok(())
}
