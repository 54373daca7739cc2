"""The student's own criterion: the task's terms, and what it assigned to which anchors."""

from __future__ import annotations

from typing import Any

import torch

from yolokd.assignment import listen
from yolokd.taps import Targets


class Task:
    """A task criterion of the host with its assignments read along; no module, so that nothing of it is registered.

    Attributes:
        base (Any): The criterion that the student would have had, for heads of one branch or of two.
        assignments (dict[str, Assignment]): What was assigned last, by head branch.
    """

    def __init__(self, base: Any):
        """Take a task criterion, and listen to the assigner of each of its branches."""
        self.base = base
        self.assignments = listen(base)

    @property
    def branches(self) -> list[str]:
        """Head branches that the task trains, `one2many` first."""
        return list(self.assignments)

    def weight(self, branch: str) -> float:
        """Return a branch's weight in the task: 1 for heads of one branch, else the host's running weights."""
        if len(self.assignments) == 1:
            return 1.0
        return float(self.base.o2m if branch == "one2many" else self.base.o2o)

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the task's terms times the batch size, with shape (T,), and their items."""
        loss, items = self.base(preds, batch)
        return loss, items

    def images(self, batch: dict[str, Any]) -> int:
        """Return the number by which the task's terms, and so ours, are multiplied."""
        return int(batch["img"].shape[0])

    def objects(self) -> torch.Tensor:
        """Return the number of anchors that were assigned an object, over all branches."""
        return torch.stack([a.positives.sum() for a in self.assignments.values() if a.positives is not None]).sum()

    def targets(self, batch: dict[str, Any], branch: str, size: tuple[int, int]) -> Targets:
        """Return the batch's objects and a branch's assignment on all of the student's anchors.

        Args:
            batch (dict[str, Any]): The host's batch; boxes are x, y, w, h as fractions of the image, with an
                angle in radians after them where the task has rotated ones.
            branch (str): Head branch.
            size (tuple[int, int]): Height and width of the images in pixels.
        """
        assignment = self.assignments[branch]
        assert assignment.positives is not None and assignment.scores is not None, "the task assigned nothing"
        device = assignment.positives.device
        scale = torch.tensor([size[1], size[0], size[1], size[0]], device=device, dtype=torch.float32)
        return Targets(
            boxes=corners(batch["bboxes"].to(device).float(), scale),
            labels=batch["cls"].view(-1).long().to(device),
            image_index=batch["batch_idx"].long().to(device),
            positives=assignment.positives,
            scores=assignment.scores,
        )


def corners(boxes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return upright boxes in pixels as x1, y1, x2, y2 with shape (G, 4), around rotated ones where they have an angle.

    Args:
        boxes (torch.Tensor): x, y, w, h as fractions of the image, and the angle in radians or not, shape (G, 4 or 5).
        scale (torch.Tensor): Width, height, width, height of the image in pixels, shape (4,).
    """
    centre, extent = (boxes[:, :4] * scale).chunk(2, dim=-1)
    if boxes.shape[-1] == 5:
        cos, sin = boxes[:, 4:].cos().abs(), boxes[:, 4:].sin().abs()
        extent = extent * cos + extent.flip(-1) * sin
    return torch.cat((centre - extent / 2, centre + extent / 2), dim=-1)
