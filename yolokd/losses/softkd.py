"""Plain softmax distillation of class logits: the control arm of PCD."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import as_float
from yolokd.ops.anchors import selected_anchors, weighted_mean
from yolokd.taps import Pair, Taps, Targets


def softmax_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return `T^2 * KL(p || q)` of the softmax distributions over the classes.

    Args:
        student_logits (torch.Tensor): Raw class logits with shape (N, K), the source of q.
        teacher_logits (torch.Tensor): Raw class logits with shape (N, K), the source of p, taken as constants.
        temperature (float): Temperature T of both.

    Returns:
        (torch.Tensor): Values with shape (N,), in float32 (float64 for float64 input).
    """
    log_q = (as_float(student_logits) / temperature).log_softmax(-1)
    log_p = (as_float(teacher_logits).detach() / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


class SoftKDLoss(DistillLoss):
    """Softmax distillation over the classes on selected anchors.

    Hinton et al. 2015, arXiv 1503.02531, section 2. Our reading for detectors: anchors and weights are those of PCD's
    grouped part (positives, and anchors with a teacher probability above 0.3), so that a difference between this and
    `pcd` with `pcd_binary=0` is due to ranking, groups and cosine factor alone.
    """

    name: ClassVar[str] = "softkd"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "logits"
    needs_logits: ClassVar[bool] = True

    def __init__(self, pair: Pair, temperature: float = 4.0):
        """Keep the temperature.

        Args:
            pair (Pair): Facts about the pair; the class count is read.
            temperature (float): Temperature of the softmax.

        Raises:
            UserError: If there is one class only, whose softmax is constant.
        """
        if pair.num_classes == 1:
            raise UserError("method='softkd' has nothing to distil with one class. Choose bckd or pcd")
        super().__init__(pair)
        self.temperature = temperature

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the one part; see `DistillLoss.parts`."""
        assert student.logits is not None and teacher.logits is not None, (
            "softkd needs class logits: Taps(..., logits=)"
        )
        rows, weights = selected_anchors(teacher.logits, targets.positives)
        values = softmax_divergence(student.logits[rows], teacher.logits[rows], self.temperature)
        return {"": weighted_mean(values, weights)}
