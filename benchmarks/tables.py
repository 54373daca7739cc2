"""Tables of docs/results.md from the comparisons in benchmarks/results: python benchmarks/tables.py NAME..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = {"none": "plain", "ultralytics": "built-in"}


def points(value: float | None) -> str:
    """Return an AP as points, a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def row(arm: dict[str, Any], control: str) -> str:
    """Return one row of a table: the seeds, mean and deviation, and the paired difference from a control."""
    seeds = " ".join(points(run["metrics"]["ap"]) for run in arm["runs"] if run["metrics"])
    mean, deviation = arm["mean"]["ap"], arm["sd"]["ap"]
    versus = (arm["versus"] or {}).get(control)
    against = (
        f"{100 * versus['difference']:+.2f} ({100 * versus['low']:+.2f} to {100 * versus['high']:+.2f})"
        if versus and versus["low"] is not None
        else ""
    )
    closed = "" if arm["gap_closed"] is None else f"{arm['gap_closed']:.0%}"
    spread = f" ± {100 * deviation:.2f}" if deviation is not None else ""
    name = NAMES.get(arm["name"], f"`{arm['name']}`")
    cost = f"{arm['step_ratio']:.2f}" if arm["step_ratio"] else ""
    return f"| {name} | {seeds} | {100 * mean:.2f}{spread} | {against} | {closed} | {cost} |"


def table(result: dict[str, Any]) -> str:
    """Return the Markdown table of a comparison."""
    lines = [
        "| arm | AP by seed | mean and deviation | against plain, 95 % interval | of the gap | step |",
        "| --- | --- | --- | --- | --- | --- |",
        *(row(arm, "none") for arm in result["arms"]),
    ]
    if result["teacher"]["metrics"]:
        lines.append(f"| teacher | | {100 * result['teacher']['metrics']['ap']:.2f} | | | |")
    for arm in result["arms"]:
        if versus := (arm["versus"] or {}).get("ultralytics"):
            gain, low, high = (100 * versus[key] for key in ("difference", "low", "high"))
            lines.append(f"\n`{arm['name']}` against the built-in: {gain:+.2f} ({low:+.2f} to {high:+.2f}).")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print the tables of the named comparisons."""
    for name in names:
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        print(f"\n{name}\n{table(result)}")


if __name__ == "__main__":
    main(sys.argv[1:])
