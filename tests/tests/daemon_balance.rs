//! Queues that move between the reactors of the real daemon: by hand under load, and by the dynamic scheduler.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{clear_attentions, connect, controller, ram, run_load};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::guest::{Command, DriverOptions, Lun, ScsiLoad, ScsiMix, cdb};
use serde_json::{Value, json};

const LUN: Lun = Lun::new(0, 0);

fn daemon() -> Result<Daemon> {
    let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
    ram(&daemon, "disk", 8192)?;
    controller(&daemon, "vm", &["disk"])?;
    Ok(daemon)
}

fn cores(daemon: &Daemon) -> Result<Vec<u64>> {
    let shown = daemon.rpc("vhost_get_controllers", json!({}))?;
    let cores = shown[0]["sessions"][0]["queue_cores"].as_array().context("a session")?;
    Ok(cores.iter().filter_map(Value::as_u64).collect())
}

#[test]
fn data_stays_right_while_queues_move() -> Result<()> {
    let daemon = daemon()?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 4, ..DriverOptions::default() })?;
    clear_attentions(&mut front, LUN)?;
    let mut load = ScsiLoad::new(LUN, 512, 8192, 5);
    let (ended, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let mover = scope.spawn(|| -> Result<()> {
            for round in 0u64.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let params = json!({"ctrlr": "vm", "queue": 2 + round % 4, "core": round / 4 % 2});
                let answer = daemon.rpc("vhost_scsi_controller_move_queue", params)?;
                moved.fetch_add(u64::from(answer["moved"] == true), Ordering::Relaxed);
            }
            Ok(())
        });
        // As long as it takes the queues to have moved often.
        let (mut done, mut rounds) = (Ok(()), 0);
        let too_few = |rounds| rounds < 4 || moved.load(Ordering::Relaxed) <= 20 && rounds < 400;
        while done.is_ok() && too_few(rounds) && !mover.is_finished() {
            done = run_load(&mut front, &mut load, &ScsiMix::default(), 1000, 64, 4 + rounds);
            rounds += 1;
        }
        ended.store(true, Ordering::Relaxed);
        mover.join().map_err(|_| anyhow::anyhow!("the mover panicked"))??;
        done?;
        let moved = moved.load(Ordering::Relaxed);
        ensure!(moved > 20, "only {moved} moves while {rounds} thousand commands ran");
        Ok(())
    })?;
    ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
    ensure!(daemon.metric("pollux_scheduler_moves_total", &[("result", "moved")])? > 0.0, "moves are counted");
    Ok(())
}

#[test]
fn a_move_that_cannot_be_is_refused_with_the_reason() -> Result<()> {
    let daemon = daemon()?;
    let refused = |params: Value| daemon.rpc_error("vhost_scsi_controller_move_queue", params);
    ensure!(
        refused(json!({"ctrlr": "vm", "queue": 2, "core": 0}))?.reason.as_deref() == Some("not_found"),
        "no session"
    );
    let front = connect(&daemon, "vm", &DriverOptions::default())?;
    for (params, reason) in [
        (json!({"ctrlr": "none", "queue": 2, "core": 0}), "not_found"),
        (json!({"ctrlr": "vm", "queue": 0, "core": 0}), "not_found"),
        (json!({"ctrlr": "vm", "queue": 2, "core": 77}), "invalid_parameters"),
    ] {
        let error = refused(params.clone())?;
        ensure!(error.reason.as_deref() == Some(reason), "{params}: {error:?}");
    }
    drop(front);
    Ok(())
}

#[test]
fn the_scheduler_is_set_shown_and_kept() -> Result<()> {
    let mut daemon = daemon()?;
    let get = |daemon: &Daemon| daemon.rpc("framework_get_scheduler", json!(null));
    ensure!(get(&daemon)?["scheduler_name"] == "static", "static by default");
    daemon.rpc("framework_set_scheduler", json!({"name": "dynamic", "period": 20_000, "core_limit": 60}))?;
    daemon.rpc_error("framework_set_scheduler", json!({"name": "gscheduler"}))?;
    daemon.rpc_error("framework_set_scheduler", json!({"name": "dynamic", "period": 1}))?;
    daemon.restart()?;
    let shown = get(&daemon)?;
    ensure!(shown["scheduler_name"] == "dynamic" && shown["scheduler_period"] == 20_000, "{shown}");
    ensure!(shown["core_limit"] == 60 && shown["core_busy"] == 95, "{shown}");
    Ok(())
}

/// Two queues that are kept busy are put on one reactor; the scheduler parts them. How busy a reactor gets here depends on
/// the machine, so the limits are set where any load is too much.
#[test]
fn the_dynamic_scheduler_parts_busy_queues() -> Result<()> {
    let daemon = daemon()?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
    clear_attentions(&mut front, LUN)?;
    for queue in [2, 3] {
        while daemon.rpc("vhost_scsi_controller_move_queue", json!({"ctrlr": "vm", "queue": queue, "core": 0}))?["moved"]
            != true
        {}
    }
    ensure!(cores(&daemon)?[2..] == [0, 0], "both are on core 0");
    let limits = json!({"name": "dynamic", "period": 50_000, "load_limit": 0, "core_limit": 1, "core_busy": 100});
    daemon.rpc("framework_set_scheduler", limits)?;
    let read = cdb::read10(0, 128);
    let until = Instant::now() + Duration::from_secs(60);
    while cores(&daemon)?[2..] == [0, 0] {
        ensure!(Instant::now() < until, "the queues were not parted");
        for _ in 0..200 {
            for queue in [2, 3] {
                for _ in 0..8 {
                    front.driver.submit(queue, &Command::new(LUN, &read, &[], 128 * 512));
                }
                front.driver.queues[queue].flush();
            }
            for queue in [2, 3] {
                while front.driver.in_flight(queue) > 0 {
                    let (_, response) = front.wait(queue, Duration::from_secs(20))?;
                    ensure!(response.good(), "{response:?}");
                }
            }
        }
    }
    Ok(())
}
