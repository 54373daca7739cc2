"""Where a student's weights come from, and the images that they are fitted on."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import RTDETRDetectionModel

from tests.tiny import IMGSZ, NAMES, save_model, set_up, tiny_model, train
from tests.widening import raw, widened
from yolokd import DistillationTrainer
from yolokd.errors import UserError
from yolokd.models import input_channels
from yolokd.students import start as start_module
from yolokd.students.start import start_from_teacher
from yolokd.teachers.images import Sight, channel_plan

IMAGES = torch.rand(8, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))


def start(student: Any, teachers: list[Any], init: str, at_random: bool, freeze: int | list[int] | None = None) -> bool:
    """Start a student and return whether its weights were changed."""
    before = {key: value.clone() for key, value in student.state_dict().items()}
    args = SimpleNamespace(method="bckd", kd_init=init, kd_class_map=None, classes=None, freeze=freeze)
    start_from_teacher(student, teachers, lambda: IMAGES, dict(enumerate(NAMES)), args, at_random)
    return any(not torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_a_fused_teacher_is_of_no_family(said: list[str]) -> None:
    teacher = tiny_model("yolov8s", seed=2).fuse(verbose=False)
    why = "no teacher is of the student's family (a fused one is of none; save it without fuse())"
    assert not start(tiny_model(seed=1), [teacher], "auto", True)
    assert said[-1] == f"distillation: {why}, so it starts from random weights"
    assert not start(tiny_model(seed=1), [teacher], "auto", False)
    assert said[-1] == f"distillation: {why}, so it keeps its weights"
    with pytest.raises(UserError, match=r"e\.g\. yolov8x for yolov8n \(a fused one is of none"):
        start(tiny_model(seed=1), [teacher], "teacher", True)


def test_when_a_student_starts_from_its_teacher(said: list[str]) -> None:
    """Random students do by default, others when asked, and another family never."""
    teacher, other = tiny_model("yolov8s", seed=2), tiny_model("yolo11n")
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert start(tiny_model(seed=1), [teacher], "auto", True)
    assert re.fullmatch(
        r"distillation: the student starts from weights fitted to its teacher, which explain \d+% of the teacher's "
        r"outputs \(kd_init=none starts from random ones\); 8 images, \d+ s",
        said[-1],
    )
    assert start(tiny_model(seed=1), [teacher], "teacher", False)
    assert start(tiny_model(seed=1), [other, teacher], "auto", True)
    assert not start(tiny_model(seed=1), [teacher], "none", True)
    said.clear()
    assert not start(tiny_model(seed=1), [other], "auto", True)
    assert said == ["distillation: no teacher is of the student's family, so it starts from random weights"]
    assert not start(tiny_model(seed=1), [other], "auto", False) and len(said) == 1
    with pytest.raises(UserError, match="kd_init=teacher needs a teacher of the student's family"):
        start(tiny_model(seed=1), [other], "teacher", True)
    assert all(torch.equal(state[key], value) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("channels", [1, 5])
def test_a_student_of_other_channels_is_fitted_too(channels: int, said: list[str]) -> None:
    """To what the teacher answers to the channels that it is shown: of them it is every second channel."""
    teacher = widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2))
    student = tiny_model(seed=4, channels=channels)
    images = torch.rand(8, channels, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))
    args = SimpleNamespace(method="fit", kd_init="auto", kd_class_map=None, classes=None, freeze=None)
    assert start_from_teacher(student, [teacher], lambda: images, dict(enumerate(NAMES)), args, True).fitted
    shown = Sight(*channel_plan(channels, 3))(images)
    assert torch.allclose(raw(student, images), raw(teacher, shown), rtol=0.02, atol=0.02)
    assert input_channels(teacher) == 3 and input_channels(student) == channels


def test_a_pretrained_student_takes_what_explains_more(said: list[str]) -> None:
    """The teacher is the student with a layer whose even channels, the ones that are selected, say nothing.

    So the student's own weights explain all of the teacher, and weights fitted to it do not. Another student's explain
    little, and less than the fitted ones.
    """
    student, teacher = tiny_model(seed=1), widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2))
    with torch.no_grad():
        for parameter in (teacher.model[1].bn.weight, teacher.model[1].bn.bias):
            parameter[::2] = 0
        teacher.model[2].cv1.conv.weight[:, 1::2] *= 2
    torch.testing.assert_close(raw(teacher, IMAGES), raw(student, IMAGES), rtol=1e-3, atol=1e-3)
    assert not start(student, [teacher], "auto", False)
    assert re.fullmatch(
        r"distillation: the student keeps its own weights, which explain 100% of the teacher's outputs \(8 images\); "
        r"weights fitted to the teacher's \d\d?% \(kd_init=teacher takes them\)",
        said[-1],
    )
    assert start(student, [teacher], "teacher", False) and said[-1].count("(kd_init=none keeps its own)") == 1
    assert start(tiny_model(seed=3), [tiny_model("yolov8s", seed=2)], "auto", False)
    assert re.search(r"its own \d+% \(kd_init=none keeps these\); 8 images", said[-1])


@pytest.mark.parametrize("freeze, frozen", [(2, {0, 1}), ([0, 4], {0, 4})])
def test_frozen_layers_keep_given_weights(freeze: Any, frozen: set[int], said: list[str]) -> None:
    """What `freeze` names stays to the bit, where it is not random, and the layers behind it are fitted to it."""
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    assert start(student, [teacher], "teacher", False, freeze) and "frozen layers keep theirs" in said[-1]
    same = {key for key, value in student.state_dict().items() if torch.equal(value, before[key])}
    weights = {key: int(key.split(".")[1]) for key in before if ".dfl." not in key and key.endswith("conv.weight")}
    assert {index for key, index in weights.items() if key in same} == frozen
    assert {key for key in before if int(key.split(".")[1]) in frozen} <= same
    student.load_state_dict(before)
    assert start(student, [teacher], "auto", True, freeze)
    assert not torch.equal(student.model[0].conv.weight, before["model.0.conv.weight"])


def test_a_teacher_of_other_classes_does_not_replace_given_weights(said: list[str]) -> None:
    """However well its outputs can be fitted: they are of another task."""
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    teacher.names = {0: "apple", 1: NAMES[1], 2: NAMES[2]}
    assert not start(student, [teacher], "auto", False)
    assert said[-1] == (
        f"distillation: the student keeps its own weights, since the teacher does not know {NAMES[0]} "
        f"(kd_init=teacher takes weights fitted to it all the same)"
    )
    assert start(tiny_model(seed=1), [teacher], "auto", True) and start(student, [teacher], "teacher", False)


def test_queries_are_selected() -> None:
    """An RT-DETR student has no grid to be fitted on: random ones take a selection, others stay."""
    student, teacher = (tiny_model("rtdetr-l", seed=seed, trained=False, task=RTDETRDetectionModel) for seed in (1, 2))
    assert not start(student, [teacher], "auto", False)
    assert start(student, [teacher], "auto", True)
    assert torch.equal(student.model[0].stem1.conv.weight, teacher.model[0].stem1.conv.weight)


def test_without_an_image_weights_are_selected(said: list[str]) -> None:
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    said.clear()  # what the host says of the models
    args = SimpleNamespace(method="bckd", kd_init="auto", kd_class_map=None, classes=None, freeze=None)
    start_from_teacher(student, [teacher], lambda: torch.zeros(0), dict(enumerate(NAMES)), args, True)
    assert torch.equal(student.model[0].conv.weight, teacher.model[0].conv.weight[::2])
    assert said == ["distillation: the student starts from its teacher's weights, 100% of its own selected"]


def test_a_teacher_that_gives_no_numbers_leaves_the_selection(said: list[str]) -> None:
    """Layers whose target is not finite keep the selected weights, so that training can still begin."""
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    with torch.no_grad():
        teacher.model[9].cv1.bn.bias.fill_(float("nan"))
    assert start(student, [teacher], "auto", True)
    assert torch.isfinite(student.model[22].cv3[0][-1].weight).all()


@pytest.mark.parametrize("init", ["auto", "none"])
def test_training_starts_there(tmp_path: Path, tiny_data: Path, init: str) -> None:
    """Before the first step student and EMA answer as the teacher, of which the student is every second channel."""
    teacher = widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2))
    path = save_model(teacher, tmp_path / "teacher.pt")
    trainer = set_up(tmp_path, tiny_data, model="yolov8n.yaml", teacher=str(path), method="bckd", kd_init=init)
    images = trainer.sample_images() / 255
    for model in (trainer.model, trainer.ema.ema):
        assert torch.allclose(raw(model, images), raw(teacher, images), rtol=0.02, atol=0.02) == (init == "auto")


def test_a_fitted_start_is_trained_on(tmp_path: Path, tiny_data: Path) -> None:
    """Through a whole run the checkpoint is a plain student, and the run is the same to the bit when repeated."""
    path = save_model(widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2)), tmp_path / "teacher.pt")
    runs = [train(tmp_path, tiny_data, teacher=str(path), method="bckd", name=name) for name in ("a", "b")]
    weights = [torch.load(run.last, weights_only=False)["model"].state_dict() for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_device_without_the_memory_for_a_fit_leaves_it_to_the_cpu(said: list[str]) -> None:
    seen: list[str] = []

    def fit(device: torch.device) -> str:
        seen.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return f"on {device.type}"

    assert start_module._somewhere(fit, torch.device("cpu")) == "on cpu" and not said
    assert start_module._somewhere(fit, torch.device("cuda:0")) == "on cpu" and seen == ["cpu", "cuda", "cpu"]
    assert "cuda:0 has not the memory for the fit of the start" in said[0]


def test_the_start_alone(tmp_path: Path, tiny_data: Path) -> None:
    """`method=fit` begins where `bckd` does, and from there on is plain training."""
    path = save_model(widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2)), tmp_path / "teacher.pt")
    given = {"model": "yolov8n.yaml", "teacher": str(path)}
    starts = [set_up(tmp_path, tiny_data, method=method, **given).model for method in ("fit", "bckd", "none")]
    first, second, plain = ([*model.model.state_dict().values()] for model in starts)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))
    run = train(tmp_path, tiny_data, method="fit", name="fit", **given)
    assert run.criterion is None and not (run.wdir / "kd_state.pt").exists()
    assert "kd" not in (run.save_dir / "results.csv").read_text(encoding="utf-8").splitlines()[0]


def test_the_start_alone_needs_a_teacher_of_the_family(tmp_path: Path, tiny_data: Path) -> None:
    path = save_model(tiny_model("yolo11n", seed=2), tmp_path / "teacher.pt")
    with pytest.raises(UserError, match="method=fit needs a teacher of the student's family"):
        train(tmp_path, tiny_data, teacher=str(path), method="fit")
    with pytest.raises(UserError, match="method=fit is the start that kd_init=none leaves out"):
        train(tmp_path, tiny_data, teacher=str(path), method="fit", kd_init="none")
    with pytest.raises(UserError, match="method=fit needs a teacher"):
        train(tmp_path, tiny_data, method="fit")
    assert not [*tmp_path.glob("**/args.yaml")]


def trainer_for(project: Path, data: Path, **overrides: Any) -> DistillationTrainer:
    """Return a trainer whose model is loaded."""
    trainer: Any = set_up(project, data, teacher=str(project / "t.pt"), kd_init="none", **overrides)
    return trainer  # type: ignore[no-any-return]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The data.yaml of 6 + 1 images of 40 x 20 pixels, each of one grey, and one that is broken among them."""
    save_model(tiny_model("yolov8s", seed=2), tmp_path / "t.pt")
    for split, count in (("train", 6), ("val", 1)):
        for kind in ("images", "labels"):
            (tmp_path / "photos" / kind / split).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(
                str(tmp_path / f"photos/images/{split}/{number}.png"), np.full((20, 40, 3), 40 * number, np.uint8)
            )
            (tmp_path / f"photos/labels/{split}/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    file = tmp_path / "photos" / "data.yaml"
    file.write_text(f"path: {file.parent}\ntrain: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    return file


def greys(images: torch.Tensor) -> list[int]:
    return [round(float(image[:, IMGSZ // 2, IMGSZ // 2].float().mean())) for image in images]


def test_sampled_images(tmp_path: Path, photos: Path) -> None:
    """They are scaled, framed in grey, spaced evenly, and neither generators nor the data's folder change."""
    trainer = trainer_for(tmp_path, photos)
    before, files = (random.getstate(), torch.get_rng_state()), sorted(photos.parent.rglob("*"))
    images = trainer.sample_images()
    assert images.shape == (6, 3, IMGSZ, IMGSZ) and greys(images) == [0, 40, 80, 120, 160, 200]
    assert images.dtype is torch.uint8 and torch.all(images[1, :, : IMGSZ // 4 - 1] == 114)  # 64 x 32 within 64 x 64
    assert greys(trainer.sample_images(number=(1, 3))) == [0, 80, 160]
    assert greys(trainer.sample_images(2 * IMGSZ**2, (1, 9))) == [0, 120]
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert sorted(photos.parent.rglob("*")) == files


def test_which_images_are_sampled(tmp_path: Path, photos: Path) -> None:
    """With a fraction only those that are learned from, with kd_unlabeled others too, and never what is broken."""
    assert greys(trainer_for(tmp_path, photos, fraction=0.5).sample_images()) == [0, 40, 80]
    joined = trainer_for(tmp_path, photos, fraction=0.5, kd_unlabeled="rest", method="bckd")
    assert greys(joined.sample_images()) == [0, 40, 80, 120, 160, 200]
    copy = shutil.copytree(photos.parent, tmp_path / "alone")
    (copy / "images/train/1.png").write_bytes(b"no picture")
    trainer = trainer_for(tmp_path, photos)
    trainer.data = {**trainer.data, "train": str(copy / "images/train")}
    assert greys(trainer.sample_images()) == [0, 80, 120, 160, 200]


def test_no_labels_at_all(tmp_path: Path, photos: Path) -> None:
    """With kd_names the images of data= are sampled."""
    images = trainer_for(tmp_path, photos, kd_names=list(NAMES), method="bckd").sample_images()
    assert greys(images) == [0, 40, 80, 120, 160, 200]
