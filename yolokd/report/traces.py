"""What the reports draw: rows, curves and paired differences of a results.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd.report.view import (
    NONE,
    TASK_LOSSES,
    Arm,
    Results,
    arms,
    average,
    distilled,
    done,
    fair,
    memory,
    number,
    plain_arm,
    points,
    seconds,
)


def class_rows(results: Results) -> list[tuple[str, int | None, float | None, dict[str, list[float]]]]:
    """Return name, objects, AP of `none`, and by arm the differences to it of each seed, for each class."""
    control = plain_arm(results)
    if control is None:
        return []
    plain = [run["metrics"] for run in done(control)]
    every = [run["metrics"] for arm in arms(results) for run in done(arm)]
    counts: Mapping[str, int] = next((m["objects"] for m in every if m.get("objects")), {})
    classes = list(dict.fromkeys(name for m in every for name in m.get("per_class") or {}))
    rows = []
    for name in sorted(classes, key=lambda c: -(counts.get(c) or 0)):
        base = average([number((m.get("per_class") or {}).get(name)) for m in plain])
        by_arm = {arm["name"]: paired_differences(arm, control, name, "per_class") for arm in distilled(results)}
        rows.append((name, counts.get(name), base, by_arm))
    return rows


def by_epoch(run: Mapping[str, Any], column: str) -> dict[float, float]:
    """Return the values of a column of a run's results.csv by epoch."""
    curves = run.get("curves") or {}
    values = curves.get(column) or []
    epochs = curves.get("epoch") or range(1, len(values) + 1)
    pairs = [(number(epoch), number(value)) for epoch, value in zip(epochs, values)]
    return {epoch: value for epoch, value in pairs if epoch is not None and value is not None}


def curve(arm: Arm, column: str, control: Arm | None = None) -> list[tuple[float, float, float, float]]:
    """Return epoch, mean, lowest and highest value over the seeds of a column of results.csv.

    Args:
        arm (Mapping): The arm.
        column (str): Name of the column.
        control (Mapping, optional): Arm whose value of the same seed and epoch is subtracted.
    """
    found: dict[float, list[float]] = {}
    for run in arm["runs"]:
        if run.get("status") != "failed":
            partners = [other for other in control["runs"] if fair(run, other)] if control else []
            base = by_epoch(partners[0], column) if partners else {}
            for epoch, value in by_epoch(run, column).items():
                other = base.get(epoch) if control else 0.0
                if other is not None:
                    found.setdefault(epoch, []).append(value - other)
    return [(epoch, sum(v) / len(v), min(v), max(v)) for epoch, v in sorted(found.items())]


def paired_differences(arm: Arm, control: Arm, key: str, group: str | None = None) -> list[float]:
    """Return the differences to a control, one for each seed that both have, of a metric or of a class's AP.

    Args:
        arm (Mapping): The arm.
        control (Mapping): What is subtracted.
        key (str): Name of the metric, or of the class.
        group (str, optional): Metric that holds the key, e.g. `per_class`.
    """

    def value(run: Mapping[str, Any]) -> float | None:
        metrics = run["metrics"] if group is None else run["metrics"].get(group) or {}
        return number(metrics.get(key))

    pairs = [(value(run), value(other)) for run in done(arm) for other in done(control) if fair(run, other)]
    return [a - b for a, b in pairs if a is not None and b is not None]


def term_columns(results: Results) -> list[str]:
    """Return the columns of results.csv that hold distillation terms: `kd/UNIT`, or the term of the built-in one."""
    found: dict[str, None] = {}
    for arm in arms(results):
        for run in arm["runs"]:
            curves = run.get("curves") or {}
            units = [
                c for c in curves if c.startswith("kd/") and not c.endswith(("_gain", "_norm", "/stage", "/factor"))
            ]
            losses = [c for c in curves if c.startswith("train/") and c.endswith("_loss")]
            other = [c for c in losses if c[len("train/") : -len("_loss")] not in TASK_LOSSES]
            found.update(dict.fromkeys(units or other))
    return list(found)


RUN_HEADINGS = ["Seed", "Arm", "State", "AP", "AP by Ultralytics", "Epochs", "Time", "Step", "Peak memory", "Folder"]


def run_rows(results: Results) -> list[list[str]]:
    """Return one row of texts per run, for both reports, in the order in which they were made."""
    found = []
    for place, arm in enumerate(arms(results)):
        for run in arm["runs"]:
            metrics = run.get("metrics") or {}
            epochs = run.get("epochs_done")
            cells = [
                NONE if run.get("seed") is None else str(run["seed"]),
                arm["name"],
                str(run.get("status")),
                points(metrics.get("ap")),
                points(metrics.get("host_ap")),
                NONE if epochs is None else str(epochs),
                seconds(run.get("wall_s")),
                seconds(run.get("step_s")),
                memory(run.get("peak_bytes")),
                str(run.get("folder") or NONE),
            ]
            found.append((-1 if run.get("seed") is None else run["seed"], place, cells))
    return [cells for _, _, cells in sorted(found, key=lambda item: item[:2])]
