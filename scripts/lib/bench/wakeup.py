"""How long this machine takes to wake a sleeping thread on another core: the floor of the first request after idle.

A child sleeps in the read of an eventfd on one core; this process writes it from another core, and polls a clock until
the next one is due, as a busy guest does. The child tells when it woke through shared memory. Interpreting a few lines
of Python is in it: some microseconds.
"""

import mmap
import os
import signal
import struct
import time

from .errors import BenchError
from .procs import dies_with_parent


def bare_wakeups(sleeper: int, waker: int, gap_ns: int, seconds: float) -> dict[str, float]:
    """Percentiles of wake-ups on core `sleeper`, one every `gap_ns`, asked for on core `waker`."""
    shared = mmap.mmap(-1, 8)
    event = os.eventfd(0)
    here = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        try:
            dies_with_parent()
            os.sched_setaffinity(0, {sleeper})
            _sleep_and_tell(event, shared)
        finally:
            os._exit(0)
    try:
        os.sched_setaffinity(0, {waker})
        times = [_one(event, shared, gap_ns) for _ in range(max(1, int(seconds * 1e9 / gap_ns)))]
    except BenchError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.sched_setaffinity(0, here)
        os.eventfd_write(event, END)
        os.waitpid(child, 0)
        os.close(event)
    return percentiles(times)


END = 2
"""What the child is sent to end; 1 asks for the time."""


def _sleep_and_tell(event: int, shared: mmap.mmap) -> None:
    while os.eventfd_read(event) < END:
        struct.pack_into("q", shared, 0, time.monotonic_ns())


def _one(event: int, shared: mmap.mmap, gap_ns: int) -> int:
    struct.pack_into("q", shared, 0, 0)
    due = time.monotonic_ns() + gap_ns
    while time.monotonic_ns() < due:
        pass
    asked = time.monotonic_ns()
    os.eventfd_write(event, 1)
    while (woken := struct.unpack_from("q", shared)[0]) == 0:
        if time.monotonic_ns() - asked > 10**10:
            raise BenchError("a sleeping process does not wake")
    return int(woken) - asked


def percentiles(times: list[int]) -> dict[str, float]:
    """Nanoseconds by percentile: the least value that so many do not exceed."""
    ordered = sorted(times)
    return {
        name: float(ordered[max(0, -(-len(ordered) * share // 100) - 1)])
        for name, share in (("p50", 50), ("p90", 90), ("p99", 99))
    }
