//! Formats and sanitizes step by step on a unit alone: what is refused, what the medium holds after each end, what is kept over a
//! restart.

use std::sync::{Arc, Mutex};

use pollux_core::{IoError, IoFlags, Shape};

use super::*;
use crate::testing::{Bench, Shelf, drained, sense_of, shape, uuid};
use crate::{Cdb, Chosen, Identity, Nexus, SCRATCH_LEN, Status, Step};

const FORMAT: [u8; 6] = [0x04, 0, 0, 0, 0, 0];
const FORMAT_DATA: [u8; 6] = [0x04, 0x10, 0, 0, 0, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const TEST_UNIT_READY: [u8; 6] = [0; 6];
const ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
const EXIT: [u8; 10] = [0x48, 0x1F, 0, 0, 0, 0, 0, 0, 0, 0];
const AUSE: u8 = 0x20;

/// A unit with one initiator, which may sanitize.
fn alone() -> Bench {
    let bench = Bench::new();
    bench.unit.detach(&bench.other);
    bench.allow_sanitize(true);
    bench
}

fn begun(action: &Action) -> bool {
    match action {
        Action::Wipe(Begun { immediate, .. }) => *immediate,
        other => panic!("{other:?}"),
    }
}

/// Parameter data for a command that says itself how much of it there is.
fn send(bench: &mut Bench, cdb: &[u8], list: &[u8]) -> Action {
    match bench.execute(cdb) {
        Action::Parameters { least, most } => {
            let mut scratch = vec![0; SCRATCH_LEN];
            assert!(list.len() >= least, "a front end asks for {least} bytes at least");
            let list = &list[..list.len().min(most)];
            bench.unit.execute_out(&bench.path, &Cdb::from_slice(cdb), list, &mut scratch)
        }
        Action::DataOut { len } => {
            assert_eq!(len, list.len());
            let mut scratch = vec![0; SCRATCH_LEN];
            bench.unit.execute_out(&bench.path, &Cdb::from_slice(cdb), list, &mut scratch)
        }
        other => panic!("{other:?}"),
    }
}

/// Does an operation to its end; what was written, as (offset, length, first byte), flushes as length 0.
fn run(unit: &LogicalUnit) -> (Vec<(u64, u64, u8)>, WipeEnd) {
    let mut wipe = unit.take_wipe().expect("it is due");
    assert!(unit.take_wipe().is_none(), "taken once");
    let mut steps = Vec::new();
    while let Some(step) = wipe.next() {
        match step {
            Step::WriteZeroes { offset, len, flags } => {
                assert_eq!(flags, IoFlags::MAY_DEALLOCATE);
                steps.push((offset, len, 0));
            }
            Step::WritePattern { offset, len, .. } => {
                let block = wipe.pattern();
                assert_eq!(block.len(), 512);
                steps.push((offset, len, block[0]));
            }
            Step::Flush | Step::Erase => steps.push((0, 0, 0)),
            Step::Discard { .. } => panic!("a discard need not read zero"),
        }
    }
    (steps, wipe.end(Ok(())))
}

fn answer(end: WipeEnd) -> Outcome {
    match end {
        WipeEnd::Answer(outcome) => outcome,
        WipeEnd::Save(save) => panic!("{save:?}"),
    }
}

fn overwrite(flags: u8, count: u8, pattern: &[u8]) -> ([u8; 10], Vec<u8>) {
    let list = [&[count, 0, (pattern.len() >> 8) as u8, pattern.len() as u8], pattern].concat();
    ([0x48, 0x01 | flags, 0, 0, 0, 0, 0, (list.len() >> 8) as u8, list.len() as u8, 0], list)
}

const DISK: u64 = 2 << 20;

#[test]
fn a_format_zeroes_everything_and_nobody_reads_meanwhile() {
    let mut bench = alone();
    assert!(!begun(&bench.execute(&FORMAT)));
    for cdb in [&READ[..], &TEST_UNIT_READY, &[0x25], &[0x1A, 0, 0x3F, 0, 255, 0], &FORMAT, &ERASE] {
        let sense = bench.sense(cdb);
        assert_eq!((sense.key, sense.code(), sense.progress), (Key::NotReady, 0x0404, Some(0)), "{cdb:02X?}");
    }
    assert_eq!(bench.data(&[0x12, 0, 0, 0, 36, 0])[0], 0, "INQUIRY works");
    assert!(!bench.data(&[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).is_empty(), "so does what says what works");
    assert_eq!(bench.data(&[0x03, 0, 0, 0, 252, 0])[12..18], [4, 4, 0, 0x80, 0, 0]);
    let (steps, end) = run(&bench.unit);
    assert_eq!(steps, [(0, DISK, 0), (0, 0, 0)]);
    assert_eq!(answer(end), Outcome::GOOD);
    bench.good(&TEST_UNIT_READY);
    assert!(matches!(bench.execute(&READ), Action::Io { .. }));
}

#[test]
fn progress_is_told_in_both_formats() {
    let mut bench = alone();
    let (cdb, list) = overwrite(0x80, 2, &[0xAA]);
    assert!(begun(&send(&mut bench, &cdb, &list)), "IMMED");
    let mut wipe = bench.unit.take_wipe().unwrap();
    // A disk of 2 MiB, written twice in steps of 1 MiB.
    for _ in 0..2 {
        wipe.next();
    }
    assert_eq!(bench.data(&[0x03, 0, 0, 0, 252, 0])[12..18], [4, 0x1B, 0, 0x80, 0x40, 0]);
    let descriptors = [0x72, 2, 4, 0x1B, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0x40, 0, 0];
    assert_eq!(bench.data(&[0x03, 1, 0, 0, 252, 0]), descriptors);
    assert_eq!(wipe.next(), Some(Step::Flush), "each pass reaches the medium");
    wipe.next();
    assert_eq!((wipe.pass(), bench.sense(&READ).progress), (1, Some(0x8000)));
}

#[test]
fn format_parameter_lists() {
    let block = shape().block_size as usize;
    let refused: [(&[u8], u16, u16); 11] = [
        (&[1, 0, 0, 0], 0x2600, 0),
        (&[0, 0x40, 0, 0], 0x2600, 1),
        (&[0, 0x08, 0, 0], 0x2600, 1),
        (&[0, 0x80, 0, 8], 0x2600, 2),
        (&[0, 0x88, 0, 0], 0x1A00, 0),
        (&[0, 0x88, 0, 0, 0x20, 1, 0, 1, 7], 0x2600, 4),
        (&[0, 0x88, 0, 0, 0, 2, 0, 1, 7], 0x2600, 5),
        (&[0, 0x88, 0, 0, 0, 0, 0, 1, 7], 0x2600, 6),
        (&[0, 0x88, 0, 0, 0, 1, 0, 0, 7], 0x2600, 6),
        (&[0, 0x88, 0, 0, 0, 1, 2, 1, 7], 0x2600, 6),
        (&[0, 0x88, 0, 0, 0, 1, 0, 2, 7], 0x1A00, 0),
    ];
    let mut bench = alone();
    for (list, code, byte) in refused {
        let sense = sense_of(&send(&mut bench, &FORMAT_DATA, list));
        assert_eq!((sense.code(), sense.field.map_or(0, |field| field.byte)), (code, byte), "{list:02X?}");
    }
    let full = [&[0, 0x88, 0, 0, 0, 1, 2, 0][..], &vec![9; block]].concat();
    let served: [(&[u8], u8, bool); 6] = [
        (&[0, 0, 0, 0], 0, false),
        (&[0, 0x02, 0, 0], 0, true),
        (&[0, 0xF0, 0, 0], 0, false),
        (&[0, 0x88, 0, 0, 0, 0, 0, 0], 0, false),
        (&[0, 0x8A, 0, 0, 0, 1, 0, 2, 7, 8], 7, true),
        (&full, 9, false),
    ];
    for (list, first, immediate) in served {
        assert_eq!(begun(&send(&mut bench, &FORMAT_DATA, list)), immediate, "{list:02X?}");
        let (steps, end) = run(&bench.unit);
        assert!(steps.iter().all(|(_, len, byte)| *len == 0 || *byte == first), "{list:02X?}: {steps:?}");
        assert_eq!(steps.iter().map(|step| step.1).sum::<u64>(), DISK);
        assert_eq!(answer(end), Outcome::GOOD);
    }
    // The long header.
    let long = [0x04, 0x30, 0, 0, 0, 0];
    assert_eq!(sense_of(&send(&mut bench, &long, &[0, 0, 0, 1, 0, 0, 0, 0])), Sense::invalid_parameter(3, Some(0)));
    assert_eq!(sense_of(&send(&mut bench, &long, &[0, 0, 0, 0, 0, 0, 0, 8])), Sense::invalid_parameter(4, None));
    begun(&send(&mut bench, &long, &[0; 8]));
}

#[test]
fn format_cdbs() {
    let mut bench = alone();
    let with = |options: u8| [0x04, options, 0, 0, 0, 0];
    assert_eq!(bench.sense(&with(0x90)), Sense::invalid_field(1, Some(7)), "FMTPINFO");
    assert_eq!(bench.sense(&with(0x50)), Sense::invalid_field(1, Some(6)), "FMTPINFO");
    assert_eq!(bench.sense(&with(0x28)), Sense::invalid_field(1, Some(5)), "lists without data");
    assert_eq!(bench.sense(&with(0x11)), Sense::invalid_field(1, Some(2)), "a reserved format of defect lists");
    assert_eq!(bench.sense(&[0x04, 0, 0, 0, 1, 0]), Sense::invalid_field(4, Some(0)), "FFMT");
    assert!(matches!(bench.execute(&with(0x1D)), Action::Parameters { least: 4, .. }), "CMPLIST, physical sectors");
    bench.unit.set_shape(Some(Shape { read_only: true, ..shape() }));
    drained(&bench.path);
    assert_eq!(bench.sense(&FORMAT).code(), 0x2700);
}

#[test]
fn nobody_wipes_a_disk_that_another_initiator_uses() {
    let mut bench = Bench::new();
    bench.allow_sanitize(true);
    for cdb in [&FORMAT[..], &ERASE] {
        assert_eq!(bench.sense(cdb).code(), 0x2400);
    }
    bench.unit.detach(&bench.other);
    let _second = bench.unit.attach(Nexus::new(1, "c1b".into(), 3, 0), 0);
    drained(&bench.path);
    begun(&bench.execute(&FORMAT));
}

#[test]
fn a_reset_ends_a_format_and_the_medium_is_corrupt_until_the_next() {
    let mut bench = alone();
    begun(&bench.execute(&FORMAT));
    let mut wipe = bench.unit.take_wipe().unwrap();
    assert!(wipe.next().is_some());
    bench.unit.reset(Some(&bench.path));
    drained(&bench.path);
    assert_eq!(bench.sense(&READ).code(), 0x0404, "as long as something is under way");
    assert_eq!(wipe.next(), None);
    assert_eq!(answer(wipe.end(Ok(()))).sense.unwrap().code(), 0x3101);
    for cdb in [&READ[..], &TEST_UNIT_READY, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let sense = bench.sense(cdb);
        assert_eq!((sense.key, sense.code(), sense.progress), (Key::MediumError, 0x3100, None));
    }
    assert_eq!(bench.data(&[0x25]).len(), 8, "what does not touch the medium works");
    begun(&bench.execute(&FORMAT));
    assert_eq!(answer(run(&bench.unit).1), Outcome::GOOD);
    bench.good(&TEST_UNIT_READY);
    // Nobody had taken it yet.
    let Action::Wipe(Begun { number, .. }) = bench.execute(&FORMAT) else { panic!("it begins") };
    bench.unit.cancel_format(number - 1);
    assert!(bench.unit.is_wipe_due(), "the command of an earlier one was aborted");
    bench.unit.cancel_format(number);
    assert!(bench.unit.take_wipe().is_none());
    assert_eq!(bench.sense(&READ).code(), 0x3100);
}

#[test]
fn a_sanitize_goes_on_over_a_reset_and_over_its_taker() {
    let mut bench = alone();
    begun(&bench.execute(&ERASE));
    let mut wipe = bench.unit.take_wipe().unwrap();
    assert!(wipe.next().is_some() && !bench.unit.is_wipe_due());
    bench.unit.reset(Some(&bench.path));
    bench.unit.cancel_format(wipe.number());
    drained(&bench.path);
    assert_eq!(wipe.leave(), None, "its command waits on");
    assert!(bench.unit.is_wipe_due());
    bench.unit.set_shape(None);
    assert!(bench.unit.take_wipe().is_none(), "there is no device");
    bench.unit.set_shape(Some(shape()));
    drained(&bench.path);
    drop(bench.unit.take_wipe());
    let (steps, end) = run(&bench.unit);
    assert_eq!((steps, answer(end)), (vec![(0, DISK, 0), (0, 0, 0)], Outcome::GOOD));
    bench.good(&TEST_UNIT_READY);
}

#[test]
fn an_overwrite_writes_its_pattern_so_many_times() {
    let mut bench = alone();
    for (count, bytes) in [(0x01, &[0xA5][..]), (0x03, &[0xA5]), (0x83, &[0xA5, 0x5A, 0xA5]), (0x82, &[0xA5])] {
        let (cdb, list) = overwrite(0, count, &bytes[..1]);
        begun(&send(&mut bench, &cdb, &list));
        let (steps, end) = run(&bench.unit);
        let passes: Vec<u8> = steps.chunks(3).map(|pass| pass[0].2).collect();
        let want = match (count, bytes.len()) {
            (0x01, _) => vec![0xA5],
            (0x03, _) => vec![0xA5; 3],
            (0x82, _) => vec![0x5A, 0xA5],
            _ => bytes.to_vec(),
        };
        assert_eq!(passes, want, "count {count:02X}");
        assert_eq!(answer(end), Outcome::GOOD);
    }
    let (cdb, list) = overwrite(0, 1, &[1, 2, 3]);
    begun(&send(&mut bench, &cdb, &list));
    let block = bench.unit.take_wipe().unwrap().pattern();
    assert_eq!((block[..4].to_vec(), block[511]), (vec![1, 2, 3, 1], 2), "each block begins with it");
}

#[test]
fn overwrite_lists_that_cannot_be() {
    let mut bench = alone();
    let cdb = |len: u16| [0x48, 0x01, 0, 0, 0, 0, 0, (len >> 8) as u8, len as u8, 0];
    for len in [0, 1, 4, 517] {
        assert_eq!(bench.sense(&cdb(len)), Sense::invalid_field(7, None), "{len}");
    }
    let mut refused = |header: [u8; 4]| {
        let list = [&header[..], &[7; 512]].concat();
        sense_of(&send(&mut bench, &cdb(516), &list))
    };
    let of_cdb = Sense::new(Key::IllegalRequest, code::INVALID_FIELD_IN_CDB);
    for header in [[0, 0, 2, 0], [1, 0, 0, 0], [1, 0, 2, 1]] {
        assert_eq!(refused(header), of_cdb);
    }
    assert_eq!(refused([0x21, 0, 2, 0]), Sense::invalid_parameter(0, Some(6)), "TEST");
    assert_eq!(refused([1, 1, 2, 0]), Sense::invalid_parameter(1, None));
    let (cdb, mut list) = overwrite(0, 1, &[7; 8]);
    list[3] = 9;
    assert_eq!(sense_of(&send(&mut bench, &cdb, &list)), Sense::LIST_LENGTH);
}

#[test]
fn sanitize_is_there_only_if_it_is_allowed() {
    let mut bench = alone();
    bench.allow_sanitize(false);
    for cdb in [&ERASE, &EXIT, &overwrite(0, 1, &[1]).0] {
        assert_eq!(bench.sense(cdb), Sense::INVALID_OPCODE);
    }
    assert_eq!(bench.data(&[0x12, 1, 0xB1, 0, 255, 0])[7], 0);
    bench.allow_sanitize(true);
    assert_eq!(bench.data(&[0x12, 1, 0xB1, 0, 255, 0])[7], 0x40, "WABEREQ");
    bench.good(&EXIT);
    for action in [0x00, 0x03, 0x04, 0x1E] {
        assert_eq!(bench.sense(&[0x48, action]), Sense::invalid_field(1, Some(4)), "CRYPTOGRAPHIC ERASE and reserved");
    }
    assert_eq!(bench.sense(&[0x48, 0x02, 0, 0, 0, 0, 0, 0, 8, 0]), Sense::invalid_field(8, Some(3)));
    bench.unit.set_shape(Some(Shape { discard: None, ..shape() }));
    assert_eq!(bench.sense(&ERASE), Sense::invalid_field(1, Some(4)), "nothing is erased where nothing is discarded");
    assert_eq!(bench.data(&[0x12, 1, 0xB1, 0, 255, 0])[7], 0);
}

#[test]
fn a_failed_sanitize_closes_the_disk() {
    let mut bench = alone();
    let fail = |bench: &mut Bench, flags: u8| {
        begun(&bench.execute(&[0x48, 0x02 | flags, 0, 0, 0, 0, 0, 0, 0, 0]));
        let mut wipe = bench.unit.take_wipe().unwrap();
        wipe.next();
        let outcome = answer(wipe.end(Err(IoError::Medium)));
        assert_eq!((outcome.status, outcome.sense.unwrap().code()), (Status::CheckCondition, 0x3103));
        assert_eq!(bench.sense(&READ).code(), 0x3103);
        assert_eq!(bench.sense(&FORMAT).code(), 0x3103);
    };
    fail(&mut bench, AUSE);
    bench.unit.reset(None);
    drained(&bench.path);
    assert_eq!(bench.sense(&TEST_UNIT_READY).code(), 0x3103);
    bench.good(&EXIT);
    bench.good(&TEST_UNIT_READY);
    fail(&mut bench, 0);
    assert_eq!(bench.sense(&EXIT), Sense::invalid_field(1, Some(4)), "restricted");
    assert_eq!(bench.sense(&[0x48, 0x02 | AUSE]), Sense::invalid_field(1, Some(5)), "and so is the next");
    begun(&bench.execute(&ERASE));
    assert_eq!(answer(run(&bench.unit).1), Outcome::GOOD);
    bench.good(&TEST_UNIT_READY);
}

/// Ends the save of an action.
fn end_save(shelf: &Shelf, save: Save, saved: bool) -> Saved {
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    save.start(Box::new(move |saved| *tell.lock().unwrap() = Some(saved)));
    shelf.saves.lock().unwrap().pop().expect("submitted").done(saved);
    told.lock().unwrap().take().expect("told")
}

fn kept(shelf: &Arc<Shelf>, text: &str) -> Bench {
    let chosen = Chosen { allow_sanitize: Some(true), ..Chosen::default() };
    let identity = Identity::from_uuid(uuid(), "test disk").with(&chosen).unwrap();
    let sections = Sections::from([("wipe".to_owned(), text.to_owned())]);
    let unit = LogicalUnit::kept(identity, Some(shape()), shelf.clone(), Some(&sections));
    let path = unit.attach(Nexus::new(1, "c1".into(), 1, 0), 0);
    drained(&path);
    let other = path.clone();
    let mut bench = Bench::new();
    (bench.unit, bench.path, bench.other) = (unit, path, other);
    bench
}

fn save_of(action: Action) -> Save {
    match action {
        Action::Save(save) => *save,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_kept_says_so_before_the_first_step_and_until_after_the_last() {
    let shelf = Arc::new(Shelf::default());
    let mut bench = kept(&shelf, "");
    let save = save_of(bench.execute(&ERASE));
    assert_eq!((save.section(), save.text()), ("wipe", "sanitize restricted zeroes\n"));
    assert!(bench.unit.take_wipe().is_none(), "not before it is saved");
    assert!(matches!(bench.execute(&READ), Action::Io { .. }), "nor does anybody notice");
    assert_eq!(bench.execute(&ERASE).done(), Some(Outcome::BUSY));
    let saved = end_save(&shelf, save, true);
    assert_eq!((saved.outcome, saved.begun), (Outcome::GOOD, Some(Begun { immediate: false, number: 1 })));
    let (_, end) = run(&bench.unit);
    assert_eq!(bench.sense(&READ).code(), 0x041B, "not before it is saved");
    let WipeEnd::Save(save) = end else { panic!("{end:?}") };
    assert_eq!(save.text(), "");
    assert_eq!(end_save(&shelf, *save, true).outcome, Outcome::GOOD);
    bench.good(&TEST_UNIT_READY);
}

#[test]
fn saves_that_fail_lose_nothing() {
    let shelf = Arc::new(Shelf::default());
    let mut bench = kept(&shelf, "");
    let save = save_of(bench.execute(&ERASE));
    assert_eq!(end_save(&shelf, save, false).outcome.sense.unwrap().code(), 0x4400);
    bench.good(&TEST_UNIT_READY);
    let save = save_of(bench.execute(&ERASE));
    end_save(&shelf, save, true);
    let WipeEnd::Save(save) = run(&bench.unit).1 else { panic!("it has to be saved") };
    assert_eq!(end_save(&shelf, *save, false).outcome.sense.unwrap().code(), 0x4400);
    assert_eq!(bench.sense(&READ).code(), 0x3103, "a restart would wipe what is written now");
    let save = save_of(bench.execute(&ERASE));
    assert_eq!(bench.sense(&READ).code(), 0x3103);
    end_save(&shelf, save, true);
    let WipeEnd::Save(save) = run(&bench.unit).1 else { panic!("it has to be saved") };
    end_save(&shelf, *save, true);
    bench.good(&TEST_UNIT_READY);
    *shelf.full.lock().unwrap() = true;
    assert_eq!(bench.execute(&ERASE).done(), Some(Outcome::BUSY), "who asks too often");
}

#[test]
fn after_a_restart_a_sanitize_begins_again_and_a_format_has_failed() {
    let shelf = Arc::new(Shelf::default());
    let mut bench = kept(&shelf, "");
    let (cdb, list) = overwrite(AUSE, 0x82, &[0x12, 0xAB]);
    let save = save_of(send(&mut bench, &cdb, &list));
    assert_eq!(save.text(), "sanitize unrestricted pattern 2 true 12ab\n");
    let mut bench = kept(&shelf, save.text());
    assert_eq!(bench.sense(&READ).code(), 0x041B);
    let mut wipe = bench.unit.take_wipe().unwrap();
    assert_eq!(wipe.next().map(|step| step.op()), Some(pollux_core::Op::Write));
    assert_eq!(wipe.pattern()[..3], [0xED, 0x54, 0xED]);
    let WipeEnd::Save(failed) = wipe.end(Err(IoError::NoSpace)) else { panic!("it has to be saved") };
    assert_eq!(failed.text(), "failed unrestricted\n");
    let mut bench = kept(&shelf, failed.text());
    assert_eq!(bench.sense(&READ).code(), 0x3103);
    let save = save_of(bench.execute(&EXIT));
    assert_eq!((save.text(), bench.sense(&READ).code()), ("", 0x3103));
    end_save(&shelf, save, true);
    bench.good(&TEST_UNIT_READY);

    let save = save_of(bench.execute(&FORMAT));
    let mut bench = kept(&shelf, save.text());
    assert_eq!(bench.sense(&READ).code(), 0x3100);
    end_save(&shelf, save_of(bench.execute(&FORMAT)), true);
    let WipeEnd::Save(done) = run(&bench.unit).1 else { panic!("it has to be saved") };
    assert_eq!(done.text(), "");
    assert_eq!(end_save(&shelf, *done, true).outcome, Outcome::GOOD);
    bench.good(&TEST_UNIT_READY);
}

#[test]
fn what_nobody_understands_closes_the_disk() {
    let shelf = Arc::new(Shelf::default());
    for text in ["x", "sanitize", "sanitize restricted", "sanitize restricted pattern 0 true 00", "format now"] {
        let mut bench = kept(&shelf, text);
        assert_eq!(bench.sense(&READ).code(), 0x3103, "{text}");
        assert_eq!(bench.sense(&EXIT), Sense::invalid_field(1, Some(4)));
    }
    for hex in ["", "0", "zz", "0é"] {
        let mut bench = kept(&shelf, &format!("sanitize unrestricted pattern 1 true {hex}"));
        assert_eq!(bench.sense(&READ).code(), 0x3103, "{hex}");
    }
}

#[test]
fn who_comes_late_is_told_how_it_ended() {
    let mut bench = alone();
    for (result, code) in [(Ok(()), None), (Err(IoError::NoSpace), Some(0x3101)), (Ok(()), None)] {
        let Action::Wipe(Begun { number, .. }) = bench.execute(&FORMAT) else { panic!("it begins") };
        assert_eq!(bench.unit.wipe_outcome(number), None);
        let mut wipe = bench.unit.take_wipe().unwrap();
        assert_eq!(wipe.number(), number);
        while wipe.next().is_some() {}
        let outcome = answer(wipe.end(result));
        assert_eq!(outcome.sense.map(|sense| sense.code()), code);
        assert_eq!(bench.unit.wipe_outcome(number), Some(outcome));
        assert_eq!(bench.unit.wipe_outcome(number - 1), None, "of the last one only");
    }
    let Action::Wipe(Begun { number, .. }) = bench.execute(&FORMAT) else { panic!("it begins") };
    let failure = bench.unit.take_wipe().unwrap().leave();
    assert!(failure.is_some() && bench.unit.wipe_outcome(number) == failure);

    let shelf = Arc::new(Shelf::default());
    let mut bench = kept(&shelf, "");
    for saved in [true, false] {
        let begun = end_save(&shelf, save_of(bench.execute(&ERASE)), true).begun.unwrap();
        let WipeEnd::Save(save) = run(&bench.unit).1 else { panic!("it has to be saved") };
        assert_eq!(bench.unit.wipe_outcome(begun.number), None, "not before it is saved");
        let outcome = end_save(&shelf, *save, saved).outcome;
        assert_eq!((bench.unit.wipe_outcome(begun.number), outcome == Outcome::GOOD), (Some(outcome), saved));
    }
}

#[test]
fn copies_meet_it_as_reads_and_writes_do() {
    let shelf = Arc::new(Shelf::default());
    let mut bench = kept(&shelf, "");
    let end = crate::End { unit: bench.unit.clone(), path: bench.path.clone(), place: 0 };
    let refused = |code: u16| {
        let senses = [end.may_read(0, 512).unwrap_err().sense, end.may_write(0, 512).unwrap_err().sense];
        assert_eq!(senses.map(|sense| sense.code()), [code; 2]);
    };
    end.may_read(0, 512).unwrap();
    let save = save_of(bench.execute(&ERASE));
    end.may_write(0, 512).unwrap();
    end_save(&shelf, save, true);
    refused(0x041B);
    let mut wipe = bench.unit.take_wipe().unwrap();
    refused(0x041B);
    assert_eq!(wipe.leave(), None);
    refused(0x041B);
    wipe = bench.unit.take_wipe().unwrap();
    while wipe.next().is_some() {}
    let WipeEnd::Save(save) = wipe.end(Err(IoError::NoSpace)) else { panic!("it has to be saved") };
    refused(0x041B);
    end_save(&shelf, *save, true);
    refused(0x3103);
    end_save(&shelf, save_of(bench.execute(&ERASE)), true);
    let WipeEnd::Save(save) = run(&bench.unit).1 else { panic!("it has to be saved") };
    // All of it is zeroes, but a restart would do it again.
    refused(0x041B);
    end_save(&shelf, *save, true);
    end.may_read(0, 512).unwrap();
    end.may_write(0, 512).unwrap();
}
