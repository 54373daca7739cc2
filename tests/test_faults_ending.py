"""How a run is ended: by Ctrl-C in Python, by SIGTERM, by a damaged image, by a disk that is really full."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from tests.tiny import overrides_for, rows, save_model, tiny_model
from yolokd import DistillationTrainer
from yolokd.command.signals import LAUNCHER, Terminated, terminable
from yolokd.saving.ending import way_on
from yolokd.saving.files import whole_checkpoints

pytestmark = pytest.mark.usefixtures("own_start")

Teacher = Callable[[str], Path]


# In Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
def test_ctrl_c_in_python_says_how_to_go_on_or_leaves_nothing(
    epoch: int, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    def interrupt(trainer: Any) -> None:
        if trainer.epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_batch_end", interrupt)
    settings = overrides_for(tmp_path, tiny_data, method="pcd", teacher=str(tiny_teacher("yolov8n")))
    del settings["model"]
    with pytest.raises(KeyboardInterrupt) as stop:
        model.train(trainer=DistillationTrainer, **settings)
    folder = tmp_path / "run"
    if epoch == 0:
        assert "before a first epoch was saved" in str(stop.value)
        assert not folder.exists()
        return
    last = folder / "weights" / "last.pt"
    assert str(stop.value) == f"interrupted; go on with: yolokd train resume model={last}"
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "kd_state.pt", "last.pt"]
    DistillationTrainer(overrides={"model": str(last), "resume": str(last)}).train()
    assert [row["epoch"] for row in rows(folder)] == [1, 2]


def test_the_command_that_goes_on_can_be_copied_where_the_folder_has_a_space(tmp_path: Path) -> None:
    last = tmp_path / "my run" / "last.pt"
    last.parent.mkdir()
    last.touch()
    command = way_on(SimpleNamespace(last=last)).partition("go on with: ")[2]
    assert shlex.split(command) == ["yolokd", "train", "resume", f"model={last}"]


def test_a_run_that_is_done_is_not_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    trainer = SimpleNamespace(last=tmp_path / "last.pt", wdir=tmp_path, complete=True)
    assert way_on(trainer) == f"interrupted when the training was done; its checkpoints are in {tmp_path}"


# SIGTERM --------------------------------------------------------------------------------------------------------------


def test_sigterm_is_an_interruption_meanwhile_and_only_then() -> None:
    with pytest.raises(KeyboardInterrupt) as stop, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stop.type is Terminated
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_that_someone_handles_already_stays_theirs() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


def test_another_thread_leaves_signals_alone() -> None:
    found: list[Any] = []

    def look() -> None:
        with terminable():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_ends_by_sigterm_as_ever() -> None:
    reader, writer = os.pipe()
    with terminable():
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"!")
            time.sleep(20)
            os._exit(0)
        os.read(reader, 1)  # Python forgets signals that come while it forks
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_the_launcher_of_several_devices_is_ended_too() -> None:
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([*waiting, LAUNCHER]) as launcher, subprocess.Popen(waiting) as other:
        try:
            while LAUNCHER not in psutil.Process(launcher.pid).cmdline():  # empty for a moment, while it is started
                time.sleep(0.01)
            with pytest.raises(Terminated), terminable():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            launcher.wait(5)
            assert not psutil.pid_exists(launcher.pid)
            assert other.poll() is None
        finally:
            other.kill()


# Disk and files -------------------------------------------------------------------------------------------------------


def test_what_a_killed_save_left_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    trainer = SimpleNamespace(wdir=tmp_path, last=tmp_path / "last.pt", best=tmp_path / "best.pt")
    trainer.best.write_text("the best so far")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "best.pt").write_text("of an epoch that never was")
    with whole_checkpoints(trainer):
        trainer.last.write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "last.pt": "new",
        "best.pt": "the best so far",
    }


FULL_DISK = """
import sys
from pathlib import Path
from yolokd import cli
mount, words = Path(sys.argv[1]), sys.argv[2:]
codes = [cli.main(words)]
filler = mount / "filler"
sys.stdout.flush()
run = mount / "runs" / "kd"
names = sorted(path.name for path in (run / "weights").iterdir())
filler.unlink()
codes.append(cli.main(["train", "resume", f"model={run / 'weights' / 'last.pt'}"]))
print("found", codes, names, len((run / "results.csv").read_text().splitlines()))
"""
FILL = """
from ultralytics.utils import callbacks
import errno, os
filled = []
def fill(trainer):
    if trainer.epoch == 1 and not filled:
        filled.append(True)
        with open("MOUNT/filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65536))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(file.tell() - 200000)  # enough for a row, not for a checkpoint
callbacks.default_callbacks["EVENT"].append(fill)
"""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    words = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("event", ["on_train_epoch_start", "on_fit_epoch_end"])
def test_a_disk_that_is_really_full_stops_a_run_that_goes_on_when_there_is_room(
    event: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    """During the save of the second epoch, and while the host strips the checkpoints at the end."""
    if not can_mount():
        pytest.skip("needs a file system of its own")
    mount = tmp_path / "disk"
    mount.mkdir()
    words = [
        "train",
        "model=yolov8n.yaml",
        f"teacher={tiny_teacher('yolov8n')}",
        f"data={tiny_data}",
        *"method=pcd epochs=2 imgsz=64 batch=4 nbs=4 device=cpu plots=False optimizer=SGD kd_preflight=False".split(),
        f"project={mount / 'runs'}",
        "name=kd",
    ]
    code = FILL.replace("MOUNT", str(mount)).replace("EVENT", event) + FULL_DISK
    mounted = f'mount -t tmpfs -o size=120m none "{mount}" && exec "$0" "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, sys.executable, "-c", code, str(mount), *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert "no space left on the disk" in done.stderr, done.stdout[-2000:] + done.stderr[-3000:]
    assert "go on with: yolokd train resume" in done.stderr
    assert "found [1, 0] ['best.pt', 'kd_state.pt', 'last.pt'] 3" in done.stdout, done.stdout[-2000:]


# Images ---------------------------------------------------------------------------------------------------------------


def damaged(data: Path, folder: Path) -> tuple[Path, Path]:
    """Copy a data set, and return its data.yaml and one training image."""
    copied = Path(shutil.copytree(data.parent, folder / "damaged"))
    for cache in copied.rglob("*.cache"):
        cache.unlink()
    text = data.read_text(encoding="utf-8").replace(str(data.parent), str(copied))
    (copied / data.name).write_text(text, encoding="utf-8")
    return copied / data.name, sorted((copied / "images" / "train").iterdir())[0]


@pytest.mark.parametrize("damage", ["empty", "noise", "cut off"])
def test_a_damaged_image_is_left_out_and_weights_stay_finite(
    damage: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    data, image = damaged(tiny_data, tmp_path)
    content = {"empty": b"", "noise": bytes(range(256)) * 4, "cut off": image.read_bytes()[:300]}[damage]
    image.write_bytes(content)
    settings = overrides_for(tmp_path, data, method="dfmsd+pcd", teacher=str(tiny_teacher("yolov8n")), epochs=1)
    trainer: Any = DistillationTrainer(overrides=settings)
    trainer.train()
    assert len(trainer.train_loader.dataset) == 5
    assert any(image.name in message and "corrupt" in message for message in said)
    student = load_checkpoint(trainer.last)[0]
    assert all(torch.isfinite(value).all() for value in student.state_dict().values())


def test_an_image_that_is_damaged_during_the_run_stops_it_by_name_and_it_goes_on_when_mended(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    data, image = damaged(tiny_data, tmp_path)
    whole = image.read_bytes()
    settings = overrides_for(tmp_path, data, method="pcd", teacher=str(tiny_teacher("yolov8n")), epochs=3, mosaic=0.0)
    trainer: Any = DistillationTrainer(overrides=settings)

    def damage(trainer: Any) -> None:
        if trainer.epoch == 1:
            image.write_bytes(b"")
            dataset = trainer.train_loader.dataset
            dataset.ims = [None] * len(dataset.ims)

    trainer.add_callback("on_train_epoch_start", damage)
    with pytest.raises(Exception, match=image.name):
        trainer.train()
    image.write_bytes(whole)
    assert load_checkpoint(trainer.last)[1]["epoch"] == 0
    DistillationTrainer(overrides={"model": str(trainer.last), "resume": str(trainer.last)}).train()
    assert [row["epoch"] for row in rows(trainer.save_dir)] == [1, 2, 3]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_what_a_stopped_training_leaves_in_python_is_a_plain_model(
    stop: type[BaseException], family: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    """A notebook goes on with it, and may save it."""

    def end(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise stop("enough")

    model = YOLO(str(save_model(tiny_model(family, seed=3), tmp_path / "student.pt")))
    model.add_callback("on_train_epoch_start", end)
    settings = overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher(family)), epochs=2)
    with pytest.raises(stop):
        model.train(trainer=DistillationTrainer, **{**settings, "model": str(tmp_path / "student.pt")})
    model.save(tmp_path / "saved.pt")
    held = torch.load(tmp_path / "saved.pt", weights_only=False)["model"]
    assert not [module for module in held.modules() if type(module).__module__.startswith("yolokd")]
    with zipfile.ZipFile(tmp_path / "saved.pt") as archive:
        (pickled,) = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    assert b"DetectionModel" in pickled and b"yolokd" not in pickled
