"""A teacher's 1x1 convolutions by oneDNN, where PyTorch has a slower way for them."""

from __future__ import annotations

import torch
from torch import nn


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that goes to oneDNN whenever nothing is differentiated.

    On one CPU thread PyTorch computes 1x1 convolutions of fewer than 16 images as matrix products of copied images,
    whose layout then makes the layers behind copy as well; oneDNN takes them as they lie. Values differ by rounding.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of images with shape (B, C, H, W)."""
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or input.dtype is not torch.float32:
            return super().forward(input)
        found: torch.Tensor = torch.ops.aten.mkldnn_convolution(
            input, self.weight, self.bias, [0, 0], self.stride, self.dilation, self.groups
        )
        return found


def through_onednn(model: nn.Module) -> None:
    """Let the 1x1 convolutions of a model on the CPU go to oneDNN, in place, where this PyTorch has it."""
    if not torch.backends.mkldnn.is_available():
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.padding == (0, 0):
            module.__class__ = Pointwise
