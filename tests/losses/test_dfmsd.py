"""DFMSD: contract, known numbers, masks, enhancement and stages."""

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
from yolokd.losses.dfmsd import DFMSDLoss, dual_masked_generation, gap, high_pass, soft_mask
from yolokd.ops.adapters import standardize
from yolokd.ops.attention import channel_attention, quantile_mask, spatial_attention
from yolokd.taps import Taps


class TestDFMSD(LossContract):
    """The shared checklist."""

    loss = DFMSDLoss
    zero_at_identity = False  # generators are no identities


class TestDFMSDRandomMask(TestDFMSD):
    """The shared checklist with the mask that has a random state."""

    def fresh(self, pair: Any, init: int = 0, **options: Any) -> Any:
        return super().fresh(pair, init, **({"mask": "random"} | options))


def masks(student: Taps, teacher: Taps, stage: int = 0, staged: bool = False, **options: Any) -> list[torch.Tensor]:
    """Return both masks of the finest level."""
    torch.manual_seed(0)
    module = DFMSDLoss(random_pair(), **options)
    module.stage, module.staged = stage, staged
    adapted = standardize(module.adapters(student.feats)[0])
    return list(module.masks(teacher.feats[0], adapted, standardize(teacher.feats[0])))


# Formula --------------------------------------------------------------------------------------------------------------


def test_known_number() -> None:
    # M_s hides the second entry: 1 0 3 4; M_c hides nothing and G_c doubles: 2 4 6 8. The softmax of (ln 3, 0) is
    # (3/4, 1/4): 0.75 * (1 0 3 4) + 0.25 * (2 4 6 8) = 1.25 1 3.75 5. Minus 1 1 3 3: 0.25 0 0.75 2,
    # squares 0.0625 0 0.5625 4, mean 4.625 / 4
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    teacher = torch.tensor([[1.0, 1.0], [3.0, 3.0]]).view(1, 1, 2, 2)
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    fusion = torch.tensor([math.log(3), 0.0])
    value = dual_masked_generation(
        student, teacher, mask, torch.ones(1, 1, 1, 1), nn.Identity(), lambda x: 2 * x, fusion
    )
    assert value.item() == pytest.approx(4.625 / 4, rel=1e-6)


def test_identity_costs_nothing_without_masks() -> None:
    feature = torch.randn(2, 3, 4, 5)
    ones = torch.ones(2, 1, 4, 5), torch.ones(2, 3, 1, 1)
    value = dual_masked_generation(feature, feature, *ones, nn.Identity(), nn.Identity(), torch.tensor([0.3, -1.0]))
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_channel_mask_hides_whole_channels() -> None:
    # fusion leaves the channel branch alone: what is wrong is the hidden channel, 9 of a mean over two channels
    feature = torch.stack((torch.full((2, 2), 2.0), torch.full((2, 2), 3.0))).unsqueeze(0)
    mask = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    value = dual_masked_generation(
        feature, feature, torch.ones(1, 1, 2, 2), mask, nn.Identity(), nn.Identity(), torch.tensor([-200.0, 0.0])
    )
    assert value.item() == pytest.approx(4.5)


def test_gradient_of_the_formula() -> None:
    shapes = ((2, 2, 3, 2), (2, 2, 3, 3), (2, 2, 3, 3), (2,))
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    teacher = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    spatial = quantile_mask(spatial_attention(teacher, 0.5), 0.4)
    channel = quantile_mask(channel_attention(teacher, 0.5), 0.5)

    def term(s: torch.Tensor, a: torch.Tensor, b: torch.Tensor, fusion: torch.Tensor) -> torch.Tensor:
        blocks = [lambda x, w=w: nn.functional.conv2d(x, w, padding=1) for w in (a, b)]
        return dual_masked_generation(s, teacher, spatial, channel, *blocks, fusion)

    assert torch.autograd.gradcheck(term, given)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("enhance", ["none", "gain", "gap", "frequency"])
def test_module_is_the_mean_of_the_formula_over_levels(align: bool, enhance: Any) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = DFMSDLoss(pair, align=align, enhance=enhance)
    nn.init.normal_(module.fusion_bias)
    terms = []
    for i, adapted in enumerate(module.adapters(student.feats)):
        wanted = teacher.feats[i]
        adapted, wanted = (standardize(adapted), standardize(wanted)) if align else (adapted, wanted)
        both = module.masks(teacher.feats[i], adapted, wanted)
        blocks = module.spatial_generators[i], module.channel_generators[i]
        terms.append(dual_masked_generation(adapted, wanted, *both, *blocks, module.fusion_bias))
    value = module(student, teacher, random_targets(student))
    torch.testing.assert_close(value, sum(terms) / 3)
    value.backward()
    still = [name for name, p in module.named_parameters() if p.grad.abs().max() < 1e-6]
    assert not still, f"no gradient moves {still}"


def test_fusion_starts_even_and_does_not_decay() -> None:
    module = DFMSDLoss(random_pair())
    (name,) = [name for name, p in module.named_parameters() if p.ndim == 1 and p.shape == (2,)]
    assert "bias" in name and module.fusion_bias.softmax(0).tolist() == [0.5, 0.5]


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["high", "low", "random"])
@pytest.mark.parametrize("enhance", ["none", "gap", "frequency"])
def test_masked_shares_are_the_ratios(mask: Any, enhance: Any) -> None:
    student, teacher = random_taps(random_pair())
    spatial, channel = masks(student, teacher, mask=mask, enhance=enhance, spatial_ratio=0.3, channel_ratio=0.5)
    assert (spatial == 0).flatten(1).sum(1).tolist() == [round(0.3 * 12 * 16)] * 2
    assert (channel == 0).flatten(1).sum(1).tolist() == [3, 3]


def test_masks_fall_where_attention_is_high() -> None:
    student, teacher = random_taps(random_pair())
    strength = teacher.feats[0].abs()
    for mine, size in zip(masks(student, teacher, enhance="none"), (strength.mean(1), strength.mean((2, 3)))):
        for row, values in zip(mine.flatten(1), size.flatten(1)):
            assert values[row == 0].min() > values[row == 1].max()
    for mine, size in zip(
        masks(student, teacher, enhance="none", mask="low"), (strength.mean(1), strength.mean((2, 3)))
    ):
        for row, values in zip(mine.flatten(1), size.flatten(1)):
            assert values[row == 0].max() < values[row == 1].min()


def test_random_masks_change_from_step_to_step_in_training_only() -> None:
    _, teacher = random_taps(random_pair())
    module = DFMSDLoss(random_pair(), mask="random")
    given = teacher.feats[0], teacher.feats[0], teacher.feats[0]
    assert not torch.equal(module.masks(*given)[0], module.masks(*given)[0])
    module.eval()
    assert torch.equal(module.masks(*given)[0], module.masks(*given)[0])


# Enhancement and stages -----------------------------------------------------------------------------------------------


def test_gap_of_a_known_map() -> None:
    # |T - S| averaged over two channels: 1 3 0 4, mean 2
    teacher = torch.tensor([[[2.0, -2.0], [0.0, 8.0]], [[0.0, 4.0], [0.0, 0.0]]]).unsqueeze(0)
    expected = torch.tensor([[0.5, 1.5], [0.0, 2.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(gap(torch.zeros(1, 2, 2, 2), teacher), expected)
    assert gap(teacher, teacher).abs().max() == 0
    both = gap(torch.zeros(2, 2, 2, 2), torch.cat((teacher, 10 * teacher)))  # each image by its own mean
    torch.testing.assert_close(both, expected.expand(2, -1, -1, -1))


def test_high_pass_of_known_maps() -> None:
    # a constant has frequency 0 only, weight 1 - exp(0) = 0; a checkerboard has u = v = 1, weight 1 - exp(-2 / (2 r^2))
    assert high_pass(torch.full((1, 1, 4, 6), 3.0)).abs().max() < 1e-6
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 3).view(1, 1, 4, 6)
    torch.testing.assert_close(high_pass(board), board)
    torch.testing.assert_close(high_pass(board, radius=1.0), board * (1 - math.exp(-1)))
    # one wave over a width of 8 is v = 2/8, weight 1 - exp(-(1/16) / (2 * 0.01))
    wave = torch.cos(torch.arange(8) * math.pi / 4).expand(1, 2, 5, 8)
    torch.testing.assert_close(high_pass(wave), wave * (1 - math.exp(-1 / 0.32)))


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (4, 5), (3, 8)])
def test_high_pass_keeps_odd_sizes_under_autocast(size: tuple[int, int]) -> None:
    feature = torch.randn(2, 3, *size)
    with torch.autocast("cpu", torch.bfloat16):
        result = high_pass(feature.bfloat16())
    assert result.shape == feature.shape and result.dtype == torch.float32
    torch.testing.assert_close(result, high_pass(feature.bfloat16().float()))


def test_soft_mask_of_known_attention() -> None:
    attention = torch.tensor([0.5, 1.0, 1.25, 3.0])
    assert soft_mask(attention, 2.0).tolist() == [1, 1, 0.5, 0]
    assert soft_mask(attention, 1.0, "low").tolist() == [0.5, 1, 1, 1]


def test_gap_masks_more_of_what_the_student_misses() -> None:
    student, teacher = random_taps(random_pair())
    torch.manual_seed(0)
    adapted = standardize(DFMSDLoss(random_pair()).adapters(student.feats)[0])
    missing = gap(adapted, standardize(teacher.feats[0]))
    plain, _ = masks(student, teacher, enhance="none")
    enhanced, _ = masks(student, teacher, enhance="gap", gamma=5.0)
    assert missing[enhanced == 0].mean() > missing[plain == 0].mean() + 0.05
    expected = quantile_mask(spatial_attention(teacher.feats[0], 0.5) * (1 + 5 * missing), 0.4)
    assert torch.equal(enhanced, expected)


def test_frequency_takes_attention_from_the_sharpened_map() -> None:
    student, teacher = random_taps(random_pair())
    sharpened = teacher.feats[0] + 2 * high_pass(teacher.feats[0])
    spatial, channel = masks(student, teacher, enhance="frequency", gamma=2.0)
    assert torch.equal(spatial, quantile_mask(spatial_attention(sharpened, 0.5), 0.4))
    assert torch.equal(channel, quantile_mask(channel_attention(sharpened, 0.5), 0.3))


@pytest.mark.parametrize(("staged", "stage", "beta"), [(True, 0, 1.0), (True, 1, 2.0), (False, 0, 2.0)])
def test_gain_steepens_a_soft_mask(staged: bool, stage: int, beta: float) -> None:
    student, teacher = random_taps(random_pair())
    spatial, channel = masks(student, teacher, stage, staged, enhance="gain", gamma=1.0)
    torch.testing.assert_close(spatial, 1 - (beta * (spatial_attention(teacher.feats[0], 0.5) - 1)).clamp(0, 1))
    torch.testing.assert_close(channel, 1 - (beta * (channel_attention(teacher.feats[0], 0.5) - 1)).clamp(0, 1))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gain_weakens_low_attention_where_low_entries_are_masked(temperature: float) -> None:
    student, teacher = random_taps(random_pair())
    both = masks(student, teacher, enhance="gain", gamma=1.0, mask="low", temperature=temperature)
    attentions = [attention(teacher.feats[0], temperature) for attention in (spatial_attention, channel_attention)]
    for found, attention in zip(both, attentions):
        torch.testing.assert_close(found, 1 - (2 * (1 - attention)).clamp(0, 1))


@pytest.mark.parametrize("enhance", ["gain", "gap", "frequency"])
def test_random_masks_ignore_the_enhancement(enhance: Any) -> None:
    student, teacher = random_taps(random_pair())
    plain, enhanced = (masks(student, teacher, mask="random", enhance=name) for name in ("none", enhance))
    assert all(torch.equal(mine, other) for mine, other in zip(plain, enhanced))


@pytest.mark.parametrize("enhance", ["gap", "frequency"])
def test_enhancement_waits_for_the_second_stage(enhance: Any) -> None:
    student, teacher = random_taps(random_pair())
    plain, first, second, unstaged, off = (
        masks(student, teacher, **options)[0]
        for options in (
            {"enhance": "none"},
            {"enhance": enhance, "staged": True, "stage": 0},
            {"enhance": enhance, "staged": True, "stage": 1},
            {"enhance": enhance},
            {"enhance": enhance, "gamma": 0.0},
        )
    )
    assert torch.equal(plain, first) and torch.equal(plain, off)
    assert not torch.equal(plain, second) and torch.equal(second, unstaged)


# Oracle ---------------------------------------------------------------------------------------------------------------


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64."""
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(
    ("enhance", "mask"),
    [("none", "high"), ("none", "low"), ("gain", "high"), ("gap", "high"), ("gap", "low"), ("frequency", "high")],
)
def test_agrees_with_the_oracle(align: bool, enhance: Any, mask: Any) -> None:
    pair = random_pair(2)
    student, teacher = random_taps(pair, sizes=[(6, 7), (3, 4)])
    module = DFMSDLoss(pair, align=align, enhance=enhance, mask=mask, gamma=1.5)
    nn.init.normal_(module.fusion_bias)
    total = 0.0
    for i, adapted in enumerate(map(array, module.adapters(student.feats))):
        raw = array(teacher.feats[i])
        sharpened = oracle.high_pass(raw, 1.5) if enhance == "frequency" else raw
        spatial = oracle.spatial_attention(sharpened, 0.5)
        channel = oracle.channel_attention(sharpened, 0.5)
        if enhance == "gap":
            aligned = (oracle.standardize(adapted), oracle.standardize(raw)) if align else (adapted, raw)
            spatial = oracle.gap_attention(spatial, *aligned, gamma=1.5)
        if enhance == "gain":
            both = oracle.soft_mask(spatial, 2.5), oracle.soft_mask(channel, 2.5)
        else:
            both = oracle.top_mask(spatial, 0.4, mask), oracle.top_mask(channel, 0.3, mask)
        blocks = [
            tuple(array(p) for p in block.parameters())
            for block in (module.spatial_generators[i], module.channel_generators[i])
        ]
        total += oracle.dfmsd_level(adapted, raw, *both, *blocks, array(module.fusion_bias), align) / 2
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "middle"}, "dfmsd_mask='middle'"),
        ({"enhance": "fft"}, "dfmsd_enhance='fft'"),
        ({"spatial_ratio": 1.2}, "dfmsd_spatial_ratio=1.2"),
        ({"channel_ratio": -0.1}, "dfmsd_channel_ratio=-0.1"),
        ({"temperature": 0.0}, "dfmsd_temperature=0.0"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DFMSDLoss(random_pair(), **options)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_at_their_ends_are_accepted(share: float) -> None:
    student, teacher = random_taps(random_pair())
    both = masks(student, teacher, spatial_ratio=share, channel_ratio=share)
    assert all((mask == 1 - share).all() for mask in both)


def test_overfits() -> None:
    before, after = overfit(DFMSDLoss)
    assert after < before / 2
