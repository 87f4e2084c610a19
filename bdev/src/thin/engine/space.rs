//! Clusters: given out to the reactors' leases, and taken back through the quarantine.
//!
//! A cluster that an entry has lost may be given out again when that is durable, and every request that may have looked
//! at the entry before has ended; the base is told of it when there is time (`telling.rs`). The pool tries all of that before
//! it calls itself full.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::Engine;
use crate::thin::shared::{EPOCHS, KEPT, LEASE, Station};
use crate::thin::store::{PARE_EPOCH, QUARANTINE_EPOCH};

/// Runs of clusters that leave the quarantine in one pass, and as many clusters that have lost sub-blocks. Each is some tens of
/// nanoseconds.
const LET_OUT: usize = 256;

/// Clusters that lie together: the first one, and how many.
pub(super) type Run = (u32, u32);

/// Those that lie together, ascending.
pub(super) fn runs(mut clusters: Vec<u32>) -> Vec<Run> {
    clusters.sort_unstable();
    clusters.chunk_by(|a, b| a + 1 == *b).map(|run| (run[0], run.len() as u32)).collect()
}

/// A layer's cluster that stays in use, and has lost sub-blocks in a commit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pared {
    pub(super) layer: u64,
    pub(super) cluster: u64,
    pub(super) number: u64,
}

/// What nobody needs any more.
#[derive(Default)]
pub(super) struct Freed {
    pub(super) clusters: Vec<Run>,
    pub(super) parts: Vec<Pared>,
}

impl Freed {
    pub(super) fn part(pared: Pared) -> Freed {
        Freed { clusters: Vec::new(), parts: vec![pared] }
    }

    const fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.parts.is_empty()
    }

    fn append(&mut self, mut more: Freed) {
        self.clusters.append(&mut more.clusters);
        self.parts.append(&mut more.parts);
    }

    /// What of it is not to wait.
    pub(super) fn split_off(&mut self, clusters_wait: bool, parts_wait: bool) -> Freed {
        let clusters = if clusters_wait { Vec::new() } else { std::mem::take(&mut self.clusters) };
        let parts = if parts_wait { Vec::new() } else { std::mem::take(&mut self.parts) };
        Freed { clusters, parts }
    }

    /// Some of it.
    fn take_some(&mut self) -> Freed {
        let clusters = self.clusters.split_off(self.clusters.len().saturating_sub(LET_OUT));
        let parts = self.parts.split_off(self.parts.len().saturating_sub(LET_OUT));
        Freed { clusters, parts }
    }

    fn count(&self) -> u64 {
        self.clusters.iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

/// Clusters in quarantine.
#[derive(Default)]
pub(super) struct Quarantine {
    /// Free as far as the log says; requests may still use them.
    durable: Freed,
    /// The same, and the epoch that has to be over; and how often something had come until then.
    waiting: VecDeque<(u64, u64, Freed)>,
    /// Nothing is waited for any more: these leave, some in each pass.
    over: Freed,
    /// Clusters of all of them.
    clusters: u64,
    /// How often something has come, how much of that is waited for no more, and how much has left.
    entered: u64,
    over_until: u64,
    left: u64,
}

impl Quarantine {
    /// These are nobody's, and that is durable.
    pub(super) fn freed(&mut self, freed: Freed) {
        self.clusters += freed.count();
        self.durable.append(freed);
        self.entered += 1;
    }

    /// How often something has come.
    pub(super) const fn entered(&self) -> u64 {
        self.entered
    }

    /// Whether all has left that had come when it was so often.
    pub(super) fn has_let_out(&self, entered: u64) -> bool {
        self.left >= entered || self.is_empty()
    }

    /// How many clusters there are.
    pub(super) const fn len(&self) -> u64 {
        self.clusters
    }

    /// Whether more of it could leave now.
    pub(super) const fn has_more(&self) -> bool {
        !self.over.is_empty()
    }

    /// What leaves it in one pass.
    fn leave(&mut self) -> Freed {
        let some = self.over.take_some();
        self.clusters -= some.count();
        if self.over.is_empty() {
            self.left = self.over_until;
        }
        some
    }

    /// The last epoch that something waits for.
    pub(super) fn awaited(&self) -> Option<u64> {
        self.waiting.back().map(|(epoch, ..)| *epoch)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.durable.is_empty() && self.over.is_empty()
    }
}

impl Engine {
    /// Lets out of the quarantine what may leave it.
    pub(super) fn advance_quarantine(&mut self) -> u32 {
        let mut count = 0;
        // The other epochs are for cuts, removals, folds and evictions, which wait for one each.
        if !self.quarantine.durable.is_empty()
            && self.quarantine.waiting.len() < EPOCHS as usize / 2
            && self.may_raise()
        {
            let mut freed = std::mem::take(&mut self.quarantine.durable);
            let early = freed.split_off(self.store.waits(QUARANTINE_EPOCH), self.store.waits(PARE_EPOCH));
            let epoch = self.raise_epoch();
            self.quarantine.over.append(early);
            self.quarantine.waiting.push_back((epoch, self.quarantine.entered, freed));
            count += 1;
        }
        while let Some((epoch, ..)) = self.quarantine.waiting.front()
            && self.is_over(*epoch)
        {
            let (_, entered, freed) = self.quarantine.waiting.pop_front().unwrap_or_default();
            self.quarantine.over.append(freed);
            self.quarantine.over_until = entered;
            if !self.quarantine.has_more() {
                self.quarantine.left = entered;
            }
            count += 1;
        }
        if self.quarantine.has_more() {
            let some = self.quarantine.leave();
            self.let_out(some);
            count += 1;
        }
        if count > 0 {
            self.give_out();
        }
        count
    }

    /// These can be given out again, and the base can be told.
    fn let_out(&mut self, freed: Freed) {
        for (first, count) in freed.clusters {
            self.store.release(first, count);
            self.telling.put(first, count, self.store.takes_discards());
        }
        freed.parts.into_iter().for_each(|pared| self.telling.put_pared(pared));
    }

    pub(super) fn raise_epoch(&self) -> u64 {
        self.shared.epoch.raise()
    }

    /// Whether the epoch may be raised, but for an order: gates that are closed do not wait for that. Who may not tries again.
    pub(super) fn may_raise(&mut self) -> bool {
        let may = self.shared.has_epochs(2);
        self.lacks_epochs |= !may;
        may
    }

    /// Whether everything that began in this epoch or before has ended.
    pub(super) fn is_over(&self, epoch: u64) -> bool {
        self.shared.is_over(epoch)
    }

    /// Clusters that are free and kept for nobody, and not held back for metadata.
    pub(super) fn unreserved(&self) -> u64 {
        // Volumes may own less than is thought: what is promised to them is kept all the same.
        let too_many = self.unsettled.as_ref().map_or(0, |unsettled| unsettled.freed);
        let promised = self.nodes.promised(too_many).saturating_sub(self.kept_at_hand()).saturating_add(self.pledged);
        self.store.free_clusters().saturating_sub(promised.saturating_add(self.store.held_back()))
    }

    /// Clusters that volumes have of what is kept for them, and do not own yet.
    pub(super) fn kept_at_hand(&self) -> u64 {
        self.kept_by.iter().map(|volume| volume.kept()).sum::<usize>() as u64
    }

    /// Clusters in leases.
    pub(super) fn leased(&self) -> u64 {
        self.shared.stations.iter().map(Station::left).sum::<usize>() as u64
    }

    /// Gives volumes some of what is kept for them, before anybody else gets anything.
    fn give_out_kept(&mut self) -> u32 {
        self.take_back_unkept();
        if self.lacks_kept() && self.store.free_clusters() == 0 {
            self.take_leases_back();
        }
        let mut given = 0;
        for volume in &self.kept_by {
            let (left, reserved) = (volume.kept(), volume.reserved.load(Relaxed));
            let may_have = reserved.saturating_sub(volume.owned());
            // It has got clusters otherwise, or less is kept for it: what it has too much is not kept for anybody. Some may be on
            // their way into entries.
            if left as u64 > may_have.saturating_add(self.shared.stations.len() as u64) {
                for _ in may_have..left as u64 {
                    volume.take_back().into_iter().for_each(|cluster| self.store.give_back(&[cluster]));
                }
            }
            let open = may_have.saturating_sub(left as u64);
            if left >= KEPT / 2 || open == 0 {
                continue;
            }
            self.store.allocate((KEPT - left).min(open as usize), &mut self.clusters);
            self.telling.launder(&mut self.clusters, &mut self.store);
            for cluster in self.clusters.drain(..) {
                match volume.keep(cluster) {
                    Ok(()) => given += 1,
                    Err(cluster) => self.store.give_back(&[cluster]),
                }
            }
        }
        given
    }

    /// Whether somebody finds nothing of what is kept for a volume.
    fn lacks_kept(&self) -> bool {
        self.kept_by.iter().any(|volume| volume.is_lacking())
    }

    /// Volumes for which nothing is kept any more: a write that was under way may have given something back since.
    pub(super) fn take_back_unkept(&mut self) {
        for volume in &self.not_kept_by {
            while let Some(cluster) = volume.take_back() {
                self.store.give_back(&[cluster]);
            }
        }
    }

    /// Fills the leases.
    pub(super) fn give_out(&mut self) -> u32 {
        let mut given = 0;
        if self.failed.is_none() {
            given += self.give_out_kept();
            given += self.fill_leases();
        }
        self.notice_fullness();
        self.say_supply();
        if given > 0 {
            self.shared.tell_waiters();
        }
        given
    }

    /// Each lease is a part of what is free, so that where there is little no reactor has much of it lying idle.
    fn fill_leases(&mut self) -> u32 {
        let stations = self.shared.stations.len() as u64;
        let mut given = 0;
        for station in &self.shared.stations {
            let (left, free) = (station.left(), self.unreserved());
            let most = (free / (4 * stations)).clamp(1, LEASE as u64) as usize;
            // The last ones are for who asks.
            let wants = if free < 4 * stations { station.is_starving() } else { left == 0 || left < most / 2 };
            if !wants || free == 0 {
                continue;
            }
            station.lease_is(most);
            self.store.allocate(most - left, &mut self.clusters);
            self.telling.launder(&mut self.clusters, &mut self.store);
            for cluster in self.clusters.drain(..) {
                if let Err(cluster) = station.put(cluster) {
                    self.store.give_back(&[cluster]);
                } else {
                    given += 1;
                }
            }
        }
        given
    }

    /// Says that the pool is full when it is, and not before everything that could be had has been had.
    fn notice_fullness(&mut self) {
        let lacks_pages = self.lacks_pages();
        let starving = self.shared.stations.iter().any(Station::is_starving);
        let lacks_kept = self.lacks_kept() && self.store.free_clusters() == 0;
        if !lacks_pages && !lacks_kept && (!starving || self.unreserved() > 0) {
            self.shared.full.store(false, Release);
            self.short_since = None;
            return;
        }
        let since = *self.short_since.get_or_insert(self.now);
        // Something that gives space back may take long, and nobody waits for ever.
        let for_long = self.now >= since.saturating_add(self.shared.patience.load(Relaxed));
        if starving && self.spread_leases() {
            self.short_since = None;
            return;
        }
        if lacks_pages && !starving && self.evicting.is_empty() {
            // Leaves that somebody has taken and then had no use for.
            self.fresh.iter().for_each(|leaf| self.evicting.may_be_empty(*leaf));
        }
        let is_changed = self.shared.leaves.any_dirty() || self.has_to_say();
        let held_back = self.telling.held_back() > 0;
        let could_be_had = held_back || !self.quarantine.is_empty() || self.removal.is_some() || self.fold.is_some();
        let could_be_had = could_be_had || self.commit.is_some();
        // What is kept for volumes seems to be more than it is, for as long as it is not known what they own.
        let is_uncounted = self.unsettled.is_some() && self.failed.is_none();
        if is_uncounted || (is_changed || could_be_had) && !for_long {
            self.hurry |= is_changed;
        } else if lacks_pages && !for_long && self.could_have_pages() {
            self.checkpoint_wanted = true;
        } else if !self.shared.full.swap(true, Relaxed) {
            self.shared.tell_waiters();
        }
    }

    /// Whether a checkpoint may find pages: those that it does not need any more, or new ones.
    fn could_have_pages(&mut self) -> bool {
        if self.store.has_logged() || self.commit.is_some() || self.store.is_checkpointing() {
            return true;
        }
        if self.store.free_clusters() == 0 {
            self.take_leases_back();
        }
        self.store.can_extend()
    }

    /// Takes back what is in leases: for metadata, or for who is promised something.
    pub(super) fn take_leases_back(&mut self) {
        for station in &self.shared.stations {
            while let Some(cluster) = station.take_back() {
                self.store.give_back(&[cluster]);
            }
        }
    }

    /// Takes from the reactor that has most for those where somebody found none. Returns whether there was anything.
    fn spread_leases(&self) -> bool {
        let stations = &self.shared.stations;
        let mut spread = false;
        for poor in stations.iter().filter(|station| station.is_starving()) {
            let Some(rich) = stations.iter().max_by_key(|station| station.left()) else { break };
            for _ in 0..rich.left().div_ceil(2) {
                let Some(cluster) = rich.take_back() else { break };
                // There is room: for twice of what a lease may be.
                let given = poor.put(cluster).or_else(|cluster| rich.put(cluster));
                debug_assert!(given.is_ok());
                spread = true;
            }
        }
        if spread {
            self.shared.tell_waiters();
        }
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_quarantine_in_one_pass_is_bounded() {
        const MANY: u32 = 3 * LET_OUT as u32 + 1;
        let mut quarantine = Quarantine::default();
        let parts = (0..MANY).map(|cluster| Pared { layer: 1, cluster: u64::from(cluster), number: 1 }).collect();
        quarantine.freed(Freed { clusters: (0..MANY).map(|nth| (nth * 3, 2)).collect(), parts });
        assert_eq!(quarantine.len(), u64::from(2 * MANY));
        let durable = std::mem::take(&mut quarantine.durable);
        quarantine.over.append(durable);
        let (mut passes, mut clusters, mut parts) = (0, Vec::new(), Vec::new());
        while quarantine.has_more() {
            let mut some = quarantine.leave();
            assert!(some.clusters.len() <= LET_OUT && some.parts.len() <= LET_OUT);
            clusters.append(&mut some.clusters);
            parts.extend(some.parts.iter().map(|pared| pared.cluster));
            passes += 1;
            assert_eq!(quarantine.len(), u64::from(2 * MANY) - 2 * clusters.len() as u64);
        }
        clusters.sort_unstable();
        parts.sort_unstable();
        assert!(clusters.iter().zip(0..).all(|(run, nth)| *run == (nth * 3, 2)) && clusters.len() == MANY as usize);
        assert!(parts.iter().zip(0..).all(|(cluster, nth)| *cluster == nth) && parts.len() == MANY as usize);
        assert!(passes == 4 && quarantine.is_empty() && quarantine.clusters == 0);
    }
}
