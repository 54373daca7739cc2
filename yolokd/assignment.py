"""What the task assigned to which anchors, read where it is done rather than done again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


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
