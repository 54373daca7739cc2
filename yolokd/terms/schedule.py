"""When and how strongly distillation acts: ramp, decay, stop and stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COSINE_END = 0.1
EARLIEST_MOSAIC_STOP = 0.8


@dataclass(frozen=True)
class Schedule:
    """Course of the distillation terms over a run.

    Attributes:
        warmup (float): Fraction of the run over which the factor rises linearly from 0 to 1.
        decay (str): `constant`, or `cosine` which falls to 0.1 at the end of the run.
        stop (float | str): Fraction of the run after which the factor is 0, or `mosaic`.
    """

    warmup: float = 0.1
    decay: str = "cosine"
    stop: float | str = 1.0

    def stop_at(self, epochs: int, close_mosaic: int) -> float:
        """Return the fraction of the run at which distillation stops; `mosaic` never stops before 80 %.

        Args:
            epochs (int): Epochs of the run.
            close_mosaic (int): Number of last epochs without mosaic.
        """
        if self.stop == "mosaic":
            return max(EARLIEST_MOSAIC_STOP, 1 - close_mosaic / epochs) if close_mosaic else 1.0
        return float(self.stop)

    def factor(self, progress: float, stop: float = 1.0) -> float:
        """Return the factor in [0, 1] at a point of the run.

        Args:
            progress (float): Fraction of the run done, in [0, 1].
            stop (float): Fraction of the run after which the factor is 0; 1 never stops.
        """
        if stop < 1 and progress >= stop:
            return 0.0
        ramp = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        if self.decay == "constant" or progress <= self.warmup:
            return ramp
        done = (progress - self.warmup) / (1 - self.warmup)
        return COSINE_END + (1 - COSINE_END) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class Stages:
    """Stage-wise adaptation: which stage, and so which teacher, an epoch belongs to.

    Attributes:
        points (tuple[float, ...]): Rising fractions of the epochs at which the next stage begins; empty for one stage.
        teachers (int): Number of teachers; stage i uses teacher i, or the last one.
        together (bool): Whether every stage uses all teachers instead.
    """

    points: tuple[float, ...] = ()
    teachers: int = 1
    together: bool = False

    @classmethod
    def parse(cls, value: str | Sequence[float], teachers: int, together: bool = False) -> Stages:
        """Read the `dfmsd_stages` key: `auto` gives equal parts, two where no stage has a teacher of its own."""
        count = 2 if together else max(teachers, 2)
        points = [i / count for i in range(1, count)] if value == "auto" else [float(point) for point in value]
        return cls(tuple(points), teachers, together)

    @property
    def count(self) -> int:
        """Number of stages."""
        return len(self.points) + 1

    def starts(self, epochs: int) -> list[int]:
        """Return the first epoch of each stage, counted from 0; the first stage has at least one."""
        return [0, *(max(round(point * epochs), 1) for point in self.points)]

    def at(self, epoch: int, epochs: int) -> int:
        """Return the stage of an epoch, both counted from 0."""
        return sum(start <= epoch for start in self.starts(epochs)) - 1

    def acting(self, stage: int) -> list[int]:
        """Return the indices of the teachers that a stage uses."""
        return list(range(self.teachers)) if self.together else [min(stage, self.teachers - 1)]

    def ramp(self, stage: int, position: float, epochs: int) -> float:
        """Return the ramp of a stage's new adapters: linear over one epoch, 1 where the teacher stayed the same.

        Args:
            stage (int): The stage of the running epoch.
            position (float): Epochs done, with the fraction of the running one.
            epochs (int): Epochs of the run.
        """
        if stage == 0 or self.acting(stage) == self.acting(stage - 1):
            return 1.0
        return min(position - self.starts(epochs)[stage], 1.0)
