//! What a guest may not get: more in flight than there is room for, commands that run after they were aborted,
//! interrupts and events that are lost. Each of these went wrong once.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, Lun, Response, Tmf, cdb};
use pollux_tests::sim::{Effect, Fault, Kind, SimAppliance, SimBdev, SimWorld, backing, unit_of};

const LUN: Lun = Lun::new(0, 0);
const ABORTED: u8 = 2;
const RESET: u8 = 4;

/// One reactor, one controller, one disk, one guest that has heard its unit attentions.
fn guest(world: &SimWorld, queues: usize) -> Result<(SimAppliance, FrontEnd)> {
    let mut appliance = SimAppliance::new(world, 1, 1)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(world, 8192 * 512));
    let unit = unit_of("vm", &*bdev);
    appliance.controller("vm", &[(0, 0, backing("vm", &unit, &bdev))])?;
    let options = DriverOptions { request_queues: queues, queue_size: 128, ..DriverOptions::default() };
    let mut front = appliance.connect("vm", &options)?;
    quiet(&mut appliance, &mut front)?;
    Ok((appliance, front))
}

fn quiet(appliance: &mut SimAppliance, front: &mut FrontEnd) -> Result<()> {
    for _ in 0..4 {
        run(appliance, front, &cdb::TEST_UNIT_READY, &[], 0)?;
    }
    Ok(())
}

/// The guest goes, then the appliance.
fn end(mut appliance: SimAppliance, front: FrontEnd) -> Result<()> {
    appliance.disconnect(front);
    appliance.shutdown()
}

fn run(a: &mut SimAppliance, front: &mut FrontEnd, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
    front.submit(2, &Command::new(LUN, cdb, out, in_len)).context("no room")?;
    a.machine.run();
    Ok(front.poll(2)?.context("no answer")?.1)
}

fn put(front: &mut FrontEnd, queue: usize, cdb: &[u8], out: &[u8], in_len: usize) -> Result<u64> {
    front.driver.submit(queue, &Command::new(LUN, cdb, out, in_len)).context("no room")
}

fn in_flight(appliance: &SimAppliance) -> u64 {
    appliance.target.controllers()[0].sessions[0].inflight
}

fn manage(a: &mut SimAppliance, front: &mut FrontEnd, function: Tmf, name: u64) -> Result<()> {
    front.driver.submit_tmf(function, LUN.bytes(), name).context("no room")?;
    front.driver.queues[0].flush();
    a.machine.run();
    let answer = front.driver.poll_raw(0).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(answer.is_some(), "the function was not answered");
    Ok(())
}

#[test]
fn flushes_that_are_answered_early_are_no_more_than_there_are_slots() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, mut front) = guest(&world, 1)?;
    world.fault(Fault::always(Kind::Sync, Effect::Stuck));
    let mut immediate = cdb::sync10();
    immediate[1] |= 2;
    let mut answered = 0;
    for _ in 0..20 {
        for _ in 0..100 {
            front.driver.submit(2, &Command::new(LUN, &immediate, &[], 0));
        }
        front.driver.queues[2].flush();
        appliance.machine.run();
        while let Some((_, response)) = front.poll(2)? {
            ensure!(response.good(), "{response:?}");
            answered += 1;
        }
    }
    ensure!((1..=64).contains(&answered), "{answered} flushes were answered and none has ended");
    let early = answered;
    world.heal();
    world.release();
    appliance.machine.run();
    while let Some((_, response)) = front.poll(2)? {
        ensure!(response.good(), "{response:?}");
        answered += 1;
    }
    ensure!(answered >= early + 64, "the others are answered when they have ended: {answered}, {early} before");
    end(appliance, front)
}

#[test]
fn long_commands_do_not_add_up_beyond_the_slots_and_one_for_each_queue() -> Result<()> {
    const QUEUES: usize = 16;
    let world = SimWorld::new(1);
    let (mut appliance, mut front) = guest(&world, QUEUES)?;
    let write_same = cdb::write_same16(0, 8192, false, false);
    for queue in 2..2 + QUEUES {
        for _ in 0..120 {
            put(&mut front, queue, &write_same, &[7; 512], 0)?;
        }
        front.driver.queues[queue].flush();
    }
    let mut most = 0;
    for _ in 0..800 {
        appliance.machine.rounds(1);
        most = most.max(in_flight(&appliance));
    }
    // Four steps of 1 MiB fill the part of the slots that is for such work. A queue takes a new command only when all it
    // has taken are among those four.
    ensure!(most <= 5 * QUEUES as u64, "{most} commands in flight at once");
    ensure!(most >= QUEUES as u64, "every queue has one: {most}");
    end(appliance, front)
}

#[test]
fn nothing_runs_after_it_was_aborted_or_reset_not_even_what_still_was_in_the_ring() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, mut front) = guest(&world, 4)?;
    world.fault(Fault::always(Kind::Write, Effect::Stuck));
    let mut last = 0;
    let mut sent = 0;
    for queue in 2..6 {
        for block in 0..120 {
            last = put(&mut front, queue, &cdb::write10(block, 1, false), &[queue as u8; 512], 0)?;
            sent += 1;
        }
        front.driver.queues[queue].flush();
    }
    appliance.machine.run();
    ensure!(in_flight(&appliance) < sent, "some have to be in the rings still");
    manage(&mut appliance, &mut front, Tmf::AbortTask, last)?;
    manage(&mut appliance, &mut front, Tmf::LunReset, 0)?;
    world.heal();
    world.release();
    appliance.machine.run();
    let mut ended = 0;
    for queue in 2..6 {
        while let Some((name, response)) = front.poll(queue)? {
            let expected = if name == last { ABORTED } else { RESET };
            ensure!(response.response == expected, "command {name} (the aborted one is {last}): {response:?}");
            ended += 1;
        }
    }
    ensure!(ended == sent, "{ended} of {sent} were answered");
    end(appliance, front)
}

#[test]
fn a_failed_unmap_says_how_many_parameter_bytes_it_did_not_use() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, mut front) = guest(&world, 1)?;
    for kind in [Kind::Fallocate, Kind::Discard] {
        world.fault(Fault::always(kind, Effect::Error(5)));
    }
    let (command, list) = cdb::unmap(&[(0, 4096)]);
    let response = run(&mut appliance, &mut front, &command, &list, 0)?;
    ensure!(response.status == 2 && response.residual == 0, "{response:?}");
    end(appliance, front)
}

#[test]
fn a_queue_that_starts_again_interrupts_whoever_still_waits() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, mut front) = guest(&world, 1)?;
    let base = appliance.machine.call(|| front.stop_queue(2))?;
    // Reading them takes them.
    let _taken = front.driver.queues[2].interrupts();
    appliance.machine.call(|| front.start_queue(2, base))?;
    appliance.machine.run();
    ensure!(front.driver.queues[2].interrupts() > 0, "no interrupt");
    end(appliance, front)
}

#[test]
fn events_outlast_a_restart_of_their_queue() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = SimAppliance::new(&world, 1, 1)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 4096 * 512));
    let unit = unit_of("vm", &*bdev);
    appliance.controller("vm", &[(0, 0, backing("vm", &unit, &bdev))])?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    appliance.call(|target| target.unit_changed(&unit, 0x2a, 9));
    appliance.machine.run();
    let base = appliance.machine.call(|| front.stop_queue(1))?;
    appliance.call(|target| target.unit_changed(&unit, 0x2a, 1));
    appliance.machine.call(|| front.start_queue(1, base))?;
    front.driver.post_events(4, 16);
    appliance.machine.run();
    for _ in 0..2 {
        let event = front.driver.poll_raw(1).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        ensure!(event.is_some(), "an event was lost");
    }
    end(appliance, front)
}

#[test]
fn a_reactor_named_twice_is_one_reactor() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = SimAppliance::new(&world, 1, 1)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 8192 * 512));
    let unit = unit_of("vm", &*bdev);
    let backing = backing("vm", &unit, &bdev);
    appliance.call(|target| target.create_controller("vm", vec![0, 0], 1))?;
    ensure!(appliance.call(|target| target.add_lun("vm", None, 0, backing))? == 0);
    ensure!(appliance.target.controllers()[0].reactors == [0]);
    appliance.shutdown()
}
