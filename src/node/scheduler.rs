//! `framework_set_scheduler`: whether request queues move between the reactors of their controller.
//!
//! `static` leaves them where they were started, one after the other round the controller's reactors. `dynamic` looks each
//! period at how busy the reactors were, and moves queues from those that are beyond `core_limit` to those with room. What
//! it does is worked out by [`plan`], which knows nothing but numbers; `pollux_vhost_scsi::Target::move_queue` does it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_vhost_scsi::QueuePlace;
use serde_json::Value;

use super::{Node, Watch};

/// The option method whose parameters say how.
pub(crate) const METHOD: &str = "framework_set_scheduler";
/// How often a scheduler that does nothing looks whether it should.
const RESTING: Duration = Duration::from_secs(1);
/// Queues that are moved in one period at most: each stops for a moment.
const MOVES: usize = 16;
/// Periods that a queue stays after it was moved, or could not be, so that nothing goes to and fro.
const STAYS: u32 = 5;
/// How much less busy the other reactor has to be afterwards than the first one was, in per cent of a core.
const MARGIN: f64 = 10.0;
/// Bytes that count as one more request: 32 KiB. A disk in memory copies a tenth of that in the time that a request takes
/// otherwise; a file that is read directly costs hardly more for more bytes. This is between the two.
const WORK_SHIFT: u32 = 15;

/// Which scheduler, and how it is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduler {
    /// Whether queues move.
    pub dynamic: bool,
    /// Time between two looks, in microseconds.
    pub period_us: u64,
    /// Remembered for those who set it. Queues are moved largest first, and small ones too: a reactor may be overloaded by
    /// nothing but small ones.
    pub load_limit: u64,
    /// Busier than this, in per cent of a core, a reactor gives queues away.
    pub core_limit: u64,
    /// No reactor is given so much that it becomes busier than this.
    pub core_busy: u64,
}

impl Default for Scheduler {
    fn default() -> Self {
        Scheduler { dynamic: false, period_us: 1_000_000, load_limit: 20, core_limit: 80, core_busy: 95 }
    }
}

impl Scheduler {
    /// The name that SPDK has for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.dynamic { "dynamic" } else { "static" }
    }

    /// Reads the parameters of `framework_set_scheduler`; what is not given is as by default.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(params: &Value) -> Result<Scheduler, String> {
        let dynamic = match params.get("name").and_then(Value::as_str) {
            Some("static") => false,
            Some("dynamic") => true,
            other => return Err(format!("there are the schedulers static and dynamic, not {other:?}")),
        };
        let mut scheduler = Scheduler { dynamic, ..Scheduler::default() };
        if params.get("mappings").is_some() {
            return Err("'mappings' belongs to a scheduler that is not there; name the cores of a controller when it is created".into());
        }
        let number = |name: &str, otherwise: u64, range: std::ops::RangeInclusive<u64>| match params.get(name) {
            None => Ok(otherwise),
            Some(value) => value
                .as_u64()
                .filter(|value| range.contains(value))
                .ok_or_else(|| format!("'{name}' is {} to {}, not {value}", range.start(), range.end())),
        };
        scheduler.period_us = number("period", scheduler.period_us, 10_000..=3_600_000_000)?;
        scheduler.load_limit = number("load_limit", scheduler.load_limit, 0..=100)?;
        scheduler.core_limit = number("core_limit", scheduler.core_limit, 1..=100)?;
        scheduler.core_busy = number("core_busy", scheduler.core_busy, 1..=100)?;
        Ok(scheduler)
    }
}

/// A queue as the plan sees it.
#[derive(Clone, Debug, PartialEq)]
struct Load {
    /// Its reactor.
    reactor: usize,
    /// Where it may run.
    reactors: Vec<usize>,
    /// What it takes of its reactor, in per cent of a core.
    share: f64,
    /// It has to stay for now.
    stays: bool,
}

/// Which queues (by their place in `queues`) are to move where, for reactors that were so busy (in per cent).
///
/// The busiest reactor beyond the limit gives the largest queue away that makes the busier one of the two less busy than it
/// was; and so on, with what the moves so far have changed.
fn plan(scheduler: &Scheduler, busy: &[f64], queues: &[Load]) -> Vec<(usize, usize)> {
    let mut busy = busy.to_vec();
    let mut moved: Vec<(usize, usize)> = Vec::new();
    let mut over: Vec<usize> = (0..busy.len()).filter(|&of| busy[of] > scheduler.core_limit as f64).collect();
    over.sort_by(|a, b| busy[*b].total_cmp(&busy[*a]));
    for from in over {
        while moved.len() < MOVES && busy[from] > scheduler.core_limit as f64 {
            let here = queues.iter().enumerate().filter(|(at, queue)| {
                queue.reactor == from && !queue.stays && !moved.iter().any(|(already, _)| already == at)
            });
            let ways = here.filter(|(_, queue)| queue.share > 0.0).flat_map(|(at, queue)| {
                let others = queue.reactors.iter().filter(|&&to| to != from && to < busy.len());
                others.map(move |&to| (at, to, queue.share))
            });
            let better = ways.filter(|&(_, to, share)| {
                let there = busy[to] + share;
                there <= scheduler.core_busy as f64 && there + MARGIN <= busy[from]
            });
            // The largest one first, to where there is most room.
            let best = better.max_by(|a, b| a.2.total_cmp(&b.2).then(busy[b.1].total_cmp(&busy[a.1])));
            let Some((at, to, share)) = best else { break };
            busy[from] -= share;
            busy[to] += share;
            moved.push((at, to));
        }
    }
    moved
}

/// Names a queue over periods.
type Key = (String, u64, u16);

/// What the scheduler remembers from one look to the next.
struct Memory {
    at: Instant,
    busy_ns: Vec<u64>,
    /// What each queue had done.
    work: HashMap<Key, u64>,
    /// Periods that a queue still stays.
    stays: HashMap<Key, u32>,
}

fn key(queue: &QueuePlace) -> Key {
    (queue.ctrlr.clone(), queue.session, queue.index)
}

/// What a queue has done, in requests.
const fn work(queue: &QueuePlace) -> u64 {
    queue.requests + (queue.bytes >> WORK_SHIFT)
}

/// What each queue took of its reactor since then: its part of the work that was done there.
fn loads(places: &[QueuePlace], busy: &[f64], before: &Memory) -> Vec<Load> {
    let done = |queue: &QueuePlace| work(queue).saturating_sub(before.work.get(&key(queue)).copied().unwrap_or(0));
    let mut of_reactor = vec![0; busy.len()];
    for queue in places {
        of_reactor[queue.reactor] += done(queue);
    }
    let load = |queue: &QueuePlace| Load {
        reactor: queue.reactor,
        reactors: queue.reactors.clone(),
        share: busy[queue.reactor] * done(queue) as f64 / of_reactor[queue.reactor].max(1) as f64,
        stays: before.stays.get(&key(queue)).is_some_and(|periods| *periods > 0),
    };
    places.iter().map(load).collect()
}

impl Node {
    /// The scheduler that is set.
    #[must_use]
    pub fn scheduler(&self) -> Scheduler {
        let document = self.document();
        document.options.get(METHOD).and_then(|params| Scheduler::parse(params).ok()).unwrap_or_default()
    }

    /// Starts the scheduler's thread.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start_scheduler(self: &Arc<Self>) -> std::io::Result<Watch> {
        let node = Arc::clone(self);
        let mut memory = None;
        Watch::repeat("scheduler", RESTING, move || {
            let scheduler = node.scheduler();
            if scheduler.dynamic {
                memory = Some(node.balance(&scheduler, memory.take()));
                Duration::from_micros(scheduler.period_us)
            } else {
                memory = None;
                RESTING
            }
        })
    }

    fn balance(&self, scheduler: &Scheduler, before: Option<Memory>) -> Memory {
        let places = self.target.queue_places();
        let mut now = Memory {
            at: Instant::now(),
            busy_ns: self.reactors.iter().map(|stats| stats.busy_ns.get()).collect(),
            work: places.iter().map(|queue| (key(queue), work(queue))).collect(),
            stays: HashMap::new(),
        };
        let Some(before) = before else { return now };
        let time = now.at.duration_since(before.at).as_nanos().max(1) as f64;
        let busy: Vec<f64> = now
            .busy_ns
            .iter()
            .zip(&before.busy_ns)
            .map(|(now, before)| (now.saturating_sub(*before) as f64 / time * 100.0).min(100.0))
            .collect();
        let loads = loads(&places, &busy, &before);
        let stays = |queue: &QueuePlace| before.stays.get(&key(queue)).copied().unwrap_or(0);
        now.stays = places.iter().map(|queue| (key(queue), stays(queue).saturating_sub(1))).collect();
        for (at, to) in plan(scheduler, &busy, &loads) {
            let queue = &places[at];
            now.stays.insert(key(queue), STAYS);
            match self.target.move_queue(&queue.ctrlr, queue.session, queue.index, to) {
                Ok(true) => tracing::info!(
                    "queue {} of controller '{}' moved from reactor {} to {to}",
                    queue.index,
                    queue.ctrlr,
                    queue.reactor
                ),
                Ok(false) => tracing::debug!("queue {} of controller '{}' stays", queue.index, queue.ctrlr),
                // The session may have ended since.
                Err(error) => tracing::debug!("queue {} of '{}' was not moved: {error}", queue.index, queue.ctrlr),
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dynamic() -> Scheduler {
        Scheduler { dynamic: true, ..Scheduler::default() }
    }

    fn queue(reactor: usize, share: f64) -> Load {
        Load { reactor, reactors: vec![0, 1, 2], share, stays: false }
    }

    #[test]
    fn large_requests_are_more_work_than_small_ones() {
        let place = |index, reactor, requests, bytes| QueuePlace {
            ctrlr: "vm".into(),
            session: 1,
            index,
            reactor,
            reactors: vec![0, 1],
            requests,
            bytes,
        };
        let earlier = [place(2, 0, 1000, 4_096_000), place(3, 0, 1000, 4_096_000), place(4, 1, 7, 0)];
        let later = [
            place(2, 0, 1400, 4_096_000 + 400 * 4096),
            place(3, 0, 1100, 4_096_000 + 100 * (1 << 20)),
            earlier[2].clone(),
        ];
        let work = earlier.iter().map(|queue| (key(queue), work(queue))).collect();
        let stays = HashMap::from([(key(&earlier[0]), 1), (key(&earlier[1]), 0)]);
        let before = Memory { at: Instant::now(), busy_ns: vec![0, 0], work, stays };
        let loads = loads(&later, &[90.0, 50.0], &before);
        // 400 requests with 50 requests' worth of bytes, and 100 with 3200.
        assert_eq!(loads[0].share, 90.0 * 450.0 / 3750.0);
        assert_eq!(loads[1].share, 90.0 * 3300.0 / 3750.0);
        assert_eq!((loads[2].share, loads[2].reactor), (0.0, 1));
        assert_eq!((loads[0].stays, loads[1].stays), (true, false));
    }

    #[test]
    fn two_busy_queues_part() {
        let queues = [queue(0, 48.0), queue(0, 50.0)];
        assert_eq!(plan(&dynamic(), &[98.0, 0.0, 30.0], &queues), [(1, 1)]);
    }

    #[test]
    fn one_busy_queue_has_nowhere_better_to_be() {
        assert_eq!(plan(&dynamic(), &[99.0, 0.0, 0.0], &[queue(0, 99.0)]), []);
    }

    #[test]
    fn nothing_moves_that_must_not_or_does_not_help() {
        let stays = Load { stays: true, ..queue(0, 50.0) };
        assert_eq!(plan(&dynamic(), &[99.0, 0.0, 0.0], &[stays, queue(0, 0.0)]), [], "held, and without effect");
        let bound = Load { reactors: vec![0], ..queue(0, 50.0) };
        assert_eq!(plan(&dynamic(), &[99.0, 0.0, 0.0], &[bound]), [], "its controller runs nowhere else");
        assert_eq!(plan(&dynamic(), &[79.0, 0.0, 0.0], &[queue(0, 40.0)]), [], "not overloaded");
        assert_eq!(plan(&dynamic(), &[99.0, 60.0, 50.0], &[queue(0, 50.0)]), [], "no room anywhere");
    }

    #[test]
    fn many_queues_spread_until_nobody_is_overloaded() {
        let queues: Vec<Load> = (0..4).map(|_| queue(0, 25.0)).collect();
        let moves = plan(&Scheduler { core_limit: 40, ..dynamic() }, &[100.0, 0.0, 0.0], &queues);
        // 50, 25, 25: another one would only make the next reactor as busy.
        let mut to: Vec<usize> = moves.iter().map(|(_, to)| *to).collect();
        to.sort_unstable();
        assert_eq!(to, [1, 2], "{moves:?}");
    }

    #[test]
    fn many_small_queues_leave_an_overloaded_reactor() {
        let queues: Vec<Load> = (0..250).map(|_| queue(0, 0.4)).collect();
        assert_eq!(plan(&dynamic(), &[100.0, 0.0, 0.0], &queues).len(), MOVES);
        let beside_a_large_one = [&[queue(0, 90.0)][..], &[queue(0, 3.0), queue(0, 3.0)]].concat();
        let mut moves = plan(&dynamic(), &[96.0, 94.0, 20.0], &beside_a_large_one);
        moves.sort_unstable();
        assert_eq!(moves, [(1, 2), (2, 2)], "the large one has nowhere better to be, the small ones have");
    }

    #[test]
    fn a_plan_never_moves_more_than_a_few_and_none_twice() {
        let queues: Vec<Load> = (0..40).map(|_| queue(0, 2.5)).collect();
        let moves = plan(&Scheduler { core_limit: 10, ..dynamic() }, &[100.0, 0.0, 0.0], &queues);
        assert_eq!(moves.len(), MOVES);
        assert!(moves.iter().enumerate().all(|(n, a)| moves[n + 1..].iter().all(|b| a.0 != b.0)));
    }

    #[test]
    fn parameters_are_checked() {
        let parse = |value: Value| Scheduler::parse(&value);
        assert_eq!(parse(json!({"name": "static"})), Ok(Scheduler::default()));
        let set = parse(json!({"name": "dynamic", "period": 50_000, "core_limit": 70})).expect("good");
        assert_eq!((set.name(), set.period_us, set.core_limit, set.core_busy), ("dynamic", 50_000, 70, 95));
        for bad in [json!({}), json!({"name": "gscheduler"}), json!({"name": "dynamic", "period": 5})] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
        assert!(parse(json!({"name": "dynamic", "core_busy": 101})).expect_err("refused").contains("core_busy"));
        assert!(parse(json!({"name": "dynamic", "mappings": "x"})).is_err());
    }
}
