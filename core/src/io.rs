//! One request to a block device, and its answer.

use crate::SegmentList;

/// The submitter's name for a request; opaque to every layer below. At most one request in flight on a channel has it.
pub type Tag = u64;

/// The first bit of a tag that submitters leave 0. A layer in between may mark requests there that it passes on as they
/// are, instead of keeping something of them; where a layer above has done so already, it keeps something. Thin volumes use the
/// first eleven of these bits, what counts for stacked devices the last five.
pub const FIRST_MARK: u32 = 48;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Fill `data` from the range.
    Read,
    /// Store `data` in the range.
    Write,
    /// Make everything that was acknowledged before this request was submitted durable; the range is ignored.
    Flush,
    /// The range's content is no longer needed. Afterwards it reads as zeroes if the device's
    /// [`Discard::reads_zero`](crate::Discard) says so, else as anything it held before or zeroes.
    Discard,
    /// The range reads as zeroes afterwards. With [`IoFlags::MAY_DEALLOCATE`] the space below may be given back.
    WriteZeroes,
}

impl Op {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Op; 5] = [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes];

    /// The name used in metrics, fault rules and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write_zeroes",
        }
    }

    /// Whether the operation changes what is on the medium.
    #[must_use]
    pub const fn changes_data(self) -> bool {
        matches!(self, Op::Write | Op::Discard | Op::WriteZeroes)
    }
}

bitflags::bitflags! {
    /// How a request is to be done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IoFlags: u8 {
        /// On `Write`, `Discard`, `WriteZeroes`: durable before it completes.
        const FUA = 1;
        /// On `WriteZeroes`: the range may be unmapped as long as it then reads zero.
        const MAY_DEALLOCATE = 2;
        /// On `Write`, of a range that [`Shape::atomic_write`](crate::Shape::atomic_write) allows: all of it is on the
        /// medium or nothing, whatever happens: an error, a cancel, a power cut. Whether somebody who reads at the same
        /// time may see a part is the submitter's matter.
        const ATOMIC = 4;
        /// On what changes data: it does not wait for space that may come, but fails with [`IoError::NoSpace`] when there is none.
        const HASTY = 8;
        /// On `WriteZeroes` of a device that wants it ([`Erasure::InPlace`](crate::Erasure)): what is there is overwritten where
        /// it lies, and nothing else is done. On `Flush` of such a device: it completes when nothing is below any more, either, of
        /// what was given back before it was submitted and belongs to nobody else since.
        const ERASE = 16;
    }
}

/// One request. The submitter has checked that `offset` and `len` are multiples of the device's block size and lie
/// inside the capacity it last saw, that `len > 0` (except for `Flush`), and that `data` holds exactly `len` bytes for
/// `Read` and `Write` and is empty otherwise. A device that has shrunk since answers [`IoError::OutOfRange`].
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Comes back in the completion.
    pub tag: Tag,
    /// What to do.
    pub op: Op,
    /// How to do it.
    pub flags: IoFlags,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub len: u64,
    /// Where the bytes are; valid until the completion.
    pub data: SegmentList,
}

impl Io {
    /// A request without data: flush, discard, write zeroes.
    #[must_use]
    pub const fn without_data(tag: Tag, op: Op, flags: IoFlags, offset: u64, len: u64) -> Self {
        Io { tag, op, flags, offset, len, data: SegmentList::EMPTY }
    }

    /// One past the last byte; `None` if that is beyond 64 bits.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's tag.
    pub tag: Tag,
    /// How it ended.
    pub result: Result<(), IoError>,
}

/// Why a request failed, by meaning. Only front ends turn these into sense keys or status bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum IoError {
    /// The medium could not read or write the range.
    #[error("medium error")]
    Medium,
    /// No space is left for an allocating write; what is mapped stays writable.
    #[error("no space left")]
    NoSpace,
    /// Cancelled by the submitter or by the closing of the device.
    #[error("aborted")]
    Aborted,
    /// The device is read-only.
    #[error("read-only")]
    ReadOnly,
    /// The range lies outside the device (it has shrunk).
    #[error("out of range")]
    OutOfRange,
    /// The device does not do this operation.
    #[error("unsupported operation")]
    Unsupported,
    /// An earlier flush failed: nothing acknowledged since the last good one is known to be durable.
    #[error("an earlier flush failed; reopen the device")]
    FlushFailed,
    /// The device is not there (now).
    #[error("not ready")]
    NotReady,
    /// Memory or a kernel resource ran out for a moment; the same request may work later.
    #[error("resources exhausted")]
    Busy,
}

impl IoError {
    /// Every error, in the order of their discriminants.
    pub const ALL: [IoError; 9] = [
        IoError::Medium,
        IoError::NoSpace,
        IoError::Aborted,
        IoError::ReadOnly,
        IoError::OutOfRange,
        IoError::Unsupported,
        IoError::FlushFailed,
        IoError::NotReady,
        IoError::Busy,
    ];

    /// The name used in RPC answers and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            IoError::Medium => "medium",
            IoError::NoSpace => "no_space",
            IoError::Aborted => "aborted",
            IoError::ReadOnly => "read_only",
            IoError::OutOfRange => "out_of_range",
            IoError::Unsupported => "unsupported",
            IoError::FlushFailed => "flush_failed",
            IoError::NotReady => "not_ready",
            IoError::Busy => "busy",
        }
    }
}
