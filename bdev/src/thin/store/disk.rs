//! The store's own way into its base: reads and writes of whole blocks in buffers of its own, as many in flight as the
//! channel takes, the rest in two queues. What the log waits for goes first, and the background leaves it a quarter of
//! the channel. Reads of neighbours that wait one behind the other go down as one: the base has other users, whose requests
//! stand behind each.
//!
//! What the caller gives with a request, its `job`, comes back with the answer.

use std::collections::VecDeque;
use std::sync::Arc;

use pollux_core::segment::copy_to;
use pollux_core::{Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, SegmentList, Slab, Token};

use super::blocking::block_of;
use crate::memory::Buffer;
use crate::thin::format::BLOCK;
use crate::thin::steps::Steps;

/// Blocks of one read at most.
const RUN: usize = 16;
/// How often a request is repeated that found no memory.
const RETRIES: u32 = 1000;

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A guest may wait for it.
    Urgent,
    /// Nobody waits.
    Background,
}

/// One request.
struct Request<J> {
    job: J,
    class: Class,
    op: Op,
    flags: IoFlags,
    block: u64,
    blocks: u64,
    buffer: Option<Buffer>,
    /// A read with the neighbours behind it has failed, so it is read alone.
    alone: bool,
    label: Option<&'static str>,
    tries: u32,
}

impl<J> Request<J> {
    /// Whether one that waits behind it can be read together with it and as many of its neighbours as there are already.
    fn goes_with(&self, neighbours: usize, next: &Request<J>) -> bool {
        let are_reads = self.op == Op::Read && next.op == Op::Read && !self.alone && !next.alone;
        are_reads && neighbours + 1 < RUN && next.block == self.block + 1 + neighbours as u64
    }
}

/// What is in flight: a request, or a read and those of the blocks behind its own.
struct Flight<J> {
    request: Request<J>,
    neighbours: Vec<Request<J>>,
}

/// An answer.
pub(super) struct Finished<J> {
    pub(super) job: J,
    pub(super) result: Result<(), IoError>,
    /// What was read.
    pub(super) bytes: Option<Box<[u8; BLOCK]>>,
}

/// See the module's description.
pub(super) struct Disk<J> {
    channel: Box<dyn Channel>,
    steps: Option<Arc<dyn Steps>>,
    slots: Slab<Flight<J>>,
    urgent: VecDeque<Request<J>>,
    background: VecDeque<Request<J>>,
    in_background: u32,
    completions: Vec<Completion>,
}

impl<J> Disk<J> {
    pub(super) fn new(channel: Box<dyn Channel>, steps: Option<Arc<dyn Steps>>) -> Self {
        let slots = Slab::new(channel.depth());
        let (urgent, background) = (VecDeque::new(), VecDeque::new());
        Disk { channel, steps, slots, urgent, background, in_background: 0, completions: Vec::new() }
    }

    pub(super) fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.channel.attach(cx)
    }

    pub(super) fn detach(&mut self, cx: &mut Cx<'_>) {
        self.channel.detach(cx);
    }

    /// Reads a block.
    pub(super) fn read(&mut self, job: J, class: Class, block: u64) {
        let (op, flags, label) = (Op::Read, IoFlags::empty(), None);
        self.push(Request { job, class, op, flags, block, blocks: 1, buffer: None, alone: false, label, tries: 0 });
    }

    /// Writes blocks.
    pub(super) fn write(&mut self, job: J, class: Class, block: u64, bytes: &[u8], fua: bool, label: &'static str) {
        let buffer = Buffer::new(bytes.len());
        copy_to(buffer.list().as_slice(), 0, bytes);
        let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
        let blocks = (bytes.len() / BLOCK) as u64;
        let (op, buffer, label) = (Op::Write, Some(buffer), Some(label));
        self.push(Request { job, class, op, flags, block, blocks, buffer, alone: false, label, tries: 0 });
    }

    /// A barrier.
    pub(super) fn flush(&mut self, job: J, label: &'static str) {
        let (class, flags) = (Class::Urgent, IoFlags::empty());
        let (op, label, buffer) = (Op::Flush, Some(label), None);
        self.push(Request { job, class, op, flags, block: 0, blocks: 0, buffer, alone: false, label, tries: 0 });
    }

    /// Says that nobody needs these blocks, or that they are to be zero and nobody needs them.
    pub(super) fn give_back(&mut self, job: J, op: Op, block: u64, blocks: u64) {
        let flags = if op == Op::WriteZeroes { IoFlags::MAY_DEALLOCATE } else { IoFlags::empty() };
        let (class, buffer, label) = (Class::Background, None, None);
        self.push(Request { job, class, op, flags, block, blocks, buffer, alone: false, label, tries: 0 });
    }

    fn push(&mut self, request: Request<J>) {
        match request.class {
            Class::Urgent => self.urgent.push_back(request),
            Class::Background => self.background.push_back(request),
        }
    }

    fn background_room(&self) -> bool {
        let depth = self.slots.capacity();
        self.in_background < (depth - depth / 4).max(1)
    }

    fn has_room(&self) -> bool {
        self.slots.len() < self.slots.capacity()
    }

    /// Submits what can be.
    pub(super) fn kick(&mut self, cx: &mut Cx<'_>) {
        while self.has_room() {
            let background = self.background_room();
            let queue = if self.urgent.is_empty() && background { &mut self.background } else { &mut self.urgent };
            let Some(request) = queue.pop_front() else { return };
            let mut neighbours = Vec::new();
            while queue.front().is_some_and(|next| request.goes_with(neighbours.len(), next)) {
                neighbours.extend(queue.pop_front());
            }
            self.submit(Flight { request, neighbours }, cx);
        }
    }

    fn submit(&mut self, mut flight: Flight<J>, cx: &mut Cx<'_>) {
        let Flight { request, neighbours } = &mut flight;
        if let (Some(steps), Some(label)) = (&self.steps, request.label) {
            steps.step(label);
        }
        self.in_background += u32::from(request.class == Class::Background);
        let blocks = request.blocks + neighbours.len() as u64;
        if request.op == Op::Read {
            request.buffer = Some(Buffer::new(blocks as usize * BLOCK));
        }
        let data = request.buffer.as_ref().map_or(SegmentList::EMPTY, Buffer::list);
        let (offset, len) = (request.block * BLOCK as u64, blocks * BLOCK as u64);
        let (op, flags) = (request.op, request.flags);
        let Ok(token) = self.slots.insert(flight) else { unreachable!("there was room") };
        let tag = u64::from(token.index) | u64::from(token.generation) << 32;
        self.channel.submit(Io { tag, op, flags, offset, len, data }, cx);
    }

    /// Collects what has completed, and submits more.
    pub(super) fn poll(&mut self, cx: &mut Cx<'_>, finished: &mut Vec<Finished<J>>) {
        if !self.slots.is_empty() {
            self.channel.poll(cx, &mut self.completions);
        }
        for Completion { tag, result } in std::mem::take(&mut self.completions) {
            let token = Token { index: tag as u32, generation: (tag >> 32) as u16 };
            let flight = self.slots.remove(token).expect("each request completes once");
            self.in_background -= u32::from(flight.request.class == Class::Background);
            self.ended(flight, result, finished);
        }
        self.kick(cx);
    }

    fn ended(&mut self, flight: Flight<J>, result: Result<(), IoError>, finished: &mut Vec<Finished<J>>) {
        let Flight { mut request, neighbours } = flight;
        let buffer = if request.op == Op::Read { request.buffer.take() } else { None };
        let is_alone = neighbours.is_empty();
        for (nth, mut request) in std::iter::once(request).chain(neighbours).enumerate() {
            if result == Err(IoError::Busy) && request.tries < RETRIES {
                request.tries += 1;
                self.push(request);
            } else if result.is_err() && !is_alone {
                // Of all that was read together one part may be bad.
                request.alone = true;
                self.push(request);
            } else {
                let bytes = buffer.as_ref().filter(|_| result.is_ok()).map(|buffer| block_of(buffer, nth));
                finished.push(Finished { job: request.job, result, bytes });
            }
        }
    }

    /// Whether nothing is in flight or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.urgent.is_empty() && self.background.is_empty()
    }

    /// When to poll.
    pub(super) fn next(&self) -> Next {
        let more = !self.urgent.is_empty() || (!self.background.is_empty() && self.background_room());
        if more && self.has_room() { Next::Now } else { self.channel.next() }
    }
}

impl<J> Drop for Disk<J> {
    fn drop(&mut self) {
        // The base may still use what is in flight.
        for (_, flight) in self.slots.iter_mut() {
            if let Some(buffer) = flight.request.buffer.take() {
                buffer.leak();
            }
        }
    }
}
