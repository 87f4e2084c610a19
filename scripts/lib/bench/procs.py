"""Processes of this tool: started in sessions of their own, ended by pid, never left behind.

A child is killed by the kernel when this process dies in any way, and ended in order when it ends in order. A child
that is stopped (SIGSTOP) is let go on before it is asked to end.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import BenchError
from .kernel import CORES

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
STARTED: set[int] = set()
"""All children so far, by pid."""
COMMON = Path(__file__).resolve().parents[1] / "common.sh"


@contextlib.contextmanager
def scratch(prefix: str = "pollux-bench-", parent: Path | None = None) -> Iterator[Path]:
    """A folder that is removed at the end. Its name is short: sockets have paths of at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def signals_are_interrupts() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end this tool alike, also where a shell has it ignore them: all is put away."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def dies_with_parent() -> None:
    """Has the kernel kill the calling process when its parent is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _prepare(before: Callable[[], None] | None) -> Callable[[], None]:
    parent = os.getpid()

    def prepare() -> None:
        dies_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        os.sched_setaffinity(0, CORES)
        if before is not None:
            before()

    return prepare


class Process:
    """A child that runs until it is stopped."""

    def __init__(self, argv: Sequence[str | Path], log: Path, before: Callable[[], None] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.log = log
        self.paused = False
        with log.open("wb") as out:
            try:
                self.child = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=_prepare(before),
                )
            except OSError as error:
                raise BenchError(f"cannot run {self.argv[0]}: {error}") from error
        STARTED.add(self.child.pid)

    @property
    def pid(self) -> int:
        """As the kernel numbers it."""
        return self.child.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.child.poll() is None

    def tail(self, lines: int = 8) -> str:
        """The last of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def pause(self) -> None:
        """Stops it where it is."""
        if self.alive() and not self.paused:
            os.kill(self.pid, signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        """Lets it go on."""
        if self.alive() and self.paused:
            os.kill(self.pid, signal.SIGCONT)
            self.paused = False

    def stop(self, patience: float = 10.0) -> None:
        """Asks it to end, and kills it if it does not."""
        self.resume()
        _end(self.child, patience)


def _end(child: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """Asks a child to end, so that it puts its own things away, and kills it if it does not."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()


class Run:
    """A child that ends by itself and whose output is wanted."""

    def __init__(self, argv: Sequence[str | Path], limit: float, before: Callable[[], None] | None = None) -> None:
        self.argv = [str(word) for word in argv]
        self.limit = limit
        self.before = before

    def output(self) -> tuple[int, str, str]:
        """Runs it to its end: exit code, standard output, standard error."""
        try:
            child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_prepare(self.before),
            )
        except OSError as error:
            raise BenchError(f"cannot run {self.argv[0]}: {error}") from error
        STARTED.add(child.pid)
        try:
            out, err = child.communicate(timeout=self.limit)
        except subprocess.TimeoutExpired:
            _end(child)
            out, err = child.communicate()
            name, command = Path(self.argv[0]).name, " ".join(self.argv)
            raise BenchError(f"{name} did not end within {self.limit:.0f} s: {command}\n{_last(out, err)}") from None
        except BaseException:
            _end(child)
            raise
        return child.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def _last(out: bytes, err: bytes) -> str:
    lines = (out + err).decode(errors="replace").splitlines()
    return "\n".join(lines[-5:])


def wait_for(what: str, ready: Callable[[], bool], process: Process, patience: float = 30.0) -> None:
    """Waits until a process that has just been started is ready."""
    end = time.monotonic() + patience
    while not ready():
        if not process.alive():
            raise BenchError(f"{Path(process.argv[0]).name} ended at once ({what}). Its last words:\n{process.tail()}")
        if time.monotonic() > end:
            raise BenchError(
                f"no {what} after {patience:.0f} s. The last words of {process.argv[0]}:\n{process.tail()}"
            )
        time.sleep(0.02)


def need(tool: str, package: str) -> None:
    """Installs a package if the tool that it brings is missing."""
    if shutil.which(tool):
        return
    script = f'POLLUX_SCRIPT=bench; . "$1"; need_packages {package}'
    if subprocess.run(["bash", "-c", script, "bash", str(COMMON)], check=False).returncode != 0 or not shutil.which(
        tool
    ):
        raise BenchError(f"{tool} is missing: apt-get install {package}")
