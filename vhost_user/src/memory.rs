//! The guest's memory: a table of mapped regions, and the way from the guest's addresses to ours.
//!
//! A table never changes. Adding or removing a region makes a new table that shares the other mappings; a mapping goes
//! when the last table (or queue that holds one) does, so what is in flight keeps its memory.
//!
//! Invariants: regions are sorted by guest address; neither their guest ranges nor their user ranges overlap; no range
//! is empty or reaches beyond 64 bits.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pollux_core::Segment;

use crate::mapping::{Mapping, View, Window, words};
use crate::segments::SegmentBuf;

/// Where a region lies, as in `VHOST_USER_SET_MEM_TABLE` and `VHOST_USER_ADD_MEM_REG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// First guest-physical address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// First address in the front end's own address space: ring addresses are given in it.
    pub user_addr: u64,
    /// Where the region begins in the file.
    pub offset: u64,
}

/// Why a memory table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Not a regular file.
    #[error("guest memory must be a memfd or a regular file on tmpfs or hugetlbfs")]
    FileKind,
    /// A file elsewhere: a page fault there could wait for ever.
    #[error("guest memory lies on a file system that is neither tmpfs nor hugetlbfs; share it by memfd or hugepages")]
    FileSystem,
    /// The region reaches beyond the end of its file.
    #[error("guest memory reaches to byte {end} of a file of {size} bytes")]
    FileTooSmall {
        /// One past the last byte of the region in the file.
        end: u64,
        /// Size of the file.
        size: u64,
    },
    /// A region of no bytes.
    #[error("an empty memory region")]
    Empty,
    /// A range that does not fit into 64 bits.
    #[error("a memory region reaches beyond 64 bits")]
    Overflow,
    /// Two regions hold the same address.
    #[error("two memory regions overlap at {0:#x}")]
    Overlap(u64),
    /// More regions than [`Memory::SLOTS_MAX`].
    #[error("more than {} memory regions", Memory::SLOTS_MAX)]
    TooManyRegions,
    /// More bytes than [`Memory::BYTES_MAX`].
    #[error("more than {} TiB of guest memory", Memory::BYTES_MAX >> 40)]
    TooMuch,
    /// All sessions together have too many regions.
    #[error("the process has no room for another mapping of guest memory")]
    TooManyMappings,
    /// The region to be removed is not in the table.
    #[error("no memory region of {len:#x} bytes at {guest_addr:#x}")]
    Unknown {
        /// First guest-physical address.
        guest_addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The kernel refused to map it (a read-only descriptor, or a sealed one).
    #[error("guest memory cannot be mapped: {0}")]
    Os(rustix::io::Errno),
}

/// Why an address in a descriptor is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryFault {
    /// No region holds this guest-physical address.
    #[error("no memory at guest address {0:#x}")]
    Hole(u64),
    /// Address plus length is beyond 64 bits.
    #[error("guest address and length beyond 64 bits")]
    Overflow,
    /// More pieces than a [`SegmentBuf`] holds.
    #[error("more than {} pieces of memory in one request", SegmentBuf::CAPACITY)]
    TooManySegments,
}

struct Region {
    info: RegionInfo,
    view: View,
}

/// All memory that one guest shares with us.
#[derive(Default)]
pub struct Memory {
    regions: Vec<Region>,
}

impl Memory {
    /// What is answered to `GET_MAX_MEM_SLOTS`.
    pub const SLOTS_MAX: usize = 509;
    /// How much one session may map, so that a few of them cannot use up the address space.
    pub const BYTES_MAX: u64 = 16 << 40;

    /// No memory at all.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Maps all regions.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing stays mapped then.
    pub fn map(regions: &[(RegionInfo, File)]) -> Result<Self, MemoryError> {
        regions.iter().try_fold(Self::empty(), |memory, (info, file)| memory.with(*info, file, None))
    }

    /// The same table with one more region. `socket` is shut down if the file is truncated later.
    pub(crate) fn with(
        &self,
        info: RegionInfo,
        file: &File,
        socket: Option<Arc<OwnedFd>>,
    ) -> Result<Self, MemoryError> {
        self.check(&info)?;
        let view = Mapping::map(file, info.offset, info.len, socket)?;
        let mut regions: Vec<Region> = self.regions.iter().map(Region::share).collect();
        let at = regions.partition_point(|r| r.info.guest_addr < info.guest_addr);
        regions.insert(at, Region { info, view });
        Ok(Memory { regions })
    }

    /// The same table without one region. The place in the file is not compared: front ends send it as they like.
    pub(crate) fn without(&self, info: &RegionInfo) -> Result<Self, MemoryError> {
        let same = |r: &Region| {
            (r.info.guest_addr, r.info.user_addr, r.info.len) == (info.guest_addr, info.user_addr, info.len)
        };
        if !self.regions.iter().any(same) {
            return Err(MemoryError::Unknown { guest_addr: info.guest_addr, len: info.len });
        }
        Ok(Memory { regions: self.regions.iter().filter(|r| !same(r)).map(Region::share).collect() })
    }

    fn check(&self, info: &RegionInfo) -> Result<(), MemoryError> {
        if info.len == 0 {
            return Err(MemoryError::Empty);
        }
        for start in [info.guest_addr, info.user_addr, info.offset] {
            start.checked_add(info.len).ok_or(MemoryError::Overflow)?;
        }
        if self.regions.len() == Self::SLOTS_MAX {
            return Err(MemoryError::TooManyRegions);
        }
        if info.len > Self::BYTES_MAX - self.bytes() {
            return Err(MemoryError::TooMuch);
        }
        for other in self.regions.iter().map(|r| &r.info) {
            if overlaps(info.guest_addr, info.len, other.guest_addr, other.len) {
                return Err(MemoryError::Overlap(info.guest_addr));
            }
            if overlaps(info.user_addr, info.len, other.user_addr, other.len) {
                return Err(MemoryError::Overlap(info.user_addr));
            }
        }
        Ok(())
    }

    /// How many regions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// How many bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.info.len).sum()
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> impl Iterator<Item = RegionInfo> {
        self.regions.iter().map(|r| r.info)
    }

    /// Whether the VMM truncated a file below: what was in it reads as zeroes since, and the session is being closed.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.regions.iter().any(|r| r.view.lost())
    }

    /// Appends the host addresses of `gpa..gpa + len`: one segment, or several where regions meet.
    ///
    /// # Errors
    /// [`MemoryFault`]; `out` then holds a part of the range.
    pub fn translate(&self, gpa: u64, len: u64, out: &mut SegmentBuf) -> Result<(), MemoryFault> {
        self.find(gpa, len, &mut Window::EMPTY.clone(), out)
    }

    /// As `translate`; looks into `near` first, and leaves the region there that it found. `near` comes from the same
    /// memory.
    #[inline(always)]
    pub(crate) fn translate_near(
        &self,
        gpa: u64,
        len: u64,
        near: &mut Window,
        out: &mut SegmentBuf,
    ) -> Result<(), MemoryFault> {
        match near.segment(gpa, len) {
            Some(segment) if out.push(segment) => Ok(()),
            Some(_) => Err(MemoryFault::TooManySegments),
            None => self.find(gpa, len, near, out),
        }
    }

    /// The regions that a range lies in: guests have two or three, and go from one to the other often enough.
    #[inline(never)]
    fn find(&self, gpa: u64, len: u64, near: &mut Window, out: &mut SegmentBuf) -> Result<(), MemoryFault> {
        self.pieces(gpa, len, near, |segment| out.push(segment))
    }

    /// Copies the 16 bytes of a descriptor out of guest memory, each read once, wherever they lie: unaligned, across
    /// two regions.
    ///
    /// # Errors
    /// [`MemoryFault`] where there is no memory.
    #[inline]
    pub(crate) fn descriptor(&self, gpa: u64, near: &mut Window) -> Result<[u64; 2], MemoryFault> {
        match near.descriptor(gpa) {
            Some(words) => Ok(words),
            None => self.scattered_descriptor(gpa, near),
        }
    }

    #[cold]
    fn scattered_descriptor(&self, gpa: u64, near: &mut Window) -> Result<[u64; 2], MemoryFault> {
        let (mut bytes, mut done) = ([0; 16], 0);
        self.pieces(gpa, bytes.len() as u64, near, |segment| {
            let len = segment.len();
            done += pollux_core::segment::copy_from(&[segment], 0, &mut bytes[done..done + len]);
            true
        })?;
        Ok(words(bytes))
    }

    /// Calls `piece` for the parts of `gpa..gpa + len`, in order.
    fn pieces(
        &self,
        mut gpa: u64,
        mut len: u64,
        near: &mut Window,
        mut piece: impl FnMut(Segment) -> bool,
    ) -> Result<(), MemoryFault> {
        gpa.checked_add(len).ok_or(MemoryFault::Overflow)?;
        let mut index = self.regions.partition_point(|r| r.info.guest_addr <= gpa).wrapping_sub(1);
        while len > 0 {
            let region = self.regions.get(index).ok_or(MemoryFault::Hole(gpa))?;
            let offset = gpa.wrapping_sub(region.info.guest_addr);
            let part = len.min(region.info.len.saturating_sub(offset));
            let segment = region.view.segment(offset, part).filter(|s| !s.is_empty());
            if !piece(segment.ok_or(MemoryFault::Hole(gpa))?) {
                return Err(MemoryFault::TooManySegments);
            }
            *near = region.view.window(region.info.guest_addr);
            gpa += part;
            len -= part;
            index += 1;
        }
        Ok(())
    }

    /// The host address of a range given in the front end's addresses; `None` if it does not lie inside one region.
    pub(crate) fn host_of_user(&self, user_addr: u64, len: u64) -> Option<usize> {
        let region = self.regions.iter().find(|r| {
            let offset = user_addr.wrapping_sub(r.info.user_addr);
            offset < r.info.len
        })?;
        region.view.host(user_addr - region.info.user_addr, len)
    }
}

impl Region {
    fn share(&self) -> Region {
        debug_assert_eq!(self.info.len, self.view.len());
        Region { info: self.info, view: self.view.clone() }
    }
}

fn overlaps(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b + b_len && b < a + a_len
}
