//! A ring that does everything on the spot with plain system calls, and a rig that drives one channel on it.

#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::Arc;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{
    Bdev, Channel, ClientId, Completion, Cx, Done, Entry, FileSlot, Io, IoError, IoFlags, Next, Op, OpenArgs, Ring,
    RingError, RingOp, Segment, SegmentList, Tag, Wake,
};

use crate::memory::{Buffer, PAGE, list};
use crate::{Device, Ram, RamSpec};

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is done.
    Pass,
    /// It fails with this error number and does nothing.
    Fail(i32),
    /// At most so many bytes of it are done.
    Short(usize),
    /// It is done, but says that at most so many bytes were.
    Report(i32),
    /// It stays in flight until it is cancelled or released.
    Hold,
}

type Judge = Box<dyn FnMut(&RingOp) -> Fate>;

/// What runs on a [`FileRing`] is polled at every step, whether or not something has come: nobody sleeps.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// A ring that runs each entry when it is pushed.
pub(crate) struct FileRing {
    pub(crate) now: u64,
    clients: Vec<Option<(u32, u32, Vec<Done>)>>,
    files: Vec<Option<RawFd>>,
    judge: Judge,
    held: Vec<Entry>,
    /// Polls for descriptors, looked at when the client looks.
    polls: Vec<Entry>,
    /// Everything pushed, in order.
    pub(crate) log: Vec<RingOp>,
}

impl Default for FileRing {
    fn default() -> Self {
        FileRing {
            now: 1,
            clients: Vec::new(),
            files: Vec::new(),
            judge: Box::new(|_| Fate::Pass),
            held: Vec::new(),
            polls: Vec::new(),
            log: Vec::new(),
        }
    }
}

impl FileRing {
    pub(crate) fn judge(&mut self, judge: impl FnMut(&RingOp) -> Fate + 'static) {
        self.judge = Box::new(judge);
    }

    /// Runs what was held.
    pub(crate) fn release(&mut self) {
        for entry in std::mem::take(&mut self.held) {
            let result = self.execute(&entry.op, None);
            self.complete(entry, result);
        }
    }

    fn complete(&mut self, entry: Entry, result: i32) {
        let (_, _, done) = self.clients[usize::from(entry.client.0)].as_mut().expect("registered");
        done.push(Done { token: entry.token, result });
    }

    fn cancel(&mut self, entry: Entry, target: pollux_core::Token) {
        let found = self.held.iter().position(|held| held.client == entry.client && held.token == target);
        if let Some(at) = found {
            let held = self.held.remove(at);
            self.complete(held, -libc::ECANCELED);
        }
        self.complete(entry, if found.is_some() { 0 } else { -libc::ENOENT });
    }

    fn fd(&self, slot: FileSlot) -> RawFd {
        self.files[slot.0 as usize].expect("registered")
    }

    fn execute(&self, op: &RingOp, at_most: Option<usize>) -> i32 {
        let vectors = |data: SegmentList| {
            assert!((1..=1024).contains(&data.count()), "IOV_MAX");
            let mut left = at_most.unwrap_or(usize::MAX);
            let mut all = Vec::new();
            for segment in data.as_slice() {
                let part = segment.slice(0, left);
                left -= part.len();
                all.push(libc::iovec { iov_base: part.addr() as *mut _, iov_len: part.len() });
            }
            all
        };
        // SAFETY: the vectors point into memory that the submitter keeps until the completion; the files are open.
        let result = unsafe {
            match *op {
                RingOp::Read { file, data, offset } => {
                    let v = vectors(data);
                    libc::preadv2(self.fd(file), v.as_ptr(), v.len() as i32, offset as i64, 0)
                }
                RingOp::Write { file, data, offset, dsync } => {
                    let v = vectors(data);
                    let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                    libc::pwritev2(self.fd(file), v.as_ptr(), v.len() as i32, offset as i64, flags)
                }
                // Not every file system has it, so only its rules are kept.
                RingOp::WriteAtomic { file, data, offset, dsync } => {
                    let len = data.bytes();
                    assert!(len.is_power_of_two() && offset.is_multiple_of(len) && at_most.is_none(), "{op:?}");
                    return self.execute(&RingOp::Write { file, data, offset, dsync }, None);
                }
                RingOp::Sync { file } => libc::fdatasync(self.fd(file)) as isize,
                RingOp::Fallocate { file, mode, offset, len } => {
                    libc::fallocate(self.fd(file), mode, offset as i64, len as i64) as isize
                }
                RingOp::BlockDiscard { file, offset, len } => {
                    libc::ioctl(self.fd(file), 0x1277, &[offset, len]) as isize
                }
                _ => unreachable!("no device of this crate uses it"),
            }
        };
        if result < 0 { -std::io::Error::last_os_error().raw_os_error().unwrap() } else { result as i32 }
    }
}

impl Ring for FileRing {
    fn now_ns(&self) -> u64 {
        self.now
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(Awake)
    }

    fn add_client(&mut self, depth: u32) -> Result<ClientId, RingError> {
        self.clients.push(Some((depth, 0, Vec::new())));
        Ok(ClientId(self.clients.len() as u16 - 1))
    }

    fn remove_client(&mut self, client: ClientId) {
        let (_, inflight, done) = self.clients[usize::from(client.0)].take().expect("registered");
        assert!(inflight == 0 && done.is_empty(), "a client leaves with nothing in flight");
    }

    fn add_file(&mut self, fd: RawFd) -> Result<FileSlot, RingError> {
        self.files.push(Some(fd));
        Ok(FileSlot(self.files.len() as u32 - 1))
    }

    fn remove_file(&mut self, file: FileSlot) {
        assert!(self.files[file.0 as usize].take().is_some(), "registered");
    }

    fn push(&mut self, entry: Entry) {
        let (depth, inflight, _) = self.clients[usize::from(entry.client.0)].as_mut().expect("registered");
        *inflight += 1;
        assert!(*inflight <= *depth, "a client keeps to its depth");
        self.log.push(entry.op);
        if let RingOp::Cancel { target } = entry.op {
            return self.cancel(entry, target);
        }
        if let RingOp::PollReadable { .. } = entry.op {
            return self.polls.push(entry);
        }
        let result = match (self.judge)(&entry.op) {
            Fate::Pass => self.execute(&entry.op, None),
            Fate::Fail(errno) => -errno,
            Fate::Short(bytes) => self.execute(&entry.op, Some(bytes)),
            Fate::Report(bytes) => self.execute(&entry.op, None).min(bytes),
            Fate::Hold => return self.held.push(entry),
        };
        self.complete(entry, result);
    }

    fn reap(&mut self, client: ClientId, done: &mut Vec<Done>) {
        for entry in std::mem::take(&mut self.polls) {
            if readable(&entry.op) {
                self.complete(entry, i32::from(libc::POLLIN));
            } else {
                self.polls.push(entry);
            }
        }
        let (_, inflight, mine) = self.clients[usize::from(client.0)].as_mut().expect("registered");
        *inflight -= mine.len() as u32;
        done.append(mine);
    }
}

/// Whether the descriptor that is polled for is readable now.
fn readable(op: &RingOp) -> bool {
    let RingOp::PollReadable { fd } = *op else { return false };
    let mut fds = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which its owner keeps open.
    unsafe { libc::poll(&raw mut fds, 1, 0) > 0 }
}

/// The memory of a rig.
const MEMORY: usize = 4 << 20;

/// Drives one channel of a device on a ring of its own.
pub(crate) struct Rig {
    pub(crate) ring: FileRing,
    channel: Option<Box<dyn Channel>>,
    memory: Buffer,
    lists: Vec<Box<[Segment]>>,
    next_tag: Tag,
}

impl Rig {
    pub(crate) fn new(device: &dyn Bdev) -> Self {
        Self::with(device, OpenArgs { depth: 16, seed: 1 })
    }

    pub(crate) fn with(device: &dyn Bdev, args: OpenArgs) -> Self {
        let mut ring = FileRing::default();
        let mut channel = device.open(args).expect("the device is there");
        channel.attach(&mut Cx { now: ring.now, reactor: 0, ring: &mut ring }).expect("the ring has room");
        Rig { ring, channel: Some(channel), memory: Buffer::new(MEMORY), lists: Vec::new(), next_tag: 1000 }
    }

    fn with_channel<R>(&mut self, f: impl FnOnce(&mut dyn Channel, &mut Cx<'_>) -> R) -> R {
        let channel = self.channel.as_deref_mut().expect("open");
        f(channel, &mut Cx { now: self.ring.now, reactor: 0, ring: &mut self.ring })
    }

    pub(crate) fn depth(&self) -> u32 {
        self.channel.as_ref().expect("open").depth()
    }

    pub(crate) fn next(&self) -> Next {
        self.channel.as_ref().expect("open").next()
    }

    pub(crate) fn submit(&mut self, io: Io) {
        self.with_channel(|channel, cx| channel.submit(io, cx));
    }

    pub(crate) fn cancel(&mut self, tag: Tag) {
        self.with_channel(|channel, cx| channel.cancel(tag, cx));
    }

    pub(crate) fn poll(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        self.with_channel(|channel, cx| channel.poll(cx, &mut done));
        done
    }

    /// Polls, and moves the clock to where the channel wants it, until nothing is in flight.
    pub(crate) fn finish(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        for _ in 0..1_000_000 {
            match self.next() {
                Next::Idle => return done,
                Next::At(at) => self.ring.now = self.ring.now.max(at),
                Next::Now | Next::Ring => {}
            }
            done.append(&mut self.poll());
        }
        panic!("the channel never becomes idle");
    }

    pub(crate) fn run(&mut self, io: Io) -> Result<(), IoError> {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.submit(Io { tag, ..io });
        let done = self.finish();
        let mine: Vec<_> = done.iter().filter(|c| c.tag == tag).collect();
        assert_eq!(mine.len(), 1, "each tag completes once: {done:?}");
        mine[0].result
    }

    /// Segments over the rig's memory: from `start` on, pieces of these lengths (the last one again and again).
    pub(crate) fn segments(&mut self, start: usize, pieces: &[usize], len: usize) -> SegmentList {
        let mut all = Vec::new();
        let (mut at, mut nth) = (0, 0);
        while at < len {
            let piece = pieces.get(nth).or(pieces.last()).map_or(len, |p| (*p).max(1)).min(len - at);
            all.push(self.memory.segment().slice(start + at, piece));
            (at, nth) = (at + piece, nth + 1);
        }
        self.keep(all)
    }

    /// A list of these segments that lives as long as the rig.
    pub(crate) fn keep(&mut self, segments: Vec<Segment>) -> SegmentList {
        self.lists.push(segments.into_boxed_slice());
        // SAFETY: the rig keeps its lists until it is dropped, and then nothing is in flight.
        unsafe { list(self.lists.last().expect("just pushed")) }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8], flags: IoFlags) -> Result<(), IoError> {
        self.write_in(offset, bytes, flags, 0, &[])
    }

    pub(crate) fn write_in(
        &mut self,
        offset: u64,
        bytes: &[u8],
        flags: IoFlags,
        start: usize,
        pieces: &[usize],
    ) -> Result<(), IoError> {
        let data = self.segments(start, pieces, bytes.len());
        assert_eq!(copy_to(data.as_slice(), 0, bytes), bytes.len());
        self.run(Io { tag: 0, op: Op::Write, flags, offset, len: bytes.len() as u64, data })
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        self.read_in(offset, len, 0, &[])
    }

    pub(crate) fn read_in(
        &mut self,
        offset: u64,
        len: usize,
        start: usize,
        pieces: &[usize],
    ) -> Result<Vec<u8>, IoError> {
        let data = self.segments(start, pieces, len);
        self.run(Io { tag: 0, op: Op::Read, flags: IoFlags::empty(), offset, len: len as u64, data })?;
        let mut bytes = vec![0; len];
        assert_eq!(copy_from(data.as_slice(), 0, &mut bytes), len);
        Ok(bytes)
    }

    pub(crate) fn without_data(&mut self, op: Op, flags: IoFlags, offset: u64, len: u64) -> Result<(), IoError> {
        self.run(Io::without_data(0, op, flags, offset, len))
    }

    pub(crate) fn flush(&mut self) -> Result<(), IoError> {
        self.without_data(Op::Flush, IoFlags::empty(), 0, 0)
    }

    /// Fills the rig's whole memory.
    pub(crate) fn fill(&mut self, byte: u8) {
        copy_to(self.memory.list().as_slice(), 0, &vec![byte; MEMORY]);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What is in flight may still point into the memory: leave everything as it is.
            return;
        }
        self.ring.judge(|_| Fate::Pass);
        self.ring.release();
        self.finish();
        let mut channel = self.channel.take().expect("open");
        channel.detach(&mut Cx { now: self.ring.now, reactor: 0, ring: &mut self.ring });
    }
}

/// A ram disk.
pub(crate) fn ram(block_size: u32, num_blocks: u64) -> Arc<dyn Device> {
    let spec = RamSpec { name: "ram".into(), block_size, num_blocks, physical_block_size: None, uuid: None };
    Arc::new(Ram::new(&spec).expect("the machine has address space"))
}

/// Bytes that tell where they were written and by which write.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = crate::rng::Rng::new(seed);
    (0..len.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes()).take(len).collect()
}

const _: () = assert!(MEMORY.is_multiple_of(PAGE));
