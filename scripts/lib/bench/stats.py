"""Medians, spreads and ratios of samples. Pure functions."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What a list of samples looks like."""

    count: int
    median: float
    low: float
    q1: float
    q3: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles and extremes. The quartiles of one or two samples are the extremes."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    if len(ordered) < 3:
        q1, q3 = ordered[0], ordered[-1]
    else:
        q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(len(ordered), statistics.median(ordered), ordered[0], q1, q3, ordered[-1])


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians, and how the ratios of single turns lie around it."""

    value: float
    turns: Spread


def ratio(over: dict[int, float], under: dict[int, float]) -> Ratio | None:
    """Median of `over` by median of `under` (both by turn), over the turns that both have; None without any."""
    turns = sorted(turn for turn in over.keys() & under.keys() if under[turn] > 0)
    if not turns:
        return None
    top = statistics.median(over[turn] for turn in turns)
    bottom = statistics.median(under[turn] for turn in turns)
    return Ratio(top / bottom, spread([over[turn] / under[turn] for turn in turns]))
