"""Gains found by measuring: each term's gradient at the neck against the task's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

LOGGER = logging.getLogger("ultralytics")
BATCHES = 8
MOST = 64  # batches that are looked at for a unit which has no gradient in most of them
GRADIENT_SCALE = 1024.0  # keeps small half-precision gradients above the underflow
ROUNDING = 1e-6  # of the task's gradient: less is what remains where teacher and student agree


def gradient_norm(term: torch.Tensor, feats: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of a scalar's gradient at the neck maps, all levels together, as a float32 scalar tensor.

    Not in double precision, which Apple's GPUs do not have.

    Args:
        term (torch.Tensor): A scalar whose graph is kept.
        feats (Sequence[torch.Tensor]): Neck maps with gradient.
    """
    grads = torch.autograd.grad(term * GRADIENT_SCALE, feats, retain_graph=True, allow_unused=True)
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads if grad is not None]
    total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=term.device)
    return total / GRADIENT_SCALE


def replayed(head: nn.Module, feats: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
    """Run a head once more on copies of its neck maps, in training mode, with its statistics left as they are.

    Args:
        head (nn.Module): A detection head.
        feats (Sequence[torch.Tensor]): Neck maps of all levels.

    Returns:
        feats (list[torch.Tensor]): The copies, which the output's gradients reach.
        preds (Any): The head's raw output.
    """
    copies = [feat.detach().clone().requires_grad_() for feat in feats]
    norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        return copies, head(copies)
    finally:
        for norm in norms:
            norm.track_running_stats = True


class GainCalibration:
    """Brings each unit's gradient at the neck to its share of the task's, then holds the gain.

    A unit is a method, or one part of a method. Gains are set over the first batches (a running ratio of mean norms,
    from the first batch on) and once more over the first batches after the warm-up; each time over 8 batches in which
    the unit had a gradient at all, or as many as there are among 64. A gradient that is nothing but rounding is not
    brought to its share.

    Attributes:
        shares (dict[str, float]): Wanted ratio of each unit's gradient norm to the task's.
        gains (dict[str, float]): Gains in force; 0 until a unit was measured once.
    """

    def __init__(self, shares: Mapping[str, float]):
        """Start unmeasured.

        Args:
            shares (Mapping[str, float]): Wanted ratio per unit; 0 leaves a unit without effect.
        """
        self.shares = dict(shares)
        self.teachers: list[int] | None = None
        self._begin()

    def _begin(self) -> None:
        self.gains = dict.fromkeys(self.shares, 0.0)
        self.window = 0
        self._restart()

    def turn_to(self, teachers: Sequence[int], shares: Mapping[str, float]) -> None:
        """Measure the terms of the teachers that act now, from the start where those before were others.

        Args:
            teachers (Sequence[int]): Their indices.
            shares (Mapping[str, float]): Wanted ratio per unit beside them.
        """
        before, self.teachers, self.shares = self.teachers, list(teachers), dict(shares)
        if before not in (None, self.teachers):
            self._begin()

    def _restart(self) -> None:
        self.sums = {unit: [0.0, 0.0, 0] for unit in self.shares}  # task norms, unit norms, batches
        self.looks = 0

    def wants(self, warmed_up: bool) -> bool:
        """Return whether this step should be measured, opening the second window once the warm-up is over."""
        if self.window == 1 and warmed_up:
            self.window = 2
            self._restart()
        return self.window in {0, 2}

    def measure(self, task: torch.Tensor, units: Mapping[str, torch.Tensor], feats: Sequence[torch.Tensor]) -> None:
        """Add one batch to the running window and update the gains.

        Args:
            task (torch.Tensor): Task loss of the batch per image, a scalar.
            units (Mapping[str, torch.Tensor]): Bare mean of each unit, scalars.
            feats (Sequence[torch.Tensor]): Neck maps of the student.
        """
        norms = [gradient_norm(task, feats), *(gradient_norm(term, feats) for term in units.values())]
        values = torch.stack(norms)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        task_norm, *unit_norms = values.tolist()
        self.looks += 1
        last = self.looks >= MOST
        for unit, norm in zip(units, unit_norms):
            if norm > 0 and 0 < task_norm < float("inf") and norm < float("inf"):
                row = self.sums[unit]
                if row[2] < BATCHES:
                    row[0], row[1], row[2] = row[0] + task_norm, row[1] + norm, row[2] + 1
            task_sum, unit_sum, count = self.sums[unit]
            if count and (self.window == 0 or count == BATCHES or last):
                self.gains[unit] = self.shares[unit] * task_sum / max(unit_sum, ROUNDING * task_sum)
        if last or all(self.sums[unit][2] >= BATCHES for unit in units):
            self.window += 1
            self._tell(units)

    def _tell(self, units: Iterable[str]) -> None:
        """Say which gains were found, and what kept one from being found as it should."""
        gains = ", ".join(f"{unit} {self.gains[unit]:.4g}" for unit in units)
        LOGGER.info(f"distillation: gains measured over {min(self.looks, BATCHES)} batches: {gains}")
        for unit in units:
            task_sum, unit_sum, count = self.sums[unit]
            if not self.shares[unit]:
                continue
            if count < BATCHES:
                LOGGER.warning(
                    f"distillation: {unit} had a gradient at the neck in {count} of {self.looks} batches alone, so its "
                    f"gain {self.gains[unit]:.4g} is uncertain (kd_gain=1.0 measures none)"
                )
            elif unit_sum < ROUNDING * task_sum:
                LOGGER.warning(
                    f"distillation: the gradient of {unit} is nothing but rounding, since student and teacher agree "
                    f"where it acts; it can hardly teach anything yet"
                )

    def state(self) -> dict[str, Any]:
        """Return plain values from which `load` continues."""
        return {
            "gains": dict(self.gains),
            "window": self.window,
            "sums": {k: list(v) for k, v in self.sums.items()},
            "looks": self.looks,
            "teachers": self.teachers,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.gains, self.window = dict(state["gains"]), int(state["window"])
        self.sums = {k: list(v) for k, v in state["sums"].items()}
        self.looks = int(state.get("looks", 0))
        self.teachers = state.get("teachers")
