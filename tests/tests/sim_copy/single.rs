//! One copy at a time, and what may happen to it: to its disks, its session, the devices that copy together.

use super::*;

/// A guest with its unit attentions taken.
fn ready(appliance: &mut SimAppliance, front: &mut FrontEnd) -> Result<()> {
    for disk in 0..DISKS {
        for _ in 0..6 {
            if send(appliance, front, &Command::new(lun(disk), &cdb::TEST_UNIT_READY, &[], 0))?.good() {
                break;
            }
        }
    }
    Ok(())
}

fn send(appliance: &mut SimAppliance, front: &mut FrontEnd, command: &Command<'_>) -> Result<Response> {
    let ticket = front.submit(FIRST_REQUEST_QUEUE, command);
    appliance.machine.run();
    let (answered, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
    ensure!(Some(answered) == ticket, "an answer to another command");
    Ok(response)
}

fn one_segment(source: u16, destination: u16, blocks: u16) -> [Segment; 1] {
    [Segment { source, destination, blocks, from: 0, to: 0 }]
}

#[test]
fn the_disk_of_another_vm_is_like_one_that_does_not_exist() -> Result<()> {
    let (mut appliance, units, mut fronts) = stage(1, 2048)?;
    let world = appliance.machine.world().clone();
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 1 << 20));
    let foreign = unit_of("foreign", &*bdev);
    let secret = backing("foreign", &foreign, &bdev);
    appliance.call(|target| target.add_lun("other", Some(3), 0, secret))?;
    let front = &mut fronts[0];
    ready(&mut appliance, front)?;
    let nobody = [0x66; 16];
    for (source, destination) in [(0, 1), (1, 0), (1, 1)] {
        let mut answers = Vec::new();
        for name in [naa_of(&foreign), nobody] {
            let (cdb, list) = copy::lid1(0, 3, &[naa_of(&units[0]), name], &one_segment(source, destination, 8));
            answers.push(send(&mut appliance, front, &Command::new(lun(0), &cdb, &list, 0))?);
        }
        ensure!(answers[0] == answers[1], "{answers:?}");
        ensure!(answers[0].sense_key() == Some((0xA, 0x0D, 0x02)), "{answers:?}");
    }
    // The VM that has it may.
    let front = &mut fronts[1];
    ready(&mut appliance, front)?;
    let (cdb, list) = copy::lid1(0, 3, &[naa_of(&units[0]), naa_of(&foreign)], &one_segment(0, 1, 8));
    let response = (0..3).map(|_| send(&mut appliance, front, &Command::new(lun(0), &cdb, &list, 0))).last();
    ensure!(response.context("no answer")??.good(), "its own disk");
    fronts.into_iter().for_each(|front| appliance.disconnect(front));
    appliance.shutdown()
}

#[test]
fn a_disk_can_go_while_it_is_copied_from() -> Result<()> {
    for in_background in [false, true] {
        let (mut appliance, units, mut fronts) = stage(2, 8192)?;
        let front = &mut fronts[0];
        ready(&mut appliance, front)?;
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let (cdb, list) = copy::lid4(1, in_background, &names, &one_segment(1, 0, 8000));
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
        appliance.machine.rounds(20);
        appliance.call(|target| target.remove_lun(NAMES[0], 0, Some(1)))?;
        appliance.machine.run();
        let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        ensure!(response.good() == in_background, "{response:?}");
        ensure!(in_background || response.sense_key() == Some((0xA, 0, 6)), "{response:?}");
        let status = copy::status(1, 64);
        let status = Command::new(lun(0), &status, &[], 64);
        let mut response = send(&mut appliance, front, &status)?;
        if matches!(response.sense_key(), Some((6, ..))) {
            response = send(&mut appliance, front, &status)?;
        }
        ensure!(response.good() && response.data[5] == 0x60, "{response:?}");
        fronts.into_iter().for_each(|front| appliance.disconnect(front));
        appliance.shutdown()?;
    }
    Ok(())
}

/// A device goes at the moment when what it has copied together with another one has ended, after other requests that came
/// and went meanwhile: nothing is left that would look for it.
#[test]
fn a_device_can_go_when_it_has_copied_together() -> Result<()> {
    for seed in 0..40 {
        let (mut appliance, units, mut fronts) = stage_with(seed, 2048, true)?;
        let helpers = appliance.machine.helpers();
        ready(&mut appliance, &mut fronts[0])?;
        helpers.hang(true);
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 1000));
        fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
        appliance.machine.run();
        ensure!(helpers.pending() == 1, "the devices are not asked");
        let read = cdb::read16(0, 8);
        fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(1), &read, &[], 8 * BLOCK)).context("no room")?;
        appliance.machine.run();
        ensure!(fronts[0].poll(FIRST_REQUEST_QUEUE)?.is_some_and(|(_, response)| response.good()), "no answer");
        helpers.hang(false);
        while helpers.done() == 0 && appliance.machine.rounds(1) {}
        appliance.call(|target| target.device_changed(&units[1], None))?;
        appliance.machine.run();
        ensure!(fronts[0].poll(FIRST_REQUEST_QUEUE)?.is_some_and(|(_, response)| response.good()), "no answer");
        let response = send(&mut appliance, &mut fronts[0], &Command::new(lun(1), &read, &[], 8 * BLOCK))?;
        ensure!(response.sense_key() == Some((2, 4, 0)), "{response:?}");
        fronts.into_iter().for_each(|front| appliance.disconnect(front));
        appliance.shutdown()?;
    }
    Ok(())
}

#[test]
fn a_copy_ends_with_its_session() -> Result<()> {
    let (mut appliance, units, mut fronts) = stage(3, 8192)?;
    let (mut one, other) = (fronts.remove(0), fronts.remove(0));
    ready(&mut appliance, &mut one)?;
    let names = [naa_of(&units[0]), naa_of(&units[1])];
    let (cdb, list) = copy::lid4(1, true, &names, &one_segment(0, 1, 8000));
    one.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
    let world = appliance.machine.world().clone();
    while world.changes() < 3 && appliance.machine.rounds(1) {}
    let target = appliance.target.clone();
    let sessions = move || target.controllers().iter().map(|controller| controller.sessions.len()).sum::<usize>();
    let (ended, at_end) = (AtomicU64::new(0), world.clone());
    appliance.machine.call_beside(
        || {
            drop(one);
            while sessions() > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            ended.store(at_end.changes(), Ordering::Relaxed);
        },
        || {},
    );
    let ended = ended.into_inner();
    appliance.machine.run();
    let after = world.changes();
    // 8000 blocks are 32 pieces. What is with the device when the session has ended is all that may follow.
    ensure!(
        (3..30).contains(&ended) && after <= ended + 1,
        "{ended} writes before the session had gone, {after} in all"
    );
    appliance.disconnect(other);
    appliance.shutdown()
}

#[test]
fn an_abort_waits_for_the_piece_that_is_with_the_device() -> Result<()> {
    let (mut appliance, units, mut fronts) = stage(4, 2048)?;
    let world = appliance.machine.world().clone();
    let front = &mut fronts[0];
    ready(&mut appliance, front)?;
    let names = [naa_of(&units[0]), naa_of(&units[1])];
    world.fault(Fault::once(Kind::Write, Effect::Delay(1_000_000)));
    let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 2000));
    let ticket = front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
    while world.changes() == 0 && appliance.machine.rounds(1) && world.in_flight() == 0 {}
    appliance.machine.rounds(8);
    front.driver.submit_tmf(Tmf::AbortTask, lun(0).bytes(), ticket).context("no room")?;
    front.driver.queues[CONTROL_QUEUE].flush();
    appliance.machine.run();
    let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
    ensure!(response.response == 2, "{response:?}");
    let done = front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?.context("no answer")?;
    ensure!(done.1[0] == 0, "{done:?}");
    // Another command gets the memory.
    let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 2000));
    let response = send(&mut appliance, front, &Command::new(lun(0), &cdb, &list, 0))?;
    ensure!(response.good(), "{response:?}");
    fronts.into_iter().for_each(|front| appliance.disconnect(front));
    appliance.shutdown()
}

#[test]
fn who_has_to_wait_for_what_devices_copy_together_does() -> Result<()> {
    let (mut appliance, units, mut fronts) = stage_with(5, 2048, true)?;
    let helpers = appliance.machine.helpers();
    let front = &mut fronts[0];
    ready(&mut appliance, front)?;
    let write = cdb::write16(0, 1024, false);
    ensure!(send(&mut appliance, front, &Command::new(lun(0), &write, &[7; 1024 * BLOCK], 0))?.good());
    helpers.hang(true);
    let names = [naa_of(&units[0]), naa_of(&units[1])];
    let (copy_cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 1000));
    let ticket = front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &copy_cdb, &list, 0)).context("no room")?;
    appliance.machine.run();
    ensure!(helpers.pending() == 1, "the devices are not asked");
    // A command that wants a range of either end to itself, and a reset of the copy's unit.
    let (queue, blocks) = (FIRST_REQUEST_QUEUE + 1, [[0; BLOCK], [9; BLOCK]].concat());
    for disk in 0..DISKS {
        let compare = cdb::compare_and_write(100, 1, false);
        fronts[0].submit(queue + disk, &Command::new(lun(disk), &compare, &blocks, 0)).context("no room")?;
    }
    appliance.machine.run();
    let front = &mut fronts[0];
    front.driver.submit_tmf(Tmf::AbortTask, lun(0).bytes(), ticket).context("no room")?;
    front.driver.queues[CONTROL_QUEUE].flush();
    appliance.machine.run();
    for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + 3 {
        ensure!(front.poll(queue)?.is_none(), "queue {queue} was answered while the devices copy");
    }
    ensure!(front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?.is_none(), "the abort is done");
    helpers.hang(false);
    appliance.machine.run();
    let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
    ensure!(response.response == 2, "{response:?}");
    let done = front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?.context("no answer")?;
    ensure!(done.1[0] == 0, "{done:?}");
    // What was stopped before its first step has changed nothing.
    let (_, source) = front.poll(queue)?.context("no answer")?;
    let (_, target) = front.poll(queue + 1)?.context("no answer")?;
    ensure!(source.sense_key() == Some((0xE, 0x1D, 0)) && target.good(), "{source:?} {target:?}");
    let response = send(&mut appliance, front, &Command::new(lun(0), &copy_cdb, &list, 0))?;
    ensure!(response.good() && helpers.done() == 2, "{response:?}, {} together", helpers.done());
    let read = send(&mut appliance, front, &Command::new(lun(1), &cdb::read16(0, 1000), &[], 1000 * BLOCK))?;
    ensure!(read.good() && read.data.iter().all(|&byte| byte == 7), "what arrived is not what was there");
    fronts.into_iter().for_each(|front| appliance.disconnect(front));
    appliance.shutdown()
}

/// Whoever waits behind a file system that hangs is not with it: what no helper has begun ends at once, when its command
/// is aborted and when its LUN goes.
#[test]
fn a_copy_that_no_helper_has_begun_ends_at_once() -> Result<()> {
    for leaves in [false, true] {
        let (mut appliance, units, mut fronts) = stage_with(7, 2048, true)?;
        let helpers = appliance.machine.helpers();
        let front = &mut fronts[0];
        ready(&mut appliance, front)?;
        helpers.keep_busy(true);
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 1000));
        let ticket = front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
        appliance.machine.run();
        ensure!(helpers.pending() == 1, "the devices are not asked");
        if leaves {
            appliance.target.set_patience(Patience { requests: Duration::from_millis(20), ..PATIENT });
            appliance.call(|target| target.remove_lun(NAMES[0], 0, Some(1)))?;
        } else {
            front.driver.submit_tmf(Tmf::AbortTask, lun(0).bytes(), ticket).context("no room")?;
            front.driver.queues[CONTROL_QUEUE].flush();
            appliance.machine.run();
            let done = front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?;
            ensure!(done.context("the abort waits")?.1[0] == 0, "the abort failed");
        }
        let (_, response) = front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        ensure!(if leaves { is_ended(&response) } else { response.response == 2 }, "{response:?}");
        ensure!(helpers.pending() == 0, "what nobody waits for is still to be done");
        helpers.keep_busy(false);
        let response = send(&mut appliance, &mut fronts[1], &Command::new(lun(0), &cdb, &list, 0));
        ensure!(response.is_ok(), "the other guest is not served");
        fronts.into_iter().for_each(|front| appliance.disconnect(front));
        appliance.shutdown()?;
    }
    Ok(())
}

/// A copy is in the way of everything that either end's file system would hold up.
#[test]
fn chores_go_by_file_system() -> Result<()> {
    let world = SimWorld::new(8);
    let mut appliance = SimAppliance::new(&world, 1, 8)?;
    let (mut units, mut luns) = (Vec::new(), Vec::new());
    for (disk, of) in [5, 5, 6].into_iter().enumerate() {
        let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 1 << 20).that_copies().of_file_system(of));
        let name = format!("disk{disk}");
        units.push(unit_with_medium(&name, &bdev));
        luns.push((0, disk as u16, backing(&name, &units[disk], &bdev)));
    }
    appliance.controller("vm", &luns)?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    for disk in 0..3 {
        while !send(&mut appliance, &mut front, &Command::new(lun(disk), &cdb::TEST_UNIT_READY, &[], 0))?.good() {}
    }
    let helpers = appliance.machine.helpers();
    helpers.keep_busy(true);
    let names: Vec<_> = units.iter().map(|unit| naa_of(unit)).collect();
    for destination in [1, 2] {
        let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, destination, 64));
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
        appliance.machine.run();
    }
    let status = cdb::get_lba_status16(0, 64);
    front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(2), &status, &[], 64)).context("no room")?;
    appliance.machine.run();
    ensure!(helpers.lanes() == [[Lane(5), Lane(5)], [Lane(6), Lane(5)], [Lane(6), Lane(6)]], "{:?}", helpers.lanes());
    helpers.keep_busy(false);
    appliance.disconnect(front);
    appliance.shutdown()
}

#[test]
fn devices_that_fail_together_say_at_which_end() -> Result<()> {
    for kind in [Kind::Read, Kind::Write] {
        let (mut appliance, units, mut fronts) = stage_with(6, 2048, true)?;
        let world = appliance.machine.world().clone();
        ready(&mut appliance, &mut fronts[0])?;
        world.fault(Fault { range: 500 << 10..u64::MAX, ..Fault::once(kind, Effect::Error(libc::EIO)) });
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 2000));
        let response = send(&mut appliance, &mut fronts[0], &Command::new(lun(0), &cdb, &list, 0))?;
        ensure!(response.sense_key() == Some((0xA, 0x0D, 0x01)), "{response:?}");
        // What that end said is forwarded: MEDIUM ERROR, unrecovered read error or write error.
        let code: &[u8] = if kind == Kind::Read { &[0x11, 0] } else { &[0x0C, 0] };
        ensure!(response.sense[8..].windows(2).any(|pair| pair == code), "{:02x?}", response.sense);
        fronts.into_iter().for_each(|front| appliance.disconnect(front));
        appliance.shutdown()?;
    }
    Ok(())
}

/// The power is cut after each change in turn. How many copies were flushed, how many runs were cut, and how often what
/// a flush had acknowledged was not there.
fn cut_while_copying(switches: Switches) -> Result<(u64, u64, u64)> {
    let (mut flushed, mut cuts, mut lost) = (0, 0, 0);
    for stop in 1..30 {
        let (mut appliance, units, mut fronts) = stage_with(stop, 512, true)?;
        let world = appliance.machine.world().clone();
        let front = &mut fronts[0];
        ready(&mut appliance, front)?;
        let write = cdb::write16(0, 256, true);
        ensure!(send(&mut appliance, front, &Command::new(lun(0), &write, &[5; 256 * BLOCK], 0))?.good());
        let names = [naa_of(&units[0]), naa_of(&units[1])];
        let (cdb, list) = copy::lid1(0, 3, &names, &one_segment(0, 1, 256));
        world.set_switches(switches);
        world.stop_after(world.changes() + stop);
        let mut acknowledged = true;
        for command in [Command::new(lun(0), &cdb, &list, 0), Command::new(lun(1), &cdb::sync10(), &[], 0)] {
            front.submit(FIRST_REQUEST_QUEUE, &command).context("no room")?;
            appliance.machine.run();
            acknowledged &= front.poll(FIRST_REQUEST_QUEUE)?.is_some_and(|(_, response)| response.good());
        }
        cuts += u64::from(!world.powered());
        world.crash(stop);
        fronts.into_iter().for_each(|front| appliance.disconnect(front));
        appliance.shutdown()?;
        world.revive();
        let kept = world.count_disks(|disk| disk.visible()[..256 * BLOCK].iter().all(|&byte| byte == 5));
        (flushed, lost) = (flushed + u64::from(acknowledged), lost + u64::from(acknowledged && kept < DISKS));
    }
    Ok((flushed, cuts, lost))
}

#[test]
fn what_devices_copied_together_is_durable_after_a_flush() -> Result<()> {
    let (flushed, cuts, lost) = cut_while_copying(Switches::default())?;
    ensure!(flushed > 5 && cuts > 5 && lost == 0, "{flushed} flushed, {cuts} cut, {lost} lost");
    let (.., lost) = cut_while_copying(Switches { sync_does_nothing: true, ..Switches::default() })?;
    ensure!(lost > 0, "a flush that does nothing was not noticed");
    Ok(())
}
