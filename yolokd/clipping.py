"""Gradients before a step: the adapters' clipped apart from the student's, and steps without meaning left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

LOGGER = logging.getLogger("ultralytics")
NOT_FINITE_LIMIT = 20
CLIP_NORM = 10.0  # the host's own bound for the student


def clip_adapters(
    student: Iterable[nn.Parameter], adapters: Iterable[nn.Parameter], scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip the adapters' gradients and measure the student's, which the host clips.

    Args:
        student (Iterable[nn.Parameter]): The student's parameters.
        adapters (Iterable[nn.Parameter]): The adapters.
        scale (float): Factor that the gradients carry in mixed precision.

    Returns:
        student (torch.Tensor): Norm of the student's gradients, without the factor.
        adapters (torch.Tensor): Norm of the adapters' gradients before the clipping, without the factor.
    """
    own = nn.utils.get_total_norm([p.grad for p in student if p.grad is not None])
    others = list(adapters)
    norm = nn.utils.clip_grad_norm_(others, max_norm=CLIP_NORM * scale) if others else torch.zeros_like(own)
    return own / scale, norm / scale


class StepGuard:
    """Leaves out steps whose gradients hold NaN or infinity, and ends a run that has no others.

    Attributes:
        skipped (int): Steps left out running.
        left_out (int): Steps left out since the last time this was said.
    """

    def __init__(self) -> None:
        """Start with nothing left out."""
        self.skipped = self.left_out = 0
        self._scale: float | None = None

    def check(self, norm: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a step that is not finite.

        Args:
            norm (torch.Tensor): Norm of all gradients, a scalar.
            optimizer (torch.optim.Optimizer): The optimizer about to step.

        Raises:
            RuntimeError: If 20 steps running were not finite.
        """
        if torch.isfinite(norm):
            self.skipped = 0
            return
        optimizer.zero_grad()
        if not self.left_out:
            LOGGER.warning(f"step skipped: gradients are not finite ({self.skipped + 1} running)")
        self._count()

    def see_scale(self, scale: float) -> None:
        """Count the steps that mixed precision left out: the factor of its loss falls after each.

        Args:
            scale (float): The factor before this step.

        Raises:
            RuntimeError: If 20 steps running were left out.
        """
        if self._scale is None or scale >= self._scale:
            self.skipped = 0
        else:
            self._count()
        self._scale = scale

    def _count(self) -> None:
        self.skipped += 1
        self.left_out += 1
        if self.skipped >= NOT_FINITE_LIMIT:
            raise RuntimeError(f"gradients were not finite for {self.skipped} steps running; the run was stopped")

    def tell(self) -> None:
        """Say how many steps were left out since the last time."""
        if self.left_out:
            LOGGER.warning(f"steps left out in this epoch because gradients were not finite: {self.left_out}")
        self.left_out = 0
