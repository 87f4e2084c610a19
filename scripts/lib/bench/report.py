"""Samples as Markdown: the judged table, all cells, the machine."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from .backings import BACKINGS
from .cells import ACCESSES, Cell
from .errors import BenchError
from .goals import NAMES
from .plan import Lane
from .stats import ratio, spread
from .store import Store
from .verdict import Verdict
from .words import bytes_text, count_text, ns_text

MARKS = {True: "yes", False: "**no**", None: "–"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def name_of(lane: Lane, clients: Sequence[str]) -> str:
    """A lane as a reader knows it; the client is named only if there are several."""
    if lane.client == "fio":
        return "fio"
    side = {"pollux": "Pollux", "spdk": "SPDK", "before": "before"}.get(lane.side, lane.side)
    return (
        side if len([client for client in clients if client != "fio"]) < 2 else f"{side} ({client_name(lane.client)})"
    )


def client_name(client: str) -> str:
    """`pollux bench`, bdevperf or fio."""
    return "pollux bench" if client == "bench" else client


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """The judged rows."""
    rows = [
        (v.row, client_name(v.by), v.goal, v.measured, v.turns, MARKS[v.passed], v.ours, v.theirs, v.note)
        for v in verdicts
    ]
    head = ("4 KiB, one reactor", "driven by", "goal", "measured", "single turns", "reached", "Pollux", "other", "note")
    return table(head, rows)


# --- cells ---------------------------------------------------------------------------------------


def cells(store: Store) -> dict[Cell, list[Lane]]:
    """The cells that there are samples of, and by whom; one queue and one VM first, then by access and depth."""
    found: dict[Cell, list[Lane]] = {}
    for what, side, client in store.kinds():
        try:
            cell = Cell.parse(what)
        except BenchError:
            continue  # a special measurement
        found.setdefault(cell, []).append(Lane(side, client))
    return dict(sorted(found.items(), key=lambda pair: _order(pair[0])))


def _order(cell: Cell) -> tuple[int | str, ...]:
    places = (list(BACKINGS).index(cell.backing), cell.placement, cell.vms, cell.queues, ACCESSES.index(cell.rw))
    return (*places, cell.bs, cell.depth)


def cells_tables(store: Store) -> str:
    """A table for each backing."""
    found = cells(store)
    parts = []
    for backing in dict.fromkeys(cell.backing for cell in found):
        rows = [row for cell in found if cell.backing == backing for row in _cell_rows(store, cell, found[cell])]
        head = (
            "cell",
            "who",
            "IOPS (quartiles)",
            "mean",
            "p99",
            "busy ns / I/O",
            "idle",
            "client ns / I/O",
            "Pollux / this",
        )
        parts.append(f"### {backing}\n\n" + table(head, rows))
    failures = [f"- {one['what']}, {one['side']} by {one['client']}: {one['why']}\n" for one in store.data["failures"]]
    return "\n".join(parts + (["Not measured:\n\n" + "".join(failures)] if failures else []))


def cell_name(cell: Cell) -> str:
    """A cell within its backing."""
    size = "" if cell.bs == 4096 else f" {cell.bs >> 10} KiB"
    words = [f"{cell.rw}{size}", f"depth {cell.depth}"]
    words += [f"{cell.queues} queues"] if cell.queues > 1 else []
    words += [f"{cell.vms} VMs"] if cell.vms > 1 else []
    return ", ".join(words + ([cell.placement] if cell.placement != "own" else []))


def _cell_rows(store: Store, cell: Cell, lanes: Sequence[Lane]) -> Iterable[Sequence[str]]:
    clients = list(dict.fromkeys(lane.client for lane in lanes))
    for number, lane in enumerate(lanes):

        def figures(name: str, lane: Lane = lane) -> list[float]:
            return list(store.numbers(cell.key, lane.side, lane.client, name).values())

        iops = figures("iops")
        seen = spread(iops)
        rate = f"{count_text(seen.median)} ({count_text(seen.q1)} to {count_text(seen.q3)})"
        p99, busy, idle = figures("latency_ns.p99"), figures("busy_ns_per_io"), figures("idle_share")
        client = figures("client_ns_per_io")
        yield (
            cell_name(cell) if number == 0 else "",
            name_of(lane, clients),
            rate,
            ns_text(median(figures("latency_ns.mean"))),
            ns_text(median(p99)) if p99 else "–",
            f"{median(busy):.0f}" if busy else "–",
            f"{median(idle) * 100:.0f} %" if idle else "–",
            f"{median(client):.0f}" if client else "–",
            _against(store, cell, lane),
        )


def _against(store: Store, cell: Cell, lane: Lane) -> str:
    """How our rate compares with a lane's, driven by the same client (fio by its own)."""
    if lane.side == "pollux":
        return ""
    ours = store.numbers(cell.key, "pollux", "bench" if lane.client == "fio" else lane.client, "iops")
    found = ratio(ours, store.numbers(cell.key, lane.side, lane.client, "iops"))
    return f"{found.value:.2f} ×" if found else "–"


def workers_table(store: Store) -> str:
    """Where io_uring's kernel workers were allowed to run, for cells on files."""
    seen: dict[tuple[str, str, str], dict[str, int]] = {}
    for sample in store.data["samples"]:
        for cores, count in sample["values"].get("workers", {}).items():
            cell = Cell.parse(sample["what"])
            most = seen.setdefault((cell.backing, cell.placement, NAMES.get(sample["side"], "Pollux")), {})
            most[cores] = max(count, most.get(cores, 0))
    if not seen:
        return ""
    rows = [
        (backing, placement, side, ", ".join(f"{count} on {cores}" for cores, count in sorted(most.items())))
        for (backing, placement, side), most in sorted(seen.items())
    ]
    return table(("backing", "placement", "who", "kernel workers at most, and the cores they may use"), rows)


# --- the machine ---------------------------------------------------------------------------------


def machine_table(store: Store) -> str:
    """What was measured where."""
    machine: dict[str, Any] = store.data["machine"]
    hypervisor = machine["hypervisor"]
    rows = [
        ("CPU", f"{machine['cpu']}, {machine['mhz']} MHz, {machine['cores']} cores"),
        ("hypervisor", hypervisor if hypervisor == "none" else f"{hypervisor}: cores and disk are virtual"),
        ("kernel", machine["kernel"]),
        ("mitigations", "; ".join(machine["mitigations"]) or "none needed"),
        ("frequency governor", machine["governor"]),
        ("memory", bytes_text(machine["memory_bytes"])),
        ("hugepages of 2 MiB", f"{machine['hugepages_2m']} reserved before the run (for SPDK)"),
        ("transparent hugepages", f"{machine['thp']}, of shared memory {machine['thp_shmem']}"),
    ]
    for name, found in machine["files"].items():
        words = [f"{found['kind']} on {found['device']}", found["options"]]
        words += [f"scheduler {found['scheduler']}"] if found.get("scheduler", "unknown") != "unknown" else []
        words += [f"rotational: {found['rotational']}"] if "rotational" in found else []
        words += [f"cache: {found['cache']}"] if found.get("cache") else []
        rows.append((f"files of {name}", ", ".join(words)))
    for name, side in store.data["sides"].items():
        words = [side["version"], side.get("source", ""), side.get("build", "")]
        rows.append((NAMES.get(name, "Pollux"), "; ".join(word for word in words if word)))
    return table(("what", "value"), rows)


BOOKKEEPING = re.compile(r" --(append|docs|no-docs|keep-files|(out|stop-after|pollux)[ =]\S+)(?= |$)")


def essential(command: str) -> str:
    """A command without what only says where samples go and how a run was cut into pieces."""
    return BOOKKEEPING.sub("", command)


def _from_to(numbers: Iterable[float]) -> str:
    """The least and the greatest of some numbers."""
    sorted_ = sorted(set(numbers)) or [0]
    return " to ".join(f"{number:g}" for number in dict.fromkeys((sorted_[0], sorted_[-1])))


def builds_line(store: Store) -> str:
    """What was measured, in a line."""
    sides = ((NAMES.get(name, "Pollux"), side) for name, side in store.data["sides"].items())
    words = [f"{name}: " + "; ".join(side[part] for part in ("version", "source") if side.get(part)) for name, side in sides]
    return ". ".join(words) + ".\n"


def measured_line(store: Store) -> str:
    """When, how and how often."""
    calls = store.data["calls"]
    commands = list(dict.fromkeys(essential(call["command"]) for call in calls))
    turns = _from_to(Counter((s["what"], s["side"], s["client"]) for s in store.data["samples"]).values())
    seconds = _from_to(call.get("options", {}).get("seconds", 1) for call in calls)
    dates = sorted({call["date"] for call in calls})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    how = f"{turns} turns of {seconds} s" + (f", in {len(calls)} calls" if len(calls) > 1 else "")
    return f"Measured {when}, {how}: " + "; ".join(f"`{command}`" for command in commands) + "\n"
