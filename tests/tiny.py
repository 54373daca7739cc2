"""Tiny models, batches and training runs that the tests of the spine share."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel

from yolokd import DistillationTrainer, config
from yolokd.pairs.assembly import build_criterion
from yolokd.teachers.teacher import Teacher, load_teacher

NAMES = ("circle", "square", "triangle_up")
IMGSZ = 64

BASE: dict[str, Any] = {}  # what every short run takes beside the rest; see the fixture `own_start`


def tiny_model(
    name: str = "yolov8n",
    names: Sequence[str] = NAMES,
    seed: int = 0,
    trained: bool = True,
    channels: int = 3,
    task: type[DetectionModel] = DetectionModel,
) -> Any:
    """Return a detector from its YAML; a trained one has the batch statistics of noise and lively outputs."""
    return deepcopy(_built(name, tuple(names), seed, trained, channels, task))


@cache
def _built(
    name: str, names: tuple[str, ...], seed: int, trained: bool, channels: int, task: type[DetectionModel]
) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Detect.legacy = False  # yolov10's head would take that of the model built last, and draw other weights
        model = task(f"{name}.yaml", ch=channels, nc=len(names), verbose=False)
        model.names = dict(enumerate(names))
        if trained:
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = None
                nn.init.uniform_(norm.weight, 0.6, 1.4)
                nn.init.normal_(norm.bias, std=0.2)
            model.train()
            size = 2 * max(IMGSZ, int(model.stride.max()))
            with torch.no_grad():
                model(torch.rand(4, channels, size, size))
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
            for key, parameter in model.model[-1].named_parameters():
                if key.endswith("2.weight") and parameter.ndim == 4 and parameter.shape[-1] == 1:
                    parameter.data.mul_(3)  # outputs that differ from place to place
    return model.eval()


def save_model(model: nn.Module, path: Path) -> Path:
    """Write a model as Ultralytics' checkpoints hold it, in float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": -1, "model": model, "ema": None, "train_args": {"imgsz": IMGSZ}}, path)
    return path


def tiny_args(**overrides: Any) -> SimpleNamespace:
    """Return a run's arguments, the host's and ours."""
    return get_cfg(config.merged_base(), {"epochs": 10, "imgsz": IMGSZ, **config.check(overrides)})


def tiny_batch(
    images: int = 2, size: tuple[int, int] = (IMGSZ, IMGSZ), objects: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Return a batch as the host preprocesses it: noise with `objects` boxes in each image."""
    draw = torch.Generator().manual_seed(seed)
    centre = 0.3 + 0.4 * torch.rand(images * objects, 2, generator=draw)
    extent = 0.2 + 0.3 * torch.rand(images * objects, 2, generator=draw)
    return {
        "img": torch.rand(images, 3, *size, generator=draw),
        "cls": torch.randint(len(NAMES), (images * objects, 1), generator=draw).float(),
        "bboxes": torch.cat((centre, extent), dim=-1),
        "batch_idx": torch.arange(images).repeat_interleave(objects).float(),
    }


def tiny_criterion(
    method: str = "dfmsd+pcd",
    student: str | nn.Module = "yolov8n",
    teacher: str | nn.Module | Sequence[nn.Module] = "yolov8n",
    **overrides: Any,
) -> tuple[Any, Any]:
    """Return a student in training mode with its distillation criterion attached, halfway through the warm-up.

    Teachers given by name are seeded differently from the student. Keys that are not given: fixed gains of 1 and
    float32 teachers, so that values can be compared.
    """
    model = tiny_model(student, seed=1) if isinstance(student, str) else student
    sources = [tiny_model(teacher, seed=2)] if isinstance(teacher, str) else teacher
    sources = [sources] if isinstance(sources, nn.Module) else sources
    settings = {"kd_gain": 1.0, "kd_teacher_dtype": "float32", "method": method, **overrides}
    args = tiny_args(**settings)
    model.args = args
    model.nc = len(model.names)
    teachers = [Teacher(*load_teacher(source)) for source in sources]
    criterion = build_criterion(model, teachers, config.methods(args.method), args)
    criterion.clock.epochs, criterion.clock.steps, criterion.clock.step = int(args.epochs), 2, 1
    model.criterion = criterion
    return model.train(), criterion


def overrides_for(project: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    """Return the overrides of a short run on the CPU."""
    settings = {
        **BASE,
        "model": "yolov8n.yaml",
        "data": str(data),
        "imgsz": IMGSZ,
        "epochs": 2,
        "batch": 4,
        "nbs": 4,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "optimizer": "SGD",
        "kd_preflight": False,
        "project": str(project),
        "name": "run",
    }
    return {**settings, **overrides}


def set_up(project: Path, data: Path, **overrides: Any) -> DistillationTrainer:
    """Return a trainer that is ready for its first step."""
    trainer = DistillationTrainer(overrides=overrides_for(project, data, **overrides))
    trainer._setup_train()
    trainer._model_train()
    trainer.train_time_start = trainer.epoch_time_start = 0.0
    trainer.epoch = 0
    return trainer


def train(project: Path, data: Path, **overrides: Any) -> DistillationTrainer:
    """Train a short distillation run and return its trainer."""
    trainer = DistillationTrainer(overrides=overrides_for(project, data, **overrides))
    trainer.train()
    return trainer


def train_plain(project: Path, data: Path, **overrides: Any) -> DetectionTrainer:
    """Train a short run with the host's own trainer and return it."""
    settings = {k: v for k, v in overrides_for(project, data, **overrides).items() if k not in config.DEFAULTS}
    trainer = DetectionTrainer(overrides=settings)
    trainer.train()
    return trainer


def rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv."""
    with open(run / "results.csv", encoding="utf-8", newline="") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def same_values(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    """Return whether two rows hold the same values, NaN included, apart from the time."""
    return left.keys() == right.keys() and all(
        left[key] == right[key] or (math.isnan(left[key]) and math.isnan(right[key])) for key in left if key != "time"
    )
