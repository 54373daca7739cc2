"""COCO evaluation of detectors on YOLO-format datasets, on the original images."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from yolokd.errors import UserError
from yolokd.evaluation.coco import Evaluation, bootstrap, score
from yolokd.pairs.classes import data_classes, match_classes
from yolokd.rng import preserved_rng
from yolokd.trust import open_model

__all__ = (
    "Evaluation",
    "bootstrap",
    "check_labels",
    "coco_ground_truth",
    "evaluate",
    "map_classes",
    "predict",
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

    with _quiet(), preserved_rng():
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


def predict(
    model: str | Path | nn.Module,
    ground_truth: Mapping[str, Any],
    imgsz: int,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    batch: int = 16,
    device: str | None = None,
    **overrides: Any,
) -> list[dict[str, Any]]:
    """Run a detector over the images of a ground truth, in the way `yolo val` does.

    Args:
        model (str | Path | nn.Module): Weights, an Ultralytics model or its network.
        ground_truth (Mapping[str, Any]): What `coco_ground_truth` returned.
        imgsz (int): Longer side of the images that the network sees.
        conf (float): Lowest confidence.
        iou (float): IoU threshold of the non-maximum suppression.
        max_det (int): Largest number of detections per image.
        batch (int): Images per batch; images of one batch share their rectangular shape.
        device (str, optional): Device as Ultralytics names it.
        **overrides (Any): Further arguments of Ultralytics' validation, e.g. `workers` or `half`.

    Returns:
        (list[dict[str, Any]]): Detections in COCO's form: `image_id`, `category_id`, `bbox` (x, y, width, height in
            pixels of the original image) and `score`. Classes are matched with the dataset's by name; detections of
            classes that the dataset does not have are left out.

    Raises:
        UserError: If the model is no detector or none of its classes is in the dataset.
    """
    settings = {"imgsz": imgsz, "conf": conf, "iou": iou, "max_det": max_det, "batch": batch, "device": device}
    return _validate(model, ground_truth, {**settings, **overrides})[0]


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
    **overrides: Any,
) -> Evaluation:
    """Evaluate a detector on a split of an Ultralytics dataset with pycocotools.

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
        **overrides (Any): Further arguments of Ultralytics' validation.

    Returns:
        (Evaluation): The COCO numbers, the detections and Ultralytics' own AP beside them.
    """
    if ground_truth is None:
        single_cls, classes = bool(overrides.pop("single_cls", False)), overrides.pop("classes", None)
        ground_truth = coco_ground_truth(data, split, single_cls=single_cls, classes=classes)
    settings = {"imgsz": imgsz, "conf": conf, "iou": iou, "max_det": max_det, "batch": batch, "device": device}
    detections, host_ap = _validate(model, ground_truth, {**settings, **overrides})
    return score(ground_truth, detections, host_ap=host_ap)


def map_classes(model: Mapping[int, str], dataset: Mapping[int, str]) -> dict[int, int]:
    """Map a model's class indices to a dataset's.

    Args:
        model (Mapping[int, str]): Class names of the model.
        dataset (Mapping[int, str]): Class names of the dataset.

    Returns:
        (dict[int, int]): Model index -> dataset index. Equal lists map index by index; otherwise folded names decide;
            lists of one length without a common name map index by index.

    Raises:
        UserError: If nothing matches.
    """
    if dict(model) == dict(dataset):
        return {index: index for index in model}
    matched = data_classes(match_classes(dataset, model))
    if not matched and len(model) == len(dataset):
        return dict(zip(sorted(model), sorted(dataset)))
    if not matched:
        raise UserError(f"none of the model's {len(model)} classes is among the dataset's: {list(dataset.values())}")
    return matched


class _Collector:
    """Mixed into a validator of Ultralytics: keeps the detections it evaluates, in pixels of the original image."""

    collected: list[tuple[str, NDArray[np.float64]]]

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Suppress image by image: on a busy machine the time limit of a whole batch would drop its last images."""
        values = preds[0] if isinstance(preds, (list, tuple)) else preds
        return [super(_Collector, self).postprocess(value[None])[0] for value in values]  # type: ignore[misc]

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """Keep x1, y1, x2, y2, score and class of each image's detections, then go on."""
        from ultralytics.utils import ops

        for i, pred in enumerate(preds):
            shape, original = batch["img"].shape[2:], batch["ori_shape"][i]
            boxes: Any = ops.scale_boxes(shape, pred["bboxes"].clone(), original, ratio_pad=batch["ratio_pad"][i])
            rows = torch.cat((boxes, pred["conf"][:, None], pred["cls"][:, None]), dim=1)
            self.collected.append((str(batch["im_file"][i]), rows.cpu().double().numpy()))
        super().update_metrics(preds, batch)  # type: ignore[misc]


def _validate(
    model: str | Path | nn.Module, ground_truth: Mapping[str, Any], settings: dict[str, Any]
) -> tuple[list[dict[str, Any]], float | None]:
    """Run Ultralytics' validation and return the detections in COCO's form and its own AP."""
    network, base = _open(model)
    info = ground_truth["info"]
    dataset = {int(c["id"]): str(c["name"]) for c in ground_truth["categories"]}
    fixed = {"task": "detect", "mode": "val", "rect": True, "plots": False, "save_json": False, "verbose": False}
    args = {**fixed, **{key: info[key] for key in ("data", "split", "single_cls", "classes")}, **settings}
    with tempfile.TemporaryDirectory() as folder, _quiet(), preserved_rng():
        validator = type("CollectingValidator", (_Collector, base), {})(args=args, save_dir=Path(folder))
        validator.collected = []
        validator(model=deepcopy(network) if isinstance(network, nn.Module) else network)
    names = {int(index): str(name) for index, name in validator.names.items()}
    mapping = dict.fromkeys(names, 0) if info["single_cls"] else map_classes(names, dataset)
    ids: dict[str, list[int]] = {}
    for image in ground_truth["images"]:
        ids.setdefault(str(image["file_name"]), []).append(int(image["id"]))
    detections = []
    for file_name, rows in validator.collected:
        image_id = ids[file_name].pop(0)  # an image that is listed twice has two ids
        for x1, y1, x2, y2, confidence, index in rows.tolist():
            if int(index) in mapping:
                category = mapping[int(index)]
                box = [x1, y1, x2 - x1, y2 - y1]
                detections.append({"image_id": image_id, "category_id": category, "bbox": box, "score": confidence})
    same = info["single_cls"] or (len(names) == len(dataset) and all(i == k for i, k in mapping.items()))
    return detections, float(validator.metrics.box.map) if same else None


def _open(model: str | Path | nn.Module) -> tuple[Any, Any]:
    """Return a model's network (or the path of an exported one) and the validator class that goes with it."""
    from ultralytics.engine.model import Model
    from ultralytics.models.rtdetr import RTDETRValidator
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.nn.tasks import RTDETRDetectionModel

    if isinstance(model, (str, Path)):
        model = open_model(model)
    if isinstance(model, Model):
        if model.task != "detect":
            raise UserError(f"task={model.task} of the model is not detect; only detectors can be evaluated")
        return model.model, model.task_map["detect"]["validator"]
    return model, RTDETRValidator if isinstance(model, RTDETRDetectionModel) else DetectionValidator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ultralytics' tables and progress bars off the screen, but not its warnings."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        LOGGER.setLevel(level)
