//! What is passed down to the base: that nobody needs some clusters, or sub-blocks of clusters that stay in use, any more.
//!
//! All of it has been through the quarantine: that nobody needs it is durable, and who may have looked at the entries before
//! has ended.
//!
//! - **Clusters** are free when they leave the quarantine. Those that have not been given out again by the time that they are
//!   told of are held back meanwhile, neighbours together.
//! - **Sub-blocks** are told of with their locks held, so that who writes there again waits until the base has answered; and
//!   only when nothing of the entry is newer than what is durable. Folds and removals, which give clusters of one layer to
//!   another, stand still meanwhile.
//!
//! Few requests are in flight at a time, and so many bytes a second: a request counts as [`LEAST`] at least, and is no more than
//! a second's worth beyond that. What waits costs
//! nobody anything: it can be used all the same. A pool that is closed tells without that limit, for some seconds, and what is
//! too much to be remembered of sub-blocks is left out.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{IoError, Next};

use super::Engine;
use super::erasing::Round;
use super::space::{Freed, Pared, runs};
use super::untold::Untold;
use crate::thin::format::{LayerKind, SUB_BLOCKS};
use crate::thin::shared::{Place, Shared};
use crate::thin::store::{PARE_COMMIT, PARE_LOCK, Store};

/// Bytes of one request at most.
const MOST: u64 = 8 << 20;
/// Bytes that a request counts as at least.
const LEAST: u64 = 256 << 10;
/// Requests in flight.
const IN_FLIGHT: usize = 2;
/// What has not been used of the last so many nanoseconds can be used at once.
const BURST_NS: u64 = 100_000_000;
/// After so long it is looked again whether what is not durable yet is.
const LOOK_NS: u64 = 10_000_000;
/// A pool that is closed tells the base of what is left for so long.
const LEAVING_NS: u64 = 5_000_000_000;
/// Clusters of which sub-blocks wait, at most.
const MOST_PARED: usize = 1 << 16;
/// What is looked at in one pass.
const A_PASS: u32 = 16;

/// What the base has been told of and has not answered.
enum Told {
    Clusters {
        first: u32,
        count: u32,
        /// They are written over, not discarded.
        erased: bool,
    },
    /// Sub-blocks of a layer's cluster, locked unless a test has it otherwise.
    Parts { layer: u64, cluster: u64, locked: u16 },
}

/// What is known of a cluster that has lost sub-blocks.
#[derive(Clone, Copy)]
struct Loss {
    /// The last commit that has taken something of its entry.
    taken: u64,
    /// The last one that has taken sub-blocks of it away.
    lost: u64,
    /// Nothing of the cluster is there any more.
    gone: bool,
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Telling {
    untold: Untold,
    /// Free, and not discarded since they were: they lay in leases when it was their turn, or the base has refused.
    left_out: Untold,
    /// What the round has to write over that is under way.
    doomed: Untold,
    pub(super) round: Option<Round>,
    pared: VecDeque<Pared>,
    /// By layer and cluster, of those that are in here or in quarantine, each once.
    losses: HashMap<(u64, u64), Loss>,
    told: HashMap<u64, Told>,
    last: u64,
    /// Since when the pool is being closed.
    leaving_since: Option<u64>,
    /// When the next one may be sent, and when to look again at what could not be.
    next: u64,
    look: u64,
}

impl Telling {
    /// Bytes of clusters that wait or are in flight, and clusters of which sub-blocks do.
    pub(super) fn waiting(&self) -> (u64, u64) {
        (self.untold.len() + self.doomed.len() + self.held_back(), self.losses.len() as u64)
    }

    /// Clusters that are held back while the base is told of them.
    pub(super) fn held_back(&self) -> u64 {
        let in_flight = self.told.values().map(|told| match told {
            Told::Clusters { count, .. } => u64::from(*count),
            Told::Parts { .. } => 0,
        });
        in_flight.sum()
    }

    /// Whether a round writes over what is doomed.
    fn is_overwriting(&self) -> bool {
        self.round.as_ref().is_some_and(Round::is_overwriting)
    }

    /// Whether it has written over all of it.
    pub(super) fn has_overwritten(&self) -> bool {
        self.doomed.len() == 0 && self.held_back() == 0
    }

    /// All that is free is doomed.
    pub(super) fn doom(&mut self) {
        self.doomed.append(std::mem::take(&mut self.untold));
        self.doomed.append(std::mem::take(&mut self.left_out));
    }

    /// Takes those that are doomed out of clusters that are about to be given out: they are free again when they have been
    /// written over.
    pub(super) fn launder(&mut self, clusters: &mut Vec<u32>, store: &mut Store) {
        if self.doomed.len() > 0 {
            let doomed: Vec<u32> = clusters.extract_if(.., |cluster| self.doomed.remove(*cluster)).collect();
            runs(doomed).into_iter().for_each(|(first, count)| self.overwrite(first, count, store));
        }
    }

    /// Writes zeroes over clusters that are nobody's.
    fn overwrite(&mut self, first: u32, count: u32, store: &mut Store) {
        let size = u64::from(store.geometry().cluster_size);
        let id = self.send(Told::Clusters { first, count, erased: true });
        store.overwrite(id, u64::from(first) * size, u64::from(count) * size);
    }

    /// Those of which the base can be told.
    fn next_of(&mut self) -> &mut Untold {
        if self.is_overwriting() { &mut self.doomed } else { &mut self.untold }
    }

    /// Whether sub-blocks are in flight: clusters stay with their layers.
    pub(super) fn is_paring(&self) -> bool {
        self.told.values().any(|told| matches!(told, Told::Parts { .. }))
    }

    /// A commit takes an entry; `lost`: since the last one sub-blocks of it were taken away, and others are still there. Returns
    /// whether the cluster is to go through the quarantine for that.
    #[inline]
    pub(super) fn gathered(&mut self, layer: u64, cluster: u64, number: u64, lost: bool) -> Option<Pared> {
        // As it mostly is, for each entry of a commit.
        if self.losses.is_empty() && !lost {
            return None;
        }
        self.remember(layer, cluster, number, lost)
    }

    fn remember(&mut self, layer: u64, cluster: u64, number: u64, lost: bool) -> Option<Pared> {
        if let Some(loss) = self.losses.get_mut(&(layer, cluster)) {
            // It is on its way already; when it comes it is seen that it has lost more.
            *loss = Loss { taken: number, lost: if lost { number } else { loss.lost }, gone: loss.gone && !lost };
            return None;
        }
        if !lost || self.losses.len() >= MOST_PARED {
            return None;
        }
        self.losses.insert((layer, cluster), Loss { taken: number, lost: number, gone: false });
        Some(Pared { layer, cluster, number })
    }

    /// Nothing of a cluster is there any more.
    pub(super) fn forget(&mut self, layer: u64, cluster: u64) {
        if !self.losses.is_empty()
            && let Some(loss) = self.losses.get_mut(&(layer, cluster))
        {
            loss.gone = true;
        }
    }

    /// These clusters are free; `takes`: the base takes discards.
    pub(super) fn put(&mut self, first: u32, count: u32, takes: bool) {
        if takes { self.untold.put(first, count) } else { self.left_out.put(first, count) }
    }

    /// These sub-blocks of a cluster that is in use have left the quarantine.
    pub(super) fn put_pared(&mut self, pared: Pared) {
        self.pared.push_back(pared);
    }

    /// When there is something to do; `hurries`: whatever it costs.
    pub(super) fn wakes(&self, now: u64, hurries: bool) -> Next {
        if !self.waits() || self.told.len() >= IN_FLIGHT {
            return Next::Idle;
        }
        let at = if hurries { self.look } else { self.next.max(self.look) };
        if at <= now { Next::Now } else { Next::At(at) }
    }

    /// Whether there is something of which the base can be told.
    fn waits(&self) -> bool {
        let clusters = if self.is_overwriting() { &self.doomed } else { &self.untold };
        clusters.len() > 0 || !self.pared.is_empty()
    }

    /// The base still has what was there.
    fn refused(&mut self, first: u32, count: u32, erased: bool) {
        match &mut self.round {
            Some(round) if !erased && round.is_overwriting() => self.doomed.put(first, count),
            Some(round) if erased => {
                round.fails();
                self.left_out.put(first, count);
            }
            _ => self.left_out.put(first, count),
        }
    }

    fn send(&mut self, told: Told) -> u64 {
        self.last += 1;
        self.told.insert(self.last, told);
        self.last
    }

    /// So many bytes are being told of.
    fn pay(&mut self, now: u64, bytes: u64, rate: u64) {
        let cost = u128::from(bytes.max(LEAST)) * 1_000_000_000 / u128::from(rate.max(1));
        let from = self.next.max(now.saturating_sub(BURST_NS));
        self.next = from.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX));
    }
}

impl Engine {
    /// A crash may have come before the base was told of what the log has freed.
    pub(super) fn tell_of_what_was_freed(&mut self) {
        let freed = self.store.take_freed();
        let takes = self.store.takes_discards();
        freed.into_iter().for_each(|(first, count)| self.telling.put(first, count, takes));
    }

    /// Whether a pool that is being closed has something to tell, and time for it.
    pub(super) fn has_to_tell(&mut self) -> bool {
        let since = *self.telling.leaving_since.get_or_insert(self.now);
        self.failed.is_none() && self.telling.untold.len() > 0 && self.now < since + LEAVING_NS
    }

    /// Whether the base is told of all as fast as it takes it.
    pub(super) fn hurries_to_tell(&self) -> bool {
        self.leaving || self.shared.erasing.load(Relaxed) || self.telling.is_overwriting()
    }

    /// It is another one from now on, also for what was paid for by the old one.
    pub(super) fn rate_is_another(&mut self) {
        self.telling.next = self.now;
    }

    /// How many bytes a second the base is told of.
    fn telling_rate(&self) -> u64 {
        if self.hurries_to_tell() { u64::MAX } else { self.store.discard_rate() }
    }

    /// Tells the base what it may hear now.
    pub(super) fn advance_telling(&mut self) -> u32 {
        self.advance_round();
        let waits = self.telling.waits();
        let is_still = !waits && self.telling.told.is_empty() && self.telling.round.is_none();
        if is_still && self.quarantine.is_empty() {
            self.shared.erasing.store(false, Relaxed);
        }
        if !waits || self.failed.is_some() || self.telling.look > self.now {
            return 0;
        }
        let mut count = 0;
        for _ in 0..A_PASS {
            if self.telling.told.len() >= IN_FLIGHT || self.now < self.telling.next && !self.hurries_to_tell() {
                return count;
            }
            if !self.tell_next() {
                self.telling.look = self.now + LOOK_NS;
                return count;
            }
            count += 1;
        }
        count
    }

    /// Tells of something; what somebody waits for comes first.
    fn tell_next(&mut self) -> bool {
        let clusters_first = self.telling.is_overwriting();
        clusters_first && self.tell_clusters() || self.tell_pared() || !clusters_first && self.tell_clusters()
    }

    /// Tells of some clusters, or finds that they are in use again. Returns whether there was anything to be done.
    fn tell_clusters(&mut self) -> bool {
        let size = u64::from(self.store.geometry().cluster_size);
        let most = self.telling_rate().clamp(LEAST, MOST);
        let Some((first, count)) = self.telling.next_of().take((most / size).max(1) as u32) else { return false };
        let Some(free) = self.store.hold_back(first, count) else {
            // Where it is free is not in memory yet.
            self.telling.next_of().put(first, count);
            return false;
        };
        // What is before that has been given out again; nobody may have used it yet.
        let unused = (first..free.start).filter(|cluster| !self.store.is_named(*cluster));
        unused.for_each(|cluster| self.telling.left_out.put(cluster, 1));
        self.telling.next_of().put(free.end, first + count - free.end);
        if free.is_empty() {
            return true;
        }
        let (first, count) = (free.start, free.end - free.start);
        if self.telling.is_overwriting() {
            self.telling.overwrite(first, count, &mut self.store);
            return true;
        }
        let id = self.telling.send(Told::Clusters { first, count, erased: false });
        self.telling.pay(self.now, u64::from(count) * size, self.telling_rate());
        self.store.discard(id, u64::from(first) * size, u64::from(count) * size);
        true
    }

    /// The same for the sub-blocks of a cluster.
    fn tell_pared(&mut self) -> bool {
        if self.fold.is_some() || self.removal.is_some() {
            return false;
        }
        let Some(pared) = self.telling.pared.pop_front() else { return false };
        let done = self.pare(&pared);
        if !done {
            self.telling.pared.push_back(pared);
        }
        done
    }

    /// Tells the base of what is gone of a cluster. Returns whether that is done, or need not be; it cannot be yet if not.
    fn pare(&mut self, pared: &Pared) -> bool {
        let (layer, cluster) = (pared.layer, pared.cluster);
        let Some(Loss { taken, lost, gone }) = self.telling.losses.get(&(layer, cluster)).copied() else { return true };
        if gone {
            self.telling.losses.remove(&(layer, cluster));
            return true;
        }
        if lost > pared.number {
            // What it has lost since has to go through the quarantine, too.
            let is_durable = self.shared.commits.is_done(lost);
            if is_durable {
                self.quarantine.freed(Freed::part(Pared { layer, cluster, number: lost }));
            }
            return is_durable;
        }
        let node = self.nodes.by_id().get(&layer).filter(|node| !matches!(node.layer.kind, LayerKind::Going));
        let (leaf, slot) = Shared::slot(cluster);
        let place = node.map(|node| node.map.place(leaf));
        let Some(Place::At(number)) = place else {
            // Nobody can say what is there now.
            self.telling.losses.remove(&(layer, cluster));
            return true;
        };
        let gone = self.gone_parts(number, slot);
        let locked = gone.iter().fold(0, |all, (mask, ..)| all | mask);
        let waits = self.store.waits(PARE_LOCK);
        if waits && locked != 0 && !self.shared.locks.try_lock(layer, cluster, locked) {
            return false;
        }
        let page = self.shared.leaves.get(number);
        let is_marked = !page.is_in_stroke() && !page.is_dirty(slot);
        let is_known = is_marked && self.shared.commits.is_done(taken) || !self.store.waits(PARE_COMMIT);
        if !is_known || self.gone_parts(number, slot) != gone {
            if waits && locked != 0 {
                self.shared.locks.unlock(layer, cluster, locked);
            }
            return false;
        }
        self.telling.losses.remove(&(layer, cluster));
        for (mask, at, len) in gone {
            let id = self.telling.send(Told::Parts { layer, cluster, locked: if waits { mask } else { 0 } });
            self.telling.pay(self.now, len, self.telling_rate());
            self.store.discard(id, at, len);
        }
        true
    }

    /// Runs of sub-blocks of an entry's cluster that hold nothing, as far as the base can be told of them: which they are, and
    /// bytes of the base.
    fn gone_parts(&self, leaf: u32, slot: usize) -> Vec<(u16, u64, u64)> {
        let entry = self.shared.leaves.get(leaf).entry(slot);
        let Some(on) = entry.cluster().filter(|_| entry.here() != 0) else { return Vec::new() };
        let geometry = self.store.geometry();
        let (start, sub) = (u64::from(on) * u64::from(geometry.cluster_size), u64::from(geometry.sub_block()));
        let (grain, skew) = self.store.discard_grain();
        let mut left = u32::from(!entry.here());
        let mut parts = Vec::new();
        while left != 0 {
            let first = left.trailing_zeros();
            let many = (left >> first).trailing_ones();
            let mask = (((1u32 << many) - 1) << first) as u16;
            left &= !u32::from(mask);
            let (from, to) = (start + u64::from(first) * sub, start + u64::from(first + many) * sub);
            let from = from.saturating_sub(skew).next_multiple_of(grain) + skew;
            let to = to.saturating_sub(skew) / grain * grain + skew;
            if from < to {
                parts.push((mask, from, to - from));
            }
        }
        parts
    }

    /// The base has answered.
    pub(super) fn discarded(&mut self, id: u64, result: Result<(), IoError>) {
        match self.telling.told.remove(&id) {
            Some(Told::Clusters { first, count, erased }) => {
                if result.is_err() {
                    self.telling.refused(first, count, erased);
                }
                self.store.release(first, count);
                self.give_out();
            }
            Some(Told::Parts { layer, cluster, locked }) => {
                if locked != 0 {
                    self.shared.locks.unlock(layer, cluster, locked);
                }
                self.shared.tell_waiters();
            }
            None => {}
        }
    }
}

const _: () = assert!(SUB_BLOCKS == 16, "their masks have as many bits");

#[cfg(test)]
mod tests {
    use super::*;

    /// However often a cluster loses something before anybody looks, it waits once.
    #[test]
    fn a_cluster_that_loses_sub_blocks_again_and_again_waits_once() {
        let mut telling = Telling::default();
        assert!(telling.gathered(1, 7, 1, false).is_none());
        assert_eq!(telling.gathered(1, 7, 2, true).map(|pared| pared.number), Some(2));
        for number in 3..1000 {
            assert!(telling.gathered(1, 7, number, true).is_none());
            telling.forget(1, 7);
            assert!(telling.gathered(1, 7, number, number % 2 == 0).is_none());
        }
        assert_eq!(telling.waiting().1, 1);
        let loss = telling.losses[&(1, 7)];
        assert!((loss.taken, loss.lost, loss.gone) == (999, 999, true), "it was gone when it was looked at last");
        assert!(telling.gathered(1, 8, 9, true).is_some());
        telling.forget(2, 8);
        assert!(!telling.losses[&(1, 8)].gone);
    }
}
