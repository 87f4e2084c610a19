//! Whole SCSI devices: units whose commands go to a device as they are.

use std::sync::Arc;

use pollux_bdev::{Entry, Kind as BdevKind, SgSpec, Spec};
use pollux_core::Shape;
use pollux_scsi::{Allow, Identity, LogicalUnit};

use super::notify::Kind;
use super::{Node, NodeError, Reason};

/// The unit of such a device. It has no shape, and nothing of it is kept: what it is, it says itself.
pub(super) fn unit(identity: Identity, entry: &Entry, spec: &SgSpec) -> Arc<LogicalUnit> {
    let unit = LogicalUnit::new(identity, None);
    let named = |name: &String| {
        Allow::named(name).unwrap_or_else(|| {
            tracing::error!("bdev '{}' allows '{name}', which is not known and not allowed", spec.name);
            Allow::empty()
        })
    };
    unit.pass_through(spec.allow.iter().map(named).fold(Allow::empty(), |all, allow| all | allow));
    let _ = shape(entry, &unit);
    unit
}

/// What a unit of a device that is there now is like; `None` if it is a whole device, which then says what type it is.
pub(super) fn shape(entry: &Entry, unit: &LogicalUnit) -> Option<Shape> {
    let device = entry.device()?;
    match device.as_sg() {
        Some(sg) => {
            unit.set_device_type(sg.device_type());
            None
        }
        None => Some(device.shape()),
    }
}

/// Refuses what makes no sense for a whole device.
pub(super) fn refuse(entry: &Entry, why: &str) -> Result<(), NodeError> {
    if entry.kind() != BdevKind::Sg {
        return Ok(());
    }
    let detail = format!("bdev '{}' is a whole SCSI device: {why}", entry.name());
    Err(NodeError::new(Reason::Unsupported, detail))
}

impl Node {
    pub(super) fn sg_spec(&self, entry: &Entry) -> Option<SgSpec> {
        let specs = self.bdevs.specs().into_iter();
        specs
            .filter_map(|spec| if let Spec::Sg(spec) = spec { Some(spec) } else { None })
            .find(|spec| spec.name == entry.name())
    }

    /// What was below a bdev has gone: it is missing, and the reactors let go of it.
    pub(super) fn lose(&self, entry: &Entry) {
        let _changes = self.change();
        tracing::warn!("bdev '{}' has gone; it is opened when it comes back", entry.name());
        self.bdevs.lose(entry.name());
        self.notifications.add(Kind::BdevMissing, entry.name());
        let Some(unit) = self.units().get(&entry.uuid()).cloned() else { return };
        if let Err(error) = self.target.device_changed(&unit, None) {
            tracing::error!("bdev '{}' has gone, but not all of its commands have ended: {error}", entry.name());
        }
    }

    /// Commands of a bdev's guests that were refused because they are not theirs to give.
    #[must_use]
    pub fn refused_commands(&self, entry: &Entry) -> u64 {
        self.units().get(&entry.uuid()).map_or(0, |unit| unit.refused())
    }
}
