//! The clock, the media and everything in flight.
//!
//! An entry has two moments, both drawn from the seed: when it takes effect and when it completes. Entries overtake each
//! other freely, as on a real disk. A crash may come between the two.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use pollux_core::{ClientId, CopyError, IoError, RingOp, Token};

use super::disk::{Mark, SimDisk};
use super::fault::{Effect, Fault, Kind};
use super::kernel::{disk_of, gather, io_of};
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
    /// Atomic writes are torn like others.
    pub atomic_tears: bool,
}

/// A read or write in flight. Two of them differ, also if one comes after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    ring: usize,
    client: ClientId,
    token: Token,
    /// On which disk.
    pub disk: DiskId,
    /// Which of the two.
    pub kind: Kind,
    /// Where it begins.
    pub offset: u64,
}

pub(super) const NEVER: u64 = u64::MAX;

pub(super) struct Pending {
    pub(super) ring: usize,
    pub(super) client: ClientId,
    pub(super) token: Token,
    pub(super) op: RingOp,
    /// When it takes effect; `NEVER` for one that waits for something.
    pub(super) effect_at: u64,
    /// When it completes, once it has taken effect.
    pub(super) done_at: u64,
    /// What it was caught by.
    pub(super) fault: Option<Effect>,
    /// For a sync: what it covers.
    pub(super) mark: Mark,
    pub(super) result: Option<i32>,
}

impl Pending {
    pub(super) const fn next_moment(&self) -> u64 {
        if self.result.is_some() { self.done_at } else { self.effect_at }
    }
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) rng: Rng,
    pub(super) disks: BTreeMap<DiskId, SimDisk>,
    pub(super) rings: Vec<RingState>,
    pub(super) pending: Vec<Pending>,
    pub(super) faults: Vec<Fault>,
    pub(super) switches: Switches,
    pub(super) latency_ns: (u64, u64),
    pub(super) changes: u64,
    pub(super) stop_after: u64,
    pub(super) powered: bool,
    pub(super) dead: bool,
    pub(super) signals: u64,
}

impl World {
    /// Whether a rule has this fail.
    fn fails(&mut self, kind: Kind, (file, offset): (&OwnedFd, u64)) -> Option<i32> {
        let rng = &mut self.rng;
        let caught = |f: &&mut Fault| {
            matches!(f.effect, Effect::Error(_))
                && f.catches(file.as_raw_fd(), kind, offset)
                && rng.chance(f.percent, 100)
        };
        let rule = self.faults.iter_mut().find(caught)?;
        rule.times -= 1;
        if let Effect::Error(errno) = rule.effect { Some(errno) } else { None }
    }
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

    /// How many disks are like that.
    #[must_use]
    pub fn count_disks(&self, like: impl Fn(&SimDisk) -> bool) -> usize {
        self.lock().disks.values().filter(|disk| like(disk)).count()
    }

    /// A copy from disk to disk, as one change of the target. Of rules, those that have a read or a write of either fail
    /// are heeded.
    pub(super) fn copy(&self, from: (&OwnedFd, u64), to: (&OwnedFd, u64), len: u64) -> Result<(), CopyError> {
        let mut guard = self.lock();
        let world = &mut *guard;
        let broken = |errno| if errno == libc::ENOSPC { IoError::NoSpace } else { IoError::Medium };
        if world.dead || !world.powered {
            return Err(CopyError::Target(IoError::Medium));
        }
        if let Some(errno) = world.fails(Kind::Read, from) {
            return Err(CopyError::Source(broken(errno)));
        }
        if let Some(errno) = world.fails(Kind::Write, to) {
            return Err(CopyError::Target(broken(errno)));
        }
        let [source, target] = [from.0, to.0].map(|file| disk_of(file.as_raw_fd()));
        let bytes = world.disks[&source].read(from.1, usize::try_from(len).expect("a short step")).to_vec();
        world.disks.get_mut(&target).expect("the disk was added").write(to.1, &bytes, false);
        world.changes += 1;
        if world.changes >= world.stop_after {
            world.powered = false;
        }
        Ok(())
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
        for entry in world.pending.iter_mut().filter(|e| matches!(e.fault, Some(Effect::Stuck | Effect::Deaf))) {
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

    /// The reads and writes in flight.
    #[must_use]
    pub fn transfers(&self) -> Vec<Transfer> {
        let world = self.lock();
        let transfers = world.pending.iter().filter_map(|entry| {
            let (file, kind, offset) = io_of(&entry.op)?;
            let disk = disk_of(world.rings[entry.ring].file(file));
            Some(Transfer { disk, ring: entry.ring, client: entry.client, token: entry.token, kind, offset })
        });
        transfers.filter(|transfer| matches!(transfer.kind, Kind::Read | Kind::Write)).collect()
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
        let mut writes: BTreeMap<DiskId, Vec<(u64, Vec<u8>, bool)>> = BTreeMap::new();
        for entry in &mut world.pending {
            if io_of(&entry.op).is_none() {
                continue;
            }
            if let (RingOp::Write { file, data, offset, .. } | RingOp::WriteAtomic { file, data, offset, .. }, None) =
                (entry.op, entry.result)
            {
                let atomic = matches!(entry.op, RingOp::WriteAtomic { .. }) && !world.switches.atomic_tears;
                let id = disk_of(world.rings[entry.ring].file(file));
                writes.entry(id).or_default().push((offset, gather(data, usize::MAX), atomic));
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
