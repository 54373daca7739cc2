"""Several teachers at once: how much each of their terms counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from yolokd.ops.anchors import confidence
from yolokd.taps import Taps, Targets


def confidence_weights(teachers: Sequence[Taps], targets: Sequence[Targets]) -> torch.Tensor:
    """Return each teacher's weight: its mean class probability at the objects' anchors, as a share of all teachers'.

    The probability is the largest over the matched classes. Where a batch has no objects the weights are equal.

    Args:
        teachers (Sequence[Taps]): One set of taps with logits per teacher.
        targets (Sequence[Targets]): The targets on that teacher's shared levels.

    Returns:
        (torch.Tensor): Weights that sum to 1, shape (N,), detached.
    """
    sums = []
    for taps, own in zip(teachers, targets):
        assert taps.logits is not None, "confidence needs class logits"
        count = own.positives.sum()
        mean = (confidence(taps.logits) * own.positives).sum() / count.clamp_min(1)
        sums.append(torch.where(count > 0, mean, torch.ones_like(mean)))
    weights = torch.stack(sums)
    return weights / weights.sum()
