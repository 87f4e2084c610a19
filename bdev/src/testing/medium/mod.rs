//! A simulated disk with a volatile write cache, whose power can be cut at any instant.
//!
//! One thread, and everything from one seed: equal calls give equal runs. A request never completes inside `submit`; in
//! which order requests take effect and complete, over all channels, is drawn by the seed ([`Order::Seeded`]), or is that
//! of their submission, each at the next poll of its channel ([`Order::InOrder`]).
//!
//! A change is visible when it has completed, and may be before, in parts. It is durable when it has completed with FUA, or
//! when a flush has completed that was submitted after it had completed. [`Medium::crash`] makes a new medium of what is
//! durable and a chosen part of the rest; of two changes to one sector the one that the medium shows wins, and what is
//! durable is never overwritten by something older.
//!
//! [`Medium::stop_after`] freezes the medium at an instant: changes and flushes neither happen nor complete any more,
//! reads are still answered, so that who has been told that his data are safe can say so, before the crash.
//!
//! It holds its users to their duties (ranges, alignment, depth, tags, data that stay as they are in flight) and panics
//! where they break them.

mod cache;
mod channel;
mod crash;
mod flight;
mod mutations;
mod power;
mod rules;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_core::{Bdev, Channel, Discard, Extent, IoError, IoFlags, Op, OpenArgs, OpenError, Shape};

pub use cache::Unsynced;
pub use crash::Crash;
pub use mutations::{Mutation, Seen};
pub use power::Off;
pub use rules::{Effect, Rule};

use cache::Cache;
use channel::MediumChannel;
use state::State;
use store::Store;

use crate::thin::steps::Steps;

/// What a medium is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity in bytes.
    pub bytes: u64,
    /// Unit of addressing: 512 or 4096.
    pub block_size: u32,
    /// What it says that it writes at once.
    pub physical_block_size: u32,
    /// What it does write at once: a power cut tears changes at multiples of it.
    pub tear: u32,
    /// Granularity of discards; `None`: it does not discard.
    pub discard: Option<u32>,
    /// What was discarded reads as something that nobody has written, else as zeroes.
    pub garbles: bool,
    /// Most requests of a channel.
    pub depth: u32,
}

impl Geometry {
    /// A disk of 512-byte blocks that tears between any two of them.
    #[must_use]
    pub const fn with_512(bytes: u64) -> Self {
        Geometry {
            bytes,
            block_size: 512,
            physical_block_size: 512,
            tear: 512,
            discard: Some(4096),
            garbles: false,
            depth: crate::DEFAULT_DEPTH,
        }
    }

    /// A disk of 4096-byte blocks that it writes as a whole.
    #[must_use]
    pub const fn with_4096(bytes: u64) -> Self {
        Geometry { block_size: 4096, physical_block_size: 4096, tear: 4096, ..Geometry::with_512(bytes) }
    }
}

/// In which order requests take effect and complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In the order of their submission, each at the next poll of its channel.
    InOrder,
    /// As the seed draws it, over all channels.
    Seeded(u64),
}

/// What happened to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It was submitted.
    Submitted,
    /// It has completed.
    Completed(Result<(), IoError>),
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// How many instants there were with it.
    pub instant: u64,
    /// On which channel: they are numbered from 1, as they were opened.
    pub channel: u32,
    /// What was asked for.
    pub op: Op,
    /// How.
    pub flags: IoFlags,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The step it was submitted as.
    pub label: Option<&'static str>,
    /// What happened.
    pub what: Happened,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct Medium {
    state: Arc<Mutex<State>>,
}

impl Medium {
    /// An empty disk.
    ///
    /// # Panics
    /// If the geometry makes no sense.
    #[must_use]
    pub fn new(geometry: Geometry, order: Order) -> Self {
        let block = geometry.block_size;
        assert!(block == 512 || block == 4096, "blocks of {block} bytes");
        assert!(geometry.bytes.is_multiple_of(u64::from(block)), "whole blocks");
        assert!(geometry.physical_block_size.is_power_of_two() && geometry.physical_block_size >= block);
        assert!(geometry.tear.is_multiple_of(512) && geometry.tear > 0, "sectors are never torn");
        assert!(geometry.discard.is_none_or(|granularity| granularity.is_multiple_of(block)));
        Self::holding(geometry, order, Store::default())
    }

    fn holding(geometry: Geometry, order: Order, store: Store) -> Self {
        Medium { state: Arc::new(Mutex::new(State::new(geometry, order, Cache::holding(store)))) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is like.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    /// It has become larger.
    ///
    /// # Panics
    /// If it has not.
    pub fn grow(&self, bytes: u64) {
        let geometry = &mut self.state().geometry;
        assert!(bytes >= geometry.bytes && bytes.is_multiple_of(u64::from(geometry.block_size)));
        geometry.bytes = bytes;
    }

    /// It takes no more space than so many bytes: writes to what is not allocated then fail with
    /// [`IoError::NoSpace`].
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.state().space = bytes;
    }

    /// How much space it takes: what was written, in pages of 4096 bytes, and not given back.
    #[must_use]
    pub fn space(&self) -> u64 {
        self.state().cache.visible.space()
    }

    /// Lets writers change their data while they are in flight, as a guest may. What was there at the submission counts.
    pub fn be_lenient(&self) {
        self.state().lenient = true;
    }

    /// What it shows, past all channels.
    ///
    /// # Panics
    /// If the range is not inside.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let state = self.state();
        assert!(offset + len as u64 <= state.geometry.bytes, "{len} bytes at {offset} are not inside");
        let mut bytes = vec![0; len];
        state.cache.visible.read(offset, &mut bytes);
        bytes
    }

    /// A number that says what it shows: two media with the same one hold the same.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.state().cache.visible.digest()
    }

    /// Damages it past all channels: durable at once. Nothing is unsynced or in flight.
    ///
    /// # Panics
    /// If the range is not inside, or something is unsynced.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        assert!(offset + bytes.len() as u64 <= state.geometry.bytes, "{} bytes at {offset}", bytes.len());
        assert!(state.flights.is_empty() && state.cache.unsynced().is_empty(), "what is unsynced would hide it");
        let mut store = state.cache.visible.clone();
        store.write(offset, bytes);
        state.cache.replace(store);
    }

    /// A request by which this rule goes goes wrong. Of several rules that fit the first has it.
    pub fn rule(&self, rule: Rule) {
        self.state().rules.add(rule);
    }

    /// Nothing goes wrong any more.
    pub fn clear_rules(&self) {
        self.state().rules.clear();
    }

    /// How many requests have gone wrong.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.state().rules.hits()
    }

    /// Lets go on what [`Effect::Hold`] holds.
    pub fn release(&self) {
        self.state().release();
    }

    /// The same for what is of this kind.
    pub fn release_op(&self, op: Op) {
        self.state().release_op(op);
    }

    /// Breaks a promise.
    pub fn spoil(&self, mutation: Mutation) {
        match mutation {
            Mutation::DropFlush(label) => self.drop_flush(label),
            Mutation::DropFua(label) => self.drop_fua(label),
            Mutation::DropWait(label) => self.drop_wait(label),
            Mutation::Swap(before, after) => self.swap(before, after),
        }
    }

    /// Flushes that are this step are acknowledged and do nothing.
    pub fn drop_flush(&self, label: &'static str) {
        self.state().mutations.drop_flush.insert(label);
    }

    /// Changes with FUA that are this step are acknowledged like those without.
    pub fn drop_fua(&self, label: &'static str) {
        self.state().mutations.drop_fua.insert(label);
    }

    /// The engine is told not to wait at this step.
    pub fn drop_wait(&self, label: &'static str) {
        self.state().mutations.drop_wait.insert(label);
    }

    /// Changes of the step `after` may become durable before those of the step `before`, although these were durable when
    /// they were submitted: a crash before they are durable may keep them and undo those. `None` is what has no label: what
    /// guests write. (Of that only what the last flush before has made durable may be undone.)
    pub fn swap(&self, before: Option<&'static str>, after: Option<&'static str>) {
        self.state().cache.swap(before, after);
    }

    /// The steps named so far.
    #[must_use]
    pub fn steps(&self) -> BTreeMap<&'static str, Seen> {
        self.state().mutations.seen().clone()
    }

    /// The process that used it is killed, and the power stays on: of what is in flight some happens and some does not, what
    /// is visible stays visible, and what is not durable can still be lost. The channels are to be dropped.
    pub fn kill(&self) {
        self.state().kill();
    }

    /// How many instants there were: submissions and completions of changes and flushes.
    #[must_use]
    pub fn instants(&self) -> u64 {
        self.state().power.instants()
    }

    /// The power goes off after so many instants (counted from the beginning): from then on changes and flushes neither
    /// happen nor complete.
    pub fn stop_after(&self, instants: u64) {
        self.state().power.stop_after(instants);
    }

    /// What becomes of changes and flushes when the power is off.
    pub fn when_off(&self, off: Off) {
        self.state().power.off = off;
    }

    /// Whether there is power.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.state().power.is_on()
    }

    /// How many reads were submitted.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// The last few thousand things that happened.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.state().events.iter().copied().collect()
    }

    /// The changes that a crash may undo now.
    #[must_use]
    pub fn unsynced(&self) -> Vec<Unsynced> {
        self.state().cache.unsynced()
    }

    /// The medium after a power cut now: a new one, without rules, mutations and a stop. This one stays as it is.
    #[must_use]
    pub fn crash(&self, choice: Crash, order: Order) -> Medium {
        let state = self.state();
        let store = state.cache.crash(choice, u64::from(state.geometry.tear));
        Medium::holding(state.geometry, order, store)
    }

    /// The media after a power cut now that differ, of all that [`Crash::sweep`] has.
    pub fn crashes(&self, seeds: u64, order: Order) -> impl Iterator<Item = (Crash, Medium)> + use<> {
        let this = self.clone();
        let mut seen = BTreeSet::new();
        Crash::sweep(self.unsynced().len(), seeds).filter_map(move |choice| {
            let state = this.state();
            let tear = u64::from(state.geometry.tear);
            let crash = || (choice, Medium::holding(state.geometry, order, state.cache.crash(choice, tear)));
            seen.insert(state.cache.cover(choice, tear)).then(crash)
        })
    }
}

impl Steps for Medium {
    fn step(&self, label: &'static str) {
        self.state().mutations.step(label);
    }

    fn waits(&self, label: &'static str) -> bool {
        self.state().mutations.waits(label)
    }
}

impl Bdev for Medium {
    fn shape(&self) -> Shape {
        let geometry = self.geometry();
        let discard = |granularity| Discard { granularity, alignment: 0, reads_zero: !geometry.garbles };
        Shape {
            block_size: geometry.block_size,
            physical_block_size: geometry.physical_block_size,
            num_blocks: geometry.bytes / u64::from(geometry.block_size),
            read_only: false,
            volatile_cache: true,
            discard: geometry.discard.map(discard),
            optimal_io: 0,
            rotation_rate: 1,
            atomic_write: None,
        }
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.state().cache.visible.extent(offset, len)
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let depth = args.depth.clamp(1, self.geometry().depth);
        Ok(Box::new(MediumChannel::new(self, depth)))
    }
}
