//! What the reactors' channels of a pool and its engine have in common.
//!
//! The engine is the only one that gives out clusters and takes them back, loads leaves, writes the log and changes what
//! a volume is. Channels look up, put clusters into entries, set and clear bits of sub-blocks, and say what they wait
//! for. They share atomics and bounded queues, and wake each other's reactors; nobody takes a lock on the way of a request.
//!
//! Whoever waits for the engine says so in its [`Station`] and looks once more; the engine changes what is waited for,
//! fences, and wakes the reactors of stations where somebody waits. The other way round it is the flag `attention`.

mod attention;
mod budget;
mod commits;
mod erasures;
mod fences;
mod layer;
mod leaves;
mod locks;
mod readers;
mod station;
mod supply;
mod swap;
mod volume;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crossbeam::queue::{ArrayQueue, SegQueue};
use pollux_core::{Histogram, Wake};
use std::sync::Arc;

use attention::Attention;
pub(crate) use attention::EVERYBODY;
pub(crate) use budget::Budget;
pub(crate) use commits::Commits;
pub(crate) use erasures::Erasures;
pub(crate) use fences::fence_readers;
pub(crate) use layer::{Counts, LayerMap, Place, Usage};
pub(crate) use leaves::{CHUNK, DIRTY_WORDS, DirtyLeaves, Leaf, Leaves};
pub(crate) use locks::SubLocks;
pub(crate) use readers::{CLOSED, EPOCHS, Epoch, Reader, Stay};
pub(crate) use station::{LEASE, Station};
pub(crate) use supply::Supply;
pub(crate) use swap::{Moved, Swap};
pub(crate) use volume::{Chain, KEPT, Volume};

use super::format::{ENTRIES_PER_PAGE, Entry, SUB_BLOCKS};
use super::origin::Left;

/// A store that others act on at once.
const PUT: Ordering = Ordering::SeqCst;
/// Leaves that can be asked for at once; who finds no room asks again.
const LOADS: usize = 1024;

/// Why an entry cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Its leaf is not in memory, and has been asked for.
    Wait,
    /// It has no leaf yet, and none can be had now: for lack of pages on the base, or of memory.
    Space,
    /// Its leaf is damaged.
    Lost,
    /// It is on an origin that the channel knows nothing of.
    Apart,
}

/// Why an entry gets no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// There is none at hand.
    Space,
    /// The volume owns as many as it may.
    Quota,
    /// It has a quota, and nobody knows yet how many it owns: the engine will tell.
    Count,
}

/// A leaf that somebody wants.
pub(crate) struct Wanted {
    /// Of which layer.
    pub(crate) map: Arc<LayerMap>,
    /// Which of its leaves.
    pub(crate) leaf: u64,
}

/// See the module's description.
pub(crate) struct Shared {
    /// log2 of the bytes of a cluster.
    pub(crate) cluster_shift: u32,
    pub(crate) leaves: Leaves,
    pub(crate) locks: SubLocks,
    pub(crate) epoch: Epoch,
    pub(crate) commits: Commits,
    pub(crate) erasures: Erasures,
    /// By reactor.
    pub(crate) stations: Box<[Station]>,
    /// Of all volumes.
    readers: Mutex<Vec<Arc<Reader>>>,
    wanted: ArrayQueue<Wanted>,
    /// For the engine to do, in order.
    pub(crate) swaps: SegQueue<Arc<Swap>>,
    /// Volumes of which writes in place are to take locks.
    pub(crate) careful: SegQueue<Arc<Volume>>,
    /// The engine has something to look at.
    attention: Arc<Attention>,
    /// How long a write waits for space, in nanoseconds.
    pub(crate) patience: AtomicU64,
    /// Memory for what channels remember of long chains.
    pub(crate) composites: Arc<Budget>,
    /// See [`Shared::folds`].
    folds: AtomicU64,
    /// Something is being erased: what is free should be gone soon.
    pub(crate) erasing: AtomicBool,
    /// Somebody has requests in flight that do not wait for leaves, or had until just now: what is read ahead stands in
    /// their way in the base's queue.
    pub(crate) has_company: AtomicBool,
    /// There is no space left that could be handed out.
    pub(crate) full: AtomicBool,
    /// What was told of the last order about held pages: the last batch that is durable, whether they were held.
    pub(crate) held: (AtomicU64, AtomicBool),
    /// Ways to bdevs outside that volumes do not stand on any more.
    pub(crate) left: Arc<Left>,
    /// How much there is, as far as the engine has said.
    pub(crate) supply: Supply,
    /// How long gates were closed; the engine writes it.
    pub(crate) pauses: Histogram,
}

impl Shared {
    /// For a pool on so many reactors, with so many leaves in memory at most.
    pub(crate) fn new(cluster_size: u32, reactors: usize, leaves: usize) -> Shared {
        Shared {
            cluster_shift: cluster_size.trailing_zeros(),
            leaves: Leaves::new(leaves),
            locks: SubLocks::new(),
            epoch: Epoch::new(),
            commits: Commits::new(),
            erasures: Erasures::new(),
            stations: (0..reactors).map(|_| Station::new()).collect(),
            readers: Mutex::default(),
            wanted: ArrayQueue::new(LOADS),
            swaps: SegQueue::new(),
            careful: SegQueue::new(),
            attention: Arc::default(),
            patience: AtomicU64::new(0),
            composites: Arc::default(),
            folds: AtomicU64::new(0),
            erasing: AtomicBool::new(false),
            has_company: AtomicBool::new(false),
            full: AtomicBool::new(false),
            held: (AtomicU64::new(0), AtomicBool::new(false)),
            left: Arc::default(),
            supply: Supply::default(),
            pauses: Histogram::default(),
        }
    }

    /// Lets a reader into a volume; whether it may.
    pub(crate) fn enter(&self, volume: &Volume, reader: &Arc<Reader>) -> bool {
        let entered = volume.enter(reader.clone());
        if entered {
            self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader.clone());
        }
        entered
    }

    /// A reader that has nothing in flight, and will have nothing any more.
    pub(crate) fn leave(&self, volume: &Volume, reader: &Arc<Reader>) {
        volume.leave(reader);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|other| !Arc::ptr_eq(other, reader));
    }

    /// For the engine: whether any channel has a request in flight that does not just wait. Of one that begins or ends at this
    /// moment nobody knows.
    pub(crate) fn is_any_inside(&self) -> bool {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.iter().any(|reader| reader.oldest() != readers::IDLE)
    }

    /// For the engine: whether everything that began in this epoch, which was raised, or before has ended.
    pub(crate) fn is_over(&self, epoch: u64) -> bool {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.iter().all(|reader| reader.oldest() > epoch)
    }

    /// For the engine: whether the epoch may be raised so many times.
    pub(crate) fn has_epochs(&self, raises: u64) -> bool {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.iter().all(|reader| self.epoch.is_near(reader, raises))
    }

    /// log2 of the bytes of a sub-block.
    #[inline]
    pub(crate) const fn sub_shift(&self) -> u32 {
        self.cluster_shift - SUB_BLOCKS.trailing_zeros()
    }

    /// The engine is there, and is woken so.
    pub(crate) fn engine_is(&self, wake: Arc<dyn Wake>) {
        self.attention.engine_is(wake);
    }

    /// The engine is to look.
    pub(crate) fn call_engine(&self) {
        self.attention.call();
    }

    /// Rises when a cluster of a layer that others stand on is about to be free. Who has begun its stay before it looks at
    /// this knows of all that can have left the quarantine.
    #[inline]
    pub(crate) fn folds(&self) -> u64 {
        self.folds.load(Ordering::Acquire)
    }

    /// For the engine, before such a cluster goes into the quarantine and after all layers say what is true without it.
    pub(crate) fn has_folded(&self) {
        self.folds.fetch_add(1, Ordering::AcqRel);
    }

    /// For the engine: whether somebody has called and nobody has asked yet.
    #[inline]
    pub(crate) fn is_called(&self) -> bool {
        self.attention.is_called()
    }

    /// For the engine: whether somebody has called since it was asked last.
    pub(crate) fn was_called(&self) -> bool {
        self.attention.was_called()
    }

    /// For the engine: see [`Attention::await_epoch`].
    pub(crate) fn await_epoch(&self, epoch: u64) -> bool {
        self.attention.await_epoch(epoch)
    }

    /// A reader of one of its volumes, which is to [`enter`](Self::enter).
    pub(crate) fn reader(&self) -> Arc<Reader> {
        Arc::new(Reader::new(self.attention.clone()))
    }

    /// For the engine: something that channels wait for has happened.
    pub(crate) fn tell_waiters(&self) {
        fence(PUT);
        self.stations.iter().for_each(Station::tell);
    }

    /// For the engine: all reactors look at their channels once, also those where nobody waits.
    pub(crate) fn wake_reactors(&self) {
        fence(PUT);
        self.stations.iter().for_each(Station::wake);
    }

    /// Asks the engine for a leaf that is not in memory. Whether anybody has asked; if not, there is no room to ask now.
    pub(crate) fn want(&self, map: &Arc<LayerMap>, leaf: u64) -> bool {
        if map.place(leaf) != Place::Unknown || !map.set(leaf, Place::Unknown, Place::Loading) {
            return true;
        }
        if self.wanted.push(Wanted { map: map.clone(), leaf }).is_err() {
            // Unless it was on its way out, and has been put back meanwhile.
            map.set(leaf, Place::Loading, Place::Unknown);
            return false;
        }
        self.call_engine();
        true
    }

    /// For the engine: the next leaf that somebody wants.
    pub(crate) fn next_wanted(&self) -> Option<Wanted> {
        self.wanted.pop()
    }

    /// Where a cluster's entry is: which leaf of its map, and which entry of that.
    #[inline]
    pub(crate) const fn slot(cluster: u64) -> (u64, usize) {
        (cluster / ENTRIES_PER_PAGE as u64, (cluster % ENTRIES_PER_PAGE as u64) as usize)
    }

    /// A leaf of the head that can be changed, made if there is none.
    pub(crate) fn leaf_to_change(&self, map: &Arc<LayerMap>, leaf: u64) -> Result<u32, Miss> {
        loop {
            match map.place(leaf) {
                Place::At(number) => return Ok(number),
                Place::Lost => return Err(Miss::Lost),
                Place::Unknown | Place::Loading => {
                    self.want(map, leaf);
                    return Err(Miss::Wait);
                }
                Place::Empty => {
                    let (number, is_news) = self.leaves.take_ready();
                    if is_news {
                        self.call_engine();
                    }
                    let number = number.ok_or(Miss::Space)?;
                    self.leaves.name(number, map.id, leaf);
                    if map.set(leaf, Place::Empty, Place::At(number)) {
                        return Ok(number);
                    }
                    self.leaves.return_ready(number);
                }
            }
        }
    }

    /// What a layer says of a cluster.
    #[inline]
    pub(crate) fn entry(&self, map: &Arc<LayerMap>, cluster: u64) -> Result<Entry, Miss> {
        let (leaf, slot) = Self::slot(cluster);
        // A layer below may be smaller than the head.
        if cluster >= map.clusters() {
            return Ok(Entry::EMPTY);
        }
        let page = self.page(map, leaf)?;
        Ok(page.map_or(Entry::EMPTY, |number| self.leaves.get(number).entry(slot)))
    }

    /// A leaf of a layer, by one look: later it may be nowhere, and is still good to whoever has begun his stay. `None`: all of its
    /// entries are empty.
    #[inline]
    pub(crate) fn page(&self, map: &Arc<LayerMap>, leaf: u64) -> Result<Option<u32>, Miss> {
        match map.place(leaf) {
            Place::At(number) => Ok(Some(number)),
            Place::Empty => Ok(None),
            Place::Lost => Err(Miss::Lost),
            Place::Unknown | Place::Loading => {
                self.want(map, leaf);
                Err(Miss::Wait)
            }
        }
    }

    /// The cluster that an entry of a volume's head is on; if it is on none, it is put on one that is kept for the volume,
    /// or on one of the reactor's lease.
    pub(crate) fn claim(
        &self,
        volume: &Volume,
        map: &LayerMap,
        leaf: u32,
        slot: usize,
        reactor: usize,
    ) -> Result<u32, Lack> {
        let page = self.leaves.get(leaf);
        let mut now = page.entry(slot);
        loop {
            if let Some(cluster) = now.cluster() {
                return Ok(cluster);
            }
            let most = volume.most_clusters();
            if most > 0 && volume.uncounted.load(Ordering::Acquire) {
                return Err(Lack::Count);
            }
            // Counted before it is there: so several reactors together keep to the quota, too.
            let owned = map.usage.own_one_more(most).ok_or(Lack::Quota)?;
            let kept = volume.has_reserve(owned);
            let Some(cluster) = (if kept { self.take_kept(volume) } else { self.take_leased(reactor) }) else {
                map.usage.own_one_less();
                return Err(Lack::Space);
            };
            match page.change(slot, now, now.with_cluster(cluster)) {
                Ok(()) => return Ok(cluster),
                // The other one's is as good. There is room: the engine fills only half of it.
                Err(other) => {
                    now = other;
                    map.usage.own_one_less();
                    let back = if kept { volume.keep(cluster) } else { self.stations[reactor].put(cluster) };
                    debug_assert!(back.is_ok(), "there is room");
                }
            }
        }
    }

    /// The same for a volume with neither quota nor reserve: the caller counts. Returns whether the cluster is new.
    #[inline]
    pub(crate) fn claim_freely(&self, leaf: u32, slot: usize, reactor: usize) -> Result<(u32, bool), Lack> {
        let page = self.leaves.get(leaf);
        let mut now = page.entry(slot);
        loop {
            if let Some(cluster) = now.cluster() {
                return Ok((cluster, false));
            }
            let cluster = self.take_leased(reactor).ok_or(Lack::Space)?;
            match page.change(slot, now, now.with_cluster(cluster)) {
                Ok(()) => return Ok((cluster, true)),
                // The other one's is as good. There is room: the engine fills only half of it.
                Err(other) => {
                    now = other;
                    let back = self.stations[reactor].put(cluster);
                    debug_assert!(back.is_ok(), "there is room");
                }
            }
        }
    }

    /// A cluster of a reactor's lease.
    #[inline]
    pub(crate) fn take_leased(&self, reactor: usize) -> Option<u32> {
        let (cluster, is_news) = self.stations[reactor].take();
        if is_news {
            self.call_engine();
        }
        cluster
    }

    /// Has writes in place of a volume take locks from now on; whether nothing is under way any more that took none.
    pub(crate) fn take_care(&self, volume: &Arc<Volume>) -> bool {
        if volume.ask_for_care() {
            self.careful.push(volume.clone());
            self.call_engine();
        }
        volume.is_in_good_hands()
    }

    /// A cluster of those that are kept for a volume.
    pub(crate) fn take_kept(&self, volume: &Volume) -> Option<u32> {
        let (cluster, is_news) = volume.take_kept();
        if is_news {
            self.call_engine();
        }
        cluster
    }

    /// An entry has changed, or the engine is to look at it.
    #[inline]
    pub(crate) fn mark(&self, leaf: u32, slot: usize) {
        if self.leaves.mark(leaf, slot) {
            self.call_engine();
        }
    }

    /// Data has arrived in these sub-blocks of the cluster that `entry` was on; whether it is still.
    pub(crate) fn publish(&self, map: &LayerMap, leaf: u32, slot: usize, on: u32, mask: u16) -> bool {
        let published = self.publish_uncounted(leaf, slot, on, mask);
        if let Some(newly) = published {
            map.usage.add_here(count(newly));
        }
        published.is_some()
    }

    /// The same; the caller counts those that were not here before, which are returned. `None`: the entry is not on the
    /// cluster any more.
    #[inline]
    pub(crate) fn publish_uncounted(&self, leaf: u32, slot: usize, on: u32, mask: u16) -> Option<u16> {
        let page = self.leaves.get(leaf);
        let mut now = page.entry(slot);
        while now.cluster() == Some(on) {
            let next = now.with_here(mask);
            match page.change(slot, now, next) {
                Ok(()) => {
                    if next != now && self.leaves.mark_in(page, leaf, slot) {
                        self.call_engine();
                    }
                    return Some(next.here() & !now.here());
                }
                Err(other) => now = other,
            }
        }
        None
    }

    /// These sub-blocks hold nothing any more: they are zero, or nothing at all if there is nothing below. Returns whether
    /// that has changed anything.
    pub(crate) fn punch(&self, map: &LayerMap, leaf: u32, slot: usize, mask: u16, bottom: bool) -> bool {
        let page = self.leaves.get(leaf);
        let mut now = page.entry(slot);
        loop {
            let next = if bottom { now.with_parent(mask) } else { now.with_zero(mask) };
            if next == now {
                return false;
            }
            match page.change(slot, now, next) {
                Ok(()) => {
                    map.usage.add_here(count(next.here()) - count(now.here()));
                    if next.here() != now.here() {
                        page.pare(slot);
                    }
                    self.mark(leaf, slot);
                    return true;
                }
                Err(other) => now = other,
            }
        }
    }

    /// Nothing is there any more of these clusters, which are of one leaf. Returns how many from the front on are done: the next
    /// one was locked by somebody, who may still put something there or has, or was changed by another one who has not marked
    /// it yet.
    pub(crate) fn punch_run(&self, map: &LayerMap, leaf: u32, first: u64, many: u64, bottom: bool) -> u64 {
        let page = self.leaves.get(leaf);
        let (mut lost, mut changed) = (0, [0u64; DIRTY_WORDS]);
        let slots = Self::slot(first).1..;
        let emptied = |now: Entry| if bottom { now.with_parent(u16::MAX) } else { now.with_zero(u16::MAX) };
        page.begin_stroke();
        for (slot, _) in slots.zip(0..many) {
            let mut now = page.entry(slot);
            loop {
                let next = emptied(now);
                if next == now {
                    break;
                }
                match page.change(slot, now, next) {
                    Ok(()) => {
                        lost += count(now.here());
                        changed[slot / 64] |= 1 << (slot % 64);
                        break;
                    }
                    Err(other) => now = other,
                }
            }
        }
        if changed != [0; DIRTY_WORDS] {
            map.usage.add_here(-lost);
            page.pare_all(&changed);
            if self.leaves.mark_all(leaf, &changed) {
                self.call_engine();
            }
        }
        page.end_stroke();
        if page.is_in_stroke() {
            return 0;
        }
        // Who locks one from now on sees what its entry is. Who had locked one before still has it, or has put something there.
        fence(PUT);
        let is_open = |nth: &u64| {
            self.locks.is_locked(map.id, first + nth, u16::MAX) || {
                let now = page.entry(Self::slot(first + nth).1);
                emptied(now) != now
            }
        };
        (0..many).find(is_open).unwrap_or(many)
    }
}

fn count(mask: u16) -> i64 {
    i64::from(mask.count_ones())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;
    use std::thread;

    use super::*;

    /// One puts something beside what he has found, under a lock; the other takes all of it out without one. What was put there
    /// after it was found and before it was taken out does not stay.
    #[test]
    fn nothing_stays_of_what_a_run_takes_out() {
        const ROUNDS: u32 = 200_000;
        let shared = Arc::new(Shared::new(64 << 10, 1, 64));
        shared.leaves.provide(0);
        let map = Arc::new(LayerMap::new(1, 504, true, Arc::default()));
        let over = Arc::new(AtomicBool::new(false));
        let writer = {
            let (shared, map, over) = (shared.clone(), map.clone(), over.clone());
            thread::spawn(move || {
                let mut copies = 0u32;
                while !over.load(Relaxed) {
                    if shared.locks.try_lock(1, 7, 2) {
                        if shared.leaves.get(0).entry(7).here() & 1 == 1 {
                            copies += u32::from(shared.publish(&map, 0, 7, 9, 2));
                        }
                        shared.locks.unlock(1, 7, 2);
                    }
                }
                copies
            })
        };
        let page = shared.leaves.get(0);
        page.change(7, Entry::EMPTY, Entry::on(9)).expect("nobody has it");
        let mut stayed = None;
        for round in 0..ROUNDS {
            assert!(shared.publish(&map, 0, 7, 9, 1));
            while shared.punch_run(&map, 0, 6, 3, true) < 3 {}
            while shared.locks.is_locked(1, 7, u16::MAX) {
                std::hint::spin_loop();
            }
            if page.entry(7).here() != 0 {
                stayed = Some(round);
                break;
            }
        }
        over.store(true, Relaxed);
        let copies = writer.join().expect("it does not panic");
        assert_eq!(stayed, None, "after {copies} copies");
        assert!(page.is_dirty(7) && !page.is_dirty(6) && map.usage.here() == 0);
    }

    #[test]
    fn several_reactors_together_own_no_more_than_the_quota() {
        const REACTORS: usize = 4;
        for round in 0..20 {
            let shared = Shared::new(64 << 10, REACTORS, 64);
            let map = Arc::new(LayerMap::new(1, 504 * 8, true, Arc::default()));
            for reactor in 0..REACTORS as u32 {
                (0..400).for_each(|at| shared.stations[reactor as usize].put(1 + reactor * 400 + at).unwrap());
            }
            let (layers, ends, settled) = (vec![map.clone()], Vec::new(), AtomicBool::new(true));
            let chain =
                Chain { layers, ends, bytes: (504 * 8) << 16, read_only: false, word: 0, settled, origin: None };
            let volume = Volume::new(uuid::Uuid::from_u128(1), chain, 301, round % 2 * 7);
            (0..7).for_each(|at| volume.keep(5000 + at).unwrap());
            for leaf in 0..REACTORS as u32 {
                shared.leaves.provide(leaf);
            }
            let claim = |reactor: usize| {
                let one = |slot| shared.claim(&volume, &map, reactor as u32, slot, reactor);
                (0..400).filter(|slot| one(*slot).is_ok()).count()
            };
            let claimed: usize = thread::scope(|scope| {
                let all: Vec<_> = (0..REACTORS).map(|reactor| scope.spawn(move || claim(reactor))).collect();
                all.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((claimed, map.usage.owned()), (301, 301));
        }
    }
}
