//! Random operations on a device and on an array of bytes: both must hold the same afterwards.

use std::sync::Arc;

use pollux_core::{IoFlags, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Rig, pattern};
use crate::Device;

/// How much of a device the model works on.
const BYTES: usize = 256 << 10;

#[derive(Clone, Debug)]
enum Action {
    Write { at: usize, blocks: usize, seed: u64, fua: bool, start: usize, pieces: Vec<usize> },
    Read { at: usize, blocks: usize, start: usize, pieces: Vec<usize> },
    Zero { at: usize, blocks: usize, discard: bool, flags: u8 },
    Flush,
}

/// Where the memory starts, and how it is cut.
fn layout() -> impl Strategy<Value = (usize, Vec<usize>)> {
    let start = prop_oneof![3 => Just(0), 1 => Just(512), 1 => 1usize..600];
    let pieces =
        prop_oneof![Just(vec![]), Just(vec![512]), Just(vec![4096]), proptest::collection::vec(1usize..3000, 1..5),];
    (start, pieces)
}

fn actions(block_size: usize) -> impl Strategy<Value = Vec<Action>> {
    let last = BYTES / block_size;
    let range =
        (0..last, prop_oneof![3 => 1usize..9, 1 => 1usize..last]).prop_map(move |(at, n)| (at, n.min(last - at)));
    let action = prop_oneof![
        4 => (range.clone(), any::<u64>(), any::<bool>(), layout()).prop_map(|((at, blocks), seed, fua, (start, pieces))| {
            Action::Write { at, blocks, seed, fua, start, pieces }
        }),
        3 => (range.clone(), layout()).prop_map(|((at, blocks), (start, pieces))| Action::Read { at, blocks, start, pieces }),
        2 => (range, any::<bool>(), 0u8..4)
            .prop_map(|((at, blocks), discard, flags)| Action::Zero { at, blocks, discard, flags }),
        1 => Just(Action::Flush),
    ];
    proptest::collection::vec(action, 1..40)
}

/// Compares; `make` gives a device full of zeroes of at least 256 KiB, and whatever has to live as long.
pub(crate) fn check<K>(make: impl Fn() -> (Arc<dyn Device>, K)) {
    check_cases(48, make);
}

pub(crate) fn check_cases<K>(cases: u32, make: impl Fn() -> (Arc<dyn Device>, K)) {
    let block_size = make().0.shape().block_size as usize;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&actions(block_size), |actions| {
        let (device, _keep) = make();
        let mut rig = Rig::new(&*device);
        let mut model = vec![0u8; BYTES];
        for action in actions {
            step(&mut rig, &mut model, block_size, &*device, action)?;
        }
        let all = rig.read(0, BYTES).unwrap();
        prop_assert!(all == model, "the device holds something else than the model");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn step(
    rig: &mut Rig,
    model: &mut [u8],
    block_size: usize,
    device: &dyn Device,
    action: Action,
) -> Result<(), TestCaseError> {
    match action {
        Action::Write { at, blocks, seed, fua, start, pieces } => {
            let bytes = pattern(seed, blocks * block_size);
            let flags = if fua { IoFlags::FUA } else { IoFlags::empty() };
            prop_assert_eq!(rig.write_in((at * block_size) as u64, &bytes, flags, start, &pieces), Ok(()));
            model[at * block_size..][..bytes.len()].copy_from_slice(&bytes);
        }
        Action::Read { at, blocks, start, pieces } => {
            rig.fill(0xee);
            let read = rig.read_in((at * block_size) as u64, blocks * block_size, start, &pieces).unwrap();
            prop_assert!(read == model[at * block_size..][..blocks * block_size], "read {blocks} blocks at {at}");
        }
        Action::Zero { at, blocks, discard, flags } => {
            let (offset, len) = ((at * block_size) as u64, blocks * block_size);
            let op = if discard { Op::Discard } else { Op::WriteZeroes };
            let flags = IoFlags::from_bits_truncate(flags);
            prop_assert_eq!(rig.without_data(op, flags, offset, len as u64), Ok(()));
            if discard && !device.shape().discard.is_some_and(|d| d.reads_zero) {
                // The content is anything now: make it known again.
                prop_assert_eq!(rig.without_data(Op::WriteZeroes, IoFlags::empty(), offset, len as u64), Ok(()));
            }
            model[at * block_size..][..len].fill(0);
        }
        Action::Flush => prop_assert_eq!(rig.flush(), Ok(())),
    }
    Ok(())
}
