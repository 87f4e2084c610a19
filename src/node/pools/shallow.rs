//! What is a snapshot's own, without what it stands on, copied to the same places of another bdev.
//!
//! Its own is what it differs in from its parent. That is not only what its own layer has: below that there may be a deleted
//! snapshot that is still being folded into it, or one that an export has for itself.

use std::sync::Arc;

use pollux_bdev::thin::store::Blocking;
use pollux_bdev::thin::{ExtentKind, Hold, MapExtent, Role, ThinVolume};
use pollux_bdev::{Claim, Device, Entry, Kind as BdevKind};
use serde_json::{Value, json};

use super::PoolUse;
use super::ring::with_ring;
use super::volumes::volume_info;
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};

/// The word for such jobs.
pub const SHALLOW_COPY: &str = "shallow_copy";

/// Extents that are looked up at once.
const EXTENTS: usize = 1024;
/// Bytes that are copied at once.
const PIECE: u64 = 4 << 20;
const BLOCK: u64 = 4096;

/// What was looked up for a copy.
pub struct ShallowCopy {
    node: Arc<Node>,
    source: ThinVolume,
    parent: Option<ThinVolume>,
    _held: Vec<Hold>,
    to: Arc<Entry>,
    device: Arc<dyn Device>,
    _used: PoolUse,
}

impl Node {
    /// Looks up what is to be copied and where to, and claims that.
    ///
    /// # Errors
    /// [`NodeError`] says why it cannot be.
    pub fn begin_shallow_copy(self: &Arc<Self>, from: &str, to: &str) -> Result<ShallowCopy, NodeError> {
        let changes = self.change();
        let (open, entry) = self.find_volume(from)?;
        let to = self.bdevs.get(to).ok_or_else(|| NodeError::no_bdev(to))?;
        let source = self.whole_volume(&open, entry.uuid())?;
        let info = open.refresh()?;
        let known = volume_info(&info, entry.uuid())?;
        if known.role != Role::Snapshot {
            let why = format!("'{from}' can be written: make a snapshot of it, or make it read-only, and copy that");
            return Err(NodeError { reason: "unfit", errno: libc::EPERM, detail: why });
        }
        let device = to.device().ok_or_else(|| crate::node::bdevs::missing(&to))?;
        let (has, wants) = (device.shape(), pollux_core::Bdev::shape(&source));
        if has.bytes() < wants.bytes() || has.read_only {
            let why = format!(
                "bdev '{}' has {} bytes that can be written, and '{from}' has {}",
                to.name(),
                if has.read_only { 0 } else { has.bytes() },
                wants.bytes()
            );
            return Err(NodeError::new(Reason::Invalid, why));
        }
        if let Some((ctrlr, lun)) = changes.document.attachments(to.name()).next() {
            let why = format!("bdev '{}' is in use by controller '{ctrlr}' (target {})", to.name(), lun.target);
            return Err(NodeError::new(Reason::InUse, why));
        }
        let parent = known.parent.and_then(|parent| open.pool.volume(parent));
        let held = std::iter::once(&source).chain(&parent).map(ThinVolume::hold).collect::<Result<_, _>>()?;
        self.bdevs.claim(to.name(), Claim { kind: BdevKind::Lvol, by: vec![format!("a shallow copy of {from}")] })?;
        Ok(ShallowCopy { node: Arc::clone(self), source, parent, _held: held, to, device, _used: open.enter() })
    }
}

impl Drop for ShallowCopy {
    fn drop(&mut self) {
        self.node.bdevs.unclaim(self.to.name(), BdevKind::Lvol);
    }
}

impl ShallowCopy {
    /// Does it. What was copied before it failed, or was cancelled, stays.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn run(&self, job: &Job) -> Result<Value, NodeError> {
        let mut bytes = 0;
        self.each(job, |extent| {
            bytes += extent.len;
            Ok(())
        })?;
        job.progress(0, bytes);
        let copied = with_ring(&self.source, |from| {
            with_ring(&*self.device, |to| {
                self.each(job, |extent| copy(from, to, extent, job))?;
                to.flush().map_err(|error| failed("be made durable", 0, error))
            })
        });
        copied.map_err(|error| job.check().err().unwrap_or(error))?;
        Ok(json!({ "bytes": bytes }))
    }

    fn each(&self, job: &Job, mut look: impl FnMut(&MapExtent) -> Result<(), NodeError>) -> Result<(), NodeError> {
        let mut at = Some(0);
        while let Some(offset) = at {
            let survey = match &self.parent {
                Some(parent) => self.source.delta(parent, offset, EXTENTS)?,
                None => self.source.written(offset, EXTENTS)?,
            };
            for extent in &survey.extents {
                job.check()?;
                look(extent)?;
            }
            at = survey.next_offset;
        }
        Ok(())
    }
}

fn copy(from: &mut Blocking<'_>, to: &mut Blocking<'_>, extent: &MapExtent, job: &Job) -> Result<(), NodeError> {
    let (mut at, end) = (extent.offset, extent.offset + extent.len);
    if extent.kind == ExtentKind::Zero {
        let zeroed = to.write_zeroes(at / BLOCK..end / BLOCK);
        job.add(extent.len);
        return zeroed.map_err(|error| failed("be written", at, error));
    }
    while at < end {
        job.check()?;
        let len = (end - at).min(PIECE);
        let bytes = from.read(at / BLOCK, (len / BLOCK) as usize).map_err(|error| failed("be read", at, error))?;
        to.write_at_once(at / BLOCK, &bytes).map_err(|error| failed("be written", at, error))?;
        job.add(len);
        at += len;
    }
    Ok(())
}

fn failed(what: &str, at: u64, error: pollux_core::IoError) -> NodeError {
    NodeError::new(Reason::Io, format!("the copy cannot {what} at byte {at}: {error}"))
}
