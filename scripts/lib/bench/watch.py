"""What is read off a target while it is loaded: how busy its reactors are, and where its kernel workers run.

A thread asks every `INTERVAL` seconds; what counts are the intervals in which the load was at its full rate, so
that the client's start and end do not. Two small calls every 150 ms: some 0.1 % of a core, the same for each target.
"""

import itertools
import threading
import time
from dataclasses import dataclass
from typing import Any

from . import kernel
from .errors import BenchError
from .rpc import Rpc
from .targets import Target, Usage

INTERVAL = 0.15


@dataclass(frozen=True)
class Look:
    """One look at a target."""

    at: float
    usage: Usage
    ops: int


class Watch:
    """Looks at a target from `with` to the end of the block."""

    def __init__(self, target: Target, bdev: str, files: bool) -> None:
        self.target = target
        self.bdev = bdev
        self.files = files
        self.looks: list[Look] = []
        self.workers: dict[str, int] = {}
        self.trouble: BenchError | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        try:
            with Rpc(self.target.place.folder / "rpc") as rpc:
                while not self.over.wait(INTERVAL):
                    self._look(rpc)
        except OSError as error:
            self.trouble = BenchError(f"cannot look at {self.target.side.name} while it is loaded: {error}")
        except BenchError as error:
            self.trouble = error

    def _look(self, rpc: Rpc) -> None:
        usage = self.target.usage(rpc)
        self.looks.append(Look(time.monotonic(), usage, self.target.ops(self.bdev, rpc)))
        if self.files:
            for cores, count in kernel.workers(self.target.pid).items():
                self.workers[cores] = max(count, self.workers.get(cores, 0))

    def values(self, iops: float) -> dict[str, Any]:
        """What was seen: `idle_share`, `busy_ns_per_io`, `workers`. For after the block."""
        if self.trouble is not None:
            raise self.trouble
        seen: dict[str, Any] = {"workers": self.workers} if self.files else {}
        load = steady(self.looks)
        if load is not None and iops > 0:
            busy, reactors = load
            seen["idle_share"] = max(0.0, 1 - busy / reactors)
            # reactor seconds, of all reactors together
            seen["busy_ns_per_io"] = busy / iops * 1e9
        return seen


def steady(looks: list[Look]) -> tuple[float, int] | None:
    """Reactors busy at a time, of how many, while the load ran at its full rate.

    The first and the last of the full intervals may hold a little of the start and the end, so they do not count if
    there are others. A reactor's own idle time is of no use here: one that sleeps counts its sleep only when it wakes.
    """
    pairs = [(a, b) for a, b in itertools.pairwise(looks) if b.at > a.at]
    rates = [(b.ops - a.ops) / (b.at - a.at) for a, b in pairs]
    if not rates or max(rates) <= 0:
        return None
    full = [pair for pair, rate in zip(pairs, rates, strict=True) if rate >= 0.8 * max(rates)]
    full = full[1:-1] if len(full) > 2 else full
    busy = sum(b.usage.busy - a.usage.busy for a, b in full)
    return busy / sum(b.at - a.at for a, b in full), full[0][1].usage.reactors
