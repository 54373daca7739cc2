"""LD: the distributions behind the box sides distilled bin by bin."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.ops.anchors import bin_divergence, confidence, weighted_mean
from yolokd.taps import Pair, Taps, Targets


class LDLoss(DistillLoss):
    """Localisation distillation: softmax divergence over the bins of each box side on the task's positives.

    Zheng et al. 2022, arXiv 2102.12252: `T^2 * KL`, averaged over the bins and the four sides.

    Our reading:
        - A positive weighs as the teacher's largest class probability there (the released code takes the student's),
          and the sum is divided by the sum of the weights; the released code's plain sum grows with the batch.
        - There is no term for the paper's valuable region, which is defined by anchor boxes.
    """

    name: ClassVar[str] = "ld"
    paper: ClassVar[str] = "Zheng et al. 2022, arXiv 2102.12252"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "logits"
    needs_logits: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True

    def __init__(self, pair: Pair, temperature: float = 10.0):
        """Check that both heads predict distributions of the same bins.

        Args:
            pair (Pair): Facts about the pair; the bins per side are read.
            temperature (float): Temperature of the softmax over the bins.

        Raises:
            UserError: If a head has no box distribution, or the two have different bins.
        """
        bins = {"student": pair.student_reg_max, "teacher": pair.teacher_reg_max}
        for side, count in bins.items():
            if count == 1:
                raise UserError(
                    f"method='ld' compares box distributions, and the {side} predicts plain distances (reg_max=1, as "
                    "YOLO26 does). Choose bckd, which compares the boxes themselves"
                )
        if pair.student_reg_max != pair.teacher_reg_max:
            raise UserError(
                f"method='ld' needs the same bins per box side, but the student has reg_max={pair.student_reg_max} and "
                f"the teacher reg_max={pair.teacher_reg_max}. Choose bckd, which compares the boxes themselves"
            )
        super().__init__(pair)
        self.temperature = temperature

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the one part; see `DistillLoss.parts`."""
        assert student.boxes is not None and teacher.boxes is not None, "ld needs box bins: Taps(..., boxes=)"
        assert teacher.logits is not None, "ld needs the teacher's class logits: Taps(..., logits=)"
        rows = targets.positives.nonzero(as_tuple=True)
        values = bin_divergence(student.boxes[rows], teacher.boxes[rows], self.temperature)
        values = values / self.pair.student_reg_max  # sum over the bins -> mean
        return {"": weighted_mean(values, confidence(teacher.logits[rows]))}
