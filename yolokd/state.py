"""What a resumed distillation run needs beside Ultralytics' own checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

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
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None
    return state if isinstance(state, dict) and state.get("version") == VERSION else None


def write_state(path: Path, epoch: int, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write the state of an epoch atomically, beside that of the epoch before.

    A kill between this file and last.pt then loses nothing: whichever epoch last.pt holds is found here.

    Args:
        path (Path): The file.
        epoch (int): The epoch that ended, counted from 0.
        state (dict[str, Any]): Tensors and plain values.
        identity (dict[str, Any]): `teachers` and `methods`; earlier epochs of other teachers or methods are dropped.
    """
    old = read_state(path) or {}
    epochs = old.get("epochs", {}) if all(old.get(key) == value for key, value in identity.items()) else {}
    epochs = {kept: value for kept, value in epochs.items() if kept < epoch}
    epochs = dict(sorted(epochs.items())[-(KEPT_EPOCHS - 1) :])
    temporary = path.with_suffix(".tmp")
    try:
        torch.save({"version": VERSION, **identity, "epochs": {**epochs, epoch: state}}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
