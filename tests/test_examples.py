"""The examples run as they stand, with fewer epochs and smaller images."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from ultralytics import YOLO
from ultralytics.utils import LOGGER, checks

from tests.tiny import NAMES, rows, save_model, tiny_model
from yolokd import config
from yolokd.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_every_example_has_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()) == [
        "distill.ipynb",
        "distill.py",
        "own_dataset.yaml",
    ]


def test_the_script_leaves_a_student_and_a_checked_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(EXAMPLES / "distill.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "AUTOINSTALL", False)
    monkeypatch.setattr(sys, "argv", [script, *"--epochs 1 --imgsz 64 --images 40 --out out".split()])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"AP of the distilled student: \d", printed)
    assert "agrees with its weights" in printed
    weights = tmp_path / "out" / "student" / "weights"
    assert (weights / "best.onnx").is_file()
    assert "method: bckd" in (weights.parent / "args.yaml").read_text(encoding="utf-8")
    last = rows(weights.parent)[-1]  # the host rounds the terms themselves to five digits
    # from 16 images the student starts as its teacher but for rounding, which gets no gain
    assert last["kd/bckd_cls"] * last["kd/bckd_cls_gain"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside its folder


def test_the_recipe_trains_with_the_files_named(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_dataset.yaml").write_bytes((EXAMPLES / "own_dataset.yaml").read_bytes())
    save_model(tiny_model("yolov8n", seed=1), tmp_path / "yolov8n.pt")
    save_model(tiny_model("yolov8s", seed=2), tmp_path / "yolov8s.pt")
    text = tiny_data.read_text(encoding="utf-8").replace("train:", f"path: {tiny_data.parent}\ntrain:")
    (tmp_path / "own_data.yaml").write_text(text, encoding="utf-8")
    short = ["epochs=1", "teacher_epochs=1", "imgsz=64", "batch=4", "plots=False", "workers=0", "device=cpu"]
    assert main(["train", "cfg=own_dataset.yaml", f"project={tmp_path / 'runs'}", *short]) == 0
    run = tmp_path / "runs" / "distilled"
    assert "train/bckd_loss" in rows(run)[-1]
    assert list(YOLO(run / "weights" / "best.pt").names.values()) == list(NAMES)


def test_the_recipe_holds_valid_keys_and_our_defaults() -> None:
    recipe = yaml.safe_load((EXAMPLES / "own_dataset.yaml").read_text(encoding="utf-8"))
    assert config.check(recipe) == recipe
    ours = recipe.keys() & config.DEFAULTS.keys() - {"teacher", "teacher_epochs"}
    assert len(ours) >= 5 and all(recipe[key] == config.DEFAULTS[key] for key in ours)


def notebook() -> nbformat.NotebookNode:
    """Return the notebook with fewer epochs and smaller images."""
    read = nbformat.read(EXAMPLES / "distill.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in read.cells)  # kept without results
    parameters = next(cell for cell in read.cells if "parameters" in cell.metadata.get("tags", []))
    known = re.findall(r"^(\w+) =", parameters.source, flags=re.MULTILINE)
    assert known == ["EPOCHS", "IMGSZ", "IMAGES", "OUT"]
    parameters.source = 'EPOCHS = 1\nIMGSZ = 64\nIMAGES = 16\nOUT = "out"'
    return read


def test_the_cells_of_the_notebook_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "AUTOINSTALL", False)
    level, names = LOGGER.level, {"__name__": "__main__"}
    try:
        for cell in notebook().cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
    finally:
        LOGGER.setLevel(level)
    printed = capsys.readouterr().out
    assert "student distilled" in printed and "agrees with its weights" in printed
    assert (tmp_path / "out" / "distilled" / "weights" / "best.onnx").is_file()


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    filled = notebook()
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(filled, timeout=600, kernel_name="python3", resources=resources).execute()
    printed = "".join(
        output.get("text", "") for cell in filled.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "student distilled" in printed and "agrees with its weights" in printed
    assert (tmp_path / "out" / "distilled" / "weights" / "best.onnx").is_file()
