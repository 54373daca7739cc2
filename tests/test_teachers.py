"""Teachers of every kind: what they lend to the methods, and what is refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    RTDETRDetectionModel,
    SegmentationModel,
    WorldModel,
    YOLOEModel,
    YOLOESegModel,
)

from tests.tiny import NAMES, overrides_for, rows, save_model, tiny_batch, tiny_criterion, tiny_model, train
from yolokd import DistillationTrainer
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError
from yolokd.outputs import read_output
from yolokd.teachers.teacher import Teacher, fingerprint, load_teacher

CPU = torch.device("cpu")
RTDETR = "yolov8-rtdetr"  # the smallest of the host's RT-DETRs
OPEN = {
    "yolov8s-world": WorldModel,
    "yolov8s-worldv2": WorldModel,
    "yoloe-v8s": YOLOEModel,
    "yoloe-11s": YOLOEModel,
    "yoloe-26n": YOLOEModel,
    "yoloe-v8s-seg": YOLOESegModel,
    "yoloe-26n-seg": YOLOESegModel,
}
OTHER_TASKS = {
    "yolov8n-seg": SegmentationModel,
    "yolo11n-seg": SegmentationModel,
    "yolo26n-seg": SegmentationModel,
    "yolov8n-pose": PoseModel,
    "yolo11n-pose": PoseModel,
    "yolo26n-pose": PoseModel,
    "yolov8n-obb": OBBModel,
    "yolo11n-obb": OBBModel,
    "yolo26n-obb": OBBModel,
}
VARIANTS = {
    "yolov3-tiny": (16, 32),
    "yolov5n-p6": (8, 16, 32),
    "yolov6n": (8, 16, 32),
    "yolov8n-ghost-p2": (8, 16, 32),
    "yolov9t": (8, 16, 32),
    "yolo12n": (8, 16, 32),
    "yolo26n-p2": (8, 16, 32),
    "yolo26n-p6": (8, 16, 32),
}
TASKS: dict[str, type] = {RTDETR: RTDETRDetectionModel, **OPEN, **OTHER_TASKS}
BOXES = tiny_batch(size=(128, 128))


def model_of(name: str, names: tuple[str, ...] = NAMES, seed: int = 2) -> Any:
    """Return a teacher's model; an open-vocabulary one has class embeddings of its own, as no text model is at hand."""
    model = tiny_model(name, names=names, seed=seed, task=TASKS.get(name, DetectionModel))
    if name in OPEN:
        held = torch.randn(1, len(names), 512, generator=torch.Generator().manual_seed(seed))
        setattr(model, "pe" if "yoloe" in name else "txt_feats", held)
        model.names = dict(enumerate(names))
    return model


def prepared(model: Any, branches: tuple[str, ...] = ("one2many", "one2one")) -> Teacher:
    teacher = Teacher(*load_teacher(model))
    return teacher.prepare(CPU, [branch for branch in teacher.branches if branch in branches], "float32")


def terms_of(method: str, teacher: Any, student: str = "yolov8n", **overrides: Any) -> tuple[dict[str, float], Any]:
    """Return the terms of one step by method, checked to be finite and to reach the neck, and the criterion."""
    model, criterion = tiny_criterion(method, student, teacher, **overrides)
    preds = model(BOXES["img"])
    loss, items = model.loss(BOXES, preds)
    assert torch.isfinite(loss).all()
    feats = read_output(preds).feats
    for term in loss[-len(criterion.methods) :]:
        grads = torch.autograd.grad(term, feats, retain_graph=True, allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads)
    return {name: float(items[f"{name}_loss"]) for name in criterion.methods}, criterion


# RT-DETR --------------------------------------------------------------------------------------------------------------
def test_an_rtdetr_teacher_lends_its_neck_without_its_decoder() -> None:
    model, images = model_of(RTDETR), BOXES["img"]
    expected: list[torch.Tensor] = []
    hook = model.model[-1].register_forward_pre_hook(lambda module, inputs: expected.extend(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    teacher = Teacher(*load_teacher(model))
    assert (teacher.strides, teacher.channels, teacher.branches) == ((8, 16, 32), (64, 128, 256), ())
    assert not teacher.dense and not teacher.rotated and not teacher.unprompted and not teacher.untrained
    teacher.prepare(CPU, (), "float32")
    assert not list(teacher.model.model[-1].parameters())
    found = teacher(images)
    assert found.branches == {} and len(found.feats) == 3
    for own, other in zip(found.feats, expected):
        assert float((own - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_an_rtdetr_teacher_teaches_features_and_regions() -> None:
    terms, _ = terms_of("dfmsd+samkd+sgfi+ckd+mgd+cwd+pkd", model_of(RTDETR), samkd_logit=0.0)
    assert all(term > 0 for term in terms.values()), terms


@pytest.mark.parametrize("method", ["pcd", "bckd", "ld", "crosskd", "softkd", "samkd", "dfmsd+pcd"])
def test_an_rtdetr_teacher_is_refused_for_logits_with_the_reason(method: str) -> None:
    with pytest.raises(UserError, match=r"RT-DETR teacher predicts by queries, which are no grid|by queries"):
        tiny_criterion(method, "yolov8n", model_of(RTDETR))


def test_an_rtdetr_teacher_has_no_confidence_to_be_weighed_by() -> None:
    with pytest.raises(UserError, match=r"kd_teacher_weights=confidence.*queries.*kd_teacher_weights=equal"):
        tiny_criterion("dfmsd", "yolov8n", model_of(RTDETR), kd_teacher_weights="confidence")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101"])
def test_every_rtdetr_teaches_features(name: str) -> None:
    terms, _ = terms_of("dfmsd", tiny_model(name, seed=2, task=RTDETRDetectionModel))
    assert terms["dfmsd"] > 0


# Open vocabulary ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPEN)
def test_an_open_vocabulary_teacher_gives_its_own_outputs_from_a_plain_head(name: str) -> None:
    model, images = model_of(name), BOXES["img"]
    with torch.no_grad():
        expected = read_output(model(images))
    teacher = prepared(model)
    assert type(teacher.model.model[-1]) is Detect and teacher.dense
    found = teacher(images)
    assert found.branches.keys() == expected.branches.keys()
    for key, branch in expected.branches.items():
        other = found.branches[key]
        assert branch.logits.shape[-1] == len(NAMES) and float(branch.logits.std()) > 0.1
        assert torch.allclose(other.logits, branch.logits, atol=1e-3 * float(branch.logits.abs().max()))
        assert torch.allclose(other.boxes, branch.boxes, atol=1e-3 * float(branch.boxes.abs().max()))
    assert type(model.model[-1]) is not Detect  # the given model is left alone


@pytest.mark.parametrize("name", ["yolov8s-world", "yoloe-11s", "yoloe-26n-seg"])
def test_an_open_vocabulary_teacher_teaches_classes_by_name_and_lends_its_towers(name: str) -> None:
    terms, criterion = terms_of("dfmsd+pcd+crosskd", model_of(name, names=("dog", "Square", "circle")))
    assert all(term > 0 for term in terms.values()), terms
    assert criterion.links[0].student_view.classes == (0, 1)
    assert criterion.links[0].teacher_view.classes == (2, 1)


def test_a_prompt_free_teacher_is_read_on_every_anchor() -> None:
    """Its head filters anchors by proposals; the classes behind the filters are there for all of them."""
    model, images = model_of("yoloe-v8s"), BOXES["img"]
    with torch.no_grad():
        expected = read_output(model(images)).branches["one2many"]
    free = model_of("yoloe-v8s")
    free.model[-1].fuse(nn.functional.normalize(free.pe, dim=-1))
    vocabulary = nn.ModuleList(tower[-1] for tower in free.model[-1].cv3)
    free.args = {"imgsz": 64}
    for tower in model_of("yoloe-v8s").model[-1].cv3:
        assert tower[-1].out_channels != vocabulary[0].out_channels
    free.set_vocab(vocabulary, list(NAMES))
    assert hasattr(free.model[-1], "lrpc")
    found = prepared(free)(images).branches["one2many"]
    assert torch.allclose(found.logits, expected.logits, atol=1e-3 * float(expected.logits.abs().max()))
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-3 * float(expected.boxes.abs().max()))


def test_fused_class_embeddings_are_not_used_twice() -> None:
    model, images = model_of("yoloe-11s"), BOXES["img"]
    with torch.no_grad():
        expected = read_output(model(images)).branches["one2many"].logits
    model.pe = nn.functional.normalize(model.pe, dim=-1)
    model.model[-1].fuse(model.pe)
    found = prepared(model)(images).branches["one2many"].logits
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def test_class_embeddings_belong_to_the_identity() -> None:
    model = model_of("yolov8s-world")
    before = fingerprint(model)
    model.txt_feats = model.txt_feats + 1
    assert fingerprint(model) != before


def test_an_open_vocabulary_teacher_without_classes_teaches_features_alone() -> None:
    model = model_of("yoloe-v8s")
    del model.pe
    assert Teacher(*load_teacher(model)).unprompted
    assert terms_of("dfmsd", model)[0]["dfmsd"] > 0
    with pytest.raises(UserError, match=r"given no classes.*set_classes.*save"):
        tiny_criterion("pcd", "yolov8n", model)


def test_names_and_embeddings_that_do_not_agree_are_refused_for_logits() -> None:
    model = model_of("yolov8s-world")
    model.names = ["a", "b"]  # the host leaves a list there
    with pytest.raises(UserError, match="2 class names and embeddings of 3 classes"):
        tiny_criterion("pcd", "yolov8n", model)


# Other tasks and variants ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OTHER_TASKS)
def test_a_teacher_of_another_task_gives_its_own_classes_without_its_task_layers(name: str) -> None:
    model, images = model_of(name), BOXES["img"]
    with torch.no_grad():
        expected = read_output(model(images))
    teacher = prepared(model)
    task = {"seg": "segment", "pose": "pose", "obb": "obb"}[name.split("-")[1]]
    assert (teacher.task, teacher.rotated, teacher.dense) == (task, task == "obb", True)
    kept = {key.removeprefix("one2one_") for key in teacher.model.model[-1]._modules}
    assert kept == {"cv2", "cv3", "dfl"} | ({"cv4"} if task == "obb" else set())
    found = teacher(images)
    for key, branch in expected.branches.items():
        other = found.branches[key]
        assert torch.allclose(other.logits, branch.logits, atol=1e-3 * float(branch.logits.abs().max()))
        assert torch.allclose(other.boxes, branch.boxes, atol=1e-3 * float(branch.boxes.abs().max()))


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo11n-pose", "yolo26n-seg", "yolov8n-obb", "yolo26n-obb"])
def test_a_teacher_of_another_task_teaches_a_detector(name: str) -> None:
    boxes = {} if name.endswith("obb") else {"bckd": 1.0}
    terms, _ = terms_of("+".join(["dfmsd", "sgfi", "pcd", *boxes]), model_of(name))
    assert all(term > 0 for term in terms.values()), terms


@pytest.mark.parametrize("method", ["bckd", "ld"])
def test_rotated_boxes_do_not_teach_upright_ones(method: str) -> None:
    with pytest.raises(UserError, match=rf"{method}.*rotated"):
        tiny_criterion(method, "yolov8n", model_of("yolov8n-obb"))
    if method == "bckd":
        assert terms_of("bckd", model_of("yolov8n-obb"), bckd_box=0.0)[0]["bckd"] > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_other_levels_teach_what_they_share(name: str) -> None:
    terms, criterion = terms_of("dfmsd+pcd", model_of(name))
    assert criterion.methods["dfmsd"][0].pair.strides == VARIANTS[name]
    assert all(term > 0 for term in terms.values()), terms


# In training ----------------------------------------------------------------------------------------------------------
class Stopped(Exception):
    """Stands in for whatever ends a run after its first epoch."""


@pytest.mark.parametrize(
    ("name", "method", "overrides"),
    [
        (RTDETR, "dfmsd", {"teacher_imgsz": 128}),
        ("yolov8s-worldv2", "dfmsd+pcd", {"teacher_imgsz": 96}),
        ("yoloe-26n", "pcd", {"kd_val": True}),
        ("yolov8n-obb", "pcd", {"kd_class_map": {"circle": "round", "square": ["box", "square"]}}),
    ],
)
def test_they_teach_in_a_run_with_its_preflight_and_resume(
    name: str, method: str, overrides: dict[str, Any], tiny_data: Path, tmp_path: Path, said: list[str]
) -> None:
    names = ("round", "box", "square", "hexagon") if "kd_class_map" in overrides else NAMES
    teacher = save_model(model_of(name, names), tmp_path / "teacher.pt")
    settings = {"teacher": str(teacher), "method": method, "kd_preflight": True, **overrides}
    trainer = DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, **settings))

    def stop(_: Any) -> None:
        raise Stopped

    trainer.add_callback("on_model_save", stop)
    with pytest.raises(Stopped):
        trainer.train()
    run = Path(trainer.save_dir)
    assert any("AP50 on" in message for message in said), said
    resumed: Any = DistillationTrainer(overrides={"resume": str(run / "weights" / "last.pt")})
    for key, value in overrides.items():
        assert getattr(resumed.args, key) == value == yaml.safe_load((run / "args.yaml").read_text())[key]
    resumed.train()
    assert len(rows(run)) == 2
    for row in rows(run):
        assert all(
            math.isfinite(row[f"train/{part}_loss"]) and row[f"train/{part}_loss"] > 0 for part in method.split("+")
        )


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_multispectral_students_learn_from_a_colour_teacher_in_a_run(
    channels: int, tmp_path: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    data = draw_dataset(tmp_path / "shapes", images=(6, 4), imgsz=64, seed=0, classes=3)
    if channels == 4:
        for file in (tmp_path / "shapes").rglob("images/*/*.*"):
            image = cv2.imread(str(file))
            cv2.imwrite(str(file.with_suffix(".png")), np.dstack((image, image[..., :1])))
            if file.suffix != ".png":
                file.unlink()
    data.write_text(data.read_text() + f"channels: {channels}\n")
    run = train(tmp_path, data, teacher=str(tiny_teacher("yolov8n")), method="dfmsd+pcd", kd_preflight=True, epochs=1)
    assert run.model.yaml["channels"] == channels
    (row,) = rows(Path(run.save_dir))
    assert row["train/dfmsd_loss"] > 0 and row["train/pcd_loss"] > 0
