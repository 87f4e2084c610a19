"""From samples to verdicts, tables, plots and the page."""

import json
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench import charts, report
from bench.charts import Bar, RatioBar
from bench.errors import BenchError
from bench.goals import judge
from bench.render import END, goals_chart, render, replace_section
from bench.store import Store
from bench.words import brief, bytes_text, count_text, ns_text, time_text

MACHINE: dict[str, Any] = {
    "cpu": "A <fast> one", "cores": 2, "mhz": "1", "hypervisor": "none", "kernel": "Linux 6", "mitigations": [],
    "governor": "performance", "memory_bytes": 1 << 30, "hugepages_2m": 0, "thp": "madvise", "thp_shmem": "never",
    "files": {"disk": {"kind": "ext4", "device": "vda", "options": "rw"}},
}  # fmt: skip
RATE = "null/randread/4k/qd32/q1/vm1/own"
TRIP = "null/randread/4k/qd1/q1/vm1/own"
FILE = "disk/randread/4k/qd32/q1/vm1/own"


def values(iops: float, **more: Any) -> dict[str, Any]:
    return {
        "iops": iops,
        "bytes_per_second": 1,
        "latency_ns": {"mean": 1e9 / iops, "p50": 5.0, "p99": 50.0},
        "errors": 0,
        **more,
    }


def filled() -> Store:
    store = Store.new(None)
    sides = {"pollux": {"version": "pollux 1", "identity": "a"}, "spdk": {"version": "SPDK 2", "identity": "b"}}
    store.begin({"date": "2026-01-01", "command": "scripts/bench", "options": {"seconds": 1}}, sides, MACHINE)
    scrape = {"scrape_seconds": 0.01, "scrape_bytes": 1 << 20, "scrapes": 3, "other_cpu_ns": 16e6}
    for turn in range(3):
        store.add(RATE, "pollux", "bench", turn, values(6e6, busy_ns_per_io=100.0, idle_share=0.4))
        store.add(RATE, "spdk", "bench", turn, values(5.5e6 + turn, busy_ns_per_io=180.0, idle_share=0.0))
        store.add(TRIP, "pollux", "bench", turn, values(2e6, busy_ns_per_io=1.0, idle_share=0.9))
        store.add(TRIP, "spdk", "bench", turn, values(1e6))
        store.add(FILE, "pollux", "bench", turn, values(50e3, idle_share=0.6, workers={"0-1": 2}))
        store.add(FILE, "fio", "fio", turn, values(100e3))
        store.add("idle/cpu", "pollux", "bench", turn, {"core_share": 0.002})
        store.add("scrape/quiet", "pollux", "bench", turn, values(1e6, busy_ns_per_io=90.0, other_cpu_ns=1e6))
        store.add("scrape/scraped", "pollux", "bench", turn, values(0.98e6, busy_ns_per_io=100.0, **scrape))
    return store


def verdict(store: Store, row: str) -> Any:
    return next(found for found in judge(store, "spdk", ["bench"]) if found.row.startswith(row))


class Goals(unittest.TestCase):
    def test_busy_times_are_compared_where_the_client_is_the_limit(self) -> None:
        found = verdict(filled(), "null, randread, depth 32")
        self.assertEqual((found.measured, found.passed), ("1.80 ×", True))
        self.assertIn("1.09 ×", found.note)

    def test_rates_are_compared_where_the_target_is_the_limit(self) -> None:
        store = filled()
        for sample in store.data["samples"]:
            if sample["side"] == "pollux":
                sample["values"]["idle_share"] = 0.01
        found = verdict(store, "null, randread, depth 32")
        self.assertEqual((found.measured, found.passed, found.note), ("1.09 ×", False, ""))

    def test_a_round_trip_is_better_when_it_is_shorter(self) -> None:
        found = verdict(filled(), "null, round trip")
        self.assertEqual(
            (found.measured, found.passed, found.ours, found.theirs), ("0.50 ×", True, "500 ns", "1.00 µs")
        )

    def test_the_bare_kernel_is_compared_by_rate_though_the_reactor_is_idle(self) -> None:
        found = verdict(filled(), "file on disk, randread, depth 32")
        self.assertEqual((found.measured, found.passed, found.note), ("0.50 ×", False, ""))

    def test_limits(self) -> None:
        store = filled()
        self.assertTrue(verdict(store, "256 idle VMs").passed)
        scrape = verdict(store, "scrape")
        self.assertEqual((scrape.measured, scrape.passed), ("2.00 %", False))
        self.assertIn("5.00 ms CPU", scrape.note)

    def test_a_scrape_is_judged_by_busy_time_where_the_client_is_the_limit(self) -> None:
        store = filled()
        for sample in store.data["samples"]:
            if sample["what"] == "scrape/scraped":
                sample["values"]["idle_share"] = 0.2
        scrape = verdict(store, "scrape")
        self.assertEqual(scrape.measured, "10.00 %")
        self.assertIn("loss of IOPS: 2.00 %", scrape.note)

    def test_what_has_no_samples_is_not_judged(self) -> None:
        found = verdict(filled(), "memory")
        self.assertEqual((found.passed, found.measured), (None, "not measured"))
        self.assertIn("this machine has 2", verdict(filled(), "null, two queues").note)
        self.assertIsNone(verdict(Store.new(None), "ram").passed)


class Files(unittest.TestCase):
    def test_a_store_survives_its_file_and_goes_on(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s.json"
            store = filled()
            store.path = path
            store.save()
            loaded = Store.load(path)
            self.assertEqual(loaded.data, store.data)
            self.assertEqual(loaded.numbers(RATE, "pollux", "bench", "latency_ns.p99"), {0: 50.0, 1: 50.0, 2: 50.0})
            self.assertEqual(loaded.numbers(RATE, "pollux", "bench", "nothing.there"), {})

    def test_a_failure_is_told_until_it_is_measured(self) -> None:
        store = filled()
        store.fail(RATE, "before", "bench", "no such target")
        store.fail(RATE, "before", "bench", "no such file")
        self.assertIn("- null/randread/4k/qd32/q1/vm1/own, before by bench: no such file\n", report.cells_tables(store))
        self.assertNotIn("no such target", report.cells_tables(store))
        store.add(RATE, "before", "bench", 0, values(1e6))
        self.assertNotIn("Not measured", report.cells_tables(store))

    def test_samples_of_different_builds_are_not_mixed(self) -> None:
        with self.assertRaises(BenchError):
            filled().begin({}, {"pollux": {"identity": "c"}}, MACHINE)

    def test_what_is_no_store_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s.json"
            for text in ("", "[]", json.dumps({"format": 99})):
                path.write_text(text)
                with self.assertRaises(BenchError, msg=text):
                    Store.load(path)

    def test_the_page_changes_between_its_markers_only(self) -> None:
        page = f"by hand\n<!-- bench: goals -->\nold\n{END}\nmore\n"
        page += f"<!-- bench: thin -->\n{END}\n<!-- bench: cells -->\n{END}\n<!-- bench: machine -->\n{END}\nend\n"
        with tempfile.TemporaryDirectory() as folder:
            docs = Path(folder)
            (docs / "performance.md").write_text(page)
            written = render(filled(), docs)
            once = (docs / "performance.md").read_text()
            render(filled(), docs)
            self.assertEqual((docs / "performance.md").read_text(), once)
            for svg in written[1:]:
                ElementTree.fromstring(svg.read_text())
                self.assertIn(f"performance/{svg.name}", once)
        self.assertNotIn("old", once)
        self.assertTrue(once.startswith("by hand\n") and once.endswith("\nend\n") and "\nmore\n" in once)
        self.assertIn("2 on 0-1", once)
        with self.assertRaises(BenchError):
            replace_section(page, "nowhere", "")
        with self.assertRaises(BenchError):
            replace_section(page + page, "goals", "")


class Plots(unittest.TestCase):
    def test_plots_are_well_formed_and_say_what_they_show(self) -> None:
        bar = Bar(1.5, 1.2, 1.9, "1.50 × <goal>")
        marks = ["50", "99"]
        drawn = [
            charts.ratios("R & R", [RatioBar("a < b", bar, 1.2, True), RatioBar("c", bar, 2.0, False)]),
            charts.rates("I", ["cell"], {"Pollux": [bar], "SPDK": [None]}, count_text),
            charts.percentiles("L", {"cell": {"Pollux": [1e3, 2e6], "fio": [None, None]}}, marks, ns_text),
            goals_chart(judge(filled(), "spdk", ["bench"])),
        ]
        for text in drawn:
            ElementTree.fromstring(text)
            self.assertIn("prefers-color-scheme: dark", text)
        self.assertIn("a &lt; b", drawn[0])

    def test_bars_are_as_long_as_their_values(self) -> None:
        text = charts.rates("I", ["cell"], {"a": [Bar(4, 4, 4, "")], "b": [Bar(2, 2, 2, "")]}, count_text)
        widths = [
            float(rect.get("width", "0"))
            for rect in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")
            if rect.get("x") == str(charts.LABEL)
        ]
        self.assertEqual(len(widths), 2)
        self.assertAlmostEqual(widths[0], 2 * widths[1], delta=0.2)

    def test_decades_hold_the_range(self) -> None:
        self.assertEqual(charts.decades(150, 99_000), (100, 100_000))
        self.assertEqual(charts.decades(100, 100), (100, 1000))


class Words(unittest.TestCase):
    def test_numbers(self) -> None:
        self.assertEqual([count_text(n) for n in (870, 43_000, 5.61e6)], ["870", "43.0 k", "5.61 M"])
        self.assertEqual([ns_text(n) for n in (640, 21_300, 1.2e6)], ["640 ns", "21.3 µs", "1.20 ms"])
        self.assertEqual([bytes_text(n) for n in (100, 12.4 * (1 << 20))], ["100 B", "12.4 MiB"])
        self.assertEqual([time_text(n) for n in (95, 720, 7500)], ["95 s", "12 min", "2 h 5 min"])

    def test_errors_are_seen_in_the_progress(self) -> None:
        self.assertIn("3 ERRORS", brief(values(1e6) | {"errors": 3}))

    def test_pieces_of_a_run_are_one_command(self) -> None:
        pieces = ["--goals --out a.json --append --stop-after 75 --turns 3", "--goals --out=a.json --turns 3 --no-docs"]
        commands = {report.essential(f"scripts/bench {piece}") for piece in pieces}
        self.assertEqual(commands, {"scripts/bench --goals --turns 3"})

    def test_calls_of_different_length_are_told_apart(self) -> None:
        store = filled()
        self.assertIn("3 turns of 1 s:", report.measured_line(store))
        call = {"date": "2026-01-02", "command": "scripts/bench --quick", "options": {"seconds": 0.3}}
        store.begin(call, store.data["sides"], MACHINE)
        store.add("null/read/4k/qd32/q1/vm1/own", "pollux", "bench", 0, values(1e6))
        self.assertIn("1 to 3 turns of 0.3 to 1 s, in 2 calls:", report.measured_line(store))

    def test_tables_are_markdown(self) -> None:
        self.assertEqual(report.table(("a", "b"), [("1", "2")]), "| a | b |\n|---|---|\n| 1 | 2 |\n")


if __name__ == "__main__":
    unittest.main()
