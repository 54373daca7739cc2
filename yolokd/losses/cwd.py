"""CWD: each channel's distribution over positions, student against teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, as_float, standardize
from yolokd.ops.eager import level_mean
from yolokd.taps import Pair, Taps, Targets


def channel_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return tau^2 * KL(softmax(F^T / tau) || softmax(F^S / tau)) over positions, averaged over images and channels.

    Args:
        student (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).
        temperature (float): Temperature tau, above 0.

    Returns:
        (torch.Tensor): Scalar, not negative.
    """
    student = (as_float(student) / temperature).flatten(2).log_softmax(dim=-1)  # (B, C, H*W)
    teacher = (as_float(teacher.detach()) / temperature).flatten(2).log_softmax(dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)  # (B, C)
    return divergence.mean() * temperature**2


class CWDLoss(DistillLoss):
    """CWD, Shu et al. 2021, arXiv 2011.13256: `channel_divergence` of neck maps, averaged over levels.

    The paper's (as its public ports do it): softmax over the positions of each channel, KL from teacher to student
    times tau^2, averaged over images and channels. On the neck, with 1x1 adapter and standardised maps, as RTMDet's
    recipe has it. Ours: both sides standardised over the batch at hand in place of a normalisation layer; levels
    averaged.
    """

    name = "cwd"
    paper = "Shu et al. 2021, arXiv 2011.13256"
    signal = "features"

    def __init__(self, pair: Pair, temperature: float = 1.0, align: bool = True):
        """Build the adapters.

        Args:
            pair (Pair): Channels and strides of the teacher-student pair.
            temperature (float): Temperature of the softmax over positions, above 0.
            align (bool): Standardise both maps per channel.
        """
        super().__init__(pair)
        if temperature <= 0:
            raise ValueError(f"cwd_temperature={temperature} must be above 0.")
        self.temperature = temperature
        self.align = align
        # the softmax over positions removes a channel's offset, with and without standardisation
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=False)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the mean over levels; see the base class."""
        return {"": level_mean(self._level, student.feats, teacher.feats, self.adapters)}

    def _level(self, index: int, wanted: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        """Return the term of one level."""
        adapted = self.adapters[index](feat)
        if self.align:
            adapted, wanted = standardize(adapted), standardize(wanted)
        return channel_divergence(adapted, wanted, self.temperature)
