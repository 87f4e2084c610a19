//! What room there is: in the log, of pages, of clusters; and clusters handed out and taken back.

use super::{HELD_BACK_PART, OVERLAY, PAGES_PER_LEAF, SPARE, Store};
use crate::thin::format::{ENTRIES_PER_PAGE, MAX_EXTENTS};

impl Store {
    /// Bytes of records that a batch may have now, whatever they say; 0: there has to be a checkpoint first, or the store
    /// has failed.
    #[cfg(test)]
    #[must_use]
    pub fn room(&self) -> usize {
        if self.unannounced || self.failure.is_some() {
            return 0;
        }
        // A record that needs a page of a map has ten bytes at least, and seldom needs a second one above it.
        let spare = self.spare_pages();
        let by_pages = if spare >= self.state.pages_untouched() { u64::MAX } else { spare.saturating_sub(SPARE) * 5 };
        self.log.room().min(usize::try_from(by_pages).unwrap_or(usize::MAX))
    }

    /// Whether a batch may be appended now that has so many bytes of records, and needs so many pages at most. If not, a
    /// checkpoint makes room, for one that is within [`Store::batch`].
    #[must_use]
    pub fn has_room(&self, bytes: usize, pages: u64) -> bool {
        let spare = self.spare_pages();
        let pages_suffice = spare >= self.state.pages_untouched() || pages + SPARE <= spare;
        !self.unannounced && self.failure.is_none() && bytes <= self.log.room() && pages_suffice
    }

    /// What a batch is not to exceed by more than a leaf, so that an empty log has room for it: bytes of records, and pages.
    /// So many layers with so many bytes together are about to be appended that the store may not know yet.
    #[must_use]
    pub fn batch(&self, layers: u64, bytes: u64) -> (usize, u64) {
        let leaf = self.state.geometry.cluster_size as u64 * ENTRIES_PER_PAGE as u64;
        let untouched = (bytes.div_ceil(leaf) + layers).saturating_mul(2).saturating_add(self.state.pages_untouched());
        let suffice = self.spare_pages() >= untouched;
        (self.log.most() / 2, if suffice { u64::MAX } else { (self.state.pages.total() / 32).max(4) })
    }

    /// Pages that are free when all that is logged has been written.
    pub(super) fn spare_pages(&self) -> u64 {
        let frozen = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.budget(&self.state));
        self.state.pages.free().saturating_sub(frozen + self.state.pages_needed())
    }

    /// How many leaves of maps may come into being now, while so many pages are needed for what is not logged yet: a reserve
    /// of pages is left for what gives space back. If there are none a checkpoint may help; see [`Store::can_extend`].
    #[must_use]
    pub fn leaf_room(&self, unsaid: u64) -> u64 {
        let reserve = (self.state.pages.total() / 16).max(32);
        self.spare_pages().saturating_sub(reserve + unsaid) / PAGES_PER_LEAF
    }

    /// The same for what gives space back: the reserve is for that.
    #[must_use]
    pub fn leaf_room_of_reserve(&self, unsaid: u64) -> u64 {
        self.spare_pages().saturating_sub(SPARE + unsaid) / PAGES_PER_LEAF
    }

    /// Whether a checkpoint would add pages if they are scarce.
    #[must_use]
    pub fn can_extend(&self) -> bool {
        self.state.pages.extents().len() < MAX_EXTENTS && self.state.space.free() > 0
    }

    /// Whether a checkpoint would have something to write.
    #[must_use]
    pub fn has_logged(&self) -> bool {
        !self.state.overlay.is_empty()
    }

    /// Clusters that are no data's: for the next extent of metadata.
    #[must_use]
    pub fn held_back(&self) -> u64 {
        let extents = self.state.pages.extents();
        let next = if extents.len() < MAX_EXTENTS { u64::from(extents[0].count) } else { 0 };
        next.min(self.total_clusters() / HELD_BACK_PART)
    }

    /// Whether a checkpoint should be started: for the log, for memory, or for pages.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        let (log, overlay) = (self.log.used(), &self.state.overlay);
        let few_pages = !overlay.is_empty() && self.spare_pages() < self.state.pages.total() / 8;
        log > self.state.geometry.log_blocks / 2 || overlay.bytes() > OVERLAY || few_pages || self.unannounced
    }

    /// From now on no page is written again that a superblock leads to, however old it gets. Returns the last batch that
    /// is durable.
    pub fn hold_pages(&mut self) -> u64 {
        self.state.pages.hold();
        self.log.durable_batch()
    }

    /// Ends that. Returns whether it was so until now: a store that gets short of pages ends it by itself.
    pub fn let_go_pages(&mut self) -> bool {
        let held = self.state.pages.held().is_some();
        self.state.pages.let_go();
        held
    }

    /// Whether pages are held.
    #[must_use]
    pub fn holds_pages(&self) -> bool {
        self.state.pages.held().is_some()
    }

    /// Who needs pages does not hold any.
    pub(super) fn relieve(&mut self) {
        let holds_some = self.state.pages.held().is_some_and(|held| held > 0);
        if holds_some && self.spare_pages() < self.state.pages.total() / 4 {
            self.state.pages.let_go();
        }
    }

    /// Hands out up to `want` clusters, ascending, one run if it can be. Fewer if there are fewer, or if those there are
    /// have to be found first: then [`Store::free_clusters`] says more, and a later call gets them.
    pub fn allocate(&mut self, want: usize, out: &mut Vec<u32>) {
        let want = u32::try_from(want).unwrap_or(u32::MAX);
        // Where nothing is free nothing has to be found either.
        self.stirred |= self.state.space.free() > 0;
        self.state.space.allocate(want, out);
    }

    /// Takes back clusters that were handed out and never named by an entry.
    pub fn give_back(&mut self, clusters: &[u32]) {
        clusters.iter().for_each(|cluster| self.state.space.release(*cluster, 1));
    }

    /// Clusters that were freed by a durable batch have left their quarantine: they can be handed out again.
    pub fn release(&mut self, first: u32, count: u32) {
        self.state.space.release(first, count);
        self.stirred = true;
    }

    /// Whether an entry of what is logged or on disk may be on a cluster. Not if it was handed out and never named.
    #[must_use]
    pub fn is_named(&self, cluster: u32) -> bool {
        self.state.space.is_used(cluster)
    }

    /// Clusters that can be handed out.
    #[must_use]
    pub const fn free_clusters(&self) -> u64 {
        self.state.space.free()
    }

    /// All clusters that can hold data or metadata.
    #[must_use]
    pub const fn total_clusters(&self) -> u64 {
        (self.state.geometry.clusters - self.state.geometry.first_free) as u64
    }

    /// The first run of these clusters that can be handed out, which are not until they are released again; empty if there
    /// is none. `None`: it is not known yet.
    pub fn hold_back(&mut self, first: u32, count: u32) -> Option<std::ops::Range<u32>> {
        self.state.space.take_within(first, count)
    }
}
