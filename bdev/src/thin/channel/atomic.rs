//! Writes that count as a whole or not at all, whatever fails, and however many clusters they touch.
//!
//! All sub-blocks of their clusters are locked, also those that are not written. Where nothing is here that is written, and a
//! power cut would not bring back what was here, the data goes into the cluster that there is; else into a fresh one, and the
//! engine copies what else the old one holds. When
//! the data has arrived the engine changes all entries, which one batch of the log says (`shared::Swap`). Until then nobody
//! looks for it, and if anything fails nothing has changed. Of one cluster in which nothing is here that is written the
//! channel changes the entry itself.
//!
//! What is copied must not be written meanwhile. Writes in place take no locks, so before the first copy of a volume they
//! are told to (`Volume::wants_care`).

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use pollux_core::{Cx, Io, IoError, IoFlags, Op, Token};

use super::parts::{Kind, Part};
use super::write::touched;
use super::{Progress, ThinChannel, Wait};
use crate::thin::format::Entry;
use crate::thin::shared::{LayerMap, Moved, Shared, Swap};

/// The longest. All of it goes into one batch of the log, and its records into one block of that; what counts is that
/// nobody waits for long for clusters of which others hold some.
pub(crate) const ATOMIC_MAX: u32 = 1 << 20;
/// The largest sub-block of which there are atomic writes: locks are those of sub-blocks, and writes in place take them, too.
pub(crate) const ATOMIC_SUB_BLOCK: u32 = 16 << 10;

/// What an atomic write has.
#[derive(Default)]
pub(super) struct Atomic {
    /// Clusters of the reactor's lease, for what has to move and what has none.
    leased: Vec<u32>,
    /// Some of those that are kept for the volume.
    kept: Vec<u32>,
    /// What changes when the data has arrived.
    swap: Option<Arc<Swap>>,
}

/// A cluster's part of a write.
#[derive(Clone, Copy)]
struct Span {
    cluster: u64,
    leaf: u32,
    slot: usize,
    at: u64,
    len: u64,
    mask: u16,
}

impl ThinChannel {
    pub(super) fn write_atomic(&mut self, token: Token, io: &Io, cx: &mut Cx<'_>) -> Progress {
        let head = self.chain.head().clone();
        match self.begin_atomic(token, io, &head) {
            Ok((spans, moved)) => {
                self.send_atomic(token, io, head, &spans, moved, cx);
                Progress::Started
            }
            Err(wait) => Progress::Waits(wait),
        }
    }

    /// Locks what it touches, and finds out where the data goes.
    fn begin_atomic(&mut self, token: Token, io: &Io, head: &Arc<LayerMap>) -> Result<(Vec<Span>, Vec<Moved>), Wait> {
        let spans = self.spans(io, head)?;
        if self.places() < spans.len() {
            return Err(Wait::Place);
        }
        for (nth, span) in spans.iter().enumerate() {
            if !self.shared.locks.try_lock(head.id, span.cluster, u16::MAX) {
                self.unlock_spans(head, &spans[..nth]);
                return Err(Wait::Lock);
            }
        }
        let planned = self.plan(token, head, &spans);
        if planned.is_err() {
            self.unlock_spans(head, &spans);
        }
        planned.map(|moved| (spans, moved))
    }

    fn unlock_spans(&self, head: &LayerMap, spans: &[Span]) {
        spans.iter().for_each(|span| self.shared.locks.unlock(head.id, span.cluster, u16::MAX));
    }

    fn spans(&self, io: &Io, head: &Arc<LayerMap>) -> Result<Vec<Span>, Wait> {
        let (shift, end) = (self.shared.cluster_shift, io.offset + io.len);
        let (first, last) = (io.offset >> shift, (end - 1) >> shift);
        let span = |cluster: u64| {
            let at = (cluster << shift).max(io.offset);
            let len = ((cluster + 1) << shift).min(end) - at;
            let (leaf, slot) = Shared::slot(cluster);
            let leaf = self.shared.leaf_to_change(head, leaf)?;
            Ok(Span { cluster, leaf, slot, at, len, mask: touched(&self.shared, at, len) })
        };
        (first..=last).map(span).collect()
    }

    /// Where the data of each span goes. All of them are locked.
    fn plan(&mut self, token: Token, head: &Arc<LayerMap>, spans: &[Span]) -> Result<Vec<Moved>, Wait> {
        let (mut fresh, mut first) = (0, 0);
        let mut moves = Vec::with_capacity(spans.len());
        for span in spans {
            let entry = self.entry_of(span);
            if self.shared.leaves.get(span.leaf).is_in_stroke() {
                // Somebody may have taken something out of it, and not said so yet.
                return Err(Wait::Lock);
            }
            let moved = entry.cluster().is_some() && (entry.here() & span.mask != 0 || self.may_come_back(span));
            if moved && entry.here() & !span.mask != 0 && !self.shared.take_care(&self.volume) {
                return Err(Wait::Engine);
            }
            fresh += usize::from(moved);
            first += usize::from(entry.cluster().is_none());
            moves.push(moved);
        }
        self.take_clusters(token, head, fresh, first)?;
        Ok(spans.iter().zip(moves).map(|(span, moved)| self.place(token, span, moved)).collect())
    }

    /// Whether something that was taken out of an entry may be in it again after a power cut.
    fn may_come_back(&self, span: &Span) -> bool {
        let leaf = self.shared.leaves.get(span.leaf);
        leaf.is_pared(span.slot) || !self.shared.commits.is_done(leaf.taken_by())
    }

    fn entry_of(&self, span: &Span) -> Entry {
        self.shared.leaves.get(span.leaf).entry(span.slot)
    }

    /// Where the data of one goes; there are clusters for it, and they are counted.
    fn place(&mut self, token: Token, span: &Span, moved: bool) -> Moved {
        let Span { cluster, leaf, slot, mask, .. } = *span;
        let entry = self.entry_of(span);
        let taken = "as many were taken as are wanted, and what is locked stays on its cluster";
        let (from, to) = match entry.cluster() {
            Some(from) if moved => (from, self.atomic(token).leased.pop().expect(taken)),
            Some(from) => (from, from),
            None => {
                let atomic = self.atomic(token);
                let on = atomic.kept.pop().or_else(|| atomic.leased.pop()).expect(taken);
                let (page, mut now) = (self.shared.leaves.get(leaf), entry);
                // A discard takes no locks.
                while let Err(other) = page.change(slot, now, now.with_cluster(on)) {
                    now = other;
                }
                (on, on)
            }
        };
        Moved { cluster, leaf, slot, from, to, mask }
    }

    fn atomic(&mut self, token: Token) -> &mut Atomic {
        self.request(token).atomic.get_or_insert_default()
    }

    /// Clusters for what has to move, and for what has none. Those that it has are kept while it waits for more: the pool
    /// knows by what is left whether somebody wants some.
    fn take_clusters(&mut self, token: Token, head: &LayerMap, fresh: usize, first: usize) -> Result<(), Wait> {
        let most = self.volume.most_clusters();
        if most > 0 && first > 0 && self.volume.uncounted.load(Acquire) {
            return Err(Wait::Engine);
        }
        // Counted before they are there, as every claim is.
        let owned = head.usage.own_more(first as u64, most).ok_or(Wait::Quota)?;
        let taken = self.take_counted(token, owned, fresh, first);
        if taken.is_err() {
            head.usage.own_less(first as u64);
        }
        taken
    }

    fn take_counted(&mut self, token: Token, owned: u64, fresh: usize, first: usize) -> Result<(), Wait> {
        let kept = self.volume.reserve_left(owned).min(first as u64) as usize;
        while self.atomic(token).kept.len() < kept {
            let cluster = self.shared.take_kept(&self.volume).ok_or(Wait::Space)?;
            self.atomic(token).kept.push(cluster);
        }
        while self.atomic(token).leased.len() < fresh + first - kept {
            let cluster = self.shared.take_leased(self.reactor).ok_or(Wait::Space)?;
            self.atomic(token).leased.push(cluster);
        }
        Ok(())
    }

    fn send_atomic(
        &mut self,
        token: Token,
        io: &Io,
        head: Arc<LayerMap>,
        spans: &[Span],
        moved: Vec<Moved>,
        cx: &mut Cx<'_>,
    ) {
        let shift = self.shared.cluster_shift;
        let bases: Vec<u64> = moved.iter().map(|moved| u64::from(moved.to) << shift).collect();
        self.atomic(token).swap = Some(Arc::new(Swap::new(head, moved)));
        let request = self.request(token);
        // The swap is a part of its own: while it is under way the request uses the map.
        (request.at, request.parts, request.unmapped) = (io.len, request.parts + 1, true);
        for (span, base) in spans.iter().zip(bases) {
            let base = base + (span.at & ((1 << shift) - 1));
            let part = Part { owner: token, kind: Kind::Atomic, at: span.at, len: span.len, base };
            self.send(part, Op::Write, IoFlags::empty(), cx);
        }
    }

    /// A part of an atomic write has arrived, or has not.
    pub(super) fn atomic_part_ended(&mut self, token: Token) {
        let request = self.request(token);
        let Some(swap) = request.atomic.as_ref().and_then(|atomic| atomic.swap.clone()) else { return };
        if request.parts > 1 {
            return;
        }
        if request.result.is_err() {
            return self.end_swap(token, &swap, false);
        }
        match swap.moved[..] {
            [Moved { leaf, slot, from, to, mask, .. }] if from == to => {
                let published = self.shared.publish(&swap.map, leaf, slot, to, mask);
                debug_assert!(published, "nobody takes a cluster away whose sub-blocks are locked");
                self.end_swap(token, &swap, published);
            }
            _ => {
                self.shared.swaps.push(swap);
                self.swapping.push(token);
                self.shared.call_engine();
            }
        }
    }

    /// Ends those that the engine has ended.
    #[inline]
    pub(super) fn end_swaps(&mut self) {
        if !self.swapping.is_empty() {
            self.end_some_swaps();
        }
    }

    fn end_some_swaps(&mut self) {
        let mut left = std::mem::take(&mut self.swapping);
        left.retain(|token| {
            let swap = self.request(*token).atomic.as_ref().and_then(|atomic| atomic.swap.clone());
            let Some(swap) = swap else { return false };
            let Some(done) = swap.outcome() else { return true };
            self.end_swap(*token, &swap, done);
            false
        });
        self.swapping = left;
    }

    /// All of it has happened, or nothing.
    fn end_swap(&mut self, token: Token, swap: &Swap, done: bool) {
        let shared = self.shared.clone();
        for moved in &swap.moved {
            if !done && moved.from != moved.to {
                self.give_back(moved.to);
            } else if !done {
                // The cluster may be of no use now: the engine looks at it.
                shared.mark(moved.leaf, moved.slot);
            }
            shared.locks.unlock(swap.map.id, moved.cluster, u16::MAX);
        }
        let failed = if shared.commits.have_failed() { IoError::ReadOnly } else { IoError::Medium };
        let request = self.request(token);
        request.parts -= 1;
        if !done {
            request.result = request.result.and(Err(failed));
        }
        self.try_end(token);
    }

    fn give_back(&self, cluster: u32) {
        let back = self.shared.stations[self.reactor].put(cluster);
        debug_assert!(back.is_ok(), "there is room: the engine fills only half of it");
    }

    /// An atomic write goes: what it has taken and not used is the lease's again.
    pub(super) fn end_atomic(&self, atomic: &mut Atomic) {
        atomic.leased.drain(..).for_each(|cluster| self.give_back(cluster));
        for cluster in atomic.kept.drain(..) {
            let back = self.volume.keep(cluster);
            debug_assert!(back.is_ok(), "there is room: the engine fills only half of it");
        }
    }
}
