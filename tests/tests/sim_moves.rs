//! Queues that move from reactor to reactor between the commands, aborts, resets and stops of a guest, in the simulated world.
//! The machine comes to rest while the control plane asks, so most queues have ended their requests when they are offered;
//! `daemon_balance.rs` moves them under load.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::guest::{Command, DriverOptions, Lun, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Effect, Fault, Kind, SimAppliance, SimBdev, SimGuest, SimWorld, backing, unit_of};
use pollux_vhost_scsi::{QueuePlace, Target};

const BLOCKS: u64 = 512;
const REACTORS: usize = 3;
const LUN: Lun = Lun::new(0, 0);

fn appliance(world: &SimWorld, seed: u64) -> Result<SimAppliance> {
    let mut appliance = SimAppliance::new(world, REACTORS, seed)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(world, BLOCKS * 512));
    let unit = unit_of("vm", &*bdev);
    appliance.controller("vm", &[(0, 0, backing("vm", &unit, &bdev))])?;
    Ok(appliance)
}

fn places(appliance: &mut SimAppliance) -> Vec<QueuePlace> {
    appliance.call(Target::queue_places)
}

/// Moves a random queue somewhere else; whether it went.
fn move_one(appliance: &mut SimAppliance, rng: &mut Rng) -> Result<bool> {
    let places = places(appliance);
    let Some(place) = places.get(rng.index(places.len().max(1))).cloned() else { return Ok(false) };
    let to = (place.reactor + 1 + rng.index(REACTORS - 1)) % REACTORS;
    let moved = appliance.call(|target| target.move_queue(&place.ctrlr, place.session, place.index, to))?;
    let now = appliance.call(Target::queue_places);
    let now = now.iter().find(|now| now.index == place.index).context("the queue still runs")?;
    ensure!(now.reactor == if moved { to } else { place.reactor }, "it is where it was said to be");
    Ok(moved)
}

/// A guest whose queues move all the time while it does random things, and `more`.
fn scenario(seed: u64, more: impl Fn(&mut SimAppliance, &mut SimGuest, &mut Rng) -> Result<()>) -> Result<u64> {
    let world = SimWorld::new(seed);
    let mut appliance = appliance(&world, seed)?;
    let mut guest = SimGuest::connect(&mut appliance, "vm", BLOCKS, seed)?;
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut moved = 0;
    for _ in 0..300 {
        guest.act();
        if rng.chance(1, 2) {
            appliance.machine.rounds(rng.below(6));
            guest.take()?;
        }
        if rng.chance(1, 6) {
            moved += u64::from(move_one(&mut appliance, &mut rng)?);
        }
        more(&mut appliance, &mut guest, &mut rng)?;
    }
    guest.verify(&mut appliance)?;
    let stats = appliance.target.move_stats();
    ensure!(stats.moved() == moved, "{} moves are counted of {moved}", stats.moved());
    let good = guest.load.good;
    ensure!(good > 20, "only {good} commands were done");
    appliance.disconnect(guest.front);
    appliance.shutdown()?;
    Ok(moved)
}

#[test]
fn what_a_moving_queue_is_asked_is_answered_once_and_right() -> Result<()> {
    let mut moved = 0;
    for seed in 1..=8 {
        moved += scenario(seed, |_, _, _| Ok(()))?;
    }
    ensure!(moved > 40, "only {moved} moves");
    Ok(())
}

#[test]
fn aborts_resets_and_stops_find_a_queue_wherever_it_is() -> Result<()> {
    let mut moved = 0;
    for seed in 1..=8 {
        moved += scenario(seed, |appliance, guest, rng| match rng.below(24) {
            0 | 1 => {
                guest.tmf();
                Ok(())
            }
            2 => guest.stop_or_start(appliance),
            _ => Ok(()),
        })?;
    }
    ensure!(moved > 20, "only {moved} moves");
    Ok(())
}

#[test]
fn a_queue_whose_requests_do_not_end_stays_and_goes_on() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = appliance(&world, 1)?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    let mut run = |appliance: &mut SimAppliance, cdb: &[u8], len: usize| -> Result<Option<bool>> {
        front.submit(2, &Command::new(LUN, cdb, &[], len)).context("no room")?;
        appliance.machine.run();
        Ok(front.poll(2)?.map(|(_, response)| response.good()))
    };
    let read = cdb::read10(0, 1);
    while run(&mut appliance, &read, 512)? != Some(true) {}
    world.fault(Fault::always(Kind::Sync, Effect::Stuck));
    ensure!(run(&mut appliance, &cdb::sync10(), 0)?.is_none(), "the flush is stuck");
    ensure!(appliance.target.controllers()[0].sessions[0].inflight == 1, "listings show it in flight");
    let place = places(&mut appliance)[0].clone();
    let to = (place.reactor + 1) % REACTORS;
    let moved = appliance.call(|target| target.move_queue("vm", place.session, 2, to))?;
    ensure!(!moved, "a queue with a stuck request was moved");
    ensure!(appliance.target.move_stats().given_up() == 1, "it is counted");
    ensure!(run(&mut appliance, &read, 512)? == Some(true), "the queue does not go on");
    for bad in [
        appliance.call(|target| target.move_queue("vm", place.session, 0, to)),
        appliance.call(|target| target.move_queue("vm", place.session, 7, to)),
        appliance.call(|target| target.move_queue("vm", place.session, 2, 99)),
        appliance.call(|target| target.move_queue("other", place.session, 2, to)),
    ] {
        ensure!(bad.is_err(), "a move of nothing, or to nowhere, was taken");
    }
    appliance.disconnect(front);
    appliance.shutdown()
}

#[test]
fn a_kick_and_an_interrupt_on_the_way_are_not_lost() -> Result<()> {
    for event_idx in [false, true] {
        let world = SimWorld::new(1);
        let mut appliance = appliance(&world, 1)?;
        let options = DriverOptions { event_idx, ..DriverOptions::default() };
        let mut front = appliance.connect("vm", &options)?;
        let read = cdb::read10(0, 1);
        // Rests, so that its kick is armed, before each move.
        for round in 0..6 {
            front.submit(2, &Command::new(LUN, &read, &[], 512)).context("no room")?;
            appliance.machine.run();
            ensure!(front.poll(2)?.is_some(), "round {round}: no answer");
            let place = places(&mut appliance)[0].clone();
            let to = (place.reactor + 1) % REACTORS;
            // Made available, and kicked for if that is wanted, while nobody turns.
            front.submit(2, &Command::new(LUN, &read, &[], 512)).context("no room")?;
            ensure!(appliance.call(|target| target.move_queue("vm", place.session, 2, to))?, "it did not move");
            appliance.machine.run();
            ensure!(front.poll(2)?.is_some(), "round {round}: what was asked before the move was forgotten");
            ensure!(front.driver.queues[2].interrupts() > 0, "round {round}: no interrupt");
        }
        appliance.disconnect(front);
        appliance.shutdown()?;
    }
    Ok(())
}
