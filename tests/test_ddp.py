"""Several devices without any: the worker's trainer rebuilt as the host does, and two processes with one gradient."""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn
from ultralytics import YOLO
from ultralytics.engine import trainer as host
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from tests.tiny import overrides_for, rows, save_model, set_up, tiny_batch, tiny_criterion, tiny_model
from yolokd import DistillationTrainer
from yolokd.errors import UserError
from yolokd.preflight import settle_start
from yolokd.saving.handover import FOLDER_PREFIX
from yolokd.students.start import Start, shared_start
from yolokd.terms.clock import start_batch, start_epoch

Teacher = Callable[[str], Path]
pytest.importorskip("cloudpickle", reason="the host installs it at the first launch on several devices")


def launch(trainer: DistillationTrainer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Start a training as on two devices; the worker's file runs here, once, instead of under torchrun."""
    workers: list[Any] = []
    original = DistillationTrainer.train

    def kept(self: Any) -> Any:
        workers.append(self)
        return original(self)

    def run(command: list[str], check: bool) -> None:
        assert "--nproc_per_node" in command
        assert not Path(trainer.save_dir).exists()  # the launcher empties it
        path = list(sys.path)
        monkeypatch.setattr(DistillationTrainer, "train", kept)
        try:
            runpy.run_path(command[-1], run_name="__main__")
        finally:
            sys.path[:] = path
            monkeypatch.setattr(DistillationTrainer, "train", original)

    monkeypatch.setattr(host.subprocess, "run", run)
    trainer.ddp, trainer.world_size = True, 2
    trainer.train()
    return workers


def test_a_worker_rebuilds_the_trainer_from_the_pickled_state(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(
        overrides=overrides_for(
            tmp_path,
            tiny_data,
            method="dfmsd+pcd",
            teacher=str(tiny_teacher("yolov8n")),
            epochs=1,
            kd_levels="[16,32]",
            dfmsd_stages=[0.5],
            pcd_temperature=2,
        )
    )
    (worker,) = launch(trainer, monkeypatch)
    assert type(worker) is DistillationTrainer
    assert worker is not trainer
    assert worker.methods == ("dfmsd", "pcd")
    own = {key: value for key, value in vars(trainer.args).items() if key not in {"device", "workers", "max_det"}}
    assert {key: getattr(worker.args, key) for key in own} == own
    assert worker.callbacks["on_train_epoch_start"].count(start_epoch) == 1
    assert worker.callbacks["on_train_batch_start"].count(start_batch) == 1
    assert worker.criterion.methods["pcd"][0].pair.strides == (16, 32)
    (row,) = rows(trainer.save_dir)
    assert row["train/dfmsd_loss"] > 0
    assert row["train/pcd_loss"] > 0


def test_a_teacher_object_is_handed_to_the_workers(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(
        overrides=overrides_for(tmp_path, tiny_data, method="dfmsd", teacher=tiny_model(seed=2), epochs=1)
    )
    (worker,) = launch(trainer, monkeypatch)
    kept = Path(trainer.save_dir) / "teacher.pt"
    assert worker.args.teacher == str(kept)
    assert YAML.load(kept.parent / "args.yaml")["teacher"] == str(kept)
    expected, found = tiny_model(seed=2).state_dict(), load_checkpoint(kept)[0].state_dict()
    assert all(torch.equal(expected[key], value) for key, value in found.items())
    assert FOLDER_PREFIX in trainer.args.teacher
    assert not Path(trainer.args.teacher).exists()  # the launcher cleans up after itself
    assert rows(trainer.save_dir)[0]["train/dfmsd_loss"] > 0


def test_the_built_in_distillation_is_handed_on_too(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = DistillationTrainer(
        overrides=overrides_for(
            tmp_path, tiny_data, method="ultralytics", teacher=str(tiny_teacher("yolov8n")), epochs=1
        )
    )
    launch(trainer, monkeypatch)
    assert rows(trainer.save_dir)[0]["train/dis_loss"] > 0


@pytest.mark.parametrize("pretrained", [True, False])
def test_workers_know_what_a_student_file_brings(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool
) -> None:
    """The host builds a student of a file where the run is launched; its workers are handed the model alone."""
    student = save_model(tiny_model(names=("cat", "dog", "car", "tree"), seed=1), tmp_path / "student.pt")
    given = overrides_for(tmp_path, tiny_data, method="bckd", teacher=tiny_model("yolov8s", seed=2), epochs=1)
    seen: list[tuple[bool, list[int]]] = []

    def start(model: Any, teachers: Any, images: Any, names: Any, args: Any, random: bool, new: Any) -> Start:
        seen.append((random, sorted(new)))
        return Start()

    monkeypatch.setattr("yolokd.trainer.start_from_teacher", start)
    trained: list[DistillationTrainer] = []
    original = DistillationTrainer.train

    def train(trainer: DistillationTrainer) -> Any:
        trained.append(trainer)
        if len(trained) > 1:
            return original(trainer)
        monkeypatch.setattr(DistillationTrainer, "train", original)
        return launch(trainer, monkeypatch)

    monkeypatch.setattr(DistillationTrainer, "train", train)
    YOLO(str(student)).train(trainer=DistillationTrainer, **{**given, "model": str(student), "pretrained": pretrained})
    assert seen == [(not pretrained, [0, 1, 2])]
    assert not hasattr(load_checkpoint(Path(trained[0].save_dir) / "weights" / "last.pt")[0], "kd_brought")


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}


def work(rank: int, port: int, folder: str) -> None:
    """Train a step on each of two processes and write down what came out."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    seen: dict[str, Any] = {}
    for family in ("yolov8n", "yolo26n"):
        for images in ("same", "own"):  # as the host wraps a model, with the same images or others on each process
            model, criterion = tiny_criterion("dfmsd+pcd", family, family, kd_gain="auto")
            wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            loss, items = wrapped(tiny_batch(seed=rank if images == "own" else 0))
            loss.sum().backward()
            seen[f"{family} {images}"] = {
                "items": items,
                "gains": dict(criterion.calibration.gains),
                "gradients": gradients(model),
            }
    teachers = [tiny_model("yolov8n", seed=2), tiny_model("yolov8n", seed=3)]
    model, criterion = tiny_criterion("dfmsd", "yolov8n", teachers, kd_gain="auto", kd_decay="constant")
    wrapped = nn.parallel.DistributedDataParallel(model, static_graph=True)  # as the host does with compile=
    criterion.replay_through(model.model[-1])  # as with compile=, the wrapper's outputs hide the neck maps
    for epoch in (0, 2, 6, 7):
        criterion.clock.epoch = epoch
        batch = tiny_batch(seed=rank)
        loss, _ = wrapped.module.loss(batch, wrapped(batch["img"]))
        loss.sum().backward()
        seen[f"static {epoch}"] = {"stage": criterion.stage, "gradients": gradients(model)}
        model.zero_grad()
    trainer: Any = SimpleNamespace(model=wrapped, ema=SimpleNamespace(ema=tiny_model("yolov8n", seed=1)))
    settle_start(trainer, tiny_model("yolov8n", seed=9).state_dict() if rank == 0 else None, keep=rank == 0)
    seen["start"] = [
        trainer.ema.ema.state_dict(),
        {key: model.state_dict()[key] for key in trainer.ema.ema.state_dict()},
    ]
    student = tiny_model("yolov8n", seed=9 + rank)
    found = shared_start(student, Start(rank == 0))
    seen["fit"] = [found.fitted, student.state_dict()]
    torch.save(seen, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def in_two_processes(task: Callable[..., None], *args: Any) -> None:
    """Run a task in two processes, forked from one that has imported this module."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    multiprocessing.start_processes(task, args, nprocs=2, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(work, free_port(), str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_the_same_images_on_both_give_what_one_process_gives(both: list[dict[str, Any]], family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family, kd_gain="auto")
    loss, items = model(tiny_batch())
    loss.sum().backward()
    expected = gradients(model)
    assert any(key.startswith("criterion.") for key in expected)
    for process in both:
        found = process[f"{family} same"]
        assert found["gains"] == pytest.approx(criterion.calibration.gains, rel=1e-5)
        assert {key: float(v) for key, v in found["items"].items()} == pytest.approx(
            {key: float(v) for key, v in items.items()}, rel=1e-5
        )
        assert found["gradients"].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found["gradients"][key], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), key


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_other_images_on_each_give_both_the_same_gains_and_gradients(both: list[dict[str, Any]], family: str) -> None:
    left, right = (process[f"{family} own"] for process in both)
    assert float(left["items"]["dfmsd_loss"]) != float(right["items"]["dfmsd_loss"])
    assert left["gains"] == right["gains"]
    assert all(torch.equal(value, right["gradients"][key]) for key, value in left["gradients"].items())


def test_a_static_graph_bears_the_change_of_stage(both: list[dict[str, Any]]) -> None:
    left, right = both
    for epoch, stage in ((0, 0), (2, 0), (6, 1), (7, 1)):
        assert left[f"static {epoch}"]["stage"] == stage
        for key, value in left[f"static {epoch}"]["gradients"].items():
            assert torch.equal(value, right[f"static {epoch}"]["gradients"][key])
            if key.startswith("criterion.methods.dfmsd.") and "adapters" in key:
                assert bool(value.any()) == (key.split(".")[3] == str(stage)), (epoch, key)


def test_own_weights_come_back_in_all_processes(both: list[dict[str, Any]]) -> None:
    """The first process alone has looked, and it alone hands them out: to the student and its EMA."""
    own = tiny_model("yolov8n", seed=9).state_dict()
    for state in (state for seen in both for state in seen["start"]):
        assert state.keys() == own.keys() and all(torch.equal(state[key], value) for key, value in own.items())


def test_the_first_process_fits_for_all(both: list[dict[str, Any]]) -> None:
    own = tiny_model("yolov8n", seed=9).state_dict()
    for fitted, state in (seen["fit"] for seen in both):
        assert fitted and all(torch.equal(state[key], value) for key, value in own.items())


def test_a_teacher_is_not_fine_tuned_by_several_processes(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8n")), teacher_epochs=2)
    monkeypatch.setattr("yolokd.trainer.RANK", 1)
    with pytest.raises(UserError, match=r"teacher_epochs=2 .* torchrun .* yolo train model=.* best.pt as teacher="):
        DistillationTrainer(overrides=settings).train()


def test_a_process_without_metrics_has_none_to_blank(tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher) -> None:
    """All processes validate after the last epoch; the first alone has metrics."""
    folder = tiny_data.parent / "images" / "train"
    names = ["circle", "square"]
    trainer = set_up(tmp_path, folder, teacher=str(tiny_teacher("yolov8n")), kd_names=names)
    assert trainer.unevaluated
    assert all(np.isnan(value) for value in trainer.validate()[0].values())
    trainer.metrics = None
    assert trainer.validate() == (None, None)


def test_all_machines_are_counted(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process of the second of two machines with two devices each, up to where a device is needed."""
    joined: dict[str, Any] = {}
    trainer = DistillationTrainer(overrides=overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8n"))))
    trainer.world_size, trainer.args.device = 2, "0,1"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(host, "LOCAL_RANK", 1)
    monkeypatch.setattr(host, "RANK", 3)
    backend = type("Backend", (), {"set_device": lambda self, index: joined.update(index=index)})()
    monkeypatch.setattr(host, "get_torch_device_backend", lambda device: backend)
    monkeypatch.setattr(host.dist, "init_process_group", lambda **settings: joined.update(settings))
    trainer._setup_ddp()
    assert (joined["rank"], joined["world_size"], joined["index"]) == (3, 4, 1)
    assert trainer.world_size == 4  # by which the host divides the batch and multiplies the loss
    assert trainer.device == torch.device("cuda", 1)


def run_as_a_node(rank: int, port: int, folder: Path, data: Path, teacher: Path) -> None:
    """Train as one of two processes that torchrun would start, on the CPU, with everything of the host but the GPU."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK="0")
    import ultralytics.engine.trainer as engine
    import ultralytics.engine.validator as validator
    from ultralytics.models.yolo.detect import val as detect
    from ultralytics.utils import torch_utils

    for module in (engine, torch_utils):
        module.LOCAL_RANK = 0  # one process on each machine
    engine.RANK = validator.RANK = detect.RANK = rank
    wrap = nn.parallel.DistributedDataParallel

    def hold(trainer: Any) -> None:
        trainer.world_size = int(os.environ["WORLD_SIZE"])
        engine.dist.init_process_group("gloo", rank=rank, world_size=trainer.world_size)

    engine.BaseTrainer._setup_ddp = hold
    engine.nn.parallel.DistributedDataParallel = lambda module, device_ids, **kwargs: wrap(module, **kwargs)
    trainer = DistillationTrainer(
        overrides=overrides_for(
            folder,
            data,
            teacher=str(teacher),
            method="mgd+ckd+pcd",
            kd_preflight=True,
            exist_ok=True,
            epochs=2,
            batch=4,
        )
    )
    trainer.ddp, trainer.world_size = False, 2
    final_eval = trainer.final_eval

    def alone() -> None:  # the host looks for a GPU there in runs of several processes
        validator.RANK = detect.RANK = -1
        final_eval()

    trainer.final_eval = alone
    trainer.train()
    assert trainer.criterion is not None
    assert (trainer.start_fitness is None) == (rank > 0) and trainer._start is None  # validated in both, once
    adapters = torch.cat([p.detach().flatten() for p in trainer.criterion.adapters()])
    student = torch.cat(
        [p.detach().flatten() for name, p in trainer.model.named_parameters() if "criterion" not in name]
    )
    found = (adapters.double().sum().item(), student.double().sum().item(), len(trainer.train_loader))
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_machines_of_one_process_each_train_one_student(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    in_two_processes(run_as_a_node, free_port(), tmp_path, tiny_data, tiny_teacher("yolov8n"))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1]  # the same adapters and the same student in both
    assert found[0][2] == 2  # 6 images among 2 processes, 2 of them a step
    assert len(rows(tmp_path / "run")) == 2
