"""The raw output of Ultralytics' dense heads in one shape, and its reduction to what teacher and student share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from yolokd.ops.constants import constant
from yolokd.taps import Taps

BRANCHES = ("one2many", "one2one")


@dataclass(frozen=True)
class Branch:
    """Raw output of a head branch: logits with shape (B, A, K), boxes (B, A, 4 * R) and angles (B, A, 1), if any."""

    logits: torch.Tensor
    boxes: torch.Tensor | None
    angles: torch.Tensor | None = None


@dataclass(frozen=True)
class Output:
    """Neck maps and head branches of one model on one batch; a head with one branch has `one2many` alone.

    A head of queries has no branch, and its boxes in pixels with shape (B, Q, 4) as `regions`.
    """

    feats: Sequence[torch.Tensor]
    branches: dict[str, Branch] = field(default_factory=dict)
    regions: torch.Tensor | None = None


def read_output(preds: Any) -> Output:
    """Read what a Detect-family head returned, in training or in evaluation.

    Args:
        preds (dict | tuple | list): The raw prediction dict, with the keys `feats`, `scores` and `boxes` or one such
            dict per branch; or a tuple that ends in it; or a list of neck maps where the head was skipped.

    Returns:
        (Output): Neck maps that carry gradient to the neck, and the branches that were computed.

    Raises:
        TypeError: If the output has another form.
    """
    if isinstance(preds, Output):
        return preds
    if isinstance(preds, list):
        return Output(feats=preds)
    if isinstance(preds, tuple):
        preds = preds[-1]
    if not isinstance(preds, dict) or not (preds.keys() & {"feats", *BRANCHES}):
        raise TypeError(f"the head returned {type(preds).__name__} without raw maps; only Detect-type heads are read")
    raw = {name: preds[name] for name in BRANCHES if preds.get(name)} or {"one2many": preds}
    branches = {
        name: Branch(
            part["scores"].transpose(1, 2),
            part["boxes"].transpose(1, 2),
            part["angle"].transpose(1, 2) if "angle" in part else None,
        )
        for name, part in raw.items()
    }
    return Output(feats=next(iter(raw.values()))["feats"], branches=branches)


@dataclass(frozen=True)
class View:
    """Which levels and classes of a model take part: those that its partner has as well.

    Attributes:
        strides (tuple[int, ...]): Strides of the model's own levels, finest first.
        levels (tuple[int, ...]): Indices of the levels that take part.
        classes (tuple[int | tuple[int, ...], ...] | None): Indices of the classes that take part, several as a tuple
            where they stand for one class of the partner; None for all in their order.
    """

    strides: tuple[int, ...]
    levels: tuple[int, ...]
    classes: tuple[int | tuple[int, ...], ...] | None = None

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """Keep the classes that take part of logits with shape (B, A, K); the largest of several in one place."""
        if self.classes is None:
            return logits
        groups = [(item,) if isinstance(item, int) else item for item in self.classes]
        longest = max(len(group) for group in groups)
        if longest == 1:
            return logits[..., constant(tuple(group[0] for group in groups), logits.device, torch.long)]
        filled = tuple((*group, *group[:1] * (longest - len(group))) for group in groups)
        return logits[..., constant(filled, logits.device, torch.long)].amax(-1)  # (B, A, K, N) -> (B, A, K)

    def anchors(self, values: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Keep the shared levels of per-anchor values with shape (B, A, ...); `sizes` are those of all levels."""
        if len(self.levels) == len(self.strides):
            return values
        parts = values.split([height * width for height, width in sizes], dim=1)
        return torch.cat([parts[i] for i in self.levels], dim=1)

    def taps(self, output: Output, branch: str | None, towers: Callable[..., Any] | None = None) -> Taps:
        """Return the taps of one branch, or of the neck alone where `branch` is None."""
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in output.feats]
        logits = boxes = angles = None
        if branch is not None:
            raw = output.branches[branch]
            logits = self.select(self.anchors(raw.logits, sizes))
            boxes = None if raw.boxes is None else self.anchors(raw.boxes, sizes)
            angles = None if raw.angles is None else self.anchors(raw.angles, sizes)
        strides = tuple(self.strides[i] for i in self.levels)
        feats = [output.feats[i] for i in self.levels]
        return Taps(feats, strides, logits, boxes, towers, angles, output.regions, memo={})
