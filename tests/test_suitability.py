"""Which method works for which student and teacher: the rules, the refusals, and the table that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.task_data import task_model
from tests.tiny import tiny_criterion
from yolokd import config
from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.pairs.matrix import STUDENTS, TEACHERS, cell, reasons, tasks_markdown, tasks_text
from yolokd.pairs.suitability import READS, Head, check, parts_of, reads, refusals, student_head, teacher_head
from yolokd.teachers.teacher import Teacher, load_teacher

ROOT = Path(__file__).parents[1]
PLAIN, BINLESS = Head(), Head(reg_max=1)
ROTATED, ROTATED_BINLESS = Head(rotated=True), Head(rotated=True, reg_max=1)
QUERIES = Head(dense=False, reg_max=1)
EVERYWHERE = {"dfmsd", "sgfi", "ckd", "mgd", "cwd", "pkd"}


def test_what_is_read_is_said_of_parts_that_there_are() -> None:
    for name, part in READS:
        assert part in (LOSSES[name].part_names or ("",))
    for name, loss in LOSSES.items():
        assert loss.needs_logits == bool({"logits", "tower"} & reads(name)), name
        assert loss.needs_boxes == bool({"overlap", "bins", "hull"} & reads(name)), name


def test_a_part_that_is_switched_off_reads_nothing() -> None:
    assert parts_of("samkd") == ["feature", "logit"]
    assert parts_of("samkd", {**config.DEFAULTS, "samkd_logit": 0.0}) == ["feature"]
    assert reads("samkd", {**config.DEFAULTS, "samkd_logit": 0.0}) == set()
    assert reads("samkd", config.DEFAULTS) == {"logits"}


@pytest.mark.parametrize("teacher", [PLAIN, BINLESS, ROTATED, ROTATED_BINLESS, QUERIES])
@pytest.mark.parametrize("student", [PLAIN, BINLESS, ROTATED, ROTATED_BINLESS, QUERIES])
def test_feature_and_region_methods_work_everywhere(student: Head, teacher: Head) -> None:
    assert {name for name in LOSSES if not refusals(name, None, student, teacher)} >= EVERYWHERE


@pytest.mark.parametrize(
    ("name", "student", "teacher", "refused"),
    [
        ("bckd", PLAIN, PLAIN, []),
        ("bckd", ROTATED, PLAIN, ["box"]),
        ("bckd", PLAIN, ROTATED, ["box"]),
        ("bckd", ROTATED, ROTATED, ["box"]),
        ("bckd", QUERIES, PLAIN, ["cls", "box"]),
        ("crosskd", ROTATED, ROTATED, []),  # one head's distributions against themselves
        ("crosskd", ROTATED, ROTATED_BINLESS, ["box"]),
        ("crosskd", QUERIES, PLAIN, ["cls"]),
        ("crosskd", PLAIN, QUERIES, ["cls", "box"]),
        ("ld", ROTATED, ROTATED, []),
        ("ld", ROTATED, PLAIN, [""]),
        ("ld", PLAIN, ROTATED, [""]),
        ("ld", PLAIN, BINLESS, [""]),
        ("ld", BINLESS, PLAIN, [""]),
        ("ld", PLAIN, Head(reg_max=8), [""]),
        ("samkd", QUERIES, PLAIN, ["logit"]),
        ("samkd", PLAIN, QUERIES, ["logit"]),
        ("pcd", ROTATED, PLAIN, []),
        ("pcd", QUERIES, PLAIN, ["grouped", "binary"]),
        ("softkd", PLAIN, QUERIES, [""]),
    ],
)
def test_parts_are_refused_where_they_have_no_sense(
    name: str, student: Head, teacher: Head, refused: list[str]
) -> None:
    assert [refusal.part for refusal in refusals(name, None, student, teacher)] == refused


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("columns", [STUDENTS, TEACHERS], ids=["students", "teachers"])
def test_the_cure_in_the_table_cures(columns: dict[str, tuple[Head, Head]], name: str) -> None:
    for student, teacher in columns.values():
        text = cell(name, student, teacher)
        cure = {} if text in {"yes", "no"} else {key: 0.0 for key in text.replace("=0", "").split()}
        if text != "no":
            check([name], {**config.DEFAULTS, **cure}, student, teacher)
        if text != "yes":
            with pytest.raises(UserError, match=rf"method='{name}'"):
                check([name], config.DEFAULTS, student, teacher)


@pytest.mark.parametrize(
    ("method", "student", "teacher", "parts"),
    [
        ("pcd", "rtdetr", "detect", ["an RT-DETR student predicts by queries", "method=dfmsd, samkd samkd_logit=0"]),
        ("samkd", "rtdetr", "detect", ["samkd_logit", "Set samkd_logit=0"]),
        ("bckd", "obb", "obb", ["bckd_box", "student's are rotated", "Set bckd_box=0"]),
        ("ld", "obb", "detect", ["student's boxes alone are rotated", "Choose pcd"]),
        ("ld", "detect", "obb", ["teacher's boxes alone are rotated"]),
        ("softkd", "detect", "rtdetr", ["RT-DETR"]),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_when_it_is_joined(
    method: str, student: str, teacher: str, parts: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        tiny_criterion(method, task_model("yolov8n", student, seed=1), task_model("yolov8n", teacher, seed=2))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


HEADS: list[tuple[str, str, Head]] = [
    ("yolov8n", "detect", PLAIN),
    ("yolo26n", "detect", BINLESS),
    ("yolov8n", "segment", PLAIN),
    ("yolo26n", "pose", BINLESS),
    ("yolov8n", "obb", ROTATED),
    ("yolo26n", "obb", ROTATED_BINLESS),
]


@pytest.mark.parametrize(("name", "task", "head"), HEADS)
def test_the_facts_about_a_head_are_read_from_the_model(name: str, task: str, head: Head) -> None:
    model = task_model(name, task)
    assert student_head(model) == head
    assert teacher_head(Teacher(*load_teacher(model))) == head


def test_the_facts_about_a_head_of_queries() -> None:
    model: Any = task_model("", "rtdetr")
    found = teacher_head(Teacher(*load_teacher(model)))
    assert student_head(model) == QUERIES
    assert (found.dense, found.rotated) == (False, False)


def test_the_table_of_the_docs_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert text.split("<!-- tasks -->")[1].split("<!-- /tasks -->")[0].strip() == tasks_markdown()


def test_each_refusal_in_the_table_has_its_reason_below() -> None:
    said, text = " ".join(reasons()), tasks_text()
    for side, columns in (("student", STUDENTS), ("teacher", TEACHERS)):
        for label, (student, teacher) in columns.items():
            assert f"{label} {side}" in text
            for name in LOSSES:
                if cell(name, student, teacher) != "yes":
                    assert name in said
                    assert f"{label} {side}" in said
