"""Puts tables and plots into docs/performance.md, between markers, and leaves everything else there alone.

    <!-- bench: goals -->
    ... replaced ...
    <!-- bench: end -->

A section for which there are no samples stays as it is.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from . import charts, report
from .cells import Cell
from .charts import Bar, RatioBar
from .clients import PERCENTILES
from .errors import BenchError
from .goals import judge
from .plan import Lane
from .stats import spread
from .store import Store
from .verdict import Verdict
from .words import count_text, ns_text

END = "<!-- bench: end -->"


def replace_section(text: str, name: str, content: str) -> str:
    """The page with one section's content replaced."""
    begin = f"<!-- bench: {name} -->"
    pattern = re.compile(re.escape(begin) + r"\n.*?" + re.escape(END), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise BenchError(f"the page has no section between {begin} and {END}, or several")
    return pattern.sub(lambda _: f"{begin}\n{content.rstrip()}\n{END}", text)


def sides_and_clients(store: Store) -> tuple[str | None, list[str]]:
    """The other side, and the clients that drove."""
    other = next((name for name in store.data["sides"] if name != "pollux"), None)
    clients = [client for client in ("bench", "bdevperf") if any(kind[2] == client for kind in store.kinds())]
    return other, clients


GOALS = {"goals": False, "thin": True}
"""The sections of judged rows, and whether they are those on thin pools."""


def render(store: Store, docs: Path) -> list[Path]:
    """Writes page and plots; returns what was written."""
    page = docs / "performance.md"
    folder = docs / "performance"
    folder.mkdir(exist_ok=True)
    try:
        text = page.read_text()
    except OSError as error:
        raise BenchError(f"cannot read {page}: {error}") from error
    plots: dict[str, str] = {}
    line = report.measured_line(store)
    written = []
    for name, thin in GOALS.items():
        judged = judge(store, *sides_and_clients(store), thin)
        if any(verdict.passed is not None for verdict in judged):
            plots[f"{name}.svg"] = goals_chart(judged)
            parts = [line, report.builds_line(store) if thin else "", _images([f"{name}.svg"]), report.goals_table(judged)]
            text = replace_section(text, name, "\n".join(part for part in parts if part))
            written.append(name)
    if report.cells(store):
        made = cell_charts(store)
        plots |= made
        parts = [line, _images(list(made)), report.cells_tables(store), report.workers_table(store)]
        text = replace_section(text, "cells", "\n".join(part for part in parts if part))
    if written != ["thin"]:
        # the rows on thin pools say themselves what build they are of
        text = replace_section(text, "machine", report.machine_table(store))
    for name, svg in plots.items():
        (folder / name).write_text(svg)
    page.write_text(text)
    return [page, *(folder / name for name in plots)]


def _images(names: Sequence[str]) -> str:
    return "".join(f"![{Path(name).stem}](performance/{name})\n" for name in names)


def goals_chart(judged: Sequence[Verdict]) -> str:
    """All rows that are ratios."""
    rows = []
    for verdict in judged:
        found = verdict.ratio
        if found is not None:
            name = verdict.row + ("" if verdict.by == "bench" else f" ({verdict.by})")
            label = f"{verdict.measured} ({verdict.goal})" + ("" if verdict.passed else ", missed")
            bar = Bar(found.value, found.turns.low, found.turns.high, label)
            rows.append(RatioBar(name, bar, verdict.limit, bool(verdict.passed)))
    return charts.ratios("Goals: ratios to the other side", rows)


def cell_charts(store: Store) -> dict[str, str]:
    """Rates and latencies for each backing: one VM, one queue, without bdevperf."""
    found = report.cells(store)
    plots = {}
    for backing in dict.fromkeys(cell.backing for cell in found):
        plain = [cell for cell in found if cell.backing == backing and cell.vms == 1 and cell.queues == 1]
        lanes = list(dict.fromkeys(lane for cell in plain for lane in found[cell] if lane.client != "bdevperf"))
        if lanes:
            plots[f"iops-{backing}.svg"] = _rates(store, backing, plain, lanes)
            small = [cell for cell in plain if cell.bs == 4096][:9]
            plots[f"latency-{backing}.svg"] = _latencies(store, backing, small, lanes)
    return plots


def _rates(store: Store, backing: str, cells: Sequence[Cell], lanes: Sequence[Lane]) -> str:
    series: dict[str, list[Bar | None]] = {
        report.name_of(lane, ["bench"]): [_rate(store, cell, lane) for cell in cells] for lane in lanes
    }
    return charts.rates(f"{backing}: IOPS", [report.cell_name(cell) for cell in cells], series, count_text)


def _rate(store: Store, cell: Cell, lane: Lane) -> Bar | None:
    numbers = list(store.numbers(cell.key, lane.side, lane.client, "iops").values())
    if not numbers:
        return None
    seen = spread(numbers)
    return Bar(seen.median, seen.low, seen.high, count_text(seen.median))


def _latencies(store: Store, backing: str, cells: Sequence[Cell], lanes: Sequence[Lane]) -> str:
    panels = {
        report.cell_name(cell): {report.name_of(lane, ["bench"]): _percentiles(store, cell, lane) for lane in lanes}
        for cell in cells
    }
    marks = [name.removeprefix("p").replace("_", ".") for name in PERCENTILES]
    return charts.percentiles(f"{backing}: latency by percentile", panels, marks, ns_text)


def _percentiles(store: Store, cell: Cell, lane: Lane) -> list[float | None]:
    numbers = [store.numbers(cell.key, lane.side, lane.client, f"latency_ns.{name}") for name in PERCENTILES]
    return [median(found.values()) if found else None for found in numbers]
