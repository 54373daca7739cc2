"""Values that are not finite: kept out of a step's loss and gradients on the device, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from yolokd.outputs import Output
from yolokd.taps import Taps


def finite_output(output: Output) -> tuple[Output, torch.Tensor]:
    """Return a teacher's output, all of it set to 0 in its own memory where some of it is NaN or infinite.

    Args:
        output (Output): Neck maps and branches, without gradient.

    Returns:
        output (Output): The same, finite in any case, so that no index or box is computed from a NaN.
        sound (torch.Tensor): Whether all of it was finite, a scalar, bool.
    """
    tensors = [*output.feats, *(part for branch in output.branches.values() for part in vars(branch).values())]
    tensors = [part for part in (*tensors, output.regions) if part is not None]
    sound = torch.stack([part.sum(dtype=torch.float32) for part in tensors]).isfinite().all()

    for part in tensors:
        part.masked_fill_(~sound, 0)
    return output, sound


class _Door(torch.autograd.Function):
    """Hand a tensor on, and its gradient through a function."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, through: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        ctx.through = through
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.through(grads[0]), None


class FiniteTerms:
    """Calls methods such that a term which is not finite counts as 0 in that step, and so does all of its gradient.

    A zero gradient at a term is not enough: multiplied by an infinite slope it is NaN again. So the gradient is
    replaced where it leaves the method, at the student's taps and at the method's own parameters. Gradients of other
    methods and of the task are as they would be without that term. A finite term with a gradient that overflows is
    left alone: loss scaling needs to see it.

    Attributes:
        sound (dict[str, torch.Tensor]): Whether all terms of a method were finite in this step, scalars, bool.
        teachers (torch.Tensor): Whether the output of all teachers was, a scalar, bool; set by the criterion.
    """

    teachers: torch.Tensor

    def __init__(self, methods: Mapping[str, Iterable[nn.Module]]):
        """Watch over the parameters of the methods.

        Args:
            methods (Mapping[str, Iterable[nn.Module]]): For each method its modules.
        """
        self.sound: dict[str, torch.Tensor] = {}
        self._sound: dict[nn.Module, torch.Tensor] = {}
        for module in (module for modules in methods.values() for module in modules):
            for parameter in module.parameters():
                parameter.register_hook(partial(self._through_parameter, module))

    def _through_parameter(self, module: nn.Module, grad: torch.Tensor) -> torch.Tensor:
        return grad if module not in self._sound else torch.where(self._sound[module], grad, torch.zeros_like(grad))

    def begin(self) -> None:
        """Begin a step."""
        self.sound, self._sound = {}, {}

    def parts(
        self, name: str, module: Any, student: Taps, teacher: Taps, targets: Any, sound: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return a method's parts, zero where one of them is not finite or the teacher was not.

        Args:
            name (str): The method.
            module (DistillLoss): Its module.
            student (Taps): The student's taps.
            teacher (Taps): The teacher's taps.
            targets (Targets): The targets.
            sound (torch.Tensor): Whether the teacher's output was finite, a scalar, bool.

        Returns:
            (dict[str, torch.Tensor]): Scalars, finite in any case.
        """
        state = {"sound": sound}

        def through(grad: torch.Tensor) -> torch.Tensor:
            return torch.where(state["sound"], grad, torch.zeros_like(grad))

        def door(value: Any) -> Any:
            return _Door.apply(value, through) if value is not None and value.requires_grad else value

        gated = replace(
            student,
            feats=[door(feat) for feat in student.feats],
            logits=door(student.logits),
            boxes=door(student.boxes),
            angles=door(student.angles),
        )
        parts: dict[str, torch.Tensor] = module.parts(gated, teacher, targets)
        sound = torch.stack([sound, *(term.detach().isfinite() for term in parts.values())]).all()
        state["sound"] = sound
        self._sound[module] = sound & self._sound.get(module, sound)
        self.sound[name] = sound & self.sound.get(name, sound)
        return {part: torch.where(sound, term, torch.zeros_like(term)) for part, term in parts.items()}
