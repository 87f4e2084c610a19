//! Opens a file and finds out what it can do. Runs on the control plane and may block.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use pollux_core::{AtomicWrite, Discard};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

use super::bounce::LARGE_LEN;
use super::{Atomic, Geometry};
use crate::spec::check_block_size;
use crate::{BdevError, FileSpec};

/// The largest request that rings poll for, in KiB.
const POLLED_KIB: u64 = 64;
/// Pages that it has at most, as its first and its last may be cut.
const POLLED_SEGMENTS: u64 = POLLED_KIB / 4 + 1;

/// An open and locked file.
pub(super) struct Found {
    pub(super) file: OwnedFd,
    pub(super) geometry: Geometry,
    pub(super) num_blocks: u64,
    pub(super) warnings: Vec<String>,
}

/// How a file is cut into blocks.
pub(super) struct Blocks {
    pub(super) whole: u64,
    /// Bytes behind the last whole block.
    pub(super) rest: u64,
}

/// Opens the file of `spec`.
pub(super) fn open(spec: &FileSpec) -> Result<Found, BdevError> {
    let mut warnings = Vec::new();
    let device = is_device(&spec.filename)?;
    let mut direct = true;
    let file = match open_with(spec, device, OFlags::DIRECT) {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {
            direct = false;
            open_with(spec, device, OFlags::empty())
        }
        other => other,
    };
    let file = file.map_err(|errno| cannot_open(spec, device, errno))?;
    lock(&file, spec, &mut warnings)?;

    let sysfs = Sysfs::of(&file, device);
    let logical = if device { Some(logical_block_size(&file, spec)?) } else { None };
    let align = if direct { alignment(&file, logical) } else { None };
    let wanted = spec.block_size.or(spec.found_block_size);
    let block_size = wanted.or(logical).unwrap_or_else(|| natural_block_size(align));
    check_block_size(block_size)?;
    if align.is_none_or(|align| align.offset > block_size) {
        warnings.push(why_buffered(spec, align, block_size));
        direct = false;
        go_buffered(&file, spec)?;
    }
    let blocks = blocks(&file, &spec.filename, block_size)?;
    if blocks.rest > 0 {
        let Blocks { rest, .. } = blocks;
        warnings.push(format!("{}: the last {rest} bytes are no whole block and are ignored", spec.filename));
    }
    let align = align.filter(|_| direct).unwrap_or(Alignment { memory: 1, offset: 1 });
    let physical_block_size = physical_block_size(&file, spec, device, block_size);
    let range_align = logical.unwrap_or(1);
    let geometry = Geometry {
        block_size,
        physical_block_size,
        read_only: spec.readonly,
        device,
        direct,
        mem_align: align.memory,
        offset_align: align.offset,
        range_align,
        discard: discard(&file, spec, device, &sysfs, block_size.max(range_align)),
        optimal_io: if device { sysfs.number("queue/optimal_io_size").unwrap_or(0) as u32 } else { 0 },
        // The kernel knows whether something turns, not how fast.
        rotation_rate: u16::from(sysfs.number("queue/rotational") == Some(0)),
        atomic: if direct { atomic(&file, block_size) } else { None },
        polled: direct && sysfs.polls(),
    };
    Ok(Found { file, geometry, num_blocks: blocks.whole, warnings })
}

/// How many blocks the file has now.
pub(super) fn blocks(file: &OwnedFd, path: &str, block_size: u32) -> Result<Blocks, BdevError> {
    // Works for regular files and block devices alike, and the position means nothing to positioned I/O.
    let bytes =
        rustix::fs::seek(file, SeekFrom::End(0)).map_err(|errno| BdevError::os("find the size of", path, errno))?;
    let size = u64::from(block_size);
    match (bytes / size, bytes % size) {
        (0, _) => {
            Err(BdevError::invalid("filename", format!("{path} holds {bytes} bytes, less than one block of {size}")))
        }
        (whole, rest) => Ok(Blocks { whole, rest }),
    }
}

/// Looks before opening: opening a pipe would wait, opening a tape would wind it.
fn is_device(path: &str) -> Result<bool, BdevError> {
    let stat = rustix::fs::stat(path).map_err(|errno| BdevError::os("open", path, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(false),
        FileType::BlockDevice => Ok(true),
        _ => Err(BdevError::invalid("filename", format!("{path} is neither a regular file nor a block device"))),
    }
}

fn open_with(spec: &FileSpec, device: bool, more: OFlags) -> Result<OwnedFd, Errno> {
    let access = match (spec.readonly, device) {
        (true, _) => OFlags::RDONLY,
        (false, false) => OFlags::RDWR,
        // Exclusive on a block device means: not while this host has it mounted or in a RAID or volume group.
        (false, true) => OFlags::RDWR | OFlags::EXCL,
    };
    let file = rustix::fs::open(&spec.filename, access | more | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    // It may have been exchanged since it was looked at.
    if (kind == FileType::BlockDevice) == device && (device || kind == FileType::RegularFile) {
        Ok(file)
    } else {
        Err(Errno::AGAIN)
    }
}

fn cannot_open(spec: &FileSpec, device: bool, errno: Errno) -> BdevError {
    if device && errno == Errno::BUSY {
        return BdevError::InUse {
            name: spec.filename.clone(),
            by: "this host (mounted, part of a RAID or volume group, or open exclusively)".to_owned(),
        };
    }
    BdevError::os(if spec.readonly { "open" } else { "open for writing" }, &spec.filename, errno)
}

/// Keeps other daemons, and other devices of this one, from writing to the same file.
fn lock(file: &OwnedFd, spec: &FileSpec, warnings: &mut Vec<String>) -> Result<(), BdevError> {
    let how =
        if spec.readonly { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(BdevError::Locked { path: spec.filename.clone() }),
        Err(errno) => {
            warnings
                .push(format!("{}: cannot be locked ({errno}): nothing keeps another daemon off it", spec.filename));
            Ok(())
        }
    }
}

/// What direct I/O demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    memory: u32,
    offset: u32,
}

/// `None`: no direct I/O.
fn alignment(file: &OwnedFd, logical: Option<u32>) -> Option<Alignment> {
    if let Some((memory, offset)) = statx(file, StatxFlags::DIOALIGN)
        .filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|stat| (stat.stx_dio_mem_align, stat.stx_dio_offset_align))
    {
        return (offset > 0).then_some(Alignment { memory: memory.max(1), offset });
    }
    // Before Linux 6.1, and on file systems that do not say: ask by trying.
    match logical {
        Some(size) => Some(Alignment { memory: size, offset: size }),
        None => {
            let works = [512, 4096].into_iter().find(|size| can_read(file, *size as usize));
            works.map(|size| Alignment { memory: size, offset: size })
        }
    }
}

/// Whether a direct read works that is aligned to `size` and to nothing bigger.
fn can_read(file: &OwnedFd, size: usize) -> bool {
    let mut memory = vec![0u8; 4 * 4096];
    let from = memory.as_ptr().align_offset(4096) + if size < 4096 { size } else { 0 };
    let offset = if size < 4096 { size as u64 } else { 0 };
    memory.get_mut(from..from + size).is_some_and(|part| rustix::io::pread(file, part, offset).is_ok())
}

/// What the kernel writes with `RWF_ATOMIC` (Linux 6.11).
fn atomic(file: &OwnedFd, block_size: u32) -> Option<Atomic> {
    // `STATX_WRITE_ATOMIC`
    let what = StatxFlags::from_bits_retain(0x0001_0000);
    let stat = statx(file, what).filter(|stat| stat.stx_mask & what.bits() != 0)?;
    let best = match stat.stx_atomic_write_unit_max_opt {
        0 => stat.stx_atomic_write_unit_max,
        best => best.min(stat.stx_atomic_write_unit_max),
    };
    let unit = atomic_unit(stat.stx_atomic_write_unit_min, best, block_size)?;
    let segments = stat.stx_atomic_write_segments_max.max(1) as usize;
    Some(Atomic { write: AtomicWrite { max: unit, granularity: unit, alignment: unit }, segments })
}

/// The one length of atomic writes. The kernel takes powers of two from `least` to `most` that begin at a multiple of
/// their own length, and a device says of all its atomic writes how long they may be and where they may begin: of all that
/// is so only for writes of one length. It is the page of most databases, or the nearest to it. See decisions/0017.
fn atomic_unit(least: u32, most: u32, block_size: u32) -> Option<u32> {
    const DATABASE_PAGE: u32 = 16 << 10;
    let (least, most) = (least.max(block_size), most.min(LARGE_LEN as u32));
    let usable = least.is_power_of_two() && most.is_power_of_two() && least <= most;
    usable.then(|| DATABASE_PAGE.clamp(least, most))
}

fn statx(file: &OwnedFd, what: StatxFlags) -> Option<Statx> {
    rustix::fs::statx(file.as_fd(), c"", AtFlags::EMPTY_PATH, what).ok()
}

/// The block size for a regular file if nobody wants another: the smallest that direct I/O allows, 512 if it can be,
/// because that is what images made elsewhere have in their partition tables.
fn natural_block_size(align: Option<Alignment>) -> u32 {
    match align {
        Some(align) if align.offset > 512 => 4096,
        _ => 512,
    }
}

fn logical_block_size(file: &OwnedFd, spec: &FileSpec) -> Result<u32, BdevError> {
    rustix::fs::ioctl_blksszget(file).map_err(|errno| BdevError::os("find the block size of", &spec.filename, errno))
}

fn why_buffered(spec: &FileSpec, align: Option<Alignment>, block_size: u32) -> String {
    let why = match align {
        None => "no direct I/O on this file".to_owned(),
        Some(align) => format!("direct I/O needs blocks of {} bytes and {block_size} are wanted", align.offset),
    };
    format!("{}: {why}: using the page cache, which is slower and takes memory of the host", spec.filename)
}

fn go_buffered(file: &OwnedFd, spec: &FileSpec) -> Result<(), BdevError> {
    let flags = rustix::fs::fcntl_getfl(file).and_then(|flags| rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT));
    flags.map_err(|errno| BdevError::os("change the flags of", &spec.filename, errno))
}

fn physical_block_size(file: &OwnedFd, spec: &FileSpec, device: bool, block_size: u32) -> u32 {
    let found = if device { rustix::fs::ioctl_blkpbszget(file).unwrap_or(block_size) } else { file_system_block(file) };
    let usable = found.is_power_of_two() && found <= 1 << 20;
    spec.physical_block_size.unwrap_or(if usable { found } else { block_size }).max(block_size)
}

/// The unit in which the file system gives out space; 4096 if it says something odd.
pub(super) fn file_system_block(file: &OwnedFd) -> u32 {
    let size = rustix::fs::fstatvfs(file).map_or(0, |stat| stat.f_bsize);
    u32::try_from(size).ok().filter(|size| size.is_power_of_two() && (512..=65536).contains(size)).unwrap_or(4096)
}

fn discard(file: &OwnedFd, spec: &FileSpec, device: bool, sysfs: &Sysfs, block: u32) -> Option<Discard> {
    if !spec.discard {
        return None;
    }
    if !device {
        let granularity = file_system_block(file).max(block);
        // Who may only read cannot try, and will not discard; holes are what they are in any file.
        return (spec.readonly || can_punch(file)).then_some(Discard { granularity, alignment: 0, reads_zero: true });
    }
    let size = |name| sysfs.number(name).unwrap_or(0);
    if size("queue/discard_max_bytes") == 0 {
        return None;
    }
    let granularity =
        u32::try_from(size("queue/discard_granularity")).unwrap_or(block).next_multiple_of(block).max(block);
    Some(Discard {
        granularity,
        alignment: (size("discard_alignment") % u64::from(granularity)) as u32 / block * block,
        // Without write-zeroes in the device, the kernel's hole punching is refused; what is left promises nothing.
        reads_zero: size("queue/write_zeroes_max_bytes") > 0,
    })
}

/// Asks by punching behind the end, where there is nothing to lose.
fn can_punch(file: &OwnedFd) -> bool {
    let Ok(end) = rustix::fs::seek(file, SeekFrom::End(0)) else { return false };
    let behind = end.next_multiple_of(1 << 20);
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, behind, 1 << 20).is_ok()
}

/// What the kernel tells about the disk that a file is, or lies on.
struct Sysfs(Option<String>);

impl Sysfs {
    fn of(file: &OwnedFd, device: bool) -> Self {
        let dir = statx(file, StatxFlags::BASIC_STATS).map(|stat| {
            let (major, minor) = if device {
                (stat.stx_rdev_major, stat.stx_rdev_minor)
            } else {
                (stat.stx_dev_major, stat.stx_dev_minor)
            };
            format!("/sys/dev/block/{major}:{minor}")
        });
        Sysfs(dir)
    }

    /// Whether the disk has poll queues, and takes what is polled for in one piece: large enough, in as many segments as it
    /// has pages, and without places (`chunk_sectors`) that no request may cross. Whether the file system on it polls shows
    /// when it is tried.
    fn polls(&self) -> bool {
        let least = |name, least| self.number(name).is_some_and(|most| most >= least);
        self.number("queue/io_poll") == Some(1)
            && least("queue/max_sectors_kb", POLLED_KIB)
            && least("queue/max_segments", POLLED_SEGMENTS)
            && self.number("queue/chunk_sectors").unwrap_or(0) == 0
    }

    /// A number of the device, or of the disk that it is a partition of.
    fn number(&self, name: &str) -> Option<u64> {
        let dir = self.0.as_ref()?;
        let read = |path: String| fs::read_to_string(path).ok()?.trim().parse().ok();
        read(format!("{dir}/{name}")).or_else(|| read(format!("{dir}/../{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(bytes: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1; bytes]).unwrap();
        file
    }

    fn spec(file: &tempfile::NamedTempFile) -> FileSpec {
        FileSpec::new("f", file.path().to_str().unwrap())
    }

    #[test]
    fn a_rest_behind_the_last_block_is_ignored_with_a_warning() {
        let file = image(4096 + 100);
        let found = open(&FileSpec { block_size: Some(4096), ..spec(&file) }).unwrap();
        assert_eq!(found.num_blocks, 1);
        assert!(found.warnings.iter().any(|w| w.contains("last 100 bytes")), "{:?}", found.warnings);
        drop(found);
        let found = open(&FileSpec { block_size: Some(512), ..spec(&file) }).unwrap();
        assert_eq!(found.num_blocks, 8);
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        let reason = |path: &str| match open(&FileSpec::new("f", path)) {
            Ok(_) => panic!("{path} was opened"),
            Err(error) => {
                assert!(error.to_string().contains(path), "{error}");
                error.reason()
            }
        };
        assert_eq!(reason("/nowhere/at/all"), "no_such_file");
        assert_eq!(reason("/dev/null"), "invalid");
        assert_eq!(reason("/tmp"), "invalid");
        let empty = image(0);
        assert_eq!(reason(empty.path().to_str().unwrap()), "invalid");
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(reason(pipe.to_str().unwrap()), "invalid");
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = image(8192);
        let readonly = FileSpec { readonly: true, ..spec(&file) };
        let writer = open(&spec(&file)).unwrap();
        for other in [&spec(&file), &readonly] {
            let error = open(other).err().expect("locked");
            assert_eq!(error.reason(), "locked");
        }
        drop(writer);
        let _one = open(&readonly).unwrap();
        let _two = open(&readonly).unwrap();
        assert_eq!(open(&spec(&file)).err().expect("locked").reason(), "locked");
    }

    #[test]
    fn an_odd_block_size_is_refused() {
        let file = image(8192);
        let error = open(&FileSpec { block_size: Some(1024), ..spec(&file) }).err().expect("refused");
        assert_eq!(error.reason(), "invalid");
    }

    #[test]
    fn poll_queues_are_those_of_the_disk_below() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        // Poll queues, KiB of a request, its segments, sectors of a chunk.
        for (disk, values) in [
            ("fast", ["1", "64", "17", "0"]),
            ("old", ["1", "64", "17", ""]),
            ("slow", ["0", "64", "17", "0"]),
            ("odd", ["", "64", "17", "0"]),
            ("narrow", ["1", "32", "17", "0"]),
            ("coarse", ["1", "64", "16", "0"]),
            ("chunked", ["1", "64", "17", "2048"]),
        ] {
            fs::create_dir_all(at(disk).join("queue")).unwrap();
            fs::create_dir(at(disk).join("part1")).unwrap();
            for (name, value) in ["io_poll", "max_sectors_kb", "max_segments", "chunk_sectors"].iter().zip(values) {
                if !value.is_empty() {
                    fs::write(at(disk).join("queue").join(name), format!("{value}\n")).unwrap();
                }
            }
            // As in /sys/dev/block: a link to the disk's folder, or to the partition's inside it.
            for (link, to) in
                [(format!("{disk}-whole"), disk.to_owned()), (format!("{disk}-part"), format!("{disk}/part1"))]
            {
                std::os::unix::fs::symlink(at(&to), at(&link)).unwrap();
                let sysfs = Sysfs(Some(at(&link).to_str().unwrap().to_owned()));
                assert_eq!(sysfs.polls(), ["fast", "old"].contains(&disk), "{link}");
            }
        }
        assert!(!Sysfs(None).polls() && !Sysfs(Some("/nowhere/at/all".to_owned())).polls());
    }

    #[test]
    fn atomic_writes_have_the_length_of_a_database_page_or_the_nearest() {
        assert_eq!(atomic_unit(512, 65536, 512), Some(16384));
        assert_eq!(atomic_unit(4096, 4096, 512), Some(4096));
        assert_eq!(atomic_unit(512, 512, 4096), None, "less than a block");
        assert_eq!(atomic_unit(32768, 65536, 512), Some(32768));
        assert_eq!(atomic_unit(512, 65536, 4096), Some(16384));
        assert_eq!(atomic_unit(1 << 20, 1 << 21, 512), None, "more than goes through a bounce buffer");
        assert_eq!([atomic_unit(0, 0, 0), atomic_unit(512, 12288, 512)], [None; 2], "no answer, and a strange one");
    }

    #[test]
    fn natural_sizes() {
        let align = |offset| Some(Alignment { memory: 4, offset });
        assert_eq!([None, align(1), align(512), align(4096)].map(natural_block_size), [512, 512, 512, 4096]);
    }

    #[test]
    fn discards_can_be_switched_off() {
        let file = image(8192);
        let found = open(&FileSpec { discard: false, ..spec(&file) }).unwrap();
        assert_eq!(found.geometry.discard, None);
        drop(found);
        let found = open(&FileSpec { readonly: true, ..spec(&file) }).unwrap();
        let holes = found.geometry.discard.is_some_and(|discard| discard.reads_zero);
        assert!(holes && found.geometry.read_only, "how space is given out does not depend on who may write");
    }
}
