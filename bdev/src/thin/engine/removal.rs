//! Layers on their way out: nobody can open them and nothing stands on them, but they own clusters. Leaf by leaf their
//! entries are emptied in the log, with the clusters that become free; then the layer is gone. One of which a leaf cannot be
//! read stays, since nobody else knows whose the clusters are that are in it: it is tried again later.

use super::Engine;
use super::orders::Doing;
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, Record};
use crate::thin::shared::Place;
use crate::thin::store::LoadError;

/// Leaves of one commit.
const LEAVES: u32 = 256;
/// After so long a layer is tried again of which something could not be read.
pub(super) const RETRY_NS: u64 = 10_000_000_000;

/// The layer that is being removed.
pub(super) struct Removal {
    layer: u64,
    next: u64,
    leaves: u64,
    /// What began before nobody could open it any more has to be over.
    epoch: u64,
    /// That it is not needed any more has to be durable: its clusters are free before.
    commit: u64,
    /// The leaf that is being loaded.
    loading: Option<u64>,
    /// Emptied since the last commit.
    emptied: u32,
    /// Something could not be read: because the base has failed, or because it is damaged.
    unread: bool,
    damaged: bool,
}

impl Removal {
    /// The epoch that it waits for; when that is over nobody is in it any more.
    pub(super) const fn awaited(&self) -> Option<u64> {
        Some(self.epoch)
    }
}

impl Engine {
    /// Goes on with the removal of a layer, or begins with the next one.
    pub(super) fn advance_removal(&mut self) -> u32 {
        if self.failed.is_some() {
            self.removal = None;
            return 0;
        }
        if self.fold.is_some() || self.inflation.is_copying() {
            return 0;
        }
        if self.removal.is_none() && !self.leaving {
            let going = self.nodes.going().find(|node| {
                let id = node.layer.id;
                node.children.is_empty() && !self.stuck.contains_key(&id)
            });
            let Some(node) = going else { return 0 };
            let (layer, leaves) = (node.layer.id, node.map.clusters().div_ceil(ENTRIES_PER_PAGE as u64));
            if !self.may_raise() {
                return 0;
            }
            let (epoch, commit) = (self.raise_epoch(), self.shared.commits.ticket());
            let (next, loading, emptied, unread, damaged) = (0, None, 0, false, false);
            self.removal = Some(Removal { layer, next, leaves, epoch, commit, loading, emptied, unread, damaged });
        }
        if self.removal.is_none() || self.telling.is_paring() {
            return 0;
        }
        let mut count = 0;
        let limits = self.limits((0, 0));
        while let Some(removal) = &mut self.removal {
            if removal.loading.is_some() {
                break;
            }
            if self.leaving {
                self.removal = None;
                break;
            }
            if removal.emptied >= LEAVES || self.to_log.is_full(limits) {
                // What has been said so far is to be in the log before more is.
                if !self.to_log.records.is_empty() {
                    self.hurry = true;
                    break;
                }
                removal.emptied = 0;
            }
            let (layer, leaf, epoch, end) = (removal.layer, removal.next, removal.epoch, removal.leaves);
            if !self.shared.commits.is_done(removal.commit) || !self.is_over(epoch) {
                break;
            }
            if leaf < end && self.is_leaf_dirty(layer, leaf) {
                // The log has to know whose its clusters are before it says that they are free.
                self.hurry = true;
                break;
            }
            if leaf < end && self.is_on_its_way(layer, leaf) {
                break;
            }
            if leaf == end && self.doing.as_ref().is_some_and(Doing::has_closed_gates) {
                // What stands on what does not change under an order that has looked at that.
                break;
            }
            count += 1;
            self.remove_leaf(layer, leaf);
        }
        count
    }

    /// Whether a leaf comes into memory for somebody, or leaves it: then it is not looked for elsewhere.
    fn is_on_its_way(&self, layer: u64, leaf: u64) -> bool {
        self.evicting.has(layer, leaf) || self.nodes.get(layer).map.place(leaf) == Place::Loading
    }

    /// Whether the log does not know all of a leaf yet.
    pub(super) fn is_leaf_dirty(&self, layer: u64, leaf: u64) -> bool {
        match self.nodes.get(layer).map.place(leaf) {
            // Also not if it is on the dirty stack with nothing to say: its number is about to be another one's.
            Place::At(number) => !self.shared.leaves.get(number).is_clean(),
            _ => false,
        }
    }

    fn remove_leaf(&mut self, layer: u64, leaf: u64) {
        let Some(removal) = &mut self.removal else { return };
        if leaf == removal.leaves {
            let (unread, damaged) = (removal.unread, removal.damaged);
            self.removal = None;
            if unread || damaged {
                self.stuck.insert(layer, unread.then(|| self.now.saturating_add(RETRY_NS)));
                return;
            }
            self.gone_to_log.push(layer);
            self.nodes.remove(layer);
            self.review_unnamed();
            self.hurry = true;
            return;
        }
        let map = self.nodes.get(layer).map.clone();
        match map.place(leaf) {
            Place::At(number) => {
                let page = self.shared.leaves.get(number);
                let entries = (0..ENTRIES_PER_PAGE).map(|slot| page.entry(slot)).collect::<Vec<_>>();
                map.put(leaf, Place::Empty);
                self.return_leaf(number);
                self.empty_leaf(layer, leaf, &entries);
            }
            Place::Empty => removal.next += 1,
            // Nobody else loads it any more.
            Place::Unknown | Place::Loading | Place::Lost => {
                removal.loading = Some(leaf);
                self.store.load(layer, leaf);
            }
        }
    }

    /// A leaf has come.
    pub(super) fn removal_loaded(
        &mut self,
        layer: u64,
        leaf: u64,
        entries: Result<Option<Box<[u64; ENTRIES_PER_PAGE]>>, LoadError>,
    ) {
        let Some(removal) = self.removal.as_mut().filter(|r| r.layer == layer && r.loading == Some(leaf)) else {
            return;
        };
        removal.loading = None;
        match entries {
            Ok(Some(bits)) => {
                let entries: Vec<_> = bits.iter().map(|bits| Entry::from_bits(*bits).unwrap_or_default()).collect();
                self.empty_leaf(layer, leaf, &entries);
            }
            Ok(None) => removal.next += 1,
            // Its clusters stay in use until it can be read, or the pool is repaired.
            Err(error) => {
                tracing::error!(layer, leaf, "a part of a deleted volume cannot be given back: {error}");
                match error {
                    LoadError::Io(_) => removal.unread = true,
                    LoadError::Damaged(_) => removal.damaged = true,
                }
                removal.next += 1;
                return;
            }
        }
        // If all is looked at once more, not at this one.
        self.nodes.get(layer).map.put(leaf, Place::Empty);
    }

    fn empty_leaf(&mut self, layer: u64, leaf: u64, entries: &[Entry]) {
        let clusters = entries.iter().filter_map(|entry| entry.cluster()).collect();
        let load = &mut self.to_log;
        load.push(Record::Leaf { layer, leaf, entry: Entry::EMPTY });
        load.free(clusters);
        if let Some(removal) = &mut self.removal {
            removal.next += 1;
            removal.emptied += 1;
        }
    }
}
