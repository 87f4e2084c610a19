//! The worker's own memory, which commands of all VMs of a reactor use in turn: nobody finds in it what another VM had
//! there, and everybody gets some in the end.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_bdev::{Null, NullSpec};
use pollux_core::Bdev;
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Segment};
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, cdb};
use pollux_tests::sim::{PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_with_medium};

const BLOCK: usize = 512;
const BLOCKS: u64 = 8192;
const QUEUES: usize = 6;
/// A VM's disk, and its null disk.
const DISK: Lun = Lun::new(0, 0);
const NULL: Lun = Lun::new(0, 1);

struct Vm {
    front: FrontEnd,
    units: [Arc<LogicalUnit>; 2],
}

impl Vm {
    fn names(&self) -> [[u8; 16]; 2] {
        self.units.each_ref().map(|unit| naa_of(unit))
    }
}

/// So many VMs on one reactor, each with a disk and a null disk of its own.
fn stage(seed: u64, vms: usize) -> Result<(SimAppliance, Vec<Vm>)> {
    let null =
        NullSpec { name: "n".into(), block_size: 512, num_blocks: BLOCKS, physical_block_size: None, uuid: None };
    stage_with(seed, vms, |disk| [Arc::new(disk()), Arc::new(Null::new(&null))])
}

/// So many VMs on one reactor, each with two of its own.
fn stage_with(
    seed: u64,
    vms: usize,
    disks: impl Fn(&dyn Fn() -> SimBdev) -> [Arc<dyn Bdev>; 2],
) -> Result<(SimAppliance, Vec<Vm>)> {
    let world = SimWorld::new(seed);
    world.set_latency(5_000, 50_000);
    let mut appliance = SimAppliance::new(&world, 1, seed)?;
    appliance.target.set_patience(PATIENT);
    let mut made = Vec::new();
    for number in 0..vms {
        let disks = disks(&|| SimBdev::new(&world, BLOCKS * BLOCK as u64));
        let name = |kind: usize| format!("vm{number}-{kind}");
        let units = [0, 1].map(|kind| unit_with_medium(&name(kind), &disks[kind]));
        let luns = [0, 1].map(|kind| (0, kind as u16, backing(&name(kind), &units[kind], &disks[kind])));
        appliance.controller(&format!("vm{number}"), &luns)?;
        let options = DriverOptions { request_queues: QUEUES, seed: seed + number as u64, ..DriverOptions::default() };
        let front = appliance.connect(&format!("vm{number}"), &options)?;
        made.push(Vm { front, units });
    }
    for vm in &mut made {
        for lun in [DISK, NULL] {
            while !send(&mut appliance, vm, &Command::new(lun, &cdb::TEST_UNIT_READY, &[], 0))?.good() {}
        }
    }
    Ok((appliance, made))
}

fn send(appliance: &mut SimAppliance, vm: &mut Vm, command: &Command<'_>) -> Result<Response> {
    vm.front.submit(FIRST_REQUEST_QUEUE, command).context("room")?;
    appliance.machine.run();
    Ok(vm.front.poll(FIRST_REQUEST_QUEUE)?.context("an answer")?.1)
}

/// EXTENDED COPY of a VM's disk, by the numbers of its two.
fn copy_of(vm: &Vm, source: u16, destination: u16, blocks: u16) -> ([u8; 16], Vec<u8>) {
    copy::lid1(0, 3, &vm.names(), &[Segment { source, destination, blocks, from: 0, to: 4096 }])
}

fn end(mut appliance: SimAppliance, vms: Vec<Vm>) -> Result<()> {
    vms.into_iter().for_each(|vm| appliance.disconnect(vm.front));
    appliance.shutdown()
}

/// The null disk leaves what it is to read into as it is.
#[test]
fn what_another_vm_had_in_memory_is_not_copied_from_a_null_disk() -> Result<()> {
    let (mut appliance, mut vms) = stage(1, 2)?;
    let secret = [0x5E; 256 * BLOCK];
    let [one, other] = &mut vms[..] else { unreachable!("there are two") };
    ensure!(send(&mut appliance, one, &Command::new(DISK, &cdb::write16(0, 256, false), &secret, 0))?.good());
    let (cdb, list) = copy_of(one, 0, 0, 256);
    ensure!(send(&mut appliance, one, &Command::new(DISK, &cdb, &list, 0))?.good());
    // What was compared, too.
    let verify = cdb::verify16(0, 256, 1);
    ensure!(send(&mut appliance, one, &Command::new(DISK, &verify, &secret, 0))?.good());

    let looks = send(&mut appliance, other, &Command::new(NULL, &verify, &secret, 0))?;
    ensure!(looks.sense_key() == Some((0xE, 0x1D, 0)), "a null disk holds what another VM wrote: {looks:?}");
    let (cdb, list) = copy_of(other, 1, 0, 256);
    ensure!(send(&mut appliance, other, &Command::new(DISK, &cdb, &list, 0))?.good());
    let read = send(&mut appliance, other, &Command::new(DISK, &cdb::read16(4096, 256), &[], 256 * BLOCK))?;
    ensure!(read.good() && !read.data.contains(&0x5E), "another VM's data was copied");
    end(appliance, vms)
}

/// Others keep the memory busy with so many long commands each: `start` sends one of them to a queue.
fn everybody_gets_some(each: usize, start: impl Fn(&mut Vm, usize) -> Result<()>) -> Result<()> {
    // Four that fill the memory, and one that comes later.
    let (mut appliance, mut vms) = stage(2, 5)?;
    let mut late = vms.pop().context("a VM")?;
    for vm in &mut vms {
        (0..each).try_for_each(|number| start(vm, FIRST_REQUEST_QUEUE + number % QUEUES))?;
    }
    appliance.machine.rounds(200);
    let (cdb, list) = copy_of(&late, 0, 0, 2000);
    late.front.submit(FIRST_REQUEST_QUEUE, &Command::new(DISK, &cdb, &list, 0)).context("room")?;
    let answer = loop {
        if let Some((_, answer)) = late.front.poll(FIRST_REQUEST_QUEUE)? {
            break answer;
        }
        ensure!(appliance.machine.rounds(1), "at rest without an answer");
    };
    ensure!(answer.good(), "{answer:?}");
    let mut left = vms.len() * each;
    for number in 0..2 {
        for vm in &mut vms {
            for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
                while let Some((_, answer)) = vm.front.poll(queue)? {
                    ensure!(answer.good(), "{answer:?}");
                    left -= 1;
                }
            }
        }
        ensure!(number > 0 || left > 16, "{left} of the others' commands were left when the late one got its memory");
        appliance.machine.run();
    }
    ensure!(left == 0, "{left} were not answered");
    vms.push(late);
    end(appliance, vms)
}

#[test]
fn a_copy_that_comes_later_gets_memory_beside_long_copies() -> Result<()> {
    everybody_gets_some(6, |vm, queue| {
        let segment = Segment { source: 0, destination: 0, blocks: 4000, from: 0, to: 4096 };
        let (cdb, list) = copy::lid1(0, 3, &vm.names(), &[segment; 8]);
        vm.front.submit(queue, &Command::new(DISK, &cdb, &list, 0)).context("room").map(drop)
    })
}

#[test]
fn a_copy_gets_memory_beside_commands_that_look_at_data() -> Result<()> {
    everybody_gets_some(QUEUES * 30, |vm, queue| {
        let verify = cdb::verify16(0, 4096, 0);
        vm.front.submit(queue, &Command::new(DISK, &verify, &[], 0)).context("room").map(drop)
    })
}

/// What devices copy together goes past the worker's memory, however long it takes: file systems of four VMs that hang, or
/// keep all helpers busy, are not with the others, nor with what these VMs do beside that.
#[test]
fn copies_that_wait_for_helpers_keep_no_memory() -> Result<()> {
    for hang in [true, false] {
        let copying =
            |disk: &dyn Fn() -> SimBdev| [disk, disk].map(|disk| -> Arc<dyn Bdev> { Arc::new(disk().that_copies()) });
        let (mut appliance, mut vms) = stage_with(3, 5, copying)?;
        let helpers = appliance.machine.helpers();
        helpers.hang(hang);
        helpers.keep_busy(!hang);
        for vm in &mut vms[..4] {
            for queue in FIRST_REQUEST_QUEUE + 1..FIRST_REQUEST_QUEUE + 5 {
                let (cdb, list) = copy_of(vm, 0, 1, 2000);
                vm.front.submit(queue, &Command::new(DISK, &cdb, &list, 0)).context("room")?;
            }
        }
        appliance.machine.run();
        ensure!(helpers.pending() == 16, "{} copies are with the helpers", helpers.pending());
        for (number, vm) in vms.iter_mut().enumerate() {
            let looks = send(&mut appliance, vm, &Command::new(DISK, &cdb::verify16(0, 8, 0), &[], 0));
            let looks = looks.with_context(|| format!("VM {number} finds no memory (hang: {hang})"))?;
            ensure!(looks.good(), "{looks:?}");
        }
        helpers.hang(false);
        helpers.keep_busy(false);
        appliance.machine.run();
        for vm in &mut vms[..4] {
            for queue in FIRST_REQUEST_QUEUE + 1..FIRST_REQUEST_QUEUE + 5 {
                let (_, copied) = vm.front.poll(queue)?.context("a copy is not answered")?;
                ensure!(copied.good(), "{copied:?}");
            }
        }
        end(appliance, vms)?;
    }
    Ok(())
}
