"""A selection of a teacher's weights for a student of the same family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.head import Detect

from yolokd.models import BRANCH_PREFIXES, input_channels
from yolokd.students.channels import channel_flow, evenly, is_depthwise, matching


def same_family(student: Any, teacher: Any) -> bool:
    """Return whether two detectors are built of the same kinds of layers, joined in the same way, at any scale.

    A fused one is of no family: its layers are not those that a student has.
    """

    def plan(model: Any) -> list[Any]:
        return [(type(layer), layer.f) for layer in model.model]

    heads = student.model[-1], teacher.model[-1]
    same_bins = getattr(heads[0], "reg_max", 0) == getattr(heads[1], "reg_max", 0)
    whole = not (student.is_fused() or teacher.is_fused())
    return whole and plan(student) == plan(teacher) and same_bins and input_channels(student) == input_channels(teacher)


def select_weights(student: Any, teacher: Any, classes: Mapping[int, int]) -> float:
    """Copy into a student the part of its teacher's weights that fits it, in place.

    Weight selection (Xu et al. 2024, arXiv 2311.18823, section 3): the first layers of each block, and of each layer
    evenly spaced channels. Beyond the paper, channels are followed through concatenations and splits, so that a layer
    takes the inputs whose makers were taken; and each input counts for the number of the teacher's that it stands for,
    which keeps the mean of their sum: in the weights where no normalisation follows, else in its statistics, so that
    the weights keep their size and learn no slower. Class layers take the rows of the matched classes. Where the
    teacher is narrower than the student, weights stay as they are.

    Args:
        student (nn.Module): The student.
        teacher (nn.Module): A teacher of the same family, not fused.
        classes (Mapping[int, int]): The teacher's class for each of the student's that it knows.

    Returns:
        (float): The share of the student's parameters that were taken.
    """
    own, theirs = channel_flow(student), channel_flow(teacher)
    others, heads = dict(teacher.named_modules()), class_layers(student)
    normalised, taken = set(own.normalises.values()), 0
    means: dict[str, float] = {}
    for name, module in sorted(student.named_modules(), key=lambda item: isinstance(item[1], nn.BatchNorm2d)):
        other = others.get(name)
        if other is None or type(other) is not type(module):
            continue
        known = own.inputs.get(name), theirs.inputs.get(name)
        picks: dict[int, torch.Tensor] = {}
        scale, rows, mean = None, None, 1.0
        if isinstance(module, nn.BatchNorm2d) or is_depthwise(module):
            picks[0], _ = matching(*known, *_widths(module, other, 0))
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            picks[1], ratios = matching(*known, *_widths(module, other, 1))
            mean = float(ratios.mean()) if name in normalised else 1.0
            scale = (ratios / mean).view(-1, 1, 1)
        if name in heads:
            rows = torch.tensor([*classes], dtype=torch.long)
            picks[0] = torch.tensor([*classes.values()], dtype=torch.long)
        numbers: dict[str, int] = {}
        for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if (source := getattr(other, key, None)) is not None:
                numbers[key] = _take(value.detach(), source.detach(), picks, rows, scale if key == "weight" else None)
        taken += sum(numbers.get(key, 0) for key, _ in module.named_parameters(recurse=False))
        if not numbers.get("weight"):
            continue
        means[name] = mean
        if isinstance(module, nn.BatchNorm2d):
            _divide_input(module, means.get(own.normalises.get(name, ""), 1.0))
    return taken / sum(parameter.numel() for parameter in student.parameters())


def _divide_input(norm: Any, ratio: float) -> None:
    """Give a normalisation the statistics with which its output for input / ratio is what it was for input."""
    if norm.track_running_stats:
        norm.running_mean /= ratio
        norm.running_var.copy_(((norm.running_var + norm.eps) / ratio**2 - norm.eps).clamp_min(0))


def _widths(module: Any, other: Any, dim: int) -> tuple[int, int]:
    return module.weight.shape[dim], other.weight.shape[dim]


def _take(
    value: torch.Tensor,
    source: torch.Tensor,
    picks: Mapping[int, torch.Tensor],
    rows: torch.Tensor | None,
    scale: torch.Tensor | None,
) -> int:
    """Copy a tensor from the teacher's of the same name, and return how many numbers were taken.

    Args:
        value (torch.Tensor): The student's tensor, set in place.
        source (torch.Tensor): The teacher's.
        picks (Mapping[int, torch.Tensor]): The teacher's indices along a dimension; evenly spaced ones along others.
        rows (torch.Tensor | None): The student's rows that are set; all where None.
        scale (torch.Tensor | None): Factor of what is taken.
    """
    wanted = tuple(value.shape) if rows is None else (len(rows), *value.shape[1:])
    if source.ndim != value.ndim or any(there < here for there, here in zip(source.shape, wanted)):
        return 0
    for dim, (size, available) in enumerate(zip(wanted, source.shape)):
        source = source.index_select(dim, picks.get(dim, evenly(size, available)).to(source.device))
    if scale is not None:
        source = source * scale.to(source)
    if rows is None:
        value.copy_(source)
    else:
        value[rows.to(value.device)] = source.to(value)
    return source.numel()


def class_layers(model: Any) -> set[str]:
    """Return the names of the convolutions whose outputs are class logits; none for a head that is no grid's."""
    return set(last_layers(model, "cv3").values())


def output_layers(model: Any) -> set[str]:
    """Return the names of the convolutions that give boxes or class logits; none for a head that is no grid's."""
    return {name for tower in ("cv2", "cv3") for name in last_layers(model, tower).values()}


def last_layers(model: Any, tower: str) -> dict[tuple[str, int], str]:
    """Return the names of the last convolutions of a head's tower, `cv2` or `cv3`, by branch prefix and level."""
    head, place = model.model[-1], f"model.{len(model.model) - 1}"
    names = {}
    for prefix in BRANCH_PREFIXES.values() if isinstance(head, Detect) else ():
        for level, layers in enumerate(getattr(head, f"{prefix}{tower}", None) or ()):
            last = [name for name, module in layers.named_modules() if isinstance(module, nn.Conv2d)][-1]
            names[prefix, level] = f"{place}.{prefix}{tower}.{level}.{last}"
    return names
