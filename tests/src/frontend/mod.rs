//! A vhost-user front end in this process: a [`Driver`] whose queues are served over a real socket.
//!
//! [`FrontEnd::connect`] does what a VMM does and leaves a working disk controller; the steps are public one by one for
//! tests that stop between them. [`FrontEnd::cdb`] is one synchronous command; [`FrontEnd::submit`] and
//! [`FrontEnd::poll`] are the asynchronous pair that load generators use.

mod raw;

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

pub use raw::{NEED_REPLY, RawSession, VERSION_1};

use crate::guest::{CONTROL_QUEUE, Command, Driver, DriverOptions, EVENT_QUEUE, FIRST_REQUEST_QUEUE};
use crate::guest::{Lun, Response, Ticket, Tmf};

/// Virtio feature bits that matter here.
pub mod feature {
    /// `VIRTIO_SCSI_F_INOUT`.
    pub const INOUT: u64 = 1 << 0;
    /// `VIRTIO_SCSI_F_HOTPLUG`.
    pub const HOTPLUG: u64 = 1 << 1;
    /// `VIRTIO_SCSI_F_CHANGE`.
    pub const CHANGE: u64 = 1 << 2;
    /// `VIRTIO_RING_F_INDIRECT_DESC`.
    pub const INDIRECT: u64 = 1 << 28;
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: u64 = 1 << 32;
}

/// How long a synchronous step may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An event of the device (virtio 1.2, 5.6.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Kind of event; 0x8000_0000: events were missed.
    pub event: u32,
    /// What it is about.
    pub lun: [u8; 8],
    /// Its reason.
    pub reason: u32,
}

impl Event {
    /// Whether events were lost before this one.
    #[must_use]
    pub const fn missed(&self) -> bool {
        self.event & 0x8000_0000 != 0
    }
}

/// A connected front end.
pub struct FrontEnd {
    /// The socket's session.
    pub session: Frontend,
    /// Memory and queues.
    pub driver: Driver,
    /// What the device offered.
    pub offered: u64,
    /// What was acknowledged.
    pub features: u64,
}

impl FrontEnd {
    /// Connects, negotiates, hands over memory and starts all queues.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn connect(path: &Path, options: &DriverOptions) -> Result<Self> {
        let mut front = Self::negotiate(path, options)?;
        front.set_memory()?;
        for queue in 0..front.driver.queues.len() {
            front.start_queue(queue, 0)?;
        }
        Ok(front)
    }

    /// Connects and negotiates features, nothing more.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn negotiate(path: &Path, options: &DriverOptions) -> Result<Self> {
        let driver = Driver::new(options)?;
        let queues = driver.queues.len();
        let mut session =
            Frontend::connect(path, queues as u64).with_context(|| format!("connecting to {}", path.display()))?;
        session.set_owner().context("SET_OWNER")?;
        let offered = session.get_features().context("GET_FEATURES")?;
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & protocol_bit == 0 {
            bail!("the device has no protocol features (it offers {offered:#x})");
        }
        let mut wanted = feature::VERSION_1 | protocol_bit;
        wanted |= if options.event_idx { feature::EVENT_IDX } else { 0 };
        wanted |= if options.indirect { feature::INDIRECT } else { 0 };
        wanted |= if options.events { feature::HOTPLUG | feature::CHANGE } else { 0 };
        if offered & wanted != wanted {
            bail!("the device offers {offered:#x} and lacks {:#x}", wanted & !offered);
        }
        let protocol = session.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
        let useful = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        session.set_protocol_features(protocol & useful).context("SET_PROTOCOL_FEATURES")?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            session.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(VhostUserProtocolFeatures::MQ) {
            let most = session.get_queue_num().context("GET_QUEUE_NUM")?;
            if most < queues as u64 {
                bail!("the device has {most} queues, not {queues}");
            }
        }
        session.set_features(wanted).context("SET_FEATURES")?;
        Ok(FrontEnd { session, driver, offered, features: wanted })
    }

    /// The regions of the guest's memory as messages want them.
    #[must_use]
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let memory = &self.driver.memory;
        let info = |r: &crate::guest::Region| VhostUserMemoryRegionInfo {
            guest_phys_addr: r.gpa,
            memory_size: r.len,
            userspace_addr: r.user,
            mmap_offset: r.offset,
            mmap_handle: memory.raw_fd(),
        };
        memory.regions().iter().map(info).collect()
    }

    /// Hands the memory over.
    ///
    /// # Errors
    /// If the device refuses it.
    pub fn set_memory(&self) -> Result<()> {
        self.session.set_mem_table(&self.regions()).context("SET_MEM_TABLE")?;
        Ok(())
    }

    /// Starts a queue at index `base`.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn start_queue(&mut self, queue: usize, base: u16) -> Result<()> {
        let ring = &self.driver.queues[queue].ring;
        let size = ring.size();
        let [desc, avail, used] = ring.addresses().map(|gpa| self.driver.memory.user(gpa));
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        self.session.set_vring_num(queue, size).context("SET_VRING_NUM")?;
        self.session.set_vring_addr(queue, &config).context("SET_VRING_ADDR")?;
        self.session.set_vring_base(queue, base).context("SET_VRING_BASE")?;
        self.start_queue_as_is(queue)
    }

    /// The last messages that start a queue: its eventfds, and enable. Size, addresses and index are as they were sent.
    ///
    /// # Errors
    /// If the device refuses a step.
    pub fn start_queue_as_is(&mut self, queue: usize) -> Result<()> {
        self.session.set_vring_call(queue, &self.event_fd(queue, false)?).context("SET_VRING_CALL")?;
        self.session.set_vring_kick(queue, &self.event_fd(queue, true)?).context("SET_VRING_KICK")?;
        self.session.set_vring_enable(queue, true).context("SET_VRING_ENABLE")?;
        Ok(())
    }

    fn event_fd(&self, queue: usize, kick: bool) -> io::Result<EventFd> {
        use std::os::fd::{FromRawFd, IntoRawFd};
        let queue = &self.driver.queues[queue];
        let copy = if kick { queue.kick.try_clone()? } else { queue.call.try_clone()? };
        // SAFETY: the copy is ours alone and its number is given away here.
        Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
    }

    /// Stops a queue; returns the index of the next request it would have taken. Afterwards nothing of the queue is
    /// touched by the device.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn stop_queue(&mut self, queue: usize) -> Result<u16> {
        Ok(self.session.get_vring_base(queue).context("GET_VRING_BASE")? as u16)
    }

    /// Puts a command into a queue and makes it visible; `None` if there is no room.
    pub fn submit(&mut self, queue: usize, command: &Command<'_>) -> Option<Ticket> {
        let ticket = self.driver.submit(queue, command)?;
        self.driver.queues[queue].flush();
        Some(ticket)
    }

    /// Takes an answer from a queue if there is one.
    ///
    /// # Errors
    /// If the device broke the ring's rules.
    pub fn poll(&mut self, queue: usize) -> Result<Option<(Ticket, Response)>> {
        self.driver.poll(queue).map_err(|error| anyhow!("queue {queue}: {error:?}"))
    }

    /// Waits for the next answer of a queue.
    ///
    /// # Errors
    /// If none comes in time, or the device broke the ring's rules.
    pub fn wait(&mut self, queue: usize, timeout: Duration) -> Result<(Ticket, Response)> {
        if !self.driver.wait(queue, timeout) {
            bail!("no answer on queue {queue} within {timeout:?}, {} in flight", self.driver.in_flight(queue));
        }
        self.poll(queue)?.context("the used index has moved")
    }

    /// One command on the first request queue, with nothing else in flight there.
    ///
    /// # Errors
    /// If it is not answered.
    pub fn cdb(&mut self, lun: Lun, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        self.command(FIRST_REQUEST_QUEUE, &Command::new(lun, cdb, out, in_len))
    }

    /// One command on any request queue, with nothing else in flight there.
    ///
    /// # Errors
    /// If it is not answered.
    pub fn command(&mut self, queue: usize, command: &Command<'_>) -> Result<Response> {
        let ticket = self.submit(queue, command).context("no room for the command")?;
        let (answered, response) = self.wait(queue, PATIENCE)?;
        if answered != ticket {
            bail!("answer to {answered} instead of {ticket}");
        }
        Ok(response)
    }

    /// As [`FrontEnd::cdb`], repeated over unit attentions; fails unless the command ends GOOD.
    ///
    /// # Errors
    /// If it is not answered, or not with GOOD.
    pub fn good(&mut self, lun: Lun, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Response> {
        for _ in 0..16 {
            let response = self.cdb(lun, cdb, out, in_len)?;
            match response.sense_key() {
                Some((6, ..)) if response.status == 2 => {}
                _ if response.good() => return Ok(response),
                _ => bail!(
                    "{cdb:02x?} on {lun:?}: response {} status {:#x} sense {:02x?}",
                    response.response,
                    response.status,
                    response.sense_key()
                ),
            }
        }
        bail!("{cdb:02x?} on {lun:?}: unit attentions without end")
    }

    /// A task management function; returns the device's response byte.
    ///
    /// # Errors
    /// If it is not answered.
    pub fn tmf(&mut self, function: Tmf, lun: [u8; 8], tag: Ticket) -> Result<u8> {
        let ticket = self.driver.submit_tmf(function, lun, tag).context("no room on the control queue")?;
        self.driver.queues[CONTROL_QUEUE].flush();
        if !self.driver.wait(CONTROL_QUEUE, PATIENCE) {
            bail!("no answer to {function:?}");
        }
        let answer = self.driver.poll_raw(CONTROL_QUEUE).map_err(|error| anyhow!("control queue: {error:?}"))?;
        match answer {
            Some((answered, response, ..)) if answered == ticket => Ok(response[0]),
            other => bail!("{function:?}: unexpected {other:?}"),
        }
    }

    /// Waits for an event; buffers must have been given by [`Driver::post_events`].
    ///
    /// # Errors
    /// If none comes in time.
    pub fn event(&mut self, timeout: Duration) -> Result<Event> {
        if !self.driver.wait(EVENT_QUEUE, timeout) {
            bail!("no event within {timeout:?}");
        }
        let answer = self.driver.poll_raw(EVENT_QUEUE).map_err(|error| anyhow!("event queue: {error:?}"))?;
        let (_, bytes, _, written) = answer.context("the used index has moved")?;
        if written < 16 {
            bail!("an event of {written} bytes");
        }
        Ok(Event {
            event: u32::from_le_bytes(bytes[..4].try_into()?),
            lun: bytes[4..12].try_into()?,
            reason: u32::from_le_bytes(bytes[12..16].try_into()?),
        })
    }
}
