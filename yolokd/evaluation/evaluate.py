"""COCO evaluation of detectors on YOLO-format datasets, on the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from yolokd.errors import UserError
from yolokd.evaluation.coco import Evaluation, bootstrap, score
from yolokd.evaluation.validation import NoCommonClass, collected, map_classes, quiet
from yolokd.rng import preserved_rng

__all__ = (
    "Evaluation",
    "NoCommonClass",
    "bootstrap",
    "check_labels",
    "coco_ground_truth",
    "evaluate",
    "map_classes",
    "score",
)


def check_labels(objects: int, data: str | Path, split: str) -> None:
    """Refuse a split without any labelled object, where no AP can be computed.

    Args:
        objects (int): Number of labelled objects.
        data (str | Path): Dataset yaml.
        split (str): Its split.
    """
    if not objects:
        raise UserError(
            f"data={data}: its split {split} has no labelled object, so there is nothing to judge with; label some of "
            f"its images, or give another split="
        )


def coco_ground_truth(
    data: str | Path, split: str = "val", single_cls: bool = False, classes: int | Sequence[int] | None = None
) -> dict[str, Any]:
    """Build COCO ground truth from the labels of an Ultralytics detection dataset.

    Ultralytics itself reads the labels: polygons become their boxes, duplicate rows and unreadable images are dropped,
    and a label cache is written beside the labels. Images without objects are included. Boxes are in pixels of the
    original image and clipped to it, as the predictions are. Category ids are the class indices.

    Args:
        data (str | Path): Dataset yaml, or the name of one that Ultralytics knows.
        split (str): Split of the yaml, e.g. `val` or `test`.
        single_cls (bool): Treat all classes as one.
        classes (int | Sequence[int], optional): Keep the objects of these class indices only.

    Returns:
        (dict[str, Any]): `info`, `images` (each with its path as `file_name`), `annotations` and `categories`.

    Raises:
        UserError: If the yaml has no such split.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    with quiet(), preserved_rng():
        description = check_det_dataset(str(data))
        if not description.get(split):
            raise UserError(f"split={split} is not in data={data}")
        chosen = None if classes is None else [int(c) for c in ([classes] if isinstance(classes, int) else classes)]
        cfg: Any = get_cfg(overrides={"task": "detect", "mode": "val", "single_cls": single_cls, "classes": chosen})
        dataset: Any = build_yolo_dataset(cfg, description[split], batch=1, data=description, mode="val")
    names: Mapping[int, str] = {0: "item"} if single_cls else description["names"]
    truth: dict[str, Any] = {
        "info": {"data": str(data), "split": split, "single_cls": single_cls, "classes": chosen},
        "images": [],
        "annotations": [],
        "categories": [{"id": int(index), "name": str(name)} for index, name in names.items()],
    }
    for image_id, label in enumerate(dataset.labels, start=1):
        height, width = (int(side) for side in label["shape"])
        file_name = str(label["im_file"])
        truth["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        centre = np.asarray(label["bboxes"], dtype=np.float64).reshape(-1, 4) * (width, height, width, height)
        first, last = centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2
        first, last = np.clip(first, 0, (width, height)), np.clip(last, 0, (width, height))
        for category, (x, y), (w, h) in zip(label["cls"].reshape(-1), first.tolist(), (last - first).tolist()):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,  # pycocotools takes id 0 for "no match"
                    "image_id": image_id,
                    "category_id": int(category),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return truth


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path,
    split: str = "val",
    imgsz: int = 640,
    ground_truth: Mapping[str, Any] | None = None,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    batch: int = 16,
    device: str | None = None,
    class_map: Mapping[str, str | list[str]] | None = None,
    channels: Sequence[int] | None = None,
    **overrides: Any,
) -> Evaluation:
    """Evaluate a detector on a split of an Ultralytics dataset with pycocotools.

    A model that takes other channels than the data has sees the images as a teacher does in training (`channel_plan`).
    A class of the dataset that the model does not know counts with an AP of 0 (Ultralytics leaves its labels out).
    Matches are those of Ultralytics but for boxes that leave the image, which are clipped here as COCO's own are, and
    the area under the curve is COCO's instead of its trapezoids: the two AP differ by less than 0.005, a little more
    where most classes have one or two objects.

    Args:
        model (str | Path | nn.Module): Weights, an Ultralytics model or its network.
        data (str | Path): Dataset yaml.
        split (str): Split of the yaml.
        imgsz (int): Longer side of the images that the network sees.
        ground_truth (Mapping[str, Any], optional): Ground truth of this split, if it is there already.
        conf (float): Lowest confidence.
        iou (float): IoU threshold of the non-maximum suppression.
        max_det (int): Largest number of detections per image.
        batch (int): Images per batch.
        device (str, optional): Device as Ultralytics names it.
        class_map (Mapping[str, str | list[str]], optional): `kd_class_map`, from the data's class names to the model's.
        channels (Sequence[int], optional): `teacher_channels`, the data's channel for each of the model's.
        **overrides (Any): Further arguments of Ultralytics' validation.

    Returns:
        (Evaluation): The COCO numbers, the detections and Ultralytics' own AP beside them.

    Raises:
        NoCommonClass: If none of the model's classes is in the dataset.
        UserError: If the model is no detector.
    """
    if ground_truth is None:
        single_cls, classes = bool(overrides.pop("single_cls", False)), overrides.pop("classes", None)
        ground_truth = coco_ground_truth(data, split, single_cls=single_cls, classes=classes)
    settings = {"imgsz": imgsz, "conf": conf, "iou": iou, "max_det": max_det, "batch": batch, "device": device}
    detections, host_ap = collected(model, ground_truth, {**settings, **overrides}, class_map, channels)
    return score(ground_truth, detections, host_ap=host_ap)
