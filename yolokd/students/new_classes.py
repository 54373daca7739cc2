"""Class layers that given weights do not bring along, fitted to a teacher's logits before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from yolokd.classes import match_classes
from yolokd.models import class_names, input_channels
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import class_layers, last_layers


def new_classes(student: Any, weights: Any, known: Mapping[int, str], names: Mapping[int, str]) -> set[int]:
    """Return the classes whose logits a student did not get from given weights.

    Compared are the rows of the class layers, since the host copies them by name or by index, as its releases and its
    `cls_remap` have it, or not at all.

    Args:
        student (nn.Module): The student that the host has built and given weights to.
        weights (nn.Module | None): The model that they were taken from; None for random weights.
        known (Mapping[int, str]): The class names that it had.
        names (Mapping[int, str]): The data's class names.

    Returns:
        (set[int]): The data's class indices without those whose rows are the given ones of their name in all layers.
    """
    if weights is None:
        return set(names)
    mine, given = dict(student.named_modules()), dict(weights.named_modules())
    pairs = [(mine[name], given.get(name)) for name in class_layers(student)]
    same = {own: other for own, other in match_classes(names, known) if isinstance(other, int)}
    return {own for own in names if own not in same or not all(_same_row(*pair, own, same[own]) for pair in pairs)}


def _same_row(layer: Any, given: Any, own: int, other: int) -> bool:
    """Return whether a class layer's row is a given layer's."""
    if not isinstance(given, nn.Conv2d) or given.weight.shape[1:] != layer.weight.shape[1:]:
        return False
    rows = layer.weight[own], given.weight[other].to(layer.weight)
    return bool(torch.equal(*rows))


def fit_classes(
    student: Any,
    teacher: Any,
    images: Callable[[], torch.Tensor],
    classes: Mapping[int, int],
    chosen: Callable[[str], bool] = lambda name: True,
) -> float | None:
    """Fit the rows of a student's class layers to the logits of a teacher of any family, in place.

    What the layers take in stays as it is, so that this is a linear probe of the student's features whose targets are
    the teacher's logits at the same places.

    Args:
        student (nn.Module): The student, not fused.
        teacher (nn.Module): A teacher, not fused.
        images (Callable[[], torch.Tensor]): Returns images with shape (B, C, H, W) in [0, 1], or in bytes, on the
            models' device.
        classes (Mapping[int, int]): The teacher's class for each of the student's whose row is fitted.
        chosen (Callable[[str], bool]): Whether a layer is fitted, by its name.

    Returns:
        (float | None): The share of the logits' variance explained on images held out, averaged over the layers; None
            where no layer has a partner.
    """
    partners = {own: other for own, other in _partners(student, teacher).items() if chosen(own)}
    if not partners or not classes or not len(seen := images()):
        return None
    shares = fit_weights(student, teacher, seen, classes, partners.__contains__, partners)
    return sum(shares.values()) / len(shares) if shares else None


def _partners(student: Any, teacher: Any) -> dict[str, str]:
    """Return the teacher's class layer of the same stride and branch for each of the student's.

    A one-to-one branch has none where the teacher has no such branch: fitted to one-to-many logits it would predict
    each object several times, and nothing suppresses them.
    """
    if input_channels(student) != input_channels(teacher):
        return {}
    own, theirs = (_by_stride(model) for model in (student, teacher))
    return {name: theirs[key] for key, name in own.items() if key in theirs}


def _by_stride(model: Any) -> dict[tuple[str, int], str]:
    """Return a model's class layers whose outputs are its logits, by prefix of the branch and stride."""
    layers, strides = dict(model.named_modules()), [int(stride) for stride in model.stride]
    names = {(prefix, strides[level]): name for (prefix, level), name in last_layers(model, "cv3").items()}
    return {key: name for key, name in names.items() if layers[name].out_channels == len(class_names(model))}
