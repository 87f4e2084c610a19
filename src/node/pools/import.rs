//! A volume from a stream (docs/export.md): everything, or a difference on top of the snapshot that it says.
//!
//! It goes into a volume that nobody sees, and is given its name when the stream has proved that it is whole and what it
//! says is durable. If it breaks off, that volume is deleted; after a crash, by the next opening of the pool.

use std::sync::Arc;

use pollux_bdev::thin::store::Blocking;
use pollux_bdev::thin::{PoolInfo, Role, ThinVolume};
use serde_json::Value;
use uuid::Uuid;

use super::identity::imported;
use super::open::check_name;
use super::place::{Place, Source};
use super::ring::with_ring;
use super::volumes::refuse_taken;
use super::{OpenPool, PoolName, PoolUse, hidden, seconds};
use crate::node::jobs::Job;
use crate::node::{Node, NodeError, Reason};
use crate::stream::{Begin, Frame, Reader, StreamError};

const BLOCK: u64 = 4096;

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct Import {
    /// Into which pool.
    pub pool: PoolName,
    /// Its name there.
    pub name: String,
    /// Whether it is to be a snapshot, onto which later differences can be imported.
    pub read_only: bool,
    /// Where it comes from.
    pub from: Place,
}

/// What was looked up for it.
pub struct Importing {
    name: String,
    read_only: bool,
    from: Place,
    used: PoolUse,
}

impl Node {
    /// Looks up where something is to be imported.
    ///
    /// # Errors
    /// [`NodeError`] says why it cannot be.
    pub fn begin_import(&self, import: &Import) -> Result<Importing, NodeError> {
        let _changes = self.change();
        import.from.check()?;
        let open = self.find_pool(&import.pool)?;
        // What would be refused at the end is refused at the beginning.
        check_name("lvol_name", &import.name)?;
        refuse_taken(&*open.refresh()?, &import.name, |_| false)?;
        let Import { name, read_only, from, .. } = import.clone();
        Ok(Importing { name, read_only, from, used: open.enter() })
    }

    /// Does it; the UUID of the new volume.
    ///
    /// # Errors
    /// [`NodeError`]: then nothing of it is left.
    pub fn run_import(&self, importing: &Importing, job: &Arc<Job>) -> Result<Value, NodeError> {
        let open = importing.used.pool();
        let mut reader = Reader::begin(importing.from.source(job)?).map_err(refused)?;
        job.progress(0, reader.what().content);
        let mut new = NewVolume::make(open, reader.what(), importing.read_only)?;
        new.volume = self.whole_volume(open, new.volume.uuid())?;
        let received = with_ring(&new.volume, |blocking| receive(blocking, &mut reader, job));
        // What was cancelled is told as that, and not as what it came upon.
        received.map_err(|error| job.check().err().unwrap_or(error))?;
        if importing.read_only {
            open.pool.set_read_only(new.volume.uuid())?;
        }
        let _changes = self.change();
        let uuid = new.named(&importing.name)?;
        self.show_new(open, uuid, &importing.name)?;
        Ok(uuid.to_string().into())
    }
}

/// A volume that has no name yet: it is deleted if it never gets one.
struct NewVolume<'a> {
    open: &'a OpenPool,
    volume: ThinVolume,
    is_named: bool,
}

impl<'a> NewVolume<'a> {
    fn make(open: &'a OpenPool, begin: &Begin, read_only: bool) -> Result<Self, NodeError> {
        let info = open.refresh()?;
        let uuid = if read_only { imported(open.uuid(), begin.state) } else { Uuid::new_v4() };
        if let Some(known) = info.volumes.iter().find(|known| known.uuid == uuid) {
            let why = format!("pool '{}' has this state already: it is '{}'", info.name, known.name);
            return Err(NodeError::new(Reason::ExistsSame, why));
        }
        match base(&info, open.uuid(), begin)? {
            None => open.pool.create_volume(uuid, &hidden::name(uuid), begin.bytes, 0, seconds())?,
            Some(base) => open.pool.clone_snapshot(base, uuid, &hidden::name(uuid), seconds())?,
        }
        let volume = open.pool.volume(uuid).ok_or_else(|| NodeError::no_bdev(&uuid.to_string()))?;
        let new = NewVolume { open, volume, is_named: false };
        if pollux_core::Bdev::shape(&new.volume).bytes() != begin.bytes {
            open.pool.resize(uuid, begin.bytes, true)?;
        }
        Ok(new)
    }

    /// It is what it is to be.
    fn named(mut self, name: &str) -> Result<Uuid, NodeError> {
        self.open.pool.rename(self.volume.uuid(), name)?;
        self.is_named = true;
        Ok(self.volume.uuid())
    }
}

impl Drop for NewVolume<'_> {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        if let Err(error) = self.open.pool.delete(self.volume.uuid()) {
            tracing::warn!("what an import has left goes later: {error}");
            self.open.left_behind(true);
        }
    }
}

/// The snapshot of this pool that a stream stands on.
fn base(info: &PoolInfo, pool: Uuid, begin: &Begin) -> Result<Option<Uuid>, NodeError> {
    let Some(base) = &begin.base else { return Ok(None) };
    let is_it = |uuid: Uuid| uuid == base.state || uuid == imported(pool, base.state);
    let found = info.volumes.iter().find(|known| known.role == Role::Snapshot && is_it(known.uuid));
    let missing = || {
        let (state, from) = (base.state, &base.name);
        let why = format!(
            "it is what has changed since '{from}' (state {state}), and pool '{}' has no such snapshot: import that one \
             first, read-only",
            info.name
        );
        NodeError::new(Reason::WrongBase, why)
    };
    found.map(|known| Some(known.uuid)).ok_or_else(missing)
}

/// Writes what comes, until all has come and is durable.
fn receive(blocking: &mut Blocking<'_>, reader: &mut Reader<Source>, job: &Job) -> Result<(), NodeError> {
    loop {
        job.check()?;
        let (offset, len, written) = match reader.next_frame().map_err(refused)? {
            Frame::Data { offset, bytes } => {
                (offset, bytes.len() as u64, blocking.write_at_once(offset / BLOCK, bytes))
            }
            Frame::Zero { offset, len } => (offset, len, blocking.write_zeroes(offset / BLOCK..(offset + len) / BLOCK)),
            Frame::End(_) => {
                let lost = |error| NodeError::new(Reason::Io, format!("it cannot be made durable: {error}"));
                return blocking.flush().map_err(lost);
            }
        };
        job.add(len);
        written.map_err(|error| match error {
            pollux_core::IoError::NoSpace => {
                NodeError::new(Reason::NoSpace, "the pool has no space for the rest of it")
            }
            error => NodeError::new(Reason::Io, format!("it cannot be written at byte {offset}: {error}")),
        })?;
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn refused(error: StreamError) -> NodeError {
    let reason = match &error {
        StreamError::NotAStream | StreamError::Damaged { .. } | StreamError::Behind(_) | StreamError::Torn { .. } => {
            Reason::BadStream
        }
        StreamError::Version(_) => Reason::Unsupported,
        StreamError::Io(_) => Reason::Os,
    };
    NodeError::new(reason, format!("the stream is refused: {error}"))
}
