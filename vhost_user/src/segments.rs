//! Where the pieces of one chain are collected.
//!
//! Invariants: segments before the border are device-readable, those behind it device-writable; neighbours on the same
//! side of the border that touch in host memory are one segment.

#![allow(unsafe_code)]

use pollux_core::Segment;

/// Host addresses of one chain's buffers: readable ones first, then writable ones. Allocated once, filled again and again.
pub struct SegmentBuf {
    list: Box<[Segment]>,
    len: usize,
    /// Segments before this one take no more bytes.
    border: usize,
}

impl SegmentBuf {
    /// 1024 descriptors, and room for those that cross a border between two memory regions.
    pub const CAPACITY: usize = 1024 + 128;

    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        SegmentBuf { list: vec![Segment::EMPTY; Self::CAPACITY].into_boxed_slice(), len: 0, border: 0 }
    }

    /// Empties it.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.border = 0;
    }

    /// How many segments.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segments.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        &self.list[..self.len]
    }

    /// What is pushed from now on is not joined to what is there.
    #[inline]
    pub(crate) fn set_border(&mut self) {
        self.border = self.len;
    }

    /// Appends; `false` if there is no room.
    #[inline(always)]
    #[must_use]
    pub(crate) fn push(&mut self, segment: Segment) -> bool {
        if self.len > self.border {
            let last = &mut self.list[self.len - 1];
            if last.addr() + last.len() == segment.addr() {
                // SAFETY: both parts are mapped (their makers promised), so the range that they make up is.
                *last = unsafe { Segment::new(last.addr(), last.len() + segment.len()) };
                return true;
            }
        }
        let Some(slot) = self.list.get_mut(self.len) else { return false };
        *slot = segment;
        self.len += 1;
        true
    }
}

impl Default for SegmentBuf {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: usize, len: usize) -> Segment {
        // SAFETY: never dereferenced here.
        unsafe { Segment::new(addr, len) }
    }

    #[test]
    fn neighbours_are_joined_up_to_the_border() {
        let mut buf = SegmentBuf::new();
        assert!(buf.push(at(100, 10)) && buf.push(at(110, 5)) && buf.push(at(200, 1)));
        buf.set_border();
        assert!(buf.push(at(201, 4)) && buf.push(at(205, 4)));
        assert_eq!(buf.as_slice(), [at(100, 15), at(200, 1), at(201, 8)]);
        buf.clear();
        assert!(buf.is_empty());
        for i in 0..SegmentBuf::CAPACITY {
            assert!(buf.push(at(i * 2 + 1, 1)));
        }
        assert!(!buf.push(at(9999, 1)));
        assert_eq!(buf.len(), SegmentBuf::CAPACITY);
    }
}
