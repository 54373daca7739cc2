"""Class layers that given weights do not bring along, fitted to a teacher's logits before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from yolokd.pairs.classes import match_classes
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import last_layers
from yolokd.teachers.heads import class_names
from yolokd.teachers.neck import input_channels


def new_classes(weights: Any, names: Mapping[int, str]) -> set[int]:
    """Return the classes whose logits a model of given weights does not have.

    Args:
        weights (nn.Module | None): The model that the weights are taken from; None for random weights.
        names (Mapping[int, str]): The data's class names.

    Returns:
        (set[int]): The data's class indices: all of them where the model has another number of classes, since its class
            layers are not taken then; otherwise those that it has under another index or not at all.
    """
    if weights is None:
        return set(names)
    known = class_names(weights)
    if len(known) != len(names):
        return set(names)
    return set(names) - {own for own, other in match_classes(names, known, None) if own == other}


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
        images (Callable[[], torch.Tensor]): Returns images with shape (B, C, H, W) in [0, 1], on the models' device.
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
    """Return the teacher's class layer of the same stride for each of the student's, of the like or the only branch."""
    if input_channels(student) != input_channels(teacher):
        return {}
    own, theirs = (_by_stride(model) for model in (student, teacher))
    found = {name: theirs.get(key, theirs.get(("", key[1]))) for key, name in own.items()}
    return {name: other for name, other in found.items() if other}


def _by_stride(model: Any) -> dict[tuple[str, int], str]:
    """Return a model's class layers whose outputs are its logits, by prefix of the branch and stride."""
    layers, strides = dict(model.named_modules()), [int(stride) for stride in model.stride]
    names = {(prefix, strides[level]): name for (prefix, level), name in last_layers(model, "cv3").items()}
    return {key: name for key, name in names.items() if layers[name].out_channels == len(class_names(model))}
