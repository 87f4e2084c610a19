//! A pool on its base: the log, the trees, which clusters and pages are in use; made, opened, and kept by [`Store`].
//!
//! It knows layers, leaves and entries, and nothing of guests, reactors or what of a map is in their memory: the engine
//! above tells it what is to be true ([`Store::append`]), and asks what is ([`Store::load`]).
//!
//! ```text
//! create, open     on a thread that may wait, by way of Blocking
//! facts            what a pool is called and how it is set, its layers, how it is
//! room             what room there is in the log, of pages and of clusters
//! log              appends batches           replay    what of the log counts, when a pool is opened
//! overlay          what is logged beyond the last checkpoint
//! maps, loads      leaves of layers, from disk
//! space, pages     clusters and pages in use
//! index, trees     the trees of the pool itself
//! checkpoint       writes what is logged into the trees, so that the log can be cut
//! ```
//!
//! Invariants: a batch is durable only when all that completed before it was appended is; batches become durable in order.
//! What a superblock leads to is never overwritten before a later one is durable. Once a barrier or a write has failed
//! nothing more is written until the pool is opened again; leaves can still be loaded.

mod blocking;
mod checkpoint;
mod create;
mod disk;
mod error;
mod facts;
mod index;
mod labels;
mod layers;
mod loads;
mod log;
mod maps;
mod open;
mod overlay;
mod pages;
mod replay;
mod retired;
mod room;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod trees;

use std::sync::Arc;

use crate::thin::format::{BLOCK, Layer, LogSpan, Page, PageHeader, Pointer, Record, Records, Superblock};
use crate::thin::steps::Steps;
use checkpoint::{Checkpoint, CheckpointJob, Facts, Parts, Trouble};
use disk::{Class, Disk, Finished};
use loads::{Around, LoadId, Loads};
use log::Log;
use maps::Cache;
use pollux_core::{Bdev, Cx, Discard, IoError, Next, Op, OpenArgs};
use state::State;
use trees::Mark;

pub use blocking::{Blocking, Wait, Watch};
pub use create::{CreateParams, create, wipe};
pub use error::{Failure, LoadError, StoreError};
pub use labels::{LABELS, PARE_COMMIT, PARE_EPOCH, PARE_LOCK, QUARANTINE_COMMIT, QUARANTINE_EPOCH};
pub use layers::{MOST_BYTES, Weight};
pub use open::{Opened, open, probe};
pub use overlay::LeafBits;

/// Requests of a store that are in flight on its base at most.
const DEPTH: u32 = 64;
/// Memory of what is logged beyond the last checkpoint, from which on there should be a new one.
const OVERLAY: usize = 64 << 20;
/// Pages that a leaf needs which comes into being: its own, and one above.
pub const PAGES_PER_LEAF: u64 = 2;
/// The part of all clusters that is held back for metadata, at most.
const HELD_BACK_PART: u64 = 32;
/// Bytes a second that the base is told of unless somebody has said something else.
const DISCARD_RATE: u64 = 2 << 30;
/// Pages that are left whatever a batch may need.
const SPARE: u64 = 16;

/// Names a batch: they rise by one from 1 on, and become durable in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The batch, and all before it, are durable, and so is what had completed before it was appended.
    Durable(BatchId),
    /// A leaf, as of everything appended; `None`: it is empty.
    Loaded {
        /// Of which layer.
        layer: u64,
        /// Which leaf.
        leaf: u64,
        /// The bits of its entries.
        entries: Result<Option<Box<LeafBits>>, LoadError>,
    },
    /// The base has answered what it was told, or was to write over, with this number.
    Discarded(u64, Result<(), IoError>),
    /// What was appended before [`Store::checkpoint`] is in the trees, and the superblock with this generation is durable.
    Checkpointed(u64),
    /// Nothing more is written; [`Store::failure`] says why. Told once, and again for each batch that is appended later.
    Failed(IoError),
}

/// Whose request has completed.
enum Job {
    LogBarrier,
    LogPiece,
    Load(LoadId, PageHeader),
    SpaceLeaf(u32, PageHeader),
    Discard(u64),
    Checkpoint(CheckpointJob),
}

/// See the module's description. Owned by the engine of a pool, on one reactor.
pub struct Store {
    superblock: Superblock,
    state: State,
    disk: Disk<Job>,
    log: Log,
    /// Records of the next batch.
    told: Records,
    /// A checkpoint is to begin when that has been sent.
    checkpoint_waits: bool,
    cache: Cache,
    loads: Loads,
    discard: Option<Discard>,
    steps: Option<Arc<dyn Steps>>,
    unannounced: bool,
    /// How this start writes the log.
    span: LogSpan,
    checkpoint: Option<Checkpoint>,
    /// What the next checkpoint's superblock is to say.
    facts: Facts,
    failure: Option<Failure>,
    /// Something was asked for since the last poll.
    stirred: bool,
    events: Vec<Event>,
    finished: Vec<Finished<Job>>,
}

impl Store {
    /// A pool that was opened, with a channel of its own to its base. Nothing else writes to the base.
    ///
    /// # Errors
    /// If the base gives no channel.
    pub fn new(opened: Opened, base: &Arc<dyn Bdev>, steps: Option<Arc<dyn Steps>>) -> Result<Store, StoreError> {
        let Opened { superblock, state, head, batch, durable, salt, unannounced, .. } = opened;
        let channel = base.open(OpenArgs { depth: DEPTH, seed: salt })?;
        let discard = base.shape().discard;
        let span = superblock.spans.last().copied().filter(|span| span.salt == salt);
        let span = span.unwrap_or(LogSpan { salt, from: head });
        let geometry = &superblock.geometry;
        let facts = Facts {
            name: superblock.name.clone(),
            overcommit: superblock.overcommit,
            clusters: geometry.clusters,
            thresholds: superblock.thresholds,
            discard_rate: superblock.discard_rate,
        };
        let log = Log::new(superblock.geometry, superblock.pool, salt, superblock.log_from, head, batch, durable);
        Ok(Store {
            superblock,
            state,
            disk: Disk::new(channel, steps.clone()),
            steps,
            log,
            told: Records::default(),
            checkpoint_waits: false,
            cache: Cache::default(),
            loads: Loads::default(),
            discard,
            unannounced,
            span,
            checkpoint: None,
            facts,
            failure: None,
            stirred: true,
            events: Vec::new(),
            finished: Vec::new(),
        })
    }

    /// Enters the reactor.
    ///
    /// # Errors
    /// When its ring has no room.
    pub fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.disk.attach(cx)
    }

    /// Leaves the reactor; the store is idle.
    pub fn detach(&mut self, cx: &mut Cx<'_>) {
        self.disk.detach(cx);
    }

    /// A number for a new layer, never given before.
    pub const fn next_layer(&mut self) -> u64 {
        self.state.next_layer += 1;
        self.state.next_layer - 1
    }

    /// Starts a checkpoint of everything appended so far, unless one runs. [`Event::Checkpointed`] tells when it is done.
    pub fn checkpoint(&mut self) {
        self.relieve();
        if !self.told.is_empty() {
            // It writes whole batches only.
            self.checkpoint_waits = true;
            return;
        }
        if self.checkpoint.is_none() && self.failure.is_none() {
            let parts = self.parts().1;
            let checkpoint = Checkpoint::new(&parts);
            self.checkpoint = Some(checkpoint);
            self.stirred = true;
        }
    }

    /// Makes durable what has completed so far, then these records as one batch: all of them or none. Without records it
    /// is a barrier alone. Of a layer, what the catalog alone knows (its map and what it owns) is left out.
    ///
    /// # Panics
    /// If they are more than there is room for, or name what does not exist.
    pub fn append(&mut self, records: &[Record]) -> BatchId {
        self.tell(records);
        self.send()
    }

    /// The same in parts: these records are among those of the batch that [`Store::send`] makes. Until then no checkpoint
    /// begins.
    ///
    /// # Panics
    /// If they name what does not exist.
    pub fn tell(&mut self, records: &[Record]) {
        if self.failure.is_some() {
            return;
        }
        assert!(records.is_empty() || !self.unannounced, "who appends has asked how much room there is");
        for run in records.chunk_by(Record::is_of_leaf_of) {
            if let Err((what, record)) = self.state.take(run) {
                panic!("{what}, but a record says so: {record:?}");
            }
            run.iter().for_each(|record| match record {
                Record::Layer(layer) => {
                    let plain = Layer { levels: 0, root: Pointer::NONE, owned: 0, here: 0, ..(**layer).clone() };
                    self.told.push(&Record::Layer(Box::new(plain)));
                }
                record => self.told.push(record),
            });
        }
    }

    /// Sends the batch off that holds all that was told since the last one.
    ///
    /// # Panics
    /// If it is more than there is room for.
    pub fn send(&mut self) -> BatchId {
        let records = std::mem::take(&mut self.told).into_bytes();
        if let Some(failure) = &self.failure {
            self.events.push(Event::Failed(failure.error));
            return self.log.refuse();
        }
        let batch = self.log.append(records);
        if std::mem::take(&mut self.checkpoint_waits) {
            self.checkpoint();
        }
        batch
    }

    /// Reads a leaf of a layer: [`Event::Loaded`].
    pub fn load(&mut self, layer: u64, leaf: u64) {
        let (loads, mut around) = self.around();
        loads.start(layer, leaf, &mut around);
    }

    fn around(&mut self) -> (&mut Loads, Around<'_>) {
        let around = Around {
            state: &self.state,
            cache: &mut self.cache,
            disk: &mut self.disk,
            events: &mut self.events,
            pool: self.superblock.pool,
            generation: self.superblock.generation,
        };
        (&mut self.loads, around)
    }

    /// Whether the base can be told that nobody needs something.
    #[must_use]
    pub const fn takes_discards(&self) -> bool {
        self.discard.is_some()
    }

    /// How many clusters the log had freed when the pool was opened, each as often as it was.
    #[must_use]
    pub fn freed(&self) -> u64 {
        self.state.freed.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Clusters that the log had freed when the pool was opened: nobody knows whether the base has been told of those that still
    /// are.
    pub fn take_freed(&mut self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.state.freed)
    }

    /// What the base can be told of: multiples of so many bytes, from this byte on.
    #[must_use]
    pub fn discard_grain(&self) -> (u64, u64) {
        let (grain, skew) = self.discard.map_or((1, 0), |discard| (discard.granularity, discard.alignment));
        let grain = u64::from(grain).max(BLOCK as u64).next_multiple_of(BLOCK as u64);
        (grain, u64::from(skew).next_multiple_of(BLOCK as u64) % grain)
    }

    /// Tells the base that nobody needs these bytes, which are whole blocks: [`Event::Discarded`] with this number.
    pub fn discard(&mut self, id: u64, offset: u64, len: u64) {
        if !self.takes_discards() || self.failure.is_some() {
            return self.events.push(Event::Discarded(id, Ok(())));
        }
        debug_assert!((offset | len).is_multiple_of(BLOCK as u64));
        self.disk.give_back(Job::Discard(id), Op::Discard, offset / BLOCK as u64, len / BLOCK as u64);
    }

    /// Writes zeroes over these bytes, which are whole blocks that nobody needs and that the base may give back; it is told as
    /// of a discard.
    pub fn overwrite(&mut self, id: u64, offset: u64, len: u64) {
        if let Some(failure) = &self.failure {
            return self.events.push(Event::Discarded(id, Err(failure.error)));
        }
        self.disk.give_back(Job::Discard(id), Op::WriteZeroes, offset / BLOCK as u64, len / BLOCK as u64);
    }

    /// Whether to wait at a step that no request stands for: a test may have it otherwise.
    #[must_use]
    pub fn waits(&self, label: &'static str) -> bool {
        self.steps.as_ref().is_none_or(|steps| steps.waits(label))
    }

    /// Looks what has completed, and goes on; returns how much that was.
    pub fn poll(&mut self, cx: &mut Cx<'_>, events: &mut Vec<Event>) -> u32 {
        let mut finished = std::mem::take(&mut self.finished);
        self.disk.poll(cx, &mut finished);
        let mut work = finished.len();
        finished.drain(..).for_each(|finished| self.ended(finished));
        self.finished = finished;
        self.stirred = false;
        self.state.retired.advance();
        self.advance();
        self.disk.kick(cx);
        work += self.events.len();
        events.append(&mut self.events);
        u32::try_from(work).unwrap_or(u32::MAX)
    }

    fn parts(&mut self) -> (&mut Option<Checkpoint>, Parts<'_>) {
        let mark = Mark { pool: self.superblock.pool, generation: self.superblock.generation + 1 };
        let parts = Parts {
            state: &mut self.state,
            cache: &mut self.cache,
            disk: &mut self.disk,
            log: &self.log,
            superblock: &self.superblock,
            facts: &self.facts,
            span: self.span,
            mark,
        };
        (&mut self.checkpoint, parts)
    }

    fn advance_checkpoint(&mut self) {
        let (Some(checkpoint), mut parts) = self.parts() else { return };
        let advanced = checkpoint.advance(&mut parts);
        self.stirred |= checkpoint.has_more();
        match advanced {
            Ok(None) => {}
            Ok(Some(superblock)) => self.checkpointed(superblock),
            Err(trouble) => self.checkpoint_failed(trouble),
        }
    }

    fn checkpointed(&mut self, superblock: Superblock) {
        self.log.cut(superblock.log_from);
        self.events.push(Event::Checkpointed(superblock.generation));
        self.superblock = superblock;
        self.unannounced = false;
        if let Some(checkpoint) = self.checkpoint.take() {
            checkpoint.settle(&mut self.state);
        }
    }

    fn checkpoint_failed(&mut self, Trouble { error, what }: Trouble) {
        self.fail(error, format!("a checkpoint failed: {what}"));
    }

    fn checkpoint_job(&mut self, job: CheckpointJob, bytes: Result<Option<Box<[u8; BLOCK]>>, IoError>) {
        let (Some(checkpoint), mut parts) = self.parts() else { return };
        if let (CheckpointJob::Zeroes, Err(IoError::NoSpace)) = (job, &bytes) {
            return checkpoint.extent_failed();
        }
        let result =
            bytes.map_err(|error| Trouble::of(job, error)).and_then(|bytes| checkpoint.done(job, bytes, &mut parts));
        if let Err(trouble) = result {
            self.checkpoint_failed(trouble);
        }
    }

    fn advance(&mut self) {
        let mut durable = Vec::new();
        if self.failure.is_none() {
            self.log.advance(&mut self.disk, &mut durable);
        }
        self.events.extend(durable.into_iter().map(Event::Durable));
        while let Some(leaf) = self.state.space.wanted() {
            self.read_space(leaf);
        }
        if self.unannounced {
            self.checkpoint();
        }
        self.relieve();
        if self.failure.is_none() {
            self.advance_checkpoint();
        }
    }

    /// Has a leaf of the clusters in use read.
    fn read_space(&mut self, leaf: u32) {
        let pointer = self.state.space_index.leaf(u64::from(leaf));
        if !self.state.space.is_stored(leaf) {
            let filled = self.state.space.fill(leaf, None);
            return filled.unwrap_or_else(|what| self.fail(IoError::Medium, what));
        }
        let mark = Mark { pool: self.superblock.pool, generation: pointer.generation };
        let header = mark.header(space::page_id(leaf), pointer.block);
        self.disk.read(Job::SpaceLeaf(leaf, header), Class::Urgent, pointer.block);
    }

    fn ended(&mut self, Finished { job, result, bytes }: Finished<Job>) {
        match job {
            Job::LogBarrier => match result {
                Ok(()) => self.log.barrier_done(),
                Err(error) => self.fail(error, "the barrier before a batch of the log failed".into()),
            },
            Job::LogPiece => match result {
                Ok(()) => {
                    let mut durable = Vec::new();
                    self.log.piece_done(&mut durable);
                    self.events.extend(durable.into_iter().map(Event::Durable));
                }
                Err(error) => self.fail(error, "a write to the log failed".into()),
            },
            Job::Load(id, header) => {
                let (loads, mut around) = self.around();
                loads.read_done(id, header, read(bytes, result), &mut around);
            }
            Job::SpaceLeaf(leaf, header) => self.space_read(leaf, &header, read(bytes, result)),
            Job::Checkpoint(job) => self.checkpoint_job(job, result.map(|()| bytes)),
            Job::Discard(id) => self.events.push(Event::Discarded(id, result)),
        }
    }

    fn space_read(&mut self, leaf: u32, header: &PageHeader, bytes: Result<Box<[u8; BLOCK]>, IoError>) {
        let page = match bytes {
            Ok(bytes) => Page::open(bytes, header).map_err(|what| (IoError::Medium, index::page_text(header, what))),
            Err(error) => Err((error, index::page_text(header, "it cannot be read"))),
        };
        let filled =
            page.and_then(|page| self.state.space.fill(leaf, Some(&page)).map_err(|what| (IoError::Medium, what)));
        if let Err((error, what)) = filled {
            self.fail(error, what);
        }
    }

    /// Nothing more is written.
    fn fail(&mut self, error: IoError, what: String) {
        tracing::error!(pool = %self.superblock.name, %error, what, "the pool is read-only from now on");
        if self.failure.is_none() {
            self.failure = Some(Failure { error, what });
            self.log.stop();
            self.checkpoint = None;
            self.events.push(Event::Failed(error));
        }
    }

    /// When to poll.
    #[must_use]
    pub fn next(&self) -> Next {
        let has_work = self.stirred || !self.state.retired.is_empty() || self.log.is_ready();
        if has_work || !self.events.is_empty() { Next::Now } else { self.disk.next() }
    }

    /// Whether nothing is under way and nothing has to be told.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let settled = self.checkpoint.is_none() && (!self.unannounced || self.failure.is_some());
        settled && self.events.is_empty() && self.log.is_idle() && self.disk.is_idle() && self.loads.is_idle()
    }
}

/// The block that a read was for.
fn read(bytes: Option<Box<[u8; BLOCK]>>, result: Result<(), IoError>) -> Result<Box<[u8; BLOCK]>, IoError> {
    result.map(|()| bytes.expect("a read that was done has read something"))
}
