//! What becomes of an entry: when it takes effect, what it does then, and when it completes.

use std::os::fd::{BorrowedFd, RawFd};

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{ClientId, Done, Entry, FileSlot, RingOp, SegmentList, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::disk::{SECTOR, SimDisk};
use super::fault::{Effect, Kind};
use super::world::{DiskId, NEVER, Pending, World};

fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: whoever pushed or registered the descriptor keeps it open until the completion or removal (the contract of
    // `Ring`); the borrow ends within the call that made it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

pub(super) fn disk_of(fd: RawFd) -> DiskId {
    DiskId::of(borrow(fd)).expect("a registered descriptor is open")
}

pub(super) fn gather(data: SegmentList, at_most: usize) -> Vec<u8> {
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
                Effect::Stuck | Effect::Deaf => (entry.effect_at, entry.done_at) = (NEVER, NEVER),
                Effect::Delay(ns) => entry.done_at += ns,
                Effect::Error(_) | Effect::Short => {}
            }
        }
    }

    pub(super) fn next_event(&self) -> Option<usize> {
        let soonest = self.pending.iter().enumerate().min_by_key(|(_, e)| e.next_moment());
        soonest.filter(|(_, e)| e.next_moment() != NEVER).map(|(at, _)| at)
    }

    pub(super) fn deliver_polls(&mut self) -> usize {
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
    pub(super) fn step(&mut self, at: usize) {
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
        let deaf = entry.fault == Some(Effect::Deaf);
        if deaf || entry.result.is_some() || (!waits && self.rng.chance(1, 2)) {
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
            RingOp::WriteAtomic { data, offset, dsync, .. } => {
                let (bytes, dsync) = (gather(data, usize::MAX), dsync && !self.switches.dsync_does_nothing);
                if self.switches.atomic_tears {
                    return disk.write(offset, &bytes, dsync) as i32;
                }
                let len = bytes.len() as u64;
                if !len.is_power_of_two() || !offset.is_multiple_of(len) || offset + len > disk.bytes() {
                    return -libc::EINVAL;
                }
                disk.write_atomic(offset, &bytes, dsync);
                len as i32
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

pub(super) const fn io_of(op: &RingOp) -> Option<(FileSlot, Kind, u64)> {
    Some(match *op {
        RingOp::Read { file, offset, .. } => (file, Kind::Read, offset),
        RingOp::Write { file, offset, .. } | RingOp::WriteAtomic { file, offset, .. } => (file, Kind::Write, offset),
        RingOp::Sync { file } => (file, Kind::Sync, 0),
        RingOp::Fallocate { file, offset, .. } => (file, Kind::Fallocate, offset),
        RingOp::BlockDiscard { file, offset, .. } => (file, Kind::Discard, offset),
        RingOp::PollReadable { .. } | RingOp::Signal { .. } | RingOp::Cancel { .. } => return None,
    })
}
