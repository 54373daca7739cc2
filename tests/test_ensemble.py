"""Several teachers at once: averaged, or weighted by their confidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import NAMES, overrides_for, rows, set_up, tiny_batch, tiny_criterion, tiny_model, train
from yolokd.errors import UserError
from yolokd.taps import Taps, Targets
from yolokd.teachers.ensemble import confidence_weights
from yolokd.trainers import DistillationTrainer


def sides(probabilities: list[list[float]], positives: list[bool]) -> tuple[Taps, Targets]:
    """Return one image's taps with the given class probabilities, one row per anchor, and the assignment."""
    logits = torch.tensor(probabilities).logit()[None]
    mask = torch.tensor(positives)[None]
    nothing = torch.zeros(0)
    targets = Targets(nothing.view(0, 4), nothing.long(), nothing.long(), mask, mask.float())
    return Taps([torch.zeros(1, 1, 1, len(positives))], (8,), logits), targets


def test_confidence_is_the_mean_of_the_largest_probability_at_the_objects() -> None:
    first = sides([[0.9, 0.2], [0.1, 0.7], [0.99, 0.99]], [True, True, False])  # (0.9 + 0.7) / 2 = 0.8
    second = sides([[0.1, 0.2], [0.2, 0.1], [0.99, 0.99]], [True, True, False])  # (0.2 + 0.2) / 2 = 0.2
    weights = confidence_weights([first[0], second[0]], [first[1], second[1]])
    assert weights.tolist() == pytest.approx([0.8, 0.2], rel=1e-5)


def test_the_number_of_objects_on_a_teachers_levels_does_not_count() -> None:
    first = sides([[0.8, 0.2], [0.1, 0.7]], [True, False])  # 0.8
    second = sides([[0.1, 0.2], [0.2, 0.1], [0.1, 0.2]], [True, True, True])  # 0.2
    weights = confidence_weights([first[0], second[0]], [first[1], second[1]])
    assert weights.tolist() == pytest.approx([0.8, 0.2], rel=1e-5)


def test_without_objects_all_teachers_count_the_same() -> None:
    empty = [sides([[0.9, 0.2]], [False]), sides([[0.1, 0.2]], [False])]
    assert confidence_weights([taps for taps, _ in empty], [own for _, own in empty]).tolist() == [0.5, 0.5]


def terms(student: Any, teachers: list[Any], method: str, **overrides: Any) -> dict[str, float]:
    """Return the items of one step of a copy of the student."""
    model, _ = tiny_criterion(method, student, teachers, **overrides)
    _, items = model(tiny_batch())
    return {name: float(value) for name, value in items.items()}


@pytest.mark.parametrize("method", ["pcd", "softkd+bckd"])
def test_together_the_term_is_the_mean_of_the_teachers_own(method: str) -> None:
    first, second = tiny_model(seed=2), tiny_model(seed=3)
    both = terms("yolov8n", [first, second], method, kd_teachers="together")
    alone = [terms("yolov8n", [teacher], method) for teacher in (first, second)]
    for name in (f"{part}_loss" for part in method.split("+")):
        assert both[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2, rel=1e-5)
        assert alone[0][name] != pytest.approx(alone[1][name], rel=1e-3)


def test_the_weight_of_each_teacher_is_its_confidence() -> None:
    first, second = tiny_model(seed=2), tiny_model(seed=3)
    settings = {"kd_teachers": "together", "kd_teacher_weights": "confidence"}
    both = terms("yolov8n", [first, second], "softkd", **settings)
    alone = [terms("yolov8n", [teacher], "softkd")["softkd_loss"] for teacher in (first, second)]
    model, criterion = tiny_criterion("softkd", "yolov8n", [first, second], **settings)
    batch = tiny_batch()
    model(batch)
    positives = criterion.task.assignments["one2many"].positives
    chances = []
    for link in criterion.links:
        probabilities = link.teacher(batch["img"]).branches["one2many"].logits.sigmoid().amax(-1)
        chances.append(float(probabilities[positives].mean()))
    expected = (alone[0] * chances[0] + alone[1] * chances[1]) / sum(chances)
    assert both["softkd_loss"] == pytest.approx(expected, rel=1e-4)
    assert not math.isclose(chances[0], chances[1], rel_tol=1e-3)


def test_confidence_is_that_in_the_matched_classes_alone() -> None:
    other = tiny_model(names=(*NAMES, "hexagon"), seed=3)
    bias = other.model[-1].cv3[0][-1].bias
    settings = {"kd_teachers": "together", "kd_teacher_weights": "confidence"}
    before = terms("yolov8n", [tiny_model(seed=2), other], "softkd", **settings)
    with torch.no_grad():
        for branch in other.model[-1].cv3:
            branch[-1].bias[3] += 50  # sure of hexagons everywhere
    assert bias[3] > 20
    assert terms("yolov8n", [tiny_model(seed=2), other], "softkd", **settings) == before


def test_a_teacher_without_a_shared_class_has_no_confidence() -> None:
    other = tiny_model(names=("hexagon", "star"), seed=3)
    with pytest.raises(UserError, match=r"kd_teacher_weights=confidence .* none of the data's classes"):
        tiny_criterion(
            "mgd", "yolov8n", [tiny_model(seed=2), other], kd_teachers="together", kd_teacher_weights="confidence"
        )


def test_every_teacher_has_adapters_of_its_own_that_learn(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    teachers = [str(tiny_teacher("yolov8n")), str(tiny_teacher("yolo26n"))]
    trainer = set_up(tmp_path, tiny_data, teacher=teachers, method="mgd+pcd", kd_teachers="together", kd_gain=1.0)
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert trainer.criterion is not None
    trainer.criterion.clock.step = 1
    loss, _ = trainer.model(batch)
    loss.sum().backward()
    for module in trainer.criterion.methods["mgd"]:
        assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_a_run_with_two_teachers_at_once(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], said: list[str]
) -> None:
    teachers = [str(tiny_teacher("yolov8n")), str(tiny_teacher("yolo11n"))]
    train(
        tmp_path,
        tiny_data,
        teacher=teachers,
        method="dfmsd+pcd",
        kd_teachers="together",
        kd_teacher_weights="confidence",
    )
    for row in rows(tmp_path / "run"):
        assert row["train/dfmsd_loss"] > 0 and row["train/pcd_loss"] > 0
    assert any("stage 1 of 2, teacher 1, 2" in text for text in said)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kd_teachers": "together", "teacher": "a.pt"}, "kd_teachers=together needs several teachers"),
        ({"teacher": ["a.pt", "b.pt"], "method": "pcd"}, "add kd_teachers=together"),
        ({"teacher": "a.pt", "kd_teacher_weights": "confidence"}, "add kd_teachers=together"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], words: str, tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match=words):
        DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, **given))
