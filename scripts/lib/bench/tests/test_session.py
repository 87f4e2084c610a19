"""Turns: what is missing, what has failed, and when time is over."""

import contextlib
import io
import unittest
from pathlib import Path
from typing import Any

from bench.errors import BenchError, OutOfTime
from bench.lab import Options
from bench.plan import Lane
from bench.session import Session
from bench.store import Store

LANE = Lane("pollux", "bench")
KEY = "null/randread/4k/qd32/q1/vm1/own"


def session(turns: int, stop_after: float | None = None) -> Session:
    store = Store.new(None)
    store.begin({}, {}, {})
    return Session(Options(Path("/pollux"), ()), store, turns, stop_after)


class Turns(unittest.TestCase):
    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self.addCleanup(stack.close)
        self.asked = 0

    def measure(self) -> dict[str, Any]:
        self.asked += 1
        return {"iops": 1.0}

    def break_down(self) -> dict[str, Any]:
        self.asked += 1
        raise BenchError("no luck\nand a long story")

    def test_only_what_is_missing_is_measured(self) -> None:
        made = session(3)
        made.store.add(KEY, "pollux", "bench", 1, {"iops": 2.0})
        for turn in range(3):
            made.sample(KEY, LANE, turn, self.measure)
        self.assertEqual((self.asked, made.missing(KEY, LANE)), (2, []))
        self.assertEqual(made.store.numbers(KEY, "pollux", "bench", "iops"), {0: 1.0, 1: 2.0, 2: 1.0})

    def test_what_fails_is_given_up_and_told(self) -> None:
        made = session(3)
        for turn in range(3):
            made.sample(KEY, LANE, turn, self.break_down)
            made.sample("other", LANE, turn, self.measure)
        self.assertEqual((self.asked, len(made.failed)), (4, 1))
        self.assertEqual([failure["why"] for failure in made.store.data["failures"]], ["no luck"])

    def test_when_time_is_over_nothing_more_begins(self) -> None:
        made = session(1, stop_after=-1.0)
        with self.assertRaises(OutOfTime):
            made.sample(KEY, LANE, 0, self.measure)
        self.assertEqual(self.asked, 0)
