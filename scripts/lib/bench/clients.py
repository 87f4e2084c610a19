"""One run of a load generator: its command line, and what its output says. Latencies are in nanoseconds."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import kernel
from .cells import MIX_READS, Cell
from .errors import BenchError
from .procs import Run
from .targets import bdevperf_config

Values = dict[str, Any]

PATIENCE = 60.0
"""Seconds that a client may take longer than it was told to."""
BDEVPERF_MIB = 512
"""Hugepages that bdevperf takes."""
PERCENTILES = ("p50", "p90", "p99", "p99_9", "p99_99")


@dataclass(frozen=True)
class Load:
    """What is the same for all clients."""

    cell: Cell
    seconds: float
    ramp: float
    core: int
    extra: tuple[str, ...] = field(default=())


def _finished(argv: list[str], limit: float, before: Callable[[], None] | None = None) -> tuple[str, str]:
    code, out, err = Run(argv, limit, before).output()
    if code != 0:
        last = "\n".join((out + err).strip().splitlines()[-6:])
        raise BenchError(f"{Path(argv[0]).name} ended with code {code}: {' '.join(argv[:12])} ...\n{last}")
    return out, err


# --- pollux bench --------------------------------------------------------------------------------


def bench_argv(binary: Path, sockets: list[Path], load: Load) -> list[str]:
    """`pollux bench` against one socket for each VM. Its memory is small pages, whatever happens to be reserved."""
    cell = load.cell
    argv = [str(binary), "bench"]
    for socket in sockets:
        argv += ["--socket", str(socket)]
    argv += ["--rw", cell.rw, "--bs", str(cell.bs), "--qd", str(cell.depth), "--queues", str(cell.queues)]
    if cell.rw == "randrw":
        argv += ["--rwmixread", str(MIX_READS)]
    argv += ["--time", f"{load.seconds:g}", "--ramp", f"{load.ramp:g}", "--core", str(load.core), "--json"]
    argv += ["--hugepages", "off"]
    return argv + list(load.extra)


def run_bench(binary: Path, sockets: list[Path], load: Load) -> Values:
    """Runs it."""
    out, _ = _finished(bench_argv(binary, sockets, load), load.seconds + load.ramp + PATIENCE)
    return parse_bench(out)


def parse_bench(text: str) -> Values:
    """Its JSON in the words of this tool."""
    try:
        answer = json.loads(text)
        client = answer.get("client", {})
        latency = answer["latency_ns"]
        values = {
            "iops": answer["iops"],
            "bytes_per_second": answer["bytes_per_second"],
            "latency_ns": {name: latency[name] for name in ("min", "mean", *PERCENTILES, "max") if name in latency},
            "errors": answer["errors"] + answer.get("verify_errors", 0),
            "ios": answer["ios"],
            "seconds": answer["duration_s"],
        }
    except (ValueError, KeyError) as error:
        raise BenchError(f"pollux bench printed something else than expected ({error}): {text[:200]}") from error
    if client.get("ns_per_io") is not None:
        values["client_ns_per_io"] = client["ns_per_io"]
    if client.get("busy_share") is not None:
        values["client_busy_share"] = client["busy_share"]
    return values


# --- SPDK's bdevperf -----------------------------------------------------------------------------


def bdevperf_argv(spdk: Path, config: Path, huge_dir: Path, load: Load) -> list[str]:
    """SPDK's own load generator. It has no ramp, and whole seconds only."""
    cell = load.cell
    argv = [str(bdevperf(spdk)), "-m", kernel.mask([load.core]), "-s", str(BDEVPERF_MIB), "-u", "-g"]
    argv += ["--huge-dir", str(huge_dir), "--disable-cpumask-locks", "--no-rpc-server", "--json", str(config)]
    argv += ["-q", str(cell.depth), "-o", str(cell.bs), "-w", cell.rw, "-t", str(max(1, round(load.seconds)))]
    return argv + (["-M", str(MIX_READS)] if cell.rw == "randrw" else [])


def bdevperf(spdk: Path) -> Path:
    """Where it is."""
    return spdk / "build/examples/bdevperf"


def run_bdevperf(spdk: Path, socket: Path, huge_dir: Path, folder: Path, load: Load) -> Values:
    """Runs it against one VM's socket."""
    if load.cell.vms != 1:
        raise BenchError("bdevperf plays one VM only: use --client bench")
    config = folder / "bdevperf.json"
    # a request takes three descriptors at least, and SPDK's driver uses no indirect ones
    config.write_text(bdevperf_config(socket, load.cell.queues, 512))
    out, err = _finished(bdevperf_argv(spdk, config, huge_dir, load), load.seconds + PATIENCE)
    return parse_bdevperf(out + err)


TOTAL = re.compile(r"Total\s*:\s*([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)")


def parse_bdevperf(text: str) -> Values:
    """Its line of totals: IOPS, MiB/s, failures/s, time-outs/s, and latencies in microseconds."""
    lines = TOTAL.findall(text.replace("\r", "\n"))
    if not lines:
        raise BenchError("bdevperf printed no totals:\n" + "\n".join(text.splitlines()[-5:]))
    iops, mib, failed, late, mean, low, high = map(float, lines[-1])
    latency = {"min": low * 1000, "mean": mean * 1000, "max": high * 1000}
    return {"iops": iops, "bytes_per_second": mib * (1 << 20), "latency_ns": latency, "errors": failed + late}


# --- fio: the bare kernel ------------------------------------------------------------------------

FIO_NAMES = {"50.000000": "p50", "90.000000": "p90", "99.000000": "p99", "99.900000": "p99_9", "99.990000": "p99_99"}


def fio_argv(file: Path, size: int, cores: list[int], load: Load) -> list[str]:
    """io_uring on the same file and the reactor's core, with what Pollux uses: registered files, no fixed buffers."""
    cell = load.cell
    options = {
        "name": "raw", "filename": file, "size": size, "rw": cell.rw, "bs": cell.bs, "iodepth": cell.depth,
        "ioengine": "io_uring", "direct": 1, "registerfiles": 1, "fixedbufs": 0, "hipri": 0, "sqthread_poll": 0,
        "cpus_allowed": ",".join(map(str, cores)), "numjobs": cell.queues, "group_reporting": 1, "thread": 1,
        "time_based": 1, "runtime": f"{load.seconds:g}s", "ramp_time": f"{load.ramp:g}s",
        "norandommap": 1, "randrepeat": 0, "allow_file_create": 0,
        "lat_percentiles": 1, "clat_percentiles": 0, "percentile_list": "50:90:99:99.9:99.99",
        "unified_rw_reporting": "mixed", "rwmixread": MIX_READS, "output-format": "json",
    }  # fmt: skip
    return ["fio", *(f"--{name}={value}" for name, value in options.items())]


def run_fio(file: Path, size: int, cores: list[int], load: Load, join: Callable[[], None] | None) -> Values:
    """Runs it, in a cpuset if `join` says so."""
    out, _ = _finished(fio_argv(file, size, cores, load), load.seconds + load.ramp + PATIENCE, join)
    return parse_fio(out)


def parse_fio(text: str) -> Values:
    """Its JSON in the words of this tool. Latencies are from submission to completion."""
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
        mixed = job["mixed"]
        latency = mixed["lat_ns"]
        percentiles = latency.get("percentile", {})
        return {
            "iops": mixed["iops"],
            "bytes_per_second": mixed["bw_bytes"],
            "latency_ns": {
                **{name: latency[name] for name in ("min", "mean")},
                **{short: percentiles[long] for long, short in FIO_NAMES.items() if long in percentiles},
                "max": latency["max"],
            },
            "errors": job["error"],
        }
    except (ValueError, KeyError, IndexError) as error:
        raise BenchError(f"fio printed something else than expected ({error!r}): {text[:200]}") from error
