"""What the runs of a comparison share on disk: ground truth and label caches, made before the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolokd.saving.records import write_json


def prepare(root: Path, plan: Mapping[str, Any]) -> None:
    """Write the ground truth, anew at each call: the same data may lie elsewhere by now."""
    from yolokd.evaluation.evaluate import coco_ground_truth

    arguments = plan["arguments"]
    single, classes = bool(arguments.get("single_cls")), arguments.get("classes")
    write_json(root / "ground_truth.json", coco_ground_truth(plan["data"], plan["split"], single, classes))


def scan_labels(plan: Mapping[str, Any]) -> None:
    """Let Ultralytics write its label caches, which parallel runs would write over each other, or find them useless."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    from yolokd import config
    from yolokd.datasets import data_fault
    from yolokd.evaluation.evaluate import check_labels

    arguments = plan["arguments"]
    with config.quiet():
        description = check_det_dataset(plan["data"])
        shared = {key: arguments[key] for key in ("fraction", "single_cls", "classes", "imgsz") if key in arguments}
        for mode in dict.fromkeys(("train", "val", plan["split"])):
            cfg: Any = get_cfg(overrides={"task": "detect", "mode": "train", **shared})
            part = "train" if mode == "train" else "val"
            try:
                built: Any = build_yolo_dataset(cfg, description[mode], batch=1, data=description, mode=part)
            except (RuntimeError, ValueError) as error:
                if fault := data_fault(error, f"data={plan['data']}"):
                    raise fault from error
                raise
            if mode == plan["split"]:
                check_labels(sum(len(label["cls"]) for label in built.labels), plan["data"], mode)
