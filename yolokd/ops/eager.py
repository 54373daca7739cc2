"""Terms that are differentiated at once, so that their graphs are gone before the next ones are built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

SCALE = 1024.0  # a power of 2, so that nothing is rounded


class _Stored(torch.autograd.Function):
    """A scalar whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Keep the gradients times SCALE, the second half of the tensors, for the first half."""
        half = len(tensors) // 2
        ctx.save_for_backward(*tensors[half:])
        ctx.dtypes = [tensor.dtype for tensor in tensors[:half]]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients times that of the scalar."""
        grads, outer = ctx.saved_tensors, outer / SCALE
        scaled = ((grad * outer).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True))
        return None, *scaled, *[None] * len(grads)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    """Return a leaf of the same values, in float32 where they are in float16."""
    own = tensor.detach()
    return (own.float() if own.dtype is torch.float16 else own).requires_grad_(tensor.requires_grad)


def eager(
    term: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], parameters: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Return a term whose gradients are found now and kept, in place of the graph that they come from.

    The graph of a map in teacher channels is many times as large as the gradient at the student's own map. Taken level
    by level, no more than one level's is there at a time, and to measure gains costs nothing more. Values and gradients
    are those of the term itself; second derivatives are refused.

    Where nothing is differentiated the term is merely computed. What autocast runs in float16 has a scaling of its own
    here, since that of the whole loss comes too late: the gradient of a mean over a large map is less than float16 can
    tell from 0. For the same reason inputs in float16 are taken as float32, in which their gradients are kept.

    Args:
        term (Callable[..., torch.Tensor]): From the inputs to a scalar.
        inputs (Sequence[torch.Tensor]): What the term is differentiated by, of any shapes.
        parameters (Iterable[torch.Tensor]): All parameters that it reads, leaves.

    Returns:
        (torch.Tensor): Scalar.
    """
    return eager_sum([term], inputs, parameters)


def eager_sum(
    terms: Sequence[Callable[..., torch.Tensor]], inputs: Sequence[torch.Tensor], parameters: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Return the sum of terms of the same inputs, one differentiated after the other; see `eager`.

    Their gradients are summed here, so that one of each input is kept however many terms there are.

    Args:
        terms (Sequence[Callable[..., torch.Tensor]]): From the inputs to a scalar each; at least one.
        inputs (Sequence[torch.Tensor]): What the terms are differentiated by, of any shapes.
        parameters (Iterable[torch.Tensor]): All parameters that any of them reads, leaves.

    Returns:
        (torch.Tensor): Scalar.
    """
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not (wanted and torch.is_grad_enabled()):
        return torch.stack([term(*inputs) for term in terms]).sum()
    own = [_leaf(tensor) for tensor in inputs]
    leaves = [tensor for tensor in own if tensor.requires_grad]
    leaves += wanted[len(leaves) :]
    values: list[torch.Tensor] = []
    grads: list[torch.Tensor | None] = [None] * len(leaves)
    for term in terms:
        value = term(*own)
        found = torch.autograd.grad(value * SCALE, leaves, allow_unused=True)
        grads = [_plus(grad, more) for grad, more in zip(grads, found)]
        values.append(value.detach())
    kept = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads)]
    stored: torch.Tensor = _Stored.apply(torch.stack(values).sum(), *wanted, *kept)
    return stored


def _plus(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    """Return the sum of two gradients, None standing for zero."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def level_mean(
    term: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    *modules: nn.ModuleList,
    shared: Iterable[nn.Parameter] = (),
) -> torch.Tensor:
    """Return the mean of a term over the levels, each differentiated before the next one begins; see `eager`.

    Args:
        term (Callable): From a level's index, its teacher map and its student map to a scalar.
        student (Sequence[torch.Tensor]): The student's maps, each with shape (B, C, H, W).
        teacher (Sequence[torch.Tensor]): The teacher's maps, taken as constants.
        *modules (nn.ModuleList): Lists of the modules of each level that the term runs.
        shared (Iterable[nn.Parameter]): Parameters that all levels read.

    Returns:
        (torch.Tensor): Scalar.

    Raises:
        ValueError: If the numbers of maps and modules differ.
    """
    terms = []
    for index, (feat, reference, *own) in enumerate(zip(student, teacher, *modules, strict=True)):
        parameters = [*shared, *(parameter for module in own for parameter in module.parameters())]
        terms.append(eager(partial(term, index, reference.detach()), [feat], parameters))
    return torch.stack(terms).mean()
