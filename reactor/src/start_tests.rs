//! Reactors as a whole: messages, sleep, stopping.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use pollux_core::{Cx, Next, PostError};

use super::*;

/// A worker that answers, forwards, counts and sleeps as it is told.
struct Echo {
    number: usize,
    outgoing: VecDeque<(usize, Message)>,
    next: Next,
    polls: Arc<AtomicU64>,
}

enum Message {
    /// Answer with the reactor's number and thread.
    Hello(mpsc::Sender<(usize, thread::ThreadId)>),
    /// Pass on to each of `route` in turn, then answer.
    Route {
        route: Vec<usize>,
        answer: mpsc::Sender<usize>,
    },
    /// Add one.
    Count(Arc<AtomicUsize>),
    /// Have that reactor add one.
    PassOn(usize, Arc<AtomicUsize>),
    /// Answer `Worker::next` with this.
    Next(Next),
    /// Answer with the time at which the worker is polled the next time after this one.
    Timer(u64, mpsc::Sender<u64>),
    Panic,
}

impl Echo {
    fn new(number: usize) -> Self {
        Echo { number, outgoing: VecDeque::new(), next: Next::Idle, polls: Arc::default() }
    }
}

impl Worker for Echo {
    type Message = Message;

    fn message(&mut self, message: Message, cx: &mut Cx<'_>) {
        assert_eq!(cx.reactor, self.number);
        match message {
            // Whoever asked may have given up; the tests notice by themselves.
            Message::Hello(answer) => drop(answer.send((self.number, thread::current().id()))),
            Message::Route { mut route, answer } => match route.pop() {
                Some(to) => self.outgoing.push_back((to, Message::Route { route, answer })),
                None => drop(answer.send(self.number)),
            },
            Message::Count(count) => _ = count.fetch_add(1, Ordering::Release),
            Message::PassOn(to, count) => self.outgoing.push_back((to, Message::Count(count))),
            Message::Next(next) => self.next = next,
            Message::Timer(after, answer) => {
                self.next = Next::At(cx.refresh() + after);
                self.outgoing.push_back((usize::MAX, Message::Timer(cx.now, answer)));
            }
            Message::Panic => panic!("told to"),
        }
    }

    fn poll(&mut self, cx: &mut Cx<'_>) -> u32 {
        self.polls.fetch_add(1, Ordering::Relaxed);
        if let Next::At(when) = self.next
            && cx.now >= when
        {
            self.next = Next::Idle;
            if let Some((_, Message::Timer(start, answer))) = self.outgoing.pop_front() {
                _ = answer.send(cx.now - start);
            }
            return 1;
        }
        0
    }

    fn next(&self) -> Next {
        self.next
    }

    fn outgoing(&mut self, send: &mut dyn FnMut(usize, Message) -> Result<(), Message>) {
        while let Some((to, message)) = self.outgoing.pop_front() {
            if to == usize::MAX {
                return self.outgoing.push_front((to, message));
            }
            if let Err(back) = send(to, message) {
                return self.outgoing.push_front((to, back));
            }
        }
    }
}

fn recorded(histogram: &pollux_core::Histogram) -> u64 {
    histogram.counts().sum()
}

const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(10);

/// Two reactors if there are two cores.
fn config() -> Config {
    let mut cores = cores::allowed();
    cores.truncate(2);
    // Nothing but a wake-up ends a sleep, so that a lost one is seen.
    Config { cores, max_sleep: LONG, ..Config::default() }
}

fn started(config: Config) -> Reactors<Message> {
    let workers = (0..config.cores.len()).map(Echo::new).collect();
    start(config, workers).unwrap()
}

fn wait_until(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < SOON, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_worker_runs_pinned_on_a_thread_of_its_own() {
    let config = config();
    let cores = config.cores.clone();
    let reactors = started(config);
    let poster = reactors.poster();
    assert_eq!(poster.reactors(), cores.len());
    let (answer, answers) = mpsc::channel();
    let mut threads = Vec::new();
    for number in 0..cores.len() {
        poster.post(number, Message::Hello(answer.clone())).unwrap();
        let (from, thread) = answers.recv_timeout(SOON).unwrap();
        assert_eq!(from, number);
        assert!(!threads.contains(&thread));
        threads.push(thread);
    }
    for (stats, core) in reactors.stats().iter().zip(&cores) {
        assert_eq!(stats.core, *core);
        let tid = rustix::thread::Pid::from_raw(stats.tid);
        let set = rustix::thread::sched_getaffinity(tid).unwrap();
        assert_eq!((set.count(), set.is_set(*core)), (1, true));
        assert!(!stats.ring.worker_cores.contains(core), "workers stay off the reactor's core");
    }
    reactors.stop();
}

#[test]
fn idle_reactors_sleep_and_posts_wake_them() {
    let reactors = started(config());
    let stats = reactors.stats();
    for stats in &stats {
        wait_until("it falls asleep", || stats.in_sleep());
    }
    let turns: Vec<u64> = stats.iter().map(|stats| stats.turns.get()).collect();
    thread::sleep(Duration::from_millis(100));
    assert!(stats.iter().zip(&turns).all(|(stats, before)| stats.turns.get() == *before), "it sleeps on");
    let (answer, answers) = mpsc::channel();
    reactors.poster().post(0, Message::Hello(answer)).unwrap();
    answers.recv_timeout(SOON).unwrap();
    wait_until("it falls asleep again", || stats[0].in_sleep());
    assert!(stats[0].wakeups.get() >= 1 && stats[0].sleeps.get() >= 2 && stats[0].messages.get() == 1);
    assert!(stats[0].idle_ns.get() >= 100_000_000, "time asleep is idle time");
    assert!(recorded(&stats[0].sleep) >= 1 && stats[0].sleep.sum() >= 100_000_000, "the sleep that ended is recorded");
    assert!(recorded(&stats[0].wake_by_message) >= 1, "and how long the wake-up took");
    assert_eq!(recorded(&stats[0].wake_by_timer), 0, "no timer ended it");
    assert!(stats[0].busy_ns.get() < 100_000_000);
    reactors.stop();
}

#[test]
fn always_never_sleeps() {
    let reactors = started(Config { poll: PollMode::Always, ..config() });
    let stats = reactors.stats();
    let before = stats[0].turns.get();
    wait_until("it turns", || stats[0].turns.get() > before + 10_000);
    assert!(stats.iter().all(|stats| stats.sleeps.get() == 0));
    reactors.stop();
}

#[test]
fn a_worker_that_says_now_keeps_its_reactor_awake() {
    let reactors = started(config());
    let stats = &reactors.stats()[0];
    reactors.poster().post(0, Message::Next(Next::Now)).unwrap();
    wait_until("it is awake", || stats.messages.get() == 1 && !stats.in_sleep());
    let (sleeps, turns) = (stats.sleeps.get(), stats.turns.get());
    wait_until("it turns", || stats.turns.get() > turns + 10_000);
    assert_eq!(stats.sleeps.get(), sleeps);
    reactors.poster().post(0, Message::Next(Next::Ring)).unwrap();
    wait_until("it may sleep again", || stats.in_sleep());
    reactors.stop();
}

#[test]
fn timers_end_sleeps() {
    let reactors = started(config());
    let (answer, answers) = mpsc::channel();
    for after in [5_000, 2_000_000, 20_000_000] {
        reactors.poster().post(0, Message::Timer(after, answer.clone())).unwrap();
        let took = answers.recv_timeout(SOON).unwrap();
        assert!(took >= after, "{took} ns instead of {after}");
    }
    reactors.stop();
}

#[test]
fn counters_of_a_sleeper_stay_fresh() {
    let reactors = started(Config { max_sleep: Duration::from_millis(10), ..config() });
    let stats = &reactors.stats()[0];
    let before = stats.idle_ns.get();
    wait_until("idle time grows", || stats.idle_ns.get() > before + 50_000_000);
    assert!(recorded(&stats.wake_by_timer) >= 3 && recorded(&stats.wake_by_message) == 0);
    reactors.stop();
}

#[test]
fn messages_go_round_between_reactors() {
    let config = Config { between: 2, ..config() };
    let last = config.cores.len() - 1;
    let reactors = started(config);
    let poster = reactors.poster();
    let (answer, answers) = mpsc::channel();
    // More at once than a ring between two reactors holds, with sends to oneself, ending on the last reactor.
    const ROUTES: usize = 200;
    for i in 0..ROUTES {
        let route = [last, 0, 0, last, last, 0].to_vec();
        poster
            .post(i % (last + 1), Message::Route { route: [vec![last], route].concat(), answer: answer.clone() })
            .unwrap();
    }
    for _ in 0..ROUTES {
        // A route is walked from its end to its start.
        assert_eq!(answers.recv_timeout(SOON).unwrap(), last);
    }
    reactors.stop();
}

/// One sender, one message at a time, so that nothing else wakes a reactor that has missed one. The next message goes out
/// after a pause of random length, which is to say, at any point of the reactor's way back into sleep.
fn post_at_all_moments(reactors: &Reactors<Message>, message: impl Fn(usize, Arc<AtomicUsize>) -> (usize, Message)) {
    const TIME: Duration = Duration::from_secs(2);
    let poster = reactors.poster();
    let taken = Arc::new(AtomicUsize::new(0));
    let (mut random, mut worst, mut round) = (1u64, Duration::ZERO, 0);
    let start = Instant::now();
    while start.elapsed() < TIME {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..random >> 56 {
            std::hint::spin_loop();
        }
        let (to, message) = message(round, Arc::clone(&taken));
        let posted = Instant::now();
        poster.post(to, message).unwrap();
        round += 1;
        while taken.load(Ordering::Acquire) < round {
            let waited = posted.elapsed();
            worst = worst.max(waited);
            assert!(waited < SOON, "message {round} was not taken");
            if waited > Duration::from_micros(200) {
                thread::yield_now();
            }
        }
    }
    let sum = |of: fn(&ReactorStats) -> u64| reactors.stats().iter().map(|stats| of(stats)).sum::<u64>();
    let (sleeps, wakeups) = (sum(|stats| stats.sleeps.get()), sum(|stats| stats.wakeups.get()));
    println!("{round} messages, {sleeps} sleeps, {wakeups} wake-ups, slowest {} µs", worst.as_micros());
    assert!(sleeps > 100 && wakeups > 100, "the reactors really slept: {sleeps}, {wakeups}");
}

/// Reactors that sleep whenever they can, and whose sleep nothing but a wake-up ends.
fn sleepy(count: usize) -> Reactors<Message> {
    let mut config = config();
    config.cores.truncate(count);
    started(Config { spin_max: Duration::ZERO, ..config })
}

#[test]
fn no_wake_up_by_a_post_is_lost() {
    let reactors = sleepy(1);
    post_at_all_moments(&reactors, |_, taken| (0, Message::Count(taken)));
    reactors.stop();
}

#[test]
fn no_wake_up_by_another_reactor_is_lost() {
    let reactors = sleepy(2);
    let count = reactors.poster().reactors();
    post_at_all_moments(&reactors, |round, taken| {
        let (from, to) = (round % count, (round + 1) % count);
        (from, Message::PassOn(to, taken))
    });
    reactors.stop();
}

#[test]
fn a_flood_is_taken_whole() {
    const SENDERS: usize = 2;
    const MESSAGES: usize = 20_000;
    let reactors = started(Config { mailbox: 16, ..config() });
    let taken = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            let (poster, taken) = (reactors.poster(), &taken);
            scope.spawn(move || {
                for i in 0..MESSAGES {
                    poster.post(i % poster.reactors(), Message::Count(Arc::clone(taken))).unwrap();
                }
            });
        }
    });
    wait_until("all are taken", || taken.load(Ordering::Relaxed) == SENDERS * MESSAGES);
    reactors.stop();
}

#[test]
fn stopping_ends_sleepers_and_refuses_messages() {
    let reactors = started(config());
    let poster = reactors.poster();
    for stats in &reactors.stats() {
        wait_until("it falls asleep", || stats.in_sleep());
    }
    let start = Instant::now();
    reactors.stop();
    assert!(start.elapsed() < Duration::from_secs(2));
    let (answer, answers) = mpsc::channel();
    assert_eq!(poster.post(0, Message::Hello(answer)), Err(PostError::Stopped));
    assert!(answers.recv_timeout(SOON).is_err(), "the message was dropped");
}

#[test]
fn a_panic_closes_the_mailbox_and_comes_out_of_stop() {
    let reactors = started(config());
    let poster = reactors.poster();
    poster.post(0, Message::Panic).unwrap();
    let waiting = Arc::new(AtomicUsize::new(0));
    wait_until("it is gone", || poster.post(0, Message::Count(Arc::clone(&waiting))) == Err(PostError::Stopped));
    assert_eq!(Arc::strong_count(&waiting), 1, "messages it did not take are dropped");
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reactors.stop())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"told to"));
}

#[test]
fn what_cannot_be_started_says_why() {
    let error = |cores: Vec<usize>| {
        let workers = (0..cores.len()).map(Echo::new).collect();
        start(Config { cores, ..Config::default() }, workers).err().unwrap().to_string()
    };
    assert!(error(vec![]).contains("no core given"));
    assert!(error(vec![0, 0]).contains("named twice"));
    let text = error(vec![0, 1023]);
    assert!(text.contains("core 1023 is not online") && text.contains("name some of these"), "{text}");
}

#[test]
fn a_ring_that_cannot_be_set_up_stops_the_others() {
    let config = Config { ring: RingConfig { submissions: 0, ..RingConfig::default() }, ..config() };
    let workers = (0..config.cores.len()).map(Echo::new).collect();
    let text = start(config, workers).err().unwrap().to_string();
    assert!(text.contains("the ring of the reactor on core"), "{text}");
}
