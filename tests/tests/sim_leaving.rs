//! Queues and LUNs that go while something looks for their commands, pass by pass: it must look at no place that is gone.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Tmf, cdb};
use pollux_tests::sim::{Effect, Fault, Kind, PATIENT, SimAppliance, SimBdev, SimWorld, backing, unit_of};
use pollux_vhost_scsi::Backing;
use vhost::{VhostBackend as _, VringConfigData};

const LUN: Lun = Lun::new(0, 0);
const OTHER: Lun = Lun::new(1, 0);

fn clear(appliance: &mut SimAppliance, front: &mut FrontEnd, lun: Lun) -> Result<()> {
    for _ in 0..8 {
        front.submit(FIRST_REQUEST_QUEUE, &Command::new(lun, &[0; 6], &[], 0)).context("room")?;
        appliance.machine.run();
        if front.poll(FIRST_REQUEST_QUEUE)?.context("answer")?.1.good() {
            return Ok(());
        }
    }
    anyhow::bail!("unit attentions without end")
}

fn options(request_queues: usize) -> DriverOptions {
    DriverOptions { request_queues, queue_size: 1024, memory: vec![(0x10_0000, 64 << 20)], ..DriverOptions::default() }
}

/// [`LUN`] and [`OTHER`].
fn two_disks(world: &SimWorld) -> [(u8, u16, Backing); 2] {
    [(0, "disk"), (1, "other")].map(|(target, name)| {
        let disk: Arc<dyn Bdev> = Arc::new(SimBdev::new(world, 256 * 512));
        (target, 0, backing(name, &unit_of(name, &*disk), &disk))
    })
}

/// A LUN goes while a fence looks through the slots of its controller (`fence.rs`, `is_under_way`).
#[test]
fn a_lun_goes_while_a_fence_looks() -> Result<()> {
    for round in 1..120u64 {
        let world = SimWorld::new(round);
        world.set_latency(1000, 2000);
        let mut appliance = SimAppliance::new(&world, 1, round)?;
        appliance.target.set_patience(PATIENT);
        let luns = two_disks(&world);
        appliance.controller("vm2", &luns)?;
        appliance.controller("vm1", &luns[..1])?;
        let mut two = appliance.connect("vm2", &options(4))?;
        let mut one = appliance.connect("vm1", &DriverOptions::default())?;
        clear(&mut appliance, &mut two, LUN)?;
        clear(&mut appliance, &mut two, OTHER)?;
        clear(&mut appliance, &mut one, LUN)?;
        // Something in flight on each queue, so that all slots are looked through.
        world.fault(Fault::always(Kind::Write, Effect::Stuck));
        for queue in 0..4 {
            let write = cdb::write10(0, 1, false);
            let queue = FIRST_REQUEST_QUEUE + queue;
            two.submit(queue, &Command::new(OTHER, &write, &[1; 512], 0)).context("room")?;
        }
        appliance.machine.run();
        world.heal();
        let latency = 6000 + round * 500;
        world.set_latency(latency, latency);
        two.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &cdb::read10(0, 1), &[], 512)).context("room")?;
        appliance.machine.rounds(round % 3);
        let claim = cdb::compare_and_write(0, 1, false);
        one.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &claim, &[0; 1024], 0)).context("room")?;
        let target = Arc::clone(&appliance.target);
        appliance.machine.call_beside(|| target.remove_lun("vm2", 0, Some(0)), || {})?;
        world.release();
        appliance.machine.run();
        ensure!(one.poll(FIRST_REQUEST_QUEUE)?.is_some(), "no answer to the claim, round {round}");
        appliance.disconnect(one);
        appliance.disconnect(two);
        appliance.shutdown()?;
    }
    Ok(())
}

/// A queue is stopped and started again, smaller, while a reset looks through slots (`abort.rs`, `is_running`).
#[test]
fn a_queue_comes_back_smaller_while_a_reset_looks() -> Result<()> {
    const QUEUES: usize = 100;
    for seed in 1..20u64 {
        let world = SimWorld::new(seed);
        world.set_latency(100, 200);
        let mut appliance = SimAppliance::new(&world, 1, seed)?;
        appliance.target.set_patience(PATIENT);
        let luns = two_disks(&world);
        appliance.controller("vm", &luns)?;
        let mut front = appliance.connect("vm", &options(QUEUES))?;
        clear(&mut appliance, &mut front, LUN)?;
        clear(&mut appliance, &mut front, OTHER)?;
        world.fault(Fault::always(Kind::Write, Effect::Stuck));
        for queue in 1..QUEUES {
            let write = cdb::write10(0, 1, false);
            let queue = FIRST_REQUEST_QUEUE + queue;
            front.submit(queue, &Command::new(OTHER, &write, &[1; 512], 0)).context("room")?;
        }
        appliance.machine.run();
        world.set_latency(4_000, 5_000);
        for lba in 0..40 {
            let read = cdb::read10(lba, 1);
            front.submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &read, &[], 512)).context("room")?;
        }
        appliance.machine.rounds(2);
        front.driver.submit_tmf(Tmf::LunReset, LUN.bytes(), 0).context("no room for the reset")?;
        front.driver.queues[CONTROL_QUEUE].flush();
        let ring = &front.driver.queues[FIRST_REQUEST_QUEUE].ring;
        let [desc, avail, used] = ring.addresses().map(|gpa| front.driver.memory.user(gpa));
        let config = VringConfigData {
            queue_max_size: 16,
            queue_size: 16,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        let restart = || -> Result<()> {
            let base = front.stop_queue(FIRST_REQUEST_QUEUE)?;
            front.session.set_vring_num(FIRST_REQUEST_QUEUE, 16)?;
            front.session.set_vring_addr(FIRST_REQUEST_QUEUE, &config)?;
            front.session.set_vring_base(FIRST_REQUEST_QUEUE, base)?;
            front.start_queue_as_is(FIRST_REQUEST_QUEUE)
        };
        appliance.machine.call_beside(restart, || {})?;
        world.release();
        appliance.machine.run();
        let answer = front.driver.poll_raw(CONTROL_QUEUE).map_err(|why| anyhow::anyhow!("{why:?}"))?;
        ensure!(answer.is_some(), "no answer to the reset, seed {seed}");
        appliance.disconnect(front);
        appliance.shutdown()?;
    }
    Ok(())
}
