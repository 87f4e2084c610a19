//! Two guests with one disk, through two controllers of their own: what each of them reads has to be possible given
//! what both have written, while commands are aborted, the unit is reset under the other's hands, and queues move from
//! reactor to reactor. One model is the judge of both.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_scsi::LogicalUnit;
use pollux_tests::guest::{NotGood, ScsiLoad, ScsiMix, SharedModel};
use pollux_tests::model::Model;
use pollux_tests::rng::Rng;
use pollux_tests::sim::{LUN, PATIENT, SimAppliance, SimBdev, SimGuest, SimWorld, backing, unit_of};

/// Few, so that the guests get into each other's way.
const BLOCKS: u64 = 128;
const REACTORS: usize = 3;
const NAMES: [&str; 2] = ["one", "other"];

/// What happens beside the commands.
#[derive(Clone, Copy, Default)]
struct Beside {
    moves: bool,
    functions: bool,
}

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    good: u64,
    moved: u64,
    /// Commands that a function has ended, of both guests.
    ended: u64,
    clock: u64,
}

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    guests: Vec<SimGuest>,
    rng: Rng,
}

fn scene(seed: u64, disks: impl Fn(&SimWorld) -> [Disk; 2]) -> Result<Scene> {
    let world = SimWorld::new(seed);
    world.set_latency(5_000, 200_000);
    let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
    appliance.target.set_patience(PATIENT);
    let mut model = Model::new(512, BLOCKS);
    model.without_crashes();
    let model: SharedModel = Arc::new(Mutex::new(model));
    let mut guests = Vec::new();
    for ((at, name), (unit, bdev)) in NAMES.iter().enumerate().zip(disks(&world)) {
        appliance.controller(name, &[(0, 0, backing("disk", &unit, &bdev))])?;
        let seed = seed * 2 + at as u64;
        let load = ScsiLoad::sharing(LUN, &model, seed);
        let mut guest = SimGuest::connect_with(&mut appliance, name, seed, load)?;
        guest.mix = ScsiMix { blocks_max: 32, ..ScsiMix::default() };
        guests.push(guest);
    }
    Ok(Scene { world, appliance, guests, rng: Rng::new(seed ^ 0x5eed) })
}

type Disk = (Arc<LogicalUnit>, Arc<dyn Bdev>);

fn disk(world: &SimWorld, name: &str) -> Disk {
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(world, BLOCKS * 512));
    (unit_of(name, &*bdev), bdev)
}

/// One disk for both.
fn one_disk(world: &SimWorld) -> [Disk; 2] {
    let disk = disk(world, "disk");
    [disk.clone(), disk]
}

fn step(guests: &mut [SimGuest], rng: &mut Rng, functions: bool) -> Result<()> {
    let guest = &mut guests[rng.index(NAMES.len())];
    for _ in 0..rng.below(4) {
        guest.act();
    }
    if functions && rng.chance(1, 48) {
        guest.tmf();
    }
    if rng.chance(1, 2) { guest.take() } else { Ok(()) }
}

/// What a function does to commands: they are aborted or reset, or are told of it.
fn is_by_function(why: &NotGood) -> bool {
    matches!(why, (2 | 4, ..) | (0, 2, Some((6, ..))) | (0, 0x40, None))
}

impl Scene {
    fn move_one(&mut self, functions: bool) -> Result<u64> {
        let Scene { appliance, guests, rng, .. } = self;
        // Nothing moves while a function is at work.
        while guests.iter().any(|guest| guest.functions() > 0) {
            step(guests, rng, false)?;
            appliance.machine.rounds(1);
        }
        Ok(u64::from(appliance.move_one(rng, |rng| step(guests, rng, functions))?))
    }

    fn run(&mut self, steps: u64, beside: Beside) -> Result<Tally> {
        let mut tally = Tally::default();
        for _ in 0..steps {
            step(&mut self.guests, &mut self.rng, beside.functions)?;
            self.appliance.machine.rounds(self.rng.below(6));
            if beside.moves && self.rng.chance(1, 24) {
                tally.moved += self.move_one(beside.functions)?;
            }
        }
        for guest in &mut self.guests {
            guest.finish(&mut self.appliance)?;
        }
        for guest in &mut self.guests {
            guest.verify(&mut self.appliance)?;
            let of_others = guest.load.others.iter().find(|why| !is_by_function(why));
            ensure!(of_others.is_none(), "a command ended otherwise than GOOD or by a function: {of_others:?}");
            tally.good += guest.load.good;
            tally.ended += guest.load.others.len() as u64;
        }
        tally.clock = self.world.now();
        Ok(tally)
    }

    fn end(mut self) -> Result<()> {
        for guest in self.guests {
            self.appliance.disconnect(guest.front);
        }
        self.appliance.shutdown()
    }
}

fn all(seeds: std::ops::RangeInclusive<u64>, beside: Beside) -> Result<Tally> {
    let mut sum = Tally::default();
    for seed in seeds {
        let mut scene = scene(seed, one_disk)?;
        let tally = scene.run(400, beside).with_context(|| format!("seed {seed}"))?;
        scene.end()?;
        sum.good += tally.good;
        sum.moved += tally.moved;
        sum.ended += tally.ended;
        sum.clock += tally.clock;
    }
    Ok(sum)
}

#[test]
fn two_guests_see_one_disk() -> Result<()> {
    let tally = all(1..=8, Beside::default())?;
    ensure!(tally.good > 2000, "{tally:?}");
    Ok(())
}

#[test]
fn two_guests_see_one_disk_while_their_queues_move() -> Result<()> {
    let tally = all(11..=16, Beside { moves: true, functions: false })?;
    ensure!(tally.good > 2000 && tally.moved > 50, "{tally:?}");
    Ok(())
}

#[test]
fn two_guests_see_one_disk_while_one_aborts_and_resets_what_the_other_does() -> Result<()> {
    let tally = all(21..=26, Beside { moves: true, functions: true })?;
    ensure!(tally.good > 1000 && tally.moved > 30 && tally.ended > 300, "{tally:?}");
    let again = all(21..=21, Beside { moves: true, functions: true })?;
    ensure!(again == all(21..=21, Beside { moves: true, functions: true })?, "a run is its seed");
    Ok(())
}

#[test]
fn two_disks_are_not_taken_for_one() -> Result<()> {
    let two = |world: &SimWorld| NAMES.map(|name| disk(world, name));
    for seed in 1..=4 {
        let mut scene = scene(seed, two)?;
        let verdict = scene.run(400, Beside::default());
        ensure!(verdict.is_err(), "seed {seed}: the model takes two disks for one");
        scene.guests.clear();
        scene.appliance.await_sessions(0);
        scene.appliance.shutdown()?;
    }
    Ok(())
}
