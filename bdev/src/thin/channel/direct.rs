//! The short way: a read or an overwrite of what lies together on the base and is here. It is looked up and goes down with
//! another offset; nothing is kept of it but the epoch in which it began, in the bits of its tag that submitters leave free.
//! The first write of whole sub-blocks of one cluster goes a short way too, as one part and without a request.

use pollux_core::{Completion, Cx, FIRST_MARK, Io, IoError, IoFlags, Op, Tag};

use super::ThinChannel;
use super::composite::together;
use super::parts::{Kind, NOBODY, Part};
use super::read::mask;
use super::write::touched;
use crate::measured::tag_of;
use crate::thin::shared::{CLOSED, EPOCHS, Shared};

/// In a tag below: this request went the short way. Above it is its epoch.
const DIRECT: Tag = 1 << FIRST_MARK;
const EPOCH: u32 = FIRST_MARK + 1;

const _: () = assert!(EPOCHS << EPOCH >> EPOCH == EPOCHS, "the marks hold an epoch");

/// The tag below of a request that began in this epoch.
const fn marked(tag: Tag, epoch: u64) -> Tag {
    tag | DIRECT | (epoch % EPOCHS) << EPOCH
}

impl ThinChannel {
    /// Sends a request down if it can go the short way; whether it has.
    #[inline]
    pub(super) fn try_direct(&mut self, io: &Io, cx: &mut Cx<'_>) -> bool {
        let is_read = io.op == Op::Read;
        if !is_read && !self.may_write_direct(io) {
            return false;
        }
        if io.tag >> FIRST_MARK != 0 || !self.may_overtake(io.op) || !self.parts.has_place() {
            return false;
        }
        let (epoch, word) = self.stay.begin(&self.reader, &self.shared.epoch, self.volume.word());
        // A word that is gone by may be a closed one, after which nothing is to start.
        let open = word == self.word && word & CLOSED == 0 && (is_read || !self.volume.wants_care());
        let Some(base) = (if open { self.find_direct(io, is_read) } else { None }) else {
            let began = open && !is_read && self.try_first(io, epoch, cx);
            if !began {
                self.stay.end(&self.reader, epoch);
            }
            return began;
        };
        self.parts.direct += 1;
        self.base.submit(Io { tag: marked(io.tag, epoch), offset: base, ..*io }, cx);
        true
    }

    #[inline]
    fn may_write_direct(&self, io: &Io) -> bool {
        io.op == Op::Write
            && (io.flags - IoFlags::HASTY).is_empty()
            && !self.chain.read_only
            && !self.shared.commits.have_failed()
    }

    /// Sends the first write of whole sub-blocks of one cluster down, which goes where the entry is put now; whether it has.
    fn try_first(&mut self, io: &Io, epoch: u64, cx: &mut Cx<'_>) -> bool {
        let shared = &*self.shared;
        let (cluster, inside) = (io.offset >> shared.cluster_shift, io.offset & ((1 << shared.cluster_shift) - 1));
        let is_whole = (io.offset | io.len) & ((1 << shared.sub_shift()) - 1) == 0;
        let fits = inside + io.len <= 1 << shared.cluster_shift && io.end().is_some_and(|end| end <= self.chain.bytes);
        let (leaf, slot) = Shared::slot(cluster);
        let (true, Some(leaf)) = (is_whole && fits, self.head.leaf(leaf)) else { return false };
        // Whatever the entry says of these sub-blocks when they are locked: none of them is kept in part.
        let touched = touched(shared, io.offset, io.len);
        if !shared.locks.try_lock(self.head.id, cluster, touched) {
            return false;
        }
        let claimed = if self.volume.takes_freely() {
            shared.claim_freely(leaf, slot, self.reactor).ok()
        } else {
            self.claim(&self.head, leaf, slot).ok().map(|on| (on, false))
        };
        let Some((on, is_more)) = claimed else {
            shared.locks.unlock(self.head.id, cluster, touched);
            return false;
        };
        self.counts.owned += u64::from(is_more);
        let base = (u64::from(on) << shared.cluster_shift) + inside;
        let kind = Kind::First { map: None, leaf, slot: slot as u16, tag: io.tag, epoch };
        let token = self.parts.insert(Part { owner: NOBODY, kind, at: io.offset, len: io.len, base });
        self.base.submit(Io { tag: tag_of(token), flags: IoFlags::empty(), offset: base, ..*io }, cx);
        true
    }

    /// The data of a first write is on the base, or is not: says so in the entry and unlocks it.
    #[inline]
    pub(super) fn first_arrived(&mut self, part: &Part, result: Result<(), IoError>) -> Result<(), IoError> {
        let Kind::First { map, leaf, slot, .. } = &part.kind else { unreachable!("whoever calls has looked") };
        if map.is_some() || result.is_err() {
            let map = map.as_ref().unwrap_or(&self.head);
            return self.arrived(map, *leaf, part, result);
        }
        let shared = &*self.shared;
        let (on, locked) = ((part.base >> shared.cluster_shift) as u32, touched(shared, part.at, part.len));
        // The entry stays on its cluster as long as something of it is locked.
        let published = shared.publish_uncounted(*leaf, usize::from(*slot), on, locked);
        shared.locks.unlock(self.head.id, part.at >> shared.cluster_shift, locked);
        let newly = published.ok_or(IoError::Medium)?;
        self.counts.here += u64::from(newly.count_ones());
        Ok(())
    }

    /// Gives those their own tags again that went the short way, up to the first that did not. Returns how many.
    #[inline(always)]
    pub(super) fn end_direct(&mut self, completions: &mut [Completion]) -> usize {
        for (nth, completion) in completions.iter_mut().enumerate() {
            if completion.tag & DIRECT == 0 {
                return nth;
            }
            self.stay.end(&self.reader, completion.tag >> EPOCH);
            completion.tag &= DIRECT - 1;
            self.parts.direct -= 1;
        }
        completions.len()
    }

    /// Cancels a request that may have gone the short way.
    pub(super) fn cancel_direct(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        let is_first = |part: &Part| matches!(part.kind, Kind::First { tag: its, .. } if its == tag);
        if let Some((token, _)) = self.parts.slab.iter_mut().find(|(_, part)| is_first(part)) {
            self.base.cancel(tag_of(token), cx);
        } else if tag >> FIRST_MARK == 0 && self.parts.direct > 0 {
            // Of those that are not below the base knows nothing.
            (0..EPOCHS).for_each(|epoch| self.base.cancel(marked(tag, epoch), cx));
        }
    }

    /// Where all of a request lies together.
    #[inline(always)]
    fn find_direct(&mut self, io: &Io, is_read: bool) -> Option<u64> {
        let shared = &*self.shared;
        let inside = io.offset & ((1 << shared.cluster_shift) - 1);
        if io.end()? > self.bytes || inside + io.len > 1 << shared.cluster_shift {
            return None;
        }
        let cluster = io.offset >> shared.cluster_shift;
        let (leaf, slot) = Shared::slot(cluster);
        let Some(number) = self.head.leaf(leaf) else {
            return if is_read { self.find_any(io) } else { None };
        };
        let entry = shared.leaves.get(number).entry(slot);
        let wanted = mask(inside >> shared.sub_shift(), (inside + io.len - 1) >> shared.sub_shift());
        let on = if wanted & !entry.here() == 0 {
            let is_free = is_read || !shared.locks.is_locked(self.head.id, cluster, wanted);
            entry.cluster().filter(|_| is_free)
        } else if !is_read {
            None
        } else if wanted & !entry.parent() == 0
            && let Some(Ok(places)) = self.composite.places(shared, &self.chain, cluster)
        {
            together(places, wanted)
        } else {
            return self.find_any(io);
        };
        on.map(|on| (u64::from(on) << shared.cluster_shift) + inside)
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
