//! A pool that is in use is checked: all of its metadata, at a bounded rate, while guests go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_bdev::thin::check::Report;
use pollux_bdev::thin::{Holding, Image};
use serde_json::Value;

use super::ring::with_ring;
use super::{PoolName, PoolUse};
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};

/// Bytes that are read each second if nobody says otherwise.
const RATE_MIB: u64 = 64;
/// How often a pool is looked at anew that did not stay as it was.
const TRIES: u32 = 3;
/// The longest that a rest is without a look whether the job is to end.
const REST: Duration = Duration::from_millis(200);
const BLOCK: u64 = 4096;

/// What was looked up for it.
pub struct Scrub {
    rate: u64,
    used: PoolUse,
}

impl Node {
    /// Looks up the pool that is to be scrubbed.
    ///
    /// # Errors
    /// [`NodeError`] says why it cannot be.
    pub fn begin_scrub(&self, pool: &PoolName, mib_per_second: Option<u64>) -> Result<Scrub, NodeError> {
        let _changes = self.change();
        let mib = mib_per_second.unwrap_or(RATE_MIB);
        let rate = mib.checked_mul(1 << 20).filter(|rate| *rate > 0);
        let rate = rate.ok_or_else(|| NodeError::new(Reason::Invalid, "max_mib_per_second: give 1 or more"))?;
        Ok(Scrub { rate, used: self.find_pool(pool)?.enter() })
    }
}

impl Scrub {
    /// Its pool, by name.
    #[must_use]
    pub fn pool(&self) -> String {
        self.used.pool().last_info().name.clone()
    }

    /// Does it; what was found, as `pollux pool check` has it.
    ///
    /// # Errors
    /// If it cannot be done; damage is no error.
    pub fn run(&self, job: &Arc<Job>) -> Result<Value, NodeError> {
        for _ in 0..TRIES {
            let (report, stayed) = self.once(job)?;
            job.check()?;
            if report.is_clean() || stayed {
                if !report.is_clean() {
                    tracing::error!("pool '{}' is damaged: {} findings", self.pool(), report.findings_total);
                }
                return serde_json::to_value(&report).map_err(|error| NodeError::new(Reason::Os, error));
            }
        }
        let why = "the pool changes too fast to be looked at: try again when it is less busy, or with a higher rate";
        Err(NodeError::new(Reason::InUse, why))
    }

    /// What is found in the pool as it is now, and whether that means anything.
    fn once(&self, job: &Arc<Job>) -> Result<(Report, bool), NodeError> {
        let open = self.used.pool();
        let base = open.base().device().ok_or_else(|| crate::node::bdevs::missing(open.base()))?;
        let holding = Holding::begin(&open.pool)?;
        let report = with_ring(&*base, |blocking| {
            let image: Image = holding.image(blocking)?;
            let mut pace = Pace { rate: self.rate, began: Instant::now(), read: 0, job };
            let mut progress = |done: u64, total: u64| job.progress(done * BLOCK, total * BLOCK);
            Ok(image.check(blocking, &mut || pace.go_on(), &mut progress))
        })?;
        Ok((report, holding.end()?))
    }
}

/// Keeps to a rate.
struct Pace<'a> {
    rate: u64,
    began: Instant,
    /// Bytes.
    read: u64,
    job: &'a Job,
}

impl Pace<'_> {
    /// Rests until one more block may be read; whether it may.
    fn go_on(&mut self) -> bool {
        self.read += BLOCK;
        let due = Duration::from_secs_f64(self.read as f64 / self.rate as f64);
        while let Some(left) = due.checked_sub(self.began.elapsed()).filter(|left| *left > Duration::from_millis(1)) {
            if self.job.is_cancelled() {
                return false;
            }
            std::thread::sleep(left.min(REST));
        }
        !self.job.is_cancelled()
    }
}
