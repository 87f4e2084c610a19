//! A channel on a floor, with what was asked of it.

use std::collections::{BTreeMap, VecDeque};

use pollux_core::{Channel, Completion, Cx, Io, IoFlags, Next, Op};

use super::data::Data;
use super::{Outcome, Ticket};

/// What to ask of a channel.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: IoFlags,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// What to write; empty for anything but a write.
    pub bytes: Vec<u8>,
}

impl Request {
    /// Reads `len` bytes.
    #[must_use]
    pub const fn read(offset: u64, len: u64) -> Self {
        Self::plain(Op::Read, IoFlags::empty(), offset, len)
    }

    /// Writes these bytes.
    #[must_use]
    pub const fn write(offset: u64, bytes: Vec<u8>, flags: IoFlags) -> Self {
        Request { op: Op::Write, flags, offset, len: bytes.len() as u64, bytes }
    }

    /// Anything without data.
    #[must_use]
    pub const fn plain(op: Op, flags: IoFlags, offset: u64, len: u64) -> Self {
        Request { op, flags, offset, len, bytes: Vec::new() }
    }

    /// A flush.
    #[must_use]
    pub const fn flush() -> Self {
        Self::plain(Op::Flush, IoFlags::empty(), 0, 0)
    }

    /// A discard.
    #[must_use]
    pub const fn discard(offset: u64, len: u64) -> Self {
        Self::plain(Op::Discard, IoFlags::empty(), offset, len)
    }
}

struct Waiting {
    op: Op,
    data: Option<Data>,
}

pub(super) struct Lane {
    // Dropped before the memory of what it has in flight.
    channel: Box<dyn Channel>,
    in_flight: BTreeMap<Ticket, Waiting>,
    line: VecDeque<(Ticket, Request, Vec<usize>)>,
    done: Vec<Completion>,
}

impl Lane {
    pub(super) fn new(channel: Box<dyn Channel>) -> Self {
        let done = Vec::with_capacity(channel.depth() as usize);
        Lane { channel, in_flight: BTreeMap::new(), line: VecDeque::new(), done }
    }

    pub(super) fn channel(&mut self) -> &mut dyn Channel {
        &mut *self.channel
    }

    /// Takes a request whose data is cut behind these bytes; it waits while the channel is full.
    pub(super) fn ask(&mut self, ticket: Ticket, request: Request, cuts: Vec<usize>, cx: &mut Cx<'_>) {
        self.line.push_back((ticket, request, cuts));
        self.fill(cx);
    }

    fn fill(&mut self, cx: &mut Cx<'_>) {
        while self.in_flight.len() < self.channel.depth() as usize {
            let Some((ticket, request, cuts)) = self.line.pop_front() else { return };
            let data = match request.op {
                Op::Write => Some(Data::new(&request.bytes, &cuts)),
                // Whatever is not filled shows.
                Op::Read => Some(Data::new(&vec![0xa5; request.len as usize], &cuts)),
                _ => None,
            };
            let io = Io::without_data(ticket.0, request.op, request.flags, request.offset, request.len);
            let io = data.as_ref().map_or(io, |data| Io { data: data.list(), ..io });
            self.in_flight.insert(ticket, Waiting { op: request.op, data });
            self.channel.submit(io, cx);
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Cx<'_>, answers: &mut Vec<(Ticket, Outcome)>) -> u32 {
        self.channel.poll(cx, &mut self.done);
        let did = self.done.len() as u32;
        for completion in self.done.drain(..) {
            let ticket = Ticket(completion.tag);
            let waiting = self.in_flight.remove(&ticket).expect("a tag completes once, and was submitted");
            let bytes = waiting.data.filter(|_| waiting.op == Op::Read).map_or(Vec::new(), |data| data.bytes());
            answers.push((ticket, completion.result.map(|()| bytes)));
        }
        self.fill(cx);
        did
    }

    pub(super) fn next(&self) -> Next {
        let next = self.channel.next();
        assert!(next != Next::Idle || self.in_flight.is_empty(), "a channel with requests in flight says it is idle");
        next
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.line.is_empty()
    }

    pub(super) fn in_flight(&self) -> Vec<Ticket> {
        self.in_flight.keys().copied().collect()
    }
}
