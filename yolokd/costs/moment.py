"""The step of a run that stands for those that distil."""

from __future__ import annotations

from itertools import product
from typing import Any

MOMENTS = 1000  # that are looked at, over the whole run


def set_acting(criterion: Any, epochs: int, close_mosaic: int) -> None:
    """Set a criterion's clock to a step that distils, with as many terms as any has.

    It is before the stop and not left out by `kd_every`; where there is such a one also in a later stage than the
    first, whose terms are the fewest, and past the ramp; of several the one nearest to the middle of the run.

    Args:
        criterion (DistillationLoss): The criterion.
        epochs (int): Epochs of the run.
        close_mosaic (int): Number of last epochs without mosaic.
    """
    clock, points = criterion.clock, -(-MOMENTS // epochs)
    clock.epochs, clock.close_mosaic, clock.steps = epochs, close_mosaic, points * criterion.every

    def turned(moment: tuple[int, int]) -> tuple[bool, bool, bool, float]:
        clock.epoch, clock.step = moment[0], moment[1] * criterion.every + 1
        late, done = criterion.stage > 0, clock.progress
        return criterion.factor > 0, late, done >= criterion.schedule.warmup, -abs(done - 0.5)

    turned(max(product(range(epochs), range(points)), key=turned))


def average(acting: float, rest: float, every: int) -> float:
    """Return the cost of a step on average, of which one in `every` distils and the others cost what `rest` says."""
    return (acting + (every - 1) * rest) / every
