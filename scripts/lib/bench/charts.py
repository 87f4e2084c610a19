"""The plots: ratios against their goals, rates of cells, percentiles of latency. Data in, SVG text out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .svg import Canvas

COLOURS = {"Pollux": "c0", "SPDK": "c1", "fio": "c2", "before": "c3"}
ROW = 26
LABEL = 330
PLOT = 420
VALUE = 190


@dataclass(frozen=True)
class Bar:
    """A value with the range of its samples."""

    value: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class RatioBar:
    """A ratio and its goal."""

    name: str
    bar: Bar
    goal: float
    passed: bool


def ratios(title: str, rows: Sequence[RatioBar]) -> str:
    """A bar for each ratio, a dashed line at its goal."""
    top = 58
    canvas = Canvas(LABEL + PLOT + VALUE, top + ROW * len(rows) + 16, title)
    canvas.text(16, 24, title, "title")
    canvas.text(16, 42, "bar: ratio of medians, whisker: ratios of single turns, dashed: goal", "small")
    most = max([row.bar.high for row in rows] + [row.goal for row in rows] + [1.0]) * 1.05
    scale = _scale(most)
    _grid(canvas, scale, most, top, len(rows), lambda value: f"{value:g}")
    for at, row in enumerate(rows):
        y = top + at * ROW
        canvas.text(LABEL - 10, y + 17, row.name, "right")
        _bar(canvas, row.bar, y + 5, 16, most, "good" if row.passed else "bad")
        goal = LABEL + PLOT * row.goal / most
        canvas.line(goal, y + 2, goal, y + 24, "goal")
        canvas.text(LABEL + PLOT + 10, y + 17, row.bar.label)
    return canvas.render()


def rates(
    title: str, names: Sequence[str], series: Mapping[str, Sequence[Bar | None]], text: Callable[[float], str]
) -> str:
    """For each name a bar of each series."""
    each = 15
    height = each * len(series) + 12
    top = 58
    canvas = Canvas(LABEL + PLOT + VALUE, top + height * len(names) + 16, title)
    canvas.text(16, 24, title, "title")
    _legend(canvas, list(series), 42)
    most = max((bar.high for bars in series.values() for bar in bars if bar), default=1.0) * 1.02
    _grid(canvas, _scale(most), most, top, len(names) * height / ROW, text)
    for at, name in enumerate(names):
        y = top + at * height
        canvas.text(LABEL - 10, y + height / 2 + 4, name, "right")
        for number, (name_of, bars) in enumerate(series.items()):
            bar = bars[at]
            if bar is not None:
                _bar(canvas, bar, y + 6 + number * each, each - 3, most, _colour(name_of))
                canvas.text(LABEL + PLOT + 10, y + 6 + number * each + 10, bar.label, "small")
    return canvas.render()


def percentiles(
    title: str, panels: dict[str, dict[str, list[float | None]]], marks: Sequence[str], text: Callable[[float], str]
) -> str:
    """Panels side by side, a line for each series over the percentiles, on a logarithmic scale of nanoseconds."""
    width, height, columns, top = 300, 210, 3, 58
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    canvas = Canvas(columns * width, top + rows * height, title)
    canvas.text(16, 24, title, "title")
    _legend(canvas, names, 42)
    for at, (name, lines) in enumerate(panels.items()):
        left, upper = (at % columns) * width, top + (at // columns) * height
        _panel(canvas, (left + 62, upper + 22, width - 78, height - 64), name, lines, marks, text)
    return canvas.render()


Box = tuple[float, float, float, float]


def _panel(
    canvas: Canvas,
    box: Box,
    title: str,
    lines: dict[str, list[float | None]],
    marks: Sequence[str],
    text: Callable[[float], str],
) -> None:
    x, y, width, height = box
    values = [value for line in lines.values() for value in line if value]
    low, high = decades(min(values), max(values)) if values else (1.0, 10.0)
    span = math.log10(high / low)
    canvas.text(x, y - 8, title)
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        level = y + height * (1 - (power - math.log10(low)) / span)
        canvas.line(x, level, x + width, level, "grid")
        canvas.text(x - 6, level + 4, text(10.0**power), "small right")
    places = [x + width * (at + 0.5) / len(marks) for at in range(len(marks))]
    for place, mark in zip(places, marks, strict=True):
        canvas.text(place, y + height + 16, mark, "small middle")
    for name, line in lines.items():
        points = [
            (place, y + height * (1 - math.log10(v / low) / span)) for place, v in zip(places, line, strict=True) if v
        ]
        canvas.path(points, _colour(name))


def _colour(name: str) -> str:
    """The same in every plot."""
    return COLOURS.get(name, "c3")


def decades(low: float, high: float) -> tuple[float, float]:
    """Powers of ten around a range; never the same one twice."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return 10.0**first, 10.0 ** max(last, first + 1)


def _bar(canvas: Canvas, bar: Bar, y: float, height: float, most: float, colour: str) -> None:
    canvas.rect(LABEL, y, PLOT * bar.value / most, height, colour)
    low, high = LABEL + PLOT * bar.low / most, LABEL + PLOT * bar.high / most
    middle = y + height / 2
    canvas.line(low, middle, high, middle, "whisker")
    for end in (low, high):
        canvas.line(end, middle - 4, end, middle + 4, "whisker")


def _grid(canvas: Canvas, step: float, most: float, top: float, rows: float, text: Callable[[float], str]) -> None:
    bottom = top + rows * ROW
    for number in range(int(most / step) + 1):
        x = LABEL + PLOT * number * step / most
        canvas.line(x, top, x, bottom, "axis" if number == 0 else "grid")
        canvas.text(x, bottom + 13, text(number * step), "small middle")


def _legend(canvas: Canvas, names: Sequence[str], y: float) -> None:
    x = 16.0
    for name in names:
        canvas.rect(x, y - 10, 12, 12, _colour(name))
        canvas.text(x + 17, y, name, "small")
        x += 17 + 7 * len(name) + 16


def _scale(most: float) -> float:
    """A round step of which four to nine fit."""
    power = 10.0 ** math.floor(math.log10(most))
    for step in (0.1, 0.2, 0.25, 0.5, 1.0):
        if most / (step * power) <= 9:
            return step * power
    return power
