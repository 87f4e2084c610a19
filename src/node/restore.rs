//! Bringing back what the state file says.
//!
//! What cannot be opened is not an error: it comes back as missing, with what stands on it, and so do controllers
//! (`unrestored.rs`). What contradicts itself is one: the start ends before anything has been saved, so the file stays as
//! it is.

use std::collections::HashSet;

use pollux_bdev::Spec;
use pollux_vhost_scsi::is_good_name;
use uuid::Uuid;

use super::Node;
use super::document::Document;

/// Why a restore ended.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The document contradicts itself.
    #[error("the state file contradicts itself: {0}; restore it from a copy, or move it away to start with nothing")]
    Inconsistent(String),
}

impl Node {
    /// Makes everything that the document says. Every controller that listened and can listens again when this returns.
    ///
    /// # Errors
    /// [`RestoreError`]; the daemon should end then.
    pub fn restore(&self, mut document: Document) -> Result<(), RestoreError> {
        check(&document)?;
        // What guests have is theirs, before pools say what their volumes stand on.
        self.change().show(document.clone());
        for spec in &document.bdevs {
            let entries = self.bdevs.create_or_missing(spec.clone());
            if entries.is_empty() {
                let names = spec.names().join(", ");
                return Err(RestoreError::Inconsistent(format!("bdev {names}: its name or UUID is there twice")));
            }
            for entry in entries {
                if let Err(error) = missing(&entry) {
                    tracing::warn!("bdev '{}' is missing: {error}; it is opened when it comes back", entry.name());
                }
            }
        }
        let names: Vec<String> = self.bdevs.list().iter().map(|entry| entry.name().to_owned()).collect();
        self.look_for_pools_as(&names, &document);
        // What stands on a volume may be what another one stands on.
        loop {
            let mended = self.mend_volumes(&[]);
            let back = self.bdevs.retry_missing();
            for entry in &back {
                tracing::info!("bdev '{}' stands on a volume", entry.name());
            }
            if mended.is_empty() && back.is_empty() {
                break;
            }
        }
        self.expect_volumes(&document);
        self.restore_identities(&document.identities).map_err(|error| RestoreError::Inconsistent(error.to_string()))?;
        for record in &mut document.controllers {
            record.relative_port = self.restore_controller(record).or(record.relative_port);
        }
        document.controllers.iter().for_each(|record| self.restore_socket(record));
        self.change().show(document);
        Ok(())
    }
}

fn missing(entry: &pollux_bdev::Entry) -> Result<(), String> {
    match entry.state() {
        pollux_bdev::State::Online => Ok(()),
        pollux_bdev::State::Missing(reason) => Err(reason.to_string()),
    }
}

/// Looks for what no daemon would have written.
fn check(document: &Document) -> Result<(), RestoreError> {
    let mut controllers = HashSet::new();
    let made: HashSet<String> = document.bdevs.iter().flat_map(Spec::names).collect();
    for record in &document.controllers {
        if !is_good_name(&record.name) {
            return Err(RestoreError::Inconsistent(format!("no controller can be called '{}'", record.name)));
        }
        if !controllers.insert(record.name.as_str()) {
            return Err(RestoreError::Inconsistent(format!("controller '{}' is there twice", record.name)));
        }
        let mut luns = HashSet::new();
        for lun in &record.luns {
            // A volume is known by its UUID, and its pool brings it.
            if !made.contains(&lun.bdev) && Uuid::try_parse(&lun.bdev).is_err() {
                let detail = format!("controller '{}' exports bdev '{}', which there is not", record.name, lun.bdev);
                return Err(RestoreError::Inconsistent(detail));
            }
            if !luns.insert((lun.target, lun.lun)) {
                let (name, target, lun) = (&record.name, lun.target, lun.lun);
                let detail = format!("controller '{name}' has LUN {lun} of target {target} twice");
                return Err(RestoreError::Inconsistent(detail));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::document::{ControllerRecord, LunRecord};
    use pollux_bdev::FileSpec;

    #[test]
    fn contradictions_are_found() {
        let lun = LunRecord { target: 0, lun: 0, bdev: "a".into(), exclusive: false };
        let record = |name: &str, luns: usize| ControllerRecord {
            name: name.into(),
            cores: None,
            initiator: 1,
            relative_port: None,
            started: true,
            luns: vec![lun.clone(); luns],
        };
        let bdevs: Vec<Spec> = vec![Spec::File(FileSpec::new("a", "/a"))];
        let document = |controllers| Document { controllers, bdevs: bdevs.clone(), ..Document::default() };
        assert!(check(&document(vec![record("a", 1), record("b", 1)])).is_ok());
        assert!(check(&document(vec![record("a", 1), record("a", 0)])).is_err());
        assert!(check(&document(vec![record("a", 2)])).is_err());
        assert!(check(&document(vec![record("../a", 1)])).is_err());
        let on = |bdev: &str| {
            let mut record = record("a", 1);
            record.luns[0].bdev = bdev.into();
            check(&document(vec![record])).is_ok()
        };
        assert!(on("6b1d7a52-7a0e-4a55-9b39-53f2b1a7c001") && !on("b"));
    }
}
