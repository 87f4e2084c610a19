//! Copies sub-blocks from one cluster to another, one run at a time, in memory of its own.

use std::sync::Arc;

use pollux_core::{Bdev, Channel, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, OpenError, SegmentList};

use crate::memory::{Buffer, Pieces};
use crate::thin::format::{Geometry, SUB_BLOCKS};
use crate::thin::origin::{Joined, ORIGIN, Way};

/// What is being copied.
struct Copy {
    from: u64,
    to: u64,
    /// Sub-blocks that are still to be copied; the run at hand is taken out when it is written.
    left: u16,
    writing: bool,
}

/// See the module's description.
pub(super) struct Copier {
    channel: Joined,
    buffer: Buffer,
    pieces: Pieces,
    cluster_size: u64,
    sub_block: u64,
    copy: Option<Copy>,
    done: Vec<pollux_core::Completion>,
}

impl Copier {
    pub(super) fn new(base: &Arc<dyn Bdev>, geometry: &Geometry) -> Result<Copier, OpenError> {
        Ok(Copier {
            channel: Joined::new(base.open(OpenArgs { depth: 1, seed: 0 })?, None),
            buffer: Buffer::new(geometry.cluster_size as usize),
            pieces: Pieces::new(1),
            cluster_size: u64::from(geometry.cluster_size),
            sub_block: u64::from(geometry.sub_block()),
            copy: None,
            done: Vec::with_capacity(1),
        })
    }

    pub(super) fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.channel.attach(cx)
    }

    pub(super) fn detach(&mut self, cx: &mut Cx<'_>) {
        self.channel.detach(cx);
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.copy.is_none()
    }

    /// Has it read from this origin, too, or from none any more. Returns the one before.
    pub(super) fn set_origin(&mut self, way: Option<Way>, cx: &mut Cx<'_>) -> Result<Option<Way>, (IoError, Way)> {
        debug_assert!(self.is_idle(), "nothing is being copied");
        self.channel.set_origin(way, cx)
    }

    /// Whether it can read from an origin.
    pub(super) const fn has_origin(&self) -> bool {
        self.channel.has_origin()
    }

    /// Begins to copy these sub-blocks.
    pub(super) fn start(&mut self, from: u32, to: u32, mask: u16, cx: &mut Cx<'_>) {
        self.start_at(u64::from(from) * self.cluster_size, to, mask, cx);
    }

    /// The same of a cluster of the volume, from its origin.
    pub(super) fn start_from_origin(&mut self, cluster: u64, to: u32, mask: u16, cx: &mut Cx<'_>) {
        self.start_at(ORIGIN + cluster * self.cluster_size, to, mask, cx);
    }

    fn start_at(&mut self, from: u64, to: u32, mask: u16, cx: &mut Cx<'_>) {
        let to = u64::from(to) * self.cluster_size;
        self.copy = Some(Copy { from, to, left: mask, writing: false });
        self.next_step(cx);
    }

    /// How the copy has ended, once it has.
    pub(super) fn poll(&mut self, cx: &mut Cx<'_>) -> Option<Result<(), IoError>> {
        self.copy.as_ref()?;
        self.channel.poll(cx, &mut self.done);
        let completion = self.done.pop()?;
        if let Err(error) = completion.result {
            self.copy = None;
            return Some(Err(error));
        }
        let copy = self.copy.as_mut()?;
        if copy.writing {
            let (first, count) = run(copy.left);
            copy.left &= !mask(first, count);
        }
        copy.writing = !copy.writing;
        if copy.left == 0 {
            self.copy = None;
            return Some(Ok(()));
        }
        self.next_step(cx);
        None
    }

    /// Reads or writes the first run of what is left.
    fn next_step(&mut self, cx: &mut Cx<'_>) {
        let Some(copy) = &self.copy else { return };
        let (first, count) = run(copy.left);
        let (skip, len) = (u64::from(first) * self.sub_block, u64::from(count) * self.sub_block);
        let (op, base) = if copy.writing { (Op::Write, copy.to) } else { (Op::Read, copy.from) };
        self.pieces.clear();
        self.pieces.push(self.buffer.segment().slice(0, len as usize));
        let data: SegmentList = self.pieces.list();
        self.channel.submit(Io { tag: 1, op, flags: IoFlags::empty(), offset: base + skip, len, data }, cx);
    }

    pub(super) fn next(&self) -> Next {
        self.channel.next()
    }
}

/// The first run of set bits: where it begins, and how long it is.
const fn run(left: u16) -> (u32, u32) {
    let first = left.trailing_zeros();
    (first, (left >> first).trailing_ones())
}

const fn mask(first: u32, count: u32) -> u16 {
    (((1u32 << count) - 1) << first) as u16
}

const _: () = assert!(SUB_BLOCKS == 16 && mask(0, 16) == 0xffff && run(0x00f0).0 == 4 && run(0x00f0).1 == 4);
