"""BCKD: known number, loop version, which anchors count, plain distances and reversed boxes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import generalized_box_iou_loss

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import logits as oracle
from yolokd.errors import UserError
from yolokd.losses.bckd import BCKDLoss, score_difference
from yolokd.ops.anchors import overlap_distance
from yolokd.taps import Taps, Targets


class TestBCKD(LossContract):
    """The checklist."""

    loss = BCKDLoss
    reads = ("logits", "boxes")


def test_known_number() -> None:
    # Two cells of stride 8, plain distances, one class; the first cell is positive, both have the same output.
    # Student box (0, 0, 8, 8), teacher box (0, 0, 6, 8): IoU = 48 / 64 = hull ratio 1, so 1 - GIoU = 1/4.
    # Student 0 -> 1/2, teacher ln 3 -> 3/4: difference 1/4, BCE = ln 2.
    # class: 2 anchors * ln 2 * 1/4 / 1 positive = 0.346574; box: 1/4 * 1/4 / 1 = 0.0625.
    pair = random_pair(levels=1, num_classes=1, student_reg_max=1, teacher_reg_max=1)
    feats = [torch.zeros(1, 4, 1, 2)]
    student = Taps(feats, (8,), torch.zeros(1, 2, 1), torch.full((1, 2, 4), 0.5))
    boxes = torch.tensor([0.5, 0.5, 0.25, 0.5]).expand(1, 2, 4)
    teacher = Taps(feats, (8,), torch.full((1, 2, 1), math.log(3)), boxes)
    empty = torch.zeros(0, dtype=torch.int64)
    positives = torch.tensor([[True, False]])
    targets = Targets(torch.zeros(0, 4), empty, empty, positives, positives.float())
    parts = BCKDLoss(pair).parts(student, teacher, targets)
    assert parts["cls"].item() == pytest.approx(0.346574, rel=1e-5)
    assert parts["box"].item() == pytest.approx(0.0625, rel=1e-5)


@pytest.mark.parametrize("reg_max", [1, 16])
def test_module_equals_the_loop_version(reg_max: int) -> None:
    pair = random_pair(student_reg_max=reg_max, teacher_reg_max=16)
    student, teacher = random_taps(pair)
    student = Taps(student.feats, student.strides, student.logits, student.boxes.detach().abs().requires_grad_())
    targets = random_targets(student)
    parts = BCKDLoss(pair, beta=2.0).parts(student, teacher, targets)
    mask, count = targets.positives, int(targets.positives.sum())
    ours, theirs = student.logits.detach().double(), teacher.logits.double()
    assert parts["cls"].item() == pytest.approx(oracle.binary(ours.numpy(), theirs.numpy(), 2.0, count), rel=1e-4)
    boxes = [taps.decoded().detach()[mask].double().numpy() for taps in (student, teacher)]
    expected = oracle.bckd_box(*boxes, ours[mask].numpy(), theirs[mask].numpy(), count)
    assert parts["box"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reg_max", [1, 16])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_the_box_part_is_that_of_all_anchors_times_the_mask(reg_max: int, half: torch.dtype | None) -> None:
    pair = random_pair(student_reg_max=reg_max)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    targets.positives[1] = False  # an image without objects
    weights = score_difference(student.logits, teacher.logits) * targets.positives
    distances = overlap_distance(student.decoded(), teacher.decoded())
    expected = (weights * distances).sum() / targets.positives.sum()
    (wanted,) = torch.autograd.grad(expected, student.boxes)
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        found = BCKDLoss(pair, cls=0.0).parts(student, teacher, targets)["box"]
    (grad,) = torch.autograd.grad(found, student.boxes)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-9)
    assert bool(grad[0].any()) and not grad[1].any() and not grad[~targets.positives].any()


def test_without_positives_the_box_part_is_a_zero_with_a_graph() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    targets = random_targets(student, objects=0)
    value = BCKDLoss(pair, cls=0.0).parts(student, teacher, targets)["box"]
    value.backward()
    assert value.item() == 0 and student.boxes.grad is not None and not student.boxes.grad.any()


class Calls(TorchDispatchMode):
    """Counts operators, and refuses masks as indices, which are read back to the host each time."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = [item for arg in args if isinstance(arg, list) for item in arg if torch.is_tensor(item)]
        assert not any(item.dtype == torch.bool for item in indices), f"{func} takes a mask"
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_reads_back_to_the_host_once() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    targets = random_targets(student)
    with Calls() as calls:
        BCKDLoss(pair)(student, teacher, targets).backward()
    assert calls.names["nonzero"] == 1 and not calls.names["_local_scalar_dense"]
    with pytest.raises(AssertionError, match="takes a mask"), Calls():
        student.boxes[targets.positives]


def test_gradcheck_of_the_overlap() -> None:
    student = torch.tensor([[0.0, 0.0, 4.0, 5.0], [3.0, 3.0, 9.0, 8.0], [20.0, 20.0, 22.0, 23.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 1.0, 6.0, 4.0], [2.0, 1.0, 7.0, 9.0], [1.0, 1.0, 3.0, 4.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: overlap_distance(s, teacher), student.requires_grad_())


def test_the_overlap_has_the_values_and_gradients_of_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(2, 200, 4, generator=generator, dtype=torch.float64).mul(50)
    corners = [torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1), dim=1) for boxes in (student, teacher)]
    ours, theirs = (corners[0].clone().requires_grad_() for _ in range(2))
    found, expected = overlap_distance(ours, corners[1]), generalized_box_iou_loss(theirs, corners[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    (found.sum() + expected.sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_the_box_part_sends_no_gradient_to_the_logits() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    BCKDLoss(pair, cls=0.0)(student, teacher, random_targets(student)).backward()
    assert student.logits.grad is None
    assert student.boxes.grad.abs().sum() > 0


def test_reversed_student_boxes_are_far_from_any_proper_one() -> None:
    teacher = torch.tensor([[2.0, 2.0, 6.0, 8.0]])
    student = torch.tensor([[6.0, 8.0, 2.0, 2.0], [6.0, 2.0, 2.0, 8.0]], requires_grad=True)
    value = overlap_distance(student, teacher.expand(2, 4))
    value.sum().backward()
    assert bool((value >= 1).all())  # the hull is the teacher's box, or larger
    assert bool(torch.isfinite(student.grad).all())


def test_boxes_without_an_area_have_a_distance_and_a_gradient() -> None:
    # Equal points: nothing is shared and the hull has no room beside them, 1. A point 2 and 3 away: the hull is 2 * 3,
    # all of it beside them, 2.
    point = torch.tensor([[4.0, 5.0, 4.0, 5.0]])
    student = torch.tensor([[4.0, 5.0, 4.0, 5.0], [6.0, 8.0, 6.0, 8.0]], requires_grad=True)
    value = overlap_distance(student, point.expand(2, 4))
    assert value.tolist() == pytest.approx([1.0, 2.0])
    value.sum().backward()
    assert bool(torch.isfinite(student.grad).all())


def test_nothing_to_distil_is_refused() -> None:
    with pytest.raises(UserError, match="bckd_cls=0 and bckd_box=0"):
        BCKDLoss(random_pair(), cls=0.0, box=0.0)


@pytest.mark.parametrize("gains", [{"cls": 0.0}, {"box": 0.0}], ids=["box", "cls"])
def test_overfits(gains: dict) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    before, after = fit(BCKDLoss(pair, **gains), leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
