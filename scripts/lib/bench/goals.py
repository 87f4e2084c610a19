"""The judged rows: what is measured for each, and what comes out. The goals are those of the project, one to one."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from statistics import median

from .backings import backing
from .cells import ONE_CORE, Cell
from .plan import FIO, Item, Lane
from .special import POLLUX
from .specials import JUDGES, SPECIALS
from .stats import Ratio, ratio
from .store import Store
from .verdict import EMPTY, Verdict, range_text, times, within
from .words import count_text, ns_text

NAMES = {"spdk": "SPDK", "fio": "fio", "before": "before"}


@dataclass(frozen=True)
class Row:
    """A row of the goals: cells, or a special measurement, and how it is judged."""

    key: str
    """Begins with what `--only` takes: `null`, `ram`, `disk`, `tmpfs`, `idle`, `two`, `memory`, `scrape`, `thin`."""
    items: tuple[Item, ...]
    special: str | None
    judge: Callable[[Store], list[Verdict]]


# --- rows that compare cells ---------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A cell of ours against the same of another."""

    text: str
    cell: Cell
    ours: Lane
    theirs: Lane
    factor: float
    round_trip: bool = False

    def judge(self, store: Store) -> Verdict:
        """Compares rates, or times of a round trip; busy times where the client is the limit."""
        sign = "≤" if self.round_trip else "≥"
        goal = f"{sign} {self.factor:g} × {NAMES.get(self.theirs.side, self.theirs.side)}"
        blank = Verdict(self.text, self.ours.client, goal, self.factor, not self.round_trip)
        ours, theirs = (self._numbers(store, lane, "iops") for lane in (self.ours, self.theirs))
        rates = ratio(ours, theirs)
        if rates is None:
            return blank
        found, note = self._choose(store, rates, ratio(theirs, ours) or rates)
        return replace(
            blank,
            passed=within(found.value, self.factor, not self.round_trip),
            measured=f"{found.value:.2f} ×",
            turns=range_text(found.turns.low, found.turns.high, times),
            ours=self._side(store, self.ours, ours.keys() & theirs.keys()),
            theirs=self._side(store, self.theirs, ours.keys() & theirs.keys()),
            note=note,
            ratio=found,
        )

    def _choose(self, store: Store, rates: Ratio, trips: Ratio) -> tuple[Ratio, str]:
        if self.round_trip:
            return trips, ""
        idle = self._numbers(store, self.ours, "idle_share")
        # over a file a reactor waits for the kernel, so its empty polls say nothing of the client
        if backing(self.cell.backing).where or not idle or median(idle.values()) <= EMPTY:
            return rates, ""
        busy = [self._numbers(store, lane, "busy_ns_per_io") for lane in (self.theirs, self.ours)]
        found = ratio(*busy)
        if found is None:
            return rates, "Pollux has empty polls, and busy times are not known"
        return found, f"Pollux has empty polls: busy times are compared (IOPS: {rates.value:.2f} ×)"

    def _numbers(self, store: Store, lane: Lane, name: str) -> dict[int, float]:
        return store.numbers(self.cell.key, lane.side, lane.client, name)

    def _side(self, store: Store, lane: Lane, turns: Set[int]) -> str:
        """Medians of the turns that both sides have."""
        rate = median(value for turn, value in self._numbers(store, lane, "iops").items() if turn in turns)
        text = ns_text(1e9 / rate) if self.round_trip else f"{count_text(rate)} IOPS"
        busy, idle = (self._numbers(store, lane, name) for name in ("busy_ns_per_io", "idle_share"))
        if not busy or self.round_trip:
            return text
        return f"{text}, {median(busy.values()):.0f} ns busy, {median(idle.values()) * 100:.0f} % idle"


Pairs = Sequence[tuple[Lane, Lane]]


def _compared(key: str, text: str, cells: Sequence[Cell], pairs: Pairs, factor: float, round_trip: bool = False) -> Row:
    items = tuple(Item(cell, tuple(lane for pair in pairs for lane in pair)) for cell in cells)
    parts = [
        Compared(f"{text}, {cell.rw}, depth {cell.depth}", cell, ours, theirs, factor, round_trip)
        for cell in cells
        for ours, theirs in pairs
    ]
    return Row(key, items, None, lambda store: [part.judge(store) for part in parts])


# --- all of them ---------------------------------------------------------------------------------


def rows(other: str | None, clients: Sequence[str], raw: bool = True) -> list[Row]:
    """All rows against the other side (a name, or nobody); `raw` says that fio may be measured."""
    pairs = [(Lane("pollux", client), Lane(other, client)) for client in clients] if other else []
    null, ram = Cell("null", "randread", 4096, 1), Cell("ram", "randread", 4096, 32)
    disk = Cell("disk", "randread", 4096, 1)
    tmpfs = Cell("tmpfs", "randread", 4096, 1, placement=ONE_CORE)
    found = []
    if pairs:
        found += [
            _compared("null-rate", "null", [null.on(depth=32), null.on(depth=128)], pairs, 1.2),
            _compared("null-trip", "null, round trip", [null], pairs, 0.9, round_trip=True),
            _compared("ram", "ram", [ram, ram.on(rw="randwrite")], pairs, 1.3),
        ]
    if raw:
        files = [disk.on(depth=depth) for depth in (1, 32, 128)]
        found.append(_compared("disk", "file on disk", files, [(POLLUX, FIO)], 0.9))
    if pairs:
        files = [tmpfs.on(depth=depth) for depth in (1, 32, 128)]
        own = [pair for pair in pairs if pair[0].client == "bench"] or pairs
        found.append(_compared("tmpfs", "file on tmpfs", files, own, 1.2))
    return found + [Row(key, (), key, judged) for key, judged in JUDGES.items() if other == "spdk" or not SPECIALS[key].theirs]


def judge(store: Store, other: str | None, clients: Sequence[str], thin: bool | None = None) -> list[Verdict]:
    """What comes out of the samples: of all rows, of those on thin pools, or of all others."""
    wanted = [row for row in rows(other, clients) if thin is None or row.key.startswith("thin") == thin]
    return [verdict for row in wanted for verdict in row.judge(store)]
