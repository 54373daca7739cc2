"""The charts of the report with their headings, legends and notes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from yolokd.report import charts, traces, view, words


def e(value: Any) -> str:
    """Return text for HTML, also for attributes; what cannot be printed becomes a space."""
    return escape("".join(c if c.isprintable() or c == "\n" else " " for c in str(value)))


def legend(results: view.Results, shown: Sequence[str]) -> str:
    """Return the legend of charts; its entries hide and show an arm."""
    items = []
    for name, colour in view.colours(results).items():
        if name in shown:
            items.append(
                f'<li><button type="button" aria-pressed="true" data-arm="{e(name)}">{charts.key(colour)}'
                f"{named(name)}</button></li>"
            )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _caption(text: str) -> str:
    return f"<figcaption>{e(text)}</figcaption>"


def _line_figure(
    results: view.Results,
    drawn: dict[str, Any],
    column: str,
    caption: str,
    y_label: str,
    scale: float = 1.0,
    control: view.Arm | None = None,
) -> tuple[str, list[str]]:
    """Return the figure of one column of results.csv, or of the difference to a control in it, and the arms in it."""
    colours = view.colours(results)
    series = []
    for arm in view.arms(results):
        points = [] if arm is control else traces.curve(arm, column, control)
        if points:
            scaled = [(x, scale * y, scale * low, scale * high) for x, y, low, high in points]
            series.append(charts.Series(arm["name"], colours[arm["name"]], scaled))
    if not series:
        return "", []
    x = charts.axis([p[0] for s in series for p in s.points], charts.LEFT, charts.WIDTH - charts.RIGHT, 6, tight=True)
    identity = f"chart{len(drawn)}"
    drawn[identity] = {
        "low": x.low,
        "high": x.high,
        "start": x.start,
        "end": x.end,
        "digits": 2 if scale == 100 else 4,
        "series": [
            {"name": s.name, "x": [p[0] for p in s.points], "y": [round(p[1], 6) for p in s.points]} for s in series
        ],
    }
    drawing = charts.lines(series, f"{caption}, by epoch", "epoch", y_label)
    figure = (
        f'<figure data-chart="{identity}"><figcaption>{e(caption)}</figcaption>{drawing}<p class="values"></p></figure>'
    )
    return figure, [s.name for s in series]


def curves(results: view.Results, drawn: dict[str, Any]) -> str:
    """Return the validation curves."""
    first, shown = _line_figure(results, drawn, view.EPOCH_AP, "AP by epoch", "AP", 100)
    if not first:
        return ""
    plain, second = view.plain_arm(results), ""
    if plain and len(shown) > 1:
        caption = "AP minus that of plain training"
        second, _ = _line_figure(results, drawn, view.EPOCH_AP, caption, "difference in AP", 100, plain)
    note = "By Ultralytics' validation after each epoch; the line is the mean, the band goes from the lowest to the "
    note += "highest seed; differences are taken seed by seed. The table above is of the best checkpoint, computed by "
    note += "pycocotools."
    content = f'{legend(results, shown)}<div class="charts">{first}{second}</div><p class="muted">{note}</p>'
    return section("curves", "Curves", content)


def terms(results: view.Results, drawn: dict[str, Any]) -> str:
    """Return the distillation terms over the epochs."""
    figures, shown = [], []
    for column in traces.term_columns(results):
        figure, arms = _line_figure(results, drawn, column, column.split("/", 1)[-1], "mean over the epoch")
        figures.append(figure)
        shown += arms
    if not any(figures):
        return ""
    note = "Means over the training images before any gain. A term that falls is being learned; its size says nothing "
    note += "about its use, and terms of different methods have different units."
    content = f'{legend(results, shown)}<div class="charts">{"".join(figures)}</div><p class="muted">{note}</p>'
    return section("terms", "Distillation terms", content)


def sizes(results: view.Results) -> str:
    """Return AP by the objects' size."""
    colours = view.colours(results)
    groups = [
        (key, label) for key, label in view.SIZES if any(view.mean(a, key) is not None for a in view.arms(results))
    ]
    series = []
    for arm in view.arms(results):
        points = []
        for i, (key, _) in enumerate(groups):
            if (value := view.mean(arm, key)) is not None:
                sd = view.spread(arm, key) or 0.0
                points.append((float(i), 100 * value, 100 * (value - sd), 100 * (value + sd)))
        if points:
            series.append(charts.Series(arm["name"], colours[arm["name"]], points))
    if not series:
        return ""
    labels = [label for _, label in groups]
    figures = f"<figure>{_caption('AP')}{charts.bars(labels, series, 'AP by object size', 'AP')}</figure>"
    plain, changes = view.plain_arm(results), []
    for arm in view.distilled(results) if plain else []:
        assert plain is not None
        points = []
        for i, (key, _) in enumerate(groups):
            if found := traces.paired_differences(arm, plain, key):
                ends = (100 * min(found), 100 * max(found))
                points.append((float(i), 100 * sum(found) / len(found), *ends))
        if points:
            changes.append(charts.Series(arm["name"], colours[arm["name"]], points))
    if changes:
        title = "AP minus that of plain training"
        drawing = charts.bars(labels, changes, f"{title}, by object size", "difference in AP")
        figures += f"<figure>{_caption(title)}{drawing}</figure>"
    note = "The thin lines are the standard deviation over seeds; with the differences, lowest and highest seed."
    missing = [label for key, label in view.SIZES if label not in [g[1] for g in groups]]
    note += f" There are no {words.listed(missing)} objects." if missing else ""
    key = legend(results, [s.name for s in series])
    figure = f'<div class="charts">{figures}</div>'
    return section("sizes", "AP by object size", f'{key}{figure}<p class="muted">{note}</p>')


def cost(results: view.Results) -> str:
    """Return cost against gain."""
    colours, series = view.colours(results), []
    for arm in view.arms(results):
        comparison = view.versus(arm, "none")
        cost, gain = view.number(arm.get("step_ratio")), view.number(comparison.get("difference"))
        if arm["name"] == "none" and view.done(arm):
            series.append(charts.Series("none", 0, [(1.0, 0.0, 0.0, 0.0)]))
        elif cost is not None and gain is not None:
            low, high = view.number(comparison.get("low")), view.number(comparison.get("high"))
            ends = (gain if low is None else low, gain if high is None else high)
            point = (cost, 100 * gain, 100 * ends[0], 100 * ends[1])
            series.append(charts.Series(arm["name"], colours[arm["name"]], [point]))
    if len(series) < 2:
        return ""
    title = "AP gained against time per training step"
    drawing = charts.scatter(series, title, "time per step, plain training = 1", "AP gained")
    note = (
        "Further left is cheaper, further up is better; lines are 95 % intervals. Cost is paid in training only: the "
    )
    note += "trained student runs as fast as the plain one."
    key = legend(results, [s.name for s in series])
    figure = f'<div class="charts"><figure>{drawing}</figure></div>'
    return section("cost", "Cost against gain", f'{key}{figure}<p class="muted">{note}</p>')


def section(anchor: str, title: str, content: str) -> str:
    """Return a section with its heading; nothing where there is no content."""
    return f'<section id="{anchor}"><h2>{e(title)}</h2>\n{content}</section>' if content else ""


def named(name: str) -> str:
    """Return a name for HTML, kept apart from the text around it."""
    return f'<span class="name">{e(name)}</span>'
