"""Binary distillation of class logits, the form that suits heads with one sigmoid per class."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from yolokd.ops.adapters import as_float


def binary_distillation(student_logits: torch.Tensor, teacher_logits: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    """Return each anchor's binary class distillation, summed over the classes.

    Per class `BCE(z_student, p_teacher) * |p_student - p_teacher|^beta` with `p = sigmoid(z)`, as in BCKD (Yang et al.
    2023, arXiv 2308.14286) and CrossKD (Wang et al. 2024, arXiv 2306.11369). The gradient flows through both factors;
    the second makes the value 0 where both sides agree, although the cross entropy of a soft target is not.

    Args:
        student_logits (torch.Tensor): Raw class logits with shape (..., K).
        teacher_logits (torch.Tensor): Raw class logits with shape (..., K), taken as constants.
        beta (float): Exponent of the difference of probabilities, not negative; 0 leaves the plain cross entropy.

    Returns:
        (torch.Tensor): Values with shape (...), in float32 (float64 for float64 input).
    """
    logits = as_float(student_logits)
    target = as_float(teacher_logits).detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if beta == 0:
        return entropy.sum(-1)
    difference = (logits.sigmoid() - target).abs()
    if beta < 1:  # the power's slope is infinite at 0
        agreed = difference == 0
        difference = difference.masked_fill(agreed, 1.0).pow(beta).masked_fill(agreed, 0.0)
    elif beta > 1:
        difference = difference.pow(beta)
    return (entropy * difference).sum(-1)  # (..., K) -> (...)
