//! SCSI on thin volumes through the real daemon: what is mapped, copies that move next to nothing, and SANITIZE.

mod common;

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{attach, clear_attentions, connect, controller, file, within};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::json;

const BLOCK: usize = 512;
const KIB: u64 = 2;
const MIB: u64 = 2048;
const CLUSTER: u64 = 64 * KIB;
const SOON: Duration = Duration::from_secs(20);

fn lun(target: u8) -> Lun {
    Lun::new(target, 0)
}

/// A pool on a file, with these volumes of 16 MiB.
fn pool(daemon: &Daemon, volumes: &[&str]) -> Result<()> {
    file(daemon, "base", 128 << 20)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "base", "lvs_name": "pool"}))?;
    for name in volumes {
        daemon.rpc("bdev_lvol_create", json!({"lvs_name": "pool", "lvol_name": name, "size_in_mib": 16}))?;
    }
    Ok(())
}

fn snapshot(daemon: &Daemon, volume: &str, name: &str) -> Result<()> {
    daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": format!("pool/{volume}"), "snapshot_name": name}))?;
    Ok(())
}

fn fill(front: &mut FrontEnd, target: u8, lba: u64, blocks: u64, value: u8) -> Result<()> {
    for at in (0..blocks).step_by(256) {
        let count = (blocks - at).min(256);
        let data = vec![value; count as usize * BLOCK];
        front.good(lun(target), &cdb::write16(lba + at, count as u32, false), &data, 0)?;
    }
    Ok(())
}

fn read(front: &mut FrontEnd, target: u8, lba: u64, blocks: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for at in (0..blocks).step_by(256) {
        let count = (blocks - at).min(256);
        data.extend(front.good(lun(target), &cdb::read16(lba + at, count as u32), &[], count as usize * BLOCK)?.data);
    }
    Ok(data)
}

/// The runs that GET LBA STATUS tells, as (first block, blocks, mapped).
fn runs(front: &mut FrontEnd, target: u8, blocks: u64) -> Result<Vec<(u64, u64, bool)>> {
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    let mut at = 0;
    while at < blocks {
        let told = front.cdb(lun(target), &cdb::get_lba_status16(at, 4096), &[], 4096)?.data;
        let len = u32::from_be_bytes(told[..4].try_into()?) as usize + 4;
        for descriptor in told[8..len.min(told.len())].chunks_exact(16) {
            let lba = u64::from_be_bytes(descriptor[..8].try_into()?);
            let count = u64::from(u32::from_be_bytes(descriptor[8..12].try_into()?));
            let mapped = descriptor[12] & 0xF == 0;
            ensure!(lba == at && count > 0, "{lba} and not {at}");
            match runs.last_mut() {
                Some(last) if last.2 == mapped => last.1 += count,
                _ => runs.push((lba, count, mapped)),
            }
            at = lba + count;
        }
    }
    Ok(runs)
}

/// Bytes that were written to a bdev so far.
fn written(daemon: &Daemon, name: &str) -> Result<u64> {
    let stat = daemon.rpc("bdev_get_iostat", json!({"name": name}))?;
    stat["bdevs"][0]["bytes_written"].as_u64().with_context(|| format!("{stat}"))
}

#[test]
fn what_is_mapped_is_told_from_the_map() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, &["v"])?;
    controller(&daemon, "vm", &["pool/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    // Thresholds are in clusters; LBPU, LBPWS, LBPWS10, LBPRZ; thin; no group is told.
    let page = front.good(lun(0), &cdb::inquiry(Some(0xB2), 64), &[], 64)?.data;
    ensure!(page[..8] == [0, 0xB2, 0, 4, 7, 0xE4, 2, 0], "{page:02x?}");
    let page = front.good(lun(0), &cdb::inquiry(Some(0xB0), 64), &[], 64)?.data;
    let number = |at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    // As much and as many as one likes, in units of 32 KiB (whole sub-blocks), from block 0 on.
    ensure!([number(20), number(24), number(28), number(32)] == [u32::MAX, 256, 64, 0x8000_0000], "{page:02x?}");

    fill(&mut front, 0, 8, 8, 1)?;
    fill(&mut front, 0, 3 * CLUSTER, 2 * CLUSTER, 1)?;
    // A part of a sub-block counts as all of it.
    fill(&mut front, 0, 8 * MIB + 4, 1, 1)?;
    snapshot(&daemon, "v", "s")?;
    fill(&mut front, 0, 6 * CLUSTER, CLUSTER, 2)?;
    let (cdb, list) = cdb::unmap(&[(4 * CLUSTER + 8, 16)]);
    front.good(lun(0), &cdb, &list, 0)?;
    let want = [
        (0, 8, false),
        (8, 8, true),
        (16, 3 * CLUSTER - 16, false),
        (3 * CLUSTER, CLUSTER + 8, true),
        (4 * CLUSTER + 8, 16, false),
        (4 * CLUSTER + 24, CLUSTER - 24, true),
        (5 * CLUSTER, CLUSTER, false),
        (6 * CLUSTER, CLUSTER, true),
        (7 * CLUSTER, 8 * MIB - 7 * CLUSTER, false),
        (8 * MIB, 8, true),
        (8 * MIB + 8, 8 * MIB - 8, false),
    ];
    ensure!(runs(&mut front, 0, 16 * MIB)? == want, "{:?}", runs(&mut front, 0, 16 * MIB)?);
    Ok(())
}

#[test]
fn copies_move_what_is_there_and_nothing_that_is_there_already() -> Result<()> {
    let daemon = Daemon::start()?;
    pool(&daemon, &["a", "b"])?;
    controller(&daemon, "vm", &["pool/a", "pool/b"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for target in 0..2 {
        clear_attentions(&mut front, lun(target))?;
    }
    // 192 KiB of 16 MiB, to where something else was.
    for at in [0, 5 * MIB + 64 * KIB, 12 * MIB] {
        fill(&mut front, 0, at, 64 * KIB, 7)?;
    }
    fill(&mut front, 1, 2 * MIB, 2 * MIB, 9)?;
    front.good(lun(1), &cdb::sync10(), &[], 0)?;
    let names = (0..2).map(|target| common::naa(&mut front, lun(target))).collect::<Result<Vec<_>>>()?;
    let copy = |front: &mut FrontEnd, ends: [[u8; 16]; 2], blocks: u64| -> Result<u64> {
        let before = written(&daemon, "base")?;
        let segment = Segment { source: 0, destination: 1, blocks: u16::try_from(blocks)?, from: 0, to: 0 };
        let (cdb, list) = copy::lid1(0, 3, &ends, &[segment]);
        front.good(lun(0), &cdb, &list, 0)?;
        Ok(written(&daemon, "base")? - before)
    };
    let moved = copy(&mut front, [names[0], names[1]], 16 * MIB)?;
    ensure!(read(&mut front, 0, 0, 16 * MIB)? == read(&mut front, 1, 0, 16 * MIB)?, "something else has arrived");
    println!("16 MiB with 192 KiB of data: {moved} bytes written to the base");
    ensure!((192 << 10..1 << 20).contains(&moved), "{moved} bytes were written");
    ensure!(runs(&mut front, 1, 16 * MIB)?.iter().filter(|run| run.2).map(|run| run.1).sum::<u64>() == 192 * KIB);

    // A range is as the snapshot has it again.
    fill(&mut front, 0, 4 * MIB, 4 * MIB, 3)?;
    front.good(lun(0), &cdb::sync10(), &[], 0)?;
    snapshot(&daemon, "a", "s")?;
    let before = read(&mut front, 0, 0, 16 * MIB)?;
    fill(&mut front, 0, 0, 8 * MIB, 4)?;
    front.good(lun(0), &cdb::sync10(), &[], 0)?;
    attach(&daemon, "vm", 2, "pool/s")?;
    clear_attentions(&mut front, lun(2))?;
    let name = common::naa(&mut front, lun(2))?;
    let _ = front.cdb(lun(0), &cdb::TEST_UNIT_READY, &[], 0)?;
    let moved = copy(&mut front, [name, names[0]], 16 * MIB)?;
    println!("16 MiB as they were, 8 MiB of them changed: {moved} bytes written to the base");
    ensure!(read(&mut front, 0, 0, 16 * MIB)? == before, "it is not as it was");
    ensure!(moved < 256 << 10, "{moved} bytes were written");
    Ok(())
}

#[test]
fn an_erased_volume_is_nowhere_on_the_base_and_snapshots_are_not_erased() -> Result<()> {
    const ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut daemon = Daemon::start()?;
    pool(&daemon, &["v", "other"])?;
    daemon.rpc("bdev_set_scsi_identity", json!({"name": "pool/v", "allow_sanitize": true}))?;
    controller(&daemon, "vm", &["pool/v", "pool/other"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for target in 0..2 {
        clear_attentions(&mut front, lun(target))?;
    }
    let secret = b"what nobody is to read".repeat(24)[..512].to_vec();
    let data = secret.repeat(200);
    for at in [0, 3 * MIB + 8, 9 * MIB] {
        front.good(lun(0), &cdb::write16(at, 200, false), &data, 0)?;
    }
    // What it gives back the base is not told of for a long time, as far as limits go.
    daemon.rpc("bdev_lvol_set_limits", json!({"lvs_name": "pool", "discard_mbytes_per_sec": 1}))?;
    for at in (12 * MIB..12 * MIB + 8 * CLUSTER).step_by(200) {
        front.good(lun(0), &cdb::write16(at, 200, false), &data, 0)?;
    }
    fill(&mut front, 1, 0, CLUSTER, 5)?;
    front.good(lun(0), &cdb::sync10(), &[], 0)?;
    let (unmap, list) = cdb::unmap(&[(12 * MIB, 8 * CLUSTER as u32 + 200)]);
    front.good(lun(0), &unmap, &list, 0)?;
    let path = daemon.disks_dir().join("base");
    let is_there = || -> Result<bool> { Ok(fs::read(&path)?.chunks(512).any(|sector| sector == &secret[..])) };
    ensure!(is_there()?);

    snapshot(&daemon, "v", "s")?;
    let said = front.cdb(lun(0), &ERASE, &[], 0)?;
    ensure!(said.sense_key() == Some((5, 0x24, 0)), "{said:?}");
    ensure!(front.good(lun(0), &cdb::read16(0, 200), &[], data.len())?.data == data, "it has been done all the same");
    daemon.rpc("bdev_lvol_delete", json!({"name": "pool/s"}))?;
    let erased = |front: &mut FrontEnd| -> Result<bool> { Ok(front.cdb(lun(0), &ERASE, &[], 0)?.good()) };
    within(SOON, || erased(&mut front), "the snapshot that was deleted is never gone")?;
    ensure!(!is_there()?, "something of it is on the base");
    ensure!(read(&mut front, 0, 0, 16 * MIB)?.iter().all(|byte| *byte == 0));
    ensure!(runs(&mut front, 0, 16 * MIB)? == [(0, 16 * MIB, false)]);
    ensure!(read(&mut front, 1, 0, CLUSTER)?.iter().all(|byte| *byte == 5), "another volume has lost something");
    drop(front);
    daemon.kill9();
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, lun(0))?;
    ensure!(read(&mut front, 0, 0, 16 * MIB)?.iter().all(|byte| *byte == 0) && !is_there()?);
    Ok(())
}
