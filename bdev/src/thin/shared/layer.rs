//! A layer's map in memory: where each of its leaves is.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

use crate::thin::format::ENTRIES_PER_PAGE;

/// Leaves of a part of the table.
const PART: usize = 1024;

const UNKNOWN: u32 = 0;
const LOADING: u32 = 1;
const EMPTY: u32 = 2;
const LOST: u32 = 3;
const FIRST: u32 = 4;

/// Where a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nobody has asked.
    Unknown,
    /// The engine has been asked.
    Loading,
    /// There is none: all of its entries are empty.
    Empty,
    /// It cannot be read.
    Lost,
    /// In memory, with this number.
    At(u32),
}

impl Place {
    const fn word(self) -> u32 {
        match self {
            Place::Unknown => UNKNOWN,
            Place::Loading => LOADING,
            Place::Empty => EMPTY,
            Place::Lost => LOST,
            Place::At(leaf) => leaf + FIRST,
        }
    }

    #[inline]
    const fn of(word: u32) -> Place {
        match word {
            UNKNOWN => Place::Unknown,
            LOADING => Place::Loading,
            EMPTY => Place::Empty,
            LOST => Place::Lost,
            leaf => Place::At(leaf - FIRST),
        }
    }
}

/// How much a layer has; exact when nothing of it is being changed. After a crash it counts from what the catalog says, and
/// not what the log says beyond it: until the first checkpoint has told (see the engine's `unsettled`) it may be below zero,
/// or above what it is by as many clusters as the log has freed.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Clusters.
    pub(crate) owned: AtomicU64,
    /// Sub-blocks with data.
    pub(crate) here: AtomicU64,
}

/// What a layer has more than its [`Usage`] says: of first writes, as long as nobody was told that they have ended.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Clusters.
    pub(crate) owned: u64,
    /// Sub-blocks with data.
    pub(crate) here: u64,
}

impl Usage {
    /// Clusters, as far as is known.
    pub(crate) fn owned(&self) -> u64 {
        at_least_none(self.owned.load(Relaxed))
    }

    /// Sub-blocks with data, as far as is known.
    pub(crate) fn here(&self) -> u64 {
        at_least_none(self.here.load(Relaxed))
    }

    /// One cluster more, if that does not make more than `most`; 0: no limit. Returns how many there were.
    pub(crate) fn own_one_more(&self, most: u64) -> Option<u64> {
        self.own_more(1, most)
    }

    /// That did not come to be.
    pub(crate) fn own_one_less(&self) {
        self.own_less(1);
    }

    /// So many clusters more, or none.
    pub(crate) fn own_more(&self, many: u64, most: u64) -> Option<u64> {
        let fits = |owned: u64| most == 0 || many == 0 || at_least_none(owned).saturating_add(many) <= most;
        let more = |owned: u64| fits(owned).then_some(owned.wrapping_add(many));
        self.owned.fetch_update(Relaxed, Relaxed, more).ok().map(at_least_none)
    }

    /// They did not come to be.
    pub(crate) fn own_less(&self, many: u64) {
        self.owned.fetch_sub(many, Relaxed);
    }

    /// What was counted elsewhere meanwhile.
    #[inline]
    pub(crate) fn add(&self, counts: &mut Counts) {
        for (count, more) in [(&self.owned, &mut counts.owned), (&self.here, &mut counts.here)] {
            let more = std::mem::take(more);
            if more > 0 {
                count.fetch_add(more, Relaxed);
            }
        }
    }

    /// So many more sub-blocks, or fewer.
    pub(crate) fn add_here(&self, more: i64) {
        self.here.fetch_add(more as u64, Relaxed);
    }
}

/// A count that may be below zero for a while.
const fn at_least_none(count: u64) -> u64 {
    if count > i64::MAX as u64 { 0 } else { count }
}

type Part = Arc<[AtomicU32; PART]>;

/// See the module's description. A layer that grows gets another one, which shares what there is with this.
pub(crate) struct LayerMap {
    /// The layer.
    pub(crate) id: u64,
    /// See [`Usage`].
    pub(crate) usage: Arc<Usage>,
    /// What a leaf is that nobody has asked for.
    default: u32,
    parts: Box<[OnceLock<Part>]>,
    /// How many clusters there can be.
    clusters: u64,
}

impl LayerMap {
    /// Of a layer that can have so many clusters; `is_new`: none of its leaves exists.
    pub(crate) fn new(id: u64, clusters: u64, is_new: bool, usage: Arc<Usage>) -> LayerMap {
        let leaves = clusters.div_ceil(ENTRIES_PER_PAGE as u64).div_ceil(PART as u64);
        let parts = (0..leaves).map(|_| OnceLock::new()).collect();
        LayerMap { id, usage, default: if is_new { EMPTY } else { UNKNOWN }, parts, clusters }
    }

    /// As it is, for another number of clusters. Nobody may be starting anything on the old one.
    pub(crate) fn resized(&self, clusters: u64) -> LayerMap {
        let new = LayerMap::new(self.id, clusters, self.default == EMPTY, self.usage.clone());
        for (to, from) in new.parts.iter().zip(&self.parts) {
            if let Some(part) = from.get() {
                to.get_or_init(|| part.clone());
            }
        }
        new
    }

    /// How many clusters there can be.
    pub(crate) const fn clusters(&self) -> u64 {
        self.clusters
    }

    fn word(&self, leaf: u64) -> &AtomicU32 {
        let part = self.parts[leaf as usize / PART]
            .get_or_init(|| Arc::new(std::array::from_fn(|_| AtomicU32::new(self.default))));
        &part[leaf as usize % PART]
    }

    /// Where a leaf is.
    #[inline]
    pub(crate) fn place(&self, leaf: u64) -> Place {
        match self.parts.get(leaf as usize / PART).and_then(OnceLock::get) {
            Some(part) => Place::of(part[leaf as usize % PART].load(Acquire)),
            None => Place::of(self.default),
        }
    }

    /// The number of a leaf that is in memory; not if it lies behind the end.
    #[inline]
    pub(crate) fn leaf(&self, leaf: u64) -> Option<u32> {
        let word = self.parts.get(leaf as usize / PART)?.get()?[leaf as usize % PART].load(Acquire);
        word.checked_sub(FIRST)
    }

    /// It is somewhere else now, if it was where the caller thinks.
    pub(crate) fn set(&self, leaf: u64, from: Place, to: Place) -> bool {
        self.word(leaf).compare_exchange(from.word(), to.word(), AcqRel, Relaxed).is_ok()
    }

    /// It is there, wherever it was. For the engine, which alone ends loading.
    pub(crate) fn put(&self, leaf: u64, place: Place) {
        self.word(leaf).store(place.word(), Release);
    }

    /// All leaves that are in memory, with their numbers.
    #[cfg(test)]
    pub(crate) fn present(&self) -> impl Iterator<Item = (u64, u32)> {
        let parts = self.parts.iter().enumerate().filter_map(|(nth, part)| Some((nth, part.get()?)));
        parts.flat_map(|(nth, part)| {
            part.iter().enumerate().filter_map(move |(at, word)| match Place::of(word.load(Acquire)) {
                Place::At(leaf) => Some(((nth * PART + at) as u64, leaf)),
                _ => None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_owned_than_may_be() {
        let usage = Usage::default();
        assert_eq!([2, 2, 2, 0, 3].map(|most| usage.own_one_more(most)), [Some(0), Some(1), None, Some(2), None]);
        usage.own_one_less();
        assert_eq!((usage.own_one_more(3), usage.owned()), (Some(2), 3));
        assert_eq!(
            [(2, 4), (2, 5), (0, 1), (1, 5)].map(|(many, most)| usage.own_more(many, most)),
            [None, Some(3), Some(5), None]
        );
        usage.own_less(2);
        // More was given back than is known.
        usage.owned.fetch_sub(5, Relaxed);
        usage.add_here(-3);
        assert_eq!((usage.owned(), usage.here(), usage.own_one_more(1)), (0, 0, Some(0)));
    }

    /// Those who own several at once and those who own one keep to the limit together.
    #[test]
    fn several_together_own_no_more_than_may_be() {
        const MOST: u64 = 10_000;
        let usage = Usage::default();
        let owned: u64 = std::thread::scope(|scope| {
            let own = |many: u64| {
                let usage = &usage;
                scope.spawn(move || {
                    let times = std::iter::repeat_with(|| usage.own_more(many, MOST)).take_while(Option::is_some);
                    times.count() as u64 * many
                })
            };
            let all: Vec<_> = [1, 17, 2, 16].map(own).into_iter().collect();
            all.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
        });
        assert_eq!((owned, usage.owned()), (MOST, MOST));
    }

    #[test]
    fn leaves_are_found_and_stay_where_they_are_when_the_layer_grows() {
        let map = LayerMap::new(4, 504 * 2000, false, Arc::default());
        assert_eq!(map.place(1999), Place::Unknown);
        assert!(map.set(1999, Place::Unknown, Place::Loading) && !map.set(1999, Place::Unknown, Place::Loading));
        map.put(1999, Place::At(0));
        assert_eq!((map.place(1999), map.place(1998)), (Place::At(0), Place::Unknown));
        let larger = map.resized(504 * 4000);
        assert_eq!((larger.place(1999), larger.place(3999)), (Place::At(0), Place::Unknown));
        larger.put(1998, Place::Empty);
        assert_eq!(map.place(1998), Place::Empty, "they share what both have");
        assert_eq!(larger.present().collect::<Vec<_>>(), [(1999, 0)]);
        assert_eq!(LayerMap::new(5, 1, true, Arc::default()).place(0), Place::Empty);
    }
}
