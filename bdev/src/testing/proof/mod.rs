//! Runs of a pool on a medium whose power is cut, with the oracle looking on.
//!
//! [`sweep`] takes one workload and cuts the power at every instant of it, and looks at every medium that may be left
//! ([`Crash::sweep`](super::medium::Crash::sweep)). [`mutants`] leaves out each barrier and each wait and swaps each pair
//! of steps that the pool announces, and says which of that no workload has noticed. [`long_run`] has one pool run and crash
//! and recover again and again, with requests of all kinds under way on several reactors.
//!
//! What is proved is a [`Subject`]; the words are [`Act`]s.

mod act;
mod long;
mod run;
mod survey;
mod sweep;
#[cfg(test)]
mod tests;

pub use act::{Act, Order, workloads};
pub use long::{Length, long_run};
pub use sweep::{Failure, Mutation, Pace, Start, Tally, mutants, steps, sweep};

use super::expect::Id;
use super::floor::{Floor, LaneId};
use super::medium::Medium;

/// A pool that can be proved. Volumes and snapshots go by the oracle's names for them.
pub trait Subject: Sized {
    /// Reactors that channels may be on: 0 up to this.
    const REACTORS: usize;
    /// Sectors that are written together at most, and what everything is a multiple of: a block of the volumes.
    const BLOCK: u64;

    /// Makes an empty pool on a medium.
    fn create(medium: &Medium);

    /// Opens the pool, on a floor with nobody on it.
    ///
    /// # Errors
    /// Why it cannot be opened. A crashed pool can.
    fn open(medium: &Medium, floor: Floor<'static>) -> Result<Self, String>;

    /// The floor that it is on.
    fn floor(&mut self) -> &mut Floor<'static>;

    /// Puts a channel of a volume or snapshot on a reactor.
    fn lane(&mut self, volume: Id, reactor: usize) -> LaneId;

    /// Gives an order, and does not wait. At most one channel-less order about a volume is under way: before it is deleted,
    /// rolled back or resized all its channels are closed.
    fn order(&mut self, order: &Order) -> u64;

    /// What came of an order, once.
    fn answer(&mut self, order: u64) -> Option<Result<(), String>>;

    /// What is there, with sizes in sectors.
    fn volumes(&mut self) -> Vec<(Id, u64)>;

    /// Whatever else has to hold when nothing is under way: what the checker says, and that space equals a walk.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&mut self) -> Result<(), String>;
}
