"""The machine, its kernel, the file systems and the builds, in words for the report that name no user's paths."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from .hugepages import NUMBER
from .targets import Side, identity, spdk_vhost

SYS = Path("/sys")


def machine(files: dict[str, Path]) -> dict[str, Any]:
    """What the figures depend on. `files` names the folders of backings that stand on files."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    return {
        "cpu": _after_colon(cpuinfo, "model name"),
        "cores": os.cpu_count() or 0,
        "mhz": _after_colon(cpuinfo, "cpu MHz"),
        "hypervisor": _hypervisor(cpuinfo),
        "kernel": f"{platform.system()} {platform.release()}",
        "mitigations": mitigations(_texts(SYS / "devices/system/cpu/vulnerabilities")),
        "governor": _text(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not controlled by this kernel",
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "hugepages_2m": int(_text(NUMBER) or 0),
        "thp": chosen(_text(SYS / "kernel/mm/transparent_hugepage/enabled")),
        "thp_shmem": chosen(_text(SYS / "kernel/mm/transparent_hugepage/shmem_enabled")),
        "files": {name: filesystem(path) for name, path in files.items()},
    }


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


def _texts(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError):
        return {path.name: _text(path) for path in sorted(folder.iterdir())}
    return {}


def _after_colon(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1) if match else "unknown"


def _hypervisor(cpuinfo: str) -> str:
    if not re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE):
        return "none"
    with contextlib.suppress(OSError):
        done = subprocess.run(["lscpu"], capture_output=True, text=True, check=False)
        found = _after_colon(done.stdout, "Hypervisor vendor")
        if found != "unknown":
            return found
    return "of unknown kind"


def chosen(text: str) -> str:
    """The word in brackets: `always [madvise] never`."""
    match = re.search(r"\[(\w+)\]", text)
    return match.group(1) if match else "unknown"


def mitigations(vulnerabilities: dict[str, str]) -> list[str]:
    """Those that are in effect, or missing; what does not affect this CPU is left out."""
    return [f"{name}: {state}" for name, state in vulnerabilities.items() if state and state != "Not affected"]


def filesystem(folder: Path) -> dict[str, str]:
    """Kind and device of the file system that a folder is on."""
    device = folder.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    found = parse_mountinfo(Path("/proc/self/mountinfo").read_text(), numbers)
    block = SYS / "dev/block" / numbers
    # a partition has no queue of its own
    queue = next((place for place in (block / "queue", block / "../queue") if place.exists()), None)
    if queue is not None:
        found["scheduler"] = chosen(_text(queue / "scheduler"))
        found["rotational"] = {"0": "no", "1": "yes"}.get(_text(queue / "rotational"), "unknown")
        found["cache"] = _text(queue / "write_cache")
    return found


def parse_mountinfo(text: str, numbers: str) -> dict[str, str]:
    """File system and device of a device number."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == numbers:
            kind, device = right.split()[:2]
            return {"kind": kind, "device": Path(device).name, "options": left.split()[5]}
    return {"kind": "unknown", "device": "unknown", "options": ""}


# --- builds --------------------------------------------------------------------------------------


def describe_side(side: Side, root: Path, built: bool) -> dict[str, Any]:
    """Version and build of a side. `root` is this repository, `built` says that Pollux was built from it just now."""
    if side.kind == "pollux":
        version, mark = _output([str(side.path), "--version"]), identity(side.path)
        # of a binary that was handed in, nothing is known but itself
        source = f"commit {_commit(root)}" if built else f"binary with SHA-256 {mark}..."
        if side.name == "pollux" and not built:
            source += f", measured from a checkout of {_commit(root)}"
        found = {"kind": "pollux", "version": version, "identity": mark, "source": source}
        return found | ({"build": _rust_build(root)} if built else {})
    program = spdk_vhost(side.path)
    return {
        "kind": "spdk",
        "version": _output([str(program), "--version"]),
        "identity": identity(program),
        "source": f"commit {_commit(side.path)}",
        "build": _spdk_build(side.path),
    }


def _output(argv: list[str], cwd: Path | None = None) -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd)
        if done.returncode == 0:
            return (done.stdout or done.stderr).strip()
    return ""


def _commit(root: Path) -> str:
    commit = _output(["git", "rev-parse", "--short=12", "HEAD"], root)
    changed = _output(["git", "status", "--porcelain", "--untracked-files=no"], root)
    return commit + (" and changes" if commit and changed else "")


def _rust_build(root: Path) -> str:
    profile = parse_profile(_text(root / "Cargo.toml"))
    flags = os.environ.get("RUSTFLAGS", "")
    return ", ".join(word for word in (_output(["rustc", "--version"]), f"release ({profile})", flags) if word)


def parse_profile(toml: str) -> str:
    """The release profile of a Cargo.toml, in a line."""
    match = re.search(r"^\[profile\.release\]\n(.*?)(?=^\[|\Z)", toml, re.MULTILINE | re.DOTALL)
    lines = match.group(1).splitlines() if match else []
    return ", ".join(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _spdk_build(root: Path) -> str:
    config = _text(root / "mk/config.mk")
    options = re.search(r"^# configure options:\s*(.*)$", config, re.MULTILINE)
    values = {name: _config(config, name) for name in ("ARCH", "DEBUG", "LTO")}
    dpdk = _text(root / "dpdk/VERSION")
    words = ["configure " + options.group(1) if options else "", ", ".join(f"{k}={v}" for k, v in values.items() if v)]
    words += [f"DPDK {dpdk}" if dpdk else "", _output(["gcc", "--version"]).partition("\n")[0]]
    return ", ".join(word for word in words if word)


def _config(text: str, name: str) -> str:
    match = re.search(rf"^CONFIG_{name}\?=(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def fio_version() -> str:
    """Of fio, if it is there."""
    return _output(["fio", "--version"])


def neutral_command(argv: list[str]) -> str:
    """The command line with values that are paths replaced by what they are."""
    words = []
    for word in argv:
        head, sep, value = word.rpartition("=")
        if "/" in value:
            word = f"{head}{sep}{_placeholder(head, value)}" if sep else _placeholder(head, value)
        words.append(word)
    return " ".join(["scripts/bench", *words])


def _placeholder(name: str, value: str) -> str:
    if name.endswith("spdk"):
        return "SPDK"
    return Path(value).name.upper() if name.endswith("pollux") else Path(value).name
