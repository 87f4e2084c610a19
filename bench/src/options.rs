//! What a run is told to do, and the checks that need no target.

use std::path::PathBuf;
use std::time::Duration;

use crate::BenchError;

/// Which requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reads, one after another.
    Read,
    /// Writes, one after another.
    Write,
    /// Reads and writes, one after another.
    ReadWrite,
    /// Reads at random places.
    RandRead,
    /// Writes at random places.
    RandWrite,
    /// Reads and writes at random places.
    RandReadWrite,
    /// Discards, one after another.
    Trim,
    /// Discards at random places.
    RandTrim,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 8] = [
        Mode::Read,
        Mode::Write,
        Mode::ReadWrite,
        Mode::RandRead,
        Mode::RandWrite,
        Mode::RandReadWrite,
        Mode::Trim,
        Mode::RandTrim,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
            Mode::ReadWrite => "rw",
            Mode::RandRead => "randread",
            Mode::RandWrite => "randwrite",
            Mode::RandReadWrite => "randrw",
            Mode::Trim => "trim",
            Mode::RandTrim => "randtrim",
        }
    }

    /// Whether places are random.
    #[must_use]
    pub const fn random(self) -> bool {
        matches!(self, Mode::RandRead | Mode::RandWrite | Mode::RandReadWrite | Mode::RandTrim)
    }

    /// Whether there are writes among the requests.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Mode::Write | Mode::ReadWrite | Mode::RandWrite | Mode::RandReadWrite)
    }

    /// Whether there are discards among the requests.
    #[must_use]
    pub const fn trims(self) -> bool {
        matches!(self, Mode::Trim | Mode::RandTrim)
    }
}

/// Where huge pages for guest memory come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// From the reserved pool, else transparent ones, else none.
    Auto,
    /// None.
    Off,
    /// From the reserved pool, or the run fails.
    Require,
}

/// When the device is kicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// After each batch.
    Always,
    /// When the device asks for it.
    Auto,
}

/// Whether a feature is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// If the device has it.
    Auto,
    /// Yes, or the run fails.
    On,
    /// No.
    Off,
}

/// Which core the polling thread runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// The last one this process may use.
    Last,
    /// This one.
    Number(usize),
    /// Wherever the kernel puts it.
    Unpinned,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The controllers' sockets: one session, that is one VM, for each.
    pub sockets: Vec<PathBuf>,
    /// SCSI target.
    pub target: u8,
    /// LUN on it.
    pub lun: u16,
    /// Which requests.
    pub mode: Mode,
    /// Share of reads in mixed modes, in per cent.
    pub read_percent: u8,
    /// Bytes of one request.
    pub block_bytes: u64,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Request queues of each session.
    pub queues: u16,
    /// Entries of each queue; by default as many as the depth needs, at least 128.
    pub queue_size: Option<u16>,
    /// How long is measured.
    pub time: Duration,
    /// How long the load runs before that.
    pub ramp: Duration,
    /// Ends after so many requests of all queues together, if the time is not over before.
    pub ios: Option<u64>,
    /// No place is used twice.
    pub once: bool,
    /// Each queue flushes after so many of its writes.
    pub flush_every: Option<u64>,
    /// Where the used part of the disk begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; by default all the rest.
    pub size: Option<u64>,
    /// Write the whole part first.
    pub fill: bool,
    /// Write stamps, read them back, compare.
    pub verify: bool,
    /// Seed of places, mixes and contents.
    pub seed: u64,
    /// Where the polling thread runs.
    pub core: Core,
    /// When the device is kicked.
    pub kick: Kick,
    /// Wait for interrupts instead of polling.
    pub interrupt: bool,
    /// Pause before each request.
    pub gap: Duration,
    /// Guest memory.
    pub huge_pages: HugePages,
    /// VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: Use,
    /// Indirect descriptors.
    pub indirect: bool,
    /// Where in a page the data of each request begins; a multiple of 8 below 4096.
    pub misalign: u16,
    /// How long a request may be unanswered before the run is given up.
    pub timeout: Duration,
    /// Show how it goes on standard error.
    pub progress: bool,
    /// Say more about the target on standard error.
    pub verbose: bool,
}

impl Options {
    /// A run of random reads of 4 KiB, 32 deep, for 10 seconds.
    #[must_use]
    pub fn new(sockets: Vec<PathBuf>) -> Self {
        Options {
            sockets,
            target: 0,
            lun: 0,
            mode: Mode::RandRead,
            read_percent: 70,
            block_bytes: 4096,
            depth: 32,
            queues: 1,
            queue_size: None,
            time: Duration::from_secs(10),
            ramp: Duration::ZERO,
            ios: None,
            once: false,
            flush_every: None,
            offset: 0,
            size: None,
            fill: false,
            verify: false,
            seed: 1,
            core: Core::Last,
            kick: Kick::Auto,
            interrupt: false,
            gap: Duration::ZERO,
            huge_pages: HugePages::Auto,
            event_idx: Use::Auto,
            indirect: false,
            misalign: 0,
            timeout: Duration::from_secs(30),
            progress: false,
            verbose: false,
        }
    }

    /// Whether requests are counted, or places remembered, or flushes put between them.
    pub(crate) const fn bounded(&self) -> bool {
        self.ios.is_some() || self.once || self.flush_every.is_some()
    }

    /// Ring entries that one request takes.
    pub(crate) const fn entries(&self) -> u16 {
        if self.indirect { 1 } else { 3 }
    }

    /// Entries of each request queue.
    pub(crate) fn ring_size(&self) -> u16 {
        let needed = u32::from(self.depth) * u32::from(self.entries());
        self.queue_size.unwrap_or_else(|| needed.max(128).next_power_of_two().try_into().unwrap_or(1 << 15))
    }

    /// Refuses what cannot work with any target.
    pub(crate) fn check(&self) -> Result<(), BenchError> {
        let refuse = |text: String| Err(BenchError::Usage(text));
        if self.sockets.is_empty() {
            return refuse("no target: give --socket PATH".into());
        }
        if self.lun >= 1 << 14 {
            return refuse(format!("--lun {} is beyond 16383", self.lun));
        }
        if self.read_percent > 100 {
            return refuse(format!("--rwmixread {} is more than 100 per cent", self.read_percent));
        }
        if self.block_bytes == 0 || !self.block_bytes.is_multiple_of(512) || self.block_bytes > 1 << 30 {
            return refuse(format!("--bs {}: give a multiple of 512 up to 1G", self.block_bytes));
        }
        if self.depth == 0 || self.queues == 0 {
            return refuse("--qd and --queues must be at least 1".into());
        }
        if !self.gap.is_zero() && self.depth != 1 {
            return refuse("--gap needs --qd 1".into());
        }
        if self.ios == Some(0) || self.flush_every == Some(0) {
            return refuse("--ios and --flush-every must be at least 1".into());
        }
        if (self.ios.is_some() || self.once) && !self.ramp.is_zero() {
            return refuse("--ios and --once count from the first request on: leave --ramp out".into());
        }
        if self.verify && self.bounded() {
            return refuse("--verify goes without --ios, --once and --flush-every".into());
        }
        if self.flush_every.is_some() && !self.mode.writes() {
            return refuse(format!("--flush-every with --rw {}: nothing is written", self.mode.name()));
        }
        if self.verify && !self.fill && !self.mode.writes() {
            return refuse(format!("--verify with --rw {} needs --fill: nothing else is written", self.mode.name()));
        }
        if !self.misalign.is_multiple_of(8) || self.misalign >= 4096 {
            return refuse(format!("--misalign {}: give a multiple of 8 below 4096", self.misalign));
        }
        let size = self.ring_size();
        if !size.is_power_of_two() || size > 1 << 15 {
            return refuse(format!("--queue-size {size} is no power of two up to 32768"));
        }
        if u32::from(self.depth) * u32::from(self.entries()) > u32::from(size) {
            let hint = if self.indirect { "" } else { ", or use --indirect on" };
            return refuse(format!(
                "--qd {} takes {} entries of the queue, which has {size}: make --queue-size larger{hint}",
                self.depth,
                u32::from(self.depth) * u32::from(self.entries())
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Options)) -> Result<(), String> {
        let mut options = Options::new(vec!["/s".into()]);
        change(&mut options);
        options.check().map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_option_named() {
        assert_eq!(with(|_| {}), Ok(()));
        let refused = |change: fn(&mut Options), names: &str| {
            let error = with(change).expect_err(names);
            assert!(error.contains(names), "{error}");
        };
        refused(|o| o.sockets.clear(), "--socket");
        refused(|o| o.block_bytes = 1000, "--bs");
        refused(|o| o.depth = 0, "--qd");
        refused(|o| o.queue_size = Some(64), "--queue-size");
        refused(|o| o.queue_size = Some(100), "--queue-size");
        refused(|o| o.gap = Duration::from_micros(1), "--gap");
        refused(|o| o.verify = true, "--fill");
        refused(|o| o.ios = Some(0), "--ios");
        refused(|o| (o.once, o.ramp) = (true, Duration::from_secs(1)), "--ramp");
        refused(|o| (o.mode, o.verify, o.ios) = (Mode::RandWrite, true, Some(1)), "--verify");
        refused(|o| o.flush_every = Some(64), "--flush-every");
        assert_eq!(with(|o| (o.mode, o.flush_every, o.once) = (Mode::RandReadWrite, Some(64), true)), Ok(()));
        refused(|o| o.lun = 1 << 14, "--lun");
        refused(|o| o.read_percent = 101, "--rwmixread");
        refused(|o| o.depth = u16::MAX, "--qd");
        refused(|o| o.misalign = 4, "--misalign");
        refused(|o| o.misalign = 4096, "--misalign");
    }

    #[test]
    fn rings_are_as_large_as_the_depth_needs() {
        let size = |depth, indirect| {
            let mut options = Options::new(Vec::new());
            (options.depth, options.indirect) = (depth, indirect);
            options.ring_size()
        };
        assert_eq!((size(1, false), size(32, false), size(43, false), size(128, false)), (128, 128, 256, 512));
        assert_eq!((size(128, true), size(129, true)), (128, 256));
    }
}
