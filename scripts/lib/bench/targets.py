"""The daemons that are measured: started fresh for a group of cells, given the same bdevs and controllers by RPC.

Both speak the same RPC dialect, so one class does nearly all. What differs: the command line, that SPDK needs
hugepages, and that an idle SPDK polls on: it is stopped (SIGSTOP) while another one is measured.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import kernel
from .errors import BenchError
from .procs import Process, wait_for
from .rpc import Rpc

SPDK_POOLS_MIB = 256
"""What SPDK's vhost takes of hugepages beside bdevs in memory."""
SPDK_VM_MIB = 5
"""What each further VM takes there: room for the requests of its queues."""
SPDK_PLAIN_VMS = 16
"""For more VMs SPDK's caches of buffers for each thread have to be smaller than by default: each controller is a
thread, and the pools that fill the caches are gone with the 32nd."""
SETTLE = 0.05
"""Seconds in which a target puts away the session that has just ended."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    name: str
    kind: str
    path: Path

    def argv(self, place: "Place") -> list[str]:
        """How its daemon is started."""
        return (_pollux_argv if self.kind == "pollux" else _spdk_argv)(self, place)


@dataclass(frozen=True)
class Place:
    """Where a daemon runs."""

    folder: Path
    reactors: list[int]
    poll: str = "adaptive"
    metrics: str | None = None
    huge_dir: Path | None = None
    memory_mib: int = SPDK_POOLS_MIB
    vms: int = 1
    join: Callable[[], None] | None = None
    keep: bool = False
    """It remembers what it has over its end (Pollux)."""
    more: tuple[str, ...] = ()
    """Further words of its command line."""


def parse_side(text: str) -> Side:
    """`spdk=DIR` or `pollux=FILE`."""
    kind, _, path = text.partition("=")
    if kind not in ("spdk", "pollux") or not path:
        raise BenchError(f"--against {text}: write spdk=DIRECTORY (of SPDK's sources, built) or pollux=FILE (a binary)")
    side = Side("spdk" if kind == "spdk" else "before", kind, Path(path).resolve())
    program = spdk_vhost(side.path) if kind == "spdk" else side.path
    if not program.is_file():
        raise BenchError(f"--against {text}: there is no {program}")
    return side


def spdk_vhost(root: Path) -> Path:
    """SPDK's vhost target."""
    return root / "build/bin/vhost"


def _pollux_argv(side: Side, place: Place) -> list[str]:
    cores = ",".join(map(str, place.reactors))
    argv = [str(side.path), "serve", "--reactors", cores, "--poll", place.poll]
    argv += [] if place.keep else ["--ephemeral"]
    argv += [
        "--state-dir",
        str(place.folder),
        "--rpc-socket",
        str(place.folder / "rpc"),
        "--vhost-dir",
        str(place.folder),
    ]
    return [*argv, *(["--metrics-listen", place.metrics] if place.metrics else []), *place.more]


def _spdk_argv(side: Side, place: Place) -> list[str]:
    argv = [str(spdk_vhost(side.path)), "-m", kernel.mask(place.reactors), "-s", str(place.memory_mib), "-u", "-g"]
    argv += ["--huge-dir", str(place.huge_dir), "--disable-cpumask-locks"]
    argv += ["--wait-for-rpc"] if place.vms > SPDK_PLAIN_VMS else []
    return [*argv, "-S", str(place.folder), "-r", str(place.folder / "rpc")]


def _share_caches(rpc: Rpc, vms: int) -> None:
    """Deals SPDK's default pools out to so many threads, then lets it start."""
    caches = {"small": 8192 // (4 * vms), "large": 1024 // (4 * vms)}
    rpc.call("accel_set_options", {f"{size}_cache_size": count for size, count in caches.items()})
    options = {f"iobuf_{size}_cache_size": count for size, count in caches.items()}
    rpc.call("bdev_set_options", options | {"bdev_io_cache_size": 65535 // (2 * vms)})
    rpc.call("framework_start_init")


@dataclass(frozen=True)
class Usage:
    """How long the reactors of a target have been busy so far, all together, in seconds."""

    busy: float
    reactors: int


class Target:
    """A running daemon."""

    def __init__(self, side: Side, place: Place) -> None:
        self.side = side
        self.place = place
        self.process = Process(side.argv(place), place.folder / "log", place.join)
        try:
            wait_for("RPC socket", self._answers, self.process)
            self.rpc = Rpc(place.folder / "rpc")
            if side.kind == "spdk" and place.vms > SPDK_PLAIN_VMS:
                _share_caches(self.rpc, place.vms)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), Rpc(self.place.folder / "rpc") as rpc:
            rpc.call("rpc_get_methods")
            return True
        return False

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return self.process.pid

    def stop(self) -> None:
        """Ends it."""
        if hasattr(self, "rpc"):
            self.rpc.close()
        self.process.stop()

    @property
    def polls_when_idle(self) -> bool:
        """Whether it takes its core although it has nothing to do."""
        return self.side.kind == "spdk" or self.place.poll == "always"

    def pause(self) -> None:
        """Takes its core away from it, if it would poll."""
        if self.polls_when_idle:
            time.sleep(SETTLE)
            self.process.pause()

    def resume(self) -> None:
        """Gives it its core back."""
        if self.process.paused:
            self.process.resume()
            time.sleep(SETTLE)

    def socket(self, vm: int) -> Path:
        """Where a VM connects."""
        return self.place.folder / f"v{vm}"

    def controller(self, vm: int, bdevs: list[str]) -> None:
        """Makes the controller of a VM, with a target for each bdev."""
        mask = kernel.mask(self.place.reactors)
        self.rpc.call("vhost_create_scsi_controller", {"ctrlr": f"v{vm}", "cpumask": mask})
        for number, bdev in enumerate(bdevs):
            params = {"ctrlr": f"v{vm}", "scsi_target_num": number, "bdev_name": bdev}
            self.rpc.call("vhost_scsi_controller_add_target", params)

    def usage(self, rpc: Rpc | None = None) -> Usage:
        """Busy time of all reactors."""
        answer = (rpc or self.rpc).call("framework_get_reactors")
        return parse_usage(answer)

    def ops(self, bdev: str, rpc: Rpc | None = None) -> int:
        """How many reads and writes a bdev has done."""
        return parse_ops((rpc or self.rpc).call("bdev_get_iostat", {"names": [bdev]}))


def parse_usage(answer: dict[str, Any]) -> Usage:
    """Out of the answer of `framework_get_reactors`."""
    reactors = answer["reactors"]
    return Usage(sum(reactor["busy"] for reactor in reactors) / answer["tick_rate"], len(reactors))


def parse_ops(answer: dict[str, Any]) -> int:
    """Out of the answer of `bdev_get_iostat`."""
    return sum(bdev["num_read_ops"] + bdev["num_write_ops"] for bdev in answer["bdevs"])


def identity(path: Path) -> str:
    """Tells one build from another."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def bdevperf_config(socket: Path, queues: int, queue_size: int) -> str:
    """The configuration with which bdevperf connects to a controller."""
    params: dict[str, Any] = {"name": "VS0", "trtype": "user", "traddr": str(socket), "dev_type": "scsi"}
    params |= {"vq_count": queues, "vq_size": queue_size}
    attach = {"method": "bdev_virtio_attach_controller", "params": params}
    config = [attach, {"method": "bdev_wait_for_examine"}]
    return json.dumps({"subsystems": [{"subsystem": "bdev", "config": config}]})
