//! The polling thread: all queues in turn, and now and then a look at everything else (time, the sockets, Ctrl-C).

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::BenchError;
use crate::clock::Clock;
use crate::options::Options;
use crate::queue::{Pass, Queue};
use crate::run::{Counts, Run};
use crate::scsi::Op;
use crate::session::Session;
use crate::watch::Watch;
use crate::work::Work;

/// How often everything else is looked at, at least.
const LOOK: Duration = Duration::from_millis(20);
/// Rounds that found nothing between two looks at the clock.
const IDLE_ROUNDS: u64 = 64;
/// How often progress is shown, and the age of requests is looked at.
const SECOND: Duration = Duration::from_secs(1);

/// Sessions and queues, and how they are driven.
pub(crate) struct Engine<'a> {
    pub(crate) options: &'a Options,
    pub(crate) clock: &'a Clock,
    pub(crate) stop: &'a AtomicBool,
    pub(crate) sessions: Vec<Session>,
    /// The queues of all sessions, one session after another.
    pub(crate) queues: Vec<Queue>,
    /// The queues' interrupts.
    calls: Watch,
    /// The sessions' connections.
    connections: Watch,
}

/// How long a pass goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// Until there is no work left.
    Done,
    /// A time that is not measured, then one that is.
    Time { ramp: Duration, time: Duration },
}

/// When the next thing happens.
struct Schedule {
    begin: u64,
    look: u64,
    second: u64,
    /// When measuring begins, until it has.
    measure: Option<u64>,
    /// How long is measured.
    time: u64,
    end: u64,
    /// Ios done when progress was last shown.
    shown: u64,
}

/// Ticks that were measured.
pub(crate) type Window = u64;

impl<'a> Engine<'a> {
    pub(crate) fn new(
        options: &'a Options,
        clock: &'a Clock,
        stop: &'a AtomicBool,
        sessions: Vec<Session>,
        queues: Vec<Queue>,
    ) -> Result<Self, BenchError> {
        let (calls, connections) = (Watch::new()?, Watch::new()?);
        for queue in queues.iter().filter(|_| options.interrupt) {
            calls.add_signal(queue.call())?;
        }
        for (n, session) in sessions.iter().enumerate() {
            connections.add_connection(session.socket(), n)?;
        }
        Ok(Engine { options, clock, stop, sessions, queues, calls, connections })
    }

    /// Lays all queues and does the work. Afterwards `run.counts` is what came of the measured time, or of everything if
    /// no time is measured.
    pub(crate) fn pass<W: Work>(
        &mut self,
        passes: &[Pass],
        op: Op,
        work: &mut W,
        run: &mut Run<'_>,
        until: Until,
        what: &str,
    ) -> Result<Window, BenchError> {
        let share = self.queues.len() / passes.len();
        for (n, queue) in self.queues.iter_mut().enumerate() {
            queue.lay(&passes[n / share], op);
        }
        run.stopping = false;
        run.counts = Counts::default();
        let mut schedule = self.schedule(until);
        for queue in &mut self.queues {
            queue.prime(work, run)?;
        }
        run.last_seen = run.clock.now();
        let window = self.turn_until_end(work, run, &mut schedule, what)?;
        if self.options.progress && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        let counts = std::mem::take(&mut run.counts);
        self.drain(work, run)?;
        run.counts = counts;
        Ok(window)
    }

    fn schedule(&self, until: Until) -> Schedule {
        let begin = self.clock.now();
        let (measure, time, end) = match until {
            Until::Done => (None, 0, u64::MAX),
            Until::Time { ramp, time } if ramp.is_zero() => {
                (None, self.clock.ticks(time), begin + self.clock.ticks(time))
            }
            Until::Time { ramp, time } => (Some(begin + self.clock.ticks(ramp)), self.clock.ticks(time), u64::MAX),
        };
        let second = begin + self.clock.ticks(SECOND);
        let mut schedule = Schedule { begin, look: begin, second, measure, time, end, shown: 0 };
        schedule.next_look(self.clock, begin);
        schedule
    }

    fn turn_until_end<W: Work>(
        &mut self,
        work: &mut W,
        run: &mut Run<'_>,
        schedule: &mut Schedule,
        what: &str,
    ) -> Result<Window, BenchError> {
        let special = self.options.interrupt || run.gap != 0;
        loop {
            let mut found = 0;
            for queue in &mut self.queues {
                found += u64::from(queue.visit(work, run)?);
            }
            run.counts.polls += 1;
            let now = if found > 0 {
                run.last_seen
            } else {
                run.counts.empty_polls += 1;
                if special {
                    self.idle(work, run, schedule)?;
                } else if !run.counts.empty_polls.is_multiple_of(IDLE_ROUNDS) {
                    continue;
                }
                run.clock.now()
            };
            if now >= schedule.look && self.look(now, run, schedule, what)? {
                // Work that came to its end did so at the last answer.
                let end = if self.is_idle() { run.last_seen } else { now };
                return Ok(end.saturating_sub(schedule.begin));
            }
        }
    }

    /// Nothing is in flight, and nothing will be.
    fn is_idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.in_flight() == 0 && queue.due().is_none())
    }

    /// Everything that is not the path of an I/O. True: the pass is over.
    #[cold]
    fn look(&mut self, now: u64, run: &mut Run<'_>, schedule: &mut Schedule, what: &str) -> Result<bool, BenchError> {
        if self.is_idle() {
            return Ok(true);
        }
        if now >= schedule.end || self.stop.load(Ordering::Relaxed) {
            if schedule.measure.is_some() {
                run.counts = Counts::default();
                schedule.begin = now;
            }
            return Ok(true);
        }
        if schedule.measure.is_some_and(|at| now >= at) {
            run.counts = Counts::default();
            schedule.measure = None;
            schedule.end = now + schedule.time;
            schedule.begin = now;
            schedule.shown = 0;
        }
        self.check_connections()?;
        if now >= schedule.second {
            self.check_age(now)?;
            self.show(now, run, schedule, what);
            schedule.second = now + self.clock.ticks(SECOND);
        }
        schedule.next_look(self.clock, now);
        Ok(false)
    }

    fn check_connections(&mut self) -> Result<(), BenchError> {
        match self.connections.wait(Duration::ZERO)? {
            (_, None) => Ok(()),
            (_, Some(n)) => Err(BenchError::Target(format!(
                "the target closed the connection of {} while the load ran; its log may say why",
                self.sessions[n].path().display()
            ))),
        }
    }

    fn check_age(&self, now: u64) -> Result<(), BenchError> {
        let limit = self.clock.ticks(self.options.timeout);
        let share = self.queues.len() / self.sessions.len();
        let late = |queue: &Queue| queue.oldest().is_some_and(|start| now.saturating_sub(start) > limit);
        match self.queues.iter().position(late) {
            None => Ok(()),
            Some(n) => Err(BenchError::Target(format!(
                "{}: a request on queue {} has been in flight for more than {} s: the target hangs (or is so slow that \
                 --timeout must be longer)",
                self.sessions[n / share].path().display(),
                n % share,
                self.options.timeout.as_secs()
            ))),
        }
    }

    fn show(&self, now: u64, run: &Run<'_>, schedule: &mut Schedule, what: &str) {
        if !self.options.progress {
            return;
        }
        let done = run.counts.done();
        let last = schedule.second - self.clock.ticks(SECOND);
        let seconds = (now - last) as f64 / self.clock.ticks(SECOND) as f64;
        let rate = done.saturating_sub(schedule.shown) as f64 / seconds;
        let at = (now - schedule.begin) as f64 / self.clock.ticks(SECOND) as f64;
        let what = if schedule.measure.is_some() { "ramp" } else { what };
        let line = format!("{what} {at:.0} s: {rate:.0} IOPS, {} errors", run.errors);
        if std::io::stderr().is_terminal() {
            // Over the last line, which is wiped when the pass ends.
            eprint!("\r{line}\x1b[K");
        } else {
            eprintln!("{line}");
        }
        schedule.shown = done;
    }

    /// Nothing was found: starts what is due, waits for interrupts if that is how it goes.
    #[cold]
    fn idle<W: Work>(&mut self, work: &mut W, run: &mut Run<'_>, schedule: &Schedule) -> Result<(), BenchError> {
        let now = run.clock.now();
        if run.gap != 0 {
            for queue in &mut self.queues {
                queue.wake(now, work, run)?;
            }
        }
        if self.options.interrupt {
            let due = self.queues.iter().filter_map(Queue::due).min().unwrap_or(u64::MAX);
            self.wait(run, due.min(schedule.look))?;
        }
        Ok(())
    }

    /// Waits for an interrupt, at most until `end`.
    fn wait(&mut self, run: &mut Run<'_>, end: u64) -> Result<(), BenchError> {
        let mut answers = false;
        for queue in &mut self.queues {
            answers |= queue.arm();
        }
        if !answers {
            let left = end.saturating_sub(run.clock.now());
            let (rung, _) = self.calls.wait(self.clock.duration(left))?;
            run.counts.interrupts += rung as u64;
        }
        Ok(())
    }

    /// Lets everything end that is in flight.
    fn drain<W: Work>(&mut self, work: &mut W, run: &mut Run<'_>) -> Result<(), BenchError> {
        run.stopping = true;
        let look = self.clock.ticks(LOOK);
        let mut next = run.clock.now() + look;
        while self.queues.iter().any(|queue| queue.in_flight() > 0) {
            for queue in &mut self.queues {
                queue.visit(work, run)?;
            }
            let now = run.clock.now();
            if now >= next {
                self.check_connections()?;
                self.check_age(now)?;
                next = now + look;
            }
        }
        Ok(())
    }
}

impl Schedule {
    fn next_look(&mut self, clock: &Clock, now: u64) {
        self.look = (now + clock.ticks(LOOK)).min(self.end).min(self.measure.unwrap_or(u64::MAX));
    }
}
