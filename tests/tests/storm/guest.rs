//! One guest of the storm: a thread with a front end, which dies and comes back.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::{
    CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Framing, GuestMemory, Queue, Response, SCRIBBLE,
    Ticket, Tmf, cdb,
};
use pollux_tests::model::OpId;
use pollux_tests::rng::Rng;

use super::ledger::{Ledger, filled, value_of};
use super::parts::{BLOCK, DISKS, Part};
use super::{World, lun};
use crate::common;

/// Commands of one guest at once.
const MOST: usize = 24;
const MEMORY: u64 = 8 << 20;
/// Memory of sessions that died is watched for the last ones.
const GRAVES: usize = 4;

#[derive(Clone, Debug)]
enum Doing {
    Read(OpId, Range<u64>),
    Change(OpId, Range<u64>),
    Increment {
        from: u64,
    },
    Look {
        at_least: u64,
    },
    Reserve,
    /// It waits for nobody's turn, unless it is ORDERED.
    Preempt,
    Other,
}

#[derive(Clone, Debug)]
struct Sent {
    disk: usize,
    part: Part,
    doing: Doing,
    /// Which of its queue's commands it is.
    number: u64,
}

type Name = (usize, Ticket);

struct Function {
    asked: Tmf,
    scope: Vec<Name>,
}

impl Function {
    const fn is_query(&self) -> bool {
        matches!(self.asked, Tmf::QueryTask | Tmf::QueryTaskSet)
    }
}

/// What outlives a session.
pub(crate) struct Guest {
    name: &'static str,
    key: u64,
    rng: Rng,
    known: HashMap<(usize, Part), u64>,
    graves: Vec<Arc<GuestMemory>>,
}

/// What a session leaves behind when its socket is closed.
struct Remains {
    sent: Vec<Sent>,
    memory: Arc<GuestMemory>,
}

impl Guest {
    pub(crate) fn new(name: &'static str, key: u64, seed: u64) -> Guest {
        Guest { name, key, rng: Rng::new(seed), known: HashMap::new(), graves: Vec::new() }
    }

    pub(crate) fn live(mut self, world: &World) -> Result<()> {
        let mut remains = None;
        loop {
            let mut session = Session::connect(&mut self, world)?;
            if let Some(remains) = remains.take() {
                // The next session begins when the one before has ended.
                session.bury(remains);
            }
            session.run()?;
            if world.over.load(Relaxed) {
                session.settle()?;
                break;
            }
            remains = Some(session.die());
        }
        for memory in &self.graves {
            let bytes = memory.bytes(memory.regions()[0].gpa, MEMORY as usize);
            let late = bytes.iter().position(|byte| *byte != SCRIBBLE);
            ensure!(late.is_none(), "memory of a session that had ended was written to, {late:?} bytes in");
        }
        Ok(())
    }
}

struct Session<'a> {
    guest: &'a mut Guest,
    world: &'a World,
    front: FrontEnd,
    in_flight: BTreeMap<Name, Sent>,
    functions: HashMap<Ticket, Function>,
    numbers: HashMap<usize, u64>,
}

impl<'a> Session<'a> {
    fn connect(guest: &'a mut Guest, world: &'a World) -> Result<Session<'a>> {
        let rng = &mut guest.rng;
        let options = DriverOptions {
            request_queues: rng.between(2, 4) as usize,
            queue_size: 64,
            event_idx: rng.chance(1, 2),
            indirect: rng.chance(1, 2),
            memory: vec![(0x10_0000, MEMORY)],
            seed: rng.next_u64(),
            ..DriverOptions::default()
        };
        let mut front = common::connect(&world.daemon, guest.name, &options).context("connecting")?;
        front.driver.scribble(rng.between(8, 64) as usize);
        let (in_flight, functions, numbers) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        Ok(Session { guest, world, front, in_flight, functions, numbers })
    }

    fn over(&self) -> bool {
        self.world.over.load(Relaxed)
    }

    /// Lives until it dies or the storm is over.
    fn run(&mut self) -> Result<()> {
        let beside = self.world.beside;
        let in_ms = |rng: &mut Rng, from, to| Instant::now() + Duration::from_millis(rng.between(from, to));
        let death = beside.deaths.then(|| in_ms(&mut self.guest.rng, 100, 700));
        let mut stop = beside.stops.then(|| in_ms(&mut self.guest.rng, 5, 50));
        let passed = |at: Option<Instant>| at.is_some_and(|at| at < Instant::now());
        while !self.over() && !passed(death) {
            for _ in 0..self.guest.rng.below(4) {
                self.act();
            }
            if beside.functions && self.guest.rng.chance(1, 40) {
                self.function();
            }
            if self.guest.rng.chance(1, 2) || self.in_flight.len() >= MOST {
                self.take()?;
            }
            if passed(stop) {
                self.stop_and_start()?;
                stop = Some(in_ms(&mut self.guest.rng, 5, 50));
            }
            if self.in_flight.len() >= MOST {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(())
    }

    fn submit(&mut self, disk: usize, part: Part, doing: Doing, cdb: &[u8], out: &[u8], len: usize) {
        let rng = &mut self.guest.rng;
        let queue = FIRST_REQUEST_QUEUE + rng.index(self.front.driver.queues.len() - FIRST_REQUEST_QUEUE);
        let framing = if rng.chance(1, 2) { Framing::random(rng) } else { Framing::PLAIN };
        let command = Command { framing, task_attr: part.attribute(), ..Command::new(lun(disk), cdb, out, len) };
        let Some(ticket) = self.front.driver.submit(queue, &command) else {
            return ended(&mut self.world.ledgers.of(disk), &doing);
        };
        let number = self.numbers.entry(queue).or_default();
        *number += 1;
        self.in_flight.insert((queue, ticket), Sent { disk, part, doing, number: *number });
        if self.guest.rng.chance(2, 3) {
            self.front.driver.queues[queue].flush();
        }
    }

    fn act(&mut self) {
        if self.in_flight.len() >= MOST {
            return;
        }
        let disk = self.guest.rng.index(DISKS);
        let part = match self.guest.rng.below(14) {
            0..9 => Part::Simple,
            9 | 10 => Part::Ordered,
            11 => Part::Head,
            12 => Part::Atomic,
            _ => Part::Job,
        };
        match (self.guest.rng.below(16), part) {
            (_, Part::Job) => {
                let verify = cdb::verify16(part.blocks().start, self.guest.rng.between(1, 256) as u32, 0);
                self.submit(disk, part, Doing::Other, &verify, &[], 0);
            }
            (0..3, Part::Ordered | Part::Head) | (0..10, Part::Atomic) => {
                let from = self.guest.known.get(&(disk, part)).copied().unwrap_or(0);
                let out = [filled(from, 2), filled(from + 1, 2)].concat();
                let cdb = cdb::compare_and_write(part.counter(), 2, self.guest.rng.chance(1, 4));
                self.submit(disk, part, Doing::Increment { from }, &cdb, &out, 0);
            }
            (3..5, Part::Ordered | Part::Head) | (_, Part::Atomic) => {
                let at_least = self.world.ledgers.of(disk).at_least(part);
                let cdb = cdb::read10(part.counter() as u32, 2);
                self.submit(disk, part, Doing::Look { at_least }, &cdb, &[], 2 * BLOCK);
            }
            (5, _) => self.question(disk, part),
            (6, _) if self.guest.rng.chance(1, 4) => self.reserve(disk, part),
            (pick, _) => self.transfer(disk, part, pick),
        }
    }

    /// Reads, writes or zeroes somewhere in a part.
    fn transfer(&mut self, disk: usize, part: Part, pick: u64) {
        let (blocks, count) = (part.blocks(), self.guest.rng.between(1, 16));
        let first = blocks.start + self.guest.rng.below(blocks.end - blocks.start - count + 1);
        let range = first..first + count;
        let ledgers = &self.world.ledgers;
        if !ledgers.of(disk).occupy(&range) {
            return;
        }
        if pick.is_multiple_of(2) {
            let doing = Doing::Read(ledgers.of(disk).model.begin_read(first, count), range);
            let read = cdb::read10(first as u32, count as u16);
            self.submit(disk, part, doing, &read, &[], count as usize * BLOCK);
        } else if pick == 15 {
            let doing = Doing::Change(ledgers.of(disk).model.begin_zero(first, count), range);
            let zero = cdb::write_same16(first, count as u32, self.guest.rng.chance(1, 2), true);
            self.submit(disk, part, doing, &zero, &[], 0);
        } else {
            let (op, data) = ledgers.of(disk).model.begin_write(first, count);
            let write = cdb::write10(first as u32, count as u16, self.guest.rng.chance(1, 4));
            self.submit(disk, part, Doing::Change(op, range), &write, &data, 0);
        }
    }

    /// Something that touches no block, or all of them.
    fn question(&mut self, disk: usize, part: Part) {
        match self.guest.rng.below(4) {
            0 => self.submit(disk, part, Doing::Other, &cdb::TEST_UNIT_READY, &[], 0),
            1 => self.submit(disk, part, Doing::Other, &cdb::sync10(), &[], 0),
            2 => self.submit(disk, part, Doing::Other, &cdb::mode_sense10(8), &[], 252),
            _ => self.submit(disk, part, Doing::Other, &cdb::inquiry(Some(0x83), 252), &[], 252),
        }
    }

    /// Registers, reserves for all who are registered, or preempts somebody and aborts what is theirs.
    fn reserve(&mut self, disk: usize, part: Part) {
        const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
        let (action, from, to) = match self.guest.rng.below(6) {
            0..3 => (6, 0, self.guest.key),
            3 => (1, self.guest.key, 0),
            _ => (5, self.guest.key, self.guest.rng.between(1, 4)),
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
        let one = all[self.guest.rng.index(all.len())];
        let disk = self.in_flight[&one].disk;
        let of_disk = || all.iter().copied().filter(|name| self.in_flight[name].disk == disk).collect::<Vec<_>>();
        let (asked, scope) = match self.guest.rng.below(12) {
            0..4 => (Tmf::AbortTask, vec![one]),
            4 => (Tmf::AbortTaskSet, of_disk()),
            5 => (Tmf::ClearTaskSet, of_disk()),
            6 => (Tmf::LunReset, of_disk()),
            7 => (Tmf::NexusReset, all),
            8 | 9 => (Tmf::QueryTask, vec![one]),
            _ => (Tmf::QueryTaskSet, of_disk()),
        };
        // All that the device can see when it is asked is in scope.
        self.publish();
        if let Some(ticket) = self.front.driver.submit_tmf(asked, lun(disk).bytes(), one.1) {
            self.functions.insert(ticket, Function { asked, scope });
        }
        self.front.driver.queues[CONTROL_QUEUE].flush();
    }

    fn publish(&mut self) {
        self.front.driver.queues[FIRST_REQUEST_QUEUE..].iter_mut().for_each(Queue::flush);
    }

    fn take(&mut self) -> Result<()> {
        // Functions first: what they have ended is there then.
        let mut ended = Vec::new();
        let wrong = |why| anyhow!("control queue: {why:?}");
        while let Some((ticket, response, ..)) = self.front.driver.poll_raw(CONTROL_QUEUE).map_err(wrong)? {
            let function = self.functions.remove(&ticket).context("a function that nobody asked for")?;
            let fine = response[0] == 0 || (function.is_query() && response[0] == 10);
            ensure!(fine, "{:?} ended with {}", function.asked, response[0]);
            ended.push((function, response[0]));
        }
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((ticket, response)) = self.front.poll(queue)? {
                let sent = self.in_flight.remove(&(queue, ticket)).context("an answer that nobody asked for")?;
                self.in_order(queue, &sent, &response)?;
                self.answered(&sent, &response).with_context(|| format!("{sent:?}"))?;
            }
        }
        for (function, answer) in ended {
            let left = function.scope.iter().find_map(|name| self.in_flight.get(name));
            match left {
                Some(sent) if !function.is_query() => bail!("{sent:?} outlives {:?}", function.asked),
                Some(sent) if answer != 10 => bail!("{:?} does not find {sent:?}", function.asked),
                _ => {}
            }
            self.world.count(|tally| {
                tally.functions += 1;
                tally.found += u64::from(answer == 10);
            });
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
            .map(|(_, other)| other)
            .filter(|other| other.disk == sent.disk)
            .find(|other| sent.part == Part::Ordered || other.part == Part::Ordered);
        match overtaken {
            None => Ok(()),
            Some(other) => bail!("queue {queue}: {sent:?} is answered before {other:?}"),
        }
    }

    fn answered(&mut self, sent: &Sent, response: &Response) -> Result<()> {
        let Sent { disk, part, ref doing, .. } = *sent;
        let (sense, good) = (response.sense_key(), response.good());
        let early = matches!(response.response, 2 | 4);
        let told = response.response == 0 && matches!(sense, Some((6, ..)));
        let conflict = response.response == 0 && response.status == 0x18;
        let miscompare = matches!(doing, Doing::Increment { .. }) && sense == Some((0xE, 0x1D, 0));
        // PREEMPT AND ABORT of a key that nobody has.
        let refused = matches!(doing, Doing::Preempt) && matches!(sense, Some((5, ..)));
        ensure!(good || early || told || conflict || miscompare || refused, "{response:?}");
        self.world.count(|tally| {
            tally.good += u64::from(good);
            tally.early += u64::from(early);
            tally.told += u64::from(told);
            tally.conflicts += u64::from(conflict);
        });
        let mut ledger = self.world.ledgers.of(disk);
        match doing {
            Doing::Read(op, range) if good => {
                ledger.model.end_read(*op, &response.data).map_err(|why| anyhow!(why))?;
                ledger.free(range);
            }
            Doing::Change(op, range) if good => {
                ledger.model.end_write(*op, true, false);
                ledger.free(range);
            }
            Doing::Increment { from } if good => {
                self.world.count(|tally| tally.increments += 1);
                ledger.incremented(part, *from)?;
                self.guest.known.insert((disk, part), from + 1);
            }
            Doing::Increment { .. } if early => ledger.perhaps_incremented(part),
            Doing::Look { at_least } if good => {
                let value = value_of(&response.data)?;
                ensure!(value >= *at_least, "the counter was {at_least} and is {value}");
                self.guest.known.insert((disk, part), value);
            }
            _ => ended(&mut ledger, doing),
        }
        Ok(())
    }

    /// Waits until `done`, taking what comes.
    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            self.take()?;
            ensure!(Instant::now() < end, "{what}: {:?} are not answered", self.in_flight.values());
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Stops a queue: what it has taken is answered then, and what it has not waits for the next start.
    fn stop_and_start(&mut self) -> Result<()> {
        self.wait("functions", |session| session.functions.is_empty())?;
        let rng = &mut self.guest.rng;
        let queue = FIRST_REQUEST_QUEUE + rng.index(self.front.driver.queues.len() - FIRST_REQUEST_QUEUE);
        let base = self.front.stop_queue(queue)?;
        self.take()?;
        let left = self.in_flight.keys().filter(|name| name.0 == queue).count();
        let untaken = self.front.driver.queues[queue].ring.next_avail().wrapping_sub(base);
        ensure!(left == usize::from(untaken), "a stopped queue leaves {left} commands and has not taken {untaken}");
        std::thread::sleep(Duration::from_micros(self.guest.rng.below(1000)));
        ensure!(!self.front.driver.queues[queue].ring.has_used(), "a stopped queue has answered something");
        self.front.start_queue(queue, base)?;
        self.front.driver.queues[queue].kick();
        self.world.count(|tally| {
            tally.stops += 1;
            tally.left += left as u64;
        });
        Ok(())
    }

    /// The end: everything is answered, and nothing is touched afterwards.
    fn settle(&mut self) -> Result<()> {
        self.publish();
        self.wait("in the end", |session| session.in_flight.is_empty() && session.functions.is_empty())?;
        std::thread::sleep(Duration::from_millis(20));
        self.take()?;
        self.front.driver.inspect().map_err(|why| anyhow!("{why:?}"))
    }

    /// Closes the socket with everything in flight.
    fn die(self) -> Remains {
        self.world.count(|tally| tally.deaths += 1);
        Remains { sent: self.in_flight.into_values().collect(), memory: Arc::clone(&self.front.driver.memory) }
    }

    /// What another session has left has ended: its commands may have taken effect before, and its memory is free.
    fn bury(&mut self, remains: Remains) {
        remains.memory.fill(remains.memory.regions()[0].gpa, MEMORY as usize, SCRIBBLE);
        for Sent { disk, part, doing, .. } in remains.sent {
            let mut ledger = self.world.ledgers.of(disk);
            ended(&mut ledger, &doing);
            if matches!(doing, Doing::Increment { .. }) {
                ledger.perhaps_incremented(part);
            }
        }
        self.guest.graves.push(remains.memory);
        if self.guest.graves.len() > GRAVES {
            self.guest.graves.remove(0);
        }
    }
}

/// A command has ended without success: what it was to change may have changed.
fn ended(ledger: &mut Ledger, doing: &Doing) {
    match doing {
        Doing::Read(op, range) => {
            ledger.model.end_failed_read(*op);
            ledger.free(range);
        }
        Doing::Change(op, range) => {
            ledger.model.end_write(*op, false, false);
            ledger.free(range);
        }
        Doing::Increment { .. } | Doing::Look { .. } | Doing::Reserve | Doing::Preempt | Doing::Other => {}
    }
}
