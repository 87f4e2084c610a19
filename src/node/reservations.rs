//! Reservations of disks, for operators.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use pollux_bdev::Entry;
use pollux_scsi::{Action, LogicalUnit, Outcome, ReservationsInfo};

use super::identity::Known;
use super::{Node, NodeError, Reason};

/// How long a clear waits for a guest's own change, and for the medium.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

impl Node {
    /// Who is registered on a bdev and who has reserved it.
    ///
    /// # Errors
    /// If there is no such bdev.
    pub fn reservations(&self, name: &str) -> Result<ReservationsInfo, NodeError> {
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        Ok(self.unit(&entry).reservations())
    }

    /// What an operator should know about a bdev's reservations.
    #[must_use]
    pub fn reservation_warnings(&self, entry: &Entry) -> Vec<String> {
        let unit = self.units().get(&entry.uuid()).cloned();
        let unreadable = unit.is_some_and(|unit| unit.reservations().unreadable);
        if unreadable { vec![closed(entry.name())] } else { Vec::new() }
    }

    /// Takes all registrations and reservations of a bdev away; whoever was registered is told.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn clear_reservations(&self, name: &str) -> Result<(), NodeError> {
        let _changes = self.change();
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        let unit = self.unit(&entry);
        let until = Instant::now() + PATIENCE;
        let save = loop {
            match unit.clear_reservations() {
                Action::Save(save) => break save,
                Action::Done(Outcome::BUSY) if Instant::now() < until => std::thread::sleep(LOOK),
                Action::Done(Outcome::BUSY) => return Err(late(name)),
                _ => return Ok(()),
            }
        };
        let (tell, told) = channel();
        save.start(Box::new(move |saved| {
            let _ = tell.send(saved.outcome);
        }));
        match told.recv_timeout(PATIENCE) {
            Ok(Outcome::GOOD) => Ok(()),
            Ok(_) => {
                let detail = format!("the reservations of bdev '{name}' stay: the log says why that cannot be saved");
                Err(NodeError::new(Reason::StateSave, detail))
            }
            Err(_) => Err(late(name)),
        }
    }

    /// The SCSI unit of a bdev: one for each, whoever exports it, as long as the bdev exists. It comes with what guests
    /// have made durable of it.
    pub(super) fn unit(&self, entry: &Arc<Entry>) -> Arc<LogicalUnit> {
        let make = || {
            let unit = self.new_unit(entry);
            unit.set_medium(Arc::new(Known(Arc::downgrade(entry))));
            unit
        };
        self.units().entry(entry.uuid()).or_insert_with(make).clone()
    }

    fn new_unit(&self, entry: &Entry) -> Arc<LogicalUnit> {
        let shape = entry.device().map(|device| device.shape());
        let identity = self.identity(entry);
        let Some(saver) = &self.unit_saver else { return LogicalUnit::new(identity, shape) };
        let kept = saver.files.load(entry.uuid());
        let unit = LogicalUnit::kept(identity, shape, saver.keeper(), kept.as_ref().ok());
        if unit.reservations().unreadable {
            let file = saver.files.file(entry.uuid());
            let why = kept.err().map_or_else(|| "its reservations make no sense".to_owned(), |error| error.to_string());
            tracing::error!("{}: {why}; {}", file.display(), closed(entry.name()));
        }
        unit
    }
}

/// What it means that a disk's reservations cannot be read, and what to do.
fn closed(name: &str) -> String {
    format!(
        "nobody may use bdev '{name}', because its reservations cannot be read: restore its file in the state directory and \
         restart, or give them up with bdev_clear_reservations"
    )
}

fn late(name: &str) -> NodeError {
    let detail = format!("a change of the reservations of bdev '{name}' is still being saved; try again");
    NodeError::new(Reason::TimedOut, detail)
}
