"""Class layers that given weights do not bring are fitted to the teacher's logits, and nothing else is touched."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from tests.tiny import IMGSZ, NAMES, save_model, set_up, tiny_model
from yolokd.outputs import read_output
from yolokd.students.inherited import class_layers
from yolokd.students.new_classes import fit_classes, new_classes
from yolokd.students.start import start_from_teacher

IMAGES = torch.rand(8, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))
CLASSES = {index: index for index in range(len(NAMES))}
DATA = dict(enumerate(NAMES))


def logits(model: Any, branch: str = "one2many") -> torch.Tensor:
    """Return class logits with shape (B, A, K), as a training forward in evaluation mode of the layers gives them."""
    model.model[-1].training = True
    try:
        with torch.no_grad():
            return read_output(model(IMAGES)).branches[branch].logits
    finally:
        model.model[-1].training = False


def forgetful(name: str) -> tuple[Any, Any]:
    """Return a student without its class layers, and a teacher that is what it was before."""
    teacher = tiny_model(name, seed=1)
    student = copy.deepcopy(teacher)
    for layer in class_layers(student):
        conv = student.get_submodule(layer)
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.constant_(conv.bias, -4.0)
    return student, teacher


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n"])
def test_what_a_student_can_say_it_says(name: str) -> None:
    """Where the student's features give the teacher's logits exactly, the fit finds them, in each of its branches."""
    student, teacher = forgetful(name)
    images = IMAGES.repeat(2, 1, 1, 1)
    images[8:] = images[8:].flip(-1)
    assert not torch.allclose(logits(student), logits(teacher), atol=0.5)
    share = fit_classes(student, teacher, lambda: images, CLASSES)
    assert share is not None and 0.95 < share <= 1
    for branch in ("one2many", "one2one") if name == "yolo26n" else ("one2many",):
        error = (logits(student, branch) - logits(teacher, branch)).square().mean()
        assert error < 0.05 * logits(teacher, branch).var()


@pytest.mark.parametrize(
    "own, other", [("yolo11n", "yolov8s"), ("yolov8n", "yolo26n"), ("yolo26n", "yolov8s"), ("yolov8n", "yolov8s-p2")]
)
def test_only_the_rows_asked_for_change_across_families(own: str, other: str) -> None:
    student, teacher = tiny_model(own, seed=1), tiny_model(other, seed=2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    assert fit_classes(student, teacher, lambda: IMAGES, {0: 1, 2: 0}) is not None
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    layers = {layer for layer in class_layers(student) if "one2one" not in layer}  # no teacher here has it beside them
    assert changed == {f"{layer}.{key}" for layer in layers for key in ("weight", "bias")}
    assert all(torch.equal(student.state_dict()[key][1], before[key][1]) for key in changed)


def test_a_level_is_paired_by_its_stride() -> None:
    """The first level of a teacher with P2 is not the student's: its own P3 is, from which the means come."""
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s-p2", seed=2)
    fit_classes(student, teacher, lambda: IMAGES, CLASSES)
    sizes = [(IMGSZ // stride) ** 2 for stride in (4, 8, 16, 32)]
    theirs = logits(teacher).split(sizes, dim=1)[1]
    ours = logits(student).split(sizes[1:], dim=1)[0]
    np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.02)


def given_to(names: tuple[str, ...], weights: Any, by_name: bool = True) -> set[int]:
    """Return the new classes of a student that the host builds for names and gives weights to."""
    data = dict(enumerate(names))
    student = DetectionModel(copy.deepcopy(weights.yaml), nc=len(names), verbose=False)
    if by_name:
        student.names = data
    student.load(weights, verbose=False)
    return new_classes(student, weights, dict(weights.names), data)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_which_classes_are_new(name: str) -> None:
    """Rows of the same name are no news, in whatever place and number; the host copies them by name or by index."""
    weights, (first, second, third) = tiny_model(name, seed=1), NAMES
    assert new_classes(weights, None, {}, DATA) == {0, 1, 2}
    assert given_to(NAMES, weights) == given_to(NAMES, weights, by_name=False) == set()
    assert given_to((second, first, third), weights) == set()
    assert given_to((second, first, third), weights, by_name=False) == {0, 1}
    assert given_to((third, "cell"), weights) == {1}
    assert given_to((third, "cell"), weights, by_name=False) == {0, 1}
    assert given_to((first, "cell", third), weights) == given_to((first, "cell", third), weights, False) == {1}


def test_a_class_is_new_where_one_layer_lacks_it() -> None:
    weights = tiny_model(seed=1)
    student = copy.deepcopy(weights)
    with torch.no_grad():
        student.get_submodule(max(class_layers(student))).weight[1] += 1
    assert new_classes(student, weights, DATA, DATA) == {1}


def test_weights_of_other_layers_bring_no_class() -> None:
    assert new_classes(tiny_model("yolo11n"), tiny_model("yolo26n"), DATA, DATA) == {0, 1, 2}


def test_nothing_is_fitted_where_nothing_fits() -> None:
    student = tiny_model(seed=1)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    gray, teacher = tiny_model(seed=2, channels=1), tiny_model(seed=2)
    assert fit_classes(student, gray, lambda: IMAGES, CLASSES) is None
    assert fit_classes(student, teacher, lambda: IMAGES, {}) is None
    assert fit_classes(student, teacher, lambda: IMAGES[:0], CLASSES) is None
    assert fit_classes(student, teacher, lambda: IMAGES, CLASSES, lambda name: False) is None
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize(
    "init, new, freeze, fitted",
    [
        ("auto", {0, 1, 2}, None, True),
        ("auto", set(), None, False),
        ("none", {0, 1, 2}, None, False),
        ("auto", {0}, 24, False),
    ],
)
def test_when_they_are_fitted(init: str, new: set[int], freeze: int | None, fitted: bool, said: list[str]) -> None:
    """By default, where the given weights lack classes that the teacher of another family knows."""
    student, teacher = tiny_model("yolo11n", seed=1), tiny_model("yolov8s", seed=2)
    teacher.names = {0: "apple", 1: NAMES[0], 2: NAMES[2]}
    before = {key: value.clone() for key, value in student.state_dict().items()}
    args = SimpleNamespace(method="bckd", kd_init=init, kd_class_map=None, classes=None, freeze=freeze)
    said.clear()
    assert not start_from_teacher(student, [teacher], lambda: IMAGES, DATA, args, False, new).fitted
    changed = [key for key, value in student.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(changed) == fitted and len(said) == int(fitted)
    if fitted:
        assert said[0].startswith(
            f"distillation: the student's class layers had nothing for {NAMES[0]}, {NAMES[2]}, and were fitted"
        )
        assert all(torch.equal(student.state_dict()[key][1], before[key][1]) for key in changed)


def test_weights_that_may_come_back_have_class_layers_that_answer(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where fitted weights replace given ones, what the preflight compares and puts back is not at random."""
    explained = iter([0.9, 0.5])
    monkeypatch.setattr("yolokd.students.start._mean", lambda shares, layers: next(explained))
    student, teacher = tiny_model("yolov8n", seed=1), tiny_model("yolov8s", seed=2)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    args = SimpleNamespace(method="bckd", kd_init="auto", kd_class_map=None, classes=None, freeze=None)
    given = start_from_teacher(student, [teacher], lambda: IMAGES, dict(enumerate(NAMES)), args, False, {0, 2}).given
    assert given is not None and any("starts from weights fitted" in message for message in said)
    assert not any("had nothing for" in message for message in said)
    changed = [key for key, value in given.items() if not torch.equal(value, before[key])]
    assert {key.rpartition(".")[0] for key in changed} == set(class_layers(student))
    assert all(torch.equal(given[key][1], before[key][1]) for key in changed)
    assert not torch.equal(student.model[0].conv.weight, given["model.0.conv.weight"])
    alone = tiny_model("yolov8n", seed=1)  # as where they stay from the first
    assert fit_classes(alone, teacher, lambda: IMAGES, {0: 0, 2: 2}) is not None
    assert all(torch.allclose(given[key], alone.state_dict()[key], atol=1e-5) for key in changed)


def test_rows_that_the_host_takes_over_by_name_stay(tmp_path: Path, tiny_data: Path, said: list[str]) -> None:
    teacher = save_model(tiny_model("yolov8s", seed=2), tmp_path / "teacher.pt")
    given = tiny_model("yolo11n", names=(NAMES[2], "dog", NAMES[0], NAMES[1]), seed=1)
    model = save_model(given, tmp_path / "student.pt")
    trainer = set_up(tmp_path, tiny_data, model=str(model), teacher=str(teacher), method="bckd")
    assert not any("were fitted to the teacher's logits" in message for message in said)
    for layer in class_layers(given):
        row = given.get_submodule(layer).weight[[2, 3, 0]]
        assert torch.equal(trainer.model.get_submodule(layer).weight.cpu(), row)


def test_a_run_begins_with_them(tmp_path: Path, tiny_data: Path, said: list[str]) -> None:
    """A student of other classes has nothing to say about the data's, until its layers are fitted."""
    teacher = save_model(tiny_model("yolov8s", seed=2), tmp_path / "teacher.pt")
    model = save_model(tiny_model("yolo11n", names=("cat", "dog"), seed=1), tmp_path / "student.pt")
    options = {"model": str(model), "teacher": str(teacher), "method": "bckd"}
    trainer = set_up(tmp_path, tiny_data, **options)
    assert any("were fitted to the teacher's logits" in message for message in said)
    named = {name: value for name, value in trainer.ema.ema.named_parameters() if name.endswith("cv3.0.2.weight")}
    assert named and all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in named.items())
