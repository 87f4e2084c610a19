//! Storms of aborts and resets: four guests on two disks that they share, on several reactors, with every task
//! attribute, claims, jobs, reservations that are preempted, sessions that die, and queues that move. Each answer is
//! judged:
//!
//! - Every command and function is answered once, and a function not before the commands in its scope.
//! - Memory of an answered command is the guest's: it is overwritten at once, and what the device still does with it
//!   shows there or on the disk.
//! - What is read has to be possible given what was written; no increment by COMPARE AND WRITE is lost.
//! - Within a queue an ORDERED command is answered behind what came before it and before what comes after. While it is
//!   with the device nothing else is; while one with HEAD OF QUEUE is, nothing else begins. Each kind has its own part
//!   of the disk, so that it is known by its address.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, Lun, Response, SCRIBBLE, Ticket, Tmf, cdb,
};
use pollux_tests::model::{Model, OpId};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{
    DiskId, Name, PATIENT, SimAppliance, SimBdev, SimWorld, Transfer, backing, filled, unit_of, value_of,
};

const BLOCK: usize = 512;
const BLOCKS: u64 = 512;
const REACTORS: usize = 3;
const DISKS: usize = 2;
const NAMES: [&str; 4] = ["one", "two", "three", "four"];
/// Commands of one guest at once.
const MOST: usize = 24;

/// Which part of a disk a command works on, and thereby which task attribute it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Simple,
    Ordered,
    Head,
    /// COMPARE AND WRITE that is SIMPLE.
    Atomic,
    /// VERIFY.
    Job,
}

impl Part {
    fn of(offset: u64) -> Part {
        match offset / BLOCK as u64 {
            0..128 => Part::Simple,
            128..192 => Part::Ordered,
            192..256 => Part::Head,
            256..320 => Part::Atomic,
            _ => Part::Job,
        }
    }

    const fn attribute(self) -> u8 {
        match self {
            Part::Ordered => 1,
            Part::Head => 2,
            _ => 0,
        }
    }

    /// Blocks for READ and WRITE.
    const fn blocks(self) -> std::ops::Range<u64> {
        match self {
            Part::Simple => 0..128,
            Part::Ordered => 128..176,
            Part::Head => 192..240,
            Part::Atomic => 256..257,
            Part::Job => 320..512,
        }
    }

    /// Two blocks that hold a counter.
    const fn counter(self) -> u64 {
        match self {
            Part::Ordered => 184,
            Part::Head => 248,
            _ => 256,
        }
    }
}

#[derive(Debug)]
enum Doing {
    Read(OpId),
    Write(OpId),
    Increment {
        part: Part,
        from: u64,
    },
    Look {
        part: Part,
        at_least: u64,
    },
    Reserve,
    /// It waits for nobody's turn, unless it is ORDERED.
    Preempt,
    Other,
}

struct Sent {
    disk: usize,
    part: Part,
    doing: Doing,
    /// Which of its queue's commands it is.
    number: u64,
}

/// What all guests have done to one disk.
struct Ledger {
    model: Model,
    good: HashMap<u64, u64>,
    unknown: HashMap<u64, u64>,
    replaced: std::collections::HashSet<(u64, u64)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    good: u64,
    early: u64,
    told: u64,
    conflicts: u64,
    miscompares: u64,
    increments: u64,
    functions: u64,
    found: u64,
    sessions: u64,
    moved: u64,
    /// Rounds in which an ORDERED command, or one with HEAD OF QUEUE, was with a device.
    ordered: u64,
    head: u64,
    clock: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        let sums = [&mut self.good, &mut self.early, &mut self.told, &mut self.conflicts, &mut self.miscompares];
        let more = [other.good, other.early, other.told, other.conflicts, other.miscompares];
        sums.into_iter().zip(more).for_each(|(sum, more)| *sum += more);
        let sums = [&mut self.increments, &mut self.functions, &mut self.found, &mut self.sessions, &mut self.moved];
        let more = [other.increments, other.functions, other.found, other.sessions, other.moved];
        sums.into_iter().zip(more).for_each(|(sum, more)| *sum += more);
        (self.ordered, self.head) = (self.ordered + other.ordered, self.head + other.head);
        self.clock += other.clock;
    }
}

struct Function {
    scope: Vec<Name>,
    query: bool,
}

struct Guest {
    front: FrontEnd,
    key: u64,
    rng: Rng,
    known: HashMap<(usize, u64), u64>,
    in_flight: BTreeMap<Name, Sent>,
    functions: HashMap<Ticket, Function>,
    sent: HashMap<usize, u64>,
}

fn lun(disk: usize) -> Lun {
    Lun::new(0, disk as u16)
}

impl Guest {
    fn connect(appliance: &mut SimAppliance, at: usize, seed: u64) -> Result<Guest> {
        let mut rng = Rng::new(seed);
        let options = DriverOptions {
            request_queues: rng.between(2, 4) as usize,
            queue_size: 64,
            event_idx: rng.chance(1, 2),
            indirect: rng.chance(1, 2),
            memory: vec![(0x10_0000, 16 << 20)],
            seed,
            ..DriverOptions::default()
        };
        let mut front = appliance.connect(NAMES[at], &options)?;
        front.driver.scribble(rng.between(8, 64) as usize);
        let (in_flight, functions, sent) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Ok(Guest { front, key: at as u64 + 1, rng, known: HashMap::new(), in_flight, functions, sent })
    }

    fn submit(&mut self, disk: usize, part: Part, doing: Doing, cdb: &[u8], out: &[u8], len: usize) -> Option<Doing> {
        let queues = self.front.driver.queues.len() - FIRST_REQUEST_QUEUE;
        let queue = FIRST_REQUEST_QUEUE + self.rng.index(queues);
        let framing = if self.rng.chance(1, 2) { Framing::random(&mut self.rng) } else { Framing::PLAIN };
        let task_attr = part.attribute();
        let command = Command { framing, task_attr, ..Command::new(lun(disk), cdb, out, len) };
        let Some(ticket) = self.front.driver.submit(queue, &command) else { return Some(doing) };
        let number = self.sent.entry(queue).or_default();
        *number += 1;
        self.in_flight.insert((queue, ticket), Sent { disk, part, doing, number: *number });
        if self.rng.chance(2, 3) {
            self.front.driver.queues[queue].flush();
        }
        None
    }

    fn act(&mut self, ledgers: &mut [Ledger]) {
        if self.in_flight.len() >= MOST {
            return;
        }
        let disk = self.rng.index(DISKS);
        let ledger = &mut ledgers[disk];
        let part = match self.rng.below(12) {
            0..7 => Part::Simple,
            7..9 => Part::Ordered,
            9 => Part::Head,
            10 => Part::Atomic,
            _ => Part::Job,
        };
        match (self.rng.below(16), part) {
            (_, Part::Job) => {
                let verify = cdb::verify16(320, self.rng.between(1, 192) as u32, 0);
                self.submit(disk, part, Doing::Other, &verify, &[], 0);
            }
            (0..3, Part::Ordered | Part::Head) | (0..10, Part::Atomic) => {
                let from = self.known.get(&(disk, part.counter())).copied().unwrap_or(0);
                let out = [filled(from, 2 * BLOCK), filled(from + 1, 2 * BLOCK)].concat();
                let cdb = cdb::compare_and_write(part.counter(), 2, self.rng.chance(1, 4));
                self.submit(disk, part, Doing::Increment { part, from }, &cdb, &out, 0);
            }
            (3..5, Part::Ordered | Part::Head) | (_, Part::Atomic) => {
                let at_least = ledger.good.get(&part.counter()).copied().unwrap_or(0);
                let cdb = cdb::read10(part.counter() as u32, 2);
                self.submit(disk, part, Doing::Look { part, at_least }, &cdb, &[], 2 * BLOCK);
            }
            (5, _) => self.question(disk, part),
            (6, _) if self.rng.chance(1, 2) => self.reserve(disk, part),
            (pick, _) => {
                let blocks = part.blocks();
                let count = self.rng.between(1, 16);
                let first = blocks.start + self.rng.below(blocks.end - blocks.start - count + 1);
                let failed = if pick % 2 == 0 {
                    let op = ledger.model.begin_read(first, count);
                    let read = cdb::read10(first as u32, count as u16);
                    self.submit(disk, part, Doing::Read(op), &read, &[], count as usize * BLOCK)
                } else {
                    let (op, data) = ledger.model.begin_write(first, count);
                    let write = cdb::write10(first as u32, count as u16, self.rng.chance(1, 4));
                    self.submit(disk, part, Doing::Write(op), &write, &data, 0)
                };
                match failed {
                    Some(Doing::Read(op)) => ledger.model.end_failed_read(op),
                    Some(Doing::Write(op)) => ledger.model.end_write(op, false, false),
                    _ => {}
                }
            }
        }
    }

    /// Something that touches no block, or all of them.
    fn question(&mut self, disk: usize, part: Part) {
        match self.rng.below(4) {
            0 => self.submit(disk, part, Doing::Other, &cdb::TEST_UNIT_READY, &[], 0),
            1 => self.submit(disk, part, Doing::Other, &cdb::sync10(), &[], 0),
            2 => self.submit(disk, part, Doing::Other, &cdb::mode_sense10(8), &[], 252),
            _ => {
                // The write cache stays on.
                let (select, list) = cdb::set_wce(true);
                self.submit(disk, part, Doing::Other, &select, &list, 0)
            }
        };
    }

    /// Registers, reserves for all who are registered, or preempts somebody.
    fn reserve(&mut self, disk: usize, part: Part) {
        const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
        let (action, from, to) = match self.rng.below(4) {
            0 | 1 => (6, 0, self.key),
            2 => (1, self.key, 0),
            _ => (5, self.key, 1 + self.rng.below(NAMES.len() as u64)),
        };
        let cdb = [0x5F, action, if action == 6 { 0 } else { WRITE_EXCLUSIVE_REGISTRANTS_ONLY }, 0, 0, 0, 0, 0, 24, 0];
        let list = [from.to_be_bytes(), to.to_be_bytes(), [0; 8]].concat();
        let doing = if action == 5 { Doing::Preempt } else { Doing::Reserve };
        self.submit(disk, part, doing, &cdb, &list, 0);
    }

    fn function(&mut self) {
        let all: Vec<Name> = self.in_flight.keys().copied().collect();
        if all.is_empty() || self.functions.len() > 6 {
            return;
        }
        let one = all[self.rng.index(all.len())];
        let disk = self.in_flight[&one].disk;
        let of_disk = || all.iter().copied().filter(|name| self.in_flight[name].disk == disk).collect::<Vec<_>>();
        let (function, scope) = match self.rng.below(12) {
            0..4 => (Tmf::AbortTask, vec![one]),
            4 => (Tmf::AbortTaskSet, of_disk()),
            5 => (Tmf::ClearTaskSet, of_disk()),
            6 => (Tmf::LunReset, of_disk()),
            7 => (Tmf::NexusReset, all),
            8 | 9 => (Tmf::QueryTask, vec![one]),
            _ => (Tmf::QueryTaskSet, of_disk()),
        };
        // All that the device can see when it is asked is in scope.
        self.front.driver.queues[FIRST_REQUEST_QUEUE..].iter_mut().for_each(pollux_tests::guest::Queue::flush);
        let tag = if scope.len() == 1 { scope[0].1 } else { one.1 };
        if let Some(ticket) = self.front.driver.submit_tmf(function, lun(disk).bytes(), tag) {
            let query = matches!(function, Tmf::QueryTask | Tmf::QueryTaskSet);
            self.functions.insert(ticket, Function { scope, query });
        }
        self.front.driver.queues[CONTROL_QUEUE].flush();
    }

    fn take(&mut self, ledgers: &mut [Ledger], tally: &mut Tally) -> Result<()> {
        let mut ended = Vec::new();
        let wrong = |why| anyhow!("control queue: {why:?}");
        while let Some((ticket, response, ..)) = self.front.driver.poll_raw(CONTROL_QUEUE).map_err(wrong)? {
            let function = self.functions.remove(&ticket).context("a function that nobody asked for")?;
            ensure!(response[0] == 0 || (function.query && response[0] == 10), "a function ended with {}", response[0]);
            ended.push((function, response[0]));
        }
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((ticket, response)) = self.front.poll(queue)? {
                let sent = self.in_flight.remove(&(queue, ticket)).context("an answer that nobody asked for")?;
                self.in_order(queue, &sent, &response)?;
                self.answered(&sent, &response, &mut ledgers[sent.disk], tally)
                    .with_context(|| format!("{:?} on {:?} of disk {}", sent.doing, sent.part, sent.disk))?;
            }
        }
        for (Function { scope, query }, answer) in ended {
            let left = scope.iter().filter(|name| self.in_flight.contains_key(name)).count();
            ensure!(query || left == 0, "{left} commands outlive the function that was to end them");
            ensure!(!query || left == 0 || answer == 10, "a query does not find {left} commands that are there");
            (tally.functions, tally.found) = (tally.functions + 1, tally.found + u64::from(answer == 10));
        }
        Ok(())
    }

    /// What comes after an ORDERED command of its queue and disk is answered after it, and that after all before it.
    fn in_order(&self, queue: usize, sent: &Sent, response: &Response) -> Result<()> {
        let urgent = matches!(sent.doing, Doing::Preempt) && sent.part != Part::Ordered;
        if response.response != 0 || sent.part == Part::Head || urgent {
            return Ok(());
        }
        let earlier = self.in_flight.iter().filter(|((of, _), other)| *of == queue && other.number < sent.number);
        let overtaken = earlier
            .filter(|(_, other)| other.disk == sent.disk)
            .find(|(_, other)| sent.part == Part::Ordered || other.part == Part::Ordered);
        match overtaken {
            None => Ok(()),
            Some((_, other)) => bail!(
                "queue {queue}: {:?} of {:?} is answered before {:?} of {:?}",
                sent.doing,
                sent.part,
                other.doing,
                other.part
            ),
        }
    }

    fn answered(&mut self, sent: &Sent, response: &Response, ledger: &mut Ledger, tally: &mut Tally) -> Result<()> {
        let sense = response.sense_key();
        let good = response.good();
        let early = matches!(response.response, 2 | 4);
        let told = response.response == 0 && matches!(sense, Some((6, ..)));
        let conflict = response.response == 0 && response.status == 0x18;
        let miscompare = matches!(sent.doing, Doing::Increment { .. }) && sense == Some((0xE, 0x1D, 0));
        // PREEMPT AND ABORT of a key that nobody has.
        let refused = matches!(sent.doing, Doing::Preempt) && matches!(sense, Some((5, ..)));
        ensure!(good || early || told || conflict || miscompare || refused, "{response:?}");
        tally.good += u64::from(good);
        tally.early += u64::from(early);
        tally.told += u64::from(told);
        tally.conflicts += u64::from(conflict);
        tally.miscompares += u64::from(miscompare);
        match sent.doing {
            Doing::Read(op) if good => ledger.model.end_read(op, &response.data).map_err(|why| anyhow!(why))?,
            Doing::Read(op) => ledger.model.end_failed_read(op),
            Doing::Write(op) => ledger.model.end_write(op, good, false),
            Doing::Increment { part, from } if good => {
                tally.increments += 1;
                *ledger.good.entry(part.counter()).or_default() += 1;
                ensure!(ledger.replaced.insert((part.counter(), from)), "{from} was replaced twice");
                self.known.insert((sent.disk, part.counter()), from + 1);
            }
            Doing::Increment { part, .. } => {
                *ledger.unknown.entry(part.counter()).or_default() += u64::from(early);
            }
            Doing::Look { part, at_least } if good => {
                let value = value_of(&response.data)?;
                ensure!(value >= at_least, "the counter was {at_least} and is {value}");
                self.known.insert((sent.disk, part.counter()), value);
            }
            _ => {}
        }
        Ok(())
    }

    /// Its commands are never answered.
    fn abandon(self, ledgers: &mut [Ledger]) -> FrontEnd {
        for sent in self.in_flight.into_values() {
            let ledger = &mut ledgers[sent.disk];
            match sent.doing {
                Doing::Read(op) | Doing::Write(op) => ledger.model.abandon(op),
                Doing::Increment { part, .. } => *ledger.unknown.entry(part.counter()).or_default() += 1,
                _ => {}
            }
        }
        self.front
    }
}

/// What happens beside the commands.
#[derive(Clone, Copy, Default)]
struct Beside {
    functions: bool,
    moves: bool,
    deaths: bool,
}

struct Storm {
    world: SimWorld,
    appliance: SimAppliance,
    guests: Vec<Guest>,
    disks: Vec<DiskId>,
    ledgers: Vec<Ledger>,
    rng: Rng,
    before: Vec<Transfer>,
    tally: Tally,
}

impl Storm {
    fn new(seed: u64) -> Result<Storm> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 100_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        let (mut disks, mut luns, mut ledgers) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..DISKS {
            let name = format!("disk{number}");
            let bdev = SimBdev::new(&world, BLOCKS * BLOCK as u64);
            disks.push(bdev.disk());
            let unit = unit_of(&name, &bdev);
            let device: Arc<dyn Bdev> = Arc::new(bdev);
            luns.push((0, number as u16, backing(&name, &unit, &device)));
            let mut model = Model::new(BLOCK, 256);
            model.without_crashes();
            let (good, unknown, replaced) = (HashMap::new(), HashMap::new(), Default::default());
            ledgers.push(Ledger { model, good, unknown, replaced });
        }
        let mut guests = Vec::new();
        for (at, name) in NAMES.iter().enumerate() {
            appliance.controller(name, &luns)?;
            guests.push(Guest::connect(&mut appliance, at, seed * 16 + at as u64)?);
        }
        let (rng, before, tally) = (Rng::new(seed ^ 0x57012), Vec::new(), Tally::default());
        Ok(Storm { world, appliance, guests, disks, ledgers, rng, before, tally })
    }

    fn run(&mut self, steps: u64, beside: Beside) -> Result<()> {
        for step in 0..steps {
            act(&mut self.guests, &mut self.rng, &mut self.ledgers, &mut self.tally, beside.functions)?;
            for _ in 0..self.rng.below(5) {
                self.appliance.machine.rounds(1);
                self.look()?;
            }
            if beside.moves && self.rng.chance(1, 40) {
                self.move_one()?;
            }
            if beside.deaths && self.rng.chance(1, 150) {
                self.die(step)?;
            }
        }
        self.settle()
    }

    /// Who is with the devices, and who has just come there.
    fn look(&mut self) -> Result<()> {
        let now = self.world.transfers();
        for &disk in &self.disks {
            let of_disk = |all: &[Transfer]| -> Vec<(Part, Transfer)> {
                let of_disk = all.iter().filter(|transfer| transfer.disk == disk);
                of_disk.map(|transfer| (Part::of(transfer.offset), *transfer)).collect()
            };
            let (now, before) = (of_disk(&now), of_disk(&self.before));
            let ordered = now.iter().filter(|(part, _)| *part == Part::Ordered).count();
            let others = now.iter().filter(|(part, _)| !matches!(part, Part::Ordered | Part::Head)).count();
            ensure!(ordered == 0 || (ordered, others) == (1, 0), "beside an ORDERED command are others: {now:?}");
            let head = before.iter().any(|transfer| transfer.0 == Part::Head && now.contains(transfer));
            let begun = |transfer: &&(Part, Transfer)| {
                // COMPARE AND WRITE has a second transfer.
                let is_first = transfer.0.blocks().contains(&(transfer.1.offset / BLOCK as u64));
                matches!(transfer.0, Part::Simple | Part::Ordered) && is_first && !before.contains(transfer)
            };
            let begun = now.iter().find(begun).filter(|_| head);
            ensure!(begun.is_none(), "{begun:?} has begun beside a command with HEAD OF QUEUE");
            (self.tally.ordered, self.tally.head) =
                (self.tally.ordered + ordered as u64, self.tally.head + u64::from(head));
        }
        self.before = now;
        Ok(())
    }

    fn move_one(&mut self) -> Result<()> {
        while self.guests.iter().any(|guest| !guest.functions.is_empty()) {
            act(&mut self.guests, &mut self.rng, &mut self.ledgers, &mut self.tally, false)?;
            self.appliance.machine.rounds(1);
        }
        let Storm { appliance, guests, rng, ledgers, tally, .. } = self;
        let moved = appliance.move_one(rng, |rng| act(guests, rng, ledgers, tally, false))?;
        self.tally.moved += u64::from(moved);
        self.before.clear();
        Ok(())
    }

    /// A VMM dies with all that it has in flight, and another takes its place.
    fn die(&mut self, step: u64) -> Result<()> {
        let at = self.rng.index(NAMES.len());
        let guest = self.guests.remove(at);
        let known = guest.known.clone();
        let front = guest.abandon(&mut self.ledgers);
        self.appliance.disconnect(front);
        let mut guest = Guest::connect(&mut self.appliance, at, self.rng.next_u64() ^ step)?;
        guest.known = known;
        self.guests.insert(at, guest);
        self.tally.sessions += 1;
        self.before.clear();
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        for guest in &mut self.guests {
            guest.front.driver.queues.iter_mut().for_each(pollux_tests::guest::Queue::flush);
        }
        self.appliance.machine.run();
        // A queue that was left alone for a moment is looked at again when time has passed, and no time passes in an
        // idle world.
        self.world.tick(100_000);
        self.appliance.machine.run();
        for guest in &mut self.guests {
            guest.take(&mut self.ledgers, &mut self.tally)?;
            let (commands, functions) = (guest.in_flight.len(), guest.functions.len());
            ensure!(commands + functions == 0, "idle with {commands} commands and {functions} functions unanswered");
            guest.front.driver.inspect().map_err(|why| anyhow!("{why:?}"))?;
        }
        Ok(())
    }

    /// What is on the disks in the end.
    fn judge(&mut self) -> Result<()> {
        for (ledger, disk) in self.ledgers.iter_mut().zip(&self.disks) {
            let content = self.world.disk(*disk, |disk| disk.visible().to_vec());
            let late = content.chunks(BLOCK).position(|block| block.iter().all(|byte| *byte == SCRIBBLE));
            ensure!(late.is_none(), "block {late:?} was written from memory of a command that had been answered");
            for part in [Part::Simple, Part::Ordered, Part::Head] {
                let blocks = part.blocks();
                let read = ledger.model.begin_read(blocks.start, blocks.end - blocks.start);
                let bytes = blocks.start as usize * BLOCK..blocks.end as usize * BLOCK;
                ledger.model.end_read(read, &content[bytes]).map_err(|why| anyhow!("in the end: {why}"))?;
            }
            for part in [Part::Ordered, Part::Head, Part::Atomic] {
                let at = part.counter() as usize * BLOCK;
                let value = value_of(&content[at..at + 2 * BLOCK])?;
                let of = |sums: &HashMap<u64, u64>| sums.get(&part.counter()).copied().unwrap_or(0);
                let (good, unknown) = (of(&ledger.good), of(&ledger.unknown));
                ensure!(
                    (good..=good + unknown).contains(&value),
                    "a counter is {value} after {good} increments and {unknown} that were ended early"
                );
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<Tally> {
        self.tally.clock = self.world.now();
        for guest in self.guests {
            self.appliance.disconnect(guest.front);
        }
        self.appliance.shutdown()?;
        Ok(self.tally)
    }
}

fn act(guests: &mut [Guest], rng: &mut Rng, ledgers: &mut [Ledger], tally: &mut Tally, functions: bool) -> Result<()> {
    let guest = &mut guests[rng.index(NAMES.len())];
    for _ in 0..rng.below(4) {
        guest.act(ledgers);
    }
    if functions && rng.chance(1, 12) {
        guest.function();
    }
    if rng.chance(1, 2) { guest.take(ledgers, tally) } else { Ok(()) }
}

fn storm(seeds: std::ops::RangeInclusive<u64>, steps: u64, beside: Beside) -> Result<Tally> {
    let mut sum = Tally::default();
    for seed in seeds {
        let mut storm = Storm::new(seed)?;
        storm.run(steps, beside).and_then(|()| storm.judge()).with_context(|| format!("seed {seed}"))?;
        sum.add(&storm.end()?);
    }
    Ok(sum)
}

#[test]
fn order_is_kept_by_all_attributes_at_once() -> Result<()> {
    let tally = storm(1..=8, 800, Beside::default())?;
    let Tally { good, ordered, head, increments, .. } = tally;
    ensure!(good > 2500 && ordered > 1000 && head > 500 && increments > 40, "{tally:?}");
    Ok(())
}

#[test]
fn a_storm_of_functions_loses_doubles_and_delays_nothing() -> Result<()> {
    let tally = storm(21..=32, 800, Beside { functions: true, ..Beside::default() })?;
    let Tally { good, early, functions, found, ordered, conflicts, told, .. } = tally;
    ensure!(good > 2000 && early > 500 && functions > 500 && found > 30, "{tally:?}");
    ensure!(ordered > 500 && conflicts > 30 && told > 500, "{tally:?}");
    Ok(())
}

#[test]
fn a_storm_while_queues_move_and_sessions_die() -> Result<()> {
    let all = Beside { functions: true, moves: true, deaths: true };
    let tally = storm(41..=48, 600, all)?;
    let Tally { good, early, moved, sessions, .. } = tally;
    ensure!(good > 1000 && early > 200 && moved > 30 && sessions > 15, "{tally:?}");
    // When a session ends is up to the real clock.
    let again = Beside { deaths: false, ..all };
    ensure!(storm(51..=51, 200, again)? == storm(51..=51, 200, again)?, "a run is its seed");
    Ok(())
}
