//! The device on a ram disk, alone and in stacks.

use pollux_core::{Completion, Io, IoError, IoFlags, Next};

use super::rules::Effect;
use super::*;
use crate::testing::{Rig, model, pattern, ram};
use crate::{Delay, DelaySpec, Part, Passthru};

const EMPTY: IoFlags = IoFlags::empty();

fn fault_on(base: Arc<dyn Device>, volatile_cache: bool, cache_mib: u32) -> Arc<Fault> {
    Arc::new(Fault::new(&FaultSpec { volatile_cache, cache_mib, ..FaultSpec::new("ram") }, base).unwrap())
}

fn plain() -> Arc<Fault> {
    fault_on(ram(512, 64), false, 1)
}

#[test]
fn without_rules_it_is_its_base() {
    model::check_cases(8, || (fault_on(ram(512, 512), false, 1) as Arc<dyn Device>, ()));
    assert!(!plain().shape().volatile_cache);
    assert_eq!(plain().driver_specific(), json!({"error_disk": {"base_bdev": "ram"}}));
}

/// Some microseconds.
fn slow() -> DelaySpec {
    DelaySpec {
        name: "d".into(),
        base_bdev_name: "e".into(),
        avg_read_latency: 5,
        p99_read_latency: 50,
        avg_write_latency: 7,
        p99_write_latency: 70,
        uuid: None,
    }
}

#[test]
fn with_a_cache_it_is_its_base_too() {
    model::check(|| (fault_on(ram(512, 512), true, 256) as Arc<dyn Device>, ()));
    model::check_cases(16, || {
        let device = Fault::new(&FaultSpec { volatile_cache: true, ..FaultSpec::new("ram") }, ram(512, 2048)).unwrap();
        // A cache that is always full: every write is written back.
        device.shared.cache().unwrap().set_limit(0);
        (Arc::new(device) as Arc<dyn Device>, ())
    });
}

#[test]
fn stacks_of_everything_behave_as_a_disk() {
    model::check_cases(12, || {
        let fault = fault_on(ram(4096, 256), true, 1);
        let part = Part::new("d", Arc::new(Delay::new(&slow(), fault)), 100, 128);
        (Arc::new(Passthru::new("p", "dp0", Arc::new(part))) as Arc<dyn Device>, ())
    });
}

#[test]
fn requests_fail_as_often_as_the_rule_says() {
    let device = plain();
    let mut rig = Rig::new(&*device);
    device.inject(Some(Op::Write), Rule::new(Effect::Fail(IoError::NoSpace), 2)).unwrap();
    assert_eq!(rig.write(0, &[1; 512], EMPTY), Err(IoError::NoSpace));
    assert_eq!(rig.read(0, 512).unwrap(), [0; 512]);
    assert_eq!(device.rule(Op::Write).unwrap().count, 1);
    assert_eq!(rig.write(0, &[1; 512], EMPTY), Err(IoError::NoSpace));
    rig.write(0, &[1; 512], EMPTY).unwrap();
    device.inject(None, Rule::new(Effect::Fail(IoError::Busy), Rule::FOR_EVER)).unwrap();
    for op in [Op::Flush, Op::Discard, Op::WriteZeroes] {
        assert_eq!(rig.without_data(op, EMPTY, 0, 512), Err(IoError::Busy));
    }
    device.clear();
    assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    assert!(device.inject(None, Rule::new(Effect::Stuck, 0)).is_err());
    assert!(device.inject(None, Rule::new(Effect::Corrupt { offset: 0, value: 0 }, 1)).is_err());
}

#[test]
fn what_is_stuck_waits_for_resume_or_cancel() {
    let device = plain();
    let mut rig = Rig::new(&*device);
    device.inject(Some(Op::Flush), Rule::new(Effect::Stuck, 2)).unwrap();
    rig.submit(Io::without_data(1, Op::Flush, EMPTY, 0, 0));
    rig.submit(Io::without_data(2, Op::Flush, EMPTY, 0, 0));
    for _ in 0..3 {
        rig.ring.now += STUCK;
        assert_eq!(rig.poll(), []);
        assert!(matches!(rig.next(), Next::At(at) if at > rig.ring.now), "it looks again later, without spinning");
    }
    rig.cancel(1);
    assert_eq!(rig.poll(), [Completion { tag: 1, result: Err(IoError::Aborted) }]);
    device.resume();
    assert_eq!(rig.finish(), [Completion { tag: 2, result: Ok(()) }]);
}

/// Longer than what is stuck sleeps.
const STUCK: u64 = 20_000_000;

#[test]
fn delays_are_kept() {
    let device = plain();
    let mut rig = Rig::new(&*device);
    device.inject(Some(Op::Read), Rule::new(Effect::Delay(5_000), 1)).unwrap();
    let before = rig.ring.now;
    rig.read(0, 512).unwrap();
    assert_eq!(rig.ring.now - before, 5_000);
    rig.read(0, 512).unwrap();
    assert_eq!(rig.ring.now - before, 5_000);
}

#[test]
fn one_byte_is_corrupted_on_the_medium_or_on_the_way_up() {
    for cached in [false, true] {
        let device = fault_on(ram(512, 64), cached, 1);
        let mut rig = Rig::new(&*device);
        let corrupt = Rule::new(Effect::Corrupt { offset: 600, value: 0x11 }, 1);
        device.inject(Some(Op::Write), corrupt).unwrap();
        rig.write_in(0, &[1; 1024], EMPTY, 0, &[100, 512]).unwrap();
        let mut wanted = [1; 1024];
        wanted[600] = 0x10;
        assert_eq!(rig.read(0, 1024).unwrap(), wanted);
        device.inject(Some(Op::Read), corrupt).unwrap();
        assert_eq!(rig.read_in(0, 1024, 0, &[100, 512]).unwrap(), [1; 1024]);
        assert_eq!(rig.read(0, 1024).unwrap(), wanted, "only that one read");
        device.inject(Some(Op::Read), Rule::new(Effect::Corrupt { offset: 1 << 40, value: 1 }, 1)).unwrap();
        assert_eq!(rig.read(0, 1024).unwrap(), wanted, "beyond the end there is nothing to corrupt");
    }
}

#[test]
fn a_torn_write_leaves_whole_blocks_and_an_error() {
    for cached in [false, true] {
        let device = fault_on(ram(512, 64), cached, 1);
        let mut rig = Rig::new(&*device);
        let mut lengths = std::collections::BTreeSet::new();
        for _ in 0..40 {
            rig.without_data(Op::WriteZeroes, EMPTY, 0, 4096).unwrap();
            device.inject(Some(Op::Write), Rule::new(Effect::Torn, 1)).unwrap();
            let bytes = [[1; 512], [2; 512], [3; 512], [4; 512]].concat();
            assert_eq!(rig.write(512, &bytes, EMPTY), Err(IoError::Medium));
            let now = rig.read(512, 2048).unwrap();
            let len = now.iter().position(|byte| *byte == 0).expect("never all of it");
            assert!(len.is_multiple_of(512) && now[..len] == bytes[..len] && now[len..].iter().all(|b| *b == 0));
            lengths.insert(len);
        }
        assert_eq!(lengths.len(), 4, "every length from none to all but one block");
        device.inject(None, Rule::new(Effect::Torn, 1)).unwrap();
        assert_eq!(rig.write(0, &[1; 512], EMPTY), Err(IoError::Medium));
        assert_eq!(rig.flush(), Err(IoError::Medium));
    }
}

/// A volatile cache over a ram disk: base, device.
fn volatile() -> (Arc<dyn Device>, Arc<Fault>) {
    let base = ram(512, 4096);
    let device = fault_on(base.clone(), true, 256);
    assert!(device.shape().volatile_cache);
    (base, device)
}

#[test]
fn exactly_what_was_not_flushed_is_lost() {
    let (base, device) = volatile();
    let (mut rig, mut below) = (Rig::new(&*device), Rig::new(&*base));
    rig.write(0, &[1; 1024], EMPTY).unwrap();
    assert_eq!(below.read(0, 1024).unwrap(), [0; 1024], "acknowledged, and not on the base");
    rig.flush().unwrap();
    assert_eq!(below.read(0, 1024).unwrap(), [1; 1024]);
    rig.write(512, &[2; 1024], EMPTY).unwrap();
    rig.write(4096, &[3; 512], IoFlags::FUA).unwrap();
    rig.without_data(Op::WriteZeroes, EMPTY, 0, 512).unwrap();
    assert_eq!(rig.read(0, 1536).unwrap(), [[0; 512], [2; 512], [2; 512]].concat());
    assert_eq!(device.cached_bytes(), 3 * 512);
    assert_eq!(device.drop_cache(), Some(PowerCut { lost: 2, ..PowerCut::default() }));
    assert_eq!(rig.read(0, 1536).unwrap(), [[1; 512], [1; 512], [0; 512]].concat());
    assert_eq!(rig.read(4096, 512).unwrap(), [3; 512]);
    assert_eq!((device.cached_bytes(), plain().drop_cache()), (0, None));
}

#[test]
fn a_cut_keeps_loses_or_tears_each_write_and_never_mixes_bytes() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let (_, device) = volatile();
        let mut rig = Rig::new(&*device);
        rig.write(0, &[1; 2048], EMPTY).unwrap();
        rig.flush().unwrap();
        rig.write(0, &[2; 2048], EMPTY).unwrap();
        let cut = device.power_cut(seed).unwrap();
        assert_eq!(cut.kept + cut.torn + cut.lost, 1);
        let now = rig.read(0, 2048).unwrap();
        let new = now.chunks(512).filter(|block| block.iter().all(|b| *b == 2)).count();
        let old = now.chunks(512).filter(|block| block.iter().all(|b| *b == 1)).count();
        assert_eq!(new + old, 4, "a block is all old or all new");
        match cut {
            PowerCut { kept: 1, .. } => assert_eq!(new, 4),
            PowerCut { lost: 1, .. } => assert_eq!(old, 4),
            _ => {}
        }
        seen.insert(new);
        rig.flush().unwrap();
        assert_eq!(device.drop_cache().unwrap(), PowerCut::default());
        assert_eq!(rig.read(0, 2048).unwrap(), now);
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

#[test]
fn big_ranges_go_to_the_base_and_overtake_what_is_cached() {
    let (base, device) = volatile();
    let (mut rig, mut below) = (Rig::new(&*device), Rig::new(&*base));
    for (op, len) in [(Op::Discard, 1024), (Op::WriteZeroes, 2 << 20)] {
        rig.write(0, &[7; 4096], IoFlags::FUA).unwrap();
        rig.write(512, &[8; 512], EMPTY).unwrap();
        rig.without_data(op, EMPTY, 0, len).unwrap();
        assert_eq!(rig.read(0, 1024).unwrap(), [0; 1024]);
        assert_eq!(below.read(0, 1024).unwrap(), [0; 1024]);
        assert_eq!(device.cached_bytes(), 0);
    }
}

#[test]
fn a_full_cache_writes_back_before_it_acknowledges() {
    let base = ram(512, 8192);
    let device = fault_on(base.clone(), true, 1);
    let (mut rig, mut below) = (Rig::new(&*device), Rig::new(&*base));
    let bytes = pattern(1, 3 << 20);
    for (nth, part) in bytes.chunks(64 << 10).enumerate() {
        rig.write((nth as u64) << 16, part, EMPTY).unwrap();
        assert!(device.cached_bytes() <= 1 << 20);
    }
    assert_eq!(rig.read(0, bytes.len()).unwrap(), bytes);
    assert_eq!(below.read(0, 1 << 20).unwrap(), bytes[..1 << 20]);
}

#[test]
fn reactors_share_one_cache() {
    let (_, device) = volatile();
    let (mut one, mut two) = (Rig::new(&*device), Rig::new(&*device));
    one.write(0, &[1; 512], EMPTY).unwrap();
    assert_eq!(two.read(0, 512).unwrap(), [1; 512]);
    two.flush().unwrap();
    let _ = device.drop_cache();
    assert_eq!(one.read(0, 512).unwrap(), [1; 512], "a flush covers writes acknowledged on every reactor");
}

#[test]
fn one_reactor_at_a_time_writes_back() {
    let (_, device) = volatile();
    let (mut one, mut two) = (Rig::new(&*device), Rig::new(&*device));
    one.write(0, &[1; 512], EMPTY).unwrap();
    one.submit(Io::without_data(1, Op::Flush, EMPTY, 0, 0));
    two.submit(Io::without_data(2, Op::Flush, EMPTY, 0, 0));
    two.submit(Io::without_data(3, Op::Flush, EMPTY, 0, 0));
    assert_eq!(two.poll(), []);
    assert!(matches!(two.next(), Next::At(_)));
    two.cancel(3);
    assert_eq!(two.poll(), [Completion { tag: 3, result: Err(IoError::Aborted) }]);
    assert_eq!(one.finish(), [Completion { tag: 1, result: Ok(()) }]);
    assert_eq!(two.finish(), [Completion { tag: 2, result: Ok(()) }]);
}

#[test]
fn what_waits_for_the_medium_through_a_cut_is_not_acknowledged_as_durable() {
    let (_, device) = volatile();
    let (mut one, mut two) = (Rig::new(&*device), Rig::new(&*device));
    one.write(0, &[1; 512], EMPTY).unwrap();
    two.write(512, &[2; 512], EMPTY).unwrap();
    one.submit(Io::without_data(1, Op::Flush, EMPTY, 0, 0));
    two.write(1024, &[3; 512], EMPTY).unwrap();
    two.submit(Io::without_data(2, Op::Flush, EMPTY, 0, 0));
    two.submit(Io::without_data(3, Op::WriteZeroes, IoFlags::FUA, 2048, 512));
    assert_eq!(device.drop_cache(), Some(PowerCut { lost: 2, ..PowerCut::default() }));
    assert_eq!(one.finish(), [Completion { tag: 1, result: Ok(()) }], "what is leaving is kept");
    let failed = |tag| Completion { tag, result: Err(IoError::Medium) };
    assert_eq!(two.finish(), [failed(2), failed(3)]);
    two.flush().unwrap();
    assert_eq!(two.read(0, 1536).unwrap(), [[1; 512], [2; 512], [0; 512]].concat());

    two.write(0, &[4; 512], EMPTY).unwrap();
    device.inject(Some(Op::Flush), Rule::new(Effect::Delay(5_000), 1)).unwrap();
    two.submit(Io::without_data(4, Op::Flush, EMPTY, 0, 0));
    let _ = device.drop_cache();
    assert_eq!(two.finish(), [failed(4)], "held by a rule meanwhile");
}

#[test]
fn a_write_back_that_fails_fails_the_flush_and_keeps_the_data() {
    let base = plain();
    let device = Fault::new(&FaultSpec { volatile_cache: true, ..FaultSpec::new("e") }, base.clone()).unwrap();
    let mut rig = Rig::new(&device);
    rig.write(0, &[1; 512], EMPTY).unwrap();
    rig.write(2048, &[2; 512], EMPTY).unwrap();
    base.inject(Some(Op::Write), Rule::new(Effect::Fail(IoError::Medium), 1)).unwrap();
    assert_eq!(rig.flush(), Err(IoError::Medium));
    assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
    rig.flush().unwrap();
    assert_eq!(device.cached_bytes(), 0);
    assert_eq!(rig.read(2048, 512).unwrap(), [2; 512]);
    base.inject(Some(Op::Flush), Rule::new(Effect::Fail(IoError::FlushFailed), 1)).unwrap();
    assert_eq!(rig.flush(), Err(IoError::FlushFailed), "the base's flush counts");
}

#[test]
fn a_write_back_can_be_cancelled() {
    let base = plain();
    let device = Fault::new(&FaultSpec { volatile_cache: true, ..FaultSpec::new("e") }, base.clone()).unwrap();
    let mut rig = Rig::new(&device);
    rig.write(0, &[1; 512], EMPTY).unwrap();
    base.inject(Some(Op::Write), Rule::new(Effect::Stuck, 1)).unwrap();
    rig.submit(Io::without_data(1, Op::Flush, EMPTY, 0, 0));
    assert_eq!(rig.poll(), []);
    rig.cancel(1);
    assert_eq!(rig.finish(), [Completion { tag: 1, result: Err(IoError::Aborted) }]);
    rig.flush().unwrap();
    assert_eq!(rig.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn a_base_that_has_shrunk_is_known_before_a_write_is_acknowledged() {
    let spec =
        crate::NullSpec { name: "n".into(), block_size: 512, num_blocks: 16, physical_block_size: None, uuid: None };
    let base = Arc::new(crate::Null::new(&spec));
    let device = fault_on(base.clone(), true, 1);
    let mut rig = Rig::new(&*device);
    base.resize(8 * 512).unwrap();
    assert_eq!(rig.write(8 * 512, &[1; 512], EMPTY), Err(IoError::OutOfRange));
    rig.write(7 * 512, &[1; 512], EMPTY).unwrap();
}

#[test]
fn stacks_pass_on_what_is_mapped_unless_they_hold_something_back() {
    use pollux_core::Extent;
    let stack = |volatile_cache| {
        let base = ram(512, 256);
        Rig::new(&*base).write(100 * 512, &[1; 1024], EMPTY).unwrap();
        let fault = fault_on(base, volatile_cache, 1);
        let part = Part::new("d", Arc::new(Delay::new(&slow(), fault)), 90, 64);
        crate::Measured::new(Arc::new(Passthru::new("p", "dp0", Arc::new(part))), Arc::default())
    };
    let plain = stack(false);
    assert!(!plain.extent_waits());
    assert_eq!(plain.extent(0, 64 * 512), Extent { len: 10 * 512, mapped: false });
    assert_eq!(plain.extent(10 * 512, 54 * 512), Extent::mapped(1024));
    assert_eq!(stack(true).extent(0, 64 * 512), Extent::mapped(64 * 512));
}

#[test]
fn no_copy_goes_past_what_delays_or_fails() {
    let fault = plain();
    assert!(fault.copy_range(0, 512).is_none());
    assert!(Delay::new(&slow(), ram(512, 64)).copy_range(0, 512).is_none());
    assert!(Passthru::new("p", "e", fault).copy_range(0, 512).is_none());
    assert!(Passthru::new("p", "ram", ram(512, 64)).copy_range(0, 512).is_some());
}
