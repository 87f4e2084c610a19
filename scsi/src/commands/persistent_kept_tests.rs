//! Registrations and reservations that outlast a power loss.

use super::*;

#[test]
fn a_durable_change_counts_when_it_is_saved() {
    let shelf = Arc::new(Shelf::default());
    let nothing = Sections::new();
    let mut world = World::kept(&shelf, Some(&nothing));
    assert_eq!(world.read(2)[2..4], [0x0D, 0x80]);
    world.register(A, 1);
    let Action::Save(save) = world.send(A, REGISTER, 0, &list((1, 2), APTPL)) else { panic!() };
    assert_eq!(save.text(), "registration 0000000000000002 000000000000000a 0001 vm0\n");
    assert_eq!((save.section(), world.keys()), ("reservations", vec![1]), "not yet");
    let busy = world.send(B, REGISTER, 0, &list((0, 5), 0));
    assert!(matches!(busy, Action::Done(outcome) if outcome == Outcome::BUSY), "one at a time");
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    save.start(Box::new(move |saved| *told.lock().unwrap() = Some(saved)));
    let save = shelf.saves.lock().unwrap().pop().unwrap();
    assert_eq!(*answer.lock().unwrap(), None);
    save.done(true);
    assert_eq!(*answer.lock().unwrap(), Some(Saved { outcome: Outcome::GOOD, preempted: None, begun: None }));
    assert_eq!((world.keys(), world.read(2)[3]), (vec![2], 0x81));
    // From here on everything that others would have to find after a power loss is saved, nothing else.
    assert_eq!(world.out(A, RELEASE, 1, (2, 0), 0), Ok(()));
    let Action::Save(save) = world.send(A, RESERVE, 1, &list((2, 0), 0)) else { panic!() };
    assert!(save.text().ends_with("reservation 1 000000000000000a vm0\n"), "{}", save.text());
    drop(save);
    assert_eq!(world.held(), None, "what nobody has saved has not happened");
    let Action::Save(save) = world.send(A, RESERVE, 1, &list((2, 0), 0)) else { panic!() };
    save.done(false);
    assert_eq!((world.held(), world.may(B)), (None, (true, true)));
    let Action::Save(save) = world.send(A, RESERVE, 1, &list((2, 0), 0)) else { panic!() };
    save.done(true);
    assert_eq!((world.held(), world.may(B)), (Some((2, 1)), (true, false)));
    // Who asks too often is put off; what needs no saving goes on.
    *shelf.full.lock().unwrap() = true;
    let busy = world.send(A, CLEAR, 0, &list((2, 0), 0));
    assert!(matches!(busy, Action::Done(outcome) if outcome == Outcome::BUSY));
    *shelf.full.lock().unwrap() = false;
    // APTPL=0 takes the file's content away.
    let Action::Save(save) = world.send(A, REGISTER, 0, &list((2, 3), 0)) else { panic!() };
    assert_eq!(save.text(), "");
    save.done(true);
    assert_eq!(world.read(2)[3], 0x80);
}

#[test]
fn what_was_kept_is_in_force_before_anybody_comes() {
    let shelf = Arc::new(Shelf::default());
    let text = "registration 0000000000000002 000000000000000a 0001 vm0\nreservation 6 000000000000000a vm0\n";
    let kept = Sections::from([("reservations".to_owned(), text.to_owned())]);
    let mut world = World::kept(&shelf, Some(&kept));
    assert_eq!((world.may(A), world.may(B)), ((true, true), (false, false)));
    assert_eq!((world.held(), world.generation(), world.read(2)[3]), (Some((2, 6)), 0, 0x81));
    // What cannot be read might have kept anybody from anything.
    for damaged in [None, Some(Sections::from([("reservations".to_owned(), "?".to_owned())]))] {
        let mut world = World::kept(&shelf, damaged.as_ref());
        for of in [A, B] {
            assert_eq!(world.may(of), (false, false));
            assert_eq!(world.out(of, REGISTER, 0, (0, 1), 0), CONFLICT);
            assert_eq!(result(world.execute(of, &[0x16])), CONFLICT);
            assert_eq!(result(world.execute(of, &[0x00])), Ok(()));
        }
        assert!(world.unit.reservations().unreadable);
        let Action::Save(save) = world.unit.clear_reservations() else { panic!() };
        assert_eq!(save.text(), "");
        save.done(true);
        // With the whole file its mode pages are given up.
        let told = if damaged.is_none() { vec![Attention::ModeChanged] } else { vec![] };
        assert!(world.told().iter().all(|attentions| *attentions == told));
        assert_eq!((world.may(A), world.unit.reservations().unreadable), ((true, true), false));
    }
}

#[test]
fn what_cannot_be_kept_is_not_promised() {
    let mut world = World::new();
    assert_eq!(world.out(A, REGISTER, 0, (0, 1), APTPL), invalid(20, Some(0)));
    assert_eq!(world.out(A, IGNORE, 0, (0, 1), APTPL), invalid(20, Some(0)));
    world.register(A, 1);
    assert_eq!(world.out(A, RESERVE, 1, (1, 0), APTPL), Ok(()), "ignored here");
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 1, 2, 0xB))), invalid(17, Some(0)));
}
