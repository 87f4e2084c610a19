//! One piece of guest memory, mapped from the VMM's file.
//!
//! Invariants: a [`Mapping`] is mapped readable and writable from its creation to its drop; a [`View`] lies inside its
//! mapping, and every segment it gives out lies inside the view. Guest memory is never borrowed as a slice.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pollux_core::Segment;
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::memory::MemoryError;
use crate::sigbus::{self, Watch};

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A mapped part of a file.
pub(crate) struct Mapping {
    addr: usize,
    len: usize,
    /// `None` only while dropping.
    watch: Option<Watch>,
}

/// What a mapping has to be aligned to, after checking that the file may hold guest memory: a regular file on tmpfs
/// (memfd is one) or hugetlbfs. A page fault anywhere else could wait for a network or another process.
fn alignment_of(file: &File) -> Result<u64, MemoryError> {
    let stat = fstat(file).map_err(MemoryError::Os)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::FileKind);
    }
    let fs = fstatfs(file).map_err(MemoryError::Os)?;
    // f_type is a signed long on some architectures and holds a 32-bit magic.
    match fs.f_type as u64 & 0xffff_ffff {
        TMPFS_MAGIC => Ok(rustix::param::page_size() as u64),
        HUGETLBFS_MAGIC => Ok((fs.f_bsize as u64).max(1)),
        _ => Err(MemoryError::FileSystem),
    }
}

impl Mapping {
    /// Maps `len` bytes from `offset` on and gives back the view of exactly these. `socket` is shut down if the file
    /// turns out to be shorter than it said.
    pub(crate) fn map(file: &File, offset: u64, len: u64, socket: Option<Arc<OwnedFd>>) -> Result<View, MemoryError> {
        let align = alignment_of(file)?;
        let end = offset.checked_add(len).ok_or(MemoryError::Overflow)?;
        let size = fstat(file).map_err(MemoryError::Os)?.st_size as u64;
        if end > size {
            return Err(MemoryError::FileTooSmall { end, size });
        }
        // The file's offset and, on hugetlbfs, the length must be whole pages of its own size.
        let from = offset - offset % align;
        let mapped = (end - from).checked_next_multiple_of(align).ok_or(MemoryError::Overflow)?;
        let mapped = usize::try_from(mapped).map_err(|_| MemoryError::Overflow)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let addr = unsafe { mmap(std::ptr::null_mut(), mapped, prot, flags, file.as_fd(), from) };
        let addr = addr.map_err(MemoryError::Os)? as usize;
        let mut mapping = Mapping { addr, len: mapped, watch: None };
        mapping.watch = Some(sigbus::watch(addr, mapped, socket).ok_or(MemoryError::TooManyMappings)?);
        Ok(View { addr: addr + (offset - from) as usize, len, mapping: Arc::new(mapping) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.watch = None;
        // SAFETY: the range is ours since `map`, and every view (and with it every segment, by the duty of whoever
        // holds one) is gone.
        let unmapped = unsafe { munmap(self.addr as *mut _, self.len) };
        debug_assert!(unmapped.is_ok(), "an own mapping can be unmapped");
    }
}

/// The bytes of one memory region, inside a mapping that it keeps.
#[derive(Clone)]
pub(crate) struct View {
    addr: usize,
    len: u64,
    mapping: Arc<Mapping>,
}

impl View {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file below was truncated and its pages were replaced by zeroes.
    pub(crate) fn lost(&self) -> bool {
        self.mapping.watch.as_ref().is_some_and(Watch::hit)
    }

    /// The host address of `len` bytes at `offset`; `None` if they are not all inside.
    #[inline]
    pub(crate) fn host(&self, offset: u64, len: u64) -> Option<usize> {
        (offset < self.len && len <= self.len - offset).then(|| self.addr + offset as usize)
    }

    /// `len` bytes at `offset`; `None` if they are not all inside.
    #[inline]
    pub(crate) fn segment(&self, offset: u64, len: u64) -> Option<Segment> {
        if offset < self.len && len <= self.len - offset {
            // SAFETY: inside the view, hence mapped as long as the view's mapping is; requests on a queue end before the
            // queue drops its `Arc<Memory>` (the duty of a backend, see `Backend::stop_queue`).
            Some(unsafe { Segment::new(self.addr + offset as usize, len as usize) })
        } else {
            None
        }
    }

    /// The view as guest addresses see it, if it begins at `guest_addr`.
    pub(crate) fn window(&self, guest_addr: u64) -> Window {
        Window { guest_addr, len: self.len, addr: self.addr }
    }
}

/// What the translation of an address needs to know of one region, in one place. Kept only beside the [`Memory`] that
/// gave it (a queue has both), which keeps the mapping.
///
/// [`Memory`]: crate::Memory
#[derive(Clone, Copy)]
pub(crate) struct Window {
    guest_addr: u64,
    len: u64,
    addr: usize,
}

impl Window {
    /// One that holds nothing.
    pub(crate) const EMPTY: Window = Window { guest_addr: 0, len: 0, addr: 0 };

    /// The 16 bytes of a descriptor as two words, each read once; `None` if they are not all inside, or not aligned.
    #[inline]
    pub(crate) fn descriptor(&self, gpa: u64) -> Option<[u64; 2]> {
        let from = self.segment(gpa, 16)?.addr();
        if !from.is_multiple_of(8) {
            return None;
        }
        // SAFETY: 16 bytes inside the window, hence mapped, and aligned for words.
        let words = unsafe { [&*(from as *const AtomicU64), &*((from + 8) as *const AtomicU64)] };
        Some(words.map(|word| word.load(Ordering::Relaxed)))
    }

    /// `len` bytes at a guest address; `None` if they are not all inside.
    #[inline(always)]
    pub(crate) fn segment(&self, gpa: u64, len: u64) -> Option<Segment> {
        let offset = gpa.wrapping_sub(self.guest_addr);
        if offset < self.len && len <= self.len - offset {
            // SAFETY: inside the view that the window was made from, which is mapped as long as the `Memory` beside the
            // window lives; requests on a queue end before the queue drops that (the duty of a backend, see
            // `Backend::stop_queue`).
            Some(unsafe { Segment::new(self.addr + offset as usize, len as usize) })
        } else {
            None
        }
    }
}

/// Sixteen bytes of memory as the words that they are.
pub(crate) fn words(bytes: [u8; 16]) -> [u64; 2] {
    let all = u128::from_ne_bytes(bytes);
    if cfg!(target_endian = "little") { [all as u64, (all >> 64) as u64] } else { [(all >> 64) as u64, all as u64] }
}
