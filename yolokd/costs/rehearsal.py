"""Trainers set up as for a run and stepped by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from yolokd.costs.moment import set_acting
from yolokd.costs.timing import precision
from yolokd.trainers import trainer_for
from yolokd.trust import KEY, loading


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
            set_acting(criterion, self.trainer.epochs, self.trainer.args.close_mosaic)

    def forward(self) -> torch.Tensor:
        """Return the loss of the batch, as the host computes it."""
        trainer = self.trainer
        with precision(trainer):
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

    def rest(self) -> None:
        """Do a whole step of those that `kd_every` leaves out, which it must: the one after the rehearsed one."""
        clock = self.trainer.criterion.clock
        clock.step += 1
        self.step()
        clock.step -= 1

    def measure_gains(self) -> None:
        """Do the steps in which gains are measured, which are a few of a whole run."""
        criterion = self.trainer.criterion
        if criterion and criterion.calibration:
            for _ in range(20):
                if not criterion.calibration.wants(True):
                    return
                self.step()
