//! What is looked at each second: bdevs that were missing, sizes that have changed, and devices that have work of their
//! own to do.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pollux_bdev::Entry;
use pollux_core::Bdev;
use pollux_scsi::Attention;
use uuid::Uuid;

use super::notify::Kind;
use super::{Node, through};

/// How often.
const EVERY: Duration = Duration::from_secs(1);

/// How long the end waits for a look that has begun.
const PATIENCE: Duration = Duration::from_secs(5);

/// CAPACITY DATA HAS CHANGED: the unit attention after which guests ask for the size again.
const CAPACITY_CHANGED: (u8, u8) = (0x2A, 0x09);

/// A housekeeping thread.
pub struct Watch {
    stop: Sender<()>,
    /// Hangs up when the thread ends.
    ended: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts it.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(node: Arc<Node>) -> std::io::Result<Watch> {
        Watch::repeat("watch", EVERY, move || {
            node.look();
            EVERY
        })
    }

    /// A thread that looks after `first`, and then again after what each look says.
    pub(super) fn repeat(
        name: &str,
        first: Duration,
        mut look: impl FnMut() -> Duration + Send + 'static,
    ) -> std::io::Result<Watch> {
        let (stop, stopped) = channel();
        let (running, ended) = channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _running = running;
            let mut after = first;
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(after) {
                after = look();
            }
        })?;
        Ok(Watch { stop, ended, thread })
    }

    /// Ends it. A thread that hangs in a disk that does not answer is left behind: it goes with the process.
    pub fn stop(self) {
        self.stop_within(PATIENCE);
    }

    fn stop_within(self, patience: Duration) {
        drop(self.stop);
        if self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a disk that is looked for does not answer; ending without waiting for it");
            return;
        }
        let _ = self.thread.join();
    }
}

impl Node {
    /// Opens what has come back.
    fn look(&self) {
        for entry in self.bdevs.list() {
            let Some(device) = entry.device() else { continue };
            device.tend();
            if device.is_lost() {
                drop(device);
                self.lose(&entry);
            }
        }
        let mut waiting = std::mem::take(&mut *self.waiting());
        let back = self.bdevs.retry_missing();
        for entry in &back {
            tracing::info!("bdev '{}' is back", entry.name());
            self.notifications.add(Kind::BdevOnline, entry.name());
            waiting.push(entry.uuid());
        }
        waiting.extend(self.mend_volumes(&back));
        let names: Vec<String> = back.iter().map(|entry| entry.name().to_owned()).collect();
        waiting.extend(self.look_for_pools(&names));
        self.look_at_pools();
        self.bring_all_back(&waiting);
        self.retry_unrestored();
    }

    /// These devices are there again. One that was deleted meanwhile waits for nothing.
    pub(super) fn bring_all_back(&self, uuids: &[Uuid]) {
        for uuid in uuids {
            let _changes = self.change();
            if let Some(entry) = self.bdevs.get(&uuid.to_string()) {
                self.bring_back(&entry);
            }
        }
    }

    /// The same of one. If it does not go well the next look tries again.
    pub(super) fn bring_back(&self, entry: &Entry) {
        if !self.came_back(entry) {
            self.waiting().push(entry.uuid());
        }
    }

    /// A device is there again: the reactors get channels into it, then the guests hear that it is ready. Whether that
    /// went well.
    fn came_back(&self, entry: &Entry) -> bool {
        let Some(device) = entry.device() else { return true };
        let Some(unit) = self.units().get(&entry.uuid()).cloned() else { return true };
        let shape = through::shape(entry, &unit);
        let device: Arc<dyn Bdev> = device;
        if let Err(error) = self.target.device_changed(&unit, Some(device)) {
            tracing::error!("bdev '{}' is back, but its LUNs are not, which is tried again: {error}", entry.name());
            return false;
        }
        match shape {
            Some(shape) => unit.set_shape(Some(shape)),
            // It may have been anywhere meanwhile.
            None => unit.raise(Attention::PowerOn, None),
        }
        self.target.device_is_ready(&unit);
        self.target.unit_changed(&unit, CAPACITY_CHANGED.0, CAPACITY_CHANGED.1);
        true
    }

    /// Tells guests about every device whose size is not what its unit says any more. A unit without a size is left
    /// alone: it is not ready before [`Node::came_back`] has given the reactors channels.
    pub(super) fn refresh_sizes(&self) {
        for entry in self.bdevs.list() {
            let Some(device) = entry.device() else { continue };
            let Some(unit) = self.units().get(&entry.uuid()).cloned() else { continue };
            let shape = device.shape();
            if unit.shape().is_some_and(|known| known != shape) {
                unit.set_shape(Some(shape));
                self.target.unit_changed(&unit, CAPACITY_CHANGED.0, CAPACITY_CHANGED.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_look_that_hangs_does_not_hold_up_the_end() {
        let (looking, begun) = channel();
        let (answer, disk) = channel::<()>();
        let hang = move || {
            looking.send(()).expect("the test waits");
            let _ = disk.recv();
            Duration::ZERO
        };
        let watch = Watch::repeat("watch", Duration::ZERO, hang).expect("started");
        begun.recv().expect("it looks");
        let patience = Duration::from_millis(50);
        let began = Instant::now();
        watch.stop_within(patience);
        assert!(began.elapsed() >= patience, "it did not wait for the disk");
        drop(answer);
    }
}
