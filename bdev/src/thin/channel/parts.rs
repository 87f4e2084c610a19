//! Requests to the base on behalf of requests to a volume. Each part is one contiguous range of the base.
//!
//! Everything a part needs is taken when the channel is opened: its place, its list of segments (which grows where a
//! guest's lists are long, and stays so), and for the edges of sub-blocks a few buffers.

use std::sync::Arc;

use pollux_core::segment::for_range;
use pollux_core::{SegmentList, Slab, Tag, Token};

use super::ThinChannel;
use crate::memory::{Buffer, Pieces};
use crate::thin::shared::LayerMap;

/// Segments that a part's list has room for at first.
const SEGMENTS: usize = 16;

/// What a part is for.
pub(super) enum Kind {
    /// Data of sub-blocks that are here, or a read: nothing is to be done afterwards.
    Plain,
    /// Data of a write that counts as a whole: what it has locked is in its request.
    Atomic,
    /// Data of sub-blocks that are not here yet and locked; all in this leaf, which stays in memory meanwhile.
    Fresh(Arc<LayerMap>, u32),
    /// The same for all of a request of which nothing else is known, in one cluster: the sub-blocks, its tag, and the epoch in
    /// which it began. Without a map it is the channel's head, until that is another one.
    First { map: Option<Arc<LayerMap>>, leaf: u32, slot: u16, locked: u16, tag: Tag, epoch: u64 },
    /// The rest of a sub-block is read into a buffer, before the request's data goes over it.
    EdgeRead(Edge),
    /// A whole sub-block is written from a buffer.
    EdgeWrite(Edge),
}

/// The owner of a part that is all of a request.
pub(super) const NOBODY: Token = Token { index: u32::MAX, generation: 0 };

/// A sub-block of which a request covers a part only.
pub(super) struct Edge {
    pub(super) map: Arc<LayerMap>,
    /// The leaf with its entry.
    pub(super) leaf: u32,
    /// Which buffer holds it.
    pub(super) buffer: usize,
    /// Where it goes on the base.
    pub(super) base: u64,
}

/// See the module's description.
pub(super) struct Part {
    /// The request; [`NOBODY`] of one that is all of it.
    pub(super) owner: Token,
    pub(super) kind: Kind,
    /// The range of the volume.
    pub(super) at: u64,
    pub(super) len: u64,
    /// Where it is on the base.
    pub(super) base: u64,
}

/// All parts of a channel.
pub(super) struct Parts {
    pub(super) slab: Slab<Part>,
    lists: Box<[Pieces]>,
    buffers: Box<[Buffer]>,
    free_buffers: Vec<usize>,
}

impl Parts {
    pub(super) fn new(depth: u32, buffers: usize, sub_block: usize) -> Parts {
        Parts {
            slab: Slab::new(depth),
            lists: (0..depth).map(|_| Pieces::new(SEGMENTS)).collect(),
            buffers: (0..buffers).map(|_| Buffer::new(sub_block)).collect(),
            free_buffers: (0..buffers).collect(),
        }
    }

    /// Takes a place; the caller has asked whether there is one.
    #[inline]
    pub(super) fn insert(&mut self, part: Part) -> Token {
        self.slab.insert(part).unwrap_or_else(|_| unreachable!("whoever starts a part has asked for a place"))
    }

    /// The bytes `skip..skip + len` of a request's data, as the data of this part.
    pub(super) fn cut(&mut self, token: Token, data: SegmentList, skip: u64, len: u64) -> SegmentList {
        let mine = &mut self.lists[token.index as usize];
        mine.clear();
        let held = for_range(data.as_slice(), skip as usize, len as usize, |part| mine.push(part));
        assert_eq!(held as u64, len, "the segments hold what the request says");
        self.lists[token.index as usize].list()
    }

    /// The channel goes to another head: first writes in flight arrive in the one that they were begun in.
    #[cold]
    pub(super) fn head_leaves(&mut self, head: &Arc<LayerMap>) {
        for (_, part) in self.slab.iter_mut() {
            if let Kind::First { map: map @ None, .. } = &mut part.kind {
                *map = Some(head.clone());
            }
        }
    }

    /// A buffer of the size of a sub-block.
    pub(super) fn take_buffer(&mut self) -> Option<usize> {
        self.free_buffers.pop()
    }

    pub(super) fn give_buffer(&mut self, buffer: usize) {
        self.free_buffers.push(buffer);
    }

    pub(super) fn buffer(&self, buffer: usize) -> &Buffer {
        &self.buffers[buffer]
    }
}

impl ThinChannel {
    /// Whether there is a place for another part.
    #[inline]
    pub(super) fn has_place(&self) -> bool {
        self.base.in_flight() < self.base.depth()
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        (self.base.depth() - self.base.in_flight()) as usize
    }
}
