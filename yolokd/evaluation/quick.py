"""A rough AP on a few batches, in moments, that is good for comparing two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import box_iou
from ultralytics.nn.modules.head import OBB, RTDETRDecoder
from ultralytics.utils.metrics import ap_per_class
from ultralytics.utils.nms import non_max_suppression

from yolokd.task import corners


def quick_ap50(model: nn.Module, batches: Iterable[dict[str, Any]], classes: Mapping[int, int]) -> float:
    """Return AP50 on a few batches, a rough figure that is good for comparing two models.

    Args:
        model (nn.Module): A detector; it is put in evaluation mode and back.
        batches (Iterable[dict[str, Any]]): Preprocessed batches.
        classes (Mapping[int, int]): The model's class index to the data's; other classes are not counted.
    """
    training = model.training
    model.eval()
    hits, scores, predicted, actual = [], [], [], []
    table = torch.full((max(classes, default=0) + 1,), -1.0)
    for own, data in classes.items():
        table[own] = data
    with torch.no_grad():
        for batch in batches:
            height, width = batch["img"].shape[2:]
            scale = batch["img"].new_tensor([width, height, width, height])
            for number, detections in enumerate(detect(model, batch["img"])):
                mine = batch["batch_idx"] == number
                boxes = corners(batch["bboxes"][mine], scale)
                labels = batch["cls"][mine].view(-1)
                index = detections[:, 5].long().cpu()
                known = index < len(table)
                detected = torch.where(known, table[index.clamp(max=len(table) - 1)], -1.0).to(labels.device)
                keep = detected >= 0
                detections, detected = detections[keep], detected[keep]
                overlap = box_iou(boxes, detections[:, :4]) * (labels[:, None] == detected[None])
                hits.append(_matched(overlap.cpu().numpy(), len(detections)))
                scores.append(detections[:, 4].float().cpu().numpy())
                predicted.append(detected.cpu().numpy())
                actual.append(labels.cpu().numpy())
    model.train(training)
    if not sum(len(part) for part in actual) or not sum(len(part) for part in scores):
        return 0.0
    tp, conf, found_class, true_class = (np.concatenate(part) for part in (hits, scores, predicted, actual))
    results = ap_per_class(tp, conf, found_class, true_class)
    return float(results[5][:, 0].mean()) if len(results[5]) else 0.0


def detect(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Return a model's detections, whatever its task: upright boxes, around rotated ones, without masks and keypoints.

    Args:
        model (nn.Module): A model of the host in evaluation mode.
        images (torch.Tensor): Images with shape (B, C, H, W) in [0, 1].

    Returns:
        (list[torch.Tensor]): For each image x1, y1, x2, y2 in pixels, score and class with shape (N, 6).
    """
    head, output = getattr(model, "model", [None])[-1], model(images)
    while isinstance(output, (tuple, list)):  # raw maps and prototypes follow the detections
        output = output[0]
    rotated, queries = isinstance(head, OBB), isinstance(head, RTDETRDecoder)
    found = non_max_suppression(
        output,
        conf_thres=0.01,
        iou_thres=0.7,
        nc=int(getattr(head, "nc", 0)),
        rotated=rotated,
        end2end=bool(getattr(head, "end2end", queries or output.shape[-1] == 6)),
    )
    height, width = images.shape[2:]
    pixels = images.new_tensor([width, height, width, height] if queries else [1, 1, 1, 1])
    if rotated or queries:  # centre and extent, and the angle in the last column
        found = [
            torch.cat((corners(torch.cat((row[:, :4], row[:, 6:]), dim=-1), pixels), row[:, 4:6]), dim=-1)
            for row in found
        ]
    return [row[:, :6] for row in found]


def _matched(overlap: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return a (D, 1) table of detections that take an object of their own at IoU 0.5, best overlaps first."""
    hit = np.zeros((count, 1), dtype=bool)
    pairs = sorted(zip(*np.nonzero(overlap >= 0.5)), key=lambda pair: -overlap[pair])
    objects: set[int] = set()
    for box, detection in pairs:
        if box not in objects and not hit[detection]:
            hit[detection] = True
            objects.add(int(box))
    return hit
