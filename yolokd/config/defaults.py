"""What a run takes where nothing else is said, and that depends on what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd import config


def complete(overrides: dict[str, Any], base: Mapping[str, Any] | None = None, kind: str = "detect") -> dict[str, Any]:
    """Return overrides with what the others among them ask for.

    Without any labels the teacher alone speaks, with `kd_share` 1: the strength of labels on what it detects.

    The default method compares upright boxes anchor by anchor, all teachers at once. An RT-DETR student has no anchors
    and learns by dfmsd instead; a student of rotated boxes leaves boxes to its labels; several teachers one after the
    other are what dfmsd is for.

    Args:
        overrides (dict[str, Any]): The keys that were given, checked.
        base (Mapping[str, Any] | None): What a configuration file sets beside them.
        kind (str): Kind of student, a key of `TRAINERS`.
    """
    chosen: dict[str, Any] = {"kd_share": 1.0} if overrides.get("kd_names") else {}
    given = {**(base or {}), **overrides}
    if "method" not in given:
        staged = len(config.teachers(given.get("teacher"))) > 1 and given.get("kd_teachers") != "together"
        if kind == "rtdetr" or staged:
            chosen["method"] = "dfmsd"
        elif kind == "obb":
            chosen["bckd_box"] = 0.0
    return {**{key: value for key, value in chosen.items() if key not in given}, **overrides}
