"""Tiny data sets and models of the tasks beside detection: drawn shapes with polygons, keypoints or rotated corners."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, RTDETRDetectionModel, SegmentationModel

from tests.tiny import NAMES, tiny_batch, tiny_model
from yolokd.drawn.shapes import draw_dataset

MODELS: dict[str, type[DetectionModel]] = {
    "detect": DetectionModel,
    "segment": SegmentationModel,
    "pose": PoseModel,
    "obb": OBBModel,
    "rtdetr": RTDETRDetectionModel,
}
SUFFIX = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}
KEYPOINTS = 4
ANGLE = math.radians(30)
RTDETR = {  # an eighth of rtdetr-l's width, one block where that has six, two decoder layers, 30 queries
    "nc": len(NAMES),
    "backbone": [
        [-1, 1, "HGStem", [8, 16]],  # 0-P2/4
        [-1, 1, "HGBlock", [8, 16, 3]],
        [-1, 1, "DWConv", [16, 3, 2, 1, False]],  # 2-P3/8
        [-1, 1, "HGBlock", [8, 32, 3]],
        [-1, 1, "DWConv", [32, 3, 2, 1, False]],  # 4-P4/16
        [-1, 1, "HGBlock", [16, 48, 5, True, False]],
        [-1, 1, "DWConv", [48, 3, 2, 1, False]],  # 6-P5/32
        [-1, 1, "HGBlock", [16, 64, 5, True, False]],
    ],
    "head": [
        [-1, 1, "Conv", [32, 1, 1, None, 1, 1, False]],  # 8
        [-1, 1, "AIFI", [64, 4]],
        [-1, 1, "Conv", [32, 1, 1]],  # 10
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [5, 1, "Conv", [32, 1, 1, None, 1, 1, False]],
        [[-2, -1], 1, "Concat", [1]],
        [-1, 1, "RepC3", [32]],  # 14
        [-1, 1, "Conv", [32, 1, 1]],  # 15
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [3, 1, "Conv", [32, 1, 1, None, 1, 1, False]],
        [[-2, -1], 1, "Concat", [1]],
        [-1, 1, "RepC3", [32]],  # 19
        [-1, 1, "Conv", [32, 3, 2]],
        [[-1, 15], 1, "Concat", [1]],
        [-1, 1, "RepC3", [40]],  # 22
        [-1, 1, "Conv", [32, 3, 2]],
        [[-1, 10], 1, "Concat", [1]],
        [-1, 1, "RepC3", [48]],  # 25
        [[19, 22, 25], 1, "RTDETRDecoder", ["nc", 32, 30, 4, 4, 2, 64]],
    ],
}


def rtdetr_yaml(folder: Path) -> Path:
    """Write the architecture of the tiny RT-DETR."""
    path = folder / "rtdetr-tiny.yaml"
    path.write_text(yaml.safe_dump(RTDETR), encoding="utf-8")
    return path


def task_model(name: str, task: str, seed: int = 0) -> Any:
    """Return a model of a task, e.g. `task_model("yolov8n", "segment")`, with lively statistics."""
    if task == "rtdetr":
        return deepcopy(_rtdetr(seed))
    model = tiny_model(f"{name}{SUFFIX[task]}", seed=seed, task=MODELS[task])
    if task == "pose":
        model.kpt_shape = model.model[-1].kpt_shape
    return model


@cache
def _rtdetr(seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RTDETRDetectionModel(deepcopy(RTDETR), nc=len(NAMES), verbose=False)
        model.names = dict(enumerate(NAMES))
        model.nc = len(NAMES)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        with torch.no_grad():
            model.train()(torch.rand(4, 3, 128, 128))
        for norm in norms:
            norm.momentum = 0.1
        return model.eval()


def task_batch(task: str, images: int = 2, objects: int = 3, size: tuple[int, int] = (64, 64), seed: int = 0) -> Any:
    """Return a batch as the host preprocesses it for a task: noise, with `objects` labelled objects in each image."""
    batch = tiny_batch(images, size, objects, seed)
    draw = torch.Generator().manual_seed(seed + 100)
    x, y, w, h = batch["bboxes"].unbind(-1)
    if task == "segment":  # masks as the host keeps them: a quarter of the size, numbered within each image
        rows, columns = size[0] // 4, size[1] // 4
        grid_y, grid_x = torch.meshgrid(
            (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
        )
        masks = torch.zeros(images, rows, columns)
        semantic = torch.zeros(images, rows, columns)
        for index in range(images * objects):
            inside = ((grid_x - x[index]).abs() < w[index] / 2) & ((grid_y - y[index]).abs() < h[index] / 2)
            masks[index // objects][inside] = index % objects + 1
            semantic[index // objects][inside] = batch["cls"][index, 0]
        batch.update(masks=masks, sem_masks=semantic)
    elif task == "pose":
        places = torch.rand(len(x), 17, 2, generator=draw) - 0.5
        points = torch.stack((x[:, None] + places[..., 0] * w[:, None], y[:, None] + places[..., 1] * h[:, None]), -1)
        seen = torch.randint(0, 3, (len(x), 17, 1), generator=draw).float()
        batch["keypoints"] = torch.cat((points, seen), dim=-1)
    elif task == "obb":
        angles = torch.rand(len(x), 1, generator=draw) * math.pi / 2
        batch["bboxes"] = torch.cat((batch["bboxes"], angles), dim=-1)
    return batch


def task_data(root: Path, task: str, images: tuple[int, int] = (6, 4), imgsz: int = 64) -> Path:
    """Draw a data set of shapes and label it for a task; return its data.yaml."""
    data = draw_dataset(root, images=images, imgsz=imgsz, seed=0, classes=len(NAMES))
    if task in {"detect", "rtdetr"}:
        return data
    for path in sorted((root / "labels").rglob("*.txt")):
        rows = [[float(value) for value in line.split()] for line in path.read_text(encoding="utf-8").splitlines()]
        text = "".join(f"{int(row[0])} {' '.join(f'{v:.6f}' for v in LABELS[task](*row[1:]))}\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    if task == "pose":
        with data.open("a", encoding="utf-8") as file:
            file.write(f"kpt_shape: [{KEYPOINTS}, 3]\nflip_idx: [0, 1, 3, 2]\n")
    return data


def polygon(x: float, y: float, w: float, h: float) -> list[float]:
    """Return the corners of an octagon in a box."""
    turns = np.arange(8) * math.pi / 4
    points = np.stack((x + w / 2 * np.cos(turns), y + h / 2 * np.sin(turns)), axis=1)
    return [float(value) for value in points.clip(0, 1).ravel()]


def keypoints(x: float, y: float, w: float, h: float) -> list[float]:
    """Return a box with its centre, top, left and right, the top hidden."""
    points = [(x, y, 2), (x, y - h / 2, 1), (x - w / 2, y, 2), (x + w / 2, y, 2)]
    return [x, y, w, h, *(min(max(value, 0.0), 2.0) for point in points for value in point)]


def rotated(x: float, y: float, w: float, h: float) -> list[float]:
    """Return the corners of a rectangle in a box, turned by 30 degrees about its centre."""
    cos, sin, a, b = math.cos(ANGLE), math.sin(ANGLE), 0.35 * w, 0.2 * h
    corners = [(a, b), (a, -b), (-a, -b), (-a, b)]
    return [float(np.clip(v, 0, 1)) for u, t in corners for v in (x + u * cos - t * sin, y + u * sin + t * cos)]


LABELS = {"segment": polygon, "pose": keypoints, "obb": rotated}


def save_task_model(model: Any, task: str, path: Path) -> Path:
    """Write a model as Ultralytics' checkpoints hold it, with the task that it was trained for."""
    arguments = {"imgsz": 64, "task": "detect" if task == "rtdetr" else task}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": -1, "model": model, "ema": None, "train_args": arguments}, path)
    return path
