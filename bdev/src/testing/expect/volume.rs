//! What is known of one volume or snapshot: everything that was ever put into it, and when.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Id;
use super::cut::Time;
use crate::testing::stamp::Value;

/// What an entry puts into a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// This.
    Is(Value),
    /// What the snapshot holds there.
    OfSnapshot(Id),
    /// What the bdev of this number outside of the pool holds there.
    Outside(u64),
}

/// One change of a sector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) content: Content,
    pub(super) begun: Time,
    pub(super) ended: Option<Time>,
    /// It succeeded, so it replaces what was before.
    pub(super) good: bool,
    pub(super) durable: bool,
}

impl Entry {
    /// What is there from the beginning.
    pub(super) const fn first(content: Content) -> Self {
        Entry { content, begun: 0, ended: Some(0), good: true, durable: true }
    }

    /// Whether it had ended before the other began.
    pub(super) fn is_before(&self, other: &Entry) -> bool {
        self.ended.is_some_and(|ended| ended < other.begun)
    }
}

/// When something was asked for, and when it was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    No,
    Begun,
    Done,
}

#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) is_snapshot: bool,
    /// The cut that a snapshot was made in, and the volume it is of; `None` after a crash: then all of it is known.
    pub(super) cut: Option<(usize, Id)>,
    /// The volume that a snapshot is of.
    pub(super) parent: Option<Id>,
    pub(super) made: Asked,
    pub(super) deleted: Asked,
    pub(super) sectors: u64,
    /// The size it is to get, if that was asked for and not acknowledged.
    pub(super) resize: Option<u64>,
    /// A rollback that was not acknowledged.
    pub(super) rollback: Option<Entry>,
    /// The cut of its becoming a snapshot, which was not acknowledged.
    pub(super) freezing: Option<usize>,
    /// When it got its head for sure: what was written to it since is its own.
    pub(super) head_since: Time,
    /// Entries for whole ranges; the first is what was there at first.
    pub(super) whole: Vec<(Range<u64>, Entry)>,
    pub(super) history: BTreeMap<u64, Vec<Entry>>,
    /// Of a snapshot: what was found in it. It never changes. Without a cut the rest is zeroes.
    pub(super) known: BTreeMap<u64, Value>,
}

impl Volume {
    pub(super) fn new(sectors: u64, first: Content) -> Self {
        Volume {
            is_snapshot: false,
            cut: None,
            parent: None,
            made: Asked::Begun,
            deleted: Asked::No,
            sectors,
            resize: None,
            rollback: None,
            freezing: None,
            head_since: 0,
            whole: vec![(0..u64::MAX, Entry::first(first))],
            history: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    /// That begins as a bdev outside of the pool, of which so many sectors count.
    pub(super) fn on_outside(sectors: u64, outside: u64, counts: u64) -> Self {
        let mut volume = Volume::new(sectors, Content::Is(Value::Zero));
        let zero = volume.whole[0].1;
        volume.whole = vec![(0..counts, Entry::first(Content::Outside(outside))), (counts..u64::MAX, zero)];
        volume
    }

    pub(super) fn snapshot(sectors: u64, cut: usize, of: Id) -> Self {
        let volume = Volume::new(sectors, Content::Is(Value::Zero));
        Volume { is_snapshot: true, cut: Some((cut, of)), parent: Some(of), ..volume }
    }

    /// Everything that was ever put into a sector.
    pub(super) fn entries(&self, sector: u64) -> impl Iterator<Item = &Entry> + Clone {
        let whole = self.whole.iter().filter(move |(range, _)| range.contains(&sector)).map(|(_, entry)| entry);
        whole.chain(self.history.get(&sector).into_iter().flatten())
    }

    /// What is in a sector if only one thing was ever put into it.
    pub(super) fn only(&self, sector: u64) -> Option<Content> {
        let mut entries = self.entries(sector);
        entries.next().filter(|_| entries.next().is_none()).map(|entry| entry.content)
    }

    /// What began at this moment.
    pub(super) fn begun_at(&mut self, sectors: Range<u64>, begun: Time) -> impl Iterator<Item = &mut Entry> {
        self.history.range_mut(sectors).flat_map(|(_, all)| all).filter(move |entry| entry.begun == begun)
    }

    /// What had succeeded before this moment is durable.
    pub(super) fn durable_before(&mut self, time: Time) {
        let whole = self.whole.iter_mut().map(|(_, entry)| entry);
        for entry in whole.chain(self.history.values_mut().flatten()) {
            entry.durable |= entry.good && entry.ended.is_some_and(|ended| ended < time);
        }
    }

    /// The power has failed, and this is all that it holds.
    pub(super) fn settle(&mut self, sectors: u64, values: &[(u64, Value)], now: Time) {
        let held = || values.iter().filter(|(_, value)| *value != Value::Zero);
        // What it got from others it holds itself now: they may go. (One that was made read-only has such, too.)
        self.whole = vec![(0..u64::MAX, Entry::first(Content::Is(Value::Zero)))];
        if self.is_snapshot {
            self.known = held().copied().collect();
            self.history.clear();
            self.cut = None;
        } else {
            let put = |value| Entry { begun: now, ended: Some(now), ..Entry::first(Content::Is(value)) };
            self.history = held().map(|(at, value)| (*at, vec![put(*value)])).collect();
        }
        (self.made, self.deleted, self.sectors) = (Asked::Done, Asked::No, sectors);
        (self.resize, self.rollback, self.freezing, self.head_since) = (None, None, None, now);
    }
}
