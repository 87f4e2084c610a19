//! Atomic writes on a device that tears.

use std::sync::Arc;

use pollux_core::{Bdev, IoError, IoFlags, Op};

use super::Fault;
use super::rules::{Effect, Rule};
use crate::testing::{Rig, ram};
use crate::{Delay, DelaySpec, FaultSpec, Passthru};

fn fault(volatile_cache: bool) -> Fault {
    Fault::new(&FaultSpec { volatile_cache, ..FaultSpec::new("ram") }, ram(512, 64)).unwrap()
}

#[test]
fn an_atomic_write_is_not_torn() {
    let device = fault(false);
    assert_eq!(device.shape().atomic_write, ram(512, 64).shape().atomic_write);
    let mut rig = Rig::new(&device);
    let mut torn = 0;
    for round in 0..40 {
        for (flags, is_atomic) in [(IoFlags::ATOMIC, true), (IoFlags::empty(), false)] {
            rig.write(0, &[1; 8192], IoFlags::empty()).unwrap();
            device.inject(Some(Op::Write), Rule::new(Effect::Torn, 1)).unwrap();
            assert_eq!(rig.write(0, &[2; 8192], flags), Err(IoError::Medium));
            let left = rig.read(0, 8192).unwrap();
            let whole = left.iter().all(|byte| *byte == left[0]);
            assert!(whole || !is_atomic, "round {round}");
            torn += u32::from(!whole);
        }
    }
    assert!(torn > 10, "others are");
}

#[test]
fn a_cache_that_loses_blocks_has_no_atomic_writes() {
    assert_eq!(fault(true).shape().atomic_write, None);
}

#[test]
fn stacks_pass_on_what_they_leave_as_it_is() {
    let base = ram(512, 64);
    let spec = DelaySpec {
        name: "d".into(),
        base_bdev_name: "ram".into(),
        avg_read_latency: 0,
        p99_read_latency: 0,
        avg_write_latency: 0,
        p99_write_latency: 0,
        uuid: None,
    };
    let delayed: Arc<dyn Bdev> = Arc::new(Delay::new(&spec, base.clone()));
    let stack = Passthru::new("p", "d", delayed);
    assert_eq!(stack.shape().atomic_write, base.shape().atomic_write);
    Rig::new(&stack).write(4096, &[5; 8192], IoFlags::ATOMIC).unwrap();
    assert_eq!(Rig::new(&*base).read(4096, 8192).unwrap(), [5; 8192]);
}
