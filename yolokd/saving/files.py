"""Files of a run that are whole at every moment: a full disk or a kill leaves the earlier ones as they were."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER

PARTIAL = "partial"  # folder beside the checkpoints for those that are being written


def save_whole(value: Any, path: Path) -> None:
    """Write a value as `torch.save` does, beside its place first.

    Args:
        value (Any): What is saved.
        path (Path): The file.

    Raises:
        OSError: If it cannot be written, e.g. where the disk is full; the earlier file is then unchanged.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:  # torch hides what went wrong where it opens the file by itself
            torch.save(value, file)
        _place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _place(written: Path, path: Path) -> None:
    """Put a written file in its place once the disk has all of it."""
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(written, path)


@contextmanager
def whole_checkpoints(trainer: Any, main: bool = True, again: bool = False) -> Iterator[None]:
    """Let the host's trainer write its checkpoints beside their places, and put them there when all are written.

    Args:
        trainer (BaseTrainer): A trainer about to save; its `wdir`, `last` and `best` point elsewhere meanwhile.
        main (bool): Whether this process writes; the others of a run on several devices only look there.
        again (bool): Whether the host reads the checkpoints and writes them once more, and so is given copies.
    """
    folder, last, best = trainer.wdir, trainer.last, trainer.best
    partial = folder / PARTIAL
    if main:
        clear_partial(folder)  # of a save that was killed
        partial.mkdir(parents=True, exist_ok=True)
    trainer.wdir, trainer.last, trainer.best = partial, partial / last.name, partial / best.name
    try:
        if main and again:
            for path in filter(Path.exists, (last, best)):
                shutil.copyfile(path, partial / path.name)
        yield
        if main:
            for path in sorted(partial.glob("*.pt"), key=lambda path: path.name == last.name):  # last.pt at the end
                _place(path, folder / path.name)
    finally:
        trainer.wdir, trainer.last, trainer.best = folder, last, best
        if main:
            clear_partial(folder)


@contextmanager
def final_names() -> Iterator[None]:
    """Let the host's messages name checkpoints by the places that they will take."""

    def rename(record: logging.LogRecord) -> bool:
        record.msg = str(record.msg).replace(f"{os.sep}{PARTIAL}{os.sep}", os.sep)
        return True

    LOGGER.addFilter(rename)
    try:
        yield
    finally:
        LOGGER.removeFilter(rename)


def clear_partial(folder: Path) -> None:
    """Remove what an interrupted save left beside the checkpoints in a folder."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


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
        try:
            temporary.write_text("".join([header, *kept]), encoding="utf-8")
            _place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
