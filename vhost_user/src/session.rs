//! One connection: what the front end says, turned into running queues.
//!
//! Invariants: a ring is started exactly while the back end has its queue; a queue is started only when memory, size,
//! addresses and kick are there and the ring is enabled; memory, features, size, addresses and base change only while
//! the rings that depend on them are stopped. Whatever is wrong ends the session (an `Err` to the message layer).

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg, VhostUserSingleMemoryRegion,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use crate::backend::{Backend, BackendFactory, QueueEvents, SessionHandle};
use crate::descriptors;
use crate::features;
use crate::memory::{Memory, RegionInfo};
use crate::queue::{Queue, QueueError, QueueSetup, SetupFault};
use crate::vring::{Addresses, Vring};
use crate::wire::{Arrival, Wire};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The front end closed it, or we were asked to.
    Closed,
    /// The back end did not want it.
    Refused,
    /// Something was wrong, and this is what.
    Failed(String),
}

/// Serves a connection until it ends. The thread's whole life.
pub(crate) fn serve(
    stream: std::os::unix::net::UnixStream,
    handle: SessionHandle,
    factory: &dyn BackendFactory,
) -> Ended {
    let Some(backend) = factory.connect(handle.clone()) else { return Ended::Refused };
    let wire = Wire::new(handle.socket().clone());
    let session = Arc::new(Mutex::new(Session::new(handle, backend)));
    let mut messages = BackendReqHandler::from_stream(stream, session.clone());
    let ended = loop {
        match wire.wait() {
            Ok(Arrival::Message) => {}
            Ok(Arrival::Closed) => break Ended::Closed,
            Err(error) => break Ended::Failed(error.to_string()),
        }
        match messages.handle_request() {
            Ok(()) => {}
            // We hung up while the message was being handled.
            Err(Error::Disconnected | Error::SocketBroken(_)) => break Ended::Closed,
            Err(Error::ReqHandlerError(error)) => break Ended::Failed(error.to_string()),
            Err(error) => break Ended::Failed(error.to_string()),
        }
    };
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    let lost = session.memory.lost();
    session.tear_down();
    if lost { Ended::Failed("the front end truncated the guest's memory".to_owned()) } else { ended }
}

struct Session {
    handle: SessionHandle,
    backend: Box<dyn Backend>,
    /// Offered by the device; asked once, so that it cannot change.
    device_features: u64,
    features: u64,
    memory: Arc<Memory>,
    vrings: Vec<Vring>,
}

/// Wraps whatever went wrong for the message layer.
fn refuse(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(std::io::Error::other(error))
}

impl Session {
    fn new(handle: SessionHandle, backend: Box<dyn Backend>) -> Self {
        let queues = backend.max_queues().clamp(1, 256);
        Session {
            handle,
            device_features: backend.features(),
            backend,
            features: 0,
            memory: Arc::new(Memory::empty()),
            vrings: (0..queues).map(|_| Vring::default()).collect(),
        }
    }

    fn vring(&mut self, index: usize) -> Result<&mut Vring> {
        let count = self.vrings.len();
        self.vrings.get_mut(index).ok_or_else(|| refuse(format!("ring {index}: there are {count}")))
    }

    /// Starts a ring if everything is there.
    fn start(&mut self, index: usize) -> Result<()> {
        let (event_idx, indirect) = (self.features & features::EVENT_IDX != 0, self.features & features::INDIRECT != 0);
        let vring = &self.vrings[index];
        if vring.started || self.memory.is_empty() {
            return Ok(());
        }
        let Some((setup, kick)) = vring.setup(event_idx, indirect) else { return Ok(()) };
        let events = QueueEvents { kick, call: vring.call.clone() };
        let queue = Queue::new(self.memory.clone(), &setup).map_err(|e| refuse(format!("ring {index}: {e}")))?;
        self.backend.start_queue(index as u16, queue, events).map_err(refuse)?;
        self.vrings[index].started = true;
        tracing::debug!(session = self.handle.id(), ring = index, size = setup.size, base = setup.base, "ring started");
        Ok(())
    }

    /// Stops a ring if it runs; waits for what is in flight.
    fn stop(&mut self, index: usize) -> Result<()> {
        if !std::mem::take(&mut self.vrings[index].started) {
            return Ok(());
        }
        let base = self.backend.stop_queue(index as u16).map_err(refuse)?;
        self.vrings[index].base = base;
        tracing::debug!(session = self.handle.id(), ring = index, base, "ring stopped");
        Ok(())
    }

    /// Changes a ring while it is stopped; one that is like that already (`same`) is left alone.
    fn change(&mut self, index: u32, same: impl FnOnce(&Vring) -> bool, change: impl FnOnce(&mut Vring)) -> Result<()> {
        let index = index as usize;
        if same(self.vring(index)?) {
            return Ok(());
        }
        self.stop(index)?;
        change(&mut self.vrings[index]);
        self.start(index)
    }

    /// Starts all rings for which everything is there, the first one last: it may be for asking about the others, which
    /// have to be there then. In the same way it is the first one to stop.
    fn start_all(&mut self) -> Result<()> {
        (0..self.vrings.len()).rev().try_for_each(|index| self.start(index))
    }

    fn stop_all(&mut self) -> Result<()> {
        (0..self.vrings.len()).try_for_each(|index| self.stop(index))
    }

    /// Replaces the memory while no ring runs. A ring that is not in the new memory stays stopped until the memory
    /// changes again: front ends take a region out before they put its replacement in.
    fn set_memory(&mut self, memory: Memory) -> Result<()> {
        self.stop_all()?;
        self.memory = Arc::new(memory);
        for index in (0..self.vrings.len()).rev() {
            if self.is_in_memory(index) {
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn is_in_memory(&self, index: usize) -> bool {
        let Some((setup, _)) = self.vrings[index].setup(true, true) else { return true };
        match Queue::new(self.memory.clone(), &QueueSetup { event_idx: false, ..setup }) {
            Err(QueueError::Setup(fault @ SetupFault::NotMapped { .. })) => {
                tracing::debug!(session = self.handle.id(), ring = index, %fault, "ring waits for its memory");
                false
            }
            _ => true,
        }
    }

    fn set_events(&mut self, index: u8, kick: bool, file: Option<File>) -> Result<()> {
        let role = if kick { "kick" } else { "call" };
        let fd = file.map(|file| descriptors::event(role, file)).transpose().map_err(refuse)?;
        if kick {
            let fd = fd.map_or_else(descriptors::endless_kick, Ok).map_err(refuse)?;
            return self.change(index.into(), |_| false, |vring| vring.kick = Some(fd));
        }
        let vring = self.vring(index.into())?;
        vring.call.clone_from(&fd);
        if vring.started {
            self.backend.set_call(index.into(), fd.clone());
            // Completions may have gone to the old one while the front end no longer looked at it.
            if let Some(fd) = fd {
                descriptors::signal(&fd);
            }
        }
        Ok(())
    }

    fn disable_all(&mut self) -> Result<()> {
        self.stop_all()?;
        let enabled = self.features & features::PROTOCOL_FEATURES == 0;
        for vring in &mut self.vrings {
            vring.reset();
            vring.enabled = enabled;
        }
        self.backend.reset();
        Ok(())
    }

    /// The staged end: every queue is drained, the back end let go, then (with the last one who holds it) the memory.
    fn tear_down(&mut self) {
        for index in 0..self.vrings.len() {
            if let Err(error) = self.stop(index) {
                tracing::error!(session = self.handle.id(), ring = index, %error, "a ring could not be stopped");
            }
        }
        self.backend.closed();
        self.memory = Arc::new(Memory::empty());
    }
}

fn region_info(region: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        guest_addr: region.guest_phys_addr,
        len: region.memory_size,
        user_addr: region.user_addr,
        offset: region.mmap_offset,
    }
}

const NOT_OFFERED: Error = Error::InvalidOperation("this was not offered");

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.disable_all()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.disable_all()
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(features::offered(self.device_features))
    }

    fn set_features(&mut self, wanted: u64) -> Result<()> {
        let taken = features::accept(features::offered(self.device_features), wanted)
            .map_err(|bits| refuse(format!("feature bits {bits:#x} were not offered")))?;
        self.stop_all()?;
        self.features = taken;
        if taken & features::PROTOCOL_FEATURES == 0 {
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        self.backend.features_acked(taken & !features::PROTOCOL_FEATURES);
        self.start_all()
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol(self.backend.offers_config()))
    }

    fn set_protocol_features(&mut self, wanted: u64) -> Result<()> {
        let refused = wanted & !features::protocol(self.backend.offers_config()).bits();
        if refused == 0 { Ok(()) } else { Err(refuse(format!("protocol features {refused:#x} were not offered"))) }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let socket = self.handle.socket();
        let memory = regions.iter().zip(&files).try_fold(Memory::empty(), |memory, (region, file)| {
            memory.with(region_info(region), file, Some(socket.clone()))
        });
        self.set_memory(memory.map_err(refuse)?)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(Memory::SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self.memory.with(region_info(region), &file, Some(self.handle.socket().clone()));
        self.set_memory(memory.map_err(refuse)?)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory.without(&region_info(region));
        self.set_memory(memory.map_err(refuse)?)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|n| n.is_power_of_two() && *n <= QueueSetup::SIZE_MAX);
        let size = size.ok_or_else(|| refuse(format!("ring {index}: a size of {num}")))?;
        self.change(index, |vring| vring.size == size, |vring| vring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        if flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG) {
            return Err(NOT_OFFERED);
        }
        let addresses = Some(Addresses { desc, avail, used });
        self.change(index, |vring| vring.addresses == addresses, |vring| vring.addresses = addresses)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| refuse(format!("ring {index}: a base of {base}")))?;
        self.change(index, |_| false, |vring| vring.base = base)
    }

    /// Stops the ring; only a new kick descriptor starts it again.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.change(index, |_| false, |vring| vring.kick = None)?;
        Ok(VhostUserVringState::new(index, self.vrings[index as usize].base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.set_events(index, true, file)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.set_events(index, false, file)
    }

    /// Checked and closed: a ring that breaks ends the session, which says it louder.
    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(index.into())?;
        file.map(|file| descriptors::event("error", file)).transpose().map_err(refuse)?;
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.change(index, |vring| vring.enabled == enable, |vring| vring.enabled = enable)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.backend.config(offset, size).ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the configuration space is read-only"))
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
