"""One short real training for each pair of families: the terms fall, the checkpoint is plain, the export agrees."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

from tests.test_teachers import OTHER_TASKS, RTDETR, model_of
from tests.tiny import overrides_for, rows, save_model, tiny_model
from yolokd import DistillationTrainer
from yolokd.export import check_export

STUDENTS = (
    "yolov3-tiny",
    "yolov5n",
    "yolov6n",
    "yolov8n",
    "yolov8n-p2",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
)
DETECTORS = (*STUDENTS, "yolov8n-p6", "yolov8s-worldv2", "yoloe-11s")
TEACHERS = (*DETECTORS, *OTHER_TASKS, RTDETR)
FEATURES_ALONE = {RTDETR}
EXPORTED_OTHERWISE = {"yolov3-tiny"}  # the host's ONNX of it may differ from torch, of an untouched model as well
COVERING = (  # each family once as student and once as teacher, and each kind of teacher once
    ("yolov3-tiny", "yolov5n"),
    ("yolov5n", "yolo26n"),
    ("yolov6n", "yolov3-tiny"),
    ("yolov8n", "yolo11n"),
    ("yolov8n-p2", "yolov8n-p6"),
    ("yolov9t", "yolov6n"),
    ("yolov10n", "yolov9t"),
    ("yolo11n", "yolov10n"),
    ("yolo12n", "yolov8n"),
    ("yolo26n", "yolo12n"),
    ("yolov8n", "yolov8n-p2"),
    ("yolo26n", RTDETR),
    ("yolov8n", "yoloe-11s"),
    ("yolo11n", "yolov8s-worldv2"),
    ("yolov8n", "yolo11n-seg"),
    ("yolov5n", "yolov8n-pose"),
    ("yolo11n", "yolo26n-obb"),
)
ELSEWHERE = (  # of these kinds of teacher a run is in test_teachers.py
    ("yolo26n", RTDETR),
    ("yolov8n", "yoloe-11s"),
    ("yolo11n", "yolov8s-worldv2"),
    ("yolov5n", "yolov8n-pose"),
    ("yolo11n", "yolo26n-obb"),
)
AGAIN = [pair for n, pair in enumerate(COVERING) if pair[0] in {student for student, _ in COVERING[:n]}]
# Of pcd the part over all anchors: a few anchors that untrained teachers are sure of change from epoch to epoch.
FALLING = {"mgd": "kd/mgd", "pcd": "kd/pcd_binary"}
STILL = {key: 0.0 for key in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic")}
EPOCHS = 6


def cells() -> list[Any]:
    """Return all pairs, marked as slow but for those of the covering choice that have no run elsewhere."""
    quick = set(COVERING) - set(ELSEWHERE)
    return [
        pytest.param(student, teacher, marks=() if (student, teacher) in quick else pytest.mark.slow)
        for student in STUDENTS
        for teacher in TEACHERS
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Weights of a model by name, as a teacher or as a student."""
    folder = tmp_path_factory.mktemp("families")

    @cache
    def path(name: str, teaches: bool) -> Path:
        model = model_of(name) if teaches else tiny_model(name, seed=1)
        return save_model(model, folder / f"{name}-{'teacher' if teaches else 'student'}.pt")

    return path


def test_the_covering_choice_has_every_student_and_every_detector() -> None:
    assert {student for student, _ in COVERING} == set(STUDENTS)
    assert {teacher for _, teacher in COVERING} >= {*DETECTORS, RTDETR}
    assert {student for student, _ in set(COVERING) - set(ELSEWHERE)} == set(STUDENTS)
    assert {teacher for _, teacher in set(COVERING) - set(ELSEWHERE)} >= {*STUDENTS, "yolov8n-p6"}
    assert {teacher.split("-")[-1] for _, teacher in COVERING} >= {"seg", "pose", "obb"}


@pytest.mark.parametrize(("student", "teacher"), cells())
def test_a_short_training(
    student: str, teacher: str, weights: Callable[[str, bool], Path], tiny_data: Path, tmp_path: Path
) -> None:
    methods = ["mgd"] if teacher in FEATURES_ALONE else ["mgd", "pcd"]
    settings = overrides_for(
        tmp_path,
        tiny_data,
        model=str(weights(student, False)),
        teacher=str(weights(teacher, True)),
        method="+".join(methods),
        imgsz=128 if "p6" in teacher else 64,
        epochs=EPOCHS,
        batch=8,
        nbs=8,
        val=False,
        save=False,  # but for the last epoch
        optimizer="AdamW",
        lr0=5e-4,
        warmup_epochs=0,
        kd_warmup=0.0,
        kd_decay="constant",
        kd_gain=3.0,
        kd_preflight=True,
        **STILL,
    )
    trainer = DistillationTrainer(overrides=settings)
    trainer.train()
    found = rows(trainer.save_dir)
    assert len(found) == EPOCHS
    for name in methods:
        values = [row[f"train/{name}_loss"] for row in found]
        assert np.isfinite(values).all() and min(values) > 0, (name, values)
        falling = [row[FALLING[name]] for row in found]
        assert np.mean(falling[-2:]) < np.mean(falling[:2]), (name, falling)
    plain = load_checkpoint(trainer.last)[0]
    assert type(plain) is DetectionModel and "criterion" not in plain._modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    if (student, teacher) in AGAIN:  # this student is exported after another teacher
        return
    sources = [trainer.last, *([weights(student, False)] if student in EXPORTED_OTHERWISE else [])]
    exports = [YOLO(source).export(format="onnx", imgsz=settings["imgsz"], simplify=False) for source in sources]
    parity, *untouched = map(check_export, sources, exports)
    # where the host exports an untouched model right, a distilled one must be right as well
    assert parity.ok or any(not other.ok for other in untouched), parity.summary()
