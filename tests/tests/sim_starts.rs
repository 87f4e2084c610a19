//! Queues that move, or start again with other memory, and task management right then: what a guest has made available
//! before it asks is in scope, also where its queue is only about to run. Otherwise a command would begin after the function
//! that was to end it, in memory that the guest uses for something else by then. (`daemon_storm` has queues that start.)

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{Asked, SimAppliance, SimBdev, SimWorld, backing, unit_of};
use vhost::VhostBackend as _;

const LUN: Lun = Lun::new(0, 0);
const QUEUES: usize = 3;
const REACTORS: usize = 3;
const SEEDS: u64 = 60;

struct Scene {
    appliance: SimAppliance,
    front: FrontEnd,
    asked: Asked<()>,
    rng: Rng,
}

impl Scene {
    fn new(seed: u64) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 100_000);
        let mut appliance = SimAppliance::new(&world, REACTORS, seed)?;
        let bdev = SimBdev::new(&world, 1 << 20);
        let unit = unit_of("disk", &bdev);
        let device: Arc<dyn Bdev> = Arc::new(bdev);
        appliance.controller("vm", &[(0, 0, backing("disk", &unit, &device))])?;
        let front = appliance.connect("vm", &DriverOptions { request_queues: QUEUES, ..DriverOptions::default() })?;
        Ok(Scene { appliance, front, asked: Asked::default(), rng: Rng::new(seed) })
    }

    /// Looks at each answer as it comes.
    fn settle(mut self) -> Result<()> {
        for _ in 0..20_000 {
            if self.asked.commands() == 0 && !self.asked.has_functions() {
                self.appliance.disconnect(self.front);
                return self.appliance.shutdown();
            }
            self.appliance.machine.rounds(1);
            self.asked.take(&mut self.front)?;
        }
        self.asked.ensure_none()
    }
}

/// Some commands in each queue, and a reset of the nexus that ends them.
fn ask(front: &mut FrontEnd, asked: &mut Asked<()>) -> Result<()> {
    let mut scope = Vec::new();
    for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
        for lba in 0..3 {
            let read = cdb::read10(lba, 1);
            let ticket = front.submit(queue, &Command::new(LUN, &read, &[], 512)).context("room")?;
            asked.put((queue, ticket), ());
            scope.push((queue, ticket));
        }
    }
    asked.function(front, Tmf::NexusReset, LUN, 0, scope);
    Ok(())
}

fn for_seeds(test: impl Fn(u64) -> Result<()>) -> Result<()> {
    (0..SEEDS).try_for_each(|seed| test(seed).with_context(|| format!("seed {seed}")))
}

#[test]
fn a_function_finds_what_is_in_a_queue_that_has_just_moved() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        for _ in 0..3 {
            let Scene { appliance, front, asked, rng } = &mut scene;
            let mut wait = rng.below(12);
            let mut done = false;
            let moved = appliance.move_one(rng, |_| {
                wait = wait.saturating_sub(1);
                if wait > 0 || std::mem::replace(&mut done, true) { Ok(()) } else { ask(front, asked) }
            });
            ensure!(moved.is_ok(), "{moved:?}");
            ask(&mut scene.front, &mut scene.asked)?;
            for _ in 0..2000 {
                scene.appliance.machine.rounds(1);
                scene.asked.take(&mut scene.front)?;
            }
            scene.asked.ensure_none()?;
        }
        scene.settle()
    })
}

#[test]
fn a_function_finds_what_is_in_queues_that_get_other_memory() -> Result<()> {
    for_seeds(|seed| {
        let mut scene = Scene::new(seed)?;
        let Scene { appliance, front, asked, rng } = &mut scene;
        let (session, regions) = (front.session.clone(), front.regions());
        let mut wait = rng.below(20);
        let mut wrong = Ok(());
        appliance.machine.call_beside(
            move || session.set_mem_table(&regions),
            || {
                wait = wait.wrapping_sub(1);
                if wait == 0 {
                    wrong = ask(front, asked);
                }
                if wrong.is_ok() {
                    wrong = asked.take(front).map(drop);
                }
            },
        )?;
        wrong?;
        scene.settle()
    })
}
