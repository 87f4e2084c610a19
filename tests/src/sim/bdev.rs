//! The plainest device on a simulated disk: one ring entry for each request. It shows what a device has to do, stands in
//! where a test is about what is above the devices, and is what the simulator itself is tested with.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use pollux_core::{
    AtomicWrite, Bdev, Channel, ClientId, Completion, CopyEnd, CopyError, CopyRange, Cx, Discard, Entry, Extent,
    FileSlot, Io, IoError, IoFlags, Lane, Next, Op, OpenArgs, OpenError, RingOp, Shape, Slab, Tag, Token,
};
use rustix::fs::MemfdFlags;

use super::{DiskId, SimDisk, SimWorld};

/// A device over a disk of the simulated world.
#[derive(Clone)]
pub struct SimBdev {
    world: SimWorld,
    file: Arc<OwnedFd>,
    shape: Shape,
    copies: bool,
    lane: Option<Lane>,
}

/// A disk of a world as an end of copies: a step is one change of the target.
struct SimEnd {
    world: SimWorld,
    file: Arc<OwnedFd>,
}

impl CopyEnd for SimEnd {
    fn step(&self) -> u64 {
        16 << 10
    }

    fn grain(&self) -> u64 {
        2048
    }

    fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError> {
        let Some(source) = (source as &dyn Any).downcast_ref::<SimEnd>() else { return Err(CopyError::Apart) };
        self.world.copy((&source.file, from), (&self.file, to), len)
    }
}

impl SimBdev {
    /// A new disk of `bytes` zeroes and a device over it, with blocks of 512 bytes.
    ///
    /// # Panics
    /// If the system has no descriptor left.
    #[must_use]
    pub fn new(world: &SimWorld, bytes: u64) -> Self {
        let file = rustix::fs::memfd_create("sim-disk", MemfdFlags::CLOEXEC).expect("a memfd");
        let shape = Shape {
            block_size: 512,
            physical_block_size: 512,
            num_blocks: bytes / 512,
            read_only: false,
            volatile_cache: true,
            discard: Some(Discard { granularity: 512, alignment: 0, reads_zero: true }),
            optimal_io: 0,
            rotation_rate: 1,
            atomic_write: None,
        };
        let bdev = SimBdev { world: world.clone(), file: Arc::new(file), shape, copies: false, lane: None };
        world.add_disk(bdev.disk(), SimDisk::new(bytes));
        bdev
    }

    /// It copies by itself, from and to others that do.
    #[must_use]
    pub fn that_copies(self) -> Self {
        SimBdev { copies: true, ..self }
    }

    /// It writes so many bytes, a power of two, as a whole or not at all where they begin at a multiple of that.
    #[must_use]
    pub fn that_writes_atomically(mut self, unit: u32) -> Self {
        self.shape.atomic_write = Some(AtomicWrite { max: unit, granularity: unit, alignment: unit });
        self
    }

    /// It is a file of this file system.
    #[must_use]
    pub fn of_file_system(self, number: u64) -> Self {
        SimBdev { lane: Some(Lane(number)), ..self }
    }

    /// Its disk.
    ///
    /// # Panics
    /// Never: the descriptor is open.
    #[must_use]
    pub fn disk(&self) -> DiskId {
        DiskId::of(&*self.file).expect("the descriptor is open")
    }
}

impl Bdev for SimBdev {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.world.disk(self.disk(), |disk| disk.extent(offset, len))
    }

    fn lane(&self) -> Option<Lane> {
        self.lane
    }

    fn copy_range(&self, offset: u64, _: u64) -> Option<CopyRange> {
        let end = || Arc::new(SimEnd { world: self.world.clone(), file: self.file.clone() });
        self.copies.then(|| CopyRange::new(end(), offset))
    }

    /// Looked up as a file system looks it up: by a helper thread.
    fn extent_waits(&self) -> bool {
        true
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(SimChannel {
            file: Arc::clone(&self.file),
            depth: args.depth,
            registered: None,
            running: Slab::new(args.depth),
            tokens: HashMap::new(),
            cancels: 0,
            next_cancel: 0,
        }))
    }
}

struct Running {
    io: Io,
    /// Its change is done and it waits for the sync that makes it durable.
    syncing: bool,
}

struct SimChannel {
    file: Arc<OwnedFd>,
    depth: u32,
    registered: Option<(ClientId, FileSlot)>,
    running: Slab<Running>,
    tokens: HashMap<Tag, Token>,
    cancels: u32,
    next_cancel: u16,
}

/// Cancels have tokens beyond those of requests.
const CANCEL: u32 = 1 << 20;

impl SimChannel {
    fn push(&self, token: Token, op: RingOp, cx: &mut Cx<'_>) {
        let (client, _) = self.registered.expect("attached");
        cx.ring.push(Entry { client, token, op });
    }

    fn ring_op(&self, io: &Io) -> RingOp {
        let (_, file) = self.registered.expect("attached");
        let (offset, len, data) = (io.offset, io.len, io.data);
        let fallocate = |mode| RingOp::Fallocate { file, mode: mode | libc::FALLOC_FL_KEEP_SIZE, offset, len };
        match io.op {
            Op::Read => RingOp::Read { file, data, offset },
            Op::Write if io.flags.contains(IoFlags::ATOMIC) => {
                RingOp::WriteAtomic { file, data, offset, dsync: io.flags.contains(IoFlags::FUA) }
            }
            Op::Write => RingOp::Write { file, data, offset, dsync: io.flags.contains(IoFlags::FUA) },
            Op::Flush => RingOp::Sync { file },
            Op::WriteZeroes if !io.flags.contains(IoFlags::MAY_DEALLOCATE) => fallocate(libc::FALLOC_FL_ZERO_RANGE),
            Op::WriteZeroes | Op::Discard => fallocate(libc::FALLOC_FL_PUNCH_HOLE),
        }
    }
}

fn outcome(io: &Io, result: i32) -> Result<(), IoError> {
    match -result {
        libc::ECANCELED => Err(IoError::Aborted),
        libc::ENOSPC => Err(IoError::NoSpace),
        libc::ENOMEM => Err(IoError::Busy),
        1.. => Err(IoError::Medium),
        _ if matches!(io.op, Op::Read | Op::Write) && result as u64 != io.len => Err(IoError::Medium),
        _ => Ok(()),
    }
}

impl Channel for SimChannel {
    fn depth(&self) -> u32 {
        self.depth
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        let client = cx.ring.add_client(2 * self.depth).map_err(|_| IoError::Busy)?;
        let file = cx.ring.add_file(self.file.as_raw_fd()).map_err(|_| IoError::Busy)?;
        self.registered = Some((client, file));
        Ok(())
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        let (client, file) = self.registered.take().expect("attached");
        cx.ring.remove_file(file);
        cx.ring.remove_client(client);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        let token = self.running.insert(Running { io, syncing: false });
        let token = token.unwrap_or_else(|_| panic!("more than {} requests in flight", self.depth));
        assert!(self.tokens.insert(io.tag, token).is_none(), "tag {} is in flight already", io.tag);
        self.push(token, self.ring_op(&io), cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let (client, file) = self.registered.expect("attached");
        let mut entries = Vec::new();
        cx.ring.reap(client, &mut entries);
        for entry in entries {
            if entry.token.index & CANCEL != 0 {
                self.cancels -= 1;
                continue;
            }
            let running = self.running.get_mut(entry.token).expect("a request in flight");
            let io = running.io;
            let deallocates = matches!(io.op, Op::Discard | Op::WriteZeroes);
            if deallocates && io.flags.contains(IoFlags::FUA) && entry.result >= 0 && !running.syncing {
                running.syncing = true;
                self.push(entry.token, RingOp::Sync { file }, cx);
                continue;
            }
            self.running.remove(entry.token);
            self.tokens.remove(&io.tag);
            done.push(Completion { tag: io.tag, result: outcome(&io, entry.result) });
        }
    }

    fn next(&self) -> Next {
        if self.running.is_empty() && self.cancels == 0 { Next::Idle } else { Next::Ring }
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        if let Some(&target) = self.tokens.get(&tag)
            && self.cancels < self.depth
        {
            self.cancels += 1;
            self.next_cancel = self.next_cancel.wrapping_add(1);
            self.push(Token { index: CANCEL, generation: self.next_cancel }, RingOp::Cancel { target }, cx);
        }
    }
}
