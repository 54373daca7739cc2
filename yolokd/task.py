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
            batch (dict[str, Any]): The host's batch; boxes are x, y, w, h as fractions of the image.
            branch (str): Head branch.
            size (tuple[int, int]): Height and width of the images in pixels.
        """
        assignment = self.assignments[branch]
        assert assignment.positives is not None and assignment.scores is not None, "the task assigned nothing"
        device = assignment.positives.device
        x, y, w, h = batch["bboxes"].to(device).float().unbind(-1)
        corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1)
        return Targets(
            boxes=corners * corners.new_tensor([size[1], size[0], size[1], size[0]]),
            labels=batch["cls"].view(-1).long().to(device),
            image_index=batch["batch_idx"].long().to(device),
            positives=assignment.positives,
            scores=assignment.scores,
        )
