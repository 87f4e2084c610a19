//! What is looked at each second: bdevs that were missing, and sizes that have changed.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pollux_bdev::Entry;
use pollux_core::Bdev;

use super::Node;
use super::notify::Kind;

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// CAPACITY DATA HAS CHANGED: the unit attention after which guests ask for the size again.
const CAPACITY_CHANGED: (u8, u8) = (0x2A, 0x09);

/// The housekeeping thread.
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts it.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(node: Arc<Node>) -> std::io::Result<Watch> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                node.look();
            }
        })?;
        Ok(Watch { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

impl Node {
    /// Opens what has come back.
    pub(super) fn look(&self) {
        for entry in self.bdevs.retry_missing() {
            tracing::info!("bdev '{}' is back", entry.name());
            let changes = self.change();
            self.came_back(&entry);
            drop(changes);
        }
    }

    /// A device is there again: the reactors get channels into it, then the guests hear that it is ready.
    fn came_back(&self, entry: &Arc<Entry>) {
        let Some(device) = entry.device() else { return };
        self.notifications.add(Kind::BdevOnline, entry.name());
        let Some(unit) = self.units().get(&entry.uuid()).cloned() else { return };
        let shape = device.shape();
        let device: Arc<dyn Bdev> = device;
        if let Err(error) = self.target.device_changed(&unit, Some(device)) {
            tracing::error!("bdev '{}' is back, but its LUNs are not: {error}", entry.name());
            return;
        }
        unit.set_shape(Some(shape));
        self.target.unit_changed(&unit, CAPACITY_CHANGED.0, CAPACITY_CHANGED.1);
    }

    /// Tells guests and listeners about every device whose size is not what its unit says any more.
    pub(super) fn refresh_sizes(&self) {
        for entry in self.bdevs.list() {
            let Some(device) = entry.device() else { continue };
            let Some(unit) = self.units().get(&entry.uuid()).cloned() else { continue };
            let shape = device.shape();
            if unit.shape() != Some(shape) {
                unit.set_shape(Some(shape));
                self.target.unit_changed(&unit, CAPACITY_CHANGED.0, CAPACITY_CHANGED.1);
            }
        }
    }
}
