"""What the reports say: values, signs and sentences of a results.json, the same for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
Arm = Mapping[str, Any]

NONE = "–"
CONTROLS = {"none": "plain training", "ultralytics": "Ultralytics' built-in distillation"}
SIZES = (("ap", "all"), ("ap_small", "small"), ("ap_medium", "medium"), ("ap_large", "large"))
EPOCH_AP = "metrics/mAP50-95(B)"
TASK_LOSSES = ("box", "cls", "dfl", "rle", "angle", "seg", "sem", "pose", "kobj")


@dataclass(frozen=True)
class Column:
    """A column of the main table.

    Attributes:
        key (str): Its name in the address of a sorted report.
        label (str): Heading.
        title (str): What it is, in a few words.
        value (Callable): Arm -> number to sort by, or None.
        text (Callable): Arm -> what is shown.
    """

    key: str
    label: str
    title: str
    value: Callable[[Arm], float | None]
    text: Callable[[Arm], str]


def number(value: Any) -> float | None:
    """Return a finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def points(value: Any, sign: bool = False) -> str:
    """Return a fraction in points (x 100) with two digits."""
    v = number(value)
    return NONE if v is None else f"{100 * v:+.2f}" if sign else f"{100 * v:.2f}"


def seconds(value: Any) -> str:
    """Return a duration in the unit that suits it."""
    v = number(value)
    if v is None:
        return NONE
    if v < 1:
        return f"{1000 * v:.0f} ms"
    if v < 120:
        return f"{v:.3g} s"
    return f"{v / 60:.0f} min" if v < 7200 else f"{v / 3600:.1f} h"


def memory(value: Any) -> str:
    """Return bytes as GB."""
    v = number(value)
    return NONE if v is None else f"{v / 1e9:.2f} GB"


def times(value: Any) -> str:
    """Return a ratio."""
    v = number(value)
    return NONE if v is None else f"{v:.2f}×"


def percent(value: Any) -> str:
    """Return a share."""
    v = number(value)
    return NONE if v is None else f"{100 * v:.0f} %"


def done(arm: Arm) -> list[Mapping[str, Any]]:
    """Return the finished runs of an arm."""
    return [run for run in arm.get("runs") or [] if run.get("status") == "done" and run.get("metrics")]


def fair(run: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two runs have the same seed and, as far as that was recorded, the same start and images."""
    hashes = [(run.get(key), other.get(key)) for key in ("stream_hash", "initial_hash")]
    return run.get("seed") == other.get("seed") and all(a is None or b is None or a == b for a, b in hashes)


def mean(arm: Arm, key: str) -> float | None:
    """Return the mean of a metric over the finished runs."""
    return number((arm.get("mean") or {}).get(key))


def spread(arm: Arm, key: str) -> float | None:
    """Return the standard deviation of a metric over the finished runs."""
    return number((arm.get("sd") or {}).get(key))


def average(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that exist, or None."""
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def largest(values: Sequence[float | None]) -> float | None:
    """Return the largest of the values that exist, or None."""
    return max((v for v in values if v is not None), default=None)


def versus(arm: Arm, control: str) -> Mapping[str, Any]:
    """Return the comparison of an arm with a control, empty where there is none."""
    return (arm.get("versus") or {}).get(control) or {}


def arms(results: Results) -> list[Arm]:
    """Return the arms, controls first."""
    order = {name: i for i, name in enumerate(CONTROLS)}
    return sorted(results.get("arms") or [], key=lambda arm: order.get(arm["name"], len(order)))


def find(results: Results, name: str) -> Arm | None:
    """Return an arm by name."""
    return next((arm for arm in results.get("arms") or [] if arm["name"] == name), None)


def distilled(results: Results) -> list[Arm]:
    """Return the arms that are not plain training."""
    return [arm for arm in arms(results) if arm.get("method", arm["name"]) != "none"]


def plain_arm(results: Results) -> Arm | None:
    """Return the arm of plain training, None without one or with several, of which none fits all others."""
    found = [arm for arm in arms(results) if arm.get("method", arm["name"]) == "none"]
    return found[0] if len(found) == 1 else None


def colours(results: Results) -> dict[str, int]:
    """Return the colour of each arm: 0 and 1 are the controls', 2 and above the others'."""
    fixed = list(CONTROLS)
    others = [arm["name"] for arm in arms(results) if arm["name"] not in CONTROLS]
    return {**{n: i for i, n in enumerate(fixed)}, **{n: i for i, n in enumerate(others, start=len(fixed))}}


def seeds(results: Results) -> list[int]:
    """Return all seeds."""
    return sorted({run["seed"] for arm in arms(results) for run in arm["runs"] if run.get("seed") is not None})


def mean_and_sd(arm: Arm, key: str) -> str:
    """Return `mean ± sd` in points."""
    sd = spread(arm, key)
    return points(mean(arm, key)) + ("" if sd is None else f" ± {100 * sd:.2f}")


def difference(comparison: Mapping[str, Any]) -> str:
    """Return a difference in points with its interval."""
    text = points(comparison.get("difference"), sign=True)
    if number(comparison.get("low")) is not None and number(comparison.get("high")) is not None:
        text += f" [{points(comparison['low'], sign=True)}, {points(comparison['high'], sign=True)}]"
    return text


def verdict(arm: Arm, control: str = "none") -> str:
    """Return the verdict of an arm against a control in a word or two."""
    if not done(arm):
        return "failed" if any(run.get("status") == "failed" for run in arm["runs"]) else "not finished"
    if arm.get("method", arm["name"]) == control:
        return "control"
    comparison = versus(arm, control)
    pairs = number(comparison.get("n"))
    if not pairs:
        return "no pair"
    return "one seed" if pairs == 1 else str(comparison.get("verdict") or "no pair")


def columns(results: Results) -> list[Column]:
    """Return the columns of the main table after the name; those about a missing control are left out."""

    def metric(key: str, label: str, title: str) -> Column:
        return Column(key, label, title, lambda arm: mean(arm, key), lambda arm: points(mean(arm, key)))

    def against(control: str) -> Column:
        return Column(
            f"vs_{control}",
            f"vs {control}",
            f"AP minus that of {CONTROLS[control]}, with its 95 % interval",
            lambda arm: number(versus(arm, control).get("difference")),
            lambda arm: difference(versus(arm, control)),
        )

    def peak(arm: Arm) -> float | None:
        return largest([number(run.get("peak_bytes")) for run in done(arm)])

    order = {"better": 3.0, "not distinguishable": 2.0, "worse": 1.0}
    controls = [against(control) for control in CONTROLS if find(results, control)]
    return [
        Column("ap", "AP", "mean ± sd over seeds", lambda arm: mean(arm, "ap"), lambda arm: mean_and_sd(arm, "ap")),
        *controls[:1],
        Column("verdict", "Verdict", "against plain training", lambda arm: order.get(verdict(arm)), verdict),
        *controls[1:],
        Column(
            "gap",
            "Gap closed",
            "share of the gap between plain student and teacher",
            lambda arm: number(arm.get("gap_closed")),
            lambda arm: percent(arm.get("gap_closed")),
        ),
        metric("ap50", "AP50", "AP at IoU 0.50"),
        metric("ap75", "AP75", "AP at IoU 0.75"),
        metric("ap_small", "AP S", "AP of objects below 32 x 32 pixels"),
        metric("ap_medium", "AP M", "AP of objects up to 96 x 96 pixels"),
        metric("ap_large", "AP L", "AP of objects above 96 x 96 pixels"),
        Column(
            "time",
            "Time/step",
            "time per training step, plain training = 1",
            lambda arm: number(arm.get("step_ratio")),
            lambda arm: times(arm.get("step_ratio")),
        ),
        Column("memory", "Memory", "peak, largest over seeds", peak, lambda arm: memory(peak(arm))),
        Column("runs", "Runs", "finished of all", lambda arm: float(len(done(arm))), _runs),
    ]


def _runs(arm: Arm) -> str:
    return f"{len(done(arm))} of {len(arm['runs'])}"


def names(results: Results) -> list[str]:
    """Return the class names in the order of their index."""
    given = (results.get("data") or {}).get("names") or []
    return [str(name) for name in (given.values() if isinstance(given, Mapping) else given)]


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
        group (str, optional): Metric that holds the key, i.e. `per_class`.
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
