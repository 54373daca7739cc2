"""Features of regions by RoIAlign (He et al. 2017, arXiv 1703.06870, section 3)."""

from __future__ import annotations

import torch
import torchvision.ops  # noqa: F401, registers the operator
from torch.nn import functional as F

from yolokd.ops.adapters import as_float


def pool(feature: torch.Tensor, stride: int, rois: torch.Tensor, size: int = 7, samples: int = 2) -> torch.Tensor:
    """Pool regions from one map by RoIAlign, in float32.

    Args:
        feature (torch.Tensor): Map with shape (B, C, H, W).
        stride (int): Stride of the map in pixels.
        rois (torch.Tensor): Image index and box in pixels with shape (N, 5).
        size (int): Bins per side.
        samples (int): Sampling points per side of a bin.

    Returns:
        (torch.Tensor): Region features with shape (N, C, size, size), in float32 (float64 stays).
    """
    feature = as_float(feature)
    rois = rois.to(feature.dtype)
    with torch.autocast(feature.device.type, enabled=False):
        return (_summed if feature.device.type == "cpu" else _aligned)(feature, stride, rois, size, samples)


def _aligned(feature: torch.Tensor, stride: int, rois: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    """Pool by torchvision's operator.

    It is called by itself: where deterministic algorithms are asked for, as the host does by default, its function in
    torchvision compiles another form on GPUs, whose graph cannot be gone through twice to measure gains.
    """
    pooled: torch.Tensor = torch.ops.torchvision.roi_align(feature, rois, 1 / stride, size, size, samples, True)
    return pooled


def _summed(feature: torch.Tensor, stride: int, rois: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    """Pool by weighted sums of whole positions: a bin is the mean of its samples, a sample lies between four positions.

    On a CPU this takes a seventh of the time of torchvision's operator, which goes through its gradient one number at a
    time.
    """
    channels, height, width = feature.shape[1:]
    (x, x_weight), (y, y_weight) = (
        _corners(rois[:, axis + 1] / stride, rois[:, axis + 3] / stride, length, size, samples)
        for axis, length in ((0, width), (1, height))
    )
    # (N, bins y, bins x, samples y, samples x): a position and a weight each, for both corners of both axes
    image = rois[:, 0].long().view(-1, 1, 1, 1, 1) * (height * width)
    places = image + y[:, :, None, :, None] * width + x[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    count = (2 * samples) ** 2
    if feature.requires_grad:
        feature = feature.view_as(feature)
        feature.register_hook(torch.Tensor.contiguous)  # else the student's backward would go on in another layout
    table = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled: torch.Tensor = F.embedding_bag(
        places.reshape(-1, count), table, mode="sum", per_sample_weights=weights.reshape(-1, count)
    )
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2)


def _corners(
    low: torch.Tensor, high: torch.Tensor, length: int, size: int, samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two positions beside each sample of one axis, and how much each counts.

    Args:
        low (torch.Tensor): Where regions begin, in positions, with shape (N,).
        high (torch.Tensor): Where they end, with shape (N,).
        length (int): Positions of the map along this axis.
        size (int): Bins.
        samples (int): Samples of a bin.

    Returns:
        (tuple[torch.Tensor, torch.Tensor]): Positions, int64, and weights, both with shape (N, size, 2 * samples); the
            weights of a bin sum to 1, less the samples more than a position outside of the map.
    """
    part = (torch.arange(size * samples, device=low.device, dtype=low.dtype) + 0.5) / (size * samples)
    at = low[:, None] - 0.5 + (high - low)[:, None] * part  # (N, size * samples), centres of positions are whole
    inside = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    first = at.floor().clamp_max(max(length - 2, 0))
    second_weight = at - first
    weights = torch.stack((1 - second_weight, second_weight), dim=-1) * inside[..., None] / samples
    positions = torch.stack((first, (first + 1).clamp_max(length - 1)), dim=-1).long()
    shape = (len(low), size, 2 * samples)
    return positions.view(shape), weights.view(shape)
