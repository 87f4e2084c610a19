"""What is measured beside cells: idle VMs, memory, what a scrape costs, two reactors."""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import clients, kernel
from .cells import Cell, Setup
from .clients import Load
from .errors import BenchError
from .lab import Lab, Options, lab
from .plan import Lane
from .procs import Process, scratch
from .session import Session
from .targets import Place, Target
from .wakeup import bare_wakeups
from .watch import Look

POLLUX = Lane("pollux", "bench")
SPDK = Lane("spdk", "bench")

IDLE_VMS = 256
IDLE_SECONDS = 5.0
GAP_US = 5000
"""Microseconds between requests: a hundred times what a reactor spins before it sleeps."""
WAKE_SECONDS = 2.0

SCRAPE_VMS = 250
SCRAPE_TARGETS = 4
WINDOW = 1.0
"""Seconds of a turn: with a scrape in it, this is one a second."""
METRICS = "127.0.0.1:19500"
REACTOR = "reactor"
"""Names of the threads that serve VMs begin with this."""

CELL = Cell("null", "randread", 4096, 32)


@dataclass(frozen=True)
class Special:
    """A measurement of its own."""

    key: str
    text: str
    run: Callable[[Session, "Special"], None]
    whats: tuple[str, ...]
    seconds: float
    """Of one turn."""
    cores: int = 2
    """How many it needs."""
    theirs: tuple[str, ...] = ()
    """What SPDK is measured by as well; without SPDK there is no such measurement."""

    def wanted(self) -> list[tuple[str, Lane]]:
        """All that it takes samples of, and whose."""
        return [(what, POLLUX) for what in self.whats] + [(what, SPDK) for what in self.theirs]


def is_guest_memory(mapping: str) -> bool:
    """Guests' memory is mapped from their memfd or hugepages; the daemon has no other such mappings."""
    return mapping.startswith(("/memfd:", "/anon_hugepage"))


# --- idle VMs ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connected(made: Lab, sockets: list[Path]) -> Iterator[None]:
    """VMs that are connected and ask for nothing: one request each, then a gap of an hour."""
    binary, core = made.options.pollux, made.options.client_core
    load = Load(replace(CELL, depth=1), 3600, 0, core, ("--interrupt", "--gap", str(3_600_000_000)))
    holder = Process(clients.bench_argv(binary, sockets, load), made.folder / "idle-log")
    try:
        end = time.monotonic() + 60
        while _sessions(made.targets["pollux"]) < len(sockets):
            if not holder.alive() or time.monotonic() > end:
                raise BenchError(f"{len(sockets)} VMs do not all connect:\n{holder.tail()}")
            time.sleep(0.2)
        time.sleep(1.5)
        yield
    finally:
        holder.stop()


def _sessions(target: Target) -> int:
    answer = target.rpc.call("vhost_get_controllers")
    return sum(bool(session["started"]) for controller in answer for session in controller["sessions"])


def _idle(session: Session, special: Special) -> None:
    cpu, wake, awake, floor = special.whats
    if session.missing(cpu, POLLUX) or session.missing(wake, POLLUX):
        with lab(session.options, Setup("null", IDLE_VMS), [POLLUX]) as made:
            _idle_vms(session, made, cpu, wake)
    if session.missing(awake, POLLUX):
        # what the same request takes from a reactor that never sleeps: all but the wake-up
        with lab(replace(session.options, poll="always"), Setup("null"), [POLLUX]) as made:
            for turn in range(session.turns):
                session.sample(awake, POLLUX, turn, partial(_awake, made))
    # what the kernel takes to wake a thread on that core, with nothing of Pollux in it
    for turn in range(session.turns):
        session.sample(floor, POLLUX, turn, lambda: _floor(session.options))


def _idle_vms(session: Session, made: Lab, cpu: str, wake: str) -> None:
    target = made.targets["pollux"]
    sockets = made.sockets(target)
    if session.missing(cpu, POLLUX):
        with _connected(made, sockets):
            for turn in range(session.turns):
                session.sample(cpu, POLLUX, turn, lambda: _idle_cpu(target))
    if session.missing(wake, POLLUX):
        with _connected(made, sockets[1:]):
            for turn in range(session.turns):
                session.sample(wake, POLLUX, turn, lambda: _wake(made, sockets[0]))


def _idle_cpu(target: Target) -> dict[str, Any]:
    before, since = kernel.cpu_ns(target.pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    used = kernel.cpu_ns(target.pid) - before
    return {"core_share": used / 1e9 / (time.monotonic() - since)}


def _floor(options: Options) -> dict[str, Any]:
    return {"latency_ns": bare_wakeups(options.reactors[0], options.client_core, GAP_US * 1000, WAKE_SECONDS)}


def _awake(made: Lab) -> dict[str, Any]:
    target = made.targets["pollux"]
    target.resume()
    try:
        return _wake(made, target.socket(0))
    finally:
        target.pause()


def _wake(made: Lab, socket: Path) -> dict[str, Any]:
    load = Load(replace(CELL, depth=1), WAKE_SECONDS, 0, made.options.client_core, ("--gap", str(GAP_US)))
    return clients.run_bench(made.options.pollux, [socket], load)


# --- memory --------------------------------------------------------------------------------------

MEMORY_SETUPS = (Setup("null", 256), Setup("tmpfs", 16))


def _memory(session: Session, special: Special) -> None:
    for what, setup in zip(special.whats, MEMORY_SETUPS, strict=True):
        if session.missing(what, POLLUX):
            with lab(session.options, setup, [POLLUX]) as made:
                for turn in range(session.turns):
                    session.sample(what, POLLUX, turn, partial(_memory_loaded, made))


def _memory_loaded(made: Lab) -> dict[str, Any]:
    """The daemon's memory at its greatest during a load that uses every queue."""
    target, setup = made.targets["pollux"], made.setup
    seen: list[kernel.Memory] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.25):
            seen.append(kernel.memory(target.pid, is_guest_memory))

    looker = threading.Thread(target=look, daemon=True)
    load = Load(Cell(setup.backing, "randrw", 4096, 32, vms=setup.vms), 1.5, 0, made.options.client_core)
    looker.start()
    try:
        clients.run_bench(made.options.pollux, made.sockets(target), load)
    finally:
        over.set()
        looker.join()
    if not seen:
        raise BenchError(f"cannot read the memory of process {target.pid}")
    most = max(seen, key=lambda memory: memory.own)
    return {"own_bytes": most.own, "guest_bytes": most.guests, "vms": setup.vms, "queues": setup.vms}


# --- scraping ------------------------------------------------------------------------------------


def _scrape(session: Session, special: Special) -> None:
    quiet, scraped = special.whats
    missing = len(session.missing(quiet, POLLUX) + session.missing(scraped, POLLUX))
    with _many_luns(session.options) as target, _loaded(session.options, target, missing * WINDOW + 2):
        for turn in range(session.turns):
            session.sample(quiet, POLLUX, turn, lambda: _window(target, wanted=False))
            session.sample(scraped, POLLUX, turn, lambda: _window(target, wanted=True))


@contextlib.contextmanager
def _loaded(options: Options, target: Target, seconds: float) -> Iterator[None]:
    """One load for all turns: what differs from run to run is then the same in all of them."""
    load = Load(CELL, seconds + 10, 0, options.client_core)
    with scratch() as folder:
        client = Process(clients.bench_argv(options.pollux, [target.socket(0)], load), folder / "log")
        try:
            time.sleep(1)
            if not client.alive():
                raise BenchError(f"the load ended at once:\n{client.tail()}")
            yield
        finally:
            client.stop()


def _window(target: Target, *, wanted: bool) -> dict[str, Any]:
    """A second of the load, with a scrape in it or without."""
    before, cpu = _look(target), kernel.cpu_ns_beside(target.pid, REACTOR)
    values: dict[str, Any] = _read_metrics() if wanted else {}
    time.sleep(max(0.0, WINDOW - (time.monotonic() - before.at)))
    after = _look(target)
    iops = (after.ops - before.ops) / (after.at - before.at)
    if iops <= 0:
        raise BenchError("the load has ended before its time")
    busy = (after.usage.busy - before.usage.busy) / (after.at - before.at)
    values |= {
        "iops": iops,
        "idle_share": max(0.0, 1 - busy / after.usage.reactors),
        "busy_ns_per_io": busy / iops * 1e9,
    }
    # RPC too: the same in both kinds of turns
    return values | {"other_cpu_ns": kernel.cpu_ns_beside(target.pid, REACTOR) - cpu}


def _look(target: Target) -> Look:
    usage = target.usage()
    return Look(time.monotonic(), usage, target.ops("b0-0"))


def _read_metrics() -> dict[str, Any]:
    since = time.monotonic()
    size = len(metrics_text())
    return {"scrapes": 1, "scrape_seconds": time.monotonic() - since, "scrape_bytes": size}


def metrics_text() -> str:
    """What a daemon tells that listens for scrapes at `METRICS`."""
    try:
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise BenchError(f"cannot read http://{METRICS}/metrics: {error}") from error


@contextlib.contextmanager
def _many_luns(options: Options) -> Iterator[Target]:
    """A daemon with 1000 LUNs, each of which has series to show because it was used."""
    side = next(side for side in options.sides if side.name == "pollux")
    with scratch() as folder:
        target = Target(side, Place(folder, options.reactors, options.poll, METRICS))
        try:
            for vm in range(SCRAPE_VMS):
                names = [f"b{vm}-{number}" for number in range(SCRAPE_TARGETS)]
                for name in names:
                    params = {"name": name, "num_blocks": 1 << 20, "block_size": 512}
                    target.rpc.call("bdev_null_create", params)
                target.controller(vm, names)
            sockets = [target.socket(vm) for vm in range(SCRAPE_VMS)]
            for number in range(SCRAPE_TARGETS):
                load = Load(replace(CELL, rw="randrw"), 0.2, 0, options.client_core, ("--target", str(number)))
                clients.run_bench(options.pollux, sockets, load)
            yield target
        finally:
            target.stop()


# --- two reactors --------------------------------------------------------------------------------


def _two(session: Session, special: Special) -> None:
    one, two = special.whats
    cores = kernel.CORES
    alone = replace(session.options, reactors=cores[:1], client_core=cores[2])
    both = replace(session.options, reactors=cores[:2], client_core=cores[2])
    with lab(alone, CELL.setup, [POLLUX]) as first, lab(both, CELL.setup, [POLLUX]) as second:
        for turn in range(session.turns):
            session.sample(one, POLLUX, turn, lambda: first.measure(CELL, POLLUX))
            session.sample(two, POLLUX, turn, lambda: second.measure(replace(CELL, queues=2), POLLUX))


SPECIALS = {
    special.key: special
    for special in (
        Special(
            "idle",
            "256 idle VMs",
            _idle,
            ("idle/cpu", "idle/wake", "idle/awake", "idle/floor"),
            IDLE_SECONDS + 3 * WAKE_SECONDS + 1,
        ),
        Special("two", "two queues on two reactors", _two, ("two/one", "two/two"), 3.4, cores=4),
        Special("memory", "memory", _memory, ("memory/null-256", "memory/tmpfs-16"), 4.5),
        Special("scrape", "scrape of 1000 LUNs", _scrape, ("scrape/quiet", "scrape/scraped"), 2 * WINDOW),
    )
}


def run(session: Session, special: Special) -> None:
    """Takes the samples that are missing."""
    if len(kernel.CORES) < special.cores:
        session.say(f"--- {special.text}: left out, needs {special.cores} cores")
        return
    if any(session.missing(what, lane) for what, lane in special.wanted()):
        session.check_time()
        session.say(f"--- {special.text}")
        try:
            special.run(session, special)
        except BenchError as error:
            session.give_up_all([(what, lane) for what, lane in special.wanted() if session.missing(what, lane)], error)
