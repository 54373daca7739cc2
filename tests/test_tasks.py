"""Segmentation, pose, obb and RT-DETR students: every method that suits, and one short real training of each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn.tasks import RTDETRDetectionModel, load_checkpoint
from ultralytics.utils.tal import dist2rbox, make_anchors

import yolokd
from tests.task_data import (
    MODELS,
    SUFFIX,
    rtdetr_yaml,
    save_task_model,
    task_batch,
    task_data,
    task_model,
)
from tests.test_heads import check_neck, check_step
from tests.tiny import overrides_for, rows, tiny_args, tiny_criterion
from yolokd import TRAINERS, cli, preflight
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.evaluation.quick import detect
from yolokd.export import check_export
from yolokd.losses import LOSSES
from yolokd.ops.regions import propose
from yolokd.outputs import View, read_output
from yolokd.pairs.suitability import refusals, student_head, teacher_head
from yolokd.saving.state import FILE, read_state
from yolokd.students.kinds import TRAINER_NAMES, check_detector, check_kind, kind_of
from yolokd.students.query_student import QueryStudent, put_on, take_off
from yolokd.students.query_task import predicted_boxes
from yolokd.taps import Taps, Targets
from yolokd.teachers.teacher import Teacher, load_teacher
from yolokd.teachers.teacher_run import fine_tune
from yolokd.trainers import trainer_for

TASKS = ("segment", "pose", "obb")


def suiting(student: nn.Module, teacher: nn.Module) -> tuple[list[str], dict[str, float]]:
    """Return the methods of which a part suits a pair, and the keys that switch off the parts that do not."""
    heads = student_head(student), teacher_head(Teacher(*load_teacher(teacher)))
    methods, off = [], {}
    for name, loss in LOSSES.items():
        refused = refusals(name, None, *heads)
        if len(refused) < len(loss.part_names or ("",)):
            methods.append(name)
            off |= {f"{name}_{refusal.part}": 0.0 for refusal in refused}
    return methods, off


def joined(student: nn.Module, teacher: nn.Module, **overrides: Any) -> tuple[Any, Any, list[str]]:
    """Return a student and its criterion with all methods that suit the pair."""
    methods, off = suiting(student, teacher)
    model, criterion = tiny_criterion("+".join(methods), student, teacher, **off, **overrides)
    put_on(model, criterion)
    return model, criterion, methods


# Steps of the criterion -----------------------------------------------------------------------------------------------


QUICK = {("yolov8n", "obb"), ("yolo26n", "segment"), ("yolo26n", "pose")}


@pytest.mark.parametrize(
    ("family", "task"),
    [
        pytest.param(family, task, marks=() if (family, task) in QUICK else pytest.mark.slow)
        for family in ("yolov8n", "yolo11n", "yolo26n")
        for task in TASKS
    ],
)
def test_every_method_that_suits_acts_on_a_student_of_the_task(family: str, task: str) -> None:
    student, teacher = task_model(family, task, seed=1), task_model(family, task, seed=2)
    model, criterion, methods = joined(student, teacher)
    assert set(LOSSES) - set(methods) <= {"ld"}
    assert list(criterion.task.assignments) == ["one2many", "one2one"][: 2 if family == "yolo26n" else 1]
    plain = set(model.init_criterion()(model(task_batch(task)["img"]), task_batch(task))[1])
    items = model(task_batch(task))[1]
    assert set(items) == plain | {f"{name}_loss" for name in methods}
    terms = check_step(model, criterion, task_batch(task))
    assert all(term > 0 for term in terms.values()), terms
    check_neck(model, methods, task_batch(task))


@pytest.mark.parametrize("task", ["segment", pytest.param("pose", marks=pytest.mark.slow), "obb"])
def test_batches_of_any_kind_go_through_a_task(task: str) -> None:
    model, criterion, methods = joined(task_model("yolov8n", task, seed=1), task_model("yolov8n", "detect", seed=2))
    for batch in (task_batch(task, size=(64, 96)), task_batch(task, images=1, seed=2)):
        assert all(term > 0 for term in check_step(model, criterion, batch).values())
    terms = check_step(model, criterion, task_batch(task, objects=0))
    assert all(terms[name] > 0 for name in methods if LOSSES[name].signal != "logits"), terms
    with torch.autocast("cpu", torch.bfloat16):
        assert all(term > 0 for term in check_step(model, criterion, task_batch(task)).values())


def test_a_rotated_box_is_decoded_as_the_smallest_upright_one_around_it() -> None:
    model = task_model("yolov8n", "obb", seed=1).train()
    with torch.no_grad():
        preds = model(task_batch("obb", size=(64, 96))["img"])
    taps = View((8, 16, 32), (0, 1, 2)).taps(read_output(preds), "one2many")
    raw, angle = preds["boxes"].permute(0, 2, 1), preds["angle"].permute(0, 2, 1)
    points, strides = make_anchors(preds["feats"], model.stride, 0.5)
    distances = raw.unflatten(-1, (4, 16)).softmax(-1) @ torch.arange(16.0)
    found = taps.decoded()
    assert found.shape == (2, len(points), 4)
    boxes = dist2rbox(distances, angle, points) * strides  # x, y, w, h about the turned box's own centre
    for image, anchor in ((0, 0), (1, 40), (0, len(points) - 1)):
        x, y, w, h = boxes[image, anchor].tolist()
        turn = float(angle[image, anchor])
        corners = [
            (
                x + a * w / 2 * np.cos(turn) - b * h / 2 * np.sin(turn),
                y + a * w / 2 * np.sin(turn) + b * h / 2 * np.cos(turn),
            )
            for a in (-1, 1)
            for b in (-1, 1)
        ]
        xs, ys = zip(*corners)
        expected = torch.tensor([min(xs), min(ys), max(xs), max(ys)])
        torch.testing.assert_close(found[image, anchor], expected.float(), atol=1e-3, rtol=1e-4)


# RT-DETR --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["detect", "obb", "rtdetr"])
def test_feature_and_region_methods_act_on_rtdetr(teacher: str) -> None:
    model, criterion, methods = joined(task_model("", "rtdetr", seed=1), task_model("yolov8n", teacher, seed=2))
    assert {"dfmsd", "samkd", "sgfi", "ckd", "mgd", "cwd", "pkd"} <= set(methods)
    assert not {"pcd", "bckd", "ld", "softkd"} & set(methods)
    for batch in (task_batch("rtdetr"), task_batch("rtdetr", size=(64, 96)), task_batch("rtdetr", objects=0)):
        terms = check_step(model, criterion, batch)
        assert all(term > 0 for term in terms.values()), terms


def test_the_terms_are_added_once_to_the_hosts_own_loss_of_rtdetr() -> None:
    model, criterion, methods = joined(task_model("", "rtdetr", seed=1), task_model("yolov8n", "detect", seed=2))
    plain = task_model("", "rtdetr", seed=1).train()
    batch = task_batch("rtdetr", images=3)
    torch.manual_seed(0)  # denoising queries are drawn
    expected, items = plain.loss(batch)
    torch.manual_seed(0)
    loss, found = model.loss(batch)
    assert loss.shape == (1 + len(methods),)
    torch.testing.assert_close(loss[0], expected)
    for name, item in items.items():
        torch.testing.assert_close(found[name], item)
    for name, term in zip(methods, loss[1:]):  # not times the batch size
        torch.testing.assert_close(found[f"{name}_loss"], term.detach(), msg=name)
    assert criterion.task.objects() == len(batch["cls"])


def test_gains_of_rtdetr_are_measured_against_its_summed_loss() -> None:
    model, criterion = tiny_criterion(
        "dfmsd", task_model("", "rtdetr", seed=1), task_model("yolov8n", "detect", seed=2), kd_gain="auto"
    )
    put_on(model, criterion)
    for seed in range(8):
        loss, _ = model(task_batch("rtdetr", seed=seed))
        loss.sum().backward()
    gain = criterion.unit_gain("dfmsd")
    assert gain > 0
    batch, seen = task_batch("rtdetr", seed=9), {}
    handle = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.update(feats=inputs[0]))
    loss, items = model(batch)
    handle.remove()

    def norm(value: torch.Tensor) -> float:
        grads = torch.autograd.grad(value, seen["feats"], retain_graph=True)
        return float(torch.cat([grad.flatten() for grad in grads]).norm())

    share = norm(loss[1]) / norm(loss[0]) / criterion.factor
    assert 0.1 < share < 0.9  # 0.3 on the batches it was measured on
    assert torch.isfinite(items["dfmsd_loss"])


def test_nothing_is_left_on_rtdetrs_decoder_even_if_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model, criterion, _ = joined(task_model("", "rtdetr", seed=1), task_model("yolov8n", "detect", seed=2))
    head = model.model[-1]
    model(task_batch("rtdetr"))
    assert not head._forward_hooks
    assert not head._forward_pre_hooks

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(criterion.task.base), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(task_batch("rtdetr"))
    assert not head._forward_hooks
    assert model.criterion is criterion


def test_rtdetr_is_the_hosts_own_class_again_when_the_criterion_is_off() -> None:
    model, criterion, _ = joined(task_model("", "rtdetr", seed=1), task_model("yolov8n", "detect", seed=2))
    assert type(model) is QueryStudent
    assert model.criterion is criterion
    take_off(model)
    assert type(model) is RTDETRDetectionModel
    assert "criterion" not in model._modules
    loss, items = model(task_batch("rtdetr"))
    assert loss.ndim == 0
    assert set(items) == {"giou_loss", "cls_loss", "l1_loss"}


def test_queries_are_regions_beside_the_labelled_boxes() -> None:
    model = task_model("", "rtdetr", seed=1)
    batch = task_batch("rtdetr", size=(64, 96))
    model.train()
    with torch.no_grad():
        training = model.model[-1](
            [torch.rand(2, c, *s) for c, s in ((32, (8, 12)), (40, (4, 6)), (48, (2, 3)))],
            {
                "cls": batch["cls"].view(-1).long(),
                "bboxes": batch["bboxes"],
                "batch_idx": batch["batch_idx"].long(),
                "gt_groups": [3, 3],
            },
        )
    boxes = predicted_boxes(training, (64, 96))
    queries = training[2].shape[1]
    assert boxes.shape == (2, queries, 4)
    x, y, w, h = training[0][-1][1, -1].tolist()  # the last query follows all denoising ones
    expected = torch.tensor([(x - w / 2) * 96, (y - h / 2) * 64, (x + w / 2) * 96, (y + h / 2) * 64])
    torch.testing.assert_close(boxes[1, -1], expected, atol=1e-3, rtol=1e-4)

    feats = [torch.rand(2, 8, 8, 12), torch.rand(2, 8, 4, 6)]
    labelled = torch.tensor([[10.0, 10.0, 30.0, 40.0], [5.0, 5.0, 20.0, 20.0]])
    anchors = 8 * 12 + 4 * 6
    targets = Targets(
        labelled,
        torch.tensor([0, 1]),
        torch.tensor([0, 1]),
        torch.zeros(2, anchors, dtype=torch.bool),
        torch.zeros(2, anchors),
    )
    student = Taps(feats, (8, 16), regions=boxes)
    regions, real = propose(student, targets, 8, 0.25, torch.Generator().manual_seed(0))
    assert real.all()
    for image in range(2):
        first, *others = regions[image]
        assert torch.equal(first, labelled[image])
        inside = boxes[image].clamp_min(0)
        inside = torch.minimum(inside, torch.tensor([96.0, 64.0, 96.0, 64.0]))
        for region in others:
            assert (inside - region).abs().amax(-1).min() < 1.5  # sides below a pixel are widened


# Trainings ------------------------------------------------------------------------------------------------------------

METHODS = {"segment": "dfmsd+pcd", "pose": "mgd+pcd", "obb": "pkd+sgfi+pcd", "rtdetr": "pkd+mgd"}
STILL = {key: 0.0 for key in ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A finished run of a task on four images that always look the same, one step an epoch."""
    folder = tmp_path_factory.mktemp("tasks")

    @cache
    def run(task: str) -> Any:
        data = task_data(folder / f"data-{task}", task, images=(4, 2))
        teacher_task = "detect" if task == "rtdetr" else task
        teacher = save_task_model(task_model("yolov8n", teacher_task, seed=2), task, folder / f"teacher-{task}.pt")
        settings = overrides_for(
            folder,
            data,
            name=task,
            model=str(rtdetr_yaml(folder)) if task == "rtdetr" else f"yolov8n{SUFFIX[task]}.yaml",
            teacher=str(teacher),
            method=METHODS[task],
            epochs=6,
            optimizer="AdamW",
            lr0=2e-3,
            warmup_epochs=0,
            kd_preflight=True,
            kd_val=task in {"rtdetr", "obb"},
            kd_warmup=0.0,
            kd_decay="constant",
            kd_gain=1.0,
            dfmsd_stages=[],
            val=False,  # but for the last epoch
            save_period=1,
            **STILL,
        )
        trainer = TRAINERS[task](overrides=settings)
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("task", [*TASKS, "rtdetr"])
def test_a_short_training_of_each_task_distils(trained: Callable[[str], Any], task: str) -> None:
    trainer = trained(task)
    assert type(trainer) is TRAINERS[task]
    found = rows(trainer.save_dir)
    assert len(found) == 6
    for name in METHODS[task].split("+"):
        values = [row[f"train/{name}_loss"] for row in found]
        assert all(np.isfinite(values)), (name, values)
        assert min(values) > 0
        assert np.mean(values[-2:]) < np.mean(values[:2]), (name, values)
        assert np.isfinite(found[-1][f"val/{name}_loss"]) == bool(trainer.args.kd_val)
    for row in found:
        assert row["kd/student_grad_norm"] > 0
        assert row["kd/adapter_grad_norm"] > 0
    assert isinstance(trainer.criterion, DistillationLoss)
    state = read_state(trainer.wdir / FILE)
    assert state is not None and sorted(state["epochs"]) == [4, 5]


CHECK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yolokd", "tests"):
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks
for argument in sys.argv[1:]:
    name, path = argument.split("=", 1)
    full = torch.load(path, map_location="cpu", weights_only=False)
    assert type(full["ema"] or full["model"]) is getattr(tasks, name), path
    model = tasks.load_checkpoint(path)[0]
    assert "criterion" not in model._modules, path
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), path
    assert not any("criterion" in key for key in model.state_dict()), path
    YOLO(path).predict(torch.rand(1, 3, 64, 64), verbose=False)
    print("plain")
"""


def test_checkpoints_of_every_task_open_where_yolokd_is_not_installed(trained: Callable[[str], Any]) -> None:
    files = [
        f"{MODELS[task].__name__}={trained(task).wdir / name}"
        for task in (*TASKS, "rtdetr")
        for name in ("best.pt", "last.pt", "epoch1.pt")
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHECK, *files],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("plain") == len(files)


@pytest.mark.parametrize(
    "task", ["segment", "obb", *(pytest.param(t, marks=pytest.mark.slow) for t in ("pose", "rtdetr"))]
)
def test_a_distilled_student_of_each_task_exports(trained: Callable[[str], Any], task: str) -> None:
    best = trained(task).best
    path = YOLO(best).export(format="onnx", imgsz=64, simplify=False)
    parity = check_export(best, path)
    assert parity.ok, parity.summary()


@pytest.mark.slow
@pytest.mark.parametrize("nms", [None, False, True])
@pytest.mark.parametrize("task", TASKS)
def test_an_exported_file_of_two_branches_is_checked(tmp_path: Path, task: str, nms: bool | None) -> None:
    weights = save_task_model(task_model("yolo26n", task, seed=1), task, tmp_path / "model.pt")
    path = YOLO(weights).export(format="onnx", imgsz=64, nms=nms, conf=0.05)
    parity = check_export(weights, path, conf=0.05)
    assert parity.ok, parity.summary()
    other = save_task_model(task_model("yolo26n", task, seed=3), task, tmp_path / "other.pt")
    assert not check_export(other, path, conf=0.05).ok


class Killed(Exception):
    """Stands in for whatever ends a run in the middle."""


@pytest.mark.parametrize("task", ["rtdetr", pytest.param("segment", marks=pytest.mark.slow)])
def test_a_run_of_a_task_resumes_with_its_adapters(
    trained: Callable[[str], Any], tmp_path: Path, task: str, said: list[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained(task).save_dir, run)
    shutil.copy(run / "weights" / "epoch4.pt", run / "weights" / "last.pt")
    saved = read_state(run / "weights" / FILE)
    assert saved is not None
    last = str(run / "weights" / "last.pt")
    trainer = TRAINERS[task](overrides={"model": last, "resume": last, "save_dir": str(run), "data": None})
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        seen["methods"] = {key: value.clone() for key, value in trainer.criterion.state()["methods"].items()}
        seen["class"], seen["ema"] = type(trainer.model), type(trainer.ema.ema)

    trainer.add_callback("on_train_start", look)
    trainer.train()
    assert not any("anew" in message for message in said)
    assert all(torch.equal(seen["methods"][key], value) for key, value in saved["epochs"][4]["methods"].items())
    assert seen["ema"] is MODELS[task]
    assert seen["class"] is (QueryStudent if task == "rtdetr" else MODELS[task])
    assert [row["epoch"] for row in rows(run)] == list(range(1, 7))


def test_preflight_compares_teacher_and_student_of_a_task(
    trained: Callable[[str], Any], tmp_path: Path, said: list[str]
) -> None:
    trainer = trained("obb")
    preflight.check_run(trainer, [load_checkpoint(trainer.best)[0]])
    assert any("AP50 on 2 validation images" in message for message in said)


@pytest.mark.parametrize("task", [*TASKS, "rtdetr"])
def test_detections_of_every_task_are_upright_boxes_in_pixels(task: str) -> None:
    model = task_model("yolov8n", task, seed=1).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = detect(model, images, {0: 0, 1: 1, 2: 2})
        raw = model(images)[0]
    assert [rows.shape[1] for rows in found] == [6, 6]
    assert sum(map(len, found)) > 0
    for rows_ in found:
        assert ((rows_[:, 4] > 0.01) & (rows_[:, 4] <= 1)).all()
        assert (rows_[:, 5] < 3).all()
        assert (rows_[:, 2:4] >= rows_[:, :2]).all()
    if task == "rtdetr":
        x, y, w, h = raw[0, 0, :4].tolist()
        expected = torch.tensor([(x - w / 2) * 96, (y - h / 2) * 64, (x + w / 2) * 96, (y + h / 2) * 64])
        torch.testing.assert_close(found[0][0, :4], expected, atol=1e-3, rtol=1e-4)


# Which trainer --------------------------------------------------------------------------------------------------------


def test_each_kind_has_a_public_trainer() -> None:
    assert set(TRAINERS) == set(TRAINER_NAMES)
    for kind, name in TRAINER_NAMES.items():
        assert getattr(yolokd, name) is TRAINERS[kind]
        assert TRAINERS[kind].kind == kind
    assert yolokd.DistillationTrainer.__module__ == "yolokd.trainers"


def test_yolo_trains_a_segmentation_model_with_the_detection_trainer_s_name(
    tmp_path: Path, trained: Callable[[str], Any]
) -> None:
    data, teacher = trained("segment").args.data, trained("segment").args.teacher
    settings = {**overrides_for(tmp_path, Path(data), epochs=1, teacher=teacher, method="pkd"), "model": None}
    settings.pop("model")
    model = YOLO("yolov8n-seg.yaml")
    model.train(trainer=yolokd.DistillationTrainer, **settings)
    assert type(model.trainer) is yolokd.SegmentationDistillationTrainer
    assert rows(model.trainer.save_dir)[0]["train/pkd_loss"] > 0


def test_a_trainer_names_the_one_that_a_model_needs(tmp_path: Path, trained: Callable[[str], Any]) -> None:
    data, teacher = str(trained("rtdetr").args.data), str(trained("rtdetr").args.teacher)
    settings = {**overrides_for(tmp_path, Path(data), teacher=teacher, method="pkd")}
    settings.pop("model")
    model = RTDETR(str(rtdetr_yaml(tmp_path)))
    with pytest.raises(UserError, match=r"an RT-DETR model; train it with trainer=yolokd.RTDETRDistillationTrainer"):
        model.train(trainer=yolokd.DistillationTrainer, **settings)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"is a detect model; train it with trainer=yolokd.DistillationTrainer"):
        YOLO("yolov8n.yaml").train(
            trainer=yolokd.PoseDistillationTrainer, **{**settings, "data": trained("pose").args.data}
        )
    trainer = TRAINERS["rtdetr"](
        overrides={**settings, "model": str(rtdetr_yaml(tmp_path)), "compile": True, "project": str(tmp_path)}
    )
    with pytest.raises(UserError, match="compile=True does not go with a teacher for RT-DETR"):
        trainer.train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("yolov8n.yaml", "detect"),
        ("yolo26n.yaml", "detect"),
        ("yolo11n-seg.yaml", "segment"),
        ("yolo26n-pose.yaml", "pose"),
        ("yolov8n-obb.yaml", "obb"),
        ("rtdetr-l.yaml", "rtdetr"),
        ("yolov8s-worldv2.yaml", "open"),
        ("yoloe-11s-seg.yaml", "open"),
        ("yolov8n-cls.yaml", "classify"),
    ],
)
def test_kinds(model: str, kind: str) -> None:
    assert kind_of(model) == kind
    if kind in TRAINERS:
        assert check_kind(model, kind) == kind
        assert trainer_for({"model": model}) is TRAINERS[kind]
    else:
        with pytest.raises(UserError, match="needs texts" if kind == "open" else "use `yolo classify train`"):
            check_kind(model, name=model)
    if kind != "detect":
        with pytest.raises(UserError, match="yolokd compares YOLO detection models"):
            check_detector(model, model, "compares")


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What a short training as typed has beside model, teacher, data and method."""
    return [
        *"epochs=1 imgsz=64 batch=4 nbs=4 workers=0 device=cpu plots=False optimizer=SGD kd_preflight=False".split(),
        f"project={tmp_path / 'runs'}",
        "name=kd",
    ]


@pytest.mark.parametrize("task", ["pose", "rtdetr"])
def test_the_command_picks_the_trainer_by_the_model(
    task: str, words: list[str], tmp_path: Path, trained: Callable[[str], Any]
) -> None:
    args = trained(task).args
    model = rtdetr_yaml(tmp_path) if task == "rtdetr" else trained(task).best
    typed = [f"model={model}", f"teacher={args.teacher}", f"data={args.data}", "method=pkd"]
    assert cli.main(["train", *typed, *words]) == 0
    run = tmp_path / "runs" / "kd"
    assert rows(run)[0]["train/pkd_loss"] > 0
    assert type(load_checkpoint(run / "weights" / "best.pt")[0]) is MODELS[task]


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (["model=yolov8n-cls.yaml"], ["classify model", "yolo classify train"]),
        (["model=yolov8s-worldv2.yaml"], ["open-vocabulary", "use it as a teacher"]),
        (["model=yolov8n-seg.yaml", "task=pose"], ["task=pose", "segment model"]),
        (["model={rtdetr}", "method=pcd"], ["an RT-DETR student predicts by queries"]),
        (["model={rtdetr}", "method=dfmsd", "task=obb"], ["task=obb", "detect model"]),
    ],
)
def test_the_command_says_what_does_not_go_together(
    typed: list[str],
    parts: list[str],
    words: list[str],
    tmp_path: Path,
    trained: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = trained("rtdetr").args
    typed = [word.format(rtdetr=rtdetr_yaml(tmp_path)) for word in typed]
    assert cli.main(["train", *typed, f"teacher={args.teacher}", f"data={args.data}", *words]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts), said
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("pose", "has no kpt_shape"),
        ("obb", "task=obb learns from four corners"),
        ("segment", "task=segment learns from polygons"),
    ],
)
def test_labels_of_another_task_are_refused(
    task: str, part: str, words: list[str], trained: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    args = trained("rtdetr").args
    typed = [f"model=yolov8n{SUFFIX[task]}.yaml", f"teacher={args.teacher}", f"data={args.data}", "method=pkd"]
    assert cli.main(["train", *typed, *words]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_boxes_alone_are_refused_before_a_teacher_is_loaded(task: str, tmp_path: Path) -> None:
    data = task_data(tmp_path / "data", "detect")
    with data.open("a", encoding="utf-8") as file:
        file.write("kpt_shape: [4, 3]\n")
    teacher = tmp_path / "nothing.pt"
    torch.save({}, teacher)  # a checkpoint by its look, which loading would refuse
    settings = overrides_for(tmp_path, data, model=f"yolov8n{SUFFIX[task]}.yaml", method="pkd", teacher=str(teacher))
    with pytest.raises(UserError, match=rf"data=.*labels are boxes alone, e\.g\. .*\.txt, and task={task} learns from"):
        TRAINERS[task](overrides=settings)
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_not_fine_tuned_on_labels_that_it_cannot_read(tmp_path: Path) -> None:
    args = tiny_args(teacher_epochs=1, method="pkd", teacher="t.pt")
    for teacher, task in (("detect", "pose"), ("segment", "detect"), ("pose", "obb")):
        weights = save_task_model(task_model("yolov8n", teacher), teacher, tmp_path / f"{teacher}.pt")
        args.task = task
        with pytest.raises(UserError, match=f"on labels for {task}, which it cannot read"):
            fine_tune(str(weights), args, tmp_path)


def test_a_run_of_another_task_is_not_reported(
    trained: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(trained("segment").save_dir)]) == 2
    assert "is a run of task=segment" in capsys.readouterr().err
