//! A block device: what a layer promises to the one above it.
//!
//! [`Bdev`] is the device as the control plane holds it (shared, `Sync`); [`Channel`] is one reactor's way into it
//! (owned by that reactor, no locks). A stacked device opens channels of its base inside its own.
//!
//! Who checks what: the submitter checks ranges and alignment against [`Shape`] (see [`Io`]); the device checks only what
//! can change under the submitter's feet (it shrank, it is gone, it became read-only) and answers that as an [`IoError`].
//! A request that breaks the submitter's duties may end in a panic, never in touching memory or space outside it.

use std::sync::Arc;

use crate::{Completion, CopyRange, Cx, Io, IoError, IoStats, Lane, ScsiChannel, Segment, Tag};

/// What a device is like. A copy of the moment: size and presence can change, everything else is fixed while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Unit of addressing in bytes: 512 or 4096.
    pub block_size: u32,
    /// Unit that the medium writes at once, in bytes; at least `block_size`, a power of two.
    pub physical_block_size: u32,
    /// Capacity in blocks.
    pub num_blocks: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether acknowledged writes may sit in a volatile cache until a flush. Without one, flush and FUA cost nothing.
    pub volatile_cache: bool,
    /// Whether and how the device discards; `None`: [`Op::Discard`](crate::Op) is answered with `Unsupported`.
    pub discard: Option<Discard>,
    /// Preferred size of transfers in bytes; 0: no preference.
    pub optimal_io: u32,
    /// Rotation rate as in VPD page B1h: 0 unknown, 1 solid state, else rounds a minute.
    pub rotation_rate: u16,
    /// Which writes may have [`IoFlags::ATOMIC`](crate::IoFlags::ATOMIC); `None`: none.
    pub atomic_write: Option<AtomicWrite>,
}

impl Shape {
    /// Capacity in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.num_blocks * self.block_size as u64
    }
}

/// How a device discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Bytes below which a discard has no effect on the space used; a multiple of the block size.
    pub granularity: u32,
    /// Offset of the first granule in bytes.
    pub alignment: u32,
    /// Whether a discarded range reads as zeroes afterwards, every byte of it, whatever its alignment.
    pub reads_zero: bool,
}

/// Which writes a device does as a whole or not at all: all that are so, whatever else is under way. All in bytes and in
/// whole blocks, and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtomicWrite {
    /// The longest; a multiple of `granularity`.
    pub max: u32,
    /// Lengths are multiples of it.
    pub granularity: u32,
    /// They begin at multiples of it.
    pub alignment: u32,
}

impl AtomicWrite {
    /// Whether a write of this range can be atomic.
    #[must_use]
    pub const fn allows(self, offset: u64, len: u64) -> bool {
        len <= self.max as u64
            && len.is_multiple_of(self.granularity as u64)
            && offset.is_multiple_of(self.alignment as u64)
    }
}

/// Soft thresholds of a device, at most.
pub const MOST_THRESHOLDS: usize = 5;

/// The space of a device that takes it from a pool as it is written. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provisioning {
    /// What is taken at once; a power of two.
    pub grain: u64,
    /// What the device may still take.
    pub available: u64,
    /// Whether that is kept for it alone.
    pub dedicated: bool,
    /// What it has taken.
    pub used: u64,
    /// When its users are told.
    pub thresholds: [Option<Threshold>; MOST_THRESHOLDS],
}

/// A soft threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// It is reached when so much is available, or less.
    Available(u64),
    /// It is reached when so much is used, or more.
    Used(u64),
}

/// What it takes that nothing of what a device holds can be read any more, neither from it nor below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// Zeroes all over.
    Plain,
    /// The same, and before that zeroes with [`IoFlags::ERASE`](crate::IoFlags::ERASE), and a flush with it: what it gives back it
    /// does not overwrite.
    InPlace,
    /// It cannot be: it shares what it holds with another device.
    Shared,
}

/// The front of a range: how far it is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, in whole blocks; not 0. The next extent may be of the same kind.
    pub len: u64,
    /// Whether the device has it mapped. What is not mapped reads as zeroes, or as anything if the device does not say
    /// [`Discard::reads_zero`].
    pub mapped: bool,
}

impl Extent {
    /// A range that is mapped as far as anybody knows.
    #[must_use]
    pub const fn mapped(len: u64) -> Extent {
        Extent { len, mapped: true }
    }
}

/// How a channel is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenArgs {
    /// How many requests the opener wants in flight at most; the channel may allow fewer, never more.
    pub depth: u32,
    /// Where a device that uses randomness (delays, fault rules) starts, so that a run can be repeated.
    pub seed: u64,
}

/// Why a channel could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device, or one below it, is not there.
    #[error("the device is missing")]
    Missing,
    /// It was closed for good.
    #[error("the device was removed")]
    Removed,
    /// The process has no descriptor or memory left for it.
    #[error("no file descriptor or memory is left for the device (errno {0}): raise the limits of the process")]
    Resources(i32),
}

/// A block device as the control plane sees it.
pub trait Bdev: Send + Sync {
    /// What it is like now.
    fn shape(&self) -> Shape;

    /// What is mapped from `offset` on, looking at most at `len` bytes (inside the capacity, whole blocks, not 0). A
    /// block is mapped if any byte of it is; what a write that has completed before the call has touched is mapped,
    /// unless it was discarded since or reads as zeroes anyway. Who is not sure says that it is mapped.
    ///
    /// Called on reactors, and then neither waits nor takes long, unless [`Bdev::extent_waits`]: then on helper threads
    /// only.
    fn extent(&self, offset: u64, len: u64) -> Extent {
        let _ = offset;
        Extent::mapped(len)
    }

    /// Whether [`Bdev::extent`] may wait, for a file system's metadata say. Fixed while the device is open.
    fn extent_waits(&self) -> bool {
        false
    }

    /// Its space, if it takes that from a pool. Called on reactors: neither waits nor takes long.
    fn provisioning(&self) -> Option<Provisioning> {
        None
    }

    /// What holds up a helper thread that waits for this device: devices of one file system say the same. `None`: nobody
    /// knows of anything that it shares with others. Fixed while the device is open; called on reactors.
    fn lane(&self) -> Option<Lane> {
        None
    }

    /// What it takes to erase it, as it is now. Called on reactors: neither waits nor takes long.
    fn erasure(&self) -> Erasure {
        Erasure::Plain
    }

    /// Where a range (inside the capacity, whole blocks, not 0) lies for copies that devices do by themselves
    /// ([`PairCopy`](crate::PairCopy)); `None`: whoever wants to copy reads or writes it. A layer that changes data, or
    /// has to see it, says `None`. Called on reactors: neither waits nor takes long.
    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        let _ = (offset, len);
        None
    }

    /// Opens a way in for one reactor. Called off the reactors; takes all memory that requests will need.
    ///
    /// # Errors
    /// [`OpenError::Missing`] if the device or one below it is not there now.
    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError>;

    /// The same for a layer that counts what it does by itself, which it often can with less than anybody else.
    ///
    /// # Errors
    /// As [`Bdev::open`].
    fn open_counted(&self, args: OpenArgs) -> Result<CountedChannel, OpenError> {
        Ok(CountedChannel { channel: self.open(args)?, stats: None })
    }
}

/// A channel, and what counts what goes through it.
pub struct CountedChannel {
    /// The channel.
    pub channel: Box<dyn Channel>,
    /// Whoever has opened it counts into these, as their only writer, and nobody else does. `None`: whatever is to be counted
    /// is.
    pub stats: Option<Arc<IoStats>>,
}

/// Powers of two that segments should be aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of the address.
    pub addr: usize,
    /// Of the length.
    pub len: usize,
}

impl Alignment {
    /// Any address and length is right.
    pub const ANY: Alignment = Alignment { addr: 1, len: 1 };

    /// Whether all of the segments are aligned.
    #[inline]
    #[must_use]
    pub fn fits(self, segments: &[Segment]) -> bool {
        self == Alignment::ANY
            || segments.iter().all(|s| s.addr() & (self.addr - 1) == 0 && s.len() & (self.len - 1) == 0)
    }
}

/// When polling a channel can find something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Never: nothing is in flight.
    Idle,
    /// At the next poll: do not sleep.
    Now,
    /// Not before this time (nanoseconds of [`Ring::now_ns`](crate::Ring::now_ns)), or when the ring wakes up.
    At(u64),
    /// When the ring has completed something, or somebody has woken the reactor ([`Ring::waker`](crate::Ring::waker)):
    /// sleeping in the ring is right.
    Ring,
}

impl Next {
    /// The earlier of two.
    #[must_use]
    pub fn or(self, other: Next) -> Next {
        match (self, other) {
            (Next::Now, _) | (_, Next::Now) => Next::Now,
            (Next::At(a), Next::At(b)) => Next::At(a.min(b)),
            (Next::At(a), _) | (_, Next::At(a)) => Next::At(a),
            (Next::Ring, _) | (_, Next::Ring) => Next::Ring,
            (Next::Idle, Next::Idle) => Next::Idle,
        }
    }
}

/// One reactor's way into a device. Made off the reactor by [`Bdev::open`], then owned by it:
/// `attach`, any number of `submit`, `poll` and `cancel`, and, with nothing in flight, `detach`.
pub trait Channel: Send {
    /// How many requests may be in flight at once; fixed. The submitter keeps to it, so `submit` cannot fail.
    fn depth(&self) -> u32;

    /// What each segment's address and length should be a multiple of; a request with others is served all the same,
    /// but through a bounce buffer.
    fn alignment(&self) -> Alignment {
        Alignment::ANY
    }

    /// Enters the reactor: registers files and clients with its ring. Called once, before anything else.
    ///
    /// # Errors
    /// When the ring has no room; the channel is then dropped unused.
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError>;

    /// Leaves the reactor, giving back what `attach` took. Called once, with nothing in flight.
    fn detach(&mut self, cx: &mut Cx<'_>);

    /// Takes a request. Never blocks, never completes inside the call, not even an error.
    fn submit(&mut self, io: Io, cx: &mut Cx<'_>);

    /// Appends what has completed since the last poll; each tag exactly once. `done` has room for `depth` more.
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>);

    /// When to poll. A channel that answers [`Next::Idle`] is not polled.
    fn next(&self) -> Next;

    /// Asks to end a request early: it completes by `poll` like any other, soon and with `Aborted` where the device can
    /// do that, else when it is done. Unknown tags are ignored (the request may have completed meanwhile).
    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>);

    /// The way for whole SCSI commands, of a device that takes those and nothing else.
    fn scsi(&mut self) -> Option<&mut dyn ScsiChannel> {
        None
    }
}
