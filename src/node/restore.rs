//! Bringing back what the state file says.
//!
//! What cannot be opened is not an error: it comes back as missing, with what stands on it. What contradicts itself is
//! one: the start ends before anything has been saved, so the file stays as it is.

use std::collections::HashSet;

use super::document::{ControllerRecord, Document};
use super::{Node, NodeError};

/// Why a restore ended.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The document contradicts itself.
    #[error("the state file contradicts itself: {0}; restore it from a copy, or move it away to start with nothing")]
    Inconsistent(String),
    /// A controller does not come back.
    #[error("controller '{name}' does not come back: {error}")]
    Controller {
        /// Which.
        name: String,
        /// Why not.
        error: NodeError,
    },
}

impl Node {
    /// Makes everything that the document says. Every controller that listened listens again when this returns.
    ///
    /// # Errors
    /// [`RestoreError`]; the daemon should end then.
    pub fn restore(&self, mut document: Document) -> Result<(), RestoreError> {
        check(&document)?;
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
            let made = self.restore_controller(record);
            let failed = |error| RestoreError::Controller { name: record.name.clone(), error };
            record.relative_port = Some(made.map_err(failed)?);
        }
        for record in document.controllers.iter().filter(|record| record.started) {
            let failed = |error: pollux_vhost_scsi::TargetError| RestoreError::Controller {
                name: record.name.clone(),
                error: error.into(),
            };
            self.target.start_controller(&record.name).map_err(failed)?;
        }
        self.change().show(document);
        Ok(())
    }

    /// Returns its relative target port identifier.
    fn restore_controller(&self, record: &ControllerRecord) -> Result<u16, NodeError> {
        let reactors = self.reactors_of(record).unwrap_or_else(|error| {
            tracing::warn!("controller '{}' runs on all reactors: {error}", record.name);
            Vec::new()
        });
        let port = self.make_controller(record, reactors)?;
        for lun in &record.luns {
            let entry = self.bdevs.get(&lun.bdev).ok_or_else(|| NodeError::no_bdev(&lun.bdev))?;
            self.attach(&record.name, Some(lun.target), lun, &entry)?;
        }
        Ok(port)
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
    for record in &document.controllers {
        if !controllers.insert(record.name.as_str()) {
            return Err(RestoreError::Inconsistent(format!("controller '{}' is there twice", record.name)));
        }
        let mut luns = HashSet::new();
        for lun in &record.luns {
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
    use crate::node::document::LunRecord;

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
        let document = |controllers| Document { controllers, ..Document::default() };
        assert!(check(&document(vec![record("a", 1), record("b", 1)])).is_ok());
        assert!(check(&document(vec![record("a", 1), record("a", 0)])).is_err());
        assert!(check(&document(vec![record("a", 2)])).is_err());
    }
}
