"""What the logit methods share: which anchors count and how much, and the distances between box outputs."""

from __future__ import annotations

import torch

from yolokd.ops.adapters import as_float


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return the largest class probability of each anchor, detached.

    Args:
        logits (torch.Tensor): Raw class logits with shape (..., K).

    Returns:
        (torch.Tensor): Probabilities with shape (...), in float32 (float64 for float64 input).
    """
    return as_float(logits.detach().amax(-1)).sigmoid()


def selected_anchors(
    teacher_logits: torch.Tensor, positives: torch.Tensor, threshold: float = 0.3
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the anchors that class distributions are compared on, and their weights.

    Selected are the task's positives and the anchors where the teacher is confident; an anchor weighs as much as the
    teacher's largest class probability there. The anchors are picked out, which reads their number back to
    the host once: a few hundred are left of the many thousand of a batch, the task's own box loss waits for its
    positives in the same way, and a fixed budget would drop anchors silently.

    Args:
        teacher_logits (torch.Tensor): Raw class logits with shape (B, A, K).
        positives (torch.Tensor): The task's positive anchors with shape (B, A), bool.
        threshold (float): Teacher probability above which an anchor counts; 1 leaves the positives alone.

    Returns:
        (tuple[tuple[torch.Tensor, ...], torch.Tensor]): Image and anchor index of the N selected anchors, each with
            shape (N,), and their weights with shape (N,).
    """
    weights = confidence(teacher_logits)
    rows = (positives | (weights > threshold)).nonzero(as_tuple=True)
    return rows, weights[rows]


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return `sum(weights * values) / sum(weights)`, and a zero that keeps the graph where the weights vanish."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


def bin_divergence(student_boxes: torch.Tensor, teacher_boxes: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the divergence of the box distributions, summed over the bins and averaged over the four sides.

    Args:
        student_boxes (torch.Tensor): Raw box output with shape (..., 4 * R).
        teacher_boxes (torch.Tensor): Raw box output with shape (..., 4 * R), taken as constants.
        temperature (float): Temperature T of both softmax functions; the divergence is multiplied by T^2.

    Returns:
        (torch.Tensor): `T^2 * KL(teacher || student)` with shape (...), in float32 (float64 for float64 input).
    """
    sides = (*student_boxes.shape[:-1], 4, student_boxes.shape[-1] // 4)
    log_q = (as_float(student_boxes).reshape(sides) / temperature).log_softmax(-1)  # (..., 4 * R) -> (..., 4, R)
    log_p = (as_float(teacher_boxes).detach().reshape(sides) / temperature).log_softmax(-1)
    divergence: torch.Tensor = (log_p.exp() * (log_p - log_q)).sum(-1)  # (..., 4)
    return divergence.mean(-1) * temperature**2


def overlap_distance(student_boxes: torch.Tensor, teacher_boxes: torch.Tensor, eps: float = 1e-7) -> torch.Tensor:
    """Return one minus the generalised IoU (Rezatofighi et al. 2019, arXiv 1902.09630) of pairs of boxes.

    A reversed box, as plain distances below zero give, has no area.

    Args:
        student_boxes (torch.Tensor): Boxes in pixels as x1, y1, x2, y2 with shape (..., 4).
        teacher_boxes (torch.Tensor): Boxes in pixels with shape (..., 4), taken as constants.
        eps (float): Smallest area that is divided by.

    Returns:
        (torch.Tensor): Distances with shape (...), 0 for equal boxes with an area, 1 for equal ones without, and below
            2 for proper ones.
    """
    teacher_boxes = teacher_boxes.detach()

    def area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        width, height = (high - low).clamp_min(0).unbind(-1)
        return width * height

    (s_low, s_high), (t_low, t_high) = student_boxes.chunk(2, dim=-1), teacher_boxes.chunk(2, dim=-1)
    inner = area(torch.maximum(s_low, t_low), torch.minimum(s_high, t_high))
    union = (area(s_low, s_high) + area(t_low, t_high) - inner).clamp_min(eps)
    hull = area(torch.minimum(s_low, t_low), torch.maximum(s_high, t_high)).clamp_min(eps)
    return 1 - inner / union + (hull - union) / hull
