//! An attacker and a bystander on one daemon: whatever the first does, the second must notice nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::Daemon;
use pollux_tests::frontend::FrontEnd;
use pollux_tests::guest::{DriverOptions, FIRST_REQUEST_QUEUE, Lun, cdb, desc};

use super::{connect, controller, ram};

/// The unit that both sides use.
pub(crate) const LUN: Lun = Lun::new(0, 0);
/// The first request queue.
pub(crate) const QUEUE: usize = FIRST_REQUEST_QUEUE;

/// A daemon with a controller `evil` and a controller `good`, each with a disk of its own, and a front end on `good`.
pub(crate) struct Scene {
    pub(crate) daemon: Daemon,
    pub(crate) bystander: FrontEnd,
    files: usize,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        let daemon = Daemon::start()?;
        for name in ["evil", "good"] {
            ram(&daemon, &format!("{name}-disk"), 4096)?;
            controller(&daemon, name, &[&format!("{name}-disk")])?;
        }
        let mut bystander = connect(&daemon, "good", &DriverOptions::default())?;
        bystander.good(LUN, &cdb::write10(0, 1, false), &[0x42; 512], 0)?;
        let mut scene = Scene { daemon, bystander, files: 0 };
        // Once through everything, so that what stays open for good is open.
        scene.attack("nothing", |_| Ok(()))?;
        scene.files = scene.daemon.open_files()?;
        Ok(scene)
    }

    /// A front end of the attacker's.
    pub(crate) fn evil(&self) -> Result<FrontEnd> {
        self.evil_with(&DriverOptions::default())
    }

    pub(crate) fn evil_with(&self, options: &DriverOptions) -> Result<FrontEnd> {
        connect(&self.daemon, "evil", options)
    }

    /// Connects as the attacker, does `f`, and checks that it cost nobody but that session anything.
    pub(crate) fn attack(&mut self, what: &str, f: impl FnOnce(&mut FrontEnd) -> Result<()>) -> Result<()> {
        self.attack_with(what, &DriverOptions::default(), f)
    }

    pub(crate) fn attack_with(
        &mut self,
        what: &str,
        options: &DriverOptions,
        f: impl FnOnce(&mut FrontEnd) -> Result<()>,
    ) -> Result<()> {
        self.strike(options, f).with_context(|| what.to_owned())
    }

    fn strike(&mut self, options: &DriverOptions, f: impl FnOnce(&mut FrontEnd) -> Result<()>) -> Result<()> {
        let mut front = self.evil_with(options)?;
        f(&mut front)?;
        self.bystander_works()?;
        drop(front);
        self.evil_works()
    }

    /// The other VM's disk answers, quickly and with its own data.
    pub(crate) fn bystander_works(&mut self) -> Result<()> {
        ensure!(self.daemon.is_alive(), "the daemon is gone:\n{}", self.daemon.log_tail());
        let data = self.bystander.good(LUN, &cdb::read10(0, 1), &[], 512).context("the bystander's disk")?.data;
        ensure!(data == [0x42; 512], "the bystander reads {:02x?}", &data[..8]);
        Ok(())
    }

    /// A well-behaved front end of the attacker's controller is served again. It may be turned away while a storm of
    /// sessions before it ends, as a VMM that connects again would be.
    pub(crate) fn evil_works(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut front = loop {
            match self.evil() {
                Ok(front) => break front,
                Err(error) if Instant::now() > end => return Err(error.context("connecting again")),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        loop {
            let response = front.cdb(LUN, &cdb::read10(0, 1), &[], 512).context("the attacker's disk afterwards")?;
            match response.sense_key() {
                _ if response.good() => return Ok(()),
                // Among commands at random was one that formats the disk, and it did not come to its end.
                Some((3, 0x31, 0)) => drop(front.cdb(LUN, &[0x04, 0, 0, 0, 0, 0], &[], 0)?),
                Some((6, ..) | (2, 0x04, 0x04)) => std::thread::sleep(Duration::from_millis(1)),
                _ => anyhow::bail!("the attacker's disk afterwards: {response:?}"),
            }
            ensure!(Instant::now() < end, "the attacker's disk does not come back: {response:?}");
        }
    }

    /// Checks that no descriptor was left behind.
    pub(crate) fn no_files_left(&mut self) -> Result<()> {
        let mut now = 0;
        for _ in 0..100 {
            now = self.daemon.open_files()?;
            if now <= self.files {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("{} descriptors became {now}", self.files)
    }
}

/// One descriptor written by hand: address, length, flags, next.
pub(crate) type Desc = (u64, u32, u16, u16);

/// A page of memory for the attack's own use: requests at its start, responses in its middle.
pub(crate) struct Page {
    pub(crate) gpa: u64,
}

/// Offset of a response area in a [`Page`].
pub(crate) const RESPONSE: u64 = 0x800;

impl Page {
    /// A page with the header of a READ (10) of one block at its start.
    pub(crate) fn new(front: &mut FrontEnd) -> Result<Self> {
        let gpa = front.driver.arena.alloc(0x4000, 4096, 0).context("guest memory")?;
        let header = pollux_tests::guest::request_header(LUN.bytes(), 77, 0, &cdb::read10(0, 1));
        front.driver.memory.write(gpa, &header);
        Ok(Page { gpa })
    }

    /// The three descriptors of a proper read.
    pub(crate) fn proper(&self) -> [Desc; 3] {
        [
            (self.gpa, 51, desc::NEXT, 1),
            (self.gpa + RESPONSE, 108, desc::NEXT | desc::WRITE, 2),
            (self.gpa + 0x1000, 512, desc::WRITE, 0),
        ]
    }
}

/// Writes descriptors from index 0 on and makes `heads` available, by hand.
pub(crate) fn offer(front: &mut FrontEnd, descs: &[Desc], heads: &[u16]) {
    let ring = &mut front.driver.queues[QUEUE].ring;
    let [table, ..] = ring.addresses();
    for (at, &(gpa, len, flags, next)) in descs.iter().enumerate() {
        ring.write_desc(table, at as u16, gpa, len, flags, next);
    }
    for head in heads {
        ring.offer(*head);
    }
    ring.publish();
    front.driver.queues[QUEUE].kick();
}

/// Waits a moment for what the device makes of it: true if something was put into the used ring.
pub(crate) fn answered(front: &FrontEnd) -> bool {
    for _ in 0..100 {
        if front.driver.queues[QUEUE].ring.has_used() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

/// Whether the device has closed the session within a moment.
pub(crate) fn closed(front: &FrontEnd) -> bool {
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the session is open as long as `front`.
    let socket = unsafe { BorrowedFd::borrow_raw(front.session.as_raw_fd()) };
    let mut fds = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::RDHUP)];
    let time = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&time)), Ok(1..))
}
