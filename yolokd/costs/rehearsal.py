"""Trainers set up as for a run and stepped by hand, in turn, so that their costs can be compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ultralytics.utils.torch_utils import autocast

from yolokd.trust import KEY, loading


def seconds(device: torch.device) -> float:
    """Return the time now, after what the device still had to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(
    steps: Mapping[str, Callable[[], None]], device: torch.device, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Run steps by turns, so that whatever else the machine does falls on all of them alike.

    Args:
        steps (Mapping[str, Callable]): What to time, by name.
        device (torch.device): Where it runs.
        rounds (int): Times that each is run.
        warmup (int): Rounds before that, which are not counted.

    Returns:
        (dict[str, list[float]]): Seconds of each round by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(warmup + rounds):
        for name, step in steps.items():
            start = seconds(device)
            step()
            if number >= warmup:
                taken[name].append(seconds(device) - start)
    return taken


def ratio(taken: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over rounds of one step's time by that of another in the same round."""
    return median(a / b for a, b in zip(taken[name], taken[base]))


class Rehearsal:
    """A trainer that is set up as for a run, whose steps are done by hand.

    Attributes:
        trainer (DistillationTrainer): The trainer, before its first epoch.
        device (torch.device): Where it runs.
        batch (dict[str, Any]): Its first training batch, as the loader gave it.
    """

    def __init__(self, overrides: Mapping[str, Any], folder: str | Path, trainer: type[Any] | None = None):
        """Set a trainer up; nothing is trained.

        Args:
            overrides (Mapping[str, Any]): Train arguments, the host's and ours.
            folder (str | Path): Where its run folder goes, to be removed by the caller.
            trainer (type, optional): Class of the trainer, of which an Ultralytics trainer knows the host's keys only;
                ours for the model's task if not given.
        """
        from yolokd.trainers import trainer_for

        settings = {
            **overrides,
            "project": str(folder),
            "name": tempfile.mkdtemp(prefix="run-", dir=folder),
            "exist_ok": True,
            "plots": False,
            "val": False,
        }
        safe = bool(overrides.get(KEY, True))
        if trainer is None:
            with loading(safe):
                settings["kd_preflight"], trainer = False, trainer_for(overrides)
        with loading(safe):
            self.trainer: Any = trainer(overrides=settings)
            self.trainer._setup_train()
        self.trainer._model_train()
        self.trainer.epoch = 0
        self.device: torch.device = self.trainer.device
        self.batch: dict[str, Any] = next(iter(self.trainer.train_loader))
        self.trainer.optimizer.zero_grad()
        if criterion := getattr(self.trainer, "criterion", None):
            # a step of the middle of a run, in which all terms act
            criterion.clock.epochs, criterion.clock.epoch = 10, 5
            criterion.clock.steps, criterion.clock.step = 10, 1

    def forward(self) -> torch.Tensor:
        """Return the loss of the batch, as the host computes it."""
        trainer = self.trainer
        with autocast(torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp, device=self.device.type):
            batch = trainer.preprocess_batch({**self.batch})
            loss, _ = trainer.model(batch)
            total: torch.Tensor = loss.sum()
        return total

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        self.trainer.scaler.scale(loss).backward()

    def update(self) -> None:
        """Step the optimizer and the EMA."""
        self.trainer.optimizer_step()

    def step(self) -> None:
        """Do a whole training step."""
        self.backward(self.forward())
        self.update()

    def measure_gains(self) -> None:
        """Do the steps in which gains are measured, which are a few of a whole run."""
        criterion = self.trainer.criterion
        if criterion and criterion.calibration:
            for _ in range(20):
                if not criterion.calibration.wants(True):
                    return
                self.step()
