"""Files of a run that are whole at every moment: a full disk or a kill leaves the earlier ones as they were."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PARTIAL = "partial"  # folder beside the checkpoints for those that are being written


def save_whole(value: Any, path: Path) -> None:
    """Write a value as `torch.save` does, beside its place first.

    Args:
        value (Any): What is saved.
        path (Path): The file.

    Raises:
        OSError: If it cannot be written, i.e. where the disk is full; the earlier file is then unchanged.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:  # torch hides what went wrong where it opens the file by itself
            torch.save(value, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_checkpoints(trainer: Any) -> Iterator[None]:
    """Let the host's trainer write its checkpoints beside their places, and put them there when all are written.

    Args:
        trainer (BaseTrainer): A trainer about to save; its `wdir`, `last` and `best` point elsewhere meanwhile.
    """
    folder, last, best = trainer.wdir, trainer.last, trainer.best
    partial = folder / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    trainer.wdir, trainer.last, trainer.best = partial, partial / last.name, partial / best.name
    try:
        yield
        written = sorted(partial.glob("*.pt"), key=lambda path: path.name == last.name)  # last.pt at the end
        for path in written:
            os.replace(path, folder / path.name)
    finally:
        trainer.wdir, trainer.last, trainer.best = folder, last, best
        shutil.rmtree(partial, ignore_errors=True)


def keep_rows(path: Path, epochs: int) -> None:
    """Take out of results.csv what a resumed run will write again: rows of later epochs, and one cut off.

    Args:
        path (Path): The file; where there is none, nothing happens.
        epochs (int): Number of epochs that the checkpoint holds.
    """
    if not path.exists():
        return
    header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and float(row.split(",")[0]) <= epochs]
    if len(kept) < len(rows):
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join([header, *kept]), encoding="utf-8")
        os.replace(temporary, path)
