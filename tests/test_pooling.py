"""RoIAlign, by torchvision's operator and as weighted sums."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.oracles import regions as oracle
from yolokd.ops import pooling
from yolokd.ops.pooling import pool

Way = Callable[[torch.Tensor, int, torch.Tensor, int, int], torch.Tensor]
WAYS: list[Way] = [pooling._summed, pooling._aligned]


def seeded() -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size, samples", [(7, 2), (7, 1), (1, 7), (3, 4)])
def test_pool_equals_the_loop_version(way: Way, size: int, samples: int) -> None:
    feature = torch.randn(2, 3, 9, 12, generator=seeded(), dtype=torch.float64)
    boxes = [[0.0, 0, 96, 72], [10, 20, 30, 25], [88, 64, 96, 72], [5, 5, 6, 6], [-30, -9, 140, 90], [50, 7, 50, 7]]
    boxes += [[-8.0, 4, 0, 12], [96, 64, 104, 84]]  # whose middle samples lie just one position outside of the map
    rois = torch.cat(
        (torch.tensor([[0.0], [1], [1], [0], [1], [0], [0], [1]]), torch.tensor(boxes, dtype=torch.float64)), dim=1
    )
    pooled = way(feature, 8, rois, size, samples)
    assert pooled.shape == (8, 3, size, size)
    for roi, ours in zip(rois, pooled):
        expected = oracle.roi_align(feature[int(roi[0])].numpy(), roi[1:].numpy(), 8, size, samples)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_pooling_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where torchvision would, on GPUs with deterministic algorithms: gains are measured by a second backward."""
    theirs = importlib.import_module("torchvision.ops.roi_align")
    monkeypatch.setattr(theirs, "_has_ops", lambda: False)  # leads there on a CPU too
    monkeypatch.setattr(theirs, "_roi_align", lambda *_: pytest.fail("compiled"))
    feature = torch.randn(1, 2, 8, 8, generator=seeded(), requires_grad=True)
    pooled = pooling._aligned(feature, 8, torch.tensor([[0.0, 5, 5, 40, 50]]), 7, 2).sum()
    first, second = (torch.autograd.grad(pooled, feature, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0


@pytest.mark.parametrize("shape", [(9, 12), (1, 5), (4, 1), (1, 1)])
@pytest.mark.parametrize("size, samples", [(7, 1), (1, 7), (2, 3)])
def test_both_ways_have_the_same_gradient(shape: tuple[int, int], size: int, samples: int) -> None:
    generator = seeded()
    feature = torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    corners = (
        (torch.rand(40, 4, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * 8 * torch.tensor(shape[::-1] * 2)
    )
    rois = torch.cat((torch.randint(2, (40, 1), generator=generator), corners), dim=1)
    weight = torch.randn(40, 5, size, size, generator=generator, dtype=torch.float64)
    pooled = [way(feature, 8, rois, size, samples) for way in WAYS]
    torch.testing.assert_close(pooled[0], pooled[1])
    grads = [torch.autograd.grad((value * weight).sum(), feature)[0] for value in pooled]
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].abs().max() > 0 and grads[0].is_contiguous()


def test_pooling_to_one_bin_is_the_mean_of_the_bins() -> None:
    feature = torch.randn(1, 3, 9, 12, generator=seeded(), dtype=torch.float64)
    rois = torch.tensor([[0.0, 3, 4, 70, 60], [0, 80, 1, 95, 71]])
    one = pool(feature, 8, rois, size=1, samples=14)[..., 0, 0]
    torch.testing.assert_close(one, pool(feature, 8, rois).mean(dim=(2, 3)))


def test_pool_of_a_linear_map_is_the_bin_centre() -> None:
    # The map's value is the cell centre's x in pixels, so a bin's value is its own centre: 16 + (j + 0.5) * 56 / 7.
    x = (torch.arange(12.0) + 0.5) * 8
    pooled = pool(x.expand(1, 1, 9, 12).contiguous(), 8, torch.tensor([[0.0, 16, 8, 72, 64]]))
    torch.testing.assert_close(pooled[0, 0, 3], 16 + (torch.arange(7.0) + 0.5) * 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pool_of_half_precision_and_of_no_region(dtype: torch.dtype) -> None:
    feature = torch.randn(1, 3, 4, 4, generator=seeded()).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(feature, 8, torch.tensor([[0.0, 0, 0, 32, 32]]))
    assert pooled.dtype == torch.float32
    none = pool(feature, 8, torch.zeros(0, 5))
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert torch.equal(feature.grad, torch.zeros_like(feature))
