"""What is handed on or taken out of the way: teacher objects, the folder of a failed run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils import RANK

from yolokd.errors import UserError
from yolokd.saving.files import save_whole

FOLDER_PREFIX = "yolokd-teacher-"  # a launcher leaves teacher objects in such a folder for its DDP workers
WRITTEN_FIRST = re.compile(r"args\.yaml|data\.yaml|labels\.jpg|teacher\d*\.pt")  # before anything is trained


def as_list(value: Any) -> list[Any]:
    """Return one value or several as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def split_objects(teacher: Any) -> tuple[list[nn.Module], Any]:
    """Return the models among teachers given as objects, and the plain value for the arguments."""
    given = as_list(teacher)
    if not any(isinstance(item, nn.Module) for item in given):  # YOLO is an nn.Module as well
        return [], teacher
    if not all(isinstance(item, nn.Module) for item in given):
        raise UserError("teacher=[...]: give either weights files or model objects, not both")
    models = [item.model if hasattr(item, "ckpt_path") or hasattr(item, "predictor") else item for item in given]
    names = [f"object-{i}.pt" for i in range(len(models))]
    return models, names if len(names) > 1 else names[0]


def save_teachers(models: list[nn.Module], folder: Path) -> str | list[str]:
    """Write teacher objects as checkpoints and return their paths."""
    paths = []
    for position, model in enumerate(models):
        path = folder / ("teacher.pt" if len(models) == 1 else f"teacher{position + 1}.pt")
        save_whole({"epoch": -1, "model": model, "ema": None, "train_args": {}}, path)
        paths.append(str(path.resolve()))
    return paths if len(paths) > 1 else paths[0]


def discard_run(trainer: Any) -> None:
    """Remove the folder that a run made and went wrong in before anything was trained; one that was there stays."""
    folder: Any = getattr(trainer, "save_dir", None)
    new = getattr(trainer, "new_folders", [])
    if folder in new and folder.is_dir() and RANK in {-1, 0} and not getattr(trainer, "resume", False):
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        if all(WRITTEN_FIRST.fullmatch(name) for name in files):
            shutil.rmtree(folder, ignore_errors=True)
            remove_empty(new)


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there yet, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break
