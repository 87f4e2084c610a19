//! Memory that is reached only by address: mappings and aligned buffers, and copies between them and segments.
//!
//! No Rust reference to any of these bytes ever exists, so the kernel and other reactors may read and write them at any
//! time. Two reactors that write the same byte at once get one of the two values or a mixture, as on a real disk.
//! This is the only file of the crate that takes memory or touches it.
//!
//! Invariant: an object of this file outlives every request that one of its segments is put into. A channel that owns
//! one and is dropped with requests in flight leaks it instead (see [`Mapping::leak`]).

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr;

use pollux_core::segment::for_range;
use pollux_core::{Segment, SegmentList};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The unit in which memory is given back.
pub(crate) const PAGE: usize = 4096;
/// A huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// An anonymous mapping, all zeroes at first. A page takes no memory until it is written.
#[derive(Debug)]
pub(crate) struct Mapping {
    addr: usize,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let addr = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // Huge pages would make a written byte cost 2 MiB; `collapse` makes them where that is no waste. Where the kernel
        // knows none the advice fails: no matter.
        // SAFETY: the advice concerns only the mapping just made and changes no content.
        let _ = unsafe { madvise(addr, len, Advice::LinuxNoHugepage) };
        Ok(Mapping { addr: addr as usize, len })
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// A part of it. The caller keeps the mapping for as long as the segment is in use.
    ///
    /// # Panics
    /// If the part does not lie inside.
    pub(crate) fn segment(&self, offset: usize, len: usize) -> Segment {
        self.check(offset, len);
        // SAFETY: the range is inside the mapping, which its owner keeps until the request has completed (see the
        // file's invariant), and nobody has a reference to it.
        unsafe { Segment::new(self.addr + offset, len) }
    }

    /// Zeroes a part: whole pages are given back, the edges are written. Returns whether the kernel has dropped all whole
    /// pages, so that none of them was written.
    ///
    /// # Panics
    /// If the part does not lie inside.
    pub(crate) fn zero(&self, offset: usize, len: usize) -> bool {
        self.check(offset, len);
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(PAGE).min(end), end / PAGE * PAGE);
        if first >= last {
            self.fill_zero(offset, len);
            return true;
        }
        self.fill_zero(offset, first - offset);
        self.fill_zero(last, end - last);
        // SAFETY: whole pages of a private anonymous mapping that is ours; they read as zeroes afterwards.
        let dropped = unsafe { madvise((self.addr + first) as *mut _, last - first, Advice::LinuxDontNeed) };
        if dropped.is_err() {
            // Locked memory cannot be given back; zeroes are promised all the same.
            self.fill_zero(first, last - first);
        }
        dropped.is_ok()
    }

    /// The offset of the first huge page that lies inside as a whole.
    pub(crate) const fn first_huge(&self) -> usize {
        self.addr.next_multiple_of(HUGE) - self.addr
    }

    /// How many of the small pages of the huge page at `offset` take memory.
    ///
    /// # Panics
    /// If it does not lie inside as a whole.
    pub(crate) fn resident(&self, offset: usize) -> usize {
        self.check(offset, HUGE);
        let mut pages = [0u8; HUGE / PAGE];
        // SAFETY: the range is inside the mapping, and the array has a byte for each of its pages.
        let told = unsafe { libc::mincore((self.addr + offset) as *mut _, HUGE, pages.as_mut_ptr()) };
        if told == 0 { pages.iter().filter(|page| **page & 1 == 1).count() } else { 0 }
    }

    /// Has the kernel make one huge page of the small ones at `offset`. Content stays as it is; a reactor that touches
    /// the page at this moment waits for the copy.
    ///
    /// # Errors
    /// If the kernel has none, or not now.
    ///
    /// # Panics
    /// If it does not lie inside as a whole.
    pub(crate) fn collapse(&self, offset: usize) -> Result<(), Errno> {
        self.check(offset, HUGE);
        let at = (self.addr + offset) as *mut _;
        // SAFETY: both advices concern whole pages of a private anonymous mapping that is ours, and change no content.
        unsafe {
            madvise(at, HUGE, Advice::LinuxHugepage)?;
            // `MADV_COLLAPSE` (Linux 6.1).
            if libc::madvise(at, HUGE, 25) == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(errno())) }
        }
    }

    fn fill_zero(&self, offset: usize, len: usize) {
        // SAFETY: the callers have checked that the range lies inside the mapping.
        unsafe { ptr::write_bytes((self.addr + offset) as *mut u8, 0, len) };
    }

    fn check(&self, offset: usize, len: usize) {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{len} bytes at {offset} of a mapping of {}", self.len);
    }

    /// Gives the memory up without unmapping it, because somebody may still use it.
    pub(crate) fn leak(mut self) {
        self.len = 0;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is ours and, by the file's invariant, nothing uses it any more. A failure would mean
            // that it is not mapped, which changes nothing.
            let _ = unsafe { munmap(self.addr as *mut _, self.len) };
        }
    }
}

/// Bytes of our own as the data of a request, aligned to a page.
#[derive(Debug)]
pub(crate) struct Buffer {
    addr: usize,
    /// The whole buffer, boxed so that a [`SegmentList`] can point to it.
    whole: Box<Segment>,
}

impl Buffer {
    /// A buffer of `len` zeroes; `len` is not 0.
    pub(crate) fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero (asserted in `layout`).
        let addr = unsafe { alloc_zeroed(layout) } as usize;
        if addr == 0 {
            handle_alloc_error(layout);
        }
        // SAFETY: the memory was just allocated; `Buffer`'s owner keeps it until the request has completed.
        Buffer { addr, whole: Box::new(unsafe { Segment::new(addr, len) }) }
    }

    /// A buffer with the first `len` bytes of the segments.
    pub(crate) fn copy_of(segments: &[Segment], len: usize) -> Self {
        let buffer = Buffer::new(len);
        assert_eq!(gather(segments, 0, buffer.segment()), len, "the segments hold what the request says");
        buffer
    }

    fn layout(len: usize) -> Layout {
        assert!(len > 0, "a buffer has bytes");
        Layout::from_size_align(len, PAGE).expect("a request's length is far below isize::MAX")
    }

    pub(crate) fn segment(&self) -> Segment {
        *self.whole
    }

    /// Gives the memory up without freeing it, because somebody may still use it.
    pub(crate) fn leak(self) {
        let _ = std::mem::ManuallyDrop::new(self);
    }

    /// The buffer as a request's data, good while the buffer lives.
    pub(crate) fn list(&self) -> SegmentList {
        // SAFETY: the boxed segment stays where it is and unchanged while the buffer lives, and the buffer's owner
        // keeps it until the request has completed.
        unsafe { SegmentList::new(std::slice::from_ref(&*self.whole)) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and nothing uses it any more.
        unsafe { dealloc(self.addr as *mut u8, Self::layout(self.whole.len())) };
    }
}

/// A list of segments that is filled again and again, for the data of one request at a time.
pub(crate) struct Pieces(Vec<Segment>);

impl Pieces {
    /// With room for so many.
    pub(crate) fn new(room: usize) -> Pieces {
        Pieces(Vec::with_capacity(room))
    }

    /// Empties it. The request that had it has completed.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds one. No request has the list yet.
    pub(crate) fn push(&mut self, segment: Segment) {
        self.0.push(segment);
    }

    /// As a request's data: unchanged, and its owner kept, until that has completed.
    pub(crate) fn list(&self) -> SegmentList {
        // SAFETY: the owner neither changes the list nor drops it before the request has completed (the file's invariant).
        unsafe { SegmentList::new(&self.0) }
    }
}

/// Copies out of the segments, starting `at` bytes into them, until `to` is full or they end; returns how many bytes.
pub(crate) fn gather(segments: &[Segment], at: usize, to: Segment) -> usize {
    let mut done = 0;
    for_range(segments, at, to.len(), |part| {
        copy(part, to.slice(done, part.len()));
        done += part.len();
    })
}

/// Copies `from` into the segments, starting `at` bytes into them; returns how many bytes fitted.
pub(crate) fn scatter(from: Segment, segments: &[Segment], at: usize) -> usize {
    let mut done = 0;
    for_range(segments, at, from.len(), |part| {
        copy(from.slice(done, part.len()), part);
        done += part.len();
    })
}

/// Like [`gather`], past the processor's caches where it can be: for a medium so large that what is written now will have
/// left them before it is read. [`settle`] comes before anybody is told.
pub(crate) fn gather_past_caches(segments: &[Segment], to: Segment) -> usize {
    let mut done = 0;
    for_range(segments, 0, to.len(), |part| {
        stream(part, to.slice(done, part.len()));
        done += part.len();
    })
}

/// A line of the caches, which is what a store past them writes at once.
const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
fn stream(from: Segment, to: Segment) {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    if !to.addr().is_multiple_of(LINE) {
        return copy(from, to);
    }
    let lines = from.len() / LINE;
    assert!(to.len() >= lines * LINE, "both ends of a copy have the same length");
    for line in 0..lines {
        let from = (from.addr() + line * LINE) as *const __m128i;
        let to = (to.addr() + line * LINE) as *mut __m128i;
        // SAFETY: the line lies inside both segments, whose makers keep them mapped until their requests have
        // completed, and `to` is aligned. All of it is read before any is written, so it does not matter if a hostile
        // guest's two addresses are the same memory.
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
            _mm_stream_si128(to, a);
            _mm_stream_si128(to.add(1), b);
            _mm_stream_si128(to.add(2), c);
            _mm_stream_si128(to.add(3), d);
        }
    }
    let rest = lines * LINE;
    copy(from.slice(rest, usize::MAX), to.slice(rest, usize::MAX));
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(from: Segment, to: Segment) {
    copy(from, to);
}

/// What went past the caches is seen by everybody before whatever this thread stores next.
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has the instruction, and it touches nothing.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

/// Asks the processor for the first `most` bytes of a segment, so that they are on their way while others are copied.
pub(crate) fn prefetch(segment: Segment, most: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..segment.len().min(most)).step_by(LINE) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect but on the caches, and cannot fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>((segment.addr() + at) as *const i8) };
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn copy(from: Segment, to: Segment) {
    assert_eq!(from.len(), to.len(), "both ends of a copy have the same length");
    // SAFETY: a segment's maker keeps it mapped until its request has completed. `copy` and not `copy_nonoverlapping`:
    // a hostile guest's two addresses may be the same memory.
    unsafe { ptr::copy(from.addr() as *const u8, to.addr() as *mut u8, from.len()) };
}

/// Exclusive-ors one byte.
///
/// # Panics
/// If the segment ends before it.
pub(crate) fn xor(segment: Segment, at: usize, value: u8) {
    assert!(at < segment.len(), "the byte lies inside the segment");
    let byte = (segment.addr() + at) as *mut u8;
    // SAFETY: inside the segment, whose maker keeps it mapped until its request has completed.
    unsafe { byte.write_volatile(byte.read_volatile() ^ value) };
}

/// A list of segments for an entry of the ring.
///
/// # Safety
/// As [`SegmentList::new`]: `segments` stays where it is and unchanged until the entry has completed.
pub(crate) unsafe fn list(segments: &[Segment]) -> SegmentList {
    // SAFETY: the caller's promise is the same.
    unsafe { SegmentList::new(segments) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(mapping: &Mapping) -> usize {
        let mut pages = vec![0u8; mapping.len().div_ceil(PAGE)];
        // SAFETY: the vector has one byte for each page of the mapping.
        assert_eq!(unsafe { libc::mincore(mapping.addr as *mut _, mapping.len(), pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|p| **p & 1 == 1).count()
    }

    fn fill(mapping: &Mapping) {
        // SAFETY: the mapping's own bytes.
        unsafe { ptr::write_bytes(mapping.addr as *mut u8, 7, mapping.len()) };
    }

    #[test]
    fn zeroing_gives_back_whole_pages_and_writes_the_edges() {
        let mapping = Mapping::new(8 * PAGE).unwrap();
        assert_eq!(resident(&mapping), 0);
        fill(&mapping);
        mapping.zero(PAGE / 2, 4 * PAGE);
        assert_eq!(resident(&mapping), 5);
        mapping.zero(7 * PAGE + 512, 1024);
        let copy = Buffer::copy_of(&[mapping.segment(0, 8 * PAGE)], 8 * PAGE);
        let mut bytes = vec![0; 8 * PAGE];
        pollux_core::segment::copy_from(copy.list().as_slice(), 0, &mut bytes);
        for (at, byte) in bytes.iter().enumerate() {
            let zeroed =
                (PAGE / 2..PAGE / 2 + 4 * PAGE).contains(&at) || (7 * PAGE + 512..7 * PAGE + 1536).contains(&at);
            assert_eq!(*byte, if zeroed { 0 } else { 7 }, "byte {at}");
        }
    }

    #[test]
    #[should_panic(expected = "of a mapping of")]
    fn a_segment_outside_is_refused() {
        let _ = Mapping::new(PAGE).unwrap().segment(PAGE - 1, 2);
    }

    #[test]
    fn copies_past_the_caches_are_copies() {
        let (from, to) = (Buffer::new(1000), Buffer::new(1000));
        for at in 0..1000 {
            xor(from.segment(), at, at as u8);
        }
        let pieces = [from.segment().slice(1, 130), from.segment().slice(200, 64), from.segment().slice(131, 7)];
        for offset in [0, 64, 3] {
            let medium = to.segment().slice(offset, 201);
            assert_eq!(gather_past_caches(&pieces, medium), 201);
            settle();
            let mut bytes = [0; 201];
            pollux_core::segment::copy_from(&[medium], 0, &mut bytes);
            let expected: Vec<u8> = (1..131).chain(200..264).chain(131..138).map(|at: usize| at as u8).collect();
            assert_eq!(bytes[..], expected, "at {offset}");
        }
    }

    #[test]
    fn a_huge_page_keeps_what_was_written() {
        let mapping = Mapping::new(3 * HUGE).unwrap();
        let at = mapping.first_huge();
        assert_eq!(mapping.resident(at), 0);
        fill(&mapping);
        assert_eq!(mapping.resident(at), HUGE / PAGE);
        // Whether the kernel does it depends on its memory and settings.
        let _ = mapping.collapse(at);
        mapping.zero(at + PAGE, PAGE);
        let copy = Buffer::copy_of(&[mapping.segment(at, 3 * PAGE)], 3 * PAGE);
        let mut bytes = vec![0; 3 * PAGE];
        pollux_core::segment::copy_from(copy.list().as_slice(), 0, &mut bytes);
        assert_eq!(bytes, [vec![7; PAGE], vec![0; PAGE], vec![7; PAGE]].concat());
    }

    #[test]
    fn copies_go_both_ways_and_stop_at_the_end() {
        let (a, b) = (Buffer::new(10), Buffer::new(4));
        xor(b.segment(), 3, 0x55);
        assert_eq!(scatter(b.segment(), &[a.segment()], 2), 4);
        assert_eq!(scatter(b.segment(), &[a.segment()], 8), 2);
        let back = Buffer::new(4);
        assert_eq!(gather(&[a.segment()], 2, back.segment()), 4);
        let mut bytes = [0; 4];
        pollux_core::segment::copy_from(back.list().as_slice(), 0, &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0x55]);
    }
}
