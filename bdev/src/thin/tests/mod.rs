//! A pool on a simulated medium: channels on several reactors and the engine, in one thread.
//!
//! ```text
//! plain     what a pool does                          sweep     every short workload, cut at every instant
//! world     a pool that a test drives                 driver    the same, and an oracle that is told of it
//! judge     whether a medium after a crash is as it may be     storm   long runs from seeds
//! prove     a pool as `testing::proof` wants it       long      long runs over it, and promises broken on purpose
//! folding   deleted snapshots                         mutations promises broken on purpose
//! faults    a base that fails, lies or forgets
//! ```

mod driver;
mod faults;
mod folding;
mod judge;
mod long;
mod mutations;
mod plain;
mod prove;
mod space;
mod storm;
mod sweep;
mod world;
