//! The short way: a read or an overwrite of what lies together on the base and is here. It is looked up and goes down with
//! another offset; nothing is kept of it but the number of its burst (`below.rs`), in bits of its tag that submitters leave free.
//! The first write of whole sub-blocks of one cluster goes a short way too, as one part and without a request.

use pollux_core::{Completion, Cx, Io, IoError, IoFlags, Op, Tag};

use super::ThinChannel;
use super::below::{Class, MARKS, is_direct};
use super::composite::together;
use super::parts::{Kind, NOBODY, Part};
use super::read::mask;
use super::write::touched;
use crate::measured::tag_of;
use crate::thin::format::SUB_BLOCKS;
use crate::thin::shared::{CLOSED, Shared};

impl ThinChannel {
    /// Sends a request down if it can go the short way; whether it has.
    #[inline]
    pub(super) fn try_direct(&mut self, io: &Io, cx: &mut Cx<'_>) -> bool {
        match io.op {
            Op::Read => self.try_joining::<true>(io, cx),
            Op::Write if (io.flags - IoFlags::HASTY).is_empty() => self.try_joining::<false>(io, cx),
            _ => false,
        }
    }

    #[inline(always)]
    fn try_joining<const IS_READ: bool>(&mut self, io: &Io, cx: &mut Cx<'_>) -> bool {
        let class = if IS_READ { Class::Read } else { Class::Write };
        if io.tag & MARKS != 0 || !self.may_overtake(io.op) || !self.has_place() {
            return false;
        }
        if !self.base.is_joinable(class, io.len, cx.now) {
            return self.begin_burst(class, io, cx);
        }
        let Some(base) = self.find_direct(io, IS_READ) else { return self.begin_other(io, None, cx) };
        self.base.submit_direct(class, io, base, cx);
        true
    }

    /// The same, for one that begins a burst if it goes the short way.
    #[inline(never)]
    fn begin_burst(&mut self, class: Class, io: &Io, cx: &mut Cx<'_>) -> bool {
        let is_read = class == Class::Read;
        let Some(epoch) = self.begin_direct(is_read) else { return false };
        let Some(base) = self.find_direct(io, is_read) else { return self.begin_other(io, Some(epoch), cx) };
        self.base.begin(class, io.op, io.len, cx.now, Some(epoch));
        self.base.submit_direct(class, io, base, cx);
        true
    }

    /// Begins the stay of what goes the short way, if the volume and the pool are so that it can.
    #[inline]
    fn begin_direct(&mut self, is_read: bool) -> Option<u64> {
        if !is_read && (self.chain.read_only || self.shared.commits.have_failed()) {
            return None;
        }
        let (epoch, word) = self.stay.begin(&self.reader, &self.shared.epoch, self.volume.word());
        // A word that is gone by may be a closed one, after which nothing is to start.
        let is_open = word == self.word && word & CLOSED == 0 && (is_read || !self.volume.wants_care());
        if !is_open {
            self.stay.end(&self.reader, epoch);
        }
        is_open.then_some(epoch)
    }

    /// What is written is not here, or not all of a read lies together: whether it has begun as a first write. Its stay has
    /// begun in this epoch, unless it would have joined a burst.
    #[inline(never)]
    fn begin_other(&mut self, io: &Io, epoch: Option<u64>, cx: &mut Cx<'_>) -> bool {
        let is_read = io.op == Op::Read;
        let Some(epoch) = epoch.or_else(|| if is_read { None } else { self.begin_direct(false) }) else {
            return false;
        };
        let began = !is_read && self.try_first(io, epoch, cx);
        if !began {
            self.stay.end(&self.reader, epoch);
        }
        began
    }

    /// Sends the first write of whole sub-blocks of one cluster down, which goes where the entry is put now; whether it has.
    #[inline(never)]
    fn try_first(&mut self, io: &Io, epoch: u64, cx: &mut Cx<'_>) -> bool {
        let shared = &*self.shared;
        let (cluster, inside) = (io.offset >> shared.cluster_shift, io.offset & ((1 << shared.cluster_shift) - 1));
        let is_whole = (io.offset | io.len) & ((1 << shared.sub_shift()) - 1) == 0;
        let fits = inside + io.len <= 1 << shared.cluster_shift && io.end().is_some_and(|end| end <= self.bytes);
        let (leaf, slot) = Shared::slot(cluster);
        let (true, Some(leaf)) = (is_whole && fits, self.head.leaf(leaf)) else { return false };
        // Whatever the entry says of these sub-blocks when they are locked: none of them is kept in part.
        let locked = touched(shared, io.offset, io.len);
        if !shared.locks.try_lock(self.head.id, cluster, locked) {
            return false;
        }
        let claimed = if self.volume.takes_freely() {
            shared.claim_freely(leaf, slot, self.reactor).ok()
        } else {
            self.claim(&self.head, leaf, slot).ok().map(|on| (on, false))
        };
        let Some((on, is_more)) = claimed else {
            shared.locks.unlock(self.head.id, cluster, locked);
            return false;
        };
        self.counts.owned += u64::from(is_more);
        let base = (u64::from(on) << shared.cluster_shift) + inside;
        let kind = Kind::First { map: None, leaf, slot: slot as u16, locked, tag: io.tag, epoch };
        let token = self.parts.insert(Part { owner: NOBODY, kind, at: io.offset, len: io.len, base });
        self.base.submit(Io { tag: tag_of(token), flags: IoFlags::empty(), offset: base, ..*io }, cx);
        true
    }

    /// The data of a first write is on the base, or is not: says so in the entry and unlocks it.
    #[inline]
    pub(super) fn first_arrived(&mut self, part: &Part, result: Result<(), IoError>) -> Result<(), IoError> {
        let Kind::First { map, leaf, slot, locked, .. } = &part.kind else { unreachable!("whoever calls has looked") };
        if map.is_some() || result.is_err() {
            let map = map.as_ref().unwrap_or(&self.head);
            return self.arrived(map, *leaf, part, result);
        }
        let shared = &*self.shared;
        let on = (part.base >> shared.cluster_shift) as u32;
        // The entry stays on its cluster as long as something of it is locked.
        let published = shared.publish_uncounted(*leaf, usize::from(*slot), on, *locked);
        shared.locks.unlock(self.head.id, part.at >> shared.cluster_shift, *locked);
        let newly = published.ok_or(IoError::Medium)?;
        self.counts.here += u64::from(newly.count_ones());
        Ok(())
    }

    /// Gives those their own tags again that went the short way, up to the first that did not. Returns how many.
    #[inline(always)]
    pub(super) fn end_direct(&mut self, completions: &mut [Completion], now: u64) -> usize {
        let mut ended = 0;
        while completions.get(ended).is_some_and(|completion| is_direct(completion.tag)) {
            ended += self.end_alike(&mut completions[ended..], now);
        }
        ended
    }

    /// Ends the front that is of one burst. Returns how many they are.
    #[inline(always)]
    pub(super) fn end_alike(&mut self, completions: &mut [Completion], now: u64) -> usize {
        let (count, epoch) = self.base.end_alike(completions, now);
        if let Some(epoch) = epoch {
            self.stay.end(&self.reader, epoch);
        }
        count
    }

    /// Cancels a request that may have gone the short way.
    pub(super) fn cancel_direct(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let is_first = |part: &Part| matches!(part.kind, Kind::First { tag: its, .. } if its == tag);
        if let Some((token, _)) = self.parts.slab.iter_mut().find(|(_, part)| is_first(part)) {
            self.base.cancel(tag_of(token), false, cx);
        } else if tag & MARKS == 0 {
            self.base.cancel(tag, true, cx);
        }
    }

    /// Where all of a request lies together.
    #[inline(always)]
    fn find_direct(&mut self, io: &Io, is_read: bool) -> Option<u64> {
        let shared = &*self.shared;
        let (shift, sub_shift) = (shared.cluster_shift, shared.sub_shift());
        // Its last byte. One that goes beyond all addresses ends in another cluster.
        let last = io.offset.wrapping_add(io.len).wrapping_sub(1);
        if last >= self.bytes || (io.offset ^ last) >> shift != 0 {
            return None;
        }
        let cluster = io.offset >> shift;
        let (leaf, slot) = Shared::slot(cluster);
        let Some(number) = self.head.leaf(leaf) else {
            return if is_read { self.find_any(io) } else { None };
        };
        let entry = shared.leaves.get(number).entry(slot);
        let nth = |at: u64| (at >> sub_shift) % u64::from(SUB_BLOCKS);
        let wanted = mask(nth(io.offset), nth(last));
        if wanted & !entry.here() == 0 {
            let is_free = is_read || !shared.locks.is_locked(self.head.id, cluster, wanted);
            let on = entry.cluster().filter(|_| is_free)?;
            // At its own place in the cluster.
            Some(((u64::from(on).wrapping_sub(cluster)) << shift).wrapping_add(io.offset))
        } else if !is_read {
            None
        } else if wanted & !entry.parent() == 0 {
            self.find_remembered(io, cluster, wanted)
        } else {
            self.find_any(io)
        }
    }

    /// The same of a read, all of whose sub-blocks in this cluster are left to the layers below the head.
    #[inline(never)]
    fn find_remembered(&mut self, io: &Io, cluster: u64, wanted: u16) -> Option<u64> {
        let shared = &*self.shared;
        let Some(Ok(places)) = self.composite.places(shared, &self.chain, cluster) else { return self.find_any(io) };
        let on = together(places, wanted)?;
        Some((u64::from(on) << shared.cluster_shift) + (io.offset & ((1 << shared.cluster_shift) - 1)))
    }

    /// The same, whatever layers have it.
    #[inline(never)]
    fn find_any(&mut self, io: &Io) -> Option<u64> {
        match self.look(io.offset, io.len) {
            Ok((base, len)) if len == io.len => base,
            _ => None,
        }
    }
}
