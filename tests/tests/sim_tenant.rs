//! A guest that cannot be let go, because its request is with a device that does not answer, reaches no disk of the
//! next tenant. In a binary of its own: its session waits for ever, and the simulator waits for every thread to sleep.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_core::{Bdev, Channel, Completion, Cx, Io, IoError, Next, OpenArgs, OpenError, Shape, Tag};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, Lun, cdb};
use pollux_tests::sim::{SimAppliance, SimBdev, SimWorld, backing, unit_of};
use pollux_vhost_scsi::Patience;

const LUN: Lun = Lun::new(0, 0);

fn put(front: &mut FrontEnd, queue: usize, cdb: &[u8], in_len: usize) -> Result<()> {
    front.driver.submit(queue, &Command::new(LUN, cdb, &[], in_len)).context("no room")?;
    front.driver.queues[queue].flush();
    Ok(())
}

/// A device that never answers and cannot be told to.
struct Hung(Shape);
struct HungChannel;

impl Bdev for Hung {
    fn shape(&self) -> Shape {
        self.0
    }
    fn open(&self, _args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(HungChannel))
    }
}

impl Channel for HungChannel {
    fn depth(&self) -> u32 {
        8
    }
    fn attach(&mut self, _cx: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }
    fn detach(&mut self, _cx: &mut Cx<'_>) {}
    fn submit(&mut self, _io: Io, _cx: &mut Cx<'_>) {}
    fn poll(&mut self, _cx: &mut Cx<'_>, _done: &mut Vec<Completion>) {}
    fn next(&self) -> Next {
        Next::Ring
    }
    fn cancel(&mut self, _tag: Tag, _cx: &mut Cx<'_>) {}
}

#[test]
fn a_guest_that_cannot_be_let_go_reaches_no_disk_of_the_next_tenant() -> Result<()> {
    let world = SimWorld::new(1);
    let mut appliance = SimAppliance::new(&world, 1, 1)?;
    let short = Duration::from_millis(200);
    appliance.target.set_patience(Patience {
        requests: short,
        cancelled: short,
        sessions: short,
        ..Patience::default()
    });
    let secret = SimBdev::new(&world, 4096 * 512);
    world.disk(secret.disk(), |disk| disk.write(0, &[0x53; 512], true));
    let hung: Arc<dyn Bdev> = Arc::new(Hung(secret.shape()));
    let unit = unit_of("hung", &*hung);
    appliance.controller("old", &[(0, 0, backing("hung", &unit, &hung))])?;
    let mut front = appliance.connect("old", &DriverOptions { request_queues: 2, ..DriverOptions::default() })?;
    for _ in 0..4 {
        put(&mut front, 2, &cdb::TEST_UNIT_READY, 0)?;
        appliance.machine.run();
        front.poll(2)?.context("no answer")?;
    }
    put(&mut front, 2, &cdb::read10(0, 1), 512)?;
    appliance.machine.run();
    for _ in 0..3 {
        let deleted = appliance.call(|target| target.delete_controller("old", true));
        ensure!(deleted.is_err(), "a request is in flight on a device that does not answer");
    }
    let bdev: Arc<dyn Bdev> = Arc::new(secret.clone());
    let unit = unit_of("secret", &*bdev);
    appliance.controller("new", &[(0, 0, backing("secret", &unit, &bdev))])?;
    for _ in 0..4 {
        put(&mut front, 3, &cdb::read10(0, 1), 512)?;
        appliance.machine.run();
        if let Some((_, response)) = front.poll(3)? {
            ensure!(!response.good() && response.data.iter().all(|&byte| byte != 0x53), "{response:?}");
        }
    }
    // The session's thread waits for the device for ever; a test that returned would wait for it, too.
    let _for_ever = std::mem::ManuallyDrop::new((appliance, front));
    Ok(())
}
