//! Copies by tokens in the storm: two guests on two disks that they share, on several reactors, make tokens, write over
//! what those stand for, and write by them, while commands are aborted and disks are reset.
//!
//! What is judged: what was written by a token is what its source held at one moment between the beginning and the end of
//! the command that made it, or the command that was to write it says that it has failed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Blocks, Segment};
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, Ticket, Tmf, cdb,
};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_with_medium};

const BLOCK: usize = 512;
const REACTORS: usize = 3;
const NAMES: [&str; 2] = ["one", "other"];
const DISKS: usize = 2;
/// Places that tokens stand for, and places that are written by them.
const SLOT_BLOCKS: u64 = 600;
const SOURCES: u64 = 4;
const DESTINATIONS: u64 = 4;
const MOST_TOKENS: usize = 6;

const fn lun(disk: usize) -> Lun {
    Lun::new(0, disk as u16)
}

/// A moment, counted in what the guests do and are told.
type Moment = u64;

/// What was written to a range of a disk.
#[derive(Clone, Debug)]
struct Written {
    stamp: u64,
    blocks: std::ops::Range<u64>,
    began: Moment,
    /// When it was known to be done; `None`: it may have been done, at any time, or not at all.
    done: Option<Moment>,
}

/// A token, and when what it stands for was there.
#[derive(Clone, Debug)]
struct Token {
    bytes: Vec<u8>,
    disk: usize,
    ranges: Vec<Blocks>,
    from: Moment,
    to: Moment,
}

/// What is written by a token.
#[derive(Clone, Debug)]
struct Use {
    token: Token,
    /// Blocks of the token that are left out.
    offset: u64,
    blocks: u64,
    place: (usize, u64),
}

#[derive(Clone, Debug)]
enum Doing {
    Write {
        disk: usize,
        stamp: u64,
    },
    Populate {
        token: Token,
        id: u32,
    },
    Information {
        token: Token,
    },
    Use(Use),
    Judge(Use),
    /// Something that no data comes of.
    Other,
}

#[derive(Default)]
struct Ledger {
    now: Moment,
    /// Of each disk, in the order in which they began.
    writes: [Vec<Written>; DISKS],
    tokens: Vec<Token>,
    /// Destinations that somebody writes or judges.
    taken: Vec<(usize, u64)>,
    next_stamp: u64,
    used: u64,
    revoked: u64,
    ended: u64,
}

impl Ledger {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// Who may have written what a block holds, by its stamp; 0 is what it held in the beginning.
    fn writer(&self, disk: usize, block: u64, stamp: u64) -> Option<Written> {
        if stamp == 0 {
            return Some(Written { stamp, blocks: block..block + 1, began: 0, done: Some(0) });
        }
        self.writes[disk].iter().find(|write| write.stamp == stamp && write.blocks.contains(&block)).cloned()
    }

    /// When this may have been the last that was written to a block: until what certainly came after it was done.
    fn last_until(&self, disk: usize, block: u64, write: &Written) -> Moment {
        let Some(done) = write.done else { return Moment::MAX };
        let later = self.writes[disk].iter().filter(|other| other.blocks.contains(&block) && other.began > done);
        later.filter_map(|other| other.done).min().unwrap_or(Moment::MAX)
    }

    /// Whether data is what the token stood for at one moment.
    fn judge(&self, used: &Use, data: &[u8]) -> Result<()> {
        let token = &used.token;
        let source = token.ranges.iter().flat_map(|(lba, count)| *lba..lba + u64::from(*count));
        let (mut least, mut most) = (token.from, token.to);
        let mut seen: Vec<(u64, Written)> = Vec::new();
        for (block, bytes) in source.skip(used.offset as usize).take(used.blocks as usize).zip(data.chunks(BLOCK)) {
            let stamp = u64::from_le_bytes(bytes[..8].try_into()?);
            ensure!(bytes == stamp.to_le_bytes().repeat(BLOCK / 8), "block {block} is torn");
            let write = self.writer(token.disk, block, stamp);
            let write = write.with_context(|| format!("block {block} never held {stamp}"))?;
            (least, most) = (least.max(write.began), most.min(self.last_until(token.disk, block, &write)));
            seen.push((block, write));
        }
        ensure!(least <= most, "of no moment: from {least} to {most}; {token:?}");
        // What is there of a write is all of it that nothing later or beside it has overwritten, if it was not ended early.
        for (_, write) in seen.iter().filter(|(_, write)| write.done.is_some()) {
            for (block, other) in seen.iter().filter(|(block, _)| write.blocks.contains(block)) {
                let before = other.done.is_some_and(|done| done < write.began);
                ensure!(!before, "block {block} holds {}, older than {}", other.stamp, write.stamp);
            }
        }
        Ok(())
    }
}

struct Guest {
    front: FrontEnd,
    rng: Rng,
    in_flight: HashMap<(usize, Ticket), Doing>,
    functions: HashSet<Ticket>,
    /// What is to be asked next.
    due: Vec<(usize, Doing, [u8; 16], usize)>,
    next_id: u32,
    names: [[u8; 16]; DISKS],
}

impl Guest {
    fn submit(&mut self, disk: usize, doing: Doing, cdb: &[u8], out: &[u8], in_len: usize) -> bool {
        let queues = self.front.driver.queues.len() - FIRST_REQUEST_QUEUE;
        let queue = FIRST_REQUEST_QUEUE + self.rng.index(queues);
        let Some(ticket) = self.front.submit(queue, &Command::new(lun(disk), cdb, out, in_len)) else { return false };
        self.in_flight.insert((queue, ticket), doing);
        true
    }

    fn act(&mut self, ledger: &mut Ledger, writes: u64) {
        if let Some((disk, doing, cdb, len)) = self.due.pop()
            && !self.submit(disk, doing.clone(), &cdb, &[], len)
        {
            self.due.push((disk, doing, cdb, len));
        }
        if self.in_flight.len() >= 16 {
            return;
        }
        match self.rng.below(10) {
            n if n < writes => self.write(ledger),
            0..5 => self.populate(ledger),
            5..9 => self.use_token(ledger),
            _ => {
                let (disk, lba) = (self.rng.index(DISKS), self.rng.below(SOURCES * SLOT_BLOCKS - 8));
                self.submit(disk, Doing::Other, &cdb::read16(lba, 8), &[], 8 * BLOCK);
            }
        }
    }

    /// Changes a part of a source, in one of the ways that there are.
    fn write(&mut self, ledger: &mut Ledger) {
        let disk = self.rng.index(DISKS);
        let (slot, blocks) = (self.rng.below(SOURCES), self.rng.between(1, 40));
        let lba = slot * SLOT_BLOCKS + self.rng.below(SLOT_BLOCKS - blocks + 1);
        ledger.next_stamp += 1;
        let mut stamp = ledger.next_stamp;
        let filled = |stamp: u64, blocks: u64| stamp.to_le_bytes().repeat(BLOCK / 8 * blocks as usize);
        let (cdb, out, in_len) = match self.rng.below(6) {
            0 => (cdb::write_same16(lba, blocks as u32, false, false), filled(stamp, 1), 0),
            1 => (cdb::write_and_verify16(lba, blocks as u32, 1), filled(stamp, blocks), 0),
            2 => {
                // By a copy; of what, is nobody's: no token stands for it.
                stamp = 0;
                let segment = Segment { source: 0xFFFF, destination: 0xFFFF, blocks: 0, from: 0, to: lba };
                let (cdb, list) = copy::lid1(0, 3, &self.names, &[segment]);
                (cdb, list, 0)
            }
            _ => (cdb::write16(lba, blocks as u32, false), filled(stamp, blocks), 0),
        };
        let doing = if stamp == 0 { Doing::Other } else { Doing::Write { disk, stamp } };
        let began = ledger.tick();
        if self.submit(disk, doing, &cdb, &out, in_len) && stamp != 0 {
            ledger.writes[disk].push(Written { stamp, blocks: lba..lba + blocks, began, done: None });
        }
    }

    fn populate(&mut self, ledger: &mut Ledger) {
        let (disk, slot) = (self.rng.index(DISKS), self.rng.below(SOURCES));
        let first = slot * SLOT_BLOCKS;
        let middle = self.rng.between(1, SLOT_BLOCKS - 1);
        let (head, tail) = (self.rng.between(1, middle), self.rng.between(1, SLOT_BLOCKS - middle));
        let mut ranges = vec![(first + middle, tail as u32), (first, head as u32)];
        if self.rng.chance(1, 3) {
            ranges.truncate(1);
        }
        self.next_id += 1;
        let (id, from) = (self.next_id, ledger.tick());
        let (cdb, list) = copy::populate(id, false, 0, &ranges);
        let token = Token { bytes: Vec::new(), disk, ranges, from, to: 0 };
        self.submit(disk, Doing::Populate { token, id }, &cdb, &list, 0);
    }

    fn use_token(&mut self, ledger: &mut Ledger) {
        let place = (self.rng.index(DISKS), self.rng.below(DESTINATIONS));
        if ledger.tokens.is_empty() || ledger.taken.contains(&place) {
            return;
        }
        let token = ledger.tokens[self.rng.index(ledger.tokens.len())].clone();
        let all: u64 = token.ranges.iter().map(|(_, count)| u64::from(*count)).sum();
        let blocks = self.rng.between(1, all);
        let offset = self.rng.below(all - blocks + 1);
        let lba = (SOURCES + place.1) * SLOT_BLOCKS;
        // In one range or two, one behind the other.
        let first = self.rng.between(1, blocks);
        let mut ranges = vec![(lba, first as u32)];
        if first < blocks {
            ranges.push((lba + first, (blocks - first) as u32));
        }
        self.next_id += 1;
        let (cdb, list) = copy::use_token(self.next_id, (false, false), &token.bytes, offset, &ranges);
        if self.submit(place.0, Doing::Use(Use { token, offset, blocks, place }), &cdb, &list, 0) {
            ledger.taken.push(place);
        }
    }

    fn function(&mut self) {
        let mut all: Vec<_> = self.in_flight.keys().copied().collect();
        all.sort_unstable();
        if all.is_empty() {
            return;
        }
        let key = all[self.rng.index(all.len())];
        let disk = self.rng.index(DISKS);
        let (function, tag) = if self.rng.chance(1, 6) { (Tmf::LunReset, 0) } else { (Tmf::AbortTask, key.1) };
        if let Some(ticket) = self.front.driver.submit_tmf(function, lun(disk).bytes(), tag) {
            self.functions.insert(ticket);
            self.front.driver.queues[CONTROL_QUEUE].flush();
        }
    }

    fn take(&mut self, ledger: &mut Ledger) -> Result<()> {
        let control = |why| anyhow!("control queue: {why:?}");
        while let Some((ticket, response, ..)) = self.front.driver.poll_raw(CONTROL_QUEUE).map_err(control)? {
            ensure!(response[0] == 0, "a function was answered with {}", response[0]);
            ensure!(self.functions.remove(&ticket), "a function that nobody asked for");
        }
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((ticket, response)) = self.front.poll(queue)? {
                let doing = self.in_flight.remove(&(queue, ticket)).context("an answer to nobody")?;
                self.answered(doing, &response, ledger)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, doing: Doing, response: &Response, ledger: &mut Ledger) -> Result<()> {
        let now = ledger.tick();
        let sense = response.sense_key();
        let told = matches!(sense, Some((6, ..)));
        let early = matches!(response.response, 2 | 4) || sense == Some((0xA, 0, 6));
        ensure!(response.good() || told || early || sense.is_some(), "{doing:?}: {response:?}");
        ledger.ended += u64::from(early);
        match doing {
            Doing::Write { disk, stamp } => {
                let writes = &mut ledger.writes[disk];
                let at = writes.iter().position(|write| write.stamp == stamp).context("nobody wrote this")?;
                if told {
                    writes.remove(at);
                } else if response.good() {
                    writes[at].done = Some(now);
                } else {
                    // WRITE AND VERIFY may read what another has written meanwhile.
                    ensure!(early || sense == Some((0xE, 0x1D, 0)), "{response:?}");
                }
            }
            Doing::Populate { mut token, id } if response.good() => {
                token.to = now;
                self.ask(token.disk, Doing::Information { token }, copy::token_information(id, 1024), 1024);
            }
            Doing::Populate { .. } => ensure!(told || early, "{response:?}"),
            Doing::Information { mut token } if response.good() => {
                ensure!(response.data[4..6] == [0x10, 0x01] && response.data[15] == 0xF1, "{response:?}");
                token.bytes = response.data[38..550].to_vec();
                if ledger.tokens.len() == MOST_TOKENS {
                    ledger.tokens.remove(0);
                }
                ledger.tokens.push(token);
            }
            // After a reset nothing is known of it.
            Doing::Information { .. } => ensure!(told || early || sense == Some((5, 0x24, 0)), "{response:?}"),
            Doing::Use(used) if response.good() => {
                ledger.used += 1;
                let lba = (SOURCES + used.place.1) * SLOT_BLOCKS;
                let (disk, len) = (used.place.0, used.blocks as usize * BLOCK);
                self.ask(disk, Doing::Judge(used.clone()), cdb::read16(lba, used.blocks as u32), len);
            }
            Doing::Use(used) => {
                ledger.taken.retain(|place| *place != used.place);
                // Of the 32 that are known of an initiator the oldest may have gone.
                let gone = matches!(sense, Some((5, 0x23, 0x04 | 0x06)));
                ensure!(told || early || gone, "{response:?}");
                if gone {
                    ledger.revoked += u64::from(sense == Some((5, 0x23, 0x06)));
                    ledger.tokens.retain(|token| token.bytes != used.token.bytes);
                }
            }
            Doing::Judge(used) => {
                ledger.taken.retain(|place| *place != used.place);
                if response.good() {
                    ledger.judge(&used, &response.data)?;
                }
            }
            Doing::Other => {}
        }
        Ok(())
    }

    fn ask(&mut self, disk: usize, doing: Doing, cdb: [u8; 16], in_len: usize) {
        self.due.push((disk, doing, cdb, in_len));
    }
}

struct Scene {
    appliance: SimAppliance,
    guests: Vec<Guest>,
    rng: Rng,
    ledger: Ledger,
}

impl Scene {
    /// `together`: on disks that copy by themselves.
    fn new(seed: u64, together: bool) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 200_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        appliance.target.set_patience(PATIENT);
        let (mut names, mut backings) = (Vec::new(), Vec::new());
        for disk in 0..DISKS {
            let bdev = SimBdev::new(&world, (SOURCES + DESTINATIONS) * SLOT_BLOCKS * BLOCK as u64);
            let bdev: Arc<dyn Bdev> = Arc::new(if together { bdev.that_copies() } else { bdev });
            let name = format!("disk{disk}");
            let unit = unit_with_medium(&name, &bdev);
            names.push(naa_of(&unit));
            backings.push(backing(&name, &unit, &bdev));
        }
        let names: [[u8; 16]; DISKS] = names.try_into().map_err(|_| anyhow!("a name for each"))?;
        let mut guests = Vec::new();
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
            guests.push(Guest {
                front: appliance.connect(name, &options)?,
                rng: Rng::new(seed * 2 + number),
                in_flight: HashMap::new(),
                functions: HashSet::new(),
                due: Vec::new(),
                next_id: 0,
                names,
            });
        }
        Ok(Scene { appliance, guests, rng: Rng::new(seed ^ 0x70), ledger: Ledger::default() })
    }

    fn run(&mut self, steps: u64, writes: u64, hostile: bool) -> Result<()> {
        for _ in 0..steps {
            let guest = &mut self.guests[self.rng.index(NAMES.len())];
            for _ in 0..self.rng.below(4) {
                guest.act(&mut self.ledger, writes);
            }
            if hostile && self.rng.chance(1, 24) {
                guest.function();
            }
            if self.rng.chance(1, 2) {
                guest.take(&mut self.ledger)?;
            }
            self.appliance.machine.rounds(self.rng.below(6));
        }
        loop {
            self.appliance.machine.run();
            for guest in &mut self.guests {
                guest.take(&mut self.ledger)?;
                let (commands, functions) = (guest.in_flight.len(), guest.functions.len());
                ensure!(commands + functions == 0, "idle with {commands} commands, {functions} functions unanswered");
                while let Some((disk, doing, cdb, len)) = guest.due.pop() {
                    ensure!(guest.submit(disk, doing, &cdb, &[], len), "no room in an idle queue");
                }
            }
            if self.guests.iter().all(|guest| guest.in_flight.is_empty()) {
                return Ok(());
            }
        }
    }

    fn end(mut self) -> Result<Ledger> {
        for guest in self.guests {
            self.appliance.disconnect(guest.front);
        }
        self.appliance.shutdown()?;
        Ok(self.ledger)
    }
}

fn seeds(few: u64) -> std::ops::Range<u64> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first.map_or(0..count, |first| first..first + 1)
}

fn storm(few: u64, writes: u64, hostile: bool) -> Result<[u64; 3]> {
    let mut counts = [0; 3];
    for seed in seeds(few) {
        let run = || -> Result<Ledger> {
            let mut scene = Scene::new(seed, seed % 2 == 1)?;
            scene.run(1500, writes, hostile)?;
            scene.end()
        };
        let ledger = run().with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)"))?;
        for (count, more) in counts.iter_mut().zip([ledger.used, ledger.revoked, ledger.ended]) {
            *count += more;
        }
    }
    Ok(counts)
}

#[test]
fn what_is_written_by_a_token_was_there_at_one_moment() -> Result<()> {
    let few = storm(6, 1, false)?;
    let many = storm(6, 4, false)?;
    ensure!(few[0] > 200 && few[1] > 50 && many[0] > 20 && many[1] > 100, "used, revoked, ended: {few:?} {many:?}");
    Ok(())
}

#[test]
fn aborts_and_resets_leave_nothing_else_behind() -> Result<()> {
    let counts = storm(10, 2, true)?;
    ensure!(counts[0] > 50 && counts[1] > 20 && counts[2] > 20, "used, revoked, ended: {counts:?}");
    Ok(())
}
