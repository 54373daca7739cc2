"""Rows of numbers shown as a table, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from yolokd.results import METRICS
from yolokd.text import aligned

COLUMNS = ("arm", "runs", *METRICS, "sd", "vs_none", "low", "high", "verdict", "gap_closed", "step_ratio", "peak_gb")
POINTS = {*METRICS, "sd", "vs_none", "low", "high"}  # shown times 100


class Table:
    """Rows of one kind, in the manner of a data frame: `table["ap"]` is a column, `table[0]` a row.

    Attributes:
        columns (tuple[str, ...]): Names of the columns.
        rows (list[dict[str, Any]]): The rows; fractions as they are, None where a value is missing.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS):
        """Keep the rows.

        Args:
            rows (Sequence[Mapping]): The rows.
            columns (Sequence[str]): Names of the columns.
        """
        self.columns = tuple(columns)
        self.rows = [{name: row.get(name) for name in self.columns} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, key: str | int) -> Any:
        """Return a column by name or a row by number."""
        return self.rows[key] if isinstance(key, int) else [row[key] for row in self.rows]

    def texts(self) -> list[list[str]]:
        """Return heading and rows as shown: AP in points, ratios to two digits, a dash where there is no value."""
        return [list(self.columns), *([_text(name, row[name]) for name in self.columns] for row in self.rows)]

    def __str__(self) -> str:
        return aligned(self.texts())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heading, *rows = [[escape(cell) for cell in row] for row in self.texts()]
        head = "".join(f"<th>{cell}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(name: str, value: Any) -> str:
    """Return a cell's value as shown."""
    if value is None:
        return "-"
    if name in {"vs_none", "low", "high"}:
        return f"{100 * value:+.2f}"
    if name in POINTS:
        return f"{100 * value:.2f}"
    if name == "gap_closed":
        return f"{100 * value:.0f} %"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
