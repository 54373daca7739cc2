"""Where a run is: kept by two callbacks of the trainer, read by the criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ultralytics.utils import LOGGER


@dataclass
class Clock:
    """Where a run is: set by the trainer, read by the criterion.

    Attributes:
        epoch (int): Epoch counted from 0.
        step (int): Steps begun in this epoch.
        steps (int): Steps per epoch.
        epochs (int): Epochs of the run, as the host knows them now.
        close_mosaic (int): Number of last epochs without mosaic.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 1
    epochs: int = 1
    close_mosaic: int = 0

    @property
    def position(self) -> float:
        """Epochs done, with the fraction of the running one."""
        return self.epoch + min(self.step / max(self.steps, 1), 1.0)

    @property
    def done(self) -> int:
        """Steps of the run before the one that has begun, as the host counts them now."""
        return self.epoch * self.steps + max(self.step - 1, 0)

    @property
    def progress(self) -> float:
        """Fraction of the run done, in [0, 1]."""
        return min(self.position / max(self.epochs, 1), 1.0)


def start_epoch(trainer: Any) -> None:
    """Callback at the start of an epoch: set the clock, and say when a stage begins."""
    criterion = trainer.criterion
    if criterion is None:
        return
    clock, before = criterion.clock, criterion.stage
    criterion.start_means()
    clock.epoch, clock.step, clock.steps = trainer.epoch, 0, len(trainer.train_loader)
    clock.epochs, clock.close_mosaic = trainer.epochs, trainer.args.close_mosaic
    if criterion.stages.count > 1 and (criterion.stage != before or trainer.epoch == trainer.start_epoch):
        which = ", ".join(str(index + 1) for index in criterion.stages.acting(criterion.stage))
        LOGGER.info(f"distillation: stage {criterion.stage + 1} of {criterion.stages.count}, teacher {which}")


def start_batch(trainer: Any) -> None:
    """Callback at the start of a batch: count it."""
    if trainer.criterion is not None:
        trainer.criterion.clock.step += 1


CLOCK = {"on_train_epoch_start": start_epoch, "on_train_batch_start": start_batch}  # callbacks by the host's events
