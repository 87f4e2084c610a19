//! The clock, the media and everything in flight.
//!
//! An entry has two moments, both drawn from the seed: when it takes effect and when it completes. Entries overtake each
//! other freely, as on a real disk. A crash may come between the two.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{ClientId, Done, Entry, FileSlot, RingOp, SegmentList, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::disk::{Mark, SECTOR, SimDisk};
use super::fault::{Effect, Fault, Kind};
use super::ring::{RingState, SimRing};
use crate::rng::Rng;

/// A file, by device and inode: every descriptor of it is the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskId(u64, u64);

impl DiskId {
    /// The disk behind an open file.
    ///
    /// # Errors
    /// If the descriptor is not open.
    pub fn of(fd: impl AsFd) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        Ok(DiskId(stat.st_dev, stat.st_ino))
    }
}

/// Ways to break the world on purpose, to see that the tests notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switches {
    /// Syncs succeed and do nothing.
    pub sync_does_nothing: bool,
    /// `dsync` on writes is ignored.
    pub dsync_does_nothing: bool,
}

const NEVER: u64 = u64::MAX;

struct Pending {
    ring: usize,
    client: ClientId,
    token: Token,
    op: RingOp,
    /// When it takes effect; `NEVER` for one that waits for something.
    effect_at: u64,
    /// When it completes, once it has taken effect.
    done_at: u64,
    /// What it was caught by.
    fault: Option<Effect>,
    /// For a sync: what it covers.
    mark: Mark,
    result: Option<i32>,
}

impl Pending {
    const fn next_moment(&self) -> u64 {
        if self.result.is_some() { self.done_at } else { self.effect_at }
    }
}

pub(super) struct World {
    now: u64,
    rng: Rng,
    disks: BTreeMap<DiskId, SimDisk>,
    pub(super) rings: Vec<RingState>,
    pending: Vec<Pending>,
    faults: Vec<Fault>,
    switches: Switches,
    latency_ns: (u64, u64),
    changes: u64,
    stop_after: u64,
    powered: bool,
    dead: bool,
    signals: u64,
}

/// The simulated world; clones are the same world.
#[derive(Clone)]
pub struct SimWorld(Arc<Mutex<World>>);

impl SimWorld {
    /// An empty world whose every chance comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SimWorld(Arc::new(Mutex::new(World {
            now: 1_000_000,
            rng: Rng::new(seed),
            disks: BTreeMap::new(),
            rings: Vec::new(),
            pending: Vec::new(),
            faults: Vec::new(),
            switches: Switches::default(),
            latency_ns: (2_000, 200_000),
            changes: 0,
            stop_after: NEVER,
            powered: true,
            dead: false,
            signals: 0,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("a test that panics ends the world")
    }

    /// A new ring.
    #[must_use]
    pub fn ring(&self) -> SimRing {
        let mut world = self.lock();
        world.rings.push(RingState::default());
        SimRing::new(self.clone(), world.rings.len() - 1)
    }

    /// Puts a simulated disk behind a file: what is read and written through a ring goes there.
    pub fn add_disk(&self, id: DiskId, disk: SimDisk) {
        self.lock().disks.insert(id, disk);
    }

    /// Looks at a disk, or changes it behind everybody's back.
    ///
    /// # Panics
    /// If there is no such disk.
    pub fn disk<R>(&self, id: DiskId, f: impl FnOnce(&mut SimDisk) -> R) -> R {
        f(self.lock().disks.get_mut(&id).expect("the disk was added"))
    }

    /// Adds a rule; the first that catches an entry counts.
    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Forgets all rules (what they caught stays caught).
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Lets go of what is stuck.
    pub fn release(&self) {
        let mut world = self.lock();
        let now = world.now;
        for entry in world.pending.iter_mut().filter(|e| e.fault == Some(Effect::Stuck)) {
            (entry.fault, entry.effect_at, entry.done_at) = (None, now, now);
        }
    }

    /// Breaks the world on purpose.
    pub fn set_switches(&self, switches: Switches) {
        self.lock().switches = switches;
    }

    /// Sets the range of latencies in nanoseconds.
    pub fn set_latency(&self, least: u64, most: u64) {
        self.lock().latency_ns = (least, most);
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// How many writes, syncs and deallocations have taken effect.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// How many times an eventfd was signalled through a ring.
    #[must_use]
    pub fn signals(&self) -> u64 {
        self.lock().signals
    }

    /// Lets the power fail right after the `n`-th change from the beginning: from then on nothing takes effect and
    /// nothing completes.
    pub fn stop_after(&self, n: u64) {
        self.lock().stop_after = n;
    }

    /// Whether the power is on.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.lock().powered
    }

    /// Entries in flight that will end by themselves (polls and stuck ones do not).
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().pending.iter().filter(|e| e.next_moment() != NEVER).count()
    }

    /// All entries in flight, polls and stuck ones too.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Does what is due now, and completes polls whose descriptor has become readable. Returns how much that was.
    pub fn deliver(&self) -> usize {
        let mut world = self.lock();
        let mut count = world.deliver_polls();
        while world.powered
            && let Some(at) = world.next_event()
            && world.pending[at].next_moment() <= world.now
        {
            world.step(at);
            count += 1;
        }
        count
    }

    /// Lets some time pass.
    pub fn tick(&self, ns: u64) {
        self.lock().now += ns;
    }

    /// Moves the clock to the next event, or to `limit` if that is earlier; false if there is neither.
    pub fn advance(&self, limit: Option<u64>) -> bool {
        {
            let mut world = self.lock();
            let event = world.next_event().map(|at| world.pending[at].next_moment());
            let Some(to) = event.into_iter().chain(limit).min() else { return false };
            if !world.powered {
                return false;
            }
            world.now = world.now.max(to);
        }
        self.deliver();
        true
    }

    /// The power is cut: every disk keeps, drops and tears what was not synced, and what is in flight may have been done
    /// or not. The memory of writes in flight must still be there.
    ///
    /// Until [`SimWorld::revive`] no disk changes any more and every entry fails, so that what ran on the old machine
    /// can be taken down in good order.
    pub fn crash(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let mut guard = self.lock();
        let world = &mut *guard;
        let mut writes: BTreeMap<DiskId, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
        for entry in &mut world.pending {
            if io_of(&entry.op).is_none() {
                continue;
            }
            if let (RingOp::Write { file, data, offset, .. }, None) = (entry.op, entry.result) {
                let id = disk_of(world.rings[entry.ring].file(file));
                writes.entry(id).or_default().push((offset, gather(data, usize::MAX)));
            }
            (entry.result, entry.done_at) = (Some(-libc::EIO), world.now);
        }
        for (id, disk) in &mut world.disks {
            disk.crash(writes.get(id).map_or(&[], Vec::as_slice), &mut rng);
        }
        (world.powered, world.dead, world.stop_after) = (true, true, NEVER);
    }

    /// The power is back.
    pub fn revive(&self) {
        self.lock().dead = false;
    }
}

fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: whoever pushed or registered the descriptor keeps it open until the completion or removal (the contract of
    // `Ring`); the borrow ends within the call that made it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn disk_of(fd: RawFd) -> DiskId {
    DiskId::of(borrow(fd)).expect("a registered descriptor is open")
}

fn gather(data: SegmentList, at_most: usize) -> Vec<u8> {
    let mut bytes = vec![0; (data.bytes() as usize).min(at_most)];
    copy_from(data.as_slice(), 0, &mut bytes);
    bytes
}

fn ready(fd: RawFd, flags: PollFlags) -> bool {
    let fd = borrow(fd);
    let mut fds = [PollFd::new(&fd, flags)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && !fds[0].revents().is_empty()
}

fn signal(fd: RawFd) -> i32 {
    if !ready(fd, PollFlags::OUT) {
        return -libc::EAGAIN;
    }
    match rustix::io::write(borrow(fd), &1u64.to_ne_bytes()) {
        Ok(n) => n as i32,
        Err(error) => -error.raw_os_error(),
    }
}

impl World {
    pub(super) fn knows(&self, fd: RawFd) -> bool {
        DiskId::of(borrow(fd)).is_ok_and(|id| self.disks.contains_key(&id))
    }

    pub(super) fn file_in_use(&self, ring: usize, slot: FileSlot) -> bool {
        self.pending.iter().any(|e| e.ring == ring && file_of(&e.op) == Some(slot))
    }

    pub(super) fn push(&mut self, ring: usize, entry: Entry) {
        let client = self.rings[ring].client(entry.client);
        client.in_flight += 1;
        assert!(client.in_flight <= client.depth, "more than {} entries in flight", client.depth);
        assert!(
            !self.pending.iter().any(|e| (e.ring, e.client, e.token) == (ring, entry.client, entry.token)),
            "token {:?} is in flight already",
            entry.token
        );
        let mut pending = Pending {
            ring,
            client: entry.client,
            token: entry.token,
            op: entry.op,
            effect_at: self.now,
            done_at: self.now,
            fault: None,
            mark: 0,
            result: None,
        };
        self.schedule(&mut pending);
        self.pending.push(pending);
    }

    fn schedule(&mut self, entry: &mut Pending) {
        let Some((slot, kind, offset)) = io_of(&entry.op) else {
            if matches!(entry.op, RingOp::PollReadable { .. }) {
                (entry.effect_at, entry.done_at) = (NEVER, NEVER);
            }
            return;
        };
        let fd = self.rings[entry.ring].file(slot);
        let (least, most) = self.latency_ns;
        entry.done_at = self.now + self.rng.between(least, most);
        entry.effect_at = self.rng.between(self.now, entry.done_at);
        entry.mark = self.disks.get(&disk_of(fd)).map_or(0, SimDisk::mark);
        let rng = &mut self.rng;
        let rule = self.faults.iter_mut().find(|f| f.catches(fd, kind, offset) && rng.chance(f.percent, 100));
        if let Some(rule) = rule {
            rule.times -= 1;
            entry.fault = Some(rule.effect);
            match rule.effect {
                Effect::Stuck => (entry.effect_at, entry.done_at) = (NEVER, NEVER),
                Effect::Delay(ns) => entry.done_at += ns,
                Effect::Error(_) | Effect::Short => {}
            }
        }
    }

    fn next_event(&self) -> Option<usize> {
        let soonest = self.pending.iter().enumerate().min_by_key(|(_, e)| e.next_moment());
        soonest.filter(|(_, e)| e.next_moment() != NEVER).map(|(at, _)| at)
    }

    fn deliver_polls(&mut self) -> usize {
        let mut count = 0;
        for at in (0..self.pending.len()).rev() {
            if let RingOp::PollReadable { fd } = self.pending[at].op
                && self.powered
                && ready(fd, PollFlags::IN)
            {
                self.pending[at].result = Some(i32::from(PollFlags::IN.bits()));
                self.complete(at);
                count += 1;
            }
        }
        count
    }

    /// One event: an entry takes effect, or completes.
    fn step(&mut self, at: usize) {
        if self.pending[at].result.is_some() {
            self.complete(at);
            return;
        }
        if let RingOp::Cancel { target } = self.pending[at].op {
            let (ring, client) = (self.pending[at].ring, self.pending[at].client);
            self.pending[at].result = Some(self.cancel(ring, client, target));
            return;
        }
        self.pending[at].result = Some(self.effect(at));
        if self.changes >= self.stop_after {
            self.powered = false;
        }
    }

    fn complete(&mut self, at: usize) {
        let entry = self.pending.swap_remove(at);
        let client = self.rings[entry.ring].client(entry.client);
        client.in_flight -= 1;
        client.done.push(Done { token: entry.token, result: entry.result.expect("it has taken effect") });
    }

    fn cancel(&mut self, ring: usize, client: ClientId, target: Token) -> i32 {
        let now = self.now;
        let Some(entry) = self.pending.iter_mut().find(|e| (e.ring, e.client, e.token) == (ring, client, target))
        else {
            return -libc::ENOENT;
        };
        let waits = entry.effect_at == NEVER;
        if entry.result.is_some() || (!waits && self.rng.chance(1, 2)) {
            return -libc::EALREADY;
        }
        (entry.result, entry.done_at) = (Some(-libc::ECANCELED), now);
        0
    }

    fn effect(&mut self, at: usize) -> i32 {
        let entry = &self.pending[at];
        if let RingOp::Signal { fd } = entry.op {
            self.signals += 1;
            return signal(fd);
        }
        let (slot, kind, _) = io_of(&entry.op).expect("polls and cancels do not come here");
        let (op, fault, mark) = (entry.op, entry.fault, entry.mark);
        let disk = disk_of(self.rings[entry.ring].file(slot));
        let disk = self.disks.get_mut(&disk).expect("files are registered only with a disk");
        if self.dead {
            return -libc::EIO;
        }
        if kind != Kind::Read {
            self.changes += 1;
        }
        if let Some(Effect::Error(errno)) = fault {
            if kind == Kind::Sync {
                disk.fail_sync(mark);
            }
            return -errno;
        }
        let mut length = |data: SegmentList| match (fault, data.bytes() as usize) {
            (Some(Effect::Short), len) if len > SECTOR => {
                self.rng.between(1, (len / SECTOR - 1).max(1) as u64) as usize * SECTOR
            }
            (_, len) => len,
        };
        match op {
            RingOp::Read { data, offset, .. } => copy_to(data.as_slice(), 0, disk.read(offset, length(data))) as i32,
            RingOp::Write { data, offset, dsync, .. } => {
                let bytes = gather(data, length(data));
                if !bytes.is_empty() && offset >= disk.bytes() {
                    return -libc::ENOSPC;
                }
                disk.write(offset, &bytes, dsync && !self.switches.dsync_does_nothing) as i32
            }
            RingOp::Sync { .. } => {
                if !self.switches.sync_does_nothing {
                    disk.sync(mark, &mut self.rng);
                }
                0
            }
            RingOp::Fallocate { mode, offset, len, .. } => match mode & !libc::FALLOC_FL_KEEP_SIZE {
                libc::FALLOC_FL_PUNCH_HOLE => {
                    disk.zero(offset, len, true);
                    0
                }
                libc::FALLOC_FL_ZERO_RANGE => {
                    disk.zero(offset, len, false);
                    0
                }
                _ => -libc::EOPNOTSUPP,
            },
            RingOp::BlockDiscard { offset, len, .. } => {
                // A plain discard promises nothing about what is read afterwards.
                if self.rng.chance(1, 2) {
                    disk.zero(offset, len, true);
                }
                0
            }
            RingOp::PollReadable { .. } | RingOp::Signal { .. } | RingOp::Cancel { .. } => unreachable!("not I/O"),
        }
    }
}

fn file_of(op: &RingOp) -> Option<FileSlot> {
    io_of(op).map(|(file, ..)| file)
}

const fn io_of(op: &RingOp) -> Option<(FileSlot, Kind, u64)> {
    Some(match *op {
        RingOp::Read { file, offset, .. } => (file, Kind::Read, offset),
        RingOp::Write { file, offset, .. } => (file, Kind::Write, offset),
        RingOp::Sync { file } => (file, Kind::Sync, 0),
        RingOp::Fallocate { file, offset, .. } => (file, Kind::Fallocate, offset),
        RingOp::BlockDiscard { file, offset, .. } => (file, Kind::Discard, offset),
        RingOp::PollReadable { .. } | RingOp::Signal { .. } | RingOp::Cancel { .. } => return None,
    })
}
