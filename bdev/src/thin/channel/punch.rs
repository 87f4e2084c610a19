//! Discards and write-zeroes. Whole sub-blocks are taken out of the map, which takes no I/O; what is left at the ends is
//! written with zeroes, unless it is zero. To erase is another thing: what is here is overwritten with zeroes where it lies,
//! and the map stays.
//!
//! Sub-blocks of a cluster are taken out under their locks. Whole clusters of a leaf go in one stroke and take none: their
//! entries change first, and those that somebody has locked by then are done once more when he has let go, so that what he
//! puts there meanwhile does not stay.
//!
//! A channel does a bounded part of that in a pass, for all of its requests together: others have their turns in between.
//! Leaves that are not in memory it asks for some together, which the base reads with one request where they lie together,
//! and for the next ones meanwhile. As long as others have requests in flight that is few: theirs stand behind these in the
//! base's queue. The request that came first asks, and the others wait until it has what it needs.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pollux_core::{Cx, Io, IoFlags, Op, Token};

use super::parts::{Kind, Part};
use super::read::front;
use super::write::{touched, whole};
use super::{Progress, ThinChannel, Wait};
use crate::thin::format::{ENTRIES_PER_PAGE, Entry, SUB_BLOCKS};
use crate::thin::shared::{LayerMap, Leaf, Place, Shared};

/// What a channel does in one pass, in clusters that go in one stroke, and how many of these one counts as that does not.
const A_PASS: u32 = 1008;
const ALONE: u32 = 8;
/// Leaves that a channel's discards of whole clusters ask for together, alone and with others beside them.
const TOGETHER: u64 = 16;
const IN_COMPANY: u64 = 2;

/// What a channel has left of its share of a pass.
#[derive(Default)]
pub(super) struct Share {
    /// When the pass began.
    pass: u64,
    taken: u32,
    /// Somebody has asked for leaves since all that wait are being looked at.
    asked: bool,
}

impl Share {
    /// Whether more may be done in the pass that began then.
    fn has_more(&mut self, pass: u64) -> bool {
        if self.pass != pass {
            (self.pass, self.taken) = (pass, 0);
        }
        self.taken < A_PASS
    }

    /// All that wait are looked at once more, in order: what was asked for and has not come is asked for again.
    pub(super) const fn begin_look(&mut self) {
        self.asked = false;
    }
}

impl ThinChannel {
    pub(super) fn zero(&mut self, token: Token, io: &Io, cx: &mut Cx<'_>) -> Progress {
        let head = self.chain.head().clone();
        let end = io.offset + io.len;
        // What it finds to be zero may be so in memory only.
        self.request(token).unmapped = true;
        loop {
            let at = io.offset + self.request(token).at;
            if at == end {
                return Progress::Started;
            }
            if !self.share.has_more(self.now) {
                return Progress::Waits(Wait::More);
            }
            self.share.taken += 1;
            let zeroed = if io.flags.contains(IoFlags::ERASE) {
                self.shared.erasing.store(true, Relaxed);
                self.erase_front(token, &head, at, end - at, cx)
            } else {
                self.zero_front(token, &head, at, end - at, cx)
            };
            match zeroed {
                Ok(len) => self.request(token).at += len,
                Err(wait) => return Progress::Waits(wait),
            }
        }
    }

    /// Whole clusters from the front of a range, as far as one leaf goes and nobody has locked them; returns how many.
    fn zero_clusters(&mut self, head: &Arc<LayerMap>, first: u64, many: u64, bottom: bool) -> Result<u64, Wait> {
        let (leaf, slot) = Shared::slot(first);
        let number = match head.place(leaf) {
            Place::Unknown | Place::Loading => {
                return Err(self.ask_ahead(head, leaf, Shared::slot(first + many - 1).0));
            }
            _ => self.shared.leaf_to_change(head, leaf)?,
        };
        let count = many.min((ENTRIES_PER_PAGE - slot) as u64);
        let done = self.shared.punch_run(head, number, first, count, bottom);
        self.share.taken += count as u32;
        if done == 0 { Err(Wait::Lock) } else { Ok(done) }
    }

    /// Asks for leaves that are not in memory, if none that came before has: those that go together with the first, and the
    /// next as many. Who comes later waits: whenever one of the leaves comes, all are looked at in order.
    fn ask_ahead(&mut self, head: &Arc<LayerMap>, first: u64, last: u64) -> Wait {
        if !std::mem::replace(&mut self.share.asked, true) {
            let together = if self.shared.has_company.load(Relaxed) { IN_COMPANY } else { TOGETHER };
            let end = (first / together + 2) * together;
            for leaf in first..end.min(last + 1) {
                self.shared.want(head, leaf);
            }
        }
        Wait::Engine
    }

    /// What is not here of a cluster that the volume owns may hold what was here once: it is overwritten, too, where nothing
    /// lies below that it would hide.
    fn erase_rest(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        at: u64,
        len: u64,
        on: u32,
        cx: &mut Cx<'_>,
    ) -> Result<(), Wait> {
        let (mask, shift) = (whole(&self.shared, at, len), self.shared.cluster_shift);
        if mask == 0 || mask != touched(&self.shared, at, len) || !self.chain.stands_on_nothing(at >> shift, shift) {
            return Ok(());
        }
        if !self.has_place() {
            return Err(Wait::Place);
        }
        let cluster = at >> self.shared.cluster_shift;
        let (leaf, slot) = Shared::slot(cluster);
        let leaf = self.shared.leaf_to_change(head, leaf)?;
        if !self.shared.locks.try_lock(head.id, cluster, mask) {
            return Err(Wait::Lock);
        }
        let entry = self.shared.leaves.get(leaf).entry(slot);
        if entry.cluster() != Some(on) || entry.here() & mask != 0 {
            self.shared.locks.unlock(head.id, cluster, mask);
            return Err(Wait::Lock);
        }
        let inside = at & ((1 << self.shared.cluster_shift) - 1);
        let base = (u64::from(on) << self.shared.cluster_shift) + inside;
        let part = Part { owner: token, kind: Kind::Fresh(head.clone(), leaf), at, len, base };
        self.send(part, Op::WriteZeroes, IoFlags::MAY_DEALLOCATE, cx);
        Ok(())
    }

    /// Overwrites the front of a range as far as it is here and lies together, or passes by what is not here.
    fn erase_front(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        at: u64,
        len: u64,
        cx: &mut Cx<'_>,
    ) -> Result<u64, Wait> {
        let shift = self.shared.cluster_shift;
        let (leaf, _) = Shared::slot(at >> shift);
        if head.place(leaf) == Place::Empty {
            let leaf_end = (leaf + 1) * ENTRIES_PER_PAGE as u64;
            return Ok(len.min((leaf_end << shift) - at));
        }
        let entry = self.shared.entry(head, at >> shift)?;
        let inside = at & ((1 << shift) - 1);
        let first = inside >> self.shared.sub_shift();
        let here = entry.here() >> first;
        let run =
            if here & 1 == 1 { here.trailing_ones() } else { here.trailing_zeros().min(SUB_BLOCKS - first as u32) };
        let until = (first + u64::from(run)) << self.shared.sub_shift();
        let len = len.min(until - inside);
        if let Some(on) = entry.cluster().filter(|_| here & 1 == 1) {
            if self.shared.locks.is_locked(head.id, at >> shift, touched(&self.shared, at, len)) {
                return Err(Wait::Lock);
            }
            if !self.has_place() {
                return Err(Wait::Place);
            }
            let base = (u64::from(on) << shift) + inside;
            let part = Part { owner: token, kind: Kind::Plain, at, len, base };
            self.send(part, Op::WriteZeroes, IoFlags::MAY_DEALLOCATE, cx);
        } else if let Some(on) = entry.cluster() {
            self.erase_rest(token, head, at, len, on, cx)?;
        }
        self.share.taken += ALONE;
        Ok(len)
    }

    /// The front of a range; returns how much of it that is.
    fn zero_front(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        at: u64,
        len: u64,
        cx: &mut Cx<'_>,
    ) -> Result<u64, Wait> {
        let (shift, sub) = (self.shared.cluster_shift, 1u64 << self.shared.sub_shift());
        let (leaf, _) = Shared::slot(at >> shift);
        let bottom = self.chain.stands_on_nothing(at >> shift, shift);
        if bottom && head.place(leaf) == Place::Empty {
            let leaf_end = (leaf + 1) * ENTRIES_PER_PAGE as u64;
            return Ok(len.min((leaf_end << shift) - at));
        }
        let inside = at & ((1 << shift) - 1);
        if inside == 0 && len >> shift > 0 {
            return self.zero_clusters(head, at >> shift, len >> shift, bottom).map(|clusters| clusters << shift);
        }
        self.share.taken += ALONE;
        let len = len.min((1u64 << shift) - inside);
        let askew = at & (sub - 1);
        if askew != 0 || len < sub {
            let len = len.min(sub - askew);
            self.zero_edge(token, head, at, len, cx)?;
            return Ok(len);
        }
        let len = len & !(sub - 1);
        let mask = whole(&self.shared, at, len);
        let cluster = at >> shift;
        let number = self.shared.leaf_to_change(head, leaf)?;
        if !self.shared.locks.try_lock(head.id, cluster, mask) {
            return Err(Wait::Lock);
        }
        self.shared.punch(head, number, Shared::slot(cluster).1, mask, bottom);
        self.shared.locks.unlock(head.id, cluster, mask);
        // What it has found to be gone may be in no commit that a flush waits for.
        if self.shared.leaves.get(number).is_in_stroke() { Err(Wait::Lock) } else { Ok(len) }
    }

    /// Locks sub-blocks that are here, on this cluster of the base, to overwrite them.
    fn hold(&self, head: &Arc<LayerMap>, cluster: u64, mask: u16, on: u32) -> Result<Kind, Wait> {
        let (leaf, slot) = Shared::slot(cluster);
        let leaf = self.shared.leaf_to_change(head, leaf)?;
        if !self.shared.locks.try_lock(head.id, cluster, mask) {
            return Err(Wait::Lock);
        }
        let entry = self.shared.leaves.get(leaf).entry(slot);
        if entry.cluster() == Some(on) && entry.here() & mask == mask {
            return Ok(Kind::Fresh(head.clone(), leaf));
        }
        self.shared.locks.unlock(head.id, cluster, mask);
        Err(Wait::Lock)
    }

    /// A part of one sub-block.
    fn zero_edge(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        at: u64,
        len: u64,
        cx: &mut Cx<'_>,
    ) -> Result<(), Wait> {
        let cluster = at >> self.shared.cluster_shift;
        let (leaf, slot) = Shared::slot(cluster);
        let page = self.shared.page(head, leaf)?.map(|number| self.shared.leaves.get(number));
        let entry = page.map_or(Entry::EMPTY, |page| page.entry(slot));
        let mask = touched(&self.shared, at, len);
        let in_stroke = || page.is_some_and(Leaf::is_in_stroke);
        if self.shared.locks.is_locked(head.id, cluster, mask) || in_stroke() {
            // What the entry says may be in no commit that a flush waits for.
            return Err(Wait::Lock);
        }
        if let Some(on) = entry.cluster().filter(|_| entry.here() & mask != 0) {
            if !self.has_place() {
                return Err(Wait::Place);
            }
            let inside = at & ((1 << self.shared.cluster_shift) - 1);
            let base = (u64::from(on) << self.shared.cluster_shift) + inside;
            let kind = if self.volume.wants_care() { self.hold(head, cluster, mask, on)? } else { Kind::Plain };
            let part = Part { owner: token, kind, at, len, base };
            self.send(part, Op::WriteZeroes, IoFlags::empty(), cx);
            return Ok(());
        }
        if entry.zero() & mask != 0 || self.chain.stands_on_nothing(cluster, self.shared.cluster_shift) {
            return Ok(());
        }
        if !self.is_settled() {
            return Err(Wait::Engine);
        }
        match front(&self.shared, &self.chain, 1, at, len)? {
            (None, _) => Ok(()),
            (Some(_), _) => {
                let piece = self.piece(head, at, len)?;
                if piece.edge { self.start_edge(token, head, &piece, cx) } else { Err(Wait::Lock) }
            }
        }
    }
}
