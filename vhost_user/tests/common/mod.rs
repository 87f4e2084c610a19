//! A device that does what a test tells it, and a VMM with a guest in it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pollux_vhost_user::testing::{Buffer, RingDriver, TestMemory};
use pollux_vhost_user::{
    Backend, BackendError, BackendFactory, ListenerId, Queue, QueueEvents, RegionInfo, SegmentBuf, Server,
    SessionHandle, SocketOptions,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const QUEUES: usize = 3;
pub const SIZE: u16 = 16;
pub const DEVICE_FEATURES: u64 = 0b111;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Where a VM's buffers are.
pub const DATA: u64 = 0x1_0000;
pub const MEMORY: u64 = 0x2_0000;

#[derive(Default)]
pub struct DeviceState {
    pub queues: BTreeMap<u16, (Queue, QueueEvents)>,
    /// What happened, in order.
    pub log: Vec<String>,
    pub sessions: Vec<SessionHandle>,
    pub features: u64,
    /// Stopping a queue waits while this is set, as if I/O were stuck.
    pub hold: bool,
    /// Heads popped and not completed.
    pub in_flight: Vec<(u16, u16)>,
    pub refuse: bool,
    pub with_config: bool,
    pub closed: usize,
}

/// The device behind a socket; tests pump its queues by hand.
#[derive(Default)]
pub struct Device {
    state: Mutex<DeviceState>,
    changed: Condvar,
}

impl Device {
    pub fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap()
    }

    /// Waits until something is so, and fails the test if it never is.
    pub fn wait<T>(&self, what: &str, mut so: impl FnMut(&mut DeviceState) -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(10);
        let mut state = self.lock();
        loop {
            if let Some(value) = so(&mut state) {
                return value;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never: {what}; log: {:?}", state.log);
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn wait_started(&self, index: u16) {
        self.wait("queue started", |s| s.queues.contains_key(&index).then_some(()));
    }

    pub fn wait_closed(&self, count: usize) {
        self.wait("session closed", |s| (s.closed >= count).then_some(()));
    }

    pub fn change(&self, change: impl FnOnce(&mut DeviceState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Takes all that is available, without completing it; returns how many.
    pub fn pop_all(&self, index: u16) -> usize {
        let mut state = self.lock();
        let mut heads = Vec::new();
        let (queue, _) = state.queues.get_mut(&index).expect("a started queue");
        while let Some(chain) = queue.pop(&mut SegmentBuf::new()).expect("a good guest") {
            heads.push((index, chain.head));
        }
        state.in_flight.extend(&heads);
        heads.len()
    }

    /// Completes all that is in flight on a queue, interrupts the guest if it wants that.
    pub fn complete_all(&self, index: u16) {
        let mut state = self.lock();
        let heads: Vec<_> = state.in_flight.extract_if(.., |(queue, _)| *queue == index).collect();
        let (queue, events) = state.queues.get_mut(&index).expect("a started queue");
        for (_, head) in heads {
            queue.complete(head, 1);
        }
        if queue.publish()
            && let Some(call) = &events.call
        {
            rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
        }
        drop(state);
        self.changed.notify_all();
    }
}

struct DeviceBackend(Arc<Device>);

impl Backend for DeviceBackend {
    fn features(&self) -> u64 {
        DEVICE_FEATURES
    }

    fn max_queues(&self) -> u16 {
        QUEUES as u16
    }

    fn offers_config(&self) -> bool {
        self.0.lock().with_config
    }

    fn config(&self, offset: u32, len: u32) -> Option<Vec<u8>> {
        (offset.checked_add(len)? <= 36).then(|| (offset..offset + len).map(|i| i as u8).collect())
    }

    fn features_acked(&mut self, features: u64) {
        self.0.change(|s| s.features = features);
    }

    fn start_queue(&mut self, index: u16, queue: Queue, events: QueueEvents) -> Result<(), BackendError> {
        self.0.change(|s| {
            s.log.push(format!("start {index} at {}", queue.next_avail()));
            assert!(s.queues.insert(index, (queue, events)).is_none(), "started twice");
        });
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>) {
        self.0.change(|s| {
            s.log.push(format!("call {index} {}", call.is_some()));
            s.queues.get_mut(&index).expect("a started queue").1.call = call;
        });
    }

    fn stop_queue(&mut self, index: u16) -> Result<u16, BackendError> {
        let mut state = self.0.lock();
        while state.hold {
            state = self.0.changed.wait(state).unwrap();
        }
        // What a test left in flight is answered now.
        let heads: Vec<_> = state.in_flight.extract_if(.., |(queue, _)| *queue == index).collect();
        let (mut queue, _) = state.queues.remove(&index).expect("a started queue");
        for (_, head) in heads {
            queue.complete(head, 0);
        }
        let _ = queue.publish();
        let next = queue.next_avail();
        drop(queue);
        state.log.push(format!("stop {index} at {next}"));
        drop(state);
        self.0.changed.notify_all();
        Ok(next)
    }

    fn reset(&mut self) {
        self.0.change(|s| s.log.push("reset".into()));
    }

    fn closed(&mut self) {
        self.0.change(|s| {
            assert!(s.queues.is_empty(), "closed with queues running");
            s.closed += 1;
            s.log.push("closed".into());
        });
    }
}

struct Factory(Arc<Device>);

impl BackendFactory for Factory {
    fn connect(&self, session: SessionHandle) -> Option<Box<dyn Backend>> {
        let refuse = self.0.lock().refuse;
        self.0.change(|s| s.sessions.push(session));
        (!refuse).then(|| Box::new(DeviceBackend(self.0.clone())) as Box<dyn Backend>)
    }
}

/// A server with one device on one socket.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub server: Arc<Server>,
    pub device: Arc<Device>,
    pub id: ListenerId,
}

impl Host {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, device) = (Server::new().unwrap(), Arc::new(Device::default()));
        let id = listen(&server, &dir.path().join("vm"), &device);
        Host { dir, server, device, id }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("vm")
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream
    }

    pub fn vm(&self) -> Vm {
        Vm::new(self.connect())
    }
}

pub fn listen(server: &Server, path: &Path, device: &Arc<Device>) -> ListenerId {
    server.listen(path, SocketOptions::default(), Arc::new(Factory(device.clone()))).unwrap()
}

/// A VMM: the front end, the guest's memory and rings, and their event descriptors.
pub struct Vm {
    pub front: Frontend,
    pub socket: UnixStream,
    pub guest: Arc<TestMemory>,
    pub drivers: Vec<RingDriver>,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
}

impl Vm {
    pub fn new(stream: UnixStream) -> Self {
        let guest = TestMemory::new(&[(0, MEMORY)]);
        let drivers = (0..QUEUES).map(|i| RingDriver::new(guest.clone(), 0x1000 * i as u64, SIZE)).collect();
        let events = || (0..QUEUES).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let socket = stream.try_clone().unwrap();
        Vm {
            front: Frontend::from_stream(stream, QUEUES as u64),
            socket,
            guest,
            drivers,
            kicks: events(),
            calls: events(),
        }
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.guest.regions().map(|(info, file)| region(info, file)).collect()
    }

    pub fn set_addresses(&self, queue: usize) {
        let setup = self.drivers[queue].setup(false, false);
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: setup.desc,
            used_ring_addr: setup.used,
            avail_ring_addr: setup.avail,
            log_addr: None,
        };
        self.front.set_vring_addr(queue, &config).unwrap();
    }

    /// Size, base, addresses, and the kick that starts it.
    pub fn set_up_queue(&self, queue: usize, base: u16) {
        self.front.set_vring_num(queue, SIZE).unwrap();
        self.front.set_vring_base(queue, base).unwrap();
        self.set_addresses(queue);
        self.front.set_vring_kick(queue, &self.kicks[queue]).unwrap();
    }

    /// What QEMU says when it creates the device: each message is acknowledged from here on.
    pub fn negotiate(&mut self) {
        self.front.set_owner().unwrap();
        self.front.get_features().unwrap();
        let offered = self.front.get_protocol_features().unwrap();
        self.front.set_protocol_features(offered).unwrap();
        self.front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(self.front.get_queue_num().unwrap(), QUEUES as u64);
        assert_eq!(self.front.get_max_mem_slots().unwrap(), 509);
    }

    /// All the way to running queues.
    pub fn start(&mut self) {
        self.negotiate();
        self.front.set_features(DEVICE_FEATURES | VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES).unwrap();
        self.front.set_mem_table(&self.regions()).unwrap();
        for queue in 0..QUEUES {
            self.set_up_queue(queue, 0);
            self.front.set_vring_call(queue, &self.calls[queue]).unwrap();
            self.front.set_vring_enable(queue, true).unwrap();
        }
    }

    /// Makes a request available.
    pub fn request(&mut self, queue: usize) {
        self.drivers[queue].add(&[Buffer::readable(DATA, 8), Buffer::writable(DATA + 64, 8)]).expect("room");
        self.drivers[queue].expose(true);
    }

    /// Waits for the other side to hang up.
    pub fn wait_hang_up(&self) {
        hang_up(&self.socket);
    }

    pub fn send(&self, code: u32, flags: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        send(&self.socket, &message(code, flags, body), files);
    }
}

pub fn region(info: RegionInfo, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: info.guest_addr,
        memory_size: info.len,
        userspace_addr: info.user_addr,
        mmap_offset: info.offset,
        mmap_handle: file.as_raw_fd(),
    }
}

pub fn hang_up(mut socket: &UnixStream) {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("no hang-up: {error}"),
        }
    }
}

pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [code, flags | 1, body.len() as u32].map(u32::to_ne_bytes).concat();
    bytes.extend(body);
    bytes
}

/// Sends; a peer that has hung up is no error.
pub fn send(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); 2048];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

pub fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

pub fn fd_of(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: borrowed from the event, which is open.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn fd_of_file(file: &File) -> BorrowedFd<'_> {
    file.as_fd()
}

pub fn protocol_bits(front: &mut Frontend) -> VhostUserProtocolFeatures {
    front.get_protocol_features().unwrap()
}
