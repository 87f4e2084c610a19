//! Copies from file to file: the file system lets both have the same blocks (`FICLONERANGE`), where it can; a copy is then
//! a matter of metadata, and takes no space before one of the two is written.
//!
//! Nothing else is offered to copies (docs/decisions/0013): where blocks cannot be shared the kernel would copy by itself,
//! slower than channels do. A file that has all its space for itself ("thick", without discards) shares none, so that an
//! overwrite of it never has to look for space.
//!
//! The call takes both files for itself: what is in flight on them ends first, and what comes meanwhile waits in the
//! kernel's workers, not on a reactor. It writes back what the page cache holds of the source and drops what it holds
//! of the target, so direct and cached I/O see the copy alike. It is durable when the target's next `fdatasync` is:
//! that writes the file system's log up to the new mapping, and flushes the disk that holds the source's blocks, too.

#![allow(unsafe_code)] // One ioctl.

use std::any::Any;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{CopyEnd, CopyError, IoError};
use rustix::io::Errno;

use super::{Geometry, Open, probe};

/// Bytes shared in one step. What counts is the number of extents: 4096 in the worst case.
const STEP: u64 = 16 << 20;

/// Has `len` bytes from `from` of the first file be `to` of the second.
pub(super) type Share = fn(&OwnedFd, u64, &OwnedFd, u64, u64) -> Result<(), Errno>;

/// What it takes to share blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    /// Only files of one file system can.
    file_system: u64,
    /// The blocks that are shared.
    grain: u64,
}

impl Sharing {
    /// `None`: the file shares nothing.
    pub(super) fn of(file: &OwnedFd, geometry: &Geometry) -> Option<Sharing> {
        let thin = geometry.discard.is_some() || geometry.read_only;
        if geometry.device || !thin {
            return None;
        }
        let grain = u64::from(probe::file_system_block(file).max(geometry.block_size));
        rustix::fs::fstat(file).ok().map(|stat| Sharing { file_system: stat.st_dev, grain })
    }
}

/// The kernel's way.
pub(super) fn clone_range(source: &OwnedFd, from: u64, target: &OwnedFd, to: u64, len: u64) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from,
        src_length: len,
        dest_offset: to,
    };
    // SAFETY: both descriptors are open, and the call reads the struct, which outlives it.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

impl Open {
    /// Whether copies may be tried.
    pub(super) fn shares(&self) -> bool {
        self.sharing.is_some() && !self.no_sharing.load(Relaxed)
    }
}

impl CopyEnd for Open {
    fn step(&self) -> u64 {
        STEP
    }

    fn grain(&self) -> u64 {
        self.sharing.map_or(1, |sharing| sharing.grain)
    }

    fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError> {
        let Some(source) = (source as &dyn Any).downcast_ref::<Open>() else { return Err(CopyError::Apart) };
        if self.geometry.read_only {
            return Err(CopyError::Target(IoError::ReadOnly));
        }
        // Both are asked, lest an end be written behind its last block: the kernel makes a file longer.
        if from.checked_add(len).is_none_or(|end| end > source.bytes()) {
            return Err(CopyError::Source(IoError::OutOfRange));
        }
        if to.checked_add(len).is_none_or(|end| end > self.bytes()) {
            return Err(CopyError::Target(IoError::OutOfRange));
        }
        // A length of 0 would mean all the rest of the file.
        if len == 0 || self.sharing.is_none() || self.sharing != source.sharing || !self.shares() {
            return Err(CopyError::Apart);
        }
        match (self.share)(&source.file, from, &self.file, to, len) {
            Ok(()) => Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => Err(CopyError::Target(IoError::NoSpace)),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                self.no_sharing.store(true, Relaxed);
                Err(CopyError::Apart)
            }
            // At which end it failed shows when the range is read and written.
            Err(_) => Err(CopyError::Apart),
        }
    }
}
