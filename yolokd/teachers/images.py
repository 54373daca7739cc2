"""What a teacher sees of the student's images: their size and their channels made its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from yolokd.errors import UserError
from yolokd.ops.constants import constant

LOGGER = logging.getLogger("ultralytics")
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, by which OpenCV makes grey images out of colour


@dataclass(frozen=True)
class Sight:
    """From the student's images to the teacher's.

    Attributes:
        channels (tuple[int, ...] | None): Which channels of the data the teacher sees, in its order; None for all.
        weights (tuple[float, ...] | None): Weights by which the data's channels are joined into the one that the
            teacher sees; None where they are not joined.
        ratio (float): Size of the teacher's images, divided by that of the student's.
        multiple (int): Both sides of the teacher's images are multiples of this.
    """

    channels: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    ratio: float = 1.0
    multiple: int = 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the teacher's images in pixels for those of the student's."""
        sides = [max(1, round(side * self.ratio / self.multiple)) * self.multiple for side in (height, width)]
        return sides[0], sides[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return images with shape (B, C_teacher, H', W') for images with shape (B, C, H, W), in float32.

        Whole images are resized, bilinearly as in Ultralytics' multi-scale training, so that a place keeps its
        fraction of the image.
        """
        if self.channels is not None:
            images = images[:, constant(self.channels, images.device, torch.long)]
        elif self.weights is not None:
            weights = constant(self.weights, images.device, images.dtype)
            images = (images * weights.view(1, -1, 1, 1)).sum(1, keepdim=True)
        size = self.size(images.shape[-2], images.shape[-1])
        if size == tuple(images.shape[-2:]):
            return images
        return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def channel_plan(
    data: int, teacher: int, chosen: Sequence[int] | None = None
) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    """Return which of the data's channels a teacher sees, or by which weights they are joined for it.

    A grey image is shown to a colour teacher three times, as Ultralytics reads grey files for colour models. A colour
    image is shown to a grey teacher by its luminance, as OpenCV reads colour files for grey models, and an image of
    other channels by their mean. Of more channels a teacher sees the first ones in their order, as Ultralytics does
    when it fits the first layer of trained weights to more channels. A teacher of more channels than the data has
    is refused, since nobody measured them; `chosen` says otherwise.

    Args:
        data (int): Channels of the data's images.
        teacher (int): Channels that the teacher takes.
        chosen (Sequence[int] | None): `teacher_channels`: the data's channel for each of the teacher's.

    Returns:
        channels (tuple[int, ...] | None): Indices into the data's channels, or None for all of them.
        weights (tuple[float, ...] | None): Weights of the data's channels, or None where they are not joined.

    Raises:
        UserError: If the data has too few channels, or `chosen` does not fit.
    """
    if chosen is not None:
        if len(chosen) != teacher or max(chosen, default=0) >= data:
            raise UserError(
                f"teacher_channels={list(chosen)} must name one of the data's channels 0 to {data - 1} for each of "
                f"the {teacher} channels that the teacher takes, e.g. {_example(data, teacher)}"
            )
        return (None if list(chosen) == list(range(data)) else tuple(chosen)), None
    if data == teacher:
        return None, None
    if data == 1:
        return (0,) * teacher, None
    if teacher == 1:
        return None, LUMINANCE if data == 3 else (1 / data,) * data
    if data > teacher:
        return tuple(range(teacher)), None
    raise UserError(
        f"teacher takes {teacher} input channels and the data has {data}, so that {teacher - data} would have to be "
        f"made up; use a teacher of {data} channels, or say which of the data's channels stands for each, e.g. "
        f"{_example(data, teacher)}"
    )


def _example(data: int, teacher: int) -> str:
    return f"teacher_channels=[{','.join(str(min(i, data - 1)) for i in range(teacher))}]"


def sight_of(teacher: Any, channels: int, args: Any) -> Sight:
    """Return what a teacher sees of a run's images, and say where it has to choose among their channels.

    Args:
        teacher (Any): Has `strides` and `input_channels`.
        channels (int): Channels of the data's images.
        args (SimpleNamespace): The run's arguments.

    Raises:
        UserError: If the size is no multiple of the teacher's largest stride, or its channels cannot be had.
    """
    key, coarsest = "imgsz" if args.teacher_imgsz is None else "teacher_imgsz", max(teacher.strides)
    size = int(getattr(args, key))
    if size % coarsest:
        fitting = -(-size // coarsest) * coarsest
        own = f", or teacher_imgsz={fitting} for the teacher alone" if key == "imgsz" else ""
        raise UserError(
            f"{key}={size} is no multiple of the teacher's largest stride {coarsest}; use {key}={fitting}{own}"
        )
    picked, weights = channel_plan(channels, teacher.input_channels, args.teacher_channels)
    if picked is not None and args.teacher_channels is None and channels > 1:
        order = " (give teacher_channels=[2,1,0] where they are blue, green, red)" if len(picked) == 3 else ""
        LOGGER.info(
            f"distillation: the teacher sees the first {len(picked)} of the data's {channels} channels in their order"
            f"{order}"
        )
    return Sight(picked, weights, size / int(args.imgsz), coarsest)
