"""Ultralytics' validation, run for the detections that it evaluates."""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy import float64
from numpy.typing import NDArray
from torch import nn

from yolokd.classes import data_classes, fold, match_classes, some
from yolokd.errors import UserError
from yolokd.models import input_channels
from yolokd.rng import preserved_rng
from yolokd.teachers.images import Sight, channel_plan
from yolokd.trust import open_model

PLACEHOLDER = r"(class ?)?\d+|item"  # folded: what the host calls classes that nobody has named, and all as one


class NoCommonClass(UserError):
    """A model knows none of the data's classes, and so has no AP there."""


def map_classes(
    model: Mapping[int, str], dataset: Mapping[int, str], class_map: Mapping[str, str | list[str]] | None = None
) -> dict[int, int]:
    """Map a model's class indices to a dataset's.

    Args:
        model (Mapping[int, str]): Class names of the model.
        dataset (Mapping[int, str]): Class names of the dataset.
        class_map (Mapping[str, str | list[str]], optional): `kd_class_map`, from the dataset's names to the model's.

    Returns:
        (dict[int, int]): Model index -> dataset index. Equal lists map index by index; otherwise folded names decide;
            lists of one length map index by index where those of one side are placeholders such as `class0`.

    Raises:
        NoCommonClass: If nothing matches.
        UserError: If the map has a name that one side does not know.
    """
    if dict(model) == dict(dataset) and not class_map:
        return {index: index for index in model}
    matched = data_classes(match_classes(dataset, model, class_map))
    if matched:
        return matched
    if len(model) == len(dataset) and (_unnamed(model) or _unnamed(dataset)):
        return dict(zip(sorted(model), sorted(dataset)))
    raise NoCommonClass(
        f"none of the model's {len(model)} classes ({some(model)}) is among the data's ({some(dataset)}), so it has no "
        f"AP; where they are called otherwise, name them alike in the data's YAML, or for a teacher give "
        f"kd_class_map={{car: automobile}}"
    )


def _unnamed(names: Mapping[int, str]) -> bool:
    return all(re.fullmatch(PLACEHOLDER, fold(name)) for name in names.values())


class _Collector:
    """Mixed into a validator of Ultralytics: keeps the detections it evaluates, in pixels of the original image."""

    collected: list[tuple[str, NDArray[float64]]]

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


def collected(
    model: str | Path | nn.Module,
    ground_truth: Mapping[str, Any],
    settings: dict[str, Any],
    class_map: Mapping[str, str | list[str]] | None = None,
    channels: Sequence[int] | None = None,
) -> tuple[list[dict[str, Any]], float | None]:
    """Run Ultralytics' validation.

    Args:
        model (str | Path | nn.Module): Weights, an Ultralytics model or its network.
        ground_truth (Mapping[str, Any]): What `coco_ground_truth` returned.
        settings (dict[str, Any]): Arguments of the validation.
        class_map (Mapping[str, str | list[str]], optional): From the dataset's class names to the model's.
        channels (Sequence[int], optional): The data's channel for each of the model's.

    Returns:
        detections (list[dict[str, Any]]): The detections in COCO's form.
        host_ap (float | None): Ultralytics' own AP, None where the model's classes are not the dataset's.

    Raises:
        NoCommonClass: If none of the model's classes is in the dataset.
        UserError: If the model is no detector, or `channels` are given for an exported file.
    """
    network, base = _open(model)
    if channels is not None and not isinstance(network, nn.Module):
        raise UserError(f"teacher_channels={list(channels)} needs a teacher's weights, a .pt file, and not {network}")
    info = ground_truth["info"]
    dataset = {int(c["id"]): str(c["name"]) for c in ground_truth["categories"]}
    fixed = {"task": "detect", "mode": "val", "rect": True, "plots": False, "save_json": False, "verbose": False}
    args = {**fixed, **{key: info[key] for key in ("data", "split", "single_cls", "classes")}, **settings}
    with tempfile.TemporaryDirectory() as folder, quiet(), preserved_rng():
        validator = type("CollectingValidator", (_Collector, base), {})(args=args, save_dir=Path(folder))
        validator.collected = []
        if isinstance(network, nn.Module):
            network = deepcopy(network)
            network.register_forward_pre_hook(partial(_see, input_channels(network), channels))
        validator(model=network)
    names = {int(index): str(name) for index, name in validator.names.items()}
    mapping = dict.fromkeys(names, 0) if info["single_cls"] else map_classes(names, dataset, class_map)
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


def _see(own: int, chosen: Sequence[int] | None, network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Give a network of other channels than the data's what a teacher sees of the images."""
    images = inputs[0]
    if not isinstance(images, torch.Tensor) or (images.shape[1] == own and chosen is None):
        return None
    return (Sight(*channel_plan(images.shape[1], own, chosen))(images), *inputs[1:])


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
            raise UserError(
                f"task={model.task} of the model is not detect; only detectors can be evaluated side by side; use "
                f"`yolokd val` for each model alone"
            )
        return model.model, model.task_map["detect"]["validator"]
    return model, RTDETRValidator if isinstance(model, RTDETRDetectionModel) else DetectionValidator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics' tables and progress bars off the screen, but not its warnings."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        LOGGER.setLevel(level)
