//! One reactor's way into a volume.
//!
//! A request is looked up cluster by cluster, and what lies together on the base goes down as one part. What cannot go
//! on, because a leaf is not in memory, a sub-block is locked, there is no space or the gate is closed, waits in order and is
//! tried again in each pass; it holds nothing meanwhile but what is in flight and will end by itself. What comes later
//! overtakes it, unless both want what there may not be enough of: a place, and for writes space or a lock, too.
//!
//! - **Read**: each sub-block comes from the first layer of the chain that has it; what none has is zero. What a long chain
//!   says is remembered (`composite.rs`).
//! - **Write** of what is here: in place. Of whole sub-blocks that are not: they are locked, the entry is put on a cluster,
//!   the data is written, then the entry says that they are here, then they are unlocked. Of a part of a sub-block that is
//!   not here: the same, with the rest of it from the layers below, by a buffer.
//! - **Atomic write**: the same, beside what is here, and the engine changes all entries together.
//! - **Discard, write zeroes**: the entries say so; parts of sub-blocks are written with zeroes where they are not zero.
//! - **Flush** waits for a commit of the pool (`Commits`), and so does a write with FUA whose mapping is not durable.

mod atomic;
mod below;
mod composite;
mod direct;
mod edge;
mod parts;
mod punch;
mod read;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use pollux_core::{
    Alignment, Bdev, Channel, Completion, CountedChannel, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, OpenError,
    SegmentList, Slab, Tag, Token,
};

use self::atomic::Atomic;
pub(crate) use self::atomic::{ATOMIC_MAX, ATOMIC_SUB_BLOCK};
use self::below::{Below, MOST, is_direct};
use self::composite::Composite;
use self::parts::{Kind, Part, Parts};
use self::punch::Share;
pub(crate) use self::read::extent;
pub(crate) use self::write::{touched, whole};
use super::shared::{CLOSED, Chain, Counts, LayerMap, Miss, Reader, Shared, Stay, Volume};
use crate::measured::{tag_of, token_of};
use crate::thin::format::Origin;
use crate::thin::origin::{Joined, Way};

/// No volume has it: it is a closed gate's, and none has been opened so often.
const NO_WORD: u64 = u64::MAX;
/// Parts that a channel may have beyond one for each request.
const SPARE_PARTS: u32 = 32;
/// Requests of one volume that wait for space at most, and the part of a channel's room that they may take: what would give
/// space back has to get through.
const MOST_SHORT: u32 = 32;
const SHORT_PART: u32 = 2;
/// Bytes of a request that take as much of the room of whoever submits it as a request does.
const ROOM_SHIFT: u32 = 16;
/// Memory for the edges of sub-blocks, and how many buffers at most.
const EDGE_BYTES: usize = 1 << 20;
const EDGE_BUFFERS: usize = 16;

/// Why a request does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For the engine: a leaf, an empty leaf, the gate, layers that are not settled, a commit.
    Engine,
    /// For a cluster, or for a leaf where there was none.
    Space,
    /// For a lock that somebody holds.
    Lock,
    /// For a part or a buffer of this channel.
    Place,
    /// For those that came before it.
    Turn,
    /// For nobody: it goes on in the next pass, so that others have some of this one.
    More,
    /// For nothing: the volume may have no more clusters.
    Quota,
    /// For nothing: a leaf is damaged.
    Lost,
    /// For nothing: the volume stands on another bdev than when the channel was opened.
    Apart,
}

impl From<Miss> for Wait {
    fn from(miss: Miss) -> Wait {
        match miss {
            Miss::Wait => Wait::Engine,
            Miss::Space => Wait::Space,
            Miss::Lost => Wait::Lost,
            Miss::Apart => Wait::Apart,
        }
    }
}

/// How far a request has come.
enum Progress {
    /// All of it has been started.
    Started,
    /// Some of it has not.
    Waits(Wait),
    /// It has failed: nothing more of it is started.
    Failed(IoError),
}

struct Request {
    io: Io,
    /// The epoch in which it began, if it has and has not ended its stay.
    epoch: Option<u64>,
    /// How many of its bytes have been started.
    at: u64,
    /// Parts in flight.
    parts: u32,
    result: Result<(), IoError>,
    /// Whether it has changed an entry, or used one that is not durable.
    unmapped: bool,
    /// The commit that it waits for.
    ticket: Option<u64>,
    /// What it waits for is a round of erasing, and a commit when that has ended.
    erases: bool,
    /// What it waits for, and for space until when.
    wait: Option<Wait>,
    until: u64,
    /// What it has as an atomic write.
    atomic: Option<Box<Atomic>>,
}

/// See the module's description.
pub(crate) struct ThinChannel {
    shared: Arc<Shared>,
    volume: Arc<Volume>,
    reader: Arc<Reader>,
    stay: Stay,
    chain: Arc<Chain>,
    /// The first of the chain's layers.
    head: Arc<LayerMap>,
    /// What of the volume the chain says can be addressed.
    bytes: u64,
    /// What first writes have added to it and nobody was told of.
    counts: Counts,
    /// What is known of the others.
    composite: Composite,
    /// The volume's word that it goes by.
    word: u64,
    base: Below,
    /// The bdev outside of the pool that it leads to, too, and what says that it is not needed any more.
    origin: Option<Origin>,
    unused: Arc<AtomicBool>,
    requests: Slab<Request>,
    parts: Parts,
    /// Requests that do not go on by themselves, in order.
    waiting: VecDeque<Token>,
    /// Those that wait for a commit.
    committing: VecDeque<Token>,
    /// Those whose entries the engine is to change.
    swapping: Vec<Token>,
    ended: Vec<Completion>,
    /// Room that those take which wait for space.
    short: u32,
    /// How many wait for what later ones could take away from them, and how many of these for a place.
    in_line: u32,
    for_places: u32,
    /// What is left to discards of this pass.
    share: Share,
    reactor: usize,
    now: u64,
}

impl ThinChannel {
    /// A way into `volume`, over `base` and what it stands on.
    pub(crate) fn open(
        shared: Arc<Shared>,
        volume: Arc<Volume>,
        base: &Arc<dyn Bdev>,
        args: OpenArgs,
    ) -> Result<Box<dyn Channel>, OpenError> {
        let (chain, unused) = (volume.chain(), Arc::<AtomicBool>::default());
        let below = OpenArgs { depth: args.depth.saturating_add(SPARE_PARTS).min(MOST), ..args };
        let base = match chain.origin {
            None => Below::new(base.open_counted(below)?),
            Some(its) => {
                let device = volume.outside().filter(|origin| origin.uuid == its.uuid).ok_or(OpenError::Missing)?;
                let way = Way::open(&*device.device, its, below)?;
                let joined = Joined::until(base.open(below)?, way, unused.clone(), shared.left.clone());
                Below::new(CountedChannel { channel: Box::new(joined), stats: None })
            }
        };
        let depth = base.depth();
        let sub_block = 1usize << shared.sub_shift();
        Ok(Box::new(ThinChannel {
            stay: Stay::new(),
            reader: shared.reader(),
            word: chain.word,
            origin: chain.origin,
            unused,
            head: chain.head().clone(),
            bytes: chain.bytes,
            counts: Counts::default(),
            composite: Composite::new(shared.composites.clone()),
            chain,
            requests: Slab::new(args.depth),
            parts: Parts::new(depth, (EDGE_BYTES / sub_block).clamp(2, EDGE_BUFFERS), sub_block),
            waiting: VecDeque::with_capacity(args.depth as usize),
            committing: VecDeque::with_capacity(args.depth as usize),
            swapping: Vec::new(),
            ended: Vec::with_capacity((args.depth + depth) as usize),
            short: 0,
            in_line: 0,
            for_places: 0,
            share: Share::default(),
            reactor: 0,
            now: 0,
            base,
            shared,
            volume,
        }))
    }

    /// Takes a request that does not go the short way. Apart from those that do, which need none of what this has to keep.
    #[inline(never)]
    fn submit_request(&mut self, io: Io, cx: &mut Cx<'_>) {
        self.now = cx.now;
        let (epoch, ticket, wait) = (None, None, None);
        let (result, unmapped, erases, atomic) = (Ok(()), false, false, None);
        let request = Request { io, epoch, at: 0, parts: 0, result, unmapped, ticket, erases, wait, until: 0, atomic };
        let token = self.requests.insert(request);
        let token = token.unwrap_or_else(|_| panic!("more than {} requests in flight", self.requests.capacity()));
        if io.op == Op::Flush && io.flags.contains(IoFlags::ERASE) {
            self.wait_for_erasure(token);
        } else if io.op == Op::Flush {
            self.wait_for_commit(token);
        } else if self.may_overtake(io.op) {
            self.advance(token, cx);
        } else {
            // None of those that wait is to starve.
            self.set_wait(token, Some(Wait::Turn));
            self.waiting.push_back(token);
        }
    }

    fn request(&mut self, token: Token) -> &mut Request {
        self.requests.get_mut(token).expect("the request is in flight")
    }

    /// Lets a request begin, if the gate is open and it has not begun.
    fn begin(&mut self, token: Token) -> bool {
        let epoch = self.request(token).epoch;
        if epoch.is_some() {
            return self.gate_is_open();
        }
        let (epoch, word) = self.stay.begin(&self.reader, &self.shared.epoch, self.volume.word());
        if word != self.word {
            self.adopt(word);
        }
        if self.word & CLOSED != 0 {
            self.stay.end(&self.reader, epoch);
            return false;
        }
        self.request(token).epoch = Some(epoch);
        true
    }

    /// Whether something may be started, by the volume's word as it is now.
    #[inline]
    fn gate_is_open(&mut self) -> bool {
        let word = self.volume.word().load(Acquire);
        if word != self.word {
            self.adopt(word);
        }
        self.word & CLOSED == 0
    }

    /// The volume is another one, or is about to be.
    #[cold]
    fn adopt(&mut self, word: u64) {
        self.word = word;
        self.base.break_off();
        if word & CLOSED == 0 {
            self.chain = self.volume.chain();
            self.parts.head_leaves(&self.head);
            self.head.usage.add(&mut self.counts);
            (self.head, self.bytes) = (self.chain.head().clone(), self.chain.bytes);
            self.composite.forget();
            self.unused.store(self.chain.origin.is_none(), Relaxed);
            // A later one holds from a later word on, which is still to be seen.
            if self.chain.word != word {
                self.word = NO_WORD;
                return;
            }
        }
        self.stay.go_by(&self.reader, word);
    }

    /// Starts what can be started of a request.
    fn advance(&mut self, token: Token, cx: &mut Cx<'_>) {
        let io = self.request(token).io;
        let progress = if self.request(token).result.is_err() {
            Progress::Started
        } else if !self.begin(token) {
            Progress::Waits(Wait::Engine)
        } else {
            self.start(token, &io, cx)
        };
        match progress {
            Progress::Started => {
                self.set_wait(token, None);
                self.try_end(token);
            }
            Progress::Failed(error) => self.fail(token, error),
            Progress::Waits(why) => self.wait(token, why),
        }
    }

    fn start(&mut self, token: Token, io: &Io, cx: &mut Cx<'_>) -> Progress {
        if io.end().is_none_or(|end| end > self.chain.bytes) {
            return Progress::Failed(IoError::OutOfRange);
        }
        if io.op.changes_data() && (self.chain.read_only || self.shared.commits.have_failed()) {
            return Progress::Failed(IoError::ReadOnly);
        }
        match io.op {
            Op::Read => self.read(token, io, cx),
            Op::Write if io.flags.contains(IoFlags::ATOMIC) => self.write_atomic(token, io, cx),
            Op::Write => self.write(token, io, cx),
            Op::Discard | Op::WriteZeroes => self.zero(token, io, cx),
            Op::Flush => unreachable!("it needs no map"),
        }
    }

    fn wait(&mut self, token: Token, why: Wait) {
        let now = self.now;
        if why == Wait::Space && self.request(token).wait != Some(Wait::Space) {
            let patience = if self.may_be_short(token) { self.shared.patience.load(Relaxed) } else { 0 };
            self.request(token).until = now.saturating_add(patience);
        }
        self.set_wait(token, Some(why));
        let too_long = why == Wait::Space && now >= self.request(token).until;
        let error = match why {
            Wait::Lost => IoError::Medium,
            Wait::Apart => IoError::NotReady,
            Wait::Quota => IoError::NoSpace,
            Wait::Space if too_long && self.shared.full.load(Acquire) => IoError::NoSpace,
            _ => {
                self.end_stay_of_waiting(token);
                return self.waiting.push_back(token);
            }
        };
        self.fail(token, error);
    }

    fn fail(&mut self, token: Token, error: IoError) {
        self.set_wait(token, None);
        let request = self.request(token);
        request.result = request.result.and(Err(error));
        self.try_end(token);
    }

    /// Whether one more may wait for space.
    fn may_be_short(&mut self, token: Token) -> bool {
        let io = self.request(token).io;
        let most = self.requests.capacity() / SHORT_PART;
        let has_room = self.short == 0 || self.short + room_of(&io) <= most;
        has_room && !io.flags.contains(IoFlags::HASTY) && self.volume.short.load(Relaxed) < MOST_SHORT
    }

    fn set_wait(&mut self, token: Token, wait: Option<Wait>) {
        let request = self.request(token);
        let before = std::mem::replace(&mut request.wait, wait);
        let room = room_of(&request.io);
        let is_in_line = |wait: Option<Wait>| matches!(wait, Some(Wait::Space | Wait::Lock | Wait::Place | Wait::Turn));
        self.in_line = self.in_line + u32::from(is_in_line(wait)) - u32::from(is_in_line(before));
        let is_for_place = |wait: Option<Wait>| wait == Some(Wait::Place);
        self.for_places = self.for_places + u32::from(is_for_place(wait)) - u32::from(is_for_place(before));
        match (before == Some(Wait::Space), wait == Some(Wait::Space)) {
            (false, true) => {
                self.volume.short.fetch_add(1, Relaxed);
                self.short += room;
            }
            (true, false) => {
                self.volume.short.fetch_sub(1, Relaxed);
                self.short -= room;
            }
            _ => {}
        }
    }

    /// A request that waits, with nothing in flight, uses nothing of any map: what it waits for may be just that somebody
    /// lets go. It looks everything up again when it goes on.
    fn end_stay_of_waiting(&mut self, token: Token) {
        let request = self.request(token);
        if request.parts == 0
            && let Some(epoch) = request.epoch.take()
        {
            self.stay.end(&self.reader, epoch);
        }
    }

    /// Has a request wait for all that was changed until now to be durable.
    fn wait_for_commit(&mut self, token: Token) {
        let ticket = self.shared.commits.ticket();
        self.shared.call_engine();
        self.set_wait(token, Some(Wait::Engine));
        self.request(token).ticket = Some(ticket);
        self.committing.push_back(token);
    }

    /// Has a request wait until nothing of what was given back until now is on the base.
    fn wait_for_erasure(&mut self, token: Token) {
        let ticket = self.shared.erasures.ticket();
        self.shared.call_engine();
        self.set_wait(token, Some(Wait::Engine));
        let request = self.request(token);
        (request.ticket, request.erases) = (Some(ticket), true);
        self.committing.push_back(token);
    }

    /// Ends a request of which nothing is in flight and nothing is to be started, or has it wait for a commit.
    fn try_end(&mut self, token: Token) {
        let done = |request: &Request| request.result.is_err() || request.at == request.io.len;
        let request = self.request(token);
        if request.parts > 0 || (!done(request) && request.ticket.is_none()) {
            return;
        }
        let (epoch, result, io) = (request.epoch.take(), request.result, request.io);
        if let Some(mut atomic) = request.atomic.take() {
            self.end_atomic(&mut atomic);
        }
        let request = self.request(token);
        let durable = io.flags.contains(IoFlags::FUA) && request.unmapped && request.ticket.is_none();
        if let Some(epoch) = epoch {
            self.stay.end(&self.reader, epoch);
        }
        if result.is_ok() && durable {
            return self.wait_for_commit(token);
        }
        self.requests.remove(token);
        self.ended.push(Completion { tag: io.tag, result });
    }

    /// Sends a part to the base.
    fn send(&mut self, part: Part, op: Op, flags: IoFlags, cx: &mut Cx<'_>) {
        let Part { owner, at, len, base, .. } = part;
        let io = self.request(owner).io;
        self.request(owner).parts += 1;
        let token = self.parts.insert(part);
        let data = match op {
            Op::Read | Op::Write if len == io.len => io.data,
            Op::Read | Op::Write => self.parts.cut(token, io.data, at - io.offset, len),
            _ => SegmentList::EMPTY,
        };
        self.base.submit(Io { tag: tag_of(token), op, flags, offset: base, len, data }, cx);
    }

    /// What the base has completed, from the `first` on, are parts, and requests that went the short way. Apart
    /// from passes without parts, which need none of what this has to keep.
    #[inline(never)]
    fn parts_ended(&mut self, first: usize, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let (mut kept, mut at) = (first, first);
        while at < done.len() {
            let is_direct = is_direct(done[at].tag);
            let end = at + self.end_alike(&mut done[at..], cx.now);
            for nth in at..end {
                let completion = done[nth];
                let ended = if is_direct { Some(completion) } else { self.part_ended(completion, cx) };
                if let Some(ended) = ended {
                    done[kept] = ended;
                    kept += 1;
                }
            }
            at = end;
        }
        done.truncate(kept);
    }

    /// A part has ended. Returns the request that has ended with it, if it was all of one.
    #[inline]
    fn part_ended(&mut self, completion: Completion, cx: &mut Cx<'_>) -> Option<Completion> {
        let token = token_of(completion.tag);
        let part = self.parts.slab.get_mut(token).expect("a part in flight");
        if !matches!(part.kind, Kind::First { .. }) {
            self.part_of_several_ended(token, completion.result, cx);
            return None;
        }
        let part = self.parts.slab.remove(token).expect("a part in flight");
        let Kind::First { tag, epoch, .. } = part.kind else { return None };
        let result = self.first_arrived(&part, completion.result);
        self.stay.end(&self.reader, epoch);
        Some(Completion { tag, result })
    }

    /// A part of a request has ended of which more is known.
    #[inline(never)]
    fn part_of_several_ended(&mut self, token: Token, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let part = self.parts.slab.get_mut(token).expect("a part in flight");
        if let (Kind::EdgeRead(_), Ok(())) = (&part.kind, result) {
            return self.fill_edge(token, cx);
        }
        let part = self.parts.slab.remove(token).expect("a part in flight");
        let result = match &part.kind {
            Kind::First { .. } => unreachable!("it is all of a request"),
            Kind::Plain | Kind::Atomic => result,
            Kind::Fresh(map, leaf) => self.arrived(map, *leaf, &part, result),
            Kind::EdgeRead(edge) | Kind::EdgeWrite(edge) => {
                self.parts.give_buffer(edge.buffer);
                self.arrived(&edge.map, edge.leaf, &part, result)
            }
        };
        let request = self.request(part.owner);
        request.parts -= 1;
        request.result = request.result.and(result);
        if matches!(part.kind, Kind::Atomic) {
            return self.atomic_part_ended(part.owner);
        }
        match request.wait {
            None => self.try_end(part.owner),
            Some(_) => self.end_stay_of_waiting(part.owner),
        }
    }

    /// Whether all that the channel has are requests that went the short way, and parts.
    #[inline]
    fn has_nothing_else(&self) -> bool {
        self.waiting.is_empty() && self.committing.is_empty() && self.swapping.is_empty() && self.ended.is_empty()
    }

    /// Looks at what does not go on by itself, and hands out what has ended.
    #[inline(never)]
    fn go_on(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        if !self.waiting.is_empty() || !self.committing.is_empty() {
            self.look_at_waiting(cx);
        }
        let waits = !self.committing.is_empty() || !self.swapping.is_empty();
        if waits || self.any_waits_for(&[Wait::Engine, Wait::Space]) {
            // From now on the engine tells; what it did before is seen now.
            self.shared.stations[self.reactor].wait();
            self.end_swaps();
            self.look_at_waiting(cx);
        }
        done.append(&mut self.ended);
    }

    /// Tries all that wait once more, in order.
    fn look_at_waiting(&mut self, cx: &mut Cx<'_>) {
        self.end_committed();
        self.share.begin_look();
        for _ in 0..self.waiting.len() {
            let Some(token) = self.waiting.pop_front() else { break };
            self.advance(token, cx);
        }
    }

    /// Ends those whose commit is done, or never will be.
    fn end_committed(&mut self) {
        for _ in 0..self.committing.len() {
            let Some(token) = self.committing.pop_front() else { break };
            let request = self.requests.get_mut(token).expect("it waits");
            let ticket = request.ticket.expect("it waits for a commit");
            let (done, failed) = (self.shared.commits.is_done(ticket), self.shared.commits.have_failed());
            match request.result {
                Ok(()) if request.erases && !failed => match self.shared.erasures.outcome(ticket) {
                    Some(Err(error)) => request.result = Err(error),
                    Some(Ok(())) => {
                        // What was written over is durable when the base has had a barrier.
                        request.erases = false;
                        self.wait_for_commit(token);
                        continue;
                    }
                    None => {
                        self.committing.push_back(token);
                        continue;
                    }
                },
                Ok(()) if request.erases => request.result = Err(IoError::FlushFailed),
                Ok(()) if done => {}
                Ok(()) if failed => request.result = Err(IoError::FlushFailed),
                Ok(()) => {
                    self.committing.push_back(token);
                    continue;
                }
                Err(_) => {}
            }
            self.try_end(token);
        }
    }

    /// Whether a request may go on before those that wait.
    #[inline]
    fn may_overtake(&self, op: Op) -> bool {
        if op == Op::Read { self.for_places == 0 } else { self.in_line == 0 }
    }

    fn any_waits_for(&self, why: &[Wait]) -> bool {
        let requests = &self.requests;
        self.waiting
            .iter()
            .any(|token| requests.get(*token).and_then(|request| request.wait).is_some_and(|wait| why.contains(&wait)))
    }
}

fn room_of(io: &Io) -> u32 {
    1 + u32::try_from(io.len >> ROOM_SHIFT).unwrap_or(u32::MAX / 4)
}

impl Channel for ThinChannel {
    fn depth(&self) -> u32 {
        self.requests.capacity()
    }

    fn alignment(&self) -> Alignment {
        self.base.as_channel().alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        let stations = self.shared.stations.len();
        assert!(cx.reactor < stations || cx.reactor == Cx::NO_REACTOR, "it was opened for as many as there are");
        self.base.channel().attach(cx)?;
        if cx.reactor == Cx::NO_REACTOR {
            // It takes space where the first reactor does, and sees by itself when there is some.
            self.reactor = 0;
        } else {
            self.reactor = cx.reactor;
            self.shared.stations[self.reactor].reactor_is(|| cx.ring.waker());
        }
        if !self.shared.enter(&self.volume, &self.reader) {
            self.base.channel().detach(cx);
            return Err(IoError::NotReady);
        }
        Ok(())
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.shared.leave(&self.volume, &self.reader);
        self.base.channel().detach(cx);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        if !self.try_direct(&io, cx) {
            self.submit_request(io, cx);
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.now = cx.now;
        let before = done.len();
        self.base.poll(cx, done);
        let direct = before + self.end_direct(&mut done[before..], cx.now);
        if direct < done.len() {
            self.parts_ended(direct, cx, done);
            // Before anybody hears that they have ended.
            self.head.usage.add(&mut self.counts);
        }
        self.end_swaps();
        // Says so if the gate has closed, also when nothing is about to start.
        self.gate_is_open();
        if !self.has_nothing_else() {
            self.go_on(cx, done);
        }
    }

    fn next(&self) -> Next {
        if !self.ended.is_empty() {
            return Next::Now;
        }
        let mut next = self.base.as_channel().next();
        if !self.committing.is_empty() || !self.swapping.is_empty() {
            next = next.or(Next::Ring);
        }
        for token in &self.waiting {
            let Some(request) = self.requests.get(*token) else { continue };
            next = next.or(match request.wait {
                Some(Wait::Lock | Wait::More) => Next::Now,
                // Later the engine says when the pool is full.
                Some(Wait::Space) if self.now < request.until => Next::At(request.until),
                _ => Next::Ring,
            });
        }
        next
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let found = self.requests.iter_mut().find(|(_, request)| request.io.tag == tag);
        let Some((token, request)) = found else { return self.cancel_direct(tag, cx) };
        let parts = request.parts;
        if request.wait.is_some() {
            // It is ended by the next pass, or when nothing of it is in flight.
            request.result = request.result.and(Err(IoError::Aborted));
        }
        if parts > 0 {
            let tags: Vec<Tag> =
                self.parts.slab.iter_mut().filter(|(_, part)| part.owner == token).map(|(t, _)| tag_of(t)).collect();
            tags.into_iter().for_each(|tag| self.base.cancel(tag, false, cx));
        }
    }
}
