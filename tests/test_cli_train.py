"""Real trainings through the command line, on drawn images."""

from __future__ import annotations

import csv
import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from yolokd import cli
from yolokd.trainers import DistillationTrainer


@pytest.fixture
def words(
    tmp_path: Path, tiny_data: Path, tiny_student: Callable[[str], Path], tiny_teacher: Callable[[str], Path]
) -> list[str]:
    """A short training as typed."""
    return [
        "train",
        f"model={tiny_student('yolov8n')}",
        f"teacher={tiny_teacher('yolov8s')}",
        f"data={tiny_data}",
        *"epochs=2 imgsz=64 batch=4 nbs=4 workers=0 device=cpu plots=False optimizer=SGD kd_preflight=False".split(),
        f"project={tmp_path / 'runs'}",
        "name=kd",
    ]


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", encoding="utf-8", newline="") as file:
        return [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]


def test_train_writes_a_plain_student_and_one_column_per_method(words, tmp_path):
    from ultralytics import YOLO

    assert cli.main([*words, "epochs=1", "method=pkd+pcd", "cfg=pcd.yaml", "pcd_stages=1"]) == 0
    run = tmp_path / "runs" / "kd"
    row = rows(run)[0]
    assert float(row["train/pkd_loss"]) > 0 and float(row["train/pcd_loss"]) > 0
    args = (run / "args.yaml").read_text(encoding="utf-8")
    assert "method: pkd+pcd" in args and "pcd_stages: 1" in args
    student = YOLO(run / "weights" / "last.pt")
    assert type(student.model).__name__ == "DetectionModel" and "criterion" not in student.model._modules


def test_an_interrupted_run_is_resumed_by_the_command_that_it_prints(words, tmp_path, monkeypatch, capsys):
    save = DistillationTrainer.save_model

    def save_and_stop(self: DistillationTrainer) -> None:
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "save_model", save_and_stop)
        assert cli.main([*words, "method=pkd"]) == 130
    printed = re.search(r"go on with: yolokd (train resume model=\S+)", capsys.readouterr().err)
    assert printed
    assert cli.main(printed[1].split()) == 0
    found = rows(tmp_path / "runs" / "kd")
    assert [row["epoch"] for row in found] == ["1", "2"] and float(found[1]["train/pkd_loss"]) > 0


def test_a_full_disk_leaves_the_checkpoints_of_the_last_whole_epoch(words, tmp_path, monkeypatch, capsys):
    """The host writes last.pt in place; ours is put there when it is whole."""
    from ultralytics.nn.tasks import load_checkpoint

    write, run = Path.write_bytes, tmp_path / "runs" / "kd"

    def full(self: Path, content: bytes) -> int:
        if self.name == "last.pt" and len(rows(run)) == 2:
            write(self, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert cli.main([*words, "method=pkd"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("yolokd: failed: no space left on the disk") and "Traceback" not in said
    weights = sorted(path.name for path in (run / "weights").iterdir())
    assert weights == ["best.pt", "kd_state.pt", "last.pt"]
    assert [load_checkpoint(run / "weights" / name)[1]["epoch"] for name in ("best.pt", "last.pt")] == [0, 0]
    assert cli.main(["train", "resume", f"model={run / 'weights' / 'last.pt'}"]) == 0
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]


@pytest.mark.parametrize("wrong", ["device=99", "optimizer=Unheard", "imgsz=big", "kd_levels=[64]", "method=ld+zz"])
def test_a_mistake_that_the_trainer_finds_leaves_no_folder(wrong, words, tmp_path, capsys):
    assert cli.main([*words, wrong]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "WARNING" not in line]
    assert said[0].startswith("yolokd: ") and len(said) <= 2 and wrong.split("=")[1].strip("[]") in " ".join(said)
    assert not (tmp_path / "runs" / "kd").exists()
