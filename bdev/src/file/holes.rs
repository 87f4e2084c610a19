//! What of a file is mapped: `SEEK_DATA` and `SEEK_HOLE`. They may wait, for the file's lock or for metadata, so they are
//! for helper threads.
//!
//! What a write has acknowledged is data to the kernel before the acknowledgement, whether it went through the page
//! cache or past it: so who asks after it is told *mapped*. What is preallocated or zeroed in place and was not written
//! since is a hole to `lseek`, although space is kept for it: it reads as zeroes. Whatever is not certain is called
//! mapped: an error of the call, a file system that does not know (it says that all is data), a file that has become
//! shorter.

use std::os::fd::OwnedFd;

use pollux_core::Extent;
use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::Errno;

/// The front of a range. A block is mapped if any byte of it is; blocks are counted from the file's begin.
pub(super) fn extent(file: &OwnedFd, block_size: u32, offset: u64, len: u64) -> Extent {
    let block = u64::from(block_size);
    let end = offset.saturating_add(len);
    let hole_until = |at: u64| Extent { len: at.min(end) - offset, mapped: false };
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data >= end => hole_until(end),
        Ok(data) => match data - data % block {
            first if first > offset => hole_until(first),
            _ => mapped_from(file, block, offset, end, data),
        },
        // No data up to the end of the file. A range beyond that is of a file that has become shorter.
        Err(Errno::NXIO) if size(file).is_some_and(|size| size >= end) => hole_until(end),
        Err(_) => Extent::mapped(len),
    }
}

/// A range whose first block has data at `data`.
fn mapped_from(file: &OwnedFd, block: u64, offset: u64, end: u64, data: u64) -> Extent {
    match seek(file, SeekFrom::Hole(data)) {
        Ok(hole) => Extent::mapped(hole.next_multiple_of(block).min(end) - offset),
        Err(_) => Extent::mapped(end - offset),
    }
}

fn size(file: &OwnedFd) -> Option<u64> {
    fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    fn file(bytes: u64) -> std::fs::File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes).expect("sparse");
        file
    }

    fn runs(file: &OwnedFd, block: u32, bytes: u64) -> Vec<(u64, bool)> {
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut at = 0;
        while at < bytes {
            let Extent { len, mapped } = extent(file, block, at, bytes - at);
            assert!(len > 0 && len % u64::from(block) == 0 && len <= bytes - at, "{len} at {at}");
            match runs.last_mut() {
                Some((sum, kind)) if *kind == mapped => *sum += len,
                _ => runs.push((len, mapped)),
            }
            at += len;
        }
        runs
    }

    #[test]
    fn holes_are_where_nothing_was_written() {
        let file = file(8 * MIB);
        file.write_all_at(&[1; 65536], MIB).expect("written");
        file.write_all_at(&[1; 10], 3 * MIB + 1).expect("written");
        let fd = OwnedFd::from(file);
        let want = [(MIB, false), (65536, true), (2 * MIB - 65536, false), (4096, true), (5 * MIB - 4096, false)];
        assert_eq!(runs(&fd, 512, 8 * MIB), want, "does the file system below the temporary folder know of holes?");
        assert_eq!(extent(&fd, 512, MIB + 512, 1024), Extent::mapped(1024));
        assert_eq!(extent(&fd, 512, 512, 1024), Extent { len: 1024, mapped: false });
        assert_eq!(extent(&fd, 512, MIB - 512, 1024), Extent { len: 512, mapped: false });
    }

    #[test]
    fn a_block_is_mapped_if_any_byte_of_it_is() {
        let file = file(MIB);
        // The second half of one block of 64 KiB and the first of the next; the hole between has no whole block.
        for at in [2 * 65536 - 4096, 3 * 65536] {
            file.write_all_at(&[1; 4096], at).expect("written");
        }
        let fd = OwnedFd::from(file);
        assert_eq!(
            runs(&fd, 65536, MIB),
            [(65536, false), (65536, true), (65536, false), (65536, true), (12 * 65536, false)]
        );
        assert_eq!(extent(&fd, 65536, 65536, MIB - 65536), Extent::mapped(65536));
    }

    #[test]
    fn what_is_not_certain_is_mapped() {
        let file = file(MIB);
        file.write_all_at(&[1; 4096], 0).expect("written");
        let fd = OwnedFd::from(file);
        assert_eq!(extent(&fd, 512, MIB / 2, MIB), Extent::mapped(MIB), "the file has become shorter");
        assert_eq!(extent(&fd, 512, 4 * MIB, MIB), Extent::mapped(MIB));
        let (pipe, _end) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(extent(&pipe, 512, 0, MIB), Extent::mapped(MIB), "no file at all");
    }
}
