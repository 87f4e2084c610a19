//! Golden cases of PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE: three initiators, the last with two target ports.

use std::sync::{Arc, Mutex};

use crate::testing::{Luns, Shelf, drained, shape, uuid};
use crate::{
    Action, Attention, Cdb, Identity, LogicalUnit, Nexus, Outcome, Path, SCRATCH_LEN, Saved, Sections, Sense, Status,
};

/// Conflicts.
#[path = "persistent_conflict_tests.rs"]
mod conflicts;
/// What is kept.
#[path = "persistent_kept_tests.rs"]
mod kept;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const IGNORE: u8 = 6;
const MOVE: u8 = 7;

const APTPL: u8 = 1;
const ALL_TG_PT: u8 = 4;
const SPEC_I_PT: u8 = 8;

const CONFLICT: Result<(), Option<Sense>> = Err(None);
const PREEMPTED: Attention = Attention::RegistrationsPreempted;
const RELEASED: Attention = Attention::ReservationsReleased;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
/// The initiator of `C` through another controller.
const C2: usize = 3;
/// Never registered: asks for what there is without taking others' attentions.
const OBSERVER: usize = 4;

struct World {
    unit: Arc<LogicalUnit>,
    paths: Vec<Arc<Path>>,
    scratch: Vec<u8>,
}

fn nexus(of: usize) -> Arc<Nexus> {
    let initiator = [0xA, 0xB, 0xC, 0xC, 0xD][of];
    Nexus::new(initiator, format!("vm{of}"), of as u16 + 1, 0)
}

impl World {
    fn new() -> World {
        World::on(LogicalUnit::new(Identity::from_uuid(uuid(), "test"), Some(shape())))
    }

    fn kept(shelf: &Arc<Shelf>, kept: Option<&Sections>) -> World {
        let identity = Identity::from_uuid(uuid(), "test");
        World::on(LogicalUnit::kept(identity, Some(shape()), shelf.clone(), kept))
    }

    fn on(unit: Arc<LogicalUnit>) -> World {
        let paths: Vec<_> = (0..5).map(|of| unit.attach(nexus(of), 0)).collect();
        let world = World { unit, paths, scratch: vec![0xEE; SCRATCH_LEN] };
        world.paths.iter().for_each(|path| drop(drained(path)));
        world
    }

    fn execute(&mut self, of: usize, cdb: &[u8]) -> Action {
        self.unit.execute(&self.paths[of], &Cdb::from_slice(cdb), &Luns, &mut self.scratch)
    }

    fn data(&mut self, of: usize, cdb: &[u8]) -> Vec<u8> {
        match self.execute(of, cdb) {
            Action::Done(Outcome { status: Status::Good, data_len, .. }) => self.scratch[..data_len].to_vec(),
            other => panic!("{cdb:02X?}: {other:?}"),
        }
    }

    fn read(&mut self, action: u8) -> Vec<u8> {
        self.data(OBSERVER, &[0x5E, action, 0, 0, 0, 0, 0, 0x10, 0, 0])
    }

    fn send(&mut self, of: usize, action: u8, kind: u8, list: &[u8]) -> Action {
        let [high, low] = (list.len() as u16).to_be_bytes();
        let cdb = [0x5F, action, kind, 0, 0, 0, 0, high, low, 0];
        match self.execute(of, &cdb) {
            Action::DataOut { len } if len == list.len() => {}
            other => return other,
        }
        self.unit.execute_out(&self.paths[of], &Cdb::from_slice(&cdb), list, &mut self.scratch)
    }

    /// A service action with keys: GOOD, a conflict, or sense data.
    fn out(&mut self, of: usize, action: u8, kind: u8, keys: (u64, u64), flags: u8) -> Result<(), Option<Sense>> {
        result(self.send(of, action, kind, &list(keys, flags)))
    }

    fn register(&mut self, of: usize, key: u64) {
        assert_eq!(self.out(of, IGNORE, 0, (0, key), 0), Ok(()));
    }

    fn keys(&mut self) -> Vec<u64> {
        self.read(0)[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
    }

    fn generation(&mut self) -> u32 {
        u32::from_be_bytes(self.read(0)[..4].try_into().unwrap())
    }

    /// Who holds it: key and type.
    fn held(&mut self) -> Option<(u64, u8)> {
        let data = self.read(1);
        (data.len() > 8).then(|| (u64::from_be_bytes(data[8..16].try_into().unwrap()), data[21]))
    }

    fn told(&self) -> [Vec<Attention>; 4] {
        [0, 1, 2, 3].map(|of| drained(&self.paths[of]))
    }

    /// Whether reads and writes are allowed.
    fn may(&mut self, of: usize) -> (bool, bool) {
        let mut may = |cdb: &[u8]| match self.execute(of, cdb) {
            Action::Io { .. } => true,
            Action::Done(outcome) if outcome == Outcome::CONFLICT => false,
            other => panic!("{other:?}"),
        };
        (may(&READ), may(&WRITE))
    }
}

fn list((key, new_key): (u64, u64), flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), new_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

fn move_list((key, new_key): (u64, u64), flags: u8, port: u16, initiator: u64) -> Vec<u8> {
    let mut list = list((key, new_key), 0);
    list[17] = flags;
    list[18..20].copy_from_slice(&port.to_be_bytes());
    list[23] = 24;
    list.extend(id(initiator));
    list
}

fn id(initiator: u64) -> [u8; 24] {
    let mut id = [0; 24];
    id[0] = 0x06;
    id[4..12].copy_from_slice(&initiator.to_be_bytes());
    id
}

fn result(action: Action) -> Result<(), Option<Sense>> {
    match action {
        Action::Done(Outcome { status: Status::Good, data_len: 0, .. }) | Action::Abort(_) => Ok(()),
        Action::Done(outcome) if outcome == Outcome::CONFLICT => Err(None),
        Action::Done(Outcome { sense: Some(sense), .. }) => Err(Some(sense)),
        other => panic!("{other:?}"),
    }
}

fn invalid(byte: u16, bit: Option<u8>) -> Result<(), Option<Sense>> {
    Err(Some(Sense::invalid_parameter(byte, bit)))
}

const NOBODY: [Vec<Attention>; 4] = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];

fn only(who: usize, what: Attention) -> [Vec<Attention>; 4] {
    let mut told = NOBODY;
    told[who].push(what);
    told
}

#[test]
fn what_persistent_reserve_in_shows() {
    let mut world = World::new();
    assert_eq!(world.read(0), [0; 8]);
    assert_eq!(world.read(1), [0; 8]);
    assert_eq!(world.read(2), [0, 8, 0x0C, 0x80, 0xEA, 0x01, 0, 0], "nothing is kept: PTPL_C is 0");
    world.register(A, 0x1111);
    world.register(C, 0x2222);
    assert_eq!(world.out(C, RESERVE, 6, (0x2222, 0), 0), Ok(()));
    let keys = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x11, 0x11, 0, 0, 0, 0, 0, 0, 0x22, 0x22];
    assert_eq!(world.read(0), keys);
    let reservation = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x22, 0x22, 0, 0, 0, 0, 0, 6, 0, 0];
    assert_eq!(world.read(1), reservation);
    let status = world.read(3);
    assert_eq!(status[..8], [0, 0, 0, 2, 0, 0, 0, 96]);
    let mut holder = vec![0, 0, 0, 0, 0, 0, 0x22, 0x22, 0, 0, 0, 0, 0x01, 6, 0, 0, 0, 0, 0, 3, 0, 0, 0, 24];
    holder.extend(id(0xC));
    assert_eq!(status[56..], holder);
    assert_eq!(status[8 + 12..8 + 14], [0, 0], "a registrant is no holder");
    assert_eq!(world.data(A, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 12, 0]), keys[..12]);
    assert_eq!(world.data(A, &[0x5E, 1, 0, 0, 0, 0, 0, 0, 0, 0]), []);
}

#[test]
fn registering() {
    let mut world = World::new();
    assert_eq!(world.out(A, REGISTER, 0, (0, 0), 0), Ok(()));
    assert_eq!(world.generation(), 0, "nothing was done");
    assert_eq!(world.out(A, REGISTER, 0, (1, 5), 0), CONFLICT, "not registered, so there is no key 1");
    assert_eq!(world.out(A, REGISTER, 0, (0, 5), 0), Ok(()));
    assert_eq!(world.out(A, REGISTER, 0, (0, 6), 0), CONFLICT);
    assert_eq!(world.out(A, REGISTER, 0, (5, 6), 0), Ok(()));
    assert_eq!(world.out(B, IGNORE, 0, (77, 7), 0), Ok(()));
    assert_eq!(world.out(A, IGNORE, 0, (77, 8), 0), Ok(()));
    assert_eq!((world.keys(), world.generation()), (vec![8, 7], 4));
    assert_eq!(world.out(B, REGISTER, 0, (8, 0), 0), CONFLICT, "another's key");
    assert_eq!(world.out(B, REGISTER, 0, (7, 0), 0), Ok(()));
    assert_eq!(world.out(A, IGNORE, 0, (0, 0), 0), Ok(()));
    assert_eq!((world.keys(), world.generation(), world.told()), (vec![], 6, NOBODY));
}

#[test]
fn registering_for_other_ports_and_others() {
    let mut world = World::new();
    assert_eq!(world.out(C, REGISTER, 0, (0, 5), ALL_TG_PT), Ok(()));
    let status = world.read(3);
    let ports: Vec<u8> = status[8..].chunks(48).map(|one| one[19]).collect();
    assert_eq!(ports, [3, 4], "both controllers of the initiator, and no one else's");
    assert_eq!(world.out(C2, REGISTER, 0, (5, 0), ALL_TG_PT), Ok(()));
    assert_eq!(world.keys(), []);
    let with_ids = |flags, ids: &[[u8; 24]]| {
        let mut list = list((0, 9), flags);
        list.extend((ids.len() as u32 * 24).to_be_bytes());
        ids.iter().for_each(|id| list.extend(id));
        list
    };
    let asked = with_ids(SPEC_I_PT | ALL_TG_PT, &[id(0xB), id(0xC)]);
    assert_eq!(result(world.send(A, REGISTER, 0, &asked)), Ok(()));
    assert_eq!(world.keys(), [9; 6], "A; B and C through A's port; B through its own; C through both of its own");
    assert_eq!(world.may(B), (true, true));
    assert_eq!(world.out(B, RESERVE, 5, (9, 0), 0), Ok(()), "B is registered where it can use it");
    let registered = Err(Some(Sense::invalid_field(1, Some(4))));
    let mut again = with_ids(SPEC_I_PT, &[id(1)]);
    again[..8].copy_from_slice(&9u64.to_be_bytes());
    assert_eq!(result(world.send(A, REGISTER, 0, &again)), registered);
    let mut world = World::new();
    let mut other_protocol = id(1);
    other_protocol[0] = 5;
    assert_eq!(result(world.send(A, REGISTER, 0, &with_ids(SPEC_I_PT, &[other_protocol]))), invalid(28, None));
    let mut wrong_len = with_ids(SPEC_I_PT, &[id(1)]);
    wrong_len[27] = 23;
    assert_eq!(result(world.send(A, REGISTER, 0, &wrong_len)), invalid(24, None));
    let asked = with_ids(SPEC_I_PT, &[id(1)]);
    assert_eq!(result(world.send(A, IGNORE, 0, &asked)), invalid(20, Some(3)));
    assert_eq!(result(world.send(A, CLEAR, 0, &asked)), invalid(20, Some(3)));
    assert_eq!(result(world.send(A, REGISTER, 0, &with_ids(0, &[]))), Err(Some(Sense::LIST_LENGTH)));
    assert_eq!(result(world.send(A, REGISTER, 0, &[0; 23])), Err(Some(Sense::LIST_LENGTH)));
    let full: Vec<[u8; 24]> = (100..400).map(id).collect();
    let Err(Some(sense)) = result(world.send(A, REGISTER, 0, &with_ids(SPEC_I_PT, &full))) else { panic!() };
    assert_eq!((sense.code(), world.keys()), (0x5504, vec![]), "all or nothing");
    let Err(Some(sense)) = result(world.send(A, REGISTER, 0, &with_ids(SPEC_I_PT, &[id(1); 257]))) else { panic!() };
    assert_eq!((sense.code(), world.keys()), (0x5504, vec![]), "a list that is too long, whatever it says");
    assert_eq!(result(world.send(A, REGISTER, 0, &with_ids(SPEC_I_PT, &[id(1); 256]))), Ok(()));
    assert_eq!(world.keys(), [9, 9], "an initiator that is listed again is no other");
    // Who may not register has nothing of its list looked at.
    assert_eq!(result(world.send(A, REGISTER, 0, &with_ids(SPEC_I_PT, &[other_protocol]))), CONFLICT);
}

#[test]
fn a_port_that_gets_another_number_while_a_change_is_saved() {
    let shelf = Arc::new(Shelf::default());
    let mut world = World::kept(&shelf, Some(&Sections::new()));
    let Action::Save(save) = world.send(A, REGISTER, 0, &list((0, 1), APTPL)) else { panic!() };
    let again = Nexus::new(0xA, "vm0".into(), 77, 0);
    let _path = world.unit.attach(again, 0);
    save.done(true);
    assert_eq!(world.read(3)[8 + 18..8 + 20], [0, 77]);
}

#[test]
fn reserving_and_releasing() {
    let mut world = World::new();
    assert_eq!(world.out(A, RESERVE, 1, (0, 0), 0), CONFLICT, "not registered");
    world.register(A, 1);
    world.register(B, 2);
    assert_eq!(world.out(A, RESERVE, 1, (2, 0), 0), CONFLICT, "another's key");
    assert_eq!(world.out(A, RESERVE, 0x11, (1, 0), 0), Err(Some(Sense::invalid_field(2, Some(7)))));
    for kind in [0, 2, 4, 9, 15] {
        assert_eq!(world.out(A, RESERVE, kind, (1, 0), 0), Err(Some(Sense::invalid_field(2, Some(3)))));
    }
    assert_eq!(world.out(A, RELEASE, 3, (1, 0), 0), Ok(()), "nothing to release");
    assert_eq!(world.out(A, RESERVE, 3, (1, 0), 0), Ok(()));
    assert_eq!(world.out(A, RESERVE, 3, (1, 0), 0), Ok(()), "once more");
    assert_eq!(world.out(A, RESERVE, 1, (1, 0), 0), CONFLICT, "another type");
    assert_eq!(world.out(B, RESERVE, 3, (2, 0), 0), CONFLICT);
    assert_eq!(world.out(B, RELEASE, 3, (2, 0), 0), Ok(()), "not the holder: nothing");
    assert_eq!(world.held(), Some((1, 3)));
    let Err(Some(sense)) = world.out(A, RELEASE, 1, (1, 0), 0) else { panic!() };
    assert_eq!(sense.code(), 0x2604);
    assert_eq!(world.out(A, RELEASE, 3, (1, 0), 0), Ok(()));
    assert_eq!((world.held(), world.generation(), world.told()), (None, 2, NOBODY));
    // Registrants who shared it are told.
    assert_eq!(world.out(A, RESERVE, 5, (1, 0), 0), Ok(()));
    assert_eq!(world.out(A, RELEASE, 5, (1, 0), 0), Ok(()));
    assert_eq!(world.told(), only(B, RELEASED));
    // All hold it, so each may release it.
    assert_eq!(world.out(A, RESERVE, 7, (1, 0), 0), Ok(()));
    assert_eq!(world.held(), Some((0, 7)));
    assert_eq!(world.out(B, RESERVE, 7, (2, 0), 0), Ok(()));
    assert_eq!(world.out(B, RELEASE, 7, (2, 0), 0), Ok(()));
    assert_eq!((world.held(), world.told()), (None, only(A, RELEASED)));
}

#[test]
fn a_reservation_ends_with_its_holder() {
    for (kind, told) in [(1, NOBODY), (3, NOBODY), (5, only(B, RELEASED)), (6, only(B, RELEASED))] {
        let mut world = World::new();
        world.register(A, 1);
        world.register(B, 2);
        assert_eq!(world.out(A, RESERVE, kind, (1, 0), 0), Ok(()));
        assert_eq!(world.out(A, REGISTER, 0, (1, 0), 0), Ok(()));
        assert_eq!((world.held(), world.told(), world.keys()), (None, told, vec![2]));
    }
    for kind in [7, 8] {
        let mut world = World::new();
        world.register(A, 1);
        world.register(B, 2);
        assert_eq!(world.out(A, RESERVE, kind, (1, 0), 0), Ok(()));
        assert_eq!(world.out(A, REGISTER, 0, (1, 0), 0), Ok(()));
        assert_eq!(world.held(), Some((0, kind)), "the others hold it still");
        assert_eq!(world.out(B, REGISTER, 0, (2, 0), 0), Ok(()));
        assert_eq!((world.held(), world.told()), (None, NOBODY));
    }
}

#[test]
fn clearing() {
    let mut world = World::new();
    world.register(A, 1);
    world.register(B, 2);
    assert_eq!(world.out(A, RESERVE, 1, (1, 0), 0), Ok(()));
    assert_eq!(world.out(C, CLEAR, 0, (1, 0), 0), CONFLICT);
    assert_eq!(world.out(B, CLEAR, 0, (1, 0), 0), CONFLICT);
    assert_eq!(world.out(B, CLEAR, 0, (2, 0), 0), Ok(()));
    assert_eq!((world.keys(), world.generation()), (vec![], 3));
    world.told();
    let mut world = World::new();
    world.register(A, 1);
    world.register(B, 2);
    assert_eq!(world.out(B, CLEAR, 0, (2, 0), 0), Ok(()));
    assert_eq!(world.told(), only(A, Attention::ReservationsPreempted));
}

#[test]
fn preempting() {
    // Without a reservation: registrations go, one's own too.
    let mut world = World::new();
    for (of, key) in [(A, 1), (B, 2), (C, 2)] {
        world.register(of, key);
    }
    assert_eq!(world.out(A, PREEMPT, 1, (1, 0), 0), invalid(8, None));
    assert_eq!(world.out(A, PREEMPT, 1, (1, 9), 0), CONFLICT, "nobody has that key");
    assert_eq!(world.out(A, PREEMPT, 1, (1, 2), 0), Ok(()));
    assert_eq!(world.told(), [vec![], vec![PREEMPTED], vec![PREEMPTED], vec![]]);
    assert_eq!((world.keys(), world.held(), world.generation()), (vec![1], None, 4));
    assert_eq!(world.out(A, PREEMPT, 1, (1, 1), 0), Ok(()));
    assert_eq!((world.keys(), world.told()), (vec![], NOBODY));
    // The holder's key: the reservation changes hands, and the others hear of another type.
    for (kind, told) in [(5, vec![]), (6, vec![RELEASED])] {
        let mut world = World::new();
        for (of, key) in [(A, 1), (B, 2), (C, 3)] {
            world.register(of, key);
        }
        assert_eq!(world.out(B, RESERVE, 5, (2, 0), 0), Ok(()));
        assert_eq!(world.out(A, PREEMPT, kind, (1, 0), 0), invalid(8, None));
        assert_eq!(world.out(A, PREEMPT, kind, (1, 2), 0), Ok(()));
        assert_eq!(world.told(), [vec![], vec![PREEMPTED], told, vec![]]);
        assert_eq!((world.keys(), world.held()), (vec![1, 3], Some((1, kind))));
        // One's own: another type for what one holds.
        assert_eq!(world.out(A, PREEMPT, 1, (1, 1), 0), Ok(()));
        assert_eq!((world.keys(), world.held(), world.told()), (vec![1, 3], Some((1, 1)), only(C, RELEASED)));
        // Not the holder's key.
        assert_eq!(world.out(A, PREEMPT, 3, (1, 3), 0), Ok(()));
        assert_eq!((world.keys(), world.held(), world.told()), (vec![1], Some((1, 1)), only(C, PREEMPTED)));
    }
}

#[test]
fn preempting_all_registrants() {
    let mut world = World::new();
    for (of, key) in [(A, 1), (B, 2), (C, 3)] {
        world.register(of, key);
    }
    assert_eq!(world.out(B, RESERVE, 7, (2, 0), 0), Ok(()));
    assert_eq!(world.out(A, PREEMPT, 1, (1, 3), 0), Ok(()));
    assert_eq!((world.keys(), world.held(), world.told()), (vec![1, 2], Some((0, 7)), only(C, PREEMPTED)));
    assert_eq!(world.out(A, PREEMPT, 1, (1, 0), 0), Ok(()));
    assert_eq!((world.keys(), world.held(), world.told()), (vec![1], Some((1, 1)), only(B, PREEMPTED)));
    // The last of all takes only itself away: nobody holds it any more.
    let mut world = World::new();
    world.register(A, 1);
    assert_eq!(world.out(A, RESERVE, 8, (1, 0), 0), Ok(()));
    assert_eq!(world.out(A, PREEMPT, 1, (1, 1), 0), Ok(()));
    assert_eq!((world.keys(), world.held()), (vec![], None));
}

#[test]
fn preempting_and_aborting() {
    let mut world = World::new();
    for (of, key) in [(A, 1), (B, 2), (C, 2)] {
        world.register(of, key);
    }
    let Action::Abort(preempted) = world.send(A, PREEMPT_AND_ABORT, 1, &list((1, 2), 0)) else { panic!() };
    assert_eq!([A, B, C, C2].map(|of| world.paths[of].is_preempted(preempted)), [false, true, true, false]);
    world.told();
    world.register(B, 2);
    let Action::Abort(later) = world.send(A, PREEMPT_AND_ABORT, 1, &list((1, 2), 0)) else { panic!() };
    assert_eq!([A, B, C, C2].map(|of| world.paths[of].is_preempted(later)), [false, true, false, false]);
    assert_eq!(world.out(A, PREEMPT_AND_ABORT, 1, (1, 2), 0), CONFLICT);
}

/// All who are registered with the key are preempted, the asker among them: only the command itself is spared.
#[test]
fn preempting_and_aborting_ones_own() {
    let ended = |world: &World, preempted| [A, B, C].map(|of| world.paths[of].is_preempted(preempted));
    let mut world = World::new();
    for (of, key) in [(A, 1), (B, 1), (C, 3)] {
        world.register(of, key);
    }
    assert_eq!(world.out(A, RESERVE, 1, (1, 0), 0), Ok(()));
    let Action::Abort(by) = world.send(A, PREEMPT_AND_ABORT, 1, &list((1, 1), 0)) else { panic!() };
    assert_eq!((ended(&world, by), world.keys()), ([true, true, false], vec![1, 3]));
    assert_eq!(world.told(), only(B, PREEMPTED));
    assert_eq!(world.out(A, RELEASE, 1, (1, 0), 0), Ok(()));
    let Action::Abort(by) = world.send(A, PREEMPT_AND_ABORT, 1, &list((1, 1), 0)) else { panic!() };
    assert_eq!((ended(&world, by), world.keys()), ([true, false, false], vec![3]));
    world.register(A, 1);
    assert_eq!(world.out(C, RESERVE, 7, (3, 0), 0), Ok(()));
    let Action::Abort(by) = world.send(A, PREEMPT_AND_ABORT, 7, &list((1, 0), 0)) else { panic!() };
    assert_eq!((ended(&world, by), world.keys()), ([true, false, true], vec![1]));
}

#[test]
fn moving() {
    let mut world = World::new();
    world.register(A, 1);
    let no_reservation = Err(Some(Sense::invalid_field(1, Some(4))));
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 0, 2, 0xB))), no_reservation);
    world.register(C, 3);
    assert_eq!(world.out(A, RESERVE, 5, (1, 0), 0), Ok(()));
    assert_eq!(result(world.send(C, MOVE, 0, &move_list((3, 7), 0, 2, 0xB))), CONFLICT, "not the holder");
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((2, 7), 0, 2, 0xB))), CONFLICT, "not its key");
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 0), 0, 2, 0xB))), invalid(8, None));
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 0, 1, 0xA))), invalid(24, None), "to itself");
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 0, 99, 0xB))), invalid(18, None), "no such port");
    let mut wrong = move_list((1, 7), 0, 2, 0xB);
    wrong[24] = 0x46;
    assert_eq!(result(world.send(A, MOVE, 0, &wrong)), invalid(24, None));
    wrong[23] = 23;
    assert_eq!(result(world.send(A, MOVE, 0, &wrong)), Err(Some(Sense::LIST_LENGTH)));
    assert_eq!(result(world.send(A, MOVE, 0, &wrong[..24])), Err(Some(Sense::LIST_LENGTH)));
    assert_eq!(world.generation(), 2);
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 0, 2, 0xB))), Ok(()));
    assert_eq!((world.keys(), world.held(), world.generation()), (vec![1, 3, 7], Some((7, 5)), 3));
    // To one that is registered: its key changes. With UNREG the giver's registration goes.
    assert_eq!(result(world.send(B, MOVE, 0, &move_list((7, 8), 2, 3, 0xC))), Ok(()));
    assert_eq!((world.keys(), world.held(), world.told()), (vec![1, 8], Some((8, 5)), NOBODY));
    // What all hold cannot be moved.
    let mut world = World::new();
    world.register(A, 1);
    assert_eq!(world.out(A, RESERVE, 7, (1, 0), 0), Ok(()));
    assert_eq!(result(world.send(A, MOVE, 0, &move_list((1, 7), 0, 2, 0xB))), CONFLICT);
}

#[test]
fn reserve_and_release_of_scsi_2() {
    for (reserve, release) in [(0x16, 0x17), (0x56, 0x57)] {
        let mut world = World::new();
        assert_eq!(result(world.execute(A, &[reserve])), Ok(()));
        assert_eq!(result(world.execute(A, &[reserve])), Ok(()));
        assert_eq!(result(world.execute(B, &[reserve])), CONFLICT);
        assert_eq!((world.may(A), world.may(B)), ((true, true), (false, false)));
        assert_eq!(result(world.execute(B, &[0x00])), CONFLICT, "TEST UNIT READY");
        world.data(B, &[0x12, 0, 0, 0, 36]);
        world.data(B, &[0x25]);
        for of in [A, B] {
            assert_eq!(result(world.execute(of, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0])), CONFLICT);
            assert_eq!(world.out(of, REGISTER, 0, (0, 1), 0), CONFLICT);
        }
        assert_eq!(result(world.execute(B, &[release])), Ok(()));
        assert_eq!(world.may(B), (false, false), "not B's to release");
        assert_eq!(result(world.execute(A, &[release])), Ok(()));
        assert_eq!(world.may(B), (true, true));
        // It ends with a reset, a lost nexus, a path that goes.
        assert_eq!(result(world.execute(A, &[reserve])), Ok(()));
        world.unit.reset(Some(&world.paths[B]));
        world.told();
        assert_eq!(world.may(B), (true, true));
        assert_eq!(result(world.execute(A, &[reserve])), Ok(()));
        assert_eq!(world.may(B), (false, false));
        world.paths[A].nexus().lost();
        world.told();
        assert_eq!(world.may(B), (true, true));
        assert_eq!(result(world.execute(A, &[reserve])), Ok(()));
        assert_eq!(world.unit.reservations().reserved_by, Some((0xA, "vm0".into())));
        world.unit.detach(&world.paths[A]);
        assert_eq!(world.may(B), (true, true));
        // Registrations keep it away.
        world.register(B, 1);
        assert_eq!(result(world.execute(B, &[reserve])), CONFLICT);
        assert_eq!(result(world.execute(B, &[release])), CONFLICT);
    }
}

#[test]
fn an_operator_clears() {
    let mut world = World::new();
    world.register(A, 1);
    world.register(B, 2);
    assert_eq!(world.out(A, RESERVE, 3, (1, 0), 0), Ok(()));
    let info = world.unit.reservations();
    assert_eq!((info.reservation_type, info.generation, info.durable), (Some(3), 2, false));
    assert_eq!(info.registrations.iter().map(|one| (one.key, one.holder)).collect::<Vec<_>>(), [(1, true), (2, false)]);
    assert_eq!(result(world.unit.clear_reservations()), Ok(()));
    let preempted = vec![Attention::ReservationsPreempted];
    assert_eq!(world.told(), [preempted.clone(), preempted, vec![], vec![]]);
    assert_eq!((world.may(C), world.keys()), ((true, true), vec![]));
    let mut world = World::new();
    assert_eq!(result(world.execute(A, &[0x16])), Ok(()));
    assert_eq!(result(world.unit.clear_reservations()), Ok(()));
    assert_eq!(world.may(B), (true, true));
}

#[test]
fn a_missing_device_can_be_reserved() {
    let mut world = World::new();
    world.unit.set_shape(None);
    world.register(A, 1);
    assert_eq!(world.out(A, RESERVE, 5, (1, 0), 0), Ok(()));
    assert_eq!(world.keys(), [1]);
}
