"""Fixed numbers as tensors, copied to a device once and not in every step, which would wait for it."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

import torch


@lru_cache(maxsize=256)
def constant(values: Hashable, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return numbers as a tensor that is shared by all who ask for them, and so is not to be written to.

    Args:
        values (tuple): Numbers, or tuples of them.
        device (torch.device): Where it lies.
        dtype (torch.dtype): Its type.
    """
    with torch.inference_mode(False):  # a validation may be the first to ask, and a step may keep it for its gradient
        return torch.tensor(values, dtype=dtype, device=device)
