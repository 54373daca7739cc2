"""Keeping the run's random streams as they would be without distillation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Leave the generators of Python, NumPy and torch (all devices) as they were found.

    Args:
        seed (int, optional): Seed torch's generators inside, so that what is drawn there does not depend on the past.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # a run on a CPU is not
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
