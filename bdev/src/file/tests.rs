//! The device on real files, with a ring that can be made to misbehave.

mod atomic;
mod bounce;

use std::cell::Cell;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use pollux_core::{Completion, Io, IoError, IoFlags, Next, Op, RingOp};
use tempfile::NamedTempFile;

use super::*;
use crate::testing::{Fate, FileRing, Rig, model, pattern};

const EMPTY: IoFlags = IoFlags::empty();

fn image_in(dir: &Path, bytes: u64) -> NamedTempFile {
    let file = tempfile::Builder::new().prefix("pollux-bdev-").tempfile_in(dir).unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn image(bytes: u64) -> NamedTempFile {
    image_in(&std::env::temp_dir(), bytes)
}

fn spec(file: &NamedTempFile) -> FileSpec {
    FileSpec { block_size: Some(512), ..FileSpec::new("f", file.path().to_str().unwrap()) }
}

/// The file, with something else about it than what probing finds.
fn open_as(file: &NamedTempFile, change: impl FnOnce(&mut Geometry)) -> File {
    let spec = spec(file);
    let mut open = Open::new(&spec).unwrap();
    change(&mut open.geometry);
    File { spec, open: Arc::new(open), stats: Arc::default() }
}

fn open(file: &NamedTempFile) -> File {
    open_as(file, |_| {})
}

/// As if direct I/O wanted memory and ranges aligned to 512: every kernel takes that.
fn strict(geometry: &mut Geometry) {
    (geometry.direct, geometry.mem_align, geometry.offset_align) = (true, 512, 512);
}

fn buffered(geometry: &mut Geometry) {
    (geometry.direct, geometry.mem_align, geometry.offset_align) = (false, 1, 1);
}

fn entries(rig: &Rig, of: fn(&RingOp) -> bool) -> usize {
    rig.ring.log.iter().filter(|op| of(op)).count()
}

const SYNCS: fn(&RingOp) -> bool = |op| matches!(op, RingOp::Sync { .. });
const WRITES: fn(&RingOp) -> bool = |op| matches!(op, RingOp::Write { .. });
const READS: fn(&RingOp) -> bool = |op| matches!(op, RingOp::Read { .. });

#[test]
fn behaves_as_a_plain_array_of_bytes_on_a_disk() {
    model::check(|| {
        let file = image(1 << 20);
        (Arc::new(open_as(&file, strict)) as Arc<dyn Device>, file)
    });
}

#[test]
fn behaves_as_a_plain_array_of_bytes_in_the_page_cache() {
    model::check(|| {
        let file = image(1 << 20);
        (Arc::new(open_as(&file, buffered)) as Arc<dyn Device>, file)
    });
}

#[test]
fn behaves_as_a_plain_array_of_bytes_on_tmpfs() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return;
    }
    model::check(|| {
        let file = image_in(shm, 1 << 20);
        (Arc::new(open(&file)) as Arc<dyn Device>, file)
    });
}

#[test]
fn short_transfers_and_interruptions_change_nothing() {
    // Direct I/O that stops in the middle of a block goes on from the beginning of that block.
    for (mode, short) in
        [(strict as fn(&mut _), Fate::Report(700)), (strict, Fate::Short(512)), (buffered, Fate::Short(700))]
    {
        let file = image(1 << 20);
        let device = open_as(&file, mode);
        let mut rig = Rig::new(&device);
        let mut n = 0;
        rig.ring.judge(move |op| {
            n += 1;
            match (op, n % 4) {
                (_, 0) => Fate::Fail(libc::EINTR),
                (_, 1) => Fate::Fail(libc::EAGAIN),
                (RingOp::Read { .. } | RingOp::Write { .. }, 2) => short,
                _ => Fate::Pass,
            }
        });
        let bytes = pattern(1, 9 * 512);
        rig.write_in(512, &bytes, IoFlags::FUA, 0, &[512, 1024]).unwrap();
        assert_eq!(rig.read_in(512, bytes.len(), 4096, &[1536]).unwrap(), bytes);
        rig.write_in(512, &bytes[512..], EMPTY, 3, &[100, 1000]).unwrap();
        assert_eq!(rig.read_in(512, 512, 7, &[]).unwrap(), bytes[512..1024]);
        rig.flush().unwrap();
        rig.without_data(Op::WriteZeroes, EMPTY, 0, 8192).unwrap();
        assert_eq!(rig.read(0, 8192).unwrap(), vec![0; 8192]);
    }
}

#[test]
fn an_endless_interruption_ends_as_busy() {
    let file = image(8192);
    let device = open(&file);
    let mut rig = Rig::new(&device);
    rig.ring.judge(|_| Fate::Fail(libc::EAGAIN));
    assert_eq!(rig.read(0, 512), Err(IoError::Busy));
    assert_eq!(rig.flush(), Err(IoError::Busy));
    assert!(!device.flush_failed(), "nothing was asked of the medium");
}

#[test]
fn more_segments_than_an_entry_holds_are_cut() {
    let file = image(4 << 20);
    let device = open_as(&file, strict);
    let mut rig = Rig::new(&device);
    let bytes = pattern(2, 3000 * 512);
    rig.write_in(0, &bytes, EMPTY, 0, &[512]).unwrap();
    assert_eq!(entries(&rig, WRITES), 3);
    assert_eq!(rig.read_in(0, bytes.len(), 0, &[512]).unwrap(), bytes);
    assert_eq!(entries(&rig, READS), 3);
}

#[test]
fn a_failed_flush_stays_failed_on_every_channel() {
    let file = image(8192);
    let device = open(&file);
    let (mut one, mut two) = (Rig::new(&device), Rig::new(&device));
    one.flush().unwrap();
    one.ring.judge(|op| if SYNCS(op) { Fate::Fail(libc::EIO) } else { Fate::Pass });
    assert_eq!(one.flush(), Err(IoError::FlushFailed));
    one.ring.judge(|_| Fate::Pass);
    for rig in [&mut one, &mut two] {
        assert_eq!(rig.flush(), Err(IoError::FlushFailed));
        assert_eq!(rig.write(0, &[1; 512], IoFlags::FUA), Err(IoError::FlushFailed));
        assert_eq!(rig.without_data(Op::Discard, IoFlags::FUA, 0, 512), Err(IoError::FlushFailed));
        rig.write(0, &[1; 512], EMPTY).unwrap();
        assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    }
    assert!(device.warnings().iter().any(|w| w.contains("flush has failed")));
    drop((one, two, device));
    assert!(!open(&file).flush_failed(), "opening again ends it");
}

#[test]
fn a_flush_that_was_good_by_itself_fails_when_anothers_failed_meanwhile() {
    let file = image(8192);
    let device = open(&file);
    let (mut one, mut two) = (Rig::new(&device), Rig::new(&device));
    one.ring.judge(|_| Fate::Hold);
    one.submit(Io::without_data(1, Op::Flush, EMPTY, 0, 0));
    two.ring.judge(|_| Fate::Fail(libc::EIO));
    assert_eq!(two.flush(), Err(IoError::FlushFailed));
    one.ring.release();
    assert_eq!(one.finish(), [Completion { tag: 1, result: Err(IoError::FlushFailed) }]);
}

#[test]
fn a_failed_durable_write_is_a_failed_flush_unless_it_found_no_space() {
    let fua = |errno| {
        let file = image(8192);
        let device = open_as(&file, strict);
        let mut rig = Rig::new(&device);
        rig.ring.judge(move |op| match op {
            RingOp::Write { dsync, .. } => {
                assert!(*dsync, "direct FUA is RWF_DSYNC");
                Fate::Fail(errno)
            }
            _ => Fate::Pass,
        });
        let result = rig.write(0, &[1; 512], IoFlags::FUA);
        (result, device.flush_failed(), entries(&rig, SYNCS))
    };
    assert_eq!(fua(libc::EIO), (Err(IoError::Medium), true, 0));
    assert_eq!(fua(libc::ENOSPC), (Err(IoError::NoSpace), false, 0));
    assert_eq!(fua(libc::EDQUOT), (Err(IoError::NoSpace), false, 0));
}

#[test]
fn durable_operations_end_with_a_sync_where_the_write_is_not_durable_itself() {
    let file = image(1 << 20);
    let device = open_as(&file, buffered);
    let mut rig = Rig::new(&device);
    rig.write(0, &[1; 512], IoFlags::FUA).unwrap();
    rig.without_data(Op::Discard, IoFlags::FUA, 0, 4096).unwrap();
    rig.without_data(Op::WriteZeroes, IoFlags::FUA, 0, 4096).unwrap();
    assert_eq!(entries(&rig, SYNCS), 3);
    assert!(matches!(rig.ring.log.last(), Some(RingOp::Sync { .. })));
    rig.without_data(Op::Discard, EMPTY, 0, 4096).unwrap();
    rig.read(0, 512).unwrap();
    assert_eq!(entries(&rig, SYNCS), 3);
}

#[test]
fn one_sync_at_a_time_covers_all_who_waited_when_it_started() {
    let file = image(8192);
    let device = open(&file);
    let mut rig = Rig::new(&device);
    rig.ring.judge(|_| Fate::Hold);
    for tag in 1..=4 {
        rig.submit(Io::without_data(tag, Op::Flush, EMPTY, 0, 0));
    }
    assert_eq!((entries(&rig, SYNCS), rig.next()), (1, Next::Ring));
    rig.cancel(1);
    rig.cancel(3);
    assert_eq!(rig.poll(), [Completion { tag: 3, result: Err(IoError::Aborted) }]);
    rig.ring.release();
    assert_eq!(rig.poll(), [Completion { tag: 1, result: Ok(()) }]);
    assert_eq!(entries(&rig, SYNCS), 2, "those who came later want one that starts later");
    rig.ring.release();
    assert_eq!(rig.poll().len(), 2);
    assert_eq!(rig.next(), Next::Idle);
}

#[test]
fn what_is_in_the_ring_is_cancelled_there() {
    let file = image(8192);
    let device = open(&file);
    let mut rig = Rig::new(&device);
    rig.ring.judge(|_| Fate::Hold);
    let data = rig.segments(0, &[], 512);
    rig.submit(Io { tag: 5, op: Op::Read, flags: EMPTY, offset: 0, len: 512, data });
    rig.cancel(5);
    rig.cancel(5);
    assert_eq!(entries(&rig, |op| matches!(op, RingOp::Cancel { .. })), 1);
    assert_eq!(rig.finish(), [Completion { tag: 5, result: Err(IoError::Aborted) }]);
}

#[test]
fn a_file_that_became_shorter_is_not_read_as_zeroes() {
    for mode in [strict, buffered] {
        let file = image(8192);
        let device = open_as(&file, mode);
        let mut rig = Rig::new(&device);
        file.as_file().set_len(4096 + 512).unwrap();
        assert_eq!(rig.read(4096, 1024), Err(IoError::OutOfRange));
        assert_eq!(rig.read(7680, 512), Err(IoError::OutOfRange));
        assert_eq!(rig.read(4096, 512).unwrap(), [0; 512]);
        assert_eq!(device.shape().num_blocks, 16);
        assert!(device.rescan().unwrap());
        assert!(!device.rescan().unwrap());
        assert_eq!(device.shape().num_blocks, 9);
        assert_eq!(rig.write(4608, &[1; 512], EMPTY), Err(IoError::OutOfRange), "it must not grow the file again");
        file.as_file().set_len(1 << 20).unwrap();
        assert!(device.rescan().unwrap());
        rig.write((1 << 20) - 512, &[1; 512], EMPTY).unwrap();
        file.as_file().set_len(100).unwrap();
        assert_eq!(device.rescan().unwrap_err().reason(), "invalid");
        assert_eq!(device.shape().num_blocks, 2048, "the size stays what it was");
    }
}

fn used(file: &NamedTempFile) -> u64 {
    file.as_file().metadata().unwrap().blocks() * 512
}

#[test]
fn discards_and_deallocating_zeroes_give_space_back() {
    let file = image(1 << 20);
    let device = open(&file);
    let discard = device.shape().discard.expect("the temporary directory punches holes");
    assert!(discard.reads_zero && discard.granularity >= 512);
    let mut rig = Rig::new(&device);
    rig.write(0, &vec![7; 1 << 20], EMPTY).unwrap();
    rig.flush().unwrap();
    let full = used(&file);
    assert!(full >= 1 << 20);
    rig.without_data(Op::Discard, EMPTY, 512, 512 << 10).unwrap();
    let half = used(&file);
    assert!(half < full, "{half} of {full} are used");
    assert_eq!(rig.read(0, 1024).unwrap(), [[7; 512], [0; 512]].concat());
    rig.without_data(Op::WriteZeroes, IoFlags::MAY_DEALLOCATE, 0, 1 << 20).unwrap();
    assert!(used(&file) < half);
    assert_eq!(file.as_file().metadata().unwrap().len(), 1 << 20);
}

#[test]
fn space_is_kept_where_discards_are_switched_off() {
    let file = image(1 << 20);
    let device = File::new(&FileSpec { discard: false, ..spec(&file) }, Arc::default()).unwrap();
    let mut rig = Rig::new(&device);
    rig.write(0, &vec![7; 1 << 20], EMPTY).unwrap();
    rig.flush().unwrap();
    let full = used(&file);
    assert_eq!(rig.without_data(Op::Discard, EMPTY, 0, 1 << 20), Err(IoError::Unsupported));
    rig.without_data(Op::WriteZeroes, IoFlags::MAY_DEALLOCATE, 0, 1 << 20).unwrap();
    assert!(used(&file) >= full);
    assert_eq!(rig.read(0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn empty_segments_are_no_obstacle() {
    let file = image(8192);
    let device = open_as(&file, buffered);
    let mut rig = Rig::new(&device);
    rig.write(0, &[7; 1024], EMPTY).unwrap();
    let real = rig.segments(0, &[512], 1024);
    let mut segments = vec![Segment::EMPTY; 1500];
    segments.insert(0, real.as_slice()[0]);
    segments.extend([real.as_slice()[1], Segment::EMPTY]);
    let data = rig.keep(segments);
    rig.run(Io { tag: 0, op: Op::Read, flags: EMPTY, offset: 0, len: 1024, data }).unwrap();
    assert_eq!(entries(&rig, READS), 2);
}

#[test]
fn zeroes_are_written_where_the_kernel_does_nothing_for_us() {
    for mode in [strict, buffered] {
        let file = image(16 << 20);
        let device = open_as(&file, mode);
        let mut rig = Rig::new(&device);
        rig.ring.judge(|op| match op {
            RingOp::Fallocate { .. } => Fate::Fail(libc::EOPNOTSUPP),
            _ => Fate::Pass,
        });
        let last = 9 << 20;
        rig.write(0, &[7; 512], EMPTY).unwrap();
        rig.write(last, &[[7; 512], [8; 512]].concat(), EMPTY).unwrap();
        rig.without_data(Op::Discard, EMPTY, 0, last + 512).unwrap();
        assert_eq!(rig.read(0, 512).unwrap(), [0; 512]);
        assert_eq!(rig.read(last, 1024).unwrap(), [[0; 512], [8; 512]].concat());
        let asked = |rig: &Rig| entries(rig, |op| matches!(op, RingOp::Fallocate { .. }));
        assert_eq!(asked(&rig), 2, "both ways were tried");
        assert_eq!(entries(&rig, WRITES), 2 + 4, "4 MiB at a time, then the rest");
        rig.without_data(Op::WriteZeroes, EMPTY, 0, 4096).unwrap();
        assert_eq!(asked(&rig), 2, "and not again");
    }
}

#[test]
fn a_range_that_the_kernel_cannot_take_is_zeroed_by_writing() {
    let file = image(64 << 10);
    let device = open_as(&file, |geometry| geometry.range_align = 4096);
    let mut rig = Rig::new(&device);
    rig.write(0, &[7; 8192], EMPTY).unwrap();
    rig.without_data(Op::Discard, EMPTY, 512, 4096).unwrap();
    assert_eq!(entries(&rig, |op| matches!(op, RingOp::Fallocate { .. })), 0);
    let all = [vec![7; 512], vec![0; 4096], vec![7; 8192 - 4608]].concat();
    assert_eq!(rig.read(0, 8192).unwrap(), all);
}

#[test]
fn a_device_that_promises_no_zeroes_gets_its_own_discard() {
    let file = image(64 << 10);
    let hint = Discard { granularity: 512, alignment: 0, reads_zero: false };
    let device = open_as(&file, |geometry| geometry.discard = Some(hint));
    assert_eq!(device.shape().discard, Some(hint));
    let mut rig = Rig::new(&device);
    rig.write(0, &[7; 512], EMPTY).unwrap();
    let asked = Rc::new(Cell::new(0));
    let count = asked.clone();
    rig.ring.judge(move |op| match op {
        RingOp::BlockDiscard { .. } => {
            count.set(count.get() + 1);
            Fate::Fail(libc::EOPNOTSUPP)
        }
        _ => Fate::Pass,
    });
    rig.without_data(Op::Discard, EMPTY, 0, 512).unwrap();
    assert_eq!((asked.get(), rig.read(0, 512).unwrap()), (1, vec![7; 512]));
}

#[test]
fn a_read_only_device_refuses_changes() {
    let file = image(8192);
    let device = File::new(&FileSpec { readonly: true, ..spec(&file) }, Arc::default()).unwrap();
    assert!(device.shape().read_only && !device.supported().write && !device.supported().unmap);
    let mut rig = Rig::new(&device);
    assert_eq!(rig.write(0, &[1; 512], EMPTY), Err(IoError::ReadOnly));
    assert_eq!(rig.without_data(Op::Discard, EMPTY, 0, 512), Err(IoError::ReadOnly));
    assert_eq!(rig.without_data(Op::WriteZeroes, EMPTY, 0, 512), Err(IoError::ReadOnly));
    assert_eq!(rig.read(0, 512).unwrap(), [0; 512]);
    rig.flush().unwrap();
}

#[test]
fn errors_have_meanings() {
    let file = image(8192);
    let device = open(&file);
    let mut rig = Rig::new(&device);
    for (errno, error) in [
        (libc::EIO, IoError::Medium),
        (libc::ENOSPC, IoError::NoSpace),
        (libc::ENXIO, IoError::NotReady),
        (libc::EROFS, IoError::ReadOnly),
        (libc::ENOMEM, IoError::Busy),
    ] {
        rig.ring.judge(move |_| Fate::Fail(errno));
        assert_eq!(rig.write(0, &[1; 512], EMPTY), Err(error));
    }
    assert!(!device.flush_failed());
}

#[test]
fn a_channel_dropped_in_the_middle_leaves_its_memory_to_the_kernel() {
    let file = image(8192);
    let device = open_as(&file, strict);
    let mut ring = FileRing::default();
    ring.judge(|_| Fate::Hold);
    let mut channel = device.open.clone();
    let mut one = FileChannel::new(channel.clone(), 4, device.stats.new_stats()).unwrap();
    let mut cx = pollux_core::Cx { now: 0, reactor: 0, ring: &mut ring };
    one.attach(&mut cx).unwrap();
    one.submit(Io::without_data(1, Op::WriteZeroes, EMPTY, 0, 512), &mut cx);
    drop(one);
    let left = Arc::strong_count(&channel);
    channel = device.open.clone();
    assert!(left >= 3, "the opening is kept for what is in the ring");
    drop(channel);
}

#[test]
fn listings_say_what_it_is() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[0; 8192 + 1]).unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let aio = File::new(&FileSpec { fallocate: true, ..FileSpec::new("f", &path) }, Arc::default()).unwrap();
    assert_eq!(aio.product_name(), "AIO disk");
    assert_eq!(
        aio.driver_specific(),
        json!({"aio": {
            "filename": path,
            "block_size_override": false,
            "readonly": false,
            "fallocate": true,
            "nowait": false,
            "io_poll": aio.open.geometry.polled,
        }})
    );
    assert!(aio.warnings().iter().any(|w| w.contains("ignored")));
    drop(aio);
    let uring = File::new(&FileSpec { flavor: Flavor::Uring, ..FileSpec::new("f", &path) }, Arc::default()).unwrap();
    let specific = json!({"uring": {"filename": path, "io_poll": uring.open.geometry.polled}});
    assert_eq!((uring.product_name(), uring.driver_specific()), ("URING bdev", specific));
}

/// A loop device, gone when dropped.
struct Loop(String);

impl Loop {
    /// `None` where the test may not make one, or there are none.
    fn over(file: &NamedTempFile, more: &[&str]) -> Option<Self> {
        let made =
            std::process::Command::new("losetup").args(more).args(["--find", "--show"]).arg(file.path()).output();
        let made = made.ok().filter(|output| output.status.success());
        if made.is_none() {
            eprintln!("skipped: no loop device can be made here");
        }
        made.map(|output| Loop(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        std::process::Command::new("losetup").args(["--detach", &self.0]).status().unwrap();
    }
}

#[test]
fn behaves_as_a_plain_array_of_bytes_on_a_block_device() {
    let backing = image(1 << 20);
    let Some(device) = Loop::over(&backing, &["--direct-io=on"]) else { return };
    let file = File::new(&FileSpec::new("f", &device.0), Arc::default()).unwrap();
    let shape = file.shape();
    assert_eq!((shape.block_size, shape.num_blocks), (512, 2048));
    assert!(shape.discard.is_some_and(|discard| discard.reads_zero));
    assert!(file.open.geometry.device && file.open.geometry.direct);
    let error = File::new(&FileSpec::new("g", &device.0), Arc::default()).err().expect("it is open already");
    assert_eq!(error.reason(), "in_use", "{error}");
    drop(file);
    model::check_cases(16, || {
        backing.as_file().set_len(0).unwrap();
        backing.as_file().set_len(1 << 20).unwrap();
        (Arc::new(File::new(&FileSpec::new("f", &device.0), Arc::default()).unwrap()) as Arc<dyn Device>, ())
    });
}

#[test]
fn a_device_with_big_blocks_serves_small_ones_through_the_page_cache() {
    let backing = image(1 << 20);
    let Some(device) = Loop::over(&backing, &["--sector-size=4096"]) else { return };
    let natural = File::new(&FileSpec::new("f", &device.0), Arc::default()).unwrap();
    assert_eq!((natural.shape().block_size, natural.open.geometry.direct), (4096, true));
    drop(natural);
    let wanted = FileSpec { block_size: Some(512), ..FileSpec::new("f", &device.0) };
    let small = File::new(&wanted, Arc::default()).unwrap();
    assert!(!small.open.geometry.direct);
    assert!(small.warnings().iter().any(|w| w.contains("direct I/O needs blocks of 4096 bytes and 512 are wanted")));
    let mut rig = Rig::new(&small);
    rig.write(0, &[7; 8192], EMPTY).unwrap();
    rig.without_data(Op::Discard, EMPTY, 512, 4096).unwrap();
    rig.without_data(Op::WriteZeroes, IoFlags::FUA, 8192 - 512, 512).unwrap();
    let all = [vec![7; 512], vec![0; 4096], vec![7; 8192 - 4608 - 512], vec![0; 512]].concat();
    assert_eq!(rig.read(0, 8192).unwrap(), all);
}

#[test]
fn what_is_mapped_follows_writes_and_discards() {
    for change in [strict, buffered] {
        let file = image(1 << 20);
        let device = open_as(&file, change);
        assert!(device.extent_waits());
        let mut rig = Rig::new(&device);
        let hole = |len| Extent { len, mapped: false };
        assert_eq!(device.extent(0, 1 << 20), hole(1 << 20));
        rig.write(65536, &[1; 65536], EMPTY).unwrap();
        assert_eq!([device.extent(0, 1 << 20), device.extent(65536, 1 << 19)], [hole(65536), Extent::mapped(65536)]);
        assert_eq!(device.extent(98304, 512), Extent::mapped(512));
        rig.without_data(Op::Discard, EMPTY, 65536, 32768).unwrap();
        assert_eq!([device.extent(512, 1 << 19), device.extent(98304, 1 << 19)], [hole(97792), Extent::mapped(32768)]);
    }
}

#[test]
fn a_device_that_gives_nothing_back_and_a_block_device_say_that_all_is_mapped() {
    let file = image(1 << 20);
    for change in [|geometry: &mut Geometry| geometry.discard = None, |geometry: &mut Geometry| geometry.device = true]
    {
        let device = open_as(&file, change);
        assert!(!device.extent_waits());
        assert_eq!(device.extent(512, 1024), Extent::mapped(1024));
    }
}

#[test]
fn files_of_one_file_system_have_one_lane() {
    let [one, other] = [image(4096), image(4096)].map(|file| open_as(&file, strict));
    assert!(one.lane().is_some() && one.lane() == other.lane());
    let stacked = crate::Passthru::new("p", "f", Arc::new(one));
    assert_eq!(stacked.lane(), other.lane());
    assert_eq!(crate::Measured::new(Arc::new(stacked), Arc::default()).lane(), other.lane());
}

mod sharing;
