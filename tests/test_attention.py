"""Attention maps, quantile masks, grids of cells and the methods' own random streams."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.oracles import features as oracle
from yolokd.ops import attention as cells
from yolokd.ops.attention import (
    RandomSource,
    cell_mask,
    cell_mean,
    channel_attention,
    keep_grids,
    log_attentions,
    quantile_mask,
    spatial_attention,
)

ODD_SHAPES = [(1, 1, 1, 1), (2, 3, 4, 6), (3, 8, 5, 7), (1, 16, 1, 9)]


def feature_map(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Return a skewed map like those of a neck."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.silu(drawn * 2) * scale


# Attention ------------------------------------------------------------------------------------------------------------


def test_spatial_attention_of_a_known_map() -> None:
    # |F| = 0 0 0 4: mean 1, variance (1 + 1 + 1 + 9) / 4 = 3, scaled 0 0 0 4/sqrt(3). With tau = 4 / (sqrt(3) ln 3) the
    # exponentials are 1 1 1 3, the softmax 1/6 1/6 1/6 3/6, times H * W = 4: 2/3 2/3 2/3 2
    feature = torch.tensor([[0.0, 0.0], [0.0, -4.0]]).view(1, 1, 2, 2)
    attention = spatial_attention(feature, temperature=4 / (math.sqrt(3) * math.log(3)))
    torch.testing.assert_close(attention.flatten(), torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))


def test_channel_attention_of_a_known_map() -> None:
    # |F| = 0 2 | 2 4: mean 2, variance (4 + 0 + 0 + 4) / 4 = 2; channel means 1 and 3, scaled 1/sqrt(2) and 3/sqrt(2).
    # With tau = sqrt(2) / ln 3 their exponentials are as 1 to 3, the softmax 1/4 3/4, times C = 2: 1/2 3/2
    feature = torch.tensor([[[0.0, -2.0]], [[2.0, 4.0]]]).unsqueeze(0)
    attention = channel_attention(feature, temperature=math.sqrt(2) / math.log(3))
    torch.testing.assert_close(attention.flatten(), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_attention_has_mean_one_in_each_image(shape: tuple[int, ...], scale: float) -> None:
    feature = feature_map(shape, scale=scale)
    spatial, channel = spatial_attention(feature, 0.5), channel_attention(feature, 0.5)
    assert spatial.shape == (shape[0], 1, *shape[2:]) and channel.shape == (shape[0], shape[1], 1, 1)
    torch.testing.assert_close(spatial.mean((1, 2, 3)), torch.ones(shape[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(channel.mean((1, 2, 3)), torch.ones(shape[0]), rtol=0, atol=1e-5)


def test_attention_does_not_depend_on_scale_and_sign_nor_on_other_images() -> None:
    feature = feature_map((2, 8, 6, 5))
    for attention in (spatial_attention, channel_attention):
        torch.testing.assert_close(attention(feature * -0.02, 0.5), attention(feature, 0.5))
        torch.testing.assert_close(attention(feature[1:], 0.5), attention(feature, 0.5)[1:])


def test_attention_of_a_constant_map_is_flat() -> None:
    feature = torch.full((1, 4, 3, 3), 0.37)
    torch.testing.assert_close(spatial_attention(feature, 0.5), torch.ones(1, 1, 3, 3))
    torch.testing.assert_close(channel_attention(feature, 0.5), torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize("direction", ["high", "low"])
def test_masks_rank_entries_beside_one_that_outshines_them(direction: Any) -> None:
    """The attention of all others is 0 in float32 there, but its logarithm is not."""
    feature = feature_map((1, 512, 6, 5)).abs()
    feature[:, 7] *= 300
    _, channel = log_attentions(feature, 0.1)
    assert (channel.exp() == 0).sum() > 500
    masked = quantile_mask(channel, 0.3, direction).flatten() == 0
    order = feature.mean((0, 2, 3)).argsort(descending=direction == "high")
    assert set(masked.nonzero().flatten().tolist()) == set(order[: round(0.3 * 512)].tolist())


def test_a_lower_temperature_sharpens() -> None:
    feature = feature_map((1, 8, 6, 5))
    assert spatial_attention(feature, 0.1).max() > spatial_attention(feature, 0.5).max()
    assert channel_attention(feature, 0.1).max() > channel_attention(feature, 0.5).max()


def test_attention_is_detached_float32_also_under_autocast() -> None:
    feature = feature_map((1, 8, 6, 5)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        results = spatial_attention(feature, 0.5), channel_attention(feature, 0.5)
    for result, expected in zip(results, (spatial_attention(feature, 0.5), channel_attention(feature, 0.5))):
        assert result.dtype == torch.float32 and not result.requires_grad
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_attention_agrees_with_the_oracle(shape: tuple[int, ...], temperature: float) -> None:
    feature = feature_map(shape, seed=1)
    spatial, channel = spatial_attention(feature, temperature), channel_attention(feature, temperature)
    np.testing.assert_allclose(spatial[:, 0], oracle.spatial_attention(feature.numpy(), temperature), rtol=1e-4)
    np.testing.assert_allclose(channel[..., 0, 0], oracle.channel_attention(feature.numpy(), temperature), rtol=1e-4)


# Quantile masks -------------------------------------------------------------------------------------------------------


def test_quantile_mask_of_a_known_map() -> None:
    attention = torch.tensor([[0.1, 3.0, 0.4, 0.5], [2.0, 0.2, 0.9, 0.9]]).view(2, 1, 2, 2)
    assert quantile_mask(attention, 0.5, "high").flatten(1).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert quantile_mask(attention, 0.5, "low").flatten(1).tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    count=st.integers(1, 50),
    ratio=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.65, 0.99, 1.0]),
    direction=st.sampled_from(["high", "low"]),
    levels=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_quantile_mask_hides_the_extreme_entries(count: int, ratio: float, direction, levels: int, seed: int) -> None:
    """`levels` distinct values: few of them make many ties."""
    attention = torch.randint(levels, (3, count), generator=torch.Generator().manual_seed(seed)).float()
    mask = quantile_mask(attention, ratio, direction)
    assert mask.dtype == torch.float32 and set(mask.unique().tolist()) <= {0.0, 1.0}
    for row, values in zip(mask, attention.tolist()):
        sign = -1 if direction == "high" else 1
        order = sorted(range(count), key=lambda i: (sign * values[i], i))  # the first ones among equals
        assert (row == 0).nonzero().flatten().tolist() == sorted(order[: round(ratio * count)])


def test_random_mask_draws_from_the_given_generator_only() -> None:
    attention = torch.rand(4, 1, 9, 7)
    before = torch.get_rng_state()
    first, second, other = (
        quantile_mask(attention, 0.4, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]), "all images have one mask"
    assert (first == 0).flatten(1).sum(1).tolist() == [round(0.4 * 63)] * 4


def test_random_mask_reaches_every_position() -> None:
    generator = torch.Generator().manual_seed(0)
    share = 1 - quantile_mask(torch.zeros(4000, 10), 0.3, "random", generator).mean(0)
    assert (share - 0.3).abs().max() < 0.03  # standard error sqrt(0.21 / 4000) = 0.007


# Cells ----------------------------------------------------------------------------------------------------------------


def borders(length: int, grid: int) -> list[tuple[int, int]]:
    """Return start and end of each cell along a side."""
    return [(math.floor(i * length / grid), math.floor((i + 1) * length / grid)) for i in range(grid)]


@pytest.mark.parametrize("size", [(20, 20), (10, 15), (11, 13), (5, 23), (7, 5)])
@pytest.mark.parametrize("grid", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.4, 0.5, 1.0])
def test_cell_mask_has_a_budget_in_each_cell(size: tuple[int, int], grid: int, ratio: float) -> None:
    attention = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(grid)).mul(9).round()  # with ties
    mask = cell_mask(attention, ratio, grid)
    assert mask.shape == attention.shape and mask.dtype == torch.float32
    expected = torch.ones_like(mask)
    for top, bottom in borders(size[0], grid):
        for left, right in borders(size[1], grid):
            for image in range(2):
                cell = attention[image, 0, top:bottom, left:right].flatten().tolist()
                order = sorted(range(len(cell)), key=lambda i: (-cell[i], i))[: round(ratio * len(cell))]
                for i in order:
                    expected[image, 0, top + i // (right - left), left + i % (right - left)] = 0
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("size", [(20, 20), (11, 13), (5, 23)])
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_cell_mean(size: tuple[int, int], grid: int) -> None:
    values = torch.rand(2, 1, *size)
    expected = torch.empty_like(values)
    for top, bottom in borders(size[0], grid):
        for left, right in borders(size[1], grid):
            cell = values[:, :, top:bottom, left:right]
            expected[:, :, top:bottom, left:right] = cell.mean((2, 3), keepdim=True)
    torch.testing.assert_close(cell_mean(values, grid), expected)


@pytest.mark.parametrize("size", [(20, 20), (12, 40), (80, 80)])
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_equal_cells_are_cut_as_any_others(size: tuple[int, int], grid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(grid))
    found = cell_mask(values, 0.4, grid), cell_mean(values, grid)
    monkeypatch.setattr(cells, "_are_equal", lambda size, grid: False)
    assert torch.equal(cell_mask(values, 0.4, grid), found[0]) and torch.equal(cell_mean(values, grid), found[1])


def test_where_cells_lie_is_found_once_and_serves_gradients_after_a_validation() -> None:
    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func.overloadpacket is not torch.ops.aten.arange
            return func(*args, **(kwargs or {}))

    cells._cells.cache_clear()
    values = torch.rand(2, 1, 11, 13)
    with torch.inference_mode():
        cell_mask(values, 0.4, 4), cell_mean(values, 4)
    values.requires_grad_()
    with Made():
        cell_mask(values, 0.4, 4)
        cell_mean(values, 4).square().sum().backward()
    torch.testing.assert_close(values.grad, 2 * cell_mean(values.detach(), 4))


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((80, 80), [1, 2, 4]),
        ((20, 20), [1, 2, 4]),
        ((19, 40), [1, 2]),
        ((10, 10), [1, 2]),
        ((9, 80), [1]),
        ((1, 1), [1]),
    ],
)
def test_grids_are_kept_where_cells_are_5x5(size: tuple[int, int], kept: list[int]) -> None:
    assert keep_grids(size, [1, 2, 4]) == kept


def test_grid_one_stands_in_where_none_is_kept() -> None:
    assert keep_grids((8, 8), [2, 4]) == [1]
    assert keep_grids((10, 10), [2, 4]) == [2]


# Random stream --------------------------------------------------------------------------------------------------------


def draw(source: RandomSource) -> list[float]:
    """Return the next three numbers of a stream."""
    return torch.rand(3, generator=source.generator()).tolist()


def test_random_source_travels_with_state_dict_copy_and_pickle() -> None:
    source = RandomSource(7)
    first = draw(source)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    restored = RandomSource(8)
    restored.load_state_dict(torch.load(file, weights_only=True))
    copies = restored, copy.deepcopy(source), pickle.loads(pickle.dumps(source))
    following = draw(source)
    assert following != first
    assert all(draw(twin) == following for twin in copies)
    last = draw(source)
    assert all(draw(twin) == last for twin in copies), "the streams hang together"


def test_random_source_stands_still_in_evaluation() -> None:
    source, reference = RandomSource(7), RandomSource(7)
    draw(source), draw(reference)
    source.eval()
    assert draw(source) == draw(source) == draw(RandomSource(7))
    source.train()
    assert draw(source) == draw(reference)
