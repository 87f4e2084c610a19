//! What one request costs in the virtqueue: pop of a chain of three descriptors with translation, completion, and the
//! decision on the interrupt; and what an empty poll costs. Prints nanoseconds, the best of several rounds.
//!
//! `cargo run --release -p pollux-vhost-user --features testing --example queue_bench`

use std::hint::black_box;
use std::time::Instant;

use pollux_vhost_user::testing::{Buffer, RingDriver, TestMemory};
use pollux_vhost_user::{Queue, SegmentBuf};

const SIZE: u16 = 256;
const LAPS: u32 = 20_000;

/// Pops and completes `batch` requests, then publishes once; nanoseconds per request.
fn lap(driver: &RingDriver, queue: &mut Queue, segments: &mut SegmentBuf, index: &mut u16, batch: u16) -> f64 {
    let start = Instant::now();
    for _ in 0..LAPS {
        *index = index.wrapping_add(batch);
        driver.set_avail_idx(*index);
        while let Ok(Some(chain)) = queue.pop(segments) {
            black_box(segments.as_slice());
            queue.complete(chain.head, chain.writable_bytes as u32);
        }
        black_box(queue.publish());
    }
    start.elapsed().as_nanos() as f64 / f64::from(LAPS) / f64::from(batch)
}

fn bench(name: &str, indirect: bool, batch: u16) {
    let memory = TestMemory::new(&[(0, 0x10_0000), (0x10_0000, 0x10_0000)]);
    let mut driver = RingDriver::new(memory, 0, SIZE);
    let mut queue = Queue::new(driver.memory().memory(), &driver.setup(true, true)).expect("sound rings");
    for i in 0..u64::from(SIZE) {
        let at = 0x2_0000 + i * 0x100;
        let buffers = [Buffer::readable(at, 51), Buffer::writable(at + 0x80, 108), Buffer::writable(0x8_0000, 4096)];
        // Only heads are reused, round and round: the available ring is filled once.
        let filled = if indirect { driver.add_indirect(0x4_0000 + i * 48, &buffers) } else { driver.add(&buffers) };
        if filled.is_none() {
            driver.put_available((i % u64::from(SIZE / 4)) as u16 * 3);
        }
    }
    if !indirect {
        lay_out_direct(&mut driver);
    }
    let (mut segments, mut index) = (SegmentBuf::new(), 0);
    let best = (0..9).map(|_| lap(&driver, &mut queue, &mut segments, &mut index, batch)).fold(f64::MAX, f64::min);
    println!("{name:<28} batch {batch:>3}: {best:6.1} ns a request");
}

/// 64 chains of three, their heads repeated around the available ring.
fn lay_out_direct(driver: &mut RingDriver) {
    driver.next_avail = 0;
    for i in 0..SIZE {
        let head = (i % 64) * 3;
        let at = 0x2_0000 + u64::from(head) * 0x100;
        driver.set_descriptor(head, at, 51, 1, head + 1);
        driver.set_descriptor(head + 1, at + 0x80, 108, 3, head + 2);
        driver.set_descriptor(head + 2, 0x8_0000, 4096, 2, 0);
        driver.put_available(head);
    }
}

fn main() {
    for batch in [1, 8, 32] {
        bench("three descriptors", false, batch);
        bench("three in an indirect table", true, batch);
    }
    let driver = RingDriver::new(TestMemory::new(&[(0, 0x1_0000)]), 0, SIZE);
    let mut queue = Queue::new(driver.memory().memory(), &driver.setup(true, true)).expect("sound rings");
    let mut segments = SegmentBuf::new();
    let rounds = 10_000_000u32;
    let start = Instant::now();
    for _ in 0..rounds {
        assert!(matches!(queue.pop(black_box(&mut segments)), Ok(None)));
    }
    println!("{:<28}            {:6.1} ns", "empty poll", start.elapsed().as_nanos() as f64 / f64::from(rounds));
}
