//! Storms from many seeds.

use super::{Spoil, Storm};

/// What a storm of a spoiled medium comes to.
pub(in crate::thin::tests) fn spoiled(seed: u64, crashes: u64, spoil: Spoil<'_>) -> Result<(), String> {
    let run = || Storm::new(seed, spoil)?.run(crashes);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| Err("it panics".into()))
}

/// Runs storms from these seeds; returns how many crashes there were.
fn storms(seeds: impl Iterator<Item = u64>, crashes: u64) -> u64 {
    let began = std::time::Instant::now();
    let others = number("POLLUX_STORM_OTHERS").unwrap_or(0);
    let (mut all, mut requests, mut orders, mut refused) = (0, 0, 0, 0);
    for seed in seeds {
        let told = Told(seed);
        let mut storm = Storm::new(seed, &|_| {}).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        storm.others = others;
        if let Err(what) = storm.run(crashes) {
            panic!(
                "seed {seed}, {what}\nto repeat: POLLUX_STORM={seed} POLLUX_STORM_CRASHES={crashes} POLLUX_STORM_OTHERS={others} \
                 cargo test -p pollux-bdev --lib thin::tests::storm"
            );
        }
        drop(told);
        (all, requests, orders) = (all + storm.crashes + storm.looks, requests + storm.requests, orders + storm.orders);
        refused += storm.refused;
    }
    eprintln!("{all} crashes, {requests} requests, {orders} orders, {refused} refused, {:?}", began.elapsed());
    all
}

/// Says which seed it was if the run panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the storm's seed was {}", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Seeds of each of the two tests, and crashes of each seed.
const SEEDS: u64 = 20;
const CRASHES: u64 = 250;
const _: () = assert!(2 * SEEDS * CRASHES >= 10_000, "every run of the tests has ten thousand crashes");

/// Two tests, for two processors.
fn half(nth: u64) {
    let crashes = number("POLLUX_STORM_CRASHES").unwrap_or(CRASHES);
    match number("POLLUX_STORM") {
        Some(seed) if nth == 0 => drop(storms(std::iter::once(seed), crashes)),
        Some(_) => {}
        None => {
            let (from, seeds) =
                (number("POLLUX_STORM_FROM").unwrap_or(1), number("POLLUX_STORM_SEEDS").unwrap_or(SEEDS));
            assert!(storms((from..from + seeds).map(|seed| 2 * seed + nth), crashes) >= seeds * crashes);
        }
    }
}

#[test]
fn a_pool_bears_storms() {
    half(0);
}

#[test]
fn a_pool_bears_other_storms() {
    half(1);
}
