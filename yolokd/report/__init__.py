"""Reports of a comparison: report.md and report.html from results.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolokd import trust
from yolokd.errors import HOST_MISTAKES, UserError
from yolokd.report import traces, view, words
from yolokd.saving.records import SCHEMA, write_json

NAME = "results.json"
KEYS = {"out": "report", "split": "test", "device": "0"}  # of `yolokd report`, each with an example


def read_results(folder: str | Path) -> dict[str, Any]:
    """Read and check a results.json.

    Args:
        folder (str | Path): Folder that holds it.

    Returns:
        (dict[str, Any]): Its content.

    Raises:
        UserError: If it is missing, no strict JSON, or of another schema.
    """
    path = Path(folder) / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it is written by `yolokd compare`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise UserError(f"{path} has schema {found}; this version of yolokd reads schema {SCHEMA}")
    return content


def write_report(folder: str | Path) -> list[Path]:
    """Write report.md and report.html beside a results.json.

    Args:
        folder (str | Path): Folder of the comparison.

    Returns:
        (list[Path]): The two files.

    Raises:
        UserError: If there is no usable results.json.
    """
    from yolokd.report.examples import find_examples
    from yolokd.report.html import html

    folder = Path(folder)
    results = read_results(folder)
    files = [folder / "report.md", folder / "report.html"]
    _write(files[0], markdown(results))
    _write(files[1], html(results, find_examples(folder, results)))
    return files


def report_runs(
    run_folders: Sequence[str | Path], out: str | Path, split: str | None = None, device: str | None = None
) -> list[Path]:
    """Write results.json and the reports of finished run folders, also of runs made by `yolo train`.

    Args:
        run_folders (Sequence[str | Path]): Folders with args.yaml, results.csv and weights/best.pt, or one folder of a
            comparison.
        out (str | Path): Folder to write into; it is created.
        split (str, optional): Split of the data to judge on; that of a comparison by itself, else `val`.
        device (str, optional): Device as Ultralytics names it.

    Returns:
        (list[Path]): The files written.

    Raises:
        UserError: If a folder holds no finished run, or the runs cannot be compared.
    """
    from yolokd.config.inputs import check_place
    from yolokd.results import from_runs
    from yolokd.saving.records import read_json

    folders = [Path(folder) for folder in run_folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give run folders, e.g. runs/detect/train")
    out = Path(out)
    check_place(out.absolute(), "out", out, "out=report")
    results = from_runs(folders, split=split, device=device)
    plan, found = read_json(out / "plan.json") or {}, (results.get("data") or {}).get("split")
    if plan.get("split", found) != found:
        raise UserError(
            f"out={out} holds a comparison on split={plan['split']}; choose another folder, e.g. out=report"
        )
    if out.resolve() != folders[0].resolve():
        for run in (run for arm in results["arms"] for run in arm["runs"]):
            run["folder"] = str(folders[0].resolve() / run["folder"])  # an absolute one stays as it is
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / NAME, results)
    if not (out / "plan.json").is_file() and (content := _ground_truth(results)):
        write_json(out / "ground_truth.json", content)
    return [out / NAME, *write_report(out)]


def run_report(words: Sequence[str]) -> int:
    """Run `yolokd report RUN [RUN...] [out=FOLDER] [split=] [device=]`.

    Args:
        words (Sequence[str]): Words after the mode: run folders, or one folder of a comparison, and the keys.

    Returns:
        (int): Exit code.

    Raises:
        UserError: If nothing can be reported.
    """
    from ultralytics.cfg import smart_value

    from yolokd.config.consistency import check_device
    from yolokd.text import reason

    folders = [word for word in words if not re.match(r"\w+=", word) or Path(word).is_dir()]
    options: dict[str, Any] = dict(word.split("=", 1) for word in words if word not in folders)
    if unknown := set(options) - {*KEYS, trust.KEY}:
        raise UserError(
            f"{sorted(unknown)[0]}= is no key of `yolokd report`; there are out=FOLDER, split=, device=, {trust.KEY}="
        )
    if empty := [key for key in KEYS if options.get(key) == ""]:
        raise UserError(f"{empty[0]}= is empty; leave it out, or give it, e.g. {empty[0]}={KEYS[empty[0]]}")
    if trust.KEY in options:
        options[trust.KEY] = smart_value(options[trust.KEY])
    safe, (split, device) = trust.take(options), (options.get(key) for key in ("split", "device"))
    check_device(device)
    if not folders:
        raise UserError("report needs run folders, e.g. yolokd report runs/detect/train runs/detect/train2")
    first = Path(folders[0])
    compared, written = (first / "plan.json").is_file(), (first / NAME).is_file()
    with trust.loading(safe):
        try:
            if len(folders) == 1 and not {"out", "split"} & set(options) and (compared or written):
                files = report_runs(folders, first) if compared else write_report(first)
            else:
                out = options.get("out") or _new_folder(Path("runs") / "report")
                files = report_runs(folders, out, split, device)
        except UserError:
            raise
        except HOST_MISTAKES as error:
            raise UserError(reason(error, lines=2)) from error
    print("\n".join(str(file) for file in files))
    return 0


def markdown(results: view.Results) -> str:
    """Return the report as Markdown.

    Args:
        results (Mapping): Content of results.json.

    Returns:
        (str): The text.
    """
    columns = view.columns(results)
    lines = ["# Comparison of distillation methods", "", f"**{md(words.headline(results))}**", ""]
    lines += [f"- {name}: {md(text)}" for name, text in words.facts(results)]
    rows = [[arm["name"], *(c.text(arm) for c in columns)] for arm in view.arms(results)]
    if metrics := (results.get("teacher") or {}).get("metrics"):
        rows.append(["*teacher*", *(view.points(metrics.get(c.key)) if c.key in metrics else "" for c in columns)])
    lines += ["", "## Results", "", *table(["Arm", *(c.label for c in columns)], rows), ""]
    lines += ["AP times 100; mean ± standard deviation over seeds; differences with their 95 % interval.", ""]
    lines += ["## What it shows", ""]
    for arm, said in words.sentences(results):
        lines += [f"- {md(sentence)}" for sentence in said] or [f"- {md(arm['name'])}: {view.verdict(arm)}."]
    lines += ["", "## Checks", "", *(f"- {text}: {answer}." for text, answer in words.check_rows(results))]
    lines += [f"- {md(note)}" for note in words.notes(results)]
    if classes := traces.class_rows(results):
        tried = [arm["name"] for arm in view.distilled(results)]
        rows = []
        for name, objects, base, by_arm in classes:
            cells = [view.points(view.average(by_arm[arm]), sign=True) for arm in tried]
            rows.append([name, str(view.NONE if objects is None else objects), view.points(base), *cells])
        lines += ["", "## Difference to plain training by class", ""]
        lines += table(["Class", "Objects", "AP of none", *tried], rows)
    lines += ["", "## Runs", "", *table(traces.RUN_HEADINGS, traces.run_rows(results))]
    lines += ["", "## How to read this", "", *(f"- {text}" for text in words.HOW_TO_READ)]
    lines += ["", "## Environment", ""]
    lines += [f"- {md(key)}: {md(value)}" for key, value in (results.get("environment") or {}).items()]
    lines += [f"- written: {md(results.get('created') or view.NONE)}", "", "Command:", ""]
    lines += [f"    {line}" for line in _one_line(results.get("command") or view.NONE).splitlines()]
    return "\n".join(lines) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first column is set left, the others right."""
    ruler = [":--", *("--:" for _ in headings[1:])]
    lines = [[_cell(heading) for heading in headings], ruler, *([_cell(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def md(value: Any) -> str:
    """Return text in which Markdown finds no markup: names and errors may hold anything."""
    text = _one_line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*_|~]|\](?=[(\[:])", r"\\\g<0>", text)


def _cell(value: str) -> str:
    return "*teacher*" if value == "*teacher*" else md(value)


def _one_line(value: Any) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, which is no JSON")


def _write(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new one, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode("utf-8", "replace"))
    part.replace(path)


def _ground_truth(results: view.Results) -> dict[str, Any] | None:
    """Return the ground truth of the data, or None where the data is not at hand."""
    from yolokd.evaluation.evaluate import coco_ground_truth

    data, arguments = results.get("data") or {}, results.get("arguments") or {}
    single, classes = bool(arguments.get("single_cls")), arguments.get("classes")
    try:
        return coco_ground_truth(data["yaml"], data.get("split") or "val", single_cls=single, classes=classes)
    except (KeyError, OSError, ValueError, RuntimeError):
        return None


def _new_folder(base: Path) -> Path:
    """Return a folder name that is not taken: base, base2, base3..."""
    taken = 1
    while (folder := base if taken == 1 else base.with_name(f"{base.name}{taken}")).exists():
        taken += 1
    return folder
