"""What a method sees of a model on one batch, and of the batch's objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Taps:
    """Neck maps and raw head output of one model on one batch, reduced to what teacher and student share.

    Levels come finest first and are the same strides on both sides; anchors follow the levels, row by row, so
    anchor counts agree as well. Classes are the matched ones, in the same order on both sides.

    Attributes:
        feats (Sequence[torch.Tensor]): Neck maps, one per level, each with shape (B, C, H, W).
        strides (tuple[int, ...]): Stride of each level in pixels.
        logits (torch.Tensor | None): Raw class logits with shape (B, A, K), or None where no method needs them.
        boxes (torch.Tensor | None): Raw box output with shape (B, A, 4 * R): R bins per side (left, top, right,
            bottom), or with R = 1 the distances themselves, in units of the stride.
        towers (Callable | None): The model's frozen head as a function of neck maps, returning (logits, boxes) in the
            shapes above; carried by teachers only.
        angles (torch.Tensor | None): Of a head with rotated boxes, the angle in radians about each anchor's box with
            shape (B, A, 1); `boxes` are then distances in the frame that is turned by it.
        regions (torch.Tensor | None): Of a head without boxes per anchor, the boxes that it predicts instead, in
            pixels as x1, y1, x2, y2 with shape (B, Q, 4).
        memo (dict | None): What one method has computed of the images and another may take, kept for as long as the
            taps of the step and handed on by `replace`; None to keep nothing.
    """

    feats: Sequence[torch.Tensor]
    strides: tuple[int, ...]
    logits: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    towers: Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]] | None = None
    angles: torch.Tensor | None = None
    regions: torch.Tensor | None = None
    memo: dict[Any, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level."""
        return [(int(feat.shape[-2]), int(feat.shape[-1])) for feat in self.feats]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input image in pixels."""
        height, width = self.sizes[0]
        return height * self.strides[0], width * self.strides[0]

    def anchors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cell centres in pixels with shape (A, 2) as x, y, and each anchor's stride with shape (A, 1)."""
        device = self.feats[0].device
        centres, strides = [], []
        for (height, width), stride in zip(self.sizes, self.strides):
            y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
            x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            centres.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))  # (H, W, 2) -> (H*W, 2)
            strides.append(torch.full((height * width, 1), float(stride), device=device))
        return torch.cat(centres), torch.cat(strides)

    def decoded(self, rows: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:
        """Return the predicted boxes in pixels as x1, y1, x2, y2, in float32.

        Around a rotated box this is the smallest upright one.

        Args:
            rows (tuple[torch.Tensor, ...], optional): Image and anchor index of the anchors to decode, both of one
                shape (...), int64; None for all.

        Returns:
            (torch.Tensor): Boxes with shape (B, A, 4), or (..., 4) of the anchors asked for.
        """
        assert self.boxes is not None, "these taps carry no box output"
        distances, angles, (centres, strides) = self.boxes, self.angles, self.anchors()
        if rows is not None:
            distances, angles = distances[rows], angles if angles is None else angles[rows]
            centres, strides = centres[rows[1]], strides[rows[1]]
        distances = distances.float()
        bins = distances.shape[-1] // 4
        if bins > 1:  # a distribution over R bins per side: its expectation
            places = torch.arange(bins, device=distances.device, dtype=torch.float32)
            shares = distances.unflatten(-1, (4, bins)).softmax(-1)  # (..., 4 * R) -> (..., 4, R)
            distances = (shares * places).sum(-1)  # (..., 4); autocast would run a product in half precision
        left_top, right_bottom = (distances * strides).chunk(2, dim=-1)
        if angles is not None:
            cos, sin = angles.float().cos(), angles.float().sin()  # (..., 1)
            x, y = ((right_bottom - left_top) / 2).chunk(2, dim=-1)
            centres = centres + torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1)
            extent = left_top + right_bottom
            left_top = right_bottom = (extent * cos.abs() + extent.flip(-1) * sin.abs()) / 2
        return torch.cat((centres - left_top, centres + right_bottom), dim=-1)

    def proposals(self, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return boxes that the model predicts, wherever it predicts them, detached, in float32.

        Args:
            rows (tuple[torch.Tensor, ...]): Image index and anchor or query index of the boxes, both of one shape
                (...), int64.

        Returns:
            (torch.Tensor): Boxes in pixels with shape (..., 4).
        """
        with torch.no_grad():
            return self.decoded(rows) if self.regions is None else self.regions[rows].float()

    def since(self, first: int) -> Taps:
        """Return the taps of the images from `first` on."""
        parts = {name: getattr(self, name) for name in ("logits", "boxes", "angles", "regions")}
        cut: dict[str, Any] = {name: part if part is None else part[first:] for name, part in parts.items()}
        return replace(self, feats=[feat[first:] for feat in self.feats], memo=None, **cut)

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Split per-anchor values with shape (B, A, ...) into levels with shape (B, H, W, ...)."""
        parts = values.split([height * width for height, width in self.sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.sizes)]


@dataclass(frozen=True)
class Targets:
    """The labelled objects of a batch and the task's own assignment of anchors to them.

    Attributes:
        boxes (torch.Tensor): Ground-truth boxes in pixels as x1, y1, x2, y2 with shape (G, 4).
        labels (torch.Tensor): Class index of each box with shape (G,), int64.
        image_index (torch.Tensor): Index into the batch of each box with shape (G,), int64.
        positives (torch.Tensor): True for anchors that the task assigned to an object, shape (B, A), bool.
        scores (torch.Tensor): The task's target score of each anchor (its alignment with the object, 0 for
            negatives) with shape (B, A), float32.
        sums (tuple[torch.Tensor, torch.Tensor] | None): Number of positives and sum of scores over all of the student's
            levels, where `positives` and `scores` are those of the shared levels alone.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    image_index: torch.Tensor
    positives: torch.Tensor
    scores: torch.Tensor
    sums: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def totals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of positives and sum of scores over all of the student's levels, each at least 1, as the task has it.

        What is summed over the anchors of the shared levels is divided by these: a student with a level that the
        teacher has not may have all positives of a batch there.
        """
        number, score = self.sums or (self.positives.sum(), self.scores.sum())
        return number.clamp_min(1), score.clamp_min(1)


@dataclass(frozen=True)
class Pair:
    """The fixed facts about a teacher-student pair that a method builds its adapters from.

    Attributes:
        student_channels (tuple[int, ...]): Channels of the student's neck map at each shared level.
        teacher_channels (tuple[int, ...]): Channels of the teacher's neck map at each shared level.
        strides (tuple[int, ...]): Stride of each shared level in pixels.
        num_classes (int): Number of matched classes.
        student_reg_max (int): Box bins per side of the student; 1 means a head without DFL.
        teacher_reg_max (int): Box bins per side of the teacher.
        seed (int): Seed of whatever a method draws by itself.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_classes: int
    student_reg_max: int = 16
    teacher_reg_max: int = 16
    seed: int = 0
