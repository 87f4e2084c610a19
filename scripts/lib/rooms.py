"""Adds up what callgrind_annotate prints by room: `... | rooms.py REQUESTS`.

A line of source counts for the room it stands in, wherever it was inlined; the standard library's for the room of the
function it ended up in; everything else for libc.
"""

import collections
import re
import sys

ROOMS = ("vhost_scsi", "vhost_user", "scsi", "core", "reactor", "bdev", "tests")
OF_FILE = re.compile(r"(?:^|/)(" + "|".join(ROOMS) + r")/(?:src|examples)/")
OF_FUNCTION = re.compile(r"(?:pollux_(" + "|".join(ROOMS) + r")|path_cost)::")


def room_of(place: str) -> str:
    file, _, function = place.partition(":")
    if not file.startswith("/rustc/") and (found := OF_FILE.search(file)):
        return found[1]
    if found := OF_FUNCTION.search(function):
        return found[1] or "tests"
    return "libc"


def main() -> None:
    requests = int(sys.argv[1])
    events: list[str] = []
    rooms: dict[str, list[int]] = collections.defaultdict(list)
    for line in sys.stdin:
        if line.startswith("Events shown:"):
            events = line.split(":")[1].split()
        found = re.match(r"\s*((?:[\d,.]+\s+)+)(\S+:.*)", line)
        if not found or not events or "PROGRAM TOTALS" in line:
            continue
        numbers = [int(n.replace(",", "")) if n != "." else 0 for n in found[1].split()]
        if len(numbers) != len(events):
            continue
        sums = rooms[room_of(found[2])]
        rooms[room_of(found[2])] = [a + b for a, b in zip(sums or [0] * len(events), numbers)]
    if not rooms:
        sys.exit("callgrind_annotate printed nothing that could be added up")
    # Of the cache events those that say what a request waits for: missed in the first level (data), and in the last.
    columns = {"instructions": ["Ir"], "L1 misses": ["D1mr", "D1mw", "I1mr"], "LL misses": ["DLmr", "DLmw", "ILmr"]}
    shown = {name: [events.index(e) for e in of] for name, of in columns.items() if all(e in events for e in of)}
    print("| room | " + " | ".join(shown) + " |\n|" + "---|" * (1 + len(shown)))
    total = [sum(sums[e] for sums in rooms.values()) for e in range(len(events))]
    for room, sums in sorted(rooms.items(), key=lambda item: -item[1][0]) + [("all", total)]:
        cells = [f"{sum(sums[e] for e in of) / requests:.2f}".rstrip("0").rstrip(".") for of in shown.values()]
        print(f"| {room} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
