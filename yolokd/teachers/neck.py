"""The neck of a detector: its channels and strides, found by looking, and a model that ends in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PROBE = 256  # pixels per side of the image that shows a neck; twice the largest stride of any model of the host


class _Reached(Exception):
    """Raised where the head would begin, so that it is not run."""


class Neck(nn.Module):
    """Stands in for a model's head where only its neck maps are used."""

    def __init__(self, head: nn.Module):
        """Take over the place of a head in the layer graph."""
        super().__init__()
        self.f: Any = head.f
        self.i: Any = head.i
        self.np = 0

    def forward(self, x: list[torch.Tensor], *_: Any) -> list[torch.Tensor]:
        """Return the maps that would enter the head; whatever else it is given is left aside."""
        return x


def input_channels(model: Any) -> int:
    """Return the number of image channels that a model takes."""
    return int((getattr(model, "yaml", None) or {}).get("channels", 3))


@torch.no_grad()
def neck_maps(model: Any, channels: int, size: int = PROBE) -> list[torch.Tensor]:
    """Return the maps that enter a model's head for a black image; its mode and statistics are left as they are.

    Nothing is read from the model's YAML, so that pruned models are seen as they are, and the head is not run.

    Args:
        model (nn.Module): A model of the host whose last layer is its head.
        channels (int): Input channels.
        size (int): Height and width of the image in pixels.

    Returns:
        (list[torch.Tensor]): Maps with shape (1, C, H, W), finest first.
    """
    found: list[torch.Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.extend(inputs[0][: len(model.model[-1].f)])  # open-vocabulary heads get their prompts after the maps
        raise _Reached

    training, parameter = model.training, next(model.parameters())
    hook = model.model[-1].register_forward_pre_hook(stop)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model(torch.zeros(1, channels, size, size, device=parameter.device, dtype=parameter.dtype))
    except _Reached:
        pass
    finally:
        hook.remove()
        model.train(training)
        for module, mode in modes.items():
            module.training = mode
    return found


def model_strides(model: Any) -> tuple[int, ...]:
    """Return the strides of a detector's levels in pixels, finest first; heads that do not hold them are looked at."""
    known = getattr(model.model[-1], "stride", None)
    if isinstance(known, torch.Tensor) and bool(known.any()):
        return tuple(int(stride) for stride in known.tolist())
    return tuple(PROBE // int(feat.shape[-1]) for feat in neck_maps(model, input_channels(model)))


def neck_channels(model: Any, channels: int) -> tuple[int, ...]:
    """Return the channels of the neck maps, found by a forward pass so that pruned models are read as they are.

    Args:
        model (nn.Module): A detector; its mode and its statistics are left as they are.
        channels (int): Input channels.
    """
    return tuple(int(feat.shape[1]) for feat in neck_maps(model, channels))
