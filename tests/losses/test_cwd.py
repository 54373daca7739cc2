"""CWD: contract, known numbers and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.loss_contract import LossContract, random_pair, random_taps, random_targets
from tests.oracles import features as oracle
from tests.overfit import overfit
from yolokd.losses.cwd import CWDLoss, channel_divergence
from yolokd.ops.adapters import standardize


class TestCWD(LossContract):
    """The shared checklist."""

    loss = CWDLoss


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_known_number(temperature: float) -> None:
    # teacher / tau = ln 3, 0, 0, 0 gives 1/2 1/6 1/6 1/6, the flat student 1/4 each:
    # KL = 1/2 ln 2 + 3 * 1/6 ln(2/3) = 1/2 ln(4/3), times tau^2
    teacher = torch.tensor([math.log(3), 0.0, 0.0, 0.0]).view(1, 1, 2, 2) * temperature
    value = channel_divergence(torch.zeros(1, 1, 2, 2), teacher, temperature)
    assert value.item() == pytest.approx(temperature**2 * 0.5 * math.log(4 / 3), rel=1e-5)


def test_is_the_mean_over_images_and_channels() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    singles = [
        channel_divergence(student[b, None, c, None], teacher[b, None, c, None]) for b in range(2) for c in range(3)
    ]
    torch.testing.assert_close(channel_divergence(student, teacher), torch.stack(singles).mean())


def test_offset_of_a_channel_costs_nothing_but_direction_matters() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert channel_divergence(teacher + torch.randn(2, 3, 1, 1), teacher).item() == pytest.approx(0, abs=1e-6)
    assert abs(channel_divergence(student, teacher) - channel_divergence(teacher, student)) > 1e-4


def test_the_temperature_is_one_where_none_is_given() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(channel_divergence(student, teacher), channel_divergence(student, teacher, 1.0))


def test_gradient_of_the_formula() -> None:
    student, teacher = (torch.randn(2, 2, 2, 3, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: channel_divergence(s, teacher, 2.0), student.requires_grad_())


@pytest.mark.parametrize("align", [True, False])
def test_module_is_the_mean_of_the_formula_over_levels(align: bool) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = CWDLoss(pair, temperature=2.0, align=align)
    terms = []
    for adapted, wanted in zip(module.adapters(student.feats), teacher.feats):
        adapted, wanted = (standardize(adapted), standardize(wanted)) if align else (adapted, wanted)
        terms.append(channel_divergence(adapted, wanted, 2.0))
    value = module(student, teacher, random_targets(student))
    torch.testing.assert_close(value, sum(terms) / 3)
    value.backward()
    assert all(p.grad.abs().max() > 1e-5 for p in module.parameters())


def test_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="cwd_temperature=0"):
        CWDLoss(random_pair(), temperature=0)


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_agrees_with_the_oracle(align: bool, temperature: float) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = CWDLoss(pair, temperature=temperature, align=align)
    levels = zip(module.adapters(student.feats), teacher.feats)
    expected = sum(oracle.cwd_level(array(a), array(t), temperature, align) for a, t in levels) / 3
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(expected, rel=1e-5)


def test_overfits() -> None:
    before, after = overfit(CWDLoss)
    assert after < before / 2
