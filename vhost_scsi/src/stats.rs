//! Counters of queues and LUNs: written by the one reactor that serves them, read by whoever scrapes.

use std::sync::OnceLock;

use pollux_core::{Counter, Histogram, Op};

/// What happened on one virtqueue. On cache lines of its own: queues of different reactors count beside each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct QueueStats {
    /// Notifications from the guest that were taken.
    pub kicks: Counter,
    /// Interrupts sent to the guest.
    pub interrupts_sent: Counter,
    /// Times that completed requests needed no interrupt.
    pub interrupts_suppressed: Counter,
    /// Requests taken from the ring.
    pub requests: Counter,
    /// Bytes of their buffers, headers and responses too.
    pub bytes: Counter,
    /// Requests whose buffers are aligned so badly that the device needs a bounce buffer.
    pub bounces: Counter,
    /// Requests that were malformed.
    pub invalid: Counter,
    /// Requests in flight now (a gauge).
    pub inflight: Counter,
}

/// What one reactor did for one LUN. On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LunStats {
    ops: [LunOp; Op::ALL.len()],
    latency: OnceLock<Box<[Histogram; Op::ALL.len()]>>,
}

/// The share of one operation.
#[derive(Debug, Default)]
pub struct LunOp {
    /// Requests that ended well.
    pub ops: Counter,
    /// Bytes of those.
    pub bytes: Counter,
    /// Requests that failed.
    pub errors: Counter,
}

impl LunStats {
    /// The share of one operation.
    #[must_use]
    pub fn op(&self, op: Op) -> &LunOp {
        &self.ops[op as usize]
    }

    /// Starts to keep latencies from now on. They cost some nanoseconds a request and 6 KiB a LUN and reactor.
    pub fn keep_latencies(&self) {
        self.latency.get_or_init(Default::default);
    }

    /// The latencies of one operation, if they are kept.
    #[must_use]
    pub fn latency(&self, op: Op) -> Option<&Histogram> {
        self.latency.get().map(|all| &all[op as usize])
    }

    pub(crate) fn ended(&self, op: Op, bytes: u64, latency_ns: u64, good: bool) {
        let of = self.op(op);
        if !good {
            of.errors.add(1);
            return;
        }
        of.ops.add(1);
        of.bytes.add(bytes);
        if let Some(latency) = self.latency(op) {
            latency.record(latency_ns);
        }
    }
}
