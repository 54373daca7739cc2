"""Short real runs: what is trained, logged, saved and resumed, and that plain training stays what it was."""

from __future__ import annotations

import copy
import gc
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from tests.tiny import (
    NAMES,
    overrides_for,
    rows,
    same_values,
    save_model,
    set_up,
    tiny_model,
    train,
    train_plain,
)
from yolokd import DistillationTrainer, config
from yolokd.arguments import BEGINNING
from yolokd.clipping import clip_adapters
from yolokd.compare.imagestream import StreamHash
from yolokd.errors import UserError
from yolokd.saving.state import FILE, read_state, write_state

pytestmark = pytest.mark.usefixtures("own_start")

Teacher = Callable[[str], Path]


class Killed(Exception):
    """Stands in for whatever ends a run in the middle."""


class Streaming:
    """Keeps a hash of the batches as the data loader gave them."""

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.__dict__.setdefault("stream", StreamHash()).update(batch)
        return super().preprocess_batch(batch)  # type: ignore[misc]


class StreamingDistillation(Streaming, DistillationTrainer):
    """A trainer whose stream is known."""


class StreamingPlain(Streaming, DetectionTrainer):
    """The host's own trainer, whose stream is known."""


# Arms -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Teacher) -> Callable[[str], Any]:
    """A finished run of a method with seed 0, or of the host's own trainer as `host`."""
    folder = tmp_path_factory.mktemp("arms")

    @cache
    def run(method: str) -> Any:
        extra: dict[str, Any] = {"method": method, "teacher": str(tiny_teacher("yolov8n")), "kd_decay": "cosine"}
        if method == "none":
            del extra["teacher"]
        settings = overrides_for(folder, tiny_data, name=method, **({} if method == "host" else extra))
        if method == "host":
            settings = {key: value for key, value in settings.items() if key not in config.DEFAULTS}
        elif method == "dfmsd":
            settings.update(kd_preflight=True, kd_val=True, save_period=1)
        trainer = (StreamingPlain if method == "host" else StreamingDistillation)(overrides=settings)
        trainer.train()
        return trainer

    return run


def test_plain_training_is_the_hosts_own_to_the_last_bit(arm: Callable[[str], Any]) -> None:
    ours, hosts = arm("none"), arm("host")
    assert (ours.save_dir / "results.csv").read_text().splitlines()[0] == (
        (hosts.save_dir / "results.csv").read_text().splitlines()[0]
    )
    assert [same_values(a, b) for a, b in zip(rows(ours.save_dir), rows(hosts.save_dir), strict=True)] == [True, True]
    left, right = (load_checkpoint(trainer.last)[0].state_dict() for trainer in (ours, hosts))
    assert all(torch.equal(left[key], right[key]) for key in right)


@pytest.mark.parametrize("method", ["none", "dfmsd", "pcd", "dfmsd+pcd", "ultralytics"])
def test_every_arm_sees_the_same_images(arm: Callable[[str], Any], method: str) -> None:
    assert arm(method).stream.batches == 4
    assert arm(method).stream.hexdigest() == arm("host").stream.hexdigest()


def test_terms_gains_stage_and_norms_have_columns(arm: Callable[[str], Any]) -> None:
    found = rows(arm("dfmsd+pcd").save_dir)
    assert [row["epoch"] for row in found] == [1, 2]
    for row in found:
        assert row["train/dfmsd_loss"] > 0
        assert row["train/pcd_loss"] > 0
        assert math.isnan(row["val/dfmsd_loss"])
        assert math.isnan(row["val/pcd_loss"])
        for name in ("dfmsd", "dfmsd_gain", "pcd_grouped", "pcd_grouped_gain", "pcd_binary", "pcd_binary_gain"):
            assert row[f"kd/{name}"] > 0, name
        assert row["kd/student_grad_norm"] > 0
        assert row["kd/adapter_grad_norm"] > 0
    assert [row["kd/stage"] for row in found] == [0, 1]
    assert found[0]["kd/factor"] > found[1]["kd/factor"] >= 0.1


def test_loggers_and_the_plot_receive_the_terms(tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher) -> None:
    """Through what the host's loggers read in their callbacks, and what its plot draws."""
    seen: dict[str, float] = {}
    trainer = DistillationTrainer(
        overrides=overrides_for(
            tmp_path,
            tiny_data,
            method="dfmsd+pcd",
            teacher=str(tiny_teacher("yolov8n")),
            epochs=1,
            kd_val=True,
            plots=True,
        )
    )
    trainer.add_callback("on_train_epoch_end", lambda t: seen.update(t.label_loss_items(t.tloss, prefix="train")))
    trainer.add_callback("on_model_save", lambda t: seen.update(t.metrics))
    titles: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.axes.Axes.set_title", lambda self, title, **kwargs: titles.append(title))
        trainer.train()
    for name in ("train/dfmsd_loss", "train/pcd_loss", "val/dfmsd_loss", "val/pcd_loss"):
        assert seen[name] > 0, name
        assert titles.count(name) == 1, name
    assert (trainer.save_dir / "results.png").stat().st_size > 10_000


def test_with_kd_val_the_val_columns_hold_the_terms(arm: Callable[[str], Any]) -> None:
    for row in rows(arm("dfmsd").save_dir):
        assert row["val/dfmsd_loss"] > 0


def test_preflight_and_validation_terms_change_nothing_of_the_training(
    arm: Callable[[str], Any], tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    """The `dfmsd` arm ran with preflight, kd_val and save_period; this one without."""
    plain = train(tmp_path, tiny_data, method="dfmsd", teacher=str(tiny_teacher("yolov8n")), kd_decay="cosine")
    left, right = rows(plain.save_dir), rows(arm("dfmsd").save_dir)
    for row in (*left, *right):
        del row["val/dfmsd_loss"]
    assert [same_values(a, b) for a, b in zip(left, right, strict=True)] == [True, True]


def test_the_built_in_distillation_runs_as_the_host_runs_it(arm: Callable[[str], Any]) -> None:
    assert rows(arm("ultralytics").save_dir)[0]["train/dis_loss"] > 0
    assert type(load_checkpoint(arm("ultralytics").best)[0]).__name__ == "DetectionModel"


def test_the_arguments_are_plain_and_complete(arm: Callable[[str], Any], tiny_teacher: Teacher) -> None:
    args = YAML.load(arm("dfmsd+pcd").save_dir / "args.yaml")
    assert args["method"] == "dfmsd+pcd"
    assert args["teacher"] == str(tiny_teacher("yolov8n"))
    assert args["kd_share"] == "auto"
    assert "pcd_temperature" in args


@pytest.mark.parametrize("remote", ["https://example.org/best.pt", "yolov8x.pt"])
def test_a_teacher_that_is_not_on_this_machine_keeps_its_name(remote: str, tmp_path: Path, tiny_data: Path) -> None:
    trainer = DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, teacher=remote.replace("x.pt", "x")))
    assert trainer.args.teacher == remote


def test_a_relative_path_is_kept_as_an_absolute_one(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_teacher("yolov8n")
    monkeypatch.chdir(path.parent)
    trainer = DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, teacher=path.name))
    assert trainer.args.teacher == str(path)


def test_files_of_a_finished_run(arm: Callable[[str], Any]) -> None:
    assert sorted(path.name for path in arm("dfmsd").wdir.iterdir()) == [
        "best.pt",
        "epoch0.pt",
        "epoch1.pt",
        "kd_state.pt",
        "last.pt",
    ]


# Interrupted and resumed ----------------------------------------------------------------------------------------------


STAGES = {"yolov8n": [0.25], "yolo26n": "auto"}  # resumed in the middle of the second stage, and at its beginning


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Teacher
) -> Callable[[str], Path]:
    """The folder of a run of 4 epochs that was killed in the middle of the third."""
    folder = tmp_path_factory.mktemp("interrupted")

    @cache
    def run(family: str) -> Path:
        trainer = DistillationTrainer(
            overrides=overrides_for(
                folder,
                tiny_data,
                name=family,
                model=f"{family}.yaml",
                method="dfmsd+ckd" if family == "yolov8n" else "dfmsd+pcd",
                teacher=str(tiny_teacher(family)),
                epochs=4,
                save_period=1,
                optimizer="MuSGD" if family == "yolo26n" else "SGD",
                freeze=16 if family == "yolo26n" else None,  # MuSGD takes long on some processors
                dfmsd_mask="random",
                dfmsd_stages=STAGES[family],
            )
        )

        def kill(trainer: Any) -> None:
            if trainer.epoch == 2:
                raise Killed

        trainer.add_callback("on_train_batch_end", kill)
        with pytest.raises(Killed):
            trainer.train()
        return Path(trainer.save_dir)

    return run


@pytest.fixture
def copied(interrupted: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an interrupted run, to be spoiled and resumed."""

    def run(family: str) -> Path:
        return Path(shutil.copytree(interrupted(family), tmp_path / "copied"))

    return run


def resume(run: Path, **overrides: Any) -> DistillationTrainer:
    last = run / "weights" / "last.pt"
    return DistillationTrainer(
        overrides={"model": str(last), "resume": str(last), "save_dir": str(run), "data": None, **overrides}
    )


def at_the_first_step(trainer: Any, action: Callable[[Any], None]) -> None:
    """Run an action before the first step of a training, and train."""
    done: list[bool] = []

    def once(trainer: Any) -> None:
        if not done:
            done.append(True)
            action(trainer)

    trainer.add_callback("on_train_batch_start", once)
    trainer.train()
    assert done


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_resume_restores_everything_and_goes_on(copied: Callable[[str], Path], family: str, said: list[str]) -> None:
    run = copied(family)
    saved = read_state(run / "weights" / FILE)
    assert saved is not None and sorted(saved["epochs"]) == [0, 1]
    student = load_checkpoint(run / "weights" / "last.pt")[1]
    before = rows(run)
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        seen["state"] = copy.deepcopy(trainer.criterion.state())
        seen["stage"], seen["epoch"] = trainer.criterion.stage, trainer.epoch
        seen["updates"] = getattr(trainer.criterion.task.base, "updates", None)
        seen["ema"] = copy.deepcopy(trainer.ema.ema.state_dict())
        seen["momentum"] = [
            trainer.optimizer.state[parameter]["momentum_buffer"].clone() for parameter in trainer.criterion.adapters()
        ]
        seen["registered"] = trainer.model.criterion is trainer.criterion

    trainer = resume(run)
    at_the_first_step(trainer, look)
    assert not any("anew" in message for message in said)
    assert seen["registered"]
    assert (seen["epoch"], seen["stage"]) == (2, 1)
    assert seen["updates"] == (2 if family == "yolo26n" else None)
    assert seen["state"]["calibration"] == saved["epochs"][1]["calibration"]
    assert seen["state"]["methods"].keys() == saved["epochs"][1]["methods"].keys()
    for key, value in saved["epochs"][1]["methods"].items():
        assert torch.equal(seen["state"]["methods"][key], value), key
    assert all(
        torch.equal(seen["ema"][key], value.float())
        for key, value in student["ema"].state_dict().items()
        if value.is_floating_point()
    )
    assert any(float(buffer.abs().sum()) > 0 for buffer in seen["momentum"])
    after = rows(run)
    assert [row["epoch"] for row in after] == [1, 2, 3, 4]
    assert [same_values(a, b) for a, b in zip(before, after)] == [True, True]
    assert [row["kd/stage"] for row in after] == ([0, 1, 1, 1] if family == "yolov8n" else [0, 0, 1, 1])
    assert "distillation: stage 2 of 2, teacher 1" in said
    assert all(row["train/dfmsd_loss"] > 0 for row in after)


@pytest.mark.parametrize("state", ["missing", "truncated", "of another epoch"])
def test_a_missing_or_foreign_state_is_said(copied: Callable[[str], Path], said: list[str], state: str) -> None:
    run = copied("yolov8n")
    path = run / "weights" / FILE
    saved = read_state(path)
    assert saved is not None
    if state == "of another epoch":
        identity = {key: saved[key] for key in ("teachers", "methods")}
        path.unlink()
        write_state(path, 7, saved["epochs"][1], identity)
    elif state == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.unlink()
    trainer = resume(run)

    def look(trainer: Any) -> None:
        assert trainer.criterion.calibration.gains["dfmsd"] == 0
        assert trainer.epoch == 2
        raise Killed

    with pytest.raises(Killed):
        at_the_first_step(trainer, look)
    expected = "holds no state of epoch 2" if state == "of another epoch" else "is missing or unreadable"
    assert any(expected in message and "start anew" in message for message in said)


def test_resume_with_another_teacher_says_so_and_trains(
    copied: Callable[[str], Path], tiny_teacher: Teacher, said: list[str]
) -> None:
    """Its adapters have other shapes than the optimizer remembers."""
    run = copied("yolov8n")
    trainer = resume(run, teacher=str(tiny_teacher("yolov8s")))
    trainer.train()
    assert any("belongs to another teacher" in message for message in said)
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3, 4]
    assert trainer.args.teacher == str(tiny_teacher("yolov8s"))


def test_resume_from_a_checkpoint_that_is_older_than_the_state(copied: Callable[[str], Path]) -> None:
    """A kill after kd_state.pt was written and before last.pt was."""
    run = copied("yolov8n")
    saved = read_state(run / "weights" / FILE)
    assert saved is not None
    shutil.copy(run / "weights" / "epoch0.pt", run / "weights" / "last.pt")
    trainer = resume(run)
    assert [row["epoch"] for row in rows(run)] == [1, 2]

    def look(trainer: Any) -> None:
        assert trainer.epoch == 1
        assert [row["epoch"] for row in rows(run)] == [1]  # the second comes again
        now = trainer.criterion.state()["methods"]
        assert all(torch.equal(now[key], value) for key, value in saved["epochs"][0]["methods"].items())
        raise Killed

    with pytest.raises(Killed):
        at_the_first_step(trainer, look)


def test_a_run_of_an_earlier_version_gets_the_defaults_of_newer_keys(
    copied: Callable[[str], Path], said: list[str]
) -> None:
    run = copied("yolov8n")
    last = run / "weights" / "last.pt"
    content = torch.load(last, weights_only=False)
    del content["train_args"]["kd_every"]
    torch.save(content, last)
    args = resume(run).args
    assert args.kd_every == config.DEFAULTS["kd_every"] and args.dfmsd_mask == "random"
    assert not any("resume keeps" in message for message in said)


def test_keys_of_other_methods_are_said(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    """Where their value is another than the default."""
    keys = {"method": "bckd", "pkd_gain": 0.5, "cwd_gain": 1.0, "bckd_beta": 0.5}
    teacher = str(tiny_teacher("yolov8n"))
    settings = overrides_for(tmp_path, tiny_data, teacher=teacher)
    DistillationTrainer(overrides={**settings, **keys})
    recipe = str(config.recipe("dfmsd"))
    DistillationTrainer(cfg=recipe, overrides={**settings, "name": "two", "dfmsd_mask": "random"})
    assert [message for message in said if "does not read" in message] == [
        "WARNING ⚠️ method=bckd does not read pkd_gain=0.5; leave out what does not belong to it"
    ]
    said.clear()
    tuples = DistillationTrainer(
        overrides={**settings, "name": "three", "method": "none", "kd_every": 2, "freeze": (0, 1)}
    )
    assert tuples.args.freeze == [0, 1]  # a tuple freezes nothing in the host
    DistillationTrainer(overrides={**settings, "name": "four", "method": "fit", "kd_gain": 3.0, "kd_init": "teacher"})
    more = {"kd_gain": 1.0, "kd_share": 0.2, "kd_unlabeled_ratio": 0.5, "bckd_cls": 0.0, "bckd_beta": 0.5}
    DistillationTrainer(overrides={**settings, "name": "five", "method": "bckd", **more})
    DistillationTrainer(overrides={**settings, "name": "six", "method": "none", "teacher": None, "kd_init": "teacher"})
    assert [message.split(" ", 2)[2] for message in said if "WARNING" in message] == [
        f"method=none does not read teacher={teacher}, kd_every=2; leave out what does not belong to it",
        "method=fit does not read kd_gain=3.0; leave out what does not belong to it",
        "kd_share=0.2 does nothing without kd_gain=auto",
        "kd_unlabeled_ratio=0.5 does nothing without kd_unlabeled=",
        "bckd_beta=0.5 does nothing with bckd_cls=0",
        "kd_init=teacher does nothing with method=none",
    ]


@pytest.mark.parametrize("form", ["dict", "file", "namespace"])
def test_keys_of_ours_in_cfg_are_checked_and_converted(form: str, tmp_path: Path, tiny_data: Path) -> None:
    def base(**keys: Any) -> Any:
        if form == "file":
            YAML.save(tmp_path / "base.yaml", keys)
        return {"dict": keys, "file": str(tmp_path / "base.yaml"), "namespace": SimpleNamespace(**keys)}[form]

    settings = overrides_for(tmp_path, tiny_data, method="none")
    with pytest.raises(UserError, match="kd_gain=loud is not valid"):
        DistillationTrainer(cfg=base(kd_gain="loud"), overrides=settings)
    with pytest.raises(UserError, match="there is no method 'pdk'"):
        DistillationTrainer(cfg=base(method="pdk"), overrides=overrides_for(tmp_path, tiny_data))
    keys = base(kd_gain="loud", kd_levels="[8,16]", kd_stop=1, lr0=0.5)
    args = DistillationTrainer(cfg=keys, overrides={**settings, "kd_gain": 2}).args
    assert (args.kd_gain, args.kd_levels, args.lr0) == (2.0, [8, 16], 0.5)
    assert isinstance(args.kd_stop, float)


def test_keys_that_a_resume_does_not_take_are_named(copied: Callable[[str], Path], said: list[str]) -> None:
    args = resume(copied("yolov8n"), kd_every=3, dfmsd_mask="random", kd_stop=0.5, kd_safe_load=False).args
    assert (args.kd_every, args.kd_stop, args.kd_safe_load) == (1, 1.0, False)
    assert [message for message in said if "kd_every" in message and "engine" not in message] == [
        "WARNING ⚠️ resume keeps the run's own kd_every=1, kd_stop=1.0; start a new run to change that"
    ]


def test_a_run_that_was_copied_goes_on_where_it_lies(interrupted: Callable[[str], Path], tmp_path: Path) -> None:
    """With its own state; the folder that it was copied from stays as it is, and args.yaml says how it began."""
    first = interrupted("yolov8n")
    files = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    run = Path(shutil.copytree(first, tmp_path / "elsewhere"))
    begun = YAML.load(run / "args.yaml")
    last = str(run / "weights/last.pt")
    trainer = DistillationTrainer(overrides={"model": last, "resume": last, "data": None})
    assert trainer.save_dir == run and {path: path.stat().st_mtime_ns for path in first.rglob("*")} == files
    now = YAML.load(run / "args.yaml")
    assert {key: now[key] for key in BEGINNING} == {key: begun[key] for key in BEGINNING}
    assert begun["model"] == "yolov8n.yaml" and trainer.args.model.endswith("last.pt")


def test_files_of_a_run_are_kept_as_whole_paths(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run can be resumed from another folder."""
    monkeypatch.chdir(tiny_data.parent)
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr(DistillationTrainer, "get_dataset", lambda trainer: {})
    settings = {"teacher": str(tiny_teacher("yolov8n")), "kd_unlabeled": [str(tmp_path / "pictures"), "rest"]}
    args = DistillationTrainer(overrides=overrides_for(tmp_path, Path(tiny_data.name), **settings)).args
    assert args.data == str(tiny_data) and args.kd_unlabeled == [str(tmp_path / "pictures"), "rest"]


def test_callbacks_that_take_the_clocks_place(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    """The host's `set_callback` replaces all that listen to an event; the clock runs on nevertheless."""
    settings = {"method": "bckd", "teacher": str(tiny_teacher("yolov8n")), "kd_gain": 1.0, "epochs": 2}
    trainer = DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, **settings))
    positions: list[tuple[int, int]] = []
    trainer.add_callback(
        "on_train_batch_end", lambda t: positions.append((t.criterion.clock.epoch, t.criterion.clock.step))
    )
    for event in ("on_train_epoch_start", "on_train_batch_start"):
        trainer.add_callback("on_pretrain_routine_end", lambda t, event=event: t.set_callback(event, lambda _: None))
    trainer.train()
    steps = len(positions) // 2
    assert positions == [(epoch, step) for epoch in range(2) for step in range(1, steps + 1)]
    assert all(row["kd/factor"] > 0 for row in rows(trainer.save_dir))


def test_a_finished_run_cannot_be_resumed_and_stays(arm: Callable[[str], Any]) -> None:
    run = Path(arm("dfmsd+pcd").save_dir)
    with pytest.raises(UserError, match="no interrupted yolokd run"):
        resume(run)
    assert (run / "weights" / "best.pt").exists()


CHECK = """
import builtins, os, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yolokd", "tests"):
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace, SAFE_LOAD
assert SAFE_LOAD
for path in sys.argv[1:]:
    full = torch.load(path, map_location="cpu", weights_only=False)  # would import what it names
    assert type(full["ema"] or full["model"]).__name__ == "DetectionModel", path
    model, ckpt = tasks.load_checkpoint(path)
    assert type(model) is tasks.DetectionModel
    assert "criterion" not in model._modules, path
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks",
                     "_load_state_dict_post_hooks", "_load_state_dict_pre_hooks"):
            assert not getattr(module, kind), (path, name, kind)
    assert not [key for key in model.state_dict() if not key.startswith("model.")], path
    model.args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **model.args})
    generator = torch.Generator().manual_seed(0)
    batch = {"img": torch.rand(2, 3, 64, 64, generator=generator), "cls": torch.zeros(2, 1),
             "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 2), "batch_idx": torch.tensor([0.0, 1.0])}
    for p in model.parameters():
        p.requires_grad_(True)
    loss, items = model.train().loss(batch)
    assert torch.isfinite(loss).all() and len(items) == 3, path
    loss.sum().backward()
    fresh = tasks.DetectionModel(model.yaml, nc=len(model.names), verbose=False)
    fresh.load(model, verbose=False)
    own, other = fresh.state_dict(), model.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key].to(own[key].dtype)) for key in own), path
    model.eval()
    assert torch.isfinite(model(batch["img"])[0]).all()
    print("plain", os.path.basename(path))
assert not any(name.split(".")[0] == "yolokd" for name in sys.modules)
"""


def test_every_checkpoint_is_a_plain_student_where_yolokd_is_not_installed(
    interrupted: Callable[[str], Path], arm: Callable[[str], Any]
) -> None:
    files = [
        *sorted((interrupted("yolov8n") / "weights").glob("*.pt")),
        *sorted((interrupted("yolo26n") / "weights").glob("*.pt")),
        *sorted(arm("dfmsd").wdir.glob("*.pt")),
    ]
    files = [path for path in files if path.name != FILE]
    assert [path.name for path in files] == 2 * ["best.pt", "epoch0.pt", "epoch1.pt", "last.pt"] + [
        "best.pt",
        "epoch0.pt",
        "epoch1.pt",
        "last.pt",
    ]
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHECK, *map(str, files)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("plain") == len(files)


def test_a_distilled_student_fine_tunes_as_any_other(
    arm: Callable[[str], Any], tmp_path: Path, tiny_data: Path, said: list[str]
) -> None:
    train_plain(tmp_path, tiny_data, model=str(arm("dfmsd").best), epochs=1)
    transferred = [message for message in said if message.startswith("Transferred")]
    assert transferred
    number, total = transferred[0].split()[1].split("/")
    assert number == total


# Not a number ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kd_val"), [("yolov8n", False), ("yolo26n", True)])
def test_recovery_from_a_loss_that_is_not_a_number(
    family: str, kd_val: bool, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    seen: list[dict[str, Any]] = []
    stepped: set[int] = set()

    class Broken(DistillationTrainer):
        """Spoils the images of the second epoch once."""

        broken = False

        def optimizer_step(self) -> None:
            stepped.add(len(seen))
            super().optimizer_step()

        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super().preprocess_batch(batch)
            if self.epoch == 1 and self.criterion.clock.step == 2 and not self.broken:
                self.broken = True
                batch["img"] = batch["img"] * float("nan")
            return batch

    trainer = Broken(
        overrides=overrides_for(
            tmp_path,
            tiny_data,
            model=f"{family}.yaml",
            method="dfmsd+pcd",
            teacher=str(tiny_teacher("yolov8n")),
            epochs=3,
            kd_val=kd_val,
        )
    )
    trainer.add_callback("on_train_epoch_start", lambda trainer: seen.append(copy.deepcopy(trainer.criterion.state())))
    trainer.train()
    assert trainer.broken
    assert len(seen) == 4  # the second epoch was done twice
    first, again = seen[1]["methods"], seen[2]["methods"]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert seen[1]["calibration"] == seen[2]["calibration"]
    found = rows(trainer.save_dir)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    for row, turn in zip(found, (1, 3, 4)):
        norms = set() if turn in stepped else {"kd/student_grad_norm", "kd/adapter_grad_norm"}  # hosts before 8.4.170
        unknown = {key for key, value in row.items() if not math.isfinite(value) and not key.startswith("val/")}
        assert unknown <= norms, row
    assert "criterion" not in load_checkpoint(trainer.last)[0]._modules


# Steps by hand --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Teacher) -> Iterator[Any]:
    """A distillation trainer before its first step, and its state to go back to."""
    trainer = set_up(
        tmp_path_factory.mktemp("ready"), tiny_data, method="dfmsd+pcd", teacher=str(tiny_teacher("yolov8n"))
    )
    yield trainer


def draw_gradients(trainer: Any, adapters: float) -> None:
    """Give every parameter a random gradient, the adapters' scaled."""
    generator = torch.Generator().manual_seed(0)
    own = {id(parameter) for parameter in trainer.criterion.adapters()}
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            factor = adapters if id(parameter) in own else 1.0
            parameter.grad = torch.randn(parameter.shape, generator=generator) * factor


@pytest.fixture
def step(ready: Any) -> Iterator[Any]:
    """The ready trainer, put back after the test."""
    model, criterion = copy.deepcopy(ready.model.state_dict()), copy.deepcopy(ready.criterion.state())
    optimizer = copy.deepcopy(ready.optimizer.state_dict())
    for group in ready.optimizer.param_groups:
        group["lr"] = 0.01
    yield ready
    ready.model.load_state_dict(model)
    ready.criterion.load(criterion)
    ready.optimizer.load_state_dict(optimizer)
    ready.optimizer.state.clear()
    ready.optimizer.zero_grad()
    ready._guard.skipped = ready._guard.left_out = 0


def test_adapters_are_clipped_apart_from_the_student(step: Any) -> None:
    start = copy.deepcopy(step.model.state_dict())
    students = []
    for factor in (0.0, 1.0, 1e6):
        step.model.load_state_dict(start)
        step.optimizer.state.clear()
        draw_gradients(step, factor)
        before = [parameter.detach().clone() for parameter in step.criterion.adapters()]
        step.optimizer_step()
        students.append(copy.deepcopy(step.model.state_dict()))
        assert float(step._norms["kd/student_grad_norm"]) > 10
    assert all(torch.equal(a, b) for a, b in zip(students[0].values(), students[1].values()))
    assert all(torch.equal(a, b) for a, b in zip(students[0].values(), students[2].values()))
    assert any(not torch.equal(a, b) for a, b in zip(students[0].values(), start.values()))
    moved = torch.stack([(a - b).square().sum() for a, b in zip(before, step.criterion.adapters())]).sum().sqrt()
    assert 0 < float(moved.detach()) < 0.01 * 10 * 2.1  # learning rate x bound x (Nesterov's first step), not 1e6
    assert step.model.criterion is step.criterion


def test_the_students_clipping_is_the_hosts(step: Any) -> None:
    draw_gradients(step, 1.0)
    start = copy.deepcopy(step.model.state_dict())
    step.optimizer_step()
    ours = copy.deepcopy(step.model.state_dict())
    step.model.load_state_dict(start)
    step.optimizer.state.clear()
    draw_gradients(step, 0.0)
    adapters = list(step.criterion.adapters())
    for parameter in adapters:
        parameter.grad = None
    criterion, step.criterion = step.criterion, None  # the host's own step, on the student alone
    del step.model.criterion
    try:
        step.optimizer_step()
    finally:
        step.criterion = step.model.criterion = criterion
    hosts = step.model.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in hosts.items())


def test_both_norms_are_those_before_clipping(step: Any) -> None:
    draw_gradients(step, 3.0)
    own = {id(parameter) for parameter in step.criterion.adapters()}
    sums = {True: 0.0, False: 0.0}
    for parameter in step.model.parameters():
        if parameter.grad is not None:
            sums[id(parameter) in own] += float(parameter.grad.double().square().sum())
    step.optimizer_step()
    assert float(step._norms["kd/adapter_grad_norm"]) == pytest.approx(sums[True] ** 0.5, rel=1e-4)
    assert float(step._norms["kd/student_grad_norm"]) == pytest.approx(sums[False] ** 0.5, rel=1e-4)


@pytest.mark.parametrize("place", ["student", "adapters"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_with_gradients_that_are_not_finite_is_left_out(
    step: Any, said: list[str], place: str, value: float
) -> None:
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    draw_gradients(step, 1.0)
    parameters = step.criterion.adapters() if place == "adapters" else step.model.model[0].parameters()
    next(iter(parameters)).grad.view(-1)[0] = value
    step.optimizer_step()
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters()))
    assert any("step skipped: gradients are not finite (1 running)" in message for message in said)
    draw_gradients(step, 1.0)
    step.optimizer_step()
    assert not all(torch.equal(a, b) for a, b in zip(before, step.model.parameters()))
    assert step._guard.skipped == 0


def test_twenty_such_steps_running_end_the_run(step: Any) -> None:
    with pytest.raises(RuntimeError, match="not finite for 20 steps running"):
        for _ in range(20):
            draw_gradients(step, 1.0)
            next(iter(step.criterion.adapters())).grad.fill_(float("nan"))
            step.optimizer_step()


def test_every_adapter_is_in_the_optimizer_once(step: Any) -> None:
    counts: dict[int, int] = {}
    for group in step.optimizer.param_groups:
        for parameter in group["params"]:
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    assert [counts[id(parameter)] for parameter in step.criterion.adapters()] == [1] * len(
        list(step.criterion.adapters())
    )
    teacher = step.criterion.links[0].teacher.model
    assert not any(id(parameter) in counts for parameter in teacher.parameters())


def test_scalars_of_ours_do_not_decay(step: Any) -> None:
    decaying = {
        id(parameter)
        for group in step.optimizer.param_groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert decaying
    assert not any(id(p) in decaying for p in step.criterion.adapters() if p.ndim < 2)
    assert any(id(p) in decaying for p in step.criterion.adapters() if p.ndim == 4)


def test_the_ema_has_no_criterion_and_moves_with_the_student(step: Any) -> None:
    assert "criterion" not in step.ema.ema._modules
    before = copy.deepcopy(step.ema.ema.state_dict())
    step.ema.updates = 1000
    draw_gradients(step, 1.0)
    step.optimizer_step()
    after = step.ema.ema.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "SGD", "MuSGD"])
def test_each_optimizer_moves_student_and_adapters(step: Any, name: str) -> None:
    original = step.optimizer
    try:
        step.optimizer = step.build_optimizer(step.model, name=name, lr=0.01, momentum=0.9, decay=0.0)
        before = [parameter.detach().clone() for parameter in step.model.parameters()]
        draw_gradients(step, 1.0)
        step.optimizer_step()
        moved = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters())]
        learning = [parameter.requires_grad for parameter in step.model.parameters()]
        assert moved == learning
        adapters = {id(parameter) for parameter in step.criterion.adapters()}
        assert adapters <= {id(p) for p, m in zip(step.model.parameters(), moved) if m}
    finally:
        step.optimizer = original


def test_a_size_as_a_list_is_taken_as_the_host_takes_it(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    """Training has one size: the largest, rounded up to the stride."""
    trainer = set_up(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8n")), method="bckd", imgsz=[40, 60])
    assert trainer.args.imgsz == 64


def test_without_adapters_nothing_is_clipped_and_nothing_is_said() -> None:
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own, others = clip_adapters(iter([parameter]), iter([]), scale=2.0)
    assert (float(own), float(others)) == (3.0, 0.0)
    assert parameter.grad.tolist() == [3.0] * 4


def test_autobatch_profiles_student_and_teacher_together(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's profiler wants a model with parameters, stride and names that takes images."""
    from ultralytics.engine import trainer as host

    seen: list[int] = []

    def profile(model: nn.Module, imgsz: int, **kwargs: Any) -> int:
        model = copy.deepcopy(model).train()
        teacher = step.criterion.links[0].teacher
        original = type(teacher).__call__
        monkeypatch.setattr(
            type(teacher), "__call__", lambda self, images: (seen.append(len(images)), original(self, images))[1]
        )
        images = torch.rand(3, 3, imgsz, imgsz, requires_grad=True)
        outputs = model(images)
        sum(part.sum() for part in outputs).backward()
        assert len(model.names) == 3
        assert model.stride.tolist() == [8, 16, 32]
        assert next(model.parameters()).grad is not None
        return 16

    monkeypatch.setattr(host, "check_train_batch_size", profile)
    model = step.model
    assert step.auto_batch() == 16
    assert seen == [3]
    assert step.model is model


def test_a_callback_that_raises_during_validation_leaves_the_criterion_in_order(step: Any) -> None:
    step.args.kd_val = True
    step.loss_items = {"box_loss": torch.zeros(())}
    step.validator.callbacks = {**step.validator.callbacks, "on_val_start": [lambda validator: 1 / 0]}
    try:
        with pytest.raises(ZeroDivisionError):
            step.validate()
    finally:
        step.args.kd_val = False
        step.validator.callbacks["on_val_start"] = []
    assert not step.criterion.lent
    assert step.criterion.training
    assert "criterion" not in step.ema.ema._modules


# Options --------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW, rectangles": {"optimizer": "AdamW", "rect": True},
    "auto, several scales": {"optimizer": "auto", "multi_scale": 0.5},
    "MuSGD, frozen layers, class weights": {"optimizer": "MuSGD", "freeze": 10, "cls_pw": 0.5},
    "a fraction, no mixed precision": {"fraction": 0.5, "amp": False},
    "limited time": {"time": 0.0004},
    "automatic batch": {"batch": -1},
    "fixed gains": {"kd_gain": 2.0, "kd_decay": "constant", "cos_lr": True},
    "two branches, MuSGD": {"model": "yolo26n.yaml", "optimizer": "MuSGD", "cls_pw": 0.5},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_hosts_options_train(option: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher) -> None:
    trainer = train(
        tmp_path,
        tiny_data,
        **{"method": "dfmsd+pcd", "teacher": str(tiny_teacher("yolov8n")), "epochs": 1, **OPTIONS[option]},
    )
    found = rows(trainer.save_dir)
    assert len(found) >= 1
    assert found[0]["train/dfmsd_loss"] > 0
    assert found[0]["train/pcd_loss"] > 0
    assert found[0]["kd/adapter_grad_norm"] > 0
    assert trainer.best.exists()
    if "cls_pw" in OPTIONS[option]:
        base = trainer.criterion.task.base
        assert getattr(base, "one2many", base).class_weights is not None
    if "freeze" in OPTIONS[option]:
        assert not any(parameter.requires_grad for parameter in trainer.model.model[:10].parameters())
        assert all(parameter.requires_grad for parameter in trainer.criterion.adapters())


def test_a_compiled_student_is_distilled(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backend that needs no C++ compiler and has inductor's graphs."""
    from ultralytics.engine import trainer as host

    monkeypatch.setattr(host, "attempt_compile", lambda model, **kwargs: torch.compile(model, backend="aot_eager"))
    trainer = train(
        tmp_path, tiny_data, method="dfmsd+pcd", teacher=str(tiny_teacher("yolov8n")), epochs=1, compile=True
    )
    (row,) = rows(trainer.save_dir)
    for name in ("train/dfmsd_loss", "kd/dfmsd_gain", "train/pcd_loss", "kd/adapter_grad_norm"):
        assert row[name] > 0, name
    assert "criterion" not in load_checkpoint(trainer.best)[0]._modules


def test_one_class_from_many(tmp_path: Path, tiny_data: Path) -> None:
    teacher = save_model(tiny_model(names=("item",), seed=2), tmp_path / "teacher.pt")
    trainer = train(tmp_path, tiny_data, single_cls=True, method="pcd", teacher=str(teacher), epochs=1)
    assert rows(trainer.save_dir)[0]["train/pcd_loss"] > 0


def test_epochs_without_validation_have_no_terms_in_the_val_columns(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    trainer = train(tmp_path, tiny_data, val=False, kd_val=True, method="dfmsd", teacher=str(tiny_teacher("yolov8n")))
    first, last = rows(trainer.save_dir)
    assert math.isnan(first["val/dfmsd_loss"])
    assert last["val/dfmsd_loss"] > 0


def test_two_teachers_change_at_their_stage(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    seen = []
    trainer = DistillationTrainer(
        overrides=overrides_for(
            tmp_path,
            tiny_data,
            method="dfmsd",
            teacher=[str(tiny_teacher("yolov8n")), str(tiny_teacher("yolo11n"))],
            dfmsd_stages=[0.6],
            epochs=3,
        )
    )

    def look(trainer: Any) -> None:
        grads = [any(bool(p.grad.any()) for p in m.parameters()) for m in trainer.criterion.methods["dfmsd"]]
        seen.append((trainer.epoch, *grads))

    original = trainer.optimizer_step
    trainer.optimizer_step = lambda: (look(trainer), original())
    trainer.train()
    assert [row["kd/stage"] for row in rows(trainer.save_dir)] == [0, 0, 1]
    assert {entry for entry in seen if entry[0] < 2} == {(0, True, False), (1, True, False)}
    assert {entry for entry in seen if entry[0] == 2} == {(2, False, True)}
    stages = [message for message in said if message.startswith("distillation: stage")]
    assert stages == ["distillation: stage 1 of 2, teacher 1", "distillation: stage 2 of 2, teacher 2"]


# Python ---------------------------------------------------------------------------------------------------------------


def python_settings(folder: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    return {key: value for key, value in overrides_for(folder, data, **overrides).items() if key != "model"}


def test_a_trained_yolo_object_is_usable_at_once(
    tmp_path: Path, tiny_data: Path, tiny_student: Teacher, tiny_teacher: Teacher
) -> None:
    """With a YOLO object as teacher, which is written to the run's folder."""
    model, teacher = YOLO(tiny_student("yolov8n")), YOLO(tiny_teacher("yolov8n"))
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    metrics = model.train(
        trainer=DistillationTrainer,
        teacher=teacher,
        method="dfmsd",
        **python_settings(tmp_path, tiny_data, epochs=1),
    )
    assert metrics is not None
    assert type(model.model).__name__ == "DetectionModel"
    assert "map50" in dir(model.val(data=str(tiny_data), imgsz=64, plots=False, project=str(tmp_path), workers=0).box)
    results = model.predict(np.zeros((64, 64, 3), dtype=np.uint8), imgsz=64, verbose=False)
    assert results[0].names == dict(enumerate(NAMES))
    assert Path(model.export(format="torchscript", imgsz=64)).stat().st_size > 1e6
    assert all(torch.equal(before[key], value) for key, value in teacher.model.state_dict().items())
    run = Path(model.trainer.save_dir)
    assert YAML.load(run / "args.yaml")["teacher"] == str(run / "teacher.pt")
    assert type(load_checkpoint(run / "teacher.pt")[0]).__name__ == "DetectionModel"


def test_a_module_as_teacher_is_written_down_and_resumed(tmp_path: Path, tiny_data: Path, said: list[str]) -> None:
    trainer = DistillationTrainer(
        overrides=overrides_for(tmp_path, tiny_data, method="dfmsd", teacher=tiny_model("yolov8n", seed=2), epochs=2)
    )
    state: dict[str, Any] = {}

    def kill(trainer: Any) -> None:
        if trainer.epoch == 1:
            state.update(copy.deepcopy(trainer.criterion.state()))
            raise Killed

    trainer.add_callback("on_train_epoch_start", kill)
    with pytest.raises(Killed):
        trainer.train()
    run = Path(trainer.save_dir)
    assert trainer.args.teacher == str(run / "teacher.pt")
    resumed = DistillationTrainer(
        overrides={"model": str(run / "weights" / "last.pt"), "resume": str(run / "weights" / "last.pt"), "data": None}
    )

    def look(trainer: Any) -> None:
        now = trainer.criterion.state()
        assert all(torch.equal(now["methods"][key], value) for key, value in state["methods"].items())
        assert now["calibration"] == state["calibration"]

    at_the_first_step(resumed, look)
    assert not any("anew" in message for message in said)
    assert [row["epoch"] for row in rows(run)] == [1, 2]


def test_two_teacher_objects_are_written_down(tmp_path: Path, tiny_data: Path) -> None:
    teachers = [tiny_model("yolov8n", seed=2), tiny_model("yolo11n", seed=3)]
    trainer = set_up(tmp_path, tiny_data, method="dfmsd", teacher=teachers)
    assert [Path(path).name for path in trainer.args.teacher] == ["teacher1.pt", "teacher2.pt"]
    assert all(Path(path).exists() for path in trainer.args.teacher)


def test_args_yaml_names_a_teacher_that_is_found_from_elsewhere(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports read it there, wherever they are asked for."""
    file = Path(shutil.copy(tiny_teacher("yolov8n"), tmp_path / "mine.pt"))
    monkeypatch.chdir(tmp_path)
    trainer = set_up(tmp_path, tiny_data, teacher="mine.pt")
    assert YAML.load(trainer.save_dir / "args.yaml")["teacher"] == trainer.args.teacher == str(file)


def test_a_teacher_may_be_named_without_its_ending(tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher) -> None:
    """As on the command line."""
    file = Path(shutil.copy(tiny_teacher("yolov8n"), tmp_path / "mine.pt"))
    assert set_up(tmp_path, tiny_data, teacher=str(file.with_suffix(""))).args.teacher == str(file)


# Mistakes -------------------------------------------------------------------------------------------------------------


def text_file(path: Path) -> str:
    path.write_text("no weights")
    return str(path)


MISTAKES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a missing teacher": (
        lambda folder: {"teacher": str(folder / "nowhere.pt")},
        r"teacher=.*nowhere\.pt: there is no file",
    ),
    "a text file": (
        lambda folder: {"teacher": text_file(folder / "text.pt")},
        r"teacher=.*text\.pt is no PyTorch checkpoint",
    ),
    "no teacher": (lambda folder: {"method": "dfmsd"}, "method=dfmsd needs a teacher"),
    "an untrained teacher object": (
        lambda folder: {"teacher": tiny_model(trained=False), "kd_preflight": True},
        "was never trained",
    ),
    "two teacher objects of which one is untrained": (
        lambda folder: {"teacher": [tiny_model(), tiny_model(trained=False)], "kd_preflight": True, "method": "dfmsd"},
        ": teacher 2 was never trained",
    ),
    "other classes": (lambda folder: {"teacher": tiny_model(names=("dog", "cat"))}, "knows none of the data's classes"),
    "two teachers of which one has other classes": (
        lambda folder: {
            "teacher": [tiny_model(), tiny_model(names=("dog", "cat"))],
            "method": "pcd",
            "kd_teachers": "together",
        },
        r"^teacher 2 of 2: method=pcd .*knows none of the data's classes",
    ),
    "a frozen neck": (lambda folder: {"teacher": tiny_model(), "freeze": 22}, "leaves no gradient at the neck"),
    "an object to be fine-tuned": (
        lambda folder: {"teacher": tiny_model(), "teacher_epochs": 1},
        "weights from a file",
    ),
    "an object for the built-in": (lambda folder: {"teacher": tiny_model(), "method": "ultralytics"}, "weights file"),
    "bfloat16 without a GPU": (
        lambda folder: {"teacher": tiny_model(), "amp": "bf16"},
        "amp=bf16 needs a GPU with native bfloat16, which device=cpu has not",
    ),
    "files and objects": (lambda folder: {"teacher": [tiny_model(), "a.pt"]}, "either weights files or model objects"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_no_run_behind(mistake: str, tmp_path: Path, tiny_data: Path) -> None:
    make, message = MISTAKES[mistake]
    folder = tmp_path / "runs"
    with pytest.raises(UserError, match=message) as error:
        train(folder, tiny_data, **make(tmp_path))
    assert len(str(error.value).splitlines()) == 1
    assert not folder.exists() or not list(folder.iterdir())


def test_a_mistake_leaves_an_earlier_run_alone(arm: Callable[[str], Any], tiny_data: Path, tmp_path: Path) -> None:
    earlier = Path(shutil.copytree(arm("dfmsd").save_dir, tmp_path / "run"))
    weights = {path.name: path.read_bytes() for path in (earlier / "weights").iterdir()}
    with pytest.raises(UserError):
        train(tmp_path, tiny_data, teacher=str(tmp_path / "nowhere.pt"), exist_ok=True)
    assert {path.name: path.read_bytes() for path in (earlier / "weights").iterdir()} == weights


# The teacher's own run ------------------------------------------------------------------------------------------------


def test_teacher_epochs_makes_a_run_beside_this_one_and_uses_it_again(
    tmp_path: Path, tiny_data: Path, tiny_student: Teacher, said: list[str]
) -> None:
    first = train(tmp_path, tiny_data, method="dfmsd", teacher=str(tiny_student("yolov8n")), teacher_epochs=1, epochs=1)
    beside = [path for path in tmp_path.iterdir() if path != first.save_dir]
    assert len(beside) == 1
    best = beside[0] / "weights" / "best.pt"
    assert first.args.teacher == str(best)
    assert YAML.load(first.save_dir / "args.yaml")["teacher"] == str(best)
    assert len(rows(beside[0])) == 1
    stamp = best.stat().st_mtime_ns
    second = train(
        tmp_path, tiny_data, method="dfmsd", teacher=str(tiny_student("yolov8n")), teacher_epochs=1, epochs=1
    )
    assert best.stat().st_mtime_ns == stamp
    assert any("reusing the fine-tuned teacher" in message for message in said)
    given = train(tmp_path, tiny_data, method="dfmsd", teacher=str(best), epochs=1)
    runs = [rows(trainer.save_dir)[0] for trainer in (first, second, given)]
    assert same_values(runs[0], runs[1])
    assert same_values(runs[0], runs[2])


def test_the_trainer_of_a_teacher_is_gone_before_the_students_training(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ring:
        """As a trainer is, which its callbacks refer to."""

        def __init__(self) -> None:
            self.own = self

    left: list[weakref.ref[Ring]] = []

    def fine_tune(teacher: str, *args: Any) -> str:
        left.append(weakref.ref(Ring()))
        return teacher

    def begin(trainer: Any) -> None:
        assert [ring() for ring in left] == [None]
        raise Killed

    monkeypatch.setattr("yolokd.trainer.fine_tune", fine_tune)
    monkeypatch.setattr(DetectionTrainer, "train", begin)
    settings = overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8n")), teacher_epochs=1)
    trainer: Any = DistillationTrainer(overrides=settings)
    gc.disable()
    try:
        with pytest.raises(Killed):
            trainer.train()
    finally:
        gc.enable()


@pytest.mark.parametrize("cut", [False, True])
def test_an_interrupted_teacher_run_is_resumed(
    cut: bool, tmp_path: Path, tiny_data: Path, tiny_student: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or begun anew where the kill came while the host was writing."""
    from types import SimpleNamespace

    from yolokd.teachers.teacher_run import SHARED, fine_tune

    args = SimpleNamespace(**{key: overrides_for(tmp_path, tiny_data).get(key) for key in SHARED}, teacher_epochs=2)
    args.seed, args.fraction, args.single_cls, args.amp, args.cache, args.rect = 0, 1.0, False, True, False, False
    args.task = "detect"
    original = DetectionTrainer.save_model

    def killed(self: Any) -> bool:
        original(self)
        raise Killed

    monkeypatch.setattr(DetectionTrainer, "save_model", killed)
    with pytest.raises(Killed):
        fine_tune(str(tiny_student("yolov8n")), args, tmp_path)
    monkeypatch.undo()
    (last,) = tmp_path.rglob("last.pt")
    if cut:
        last.write_bytes(last.read_bytes()[:1000])
    best = fine_tune(str(tiny_student("yolov8n")), args, tmp_path)
    assert any(("is cut off" if cut else "resuming the teacher's run") in message for message in said)
    assert [row["epoch"] for row in rows(best.parent.parent)] == [1, 2]
    state = random.getstate()
    assert fine_tune(str(tiny_student("yolov8n")), args, tmp_path) == best
    assert random.getstate() == state
    if cut:  # the other run's settings differ, so that it gets a folder of its own beside the first one
        args.fraction = 0.5
        monkeypatch.setattr(YOLO, "train", lambda self, **settings: None)
        beside = fine_tune(str(tiny_student("yolov8n")), args, tmp_path).parent.parent
        assert beside.parent == best.parent.parent.parent and beside.name == f"{best.parent.parent.name}-2"
