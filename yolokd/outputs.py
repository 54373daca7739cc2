"""The raw output of Ultralytics' dense heads in one shape, and its reduction to what teacher and student share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from yolokd.taps import Taps

BRANCHES = ("one2many", "one2one")


@dataclass(frozen=True)
class Branch:
    """Raw output of one head branch: logits with shape (B, A, K) and boxes with shape (B, A, 4 * R)."""

    logits: torch.Tensor
    boxes: torch.Tensor


@dataclass(frozen=True)
class Output:
    """Neck maps and head branches of one model on one batch; a head with one branch has `one2many` alone."""

    feats: Sequence[torch.Tensor]
    branches: dict[str, Branch] = field(default_factory=dict)


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
    if isinstance(preds, list):
        return Output(feats=preds)
    if isinstance(preds, tuple):
        preds = preds[-1]
    if not isinstance(preds, dict) or not (preds.keys() & {"feats", *BRANCHES}):
        raise TypeError(f"the head returned {type(preds).__name__} without raw maps; only Detect-type heads are read")
    raw = {name: preds[name] for name in BRANCHES if preds.get(name)} or {"one2many": preds}
    branches = {
        name: Branch(part["scores"].transpose(1, 2), part["boxes"].transpose(1, 2)) for name, part in raw.items()
    }
    return Output(feats=next(iter(raw.values()))["feats"], branches=branches)


@dataclass(frozen=True)
class View:
    """Which levels and classes of a model take part: those that its partner has as well.

    Attributes:
        strides (tuple[int, ...]): Strides of the model's own levels, finest first.
        levels (tuple[int, ...]): Indices of the levels that take part.
        classes (tuple[int, ...] | None): Indices of the classes that take part, or None for all in their order.
    """

    strides: tuple[int, ...]
    levels: tuple[int, ...]
    classes: tuple[int, ...] | None = None

    def anchors(self, values: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Keep the shared levels of per-anchor values with shape (B, A, ...); `sizes` are those of all levels."""
        if len(self.levels) == len(self.strides):
            return values
        parts = values.split([height * width for height, width in sizes], dim=1)
        return torch.cat([parts[i] for i in self.levels], dim=1)

    def taps(self, output: Output, branch: str | None, towers: Callable[..., Any] | None = None) -> Taps:
        """Return the taps of one branch, or of the neck alone where `branch` is None."""
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in output.feats]
        logits = boxes = None
        if branch is not None:
            raw = output.branches[branch]
            logits, boxes = self.anchors(raw.logits, sizes), self.anchors(raw.boxes, sizes)
            if self.classes is not None:
                logits = logits[..., list(self.classes)]
        strides = tuple(self.strides[i] for i in self.levels)
        return Taps([output.feats[i] for i in self.levels], strides, logits, boxes, towers)


def shared_levels(student: Sequence[int], teacher: Sequence[int], wanted: Sequence[int] | None = None) -> list[int]:
    """Return the strides that both models have, finest first, restricted to the wanted ones."""
    return [stride for stride in student if stride in teacher and (not wanted or stride in wanted)]
