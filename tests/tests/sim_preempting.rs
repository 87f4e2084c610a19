//! PREEMPT AND ABORT in numbers: a guest that sends many of them waits for itself and not others for it, and guests that
//! preempt each other at once, with commands of all kinds in flight, all get an answer to everything.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimWorld, backing, unit_of};

const LUN: Lun = Lun::new(0, 0);
const QUEUES: usize = 8;
/// More than ask the workers at once (`MOST_FUNCTIONS` of the worker).
const LUNS: u16 = 6;

const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

fn out_cdb(action: u8) -> [u8; 10] {
    [0x5F, action, 7, 0, 0, 0, 0, 0, 24, 0]
}

fn list(key: u64, action_key: u64) -> Vec<u8> {
    [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat()
}

fn options() -> DriverOptions {
    let memory = vec![(0x10_0000, 64 << 20)];
    DriverOptions { request_queues: QUEUES, queue_size: 1024, memory, ..DriverOptions::default() }
}

fn clear(appliance: &mut SimAppliance, front: &mut FrontEnd, lun: Lun) -> Result<()> {
    for _ in 0..8 {
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun, &[0; 6], &[], 0)).context("room")?;
        appliance.machine.run();
        if front.poll(FIRST_REQUEST_QUEUE)?.context("answer")?.1.good() {
            return Ok(());
        }
    }
    anyhow::bail!("unit attentions without end")
}

/// How long another guest's function takes while a guest has PREEMPT AND ABORT in all its slots.
#[test]
fn a_storm_of_preempt_and_abort() -> Result<()> {
    for (count, luns) in [(0, 1), (64, 1), (1000, 1), (1000, LUNS)] {
        let world = SimWorld::new(3);
        world.set_latency(1000, 2000);
        let mut appliance = SimAppliance::new(&world, 2, 3)?;
        appliance.target.set_patience(PATIENT);
        let mut disks = Vec::new();
        for lun in 0..luns {
            let disk: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 256 * 512));
            let unit = unit_of(&format!("disk{lun}"), &*disk);
            disks.push((0, lun, backing("disk", &unit, &disk)));
        }
        let other: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 256 * 512));
        let other_unit = unit_of("other", &*other);
        appliance.controller("bad", &disks)?;
        appliance.controller("good", &[(0, 0, backing("other", &other_unit, &other))])?;
        let mut bad = appliance.connect("bad", &options())?;
        let mut good = appliance.connect("good", &options())?;
        clear(&mut appliance, &mut good, LUN)?;
        for lun in (0..luns).map(|lun| Lun::new(0, lun)) {
            clear(&mut appliance, &mut bad, lun)?;
            for (action, list) in [(REGISTER_AND_IGNORE, list(0, 1)), (RESERVE, list(1, 0))] {
                bad.submit(FIRST_REQUEST_QUEUE, &Command::new(lun, &out_cdb(action), &list, 0)).context("room")?;
                appliance.machine.run();
                ensure!(bad.poll(FIRST_REQUEST_QUEUE)?.context("answer")?.1.good());
            }
        }
        world.fault(Fault::always(Kind::Write, Effect::Stuck));
        let mut first = None;
        for queue in 0..QUEUES {
            let write = cdb::write10(queue as u32, 1, false);
            let ticket = good.submit(FIRST_REQUEST_QUEUE + queue, &Command::new(LUN, &write, &[1; 512], 0));
            first = first.or(ticket);
        }
        appliance.machine.run();
        world.heal();
        for n in 0..count {
            let queue = FIRST_REQUEST_QUEUE + n % QUEUES;
            let lun = Lun::new(0, (n % usize::from(luns)) as u16);
            bad.submit(queue, &Command::new(lun, &out_cdb(PREEMPT_AND_ABORT), &list(1, 0), 0)).context("room")?;
        }
        appliance.machine.rounds(60);
        good.driver.submit_tmf(Tmf::QueryTask, LUN.bytes(), first.context("room")?);
        good.driver.queues[CONTROL_QUEUE].flush();
        let mut rounds = 0;
        while good.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow::anyhow!("{why:?}"))?.is_none() {
            appliance.machine.rounds(1);
            rounds += 1;
        }
        ensure!(rounds < 500, "a guest with {count} PREEMPT AND ABORT held another's function up for {rounds} rounds");
        world.release();
        appliance.machine.run();
        for n in 0..count {
            let (_, answer) =
                bad.poll(FIRST_REQUEST_QUEUE + n % QUEUES)?.context("no answer to a PREEMPT AND ABORT")?;
            // With key 0 all registrants are preempted, the asker too: one of these may end another.
            ensure!(answer.good() || answer.response == 2, "{answer:?}");
        }
        appliance.disconnect(bad);
        appliance.disconnect(good);
        appliance.shutdown()?;
    }
    Ok(())
}

/// Of one session so many end commands at once from each reactor; the next waits, however long those before it take.
#[test]
fn no_more_than_four_of_a_guest_end_commands_at_once() -> Result<()> {
    const MOST: u16 = 4;
    let world = SimWorld::new(7);
    let mut appliance = SimAppliance::new(&world, 1, 7)?;
    appliance.target.set_patience(PATIENT);
    let mut disks = Vec::new();
    for lun in 0..LUNS {
        let disk: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 256 * 512));
        let unit = unit_of(&format!("disk{lun}"), &*disk);
        disks.push((0, lun, backing("disk", &unit, &disk)));
    }
    let mut fronts = Vec::new();
    for name in ["one", "other"] {
        appliance.controller(name, &disks)?;
        fronts.push(appliance.connect(name, &options())?);
    }
    for (front, key) in fronts.iter_mut().zip(1..) {
        for lun in (0..LUNS).map(|lun| Lun::new(0, lun)) {
            clear(&mut appliance, front, lun)?;
            let (cdb, list) = (out_cdb(REGISTER_AND_IGNORE), list(0, key));
            front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun, &cdb, &list, 0)).context("room")?;
            appliance.machine.run();
            ensure!(front.poll(FIRST_REQUEST_QUEUE)?.context("answer")?.1.good());
        }
    }
    let [victim, asker] = &mut fronts[..] else { anyhow::bail!("two guests") };
    for lun in 0..LUNS {
        // Those of the first disks do not end before the device is done, the others as soon as they are to.
        world.fault(Fault::always(Kind::Write, if lun < MOST { Effect::Deaf } else { Effect::Stuck }));
        let write = cdb::write10(0, 1, false);
        victim.submit(FIRST_REQUEST_QUEUE, &Command::new(Lun::new(0, lun), &write, &[1; 512], 0)).context("room")?;
        appliance.machine.run();
        world.heal();
    }
    for lun in 0..LUNS {
        let (cdb, list) = (out_cdb(PREEMPT_AND_ABORT), list(2, 1));
        let preempt = Command::new(Lun::new(0, lun), &cdb, &list, 0);
        asker.submit(FIRST_REQUEST_QUEUE + usize::from(lun), &preempt).context("room")?;
        appliance.machine.run();
    }
    ensure!(victim.poll(FIRST_REQUEST_QUEUE)?.is_none(), "a guest ends commands of more than {MOST} at once");
    world.release();
    appliance.machine.run();
    for lun in 0..LUNS {
        let write = victim.poll(FIRST_REQUEST_QUEUE)?.context("a write is not answered")?.1;
        let preempt = asker.poll(FIRST_REQUEST_QUEUE + usize::from(lun))?.context("no answer")?.1;
        ensure!((write.response == 2 || write.good()) && preempt.good(), "{write:?} {preempt:?}");
    }
    for front in fronts {
        appliance.disconnect(front);
    }
    appliance.shutdown()
}

/// Guests that preempt each other without end, beside reads, writes and COMPARE AND WRITE of theirs on the same blocks, and
/// resets: everything is answered, and the reservation belongs to somebody in the end.
#[test]
fn guests_that_preempt_each_other_at_once() -> Result<()> {
    let mut aborted = 0;
    for seed in 1..=20 {
        let world = SimWorld::new(seed);
        world.set_latency(1_000, 60_000);
        let mut rng = Rng::new(seed ^ 0x9ee);
        let mut appliance = SimAppliance::new(&world, 3, seed)?;
        appliance.target.set_patience(PATIENT);
        let disk: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, 256 * 512));
        let unit = unit_of("disk", &*disk);
        let mut fronts = Vec::new();
        for name in ["one", "two", "three"] {
            appliance.controller(name, &[(0, 0, backing("disk", &unit, &disk))])?;
            let mut front = appliance.connect(name, &options())?;
            clear(&mut appliance, &mut front, LUN)?;
            fronts.push(front);
        }
        let (mut sent, mut functions) = ([0u32; 3], [0u32; 3]);
        for _ in 0..200 {
            let of = rng.index(3);
            let (key, victim) = (of as u64 + 1, rng.below(3) + 1);
            let queue = FIRST_REQUEST_QUEUE + rng.index(QUEUES);
            let lba = rng.below(4) as u32;
            let (cdb, out, in_len): (Vec<u8>, _, _) = match rng.below(8) {
                0 | 1 => (out_cdb(PREEMPT_AND_ABORT).into(), list(key, victim), 0),
                2 => (out_cdb(PREEMPT_AND_ABORT).into(), list(key, 0), 0),
                3 => (out_cdb(REGISTER_AND_IGNORE).into(), list(0, key), 0),
                4 => (out_cdb(RESERVE).into(), list(key, 0), 0),
                5 => (cdb::compare_and_write(lba.into(), 1, false).into(), vec![0; 1024], 0),
                6 => (cdb::read10(lba, 4).into(), vec![], 4 * 512),
                _ => (cdb::write10(lba, 4, false).into(), vec![0; 4 * 512], 0),
            };
            sent[of] += u32::from(fronts[of].submit(queue, &Command::new(LUN, &cdb, &out, in_len)).is_some());
            if rng.below(20) == 0 && fronts[of].driver.submit_tmf(Tmf::LunReset, LUN.bytes(), 0).is_some() {
                functions[of] += 1;
                fronts[of].driver.queues[CONTROL_QUEUE].flush();
            }
            appliance.machine.rounds(rng.below(4));
        }
        appliance.machine.run();
        for (of, front) in fronts.iter_mut().enumerate() {
            for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
                while let Some((_, answer)) = front.poll(queue)? {
                    sent[of] -= 1;
                    aborted += u32::from(answer.response == 2);
                }
            }
            while front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow::anyhow!("{why:?}"))?.is_some() {
                functions[of] -= 1;
            }
        }
        ensure!((sent, functions) == ([0; 3], [0; 3]), "unanswered, seed {seed}: {sent:?}, functions {functions:?}");
        for front in fronts {
            appliance.disconnect(front);
        }
        appliance.shutdown()?;
    }
    ensure!(aborted > 100, "PREEMPT AND ABORT has ended {aborted} commands");
    Ok(())
}
