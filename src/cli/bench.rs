//! `pollux bench`: the load generator, against any vhost-user-scsi target.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pollux_bench::{BenchError, Core, HugePages, Kick, Mode, Options, Use};

use super::CliError;
use super::output::Output;
use super::units::parse_size;

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// A controller's socket; several: as many VMs, driven from one thread
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,
    /// SCSI target
    #[arg(long, default_value_t = 0)]
    target: u8,
    /// LUN on it
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..1 << 14))]
    lun: u16,
    /// Which requests
    #[arg(long, value_name = "MODE", default_value = "randread", value_parser = parse_mode)]
    rw: Mode,
    /// Share of reads in rw and randrw, in per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = clap::value_parser!(u8).range(..=100))]
    rwmixread: u8,
    /// Bytes of one request
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_size)]
    bs: u64,
    /// Requests in flight on each queue
    #[arg(long, value_name = "N", default_value_t = 32)]
    qd: u16,
    /// Request queues of each VM
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u16,
    /// Entries of each queue, a power of two [default: what --qd needs, at least 128]
    #[arg(long, value_name = "N")]
    queue_size: Option<u16>,
    /// How long is measured
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    time: Duration,
    /// How long the load runs before that
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = parse_seconds)]
    ramp: Duration,
    /// End after so many requests, if the time is not over before
    #[arg(long, value_name = "N")]
    ios: Option<u64>,
    /// Use no place twice; ends when all have been used
    #[arg(long)]
    once: bool,
    /// Each queue flushes after so many of its writes
    #[arg(long, value_name = "N")]
    flush_every: Option<u64>,
    /// Where the used part of the disk begins
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// How much of the disk is used [default: all from --offset on]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Write the whole part first (not measured)
    #[arg(long)]
    fill: bool,
    /// Write stamped blocks, read each back and all of them in the end, and compare
    #[arg(long)]
    verify: bool,
    /// Seed of places, mixes and contents
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Core of the polling thread, or none [default: the last one]
    #[arg(long, value_name = "N", value_parser = parse_core)]
    core: Option<Core>,
    /// When the device is kicked: after every batch, or if it asks for it
    #[arg(long, default_value = "auto")]
    kick: KickArg,
    /// Wait for interrupts instead of polling
    #[arg(long)]
    interrupt: bool,
    /// Idle time before each request (with --qd 1)
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    gap: u64,
    /// Huge pages for guest memory: if there are any, none, or only with
    #[arg(long, default_value = "auto")]
    hugepages: HugePagesArg,
    /// The feature EVENT_IDX: if offered, never, or only with
    #[arg(long, default_value = "auto")]
    event_idx: UseArg,
    /// Indirect descriptors
    #[arg(long, default_value = "off")]
    indirect: Switch,
    /// Where in a page the data of each request begins, a multiple of 8
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    misalign: u16,
    /// Give up when a request is not answered for so long
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    timeout: Duration,
    /// Show how it goes, also where standard error is no terminal
    #[arg(long)]
    progress: bool,
    /// Say more about the target
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KickArg {
    Always,
    Auto,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HugePagesArg {
    Auto,
    Off,
    Require,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UseArg {
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

impl BenchArgs {
    fn options(self) -> Options {
        Options {
            target: self.target,
            lun: self.lun,
            mode: self.rw,
            read_percent: self.rwmixread,
            block_bytes: self.bs,
            depth: self.qd,
            queues: self.queues,
            queue_size: self.queue_size,
            time: self.time,
            ramp: self.ramp,
            ios: self.ios,
            once: self.once,
            flush_every: self.flush_every,
            offset: self.offset,
            size: self.size,
            fill: self.fill,
            verify: self.verify,
            seed: self.seed,
            core: self.core.unwrap_or(Core::Last),
            kick: match self.kick {
                KickArg::Always => Kick::Always,
                KickArg::Auto => Kick::Auto,
            },
            interrupt: self.interrupt,
            gap: Duration::from_micros(self.gap),
            huge_pages: match self.hugepages {
                HugePagesArg::Auto => HugePages::Auto,
                HugePagesArg::Off => HugePages::Off,
                HugePagesArg::Require => HugePages::Require,
            },
            event_idx: match self.event_idx {
                UseArg::Auto => Use::Auto,
                UseArg::On => Use::On,
                UseArg::Off => Use::Off,
            },
            indirect: self.indirect == Switch::On,
            misalign: self.misalign,
            timeout: self.timeout,
            progress: self.progress || std::io::stderr().is_terminal(),
            verbose: self.verbose,
            ..Options::new(self.sockets)
        }
    }
}

fn parse_mode(text: &str) -> Result<Mode, String> {
    let names = || Mode::ALL.map(Mode::name).join(", ");
    Mode::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| format!("choose one of {}", names()))
}

fn parse_core(text: &str) -> Result<Core, String> {
    match text {
        "none" => Ok(Core::Unpinned),
        _ => text.parse().map(Core::Number).map_err(|_| "give the number of a core, or none".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, for example 10 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub(crate) fn run(args: BenchArgs, output: &Output) -> Result<(), CliError> {
    let options = args.options();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_default(signal, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let report = pollux_bench::run(&options, &stop).map_err(|error| match error {
        BenchError::Usage(text) => CliError::Usage(text),
        BenchError::Setup(text) | BenchError::Target(text) => CliError::Failed(text),
    })?;
    output.show(&report.json(), |_| report.text())?;
    if report.good() {
        return Ok(());
    }
    Err(CliError::Failed(format!(
        "{} requests failed, and {} were not what had been written",
        report.errors(),
        report.verify_errors()
    )))
}
