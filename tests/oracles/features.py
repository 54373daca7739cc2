"""The feature methods written as loops in float64: attention, masks, generators and the losses built from them."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Weights = tuple[Array, Array, Array, Array]  # of a generator: first kernel and bias, second kernel and bias


def softmax(values: Array) -> Array:
    """Softmax of a vector."""
    powers = [math.exp(v - max(values)) for v in values]
    return np.array([p / sum(powers) for p in powers])


def magnitude(feature: Array) -> Array:
    """|F| of (B, C, H, W) divided by its standard deviation, taken in each image over C, H and W (population).

    A deviation under 1e-6 counts as 1e-6.
    """
    out = np.zeros(feature.shape)
    for b in range(len(feature)):
        absolute = np.abs(feature[b].astype(np.float64))
        out[b] = absolute / max(math.sqrt(((absolute - absolute.mean()) ** 2).mean()), 1e-6)
    return out


def spatial_attention(feature: Array, temperature: float) -> Array:
    """A_s = H*W * softmax over positions of mean_c |F| / temperature, |F| scaled to unit deviation; (B, H, W)."""
    batch, channels, height, width = feature.shape
    scaled = magnitude(feature)
    out = np.zeros((batch, height, width))
    for b in range(batch):
        means = [sum(scaled[b, :, y, x]) / channels / temperature for y in range(height) for x in range(width)]
        out[b] = (height * width * softmax(np.array(means))).reshape(height, width)
    return out


def channel_attention(feature: Array, temperature: float) -> Array:
    """A_c = C * softmax over channels of mean_hw |F| / temperature, |F| scaled to unit deviation; (B, C)."""
    batch, channels = feature.shape[:2]
    scaled = magnitude(feature)
    out = np.zeros((batch, channels))
    for b in range(batch):
        out[b] = channels * softmax(np.array([scaled[b, c].mean() / temperature for c in range(channels)]))
    return out


def top_mask(attention: Array, ratio: float, mode: str = "high") -> Array:
    """0 on the round(ratio * n) entries of highest (mode "low": lowest) attention of each image, 1 elsewhere."""
    out = np.ones(attention.shape)
    for b in range(len(attention)):
        flat = attention[b].ravel()
        order = sorted(range(flat.size), key=lambda i: (-flat[i] if mode == "high" else flat[i], i))
        for i in order[: round(ratio * flat.size)]:
            out[b].reshape(-1)[i] = 0.0
    return out


def cells(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The grid x grid cells of a map, cell i covering rows floor(i * H / grid) to floor((i + 1) * H / grid) - 1."""
    rows = [slice(i * height // grid, (i + 1) * height // grid) for i in range(grid)]
    columns = [slice(i * width // grid, (i + 1) * width // grid) for i in range(grid)]
    return [(row, column) for row in rows for column in columns]


def kept_grids(height: int, width: int, grids: Sequence[int]) -> list[int]:
    """The grids whose cells are at least 5 x 5 positions, and grid 1 in any case."""
    return [g for g in grids if g == 1 or (height // g >= 5 and width // g >= 5)]


def cell_mask(attention: Array, grid: int, ratio: float) -> Array:
    """0 on the round(ratio * n) highest of the n positions of each cell of (B, H, W), 1 elsewhere.

    The softmax inside a cell (A_s of the cell) is monotone, so any attention map in the same order will do.
    """
    out = np.ones(attention.shape)
    for b in range(len(attention)):
        for row, column in cells(*attention.shape[1:], grid):
            out[b, row, column] = top_mask(attention[b : b + 1, row, column], ratio)[0]
    return out


def standardize(feature: Array, eps: float = 1e-6) -> Array:
    """n(F) = (F - mean) / (deviation + eps), per channel over batch and positions, population deviation."""
    out = np.zeros(feature.shape)
    for c in range(feature.shape[1]):
        values = feature[:, c].astype(np.float64)
        mean = values.mean()
        out[:, c] = (values - mean) / (math.sqrt(((values - mean) ** 2).mean()) + eps)
    return out


def conv2d(feature: Array, weight: Array, bias: Array, padding: int) -> Array:
    """Cross-correlation of (B, C, H, W) with (O, C, k, k), stride 1, zero padding."""
    batch, channels, height, width = feature.shape
    out_channels, _, kernel, _ = weight.shape
    padded = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding))
    padded[:, :, padding : padding + height, padding : padding + width] = feature
    out = np.zeros((batch, out_channels, height + 2 * padding - kernel + 1, width + 2 * padding - kernel + 1))
    for b, o, y, x in np.ndindex(*out.shape):
        out[b, o, y, x] = (padded[b, :, y : y + kernel, x : x + kernel] * weight[o]).sum() + bias[o]
    return out


def generator(feature: Array, w1: Array, b1: Array, w2: Array, b2: Array) -> Array:
    """G = conv3x3, ReLU, conv3x3, both with padding 1."""
    return conv2d(np.maximum(conv2d(feature, w1, b1, 1), 0.0), w2, b2, 1)


def mean_squared(a: Array, b: Array) -> float:
    """Mean over all entries of (a - b)^2."""
    return float(sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel())) / a.size)


def dfmsd_level(
    adapted: Array,
    teacher: Array,
    spatial_mask: Array,
    channel_mask: Array,
    spatial_generator: Weights,
    channel_generator: Weights,
    fusion: Array,
    align: bool,
) -> float:
    """DFMSD on one level: MSE( w_s G_s(phi(F^S) M_s) + w_c G_c(phi(F^S) M_c), F^T ), (w_s, w_c) = softmax(fusion).

    `adapted` is phi(F^S); with `align` both maps are standardised first. Masks are (B, H, W) and (B, C); masks that
    are not binary (`soft_mask`) work alike.
    """
    if align:
        adapted, teacher = standardize(adapted), standardize(teacher)
    by_position = generator(adapted * spatial_mask[:, None], *spatial_generator)
    by_channel = generator(adapted * channel_mask[:, :, None, None], *channel_generator)
    share = softmax(fusion)
    return mean_squared(share[0] * by_position + share[1] * by_channel, teacher)


def soft_mask(attention: Array, beta: float) -> Array:
    """Enhancement ME-a, `gain`: 1 - clip(beta * max(A - 1, 0), 0, 1)."""
    out = np.zeros(attention.shape)
    for i in np.ndindex(*attention.shape):
        out[i] = 1.0 - min(max(beta * max(attention[i] - 1.0, 0.0), 0.0), 1.0)
    return out


def gap_attention(attention: Array, adapted: Array, teacher: Array, gamma: float) -> Array:
    """Enhancement ME-b, `gap`: A' = A * (1 + gamma * D) from attention (B, H, W) or (B, C).

    D = |F^T - phi(F^S)| averaged over channels (for the channels' attention: over positions), scaled to mean 1 in
    each image. The caller standardises the maps where the loss does.
    """
    out = np.zeros(attention.shape)
    for b in range(len(attention)):
        difference = np.abs(teacher[b] - adapted[b])
        gap = difference.mean(axis=0) if attention.ndim == 3 else difference.mean(axis=(1, 2))
        out[b] = attention[b] * (1.0 + gamma * gap / gap.mean())
    return out


def high_pass(feature: Array, gamma: float = 1.0, radius: float = 0.1) -> Array:
    """Enhancement ME-c, `frequency`: F + gamma * HP(F), attention is then computed from it; by explicit Fourier sums.

    HP multiplies frequency (u, v) by 1 - exp(-(u^2 + v^2) / (2 radius^2)); u and v are signed and in units of the
    Nyquist frequency, so they lie in [-1, 1).
    """
    batch, channels, height, width = feature.shape
    out = feature.astype(np.float64).copy()

    def signed(index: int, count: int) -> float:
        return 2.0 * (index if index < (count + 1) // 2 else index - count) / count

    for b, c in np.ndindex(batch, channels):
        filtered = np.zeros((height, width), dtype=complex)
        for k, m in np.ndindex(height, width):
            coefficient = 0j
            for y, x in np.ndindex(height, width):
                coefficient += feature[b, c, y, x] * cmath.exp(-2j * math.pi * (k * y / height + m * x / width))
            squared = signed(k, height) ** 2 + signed(m, width) ** 2
            coefficient *= 1.0 - math.exp(-squared / (2.0 * radius**2))
            for y, x in np.ndindex(height, width):
                wave = cmath.exp(2j * math.pi * (k * y / height + m * x / width))
                filtered[y, x] += coefficient * wave / (height * width)
        out[b, c] += gamma * filtered.real
    return out


def samkd_feature_level(
    adapted: Array,
    teacher: Array,
    grids: Sequence[int],
    ratio: float,
    channel_ratio: float,
    temperature: float,
    generators: Sequence[Weights],
    align: bool,
) -> float:
    """SAMKD's SFD on one level: mean over the kept grids of MSE( G_k(phi(F^S) M^k M_c), F^T ).

    `generators` holds one set of weights per kept grid. Attention comes from the teacher's map as it is.
    """
    attention = spatial_attention(teacher, temperature)
    channel_mask = top_mask(channel_attention(teacher, temperature), channel_ratio)
    if align:
        adapted, teacher = standardize(adapted), standardize(teacher)
    total = 0.0
    kept = kept_grids(*teacher.shape[2:], grids)
    for grid, weights in zip(kept, generators):
        mask = cell_mask(attention, grid, ratio)
        masked = adapted * mask[:, None] * channel_mask[:, :, None, None]
        total += mean_squared(generator(masked, *weights), teacher) / len(kept)
    return total


def region_difference(adapted: Array, teacher: Array, grids: Sequence[int]) -> Array:
    """SLD's D of (B, H, W): mean squared difference of the standardised maps in each cell, mean over the kept grids.

    Scaled to mean 1 in each image, then clipped to [0, 4].
    """
    batch, _, height, width = teacher.shape
    squared = (standardize(teacher) - standardize(adapted)) ** 2
    kept = kept_grids(height, width, grids)
    out = np.zeros((batch, height, width))
    for b in range(batch):
        for grid in kept:
            for row, column in cells(height, width, grid):
                out[b, row, column] += squared[b, :, row, column].mean() / len(kept)
        out[b] = np.clip(out[b] / out[b].mean(), 0.0, 4.0)
    return out


def samkd_logit(
    adapted: Sequence[Array],
    teacher: Sequence[Array],
    student_logits: Sequence[Array],
    teacher_logits: Sequence[Array],
    grids: Sequence[int],
    temperature: float,
    binary_share: float | None = None,
) -> float:
    """SAMKD's SLD over all levels: sum of W * KD over positions, divided by the sum of W.

    W = D * A_s, or with `binary_share` 1 on that share of each image's positions where D is largest and 0 elsewhere.
    KD = sum over classes of BCE(z^S, sigma(z^T)) * |sigma(z^S) - sigma(z^T)|. Logits are (B, H, W, K) per level.
    """
    total = weight_sum = 0.0
    for student_map, teacher_map, z_student, z_teacher in zip(adapted, teacher, student_logits, teacher_logits):
        weight = region_difference(student_map, teacher_map, grids)
        if binary_share is None:
            weight = weight * spatial_attention(teacher_map, temperature)
        else:
            weight = 1.0 - top_mask(weight, binary_share)
        for b, y, x in np.ndindex(*weight.shape):
            kd = 0.0
            for s, t in zip(z_student[b, y, x], z_teacher[b, y, x]):
                p, q = 1.0 / (1.0 + math.exp(-t)), 1.0 / (1.0 + math.exp(-s))
                kd += -(p * math.log(q) + (1.0 - p) * math.log(1.0 - q)) * abs(q - p)
            total += weight[b, y, x] * kd
            weight_sum += weight[b, y, x]
    return total / weight_sum


def mgd_level(adapted: Array, teacher: Array, mask: Array, weights: Weights, align: bool) -> float:
    """MGD on one level: MSE( G(phi(F^S) M), F^T ) with a mask (B, H, W) shared by the channels."""
    if align:
        adapted, teacher = standardize(adapted), standardize(teacher)
    return mean_squared(generator(adapted * mask[:, None], *weights), teacher)


def cwd_level(student: Array, teacher: Array, tau: float, align: bool) -> float:
    """CWD on one level: tau^2 KL(teacher || student) of the softmax over positions, mean over images and channels."""
    if align:
        student, teacher = standardize(student), standardize(teacher)
    batch, channels = teacher.shape[:2]
    total = 0.0
    for b, c in np.ndindex(batch, channels):
        p, q = softmax(teacher[b, c].ravel() / tau), softmax(student[b, c].ravel() / tau)
        total += tau**2 * sum(pi * math.log(pi / qi) for pi, qi in zip(p, q))
    return total / (batch * channels)


def pkd_level(adapted: Array, teacher: Array) -> float:
    """PKD on one level: MSE / 2 of the standardised maps."""
    return mean_squared(standardize(adapted), standardize(teacher)) / 2.0
