"""Train each method for a few epochs and print its terms at the first and the last epoch.

Usage:
    python benchmarks/terms.py model=yolov8n.pt teacher=yolov8s.pt data=mine.yaml imgsz=160 epochs=4 out=terms.json
"""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
import tempfile
from pathlib import Path

from ultralytics import YOLO
from ultralytics.cfg import parse_key_value_pair
from ultralytics.utils import LOGGER

from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.trainers import DistillationTrainer


def terms(method: str, arguments: dict[str, object]) -> dict[str, list[float]]:
    """Return the bare mean of each unit of a method, one value per epoch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"plots": False, "val": False, "kd_preflight": False, "kd_decay": "constant", **arguments}
        model = YOLO(str(settings.pop("model")))
        model.train(trainer=DistillationTrainer, method=method, project=folder, name=method, **settings)
        with (Path(folder) / method / "results.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    gains = [column for column in rows[0] if column.startswith("kd/") and column.endswith("_gain")]
    units = [column.removesuffix("_gain") for column in gains]
    return {unit.removeprefix("kd/"): [float(row[unit]) for row in rows] for unit in units}


def main() -> None:
    """Run all methods, print one line per unit, and write the values where `out=` says."""
    arguments = dict(parse_key_value_pair(word) for word in sys.argv[1:])
    out = arguments.pop("out", None)
    wanted = str(arguments.pop("methods", ",".join(LOSSES))).split(",")
    LOGGER.setLevel(logging.ERROR)
    found: dict[str, list[float]] = {}
    for method in wanted:
        try:
            values = terms(method, dict(arguments))
        except UserError as error:
            print(f"{method:<16} refused: {error}", flush=True)
            continue
        found.update(values)
        for unit, course in values.items():
            good = all(map(math.isfinite, course)) and course[-1] < course[0]
            print(f"{unit:<16} {course[0]:10.4f} -> {course[-1]:10.4f}  {'' if good else 'NOT DECREASING'}", flush=True)
    if out:
        Path(str(out)).write_text(
            json.dumps({"arguments": arguments, "terms": found}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
