"""Students whose layers are no longer those of their YAML, as pruning leaves them, trained as they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from yolokd.errors import UserError
from yolokd.models import input_channels
from yolokd.rng import preserved_rng


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a model's state."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def is_pruned(model: Any) -> bool:
    """Return whether a model has other layers or channels than its YAML says; the generators are left as they were."""
    with preserved_rng():
        cfg = {**deepcopy(model.yaml), "nc": model.model[-1].nc}
        built = type(model)(cfg, ch=input_channels(model), nc=cfg["nc"], verbose=False)
        built.load(model, verbose=False)  # class layers may have the width of an earlier class count
    return shapes(built) != shapes(model)


def as_it_is(built: Any, cfg: Any, weights: Any, data: Any) -> Any:
    """Return the student to train: the host's, or the given model itself where the host's lost what pruning left.

    For training the host builds a model anew from the YAML in the checkpoint and copies the tensors that fit; of a
    pruned model few do. A pruned student is therefore given like any other, by `model=pruned.pt` or
    `YOLO("pruned.pt").train(trainer=DistillationTrainer, ...)`, where the file holds the module, as `YOLO.save` writes
    it; its checkpoints hold it too and resume.

    Args:
        built (nn.Module): The model that the host built and loaded.
        cfg (Any): What the host built it from.
        weights (nn.Module | None): The model whose tensors were copied.
        data (Mapping[str, Any]): The data's `nc`, `names` and `channels`.

    Raises:
        UserError: If a pruned model has another number of classes or input channels than the data.
    """
    if weights is None or getattr(weights, "yaml", None) != cfg or shapes(built) == shapes(weights):
        return built
    if not is_pruned(weights):
        return built
    given, wanted = (weights.model[-1].nc, input_channels(weights)), (data["nc"], data["channels"])
    if given != wanted:
        raise UserError(
            f"the student was pruned, so that it is trained as it is, but it has {given[0]} classes and {given[1]} "
            f"input channels and the data has {wanted[0]} and {wanted[1]}; train it on the data first and prune it then"
        )
    LOGGER.info("distillation: the student's layers are not those of its YAML; it is trained as it is")
    student = weights.float()
    student.names = data["names"]
    for name, parameter in student.named_parameters():
        parameter.requires_grad = ".dfl" not in name
    return student
