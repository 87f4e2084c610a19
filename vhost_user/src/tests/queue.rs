use std::sync::Arc;

use pollux_core::segment::copy_from;
use proptest::prelude::*;

use crate::testing::{Buffer, INDIRECT, NEXT, RingDriver, TestMemory, WRITE};
use crate::{Chain, ChainFault, MemoryFault, Queue, QueueError, QueueSetup, RingFault, SegmentBuf, SetupFault};

/// Rings at 0, buffers from `DATA` on; a second region follows the first at `BORDER`, then nothing.
const DATA: u64 = 0x8000;
const BORDER: u64 = 0x10000;
const END: u64 = 0x18000;
const SIZE: u16 = 8;

struct World {
    driver: RingDriver,
    queue: Queue,
    segments: SegmentBuf,
}

fn memory() -> Arc<TestMemory> {
    TestMemory::new(&[(0, BORDER), (BORDER, END - BORDER)])
}

fn world_from(index: u16, event_idx: bool, indirect: bool) -> World {
    let driver = RingDriver::new(memory(), 0, SIZE).starting_at(index);
    let queue = Queue::new(driver.memory().memory(), &driver.setup(event_idx, indirect)).unwrap();
    World { driver, queue, segments: SegmentBuf::new() }
}

fn world() -> World {
    world_from(0, false, true)
}

impl World {
    /// Makes one hand-made chain available whose head is 0, and pops it.
    fn pop_head(&mut self, head: u16) -> Result<Option<Chain>, QueueError> {
        self.driver.put_available(head);
        self.driver.expose(false);
        self.pop()
    }

    fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        self.queue.pop(&mut self.segments)
    }

    fn fault_of_head(&mut self, head: u16) -> ChainFault {
        match self.pop_head(head) {
            Err(QueueError::Chain { head: of, fault }) if of == head => fault,
            other => panic!("{other:?}"),
        }
    }

    fn broken(&mut self) -> RingFault {
        match self.pop() {
            Err(QueueError::Broken(fault)) => {
                assert_eq!(self.pop(), Err(QueueError::Broken(fault)), "it stays broken");
                assert_eq!(self.queue.broken(), Some(fault));
                fault
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_request_goes_round() {
    let mut w = world();
    assert_eq!(w.pop(), Ok(None));
    assert_eq!(w.queue.available(), 0);
    w.driver.memory().write(DATA, b"header");
    let buffers = [Buffer::readable(DATA, 6), Buffer::readable(DATA + 0x100, 10), Buffer::writable(DATA + 0x200, 20)];
    let head = w.driver.add(&buffers).unwrap();
    w.driver.expose(false);
    assert_eq!(w.queue.available(), 1);
    let chain = w.pop().unwrap().unwrap();
    assert_eq!(chain, Chain { head, readable: 2, readable_bytes: 16, writable_bytes: 20 });
    let mut header = [0; 6];
    copy_from(w.segments.as_slice(), 0, &mut header);
    assert_eq!(&header, b"header");
    assert_eq!((w.queue.in_flight(), w.queue.next_avail()), (1, 1));
    w.queue.complete(head, 5);
    assert_eq!(w.driver.take_used(), None, "not before publish");
    assert!(w.queue.publish());
    assert!(!w.queue.publish(), "nothing new");
    assert_eq!(w.driver.take_used(), Some((head, 5)));
    assert_eq!(w.queue.in_flight(), 0);
}

#[test]
fn both_indices_wrap() {
    let mut w = world_from(65530, true, true);
    for i in 0..20 {
        let head = w.driver.add(&[Buffer::writable(DATA, 8)]).unwrap();
        w.driver.expose(true);
        assert_eq!(w.pop().unwrap().unwrap().head, head);
        w.queue.complete(head, i);
        let _ = w.queue.publish();
        assert_eq!(w.driver.take_used(), Some((head, i)));
    }
    assert_eq!((w.queue.next_avail(), w.driver.used_idx()), (14, 14));
}

#[test]
fn the_used_side_begins_where_the_ring_says() {
    let driver = RingDriver::new(memory(), 0, SIZE).starting_at(100);
    let mut setup = driver.setup(false, false);
    setup.base = 103;
    driver.set_avail_idx(104);
    let mut queue = Queue::new(driver.memory().memory(), &setup).unwrap();
    driver.set_descriptor(0, DATA, 1, 0, 0);
    let chain = queue.pop(&mut SegmentBuf::new()).unwrap().unwrap();
    queue.complete(chain.head, 0);
    let _ = queue.publish();
    assert_eq!((driver.used_idx(), queue.next_avail()), (101, 104));
}

#[test]
fn t1_available_index_jumps() {
    let mut w = world();
    w.driver.set_avail_idx(SIZE + 1);
    assert_eq!(w.broken(), RingFault::AvailJump { from: 0, to: SIZE + 1, size: SIZE });
}

#[test]
fn t2_available_index_runs_backwards() {
    let mut w = world_from(10, false, true);
    w.driver.set_avail_idx(9);
    assert_eq!(w.broken(), RingFault::AvailJump { from: 10, to: 9, size: SIZE });
}

#[test]
fn t3_head_beyond_the_queue() {
    let mut w = world();
    w.driver.put_available(SIZE);
    w.driver.expose(false);
    assert_eq!(w.broken(), RingFault::HeadBeyondTable(SIZE));
}

#[test]
fn t4_next_beyond_the_table() {
    let mut w = world();
    w.driver.set_descriptor(0, DATA, 1, NEXT, SIZE);
    assert_eq!(w.fault_of_head(0), ChainFault::NextBeyondTable(SIZE));
    w.driver.set_descriptor_at(DATA, DATA, 1, NEXT, 2);
    w.driver.set_descriptor(1, DATA, 32, INDIRECT, 0);
    assert_eq!(w.fault_of_head(1), ChainFault::NextBeyondTable(2));
    // The queue goes on, and the heads can be answered.
    w.driver.set_descriptor(2, DATA, 1, 0, 0);
    assert_eq!(w.pop_head(2).unwrap().unwrap().head, 2);
    w.queue.complete(0, 0);
    w.queue.complete(1, 0);
    assert!(w.queue.publish());
}

#[test]
fn t5_loops_end() {
    let mut w = world();
    w.driver.set_descriptor(0, DATA, 1, NEXT, 0);
    assert_eq!(w.fault_of_head(0), ChainFault::Loop);
    w.driver.set_descriptor(1, DATA, 1, NEXT, 2);
    w.driver.set_descriptor(2, DATA, 1, NEXT, 1);
    assert_eq!(w.fault_of_head(1), ChainFault::Loop);
    for i in 0..SIZE {
        w.driver.set_descriptor(i, DATA, 0, NEXT, (i + 1) % SIZE);
    }
    assert_eq!(w.fault_of_head(3), ChainFault::Loop);
    w.driver.set_descriptor_at(DATA, DATA, 1, NEXT, 0);
    w.driver.set_descriptor(4, DATA, 16, INDIRECT, 0);
    assert_eq!(w.fault_of_head(4), ChainFault::Loop);
}

#[test]
fn t6_as_long_as_the_tables_and_no_longer() {
    let mut w = world();
    let all: Vec<_> = (0..SIZE).map(|i| Buffer::readable(DATA + u64::from(i) * 32, 16)).collect();
    w.driver.add(&all).unwrap();
    w.driver.expose(false);
    let chain = w.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.readable_bytes), (8, 128));
    w.queue.complete(chain.head, 0);
    let _ = w.queue.publish();
    w.driver.take_used().unwrap();

    let many: Vec<_> = (0..1024).map(|i| Buffer::writable(DATA + 2 * i, 1)).collect();
    w.driver.add_indirect(BORDER, &many).unwrap();
    w.driver.expose(false);
    let chain = w.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable_bytes, w.segments.len()), (0, 1024, 1024));

    w.driver.set_descriptor(5, BORDER, 1025 * 16, INDIRECT, 0);
    assert_eq!(w.fault_of_head(5), ChainFault::IndirectLength(1025 * 16));
}

#[test]
fn t7_zero_length_descriptors_touch_nothing() {
    let mut w = world();
    for addr in [DATA, END, u64::MAX] {
        let buffers = [Buffer::readable(addr, 0), Buffer::readable(DATA, 4), Buffer::writable(addr, 0)];
        let head = w.driver.add(&buffers).unwrap();
        w.driver.expose(false);
        let chain = w.pop().unwrap().unwrap();
        assert_eq!(chain, Chain { head, readable: 1, readable_bytes: 4, writable_bytes: 0 });
        assert_eq!(w.segments.len(), 1);
        w.queue.complete(head, 0);
        let _ = w.queue.publish();
        w.driver.take_used();
    }
    w.driver.set_descriptor(0, DATA, 0, WRITE | NEXT, 1);
    w.driver.set_descriptor(1, DATA, 0, 0, 0);
    assert_eq!(w.fault_of_head(0), ChainFault::ReadableAfterWritable, "the order counts for empty ones, too");
}

#[test]
fn t8_lengths_that_overflow() {
    let mut w = world();
    w.driver.set_descriptor(0, u64::MAX, 1, 0, 0);
    assert_eq!(w.fault_of_head(0), ChainFault::Memory(MemoryFault::Overflow));
    w.driver.set_descriptor(1, DATA, u32::MAX, 0, 0);
    assert_eq!(w.fault_of_head(1), ChainFault::Memory(MemoryFault::Hole(END)));

    // More than 32 bits in sum, each part of it good: 3 times 2 GiB.
    let guest = TestMemory::new(&[(0, 1 << 31)]);
    let mut driver = RingDriver::new(guest, 0, SIZE);
    let mut queue = Queue::new(driver.memory().memory(), &driver.setup(false, false)).unwrap();
    driver.add(&[Buffer::readable(0, 1 << 31), Buffer::readable(0, 1 << 31)]).unwrap();
    driver.expose(false);
    let fault = queue.pop(&mut SegmentBuf::new());
    assert!(matches!(fault, Err(QueueError::Chain { fault: ChainFault::TooLong, .. })), "{fault:?}");
}

#[test]
fn t9_bad_indirect_tables() {
    let mut w = world();
    for (head, len) in [(0, 0), (1, 15), (2, 17), (3, u32::MAX)] {
        w.driver.set_descriptor(head, DATA, len, INDIRECT, 0);
        assert_eq!(w.fault_of_head(head), ChainFault::IndirectLength(len));
    }
    w.driver.set_descriptor(4, DATA, 16, INDIRECT | NEXT, 5);
    assert_eq!(w.fault_of_head(4), ChainFault::IndirectWithNext);
    w.driver.set_descriptor_at(DATA, DATA + 16, 16, INDIRECT, 0);
    w.driver.set_descriptor(5, DATA, 16, INDIRECT, 0);
    assert_eq!(w.fault_of_head(5), ChainFault::IndirectNested);
    w.driver.set_descriptor(6, END - 16, 32, INDIRECT, 0);
    w.driver.set_descriptor_at(END - 16, DATA, 1, NEXT, 1);
    assert_eq!(w.fault_of_head(6), ChainFault::Memory(MemoryFault::Hole(END)));
    w.driver.set_descriptor(7, u64::MAX - 15, 32, INDIRECT, 0);
    assert_eq!(w.fault_of_head(7), ChainFault::Memory(MemoryFault::Overflow));
}

#[test]
fn t9_indirect_never_negotiated() {
    let mut w = world_from(0, false, false);
    w.driver.set_descriptor(0, DATA, 16, INDIRECT, 0);
    assert_eq!(w.fault_of_head(0), ChainFault::IndirectNotNegotiated);
}

#[test]
fn t9_indirect_tables_that_are_unusual_but_good() {
    // Unaligned, across the border of two regions (and across it inside one entry), with the WRITE flag on the table.
    let mut w = world();
    let table = BORDER - 24;
    let buffers = [Buffer::readable(DATA, 3), Buffer::readable(DATA + 8, 5), Buffer::writable(DATA + 16, 7)];
    let head = w.driver.add_indirect(table, &buffers).unwrap();
    w.driver.set_descriptor(head, table, 48, INDIRECT | WRITE, 0);
    w.driver.expose(false);
    let chain = w.pop().unwrap().unwrap();
    assert_eq!(chain, Chain { head, readable: 2, readable_bytes: 8, writable_bytes: 7 });

    // Direct descriptors first, then the table.
    w.driver.set_descriptor(3, DATA, 2, NEXT, 4);
    w.driver.set_descriptor(4, DATA + 0x101, 32, INDIRECT, 0);
    w.driver.set_descriptor_at(DATA + 0x101, DATA + 16, 4, NEXT, 1);
    w.driver.set_descriptor_at(DATA + 0x111, DATA + 32, 1, WRITE, 0);
    let chain = w.pop_head(3).unwrap().unwrap();
    assert_eq!(chain, Chain { head: 3, readable: 2, readable_bytes: 6, writable_bytes: 1 });
}

#[test]
fn more_pieces_than_room() {
    let guest = TestMemory::new(&[(0, BORDER), (BORDER, END - BORDER)]);
    let driver = RingDriver::new(guest, 0, 512);
    for i in 0..511u16 {
        driver.set_descriptor(i, DATA + 4 * u64::from(i), 1, NEXT, i + 1);
    }
    for i in 0..1024u16 {
        driver.set_descriptor_at(BORDER + 16 * u64::from(i), DATA + 2 * u64::from(i), 1, NEXT, i + 1);
    }
    driver.set_descriptor(511, BORDER, 16 * 1024, INDIRECT, 0);
    let mut queue = Queue::new(driver.memory().memory(), &driver.setup(false, true)).unwrap();
    driver.set_avail_idx(1);
    let result = queue.pop(&mut SegmentBuf::new());
    let fault = ChainFault::Memory(MemoryFault::TooManySegments);
    assert_eq!(result, Err(QueueError::Chain { head: 0, fault }));
}

#[test]
fn t10_a_buffer_across_regions_is_whole() {
    let mut w = world();
    w.driver.memory().write(BORDER - 3, b"abcdef");
    w.driver.add(&[Buffer::readable(BORDER - 3, 6), Buffer::writable(END - 1, 1)]).unwrap();
    w.driver.expose(false);
    let chain = w.pop().unwrap().unwrap();
    assert_eq!((chain.readable_bytes, chain.writable_bytes), (6, 1));
    let mut bytes = [0; 6];
    copy_from(&w.segments.as_slice()[..chain.readable], 0, &mut bytes);
    assert_eq!(&bytes, b"abcdef");
    w.driver.set_descriptor(7, END - 1, 2, 0, 0);
    assert_eq!(w.fault_of_head(7), ChainFault::Memory(MemoryFault::Hole(END)));
}

#[test]
fn t11_readable_after_writable() {
    let mut w = world();
    w.driver.add(&[Buffer::writable(DATA, 1), Buffer::readable(DATA, 1)]).unwrap();
    w.driver.expose(false);
    assert!(matches!(w.pop(), Err(QueueError::Chain { fault: ChainFault::ReadableAfterWritable, .. })));
}

#[test]
fn t12_one_head_twice() {
    let mut w = world();
    w.driver.set_descriptor(3, DATA, 1, 0, 0);
    assert_eq!(w.pop_head(3).unwrap().unwrap().head, 3);
    w.queue.complete(3, 0);
    assert_eq!(w.pop_head(3).unwrap().unwrap().head, 3, "after its completion it is as good as new");
    w.driver.put_available(3);
    w.driver.expose(false);
    assert_eq!(w.broken(), RingFault::HeadInFlight(3));
    // What is in flight can still be answered.
    w.queue.complete(3, 0);
    assert!(w.queue.publish());
}

#[test]
#[should_panic(expected = "completed once")]
fn completing_twice_is_our_own_mistake() {
    let mut w = world();
    w.driver.set_descriptor(3, DATA, 1, 0, 0);
    w.pop_head(3).unwrap();
    w.queue.complete(3, 0);
    w.queue.complete(3, 0);
}

#[test]
fn t14_buffers_over_the_rings_are_ordinary_memory() {
    let mut w = world();
    let whole = Buffer::writable(0, RingDriver::bytes(SIZE) as u32);
    let head = w.driver.add(&[Buffer::readable(0, 16), whole]).unwrap();
    w.driver.expose(false);
    let chain = w.pop().unwrap().unwrap();
    pollux_core::segment::copy_to(&w.segments.as_slice()[chain.readable..], 0, &vec![0xff; whole.len as usize]);
    w.queue.complete(head, whole.len);
    let _ = w.queue.publish();
    assert!(matches!(w.pop(), Err(QueueError::Broken(_))), "the index now says 65535");
}

#[test]
fn t15_t20_rings_that_cannot_be() {
    let driver = RingDriver::new(memory(), 0, SIZE);
    let memory = driver.memory().memory();
    let good = driver.setup(true, true);
    let fault = |setup: QueueSetup| match Queue::new(memory.clone(), &setup) {
        Err(QueueError::Setup(fault)) => fault,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    for size in [0, 3, 6, 32769, u16::MAX] {
        assert_eq!(fault(QueueSetup { size, ..good }), SetupFault::Size(size));
    }
    let user = |gpa: u64| gpa + crate::testing::USER_BASE;
    let (across, beyond) = (user(BORDER - 16), user(END));
    assert_eq!(
        fault(QueueSetup { desc: across, ..good }),
        SetupFault::NotMapped { part: "descriptor table", addr: across }
    );
    assert_eq!(
        fault(QueueSetup { avail: beyond, ..good }),
        SetupFault::NotMapped { part: "available ring", addr: beyond }
    );
    let last = user(END - 4 - 8 * u64::from(SIZE));
    assert_eq!(fault(QueueSetup { used: last, ..good }), SetupFault::NotMapped { part: "used ring", addr: last });
    Queue::new(memory.clone(), &QueueSetup { used: last, event_idx: false, ..good }).expect("fits without EVENT_IDX");
    assert_eq!(
        fault(QueueSetup { used: u64::MAX, ..good }),
        SetupFault::NotMapped { part: "used ring", addr: u64::MAX }
    );
    for (setup, part, addr) in [
        (QueueSetup { desc: good.desc + 8, ..good }, "descriptor table", good.desc + 8),
        (QueueSetup { avail: good.avail + 1, ..good }, "available ring", good.avail + 1),
        (QueueSetup { used: good.used + 2, ..good }, "used ring", good.used + 2),
    ] {
        assert_eq!(fault(setup), SetupFault::Unaligned { part, addr });
    }
}

#[test]
fn flags_say_whether_to_interrupt_and_to_kick() {
    let mut w = world();
    let round = |w: &mut World| {
        let head = w.driver.add(&[Buffer::readable(DATA, 1)]).unwrap();
        let kick = w.driver.expose(false);
        w.pop().unwrap().unwrap();
        w.queue.complete(head, 0);
        let interrupt = w.queue.publish();
        w.driver.take_used();
        (kick, interrupt)
    };
    assert_eq!(round(&mut w), (true, true));
    w.queue.suppress_kicks();
    w.driver.set_no_interrupt(true);
    assert_eq!(round(&mut w), (false, false));
    w.driver.set_no_interrupt(false);
    assert_eq!(round(&mut w), (false, true));
    assert!(!w.queue.request_kicks());
    assert_eq!(round(&mut w), (true, true));
    w.queue.suppress_kicks();
    w.driver.add(&[Buffer::readable(DATA, 1)]).unwrap();
    assert!(!w.driver.expose(false));
    assert!(w.queue.request_kicks(), "what came while kicks were off is told");
}

#[test]
fn event_idx_says_whether_to_interrupt() {
    for base in [0u16, 65534] {
        let mut w = world_from(base, true, true);
        let complete = |w: &mut World, n: u16| {
            for _ in 0..n {
                let head = w.driver.add(&[Buffer::readable(DATA, 1)]).unwrap();
                w.driver.expose(true);
                w.pop().unwrap().unwrap();
                w.queue.complete(head, 0);
            }
            let interrupt = w.queue.publish();
            while w.driver.take_used().is_some() {}
            interrupt
        };
        w.driver.set_used_event(base.wrapping_add(100));
        assert!(complete(&mut w, 1), "the first after a start always");
        assert!(!complete(&mut w, 1));
        w.driver.set_used_event(base.wrapping_add(2));
        assert!(complete(&mut w, 1), "the one asked for");
        assert!(!complete(&mut w, 1), "and no other");
        w.driver.set_used_event(base.wrapping_add(6));
        assert!(!complete(&mut w, 2));
        assert!(complete(&mut w, 3), "inside a batch");
    }
}

#[test]
fn event_idx_asks_for_kicks() {
    let mut w = world_from(65535, true, true);
    assert!(!w.queue.request_kicks());
    let add = |w: &mut World| {
        w.driver.add(&[Buffer::readable(DATA, 1)]).unwrap();
        w.driver.expose(true)
    };
    assert!(add(&mut w));
    assert!(!add(&mut w), "only the first");
    assert!(w.queue.request_kicks(), "two wait");
    while let Some(chain) = w.pop().unwrap() {
        w.queue.complete(chain.head, 0);
    }
    w.queue.suppress_kicks();
    assert!(!w.queue.request_kicks());
    assert_eq!(w.driver.avail_event(), 1);
    assert!(add(&mut w));
}

#[test]
fn t13_a_second_processor_changes_everything_meanwhile() {
    let guest = memory();
    let mut driver = RingDriver::new(guest.clone(), 0, SIZE);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let other = std::thread::spawn({
        let (guest, stop) = (guest.clone(), stop.clone());
        move || {
            let mut seed = 1u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                guest.write((seed >> 33) % (16 * u64::from(SIZE)), &[(seed >> 13) as u8]);
                guest.write(DATA + (seed >> 40) % 256, &[(seed >> 21) as u8]);
            }
        }
    });
    let mut segments = SegmentBuf::new();
    let mut queue = Queue::new(guest.memory(), &driver.setup(true, true)).unwrap();
    for i in 0..200_000u32 {
        driver.put_available((i % u32::from(SIZE)) as u16);
        driver.expose(true);
        let head = match queue.pop(&mut segments) {
            Ok(Some(chain)) => {
                check(&chain, &segments, END);
                chain.head
            }
            Ok(None) => panic!("one was made available"),
            Err(QueueError::Chain { head, .. }) => head,
            Err(other) => panic!("only chains are touched: {other}"),
        };
        queue.complete(head, 0);
        let _ = queue.publish();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
}

/// What holds for every chain that is popped.
fn check(chain: &Chain, segments: &SegmentBuf, bytes_max: u64) {
    let (readable, writable) = segments.as_slice().split_at(chain.readable);
    let sum = |part: &[pollux_core::Segment]| part.iter().map(|s| s.len() as u64).sum::<u64>();
    assert_eq!((sum(readable), sum(writable)), (chain.readable_bytes, chain.writable_bytes));
    assert!(chain.readable_bytes + chain.writable_bytes <= u64::from(u32::MAX));
    for segment in segments.as_slice() {
        assert!(!segment.is_empty() && (segment.len() as u64) <= bytes_max);
        // Every byte is mapped: this faults otherwise.
        let mut ends = [0; 1];
        copy_from(&[*segment], 0, &mut ends);
        copy_from(&[*segment], segment.len() - 1, &mut ends);
    }
}

/// Addresses that are good, bad, and on the edges.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => DATA..END,
        1 => 0..DATA,
        1 => (BORDER - 64)..(BORDER + 64),
        1 => (END - 64)..(END + 64),
        1 => any::<u64>(),
        1 => (u64::MAX - 64)..=u64::MAX,
    ]
}

type Raw = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Raw> {
    let len = prop_oneof![4 => 0u32..64, 1 => (0u32..40).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0u16..4, 1 => Just(INDIRECT), 1 => any::<u16>()];
    let next = prop_oneof![6 => 0..SIZE, 1 => any::<u16>()];
    (address(), len, flags, next)
}

#[derive(Clone, Debug)]
enum Act {
    Descriptor(u16, Raw),
    Entry(u64, Raw),
    Available(u16),
    Index(u16),
    Event(u16),
    NoInterrupt(bool),
    Pop,
    Complete,
    Publish,
    Kicks(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..SIZE, descriptor()).prop_map(|(i, d)| Act::Descriptor(i, d)),
        3 => ((DATA / 16)..(END / 16), descriptor()).prop_map(|(i, d)| Act::Entry(i * 16, d)),
        6 => (0..SIZE).prop_map(Act::Available),
        1 => any::<u16>().prop_map(Act::Available),
        1 => any::<u16>().prop_map(Act::Index),
        1 => any::<u16>().prop_map(Act::Event),
        1 => any::<bool>().prop_map(Act::NoInterrupt),
        8 => Just(Act::Pop),
        5 => Just(Act::Complete),
        2 => Just(Act::Publish),
        1 => any::<bool>().prop_map(Act::Kicks),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_a_guest_does_the_queue_keeps_its_promises(
        acts in prop::collection::vec(act(), 1..120), event_idx: bool, indirect: bool, start: u16,
    ) {
        let mut w = world_from(start, event_idx, indirect);
        let mut taken = Vec::new();
        for act in acts {
            match act {
                Act::Descriptor(i, (addr, len, flags, next)) => w.driver.set_descriptor(i, addr, len, flags, next),
                Act::Entry(at, (addr, len, flags, next)) => w.driver.set_descriptor_at(at, addr, len, flags, next),
                Act::Available(head) => {
                    w.driver.put_available(head);
                    w.driver.expose(event_idx);
                }
                Act::Index(index) => w.driver.set_avail_idx(index),
                Act::Event(index) => w.driver.set_used_event(index),
                Act::NoInterrupt(on) => w.driver.set_no_interrupt(on),
                Act::Pop => match w.pop() {
                    Ok(Some(chain)) => {
                        check(&chain, &w.segments, END);
                        prop_assert!(!taken.contains(&chain.head));
                        taken.push(chain.head);
                    }
                    Ok(None) => {}
                    Err(QueueError::Chain { head, .. }) => {
                        prop_assert!(!taken.contains(&head));
                        taken.push(head);
                    }
                    Err(QueueError::Broken(_)) => prop_assert!(w.queue.broken().is_some()),
                    Err(QueueError::Setup(fault)) => panic!("{fault}"),
                },
                Act::Complete => if let Some(head) = taken.pop() {
                    w.queue.complete(head, 1);
                },
                Act::Publish => {
                    let _ = w.queue.publish();
                }
                Act::Kicks(true) => {
                    let _ = w.queue.request_kicks();
                }
                Act::Kicks(false) => w.queue.suppress_kicks(),
            }
            prop_assert_eq!(w.queue.in_flight() as usize, taken.len());
        }
    }

    /// Well-formed chains come out as they went in, whatever their framing.
    #[test]
    fn chains_come_out_as_they_went_in(
        readable in prop::collection::vec((DATA..END - 64, 0u32..64), 0..4),
        writable in prop::collection::vec((DATA..END - 64, 0u32..64), 1..4),
        indirect: bool,
    ) {
        let mut w = world();
        let mut buffers: Vec<_> = readable.iter().map(|b| Buffer::readable(b.0, b.1)).collect();
        buffers.extend(writable.iter().map(|b| Buffer::writable(b.0, b.1)));
        // The table lies among the rings' own page, away from the data.
        let head = if indirect { w.driver.add_indirect(0x4000, &buffers) } else { w.driver.add(&buffers) }.unwrap();
        for (i, buffer) in buffers.iter().enumerate() {
            w.driver.memory().write(buffer.addr, &vec![i as u8 + 1; buffer.len as usize]);
        }
        let expected: Vec<u8> = buffers.iter().flat_map(|b| w.driver.memory().read(b.addr, b.len as usize)).collect();
        w.driver.expose(false);
        let chain = w.pop().unwrap().unwrap();
        let mut got = vec![0; expected.len()];
        prop_assert_eq!(copy_from(w.segments.as_slice(), 0, &mut got), expected.len());
        prop_assert_eq!(got, expected);
        let sum = |part: &[(u64, u32)]| part.iter().map(|b| u64::from(b.1)).sum::<u64>();
        prop_assert_eq!((chain.head, chain.readable_bytes, chain.writable_bytes), (head, sum(&readable), sum(&writable)));
        check(&chain, &w.segments, END);
    }
}

#[test]
fn what_was_shown_is_still_told() {
    let mut w = world_from(0, true, false);
    let serve = |w: &mut World, show: bool| {
        let head = w.driver.add(&[Buffer::writable(DATA, 1)]).unwrap();
        w.driver.expose(true);
        w.pop().unwrap().unwrap();
        w.queue.complete(head, 0);
        assert_eq!(w.queue.unshown(), 1);
        if show {
            w.queue.show();
            assert_eq!(w.queue.unshown(), 0);
            assert_eq!(w.driver.take_used(), Some((head, 0)), "shown before it is told");
        }
    };
    // The first is always told.
    serve(&mut w, true);
    assert!(w.queue.publish());
    // The driver asks for an interrupt at the third; that it has been shown in pieces does not matter.
    w.driver.set_used_event(2);
    serve(&mut w, true);
    assert!(!w.queue.publish(), "the second was not asked for");
    serve(&mut w, true);
    serve(&mut w, false);
    assert!(w.queue.publish(), "the third was passed since the last decision");
    assert!(!w.queue.publish(), "once");
}
