"""Steps timed by turns, so that their costs can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from ultralytics.utils.torch_utils import autocast

MOST = 7  # rounds in spare time


def seconds(device: torch.device) -> float:
    """Return the time now, after what the device still had to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def precision(trainer: Any) -> AbstractContextManager[Any]:
    """Return the autocast in which the host computes a trainer's losses."""
    amp = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
    context: AbstractContextManager[Any] = autocast(amp, device=trainer.device.type)
    return context


def in_turn(
    steps: Mapping[str, Callable[[], None]], device: torch.device, rounds: int, warmup: int = 2, spare: float = 0.0
) -> dict[str, list[float]]:
    """Run steps by turns, so that whatever else the machine does falls on all of them alike.

    Args:
        steps (Mapping[str, Callable]): What to time, by name.
        device (torch.device): Where it runs.
        rounds (int): Times that each is run.
        warmup (int): Rounds before that, which are not counted.
        spare (float): Seconds within which up to `MOST` rounds are run: short steps vary more.

    Returns:
        (dict[str, list[float]]): Seconds of each round by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    begun = seconds(device)
    for number in range(warmup + max(rounds, MOST if spare else 0)):
        if number == warmup:
            begun = seconds(device)
        if number >= warmup + rounds and seconds(device) - begun >= spare:
            break
        for name, step in steps.items():
            start = seconds(device)
            step()
            if number >= warmup:
                taken[name].append(seconds(device) - start)
    return taken


def ratio(taken: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median over rounds of one step's time by that of another in the same round."""
    return median(a / b for a, b in zip(taken[name], taken[base]))
