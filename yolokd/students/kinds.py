"""Kinds of students: which of our trainers trains which model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolokd.errors import UserError

TRAINER_NAMES = {  # kind of model: name of its trainer in yolokd
    "detect": "DistillationTrainer",
    "segment": "SegmentationDistillationTrainer",
    "pose": "PoseDistillationTrainer",
    "obb": "OBBDistillationTrainer",
    "rtdetr": "RTDETRDistillationTrainer",
}
SAID = {"rtdetr": "an RT-DETR model", "obb": "an obb model", "open": "an open-vocabulary model"}


def kind_of(model: Any) -> str:
    """Return the kind of a model: `detect`, `segment`, `pose`, `obb`, `rtdetr`, `open` or a task that is not trained.

    Args:
        model (nn.Module | Mapping | str | Path): A model of the host, its YAML as a dict, or the path of a checkpoint
            or a YAML.
    """
    from ultralytics.nn.tasks import guess_model_task, load_checkpoint, yaml_model_load

    from yolokd.text import reason
    from yolokd.trust import loading

    loaded = model
    if str(model).lower().endswith(".pt"):
        try:
            with loading(what=f"model={model}", file=str(model)):
                loaded = load_checkpoint(model)[0]
        except UserError:
            raise
        except Exception as error:  # whatever a file that is no checkpoint makes the loader raise
            raise UserError(f"model={model} cannot be loaded: {reason(error)}") from error
    cfg = getattr(loaded, "yaml", loaded)
    if not isinstance(cfg, Mapping):
        cfg = yaml_model_load(Path(cfg))
    head = str(cfg["head"][-1][-2])
    if head.startswith("RTDETR"):
        return "rtdetr"
    if "World" in head or "YOLOE" in head:
        return "open"
    return str(guess_model_task(dict(cfg)))


def check_detector(model: Any, name: str, does: str) -> None:
    """Refuse a model that is no YOLO detector where a command knows those alone.

    Args:
        model (nn.Module | Mapping | str | Path): As for `kind_of`.
        name (str): What the user called it.
        does (str): What `yolokd` does with such models, e.g. `compares`.

    Raises:
        UserError: If it is another kind of model.
    """
    if (kind := kind_of(model)) != "detect":
        said = SAID.get(kind, f"a {kind} model")
        raise UserError(f"model={name} is {said}; yolokd {does} YOLO detection models, e.g. model=yolov8n.pt")


def why_no_built_in(student: Any, teacher: Any) -> str:
    """Return why Ultralytics' distillation does not take a pair, or nothing where it does: it reads YOLO heads.

    Args:
        student (nn.Module | Mapping | str | Path): As for `kind_of`.
        teacher (nn.Module | Mapping | str | Path): Likewise.
    """
    from ultralytics.utils.checks import check_model_file_from_stem

    for key, model in (("model", student), ("teacher", teacher)):
        if kind_of(check_model_file_from_stem(model) if isinstance(model, str) else model) == "rtdetr":
            return f"{key}={model} is an RT-DETR model, and Ultralytics' distillation takes models with a YOLO head"
    return ""


def not_trained(kind: str) -> str:
    """Return what is said of a kind of model that no trainer of ours trains."""
    return f"yolokd trains detect, segment, pose, obb and RT-DETR models. For this one use `yolo {kind} train`"


def check_kind(model: Any, trained: str | None = None, name: str = "") -> str:
    """Return the kind of a student, or say which trainer it needs.

    Args:
        model (nn.Module | Mapping | str | Path): As for `kind_of`.
        trained (str | None): The kind that a trainer trains; None accepts every kind that has a trainer.
        name (str): What the user called the model, for the message.

    Raises:
        UserError: If no trainer of ours trains such a model, or another one does.
    """
    kind = kind_of(model)
    said = f"model={name}".rstrip("=") + f" is {SAID.get(kind, f'a {kind} model')}"
    if kind == "open":
        weights = Path(name or "yolov8s-worldv2").with_suffix(".pt")
        raise UserError(
            f"{said}, whose training needs texts; use it as a teacher, e.g. teacher={weights}, and train a closed one, "
            f"e.g. model=yolov8n.pt"
        )
    if kind not in TRAINER_NAMES:
        raise UserError(f"{said}; {not_trained(kind)}")
    if trained is not None and kind != trained:
        raise UserError(f"{said}; train it with trainer=yolokd.{TRAINER_NAMES[kind]}, or by `yolokd train`")
    return kind
