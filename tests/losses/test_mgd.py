"""MGD: contract, known number, and the random mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.loss_contract import LossContract, random_pair, random_taps, random_targets
from tests.oracles import features as oracle
from tests.overfit import overfit
from yolokd.losses.mgd import MGDLoss, masked_generation, random_mask
from yolokd.ops.adapters import standardize


class TestMGD(LossContract):
    """The shared checklist."""

    loss = MGDLoss
    zero_at_identity = False  # the generator is no identity


def test_known_number() -> None:
    # masked 1 0 0 4, doubled 2 0 0 8, minus 1 each: 1 -1 -1 7, squares 1 1 1 49, mean 13
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    assert masked_generation(student, torch.ones(1, 1, 2, 2), mask, lambda x: 2 * x).item() == 13


def test_no_mask_and_identity_generator_cost_nothing_at_identity() -> None:
    feature = torch.randn(2, 3, 4, 5)
    assert masked_generation(feature, feature, torch.ones(2, 1, 4, 5), nn.Identity()).item() == 0


def test_gradient_of_the_formula() -> None:
    student, teacher, weight = (
        torch.randn(*s, dtype=torch.float64) for s in ((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 3))
    )
    mask = random_mask(student, 0.4, torch.Generator().manual_seed(0))

    def term(s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return masked_generation(s, teacher, mask, lambda x: nn.functional.conv2d(x, w, padding=1))

    assert torch.autograd.gradcheck(term, (student.requires_grad_(), weight.requires_grad_()))


def test_mask_has_its_share_and_is_shared_by_channels() -> None:
    mask = random_mask(torch.zeros(50, 7, 20, 20), 0.65, torch.Generator().manual_seed(0))
    assert mask.shape == (50, 1, 20, 20) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask == 0).float().mean().item() == pytest.approx(0.65, abs=0.015)  # 4.5 standard errors of 20,000 draws
    assert not torch.equal(mask[0], mask[1])


@pytest.mark.parametrize(("ratio", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_mask_at_its_ends(ratio: float, value: float) -> None:
    assert (random_mask(torch.zeros(4, 3, 20, 20), ratio) == value).all()


def test_each_step_draws_anew_and_the_seed_decides() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    targets = random_targets(student)
    module = MGDLoss(pair)
    assert module(student, teacher, targets) != module(student, teacher, targets)
    other = MGDLoss(random_pair(seed=1))
    other.load_state_dict({k: v for k, v in module.state_dict().items() if "random" not in k}, strict=False)
    first = MGDLoss(pair)
    first.load_state_dict({k: v for k, v in module.state_dict().items() if "random" not in k}, strict=False)
    assert other(student, teacher, targets) != first(student, teacher, targets)


@pytest.mark.parametrize("align", [True, False])
def test_module_is_the_mean_of_the_formula_over_levels(align: bool) -> None:
    pair = random_pair(seed=5)
    student, teacher = random_taps(pair)
    module = MGDLoss(pair, ratio=0.3, align=align)
    generator = torch.Generator().manual_seed(5)
    terms = []
    for adapted, wanted, block in zip(module.adapters(student.feats), teacher.feats, module.generators):
        adapted, wanted = (standardize(adapted), standardize(wanted)) if align else (adapted, wanted)
        terms.append(masked_generation(adapted, wanted, random_mask(adapted, 0.3, generator), block))
    value = module(student, teacher, random_targets(student))
    torch.testing.assert_close(value, sum(terms) / 3)
    value.backward()
    assert all(p.grad.abs().max() > 1e-6 for p in module.parameters())


@pytest.mark.parametrize("ratio", [1.5, -0.1])
def test_refuses_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"mgd_ratio={ratio}"):
        MGDLoss(random_pair(), ratio=ratio)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_at_its_ends_is_accepted(ratio: float) -> None:
    assert MGDLoss(random_pair(), ratio=ratio).ratio == ratio


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("align", [True, False])
def test_agrees_with_the_oracle(align: bool) -> None:
    pair = random_pair(2, seed=3)
    student, teacher = random_taps(pair, sizes=[(6, 7), (3, 4)])
    module = MGDLoss(pair, align=align)
    generator = torch.Generator().manual_seed(3)
    expected = 0.0
    for adapted, raw, block in zip(module.adapters(student.feats), teacher.feats, module.generators):
        mask = array(random_mask(adapted, 0.65, generator))[:, 0]
        weights = tuple(array(p) for p in block.parameters())
        expected += oracle.mgd_level(array(adapted), array(raw), mask, weights, align) / 2
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(expected, rel=1e-5)


def test_overfits() -> None:
    before, after = overfit(MGDLoss)
    assert after < before / 2
