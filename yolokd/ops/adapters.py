"""Trainable bridges from the student's neck maps to the teacher's, and the standardisation that methods share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def as_float(values: torch.Tensor) -> torch.Tensor:
    """Return values in float32, or in float64 where they are already: what sensitive maths is done in."""
    return values if values.dtype == torch.float64 else values.float()


def standardize(feature: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Standardise each channel over batch and positions, in float32.

    PKD (Cao et al. 2022, arXiv 2207.02039) compares neck maps after this step, which removes scale and offset.

    Args:
        feature (torch.Tensor): Map with shape (B, C, H, W).
        eps (float): Added to the standard deviation, which counts as at least this and as 10 times this part of the
            mean: what a constant channel deviates from its mean is rounding.

    Returns:
        (torch.Tensor): Map with shape (B, C, H, W), zero mean and unit (population) deviation per channel, in
            float32 (float64 stays).
    """
    feature = as_float(feature)
    number = feature.numel() / feature.shape[1]
    mean = feature.mean(dim=(0, 2, 3), keepdim=True)
    centred = feature - mean
    # On a CPU Tensor.var takes ten times as long, and the gradient of square and mean twice as long.
    variance = (centred * centred).sum(dim=(0, 2, 3), keepdim=True) / number
    least = (10 * eps * mean.detach()).square().clamp_min(eps * eps)
    return centred * (torch.maximum(variance, least).sqrt() + eps).reciprocal()


class Adapter(nn.Conv2d):
    """A 1x1 convolution that takes half precision without autocast too."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C_student, H, W) to (B, C_teacher, H, W)."""
        return super().forward(input.to(self.weight.dtype))


class Adapters(nn.ModuleList):
    """One 1x1 convolution per level from student to teacher channels, present even where the counts agree."""

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int], bias: bool = True):
        """Build one adapter per level.

        Args:
            student_channels (Sequence[int]): Input channels of each level.
            teacher_channels (Sequence[int]): Output channels of each level.
            bias (bool): False where `standardize` follows: it removes the bias, whose gradient would be rounding noise
                that optimizers of the Adam kind blow up to full steps.
        """
        super().__init__()
        for given, wanted in zip(student_channels, teacher_channels, strict=True):
            conv = Adapter(given, wanted, kernel_size=1, bias=bias)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.append(conv)

    def forward(self, feats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map each level (B, C_student, H, W) to (B, C_teacher, H, W)."""
        return [conv(feat) for conv, feat in zip(self, feats, strict=True)]


class Generator(nn.Sequential):
    """The block that regenerates a teacher map from a masked student map: 3x3 conv, ReLU, 3x3 conv.

    MGD (Yang et al. 2022, arXiv 2205.01529) uses full-width blocks; `width` narrows the hidden layer.
    """

    def __init__(self, channels: int, width: float = 1.0):
        """Build the block.

        Args:
            channels (int): Input and output channels.
            width (float): Hidden channels as a fraction of `channels`, at least 8 channels.
        """
        hidden = max(8, round(channels * width))
        super().__init__(
            nn.Conv2d(channels, hidden, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size=3, padding=1),
        )
