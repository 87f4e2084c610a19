//! The reactor's side of a channel: gives commands to the helper's thread and takes what has become of them.
//!
//! The helper's bell is armed in the ring exactly while something is under way, so a channel with nothing under way has
//! nothing in the ring and can leave.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use pollux_core::{
    Channel, ClientId, Completion, Cx, Delivery, Done, Entry, Io, IoError, Next, RingOp, ScsiAnswer, ScsiChannel,
    ScsiCommand, Tag, Token,
};
use rustix::io::Errno;

use super::common::Common;
use super::helper::{Ended, Helper, Order, Shared, empty, ring};
use super::raw::QUEUE;

/// Resets under way at once; more than a controller asks for.
const RESETS: usize = 16;

pub(super) struct SgChannel {
    shared: Arc<Shared>,
    depth: usize,
    /// By place: the tag of what is under way. Those of commands come first, those of resets behind them.
    tags: Vec<Option<Tag>>,
    free: Vec<usize>,
    /// Hung up when the channel ends.
    orders: Option<SyncSender<Order>>,
    results: Receiver<Ended>,
    client: Option<ClientId>,
    armed: bool,
    under_way: usize,
    answers: HashMap<Tag, ScsiAnswer>,
    /// Ended without the helper.
    ended: Vec<Completion>,
    reaped: Vec<Done>,
}

impl SgChannel {
    /// A channel over descriptors of its own, which is not opened on a reactor yet.
    pub(super) fn new(lines: Vec<OwnedFd>, depth: u32, common: Arc<Common>) -> Result<Self, Errno> {
        let depth = (depth as usize).clamp(1, lines.len() * QUEUE);
        let cancelled = (0..depth).map(|_| AtomicBool::new(false)).collect();
        let shared = Arc::new(Shared::new(cancelled, common)?);
        let (orders, taken) = sync_channel(depth + RESETS);
        let (told, results) = sync_channel(depth + RESETS);
        let helper = Helper::new(shared.clone(), lines, taken, told);
        // It ends when the channel is dropped and takes its descriptors with it.
        let thread = std::thread::Builder::new().name("sg".into()).spawn(move || helper.run());
        thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(SgChannel {
            shared,
            depth,
            tags: vec![None; depth + RESETS],
            free: (0..depth).rev().collect(),
            orders: Some(orders),
            results,
            client: None,
            armed: false,
            under_way: 0,
            answers: HashMap::with_capacity(depth),
            ended: Vec::new(),
            reaped: Vec::new(),
        })
    }

    fn order(&mut self, place: usize, tag: Tag, order: Order, cx: &mut Cx<'_>) {
        self.tags[place] = Some(tag);
        self.under_way += 1;
        // There is room for as many orders as there are places; a helper that is not there any more cannot be.
        let given = self.orders.as_ref().map(|orders| orders.try_send(order));
        debug_assert!(matches!(given, Some(Ok(()))), "the helper takes an order for each place");
        ring(&self.shared.wake);
        self.arm(cx);
    }

    fn arm(&mut self, cx: &mut Cx<'_>) {
        if !std::mem::replace(&mut self.armed, true) {
            let op = RingOp::PollReadable { fd: self.shared.bell.as_raw_fd() };
            let client = self.client.expect("the channel is attached");
            cx.ring.push(Entry { client, token: Token { index: 0, generation: 0 }, op });
        }
    }

    fn take(&mut self, ended: &Ended, done: &mut Vec<Completion>) {
        let (place, result) = match *ended {
            Ended::Command(place, answer) => {
                let tag = self.tags[place].expect("a place is free when it has been answered");
                self.answers.insert(tag, answer);
                self.free.push(place);
                (place, meaning(answer.delivery))
            }
            Ended::Reset(place, result) => (place, result.map_err(|_| IoError::Unsupported)),
        };
        self.under_way -= 1;
        let tag = self.tags[place].take().expect("a place is free when it has been answered");
        done.push(Completion { tag, result });
    }
}

/// The helper ends, and its descriptors are closed. Nobody waits for it: it has nothing under way.
impl Drop for SgChannel {
    fn drop(&mut self) {
        self.orders = None;
        ring(&self.shared.wake);
    }
}

/// What a loss is among the errors of block devices, for their counters.
const fn meaning(delivery: Delivery) -> Result<(), IoError> {
    match delivery {
        Delivery::Answered | Delivery::TooLong => Ok(()),
        Delivery::Gone => Err(IoError::NotReady),
        Delivery::Busy => Err(IoError::Busy),
        Delivery::Reset | Delivery::Aborted => Err(IoError::Aborted),
        Delivery::Transport | Delivery::Target | Delivery::Nexus | Delivery::Failed => Err(IoError::Medium),
    }
}

impl Channel for SgChannel {
    fn depth(&self) -> u32 {
        self.depth as u32
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.client = Some(cx.ring.add_client(1).map_err(|_| IoError::Busy)?);
        Ok(())
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        assert!(!self.armed, "a channel leaves with nothing under way");
        if let Some(client) = self.client.take() {
            cx.ring.remove_client(client);
        }
    }

    /// There are no blocks here: whoever asks for some is told so.
    fn submit(&mut self, io: Io, _: &mut Cx<'_>) {
        self.ended.push(Completion { tag: io.tag, result: Err(IoError::Unsupported) });
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        let client = self.client.expect("the channel is attached");
        cx.ring.reap(client, &mut self.reaped);
        if self.reaped.is_empty() {
            return;
        }
        self.reaped.clear();
        self.armed = false;
        // Emptied before it is looked: what is told after that rings again.
        empty(&self.shared.bell);
        while let Ok(ended) = self.results.try_recv() {
            self.take(&ended, done);
        }
        if self.under_way > 0 {
            self.arm(cx);
        }
    }

    fn next(&self) -> Next {
        match (self.ended.is_empty(), self.under_way) {
            (false, _) => Next::Now,
            (true, 0) => Next::Idle,
            (true, _) => Next::Ring,
        }
    }

    /// What has not been sent yet is not sent; nothing calls back what has.
    fn cancel(&mut self, tag: Tag, _: &mut Cx<'_>) {
        if let Some(place) = self.tags[..self.depth].iter().position(|of| *of == Some(tag)) {
            self.shared.cancelled[place].store(true, Ordering::Release);
        }
    }

    fn scsi(&mut self) -> Option<&mut dyn ScsiChannel> {
        Some(self)
    }
}

impl ScsiChannel for SgChannel {
    fn submit_scsi(&mut self, command: ScsiCommand, cx: &mut Cx<'_>) {
        let place = self.free.pop().expect("the submitter keeps to the depth");
        self.shared.cancelled[place].store(false, Ordering::Release);
        self.order(place, command.tag, Order::Command(place, command), cx);
    }

    fn take_answer(&mut self, tag: Tag) -> Option<ScsiAnswer> {
        self.answers.remove(&tag)
    }

    fn reset(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        match self.tags[self.depth..].iter().position(Option::is_none) {
            Some(nth) => {
                let place = self.depth + nth;
                self.order(place, tag, Order::Reset(place), cx);
            }
            None => self.ended.push(Completion { tag, result: Err(IoError::Busy) }),
        }
    }

    fn nexus_lost(&mut self) {
        self.shared.nexus_lost.store(true, Ordering::Release);
        ring(&self.shared.wake);
    }
}
