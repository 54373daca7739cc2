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
        half = len(tensors) // 2
        ctx.save_for_backward(*tensors[half:])
        ctx.dtypes = [tensor.dtype for tensor in tensors[:half]]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients times that of the scalar."""
        grads = ctx.saved_tensors
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
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if not (wanted and torch.is_grad_enabled()):
        return term(*inputs)
    own = [_leaf(tensor) for tensor in inputs]
    value = term(*own)
    leaves = [tensor for tensor in own if tensor.requires_grad]
    leaves += wanted[len(leaves) :]
    found = torch.autograd.grad(value * SCALE, leaves, allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad / SCALE for leaf, grad in zip(leaves, found)]
    stored: torch.Tensor = _Stored.apply(value.detach(), *wanted, *grads)
    return stored
