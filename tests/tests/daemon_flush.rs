//! FLUSH, FUA and WCE=0 on the real daemon, over a disk with a volatile cache that loses power: what was acknowledged as
//! durable has to be there, whatever else was under way. (kill -9 would prove nothing: the kernel keeps what was
//! written.)

mod common;

use anyhow::{Result, anyhow, ensure};
use common::{clear_attentions, connect, controller, file, ram};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::{FrontEnd, PATIENCE};
use pollux_tests::guest::{DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;

const LUN: Lun = Lun::new(0, 0);
const BLOCKS: u64 = 256;

/// Does random things for a while, leaves some of them in flight, and cuts the disk's power.
fn until_power_cut(daemon: &Daemon, front: &mut FrontEnd, load: &mut ScsiLoad, mix: &ScsiMix, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let queues = FIRST_REQUEST_QUEUE..front.driver.queues.len();
    for _ in 0..rng.between(20, 60) {
        let queue = queues.start + rng.index(queues.len());
        load.submit(&mut front.driver, queue, mix);
        front.driver.queues[queue].flush();
        if rng.chance(1, 3) && front.driver.in_flight(queue) > 0 {
            let (ticket, response) = front.wait(queue, PATIENCE)?;
            load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
        }
    }
    // What is not answered by now is on nobody's account.
    for queue in queues.clone() {
        while let Some((ticket, response)) = front.poll(queue)? {
            load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
        }
        load.abandon(queue);
    }
    daemon.rpc("bdev_error_power_cut", json!({"name": "EE_disk", "seed": seed}))?;
    for queue in queues {
        while front.driver.in_flight(queue) > 0 {
            front.wait(queue, PATIENCE)?;
        }
    }
    Ok(())
}

fn whole_disk(front: &mut FrontEnd) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    for at in (0..BLOCKS as u32).step_by(64) {
        data.extend(front.good(LUN, &cdb::read10(at, 64), &[], 64 * 512)?.data);
    }
    Ok(data)
}

/// Cuts the power again and again; returns how many blocks were lost that had been acknowledged without a promise.
fn power_cuts(on_file: bool, write_through: bool) -> Result<usize> {
    let daemon = Daemon::start()?;
    if on_file {
        file(&daemon, "disk", BLOCKS * 512)?;
    } else {
        ram(&daemon, "disk", BLOCKS)?;
    }
    daemon.rpc("bdev_error_create", json!({"base_name": "disk", "volatile_cache": true}))?;
    controller(&daemon, "vm", &["EE_disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
    clear_attentions(&mut front, LUN)?;
    let mut load = ScsiLoad::new(LUN, 512, BLOCKS, 7);
    let mut mix = ScsiMix { read: 4, write: 40, sync: 4, blocks_max: 16, ..ScsiMix::default() };
    if write_through {
        let (command, list) = cdb::set_wce(false);
        front.good(LUN, &command, &list, 0)?;
        load.write_through = true;
        mix.sync = 0;
    }
    let mut lost = 0;
    for seed in 0..40 {
        until_power_cut(&daemon, &mut front, &mut load, &mix, seed)?;
        // Writes that were in flight may have ended after the cut and be volatile: they are to stay as they are read.
        front.good(LUN, &cdb::sync10(), &[], 0)?;
        let disk = whole_disk(&mut front)?;
        lost += load.model().lost(&disk);
        load.model().crashed(&disk).map_err(|why| anyhow!("power cut {seed}: {why}"))?;
    }
    Ok(lost)
}

#[test]
fn flush_and_fua_on_ram_survive_power_cuts() -> Result<()> {
    let lost = power_cuts(false, false)?;
    ensure!(lost > 0, "nothing was ever lost: the power cuts are none");
    Ok(())
}

#[test]
fn flush_and_fua_on_a_file_survive_power_cuts() -> Result<()> {
    let lost = power_cuts(true, false)?;
    ensure!(lost > 0, "nothing was ever lost: the power cuts are none");
    Ok(())
}

#[test]
fn without_the_write_cache_nothing_acknowledged_is_lost() -> Result<()> {
    let lost = power_cuts(false, true)?;
    ensure!(lost == 0, "{lost} blocks that were acknowledged with WCE=0 are lost");
    Ok(())
}
