//! A base as blocking code sees it, for making and opening pools: on a thread that may wait, with a ring of its own.
//!
//! Each call returns when all that it has submitted has completed, also after an error: so no buffer is ever dropped
//! while the base may still use it.

use std::ops::Range;
use std::sync::Arc;

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{Bdev, Channel, Cx, Io, IoError, IoFlags, Op, OpenArgs, Ring, SegmentList};

use super::error::{StoreError, io};
use crate::memory::Buffer;
use crate::thin::format::BLOCK;
use crate::thin::steps::Steps;

/// The most requests in flight.
const DEPTH: u32 = 64;
/// The most blocks of a request.
const PIECE: usize = 256;
/// How often a request is repeated that found no memory.
const RETRIES: u32 = 1000;

/// Has the ring get on: enters or sleeps briefly, or lets a simulated world do so.
pub type Wait<'a> = &'a mut dyn FnMut(&mut dyn Ring);

/// Hears how many bytes have been zeroed, piece by piece; says whether to go on.
pub type Watch = Box<dyn FnMut(u64) -> bool>;

struct Request {
    op: Op,
    flags: IoFlags,
    block: u64,
    blocks: usize,
    buffer: Option<Buffer>,
    tries: u32,
}

/// See the module's description. Leaves the ring when it is dropped.
pub struct Blocking<'a> {
    channel: Box<dyn Channel>,
    ring: &'a mut dyn Ring,
    wait: Wait<'a>,
    steps: Option<Arc<dyn Steps>>,
    watch: Option<Watch>,
    bytes: u64,
    requests: Vec<Request>,
    in_flight: u32,
}

impl<'a> Blocking<'a> {
    /// A way into the base by this ring, which nobody else uses meanwhile.
    ///
    /// # Errors
    /// If the base is not there, cannot be written in blocks of 4 KiB, or the ring has no room.
    pub fn new(base: &dyn Bdev, ring: &'a mut dyn Ring, wait: Wait<'a>) -> Result<Self, StoreError> {
        let shape = base.shape();
        if shape.block_size as usize > BLOCK {
            return Err(StoreError::Invalid("the bdev has blocks of more than 4 KiB: a pool cannot be on it"));
        }
        let mut channel = base.open(OpenArgs { depth: DEPTH, seed: 0 })?;
        let now = ring.now_ns();
        channel.attach(&mut Cx { now, reactor: Cx::NO_REACTOR, ring }).map_err(io("way in"))?;
        let bytes = shape.bytes();
        let requests = Vec::new();
        Ok(Blocking { channel, ring, wait, steps: None, watch: None, bytes, requests, in_flight: 0 })
    }

    /// Tells somebody what comes.
    #[must_use]
    pub fn with_steps(mut self, steps: Option<Arc<dyn Steps>>) -> Self {
        self.steps = steps;
        self
    }

    /// Has somebody hear how far zeroing is, who can end it: then it is [`IoError::Aborted`].
    pub fn watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Bytes of the base.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The request that comes next is this step.
    pub(super) fn step(&self, label: &'static str) {
        if let Some(steps) = &self.steps {
            steps.step(label);
        }
    }

    /// Reads blocks that lie one after the other.
    ///
    /// # Errors
    /// The base's.
    pub fn read(&mut self, block: u64, count: usize) -> Result<Vec<u8>, IoError> {
        let piece = |at: usize| (block + at as u64, PIECE.min(count - at));
        let requests = (0..count).step_by(PIECE).map(piece).map(|(block, blocks)| read(block, blocks)).collect();
        let mut bytes = vec![0; count * BLOCK];
        for (buffer, part) in self.run(requests)?.into_iter().flatten().zip(bytes.chunks_mut(PIECE * BLOCK)) {
            copy_from(buffer.list().as_slice(), 0, part);
        }
        Ok(bytes)
    }

    /// Reads blocks from anywhere.
    ///
    /// # Errors
    /// The base's.
    pub fn read_blocks(&mut self, blocks: &[u64]) -> Result<Vec<Box<[u8; BLOCK]>>, IoError> {
        let mut read_all = Vec::with_capacity(blocks.len());
        for some in blocks.chunks(1024) {
            let requests = some.iter().map(|block| read(*block, 1)).collect();
            read_all.extend(self.run(requests)?.into_iter().flatten().map(|buffer| block_of(&buffer, 0)));
        }
        Ok(read_all)
    }

    /// Writes whole blocks, those of one piece of 1 MiB with one request.
    ///
    /// # Errors
    /// The base's.
    ///
    /// # Panics
    /// If it is not whole blocks.
    pub fn write(&mut self, block: u64, bytes: &[u8], fua: bool) -> Result<(), IoError> {
        assert!(bytes.len().is_multiple_of(BLOCK), "whole blocks are written");
        let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
        for (at, piece) in (0..).step_by(PIECE).zip(bytes.chunks(PIECE * BLOCK)) {
            self.run(vec![write(block + at, piece, flags)])?;
        }
        Ok(())
    }

    /// What was written before is durable.
    ///
    /// # Errors
    /// The base's.
    pub fn flush(&mut self) -> Result<(), IoError> {
        let flush = Request { op: Op::Flush, flags: IoFlags::empty(), block: 0, blocks: 0, buffer: None, tries: 0 };
        self.run(vec![flush]).map(drop)
    }

    /// Writes zeroes, so that the blocks have space of their own on whatever is below.
    ///
    /// # Errors
    /// The base's.
    pub fn zero(&mut self, blocks: Range<u64>) -> Result<(), IoError> {
        let zeroes = vec![0; PIECE * BLOCK];
        let mut at = blocks.start;
        while at < blocks.end {
            let mut requests = Vec::new();
            while at < blocks.end && requests.len() < 8 {
                let count = (blocks.end - at).min(PIECE as u64);
                requests.push(write(at, &zeroes[..count as usize * BLOCK], IoFlags::empty()));
                at += count;
            }
            let bytes = requests.iter().map(|request| (request.blocks * BLOCK) as u64).sum();
            self.run(requests)?;
            if self.watch.as_mut().is_some_and(|watch| !watch(bytes)) {
                return Err(IoError::Aborted);
            }
        }
        Ok(())
    }

    /// Writes whole blocks, all at once, in pieces of 256 KiB.
    ///
    /// # Errors
    /// The base's.
    ///
    /// # Panics
    /// If it is not whole blocks.
    pub fn write_at_once(&mut self, block: u64, bytes: &[u8]) -> Result<(), IoError> {
        const BLOCKS: usize = 64;
        assert!(bytes.len().is_multiple_of(BLOCK), "whole blocks are written");
        let pieces = (block..).step_by(BLOCKS).zip(bytes.chunks(BLOCKS * BLOCK));
        self.run(pieces.map(|(block, piece)| write(block, piece, IoFlags::empty())).collect()).map(drop)
    }

    /// Has blocks read as zeroes, with as little space as the device can.
    ///
    /// # Errors
    /// The base's.
    pub fn write_zeroes(&mut self, blocks: Range<u64>) -> Result<(), IoError> {
        const BLOCKS: u64 = 1 << 14;
        let mut at = blocks.start;
        while at < blocks.end {
            let count = (blocks.end - at).min(BLOCKS);
            let (op, flags) = (Op::WriteZeroes, IoFlags::MAY_DEALLOCATE);
            self.run(vec![Request { op, flags, block: at, blocks: count as usize, buffer: None, tries: 0 }])?;
            at += count;
        }
        Ok(())
    }

    /// Runs requests, as many at once as the channel takes; the buffers come back in order.
    fn run(&mut self, requests: Vec<Request>) -> Result<Vec<Option<Buffer>>, IoError> {
        let mut waiting: Vec<usize> = (0..requests.len()).rev().collect();
        self.requests = requests;
        let (mut result, mut done) = (Ok(()), Vec::new());
        while self.in_flight > 0 || (result.is_ok() && !waiting.is_empty()) {
            while result.is_ok() && self.in_flight < self.channel.depth() {
                let Some(at) = waiting.pop() else { break };
                self.submit(at);
            }
            let now = self.ring.now_ns();
            self.channel.poll(&mut Cx { now, reactor: Cx::NO_REACTOR, ring: self.ring }, &mut done);
            if done.is_empty() {
                (self.wait)(self.ring);
            }
            for completion in done.drain(..) {
                self.in_flight -= 1;
                let request = &mut self.requests[completion.tag as usize];
                match completion.result {
                    Err(IoError::Busy) if request.tries < RETRIES => {
                        request.tries += 1;
                        waiting.push(completion.tag as usize);
                    }
                    other => result = result.and(other),
                }
            }
        }
        let requests = std::mem::take(&mut self.requests);
        result.map(|()| requests.into_iter().map(|request| request.buffer).collect())
    }

    fn submit(&mut self, tag: usize) {
        let request = &self.requests[tag];
        let data = request.buffer.as_ref().map_or(SegmentList::EMPTY, Buffer::list);
        let (offset, len) = (request.block * BLOCK as u64, (request.blocks * BLOCK) as u64);
        let io = Io { tag: tag as u64, op: request.op, flags: request.flags, offset, len, data };
        let now = self.ring.now_ns();
        self.channel.submit(io, &mut Cx { now, reactor: Cx::NO_REACTOR, ring: self.ring });
        self.in_flight += 1;
    }
}

impl Drop for Blocking<'_> {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            // Whoever waits has panicked; the base may still use what is in flight.
            self.requests.drain(..).filter_map(|request| request.buffer).for_each(Buffer::leak);
            return;
        }
        let now = self.ring.now_ns();
        self.channel.detach(&mut Cx { now, reactor: Cx::NO_REACTOR, ring: self.ring });
    }
}

fn read(block: u64, blocks: usize) -> Request {
    let buffer = Some(Buffer::new(blocks * BLOCK));
    Request { op: Op::Read, flags: IoFlags::empty(), block, blocks, buffer, tries: 0 }
}

fn write(block: u64, bytes: &[u8], flags: IoFlags) -> Request {
    let buffer = Buffer::new(bytes.len());
    copy_to(buffer.list().as_slice(), 0, bytes);
    Request { op: Op::Write, flags, block, blocks: bytes.len() / BLOCK, buffer: Some(buffer), tries: 0 }
}

/// The first block of a buffer.
pub(super) fn block_of(buffer: &Buffer, nth: usize) -> Box<[u8; BLOCK]> {
    let mut bytes = Box::new([0; BLOCK]);
    copy_from(buffer.list().as_slice(), nth * BLOCK, &mut *bytes);
    bytes
}
