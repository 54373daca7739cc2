"""The student's own criterion: the task's terms, and what it assigned to which anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from yolokd.ops.regions import corner
from yolokd.taps import Targets

LABELED = "kd_labeled"  # key of a batch: how many of its images, the first ones, have labels


class Assignment:
    """Forward hook on a task's assigner that keeps what it assigned last.

    Attributes:
        positives (torch.Tensor | None): True for anchors that were assigned an object, shape (B, A), bool.
        scores (torch.Tensor | None): Target score of each anchor with shape (B, A), float32.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.positives: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Sequence[torch.Tensor]) -> None:
        """Keep the assigner's output, as the hook of a module is called."""
        _, _, target_scores, positives, _ = output
        self.positives, self.scores = positives.detach().bool(), target_scores.detach().amax(-1).float()


def listen(base: Any) -> dict[str, Assignment]:
    """Hook onto the assigner of each head branch of a task criterion, and return what they will keep by branch."""
    two = hasattr(base, "one2many")
    parts = {"one2many": base.one2many, "one2one": base.one2one} if two else {"one2many": base}
    assignments = {name: Assignment() for name in parts}
    for name, part in parts.items():
        part.assigner.register_forward_hook(assignments[name])
    return assignments


class Task:
    """A task criterion of the host with its assignments read along; no module, so that nothing of it is registered.

    Of a batch that images without labels have joined (`kd_labeled`), the first ones alone are shown to the criterion.
    Its mean over them counts for all images of the step, so that it weighs what it weighs in plain training with
    batches of that size. The student has run on all of them together: its batch normalisation sees the mixture. With no
    labelled image at all the terms are zeros without a gradient.

    Attributes:
        base (Any): The criterion that the student would have had, for heads of one branch or of two.
        assignments (dict[str, Assignment]): What was assigned last, by head branch.
        detected (dict[str, Targets]): What the teacher detected on the unlabelled images last, by head branch.
    """

    _blank: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None

    def __init__(self, base: Any):
        """Take a task criterion, and listen to the assigner of each of its branches."""
        self.base = base
        self.assignments = listen(base)
        self.detected: dict[str, Targets] = {}

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
        labeled, self.detected = self.labeled(batch), {}
        if labeled == len(batch["img"]):
            return self.base(preds, batch)
        if not labeled:
            return self._switched_off(preds, batch)
        loss, items = self.base(first(preds, labeled), {**batch, "img": batch["img"][:labeled]})
        return loss * (self.images(batch) / labeled), items

    def _switched_off(self, preds: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return zeros in the place of the task's terms and items, whose names are learned by asking once."""
        if self._blank is None:
            with torch.no_grad():
                self._blank = self.base(preds, batch)
        for assignment in self.assignments.values():
            assignment.positives = assignment.scores = None
        loss, items = self._blank
        return torch.zeros_like(loss), {name: torch.zeros_like(item) for name, item in items.items()}

    def labeled(self, batch: dict[str, Any]) -> int:
        """Return how many images of a batch, the first ones, have labels."""
        return int(batch.get(LABELED, len(batch["img"])))

    def reference(self, preds: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the task's loss per image on the teacher's detections, as a measure of gradients without any labels.

        Args:
            preds (Any): The student's output.
            batch (dict[str, Any]): The batch, on which the teacher has detected what it can.
        """
        targets, (height, width) = self.detected["one2many"], batch["img"].shape[-2:]
        low, high = targets.boxes.chunk(2, dim=-1)
        scale = corner(targets.boxes, (height, width)).repeat(2)
        labels = {
            "bboxes": torch.cat(((low + high) / 2, high - low), dim=-1) / scale,
            "cls": targets.labels.float().unsqueeze(-1),
            "batch_idx": targets.image_index.float(),
        }
        return self.base(preds, {"img": batch["img"], **labels})[0].sum() / self.images(batch)

    def images(self, batch: dict[str, Any]) -> int:
        """Return the number by which the task's terms, and so ours, are multiplied."""
        return int(batch["img"].shape[0])

    def objects(self) -> torch.Tensor:
        """Return the number of anchors with an object, assigned or detected by the teacher, over all branches."""
        known: list[Any] = [*self.assignments.values(), *self.detected.values()]
        return torch.stack([part.positives.sum() for part in known if part.positives is not None]).sum()

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
        boxes = batch["bboxes"].to(device).float()
        return Targets(
            boxes=corners(boxes, corner(boxes, size).repeat(2)),
            labels=batch["cls"].view(-1).long().to(device),
            image_index=batch["batch_idx"].long().to(device),
            positives=assignment.positives,
            scores=assignment.scores,
        )


def first(preds: Any, images: int) -> Any:
    """Return the first images of a model's output: of every tensor in it, however nested."""
    if isinstance(preds, torch.Tensor):
        return preds[:images]
    if isinstance(preds, dict):
        return {key: first(value, images) for key, value in preds.items()}
    if isinstance(preds, (list, tuple)):
        return type(preds)(first(value, images) for value in preds)
    return preds


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
