"""SAMKD: contract, known numbers, cells, region weights and parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.loss_contract import LossContract, random_pair, random_taps, random_targets
from tests.oracles import features as oracle
from tests.overfit import overfit
from yolokd.losses.samkd import SAMKDLoss, discrepancy, largest_regions, pyramid_generation, weighted_binary
from yolokd.ops.adapters import standardize
from yolokd.ops.attention import cell_mask, channel_attention, quantile_mask, spatial_attention

BIG = [(20, 25), (10, 12), (5, 6)]


class TestSAMKD(LossContract):
    """The shared checklist."""

    loss = SAMKDLoss
    reads = ("feats", "logits")
    zero_at_identity = False  # generators are no identities


class TestSAMKDLogit(LossContract):
    """The shared checklist with the feature part off."""

    loss = SAMKDLoss
    reads = ("logits",)

    def fresh(self, pair: Any, init: int = 0, **options: Any) -> Any:
        return super().fresh(pair, init, **({"feature": 0.0} | options))

    def test_parts_are_scalars_under_their_names(self) -> None:
        pair, student, teacher, targets = self.case()
        assert list(self.fresh(pair).parts(student, teacher, targets)) == ["logit"]

    test_forward_is_the_weighted_sum_of_parts = None  # of both parts: see TestSAMKD
    test_a_part_of_weight_zero_is_off = None


# Feature part ---------------------------------------------------------------------------------------------------------


def test_known_number_of_the_feature_part() -> None:
    # grid 1 hides the 4, error 16 / 4 = 4; grid 2 hides the 1, error 1 / 4; mean 2.125
    feature = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    spatial = [torch.tensor(m).view(1, 1, 2, 2) for m in ([1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0])]
    value = pyramid_generation(feature, feature, spatial, torch.ones(1, 1, 1, 1), nn.Identity())
    assert value.item() == 2.125


def test_both_masks_act_together() -> None:
    # a channel of 3 hidden everywhere, one of 2 hidden at one of four positions: (4 * 9 + 4) / 8
    feature = torch.stack((torch.full((2, 2), 2.0), torch.full((2, 2), 3.0))).unsqueeze(0)
    spatial = [torch.tensor([0.0, 1.0, 1.0, 1.0]).view(1, 1, 2, 2)]
    value = pyramid_generation(feature, feature, spatial, torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), nn.Identity())
    assert value.item() == 5


def test_grids_weigh_the_same() -> None:
    student, teacher = torch.randn(2, 3, 10, 11), torch.randn(2, 3, 10, 11)
    spatial = [cell_mask(spatial_attention(teacher, 0.5), 0.4, grid) for grid in (1, 2)]
    channel = quantile_mask(channel_attention(teacher, 0.5), 0.3)
    block = nn.Conv2d(3, 3, 3, padding=1)
    singles = [pyramid_generation(student, teacher, [mask], channel, block) for mask in spatial]
    torch.testing.assert_close(pyramid_generation(student, teacher, spatial, channel, block), sum(singles) / 2)


def test_gradient_of_the_feature_part() -> None:
    student = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    block = nn.Conv2d(2, 2, kernel_size=3, padding=1, bias=False).double()
    teacher = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    spatial = [cell_mask(spatial_attention(teacher, 0.5), 0.4, grid) for grid in (1, 2)]
    channel = quantile_mask(channel_attention(teacher, 0.5), 0.5)

    def term(s: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return pyramid_generation(s, teacher, spatial, channel, block)

    assert torch.autograd.gradcheck(term, (student, block.weight))


# Logit part -----------------------------------------------------------------------------------------------------------


def test_known_number_of_the_logit_part() -> None:
    # z^S = 0 and p^T = 3/4: BCE = ln 2, |1/2 - 3/4| = 1/4. The second anchor agrees and counts 0.
    # Weights 3 and 1: 3 * (ln 2 / 4) / 4; a second class that agrees adds nothing to the sum over classes
    teacher = torch.tensor([[[math.log(3), 1.0], [2.0, -1.0]]])
    student = torch.tensor([[[0.0, 1.0], [2.0, -1.0]]])
    value = weighted_binary(student, teacher, torch.tensor([[3.0, 1.0]]))
    assert value.item() == pytest.approx(3 * math.log(2) / 16, rel=1e-6)


def test_logit_part_sums_over_classes_and_ignores_the_scale_of_weights() -> None:
    student, teacher, weight = torch.randn(2, 6, 3), torch.randn(2, 6, 3), torch.rand(2, 6)
    whole = weighted_binary(student, teacher, weight)
    singles = [weighted_binary(student[..., k : k + 1], teacher[..., k : k + 1], weight) for k in range(3)]
    torch.testing.assert_close(whole, sum(singles))
    torch.testing.assert_close(whole, weighted_binary(student, teacher, weight * 7))


def test_logit_part_without_weight_is_a_connected_zero() -> None:
    student = torch.randn(1, 4, 2, requires_grad=True)
    value = weighted_binary(student, torch.randn(1, 4, 2), torch.zeros(1, 4))
    value.backward()
    assert value.item() == 0 and student.grad.abs().max() == 0


def test_gradient_of_the_logit_part() -> None:
    student, teacher = (torch.randn(2, 4, 3, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: weighted_binary(s, teacher, weight), student.requires_grad_())


def test_discrepancy_of_a_known_map() -> None:
    # squared difference 0 0 0 4: grid 1 makes it 1 everywhere, grid 2 leaves it; their mean 0.5 0.5 0.5 2.5 has mean 1
    teacher = torch.tensor([[0.0, 0.0], [0.0, 2.0]]).view(1, 1, 2, 2)
    result = discrepancy(torch.zeros(1, 1, 2, 2), teacher, (1, 2))
    torch.testing.assert_close(result, torch.tensor([[0.5, 0.5], [0.5, 2.5]]).view(1, 1, 2, 2))


def test_discrepancy_is_clipped_after_it_is_scaled() -> None:
    teacher = torch.zeros(1, 1, 4, 4)
    teacher[0, 0, 1, 2] = 3.0  # one of 16 positions has all: 16 times the mean
    result = discrepancy(torch.zeros(1, 1, 4, 4), teacher, (4,))
    assert result[0, 0, 1, 2] == 4 and result.sum() == 4


def test_discrepancy_is_of_mean_one_and_detached() -> None:
    student, teacher = torch.randn(3, 4, 20, 23, requires_grad=True), torch.randn(3, 4, 20, 23)
    result = discrepancy(student, teacher, (1, 2, 4))
    assert result.max() < 4 and not result.requires_grad
    torch.testing.assert_close(result.mean((1, 2, 3)), torch.ones(3))
    assert len(result[0].unique()) <= 16 and len(result[0].unique()) > 4, "not the differences of regions"
    assert discrepancy(teacher, teacher, (1, 2)).abs().max() == 0


def test_largest_regions_are_taken_whole() -> None:
    # sixteen positions, regions of 4 with values 3 1 1 0: a quarter is the 3; anything up to three quarters is 3 1 1
    regions = torch.tensor([[3.0, 1.0], [1.0, 0.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, 1, 4, 4)
    first, ties = (regions == 3).float(), (regions >= 1).float()
    for share, expected in ((0.0, first), (0.25, first), (0.3, ties), (0.75, ties), (0.8, torch.ones(1, 1, 4, 4))):
        assert torch.equal(largest_regions(regions, share), expected), share
    single = torch.tensor([[9.0, 8.0], [7.0, 6.0]]).view(1, 1, 2, 2)
    assert torch.equal(largest_regions(single, 0.0), (single == 9).float()), "not one region for a share of nothing"
    flat = torch.ones(2, 1, 3, 3)  # one region: nothing tells its positions apart
    assert torch.equal(largest_regions(flat, 0.4), flat)


# Oracle ---------------------------------------------------------------------------------------------------------------


def weights_of(generator: nn.Module) -> oracle.Weights:
    """Return both kernels and biases of a generator."""
    return tuple(array(p) for p in generator.parameters())  # type: ignore[return-value]


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("align", [True, False])
def test_feature_part_agrees_with_the_oracle(align: bool) -> None:
    pair = random_pair(2)
    student, teacher = random_taps(pair, sizes=[(10, 11), (5, 6)])
    module = SAMKDLoss(pair, align=align)
    expected = [
        oracle.samkd_feature_level(
            array(adapted), array(raw), (1, 2, 4), 0.4, 0.3, 0.5, [weights_of(generator)] * 3, align
        )
        for adapted, raw, generator in zip(module.adapters(student.feats), teacher.feats, module.generators)
    ]
    value = module.parts(student, teacher, random_targets(student))["feature"]
    assert value.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "share", "temperature"), [("soft", None, 0.5), ("soft", None, 2.0), ("binary", 0.25, 0.5)]
)
def test_logit_part_agrees_with_the_oracle(weight: Any, share: float | None, temperature: float) -> None:
    pair = random_pair(1)
    student, teacher = random_taps(pair, sizes=[(10, 12)])  # grids 1 and 2: the quarter of largest D is one cell
    module = SAMKDLoss(pair, weight=weight, ratio=0.25, temperature=temperature)
    expected = oracle.samkd_logit(
        [array(f) for f in module.adapters(student.feats)],
        [array(f) for f in teacher.feats],
        [array(z) for z in student.split(student.logits)],
        [array(z) for z in teacher.split(teacher.logits)],
        grids=(1, 2, 4),
        temperature=temperature,
        binary_share=share,
    )
    value = module.parts(student, teacher, random_targets(student))["logit"]
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_logit_part_agrees_with_the_oracle_over_levels() -> None:
    pair = random_pair(3)
    student, teacher = random_taps(pair, sizes=BIG)
    module = SAMKDLoss(pair, feature=0.0)
    expected = oracle.samkd_logit(
        [array(f) for f in module.adapters(student.feats)],
        [array(f) for f in teacher.feats],
        [array(z) for z in student.split(student.logits)],
        [array(z) for z in teacher.split(teacher.logits)],
        grids=(1, 2, 4),
        temperature=0.5,
    )
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(expected, rel=1e-5)


# Module ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("weight", ["soft", "binary"])
def test_module_is_made_of_the_formulas(align: bool, weight: Any) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=BIG)
    module = SAMKDLoss(pair, align=align, weight=weight, ratio=0.25)
    features, weights = [], []
    for i, adapted in enumerate(module.adapters(student.feats)):
        raw, grids = teacher.feats[i], ((1, 2, 4), (1, 2), (1,))[i]
        spatial = spatial_attention(raw, 0.5)
        channel = quantile_mask(channel_attention(raw, 0.5), 0.3)
        cells = [cell_mask(spatial, 0.25, grid) for grid in grids]
        given = (standardize(adapted), standardize(raw)) if align else (adapted, raw)
        features.append(pyramid_generation(*given, cells, channel, module.generators[i]))
        difference = discrepancy(standardize(adapted), standardize(raw), grids)
        weights.append((difference * spatial if weight == "soft" else largest_regions(difference, 0.25)).flatten(1))
    parts = module.parts(student, teacher, random_targets(student))
    torch.testing.assert_close(parts["feature"], sum(features) / 3)
    torch.testing.assert_close(parts["logit"], weighted_binary(student.logits, teacher.logits, torch.cat(weights, 1)))
    sum(parts.values()).backward()
    still = [name for name, p in module.named_parameters() if p.grad.abs().max() < 1e-6]
    assert not still, f"no gradient moves {still}"


def test_a_part_that_is_off_leaves_nothing_without_gradient() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=BIG)
    targets = random_targets(student)
    for options in ({"feature": 0.0}, {"logit": 0.0}, {"feature": 0.0, "align": False}):
        module = SAMKDLoss(pair, **options)
        module(student, teacher, targets).backward()
        still = [name for name, p in module.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
        assert not still, f"with {options} no gradient moves {still}"


def test_fitting_the_adapters_changes_neither_the_value_nor_the_students_gradient() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=BIG)
    targets = random_targets(student)
    torch.manual_seed(0)
    both = SAMKDLoss(pair)
    alone = SAMKDLoss(pair, feature=0.0)
    alone.adapters.load_state_dict(both.adapters.state_dict())
    alone_value = alone.parts(student, teacher, targets)["logit"]
    both_value = both.parts(student, teacher, targets)["logit"]
    assert alone_value.item() == pytest.approx(both_value.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(both_value, student.logits)
    alone_value.backward()
    torch.testing.assert_close(student.logits.grad, expected)
    assert all(feat.grad is None for feat in student.feats)


def test_logit_part_does_not_push_the_neck_through_its_weights() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=BIG)
    value = SAMKDLoss(pair).parts(student, teacher, random_targets(student))["logit"]
    grads = torch.autograd.grad(value, list(student.feats), allow_unused=True)
    assert all(grad is None for grad in grads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": 0.0, "logit": 0.0}, "samkd_feature=0.0 and samkd_logit=0.0"),
        ({"ratio": 1.1}, "samkd_ratio=1.1"),
        ({"channel_ratio": -0.1}, "samkd_channel_ratio=-0.1"),
        ({"temperature": 0.0}, "samkd_temperature=0.0"),
        ({"weight": "hard"}, "samkd_weight='hard'"),
        ({"grids": []}, "samkd_grids="),
        ({"grids": [0, 2]}, "samkd_grids="),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAMKDLoss(random_pair(), **options)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_at_their_ends_are_accepted(share: float) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=BIG)
    module = SAMKDLoss(pair, ratio=share, channel_ratio=share, align=False)
    masks = [module.masks(spatial_attention(f, 0.5), channel_attention(f, 0.5)) for f in teacher.feats]
    assert all((mask == 1 - share).all() for spatial, channel in masks for mask in (*spatial.values(), channel))
    assert torch.isfinite(module(student, teacher, random_targets(student)))


@pytest.mark.parametrize("part", ["feature", "logit"])
def test_each_part_overfits(part: str) -> None:
    other = {"feature": "logit", "logit": "feature"}[part]
    before, after = overfit(SAMKDLoss, **{other: 0.0})
    assert after < before / 2
