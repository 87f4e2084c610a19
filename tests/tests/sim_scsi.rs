//! Guests in the simulated world: random commands in random framings on several queues and reactors, while queues stop
//! and start, commands are aborted, units reset, LUNs come and go, and VMMs die. Every run is a number: the seed.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_tests::guest::{FIRST_REQUEST_QUEUE, Lun, NotGood, ScsiLoad, ScsiMix};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Effect, Fault, Kind, SimAppliance, SimBdev, SimGuest, SimWorld, backing, unit_of};

const BLOCKS: u64 = 512;

/// How many seeds a test tries: `POLLUX_SIM_SEEDS`, or few.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first.map_or(0..count, |first| first..first + 1)
}

fn for_seeds(few: u64, test: impl Fn(u64) -> Result<()>) -> Result<()> {
    seeds(few)
        .try_for_each(|seed| test(seed).with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)")))
}

/// An appliance with one controller per guest, all over one device each.
fn appliance(world: &SimWorld, seed: u64, guests: usize) -> Result<(SimAppliance, Vec<SimBdev>)> {
    let reactors = 1 + (seed % 3) as usize;
    let mut appliance = SimAppliance::new(world, reactors, seed)?;
    let mut disks = Vec::new();
    for guest in 0..guests {
        let disk = SimBdev::new(world, BLOCKS * 512);
        let name = format!("vm{guest}");
        let bdev: Arc<dyn Bdev> = Arc::new(disk.clone());
        let unit = unit_of(&name, &*bdev);
        appliance.controller(&name, &[(0, 0, backing(&name, &unit, &bdev))])?;
        disks.push(disk);
    }
    Ok((appliance, disks))
}

/// Whether a command that did not end GOOD met a unit attention.
fn attention(other: &NotGood) -> bool {
    matches!(other, (0, 2, Some((6, ..))))
}

/// Two guests at once; `extra` is what else happens now and then.
fn scenario(
    seed: u64,
    steps: u64,
    mut extra: impl FnMut(&mut SimAppliance, &mut SimGuest, &mut Rng) -> Result<()>,
) -> Result<Vec<ScsiLoad>> {
    let world = SimWorld::new(seed);
    let (mut appliance, _) = appliance(&world, seed, 2)?;
    let mut rng = Rng::new(seed ^ 0xfeed);
    let mut guests = Vec::new();
    for n in 0..2 {
        guests.push(SimGuest::connect(&mut appliance, &format!("vm{n}"), BLOCKS, seed * 2 + n)?);
    }
    for _ in 0..steps {
        let which = rng.index(guests.len());
        guests[which].act();
        if rng.chance(1, 2) {
            appliance.machine.rounds(rng.below(6));
            guests[which].take()?;
        }
        extra(&mut appliance, &mut guests[which], &mut rng)?;
    }
    for guest in &mut guests {
        guest.verify(&mut appliance)?;
    }
    let mut loads = Vec::new();
    for SimGuest { front, load, .. } in guests {
        appliance.disconnect(front);
        loads.push(load);
    }
    appliance.shutdown()?;
    Ok(loads)
}

#[test]
fn random_commands_are_answered_once_and_right() -> Result<()> {
    for_seeds(12, |seed| {
        for load in scenario(seed, 800, |_, _, _| Ok(()))? {
            ensure!(load.good > 60, "only {} commands were done", load.good);
            ensure!(load.others.iter().all(attention), "commands failed: {:?}", load.others);
        }
        Ok(())
    })
}

#[test]
fn queues_stop_and_start_with_requests_in_flight() -> Result<()> {
    for_seeds(8, |seed| {
        let loads = scenario(
            seed,
            300,
            |appliance, guest, rng| {
                if rng.chance(1, 12) { guest.stop_or_start(appliance) } else { Ok(()) }
            },
        )?;
        ensure!(loads.iter().all(|load| load.good > 20), "hardly a command was done");
        Ok(())
    })
}

#[test]
fn aborts_and_resets_end_what_they_name_and_nothing_else_goes_wrong() -> Result<()> {
    let ended = std::cell::Cell::new(0);
    for_seeds(10, |seed| {
        let tmf = |_: &mut SimAppliance, guest: &mut SimGuest, rng: &mut Rng| {
            if rng.chance(1, 12) {
                guest.tmf();
            }
            Ok(())
        };
        for load in scenario(seed, 500, tmf)? {
            ensure!(load.good > 10, "only {} commands were done", load.good);
            // ABORTED and RESET; the rest are unit attentions.
            let by_tmf = |other: &&NotGood| matches!(other.0, 2 | 4);
            ended.set(ended.get() + load.others.iter().filter(by_tmf).count());
            ensure!(load.others.iter().all(|o| by_tmf(&o) || attention(o)), "commands failed: {:?}", load.others);
        }
        Ok(())
    })?;
    ensure!(ended.get() > 0, "no command was ever ended early");
    Ok(())
}

#[test]
fn a_vmm_that_dies_with_requests_in_flight_leaves_the_disk_to_the_next() -> Result<()> {
    for_seeds(8, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, seed)?;
        for round in 0..5 {
            for _ in 0..100 {
                guest.act();
                appliance.machine.rounds(guest.rng.below(4));
                guest.take()?;
            }
            let load = guest.die(&mut appliance);
            guest = SimGuest::connect_with(&mut appliance, "vm0", seed * 100 + round, load)?;
        }
        guest.verify(&mut appliance)?;
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

#[test]
fn stuck_requests_end_by_abort_by_reset_and_with_the_session() -> Result<()> {
    for_seeds(6, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 2)?;
        let mut bystander = SimGuest::connect(&mut appliance, "vm1", BLOCKS, seed + 1000)?;
        let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, seed)?;
        for round in 0..3 {
            world.fault(Fault { percent: 30, ..Fault::always(Kind::Write, Effect::Stuck) });
            for _ in 0..60 {
                guest.act();
                appliance.machine.rounds(guest.rng.below(6));
                guest.take()?;
            }
            world.heal();
            for _ in 0..30 {
                bystander.act();
                appliance.machine.rounds(2);
                bystander.take()?;
            }
            if round == 0 {
                guest.reset();
                guest.finish(&mut appliance)?;
            } else {
                let load = guest.die(&mut appliance);
                guest = SimGuest::connect_with(&mut appliance, "vm0", seed + round, load)?;
            }
            ensure!(round > 0 || guest.load.others.iter().any(|o| matches!(o.0, 2 | 4)), "nothing was stuck");
        }
        world.release();
        guest.verify(&mut appliance)?;
        bystander.verify(&mut appliance)?;
        appliance.disconnect(guest.front);
        appliance.disconnect(bystander.front);
        appliance.shutdown()
    })
}

#[test]
fn a_disk_that_errs_costs_the_commands_that_meet_it() -> Result<()> {
    for_seeds(6, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        world.fault(Fault { percent: 10, ..Fault::always(Kind::Write, Effect::Error(libc::EIO)) });
        world.fault(Fault { percent: 10, ..Fault::always(Kind::Read, Effect::Error(libc::EIO)) });
        let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, seed)?;
        for _ in 0..500 {
            guest.act();
            appliance.machine.rounds(guest.rng.below(4));
            guest.take()?;
        }
        world.heal();
        guest.verify(&mut appliance)?;
        let medium = guest.load.others.iter().filter(|(.., sense)| matches!(sense, Some((3, ..)))).count();
        ensure!(medium > 5, "MEDIUM ERROR: {medium}, others {:?}", guest.load.others);
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

#[test]
fn data_that_changes_below_is_noticed() -> Result<()> {
    let world = SimWorld::new(1);
    let (mut appliance, disks) = appliance(&world, 1, 1)?;
    let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, 1)?;
    guest.verify(&mut appliance)?;
    world.disk(disks[0].disk(), |disk| disk.write(7 * 512, &[1; 512], true));
    ensure!(guest.verify(&mut appliance).is_err(), "the oracle did not see a foreign block");
    appliance.disconnect(guest.front);
    appliance.shutdown()
}

#[test]
fn equal_seeds_give_equal_runs() -> Result<()> {
    let run = |seed| -> Result<(u64, u64, u64)> {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, seed)?;
        for _ in 0..200 {
            guest.act();
            appliance.machine.rounds(guest.rng.below(4));
            guest.take()?;
        }
        guest.finish(&mut appliance)?;
        let end = (world.now(), world.changes(), guest.load.good);
        appliance.disconnect(guest.front);
        appliance.shutdown()?;
        Ok(end)
    };
    for seed in seeds(6) {
        let (first, second) = (run(seed)?, run(seed)?);
        ensure!(first == second, "seed {seed}: {first:?} and {second:?}");
    }
    Ok(())
}

#[test]
fn luns_come_and_go_under_load() -> Result<()> {
    for_seeds(6, |seed| {
        let world = SimWorld::new(seed);
        let (mut appliance, _) = appliance(&world, seed, 1)?;
        let second = SimBdev::new(&world, BLOCKS * 512);
        let bdev: Arc<dyn Bdev> = Arc::new(second);
        let unit = unit_of("second", &*bdev);
        let mut guest = SimGuest::connect(&mut appliance, "vm0", BLOCKS, seed)?;
        let mut other = ScsiLoad::new(Lun::new(1, 3), 512, BLOCKS, seed + 1);
        let mut there = false;
        for _ in 0..300 {
            guest.act();
            let queue = guest.request_queue();
            if there && other.in_flight() < 8 {
                other.submit(&mut guest.front.driver, queue, &ScsiMix::default());
                guest.front.driver.queues[queue].flush();
            }
            appliance.machine.rounds(guest.rng.below(4));
            take_both(&mut guest, &mut other)?;
            if guest.rng.chance(1, 20) {
                let backing = backing("second", &unit, &bdev);
                appliance.call(|target| -> Result<()> {
                    if there {
                        target.remove_lun("vm0", 1, Some(3))?;
                    } else {
                        target.add_lun("vm0", Some(1), 3, backing)?;
                    }
                    Ok(())
                })?;
                there = !there;
            }
        }
        appliance.machine.run();
        take_both(&mut guest, &mut other)?;
        ensure!(other.in_flight() == 0, "{} commands to the LUN that came and went", other.in_flight());
        guest.verify(&mut appliance)?;
        appliance.disconnect(guest.front);
        appliance.shutdown()
    })
}

fn take_both(guest: &mut SimGuest, other: &mut ScsiLoad) -> Result<()> {
    for queue in FIRST_REQUEST_QUEUE..guest.front.driver.queues.len() {
        while let Some((ticket, response)) = guest.front.poll(queue)? {
            let known = guest.load.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?
                || other.answered(queue, ticket, &response).map_err(|why| anyhow!(why))?;
            ensure!(known, "an answer to {ticket}, which nobody asked");
        }
    }
    Ok(())
}
