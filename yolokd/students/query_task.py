"""The task of a student whose head matches queries with objects, as RT-DETR's does, instead of assigning anchors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from yolokd.ops.constants import constant
from yolokd.outputs import Output
from yolokd.task import Assignment, Task, corners


@dataclass(frozen=True)
class QueryOutput(Output):
    """What one step of such a student left: neck maps, predicted boxes, and the task's loss, which is done already.

    Attributes:
        loss (torch.Tensor): The task's summed loss, a scalar that the host does not multiply by the batch size.
        items (dict[str, torch.Tensor]): The task's detached items.
    """

    loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    items: dict[str, torch.Tensor] = field(default_factory=dict)


class QueryTask(Task):
    """A criterion that matches queries: no anchor is assigned anything, and nothing is multiplied by the batch size.

    Feature and region methods need no more than that; methods that compare class logits or boxes anchor by anchor are
    refused for such students beforehand.
    """

    def __init__(self, base: Any):
        """Take a task criterion; there is no assigner to listen to."""
        self.base = base
        self.assignments = {"one2many": Assignment()}
        self.detected = {}
        self.labelled = torch.zeros(())

    def __call__(self, preds: QueryOutput, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the step with shape (1,), and its items."""
        anchors = sum(feat.shape[-2] * feat.shape[-1] for feat in preds.feats)
        zeros = preds.feats[0].new_zeros(len(preds.feats[0]), anchors, dtype=torch.float32)
        self.assignments["one2many"].positives, self.assignments["one2many"].scores = zeros.bool(), zeros
        self.labelled = torch.tensor(len(batch["cls"]), device=zeros.device)
        return preds.loss.reshape(1), preds.items

    def images(self, batch: dict[str, Any]) -> int:
        """Return 1: the host adds this loss once per batch, so our terms are added once too."""
        return 1

    def objects(self) -> torch.Tensor:
        """Return the number of labelled objects of the last batch."""
        return self.labelled


def task_for(base: Any) -> Task:
    """Return the task of a criterion of the host, which assigns anchors or matches queries."""
    return QueryTask(base) if hasattr(base, "matcher") else Task(base)


def predicted_boxes(output: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return the boxes that an RT-DETR decoder predicts with its queries, denoising ones left out.

    Args:
        output (tuple): What the decoder returned in training, or in evaluation behind its detections: boxes of all
            layers as x, y, w, h in [0, 1] with shape (L, B, D + Q, 4), D denoising queries first, their scores, and
            boxes of the encoder with shape (B, Q, 4).
        size (tuple[int, int]): Height and width of the images in pixels.

    Returns:
        (torch.Tensor): Boxes of the last layer in pixels as x1, y1, x2, y2 with shape (B, Q, 4), detached.
    """
    layers, _, encoder = (output if len(output) == 5 else output[1])[:3]
    boxes = layers[-1][:, -encoder.shape[1] :].detach().float()
    scale = constant((size[1], size[0], size[1], size[0]), boxes.device, boxes.dtype)
    return corners(boxes.flatten(0, 1), scale).view_as(boxes)
