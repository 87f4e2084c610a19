"""Numbers as people read them."""

from typing import Any


def count_text(value: float) -> str:
    """5.61 M, 43.0 k, 870."""
    for unit, letter in ((1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{_three(value / unit)}{letter}"
    return f"{value:.0f}"


def ns_text(value: float) -> str:
    """640 ns, 21.3 µs, 1.20 ms."""
    for unit, name in ((1e9, " s"), (1e6, " ms"), (1e3, " µs")):
        if value >= unit:
            return f"{_three(value / unit)}{name}"
    return f"{value:.0f} ns"


def bytes_text(value: float) -> str:
    """12.4 MiB, 1.00 GiB."""
    for unit, name in ((1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB")):
        if value >= unit:
            return f"{_three(value / unit)}{name}"
    return f"{value:.0f} B"


def percent_text(value: float) -> str:
    """0.0123 as 1.23 %."""
    return f"{value * 100:.2f} %"


def time_text(seconds: float) -> str:
    """95 s, 12 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _three(value: float) -> str:
    """Three digits that count."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def brief(values: dict[str, Any]) -> str:
    """A sample in a line of progress."""
    words = []
    if "iops" in values:
        words.append(f"{count_text(values['iops'])} IOPS")
    if "latency_ns" in values:
        names = [name for name in ("mean", "p99") if name in values["latency_ns"]]
        words += [f"{name} {ns_text(values['latency_ns'][name])}" for name in names]
    if "busy_ns_per_io" in values:
        words.append(f"{values['busy_ns_per_io']:.0f} ns busy per I/O, {percent_text(values['idle_share'])} idle")
    if "core_share" in values:
        words.append(f"{percent_text(values['core_share'])} of a core")
    if "own_bytes" in values:
        words.append(f"{bytes_text(values['own_bytes'])} (and {bytes_text(values['guest_bytes'])} of guests)")
    if "scrape_seconds" in values:
        words.append(f"{ns_text(values['scrape_seconds'] * 1e9)} a scrape of {bytes_text(values['scrape_bytes'])}")
    if values.get("workers"):
        words.append("kernel workers on " + ", ".join(f"{cores} ({n})" for cores, n in values["workers"].items()))
    if values.get("errors"):
        words.append(f"{values['errors']} ERRORS")
    return ", ".join(words)
