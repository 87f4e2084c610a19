//! A volume or snapshot, or the difference between two, as a stream (docs/export.md).
//!
//! What is read is a snapshot: of a volume that can be written, one of its own, which nobody sees and which goes when the
//! job ends (`hidden.rs`).

use std::sync::Arc;

use pollux_bdev::thin::store::Blocking;
use pollux_bdev::thin::{ExtentKind, Hold, MapExtent, NewSnapshot, Role, ThinVolume};
use serde_json::{Value, json};
use uuid::Uuid;

use super::identity::state_of;
use super::place::{Place, Sink};
use super::ring::with_ring;
use super::volumes::volume_info;
use super::{OpenPool, PoolUse, hidden, seconds};
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};
use crate::stream::{Base, Begin, DATA_MAX, Writer};

/// Extents that are looked up at once.
const EXTENTS: usize = 1024;
/// Bytes that are read at once.
const AHEAD: u64 = 4 << 20;
const BLOCK: u64 = 4096;

/// What is to be exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// A volume or snapshot.
    pub name: String,
    /// A snapshot that it stands on: only what has changed since.
    pub since: Option<String>,
    /// Where it goes.
    pub to: Place,
}

/// What was looked up for it.
pub struct Exporting {
    name: String,
    to: Place,
    snapshot: ThinVolume,
    since: Option<(ThinVolume, Base)>,
    // In this order they go: nothing keeps the snapshot from being deleted any more, then it is, then nothing of the pool is
    // used.
    _held: Vec<Hold>,
    _own: Option<OwnSnapshot>,
    used: PoolUse,
}

impl Node {
    /// Looks up what is to be exported, and makes the snapshot that is read of what can be written. It is made here, among
    /// the changes of the node, as it takes away from the volume what that has of its own.
    ///
    /// # Errors
    /// [`NodeError`] says why it cannot be.
    pub fn begin_export(&self, export: &Export) -> Result<Exporting, NodeError> {
        let _changes = self.change();
        export.to.check_free()?;
        let (open, entry) = self.find_volume(&export.name)?;
        let info = open.refresh()?;
        let volume = self.whole_volume(&open, entry.uuid())?;
        let since = match &export.since {
            None => None,
            Some(name) => {
                let since = self.ancestor(&open, name, "from_snapshot_name")?;
                let uuid = since.uuid();
                if volume_info(&info, uuid)?.role != Role::Snapshot {
                    let why = format!("from_snapshot_name: '{name}' is no snapshot");
                    return Err(NodeError::new(Reason::Invalid, why));
                }
                // Says so now if it does not stand on it.
                volume.delta(&since, 0, 1)?;
                Some((since, Base { state: state_of(open.uuid(), uuid), name: name.clone() }))
            }
        };
        let used = open.clone().enter();
        let own = match volume_info(&info, entry.uuid())?.role {
            Role::Snapshot => None,
            _ => Some(OwnSnapshot::make(&open, &volume)?),
        };
        let snapshot = own.as_ref().map_or(volume, |own| own.snapshot.clone());
        let read = std::iter::once(&snapshot).chain(since.as_ref().map(|(since, _)| since));
        let held = read.map(ThinVolume::hold).collect::<Result<_, _>>()?;
        let (name, to) = (export.name.clone(), export.to.clone());
        Ok(Exporting { name, to, snapshot, since, _held: held, _own: own, used })
    }
}

impl Exporting {
    /// Does it.
    ///
    /// # Errors
    /// [`NodeError`]: then nothing of it is left, but what was sent to a socket.
    pub fn run(self, job: &Arc<Job>) -> Result<Value, NodeError> {
        let snapshot = &self.snapshot;
        let since = self.since.as_ref().map(|(since, _)| since);
        let content = content(snapshot, since, job)?;
        let begin = Begin {
            stream: Uuid::new_v4(),
            name: self.name.clone(),
            bytes: pollux_core::Bdev::shape(snapshot).bytes(),
            content,
            state: state_of(self.used.pool().uuid(), snapshot.uuid()),
            base: self.since.as_ref().map(|(_, base)| base.clone()),
            created: seconds(),
        };
        job.progress(0, content);
        let mut sink = self.to.sink(job)?;
        let sent = with_ring(snapshot, |blocking| send(blocking, snapshot, since, &begin, &mut sink, job));
        // What was cancelled is told as that, and not as what it came upon.
        let (end, bytes) = sent.map_err(|error| job.check().err().unwrap_or(error))?;
        sink.finish().map_err(not_written)?;
        Ok(json!({
            "state": begin.state,
            "bytes": bytes,
            "data_bytes": end.data_bytes,
            "zero_bytes": end.zero_bytes,
        }))
    }
}

/// A snapshot that is there as long as this is.
struct OwnSnapshot {
    open: Arc<OpenPool>,
    snapshot: ThinVolume,
}

impl OwnSnapshot {
    fn make(open: &Arc<OpenPool>, volume: &ThinVolume) -> Result<Self, NodeError> {
        let uuid = Uuid::new_v4();
        open.pool.snapshot(&[NewSnapshot { volume: volume.uuid(), uuid, name: hidden::name(uuid) }], seconds())?;
        let snapshot = open.pool.volume(uuid).ok_or_else(|| NodeError::no_bdev(&uuid.to_string()))?;
        snapshot.stands_over_the_same(volume);
        Ok(OwnSnapshot { open: open.clone(), snapshot })
    }
}

impl Drop for OwnSnapshot {
    fn drop(&mut self) {
        if let Err(error) = self.open.pool.delete(self.snapshot.uuid()) {
            tracing::warn!("a snapshot that an export has made stays for now: {error}");
            self.open.left_behind(true);
        }
    }
}

/// Goes through all extents.
fn each(
    volume: &ThinVolume,
    since: Option<&ThinVolume>,
    mut look: impl FnMut(&MapExtent) -> Result<(), NodeError>,
) -> Result<(), NodeError> {
    let mut at = Some(0);
    while let Some(offset) = at {
        let survey = match since {
            None => volume.allocated(offset, EXTENTS)?,
            Some(since) => volume.delta(since, offset, EXTENTS)?,
        };
        survey.extents.iter().try_for_each(&mut look)?;
        at = survey.next_offset;
    }
    Ok(())
}

/// Bytes of all extents: the map alone is read.
fn content(volume: &ThinVolume, since: Option<&ThinVolume>, job: &Job) -> Result<u64, NodeError> {
    let mut bytes = 0;
    each(volume, since, |extent| {
        bytes += extent.len;
        job.check()
    })?;
    Ok(bytes)
}

fn send(
    blocking: &mut Blocking<'_>,
    volume: &ThinVolume,
    since: Option<&ThinVolume>,
    begin: &Begin,
    sink: &mut Sink,
    job: &Job,
) -> Result<(crate::stream::End, u64), NodeError> {
    let mut writer = Writer::begin(sink, begin).map_err(not_written)?;
    each(volume, since, |extent| {
        job.check()?;
        if extent.kind == ExtentKind::Zero {
            job.add(extent.len);
            return writer.zero(extent.offset, extent.len).map_err(not_written);
        }
        let mut at = extent.offset;
        while at < extent.offset + extent.len {
            let len = (extent.offset + extent.len - at).min(AHEAD);
            let read = blocking.read(at / BLOCK, (len / BLOCK) as usize);
            let unreadable =
                |error| NodeError::new(Reason::Io, format!("'{}' cannot be read at byte {at}: {error}", begin.name));
            let bytes = read.map_err(unreadable)?;
            for (piece, offset) in bytes.chunks(DATA_MAX).zip((at..).step_by(DATA_MAX)) {
                job.check()?;
                writer.data(offset, piece).map_err(not_written)?;
                job.add(piece.len() as u64);
            }
            at += len;
        }
        Ok(())
    })?;
    writer.end().map_err(not_written)
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn not_written(error: std::io::Error) -> NodeError {
    NodeError::new(Reason::Os, format!("the export cannot be written any further: {error}"))
}
