"""What one measurement is of. A cell has a readable key that samples are kept by."""

from dataclasses import dataclass, replace
from typing import Any

from .errors import BenchError

ACCESSES = ("randread", "randwrite", "randrw", "read", "write")
MIX_READS = 70
"""Percentage of reads in randrw."""

OWN = "own"
"""Kernel workers are where the target puts them."""
ONE_CORE = "one-core"
"""The target with all its kernel workers is confined to its reactor's core (by a cpuset)."""
PLACEMENTS = (OWN, ONE_CORE)


@dataclass(frozen=True)
class Setup:
    """What has to be the same for cells to be measured on the same running targets."""

    backing: str
    vms: int = 1
    placement: str = OWN

    @property
    def text(self) -> str:
        """For progress lines."""
        vms = "1 VM" if self.vms == 1 else f"{self.vms} VMs"
        return f"{self.backing}, {vms}" + ("" if self.placement == OWN else f", {self.placement}")


@dataclass(frozen=True)
class Cell:
    """One point of the matrix."""

    backing: str
    rw: str
    bs: int
    depth: int
    queues: int = 1
    vms: int = 1
    placement: str = OWN

    @property
    def setup(self) -> Setup:
        """The running targets that it needs."""
        return Setup(self.backing, self.vms, self.placement)

    @property
    def key(self) -> str:
        """`null/randread/4k/qd32/q1/vm1/own`."""
        parts = (self.backing, self.rw, size_text(self.bs), f"qd{self.depth}", f"q{self.queues}", f"vm{self.vms}")
        return "/".join((*parts, self.placement))

    @staticmethod
    def parse(key: str) -> "Cell":
        """The cell of a key."""
        parts = key.split("/")
        if len(parts) != 7 or not (
            parts[3].startswith("qd") and parts[4].startswith("q") and parts[5].startswith("vm")
        ):
            raise BenchError(f"{key!r} is not a cell: expected one like null/randread/4k/qd32/q1/vm1/own")
        backing, rw, bs, depth, queues, vms, placement = parts
        try:
            numbers = parse_size(bs), int(depth[2:]), int(queues[1:]), int(vms[2:])
        except ValueError as error:
            raise BenchError(f"{key!r} is not a cell: {error}") from None
        cell = Cell(backing, rw, *numbers, placement)
        if cell.rw not in ACCESSES or cell.placement not in PLACEMENTS:
            raise BenchError(f"{key!r} is not a cell: accesses are {', '.join(ACCESSES)}")
        return cell

    def on(self, **changes: Any) -> "Cell":
        """The same with something else."""
        return replace(self, **changes)


def size_text(size: int) -> str:
    """4096 as 4k."""
    for unit, letter in ((1 << 30, "g"), (1 << 20, "m"), (1 << 10, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def parse_size(text: str) -> int:
    """4k as 4096."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    digits, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1)
    if not digits.isdigit() or int(digits) == 0:
        raise ValueError(f"{text!r} is not a size such as 4096, 4k or 1g")
    return int(digits) * unit
