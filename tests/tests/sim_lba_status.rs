//! GET LBA STATUS in the simulated world, on a disk that helper threads have to be asked about: what was written and
//! acknowledged before is told as mapped, what was unmapped is told as deallocated when nothing else happens, and a command
//! whose answer does not come can be aborted, reset, and left behind by its guest and its LUN.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pollux_core::Bdev;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{CONTROL_QUEUE, Command, DriverOptions, FIRST_REQUEST_QUEUE, Ticket, Tmf, cdb};
use pollux_tests::rng::Rng;
use pollux_tests::sim::{LUN, PATIENT, SimAppliance, SimBdev, SimWorld, backing, unit_with_medium};
use pollux_vhost_scsi::Patience;

const BLOCKS: u64 = 256;
const QUEUES: usize = 3;

fn for_seeds(few: u64, test: impl Fn(u64) -> Result<()>) -> Result<()> {
    let first = std::env::var("POLLUX_SIM_SEED").ok().and_then(|n| n.parse().ok());
    let count = std::env::var("POLLUX_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(few);
    first
        .map_or(0..count, |first| first..first + 1)
        .try_for_each(|seed| test(seed).with_context(|| format!("seed {seed} (POLLUX_SIM_SEED={seed} repeats it)")))
}

struct Scene {
    appliance: SimAppliance,
    bdev: SimBdev,
    world: SimWorld,
    front: FrontEnd,
    rng: Rng,
}

fn scene(seed: u64) -> Result<Scene> {
    let world = SimWorld::new(seed);
    let reactors = 1 + (seed % 3) as usize;
    let mut appliance = SimAppliance::new(&world, reactors, seed)?;
    let bdev = SimBdev::new(&world, BLOCKS * 512);
    let device: Arc<dyn Bdev> = Arc::new(bdev.clone());
    let unit = unit_with_medium("disk", &device);
    appliance.controller("vm", &[(0, 0, backing("disk", &unit, &device))])?;
    let memory = vec![(0x10_0000, 8 << 20)];
    let options = DriverOptions { request_queues: QUEUES, queue_size: 64, memory, seed, ..DriverOptions::default() };
    let front = appliance.connect("vm", &options)?;
    let mut scene = Scene { appliance, bdev, world, front, rng: Rng::new(seed ^ 0x1ba) };
    scene.settle()?;
    Ok(scene)
}

impl Scene {
    /// Takes the unit attentions.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..4 {
            self.front
                .submit(FIRST_REQUEST_QUEUE, &Command::new(LUN, &cdb::TEST_UNIT_READY, &[], 0))
                .context("room")?;
            self.appliance.machine.run();
            self.front.poll(FIRST_REQUEST_QUEUE)?.context("no answer")?;
        }
        Ok(())
    }

    fn queue(&mut self) -> usize {
        FIRST_REQUEST_QUEUE + self.rng.index(QUEUES)
    }

    fn good(&mut self, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Vec<u8>> {
        let queue = self.queue();
        self.front.submit(queue, &Command::new(LUN, cdb, out, in_len)).context("no room")?;
        self.appliance.machine.run();
        let (_, response) = self.front.poll(queue)?.context("no answer")?;
        ensure!(response.good(), "{cdb:02x?}: {} {:?}", response.status, response.sense_key());
        Ok(response.data)
    }

    fn ask(&mut self, queue: usize) -> Result<Ticket> {
        let cdb = cdb::get_lba_status16(0, 4096);
        self.front.submit(queue, &Command::new(LUN, &cdb, &[], 4096)).context("no room")
    }

    fn pending(&self) -> usize {
        self.appliance.machine.helpers().pending()
    }

    fn end(mut self) -> Result<()> {
        self.appliance.disconnect(self.front);
        self.appliance.shutdown()
    }
}

/// Whether each block from `first` on is mapped, as far as the answer at the front of the buffer goes.
fn told(data: &[u8], first: u64) -> Result<Vec<bool>> {
    let len = u32::from_be_bytes(data[..4].try_into()?) as usize;
    ensure!(len + 4 <= data.len() && len % 16 == 4, "{len} of {}", data.len());
    let (mut blocks, mut next) = (Vec::new(), first);
    for descriptor in data[8..len + 4].chunks(16) {
        let lba = u64::from_be_bytes(descriptor[..8].try_into()?);
        let count = u32::from_be_bytes(descriptor[8..12].try_into()?);
        ensure!(lba == next && count > 0 && descriptor[12] <= 1, "{descriptor:02x?} at {next}");
        blocks.extend((0..count).map(|_| descriptor[12] == 0));
        next += u64::from(count);
    }
    ensure!(first + blocks.len() as u64 <= BLOCKS, "more than there is");
    Ok(blocks)
}

#[test]
fn a_quiet_disk_is_told_as_it_is() -> Result<()> {
    for_seeds(10, |seed| {
        let mut scene = scene(seed)?;
        for _ in 0..40 {
            let blocks = scene.rng.between(1, 24);
            let lba = scene.rng.below(BLOCKS - blocks);
            if scene.rng.chance(1, 3) {
                let (cdb, list) = cdb::unmap(&[(lba, blocks as u32)]);
                scene.good(&cdb, &list, 0)?;
            } else {
                let data = vec![1; blocks as usize * 512];
                scene.good(&cdb::write10(lba as u32, blocks as u16, false), &data, 0)?;
            }
            let first = scene.rng.below(BLOCKS);
            let told = told(&scene.good(&cdb::get_lba_status16(first, 8192), &[], 8192)?, first)?;
            let (disk, end) = (scene.bdev.disk(), BLOCKS * 512);
            let is = |lba: u64| scene.world.disk(disk, |disk| disk.extent(lba * 512, end - lba * 512).mapped);
            let want: Vec<bool> = (first..BLOCKS).map(is).collect();
            ensure!(told == want, "from {first}: {told:?} is {want:?}");
        }
        scene.end()
    })
}

#[test]
fn what_was_acknowledged_before_is_told_under_load() -> Result<()> {
    for_seeds(10, |seed| {
        let mut scene = scene(seed)?;
        let mut written = [false; BLOCKS as usize];
        // Queue, ticket; what was written when it was asked, or the blocks that it writes.
        let mut asked: Vec<(usize, Ticket, Vec<bool>)> = Vec::new();
        let mut writes: Vec<(usize, Ticket, u64, u64)> = Vec::new();
        let mut answers = 0;
        for step in 0..400 {
            let queue = scene.queue();
            if step < 300 && scene.rng.chance(1, 2) {
                let blocks = scene.rng.between(1, 3);
                let lba = scene.rng.below(BLOCKS - blocks);
                let (cdb, data) = (cdb::write10(lba as u32, blocks as u16, false), vec![1; blocks as usize * 512]);
                if let Some(ticket) = scene.front.submit(queue, &Command::new(LUN, &cdb, &data, 0)) {
                    writes.push((queue, ticket, lba, blocks));
                }
            } else if step < 300 && asked.len() < 20 {
                asked.push((queue, scene.ask(queue)?, written.to_vec()));
            }
            let turns = scene.rng.below(5);
            if step < 300 {
                scene.appliance.machine.rounds(turns);
            } else {
                scene.appliance.machine.run();
            }
            let reactors = 1 + (seed % 3) as usize;
            ensure!(scene.pending() <= 2 * reactors, "{} chores of one guest", scene.pending());
            for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
                while let Some((ticket, response)) = scene.front.poll(queue)? {
                    ensure!(response.good(), "{:?}", response.sense_key());
                    let this = |of: &(usize, Ticket)| *of == (queue, ticket);
                    if let Some(at) = writes.iter().position(|(queue, ticket, ..)| this(&(*queue, *ticket))) {
                        let (_, _, lba, blocks) = writes.swap_remove(at);
                        written[lba as usize..(lba + blocks) as usize].fill(true);
                        continue;
                    }
                    let at = asked.iter().position(|(queue, ticket, _)| this(&(*queue, *ticket)));
                    let (.., before) = asked.swap_remove(at.context("an answer that nobody waits for")?);
                    let used = u32::from_be_bytes(response.data[..4].try_into()?) + 4;
                    ensure!(response.residual + used == 4096, "{} + {used}", response.residual);
                    let told = told(&response.data, 0)?;
                    let hidden = before.iter().zip(&told).position(|(written, told)| *written && !told);
                    ensure!(hidden.is_none(), "block {hidden:?} was written before");
                    answers += 1;
                }
            }
        }
        ensure!(asked.is_empty() && writes.is_empty() && answers > 20, "{answers}, {} missing", asked.len());
        scene.end()
    })
}

#[test]
fn a_question_without_an_answer_is_aborted_and_reset() -> Result<()> {
    for_seeds(10, |seed| {
        let mut scene = scene(seed)?;
        let helpers = scene.appliance.machine.helpers();
        helpers.hang(true);
        let mut asked = Vec::new();
        for _ in 0..20 {
            let queue = scene.queue();
            asked.push((queue, scene.ask(queue)?));
        }
        scene.appliance.machine.run();
        ensure!(scene.pending() <= 6, "one guest has {} chores", scene.pending());
        let (queue, ticket) = asked[scene.rng.index(asked.len())];
        let reset = scene.rng.chance(1, 2);
        let (function, tag) = if reset { (Tmf::LunReset, 0) } else { (Tmf::AbortTask, ticket) };
        scene.front.driver.submit_tmf(function, LUN.bytes(), tag).context("room")?;
        scene.front.driver.queues[CONTROL_QUEUE].flush();
        scene.front.driver.queues[CONTROL_QUEUE].kick();
        scene.appliance.machine.run();
        let (_, response, ..) =
            scene.front.driver.poll_raw(CONTROL_QUEUE).ok().flatten().context("the function hangs")?;
        ensure!(response[0] == 0, "{response:?}");
        let mut ended = Vec::new();
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
            while let Some((ticket, response)) = scene.front.poll(queue)? {
                ensure!(matches!(response.response, 2 | 4), "{}", response.response);
                ended.push((queue, ticket));
            }
        }
        if reset {
            ensure!(ended.len() == 20, "{} of 20 were reset", ended.len());
        } else {
            ensure!(ended == [(queue, ticket)], "{ended:?}");
        }
        helpers.hang(false);
        scene.appliance.machine.run();
        let mut good = 0;
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + QUEUES {
            while let Some((ticket, response)) = scene.front.poll(queue)? {
                ensure!(response.good() && !ended.contains(&(queue, ticket)), "answered twice");
                good += 1;
            }
        }
        ensure!(good + ended.len() == 20, "{good} answers");
        ensure!(scene.pending() == 0, "{} chores are left", scene.pending());
        scene.end()
    })
}

#[test]
fn guests_and_luns_go_while_nobody_answers() -> Result<()> {
    for_seeds(8, |seed| {
        let mut scene = scene(seed)?;
        let helpers = scene.appliance.machine.helpers();
        helpers.hang(true);
        for _ in 0..10 {
            let queue = scene.queue();
            scene.ask(queue)?;
        }
        scene.appliance.machine.run();
        let Scene { mut appliance, front, .. } = scene;
        if seed % 2 == 0 {
            appliance.disconnect(front);
        } else {
            let patience = Patience { requests: Duration::from_millis(10), ..Patience::default() };
            appliance.target.set_patience(patience);
            let removed = appliance.call(|target| target.remove_lun("vm", 0, None));
            let Ok(removed) = removed else { bail!("{removed:?}") };
            ensure!(removed.len() == 1, "{removed:?}");
            appliance.disconnect(front);
        }
        // What comes late meets nobody.
        helpers.hang(false);
        appliance.machine.run();
        ensure!(helpers.pending() == 0, "{} chores are left", helpers.pending());
        appliance.shutdown()
    })
}

/// A LUN goes under a guest with its queues full of commands that are away: the reactor ends them piece by piece and
/// serves others in between.
#[test]
fn what_leaves_in_great_numbers_is_ended_piece_by_piece() -> Result<()> {
    const MANY: usize = 8;
    let world = SimWorld::new(5);
    let mut appliance = SimAppliance::new(&world, 1, 5)?;
    appliance.target.set_patience(Patience { requests: Duration::from_millis(20), ..PATIENT });
    let device: Arc<dyn Bdev> = Arc::new(SimBdev::new(&world, BLOCKS * 512));
    let unit = unit_with_medium("disk", &device);
    appliance.controller("vm", &[(0, 0, backing("disk", &unit, &device))])?;
    let memory = vec![(0x10_0000, 64 << 20)];
    let options = DriverOptions { request_queues: MANY, queue_size: 1024, memory, ..DriverOptions::default() };
    let front = appliance.connect("vm", &options)?;
    let mut scene = Scene { appliance, bdev: SimBdev::new(&world, 512), world: world.clone(), front, rng: Rng::new(0) };
    scene.settle()?;
    let helpers = scene.appliance.machine.helpers();
    helpers.hang(true);
    let mut asked = 0;
    for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + MANY {
        let cdb = cdb::get_lba_status16(0, 64);
        while scene.front.submit(queue, &Command::new(LUN, &cdb, &[], 64)).is_some() {
            asked += 1;
        }
    }
    scene.appliance.machine.run();
    ensure!(asked > 1500 && scene.pending() == 2, "{asked} away, {} asked for", scene.pending());
    let (mut ended, mut most) = (0, 0);
    let target = Arc::clone(&scene.appliance.target);
    let mut take = |front: &mut FrontEnd| {
        let mut came = 0;
        for queue in FIRST_REQUEST_QUEUE..FIRST_REQUEST_QUEUE + MANY {
            while front.poll(queue).is_ok_and(|answer| answer.is_some()) {
                came += 1;
            }
        }
        (ended, most) = (ended + came, most.max(came));
        ended
    };
    let act = || {
        take(&mut scene.front);
    };
    scene.appliance.machine.call_beside(|| target.remove_lun("vm", 0, Some(0)), act)?;
    scene.appliance.machine.run();
    ensure!(take(&mut scene.front) == asked, "{ended} of {asked} were answered");
    // Two passes at most between two looks.
    ensure!(most <= 2 * 256, "{most} of {asked} in one go");
    helpers.hang(false);
    scene.end()
}
