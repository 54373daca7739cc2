"""The keys for images without labels: what they do not go with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd.config import KEYS, REST, terms
from yolokd.errors import UserError


def check_label_keys(args: Mapping[str, Any], chosen: tuple[str, ...]) -> None:
    """Refuse what does not go with images without labels.

    Args:
        args (Mapping[str, Any]): All arguments of a run, the host's as far as they are known.
        chosen (tuple[str, ...]): The methods.

    Raises:
        UserError: If keys contradict each other.
    """
    unlabeled, task = args["kd_unlabeled"], args.get("task") or "detect"
    for key in ("kd_unlabeled", "kd_names"):
        if args[key] == []:
            raise UserError(f"{key}=[] names nothing; leave it out, or set it, e.g. {key}={KEYS[key].example}")
    if args["kd_names"]:
        _check_names(args, chosen, task)
    elif unlabeled:
        fraction = args.get("fraction", 1.0)
        if unlabeled == REST and (fraction[0] if isinstance(fraction, (list, tuple)) else fraction) == 1:
            raise UserError(
                "kd_unlabeled=rest means the training images that fraction= leaves out, and it leaves out none; set "
                "it, e.g. fraction=0.1, or name a folder, e.g. kd_unlabeled=path/to/images"
            )
        if args.get("batch") == 1:
            raise UserError(
                f"kd_unlabeled={unlabeled} needs an image with labels and one without in each step; set batch= to 2 or "
                f"more, e.g. batch=16"
            )


def check_kind(args: Mapping[str, Any], kind: str) -> None:
    """Refuse images without labels for students that cannot learn from them.

    Args:
        args (Mapping[str, Any]): All arguments of a run.
        kind (str): Kind of the student, see `yolokd.students.kinds`.

    Raises:
        UserError: If it is one of those.
    """
    if args["kd_names"] and kind != "detect":
        raise UserError(
            f"kd_names does not go with a {kind} student: it learns boxes and classes alone; take a student for "
            f"detection, e.g. model=yolov8n.pt"
        )
    if args["kd_unlabeled"] and kind == "rtdetr":
        raise UserError(
            f"kd_unlabeled does not go with a {kind} student: its loss is that of a whole batch; leave it out, or take "
            f"another student, e.g. model=yolov8n.pt"
        )


def _check_names(args: Mapping[str, Any], chosen: tuple[str, ...], task: str) -> None:
    """Refuse what does not go with learning from the teacher alone."""
    names = [args["kd_names"]] if isinstance(args["kd_names"], str) else args["kd_names"]
    shown = f"kd_names=[{','.join(names)}]"
    if len({name.strip().lower() for name in names}) < len(names) or not all(name.strip() for name in names):
        raise UserError(f"{shown} must name each class once, e.g. kd_names=[car,bus]")
    if not terms(args["method"]):
        raise UserError(
            f"{shown} learns from the teacher alone, without labels, and method={args['method']} learns from labels; "
            f"leave method out, or use method=bckd"
        )
    for key, why in (
        ("kd_unlabeled", "all images are without labels already; give them all as data="),
        ("teacher_epochs", "the teacher cannot be fine-tuned without labels; set teacher_epochs=0"),
        ("single_cls", "the classes are those named; leave single_cls out"),
        ("classes", "the classes are those named; leave classes out"),
    ):
        if args.get(key) if key != "classes" else args.get(key) is not None:
            raise UserError(f"{shown} does not go with {key}={args[key]}: {why}")
    if task != "detect":
        raise UserError(
            f"{shown} learns boxes and classes, and a {task} student more; take a detection model, e.g. yolov8n.pt"
        )
    if args["kd_stop"] != 1.0:
        raise UserError(
            f"{shown}: after kd_stop={args['kd_stop']} there would be nothing to learn from; set kd_stop=1.0"
        )
    from yolokd.pairs.suitability import reads

    words = {word for name in chosen for word in reads(name, args)}
    taught = {"pcd": "pcd_binary", "bckd": "bckd_cls", "samkd": "samkd_logit"}
    if not any(args[part] for name, part in taught.items() if name in chosen) or not words & {"overlap", "bins"}:
        raise UserError(
            f"{shown}: without labels a method has to teach the class output and another, or the same, the box output, "
            f"and method={args['method']} does not; add bckd, e.g. method={_joined(chosen)}"
        )


def _joined(chosen: tuple[str, ...]) -> str:
    return (
        "+".join(name for name in (*chosen, "bckd") if name != "bckd") + "+bckd" if set(chosen) - {"bckd"} else "bckd"
    )
