"""How the special measurements are judged."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median

from .special import POLLUX, SPECIALS
from .stats import ratio, spread
from .store import Store
from .verdict import EMPTY, Verdict, range_text, times
from .words import bytes_text, count_text, ns_text, percent_text

MIB = 1 << 20
Text = Callable[[float], str]


def _numbers(store: Store, what: str, name: str) -> dict[int, float]:
    return store.numbers(what, POLLUX.side, POLLUX.client, name)


def _middle(store: Store, what: str, name: str) -> float | None:
    numbers = _numbers(store, what, name)
    return median(numbers.values()) if numbers else None


def _waits(store: Store, what: str) -> bool:
    """Whether the target had empty polls."""
    idle = _middle(store, what, "idle_share")
    return idle is not None and idle > EMPTY


def _below(blank: Verdict, store: Store, what: str, name: str, text: Text) -> Verdict:
    """A figure whose median has to be below the limit."""
    numbers = _numbers(store, what, name)
    if not numbers:
        return blank
    seen = spread(list(numbers.values()))
    turns = range_text(seen.low, seen.high, text)
    return replace(blank, passed=seen.median < blank.limit, measured=text(seen.median), turns=turns)


def _limit(row: str, goal: str, limit: float) -> Verdict:
    return Verdict(row, "bench", goal, limit, more_is_better=False)


def idle(store: Store) -> list[Verdict]:
    """What 256 idle VMs cost, and how long the first request after idle takes."""
    cpu, wake, awake, floor = SPECIALS["idle"].whats
    quiet = _limit("256 idle VMs: CPU of the whole daemon", "< 1 % of a core", 0.01)
    first = _limit("first request after idle (256 VMs): p99", "< 100 µs", 100e3)
    first = _below(first, store, wake, "latency_ns.p99", ns_text)
    if first.passed is not None:
        never, bare = _shape(store, awake), _shape(store, floor)
        theirs = [f"reactor that never sleeps: {never}"] if never else []
        theirs += [f"bare wake-up of a thread: {bare}"] if bare else []
        first = replace(first, ours=_shape(store, wake), theirs="; ".join(theirs))
    return [_below(quiet, store, cpu, "core_share", percent_text), first]


def _shape(store: Store, what: str) -> str:
    names = ("p50", "p90", "p99")
    found = [_middle(store, what, f"latency_ns.{name}") for name in names]
    return ", ".join(f"{name} {ns_text(value)}" for name, value in zip(names, found, strict=True) if value is not None)


def two(store: Store) -> list[Verdict]:
    """Two queues on two reactors against one on one."""
    alone, both = SPECIALS["two"].whats
    blank = Verdict("null, two queues on two reactors", "bench", "≥ 1.8 × one", 1.8)
    found, note = ratio(_numbers(store, both, "iops"), _numbers(store, alone, "iops")), ""
    if found is None:
        cores = store.data["machine"].get("cores", 0)
        note = f"needs 4 cores, this machine has {cores}; see instructions and shared cache lines" if cores < 4 else ""
        return [replace(blank, note=note)]
    twice = {turn: 2 * busy for turn, busy in _numbers(store, alone, "busy_ns_per_io").items()}
    capacity = ratio(twice, _numbers(store, both, "busy_ns_per_io"))
    if _waits(store, both) and capacity is not None:
        note, found = f"the reactors have empty polls: busy times are compared (IOPS: {found.value:.2f} ×)", capacity
    return [
        replace(
            blank,
            passed=found.value >= blank.limit,
            measured=f"{found.value:.2f} ×",
            turns=range_text(found.turns.low, found.turns.high, times),
            ours=_rate(store, both),
            theirs=_rate(store, alone),
            note=note,
            ratio=found,
        )
    ]


def _rate(store: Store, what: str) -> str:
    return f"{count_text(_middle(store, what, 'iops') or 0)} IOPS"


def memory(store: Store) -> list[Verdict]:
    """The daemon's own memory with many VMs."""
    found = []
    for what in SPECIALS["memory"].whats:
        queues = _middle(store, what, "queues") or 0
        limit = 64 * MIB + queues * MIB
        goal = f"< {bytes_text(limit)} (64 MiB, 1 MiB a queue)" if queues else "< 64 MiB and 1 MiB a queue"
        backing, _, vms = what.removeprefix("memory/").rpartition("-")
        blank = _limit(f"memory, {vms} VMs on {backing}, under load", goal, limit)
        found.append(_below(blank, store, what, "own_bytes", bytes_text))
    return found


def scrape(store: Store) -> list[Verdict]:
    """What a scrape a second costs the VMs: IOPS, or busy time where the client is the limit."""
    quiet, scraped = SPECIALS["scrape"].whats
    blank = _limit("scrape of 1000 LUNs at 1 Hz: loss of IOPS", "< 1 %", 0.01)
    found, limited = ratio(_numbers(store, scraped, "iops"), _numbers(store, quiet, "iops")), ""
    if found is None:
        return [blank]
    busy = ratio(_numbers(store, quiet, "busy_ns_per_io"), _numbers(store, scraped, "busy_ns_per_io"))
    if _waits(store, scraped) and busy is not None:
        limited = f"Pollux has empty polls: busy times are compared (loss of IOPS: {percent_text(1 - found.value)}); "
        found = busy
    loss = 1 - found.value
    return [
        replace(
            blank,
            passed=loss < blank.limit,
            measured=percent_text(loss),
            turns=range_text(1 - found.turns.high, 1 - found.turns.low, percent_text),
            ours=_rate(store, scraped),
            theirs=_rate(store, quiet) + " not scraped",
            note=limited + _one_scrape(store, quiet, scraped),
        )
    ]


def _one_scrape(store: Store, quiet: str, scraped: str) -> str:
    seconds, size = _middle(store, scraped, "scrape_seconds") or 0, _middle(store, scraped, "scrape_bytes") or 0
    count = _middle(store, scraped, "scrapes") or 1
    cpu = ((_middle(store, scraped, "other_cpu_ns") or 0) - (_middle(store, quiet, "other_cpu_ns") or 0)) / count
    return f"a scrape: {bytes_text(size)}, {ns_text(seconds * 1e9)}, {ns_text(cpu)} CPU of threads beside the reactor"


JUDGES: dict[str, Callable[[Store], list[Verdict]]] = {"idle": idle, "two": two, "memory": memory, "scrape": scrape}
