"""Adapters, generators and the standardisation."""

from __future__ import annotations

import pytest
import torch

from yolokd.ops.adapters import Adapters, Generator, as_float, standardize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_as_float_raises_to_float32(dtype: torch.dtype) -> None:
    assert as_float(torch.ones(2, dtype=dtype)).dtype == torch.float32


def test_as_float_keeps_float64() -> None:
    assert as_float(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


def test_standardize_a_known_map() -> None:
    # mean 1, deviations -1 -1 -1 3, variance (1 + 1 + 1 + 9) / 4 = 3: -1 / sqrt(3) three times, then 3 / sqrt(3)
    feature = torch.tensor([0.0, 0.0, 0.0, 4.0], dtype=torch.float64).view(1, 1, 2, 2)
    expected = torch.tensor([-1.0, -1.0, -1.0, 3.0], dtype=torch.float64).view(1, 1, 2, 2) / 3**0.5
    torch.testing.assert_close(standardize(feature), expected, rtol=1e-5, atol=0)


def test_standardize_takes_batch_and_positions_together() -> None:
    feature = torch.randn(3, 4, 5, 7) * torch.tensor([0.1, 1.0, 10.0, 100.0]).view(1, 4, 1, 1) + 3
    result = standardize(feature)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.var((0, 2, 3), unbiased=False), torch.ones(4), rtol=1e-4, atol=0)
    assert result.mean((2, 3)).abs().max() > 0.01, "each image was standardised by itself"


@pytest.mark.parametrize("value", [0.1, 0.28, 1.3, 10.1, 100.1, 3000.3])
def test_standardize_takes_rounding_for_nothing(value: float) -> None:
    """The mean of equal numbers is not quite that number; a channel that moves by a thousandth is told apart."""
    feature = torch.full((16, 4, 40, 40), value)
    assert standardize(feature).abs().max() < 0.05
    feature[:, 1] *= 1 + 1e-3 * torch.randn(16, 40, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        standardize(feature).std((0, 2, 3), unbiased=False)[1], torch.tensor(1.0), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("value", [5.0, 0.0])
def test_standardize_a_constant_channel_with_gradient(value: float) -> None:
    feature = torch.full((1, 2, 3, 3), value, requires_grad=True)
    result = standardize(feature)
    assert result.abs().max() == 0
    result.sum().backward()
    assert torch.isfinite(feature.grad).all()


def test_standardize_gradient() -> None:
    feature = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardize, feature)


def test_adapters_map_student_to_teacher_channels() -> None:
    adapters = Adapters((4, 5), (6, 5))
    maps = adapters([torch.randn(2, 4, 3, 5), torch.randn(2, 5, 2, 3)])
    assert [tuple(m.shape) for m in maps] == [(2, 6, 3, 5), (2, 5, 2, 3)]
    assert all(conv.kernel_size == (1, 1) and (conv.bias == 0).all() for conv in adapters)


def test_adapters_without_bias() -> None:
    assert [name for name, _ in Adapters((4,), (4,), bias=False).named_parameters()] == ["0.weight"]


def test_adapters_keep_the_scale_of_their_input() -> None:
    torch.manual_seed(0)
    (result,) = Adapters((64,), (256,))([torch.randn(4, 64, 16, 16)])
    assert 0.9 < result.std() < 1.1


def test_adapters_take_half_precision_outside_autocast() -> None:
    (result,) = Adapters((4,), (6,))([torch.randn(2, 4, 3, 3).half()])
    assert result.dtype == torch.float32


def test_adapters_refuse_a_wrong_number_of_levels() -> None:
    with pytest.raises(ValueError, match="zip"):
        Adapters((4, 5), (6,))
    with pytest.raises(ValueError, match="zip"):
        Adapters((4,), (6,))([torch.randn(1, 4, 2, 2)] * 2)


@pytest.mark.parametrize(
    ("channels", "width", "hidden"), [(64, 1.0, 64), (64, 0.25, 16), (46, 0.25, 12), (16, 0.25, 8), (6, 0.5, 8)]
)
def test_generator_width(channels: int, width: float, hidden: int) -> None:
    generator = Generator(channels, width)
    assert generator[0].out_channels == hidden
    assert [generator[i].kernel_size for i in (0, 2)] == [(3, 3), (3, 3)]
    assert generator(torch.randn(2, channels, 5, 3)).shape == (2, channels, 5, 3)
