//! What fences a disk fences the copies that read or write it, whichever unit was sent their command: when PREEMPT AND
//! ABORT, a reset, or CLEAR TASK SET is answered, nothing of them is on its way to the disk any more.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::Bdev;
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, Tmf, cdb};
use pollux_tests::sim::{DiskId, PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_with_medium};

const BLOCK: u64 = 512;
const BLOCKS: u64 = 8192;
/// The unit that is sent the copy, and the one that is fenced.
const MANAGER: u16 = 0;
const FENCED: u16 = 1;
const KEYS: [u64; 2] = [1, 2];

const fn lun(disk: u16) -> Lun {
    Lun::new(0, disk)
}

struct Scene {
    appliance: SimAppliance,
    /// Who copies, and who fences.
    fronts: Vec<FrontEnd>,
    units: Vec<Arc<LogicalUnit>>,
    fenced: DiskId,
}

impl Scene {
    fn new(seed: u64, together: bool) -> Result<Scene> {
        let world = SimWorld::new(seed);
        world.set_latency(100_000, 400_000);
        let mut appliance = SimAppliance::new(&world, 2, seed)?;
        appliance.target.set_patience(PATIENT);
        let disks = [(); 2].map(|()| SimBdev::new(&world, BLOCKS * BLOCK));
        let fenced = disks[usize::from(FENCED)].disk();
        let disks = disks.map(|disk| -> Arc<dyn Bdev> { Arc::new(if together { disk.that_copies() } else { disk }) });
        let units: Vec<_> = (0..2).map(|n| unit_with_medium(&format!("disk{n}"), &disks[n])).collect();
        let mut fronts = Vec::new();
        for (name, number) in ["copies", "fences"].iter().zip(0u64..) {
            let backings: Vec<_> = (0..2).map(|n| backing(&format!("disk{n}"), &units[n], &disks[n])).collect();
            appliance.call(|target| -> Result<()> {
                target.create_controller(name, vec![0, 1], 7 + number)?;
                for (disk, backing) in (0..).zip(backings) {
                    target.add_lun(name, Some(0), disk, backing)?;
                }
                Ok(target.start_controller(name)?)
            })?;
            let options = DriverOptions { request_queues: 2, seed, ..DriverOptions::default() };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut scene = Scene { appliance, fronts, units, fenced };
        for front in 0..2 {
            for disk in [MANAGER, FENCED] {
                while !scene.send(front, &Command::new(lun(disk), &cdb::TEST_UNIT_READY, &[], 0))?.good() {}
            }
        }
        for (front, key) in KEYS.into_iter().enumerate() {
            scene.reserve_out(front, 6, 0, key)?;
        }
        Ok(scene)
    }

    fn submit(&mut self, front: usize, command: &Command<'_>) -> Result<()> {
        self.fronts[front].submit(FIRST_REQUEST_QUEUE, command).context("room").map(drop)
    }

    fn answer(&mut self, front: usize) -> Result<Option<Response>> {
        Ok(self.fronts[front].poll(FIRST_REQUEST_QUEUE)?.map(|(_, response)| response))
    }

    fn send(&mut self, front: usize, command: &Command<'_>) -> Result<Response> {
        self.submit(front, command)?;
        self.appliance.machine.run();
        self.answer(front)?.context("an answer")
    }

    /// PERSISTENT RESERVE OUT to the disk that is fenced: write exclusive, registrants only.
    fn reserve_out(&mut self, front: usize, action: u8, key: u64, action_key: u64) -> Result<()> {
        let (cdb, list) = reserve_out(action, key, action_key);
        let response = self.send(front, &Command::new(lun(FENCED), &cdb, &list, 0))?;
        ensure!(response.good(), "{response:?}");
        Ok(())
    }

    /// Starts a copy of the whole disk.
    fn copy(&mut self, manager: u16, source: u16, immediate: bool) -> Result<()> {
        let names = [0, 1].map(|n: usize| naa_of(&self.units[n]));
        let whole = Segment { source, destination: 1 - source, blocks: 8000, from: 0, to: 0 };
        let (cdb, list) = copy::lid4(1, immediate, &names, &[whole]);
        self.submit(0, &Command::new(lun(manager), &cdb, &list, 0))
    }

    /// Runs until the copy has something on its way at the fenced disk.
    fn run_up_to_the_disk(&mut self) -> Result<()> {
        let world = self.appliance.machine.world().clone();
        for _ in 0..100_000 {
            if self.is_under_way() && (world.changes() > 3 || self.appliance.machine.helpers().pending() > 0) {
                return Ok(());
            }
            self.appliance.machine.rounds(1);
        }
        Err(anyhow!("nothing of the copy reaches the disk"))
    }

    /// Whether something is on its way at the fenced disk.
    fn is_under_way(&self) -> bool {
        let machine = &self.appliance.machine;
        machine.helpers().pending() > 0 || machine.world().transfers().iter().any(|of| of.disk == self.fenced)
    }

    fn fence(&mut self, by: Fence) -> Result<()> {
        let function = match by {
            Fence::Preempt => {
                let (cdb, list) = reserve_out(5, KEYS[1], KEYS[0]);
                return self.submit(1, &Command::new(lun(FENCED), &cdb, &list, 0));
            }
            Fence::Reset => Tmf::LunReset,
            Fence::Clear => Tmf::ClearTaskSet,
        };
        self.fronts[1].driver.submit_tmf(function, lun(FENCED).bytes(), 0).context("room")?;
        self.fronts[1].driver.queues[CONTROL_QUEUE].flush();
        Ok(())
    }

    fn is_fenced(&mut self, by: Fence) -> Result<bool> {
        if matches!(by, Fence::Preempt) {
            let answer = self.answer(1)?;
            ensure!(answer.as_ref().is_none_or(Response::good), "{answer:?}");
            return Ok(answer.is_some());
        }
        let answer = self.fronts[1].driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow!("{why:?}"))?;
        Ok(answer.is_some())
    }

    fn end(mut self) -> Result<()> {
        self.fronts.into_iter().for_each(|front| self.appliance.disconnect(front));
        self.appliance.shutdown()
    }
}

fn reserve_out(action: u8, key: u64, action_key: u64) -> ([u8; 10], Vec<u8>) {
    let list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    ([0x5F, action, 5, 0, 0, 0, 0, 0, 24, 0], list)
}

#[derive(Clone, Copy, Debug)]
enum Fence {
    Preempt,
    Reset,
    Clear,
}

/// A copy that is sent to this unit, from this one to the other, and the fence.
#[derive(Clone, Copy, Debug)]
struct Case {
    manager: u16,
    source: u16,
    immediate: bool,
    by: Fence,
}

fn cases() -> impl Iterator<Item = Case> {
    let ends = [(MANAGER, MANAGER), (MANAGER, FENCED), (FENCED, MANAGER), (FENCED, FENCED)];
    let by = [Fence::Preempt, Fence::Reset, Fence::Clear];
    ends.into_iter().flat_map(move |(manager, source)| {
        by.into_iter().flat_map(move |by| {
            // What was answered goes on over CLEAR TASK SET.
            let answered: &[bool] = if matches!(by, Fence::Clear) { &[false] } else { &[false, true] };
            answered.iter().map(move |&immediate| Case { manager, source, immediate, by })
        })
    })
}

fn fences(case: Case, seed: u64, together: bool) -> Result<()> {
    let mut scene = Scene::new(seed, together)?;
    if matches!(case.by, Fence::Preempt) {
        scene.reserve_out(1, 1, KEYS[1], 0)?;
    }
    let helpers = scene.appliance.machine.helpers();
    let world = scene.appliance.machine.world().clone();
    scene.copy(case.manager, case.source, case.immediate)?;
    helpers.hang(together);
    scene.run_up_to_the_disk()?;
    scene.fence(case.by)?;
    helpers.hang(false);
    while !scene.is_fenced(case.by)? {
        ensure!(scene.appliance.machine.rounds(1), "the fence is not answered");
    }
    ensure!(!scene.is_under_way(), "answered while the copy has something at the disk");
    let changes = world.changes();
    scene.appliance.machine.run();
    ensure!(world.changes() == changes, "{} writes after the answer", world.changes() - changes);
    let copied = scene.answer(0)?.context("the copy is not answered")?;
    ensure!(copied.good() == case.immediate, "{copied:?}");
    scene.end()
}

#[test]
fn when_a_fence_is_answered_no_copy_reaches_the_disk() -> Result<()> {
    for case in cases() {
        for seed in 0..4 {
            fences(case, seed, false).with_context(|| format!("{case:?}, seed {seed}"))?;
        }
    }
    Ok(())
}

#[test]
fn nor_do_devices_copy_together() -> Result<()> {
    for case in cases() {
        for seed in 0..2 {
            fences(case, seed, true).with_context(|| format!("{case:?}, seed {seed}"))?;
        }
    }
    Ok(())
}

/// PREEMPT AND ABORT of one nexus leaves the copies of another one alone, and so does a fence of another disk.
#[test]
fn a_copy_that_is_not_fenced_goes_on() -> Result<()> {
    let mut scene = Scene::new(9, false)?;
    scene.reserve_out(1, 1, KEYS[1], 0)?;
    scene.copy(MANAGER, MANAGER, false)?;
    scene.run_up_to_the_disk()?;
    // Who preempts itself keeps the reservation.
    let (cdb, list) = reserve_out(5, KEYS[1], KEYS[1]);
    scene.submit(1, &Command::new(lun(FENCED), &cdb, &list, 0))?;
    scene.appliance.machine.run();
    let preempted = scene.answer(1)?.context("an answer")?;
    ensure!(preempted.good(), "{preempted:?}");
    let copied = scene.answer(0)?.context("an answer")?;
    ensure!(copied.good(), "{copied:?}");
    scene.end()
}
