"""Thin pools to be measured: bases written full, pools and volumes on them by RPC, images of large pools.

Both sides are spoken to alike, because Pollux answers SPDK's calls.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import clients
from .backings import backing, write_full
from .cells import Cell
from .clients import Load, Values
from .errors import BenchError
from .hugepages import hugepages, remove_leftovers
from .lab import Options
from .procs import Process, scratch
from .rpc import RpcError
from .targets import SETTLE, SPDK_POOLS_MIB, Place, Side, Target
from .watch import Watch

MIB = 1 << 20
GIB = 1 << 30
HUGE = 2 * MIB
"""Bytes of a huge page."""
CLUSTER = 64 << 10
"""Bytes of a cluster of Pollux unless something else is said."""
POOL = "pool"
PATIENCE = 60.0
"""Seconds that a pool may take to get its space back, or a target to come to rest."""
SETTLED = 2.5
"""Seconds without another huge page after which there will be none; housekeeping looks each second."""


@dataclass(frozen=True)
class Disk:
    """A bdev that a VM has."""

    bdev: str
    vm: int


class Bench:
    """A running target with bases, a pool and volumes. Use `bench(...)`."""

    def __init__(self, options: Options, target: Target, folder: Path, stack: contextlib.ExitStack) -> None:
        self.options = options
        self.target = target
        self.folder = folder
        self.stack = stack
        self.vms = 0
        self.names = 0

    def call(self, method: str, **params: Any) -> Any:
        """A call by RPC."""
        return self.target.rpc.call(method, params)

    # --- what volumes stand on -------------------------------------------------------------------

    def base(self, kind: str, name: str, size: int) -> str:
        """A bdev of a kind, written full: a medium whose places are all there."""
        path = None
        if backing(kind).where is not None:
            path = file_of(self.options, kind, name)
            if not self.options.keep_files:
                self.stack.callback(path.unlink, missing_ok=True)
            write_full(path, size)
            with path.open("r+b") as file:
                # whatever an earlier call has left is no pool any more
                file.write(bytes(MIB))
        backing(kind).create(self.target.rpc, name, size, path)
        if path is None:
            disk = self.export(name)
            self.fill(disk, size)
            self.withdraw(disk)
        return name

    def opened(self, path: Path) -> None:
        """The pool of an image, on a bdev of its file."""
        self.call("bdev_uring_create", name="image", filename=str(path), block_size=512)
        end = time.monotonic() + 20
        while not any(pool.get("state", "online") == "online" for pool in self.call("bdev_lvol_get_lvstores")):
            if time.monotonic() > end:
                raise BenchError(f"the pool on {path} is not opened: {self.call('bdev_lvol_get_lvstores')}")
            time.sleep(0.005)

    def pool(self, base: str) -> None:
        """A pool with clusters as they are by default."""
        self.call("bdev_lvol_create_lvstore", bdev_name=base, lvs_name=POOL, clear_method="none")

    def drop_pool(self) -> None:
        """Takes the pool away with all of its volumes; what they had stays where it is on the base."""
        self.call("bdev_lvol_delete_lvstore", lvs_name=POOL)

    def settle(self) -> None:
        """Waits until the target's housekeeping has made huge pages of what was written, which it does for seconds."""
        end, last, since = time.monotonic() + PATIENCE, -1, time.monotonic()
        while (now := time.monotonic()) < end:
            huge = huge_bytes(self.target.pid)
            if huge != last:
                last, since = huge, now
            elif now - since > SETTLED:
                return
            time.sleep(0.25)
        raise BenchError(f"the target's memory has not come to rest after {PATIENCE:.0f} s")

    def touch(self) -> None:
        """Reads what the target has in memory, so that the next load does not pay for it that nobody did for a while.

        In a virtual machine the first access to 2 MiB that were not used for seconds may take tens of microseconds, of
        the hypervisor's: as much as thirty requests.
        """
        touch_memory(self.target.pid)

    def volume(self, size: int) -> str:
        """A thin volume of another name than all others; its bdev."""
        name, mib = self.name("t"), size // MIB
        return str(
            self.call("bdev_lvol_create", lvol_name=name, size_in_mib=mib, thin_provision=True, lvs_name=POOL)
        )

    def snapshot(self, volume: str) -> str:
        """A snapshot; its bdev."""
        return str(self.call("bdev_lvol_snapshot", lvol_name=volume, snapshot_name=self.name("s")))

    def clone(self, snapshot: str) -> str:
        """A clone of a snapshot; its bdev."""
        return str(self.call("bdev_lvol_clone", snapshot_name=snapshot, clone_name=self.name("c")))

    def delete(self, volume: str) -> None:
        """Deletes a volume, and waits until its space can be used again."""
        self.call("bdev_lvol_delete", name=volume)
        end, free = time.monotonic() + PATIENCE, -1
        while time.monotonic() < end:
            pool = self.call("bdev_lvol_get_lvstores")[0]
            if pool["free_clusters"] == free and not pool.get("quarantined_bytes"):
                return
            free = pool["free_clusters"]
            time.sleep(0.1)
        raise BenchError(f"the space of a volume is not back {PATIENCE:.0f} s after it was deleted")

    def owned(self, volume: str) -> int:
        """Clusters that only this volume has."""
        found = (one for one in self.call("bdev_lvol_get_lvols") if one["uuid"] == volume)
        return int(next(found)["num_allocated_clusters"])

    def written(self, bdev: str) -> int:
        """Bytes that were written to a bdev since it is there."""
        return int(self.call("bdev_get_iostat", name=bdev)["bdevs"][0]["bytes_written"])

    def busy(self) -> float:
        """Seconds that reactors have been busy, of all together."""
        return self.target.usage(self.target.rpc).busy

    def settled(self, bdev: str) -> int:
        """The same when the pool has nothing left to write: it commits by itself within a second."""
        end, last = time.monotonic() + PATIENCE, -1
        while time.monotonic() < end:
            now = self.written(bdev)
            if now == last:
                return now
            last = now
            time.sleep(1.0)
        raise BenchError(f"the pool on {bdev} goes on writing although nobody asks it to")

    def name(self, letter: str) -> str:
        """One that nobody has."""
        self.names += 1
        return f"{letter}{self.names}"

    # --- VMs -------------------------------------------------------------------------------------

    def export(self, bdev: str) -> Disk:
        """A controller of its own for a bdev."""
        disk = Disk(bdev, self.vms)
        self.vms += 1
        self.target.controller(disk.vm, [bdev])
        return disk

    def withdraw(self, disk: Disk) -> None:
        """Takes the controller away, as soon as it has noticed that its VM is gone."""
        end = time.monotonic() + 10
        while True:
            time.sleep(SETTLE)
            try:
                self.call("vhost_delete_controller", ctrlr=f"v{disk.vm}")
                return
            except RpcError:
                if time.monotonic() > end:
                    raise

    def fill(self, disk: Disk, size: int) -> None:
        """Writes the first bytes of a disk, all of them, once."""
        self.run(disk, Cell("ram", "write", 256 << 10, 8), 60, "--once", "--size", str(size // (256 << 10) * (256 << 10)))

    def load(self, cell: Cell, seconds: float, *more: str, ramp: float = 0.0) -> Load:
        """A load of the client."""
        return Load(cell, seconds, ramp, self.options.client_core, more)

    def run(self, disk: Disk, cell: Cell, seconds: float, *more: str, ramp: float = 0.0) -> Values:
        """Runs a load to its end."""
        socket = self.target.socket(disk.vm)
        values = clients.run_bench(self.options.pollux, [socket], self.load(cell, seconds, *more, ramp=ramp))
        if values["errors"]:
            raise BenchError(f"{values['errors']} requests failed: {cell.rw} on {disk.bdev}")
        return values

    def measure(self, disk: Disk, cell: Cell, *more: str) -> Values:
        """One sample of a load as long as the options say, with the target's busy time."""
        self.target.resume()
        try:
            with Watch(self.target, disk.bdev, files=False) as watch:
                values = self.run(disk, cell, self.options.seconds, *more, ramp=self.options.ramp)
        finally:
            self.target.pause()
        return values | watch.values(values["iops"])

    @contextlib.contextmanager
    def loaded(self, disk: Disk, cell: Cell, *more: str, ramp: float = 0.0) -> Iterator["Running"]:
        """A load that goes on until it is ended."""
        argv = clients.bench_argv(
            self.options.pollux, [self.target.socket(disk.vm)], self.load(cell, 600, *more, ramp=ramp)
        )
        process = Process(argv, self.folder / f"load-{disk.vm}")
        try:
            yield Running(process)
        finally:
            process.stop()


@dataclass(frozen=True)
class Running:
    """A load that goes on."""

    process: Process

    def end(self) -> Values:
        """Ends it; what it has measured."""
        self.process.stop()
        text = self.process.log.read_text(errors="replace")
        start = text.find("{")
        if start < 0:
            raise BenchError(f"a load ended too early:\n{self.process.tail()}")
        return clients.parse_bench(json.dumps(json.JSONDecoder().raw_decode(text[start:])[0]))


def huge_bytes(pid: int) -> int:
    """Bytes of a process's memory that are in transparent huge pages."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("AnonHugePages:"))


def mappings(text: str) -> list[tuple[int, int]]:
    """From where to where the memory of a process is private, without a file and larger than a huge page, by its `maps`."""
    found = []
    for line in text.splitlines():
        span, mode, _, _, inode, *name = line.split()
        start, end = (int(word, 16) for word in span.split("-"))
        anonymous = inode == "0" and (not name or name[0].startswith("[anon"))
        if mode == "rw-p" and anonymous and end - start >= HUGE:
            found.append((start, end))
    return found


def touch_memory(pid: int) -> int:
    """Reads a process's memory; returns how many bytes."""
    room, total = bytearray(HUGE), 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for start, end in mappings(Path(f"/proc/{pid}/maps").read_text()):
            # one that is gone by now, a thread's, say, is nothing to touch
            with contextlib.suppress(OSError):
                for at in range(start, end, HUGE):
                    total += os.preadv(memory, [memoryview(room)[: end - at]], at)
    finally:
        os.close(memory)
    return total


def file_of(options: Options, kind: str, name: str) -> Path:
    """Where a base of a kind lies."""
    where = options.disk_dir if backing(kind).where == "disk" else options.tmpfs_dir
    return where / f"pollux-bench-thin-{name}.img"


@contextlib.contextmanager
def bench(
    options: Options, side: Side | None = None, memory: int = 0, keep: bool = False, more: tuple[str, ...] = ()
) -> Iterator[Bench]:
    """A target of its own. `memory`: bytes of its bdevs in memory (SPDK); `keep`, `more`: see `Place`."""
    side = side or next(side for side in options.sides if side.name == "pollux")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch())
        place = Place(folder, options.reactors, options.poll, keep=keep, more=more)
        if side.kind == "spdk":
            # one piece of this size has to be found among the pages
            mib = SPDK_POOLS_MIB + memory // MIB * 5 // 4
            huge_dir = stack.enter_context(hugepages(mib, options.reserve_hugepages))
            stack.callback(remove_leftovers, huge_dir)
            place = replace(place, huge_dir=huge_dir, memory_mib=mib)
        target = Target(side, place)
        made = Bench(options, target, folder, stack)
        stack.callback(lambda: made.target.stop())
        yield made


# --- images of large pools -----------------------------------------------------------------------


def image_writer(options: Options) -> Path:
    """The program that writes images, from the build that the binary is from."""
    program = options.pollux.parent / "examples/pool_image"
    if not program.is_file():
        raise BenchError(
            f"there is no {program}: cargo build --release -p pollux-tests --example pool_image (in the same target folder)"
        )
    return program


@contextlib.contextmanager
def image(options: Options, volumes: int, gib: int, cluster: int = CLUSTER) -> Iterator[Path]:
    """A sparse file with a pool of volumes that are mapped from end to end."""
    path = file_of(options, "disk", f"image-{volumes}x{gib}")
    path.unlink(missing_ok=True)
    argv = [image_writer(options), path, "--volumes", volumes, "--volume-gib", gib, "--cluster-kib", cluster >> 10]
    argv += ["--name", POOL, "--spare-gib", max(8, volumes * gib // 16)]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    try:
        if done.returncode != 0:
            raise BenchError(f"cannot write an image of a pool at {path}: {done.stderr.strip()}")
        yield path
    finally:
        path.unlink(missing_ok=True)
