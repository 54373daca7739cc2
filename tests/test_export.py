"""Export: the parity check sees agreement where there is one, and every kind of difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from ultralytics import YOLO

from tests.tiny import save_model, tiny_model
from yolokd.cli import main
from yolokd.errors import UserError
from yolokd.export import CONF, TOLERANCE, check_export, export_and_check
from yolokd.export.parity import detections, difference, matched_difference, ordered_difference, partnered

IMGSZ = 64


Exported = Callable[..., tuple[Path, Path, Any]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Weights, exported file and comparison by family and overrides, each made once; tests change copies only."""
    made: dict[str, tuple[Path, Path, Any]] = {}

    def make(family: str, **overrides: Any) -> tuple[Path, Path, Any]:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("export")
            source = save_model(tiny_model(family, seed=3), folder / f"{family}.pt")
            made[key] = source, *export_and_check(source, {"format": "onnx", "imgsz": IMGSZ, **overrides})
        return made[key]

    return make


@pytest.fixture(autouse=True)
def no_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing must fail the test, not be installed by Ultralytics."""
    monkeypatch.setattr("ultralytics.utils.checks.AUTOINSTALL", False)


def tamper(path: Path, changed: Path, shape_end: tuple[int, ...], change: float) -> None:
    """Write an ONNX file with other values in the last weight of a kernel shape."""
    model = onnx.load(path)
    found = [item for item in model.graph.initializer if tuple(item.dims)[-len(shape_end) :] == shape_end]
    values = numpy_helper.to_array(found[-1])
    found[-1].CopyFrom(numpy_helper.from_array((values + change).astype(values.dtype), found[-1].name))
    onnx.save(model, changed)


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_raw_export_agrees_and_detections_are_compared(family: str, exported: Exported) -> None:
    _, path, parity = exported(family)
    assert path.suffix == ".onnx" and path.is_file()
    assert parity.ok and parity.same_detections and not parity.end2end
    assert parity.detections_torch == parity.detections_onnx > 10  # or the comparison would say little
    assert 0 < parity.max_rel < 1e-4 and 0 < parity.max_abs < 1e-2
    assert "agrees with its weights" in parity.summary()


def test_classes_that_are_nowhere_seen_are_no_difference() -> None:
    """ONNX Runtime's sigmoid errs by some 1e-7 whatever its value, which is much of a score of 1e-4."""
    logits = torch.linspace(-10.5, -9, 40 * 50).view(1, 40, 50).numpy()
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, logits.shape) for name in ("x", "y")]
    graph = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=9)
    graph.opset_import[0].version = 17
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs, ours = session.run(None, {"x": logits})[0], torch.from_numpy(logits).sigmoid().numpy()
    assert difference([ours], [theirs])[1] < TOLERANCE[32] / 2
    assert difference([ours], [ours[:, ::-1]])[1] > TOLERANCE[32]  # but classes in another order are


@pytest.mark.parametrize("family", ["yolo26n", pytest.param("yolov10n", marks=pytest.mark.slow)])
def test_end_to_end_export_agrees(family: str, exported: Exported) -> None:
    *_, parity = exported(family, nms=False)
    assert parity.end2end and parity.ok, parity.summary()
    assert parity.detections_torch == parity.detections_onnx > 10


@pytest.mark.parametrize("overrides", [{"max_det": 20}, {"agnostic_nms": True}])
def test_what_is_built_into_an_end_to_end_file_is_compared_with_the_same(
    overrides: dict[str, Any], exported: Exported
) -> None:
    *_, parity = exported("yolo26n", nms=False, **overrides)
    assert parity.end2end and parity.ok, parity.summary()


@pytest.mark.parametrize("most", [5, 300])
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_keeps_as_many_and_looks_at_the_classes_as_it_is_told(most: int, agnostic: bool) -> None:
    """Ten places, at each two classes with one box: 20 detections, or 10 where classes shut each other out."""
    output = np.zeros((1, 6, 20), np.float32)
    output[0, 0] = np.repeat(np.arange(10) * 20 + 10, 2)
    output[0, 1:4] = 10
    output[0, 4, ::2], output[0, 5, 1::2] = 0.9, 0.8
    found = detections(output, 0.25, 0.7, 2, False, False, most=most, agnostic=agnostic)
    assert len(found) == min(most, 10 if agnostic else 20)


def test_nms_built_into_the_file_agrees_with_nms_after_the_weights(exported: Exported) -> None:
    *_, parity = exported("yolov8n", nms=True, conf=0.4)
    assert parity.end2end and parity.ok, parity.summary()
    assert parity.conf == 0.4 and parity.detections_onnx > 5


def test_nms_built_into_the_file_with_nothing_to_compare_is_said(tmp_path: Path) -> None:
    source = save_model(tiny_model("yolov8n", trained=False), tmp_path / "unsure.pt")
    _, parity = export_and_check(source, {"format": "onnx", "imgsz": IMGSZ, "nms": True})
    assert parity is not None
    assert parity.detections_torch == parity.detections_onnx == 0
    assert "nothing to compare" in parity.summary() and "agrees" not in parity.summary()


@pytest.mark.parametrize(
    "overrides",
    [
        {"imgsz": (64, 96)},
        {"dynamic": True, "opset": 13},
        {"batch": 3, "simplify": False},
        {"dynamic": True, "batch": 2, "imgsz": (96, 64)},
    ],
    ids=str,
)
def test_rectangles_batches_and_dynamic_shapes(overrides: dict[str, Any], exported: Exported) -> None:
    _, path, parity = exported("yolov8n", **overrides)
    if "opset" in overrides:
        assert onnx.load(path).opset_import[0].version == overrides["opset"]
    assert parity.ok and parity.detections_torch > 10, parity.summary()
    least = 9 if overrides.get("batch") == 3 else 8  # whole batches of 3
    assert parity.inputs >= (2 * least if overrides.get("dynamic") else least)  # dynamic: at two sizes


@pytest.mark.parametrize(
    "family, overrides",
    [("yolov8n", {"quantize": 16}), ("yolov8n", {"half": True}), ("yolov10n", {"quantize": 16, "nms": False})],
    ids=["raw", "raw, by the old key", "end2end"],
)
def test_half_precision_has_its_own_tolerance(family: str, overrides: dict[str, Any], exported: Exported) -> None:
    *_, parity = exported(family, **overrides)
    assert parity.bits == 16 and parity.tolerance > 1e-3
    assert parity.ok, parity.summary()
    assert parity.max_rel > 1e-4  # it is coarser indeed: the float32 tolerance is not for it


@pytest.mark.parametrize(
    "family, overrides", [("yolov8n", {}), ("yolo26n", {"nms": False}), ("yolov8n", {"nms": True, "conf": 0.4})]
)
def test_changed_weights_in_the_file_are_seen(
    family: str, overrides: dict[str, Any], exported: Exported, tmp_path: Path
) -> None:
    source, path, parity = exported(family, **overrides)
    assert parity.ok
    tamper(path, tmp_path / "changed.onnx", (3, 3), 0.02)
    changed = check_export(source, tmp_path / "changed.onnx", conf=overrides.get("conf", CONF))
    assert not changed.ok and changed.max_rel > changed.tolerance
    assert "DIFFERS" in changed.summary()


def test_the_command_fails_where_the_file_is_not_its_weights(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path, _ = exported("yolov8n")
    tamper(path, tmp_path / "changed.onnx", (3, 3), 0.02)
    words = ["export", f"model={source}", "format=onnx", f"imgsz={IMGSZ}"]
    monkeypatch.setattr(YOLO, "export", lambda self, **overrides: str(path))
    assert main(words) == 0
    assert "agrees with its weights" in capsys.readouterr().out
    monkeypatch.setattr(YOLO, "export", lambda self, **overrides: str(tmp_path / "changed.onnx"))
    assert main(words) == 1
    assert "DIFFERS from its weights" in capsys.readouterr().out


def test_a_small_change_of_one_class_bias_is_seen(exported: Exported, tmp_path: Path) -> None:
    source, path, _ = exported("yolov8n")
    model = onnx.load(path)
    biases = [item for item in model.graph.initializer if ".cv3." in item.name and item.name.endswith(".2.bias")]
    assert len(biases) == 3  # of the three levels' class layers
    for bias in biases:
        values = numpy_helper.to_array(bias).copy()
        values[1] += 0.05
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "changed.onnx")
    assert not check_export(source, tmp_path / "changed.onnx").ok


def test_other_weights_are_seen(exported: Exported) -> None:
    _, path, _ = exported("yolov8n")
    assert not check_export(tiny_model("yolov8n", seed=9), path).ok


def test_a_model_from_yaml_can_be_exported_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where Ultralytics puts the file of a model without weights
    model = YOLO("yolov8n.yaml")
    model.model.train()
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    path, parity = export_and_check(model, {"format": "onnx", "imgsz": IMGSZ})
    assert parity is not None and parity.ok and path.resolve().parent == tmp_path
    assert parity.detections_torch == 0 and "raw outputs alone" in parity.summary()  # untrained: sure of nothing
    assert model.model.training and not model.model.is_fused()
    assert all((value == before[key]).all() for key, value in model.model.state_dict().items())


def test_gray_images(tmp_path: Path) -> None:
    source = save_model(tiny_model("yolov8n", channels=1), tmp_path / "gray.pt")
    path, parity = export_and_check(source, {"format": "onnx", "imgsz": IMGSZ})
    assert parity is not None and parity.ok and parity.detections_torch > 0
    with pytest.raises(UserError, match="1 channels and the weights 3"):
        check_export(tiny_model("yolov8n"), path)


def test_other_formats_are_exported_without_a_comparison(exported: Exported) -> None:
    _, path, parity = exported("yolov8n", format="torchscript")
    assert path.is_file() and parity is None


def test_what_cannot_be_compared_is_refused(exported: Exported, tmp_path: Path) -> None:
    source, path, _ = exported("yolov8n")
    with pytest.raises(UserError, match="no ONNX file"):
        check_export(source, source)
    with pytest.raises(UserError, match="exported for 64 x 64"):
        check_export(source, path, imgsz=96)
    model = onnx.load(path)
    by_key = {item.key: item for item in model.metadata_props}
    by_key["task"].value = "classify"
    onnx.save(model, tmp_path / "classify.onnx")
    with pytest.raises(UserError, match="classify model"):
        check_export(source, tmp_path / "classify.onnx")
    by_key["task"].value = "detect"
    by_key["args"].value = "{'quantize': 8}"
    onnx.save(model, tmp_path / "int8.onnx")
    with pytest.raises(UserError, match="8 bits"):
        check_export(source, tmp_path / "int8.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match="not exported by Ultralytics"):
        check_export(source, tmp_path / "bare.onnx")


def rows(*values: tuple[float, ...]) -> Any:
    return np.asarray(values, dtype=np.float32).reshape(-1, 6)


def test_difference_is_relative_to_the_channel_but_not_for_scores_near_zero() -> None:
    ours = np.array([[[100.0, 50.0], [0.001, 0.002], [1e-7, 1e-7]]], dtype=np.float32)
    theirs = np.array([[[100.0, 51.0], [0.001, 0.003], [1e-7, 3e-7]]], dtype=np.float32)
    absolute, relative = difference([ours], [theirs])
    assert absolute == pytest.approx(1.0)  # in the first channel, 1 of 100
    assert relative == pytest.approx(0.5)  # in the second, 0.001 of 0.002
    assert difference([ours], [theirs[:, :, :1]])[1] == np.inf
    assert difference([ours], [ours * np.nan])[1] == np.inf


def test_classes_of_one_box_with_like_scores_may_change_places() -> None:
    """Of a box's classes NMS sees the best alone, so that rounding may name another on each side."""
    box = [[10.0], [10.0], [8.0], [8.0]]
    ours, theirs, other = (
        np.array([[*box, [first], [second]]], dtype=np.float32)
        for first, second in ((0.9, 0.9001), (0.9001, 0.9), (0.9, 0.1))
    )

    def kept(output: Any, iou: float) -> Any:
        return detections(output, 0.25, iou, nc=2, final=False, rotated=False)

    assert not partnered(kept(ours, 0.7), kept(theirs, 0.7), 0.3, 1e-3)
    assert partnered(kept(ours, 0.7), kept(theirs, 1.0), 0.3, 1e-3)
    assert not partnered(kept(ours, 0.7), kept(other, 1.0), 0.3, 1e-3)  # a class that the other side is not sure of


def test_equal_scores_may_change_places_in_final_detections() -> None:
    a, b, c = (0, 0, 10, 10, 0.5, 1), (20, 20, 40, 40, 0.5, 1), (5, 5, 9, 9, 0.1, 0)
    assert ordered_difference([rows(a, b, c)], [rows(b, a, c)], 1e-3) == (0, 0)
    moved = (20, 20, 40, 44, 0.5, 1)
    absolute, relative = ordered_difference([rows(a, b, c)], [rows(moved, a, c)], 1e-3)
    assert absolute == pytest.approx(4) and relative == pytest.approx(0.1)
    assert ordered_difference([rows(a, b, c)], [rows((*a[:5], 2), (*b[:5], 2), c)], 1e-3)[1] == np.inf  # other classes
    assert ordered_difference([rows(a, c)], [rows((*a[:4], 0.4, 1), c)], 1e-3)[1] == np.inf  # another score
    assert ordered_difference([rows(a, b)], [rows(a)], 1e-3) == (np.inf, np.inf)  # one fewer


def test_which_of_two_like_boxes_nms_keeps_is_no_difference() -> None:
    """Boxes of 100 pixels, 15 apart, overlap by 85 / 115 > 0.7; the one of the higher score stays."""

    def raw(*boxes: tuple[float, float]) -> Any:
        return np.array([[[x, 50.0, 100.0, 100.0, score] for x, score in boxes]], np.float32).transpose(0, 2, 1)

    def kept(output: Any, iou: float) -> Any:
        return detections(output, 0.25, iou, nc=1, final=False, rotated=False)

    ours, theirs, moved = raw((50, 0.9), (65, 0.9001)), raw((50, 0.9001), (65, 0.9)), raw((50, 0.9), (95, 0.9001))
    assert len(kept(ours, 0.7)) == len(kept(theirs, 0.7)) == 1
    assert not partnered(kept(ours, 0.7), kept(theirs, 0.7), 0.3, 1e-3)
    assert partnered(kept(ours, 0.7), kept(theirs, 1.0), 0.3, 1e-3)
    assert partnered(kept(theirs, 0.7), kept(ours, 1.0), 0.3, 1e-3)
    assert not partnered(kept(moved, 0.7), kept(ours, 1.0), 0.3, 1e-3)  # a box that the other side has nowhere


def test_detections_need_partners_of_class_place_and_score() -> None:
    a = rows((0, 0, 10, 10, 0.5, 1))
    assert partnered(a, a, 0.25, 1e-3)
    assert partnered(a, rows(), 0.6, 1e-3)  # below the threshold none is needed
    assert not partnered(a, rows(), 0.25, 1e-3)
    assert not partnered(a, rows((0, 0, 10, 10, 0.5, 2)), 0.25, 1e-3)
    assert not partnered(a, rows((0, 0, 10, 10, 0.4, 1)), 0.25, 1e-3)
    assert partnered(a, rows((0, 0, 10, 9.6, 0.5, 1)), 0.25, 1e-3)  # a twentieth of 10 is 0.5
    assert not partnered(a, rows((0, 0, 10, 9.4, 0.5, 1)), 0.25, 1e-3)
    assert matched_difference([a], [rows((0, 0, 10, 8, 0.5, 1))], 0.25) == pytest.approx((2, 0.2))
    assert matched_difference([a], [rows()], 0.25)[0] == np.inf
    assert matched_difference([rows()], [rows()], 0.25)[0] == 0
