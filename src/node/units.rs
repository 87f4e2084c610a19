//! The SCSI units of bdevs: how they come with what guests have made durable, and what operators change of that.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use pollux_bdev::Entry;
use pollux_scsi::{Action, Attention, LogicalUnit, Outcome};

use super::identity::Known;
use super::{Node, NodeError, Reason, through};

/// How long a change waits for a guest's own, and for the medium.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(5);

impl Node {
    /// Returns the mode pages of a bdev's unit to their defaults, also those that guests have saved; initiators are told.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn reset_mode_pages(&self, name: &str) -> Result<(), NodeError> {
        let _changes = self.change();
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        through::refuse(&entry, "its mode pages are its own")?;
        let unit = self.unit(&entry);
        match settle("mode pages", name, || unit.reset_modes())? {
            Outcome::GOOD => {
                let sense = Attention::ModeChanged.sense();
                self.target.unit_changed(&unit, sense.asc, sense.ascq);
                Ok(())
            }
            _ => Err(NodeError::new(Reason::Invalid, closed(entry.name()))),
        }
    }

    /// What an operator should know about what guests have made durable of a bdev.
    #[must_use]
    pub fn unit_warnings(&self, entry: &Entry) -> Vec<String> {
        let unit = self.units().get(&entry.uuid()).cloned();
        unit.map_or_else(Vec::new, |unit| warnings(&unit, entry.name()))
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
        if let Some(spec) = self.sg_spec(entry) {
            return through::unit(identity, entry, &spec);
        }
        let Some(saver) = &self.unit_saver else { return LogicalUnit::new(identity, shape) };
        let kept = saver.files.load(entry.uuid());
        let unit = LogicalUnit::kept(identity, shape, saver.keeper(), kept.as_ref().ok());
        let unreadable = unit.unreadable();
        if !unreadable.is_empty() {
            saver.files.set_damaged(entry.uuid());
            let file = saver.files.file(entry.uuid());
            let parts = || format!("what it says of {} makes no sense", unreadable.join(" and "));
            let mut said = vec![kept.err().map_or_else(parts, |error| error.to_string())];
            said.extend(warnings(&unit, entry.name()));
            tracing::error!("{}: {}", file.display(), said.join("; "));
        }
        unit
    }
}

/// Begins a change of a unit and waits until it is done; how it ended.
pub(super) fn settle(what: &str, name: &str, begin: impl Fn() -> Action) -> Result<Outcome, NodeError> {
    let late = || {
        let detail = format!("a change of the {what} of bdev '{name}' is still being saved; try again");
        NodeError::new(Reason::TimedOut, detail)
    };
    let until = Instant::now() + PATIENCE;
    let save = loop {
        match begin() {
            Action::Save(save) => break save,
            Action::Done(Outcome::BUSY) if Instant::now() < until => std::thread::sleep(LOOK),
            Action::Done(Outcome::BUSY) => return Err(late()),
            Action::Done(outcome) => return Ok(outcome),
            _ => return Ok(Outcome::GOOD),
        }
    };
    let (tell, told) = channel();
    save.start(Box::new(move |saved| {
        let _ = tell.send(saved.outcome);
    }));
    match told.recv_timeout(PATIENCE) {
        Ok(Outcome::GOOD) => Ok(Outcome::GOOD),
        Ok(_) => {
            let detail = format!("the {what} of bdev '{name}' stay: the log says why that cannot be saved");
            Err(NodeError::new(Reason::StateSave, detail))
        }
        Err(_) => Err(late()),
    }
}

/// What it means that something cannot be read, and what to do.
fn warnings(unit: &LogicalUnit, name: &str) -> Vec<String> {
    let unreadable = unit.unreadable();
    if unreadable.contains(&"reservations") {
        // What else there is comes with the file that is restored or given up.
        return vec![closed(name)];
    }
    let cautious = format!(
        "bdev '{name}' is write-protected and its cache is off, because its saved mode pages cannot be read: restore its file in \
         the state directory and restart, or give them up with bdev_reset_mode_pages"
    );
    if unreadable.contains(&"mode pages") { vec![cautious] } else { Vec::new() }
}

fn closed(name: &str) -> String {
    format!(
        "nobody may use bdev '{name}', because its reservations cannot be read: restore its file in the state directory and \
         restart, or give them up with bdev_clear_reservations (whether its data was being sanitized is then not known either)"
    )
}
