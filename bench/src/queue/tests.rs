//! A queue against a device in the same thread, honest or not.

use std::sync::Arc;

use super::{Doorbell, Pass, Queue, QueueParts};
use crate::clock::Clock;
use crate::event::Event;
use crate::layout::{GPA, Layout, Shape};
use crate::memory::Memory;
use crate::options::{HugePages, Kick, Options};
use crate::ring::Ring;
use crate::run::Run;
use crate::scsi::{Op, RESPONSE_AT, Wire, lun_bytes};
use crate::work::{Job, Work};

/// A list of requests, nothing compared.
struct List(Vec<Job>);

impl Work for List {
    const CHECKED: bool = false;

    fn next(&mut self, _queue: usize) -> Option<Job> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }
}

fn list(jobs: &[(Op, u64)]) -> List {
    List(jobs.iter().map(|(op, chunk)| Job { op: *op, chunk: *chunk }).collect())
}

/// A request as the device sees it.
#[derive(Debug, PartialEq)]
struct Seen {
    head: u16,
    opcode: u8,
    lba: u32,
    /// Length and whether the device may write, buffer by buffer.
    buffers: Vec<(u32, bool)>,
    response: usize,
    data: usize,
}

struct Device {
    memory: Arc<Memory>,
    place: crate::ring::RingPlace,
    indirect: bool,
    taken: u16,
}

impl Device {
    fn u16(&self, at: usize) -> u16 {
        self.memory.acquire_u16(at)
    }

    /// Takes what is in the available ring.
    fn take(&mut self) -> Vec<Seen> {
        let mut all = Vec::new();
        while self.taken != self.u16(self.place.avail + 2) {
            let head = self.u16(self.place.avail + 4 + 2 * usize::from(self.taken % self.place.size));
            all.push(self.walk(head));
            self.taken = self.taken.wrapping_add(1);
        }
        all
    }

    fn walk(&self, head: u16) -> Seen {
        let (mut table, mut index) = (self.place.desc, head);
        if self.indirect {
            let at = table + 16 * usize::from(head);
            assert_eq!((self.u16(at + 12), self.memory.load_u32(at + 8)), (4, 48));
            (table, index) = ((self.memory.load_u64(at) - GPA) as usize, 0);
        }
        let mut chain = Vec::new();
        loop {
            let at = table + 16 * usize::from(index);
            let flags = self.u16(at + 12);
            let place = (self.memory.load_u64(at) - GPA) as usize;
            chain.push((place, self.memory.load_u32(at + 8), flags & 2 != 0));
            if flags & 1 == 0 {
                break;
            }
            index = self.u16(at + 14);
        }
        let header = self.memory.bytes(chain[0].0, 51);
        let is_response = |(_, len, writable): &&(usize, u32, bool)| *writable && *len == 108;
        let response = chain.iter().find(is_response).expect("a response").0;
        let data = chain[1..].iter().find(|piece| piece.1 != 108).expect("data").0;
        Seen {
            head,
            opcode: header[19],
            lba: u32::from_be_bytes([header[21], header[22], header[23], header[24]]),
            buffers: chain.iter().map(|piece| (piece.1, piece.2)).collect(),
            response,
            data,
        }
    }

    /// Answers with a status, GOOD if it is 0.
    fn answer(&self, seen: &Seen, status: u8) {
        self.memory.write(seen.response, &[0; 12]);
        self.memory.write(seen.response + 10, &[status]);
        self.complete(seen.head.into());
    }

    /// Puts a head into the used ring.
    fn complete(&self, head: u32) {
        let used = self.u16(self.place.used + 2);
        let at = self.place.used + 4 + 8 * usize::from(used % self.place.size);
        self.memory.store_u32(at, head);
        self.memory.publish_u16(self.place.used + 2, used.wrapping_add(1));
    }
}

/// A queue of this depth for requests of 8 blocks from LBA 100 on, and its device.
fn world(depth: u16, indirect: bool, op: Op) -> (Queue, Device) {
    let mut options = Options::new(Vec::new());
    (options.depth, options.indirect) = (depth, indirect);
    let layout = Layout::new(&options);
    let memory = Arc::new(Memory::new(layout.len, HugePages::Off).expect("memory"));
    let place = layout.queues[0];
    let mut queue = Queue::new(QueueParts {
        index: 0,
        memory: memory.clone(),
        ring: Ring::new(&memory, place.ring, false),
        place,
        indirect,
        kick: Kick::Auto,
        doorbell: Doorbell { kick: Event::new().expect("an eventfd"), call: Event::new().expect("an eventfd") },
        lun: lun_bytes(0, 0),
        seed: 1,
    });
    let wire = Wire::new(lun_bytes(0, 0), 8, 1 << 20);
    queue.lay(&Pass { wire, shape: Shape::new(4096, depth), blocks: 8, first: 100 }, op);
    (queue, Device { memory, place: place.ring, indirect, taken: 0 })
}

#[test]
fn a_slot_goes_from_one_kind_of_request_to_another() {
    for indirect in [false, true] {
        let clock = Clock::new();
        let mut run = Run::new(&clock);
        let (mut queue, mut device) = world(1, indirect, Op::Read);
        let mut work = list(&[(Op::Read, 0), (Op::Write, 3), (Op::Unmap, 4), (Op::Read, 5)]);
        queue.prime(&mut work, &mut run).expect("begun");
        let expected = [
            (0x28, 100, vec![(51, false), (108, true), (4096, true)]),
            (0x2a, 124, vec![(51, false), (4096, false), (108, true)]),
            (0x42, 0, vec![(51, false), (24, false), (108, true)]),
            (0x28, 140, vec![(51, false), (108, true), (4096, true)]),
        ];
        for (opcode, lba, buffers) in expected {
            let seen = device.take();
            assert_eq!(seen.len(), 1);
            assert_eq!((seen[0].opcode, seen[0].lba, &seen[0].buffers), (opcode, lba, &buffers));
            if opcode == 0x42 {
                assert_eq!(device.memory.bytes(seen[0].data + 8, 12), [0, 0, 0, 0, 0, 0, 0, 132, 0, 0, 0, 8]);
            }
            device.answer(&seen[0], 0);
            assert_eq!(queue.visit(&mut work, &mut run).expect("good"), 1);
        }
        assert_eq!(queue.visit(&mut work, &mut run).expect("good"), 0);
        assert!(device.take().is_empty() && queue.in_flight() == 0 && queue.oldest().is_none());
        let counts = run.counts.tallies.each_ref().map(crate::histogram::Histogram::count);
        assert_eq!((counts, run.errors), ([2, 1, 1, 0], 0));
    }
}

#[test]
fn a_batch_is_published_and_counted_as_one() {
    let clock = Clock::new();
    let mut run = Run::new(&clock);
    let (mut queue, mut device) = world(40, false, Op::Read);
    let jobs: Vec<_> = (0..100).map(|chunk| (Op::Read, chunk)).collect();
    let mut work = list(&jobs);
    queue.prime(&mut work, &mut run).expect("begun");
    let mut lbas = Vec::new();
    for expected in [40, 40, 20] {
        let mut seen = device.take();
        assert_eq!(seen.len(), expected);
        assert_eq!(queue.in_flight(), expected as u16);
        lbas.extend(seen.iter().map(|seen| seen.lba));
        // Answers come in any order.
        seen.reverse();
        seen.iter().for_each(|seen| device.answer(seen, 0));
        assert_eq!(queue.visit(&mut work, &mut run).expect("good") as usize, expected);
    }
    assert_eq!(lbas, (0..100).map(|chunk| 100 + 8 * chunk).collect::<Vec<u32>>());
    assert_eq!((run.counts.done(), run.counts.batches, run.counts.kicks), (100, 3, 3));
}

#[test]
fn what_the_device_wants_again_is_sent_again_and_counted_once() {
    let clock = Clock::new();
    let mut run = Run::new(&clock);
    let (mut queue, mut device) = world(1, false, Op::Read);
    let mut work = list(&[(Op::Read, 7), (Op::Read, 8)]);
    queue.prime(&mut work, &mut run).expect("begun");
    let began = queue.oldest();
    for _ in 0..3 {
        let seen = device.take();
        assert_eq!(seen[0].lba, 156);
        // BUSY
        device.answer(&seen[0], 8);
        queue.visit(&mut work, &mut run).expect("good");
        assert_eq!(queue.oldest(), began, "its time goes on");
    }
    let seen = device.take();
    device.answer(&seen[0], 0);
    queue.visit(&mut work, &mut run).expect("good");
    assert_eq!((run.retries, run.errors, run.counts.done()), (3, 0, 1));
    // A check condition without sense is an error, and the slot goes on.
    let seen = device.take();
    assert_eq!(seen[0].lba, 164);
    device.answer(&seen[0], 2);
    queue.visit(&mut work, &mut run).expect("good");
    assert_eq!((run.errors, run.counts.done()), (1, 1));
    assert_eq!(run.messages, ["read of 8 blocks at LBA 164: status 0x02"]);
}

#[test]
fn an_answer_without_a_response_is_an_error() {
    let clock = Clock::new();
    let mut run = Run::new(&clock);
    let (mut queue, mut device) = world(1, false, Op::Read);
    let mut work = list(&[(Op::Read, 0), (Op::Read, 1)]);
    queue.prime(&mut work, &mut run).expect("begun");
    for errors in [0, 1] {
        let seen = device.take();
        if errors == 0 {
            device.answer(&seen[0], 0);
        } else {
            // What is left of the first answer does not count.
            device.complete(seen[0].head.into());
        }
        queue.visit(&mut work, &mut run).expect("good");
        assert_eq!(run.errors, errors);
    }
    assert!(run.messages[0].contains("without a response"), "{:?}", run.messages);
}

#[test]
fn a_device_that_breaks_the_ring_ends_the_run() {
    type Lie = fn(&Device);
    let lies: [(&str, Lie); 4] = [
        ("never sent", |device| device.complete(1)),
        ("never sent", |device| device.complete(u32::MAX)),
        ("not in flight", |device| (0..2).for_each(|_| device.complete(0))),
        ("3 answers to 2 requests", |device| (0..3).for_each(|n| device.complete(3 * n))),
    ];
    for (words, lie) in lies {
        let clock = Clock::new();
        let mut run = Run::new(&clock);
        let (mut queue, mut device) = world(2, false, Op::Read);
        let mut work = list(&[(Op::Read, 0), (Op::Read, 1)]);
        queue.prime(&mut work, &mut run).expect("begun");
        assert_eq!(device.take().len(), 2);
        lie(&device);
        let error = queue.visit(&mut work, &mut run).expect_err(words).to_string();
        assert!(error.contains(words) && error.contains("broke the ring"), "{error}");
    }
}

#[test]
fn places_do_not_overlap() {
    let clock = Clock::new();
    let (mut queue, mut device) = world(33, true, Op::Write);
    let jobs: Vec<_> = (0..33).map(|chunk| (Op::Write, chunk)).collect();
    queue.prime(&mut list(&jobs), &mut Run::new(&clock)).expect("begun");
    let mut pieces = Vec::new();
    for seen in device.take() {
        pieces.extend([(seen.response - RESPONSE_AT, 51), (seen.response, 108), (seen.data, 4096)]);
    }
    pieces.sort_unstable();
    assert!(pieces.len() == 99 && pieces.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{pieces:?}");
}
