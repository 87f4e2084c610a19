//! Commands of any form to a logical unit, with any parameter data: no panic, no range outside the disk, no answer
//! longer than the memory for it, and every plan ends. The same commands to a whole device of any type, whatever its owner
//! allows: only what may go on does.
#![no_main]

#[path = "../../../scsi/tests/oracle/passing.rs"]
mod passing;

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pollux_core::{AtomicWrite, Discard, Op, Shape};
use pollux_scsi::{
    Action, Allow, Cdb, CopyTask, Designator, End, Identity, Inventory, LogicalUnit, Nexus, Outcome, PIECE_LEN, Path,
    SCRATCH_LEN, Step, Task, execute_absent,
};
use uuid::Uuid;

const BLOCKS: u64 = 1 << 20;

struct Luns;

impl Inventory for Luns {
    fn luns(&self, visit: &mut dyn FnMut(u16)) {
        [0, 3, 300].into_iter().for_each(visit);
    }
}

struct Bench {
    unit: Arc<LogicalUnit>,
    path: Arc<Path>,
    shape: Shape,
    scratch: Vec<u8>,
    whole: (Arc<LogicalUnit>, Arc<Path>, Allow),
}

fn bench(data: u8) -> Bench {
    let block_size = if data & 1 == 0 { 512 } else { 4096 };
    let shape = Shape {
        block_size,
        physical_block_size: 4096,
        num_blocks: if data & 2 == 0 { BLOCKS } else { 1 },
        read_only: data & 4 != 0,
        volatile_cache: data & 8 == 0,
        discard: (data & 16 == 0).then_some(Discard { granularity: 4096, alignment: 0, reads_zero: data & 32 == 0 }),
        optimal_io: 65536,
        rotation_rate: 1,
        atomic_write: (data & 32 == 0).then_some(AtomicWrite { max: 65536, granularity: 4096, alignment: 4096 }),
    };
    let present = (data & 64 == 0).then_some(shape);
    let unit = LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(7), "fuzz"), present);
    let path = unit.attach(Nexus::new(1, "c".into(), 1, 0), 0);
    let allow = Allow::from_bits_truncate(if data & 128 == 0 { 0 } else { data });
    let device = LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(8), "whole"), None);
    device.pass_through(allow);
    let to_device = device.attach(Nexus::new(2, "d".into(), 2, 0), 0);
    let mut bench = Bench { unit, path, shape, scratch: vec![0; SCRATCH_LEN], whole: (device, to_device, allow) };
    if data & 128 == 0 {
        // Without the attentions that a new path reports first.
        while bench.path.has_attention() {
            let test_unit_ready = Cdb::from_slice(&[0; 6]);
            let _ = bench.unit.execute(&bench.path, &test_unit_ready, &Luns, &mut bench.scratch);
        }
    }
    bench
}

fuzz_target!(|data: &[u8]| {
    let Some((how, mut rest)) = data.split_first() else { return };
    let mut bench = bench(*how);
    // Several commands one after the other: CDB of 32 bytes, length of parameters, parameters.
    for _ in 0..8 {
        let Some((cdb, after)) = rest.split_first_chunk::<32>() else { return };
        let Some((length, after)) = after.split_first() else { return };
        let (parameters, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        command(&mut bench, &Cdb::from_slice(cdb), parameters);
        pass(&mut bench, cdb, parameters);
    }
});

fn command(bench: &mut Bench, cdb: &Cdb, parameters: &[u8]) {
    let action = bench.unit.execute(&bench.path, cdb, &Luns, &mut bench.scratch);
    let wanted = match action {
        Action::DataOut { len } => Some(len),
        Action::Parameters { most, .. } => Some(most),
        _ => None,
    };
    if let Some(len) = wanted {
        // The front end gathers at most that many bytes; the guest may have sent fewer.
        let sent = &parameters[..parameters.len().min(len)];
        let action = bench.unit.execute_out(&bench.path, cdb, sent, &mut bench.scratch);
        assert!(!matches!(action, Action::DataOut { .. } | Action::Parameters { .. }), "asked for data twice");
        check(bench, action);
    } else {
        check(bench, action);
    }
    if let Action::Done(outcome) = execute_absent(cdb, bench.path.nexus(), &Luns, &mut bench.scratch) {
        answer(&outcome, &bench.scratch);
    }
}

/// The last byte, which few commands use, says what the device is.
fn pass(bench: &mut Bench, bytes: &[u8; 32], parameters: &[u8]) {
    let (unit, path, allow) = &bench.whole;
    let (cdb, device_type) = (Cdb::new(*bytes), bytes[31] & 0x1F);
    unit.set_device_type(device_type);
    let mut action = unit.execute(path, &cdb, &Luns, &mut bench.scratch);
    let mut looked_at = None;
    if let Action::DataOut { len } = action {
        if parameters.len() < len {
            return;
        }
        looked_at = Some(&parameters[..len]);
        action = unit.execute_out(path, &cdb, &parameters[..len], &mut bench.scratch);
    }
    match action {
        Action::Pass(pass) => passing::check(device_type, *allow, bytes, looked_at, pass),
        Action::Done(outcome) => answer(&outcome, &bench.scratch),
        _ => panic!("a whole device's unit does nothing itself"),
    }
}

fn answer(outcome: &Outcome, scratch: &[u8]) {
    assert!(outcome.data_len <= scratch.len());
    if let Some(sense) = &outcome.sense {
        for descriptor in [false, true] {
            assert!(sense.encode(descriptor, &mut [0; 96]) <= 96);
        }
    }
}

fn inside(bench: &Bench, offset: u64, len: u64) {
    let block = u64::from(bench.shape.block_size);
    assert!(len > 0 && offset % block == 0 && len % block == 0);
    assert!(offset.checked_add(len).is_some_and(|end| end <= bench.shape.bytes()), "{offset}+{len} is outside");
}

fn check(bench: &Bench, action: Action) {
    match action {
        Action::Io { op, offset, len, .. } => {
            assert!(matches!(op, Op::Read | Op::Write));
            assert!(op == Op::Read || !bench.shape.read_only, "a write to a read-only unit");
            inside(bench, offset, len);
        }
        Action::Plan(mut plan) => {
            for _ in 0..100_000 {
                match plan.next() {
                    None => return,
                    Some(Step::Flush | Step::Erase) => {}
                    Some(Step::Discard { offset, len, .. } | Step::WriteZeroes { offset, len, .. }) => {
                        inside(bench, offset, len);
                    }
                    Some(Step::WritePattern { offset, len, .. }) => {
                        inside(bench, offset, len);
                        assert_eq!(plan.pattern().len(), bench.shape.block_size as usize);
                    }
                }
            }
            panic!("a plan without end");
        }
        Action::Job(mut job) => {
            let (mut sent, held) = (vec![0; PIECE_LEN], vec![0; PIECE_LEN]);
            for _ in 0..1000 {
                match job.next(&mut sent, &held) {
                    Task::Fetch { at, len } => assert!(len <= PIECE_LEN && at + len as u64 <= job.data_out()),
                    Task::Load { offset, len } => inside(bench, offset, len as u64),
                    Task::Store { offset, len, .. } => {
                        assert!(!bench.shape.read_only, "a write to a read-only unit");
                        inside(bench, offset, len as u64);
                    }
                    Task::Pause => {}
                    Task::End(outcome) => return answer(&outcome, &bench.scratch),
                }
            }
        }
        Action::Copy(order) => {
            let end = End { unit: bench.unit.clone(), path: bench.path.clone(), place: 0 };
            let found = end.clone();
            let find = &mut |name: &Designator| found.unit.is_called(name).then(|| found.clone());
            let Ok(mut copy) = order.start(end, find, 1) else { return };
            for _ in 0..1000 {
                match copy.next_task() {
                    CopyTask::Do { op, offset, len, .. } => {
                        assert!(op == Op::Read || !bench.shape.read_only, "a write to a read-only unit");
                        inside(bench, offset, len);
                    }
                    CopyTask::Together { .. } => unreachable!("this unit knows of no medium"),
                    CopyTask::Settle { offset, len, .. } => inside(bench, offset, len),
                    CopyTask::Pause => {}
                    CopyTask::End(outcome) => {
                        copy.end(&outcome);
                        return answer(&outcome, &bench.scratch);
                    }
                }
            }
        }
        Action::Done(outcome) => answer(&outcome, &bench.scratch),
        Action::Abort(_) => {}
        Action::Survey(_) => unreachable!("this unit knows of no medium"),
        Action::Save(_) => unreachable!("nothing is kept of this unit"),
        Action::Pass(_) => unreachable!("this unit is no whole device"),
        Action::Wipe(_) => {
            assert!(!bench.shape.read_only, "a format of a read-only unit");
            let mut wipe = bench.unit.take_wipe().expect("nobody else takes it");
            for _ in 0..1000 {
                match wipe.next() {
                    None => break,
                    Some(Step::Flush | Step::Erase) => {}
                    Some(Step::Discard { offset, len, .. } | Step::WriteZeroes { offset, len, .. }) => {
                        inside(bench, offset, len);
                    }
                    Some(Step::WritePattern { offset, len, .. }) => {
                        inside(bench, offset, len);
                        assert_eq!(wipe.pattern().len(), bench.shape.block_size as usize);
                    }
                }
            }
            drop(wipe.end(Ok(())));
        }
        Action::DataOut { .. } | Action::Parameters { .. } => unreachable!("taken apart by the caller"),
    }
}
