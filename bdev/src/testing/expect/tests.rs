mod disk;
mod honest;

use super::*;

/// What is found after a crash.
#[derive(Default)]
struct Found(BTreeMap<Id, Vec<Value>>);

impl Survivors for Found {
    fn volumes(&mut self) -> Vec<(Id, u64)> {
        self.0.iter().map(|(id, sectors)| (*id, sectors.len() as u64)).collect()
    }

    fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR] {
        self.0[&volume][sector as usize].bytes()
    }
}

fn created(expect: &mut Expect, sectors: u64) -> Id {
    let (id, asking) = expect.create(sectors);
    expect.done(asking);
    id
}

/// Writes one sector, acknowledged. Gives what it holds then.
fn put(expect: &mut Expect, id: Id, sector: u64) -> Value {
    let (asking, bytes) = expect.write(id, sector, 1, false);
    expect.done(asking);
    Value::of(&bytes).unwrap()
}

/// Writes one sector, not acknowledged.
fn begin(expect: &mut Expect, id: Id, sector: u64) -> (Asking, Value) {
    let (asking, bytes) = expect.write(id, sector, 1, false);
    (asking, Value::of(&bytes).unwrap())
}

fn flush(expect: &mut Expect, id: Id) {
    let asking = expect.flush(id);
    expect.done(asking);
}

fn snapshot(expect: &mut Expect, id: Id) -> Id {
    let (made, asking) = expect.snapshot(&[id]);
    expect.done(asking);
    made[0]
}

/// Whether a crash may leave this.
fn may<const N: usize>(expect: &Expect, there: [(Id, &[Value]); N]) -> bool {
    let mut found = Found(there.into_iter().map(|(id, sectors)| (id, sectors.to_vec())).collect());
    expect.clone().check_after_crash(&mut found).is_ok()
}

const ZERO: Value = Value::Zero;

#[test]
fn what_was_flushed_stays_and_what_was_not_is_open() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    assert!(may(&expect, [(v, &[ZERO, ZERO])]));
    let a = put(&mut expect, v, 0);
    assert!(may(&expect, [(v, &[ZERO, ZERO])]) && may(&expect, [(v, &[a, ZERO])]));
    assert!(!may(&expect, [(v, &[ZERO, a])]), "a stamp at another sector");
    flush(&mut expect, v);
    assert!(!may(&expect, [(v, &[ZERO, ZERO])]), "it was flushed");
    let b = put(&mut expect, v, 0);
    let (_, c) = begin(&mut expect, v, 0);
    assert!([a, b, c].iter().all(|value| may(&expect, [(v, &[*value, ZERO])])));
    let (asking, bytes) = expect.write(v, 1, 1, true);
    assert!(may(&expect, [(v, &[a, ZERO])]));
    expect.done(asking);
    assert!(!may(&expect, [(v, &[a, ZERO])]), "it was forced");
    assert!(may(&expect, [(v, &[a, Value::of(&bytes).unwrap()])]));
}

#[test]
fn a_flush_covers_what_had_been_acknowledged_before_it() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    let (asking, _) = begin(&mut expect, v, 0);
    let early = expect.flush(v);
    expect.done(asking);
    expect.done(early);
    assert!(may(&expect, [(v, &[ZERO])]));
    let failed = expect.flush(v);
    expect.failed(failed);
    assert!(may(&expect, [(v, &[ZERO])]));
    flush(&mut expect, v);
    assert!(!may(&expect, [(v, &[ZERO])]));
}

#[test]
fn a_discard_is_a_write_of_zeroes_and_a_failed_write_may_have_happened() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    let a = put(&mut expect, v, 0);
    flush(&mut expect, v);
    let asking = expect.zero(v, 0, 1, false);
    expect.done(asking);
    assert!(may(&expect, [(v, &[ZERO])]) && may(&expect, [(v, &[a])]));
    flush(&mut expect, v);
    assert!(!may(&expect, [(v, &[a])]), "what was discarded has come back");
    let (asking, b) = begin(&mut expect, v, 0);
    expect.failed(asking);
    flush(&mut expect, v);
    assert!(may(&expect, [(v, &[ZERO])]) && may(&expect, [(v, &[b])]));
}

#[test]
fn stamps_of_others_and_of_nobody_are_found() {
    let mut expect = Expect::new();
    let (v, w) = (created(&mut expect, 1), created(&mut expect, 1));
    let a = put(&mut expect, v, 0);
    assert!(!may(&expect, [(v, &[a]), (w, &[a])]), "another tenant's data");
    let nobody = Value::Stamp(Stamp { volume: w.0, write: 99, sector: 0 });
    assert!(!may(&expect, [(v, &[a]), (w, &[nobody])]));
    let read = expect.read(v, 0, 1);
    let mut torn = a.bytes();
    torn[500] ^= 1;
    assert!(expect.has_read(read, &torn).is_err());
}

#[test]
fn a_read_sees_the_last_write_or_one_under_way() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    let a = put(&mut expect, v, 0);
    let b = put(&mut expect, v, 0);
    let mut sees = |value: Value| {
        let read = expect.read(v, 0, 1);
        expect.has_read(read, &value.bytes()).is_ok()
    };
    assert!(sees(b) && !sees(a) && !sees(ZERO));
    let read = expect.read(v, 0, 1);
    let c = put(&mut expect, v, 0);
    let mut early = expect.clone();
    assert_eq!(early.has_read(read, &b.bytes()), Ok(()));
    assert_eq!(expect.has_read(read, &c.bytes()), Ok(()));
}

#[test]
fn what_was_acknowledged_is_there_and_what_was_deleted_is_not() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    assert!(!may(&expect, []));
    let (w, _) = expect.create(2);
    assert!(may(&expect, [(v, &[ZERO])]) && may(&expect, [(v, &[ZERO]), (w, &[ZERO, ZERO])]));
    assert!(!may(&expect, [(v, &[ZERO]), (w, &[ZERO])]), "half of it");
    assert!(!may(&expect, [(v, &[ZERO]), (Id(77), &[ZERO])]), "nobody asked for it");
    let asking = expect.delete(v);
    assert!(may(&expect, []) && may(&expect, [(v, &[ZERO])]));
    expect.done(asking);
    assert!(may(&expect, []) && !may(&expect, [(v, &[ZERO])]));
}

#[test]
fn a_snapshot_holds_everything_acknowledged_before_it_and_nothing_begun_after_it() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 3);
    let a = put(&mut expect, v, 0);
    let (under_way, b) = begin(&mut expect, v, 1);
    let s = snapshot(&mut expect, v);
    expect.done(under_way);
    let c = put(&mut expect, v, 2);
    for (snapshot, right) in
        [([a, ZERO, ZERO], true), ([a, b, ZERO], true), ([ZERO, b, ZERO], false), ([a, b, c], false)]
    {
        assert_eq!(may(&expect, [(v, &[a, b, c]), (s, &snapshot)]), right, "{snapshot:?}");
    }
    assert!(may(&expect, [(v, &[a, ZERO, ZERO]), (s, &[a, ZERO, ZERO])]));
    assert!(!may(&expect, [(v, &[ZERO, b, c]), (s, &[a, b, ZERO])]), "an acknowledged snapshot makes durable");
    assert!(!may(&expect, [(v, &[a, ZERO, c]), (s, &[a, b, ZERO])]), "older than its snapshot");
    assert!(!may(&expect, [(v, &[a, b, c])]), "it was acknowledged");
}

#[test]
fn dependent_writes_are_never_out_of_order_in_a_cut() {
    let mut expect = Expect::new();
    let (v, w) = (created(&mut expect, 1), created(&mut expect, 1));
    let (cut, asking) = expect.snapshot(&[v, w]);
    let a = put(&mut expect, v, 0);
    let b = put(&mut expect, w, 0);
    let acknowledged = {
        let mut done = expect.clone();
        done.done(asking);
        done
    };
    for expect in [expect, acknowledged] {
        let holds = |x: Value, y: Value| may(&expect, [(v, &[a]), (w, &[b]), (cut[0], &[x]), (cut[1], &[y])]);
        assert!(holds(ZERO, ZERO) && holds(a, ZERO) && holds(a, b));
        assert!(!holds(ZERO, b), "b was submitted when a was acknowledged");
        assert!(!may(&expect, [(v, &[a]), (w, &[b]), (cut[0], &[a])]), "a group is there as a whole");
    }
}

#[test]
fn a_snapshot_that_was_not_acknowledged_is_there_or_not() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    let (a, b) = (put(&mut expect, v, 0), put(&mut expect, v, 1));
    let (cut, _) = expect.snapshot(&[v]);
    let c = put(&mut expect, v, 0);
    assert!(may(&expect, [(v, &[ZERO, ZERO])]), "nothing was flushed");
    assert!(may(&expect, [(v, &[c, b]), (cut[0], &[a, b])]));
    assert!(may(&expect, [(v, &[c, b]), (cut[0], &[c, b])]));
    assert!(!may(&expect, [(v, &[c, b]), (cut[0], &[a, ZERO])]));
    assert!(!may(&expect, [(v, &[a, b]), (cut[0], &[c, b])]), "older than its snapshot");
}

#[test]
fn a_clone_holds_what_its_snapshot_holds_even_when_that_is_gone() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    let (x, a) = begin(&mut expect, v, 0);
    let s = snapshot(&mut expect, v);
    expect.done(x);
    let b = put(&mut expect, v, 1);
    let clones: Vec<Id> = (0..2)
        .map(|_| {
            let (id, asking) = expect.clone_of(s);
            expect.done(asking);
            id
        })
        .collect();
    let asking = expect.delete(s);
    expect.done(asking);
    let holds = |one: Value, two: Value, at: Value| {
        may(&expect, [(v, &[a, b]), (clones[0], &[one, at]), (clones[1], &[two, ZERO])])
    };
    assert!(holds(a, a, ZERO) && holds(ZERO, ZERO, ZERO));
    assert!(!holds(a, a, b), "written after the cut");
    assert!(!holds(a, ZERO, ZERO), "both are of one snapshot");
    let c = put(&mut expect, clones[0], 0);
    assert!(may(&expect, [(v, &[a, b]), (clones[0], &[c, ZERO]), (clones[1], &[ZERO, ZERO])]));
    assert!(!may(&expect, [(v, &[c, b]), (clones[0], &[c, ZERO]), (clones[1], &[ZERO, ZERO])]));
}

#[test]
fn what_was_found_in_a_snapshot_stays() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    let (x, a) = begin(&mut expect, v, 0);
    let s = snapshot(&mut expect, v);
    expect.done(x);
    let read = expect.read(s, 0, 1);
    assert_eq!(expect.has_read(read, &ZERO.bytes()), Ok(()));
    let read = expect.read(s, 0, 1);
    assert!(expect.clone().has_read(read, &a.bytes()).is_err());
    assert!(may(&expect, [(v, &[a]), (s, &[ZERO])]) && !may(&expect, [(v, &[a]), (s, &[a])]));
    let mut found = Found([(v, vec![a]), (s, vec![ZERO])].into());
    assert_eq!(expect.check_after_crash(&mut found), Ok(()));
    assert!(may(&expect, [(v, &[a]), (s, &[ZERO])]));
    assert!(!may(&expect, [(v, &[a]), (s, &[a])]) && !may(&expect, [(v, &[ZERO]), (s, &[ZERO])]));
}

#[test]
fn a_rollback_happens_as_a_whole_or_not_at_all() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    let (a, b) = (put(&mut expect, v, 0), put(&mut expect, v, 1));
    let s = snapshot(&mut expect, v);
    let (c, d) = (put(&mut expect, v, 0), put(&mut expect, v, 1));
    flush(&mut expect, v);
    let asking = expect.rollback(v, s);
    let holds = |expect: &Expect, x: Value, y: Value| may(expect, [(v, &[x, y]), (s, &[a, b])]);
    assert!(holds(&expect, c, d) && holds(&expect, a, b));
    assert!(!holds(&expect, a, d), "half of it");
    expect.done(asking);
    assert!(holds(&expect, a, b) && !holds(&expect, c, d));
    let e = put(&mut expect, v, 0);
    assert!(holds(&expect, e, b) && holds(&expect, a, b) && !holds(&expect, e, d));
}

#[test]
fn a_rollback_gives_the_size_of_the_snapshot() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 1);
    let a = put(&mut expect, v, 0);
    let s = snapshot(&mut expect, v);
    let asking = expect.resize(v, 2);
    expect.done(asking);
    let b = put(&mut expect, v, 1);
    flush(&mut expect, v);
    let asking = expect.rollback(v, s);
    assert!(may(&expect, [(v, &[a, b]), (s, &[a])]) && may(&expect, [(v, &[a]), (s, &[a])]));
    expect.done(asking);
    assert!(may(&expect, [(v, &[a]), (s, &[a])]) && !may(&expect, [(v, &[a, b]), (s, &[a])]));
    let asking = expect.resize(v, 2);
    expect.done(asking);
    assert!(may(&expect, [(v, &[a, ZERO]), (s, &[a])]) && !may(&expect, [(v, &[a, b]), (s, &[a])]));
}

#[test]
fn what_a_shrink_cut_off_does_not_come_back() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    let (a, b) = (put(&mut expect, v, 0), put(&mut expect, v, 1));
    flush(&mut expect, v);
    let asking = expect.resize(v, 1);
    assert!(may(&expect, [(v, &[a, b])]) && may(&expect, [(v, &[a])]));
    assert!(!may(&expect, [(v, &[a, ZERO])]), "cut off, and yet as large as before");
    expect.done(asking);
    assert!(!may(&expect, [(v, &[a, b])]));
    let asking = expect.resize(v, 2);
    assert!(may(&expect, [(v, &[a])]) && may(&expect, [(v, &[a, ZERO])]) && !may(&expect, [(v, &[a, b])]));
    expect.done(asking);
    assert!(may(&expect, [(v, &[a, ZERO])]) && !may(&expect, [(v, &[a, b])]) && !may(&expect, [(v, &[a])]));
}

#[test]
fn of_a_large_volume_what_was_touched_is_looked_at() {
    struct Large(Id, Value);
    impl Survivors for Large {
        fn volumes(&mut self) -> Vec<(Id, u64)> {
            vec![(self.0, 1 << 40)]
        }
        fn read(&mut self, _volume: Id, sector: u64) -> [u8; SECTOR] {
            if sector == 1 << 35 { self.1.bytes() } else { ZERO.bytes() }
        }
    }
    let mut expect = Expect::new();
    let v = created(&mut expect, 1 << 40);
    let a = put(&mut expect, v, 1 << 35);
    flush(&mut expect, v);
    assert!(expect.clone().check_after_crash(&mut Large(v, ZERO)).is_err());
    assert_eq!(expect.check_after_crash(&mut Large(v, a)), Ok(()));
    assert!(expect.check_after_crash(&mut Large(v, ZERO)).is_err());
}

/// Whether a crash may leave one volume with this, as a snapshot or not.
fn may_be(expect: &Expect, id: Id, sectors: &[Value], snapshot: bool) -> bool {
    struct One(Found, bool);
    impl Survivors for One {
        fn volumes(&mut self) -> Vec<(Id, u64)> {
            self.0.volumes()
        }
        fn read(&mut self, volume: Id, sector: u64) -> [u8; SECTOR] {
            self.0.read(volume, sector)
        }
        fn is_snapshot(&mut self, _: Id) -> Option<bool> {
            Some(self.1)
        }
    }
    let found = Found(BTreeMap::from([(id, sectors.to_vec())]));
    expect.clone().check_after_crash(&mut One(found, snapshot)).is_ok()
}

#[test]
fn what_was_made_read_only_holds_what_it_held_then() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 2);
    let a = put(&mut expect, v, 0);
    let (open, b) = begin(&mut expect, v, 1);
    assert!(!may_be(&expect, v, &[a, ZERO], true), "nobody has asked for that");
    let asking = expect.set_read_only(v);
    assert!(
        may_be(&expect, v, &[ZERO, ZERO], false) && !may_be(&expect, v, &[ZERO, ZERO], true),
        "it had been written"
    );
    assert!(may_be(&expect, v, &[a, ZERO], true) && may_be(&expect, v, &[a, b], true));
    expect.done(open);
    let c = put(&mut expect, v, 0);
    assert!(!may_be(&expect, v, &[c, ZERO], true), "later than what is missing");
    assert!(may_be(&expect, v, &[a, b], true), "at a moment before");
    let mut refused = expect.clone();
    refused.failed(asking);
    assert!(!may_be(&refused, v, &[a, b], true) && may_be(&refused, v, &[ZERO, b], false));
    expect.done(asking);
    assert!(expect.is_snapshot(v));
    assert!(
        may_be(&expect, v, &[c, b], true) && !may_be(&expect, v, &[c, b], false) && !may_be(&expect, v, &[a, b], true)
    );
    // A late answer, and for ever.
    let read = expect.read(v, 0, 2);
    assert_eq!(expect.has_read(read, &[c.bytes(), b.bytes()].concat()), Ok(()));
    let read = expect.read(v, 0, 1);
    assert!(expect.has_read(read, &a.bytes()).is_err());
}

#[test]
fn with_another_parent_a_volume_keeps_what_it_was_given() {
    let mut expect = Expect::new();
    let (v, w) = (created(&mut expect, 3), created(&mut expect, 3));
    let [a, b, c] = [0, 1, 2].map(|sector| put(&mut expect, w, sector));
    let s = snapshot(&mut expect, w);
    let old = put(&mut expect, v, 0);
    let below = snapshot(&mut expect, v);
    let own = put(&mut expect, v, 1);
    flush(&mut expect, v);
    let all = |expect: &Expect, sectors: &[Value]| {
        may(expect, [(v, sectors), (w, &[a, b, c]), (s, &[a, b, c]), (below, &[old, ZERO, ZERO])])
    };
    assert!(!all(&expect, &[a, own, c]));
    let asking = expect.set_parent(v, s);
    assert!(all(&expect, &[a, own, c]) && all(&expect, &[old, own, ZERO]));
    let mut refused = expect.clone();
    refused.failed(asking);
    assert!(!all(&refused, &[a, own, c]) && all(&refused, &[old, own, ZERO]));
    expect.done(asking);
    assert!(all(&expect, &[a, own, c]) && !all(&expect, &[a, b, c]), "what was written to it is its own");
    assert!(!all(&expect, &[b, own, c]), "of another sector");
    let new = put(&mut expect, v, 0);
    flush(&mut expect, v);
    assert!(all(&expect, &[new, own, c]) && !all(&expect, &[a, own, c]));
}

/// What is looked at of a large one, too: where it got something from others, that is.
#[test]
fn what_was_made_read_only_holds_that_when_what_it_stood_on_is_gone() {
    for large in [false, true] {
        let mut expect = Expect::new();
        if large {
            expect.look_at(1, 1);
        }
        let (v, w) = (created(&mut expect, 3), created(&mut expect, 3));
        let a = put(&mut expect, w, 1);
        let s = snapshot(&mut expect, w);
        let own = put(&mut expect, v, 0);
        let asking = expect.set_parent(v, s);
        expect.done(asking);
        let asking = expect.set_read_only(v);
        expect.done(asking);
        let mut found = Found([(v, vec![own, a, ZERO]), (w, vec![ZERO, a, ZERO]), (s, vec![ZERO, a, ZERO])].into());
        assert_eq!(expect.check_after_crash(&mut found), Ok(()));
        let asking = expect.delete(s);
        expect.done(asking);
        let mut found = Found([(v, vec![own, a, ZERO]), (w, vec![ZERO, a, ZERO])].into());
        assert_eq!(expect.check_after_crash(&mut found), Ok(()));
        assert!(may(&expect, [(v, &[own, a, ZERO]), (w, &[ZERO, a, ZERO])]));
        assert!(!may(&expect, [(v, &[own, ZERO, ZERO]), (w, &[ZERO, a, ZERO])]), "it never changes");
        assert!(!may(&expect, [(v, &[own, a, a]), (w, &[ZERO, a, ZERO])]), "it never changes");
    }
}

#[test]
fn on_a_bdev_outside_a_volume_keeps_what_it_was_given() {
    let mut expect = Expect::new();
    let v = created(&mut expect, 4);
    let old = put(&mut expect, v, 0);
    let below = snapshot(&mut expect, v);
    let own = put(&mut expect, v, 1);
    flush(&mut expect, v);
    let all = |expect: &Expect, sectors: &[Value]| may(expect, [(v, sectors), (below, &[old, ZERO, ZERO, ZERO])]);
    let of = |sector| Stamp::of_outside(77, sector);
    assert!(!all(&expect, &[of(0), own, of(2), ZERO]), "nobody has asked for that");
    let asking = expect.set_outside(v, 77, 3);
    assert!(all(&expect, &[of(0), own, of(2), ZERO]) && all(&expect, &[old, own, ZERO, ZERO]));
    let mut refused = expect.clone();
    refused.failed(asking);
    assert!(!all(&refused, &[of(0), own, of(2), ZERO]) && all(&refused, &[old, own, ZERO, ZERO]));
    expect.done(asking);
    assert!(all(&expect, &[of(0), own, of(2), ZERO]));
    assert!(!all(&expect, &[of(0), of(1), of(2), ZERO]), "what was written to it is its own");
    assert!(!all(&expect, &[of(0), own, of(2), of(3)]), "behind what counts");
    assert!(!all(&expect, &[of(1), own, of(2), ZERO]), "of another sector");
    let new = put(&mut expect, v, 0);
    flush(&mut expect, v);
    assert!(all(&expect, &[new, own, of(2), ZERO]) && !all(&expect, &[of(0), own, of(2), ZERO]));
}
