//! What the medium holds for sure, what it shows, and what lies between: changes that a power cut may undo.
//!
//! A change takes *effect* in one or several parts, at any time between its submission and its completion; each part is a
//! piece of the journal, whose order is the order in which the medium shows them. It is *durable* by FUA, or by a flush
//! that was submitted after it had completed. What is durable at the front of the journal is folded into the durable store.
//!
//! Invariants: the durable store and the journal's pieces applied in order give what is visible; after a crash the pieces
//! that survive are applied in the same order, so nothing durable is ever overwritten by something older.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use pollux_core::Op;

use super::crash::{Cover, Crash, Fate, surviving};
use super::store::Store;
use crate::rng::mix;

/// Names a change.
pub(super) type Seq = u64;

#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(Arc<[u8]>),
    Zeroes {
        deallocate: bool,
    },
    /// Nobody knows what; it takes no space.
    Garbage,
}

/// A change that a power cut now may undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsynced {
    /// Its number: changes are numbered in the order of their submission.
    pub seq: u64,
    /// What it is.
    pub op: Op,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The step it was submitted as.
    pub label: Option<&'static str>,
    /// Whether it has not completed.
    pub in_flight: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) content: Content,
    pub(super) label: Option<&'static str>,
    /// The parts that have had no effect yet.
    left: Vec<Range<u64>>,
    /// Pieces in the journal.
    pieces: u32,
    submitted: u64,
    completed: Option<u64>,
    durable: Option<u64>,
    /// A flush that covered it failed, and with it went the change.
    lost: bool,
    /// Nothing that it could be swapped with is to come any more.
    released: bool,
    /// Barriers that there had been when it was submitted, and when it became durable (that one included).
    barriers: (u64, u64),
}

/// Two kinds of changes, by their labels (`None`: those without one, the guests'), of which the later may become durable
/// before the earlier that it was to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    before: Option<&'static str>,
    after: Option<&'static str>,
}

impl Pair {
    /// Whether the two may be swapped. What guests write is ordered with everything that comes later, so of that only what
    /// the last barrier made durable counts.
    fn fits(self, before: &Change, after: &Change) -> bool {
        (self.before, self.after) == (before.label, after.label)
            && before.is_durable_before(after.submitted)
            && (self.before.is_some() || before.barriers.1 == after.barriers.0)
    }
}

#[derive(Clone, Debug)]
struct Piece {
    seq: Seq,
    range: Range<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Cache {
    durable: Store,
    pub(super) visible: Store,
    changes: BTreeMap<Seq, Change>,
    journal: VecDeque<Piece>,
    next_seq: Seq,
    clock: u64,
    /// Flushes that have made everything durable that they cover.
    barriers: u64,
    swaps: Vec<Pair>,
}

impl Cache {
    pub(super) fn holding(store: Store) -> Self {
        Cache { durable: store.clone(), visible: store, ..Cache::default() }
    }

    /// Everything is this now, and durable.
    pub(super) fn replace(&mut self, store: Store) {
        (self.durable, self.visible) = (store.clone(), store);
    }

    pub(super) fn swap(&mut self, before: Option<&'static str>, after: Option<&'static str>) {
        self.swaps.push(Pair { before, after });
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The time, for [`Cache::synced`].
    pub(super) fn now(&mut self) -> u64 {
        self.tick()
    }

    pub(super) fn begin(&mut self, op: Op, range: Range<u64>, content: Content, label: Option<&'static str>) -> Seq {
        let submitted = self.tick();
        let seq = self.next_seq;
        self.next_seq += 1;
        let change = Change {
            op,
            offset: range.start,
            len: range.end - range.start,
            content,
            label,
            left: vec![range],
            pieces: 0,
            submitted,
            completed: None,
            durable: None,
            lost: false,
            released: false,
            barriers: (self.barriers, 0),
        };
        self.changes.insert(seq, change);
        seq
    }

    fn change(&mut self, seq: Seq) -> &mut Change {
        self.changes.get_mut(&seq).expect("a change is known until it is folded")
    }

    /// Has the part of the change that lies in `range`, and has had no effect yet, take effect.
    pub(super) fn effect(&mut self, seq: Seq, range: Range<u64>) {
        let change = self.change(seq);
        let (now, later) = split(&change.left, &range);
        change.left = later;
        change.pieces += now.len() as u32;
        let change = &self.changes[&seq];
        for range in now {
            apply(&mut self.visible, change, range.clone());
            self.journal.push_back(Piece { seq, range });
        }
    }

    /// The rest of the change takes effect, and it has completed.
    pub(super) fn complete(&mut self, seq: Seq, durable: bool) {
        self.effect(seq, 0..u64::MAX);
        self.end(seq, durable);
    }

    /// The rest of the change does not take effect, and it has ended.
    pub(super) fn give_up(&mut self, seq: Seq) {
        self.change(seq).left.clear();
        self.end(seq, false);
    }

    fn end(&mut self, seq: Seq, durable: bool) {
        let now = self.tick();
        self.change(seq).completed = Some(now);
        if self.change(seq).pieces == 0 {
            self.changes.remove(&seq);
        } else if durable {
            self.make_durable(seq);
            self.fold();
        }
    }

    fn make_durable(&mut self, seq: Seq) {
        let (now, barriers) = (self.tick(), self.barriers);
        let change = self.change(seq);
        change.durable.get_or_insert(now);
        change.barriers.1 = barriers;
        if self.swaps.is_empty() {
            return;
        }
        // What it may have been swapped with is not ahead of it any more.
        let change = self.changes[&seq].clone();
        for before in self.changes.values_mut() {
            before.released |= self.swaps.iter().any(|pair| pair.fits(before, &change));
        }
    }

    fn covered(&self, since: u64) -> Vec<Seq> {
        let covered =
            |change: &Change| change.completed.is_some_and(|at| at < since) && change.durable.is_none() && !change.lost;
        self.changes.iter().filter(|(_, change)| covered(change)).map(|(seq, _)| *seq).collect()
    }

    /// A flush has completed that was submitted at `since`.
    pub(super) fn synced(&mut self, since: u64) {
        self.barriers += 1;
        for seq in self.covered(since) {
            self.make_durable(seq);
        }
        self.fold();
    }

    /// A flush has failed that was submitted at `since`, and what it covered will never be durable.
    pub(super) fn lost(&mut self, since: u64) {
        for seq in self.covered(since) {
            self.change(seq).lost = true;
        }
        self.fold();
    }

    /// Whether it may still be swapped with a later one although it is durable.
    fn is_movable(&self, change: &Change) -> bool {
        let comes =
            |pair: &Pair| pair.before == change.label && (pair.before.is_some() || change.barriers.1 == self.barriers);
        !change.released && (self.swaps.iter().any(comes) || self.swapped_with(change).next().is_some())
    }

    fn fold(&mut self) {
        while let Some(piece) = self.journal.front() {
            let change = &self.changes[&piece.seq];
            let stays = change.completed.is_none() || (change.durable.is_none() && !change.lost);
            if stays || self.is_movable(change) {
                return;
            }
            if !change.lost {
                apply(&mut self.durable, change, piece.range.clone());
            }
            let seq = piece.seq;
            self.journal.pop_front();
            let change = self.change(seq);
            change.pieces -= 1;
            if change.pieces == 0 {
                self.changes.remove(&seq);
            }
        }
    }

    /// Those that a change may have been swapped with: later ones that are not durable.
    fn swapped_with<'a>(&'a self, change: &'a Change) -> impl Iterator<Item = Seq> + 'a {
        let later = |other: &Change| {
            let fits = |pair: &Pair| pair.fits(change, other);
            other.durable.is_none() && !other.lost && !change.released && self.swaps.iter().any(fits)
        };
        self.changes.iter().filter(move |(_, other)| later(other)).map(|(seq, _)| *seq)
    }

    fn is_unsynced(&self, change: &Change) -> bool {
        let movable = change.durable.is_some() && self.swapped_with(change).next().is_some();
        !change.lost && (change.durable.is_none() || movable)
    }

    pub(super) fn unsynced(&self) -> Vec<Unsynced> {
        let tell = |(seq, change): (&Seq, &Change)| Unsynced {
            seq: *seq,
            op: change.op,
            offset: change.offset,
            len: change.len,
            label: change.label,
            in_flight: change.completed.is_none(),
        };
        self.changes.iter().filter(|(_, change)| self.is_unsynced(change)).map(tell).collect()
    }

    /// What becomes of each change that has a choice.
    fn fates(&self, choice: Crash, tear: u64) -> BTreeMap<Seq, Fate> {
        let unsynced = self.unsynced();
        let fate = |(nth, change): (usize, &Unsynced)| (change.seq, choice.fate(nth, change, tear));
        let mut fates: BTreeMap<Seq, Fate> = unsynced.iter().enumerate().map(fate).collect();
        for seq in unsynced.iter().map(|change| change.seq) {
            let change = &self.changes[&seq];
            let kept = |other: Seq| {
                let whole = self.changes[&other].range();
                fates.get(&other).is_some_and(|fate| !surviving(*fate, other, whole.clone(), &whole, tear).is_empty())
            };
            // What is durable stays, unless what should come after it has come before it.
            if change.durable.is_some() && !self.swapped_with(change).any(kept) {
                fates.insert(seq, Fate::Kept);
            }
        }
        fates
    }

    /// All pieces in order, and last what has had no effect yet.
    fn all_pieces(&self, choice: Crash) -> Vec<Piece> {
        let mut rest: Vec<(Seq, &Change)> = self.changes.iter().map(|(seq, change)| (*seq, change)).collect();
        if let Crash::Seeded(seed) = choice {
            rest.sort_by_key(|(seq, _)| mix(seed ^ mix(*seq)));
        }
        let rest = rest
            .into_iter()
            .flat_map(|(seq, change)| change.left.iter().map(move |range| Piece { seq, range: range.clone() }));
        self.journal.iter().cloned().chain(rest).collect()
    }

    /// What survives a power cut, in order.
    fn survivors(&self, choice: Crash, tear: u64) -> Vec<Piece> {
        let fates = self.fates(choice, tear);
        let fate = |piece: &Piece| match fates.get(&piece.seq) {
            Some(fate) => *fate,
            None if self.changes[&piece.seq].lost => Fate::Lost,
            None => Fate::Kept,
        };
        let parts = |piece: Piece| {
            let parts = surviving(fate(&piece), piece.seq, self.changes[&piece.seq].range(), &piece.range, tear);
            parts.into_iter().map(move |range| Piece { range, ..piece })
        };
        self.all_pieces(choice).into_iter().flat_map(parts).collect()
    }

    /// Which change each byte of what a power cut leaves comes from.
    pub(super) fn cover(&self, choice: Crash, tear: u64) -> Cover {
        let mut cover = Cover::default();
        self.survivors(choice, tear).into_iter().for_each(|piece| cover.put(piece.range, piece.seq));
        cover
    }

    /// What is on the medium after a power cut.
    pub(super) fn crash(&self, choice: Crash, tear: u64) -> Store {
        let mut store = self.durable.clone();
        for piece in self.survivors(choice, tear) {
            apply(&mut store, &self.changes[&piece.seq], piece.range);
        }
        store
    }
}

impl Change {
    const fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    fn is_durable_before(&self, time: u64) -> bool {
        self.durable.is_some_and(|durable| durable < time)
    }
}

/// What of `ranges` lies inside `range`, and what outside.
fn split(ranges: &[Range<u64>], range: &Range<u64>) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let cut = |a: &Range<u64>, from: u64, to: u64| a.start.max(from)..a.end.min(to);
    let some = |range: &Range<u64>| range.start < range.end;
    let inside = ranges.iter().map(|a| cut(a, range.start, range.end)).filter(some).collect();
    let outside = ranges.iter().flat_map(|a| [cut(a, 0, range.start), cut(a, range.end, u64::MAX)]).filter(some);
    (inside, outside.collect())
}

fn apply(store: &mut Store, change: &Change, range: Range<u64>) {
    match &change.content {
        Content::Bytes(bytes) => {
            let at = (range.start - change.offset) as usize..(range.end - change.offset) as usize;
            store.write(range.start, &bytes[at]);
        }
        Content::Zeroes { deallocate } => store.zero(range.start, range.end - range.start, *deallocate),
        Content::Garbage => store.garble(range.start, range.end - range.start),
    }
}
