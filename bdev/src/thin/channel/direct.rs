//! The short way: a read or an overwrite of what lies together on the base and is here. It is looked up and goes down as it
//! is, with another tag and offset; nothing is kept of it but its part.

use pollux_core::{Cx, Io, IoFlags, Op};

use super::ThinChannel;
use super::parts::{Kind, NOBODY, Part};
use super::read::front;
use super::write::touched;
use crate::measured::tag_of;
use crate::thin::shared::{Place, Shared};

impl ThinChannel {
    /// Sends a request down if it can go the short way; whether it has.
    #[inline]
    pub(super) fn try_direct(&mut self, io: &Io, cx: &mut Cx<'_>) -> bool {
        let may = match io.op {
            Op::Read => true,
            Op::Write => {
                (io.flags - IoFlags::HASTY).is_empty() && !self.chain.read_only && !self.shared.commits.have_failed()
            }
            _ => false,
        };
        let fits = io.end().is_some_and(|end| end <= self.chain.bytes);
        if !may || !fits || !self.waiting.is_empty() || !self.parts.has_place() {
            return false;
        }
        let (epoch, word) = self.stay.begin(&self.reader, &self.shared.epoch, self.volume.word());
        let base = if word == self.word { self.find_direct(io) } else { None };
        let Some(base) = base else {
            self.stay.end(&self.reader, epoch);
            return false;
        };
        let kind = Kind::Direct { tag: io.tag, epoch };
        let token = self.parts.insert(Part { owner: NOBODY, kind, at: io.offset, len: io.len, base });
        self.base.submit(Io { tag: tag_of(token), offset: base, ..*io }, cx);
        true
    }

    /// Where all of a request lies together.
    #[inline]
    fn find_direct(&self, io: &Io) -> Option<u64> {
        let shared = &self.shared;
        let cluster = io.offset >> shared.cluster_shift;
        let inside = io.offset & ((1 << shared.cluster_shift) - 1);
        if inside + io.len > 1 << shared.cluster_shift {
            return None;
        }
        let (leaf, slot) = Shared::slot(cluster);
        if let Place::At(number) = self.chain.head().place(leaf) {
            let entry = shared.leaves.get(number).entry(slot);
            if touched(shared, io.offset, io.len) & !entry.here() == 0 {
                return entry.cluster().map(|on| (u64::from(on) << shared.cluster_shift) + inside);
            }
        }
        match front(shared, &self.chain, 0, io.offset, io.len) {
            Ok((base, len)) if io.op == Op::Read && len == io.len => base,
            _ => None,
        }
    }
}
