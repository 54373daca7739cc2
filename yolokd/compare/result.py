"""What `compare` returns: the numbers as a table, as a data frame and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from yolokd.results import METRICS
from yolokd.results.table import Table


class CompareResult:
    """A comparison's outcome.

    Attributes:
        folder (Path): Folder with results.json, report.md, report.html and all runs.
        results (dict[str, Any]): Content of results.json.
    """

    def __init__(self, folder: str | Path, results: Mapping[str, Any] | None = None):
        """Take the results, or read them from the folder.

        Args:
            folder (str | Path): Folder of a comparison.
            results (Mapping, optional): Content of results.json.
        """
        from yolokd.report import read_results

        self.folder = Path(folder)
        self.results = dict(results) if results is not None else read_results(self.folder)

    @property
    def failed(self) -> list[str]:
        """Folders of the runs that failed."""
        runs = [run for arm in self.results["arms"] for run in arm["runs"]]
        return [run["folder"] for run in runs if run["status"] == "failed"]

    @property
    def sentences(self) -> list[str]:
        """What can be said of each arm, against each control, in plain words."""
        return [versus["sentence"] for arm in self.results["arms"] for versus in arm["versus"].values()]

    @property
    def table(self) -> Table:
        """One row per arm, and one for the teacher; AP as fractions."""
        rows = [_row(arm) for arm in self.results["arms"]]
        if metrics := self.results["teacher"].get("metrics"):
            rows.append({"arm": "teacher", **metrics})
        return Table(rows)

    def to_dataframe(self) -> Any:
        """Return the table as a pandas data frame, or as a list of dicts where pandas is not installed."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            return list(self.table)
        return pandas.DataFrame(self.table.rows, columns=list(self.table.columns))

    def plot(self, metric: str = "ap", ax: Any = None) -> Any:
        """Draw each arm's runs, their mean and the teacher.

        Args:
            metric (str): `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large` or `ar`.
            ax (matplotlib.axes.Axes, optional): Where to draw; a new figure if not given.

        Returns:
            (matplotlib.axes.Axes): The drawing.
        """
        import matplotlib.pyplot as plt

        if metric not in METRICS:
            raise ValueError(f"metric={metric} is not one of {', '.join(METRICS)}")
        arms = self.results["arms"]
        if ax is None:
            _, ax = plt.subplots(figsize=(1.6 + 1.1 * len(arms), 3.6), layout="constrained")
        for place, arm in enumerate(arms):
            values = [100 * run["metrics"][metric] for run in arm["runs"] if run["metrics"] and run["metrics"][metric]]
            ax.plot([place] * len(values), values, "o", color=f"C{place % 10}", alpha=0.6)
            if arm["mean"][metric] is not None:
                ax.plot([place - 0.25, place + 0.25], [100 * arm["mean"][metric]] * 2, color=f"C{place % 10}", lw=2)
        teacher = (self.results["teacher"].get("metrics") or {}).get(metric)
        if teacher is not None:
            ax.axhline(100 * teacher, color="0.4", ls="--", lw=1)
            ax.annotate("teacher", (1, 100 * teacher), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        ax.set_xticks(range(len(arms)), [arm["name"] for arm in arms], rotation=30, ha="right")
        ax.set_xlim(-0.5, len(arms) - 0.5)
        ax.set_ylabel(f"{metric.upper().replace('_', ' ')} x 100")
        return ax

    def __str__(self) -> str:
        checks = self.results["checks"]
        lines = [str(self.table), "", *self.sentences]
        lines += [f"PROBLEM: {problem}" for problem in checks["problems"]]
        lines += [f"note: {note}" for note in checks.get("notes", [])]
        return "\n".join([*lines, f"results: {self.folder / 'results.json'}"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})\n{self.table}"

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        problems = "".join(f"<li><b>{escape(problem)}</b></li>" for problem in self.results["checks"]["problems"])
        return f"{self.table._repr_html_()}<ul>{said}{problems}</ul>"


def _row(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm as a row of the table."""
    done = sum(run["status"] == "done" for run in arm["runs"])
    versus, peak = arm["versus"].get("none", {}), arm["mean"]["peak_bytes"]
    return {
        "arm": arm["name"],
        "runs": f"{done}/{len(arm['runs'])}",
        **{key: arm["mean"][key] for key in METRICS},
        "sd": arm["sd"]["ap"],
        "vs_none": versus.get("difference"),
        "low": versus.get("low"),
        "high": versus.get("high"),
        "verdict": versus.get("verdict"),
        "gap_closed": arm["gap_closed"],
        "step_ratio": arm["step_ratio"],
        "peak_gb": None if peak is None else peak / 1e9,
    }
