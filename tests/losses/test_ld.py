"""LD: known number, loop version, heads that do not fit."""

from __future__ import annotations

import math

import pytest
import torch

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import logits as oracle
from yolokd.errors import UserError
from yolokd.losses.ld import LDLoss
from yolokd.ops.anchors import bin_divergence
from yolokd.taps import Taps, Targets


class TestLD(LossContract):
    """The checklist."""

    loss = LDLoss
    reads = ("boxes",)


def test_known_number() -> None:
    # Two bins, T = 2. First anchor: teacher (2 ln 3, 0) on each side -> p = (3/4, 1/4), student (0, 0) -> 1/2, 1/2:
    # KL = 0.130812, times T^2 = 4, mean over two bins: 0.261624, on all four sides. Second anchor: 0. Third: negative.
    # Weights sigma(ln 3) = 3/4 and sigma(-ln 3) = 1/4: 0.75 * 0.261624 / 1 = 0.196218.
    pair = random_pair(levels=1, num_classes=1, student_reg_max=2, teacher_reg_max=2)
    feats = [torch.zeros(1, 4, 1, 3)]
    side = torch.tensor([2 * math.log(3), 0.0])
    student = Taps(feats, (8,), torch.zeros(1, 3, 1), torch.zeros(1, 3, 8, requires_grad=True))
    boxes = torch.stack((side.repeat(4), torch.zeros(8), side.repeat(4)))[None]
    logits = torch.tensor([math.log(3), -math.log(3), 5.0]).view(1, 3, 1)
    positives = torch.tensor([[True, True, False]])
    empty = torch.zeros(0, dtype=torch.int64)
    targets = Targets(torch.zeros(0, 4), empty, empty, positives, positives.float())
    value = LDLoss(pair, temperature=2.0)(student, Taps(feats, (8,), logits, boxes), targets)
    assert value.item() == pytest.approx(0.196218, rel=1e-5)


def test_module_equals_the_loop_version() -> None:
    pair = random_pair(student_reg_max=8, teacher_reg_max=8)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    mask = targets.positives
    ours, theirs = (taps.boxes.detach()[mask].view(-1, 4, 8).numpy() for taps in (student, teacher))
    weights = teacher.logits[mask].amax(-1).sigmoid().numpy()
    value = LDLoss(pair)(student, teacher, targets).item()
    assert value == pytest.approx(oracle.ld(ours, theirs, weights, 10.0), rel=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_gradcheck(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4 * 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: bin_divergence(s, teacher, temperature), student.requires_grad_())


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (1, 16, r"the student predicts plain distances \(reg_max=1"),
        (16, 1, r"the teacher predicts plain distances \(reg_max=1"),
        (16, 8, "the student has reg_max=16 and the teacher reg_max=8"),
    ],
)
def test_heads_that_do_not_fit(student: int, teacher: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LDLoss(random_pair(student_reg_max=student, teacher_reg_max=teacher))


def test_no_positives_is_a_connected_zero() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    value = LDLoss(pair)(student, teacher, random_targets(student, objects=0))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.boxes.grad, torch.zeros_like(student.boxes))


def test_overfits() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    before, after = fit(LDLoss(pair), leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
