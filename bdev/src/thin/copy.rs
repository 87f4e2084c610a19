//! Copies inside of a pool that move no data: a volume gets back, at the same place, what a snapshot that it stands on has.
//!
//! What the head has of its own there is taken out of its map, so that it shows the snapshot again; what it has not does so
//! already. That is right where no layer between them has anything to say, where the volume sees as far down as the snapshot,
//! and while nobody copies what lies below into it. Everything else is read and written: a
//! cluster belongs to one entry of one layer, so two that do not stand on each other cannot share one.
//!
//! For helper threads: a part of a map that is not in memory is waited for.

use std::any::Any;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pollux_core::{CopyEnd, CopyError, IoError};

use super::channel::{touched, whole};
use super::pool::ThinVolume;
use super::shared::{CLOSED, Chain, Miss, Reader, Shared, Stay};

/// Bytes that are given back in one step: only maps are changed.
const STEP: u64 = 1 << 30;
/// Clusters that are looked at before the engine may take something out of the maps again.
const AT_ONCE: u32 = 256;
/// How long a thread sleeps that waits for a part of a map, or for a lock.
const NAP: Duration = Duration::from_micros(200);
/// How long it waits without getting on.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(30) };

/// A volume or a snapshot as an end of copies.
pub(super) struct ThinEnd(pub(super) ThinVolume);

impl CopyEnd for ThinEnd {
    fn step(&self) -> u64 {
        STEP
    }

    fn grain(&self) -> u64 {
        1 << self.0.shared.sub_shift()
    }

    fn copy_from(&self, to: u64, source: &dyn CopyEnd, from: u64, len: u64) -> Result<(), CopyError> {
        let Some(ThinEnd(source)) = (source as &dyn Any).downcast_ref::<ThinEnd>() else {
            return Err(CopyError::Apart);
        };
        if from != to || !Arc::ptr_eq(&self.0.shared, &source.shared) {
            return Err(CopyError::Apart);
        }
        let reader = self.0.shared.reader();
        if !self.0.shared.enter(&self.0.volume, &reader) {
            return Err(CopyError::Target(IoError::NotReady));
        }
        let result = Restore { target: &self.0, source, at: to, end: to.saturating_add(len) }.run(&reader);
        self.0.shared.leave(&self.0.volume, &reader);
        result
    }
}

struct Restore<'a> {
    target: &'a ThinVolume,
    source: &'a ThinVolume,
    /// What is left.
    at: u64,
    end: u64,
}

impl Restore<'_> {
    fn run(&mut self, reader: &Reader) -> Result<(), CopyError> {
        let (shared, word) = (&self.target.shared, self.target.volume.word());
        let (mut stay, mut since) = (Stay::new(), Instant::now());
        loop {
            let before = self.at;
            let (epoch, word) = stay.begin(reader, &shared.epoch, word);
            stay.go_by(reader, word);
            let went = if word & CLOSED == 0 {
                let some = self.target.volume.unless_inflating(|| self.some());
                some.unwrap_or(Err(CopyError::Apart))
            } else {
                Ok(false)
            };
            stay.end(reader, epoch);
            if self.at >= self.end {
                return Ok(());
            }
            if went? || self.at > before {
                since = Instant::now();
            } else if since.elapsed() < PATIENCE {
                thread::sleep(NAP);
            } else {
                return Err(CopyError::Target(IoError::Busy));
            }
        }
    }

    /// The next clusters; `false`: it has to wait.
    fn some(&mut self) -> Result<bool, CopyError> {
        let shared = &self.target.shared;
        let chain = self.target.volume.chain();
        let above = self.above(&chain)?;
        for _ in 0..AT_ONCE {
            let to_end = (1u64 << shared.cluster_shift) - (self.at & ((1 << shared.cluster_shift) - 1));
            let len = (self.end - self.at).min(to_end);
            if len == 0 {
                break;
            }
            match self.cluster(&chain, above, len) {
                Ok(true) => self.at += len,
                Ok(false) | Err(Stop::Wait) => return Ok(false),
                // Who reads it is told what is wrong.
                Err(Stop::Apart) => return Err(CopyError::Apart),
            }
        }
        Ok(true)
    }

    /// How many layers of the target stand on the snapshot.
    fn above(&self, chain: &Chain) -> Result<usize, CopyError> {
        if self.end > chain.bytes {
            return Err(CopyError::Target(IoError::OutOfRange));
        }
        if chain.read_only || self.target.shared.commits.have_failed() {
            return Err(CopyError::Target(IoError::ReadOnly));
        }
        let source = self.source.volume.chain();
        if self.end > source.bytes {
            return Err(CopyError::Source(IoError::OutOfRange));
        }
        let of = source.head().id;
        chain.layers.iter().position(|layer| layer.id == of).filter(|above| *above > 0).ok_or(CopyError::Apart)
    }

    /// A part of one cluster; `false`: somebody changes it.
    fn cluster(&self, chain: &Chain, above: usize, len: u64) -> Result<bool, Stop> {
        let shared = &self.target.shared;
        let (cluster, mask) = (self.at >> shared.cluster_shift, whole(shared, self.at, len));
        if mask != touched(shared, self.at, len) {
            return Err(Stop::Apart);
        }
        if chain.seen(cluster, 0).len() <= above {
            return Err(Stop::Apart);
        }
        for layer in &chain.layers[1..above] {
            let entry = shared.entry(layer, cluster)?;
            if (entry.here() | entry.zero()) & mask != 0 {
                return Err(Stop::Apart);
            }
        }
        let head = chain.head();
        let (leaf, slot) = Shared::slot(cluster);
        let Some(number) = shared.page(head, leaf)? else { return Ok(true) };
        let entry = shared.leaves.get(number).entry(slot);
        if (entry.here() | entry.zero()) & mask == 0 {
            return Ok(true);
        }
        if !shared.locks.try_lock(head.id, cluster, mask) {
            return Ok(false);
        }
        shared.punch(head, number, slot, mask, true);
        shared.locks.unlock(head.id, cluster, mask);
        Ok(true)
    }
}

enum Stop {
    Wait,
    Apart,
}

impl From<Miss> for Stop {
    fn from(miss: Miss) -> Stop {
        match miss {
            Miss::Wait | Miss::Space => Stop::Wait,
            Miss::Lost | Miss::Apart => Stop::Apart,
        }
    }
}
