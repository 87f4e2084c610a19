//! Reservations of disks, for operators.

use pollux_scsi::ReservationsInfo;

use super::units::settle;
use super::{Node, NodeError, through};

impl Node {
    /// Who is registered on a bdev and who has reserved it.
    ///
    /// # Errors
    /// If there is no such bdev.
    pub fn reservations(&self, name: &str) -> Result<ReservationsInfo, NodeError> {
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        Ok(self.unit(&entry).reservations())
    }

    /// Takes all registrations and reservations of a bdev away; whoever was registered is told.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn clear_reservations(&self, name: &str) -> Result<(), NodeError> {
        let _changes = self.change();
        let entry = self.bdevs.get(name).ok_or_else(|| NodeError::no_bdev(name))?;
        through::refuse(&entry, "its reservations are its own, with the host as initiator")?;
        let unit = self.unit(&entry);
        settle("reservations", name, || unit.clear_reservations()).map(drop)
    }
}
