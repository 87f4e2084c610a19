//! Copies from file to file. On a file system that shares no blocks (tmpfs, ext4), what the kernel does is played by
//! functions of ours, and the one test of the kernel sees that it declines; `POLLUX_REFLINK_DIR` names a folder on
//! one that does (XFS, Btrfs), where it sees that blocks are shared.

use std::sync::atomic::AtomicBool;

use pollux_core::{CopyError, PairCopy};
use rustix::io::Errno;

use super::super::sharing::Share;
use super::*;

const MIB: u64 = 1 << 20;

fn device(file: &NamedTempFile, share: Option<Share>, change: impl FnOnce(&mut FileSpec)) -> File {
    let mut spec = spec(file);
    change(&mut spec);
    let mut open = Open::new(&spec).unwrap();
    open.share = share.unwrap_or(open.share);
    File { spec, open: Arc::new(open), stats: Arc::default() }
}

/// As the kernel does it, but the bytes are copied.
fn shared(source: &OwnedFd, from: u64, target: &OwnedFd, to: u64, len: u64) -> Result<(), Errno> {
    let (mut from, mut to) = (from, to);
    let end = to + len;
    while to < end {
        let left = usize::try_from(end - to).unwrap();
        assert!(rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left)? > 0);
    }
    Ok(())
}

fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> (u64, Result<(), CopyError>) {
    let range = |device: &File, at| device.copy_range(at, len).expect("the file may share blocks");
    PairCopy::new(range(source, from), range(target, to)).run(0, len, &AtomicBool::new(false), &mut || 0)
}

#[test]
fn what_was_written_is_read_at_the_target() {
    let (one, other) = (image(40 * MIB), image(40 * MIB));
    let (source, target) = (device(&one, Some(shared), |_| {}), device(&other, Some(shared), |_| {}));
    let data = pattern(3, 1 << 16);
    Rig::new(&source).write(MIB, &data, EMPTY).unwrap();
    assert_eq!(copy(&source, MIB - 4096, &target, 8192, 36 * MIB), (36 * MIB, Ok(())));
    let mut rig = Rig::new(&target);
    assert!(rig.read(8192 + 4096, data.len()).unwrap() == data);
    rig.flush().unwrap();
}

#[test]
fn errors_say_which_end_and_what_is_unclear_is_left_to_channels() {
    let (one, other) = (image(MIB), image(MIB));
    let cases: [(Share, CopyError); 4] = [
        (|_, _, _, _, _| Err(Errno::NOSPC), CopyError::Target(IoError::NoSpace)),
        (|_, _, _, _, _| Err(Errno::DQUOT), CopyError::Target(IoError::NoSpace)),
        (|_, _, _, _, _| Err(Errno::IO), CopyError::Apart),
        (|_, _, _, _, _| Err(Errno::INVAL), CopyError::Apart),
    ];
    for (share, error) in cases {
        let (source, target) = (device(&one, None, |_| {}), device(&other, Some(share), |_| {}));
        assert_eq!(copy(&source, 0, &target, 0, 4096), (0, Err(error)));
        assert!(target.copy_range(0, 4096).is_some(), "another range may work");
    }
    let refuse: Share = |_, _, _, _, _| Err(Errno::OPNOTSUPP);
    let (source, target) = (device(&one, None, |_| {}), device(&other, Some(refuse), |_| {}));
    assert_eq!(copy(&source, 0, &target, 0, 4096), (0, Err(CopyError::Apart)));
    assert!(target.copy_range(0, 4096).is_none(), "it never will");
}

#[test]
fn files_that_have_become_shorter_or_are_read_only_are_not_touched() {
    let (one, other) = (image(MIB), image(MIB));
    let never: Share = |_, _, _, _, _| panic!("the kernel is asked");
    let (source, target) = (device(&one, Some(never), |_| {}), device(&other, Some(never), |_| {}));
    one.as_file().set_len(MIB / 2).unwrap();
    source.rescan().unwrap();
    assert_eq!(copy(&source, 0, &target, 0, MIB), (0, Err(CopyError::Source(IoError::OutOfRange))));
    assert_eq!(copy(&target, 0, &source, 0, MIB), (0, Err(CopyError::Target(IoError::OutOfRange))));
    drop(source);
    let source = device(&one, Some(never), |spec| spec.readonly = true);
    assert_eq!(copy(&target, 0, &source, 0, 4096), (0, Err(CopyError::Target(IoError::ReadOnly))));
}

#[test]
fn who_keeps_its_space_shares_none() {
    let file = image(MIB);
    assert!(device(&file, None, |spec| spec.discard = false).copy_range(0, 4096).is_none());
    assert!(device(&file, None, |spec| spec.readonly = true).copy_range(0, 4096).is_some(), "a source can share");
    let open = Open::new(&spec(&file)).unwrap();
    assert!(Sharing::of(&open.file, &open.geometry).is_some());
    let disk = Geometry { device: true, ..open.geometry.clone() };
    assert_eq!(Sharing::of(&open.file, &disk), None, "a block device has no blocks to share");
}

#[test]
fn the_kernel_shares_blocks_or_declines() {
    let named = std::env::var_os("POLLUX_REFLINK_DIR").map(std::path::PathBuf::from);
    let dir = named.clone().unwrap_or_else(std::env::temp_dir);
    let (one, other) = (image_in(&dir, 64 * MIB), image_in(&dir, 64 * MIB));
    let (source, target) = (device(&one, None, |_| {}), device(&other, None, |_| {}));
    let data = pattern(4, 1 << 16);
    let (mut reader, mut writer) = (Rig::new(&target), Rig::new(&source));
    for at in 0..32 {
        writer.write(MIB * at, &data, EMPTY).unwrap();
    }
    // What is read before lies in the page cache, if there is one.
    assert!(reader.read(MIB, data.len()).unwrap() == vec![0; data.len()]);
    match copy(&source, 0, &target, MIB, 32 * MIB) {
        (done, Ok(())) => assert_eq!(done, 32 * MIB),
        (0, Err(CopyError::Apart)) if named.is_none() => return,
        other => panic!("{other:?} in {}", dir.display()),
    }
    (1..33).for_each(|at| assert!(reader.read(MIB * at, data.len()).unwrap() == data, "MiB {at}"));
    reader.flush().unwrap();
    // Each is its own again where it is written.
    writer.write(0, &[7; 4096], EMPTY).unwrap();
    reader.write(2 * MIB, &[8; 4096], EMPTY).unwrap();
    assert!(reader.read(MIB, 4096).unwrap() == data[..4096] && writer.read(MIB, 4096).unwrap() == data[..4096]);
    assert!(writer.read(0, 4096).unwrap() == [7; 4096] && reader.read(2 * MIB, 4096).unwrap() == [8; 4096]);
    assert_eq!(target.extent(MIB + 65536, MIB - 65536), Extent { len: MIB - 65536, mapped: false }, "holes stay holes");
}
