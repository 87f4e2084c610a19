//! The state machine against a model that is written another way: for each nexus its key, and who holds what. After each
//! service action both agree on the answer, the state, and who was told of what.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::out::{Effects, Refusal, Register};
use super::{Kind, Member, NexusName, Reservations};
use crate::{Attention, Nexus};

const NEXUSES: usize = 4;
const KEYS: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Order {
    /// `elsewhere`: also through the next nexus, as with ALL_TG_PT. `others`: also the two behind it, as with SPEC_I_PT.
    Register {
        key: Option<u64>,
        new_key: u64,
        durable: bool,
        elsewhere: bool,
        others: bool,
    },
    Reserve(u64, Kind),
    Release(u64, Kind),
    Clear(u64),
    Preempt(u64, u64, Kind),
    Move {
        key: u64,
        to: usize,
        new_key: u64,
        unregister: bool,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    keys: BTreeMap<usize, u64>,
    /// Type, and the holder unless all are.
    held: Option<(u8, Option<usize>)>,
    generation: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Good,
    Conflict,
    Check(u16),
}

type Told = Vec<(usize, Attention)>;

const fn elsewhere_of(who: usize) -> usize {
    (who + 1) % NEXUSES
}

const fn others_of(who: usize) -> [usize; 2] {
    [(who + 2) % NEXUSES, (who + 3) % NEXUSES]
}

fn is_all(kind: u8) -> bool {
    kind >= 7
}

fn shares(kind: u8) -> bool {
    kind >= 5
}

impl Model {
    fn holds(&self, who: usize) -> bool {
        match self.held {
            Some((_, Some(holder))) => holder == who,
            Some((_, None)) => self.keys.contains_key(&who),
            None => false,
        }
    }

    /// Those registered with this key; with 0, everybody.
    fn registered_with(&self, key: u64) -> Vec<usize> {
        self.keys.iter().filter(|(_, of)| key == 0 || **of == key).map(|(who, _)| *who).collect()
    }

    fn others(&self, than: usize, what: Attention) -> Told {
        self.keys.keys().filter(|who| **who != than).map(|who| (*who, what)).collect()
    }

    fn holder_for(kind: Kind, who: usize) -> Option<(u8, Option<usize>)> {
        let kind = kind as u8;
        Some((kind, if is_all(kind) { None } else { Some(who) }))
    }

    /// One nexus gets this key, or loses its own.
    fn register(&mut self, who: usize, new_key: u64) -> Told {
        if new_key != 0 {
            self.keys.insert(who, new_key);
            return Vec::new();
        }
        if self.keys.remove(&who).is_none() {
            return Vec::new();
        }
        match self.held {
            Some((kind, Some(holder))) if holder == who => {
                self.held = None;
                if shares(kind) { self.others(who, Attention::ReservationsReleased) } else { Vec::new() }
            }
            Some((_, None)) if self.keys.is_empty() => {
                self.held = None;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn apply(&mut self, who: usize, order: Order) -> (Answer, Told) {
        let mine = self.keys.get(&who).copied();
        let nothing = |answer| (answer, Vec::new());
        let proof = match order {
            Order::Register { .. } => None,
            Order::Reserve(key, _) | Order::Release(key, _) | Order::Clear(key) | Order::Preempt(key, ..) => Some(key),
            Order::Move { key, .. } => Some(key),
        };
        if proof.is_some() && proof != mine {
            return nothing(Answer::Conflict);
        }
        match order {
            Order::Register { key, new_key, elsewhere, others, .. } => {
                if key.is_some_and(|key| key != mine.unwrap_or(0)) {
                    return nothing(Answer::Conflict);
                }
                if mine.is_some() && others {
                    return nothing(Answer::Check(0x2400));
                }
                if mine.is_none() && new_key == 0 {
                    return nothing(Answer::Good);
                }
                self.generation += 1;
                let mut told = self.register(who, new_key);
                let next = elsewhere_of(who);
                if elsewhere && key.is_none_or(|key| key == self.keys.get(&next).copied().unwrap_or(0)) {
                    told.extend(self.register(next, new_key));
                }
                for other in others_of(who).into_iter().filter(|_| others) {
                    self.keys.entry(other).or_insert(new_key);
                }
                (Answer::Good, told)
            }
            Order::Reserve(_, kind) => match self.held {
                None => {
                    self.held = Model::holder_for(kind, who);
                    nothing(Answer::Good)
                }
                Some((held, _)) if self.holds(who) && held == kind as u8 => nothing(Answer::Good),
                Some(_) => nothing(Answer::Conflict),
            },
            Order::Release(_, kind) => match self.held {
                Some((held, _)) if self.holds(who) && held == kind as u8 => {
                    self.held = None;
                    let told =
                        if shares(held) { self.others(who, Attention::ReservationsReleased) } else { Vec::new() };
                    (Answer::Good, told)
                }
                Some(_) if self.holds(who) => nothing(Answer::Check(0x2604)),
                _ => nothing(Answer::Good),
            },
            Order::Clear(_) => {
                let told = self.others(who, Attention::ReservationsPreempted);
                *self = Model { generation: self.generation + 1, ..Model::default() };
                (Answer::Good, told)
            }
            Order::Preempt(_, victim, kind) => self.preempt(who, victim, kind),
            Order::Move { to, new_key, unregister, .. } => match self.held {
                None => nothing(Answer::Check(0x2400)),
                Some((_, Some(holder))) if holder == who => {
                    if new_key == 0 || to == who {
                        return nothing(Answer::Check(0x2600));
                    }
                    self.keys.insert(to, new_key);
                    self.held = self.held.map(|(kind, _)| (kind, Some(to)));
                    if unregister {
                        self.keys.remove(&who);
                    }
                    self.generation += 1;
                    nothing(Answer::Good)
                }
                Some(_) => nothing(Answer::Conflict),
            },
        }
    }

    fn preempt(&mut self, who: usize, victim: u64, kind: Kind) -> (Answer, Told) {
        let before = self.keys.clone();
        let (takes, gone): (bool, Vec<usize>) = match self.held {
            Some((_, None)) if victim == 0 => (true, before.keys().copied().filter(|one| *one != who).collect()),
            _ if victim == 0 => return (Answer::Check(0x2600), Vec::new()),
            Some((_, Some(holder))) if before[&holder] == victim => (
                true,
                before.iter().filter(|(one, key)| **key == victim && **one != who).map(|(one, _)| *one).collect(),
            ),
            _ => (false, before.iter().filter(|(_, key)| **key == victim).map(|(one, _)| *one).collect()),
        };
        if victim != 0 && !before.values().any(|key| *key == victim) {
            return (Answer::Conflict, Vec::new());
        }
        self.keys.retain(|one, _| !gone.contains(one));
        let mut told: Told =
            gone.iter().filter(|one| **one != who).map(|one| (*one, Attention::RegistrationsPreempted)).collect();
        if takes {
            if self.held.is_some_and(|(held, _)| held != kind as u8) {
                told.extend(self.others(who, Attention::ReservationsReleased));
            }
            self.held = Model::holder_for(kind, who);
        } else if self.keys.is_empty() {
            self.held = None;
        }
        self.generation += 1;
        (Answer::Good, told)
    }
}

fn member(who: usize) -> Member {
    let name = NexusName { initiator: who as u64, target_port: format!("vm{who}") };
    Member { name, relative_port: who as u16 + 1 }
}

fn nexus(who: usize) -> std::sync::Arc<Nexus> {
    Nexus::new(who as u64, format!("vm{who}"), who as u16 + 1, 0)
}

fn carry_out(state: &mut Reservations, who: usize, order: Order) -> Result<Effects, Refusal> {
    let from = member(who);
    let name = &from.name;
    match order {
        Order::Register { key, new_key, durable, elsewhere, others } => {
            let elsewhere: Vec<Member> = if elsewhere { vec![member(elsewhere_of(who))] } else { Vec::new() };
            let listed = others_of(who).map(member);
            let others = others.then_some(&listed[..]);
            state.register(&Register { from: &from, key, new_key, durable, elsewhere: &elsewhere, others })
        }
        Order::Reserve(key, kind) => state.reserve(name, key, kind),
        Order::Release(key, kind) => state.release(name, key, kind),
        Order::Clear(key) => state.clear(name, key),
        Order::Preempt(key, victim, kind) => state.preempt(name, key, victim, kind),
        Order::Move { key, to, new_key, unregister } => {
            state.register_and_move(name, key, &member(to), new_key, (unregister, false))
        }
    }
}

fn orders() -> impl Strategy<Value = Vec<(usize, Order)>> {
    let key = || 0..=KEYS;
    let kind = || prop::sample::select(Kind::ALL.to_vec());
    let order = prop_oneof![
        6 => (prop::option::weighted(0.4, key()), key(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.3))
            .prop_map(|(key, new_key, durable, elsewhere, others)| {
                Order::Register { key, new_key, durable, elsewhere, others }
            }),
        4 => (key(), kind()).prop_map(|(key, kind)| Order::Reserve(key, kind)),
        2 => (key(), kind()).prop_map(|(key, kind)| Order::Release(key, kind)),
        1 => key().prop_map(Order::Clear),
        4 => (key(), key(), kind()).prop_map(|(key, victim, kind)| Order::Preempt(key, victim, kind)),
        2 => (key(), 0..NEXUSES, key(), any::<bool>())
            .prop_map(|(key, to, new_key, unregister)| Order::Move { key, to, new_key, unregister }),
    ];
    prop::collection::vec((0..NEXUSES, order), 1..60)
}

fn seen(state: &Reservations) -> Model {
    let number = |name: &NexusName| name.initiator as usize;
    Model {
        keys: state.registrations.iter().map(|known| (number(&known.member.name), known.key)).collect(),
        held: state.reservation.as_ref().map(|held| (held.kind as u8, held.holder.as_ref().map(number))),
        generation: state.generation,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_the_model_does(orders in orders()) {
        let (mut state, mut model) = (Reservations::default(), Model::default());
        for (who, order) in orders {
            let mut next = state.clone();
            let expected_preempted = match order {
                // Whoever has the key, or everybody whom an all-registrants type makes a holder: the asker, too.
                Order::Preempt(_, victim, _) => model.registered_with(victim),
                _ => Vec::new(),
            };
            let (expected, mut expected_told) = model.apply(who, order);
            let (answer, mut told) = match carry_out(&mut next, who, order) {
                Ok(effects) => {
                    state = next;
                    let told = effects.told.iter().map(|(name, what)| (name.initiator as usize, *what)).collect();
                    let mut preempted: Vec<_> = effects.preempted.iter().map(|name| name.initiator as usize).collect();
                    preempted.sort_unstable();
                    prop_assert_eq!(preempted, expected_preempted);
                    (Answer::Good, told)
                }
                Err(Refusal::Conflict) => (Answer::Conflict, Vec::new()),
                Err(Refusal::Sense(sense)) => (Answer::Check(sense.code()), Vec::new()),
            };
            told.sort_by_key(|(who, what)| (*who, *what as u8));
            expected_told.sort_by_key(|(who, what)| (*who, *what as u8));
            prop_assert_eq!((answer, told), (expected, expected_told), "{} {:?}", who, order);
            prop_assert_eq!(seen(&state), model.clone());
            prop_assert!(state.is_sound());
            for who in 0..NEXUSES {
                let registered = model.keys.contains_key(&who);
                let fenced = model.held.is_some_and(|(kind, _)| !(model.holds(who) || shares(kind) && registered));
                prop_assert_eq!(state.fences(&nexus(who)), fenced);
            }
            let kept = Reservations::from_text(&state.to_text()).expect("what was written can be read");
            let expected = if state.durable && !state.registrations.is_empty() {
                Reservations { generation: 0, ..state.clone() }
            } else {
                Reservations::default()
            };
            prop_assert_eq!(kept, expected);
        }
    }
}
