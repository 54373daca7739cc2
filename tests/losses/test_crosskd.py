"""CrossKD: channel statistics, known number, loop version on linear towers, plain distances, missing towers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from tests.loss_contract import LossContract, RandomTowers, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import logits as oracle
from yolokd.errors import UserError
from yolokd.losses.crosskd import CrossKDLoss, restyle
from yolokd.taps import Pair, Taps, Targets


class TestCrossKD(LossContract):
    """The checklist."""

    loss = CrossKDLoss
    autocast_rtol = 0.15


def test_restyle_takes_on_the_channel_statistics() -> None:
    generator = torch.Generator().manual_seed(0)
    feature, reference = torch.randn(3, 4, 5, 6, generator=generator), 3 + 2 * torch.randn(3, 4, 7, 7)
    styled = restyle(feature, reference)
    for c in range(4):
        assert styled[:, c].mean().item() == pytest.approx(reference[:, c].mean().item(), abs=1e-5)
        assert styled[:, c].std(correction=0).item() == pytest.approx(
            reference[:, c].std(correction=0).item(), rel=1e-4
        )
        assert np.corrcoef(styled[:, c].flatten(), feature[:, c].flatten())[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_restyle_of_the_reference_changes_nothing_and_keeps_its_dtype() -> None:
    reference = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(restyle(reference, reference), reference, rtol=1e-4, atol=1e-4)
    assert restyle(reference, reference.bfloat16()).dtype == torch.bfloat16


def test_gradcheck_of_restyle() -> None:
    generator = torch.Generator().manual_seed(0)
    feature, reference = torch.randn(2, 2, 2, 3, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: restyle(f, reference), feature.requires_grad_())


def test_known_number() -> None:
    # One channel, two cells, identity adapter. Teacher map (0, 2) has mean 1, deviation 1; student map (5, 3) is
    # (1, -1) standardised and (2, 0) in the teacher's statistics. Towers: logit = ln 3 * x / 2, distances x + 1.
    # class: cross logits (ln 3, 0), teacher's (0, ln 3), probabilities 3/4 and 1/2. First cell: BCE(ln 3, 1/2) =
    #   ln 3 / 2 + ln(4/3) = 0.836988, second BCE(0, 3/4) = 0.693147; differences 1/4: 0.382534, one positive.
    # box: in cell units from the same centre, student 3 and 1, teacher 1 and 3: boxes of side 6 and 2, one inside the
    #   other: GIoU = IoU = 4 / 36, distance 8/9 in both cells, whatever the weights.
    pair = Pair((1,), (1,), (8,), num_classes=1, student_reg_max=1, teacher_reg_max=1)
    ours, theirs = torch.tensor([5.0, 3.0]).view(1, 1, 1, 2), torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)

    def towers(feats: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x = feats[0].view(1, 2, 1)
        return math.log(3) * x / 2, (x + 1).expand(1, 2, 4)

    teacher = Taps([theirs], (8,), *towers([theirs]), towers)
    empty = torch.zeros(0, dtype=torch.int64)
    positives = torch.tensor([[True, False]])
    targets = Targets(torch.zeros(0, 4), empty, empty, positives, positives.float())
    module = CrossKDLoss(pair)
    torch.nn.init.ones_(module.adapters[0].weight)
    parts = module.parts(Taps([ours], (8,)), teacher, targets)
    assert parts["cls"].item() == pytest.approx(0.382534, rel=1e-4)
    assert parts["box"].item() == pytest.approx(8 / 9, rel=1e-4)


def test_module_equals_the_loop_version() -> None:
    pair = random_pair(teacher_reg_max=6)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    module = CrossKDLoss(pair, beta=2.0).double()
    parts = module.parts(student, teacher, targets)
    maps = []
    for conv, feat, goal in zip(module.adapters, student.feats, teacher.feats):
        adapted = np.einsum("ts,bshw->bthw", conv.weight.detach().numpy()[..., 0, 0], feat.detach().numpy())
        axes = {"axis": (0, 2, 3), "keepdims": True}
        adapted = (adapted - adapted.mean(**axes)) / adapted.std(**axes)
        maps.append(torch.from_numpy(adapted * goal.numpy().std(**axes) + goal.numpy().mean(**axes)))
    logits, boxes = teacher.towers(maps)
    count = int(targets.positives.sum())
    expected = oracle.crosskd_class(logits.numpy(), teacher.logits.numpy(), 2.0, count)
    assert parts["cls"].item() == pytest.approx(expected, rel=1e-4)
    weights = teacher.logits.amax(-1).sigmoid().flatten().numpy()
    expected = oracle.crosskd_box(boxes.reshape(-1, 4, 6).numpy(), teacher.boxes.reshape(-1, 4, 6).numpy(), weights)
    assert parts["box"].item() == pytest.approx(expected, rel=1e-4)


def test_plain_distances_are_compared_as_boxes_on_any_number_of_anchors() -> None:
    pair = random_pair(levels=1, teacher_reg_max=1)
    student, teacher = random_taps(pair)
    linear = teacher.towers

    def towers(feats: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, boxes = linear(feats)
        return logits, boxes.abs() + 0.1  # proper boxes

    teacher = dataclasses.replace(teacher, boxes=teacher.boxes.abs() + 0.1, towers=towers)
    module = CrossKDLoss(pair)
    _, boxes = towers([restyle(module.adapters(student.feats)[0], teacher.feats[0])])
    points, _ = teacher.anchors()

    def corners(distances: torch.Tensor) -> torch.Tensor:
        return torch.cat((points - 8 * distances[..., :2], points + 8 * distances[..., 2:]), dim=-1).flatten(0, 1)

    distance = 1 - generalized_box_iou(corners(boxes), corners(teacher.boxes)).diagonal()
    weights = teacher.logits.sigmoid().amax(-1).flatten()
    expected = (weights * distance).sum() / weights.sum()
    torch.testing.assert_close(module.parts(student, teacher, random_targets(student))["box"], expected)


def test_student_head_gets_nothing_and_towers_stay_frozen() -> None:
    pair = random_pair(student_reg_max=1)  # the student's own head plays no part
    student, teacher = random_taps(pair)
    towers = RandomTowers(pair, torch.Generator().manual_seed(9))
    logits, boxes = towers(teacher.feats)
    teacher = dataclasses.replace(teacher, logits=logits, boxes=boxes, towers=towers)
    CrossKDLoss(pair)(student, teacher, random_targets(student)).backward()
    assert student.logits.grad is None and student.boxes.grad is None
    assert all(feat.grad.abs().sum() > 0 for feat in student.feats)
    assert all(weight.grad is None for weight in towers.class_weights + towers.box_weights)


def test_missing_towers_and_nothing_to_distil_are_refused() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    teacher = dataclasses.replace(teacher, towers=None)
    with pytest.raises(UserError, match="this teacher offers none"):
        CrossKDLoss(pair)(student, teacher, random_targets(student))
    with pytest.raises(UserError, match="crosskd_cls=0 and crosskd_box=0"):
        CrossKDLoss(pair, cls=0.0, box=0.0)


@pytest.mark.parametrize("gains", [{"cls": 0.0}, {"box": 0.0}], ids=["box", "cls"])
def test_overfits(gains: dict) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    before, after = fit(CrossKDLoss(pair, **gains), leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
