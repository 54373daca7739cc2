"""Fitting a student's taps and a method's parameters to one fixed batch."""

from __future__ import annotations

import torch

from tests.loss_contract import tensors
from yolokd.losses.base import DistillLoss
from yolokd.taps import Taps, Targets


def fit(
    module: DistillLoss, student: Taps, teacher: Taps, targets: Targets, steps: int = 60, lr: float = 0.1
) -> tuple[float, float]:
    """Return the value in evaluation before and after `steps` steps of Adam on parameters and student leaves."""

    def value() -> float:
        with torch.no_grad():
            return module.eval()(student, teacher, targets).item()

    before = value()
    leaves = [tensor for values in tensors(student).values() for tensor in values]
    optimizer = torch.optim.Adam([{"params": leaves, "lr": lr}, {"params": list(module.parameters()), "lr": lr / 10}])
    for _ in range(steps):
        optimizer.zero_grad()
        module.train()(student, teacher, targets).backward()
        optimizer.step()
    return before, value()
