"""A long run on few images: memory, open files, time and log of its last epochs are those of its first ones."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from tests.test_faults import Runs, rows
from yolokd.drawn.shapes import draw_dataset

EPOCHS = 300
WARM = 30  # epochs until allocators and caches have settled


def thirds(values: list[float]) -> tuple[float, float]:
    """Return the medians of the first and the last third after the warm-up."""
    kept = values[WARM:]
    third = len(kept) // 3
    return statistics.median(kept[:third]), statistics.median(kept[-third:])


def lines_by_epoch(log: str) -> list[int]:
    """Return how many lines the log has for each epoch; of progress bars, which move by time, the full ones count."""
    parts = re.split(r"\n\s+Epoch\s+GPU_mem", log.replace("\x1b[K", "").replace("\r", "\n"))[1:]
    return [sum(bool(line.strip()) and "─" not in line for line in part.split("\n")) for part in parts]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dfmsd+pcd+ckd", "none"])
def test_three_hundred_epochs_are_as_light_at_the_end_as_at_the_beginning(method: str, tmp_path: Path) -> None:
    """Plain training, beside distillation, shows what is the host's."""
    runs = Runs(tmp_path, draw_dataset(tmp_path / "shapes", (4, 2), imgsz=64, classes=3), widths=(0.0625, 0.0625))
    more = [f"epochs={EPOCHS}", "batch=2", "nbs=2", "patience=0", f"method={method}"]
    try:
        code, folder, log = runs.train("soak", None, *more)
    finally:
        runs.close()
    assert code == 0, log.read_text()[-3000:]
    found = rows(folder)
    assert [row["epoch"] for row in found] == list(range(1, EPOCHS + 1))
    if method != "none":
        assert [row["kd/stage"] for row in found] == [0] * (EPOCHS // 2) + [1] * (EPOCHS // 2)
    told = [json.loads(line) for line in Path(f"{log}.health").read_text().splitlines()][:EPOCHS]
    seconds = [after["seconds"] - before["seconds"] for before, after in zip(told, told[1:])]
    lines = lines_by_epoch(log.read_text())
    ends = {
        "MiB": thirds([line["rss"] / 2**20 for line in told]),
        "files": thirds([line["files"] for line in told]),
        "threads": thirds([line["threads"] for line in told]),
        "processor s": thirds(seconds),
        "lines": thirds(lines),
    }
    print(method, {key: [round(value, 3) for value in pair] for key, pair in ends.items()})
    assert len(told) == len(lines) == EPOCHS
    for key, share in (("MiB", 1.03), ("files", 1.0), ("threads", 1.0), ("processor s", 1.25), ("lines", 1.0)):
        assert ends[key][1] <= ends[key][0] * share, (key, ends[key])
    assert max(lines[1 : EPOCHS - 1]) <= min(lines[1 : EPOCHS - 1]) + 2  # a stage begins, a mosaic is closed
