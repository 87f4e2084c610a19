//! What a check has found.

use serde::Serialize;
use uuid::Uuid;

/// Findings that are kept; the others are counted.
const KEPT: usize = 1000;

macro_rules! flaws {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// An invariant that does not hold. docs/format.md lists them by these names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Flaw {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Flaw {
            /// All of them.
            pub const ALL: &[Flaw] = &[$(Flaw::$name,)+];

            /// Its name, which never changes.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Flaw::$name => $word,)+
                }
            }
        }
    };
}

flaws! {
    /// A place of the superblock that was written cannot be read.
    SuperblockUnreadable = "superblock_unreadable",
    /// A place of the superblock has another generation than its turn, or belongs to another place or pool.
    SuperblockMisplaced = "superblock_misplaced",
    /// Superblocks differ in what never changes.
    SuperblockDiffers = "superblock_differs",
    /// The pool is larger than what it lies on.
    DeviceTooSmall = "device_too_small",
    /// A page cannot be read.
    PageUnreadable = "page_unreadable",
    /// A page is damaged.
    PageChecksum = "page_checksum",
    /// There is another page than the one that belongs there.
    PageMisplaced = "page_misplaced",
    /// There is another generation of a page than its parent says.
    PageStale = "page_stale",
    /// A page is newer than its parent.
    PageGeneration = "page_generation",
    /// A metadata extent lies where something else was laid out when the pool was made.
    ExtentMisplaced = "extent_misplaced",
    /// A page lies outside of the metadata extents.
    PageOutside = "page_outside",
    /// A page has two parents.
    PageUsedTwice = "page_used_twice",
    /// A page is marked as used, and no tree has it.
    PageLeaked = "page_leaked",
    /// A page of a tree is not marked as used.
    PageNotMarked = "page_not_marked",
    /// A tree is too low for what it holds, or higher than any.
    TreeHeight = "tree_height",
    /// A tree has a page, or a bitmap a bit, behind its end.
    TreeBeyondEnd = "tree_beyond_end",
    /// A pointer has a wrong number of free clusters.
    FreeCount = "free_count",
    /// A layer of the catalog makes no sense.
    LayerUnreadable = "layer_unreadable",
    /// A layer lies in another one's place of the catalog.
    LayerMisplaced = "layer_misplaced",
    /// A layer has a number that was not given out yet, or was given out before.
    LayerNumber = "layer_number",
    /// A volume or snapshot has no name.
    LayerName = "layer_name",
    /// Two volumes or snapshots have the same name.
    LayerNameTaken = "layer_name_taken",
    /// Two volumes or snapshots have the same UUID, or one has none.
    LayerUuid = "layer_uuid",
    /// What a layer stands on is not there.
    LayerParentMissing = "layer_parent_missing",
    /// A layer stands on itself in the end.
    LayerParentCycle = "layer_parent_cycle",
    /// Something stands on a volume that can be written, or two on a layer that goes.
    LayerChildren = "layer_children",
    /// A layer stands on something in the pool and on something outside of it.
    LayerOrigin = "layer_origin",
    /// A layer sees something of nothing, or a part of a cluster.
    LayerSees = "layer_sees",
    /// More is kept for a layer than it can use or own.
    LayerLimits = "layer_limits",
    /// An entry makes no sense.
    EntryInvalid = "entry_invalid",
    /// An entry lies behind the end of its volume.
    EntryBeyondSize = "entry_beyond_size",
    /// A layer owns a cluster that is none of the pool's, or not for data.
    ClusterOutside = "cluster_outside",
    /// A cluster has two owners.
    ClusterOwnedTwice = "cluster_owned_twice",
    /// A cluster is marked as used, and nobody owns it.
    ClusterLeaked = "cluster_leaked",
    /// A cluster with an owner is not marked as used.
    ClusterNotMarked = "cluster_not_marked",
    /// The catalog says wrongly how many clusters a layer owns.
    OwnedCount = "owned_count",
    /// The catalog says wrongly how many sub-blocks of a layer are here.
    HereCount = "here_count",
    /// The superblock's parts of the log do not fit together.
    LogSpan = "log_span",
    /// A block of the log cannot be read.
    LogUnreadable = "log_unreadable",
    /// A batch is not whole although it was durable.
    LogGap = "log_gap",
    /// The log has blocks that only a later superblock explains: the newest one is lost.
    LogNewer = "log_newer",
    /// A block of the log is not the one that comes next.
    LogOrder = "log_order",
    /// A record makes no sense.
    LogRecord = "log_record",
    /// A record is about a layer that is not there.
    LogLayerUnknown = "log_layer_unknown",
    /// A record of a layer says what only the catalog says.
    LogLayerMap = "log_layer_map",
    /// A batch frees clusters that nobody lost in it.
    LogFree = "log_free",
    /// A batch takes a cluster from its owner and neither frees it nor gives it to another.
    LogLeak = "log_leak",
    /// A batch gives away a cluster that another has.
    LogClusterTaken = "log_cluster_taken",
    /// A layer goes and leaves clusters behind.
    LogGone = "log_gone",
}

impl Serialize for Flaw {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// An invariant that does not hold somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which one.
    pub finding: Flaw,
    /// The block of the medium where it shows, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u64>,
    /// The layer that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<u64>,
    /// For people.
    pub message: String,
}

/// The first findings, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    all: u64,
}

impl Findings {
    /// Adds one. The message is made only if it is kept, so that no number of findings takes much memory.
    pub(super) fn add(
        &mut self,
        finding: Flaw,
        block: Option<u64>,
        layer: Option<u64>,
        message: impl FnOnce() -> String,
    ) {
        self.all += 1;
        if self.kept.len() < KEPT {
            let layer = layer.filter(|layer| *layer != 0);
            self.kept.push(Finding { finding, block, layer, message: message() });
        }
    }

    /// Those that are kept.
    pub(super) fn into_kept(self) -> Vec<Finding> {
        self.kept
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u64 {
        self.all
    }
}

/// What to think of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every invariant holds.
    Clean,
    /// Some do not.
    Damaged,
    /// No pool, or one of a later version.
    NotCheckable,
}

/// A layer after all that the log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// `head`, `snapshot`, `unnamed` or `going`.
    pub kind: &'static str,
    /// What it stands on, in the pool.
    pub parent: Option<u64>,
    /// Bytes that can be addressed.
    pub size: u64,
    /// Clusters that it owns.
    pub owned: u64,
    /// Sub-blocks that are here.
    pub here: u64,
}

/// The pool itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Of the superblock that counts.
    pub generation: u64,
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Clusters, those that hold no data counted.
    pub clusters: u32,
    /// Clusters with data.
    pub owned: u64,
    /// Clusters that can be allocated.
    pub free: u64,
    /// Pages of the metadata extents, and how many of them the trees have.
    pub pages: (u64, u64),
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What to think of it.
    pub verdict: Verdict,
    /// Why it could not be checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolReport>,
    /// Its layers.
    pub layers: Vec<LayerReport>,
    /// Batches of the log that count.
    pub batches: u64,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// How many there are.
    pub findings_total: u64,
}

impl Report {
    /// Of something that is no pool, or none of this version.
    pub(super) fn not_checkable(reason: String) -> Report {
        Report {
            verdict: Verdict::NotCheckable,
            reason: Some(reason),
            pool: None,
            layers: Vec::new(),
            batches: 0,
            findings: Vec::new(),
            findings_total: 0,
        }
    }

    /// Whether every invariant holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.verdict == Verdict::Clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_different_and_findings_are_bounded() {
        let words: BTreeSet<_> = Flaw::ALL.iter().map(|flaw| flaw.word()).collect();
        assert_eq!(words.len(), Flaw::ALL.len());
        let mut findings = Findings::default();
        for at in 0..KEPT as u64 * 2 {
            findings.add(Flaw::PageLeaked, Some(at), Some(0), String::new);
        }
        assert_eq!(findings.count(), KEPT as u64 * 2);
        let kept = findings.into_kept();
        assert_eq!((kept.len(), kept[0].layer), (KEPT, None));
    }
}
