"""The report as one self-contained HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from yolokd import __version__
from yolokd.report import charts, figures, traces, view, words
from yolokd.report.examples import Example, Examples
from yolokd.report.figures import e, named, section

TEMPLATES = Path(__file__).parent / "templates"
TALL = 25  # rows above which a table scrolls by itself


def html(results: view.Results, examples: Examples | None = None) -> str:
    """Return the report as HTML.

    Args:
        results (Mapping): Content of results.json.
        examples (Examples, optional): Example images.

    Returns:
        (str): The file's text. It loads nothing, and its policy lets no script run but its own.
    """
    script, css = _template("report.js"), _template("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    drawn: dict[str, Any] = {}
    parts = [
        _notes(results),
        _main_table(results),
        _shows(results),
        figures.curves(results, drawn),
        figures.terms(results, drawn),
        figures.sizes(results),
        _classes(results),
        figures.cost(results),
        _gallery(examples) if examples else "",
        _checks(results),
        _runs(results),
        _how_to_read(),
        _environment(results),
    ]
    facts = "".join(f"<div><dt>{e(name)}</dt><dd>{e(text)}</dd></div>" for name, text in words.facts(results))
    return Template(_template("report.html")).substitute(
        policy=escape(policy),
        title=e(f"Distillation report: {words.headline(results)}"),
        css=css,
        js=script,
        headline=e(words.headline(results)),
        facts=f'<dl class="facts">{facts}</dl>',
        body="\n".join(part for part in parts if part),
        data=safe_json({"width": charts.WIDTH, "charts": drawn}),
        footer=f"Written by yolokd {e(__version__)}, {e(results.get('created') or 'no date')}. "
        f"The numbers are in results.json beside this file.",
    )


def safe_json(value: Any) -> str:
    """Return strict JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _notes(results: view.Results) -> str:
    """Return what has to be known before the numbers are believed."""
    said = words.notes(results)
    items = "".join(f"<li>{e(text)}</li>" for text in said)
    return f'<div class="notes" role="note"><p>Before you rely on this</p><ul>{items}</ul></div>' if said else ""


def _heading(key: str, label: str, title: str, text: bool = False) -> str:
    kind = ' data-type="text"' if text else ""
    return (
        f'<th scope="col" data-key="{e(key)}"{kind}><button type="button" title="{e(title)}">{e(label)}</button></th>'
    )


def _badge(word: str) -> str:
    return f'<span class="badge {e(word.split()[0])}">{e(word)}</span>'


def _main_table(results: view.Results) -> str:
    """Return the sortable table of all arms, with the teacher below."""
    columns = view.columns(results)
    head = _heading("name", "Arm", "name of the arm", text=True)
    head += "".join(_heading(c.key, c.label, c.title) for c in columns)
    rows = []
    for arm in view.arms(results):
        cells = [f'<th scope="row" data-v="{e(arm["name"])}">{named(arm["name"])}</th>']
        for column in columns:
            value = column.value(arm)
            shown = e(column.text(arm))
            if column.key == "verdict":
                shown = _badge(column.text(arm))
            elif column.key.startswith("vs_") and "[" in shown:
                first, rest = shown.split(" [", 1)
                shown = f"{first}<small>[{rest}</small>"
            cells.append(f'<td data-v="{"" if value is None else repr(value)}">{shown}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    foot = ""
    if metrics := (results.get("teacher") or {}).get("metrics"):
        cells = [f"<td>{view.points(metrics[c.key]) if c.key in metrics else ''}</td>" for c in columns]
        foot = f'<tfoot><tr><th scope="row">teacher</th>{"".join(cells)}</tr></tfoot>'
    note = "AP times 100, mean ± standard deviation over seeds; differences with their 95 % interval. A heading sorts."
    return section(
        "results",
        "Results",
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results"><table id="main-table"><thead><tr>{head}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody>{foot}</table></div>"
        f'<p class="muted">{note}</p>',
    )


def _shows(results: view.Results) -> str:
    """Return what the comparisons say, each arm with its interval against plain training."""
    colours = view.colours(results)
    pairs = [view.versus(arm, "none") for arm in view.arms(results)]
    ends = [
        100 * v for c in pairs for key in ("difference", "low", "high") if (v := view.number(c.get(key))) is not None
    ]
    scale = charts.axis([0.0, *ends], 14, 286, 4)
    items = []
    for arm, said in words.sentences(results):
        comparison = view.versus(arm, "none")
        value = view.number(comparison.get("difference"))
        figure = ""
        if value is not None:
            low, high = (
                100 * v if (v := view.number(comparison.get(k))) is not None else None for k in ("low", "high")
            )
            text = f"{view.difference(comparison)} AP against plain training"
            drawing = charts.interval(100 * value, low, high, scale, colours[arm["name"]], text)
            figure = f"<figure>{drawing}<figcaption>AP minus that of plain training</figcaption></figure>"
        text = "".join(f"<p>{e(sentence)}</p>" for sentence in said) or "<p>Nothing to compare.</p>"
        title = f"{charts.key(colours[arm['name']])}{named(arm['name'])}{_badge(view.verdict(arm))}"
        items.append(f"<li><div><h3>{title}</h3>{text}</div>{figure}</li>")
    return section("shows", "What it shows", f'<ul class="shows">{"".join(items)}</ul>' if items else "")


def _classes(results: view.Results) -> str:
    """Return the difference to plain training per class."""
    rows = traces.class_rows(results)
    tried = [arm["name"] for arm in view.distilled(results) if view.done(arm)]
    if not rows or not tried:
        return ""
    most = max((abs(v) for r in rows for n in tried if (v := view.average(r[3][n])) is not None), default=0.0) or 1.0
    head = _heading("class", "Class", "name of the class", text=True)
    head += _heading("objects", "Objects", "objects in the split") + _heading("ap", "AP of none", "of plain training")
    head += "".join(_heading(name, name, f"AP of {name} minus that of plain training") for name in tried)
    body = []
    for name, objects, base, by_arm in rows:
        cells = [f'<th scope="row" data-v="{e(name)}"><span class="name">{e(name)}</span></th>']
        cells.append(
            f'<td data-v="{"" if objects is None else objects}">{view.NONE if objects is None else objects}</td>'
        )
        cells.append(f'<td data-v="{"" if base is None else base}">{view.points(base)}</td>')
        for arm in tried:
            value = view.average(by_arm[arm])
            if value is None:
                cells.append(f'<td data-v="">{view.NONE}</td>')
                continue
            width = 50 * abs(value) / most
            place = f"left:{50 if value >= 0 else 50 - width:.1f}%;width:{width:.1f}%"
            each = ", ".join(view.points(v, sign=True) for v in by_arm[arm])
            bar = f'<span class="delta"><i class="{"plus" if value >= 0 else "minus"}" style="{place}"></i></span>'
            cells.append(f'<td data-v="{value}" title="by seed: {each}">{view.points(value, sign=True)}{bar}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    tall = " tall" if len(rows) > TALL else ""
    table = (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="Differences by class"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    note = "AP of the arm minus that of plain training, mean over seeds, in points. Not tested: expect noise where "
    note += "there are few objects."
    return section("classes", "Difference to plain training by class", f'{table}<p class="muted">{note}</p>')


def _gallery(examples: Examples) -> str:
    """Return the example images, both ways."""
    parts = []
    for t in examples.tallies:
        parts.append(
            f'<tr><th scope="row"><span class="name">{e(t.arm)}</span></th><td>{t.seeds}</td><td>{t.both}</td>'
            f"<td>{t.gained}</td><td>{t.lost}</td><td>{t.neither}</td></tr>"
        )
    content = ""
    if parts:
        words = ("Arm", "Seeds", "Found by both", "Only by the arm", "Only by plain", "Others")
        head = "".join(f'<th scope="col">{word}</th>' for word in words)
        content = (
            f'<div class="scroll" tabindex="0" role="region" aria-label="Objects found"><table><thead><tr>{head}</tr>'
            f'</thead><tbody>{"".join(parts)}</tbody></table></div><p class="muted">Objects found at IoU 0.5 and '
            f"confidence 0.25 in more than half of the seeds.</p>"
        )
    seeds = next((t.seeds for t in examples.tallies if t.arm == examples.arm), 0)
    for title, shown in (
        (f"Found by {examples.arm}, missed by plain training", examples.gained),
        (f"Found by plain training, missed by {examples.arm}", examples.lost),
    ):
        if shown:
            figures = "".join(_example(example, examples.arm, seeds) for example in shown)
            content += f'<h3>{e(title)}</h3><div class="gallery">{figures}</div>'
    if examples.gained or examples.lost:
        content += (
            '<p class="muted"><span class="swatch truth"></span>labelled object &ensp;'
            '<span class="swatch found"></span>'
            "detection by the student that finds it. These are the clearest cases, chosen by one rule for both sides: "
            "they show what differs, not how often.</p>"
        )
    if examples.reason:
        content += f'<p class="muted">{e(examples.reason)}</p>'
    return section("examples", "Example images", content)


def _example(example: Example, arm: str, seeds: int) -> str:
    counts = f"{arm} {example.found} of {seeds}, plain {example.found_plain} of {seeds}"
    alt = f"{example.label} in {example.image}; found in seeds: {counts}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{example.jpeg}" width="{example.width}" height="{example.height}" '
        f'alt="{e(alt)}"><figcaption><b class="name">{e(example.label)}</b><br>{e(counts)}<br>'
        f'<span class="name">{e(example.image)}</span></figcaption></figure>'
    )


def _checks(results: view.Results) -> str:
    rows = "".join(f"<li>{_badge(word)} {e(text)}</li>" for text, word in words.check_rows(results))
    return section("checks", "Checks", f'<ul class="checks">{rows}</ul>')


def _runs(results: view.Results) -> str:
    """Return all runs, with their errors."""
    texts = {"Seed", "Arm", "State", "Folder"}
    head = "".join(
        f'<th scope="col"{" class=text" if word in texts else ""}>{e(word)}</th>' for word in traces.RUN_HEADINGS
    )
    body = []
    for seed, name, state, *numbers, folder in traces.run_rows(results):
        cells = "".join(f"<td>{e(cell)}</td>" for cell in numbers)
        body.append(
            f'<tr><th scope="row">{e(seed)}</th><td class="text">{named(name)}</td>'
            f'<td class="text">{_badge(state)}</td>{cells}<td class="wide">{e(folder)}</td></tr>'
        )
    tall = " tall" if len(body) > TALL else ""
    content = (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="Runs"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    for arm in view.arms(results):
        for run in arm["runs"]:
            if said := run.get("traceback") or run.get("error"):
                title = f"{arm['name']}, seed {run.get('seed')}: error"
                content += f"<details><summary>{e(title)}</summary><pre>{e(said)}</pre></details>"
    return section("runs", "Runs", content)


def _how_to_read() -> str:
    return section("reading", "How to read this", f"<ul>{''.join(f'<li>{e(t)}</li>' for t in words.HOW_TO_READ)}</ul>")


def _environment(results: view.Results) -> str:
    """Return the environment and the exact commands."""
    rows = [f"<dt>{e(k)}</dt><dd>{e(v)}</dd>" for k, v in (results.get("environment") or {}).items()]
    for model in ("teacher", "student"):
        if digest := (results.get(model) or {}).get("sha256"):
            rows.append(f"<dt>{model} SHA-256</dt><dd>{e(digest)}</dd>")
    if which := results.get("weights"):
        rows.append(f"<dt>weights evaluated</dt><dd>{e(which)}</dd>")
    content = f"<h3>Command</h3><pre>{e(results.get('command') or 'not recorded')}</pre>"
    content += "<h3>Arguments</h3><p>The train arguments of all runs, and what each arm changes:</p>"
    content += f"<pre>{e(_arguments(results.get('arguments') or {}) or 'not recorded')}</pre>"
    for arm in view.arms(results):
        own = _arguments({"method": arm.get("method", arm["name"]), **(arm.get("arguments") or {})})
        content += f'<p class="name">{e(arm["name"])}</p><pre>{e(own)}</pre>'
    content += "<h3>Environment</h3>"
    return section("environment", "Environment and commands", f'{content}<dl class="plain">{"".join(rows)}</dl>')


def _arguments(values: Mapping[str, Any]) -> str:
    """Return arguments as they are written behind a command; those that are not set are left out."""
    return " ".join(f"{key}={value}" for key, value in values.items() if value is not None)
