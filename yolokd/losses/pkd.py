"""PKD: neck maps compared by the correlation of their channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, standardize
from yolokd.ops.eager import level_mean
from yolokd.taps import Pair, Taps, Targets


def pearson_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return half the mean squared difference of the standardised maps: 1 - Pearson's r, averaged over channels.

    Args:
        student (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).

    Returns:
        (torch.Tensor): Scalar in [0, 2].
    """
    return F.mse_loss(standardize(student), standardize(teacher.detach())) / 2


class PKDLoss(DistillLoss):
    """PKD, Cao et al. 2022, arXiv 2207.02039: `pearson_distance` of neck maps, averaged over levels.

    The paper's (as its public code does it): standardisation per channel over batch and positions (eps 1e-6), MSE / 2.
    Ours: a 1x1 adapter in front, since YOLO necks differ in width where the paper's have 256 channels on both sides; no
    bias in it, since the standardisation removes it; all shared levels, averaged.
    """

    name = "pkd"
    paper = "Cao et al. 2022, arXiv 2207.02039"
    signal = "features"

    def __init__(self, pair: Pair):
        """Build the adapters.

        Args:
            pair (Pair): Channels and strides of the teacher-student pair.
        """
        super().__init__(pair)
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=False)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the mean over levels; see the base class."""
        return {"": level_mean(self._level, student.feats, teacher.feats, self.adapters)}

    def _level(self, index: int, wanted: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        """Return the term of one level."""
        return pearson_distance(self.adapters[index](feat), wanted)
