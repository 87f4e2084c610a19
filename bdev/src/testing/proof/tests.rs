mod toy;

use super::*;
use crate::testing::medium::Geometry;
use toy::Toy;

const GEOMETRY: Geometry = Geometry::with_512(4 << 20);

fn start() -> Start {
    let acts = [
        Act::Create { blocks: 6 },
        Act::Create { blocks: 4 },
        Act::Write { volume: 0, first: 0, count: 3, fua: false },
        Act::Snapshot { volumes: vec![0] },
        Act::Write { volume: 0, first: 1, count: 1, fua: true },
    ];
    Start::new::<Toy>(GEOMETRY, &acts).unwrap()
}

fn acts() -> Vec<Act> {
    vec![
        Act::Write { volume: 0, first: 0, count: 2, fua: false },
        Act::Write { volume: 0, first: 1, count: 2, fua: true },
        Act::Flush { volume: 0 },
        Act::Discard { volume: 0, first: 1, count: 1 },
        Act::Snapshot { volumes: vec![0, 1] },
        Act::Clone { snapshot: 0 },
        Act::Delete { volume: 1 },
        Act::DeleteSnapshot { snapshot: 0 },
        Act::Rollback { volume: 0 },
        Act::Resize { volume: 0, blocks: 2 },
        Act::Resize { volume: 0, blocks: 8 },
    ]
}

/// Data, barrier, header: what the toy has.
const PAIRS: [(Option<&str>, Option<&str>); 1] = [(Some("data"), Some("header"))];

#[test]
fn a_pool_that_is_right_is_right_at_every_instant() {
    let (start, acts) = (start(), acts());
    let mut crashes = 0;
    for pace in [Pace::OneByOne, Pace::AtOnce] {
        for work in workloads(&acts, 2) {
            match sweep::<Toy>(&start, &work, pace, None, 2) {
                Ok(tally) => crashes += tally.crashes,
                Err(failure) => panic!("{failure}"),
            }
        }
    }
    assert!(crashes > 3000, "{crashes}");
}

#[test]
fn what_is_left_out_is_noticed() {
    let start = start();
    let works: Vec<Vec<Act>> = workloads(&acts(), 1).collect();
    let steps = steps::<Toy>(&start, &works).unwrap();
    let all = Mutation::all(&steps, &PAIRS);
    assert_eq!(
        all,
        [Mutation::DropFlush("barrier"), Mutation::DropFua("header"), Mutation::Swap(Some("data"), Some("header"))]
    );
    assert_eq!(mutants::<Toy>(&start, &works, &all, 0), []);
    assert_eq!(mutants::<Toy>(&start, &[vec![Act::Read { volume: 0, first: 0, count: 1 }]], &all, 0), all);
}

#[test]
fn workloads_are_all_there_are() {
    let acts = acts();
    let all: Vec<Vec<Act>> = workloads(&acts, 2).collect();
    assert_eq!(all.len(), acts.len() + acts.len() * acts.len());
    assert!(all.contains(&vec![acts[3].clone(), acts[0].clone()]));
}

#[test]
fn a_pool_that_is_right_stays_so_for_long() {
    let length = Length { rounds: 12, acts: 40, others: 3 };
    for seed in 0..12 {
        match long_run::<Toy>(GEOMETRY, 6, seed, length, None) {
            Ok(looks) => assert_eq!(looks, 12 * (1 + 3 + 2)),
            Err(failure) => panic!("seed {seed}: {failure}"),
        }
    }
}

#[test]
fn long_runs_notice_what_is_left_out() {
    let length = Length { rounds: 12, acts: 40, others: 3 };
    for mutation in [Mutation::DropFlush("barrier"), Mutation::DropFua("header")] {
        let red = (0..6).any(|seed| long_run::<Toy>(GEOMETRY, 6, seed, length, Some(mutation)).is_err());
        assert!(red, "{mutation:?}");
    }
}
