//! Pieces of memory that a request reads or fills: guest memory, mostly.
//!
//! A [`Segment`] is an address and a length, laid out like `struct iovec`, so that a list of them goes to the kernel as
//! it is. Guest memory changes under our hands at any time; it is never borrowed as a slice of bytes, only copied from
//! and to by the functions of this file, each byte once.
//!
//! The unsafe step is making a segment: whoever does so promises that the memory stays mapped until the request it is
//! part of has completed. Using one is safe then.

#![allow(unsafe_code)]

use std::ptr;

/// A piece of memory, laid out like `struct iovec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    addr: usize,
    len: usize,
}

impl Segment {
    /// A segment of length 0.
    pub const EMPTY: Segment = Segment { addr: 0, len: 0 };

    /// # Safety
    /// `addr..addr + len` is mapped, readable and writable, until the request that the segment is put into has
    /// completed, and no Rust reference to any of it exists meanwhile (other than through `UnsafeCell`-like memory).
    #[inline]
    #[must_use]
    pub const unsafe fn new(addr: usize, len: usize) -> Self {
        Segment { addr, len }
    }

    /// The address of the first byte.
    #[inline]
    #[must_use]
    pub const fn addr(&self) -> usize {
        self.addr
    }

    /// The length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part from `from` on, at most `len` bytes of it.
    ///
    /// # Panics
    /// If `from` lies behind the end.
    #[inline(always)]
    #[must_use]
    pub fn slice(&self, from: usize, len: usize) -> Segment {
        assert!(from <= self.len, "segment of {} bytes cut at {from}", self.len);
        Segment { addr: self.addr + from, len: len.min(self.len - from) }
    }
}

/// A borrowed list of segments without a lifetime, for requests that outlive the call that made them.
#[derive(Clone, Copy, Debug)]
pub struct SegmentList {
    first: usize,
    count: usize,
}

impl SegmentList {
    /// No segments.
    pub const EMPTY: SegmentList = SegmentList { first: 0, count: 0 };

    /// # Safety
    /// `segments` stays where it is and unchanged until the request that the list is put into has completed.
    #[inline]
    #[must_use]
    pub unsafe fn new(segments: &[Segment]) -> Self {
        SegmentList { first: segments.as_ptr() as usize, count: segments.len() }
    }

    /// The segments.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        if self.count == 0 {
            return &[];
        }
        // SAFETY: `new`'s caller keeps the list alive and unchanged until the request has completed, and whoever holds
        // the request holds it no longer than that.
        unsafe { std::slice::from_raw_parts(self.first as *const Segment, self.count) }
    }

    /// How many segments.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// How many bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|s| s.len as u64).sum()
    }
}

/// Calls `f(segment part)` for the parts of `segments` that hold the bytes `skip..skip + len`; returns how many bytes
/// there were (fewer than `len` if the list ends before).
pub fn for_range(segments: &[Segment], mut skip: usize, len: usize, mut f: impl FnMut(Segment)) -> usize {
    let mut left = len;
    for segment in segments {
        if left == 0 {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let part = segment.slice(skip, left);
        skip = 0;
        left -= part.len;
        f(part);
    }
    len - left
}

/// Copies `from` into the segments, starting `at` bytes into them; returns how many bytes fitted.
pub fn copy_to(segments: &[Segment], at: usize, from: &[u8]) -> usize {
    let mut done = 0;
    for_range(segments, at, from.len(), |part| {
        // SAFETY: the segment's maker keeps it mapped while its request runs; `from` has `part.len` bytes left at
        // `done` because `for_range` hands out `from.len()` bytes at most.
        unsafe { ptr::copy(from.as_ptr().add(done), part.addr as *mut u8, part.len) };
        done += part.len;
    })
}

/// Copies bytes out of the segments, starting `at` bytes into them, into `to`; returns how many there were.
pub fn copy_from(segments: &[Segment], at: usize, to: &mut [u8]) -> usize {
    let mut done = 0;
    let len = to.len();
    for_range(segments, at, len, |part| {
        // SAFETY: as in `copy_to`, with the directions exchanged. `copy` (memmove) because a hostile guest's
        // addresses are anything; they are never inside our own heap, but two of them may be the same.
        unsafe { ptr::copy(part.addr as *const u8, to.as_mut_ptr().add(done), part.len) };
        done += part.len;
    })
}

/// The first `N` bytes of the segments, copied out; `None` if there are fewer. For headers, whose length is fixed and
/// which nearly always lie in one piece.
#[inline(always)]
#[must_use]
pub fn array_from<const N: usize>(segments: &[Segment]) -> Option<[u8; N]> {
    match segments.first() {
        Some(first) if first.len >= N => {
            // SAFETY: as in `copy_from`; the segment has `N` bytes, and an array of bytes may be read from anywhere.
            Some(unsafe { ptr::read_unaligned(first.addr as *const [u8; N]) })
        }
        _ => scattered_array(segments),
    }
}

#[cold]
fn scattered_array<const N: usize>(segments: &[Segment]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (copy_from(segments, 0, &mut bytes) == N).then_some(bytes)
}

/// Copies a header of fixed length to the start of the segments, as far as it fits.
#[inline(always)]
pub fn array_to<const N: usize>(segments: &[Segment], bytes: &[u8; N]) {
    match segments.first() {
        // SAFETY: as in `copy_to`; the segment has `N` bytes, and an array of bytes may be written anywhere.
        Some(first) if first.len >= N => unsafe { ptr::write_unaligned(first.addr as *mut [u8; N], *bytes) },
        _ => {
            copy_to(segments, 0, bytes);
        }
    }
}

/// Fills `len` bytes of the segments with zeroes, starting `at` bytes into them; returns how many there were.
pub fn zero(segments: &[Segment], at: usize, len: usize) -> usize {
    for_range(segments, at, len, |part| {
        // SAFETY: the segment's maker keeps it mapped while its request runs.
        unsafe { ptr::write_bytes(part.addr as *mut u8, 0, part.len) };
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(bytes: &mut [u8]) -> Segment {
        // SAFETY: the tests keep `bytes` alive and do not touch it while they use the segment.
        unsafe { Segment::new(bytes.as_mut_ptr() as usize, bytes.len()) }
    }

    #[test]
    fn copies_across_segments_from_an_offset() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
        let list = [over(&mut a), Segment::EMPTY, over(&mut b)];
        assert_eq!(copy_to(&list, 2, &[1, 2, 3, 4, 5, 6, 7]), 5);
        let mut out = [9u8; 7];
        assert_eq!(copy_from(&list, 0, &mut out), 7);
        assert_eq!(out, [0, 0, 1, 2, 3, 4, 5]);
        assert_eq!(zero(&list, 3, 2), 2);
        assert_eq!(copy_from(&list, 2, &mut out[..3]), 3);
        assert_eq!(out[..3], [1, 0, 0]);
        assert_eq!(copy_to(&list, 7, &[1]), 0);
    }

    #[test]
    fn headers_are_copied_from_one_piece_and_from_several() {
        let (mut a, mut b) = ([1u8, 2, 3], [4u8, 5, 6, 7]);
        let list = [over(&mut a), over(&mut b)];
        assert_eq!(array_from::<3>(&list), Some([1, 2, 3]));
        assert_eq!(array_from::<5>(&list), Some([1, 2, 3, 4, 5]));
        assert_eq!(array_from::<8>(&list), None);
        assert_eq!(array_from::<1>(&[]), None);
        array_to(&list, &[9, 8]);
        assert_eq!(array_from::<7>(&list), Some([9, 8, 3, 4, 5, 6, 7]));
        array_to(&list, &[1, 2, 3, 4]);
        array_to(&list[1..], &[0; 9]);
        assert_eq!(array_from::<7>(&list), Some([1, 2, 3, 0, 0, 0, 0]));
    }

    #[test]
    fn lists_keep_their_count() {
        let mut a = [0u8; 3];
        let segments = [over(&mut a), over(&mut a)];
        // SAFETY: `segments` outlives the list.
        let list = unsafe { SegmentList::new(&segments) };
        assert_eq!((list.count(), list.bytes()), (2, 6));
        assert!(SegmentList::EMPTY.as_slice().is_empty());
    }
}
