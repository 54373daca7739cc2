"""Keys that contradict each other, refused before anything is written."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolokd.config import KEYS, methods, teachers, terms
from yolokd.config.keys import shown
from yolokd.config.label_keys import check_label_keys
from yolokd.errors import UserError
from yolokd.terms.schedule import Stages


def validate(args: Mapping[str, Any]) -> None:
    """Check keys against each other, before anything is written.

    Args:
        args (Mapping[str, Any]): All arguments of a run, the host's and ours, each checked by itself.

    Raises:
        UserError: If they contradict each other; the message says which and how to mend it.
    """
    check_host_values(args)
    check_device(args.get("device"))
    chosen = methods(args["method"])
    given = teachers(args.get("teacher"))
    _check_teachers(args, chosen, given)
    _check_gains(args, chosen)
    check_label_keys(args, chosen)
    for name in ("kd_levels", "samkd_grids"):
        value = args[name]
        if value is not None and (not value or len(set(value)) < len(value)):
            raise UserError(f"{name}={value} must name at least one value, each once, e.g. {name}={KEYS[name].example}")
    if args["kd_stop"] != "mosaic" and args["kd_stop"] <= args["kd_warmup"]:
        raise UserError(
            f"kd_stop={args['kd_stop']} comes before the end of the ramp, kd_warmup={args['kd_warmup']}; "
            f"set kd_stop above it, e.g. kd_stop=1.0"
        )
    own = 1 if args["kd_teachers"] == "together" else max(len(given), 1)
    _check_stages(args["dfmsd_stages"], own if "dfmsd" in chosen else 0, args.get("epochs"))


def check_host_values(given: Mapping[str, Any]) -> None:
    """Check imgsz, batch, freeze and classes, whose wrong values the host lets pass, or answers without naming them.

    Args:
        given (Mapping[str, Any]): Arguments of any mode.

    Raises:
        UserError: If one has a value that means nothing.
    """
    if (size := given.get("imgsz")) is not None and not all(_is_count(side) for side in _items(size)):
        raise UserError(
            f"imgsz={shown(size)} is not valid: it must be a whole number of pixels above 0, e.g. imgsz=640"
        )
    batch = given.get("batch")
    if batch is not None and not (_is_count(batch) or batch == -1 or (isinstance(batch, float) and 0 < batch < 1)):
        raise UserError(
            f"batch={shown(batch)} is not valid: it must be a whole number of images above 0, a share of the GPU's "
            f"memory as 0.7, or -1 for one that fits, e.g. batch=16"
        )
    freeze = given.get("freeze")
    if freeze is not None and not isinstance(freeze, (list, tuple)) and not (_is_count(freeze) or freeze == 0):
        raise UserError(
            f"freeze={shown(freeze)} is not valid: it must be a number of layers or a list of their numbers, e.g. "
            f"freeze=10 or freeze=[0,1,22]"
        )
    classes = given.get("classes")
    if classes is not None and not all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in _items(classes)
    ):
        raise UserError(f"classes={shown(classes)} is not valid: it must be class numbers, e.g. classes=[0,2]")


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _items(value: Any) -> list[Any]:
    """Return the numbers of a value that may be one, several, or text of them as the host takes it."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
    return list(value) or [None] if isinstance(value, (list, tuple)) else [value]


def check_device(device: Any) -> None:
    """Refuse a device that is none to train on; whether there is one of that number the host says.

    Raises:
        UserError: If it is none of those that the host trains on.
    """
    text = re.sub(r"[\[\]()' ]", "", str(device).lower())
    known = all(re.fullmatch(r"(cuda|npu|xpu)?:?(-1|\d*)", part) for part in text.split(","))
    if not known and text not in {"none", "mps", "cpu", "cpu:0"}:
        raise UserError(f"device={device} is none that trains; give cpu, mps or numbers of GPUs, e.g. device=0,1")


def _file(weights: Any) -> Path:
    """Return the absolute path that weights mean; a worker's arguments name the same file in two ways."""
    return Path(str(weights)).with_suffix(".pt").resolve()


def _check_teachers(args: Mapping[str, Any], chosen: tuple[str, ...], given: list[Any]) -> None:
    """Check what depends on the teacher or on its absence."""
    method, built_in = args["method"], args.get("distill_model")
    if built_in is not None and chosen != ("ultralytics",):
        fix = "leave distill_model out" if given else f"use teacher={built_in} instead"
        raise UserError(
            f"distill_model={built_in} would distil a second time beside method={method}; {fix}, "
            f"or run the built-in alone with teacher={built_in} method=ultralytics"
        )
    if chosen == ("ultralytics",) and given and built_in is not None and _file(built_in) != _file(given[0]):
        raise UserError(f"distill_model={built_in} and teacher={given[0]} name two teachers; leave distill_model out")
    if chosen and not given and built_in is None:
        raise UserError(
            f"method={method} needs a teacher, e.g. teacher=yolov8x.pt or teacher=path/to/best.pt; "
            f"method=none trains without one"
        )
    together = args["kd_teachers"] == "together"
    if len(given) > 1 and chosen and "dfmsd" not in chosen and not together:
        raise UserError(
            f"teacher=[{','.join(map(str, given))}] with method={method}: only dfmsd takes teachers one after the "
            f"other; add kd_teachers=together to use all of them at every step, or dfmsd, e.g. method=dfmsd+pcd"
        )
    if together and len(given) < 2:
        raise UserError("kd_teachers=together needs several teachers, e.g. teacher=[yolov8l.pt,yolo11l.pt]")
    if args["kd_teacher_weights"] == "confidence" and not together:
        raise UserError(
            "kd_teacher_weights=confidence weighs several teachers against each other; add kd_teachers=together, "
            "or leave it out"
        )
    if args["teacher_epochs"] and (not chosen or len(given) > 1):
        why = "several teachers" if chosen else "method=none"
        raise UserError(
            f"teacher_epochs={args['teacher_epochs']} fine-tunes the one teacher of a distillation and does not go "
            f"with {why}; set teacher_epochs=0"
        )
    if method == "fit" and args["kd_init"] == "none":
        raise UserError("method=fit is the start that kd_init=none leaves out; for plain training use method=none")
    if terms(method) and (args.get("int8") is True or str(args.get("quantize")).lower() in {"8", "int8", "w8a8"}):
        raise UserError(
            "quantize=8 does not go with a teacher: quantisation-aware training would quantise the adapters too; "
            "distil first, then train with quantize=8 method=none, or export with quantize=8"
        )


def _check_gains(args: Mapping[str, Any], chosen: tuple[str, ...]) -> None:
    """Refuse a distillation of which nothing would be left."""
    if not terms(args["method"]):
        return
    from yolokd.losses import LOSSES

    if args["kd_gain"] == 0 or all(args[f"{name}_gain"] == 0 for name in chosen):
        zero = "kd_gain=0" if args["kd_gain"] == 0 else " ".join(f"{name}_gain=0" for name in chosen)
        raise UserError(f"{zero} switches method={args['method']} off altogether; for plain training use method=none")
    for name in chosen:
        parts = [f"{name}_{part}" for part in LOSSES[name].part_names] if name in LOSSES else []
        if parts and not any(args[part] for part in parts):
            raise UserError(
                f"{' '.join(f'{part}=0' for part in parts)} leaves nothing of {name}; set one of them above 0"
            )


def _check_stages(points: Any, count: int, epochs: int | None) -> None:
    """Check dfmsd's switching points for a number of teachers; 0 means that dfmsd does not run."""
    if points != "auto":
        _check_points(points, count)
    if count > 1 and epochs:
        starts = Stages.parse(points, count).starts(epochs)
        if any(first >= last for first, last in zip(starts, [*starts[1:], epochs])):
            raise UserError(
                f"epochs={epochs} leaves one of the {count} teachers without an epoch, since the stages would begin "
                f"after {', '.join(map(str, starts))} epochs; train longer, or give fewer teachers"
            )


def _check_points(points: list[float], count: int) -> None:
    """Check switching points given as numbers."""
    shown = f"dfmsd_stages=[{','.join(f'{point:g}' for point in points)}]"
    if any(not 0 < point < 1 for point in points) or any(a >= b for a, b in zip(points, points[1:])):
        raise UserError(f"{shown} must rise and lie between 0 and 1, e.g. dfmsd_stages=[0.3,0.7]")
    if count > 1 and len(points) != count - 1:
        raise UserError(
            f"{shown} makes {len(points) + 1} stages and there are {count} teachers, which need {count - 1} switching "
            f"point{'s' * (count > 2)}; or use dfmsd_stages=auto for equal parts"
        )
