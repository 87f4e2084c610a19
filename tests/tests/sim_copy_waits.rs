//! Many copies of one VM that wait: to begin, for claims, for memory. What they cost the others of their reactor in one
//! pass is bounded, and nobody is looked at who cannot go on.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, cdb};
use pollux_tests::sim::{
    Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_with_medium,
};

const BLOCK: usize = 512;
/// Disks, and copies at each but the first, of a few blocks from there: as many as one initiator may have.
const DISKS: u16 = 24;
const OF_DISK: u32 = 16;
const COPIES: u64 = (DISKS as u64 - 1) * OF_DISK as u64;
/// Queues for copies.
const QUEUES: usize = 4;
/// Looks at copies in a pass, and some for the few commands.
const MOST_LOOKS: u64 = 128 + 8;
/// Copies that begin in a pass.
const MOST_BEGIN: u64 = 16;

struct Scene {
    world: SimWorld,
    appliance: SimAppliance,
    front: FrontEnd,
    units: Vec<Arc<LogicalUnit>>,
    /// Most looks in one turn.
    most: u64,
}

const fn lun(disk: u16) -> Lun {
    Lun::new(0, disk)
}

impl Scene {
    fn new(seed: u64, together: bool) -> Result<Scene> {
        let world = SimWorld::new(seed);
        let mut appliance = SimAppliance::new(&world, 1, seed)?;
        appliance.target.set_patience(PATIENT);
        let (mut units, mut luns) = (Vec::new(), Vec::new());
        for number in 0..DISKS {
            let disk = SimBdev::new(&world, 1 << 20);
            let disk: Arc<dyn Bdev> = Arc::new(if together { disk.that_copies() } else { disk });
            let name = format!("disk{number}");
            let unit = unit_with_medium(&name, &disk);
            luns.push((0, number, backing(&name, &unit, &disk)));
            units.push(unit);
        }
        appliance.controller("vm", &luns)?;
        let front =
            appliance.connect("vm", &DriverOptions { request_queues: QUEUES + 2, seed, ..DriverOptions::default() })?;
        let mut scene = Scene { world, appliance, front, units, most: 0 };
        for disk in 0..DISKS {
            while !scene.is_good(&Command::new(lun(disk), &cdb::TEST_UNIT_READY, &[], 0))? {}
        }
        Ok(scene)
    }

    fn is_good(&mut self, command: &Command<'_>) -> Result<bool> {
        self.front.submit(FIRST_REQUEST_QUEUE, command).context("room")?;
        self.run();
        Ok(self.front.poll(FIRST_REQUEST_QUEUE)?.context("an answer")?.1.good())
    }

    fn looks(&mut self) -> u64 {
        self.appliance.machine.worker(0).looks()
    }

    /// Runs to the end, turn by turn.
    fn run(&mut self) {
        loop {
            let before = self.looks();
            if !self.appliance.machine.rounds(1) {
                return;
            }
            self.most = self.most.max(self.looks() - before);
        }
    }

    /// Asks each disk for its copies, all at once. They are answered when they have been understood.
    fn copy_all(&mut self) -> Result<()> {
        let names: Vec<_> = self.units.iter().map(|unit| naa_of(unit)).collect();
        let before = std::mem::take(&mut self.most);
        for disk in 1..DISKS {
            let names = [names[0], names[usize::from(disk)]];
            let segment = Segment { source: 0, destination: 1, blocks: 64, from: 0, to: 0 };
            let queue = FIRST_REQUEST_QUEUE + usize::from(disk) % QUEUES;
            for id in 0..OF_DISK {
                let (cdb, list) = copy::lid4(id, true, &names, &[segment]);
                self.front.submit(queue, &Command::new(lun(disk), &cdb, &list, 0)).context("room")?;
            }
            if queue == FIRST_REQUEST_QUEUE || disk == DISKS - 1 {
                self.run();
                (0..QUEUES).try_for_each(|queue| self.all_good(FIRST_REQUEST_QUEUE + queue))?;
            }
        }
        ensure!(self.most <= MOST_BEGIN, "{} copies begin in one pass", self.most);
        self.most = before;
        Ok(())
    }

    fn all_good(&mut self, queue: usize) -> Result<()> {
        while let Some((_, response)) = self.front.poll(queue)? {
            ensure!(response.good(), "{response:?}");
        }
        Ok(())
    }

    fn is_copied(&mut self) -> Result<()> {
        for disk in 1..DISKS {
            for id in 0..OF_DISK {
                let status = copy::status(id, 64);
                self.front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun(disk), &status, &[], 64)).context("room")?;
                self.run();
                let (_, response) = self.front.poll(FIRST_REQUEST_QUEUE)?.context("an answer")?;
                ensure!(response.good() && response.data[5] == 0x01, "disk {disk}, copy {id}: {response:?}");
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        ensure!(self.most <= MOST_LOOKS, "{} looks in one pass", self.most);
        self.appliance.disconnect(self.front);
        self.appliance.shutdown()
    }
}

#[test]
fn copies_that_wait_for_claims_are_looked_at_a_few_at_a_time() -> Result<()> {
    let mut scene = Scene::new(1, true)?;
    // Two that have the range to themselves, one after the other: when the first has ended, nobody else goes on.
    scene.world.fault(Fault::always(Kind::Read, Effect::Stuck));
    let (compare, blocks) = (cdb::compare_and_write(0, 1, false), [[0; BLOCK], [9; BLOCK]].concat());
    for queue in [QUEUES, QUEUES + 1] {
        scene.front.submit(FIRST_REQUEST_QUEUE + queue, &Command::new(lun(0), &compare, &blocks, 0)).context("room")?;
        scene.run();
    }
    let before = scene.looks();
    scene.copy_all()?;
    let began = scene.looks();
    ensure!(began - before >= COPIES, "{} looks for {COPIES} copies that begin", began - before);
    scene.world.release();
    scene.run();
    let in_vain = scene.looks();
    ensure!(in_vain - began >= COPIES, "{} looks: they do not wait for the claims", in_vain - began);
    scene.world.heal();
    scene.world.release();
    scene.run();
    let looks = scene.looks() - in_vain;
    ensure!((COPIES..2 * COPIES).contains(&looks), "{looks} looks when nothing is claimed any more");
    ensure!(scene.appliance.machine.helpers().done() == COPIES, "{}", scene.appliance.machine.helpers().done());
    scene.is_copied()?;
    scene.end()
}

#[test]
fn copies_that_wait_for_memory_are_looked_at_when_there_is_some() -> Result<()> {
    let mut scene = Scene::new(2, false)?;
    scene.world.fault(Fault::always(Kind::Read, Effect::Stuck));
    let before = scene.looks();
    scene.copy_all()?;
    scene.world.heal();
    scene.world.release();
    scene.run();
    let looks = scene.looks() - before;
    // Each begins and gets memory once.
    ensure!((COPIES..3 * COPIES).contains(&looks), "{looks} looks for {COPIES} copies");
    scene.is_copied()?;
    scene.end()
}
