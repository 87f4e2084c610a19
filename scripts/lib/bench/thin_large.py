"""What is measured of large pools: snapshots and clones of 1 TiB, a start after kill -9 with 8 TiB, maps in memory, discards.

The pools are images: sparse files in which nothing is stored but what describes the pool, so that reads of a volume find
holes of the file. All volumes are mapped from end to end, with clusters of 64 KiB.
"""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import clients, kernel
from .cells import Cell
from .clients import Values
from .errors import BenchError
from .session import Session
from .special import METRICS, POLLUX, Special, is_guest_memory, metrics_text
from .targets import Target
from .thin_lab import POOL, Bench, Disk, bench, image

TIB = 1024
"""In GiB."""
CHAINS = (1, 64)
SINCE = 64
"""Random writes between two snapshots, so that each has something in it."""
SETTLED = 0.1
"""Seconds of a load before something is done to its volume, and after it."""
CLONES = 1000
START_TIB = 8
CRASH_WRITES = 20_000
"""Most writes of the load during which the daemon is killed."""
TOUCHES = 250_000
"""Random reads of 1 TiB: of its 33 288 leaves of the map some 18 are not met."""
LIMIT_MIB = 32
"""Memory for maps where it is limited, and how many reads are done then: each loads a leaf."""
LIMITED_TOUCHES = 60_000
OTHER_BYTES = 256 << 20
"""Of the volume that others use while 1 TiB is discarded."""
UNMAP_BYTES = 1 << 30
"""Bytes of one discard."""

READ = Cell("disk", "randread", 4096, 1)
WRITE = Cell("disk", "randwrite", 4096, 32)


# --- snapshots and clones ------------------------------------------------------------------------


def _cut(session: Session, special: Special) -> None:
    more = ("--metrics-listen", METRICS)
    with image(session.options, 1, TIB) as path, bench(session.options, more=more) as made:
        made.opened(path)
        disk = made.export(f"{POOL}/v0")
        made.run(disk, READ.on(depth=32), 60, "--ios", "20000")
        for chain in CHAINS:
            whats = [what for what in special.whats if f"/chain{chain}/" in what]
            if any(session.missing(what, POLLUX) for what in whats):
                _cut_at(session, made, disk, path, chain, whats)


def _cut_at(session: Session, made: Bench, disk: Disk, path: Path, chain: int, whats: list[str]) -> None:
    snapshots: list[str] = []
    while len(snapshots) < chain:
        _write_some(made, disk, len(snapshots))
        snapshots.append(made.snapshot(disk.bdev))

    def snapshot() -> None:
        snapshots.append(made.snapshot(disk.bdev))

    def clone() -> None:
        made.clone(snapshots[-1])

    # the same window with a call that has nothing to do with volumes: what remains is what the machine does
    calls = {"snapshot": snapshot, "clone": clone, "nothing": partial(made.call, "spdk_get_version")}
    for turn in range(session.turns):
        for what in whats:
            action = calls[what.rpartition("/")[2]]
            session.sample(what, POLLUX, turn, partial(_during, made, disk, path, action, len(snapshots), turn))


def _write_some(made: Bench, disk: Disk, seed: int) -> None:
    made.run(disk, WRITE, 20, "--ios", str(SINCE), "--once", "--seed", str(seed + 1))


def _during(made: Bench, disk: Disk, path: Path, action: Callable[[], None], depth: int, turn: int) -> Values:
    """Reads one after another while something is done: the longest of them, how long the call took, and for how long the pool
    says that it has paused guests."""
    _write_some(made, disk, depth + turn * 1000)
    flush, paused = _medium_flush(path.parent), _paused_ns()
    with made.loaded(disk, READ, ramp=SETTLED) as load:
        time.sleep(3 * SETTLED)
        stolen = kernel.stolen_ns()
        since = time.monotonic()
        action()
        took = time.monotonic() - since
        time.sleep(SETTLED)
        values = load.end()
    stolen = kernel.stolen_ns() - stolen
    found = {"call_ns": took * 1e9, "flush_ns": flush, "depth": depth, "stolen_ns": stolen}
    return values | found | {"pause_ns": _paused_ns() - paused}


def _paused_ns() -> float:
    """For how long all calls together have paused guests, as the pool counts it: each once, exactly."""
    name = f'pollux_pool_pause_seconds_sum{{pool="{POOL}"}}'
    found = (line.split()[1] for line in metrics_text().splitlines() if line.startswith(name))
    return float(next(found, 0)) * 1e9


def _medium_flush(folder: Path) -> float:
    """How long the medium takes to make 4 KiB durable, in nanoseconds."""
    path = folder / "pollux-bench-flush"
    took = []
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, bytes(1 << 16), 0)
            os.fsync(handle)
            for at in range(4):
                os.pwrite(handle, os.urandom(4096), at * 4096)
                since = time.monotonic()
                os.fdatasync(handle)
                took.append(time.monotonic() - since)
        finally:
            os.close(handle)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    return sorted(took)[1] * 1e9


def _clones(session: Session, special: Special) -> None:
    for turn in session.missing(special.whats[0], POLLUX):
        with image(session.options, 1, TIB) as path, bench(session.options) as made:
            made.opened(path)
            snapshot = made.snapshot(f"{POOL}/v0")
            session.sample(special.whats[0], POLLUX, turn, partial(_many_clones, made, snapshot, path))


def _many_clones(made: Bench, snapshot: str, path: Path) -> Values:
    since = time.monotonic()
    for _ in range(CLONES):
        made.clone(snapshot)
    return {"call_ns": (time.monotonic() - since) * 1e9, "clones": CLONES, "flush_ns": _medium_flush(path.parent)}


# --- starts and memory ---------------------------------------------------------------------------


def _start(session: Session, special: Special) -> None:
    with image(session.options, START_TIB, TIB) as path, bench(session.options, keep=True) as made:
        made.opened(path)
        disk = made.export(f"{POOL}/v0")
        for turn in range(session.turns):
            session.sample(special.whats[0], POLLUX, turn, partial(_crash, made, disk, turn))


def _crash(made: Bench, disk: Disk, turn: int) -> Values:
    """Kills the daemon while new places are written, starts it again, and asks until a read is answered."""
    made.snapshot(disk.bdev)
    more = ("--once", "--ios", str(CRASH_WRITES), "--flush-every", "64", "--seed", str(turn + 1))
    with made.loaded(disk, WRITE, *more):
        time.sleep(0.7)
        os.kill(made.target.pid, signal.SIGKILL)
        made.target.stop()
    since = time.monotonic()
    made.target = Target(made.target.side, made.target.place)
    listening = time.monotonic() - since
    end = since + 60
    while True:
        try:
            made.run(disk, READ, 1, "--ios", "1")
            break
        except BenchError:
            if time.monotonic() > end:
                raise
    return {"start_ns": (time.monotonic() - since) * 1e9, "rpc_ns": listening * 1e9}


def _map(session: Session, special: Special) -> None:
    for what, reads in zip(special.whats, (TOUCHES, LIMITED_TOUCHES), strict=True):
        more = () if reads == TOUCHES else ("--map-memory-mib", str(LIMIT_MIB))
        for turn in session.missing(what, POLLUX):
            with image(session.options, 1, TIB) as path, bench(session.options, more=more) as made:
                made.opened(path)
                disk = made.export(f"{POOL}/v0")
                session.sample(what, POLLUX, turn, partial(_touched, made, disk, reads))


def _touched(made: Bench, disk: Disk, reads: int) -> Values:
    before = kernel.memory(made.target.pid, is_guest_memory)
    values = made.run(disk, READ.on(depth=128), 100, "--ios", str(reads))
    if values["ios"] < reads:
        raise BenchError(f"only {values['ios']} of {reads} reads were done: not all of the map was asked for")
    after = kernel.memory(made.target.pid, is_guest_memory)
    return {"map_bytes": after.own - before.own, "own_bytes": after.own, "guest_bytes": after.guests, "iops": values["iops"]}


# --- discards ------------------------------------------------------------------------------------


def _discard(session: Session, special: Special) -> None:
    quiet, busy = special.whats
    turns = session.missing(busy, POLLUX) or session.missing(quiet, POLLUX)
    with image(session.options, len(turns), TIB) as path, bench(session.options) as made:
        made.opened(path)
        other = made.export(made.volume(OTHER_BYTES))
        made.fill(other, OTHER_BYTES)
        for number, turn in enumerate(turns):
            disk = made.export(f"{POOL}/v{number}")
            session.together((quiet, busy), POLLUX, turn, partial(_discarded, made, other, disk))


def _discarded(made: Bench, other: Disk, disk: Disk) -> list[Values]:
    """The other volume's latency alone, and while all of a volume is discarded."""
    load = READ.on(depth=4)
    quiet = made.run(other, load, made.options.seconds, ramp=made.options.ramp)
    # the discarding client sleeps while it waits: it shares a core with the one that is measured
    trim = made.load(Cell("disk", "trim", UNMAP_BYTES, 4), 60, "--once", "--interrupt")
    with made.loaded(other, load, ramp=2 * SETTLED) as running:
        time.sleep(2 * SETTLED)
        done = clients.run_bench(made.options.pollux, [made.target.socket(disk.vm)], trim)
        busy = running.end()
    if done["errors"]:
        raise BenchError(f"{done['errors']} discards failed")
    return [quiet, busy | {"discard_ns": done["seconds"] * 1e9, "discards": done["ios"]}]


# --- all of them ---------------------------------------------------------------------------------

_CUT = tuple(f"thin/cut/chain{chain}/{what}" for chain in CHAINS for what in ("snapshot", "nothing", "clone"))

SPECIALS = {
    special.key: special
    for special in (
        Special("thin-cut", "snapshots and clones of 1 TiB", _cut, _CUT, 6 * 0.9),
        Special("thin-clones", "1000 clones of a snapshot of 1 TiB", _clones, ("thin/clones",), 8),
        Special("thin-start", "start after kill -9 of a pool of 8 TiB", _start, ("thin/start",), 3),
        Special("thin-map", "memory of the map of 1 TiB", _map, ("thin/map/all", "thin/map/limited"), 12),
        Special("thin-discard", "discard of 1 TiB", _discard, ("thin/discard/quiet", "thin/discard/busy"), 5),
    )
}
