"""The file with every sample. Written as a whole after each one, so that an interrupted run can be gone on with.

    {"format": 1,
     "sides": {"pollux": {"version", "identity", ...}, "spdk": {...}},
     "machine": {...}, "calls": [{"date", "command"}],
     "failures": [{"what", "side", "client", "why"}],
     "samples": [{"what", "side", "client", "turn", "call", "values": {...}}]}

`what` is a cell's key or the name of a special measurement. Samples of one file are of one pair of builds.
"""

import json
from pathlib import Path
from typing import Any

from .errors import BenchError

FORMAT = 1


class Store:
    """The samples of a comparison."""

    def __init__(self, data: dict[str, Any], path: Path | None) -> None:
        self.data = data
        self.path = path

    @staticmethod
    def new(path: Path | None) -> "Store":
        """Without samples."""
        return Store({"format": FORMAT, "sides": {}, "machine": {}, "calls": [], "failures": [], "samples": []}, path)

    @staticmethod
    def load(path: Path) -> "Store":
        """From a file."""
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BenchError(f"cannot read samples from {path}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BenchError(f"{path} is no file of samples that this version can read (format {FORMAT})")
        return Store(data, path)

    def save(self) -> None:
        """To its file, if it has one."""
        if self.path is None:
            return
        temporary = self.path.with_name(self.path.name + ".new")
        lines = ",\n".join(json.dumps(sample) for sample in self.data["samples"])
        rest = {key: value for key, value in self.data.items() if key != "samples"}
        head = json.dumps(rest, indent=1)[:-2]
        temporary.write_text(f'{head},\n "samples": [\n{lines}\n]}}\n')
        temporary.replace(self.path)

    def begin(self, call: dict[str, Any], sides: dict[str, dict[str, Any]], machine: dict[str, Any]) -> None:
        """Notes a call of the tool. Samples of different builds do not go into one file."""
        for name, side in sides.items():
            old = self.data["sides"].get(name)
            if old and old.get("identity") != side.get("identity"):
                raise BenchError(f"{self.path} has samples of another build of {name}: name another file with --out")
        self.data["sides"] |= sides
        self.data["machine"] = machine
        self.data["calls"].append(call)

    def add(self, what: str, side: str, client: str, turn: int, values: dict[str, Any]) -> None:
        """Keeps a sample."""
        call = len(self.data["calls"]) - 1
        sample = {"what": what, "side": side, "client": client, "turn": turn, "call": call, "values": values}
        self.data["samples"].append(sample)
        self._forget_failure(what, side, client)
        self.save()

    def fail(self, what: str, side: str, client: str, why: str) -> None:
        """Keeps why something could not be measured, until it can."""
        self._forget_failure(what, side, client)
        self.data["failures"].append({"what": what, "side": side, "client": client, "why": why})
        self.save()

    def _forget_failure(self, what: str, side: str, client: str) -> None:
        key = (what, side, client)
        others = [old for old in self.data["failures"] if (old["what"], old["side"], old["client"]) != key]
        self.data["failures"] = others

    def samples(self, what: str, side: str, client: str) -> dict[int, dict[str, Any]]:
        """The samples of one thing, by turn."""
        return {
            sample["turn"]: sample["values"]
            for sample in self.data["samples"]
            if (sample["what"], sample["side"], sample["client"]) == (what, side, client)
        }

    def numbers(self, what: str, side: str, client: str, name: str) -> dict[int, float]:
        """One figure of them, by turn. `latency_ns.p99` reaches into a group."""
        found = {}
        for turn, values in self.samples(what, side, client).items():
            value: Any = values
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if isinstance(value, (int, float)):
                found[turn] = float(value)
        return found

    def kinds(self) -> list[tuple[str, str, str]]:
        """What there are samples of: (what, side, client), in the order of their first one."""
        return list(dict.fromkeys((s["what"], s["side"], s["client"]) for s in self.data["samples"]))
