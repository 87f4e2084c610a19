//! Guest memory: one memfd, mapped, in regions at guest physical addresses of the test's choice.
//!
//! The device writes into it at any time from other threads, so it is never borrowed as a slice; ring indexes are read
//! and written as atomics.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A range of guest physical addresses and where it lies in the memfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it begins in the file.
    pub offset: u64,
    /// Where this process has it mapped: the "user address" of the vhost-user protocol.
    pub user: u64,
}

/// The memory of one guest.
pub struct GuestMemory {
    file: File,
    base: *mut u8,
    len: usize,
    regions: Vec<Region>,
}

// SAFETY: the mapping belongs to the value and lives as long as it; all access goes by raw copies and atomics, which any
// thread may do (the other side is another process or a kernel that races with us anyway).
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Memory in these regions (guest physical address, length; both multiples of the page size), one after another in
    /// one memfd.
    ///
    /// # Errors
    /// If the memfd cannot be made or mapped.
    pub fn new(regions: &[(u64, u64)]) -> io::Result<Self> {
        let len: u64 = regions.iter().map(|r| r.1).sum();
        let fd: OwnedFd = rustix::fs::memfd_create("pollux-guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len)?;
        // SAFETY: a new shared mapping of our own file at an address of the kernel's choice.
        let base = unsafe {
            mmap(ptr::null_mut(), len as usize, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)?
        };
        let base: *mut u8 = base.cast();
        let mut offset = 0;
        let regions = regions
            .iter()
            .map(|&(gpa, len)| {
                let region = Region { gpa, len, offset, user: base as u64 + offset };
                offset += len;
                region
            })
            .collect();
        Ok(GuestMemory { file: File::from(fd), base, len: len as usize, regions })
    }

    /// Its regions.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The memfd's number.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Makes the memfd shorter or longer; what is cut off kills who touches it (us too: keep to what is left).
    ///
    /// # Errors
    /// As `ftruncate`.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// The user address of a guest physical one.
    ///
    /// # Panics
    /// If it lies in no region.
    #[must_use]
    pub fn user(&self, gpa: u64) -> u64 {
        let region = self.regions.iter().find(|r| (r.gpa..r.gpa + r.len).contains(&gpa));
        let region = region.unwrap_or_else(|| panic!("guest address {gpa:#x} is in no region"));
        region.user + (gpa - region.gpa)
    }

    /// The mapped bytes at `gpa`, which must lie in one region.
    fn at(&self, gpa: u64, len: usize) -> *mut u8 {
        let region = self.regions.iter().find(|r| gpa >= r.gpa && gpa - r.gpa + len as u64 <= r.len);
        let region = region.unwrap_or_else(|| panic!("{len} bytes at guest address {gpa:#x} are not in one region"));
        let offset = (region.offset + (gpa - region.gpa)) as usize;
        assert!(offset + len <= self.len, "regions lie in the mapping");
        // SAFETY: `offset + len` lies inside the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Calls `f(address, from, len)` for the pieces of a range that may cross regions which follow each other.
    fn pieces(&self, gpa: u64, len: usize, mut f: impl FnMut(*mut u8, usize, usize)) {
        let mut done = 0;
        while done < len {
            let at = gpa + done as u64;
            let region = self.regions.iter().find(|r| (r.gpa..r.gpa + r.len).contains(&at));
            let region = region.unwrap_or_else(|| panic!("guest address {at:#x} is in no region"));
            let part = (len - done).min((region.gpa + region.len - at) as usize);
            f(self.at(at, part), done, part);
            done += part;
        }
    }

    /// Copies out.
    pub fn read(&self, gpa: u64, to: &mut [u8]) {
        let start = to.as_mut_ptr();
        self.pieces(gpa, to.len(), |from, at, len| {
            // SAFETY: `pieces` hands out ranges inside the mapping and inside `to`, which do not overlap.
            unsafe { ptr::copy_nonoverlapping(from, start.add(at), len) };
        });
    }

    /// Copies in.
    pub fn write(&self, gpa: u64, from: &[u8]) {
        self.pieces(gpa, from.len(), |to, at, len| {
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr().add(at), to, len) };
        });
    }

    /// Fills a range.
    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.pieces(gpa, len, |to, _, len| {
            // SAFETY: `pieces` hands out ranges inside the mapping.
            unsafe { ptr::write_bytes(to, byte, len) };
        });
    }

    /// A copy of a range.
    #[must_use]
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes);
        bytes
    }

    fn atomic(&self, gpa: u64) -> &AtomicU16 {
        assert_eq!(gpa % 2, 0, "ring indexes are aligned");
        // SAFETY: two aligned bytes inside the mapping, which lives as long as `self`; whoever else uses them (device,
        // other threads) does so as a 16-bit store or load.
        unsafe { AtomicU16::from_ptr(self.at(gpa, 2).cast()) }
    }

    /// Reads a ring index (acquire).
    #[must_use]
    pub fn load_u16(&self, gpa: u64) -> u16 {
        u16::from_le(self.atomic(gpa).load(Ordering::Acquire))
    }

    /// Writes a ring index (release).
    pub fn store_u16(&self, gpa: u64, value: u16) {
        self.atomic(gpa).store(value.to_le(), Ordering::Release);
    }
}

impl AsFd for GuestMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and nobody holds a pointer into it beyond `self`.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_may_cross_adjacent_regions() {
        let memory = GuestMemory::new(&[(0x1_0000, 0x1000), (0x1_1000, 0x1000), (0x10_0000, 0x1000)]).unwrap();
        memory.write(0x1_0ffe, &[1, 2, 3, 4]);
        assert_eq!(memory.bytes(0x1_0fff, 2), [2, 3]);
        assert_eq!(memory.user(0x10_0010), memory.regions()[2].user + 0x10);
        memory.store_u16(0x10_0000, 0x1234);
        assert_eq!(memory.load_u16(0x10_0000), 0x1234);
    }

    #[test]
    #[should_panic(expected = "is in no region")]
    fn a_hole_is_not_memory() {
        GuestMemory::new(&[(0, 0x1000), (0x2000, 0x1000)]).unwrap().fill(0xfff, 2, 0);
    }
}
