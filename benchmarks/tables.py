"""Tables of docs/results.md from the figures in benchmarks/results: python benchmarks/tables.py NAME..."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from yolokd.evaluation.statistics import Comparison, gap_closed, paired

RESULTS = Path(__file__).parent / "results"
NAMES = {"none": "plain", "ultralytics": "built-in"}


def difference(comparison: Comparison) -> str:
    """Return a paired difference with its interval, where there are seeds enough for one."""
    if comparison.difference is None:
        return ""
    if comparison.low is None or comparison.high is None:
        return f"{comparison.difference:+.2f}"
    return f"{comparison.difference:+.2f} ({comparison.low:+.2f} to {comparison.high:+.2f})"


def row(arm: str, results: dict[str, list[float | None]], teacher: float) -> str:
    """Return one row: the seeds, mean and deviation, the paired differences, the share of the gap that is closed."""
    found = [value for value in results[arm] if value is not None]
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    against = [
        difference(paired(results[arm], results[control]))
        if arm not in ("none", control) and control in results
        else ""
        for control in NAMES
    ]
    seeds = " ".join("-" if value is None else f"{value:.1f}" for value in results[arm])
    pairs = [(a, b) for a, b in zip(results["none"], results[arm]) if a is not None and b is not None]
    plain, own = (statistics.mean(values) for values in zip(*pairs))
    closed = gap_closed(plain, own, teacher) if arm != "none" else None
    share = "" if closed is None else f"{closed:.0%}"
    return (
        f"| {NAMES.get(arm, arm)} | {seeds} | {statistics.mean(found):.2f}{spread} | {' | '.join(against)} | {share} |"
    )


def table(figures: dict[str, Any]) -> str:
    """Return the Markdown table of a setting."""
    lines = [
        "| arm | AP by seed | mean and deviation | against plain | against the built-in | of the gap |",
        "| --- | --- | --- | --- | --- | --- |",
        *(row(arm, figures["ap"], figures["teacher_ap"]) for arm in figures["ap"]),
        f"| teacher | | {figures['teacher_ap']:.2f} | | | |",
    ]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print the tables of the named settings."""
    for name in names:
        figures = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        if "ap" not in figures:
            sys.exit(f"{name}.json holds no table of a setting; see docs/cost.md and docs/results-json.md")
        print(f"\n{name}: {figures['what']}\n{figures['command']}\n\n{table(figures)}")


if __name__ == "__main__":
    main(sys.argv[1:])
