//! A file's channel: carries out what its requests want.
//!
//! In the ring there are at most one entry and one cancel for each request, and one sync. Tokens say which: a request's
//! own token; the same with [`CANCEL`] set; [`SYNC`].
//!
//! One `fdatasync` at a time, for all who wait for one: whoever comes while it runs is covered by the next one. That is
//! cheaper, and it is needed: a failed write-back is reported to one caller of several at once, and the others would
//! take their answer for a good one.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{
    Alignment, Channel, ClientId, Completion, Cx, Done, Entry, FileSlot, Io, IoError, IoStats, Next, RingError, RingOp,
    Slab, Tag, Token,
};
use rustix::io::Errno;

use super::Open;
use super::bounce::Pool;
use super::errno::{again, meaning};
use super::request::{Env, Request, Want};

/// In a token's index: the entry that cancels this request.
const CANCEL: u32 = 1 << 22;
/// The token index of the sync.
const SYNC: u32 = 1 << 23;
/// How often a sync is pushed again after `EAGAIN` or `EINTR`.
const SYNC_RETRIES: u32 = 1000;

/// What `attach` has taken from the ring.
#[derive(Clone, Copy)]
struct Registered {
    client: ClientId,
    file: FileSlot,
}

/// The sync in the ring, and who waits for which.
struct Syncs {
    running: bool,
    retries: u32,
    /// Whom the one that runs covers.
    covered: Vec<Token>,
    /// Who came after it had started.
    waiting: Vec<Token>,
}

pub(super) struct FileChannel {
    open: Arc<Open>,
    descriptor: OwnedFd,
    registered: Option<Registered>,
    requests: Slab<Request>,
    pool: Pool,
    /// Who waits for a large bounce buffer, in order. While somebody does, none is free, so that nobody overtakes.
    want_buffer: VecDeque<Token>,
    syncs: Syncs,
    ended: Vec<Completion>,
    reaped: Vec<Done>,
    /// Entries in the ring, of all kinds.
    in_ring: u32,
    stats: Arc<IoStats>,
}

impl FileChannel {
    pub(super) fn new(open: Arc<Open>, depth: u32, stats: Arc<IoStats>) -> Result<Self, Errno> {
        let pool = if open.geometry.direct { Pool::new(depth)? } else { Pool::none() };
        let descriptor = open.descriptor()?;
        let room = depth as usize;
        Ok(FileChannel {
            open,
            descriptor,
            registered: None,
            requests: Slab::new(depth),
            pool,
            want_buffer: VecDeque::with_capacity(room),
            syncs: Syncs {
                running: false,
                retries: 0,
                covered: Vec::with_capacity(room),
                waiting: Vec::with_capacity(room),
            },
            ended: Vec::with_capacity(room),
            reaped: Vec::with_capacity(2 * room + 1),
            in_ring: 0,
            stats,
        })
    }

    fn registered(&self) -> Registered {
        self.registered.expect("the channel is attached")
    }

    /// Lets a request take a step, and carries out what it wants. Unknown tokens (ended meanwhile) are ignored.
    fn step(&mut self, token: Token, cx: &mut Cx<'_>, step: impl FnOnce(&mut Request, &mut Env<'_>) -> Want) {
        let file = self.registered().file;
        let Some(request) = self.requests.get_mut(token) else { return };
        let mut env = Env { open: &self.open, file, pool: &mut self.pool, stats: &self.stats };
        let want = step(request, &mut env);
        match want {
            Want::Entry(op) => {
                request.in_ring = true;
                self.push(token, op, cx);
            }
            Want::Buffer => self.want_buffer.push_back(token),
            Want::Sync => {
                self.syncs.waiting.push(token);
                self.sync(cx);
            }
            Want::End(result) => self.end(token, result),
        }
    }

    fn push(&mut self, token: Token, op: RingOp, cx: &mut Cx<'_>) {
        self.in_ring += 1;
        cx.ring.push(Entry { client: self.registered().client, token, op });
    }

    fn end(&mut self, token: Token, result: Result<(), IoError>) {
        let request = self.requests.get_mut(token).expect("only a request that is there ends");
        if let Some(buffer) = request.take_buffer() {
            self.pool.give(buffer);
        }
        if request.cancel_in_ring {
            // The cancelling entry names this token: it must not come to mean another request.
            request.ended = Some(result);
            return;
        }
        let tag = request.io.tag;
        self.requests.remove(token);
        self.ended.push(Completion { tag, result });
    }

    /// Starts a sync for those who wait, unless one runs.
    fn sync(&mut self, cx: &mut Cx<'_>) {
        if self.syncs.running || self.syncs.waiting.is_empty() {
            return;
        }
        self.syncs.running = true;
        self.syncs.retries = 0;
        std::mem::swap(&mut self.syncs.covered, &mut self.syncs.waiting);
        self.push_sync(cx);
    }

    fn push_sync(&mut self, cx: &mut Cx<'_>) {
        let file = self.registered().file;
        self.push(Token { index: SYNC, generation: 0 }, RingOp::Sync { file }, cx);
    }

    fn synced(&mut self, result: i32, cx: &mut Cx<'_>) {
        if again(-result) && self.syncs.retries < SYNC_RETRIES {
            self.syncs.retries += 1;
            return self.push_sync(cx);
        }
        let outcome = self.judge_sync(-result);
        self.syncs.running = false;
        let mut covered = std::mem::take(&mut self.syncs.covered);
        for token in covered.drain(..) {
            self.end(token, outcome);
        }
        self.syncs.covered = covered;
        self.sync(cx);
    }

    fn judge_sync(&self, errno: i32) -> Result<(), IoError> {
        if again(errno) {
            return Err(meaning(errno));
        }
        if errno != 0 {
            self.open.flush_failed.store(true, Relaxed);
        }
        // Asked again although this one was good: another reactor's may have failed while it ran.
        if self.open.flush_failed.load(Relaxed) { Err(IoError::FlushFailed) } else { Ok(()) }
    }

    fn landed(&mut self, done: Done, cx: &mut Cx<'_>) {
        self.in_ring -= 1;
        let Done { token, result } = done;
        if token.index == SYNC {
            return self.synced(result, cx);
        }
        if token.index & CANCEL != 0 {
            let token = Token { index: token.index & !CANCEL, ..token };
            let request = self.requests.get_mut(token).expect("a request outlives its cancel");
            request.cancel_in_ring = false;
            if let Some(result) = request.ended {
                self.end(token, result);
            }
            return;
        }
        self.step(token, cx, |request, env| {
            request.in_ring = false;
            request.landed(result, env)
        });
    }

    /// Lets those who wait for a large bounce buffer go on.
    fn hand_out_buffers(&mut self, cx: &mut Cx<'_>) {
        while self.pool.has_large()
            && let Some(token) = self.want_buffer.pop_front()
        {
            self.step(token, cx, Request::advance);
        }
    }
}

impl Channel for FileChannel {
    fn depth(&self) -> u32 {
        self.requests.capacity()
    }

    fn alignment(&self) -> Alignment {
        let geometry = &self.open.geometry;
        if geometry.direct {
            Alignment { addr: geometry.mem_align as usize, len: geometry.offset_align as usize }
        } else {
            Alignment::ANY
        }
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        let refused = |error| match error {
            RingError::Full => IoError::Busy,
            RingError::Os(errno) => meaning(errno),
        };
        let client = cx.ring.add_client(2 * self.depth() + 1).map_err(refused)?;
        match cx.ring.add_data_file(self.descriptor.as_raw_fd(), self.open.geometry.polled) {
            Ok(file) => {
                self.registered = Some(Registered { client, file });
                Ok(())
            }
            Err(error) => {
                cx.ring.remove_client(client);
                Err(refused(error))
            }
        }
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        assert!(self.in_ring == 0 && self.requests.is_empty(), "a channel is left with nothing in flight");
        let Registered { client, file } = self.registered.take().expect("the channel is attached");
        cx.ring.remove_file(file);
        cx.ring.remove_client(client);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        let in_flight = self.requests.len() as usize + self.ended.len();
        assert!(in_flight < self.requests.capacity() as usize, "the submitter keeps to the depth");
        let token = self.requests.insert(Request::new(io)).ok().expect("the submitter keeps to the depth");
        self.step(token, cx, Request::start);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        cx.ring.reap(self.registered().client, &mut reaped);
        for one in reaped.drain(..) {
            self.landed(one, cx);
            self.hand_out_buffers(cx);
        }
        self.reaped = reaped;
        done.append(&mut self.ended);
    }

    fn next(&self) -> Next {
        if !self.ended.is_empty() {
            Next::Now
        } else if self.requests.is_empty() {
            Next::Idle
        } else {
            Next::Ring
        }
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let Some((token, request)) = self.requests.iter_mut().find(|(_, r)| r.io.tag == tag) else { return };
        if request.in_ring {
            if !request.cancelled {
                request.cancelled = true;
                request.cancel_in_ring = true;
                let name = Token { index: token.index | CANCEL, ..token };
                self.push(name, RingOp::Cancel { target: token }, cx);
            }
            return;
        }
        // A sync that runs is for others too: it is not disturbed, and ends soon enough.
        if request.ended.is_some() || self.syncs.covered.contains(&token) {
            return;
        }
        self.syncs.waiting.retain(|t| *t != token);
        self.want_buffer.retain(|t| *t != token);
        self.end(token, Err(IoError::Aborted));
    }
}

impl Drop for FileChannel {
    fn drop(&mut self) {
        if self.in_ring > 0 {
            // Dropped in the middle (a crash in the simulator, a panic): the kernel may still use this memory.
            self.pool.leak();
            Box::leak(Box::new(std::mem::replace(&mut self.requests, Slab::new(0))));
            Box::leak(Box::new(self.open.clone()));
        }
    }
}
