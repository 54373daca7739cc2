"""Terms that are differentiated at once, so that their graphs are gone before the next ones are built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

SCALE = 1024.0  # a power of 2, so that nothing is rounded


class _Stored(torch.autograd.Function):
    """A scalar whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """Keep the gradients, the second half of the tensors, for the first half."""
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients times that of the scalar."""
        grads = ctx.saved_tensors
        return None, *(grad * outer for grad in grads), *[None] * len(grads)


def eager(
    term: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], parameters: Iterable[torch.Tensor]
) -> torch.Tensor:
    """Return a term whose gradients are found now and kept, in place of the graph that they come from.

    The graph of a map in teacher channels is many times as large as the gradient at the student's own map. Taken level
    by level, no more than one level's is there at a time, and to measure gains costs nothing more. Values and gradients
    are those of the term itself; second derivatives are refused.

    Where nothing is differentiated the term is merely computed; so it is with inputs in float16, whose gradients need
    the loss scaling that comes with the whole loss. What autocast runs in float16 within a term of float32 inputs has a
    scaling of its own: the gradient of a mean over a large map is less than float16 can tell from 0.

    Args:
        term (Callable[..., torch.Tensor]): From the inputs to a scalar.
        inputs (Sequence[torch.Tensor]): What the term is differentiated by, of any shapes.
        parameters (Iterable[torch.Tensor]): All parameters that it reads, leaves.

    Returns:
        (torch.Tensor): Scalar.
    """
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not (wanted and torch.is_grad_enabled()) or any(tensor.dtype is torch.float16 for tensor in inputs):
        return term(*inputs)
    own = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    value = term(*own)
    leaves = [tensor for tensor in own if tensor.requires_grad]
    leaves += wanted[len(leaves) :]
    found = torch.autograd.grad(value * SCALE, leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad / SCALE for leaf, grad in zip(leaves, found)]
    stored: torch.Tensor = _Stored.apply(value.detach(), *wanted, *grads)
    return stored
