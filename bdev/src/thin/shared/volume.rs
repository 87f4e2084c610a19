//! What a volume is to its channels: the chain of layers behind it, replaced as a whole.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::queue::ArrayQueue;
use uuid::Uuid;

use super::readers::{CLOSED, Reader};
use super::{LayerMap, PUT};
use crate::thin::format::Origin;
use crate::thin::origin::OriginDevice;

/// Clusters of what is kept for a volume that are given out to it at once.
pub(crate) const KEPT: usize = 64;

/// Writes in place take no locks.
const FREE: u8 = 0;
/// They do, but some may be under way that have taken none.
const ASKED: u8 = 1;
/// All that are under way have taken some.
const CAREFUL: u8 = 2;

/// The layers of a volume at one time, the head first. Never changed: a volume gets another one.
pub(crate) struct Chain {
    /// The head, and what it stands on.
    pub(crate) layers: Vec<Arc<LayerMap>>,
    /// How many of the layers count from a cluster on, the fewest first: one that was made smaller, and is larger again, sees no
    /// more of what it stands on.
    pub(crate) ends: Vec<(usize, u64)>,
    /// The bdev outside of the pool that the last of them stands on.
    pub(crate) origin: Option<Origin>,
    /// Bytes that can be addressed.
    pub(crate) bytes: u64,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
    /// The volume's word from which on it holds.
    pub(crate) word: u64,
    /// Whether data of the layers below the head may be copied into the head: not while what was in flight when the head
    /// came to be still writes to the layer below it.
    pub(crate) settled: AtomicBool,
}

impl Chain {
    /// The layers that count for a cluster, but for the first `skip`.
    #[inline]
    pub(crate) fn seen(&self, cluster: u64, skip: usize) -> &[Arc<LayerMap>] {
        let end = self.ends.iter().find(|(_, from)| cluster >= *from).map_or(self.layers.len(), |(count, _)| *count);
        &self.layers[skip.min(end)..end]
    }

    /// How many bytes of the origin count, if what no layer has of a cluster is the origin's; else 0.
    pub(crate) fn origin_end(&self, cluster: u64) -> u64 {
        match self.origin {
            Some(origin) if self.ends.iter().all(|(_, from)| cluster < *from) => origin.bytes,
            _ => 0,
        }
    }

    /// Whether nothing is below the head, from this cluster on.
    pub(crate) fn stands_on_nothing(&self, cluster: u64, cluster_shift: u32) -> bool {
        self.layers.len() == 1 && self.origin_end(cluster) <= cluster << cluster_shift
    }

    /// The layer that writes go to.
    #[inline]
    pub(crate) fn head(&self) -> &Arc<LayerMap> {
        &self.layers[0]
    }
}

/// A volume or a snapshot, as its channels and the engine share it.
pub(crate) struct Volume {
    /// By which it is known.
    pub(crate) uuid: Uuid,
    /// Rises by two with each chain; bit 0: the gate is closed.
    word: AtomicU64,
    /// Whether writes of what is here take locks. Never taken back.
    care: AtomicU8,
    /// How many inflations copy into it; held while something of the head is given up for what lies below.
    inflating: Mutex<u32>,
    chain: Mutex<Arc<Chain>>,
    readers: Mutex<Vec<Arc<Reader>>>,
    /// Nobody may enter any more.
    shut: AtomicBool,
    /// Readers that only keep it from being deleted.
    pub(crate) holds: AtomicU32,
    /// Most clusters that its head may own.
    pub(crate) quota: AtomicU64,
    /// How many it owns when its users are told; 0: they are not.
    pub(crate) warn: AtomicU64,
    /// Clusters that are kept for its head, those that it owns among them.
    pub(crate) reserved: AtomicU64,
    /// The bdev that it stands on outside of the pool, when that is there.
    outside: Mutex<Option<OriginDevice>>,
    /// Some of those that it does not own yet.
    lease: ArrayQueue<u32>,
    /// Somebody found none.
    lacking: AtomicBool,
    /// What its head owns is not known: no quota can be kept to.
    pub(crate) uncounted: AtomicBool,
    /// Requests that wait for space.
    pub(crate) short: AtomicU32,
}

impl Volume {
    /// With its first chain, whose word is put right.
    pub(crate) fn new(uuid: Uuid, chain: Chain, quota: u64, reserved: u64) -> Volume {
        let chain = Mutex::new(Arc::new(Chain { word: 0, ..chain }));
        Volume {
            reserved: AtomicU64::new(reserved),
            outside: Mutex::default(),
            lease: ArrayQueue::new(2 * KEPT),
            lacking: AtomicBool::new(false),
            uncounted: AtomicBool::new(false),
            short: AtomicU32::new(0),
            uuid,
            word: AtomicU64::new(0),
            care: AtomicU8::new(FREE),
            inflating: Mutex::default(),
            chain,
            readers: Mutex::default(),
            shut: AtomicBool::new(false),
            holds: AtomicU32::new(0),
            quota: AtomicU64::new(quota),
            warn: AtomicU64::new(0),
        }
    }

    /// The word that requests go by.
    #[inline]
    pub(crate) const fn word(&self) -> &AtomicU64 {
        &self.word
    }

    /// Whether a write of what is here has to hold the locks of its sub-blocks: since something of the volume was to be moved
    /// to another cluster. Asked after the write's stay has begun.
    #[inline]
    pub(crate) fn wants_care(&self) -> bool {
        self.care.load(Relaxed) != FREE
    }

    /// From now on it has to. Returns whether nobody has asked for that before.
    pub(crate) fn ask_for_care(&self) -> bool {
        self.care.compare_exchange(FREE, ASKED, SeqCst, Relaxed).is_ok()
    }

    /// For the engine: all that began before it was asked for has ended.
    pub(crate) fn all_take_care(&self) {
        self.care.store(CAREFUL, Release);
    }

    /// Whether all writes that are under way hold their locks.
    pub(crate) fn is_in_good_hands(&self) -> bool {
        self.care.load(Acquire) == CAREFUL
    }

    /// Does something that gives up what the head has for what lies below it. `None`: it is being inflated or decoupled, which
    /// counts on what the head has already. Must not wait.
    pub(crate) fn unless_inflating<R>(&self, give_up: impl FnOnce() -> R) -> Option<R> {
        let inflating = lock(&self.inflating);
        (*inflating == 0).then(give_up)
    }

    /// For the engine: an inflation begins. Waits for a few clusters at most that are given up.
    pub(crate) fn begins_inflating(&self) {
        *lock(&self.inflating) += 1;
    }

    /// For the engine: it has ended, and if it was done the chain is another one.
    pub(crate) fn ends_inflating(&self) {
        let mut inflating = lock(&self.inflating);
        *inflating = inflating.saturating_sub(1);
    }

    /// The chain as it is now.
    pub(crate) fn chain(&self) -> Arc<Chain> {
        lock(&self.chain).clone()
    }

    /// The bdev that it stands on outside of the pool, if it is there.
    pub(crate) fn outside(&self) -> Option<OriginDevice> {
        lock(&self.outside).clone()
    }

    /// It is there, or is not, or not needed.
    pub(crate) fn set_outside(&self, device: Option<OriginDevice>) {
        let before = std::mem::replace(&mut *lock(&self.outside), device);
        drop(before);
    }

    /// Lets a reader take part, unless the volume is gone.
    pub(crate) fn enter(&self, reader: Arc<Reader>) -> bool {
        let mut readers = lock(&self.readers);
        let may = !self.shut.load(Relaxed);
        if may {
            readers.push(reader);
        }
        may
    }

    /// Lets nobody in any more, if nobody is in. Returns whether that is so.
    pub(crate) fn shut(&self) -> bool {
        let readers = lock(&self.readers);
        if readers.is_empty() {
            self.shut.store(true, Relaxed);
        }
        readers.is_empty()
    }

    /// A reader that has nothing in flight and will have nothing any more.
    pub(crate) fn leave(&self, reader: &Arc<Reader>) {
        lock(&self.readers).retain(|other| !Arc::ptr_eq(other, reader));
    }

    /// Its readers now.
    pub(crate) fn readers(&self) -> MutexGuard<'_, Vec<Arc<Reader>>> {
        lock(&self.readers)
    }

    /// For the engine, before it fences for readers: nobody is to start anything from then on. Whether all comply is to be
    /// asked until it is so.
    pub(crate) fn close_gate(&self) {
        self.word.fetch_or(CLOSED, SeqCst);
    }

    /// Whether the gate is closed and nobody starts anything.
    pub(crate) fn is_still(&self) -> bool {
        let word = self.word.load(Relaxed);
        word & CLOSED != 0 && self.readers().iter().all(|reader| reader.goes_by(word))
    }

    /// Opens the gate; with another chain, if there is one, which has to have been still for.
    pub(crate) fn open_gate(&self, chain: Option<Chain>) {
        let word = (self.word.load(Relaxed) & !CLOSED) + 2;
        {
            let mut now = lock(&self.chain);
            let old = &**now;
            let next = chain.unwrap_or_else(|| Chain {
                layers: old.layers.clone(),
                ends: old.ends.clone(),
                origin: old.origin,
                bytes: old.bytes,
                read_only: old.read_only,
                word,
                settled: AtomicBool::new(old.settled.load(Acquire)),
            });
            *now = Arc::new(Chain { word, ..next });
        }
        self.word.store(word, PUT);
    }

    /// Whether anybody has something in flight that began in this epoch, which was raised, or before.
    pub(crate) fn is_past(&self, epoch: u64) -> bool {
        self.readers().iter().all(|reader| reader.oldest() > epoch)
    }

    /// How many its head owns.
    pub(crate) fn owned(&self) -> u64 {
        self.chain().head().usage.owned()
    }

    /// Whether all of it is kept for it.
    pub(crate) fn is_thick(&self) -> bool {
        self.reserved.load(Relaxed) >= self.chain().head().clusters()
    }

    /// Whether it has a claim to one more cluster than it owns.
    pub(crate) fn has_reserve(&self, owned: u64) -> bool {
        owned < self.reserved.load(Relaxed)
    }

    /// Whether it takes clusters like anybody else: it has no quota, and nothing is kept for it.
    #[inline]
    pub(crate) fn takes_freely(&self) -> bool {
        self.most_clusters() == 0 && self.reserved.load(Relaxed) == 0
    }

    /// How many clusters it has a claim to beyond those that it owns.
    pub(crate) fn reserve_left(&self, owned: u64) -> u64 {
        self.reserved.load(Relaxed).saturating_sub(owned)
    }

    /// A cluster of those that are kept for it; and whether the engine is to be called for more. Who finds none calls once.
    pub(crate) fn take_kept(&self) -> (Option<u32>, bool) {
        let cluster = self.lease.pop();
        let is_news = if cluster.is_none() { !self.lacking.swap(true, SeqCst) } else { self.kept() < KEPT / 2 };
        (cluster, is_news)
    }

    /// For the engine: takes one back.
    pub(crate) fn take_back(&self) -> Option<u32> {
        self.lease.pop()
    }

    /// For the engine: whether somebody found none, and there is none now.
    pub(crate) fn is_lacking(&self) -> bool {
        self.lease.is_empty() && self.lacking.load(SeqCst)
    }

    /// Gives it one; or gives it back, if there is no room.
    pub(crate) fn keep(&self, cluster: u32) -> Result<(), u32> {
        self.lacking.store(false, Relaxed);
        self.lease.push(cluster)
    }

    /// How many it has at hand.
    pub(crate) fn kept(&self) -> usize {
        self.lease.len()
    }

    /// Most clusters that it may own; 0: no limit.
    pub(crate) fn most_clusters(&self) -> u64 {
        self.quota.load(Acquire)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
