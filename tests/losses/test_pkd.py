"""PKD: contract, known numbers, and its relation to Pearson's r."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.loss_contract import LossContract, random_pair, random_taps, random_targets
from tests.oracles import features as oracle
from tests.overfit import overfit
from yolokd.losses.pkd import PKDLoss, pearson_distance


class TestPKD(LossContract):
    """The shared checklist."""

    loss = PKDLoss


def test_known_number() -> None:
    # both maps have mean 1 and variance 3; the products of deviations are 1, 1, -3, -3, so r = -4 / (4 * 3) = -1/3
    # and 1 - r = 4/3
    student = torch.tensor([0.0, 0.0, 4.0, 0.0]).view(1, 1, 2, 2)
    teacher = torch.tensor([0.0, 0.0, 0.0, 4.0]).view(1, 1, 2, 2)
    assert pearson_distance(student, teacher).item() == pytest.approx(4 / 3, rel=1e-5)


def test_is_one_minus_the_mean_correlation_of_channels() -> None:
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = zip(student.transpose(0, 1).flatten(1), teacher.transpose(0, 1).flatten(1))
    expected = 1 - torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in rows]).mean()
    torch.testing.assert_close(pearson_distance(student, teacher), expected, rtol=1e-4, atol=1e-5)


def test_scale_and_offset_of_channels_cost_nothing() -> None:
    teacher = torch.randn(2, 3, 4, 5)
    scale = torch.tensor([0.1, 2.0, 30.0]).view(1, 3, 1, 1)
    assert pearson_distance(teacher * scale + 5, teacher).item() == pytest.approx(0, abs=1e-5)
    assert pearson_distance(-teacher, teacher).item() == pytest.approx(2, rel=1e-4)


def test_gradient_of_the_formula() -> None:
    student, teacher = (torch.randn(2, 2, 2, 3, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: pearson_distance(s, teacher), student.requires_grad_())


def test_module_is_the_mean_of_the_formula_over_levels() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = PKDLoss(pair)
    terms = [pearson_distance(a, t) for a, t in zip(module.adapters(student.feats), teacher.feats)]
    torch.testing.assert_close(module(student, teacher, random_targets(student)), sum(terms) / 3)


def test_every_parameter_moves() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = PKDLoss(pair)
    module(student, teacher, random_targets(student)).backward()
    assert {n: bool(p.grad.abs().max() > 1e-5) for n, p in module.named_parameters()} == {
        f"adapters.{i}.weight": True for i in range(3)
    }


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return tensor.detach().double().numpy()


def test_agrees_with_the_oracle() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = PKDLoss(pair)
    levels = zip(module.adapters(student.feats), teacher.feats)
    expected = sum(oracle.pkd_level(array(a), array(t)) for a, t in levels) / 3
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(expected, rel=1e-5)


def test_overfits() -> None:
    before, after = overfit(PKDLoss)
    assert after < before / 2
