//! Memory of one request, cut into pieces.

#![allow(unsafe_code)]

use pollux_core::segment::{copy_from, copy_to};
use pollux_core::{Segment, SegmentList};

use crate::memory::{Buffer, list};

/// A buffer and the segments that it is given away in. Its owner keeps it until the request has completed, or until
/// whoever has the request is gone.
pub(super) struct Data {
    _buffer: Buffer,
    pieces: Box<[Segment]>,
    len: usize,
}

impl Data {
    /// Memory with these bytes, cut behind each of `cuts` (which rise).
    pub(super) fn new(bytes: &[u8], cuts: &[usize]) -> Self {
        let buffer = Buffer::new(bytes.len());
        let ends = cuts.iter().copied().filter(|cut| (1..bytes.len()).contains(cut)).chain([bytes.len()]);
        let mut at = 0;
        let mut pieces = Vec::new();
        for end in ends.filter(|end| *end > 0) {
            if end > at {
                pieces.push(buffer.segment().slice(at, end - at));
                at = end;
            }
        }
        assert_eq!(copy_to(&pieces, 0, bytes), bytes.len(), "the pieces are the whole buffer");
        Data { _buffer: buffer, pieces: pieces.into(), len: bytes.len() }
    }

    pub(super) fn list(&self) -> SegmentList {
        // SAFETY: the boxed segments stay where they are and unchanged while this lives, which the owner keeps until the
        // request has completed or nobody is left who has it.
        unsafe { list(&self.pieces) }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        assert_eq!(copy_from(&self.pieces, 0, &mut bytes), self.len, "the pieces are the whole buffer");
        bytes
    }
}
