"""Plain softmax distillation: known number, loop version, relation to PCD, one class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import logits as oracle
from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.losses.softkd import SoftKDLoss, softmax_divergence
from yolokd.taps import Pair


class TestSoftKD(LossContract):
    """The checklist."""

    loss = SoftKDLoss
    reads = ("logits",)

    def make(self, pair: Pair, **options: float) -> DistillLoss:
        if pair.num_classes == 1:
            assume(False)  # refused, see below; only the test of many shapes asks for it
        return super().make(pair, **options)


def test_known_number() -> None:
    # T = 2, teacher (2 ln 3, 0) -> p = (3/4, 1/4), student (0, 0) -> q = (1/2, 1/2):
    # KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.130812, times T^2 = 4: 0.523248
    value = softmax_divergence(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), temperature=2.0)
    assert value.item() == pytest.approx(0.523248, rel=1e-5)


def test_module_equals_the_loop_version() -> None:
    pair = random_pair(num_classes=6)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    theirs = teacher.logits.numpy() - 2
    weights = oracle.pcd_anchor_weights(targets.positives.numpy(), theirs, 0.3)
    used = weights > 0
    assert 0 < used.sum() < used.size
    expected = oracle.softkd(student.logits.detach().numpy()[used], theirs[used], weights[used], 4.0)
    teacher = type(teacher)(feats=teacher.feats, strides=teacher.strides, logits=torch.from_numpy(theirs))
    assert SoftKDLoss(pair)(student, teacher, targets).item() == pytest.approx(expected, rel=1e-8)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: softmax_divergence(s, teacher, 4.0), student.requires_grad_())


def test_adding_a_constant_to_all_classes_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(softmax_divergence(student + 7, teacher, 4.0), softmax_divergence(student, teacher, 4.0))


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to distil with one class"):
        SoftKDLoss(random_pair(num_classes=1))


def test_overfits() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    before, after = fit(SoftKDLoss(pair), leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
