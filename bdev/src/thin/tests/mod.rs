//! A pool on a simulated medium: channels on several reactors and the engine, in one thread.
//!
//! ```text
//! world     a pool that a test drives                 plain     what a pool does
//! driver    the same, and an oracle that is told      folding   deleted snapshots
//! judge     whether a medium after a crash is as      sweep     every short workload, cut at every instant
//!           it may be                                 storm     long runs from seeds
//! inflate   volumes that stand on less, or on something else
//! shrink    volumes that become smaller               whole_pool its name and its size
//! faults    a base that fails, lies or forgets        mutations promises broken on purpose
//! scrub     the checker on a pool that is used        origin    volumes that stand on a bdev outside
//! orderings steps in the wrong order               crafted   media that hold anything
//! reserves  what is kept for volumes, and what they may own
//! atomic    writes that count as a whole              restore   what goes without moving data, and what is erased
//! failing   every request that reaches the base fails, in every way
//! parents   volumes that stand on something else
//! erase     flushes that end an erasure
//! races     things that meet at a bad moment          retries   a base that fails and is well again
//! bursts    what goes the short way together          waiting   who waits for what
//! ```
//!
//! An order that pools learn gets a method of [`driver::Driver`], a line of `storm::orders::ORDERS`, and one of
//! `sweep::STEPS`. If it changes what a volume may hold the oracle learns of it first ([`crate::testing::expect`]).

mod atomic;
mod bursts;
mod crafted;
mod discards;
mod driver;
mod erase;
mod failing;
mod faults;
mod folding;
mod inflate;
mod judge;
mod mutations;
mod orderings;
mod origin;
mod parents;
mod plain;
mod races;
mod reserves;
mod restore;
mod retries;
mod scrub;
mod shrink;
mod space;
mod storm;
mod sweep;
mod waiting;
mod whole_pool;
mod world;
