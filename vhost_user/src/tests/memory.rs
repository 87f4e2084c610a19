use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use pollux_core::Segment;
use pollux_core::segment::{copy_from, copy_to};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::mapping::Window;
use crate::testing::{TestMemory, USER_BASE};
use crate::{Memory, MemoryError, MemoryFault, RegionInfo, SegmentBuf};

fn memfd(len: u64) -> File {
    let file: File = memfd_create("test", MemfdFlags::CLOEXEC).unwrap().into();
    ftruncate(&file, len).unwrap();
    file
}

fn info(guest_addr: u64, len: u64, user_addr: u64, offset: u64) -> RegionInfo {
    RegionInfo { guest_addr, len, user_addr, offset }
}

fn refused(regions: &[(RegionInfo, File)]) -> MemoryError {
    Memory::map(regions).err().expect("refused")
}

#[test]
fn t10_a_range_across_adjacent_regions_is_whole_and_a_hole_is_a_fault() {
    let guest = TestMemory::new(&[(0x3000, 0x1000), (0x1000, 0x2000), (0x8000, 0x1000)]);
    let memory = guest.memory();
    guest.write(0x2ffe, b"abcd");
    let mut out = SegmentBuf::new();
    memory.translate(0x2ffe, 4, &mut out).unwrap();
    assert_eq!(out.as_slice().iter().map(Segment::len).sum::<usize>(), 4);
    let mut bytes = [0; 4];
    assert_eq!(copy_from(out.as_slice(), 0, &mut bytes), 4);
    assert_eq!(&bytes, b"abcd");
    copy_to(out.as_slice(), 1, b"XY");
    assert_eq!(guest.read(0x2ffe, 4), b"aXYd");

    let mut fault = |gpa, len| {
        out.clear();
        memory.translate(gpa, len, &mut out).unwrap_err()
    };
    assert_eq!(fault(0xfff, 2), MemoryFault::Hole(0xfff));
    assert_eq!(fault(0x3fff, 2), MemoryFault::Hole(0x4000));
    assert_eq!(fault(0x1000, 0x10000), MemoryFault::Hole(0x4000));
    assert_eq!(fault(0x9000, 1), MemoryFault::Hole(0x9000));
    assert_eq!(fault(u64::MAX, 1), MemoryFault::Overflow);
    assert_eq!(fault(u64::MAX - 5, 5), MemoryFault::Hole(u64::MAX - 5));
    assert_eq!(fault(0x2000, u64::MAX - 0x1fff), MemoryFault::Overflow);
}

#[test]
fn every_window_finds_every_region() {
    let guest = TestMemory::new(&[(0, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)]);
    let memory = guest.memory();
    for (gpa, byte) in [(0u64, 1u8), (0xfff, 2), (0x1000, 3), (0x4fff, 4)] {
        guest.write(gpa, &[byte]);
        for before in [0, 0xfff, 0x1000, 0x4000] {
            let (mut near, mut out) = (Window::EMPTY, SegmentBuf::new());
            memory.translate_near(before, 1, &mut near, &mut out).unwrap();
            out.clear();
            memory.translate_near(gpa, 1, &mut near, &mut out).unwrap();
            let mut read = [0];
            copy_from(out.as_slice(), 0, &mut read);
            assert_eq!(read, [byte]);
        }
    }
}

#[test]
fn t33_bad_tables_are_refused() {
    let page = 4096;
    assert_eq!(refused(&[(info(0, 0, 0, 0), memfd(page))]), MemoryError::Empty);
    for bad in [info(u64::MAX, 2, 0, 0), info(0, 2, u64::MAX, 0), info(0, 2, 0, u64::MAX)] {
        assert_eq!(refused(&[(bad, memfd(page))]), MemoryError::Overflow);
    }
    let too_small = MemoryError::FileTooSmall { end: 2 * page, size: page };
    assert_eq!(refused(&[(info(0, page, 0, page), memfd(page))]), too_small);
    let first = || (info(0, page, 1 << 30, 0), memfd(page));
    assert_eq!(refused(&[first(), (info(page - 1, 1, 0, 0), memfd(page))]), MemoryError::Overlap(page - 1));
    assert_eq!(
        refused(&[first(), (info(page, 2, (1 << 30) - 1, 0), memfd(page))]),
        MemoryError::Overlap((1 << 30) - 1)
    );
    assert_eq!(refused(&[(info(0, Memory::BYTES_MAX + 1, 0, 0), memfd(page))]), MemoryError::TooMuch);
}

#[test]
fn t33_more_slots_than_the_limit() {
    let file = memfd(4096);
    let slot = |i: u64| info(i * 4096, 4096, USER_BASE + i * 4096, 0);
    let mut memory = Memory::empty();
    for i in 0..Memory::SLOTS_MAX as u64 {
        memory = memory.with(slot(i), &file, None).unwrap();
    }
    let last = memory.with(slot(Memory::SLOTS_MAX as u64), &file, None);
    assert_eq!(last.err(), Some(MemoryError::TooManyRegions));
}

#[test]
fn an_unaligned_offset_is_served() {
    let file = memfd(3 * 4096);
    let memory = Memory::map(&[(info(0x1000, 4096, 0, 100), file.try_clone().unwrap())]).unwrap();
    let mut out = SegmentBuf::new();
    memory.translate(0x1000, 4096, &mut out).unwrap();
    copy_to(out.as_slice(), 4090, b"xyz");
    let mut read = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 100 + 4090).unwrap();
    assert_eq!(&read, b"xyz");
}

#[test]
fn t48_memory_elsewhere_is_refused() {
    let page = 4096;
    let table = |file: File| vec![(info(0, page, 0, 0), file)];
    let pipe: OwnedFd = rustix::pipe::pipe().unwrap().0;
    assert_eq!(refused(&table(pipe.into())), MemoryError::FileKind);
    assert_eq!(refused(&table(File::open("/dev/zero").unwrap())), MemoryError::FileKind);
    assert_eq!(refused(&table(File::open("/proc/self/fd").unwrap())), MemoryError::FileKind);
    assert_eq!(refused(&table(OwnedFd::from(UnixStream::pair().unwrap().0).into())), MemoryError::FileKind);
    // procfs stands for every file system that is not made of memory.
    assert_eq!(refused(&table(File::open("/proc/self/status").unwrap())), MemoryError::FileSystem);
    let file = memfd(page);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = OpenOptions::new().read(true).open(path).unwrap();
    assert_eq!(refused(&table(read_only)), MemoryError::Os(rustix::io::Errno::ACCESS));
}

#[test]
fn removing_a_region_leaves_it_to_those_who_hold_the_old_table() {
    let file = memfd(8192);
    let (a, b) = (info(0, 4096, USER_BASE, 0), info(0x2000, 4096, USER_BASE + 0x2000, 4096));
    let both = Memory::map(&[(a, file.try_clone().unwrap()), (b, file.try_clone().unwrap())]).unwrap();
    let one = both.without(&RegionInfo { offset: 77, ..b }).unwrap();
    assert_eq!(one.without(&b).err(), Some(MemoryError::Unknown { guest_addr: 0x2000, len: 4096 }));
    assert_eq!((both.len(), one.len(), both.bytes()), (2, 1, 8192));
    let mut out = SegmentBuf::new();
    both.translate(0x2000, 4, &mut out).unwrap();
    copy_to(out.as_slice(), 0, b"held");
    assert!(one.translate(0x2000, 4, &mut out).is_err());
    drop(one);
    let mut read = [0; 4];
    assert_eq!(copy_from(out.as_slice(), 0, &mut read), 4);
    assert_eq!(&read, b"held");
    drop(both);
}

#[test]
fn t33_a_truncated_file_costs_its_session_only() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = Arc::new(OwnedFd::from(ours));
    let (file, other) = (memfd(2 * 4096), memfd(4096));
    let memory = Memory::empty()
        .with(info(0, 2 * 4096, USER_BASE, 0), &file, Some(socket))
        .and_then(|m| m.with(info(0x10000, 4096, USER_BASE + 0x10000, 0), &other, None))
        .unwrap();
    let mut out = SegmentBuf::new();
    memory.translate(0, 2 * 4096, &mut out).unwrap();
    copy_to(out.as_slice(), 4096, b"here");
    assert!(!memory.lost());
    ftruncate(&file, 4096).unwrap();
    let mut read = [1; 4];
    assert_eq!(copy_from(out.as_slice(), 4096, &mut read), 4);
    assert_eq!(read, [0; 4]);
    assert!(memory.lost());
    assert_eq!(std::io::Read::read(&mut &theirs, &mut [0]).unwrap(), 0, "the connection was shut down");
    out.clear();
    memory.translate(0x10000, 4, &mut out).unwrap();
    assert_eq!(copy_to(out.as_slice(), 0, b"fine"), 4);
}
