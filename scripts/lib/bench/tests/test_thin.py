"""Thin pools: from samples to verdicts, and how samples that belong together are taken."""

import contextlib
import io
import mmap
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any, cast

from bench.cells import Cell
from bench.errors import BenchError
from bench.goals import judge
from bench.lab import Options
from bench.render import END, render
from bench.session import Session
from bench.special import POLLUX, SPDK
from bench.specials import JUDGES, SPECIALS
from bench.store import Store
from bench.targets import Place, Side
from bench.thin import _in_turns
from bench.thin_lab import Bench, Disk, image_writer, mappings, touch_memory
from bench.verdict import Verdict

from .test_report import MACHINE, filled

MIB = 1 << 20


def store() -> Store:
    made = Store.new(None)
    sides = {"pollux": {"version": "pollux 1", "identity": "a"}, "spdk": {"version": "SPDK 2", "identity": "b"}}
    made.begin({"date": "2026-01-01", "command": "scripts/bench"}, sides, MACHINE)
    return made


def rows(made: Store) -> dict[str, Verdict]:
    return {verdict.row: verdict for verdict in judge(made, "spdk", ["bench"], thin=True)}


def add(made: Store, what: str, *turns: dict[str, Any], lane: Any = POLLUX) -> None:
    for turn, values in enumerate(turns):
        made.add(what, lane.side, lane.client, turn, values)


class Fakes:
    """A session of three turns and its target: what was measured, in order."""

    turns = 3

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def settle(self) -> None:
        pass

    def measure(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample(self, what: str, _lane: Any, turn: int, _measure: Any) -> None:
        self.seen.append((turn, what.rpartition("/")[2]))


class Turns(unittest.TestCase):
    def test_volume_and_base_take_turns_at_being_first(self) -> None:
        fakes, disk = Fakes(), Disk("b", 0)
        _in_turns(cast(Session, fakes), cast(Bench, fakes), "mapped/ram", [Cell("ram", "randread", 4096, 1)], disk, disk, MIB)
        both = ["volume", "base"]
        self.assertEqual(fakes.seen, [(0, one) for one in both] + [(1, one) for one in both[::-1]] + [(2, one) for one in both])


class Verdicts(unittest.TestCase):
    def test_every_measurement_is_judged_and_every_row_needs_samples(self) -> None:
        self.assertEqual(SPECIALS.keys(), JUDGES.keys())
        found = rows(store())
        self.assertEqual(len(found), 52)
        self.assertTrue(all(one.passed is None and one.measured == "not measured" for one in found.values()))

    def test_all_that_is_measured_counts_in_a_row(self) -> None:
        """Samples under the names of a measurement make all of its rows come out."""
        values = {
            "iops": 1e5, "latency_ns": {"max": 1e5, "p99": 1e5}, "call_ns": 1e6, "flush_ns": 1e5, "depth": 3, "pause_ns": 1e4, "stolen_ns": 0.0,
            "places": 9, "clusters": 8, "base_bytes": 100, "guest_bytes": 100, "start_ns": 1e8, "rpc_ns": 1e7,
            "map_bytes": 30 * MIB, "own_bytes": 200 * MIB, "discard_ns": 1e9, "busy_ns_per_io": 500.0,
        }  # fmt: skip
        for key, special in SPECIALS.items():
            if not key.startswith("thin"):
                continue
            made = store()
            for what, lane in special.wanted():
                add(made, what, values, lane=lane)
            found = JUDGES[key](made)
            missing = [one.row for one in found if one.passed is None]
            self.assertEqual(missing, [], key)
            self.assertTrue(key == "thin-lvol" or all(one.passed for one in found), key)

    def test_a_volume_is_compared_with_its_base_by_medians(self) -> None:
        made = store()
        add(made, "thin/mapped/ram/randread/qd32/volume", *({"iops": iops} for iops in (90.0, 93.0, 10.0)))
        add(made, "thin/mapped/ram/randread/qd32/base", *({"iops": 100.0} for _ in range(3)))
        found = rows(made)["thin volume on ram, randread, depth 32"]
        self.assertEqual((found.measured, found.passed, found.turns), ("0.90 ×", False, "0.10 to 0.93"))

    def test_lvols_are_samples_of_spdk(self) -> None:
        made = store()
        for turn, lane in ((0, POLLUX), (0, SPDK)):
            made.add("thin/lvol/randwrite/qd1", lane.side, lane.client, turn, {"iops": 3.0 if lane is POLLUX else 2.0})
        found = rows(made)["thin volume and lvol on ram, randwrite, depth 1"]
        self.assertEqual((found.measured, found.passed), ("1.50 ×", True))

    def test_first_writes_say_how_much_was_new(self) -> None:
        made = store()
        add(made, "thin/first/disk/cut/qd1/first", {"iops": 79.0, "places": 8000, "clusters": 7000, "later_ns": 99.6})
        add(made, "thin/first/disk/cut/qd1/again", {"iops": 100.0})
        found = rows(made)["first writes after a snapshot, file on disk, depth 1"]
        self.assertEqual((found.measured, found.passed), ("0.79 ×", False))
        self.assertEqual(found.note, "8000 places, each once, in 7000 new clusters; 100 ns busy for each afterwards")

    def test_less_written_is_better(self) -> None:
        made = store()
        add(made, "thin/written/ram", {"base_bytes": 116 * MIB, "guest_bytes": 100 * MIB})
        found = rows(made)["first writes, a flush after each 64, ram: bytes written to the base"]
        self.assertEqual((found.measured, found.passed, found.ours), ("1.16 ×", False, "116 MiB"))

    def test_a_call_is_judged_without_two_flushes_and_a_pause_by_what_the_pool_counts(self) -> None:
        made = store()
        pause = {"latency_ns": {"max": 3.5e6}, "flush_ns": 5e6, "depth": 64, "pause_ns": 40e3, "stolen_ns": 20e6}
        add(made, "thin/cut/chain64/snapshot", pause | {"call_ns": 19e6}, pause | {"call_ns": 21e6, "depth": 65})
        add(made, "thin/cut/chain64/nothing", pause)
        found = rows(made)
        call = found["snapshot of 1 TiB behind 64 to 65 snapshots: call, without two flushes"]
        self.assertEqual((call.measured, call.passed), ("10.0 ms", False))
        paused = found["snapshot of 1 TiB behind 64 to 65 snapshots: guests paused"]
        self.assertEqual((paused.measured, paused.passed), ("40.0 µs", True))
        self.assertIn("3.50 ms (3.50 ms to 3.50 ms), stolen by the hypervisor 20.0 ms (20.0 ms to 20.0 ms);", paused.note)

    def test_a_discard_is_judged_by_what_another_volume_sees(self) -> None:
        made = store()
        add(made, "thin/discard/busy", {"latency_ns": {"p99": 250e3}, "discard_ns": 1.5e9})
        add(made, "thin/discard/quiet", {"latency_ns": {"p99": 100e3}})
        found = rows(made)
        self.assertTrue(found["discard of 1 TiB"].passed)
        other = found["discard of 1 TiB: another volume's p99"]
        self.assertEqual((other.measured, other.passed, other.ours), ("2.50 ×", False, "250 µs"))


class Pages(unittest.TestCase):
    def test_thin_pools_have_a_section_of_their_own_and_leave_the_others_alone(self) -> None:
        page = "".join(f"<!-- bench: {name} -->\nold {name}\n{END}\n" for name in ("goals", "thin", "cells", "machine"))
        made = store()
        add(made, "thin/clones", {"call_ns": 2e9, "flush_ns": 1e6})
        for found, kept in ((made, ("goals", "cells", "machine")), (filled(), ("thin",))):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "performance.md"
                path.write_text(page)
                render(found, Path(folder))
                text = path.read_text()
            for name in ("goals", "thin", "cells", "machine"):
                self.assertEqual(f"old {name}" in text, name in kept, name)


class Turns(unittest.TestCase):
    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self.addCleanup(stack.close)
        made = Store.new(None)
        made.begin({}, {}, {})
        self.session = Session(Options(Path("/pollux"), ()), made, 2)
        self.asked = 0

    def both(self) -> list[dict[str, Any]]:
        self.asked += 1
        return [{"iops": 1.0 * self.asked}, {"iops": 2.0 * self.asked}]

    def test_samples_that_belong_together_are_of_one_turn(self) -> None:
        whats = ("first", "again")
        self.session.together(whats, POLLUX, 0, self.both)
        self.session.together(whats, POLLUX, 0, self.both)
        self.assertEqual(self.asked, 1)
        self.session.store.add("first", "pollux", "bench", 1, {"iops": 99.0})
        self.session.together(whats, POLLUX, 1, self.both)
        self.assertEqual(self.session.store.numbers("first", "pollux", "bench", "iops"), {0: 1.0, 1: 2.0})
        self.assertEqual(self.session.store.numbers("again", "pollux", "bench", "iops"), {0: 2.0, 1: 4.0})

    def test_none_of_them_is_kept_if_one_fails(self) -> None:
        def fail() -> list[dict[str, Any]]:
            raise BenchError("no")

        self.session.together(("first", "again"), POLLUX, 0, fail)
        self.assertEqual((self.session.store.kinds(), len(self.session.failed)), ([], 2))


class Words(unittest.TestCase):
    def test_a_daemon_that_is_to_remember_is_not_ephemeral(self) -> None:
        side = Side("pollux", "pollux", Path("/pollux"))
        for keep in (False, True):
            argv = side.argv(Place(Path("/f"), [0], keep=keep))
            self.assertEqual("--ephemeral" in argv, not keep)

    def test_who_lacks_the_writer_of_images_is_told_how_it_is_made(self) -> None:
        with self.assertRaisesRegex(BenchError, "--example pool_image"):
            image_writer(Options(Path("/nowhere/pollux"), ()))

    def test_what_a_process_has_in_memory_is_touched(self) -> None:
        text = """55a000000000-55a000400000 rw-p 00000000 00:00 0          [heap]
7f0000000000-7f0000300000 rw-p 00000000 00:00 0
7f1000000000-7f1000200000 r--p 00000000 00:00 0
7f2000000000-7f2000200000 rw-p 00000000 fe:00 77         /usr/bin/pollux
7f3000000000-7f3000400000 rw-s 00000000 00:01 9          /memfd:guest (deleted)
7f4000000000-7f4000200000 rw-p 00000000 00:00 0          [anon:ram]
7f5000000000-7f50001ff000 rw-p 00000000 00:00 0
"""
        self.assertEqual(mappings(text), [(0x7F0000000000, 0x7F0000300000), (0x7F4000000000, 0x7F4000200000)])
        with mmap.mmap(-1, 3 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mine:
            mine[0] = 1
            self.assertGreaterEqual(touch_memory(os.getpid()), len(mine))

    def test_cells_of_volumes_have_keys(self) -> None:
        whats = [what for key, special in SPECIALS.items() if key.startswith("thin") for what in special.whats]
        self.assertEqual(len(whats), len(set(whats)))
        self.assertIn("thin/mapped/disk/randwrite/qd128/base", whats)
        with self.assertRaises(BenchError):
            Cell.parse(whats[0])


if __name__ == "__main__":
    unittest.main()
