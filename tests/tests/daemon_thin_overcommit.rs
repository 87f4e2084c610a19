//! Volumes that are far larger than their pool: more pages of maps than the pool has may be wanted, and still everything
//! that has space is written, made durable, snapshotted and given back.

mod common;

use anyhow::{Result, ensure};
use common::{clear_attentions, connect, controller, file};
use pollux_tests::daemon::Daemon;
use pollux_tests::guest::{DriverOptions, Lun, cdb};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const LUN: Lun = Lun::new(0, 0);
/// Clusters that are written to, one block of each.
const CLUSTERS: u32 = 600;
/// Blocks of 512 bytes.
const CLUSTER: u32 = 128;

#[test]
fn a_volume_larger_than_its_pool_is_flushed_and_its_snapshots_go() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "f0", GIB)?;
    daemon.rpc("bdev_lvol_create_lvstore", json!({"bdev_name": "f0", "lvs_name": "lvs"}))?;
    let params = json!({"lvs_name": "lvs", "lvol_name": "v", "size": 64 * GIB, "thin_provision": true});
    daemon.rpc("bdev_lvol_create", params)?;
    controller(&daemon, "vm", &["lvs/v"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for value in 1..=3 {
        for cluster in 0..CLUSTERS {
            front.good(LUN, &cdb::write10(cluster * CLUSTER, 8, false), &[value; 4096], 0)?;
        }
        front.good(LUN, &cdb::sync10(), &[], 0)?;
        daemon.rpc("bdev_lvol_snapshot", json!({"lvol_name": "lvs/v", "snapshot_name": format!("s{value}")}))?;
    }
    // They are folded in the background, and other changes are answered meanwhile.
    for value in 1..=3 {
        daemon.rpc("bdev_lvol_delete", json!({"name": format!("lvs/s{value}")}))?;
    }
    daemon.rpc("bdev_lvol_rename", json!({"old_name": "lvs/v", "new_name": "w"}))?;
    drop(front);
    daemon.restart()?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for cluster in 0..CLUSTERS {
        let read = front.good(LUN, &cdb::read10(cluster * CLUSTER, 8), &[], 4096)?.data;
        ensure!(read == [3; 4096], "cluster {cluster} begins with {}", read[0]);
    }
    let listed = daemon.rpc("bdev_lvol_get_lvols", Value::Null)?;
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
    drop(front);
    ensure!(daemon.terminate()?.code() == Some(0), "the daemon ends badly:\n{}", daemon.log_tail());
    Ok(())
}
