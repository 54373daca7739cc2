"""A teacher is judged by what it sees and means in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd import config

KEYS = ("teacher_imgsz", "teacher_channels", "kd_class_map")


def as_teacher(arguments: Mapping[str, Any], imgsz: int) -> dict[str, Any]:
    """Return the arguments of `evaluate` for the teacher of a run.

    Args:
        arguments (Mapping[str, Any]): The run's arguments.
        imgsz (int): Image size of the student.

    Returns:
        (dict[str, Any]): `imgsz`, `channels` and `class_map`.
    """
    size, channels, class_map = (
        None if arguments.get(key) is None else config.KEYS[key].check(arguments[key]) for key in KEYS
    )
    return {"imgsz": int(size or imgsz), "channels": channels, "class_map": class_map}
