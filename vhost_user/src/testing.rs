//! A guest for tests, benchmarks and fuzz targets: memory in memfds, and the driver's side of a split virtqueue.
//!
//! The driver is obliging where it can be (it frees descriptors when their chain was used) and does as it is told where
//! a test wants it to misbehave: every field of the rings can be set to anything.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering, fence};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::mapping::{Mapping, View};
use crate::memory::{Memory, RegionInfo};
use crate::queue::QueueSetup;

/// `flags` of a descriptor: `next` counts.
pub const NEXT: u16 = 1;
/// `flags` of a descriptor: the device writes.
pub const WRITE: u16 = 2;
/// `flags` of a descriptor: it names a table.
pub const INDIRECT: u16 = 4;

/// Added to guest-physical addresses to make the user addresses of a [`TestMemory`].
pub const USER_BASE: u64 = 0x7000_0000_0000;

struct Piece {
    info: RegionInfo,
    file: File,
    view: View,
}

/// Guest memory, one memfd to a region, seen from the guest's side.
pub struct TestMemory {
    pieces: Vec<Piece>,
}

impl TestMemory {
    /// Regions at these guest addresses and of these lengths.
    ///
    /// # Panics
    /// If the system has no memory for them.
    #[must_use]
    pub fn new(regions: &[(u64, u64)]) -> Arc<Self> {
        let pieces = regions.iter().map(|&(guest_addr, len)| {
            let file: File = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd").into();
            ftruncate(&file, len).expect("room in tmpfs");
            let info = RegionInfo { guest_addr, len, user_addr: guest_addr + USER_BASE, offset: 0 };
            let view = Mapping::map(&file, 0, len, None).expect("a memfd can be mapped");
            Piece { info, file, view }
        });
        Arc::new(TestMemory { pieces: pieces.collect() })
    }

    /// The same memory as the device maps it.
    ///
    /// # Panics
    /// If the regions overlap.
    #[must_use]
    pub fn memory(&self) -> Arc<Memory> {
        let regions: Vec<_> = self.regions().map(|(info, file)| (info, file.try_clone().expect("dup"))).collect();
        Arc::new(Memory::map(&regions).expect("sound regions"))
    }

    /// The regions and their files.
    pub fn regions(&self) -> impl Iterator<Item = (RegionInfo, &File)> {
        self.pieces.iter().map(|piece| (piece.info, &piece.file))
    }

    fn host(&self, gpa: u64, len: u64) -> usize {
        self.pieces
            .iter()
            .find_map(|p| p.view.host(gpa.wrapping_sub(p.info.guest_addr), len))
            .unwrap_or_else(|| panic!("{len} bytes at {gpa:#x} are not inside one region of the test's memory"))
    }

    fn word(&self, gpa: u64) -> &AtomicU16 {
        let host = self.host(gpa, 2);
        assert_eq!(host % 2, 0, "words are aligned");
        // SAFETY: mapped as long as `self` lives (`host` checked), aligned, and only ever accessed by atomics.
        unsafe { AtomicU16::from_ptr(host as *mut u16) }
    }

    fn byte(&self, gpa: u64) -> &AtomicU8 {
        // SAFETY: mapped as long as `self` lives (`host` checked).
        unsafe { AtomicU8::from_ptr(self.host(gpa, 1) as *mut u8) }
    }

    /// Stores a word.
    pub fn store(&self, gpa: u64, value: u16) {
        self.word(gpa).store(value.to_le(), Ordering::Release);
    }

    /// Loads a word.
    #[must_use]
    pub fn load(&self, gpa: u64) -> u16 {
        u16::from_le(self.word(gpa).load(Ordering::Acquire))
    }

    /// Stores bytes, across regions if they are adjacent.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            self.byte(at).store(*byte, Ordering::Relaxed);
        }
    }

    /// Loads bytes, across regions if they are adjacent.
    #[must_use]
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        (gpa..).take(len).map(|at| self.byte(at).load(Ordering::Relaxed)).collect()
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device fills it.
    pub writable: bool,
}

impl Buffer {
    /// One that the device reads.
    #[must_use]
    pub fn readable(addr: u64, len: u32) -> Self {
        Buffer { addr, len, writable: false }
    }

    /// One that the device fills.
    #[must_use]
    pub fn writable(addr: u64, len: u32) -> Self {
        Buffer { addr, len, writable: true }
    }

    fn flags(self) -> u16 {
        if self.writable { WRITE } else { 0 }
    }
}

/// The driver's side of one queue.
pub struct RingDriver {
    memory: Arc<TestMemory>,
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    /// The index of the next available entry to be filled; shown to the device by `expose`.
    pub next_avail: u16,
    shown_avail: u16,
    last_used: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl RingDriver {
    /// Bytes that the rings of a queue of `size` descriptors take.
    #[must_use]
    pub fn bytes(size: u16) -> u64 {
        let n = u64::from(size);
        (16 * n + 6 + 2 * n).next_multiple_of(4) + 6 + 8 * n
    }

    /// Rings of a fresh queue, at `at`.
    #[must_use]
    pub fn new(memory: Arc<TestMemory>, at: u64, size: u16) -> Self {
        let n = u64::from(size);
        let avail = at + 16 * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(4);
        memory.write(at, &vec![0; Self::bytes(size) as usize]);
        RingDriver {
            memory,
            size,
            desc: at,
            avail,
            used,
            next_avail: 0,
            shown_avail: 0,
            last_used: 0,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
        }
    }

    /// Starts with both indices at `index`, as if that many requests had been made already.
    #[must_use]
    pub fn starting_at(mut self, index: u16) -> Self {
        (self.next_avail, self.shown_avail, self.last_used) = (index, index, index);
        self.set_avail_idx(index);
        self.memory.store(self.used + 2, index);
        self
    }

    /// What the device needs to know, with user addresses.
    #[must_use]
    pub fn setup(&self, event_idx: bool, indirect: bool) -> QueueSetup {
        QueueSetup {
            size: self.size,
            desc: self.desc + USER_BASE,
            avail: self.avail + USER_BASE,
            used: self.used + USER_BASE,
            base: self.last_used,
            event_idx,
            indirect,
        }
    }

    /// The memory that the rings lie in.
    #[must_use]
    pub fn memory(&self) -> &Arc<TestMemory> {
        &self.memory
    }

    /// Sets a descriptor to anything.
    pub fn set_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.set_descriptor_at(self.desc + 16 * u64::from(index), addr, len, flags, next);
    }

    /// Sets a descriptor of a table anywhere.
    pub fn set_descriptor_at(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let word = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write(at, &addr.to_le_bytes());
        self.memory.write(at + 8, &word.to_le_bytes());
    }

    /// Lays out a chain and puts it into the available ring; `None` if there are not enough descriptors. The device does
    /// not see it before [`RingDriver::expose`].
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let chain = self.free.split_off(self.free.len() - buffers.len());
        for (i, buffer) in buffers.iter().enumerate() {
            let next = chain.get(i + 1);
            let flags = buffer.flags() | if next.is_some() { NEXT } else { 0 };
            self.set_descriptor(chain[i], buffer.addr, buffer.len, flags, next.copied().unwrap_or(0));
        }
        Some(self.put_chain(chain))
    }

    /// As `add`, with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let head = self.free.pop()?;
        for (i, buffer) in buffers.iter().enumerate() {
            let next = i + 1;
            let flags = buffer.flags() | if next < buffers.len() { NEXT } else { 0 };
            self.set_descriptor_at(table + 16 * i as u64, buffer.addr, buffer.len, flags, next as u16);
        }
        self.set_descriptor(head, table, 16 * buffers.len() as u32, INDIRECT, 0);
        Some(self.put_chain(vec![head]))
    }

    fn put_chain(&mut self, chain: Vec<u16>) -> u16 {
        let head = chain[0];
        self.chains.insert(head, chain);
        self.put_available(head);
        head
    }

    /// Puts any head into the available ring.
    pub fn put_available(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.memory.store(self.avail + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device what was put. Whether it wants a kick for that, by `event_idx` or by its flag.
    pub fn expose(&mut self, event_idx: bool) -> bool {
        let old = std::mem::replace(&mut self.shown_avail, self.next_avail);
        self.set_avail_idx(self.next_avail);
        fence(Ordering::SeqCst);
        if event_idx {
            let event = self.avail_event();
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            !self.no_notify()
        }
    }

    /// Sets the available index to anything.
    pub fn set_avail_idx(&self, index: u16) {
        self.memory.store(self.avail + 2, index);
    }

    /// Takes the next used element: head and number of bytes written. Its descriptors are free again.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.memory.load(self.used + 2) == self.last_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        let element: [u8; 8] = self.memory.read(at, 8).try_into().expect("8 bytes");
        let element = u64::from_le_bytes(element);
        self.last_used = self.last_used.wrapping_add(1);
        let head = element as u32;
        assert!(head < u32::from(self.size), "the device completed head {head}");
        if let Some(chain) = self.chains.remove(&(head as u16)) {
            self.free.extend(chain.into_iter().rev());
        }
        Some((head as u16, (element >> 32) as u32))
    }

    /// The device's used index.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.memory.load(self.used + 2)
    }

    /// Asks for interrupts, or not to have any (without EVENT_IDX).
    pub fn set_no_interrupt(&self, on: bool) {
        self.memory.store(self.avail, u16::from(on));
    }

    /// Asks for an interrupt at this used index (with EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        self.memory.store(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    /// Where the device wants a kick (with EVENT_IDX).
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.memory.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Whether the device wants no kicks (without EVENT_IDX).
    #[must_use]
    pub fn no_notify(&self) -> bool {
        self.memory.load(self.used) & 1 != 0
    }
}
