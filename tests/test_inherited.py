"""Students that start from a selection of their teacher's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import IMGSZ, tiny_model
from tests.widening import CLASSES, raw, widened
from yolokd.students.channels import ChannelFlow, Slice, channel_flow, matching
from yolokd.students.inherited import same_family, select_weights


@pytest.mark.parametrize("scale", ["yolov8s", "yolov8l"])
def test_a_widened_and_deepened_student_is_found_again(scale: str) -> None:
    """A teacher that is the student with each channel several times gives back the student's very function.

    yolov8s has twice the channels except in some layers, yolov8l four times, but twice at stride 32, and more blocks.
    """
    image = torch.rand(2, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0)).double()
    original, student = tiny_model(seed=1).double(), tiny_model(seed=3).double()
    teacher = widened(original, tiny_model(scale, seed=2).double())
    torch.testing.assert_close(raw(teacher, image), raw(original, image), rtol=1e-5, atol=1e-5)
    assert (raw(student, image) - raw(original, image)).abs().max() > 1e-2
    assert select_weights(student, teacher, CLASSES) == 1.0
    torch.testing.assert_close(raw(student, image), raw(original, image), rtol=1e-5, atol=1e-5)


def test_origins_of_joined_and_cut_maps_by_hand() -> None:
    """Four channels of one layer and two of another; what is neither joined, cut nor kept is unknown."""
    a, b = (Slice("a", 0, 4, 4),), (Slice("b", 0, 2, 2),)
    flow, left, right, foreign = ChannelFlow(), *(torch.zeros(1, count, 2, 2) for count in (4, 2, 3))
    flow.put(left, a)
    flow.put(right, b)
    with flow:
        joined = torch.cat((left, right), 1)
        assert flow.of(joined) == flow.of(torch.concat((left, right), dim=-3)) == flow.of(F.silu(joined)) == a + b
        across = [flow.of(part) for part in joined.split((3, 3), 1)]
        assert across == [(Slice("a", 0, 3, 4),), (Slice("a", 3, 4, 4), *b)]
        assert [flow.of(part) for part in joined.split((4, 2), 1)] == [a, b]
        thirds = [flow.of(part) for part in torch.cat((right, left), 1).chunk(3, 1)]
        assert thirds == [b, (Slice("a", 0, 2, 4),), (Slice("a", 2, 4, 4),)]
        unknown = [torch.cat((left, foreign), 1), torch.cat((left, left), 2), joined.mean(1, True), joined.flatten(1)]
        assert [flow.of(value) for value in unknown] == [None] * 4


def test_a_depthwise_convolution_hands_channels_on() -> None:
    inputs = channel_flow(tiny_model("yolo11n", trained=False)).inputs
    first, second = (inputs[f"model.23.cv3.1.0.{place}.conv"] for place in (0, 1))
    assert first == second


def test_channels_of_a_joined_input_by_hand() -> None:
    """Two of four channels of one layer, then one of three of another that begins at 4; unknown origins: evenly."""

    def by_hand(own: Any, theirs: Any, wanted: int, available: int) -> tuple[list[int], list[float]]:
        columns, ratios = matching(own, theirs, wanted, available)
        return columns.tolist(), ratios.tolist()

    own = (Slice("a", 0, 2, 2), Slice("b", 0, 1, 1))
    theirs = (Slice("a", 0, 4, 4), Slice("b", 0, 3, 3))
    assert by_hand(own, theirs, 3, 7) == ([0, 2, 4], [2, 2, 3])
    assert by_hand(own, (Slice("b", 0, 3, 3), Slice("a", 0, 4, 4)), 3, 7) == ([3, 5, 0], [2, 2, 3])
    evenly_spaced = ([0, 2, 4], [pytest.approx(7 / 3)] * 3)
    assert by_hand(None, theirs, 3, 7) == evenly_spaced
    assert by_hand(own, (Slice("a", 0, 7, 7),), 3, 7) == evenly_spaced  # b is not there
    first_half = (Slice("a", 0, 2, 4),)  # what is wanted, channels 0 and 2, is not all in it
    assert by_hand((Slice("a", 0, 2, 2),), first_half, 2, 2) == ([0, 1], [1, 1])
    halves = (Slice("a", 0, 1, 2), Slice("a", 1, 2, 2))
    deeper = (Slice("a", 0, 3, 6), Slice("a", 3, 6, 6), Slice("m", 0, 3, 3))
    assert by_hand(halves, deeper, 2, 9) == ([0, 3], [3, 3])


def test_class_rows_follow_the_names() -> None:
    """Matched classes take the teacher's rows, others keep their own."""
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    before = student.model[-1].cv3[0][-1].bias.detach().clone()
    select_weights(student, teacher, {0: 2, 2: 1})
    theirs = teacher.model[-1].cv3[0][-1].bias
    after = student.model[-1].cv3[0][-1].bias
    assert after.tolist() == [theirs[2].item(), before[1].item(), theirs[1].item()]


def test_other_numbers_of_classes() -> None:
    """A teacher of more or fewer classes gives the rows of those that both have; with none in common, no row."""
    student = tiny_model(seed=1)
    before = student.model[-1].cv3[0][-1].weight.detach().clone()
    select_weights(student, tiny_model("yolov8s", seed=2), {})
    assert torch.equal(before, student.model[-1].cv3[0][-1].weight)
    for names, classes in ((("a", "b", "c", "d", "square"), {1: 4}), (("square",), {1: 0})):
        student, teacher = tiny_model(seed=1), tiny_model("yolov8s", names=names, seed=2)
        assert select_weights(student, teacher, classes) > 0.99
        own, theirs = student.model[-1].cv3[1][-1], teacher.model[-1].cv3[1][-1]
        assert own.bias[1] == theirs.bias[classes[1]] and own.bias[0] != theirs.bias[0]


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("yolov5n", "yolov5s"),
        ("yolov8n", "yolov8x"),
        ("yolo11n", "yolo11m"),
        ("yolo26n", "yolo26s"),
        pytest.param("yolov9t", "yolov9s", marks=pytest.mark.slow),
        pytest.param("yolo12n", "yolo12l", marks=pytest.mark.slow),
        pytest.param("yolov8n-p2", "yolov8s-p2", marks=pytest.mark.slow),
    ],
)
def test_families(student: str, teacher: str) -> None:
    """In every family nearly all weights are taken, almost every origin is known, and the models are left clean."""
    small, large = tiny_model(student, trained=False), tiny_model(teacher, trained=False, seed=5)
    assert same_family(small, large)
    large.train()
    state = {key: value.clone() for key, value in large.state_dict().items()}
    flow = channel_flow(small).inputs
    convs = [name for name, module in small.named_modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    assert len([name for name in convs if name in flow]) > 0.85 * len(convs)
    assert select_weights(small, large, CLASSES) > 0.95
    assert all(torch.equal(state[key], value) for key, value in large.state_dict().items())
    assert all(module.training for module in large.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    assert torch.isfinite(raw(small, torch.rand(1, 3, IMGSZ, IMGSZ))).all()


def test_where_the_teacher_is_narrower_nothing_changes() -> None:
    """What does not fit keeps its weights, and the statistics behind it."""
    student, teacher = tiny_model("yolov8s", seed=1), tiny_model("yolov8n", seed=2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    theirs = teacher.state_dict()
    share = select_weights(student, teacher, CLASSES)
    narrower = [key for key, value in before.items() if any(a < b for a, b in zip(theirs[key].shape, value.shape))]
    assert 0 < share < 0.5 and any(key.endswith("running_var") for key in narrower)
    assert all(torch.equal(before[key], student.state_dict()[key]) for key in narrower)
