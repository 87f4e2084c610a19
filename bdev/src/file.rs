//! A regular file or block device, through the reactor's ring: nothing here ever blocks a reactor.
//!
//! [`probe`] finds out, off the reactors, what the file can do, and opens and locks it; [`request`] is one request's
//! way through its stages; [`channel`] gives the stages what they need: the ring, bounce buffers, syncs. [`holes`]
//! finds out, on helper threads, what is mapped, and [`sharing`] copies there from file to file. Direct I/O is used
//! where the file system and the block size allow it; where not, the page cache is, with a warning.
//!
//! What reactors share ([`Open`]) is read-only except a few atomics. The most important one: once a flush has failed,
//! nobody can know what became of the data acknowledged before it (Linux may have dropped it and report no error next
//! time), so the device fails every later flush and FUA, on all reactors, until it is opened again.

mod bounce;
mod channel;
mod errno;
mod holes;
mod probe;
mod request;
mod sharing;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pollux_core::{AtomicWrite, Bdev, Channel, CopyRange, Discard, Extent, Lane, OpenArgs, OpenError, Segment, Shape};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::memory::Mapping;
use crate::{BdevError, Device, FileSpec, Flavor, MAX_DEPTH, StatsSet};
use channel::FileChannel;
use sharing::{Share, Sharing};

/// Length of the memory that zeroes are written from.
const ZERO_LEN: usize = 64 << 10;
/// How often it is repeated in one write: 4 MiB at a time, so that a cancel gets through.
const ZERO_REPEAT: usize = 64;

/// What probing has found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Geometry {
    block_size: u32,
    physical_block_size: u32,
    read_only: bool,
    /// Whether it is a block device.
    device: bool,
    /// Whether the page cache is bypassed; then requests are aligned as the next two say.
    direct: bool,
    /// Alignment of memory addresses in bytes, for direct I/O.
    mem_align: u32,
    /// Alignment of offsets and lengths in bytes, for direct I/O.
    offset_align: u32,
    /// Alignment that ranges to discard or zero must have.
    range_align: u32,
    discard: Option<Discard>,
    optimal_io: u32,
    rotation_rate: u16,
    /// What the kernel writes as a whole or not at all.
    atomic: Option<Atomic>,
    /// Whether the device below can be asked for completions of direct I/O: it has poll queues.
    polled: bool,
}

/// Writes with `RWF_ATOMIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Atomic {
    write: AtomicWrite,
    /// In as many segments at most.
    segments: usize,
}

/// One opening of a file, shared by all channels that belong to it.
struct Open {
    /// The descriptor that holds the lock.
    file: OwnedFd,
    geometry: Geometry,
    num_blocks: AtomicU64,
    /// A flush has failed. Never taken back.
    flush_failed: AtomicBool,
    /// The kernel said that it does not punch holes in this file.
    no_punch: AtomicBool,
    /// The kernel said that it does not zero ranges of this file.
    no_zero_range: AtomicBool,
    /// Its file system, or the block device that it is.
    lane: Option<Lane>,
    /// With which files it can share blocks.
    sharing: Option<Sharing>,
    share: Share,
    /// The kernel said that it shares no blocks of this file.
    no_sharing: AtomicBool,
    /// Zeroes to write where the kernel has nothing better: one piece of memory, many times.
    zeroes: Box<[Segment]>,
    zero_memory: Mapping,
    warnings: Vec<String>,
}

impl Open {
    fn new(spec: &FileSpec) -> Result<Self, BdevError> {
        let probe::Found { file, geometry, num_blocks, warnings } = probe::open(spec)?;
        for warning in &warnings {
            tracing::warn!(bdev = spec.name, "{warning}");
        }
        let zero_memory = Mapping::new(ZERO_LEN).map_err(|errno| BdevError::os("map memory for", &spec.name, errno))?;
        Ok(Open {
            lane: lane_of(&file, &geometry),
            sharing: Sharing::of(&file, &geometry),
            share: sharing::clone_range,
            no_sharing: AtomicBool::new(false),
            file,
            geometry,
            num_blocks: AtomicU64::new(num_blocks),
            flush_failed: AtomicBool::new(false),
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            zeroes: vec![zero_memory.segment(0, ZERO_LEN); ZERO_REPEAT].into(),
            zero_memory,
            warnings,
        })
    }

    fn bytes(&self) -> u64 {
        self.num_blocks.load(Relaxed) * u64::from(self.geometry.block_size)
    }

    /// A description of its own for a channel: Linux reports a failed write-back once to each description, so with a
    /// shared one a reactor's flush could come back good because another one's had taken the error. Where it cannot be
    /// had (no /proc), the shared one has to do; `flush_failed` then covers all but the moment between the two.
    fn descriptor(&self) -> Result<OwnedFd, rustix::io::Errno> {
        use std::os::fd::AsRawFd;
        let access = if self.geometry.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let direct = if self.geometry.direct { OFlags::DIRECT } else { OFlags::empty() };
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::open(path, access | direct | OFlags::CLOEXEC, Mode::empty())
            .or_else(|_| rustix::io::fcntl_dupfd_cloexec(&self.file, 0))
    }
}

/// Looked up when the file is opened: later the file system may hang.
fn lane_of(file: &OwnedFd, geometry: &Geometry) -> Option<Lane> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some(Lane(if geometry.device { stat.st_rdev } else { stat.st_dev }))
}

/// The device.
pub struct File {
    spec: FileSpec,
    open: Arc<Open>,
    /// Where its channels count bounced requests.
    stats: Arc<StatsSet>,
}

impl File {
    /// Opens and locks the file that `spec` names; `spec` has been checked.
    ///
    /// # Errors
    /// [`BdevError`] that says what about the file is not right.
    pub fn new(spec: &FileSpec, stats: Arc<StatsSet>) -> Result<Self, BdevError> {
        Ok(File { spec: spec.clone(), open: Arc::new(Open::new(spec)?), stats })
    }

    /// Whether a flush has failed since the file was opened.
    #[must_use]
    pub fn flush_failed(&self) -> bool {
        self.open.flush_failed.load(Relaxed)
    }
}

impl Bdev for File {
    fn shape(&self) -> Shape {
        let open = &self.open;
        let geometry = &open.geometry;
        Shape {
            block_size: geometry.block_size,
            physical_block_size: geometry.physical_block_size,
            num_blocks: open.num_blocks.load(Relaxed),
            read_only: geometry.read_only,
            volatile_cache: !geometry.read_only,
            discard: geometry.discard,
            optimal_io: geometry.optimal_io,
            rotation_rate: geometry.rotation_rate,
            atomic_write: geometry.atomic.map(|atomic| atomic.write),
        }
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        let open = &self.open;
        if !self.extent_waits() {
            return Extent::mapped(len);
        }
        holes::extent(&open.file, open.geometry.block_size, offset, len)
    }

    /// A block device says nothing of what it has mapped. Where nothing is given back, all counts as mapped.
    fn extent_waits(&self) -> bool {
        !self.open.geometry.device && self.open.geometry.discard.is_some()
    }

    fn lane(&self) -> Option<Lane> {
        self.open.lane
    }

    fn copy_range(&self, offset: u64, _: u64) -> Option<CopyRange> {
        self.open.shares().then(|| CopyRange::new(self.open.clone(), offset))
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.clamp(1, MAX_DEPTH);
        let open = self.open.clone();
        let channel = FileChannel::new(open, depth, self.stats.new_stats()).map_err(|errno| {
            tracing::error!(bdev = self.spec.name, "cannot open a channel: {errno}");
            OpenError::Resources(errno.raw_os_error())
        })?;
        Ok(Box::new(channel))
    }
}

impl Device for File {
    fn product_name(&self) -> &'static str {
        match self.spec.flavor {
            Flavor::Aio => "AIO disk",
            Flavor::Uring => "URING bdev",
        }
    }

    fn driver_specific(&self) -> Value {
        match self.spec.flavor {
            Flavor::Aio => json!({ "aio": {
                "filename": self.spec.filename,
                "block_size_override": self.spec.block_size.is_some(),
                "readonly": self.spec.readonly,
                "fallocate": self.spec.fallocate,
                "nowait": false,
                "io_poll": self.open.geometry.polled,
            }}),
            Flavor::Uring => {
                json!({ "uring": { "filename": self.spec.filename, "io_poll": self.open.geometry.polled } })
            }
        }
    }

    fn warnings(&self) -> Vec<String> {
        let open = &self.open;
        let mut all = open.warnings.clone();
        if open.flush_failed.load(Relaxed) {
            all.push("a flush has failed: flush and FUA fail until the bdev is opened again".to_owned());
        }
        all
    }

    fn rescan(&self) -> Result<bool, BdevError> {
        let open = &self.open;
        let blocks = probe::blocks(&open.file, &self.spec.filename, open.geometry.block_size)?;
        Ok(open.num_blocks.swap(blocks.whole, Relaxed) != blocks.whole)
    }
}
