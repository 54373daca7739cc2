"""Nothing half-written: a full disk, a kill and a resumed run leave whole files."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ultralytics.utils import LOGGER

from yolokd.saving.files import PARTIAL, final_names, keep_rows, save_whole, whole_checkpoints
from yolokd.saving.handover import discard_run, missing_folders, remove_empty

FULL = Path("/dev/full")  # a device that is always full


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_full_disk_is_told_by_its_number_and_leaves_the_earlier_file(size: int, tmp_path: Path) -> None:
    path = tmp_path / "kd_state.pt"
    save_whole({"value": 1}, path)
    path.with_suffix(".tmp").symlink_to(FULL)
    with pytest.raises(OSError) as error:
        save_whole({"value": torch.zeros(size)}, path)
    assert error.value.errno == errno.ENOSPC
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def trainer_in(folder: Path) -> SimpleNamespace:
    return SimpleNamespace(wdir=folder, last=folder / "last.pt", best=folder / "best.pt")


def test_checkpoints_are_put_in_their_places_when_all_are_written(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    before = vars(trainer).copy()
    trainer.last.write_text("old")
    with whole_checkpoints(trainer):
        for path in (trainer.last, trainer.best, trainer.wdir / "epoch0.pt"):
            path.write_text("new")
        assert before["last"].read_text() == "old"
        assert not before["best"].exists()
    assert vars(trainer) == before
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("last.pt", "best.pt", "epoch0.pt"), "new"
    )


def test_messages_name_the_places_that_checkpoints_take(tmp_path: Path, said: list[str]) -> None:
    for used in (True, False):
        with final_names() if used else nullcontext():
            LOGGER.info(f"Validating {tmp_path / PARTIAL / 'best.pt'}...")
    assert said == [f"Validating {tmp_path / 'best.pt'}...", f"Validating {tmp_path / PARTIAL / 'best.pt'}..."]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_writing_leaves_the_earlier_checkpoints(error: BaseException, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    before = vars(trainer).copy()
    trainer.last.write_text("old")
    with pytest.raises(type(error)), whole_checkpoints(trainer):
        trainer.last.write_text("new")
        trainer.best.write_text("ha")
        raise error
    assert vars(trainer) == before
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"last.pt": "old"}


@pytest.mark.parametrize(
    ("content", "epochs", "kept"),
    [
        ("epoch,time\n1,2\n2,3\n3,4\n", 2, "epoch,time\n1,2\n2,3\n"),
        ("epoch,time\n1,2\n2,3\n", 2, "epoch,time\n1,2\n2,3\n"),
        ("epoch,time\n1,2\n2,", 2, "epoch,time\n1,2\n"),  # cut off
        ("               epoch,  time\n  1,2\n  2,3\n", 1, "               epoch,  time\n  1,2\n"),
        ("epoch,time\n", 1, "epoch,time\n"),
        ("", 1, ""),
    ],
)
def test_rows_that_a_resumed_run_writes_again_are_taken_out(
    content: str, epochs: int, kept: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    path.write_text(content)
    keep_rows(path, epochs)
    assert path.read_text() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_without_results_there_is_nothing_to_take_out(tmp_path: Path) -> None:
    keep_rows(tmp_path / "results.csv", 1)
    assert not list(tmp_path.iterdir())


def test_folders_are_removed_as_far_as_they_are_empty(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b" / "c"
    made = missing_folders(wanted)
    assert made == [wanted, wanted.parent, wanted.parent.parent]
    wanted.parent.mkdir(parents=True)
    (tmp_path / "a" / "kept.txt").touch()
    remove_empty(made)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept.txt"]


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize(
    "name, early",
    [("args.yaml", True), ("teacher.pt", True), ("teacher_best.pt", False), ("teacher-images/a.jpg", False)],
)
def test_only_a_folder_that_the_run_made_is_discarded_and_only_before_training(
    made: bool, name: str, early: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "exp"
    new = missing_folders(folder)
    (folder / name).parent.mkdir(parents=True)
    (folder / name).touch()
    discard_run(SimpleNamespace(save_dir=folder, new_folders=new if made else []))
    assert (folder / name).exists() != (made and early)
    assert (tmp_path / "runs").exists() != (made and early)
