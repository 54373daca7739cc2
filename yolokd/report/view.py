"""What the reports say: values, signs and sentences of a results.json, the same for Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolokd.config import CONTROLS

Results = Mapping[str, Any]
Arm = Mapping[str, Any]

NONE = "–"
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
