//! A whole SCSI device of the host, through the kernel's SCSI generic driver (`/dev/sg*`): disk, tape, changer, optical
//! drive or anything else. It is no block device: it takes commands ([`pollux_core::ScsiChannel`]), and front ends that
//! know none, and devices that would stand on it, are refused by the registry.
//!
//! [`raw`] is the driver's interface; [`outcome`] what its words mean; [`helper`] the thread of a channel that talks to it;
//! [`channel`] the reactor's side; [`identity`] tells whether it is still the same device.

mod channel;
mod common;
mod counters;
mod helper;
mod identity;
mod outcome;
mod raw;
#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use pollux_core::{Bdev, Channel, OpenArgs, OpenError, Shape};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::{BdevError, Device, SgSpec, Supported};
use channel::SgChannel;
use common::{Common, Driver};
pub use counters::Counters;
use identity::Identity;

/// Descriptors of a channel. Each takes [`raw::QUEUE`] commands.
const LINES: usize = 4;
/// The first version of the driver whose headers these are.
const VERSION: i32 = 30_000;

/// The device.
pub struct Sg {
    spec: SgSpec,
    identity: Identity,
    max_transfer: Option<i32>,
    /// Holds the lock.
    file: OwnedFd,
    /// The host's own disk over the same device, held so that nobody mounts it.
    _disk: Option<OwnedFd>,
    common: Arc<Common>,
    warnings: Vec<String>,
}

impl Sg {
    /// Opens the device of `spec`. It has to be the one that it was when it was opened first.
    ///
    /// # Errors
    /// [`BdevError`] says why not.
    pub fn new(spec: &SgSpec) -> Result<Sg, BdevError> {
        let path = &spec.path;
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BdevError::Locked { path: path.clone() }),
            Err(errno) => return Err(BdevError::os("lock", path, errno)),
        }
        let identity = identity::ask(&file).map_err(|errno| BdevError::os("send INQUIRY to", path, errno))?;
        if let Some(known) = &spec.identity
            && *known != identity.name
        {
            let why = format!(
                "{path} is another device now ({}, not {known}): give this bdev's device its path back, or delete the \
                 bdev and create it with the right one",
                identity.name
            );
            return Err(BdevError::invalid("path", why));
        }
        let mut warnings = Vec::new();
        let disk = claim(spec, &file, &mut warnings)?;
        if identity.ambiguous {
            warnings.push(format!("{path} has no serial number: it cannot be told from another of its model"));
        }
        for warning in &warnings {
            tracing::warn!(bdev = spec.name, "{warning}");
        }
        let common = Common::new(most(&file), Box::new(Kernel));
        Ok(Sg {
            spec: spec.clone(),
            max_transfer: raw::max_transfer(&file).ok(),
            identity,
            file,
            _disk: disk,
            common,
            warnings,
        })
    }

    /// What tells the device from others.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity.name
    }

    /// PERIPHERAL DEVICE TYPE of its INQUIRY data.
    #[must_use]
    pub fn device_type(&self) -> u8 {
        self.identity.device_type
    }

    /// What has become of its commands.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.common.counters
    }

    /// A descriptor of its own, of the same device.
    fn line(&self) -> Result<OwnedFd, OpenError> {
        let file = open(&self.spec.path).map_err(|error| match error {
            BdevError::Os { errno: errno @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM), .. } => {
                OpenError::Resources(errno)
            }
            _ => OpenError::Missing,
        })?;
        let same = identity::ask(&file).is_ok_and(|identity| identity.name == self.identity.name);
        if same { Ok(file) } else { Err(OpenError::Missing) }
    }
}

/// Opens without waiting for a device in trouble, and only what is a SCSI generic device.
fn open(path: &str) -> Result<OwnedFd, BdevError> {
    let os = |errno| BdevError::os("open", path, errno);
    let invalid = || BdevError::invalid("path", format!("{path} is not a SCSI generic device (/dev/sg*)"));
    // Looked at first: opening a tape would wind it.
    let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(os)?.st_mode);
    if kind != FileType::CharacterDevice {
        return Err(invalid());
    }
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).map_err(os)?;
    match raw::version(&file) {
        Ok(version) if version >= VERSION => Ok(file),
        _ => Err(invalid()),
    }
}

/// The kernel's driver.
struct Kernel;

impl Driver for Kernel {
    fn reset(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        raw::reset(fd)
    }

    fn allow_removal(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        const PATIENCE_MS: u32 = 10_000;
        raw::ask(fd, &[0x1E, 0, 0, 0, 0, 0], &mut [], PATIENCE_MS).map(drop)
    }
}

/// The most data of one command. What is longer the driver would refuse, but only when it has taken memory for it; or it
/// would say that there is no memory, now and always, if it needs more pieces than the host adapter takes.
fn most(file: &OwnedFd) -> u64 {
    const PIECE: u64 = 32 << 10;
    let number = |path: String| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let piece = number("/sys/module/sg/parameters/scatter_elem_sz".into()).map_or(PIECE, |piece| piece.max(4096));
    let pieces = raw::table_size(file).ok().and_then(|pieces| u64::try_from(pieces).ok()).filter(|pieces| *pieces > 0);
    let at_once = block_directory(file)
        .and_then(|(directory, disk)| number(format!("{directory}/{disk}/queue/max_hw_sectors_kb")))
        .map(|kib| kib << 10);
    let pieces = pieces.map(|pieces| pieces.saturating_mul(piece));
    pieces.into_iter().chain(at_once).fold(raw::DATA - 1, u64::min)
}

/// Where the system describes the host's disk over a device, and the disk's name.
fn block_directory(file: &OwnedFd) -> Option<(String, String)> {
    let number = rustix::fs::fstat(file).ok()?.st_rdev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let directory = format!("/sys/dev/char/{major}:{minor}/device/block");
    let mut entries = std::fs::read_dir(&directory).ok()?.flatten();
    let disk = entries.find_map(|entry| entry.file_name().into_string().ok())?;
    Some((directory, disk))
}

/// Where the host has a disk over the device, takes it for itself: a disk that the host has mounted is not given away.
fn claim(spec: &SgSpec, file: &OwnedFd, warnings: &mut Vec<String>) -> Result<Option<OwnedFd>, BdevError> {
    let Some((_, name)) = block_directory(file) else { return Ok(None) };
    let disk = format!("/dev/{name}");
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(&disk, flags, Mode::empty()) {
        Ok(disk) => Ok(Some(disk)),
        Err(Errno::BUSY) => Err(BdevError::InUse { name: spec.path.clone(), by: format!("this host, as {disk}") }),
        // A drive without a medium cannot be opened, nor mounted.
        Err(Errno::NOMEDIUM) => Ok(None),
        Err(errno) => {
            warnings.push(format!("{disk}, which is the same device, could not be kept from the host's use: {errno}"));
            Ok(None)
        }
    }
}

impl Bdev for Sg {
    /// Nothing that could be read or written.
    fn shape(&self) -> Shape {
        Shape {
            block_size: 512,
            physical_block_size: 512,
            num_blocks: 0,
            read_only: false,
            volatile_cache: false,
            discard: None,
            optimal_io: 0,
            rotation_rate: 0,
            atomic_write: None,
        }
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let lines = (0..LINES).map(|_| self.line()).collect::<Result<Vec<_>, _>>()?;
        let channel = SgChannel::new(lines, args.depth, self.common.clone());
        Ok(Box::new(channel.map_err(|errno| OpenError::Resources(errno.raw_os_error()))?))
    }
}

impl Device for Sg {
    fn product_name(&self) -> &'static str {
        "SCSI generic device"
    }

    fn driver_specific(&self) -> Value {
        let Identity { device_type, vendor, product, revision, name, .. } = &self.identity;
        json!({ "sg": {
            "path": self.spec.path,
            "device_type": device_type,
            "device_type_name": type_name(*device_type),
            "vendor": vendor,
            "product": product,
            "revision": revision,
            "identity": name,
            "max_transfer": self.max_transfer,
            "allow": self.spec.allow,
        }})
    }

    fn supported(&self) -> Supported {
        Supported { write: false, unmap: false, write_zeroes: false }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        if self.is_lost() {
            warnings.push(format!("{} has gone", self.spec.path));
        }
        warnings
    }

    /// Looks whether the kernel has hung up, which nobody would notice while no command is sent.
    fn tend(&self) {
        let mut fds = [PollFd::new(&self.file, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::HUP) {
            self.common.set_gone();
        }
    }

    fn is_lost(&self) -> bool {
        self.common.is_gone()
    }

    fn as_sg(&self) -> Option<&Sg> {
        Some(self)
    }
}

/// SPC-5, table 146.
const fn type_name(device_type: u8) -> &'static str {
    match device_type {
        0x00 => "disk",
        0x01 => "tape",
        0x02 => "printer",
        0x03 => "processor",
        0x04 => "write-once disk",
        0x05 => "optical drive",
        0x07 => "optical disk",
        0x08 => "media changer",
        0x0C => "storage array controller",
        0x0D => "enclosure",
        0x0E => "simplified disk",
        0x11 => "object storage",
        0x12 => "automation interface",
        0x14 => "zoned disk",
        _ => "other",
    }
}
