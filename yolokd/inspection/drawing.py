"""Drawing what a method does on one level of one image: maps over the image, regions, and ranked classes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from yolokd.inspection.sheet import Array, Panel, Ranking, Regions, Sheet

WIDTH, DPI = 16.0, 100  # inches and dots per inch: 1600 pixels
MARGIN, COLUMNS, HEAD = 0.3, 4, 0.68  # inches; HEAD is the room for a title of three lines
MASKED, TEACHER, STUDENT = "#e69f00", "#0072b2", "#d55e00"  # orange, blue and vermilion of Okabe and Ito
LETTERING = [withStroke(linewidth=1.6, foreground="black")]


@rc_context({"text.parse_math": False})  # class names may hold $
def draw(sheet: Sheet, path: Path) -> None:
    """Write a sheet as a PNG of 1600 pixels width.

    Args:
        sheet (Sheet): What to draw.
        path (Path): The file.
    """
    notes = [line for note in sheet.notes for line in textwrap.wrap(note, 190, subsequent_indent="    ")]
    aspect = sheet.image.shape[0] / sheet.image.shape[1]
    cell = (WIDTH - MARGIN) / COLUMNS
    side = cell - 0.75  # room for a colour bar
    panel_height = side * aspect + HEAD + 0.2
    region_height = min(4.8 * aspect, 5.2) + HEAD + 0.3
    rows = -(-(len(sheet.panels) + 1) // COLUMNS)
    ranking_heights = [3.0 + 0.22 * len(r.groupings) + _name_room(r.names) for r in sheet.rankings]
    header = 0.55 + 0.21 * len(notes)
    height = header + rows * panel_height + len(sheet.regions) * region_height + sum(ranking_heights) + MARGIN
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")

    def place(x: float, y: float, width: float, tall: float) -> Axes:
        """Return axes at a place in inches from the top left."""
        return figure.add_axes((x / WIDTH, 1 - (y + tall) / height, width / WIDTH, tall / height))

    figure.text(MARGIN / WIDTH, 1 - 0.14 / height, sheet.title, fontsize=15, weight="bold", va="top")
    for index, line in enumerate(notes):
        figure.text(MARGIN / WIDTH, 1 - (0.46 + 0.21 * index) / height, line, fontsize=10, va="top")
    for index in range(len(sheet.panels) + 1):
        x, y = MARGIN + cell * (index % COLUMNS), header + panel_height * (index // COLUMNS) + HEAD
        axes = place(x, y, side, side * aspect)
        if index == 0:
            _photo(axes, sheet)
        else:
            _panel(axes, sheet, sheet.panels[index - 1])
    top = header + rows * panel_height
    for regions in sheet.regions:
        tall = region_height - HEAD - 0.3
        wide = tall / aspect
        rest = MARGIN + wide + 1.0
        bars = place(rest, top + HEAD, WIDTH - rest - 0.4, tall - 0.2) if regions.weights is not None else None
        _regions(place(MARGIN, top + HEAD, wide, tall), bars, sheet, regions)
        top += region_height
    for ranking, tall in zip(sheet.rankings, ranking_heights):
        below, strips = _name_room(ranking.names), 0.22 * len(ranking.groupings)
        axes = place(MARGIN + 0.5, top + 0.6 + strips, WIDTH - 2 * MARGIN - 0.5, tall - below - strips - 0.7)
        _ranking(axes, ranking, strips / (tall - below - strips - 0.7))
        top += tall
    figure.savefig(path)


def _name_room(names: Sequence[str]) -> float:
    """Return the height in inches of the class names under the bars."""
    return 0.35 if len(names) <= 12 else 0.12 + 0.062 * min(max(map(len, names)), 16)


def _frame(axes: Axes, title: str, wide: int = 50) -> None:
    """Write a title over axes, in lines that fit, and leave the ticks out."""
    lines = [line for part in title.splitlines() for line in textwrap.wrap(part, wide)]
    axes.set_title("\n".join(lines), fontsize=9.5, loc="left", pad=4)
    axes.set_xticks([])
    axes.set_yticks([])


def _outline(axes: Axes, boxes: Array, color: Any = "white", width: float = 1.0, rim: str = "black") -> None:
    """Draw boxes with a rim, so that they are seen on any ground."""
    for x1, y1, x2, y2 in boxes:
        shape = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width)
        shape.set_path_effects([withStroke(linewidth=width + 1.5, foreground=rim)])
        axes.add_patch(shape)


def _gray(image: Array) -> Array:
    """Return the image in grey and half as contrasty, as a ground for colours."""
    gray = image.astype(np.float32).mean(axis=2) / 255
    return np.repeat((0.25 + 0.6 * gray)[..., None], 3, axis=2)


def _photo(axes: Axes, sheet: Sheet) -> None:
    """Draw the image with the teacher's detections."""
    height, width = sheet.image.shape[:2]
    axes.imshow(sheet.image, extent=(0, width, height, 0))
    _outline(axes, sheet.boxes, width=1.2)
    written: list[tuple[float, float]] = []
    for (x, y), text in zip(sheet.boxes[:, :2], sheet.labels):
        x, y = min(x + 0.006 * width, 0.8 * width), max(y, 0.05 * height)
        if all(abs(x - u) > 0.26 * width or abs(y - v) > 0.045 * height for u, v in written):  # strongest ones first
            axes.text(x, y, text, fontsize=7, color="white", va="bottom", path_effects=LETTERING, clip_on=True)
            written.append((x, y))
    count = len(sheet.boxes)
    _frame(
        axes,
        f"Image with the teacher's {count} detection{'s' * (count != 1)}\n(class and probability; no labels are read)",
    )


def _panel(axes: Axes, sheet: Sheet, panel: Panel) -> None:
    """Draw a map: masks over the grey image, others in colours of their own with a colour bar."""
    height, width = sheet.image.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    if panel.kind == "mask":
        axes.imshow(_gray(sheet.image), extent=extent)
        color = np.empty((*panel.values.shape, 4), dtype=np.float32)
        color[..., :3], color[..., 3] = to_rgb(MASKED), 0.6 * (1 - panel.values)
        axes.imshow(color, extent=extent, interpolation="nearest")
    else:
        upper = panel.upper or float(np.quantile(np.abs(panel.values), 0.995)) or 1.0
        signed = panel.kind == "signed"
        shown = axes.imshow(
            panel.values,
            cmap="PuOr_r" if signed else "viridis",
            vmin=-upper if signed else 0,
            vmax=upper,
            extent=extent,
            interpolation="nearest",
        )
        beyond = float(np.abs(panel.values).max()) > upper * 1.001
        bar = axes.figure.colorbar(
            shown,
            cax=axes.inset_axes((1.02, 0, 0.04, 1)),
            extend=("both" if signed else "max") if beyond else "neither",
        )
        bar.ax.tick_params(labelsize=8)
    for cut in range(1, panel.grid):
        rows, columns = panel.values.shape
        axes.axhline(cut * rows // panel.grid * height / rows, color="white", linewidth=0.8, linestyle="--")
        axes.axvline(cut * columns // panel.grid * width / columns, color="white", linewidth=0.8, linestyle="--")
    _outline(axes, sheet.boxes)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _frame(axes, panel.title)


def _regions(axes: Axes, bars: Axes | None, sheet: Sheet, regions: Regions) -> None:
    """Draw regions over the grey image, and beside it the weights of the numbered ones."""
    height, width = sheet.image.shape[:2]
    axes.imshow(_gray(sheet.image), extent=(0, width, height, 0))
    levels = len(regions.strides)
    colors = [colormaps["viridis"]((i + 0.5) / levels) for i in range(levels)]
    for x1, y1, x2, y2 in regions.boxes[regions.shown :]:
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linewidth=0.5, alpha=0.5))
    written: list[tuple[float, float]] = []
    for number, box in enumerate(regions.boxes[: regions.shown]):
        color = "white" if regions.weights is None else colors[int(regions.weights[number].argmax())]
        _outline(axes, box[None], color=color, width=1.8, rim="white" if regions.weights is not None else "black")
        x, y = min(box[0] + 0.01 * width, 0.94 * width), max(box[1] + 0.01 * height, 0.01 * height)
        while any(abs(x - u) < 0.04 * width and abs(y - v) < 0.04 * height for u, v in written):
            y += 0.045 * height  # below the number that is there already
        written.append((x, y))
        axes.text(x, y, str(number + 1), fontsize=8, color="white", va="top", path_effects=LETTERING)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _frame(axes, regions.title, wide=66)
    if bars is None or regions.weights is None:
        return
    weights = regions.weights[: regions.shown]
    places = list(range(len(weights)))
    left = np.zeros(len(weights))
    for level in range(levels):
        bars.barh(places, weights[:, level], left=left, color=colors[level], height=0.75)
        for place, start, value in zip(places, left, weights[:, level]):
            if value > 0.06:
                dark = level / max(levels - 1, 1) < 0.6
                color = "white" if dark else "black"
                bars.text(start + value / 2, place, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
        left += weights[:, level]
    bars.set_yticks(places, [str(i + 1) for i in places], fontsize=8)
    bars.set_ylim(max(len(weights), 4) - 0.4, -0.6)
    bars.set_xlim(0, 1)
    bars.tick_params(axis="x", labelsize=8)
    bars.set_ylabel("region", fontsize=9)
    mean = " / ".join(f"{value:.2f}" for value in regions.weights.mean(axis=0)) if len(regions.weights) else "none"
    bars.set_title(
        f"Weight of each student level for the numbered regions\n"
        f"mean over the {len(regions.weights)} regions of this level: {mean} for strides "
        f"{', '.join(map(str, regions.strides))}",
        fontsize=10,
        loc="left",
    )
    handles = [Patch(color=color, label=f"stride {stride}") for color, stride in zip(colors, regions.strides)]
    bars.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=levels, fontsize=8, frameon=False
    )


def _ranking(axes: Axes, ranking: Ranking, strips: float) -> None:
    """Draw logits by rank as pairs of bars, and above them the groups of each stage with their terms."""
    places = np.arange(len(ranking.names))
    low = float(min(ranking.teacher.min(), ranking.student.min()))
    high = float(max(ranking.teacher.max(), ranking.student.max()))
    floor = low - 0.05 * max(high - low, 1.0)
    for values, shift, color, name in (
        (ranking.teacher, -0.2, TEACHER, "teacher"),
        (ranking.student, 0.2, STUDENT, "student"),
    ):
        axes.bar(places + shift, values - floor, width=0.4, bottom=floor, color=color, label=name)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylim(floor, high + 0.05 * (high - floor))
    few = len(places) <= 12
    names = [name if len(name) <= 16 else f"{name[:15]}." for name in ranking.names]
    axes.set_xticks(places, names, fontsize=10 if few else 8, rotation=0 if few else 90)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("class logit", fontsize=9)
    transform = axes.get_xaxis_transform()
    step = strips / max(len(ranking.groupings), 1)
    for row, groups in enumerate(ranking.groupings):
        start = -0.5
        for index, (size, term) in enumerate(groups):
            y = 1.02 + step * (len(ranking.groupings) - 1 - row)
            shade = "#d0d0d0" if index % 2 else "#ececec"
            axes.add_patch(
                Rectangle(
                    (start, y),
                    size,
                    step * 0.92,
                    transform=transform,
                    clip_on=False,
                    facecolor=shade,
                    edgecolor="white",
                )
            )
            word = f"group {index + 1} of {len(groups)}: {term:.3g}" if len(groups) <= 5 else f"{term:.2g}"
            axes.text(
                start + size / 2, y + step * 0.44, word, transform=transform, ha="center", va="center", fontsize=8
            )
            start += size
    above = 1.04 + strips
    axes.text(0, above, ranking.title, transform=axes.transAxes, fontsize=10, ha="left", va="bottom", clip_on=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, above - 0.02), ncols=2, fontsize=9, frameon=False, borderpad=0)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
