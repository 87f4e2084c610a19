"""What a judged row says."""

from collections.abc import Callable
from dataclasses import dataclass

from .stats import Ratio

EMPTY = 0.05
"""Idle for more than this share of a load, a target has empty polls: then busy times are compared."""


@dataclass(frozen=True)
class Verdict:
    """One line of the table. `passed` is None if it was not measured."""

    row: str
    by: str
    goal: str
    limit: float
    more_is_better: bool = True
    passed: bool | None = None
    measured: str = "not measured"
    turns: str = ""
    ours: str = ""
    theirs: str = ""
    note: str = ""
    ratio: Ratio | None = None


def within(value: float, limit: float, more_is_better: bool) -> bool:
    """Whether a goal is reached."""
    return value >= limit if more_is_better else value <= limit


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.2f}"


def range_text(low: float, high: float, text: Callable[[float], str]) -> str:
    """Least and greatest."""
    return f"{text(low)} to {text(high)}"
