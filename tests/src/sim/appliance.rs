//! The whole data path in the simulated world: workers of the virtio-scsi device on simulated rings, the real control
//! plane and the real sockets, and front ends that take turns with them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use pollux_core::{Bdev, CopyRange, Extent, IoStats, Lane, Provisioning};
use pollux_scsi::{Identity, LogicalUnit, Medium, Transfers};
use pollux_vhost_scsi::{Backing, Message, Patience, ScsiWorker, SocketOptions, Target, TargetOptions, WorkerConfig};
use pollux_vhost_user::Server;
use uuid::Uuid;

use super::{SimMachine, SimWorld};
use crate::frontend::FrontEnd;
use crate::guest::DriverOptions;
use crate::rng::Rng;

const LONG: Duration = Duration::from_secs(60);
/// For the control plane of a test in which nothing is meant to take too long: its waits are of the real clock, which
/// must not decide a run. When a VMM is gone, what it has left that does not end is cancelled soon nevertheless.
pub const PATIENT: Patience =
    Patience { requests: LONG, cancelled: LONG, sessions: LONG, moves: LONG, closed: Duration::from_millis(50) };
/// As that, where all that a VMM leaves ends by itself.
pub const VERY_PATIENT: Patience = Patience { closed: LONG, ..PATIENT };

/// A simulated appliance.
pub struct SimAppliance {
    /// Its reactors.
    pub machine: SimMachine<ScsiWorker>,
    /// Its control plane.
    pub target: Arc<Target>,
    server: Arc<Server>,
    dir: tempfile::TempDir,
    reactors: usize,
}

/// A unit for a device.
#[must_use]
pub fn unit_of(name: &str, bdev: &dyn Bdev) -> Arc<LogicalUnit> {
    let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    LogicalUnit::new(Identity::from_uuid(uuid, "simulated"), Some(bdev.shape()))
}

/// What copies call a unit, by default.
///
/// # Panics
/// If the unit has an NAA of eight bytes, which a test has to have chosen.
#[must_use]
pub fn naa_of(unit: &LogicalUnit) -> [u8; 16] {
    unit.identity().naa.as_bytes().try_into().expect("an NAA of 16 bytes")
}

/// A unit for a device that is asked what it has mapped.
#[must_use]
pub fn unit_with_medium(name: &str, bdev: &Arc<dyn Bdev>) -> Arc<LogicalUnit> {
    let unit = unit_of(name, &**bdev);
    unit.set_medium(Arc::new(Of(Arc::clone(bdev))));
    unit
}

/// A device as its unit knows it beside I/O.
struct Of(Arc<dyn Bdev>);

impl fmt::Debug for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Of")
    }
}

impl Medium for Of {
    fn transfers(&self) -> Transfers {
        Transfers::default()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.0.extent(offset, len)
    }

    fn extent_waits(&self) -> bool {
        self.0.extent_waits()
    }

    fn provisioning(&self) -> Option<Provisioning> {
        self.0.provisioning()
    }

    fn lane(&self) -> Option<Lane> {
        self.0.lane()
    }

    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        self.0.copy_range(offset, len)
    }
}

/// What a LUN needs to lead to a device.
#[must_use]
pub fn backing(name: &str, unit: &Arc<LogicalUnit>, bdev: &Arc<dyn Bdev>) -> Backing {
    Backing {
        bdev_name: name.into(),
        unit: Arc::clone(unit),
        device: Some(Arc::clone(bdev)),
        new_stats: Arc::new(|| Arc::new(IoStats::default())),
    }
}

impl SimAppliance {
    /// An appliance without controllers.
    ///
    /// # Errors
    /// If the system has no descriptor, thread or folder for it.
    pub fn new(world: &SimWorld, reactors: usize, seed: u64) -> Result<Self> {
        Self::with(world, reactors, seed, WorkerConfig::default())
    }

    /// As [`SimAppliance::new`], with workers that are set otherwise.
    ///
    /// # Errors
    /// As that.
    pub fn with(world: &SimWorld, reactors: usize, seed: u64, config: WorkerConfig) -> Result<Self> {
        let workers = (0..reactors).map(|n| ScsiWorker::new(n, reactors, config)).collect();
        let machine = SimMachine::new(world, workers, seed);
        let dir = tempfile::Builder::new().prefix("pollux-sim-").tempdir()?;
        let server = Server::new()?;
        let post: Arc<dyn pollux_core::Post<Message>> = machine.post();
        let options = TargetOptions {
            vhost_dir: dir.path().into(),
            socket: SocketOptions::default(),
            helpers: machine.helpers(),
        };
        let target = Target::new(post, Arc::clone(&server), options);
        Ok(SimAppliance { machine, target, server, dir, reactors })
    }

    /// The socket of a controller.
    #[must_use]
    pub fn socket(&self, ctrlr: &str) -> PathBuf {
        self.dir.path().join(ctrlr)
    }

    /// A control-plane call, which may wait for the reactors.
    pub fn call<R: Send>(&mut self, f: impl FnOnce(&Target) -> R + Send) -> R {
        let target = Arc::clone(&self.target);
        self.machine.call(move || f(&target))
    }

    /// A controller on all reactors that listens and has these LUNs.
    ///
    /// # Errors
    /// If the control plane refuses.
    pub fn controller(&mut self, ctrlr: &str, luns: &[(u8, u16, Backing)]) -> Result<()> {
        let reactors = (0..self.reactors).collect();
        self.call(|target| -> Result<()> {
            target.create_controller(ctrlr, reactors, 1)?;
            for (number, lun, backing) in luns {
                target.add_lun(ctrlr, Some(*number), *lun, backing.clone())?;
            }
            target.start_controller(ctrlr)?;
            Ok(())
        })
    }

    /// A front end of a controller, all queues running.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn connect(&mut self, ctrlr: &str, options: &DriverOptions) -> Result<FrontEnd> {
        let path = self.socket(ctrlr);
        self.machine.call(|| FrontEnd::connect(&path, options))
    }

    /// Moves a queue to another reactor, both chosen by the dice, while `act` goes on beside it. Returns whether it went.
    ///
    /// # Errors
    /// If the control plane refuses, or that of `act`.
    ///
    /// # Panics
    /// If there is no queue or only one reactor.
    pub fn move_one(&mut self, rng: &mut Rng, mut act: impl FnMut(&mut Rng) -> Result<()>) -> Result<bool> {
        let mut places = self.target.queue_places();
        let place = places.swap_remove(rng.index(places.len()));
        let to = (place.reactor + 1 + rng.index(self.reactors - 1)) % self.reactors;
        let target = Arc::clone(&self.target);
        let mut wrong = Ok(());
        let moved = self.machine.call_beside(
            || target.move_queue(&place.ctrlr, place.session, place.index, to),
            || {
                if wrong.is_ok() {
                    wrong = act(rng);
                }
            },
        )?;
        wrong?;
        Ok(moved)
    }

    /// The VMM dies; returns when the session is gone.
    ///
    /// # Panics
    /// If the session does not go.
    pub fn disconnect(&mut self, front: FrontEnd) {
        let before = sessions(&self.target);
        self.machine.call(move || drop(front));
        self.await_sessions(before - 1);
    }

    /// Waits until no more than so many sessions are left.
    ///
    /// # Panics
    /// If one does not go.
    pub fn await_sessions(&mut self, most: usize) {
        let mut idle = 0;
        while sessions(&self.target) > most || idle == 0 {
            // The machine runs while all threads sleep, so what they see of each other does not depend on who is faster.
            idle = if self.machine.settle() { 0 } else { idle + 1 };
            assert!(idle < 60_000, "the session does not end");
            if idle > 1 {
                // It waits for the real clock.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Takes everything down: the controllers go, and with them what they have open.
    ///
    /// # Errors
    /// If the control plane refuses.
    pub fn shutdown(mut self) -> Result<()> {
        self.call(|target| -> Result<()> {
            for controller in target.controllers() {
                target.delete_controller(&controller.name, true)?;
            }
            Ok(())
        })?;
        let server = Arc::clone(&self.server);
        self.machine.call(move || server.shutdown());
        let pending = self.machine.world().pending();
        anyhow::ensure!(pending == 0, "{pending} ring entries are left in flight");
        Ok(())
    }
}

fn sessions(target: &Target) -> usize {
    target.controllers().iter().map(|c| c.sessions.len()).sum()
}
