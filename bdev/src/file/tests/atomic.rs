//! Writes that the kernel does as a whole or not at all, on files of which we say that it does.

use super::*;
use pollux_core::Tag;

const UNIT: usize = 16 << 10;
const ATOMICS: fn(&RingOp) -> bool = |op| matches!(op, RingOp::WriteAtomic { .. });

/// As if the kernel had said so, of two segments at most.
fn atomic(geometry: &mut Geometry) {
    strict(geometry);
    let unit = UNIT as u32;
    let write = AtomicWrite { max: unit, granularity: unit, alignment: unit };
    geometry.atomic = Some(Atomic { write, segments: 2 });
}

#[test]
fn each_is_one_entry_of_the_ring_wherever_its_memory_is() {
    let file = image(1 << 20);
    let device = open_as(&file, atomic);
    assert_eq!(device.shape().atomic_write.map(|atomic| atomic.max), Some(UNIT as u32));
    let mut rig = Rig::new(&device);
    // As it is; in more segments than are taken, and in memory that direct I/O does not take, through a buffer.
    for (n, (start, pieces, bounces)) in
        [(0, &[][..], 0), (0, &[512, 16384], 0), (0, &[512], 1), (3, &[], 2)].into_iter().enumerate()
    {
        let (at, bytes) = ((n * UNIT) as u64, pattern(n as u64, UNIT));
        let flags = if n % 2 == 0 { IoFlags::ATOMIC } else { IoFlags::ATOMIC | IoFlags::FUA };
        rig.write_in(at, &bytes, flags, start, pieces).unwrap();
        assert_eq!(entries(&rig, ATOMICS), n + 1);
        assert_eq!(device.stats.snapshot().bounces, bounces);
        assert!(rig.read(at, UNIT).unwrap() == bytes);
        let durable =
            matches!(rig.ring.log.iter().rev().find(|op| ATOMICS(op)), Some(RingOp::WriteAtomic { dsync: true, .. }));
        assert_eq!(durable, flags.contains(IoFlags::FUA));
    }
    assert_eq!(entries(&rig, WRITES), 0);
    rig.write(0, &[1; 512], EMPTY).unwrap();
    assert_eq!((entries(&rig, WRITES), entries(&rig, ATOMICS)), (1, 4), "others are as ever");
}

#[test]
fn what_the_kernel_did_not_offer_is_refused_before_it_is_asked() {
    let file = image(1 << 20);
    let cases = [(0, UNIT / 2), (0, 2 * UNIT), (512, UNIT), (UNIT as u64 / 2, UNIT)];
    let device = open_as(&file, atomic);
    let mut rig = Rig::new(&device);
    for (offset, len) in cases {
        assert_eq!(rig.write(offset, &vec![1; len], IoFlags::ATOMIC), Err(IoError::Unsupported), "{offset} {len}");
    }
    drop((rig, device));
    let device = open_as(&file, |geometry| {
        strict(geometry);
        geometry.atomic = None;
    });
    let mut rig = Rig::new(&device);
    assert_eq!(rig.write(0, &[1; UNIT], IoFlags::ATOMIC), Err(IoError::Unsupported));
    assert!(rig.ring.log.is_empty());
}

#[test]
fn one_that_fails_is_not_tried_in_another_way() {
    let file = image(1 << 20);
    let device = open_as(&file, atomic);
    // The kernel does not do it after all.
    for errno in [libc::EINVAL, libc::EOPNOTSUPP, libc::EIO] {
        let mut rig = Rig::new(&device);
        rig.ring.judge(move |op| if ATOMICS(op) { Fate::Fail(errno) } else { Fate::Pass });
        assert!(rig.write(0, &[1; UNIT], IoFlags::ATOMIC).is_err());
        assert_eq!(entries(&rig, WRITES), 0);
        assert_eq!(rig.read(0, UNIT).unwrap(), [0; UNIT]);
    }
    // It never ends short; if it did, the rest would not be written as if nothing had happened.
    let mut rig = Rig::new(&device);
    rig.ring.judge(|op| if ATOMICS(op) { Fate::Report(8192) } else { Fate::Pass });
    assert_eq!(rig.write(0, &[1; UNIT], IoFlags::ATOMIC), Err(IoError::Medium));
    assert_eq!((entries(&rig, ATOMICS), entries(&rig, WRITES)), (1, 0));
}

#[test]
fn one_that_is_cancelled_is_done_or_not() {
    const TAG: Tag = 7;
    let file = image(1 << 20);
    let device = open_as(&file, atomic);
    let mut rig = Rig::new(&device);
    rig.ring.judge(|op| if ATOMICS(op) { Fate::Hold } else { Fate::Pass });
    let data = rig.segments(0, &[], UNIT);
    rig.submit(Io { tag: TAG, op: Op::Write, flags: IoFlags::ATOMIC, offset: 0, len: UNIT as u64, data });
    rig.cancel(TAG);
    assert_eq!(rig.finish(), [Completion { tag: TAG, result: Err(IoError::Aborted) }]);
    assert_eq!(rig.read(0, UNIT).unwrap(), [0; UNIT]);
}
