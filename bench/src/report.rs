//! What came out of a run: as one JSON object, and as text.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::histogram::Histogram;
use crate::memory::Pages;
use crate::options::Options;
use crate::run::{Counts, Run};
use crate::scsi::Op;
use crate::session::Session;
use crate::verify::Findings;

/// The result of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub(crate) what: What,
    /// Seconds that were measured.
    pub(crate) seconds: f64,
    pub(crate) total: Figures,
    pub(crate) read: Figures,
    pub(crate) write: Figures,
    pub(crate) trim: Figures,
    pub(crate) flush: Figures,
    pub(crate) errors: u64,
    pub(crate) verify: Option<Verified>,
    pub(crate) retries: u64,
    pub(crate) client: Client,
    /// The first errors, in words.
    pub(crate) messages: Vec<String>,
}

impl Client {
    fn new(counts: &Counts, ns_per_tick: f64, seconds: f64, ios: u64) -> Self {
        let ns_per_io = counts.busy_ticks as f64 * ns_per_tick / counts.busy_ios.max(1) as f64;
        Client {
            ns_per_io,
            busy_share: if seconds > 0.0 { ns_per_io * ios as f64 / (seconds * 1e9) } else { 0.0 },
            polls: counts.polls,
            empty_polls: counts.empty_polls,
            batch: ios as f64 / counts.batches.max(1) as f64,
            kicks: counts.kicks,
            interrupts: counts.interrupts,
        }
    }
}

/// What was run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct What {
    pub(crate) rw: &'static str,
    pub(crate) bs: u64,
    pub(crate) qd: u16,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) sockets: usize,
    pub(crate) read_percent: u8,
    pub(crate) interrupt: bool,
    pub(crate) gap_us: f64,
    pub(crate) event_idx: bool,
    pub(crate) indirect: bool,
    pub(crate) misalign: u16,
    pub(crate) once: bool,
    pub(crate) flush_every: Option<u64>,
    pub(crate) pages: &'static str,
    pub(crate) core: Option<usize>,
    pub(crate) disk: String,
    pub(crate) disk_bytes: u64,
    pub(crate) block_size: u32,
    pub(crate) seed: u64,
}

impl What {
    pub(crate) fn new(options: &Options, core: Option<usize>, sessions: &[Session], disk: &Disk) -> Self {
        What {
            rw: options.mode.name(),
            bs: options.block_bytes,
            qd: options.depth,
            queues: options.queues,
            queue_size: options.ring_size(),
            sockets: options.sockets.len(),
            read_percent: options.read_percent,
            interrupt: options.interrupt,
            gap_us: options.gap.as_secs_f64() * 1e6,
            event_idx: sessions.iter().all(|session| session.event_idx),
            indirect: options.indirect,
            misalign: options.misalign,
            once: options.once,
            flush_every: options.flush_every,
            pages: sessions.iter().map(|session| session.pages).min().map_or("none", Pages::name),
            core,
            disk: disk.name.clone(),
            disk_bytes: disk.bytes(),
            block_size: disk.block_size,
            seed: options.seed,
        }
    }
}

/// The figures of one kind of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) ios: u64,
    pub(crate) iops: f64,
    pub(crate) bytes_per_second: f64,
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p99_99: f64,
    max: f64,
}

impl Figures {
    pub(crate) fn new(histogram: &Histogram, ns_per_tick: f64, seconds: f64, bytes: u64) -> Self {
        let ios = histogram.count();
        let iops = if seconds > 0.0 { ios as f64 / seconds } else { 0.0 };
        let ns = |share: f64| histogram.quantile(share) * ns_per_tick;
        Figures {
            ios,
            iops,
            bytes_per_second: iops * bytes as f64,
            min: histogram.min() as f64 * ns_per_tick,
            mean: histogram.mean() * ns_per_tick,
            p50: ns(0.5),
            p90: ns(0.9),
            p99: ns(0.99),
            p99_9: ns(0.999),
            p99_99: ns(0.9999),
            max: histogram.max() as f64 * ns_per_tick,
        }
    }

    fn latency(&self) -> Value {
        json!({
            "min": whole(self.min), "mean": tenth(self.mean), "p50": whole(self.p50), "p90": whole(self.p90),
            "p99": whole(self.p99), "p99_9": whole(self.p99_9), "p99_99": whole(self.p99_99), "max": whole(self.max),
        })
    }

    fn json(&self) -> Value {
        json!({
            "ios": self.ios, "iops": tenth(self.iops), "bytes_per_second": whole(self.bytes_per_second),
            "latency_ns": self.latency(),
        })
    }

    fn line(&self, name: &str, out: &mut String) {
        let us = |ns: f64| format!("{:.2}", ns / 1000.0);
        let _ = writeln!(
            out,
            "{name:<6} {:>12} IOPS  {:>10} MiB/s",
            format!("{:.0}", self.iops),
            format!("{:.1}", self.bytes_per_second / f64::from(1 << 20))
        );
        let _ = writeln!(
            out,
            "       latency µs: min {} mean {} p50 {} p90 {} p99 {} p99.9 {} p99.99 {} max {}",
            us(self.min),
            us(self.mean),
            us(self.p50),
            us(self.p90),
            us(self.p99),
            us(self.p99_9),
            us(self.p99_99),
            us(self.max)
        );
    }
}

/// What the load generator itself cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Client {
    pub(crate) ns_per_io: f64,
    pub(crate) busy_share: f64,
    pub(crate) polls: u64,
    pub(crate) empty_polls: u64,
    pub(crate) batch: f64,
    pub(crate) kicks: u64,
    pub(crate) interrupts: u64,
}

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Bytes that were compared.
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
}

impl Report {
    /// What came out of `window` ticks in which `counts` were counted; errors are those of the whole run.
    pub(crate) fn new(
        what: What,
        ns_per_tick: f64,
        window: u64,
        counts: &Counts,
        run: &Run<'_>,
        verified: Option<&Findings>,
    ) -> Self {
        let seconds = window as f64 * ns_per_tick / 1e9;
        let figures = |histogram: &Histogram| Figures::new(histogram, ns_per_tick, seconds, what.bs);
        let [read, write, trim] = [Op::Read, Op::Write, Op::Unmap].map(|op| &counts.tallies[op as usize]);
        let mut all = Histogram::default();
        [read, write, trim].into_iter().for_each(|tally| all.add(tally));
        let [read, write, trim] = [read, write, trim].map(figures);
        let flush = Figures::new(&counts.tallies[Op::Flush as usize], ns_per_tick, seconds, 0);
        let total = figures(&all);
        let mut messages = run.messages.clone();
        messages.extend(verified.iter().flat_map(|findings| findings.messages.clone()));
        Report {
            seconds,
            read,
            write,
            trim,
            flush,
            errors: run.errors,
            verify: verified.map(|findings| Verified { bytes: findings.bytes, errors: findings.errors }),
            retries: run.retries,
            client: Client::new(counts, ns_per_tick, seconds, total.ios),
            total,
            messages,
            what,
        }
    }

    /// Requests that failed.
    #[must_use]
    pub const fn errors(&self) -> u64 {
        self.errors
    }

    /// Requests whose data was not what had been written.
    #[must_use]
    pub fn verify_errors(&self) -> u64 {
        self.verify.as_ref().map_or(0, |verify| verify.errors)
    }

    /// Whether everything went well.
    #[must_use]
    pub fn good(&self) -> bool {
        self.errors == 0 && self.verify_errors() == 0
    }

    /// All of it as one object.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut all = self.total.json();
        let what = &self.what;
        let rest = json!({
            "errors": self.errors,
            "verify_errors": self.verify_errors(),
            "verified_bytes": self.verify.as_ref().map_or(0, |verify| verify.bytes),
            "retries": self.retries,
            "read": self.read.json(),
            "write": self.write.json(),
            "trim": self.trim.json(),
            "flush": self.flush.json(),
            "duration_s": (self.seconds * 1e6).round() / 1e6,
            "rw": what.rw,
            "rwmixread": what.read_percent,
            "bs": what.bs,
            "qd": what.qd,
            "queues": what.queues,
            "queue_size": what.queue_size,
            "sockets": what.sockets,
            "interrupt": what.interrupt,
            "gap_us": what.gap_us,
            "event_idx": what.event_idx,
            "indirect": what.indirect,
            "misalign": what.misalign,
            "once": what.once,
            "flush_every": what.flush_every,
            "pages": what.pages,
            "core": what.core,
            "seed": what.seed,
            "disk": {"name": what.disk, "bytes": what.disk_bytes, "block_size": what.block_size},
            "client": {
                "ns_per_io": tenth(self.client.ns_per_io),
                "busy_share": (self.client.busy_share * 1e4).round() / 1e4,
                "polls": self.client.polls,
                "empty_polls": self.client.empty_polls,
                "ios_per_batch": (self.client.batch * 100.0).round() / 100.0,
                "kicks": self.client.kicks,
                "interrupts": self.client.interrupts,
            },
            "messages": self.messages,
        });
        if let (Some(all), Value::Object(rest)) = (all.as_object_mut(), rest) {
            all.extend(rest);
        }
        all
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let what = &self.what;
        let _ = writeln!(
            out,
            "{} bs {} qd {} queues {} sockets {}, {:.2} s, {}",
            what.rw, what.bs, what.qd, what.queues, what.sockets, self.seconds, what.disk
        );
        self.total.line("total", &mut out);
        let kinds = [("read", &self.read), ("write", &self.write), ("trim", &self.trim), ("flush", &self.flush)];
        if kinds.iter().filter(|(_, figures)| figures.ios > 0).count() > 1 {
            for (name, figures) in kinds.iter().filter(|(_, figures)| figures.ios > 0) {
                figures.line(name, &mut out);
            }
        }
        let client = &self.client;
        let _ = writeln!(
            out,
            "client {:.1} ns per I/O, busy {:.1} %, {:.1} I/Os a batch, {} of {} polls empty, {} kicks, {} interrupts",
            client.ns_per_io,
            client.busy_share * 100.0,
            client.batch,
            client.empty_polls,
            client.polls,
            client.kicks,
            client.interrupts
        );
        let _ = write!(out, "errors {}, sent again {}", self.errors, self.retries);
        if let Some(verify) = &self.verify {
            let _ = write!(out, ", verify errors {} ({} bytes compared)", verify.errors, verify.bytes);
        }
        out.push('\n');
        for message in &self.messages {
            let _ = writeln!(out, "  {message}");
        }
        out
    }
}

fn whole(value: f64) -> u64 {
    value.round() as u64
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
