//! The thread of one channel that talks to the kernel: it sends commands, receives what has ended, and resets the device.
//!
//! Sending may wait (for a place in the host adapter, for memory), and receiving copies the data, so neither is done on a
//! reactor. The reactor's side gives orders through a bounded channel and rings `wake`; results come back through another
//! one, and `bell` is rung. Both have room for everything that can be under way, so nobody waits to tell.
//!
//! A reset may have to wait for its time ([`super::common`]). Those that come meanwhile are done by the same one, and commands
//! that come behind it are sent behind it.
//!
//! Invariant: an order is answered exactly once, and not before the kernel has let go of the memory it names.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use pollux_core::{Delivery, Direction, ScsiAnswer, ScsiCommand, segment};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::common::Common;
use super::outcome::{answer, refused};
use super::raw::{self, Memory, QUEUE, SEGMENTS};

/// How often descriptors are looked at that the kernel has hung up, which can be waited for no more.
const LOOK: Duration = Duration::from_millis(20);

/// What the reactor asks for. The number is that of a place, which is free again when it has been answered.
pub(super) enum Order {
    Command(usize, ScsiCommand),
    Reset(usize),
}

/// What became of it.
pub(super) enum Ended {
    Command(usize, ScsiAnswer),
    Reset(usize, Result<(), Errno>),
}

/// What the reactor's side, the helper and the device share.
pub(super) struct Shared {
    /// By place: nobody wants the command done any more.
    pub(super) cancelled: Box<[AtomicBool]>,
    pub(super) common: Arc<Common>,
    /// The guest has gone, before what is ordered after this was set.
    pub(super) nexus_lost: AtomicBool,
    /// Rung when there are orders.
    pub(super) wake: OwnedFd,
    /// Rung when there are results.
    pub(super) bell: OwnedFd,
}

impl Shared {
    pub(super) fn new(cancelled: Box<[AtomicBool]>, common: Arc<Common>) -> Result<Shared, Errno> {
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Shared { cancelled, common, nexus_lost: AtomicBool::new(false), wake: bell()?, bell: bell()? })
    }
}

/// One descriptor of the device.
struct Line {
    fd: OwnedFd,
    inflight: usize,
    hung_up: bool,
}

/// A place for a command.
struct Place {
    memory: Memory,
    /// The command that is under way, and the line it went.
    sent: Option<(ScsiCommand, usize)>,
}

pub(super) struct Helper {
    shared: Arc<Shared>,
    lines: Vec<Line>,
    places: Vec<Place>,
    orders: Receiver<Order>,
    results: SyncSender<Ended>,
    /// Something was told since the bell was rung.
    told: bool,
    /// Places of resets whose time has not come.
    resets: Vec<usize>,
    /// What was ordered behind them.
    behind: VecDeque<(usize, ScsiCommand)>,
    /// The guest has had the device keep its medium.
    prevents: bool,
}

impl Helper {
    pub(super) fn new(
        shared: Arc<Shared>,
        lines: Vec<OwnedFd>,
        orders: Receiver<Order>,
        results: SyncSender<Ended>,
    ) -> Self {
        let places = (0..lines.len() * QUEUE).map(|_| Place { memory: Memory::new(), sent: None }).collect();
        let lines = lines.into_iter().map(|fd| Line { fd, inflight: 0, hung_up: false }).collect();
        let (resets, behind) = (Vec::new(), VecDeque::new());
        Helper { shared, lines, places, orders, results, told: false, resets, behind, prevents: false }
    }

    /// Works until the reactor's side has gone. It goes with nothing under way; what is, is waited for all the same.
    pub(super) fn run(mut self) {
        let mut open = true;
        while open || self.inflight() > 0 || !self.resets.is_empty() {
            self.wait(open);
            empty(&self.shared.wake);
            open = open && self.take_orders();
            self.reset_in_time();
            self.receive_all();
            if std::mem::take(&mut self.told) {
                ring(&self.shared.bell);
            }
        }
        self.allow_removal();
    }

    fn inflight(&self) -> usize {
        self.lines.iter().map(|line| line.inflight).sum()
    }

    /// Waits for orders and for commands that have ended.
    fn wait(&mut self, open: bool) {
        let lost = self.lines.iter().any(|line| line.hung_up && line.inflight > 0);
        let waits = |line: &Line| !line.hung_up && line.inflight > 0;
        let mut fds = Vec::with_capacity(1 + self.lines.len());
        fds.extend(self.lines.iter().filter(|line| waits(line)).map(|line| PollFd::new(&line.fd, PollFlags::IN)));
        if open {
            fds.push(PollFd::new(&self.shared.wake, PollFlags::IN));
        }
        // An interrupted wait is as good as an ended one: everything is looked at.
        let reset = (!self.resets.is_empty()).then(|| self.shared.common.until_reset(Instant::now()));
        let longest = reset.into_iter().chain(lost.then_some(LOOK)).min();
        let longest = longest.and_then(|longest| Timespec::try_from(longest).ok());
        let _ = poll(&mut fds, longest.as_ref());
        let hung_up: Vec<bool> =
            fds.iter().map(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)).collect();
        drop(fds);
        for (line, hung_up) in self.lines.iter_mut().filter(|line| waits(line)).zip(hung_up) {
            line.hung_up = hung_up;
            if hung_up {
                self.shared.common.set_gone();
            }
        }
    }

    /// Carries out the orders that have come; false if there will be none any more.
    fn take_orders(&mut self) -> bool {
        loop {
            let order = self.orders.try_recv();
            // Looked at when the order is there: it may be of the next guest already.
            if self.shared.nexus_lost.swap(false, Ordering::Acquire) {
                self.allow_removal();
            }
            match order {
                Ok(Order::Command(place, command)) if self.resets.is_empty() => self.send(place, command),
                Ok(Order::Command(place, command)) => self.behind.push_back((place, command)),
                Ok(Order::Reset(place)) => self.resets.push(place),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Does the resets that were asked for, all by one, if it is time for that.
    fn reset_in_time(&mut self) {
        if self.resets.is_empty() {
            return;
        }
        let Some(result) = self.shared.common.reset(self.lines[0].fd.as_fd(), Instant::now()) else { return };
        for place in std::mem::take(&mut self.resets) {
            self.tell(Ended::Reset(place, result));
        }
        for (place, command) in std::mem::take(&mut self.behind) {
            self.send(place, command);
        }
    }

    /// Nobody is left who wants the medium kept. Who does it next says so.
    fn allow_removal(&mut self) {
        if std::mem::take(&mut self.prevents)
            && let Err(errno) = self.shared.common.driver.allow_removal(self.lines[0].fd.as_fd())
        {
            tracing::warn!("a device was told to let its medium go, and did not answer: {errno}");
        }
    }

    fn send(&mut self, place: usize, command: ScsiCommand) {
        if self.shared.cancelled[place].load(Ordering::Acquire) {
            self.end(place, ScsiAnswer::undelivered(Delivery::Aborted, command.len));
            return;
        }
        if let Err(delivery) = self.try_send(place, command) {
            self.places[place].memory.end();
            self.end(place, ScsiAnswer::undelivered(delivery, command.len));
        }
    }

    fn try_send(&mut self, place: usize, command: ScsiCommand) -> Result<(), Delivery> {
        let free = self.lines.iter().position(|line| line.inflight < QUEUE).ok_or(Delivery::Busy)?;
        let (line, Place { memory, sent }) = (&mut self.lines[free], &mut self.places[place]);
        // Before there is memory for it, here and in the driver.
        if command.len > self.shared.common.most {
            return Err(Delivery::TooLong);
        }
        let mut data = command.data;
        if command.direction == Direction::In || data.count() > SEGMENTS {
            data = memory.bounce(command.len as usize);
        }
        if command.direction == Direction::Out && command.data.count() > SEGMENTS {
            segment::copy_from(command.data.as_slice(), 0, memory.bounced());
        }
        let cdb = &command.cdb[..usize::from(command.cdb_len)];
        let (len, timeout_ms) = (command.len as u32, command.timeout_ms);
        let order = raw::Order { cdb, direction: command.direction, len, data, timeout_ms, usr_ptr: place };
        // SAFETY: the place keeps its memory, and the reactor's side what the command names, until the command is answered,
        // which is when it has been received from this line.
        #[expect(unsafe_code, reason = "the one place where memory is named to the driver")]
        let result = unsafe { raw::send(&line.fd, &order, memory) };
        match result {
            Ok(()) => {
                line.inflight += 1;
                self.prevents |= prevents_removal(&command);
                *sent = Some((command, free));
                Ok(())
            }
            Err(errno) => {
                if matches!(errno, Errno::NODEV) {
                    self.shared.common.set_gone();
                }
                Err(refused(errno))
            }
        }
    }

    fn receive_all(&mut self) {
        for at in 0..self.lines.len() {
            while self.lines[at].inflight > 0 && self.receive(at) {}
        }
    }

    /// Receives one command from a line; false if none has ended.
    fn receive(&mut self, at: usize) -> bool {
        let (header, result) = raw::receive(&self.lines[at].fd);
        let Some(Place { memory, sent }) = self.places.get_mut(header.usr_ptr) else {
            if matches!(result, Err(Errno::NODEV | Errno::NXIO)) {
                self.lines[at].hung_up = true;
                self.shared.common.set_gone();
            }
            return false;
        };
        let (command, line) = sent.take().expect("the kernel gives back what it was given, once");
        debug_assert_eq!(line, at, "it comes back where it went");
        let answer = match result {
            Ok(()) => answer(&header, memory.sense(header.sb_len_wr), command.len),
            // It has ended, but its data could not be copied to where it should go.
            Err(_) => ScsiAnswer::undelivered(Delivery::Failed, command.len),
        };
        if command.direction == Direction::In {
            let moved = (command.len - answer.residual) as usize;
            segment::copy_to(command.data.as_slice(), 0, &memory.bounced()[..moved]);
        }
        memory.end();
        self.lines[at].inflight -= 1;
        self.end(place_of(&header), answer);
        true
    }

    fn end(&mut self, place: usize, answer: ScsiAnswer) {
        self.shared.common.counters.ended(&answer);
        self.tell(Ended::Command(place, answer));
    }

    fn tell(&mut self, ended: Ended) {
        // There is room for an answer to each order; where nobody listens any more, nobody waits for one.
        let _ = self.results.try_send(ended);
        self.told = true;
    }
}

/// PREVENT ALLOW MEDIUM REMOVAL with PREVENT.
const fn prevents_removal(command: &ScsiCommand) -> bool {
    command.cdb[0] == 0x1E && command.cdb[4] & 0x03 != 0
}

const fn place_of(header: &raw::Header) -> usize {
    header.usr_ptr
}

/// Rings an eventfd. It is not full before it has been rung 2^64 - 2 times.
pub(super) fn ring(eventfd: impl AsFd) {
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// Takes the count out of an eventfd, if there is one.
pub(super) fn empty(eventfd: impl AsFd) {
    let _ = rustix::io::read(eventfd, &mut [0; 8]);
}
