//! Copies by tokens, rule by rule, of two guests on two disks that they share: what ends a token, and what does not; who may
//! use one; what becomes of commands that are ended.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use pollux_core::{Bdev, Shape};
use pollux_scsi::LogicalUnit;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::copy::{self, Blocks, Segment};
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, Tmf, cdb};
use pollux_tests::sim::{
    Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimWorld, backing, naa_of, unit_of, unit_with_medium,
};
use pollux_vhost_scsi::Patience;

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;
const NAMES: [&str; 2] = ["one", "other"];
const DISKS: usize = 2;
const SECOND: u64 = 1_000_000_000;

const REVOKED: (u8, u8, u8) = (5, 0x23, 0x06);
const UNKNOWN: (u8, u8, u8) = (5, 0x23, 0x04);

const fn lun(disk: usize) -> Lun {
    Lun::new(0, disk as u16)
}

struct Stage {
    appliance: SimAppliance,
    world: SimWorld,
    units: Vec<Arc<LogicalUnit>>,
    fronts: Vec<FrontEnd>,
}

impl Stage {
    fn new(seed: u64) -> Result<Stage> {
        let world = SimWorld::new(seed);
        world.set_latency(5_000, 200_000);
        let mut appliance = SimAppliance::new(&world, 3, seed)?;
        appliance.target.set_patience(PATIENT);
        let (mut units, mut backings) = (Vec::new(), Vec::new());
        for disk in 0..DISKS {
            let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * BLOCK as u64));
            let name = format!("disk{disk}");
            let unit = unit_with_medium(&name, &bdev);
            backings.push(backing(&name, &unit, &bdev));
            units.push(unit);
        }
        let mut fronts = Vec::new();
        for (name, number) in NAMES.iter().zip(0u64..) {
            let backings = backings.clone();
            appliance.call(move |target| -> Result<()> {
                target.create_controller(name, vec![0, 1, 2], 7 + number)?;
                for (disk, backing) in backings.into_iter().enumerate() {
                    target.add_lun(name, Some(0), disk as u16, backing)?;
                }
                Ok(target.start_controller(name)?)
            })?;
            let options = DriverOptions {
                request_queues: 3,
                queue_size: 64,
                memory: vec![(0x10_0000, 8 << 20)],
                seed: seed * 2 + number,
                ..DriverOptions::default()
            };
            fronts.push(appliance.connect(name, &options)?);
        }
        let mut stage = Stage { appliance, world, units, fronts };
        for guest in 0..NAMES.len() {
            for disk in 0..DISKS {
                stage.ready(guest, lun(disk))?;
            }
        }
        Ok(stage)
    }

    /// Its unit attentions are taken.
    fn ready(&mut self, guest: usize, at: Lun) -> Result<()> {
        for _ in 0..8 {
            if self.send_to(guest, at, &cdb::TEST_UNIT_READY, &[], 0)?.good() {
                return Ok(());
            }
        }
        Err(anyhow!("unit attentions without end"))
    }

    fn send_to(&mut self, guest: usize, at: Lun, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        let ticket = self.fronts[guest].submit(FIRST_REQUEST_QUEUE, &Command::new(at, cdb, out, in_len));
        self.appliance.machine.run();
        let (answered, response) = self.fronts[guest].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        ensure!(Some(answered) == ticket, "an answer to another command");
        Ok(response)
    }

    fn send(&mut self, guest: usize, disk: usize, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        self.send_to(guest, lun(disk), cdb, out, in_len)
    }

    fn good(&mut self, guest: usize, disk: usize, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Vec<u8>> {
        let response = self.send(guest, disk, cdb, out, in_len)?;
        ensure!(response.good(), "{cdb:02x?}: {response:?}");
        Ok(response.data)
    }

    fn fill(&mut self, guest: usize, disk: usize, (lba, count): Blocks, byte: u8) -> Result<()> {
        let data = vec![byte; count as usize * BLOCK];
        self.good(guest, disk, &cdb::write16(lba, count, false), &data, 0).map(drop)
    }

    fn token_with(&mut self, guest: usize, disk: usize, timeout_s: u32, ranges: &[Blocks]) -> Result<Vec<u8>> {
        let (cdb, list) = copy::populate(1, false, timeout_s, ranges);
        self.good(guest, disk, &cdb, &list, 0)?;
        let told = self.good(guest, disk, &copy::token_information(1, 1024), &[], 1024)?;
        ensure!(told[4..6] == [0x10, 1], "{told:02x?}");
        Ok(told[38..550].to_vec())
    }

    fn token(&mut self, guest: usize, disk: usize, ranges: &[Blocks]) -> Result<Vec<u8>> {
        self.token_with(guest, disk, 0, ranges)
    }

    /// Writes a block by a token.
    fn use_one(&mut self, guest: usize, disk: usize, token: &[u8]) -> Result<Response> {
        let (cdb, list) = copy::use_token(2, (false, false), token, 0, &[(4000, 1)]);
        self.send(guest, disk, &cdb, &list, 0)
    }

    fn abort(&mut self, guest: usize, disk: usize, ticket: u64) -> Result<()> {
        let driver = &mut self.fronts[guest].driver;
        driver.submit_tmf(Tmf::AbortTask, lun(disk).bytes(), ticket).context("no room")?;
        driver.queues[CONTROL_QUEUE].flush();
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        for front in self.fronts {
            self.appliance.disconnect(front);
        }
        self.appliance.shutdown()
    }
}

#[test]
fn whatever_changes_a_byte_of_it_ends_a_token_and_nothing_else_does() -> Result<()> {
    let mut stage = Stage::new(1)?;
    let names = [0, 1].map(|disk: usize| naa_of(&stage.units[disk]));
    stage.fill(0, 0, (100, 8), 7)?;
    let segment = |from, to| Segment { source: 1, destination: 0, blocks: 4, from, to };
    let (unmap, unmap_list) = cdb::unmap(&[(90, 5), (103, 1)]);
    let other = stage.token(1, 1, &[(0, 16)])?;
    type Change = (&'static str, Vec<u8>, Vec<u8>);
    let change = |name, (cdb, out): (&[u8], &[u8])| -> Change { (name, cdb.to_vec(), out.to_vec()) };
    let copied = |from, to| copy::lid1(0, 3, &names, &[segment(from, to)]);
    let (copy_cdb, copy_list) = copied(0, 97);
    let (token_cdb, token_list) = copy::use_token(3, (false, false), &other, 0, &[(99, 8)]);
    let (far_cdb, far_list) = copied(0, 200);
    // A block of what is there, so that it compares equal.
    let seven = [7; 2 * BLOCK];
    let changes = [
        change("WRITE", (&cdb::write16(107, 1, false), &[7; BLOCK])),
        change("WRITE SAME", (&cdb::write_same16(0, 0, false, true), &[])),
        change("UNMAP", (&unmap, &unmap_list)),
        change("COMPARE AND WRITE", (&cdb::compare_and_write(100, 1, false), &seven)),
        change("ORWRITE", (&cdb::or_write16(100, 2), &[0; 2 * BLOCK])),
        change("WRITE AND VERIFY", (&cdb::write_and_verify16(101, 1, 0), &[7; BLOCK])),
        change("EXTENDED COPY", (&copy_cdb, &copy_list)),
        change("WRITE USING TOKEN", (&token_cdb, &token_list)),
    ];
    for (name, cdb, out) in &changes {
        stage.fill(0, 0, (100, 8), 7)?;
        let token = stage.token(0, 0, &[(100, 8)])?;
        // Beside it, and reading.
        stage.fill(1, 0, (99, 1), 1)?;
        stage.fill(1, 0, (108, 1), 1)?;
        stage.good(1, 0, &far_cdb, &far_list, 0)?;
        stage.good(1, 0, &cdb::read16(96, 32), &[], 32 * BLOCK)?;
        stage.good(1, 0, &cdb::verify16(96, 32, 0), &[], 0)?;
        stage.good(1, 0, &cdb::sync10(), &[], 0)?;
        let response = stage.use_one(0, 1, &token)?;
        ensure!(response.good(), "before {name}: {response:?}");
        let written = stage.good(0, 1, &cdb::read16(4000, 1), &[], BLOCK)?;
        ensure!(written == [7; BLOCK], "before {name}: what arrived is not what was there");
        // By the other guest, through another controller.
        stage.good(1, 0, cdb, out, 0).with_context(|| (*name).to_owned())?;
        let response = stage.use_one(0, 1, &token)?;
        ensure!(response.sense_key() == Some(REVOKED), "after {name}: {response:?}");
        ensure!(!stage.units[0].is_claimed(), "after {name}: everybody goes the long way, for no token");
    }
    let token = stage.token(0, 0, &[(100, 8)])?;
    let smaller = Shape { num_blocks: 104, ..stage.units[0].shape().context("a device")? };
    stage.units[0].set_shape(Some(smaller));
    ensure!(stage.use_one(0, 1, &token)?.sense_key() == Some(REVOKED), "after the disk has shrunk");
    stage.end()
}

#[test]
fn a_format_ends_tokens() -> Result<()> {
    let mut stage = Stage::new(2)?;
    let token = stage.token(0, 0, &[(100, 8)])?;
    stage.appliance.call(|target| target.remove_lun("other", 0, Some(0)))?;
    stage.ready(0, lun(0))?;
    stage.good(0, 0, &[0x04, 0, 0, 0, 0, 0], &[], 0)?;
    let response = stage.use_one(0, 1, &token)?;
    ensure!(response.sense_key() == Some(REVOKED), "{response:?}");
    stage.end()
}

#[test]
fn a_token_that_nobody_uses_expires_and_the_short_way_is_open_again() -> Result<()> {
    let mut stage = Stage::new(3)?;
    let token = stage.token_with(0, 0, 10, &[(0, 8)])?;
    for _ in 0..3 {
        stage.world.tick(9 * SECOND);
        ensure!(stage.use_one(0, 1, &token)?.good(), "it was used nine seconds ago");
    }
    stage.world.tick(9 * SECOND);
    stage.good(1, 0, &cdb::read16(0, 1), &[], BLOCK)?;
    ensure!(stage.units[0].is_claimed(), "it is good still");
    stage.world.tick(2 * SECOND);
    stage.good(1, 0, &cdb::read16(0, 1), &[], BLOCK)?;
    ensure!(!stage.units[0].is_claimed(), "everybody goes the long way, for no token");
    let response = stage.use_one(0, 1, &token)?;
    ensure!(response.sense_key() == Some((5, 0x23, 0x07)), "{response:?}");
    // Where nobody else comes, who uses it finds out.
    let token = stage.token(0, 0, &[(0, 8)])?;
    stage.world.tick(61 * SECOND);
    let response = stage.use_one(0, 1, &token)?;
    ensure!(response.sense_key() == Some((5, 0x23, 0x07)), "{response:?}");
    stage.end()
}

#[test]
fn a_token_is_told_of_when_what_was_under_way_has_ended() -> Result<()> {
    for aborted in [false, true] {
        let mut stage = Stage::new(4)?;
        stage.world.fault(Fault::once(Kind::Write, Effect::Stuck));
        let write = cdb::write16(0, 64, false);
        let data = [9; 64 * BLOCK];
        stage.fronts[1].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &write, &data, 0)).context("no room")?;
        stage.appliance.machine.run();
        let (populate, list) = copy::populate(1, false, 0, &[(1000, 1), (63, 8)]);
        let queue = FIRST_REQUEST_QUEUE + 1;
        let ticket = stage.fronts[0].submit(queue, &Command::new(lun(0), &populate, &list, 0)).context("no room")?;
        stage.appliance.machine.run();
        ensure!(stage.fronts[0].poll(queue)?.is_none(), "a write is under way there");
        let told = stage.good(0, 0, &copy::token_information(1, 1024), &[], 1024)?;
        ensure!(told[..6] == [0, 0, 0, 32, 0x10, 0x11], "{:02x?}", &told[..36]);
        // Nobody waits for it, not even there.
        stage.good(0, 0, &cdb::read16(63, 1), &[], BLOCK)?;
        stage.good(0, 0, &cdb::write16(70, 1, false), &[5; BLOCK], 0)?;
        if aborted {
            stage.abort(0, 0, ticket)?;
            stage.appliance.machine.run();
            let (_, response) = stage.fronts[0].poll(queue)?.context("no answer")?;
            ensure!(response.response == 2, "{response:?}");
            ensure!(!stage.units[0].is_claimed(), "everybody goes the long way, for no token");
            stage.world.release();
            stage.appliance.machine.run();
        } else {
            stage.world.release();
            stage.appliance.machine.run();
            let (_, response) = stage.fronts[0].poll(queue)?.context("no answer")?;
            ensure!(response.good(), "{response:?}");
            let told = stage.good(0, 0, &copy::token_information(1, 1024), &[], 1024)?;
            let response = stage.use_one(0, 1, &told[38..550])?;
            ensure!(response.sense_key() == Some(REVOKED), "block 70 was changed: {response:?}");
        }
        let (_, response) = stage.fronts[1].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        ensure!(response.good(), "{response:?}");
        stage.end()?;
    }
    Ok(())
}

/// Copies that go on read, piece after piece, what a token is made of, and others wait for memory behind them.
#[test]
fn copies_that_come_later_hold_up_no_token() -> Result<()> {
    for seed in 1..=10 {
        let mut stage = Stage::new(seed)?;
        let names: Vec<_> = stage.units.iter().map(|unit| naa_of(unit)).collect();
        let whole = Segment { source: 0, destination: 1, blocks: 4000, from: 0, to: 0 };
        let (cdb, list) = copy::lid1(0, 3, &names, &[whole; 16]);
        // Reading is slow, so at each moment one of them is at it.
        stage.world.fault(Fault::always(Kind::Read, Effect::Delay(2_000_000)));
        for copy in 0..12 {
            let queue = FIRST_REQUEST_QUEUE + copy % 3;
            stage.fronts[1].submit(queue, &Command::new(lun(0), &cdb, &list, 0)).context("no room")?;
            stage.appliance.machine.rounds(20);
        }
        let (populate, list) = copy::populate(1, false, 0, &[(0, 1), (3999, 1)]);
        let queue = FIRST_REQUEST_QUEUE + seed as usize % 3;
        stage.fronts[0].submit(queue, &Command::new(lun(0), &populate, &list, 0)).context("no room")?;
        let mut answer = None;
        for _ in 0..2000 {
            stage.appliance.machine.rounds(1);
            answer = stage.fronts[0].poll(queue)?;
            if answer.is_some() {
                break;
            }
        }
        ensure!(answer.is_some_and(|(_, response)| response.good()), "seed {seed}: no token");
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + 3 {
            ensure!(stage.fronts[1].poll(queue)?.is_none(), "seed {seed}: a copy has ended before");
        }
        stage.world.heal();
        stage.appliance.machine.run();
        stage.end()?;
    }
    Ok(())
}

#[test]
fn tokens_that_are_being_made_hold_no_memory() -> Result<()> {
    let mut stage = Stage::new(6)?;
    stage.world.fault(Fault::once(Kind::Write, Effect::Stuck));
    let write = cdb::write16(0, 1, false);
    stage.fronts[1].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &write, &[9; BLOCK], 0)).context("no room")?;
    stage.appliance.machine.run();
    let queue = FIRST_REQUEST_QUEUE + 1;
    for list_id in 1..=8 {
        let (populate, list) = copy::populate(list_id, false, 0, &[(0, 8)]);
        stage.fronts[0].submit(queue, &Command::new(lun(0), &populate, &list, 0)).context("no room")?;
    }
    let compare = cdb::compare_and_write(0, 1, false);
    let ticket = stage.fronts[0].submit(queue, &Command::new(lun(1), &compare, &[0; 2 * BLOCK], 0));
    stage.appliance.machine.run();
    let (answered, response) = stage.fronts[0].poll(queue)?.context("no answer")?;
    ensure!(Some(answered) == ticket && response.good(), "{response:?}");
    ensure!(stage.fronts[0].poll(queue)?.is_none(), "a write is under way where the tokens are made");
    stage.world.release();
    stage.appliance.machine.run();
    for _ in 1..=8 {
        ensure!(stage.fronts[0].poll(queue)?.context("no answer")?.1.good());
    }
    stage.end()
}

#[test]
fn a_write_in_the_middle_of_a_copy_ends_it_and_an_abort_does() -> Result<()> {
    for aborted in [false, true] {
        let mut stage = Stage::new(5)?;
        stage.fill(0, 0, (0, 2000), 3)?;
        let token = stage.token(0, 0, &[(0, 2000)])?;
        // The third read takes long.
        stage.world.fault(Fault { range: 256 << 10..257 << 10, ..Fault::once(Kind::Read, Effect::Stuck) });
        let (cdb, list) = copy::use_token(2, (false, false), &token, 0, &[(0, 2000)]);
        let queue = FIRST_REQUEST_QUEUE + 1;
        let ticket = stage.fronts[0].submit(queue, &Command::new(lun(1), &cdb, &list, 0)).context("no room")?;
        stage.appliance.machine.run();
        let told = stage.good(0, 1, &copy::token_information(2, 64), &[], 64)?;
        ensure!((told[5], &told[16..24]) == (0x11, &512u64.to_be_bytes()[..]), "{told:02x?}");
        if aborted {
            stage.abort(0, 1, ticket)?;
        } else {
            // It is long written when the read ends.
            stage.fill(1, 0, (1999, 1), 8)?;
        }
        stage.appliance.machine.run();
        stage.world.release();
        stage.appliance.machine.run();
        let (_, response) = stage.fronts[0].poll(queue)?.context("no answer")?;
        let wanted = if aborted { response.response == 2 } else { response.sense_key() == Some(REVOKED) };
        ensure!(wanted, "{response:?}");
        let told = stage.good(0, 1, &copy::token_information(2, 64), &[], 64)?;
        let status = if aborted { 0x60 } else { 0x02 };
        ensure!((told[5], &told[16..24]) == (status, &512u64.to_be_bytes()[..]), "{told:02x?}");
        let read = stage.good(0, 1, &cdb::read16(0, 2000), &[], 2000 * BLOCK)?;
        ensure!(read[..512 * BLOCK].iter().all(|&byte| byte == 3), "what was told as written");
        ensure!(read[512 * BLOCK..].iter().all(|&byte| byte == 0), "and nothing else");
        ensure!(stage.use_one(0, 1, &token)?.good() == aborted, "an abort does not end the token");
        stage.end()?;
    }
    Ok(())
}

#[test]
fn a_token_of_another_vms_disk_is_like_one_that_does_not_exist() -> Result<()> {
    let mut stage = Stage::new(6)?;
    let bdev: Arc<dyn Bdev> = Arc::new(SimBdev::new(&stage.world, 1 << 20));
    let foreign = unit_of("foreign", &*bdev);
    let secret = backing("foreign", &foreign, &bdev);
    stage.appliance.call(|target| target.add_lun("other", Some(3), 0, secret))?;
    let theirs = Lun::new(3, 0);
    stage.ready(1, theirs)?;
    let (cdb, list) = copy::populate(1, false, 0, &[(0, 8)]);
    ensure!(stage.send_to(1, theirs, &cdb, &list, 0)?.good());
    let told = stage.send_to(1, theirs, &copy::token_information(1, 1024), &[], 1024)?.data;
    let token = told[38..550].to_vec();
    let mut of_nobody = token.clone();
    of_nobody[30] ^= 0xFF;
    let mut forged = stage.token(0, 0, &[(0, 8)])?;
    forged[500] ^= 1;
    for disk in 0..DISKS {
        stage.ready(0, lun(disk))?;
        let answers = [&token, &of_nobody, &forged].map(|token| stage.use_one(0, disk, token));
        let [theirs, nobodys, forged] = answers;
        let theirs = theirs?;
        ensure!(theirs == nobodys? && theirs == forged?, "{theirs:?}");
        ensure!(theirs.sense_key() == Some(UNKNOWN), "{theirs:?}");
    }
    stage.ready(1, lun(0))?;
    ensure!(stage.use_one(1, 0, &token)?.good(), "the VM that has the disk may");
    stage.end()
}

#[test]
fn a_token_outlives_its_makers_session_and_not_its_makers_lun() -> Result<()> {
    let mut stage = Stage::new(7)?;
    stage.fill(0, 0, (0, 2000), 6)?;
    let token = stage.token(0, 0, &[(0, 2000)])?;
    // A copy that nobody waits for goes with its session, the token does not.
    let (cdb, list) = copy::use_token(3, (true, false), &token, 0, &[(0, 2000)]);
    stage.fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(1), &cdb, &list, 0)).context("no room")?;
    stage.appliance.machine.rounds(30);
    let one = stage.fronts.remove(0);
    stage.appliance.disconnect(one);
    stage.appliance.machine.run();
    ensure!(stage.use_one(0, 1, &token)?.good(), "the other VM has the disk, too");
    let read = stage.good(0, 1, &cdb::read16(4000, 1), &[], BLOCK)?;
    ensure!(read == [6; BLOCK]);
    stage.appliance.call(|target| target.remove_lun("one", 0, Some(0)))?;
    ensure!(!stage.units[0].is_claimed(), "everybody goes the long way, for no token");
    stage.ready(0, lun(1))?;
    let response = stage.use_one(0, 1, &token)?;
    ensure!(response.sense_key() == Some(UNKNOWN), "{response:?}");
    stage.end()
}

#[test]
fn a_disk_can_go_while_a_token_of_it_is_made() -> Result<()> {
    let mut stage = Stage::new(8)?;
    stage.world.fault(Fault::once(Kind::Write, Effect::Stuck));
    let write = cdb::write16(0, 8, false);
    stage.fronts[1]
        .submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &write, &[1; 8 * BLOCK], 0))
        .context("no room")?;
    stage.appliance.machine.run();
    // The disk does not wait for what waits for another VM's write.
    stage.appliance.target.set_patience(Patience { requests: Duration::ZERO, ..PATIENT });
    let (populate, list) = copy::populate(1, false, 0, &[(0, 1)]);
    stage.fronts[0].submit(FIRST_REQUEST_QUEUE, &Command::new(lun(0), &populate, &list, 0)).context("no room")?;
    stage.appliance.machine.run();
    stage.appliance.call(|target| target.remove_lun("one", 0, Some(0)))?;
    stage.appliance.machine.run();
    let (_, response) = stage.fronts[0].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
    ensure!(response.sense_key() == Some((0xA, 0, 6)) || response.response != 0, "{response:?}");
    ensure!(!stage.units[0].is_claimed(), "everybody goes the long way, for no token");
    stage.world.release();
    stage.appliance.machine.run();
    let (_, response) = stage.fronts[1].poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
    ensure!(response.good(), "{response:?}");
    stage.end()
}
