//! What a reactor's io_uring offers to the devices on it, as a trait, so that a simulated disk can stand in.
//!
//! A channel becomes a *client* of the ring; what it pushes carries the client and a [`Token`], an index into the
//! client's slab with a generation that is checked on the way back. Completions wait in the client's own list until it
//! reaps them. The ring enters the kernel once a turn, not at each push.

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::{SegmentList, Wake};

/// A client of a ring: whose completions these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(pub u16);

/// A file registered with a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSlot(pub u32);

/// Names one entry in flight: an index into the client's slab and the generation of that slab entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Index into the client's slab; below 2^24.
    pub index: u32,
    /// Generation of the slab entry.
    pub generation: u16,
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub enum RingOp {
    /// Read into the segments. May end short: the result is the number of bytes. At most 1024 segments (`IOV_MAX`).
    Read {
        /// From which file.
        file: FileSlot,
        /// Into which memory.
        data: SegmentList,
        /// From which byte on.
        offset: u64,
    },
    /// Write the segments. May end short. At most 1024 segments.
    Write {
        /// To which file.
        file: FileSlot,
        /// From which memory.
        data: SegmentList,
        /// From which byte on.
        offset: u64,
        /// Durable before it completes (`RWF_DSYNC`).
        dsync: bool,
    },
    /// Write the segments as a whole or not at all (`RWF_ATOMIC`). Never ends short. The file, the range and the number of
    /// segments have to be as the kernel wants them for that (`STATX_WRITE_ATOMIC`), else it fails with `-EINVAL` or
    /// `-EOPNOTSUPP`.
    WriteAtomic {
        /// To which file.
        file: FileSlot,
        /// From which memory.
        data: SegmentList,
        /// From which byte on.
        offset: u64,
        /// Durable before it completes (`RWF_DSYNC`).
        dsync: bool,
    },
    /// `fdatasync`.
    Sync {
        /// Of which file.
        file: FileSlot,
    },
    /// `fallocate` with this mode.
    Fallocate {
        /// In which file.
        file: FileSlot,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Discard on a block device (`BLOCK_URING_CMD_DISCARD`); promises no zeroes.
    BlockDiscard {
        /// On which device.
        file: FileSlot,
        /// From which byte on.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Completes when the descriptor is readable; once.
    PollReadable {
        /// Kept open by the client until the completion.
        fd: RawFd,
    },
    /// Adds one to an eventfd, without ever blocking anybody; completes when that is done or has failed: with `-EAGAIN`
    /// if it is full (its reader has been told then) or is not `O_NONBLOCK` (whoever received it has to see to that).
    Signal {
        /// Kept open by the client until the completion.
        fd: RawFd,
    },
    /// Tries to end the client's entry `target` early. Both complete: the target with `-ECANCELED` if it worked.
    Cancel {
        /// The entry to end.
        target: Token,
    },
}

/// One entry to be pushed.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Who gets the completion.
    pub client: ClientId,
    /// Which of the client's entries it is.
    pub token: Token,
    /// What to do.
    pub op: RingOp,
}

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The token of the entry.
    pub token: Token,
    /// The kernel's result: a count, or a negative `errno`.
    pub result: i32,
}

/// Why a file or client could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// All places are taken.
    #[error("the ring has no room for another file or client")]
    Full,
    /// The kernel refused, with this `errno`.
    #[error("the kernel refused (errno {0})")]
    Os(i32),
}

/// A reactor's ring, as its devices see it.
pub trait Ring {
    /// Monotonic time in nanoseconds. Costs a clock read; within a turn use [`Cx::now`](crate::Cx).
    fn now_ns(&self) -> u64;

    /// What ends the sleep of the reactor whose ring this is, for whoever changes memory that something on the reactor
    /// looks at. It outlives the ring, and does nothing then.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Registers a client that will have at most `depth` entries in flight.
    ///
    /// # Errors
    /// [`RingError::Full`].
    fn add_client(&mut self, depth: u32) -> Result<ClientId, RingError>;

    /// Takes a client out. It has nothing in flight.
    fn remove_client(&mut self, client: ClientId);

    /// Registers a file. The caller keeps the descriptor open until `remove_file`.
    ///
    /// # Errors
    /// [`RingError::Full`] or the kernel's refusal.
    fn add_file(&mut self, fd: RawFd) -> Result<FileSlot, RingError>;

    /// Registers a file like `add_file` whose reads and writes are to go the shortest way that the ring has for them.
    /// `polled`: it is open for direct I/O, and its device can be asked for completions (it has poll queues).
    ///
    /// # Errors
    /// [`RingError::Full`] or the kernel's refusal.
    fn add_data_file(&mut self, fd: RawFd, polled: bool) -> Result<FileSlot, RingError> {
        let _ = polled;
        self.add_file(fd)
    }

    /// Takes a file out. Nothing is in flight on it.
    fn remove_file(&mut self, file: FileSlot);

    /// Puts an entry into the submission queue. Cannot fail: a full queue is handed to the kernel on the spot.
    fn push(&mut self, entry: Entry);

    /// Moves the client's completions to the end of `done`.
    fn reap(&mut self, client: ClientId, done: &mut Vec<Done>);
}
