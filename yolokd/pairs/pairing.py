"""Which levels and classes of a student and a teacher are paired, and what that rules out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from yolokd.classes import learned_names, match_classes, some
from yolokd.errors import UserError
from yolokd.models import model_strides
from yolokd.outputs import View
from yolokd.pairs.levels import pair_levels
from yolokd.pairs.link import Link
from yolokd.teachers.teacher import Teacher

LOGGER = logging.getLogger("ultralytics")


def link(
    model: Any,
    names: Mapping[int, str],
    teacher: Teacher,
    levels: Sequence[int] | None,
    needs_classes: list[str],
    class_map: Mapping[str, str | list[str]] | None = None,
    classes: int | Sequence[int] | None = None,
) -> Link:
    """Pair levels by stride and classes by name.

    A teacher that sees larger images has smaller strides in pixels of the student's images, and the other way round.

    Args:
        model (nn.Module): The student.
        names (Mapping[int, str]): The data's class names, which the student learns.
        teacher (Teacher): The teacher, whose sight is set.
        levels (Sequence[int] | None): Wanted strides, or None for all shared ones.
        needs_classes (list[str]): Methods that read class logits.
        class_map (Mapping[str, str | list[str]] | None): `kd_class_map`.
        classes (int | Sequence[int] | None): The host's `classes`: those that are learned, all if None.

    Raises:
        UserError: If there is no shared level, or no shared class although a method reads class logits.
    """
    strides = model_strides(model)
    effective = [stride / teacher.sight.ratio for stride in teacher.strides]
    paired = pair_levels(strides, effective, levels)
    shared = [strides[i] for i, _ in paired]
    if not shared or (levels and set(levels) - set(shared)):
        asked = f"kd_levels={list(levels)}: " if levels else ""
        both = [strides[i] for i, _ in pair_levels(strides, effective)]
        raise UserError(
            f"{asked}student strides {list(strides)} and teacher strides {_numbers(effective)} share "
            f"{both or 'no level'}; choose a teacher or kd_levels= among shared ones"
        )
    _say_levels(strides, effective, paired)
    learned = learned_names(names, classes)
    pairs = [pair for pair in match_classes(names, teacher.names, class_map) if pair[0] in learned]
    if needs_classes and not pairs:
        single = list(names.values()) == ["item"]  # what the host's single_cls makes of all classes
        example = f"{{item: [{', '.join(list(teacher.names.values())[:3])}]}}" if single else "{car: automobile}"
        raise UserError(
            f"method={'+'.join(needs_classes)} compares class logits, but the teacher knows none of the data's classes "
            f"({some(learned)}); it knows {some(teacher.names)}. Name those that are called otherwise, e.g. "
            f"kd_class_map={example}, add teacher_epochs=20 to fine-tune the teacher on the data first, or "
            f"use a feature method, e.g. method=dfmsd"
        )
    unknown = [name for index, name in learned.items() if index not in {i for i, _ in pairs}]
    if needs_classes and unknown:
        LOGGER.warning(
            f"distillation: the teacher does not know {', '.join(unknown[:5])}{'...' if len(unknown) > 5 else ''}; "
            f"{'+'.join(needs_classes)} act{'s' * (len(needs_classes) == 1)} on the {len(pairs)} "
            f"class{'es' * (len(pairs) > 1)} that it knows"
        )
    identity = pairs == [(i, i) for i in range(len(names))] and len(teacher.names) == len(names)
    whole = identity or not pairs
    return Link(
        teacher,
        View(strides, tuple(i for i, _ in paired), None if whole else tuple(own for own, _ in pairs)),
        View(teacher.strides, tuple(j for _, j in paired), None if whole else tuple(theirs for _, theirs in pairs)),
    )


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _say_levels(strides: Sequence[int], effective: Sequence[float], paired: Sequence[tuple[int, int]]) -> None:
    """Say which levels are paired, where it is not all of both sides with the same strides."""
    shared, theirs = [strides[i] for i, _ in paired], [effective[j] for _, j in paired]
    if unpaired := sorted({*strides, *effective} - {*shared, *theirs}):
        LOGGER.info(f"distillation: levels of stride {shared} are paired; {_numbers(unpaired)} are left out")
    if theirs != shared:
        LOGGER.info(
            f"distillation: the teacher's maps have strides {_numbers(theirs)} in the student's pixels and are "
            f"resampled to {shared}"
        )


def check_grid(methods: Sequence[str], teacher: Teacher, args: Any) -> None:
    """Refuse methods that cannot act on a teacher's maps brought onto another grid.

    Args:
        methods (Sequence[str]): Names of the methods.
        teacher (Teacher): The teacher.
        args (SimpleNamespace): The run's arguments.

    Raises:
        UserError: If there is one among them; the message says why and what to do.
    """
    sizes = f"imgsz={args.imgsz}, teacher_imgsz={args.teacher_imgsz or args.imgsz}, its strides {list(teacher.strides)}"
    for name, why in (
        ("ld", "compares distributions over bins, which do not scale"),
        ("crosskd", "sends the student's maps through the teacher's head, which knows them at its own scale"),
    ):
        if name in methods:
            others = [other for other in methods if other not in {"ld", "crosskd"}]
            given = [key for key in ("teacher_imgsz", "multi_scale", "rect", "kd_val") if getattr(args, key)]
            raise UserError(
                f"method={name} {why}, but the teacher's grid differs from the student's ({sizes}); use "
                f"method={'+'.join(others) or 'bckd'}{', or leave out ' * bool(given)}{' and '.join(given)}"
            )
