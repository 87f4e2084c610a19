//! What Prometheus sees: reads the counters of bdevs, LUNs, queues, sessions and reactors at each scrape.
//!
//! Only series that have moved are shown, so a fleet of idle disks costs nothing; what is deleted is gone from the next
//! scrape on. Nothing here waits for a reactor: counters are read where they are. docs/metrics.md describes
//! [`FAMILIES`], and a test holds the two together.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use pollux_bdev::thin::{PoolInfo, Role};
use pollux_bdev::{Entry, IoSnapshot, Sg};
use pollux_core::{Delivery, Histogram, Op};
use pollux_metrics::{HistogramSnapshot, Sink, Source};
use pollux_vhost_scsi::{ControllerInfo, LunInfo, LunStats};

use crate::node::Node;

/// A kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Latencies.
    Histogram,
}

/// A metric: its name and what it says.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What kind it is.
    pub kind: Kind,
    /// What it says.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(static $id: Family = Family { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*] };)*
        /// All metrics.
        pub static FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BUILD_INFO Gauge "pollux_build_info" ["version"] "Always 1; the label says which Pollux this is.";
    BDEV_OPS Counter "pollux_bdev_ops_total" ["bdev", "alias", "op"] "Requests to a block device that ended well.";
    BDEV_BYTES Counter "pollux_bdev_bytes_total" ["bdev", "alias", "op"] "Bytes of the requests that ended well.";
    BDEV_ERRORS Counter "pollux_bdev_errors_total" ["bdev", "alias", "op"] "Requests to a block device that failed.";
    BDEV_INFLIGHT Gauge "pollux_bdev_inflight" ["bdev", "alias"] "Requests in flight to a block device.";
    BDEV_BOUNCES Counter "pollux_bdev_bounces_total" ["bdev", "alias"]
        "Requests whose data went through a bounce buffer because of its alignment.";
    BDEV_LATENCY Histogram "pollux_bdev_latency_seconds" ["bdev", "alias", "op"]
        "How long requests that ended well took.";
    BDEV_MISSING Gauge "pollux_bdev_missing" ["bdev", "alias"] "1 while a configured block device cannot be opened.";
    SG_COMMANDS Counter "pollux_sg_commands_total" ["bdev", "alias", "result"]
        "Commands for a whole SCSI device: good, status (another status than GOOD), or how they were lost on the way.";
    SG_REFUSED Counter "pollux_sg_refused_total" ["bdev", "alias"]
        "Commands that were not sent to a whole SCSI device, because they are not a guest's to give.";
    LUN_OPS Counter "pollux_lun_ops_total" ["ctrlr", "target", "lun", "op"] "Requests to a LUN that ended well.";
    LUN_BYTES Counter "pollux_lun_bytes_total" ["ctrlr", "target", "lun", "op"]
        "Bytes of the requests that ended well.";
    LUN_ERRORS Counter "pollux_lun_errors_total" ["ctrlr", "target", "lun", "op"] "Requests to a LUN that failed.";
    LUN_LATENCY Histogram "pollux_lun_latency_seconds" ["ctrlr", "target", "lun", "op"]
        "How long requests took; after vhost_scsi_enable_histogram.";
    QUEUE_KICKS Counter "pollux_queue_kicks_total" ["ctrlr", "queue"] "Notifications taken from the guest.";
    QUEUE_SENT Counter "pollux_queue_interrupts_sent_total" ["ctrlr", "queue"] "Interrupts sent to the guest.";
    QUEUE_SUPPRESSED Counter "pollux_queue_interrupts_suppressed_total" ["ctrlr", "queue"]
        "Times that completed requests needed no interrupt.";
    QUEUE_REQUESTS Counter "pollux_queue_requests_total" ["ctrlr", "queue"] "Requests taken from the queue.";
    QUEUE_INVALID Counter "pollux_queue_invalid_total" ["ctrlr", "queue"] "Requests that were malformed.";
    QUEUE_BOUNCES Counter "pollux_queue_bounces_total" ["ctrlr", "queue"]
        "Requests whose data did not lie in guest memory as the device needs it.";
    REACTOR_BUSY Counter "pollux_reactor_busy_seconds_total" ["reactor"] "Time in turns that did something.";
    REACTOR_IDLE Counter "pollux_reactor_idle_seconds_total" ["reactor"] "Time in turns that did nothing, and asleep.";
    REACTOR_TURNS Counter "pollux_reactor_turns_total" ["reactor"] "Turns of the loop.";
    REACTOR_SLEEPS Counter "pollux_reactor_sleeps_total" ["reactor"] "Times the reactor went to sleep.";
    REACTOR_SLEEP Histogram "pollux_reactor_sleep_seconds" ["reactor"] "How long the reactor's sleeps were.";
    REACTOR_WAKE Histogram "pollux_reactor_wake_seconds" ["reactor", "by"]
        "How long waking took: from a message's notification, or from the time that a timed sleep was to end.";
    REACTOR_ENTERS Counter "pollux_reactor_enters_total" ["reactor"] "Times the reactor entered the kernel's ring.";
    REACTOR_COMPLETIONS Counter "pollux_reactor_completions_total" ["reactor"] "Completions taken from the ring.";
    QUEUES_MOVED Counter "pollux_scheduler_moves_total" ["result"]
        "Queues that were to move to another reactor: moved, or given up because they did not come to rest in time.";
    POOL_SIZE Gauge "pollux_pool_size_bytes" ["pool"] "Bytes of a pool that volumes and metadata can take.";
    POOL_FREE Gauge "pollux_pool_free_bytes" ["pool"] "Bytes of a pool that are free.";
    POOL_ALLOCATED Gauge "pollux_pool_allocated_bytes" ["pool"] "Bytes of a pool that are in use.";
    POOL_QUARANTINED Gauge "pollux_pool_quarantined_bytes" ["pool"]
        "Bytes of a pool that were given back and cannot be used again yet.";
    POOL_DISCARDS Gauge "pollux_pool_discards_waiting_bytes" ["pool"]
        "Bytes of a pool that are free and that its base has not been told of yet.";
    POOL_PARED Gauge "pollux_pool_discards_waiting_clusters" ["pool"]
        "Clusters in use of which the base has not been told yet that parts of them are not.";
    POOL_COMPOSITE Gauge "pollux_pool_composite_bytes" ["pool"]
        "Bytes of memory that remember where long chains of snapshots have their data.";
    POOL_PAUSE Histogram "pollux_pool_pause_seconds" ["pool"]
        "How long nothing new was begun of volumes that a snapshot or the like made others of.";
    POOL_FAILED Gauge "pollux_pool_failed" ["pool"] "1 if a pool is read-only because its base has failed.";
    POOL_FULL Gauge "pollux_pool_full" ["pool"] "1 while writes wait for space in a pool, or fail for lack of it.";
    POOL_REACHED Gauge "pollux_pool_thresholds_reached" ["pool"] "How many thresholds of a pool are reached now.";
    POOL_CROSSINGS Counter "pollux_pool_threshold_crossings_total" ["pool"]
        "How often thresholds of a pool were reached since it was opened.";
    VOLUME_SIZE Gauge "pollux_volume_size_bytes" ["pool", "volume"] "Bytes that a guest can address.";
    VOLUME_OWNED Gauge "pollux_volume_owned_bytes" ["pool", "volume"]
        "Bytes of the clusters that only this volume or snapshot has.";
    VOLUME_WRITTEN Gauge "pollux_volume_written_bytes" ["pool", "volume"] "Bytes written in those clusters.";
    SESSIONS Gauge "pollux_sessions" ["ctrlr", "state"]
        "Front ends connected to a controller: running (a queue is started) or connected (none is).";
}

/// Reads everything that the node has.
pub struct NodeSource {
    node: Arc<Node>,
    /// Controllers and session states that were seen with a session: they are shown from then on, with 0 too.
    seen: Mutex<HashSet<(String, &'static str)>>,
}

impl NodeSource {
    /// A source for this node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        NodeSource { node, seen: Mutex::default() }
    }
}

impl Source for NodeSource {
    fn collect(&self, sink: &mut Sink) {
        put(sink, &BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        for entry in self.node.bdevs.list() {
            bdev(sink, &entry);
            sg(sink, &entry, self.node.refused_commands(&entry));
        }
        let controllers = self.node.target.controllers();
        for controller in &controllers {
            for at in &controller.luns {
                lun(sink, &controller.name, at);
            }
        }
        for queue in self.node.target.queues() {
            let (index, stats) = (queue.index.to_string(), &queue.stats);
            let labels = [queue.ctrlr.as_str(), index.as_str()];
            moved(sink, &QUEUE_KICKS, &labels, stats.kicks.get());
            moved(sink, &QUEUE_SENT, &labels, stats.interrupts_sent.get());
            moved(sink, &QUEUE_SUPPRESSED, &labels, stats.interrupts_suppressed.get());
            moved(sink, &QUEUE_REQUESTS, &labels, stats.requests.get());
            moved(sink, &QUEUE_INVALID, &labels, stats.invalid.get());
            moved(sink, &QUEUE_BOUNCES, &labels, stats.bounces.get());
        }
        for stats in &self.node.reactors {
            let number = stats.reactor.to_string();
            let labels = [number.as_str()];
            moved_ns(sink, &REACTOR_BUSY, &labels, stats.busy_ns.get());
            moved_ns(sink, &REACTOR_IDLE, &labels, stats.idle_ns.get());
            moved(sink, &REACTOR_TURNS, &labels, stats.turns.get());
            moved(sink, &REACTOR_SLEEPS, &labels, stats.sleeps.get());
            moved(sink, &REACTOR_ENTERS, &labels, stats.enters.get());
            moved(sink, &REACTOR_COMPLETIONS, &labels, stats.completions.get());
            recorded(sink, &REACTOR_SLEEP, &labels, &stats.sleep);
            recorded(sink, &REACTOR_WAKE, &[&number, "message"], &stats.wake_by_message);
            recorded(sink, &REACTOR_WAKE, &[&number, "timer"], &stats.wake_by_timer);
        }
        let moves = self.node.target.move_stats();
        moved(sink, &QUEUES_MOVED, &["moved"], moves.moved());
        moved(sink, &QUEUES_MOVED, &["given_up"], moves.given_up());
        self.sessions(sink, &controllers);
        for open in self.node.pools.all() {
            let info = open.last_info();
            pool(sink, &info);
            recorded(sink, &POOL_PAUSE, &[&info.name], open.pauses());
        }
    }
}

fn pool(sink: &mut Sink, info: &PoolInfo) {
    let labels = [info.name.as_str()];
    let used = info.total_bytes.saturating_sub(info.free_bytes).saturating_sub(info.quarantined_bytes);
    put(sink, &POOL_SIZE, &labels, info.total_bytes as f64);
    put(sink, &POOL_FREE, &labels, info.free_bytes as f64);
    put(sink, &POOL_ALLOCATED, &labels, used as f64);
    put(sink, &POOL_QUARANTINED, &labels, info.quarantined_bytes as f64);
    put(sink, &POOL_DISCARDS, &labels, info.discards.waiting_bytes as f64);
    put(sink, &POOL_PARED, &labels, info.discards.waiting_parts as f64);
    put(sink, &POOL_COMPOSITE, &labels, info.composite_bytes as f64);
    put(sink, &POOL_FAILED, &labels, f64::from(u8::from(info.failed)));
    put(sink, &POOL_FULL, &labels, f64::from(u8::from(info.full)));
    if !info.thresholds.is_empty() || info.crossings > 0 {
        let reached = info.thresholds.iter().filter(|threshold| threshold.reached).count();
        put(sink, &POOL_REACHED, &labels, reached as f64);
        put(sink, &POOL_CROSSINGS, &labels, info.crossings as f64);
    }
    for volume in info.volumes.iter().filter(|volume| volume.role != Role::Leaving) {
        let labels = [info.name.as_str(), volume.name.as_str()];
        put(sink, &VOLUME_SIZE, &labels, volume.bytes as f64);
        put(sink, &VOLUME_OWNED, &labels, volume.owned_bytes as f64);
        put(sink, &VOLUME_WRITTEN, &labels, volume.written_bytes as f64);
    }
}

impl NodeSource {
    fn sessions(&self, sink: &mut Sink, controllers: &[ControllerInfo]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|(name, _)| controllers.iter().any(|controller| controller.name == *name));
        for controller in controllers {
            let running = controller.sessions.iter().filter(|session| !session.queues.is_empty()).count();
            let connected = controller.sessions.len() - running;
            for (state, count) in [("running", running), ("connected", connected)] {
                let key = (controller.name.clone(), state);
                if count > 0 {
                    seen.insert(key.clone());
                }
                if seen.contains(&key) {
                    put(sink, &SESSIONS, &[&controller.name, state], count as f64);
                }
            }
        }
    }
}

fn bdev(sink: &mut Sink, entry: &Entry) {
    let aliases = entry.aliases();
    let alias = aliases.first().map_or("", |alias| alias.as_str());
    let labels = [entry.name(), alias];
    if entry.device().is_none() {
        put(sink, &BDEV_MISSING, &labels, 1.0);
    }
    let sums = entry.stats().snapshot();
    for op in Op::ALL {
        let of = sums.op(op);
        let labels = [entry.name(), alias, op.name()];
        moved(sink, &BDEV_OPS, &labels, of.ops);
        moved(sink, &BDEV_BYTES, &labels, of.bytes);
        moved(sink, &BDEV_ERRORS, &labels, of.errors);
        let latency = HistogramSnapshot::from_counts(of.latency.counts, of.latency.sum_ns);
        histogram(sink, &BDEV_LATENCY, &labels, &latency);
    }
    moved(sink, &BDEV_BOUNCES, &labels, sums.bounces);
    if has_moved(&sums) {
        put(sink, &BDEV_INFLIGHT, &labels, sums.inflight as f64);
    }
}

fn sg(sink: &mut Sink, entry: &Entry, refused: u64) {
    let aliases = entry.aliases();
    let alias = aliases.first().map_or("", |alias| alias.as_str());
    moved(sink, &SG_REFUSED, &[entry.name(), alias], refused);
    let Some(device) = entry.device() else { return };
    let Some(counters) = device.as_sg().map(Sg::counters) else { return };
    let put = |sink: &mut Sink, result: &str, count| moved(sink, &SG_COMMANDS, &[entry.name(), alias, result], count);
    put(sink, "good", counters.good());
    put(sink, "status", counters.delivered(Delivery::Answered).saturating_sub(counters.good()));
    for delivery in Delivery::ALL.into_iter().filter(|delivery| *delivery != Delivery::Answered) {
        put(sink, delivery.name(), counters.delivered(delivery));
    }
}

fn has_moved(sums: &IoSnapshot) -> bool {
    sums.inflight > 0 || sums.ops.iter().any(|of| of.ops > 0 || of.errors > 0)
}

fn lun(sink: &mut Sink, ctrlr: &str, at: &LunInfo) {
    let (target, lun) = (at.target.to_string(), at.lun.to_string());
    for op in Op::ALL {
        let labels = [ctrlr, target.as_str(), lun.as_str(), op.name()];
        let sum = |of: fn(&LunStats, Op) -> u64| at.stats.iter().map(|stats| of(stats, op)).sum::<u64>();
        moved(sink, &LUN_OPS, &labels, sum(|stats, op| stats.op(op).ops.get()));
        moved(sink, &LUN_BYTES, &labels, sum(|stats, op| stats.op(op).bytes.get()));
        moved(sink, &LUN_ERRORS, &labels, sum(|stats, op| stats.op(op).errors.get()));
        let mut latency = HistogramSnapshot::default();
        for kept in at.stats.iter().filter_map(|stats| stats.latency(op)) {
            latency.add(kept);
        }
        histogram(sink, &LUN_LATENCY, &labels, &latency);
    }
}

/// Label names and values together.
fn pairs<'a>(family: &Family, values: &[&'a str]) -> Vec<(&'static str, &'a str)> {
    debug_assert_eq!(family.labels.len(), values.len());
    family.labels.iter().copied().zip(values.iter().copied()).collect()
}

fn put(sink: &mut Sink, family: &Family, values: &[&str], value: f64) {
    let labels = pairs(family, values);
    match family.kind {
        Kind::Counter => sink.counter(family.name, family.help, &labels, value),
        Kind::Gauge | Kind::Histogram => sink.gauge(family.name, family.help, &labels, value),
    }
}

fn moved(sink: &mut Sink, family: &Family, values: &[&str], count: u64) {
    if count > 0 {
        put(sink, family, values, count as f64);
    }
}

fn moved_ns(sink: &mut Sink, family: &Family, values: &[&str], ns: u64) {
    if ns > 0 {
        put(sink, family, values, ns as f64 / 1e9);
    }
}

fn recorded(sink: &mut Sink, family: &Family, values: &[&str], kept: &Histogram) {
    let mut latency = HistogramSnapshot::default();
    latency.add(kept);
    histogram(sink, family, values, &latency);
}

fn histogram(sink: &mut Sink, family: &Family, values: &[&str], latency: &HistogramSnapshot) {
    if latency.count() > 0 {
        sink.histogram(family.name, family.help, &pairs(family, values), latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/metrics.md has a row for each metric with its kind and labels, and none for anything else.
    #[test]
    fn the_documentation_lists_exactly_the_metrics() {
        let text = include_str!("../docs/metrics.md");
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `pollux_")).collect();
        for family in FAMILIES {
            let kind = format!("{:?}", family.kind).to_lowercase();
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let start = format!("| `{}` | {kind} | {} |", family.name, labels.join(", "));
            assert!(rows.iter().any(|row| row.starts_with(&start)), "docs/metrics.md lacks the row {start}");
        }
        assert_eq!(rows.len(), FAMILIES.len(), "docs/metrics.md has rows for metrics that do not exist");
    }

    #[test]
    fn names_follow_the_rules_of_the_format() {
        for family in FAMILIES {
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert_eq!(family.name.ends_with("_seconds"), family.kind == Kind::Histogram, "{}", family.name);
        }
    }
}
