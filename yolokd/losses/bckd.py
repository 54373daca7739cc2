"""BCKD: binary distillation of class logits, and of boxes where the class scores differ."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import as_float
from yolokd.ops.anchors import overlap_distance
from yolokd.ops.binary import binary_distillation
from yolokd.taps import Pair, Taps, Targets


def score_difference(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the largest difference of class probabilities at each anchor, detached.

    Args:
        student_logits (torch.Tensor): Raw class logits with shape (..., K).
        teacher_logits (torch.Tensor): Raw class logits with shape (..., K).

    Returns:
        (torch.Tensor): Differences in [0, 1] with shape (...).
    """
    student, teacher = as_float(student_logits.detach()), as_float(teacher_logits.detach())
    return (student.sigmoid() - teacher.sigmoid()).abs().amax(-1)


class BCKDLoss(DistillLoss):
    """Binary classification distillation and overlap distillation.

    Yang et al. 2023, arXiv 2308.14286. `cls`: binary cross entropy to the teacher's probabilities, weighted by the
    difference of probabilities to the power of beta, on all anchors. `box`: one minus the generalised IoU of the two
    predicted boxes, weighted by the largest difference of class probabilities. Both are divided by the number of
    positives, at least 1.

    Our reading: the box part counts the task's positives only (the released code takes every position). The paper's
    ratio of the two parts is a matter of the gains.
    """

    name: ClassVar[str] = "bckd"
    paper: ClassVar[str] = "Yang et al. 2023, arXiv 2308.14286"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "logits"
    part_names: ClassVar[tuple[str, ...]] = ("cls", "box")
    needs_logits: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True
    share: ClassVar[float] = 1.0

    def __init__(self, pair: Pair, cls: float = 1.0, box: float = 1.0, beta: float = 1.0):
        """Keep the weights and the exponent.

        Args:
            pair (Pair): Facts about the pair.
            cls (float): Weight of the class part.
            box (float): Weight of the box part.
            beta (float): Exponent of the difference of probabilities.

        Raises:
            UserError: If both parts are switched off.
        """
        if not cls and not box:
            raise UserError("bckd_cls=0 and bckd_box=0 leave nothing to distil. Set one of them above 0")
        super().__init__(pair, cls=cls, box=box)
        self.beta = beta

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the class and the box part; see `DistillLoss.parts`."""
        assert student.logits is not None and teacher.logits is not None, "bckd needs class logits: Taps(..., logits=)"
        positives, _ = targets.totals
        terms = {}
        if self.part_gains["cls"]:
            values = binary_distillation(student.logits, teacher.logits, self.beta)  # (B, A)
            terms["cls"] = values.sum() / positives
        if self.part_gains["box"]:
            rows = targets.positives.nonzero(as_tuple=True)  # N positives
            weights = score_difference(student.logits[rows], teacher.logits[rows])  # (N,)
            distances = overlap_distance(student.decoded(rows), teacher.decoded(rows))
            terms["box"] = (weights * distances).sum() / positives
        return terms
