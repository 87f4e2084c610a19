//! Two rings as one, on the real kernel.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::tests::{counter, list, over, run, token, wait_for};
use super::*;

const BLOCK: usize = 512;

fn ring(data_ring: DataMode) -> UringRing {
    let small = RingConfig { submissions: 8, completions: 16, files: 64, ..RingConfig::default() };
    UringRing::new(&RingConfig { data_ring, ..small }).unwrap()
}

fn went_there(ring: &UringRing) -> bool {
    ring.data.as_ref().unwrap().was_used()
}

fn goes_there(ring: &UringRing, file: FileSlot) -> bool {
    let data = ring.data.as_ref().unwrap();
    data.place(&RingOp::Read { file, data: list(&[]), offset: 0 }, |_| 0).is_some()
}

fn blocks_of(seed: usize, count: usize) -> Vec<u8> {
    (0..count * BLOCK).map(|at| (at / BLOCK * 7 + at % 251 + seed) as u8).collect()
}

/// Pushes all at once: more than either queue holds.
fn move_all(ring: &mut UringRing, client: ClientId, ops: impl Iterator<Item = RingOp>) {
    let mut count = 0;
    for op in ops {
        ring.push(Entry { client, token: token(count), op });
        count += 1;
    }
    let done = wait_for(ring, client, count as usize);
    assert!(done.iter().enumerate().all(|(at, done)| done.token == token(at as u32)), "each token once");
    assert!(done.iter().all(|done| done.result == BLOCK as i32), "{done:?}");
}

#[test]
fn a_submission_thread_moves_the_right_data() {
    const COUNT: usize = 300;
    let file = tempfile::tempfile().unwrap();
    let mut ring = ring(DataMode::SqPoll);
    assert_eq!(ring.features().data_ring, DataMode::SqPoll);
    let client = ring.add_client(COUNT as u32).unwrap();
    let slot = ring.add_data_file(file.as_raw_fd(), false).unwrap();
    for round in 0..3 {
        let mut written = blocks_of(round, COUNT);
        let segments: Vec<_> = written.chunks_exact_mut(BLOCK).map(|block| [over(block)]).collect();
        let write = |(at, data): (usize, &[_; 1])| {
            let offset = (at * BLOCK) as u64;
            RingOp::Write { file: slot, data: list(data), offset, dsync: at % 50 == 0 }
        };
        move_all(&mut ring, client, segments.iter().enumerate().map(write));
        assert!(went_there(&ring));
        assert_eq!(run(&mut ring, client, RingOp::Sync { file: slot }), 0);
        let expected = blocks_of(round, COUNT);
        let mut content = vec![0; expected.len()];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content == expected, "what was written, where it belongs");

        let mut read = vec![0; expected.len()];
        let segments: Vec<_> = read.chunks_exact_mut(BLOCK).map(|block| [over(block)]).collect();
        let one =
            |(at, data): (usize, &[_; 1])| RingOp::Read { file: slot, data: list(data), offset: (at * BLOCK) as u64 };
        move_all(&mut ring, client, segments.iter().enumerate().map(one));
        assert!(read == expected, "what is there");
        // The submission thread falls asleep in between, and has to be woken.
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((ring.data.as_ref().unwrap().in_flight(), ring.stale()), (0, 0));
    ring.remove_file(slot);
    ring.remove_client(client);
}

#[test]
fn a_sleep_ends_with_a_completion_of_either_ring() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut ring = ring(DataMode::SqPoll);
    let client = ring.add_client(1).unwrap();
    let slot = ring.add_data_file(reader.as_raw_fd(), false).unwrap();
    let mut bytes = [0; 4];
    for round in 0..20u8 {
        let data = [over(&mut bytes)];
        let op = RingOp::Read { file: slot, data: list(&data), offset: 0 };
        ring.push(Entry { client, token: token(0), op });
        ring.enter(None);
        let end = thread::scope(|scope| {
            scope.spawn(|| {
                // Sometimes before the sleep, sometimes in the middle.
                thread::sleep(Duration::from_millis(u64::from(round % 4)));
                writer.write_all(&[round; 4]).unwrap();
            });
            let start = Instant::now();
            let mut done = Vec::new();
            while done.is_empty() {
                ring.enter(Some(Duration::from_secs(3600)));
                ring.reap(client, &mut done);
            }
            assert_eq!(done, [Done { token: token(0), result: 4 }]);
            start.elapsed()
        });
        assert!(end < Duration::from_secs(60));
        assert_eq!(bytes, [round; 4]);
    }
    // The poll of the data ring may still be there; it does not keep other things from ending a sleep.
    let mut more = 0u64.to_ne_bytes();
    let event = counter(1);
    let plain = ring.add_file(event.as_raw_fd()).unwrap();
    let data = [over(&mut more)];
    assert_eq!(run(&mut ring, client, RingOp::Read { file: plain, data: list(&data), offset: 0 }), 8);
    drop(writer);
}

#[test]
fn a_cancel_follows_its_entry() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut ring = ring(DataMode::SqPoll);
    let client = ring.add_client(2).unwrap();
    let slot = ring.add_data_file(reader.as_raw_fd(), false).unwrap();
    let mut bytes = [0; 4];
    let data = [over(&mut bytes)];
    ring.push(Entry { client, token: token(1), op: RingOp::Read { file: slot, data: list(&data), offset: 0 } });
    ring.turn();
    let old = Token { generation: 6, ..token(1) };
    assert_eq!(run(&mut ring, client, RingOp::Cancel { target: old }), -libc::ENOENT);
    ring.push(Entry { client, token: token(2), op: RingOp::Cancel { target: token(1) } });
    let done = wait_for(&mut ring, client, 2);
    assert_eq!(done[0].result, -libc::ECANCELED);
    // The kernel says EALREADY where its worker was in the read and had to be woken.
    assert!([0, -libc::EALREADY].contains(&done[1].result), "{done:?}");
    assert_eq!((ring.data.as_ref().unwrap().in_flight(), ring.stale()), (0, 0));
}

#[test]
fn both_rings_are_waited_for_at_the_end() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let (mut first, mut second) = ([0; 8], [0; 8]);
    let (one, two) = ([over(&mut first)], [over(&mut second)]);
    let mut ring = ring(DataMode::SqPoll);
    let client = ring.add_client(2).unwrap();
    let there = ring.add_data_file(reader.as_raw_fd(), false).unwrap();
    let here = ring.add_file(reader.as_raw_fd()).unwrap();
    ring.push(Entry { client, token: token(0), op: RingOp::Read { file: there, data: list(&one), offset: 0 } });
    ring.push(Entry { client, token: token(1), op: RingOp::Read { file: here, data: list(&two), offset: 0 } });
    // A sleep in vain leaves the poll of the data ring behind.
    ring.enter(Some(Duration::from_millis(10)));
    assert_eq!(ring.data.as_ref().unwrap().in_flight(), 1);
    assert_eq!(ring.in_flight(), 3);
    ring.drain();
    assert_eq!((ring.data.as_ref().unwrap().in_flight(), ring.in_flight()), (0, 0));
}

#[test]
fn only_files_that_poll_go_into_a_ring_that_polls() {
    let file = tempfile::tempfile().unwrap();
    let mut ring = ring(DataMode::IoPoll);
    let client = ring.add_client(1).unwrap();
    let slots = [ring.add_data_file(file.as_raw_fd(), false).unwrap(), ring.add_file(file.as_raw_fd()).unwrap()];
    for slot in slots {
        assert!(!goes_there(&ring, slot));
        let mut bytes = *b"0123";
        let data = [over(&mut bytes)];
        assert_eq!(run(&mut ring, client, RingOp::Write { file: slot, data: list(&data), offset: 0, dsync: false }), 4);
    }
    assert!(!went_there(&ring));
}

/// A pipe cannot be polled by any kernel, whatever is said of it.
#[test]
fn what_the_data_ring_refuses_goes_through_the_first() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut ring = ring(DataMode::IoPoll);
    let client = ring.add_client(40).unwrap();
    let slot = ring.add_data_file(writer.as_raw_fd(), true).unwrap();
    assert!(goes_there(&ring, slot));
    let mut bytes = [*b"abcd"; 30];
    let data: Vec<_> = bytes.iter_mut().map(|bytes| [over(bytes)]).collect();
    for (at, data) in data.iter().enumerate() {
        let op = RingOp::Write { file: slot, data: list(data), offset: 0, dsync: false };
        ring.push(Entry { client, token: token(at as u32), op });
    }
    let done = wait_for(&mut ring, client, 30);
    assert!(done.iter().all(|done| done.result == 4), "{done:?}");
    assert!(went_there(&ring) && !goes_there(&ring, slot), "it was tried, and is not tried again");
    let mut content = [0; 120];
    reader.read_exact(&mut content).unwrap();
    assert_eq!(content.as_chunks().0, [*b"abcd"; 30]);
    assert_eq!((ring.in_flight(), ring.must_look()), (0, false));
    // Its place is free for one that polls.
    ring.remove_file(slot);
    let again = ring.add_data_file(writer.as_raw_fd(), true).unwrap();
    assert!(again == slot && goes_there(&ring, again));
}

/// On a device with poll queues this is polling; without, the kernel refuses or interrupts. The data is right each time.
#[test]
fn direct_reads_and_writes_are_right_whatever_the_device_can() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let named = tempfile::NamedTempFile::new().unwrap();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    // A file system without direct I/O has nothing to be polled.
    let Ok(direct) = options.open(named.path()) else { return };
    direct.set_len(1 << 20).unwrap();
    let mut ring = ring(DataMode::IoPoll);
    let client = ring.add_client(64).unwrap();
    let slot = ring.add_data_file(direct.as_raw_fd(), true).unwrap();
    let mut written: Vec<Page> = (0..64).map(|n| Page([n as u8 + 1; 4096])).collect();
    let data: Vec<_> = written.iter_mut().map(|page| [over(&mut page.0)]).collect();
    for (at, data) in data.iter().enumerate() {
        let op = RingOp::Write { file: slot, data: list(data), offset: at as u64 * 4096, dsync: at % 8 == 0 };
        ring.push(Entry { client, token: token(at as u32), op });
    }
    let done = wait_for(&mut ring, client, 64);
    assert!(done.iter().all(|done| done.result == 4096), "{done:?}");
    assert_eq!(run(&mut ring, client, RingOp::Sync { file: slot }), 0);
    for at in 0..64u8 {
        let mut page = Box::new(Page([0; 4096]));
        let data = [over(&mut page.0)];
        let read = RingOp::Read { file: slot, data: list(&data), offset: u64::from(at) * 4096 };
        assert_eq!(run(&mut ring, client, read), 4096);
        assert!(page.0.iter().all(|byte| *byte == at + 1));
    }
    assert_eq!((ring.in_flight(), ring.must_look(), ring.stale()), (0, false, 0));
}

#[test]
fn a_refused_data_ring_says_which_option_it_came_from() {
    let config = RingConfig { data_ring: DataMode::SqPoll, sq_core: Some(100_000), ..RingConfig::default() };
    let error = UringRing::new(&config).err().expect("there is no such core");
    assert_eq!(error, SetupError::Data { mode: DataMode::SqPoll, errno: libc::EINVAL });
    assert!(error.to_string().contains("sqpoll") && error.to_string().contains("--data-ring"), "{error}");
}
