"""MGD: the teacher's map regenerated from a randomly masked student map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, Generator, as_float, standardize
from yolokd.ops.attention import RandomSource
from yolokd.ops.eager import level_mean
from yolokd.taps import Pair, Taps, Targets

Block = Callable[[torch.Tensor], torch.Tensor]


def random_mask(feature: torch.Tensor, ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a mask that is 0 with probability `ratio` at each position, one per image and shared by its channels.

    Args:
        feature (torch.Tensor): Map with shape (B, C, H, W).
        ratio (float): Probability of masking, in [0, 1].
        generator (torch.Generator, optional): CPU generator to draw from.

    Returns:
        (torch.Tensor): Mask with shape (B, 1, H, W), float32, on the map's device.
    """
    batch, _, height, width = feature.shape
    drawn = torch.rand((batch, 1, height, width), generator=generator)  # in [0, 1)
    return (drawn >= ratio).float().to(feature.device, non_blocking=True)


def masked_generation(
    adapted: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor,
    generator: Block,
) -> torch.Tensor:
    """Return the mean squared error between G(F^S * M) and F^T.

    Args:
        adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).
        mask (torch.Tensor): Mask with shape (B, 1, H, W).
        generator (Callable): The block G, from and to (B, C, H, W).

    Returns:
        (torch.Tensor): Scalar, not negative.
    """
    return F.mse_loss(as_float(generator(adapted * mask)), as_float(teacher.detach()))


class MGDLoss(DistillLoss):
    """MGD, Yang et al. 2022, arXiv 2205.01529: `masked_generation` on neck maps, averaged over levels.

    The paper's (as its public code does it): one random mask per image, shared by the channels; generator of 3x3 conv,
    ReLU, 3x3 conv in teacher channels; squared error. Ours: MEAN in place of the sum over an image, which weights
    levels alike (their 2e-5 on sums is about 2 to 30 on means here); the 1x1 adapter is there even where the channels
    agree; both maps standardised unless `align` is off; the generator narrowed by `width`.
    """

    name = "mgd"
    paper = "Yang et al. 2022, arXiv 2205.01529"
    signal = "features"

    def __init__(self, pair: Pair, ratio: float = 0.65, align: bool = True, width: float = 0.25):
        """Build adapters and generators.

        Args:
            pair (Pair): Channels, strides and seed of the teacher-student pair.
            ratio (float): Share of positions masked at random, in [0, 1].
            align (bool): Standardise both maps per channel.
            width (float): Hidden width of the generators as a fraction of the teacher's channels.
        """
        super().__init__(pair)
        if not 0 <= ratio <= 1:
            raise ValueError(f"mgd_ratio={ratio} must be in [0, 1].")
        self.ratio = ratio
        self.align = align
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=not align)
        self.generators = nn.ModuleList(Generator(channels, width) for channels in pair.teacher_channels)
        self.random = RandomSource(pair.seed)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the mean over levels; see the base class."""
        return {"": level_mean(self._level, student.feats, teacher.feats, self.adapters, self.generators)}

    def _level(self, index: int, wanted: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        """Return the term of one level."""
        adapted = self.adapters[index](feat)
        if self.align:
            adapted, wanted = standardize(adapted), standardize(wanted)
        mask = random_mask(adapted, self.ratio, self.random.generator())
        return masked_generation(adapted, wanted, mask, self.generators[index])
