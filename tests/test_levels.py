"""Levels paired by effective stride, and teachers at another image size brought onto the student's grid."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import NAMES, tiny_args, tiny_batch, tiny_criterion, tiny_model
from yolokd.errors import UserError
from yolokd.outputs import read_output
from yolokd.pairs.levels import onto_grid, pair_levels
from yolokd.pairs.link import is_resampled
from yolokd.pairs.pairing import link
from yolokd.taps import Taps
from yolokd.teachers.images import Sight
from yolokd.teachers.teacher import Teacher, load_teacher


@pytest.mark.parametrize(
    ("student", "teacher", "wanted", "expected"),
    [
        ((8, 16, 32), (8, 16, 32), None, [(0, 0), (1, 1), (2, 2)]),
        ((4, 8, 16, 32), (8, 16, 32), None, [(1, 0), (2, 1), (3, 2)]),
        ((8, 16, 32), (8, 16, 32, 64), None, [(0, 0), (1, 1), (2, 2)]),
        ((8, 16, 32), (8, 16, 32), (16, 32), [(1, 1), (2, 2)]),
        ((8, 16, 32), (64,), None, []),
        ((8, 16, 32), (4, 8, 16), None, [(0, 1), (1, 2)]),  # a teacher at twice the size: shifted by a level
        ((8, 16, 32), (16, 32, 64), None, [(1, 0), (2, 1)]),  # at half the size
        ((8, 16, 32), (6.4, 12.8, 25.6), None, [(0, 0), (1, 1), (2, 2)]),  # 1.25 times
        ((8, 16, 32), (5.0, 10.0, 20.0), None, [(0, 1), (1, 2)]),  # 1.6 times: nearer to the next level
        ((8,), (6.0, 7.0, 9.0), None, [(0, 2)]),  # the nearest one, by its factor
        ((8, 10), (9.0,), None, [(1, 0)]),  # a teacher's level is used once
        ((8, 16), (9.0, 16.0), None, [(0, 0), (1, 1)]),  # finest first, although the second pair is nearer
        ((8,), (8 * 2**0.5,), None, [(0, 0)]),  # the square root of 2, and a little more
        ((8,), (8 * 1.42,), None, []),
    ],
)
def test_levels_are_paired_with_the_nearest_effective_stride(
    student: tuple[int, ...],
    teacher: tuple[float, ...],
    wanted: tuple[int, ...] | None,
    expected: list[tuple[int, int]],
) -> None:
    assert pair_levels(student, teacher, wanted) == expected


def taps_of(sizes: list[tuple[int, int]], strides: tuple[int, ...], box: tuple[float, ...], reg_max: int = 1) -> Taps:
    """Return taps of a model that predicts the same box, in pixels of its images, at every anchor."""
    feats = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) for size in sizes]
    empty = Taps(feats, strides)
    centres, steps = empty.anchors()
    low, high = torch.tensor(box).chunk(2)
    distances = torch.cat((centres - low, high - centres), dim=-1) / steps
    assert reg_max == 1
    count = len(centres)
    logits = torch.randn(2, count, 4, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(empty, logits=logits, boxes=distances.expand(2, -1, -1))


def test_equal_grids_are_left_as_they_are() -> None:
    taps = taps_of([(8, 12), (4, 6)], (8, 16), (10.0, 8.0, 50.0, 40.0))
    assert onto_grid(taps, taps_of([(8, 12), (4, 6)], (8, 16), (0.0, 0.0, 9.0, 9.0))) is taps
    shifted = onto_grid(taps, taps_of([(8, 12), (4, 6)], (4, 8), (0.0, 0.0, 9.0, 9.0)))
    assert shifted.strides == (4, 8) and shifted.logits is taps.logits and shifted.feats is taps.feats
    # A distance of one cell is one cell on both sides, so that boxes are half as far in pixels of half the size.
    assert torch.allclose(shifted.decoded()[0, 0], torch.tensor([5.0, 4.0, 25.0, 20.0]), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_and_logits_are_resampled_as_whole_images(dtype: torch.dtype) -> None:
    """A ramp over the image stays that ramp, read at the centres of the student's cells."""
    own = taps_of([(4, 6)], (16,), (0.0, 0.0, 9.0, 9.0))
    x = (torch.arange(9) + 0.5) / 9
    ramp = x.expand(2, 3, 6, 9).to(dtype)
    logits = ramp.flatten(2).transpose(1, 2)
    teacher = Taps([ramp], (16,), logits=logits, towers=lambda feats: (logits, logits))
    found = onto_grid(teacher, own)
    expected = (torch.arange(6) + 0.5) / 6
    for values in (found.feats[0][0, 0], found.logits[0, :, 0].view(4, 6)):  # type: ignore[index]
        assert values.shape == (4, 6) and values.dtype == dtype
        assert torch.allclose(values[:, 1:-1].float(), expected[1:-1].expand(4, -1), atol=0.01)
    assert found.strides == (16,) and found.boxes is None and found.towers is None


def test_maps_alone_are_resampled_where_they_need_it() -> None:
    teacher = Taps([torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)], (8, 16))
    student = Taps([torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)], (16, 16))
    found = onto_grid(teacher, student)
    assert found.logits is None and found.boxes is None
    assert [tuple(feat.shape) for feat in found.feats] == [(1, 3, 4, 4)] * 2
    assert found.feats[1] is teacher.feats[1]


def test_boxes_are_resampled_as_corners_in_the_students_pixels() -> None:
    """The teacher sees 96x144 where the student sees 64x96; all its anchors say one box, and so do the student's."""
    teacher = taps_of([(12, 18), (6, 9)], (8, 16), (15.0, 30.0, 90.0, 66.0))
    student = taps_of([(8, 12), (4, 6)], (8, 16), (0.0, 0.0, 9.0, 9.0))
    found = onto_grid(teacher, student)
    assert found.boxes is not None and found.boxes.shape == (2, 8 * 12 + 4 * 6, 4)
    assert torch.allclose(found.decoded(), torch.tensor([10.0, 20.0, 60.0, 44.0]).expand_as(found.decoded()), atol=1e-3)


def test_boxes_are_scaled_along_each_axis_by_its_own_ratio() -> None:
    """Where sizes are rounded, the ratios differ: here 32 x 48 pixels for the teacher's 64 x 64, 1/2 and 3/4."""
    teacher = taps_of([(8, 8)], (8,), (8.0, 16.0, 40.0, 48.0))
    found = onto_grid(teacher, taps_of([(4, 6)], (8,), (0.0, 0.0, 9.0, 9.0)))
    expected = torch.tensor([6.0, 8.0, 30.0, 24.0])
    assert torch.allclose(found.decoded(), expected.expand_as(found.decoded()), atol=1e-3)


def test_rotated_boxes_are_resampled_as_the_upright_ones_around_them() -> None:
    """A quarter turn about its centre makes a box of 60 x 36 pixels one of 36 x 60."""
    teacher = taps_of([(12, 18), (6, 9)], (8, 16), (15.0, 30.0, 75.0, 66.0))
    centres, strides = teacher.anchors()
    away = torch.tensor([45.0, 48.0]) - centres  # to the box's centre, in the frame that is turned by the angle
    turned = torch.stack((away[:, 1], -away[:, 0]), dim=-1)
    half = torch.tensor([30.0, 18.0])
    boxes = torch.cat((half - turned, half + turned), dim=-1) / strides
    angles = torch.full((2, len(centres), 1), torch.pi / 2)
    teacher = dataclasses.replace(teacher, boxes=boxes.expand(2, -1, -1), angles=angles)
    found = onto_grid(teacher, taps_of([(8, 12), (4, 6)], (8, 16), (0.0, 0.0, 9.0, 9.0)))
    assert found.boxes is not None and found.angles is None
    expected = torch.tensor([27.0, 18.0, 63.0, 78.0]) / 1.5
    assert torch.allclose(found.decoded(), expected.expand_as(found.decoded()), atol=1e-3)


def test_box_distributions_become_their_expectation() -> None:
    teacher = taps_of([(12, 12)], (8,), (16.0, 16.0, 64.0, 64.0))
    bins = torch.full((2, 144, 4, 16), -30.0)
    bins[..., 3] = bins[..., 4] = 5.0  # half of each: 3.5 cells of 8 pixels to each side
    teacher = dataclasses.replace(teacher, boxes=bins.flatten(2))
    found = onto_grid(teacher, taps_of([(8, 8)], (8,), (0.0, 0.0, 9.0, 9.0)))
    assert found.boxes is not None and found.boxes.shape == (2, 64, 4)
    inner = found.boxes.view(2, 8, 8, 4)[:, 2:-2, 2:-2]
    assert torch.allclose(inner, torch.full_like(inner, 3.5 / 1.5), atol=1e-4)


# In a criterion -------------------------------------------------------------------------------------------------------
METHODS = "dfmsd+samkd+sgfi+ckd+pcd+mgd+cwd+pkd+bckd+softkd"


@pytest.mark.parametrize(
    ("imgsz", "teacher_imgsz", "student_levels", "teacher_levels"),
    [
        (64, 64, (0, 1, 2), (0, 1, 2)),
        (128, 160, (0, 1, 2), (0, 1, 2)),
        (64, 96, (0, 1), (1, 2)),
        (64, 128, (0, 1), (1, 2)),
        (64, 32, (1, 2), (0, 1)),
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_every_method_acts_at_another_image_size(
    imgsz: int, teacher_imgsz: int, student_levels: tuple[int, ...], teacher_levels: tuple[int, ...], wide: bool
) -> None:
    model, criterion = tiny_criterion(METHODS, "yolov8n", "yolo11n", imgsz=imgsz, teacher_imgsz=teacher_imgsz)
    link = criterion.links[0]
    assert link.student_view.levels == student_levels and link.teacher_view.levels == teacher_levels
    size = (imgsz, imgsz + 32 * wide)
    batch = tiny_batch(size=size)
    preds = model(batch["img"])
    loss, items = model.loss(batch, preds)
    loss.sum().backward()
    assert all(float(items[f"{name}_loss"]) > 0 for name in criterion.methods), items
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    own, other = link.taps(read_output(preds), link.teacher(batch["img"]), "one2many")
    assert own.sizes == other.sizes and own.strides == other.strides
    assert own.image_size == (size if 0 in student_levels else own.image_size)


def test_the_students_own_size_gives_the_same_values_to_the_bit() -> None:
    items = []
    for overrides in ({}, {"teacher_imgsz": 64}):
        model, _ = tiny_criterion("dfmsd+pcd+ld+crosskd", **overrides)
        items.append(model(tiny_batch())[1])
    assert items[0].keys() == items[1].keys()
    assert all(torch.equal(items[0][key], items[1][key]) for key in items[0])


def test_an_enlarged_image_teaches_what_the_teacher_says_of_it() -> None:
    """At twice the size the teacher's second level lies on the student's first: cell by cell its own output."""
    _, criterion = tiny_criterion("bckd", "yolov8n", "yolov8n", teacher_imgsz=128)
    images = tiny_batch()["img"]
    larger = torch.nn.functional.interpolate(images, size=(128, 128), mode="bilinear", align_corners=False)
    model = tiny_model("yolov8n", seed=2)
    with torch.no_grad():
        expected = read_output(model(larger))
        student = read_output(tiny_model("yolov8n", seed=1)(images))
    link = criterion.links[0]
    _, found = link.taps(student, link.teacher(images), "one2many")
    logits = expected.branches["one2many"].logits[:, 16 * 16 :]  # without the level that has no partner
    assert found.logits is not None and found.boxes is not None and found.strides == (8, 16)
    assert torch.allclose(found.logits, logits, atol=1e-3)
    assert found.boxes.shape[-1] == 64  # bins count in cells, which are the same


@pytest.mark.parametrize("method", ["ld", "crosskd"])
def test_methods_that_need_the_teachers_own_grid_are_refused_on_another(method: str) -> None:
    with pytest.raises(UserError, match=rf"method={method} .*grid differs.*imgsz=64, teacher_imgsz=96"):
        tiny_criterion(method, teacher_imgsz=96)
    model, _ = tiny_criterion(method, teacher_imgsz=128)  # the same grid, a level further
    assert float(model(tiny_batch())[1][f"{method}_loss"]) > 0


def test_methods_are_refused_where_only_some_batches_are_on_another_grid() -> None:
    """96 pixels halved are 48, which the teacher cannot take: it sees 64 there."""
    with pytest.raises(UserError, match=r"method=ld .*multi_scale"):
        tiny_criterion("ld", teacher_imgsz=32, multi_scale=0.5)
    model, _ = tiny_criterion("bckd", teacher_imgsz=32, multi_scale=0.5)
    assert float(model(tiny_batch(size=(96, 96)))[1]["bckd_loss"]) > 0


def test_a_teacher_with_a_coarser_level_sees_sizes_that_it_can_take() -> None:
    """Multi-scale training gives multiples of the student's stride; the teacher's largest is 64."""
    model, _ = tiny_criterion("dfmsd+pcd", "yolov8n", "yolov8n-p6")
    _, items = model(tiny_batch(size=(96, 160)))
    assert all(float(items[f"{name}_loss"]) > 0 for name in ("dfmsd", "pcd"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"imgsz": 96}, r"imgsz=96 is no multiple .* 64; use imgsz=128, or teacher_imgsz=128 for the teacher alone"),
        ({"teacher_imgsz": 96}, r"teacher_imgsz=96 is no multiple .* 64; use teacher_imgsz=128$"),
    ],
)
def test_sizes_that_the_teacher_cannot_take_are_refused(overrides: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_criterion("dfmsd", "yolov8n", "yolov8n-p6", **overrides)


def test_sizes_that_share_no_level_are_refused() -> None:
    with pytest.raises(UserError, match=r"strides \[16, 32\] and teacher strides \[1, 2, 4\] share no level"):
        tiny_criterion("dfmsd", "yolov3-tiny", "yolov8n", teacher_imgsz=512)


def test_resampled_levels_are_said(said: list[str]) -> None:
    tiny_criterion("dfmsd", imgsz=128, teacher_imgsz=160)
    assert any("strides [6.4, 12.8, 25.6] in the student's pixels" in message for message in said)
    said.clear()
    tiny_criterion("dfmsd", "yolov8n", tiny_model("yolov8n", names=NAMES, seed=2))
    assert not any("levels" in message or "resampled" in message for message in said)


@pytest.mark.parametrize(
    ("key", "resampled"), [("", False), ("multi_scale", True), ("rect", True), ("kd_val", True), ("plots", False)]
)
def test_a_teacher_of_coarser_levels_is_resampled_where_batches_differ_in_size(key: str, resampled: bool) -> None:
    """Sides of 32 k pixels fit the student's stride of 32, but not the teacher's of 64."""
    args = tiny_args(**({key: 0.5 if key == "multi_scale" else True} if key else {}))
    for name, multiple, expected in (("yolov8n-p6", 64, resampled), ("yolov8n", 32, False)):
        teacher = Teacher(*load_teacher(tiny_model(name, seed=2)))
        teacher.sight = Sight(multiple=multiple)
        found = link(tiny_model(), dict(enumerate(NAMES)), teacher, None, [])
        assert is_resampled(found, args) is expected
