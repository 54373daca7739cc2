"""One run of a results.json, read from its folder."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolokd.saving.records import read_record

RECORDED = (
    "metrics", "wall_s", "step_s", "peak_bytes", "stream_hash", "batches", "initial_hash", "epochs_done", "resumed",
    "weights", "weights_sha256",
)  # fmt: skip


def compared_run(root: Path, key: str, seed: int, plan: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return one run of a comparison."""
    record = read_record(root / key, plan)
    run = {**empty_run(seed, root / key), "folder": key}
    if record:
        run |= {name: record.get(name) for name in RECORDED}
        run |= {"status": "done", "shared_machine": bool(record.get("shared_machine"))}
        run["weights"] = f"{key}/weights/best.pt"
    else:
        run |= {"status": state.get("status", "pending"), "error": state.get("error")}
        run["traceback"] = state.get("traceback")
    return run


def empty_run(seed: int, folder: Path) -> dict[str, Any]:
    """Return a run of which nothing is known but where it lies; its curves are read from results.csv."""
    return {
        "seed": seed,
        "folder": str(folder),
        "status": "pending",
        "error": None,
        "traceback": None,
        **dict.fromkeys(RECORDED),
        "step_ratio": None,
        "resumed": [],
        "shared_machine": False,
        "curves": curves(folder / "results.csv"),
    }


def curves(path: Path) -> dict[str, list[float | None]]:
    """Return the columns of a results.csv by name, one value per epoch; None for NaN. Empty if there is no file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [{(k or "").strip(): v for k, v in row.items()} for row in csv.DictReader(file)]
    except OSError:
        return {}
    result: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        result[name] = [_number(row.get(name)) for row in rows]
    return result


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
