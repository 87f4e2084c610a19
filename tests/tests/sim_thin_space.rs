//! A thin pool that is full, through a virtqueue: writes wait for space, but not so many that what would give space back
//! finds no place; what is mapped is written meanwhile.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_bdev::thin::store::{Blocking, CreateParams};
use pollux_bdev::thin::{Pool, PoolOptions};
use pollux_bdev::{Ram, RamSpec};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Response, cdb};
use pollux_tests::sim::{SimAppliance, SimWorld, backing, unit_of};
use pollux_vhost_scsi::HostedId;
use uuid::Uuid;

const LUN: Lun = Lun::new(0, 0);
const MIB: u64 = 1 << 20;
/// Blocks of a cluster.
const CLUSTER: u32 = 128;
/// SPACE ALLOCATION FAILED WRITE PROTECT, of DATA PROTECT.
const FULL: (u8, u16) = (7, 0x2707);

struct Scene {
    appliance: SimAppliance,
    front: FrontEnd,
    pool: Pool,
    engine: HostedId,
    answers: Vec<(u64, Response)>,
}

/// A small pool with one volume that is larger, and a guest with one queue of so many slots.
fn scene(slots: u16) -> Result<Scene> {
    let world = SimWorld::new(1);
    let spec = RamSpec {
        name: "base".into(),
        block_size: 512,
        num_blocks: 8 * MIB / 512,
        physical_block_size: None,
        uuid: None,
    };
    let base: Arc<dyn Bdev> = Arc::new(Ram::new(&spec)?);
    let params = CreateParams {
        name: "pool".into(),
        uuid: Uuid::from_u128(1),
        cluster_size: 64 << 10,
        created: 1,
        overcommit: 0,
        salt: 1,
        force: false,
    };
    let (mut ring, mut wait) = (world.ring(), |_: &mut dyn pollux_core::Ring| world.tick(1000));
    Pool::create(&mut Blocking::new(&*base, &mut ring, &mut wait)?, &params)?;
    let options = PoolOptions { reactors: 2, patience_ns: 0, salt: 2, ..PoolOptions::default() };
    let (pool, engine) = Pool::open(base.clone(), &mut Blocking::new(&*base, &mut ring, &mut wait)?, &options)?;
    drop(ring);
    let mut appliance = SimAppliance::new(&world, 2, 1)?;
    let engine = appliance.call(|target| target.host(1, engine)).map_err(|refused| anyhow::anyhow!("{refused}"))?;
    let volume = Uuid::from_u128(10);
    appliance.call(|_| pool.create_volume(volume, "v", 64 * MIB, 0, 1))?;
    let bdev: Arc<dyn Bdev> = Arc::new(pool.volume(volume).context("the volume is there")?);
    appliance.controller("vm", &[(0, 0, backing("v", &unit_of("v", &*bdev), &bdev))])?;
    let front = appliance.connect("vm", &DriverOptions { queue_size: slots, ..DriverOptions::default() })?;
    let mut scene = Scene { appliance, front, pool, engine, answers: Vec::new() };
    for _ in 0..4 {
        scene.one(&cdb::TEST_UNIT_READY, &[])?;
    }
    Ok(scene)
}

impl Scene {
    fn submit(&mut self, cdb: &[u8], out: &[u8]) -> Result<u64> {
        let ticket =
            self.front.driver.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, cdb, out, 0)).context("no room")?;
        self.front.driver.queues[FIRST_REQUEST_QUEUE].flush();
        Ok(ticket)
    }

    fn write(&mut self, cluster: u32) -> Result<u64> {
        self.submit(&cdb::write10(cluster * CLUSTER, 8, false), &[7; 4096])
    }

    fn unmap(&mut self, cluster: u32, clusters: u32) -> Result<u64> {
        let (cdb, list) = cdb::unmap(&[(u64::from(cluster * CLUSTER), clusters * CLUSTER)]);
        self.submit(&cdb, &list)
    }

    /// Lets everything happen that happens without time.
    fn run(&mut self) -> Result<()> {
        self.appliance.machine.rounds(2000);
        while let Some(answer) = self.front.poll(FIRST_REQUEST_QUEUE)? {
            self.answers.push(answer);
        }
        Ok(())
    }

    /// Lets time pass until so many are answered.
    fn run_until(&mut self, answers: usize) -> Result<()> {
        for _ in 0..10_000 {
            self.run()?;
            if self.answers.len() >= answers {
                return Ok(());
            }
        }
        anyhow::bail!("{} of {answers} are answered", self.answers.len())
    }

    fn one(&mut self, cdb: &[u8], out: &[u8]) -> Result<Response> {
        self.answers.clear();
        self.submit(cdb, out)?;
        self.run_until(1)?;
        Ok(self.answers.remove(0).1)
    }

    /// Writes into cluster after cluster until there is no space; how many have been written.
    fn fill(&mut self) -> Result<u32> {
        for cluster in 0.. {
            let answer = self.one(&cdb::write10(cluster * CLUSTER, 8, false), &[1; 4096])?;
            if answer.status != 0 {
                ensure!(code(&answer) == FULL, "{answer:?}");
                return Ok(cluster);
            }
        }
        unreachable!("the volume is larger than the pool")
    }

    fn end(mut self) -> Result<()> {
        self.appliance.disconnect(self.front);
        self.appliance.call(|target| target.delete_controller("vm", true))?;
        self.appliance.call(|target| target.evict(self.engine)).map(drop).map_err(|why| anyhow::anyhow!("{why}"))?;
        self.appliance.shutdown()
    }
}

fn code(answer: &Response) -> (u8, u16) {
    let sense = &answer.sense;
    (sense[2] & 0x0f, u16::from_be_bytes([sense[12], sense[13]]))
}

fn with_a_queue_of(slots: u16, wait: usize) -> Result<()> {
    let mut scene = scene(slots)?;
    let clusters = scene.fill()?;
    ensure!(clusters > 50, "{clusters}");
    scene.pool.set_patience(u64::MAX);
    scene.answers.clear();
    let all = usize::from(slots).min(120);
    let tickets = (0..all as u32).map(|nth| scene.write(clusters + nth)).collect::<Result<Vec<u64>>>()?;
    scene.run_until(all - wait)?;
    scene.run()?;
    ensure!(scene.answers.len() == all - wait, "{} of {all} were refused", scene.answers.len());
    for (ticket, answer) in std::mem::take(&mut scene.answers) {
        ensure!(code(&answer) == FULL && tickets[wait..].contains(&ticket), "{ticket}: {answer:?}");
    }
    // What is mapped is written, read and given back; then those that waited go on.
    scene.write(0)?;
    scene.run_until(1)?;
    ensure!(scene.answers.remove(0).1.status == 0);
    scene.unmap(0, 40)?;
    scene.run_until(1 + wait)?;
    ensure!(scene.answers.iter().all(|(_, answer)| answer.status == 0), "{:?}", scene.answers);
    scene.end()
}

#[test]
fn writes_that_wait_for_space_hold_half_of_a_small_queue() -> Result<()> {
    with_a_queue_of(16, 8)
}

#[test]
fn and_fewer_of_a_large_one_as_guests_send_less_than_its_size_to_one_disk() -> Result<()> {
    with_a_queue_of(256, 32)
}
