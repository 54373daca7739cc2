"""The logit methods written as loops in float64: grouped, binary, softmax, box overlap and box distribution."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + math.exp(-x))


def softmax(values: Array, temperature: float = 1.0) -> list[float]:
    """Softmax of a vector divided by a temperature."""
    scaled = [float(v) / temperature for v in values]
    powers = [math.exp(v - max(scaled)) for v in scaled]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    """KL(p || q), summed over the entries."""
    return sum(pi * math.log(pi / qi) for pi, qi in zip(p, q))


def cosine(a: list[float], b: list[float]) -> float:
    """Cosine of the angle between two vectors."""
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))


def bce(logit: float, target: float) -> float:
    """Binary cross-entropy of a logit against a probability."""
    return max(logit, 0.0) - logit * target + math.log1p(math.exp(-abs(logit)))


def block_sizes(count: int, groups: int) -> list[int]:
    """Sizes of `groups` blocks that differ by at most one, larger first."""
    return [count // groups + (1 if j < count % groups else 0) for j in range(groups)]


def pcd_stage(student: Array, teacher: Array, groups: int, tau: float) -> float:
    """Sum over the blocks of lambda * tau^2 * KL(p || q) for one anchor's ranked logits, lambda = 1 - cos(p, q)."""
    total, start = 0.0, 0
    for size in block_sizes(len(student), groups):
        p = softmax(teacher[start : start + size], tau)
        q = softmax(student[start : start + size], tau)
        total += (1.0 - cosine(p, q)) * tau**2 * kl(p, q)
        start += size
    return total


def pcd_grouped(student: Array, teacher: Array, weights: Array, stages: int, tau: float) -> float:
    """PCD's grouped part: both directions over all stages, anchors (A, K) weighted by (A,) and divided by their sum.

    Classes are ranked per anchor by |z^T - z^S|, largest first, ties by index. F2CL has S - i + 1 groups in stage i,
    C2FL has i; S is at most half the classes, and one class leaves nothing.
    """
    anchors, classes = student.shape
    stages = min(stages, classes // 2)
    total = 0.0
    for a in range(anchors):
        rank = sorted(range(classes), key=lambda c: (-abs(teacher[a, c] - student[a, c]), c))
        ranked = student[a][rank], teacher[a][rank]
        fine_to_coarse = sum(pcd_stage(*ranked, stages - i + 1, tau) for i in range(1, stages + 1))
        coarse_to_fine = sum(pcd_stage(*ranked, i, tau) for i in range(1, stages + 1))
        total += float(weights[a]) * (fine_to_coarse + coarse_to_fine)
    return total / float(weights.sum())


def pcd_anchor_weights(positives: Array, teacher_logits: Array, confidence: float) -> Array:
    """max_c sigma(z^T) on positives and on anchors where it is above `confidence`, else 0; (B, A) from (B, A, K)."""
    out = np.zeros(positives.shape)
    for b, a in np.ndindex(*positives.shape):
        best = max(sigmoid(z) for z in teacher_logits[b, a])
        if positives[b, a] or best > confidence:
            out[b, a] = best
    return out


def binary(student: Array, teacher: Array, beta: float, normaliser: float) -> float:
    """Sum over all logits of BCE(z^S, sigma(z^T)) * |sigma(z^S) - sigma(z^T)|^beta, divided by `normaliser`."""
    total = 0.0
    for s, t in zip(student.ravel(), teacher.ravel()):
        total += bce(float(s), sigmoid(t)) * abs(sigmoid(s) - sigmoid(t)) ** beta
    return total / normaliser


def giou(a: Array, b: Array) -> float:
    """Generalised IoU of two boxes given as x1, y1, x2, y2."""
    inner_width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    inner_height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inner = inner_width * inner_height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return float(inner / union - (hull - union) / hull)


def bckd_box(
    student_boxes: Array, teacher_boxes: Array, student_logits: Array, teacher_logits: Array, normaliser: float
) -> float:
    """BCKD's box part: sum over anchors of max_c |sigma(z^T) - sigma(z^S)| * (1 - GIoU), divided by `normaliser`."""
    total = 0.0
    for a in range(len(student_boxes)):
        weight = max(abs(sigmoid(t) - sigmoid(s)) for s, t in zip(student_logits[a], teacher_logits[a]))
        total += weight * (1.0 - giou(student_boxes[a], teacher_boxes[a]))
    return total / normaliser


def ld(student: Array, teacher: Array, weights: Array, temperature: float) -> float:
    """LD of bins (A, 4, R): T^2 KL(teacher || student), mean over bins and sides, weighted by (A,) over their sum."""
    total = 0.0
    for a in range(len(student)):
        for side in range(4):
            p, q = softmax(teacher[a, side], temperature), softmax(student[a, side], temperature)
            total += float(weights[a]) * temperature**2 * kl(p, q) / len(p) / 4.0
    return total / float(weights.sum())


def softkd(student: Array, teacher: Array, weights: Array, temperature: float) -> float:
    """Softmax distillation of (A, K): T^2 KL(teacher || student) over classes, weighted by (A,) over their sum."""
    total = 0.0
    for a in range(len(student)):
        p, q = softmax(teacher[a], temperature), softmax(student[a], temperature)
        total += float(weights[a]) * temperature**2 * kl(p, q)
    return total / float(weights.sum())


def crosskd_class(cross: Array, teacher: Array, beta: float, normaliser: float) -> float:
    """CrossKD's class part, from the logits that the teacher's head makes of the student's maps."""
    return binary(cross, teacher, beta, normaliser)


def crosskd_box(cross: Array, teacher: Array, weights: Array) -> float:
    """CrossKD's box part of bins (A, 4, R): KL at temperature 1 summed over bins, mean over sides, weighted by (A,)."""
    total = 0.0
    for a in range(len(cross)):
        for side in range(4):
            total += float(weights[a]) * kl(softmax(teacher[a, side]), softmax(cross[a, side])) / 4.0
    return total / float(weights.sum())
