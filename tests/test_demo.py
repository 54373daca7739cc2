"""The demo: its table and its words say what was measured, and a small one leaves all files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from yolokd import config
from yolokd.command.demo import Arm, run_demo, table, verdict
from yolokd.drawn.picture import match
from yolokd.drawn.places import write_student
from yolokd.errors import UserError

SMALL: dict[str, Any] = {"epochs": 1, "teacher_epochs": 1, "images": 12, "imgsz": 64, "batch": 4, "classes": 3}


def arms(teacher: float, alone: float, distilled: float) -> list[Arm]:
    """Three models with these AP."""
    names = ("teacher", "student alone", "student distilled")
    return [
        Arm(name, Path(f"runs/{name}.pt"), 1_234_567, 20, 83.4, SimpleNamespace(ap=ap, ap50=ap + 0.1))
        for name, ap in zip(names, (teacher, alone, distilled))
    ]


def interval(low: float, high: float) -> SimpleNamespace:
    return SimpleNamespace(low=low, high=high)


def test_the_table_has_one_row_per_model() -> None:
    lines = table(arms(0.372, 0.204, 0.26)).splitlines()
    assert len(lines) == 5 and set(lines[1]) == {"-"}
    assert lines[0].split() == ["AP", "AP50", "parameters", "epochs", "training", "weights"]
    assert lines[3].split() == [
        "student",
        "alone",
        "20.4",
        "30.4",
        "1.23",
        "M",
        "20",
        "1:23",
        "runs/student",
        "alone.pt",
    ]
    columns = [line.index(value) + len(value) for line, value in zip(lines[2:], ("37.2", "20.4", "26.0"))]
    assert len(set(columns)) == 1  # numbers under each other


def test_a_clear_gain_is_called_one_with_its_share_of_the_way_to_the_teacher() -> None:
    text = verdict(arms(0.40, 0.20, 0.25), interval(0.03, 0.07), "dfmsd+pcd")
    assert "With dfmsd+pcd the student is better than alone by 5.0 AP" in text
    assert "+3.0 to +7.0" in text and "25 % of the way" in text
    assert "one seed" in text


def test_a_student_above_its_teacher_is_called_so() -> None:
    text = verdict(arms(0.40, 0.20, 0.42), interval(0.2, 0.24), "bckd")
    assert "better than alone by 22.0 AP" in text and "and than its teacher by 2.0" in text and "% of" not in text


def test_an_interval_around_zero_is_no_gain_in_either_direction() -> None:
    for distilled in (0.21, 0.19):
        text = verdict(arms(0.40, 0.20, distilled), interval(-0.02, 0.02), "pcd")
        assert "not clearly better" in text and f"{100 * (distilled - 0.2):+.1f} AP" in text
        assert "is better than" not in text


def test_harm_is_called_harm() -> None:
    text = verdict(arms(0.40, 0.20, 0.15), interval(-0.07, -0.03), "pcd")
    assert "WORSE than alone by 5.0 AP" in text and "did harm" in text


def test_a_teacher_that_is_not_better_gives_no_share() -> None:
    assert "% of the way" not in verdict(arms(0.20, 0.20, 0.25), interval(0.03, 0.07), "pcd")


def test_matching_gives_each_object_to_the_best_detection_of_its_class() -> None:
    objects = np.array([[0, 0, 10, 10, 1, 1], [50, 50, 10, 10, 2, 1]], dtype=float)
    found = np.array(
        [
            [0, 0, 10, 10, 1, 0.5],  # the object, but another detection is surer
            [1, 0, 10, 10, 1, 0.9],
            [50, 50, 10, 10, 1, 0.8],  # the right place, the wrong class
            [50, 56, 10, 10, 2, 0.7],  # the right class, IoU 0.25
        ]
    )
    right, missed = match(found, objects)
    assert right.tolist() == [False, True, False, False]
    assert missed.tolist() == [False, True]
    assert match(found[:0], objects)[1].all() and not match(found, objects[:0])[0].any()


def test_a_small_demo_leaves_all_files_and_takes_over_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    level = LOGGER.level
    assert run_demo(str(tmp_path / "demo"), **SMALL) == 0
    printed = capsys.readouterr().out
    for text in ("teacher", "student alone", "student distilled", "AP50", "agrees with its weights", "demo.png"):
        assert text in printed
    assert len(printed.splitlines()) < 25  # Ultralytics keeps silent
    assert LOGGER.level == level
    folder = tmp_path / "demo"
    weights = {name: folder / name / "weights" / "best.pt" for name in ("teacher", "alone", "distilled")}
    sizes = {name: sum(p.numel() for p in YOLO(path).model.parameters()) for name, path in weights.items()}
    assert sizes["teacher"] > 3 * sizes["alone"] == 3 * sizes["distilled"]
    assert weights["distilled"].with_suffix(".onnx").is_file()
    picture = cv2.imread(str(folder / "demo.png"))
    assert picture.shape[0] > 500 and picture.std() > 10
    record = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    assert record["parity_ok"] and set(record["arms"]) == {"teacher", "student alone", "student distilled"}

    def args(name: str) -> dict[str, str]:
        lines = (folder / name / "args.yaml").read_text(encoding="utf-8").splitlines()
        return dict(line.split(": ", 1) for line in lines if ": " in line)

    alone, distilled = args("alone"), args("distilled")
    different = {key for key in alone if alone[key] != distilled.get(key)}
    assert different <= {"name", "save_dir"}  # the students differ in nothing else
    assert distilled["method"] == config.DEFAULTS["method"] and "method" not in alone

    before = {name: path.stat().st_mtime_ns for name, path in weights.items()}
    train = YOLO.train
    trained: list[str] = []
    monkeypatch.setattr(YOLO, "train", lambda self, **k: (trained.append(k["name"]), train(self, **k))[1])
    assert run_demo(str(folder), method="pcd", **SMALL) == 0
    assert trained == ["distilled"]
    assert "taken over" in capsys.readouterr().out
    assert before["teacher"] == weights["teacher"].stat().st_mtime_ns
    assert before["distilled"] != weights["distilled"].stat().st_mtime_ns


def test_a_failed_run_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: YOLO, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(YOLO, "train", fail)
    write_student(tmp_path, SMALL["classes"])  # an earlier demo's folder
    record = tmp_path / "teacher" / "demo.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"settings": {"epochs": 99}, "seconds": 1}), encoding="utf-8")
    (record.parent / "weights").mkdir()
    (record.parent / "weights" / "best.pt").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        run_demo(str(tmp_path), **SMALL)
    assert not record.exists()


@pytest.mark.parametrize("name", ["student.yaml", "teacher/weights/best.pt", "demo.png"])
def test_files_that_no_demo_wrote_are_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name.split('/')[0]} that no demo wrote.*out=runs/demo"):
        run_demo(str(tmp_path), **SMALL)
    assert (tmp_path / name).read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("method", ["none", "ultralytics", "nonsense"])
def test_only_methods_of_ours(method: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"method={method}"):
        run_demo(str(tmp_path / "demo"), method=method, **SMALL)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "key, value", [("epochs", 0), ("teacher_epochs", 0), ("images", 0), ("imgsz", 16), ("classes", 0)]
)
def test_wrong_values_are_named_before_anything_happens(
    key: str, value: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=f"{key}={value}"):
        run_demo(str(tmp_path / "demo"), **{**SMALL, key: value})
    assert not (tmp_path / "demo").exists() and capsys.readouterr().out == ""
