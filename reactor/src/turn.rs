//! The loop of one reactor.
//!
//! A turn: messages, [`Worker::poll`], messages for others, one enter. The clock is read once a turn, after it, and once
//! after a sleep; the time since the last reading was busy if the turn did anything, and idle if not or asleep.
//!
//! A reactor whose worker lets it sleep goes on turning for a time that it learns from how long work was not there on
//! such occasions ([`SpinBudget`]), and then sleeps in the ring until that, a sender or a timer ends it.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use pollux_core::{ClientId, Cx, Done, Entry, Next, Ring, RingOp, SpinBudget, Token, Worker};
use rtrb::{Consumer, Producer, PushError};

use crate::mailbox::{Mailbox, Wake};
use crate::{PollMode, ReactorStats, UringRing};

/// How many messages of one sender a turn takes: the others and the I/O wait for them.
const MESSAGES_A_TURN: usize = 32;
/// So many turns in vain follow each other without a pause: the pause is as long as such a turn, and work that comes within
/// a microsecond is not to wait for it. After that it leaves its sibling on the same core more room.
const AT_FULL_SPEED: u32 = 64;
/// The reactor's own client has one entry, the poll of its eventfd.
const WAKE: Token = Token { index: 0, generation: 0 };

/// What `Config` says about idling, in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Idling {
    pub(crate) mode: PollMode,
    pub(crate) spin_max: u64,
    pub(crate) max_sleep: u64,
}

/// The ways from and to the reactors, by number; the reactor itself is among them.
pub(crate) struct Peers<M> {
    pub(crate) from: Vec<Consumer<M>>,
    pub(crate) to: Vec<Producer<M>>,
    pub(crate) wakes: Vec<Arc<Wake>>,
}

/// A reactor, on its own thread.
///
/// The ring is declared before the worker: it is dropped first, which waits for what is in flight, so that the kernel
/// has let go of the worker's memory when that goes.
pub(crate) struct Reactor<W: Worker> {
    ring: UringRing,
    worker: W,
    number: usize,
    mailbox: Arc<Mailbox<W::Message>>,
    peers: Peers<W::Message>,
    /// Who got messages in this turn.
    sent_to: Vec<bool>,
    /// Whether a message for another reactor found no room: nobody tells when there is.
    refused: bool,
    wake_client: ClientId,
    wake_armed: bool,
    wake_done: Vec<Done>,
    idling: Idling,
    /// How long to go on turning when it could sleep.
    spin: SpinBudget,
    stats: Arc<ReactorStats>,
}

impl<W: Worker> Reactor<W> {
    /// # Panics
    /// If `ring` has clients already (so many that it takes no more).
    pub(crate) fn new(
        mut ring: UringRing,
        worker: W,
        mailbox: Arc<Mailbox<W::Message>>,
        peers: Peers<W::Message>,
        idling: Idling,
        stats: Arc<ReactorStats>,
    ) -> Self {
        let wake_client = ring.add_client(1).expect("a new ring has room for its reactor");
        let sent_to = vec![false; peers.to.len()];
        let number = stats.reactor;
        Reactor {
            ring,
            worker,
            number,
            mailbox,
            peers,
            sent_to,
            refused: false,
            wake_client,
            wake_armed: false,
            wake_done: Vec::with_capacity(1),
            idling,
            spin: SpinBudget::new(idling.spin_max),
            stats,
        }
    }

    /// Turns until asked to stop.
    pub(crate) fn run(&mut self) {
        let mut now = self.ring.now_ns();
        let mut in_vain = 0u32;
        while !self.mailbox.wake.asked_to_stop() {
            let start = now;
            let useful = self.turn(start);
            now = self.ring.now_ns();
            self.account(now.saturating_sub(start), useful);
            if useful {
                in_vain = 0;
                self.spin.worked(start);
            } else if let Some(ns) = self.may_sleep(now)
                && self.spin.in_vain(now)
            {
                now = self.sleep(now, ns);
            } else if in_vain < AT_FULL_SPEED {
                in_vain += 1;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn turn(&mut self, now: u64) -> bool {
        let messages = self.take_messages(now);
        let mut cx = Cx { now, reactor: self.number, ring: &mut self.ring };
        let done = self.worker.poll(&mut cx);
        let sent = self.send_messages();
        let completions = self.ring.turn();
        self.stats.turns.add(1);
        if messages > 0 {
            self.stats.messages.add(messages as u64);
        }
        if completions > 0 {
            self.stats.completions.add(completions as u64);
        }
        self.stats.enters.set(self.ring.enters());
        done > 0 || messages > 0 || completions > 0 || sent
    }

    fn take_messages(&mut self, now: u64) -> usize {
        let Reactor { ring, worker, mailbox, peers, number, .. } = self;
        let mut cx = Cx { now, reactor: *number, ring };
        let mut taken = 0;
        for _ in 0..MESSAGES_A_TURN {
            let Some(message) = mailbox.take() else { break };
            worker.message(message, &mut cx);
            taken += 1;
        }
        for from in &mut peers.from {
            for _ in 0..MESSAGES_A_TURN {
                let Ok(message) = from.pop() else { break };
                worker.message(message, &mut cx);
                taken += 1;
            }
        }
        taken
    }

    fn send_messages(&mut self) -> bool {
        let Reactor { worker, peers, sent_to, .. } = self;
        let (mut sent, mut refused) = (false, false);
        worker.outgoing(&mut |to, message| match peers.to[to].push(message) {
            Ok(()) => {
                sent_to[to] = true;
                sent = true;
                Ok(())
            }
            Err(PushError::Full(message)) => {
                refused = true;
                Err(message)
            }
        });
        self.refused = refused;
        if sent {
            for (to, wake) in self.peers.wakes.iter().enumerate() {
                if std::mem::take(&mut self.sent_to[to]) {
                    wake.notify();
                }
            }
        }
        sent
    }

    fn account(&self, ns: u64, useful: bool) {
        if useful { &self.stats.busy_ns } else { &self.stats.idle_ns }.add(ns);
    }

    /// How long nothing can happen unless the ring or a sender wakes the reactor; `None`: it should go on turning.
    fn may_sleep(&self, now: u64) -> Option<u64> {
        if self.idling.mode == PollMode::Always || self.ring.must_look() {
            return None;
        }
        let ns = match self.worker.next() {
            Next::Now => return None,
            Next::At(when) => when.saturating_sub(now),
            Next::Ring | Next::Idle => u64::MAX,
        };
        // A timer that is nearer than the price of a wake-up is waited for.
        if self.refused || ns <= self.idling.spin_max { None } else { Some(ns.min(self.idling.max_sleep)) }
    }

    /// Sleeps in the ring for at most `ns`, unless something has come: S1 to S5 of `mailbox.rs`. Returns the time then.
    fn sleep(&mut self, now: u64, ns: u64) -> u64 {
        self.arm_wake();
        let wake = &self.mailbox.wake;
        wake.falls_asleep();
        if self.has_mail() || wake.asked_to_stop() || wake.is_poked() {
            wake.woken();
            return now;
        }
        self.stats.sleeps.add(1);
        self.stats.set_in_sleep(true);
        let completions = self.ring.enter(Some(Duration::from_nanos(ns)));
        self.mailbox.wake.woken();
        self.stats.set_in_sleep(false);
        self.stats.completions.add(completions as u64);
        let woken = self.ring.now_ns();
        let slept = woken.saturating_sub(now);
        self.account(slept, false);
        self.stats.sleep.record(slept);
        if completions == 0 && slept >= ns {
            self.stats.wake_by_timer.record(slept - ns);
        }
        self.take_wake(woken);
        woken
    }

    fn has_mail(&self) -> bool {
        !self.mailbox.is_empty() || self.peers.from.iter().any(|from| !from.is_empty())
    }

    /// Has the ring poll the eventfd, unless it does already.
    fn arm_wake(&mut self) {
        // A poll that completed in a turn, after the sleep it was armed for had ended otherwise, is still to be taken.
        self.take_wake(0);
        if !self.wake_armed {
            let fd = self.mailbox.wake.event().as_raw_fd();
            self.ring.push(Entry { client: self.wake_client, token: WAKE, op: RingOp::PollReadable { fd } });
            self.wake_armed = true;
        }
    }

    /// Takes note of a wake-up, if there was one; at `now`, if that ended a sleep.
    fn take_wake(&mut self, now: u64) {
        self.ring.reap(self.wake_client, &mut self.wake_done);
        if !self.wake_done.is_empty() {
            self.wake_done.clear();
            self.wake_armed = false;
            let sent = self.mailbox.wake.take_event();
            self.stats.wakeups.add(1);
            if now > 0 && sent > 0 {
                self.stats.wake_by_message.record(now.saturating_sub(sent));
            }
        }
    }
}

impl<W: Worker> Drop for Reactor<W> {
    /// Also when the worker has panicked: senders must not wait for a reactor that is gone.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}
