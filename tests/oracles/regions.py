"""The region methods written as loops in float64: pooling, level matching, soft level fusion and contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles.features import mean_squared, softmax, standardize

Array = np.ndarray


def bilinear(feature: Array, y: float, x: float) -> Array:
    """Value (C,) of a map (C, H, W) at a point in cell units, 0 more than one cell outside, the edge's within."""
    _, height, width = feature.shape
    if y < -1.0 or y > height or x < -1.0 or x > width:
        return np.zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    above = (1 - fx) * feature[:, top, left] + fx * feature[:, top, right]
    below = (1 - fx) * feature[:, bottom, left] + fx * feature[:, bottom, right]
    return (1 - fy) * above + fy * below


def roi_align(feature: Array, box: Array, stride: float, size: int = 7, samples: int = 2) -> Array:
    """Region feature (C, size, size) of one box in pixels: mean of samples x samples points per bin (`aligned`).

    A cell's value sits at the cell's centre, so a point at x pixels is at x / stride - 0.5 in cell units.
    """
    feature = feature.astype(np.float64)
    x1, y1, x2, y2 = (float(v) / stride - 0.5 for v in box)
    out = np.zeros((len(feature), size, size))
    for i, j in np.ndindex(size, size):
        for u, v in np.ndindex(samples, samples):
            y = y1 + (y2 - y1) * (i + (u + 0.5) / samples) / size
            x = x1 + (x2 - x1) * (j + (v + 0.5) / samples) / size
            out[:, i, j] += bilinear(feature, y, x) / samples**2
    return out


def teacher_level(width: float, height: float, strides: Sequence[int]) -> int:
    """Index into `strides` of the level for a box in pixels: floor(3 + log2(sqrt(w * h) / 64)), stride 2^level.

    Clamped to the levels there are: below 128 pixels stride 8, below 256 stride 16, above stride 32.
    """
    lowest, highest = int(math.log2(min(strides))), int(math.log2(max(strides)))
    level = min(max(math.floor(3 + math.log2(math.sqrt(width * height) / 64.0)), lowest), highest)
    return max(i for i, stride in enumerate(strides) if stride <= 2**level)


def sgfi(
    student: Sequence[Array],
    teacher: Sequence[Array],
    boxes: Array,
    image_index: Array,
    strides: Sequence[int],
    adapters: Sequence[Sequence[Callable[[Array], Array]]],
    embeds: Sequence[Callable[[Array], Array]],
    tau: float,
    align: bool = False,
) -> float:
    """SGFI: mean over boxes of MSE( sum_l alpha_l f_adap(S^l), T ), alpha = softmax over levels of K^S_l . K^T / tau.

    `adapters[t][l]` maps a region of student level l, (C, 7, 7), to the width of teacher level t; `embeds[t]` maps a
    region of teacher width t to a vector. With `align` the fused and the teacher's regions are standardised per
    channel, over all boxes of one teacher level and their positions, before they are compared.
    """
    fused: dict[int, list[Array]] = {}
    wanted: dict[int, list[Array]] = {}
    for box, image in zip(boxes, image_index):
        t = teacher_level(box[2] - box[0], box[3] - box[1], strides)
        target = roi_align(teacher[t][image], box, strides[t], samples=1)
        key = embeds[t](target)
        levels = [adapters[t][s](roi_align(student[s][image], box, strides[s], samples=1)) for s in range(len(strides))]
        alpha = softmax(np.array([float(np.dot(embeds[t](region), key)) / tau for region in levels]))
        fused.setdefault(t, []).append(sum(a * region for a, region in zip(alpha, levels)))
        wanted.setdefault(t, []).append(target)
    total = 0.0
    for t, regions in fused.items():
        ours, theirs = np.stack(regions), np.stack(wanted[t])
        if align:
            ours, theirs = standardize(ours), standardize(theirs)
        total += sum(mean_squared(a, b) for a, b in zip(ours, theirs))
    return total / len(boxes)


def iou(a: Array, b: Array) -> float:
    """IoU of two boxes given as x1, y1, x2, y2."""
    inner = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return float(inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner))


def info_nce(
    student: Array,
    teacher: Array,
    boxes: Array,
    image_index: Array,
    queue: Array,
    temperature: float,
    iou_threshold: float,
) -> float:
    """CKD: mean over boxes of -log( g(s_i, t_i) / sum_j g(s_i, t_j) ), g = exp(cos / temperature).

    The sum runs over the box itself, the other boxes of the batch less those of the same image whose IoU with it is
    above the threshold, and the queue (Q, D), which may be empty.
    """

    def g(a: Array, b: Array) -> float:
        return math.exp(float(np.dot(a, b)) / math.sqrt(float(np.dot(a, a) * np.dot(b, b))) / temperature)

    total = 0.0
    for i in range(len(student)):
        positive = g(student[i], teacher[i])
        below = positive
        for j in range(len(teacher)):
            overlaps = image_index[i] == image_index[j] and iou(boxes[i], boxes[j]) > iou_threshold
            if j != i and not overlaps:
                below += g(student[i], teacher[j])
        for vector in queue:
            below += g(student[i], vector)
        total -= math.log(positive / below)
    return total / len(student)
