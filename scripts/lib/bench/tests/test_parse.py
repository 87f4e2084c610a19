"""What other programs and the kernel print, taken apart."""

import json
import os
import tempfile
import unittest
import unittest.mock
from pathlib import Path

from bench import clients, hugepages, kernel
from bench.cells import Cell
from bench.clients import Load
from bench.errors import BenchError
from bench.hugepages import mounted
from bench.machine import chosen, mitigations, parse_mountinfo, parse_profile
from bench.targets import Usage, parse_ops, parse_usage
from bench.watch import Look, steady

LOAD = Load(Cell("null", "randrw", 4096, 32, vms=2), 1.0, 0.2, 3)


class Clients(unittest.TestCase):
    def test_pollux_bench(self) -> None:
        latency = {"min": 1, "mean": 2.5, "p50": 2, "p90": 3, "p99": 4, "p99_9": 5, "p99_99": 6, "max": 7}
        answer = {"iops": 1e6, "bytes_per_second": 4.096e9, "latency_ns": latency, "errors": 1, "verify_errors": 2}
        answer |= {"duration_s": 1.0, "ios": 10**6, "client": {"ns_per_io": 40.5, "busy_share": 0.25}}
        values = clients.parse_bench(json.dumps(answer))
        self.assertEqual((values["iops"], values["errors"], values["latency_ns"]), (1e6, 3, latency))
        self.assertEqual((values["client_ns_per_io"], values["client_busy_share"]), (40.5, 0.25))
        self.assertEqual((values["ios"], values["seconds"]), (10**6, 1.0))
        for text in ("", "{}", "no", '{"iops": 1}'):
            with self.assertRaises(BenchError, msg=text):
                clients.parse_bench(text)

    def test_its_command_line_has_a_socket_for_each_vm(self) -> None:
        argv = clients.bench_argv(Path("/p"), [Path("/a"), Path("/b")], LOAD)
        self.assertEqual(argv[:6], ["/p", "bench", "--socket", "/a", "--socket", "/b"])
        self.assertEqual(argv[argv.index("--rwmixread") + 1], "70")
        self.assertEqual(argv[argv.index("--core") + 1], "3")

    def test_bdevperf(self) -> None:
        text = (
            "Device Information : IOPS MiB/s Fail/s TO/s Average min max\n\rVS0t0 : 10.0 0.0 0.0 0.0 1.0 1.0 1.0\n"
            "\r ===\n\r Total          : 4250000.25   16601.56       1.00    2.00     7.47     1.50   200.25\n"
        )
        values = clients.parse_bdevperf(text)
        self.assertEqual((values["iops"], values["errors"]), (4250000.25, 3.0))
        self.assertEqual(values["latency_ns"], {"min": 1500.0, "mean": 7470.0, "max": 200250.0})
        with self.assertRaises(BenchError):
            clients.parse_bdevperf("bdevperf.c: ERROR")

    def test_fio_also_behind_its_warnings(self) -> None:
        latency = {"min": 10, "mean": 20.5, "max": 90, "percentile": {"50.000000": 20, "99.000000": 80}}
        job = {"error": 0, "mixed": {"iops": 5000.5, "bw_bytes": 1, "lat_ns": latency}}
        values = clients.parse_fio("fio: a warning\n" + json.dumps({"jobs": [job]}))
        self.assertEqual(values["latency_ns"], {"min": 10, "mean": 20.5, "p50": 20, "p99": 80, "max": 90})
        with self.assertRaises(BenchError):
            clients.parse_fio("fio: no such engine")

    def test_fio_has_the_options_of_the_device(self) -> None:
        argv = clients.fio_argv(Path("/f"), 1 << 20, [0], LOAD)
        for option in (
            "--ioengine=io_uring",
            "--direct=1",
            "--fixedbufs=0",
            "--registerfiles=1",
            "--cpus_allowed=0",
            "--iodepth=32",
        ):
            self.assertIn(option, argv)


class Targets(unittest.TestCase):
    def test_usage_is_in_seconds_over_all_reactors(self) -> None:
        reactors = [{"busy": 50, "idle": 150}, {"busy": 100, "idle": 0}]
        self.assertEqual(parse_usage({"tick_rate": 100, "reactors": reactors}), Usage(1.5, 2))

    def test_ops(self) -> None:
        self.assertEqual(parse_ops({"bdevs": [{"num_read_ops": 3, "num_write_ops": 4, "num_unmap_ops": 9}]}), 7)

    def test_only_full_load_counts(self) -> None:
        busy_and_ops = [(0.0, 0), (0.1, 10), (0.8, 900), (1.6, 1900), (2.4, 2900), (3.1, 3800), (3.2, 3900)]
        looks = [Look(at, Usage(busy, 2), ops) for at, (busy, ops) in enumerate(busy_and_ops)]
        found = steady(looks)
        assert found is not None
        # neither connecting and ending, nor the first and the last second of full load
        self.assertAlmostEqual(found[0], 0.8)
        self.assertEqual(found[1], 2)

    def test_short_loads_count_as_they_are(self) -> None:
        looks = [Look(0, Usage(0, 1), 0), Look(2, Usage(1, 1), 100)]
        self.assertEqual(steady(looks), (0.5, 1))

    def test_no_load_is_no_figure(self) -> None:
        self.assertIsNone(steady([]))
        self.assertIsNone(steady([Look(0, Usage(0, 1), 5), Look(1, Usage(0, 1), 5)]))


SMAPS = """\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 12 /usr/bin/pollux
Size: 1024 kB
Rss: 700 kB
Pss: 700 kB
7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /memfd:guest memory (deleted)
Rss: 2048 kB
Private_Hugetlb: 4096 kB
7f0100000000-7f0100100000 rw-p 00000000 00:00 0
Rss: 300 kB
"""


class Kernel(unittest.TestCase):
    def test_guest_memory_is_told_apart(self) -> None:
        seen = kernel.parse_smaps(SMAPS, lambda name: name.startswith("/memfd:"))
        self.assertEqual((seen.own, seen.guests), (1000 << 10, 6144 << 10))

    def test_stat_of_a_thread_with_brackets_in_its_name(self) -> None:
        fields = ["S", *(str(number) for number in range(4, 53))]
        stat = "7 (a ) b) " + " ".join(fields)
        self.assertEqual(kernel.last_core(stat), 39)
        self.assertEqual(kernel.stat_cpu_ns(stat, 100), (14 + 15) * 10_000_000)

    def test_this_process(self) -> None:
        self.assertTrue(any(task.allowed for task in kernel.tasks(os.getpid())))
        self.assertGreater(kernel.cpu_ns(os.getpid()), 0)
        self.assertEqual(kernel.workers(os.getpid()), {})

    def test_mounts(self) -> None:
        text = "none /a hugetlbfs rw,pagesize=2M 0 0\nnone /b hugetlbfs rw,pagesize=1024M 0 0\ntmpfs /c tmpfs rw 0 0\n"
        self.assertEqual(mounted(text), [Path("/a")])
        line = "36 35 254:1 / /mnt rw,noatime master:1 - ext4 /dev/vda1 rw,errors=remount-ro\n"
        self.assertEqual(parse_mountinfo(line, "254:1"), {"kind": "ext4", "device": "vda1", "options": "rw,noatime"})
        self.assertEqual(parse_mountinfo(line, "0:1")["kind"], "unknown")

    def test_only_own_leftovers_are_removed(self) -> None:
        gone, other, alive = 2**22 + 1, 2**22 + 2, os.getpid()
        with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(hugepages, "STARTED", {gone, alive}):
            files = {pid: Path(folder) / f"spdk_pid{pid}map_0" for pid in (gone, other, alive)}
            for file in files.values():
                file.touch()
            hugepages.remove_leftovers(Path(folder))
            self.assertEqual([pid for pid, file in files.items() if file.exists()], [other, alive])
            self.assertEqual(hugepages.leftovers(Path(folder)), [files[other]])

    def test_machine_words(self) -> None:
        self.assertEqual((chosen("always [madvise] never"), chosen("")), ("madvise", "unknown"))
        states = {"spectre_v1": "Mitigation: x", "mds": "Not affected", "odd": "Vulnerable"}
        self.assertEqual(mitigations(states), ["spectre_v1: Mitigation: x", "odd: Vulnerable"])
        self.assertEqual(
            parse_profile('[profile.release]\nlto = "thin"\n# why\npanic = "abort"\n\n[profile.dev]\nx = 1'),
            'lto = "thin", panic = "abort"',
        )
