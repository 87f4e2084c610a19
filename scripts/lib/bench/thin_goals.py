"""How the measurements of thin pools are judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from .special import POLLUX, SPDK
from .stats import Ratio, ratio, spread
from .store import Store
from .thin import ACCESSES, DEPTHS, KINDS
from .thin_large import CHAINS, LIMIT_MIB
from .verdict import Verdict, range_text, times, within
from .words import bytes_text, count_text, ns_text

MIB = 1 << 20
ROOM_MIB = 8
"""What a load takes beside the map: buffers and pages of the log."""
Numbers = dict[int, float]
NAMES = {"ram": "ram", "disk": "file on disk"}


def _numbers(store: Store, what: str, name: str, lane: object = POLLUX) -> Numbers:
    found = SPDK if lane is SPDK else POLLUX
    return store.numbers(what, found.side, found.client, name)


def _middle(numbers: Numbers) -> float:
    return median(numbers.values())


@dataclass(frozen=True)
class Pair:
    """A row that is a ratio of two rates."""

    row: str
    goal: str
    limit: float
    over: Numbers
    under: Numbers
    note: str = ""
    text: Callable[[float], str] = lambda rate: f"{count_text(rate)} IOPS"
    more_is_better: bool = True

    def judge(self) -> Verdict:
        """What comes out."""
        blank = Verdict(self.row, "bench", self.goal, self.limit, self.more_is_better)
        found: Ratio | None = ratio(self.over, self.under)
        if found is None:
            return blank
        turns = self.over.keys() & self.under.keys()
        ours, theirs = (self.text(median(side[turn] for turn in turns)) for side in (self.over, self.under))
        return replace(
            blank,
            passed=within(found.value, self.limit, self.more_is_better),
            measured=f"{found.value:.2f} ×",
            turns=range_text(found.turns.low, found.turns.high, times),
            ours=ours,
            theirs=theirs,
            note=self.note,
            ratio=found,
        )


def _below(row: str, goal: str, limit: float, found: Numbers, text: Callable[[float], str] = ns_text) -> Verdict:
    blank = Verdict(row, "bench", goal, limit, more_is_better=False)
    if not found:
        return blank
    seen = spread(list(found.values()))
    return replace(
        blank,
        passed=seen.median < limit,
        measured=text(seen.median),
        turns=range_text(seen.low, seen.high, text),
    )


# --- volumes against their base, themselves and SPDK ---------------------------------------------


def _against_base(name: str, text: str, kind: str, accesses: Sequence[str], limit: float) -> Callable[[Store], list[Verdict]]:
    def judge(store: Store) -> list[Verdict]:
        found = []
        for rw in accesses:
            for depth in DEPTHS:
                what = f"thin/{name}/{kind}/{rw}/qd{depth}"
                volume, base = (_numbers(store, f"{what}/{who}", "iops") for who in ("volume", "base"))
                row = f"{text} on {NAMES[kind]}, {rw}, depth {depth}"
                note = _busy(store, what)
                found.append(Pair(row, f"≥ {limit:g} × its base", limit, volume, base, note).judge())
        return found

    return judge


def _busy(store: Store, what: str) -> str:
    busy = [_numbers(store, f"{what}/{who}", "busy_ns_per_io") for who in ("volume", "base")]
    return " for ".join(f"{_middle(one):.0f}" for one in busy) + " ns busy" if all(busy) else ""


def _against_lvol(store: Store) -> list[Verdict]:
    found = []
    for rw in ACCESSES:
        for depth in DEPTHS:
            ours, theirs = (_numbers(store, f"thin/lvol/{rw}/qd{depth}", "iops", lane) for lane in (POLLUX, SPDK))
            row = f"thin volume and lvol on ram, {rw}, depth {depth}"
            found.append(Pair(row, "≥ 1.2 × SPDK's lvol", 1.2, ours, theirs).judge())
    return found


FIRST = {"fresh": "first writes into fresh space", "cut": "first writes after a snapshot"}


def _first(kind: str) -> Callable[[Store], list[Verdict]]:
    def judge(store: Store) -> list[Verdict]:
        found = []
        for where, text in FIRST.items():
            for depth in DEPTHS:
                what = f"thin/first/{kind}/{where}/qd{depth}"
                first, again = (_numbers(store, f"{what}/{which}", "iops") for which in ("first", "again"))
                row = f"{text}, {NAMES[kind]}, depth {depth}"
                found.append(Pair(row, "≥ 0.8 × overwriting", 0.8, first, again, _fresh(store, f"{what}/first")).judge())
        return found

    return judge


def _fresh(store: Store, what: str) -> str:
    """How much of a run was new."""
    places, clusters, later = (_numbers(store, what, name) for name in ("places", "clusters", "later_ns"))
    text = f"{_middle(places):.0f} places, each once, in {_middle(clusters):.0f} new clusters" if places and clusters else ""
    return f"{text}; {_middle(later):.0f} ns busy for each afterwards" if text and later else text


def _written(store: Store) -> list[Verdict]:
    found = []
    for kind in KINDS:
        what = f"thin/written/{kind}"
        base, guest = (_numbers(store, what, f"{who}_bytes") for who in ("base", "guest"))
        row = f"first writes, a flush after each 64, {NAMES[kind]}: bytes written to the base"
        note = _fresh(store, what)
        found.append(Pair(row, "≤ 1.15 × the guest's", 1.15, base, guest, note, bytes_text, more_is_better=False).judge())
    return found


# --- large pools ---------------------------------------------------------------------------------


def _cut(store: Store) -> list[Verdict]:
    found = []
    for chain in CHAINS:
        whats = {name: f"thin/cut/chain{chain}/{name}" for name in ("snapshot", "clone", "nothing")}
        for name in ("snapshot", "clone"):
            what, depths = whats[name], _numbers(store, whats[name], "depth")
            behind = f"{min(depths.values()):.0f} to {max(depths.values()):.0f}" if depths else str(chain)
            row = f"{name} of 1 TiB behind {behind} snapshots"
            pause = _below(f"{row}: guests paused", "< 1 ms", 1e6, _numbers(store, what, "pause_ns"))
            sides = [(_numbers(store, whats[one], "latency_ns.max"), _numbers(store, whats[one], "stolen_ns")) for one in (name, "nothing")]
            if pause.passed is not None and all(longest and stolen for longest, stolen in sides):
                texts = [f"{_with_range(longest)}, stolen by the hypervisor {_with_range(stolen)}" for longest, stolen in sides]
                note = f"longest read of a client that shares its core: {texts[0]}; during a call that does nothing {texts[1]}"
                pause = replace(pause, note=note)
            calls, flushes = (_numbers(store, what, f"{one}_ns") for one in ("call", "flush"))
            beyond = {turn: calls[turn] - 2 * flushes[turn] for turn in calls.keys() & flushes.keys()}
            call = _below(f"{row}: call, without two flushes", "< 10 ms", 10e6, beyond, _signed)
            if call.passed is not None:
                call = replace(call, ours=ns_text(_middle(calls)), theirs=f"{ns_text(_middle(flushes))} a flush of the medium")
            found += [pause, call]
    return found


def _with_range(numbers: Numbers) -> str:
    seen = spread(list(numbers.values()))
    return f"{ns_text(seen.median)} ({ns_text(seen.low)} to {ns_text(seen.high)})"


def _signed(value: float) -> str:
    return f"-{ns_text(-value)}" if value < 0 else ns_text(value)


def _clones(store: Store) -> list[Verdict]:
    made = _below("1000 clones of a snapshot of 1 TiB, one call after another", "< 5 s", 5e9, _numbers(store, "thin/clones", "call_ns"))
    flushes = _numbers(store, "thin/clones", "flush_ns")
    return [replace(made, theirs=f"{ns_text(_middle(flushes))} a flush of the medium") if flushes else made]


def _start(store: Store) -> list[Verdict]:
    first = _below(
        "first read served after kill -9, 8 TiB mapped, from the daemon's start", "< 1 s", 1e9, _numbers(store, "thin/start", "start_ns")
    )
    ready = _numbers(store, "thin/start", "rpc_ns")
    return [replace(first, note=f"of that {ns_text(_middle(ready))} until RPC is answered; with the start of the client") if ready else first]


def _map(store: Store) -> list[Verdict]:
    limits = {"all": ("≤ 160 MiB", 160), "limited": (f"≤ {LIMIT_MIB + ROOM_MIB} MiB", LIMIT_MIB + ROOM_MIB)}
    texts = {"all": "memory of a map of 1 TiB", "limited": f"the same with --map-memory-mib {LIMIT_MIB}"}
    found = []
    for name, (goal, mib) in limits.items():
        used, whole = (_numbers(store, f"thin/map/{name}", f"{one}_bytes") for one in ("map", "own"))
        row = _below(texts[name], goal, mib * MIB, used, bytes_text)
        found.append(replace(row, note=f"the whole daemon: {bytes_text(_middle(whole))}") if whole else row)
    return found


def _discard(store: Store) -> list[Verdict]:
    quiet, busy = (f"thin/discard/{name}" for name in ("quiet", "busy"))
    whole = _below("discard of 1 TiB", "< 2 s", 2e9, _numbers(store, busy, "discard_ns"))
    late, early = (_numbers(store, what, "latency_ns.p99") for what in (busy, quiet))
    other = Pair("discard of 1 TiB: another volume's p99", "≤ 2 × without", 2.0, late, early, "", ns_text, more_is_better=False)
    return [whole, other.judge()]


JUDGES: dict[str, Callable[[Store], list[Verdict]]] = {
    **{f"thin-mapped-{kind}": _against_base("mapped", "thin volume", kind, ACCESSES, 0.95) for kind in KINDS},
    "thin-lvol": _against_lvol,
    **{
        f"thin-chain-{kind}": _against_base("chain", "thin volume behind 64 snapshots", kind, ("randread",), 0.9)
        for kind in KINDS
    },
    **{f"thin-first-{kind}": _first(kind) for kind in KINDS},
    "thin-written": _written,
    "thin-cut": _cut,
    "thin-clones": _clones,
    "thin-start": _start,
    "thin-map": _map,
    "thin-discard": _discard,
}
