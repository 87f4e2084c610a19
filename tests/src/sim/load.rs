//! Random requests to one block device in the simulated world, held against the oracle.

use pollux_core::{
    Bdev, Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, Ring, Segment, SegmentList,
};

use super::{SimRing, SimWorld};
use crate::guest::GuestMemory;
use crate::model::{Model, OpId};
use crate::rng::Rng;

/// How often each kind of request comes, in parts.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Reads.
    pub read: u64,
    /// Writes; every fourth with FUA.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Write zeroes; every second may deallocate.
    pub zeroes: u64,
    /// Discards.
    pub discard: u64,
    /// Cancels of something in flight.
    pub cancel: u64,
    /// The greatest length in blocks.
    pub blocks_max: u64,
    /// Of four requests, how many have memory that begins anywhere.
    pub misaligned: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Mix { read: 30, write: 40, flush: 8, zeroes: 5, discard: 5, cancel: 0, blocks_max: 24, misaligned: 1 }
    }
}

struct Slot {
    io: Io,
    model: OpId,
    /// Keeps the list where the request says it is.
    _segments: Box<[Segment]>,
}

/// A channel under load.
pub struct BdevLoad {
    world: SimWorld,
    ring: SimRing,
    channel: Box<dyn Channel>,
    memory: GuestMemory,
    slots: Vec<Option<Slot>>,
    rng: Rng,
    block_size: u64,
    reads_zero: bool,
    slot_bytes: u64,
    /// How each request has ended, good ones and others.
    pub ended: (u64, u64),
    /// Errors by kind.
    pub errors: Vec<IoError>,
}

impl BdevLoad {
    /// Opens a channel of the device on a ring of its own.
    ///
    /// # Panics
    /// If the device cannot be opened.
    #[must_use]
    pub fn new(world: &SimWorld, bdev: &dyn Bdev, mix: &Mix, seed: u64) -> Self {
        let shape = bdev.shape();
        let channel = bdev.open(OpenArgs { depth: 32, seed }).expect("the device opens");
        let depth = channel.depth() as usize;
        let slot_bytes = (mix.blocks_max * u64::from(shape.block_size) + 64).next_multiple_of(4096);
        let memory = GuestMemory::new(&[(0, slot_bytes * depth as u64)]).expect("memory");
        let mut load = BdevLoad {
            world: world.clone(),
            ring: world.ring(),
            channel,
            memory,
            slots: (0..depth).map(|_| None).collect(),
            rng: Rng::new(seed),
            block_size: u64::from(shape.block_size),
            reads_zero: shape.discard.is_some_and(|d| d.reads_zero),
            slot_bytes,
            ended: (0, 0),
            errors: Vec::new(),
        };
        load.with(|channel, cx| channel.attach(cx)).expect("the ring has room");
        load
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut dyn Channel, &mut Cx<'_>) -> R) -> R {
        let mut cx = Cx { now: self.world.now(), reactor: 0, ring: &mut self.ring };
        f(&mut *self.channel, &mut cx)
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Submits `count` random requests and waits for them; stops early when the power fails.
    ///
    /// # Errors
    /// What the oracle objects to.
    pub fn run(&mut self, model: &mut Model, mix: &Mix, count: usize) -> Result<(), String> {
        let mut left = count;
        while left > 0 && self.world.powered() {
            if self.rng.chance(1, 2) && self.submit(model, mix) {
                left -= 1;
            } else {
                self.step(model)?;
            }
        }
        self.drain(model)
    }

    /// Waits for everything in flight; stops early when the power fails.
    ///
    /// # Errors
    /// What the oracle objects to.
    ///
    /// # Panics
    /// If requests are in flight and nothing is left to wait for.
    pub fn drain(&mut self, model: &mut Model) -> Result<(), String> {
        while self.in_flight() > 0 && self.world.powered() {
            self.step(model)?;
        }
        Ok(())
    }

    /// Leaves the ring, which checks that nothing is left behind.
    pub fn close(mut self) {
        self.with(|channel, cx| channel.detach(cx));
    }

    /// Lets time pass to the next event and takes what has completed.
    fn step(&mut self, model: &mut Model) -> Result<(), String> {
        let next = self.channel.next();
        assert!(self.in_flight() == 0 || next != Next::Idle, "requests are in flight and the channel says idle");
        let moved = match next {
            Next::Now => self.world.deliver() > 0 || self.rng.chance(1, 2),
            Next::At(time) => self.world.advance(Some(time)),
            Next::Ring | Next::Idle => self.world.advance(None),
        };
        let mut done = Vec::new();
        self.with(|channel, cx| channel.poll(cx, &mut done));
        assert!(
            moved || !done.is_empty() || next == Next::Now || self.in_flight() == 0 || !self.world.powered(),
            "{} requests in flight and nothing left that could end them",
            self.in_flight()
        );
        done.into_iter().try_for_each(|completion| self.end(model, completion))
    }

    fn range(&mut self, model_blocks: u64, mix: &Mix) -> (u64, u64) {
        let count = self.rng.between(1, mix.blocks_max.min(model_blocks));
        (self.rng.below(model_blocks - count + 1), count)
    }

    /// Submits one random request; false if there is no slot.
    fn submit(&mut self, model: &mut Model, mix: &Mix) -> bool {
        let Some(at) = self.slots.iter().position(Option::is_none) else { return false };
        let mut pick = self.rng.below(mix.read + mix.write + mix.flush + mix.zeroes + mix.discard + mix.cancel);
        let mut is = |parts: u64| {
            let hit = pick < parts;
            pick = pick.wrapping_sub(parts);
            hit
        };
        let op = if is(mix.read) {
            Op::Read
        } else if is(mix.write) {
            Op::Write
        } else if is(mix.flush) {
            Op::Flush
        } else if is(mix.zeroes) {
            Op::WriteZeroes
        } else if is(mix.discard) {
            Op::Discard
        } else {
            self.cancel_one();
            return false;
        };
        if op == Op::Discard && !self.reads_zero {
            return false;
        }
        let blocks = model.blocks();
        let (first, count) = if op == Op::Flush { (0, 0) } else { self.range(blocks, mix) };
        let mut flags = IoFlags::empty();
        flags.set(IoFlags::FUA, op.changes_data() && self.rng.chance(1, 4));
        flags.set(IoFlags::MAY_DEALLOCATE, op == Op::WriteZeroes && self.rng.chance(1, 2));
        let base =
            at as u64 * self.slot_bytes + if self.rng.chance(mix.misaligned, 4) { self.rng.below(64) } else { 0 };
        let op_id = match op {
            Op::Read => model.begin_read(first, count),
            Op::Write => {
                let (id, data) = model.begin_write(first, count);
                self.memory.write(base, &data);
                id
            }
            Op::Flush => model.begin_flush(),
            Op::Discard | Op::WriteZeroes => model.begin_zero(first, count),
        };
        let len = count * self.block_size;
        let segments = if matches!(op, Op::Read | Op::Write) { self.cut(base, len) } else { Box::default() };
        // SAFETY: the list is kept in the slot until the request has completed.
        let data = unsafe { SegmentList::new(&segments) };
        let io = Io { tag: at as u64, op, flags, offset: first * self.block_size, len, data };
        self.slots[at] = Some(Slot { io, model: op_id, _segments: segments });
        self.with(|channel, cx| channel.submit(io, cx));
        true
    }

    /// The buffer as one segment or several.
    fn cut(&mut self, base: u64, len: u64) -> Box<[Segment]> {
        let user = self.memory.user(base) as usize;
        let mut cuts = vec![0, len];
        for _ in 0..self.rng.below(4) {
            let unit = if self.rng.chance(1, 2) { self.block_size } else { 1 };
            cuts.push(self.rng.below(len / unit) * unit);
        }
        cuts.sort_unstable();
        cuts.dedup();
        // SAFETY: the memory lives as long as `self`, which outlives the channel's requests, and nobody holds a
        // reference into it.
        cuts.windows(2).map(|w| unsafe { Segment::new(user + w[0] as usize, (w[1] - w[0]) as usize) }).collect()
    }

    fn cancel_one(&mut self) {
        let in_flight: Vec<u64> = self.slots.iter().flatten().map(|s| s.io.tag).collect();
        if !in_flight.is_empty() {
            let tag = in_flight[self.rng.index(in_flight.len())];
            self.with(|channel, cx| channel.cancel(tag, cx));
        }
    }

    fn end(&mut self, model: &mut Model, completion: Completion) -> Result<(), String> {
        let slot = self.slots.get_mut(completion.tag as usize).and_then(Option::take);
        let slot = slot.ok_or_else(|| format!("tag {} completed and is not in flight", completion.tag))?;
        let (io, good) = (slot.io, completion.result.is_ok());
        match completion.result {
            Ok(()) => self.ended.0 += 1,
            Err(error) => {
                self.ended.1 += 1;
                self.errors.push(error);
            }
        }
        match io.op {
            Op::Read if good => {
                let mut data = vec![0; io.len as usize];
                pollux_core::segment::copy_from(io.data.as_slice(), 0, &mut data);
                return model.end_read(slot.model, &data).map_err(|why| format!("{io:?}: {why}"));
            }
            Op::Read => model.end_failed_read(slot.model),
            Op::Flush => model.end_flush(slot.model, good),
            _ => model.end_write(slot.model, good, io.flags.contains(IoFlags::FUA)),
        }
        Ok(())
    }

    /// The time of the ring, for tests that look at it.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.ring.now_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Effect, Fault, Kind, SimBdev, Switches};

    const BYTES: u64 = 64 << 10;

    /// Stops the world after `stop` changes, crashes it, and says what the oracle thinks of what is left; `None` if the
    /// run came to its end before.
    fn crash_run(seed: u64, stop: u64, switches: Switches) -> Option<Result<(), String>> {
        let world = SimWorld::new(seed);
        world.set_switches(switches);
        world.stop_after(stop);
        let bdev = SimBdev::new(&world, BYTES);
        let mut model = Model::new(512, BYTES / 512);
        let mut load = BdevLoad::new(&world, &bdev, &Mix::default(), seed);
        let run = load.run(&mut model, &Mix::default(), 60);
        if world.powered() {
            return None;
        }
        world.crash(seed);
        Some(run.and_then(|()| world.disk(bdev.disk(), |disk| model.crashed(disk.visible()))))
    }

    #[test]
    fn random_requests_read_what_was_written() {
        for seed in 0..30 {
            let world = SimWorld::new(seed);
            let bdev = SimBdev::new(&world, BYTES);
            let mut model = Model::new(512, BYTES / 512);
            let mix = Mix { cancel: 4, ..Mix::default() };
            let mut load = BdevLoad::new(&world, &bdev, &mix, seed);
            load.run(&mut model, &mix, 200).unwrap();
            assert!(load.ended.0 > 100, "{:?}", load.ended);
            assert!(load.errors.iter().all(|e| *e == IoError::Aborted), "{:?}", load.errors);
        }
    }

    #[test]
    fn what_was_acknowledged_as_durable_survives_a_crash_after_every_change() {
        let mut crashes = 0;
        for seed in 0..4 {
            for stop in 1.. {
                let Some(result) = crash_run(seed, stop, Switches::default()) else { break };
                result.unwrap_or_else(|why| panic!("seed {seed}, after change {stop}: {why}"));
                crashes += 1;
            }
        }
        assert!(crashes > 100, "{crashes} crashes");
    }

    #[test]
    fn the_sweep_finds_a_flush_and_a_fua_that_do_nothing() {
        for switches in [
            Switches { sync_does_nothing: true, ..Switches::default() },
            Switches { dsync_does_nothing: true, ..Switches::default() },
        ] {
            let lost = (1..60).filter(|stop| crash_run(1, *stop, switches).is_some_and(|r| r.is_err())).count();
            assert!(lost > 0, "{switches:?} was not noticed");
        }
    }

    #[test]
    fn an_error_is_one_requests_own() {
        let world = SimWorld::new(1);
        world.fault(Fault { percent: 20, ..Fault::always(Kind::Write, Effect::Error(libc::EIO)) });
        let bdev = SimBdev::new(&world, BYTES);
        let mut model = Model::new(512, BYTES / 512);
        let mut load = BdevLoad::new(&world, &bdev, &Mix::default(), 1);
        load.run(&mut model, &Mix::default(), 300).unwrap();
        assert!(load.errors.len() > 5 && load.errors.iter().all(|e| *e == IoError::Medium), "{:?}", load.errors);
        load.close();
    }
}
