//! Who may do what while somebody else holds a reservation.

use super::*;

#[test]
fn who_may_read_and_write() {
    const FREE: (bool, bool) = (true, true);
    const READS: (bool, bool) = (true, false);
    const NONE: (bool, bool) = (false, false);
    let expected =
        [(1, READS, READS), (3, NONE, NONE), (5, FREE, READS), (6, FREE, NONE), (7, FREE, READS), (8, FREE, NONE)];
    for (kind, registrant, stranger) in expected {
        let mut world = World::new();
        world.register(A, 1);
        world.register(B, 2);
        assert_eq!(world.out(A, RESERVE, kind, (1, 0), 0), Ok(()));
        assert_eq!([world.may(A), world.may(B), world.may(C)], [FREE, registrant, stranger], "type {kind}");
        let plain = |of: usize| world.unit.plain_io(&world.paths[of], Cdb::from_slice(&WRITE).as_bytes(), 0).is_some();
        assert_eq!((plain(A), plain(B), plain(C)), (true, registrant == FREE, false), "the plain way, type {kind}");
        // A path that comes later finds the reservation; the initiator's registration is that of one nexus.
        let late = world.unit.attach(nexus(C2), 1);
        drained(&late);
        assert!(world.unit.plain_io(&late, Cdb::from_slice(&WRITE).as_bytes(), 0).is_none());
        let again = world.unit.attach(nexus(A), 1);
        drained(&again);
        assert!(world.unit.plain_io(&again, Cdb::from_slice(&WRITE).as_bytes(), 0).is_some(), "a holder comes back");
        // A reset of the unit changes nothing of it, whoever asks.
        world.unit.reset(Some(&world.paths[C]));
        world.told();
        assert_eq!([world.may(A), world.may(B), world.may(C)], [FREE, registrant, stranger], "type {kind}");
        assert_eq!(world.out(A, REGISTER, 0, (1, 0), 0), Ok(()));
        world.told();
        if kind < 7 {
            assert_eq!(world.may(C), FREE);
        }
    }
}

/// SPC-5, the table of commands that are allowed: from one who is not registered, under write exclusive and under exclusive
/// access.
#[test]
fn the_table_of_conflicts() {
    const ALLOWED: (bool, bool) = (true, true);
    const READS: (bool, bool) = (true, false);
    const NONE: (bool, bool) = (false, false);
    let expected: &[(&[u8], (bool, bool))] = &[
        (&[0x00], ALLOWED),
        (&[0x03, 0, 0, 0, 18], ALLOWED),
        (&[0x08, 0, 0, 0, 1], READS),
        (&[0x0A, 0, 0, 0, 1], NONE),
        (&[0x12, 0, 0, 0, 36], ALLOWED),
        (&[0x15, 0x10, 0, 0, 4], NONE),
        (&[0x16], NONE),
        (&[0x17], NONE),
        (&[0x1A, 0, 0x3F, 0, 255], READS),
        (&[0x1B, 0, 0, 0, 0], NONE),
        (&[0x1B, 0, 0, 0, 1], ALLOWED),
        (&[0x1E, 0, 0, 0, 0], ALLOWED),
        (&[0x1E, 0, 0, 0, 1], NONE),
        (&[0x25], ALLOWED),
        (&READ, READS),
        (&WRITE, NONE),
        (&[0x35], NONE),
        (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1], NONE),
        (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], NONE),
        (&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 8], NONE),
        (&[0x56], NONE),
        (&[0x57], NONE),
        (&[0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255], READS),
        (&[0x5E, 0, 0, 0, 0, 0, 0, 0, 255], ALLOWED),
        (&[0x5E, 3, 0, 0, 0, 0, 0, 0, 255], ALLOWED),
        (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], READS),
        (&[0x8A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], NONE),
        (&[0x91], NONE),
        (&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], NONE),
        (&[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], ALLOWED),
        (&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16], ALLOWED),
        (&[0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0, 16], READS),
        (&[0xA8, 0, 0, 0, 0, 0, 0, 0, 0, 1], READS),
        (&[0xAA, 0, 0, 0, 0, 0, 0, 0, 0, 1], NONE),
    ];
    for &(cdb, allowed) in expected {
        let under = |kind: u8| {
            let mut world = World::new();
            world.register(A, 1);
            assert_eq!(world.out(A, RESERVE, kind, (1, 0), 0), Ok(()));
            world.execute(B, cdb)
        };
        let is_allowed = |kind| !matches!(under(kind), Action::Done(outcome) if outcome == Outcome::CONFLICT);
        assert_eq!((is_allowed(1), is_allowed(3)), allowed, "{cdb:02X?}");
        assert_eq!((is_allowed(5), is_allowed(6)), allowed, "{cdb:02X?}");
        assert_eq!((is_allowed(7), is_allowed(8)), allowed, "{cdb:02X?}");
    }
}

#[test]
fn a_conflict_comes_after_the_attention_and_before_wrong_fields() {
    let mut world = World::new();
    world.register(A, 1);
    assert_eq!(world.out(A, RESERVE, 3, (1, 0), 0), Ok(()));
    let beyond = [0x28, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0x04];
    world.paths[B].raise(Attention::CapacityChanged);
    let codes = [0, 1].map(|_| match world.execute(B, &beyond) {
        Action::Done(Outcome { status, sense, .. }) => (status, sense.map(|sense| sense.code())),
        other => panic!("{other:?}"),
    });
    assert_eq!(codes, [(Status::CheckCondition, Some(0x2A09)), (Status::ReservationConflict, None)]);
}
