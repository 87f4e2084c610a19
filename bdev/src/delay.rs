//! A device that answers later than its base: for seeing what slow disks do to what is above.
//!
//! Every read and write is held for an average latency after the base has completed it, one in a hundred (by a seeded
//! draw) for a long one instead. Other operations are not held. The four latencies can be changed at any time, from any
//! thread: each is one atomic, read when the base completes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pollux_core::{
    Alignment, Bdev, Channel, Completion, Cx, Erasure, Extent, Io, IoError, Lane, Next, Op, OpenArgs, OpenError, Shape,
    Slab, Tag,
};
use serde_json::{Value, json};

use crate::measured::{tag_of, token_of};
use crate::rng::Rng;
use crate::{DelaySpec, Device};

/// Which of the four latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyKind {
    /// Of 99 in 100 reads.
    AvgRead,
    /// Of one in 100 reads.
    P99Read,
    /// Of 99 in 100 writes.
    AvgWrite,
    /// Of one in 100 writes.
    P99Write,
}

/// Microseconds, in the order of [`LatencyKind`].
type Latencies = [AtomicU64; 4];

/// The device.
pub struct Delay {
    name: String,
    base_name: String,
    base: Arc<dyn Bdev>,
    latencies: Arc<Latencies>,
}

impl Delay {
    /// A device as `spec` says on `base`.
    pub fn new(spec: &DelaySpec, base: Arc<dyn Bdev>) -> Self {
        let latencies = [spec.avg_read_latency, spec.p99_read_latency, spec.avg_write_latency, spec.p99_write_latency];
        Delay {
            name: spec.name.clone(),
            base_name: spec.base_bdev_name.clone(),
            base,
            latencies: Arc::new(latencies.map(AtomicU64::new)),
        }
    }

    /// One of the latencies in microseconds.
    #[must_use]
    pub fn latency(&self, kind: LatencyKind) -> u64 {
        self.latencies[kind as usize].load(Relaxed)
    }

    /// Sets one of the latencies in microseconds, for requests that complete from now on.
    pub fn set_latency(&self, kind: LatencyKind, us: u64) {
        self.latencies[kind as usize].store(us, Relaxed);
    }
}

impl Bdev for Delay {
    fn shape(&self) -> Shape {
        self.base.shape()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.base.extent(offset, len)
    }

    fn extent_waits(&self) -> bool {
        self.base.extent_waits()
    }

    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        let base = self.base.open(args)?;
        let depth = base.depth();
        Ok(Box::new(DelayChannel {
            base,
            latencies: self.latencies.clone(),
            rng: Rng::new(args.seed),
            below: Slab::new(depth),
            held: BinaryHeap::with_capacity(depth as usize),
            order: 0,
            ended: Vec::with_capacity(depth as usize),
        }))
    }
}

impl Device for Delay {
    fn product_name(&self) -> &'static str {
        "delay"
    }

    fn driver_specific(&self) -> Value {
        json!({ "delay": {
            "name": self.name,
            "base_bdev_name": self.base_name,
            "avg_read_latency": self.latency(LatencyKind::AvgRead),
            "p99_read_latency": self.latency(LatencyKind::P99Read),
            "avg_write_latency": self.latency(LatencyKind::AvgWrite),
            "p99_write_latency": self.latency(LatencyKind::P99Write),
        }})
    }

    fn as_delay(&self) -> Option<&Delay> {
        Some(self)
    }
}

/// A request below.
struct Below {
    tag: Tag,
    op: Op,
    cancelled: bool,
}

/// A request that the base has completed. Ordered by time, then by arrival.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Held {
    at: u64,
    order: u64,
    done: Completion,
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct DelayChannel {
    base: Box<dyn Channel>,
    latencies: Arc<Latencies>,
    rng: Rng,
    below: Slab<Below>,
    held: BinaryHeap<Reverse<Held>>,
    order: u64,
    ended: Vec<Completion>,
}

impl DelayChannel {
    /// Nanoseconds to hold a request.
    fn draw(&mut self, op: Op) -> u64 {
        let (average, long) = match op {
            Op::Read => (LatencyKind::AvgRead, LatencyKind::P99Read),
            Op::Write => (LatencyKind::AvgWrite, LatencyKind::P99Write),
            Op::Flush | Op::Discard | Op::WriteZeroes => return 0,
        };
        let kind = if self.rng.below(100) == 0 { long } else { average };
        self.latencies[kind as usize].load(Relaxed).saturating_mul(1000)
    }

    /// Takes what the base has completed into the held ones.
    fn collect(&mut self, cx: &mut Cx<'_>) {
        let mut ended = std::mem::take(&mut self.ended);
        self.base.poll(cx, &mut ended);
        for Completion { tag, result } in ended.drain(..) {
            let Below { tag, op, cancelled } = self.below.remove(token_of(tag)).expect("each tag completes once");
            let at = if cancelled { cx.now } else { cx.now.saturating_add(self.draw(op)) };
            self.order += 1;
            self.held.push(Reverse(Held { at, order: self.order, done: Completion { tag, result } }));
        }
        self.ended = ended;
    }
}

impl Channel for DelayChannel {
    fn depth(&self) -> u32 {
        self.below.capacity()
    }

    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        let in_flight = self.below.len() as usize + self.held.len();
        assert!(in_flight < self.below.capacity() as usize, "the submitter keeps to the depth");
        let below = Below { tag: io.tag, op: io.op, cancelled: false };
        let token = self.below.insert(below).ok().expect("fewer are below than in flight");
        self.base.submit(Io { tag: tag_of(token), ..io }, cx);
    }

    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.collect(cx);
        while let Some(Reverse(first)) = self.held.peek()
            && first.at <= cx.now
        {
            done.push(first.done);
            self.held.pop();
        }
    }

    fn next(&self) -> Next {
        let held = self.held.peek().map_or(Next::Idle, |Reverse(first)| Next::At(first.at));
        held.or(self.base.next())
    }

    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        if let Some((token, below)) = self.below.iter_mut().find(|(_, below)| below.tag == tag) {
            below.cancelled = true;
            return self.base.cancel(tag_of(token), cx);
        }
        // What is held is rebuilt with the cancelled one in front; `into_vec` and `from` keep the memory.
        let mut held = std::mem::take(&mut self.held).into_vec();
        if let Some(Reverse(found)) = held.iter_mut().find(|Reverse(held)| held.done.tag == tag) {
            found.at = cx.now;
            found.done.result = Err(IoError::Aborted);
        }
        self.held = BinaryHeap::from(held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, model, ram};
    use pollux_core::IoFlags;

    fn delay(base: Arc<dyn Device>) -> Delay {
        let spec = DelaySpec {
            name: "d".into(),
            base_bdev_name: "ram".into(),
            avg_read_latency: 10,
            p99_read_latency: 1000,
            avg_write_latency: 20,
            p99_write_latency: 2000,
            uuid: None,
        };
        Delay::new(&spec, base)
    }

    #[test]
    fn behaves_as_its_base() {
        model::check_cases(8, || (Arc::new(delay(ram(512, 512))) as Arc<dyn Device>, ()));
    }

    #[test]
    fn one_in_a_hundred_takes_long() {
        let device = delay(ram(512, 16));
        let mut rig = Rig::new(&device);
        let mut took = std::collections::BTreeMap::new();
        for _ in 0..2000 {
            let before = rig.ring.now;
            rig.read(0, 512).unwrap();
            *took.entry(rig.ring.now - before).or_insert(0) += 1;
        }
        let [(short, many), (long, few)] = took.into_iter().collect::<Vec<_>>()[..] else { panic!("two latencies") };
        assert_eq!((short, long), (10_000, 1_000_000));
        assert!((5..60).contains(&few) && many + few == 2000, "{few} of 2000 were long");
    }

    #[test]
    fn latencies_change_while_it_runs_and_other_operations_are_not_held() {
        let device = delay(ram(512, 16));
        let mut rig = Rig::new(&device);
        device.set_latency(LatencyKind::AvgWrite, 7);
        device.set_latency(LatencyKind::P99Write, 7);
        let before = rig.ring.now;
        rig.write(0, &[1; 512], IoFlags::empty()).unwrap();
        assert_eq!(rig.ring.now - before, 7000);
        rig.flush().unwrap();
        assert_eq!(rig.ring.now - before, 7000);
        assert_eq!(device.driver_specific()["delay"]["avg_write_latency"], 7);
    }

    #[test]
    fn what_is_held_can_be_cancelled() {
        let device = delay(ram(512, 16));
        let mut rig = Rig::new(&device);
        let data = rig.segments(0, &[], 512);
        let io = |tag| Io { tag, op: Op::Read, flags: IoFlags::empty(), offset: 0, len: 512, data };
        rig.submit(io(1));
        rig.submit(io(2));
        assert_eq!(rig.poll(), []);
        assert!(matches!(rig.next(), Next::At(_)));
        rig.cancel(2);
        assert_eq!(rig.poll(), [Completion { tag: 2, result: Err(IoError::Aborted) }]);
        assert_eq!(rig.finish(), [Completion { tag: 1, result: Ok(()) }]);
        rig.submit(io(3));
        rig.cancel(3);
        let now = rig.ring.now;
        assert_eq!(rig.finish(), [Completion { tag: 3, result: Err(IoError::Aborted) }]);
        assert_eq!(rig.ring.now, now, "a cancelled request is not held");
    }
}
