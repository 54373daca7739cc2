"""What a teacher sees of the student's images: sizes and channels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.tiny import tiny_batch, tiny_criterion, tiny_model
from yolokd.errors import UserError
from yolokd.models import input_channels
from yolokd.outputs import read_output
from yolokd.teachers.images import LUMINANCE, Sight, channel_plan
from yolokd.teachers.shown import as_shown


@pytest.mark.parametrize(
    ("ratio", "multiple", "given", "expected"),
    [
        (1.0, 32, (64, 96), (64, 96)),
        (2.0, 32, (64, 96), (128, 192)),
        (1.5, 32, (64, 96), (96, 128)),  # 144 is half-way between 128 and 160: the even multiple
        (0.5, 32, (96, 32), (64, 32)),  # 48 is half-way as well; never less than one multiple
        (1.0, 64, (96, 160), (128, 128)),
        (4 / 3, 32, (96, 96), (128, 128)),
    ],
)
def test_sizes_keep_the_aspect_to_multiples(
    ratio: float, multiple: int, given: tuple[int, int], expected: tuple[int, int]
) -> None:
    sight = Sight(ratio=ratio, multiple=multiple)
    assert sight.size(*given) == expected
    assert tuple(sight(torch.rand(1, 3, *given)).shape[-2:]) == expected


def test_images_that_fit_are_passed_on_untouched() -> None:
    images = torch.rand(2, 3, 64, 96)
    assert Sight(multiple=32)(images) is images


@pytest.mark.parametrize(
    ("data", "teacher", "chosen", "expected"),
    [
        (3, 3, None, (None, None)),
        (1, 3, None, ((0, 0, 0), None)),
        (3, 1, None, (None, LUMINANCE)),
        (4, 1, None, (None, (0.25,) * 4)),
        (4, 3, None, ((0, 1, 2), None)),
        (10, 4, None, ((0, 1, 2, 3), None)),
        (4, 3, [2, 1, 0], ((2, 1, 0), None)),
        (3, 3, [0, 1, 2], (None, None)),
        (3, 4, [0, 1, 2, 2], ((0, 1, 2, 2), None)),
        (1, 4, None, ((0, 0, 0, 0), None)),
    ],
)
def test_channels_are_matched_as_the_host_would(data: int, teacher: int, chosen: Any, expected: Any) -> None:
    assert channel_plan(data, teacher, chosen) == expected


@pytest.mark.parametrize(
    ("data", "teacher", "chosen", "message"),
    [
        (3, 4, None, r"takes 4 input channels and the data has 3, so that 1 .*teacher_channels=\[0,1,2,2\]"),
        (4, 3, [0, 1], r"teacher_channels=\[0, 1\] must name .* 0 to 3 for each of the 3 .*\[0,1,2\]"),
        (4, 3, [0, 1, 4], r"teacher_channels=\[0, 1, 4\] must name"),
        (4, 3, [], r"teacher_channels=\[\] must name"),
    ],
)
def test_channels_that_nobody_measured_are_refused(data: int, teacher: int, chosen: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        channel_plan(data, teacher, chosen)


def test_grey_is_made_as_opencv_makes_it() -> None:
    """The host reads colour files for grey models by OpenCV."""
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # red, green, blue
    expected = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    images = torch.from_numpy(colour).permute(2, 0, 1)[None].float()
    channels, weights = channel_plan(3, 1)
    found = Sight(channels, weights)(images)
    assert found.shape == (1, 1, 5, 7)
    assert float((found[0, 0] - torch.from_numpy(expected).float()).abs().max()) <= 0.51


def test_channels_are_picked_in_the_teachers_order() -> None:
    images = torch.rand(2, 4, 3, 5)
    assert torch.equal(Sight(channels=(2, 1, 0))(images), images[:, [2, 1, 0]])
    assert torch.equal(Sight(channels=(0, 0, 0))(images[:, :1]), images[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("student", "teacher", "overrides"),
    [
        (1, 3, {}),
        (4, 3, {}),
        (10, 3, {"teacher_channels": [7, 4, 1]}),
        (3, 1, {}),
        (4, 1, {}),
        (3, 4, {"teacher_channels": [0, 1, 2, 0]}),
        (4, 4, {}),
        (1, 3, {"teacher_imgsz": 96}),
    ],
)
def test_students_and_teachers_of_other_channels_go_together(
    student: int, teacher: int, overrides: dict[str, Any]
) -> None:
    model = tiny_model("yolov8n", seed=1, channels=student)
    model, criterion = tiny_criterion("dfmsd+pcd", model, tiny_model("yolov8n", seed=2, channels=teacher), **overrides)
    batch = {**tiny_batch(), "img": torch.rand(2, student, 64, 64)}
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model(batch)
    loss.sum().backward()
    assert float(items["dfmsd_loss"]) > 0 and float(items["pcd_loss"]) > 0
    assert criterion.links[0].teacher.sight(batch["img"]).shape[1] == teacher


def test_which_channels_of_many_the_teacher_sees_is_said(said: list[str]) -> None:
    model, teacher = tiny_model("yolov8n", seed=1, channels=4), tiny_model("yolov8n", seed=2)
    tiny_criterion("dfmsd", model, teacher)
    assert any("sees the first 3 of the data's 4 channels" in m and "teacher_channels=[2,1,0]" in m for m in said)
    said.clear()
    tiny_criterion("dfmsd", model, teacher, teacher_channels=[2, 1, 0])
    assert not any("channels in their order" in message for message in said)


@pytest.mark.parametrize(
    ("data", "own", "chosen"),
    [(1, 3, None), (6, 3, None), (6, 3, [5, 0, 0]), (3, 3, [2, 1, 0]), (3, 1, None), (4, 1, None)],
)
@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_a_teacher_as_it_is_shown_the_data_answers_alike(
    data: int, own: int, chosen: list[int] | None, family: str
) -> None:
    torch.manual_seed(0)
    teacher = tiny_model(family, seed=2, channels=own)
    seen, images = as_shown(teacher, data, chosen), torch.rand(2, data, 64, 64)
    assert input_channels(seen) == data and input_channels(teacher) == own and seen is not teacher
    with torch.no_grad():
        expected, found = (
            read_output(m(i)) for m, i in ((teacher, Sight(*channel_plan(data, own, chosen))(images)), (seen, images))
        )
    torch.testing.assert_close([*found.feats], [*expected.feats], rtol=1e-3, atol=1e-3)
    for name, branch in expected.branches.items():
        torch.testing.assert_close(found.branches[name].logits, branch.logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.branches[name].boxes, branch.boxes, rtol=1e-3, atol=1e-3)


def test_a_teacher_that_is_shown_the_data_as_it_is_stays() -> None:
    teacher = tiny_model(seed=2)
    assert as_shown(teacher, 3) is teacher and as_shown(teacher, 3, [0, 1, 2]) is teacher
    with pytest.raises(UserError, match="takes 3 input channels and the data has 2"):
        as_shown(teacher, 2)
