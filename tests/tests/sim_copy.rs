//! Copies from unit to unit, of two guests on two disks that they share, on several reactors: what arrives is what was
//! there, while others write beside it, have ranges to themselves, reserve the disks, abort, and reset.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::{Bdev, Lane};
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{
    Asked, Effect, Fault, Kind, Name, PATIENT, SimAppliance, SimBdev, SimWorld, Switches, backing, naa_of, unit_of,
    unit_with_medium,
};
use pollux_vhost_scsi::Patience;

#[path = "sim_copy/single.rs"]
mod single;

const BLOCK: usize = 512;
const REACTORS: usize = 3;
const NAMES: [&str; 2] = ["one", "other"];
/// Places that are copied from and to: some pieces long.
const SLOT_BLOCKS: u64 = 600;
const SLOTS: usize = 3;
const DISKS: usize = 2;

const fn lun(disk: usize) -> Lun {
    Lun::new(0, disk as u16)
}

/// A place on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    disk: usize,
    number: usize,
}

impl Slot {
    fn any(rng: &mut Rng) -> Slot {
        Slot { disk: rng.index(DISKS), number: rng.index(SLOTS) }
    }

    fn lba(self) -> u64 {
        self.number as u64 * SLOT_BLOCKS
    }
}

/// What each block of the disks may hold. Where a command was ended early, that is several things.
struct Ledger {
    blocks: Vec<Vec<Vec<u64>>>,
    /// How many read and write each slot at the moment.
    readers: HashMap<Slot, u32>,
    writers: HashMap<Slot, u32>,
    next_stamp: u64,
    copied: u64,
    ended: u64,
    refused: u64,
    in_background: u64,
}

impl Ledger {
    fn new() -> Ledger {
        Ledger {
            blocks: vec![vec![vec![0]; SLOTS * SLOT_BLOCKS as usize]; DISKS],
            readers: HashMap::new(),
            writers: HashMap::new(),
            next_stamp: 1,
            copied: 0,
            ended: 0,
            refused: 0,
            in_background: 0,
        }
    }

    fn stamps(&mut self, blocks: usize) -> Vec<u64> {
        let first = self.next_stamp;
        self.next_stamp += blocks as u64;
        (first..self.next_stamp).collect()
    }

    fn is_written(&self, slot: Slot) -> bool {
        self.writers.get(&slot).is_some_and(|count| *count > 0)
    }

    fn is_used(&self, slot: Slot) -> bool {
        self.is_written(slot) || self.readers.get(&slot).is_some_and(|count| *count > 0)
    }

    /// What is written is there, or, if it is not known whether it was, may be.
    fn written(&mut self, disk: usize, lba: u64, new: Vec<Vec<u64>>, good: bool) {
        for (old, new) in self.blocks[disk][lba as usize..].iter_mut().zip(new) {
            if good {
                *old = new;
            } else {
                old.extend(new);
                old.sort_unstable();
                old.dedup();
            }
        }
    }
}

fn data_of(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(BLOCK / 8)).collect()
}

#[derive(Clone, Copy, Debug)]
struct Move {
    source: Slot,
    destination: Slot,
    from: u64,
    to: u64,
    blocks: u64,
}

/// What a command was to do.
#[derive(Clone, Debug)]
enum Doing {
    Copy(Move),
    /// It is answered before it is done; then it is asked for.
    Background(Move, u32),
    Status(usize, u32),
    Write {
        slot: Slot,
        lba: u64,
        stamps: Vec<u64>,
    },
    Other,
}

struct Guest {
    front: FrontEnd,
    rng: Rng,
    /// With the disk that was asked.
    asked: Asked<(usize, Doing)>,
    /// Copies that go on without a command, by copy manager and list identifier.
    background: HashMap<(usize, u32), Move>,
    /// Those whose status was asked for.
    looked: Vec<(usize, u32)>,
    next_id: u32,
    names: [[u8; 16]; DISKS],
}

impl Guest {
    fn submit(&mut self, disk: usize, doing: Doing, cdb: &[u8], out: &[u8], in_len: usize) -> bool {
        let queues = self.front.driver.queues.len() - FIRST_REQUEST_QUEUE;
        let queue = FIRST_REQUEST_QUEUE + self.rng.index(queues);
        let Some(ticket) = self.front.submit(queue, &Command::new(lun(disk), cdb, out, in_len)) else { return false };
        self.asked.put((queue, ticket), (disk, doing));
        true
    }

    fn act(&mut self, ledger: &mut Ledger, hostile: bool) {
        if self.asked.commands() >= 16 {
            return;
        }
        match self.rng.below(12) {
            0..4 => self.copy(ledger),
            4..7 => self.write(ledger),
            7..9 => self.claim(),
            9 => {
                let mut ids: Vec<_> = self.background.keys().copied().collect();
                ids.sort_unstable();
                for (manager, id) in ids {
                    if !self.looked.contains(&(manager, id))
                        && self.submit(manager, Doing::Status(manager, id), &copy::status(id, 64), &[], 64)
                    {
                        self.looked.push((manager, id));
                    }
                }
            }
            10 if hostile => {
                let mut ids: Vec<_> = self.background.keys().copied().collect();
                ids.sort_unstable();
                if !ids.is_empty() {
                    let (manager, id) = ids[self.rng.index(ids.len())];
                    self.submit(manager, Doing::Other, &copy::abort(id), &[], 0);
                }
            }
            _ => {
                let disk = self.rng.index(DISKS);
                self.submit(disk, Doing::Other, &cdb::TEST_UNIT_READY, &[], 0);
            }
        }
    }

    fn copy(&mut self, ledger: &mut Ledger) {
        let (source, destination) = (Slot::any(&mut self.rng), Slot::any(&mut self.rng));
        if ledger.is_used(destination) || ledger.is_written(source) {
            return;
        }
        let blocks = self.rng.between(1, SLOT_BLOCKS);
        let room = SLOT_BLOCKS - blocks + 1;
        let (from, to) = (source.lba() + self.rng.below(room), destination.lba() + self.rng.below(room));
        let moved = Move { source, destination, from, to, blocks };
        // The unit that is asked is one of the ends, or neither; by name, or as the one that is asked.
        let manager = self.rng.index(DISKS);
        let id = |rng: &mut Rng, disk: usize| if disk == manager && rng.chance(1, 2) { 0xFFFF } else { disk as u16 };
        let (source_id, destination_id) = (id(&mut self.rng, source.disk), id(&mut self.rng, destination.disk));
        // In one segment or two.
        let first = if source != destination && self.rng.chance(1, 3) { self.rng.between(1, blocks) } else { blocks };
        let segment = |done: u64, blocks: u64| Segment {
            source: source_id,
            destination: destination_id,
            blocks: blocks as u16,
            from: from + done,
            to: to + done,
        };
        let mut segments = vec![segment(0, first)];
        if first < blocks {
            segments.push(segment(first, blocks - first));
        }
        self.next_id += 1;
        let number = self.next_id;
        let (doing, (cdb, list)) = match self.rng.below(3) {
            0 => (Doing::Copy(moved), copy::lid1(0, 3, &self.names, &segments)),
            1 => (Doing::Copy(moved), copy::lid4(number, false, &self.names, &segments)),
            _ => (Doing::Background(moved, number), copy::lid4(number, true, &self.names, &segments)),
        };
        if self.submit(manager, doing, &cdb, &list, 0) {
            *ledger.readers.entry(source).or_default() += 1;
            *ledger.writers.entry(destination).or_default() += 1;
        }
    }

    fn write(&mut self, ledger: &mut Ledger) {
        let slot = Slot::any(&mut self.rng);
        if ledger.is_used(slot) {
            return;
        }
        let blocks = self.rng.between(1, 60);
        let lba = slot.lba() + self.rng.below(SLOT_BLOCKS - blocks + 1);
        let stamps = ledger.stamps(blocks as usize);
        let out = data_of(&stamps);
        if self.submit(slot.disk, Doing::Write { slot, lba, stamps }, &cdb::write16(lba, blocks as u32, false), &out, 0)
        {
            *ledger.writers.entry(slot).or_default() += 1;
        }
    }

    /// A range to itself, anywhere: what it compares with is nowhere, so it changes nothing.
    fn claim(&mut self) {
        let (slot, blocks) = (Slot::any(&mut self.rng), self.rng.between(1, 20));
        let lba = slot.lba() + self.rng.below(SLOT_BLOCKS - blocks);
        let out = vec![0xFF; 2 * blocks as usize * BLOCK];
        self.submit(slot.disk, Doing::Other, &cdb::compare_and_write(lba, blocks as u8, false), &out, 0);
    }

    /// Aborts a command, or resets a disk.
    fn function(&mut self) {
        let all: Vec<(Name, usize)> = self.asked.sorted().into_iter().map(|(name, (disk, _))| (name, *disk)).collect();
        if all.is_empty() {
            return;
        }
        let (name, disk) = all[self.rng.index(all.len())];
        let (function, tag, scope) = if self.rng.chance(1, 4) {
            let of_disk = all.iter().filter(|(_, of)| *of == disk).map(|(name, _)| *name);
            (Tmf::LunReset, 0, of_disk.collect())
        } else {
            (Tmf::AbortTask, name.1, vec![name])
        };
        self.asked.function(&mut self.front, function, lun(disk), tag, scope);
    }

    fn take(&mut self, ledger: &mut Ledger) -> Result<()> {
        for ((manager, doing), response) in self.asked.take(&mut self.front)? {
            self.answered(manager, doing, &response, ledger)?;
        }
        Ok(())
    }

    fn answered(&mut self, manager: usize, doing: Doing, response: &Response, ledger: &mut Ledger) -> Result<()> {
        let sense = response.sense_key();
        let early = matches!(response.response, 2 | 4);
        let told = matches!(sense, Some((6, ..)));
        let conflict = response.status == 0x18;
        match doing {
            Doing::Copy(moved) => {
                ensure!(response.good() || early || told || conflict || is_ended(response), "{response:?}");
                ledger.refused += u64::from(conflict || matches!(sense, Some((0xA, 0x0D, 1))));
                copied(ledger, moved, response.good());
            }
            Doing::Background(moved, id) if response.good() => {
                ledger.in_background += 1;
                self.background.insert((manager, id), moved);
            }
            Doing::Background(moved, _) => {
                ensure!(early || told || conflict || is_ended(response), "{response:?}");
                copied(ledger, moved, false);
            }
            Doing::Status(manager, id) => {
                self.looked.retain(|key| *key != (manager, id));
                self.status(manager, id, response, ledger)?;
            }
            Doing::Write { slot, lba, stamps } => {
                ensure!(response.good() || early || told || conflict, "{response:?}");
                let new = stamps.into_iter().map(|stamp| vec![stamp]).collect();
                // What was told something was not begun.
                if response.good() || early {
                    ledger.written(slot.disk, lba, new, response.good());
                }
                *ledger.writers.entry(slot).or_default() -= 1;
            }
            Doing::Other => {
                let fails = matches!(sense, Some((0xE, 0x1D, 0) | (5, 0x24, 0)));
                ensure!(response.good() || early || told || conflict || fails, "{response:?}");
            }
        }
        ledger.ended += u64::from(early);
        Ok(())
    }

    fn status(&mut self, manager: usize, id: u32, response: &Response, ledger: &mut Ledger) -> Result<()> {
        let good = if response.good() {
            match response.data[5] {
                0x12 => return Ok(()),
                0x01 => true,
                0x02 | 0x60 => false,
                other => return Err(anyhow!("copy operation status {other:02x}")),
            }
        } else if response.sense_key() == Some((5, 0x24, 0)) {
            // A reset has made it forgotten, and ended it before.
            false
        } else {
            return Ok(());
        };
        if let Some(moved) = self.background.remove(&(manager, id)) {
            if good {
                ensure!(response.data[16..24] == (moved.blocks * BLOCK as u64).to_be_bytes(), "{response:?}");
            }
            copied(ledger, moved, good);
        }
        Ok(())
    }
}

/// COPY ABORTED: terminated, or an end refused.
fn is_ended(response: &Response) -> bool {
    matches!(response.sense_key(), Some((0xA, 0x00, 0x06) | (0xA, 0x0D, 0x01)))
}

fn copied(ledger: &mut Ledger, moved: Move, good: bool) {
    let Move { source, destination, from, to, blocks } = moved;
    let from = from as usize..(from + blocks) as usize;
    let new = ledger.blocks[source.disk][from].to_vec();
    ledger.written(destination.disk, to, new, good);
    *ledger.readers.entry(source).or_default() -= 1;
    *ledger.writers.entry(destination).or_default() -= 1;
    ledger.copied += u64::from(good);
}

struct Scene {
    appliance: SimAppliance,
    guests: Vec<Guest>,
    rng: Rng,
    ledger: Ledger,
}

type Stage = (SimAppliance, Vec<Arc<LogicalUnit>>, Vec<FrontEnd>);

/// Disks of this many blocks, the units on them, and a controller with both for each guest, of initiators of their own.
fn stage(seed: u64, blocks: u64) -> Result<Stage> {
    stage_with(seed, blocks, false)
}

/// As `stage`; `together`: on disks that copy by themselves.
fn stage_with(seed: u64, blocks: u64, together: bool) -> Result<Stage> {
    let world = SimWorld::new(seed);
    world.set_latency(5_000, 200_000);
    let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
    appliance.target.set_patience(PATIENT);
    let (mut units, mut backings) = (Vec::new(), Vec::new());
    for disk in 0..DISKS {
        let bdev = SimBdev::new(&world, blocks * BLOCK as u64);
        let bdev: Arc<dyn Bdev> = Arc::new(if together { bdev.that_copies() } else { bdev });
        let name = format!("disk{disk}");
        let unit = unit_with_medium(&name, &bdev);
        backings.push(backing(&name, &unit, &bdev));
        units.push(unit);
    }
    let mut fronts = Vec::new();
    for (name, number) in NAMES.iter().zip(0u64..) {
        let backings = backings.clone();
        appliance.call(move |target| -> Result<()> {
            target.create_controller(name, (0..REACTORS).collect(), 7 + number)?;
            for (disk, backing) in backings.into_iter().enumerate() {
                target.add_lun(name, Some(0), disk as u16, backing)?;
            }
            Ok(target.start_controller(name)?)
        })?;
        let options = DriverOptions {
            request_queues: 3,
            queue_size: 64,
            memory: vec![(0x10_0000, 8 << 20)],
            seed: seed * 2 + number,
            ..DriverOptions::default()
        };
        fronts.push(appliance.connect(name, &options)?);
    }
    Ok((appliance, units, fronts))
}

impl Scene {
    fn new(seed: u64) -> Result<Scene> {
        let (appliance, units, fronts) = stage_with(seed, SLOTS as u64 * SLOT_BLOCKS, seed % 2 == 1)?;
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let guests = fronts.into_iter().zip(0..).map(|(front, number)| Guest {
            front,
            rng: Rng::new(seed * 2 + number),
            asked: Asked::default(),
            background: HashMap::new(),
            looked: Vec::new(),
            next_id: 0,
            names,
        });
        let guests = guests.collect();
        Ok(Scene { appliance, guests, rng: Rng::new(seed ^ 0xC0), ledger: Ledger::new() })
    }

    fn run(&mut self, steps: u64, hostile: bool) -> Result<()> {
        for _ in 0..steps {
            let guest = &mut self.guests[self.rng.index(NAMES.len())];
            for _ in 0..self.rng.below(4) {
                guest.act(&mut self.ledger, hostile);
            }
            if hostile && self.rng.chance(1, 24) {
                guest.function();
            }
            if self.rng.chance(1, 2) {
                guest.take(&mut self.ledger)?;
            }
            self.appliance.machine.rounds(self.rng.below(6));
            if hostile && self.rng.chance(1, 40) {
                self.reserve()?;
            }
        }
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        loop {
            self.appliance.machine.run();
            for guest in &mut self.guests {
                guest.take(&mut self.ledger)?;
                guest.asked.ensure_none()?;
            }
            let mut left = false;
            for guest in &mut self.guests {
                let mut ids: Vec<_> = guest.background.keys().copied().collect();
                ids.sort_unstable();
                left |= !ids.is_empty();
                for (manager, id) in ids {
                    guest.submit(manager, Doing::Status(manager, id), &copy::status(id, 64), &[], 64);
                }
            }
            if !left {
                return Ok(());
            }
        }
    }

    /// One guest has a disk to itself for a while.
    fn reserve(&mut self) -> Result<()> {
        let (guest, disk) = (self.rng.index(NAMES.len()), self.rng.index(DISKS));
        let mut list = [0; 24];
        list[15] = 9;
        self.good(guest, &Command::new(lun(disk), &[0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0))?;
        list = [0; 24];
        list[7] = 9;
        self.good(guest, &Command::new(lun(disk), &[0x5F, 1, 3, 0, 0, 0, 0, 0, 24, 0], &list, 0))?;
        for _ in 0..6 {
            for guest in &mut self.guests {
                guest.act(&mut self.ledger, false);
            }
            self.appliance.machine.rounds(self.rng.below(20));
        }
        self.good(guest, &Command::new(lun(disk), &[0x5F, 3, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0))?;
        Ok(())
    }

    /// One command, answered GOOD; other answers that come meanwhile are taken.
    fn good(&mut self, guest: usize, command: &Command<'_>) -> Result<Vec<u8>> {
        for _ in 0..40 {
            let ticket = loop {
                if let Some(ticket) = self.guests[guest].front.submit(FIRST_REQUEST_QUEUE, command) {
                    break ticket;
                }
                self.appliance.machine.rounds(4);
                self.guests[guest].take(&mut self.ledger)?;
            };
            let response = loop {
                self.appliance.machine.rounds(4);
                let at = &mut self.guests[guest];
                if let Some((answered, response)) = at.front.poll(FIRST_REQUEST_QUEUE)? {
                    if answered == ticket {
                        break response;
                    }
                    let (manager, doing) = at.asked.answered((FIRST_REQUEST_QUEUE, answered))?;
                    at.answered(manager, doing, &response, &mut self.ledger)?;
                }
            };
            if response.good() {
                return Ok(response.data);
            }
            ensure!(matches!(response.sense_key(), Some((6, ..))) || response.status == 8, "{response:?}");
        }
        Err(anyhow!("unit attentions without end"))
    }

    fn judge(&mut self) -> Result<()> {
        for disk in 0..DISKS {
            for lba in (0..SLOTS as u64 * SLOT_BLOCKS).step_by(100) {
                let read = cdb::read16(lba, 100);
                let data = self.good(0, &Command::new(lun(disk), &read, &[], 100 * BLOCK))?;
                for (block, at) in data.chunks(BLOCK).zip(lba..) {
                    let stamp = u64::from_le_bytes(block[..8].try_into()?);
                    ensure!(block == stamp.to_le_bytes().repeat(BLOCK / 8), "disk {disk} block {at} is torn");
                    let allowed = &self.ledger.blocks[disk][at as usize];
                    ensure!(allowed.contains(&stamp), "disk {disk} block {at} holds {stamp}, not one of {allowed:?}");
                }
            }
        }
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

fn seeds(few: u64) -> Range<u64> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first.map_or(0..count, |first| first..first + 1)
}

fn for_seeds(few: u64, mut test: impl FnMut(u64) -> Result<()>) -> Result<()> {
    seeds(few)
        .try_for_each(|seed| test(seed).with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)")))
}

#[test]
fn what_arrives_is_what_was_there() -> Result<()> {
    for_seeds(6, |seed| {
        let mut scene = Scene::new(seed)?;
        scene.run(1500, false)?;
        scene.judge()?;
        let together = scene.appliance.machine.helpers().done();
        ensure!((together > 5) == (seed % 2 == 1), "the devices were asked {together} times");
        let ledger = scene.end()?;
        ensure!(
            ledger.copied > 30 && ledger.in_background > 5,
            "hardly a copy: {}, {} in background",
            ledger.copied,
            ledger.in_background
        );
        Ok(())
    })
}

#[test]
fn copies_that_are_ended_or_refused_leave_nothing_else_behind() -> Result<()> {
    let (mut ended, mut refused, mut copied) = (0, 0, 0);
    for_seeds(10, |seed| {
        let mut scene = Scene::new(seed)?;
        scene.run(1200, true)?;
        scene.judge()?;
        let ledger = scene.end()?;
        (ended, refused, copied) = (ended + ledger.ended, refused + ledger.refused, copied + ledger.copied);
        Ok(())
    })?;
    ensure!(ended > 20 && copied > 100, "{ended} ended early, {copied} done");
    ensure!(refused > 5 || seeds(10).count() < 10, "{refused} refused by a reservation");
    Ok(())
}
