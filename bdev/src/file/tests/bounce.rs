//! Requests whose memory direct I/O does not take as it is.

use super::super::bounce::{LARGE_LEN, LARGE_MOST, SMALL_LEN};
use super::*;

/// Bytes of a request that needs a large buffer.
const LONG: u64 = 2 * SMALL_LEN as u64;

#[test]
fn unaligned_memory_bounces_and_is_counted() {
    let file = image(4 << 20);
    let device = open_as(&file, strict);
    let mut rig = Rig::new(&device);
    let bytes = pattern(3, 4 * LARGE_LEN);
    rig.write_in(0, &bytes, EMPTY, 1, &[]).unwrap();
    assert_eq!(entries(&rig, WRITES), 4, "a buffer's length at a time");
    assert_eq!(rig.read_in(0, bytes.len(), 3, &[511, 1]).unwrap(), bytes);
    assert_eq!(device.stats.snapshot().bounces, 2);
    assert_eq!(rig.read_in(0, 4096, 512, &[]).unwrap(), bytes[..4096]);
    assert_eq!(device.stats.snapshot().bounces, 2, "aligned memory does not");
}

#[test]
fn lengths_around_the_buffers_come_and_go_whole() {
    let file = image(1 << 20);
    let device = open_as(&file, strict);
    let mut rig = Rig::new(&device);
    for (n, len) in [512, SMALL_LEN - 512, SMALL_LEN, SMALL_LEN + 512, LARGE_LEN - 512, LARGE_LEN, LARGE_LEN + 512]
        .into_iter()
        .enumerate()
    {
        let bytes = pattern(n as u64, len);
        let before = entries(&rig, WRITES);
        rig.write_in(512, &bytes, EMPTY, 5, &[700, 3]).unwrap();
        assert_eq!(entries(&rig, WRITES) - before, len.div_ceil(LARGE_LEN), "{len} bytes");
        rig.fill(0xee);
        assert_eq!(rig.read_in(512, len, 9, &[1, 4096]).unwrap(), bytes, "{len} bytes");
    }
}

/// A rig of this depth on an image of 1 MiB with a pattern.
fn patterned(depth: u32) -> (NamedTempFile, File, Rig, Vec<u8>) {
    let file = image(1 << 20);
    let device = open_as(&file, strict);
    let mut rig = Rig::with(&device, OpenArgs { depth, seed: 0 });
    assert_eq!(rig.depth(), depth);
    let bytes = pattern(4, 1 << 20);
    rig.write(0, &bytes, EMPTY).unwrap();
    rig.ring.log.clear();
    (file, device, rig, bytes)
}

/// A read of the rig's own memory that begins on an odd byte; the tag says where on the file and in memory.
fn misaligned(rig: &mut Rig, tag: u64, len: u64) -> Io {
    let data = rig.segments(1 + tag as usize * 20480, &[], len as usize);
    Io { tag, op: Op::Read, flags: EMPTY, offset: tag * 4096, len, data }
}

/// The offsets that were asked of the kernel, in order.
fn asked(rig: &Rig) -> Vec<u64> {
    let offset = |op: &RingOp| match op {
        RingOp::Read { offset, .. } => Some(offset / 4096),
        _ => None,
    };
    rig.ring.log.iter().filter_map(offset).collect()
}

/// What has ended, by tag.
fn sorted(mut done: Vec<Completion>) -> Vec<(u64, Result<(), IoError>)> {
    done.sort_unstable_by_key(|c| c.tag);
    done.into_iter().map(|c| (c.tag, c.result)).collect()
}

fn check(rig: &mut Rig, bytes: &[u8], tags: impl Iterator<Item = u64>, len: u64) {
    for tag in tags {
        let data = misaligned(rig, tag, len).data;
        let mut read = vec![0; len as usize];
        pollux_core::segment::copy_from(data.as_slice(), 0, &mut read);
        assert!(read == bytes[tag as usize * 4096..][..len as usize], "request {tag} has read something else");
    }
}

#[test]
fn short_requests_never_wait_for_each_other_or_for_long_ones() {
    let (_file, device, mut rig, bytes) = patterned(128);
    rig.ring.judge(|_| Fate::Hold);
    for tag in 0..128 {
        // Among them twice as many long ones as there are large buffers.
        let len = if tag % 4 == 0 { LONG } else { 4096 };
        let io = misaligned(&mut rig, tag, len);
        rig.submit(io);
    }
    let waiting: Vec<u64> = (4 * u64::from(LARGE_MOST)..128).filter(|tag| tag % 4 == 0).collect();
    let expected: Vec<u64> = (0..128).filter(|tag| !waiting.contains(tag)).collect();
    assert_eq!(asked(&rig), expected);
    rig.ring.judge(|_| Fate::Pass);
    rig.ring.release();
    assert_eq!(sorted(rig.finish()), (0..128).map(|tag| (tag, Ok(()))).collect::<Vec<_>>());
    assert_eq!(asked(&rig)[expected.len()..], waiting, "who waits goes in order");
    check(&mut rig, &bytes, (0..128).filter(|tag| tag % 4 != 0), 4096);
    check(&mut rig, &bytes, (0..128).filter(|tag| tag % 4 == 0), LONG);
    assert_eq!(device.stats.snapshot().bounces, 128);
}

#[test]
fn long_requests_wait_in_order_and_can_be_cancelled() {
    let (_file, _device, mut rig, bytes) = patterned(32);
    let most = u64::from(LARGE_MOST);
    rig.ring.judge(|_| Fate::Hold);
    for tag in 0..most + 4 {
        let io = misaligned(&mut rig, tag, LONG);
        rig.submit(io);
    }
    assert_eq!(entries(&rig, READS), LARGE_MOST as usize);
    rig.cancel(most + 1);
    assert_eq!(rig.poll(), [Completion { tag: most + 1, result: Err(IoError::Aborted) }]);
    rig.ring.judge(|_| Fate::Pass);
    rig.ring.release();
    let rest: Vec<_> = (0..most + 4).filter(|t| *t != most + 1).collect();
    assert_eq!(sorted(rig.finish()), rest.iter().map(|t| (*t, Ok(()))).collect::<Vec<_>>());
    assert_eq!(asked(&rig), rest);
    check(&mut rig, &bytes, rest.into_iter(), LONG);
}

#[test]
fn nobody_overtakes_those_who_wait() {
    let (_file, _device, mut rig, bytes) = patterned(32);
    let most = u64::from(LARGE_MOST);
    rig.ring.judge(|_| Fate::Hold);
    for tag in 0..=most {
        let io = misaligned(&mut rig, tag, LONG);
        rig.submit(io);
    }
    // One buffer comes back, and in the same turn another request finds out that it needs one.
    rig.cancel(0);
    rig.ring.judge(|_| Fate::Fail(libc::EINVAL));
    let data = rig.segments(1 << 20, &[], LONG as usize);
    rig.submit(Io { tag: 31, op: Op::Read, flags: EMPTY, offset: 31 * 4096, len: LONG, data });
    rig.ring.judge(|_| Fate::Hold);
    assert_eq!(rig.poll(), [Completion { tag: 0, result: Err(IoError::Aborted) }]);
    assert_eq!(asked(&rig)[LARGE_MOST as usize..], [31, most], "the one who waited has the buffer");
    rig.ring.judge(|_| Fate::Pass);
    rig.ring.release();
    assert_eq!(rig.finish().len() as u64, most + 1);
    assert_eq!(asked(&rig).last(), Some(&31));
    check(&mut rig, &bytes, 1..=most, LONG);
}

#[test]
fn a_cancelled_request_gives_its_buffer_to_the_next() {
    let (_file, _device, mut rig, bytes) = patterned(32);
    let most = u64::from(LARGE_MOST);
    rig.ring.judge(|_| Fate::Hold);
    for tag in 0..most + 2 {
        let io = misaligned(&mut rig, tag, LONG);
        rig.submit(io);
    }
    rig.cancel(5);
    assert_eq!(sorted(rig.poll()), [(5, Err(IoError::Aborted))]);
    assert_eq!(asked(&rig).last(), Some(&most));
    // Small ones come back the same way: as often as you like.
    for tag in 20..28 {
        for _ in 0..8 {
            let io = misaligned(&mut rig, tag, 4096);
            rig.submit(io);
            rig.cancel(tag);
            assert_eq!(sorted(rig.poll()), [(tag, Err(IoError::Aborted))]);
        }
    }
    rig.ring.judge(|_| Fate::Pass);
    rig.ring.release();
    assert_eq!(rig.finish().len() as u64, most + 1);
    check(&mut rig, &bytes, (0..most + 2).filter(|tag| *tag != 5), LONG);
}

#[test]
fn memory_that_the_kernel_refuses_bounces() {
    let file = image(8192);
    let device = open_as(&file, strict);
    let mut rig = Rig::new(&device);
    let mut first = true;
    rig.ring.judge(move |_| if std::mem::take(&mut first) { Fate::Fail(libc::EINVAL) } else { Fate::Pass });
    rig.write(0, &[5; 512], IoFlags::FUA).unwrap();
    assert!(!device.flush_failed());
    assert_eq!(rig.read(0, 512).unwrap(), [5; 512]);
    assert_eq!(device.stats.snapshot().bounces, 1);
}
