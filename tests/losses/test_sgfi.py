"""SGFI: level weights, known number, loop version, temperature, empty levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import regions as oracle
from yolokd.losses.sgfi import Embedding, SGFILoss, imitation_error, level_weights
from yolokd.ops.regions import propose

LARGE = [(36, 44), (18, 22), (9, 11)]  # an image of 288 x 352 pixels: regions on all three levels


class TestSGFI(LossContract):
    """The checklist."""

    loss = SGFILoss
    zero_at_identity = False  # levels are mixed, so the teacher's own level alone is not the mixture


class TestSGFIOfTheSameLevel(TestSGFI):
    """The checklist without soft matching."""

    zero_at_identity = True

    def make(self, pair, **options):
        return super().make(pair, **({"match": "same"} | options))


class TestSGFIWithFewRegions(TestSGFI):
    """The checklist where the regions do not use up the anchors."""

    def make(self, pair, **options):
        return super().make(pair, **({"regions": 6} | options))


def test_level_weights_sum_to_one_and_follow_the_matching_level() -> None:
    # Similarities 3, 0, -3 at temperature 1: exp(3) / (exp(3) + 1 + exp(-3)) = 20.0855 / 21.1353 = 0.950330
    teacher = torch.tensor([[3.0, 0.0]])
    student = torch.tensor([[[1.0, 5.0], [0.0, 5.0], [-1.0, 5.0]]])
    weights = level_weights(student, teacher, 1.0)
    assert weights.shape == (1, 3)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[0, 0].item() == pytest.approx(0.950330, rel=1e-5)
    assert level_weights(student, teacher, 100.0)[0, 0].item() == pytest.approx(1 / 3, abs=0.02)
    rolled = level_weights(student.roll(1, dims=1), teacher, 1.0)
    assert rolled.argmax().item() == 1


def test_level_weights_of_one_region_do_not_depend_on_the_others() -> None:
    student, teacher = torch.randn(4, 3, 5), torch.randn(4, 5)
    torch.testing.assert_close(level_weights(student, teacher, 1.0)[:1], level_weights(student[:1], teacher[:1], 1.0))


def test_imitation_error_known() -> None:
    # One region, two levels of constant value 2 and 6, weights 3/4 and 1/4: mixture 3; teacher 1: error 4.
    student = torch.stack((torch.full((2, 7, 7), 2.0), torch.full((2, 7, 7), 6.0)))[None]
    value = imitation_error(student, torch.ones(1, 2, 7, 7), torch.tensor([[0.75, 0.25]]), align=False)
    assert value.tolist() == pytest.approx([4.0])


def test_alignment_removes_scale_and_offset_per_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 3, 7, 7, generator=generator, dtype=torch.float64)
    scale, offset = torch.tensor([2.0, 0.1, 5.0]).view(1, 3, 1, 1), torch.tensor([1.0, -3.0, 0.0]).view(1, 3, 1, 1)
    student = (teacher * scale + offset)[:, None]
    weights = torch.ones(5, 1, dtype=torch.float64)
    assert imitation_error(student, teacher, weights).max().item() < 1e-6
    assert imitation_error(student, teacher, weights, align=False).min().item() > 0.1


@pytest.mark.parametrize("align", [True, False])
def test_gradcheck(align: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 2, 2, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 2, 2, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def value(student, keys, key, tau):
        return imitation_error(student, teacher, level_weights(keys, key, tau), align)

    assert torch.autograd.gradcheck(value, (student, keys, key, tau))


@pytest.mark.parametrize("align", [True, False])
def test_module_equals_the_loop_version(align: bool) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=LARGE, dtype=torch.float64)
    targets = random_targets(student)
    targets.boxes[0], targets.boxes[3] = torch.tensor([[0.0, 0, 352, 288], [9, 9, 190, 160]])  # one for each level
    module = SGFILoss(pair, regions=12, positives=0.5, embed=8, align=align).double().eval()
    module.logit_scale.data.fill_(-0.3)
    boxes, real = propose(student, targets, 12, 0.5, torch.Generator().manual_seed(pair.seed))
    assert bool(real.all())
    levels = {oracle.teacher_level(float(b[2] - b[0]), float(b[3] - b[1]), pair.strides) for b in boxes.flatten(0, 1)}
    assert levels == {0, 1, 2}

    def through(layer: nn.Module):
        return lambda region: layer(torch.from_numpy(region)[None])[0].detach().numpy()

    expected = oracle.sgfi(
        [f.detach().numpy() for f in student.feats],
        [f.numpy() for f in teacher.feats],
        boxes.flatten(0, 1).double().numpy(),
        np.repeat(np.arange(2), 12),
        pair.strides,
        [[through(conv) for conv in adapters] for adapters in module.adapters],
        [through(embedding) for embedding in module.embeddings],
        tau=0.01 + math.log1p(math.exp(-0.3)),
        align=align,
    )
    assert module(student, teacher, targets).item() == pytest.approx(expected, rel=1e-5)


def test_the_same_level_alone_by_hand() -> None:
    """By hand: levels of 2, 6 and 1 against a teacher of 1 on the finest level: (2 - 1)^2; soft mixes in others."""
    pair = random_pair(student_channels=(4, 4, 4), teacher_channels=(4, 4, 4))  # all regions lie on the finest level
    student, teacher = random_taps(pair)
    for feat, value in zip(student.feats, (2.0, 6.0, 1.0)):
        feat.data.fill_(value)
    for feat in teacher.feats:
        feat.fill_(1.0)
    module = SGFILoss(pair, regions=6, match="same", align=False)
    for adapter in module.adapters[0]:
        nn.init.dirac_(adapter.weight)
    assert module(student, teacher, random_targets(student)).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="sgfi_match='other' must be one of soft, same"):
        SGFILoss(pair, match="other")


def test_the_same_level_is_that_of_the_region() -> None:
    """A box over the image of 288 x 352 pixels lies on the third level, where the student has 4: (4 - 1)^2."""
    pair = random_pair(student_channels=(4, 4, 4), teacher_channels=(4, 4, 4))
    student, teacher = random_taps(pair, sizes=LARGE)
    for feat, value in zip(student.feats, (2.0, 6.0, 4.0)):
        feat.data.fill_(value)
    for feat in teacher.feats:
        feat.fill_(1.0)
    targets = random_targets(student, objects=1)
    targets.boxes[:] = torch.tensor([0.0, 0, 352, 288])
    module = SGFILoss(pair, regions=1, positives=1.0, match="same", align=False)
    for adapter in module.adapters[2]:
        nn.init.dirac_(adapter.weight)
    assert module(student, teacher, targets).item() == pytest.approx(9.0)


def test_rows_that_are_no_regions_do_not_thin_out_the_mean() -> None:
    """Four anchors and no object are four regions; each has the error (3 - 1)^2, and so has their mean."""
    pair = random_pair(levels=1, student_channels=(4,), teacher_channels=(4,))
    student, teacher = random_taps(pair, batch=1, sizes=[(2, 2)])
    student.feats[0].data.fill_(3.0)
    teacher.feats[0].fill_(1.0)
    module = SGFILoss(pair, regions=6, match="same", align=False)
    nn.init.dirac_(module.adapters[0][0].weight)
    assert module(student, teacher, random_targets(student, objects=0)).item() == pytest.approx(4.0)


def test_temperature_starts_at_one_stays_positive_and_does_not_decay() -> None:
    module = SGFILoss(random_pair())
    assert module.temperature().item() == 1
    for value in (-5.0, 0.4):  # the softplus of the first is below 0.01
        module.logit_scale.data.fill_(value)
        tau = module.temperature()
        assert tau.item() == pytest.approx(0.01 + math.log1p(math.exp(value)), rel=1e-6)
        (grad,) = torch.autograd.grad(tau, module.logit_scale)
        assert grad.item() == pytest.approx(1 / (1 + math.exp(-value)), rel=1e-6)
    module.logit_scale.data.fill_(-50.0)
    assert module.temperature().item() == pytest.approx(0.01)
    names = [name for name, p in module.named_parameters() if p.ndim == 1 and "bias" not in name]
    assert names == ["logit_scale"]


def test_embedding_takes_a_region_to_one_vector() -> None:
    assert Embedding(6, 16)(torch.zeros(3, 6, 7, 7)).shape == (3, 16)


def test_levels_without_regions_leave_zero_gradients() -> None:
    pair = random_pair()  # 96 x 128 pixels: every region lies on the finest level
    student, teacher = random_taps(pair)
    module = SGFILoss(pair, regions=6)
    module(student, teacher, random_targets(student)).backward()
    for level, (adapters, embedding) in enumerate(zip(module.adapters, module.embeddings)):
        for parameter in [*adapters.parameters(), *embedding.parameters()]:
            assert bool(torch.isfinite(parameter.grad).all())
            assert (parameter.grad.abs().sum() > 0) == (level == 0)
    assert all(feat.grad.abs().sum() > 0 for feat in student.feats)


def test_zero_at_identity_on_one_level() -> None:
    pair = random_pair(levels=1, student_channels=(6,), teacher_channels=(6,))
    _, teacher = random_taps(pair)
    module = SGFILoss(pair, regions=8)
    nn.init.dirac_(module.adapters[0][0].weight)
    assert module(leaves(teacher), teacher, random_targets(teacher)).item() == pytest.approx(0.0, abs=1e-10)


def test_overfits() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    module = SGFILoss(pair, regions=16)
    before, after = fit(module, leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
