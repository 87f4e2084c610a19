//! Jobs: work that takes long, its progress, and its end.
//!
//! A method that takes long does its work as a job, on the thread of the call, or on a thread of its own if the caller
//! does not want to wait ([`Jobs::run`]). Either way it is in the table, says how far it is, and can be cancelled: the
//! work asks now and then ([`Job::check`]), cleans up and ends. What has ended stays in the table until [`KEPT`] others
//! have; nothing of it survives the daemon, which cancels what runs when it ends.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{NodeError, Reason};

/// Jobs that run at once.
pub const RUNNING_MAX: usize = 16;
/// Jobs that have ended and can still be asked for.
pub const KEPT: usize = 128;

/// All jobs.
#[derive(Default)]
pub struct Jobs {
    inner: Mutex<Inner>,
    /// Told when one ends.
    ended: Condvar,
}

#[derive(Default)]
struct Inner {
    /// In the order of their start.
    jobs: VecDeque<Arc<Job>>,
    last_number: u32,
    closed: bool,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The word for it.
    pub kind: &'static str,
    /// What it is done with, for people.
    pub object: String,
}

/// A piece of work.
pub struct Job {
    id: Uuid,
    number: u32,
    kind: &'static str,
    object: String,
    started: u64,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    end: OnceLock<End>,
}

/// How a job has ended.
pub struct End {
    at: u64,
    /// What the work came to.
    pub outcome: Result<Value, NodeError>,
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It has not ended.
    Running,
    /// All was done.
    Complete,
    /// It ended early because that was asked for.
    Cancelled,
    /// It could not be done.
    Failed,
}

impl JobState {
    /// Its name in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Complete => "complete",
            JobState::Cancelled => "cancelled",
            JobState::Failed => "failed",
        }
    }
}

impl Job {
    /// By which it is known.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The same as a number, for dialects that know jobs by numbers.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// The word for what it does.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// So many bytes are done, of so many.
    pub fn progress(&self, done: u64, total: u64) {
        self.total.store(total, Relaxed);
        self.done.store(done, Relaxed);
    }

    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Bytes that are done, and all.
    #[must_use]
    pub fn progressed(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Asks it to end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Release);
    }

    /// Whether it is to end. Work asks often enough to end within a second.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Acquire)
    }

    /// The same as an error.
    ///
    /// # Errors
    /// [`Reason::Cancelled`].
    pub fn check(&self) -> Result<(), NodeError> {
        let cancelled = || NodeError::new(Reason::Cancelled, format!("the job {} was cancelled", self.id));
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// How it has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> JobState {
        match self.end.get().map(|end| &end.outcome) {
            None => JobState::Running,
            Some(Ok(_)) => JobState::Complete,
            Some(Err(error)) if error.reason == Reason::Cancelled.word() => JobState::Cancelled,
            Some(Err(_)) => JobState::Failed,
        }
    }

    /// As `job_get_jobs` lists it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (end, (done, total)) = (self.end(), self.progressed());
        let mut shown = json!({
            "job_id": self.id,
            "kind": self.kind,
            "object": self.object,
            "state": self.state().name(),
            "done_bytes": done,
            "total_bytes": total,
            "started": self.started,
            "ended": end.map(|end| end.at),
        });
        match end.map(|end| &end.outcome) {
            Some(Ok(result)) => shown["result"] = result.clone(),
            Some(Err(error)) => shown["error"] = json!({"reason": error.reason, "detail": error.detail}),
            None if self.is_cancelled() => shown["cancelling"] = true.into(),
            None => {}
        }
        shown
    }
}

impl Jobs {
    /// All of them, in the order of their start.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.lock().jobs.iter().cloned().collect()
    }

    /// The one with this id.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, id: &str) -> Result<Arc<Job>, NodeError> {
        let uuid = Uuid::try_parse(id).ok();
        let found = self.lock().jobs.iter().find(|job| Some(job.id) == uuid).cloned();
        found.ok_or_else(|| {
            let why =
                format!("there is no job '{id}': the last {KEPT} that have ended are kept, until the daemon ends");
            NodeError::new(Reason::NotFound, why)
        })
    }

    /// Asks a job to end.
    ///
    /// # Errors
    /// If there is none, or it has ended.
    pub fn cancel(&self, id: &str) -> Result<(), NodeError> {
        let job = self.find(id)?;
        match job.state() {
            JobState::Running => {
                tracing::info!("job {} ({} {}) is to end", job.id, job.kind, job.object);
                job.cancel();
                Ok(())
            }
            ended => Err(NodeError::new(Reason::Ended, format!("job {id} has ended: {}", ended.name()))),
        }
    }

    /// No new ones, and those that run are to end. For the end of the daemon.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.jobs.iter().for_each(|job| job.cancel());
    }

    /// Waits until none runs; whether that came to be in time.
    pub fn wait(&self, patience: Duration) -> bool {
        let (until, mut inner) = (Instant::now() + patience, self.lock());
        while inner.jobs.iter().any(|job| job.end().is_none()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Does what takes long as a job: here, or, if `detached`, on a thread of its own, and answers with the job's id at
    /// once. What can be refused at once is looked at before this.
    ///
    /// # Errors
    /// Those of `work` if it is done here; [`Reason::TooManyJobs`], or that there is no thread.
    pub fn run(
        self: &Arc<Self>,
        new: NewJob,
        detached: bool,
        work: impl FnOnce(&Arc<Job>) -> Result<Value, NodeError> + Send + 'static,
    ) -> Result<Value, NodeError> {
        self.reserve(new)?.run(detached, work)
    }

    /// A place among those that run, for work before which something has to be made: nothing is if there is no place.
    ///
    /// # Errors
    /// [`Reason::TooManyJobs`].
    pub fn reserve(self: &Arc<Self>, new: NewJob) -> Result<Reserved, NodeError> {
        Ok(Reserved { jobs: Arc::clone(self), job: Some(self.begin(new)?) })
    }

    /// Does it on a thread of its own; returns the job itself, for answers of another shape.
    ///
    /// # Errors
    /// [`Reason::TooManyJobs`], or that there is no thread.
    pub fn start(
        self: &Arc<Self>,
        new: NewJob,
        work: impl FnOnce(&Arc<Job>) -> Result<Value, NodeError> + Send + 'static,
    ) -> Result<Arc<Job>, NodeError> {
        self.reserve(new)?.start(work)
    }

    fn begin(&self, new: NewJob) -> Result<Arc<Job>, NodeError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(NodeError::new(Reason::Cancelled, "the daemon is ending"));
        }
        let running = inner.jobs.iter().filter(|job| job.end().is_none()).count();
        if running >= RUNNING_MAX {
            let why = format!("{running} jobs are running: wait for one of them, or cancel it (job_get_jobs)");
            return Err(NodeError::new(Reason::TooManyJobs, why));
        }
        inner.last_number = inner.last_number.wrapping_add(1);
        let job = Arc::new(Job {
            id: Uuid::new_v4(),
            number: inner.last_number,
            kind: new.kind,
            object: new.object,
            started: super::pools::seconds(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            end: OnceLock::new(),
        });
        inner.jobs.push_back(job.clone());
        Ok(job)
    }

    fn finish(&self, job: &Job, outcome: Result<Value, NodeError>) {
        let mut inner = self.lock();
        match &outcome {
            Ok(_) => tracing::info!("job {} ({} {}) is complete", job.id, job.kind, job.object),
            Err(error) => tracing::warn!("job {} ({} {}) has ended: {error}", job.id, job.kind, job.object),
        }
        let _first = job.end.set(End { at: super::pools::seconds(), outcome });
        let ended = inner.jobs.iter().filter(|job| job.end().is_some()).count();
        if ended > KEPT
            && let Some(oldest) = inner.jobs.iter().position(|job| job.end().is_some())
        {
            inner.jobs.remove(oldest);
        }
        self.ended.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for a job that has not begun: it was never there if this goes before.
pub struct Reserved {
    jobs: Arc<Jobs>,
    job: Option<Arc<Job>>,
}

impl Reserved {
    /// As [`Jobs::run`].
    ///
    /// # Errors
    /// Those of `work` if it is done here; that there is no thread.
    pub fn run(
        self,
        detached: bool,
        work: impl FnOnce(&Arc<Job>) -> Result<Value, NodeError> + Send + 'static,
    ) -> Result<Value, NodeError> {
        if detached {
            return Ok(json!({ "job_id": self.start(work)?.id() }));
        }
        self.begin().work(work)
    }

    fn start(
        self,
        work: impl FnOnce(&Arc<Job>) -> Result<Value, NodeError> + Send + 'static,
    ) -> Result<Arc<Job>, NodeError> {
        let running = self.begin();
        let job = running.job.clone();
        // What it comes to is in the table.
        let spawned = std::thread::Builder::new().name("job".into()).spawn(move || drop(running.work(work)));
        let refused = |error| NodeError::new(Reason::Os, format!("no thread for a job: {error}"));
        spawned.map(|_| job).map_err(refused)
    }

    fn begin(mut self) -> Running {
        let job = self.job.take().expect("a place is used once");
        Running { jobs: Arc::clone(&self.jobs), job, outcome: None }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.jobs.lock().jobs.retain(|other| other.id != job.id);
            self.jobs.ended.notify_all();
        }
    }
}

/// A job that runs: it ends when this goes, also when its work panics.
struct Running {
    jobs: Arc<Jobs>,
    job: Arc<Job>,
    outcome: Option<Result<Value, NodeError>>,
}

impl Running {
    fn work(mut self, work: impl FnOnce(&Arc<Job>) -> Result<Value, NodeError>) -> Result<Value, NodeError> {
        let outcome = work(&self.job);
        self.outcome = Some(outcome.clone());
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let broke = || Err(NodeError::new(Reason::Os, "it had no thread, or its thread has panicked: see the log"));
        self.jobs.finish(&self.job, self.outcome.take().unwrap_or_else(broke));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn new(object: &str) -> NewJob {
        NewJob { kind: "test", object: object.into() }
    }

    fn soon(jobs: &Jobs) {
        assert!(jobs.wait(Duration::from_secs(30)), "it has ended");
    }

    #[test]
    fn a_job_says_how_far_it_is_and_what_it_came_to() {
        let jobs = Arc::<Jobs>::default();
        let (go, gone) = channel::<()>();
        let (at, reached) = channel::<()>();
        let answer = jobs.run(new("v"), true, move |job| {
            job.progress(1, 4);
            job.add(2);
            at.send(()).unwrap();
            gone.recv().unwrap();
            Ok(json!({"made": "x"}))
        });
        let id = answer.unwrap()["job_id"].as_str().unwrap().to_owned();
        reached.recv().unwrap();
        let shown = jobs.find(&id).unwrap().to_json();
        assert_eq!(
            (&shown["state"], &shown["done_bytes"], &shown["total_bytes"]),
            (&json!("running"), &json!(3), &json!(4))
        );
        assert!(shown["ended"].is_null() && shown["started"].is_u64() && shown["object"] == "v", "{shown}");
        go.send(()).unwrap();
        soon(&jobs);
        let shown = jobs.find(&id).unwrap().to_json();
        assert!(shown["state"] == "complete" && shown["result"]["made"] == "x" && shown["ended"].is_u64(), "{shown}");
        assert_eq!(jobs.cancel(&id).map_err(|error| error.reason), Err("ended"));
    }

    #[test]
    fn what_is_not_detached_is_answered_when_it_is_done_and_is_in_the_table() {
        let jobs = Arc::<Jobs>::default();
        assert_eq!(jobs.run(new("a"), false, |_| Ok(json!(7))), Ok(json!(7)));
        let no = NodeError::new(Reason::NoSpace, "none left");
        assert_eq!(jobs.run(new("b"), false, |_| Err(NodeError::new(Reason::NoSpace, "none left"))), Err(no));
        let shown: Vec<_> = jobs.all().iter().map(|job| job.to_json()).collect();
        assert_eq!((&shown[0]["state"], &shown[1]["state"]), (&json!("complete"), &json!("failed")));
        assert_eq!(shown[1]["error"], json!({"reason": "no_space", "detail": "none left"}));
    }

    #[test]
    fn a_cancelled_job_cleans_up_and_ends_and_one_that_panics_has_failed() {
        let jobs = Arc::<Jobs>::default();
        let job = jobs
            .start(new("v"), |job| {
                while !job.is_cancelled() {
                    std::thread::yield_now();
                }
                job.check().map(|()| Value::Null)
            })
            .unwrap();
        jobs.cancel(&job.id().to_string()).unwrap();
        soon(&jobs);
        assert_eq!(job.state(), JobState::Cancelled);
        let broken = jobs.start(new("w"), |_| panic!("as a test wants it")).unwrap();
        soon(&jobs);
        assert_eq!(broken.state(), JobState::Failed);
        for id in ["nonsense", "5bd1b3c2-4c1d-4f8a-9f3e-0c8a8e2f7a11"] {
            assert_eq!(jobs.cancel(id).map_err(|error| error.reason), Err("not_found"));
        }
    }

    #[test]
    fn no_more_run_than_may_and_no_more_are_kept_than_are_promised() {
        let jobs = Arc::<Jobs>::default();
        let running: Vec<_> = (0..RUNNING_MAX)
            .map(|_| {
                let (go, gone) = channel::<()>();
                (jobs.start(new("v"), move |_| gone.recv().map_or(Ok(Value::Null), |()| Ok(Value::Null))).unwrap(), go)
            })
            .collect();
        assert_eq!(jobs.run(new("x"), true, |_| Ok(Value::Null)).map_err(|error| error.reason), Err("too_many_jobs"));
        let oldest = running[0].0.id().to_string();
        drop(running);
        soon(&jobs);
        for _ in 0..KEPT {
            jobs.run(new("y"), false, |_| Ok(Value::Null)).unwrap();
        }
        assert_eq!(jobs.all().len(), KEPT);
        assert!(jobs.find(&oldest).is_err(), "the oldest are forgotten first");
    }

    #[test]
    fn a_place_that_is_not_used_was_never_there() {
        let jobs = Arc::<Jobs>::default();
        let places: Vec<_> = (0..RUNNING_MAX).map(|_| jobs.reserve(new("v")).unwrap()).collect();
        assert_eq!(jobs.reserve(new("x")).map_err(|error| error.reason).err(), Some("too_many_jobs"));
        drop(places);
        assert!(jobs.all().is_empty());
        assert_eq!(jobs.reserve(new("v")).unwrap().run(false, |_| Ok(json!(7))), Ok(json!(7)));
        assert_eq!(jobs.all().len(), 1);
    }

    #[test]
    fn at_the_end_all_are_asked_to_end_and_none_begins() {
        let jobs = Arc::<Jobs>::default();
        let work = |job: &Arc<Job>| {
            while !job.is_cancelled() {
                std::thread::yield_now();
            }
            job.check().map(|()| Value::Null)
        };
        let job = jobs.start(new("v"), work).unwrap();
        assert!(!jobs.wait(Duration::from_millis(1)), "it runs");
        jobs.close();
        soon(&jobs);
        assert_eq!(job.state(), JobState::Cancelled);
        assert_eq!(jobs.run(new("x"), false, |_| Ok(Value::Null)).map_err(|error| error.reason), Err("cancelled"));
    }
}
