"""What the kernel says about processes and cores: CPU time, memory, kernel workers, cpusets."""

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError

PROC = Path("/proc")
WORKER = "iou-wrk"
"""Names of io_uring's kernel workers begin with this."""


CORES = sorted(os.sched_getaffinity(0))
"""The cores that whoever called this tool may use, wherever this tool itself keeps later."""


def parse_cores(text: str) -> list[int]:
    """`0,2-3` as [0, 2, 3]."""
    cores: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise BenchError(f"{text!r} is not a list of cores such as 0,2-3")
        cores.extend(range(int(first), int(last or first) + 1))
    return cores


def mask(cores: list[int]) -> str:
    """A mask as SPDK takes it."""
    return hex(sum(1 << core for core in cores))


@dataclass(frozen=True)
class Task:
    """A thread."""

    name: str
    allowed: str
    last_core: int


def tasks(pid: int) -> list[Task]:
    """The threads of a process, io_uring's kernel workers among them."""
    found = []
    for folder in (PROC / str(pid) / "task").iterdir():
        # a thread may end while it is looked at
        with contextlib.suppress(OSError):
            status = (folder / "status").read_text()
            stat = (folder / "stat").read_text()
            found.append(Task(_field(status, "Name"), _field(status, "Cpus_allowed_list"), last_core(stat)))
    return found


def last_core(stat: str) -> int:
    """The core on which a thread ran last, out of its `stat` line."""
    return int(stat[stat.rindex(")") + 2 :].split()[36])


def _field(status: str, name: str) -> str:
    match = re.search(rf"^{name}:\s*(.*)$", status, re.MULTILINE)
    return match.group(1) if match else ""


def workers(pid: int) -> dict[str, int]:
    """How many kernel workers of a process may run where: `{"0-1": 3}`."""
    counts: dict[str, int] = {}
    for task in tasks(pid):
        if task.name.startswith(WORKER):
            counts[task.allowed] = counts.get(task.allowed, 0) + 1
    return counts


def stolen_ns() -> float:
    """Time so far that the hypervisor has not given to cores of this machine which wanted to run, of all of them, in whole ticks."""
    return int((PROC / "stat").read_text().split("\n", 1)[0].split()[8]) * 1e9 / os.sysconf("SC_CLK_TCK")


def cpu_ns_beside(pid: int, prefix: str) -> int:
    """CPU time so far of those threads of a process whose names do not begin so; 0 where the kernel does not tell."""
    total = 0
    for folder in (PROC / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):
            if not (folder / "comm").read_text().startswith((prefix, WORKER)):
                total += int((folder / "schedstat").read_text().split()[0])
    return total


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, finer than the ticks of `/proc/PID/stat` where the kernel has it."""
    total = 0
    for folder in (PROC / str(pid) / "task").iterdir():
        try:
            total += int((folder / "schedstat").read_text().split()[0])
        except OSError:
            return stat_cpu_ns((PROC / str(pid) / "stat").read_text(), os.sysconf("SC_CLK_TCK"))
    return total


def stat_cpu_ns(stat: str, hertz: int) -> int:
    """CPU time out of a `/proc/PID/stat` line."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // hertz


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process in bytes, apart by whose it is."""

    total: int
    guests: int

    @property
    def own(self) -> int:
        """What is the daemon's own."""
        return self.total - self.guests


def memory(pid: int, guest: Callable[[str], bool]) -> Memory:
    """Resident memory by mapping; `guest` tells from a mapping's name whether it is guest memory."""
    return parse_smaps((PROC / str(pid) / "smaps").read_text(), guest)


HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")


def parse_smaps(text: str, guest: Callable[[str], bool]) -> Memory:
    """Sums the `Rss` of all mappings; hugepages of hugetlbfs are not in `Rss` and are added."""
    total = guests = 0
    name = ""
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            name = header.group(1)
        elif line.startswith(("Rss:", "Shared_Hugetlb:", "Private_Hugetlb:")):
            size = int(line.split()[1]) * 1024
            total += size
            guests += size if guest(name) else 0
    return Memory(total, guests)


class Cpuset:
    """A set of cores that confines a process with all its threads and kernel workers."""

    def __init__(self, folder: Path, members: str) -> None:
        self.folder = folder
        self.members = members

    def join(self) -> None:
        """Puts the calling process into it."""
        (self.folder / self.members).write_text(str(os.getpid()))


@contextlib.contextmanager
def cpuset(cores: list[int], name: str) -> Iterator[Cpuset]:
    """Makes a cpuset (cgroup v1 or v2), for as long as it is wanted."""
    try:
        made = _make_cpuset(",".join(map(str, cores)), f"pollux-bench-{os.getpid()}-{name}")
    except OSError as error:
        raise BenchError(f"cannot make a cpuset (root and the cpuset controller are needed): {error}") from error
    try:
        yield made
    finally:
        _remove(made.folder)


def _remove(folder: Path) -> None:
    # a kernel worker of a process that has ended may still be in it for a moment
    for _ in range(20):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise BenchError(f"{folder} is left behind: {error}") from error
            time.sleep(0.1)
        else:
            return
    raise BenchError(f"{folder} is left behind: something is still in it")


def _make_cpuset(cores: str, name: str) -> Cpuset:
    version, root = _cpuset_root((PROC / "self/mounts").read_text())
    folder = root / name
    if version == 2:
        (root / "cgroup.subtree_control").write_text("+cpuset")
    folder.mkdir(exist_ok=True)
    try:
        (folder / "cpuset.cpus").write_text(cores)
        (folder / "cpuset.mems").write_text((root / _MEMS[version]).read_text().strip())
    except OSError:
        folder.rmdir()
        raise
    return Cpuset(folder, "tasks" if version == 1 else "cgroup.procs")


_MEMS = {1: "cpuset.mems", 2: "cpuset.mems.effective"}


def _cpuset_root(mounts: str) -> tuple[int, Path]:
    for line in mounts.splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpuset" in options.split(","):
            return 1, Path(place)
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split()
        controllers = Path(place) / "cgroup.controllers"
        if kind == "cgroup2" and controllers.exists() and "cpuset" in controllers.read_text().split():
            return 2, Path(place)
    raise OSError("no cpuset controller is mounted")
