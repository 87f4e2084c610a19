//! A virtio-scsi driver without a transport: memory, rings, eventfds, requests in flight.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::arena::Arena;
use super::memory::GuestMemory;
use super::ring::{DriverRing, Indirect, RingError};
use super::scsi::{Framing, Lun, REQUEST_LEN, RESPONSE_LEN, Response, cut, request_header};
use super::{CONTROL_QUEUE, EVENT_QUEUE, FIRST_REQUEST_QUEUE, Tmf};
use crate::rng::Rng;

/// How a driver sets itself up.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// How many request queues.
    pub request_queues: usize,
    /// Size of every queue.
    pub queue_size: u16,
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC`.
    pub indirect: bool,
    /// `VIRTIO_SCSI_F_HOTPLUG` and `F_CHANGE`.
    pub events: bool,
    /// Regions of memory; rings and buffers come from the first.
    pub memory: Vec<(u64, u64)>,
    /// For framings with random cuts.
    pub seed: u64,
}

impl Default for DriverOptions {
    fn default() -> Self {
        DriverOptions {
            request_queues: 1,
            queue_size: 128,
            event_idx: true,
            indirect: true,
            events: true,
            memory: vec![(0x10_0000, 64 << 20)],
            seed: 1,
        }
    }
}

/// What [`Driver::scribble`] overwrites memory with.
pub const SCRIBBLE: u8 = 0xdb;

/// Names a request of this driver.
pub type Ticket = u64;

/// What a completion was wrong about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionError {
    /// The ring's rules.
    Ring(RingError),
    /// It has written to memory of a request that it had answered.
    Late {
        /// Where.
        gpa: u64,
    },
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// The LUN field.
    pub lun: [u8; 8],
    /// At most 32 bytes.
    pub cdb: &'a [u8],
    /// Data for the device.
    pub out: &'a [u8],
    /// Room for data from the device.
    pub in_len: usize,
    /// How it is laid out.
    pub framing: Framing,
    /// 0 simple, 1 ordered, 2 head of queue, 3 ACA.
    pub task_attr: u8,
}

impl<'a> Command<'a> {
    /// A command laid out as Linux does.
    #[must_use]
    pub const fn new(lun: Lun, cdb: &'a [u8], out: &'a [u8], in_len: usize) -> Self {
        Command { lun: lun.bytes(), cdb, out, in_len, framing: Framing::PLAIN, task_attr: 0 }
    }
}

struct InFlight {
    ticket: Ticket,
    /// Where the response begins and how long it is, then the incoming data.
    response: (u64, usize),
    data: (u64, usize),
    memory: Vec<(u64, u64)>,
}

/// One queue with its eventfds.
pub struct Queue {
    /// The ring.
    pub ring: DriverRing,
    /// Written to kick the device.
    pub kick: Arc<OwnedFd>,
    /// Written by the device as its interrupt.
    pub call: Arc<OwnedFd>,
    in_flight: HashMap<u16, InFlight>,
    /// How many times the device was kicked.
    pub kicks: u64,
}

impl Queue {
    /// Makes what was added visible and kicks if the device wants it.
    pub fn flush(&mut self) {
        if self.ring.publish() {
            self.kick();
        }
    }

    /// Kicks, wanted or not.
    pub fn kick(&mut self) {
        self.kicks += 1;
        let _ = rustix::io::write(&*self.kick, &1u64.to_ne_bytes());
    }

    /// Takes what the call eventfd has counted; 0 if the device has not interrupted.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&*self.call, &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

/// A driver with its memory and queues: control, event, and the request queues.
pub struct Driver {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Its allocator.
    pub arena: Arena,
    /// Its queues.
    pub queues: Vec<Queue>,
    options: DriverOptions,
    rng: Rng,
    next_ticket: Ticket,
    quarantine: Option<Quarantine>,
}

/// Memory that the device has given back, with what it holds.
struct Quarantine {
    /// How many answers it is kept for.
    most: usize,
    kept: VecDeque<Vec<(u64, u64)>>,
}

fn new_eventfd() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
}

impl Driver {
    /// Makes memory and queues.
    ///
    /// # Errors
    /// If the system refuses memory or descriptors.
    pub fn new(options: &DriverOptions) -> io::Result<Self> {
        let memory = Arc::new(GuestMemory::new(&options.memory)?);
        let (gpa, len) = options.memory[0];
        let mut driver = Driver {
            memory,
            arena: Arena::new(gpa, len),
            queues: Vec::new(),
            options: options.clone(),
            rng: Rng::new(options.seed),
            next_ticket: 1,
            quarantine: None,
        };
        for _ in 0..FIRST_REQUEST_QUEUE + options.request_queues {
            let gpa =
                driver.arena.alloc(DriverRing::bytes(options.queue_size), 4096, 0).ok_or(io::ErrorKind::OutOfMemory)?;
            let ring = DriverRing::new(Arc::clone(&driver.memory), gpa, options.queue_size, 0, options.event_idx);
            driver.queues.push(Queue {
                ring,
                kick: new_eventfd()?,
                call: new_eventfd()?,
                in_flight: HashMap::new(),
                kicks: 0,
            });
        }
        Ok(driver)
    }

    /// How it was set up.
    #[must_use]
    pub const fn options(&self) -> &DriverOptions {
        &self.options
    }

    /// Starts a queue anew, as a driver does after a reset: empty, at index `base`. What was in flight is forgotten.
    pub fn reset_queue(&mut self, queue: usize, base: u16) {
        let (size, event_idx) = (self.options.queue_size, self.options.event_idx);
        let gpa = self.queues[queue].ring.addresses()[0];
        self.queues[queue].ring = DriverRing::new(Arc::clone(&self.memory), gpa, size, base, event_idx);
        for (_, lost) in self.queues[queue].in_flight.drain() {
            lost.memory.iter().for_each(|&(at, len)| self.arena.free(at, len));
        }
    }

    fn take(&mut self, held: &mut Vec<(u64, u64)>, len: usize, align: u64, skew: u64) -> Option<u64> {
        let at = self.arena.alloc(len as u64, align, skew)?;
        held.push((at, len as u64));
        Some(at)
    }

    /// Puts a command into a queue, not yet visible to the device (see [`Queue::flush`]); `None` if there is no room.
    pub fn submit(&mut self, queue: usize, command: &Command<'_>) -> Option<Ticket> {
        let ticket = self.next_ticket;
        let header = request_header(command.lun, ticket, command.task_attr, command.cdb);
        self.submit_raw(queue, &header, command.out, RESPONSE_LEN, command.in_len, command.framing)
    }

    /// Puts any header into a queue, with room for any response.
    pub fn submit_raw(
        &mut self,
        queue: usize,
        header: &[u8],
        out: &[u8],
        response_len: usize,
        in_len: usize,
        framing: Framing,
    ) -> Option<Ticket> {
        let mut held = Vec::new();
        let result = self.place(queue, header, out, response_len, in_len, framing, &mut held);
        if result.is_none() {
            held.iter().for_each(|&(at, len)| self.arena.free(at, len));
        }
        result
    }

    #[allow(clippy::too_many_arguments, reason = "one request's whole layout")]
    fn place(
        &mut self,
        queue: usize,
        header: &[u8],
        out: &[u8],
        response_len: usize,
        in_len: usize,
        framing: Framing,
        held: &mut Vec<(u64, u64)>,
    ) -> Option<Ticket> {
        let skew = u64::from(framing.skew);
        let mut rng = framing.cuts.then(|| self.rng.fork());
        let mut buffers = Vec::new();
        // The device-readable part.
        if framing.merge_out {
            let at = self.take(held, header.len() + out.len(), 16, skew)?;
            self.memory.write(at, header);
            self.memory.write(at + header.len() as u64, out);
            cut(at, header.len() + out.len(), false, 12, rng.as_mut(), &mut buffers);
        } else {
            let at = self.take(held, header.len(), 16, 0)?;
            self.memory.write(at, header);
            cut(at, header.len(), false, 6, rng.as_mut(), &mut buffers);
            if !out.is_empty() {
                let at = self.take(held, out.len(), 4096, skew)?;
                self.memory.write(at, out);
                cut(at, out.len(), false, 10, rng.as_mut(), &mut buffers);
            }
        }
        // The device-writable part.
        let (response, data);
        if framing.merge_in {
            response = self.take(held, response_len + in_len, 16, skew)?;
            data = response + response_len as u64;
            self.memory.fill(response, response_len + in_len, 0xa5);
            cut(response, response_len + in_len, true, 12, rng.as_mut(), &mut buffers);
        } else {
            response = self.take(held, response_len, 16, 0)?;
            self.memory.fill(response, response_len, 0xa5);
            cut(response, response_len, true, 6, rng.as_mut(), &mut buffers);
            data = if in_len > 0 { self.take(held, in_len, 4096, skew)? } else { response };
            if in_len > 0 {
                self.memory.fill(data, in_len, 0xa5);
                cut(data, in_len, true, 10, rng.as_mut(), &mut buffers);
            }
        }
        let indirect = if self.options.indirect && framing.indirect && buffers.len() > 1 {
            let table = self.take(held, 16 * buffers.len(), 16, 0)?;
            let direct = rng.as_mut().map_or(0, |rng| rng.index(buffers.len().min(3)));
            Some(Indirect { table, direct })
        } else {
            None
        };
        let head = self.queues[queue].ring.add(&buffers, indirect)?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let entry =
            InFlight { ticket, response: (response, response_len), data: (data, in_len), memory: std::mem::take(held) };
        let before = self.queues[queue].in_flight.insert(head, entry);
        assert!(before.is_none(), "the ring hands out free heads only");
        Some(ticket)
    }

    /// Takes one raw answer from a queue: its ticket, the response bytes, the incoming data, the bytes written.
    ///
    /// # Errors
    /// If the device broke the ring's rules.
    #[allow(clippy::type_complexity, reason = "used by two callers that take it apart at once")]
    pub fn poll_raw(&mut self, queue: usize) -> Result<Option<(Ticket, Vec<u8>, Vec<u8>, u32)>, CompletionError> {
        let at = &mut self.queues[queue];
        let Some((head, written)) = at.ring.pop_used().map_err(CompletionError::Ring)? else { return Ok(None) };
        let entry = at.in_flight.remove(&head).expect("every chain in flight has an entry");
        let response = self.memory.bytes(entry.response.0, entry.response.1);
        let data = self.memory.bytes(entry.data.0, entry.data.1);
        self.give_back(entry.memory)?;
        Ok(Some((entry.ticket, response, data, written)))
    }

    /// Takes one command's answer from a request queue.
    ///
    /// # Errors
    /// If the device broke the ring's rules.
    pub fn poll(&mut self, queue: usize) -> Result<Option<(Ticket, Response)>, CompletionError> {
        let answer = self.poll_raw(queue)?;
        Ok(answer.map(|(ticket, response, data, written)| (ticket, Response::parse(&response, data, written))))
    }

    /// From now on, whatever memory a request had is overwritten with [`SCRIBBLE`] when it has been answered, and
    /// looked at again `most` answers later, or by [`Driver::inspect`]: what the device does with it after its answer
    /// shows there, or on the disk.
    pub fn scribble(&mut self, most: usize) {
        self.quarantine = Some(Quarantine { most, kept: VecDeque::new() });
    }

    /// Looks at all memory that was overwritten.
    ///
    /// # Errors
    /// [`CompletionError::Late`].
    pub fn inspect(&mut self) -> Result<(), CompletionError> {
        let kept = self.quarantine.as_mut().map(|quarantine| std::mem::take(&mut quarantine.kept));
        kept.into_iter().flatten().try_for_each(|memory| self.free(&memory, true))
    }

    fn give_back(&mut self, memory: Vec<(u64, u64)>) -> Result<(), CompletionError> {
        let Some(quarantine) = &mut self.quarantine else { return self.free(&memory, false) };
        memory.iter().for_each(|&(gpa, len)| self.memory.fill(gpa, len as usize, SCRIBBLE));
        quarantine.kept.push_back(memory);
        if quarantine.kept.len() <= quarantine.most {
            return Ok(());
        }
        let oldest = quarantine.kept.pop_front().unwrap_or_default();
        self.free(&oldest, true)
    }

    fn free(&mut self, memory: &[(u64, u64)], scribbled: bool) -> Result<(), CompletionError> {
        for &(gpa, len) in memory {
            if scribbled && self.memory.bytes(gpa, len as usize).iter().any(|byte| *byte != SCRIBBLE) {
                return Err(CompletionError::Late { gpa });
            }
            self.arena.free(gpa, len);
        }
        Ok(())
    }

    /// How many requests of a queue are in flight.
    #[must_use]
    pub fn in_flight(&self, queue: usize) -> usize {
        self.queues[queue].in_flight.len()
    }

    /// Waits until a queue has used elements: asks for an interrupt and sleeps on the call eventfd. False when the time
    /// is over first.
    pub fn wait(&mut self, queue: usize, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            let at = &mut self.queues[queue];
            if at.ring.want_interrupt(true) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let fd: BorrowedFd<'_> = at.call.as_fd();
            let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time));
            let _ = at.interrupts();
        }
    }

    /// Puts a task management function into the control queue.
    pub fn submit_tmf(&mut self, function: Tmf, lun: [u8; 8], tag: u64) -> Option<Ticket> {
        let mut header = [0; 24];
        header[4..8].copy_from_slice(&(function as u32).to_le_bytes());
        header[8..16].copy_from_slice(&lun);
        header[16..].copy_from_slice(&tag.to_le_bytes());
        self.submit_raw(CONTROL_QUEUE, &header, &[], 1, 0, Framing { indirect: false, ..Framing::PLAIN })
    }

    /// Gives the device `count` event buffers of `len` bytes (16 is the proper length).
    pub fn post_events(&mut self, count: usize, len: usize) -> usize {
        let plain = Framing { indirect: false, ..Framing::PLAIN };
        let posted = (0..count).map_while(|_| self.place_event(len, plain)).count();
        self.queues[EVENT_QUEUE].flush();
        posted
    }

    fn place_event(&mut self, len: usize, framing: Framing) -> Option<Ticket> {
        self.submit_raw(EVENT_QUEUE, &[], &[], len, 0, framing)
    }
}

const _: () = assert!(REQUEST_LEN == 51 && RESPONSE_LEN == 108);
