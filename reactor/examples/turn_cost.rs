//! What a turn of a reactor costs by itself: nothing to do, or one signal through the ring in each.
//!
//! `cargo run --release -p pollux-reactor --example turn_cost` prints nanoseconds a turn, the median of ten tenths of a
//! second, for one reactor and for as many as `--cores` names (each more is a ring of messages to look at). Under
//! `valgrind --tool=callgrind --toggle-collect='*Reactor*::turn'` divide the instructions by the turns it prints.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pollux_core::{ClientId, Cx, Entry, Next, RingOp, Token, Worker};
use pollux_reactor::{Config, PollMode, parse_cores, start};
use rustix::event::{EventfdFlags, eventfd};

/// Signals an eventfd through the ring once a turn, if it is told to.
struct Signaller {
    signals: Arc<AtomicBool>,
    event: OwnedFd,
    client: Option<ClientId>,
    done: Vec<pollux_core::Done>,
    in_flight: bool,
}

impl Worker for Signaller {
    type Message = ();

    fn message(&mut self, (): (), _: &mut Cx<'_>) {}

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        if !self.signals.load(Relaxed) {
            return 0;
        }
        let client = *self.client.get_or_insert_with(|| cx.ring.add_client(1).expect("a new ring has room"));
        cx.ring.reap(client, &mut self.done);
        self.in_flight &= self.done.is_empty();
        self.done.clear();
        if !self.in_flight {
            self.in_flight = true;
            let op = RingOp::Signal { fd: self.event.as_raw_fd() };
            cx.ring.push(Entry { client, token: Token { index: 0, generation: 0 }, op });
        }
        1
    }

    fn next(&self) -> Next {
        Next::Now
    }

    fn outgoing(&mut self, _: &mut dyn FnMut(usize, ()) -> Result<(), ()>) {}
}

fn main() {
    let mut args = std::env::args().skip(1);
    let cores = match (args.next().as_deref(), args.next()) {
        (Some("--cores"), Some(cores)) => parse_cores(&cores).expect("--cores takes a list of cores"),
        _ => vec![0],
    };
    let signals = Arc::new(AtomicBool::new(false));
    let worker = || Signaller {
        signals: Arc::clone(&signals),
        event: eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"),
        client: None,
        done: Vec::with_capacity(1),
        in_flight: false,
    };
    let workers = cores.iter().map(|_| worker()).collect();
    let reactors =
        start(Config { cores, poll: PollMode::Always, ..Config::default() }, workers).expect("reactors start");
    let stats = Arc::clone(&reactors.stats()[0]);
    for (what, busy) in [("idle", false), ("one signal", true)] {
        signals.store(busy, Relaxed);
        let mut times: Vec<f64> = (0..10)
            .map(|_| {
                let (turns, since) = (stats.turns.get(), Instant::now());
                std::thread::sleep(Duration::from_millis(100));
                since.elapsed().as_nanos() as f64 / (stats.turns.get() - turns) as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!("{what}: {:.1} ns a turn (least {:.1}), {} turns so far", times[5], times[0], stats.turns.get());
    }
    reactors.stop();
}
