"""Rows as text, and what the host says in the form of our own messages."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of text, in columns of even width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def reason(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an exception's message as one plain line, without colours and symbols."""
    from ultralytics.utils import remove_colorstr  # the help is printed without the host

    text = "".join(c for c in remove_colorstr(str(error)) if c.isascii() or c.isalpha())
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join(kept[:lines]) or type(error).__name__
