"""What is measured of thin volumes whose size is of no importance: mapped places, places that are written first, chains.

A volume is compared with its own base bdev (a second one of the same kind and size, in the same daemon, both written
full), with itself (the same places in the same order, once first writes and once overwriting), and with SPDK's lvol.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from .cells import Cell
from .clients import Values
from .session import Session
from .special import POLLUX, SPDK, Special
from .thin_lab import GIB, MIB, Bench, Disk, bench

KINDS = ("ram", "disk")
DEPTHS = (1, 32, 128)
ACCESSES = ("randread", "randwrite")
SNAPSHOTS = 64
BETWEEN = 128
"""Writes between two snapshots of a chain."""
BETWEEN_BYTES = 16 << 10

FIRST = {"ram": (8, GIB, 80_000), "disk": (4, GIB // 2, 8_000)}
"""First writes: the base in sizes of `--file-size`, bytes of the volume that is mapped full, and requests of a run.

In memory as many as a pool has room for: with 20 000, which took 10 to 30 ms, what the machine did beside it made the spread."""
FRESH_BYTES = {kind: times * GIB for kind, (times, _, _) in FIRST.items()}
"""Size of the volume that is written into fresh space: its pool's, so that most of its clusters are met once.

Not more. A new pool has a 1024th of its base for metadata, 1024 pages of 4 GiB, and 8000 places all over 16 GiB are in 520 leaves of
the map, with two pages each and some held ready: the pool has to make itself more metadata in the middle of the run (7.5 MiB of
zeroes, a commit and a checkpoint before the writes go on), once in its life. That is no price of a first write."""
FLUSH_EVERY = 64


def cells(kind: str, accesses: tuple[str, ...] = ACCESSES) -> list[Cell]:
    """4 KiB at random places at each depth."""
    return [Cell(kind, rw, 4096, depth) for rw in accesses for depth in DEPTHS]


def words(name: str, found: list[Cell], *who: str) -> tuple[str, ...]:
    """What samples of cells are kept by: `thin/mapped/ram/randread/qd32/volume`."""
    return tuple(f"thin/{name}/{cell.backing}/{cell.rw}/qd{cell.depth}/{one}" for cell in found for one in who)


def scaled(session: Session, size: int) -> int:
    """A size that was chosen for 1 GiB of `--file-size`."""
    return size * (session.options.size >> 20) // 1024 // MIB * MIB


def used(session: Session) -> int:
    """Bytes of a volume for which a pool on a base of `--file-size` has room."""
    return session.options.size * 7 // 8 // MIB * MIB


# --- mapped places ------------------------------------------------------------------------------


def _mapped(session: Session, special: Special, kind: str) -> None:
    size = used(session)
    with _volume_and_base(session, kind, size) as (made, volume, base):
        _in_turns(session, made, f"mapped/{kind}", cells(kind), volume, base, size)


def _chain(session: Session, special: Special, kind: str) -> None:
    size = used(session) // 4 // MIB * MIB
    with _volume_and_base(session, kind, size) as (made, volume, base):
        between, ios = Cell(kind, "randwrite", BETWEEN_BYTES, 8), max(8, scaled(session, BETWEEN * MIB) // MIB)
        for number in range(SNAPSHOTS):
            made.run(volume, between, 20, "--ios", str(ios), "--once", "--size", str(size), "--seed", str(number))
            made.snapshot(volume.bdev)
        _in_turns(session, made, f"chain/{kind}", cells(kind, ("randread",)), volume, base, size)


@contextlib.contextmanager
def _volume_and_base(session: Session, kind: str, size: int) -> Any:
    """A volume written full, and what it would be without a pool."""
    with bench(session.options) as made:
        made.pool(made.base(kind, "under", session.options.size))
        volume = made.export(made.volume(size))
        made.fill(volume, size)
        yield made, volume, made.export(made.base(kind, "plain", session.options.size))


def _in_turns(
    session: Session, made: Bench, name: str, found: list[Cell], volume: Disk, base: Disk, size: int
) -> None:
    """Which of the two comes first changes with each turn: a disk that gives more after a rest gives it to both."""
    made.settle()
    both = [("volume", volume), ("base", base)]
    for turn in range(session.turns):
        for cell in found:
            for who, disk in both if turn % 2 == 0 else reversed(both):
                what = f"thin/{name}/{cell.rw}/qd{cell.depth}/{who}"
                session.sample(what, POLLUX, turn, partial(made.measure, disk, cell, "--size", str(size)))


# --- against SPDK's lvol -------------------------------------------------------------------------


def _lvol(session: Session, special: Special) -> None:
    options, size = session.options, used(session)
    with contextlib.ExitStack() as stack:
        sides = []
        for side in (one for one in options.sides if one.name in ("pollux", "spdk")):
            made = stack.enter_context(bench(options, side, memory=options.size))
            made.pool(made.base("ram", "under", options.size))
            disk = made.export(made.volume(size))
            made.fill(disk, size)
            made.settle()
            made.target.pause()
            sides.append((made, disk, POLLUX if side.name == "pollux" else SPDK))
        for turn in range(session.turns):
            for cell, what in zip(cells("ram"), special.whats, strict=True):
                for made, disk, lane in sides:
                    session.sample(what, lane, turn, partial(made.measure, disk, cell, "--size", str(size)))


# --- first writes --------------------------------------------------------------------------------


def _first(session: Session, special: Special, kind: str) -> None:
    times, full, ios = FIRST[kind]
    full, ios = scaled(session, full), max(1000, scaled(session, ios * MIB) // MIB)
    with bench(session.options) as made:
        base = made.base(kind, "under", times * session.options.size)
        made.settle()
        for turn in range(session.turns):
            if not any(turn in session.missing(what, POLLUX) for what in special.whats):
                continue
            for depth in DEPTHS:
                # A pool for each depth, that is dropped as a whole. Nothing is given back below: a base that has to find
                # memory or space for what was discarded before would be measured with it.
                made.pool(base)
                snapshot = _full_snapshot(made, full)
                fresh, cut = _pairs(special, depth)
                twice = partial(_twice, made, base, Cell(kind, "randwrite", 4096, depth), ios, turn)
                session.together(fresh, POLLUX, turn, partial(twice, partial(made.volume, scaled(session, FRESH_BYTES[kind]))))
                session.together(cut, POLLUX, turn, partial(twice, partial(made.clone, snapshot)))
                made.drop_pool()


def _pairs(special: Special, depth: int) -> tuple[list[str], list[str]]:
    of = [what for what in special.whats if f"/qd{depth}/" in what]
    return [what for what in of if "/fresh/" in what], [what for what in of if "/cut/" in what]


def _full_snapshot(made: Bench, size: int) -> str:
    """Of a volume that is mapped from end to end. Its clones begin as a volume does after a snapshot."""
    disk = made.export(made.volume(size))
    made.fill(disk, size)
    made.withdraw(disk)
    return made.snapshot(disk.bdev)


def _twice(made: Bench, base: str, cell: Cell, ios: int, turn: int, new: Callable[[], str]) -> list[Values]:
    """The same places in the same order: written first, and overwritten.

    The pool commits half a second after the first change, which may be behind the run: the overwriting waits until it has
    nothing left to write, and what the reactor does until then is told.

    Memory is touched before both: the places of the overwriting were in use seconds ago, those of the first writes may not
    have been for a long time.
    """
    disk = made.export(new())
    made.settled(base)
    before = made.owned(disk.bdev)
    more = ("--once", "--ios", str(ios), "--seed", str(turn + 1))
    made.touch()
    first = made.run(disk, cell, 60, *more)
    busy = made.busy()
    made.settled(base)
    first |= {"later_ns": (made.busy() - busy) / ios * 1e9}
    first |= {"places": ios, "clusters": made.owned(disk.bdev) - before}
    made.touch()
    again = made.run(disk, cell, 60, *more)
    made.withdraw(disk)
    return [first, again]


# --- what is written to the base -----------------------------------------------------------------


def _more_written(session: Session, special: Special) -> None:
    for what, kind in zip(special.whats, KINDS, strict=True):
        if not session.missing(what, POLLUX):
            continue
        times, _, ios = FIRST[kind]
        ios = max(1000, scaled(session, ios * MIB) // MIB)
        with bench(session.options) as made:
            base = made.base(kind, "under", times * session.options.size)
            made.pool(base)
            for turn in range(session.turns):
                session.sample(what, POLLUX, turn, partial(_written, session, made, kind, base, ios, turn))


def _written(session: Session, made: Bench, kind: str, base: str, ios: int, turn: int) -> Values:
    disk = made.export(made.volume(scaled(session, FRESH_BYTES[kind])))
    before = made.written(base)
    more = ("--once", "--ios", str(ios), "--seed", str(turn + 1), "--flush-every", str(FLUSH_EVERY))
    values = made.run(disk, Cell(kind, "randwrite", 4096, 32), 60, *more)
    base_bytes, clusters = made.settled(base) - before, made.owned(disk.bdev)
    made.withdraw(disk)
    made.delete(disk.bdev)
    guest_bytes = ios * 4096
    return values | {"base_bytes": base_bytes, "guest_bytes": guest_bytes, "places": ios, "clusters": clusters}


# --- all of them ---------------------------------------------------------------------------------


def _first_words(kind: str) -> tuple[str, ...]:
    return tuple(
        f"thin/first/{kind}/{where}/qd{depth}/{which}"
        for where in ("fresh", "cut")
        for depth in DEPTHS
        for which in ("first", "again")
    )


def _by_kind(kind: str) -> list[Special]:
    mapped, chain = words("mapped", cells(kind), "volume", "base"), words("chain", cells(kind, ("randread",)), "volume", "base")
    on = f"on {kind}"
    return [
        Special(f"thin-mapped-{kind}", f"thin volume {on}, mapped", partial(_mapped, kind=kind), mapped, 13),
        Special(f"thin-chain-{kind}", f"thin volume {on}, 64 snapshots", partial(_chain, kind=kind), chain, 7),
        Special(f"thin-first-{kind}", f"thin volume {on}, first writes", partial(_first, kind=kind), _first_words(kind), 35),
    ]


_LVOL = tuple(f"thin/lvol/{cell.rw}/qd{cell.depth}" for cell in cells("ram"))

SPECIALS = {
    special.key: special
    for special in (
        *_by_kind("ram"),
        *_by_kind("disk"),
        Special("thin-lvol", "thin volume against SPDK's lvol", _lvol, _LVOL, 13, theirs=_LVOL),
        Special(
            "thin-written",
            "what is written to the base",
            _more_written,
            tuple(f"thin/written/{kind}" for kind in KINDS),
            6,
        ),
    )
}
