//! Work that a reactor does for nobody's request, and how a reactor is woken for what only memory tells it.
//!
//! A [`Resident`] is polled like a channel and may own channels of its own; it is told what to do, and tells what it has
//! done, through memory that it shares with others (channels on any reactor, threads). Memory does not end a sleep, so
//! whoever has changed what a resident, or a channel with something in flight, looks at in its `poll` calls
//! [`Wake::wake`] of its reactor ([`Ring::waker`](crate::Ring::waker)) *afterwards*.

use crate::{Cx, IoError, Next};

/// Work that a reactor does for nobody's request: a pool's engine, say. Made off the reactor, then owned by it:
/// `attach`, any number of `poll`, `ask_to_leave` when it is to go, `poll` until `has_left`, `detach`.
///
/// One that is still there when its reactor stops is dropped undetached, after the ring has ended what was in flight.
pub trait Resident: Send {
    /// Enters the reactor: registers files and clients with its ring, attaches its channels, and keeps the ring's waker
    /// for those who have something for it. Called once, before anything else.
    ///
    /// # Errors
    /// When the ring has no room; it has taken nothing then, and is given back.
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError>;

    /// One pass: bounded, never blocks. Returns how many things it did; 0: nothing was there.
    fn poll(&mut self, cx: &mut Cx<'_>) -> u32;

    /// When polling can find something; [`Next::Idle`]: when somebody wakes the reactor. It is polled in every pass of
    /// its reactor all the same, so also sooner.
    fn next(&self) -> Next;

    /// Finish, and take nothing new. Called once.
    fn ask_to_leave(&mut self);

    /// Whether it has finished: nothing of it is in flight, and it may be detached. Asked after `ask_to_leave`, after each
    /// `poll`.
    fn has_left(&self) -> bool;

    /// Leaves the reactor, giving back what `attach` took. Called once, after `has_left`.
    fn detach(&mut self, cx: &mut Cx<'_>);
}

/// Ends a reactor's sleep.
///
/// After a call the reactor makes at least one full pass before it sleeps (or sleeps on): residents, and channels with
/// something in flight, are polled in it, and see what the caller had changed before the call.
pub trait Wake: Send + Sync {
    /// Wakes the reactor. May be called from anywhere, also from reactors, from this one too; never blocks. Costs next to
    /// nothing if the reactor does not sleep.
    fn wake(&self);
}
