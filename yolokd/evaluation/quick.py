"""A rough AP on a few batches, in moments, that is good for comparing two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    if not classes:
        return 0.0
    training = model.training
    model.eval()
    hits, scores, predicted, actual = [], [], [], []
    with torch.no_grad():
        for batch in batches:
            height, width = batch["img"].shape[2:]
            scale = batch["img"].new_tensor([width, height, width, height])
            for number, detections in enumerate(detect(model, batch["img"], classes)):
                mine = batch["batch_idx"] == number
                boxes = corners(batch["bboxes"][mine], scale)
                labels = batch["cls"][mine].view(-1)
                detected = detections[:, 5].to(labels)
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


def detect(model: Any, images: torch.Tensor, classes: Mapping[int, int]) -> list[torch.Tensor]:
    """Return a model's detections, whatever its task: upright boxes, around rotated ones, without masks and keypoints.

    As in the host's validation a box counts for each class that it may show, here of the given ones alone.

    Args:
        model (nn.Module): A model of the host in evaluation mode.
        images (torch.Tensor): Images with shape (B, C, H, W) in [0, 1].
        classes (Mapping[int, int]): The model's class index to the data's, one at least; a box shows one of the data's
            as surely as the likeliest of those that are mapped to it.

    Returns:
        (list[torch.Tensor]): For each image x1, y1, x2, y2 in pixels, score and the data's class with shape (N, 6).
    """
    head, output = getattr(model, "model", [None])[-1], model(images)
    while isinstance(output, (tuple, list)):  # raw maps and prototypes follow the detections
        output = output[0]
    rotated, queries = isinstance(head, OBB), isinstance(head, RTDETRDecoder)
    end2end = bool(getattr(head, "end2end", queries or output.shape[-1] == 6))
    order = sorted({*classes.values()})
    if not end2end:
        output = _only(output, classes, order, int(getattr(head, "nc", output.shape[1] - 4)))
    found = non_max_suppression(
        output,
        conf_thres=0.01,
        iou_thres=0.7,
        nc=len(order),
        multi_label=True,
        rotated=rotated,
        end2end=end2end,
    )
    found = [_renamed(row, classes if end2end else dict(enumerate(order))) for row in found]
    height, width = images.shape[2:]
    pixels = images.new_tensor([width, height, width, height] if queries else [1, 1, 1, 1])
    if rotated or queries:  # centre and extent, and the angle in the last column
        found = [
            torch.cat((corners(torch.cat((row[:, :4], row[:, 6:]), dim=-1), pixels), row[:, 4:6]), dim=-1)
            for row in found
        ]
    return [row[:, :6] for row in found]


def _only(output: torch.Tensor, classes: Mapping[int, int], order: Sequence[int], count: int) -> torch.Tensor:
    """Return raw predictions (B, 4 + count + extra, N) with a score for each of the data's classes in `order` alone."""
    scores = output[:, 4 : 4 + count]
    rows = [scores[:, [own for own, data in classes.items() if data == wanted]].amax(1) for wanted in order]
    return torch.cat((output[:, :4], torch.stack(rows, dim=1), output[:, 4 + count :]), dim=1)


def _renamed(rows: torch.Tensor, classes: Mapping[int, int]) -> torch.Tensor:
    """Return the detections of mapped classes, with the data's class in the place of the model's."""
    own = rows[:, 5:6].long() == torch.tensor([*classes], device=rows.device)
    rows, own = rows[own.any(1)], own[own.any(1)]
    data = torch.tensor([*classes.values()], device=rows.device)[own.int().argmax(1)]
    return torch.cat((rows[:, :5], data[:, None].to(rows), rows[:, 6:]), dim=1)


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
