//! One guest cannot starve another on its reactor. Judged by counts: what the device serves for the noisy guest between a
//! polite guest's request and its answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use pollux_core::{Bdev, Channel, Completion, Cx, Discard, Io, IoError, Next, Op, OpenArgs, OpenError, Shape, Tag};
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{Command, DriverOptions, FIRST_REQUEST_QUEUE, Lun, Tmf, cdb};
use pollux_tests::sim::{SimAppliance, SimWorld, backing, unit_of};

const LUN: Lun = Lun::new(0, 0);
const MIB: u64 = 1 << 20;
/// Blocks of 512 bytes in a TiB.
const TIB: u64 = 1 << 31;

/// A device that serves requests one by one, in order, and writes down what it served. Moves no data.
#[derive(Clone)]
struct Metered {
    depth: u32,
    /// How many it serves in a poll; 0: it hangs.
    pace: Arc<Mutex<usize>>,
    served: Arc<Mutex<Vec<(Op, u64)>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metered {
    fn new(depth: u32) -> Metered {
        Metered { depth, pace: Arc::new(Mutex::new(1)), served: Arc::default() }
    }

    fn set_pace(&self, pace: usize) {
        *lock(&self.pace) = pace;
    }

    fn count(&self) -> usize {
        lock(&self.served).len()
    }

    /// Requests of this kind and at least this size among those served from `since` on.
    fn served(&self, since: usize, op: Op, least: u64) -> usize {
        lock(&self.served)[since..].iter().filter(|(served, len)| *served == op && *len >= least).count()
    }
}

impl Bdev for Metered {
    fn shape(&self) -> Shape {
        Shape {
            block_size: 512,
            physical_block_size: 512,
            num_blocks: TIB,
            read_only: false,
            volatile_cache: true,
            discard: Some(Discard { granularity: 512, alignment: 0, reads_zero: true }),
            optimal_io: 0,
            rotation_rate: 1,
            atomic_write: None,
        }
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let device = self.clone();
        Ok(Box::new(MeteredChannel { depth: self.depth.min(args.depth), device, queue: VecDeque::new() }))
    }
}

struct MeteredChannel {
    depth: u32,
    device: Metered,
    queue: VecDeque<(Io, bool)>,
}

impl Channel for MeteredChannel {
    fn depth(&self) -> u32 {
        self.depth
    }
    fn attach(&mut self, _cx: &mut Cx<'_>) -> Result<(), IoError> {
        Ok(())
    }
    fn detach(&mut self, _cx: &mut Cx<'_>) {}
    fn submit(&mut self, io: Io, _cx: &mut Cx<'_>) {
        self.queue.push_back((io, false));
        assert!(self.queue.len() <= self.depth as usize, "more than {} requests in flight", self.depth);
    }
    fn poll(&mut self, _cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.queue.retain(|(io, cancelled)| {
            if *cancelled {
                done.push(Completion { tag: io.tag, result: Err(IoError::Aborted) });
            }
            !cancelled
        });
        for _ in 0..*lock(&self.device.pace) {
            let Some((io, _)) = self.queue.pop_front() else { break };
            lock(&self.device.served).push((io.op, io.len));
            done.push(Completion { tag: io.tag, result: Ok(()) });
        }
    }
    fn next(&self) -> Next {
        let idle = *lock(&self.device.pace) == 0 && !self.queue.iter().any(|(_, cancelled)| *cancelled);
        if self.queue.is_empty() || idle { Next::Idle } else { Next::Now }
    }
    fn cancel(&mut self, tag: Tag, _cx: &mut Cx<'_>) {
        for (io, cancelled) in &mut self.queue {
            *cancelled |= io.tag == tag;
        }
    }
}

/// A guest that keeps a number of equal commands in flight on each queue.
struct Guest {
    front: FrontEnd,
    cdb: Vec<u8>,
    out: Vec<u8>,
    in_len: usize,
    depth: usize,
    answered: usize,
}

impl Guest {
    fn connect(appliance: &mut SimAppliance, ctrlr: &str, queues: usize, memory: u64) -> Result<Guest> {
        let options = DriverOptions {
            request_queues: queues,
            queue_size: 1024,
            memory: vec![(0x10_0000, memory)],
            ..DriverOptions::default()
        };
        let front = appliance.connect(ctrlr, &options)?;
        let mut guest =
            Guest { front, cdb: cdb::TEST_UNIT_READY.into(), out: Vec::new(), in_len: 0, depth: 1, answered: 0 };
        // What a new nexus is told first.
        for _ in 0..4 {
            guest.act()?;
            appliance.machine.run();
        }
        guest.act()?;
        appliance.machine.run();
        guest.take()?;
        Ok(guest)
    }

    fn reads(&mut self, depth: usize, bytes: u64) {
        (self.depth, self.cdb, self.in_len) = (depth, cdb::read10(0, (bytes / 512) as u16).into(), bytes as usize);
        self.out.clear();
    }

    fn writes(&mut self, depth: usize, bytes: u64) {
        (self.depth, self.cdb, self.in_len) = (depth, cdb::write10(0, (bytes / 512) as u16, false).into(), 0);
        self.out = vec![7; bytes as usize];
    }

    fn unmaps(&mut self, depth: usize, blocks: u32) {
        let (cdb, list) = cdb::unmap(&[(0, blocks)]);
        (self.depth, self.cdb, self.out, self.in_len) = (depth, cdb.into(), list, 0);
    }

    fn take(&mut self) -> Result<()> {
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while let Some((_, response)) = self.front.poll(queue)? {
                ensure!(response.response == 0, "{response:?}");
                self.answered += 1;
            }
        }
        Ok(())
    }

    /// Takes answers and fills up.
    fn act(&mut self) -> Result<()> {
        self.take()?;
        for queue in FIRST_REQUEST_QUEUE..self.front.driver.queues.len() {
            while self.front.driver.in_flight(queue) < self.depth {
                let command = Command::new(LUN, &self.cdb, &self.out, self.in_len);
                self.front.driver.submit(queue, &command).context("no room")?;
            }
            self.front.driver.queues[queue].flush();
        }
        Ok(())
    }
}

/// One reactor, and two controllers with one disk: the noisy guest's and the polite one's.
fn shared(disk: &Metered) -> Result<SimAppliance> {
    let mut appliance = SimAppliance::new(&SimWorld::new(1), 1, 1)?;
    let bdev: Arc<dyn Bdev> = Arc::new(disk.clone());
    let unit = unit_of("disk", &*bdev);
    for ctrlr in ["noisy", "polite"] {
        appliance.controller(ctrlr, &[(0, 0, backing("disk", &unit, &bdev))])?;
    }
    Ok(appliance)
}

fn end(mut appliance: SimAppliance, guests: Vec<Guest>) -> Result<()> {
    for guest in guests {
        appliance.disconnect(guest.front);
    }
    appliance.shutdown()
}

/// Lets the polite guest make one request at a time, `times` in all, beside the noisy one; the most that `noise` counted
/// from a request to its answer.
fn most_noise(
    appliance: &mut SimAppliance,
    noisy: &mut Guest,
    polite: &mut Guest,
    times: usize,
    disk: &Metered,
    noise: impl Fn(usize) -> usize,
) -> Result<usize> {
    let mut most = 0;
    for _ in 0..times {
        let (since, before) = (disk.count(), polite.answered);
        polite.act()?;
        while polite.answered == before {
            noisy.act()?;
            appliance.machine.rounds(1);
            polite.take()?;
            ensure!(disk.count() < since + 10_000, "the polite guest starves");
        }
        most = most.max(noise(since));
    }
    Ok(most)
}

#[test]
fn a_small_request_waits_for_a_bounded_number_of_large_bytes() -> Result<()> {
    let disk = Metered::new(256);
    let mut appliance = shared(&disk)?;
    let mut polite = Guest::connect(&mut appliance, "polite", 1, 8 * MIB)?;
    let mut noisy = Guest::connect(&mut appliance, "noisy", 1, 160 * MIB)?;
    polite.reads(1, 4096);
    noisy.writes(128, MIB);
    for _ in 0..100 {
        noisy.act()?;
        appliance.machine.rounds(1);
    }
    let most =
        most_noise(&mut appliance, &mut noisy, &mut polite, 10, &disk, |since| disk.served(since, Op::Write, MIB))?;
    // 16 MiB may be with the device, and one may be next in line.
    ensure!((8..=18).contains(&most), "{most} MiB of another guest were written first");
    end(appliance, vec![noisy, polite])
}

#[test]
fn queues_of_large_and_small_requests_share_a_device_by_what_they_cost() -> Result<()> {
    let disk = Metered::new(32);
    let mut appliance = shared(&disk)?;
    let mut polite = Guest::connect(&mut appliance, "polite", 1, 8 * MIB)?;
    let mut noisy = Guest::connect(&mut appliance, "noisy", 1, 80 * MIB)?;
    polite.reads(64, 4096);
    noisy.writes(64, MIB);
    // Several end in one pass: what comes free is dealt out before any ring is looked at again.
    disk.set_pace(8);
    let mut since = 0;
    for round in 0..1000 {
        if round == 200 {
            since = disk.count();
        }
        noisy.act()?;
        polite.act()?;
        appliance.machine.rounds(1);
    }
    let (large, small) = (disk.served(since, Op::Write, MIB), disk.served(since, Op::Read, 4096));
    // A request costs one slot and one for each 64 KiB.
    let share = small as f64 / (17 * large) as f64;
    ensure!((0.8..1.25).contains(&share), "{large} large requests and {small} small ones");
    end(appliance, vec![noisy, polite])
}

#[test]
fn a_guest_that_aborts_all_the_time_puts_nothing_in_front_of_others() -> Result<()> {
    let disk = Metered::new(8);
    let hung = Metered::new(8);
    hung.set_pace(0);
    let mut appliance = shared(&disk)?;
    let bdev: Arc<dyn Bdev> = Arc::new(hung.clone());
    let unit = unit_of("hung", &*bdev);
    let backing = backing("hung", &unit, &bdev);
    appliance.call(|target| target.add_lun("noisy", Some(1), 0, backing))?;
    let mut polite = Guest::connect(&mut appliance, "polite", 1, 8 * MIB)?;
    let mut noisy = Guest::connect(&mut appliance, "noisy", 4, 80 * MIB)?;
    polite.reads(1, 4096);
    noisy.writes(120, 4096);
    let other = Lun::new(1, 0);
    let mut most = 0;
    let mut aborted = 0;
    for _ in 0..20 {
        noisy.act()?;
        let stuck = cdb::write10(0, 8, false);
        let name = noisy.front.driver.submit(2, &Command::new(other, &stuck, &[1; 4096], 0)).context("no room")?;
        noisy.front.driver.queues[2].flush();
        noisy.front.driver.submit_tmf(Tmf::AbortTask, other.bytes(), name).context("no room")?;
        noisy.front.driver.queues[0].flush();
        let (since, before) = (disk.count(), polite.answered);
        polite.act()?;
        while polite.answered == before {
            appliance.machine.rounds(1);
            polite.take()?;
            ensure!(disk.count() < since + 10_000, "the polite guest starves");
        }
        most = most.max(disk.served(since, Op::Write, 4096));
        appliance.machine.run();
        // The aborted one, too: what it is answered with does not matter here.
        for queue in FIRST_REQUEST_QUEUE..noisy.front.driver.queues.len() {
            while let Some((ticket, response)) = noisy.front.poll(queue)? {
                aborted += usize::from(ticket == name && response.response == 2);
                noisy.answered += 1;
            }
        }
        while noisy.front.driver.poll_raw(0).map_err(|error| anyhow::anyhow!("{error:?}"))?.is_some() {}
    }
    ensure!(aborted >= 15, "only {aborted} were aborted");
    // What is with the device, and one of each queue of the other guest.
    ensure!(most <= 8 + 4 + 1, "{most} requests of another guest were served first");
    end(appliance, vec![noisy, polite])
}

#[test]
fn a_discard_of_a_tebibyte_leaves_room_for_reads_and_gets_on_all_the_same() -> Result<()> {
    let disk = Metered::new(64);
    let mut appliance = shared(&disk)?;
    let mut polite = Guest::connect(&mut appliance, "polite", 1, 8 * MIB)?;
    let mut noisy = Guest::connect(&mut appliance, "noisy", 2, 8 * MIB)?;
    polite.reads(1, 4096);
    noisy.unmaps(16, TIB as u32);
    for _ in 0..100 {
        noisy.act()?;
        appliance.machine.rounds(1);
    }
    let discards = |since| disk.served(since, Op::Discard, 0);
    let most = most_noise(&mut appliance, &mut noisy, &mut polite, 20, &disk, discards)?;
    ensure!(most <= 3, "{most} GiB were discarded before a read was served");
    // Beside a guest that always reads, it goes on.
    polite.reads(120, 4096);
    let since = disk.count();
    for _ in 0..2000 {
        noisy.act()?;
        polite.act()?;
        appliance.machine.rounds(1);
    }
    let (reads, discards) = (disk.served(since, Op::Read, 4096), discards(since));
    let share = (17 * discards) as f64 / reads as f64;
    ensure!((0.1..0.5).contains(&share), "{discards} GiB discarded, {reads} reads");
    end(appliance, vec![noisy, polite])
}

#[test]
fn bulk_gets_a_quarter_of_what_each_queue_beside_it_gets() -> Result<()> {
    const QUEUES: usize = 4;
    for pace in [1, 8] {
        let disk = Metered::new(64);
        let mut appliance = shared(&disk)?;
        let mut polite = Guest::connect(&mut appliance, "polite", QUEUES, 8 * MIB)?;
        let mut noisy = Guest::connect(&mut appliance, "noisy", 1, 8 * MIB)?;
        disk.set_pace(pace);
        polite.reads(100, 4096);
        // Of as many slots as a read; so few that the part of the slots that bulk may take at most is never reached.
        noisy.unmaps(100, 8);
        let mut since = 0;
        for round in 0..2200 {
            if round == 200 {
                since = disk.count();
            }
            noisy.act()?;
            polite.act()?;
            appliance.machine.rounds(1);
        }
        let (reads, discards) = (disk.served(since, Op::Read, 4096), disk.served(since, Op::Discard, 4096));
        let share = (QUEUES * discards) as f64 / reads as f64;
        ensure!((0.2..0.3).contains(&share), "pace {pace}: {discards} discards, {reads} reads of {QUEUES} queues");
        end(appliance, vec![noisy, polite])?;
    }
    Ok(())
}

#[test]
fn what_no_guest_waits_for_takes_a_part_of_the_slots_only() -> Result<()> {
    let disk = Metered::new(64);
    let mut appliance = shared(&disk)?;
    let mut polite = Guest::connect(&mut appliance, "polite", 1, 8 * MIB)?;
    let mut noisy = Guest::connect(&mut appliance, "noisy", 4, 8 * MIB)?;
    polite.reads(1, 4096);
    let mut flush = cdb::sync10();
    flush[1] |= 2;
    (noisy.depth, noisy.cdb) = (64, flush.into());
    for _ in 0..50 {
        noisy.act()?;
        appliance.machine.rounds(1);
    }
    let flushes = |since| disk.served(since, Op::Flush, 0);
    let most = most_noise(&mut appliance, &mut noisy, &mut polite, 20, &disk, flushes)?;
    ensure!((1..=18).contains(&most), "{most} flushes before a read was served");
    ensure!(noisy.answered > 64, "they go on: {}", noisy.answered);
    end(appliance, vec![noisy, polite])
}
