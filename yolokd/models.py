"""What is found by looking at a model of the host, teacher or student: its classes, channels, strides and neck maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BRANCH_PREFIXES = {"one2many": "", "one2one": "one2one_"}
PROBE = 256  # pixels per side of the image that shows a neck; twice the largest stride of any model of the host


class _Reached(Exception):
    """Raised where a layer would begin, so that it is not run."""


def class_names(model: Any) -> dict[int, str]:
    """Return a model's class names by index, also where the host left a list."""
    names = model.names
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(index): str(name) for index, name in pairs}


def input_channels(model: Any) -> int:
    """Return the number of image channels that a model takes, which its first convolution tells.

    Its YAML may say another: where the host builds a student from given weights, it writes the data's number into the
    YAML of those weights. Layers before the first convolution that multiply the channels, as `Focus` does, are seen.
    """
    said = int((getattr(model, "yaml", None) or {}).get("channels", 3))
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or (taken := first.weight.shape[1] * first.groups) == said:
        return said
    return int(taken * said // _entering(model, first, said)[0].shape[1])


def neck_maps(model: Any, channels: int) -> list[torch.Tensor]:
    """Return the maps that enter a model's head for a black image; its mode and statistics are left as they are.

    Nothing is read from the model's YAML, so that pruned models are seen as they are, and the head is not run.

    Args:
        model (nn.Module): A model of the host whose last layer is its head.
        channels (int): Input channels.

    Returns:
        (list[torch.Tensor]): Maps with shape (1, C, H, W), finest first.
    """
    head = model.model[-1]
    maps = _entering(model, head, channels)[0]
    return list(maps[: len(head.f)])  # open-vocabulary heads get their prompts after the maps


@torch.no_grad()
def _entering(model: Any, layer: nn.Module, channels: int) -> tuple[Any, ...]:
    """Return what enters a layer of a model for a black image, without running that layer or any after it."""
    found: list[Any] = []

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.extend(inputs)
        raise _Reached

    training, parameter = model.training, next(model.parameters())
    hook = layer.register_forward_pre_hook(stop)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model(torch.zeros(1, channels, PROBE, PROBE, device=parameter.device, dtype=parameter.dtype))
    except _Reached:
        pass
    finally:
        hook.remove()
        model.train(training)
        for module, mode in modes.items():
            module.training = mode
    return tuple(found)


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
