//! Long runs that crash again and again, with requests of all kinds under way on several reactors; and what they notice if a
//! barrier is left out.

use super::prove::Proved;
use super::world::MIB;
use crate::testing::medium::Geometry;
use crate::testing::proof::{Length, Mutation, long_run};

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// One that has room and one that is soon full, of small blocks and of large ones.
fn geometry(seed: u64) -> Geometry {
    match seed % 4 {
        0 => Geometry::with_512(48 * MIB),
        1 => Geometry::with_512(5 * MIB),
        2 => Geometry { tear: 512, ..Geometry::with_4096(48 * MIB) },
        _ => Geometry::with_4096(5 * MIB),
    }
}

fn run(seed: u64, mutation: Option<Mutation>) -> Result<u64, String> {
    let length = Length { rounds: 8, acts: 60, others: 3 };
    let failure = |failure: crate::testing::proof::Failure| format!("seed {seed}: {}", failure.why);
    let geometry = geometry(seed);
    match geometry.block_size {
        512 => long_run::<Proved<1>>(geometry, 1024, seed, length, mutation).map_err(failure),
        _ => long_run::<Proved<8>>(geometry, 128, seed, length, mutation).map_err(failure),
    }
}

/// `POLLUX_SIM_SEEDS=1000` runs as many; `POLLUX_SIM_SEED=7` runs that one.
#[test]
fn long_runs_survive() {
    let only = from_env("POLLUX_SIM_SEED", u64::MAX);
    let seeds = if only == u64::MAX { 0..from_env("POLLUX_SIM_SEEDS", 8) } else { only..only + 1 };
    let outcomes: Vec<_> = seeds.map(|seed| run(seed, None)).collect();
    let crashes: u64 = outcomes.iter().flatten().sum();
    let failures: Vec<&String> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let few: Vec<String> = failures.iter().take(5).map(|why| why.chars().take(2000).collect()).collect();
    assert!(failures.is_empty(), "{} are red, after {crashes} good crashes; the first: {few:#?}", failures.len());
}

#[test]
fn long_runs_notice_a_barrier_that_is_left_out() {
    for mutation in [Mutation::DropFlush("commit.barrier"), Mutation::DropFua("commit.log")] {
        assert!((0..20).any(|seed| run(seed, Some(mutation)).is_err()), "{mutation:?}");
    }
}
