//! What a reactor runs, and how others reach it.

use crate::{Next, Ring};

/// What a turn hands down to everything that runs in it.
pub struct Cx<'a> {
    /// Monotonic time in nanoseconds, read once for the turn (and again after long steps, see [`Cx::refresh`]).
    pub now: u64,
    /// The reactor's number: 0 for the first of `--reactors`; [`Cx::NO_REACTOR`] on a thread that has only a ring.
    pub reactor: usize,
    /// The reactor's ring.
    pub ring: &'a mut dyn Ring,
}

impl Cx<'_> {
    /// The number on a thread that is no reactor: it looks at its channels by itself, and nobody wakes it.
    pub const NO_REACTOR: usize = usize::MAX;

    /// Reads the clock again.
    pub fn refresh(&mut self) -> u64 {
        self.now = self.ring.now_ns();
        self.now
    }
}

/// The work of one reactor: a front end's queues and the channels below them. One per reactor; it never sees a thread.
pub trait Worker: Send {
    /// What other reactors and the control plane may tell it: an enum, so that it can be printed and replayed.
    type Message: Send;

    /// Takes a message.
    fn message(&mut self, message: Self::Message, cx: &mut Cx<'_>);

    /// One pass over everything that may have work. Returns how many things it did; 0 means an idle turn.
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32;

    /// When the next pass can find something. Asked after a pass that did nothing: [`Next::Ring`] or [`Next::Idle`] let
    /// the reactor sleep in its ring.
    fn next(&self) -> Next;

    /// Moves messages for other reactors into `send(reactor, message)` until that refuses by giving one back, which is
    /// then kept for the next turn.
    fn outgoing(&mut self, send: &mut dyn FnMut(usize, Self::Message) -> Result<(), Self::Message>);
}

/// Why a message could not be posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The reactors have stopped.
    #[error("the reactor has stopped")]
    Stopped,
    /// The mailbox stayed full for seconds: the reactor is stuck.
    #[error("the reactor does not answer")]
    Stuck,
}

/// The control plane's way to the reactors.
pub trait Post<M>: Send + Sync {
    /// How many reactors there are.
    fn reactors(&self) -> usize;

    /// Puts a message into a reactor's mailbox and wakes it if it sleeps. May wait while the mailbox is full, so never
    /// called from a reactor.
    ///
    /// # Errors
    /// [`PostError`]; the message is dropped then.
    fn post(&self, reactor: usize, message: M) -> Result<(), PostError>;
}
