"""Pictures of what would be distilled on one image: attention, masks, regions and ranked classes, level by level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from yolokd import config
from yolokd.config import consistency, inputs
from yolokd.errors import UserError
from yolokd.inspection.drawing import draw
from yolokd.inspection.scene import Scene, look
from yolokd.inspection.sheet import Array, Sheet
from yolokd.inspection.views import PANELS, common_panels, level_notes, method_notes, rankings, region_views
from yolokd.rng import preserved_rng
from yolokd.text import reason
from yolokd.trust import KEY, loading

HOST_KEYS = ("model", "source", "imgsz", "name", "project", "exist_ok", "device", "seed", "conf", "rect")
EXAMPLE = "yolokd inspect model=yolov8n.pt teacher=yolov8s.pt source=image.jpg method=dfmsd"


def inspect(
    model: str | Path | None = None,
    teacher: str | Path | None = None,
    source: str | Path | None = None,
    method: str | None = None,
    imgsz: int | None = None,
    **keys: Any,
) -> list[Path]:
    """Write one picture per level that shows what a method would distil on an image.

    No labels are read: the teacher's detections stand in for them where the method or the task's assignment needs
    objects. Student and adapters are as they are at the start of a run, unless the student's file lies in the `weights`
    folder of a yolokd run with the same teacher: then that run's adapters are used, and its settings are the defaults.
    A student that knows none of the teacher's classes gets a new head with them, as training on them would give it.

    Args:
        model (str | Path): Student's weights, or an architecture.
        teacher (str | Path): Teacher's weights.
        source (str | Path): Image file.
        method (str, optional): Methods joined by `+`; the run's, else the default of `yolokd train`.
        imgsz (int, optional): Side in pixels of the square that the image is fitted into; the run's, else 640. With
            `rect=True` the grey bars that fill it up are left out.
        **keys (Any): `project`, `name`, `exist_ok`, `device`, `seed`, `conf` and `rect` as Ultralytics has them, and
            the methods' own keys.

    Returns:
        (list[Path]): The pictures, finest level first, `IMAGE_strideN.png` in a folder of their own.

    Raises:
        UserError: If something is missing or does not fit; the message names the fix.

    Examples:
        >>> from yolokd.inspection import inspect
        >>> inspect("yolov8n.pt", "yolov8s.pt", "image.jpg", method="dfmsd+pcd", imgsz=640)
    """
    from ultralytics.cfg import get_cfg, get_save_dir
    from ultralytics.utils.checks import check_imgsz
    from ultralytics.utils.torch_utils import select_device

    given = {"teacher": teacher, "method": method, "imgsz": imgsz, **keys}
    given = config.check({name: value for name, value in given.items() if value is not None})
    if other := next((name for name in given if name not in config.KEYS and name not in HOST_KEYS), None):
        known = ", ".join(HOST_KEYS)
        raise UserError(
            f"{other}={given[other]} is no key of inspect; leave it out. Keys: {known}, and those of `yolokd cfg`"
        )
    model = inputs.weights("model", _given("model", model), trained=False)
    run = _run_of(Path(model))
    merged = {**config.merged_base(), **run, **given}
    found = config.teachers(merged["teacher"])
    if len(found) > 1:
        raise UserError(f"inspect looks at one teacher at a time; give one of them, e.g. teacher={found[0]}")
    merged["teacher"] = inputs.weights("teacher", _given("teacher", found[0] if found else None))
    methods = config.terms(merged["method"])
    if not methods:
        raise UserError(f"method={merged['method']} has nothing to look at; give another, e.g. method=dfmsd+pcd")
    consistency.validate(merged)
    picture = _read_image(Path(str(_given("source", source))))
    try:
        with config.quiet():
            args = get_cfg(merged, {"mode": "train", "task": "detect"})
            args.imgsz = check_imgsz(args.imgsz, max_dim=1)
            device = select_device(args.device, verbose=False)
    except (ValueError, TypeError, SyntaxError, AssertionError) as error:
        raise UserError(reason(error)) from error
    inputs.run_folder(SimpleNamespace(**{**vars(args), "mode": "inspect"}))
    with preserved_rng(seed=int(args.seed)), torch.no_grad(), loading(bool(args.kd_safe_load)):
        scene, image, notes = look(model, methods, args, picture, device)
        drawn = sheets(scene, image, str(merged["method"]), notes)
    folder = get_save_dir(
        SimpleNamespace(project=args.project, name=args.name, task="detect", mode="inspect", exist_ok=args.exist_ok)
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for stride, sheet in zip(scene.teacher.strides, drawn):
        paths.append(folder / f"{Path(str(source)).stem}_stride{stride}.png")
        draw(sheet, paths[-1])
    return paths


def _given(key: str, value: Any) -> Any:
    """Return a value that is needed, or say how to give it."""
    if value is None or str(value).strip() == "":
        raise UserError(f"inspect needs {key}=, e.g. {EXAMPLE}")
    return value


def _run_of(weights: Path) -> dict[str, Any]:
    """Return the settings of the yolokd run that a weights file belongs to; empty where it belongs to none."""
    import yaml

    path = weights.resolve().parent.parent / "args.yaml"
    if weights.resolve().parent.name != "weights" or not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(content, dict) or "method" not in content:
        return {}
    known = {*config.KEYS, "imgsz", "seed", "epochs"} - {KEY}  # whether to trust files is asked anew
    kept = {name: value for name, value in content.items() if name in known}
    return {**kept, "teacher_epochs": 0}


def _read_image(path: Path) -> Array:
    """Return an image file as blue, green, red with shape (height, width, 3), uint8."""
    from ultralytics.data.utils import IMG_FORMATS
    from ultralytics.utils.patches import imread

    if path.is_dir():
        first = next((p for p in sorted(path.iterdir()) if p.suffix[1:].lower() in IMG_FORMATS), path / "image.jpg")
        raise UserError(f"source={path} is a folder; give one image, e.g. source={first}")
    if not path.is_file():
        raise UserError(f"source={path}: there is no such file; give an image on this machine, e.g. source=image.jpg")
    picture = imread(path)
    if picture is None:
        raise UserError(
            f"source={path} cannot be read as an image; give a file of type {', '.join(sorted(IMG_FORMATS))}"
        )
    return np.asarray(picture)


def sheets(scene: Scene, image: Array, method: str, notes: list[str]) -> list[Sheet]:
    """Return what stands on the picture of each level.

    Args:
        scene (Scene): The image as the methods see it.
        image (Array): The fitted image with shape (height, width, 3), red, green, blue.
        method (str): Methods as asked for.
        notes (list[str]): Lines for every picture.
    """
    found = []
    for level, (stride, (height, width)) in enumerate(zip(scene.teacher.strides, scene.teacher.sizes)):
        panels = common_panels(scene, level)
        for name in scene.modules:
            panels += PANELS[name](scene, level) if name in PANELS else []
        regions, ranked = region_views(scene, level), rankings(scene, level)
        found.append(
            Sheet(
                title=f"{method}, level of stride {stride} ({height} x {width} positions)",
                notes=[*notes, *method_notes(scene.modules), *level_notes(scene, regions, ranked)],
                image=image,
                boxes=scene.boxes.numpy(),
                labels=scene.labels,
                panels=panels,
                regions=regions,
                rankings=ranked,
            )
        )
    return found


def from_overrides(overrides: Mapping[str, Any]) -> list[Path]:
    """Run `inspect` with the keys of a command; see there."""
    given = {name: value for name, value in overrides.items() if (name, value) != ("task", "detect")}
    if given.get("method", "") is None:
        given["method"] = "none"  # the host's parser makes None of the word
    return inspect(**{key: given.pop(key, None) for key in ("model", "teacher", "source", "method", "imgsz")}, **given)
