//! How copies end, what can be asked of them meanwhile and afterwards, and how many there can be.

use super::*;

#[test]
fn errors_of_the_devices_are_handed_on() {
    for (op, side, code) in [(Op::Read, 8, 0x1100u16), (Op::Write, 9, 0x0C00)] {
        let mut disks = Disks::new();
        let names = [disks.name(0), disks.name(1)];
        let list = lid1(1, 2, &names, &[segment((0, 1), 1, 0, 0), segment((1, 0), 1, 0, 0)]);
        let copy = disks.ordered(0, &list).unwrap();
        let outcome =
            disks.run(copy, |task| matches!(task, CopyTask::Do { op: of, .. } if *of == op).then_some(IoError::Medium));
        let sense = fixed(&sense_of(&Action::Done(outcome)));
        assert_eq!((sense[side], sense[11], sense[18]), (18, 0, 2));
        assert_eq!(sense[31..33], code.to_be_bytes());
        let mut bytes = [0; SENSE_LEN];
        let len = sense_of(&Action::Done(outcome)).encode(true, &mut bytes);
        let source = if op == Op::Read { 1 } else { 2 };
        assert_eq!(bytes[8..20], [0x01, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((bytes[20..24].to_vec(), len), (vec![0x0C, 20, source, 2], 8 + 12 + 22));
    }
}

#[test]
fn status_while_it_goes_on_and_after() {
    let mut disks = Disks::new();
    let names = [disks.name(0), disks.name(1)];
    let unknown = Sense::invalid_field(2, None);
    let of = |id: u32| {
        let [a, b, c, d] = id.to_be_bytes();
        [0x84, 0x05, a, b, c, d, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    };
    assert_eq!(disks.sense(&of(0x0102_0304)), unknown);
    let segments = [segment((0, 1), 1, 0, 0), segment((0, 1), 512, 0, 0)];
    let mut copy = disks.ordered(1, &lid4(0x0102_0304, 0x01, &names, &segments)).unwrap();
    assert!(copy.is_in_background());
    let mut want = vec![0, 0, 0, 28, 0x01, 0x12, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0];
    want.extend_from_slice(&[0; 16]);
    assert_eq!(disks.data(&of(0x0102_0304)), want);
    for _ in 0..6 {
        assert!(!matches!(copy.next_task(), CopyTask::End(_)));
    }
    (want[21], want[22], want[25]) = (2, 2, 1);
    assert_eq!(disks.data(&of(0x0102_0304)), want);
    // Another with the same identifier has to wait; another nexus has identifiers of its own.
    let again = disks.ordered(0, &lid1(4, 0, &names, &segments)).unwrap();
    let twice = disks.ordered(0, &lid1(4, 0, &names, &segments)).unwrap_err();
    assert_eq!(sense_of(&Action::Done(twice)), Sense::new(Key::IllegalRequest, 0x0016));
    drop(again);
    let mut scratch = vec![0; SCRATCH_LEN];
    let theirs = disks.units[0].execute(&disks.others[0], &Cdb::from_slice(&of(0x0102_0304)), &Luns, &mut scratch);
    assert_eq!(sense_of(&theirs), unknown);
    assert_eq!(disks.run(copy, |_| None), Outcome::GOOD);
    let done = disks.data(&of(0x0102_0304));
    assert_eq!(done[4..12], [0x01, 0x01, 0, 0, 0xFF, 0xFF, 0xFF, 0xFE]);
    assert_eq!((done[16..26].to_vec(), done.len()), (vec![0, 0, 0, 0, 0, 4, 2, 0, 0, 2], 32));
    assert_eq!(disks.data(&of(0x0102_0304)), done, "it is kept");
    // In the short form it is told once.
    assert_eq!(disks.copied(0, &lid1(9, 0, &names, &segments)), Outcome::GOOD);
    assert_eq!(disks.status(9), [0, 0, 0, 8, 0x01, 0, 2, 0, 0, 4, 2, 0]);
    assert_eq!(disks.sense(&[0x84, 0x00, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0]), unknown);
    // Not to be held, or without an identifier.
    let kept = disks.units[0].copies_kept();
    assert_eq!(disks.copied(0, &lid1(9, 2, &names, &segments)), Outcome::GOOD);
    assert_eq!(disks.copied(0, &lid1(0, 3, &names, &segments)), Outcome::GOOD);
    assert_eq!(disks.units[0].copies_kept(), kept);
}

#[test]
fn aborts_resets_and_losses_end_copies() {
    let mut disks = Disks::new();
    let names = [disks.name(0), disks.name(1)];
    let segments = [segment((0, 1), 512, 0, 0)];
    let abort = [0x83, 0x1C, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(disks.sense(&abort), Sense::invalid_field(2, None));
    let terminated = Sense::new(Key::CopyAborted, 0x0006);
    let copy = disks.ordered(1, &lid4(5, 0, &names, &segments)).unwrap();
    assert!(matches!(disks.execute(&abort), Action::Done(Outcome::GOOD)));
    assert_eq!(sense_of(&Action::Done(disks.run(copy, |_| None))), terminated);
    assert_eq!(disks.data(&[0x84, 0x05, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])[5], 0x60);
    assert_eq!(disks.sense(&abort), Sense::invalid_field(2, None), "it has ended");
    let copy = disks.ordered(1, &lid4(5, 0, &names, &segments)).unwrap();
    disks.units[0].reset(Some(&disks.paths[0]));
    assert_eq!(sense_of(&Action::Done(disks.run(copy, |_| None))), terminated);
    drained(&disks.paths[0]);
    assert_eq!(disks.units[0].copies_kept(), 0);
    let copy = disks.ordered(1, &lid4(5, 0, &names, &segments)).unwrap();
    disks.paths[0].nexus().lost();
    assert_eq!(sense_of(&Action::Done(disks.run(copy, |_| None))), terminated);
    drained(&disks.paths[0]);
    assert_eq!(disks.sense(&[0x84, 0x05, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).code(), 0x2400);
    assert!(disks.writes.is_empty());
}

#[test]
fn an_initiator_has_so_many_at_once_and_so_many_are_kept() {
    let mut disks = Disks::new();
    let name = [disks.name(0)];
    let list = |id: u32| lid4(id, 1, &name, &[segment((0, 0), 1, 0, 9)]);
    let mut copies: Vec<Copy> = (0..16).map(|id| disks.ordered(1, &list(id)).unwrap()).collect();
    assert_eq!(disks.ordered(1, &list(16)).unwrap_err(), Outcome::BUSY);
    drop(copies.pop());
    copies.push(disks.ordered(1, &list(16)).unwrap());
    copies.clear();
    for id in 0..200 {
        assert_eq!(disks.copied(1, &list(id)), Outcome::GOOD);
    }
    assert_eq!(disks.units[0].copies_kept(), 32);
}
