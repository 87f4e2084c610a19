"""Keys of cells, the matrix, lanes, and what the command line makes of its words."""

import unittest
from pathlib import Path

from bench.cells import ONE_CORE, Cell, parse_size, size_text
from bench.cli import _numbers, _words, chosen_by
from bench.errors import BenchError
from bench.goals import rows
from bench.kernel import mask, parse_cores
from bench.machine import neutral_command
from bench.plan import FIO, Item, Lane, Wanted, estimate, groups, lanes, matrix, quick
from bench.targets import parse_side


class Cells(unittest.TestCase):
    def test_keys_come_back_as_the_same_cells(self) -> None:
        for cell in [*matrix(Wanted()), Cell("disk", "read", 128 << 10, 32, 2, 1, ONE_CORE)]:
            self.assertEqual(Cell.parse(cell.key), cell)

    def test_what_is_no_key_is_refused(self) -> None:
        for key in (
            "",
            "idle/cpu",
            "null/randread/4k/32/q1/vm1/own",
            "null/nap/4k/qd1/q1/vm1/own",
            "null/read/x/qd1/q1/vm1/own",
        ):
            with self.assertRaises(BenchError, msg=key):
                Cell.parse(key)

    def test_sizes(self) -> None:
        for size, text in ((512, "512"), (4096, "4k"), (131072, "128k"), (1 << 30, "1g"), (3 << 20, "3m")):
            self.assertEqual((size_text(size), parse_size(text)), (text, size))
        for text in ("", "k", "-1", "0", "4kk", "1.5g"):
            with self.assertRaises(ValueError, msg=text):
                parse_size(text)


class Matrix(unittest.TestCase):
    def test_the_whole_has_every_axis_and_no_cell_twice(self) -> None:
        cells = matrix(Wanted())
        self.assertEqual(len(cells), len(set(cells)))
        axes = {
            name: {getattr(cell, name) for cell in cells} for name in ("backing", "rw", "bs", "depth", "queues", "vms")
        }
        self.assertEqual(axes["backing"], {"null", "ram", "disk", "tmpfs"})
        self.assertEqual(axes["rw"], {"randread", "randwrite", "randrw", "read", "write"})
        self.assertEqual((axes["depth"], axes["queues"], axes["vms"]), ({1, 32, 128}, {1, 2}, {1, 16, 256}))
        self.assertTrue(all((cell.bs == 131072) == (cell.rw in ("read", "write")) for cell in cells))

    def test_what_is_named_is_crossed(self) -> None:
        cells = matrix(Wanted(["null"], ["randread", "write"], [4, 8], [2], [16]))
        found = {(cell.rw, cell.depth, cell.queues, cell.vms) for cell in cells}
        self.assertEqual(found, {(rw, depth, 2, 16) for rw in ("randread", "write") for depth in (4, 8)})
        with self.assertRaises(BenchError):
            matrix(Wanted(["floppy"]))
        self.assertEqual({cell.vms for cell in matrix(quick())}, {1})

    def test_lanes_take_turns_and_leave_out_what_does_not_fit(self) -> None:
        sides, both = ["pollux", "spdk"], ["bench", "bdevperf"]
        null, disk = Cell("null", "randread", 4096, 1), Cell("disk", "randread", 4096, 1)
        order = (Lane("pollux", "bench"), Lane("spdk", "bench"), Lane("pollux", "bdevperf"), Lane("spdk", "bdevperf"))
        self.assertEqual(lanes(null, sides, both, True), order)
        self.assertEqual(lanes(disk, sides, both, True), (*order, FIO))
        self.assertEqual(lanes(disk.on(queues=2), sides, both, False), order[:2])
        self.assertEqual(lanes(disk.on(vms=16), sides, both, True), order[:2])

    def test_groups_share_targets_and_estimates_add_up(self) -> None:
        items = [
            Item(cell, (Lane("pollux", "bench"),))
            for cell in matrix(Wanted(["null", "ram"], ["randread"], [1], [1, 2], [1]))
        ]
        self.assertEqual([len(members) for members in groups(items).values()], [2, 2])
        one, ten = (estimate(items, turns, 1, 0) for turns in (1, 10))
        self.assertGreater(ten - one, 4 * 9)


class Goals(unittest.TestCase):
    def test_every_row_of_the_issue_is_there(self) -> None:
        keys = [row.key for row in rows("spdk", ["bench", "bdevperf"])]
        thin = [key for key in keys if key.startswith("thin")]
        others = ["null-rate", "null-trip", "ram", "disk", "tmpfs", "idle", "two", "memory", "scrape"]
        self.assertEqual(keys, others + thin)
        parts = {key.removeprefix("thin-").partition("-")[0] for key in thin}
        self.assertEqual(
            parts, {"mapped", "lvol", "chain", "first", "written", "cut", "clones", "start", "map", "discard"}
        )
        cells = {item.cell.key for row in rows("spdk", ["bench"]) for item in row.items}
        self.assertIn("null/randread/4k/qd128/q1/vm1/own", cells)
        self.assertIn("ram/randwrite/4k/qd32/q1/vm1/own", cells)
        self.assertIn("tmpfs/randread/4k/qd32/q1/vm1/one-core", cells)

    def test_alone_only_what_needs_nobody_else(self) -> None:
        alone = [row.key for row in rows(None, ["bench"])]
        self.assertEqual([key for key in alone if not key.startswith("thin")], ["disk", "idle", "two", "memory", "scrape"])
        self.assertNotIn("thin-lvol", alone)
        self.assertIn("thin-cut", alone)

    def test_rows_are_chosen_by_the_beginnings_of_their_keys(self) -> None:
        self.assertEqual(chosen_by(["thin-first-ram", "idle"]), ["thin", "thin-first", "thin-first-ram", "idle"])


class Words(unittest.TestCase):
    def test_lists(self) -> None:
        self.assertEqual((_words(" a, b,"), _words(None), _numbers("1,32")), (["a", "b"], [], [1, 32]))
        for text in ("x", "1,-2", "0"):
            with self.assertRaises(BenchError, msg=text):
                _numbers(text)
        self.assertEqual((parse_cores("0,2-3"), mask([0, 2])), ([0, 2, 3], "0x5"))
        with self.assertRaises(BenchError):
            parse_cores("a")

    def test_sides(self) -> None:
        for text in ("spdk", "spdk=", "qemu=/x", "spdk=/nowhere", "pollux=/nowhere/pollux"):
            with self.assertRaises(BenchError, msg=text):
                parse_side(text)
        side = parse_side(f"pollux={Path(__file__)}")
        self.assertEqual((side.name, side.kind), ("before", "pollux"))

    def test_reports_name_no_paths(self) -> None:
        argv = ["--goals", "--against", "spdk=/home/me/spdk", "--out", "/home/me/all.json", "--disk-dir=/mnt/x"]
        self.assertEqual(neutral_command(argv), "scripts/bench --goals --against spdk=SPDK --out all.json --disk-dir=x")
