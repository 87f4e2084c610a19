//! A command that looks at data on its way: it compares, or combines, what the guest sends with what the device holds, or
//! has to hand it on in one piece.
//!
//! The front end lends it two pieces of its own memory of [`PIECE_LEN`] bytes, *sent* and *held*, and does one [`Task`]
//! after the other: fetch a part of the data-out into *sent*, load a part of the device into *held*, store *sent* to
//! the device. What is decided is decided on these copies, so a guest that changes its buffer meanwhile changes nothing
//! but its own data.
//!
//! Large ranges go in pieces. Between two pieces nothing is in the memory, and a job says so ([`Task::Pause`]) for others
//! to have it; not so one that has its range to itself: that one has to come to its end.

use pollux_core::{IoError, IoFlags, Op};

use crate::plan::Range;
use crate::{Key, Outcome, Sense, code, io_outcome};

/// How many bytes of *sent* and of *held* a job needs.
pub const PIECE_LEN: usize = 128 * 1024;

/// What a job does with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads it.
    Read,
    /// Compares it with the data-out.
    Compare,
    /// Compares each block of it with the one block that is the data-out.
    CompareEach { block: usize },
    /// Writes the data-out, durably, and reads it; `compare`: and compares it.
    WriteAndRead { compare: bool },
    /// Writes the data-out ORed with what is there.
    Or,
    /// Compares it with the first half of the data-out; if that is equal, writes the second half. One piece.
    CompareAndWrite,
    /// Writes the data-out at once, as the device's atomic write. One piece.
    WriteAtomic,
}

impl Kind {
    /// Whether it is one piece, wherever it begins.
    const fn is_whole(self) -> bool {
        matches!(self, Kind::CompareAndWrite | Kind::WriteAtomic)
    }
}

/// What the front end is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Copy `len` bytes of the data-out, from `at` on, to the front of *sent*.
    Fetch {
        /// First byte.
        at: u64,
        /// Bytes.
        len: usize,
    },
    /// Read from the device to the front of *held*.
    Load {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Write the front of *sent* to the device.
    Store {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
        /// `FUA` where the data has to be durable before the answer; `ATOMIC`.
        flags: IoFlags,
    },
    /// Another command may have the memory before this one goes on, with any.
    Pause,
    /// The command has ended.
    End(Outcome),
}

/// What has been done of the present piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Fetched,
    /// To be loaded after it was written.
    Reread,
    Loaded,
    /// The second half of the data-out, after the first.
    FetchedNew,
    Written,
}

/// A command on its way.
#[derive(Debug)]
pub struct Job {
    kind: Kind,
    range: Range,
    flags: IoFlags,
    /// Bytes of the range that are done.
    done: u64,
    stage: Stage,
    /// The operation of the task given last.
    last: Op,
}

impl Job {
    /// `range` is not empty; for `CompareAndWrite` and `WriteAtomic` not longer than a piece.
    pub(crate) fn new(kind: Kind, range: Range, flags: IoFlags) -> Job {
        debug_assert!(!kind.is_whole() || range.len <= PIECE_LEN as u64);
        Job { kind, range, flags, done: 0, stage: Stage::Begin, last: Op::Read }
    }

    /// How many bytes of data-out it is about.
    #[must_use]
    pub const fn data_out(&self) -> u64 {
        match self.kind {
            Kind::Read => 0,
            Kind::CompareEach { block } => block as u64,
            Kind::Compare | Kind::WriteAndRead { .. } | Kind::Or | Kind::WriteAtomic => self.range.len,
            Kind::CompareAndWrite => 2 * self.range.len,
        }
    }

    /// Whether it may change what it touches.
    #[must_use]
    pub const fn changes(&self) -> bool {
        matches!(self.kind, Kind::WriteAndRead { .. } | Kind::Or | Kind::CompareAndWrite | Kind::WriteAtomic)
    }

    /// Whether nobody else may touch its range from its beginning to its end.
    #[must_use]
    pub const fn is_exclusive(&self) -> bool {
        matches!(self.kind, Kind::Or | Kind::CompareAndWrite | Kind::WriteAtomic)
    }

    /// Offset and length of what it touches before the next [`Task::Pause`] or its end.
    #[must_use]
    pub const fn span(&self) -> (u64, u64) {
        if self.is_exclusive() {
            return (self.range.offset, self.range.len);
        }
        let Range { offset, len } = self.piece();
        (offset, len)
    }

    /// The range of the present piece. Pieces end at multiples of their length, so that they stay aligned.
    const fn piece(&self) -> Range {
        const PIECE: u64 = PIECE_LEN as u64;
        let (offset, left) = (self.range.offset + self.done, self.range.len - self.done);
        let most = if self.kind.is_whole() { PIECE } else { PIECE - offset % PIECE };
        Range { offset, len: if left < most { left } else { most } }
    }

    /// What to do next; all that was asked for before has been done.
    ///
    /// # Panics
    /// If one of the two is shorter than [`PIECE_LEN`].
    pub fn next(&mut self, sent: &mut [u8], held: &[u8]) -> Task {
        let Range { len, .. } = self.piece();
        let len = usize::try_from(len).unwrap_or(PIECE_LEN);
        match self.stage {
            Stage::Begin => self.begin(len),
            Stage::Fetched => match self.kind {
                Kind::WriteAndRead { .. } => self.store(Stage::Reread, len),
                Kind::WriteAtomic => self.store(Stage::Written, len),
                _ => self.load(len),
            },
            Stage::Reread => self.load(len),
            Stage::Loaded => self.judge(&mut sent[..len], &held[..len]),
            Stage::FetchedNew => self.store(Stage::Written, len),
            Stage::Written => self.piece_done(len),
        }
    }

    fn begin(&mut self, len: usize) -> Task {
        let (at, len) = match self.kind {
            Kind::Read => return self.load(len),
            Kind::CompareEach { block } => (0, block),
            _ => (self.done, len),
        };
        self.stage = Stage::Fetched;
        Task::Fetch { at, len }
    }

    fn load(&mut self, len: usize) -> Task {
        (self.stage, self.last) = (Stage::Loaded, Op::Read);
        Task::Load { offset: self.piece().offset, len }
    }

    fn store(&mut self, then: Stage, len: usize) -> Task {
        (self.stage, self.last) = (then, Op::Write);
        Task::Store { offset: self.piece().offset, len, flags: self.flags }
    }

    /// Looks at what was loaded.
    fn judge(&mut self, sent: &mut [u8], held: &[u8]) -> Task {
        let differs = match self.kind {
            Kind::Read | Kind::WriteAndRead { compare: false } | Kind::Or | Kind::WriteAtomic => None,
            Kind::Compare | Kind::WriteAndRead { compare: true } | Kind::CompareAndWrite => difference(sent, held),
            Kind::CompareEach { block } => first_other(&sent[..block], held),
        };
        if let Some(at) = differs {
            return Task::End(Outcome::check(miscompare(self.done + at as u64)));
        }
        match self.kind {
            Kind::Or => {
                sent.iter_mut().zip(held).for_each(|(sent, held)| *sent |= held);
                self.store(Stage::Written, sent.len())
            }
            Kind::CompareAndWrite => {
                self.stage = Stage::FetchedNew;
                Task::Fetch { at: self.range.len, len: sent.len() }
            }
            _ => self.piece_done(sent.len()),
        }
    }

    fn piece_done(&mut self, len: usize) -> Task {
        self.done += len as u64;
        self.stage = Stage::Begin;
        if self.done == self.range.len {
            return Task::End(Outcome::GOOD);
        }
        if !self.is_exclusive() {
            return Task::Pause;
        }
        let Range { len, .. } = self.piece();
        self.begin(usize::try_from(len).unwrap_or(PIECE_LEN))
    }

    /// The outcome of the command when the task given last has failed.
    #[must_use]
    pub const fn fail_outcome(&self, error: IoError) -> Outcome {
        io_outcome(self.last, error)
    }
}

/// MISCOMPARE DURING VERIFY OPERATION, with the offset of the first byte that differs.
fn miscompare(at: u64) -> Sense {
    let mut sense = Sense::new(Key::Miscompare, code::MISCOMPARE_DURING_VERIFY);
    sense.info = Some(at);
    sense
}

/// The first byte in which two pieces of one length differ.
fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(one, other)| one != other)
}

/// The first byte of `all` that differs from `block`, repeated.
fn first_other(block: &[u8], all: &[u8]) -> Option<usize> {
    let mut blocks = all.chunks_exact(block.len()).enumerate();
    blocks.find_map(|(number, other)| difference(block, other).map(|at| number * block.len() + at))
}
