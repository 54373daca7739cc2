"""What a resumed distillation run needs beside Ultralytics' own checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolokd.errors import UserError
from yolokd.saving.files import save_whole
from yolokd.trust import refused

LOGGER = logging.getLogger("ultralytics")
FILE = "kd_state.pt"
VERSION = 1
KEPT_EPOCHS = 2


def read_state(path: Path) -> dict[str, Any] | None:
    """Read a state file under torch's restricted loader.

    Args:
        path (Path): The file, usually weights/kd_state.pt.

    Returns:
        (dict[str, Any] | None): `version`, `teachers` (fingerprints), `methods` and `epochs` (epoch -> state), or None
            where the file is missing, unreadable or of another version.

    Raises:
        UserError: If it needs more than torch's restricted loader rebuilds, which no file of ours does.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if needs := refused(error, path):
            raise UserError(
                f"{path} holds more than tensors and numbers ({needs}), so no yolokd run wrote it; take it away, and "
                f"adapters and gains start anew"
            ) from error
        return None
    return state if isinstance(state, dict) and state.get("version") == VERSION else None


def find_state(path: Path, epoch: int, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of an epoch; where there is none, say why and return None.

    Args:
        path (Path): The file.
        epoch (int): The epoch that ended, counted from 0.
        identity (dict[str, Any]): `teachers` and `methods` of the run.
    """
    saved = read_state(path)
    if saved is None:
        LOGGER.warning(f"{path} is missing or unreadable: adapters and gains start anew, the student goes on")
    elif any(saved.get(key) != value for key, value in identity.items()):
        LOGGER.warning(f"{path} belongs to another teacher or method: adapters and gains start anew")
    elif epoch not in saved["epochs"]:
        LOGGER.warning(f"{path} holds no state of epoch {epoch + 1}: adapters and gains start anew")
    else:
        found: dict[str, Any] = saved["epochs"][epoch]
        return found
    return None


def write_state(path: Path, epoch: int, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write the state of an epoch atomically, beside that of the epoch before.

    A kill between this file and last.pt then loses nothing: whichever epoch last.pt holds is found here.

    Args:
        path (Path): The file.
        epoch (int): The epoch that ended, counted from 0.
        state (dict[str, Any]): Tensors and plain values.
        identity (dict[str, Any]): `teachers` and `methods`; earlier epochs of other teachers or methods are dropped.
    """
    try:
        old = read_state(path) or {}
    except UserError:  # not ours, and replaced now
        old = {}
    epochs = old.get("epochs", {}) if all(old.get(key) == value for key, value in identity.items()) else {}
    epochs = {kept: value for kept, value in epochs.items() if kept < epoch}
    epochs = dict(sorted(epochs.items())[-(KEPT_EPOCHS - 1) :])
    save_whole({"version": VERSION, **identity, "epochs": {**epochs, epoch: state}}, path)


def forget_adapters(saved: dict[str, Any], optimizer: torch.optim.Optimizer, adapters: Iterable[nn.Parameter]) -> None:
    """Take what an optimizer's state holds of the adapters out of it, and make room for new ones of any shape.

    Args:
        saved (dict): State of the optimizer of an earlier run; it is changed in place.
        optimizer (torch.optim.Optimizer): This run's, whose groups hold the student's parameters before the adapters.
        adapters (Iterable[nn.Parameter]): This run's adapters.
    """
    new = {id(parameter) for parameter in adapters}
    numbers = count(1 + max((number for group in saved["param_groups"] for number in group["params"]), default=0))
    for old, group in zip(saved["param_groups"], optimizer.param_groups):
        kept = sum(id(parameter) not in new for parameter in group["params"])
        for number in old["params"][kept:]:
            saved["state"].pop(number, None)
        old["params"] = old["params"][:kept] + [next(numbers) for _ in group["params"][kept:]]
