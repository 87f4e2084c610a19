//! The store's own way into its base: reads and writes of whole blocks in buffers of its own, as many in flight as the
//! channel takes, the rest in two queues. What the log waits for goes first, and the background leaves it a quarter of
//! the channel.
//!
//! What the caller gives with a request, its `job`, comes back with the answer.

use std::collections::VecDeque;
use std::sync::Arc;

use pollux_core::segment::copy_to;
use pollux_core::{Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, SegmentList, Slab, Token};

use crate::memory::Buffer;
use crate::thin::format::BLOCK;
use crate::thin::steps::Steps;

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
    label: Option<&'static str>,
    tries: u32,
}

/// An answer.
pub(super) struct Finished<J> {
    pub(super) job: J,
    pub(super) result: Result<(), IoError>,
    pub(super) buffer: Option<Buffer>,
}

/// See the module's description.
pub(super) struct Disk<J> {
    channel: Box<dyn Channel>,
    steps: Option<Arc<dyn Steps>>,
    slots: Slab<Request<J>>,
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

    /// Reads blocks.
    pub(super) fn read(&mut self, job: J, class: Class, block: u64, blocks: u64) {
        let buffer = Some(Buffer::new(blocks as usize * BLOCK));
        self.push(Request {
            job,
            class,
            op: Op::Read,
            flags: IoFlags::empty(),
            block,
            blocks,
            buffer,
            label: None,
            tries: 0,
        });
    }

    /// Writes blocks.
    pub(super) fn write(&mut self, job: J, class: Class, block: u64, bytes: &[u8], fua: bool, label: &'static str) {
        let buffer = Buffer::new(bytes.len());
        copy_to(buffer.list().as_slice(), 0, bytes);
        let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
        let blocks = (bytes.len() / BLOCK) as u64;
        let buffer = Some(buffer);
        self.push(Request { job, class, op: Op::Write, flags, block, blocks, buffer, label: Some(label), tries: 0 });
    }

    /// A barrier.
    pub(super) fn flush(&mut self, job: J, label: &'static str) {
        let (class, flags) = (Class::Urgent, IoFlags::empty());
        let label = Some(label);
        self.push(Request { job, class, op: Op::Flush, flags, block: 0, blocks: 0, buffer: None, label, tries: 0 });
    }

    /// Says that nobody needs these blocks, or that they are to be zero and nobody needs them.
    pub(super) fn give_back(&mut self, job: J, op: Op, block: u64, blocks: u64) {
        let flags = if op == Op::WriteZeroes { IoFlags::MAY_DEALLOCATE } else { IoFlags::empty() };
        let class = Class::Background;
        self.push(Request { job, class, op, flags, block, blocks, buffer: None, label: None, tries: 0 });
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
            let next = match self.urgent.pop_front() {
                None if background => self.background.pop_front(),
                next => next,
            };
            let Some(request) = next else { return };
            self.submit(request, cx);
        }
    }

    fn submit(&mut self, request: Request<J>, cx: &mut Cx<'_>) {
        if let (Some(steps), Some(label)) = (&self.steps, request.label) {
            steps.step(label);
        }
        self.in_background += u32::from(request.class == Class::Background);
        let data = request.buffer.as_ref().map_or(SegmentList::EMPTY, Buffer::list);
        let (offset, len) = (request.block * BLOCK as u64, request.blocks * BLOCK as u64);
        let (op, flags) = (request.op, request.flags);
        let Ok(token) = self.slots.insert(request) else { unreachable!("there was room") };
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
            let mut request = self.slots.remove(token).expect("each request completes once");
            self.in_background -= u32::from(request.class == Class::Background);
            if result == Err(IoError::Busy) && request.tries < RETRIES {
                request.tries += 1;
                self.push(request);
                continue;
            }
            finished.push(Finished { job: request.job, result, buffer: request.buffer });
        }
        self.kick(cx);
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
        for (_, request) in self.slots.iter_mut() {
            if let Some(buffer) = request.buffer.take() {
                buffer.leak();
            }
        }
    }
}
