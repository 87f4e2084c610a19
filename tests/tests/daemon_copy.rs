//! EXTENDED COPY by the real daemon and the real kernel, between disks that may copy by themselves: memory, files (which
//! share blocks where the file system can: `POLLUX_REFLINK_DIR` names a folder on one, XFS or Btrfs, say), and one of each.

mod common;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use common::{controller, ram};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;

const BLOCK: usize = 512;
const BLOCKS: u64 = 64 << 11;
/// What is copied, from and to places that a file system's blocks fit, and one that they do not.
const MOVES: [(u64, u64, u16); 3] = [(8, 2048, 40_000), (2048, 60_000, 24_000), (9, 2049, 5000)];

fn lun(target: u8) -> Lun {
    Lun::new(target, 0)
}

fn write(front: &mut FrontEnd, target: u8, data: &[u8]) -> Result<()> {
    for (part, lba) in data.chunks(256 * BLOCK).zip((0..).step_by(256)) {
        front.good(lun(target), &cdb::write16(lba, (part.len() / BLOCK) as u32, false), part, 0)?;
    }
    Ok(())
}

fn read(front: &mut FrontEnd, target: u8, blocks: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for lba in (0..blocks).step_by(256) {
        data.extend(front.good(lun(target), &cdb::read16(lba, 256), &[], 256 * BLOCK)?.data);
    }
    Ok(data)
}

#[test]
fn what_arrives_on_real_disks_is_what_was_there() -> Result<()> {
    let daemon = Daemon::start()?;
    let named = std::env::var_os("POLLUX_REFLINK_DIR").map(PathBuf::from);
    let dir = tempfile::tempdir_in(named.unwrap_or_else(|| daemon.disks_dir()))?;
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        File::create(&path)?.set_len(BLOCKS * BLOCK as u64)?;
        daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": BLOCK}))?;
    }
    ram(&daemon, "c", BLOCKS)?;
    ram(&daemon, "d", BLOCKS)?;
    controller(&daemon, "vm", &["a", "b", "c", "d"])?;
    let mut front = FrontEnd::connect(&daemon.socket("vm"), &DriverOptions::default())?;
    let mut rng = Rng::new(7);
    let names = (0..4).map(|target| common::naa(&mut front, lun(target))).collect::<Result<Vec<_>>>()?;
    for (source, target) in [(0u8, 1u8), (2, 3), (1, 2)] {
        // Stretches of data and of nothing.
        let mut data = vec![0; BLOCKS as usize / 2 * BLOCK];
        for part in data.chunks_mut(300 * BLOCK).step_by(2) {
            part.fill_with(|| rng.below(256) as u8);
        }
        write(&mut front, source, &data)?;
        let mut want = read(&mut front, target, BLOCKS)?;
        let before = read(&mut front, source, BLOCKS)?;
        for (from, to, blocks) in MOVES {
            let segment = Segment { source: 0, destination: 1, blocks, from, to };
            let ends = [names[usize::from(source)], names[usize::from(target)]];
            let (cdb, list) = copy::lid1(0, 3, &ends, &[segment]);
            front.good(lun(source), &cdb, &list, 0).with_context(|| format!("{source} to {target}: {segment:?}"))?;
            let bytes = |lba: u64| lba as usize * BLOCK..(lba as usize + usize::from(blocks)) * BLOCK;
            want[bytes(to)].copy_from_slice(&before[bytes(from)]);
        }
        ensure!(read(&mut front, target, BLOCKS)? == want, "{source} to {target}: something else has arrived");
        ensure!(read(&mut front, source, BLOCKS)? == before, "{source} to {target}: the source has changed");
        front.good(lun(target), &cdb::sync10(), &[], 0)?;
    }
    Ok(())
}
