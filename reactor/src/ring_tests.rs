//! The real ring on real files.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use pollux_core::{RingOp, Segment, SegmentList};
use rustix::event::{EventfdFlags, eventfd};

use super::*;

const FALLOC_FL_KEEP_SIZE: i32 = 1;
const FALLOC_FL_PUNCH_HOLE: i32 = 2;

fn ring() -> UringRing {
    UringRing::new(&RingConfig { submissions: 8, completions: 16, files: 64, ..RingConfig::default() }).unwrap()
}

pub(super) fn token(index: u32) -> Token {
    Token { index, generation: 7 }
}

pub(super) fn over(bytes: &mut [u8]) -> Segment {
    // SAFETY: the tests keep the bytes until the request has completed, and do not touch them before.
    unsafe { Segment::new(bytes.as_mut_ptr() as usize, bytes.len()) }
}

pub(super) fn list(segments: &[Segment]) -> SegmentList {
    // SAFETY: as in `over`.
    unsafe { SegmentList::new(segments) }
}

/// Turns until the client has `count` completions; in the order of their tokens.
pub(super) fn wait_for(ring: &mut UringRing, client: ClientId, count: usize) -> Vec<Done> {
    let mut done = Vec::new();
    let start = Instant::now();
    while done.len() < count {
        assert!(start.elapsed() < Duration::from_secs(10), "{} of {count} completions came", done.len());
        ring.enter(Some(Duration::from_millis(100)));
        ring.reap(client, &mut done);
    }
    done.sort_by_key(|done| done.token.index);
    done
}

pub(super) fn run(ring: &mut UringRing, client: ClientId, op: RingOp) -> i32 {
    ring.push(Entry { client, token: token(0), op });
    let done = wait_for(ring, client, 1);
    assert_eq!((done.len(), done[0].token), (1, token(0)));
    done[0].result
}

pub(super) fn counter(start: u32) -> OwnedFd {
    eventfd(start, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn count_of(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

#[test]
fn writes_and_reads_one_segment_and_many() {
    let file = tempfile::tempfile().unwrap();
    let mut ring = ring();
    let client = ring.add_client(4).unwrap();
    let slot = ring.add_file(file.as_raw_fd()).unwrap();
    let (mut one, mut two) = (*b"0123456789", *b"abcdef");
    for dsync in [false, true] {
        let data = [over(&mut one), over(&mut two)];
        let single = RingOp::Write { file: slot, data: list(&data[..1]), offset: 0, dsync };
        assert_eq!(run(&mut ring, client, single), 10);
        let many = RingOp::Write { file: slot, data: list(&data), offset: 8, dsync };
        assert_eq!(run(&mut ring, client, many), 16);
    }
    assert_eq!(run(&mut ring, client, RingOp::Sync { file: slot }), 0);
    let mut content = [0; 24];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"012345670123456789abcdef");

    let (mut first, mut second) = ([0; 4], [0; 20]);
    let data = [over(&mut first), over(&mut second)];
    assert_eq!(run(&mut ring, client, RingOp::Read { file: slot, data: list(&data[..1]), offset: 20 }), 4);
    assert_eq!(&first, b"cdef");
    let data = [over(&mut first), over(&mut second)];
    let short = run(&mut ring, client, RingOp::Read { file: slot, data: list(&data), offset: 2 });
    assert_eq!(short, 22, "the file ends there");
    assert_eq!((&first, &second[..18]), (b"2345", &b"670123456789abcdef"[..]));
    ring.remove_file(slot);
    ring.remove_client(client);
}

#[test]
fn the_kernel_hears_that_a_write_is_atomic() {
    // It has none on a file in memory, and says so; older ones do not know the flag, and say the same.
    let file = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 8192).unwrap();
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    let slot = ring.add_file(file.as_raw_fd()).unwrap();
    let mut bytes = [7; 4096];
    for dsync in [false, true] {
        let data = [over(&mut bytes)];
        let write = RingOp::WriteAtomic { file: slot, data: list(&data), offset: 4096, dsync };
        assert_eq!(run(&mut ring, client, write), -libc::EOPNOTSUPP);
    }
    let mut content = [1; 8192];
    File::from(file).read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [0; 8192]);
}

#[test]
fn errors_are_results() {
    let read_only = File::open("/dev/null").unwrap();
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    let slot = ring.add_file(read_only.as_raw_fd()).unwrap();
    let mut byte = [0];
    let data = [over(&mut byte)];
    let write = RingOp::Write { file: slot, data: list(&data), offset: 0, dsync: false };
    assert_eq!(run(&mut ring, client, write), -libc::EBADF);
    let regular = tempfile::tempfile().unwrap();
    let regular = ring.add_file(regular.as_raw_fd()).unwrap();
    let discard = RingOp::BlockDiscard { file: regular, offset: 0, len: 4096 };
    assert!(run(&mut ring, client, discard) < 0, "a regular file takes no block device's command");
}

#[test]
fn fallocate_punches_holes() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xa5; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    let slot = ring.add_file(file.as_raw_fd()).unwrap();
    let mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
    let punch = RingOp::Fallocate { file: slot, mode, offset: 65536, len: 1 << 19 };
    assert_eq!(run(&mut ring, client, punch), 0);
    let mut at_border = [1; 4];
    file.read_exact_at(&mut at_border, 65534).unwrap();
    assert_eq!(at_border, [0xa5, 0xa5, 0, 0]);
    let after = file.metadata().unwrap();
    assert!(after.blocks() < before && after.size() == 1 << 20);
}

#[test]
fn a_signal_wakes_a_poll_and_a_full_eventfd_is_an_error() {
    let event = counter(0);
    let fd = event.as_raw_fd();
    let mut ring = ring();
    let client = ring.add_client(2).unwrap();
    ring.push(Entry { client, token: token(1), op: RingOp::PollReadable { fd } });
    ring.enter(Some(Duration::from_millis(5)));
    let mut done = Vec::new();
    ring.reap(client, &mut done);
    assert!(done.is_empty(), "nothing to read yet");
    ring.push(Entry { client, token: token(2), op: RingOp::Signal { fd } });
    let done = wait_for(&mut ring, client, 2);
    assert_eq!(done[0], Done { token: token(1), result: i32::from(libc::POLLIN) });
    assert_eq!(done[1], Done { token: token(2), result: 8 });
    assert_eq!(count_of(&event), 1);

    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert_eq!(run(&mut ring, client, RingOp::Signal { fd }), -libc::EAGAIN);
    assert_eq!(count_of(&event), u64::MAX - 1);
}

#[test]
fn a_signal_waits_for_nothing_on_a_blocking_eventfd() {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    let start = Instant::now();
    assert_eq!(run(&mut ring, client, RingOp::Signal { fd: event.as_raw_fd() }), -libc::EAGAIN);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn cancel_ends_a_poll_and_misses_what_is_not_there() {
    let event = counter(0);
    let mut ring = ring();
    let (client, other) = (ring.add_client(2).unwrap(), ring.add_client(1).unwrap());
    ring.push(Entry { client, token: token(1), op: RingOp::PollReadable { fd: event.as_raw_fd() } });
    ring.turn();
    let foreign = run(&mut ring, other, RingOp::Cancel { target: token(1) });
    assert_eq!(foreign, -libc::ENOENT, "a token means something to its client only");
    let old = Token { generation: 6, ..token(1) };
    assert_eq!(run(&mut ring, client, RingOp::Cancel { target: old }), -libc::ENOENT);
    ring.push(Entry { client, token: token(2), op: RingOp::Cancel { target: token(1) } });
    let done = wait_for(&mut ring, client, 2);
    assert_eq!((done[0].result, done[1].result), (-libc::ECANCELED, 0));
    assert_eq!((ring.in_flight(), ring.stale()), (0, 0));
}

/// More at once than either queue holds, by the ways of all kernels that are served.
#[test]
fn full_queues_lose_nothing_in_any_mode() {
    for choice in crate::kernel::choices() {
        let config = RingConfig { submissions: 8, completions: 16, ..RingConfig::default() };
        let kernel = Kernel::with(&config, std::slice::from_ref(&choice)).unwrap();
        let mut ring = UringRing::on(kernel, config.files, Arc::new(Wake::new().unwrap()));
        assert_eq!(
            (ring.features().defer_taskrun, ring.features().coop_taskrun),
            (choice.defer_taskrun, choice.coop_taskrun)
        );
        signals_beyond_the_queues(&mut ring);
        polls_that_all_fire_at_once(&mut ring);
        writes_by_workers(&mut ring);
    }
}

fn signals_beyond_the_queues(ring: &mut UringRing) {
    const COUNT: u32 = 500;
    let event = counter(0);
    let fd = event.as_raw_fd();
    let client = ring.add_client(COUNT).unwrap();
    for index in 0..COUNT {
        ring.push(Entry { client, token: token(index), op: RingOp::Signal { fd } });
    }
    let done = wait_for(ring, client, COUNT as usize);
    assert!(done.iter().enumerate().all(|(i, done)| done.token == token(i as u32) && done.result == 8));
    assert_eq!(count_of(&event), u64::from(COUNT));
    ring.remove_client(client);
}

fn polls_that_all_fire_at_once(ring: &mut UringRing) {
    const COUNT: u32 = 100;
    let event = counter(0);
    let client = ring.add_client(COUNT).unwrap();
    for index in 0..COUNT {
        ring.push(Entry { client, token: token(index), op: RingOp::PollReadable { fd: event.as_raw_fd() } });
    }
    ring.turn();
    rustix::io::write(&event, &1u64.to_ne_bytes()).unwrap();
    turn_until(ring, client, COUNT as usize);
    ring.remove_client(client);
}

/// Buffered writes with `dsync`, and syncs, complete on the kernel's workers.
fn writes_by_workers(ring: &mut UringRing) {
    const COUNT: u32 = 40;
    let file = tempfile::tempfile().unwrap();
    let slot = ring.add_file(file.as_raw_fd()).unwrap();
    let client = ring.add_client(COUNT).unwrap();
    let mut bytes = [1; 4096];
    let data = [over(&mut bytes)];
    for index in 0..COUNT {
        let write = RingOp::Write { file: slot, data: list(&data), offset: u64::from(index) * 4096, dsync: true };
        let op = if index % 4 == 0 { RingOp::Sync { file: slot } } else { write };
        ring.push(Entry { client, token: token(index), op });
    }
    turn_until(ring, client, COUNT as usize);
    ring.remove_client(client);
    ring.remove_file(slot);
}

/// Turns without ever waiting: task work and overflow have to be seen by themselves.
fn turn_until(ring: &mut UringRing, client: ClientId, count: usize) {
    let start = Instant::now();
    let mut done = Vec::new();
    while done.len() < count {
        assert!(start.elapsed() < Duration::from_secs(10), "{} of {count} completions came", done.len());
        ring.turn();
        ring.reap(client, &mut done);
    }
    assert!(done.iter().all(|done| done.result >= 0), "{done:?}");
    assert_eq!(ring.in_flight(), 0);
}

/// `losetup` needs root: run with `--ignored` there.
#[test]
#[ignore = "needs root and a free loop device"]
fn block_devices_discard() {
    let backing = tempfile::NamedTempFile::new().unwrap();
    backing.as_file().write_all_at(&vec![0xa5; 1 << 20], 0).unwrap();
    backing.as_file().sync_all().unwrap();
    let losetup = |args: &[&str]| {
        let output = std::process::Command::new("losetup").args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["-f", "--show", backing.path().to_str().unwrap()]);
    let file = File::options().read(true).write(true).open(&device).unwrap();
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    let slot = ring.add_file(file.as_raw_fd()).unwrap();
    let result = run(&mut ring, client, RingOp::BlockDiscard { file: slot, offset: 65536, len: 1 << 19 });
    let mut at_borders = [[1; 2]; 2];
    for (bytes, offset) in at_borders.iter_mut().zip([65535, 65535 + (1 << 19)]) {
        backing.as_file().read_exact_at(bytes, offset).unwrap();
    }
    ring.remove_file(slot);
    drop(file);
    losetup(&["-d", &device]);
    assert_eq!((result, at_borders), (0, [[0xa5, 0], [0, 0xa5]]));
}

#[test]
fn a_turn_without_work_does_not_enter_the_kernel() {
    let event = counter(0);
    let mut ring = ring();
    let client = ring.add_client(1).unwrap();
    ring.push(Entry { client, token: token(0), op: RingOp::PollReadable { fd: event.as_raw_fd() } });
    ring.turn();
    let before = ring.enters();
    for _ in 0..1000 {
        assert_eq!(ring.turn(), 0);
    }
    assert_eq!(ring.enters(), before);
    let start = Instant::now();
    assert_eq!(ring.enter(Some(Duration::from_millis(30))), 0);
    assert!(start.elapsed() >= Duration::from_millis(30), "it waited its time");
}

#[test]
fn files_beyond_the_registered_table_go_by_descriptor() {
    let files: Vec<File> = (0..6).map(|_| tempfile::tempfile().unwrap()).collect();
    let config = RingConfig { files: 6, ..RingConfig::default() };
    let mut ring = UringRing::new(&config).unwrap();
    assert_eq!(ring.features().registered_files, 6);
    ring.max_files = 8;
    let client = ring.add_client(1).unwrap();
    let all = files.iter().chain(&files[..2]);
    let slots: Vec<FileSlot> = all.map(|file| ring.add_file(file.as_raw_fd()).unwrap()).collect();
    assert_eq!(ring.add_file(files[0].as_raw_fd()), Err(RingError::Full));
    for (i, slot) in slots.iter().enumerate() {
        let mut byte = [i as u8];
        let data = [over(&mut byte)];
        let write = RingOp::Write { file: *slot, data: list(&data), offset: i as u64, dsync: false };
        assert_eq!(run(&mut ring, client, write), 1);
    }
    assert_eq!(files[1].metadata().unwrap().size(), 8, "by slot 1 and by slot 7");
    for slot in slots {
        ring.remove_file(slot);
    }
}

#[test]
fn what_is_no_file_is_refused_and_takes_no_place() {
    let mut ring = UringRing::new(&RingConfig { files: 1, ..RingConfig::default() }).unwrap();
    for bad in [-1, i32::MAX] {
        assert_eq!(ring.add_file(bad), Err(RingError::Os(libc::EBADF)));
    }
    let file = tempfile::tempfile().unwrap();
    assert_eq!(ring.add_file(file.as_raw_fd()), Ok(FileSlot(0)));
}

#[test]
fn a_removed_file_is_closed_in_the_ring() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut ring = ring();
    let slot = ring.add_file(writer.as_raw_fd()).unwrap();
    drop(writer);
    ring.remove_file(slot);
    let client = ring.add_client(1).unwrap();
    let poll = run(&mut ring, client, RingOp::PollReadable { fd: reader.as_raw_fd() });
    assert!(poll & i32::from(libc::POLLHUP) != 0, "the last writer is gone");
}

#[test]
fn a_dropped_ring_waits_for_what_is_in_flight() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let mut bytes = [0; 8];
    let data = [over(&mut bytes)];
    let mut ring = ring();
    let client = ring.add_client(2).unwrap();
    let slot = ring.add_file(reader.as_raw_fd()).unwrap();
    ring.push(Entry { client, token: token(0), op: RingOp::Read { file: slot, data: list(&data), offset: 0 } });
    ring.turn();
    assert_eq!(ring.in_flight(), 1);
    let start = Instant::now();
    ring.drain();
    assert_eq!(ring.in_flight(), 0);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn this_kernel_gives_what_it_has() {
    let config = RingConfig { worker_cores: crate::cores::allowed(), ..RingConfig::default() };
    let ring = UringRing::new(&config).unwrap();
    let features = ring.features();
    assert!(features.completion_entries >= config.completions.min(features.submission_entries));
    // Later kernels have all of it; on earlier ones the tests above show that less is enough.
    let text = features.to_string();
    assert!(text.contains(&format!("{} registered files", features.registered_files)), "{text}");
    if features.defer_taskrun {
        assert!(features.single_issuer && features.registered_ring && features.registered_files > 0);
        assert_eq!((features.worker_limits, &features.worker_cores), (config.workers, &config.worker_cores));
    }
}
