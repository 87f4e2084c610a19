//! What is learnt from arrivals of known patterns, and what that costs.

use proptest::prelude::*;

use super::*;

const MAX: u64 = 100_000;
/// Time of a look.
const LOOK: u64 = 100;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Time spent looking in vain.
    looked: u64,
    /// How many gaps ended by a wake-up.
    woken: u64,
    gaps: u64,
}

impl Cost {
    /// In the price that the policy reckons with.
    const fn total(self) -> u64 {
        self.looked + self.woken * MAX
    }
}

/// Who decides how long to look.
trait Policy {
    fn in_vain(&mut self, now: u64) -> bool;
    fn worked(&mut self, now: u64);
}

impl Policy for SpinBudget {
    fn in_vain(&mut self, now: u64) -> bool {
        SpinBudget::in_vain(self, now)
    }

    fn worked(&mut self, now: u64) {
        SpinBudget::worked(self, now);
    }
}

/// Always the same budget.
struct Fixed {
    budget: u64,
    since: Option<u64>,
}

impl Policy for Fixed {
    fn in_vain(&mut self, now: u64) -> bool {
        now - *self.since.get_or_insert(now) >= self.budget
    }

    fn worked(&mut self, _: u64) {
        self.since = None;
    }
}

/// Lets work come after each of `gaps`; a wake-up takes `wake`.
fn run(policy: &mut impl Policy, gaps: &[u64], wake: u64) -> Cost {
    let (mut now, mut cost) = (1_000_000, Cost::default());
    for &gap in gaps {
        let (start, end) = (now, now + gap);
        let mut asleep = false;
        while now < end && !asleep {
            asleep = policy.in_vain(now);
            if !asleep {
                now += LOOK;
            }
        }
        cost.looked += now - start;
        cost.gaps += 1;
        if asleep {
            cost.woken += 1;
            now = end + wake;
        }
        policy.worked(now);
    }
    cost
}

fn learnt(gaps: &[u64]) -> (SpinBudget, Cost) {
    let mut budget = SpinBudget::new(MAX);
    run(&mut budget, gaps, 5_000);
    let cost = run(&mut budget, gaps, 5_000);
    (budget, cost)
}

/// Short gaps with a long one after every `length` of them.
fn bursts(short: u64, length: usize, long: u64) -> Vec<u64> {
    (0..2000).map(|n| if n % length == length - 1 { long } else { short }).collect()
}

/// Gaps of a Pareto distribution, from a fixed seed.
fn pareto(least: f64, shape: f64) -> Vec<u64> {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((random >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        (least * uniform.powf(-1.0 / shape)).min(1e9) as u64
    };
    (0..4000).map(|_| next()).collect()
}

fn best_fixed(gaps: &[u64]) -> u64 {
    let budgets = (0..=MAX).step_by(1000);
    budgets.map(|budget| run(&mut Fixed { budget, since: None }, gaps, 5_000).total()).min().unwrap()
}

#[test]
fn a_short_regular_gap_is_looked_through() {
    for gap in [500, 2_000, 10_000, 60_000, 95_000] {
        let (budget, cost) = learnt(&vec![gap; 1000]);
        assert_eq!(cost.woken, 0, "gaps of {gap} ns");
        assert!(
            (gap..=MAX).contains(&budget.budget_ns()) && budget.budget_ns() <= 2 * gap.max(FIRST_END),
            "{budget:?}"
        );
    }
}

#[test]
fn a_gap_far_beyond_the_maximum_is_not_waited_for() {
    for gap in [150_000, 1_000_000, 1_000_000_000] {
        let (budget, cost) = learnt(&vec![gap; 1000]);
        assert_eq!((budget.budget, cost.woken), (0, 1000), "gaps of {gap} ns");
        // Only the probes look at all.
        assert!(cost.looked <= 1000 / u64::from(PROBE_EVERY) * (MAX + LOOK) + MAX, "{cost:?}");
    }
}

#[test]
fn a_burst_is_looked_through_and_its_end_is_not() {
    let gaps = bursts(3_000, 10, 5_000_000);
    let (budget, cost) = learnt(&gaps);
    assert_eq!(cost.woken, gaps.len() as u64 / 10, "one wake-up for each burst");
    assert_eq!(budget.budget, 4096);
}

#[test]
fn whatever_the_gaps_are_it_costs_little_more_than_the_best_fixed_budget() {
    for (name, gaps) in [
        ("regular", vec![30_000; 2000]),
        ("slow", vec![400_000; 2000]),
        ("bursts", bursts(3_000, 10, 5_000_000)),
        ("pairs", bursts(20_000, 2, 1_000_000)),
        ("rare bursts of two", bursts(1_000, 3, 300_000)),
        ("pareto, heavy", pareto(2_000.0, 0.7)),
        ("pareto, light", pareto(10_000.0, 1.5)),
    ] {
        let (_, cost) = learnt(&gaps);
        let best = best_fixed(&gaps);
        assert!(cost.total() <= best + best / 5, "{name}: {} and {best} at best", cost.total());
    }
}

#[test]
fn it_follows_a_change_of_the_gaps() {
    let mut budget = SpinBudget::new(MAX);
    run(&mut budget, &[1_000_000; 500], 5_000);
    assert_eq!(budget.budget, 0);
    run(&mut budget, &[8_000; 100], 5_000);
    assert_eq!(run(&mut budget, &[8_000; 100], 5_000).woken, 0);
    // Looking so briefly is worth it as long as one gap in a dozen is short.
    run(&mut budget, &[1_000_000; 200], 5_000);
    assert_eq!(budget.budget, 0);
}

/// Waking takes longer than the maximum, so each gap that is slept through looks too long to be looked through.
#[test]
fn slow_wake_ups_do_not_hide_short_gaps() {
    let mut budget = SpinBudget::new(MAX);
    run(&mut budget, &[1_000_000; 500], 2 * MAX);
    assert_eq!(budget.budget, 0);
    run(&mut budget, &[8_000; 2 * PROBE_EVERY as usize], 2 * MAX);
    assert_eq!(run(&mut budget, &[8_000; 100], 2 * MAX).woken, 0);
}

#[test]
fn nothing_is_learnt_from_work_that_follows_work() {
    let mut budget = SpinBudget::new(MAX);
    for now in 0..10_000 {
        budget.worked(now);
    }
    assert_eq!((budget.counted, budget.budget), (0, MAX));
}

#[test]
fn without_a_budget_the_first_look_is_the_last() {
    let mut budget = SpinBudget::new(0);
    assert!(budget.in_vain(5));
    run(&mut budget, &[300; 1000], 0);
    assert_eq!(budget.budget_ns(), 0);
}

#[test]
fn it_fits_into_a_cache_line() {
    assert!(size_of::<SpinBudget>() <= 64, "{}", size_of::<SpinBudget>());
}

proptest! {
    #[test]
    fn a_gap_lies_in_the_bucket_that_counts_it(gap in 0..=SPIN_MAX_NS) {
        let bucket = bucket_of(gap);
        prop_assert!(bucket < BUCKETS && gap <= end_of(bucket));
        prop_assert!(bucket == 0 || gap > end_of(bucket - 1));
    }

    /// Clocks may run backwards, gaps may be anything: budgets stay within bounds and counts add up.
    #[test]
    fn no_arrival_breaks_it(max in 0..2 * SPIN_MAX_NS, times in prop::collection::vec(any::<(u64, bool)>(), 0..600)) {
        let mut budget = SpinBudget::new(max);
        for (now, worked) in times {
            if worked {
                budget.worked(now);
            } else {
                budget.in_vain(now);
            }
            prop_assert!(budget.budget_ns() <= max.min(SPIN_MAX_NS));
            prop_assert_eq!(u32::from(budget.counted), budget.counts.iter().map(|n| u32::from(*n)).sum::<u32>());
        }
    }
}
