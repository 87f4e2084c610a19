//! A disk in memory: sparse, shared by all reactors, gone when the process ends.
//!
//! The medium is one anonymous mapping. A page takes memory once it is written and gives it back when it is discarded
//! or zeroed as a whole; what was never written, or was discarded, reads as zeroes. Reactors copy in and out of it
//! without locks: two that write the same byte at once get what two writers of a real disk get. There is no volatile
//! cache, so flush and FUA cost nothing.
//!
//! The bytes move in `poll`, a bounded amount in each, so that one huge request does not hold up a turn. Where nearly all
//! pages of a huge page have been written, `tend` makes one of them: without it, each request for a disk of a GiB begins
//! with misses of the processor's translation cache.

mod copy;
mod written;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pollux_core::segment::{copy_from, for_range};
use pollux_core::{
    AtomicWrite, Bdev, Channel, Completion, CopyRange, Cx, Discard, Extent, Io, IoError, IoFlags, Next, Op, OpenArgs,
    OpenError, Shape, Tag,
};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::memory::{HUGE, Mapping, PAGE, gather, gather_past_caches, prefetch, scatter, settle};
use crate::{BdevError, Device, MAX_DEPTH, RamSpec};
use written::{GRAIN, Written};

/// Bytes copied in one poll before others get their turn.
const COPY_BUDGET: u64 = 1 << 20;
/// Bytes looked at for one extent: some tens of microseconds.
const LOOK_BUDGET: u64 = 256 << 10;
/// Bytes zeroed in one poll: dropping pages is cheaper than copying them.
const ZERO_BUDGET: u64 = 32 << 20;

/// The longest atomic write.
const ATOMIC_MAX: u32 = 1 << 20;

/// A medium from this size on is written past the processor's caches: it is larger than they are.
const PAST_CACHES_FROM: usize = 32 << 20;
/// How much of the next read is asked for while one is copied. More made it slower: the processor's own prefetching takes
/// over then.
const AHEAD: usize = 1024;
/// Small pages that have to be there for a huge one to be made: at most an eighth more memory is taken then.
const DENSE: usize = HUGE / PAGE / 8 * 7;
/// Huge pages that one `tend` looks at, and makes, at most: some tens of milliseconds of a housekeeping thread.
const LOOKS: usize = 4096;
const MADE: usize = 256;

/// What reactors and the housekeeping share.
struct Medium {
    memory: Mapping,
    /// Where there may be something.
    written: Written,
    /// Something was written since `tend` last began at the start.
    untended: AtomicBool,
    past_caches: bool,
}

/// The device.
pub struct Ram {
    shape: Shape,
    medium: Arc<Medium>,
    tended: Mutex<Tended>,
}

/// How far `tend` is.
struct Tended {
    /// Which huge page it looks at next; `None`: the kernel makes none.
    next: Option<usize>,
    /// Those that were made, by number, as far as there are any.
    made: Vec<bool>,
    /// How many runs of neighbours they are.
    runs: usize,
}

/// Each run of huge pages is a mapping of its own to the kernel, which lets a process have 65530 of them: guest memory
/// needs some, too.
static RUNS: AtomicUsize = AtomicUsize::new(0);
const RUNS_MAX: usize = 8192;

impl Drop for Tended {
    fn drop(&mut self) {
        RUNS.fetch_sub(self.runs, Ordering::Relaxed);
    }
}

/// Whether the operator lets processes have huge pages at all.
fn huge_pages_allowed() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    setting.is_ok_and(|setting| !setting.contains("[never]"))
}

impl Ram {
    /// A device as `spec` says, which has been checked.
    ///
    /// # Errors
    /// [`BdevError::Os`] if so much address space cannot be had.
    pub fn new(spec: &RamSpec) -> Result<Self, BdevError> {
        let shape = Shape {
            block_size: spec.block_size,
            physical_block_size: spec.physical_block_size.unwrap_or(spec.block_size),
            num_blocks: spec.num_blocks,
            read_only: false,
            volatile_cache: false,
            discard: Some(Discard { granularity: spec.block_size.max(PAGE as u32), alignment: 0, reads_zero: true }),
            optimal_io: 0,
            rotation_rate: 1,
            // A power cut leaves nothing, and a cancel nothing half done. Whole pages are what is written so.
            atomic_write: Some(AtomicWrite { max: ATOMIC_MAX, granularity: PAGE as u32, alignment: PAGE as u32 }),
        };
        let memory = Mapping::new(shape.bytes() as usize).map_err(|errno| {
            BdevError::os("map memory for", &format!("{} ({} bytes)", spec.name, shape.bytes()), errno)
        })?;
        let past_caches = memory.len() >= PAST_CACHES_FROM;
        let written = Written::new(memory.len());
        let medium = Arc::new(Medium { memory, written, untended: AtomicBool::new(false), past_caches });
        let tended = Tended { next: huge_pages_allowed().then_some(0), made: Vec::new(), runs: 0 };
        Ok(Ram { shape, medium, tended: Mutex::new(tended) })
    }
}

impl Bdev for Ram {
    fn shape(&self) -> Shape {
        self.shape
    }

    /// Where something has been written, by content, since a page may hold blocks of both kinds: a block of zeroes reads
    /// as a discarded one does, and a device may deallocate it by itself at any time (SBC-4, clause 4.7.4).
    fn extent(&self, offset: u64, len: u64) -> Extent {
        let bytes = self.shape.bytes();
        if offset >= bytes {
            return Extent::mapped(len);
        }
        let nothing = self.medium.written.nothing_from(offset as usize) as u64;
        if nothing > 0 {
            return Extent { len: nothing.min(len), mapped: false };
        }
        let len = len.min(LOOK_BUDGET).min(bytes - offset);
        let (mut done, mut kind) = (0, None);
        let mut page = [0; PAGE];
        while done < len {
            let part = (len - done).min(PAGE as u64) as usize;
            let from = self.medium.memory.segment((offset + done) as usize, part);
            copy_from(&[from], 0, &mut page[..part]);
            for block in page[..part].chunks(self.shape.block_size as usize) {
                let mapped = block.iter().any(|&byte| byte != 0);
                if *kind.get_or_insert(mapped) != mapped {
                    return Extent { len: done, mapped: !mapped };
                }
                done += block.len() as u64;
            }
        }
        Extent { len: done, mapped: kind.unwrap_or(true) }
    }

    fn copy_range(&self, offset: u64, _: u64) -> Option<CopyRange> {
        Some(CopyRange::new(self.medium.clone(), offset))
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.clamp(1, MAX_DEPTH);
        Ok(Box::new(RamChannel {
            depth,
            medium: self.medium.clone(),
            queue: VecDeque::with_capacity(depth as usize),
            aborted: Vec::with_capacity(depth as usize),
        }))
    }
}

impl Device for Ram {
    fn product_name(&self) -> &'static str {
        "Malloc disk"
    }

    fn driver_specific(&self) -> Value {
        json!({})
    }

    fn tend(&self) {
        let mut tended = self.tended.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(from) = tended.next else { return };
        if from == 0 && !self.medium.untended.swap(false, Ordering::Relaxed) {
            return;
        }
        tended.next = match tended.go_on(from, &self.medium.memory) {
            Ok(at) => Some(at),
            // Out of memory for now, say: when something has been written, it is tried again.
            Err(Errno::AGAIN | Errno::NOMEM | Errno::BUSY) => Some(0),
            Err(_) => None,
        };
    }
}

impl Tended {
    /// Looks at some huge pages from number `from` on, and makes those that are dense. Returns where to go on; 0: at the
    /// start, when something has been written.
    fn go_on(&mut self, from: usize, memory: &Mapping) -> Result<usize, Errno> {
        let first = memory.first_huge();
        let count = memory.len().saturating_sub(first) / HUGE;
        let (mut at, mut made) = (from, 0);
        while at < count.min(from + LOOKS) && made < MADE {
            let offset = first + at * HUGE;
            if memory.resident(offset) >= DENSE && self.admit(at) {
                memory.collapse(offset)?;
                made += 1;
            }
            at += 1;
        }
        Ok(if at < count { at } else { 0 })
    }

    /// Whether there may be a huge page of this number: it is one already, is a neighbour of one, or may begin a run.
    fn admit(&mut self, number: usize) -> bool {
        let is_made = |made: &[bool], at: usize| made.get(at).copied().unwrap_or(false);
        let near = [Some(number), number.checked_sub(1), number.checked_add(1)];
        if !near.into_iter().flatten().any(|at| is_made(&self.made, at)) {
            if RUNS.fetch_add(1, Ordering::Relaxed) >= RUNS_MAX {
                RUNS.fetch_sub(1, Ordering::Relaxed);
                return false;
            }
            self.runs += 1;
        }
        if self.made.len() <= number {
            self.made.resize(number + 1, false);
        }
        self.made[number] = true;
        true
    }
}

impl Medium {
    /// Zeroes a range, giving back its whole pages.
    fn zero(&self, at: usize, len: usize) {
        let empty = self.written.drop_whole(at, len);
        if !self.memory.zero(at, len) {
            self.written.take(empty);
        }
    }

    /// Zeroes the front of `left` bytes from `at` on: `most` at once, or less so that the next begins with a grain. Returns
    /// how many.
    #[inline(never)]
    fn zero_some(&self, at: usize, left: u64, most: u64) -> u64 {
        let cut = (at as u64 + most) / GRAIN as u64 * GRAIN as u64;
        let len = if left <= most || cut <= at as u64 { left.min(most) } else { cut - at as u64 };
        self.zero(at, len as usize);
        len
    }
}

/// A request and how far it is.
struct Pending {
    io: Io,
    done: u64,
}

impl Pending {
    /// Moves up to `budget` bytes; returns how many budget bytes that took.
    fn advance(&mut self, medium: &Medium, budget: u64) -> u64 {
        let Io { op, offset, len, data, .. } = self.io;
        let left = len - self.done;
        let (at, skip) = ((offset + self.done) as usize, self.done as usize);
        match op {
            Op::Flush => {
                self.done = len;
                0
            }
            Op::Discard | Op::WriteZeroes => {
                let ratio = ZERO_BUDGET / COPY_BUDGET;
                let part = medium.zero_some(at, left, budget * ratio);
                self.done += part;
                part.div_ceil(ratio)
            }
            Op::Write if medium.past_caches && left <= budget && skip == 0 => {
                let moved = gather_past_caches(data.as_slice(), medium.memory.segment(at, left as usize));
                assert_eq!(moved as u64, left, "the segments hold what the request says");
                self.done = len;
                left
            }
            Op::Read | Op::Write => {
                let part = left.min(budget);
                let on_medium = medium.memory.segment(at, part as usize);
                let mut moved = 0;
                let memory = data.as_slice();
                for_range(memory, skip, part as usize, |piece| {
                    let here = on_medium.slice(moved, piece.len());
                    moved += match op {
                        Op::Read => scatter(here, &[piece], 0),
                        _ => gather(&[piece], 0, here),
                    };
                });
                assert_eq!(moved as u64, part, "the segments hold what the request says");
                self.done += part;
                part
            }
        }
    }
}

struct RamChannel {
    depth: u32,
    medium: Arc<Medium>,
    queue: VecDeque<Pending>,
    aborted: Vec<Completion>,
}

impl Channel for RamChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, _: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }

    fn detach(&mut self, _: &mut Cx<'_>) {}

    fn submit(&mut self, io: Io, _: &mut Cx<'_>) {
        assert!(self.queue.len() + self.aborted.len() < self.depth as usize, "the submitter keeps to the depth");
        self.queue.push_back(Pending { io, done: 0 });
    }

    fn poll(&mut self, _: &mut Cx<'_>, done: &mut Vec<Completion>) {
        done.append(&mut self.aborted);
        let mut budget = COPY_BUDGET;
        let mut wrote = false;
        while budget > 0 && !self.queue.is_empty() {
            if let Some(Pending { io: Io { op: Op::Read, offset, .. }, done }) = self.queue.get(1) {
                let room = self.medium.memory.len() - (offset + done) as usize;
                prefetch(self.medium.memory.segment((offset + done) as usize, AHEAD.min(room)), AHEAD);
            }
            let Some(first) = self.queue.front_mut() else { break };
            let took = first.advance(&self.medium, budget);
            budget -= took;
            if first.io.op == Op::Write {
                self.medium.written.stored((first.io.offset + first.done - took) as usize, took as usize);
                wrote = true;
            }
            if first.io.op == Op::Flush || first.done == first.io.len {
                done.push(Completion { tag: first.io.tag, result: Ok(()) });
                self.queue.pop_front();
            }
        }
        if wrote {
            settle();
            if !self.medium.untended.load(Ordering::Relaxed) {
                self.medium.untended.store(true, Ordering::Relaxed);
            }
        }
    }

    fn next(&self) -> Next {
        if self.queue.is_empty() && self.aborted.is_empty() { Next::Idle } else { Next::Now }
    }

    fn cancel(&mut self, tag: Tag, _: &mut Cx<'_>) {
        // An atomic write that has begun comes to its end, in one of the next turns.
        let ends = |pending: &Pending| pending.done == 0 || !pending.io.flags.contains(IoFlags::ATOMIC);
        if let Some(at) = self.queue.iter().position(|pending| pending.io.tag == tag && ends(pending)) {
            self.queue.remove(at);
            self.aborted.push(Completion { tag, result: Err(IoError::Aborted) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, model, ram};
    use pollux_core::segment::copy_to;

    #[test]
    fn behaves_as_a_plain_array_of_bytes() {
        model::check(|| (ram(512, 512), ()));
    }

    #[test]
    fn a_terabyte_costs_nothing_until_it_is_written() {
        let device = ram(4096, 1 << 28);
        let mut rig = Rig::new(&*device);
        let end = device.shape().bytes();
        rig.write(end - 4096, &[3; 4096], IoFlags::empty()).unwrap();
        assert_eq!(rig.read(end - 8192, 8192).unwrap(), [vec![0; 4096], vec![3; 4096]].concat());
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), end - 4096, 4096)).unwrap();
        assert_eq!(rig.read(end - 4096, 4096).unwrap(), [0; 4096]);
    }

    #[test]
    fn extents_are_runs_of_blocks_that_hold_something_or_nothing() {
        let device = ram(512, 2048);
        let mut rig = Rig::new(&*device);
        rig.write(512 * 3, &[7; 512 * 20], IoFlags::empty()).unwrap();
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), 512 * 5, 512)).unwrap();
        let extent = |lba: u64, blocks: u64| {
            let Extent { len, mapped } = device.extent(lba * 512, blocks * 512);
            (len / 512, mapped)
        };
        assert_eq!([extent(0, 100), extent(3, 100), extent(5, 100)], [(3, false), (2, true), (1, false)]);
        assert_eq!([extent(6, 100), extent(6, 4), extent(22, 1)], [(17, true), (4, true), (1, true)]);
        assert_eq!(extent(1000, 1048), (LOOK_BUDGET / 512, false), "not more than is looked at");
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), 0, 2048 * 512)).unwrap();
        assert_eq!(extent(1, 2047), (2047, false), "nobody has to look");
        assert_eq!(extent(2000, 48), (48, false));
        assert_eq!(extent(4000, 48), (48, true), "beyond the end nothing is known");
    }

    #[test]
    fn what_was_never_written_or_given_back_is_one_extent() {
        let device = ram(512, 1 << 20);
        let mut rig = Rig::new(&*device);
        let all = device.shape().bytes();
        assert_eq!(device.extent(0, all), Extent { len: all, mapped: false });
        for at in [0, 100 << 20, all - 512] {
            rig.write(at, &[1; 512], IoFlags::empty()).unwrap();
        }
        let grain = GRAIN as u64;
        assert_eq!(device.extent(0, all), Extent { len: 512, mapped: true });
        assert_eq!(device.extent(grain, all), Extent { len: (100 << 20) - grain, mapped: false });
        assert_eq!(device.extent(grain, 512), Extent { len: 512, mapped: false });
        assert_eq!(device.extent(all - 512, 512), Extent { len: 512, mapped: true });
        // In several turns, the first of which begins and ends inside a grain.
        rig.run(Io::without_data(0, Op::WriteZeroes, IoFlags::empty(), 512, all - 512)).unwrap();
        assert_eq!(device.extent(grain, all), Extent { len: all - grain, mapped: false });
        assert_eq!(device.extent(0, all).len, 512);
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), 0, all)).unwrap();
        assert_eq!(device.extent(0, all), Extent { len: all, mapped: false });
    }

    /// One writes while another gives back, again and again. What is there in the end must not be told as gone.
    #[test]
    fn what_has_outlived_a_discard_is_told() {
        const LEN: u64 = 64 << 10;
        let device = ram(4096, 512);
        let both = std::sync::Barrier::new(2);
        let rounds = 2000;
        let mut wrong = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rig = Rig::new(&*device);
                for round in 0..rounds {
                    both.wait();
                    rig.write(round % 8 * LEN, &[7; LEN as usize], IoFlags::empty()).unwrap();
                    both.wait();
                }
            });
            let mut rig = Rig::new(&*device);
            for round in 0..rounds {
                // What the write before has left makes the drop as long as the write.
                both.wait();
                rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), 0, GRAIN as u64)).unwrap();
                both.wait();
                let at = round % 8 * LEN;
                let holds = rig.read(at, LEN as usize).unwrap().iter().any(|&byte| byte != 0);
                let told = (at..at + LEN).step_by(4096).any(|at| device.extent(at, 4096).mapped);
                if holds != told {
                    wrong.push(round);
                }
            }
        });
        assert!(wrong.is_empty(), "{} of {rounds} rounds: {wrong:?}", wrong.len());
    }

    #[test]
    fn a_big_request_takes_several_turns_and_lets_cancel_in() {
        let device = ram(512, 1 << 20);
        let mut rig = Rig::new(&*device);
        let len = 3 * ZERO_BUDGET;
        rig.submit(Io::without_data(1, Op::WriteZeroes, IoFlags::empty(), 0, len));
        rig.submit(Io::without_data(2, Op::Flush, IoFlags::empty(), 0, 0));
        assert_eq!(rig.poll(), [], "the first turn does a part");
        assert_eq!(rig.next(), Next::Now);
        rig.cancel(1);
        let ended = rig.finish();
        assert_eq!(
            ended,
            [Completion { tag: 1, result: Err(IoError::Aborted) }, Completion { tag: 2, result: Ok(()) }]
        );
        assert_eq!(rig.next(), Next::Idle);
    }

    #[test]
    fn an_atomic_write_is_cancelled_before_it_begins_or_not_at_all() {
        let device = ram(512, 8192);
        let mut rig = Rig::new(&*device);
        let len = ATOMIC_MAX as usize;
        let write = |rig: &mut Rig, tag, value, flags| {
            let data = rig.segments(tag as usize * len, &[], len);
            copy_to(data.as_slice(), 0, &vec![value; len]);
            rig.submit(Io { tag, op: Op::Write, flags, offset: 0, len: len as u64, data });
        };
        for (flags, torn) in [(IoFlags::ATOMIC, false), (IoFlags::empty(), true)] {
            rig.write(0, &vec![1; len], IoFlags::empty()).unwrap();
            // A read takes a part of the first turn, so the write is cut.
            let data = rig.segments(3 * len, &[], 4096);
            rig.submit(Io { tag: 9, op: Op::Read, flags: IoFlags::empty(), offset: 0, len: 4096, data });
            write(&mut rig, 1, 2, flags);
            write(&mut rig, 2, 3, flags);
            assert_eq!(rig.poll(), [Completion { tag: 9, result: Ok(()) }]);
            rig.cancel(1);
            rig.cancel(2);
            let mut ended = rig.finish();
            ended.sort_by_key(|completion| completion.tag);
            let begun = if torn { Err(IoError::Aborted) } else { Ok(()) };
            let aborted = Completion { tag: 2, result: Err(IoError::Aborted) };
            assert_eq!(ended, [Completion { tag: 1, result: begun }, aborted]);
            let left = rig.read(0, len).unwrap();
            assert_eq!(left[0], 2);
            assert_eq!(left[len - 1], if torn { 1 } else { 2 });
        }
    }

    #[test]
    fn a_disk_that_is_tended_keeps_its_data_and_gives_memory_back() {
        let device = ram(4096, 16 << 10);
        let mut rig = Rig::new(&*device);
        let block = |n: u64| vec![(n % 251) as u8; 64 << 10];
        for n in 0..1024 {
            rig.write(n * (64 << 10), &block(n), IoFlags::empty()).unwrap();
            if n % 300 == 0 {
                device.tend();
            }
        }
        device.tend();
        rig.run(Io::without_data(0, Op::Discard, IoFlags::empty(), 0, 5 << 20)).unwrap();
        rig.write(0, &block(7), IoFlags::empty()).unwrap();
        device.tend();
        device.tend();
        assert_eq!(rig.read(0, 64 << 10).unwrap(), block(7));
        assert_eq!(rig.read(4 << 20, 64 << 10).unwrap(), vec![0; 64 << 10]);
        for n in 80..1024 {
            assert_eq!(rig.read(n * (64 << 10), 64 << 10).unwrap(), block(n));
        }
    }

    #[test]
    fn runs_of_huge_pages_are_counted_once_and_given_back() {
        let mut tended = Tended { next: Some(0), made: Vec::new(), runs: 0 };
        for number in [5, 6, 7, 5, 9, 4, 8] {
            assert!(tended.admit(number));
        }
        assert_eq!(tended.runs, 2, "5 and 9 began one");
        let begun = (0..=RUNS_MAX).take_while(|n| tended.admit(100 + 2 * n)).count();
        assert!(begun <= RUNS_MAX - 2, "there is an end to them");
        assert!(tended.admit(10), "a neighbour costs nothing");
        drop(tended);
        assert!(RUNS.load(Ordering::Relaxed) < RUNS_MAX / 2);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let spec =
            RamSpec { name: "m".into(), block_size: 4096, num_blocks: 1 << 50, physical_block_size: None, uuid: None };
        let error = Ram::new(&spec).err().expect("2^62 bytes do not fit into any address space of today");
        assert_eq!(error.reason(), "no_memory");
        assert!(error.to_string().contains("m (4611686018427387904 bytes)"), "{error}");
    }

    #[test]
    fn reactors_see_one_medium() {
        let device = ram(512, 64);
        let (mut one, mut two) = (Rig::new(&*device), Rig::new(&*device));
        one.write(512, &[9; 512], IoFlags::empty()).unwrap();
        assert_eq!(two.read(0, 1024).unwrap(), [[0; 512], [9; 512]].concat());
    }
}
