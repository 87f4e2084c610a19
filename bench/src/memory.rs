//! Guest memory: one memfd, mapped here and by the device.
//!
//! The device may change any byte at any time, so memory is never borrowed as a slice: every access is an atomic load or
//! store of an aligned word, and every offset is checked against the mapping. The only unsafe code of this crate beside
//! the clock is here, so nothing that a device does to this memory can be more than a wrong value.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::BenchError;
use crate::options::HugePages;

/// Memory comes in multiples of this: the size of a huge page, and what some targets want regions to be aligned to.
pub(crate) const UNIT: usize = 2 << 20;

/// What the memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pages {
    /// Pages of the usual size.
    Small,
    /// The kernel was asked for transparent huge pages.
    Advised,
    /// Pages of 2 MiB from the reserved pool.
    Huge,
}

impl Pages {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Pages::Small => "small",
            Pages::Advised => "advised",
            Pages::Huge => "huge",
        }
    }
}

/// The memory of one guest.
pub(crate) struct Memory {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
    pages: Pages,
}

// SAFETY: the mapping belongs to the value and lives as long as it; all access is by atomics, which any thread may use.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// At least `len` bytes of zeroes, every page present.
    pub(crate) fn new(len: usize, huge: HugePages) -> Result<Self, BenchError> {
        let len = len.max(1).next_multiple_of(UNIT);
        if huge != HugePages::Off {
            match Self::map(len, Pages::Huge) {
                Ok(memory) => return Ok(memory),
                Err(error) if huge == HugePages::Require => {
                    return Err(BenchError::Setup(format!(
                        "no {} huge pages of 2 MiB ({error}); reserve them with: echo N > /proc/sys/vm/nr_hugepages, or \
                         use --hugepages auto",
                        len / UNIT
                    )));
                }
                Err(_) => {}
            }
        }
        let pages = if huge == HugePages::Off { Pages::Small } else { Pages::Advised };
        Self::map(len, pages).map_err(|error| BenchError::Setup(format!("no {len} bytes of guest memory: {error}")))
    }

    fn map(len: usize, pages: Pages) -> io::Result<Self> {
        let extra = if pages == Pages::Huge { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
        let fd = rustix::fs::memfd_create("pollux-bench", MemfdFlags::CLOEXEC | extra)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        // SAFETY: a new shared mapping of our own file at an address of the kernel's choice. Huge pages are reserved by
        // this call or it fails, so no later access finds none.
        let base = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut memory = Memory { fd, base, len, pages };
        if pages == Pages::Advised {
            // SAFETY: our own mapping; the advice changes no content.
            if unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) }.is_err() {
                memory.pages = Pages::Small;
            }
        }
        for at in (0..len).step_by(4096) {
            memory.store_u64(at, 0);
        }
        Ok(memory)
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn pages(&self) -> Pages {
        self.pages
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    /// The address of `size` bytes at `at`, which must be a multiple of `size`.
    #[inline(always)]
    fn at(&self, at: usize, size: usize) -> *mut u8 {
        assert!(at <= self.len - size && at.is_multiple_of(size), "offset {at} of guest memory");
        // SAFETY: `at + size` lies inside the mapping, whose length is at least UNIT.
        unsafe { self.base.as_ptr().add(at) }
    }

    #[inline(always)]
    fn atomic_u16(&self, at: usize) -> &AtomicU16 {
        // SAFETY: aligned, inside the mapping (`at` checks both), which lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.at(at, 2).cast()) }
    }

    #[inline(always)]
    fn atomic_u32(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as in `atomic_u16`.
        unsafe { AtomicU32::from_ptr(self.at(at, 4).cast()) }
    }

    #[inline(always)]
    fn atomic_u64(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as in `atomic_u16`.
        unsafe { AtomicU64::from_ptr(self.at(at, 8).cast()) }
    }

    #[inline(always)]
    fn atomic_u8(&self, at: usize) -> &AtomicU8 {
        // SAFETY: as in `atomic_u16`.
        unsafe { AtomicU8::from_ptr(self.at(at, 1)) }
    }

    /// A ring index or flags that the device writes; what it wrote before is seen after.
    #[inline(always)]
    pub(crate) fn acquire_u16(&self, at: usize) -> u16 {
        u16::from_le(self.atomic_u16(at).load(Ordering::Acquire))
    }

    /// A ring index or flags, in one order with all [`Memory::publish_u16`].
    #[inline(always)]
    pub(crate) fn ordered_u16(&self, at: usize) -> u16 {
        u16::from_le(self.atomic_u16(at).load(Ordering::SeqCst))
    }

    /// Makes a ring index visible after everything stored before, and before everything that is read after by
    /// [`Memory::ordered_u16`].
    #[inline(always)]
    pub(crate) fn publish_u16(&self, at: usize, value: u16) {
        // An exchange is the cheapest full barrier there is on x86, and it is the store as well.
        self.atomic_u16(at).swap(value.to_le(), Ordering::SeqCst);
    }

    #[inline(always)]
    pub(crate) fn store_u16(&self, at: usize, value: u16) {
        self.atomic_u16(at).store(value.to_le(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn load_u32(&self, at: usize) -> u32 {
        u32::from_le(self.atomic_u32(at).load(Ordering::Relaxed))
    }

    #[cfg(test)]
    pub(crate) fn store_u32(&self, at: usize, value: u32) {
        self.atomic_u32(at).store(value.to_le(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn load_u64(&self, at: usize) -> u64 {
        u64::from_le(self.atomic_u64(at).load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn store_u64(&self, at: usize, value: u64) {
        self.atomic_u64(at).store(value.to_le(), Ordering::Relaxed);
    }

    /// Copies out, byte by byte: for set-up, not for the path of an I/O.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.atomic_u8(at).load(Ordering::Relaxed)).collect()
    }

    /// Copies in, byte by byte: for set-up, not for the path of an I/O.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            self.atomic_u8(at + n).store(*byte, Ordering::Relaxed);
        }
    }

    /// Asks for a cache line, to be read and then written.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: usize) {
        let _line = self.at(at, 1);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint without effect on memory or flags; every x86-64 CPU takes it (as a no-op where it is unknown).
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) _line, options(nostack, preserves_flags, readonly));
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and references into it end with `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_little_endian_and_bytes_agree() {
        let memory = Memory::new(1, HugePages::Off).expect("memory");
        assert_eq!((memory.len(), memory.pages()), (UNIT, Pages::Small));
        memory.store_u64(8, 0x0102_0304_0506_0708);
        assert_eq!(memory.bytes(8, 8), [8, 7, 6, 5, 4, 3, 2, 1]);
        memory.write(17, &[0xaa, 0xbb]);
        assert_eq!(memory.load_u32(16), 0x00bb_aa00);
        memory.publish_u16(UNIT - 2, 0x1234);
        assert_eq!((memory.acquire_u16(UNIT - 2), memory.ordered_u16(UNIT - 2)), (0x1234, 0x1234));
    }

    #[test]
    #[should_panic(expected = "of guest memory")]
    fn nothing_is_read_beyond_the_end() {
        Memory::new(1, HugePages::Off).expect("memory").load_u32(UNIT);
    }

    #[test]
    #[should_panic(expected = "of guest memory")]
    fn words_are_aligned() {
        Memory::new(1, HugePages::Off).expect("memory").load_u32(2);
    }
}
