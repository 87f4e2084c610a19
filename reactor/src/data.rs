//! The data ring: a second ring of the kernel for the reads and writes of files, of a kind that the first cannot be.
//!
//! [`DataMode::IoPoll`]: nobody is interrupted; the reactor asks the devices for completions. Takes reads and writes
//! with direct I/O of devices with poll queues, if they are small, and nothing else: no syncs, no polls, no cancels.
//! [`DataMode::SqPoll`]: a thread of the kernel takes the entries, so that the reactor need not enter the kernel.
//!
//! What is in it is named by its place in a table that remembers the operation, for two reasons. What this ring refuses
//! (`EOPNOTSUPP`: a file system or a device that does not poll after all) can be done by the first one, and the client
//! never knows. And a cancel finds its entry: with a submission thread it follows it here; an entry that is polled for is
//! with the device and lands by itself, so that its cancel, in the first ring, finds nothing.

use std::os::fd::RawFd;

use pollux_core::{ClientId, Done, FileSlot, RingOp, Segment, Token};

use crate::clients::OWN;
use crate::kernel::{Kernel, SetupError};
use crate::ring::RingConfig;
use crate::sqe::{Sqe, Target};

/// The largest request that is polled for. Devices whose requests are smaller do not count as polled (see the file bdev).
const POLLED_LEN: usize = 64 << 10;
/// What devices see memory in.
const PAGE: usize = 4096;

/// What the second ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataMode {
    /// There is none.
    #[default]
    None,
    /// Completions are polled for (`IORING_SETUP_IOPOLL`), where the device can be.
    IoPoll,
    /// A thread of the kernel submits (`IORING_SETUP_SQPOLL`).
    SqPoll,
}

impl DataMode {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DataMode::None => "none",
            DataMode::IoPoll => "iopoll",
            DataMode::SqPoll => "sqpoll",
        }
    }
}

/// An entry that this ring has, or had.
#[derive(Clone, Copy)]
pub(crate) struct Landed {
    /// Its name in the table of clients.
    pub(crate) user_data: u64,
    pub(crate) op: RingOp,
}

/// Where an entry goes in this ring.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    File(Target),
    /// The entry to cancel, by its place in the table.
    Entry(u32),
}

/// What this ring has, by place; the place is the entry's name in the kernel.
#[derive(Default)]
struct Table {
    places: Vec<Option<Landed>>,
    free: Vec<u32>,
}

impl Table {
    fn put(&mut self, entry: Landed) -> u32 {
        let at = self.free.pop().unwrap_or(self.places.len() as u32);
        if at as usize == self.places.len() {
            self.places.push(None);
        }
        self.places[at as usize] = Some(entry);
        at
    }

    fn take(&mut self, at: u64) -> Option<Landed> {
        let entry = self.places.get_mut(usize::try_from(at).ok()?)?.take()?;
        self.free.push(at as u32);
        Some(entry)
    }

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// A file that this ring knows.
#[derive(Clone, Copy)]
struct Known {
    target: Target,
    /// Whether its reads and writes go here.
    taken: bool,
}

/// Whether a request reaches the device as one: it is small, and between its segments there is nothing but whole pages. A
/// polled request that has to be split never ends on some kernels (seen on 6.1 with 256 KiB), and gains nothing by polling.
fn in_one_piece(data: &[Segment]) -> bool {
    let inside = |at: usize| at.is_multiple_of(PAGE);
    let gapless = data.windows(2).all(|pair| inside(pair[0].addr() + pair[0].len()) && inside(pair[1].addr()));
    gapless && data.iter().map(Segment::len).sum::<usize>() <= POLLED_LEN
}

pub(crate) struct DataRing {
    kernel: Kernel,
    mode: DataMode,
    table: Table,
    /// By slot of the first ring.
    files: Vec<Option<Known>>,
    refused: Vec<Landed>,
    /// The client of the first ring as which this one is polled there.
    watch: ClientId,
    watched: bool,
    watch_done: Vec<Done>,
}

impl DataRing {
    pub(crate) fn new(config: &RingConfig, watch: ClientId) -> Result<Self, SetupError> {
        Ok(DataRing {
            kernel: Kernel::data(config)?,
            mode: config.data_ring,
            table: Table::default(),
            files: Vec::new(),
            refused: Vec::new(),
            watch,
            watched: false,
            watch_done: Vec::with_capacity(1),
        })
    }

    pub(crate) const fn sq_core(&self) -> Option<usize> {
        self.kernel.features().sq_core
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// Whether it has ever had an entry.
    #[cfg(test)]
    pub(crate) fn was_used(&self) -> bool {
        !self.table.places.is_empty()
    }

    /// Whether its completions come only to somebody who looks for them.
    pub(crate) fn must_look(&self) -> bool {
        self.mode == DataMode::IoPoll && self.in_flight() > 0
    }

    /// Takes a file of the first ring, if this ring is for such.
    pub(crate) fn add(&mut self, file: FileSlot, fd: RawFd, polled: bool) -> Result<(), i32> {
        if self.mode == DataMode::IoPoll && !polled {
            return Ok(());
        }
        let registered = file.0 < self.kernel.features().registered_files;
        if registered {
            self.kernel.set_file(file.0, fd)?;
        }
        let at = file.0 as usize;
        if self.files.len() <= at {
            self.files.resize(at + 1, None);
        }
        let target = if registered { Target::Registered(file.0) } else { Target::Descriptor(fd) };
        self.files[at] = Some(Known { target, taken: true });
        Ok(())
    }

    /// The file's reads and writes go here no more; those that are here already find it still. Returns whether they did.
    pub(crate) fn leave(&mut self, file: FileSlot) -> bool {
        let known = self.files.get_mut(file.0 as usize).and_then(Option::as_mut);
        known.is_some_and(|known| std::mem::replace(&mut known.taken, false))
    }

    /// The file leaves the rings. Nothing is in flight on it.
    pub(crate) fn remove(&mut self, file: FileSlot) {
        let known = self.files.get_mut(file.0 as usize).and_then(Option::take);
        if let Some(Known { target: Target::Registered(slot), .. }) = known
            && let Err(errno) = self.kernel.set_file(slot, -1)
        {
            tracing::warn!("file {slot} stays open in the data ring until its place is used again (errno {errno})");
        }
    }

    /// Where an operation belongs in this ring; `None`: it belongs into the first one.
    pub(crate) fn place(&self, op: &RingOp, name: impl FnOnce(Token) -> u64) -> Option<Place> {
        match *op {
            RingOp::Read { file, data, .. } | RingOp::Write { file, data, .. } => {
                let known = self.files.get(file.0 as usize).copied().flatten();
                let known = known.filter(|known| known.taken)?;
                (self.mode == DataMode::SqPoll || in_one_piece(data.as_slice())).then_some(Place::File(known.target))
            }
            RingOp::Cancel { target } if self.mode == DataMode::SqPoll && self.in_flight() > 0 => {
                let name = name(target);
                let is_it = |entry: &Option<Landed>| entry.is_some_and(|entry| entry.user_data == name);
                self.table.places.iter().position(is_it).map(|at| Place::Entry(at as u32))
            }
            _ => None,
        }
    }

    /// Puts an entry into the submission queue; false if that is full.
    pub(crate) fn push(&mut self, place: Place, entry: Landed) -> bool {
        let at = self.table.put(entry);
        let sqe = match place {
            Place::File(target) => Sqe::new(&entry.op, u64::from(at), |_| target, |_| OWN),
            // The operation is a cancel then: it touches no file. That place may be another entry's by the time the kernel
            // looks; but such an entry is behind this one in the queue.
            Place::Entry(other) => Sqe::new(&entry.op, u64::from(at), |_| Target::Descriptor(-1), |_| u64::from(other)),
        };
        let taken = self.kernel.push(&sqe);
        if !taken {
            self.table.take(u64::from(at));
        }
        taken
    }

    /// Has the kernel work on what is here; returns whether that took an enter.
    pub(crate) fn run(&mut self) -> bool {
        if self.mode == DataMode::SqPoll {
            return self.kernel.nudge();
        }
        if self.in_flight() == 0 {
            return false;
        }
        // What was not submitted stays in the queue: the next turn goes on.
        let _passes = self.kernel.enter(None);
        true
    }

    /// Hands completions to `landed(user_data, result)`, but for those of refused entries. Returns how many it saw.
    pub(crate) fn take(&mut self, mut landed: impl FnMut(u64, i32)) -> usize {
        let DataRing { kernel, table, refused, .. } = self;
        kernel.completions(|at, result| {
            let Some(entry) = table.take(at) else { return };
            let retried = matches!(entry.op, RingOp::Read { .. } | RingOp::Write { .. });
            if retried && result == -libc::EOPNOTSUPP {
                refused.push(entry);
            } else {
                landed(entry.user_data, result);
            }
        })
    }

    /// One of those that this ring refused.
    pub(crate) fn refused(&mut self) -> Option<Landed> {
        self.refused.pop()
    }

    /// As whom, and by which descriptor, the first ring is to poll this one before it sleeps; `None` if it need not, or
    /// does already. `reap` moves a client's completions.
    pub(crate) fn watch(&mut self, reap: impl FnOnce(ClientId, &mut Vec<Done>)) -> Option<(ClientId, RawFd)> {
        if self.in_flight() == 0 {
            return None;
        }
        reap(self.watch, &mut self.watch_done);
        if !self.watch_done.is_empty() {
            self.watch_done.clear();
            self.watched = false;
        }
        let before = std::mem::replace(&mut self.watched, true);
        (!before).then(|| (self.watch, self.kernel.fd()))
    }

    /// Tries to end everything that is here.
    pub(crate) fn cancel_all(&mut self) {
        if self.mode == DataMode::SqPoll && self.in_flight() > 0 {
            // If there is no room: what is here lands by itself.
            let _pushed = self.kernel.push(&Sqe::cancel_all(OWN));
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reaches_the_device_as_one_is_polled_for() {
        // SAFETY: nobody reads or writes these places.
        let of =
            |parts: &[(usize, usize)]| parts.iter().map(|(addr, len)| unsafe { Segment::new(*addr, *len) }).collect();
        for (parts, polled) in [
            (&[(512, 4096)][..], true),
            (&[(0x1000, 65536)], true),
            (&[(0x1000, 65536 + 512)], false),
            (&[(0x1e00, 512), (0x8000, 4096), (0x4000, 512)], true),
            (&[(0x1e00, 256), (0x8000, 4096)], false),
            (&[(0x1000, 4096), (0x8200, 512)], false),
            (&[(0x10000, 32768), (0x20000, 32768), (0x30000, 4096)], false),
        ] {
            let segments: Vec<Segment> = of(parts);
            assert_eq!(in_one_piece(&segments), polled, "{parts:x?}");
        }
    }
}
