//! A fault device's channel: one state for each request, one function for each of its events.
//!
//! Requests to the base are *errands*: each belongs to a request, and a write-back has several at once. The base is
//! opened deep enough for one errand of every request and the window of one write-back (one at a time: whoever writes
//! back holds the cache's medium).

mod cached;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::segment::{copy_to, for_range};
use pollux_core::{
    Alignment, Bdev, Channel, Completion, Cx, Io, IoError, IoFlags, Next, Op, OpenArgs, OpenError, Slab, Tag, Token,
};

use super::Shared;
use super::cache::{Content, Dirty};
use super::rules::Effect;
use crate::measured::{tag_of, token_of};
use crate::memory::{Buffer, xor};
use crate::rng::Rng;

/// Most errands of one write-back at once.
const WINDOW: u32 = 16;
/// How often what is stuck looks whether it may go on, in nanoseconds.
const STUCK_NS: u64 = 10_000_000;
/// How often who wants the medium looks whether it is free, in nanoseconds.
const MEDIUM_NS: u64 = 50_000;

/// Where a request is.
enum Stage {
    /// Came in just now.
    New,
    /// Held by a rule until a time (`Some`) or until it is resumed (`None`).
    Held(Option<u64>),
    /// Waits for the right to change the base.
    Medium,
    /// One errand is below; its end is the request's.
    Below,
    /// Errands write versions back.
    WriteBack(WriteBack),
    /// Everything is written back; the base is flushed.
    Flush,
}

/// What is left of a write-back.
struct WriteBack {
    left: VecDeque<Dirty>,
    errands: u32,
    failed: Option<IoError>,
}

struct Request {
    /// As it was submitted, but with our own data and less of it if a rule wants that.
    io: Io,
    stage: Stage,
    /// How it ends although it ends well.
    verdict: Option<IoError>,
    /// On a read: which byte to change.
    corrupt: Option<(usize, u8)>,
    /// On a read: blocks of the cache that lie over what the base holds, by offset in the data.
    over: Vec<(usize, Content)>,
    /// On a direct change of the base: the cache's last write before it.
    after: u64,
    /// The cache's power cuts when it was submitted.
    cuts: u64,
    holds_medium: bool,
    buffer: Option<Buffer>,
}

/// A request to the base.
struct Errand {
    owner: Token,
    /// What a write-back writes: block and version.
    writes: Vec<(u64, u64)>,
    buffer: Option<Buffer>,
}

pub(super) struct FaultChannel {
    /// The device below, for what it is like now; its channel is `base`.
    device: Arc<dyn Bdev>,
    base: Box<dyn Channel>,
    shared: Arc<Shared>,
    block_size: usize,
    requests: Slab<Request>,
    errands: Slab<Errand>,
    window: u32,
    want_medium: VecDeque<Token>,
    ended: Vec<Completion>,
    below: Vec<Completion>,
    resumed: u64,
    now: u64,
    /// When what waits here, not below, can go on.
    wake: Next,
    rng: Rng,
}

impl FaultChannel {
    pub(super) fn open(
        device: &Arc<dyn Bdev>,
        shared: Arc<Shared>,
        args: OpenArgs,
    ) -> Result<Box<dyn Channel>, OpenError> {
        let extra = if shared.cache.is_some() { WINDOW } else { 0 };
        let block_size = device.shape().block_size as usize;
        let base = device.open(OpenArgs { depth: args.depth.saturating_add(extra), ..args })?;
        let window = extra.min(base.depth() / 2);
        // With a depth of one the only request is either the write-back or it is not.
        let depth = (base.depth() - window).min(args.depth).max(1);
        Ok(Box::new(FaultChannel {
            requests: Slab::new(depth),
            errands: Slab::new(base.depth()),
            window: window.max(1),
            want_medium: VecDeque::with_capacity(depth as usize),
            ended: Vec::with_capacity(depth as usize),
            below: Vec::with_capacity(base.depth() as usize),
            resumed: shared.resumed.load(Relaxed),
            now: 0,
            rng: Rng::new(args.seed),
            wake: Next::Idle,
            block_size,
            device: device.clone(),
            base,
            shared,
        }))
    }

    fn request(&mut self, token: Token) -> &mut Request {
        self.requests.get_mut(token).expect("the request is in flight")
    }

    /// Lets the rules have their way with a new request.
    fn judge(&mut self, token: Token, cx: &mut Cx<'_>) {
        let others = u64::from(self.requests.len() - 1);
        let armed = self.shared.armed.load(Relaxed);
        let op = self.request(token).io.op;
        let effect = if armed { self.shared.rules().draw(op, others) } else { None };
        match effect {
            None => self.go(token, cx),
            Some(Effect::Fail(error)) => self.end(token, Err(error)),
            Some(Effect::Stuck) => self.request(token).stage = Stage::Held(None),
            Some(Effect::Delay(ns)) => self.request(token).stage = Stage::Held(Some(self.now.saturating_add(ns))),
            Some(Effect::Corrupt { offset, value }) => {
                self.corrupt(token, offset, value);
                self.go(token, cx);
            }
            Some(Effect::Torn) => self.tear(token, cx),
        }
    }

    fn corrupt(&mut self, token: Token, offset: u64, value: u8) {
        let request = self.request(token);
        let io = request.io;
        match (io.op, usize::try_from(offset)) {
            (Op::Read, Ok(at)) => request.corrupt = Some((at, value)),
            (Op::Write, Ok(at)) if offset < io.len => {
                // A copy: the guest's own memory stays as it is.
                let buffer = Buffer::copy_of(io.data.as_slice(), io.len as usize);
                xor(buffer.segment(), at, value);
                request.own(buffer);
            }
            _ => {}
        }
    }

    fn tear(&mut self, token: Token, cx: &mut Cx<'_>) {
        let size = self.block_size as u64;
        let blocks = self.request(token).io.len / size;
        let io = self.request(token).io;
        if !io.op.changes_data() || blocks < 2 || io.flags.contains(IoFlags::ATOMIC) {
            return self.end(token, Err(IoError::Medium));
        }
        let len = self.rng.below(blocks) * size;
        if len == 0 {
            return self.end(token, Err(IoError::Medium));
        }
        let request = self.request(token);
        request.verdict = Some(IoError::Medium);
        request.io.len = len;
        if io.op == Op::Write {
            request.own(Buffer::copy_of(io.data.as_slice(), len as usize));
        }
        self.go(token, cx);
    }

    /// Starts the real work of a request.
    fn go(&mut self, token: Token, cx: &mut Cx<'_>) {
        let io = self.request(token).io;
        if self.shared.cache.is_none() {
            return self.pass_on(token, cx);
        }
        match io.op {
            Op::Read => self.read(token, cx),
            Op::Write => self.write(token, cx),
            Op::WriteZeroes if io.len <= cached::LONGEST_ZEROES => self.write(token, cx),
            Op::WriteZeroes | Op::Discard | Op::Flush => self.want_medium(token, cx),
        }
    }

    /// The request becomes one of the base.
    fn pass_on(&mut self, token: Token, cx: &mut Cx<'_>) {
        let request = self.request(token);
        request.stage = Stage::Below;
        let io = request.io;
        self.errand(Errand { owner: token, writes: Vec::new(), buffer: None }, io, cx);
    }

    fn errand(&mut self, errand: Errand, io: Io, cx: &mut Cx<'_>) {
        let token = self.errands.insert(errand).ok().expect("the base is as deep as there can be errands");
        self.base.submit(Io { tag: tag_of(token), ..io }, cx);
    }

    /// An errand has ended.
    fn came_back(&mut self, errand: Errand, result: Result<(), IoError>, cx: &mut Cx<'_>) {
        let Errand { owner, writes, buffer } = errand;
        drop(buffer);
        if !writes.is_empty() {
            let mut cache = self.shared.cache().expect("only a cache is written back");
            for (block, seq) in writes {
                if result.is_ok() { cache.forget(block, seq) } else { cache.stay(block, seq) }
            }
        }
        let request = self.request(owner);
        match &mut request.stage {
            Stage::WriteBack(work) => {
                work.errands -= 1;
                work.failed = work.failed.or(result.err());
                self.write_back(owner, cx);
            }
            Stage::Below | Stage::Flush => {
                if result.is_ok() && request.holds_medium && request.io.op != Op::Flush {
                    let (Io { offset, len, .. }, after) = (request.io, request.after);
                    let mut cache = self.shared.cache().expect("only a cache has a medium");
                    let blocks = cache.blocks_of(offset, len);
                    cache.overtaken(blocks, after);
                }
                self.end(owner, result);
            }
            Stage::New | Stage::Held(_) | Stage::Medium => unreachable!("it has no errands"),
        }
    }

    fn end(&mut self, token: Token, result: Result<(), IoError>) {
        let request = self.requests.remove(token).expect("the request is in flight");
        if request.holds_medium {
            self.shared.cache().expect("only a cache has a medium").give_medium();
        }
        let data = request.io.data.as_slice();
        if result.is_ok() && request.io.op == Op::Read {
            for (at, content) in &request.over {
                copy_to(data, *at, content);
            }
            if let Some((at, value)) = request.corrupt {
                for_range(data, at, 1, |part| xor(part, 0, value));
            }
        }
        let result = request.verdict.map_or(result, Err);
        self.ended.push(Completion { tag: request.io.tag, result });
    }

    /// Works out when what waits here can go on.
    fn set_wake(&mut self) {
        let now = self.now;
        let at = |request: &Request| match request.stage {
            Stage::Held(Some(at)) => Next::At(at),
            Stage::Held(None) => Next::At(now + STUCK_NS),
            Stage::Medium => Next::At(now + MEDIUM_NS),
            Stage::New | Stage::Below | Stage::WriteBack(_) | Stage::Flush => Next::Idle,
        };
        self.wake = self.requests.iter_mut().fold(Next::Idle, |next, (_, request)| next.or(at(request)));
    }

    /// Lets go what was held long enough.
    fn release(&mut self, cx: &mut Cx<'_>) {
        let resumed = self.shared.resumed.load(Relaxed);
        let all = std::mem::replace(&mut self.resumed, resumed) != resumed;
        let now = self.now;
        let free = |(token, request): (Token, &mut Request)| match request.stage {
            Stage::Held(Some(at)) if at <= now => Some(token),
            Stage::Held(None) if all => Some(token),
            _ => None,
        };
        let free: Vec<Token> = self.requests.iter_mut().filter_map(free).collect();
        for token in free {
            self.go(token, cx);
        }
    }
}

impl Request {
    /// Gives it data of its own.
    fn own(&mut self, buffer: Buffer) {
        self.io.data = buffer.list();
        self.buffer = Some(buffer);
    }
}

impl Channel for FaultChannel {
    fn depth(&self) -> u32 {
        self.requests.capacity()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        self.now = cx.now;
        let in_flight = self.requests.len() as usize + self.ended.len();
        assert!(in_flight < self.requests.capacity() as usize, "the submitter keeps to the depth");
        let cuts = self.shared.cache().map_or(0, |cache| cache.cuts());
        let request = Request {
            io,
            stage: Stage::New,
            verdict: None,
            corrupt: None,
            over: Vec::new(),
            after: 0,
            cuts,
            holds_medium: false,
            buffer: None,
        };
        let token = self.requests.insert(request).ok().expect("the submitter keeps to the depth");
        self.judge(token, cx);
        self.set_wake();
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.now = cx.now;
        let mut below = std::mem::take(&mut self.below);
        self.base.poll(cx, &mut below);
        for Completion { tag, result } in below.drain(..) {
            let errand = self.errands.remove(token_of(tag)).expect("each tag completes once");
            self.came_back(errand, result, cx);
        }
        self.below = below;
        self.release(cx);
        self.serve_medium(cx);
        self.set_wake();
        done.append(&mut self.ended);
    }

    fn next(&self) -> Next {
        if !self.ended.is_empty() {
            return Next::Now;
        }
        self.wake.or(self.base.next())
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let found = self.requests.iter_mut().find(|(_, request)| request.io.tag == tag);
        let Some((token, request)) = found else { return };
        match &mut request.stage {
            Stage::New | Stage::Held(_) | Stage::Medium => {
                self.want_medium.retain(|waiting| *waiting != token);
                self.end(token, Err(IoError::Aborted));
                self.set_wake();
            }
            Stage::Below | Stage::WriteBack(_) | Stage::Flush => {
                if let Stage::WriteBack(work) = &mut request.stage {
                    work.failed = Some(IoError::Aborted);
                }
                let mine = |(name, errand): (Token, &mut Errand)| (errand.owner == token).then_some(name);
                let errands: Vec<Token> = self.errands.iter_mut().filter_map(mine).collect();
                for errand in errands {
                    self.base.cancel(tag_of(errand), cx);
                }
            }
        }
    }
}

impl Drop for FaultChannel {
    fn drop(&mut self) {
        // Dropped in the middle: others must not wait for a medium that nobody gives back.
        let holds = self.requests.iter_mut().any(|(_, request)| request.holds_medium);
        if let Some(mut cache) = self.shared.cache()
            && holds
        {
            cache.give_medium();
        }
        let buffers = |errand: &mut Errand| errand.buffer.take();
        for (_, errand) in self.errands.iter_mut() {
            // The base may still use it.
            Box::leak(Box::new(buffers(errand)));
        }
    }
}
