//! One request's way: from its start through entries of the ring to its end.
//!
//! A request has at most one entry in the ring. What it wants next ([`Want`]) is worked out here, without touching the
//! ring, and carried out by the channel, which comes back with what became of it.

#![allow(unsafe_code)] // To give the ring lists of segments; each says who keeps them.

use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{FileSlot, Io, IoError, IoFlags, IoStats, Op, RingOp, Segment, SegmentList};

use super::bounce::{BounceBuffer, Pool};
use super::errno::{again, meaning, not_supported, says_nothing_about_older_writes};
use super::{Atomic, Open, ZERO_LEN, ZERO_REPEAT};
use crate::memory::{gather, list, scatter};

/// Most segments of one entry.
const IOV_MAX: usize = 1024;
/// Longest range of one discard or zero entry, so that a cancel gets through.
const RANGE_MAX: u64 = 1 << 30;
/// How often an entry is pushed again after `EAGAIN` or `EINTR`.
const RETRIES: u32 = 1000;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Between the medium and the submitter's memory, as many segments at once as an entry holds.
    Transfer,
    /// The same through a bounce buffer, a buffer's length at a time.
    Bounce,
    /// A range operation of the kernel, tried in the order of `ways`.
    Range,
    /// Zeroes written by us.
    Zeroes,
    /// All is written; an `fdatasync` makes it durable.
    Sync,
}

/// How a range is discarded or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `FALLOC_FL_PUNCH_HOLE`; on block devices the kernel's write-zeroes without a fallback. Reads zero.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`; on block devices the kernel's write-zeroes that keeps the space. Reads zero.
    ZeroRange,
    /// A device's own discard; promises nothing.
    DeviceDiscard,
    /// Ordinary writes.
    Write,
}

const GIVE_BACK: &[Way] = &[Way::Punch, Way::ZeroRange, Way::Write];
const KEEP: &[Way] = &[Way::ZeroRange, Way::Write];
const HINT: &[Way] = &[Way::DeviceDiscard];

/// What a request needs to go on.
#[derive(Debug)]
pub(super) enum Want {
    /// This entry in the ring.
    Entry(RingOp),
    /// A large bounce buffer; none is free.
    Buffer,
    /// A sync that starts after now.
    Sync,
    /// Nothing: it has ended.
    End(Result<(), IoError>),
}

/// What a request works with.
pub(super) struct Env<'a> {
    pub(super) open: &'a Open,
    pub(super) file: FileSlot,
    pub(super) pool: &'a mut Pool,
    pub(super) stats: &'a IoStats,
}

/// A request in flight. It stays where it is (in the channel's slab) from its first entry to its end, because an entry
/// may point to `own`.
pub(super) struct Request {
    pub(super) io: Io,
    stage: Stage,
    /// Bytes of the range that are dealt with.
    done: u64,
    /// Bytes that the entry in the ring is about.
    chunk: u64,
    /// The one segment of an entry whose data is not a run of the submitter's segments.
    own: Segment,
    buffer: Option<BounceBuffer>,
    ways: &'static [Way],
    retries: u32,
    /// An entry of it is in the ring.
    pub(super) in_ring: bool,
    /// The submitter wants it to end.
    pub(super) cancelled: bool,
    /// An entry that cancels it is in the ring.
    pub(super) cancel_in_ring: bool,
    /// How it ended, when only the completion of the cancelling entry is missing.
    pub(super) ended: Option<Result<(), IoError>>,
}

impl Request {
    pub(super) const fn new(io: Io) -> Self {
        Request {
            io,
            stage: Stage::Transfer,
            done: 0,
            chunk: 0,
            own: Segment::EMPTY,
            buffer: None,
            ways: &[],
            retries: 0,
            in_ring: false,
            cancelled: false,
            cancel_in_ring: false,
            ended: None,
        }
    }

    /// The first step.
    pub(super) fn start(&mut self, env: &mut Env<'_>) -> Want {
        if let Err(error) = self.admit(env.open) {
            return Want::End(Err(error));
        }
        let geometry = &env.open.geometry;
        self.stage = match self.io.op {
            Op::Flush => Stage::Sync,
            Op::Read | Op::Write if self.is_aligned(env.open) && !self.is_scattered(env.open) => Stage::Transfer,
            Op::Read | Op::Write => {
                env.stats.bounces.add(1);
                Stage::Bounce
            }
            Op::Discard | Op::WriteZeroes => Stage::Range,
        };
        self.ways = match self.io.op {
            Op::Discard if geometry.discard.is_some_and(|discard| !discard.reads_zero) => HINT,
            Op::Discard => GIVE_BACK,
            // Who has switched discards off wants to keep the space.
            _ if self.io.flags.contains(IoFlags::MAY_DEALLOCATE) && geometry.discard.is_some() => GIVE_BACK,
            _ => KEEP,
        };
        self.advance(env)
    }

    /// What can have changed since the submitter looked at the shape.
    fn admit(&self, open: &Open) -> Result<(), IoError> {
        let Io { op, flags, .. } = self.io;
        if op.changes_data() && open.geometry.read_only {
            return Err(IoError::ReadOnly);
        }
        if op != Op::Flush && self.io.end().is_none_or(|end| end > open.bytes()) {
            return Err(IoError::OutOfRange);
        }
        if op == Op::Discard && open.geometry.discard.is_none() {
            return Err(IoError::Unsupported);
        }
        if (op == Op::Flush || flags.contains(IoFlags::FUA)) && open.flush_failed.load(Relaxed) {
            return Err(IoError::FlushFailed);
        }
        if self.is_atomic() {
            let allows = |atomic: Atomic| atomic.write.allows(self.io.offset, self.io.len);
            return if open.geometry.atomic.is_some_and(allows) { Ok(()) } else { Err(IoError::Unsupported) };
        }
        Ok(())
    }

    /// Whether the kernel takes the submitter's memory as it is. Not only the whole but every segment has to be aligned.
    fn is_aligned(&self, open: &Open) -> bool {
        let geometry = &open.geometry;
        let (memory, length) = (geometry.mem_align as usize, geometry.offset_align as usize);
        let fits = |s: &Segment| s.addr().is_multiple_of(memory) && s.len().is_multiple_of(length);
        !geometry.direct || self.io.data.as_slice().iter().all(fits)
    }

    const fn is_atomic(&self) -> bool {
        self.io.flags.contains(IoFlags::ATOMIC)
    }

    /// Whether it has to be in one piece and is in more segments than the kernel makes one of.
    fn is_scattered(&self, open: &Open) -> bool {
        self.is_atomic() && open.geometry.atomic.is_none_or(|atomic| self.io.data.as_slice().len() > atomic.segments)
    }

    /// Whether each write is durable by itself. Through the page cache it is not: there the error of an older
    /// write-back may be reported to whichever call comes first, so only the channel's one sync at a time may ask.
    fn dsync(&self, open: &Open) -> bool {
        open.geometry.direct && self.io.op == Op::Write && self.io.flags.contains(IoFlags::FUA)
    }

    /// The next step. All branches of a request are here.
    pub(super) fn advance(&mut self, env: &mut Env<'_>) -> Want {
        if self.stage != Stage::Sync && self.done == self.io.len {
            if !self.io.flags.contains(IoFlags::FUA) || self.dsync(env.open) || self.io.op == Op::Read {
                return Want::End(Ok(()));
            }
            self.stage = Stage::Sync;
        }
        if self.cancelled {
            return Want::End(Err(IoError::Aborted));
        }
        match self.stage {
            Stage::Transfer => {
                let data = self.window();
                Want::Entry(self.transfer(data, env))
            }
            Stage::Bounce => self.bounce(env),
            Stage::Range => self.range(env),
            Stage::Zeroes => {
                let data = self.zeroes(env.open);
                Want::Entry(self.transfer(data, env))
            }
            Stage::Sync => Want::Sync,
        }
    }

    /// An entry of the ring has ended: takes note of how far it came, and goes on.
    pub(super) fn landed(&mut self, result: i32, env: &mut Env<'_>) -> Want {
        if result < 0 {
            return self.failed(-result, env);
        }
        self.retries = 0;
        match self.stage {
            Stage::Range => self.done += self.chunk,
            Stage::Transfer | Stage::Bounce | Stage::Zeroes => {
                let moved = self.moved(result as u64, env.open);
                if moved == 0 || moved < self.chunk && self.is_atomic() {
                    // A read that brings nothing has met the end of a file that has become shorter. Atomic writes never end
                    // short.
                    let error = if self.io.op == Op::Read { IoError::OutOfRange } else { IoError::Medium };
                    return Want::End(Err(error));
                }
                if let (Some(buffer), Op::Read) = (&self.buffer, self.io.op) {
                    let from = env.pool.segment(buffer, moved as usize);
                    scatter(from, self.io.data.as_slice(), self.done as usize);
                }
                self.done += moved;
            }
            Stage::Sync => unreachable!("syncs are the channel's"),
        }
        assert!(self.done <= self.io.len, "the kernel moves no more than it was asked to");
        self.advance(env)
    }

    /// How many of the bytes that were moved count: direct I/O goes on only from where it is aligned.
    fn moved(&self, bytes: u64, open: &Open) -> u64 {
        assert!(bytes <= self.chunk, "the kernel moves no more than it was asked to");
        if open.geometry.direct && bytes < self.chunk {
            return bytes - bytes % u64::from(open.geometry.offset_align);
        }
        bytes
    }

    fn failed(&mut self, errno: i32, env: &mut Env<'_>) -> Want {
        if again(errno) && self.retries < RETRIES {
            self.retries += 1;
            return self.advance(env);
        }
        match self.stage {
            Stage::Range if not_supported(errno) || errno == libc::EINVAL => {
                match self.ways[0] {
                    Way::Punch if errno != libc::EINVAL => env.open.no_punch.store(true, Relaxed),
                    Way::ZeroRange if errno != libc::EINVAL => env.open.no_zero_range.store(true, Relaxed),
                    _ => {}
                }
                self.ways = &self.ways[1..];
                return self.advance(env);
            }
            // The kernel is stricter about memory than it said.
            Stage::Transfer if errno == libc::EINVAL && env.open.geometry.direct => {
                env.stats.bounces.add(1);
                self.stage = Stage::Bounce;
                return self.advance(env);
            }
            Stage::Transfer | Stage::Bounce if self.dsync(env.open) && !says_nothing_about_older_writes(errno) => {
                env.open.flush_failed.store(true, Relaxed);
            }
            _ => {}
        }
        Want::End(Err(meaning(errno)))
    }

    /// Takes the bounce buffer away at the end.
    pub(super) const fn take_buffer(&mut self) -> Option<BounceBuffer> {
        self.buffer.take()
    }

    fn position(&self) -> u64 {
        self.io.offset + self.done
    }

    fn transfer(&self, data: SegmentList, env: &Env<'_>) -> RingOp {
        let (file, offset) = (env.file, self.position());
        match self.io.op {
            Op::Read => RingOp::Read { file, data, offset },
            Op::Write if self.is_atomic() => RingOp::WriteAtomic { file, data, offset, dsync: self.dsync(env.open) },
            _ => RingOp::Write { file, data, offset, dsync: self.dsync(env.open) },
        }
    }

    /// The next segments of the submitter's list: a run of whole ones, or the rest of one that was cut.
    fn window(&mut self) -> SegmentList {
        let segments = self.io.data.as_slice();
        let (mut first, mut skip) = (0, self.done as usize);
        // Past empty ones too, so that every entry moves something.
        while skip >= segments[first].len() {
            skip -= segments[first].len();
            first += 1;
        }
        if skip > 0 {
            let rest = segments[first].slice(skip, usize::MAX);
            return self.own(rest);
        }
        let run = &segments[first..segments.len().min(first + IOV_MAX)];
        self.chunk = run.iter().map(|s| s.len() as u64).sum();
        // SAFETY: a part of the submitter's list, which stays as it is until the request has completed.
        unsafe { list(run) }
    }

    fn own(&mut self, segment: Segment) -> SegmentList {
        self.own = segment;
        self.chunk = segment.len() as u64;
        // SAFETY: `self` stays in the channel's slab until the request has ended, and `own` is not changed before the
        // entry that points to it has completed.
        unsafe { list(std::slice::from_ref(&self.own)) }
    }

    fn bounce(&mut self, env: &mut Env<'_>) -> Want {
        let left = self.io.len - self.done;
        if self.buffer.is_none() {
            self.buffer = env.pool.take(left);
        }
        let Some(buffer) = &self.buffer else {
            return Want::Buffer;
        };
        let len = buffer.piece(left);
        let piece = env.pool.segment(buffer, len);
        if self.io.op == Op::Write {
            let copied = gather(self.io.data.as_slice(), self.done as usize, piece);
            assert_eq!(copied, len, "the segments hold what the request says");
        }
        let data = self.own(piece);
        Want::Entry(self.transfer(data, env))
    }

    fn zeroes(&mut self, open: &Open) -> SegmentList {
        let left = self.io.len - self.done;
        let whole = (left / ZERO_LEN as u64).min(ZERO_REPEAT as u64) as usize;
        if whole == 0 {
            return self.own(open.zero_memory.segment(0, left as usize));
        }
        self.chunk = (whole * ZERO_LEN) as u64;
        // SAFETY: the list belongs to the opening, which the channel holds as long as it has something in the ring.
        unsafe { list(&open.zeroes[..whole]) }
    }

    fn range(&mut self, env: &mut Env<'_>) -> Want {
        let (file, offset) = (env.file, self.position());
        let len = (self.io.len - self.done).min(RANGE_MAX);
        self.chunk = len;
        let align = u64::from(env.open.geometry.range_align);
        let aligned = offset.is_multiple_of(align) && len.is_multiple_of(align);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        while let Some(way) = self.ways.first() {
            let op = match way {
                Way::Punch if aligned && !env.open.no_punch.load(Relaxed) => {
                    RingOp::Fallocate { file, mode: libc::FALLOC_FL_PUNCH_HOLE | keep, offset, len }
                }
                Way::ZeroRange if aligned && !env.open.no_zero_range.load(Relaxed) => {
                    RingOp::Fallocate { file, mode: libc::FALLOC_FL_ZERO_RANGE | keep, offset, len }
                }
                Way::DeviceDiscard if aligned => RingOp::BlockDiscard { file, offset, len },
                Way::Write => {
                    self.stage = Stage::Zeroes;
                    return self.advance(env);
                }
                Way::Punch | Way::ZeroRange | Way::DeviceDiscard => {
                    self.ways = &self.ways[1..];
                    continue;
                }
            };
            return Want::Entry(op);
        }
        // Nothing is left of a discard that promises nothing: the range stays as it is.
        self.done = self.io.len;
        self.advance(env)
    }
}
