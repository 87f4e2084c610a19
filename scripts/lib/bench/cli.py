"""The command line of scripts/bench."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import kernel
from .backings import BACKINGS
from .cells import ACCESSES, ONE_CORE, OWN, parse_size
from .errors import BenchError, OutOfTime
from .goals import Row, rows
from .lab import Options
from .machine import describe_side, fio_version, machine, neutral_command
from .plan import Item, Wanted, estimate, lanes, matrix, quick
from .procs import signals_are_interrupts
from .render import render
from .report import cells_tables, goals_table
from .session import Session
from .specials import SPECIALS, Special, run
from .store import Store
from .targets import Side, parse_side
from .words import time_text

ROOT = Path(__file__).resolve().parents[3]
UNFINISHED = 3
EXAMPLES = """\
examples:
  scripts/bench --quick                                    a look at this build, some minutes
  scripts/bench --goals --against spdk=DIR --docs          the judged table, into docs/performance.md
  scripts/bench --against spdk=DIR --out all.json --docs   the whole matrix
  scripts/bench --against pollux=FILE --only null,ram      this build and an earlier one, in turns
  scripts/bench --render all.json                          tables and plots again, measuring nothing

exit codes: 0 done, 1 something failed, 2 wrong usage, 3 --stop-after is over and samples are missing
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures Pollux, alone or in turns with another target, and judges the goals.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what is measured")
    what.add_argument("--goals", action="store_true", help="the judged table instead of the matrix")
    what.add_argument("--quick", action="store_true", help="a subset of the matrix, three turns")
    what.add_argument(
        "--only", metavar="NAMES", help=f"only these backings ({', '.join(BACKINGS)}), of --goals also " + SPECIAL_KEYS
    )
    what.add_argument("--rw", metavar="NAMES", help=f"only these accesses ({', '.join(ACCESSES)})")
    what.add_argument("--depths", metavar="LIST", help="only these depths, for example 1,32")
    what.add_argument("--queues", metavar="LIST", help="only these numbers of queues")
    what.add_argument("--vms", metavar="LIST", help="only these numbers of VMs")
    what.add_argument(
        "--one-core", action="store_true", help="confine targets and their kernel workers to the reactor's core"
    )
    what.add_argument("--turns", type=int, metavar="N", help="turns of each cell (10; with --quick 3)")
    what.add_argument("--seconds", type=float, default=1.0, metavar="S", help="seconds of a turn (1)")
    what.add_argument("--no-fio", action="store_true", help="leave out the bare kernel on files")
    what.add_argument("--list", action="store_true", help="show what would be measured and how long it takes")
    who = made.add_argument_group("who is measured")
    who.add_argument(
        "--pollux", type=Path, metavar="FILE", help="the binary (by default this checkout's release build)"
    )
    who.add_argument(
        "--against", metavar="SIDE", help="spdk=DIR (its sources, built) or pollux=FILE (an earlier build)"
    )
    who.add_argument(
        "--client", choices=("bench", "bdevperf", "both"), help="load generators (bench; with --goals and SPDK both)"
    )
    who.add_argument("--poll", choices=("adaptive", "always"), default="adaptive", help="of Pollux (adaptive)")
    where = made.add_argument_group("where")
    where.add_argument("--reactors", default="0", metavar="CORES", help="cores of the targets' reactors (0)")
    where.add_argument("--client-core", type=int, default=1, metavar="CORE", help="core of the load generator (1)")
    where.add_argument(
        "--disk-dir", type=Path, default=Path("/var/tmp"), metavar="DIR", help="where files on disk lie (/var/tmp)"
    )
    where.add_argument(
        "--tmpfs-dir", type=Path, default=Path("/dev/shm"), metavar="DIR", help="where files on tmpfs lie (/dev/shm)"
    )
    where.add_argument("--file-size", default="1g", metavar="SIZE", help="of all LUNs of a backing together (1g)")
    where.add_argument("--keep-files", action="store_true", help="leave the files for the next call")
    where.add_argument(
        "--reserve-hugepages", action="store_true", help="reserve what SPDK lacks of hugepages, and give it back"
    )
    out = made.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="FILE", help="keep every sample in this file (JSON)")
    out.add_argument(
        "--append", action="store_true", help="go on with that file: only what is missing in it is measured"
    )
    out.add_argument(
        "--stop-after", type=float, metavar="S", help="begin no sample after so many seconds; go on with --append"
    )
    out.add_argument(
        "--docs", action=argparse.BooleanOptionalAction, help="write docs/performance.md (--no-docs: print only)"
    )
    out.add_argument(
        "--render", type=Path, metavar="FILE", help="write docs/performance.md from a file of samples, measure nothing"
    )
    return made


SPECIAL_KEYS = ", ".join(dict.fromkeys(key.partition("-")[0] for key in SPECIALS)) + " (see --list for the parts of thin)"


def main(argv: Sequence[str]) -> int:
    """Runs the tool; returns its exit code."""
    arguments = parser().parse_args(argv)
    signals_are_interrupts()
    try:
        return _run(arguments, list(argv))
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    except OutOfTime:
        print("bench: time is over, samples are missing: call again with --append", file=sys.stderr)
        return UNFINISHED
    except KeyboardInterrupt:
        print("bench: interrupted; everything started has been put away", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.render:
        for path in render(Store.load(arguments.render), ROOT / "docs"):
            print(path)
        return 0
    sides = _sides(arguments)
    clients = _clients(arguments, sides)
    items, judged = _wanted(arguments, sides, clients)
    specials = [SPECIALS[row.special] for row in judged if row.special]
    turns = arguments.turns or (3 if arguments.quick else 10)
    options = _options(arguments, sides)
    session = Session(options, _store(arguments), turns, arguments.stop_after)
    _announce(session, items, specials)
    if arguments.list:
        return _list(items, specials)
    _begin(session, arguments, argv, items)
    _keep_away(options)
    session.run(items)
    for one in specials:
        run(session, one)
    if judged:
        print(goals_table([verdict for row in judged for verdict in row.judge(session.store)]))
    else:
        print(cells_tables(session.store))
    subset = arguments.quick or arguments.only or arguments.rw or arguments.depths or arguments.queues or arguments.vms
    if arguments.docs or (arguments.docs is None and not subset):
        for path in render(session.store, ROOT / "docs"):
            print(path, file=sys.stderr)
    for failure in session.failed:
        print(f"bench: failed (see above): {failure}", file=sys.stderr)
    return 1 if session.failed else 0


# --- from arguments to a plan --------------------------------------------------------------------


def _sides(arguments: argparse.Namespace) -> tuple[Side, ...]:
    pollux = arguments.pollux
    if pollux is None:
        pollux = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/pollux"
        if not arguments.list:
            _build()
    elif not pollux.is_file():
        raise BenchError(f"--pollux {pollux}: there is no such file")
    own = Side("pollux", "pollux", pollux.resolve())
    return (own, parse_side(arguments.against)) if arguments.against else (own,)


def _build() -> None:
    try:
        done = subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=False)
    except OSError as error:
        raise BenchError(f"cannot run cargo ({error}): name a binary with --pollux") from error
    if done.returncode != 0:
        raise BenchError("the build failed (see above)")


def _clients(arguments: argparse.Namespace, sides: Sequence[Side]) -> list[str]:
    spdk = any(side.kind == "spdk" for side in sides)
    client = arguments.client or ("both" if arguments.goals and spdk else "bench")
    if client != "bench" and not spdk:
        raise BenchError("bdevperf comes with SPDK: use --against spdk=DIR")
    return ["bench", "bdevperf"] if client == "both" else [client]


def _wanted(arguments: argparse.Namespace, sides: Sequence[Side], clients: list[str]) -> tuple[list[Item], list[Row]]:
    only = _words(arguments.only)
    known = [*BACKINGS, *(chosen_by(SPECIALS) if arguments.goals else ())]
    for name in only:
        if name not in known:
            raise BenchError(f"--only {name}: choose from {', '.join(known)}")
    if not arguments.goals:
        cells_wanted = matrix(_axes(arguments, only))
        names = [side.name for side in sides]
        return [Item(cell, lanes(cell, names, clients, not arguments.no_fio)) for cell in cells_wanted], []
    other = sides[1].name if len(sides) > 1 else None
    chosen = [
        row
        for row in rows(other, clients, not arguments.no_fio)
        if not only or any(word in only for word in chosen_by([row.key]))
    ]
    return [item for row in chosen for item in row.items], chosen


def chosen_by(keys: Iterable[str]) -> list[str]:
    """The words that choose rows: their keys, and what these begin with (`thin`, `thin-first`, `thin-first-ram`)."""
    parts = [key.split("-") for key in keys]
    return list(dict.fromkeys("-".join(words[:end]) for words in parts for end in range(1, len(words) + 1)))


def _axes(arguments: argparse.Namespace, only: Sequence[str]) -> Wanted:
    base = quick() if arguments.quick else Wanted()
    return Wanted(
        backings=only,
        accesses=_words(arguments.rw) or base.accesses,
        depths=_numbers(arguments.depths) or base.depths,
        queues=_numbers(arguments.queues) or base.queues,
        vms=_numbers(arguments.vms) or base.vms,
        placement=ONE_CORE if arguments.one_core else OWN,
    )


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _numbers(text: str | None) -> list[int]:
    words = _words(text)
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise BenchError(f"{text!r} is not a list of numbers such as 1,32")
    return [int(word) for word in words]


def _options(arguments: argparse.Namespace, sides: tuple[Side, ...]) -> Options:
    reactors, cores = kernel.parse_cores(arguments.reactors), kernel.CORES
    for core in (*reactors, arguments.client_core):
        if core not in cores:
            raise BenchError(f"core {core} is not there: this process may use {cores}")
    if arguments.client_core in reactors:
        raise BenchError("the load generator needs a core of its own: see --reactors and --client-core")
    try:
        size = parse_size(arguments.file_size)
    except ValueError as error:
        raise BenchError(f"--file-size: {error}") from None
    return Options(
        pollux=sides[0].path,
        sides=sides,
        seconds=arguments.seconds,
        reactors=reactors,
        client_core=arguments.client_core,
        size=size,
        disk_dir=arguments.disk_dir,
        tmpfs_dir=arguments.tmpfs_dir,
        poll=arguments.poll,
        reserve_hugepages=arguments.reserve_hugepages,
        keep_files=arguments.keep_files,
    )


def _store(arguments: argparse.Namespace) -> Store:
    out: Path | None = arguments.out
    if out is None:
        for option, given in (("--append", arguments.append), ("--stop-after", arguments.stop_after)):
            if given:
                raise BenchError(f"{option} needs --out FILE: without it no sample is kept to go on with")
        return Store.new(None)
    if not out.exists():
        return Store.new(out)
    if not arguments.append:
        raise BenchError(f"{out} is there already: use --append to go on with it, or name another file")
    return Store.load(out)


# --- before and after ----------------------------------------------------------------------------


def _announce(session: Session, items: list[Item], specials: list[Special]) -> None:
    """Says how much is missing, and how long that takes."""
    seconds = estimate(items, session.turns, session.options.seconds, session.options.ramp)
    for item in items:
        session.total += sum(len(session.missing(item.cell.key, lane)) for lane in item.lanes)
    for one in specials:
        if len(kernel.CORES) >= one.cores:
            session.total += sum(len(session.missing(what, lane)) for what, lane in one.wanted())
            seconds += one.seconds * session.turns + 10
    session.say(f"bench: {session.total} samples are missing; all of them take about {time_text(seconds)}")


def _list(items: list[Item], specials: list[Special]) -> int:
    for item in items:
        print(item.cell.key, *(f"{lane.side}/{lane.client}" for lane in item.lanes))
    for one in specials:
        print(f"{one.key}: {one.text}")
    return 0


def _begin(session: Session, arguments: argparse.Namespace, argv: list[str], items: list[Item]) -> None:
    own_build = arguments.pollux is None
    described = {
        side.name: describe_side(side, ROOT, own_build and side.name == "pollux") for side in session.options.sides
    }
    if any(lane.client == "fio" for item in items for lane in item.lanes):
        described["fio"] = {"kind": "fio", "version": fio_version(), "identity": fio_version()}
    folders = {"disk": arguments.disk_dir, "tmpfs": arguments.tmpfs_dir}
    call: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "command": neutral_command(argv),
        "options": {"seconds": arguments.seconds, "turns": session.turns, "poll": arguments.poll},
    }
    session.store.begin(call, described, machine(folders))


def _keep_away(options: Options) -> None:
    """This tool keeps off the measured cores; where there are no others it shares the client's."""
    free = set(kernel.CORES) - set(options.reactors) - {options.client_core}
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, free or {options.client_core})
