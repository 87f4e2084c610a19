//! WRITE ATOMIC through the real daemon to the real kernel: on memory, on a file whose file system writes atomically (XFS
//! on a loop device, where this machine has both and lets us), on one whose does not, and on a thin volume on that.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use common::{clear_attentions, controller, ram};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::json;

const BLOCK: usize = 512;
const BLOCKS: u64 = 8192;
/// 20h/00h and 24h/00h.
const INVALID_OPCODE: (u8, u8, u8) = (5, 0x20, 0);
const INVALID_FIELD: (u8, u8, u8) = (5, 0x24, 0);

/// A new file system of this kind, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where it cannot be made or mounted: that takes root, the kernel's support and the tools.
    fn new(dir: &Path, kind: &str) -> Result<Option<Mounted>> {
        let (image, at) = (dir.join(format!("{kind}.img")), dir.join(kind));
        // The least that XFS takes.
        File::create(&image)?.set_len(320 << 20)?;
        std::fs::create_dir(&at)?;
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = ran(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
        if !made {
            println!("skipped: no {kind} can be made and mounted here");
        }
        Ok(made.then(|| Mounted(at)))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The kernel closes the files of a process that was killed, and of its rings, a moment later.
        let unmounted = || Command::new("umount").arg(&self.0).output().is_ok_and(|output| output.status.success());
        let tries = (0..100).any(|_| {
            unmounted() || {
                std::thread::sleep(Duration::from_millis(100));
                false
            }
        });
        assert!(tries || std::thread::panicking(), "{} stays mounted", self.0.display());
    }
}

fn lun(target: u8) -> Lun {
    Lun::new(target, 0)
}

/// MAXIMUM TRANSFER LENGTH and the five fields about atomic writes of page B0h.
fn limits(front: &mut FrontEnd, target: u8) -> Result<[u32; 6]> {
    let page = front.good(lun(target), &cdb::inquiry(Some(0xB0), 64), &[], 64)?.data;
    let number = |at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    Ok([8, 44, 48, 52, 56, 60].map(number))
}

/// What does not fit is refused, and what fits is there afterwards.
fn writes(front: &mut FrontEnd, target: u8, unit: u16) -> Result<()> {
    let blocks = usize::from(unit);
    for (at, lba) in (0..).zip([0, u64::from(unit), BLOCKS - u64::from(unit)]) {
        let data: Vec<u8> = (0..blocks * BLOCK).map(|byte| (byte / 5 + at + 1) as u8).collect();
        front.good(lun(target), &cdb::write_atomic16(lba, unit, at == 1), &data, 0)?;
        let read = front.good(lun(target), &cdb::read16(lba, u32::from(unit)), &[], data.len())?.data;
        ensure!(read == data, "target {target}: what was written at {lba} is not there");
    }
    let mut refused = |lba: u64, count: u16| -> Result<()> {
        let out = vec![0; usize::from(count) * BLOCK];
        let said = front.cdb(lun(target), &cdb::write_atomic16(lba, count, false), &out, 0)?;
        ensure!(said.sense_key() == Some(INVALID_FIELD), "{count} blocks at {lba}: {said:?}");
        Ok(())
    };
    refused(u64::from(unit) / 2, unit)?;
    refused(0, unit / 2)
}

#[test]
fn what_the_kernel_writes_atomically_guests_can() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let xfs = Mounted::new(dir.path(), "xfs")?;
    // A part of the page cache is nothing that is written atomically.
    let tmpfs = tempfile::tempdir_in("/dev/shm")?;
    // The last, so that its files are closed before the folders go.
    let daemon = Daemon::start()?;
    ram(&daemon, "memory", BLOCKS)?;
    let mut disks = vec!["memory"];
    for (name, folder) in [("plain", Some(tmpfs.path())), ("xfs", xfs.as_ref().map(|xfs| xfs.0.as_path()))] {
        let Some(folder) = folder else { continue };
        let path = folder.join("disk");
        File::create(&path)?.set_len(BLOCKS * BLOCK as u64)?;
        daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": BLOCK}))?;
        disks.push(name);
    }
    controller(&daemon, "vm", &disks)?;
    let mut front = FrontEnd::connect(&daemon.socket("vm"), &DriverOptions::default())?;
    for target in 0..disks.len() {
        clear_attentions(&mut front, lun(target as u8))?;
    }

    ensure!(limits(&mut front, 0)? == [u32::MAX, 256, 8, 8, 256, 256]);
    writes(&mut front, 0, 8)?;

    ensure!(limits(&mut front, 1)? == [0; 6]);
    let said = front.cdb(lun(1), &cdb::write_atomic16(0, 8, false), &[0; 8 * BLOCK], 0)?;
    ensure!(said.sense_key() == Some(INVALID_OPCODE), "{said:?}");

    if xfs.is_some() {
        let found = limits(&mut front, 2)?;
        if found == [0; 6] {
            println!("skipped: this kernel's XFS does not write atomically (Linux 6.16 does)");
        } else {
            println!("XFS: {found:?}");
            let unit = found[1];
            ensure!(found == [u32::MAX, unit, unit, unit, unit, unit], "{found:?}");
            writes(&mut front, 2, unit.try_into()?)?;
        }
    }
    Ok(())
}

#[test]
fn thin_volumes_write_atomically_whatever_they_lie_on() -> Result<()> {
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let path = dir.path().join("base");
    File::create(&path)?.set_len(64 << 20)?;
    let daemon = Daemon::start()?;
    daemon.rpc("bdev_aio_create", json!({"name": "base", "filename": path, "block_size": BLOCK}))?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "pool"}))?;
    let size = json!({"lvs_name": "pool", "lvol_name": "v", "size_in_mib": (BLOCKS * BLOCK as u64) >> 20});
    daemon.rpc("bdev_lvol_create", size)?;
    controller(&daemon, "vm", &["pool/v"])?;
    let mut front = FrontEnd::connect(&daemon.socket("vm"), &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    ensure!(limits(&mut front, 0)? == [u32::MAX, 256, 8, 8, 256, 256]);
    // First into what is empty, then over what is there, under a snapshot, and over that again.
    for round in 0..4 {
        writes(&mut front, 0, 8)?;
        for (lba, blocks) in [(0, 256u16), (96, 64), (120, 16), (BLOCKS - 32, 32)] {
            let data = vec![round * 4 + 1; usize::from(blocks) * BLOCK];
            front.good(lun(0), &cdb::write_atomic16(lba, blocks, round == 2), &data, 0)?;
            let read = front.good(lun(0), &cdb::read16(lba, blocks.into()), &[], data.len())?.data;
            ensure!(read == data, "round {round}: what was written at {lba} is not there");
        }
        if round == 1 {
            daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "pool/v", "snapshot_name": "s"}))?;
        }
    }
    // Across the border of two clusters, with something beside it that stays as it is.
    let beside: Vec<u8> = (0..256 * BLOCK).map(|at| (at / 7) as u8).collect();
    front.good(lun(0), &cdb::write16(1024, 256, false), &beside, 0)?;
    for value in 1..20 {
        front.good(lun(0), &cdb::write_atomic16(1024 + 120, 16, value % 2 == 0), &[value; 16 * BLOCK], 0)?;
        let read = front.good(lun(0), &cdb::read16(1024, 256), &[], 256 * BLOCK)?.data;
        let mut expected = beside.clone();
        expected[120 * BLOCK..136 * BLOCK].fill(value);
        ensure!(read == expected, "round {value}");
    }
    Ok(())
}
