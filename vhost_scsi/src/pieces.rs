//! The segments of one request, kept from submission to completion: first those of the response, then those of the data.
//! Small requests fit in place. A larger list is allocated once and kept for the slot's next large request; one of more
//! than [`KEPT`] segments (a transfer of 256 KiB in single pages, or more) is allocated each time, which such a transfer
//! does not notice, and given back, because a guest could have one for each slot.

#![allow(unsafe_code)]

use pollux_core::{Segment, SegmentList};

const SMALL: usize = 3;
/// A list longer than this is given back when its request ends.
const KEPT: usize = 64;

/// A request's segments.
pub(crate) struct Pieces {
    small: [Segment; SMALL],
    #[allow(clippy::box_collection)] // Most slots never have one: a pointer keeps them small.
    large: Option<Box<Vec<Segment>>>,
    /// At most as many as a `SegmentBuf` holds, and one more for each cut.
    len: u16,
    response: u8,
}

impl Default for Pieces {
    fn default() -> Self {
        Pieces { small: [Segment::EMPTY; SMALL], large: None, len: 0, response: 0 }
    }
}

impl Pieces {
    /// Forgets all segments.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        if usize::from(self.len) > SMALL {
            self.clear_large();
        }
        self.len = 0;
        self.response = 0;
    }

    #[cold]
    fn clear_large(&mut self) {
        match &mut self.large {
            Some(large) if large.capacity() <= KEPT => large.clear(),
            large => *large = None,
        }
    }

    /// Appends a segment.
    #[inline]
    pub(crate) fn push(&mut self, segment: Segment) {
        match self.small.get_mut(usize::from(self.len)) {
            Some(place) => *place = segment,
            None => self.push_large(segment),
        }
        self.len += 1;
    }

    /// Fills an empty list: one segment of response, and data that begins with `first`, which may be empty.
    #[inline(always)]
    pub(crate) fn fill(&mut self, response: Segment, first: Segment, more: &[Segment]) {
        let (one, rest) = match (first.is_empty(), more) {
            (true, [one, rest @ ..]) => (*one, rest),
            (_, rest) => (first, rest),
        };
        self.small[0] = response;
        self.small[1] = one;
        (self.len, self.response) = (2, 1);
        if !rest.is_empty() {
            self.push_all(rest);
        }
    }

    #[inline(never)]
    fn push_all(&mut self, segments: &[Segment]) {
        for &segment in segments {
            self.push(segment);
        }
    }

    #[inline(never)]
    fn push_large(&mut self, segment: Segment) {
        let large = self.large.get_or_insert_default();
        if usize::from(self.len) == SMALL {
            large.extend_from_slice(&self.small);
        }
        large.push(segment);
    }

    /// What was pushed so far is the response; what comes after is the data.
    #[inline]
    pub(crate) fn response_ends(&mut self) {
        self.response = u8::try_from(self.len).expect("a response has no more segments than bytes");
    }

    #[inline(always)]
    fn all(&self) -> &[Segment] {
        let len = usize::from(self.len);
        match (self.small.get(..len), &self.large) {
            (Some(small), _) => small,
            (None, Some(large)) => large,
            (None, None) => unreachable!("more segments than fit in place are in a list"),
        }
    }

    /// The response's segments.
    #[inline(always)]
    pub(crate) fn response(&self) -> &[Segment] {
        &self.all()[..usize::from(self.response)]
    }

    /// The data's segments, to go with a request.
    #[inline(always)]
    pub(crate) fn data(&self) -> SegmentList {
        // SAFETY: the pieces sit in a slot of a boxed table that lives until the port has nothing in flight, and a
        // running slot's pieces are not changed (`Slot` lets go of them only when the request has completed).
        unsafe { SegmentList::new(&self.all()[usize::from(self.response)..]) }
    }
}

/// One block repeated over a whole step of a WRITE SAME: a buffer of some copies, and segments that all point to it.
pub(crate) struct Pattern {
    /// Only the segments look at it.
    _bytes: Box<[u8]>,
    segments: Vec<Segment>,
}

/// Length of the buffer that the segments repeat: whole blocks of any size.
const PATTERN_BYTES: usize = 64 << 10;

impl Pattern {
    /// `block` repeated over steps of at most `step` bytes.
    pub(crate) fn new(block: &[u8], step: u64) -> Pattern {
        assert!(PATTERN_BYTES.is_multiple_of(block.len()), "a logical block is a power of two");
        let mut bytes: Box<[u8]> = block.repeat(PATTERN_BYTES / block.len()).into();
        let count = usize::try_from(step).expect("a step fits into memory").div_ceil(PATTERN_BYTES);
        // SAFETY: the buffer lives in the same struct, is never borrowed otherwise, and the struct outlives the
        // requests made from it (a slot drops its pattern only when its request has completed).
        let whole = unsafe { Segment::new(bytes.as_mut_ptr() as usize, PATTERN_BYTES) };
        Pattern { _bytes: bytes, segments: vec![whole; count] }
    }

    /// The segments for a step of `len` bytes.
    pub(crate) fn data(&mut self, len: u64) -> SegmentList {
        let len = usize::try_from(len).expect("a step fits into memory");
        let count = len.div_ceil(PATTERN_BYTES);
        // SAFETY: as in `new`; the last segment of a shorter step is cut to fit.
        let whole = unsafe { Segment::new(self.segments[0].addr(), PATTERN_BYTES) };
        self.segments.fill(whole);
        self.segments[count - 1] = whole.slice(0, len - (count - 1) * PATTERN_BYTES);
        // SAFETY: the list lives as long as the pattern and is not changed before the next step, which starts when this
        // one has completed.
        unsafe { SegmentList::new(&self.segments[..count]) }
    }
}

/// Bytes of ours that go to a device.
pub(crate) struct Copied {
    /// Only the segment looks at it.
    _bytes: Box<[u8]>,
    segment: Box<Segment>,
}

impl Copied {
    pub(crate) fn new(bytes: &[u8]) -> Copied {
        let mut bytes: Box<[u8]> = bytes.into();
        // SAFETY: the buffer lives in the same struct, is never borrowed otherwise, and the struct outlives the request made
        // from it (a slot drops it only when its request has completed).
        let segment = unsafe { Segment::new(bytes.as_mut_ptr() as usize, bytes.len()) };
        Copied { _bytes: bytes, segment: Box::new(segment) }
    }

    /// All of them, as a list of one.
    pub(crate) fn data(&self) -> SegmentList {
        // SAFETY: the list lives as long as the bytes and is never changed.
        unsafe { SegmentList::new(std::slice::from_ref(&*self.segment)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_stays_what_it_was() {
        let mut bytes = *b"parameters";
        let copied = Copied::new(&bytes);
        bytes.fill(0);
        let moved = Box::new(copied);
        assert_eq!(moved.data().bytes(), 10);
        pollux_core::segment::copy_from(moved.data().as_slice(), 0, &mut bytes);
        assert_eq!(&bytes, b"parameters");
    }

    #[test]
    fn a_pattern_fills_a_step_of_any_length() {
        let mut pattern = Pattern::new(&[7; 512], 1 << 20);
        for len in [1 << 20, 512, 66048, 65536, 1 << 20] {
            let list = pattern.data(len);
            assert_eq!(list.bytes(), len);
            let mut bytes = vec![0; len as usize];
            pollux_core::segment::copy_from(list.as_slice(), 0, &mut bytes);
            assert!(bytes.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn long_lists_keep_their_order() {
        let mut pieces = Pieces::default();
        for round in 0..2 {
            pieces.clear();
            for i in 0..20usize {
                if i == 3 {
                    pieces.response_ends();
                }
                // SAFETY: the segments are never used, only compared.
                pieces.push(unsafe { Segment::new(i + round, 1) });
            }
            let addresses = |s: &[Segment]| s.iter().map(|s| s.addr() - round).collect::<Vec<_>>();
            assert_eq!(addresses(pieces.response()), [0, 1, 2]);
            assert_eq!(addresses(pieces.data().as_slice()), (3..20).collect::<Vec<_>>());
        }
    }
}
