"""Which cells are measured, in which lanes, and how long it will take. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .backings import BACKINGS, backing
from .cells import OWN, Cell, Setup

SEQUENTIAL = 128 << 10
SMALL = 4 << 10

OVERHEAD = {"bench": 0.3, "bdevperf": 0.6, "fio": 0.4}
"""Seconds that a run of a client takes beyond its load: start, connecting, end."""
SETUP_SECONDS = 5.0
"""Starting the targets of a group of cells, and writing their bdevs full."""


@dataclass(frozen=True)
class Lane:
    """Who is measured, driven by what."""

    side: str
    client: str


FIO = Lane("fio", "fio")


@dataclass(frozen=True)
class Item:
    """A cell and its lanes, in the order in which they take turns."""

    cell: Cell
    lanes: tuple[Lane, ...]


@dataclass(frozen=True)
class Wanted:
    """What was asked for; each empty list stands for all that make sense."""

    backings: Sequence[str] = ()
    accesses: Sequence[str] = ()
    depths: Sequence[int] = ()
    queues: Sequence[int] = ()
    vms: Sequence[int] = ()
    placement: str = OWN


def matrix(wanted: Wanted) -> list[Cell]:
    """The matrix: every access and depth with one queue and with two for one VM, small accesses for 16 and 256 VMs.

    Sequential access is 128 KiB at depth 32. What was asked for explicitly is crossed without such bounds.
    """
    cells = []
    for name in wanted.backings or BACKINGS:
        backing(name)
        for vms in wanted.vms or (1, 16, 256):
            for queues in wanted.queues or ((1, 2) if vms == 1 else (1,)):
                cells += [
                    Cell(name, rw, bs, depth, queues, vms, wanted.placement) for rw, bs, depth in _accesses(wanted, vms)
                ]
    return cells


def _accesses(wanted: Wanted, vms: int) -> Iterable[tuple[str, int, int]]:
    small = [rw for rw in wanted.accesses or ("randread", "randwrite", "randrw") if rw.startswith("rand")]
    large = [rw for rw in wanted.accesses or (("read", "write") if vms == 1 else ()) if not rw.startswith("rand")]
    for depth in wanted.depths or ((1, 32, 128) if vms == 1 else (1, 32)):
        yield from ((rw, SMALL, depth) for rw in small)
    for depth in wanted.depths or (32,):
        yield from ((rw, SEQUENTIAL, depth) for rw in large)


def quick() -> Wanted:
    """A subset that takes some minutes."""
    return Wanted(accesses=("randread", "randwrite"), depths=(1, 32), queues=(1,), vms=(1,))


def lanes(cell: Cell, sides: Sequence[str], clients: Sequence[str], raw: bool) -> tuple[Lane, ...]:
    """The sides in turns, one client after the other, then the bare kernel where there is a file.

    bdevperf plays one VM and drives one queue from one core, so it is left out elsewhere.
    """
    fitting = [client for client in clients if client == "bench" or (cell.vms == 1 and cell.queues == 1)]
    found = [Lane(side, client) for client in fitting for side in sides]
    return (*found, FIO) if raw and backing(cell.backing).where and cell.vms == 1 else tuple(found)


def groups(items: Sequence[Item]) -> dict[Setup, list[Item]]:
    """Items that share their running targets."""
    found: dict[Setup, list[Item]] = {}
    for item in items:
        found.setdefault(item.cell.setup, []).append(item)
    return found


def lane_seconds(lane: Lane, seconds: float, ramp: float) -> float:
    """How long one sample takes."""
    if lane.client == "bdevperf":
        return max(1, round(seconds)) + OVERHEAD["bdevperf"]
    return seconds + ramp + OVERHEAD[lane.client]


def estimate(items: Sequence[Item], turns: int, seconds: float, ramp: float) -> float:
    """Seconds for all items."""
    loads = sum(lane_seconds(lane, seconds, ramp) for item in items for lane in item.lanes)
    return loads * turns + SETUP_SECONDS * len(groups(items))
