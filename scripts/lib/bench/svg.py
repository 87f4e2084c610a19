"""A small writer of SVG. No scripts, no external fonts; colours follow the reader's light or dark mode."""

from html import escape

LIGHT = {
    "paper": "#ffffff", "ink": "#1f2328", "faint": "#656d76", "grid": "#e3e6ea", "c0": "#0969da", "c1": "#bc4c00",
    "c2": "#6e7781", "c3": "#8250df", "good": "#1a7f37", "bad": "#bc4c00",
}  # fmt: skip
DARK = {
    "paper": "#0d1117", "ink": "#e6edf3", "faint": "#9198a1", "grid": "#2b3138", "c0": "#4493f8", "c1": "#f0883e",
    "c2": "#9198a1", "c3": "#ab7df8", "good": "#3fb950", "bad": "#f0883e",
}  # fmt: skip
FONT = "12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def _colours(palette: dict[str, str]) -> str:
    """Plain classes: not every viewer knows variables."""
    fills = [f".f-{name} {{ fill: {colour}; }}\n.s-{name} {{ stroke: {colour}; }}" for name, colour in palette.items()]
    ink, faint, grid = palette["ink"], palette["faint"], palette["grid"]
    words = [f"text {{ fill: {ink}; }}", f"text.small {{ fill: {faint}; }}", f".grid {{ stroke: {grid}; }}"]
    words += [f".axis {{ stroke: {faint}; }}", f".whisker, .goal {{ stroke: {ink}; }}"]
    return "\n".join(fills + words)


STYLE = f"""
text {{ font: {FONT}; }}
text.title {{ font-size: 15px; font-weight: 600; }}
text.small {{ font-size: 11px; }}
.right {{ text-anchor: end; }}
.middle {{ text-anchor: middle; }}
.whisker {{ stroke-width: 1.3; opacity: 0.75; }}
.goal {{ stroke-width: 2; stroke-dasharray: 3 2; }}
.line {{ fill: none; stroke-width: 2; }}
{_colours(LIGHT)}
@media (prefers-color-scheme: dark) {{
{_colours(DARK)}
}}
"""


class Canvas:
    """A drawing."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width = width
        self.height = height
        self.title = title
        self.parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle; `colour` is a name of the palettes."""
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}"'
        self.parts.append(f'<rect {place} class="f-{colour}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of a class of the style."""
        self.parts.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{kind}"/>')

    def path(self, points: list[tuple[float, float]], colour: str) -> None:
        """A line through points, with a dot at each."""
        text = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self.parts.append(f'<polyline points="{text}" class="line s-{colour}"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3" class="f-{colour}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """A word at a place."""
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{_class(kind)}>{escape(text)}</text>')

    def render(self) -> str:
        """The file's content."""
        size = f'width="{_n(self.width)}" height="{_n(self.height)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.title)}">'
        back = '<rect width="100%" height="100%" class="f-paper"/>'
        return "\n".join([head, f"<style>{STYLE}</style>", back, *self.parts, "</svg>\n"])


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _n(value: float) -> str:
    """A number without digits that do not show."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
