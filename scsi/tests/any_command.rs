//! Any CDB with any parameter data on any disk: nothing panics, and every answer keeps to what the front end relies on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pollux_core::{AtomicWrite, Discard, Extent, IoFlags, Op, Shape};
use pollux_scsi::{
    Action, Attention, Cdb, Chosen, CopyOrder, CopyTask, End, Identity, Inventory, Job, Keeper, LogicalUnit, Medium,
    Nexus, Outcome, PIECE_LEN, Path, SCRATCH_LEN, SENSE_LEN, Save, Sections, Status, Step, Task, Transfers, WipeEnd,
    execute_absent, execute_well_known,
};
use proptest::prelude::*;
use uuid::Uuid;

/// Opcodes of commands that exist, so that random CDBs reach the handlers.
const KNOWN: &[u8] = &[
    0x00, 0x03, 0x04, 0x08, 0x0A, 0x12, 0x15, 0x16, 0x17, 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x25, 0x28, 0x2A, 0x2E, 0x2F,
    0x34, 0x35, 0x37, 0x3B, 0x3C, 0x41, 0x42, 0x48, 0x4C, 0x4D, 0x55, 0x56, 0x57, 0x5A, 0x5E, 0x5F, 0x7F, 0x83, 0x84,
    0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9C, 0x9E, 0xA0, 0xA3, 0xA4, 0xA8, 0xAA, 0xAE, 0xAF, 0xB7,
];

/// Service actions of commands of variable length.
const LONG: [u8; 5] = [0x09, 0x0A, 0x0B, 0x0C, 0x0D];

struct Luns(u16);

impl Inventory for Luns {
    fn luns(&self, visit: &mut dyn FnMut(u16)) {
        (0..self.0).for_each(visit);
    }

    fn well_known(&self) -> bool {
        self.0.is_multiple_of(2)
    }
}

/// Of a disk of any shape every third stretch is mapped; it takes a while to say so.
#[derive(Debug)]
struct Stretches(Shape);

impl Medium for Stretches {
    fn transfers(&self) -> Transfers {
        Transfers::default()
    }

    fn extent(&self, offset: u64, len: u64) -> Extent {
        check_range(&self.0, offset, len);
        let block = u64::from(self.0.block_size);
        let stretch = offset / block / 5;
        Extent { len: len.min((stretch + 1) * 5 * block - offset), mapped: stretch.is_multiple_of(3) }
    }

    fn extent_waits(&self) -> bool {
        true
    }
}

/// Keeps what it is given as far as it has to know.
#[derive(Debug)]
struct Shelf;

impl Keeper for Shelf {
    fn admits(&self, _: u64) -> bool {
        true
    }

    fn submit(&self, save: Save) {
        save.done(true);
    }
}

prop_compose! {
    fn any_shape()(
        large in any::<bool>(), physical in 0u32..4, bits in 0u32..44, blocks in any::<u64>(), read_only in any::<bool>(),
        volatile_cache in any::<bool>(), discards in any::<bool>(), granularity in 0u32..8, alignment in 0u32..16,
        reads_zero in any::<bool>(), optimal_io in any::<u32>(), rotation_rate in any::<u16>(),
        atomic in prop::option::of((1u32..=64, 1u32..=16, 1u32..=16)),
    ) -> Shape {
        let block_size = if large { 4096 } else { 512 };
        let discard = Discard { granularity: block_size * granularity, alignment: block_size * alignment, reads_zero };
        Shape {
            block_size,
            physical_block_size: block_size << physical,
            num_blocks: blocks >> (63 - bits),
            read_only,
            volatile_cache,
            discard: discards.then_some(discard),
            optimal_io,
            rotation_rate,
            atomic_write: atomic.map(|(max, granularity, alignment)| AtomicWrite {
                max: max * granularity * block_size,
                granularity: granularity * block_size,
                alignment: alignment * block_size,
            }),
        }
    }
}

/// A CDB of which few bytes are set: most random ones fail at the first reserved bit.
fn any_cdb() -> impl Strategy<Value = [u8; 32]> {
    let opcode = prop_oneof![9 => prop::sample::select(KNOWN.to_vec()), 1 => any::<u8>()];
    let byte = prop_oneof![
        Just(0u8),
        Just(0xFF),
        Just(0x08),
        Just(0x10),
        Just(0x0C),
        Just(0x3F),
        Just(0xB0),
        Just(0x05),
        Just(0x06),
        Just(0x11),
        any::<u8>()
    ];
    let long = prop::sample::select(LONG.to_vec());
    (opcode, long, prop::collection::vec((1usize..32, byte), 0..8)).prop_map(|(opcode, long, bytes)| {
        let mut cdb = [0; 32];
        cdb[0] = opcode;
        if opcode == 0x7F {
            (cdb[7], cdb[9]) = (0x18, long);
        }
        bytes.into_iter().for_each(|(at, byte)| cdb[at] = byte);
        cdb
    })
}

/// The allocation length of the commands that have one.
fn allocation_length(cdb: &[u8; 32]) -> usize {
    let number = |range: std::ops::Range<usize>| cdb[range].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    match cdb[0] {
        0x03 | 0x1A => number(4..5),
        0x12 | 0x1C => number(3..5),
        0x3C => number(6..9),
        0x25 => 8,
        0x37 | 0x4D | 0x5A | 0x5E => number(7..9),
        0x84 | 0x9E => number(10..14),
        0xA0 | 0xA3 | 0xB7 => number(6..10),
        _ => 0,
    }
}

/// A unit of which something can be kept, or nothing.
fn unit_on(shape: Option<Shape>, keeps: bool) -> (Arc<LogicalUnit>, Arc<Path>, Arc<Path>) {
    let identity = Identity::from_uuid(Uuid::from_u128(7), "any");
    let unit = if keeps {
        LogicalUnit::kept(identity, shape, Arc::new(Shelf), Some(&Sections::new()))
    } else {
        LogicalUnit::new(identity, shape)
    };
    shape.into_iter().for_each(|shape| unit.set_medium(Arc::new(Stretches(shape))));
    let paths = [1, 2].map(|port| unit.attach(Nexus::new(port, "c".into(), 1, 0), 0));
    let [path, other] = paths;
    (unit, path, other)
}

fn check_outcome(outcome: &Outcome, limit: usize) {
    assert_eq!(outcome.sense.is_some(), outcome.status == Status::CheckCondition);
    assert!(outcome.data_len <= limit && (outcome.sense.is_none() || outcome.data_len == 0));
    if let Some(sense) = outcome.sense {
        for descriptor_format in [false, true] {
            let mut bytes = [0; SENSE_LEN];
            let len = sense.encode(descriptor_format, &mut bytes);
            assert!(len >= 8 && usize::from(bytes[7]) + 8 == len);
        }
    }
}

fn check_range(shape: &Shape, offset: u64, len: u64) {
    let block = u64::from(shape.block_size);
    let end = offset.checked_add(len).expect("no overflow");
    assert!(
        len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block) && end <= shape.bytes(),
        "{offset}+{len}"
    );
}

fn check_write(unit: &LogicalUnit, shape: &Shape, flags: IoFlags) {
    assert!(!shape.read_only);
    let durable = !shape.volatile_cache || unit.write_cache_enabled() || flags.contains(IoFlags::FUA);
    assert!(durable, "a write that nobody will flush");
}

fn check_within((offset, len): (u64, u64), (part, part_len): (u64, u64)) {
    assert!(part >= offset && part + part_len <= offset + len, "{part}+{part_len} is not in {offset}+{len}");
}

/// A job keeps to its range and to its memory, and comes to an end. What it finds is what it sent.
fn check_job(unit: &LogicalUnit, shape: &Shape, mut job: Job) {
    let (mut sent, held) = (vec![0; PIECE_LEN], vec![0; PIECE_LEN]);
    let (data_out, exclusive, first) = (job.data_out(), job.is_exclusive(), job.span());
    for _ in 0..60 {
        let span = job.span();
        check_range(shape, span.0, span.1);
        assert!(!exclusive || span == first, "a claim does not change");
        match job.next(&mut sent, &held) {
            Task::Fetch { at, len } => {
                assert!(len > 0 && len <= PIECE_LEN && at + len as u64 <= data_out);
            }
            Task::Load { offset, len } => {
                assert!(len <= PIECE_LEN);
                check_range(shape, offset, len as u64);
                check_within(span, (offset, len as u64));
            }
            Task::Store { offset, len, flags } => {
                assert!(len <= PIECE_LEN);
                check_range(shape, offset, len as u64);
                check_within(span, (offset, len as u64));
                check_write(unit, shape, flags);
                let allows = |atomic: AtomicWrite| atomic.allows(offset, len as u64);
                assert!(!flags.contains(IoFlags::ATOMIC) || exclusive && shape.atomic_write.is_some_and(allows));
            }
            Task::Pause => assert!(!exclusive, "it gives up what it has claimed"),
            Task::End(outcome) => {
                assert_eq!(outcome, Outcome::GOOD);
                return;
            }
        }
    }
}

/// A copy reads and writes only what is inside the units that it was given, and only what may be written, and it ends.
fn check_copy(ends: &[End], order: CopyOrder) -> Outcome {
    let find = &mut |name: &pollux_scsi::Designator| ends.iter().find(|end| end.unit.is_called(name)).cloned();
    let mut copy = match order.start(ends[0].clone(), find, 1) {
        Ok(copy) => copy,
        Err(outcome) => {
            check_outcome(&outcome, 0);
            return outcome;
        }
    };
    let mut read = None;
    for _ in 0..100_000 {
        match copy.next_task() {
            CopyTask::Do { place, op, flags, offset, len, skip } => {
                let unit = &ends[place as usize].unit;
                let shape = unit.shape().expect("a device");
                check_range(&shape, offset, len);
                match op {
                    Op::Read => {
                        assert!(len <= PIECE_LEN as u64 && flags.is_empty());
                        read = Some((len, len));
                    }
                    Op::Write => {
                        let (whole, left) = read.take().expect("what is written was read");
                        assert!(skip + len <= whole && len <= left);
                        read = Some((whole, left - len)).filter(|(_, left)| *left > 0);
                        check_write(unit, &shape, flags);
                    }
                    Op::WriteZeroes => {
                        // The memory is not needed any more.
                        read = read.map(|(whole, left): (u64, u64)| (whole, left.saturating_sub(len)));
                        read = read.filter(|(_, left)| *left > 0);
                        check_write(unit, &shape, flags);
                    }
                    op => panic!("{op:?}"),
                }
            }
            CopyTask::Together { .. } => panic!("this medium copies nothing by itself"),
            CopyTask::Settle { place, offset, len, .. } => {
                check_range(&ends[place as usize].unit.shape().expect("a device"), offset, len);
            }
            CopyTask::Pause => assert_eq!(read, None, "it gives up what it has read"),
            CopyTask::End(outcome) => {
                check_outcome(&outcome, 0);
                copy.end(&outcome);
                return outcome;
            }
        }
    }
    panic!("it does not end")
}

/// An operation on the whole medium writes all of it in each pass, and nothing else.
fn check_wipe(unit: &LogicalUnit, shape: &Shape) {
    assert!(!shape.read_only);
    let Some(mut wipe) = unit.take_wipe() else { panic!("nobody has taken it") };
    let span = wipe.span();
    check_range(shape, span.0, span.1);
    for _ in 0..100 {
        match wipe.next() {
            Some(Step::WriteZeroes { offset, len, .. }) => check_within(span, (offset, len)),
            Some(Step::WritePattern { offset, len, .. }) => {
                check_within(span, (offset, len));
                assert_eq!(wipe.pattern().len(), shape.block_size as usize);
            }
            Some(Step::Flush | Step::Erase) => {}
            Some(Step::Discard { .. }) => panic!("a discard need not read zero"),
            None => break,
        }
    }
    match wipe.end(Ok(())) {
        WipeEnd::Answer(outcome) => assert_eq!(outcome, Outcome::GOOD),
        WipeEnd::Save(save) => save.start(Box::new(|saved| assert_eq!(saved.outcome, Outcome::GOOD))),
    }
}

fn check_action(unit: &LogicalUnit, shape: Option<&Shape>, action: Action, limit: usize) {
    match action {
        Action::Done(outcome) => check_outcome(&outcome, limit),
        Action::DataOut { len } => assert!((1..=65535).contains(&len)),
        Action::Save(save) => {
            assert!(
                ["reservations", "modes", "identifying", "wipe"].contains(&save.section()) && save.text().is_ascii()
            );
            save.start(Box::new(|saved| assert_eq!(saved.outcome, Outcome::GOOD)));
            if unit.is_wipe_due() {
                check_wipe(unit, shape.expect("a device"));
            }
        }
        Action::Parameters { least, most } => assert!(least > 0 && least <= most && most <= 65535),
        Action::Wipe(_) => check_wipe(unit, shape.expect("a device")),
        Action::Abort(_) => {}
        Action::Survey(survey) => {
            let data = survey.run(&AtomicBool::new(false));
            assert!(data.len() <= survey.data_len_max() && data.len() <= limit, "{} bytes", data.len());
        }
        Action::Copy(order) => {
            let unit = unit_on(shape.copied(), false);
            let _ = check_copy(&[End { unit: unit.0, path: unit.1, place: 0 }], *order);
        }
        Action::Pass(_) => panic!("there is no device to take it"),
        Action::Io { op, flags, offset, len } => {
            let shape = shape.expect("a device");
            check_range(shape, offset, len);
            match op {
                Op::Write => check_write(unit, shape, flags),
                op => assert_eq!((op, flags), (Op::Read, IoFlags::empty())),
            }
        }
        Action::Job(job) => check_job(unit, shape.expect("a device"), job),
        Action::Plan(mut plan) => {
            let shape = shape.expect("a device");
            let span = plan.span();
            for step in std::iter::from_fn(|| plan.next()).take(10_000) {
                match step {
                    Step::Flush | Step::Erase => continue,
                    Step::Discard { .. } => assert!(shape.discard.is_some()),
                    Step::WriteZeroes { .. } | Step::WritePattern { .. } => {}
                }
                let (Step::Discard { offset, len, flags }
                | Step::WriteZeroes { offset, len, flags }
                | Step::WritePattern { offset, len, flags }) = step
                else {
                    continue;
                };
                check_range(shape, offset, len);
                check_within(span, (offset, len));
                check_write(unit, shape, flags);
            }
            let pattern = plan.pattern().len();
            assert!(pattern == 0 || pattern == shape.block_size as usize);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_command_breaks_the_rules(
        shape in prop::option::weighted(0.9, any_shape()),
        commands in prop::collection::vec((any_cdb(), prop::collection::vec(any::<u8>(), 0..64)), 1..12),
        luns in 0u16..40, keeps in any::<bool>(), alone in any::<bool>(),
    ) {
        let (unit, path, other) = unit_on(shape, keeps);
        if alone {
            // Who has the unit to itself may format and sanitize it.
            unit.detach(&other);
            let chosen = Chosen { allow_sanitize: Some(true), ..Chosen::default() };
            unit.set_identity((*unit.identity()).clone().with(&chosen).unwrap());
        }
        let shape = shape.filter(|shape| shape.num_blocks > 0);
        let mut scratch = vec![0xAA; SCRATCH_LEN];
        let mut again = vec![0x55; SCRATCH_LEN];
        for (bytes, parameters) in commands {
            let cdb = Cdb::new(bytes);
            let limit = allocation_length(&bytes).min(SCRATCH_LEN);
            let action = unit.execute(&path, &cdb, &Luns(luns), &mut scratch);
            let wanted = match action {
                Action::DataOut { len } => Some((len, len)),
                Action::Parameters { least, most } => Some((least, most)),
                _ => None,
            };
            if let Some((least, len)) = wanted {
                assert!(least > 0 && least <= len && len <= 65535);
                // Sometimes a list of the length asked for, sometimes one that came short.
                let mut list = parameters.clone();
                list.resize(len.min(parameters.len() * 8), 0);
                let action = unit.execute_out(&path, &cdb, &list, &mut scratch);
                assert!(!matches!(action, Action::DataOut { .. } | Action::Parameters { .. } | Action::Io { .. }));
                check_action(&unit, shape.as_ref(), action, 0);
                continue;
            }
            // The same command once more: what the initiator gets does not depend on what was in our memory.
            // Except that sense is taken, and time goes on.
            let lasts = bytes[0] != 0x03 && (bytes[0], bytes[1] & 0x1F) != (0xA3, 0x0F);
            if let Action::Done(Outcome { data_len, .. }) = action && lasts {
                let repeated = unit.execute(&path, &cdb, &Luns(luns), &mut again);
                if matches!(repeated, Action::Done(outcome) if outcome.data_len == data_len) {
                    prop_assert!(scratch[..data_len] == again[..data_len]);
                }
            }
            check_action(&unit, shape.as_ref(), action, limit);
        }
    }

    /// Lists that are nearly right, of either form, between two disks of any kind.
    #[test]
    fn no_copy_breaks_the_rules(
        shapes in [any_shape(), any_shape()],
        long in any::<bool>(), names in prop::collection::vec(0usize..3, 0..4),
        segments in prop::collection::vec((0u16..5, 0u16..5, 0u16..1000, any::<u64>(), any::<u64>(), 0u32..64, any::<bool>()), 0..5),
        edits in prop::collection::vec((0usize..400, any::<u8>()), 0..3),
        short in prop::option::weighted(0.1, 0usize..300),
    ) {
        let units: Vec<_> = shapes.iter().zip(10u128..).map(|(shape, id)| {
            LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(id), "any"), Some(*shape))
        }).collect();
        let nexus = Nexus::new(1, "c".into(), 1, 0);
        let ends: Vec<End> = units.iter().zip(0u32..).map(|(unit, place)| {
            End { unit: unit.clone(), path: unit.attach(nexus.clone(), place as u16), place }
        }).collect();
        let mut list = vec![0; if long { 48 } else { 16 }];
        for name in &names {
            let mut descriptor = [0; 32];
            descriptor[..8].copy_from_slice(&[0xE4, 0, 0, 0, 1, 3, 0, 16]);
            match ends.get(*name) {
                Some(end) => descriptor[8..24].copy_from_slice(end.unit.identity().naa.as_bytes()),
                None => descriptor[8..24].fill(0x66),
            }
            list.extend_from_slice(&descriptor);
        }
        for (from, to, blocks, from_lba, to_lba, small, dc) in &segments {
            let id = |id: &u16| if *id == 4 { 0xFFFF } else { *id };
            list.extend_from_slice(&[2, u8::from(*dc) << 1, 0, 0x18]);
            for field in [id(from), id(to), 0, *blocks] {
                list.extend_from_slice(&field.to_be_bytes());
            }
            for lba in [from_lba, to_lba] {
                list.extend_from_slice(&(lba >> small).to_be_bytes());
            }
        }
        let (ends_len, segments_len) = (names.len() as u16 * 32, segments.len() as u16 * 28);
        if long {
            (list[0], list[3], list[16]) = (1, 0x20, 0xFF);
            list[42..44].copy_from_slice(&ends_len.to_be_bytes());
            list[44..46].copy_from_slice(&segments_len.to_be_bytes());
        } else {
            list[2..4].copy_from_slice(&ends_len.to_be_bytes());
            list[10..12].copy_from_slice(&segments_len.to_be_bytes());
        }
        for (at, byte) in edits {
            let len = list.len();
            list[at % len] = byte;
        }
        list.truncate(short.unwrap_or(list.len()).min(list.len()));
        let cdb = Cdb::from_slice(&[0x83, u8::from(long), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (list.len() >> 8) as u8, list.len() as u8]);
        let mut scratch = vec![0; SCRATCH_LEN];
        match ends[0].unit.execute_out(&ends[0].path, &cdb, &list, &mut scratch) {
            Action::Copy(order) => drop(check_copy(&ends, *order)),
            Action::Done(outcome) => check_outcome(&outcome, 0),
            other => panic!("{other:?}"),
        }
    }

    /// Tokens of one disk and lists that are nearly right, to another or the same one.
    #[test]
    fn no_token_breaks_the_rules(
        shapes in [any_shape(), any_shape()],
        from in prop::collection::vec((any::<u64>(), 0u32..64, 0u32..3000), 0..5),
        to in prop::collection::vec((any::<u64>(), 0u32..64, 0u32..3000), 0..5),
        offset in prop_oneof![2 => Just(0), 2 => 0u64..2000, 1 => any::<u64>()],
        zero in prop::bool::weighted(0.2), here in any::<bool>(), flags in 0u8..4,
        edits in prop::collection::vec((0usize..700, any::<u8>()), 0..3),
        short in prop::option::weighted(0.1, 0usize..700),
    ) {
        let nexus = Nexus::new(1, "c".into(), 1, 0);
        let mut ends: Vec<End> = shapes.iter().zip(10u128..).zip(0u32..).map(|((shape, id), place)| {
            let unit = LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(id), "any"), Some(*shape));
            End { path: unit.attach(nexus.clone(), place as u16), unit, place }
        }).collect();
        let list = |mut header: Vec<u8>, ranges: &[(u64, u32, u32)]| {
            let at = header.len() - 2;
            for (lba, bits, count) in ranges {
                header.extend_from_slice(&(lba >> bits).to_be_bytes());
                header.extend_from_slice(&count.to_be_bytes());
                header.extend_from_slice(&[0; 4]);
            }
            let said = header.len() as u16 - 2;
            header[..2].copy_from_slice(&said.to_be_bytes());
            header[at..at + 2].copy_from_slice(&(ranges.len() as u16 * 16).to_be_bytes());
            header
        };
        let send = |ends: &[End], action: u8, list: &[u8]| {
            let mut cdb = [0x83, action, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0];
            cdb[12..14].copy_from_slice(&(list.len() as u16).to_be_bytes());
            match ends[0].unit.execute_out(&ends[0].path, &Cdb::from_slice(&cdb), list, &mut vec![0; SCRATCH_LEN]) {
                Action::Copy(order) => check_copy(ends, *order),
                Action::Done(outcome) => {
                    check_outcome(&outcome, 0);
                    outcome
                }
                other => panic!("{other:?}"),
            }
        };
        let mut token = vec![0; 512];
        token[..8].copy_from_slice(&[0xFF, 0xFF, 0, 1, 0, 0, 1, 0xF8]);
        let made = send(&ends, 0x10, &list(vec![0; 16], &from));
        if made == Outcome::GOOD && !zero {
            let cdb = Cdb::from_slice(&[0x84, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
            let mut scratch = vec![0; SCRATCH_LEN];
            while matches!(ends[0].unit.execute(&ends[0].path, &cdb, &Luns(1), &mut scratch),
                Action::Done(outcome) if outcome.data_len == 0) {}
            token.copy_from_slice(&scratch[38..550]);
        }
        if !here {
            ends.reverse();
            ends[0].place = 0;
            ends[1].place = 1;
        }
        let mut header = vec![0; 536];
        header[2] = flags;
        header[8..16].copy_from_slice(&offset.to_be_bytes());
        header[16..528].copy_from_slice(&token);
        let mut list = list(header, &to);
        for (at, byte) in edits {
            let len = list.len();
            list[at % len] = byte;
        }
        list.truncate(short.unwrap_or(list.len()).min(list.len()));
        send(&ends, 0x11, &list);
    }

    #[test]
    fn no_command_without_a_unit_breaks_the_rules(bytes in any_cdb(), luns in 0u16..40) {
        let nexus = Nexus::new(1, "c".into(), 1, 0);
        let limit = allocation_length(&bytes).min(SCRATCH_LEN);
        for execute in [execute_absent, execute_well_known] {
            let mut scratch = vec![0xAA; SCRATCH_LEN];
            match execute(&Cdb::new(bytes), &nexus, &Luns(luns), &mut scratch) {
                Action::Done(outcome) => check_outcome(&outcome, limit),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn no_mode_select_changes_what_is_not_changeable(
        volatile_cache in any::<bool>(),
        edits in prop::collection::vec((0usize..60, any::<u8>()), 0..4),
        long in any::<bool>(),
    ) {
        let shape = Shape {
            block_size: 512, physical_block_size: 512, num_blocks: 1000, read_only: false, volatile_cache,
            discard: None, optimal_io: 0, rotation_rate: 0, atomic_write: None,
        };
        let (unit, path, other) = unit_on(Some(shape), false);
        let mut scratch = vec![0; SCRATCH_LEN];
        let tur = Cdb::new([0; 32]);
        for path in [&path, &other] {
            unit.execute(path, &tur, &Luns(1), &mut scratch);
        }
        let mut sense = |control: u8| -> Vec<u8> {
            let cdb = Cdb::from_slice(&[0x1A, 0x08, control << 6 | 0x3F, 0, 0xFF, 0]);
            match unit.execute(&path, &cdb, &Luns(1), &mut scratch) {
                Action::Done(outcome) => scratch[4..outcome.data_len].to_vec(),
                action => panic!("{action:?}"),
            }
        };
        let (before, mask) = (sense(0), sense(1));
        let mut list = vec![0; if long { 8 } else { 4 }];
        list.extend_from_slice(&before);
        for (at, byte) in edits {
            let len = list.len();
            list[at % len] = byte;
        }
        let cdb = if long { vec![0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8] } else { vec![0x15, 0x10, 0, 0, list.len() as u8] };
        let mut unused = vec![0; SCRATCH_LEN];
        let action = unit.execute_out(&path, &Cdb::from_slice(&cdb), &list, &mut unused);
        let after = sense(0);
        let Action::Done(outcome) = action else { panic!("{action:?}") };
        prop_assert!(outcome.status == Status::Good || after == before);
        let mut at = 0;
        while at < before.len() {
            let len = usize::from(before[at + 1]) + 2;
            prop_assert_eq!(&before[at..at + 2], &after[at..at + 2]);
            for byte in at + 2..at + len {
                prop_assert_eq!((before[byte] ^ after[byte]) & !mask[byte], 0);
            }
            at += len;
        }
        let cdb = Cdb::from_slice(&[0x03, 0, 0, 0, 18, 0]);
        let Action::Done(outcome) = unit.execute(&other, &cdb, &Luns(1), &mut scratch) else { panic!() };
        prop_assert_eq!(outcome.data_len, 18);
        let told = scratch[12..14] == [0x2A, 0x01];
        prop_assert_eq!(told, before != after, "the other path is told of changes and of nothing else");
    }
}

/// Two reactors ask at once: the change of the list of units is told exactly once each time.
#[test]
fn a_nexus_is_told_once_also_when_two_reactors_ask() {
    const ROUNDS: usize = 2000;
    let nexus = Nexus::new(1, "c".into(), 1, 0);
    let units = [1u128, 2].map(|id| {
        let unit = LogicalUnit::new(Identity::from_uuid(Uuid::from_u128(id), "any"), None);
        let path = unit.attach(nexus.clone(), id as u16);
        (unit, path)
    });
    let barrier = std::sync::Barrier::new(3);
    let told = std::sync::atomic::AtomicUsize::new(0);
    // Judged at the end: a panic between two barriers would leave the others waiting.
    let mut told_after = Vec::with_capacity(ROUNDS);
    std::thread::scope(|scope| {
        for (unit, path) in &units {
            scope.spawn(|| {
                let mut scratch = vec![0; SCRATCH_LEN];
                for _ in 0..ROUNDS {
                    barrier.wait();
                    let cdb = Cdb::new([0; 32]);
                    while let Action::Done(Outcome { sense: Some(sense), .. }) =
                        unit.execute(path, &cdb, &Luns(0), &mut scratch)
                    {
                        if sense.code() == 0x3F0E {
                            told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        if sense.code() == 0x0400 {
                            break;
                        }
                    }
                    barrier.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            nexus.raise_luns_changed();
            barrier.wait();
            barrier.wait();
            told_after.push(told.load(std::sync::atomic::Ordering::Relaxed));
        }
    });
    assert!(told_after.into_iter().eq(1..=ROUNDS), "each change is told once");
    units[0].1.raise(Attention::PowerOn);
    assert!(units[0].1.has_attention());
}
