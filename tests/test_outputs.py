"""The host's raw head outputs in one shape, checked against what the host itself makes of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.ops import xywh2xyxy

from tests.tiny import NAMES, tiny_batch, tiny_model
from yolokd.ops.constants import constant
from yolokd.outputs import View, read_output
from yolokd.taps import Taps

COUNT = 64 + 16 + 4  # anchors of a 64x64 image on strides 8, 16 and 32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("family", "branches"), [("yolov8n", 1), ("yolo11n", 1), ("yolo26n", 2), ("yolov10n", 2)])
def test_one_and_two_branch_heads_are_read_in_training_and_evaluation(
    family: str, branches: int, training: bool
) -> None:
    model = tiny_model(family).train(training)
    output = read_output(model(tiny_batch()["img"]))
    assert list(output.branches) == ["one2many", "one2one"][:branches]
    bins = model.model[-1].reg_max
    for branch in output.branches.values():
        assert branch.logits.shape == (2, COUNT, len(NAMES))
        assert branch.boxes.shape == (2, COUNT, 4 * bins)
    assert [tuple(feat.shape[-2:]) for feat in output.feats] == [(8, 8), (4, 4), (2, 2)]
    assert all(feat.requires_grad for feat in output.feats)


def test_neck_maps_of_two_branch_heads_carry_gradient_to_the_neck() -> None:
    """The one-to-one branch gets detached maps in training; the others must be chosen."""
    model = tiny_model("yolo26n").train()
    preds = model(tiny_batch()["img"])
    assert not any(feat.requires_grad for feat in preds["one2one"]["feats"])
    output = read_output(preds)
    assert all(a is b for a, b in zip(output.feats, preds["one2many"]["feats"]))


def test_a_fused_end_to_end_model_has_one_branch() -> None:
    model = tiny_model("yolo26n")
    model.end2end = True
    model.fuse(verbose=False)
    assert list(read_output(model(tiny_batch()["img"])).branches) == ["one2one"]


def test_maps_alone_are_read_from_a_list() -> None:
    maps = [torch.zeros(1, 2, 4, 4)]
    assert read_output(maps).feats is maps
    assert read_output(maps).branches == {}


@pytest.mark.parametrize("preds", [torch.zeros(1, 3), (torch.zeros(1), torch.zeros(1)), {"logits": 1}])
def test_other_outputs_are_refused(preds: Any) -> None:
    with pytest.raises(TypeError, match="without raw maps"):
        read_output(preds)


def whole(model: DetectionModel) -> View:
    strides = tuple(int(stride) for stride in model.stride)
    return View(strides, tuple(range(len(strides))))


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_decoded_boxes_are_the_hosts_own(family: str) -> None:
    model = tiny_model(family)
    model.end2end = False
    images = tiny_batch(size=(64, 96))["img"]
    decoded, preds = model(images)
    taps = whole(model).taps(read_output(preds), "one2many")
    assert torch.allclose(taps.decoded(), xywh2xyxy(decoded[:, :4].transpose(1, 2)), atol=1e-3)
    assert torch.allclose(taps.logits.sigmoid(), decoded[:, 4:].transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("angle, half", [(math.pi, (30.0, 18.0)), (0.75 * math.pi, (33.9411, 33.9411))])
def test_the_upright_box_around_one_that_is_turned_by_more_than_a_quarter(
    angle: float, half: tuple[float, float]
) -> None:
    """A box of 60 x 36 pixels about (16, 16), turned by a half or by three eighths: then (60 + 36) / sqrt(2) wide."""
    boxes = torch.tensor([30.0, 18.0, 30.0, 18.0]).view(1, 1, 4) / 32
    taps = Taps([torch.zeros(1, 1, 1, 1)], (32,), boxes=boxes, angles=torch.full((1, 1, 1), angle))
    expected = torch.tensor([16 - half[0], 16 - half[1], 16 + half[0], 16 + half[1]])
    torch.testing.assert_close(taps.decoded()[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_two_bins_are_a_distribution_in_half_precision_too() -> None:
    """Odds of 1 to 3 for 0 and 1 are 3/4 of a stride, 24 pixels; ln 3 is 1.1015625 in bfloat16."""
    for dtype, distance in ((torch.float32, 24.0), (torch.bfloat16, 32 / (1 + math.exp(-1.1015625)))):
        boxes = torch.tensor([0.0, math.log(3)]).repeat(4).view(1, 1, 8).to(dtype)
        found = Taps([torch.zeros(1, 1, 1, 1)], (32,), boxes=boxes).decoded()[0, 0]
        expected = torch.tensor([16 - distance, 16 - distance, 16 + distance, 16 + distance])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_are_decoded_in_float32_under_autocast_too(dtype: torch.dtype) -> None:
    model = tiny_model("yolov8n").train()
    taps = whole(model).taps(read_output(model(tiny_batch()["img"])), "one2many")
    expected = taps.decoded()
    with torch.autocast("cpu", dtype):
        assert torch.equal(taps.decoded(), expected)


@pytest.mark.parametrize("bins", [1, 16])
@pytest.mark.parametrize("turned", [False, True])
def test_boxes_of_some_anchors_are_those_among_all(bins: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.randn(2, 15, 4 * bins, generator=generator)
    angles = torch.randn(2, 15, 1, generator=generator) if turned else None
    taps = Taps([torch.zeros(2, 3, 3, 4), torch.zeros(2, 3, 1, 3)], (8, 16), boxes=boxes, angles=angles)
    rows = torch.tensor([1, 0, 1, 1]), torch.tensor([14, 3, 0, 12])
    found = taps.decoded(rows)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found, taps.decoded()[rows])
    assert taps.decoded(tuple(row[:0] for row in rows)).shape == (0, 4)


def test_decoded_boxes_of_the_one_to_one_branch_are_the_hosts_own() -> None:
    model = tiny_model("yolo26n")
    model.end2end = True
    detections, preds = model(tiny_batch()["img"])  # (B, A, 6): best pair of anchor and class first
    taps = whole(model).taps(read_output(preds), "one2one")
    best = taps.logits.flatten(1).topk(20).indices // len(NAMES)
    boxes = taps.decoded().gather(1, best[..., None].expand(-1, -1, 4))
    assert torch.allclose(boxes, detections[:, :20, :4], atol=1e-3)


def test_anchors_are_the_hosts_own_in_order() -> None:
    model = tiny_model("yolov8n")
    _, preds = model(tiny_batch(size=(64, 96))["img"])
    centres, strides = whole(model).taps(read_output(preds), "one2many").anchors()
    head = model.model[-1]
    assert torch.equal(strides[:, 0], head.strides[0])
    assert torch.equal(centres, (head.anchors * head.strides).T)


def test_a_view_keeps_its_levels_and_classes() -> None:
    model = tiny_model("yolov8n")
    output = read_output(model(tiny_batch()["img"]))
    view = View((8, 16, 32), levels=(0, 2), classes=(2, 0))
    taps = view.taps(output, "one2many")
    every = whole(model).taps(output, "one2many")
    assert taps.strides == (8, 32)
    assert [tuple(feat.shape[-2:]) for feat in taps.feats] == [(8, 8), (2, 2)]
    rows = [*range(64), *range(80, 84)]
    assert torch.equal(taps.logits, every.logits[:, rows][..., [2, 0]])
    assert torch.equal(taps.boxes, every.boxes[:, rows])
    assert torch.equal(taps.decoded(), every.decoded()[:, rows])


def test_a_view_of_the_neck_alone_has_no_head_output() -> None:
    output = read_output(tiny_model("yolov8n")(tiny_batch()["img"]))
    taps = View((8, 16, 32), (0, 1, 2)).taps(output, None)
    assert taps.logits is None
    assert taps.boxes is None


def test_constants_are_made_once_and_bear_a_gradient_wherever_they_came_from() -> None:
    view = View((8, 16, 32), (0, 1, 2), classes=(2, (0, 1), 3))
    with torch.inference_mode():  # as a validation that looks first
        view.select(torch.zeros(1, 5, 4))
    logits = torch.randn(2, 5, 4, requires_grad=True)
    view.select(logits).sum().backward()
    assert logits.grad is not None and logits.grad[..., 2:].eq(1).all()
    index = constant(((2, 2), (0, 1), (3, 3)), torch.device("cpu"), torch.long)
    assert constant(((2, 2), (0, 1), (3, 3)), torch.device("cpu"), torch.long) is index and not index.is_inference()
