//! The real daemon, driven over its sockets: data, addressing, hot-plug, sessions, durability settings, idling.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{allocated, attach, clear_attentions, connect, controller, file, ram, run_load};
use pollux_tests::daemon::{Daemon, DaemonOptions};
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, ScsiLoad, ScsiMix, Tmf, cdb};
use pollux_tests::rng::Rng;
use serde_json::json;

const LUN: Lun = Lun::new(0, 0);

fn verify(bdev: &str, event_idx: bool, indirect: bool, request_queues: usize) -> Result<()> {
    let daemon = Daemon::start()?;
    if bdev == "ram" {
        ram(&daemon, "disk", 8192)?;
    } else {
        drop(file(&daemon, "disk", 4 << 20)?);
    }
    controller(&daemon, "vm", &["disk"])?;
    let options = DriverOptions { request_queues, event_idx, indirect, ..DriverOptions::default() };
    let mut front = connect(&daemon, "vm", &options)?;
    clear_attentions(&mut front, LUN)?;
    let mut load = ScsiLoad::new(LUN, 512, 8192, 1);
    run_load(&mut front, &mut load, &ScsiMix::default(), 3000, 48, 2)?;
    ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
    Ok(())
}

#[test]
fn random_commands_on_ram_read_what_was_written() -> Result<()> {
    verify("ram", true, true, 2)
}

#[test]
fn random_commands_on_a_file_read_what_was_written() -> Result<()> {
    verify("file", true, true, 2)
}

#[test]
fn the_same_without_event_idx_and_indirect_descriptors() -> Result<()> {
    verify("ram", false, false, 1)?;
    verify("file", false, true, 1)
}

#[test]
fn several_reactors_serve_one_controller() -> Result<()> {
    let daemon = Daemon::start_with(DaemonOptions { reactors: "0,1".into(), ..DaemonOptions::default() })?;
    file(&daemon, "disk", 4 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 4, ..DriverOptions::default() })?;
    clear_attentions(&mut front, LUN)?;
    let mut load = ScsiLoad::new(LUN, 512, 8192, 3);
    run_load(&mut front, &mut load, &ScsiMix::default(), 3000, 64, 4)?;
    ensure!(load.others.is_empty(), "commands failed: {:?}", load.others);
    Ok(())
}

#[test]
fn every_target_and_both_address_forms_lead_to_their_own_disk() -> Result<()> {
    let daemon = Daemon::start()?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
    // LUN 0 on many targets, and some other LUNs of target 3.
    let targets = [0u8, 1, 3, 100, 255];
    for target in targets {
        ram(&daemon, &format!("t{target}"), 64)?;
        attach(&daemon, "vm", i64::from(target), &format!("t{target}"))?;
    }
    for lun in [1u16, 255, 256, 16383] {
        ram(&daemon, &format!("l{lun}"), 64)?;
        let params = json!({"ctrlr": "vm", "scsi_target_num": 3, "lun": lun, "bdev_name": format!("l{lun}")});
        daemon.rpc("vhost_scsi_controller_add_target", params)?;
    }
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let luns: Vec<Lun> =
        targets.iter().map(|t| Lun::new(*t, 0)).chain([1, 255, 256, 16383].iter().map(|l| Lun::new(3, *l))).collect();
    for (n, lun) in luns.iter().enumerate() {
        front.good(*lun, &cdb::write10(0, 1, false), &[n as u8 + 1; 512], 0)?;
    }
    for (n, lun) in luns.iter().enumerate() {
        let read = front.good(*lun, &cdb::read10(0, 1), &[], 512)?;
        ensure!(read.data == [n as u8 + 1; 512], "{lun:?} holds {:?}", &read.data[..4]);
        if lun.lun < 256 {
            let read = front.good(Lun { peripheral: true, ..*lun }, &cdb::read10(0, 1), &[], 512)?;
            ensure!(read.data == [n as u8 + 1; 512], "{lun:?} by peripheral address");
        }
    }
    let listed = front.good(Lun::new(3, 0), &cdb::report_luns(256), &[], 256)?;
    let length = u32::from_be_bytes(listed.data[..4].try_into()?);
    ensure!(length == 5 * 8, "REPORT LUNS lists {} LUNs", length / 8);
    // Nothing there: no target, and no LUN on a target.
    ensure!(front.cdb(Lun::new(7, 0), &cdb::TEST_UNIT_READY, &[], 0)?.response == 3, "BAD_TARGET");
    let absent = front.cdb(Lun::new(0, 9), &cdb::TEST_UNIT_READY, &[], 0)?;
    ensure!(absent.sense_key() == Some((5, 0x25, 0)), "{absent:?}");
    Ok(())
}

#[test]
fn luns_come_and_go_with_events() -> Result<()> {
    const TRANSPORT_RESET: u32 = 1;
    let daemon = Daemon::start()?;
    ram(&daemon, "a", 64)?;
    ram(&daemon, "b", 64)?;
    controller(&daemon, "vm", &["a"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    front.driver.post_events(4, 16);
    clear_attentions(&mut front, LUN)?;
    attach(&daemon, "vm", 5, "b")?;
    let event = front.event(Duration::from_secs(5))?;
    ensure!(event.event == TRANSPORT_RESET && event.reason == 1 && event.lun[1] == 5, "{event:?}");
    let added = Lun::new(5, 0);
    front.good(added, &cdb::write10(0, 1, false), &[7; 512], 0)?;
    daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 5}))?;
    let event = front.event(Duration::from_secs(5))?;
    ensure!(event.event == TRANSPORT_RESET && event.reason == 2 && event.lun[1] == 5, "{event:?}");
    ensure!(front.cdb(added, &cdb::TEST_UNIT_READY, &[], 0)?.response == 3, "the target is gone");
    // The bdev is free again.
    daemon.rpc("bdev_malloc_delete", json!({"name": "b"}))?;
    Ok(())
}

#[test]
fn events_without_a_buffer_wait_or_are_reported_as_missed() -> Result<()> {
    let daemon = Daemon::start()?;
    for name in ["a", "b", "c"] {
        ram(&daemon, name, 64)?;
    }
    controller(&daemon, "vm", &["a"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for _ in 0..40 {
        attach(&daemon, "vm", 1, "b")?;
        daemon.rpc("vhost_scsi_controller_remove_target", json!({"ctrlr": "vm", "scsi_target_num": 1}))?;
    }
    let mut events = Vec::new();
    front.driver.post_events(16, 16);
    while let Ok(event) = front.event(Duration::from_millis(300)) {
        events.push(event);
        front.driver.post_events(1, 16);
    }
    ensure!(!events.is_empty(), "nothing was reported");
    ensure!(
        events.len() >= 80 || events.iter().any(pollux_tests::frontend::Event::missed),
        "events were lost silently"
    );
    Ok(())
}

#[test]
fn a_session_that_ends_with_requests_in_flight_leaves_nothing_behind() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "disk", 4 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut files = 0;
    for round in 0..20 {
        let mut front = connect(&daemon, "vm", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
        clear_attentions(&mut front, LUN)?;
        for at in 0..64 {
            let command = cdb::write10(at * 8, 8, round % 2 == 0);
            front.submit(FIRST_REQUEST_QUEUE + at as usize % 2, &Command::new(LUN, &command, &[round; 4096], 0));
        }
        drop(front);
        if round == 4 {
            files = settled_files(&daemon)?;
        }
    }
    ensure!(daemon.is_alive(), "the daemon is gone");
    let now = settled_files(&daemon)?;
    ensure!(now <= files, "{files} descriptors became {now}");
    // And the next one works.
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    front.good(LUN, &cdb::read10(0, 8), &[], 4096)?;
    Ok(())
}

/// The number of open files once the sessions that were dropped are gone.
fn settled_files(daemon: &Daemon) -> Result<usize> {
    let end = Instant::now() + Duration::from_secs(5);
    let mut last = daemon.open_files()?;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = daemon.open_files()?;
        if now == last || Instant::now() > end {
            return Ok(now);
        }
        last = now;
    }
}

#[test]
fn a_stopped_queue_is_left_alone_and_starts_again_where_it_was() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 4 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let queue = FIRST_REQUEST_QUEUE;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for _ in 0..20 {
        let mut sent = 0;
        for at in 0..32 {
            let read = cdb::read10(at * 8, 8);
            sent += usize::from(front.submit(queue, &Command::new(LUN, &read, &[], 4096)).is_some());
        }
        let base = front.stop_queue(queue)?;
        // What was taken is answered; what was not is still there.
        let taken = base.wrapping_sub(front.driver.queues[queue].ring.last_used());
        for _ in 0..taken {
            ensure!(front.poll(queue)?.is_some(), "{taken} were taken");
        }
        ensure!(front.poll(queue)?.is_none(), "an answer to what was not taken");
        std::thread::sleep(Duration::from_millis(2));
        ensure!(!front.driver.queues[queue].ring.has_used(), "the ring is written to after the stop");
        front.start_queue(queue, base)?;
        front.driver.queues[queue].kick();
        for _ in usize::from(taken)..sent {
            front.wait(queue, pollux_tests::frontend::PATIENCE)?;
        }
    }
    Ok(())
}

#[test]
fn two_controllers_share_one_disk() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 1 << 20)?;
    controller(&daemon, "a", &["disk"])?;
    controller(&daemon, "b", &["disk"])?;
    let (mut a, mut b) =
        (connect(&daemon, "a", &DriverOptions::default())?, connect(&daemon, "b", &DriverOptions::default())?);
    a.good(LUN, &cdb::write10(0, 1, false), &[1; 512], 0)?;
    ensure!(b.good(LUN, &cdb::read10(0, 1), &[], 512)?.data == [1; 512], "b sees what a wrote");
    b.good(LUN, &cdb::write10(0, 1, false), &[2; 512], 0)?;
    ensure!(a.good(LUN, &cdb::read10(0, 1), &[], 512)?.data == [2; 512], "a sees what b wrote");
    // A setting of the unit is seen by both, and the other is told.
    let (command, list) = cdb::set_wce(false);
    a.good(LUN, &command, &list, 0)?;
    let told = b.cdb(LUN, &cdb::TEST_UNIT_READY, &[], 0)?;
    ensure!(told.sense_key() == Some((6, 0x2a, 1)), "{told:?}");
    Ok(())
}

#[test]
fn a_second_front_end_gets_its_turn_when_the_first_is_gone() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", 64)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut first = connect(&daemon, "vm", &DriverOptions::default())?;
    first.good(LUN, &cdb::write10(0, 1, false), &[1; 512], 0)?;
    std::thread::scope(|scope| -> Result<()> {
        let second = scope.spawn(|| connect(&daemon, "vm", &DriverOptions::default()));
        std::thread::sleep(Duration::from_millis(200));
        ensure!(!second.is_finished(), "two front ends at once");
        drop(first);
        let mut second = second.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(second.good(LUN, &cdb::read10(0, 1), &[], 512)?.data == [1; 512], "the second is served");
        Ok(())
    })
}

#[test]
fn mode_select_turns_the_write_cache_off_and_mode_sense_shows_it() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 1 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for on in [false, true, false] {
        let (command, list) = cdb::set_wce(on);
        front.good(LUN, &command, &list, 0)?;
        let sense = front.good(LUN, &cdb::mode_sense10(8), &[], 252)?;
        // After the header of 8 bytes (no block descriptors): page code, length, then WCE in bit 2.
        let wce = sense.data[8 + 2] & 4 != 0;
        ensure!(wce == on, "WCE is {wce}, asked for {on}: {:02x?}", &sense.data[..32]);
        front.good(LUN, &cdb::write10(0, 8, false), &[3; 4096], 0)?;
    }
    Ok(())
}

#[test]
fn unmap_gives_the_files_space_back() -> Result<()> {
    let daemon = Daemon::start()?;
    let path = file(&daemon, "disk", 8 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for at in 0..128 {
        front.good(LUN, &cdb::write10(at * 128, 128, false), &[9; 65536], 0)?;
    }
    front.good(LUN, &cdb::sync10(), &[], 0)?;
    let full = allocated(&path)?;
    ensure!(full >= 8 << 20, "{full} bytes are allocated");
    let (command, list) = cdb::unmap(&[(0, 8192)]);
    front.good(LUN, &command, &list, 0)?;
    front.good(LUN, &cdb::write_same16(8192, 4096, true, true), &[], 0)?;
    front.good(LUN, &cdb::sync10(), &[], 0)?;
    let left = allocated(&path)?;
    ensure!(left + (6 << 20) - (1 << 20) <= full, "{full} bytes became {left}");
    for lba in [0, 4096, 8191, 8192, 12287] {
        ensure!(front.good(LUN, &cdb::read10(lba, 1), &[], 512)?.data == [0; 512], "block {lba} is not zero");
    }
    ensure!(front.good(LUN, &cdb::read10(12288, 1), &[], 512)?.data == [9; 512], "block 12288 was kept");
    Ok(())
}

#[test]
fn kill_9_and_a_restart_bring_everything_back() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let path = file(&daemon, "disk", 4 << 20)?;
    ram(&daemon, "ram", 64)?;
    controller(&daemon, "vm", &["disk", "ram"])?;
    let strip = |mut list: serde_json::Value| {
        for item in list.as_array_mut().into_iter().flatten() {
            item["sessions"] = json!([]);
        }
        list
    };
    let before = (
        daemon.rpc("bdev_get_bdevs", json!({}))?,
        strip(daemon.rpc("vhost_get_controllers", json!({}))?),
        daemon.rpc("framework_get_config", json!({"name": "bdev"}))?,
    );
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    let inquiry = front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data;
    clear_attentions(&mut front, LUN)?;
    let mut load = ScsiLoad::new(LUN, 512, 8192, 5);
    run_load(&mut front, &mut load, &ScsiMix::default(), 1000, 32, 6)?;
    daemon.kill9();
    drop(front);
    // The kernel keeps what was written: nothing acknowledged is lost by the death of a process.
    load.model().settle();
    daemon.restart()?;
    let after = (
        daemon.rpc("bdev_get_bdevs", json!({}))?,
        strip(daemon.rpc("vhost_get_controllers", json!({}))?),
        daemon.rpc("framework_get_config", json!({"name": "bdev"}))?,
    );
    ensure!(before == after, "before: {before:#?}\nafter: {after:#?}");
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    ensure!(front.good(LUN, &cdb::inquiry(Some(0x83), 255), &[], 255)?.data == inquiry, "the same identity");
    clear_attentions(&mut front, LUN)?;
    let read = load.model().begin_read(0, 8192);
    let mut data = Vec::new();
    for at in 0..128 {
        data.extend(front.good(LUN, &cdb::read10(at * 64, 64), &[], 32768)?.data);
    }
    load.model().end_read(read, &data).map_err(|why| anyhow::anyhow!(why))?;
    let mut first = [0; 512];
    File::open(&path)?.read_exact_at(&mut first, 0)?;
    ensure!(first == data[..512], "the file holds what the guest reads");
    Ok(())
}

#[test]
fn a_front_end_connects_again_after_a_restart() -> Result<()> {
    let mut daemon = Daemon::start()?;
    file(&daemon, "disk", 1 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    for _ in 0..3 {
        let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
        front.good(LUN, &cdb::write10(0, 1, true), &[1; 512], 0)?;
        ensure!(daemon.terminate()?.success(), "SIGTERM is a clean end");
        daemon.restart()?;
    }
    Ok(())
}

#[test]
fn task_management_answers() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", 64)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    clear_attentions(&mut front, LUN)?;
    for function in [Tmf::AbortTask, Tmf::LunReset] {
        let response = front.tmf(function, LUN.bytes(), 12345)?;
        // FUNCTION COMPLETE or SUCCEEDED.
        ensure!(matches!(response, 0 | 10), "{function:?} answered {response}");
    }
    ensure!(front.tmf(Tmf::LunReset, Lun::new(9, 0).bytes(), 0)? == 3, "BAD_TARGET");
    // 29/03 after the reset, then it works.
    let attention = front.cdb(LUN, &cdb::TEST_UNIT_READY, &[], 0)?;
    ensure!(attention.sense_key() == Some((6, 0x29, 3)), "{attention:?}");
    front.good(LUN, &cdb::read10(0, 1), &[], 512)?;
    Ok(())
}

#[test]
fn a_long_transfer_is_served_whole() -> Result<()> {
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 40 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let options = DriverOptions { memory: vec![(0x10_0000, 160 << 20)], ..DriverOptions::default() };
    let mut front = connect(&daemon, "vm", &options)?;
    clear_attentions(&mut front, LUN)?;
    let data: Vec<u8> = (0..32u32 << 20).map(|at| (at / 512 % 251) as u8).collect();
    front.good(LUN, &cdb::write16(8, 65536, false), &data, 0)?;
    let read = front.good(LUN, &cdb::read16(8, 65536), &[], data.len())?;
    ensure!(read.data == data, "32 MiB came back changed");
    Ok(())
}

#[test]
fn sixty_four_idle_queues_cost_less_than_a_hundredth_of_a_core() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", 64)?;
    let options = DriverOptions { request_queues: 14, memory: vec![(0x10_0000, 8 << 20)], ..DriverOptions::default() };
    // 4 VMs of 16 queues.
    let mut fronts = Vec::new();
    for name in ["vm0", "vm1", "vm2", "vm3"] {
        controller(&daemon, name, &["disk"])?;
        fronts.push(connect(&daemon, name, &options)?);
    }
    for front in &mut fronts {
        clear_attentions(front, LUN)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, start) = (daemon.cpu_time()?, Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (daemon.cpu_time()? - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    ensure!(share < 0.01, "idle, the daemon uses {:.2} % of a core", share * 100.0);
    // And they wake up.
    for front in &mut fronts {
        for queue in FIRST_REQUEST_QUEUE..front.driver.queues.len() {
            let read = cdb::read10(0, 1);
            ensure!(front.command(queue, &Command::new(LUN, &read, &[], 512))?.good(), "queue {queue}");
        }
    }
    Ok(())
}

#[test]
fn what_was_done_shows_in_the_metrics() -> Result<()> {
    let daemon = Daemon::start()?;
    ram(&daemon, "disk", 64)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    for _ in 0..10 {
        front.good(LUN, &cdb::write10(0, 2, false), &[1; 1024], 0)?;
    }
    let bytes = daemon.metric("pollux_bdev_bytes_total", &[("bdev", "disk"), ("op", "write")])?;
    ensure!((bytes - 10240.0).abs() < 0.5, "{bytes} bytes were counted");
    ensure!(daemon.metric("pollux_queue_requests_total", &[("ctrlr", "vm")])? >= 10.0, "requests are counted");
    ensure!(daemon.metric("pollux_sessions", &[("ctrlr", "vm")])? >= 1.0, "the session is counted");
    Ok(())
}

/// Sends commands one by one, each after a pause of random length: at any point of the way from looking at the queue to
/// asking for kicks, arming the descriptor and falling asleep. Nothing but its kick brings a command to notice.
fn send_at_all_moments(spin_max_us: u32, pause_ns_max: u64) -> Result<()> {
    let args = vec!["--spin-max-us".to_owned(), spin_max_us.to_string()];
    let daemon = Daemon::start_with(DaemonOptions { args, ..DaemonOptions::default() })?;
    ram(&daemon, "disk", 64)?;
    controller(&daemon, "vm", &["disk"])?;
    for event_idx in [true, false] {
        let mut front = connect(&daemon, "vm", &DriverOptions { event_idx, ..DriverOptions::default() })?;
        clear_attentions(&mut front, LUN)?;
        let mut rng = Rng::new(1);
        for n in 0..15_000 {
            let start = Instant::now();
            let pause = Duration::from_nanos(rng.between(0, pause_ns_max));
            while start.elapsed() < pause {
                std::hint::spin_loop();
            }
            let command = Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0);
            ensure!(front.submit(FIRST_REQUEST_QUEUE, &command).is_some(), "no room");
            front.wait(FIRST_REQUEST_QUEUE, Duration::from_secs(5)).with_context(|| format!("command {n}"))?;
        }
    }
    ensure!(daemon.metric("pollux_queue_kicks_total", &[("queue", "2")])? > 100.0, "the queue really waited for kicks");
    Ok(())
}

#[test]
fn no_kick_and_no_interrupt_is_lost_whenever_it_comes() -> Result<()> {
    // Around the moment when a budget that has been learnt is spent.
    send_at_all_moments(100, 240_000)
}

#[test]
fn no_kick_is_lost_by_a_reactor_that_sleeps_at_once() -> Result<()> {
    send_at_all_moments(0, 20_000)
}

/// The cores that each thread of the daemon may run on, the kernel's workers for its rings included, by name.
fn cores_of_threads(daemon: &Daemon) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))?.flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name));
        // A worker may end meanwhile.
        let (Ok(name), Ok(status)) = (read("comm"), read("status")) else { continue };
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        all.push((name.trim().to_owned(), cores.context("the status names the cores")?.trim().to_owned()));
    }
    Ok(all)
}

#[test]
fn only_reactors_run_on_their_cores() -> Result<()> {
    let all = std::fs::read_to_string("/proc/self/status")?;
    if all.lines().any(|line| line.trim_end().ends_with("Cpus_allowed_list:\t0")) {
        return Ok(());
    }
    let daemon = Daemon::start()?;
    file(&daemon, "disk", 1 << 20)?;
    controller(&daemon, "vm", &["disk"])?;
    let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
    // A flush is carried out by a worker of the kernel.
    for _ in 0..3 {
        front.good(LUN, &cdb::write10(0, 1, false), &[1; 512], 0)?;
        front.good(LUN, &cdb::sync10(), &[], 0)?;
    }
    let threads = cores_of_threads(&daemon)?;
    for wanted in ["reactor-0", "vhost-accept", "iou-wrk", "watch", "metrics"] {
        ensure!(threads.iter().any(|(name, _)| name.starts_with(wanted)), "no {wanted} among {threads:?}");
    }
    for (name, cores) in &threads {
        let on_reactor = cores.starts_with('0');
        ensure!(on_reactor == name.starts_with("reactor"), "{name} runs on {cores}: {threads:?}");
    }
    let status = daemon.rpc("pollux_get_status", json!({}))?;
    let others = status["other_cores"].as_array().context("a list")?;
    ensure!(!others.is_empty() && !others.contains(&json!(0)), "{status}");
    let reactors = daemon.rpc("framework_get_reactors", json!({}))?;
    ensure!(reactors["reactors"][0]["worker_cores"] == status["other_cores"], "{reactors}");
    Ok(())
}

/// A second ring on the reactor takes the reads and writes of files; nothing is lost or mixed up between the two.
#[test]
fn a_data_ring_serves_what_was_written() -> Result<()> {
    for kind in ["sqpoll", "iopoll"] {
        let args = vec!["--data-ring".to_owned(), kind.to_owned()];
        let daemon = Daemon::start_with(DaemonOptions { args, ..DaemonOptions::default() })?;
        file(&daemon, "disk", 16 << 20)?;
        controller(&daemon, "vm", &["disk"])?;
        let reactors = daemon.rpc("framework_get_reactors", json!({}))?;
        ensure!(reactors["reactors"][0]["data_ring"] == kind, "{reactors}");
        for load in [
            "--rw randrw --bs 4k --qd 32",
            "--rw randwrite --bs 20k --qd 40 --queues 3",
            "--rw randread --qd 1 --gap 3000",
        ] {
            let output = std::process::Command::new(pollux_tests::daemon::binary()?)
                .args(["bench", "--core", "none", "--time", "1", "--fill", "--verify", "--socket"])
                .arg(daemon.socket("vm"))
                .args(load.split_whitespace())
                .output()?;
            ensure!(output.status.success(), "{kind}, {load}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut front = connect(&daemon, "vm", &DriverOptions::default())?;
        clear_attentions(&mut front, LUN)?;
        for round in 0..20u8 {
            front.good(LUN, &cdb::write10(u32::from(round), 1, round % 2 == 0), &[round; 512], 0)?;
            front.good(LUN, &cdb::sync10(), &[], 0)?;
            let read = front.good(LUN, &cdb::read10(u32::from(round), 1), &[], 512)?;
            ensure!(read.data == [round; 512], "round {round}");
        }
        if kind == "sqpoll" {
            let threads = cores_of_threads(&daemon)?;
            let submitter =
                threads.iter().find(|(name, _)| name.starts_with("iou-sqp")).context("the thread is there")?;
            let core = &reactors["reactors"][0]["sq_core"];
            ensure!(core.is_null() || *core == json!(submitter.1.parse::<usize>()?), "{submitter:?}: {reactors}");
            ensure!(core.is_null() || *core != json!(0), "it stays off the reactor's core");
        }
    }
    Ok(())
}
