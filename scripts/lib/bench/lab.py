"""A group of cells that share running targets: files, hugepages, daemons and their bdevs made once, then turns."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import clients, kernel
from .backings import Backing, backing, write_full
from .cells import ONE_CORE, Cell, Setup
from .clients import Load, Values
from .errors import BenchError
from .hugepages import hugepages, remove_leftovers
from .plan import Lane
from .procs import need, scratch
from .targets import SPDK_POOLS_MIB, SPDK_VM_MIB, Place, Side, Target
from .watch import Watch

MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """How things are measured: the same for all cells."""

    pollux: Path
    """The binary whose `bench` is the client, and that is the first side."""
    sides: tuple[Side, ...]
    seconds: float = 1.0
    ramp: float = 0.2
    reactors: list[int] = field(default_factory=lambda: [0])
    client_core: int = 1
    size: int = 1 << 30
    """Bytes of all LUNs of a backing together."""
    disk_dir: Path = Path("/var/tmp")
    tmpfs_dir: Path = Path("/dev/shm")
    poll: str = "adaptive"
    reserve_hugepages: bool = False
    keep_files: bool = False

    @property
    def spdk(self) -> Side | None:
        """SPDK, if it is compared."""
        return next((side for side in self.sides if side.kind == "spdk"), None)


class Lab:
    """The running targets of a setup. Use `lab(...)`."""

    def __init__(self, options: Options, setup: Setup, folder: Path) -> None:
        self.options = options
        self.setup = setup
        self.folder = folder
        self.backing: Backing = backing(setup.backing)
        self.files: list[Path] = []
        self.targets: dict[str, Target] = {}
        self.huge_dir: Path | None = None
        self.join_raw: Callable[[], None] | None = None

    @property
    def lun_size(self) -> int:
        """Bytes of each VM's LUN."""
        return self.options.size // self.setup.vms // MIB * MIB

    # --- making it -------------------------------------------------------------------------------

    def make_files(self, stack: contextlib.ExitStack) -> None:
        """The files of the LUNs, written full."""
        if self.backing.where is None:
            return
        where = self.options.disk_dir if self.backing.where == "disk" else self.options.tmpfs_dir
        for vm in range(self.setup.vms):
            path = where / f"pollux-bench-{self.setup.vms}-{vm}.img"
            if not self.options.keep_files:
                stack.callback(path.unlink, missing_ok=True)
            write_full(path, self.lun_size)
            self.files.append(path)

    def start(self, side: Side, stack: contextlib.ExitStack) -> None:
        """Starts a target with its LUNs, written full where that is due, and takes its core from it again."""
        place = Place(
            folder=stack.enter_context(scratch()),
            reactors=self.options.reactors,
            poll=self.options.poll,
            huge_dir=self.huge_dir,
            memory_mib=self.spdk_mib(),
            vms=self.setup.vms,
            join=self.confine(side.name, stack),
        )
        target = Target(side, place)
        stack.callback(self._stop, target)
        self.targets[side.name] = target
        for vm in range(self.setup.vms):
            name = f"b{vm}"
            self.backing.create(target.rpc, name, self.lun_size, self.files[vm] if self.files else None)
            target.controller(vm, [name])
        if self.backing.fill:
            self._fill(target)
        target.pause()

    def confine(self, name: str, stack: contextlib.ExitStack) -> Callable[[], None] | None:
        """What a process has to do first so that it and its kernel workers are where the setup wants them."""
        if self.setup.placement != ONE_CORE:
            return None
        return stack.enter_context(kernel.cpuset(self.options.reactors, name)).join

    def _stop(self, target: Target) -> None:
        target.stop()
        if self.huge_dir is not None:
            remove_leftovers(self.huge_dir)

    def _fill(self, target: Target) -> None:
        cell = Cell(self.setup.backing, "write", 128 << 10, 8, vms=self.setup.vms)
        load = Load(cell, 0.1, 0, self.options.client_core, ("--fill",))
        clients.run_bench(self.options.pollux, self.sockets(target), load)

    def spdk_mib(self) -> int:
        """Hugepages for SPDK's target."""
        # one piece of this size has to be found among the pages
        data = self.options.size // MIB * 5 // 4 if self.backing.memory else 0
        return SPDK_POOLS_MIB + SPDK_VM_MIB * (self.setup.vms - 1) + data

    def sockets(self, target: Target) -> list[Path]:
        """Of all VMs."""
        return [target.socket(vm) for vm in range(self.setup.vms)]

    # --- using it --------------------------------------------------------------------------------

    def measure(self, cell: Cell, lane: Lane) -> Values:
        """One sample."""
        load = Load(cell, self.options.seconds, self.options.ramp, self.options.client_core)
        if lane.client == "fio":
            return self._raw(load)
        target = self.targets[lane.side]
        target.resume()
        try:
            with Watch(target, "b0", self.backing.where is not None) as watch:
                values = self._drive(target, lane, load)
        except BenchError as error:
            raise BenchError(
                f"{cell.key}, {lane.side}: {error}\nIts log ends with:\n{target.process.tail(5)}"
            ) from error
        finally:
            target.pause()
        return values | watch.values(values["iops"])

    def _drive(self, target: Target, lane: Lane, load: Load) -> Values:
        if lane.client == "bench":
            return clients.run_bench(self.options.pollux, self.sockets(target), load)
        spdk = self.options.spdk
        if spdk is None or self.huge_dir is None:
            raise BenchError("bdevperf comes with SPDK: use --against spdk=DIR")
        return clients.run_bdevperf(spdk.path, target.socket(0), self.huge_dir, self.folder, load)

    def _raw(self, load: Load) -> Values:
        return clients.run_fio(self.files[0], self.lun_size, self.options.reactors, load, self.join_raw)


@contextlib.contextmanager
def lab(options: Options, setup: Setup, lanes: Iterable[Lane]) -> Iterator[Lab]:
    """Makes everything that the lanes need, and puts it away at the end."""
    wanted = set(lanes)
    with contextlib.ExitStack() as stack:
        made = Lab(options, setup, stack.enter_context(scratch()))
        if any(lane.client == "fio" for lane in wanted):
            need("fio", "fio")
            made.join_raw = made.confine("fio", stack)
        spdk = options.spdk
        if spdk is not None and any(lane.side == spdk.name or lane.client == "bdevperf" for lane in wanted):
            mib = made.spdk_mib() + (clients.BDEVPERF_MIB if any(lane.client == "bdevperf" for lane in wanted) else 0)
            made.huge_dir = stack.enter_context(hugepages(mib, options.reserve_hugepages))
        made.make_files(stack)
        for side in options.sides:
            if any(lane.side == side.name for lane in wanted):
                made.start(side, stack)
        yield made
