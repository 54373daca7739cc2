"""The student as it starts, one more of those among which best.pt is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK

from yolokd.rng import preserved_rng
from yolokd.students.query_student import take_off

if TYPE_CHECKING:  # the mixin stands before a task's trainer; types are read from the detection one
    _Host = DetectionTrainer
else:
    _Host = object

BEFORE = -1  # epoch of a checkpoint from which no run goes on


class Beginning(_Host):
    """What a start fitted to the teacher adds to an Ultralytics trainer; mixed in before the task's own trainer class.

    The host takes for best.pt the best student that it saw at the end of an epoch. One that starts near its teacher can
    be better before the first step than after any, where labels are few: so it is validated as well, with the first
    epoch, and is best.pt until an epoch is better.

    Attributes:
        start_fitness (float | None): Fitness of the student as it started; None where that was not asked.
    """

    args: Any
    ema: Any
    best_fitness: Any
    start_fitness: float | None = None
    _start: nn.Module | None = None
    _start_metrics: dict[str, float] | None = None
    _start_is_best = False

    def remember_start(self) -> None:
        """Keep the student as it is now until the first epoch is validated and saved."""
        if self.args.val and self.args.save:
            self._start = deepcopy(self.ema.ema).cpu()

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate the student as it started, where that is due, and then as it is."""
        if self._start is not None and self.start_fitness is None:
            if RANK in {-1, 0}:
                LOGGER.info("distillation: the student before its first step:")
            student, self.ema.ema = self.ema.ema, self._start.to(self.device)
            try:
                with preserved_rng():
                    self._start_metrics, self.start_fitness = super().validate()
            finally:
                self.ema.ema, self._start = student, self._start.cpu()
            if self.start_fitness is None:  # the first process alone has numbers, and saves
                self._start = None
        return super().validate()

    def save_model(self) -> bool:
        """Save as the host does, and the student as it started for best.pt where the first epoch is worse."""
        saved = super().save_model()
        start, self._start = self._start, None
        if self.best_fitness == self.fitness:  # the host has written this epoch's
            self._start_is_best = False
        elif saved and start is not None and self.best_fitness == self.start_fitness:
            with self._as_it_was(start):
                self._start_is_best = super().save_model()
        return saved

    @contextmanager
    def _as_it_was(self, start: nn.Module) -> Iterator[None]:
        """Let the host write the student as it started, to best.pt alone."""
        take_off(start)
        vars(start).pop("criterion", None)
        then = {"last": self.best, "epoch": BEFORE, "save_period": -1, "fitness": self.start_fitness}
        then["metrics"] = self._start_metrics
        now, student = {key: getattr(self, key) for key in then}, self.ema.ema
        vars(self).update(then)
        self.ema.ema = start
        try:
            yield
        finally:
            vars(self).update(now)
            self.ema.ema = student

    def final_eval(self) -> None:
        """Evaluate as the host does, and say where no epoch was better than the start."""
        super().final_eval()
        if self._start_is_best:
            LOGGER.warning(
                f"distillation: best.pt is the student before its first step, of fitness {self.start_fitness:.3f}: no "
                f"epoch was better, the last one {self.fitness:.3f}. These labels teach it less than the fit had; more "
                f"images, if without labels (kd_unlabeled=), or a lower learning rate may change that"
            )
