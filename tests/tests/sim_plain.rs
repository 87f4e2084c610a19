//! The everyday READ or WRITE takes a short way through the worker (`vhost_scsi/src/plain.rs`). To the guest it has to be
//! the same as the long one.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, Framing, Lun, Response, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{SimAppliance, SimBdev, SimWorld, backing, unit_of};

const BLOCKS: u64 = 512;
const FLAT: Lun = Lun::new(0, 0);
/// The same unit by another name. Only a LUN field that is that of the request before goes the short way.
const PERIPHERAL: Lun = Lun { target: 0, lun: 0, peripheral: true };

type Parts = (SimWorld, SimAppliance, Vec<Arc<dyn Bdev>>);

fn appliance(disks: usize) -> Result<Parts> {
    let world = SimWorld::new(1);
    let appliance = SimAppliance::new(&world, 1, 1)?;
    let disk = |_| Arc::new(SimBdev::new(&world, BLOCKS * 512)) as Arc<dyn Bdev>;
    let bdevs = (0..disks).map(disk).collect();
    Ok((world, appliance, bdevs))
}

fn run(a: &mut SimAppliance, front: &mut FrontEnd, command: &Command<'_>) -> Result<Response> {
    front.submit(2, command).context("no room")?;
    a.machine.run();
    Ok(front.poll(2)?.context("no answer")?.1)
}

/// READ and WRITE, mostly good: with flags, at the edges of the medium, with buffers too large and too small.
fn random_command(rng: &mut Rng) -> (Vec<u8>, Vec<u8>, usize) {
    let count = if rng.chance(1, 16) { 0 } else { rng.between(1, 24) };
    let lba = if rng.chance(1, 8) { BLOCKS - rng.below(12) } else { rng.below(BLOCKS - 24) };
    let (write, long) = (rng.chance(1, 2), rng.chance(1, 2));
    let mut cdb = match (write, long) {
        (false, false) => cdb::read10(lba as u32, count as u16).to_vec(),
        (false, true) => cdb::read16(lba, count as u32).to_vec(),
        (true, false) => cdb::write10(lba as u32, count as u16, rng.chance(1, 4)).to_vec(),
        (true, true) => cdb::write16(lba, count as u32, rng.chance(1, 4)).to_vec(),
    };
    if rng.chance(1, 8) {
        // DPO, or what a disk without protection information refuses, or bytes that mean something else.
        let at = [1, 1, 6, cdb.len() - 1][rng.index(4)];
        cdb[at] |= 1 << rng.below(8);
    }
    let len = match rng.below(8) {
        0 => count as usize * 512 + 512,
        1 => (count as usize * 512).saturating_sub(512),
        _ => count as usize * 512,
    };
    let both = rng.chance(1, 32);
    let out = if write || both { (0..len).map(|_| rng.below(256) as u8).collect() } else { Vec::new() };
    let in_len = if !write || both { len } else { 0 };
    (cdb, out, in_len)
}

/// What a guest hears, that names the unit by turns or always in the same way.
fn answers(seed: u64, alternate: bool, options: &DriverOptions) -> Result<Vec<Response>> {
    let (_world, mut appliance, bdevs) = appliance(1)?;
    let unit = unit_of("vm", &*bdevs[0]);
    appliance.controller("vm", &[(0, 0, backing("vm", &unit, &bdevs[0]))])?;
    let mut front = appliance.connect("vm", options)?;
    let mut rng = Rng::new(seed);
    let mut heard = Vec::new();
    for round in 0..300 {
        let (cdb, out, in_len) = random_command(&mut rng);
        let lun = if alternate && round % 2 == 1 { PERIPHERAL } else { FLAT };
        let mut framing = Framing::PLAIN;
        (framing.merge_out, framing.merge_in) = (rng.chance(1, 4), rng.chance(1, 4));
        framing.skew = if rng.chance(1, 8) { 4 } else { 0 };
        let command = Command { framing, ..Command::new(lun, &cdb, &out, in_len) };
        heard.push(run(&mut appliance, &mut front, &command)?);
    }
    appliance.disconnect(front);
    appliance.shutdown()?;
    Ok(heard)
}

#[test]
fn the_short_way_and_the_long_way_answer_alike() -> Result<()> {
    for seed in 1..=6 {
        let indirect = seed % 2 == 0;
        let options = DriverOptions { queue_size: 128, indirect, ..DriverOptions::default() };
        let (short, long) = (answers(seed, false, &options)?, answers(seed, true, &options)?);
        for (at, (short, long)) in short.iter().zip(&long).enumerate() {
            ensure!(short == long, "seed {seed}, command {at}: {short:?} and {long:?}");
        }
        let good = short.iter().filter(|response| response.good()).count();
        ensure!((100..300).contains(&good), "{good} of 300 commands were good");
    }
    Ok(())
}

#[test]
fn the_short_way_ends_where_a_lun_has_gone() -> Result<()> {
    let (_world, mut appliance, bdevs) = appliance(2)?;
    let units = [unit_of("a", &*bdevs[0]), unit_of("b", &*bdevs[1])];
    appliance.controller("vm", &[(0, 0, backing("a", &units[0], &bdevs[0]))])?;
    let mut front = appliance.connect("vm", &DriverOptions::default())?;
    let read = cdb::read10(7, 1);
    let read = Command::new(FLAT, &read, &[], 512);
    let write = cdb::write10(7, 1, false);
    let data = [0xa5; 512];
    let write = Command::new(FLAT, &write, &data, 0);
    while !run(&mut appliance, &mut front, &write)?.good() {}
    ensure!(run(&mut appliance, &mut front, &read)?.data == data, "the disk keeps what was written");
    appliance.call(|target| target.remove_lun("vm", 0, None))?;
    let gone = run(&mut appliance, &mut front, &read)?;
    ensure!(gone.response == 3, "a target without units is a bad target: {gone:?}");
    let backing = backing("b", &units[1], &bdevs[1]);
    appliance.call(|target| target.add_lun("vm", Some(0), 0, backing))?;
    let first = run(&mut appliance, &mut front, &read)?;
    ensure!(first.sense_key().is_some_and(|(key, ..)| key == 6), "a new unit has an attention: {first:?}");
    while !run(&mut appliance, &mut front, &read)?.good() {}
    ensure!(run(&mut appliance, &mut front, &read)?.data == [0; 512], "the new disk is empty");
    appliance.disconnect(front);
    appliance.shutdown()
}
