"""Joining a student, its teachers and the chosen methods into a criterion."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from yolokd.classes import match_classes, some
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.images import sight_of
from yolokd.levels import pair_levels
from yolokd.link import Link, is_resampled
from yolokd.losses import LOSSES, build
from yolokd.neck import input_channels, model_strides, neck_channels
from yolokd.outputs import View
from yolokd.rng import preserved_rng
from yolokd.schedule import Schedule, Stages
from yolokd.suitability import check, reads, student_head, teacher_head
from yolokd.taps import Pair
from yolokd.teacher import Teacher

LOGGER = logging.getLogger("ultralytics")


def link(
    model: Any,
    names: Mapping[int, str],
    teacher: Teacher,
    levels: Sequence[int] | None,
    needs_classes: list[str],
    class_map: Mapping[str, str | list[str]] | None = None,
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
    pairs = match_classes(names, teacher.names, class_map)
    if needs_classes and not pairs:
        raise UserError(
            f"method={'+'.join(needs_classes)} compares class logits, but the teacher knows none of the data's classes "
            f"({some(names)}); it knows {some(teacher.names)}. Name those that are called otherwise, i.e. "
            f"kd_class_map={{car: automobile}}, add teacher_epochs=20 to fine-tune the teacher on the data first, or "
            f"use a feature method, i.e. method=dfmsd"
        )
    unknown = [name for index, name in names.items() if index not in {i for i, _ in pairs}]
    if needs_classes and unknown:
        LOGGER.warning(
            f"distillation: the teacher does not know {', '.join(unknown[:5])}{'...' if len(unknown) > 5 else ''}; "
            f"{'+'.join(needs_classes)} act on the {len(pairs)} class{'es' * (len(pairs) > 1)} that it knows"
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
            raise UserError(
                f"method={name} {why}, but the teacher's grid differs from the student's ({sizes}); use method=bckd, "
                f"or leave out teacher_imgsz, multi_scale, rect and kd_val"
            )


def unit_shares(modules: Mapping[str, Any], args: Any) -> dict[str, float]:
    """Return each unit's gradient share (`kd_gain=auto`) or fixed gain.

    The share `kd_share` is divided among the methods by their gains, and within a method among its parts by theirs; a
    fixed gain is `kd_gain` times the method's gain times the part's.

    Args:
        modules (Mapping[str, DistillLoss]): One module per method.
        args (SimpleNamespace): The run's arguments.
    """
    gains = {name: float(getattr(args, f"{name}_gain")) for name in modules}
    shares = {}
    for name, module in modules.items():
        for unit, weight in module.units.items():
            if args.kd_gain == "auto":
                total = sum(gains.values()) * sum(module.units.values())
                shares[unit] = args.kd_share * gains[name] * weight / total if total else 0.0
            else:
                shares[unit] = float(args.kd_gain) * gains[name] * weight
    return shares


def build_criterion(model: Any, teachers: Sequence[Teacher], methods: Sequence[str], args: Any) -> DistillationLoss:
    """Build the distillation criterion of a student; its random streams are left as they were.

    Args:
        model (nn.Module): The student on its device, with `args` and `names` attached.
        teachers (Sequence[Teacher]): The teachers in order of their stages, not yet prepared.
        methods (Sequence[str]): Names of the methods.
        args (SimpleNamespace): The run's arguments.

    Returns:
        (DistillationLoss): The criterion, on the student's device.

    Raises:
        UserError: If student, teacher and methods do not fit.
    """
    device = next(model.parameters()).device
    head = model.model[-1]
    channels = input_channels(model)
    own = neck_channels(model, channels)
    needs_classes = [name for name in methods if {"logits", "tower"} & reads(name, vars(args))]
    two_branches = getattr(head, "one2one_cv2", None) is not None
    links, pairs = [], []
    for teacher in teachers:
        check(methods, vars(args), student_head(model), teacher_head(teacher))
        teacher.sight = sight_of(teacher, channels, args)
        joined = link(model, model.names, teacher, args.kd_levels, needs_classes, args.kd_class_map)
        resampled = is_resampled(joined, args)
        if resampled:
            check_grid(methods, teacher, args)
        links.append(joined)
        classes = joined.student_view.classes
        pairs.append(
            Pair(
                student_channels=tuple(own[i] for i in joined.student_view.levels),
                teacher_channels=tuple(teacher.channels[i] for i in joined.teacher_view.levels),
                strides=tuple(joined.student_view.strides[i] for i in joined.student_view.levels),
                num_classes=len(model.names) if classes is None else len(classes),
                student_reg_max=int(getattr(head, "reg_max", 1)),
                teacher_reg_max=1 if resampled else teacher.reg_max,
                seed=int(args.seed),
            )
        )
    with preserved_rng(seed=int(args.seed)), warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        modules = {name: [build(name, pair, vars(args)) for pair in pairs] for name in methods}
    for text in dict.fromkeys(str(note.message) for note in noted):
        LOGGER.warning(f"distillation: {text}")
    logit_branches = {"one2many", "one2one"} if two_branches else {"one2many"}
    on_objects = [name for name in methods if LOSSES[name].signal == "regions"] if args.kd_unlabeled else []
    by_confidence = args.kd_teacher_weights == "confidence"
    for teacher in teachers:
        if by_confidence and not teacher.dense:
            raise UserError(
                f"kd_teacher_weights=confidence weighs teachers by their class probabilities, and {teacher.not_dense}; "
                f"use kd_teacher_weights=equal"
            )
        if by_confidence and not match_classes(model.names, teacher.names, args.kd_class_map):
            raise UserError(
                f"kd_teacher_weights=confidence weighs teachers by their class probabilities, but one of them knows "
                f"none of the data's classes ({some(model.names)}); use kd_teacher_weights=equal"
            )
        wanted = {teacher.branch_for("one2many")} if by_confidence else set()
        wanted |= {
            teacher.branch_for(branch)
            for name in (*needs_classes, *(on_objects if teacher.dense else ()))
            for branch in (logit_branches if LOSSES[name].signal == "logits" else {"one2many"})
        }
        teacher.prepare(device, [b for b in teacher.branches if b in wanted], args.kd_teacher_dtype)
    staged = "dfmsd" in methods
    criterion = DistillationLoss(
        base=model.init_criterion(),
        links=links,
        methods=modules,
        shares=unit_shares({name: items[0] for name, items in modules.items()}, args),
        schedule=Schedule(args.kd_warmup, args.kd_decay, args.kd_stop),
        stages=Stages.parse(args.dfmsd_stages if staged else [], len(teachers), args.kd_teachers == "together"),
        calibrate=args.kd_gain == "auto",
        by_confidence=by_confidence,
        every=int(args.kd_every),
    )
    criterion.confidence = float(args.kd_unlabeled_confidence)
    return criterion.to(device)
