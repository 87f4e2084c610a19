//! Sub-blocks of which a request covers a part only, and which are not here: the rest comes from the layers below, or is
//! zero, and the whole goes to the base from a buffer before anybody can see it.
//!
//! One at a time: the sub-block is locked. And only when the writes that were in flight when the head came to be have
//! ended: they still change the layer below.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use pollux_core::segment::zero;
use pollux_core::{Cx, Io, IoFlags, Op, Token};

use super::parts::{Edge, Kind, Part};
use super::read::front;
use super::write::Piece;
use super::{ThinChannel, Wait};
use crate::measured::tag_of;
use crate::memory::gather;
use crate::thin::shared::LayerMap;

impl ThinChannel {
    /// Whether what the layers below the head hold is final.
    pub(super) fn is_settled(&self) -> bool {
        self.chain.layers.len() == 1 || self.chain.settled.load(Acquire)
    }

    /// Starts a piece that is an edge.
    pub(super) fn start_edge(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        piece: &Piece,
        cx: &mut Cx<'_>,
    ) -> Result<(), Wait> {
        if !self.is_settled() {
            return Err(Wait::Engine);
        }
        if !self.has_place() {
            return Err(Wait::Place);
        }
        let buffer = self.parts.take_buffer().ok_or(Wait::Place)?;
        let started = self.lock_and_fill(token, head, piece, buffer, cx);
        if started.is_err() {
            self.parts.give_buffer(buffer);
        }
        started
    }

    fn lock_and_fill(
        &mut self,
        token: Token,
        head: &Arc<LayerMap>,
        piece: &Piece,
        buffer: usize,
        cx: &mut Cx<'_>,
    ) -> Result<(), Wait> {
        let cluster = self.lock_and_claim(head, piece)?;
        let size = 1u64 << self.shared.sub_shift();
        let first = piece.at & !(size - 1);
        let entry = self.shared.leaves.get(piece.leaf).entry(piece.slot);
        let below = if entry.zero() & piece.touched != 0 {
            Ok((None, size))
        } else {
            front(&self.shared, &self.chain, 1, first, size).and_then(|below| self.within_reach(below))
        };
        let (source, _) = match below {
            Ok(below) => below,
            Err(miss) => {
                self.let_go(head, piece);
                return Err(miss.into());
            }
        };
        let inside = first & ((1 << self.shared.cluster_shift) - 1);
        let base = (u64::from(cluster) << self.shared.cluster_shift) + inside;
        let edge = Edge { map: head.clone(), leaf: piece.leaf, buffer, base };
        let request = self.request(token);
        request.unmapped = true;
        request.parts += 1;
        let list = self.parts.buffer(buffer).list();
        let part = Part { owner: token, kind: Kind::EdgeRead(edge), at: piece.at, len: piece.len, base };
        let part = self.parts.insert(part);
        match source {
            Some(from) => {
                let (flags, len) = (IoFlags::empty(), size);
                let io = Io { tag: tag_of(part), op: Op::Read, flags, offset: from, len, data: list };
                self.base.submit(io, cx);
            }
            None => {
                zero(list.as_slice(), 0, size as usize);
                self.fill_edge(part, cx);
            }
        }
        Ok(())
    }

    /// The rest of an edge is in its buffer: puts the request's data over it and writes it.
    pub(super) fn fill_edge(&mut self, token: Token, cx: &mut Cx<'_>) {
        let size = 1u64 << self.shared.sub_shift();
        let part = self.parts.slab.remove(token).expect("a part that was read");
        let Part { owner, kind: Kind::EdgeRead(edge), at, len, base } = part else {
            unreachable!("only edges are filled")
        };
        let io = self.request(owner).io;
        let buffer = self.parts.buffer(edge.buffer);
        let (segment, data) = (buffer.segment(), buffer.list());
        let inside = (at & (size - 1)) as usize;
        if io.op == Op::Write {
            gather(io.data.as_slice(), (at - io.offset) as usize, segment.slice(inside, len as usize));
        } else {
            zero(&[segment], inside, len as usize);
        }
        let offset = edge.base;
        let token = self.parts.insert(Part { owner, kind: Kind::EdgeWrite(edge), at, len, base });
        let io = Io { tag: tag_of(token), op: Op::Write, flags: IoFlags::empty(), offset, len: size, data };
        self.base.submit(io, cx);
    }
}
