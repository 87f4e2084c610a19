//! Copies between disks that a VM has on different controllers: the initiator's name makes them one machine's.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, cdb};
use pollux_tests::sim::{PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_with_medium};

const BLOCK: usize = 512;
const BLOCKS: u64 = 8192;
const LUN: Lun = Lun::new(0, 0);
const UNREACHABLE: Option<(u8, u8, u8)> = Some((0xA, 0x0D, 0x02));

/// A controller with a disk of its own for each of these: its reactors and its initiator.
struct Stage {
    appliance: SimAppliance,
    units: Vec<Arc<LogicalUnit>>,
    fronts: Vec<FrontEnd>,
}

const NAMES: [&str; 3] = ["first", "second", "third"];

impl Stage {
    fn new(seed: u64, controllers: &[(&[usize], u64)]) -> Result<Stage> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 200_000);
        let mut appliance = SimAppliance::new(&world, 2, seed)?;
        appliance.target.set_patience(PATIENT);
        let (mut units, mut fronts) = (Vec::new(), Vec::new());
        for ((reactors, initiator), name) in controllers.iter().zip(NAMES) {
            let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * BLOCK as u64));
            let unit = unit_with_medium(name, &bdev);
            let backing = backing(name, &unit, &bdev);
            units.push(unit);
            let (reactors, initiator) = (reactors.to_vec(), *initiator);
            appliance.call(move |target| -> Result<()> {
                target.create_controller(name, reactors, initiator)?;
                target.add_lun(name, Some(0), 0, backing)?;
                Ok(target.start_controller(name)?)
            })?;
            let memory = vec![(0x10_0000, 8 << 20)];
            let options = DriverOptions { request_queues: 2, queue_size: 64, memory, seed, ..DriverOptions::default() };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut stage = Stage { appliance, units, fronts };
        for at in 0..controllers.len() {
            for _ in 0..4 {
                stage.send(at, 0, &cdb::TEST_UNIT_READY, &[], 0)?;
            }
        }
        Ok(stage)
    }

    fn send(&mut self, at: usize, queue: usize, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        let queue = FIRST_REQUEST_QUEUE + queue;
        let ticket = self.fronts[at].submit(queue, &Command::new(LUN, cdb, out, in_len));
        self.appliance.machine.run();
        let (answered, response) = self.fronts[at].poll(queue)?.context("no answer")?;
        ensure!(Some(answered) == ticket, "an answer to another command");
        Ok(response)
    }

    fn names(&self) -> Vec<[u8; 16]> {
        self.units.iter().map(|unit| naa_of(unit)).collect()
    }

    /// A copy of the disks by number, asked of one of them.
    fn list(&self, background: bool, (source, destination): (u16, u16), blocks: u16) -> ([u8; 16], Vec<u8>) {
        copy::lid4(1, background, &self.names(), &[Segment { source, destination, blocks, from: 0, to: 0 }])
    }

    fn end(mut self) -> Result<()> {
        for front in self.fronts {
            self.appliance.disconnect(front);
        }
        self.appliance.shutdown()
    }
}

#[test]
fn disks_of_all_controllers_of_one_initiator_are_in_reach_and_no_others() -> Result<()> {
    let both: &[usize] = &[0, 1];
    let mut stage = Stage::new(1, &[(both, 7), (both, 7), (both, 8)])?;
    let data = [3; 300 * BLOCK];
    ensure!(stage.send(0, 0, &cdb::write16(0, 300, false), &data, 0)?.good());
    for queue in 0..2 {
        ensure!(stage.send(1, 0, &cdb::write_same16(0, 0, false, true), &[], 0)?.good());
        let (cdb, list) = stage.list(false, (0, 1), 300);
        let response = stage.send(queue, queue, &cdb, &list, 0)?;
        ensure!(response.good(), "asked of either: {response:?}");
        let read = stage.send(1, 0, &cdb::read16(0, 300), &[], 300 * BLOCK)?;
        ensure!(read.good() && read.data == data, "what arrived is not what was there");
    }
    for (at, ends) in [(0, (0, 2)), (0, (2, 0)), (2, (0, 2)), (2, (2, 1))] {
        let (cdb, list) = stage.list(false, ends, 8);
        let response = stage.send(at, 0, &cdb, &list, 0)?;
        ensure!(response.sense_key() == UNREACHABLE, "{ends:?} asked of {at}: {response:?}");
    }
    // A token, through the one and used through the other.
    let (cdb, list) = copy::populate(2, false, 0, &[(0, 300)]);
    ensure!(stage.send(0, 0, &cdb, &list, 0)?.good());
    let told = stage.send(0, 1, &copy::token_information(2, 1024), &[], 1024)?;
    let (cdb, list) = copy::use_token(3, (false, false), &told.data[38..550], 0, &[(1000, 300)]);
    ensure!(stage.send(1, 1, &cdb, &list, 0)?.good());
    let read = stage.send(1, 0, &cdb::read16(1000, 300), &[], 300 * BLOCK)?;
    ensure!(read.good() && read.data == data, "what arrived is not what was there");
    let response = stage.send(2, 0, &cdb, &list, 0)?;
    ensure!(response.sense_key() == Some((5, 0x23, 0x04)), "another initiator's: {response:?}");
    stage.end()
}

#[test]
fn a_controller_that_the_reactor_does_not_serve_is_out_of_reach() -> Result<()> {
    let mut stage = Stage::new(2, &[(&[0, 1], 7), (&[1], 7)])?;
    let (cdb, list) = stage.list(false, (0, 1), 8);
    let answers = [0, 1].map(|queue| stage.send(0, queue, &cdb, &list, 0));
    let good = answers.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(good.iter().filter(|response| response.good()).count() == 1, "{good:?}");
    ensure!(good.iter().any(|response| response.sense_key() == UNREACHABLE), "{good:?}");
    let response = stage.send(1, 0, &cdb, &list, 0)?;
    ensure!(response.good(), "its own reactor serves both: {response:?}");
    stage.end()
}

#[test]
fn the_disk_of_another_controller_can_go_while_it_is_copied_to() -> Result<()> {
    for in_background in [false, true] {
        let both: &[usize] = &[0, 1];
        let mut stage = Stage::new(3, &[(both, 7), (both, 7)])?;
        let (cdb, list) = stage.list(in_background, (0, 1), 8000);
        stage.fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &cdb, &list, 0)).context("no room")?;
        stage.appliance.machine.rounds(20);
        stage.appliance.call(|target| target.remove_lun("second", 0, Some(0)))?;
        stage.appliance.machine.run();
        let (_, response) = stage.fronts[0].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        ensure!(response.good() == in_background, "{response:?}");
        ensure!(in_background || response.sense_key() == Some((0xA, 0, 6)), "{response:?}");
        let response = stage.send(0, 0, &copy::status(1, 64), &[], 64)?;
        ensure!(response.good() && response.data[5] == 0x60, "{response:?}");
        let response = stage.send(0, 0, &cdb, &list, 0)?;
        ensure!(response.sense_key() == UNREACHABLE, "it has gone: {response:?}");
        stage.end()?;
    }
    Ok(())
}
