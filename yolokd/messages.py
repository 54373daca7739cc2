"""What the host says, in the form of our own messages."""

from __future__ import annotations


def reason(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an exception's message as one plain line, without colours and symbols."""
    from ultralytics.utils import remove_colorstr  # the help is printed without the host

    text = "".join(c for c in remove_colorstr(str(error)) if c.isascii() or c.isalpha())
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join(kept[:lines]) or type(error).__name__
