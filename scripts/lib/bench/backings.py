"""What LUNs stand on. Each backing says how its bdev is made by RPC and what has to be ready before.

A new backing is one more entry of `BACKINGS`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError
from .rpc import Rpc

BLOCK = 512
CHUNK = 1 << 20

Create = Callable[[Rpc, str, int, Path | None], None]
"""Makes the bdev of a name and a size in bytes, over a file if the backing has files."""


@dataclass(frozen=True)
class Backing:
    """A kind of block device."""

    name: str
    text: str
    create: Create
    where: str | None = None
    """`disk` or `tmpfs`: it stands on files there, which the bare kernel (fio) can be measured on as well."""
    fill: bool = False
    """It is written through the target before it is measured."""
    memory: bool = False
    """Its content is in the target's memory (in hugepages of SPDK)."""


def _null(rpc: Rpc, name: str, size: int, _: Path | None) -> None:
    rpc.call("bdev_null_create", {"name": name, "num_blocks": size // BLOCK, "block_size": BLOCK})


def _ram(rpc: Rpc, name: str, size: int, _: Path | None) -> None:
    rpc.call("bdev_malloc_create", {"name": name, "num_blocks": size // BLOCK, "block_size": BLOCK})


def _file(rpc: Rpc, name: str, _: int, path: Path | None) -> None:
    rpc.call("bdev_uring_create", {"name": name, "filename": str(path), "block_size": BLOCK})


BACKINGS = {
    backing.name: backing
    for backing in (
        Backing("null", "no medium", _null),
        Backing("ram", "memory (SPDK: malloc), written full first", _ram, fill=True, memory=True),
        Backing("disk", "a file on disk, O_DIRECT, io_uring, written full first", _file, where="disk"),
        Backing("tmpfs", "a file on tmpfs, io_uring, written full first", _file, where="tmpfs"),
    )
}


def backing(name: str) -> Backing:
    """The backing of a name."""
    if name not in BACKINGS:
        raise BenchError(f"there is no backing {name!r}: choose from {', '.join(BACKINGS)}")
    return BACKINGS[name]


def write_full(path: Path, size: int) -> None:
    """A file of random bytes, on its medium when this returns. One that has its size and all its space is kept."""
    if path.exists() and path.stat().st_size == size and path.stat().st_blocks * 512 >= size:
        return
    room = os.statvfs(path.parent)
    if room.f_bavail * room.f_frsize < size:
        raise BenchError(
            f"{path.parent} has no room for {size >> 20} MiB: name another folder or a smaller --file-size"
        )
    noise = os.urandom(CHUNK)
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, CHUNK):
            # no two chunks are alike, so that nothing below can fold them into one
            file.write((at.to_bytes(8, "little") + noise)[: min(CHUNK, size - at)])
        os.fsync(file.fileno())
