"""Charts as inline SVG: coloured by style sheet, drawn without any library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 46
COLOURS = 8  # the style sheet has so many: 0 and 1 for the controls, the others in turn
DASHES = ("", "7 3", "2 3")


@dataclass(frozen=True)
class Series:
    """One arm in a chart.

    Attributes:
        name (str): Name of the arm.
        colour (int): Its index among the arms.
        points (list): x, y, lower and upper end of the spread.
    """

    name: str
    colour: int
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low (float): Value at its start.
        high (float): Value at its end.
        start (float): Place of its start in the drawing.
        end (float): Place of its end.
        ticks (list[float]): Values that get a line.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values that enclose an interval."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    size: float = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def axis(values: Sequence[float], start: float, end: float, count: int = 5, tight: bool = False) -> Axis:
    """Return an axis that holds all values; a tight one ends at the first and the last of them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    marks = ticks(low, high, count)
    if tight and high > low:
        marks = [mark for mark in marks if low <= mark <= high and (mark == int(mark) or high - low < count)]
        return Axis(low, high, start, end, marks)
    return Axis(marks[0], marks[-1], start, end, marks)


def style(colour: int) -> str:
    """Return the class of an arm's colour."""
    return f"c{colour if colour < COLOURS else 2 + (colour - 2) % (COLOURS - 2)}"


def dash(colour: int) -> str:
    """Return the stroke pattern that tells arms of one colour apart."""
    turn = max(0, colour - 2) // (COLOURS - 2)
    pattern = DASHES[turn % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def marker(x: float, y: float, colour: int, size: float = 4.5) -> str:
    """Return a mark whose shape and colour tell the arm."""
    shape = colour % 4
    if shape == 0:
        return f'<circle class="mark {style(colour)}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    s = size * 1.15
    corners = {
        1: ((-s, -s), (s, -s), (s, s), (-s, s)),
        2: ((0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)),
        3: ((0, -1.2 * s), (1.2 * s, s), (-1.2 * s, s)),
    }[shape]
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark {style(colour)}" points="{path}"/>'


def key(colour: int) -> str:
    """Return the sample of an arm for a legend."""
    return (
        f'<svg class="key" viewBox="0 0 26 14" aria-hidden="true"><line class="stroke {style(colour)}" x1="1" y1="7" '
        f'x2="25" y2="7"{dash(colour)}/>{marker(13, 7, colour, 3.6)}</svg>'
    )


def shown(value: float) -> str:
    """Return a tick's value without needless digits."""
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}"


def frame(
    x: Axis, y: Axis, title: str, x_label: str, y_label: str, body: str, x_text: Callable[[float], str] = shown
) -> str:
    """Return a drawing with both axes around its content."""
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for mark in y.ticks:
        at = y.at(mark)
        rule = "zero" if abs(mark) < 1e-12 and y.low < 0 else "rule"
        parts.append(f'<line class="{rule}" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{shown(mark)}</text>')
    for mark in x.ticks:
        at = x.at(mark)
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{base + 18}" text-anchor="middle">{x_text(mark)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    height = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 13 {height})"'
    parts.append(f'<text class="label" x="13" y="{height}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return "".join([*parts, body, "</svg>"])


def lines(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Return curves, each with the band from its lowest to its highest run."""
    every = [point for s in series for point in s.points]
    x = axis([p[0] for p in every], LEFT, WIDTH - RIGHT, 6, tight=True)
    y = axis([v for p in every for v in p[2:]], HEIGHT - BOTTOM, TOP)
    parts = []
    for s in series:
        there = [(x.at(e), y.at(m), y.at(low), y.at(high)) for e, m, low, high in s.points]
        if not there:
            continue
        band = [f"{a:.1f},{low:.1f}" for a, _, low, _ in there] + [
            f"{a:.1f},{high:.1f}" for a, _, _, high in there[::-1]
        ]
        path = " ".join(f"{a:.1f},{m:.1f}" for a, m, _, _ in there)
        line = f'<polyline class="stroke {style(s.colour)}" points="{path}"{dash(s.colour)}/>'
        end = marker(there[-1][0], there[-1][1], s.colour, 3.2)
        area = f'<polygon class="band {style(s.colour)}" points="{" ".join(band)}"/>'
        parts.append(f'<g data-arm="{escape(s.name)}">{area}{line}{end}</g>')
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>')
    return frame(x, y, title, x_label, y_label, "".join(parts))


def bars(groups: Sequence[str], series: Sequence[Series], title: str, y_label: str) -> str:
    """Return groups of bars with whiskers; a point's x is the index of its group."""
    tops = [v for s in series for p in s.points for v in p[1:]]
    y = axis([0.0, *tops], HEIGHT - BOTTOM, TOP)
    x = Axis(-0.5, len(groups) - 0.5, LEFT, WIDTH - RIGHT, [float(i) for i in range(len(groups))])
    slot = (WIDTH - RIGHT - LEFT) / max(1, len(groups))
    width = min(26.0, 0.84 * slot / max(1, len(series)))
    parts = []
    for i, s in enumerate(series):
        drawn = []
        for group, value, low, high in s.points:
            centre = x.at(group) + (i - (len(series) - 1) / 2) * width
            top, base = sorted((y.at(value), y.at(0)))
            drawn.append(
                f'<rect class="bar {style(s.colour)}" x="{centre - width / 2 + 1:.1f}" y="{top:.1f}" '
                f'width="{width - 2:.1f}" height="{max(0.8, base - top):.1f}"/>'
            )
            if high > low:
                drawn.append(_whisker(centre, y.at(low), centre, y.at(high)))
        parts.append(f'<g data-arm="{escape(s.name)}">{"".join(drawn)}</g>')
    return frame(x, y, title, "", y_label, "".join(parts), x_text=lambda v: escape(groups[int(v)]))


def scatter(series: Sequence[Series], title: str, x_label: str, y_label: str) -> str:
    """Return one mark per arm with the interval of its y value."""
    every = [point for s in series for point in s.points]
    x = axis([0.95, *(p[0] for p in every)], LEFT, WIDTH - RIGHT - 6)
    y = axis([0.0, *(v for p in every for v in p[1:])], HEIGHT - BOTTOM, TOP)
    parts = []
    for s in series:
        for a, b, low, high in s.points:
            whisker = _whisker(x.at(a), y.at(low), x.at(a), y.at(high), style(s.colour)) if high > low else ""
            parts.append(f'<g data-arm="{escape(s.name)}">{whisker}{marker(x.at(a), y.at(b), s.colour, 5.5)}</g>')
    return frame(x, y, title, x_label, y_label, "".join(parts))


def interval(value: float, low: float | None, high: float | None, scale: Axis, colour: int, title: str) -> str:
    """Return one difference with its interval around the line of no difference."""
    parts = [f'<svg class="interval" viewBox="0 0 300 44" role="img" aria-label="{escape(title)}">']
    for tick in scale.ticks:
        at = f"{scale.at(tick):.1f}"
        parts.append(f'<line class="rule" x1="{at}" x2="{at}" y1="4" y2="26"/>')
        parts.append(f'<text class="tick" x="{at}" y="41" text-anchor="middle">{shown(tick)}</text>')
    parts.append(f'<line class="zero" x1="{scale.at(0):.1f}" x2="{scale.at(0):.1f}" y1="1" y2="29"/>')
    if low is not None and high is not None:
        parts.append(_whisker(scale.at(low), 15, scale.at(high), 15, style(colour)))
    return "".join([*parts, marker(scale.at(value), 15, colour, 5), "</svg>"])


def _whisker(x1: float, y1: float, x2: float, y2: float, colour: str = "ink") -> str:
    return f'<line class="whisker {colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
