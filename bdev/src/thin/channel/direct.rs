//! The short way: a read or an overwrite of what lies together on the base and is here. It is looked up and goes down with
//! another offset; nothing is kept of it but the epoch in which it began, in the bits of its tag that submitters leave free.

use pollux_core::{Completion, Cx, FIRST_MARK, Io, IoFlags, Op, Tag};

use super::ThinChannel;
use super::composite::together;
use super::write::touched;
use crate::thin::shared::{EPOCHS, Shared};

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
    pub(super) fn try_direct(&mut self, io: &mut Io, cx: &mut Cx<'_>) -> bool {
        let may = match io.op {
            Op::Read => true,
            Op::Write => {
                (io.flags - IoFlags::HASTY).is_empty() && !self.chain.read_only && !self.shared.commits.have_failed()
            }
            _ => false,
        };
        if !may || io.tag >> FIRST_MARK != 0 || !self.waiting.is_empty() || !self.parts.has_place() {
            return false;
        }
        let (epoch, word) = self.stay.begin(&self.reader, &self.shared.epoch, self.volume.word());
        let base = if word == self.word { self.find_direct(io) } else { None };
        let Some(base) = base else {
            self.stay.end(&self.reader, epoch);
            return false;
        };
        self.parts.direct += 1;
        (io.tag, io.offset) = (marked(io.tag, epoch), base);
        self.base.submit(*io, cx);
        true
    }

    /// Gives those their own tags again that went the short way, up to the first that did not. Returns how many.
    #[inline]
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
        if tag >> FIRST_MARK == 0 && self.parts.direct > 0 {
            // Of those that are not below the base knows nothing.
            (0..EPOCHS).for_each(|epoch| self.base.cancel(marked(tag, epoch), cx));
        }
    }

    /// Where all of a request lies together.
    #[inline]
    fn find_direct(&mut self, io: &Io) -> Option<u64> {
        let shared = &self.shared;
        let inside = io.offset & ((1 << shared.cluster_shift) - 1);
        if io.end()? > self.chain.bytes || inside + io.len > 1 << shared.cluster_shift {
            return None;
        }
        let cluster = io.offset >> shared.cluster_shift;
        let (leaf, slot) = Shared::slot(cluster);
        let reads = io.op == Op::Read;
        let Some(number) = self.head.leaf(leaf) else {
            return if reads { self.find_any(io) } else { None };
        };
        let entry = shared.leaves.get(number).entry(slot);
        let wanted = touched(shared, io.offset, io.len);
        let on = if wanted & !entry.here() == 0 {
            entry.cluster()
        } else if !reads {
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
