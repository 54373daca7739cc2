"""Levels of two models paired by stride, and the teacher's maps brought onto the student's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional

from yolokd.ops.constants import constant
from yolokd.taps import Taps

REACH = 0.5 + 1e-6  # levels are paired up to a factor of the square root of 2


def pair_levels(
    student: Sequence[int], teacher: Sequence[float], wanted: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """Return pairs of level indices whose strides are nearest, finest first.

    Args:
        student (Sequence[int]): The student's strides in pixels.
        teacher (Sequence[float]): The teacher's effective strides: in pixels of the student's images.
        wanted (Sequence[int] | None): `kd_levels`: the student's strides to choose among, or None for all.

    Returns:
        (list[tuple[int, int]]): Pairs within a factor of the square root of 2, each level at most once.
    """
    candidates = sorted(
        (abs(math.log2(theirs / own)), i, j)
        for i, own in enumerate(student)
        for j, theirs in enumerate(teacher)
        if not wanted or own in wanted
    )
    pairs: list[tuple[int, int]] = []
    for distance, i, j in candidates:
        if distance <= REACH and all(i != a and j != b for a, b in pairs):
            pairs.append((i, j))
    return sorted(pairs)


def onto_grid(teacher: Taps, student: Taps) -> Taps:
    """Return the teacher's taps on the student's grid and in its pixels.

    Where the grids are the same nothing is computed. Else maps and class logits are resampled bilinearly, and boxes as
    expected corners, because distributions over bins do not scale: R becomes 1. Of rotated boxes they are the corners
    of the smallest upright ones, since angles do not interpolate. The teacher's head is then no longer lent, since it
    knows its maps at its own scale.

    Args:
        teacher (Taps): The teacher's taps on its own grid; both models see the whole image.
        student (Taps): The student's taps with the same number of levels.

    Returns:
        (Taps): Taps with the student's strides and sizes.
    """
    if teacher.sizes == student.sizes:
        return teacher if teacher.strides == student.strides else replace(teacher, strides=student.strides)
    feats = [_resampled(feat, size) for feat, size in zip(teacher.feats, student.sizes)]
    logits = boxes = None
    if teacher.logits is not None:
        maps = [_resampled(part.permute(0, 3, 1, 2), size) for part, size in _levels(teacher, student, teacher.logits)]
        logits = torch.cat([part.flatten(2).transpose(1, 2) for part in maps], dim=1)
    if teacher.boxes is not None:
        boxes = _boxes(teacher, student)
    return Taps(feats, student.strides, logits, boxes)


def _resampled(feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return a map with shape (B, C, H, W) in another size, which covers the same image."""
    if tuple(feature.shape[-2:]) == size:
        return feature
    return functional.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def _levels(teacher: Taps, student: Taps, values: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Return per-anchor values (B, A, C) as maps (B, H, W, C) with the student's size of each level."""
    return list(zip(teacher.split(values), student.sizes))


def _boxes(teacher: Taps, student: Taps) -> torch.Tensor:
    """Return box distances with shape (B, A, 4) on the student's grid and in units of its strides, in float32.

    The corners are resampled rather than the distances, so that anchors which agree on a box still do at the borders.
    """
    height, width = student.image_size
    own_height, own_width = teacher.image_size
    scale = constant((width / own_width, height / own_height) * 2, student.feats[0].device, torch.float32)
    corners = teacher.decoded() * scale  # in pixels of the student's images
    maps = [_resampled(part.permute(0, 3, 1, 2), size) for part, size in _levels(teacher, student, corners)]
    first, second = torch.cat([part.flatten(2).transpose(1, 2) for part in maps], dim=1).chunk(2, dim=-1)
    centres, strides = student.anchors()
    return torch.cat((centres - first, second - centres), dim=-1) / strides
