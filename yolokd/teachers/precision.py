"""The precision in which the methods' own layers run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def beside(teacher: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for the methods of one teacher.

    Where the teacher runs in bfloat16 on a CPU, the adapters' convolutions do too, which takes about a third of their
    time; whatever is sensitive (statistics, softmax, differences) is computed in float32 by the methods themselves. On
    other devices the methods follow the student's own autocast.

    Args:
        teacher (Any): The teacher, with its `dtype`.
        device (torch.device): Where the student runs.
    """
    if device.type == "cpu" and getattr(teacher, "dtype", None) == torch.bfloat16:
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
