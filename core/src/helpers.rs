//! Work that may block, done by helper threads: what no reactor may wait for and no ring can do (looking for holes in a
//! file, having a file system copy). One bounded pool does all of it.
//!
//! A chore answers by itself, as a rule with a message to the worker that wants to know ([`Post`](crate::Post)). Who
//! submits chores bounds how many of its own are under way, keeps each of them short (in the order of a second; longer
//! work is cut into steps, each of which is a chore), and can do without an answer when its command is aborted: a chore
//! that hangs in the kernel cannot be taken back. One that has not begun can.

/// Something to be done. It is dropped undone if the helpers end before its turn, so one whose answer is waited for
/// answers in its `Drop`.
pub type Chore = Box<dyn FnOnce() + Send>;

/// Chores that may be held up by the same thing, as a rule a file system, have the same lane: one lane never takes all
/// helpers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane(pub u64);

/// Names a chore; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoreId(pub u64);

/// The helper threads. Implemented by the reactors' room and by the simulated world.
pub trait Helpers: Send + Sync {
    /// Has a chore done by a helper thread, in the order in which chores come as far as lanes allow: both of its, which may
    /// be one. As long as those go on it gets its turn, whatever comes behind it. Never waits, and never runs it inside the
    /// call.
    fn submit(&self, lanes: [Lane; 2], chore: Chore) -> ChoreId;

    /// Takes back a chore that has not begun. `None`: it has, and goes on.
    fn recall(&self, id: ChoreId) -> Option<Chore>;
}
