"""The help of the command line: all modes, or one with an example and its keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from textwrap import fill
from typing import Any

from yolokd.text import aligned

OURS = "`yolokd cfg`"
TRAIN = f"all keys of {OURS} and every train argument of `yolo cfg`"
WIDTH = 110


@dataclass(frozen=True)
class Guide:
    """What the help says of one mode.

    Attributes:
        example (str): A command.
        function (str): Function whose arguments are keys of the mode, as `module:name`; none if empty.
        more (str): Which keys there are besides.
    """

    example: str
    function: str = ""
    more: str = ""


GUIDES = {
    "train": Guide(
        "yolokd train model=yolov8n.pt teacher=yolov8s.pt data=mine.yaml epochs=100 imgsz=640",
        more=f"{TRAIN}. model=yolov8n.yaml trains from random weights. `yolokd train resume "
        f"model=runs/detect/train/weights/last.pt` goes on where an unfinished run stopped, "
        f"adapters and gains from kd_state.pt beside it. A recipe, e.g. cfg=dfmsd.yaml, sets several keys",
    ),
    "compare": Guide(
        "yolokd compare model=yolov8n.pt teacher=large.pt data=mine.yaml methods=bckd,dfmsd seeds=3 epochs=100",
        "yolokd.compare:compare",
        f"{TRAIN}, the same for all runs",
    ),
    "val": Guide(
        "yolokd val model=student.pt teacher=large.pt baseline=alone.pt data=mine.yaml",
        more="model=, and teacher= or baseline= or both, to be set side by side; data=, split=, imgsz= and the other "
        "val arguments of `yolo cfg`; teacher_imgsz=, teacher_channels= and kd_class_map= as in train. "
        "With model= alone it is yolo val",
    ),
    "predict": Guide("yolokd predict model=student.pt source=image.jpg", more="those of yolo predict"),
    "track": Guide("yolokd track model=student.pt source=video.mp4", more="those of yolo track"),
    "benchmark": Guide("yolokd benchmark model=student.pt data=mine.yaml", more="those of yolo benchmark"),
    "export": Guide("yolokd export model=student.pt format=onnx", more="the export arguments of `yolo cfg`"),
    "inspect": Guide(
        "yolokd inspect model=yolov8n.pt teacher=yolov8s.pt source=image.jpg method=dfmsd",
        "yolokd.inspection:inspect",
        f"those of {OURS}, and name=, project=, exist_ok=, device=, seed=, conf=, rect=",
    ),
    "profile": Guide("yolokd profile model=yolov8n.pt teacher=yolov8s.pt method=dfmsd imgsz=640 batch=16", more=TRAIN),
    "report": Guide(
        "yolokd report runs/detect/train runs/detect/train2 out=runs/report",
        more="run folders, or the folder of a comparison; out=FOLDER, where the report goes; split=test and the "
        "like, the images to judge on; device=, where models are evaluated",
    ),
    "demo": Guide("yolokd demo method=dfmsd out=runs/demo", "yolokd.command.demo:run_demo"),
}


def help_text(modes: Mapping[str, str]) -> str:
    """Return the help of all modes.

    Args:
        modes (Mapping[str, str]): What each mode does, by name.
    """
    listed = "\n".join(f"  {name:<10} {text}" for name, text in modes.items())
    return (
        f"yolokd MODE key=value ...   knowledge distillation for Ultralytics YOLO\n\n{listed}\n\n"
        f"e.g. yolokd train model=yolov8n.pt teacher=yolov8s.pt data=mine.yaml epochs=100 imgsz=640\n"
        f"     yolokd train model=yolov8n.pt teacher=yolov8s.pt data=mine.yaml cfg=pcd.yaml\n"
        f"     yolokd train resume model=runs/detect/train/weights/last.pt\n\n"
        f"`yolokd help MODE` says more of one. Keys: {OURS} for ours, `yolo cfg` for Ultralytics'. Methods: `yolokd "
        f"methods`.\nExit codes: 0 done, 1 failure, 2 a mistake in what was asked, 130 interrupted (Ctrl-C), 143 "
        f"terminated (SIGTERM).\nYOLOKD_TRACEBACK=1 shows tracebacks."
    )


def mode_text(name: str, does: str) -> str:
    """Return the help of one mode.

    Args:
        name (str): The mode.
        does (str): What it does.
    """
    guide = GUIDES.get(name)
    if guide is None:
        return f"yolokd {name}: {does}; it takes no arguments"
    parts = [f"yolokd {name}: {does}", f"e.g. {guide.example}"]
    if guide.function:
        parts.append(_table(_load(guide.function)))
    if guide.more:
        parts.append(fill(f"{'Besides' if guide.function else 'Keys'}: {guide.more}.", WIDTH, break_on_hyphens=False))
    return "\n\n".join(parts)


def _load(address: str) -> Callable[..., Any]:
    module, name = address.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _table(function: Callable[..., Any]) -> str:
    """Return a function's arguments with default and meaning, as its signature and docstring have them."""
    text = (inspect.getdoc(function) or "").split("Args:\n", 1)[1]
    text = re.split(r"\n\S", text, maxsplit=1)[0]
    said = re.findall(r"^ {4}(\w+) \([^\n]*?\): (.*?)(?=^ {4}[\w*]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    defaults = inspect.signature(function).parameters
    rows = [("key", "default", "meaning")]
    for name, meaning in said:
        default = defaults[name].default
        shown = "" if default in (None, "", inspect.Parameter.empty) else default
        listed = ",".join(map(str, shown)) if isinstance(shown, (list, tuple)) else str(shown)
        rows.append((name, listed, " ".join(meaning.split())))
    return aligned(rows)
