"""Strict JSON files that are whole at every moment, and the records of finished runs among them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
PREDICTIONS = "predictions.json.gz"
TRACEBACK_LINES = 30


def now() -> str:
    """Return the time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def strict(value: Any) -> Any:
    """Return a value with None in place of NaN and infinities, tuples as lists and paths as text, for strict JSON."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return strict(value.item())
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON so that a reader finds the old file or the new one, never a part; `.gz` is compressed."""
    text = json.dumps(strict(value), allow_nan=False, indent=None if path.suffix == ".gz" else 1)
    data = text.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(gzip.compress(data, compresslevel=6, mtime=0) if path.suffix == ".gz" else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None where it is missing or damaged."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, ValueError, EOFError):
        return None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_detections(folder: Path, split: str | None) -> tuple[Path, dict[str, Any]]:
    """Return where a run's detections on a split are kept, and what is there: empty where nothing is.

    Args:
        folder (Path): Folder of the run.
        split (str | None): The split; None for whatever `predictions.json.gz` is of.

    Returns:
        path (Path): `predictions.json.gz`, or `predictions-SPLIT.json.gz` where that is of another split.
        kept (dict[str, Any]): Its content.
    """
    path = folder / PREDICTIONS
    kept = read_json(path)
    if split and isinstance(kept, dict) and kept.get("split", split) != split:
        path = folder / f"predictions-{split}.json.gz"
        kept = read_json(path)
    return path, kept if isinstance(kept, dict) else {}


def read_record(folder: Path, plan: str) -> dict[str, Any] | None:
    """Return the record of a finished run, or None where it is missing, damaged or of another plan.

    Args:
        folder (Path): Folder of the run.
        plan (str): Identity of the plan.
    """
    record = read_json(folder / "run.json")
    good = isinstance(record, dict) and record.get("schema") == SCHEMA and record.get("plan") == plan
    return record if good else None
