"""Hugepages, which only SPDK needs: those that are there are used, more are reserved on request and given back."""

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import BenchError
from .procs import STARTED

PAGE_MIB = 2
NUMBER = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
FREE = NUMBER.with_name("free_hugepages")


def mounted(mounts: str) -> list[Path]:
    """Where a hugetlbfs of 2 MiB pages is mounted, by the text of `/proc/mounts`."""
    found = []
    for line in mounts.splitlines():
        _, place, kind, options, *_ = line.split()
        size = re.search(r"pagesize=(\w+)", options)
        if kind == "hugetlbfs" and (size is None or size.group(1) == "2M"):
            found.append(Path(place))
    return found


@contextlib.contextmanager
def hugepages(mib: int, reserve: bool) -> Iterator[Path]:
    """A hugetlbfs with room for so many MiB. What this takes is given back, what was there stays."""
    with contextlib.ExitStack() as stack:
        places = [place for place in mounted(Path("/proc/mounts").read_text()) if os.access(place, os.W_OK)]
        missing = -(-mib // PAGE_MIB) - int(FREE.read_text())
        if missing > 0:
            if not reserve:
                orphans = " ".join(str(file) for place in places for file in leftovers(place))
                raise BenchError(
                    f"SPDK needs {mib} MiB of free hugepages, {missing} pages are missing: use --reserve-hugepages, "
                    f"or raise {NUMBER}"
                    + (
                        f"; files of processes that are gone hold pages until they are removed: {orphans}"
                        if orphans
                        else ""
                    )
                )
            _reserve(missing, stack)
        yield places[0] if places else _mount(stack)


def _reserve(pages: int, stack: contextlib.ExitStack) -> None:
    before = NUMBER.read_text()
    stack.callback(NUMBER.write_text, before)
    want = int(before) + pages
    NUMBER.write_text(str(want))
    if int(NUMBER.read_text()) < want:
        raise BenchError(
            f"the kernel gave {NUMBER.read_text().strip()} of {want} hugepages: memory is short or fragmented"
        )


def _mount(stack: contextlib.ExitStack) -> Path:
    place = Path(tempfile.mkdtemp(prefix="pollux-bench-huge-"))
    stack.callback(place.rmdir)
    mount = ["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"cannot mount a hugetlbfs: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", str(place)], check=False)
    return place


def leftovers(place: Path) -> list[Path]:
    """What SPDK processes that are gone have left there."""
    found = []
    for file in place.glob("spdk_pid*map_*"):
        pid = file.name.removeprefix("spdk_pid").partition("map_")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            found.append(file)
    return found


def remove_leftovers(place: Path) -> None:
    """Removes what children of this tool have left when they were killed. It would hold its pages for ever."""
    for file in leftovers(place):
        if int(file.name.removeprefix("spdk_pid").partition("map_")[0]) in STARTED:
            with contextlib.suppress(OSError):
                file.unlink()
