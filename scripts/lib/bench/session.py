"""One call of the tool: which samples are missing, how long it may still take, what is shown meanwhile."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from .errors import BenchError, OutOfTime
from .lab import Lab, Options, lab
from .plan import Item, Lane, groups
from .store import Store
from .words import brief


class Session:
    """Takes samples that are missing, turn by turn."""

    def __init__(self, options: Options, store: Store, turns: int, stop_after: float | None = None) -> None:
        self.options = options
        self.store = store
        self.turns = turns
        self.start = time.monotonic()
        self.stop_after = stop_after
        self.total = 0
        self.taken = 0
        self.failed: list[str] = []
        self.given_up: set[tuple[str, Lane]] = set()

    def missing(self, what: str, lane: Lane) -> list[int]:
        """The turns that have no sample yet; none of what has failed in this call."""
        if (what, lane) in self.given_up:
            return []
        have = self.store.samples(what, lane.side, lane.client)
        return [turn for turn in range(self.turns) if turn not in have]

    def check_time(self) -> None:
        """Ends this call if its time is over."""
        if self.stop_after is not None and time.monotonic() - self.start > self.stop_after:
            raise OutOfTime

    def sample(self, what: str, lane: Lane, turn: int, measure: Callable[[], dict[str, Any]]) -> None:
        """Takes a sample, unless there is one."""
        if turn not in self.missing(what, lane):
            return
        self.check_time()
        try:
            values = measure()
        except BenchError as error:
            self.give_up(what, [lane], error)
            return
        self._keep(what, lane, turn, values)

    def _keep(self, what: str, lane: Lane, turn: int, values: dict[str, Any]) -> None:
        self.store.add(what, lane.side, lane.client, turn, values)
        self.taken += 1
        at = f"[{self.taken}/{self.total}, {time.monotonic() - self.start:.0f} s]"
        self.say(f"{at} turn {turn + 1}: {what} {lane.side} by {lane.client}: {brief(values)}")

    def together(self, whats: Sequence[str], lane: Lane, turn: int, measure: Callable[[], list[dict[str, Any]]]) -> None:
        """Takes samples that only make sense together, unless all of them are there."""
        if all(turn not in self.missing(what, lane) for what in whats):
            return
        self.check_time()
        try:
            found = measure()
        except BenchError as error:
            self.give_up_all([(what, lane) for what in whats], error)
            return
        for what, values in zip(whats, found, strict=True):
            self._keep(what, lane, turn, values)

    def give_up(self, what: str, lanes: Iterable[Lane], error: BenchError) -> None:
        """Notes a failure. The rest is measured all the same: it may take hours."""
        self.give_up_all([(what, lane) for lane in lanes], error)

    def give_up_all(self, wanted: Iterable[tuple[str, Lane]], error: BenchError) -> None:
        """The same for several things that have failed at once."""
        for what, lane in wanted:
            self.given_up.add((what, lane))
            self.failed.append(f"{what}, {lane.side} by {lane.client}")
            self.store.fail(what, lane.side, lane.client, str(error).partition("\n")[0])
        self.say(f"bench: failed: {error}")

    def say(self, text: str) -> None:
        """Progress, beside the results."""
        print(text, file=sys.stderr, flush=True)

    def run(self, items: Sequence[Item]) -> None:
        """Takes all samples of cells: in each turn every cell of a group, with its lanes one after the other."""
        for setup, members in groups(items).items():
            open_lanes = {lane for item in members for lane in item.lanes if self.missing(item.cell.key, lane)}
            if not open_lanes:
                continue
            self.check_time()
            self.say(f"--- {setup.text}")
            try:
                with lab(self.options, setup, open_lanes) as made:
                    for turn in range(self.turns):
                        for item in members:
                            self._turn(made, item, turn)
            except BenchError as error:
                for item in members:
                    self.give_up(item.cell.key, [lane for lane in item.lanes if lane in open_lanes], error)

    def _turn(self, made: Lab, item: Item, turn: int) -> None:
        for lane in item.lanes:
            self.sample(item.cell.key, lane, turn, partial(made.measure, item.cell, lane))
