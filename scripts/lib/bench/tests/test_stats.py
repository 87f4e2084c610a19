"""Medians, spreads, ratios."""

import os
import unittest

from bench.stats import Spread, ratio, spread
from bench.wakeup import bare_wakeups, percentiles


class Stats(unittest.TestCase):
    def test_spread_of_a_known_set(self) -> None:
        self.assertEqual(spread([5, 1, 3, 2, 4]), Spread(5, 3, 1, 2, 4, 5))
        self.assertEqual(spread([7]), Spread(1, 7, 7, 7, 7, 7))
        self.assertEqual(spread([2, 1]), Spread(2, 1.5, 1, 1, 2, 2))

    def test_an_empty_list_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            spread([])

    def test_a_ratio_is_of_medians_over_shared_turns(self) -> None:
        # turn 3 has no counterpart and turn 4 nothing to divide by: neither counts
        found = ratio({0: 10, 1: 12, 2: 30, 3: 1000, 4: 7}, {0: 10, 1: 10, 2: 10, 4: 0})
        assert found is not None
        self.assertAlmostEqual(found.value, 1.2)
        self.assertEqual((found.turns.count, found.turns.low, found.turns.high), (3, 1.0, 3.0))

    def test_one_outlier_moves_the_spread_but_not_the_ratio(self) -> None:
        under = dict.fromkeys(range(5), 100.0)
        over = dict.fromkeys(range(5), 120.0) | {2: 1.0}
        found = ratio(over, under)
        assert found is not None
        self.assertEqual((found.value, found.turns.low), (1.2, 0.01))

    def test_percentiles_are_values_that_were_seen(self) -> None:
        self.assertEqual(percentiles(list(range(100, 0, -1))), {"p50": 50.0, "p90": 90.0, "p99": 99.0})
        self.assertEqual(percentiles([7]), {"p50": 7.0, "p90": 7.0, "p99": 7.0})

    def test_a_sleeper_wakes(self) -> None:
        core = min(os.sched_getaffinity(0))
        before = os.sched_getaffinity(0)
        # one core for both is slow, and goes well
        self.assertGreater(bare_wakeups(core, core, 1_000_000, 0.003)["p50"], 0)
        self.assertEqual(os.sched_getaffinity(0), before)

    def test_nothing_shared_is_no_ratio(self) -> None:
        self.assertIsNone(ratio({0: 1.0}, {1: 1.0}))
        self.assertIsNone(ratio({}, {}))
