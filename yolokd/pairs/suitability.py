"""Which method works for which student and teacher: what its parts read of the two heads, and whether they have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yolokd.errors import UserError
from yolokd.losses import LOSSES

# What a part of a method reads beside neck maps. "logits": class logits of both sides on the same anchors. "tower": the
# teacher's head as a function. "positives": the student's assigned anchors. "overlap": boxes of both sides as they are
# decoded upright. "bins": box distributions of both sides. "hull": boxes of the teacher's head, decoded upright
# where it has no bins. Parts that are not named read nothing more.
READS: dict[tuple[str, str], tuple[str, ...]] = {
    ("samkd", "logit"): ("logits",),
    ("pcd", "grouped"): ("logits",),
    ("pcd", "binary"): ("logits",),
    ("bckd", "cls"): ("logits",),
    ("bckd", "box"): ("logits", "overlap"),
    ("ld", ""): ("logits", "bins"),
    ("crosskd", "cls"): ("tower", "positives"),
    ("crosskd", "box"): ("tower", "hull"),
    ("softkd", ""): ("logits",),
}
FEATURES = "a feature or region method works, e.g. method=dfmsd, samkd samkd_logit=0 or sgfi"


@dataclass(frozen=True)
class Head:
    """What methods need to know of a student's or a teacher's head.

    Attributes:
        dense (bool): Whether it has class logits and boxes on a grid of anchors.
        rotated (bool): Whether its boxes are rotated, their distances in a frame that is turned with them.
        reg_max (int): Box bins per side; 1 means plain distances.
        why (str): Why it is not dense, with the way out, where that is more than that it works with queries.
    """

    dense: bool = True
    rotated: bool = False
    reg_max: int = 16
    why: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a part of a method does not work, and what to do instead."""

    part: str
    reason: str
    fix: str


def student_head(model: Any) -> Head:
    """Return the facts about a student's head."""
    from ultralytics.nn.modules.head import OBB, RTDETRDecoder

    head = model.model[-1]
    dense = not isinstance(head, RTDETRDecoder)
    return Head(dense, isinstance(head, OBB), int(head.reg_max) if dense else 1)


def teacher_head(teacher: Any) -> Head:
    """Return the facts about the head of a `Teacher`."""
    return Head(teacher.dense, teacher.rotated, teacher.reg_max, teacher.not_dense)


def parts_of(name: str, args: Mapping[str, Any] | None = None) -> list[str]:
    """Return the parts of a method that act, `""` for a method of one part; all of them without arguments."""
    parts = LOSSES[name].part_names or ("",)
    return [part for part in parts if not part or args is None or args[f"{name}_{part}"]]


def reads(name: str, args: Mapping[str, Any] | None = None) -> set[str]:
    """Return what the acting parts of a method read beside neck maps, in the words of `READS`."""
    return {word for part in parts_of(name, args) for word in READS.get((name, part), ())}


def refusals(name: str, args: Mapping[str, Any] | None, student: Head, teacher: Head) -> list[Refusal]:
    """Return why the acting parts of a method do not work for a pair; empty where all of them do.

    Args:
        name (str): Name of the method.
        args (Mapping[str, Any] | None): The run's arguments, of which `NAME_PART` are read; None for all parts.
        student (Head): The student's head.
        teacher (Head): The teacher's head.

    Returns:
        (list[Refusal]): One for each part that does not work.
    """
    found = []
    for part in parts_of(name, args):
        for word in READS.get((name, part), ()):
            if why := CHECKS[word](name, part, student, teacher):
                found.append(Refusal(part, *why))
                break
    return found


def check(methods: Iterable[str], args: Mapping[str, Any], student: Head, teacher: Head) -> None:
    """Refuse methods that do not work for a pair.

    Args:
        methods (Iterable[str]): Names of the methods.
        args (Mapping[str, Any]): The run's arguments.
        student (Head): The student's head.
        teacher (Head): The teacher's head.

    Raises:
        UserError: If one does not; the message says why and what to do.
    """
    for name in methods:
        for refusal in refusals(name, args, student, teacher):
            unit = f"{name}_{refusal.part}" if refusal.part else name
            raise UserError(f"method='{name}'{f' ({unit})' * bool(refusal.part)} {refusal.reason}. {refusal.fix}")


Why = tuple[str, str] | None


def _without(name: str, part: str) -> str:
    """Return how to leave a part out, where another one is left; else a method that works."""
    others = [other for other in LOSSES[name].part_names if other != part]
    if part and any(not {"logits", "tower"} & set(READS.get((name, other), ())) for other in others):
        return f"Set {name}_{part}=0 to leave that part out"
    return FEATURES[0].upper() + FEATURES[1:]


def _logits(name: str, part: str, student: Head, teacher: Head) -> Why:
    if not student.dense:
        reason = (
            "compares predictions anchor by anchor, and an RT-DETR student predicts by queries, which are no grid of "
            "anchors"
        )
        return reason, _without(name, part)
    if not teacher.dense:
        why = teacher.why or "an RT-DETR teacher predicts by queries, which are no grid of anchors"
        return f"compares predictions anchor by anchor, and {why}", _without(name, part)
    return None


def _tower(name: str, part: str, student: Head, teacher: Head) -> Why:
    if not teacher.dense:
        why = teacher.why or "an RT-DETR teacher predicts by queries"
        return f"sends the student's maps through the teacher's head, and {why}", FEATURES[0].upper() + FEATURES[1:]
    return None


def _positives(name: str, part: str, student: Head, teacher: Head) -> Why:
    if not student.dense:
        reason = "is a sum divided by the number of anchors that have an object, and an RT-DETR student assigns none"
        return reason, f"Set {name}_{part}=0 to leave that part out"
    return None


def _overlap(name: str, part: str, student: Head, teacher: Head) -> Why:
    for side, head in (("student", student), ("teacher", teacher)):
        if head.rotated:
            return f"compares upright boxes by their overlap, and the {side}'s are rotated", f"Set {name}_{part}=0"
    return None


def _bins(name: str, part: str, student: Head, teacher: Head) -> Why:
    classes = "Choose pcd, which compares classes"
    other = classes if student.rotated or teacher.rotated else "Choose bckd, which compares the boxes themselves"
    for side, head in (("student", student), ("teacher", teacher)):
        if head.reg_max == 1:
            return (
                f"compares box distributions, and the {side} predicts plain distances (reg_max=1, as YOLO26 does)",
                other,
            )
    if student.reg_max != teacher.reg_max:
        return (
            f"needs the same bins per box side, but the student has reg_max={student.reg_max} and the teacher "
            f"reg_max={teacher.reg_max}",
            other,
        )
    if student.rotated != teacher.rotated:
        sides = "student's" if student.rotated else "teacher's"
        return (
            f"compares distances to the sides of a box, and the {sides} boxes alone are rotated, so that their sides "
            f"are not the same",
            classes,
        )
    return None


def _hull(name: str, part: str, student: Head, teacher: Head) -> Why:
    if teacher.rotated and teacher.reg_max == 1:
        return (
            "compares upright boxes by their overlap where the teacher has no box distribution, and its boxes are "
            "rotated",
            f"Set {name}_{part}=0",
        )
    return None


CHECKS = {
    "logits": _logits,
    "tower": _tower,
    "positives": _positives,
    "overlap": _overlap,
    "bins": _bins,
    "hull": _hull,
}
