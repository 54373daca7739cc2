"""The picture of docs/results.md, gain against cost: python benchmarks/picture.py [OUT.svg].

Gains are those of the blood cells' settings, costs those of a step of the same pair (step-time-bfloat16.json).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from yolokd.evaluation.statistics import paired

RESULTS = Path(__file__).parent / "results"
SETTINGS = {
    "bccd-all-labels": ("all labels, 10 epochs", "o"),
    "bccd-30-percent": ("30 % of the labels, 30 epochs", "s"),
    "bccd-20-labels": ("20 labels, 185 images without", "^"),
}
ARMS = {"ultralytics": ("built-in", "built-in", "#888888"), "default": ("bckd", "yolokd's default", "#0b6e4f")}


def main(out: Path) -> None:
    """Draw it."""
    steps = json.loads((RESULTS / "step-time-bfloat16.json").read_text(encoding="utf-8"))["steps"]
    plt.rcParams.update({"svg.hashsalt": "yolokd", "svg.fonttype": "none", "font.size": 10})
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.axhline(0, color="#cccccc", linewidth=1, zorder=0)
    axes.plot(1, 0, "D", color="black")
    axes.annotate("plain training", (1, 0), xytext=(0, 8), textcoords="offset points", ha="center")
    for index, (name, (label, marker)) in enumerate(SETTINGS.items()):
        ap = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["ap"]
        for arm, (step, _, colour) in ARMS.items():
            found = paired(ap[arm], ap["none"])
            assert found.difference is not None and found.low is not None and found.high is not None
            bar = [[found.difference - found.low], [found.high - found.difference]]
            cost = steps[step]["x_plain"] + 0.03 * (index - 1)  # side by side
            axes.errorbar(cost, found.difference, yerr=bar, fmt=marker, color=colour, capsize=3)
        axes.plot([], [], marker, color="black", label=label)
    for step, text, colour in ARMS.values():
        axes.annotate(
            text,
            (steps[step]["x_plain"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -12),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    axes.set(xlim=(0.8, 2.4), xlabel="time of a step, x plain training", ylabel="AP gained on plain training")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "gain-against-cost.svg"))
