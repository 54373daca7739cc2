"""A large detector that is the function of a small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.tiny import NAMES

CLASSES = {index: index for index in range(len(NAMES))}
JOINED = {12: (9, 6), 15: (12, 4), 18: (15, 12), 21: (18, 9)}  # yolov8: block behind each concatenation, what is joined


def input_parts(model: Any, name: str, width: int) -> list[int]:
    """Return the widths that are joined before a layer of a yolov8, from its architecture."""
    _, index, *rest = name.split(".")
    layer = model.model[int(index)]
    if rest[:2] == ["cv1", "conv"] and int(index) in JOINED:
        return [model.model[source].cv2.conv.out_channels for source in JOINED[int(index)][:1]] + [
            width - model.model[JOINED[int(index)][0]].cv2.conv.out_channels
        ]
    if rest[:2] == ["cv2", "conv"] and type(layer).__name__ == "C2f":
        return [layer.c] * (2 + len(layer.m))
    if rest[:2] == ["cv2", "conv"] and type(layer).__name__ == "SPPF":
        return [layer.cv1.conv.out_channels] * 4
    return [width]


def widened(small: Any, large: Any) -> Any:
    """Return the large yolov8 with weights that make it the small one's function.

    Every channel stands as often as the widths' ratio says, weights are divided by it, and what deeper blocks add is
    multiplied by zero.
    """
    own = dict(small.named_modules())
    with torch.no_grad():
        for name, module in large.named_modules():
            if name not in own:
                continue
            for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                source = getattr(own[name], key)
                if value.ndim:
                    source = source.repeat_interleave(value.shape[0] // source.shape[0], 0)
                if value.ndim == 4 and isinstance(module, nn.Conv2d):
                    theirs = input_parts(large, name, value.shape[1])
                    mine = input_parts(small, name, source.shape[1])
                    pieces = source.split(mine, 1)
                    columns = [
                        piece.repeat_interleave(width // piece.shape[1], 1) / (width // piece.shape[1])
                        for piece, width in zip(pieces, theirs)
                    ]
                    rest = value.shape[1] - sum(column.shape[1] for column in columns)
                    source = torch.cat([*columns, torch.zeros(len(value), rest, *value.shape[2:])], 1)
                value.copy_(source)
    return large


def raw(model: Any, image: torch.Tensor) -> torch.Tensor:
    """Return a detector's decoded output."""
    with torch.no_grad():
        output: torch.Tensor = model.eval()(image)[0]
    return output
