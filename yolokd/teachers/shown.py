"""A teacher of other channels than the data's as one that takes them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from yolokd.models import input_channels
from yolokd.teachers.images import channel_plan


def as_shown(teacher: Any, channels: int, chosen: Sequence[int] | None = None) -> Any:
    """Return a teacher that takes the data's channels and answers as the given one to what it is shown of them.

    What a teacher is shown is a linear function of the channels, which its first convolution can do by itself.

    Args:
        teacher (nn.Module): A teacher of the host.
        channels (int): Channels of the data's images.
        chosen (Sequence[int] | None): `teacher_channels`, see `channel_plan`.

    Returns:
        (nn.Module): A copy with another first convolution; the teacher itself where nothing is to be changed, or where
            something before that convolution multiplies the channels.

    Raises:
        UserError: If the data has too few channels, or `chosen` does not fit.
    """
    own = input_channels(teacher)
    picked, weights = channel_plan(channels, own, chosen)
    if picked is None and weights is None:
        return teacher
    seen = deepcopy(teacher)
    first = next(module for module in seen.modules() if isinstance(module, nn.Conv2d))
    filters = first.weight.detach()  # (N, C, k, k)
    if first.groups > 1 or filters.shape[1] != own:
        return teacher
    if picked is not None:
        rows = torch.tensor(picked, device=filters.device)
        joined = filters.new_zeros(len(filters), channels, *filters.shape[2:]).index_add_(1, rows, filters)
    else:
        joined = filters * filters.new_tensor(weights).view(1, -1, 1, 1)  # (N, 1, k, k) -> (N, channels, k, k)
    first.weight, first.in_channels = nn.Parameter(joined, first.weight.requires_grad), channels
    seen.yaml = {**seen.yaml, "channels": channels}
    return seen
