"""Joining a student, its teachers and the chosen methods into a criterion."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.link import Link
from yolokd.losses import LOSSES, build
from yolokd.outputs import View, shared_levels
from yolokd.rng import preserved_rng
from yolokd.schedule import Schedule, Stages
from yolokd.taps import Pair
from yolokd.teacher import Teacher, model_strides, neck_channels

LOGGER = logging.getLogger("ultralytics")


def fold(name: str) -> str:
    """Return a class name with case, spaces, hyphens and underscores folded."""
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())


def match_classes(student: Mapping[int, str], teacher: Mapping[int, str]) -> list[tuple[int, int]]:
    """Return the index pairs of the classes that both sides have by name, in the student's order."""
    known = {fold(name): index for index, name in teacher.items()}
    return [(index, known[fold(name)]) for index, name in student.items() if fold(name) in known]


def link(
    model: Any, names: Mapping[int, str], teacher: Teacher, levels: Sequence[int] | None, needs_classes: list[str]
) -> Link:
    """Pair levels by stride and classes by name.

    Args:
        model (nn.Module): The student.
        names (Mapping[int, str]): The data's class names, which the student learns.
        teacher (Teacher): The teacher.
        levels (Sequence[int] | None): Wanted strides, or None for all shared ones.
        needs_classes (list[str]): Methods that read class logits.

    Raises:
        UserError: If there is no shared level, or no shared class although a method reads class logits.
    """
    strides = model_strides(model)
    shared = shared_levels(strides, teacher.strides, levels)
    if not shared or (levels and set(levels) - set(shared)):
        asked = f"kd_levels={list(levels)}: " if levels else ""
        raise UserError(
            f"{asked}student strides {list(strides)} and teacher strides {list(teacher.strides)} share "
            f"{shared_levels(strides, teacher.strides) or 'no level'}; choose a teacher or kd_levels= among shared ones"
        )
    if unpaired := sorted({*strides, *teacher.strides} - set(shared)):
        LOGGER.info(f"distillation: levels of stride {shared} are paired; {unpaired} are left out")
    pairs = match_classes(names, teacher.names)
    if needs_classes and not pairs:
        raise UserError(
            f"method={'+'.join(needs_classes)} compares class logits, but the teacher knows none of the data's classes "
            f"({_some(names)}); it knows {_some(teacher.names)}. Add teacher_epochs=20 to fine-tune the teacher on the "
            f"data first, or use a feature method, i.e. method=dfmsd"
        )
    unknown = [name for index, name in names.items() if index not in {i for i, _ in pairs}]
    if needs_classes and unknown:
        LOGGER.warning(
            f"distillation: the teacher does not know {', '.join(unknown[:5])}{'...' if len(unknown) > 5 else ''}; "
            f"{'+'.join(needs_classes)} act on the {len(pairs)} classes that it knows"
        )
    identity = pairs == [(i, i) for i in range(len(names))] and len(teacher.names) == len(names)
    sides: list[tuple[int, ...] | None] = (
        [None, None] if identity or not pairs else [tuple(pair[side] for pair in pairs) for side in (0, 1)]
    )
    return Link(
        teacher,
        View(strides, tuple(strides.index(stride) for stride in shared), sides[0]),
        View(teacher.strides, tuple(teacher.strides.index(stride) for stride in shared), sides[1]),
    )


def _some(names: Mapping[int, str]) -> str:
    values = list(names.values())
    return ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")


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
    channels = int(model.yaml.get("channels", 3))
    own = neck_channels(model, channels)
    needs_classes = [name for name in methods if LOSSES[name].needs_logits]
    needs_head = [name for name in methods if LOSSES[name].needs_logits or LOSSES[name].needs_boxes]
    two_branches = getattr(head, "one2one_cv2", None) is not None
    links, pairs = [], []
    for teacher in teachers:
        if teacher.input_channels != channels:
            raise UserError(
                f"teacher takes {teacher.input_channels} input channels and the data has {channels}; "
                f"use a teacher trained on such images"
            )
        if int(args.imgsz) % max(teacher.strides):
            raise UserError(
                f"imgsz={args.imgsz} is no multiple of the teacher's largest stride {max(teacher.strides)}; "
                f"use imgsz={-(-int(args.imgsz) // max(teacher.strides)) * max(teacher.strides)}"
            )
        joined = link(model, model.names, teacher, args.kd_levels, needs_classes)
        links.append(joined)
        classes = joined.student_view.classes
        pairs.append(
            Pair(
                student_channels=tuple(own[i] for i in joined.student_view.levels),
                teacher_channels=tuple(teacher.channels[i] for i in joined.teacher_view.levels),
                strides=tuple(joined.student_view.strides[i] for i in joined.student_view.levels),
                num_classes=len(model.names) if classes is None else len(classes),
                student_reg_max=int(head.reg_max),
                teacher_reg_max=teacher.reg_max,
                seed=int(args.seed),
            )
        )
    with preserved_rng(seed=int(args.seed)), warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        modules = {name: [build(name, pair, vars(args)) for pair in pairs] for name in methods}
    for text in dict.fromkeys(str(note.message) for note in noted):
        LOGGER.warning(f"distillation: {text}")
    logit_branches = {"one2many", "one2one"} if two_branches else {"one2many"}
    by_confidence = args.kd_teacher_weights == "confidence"
    for teacher in teachers:
        if by_confidence and not match_classes(model.names, teacher.names):
            raise UserError(
                f"kd_teacher_weights=confidence weighs teachers by their class probabilities, but one of them knows "
                f"none of the data's classes ({_some(model.names)}); use kd_teacher_weights=equal"
            )
        wanted = {teacher.branch_for("one2many")} if by_confidence else set()
        wanted |= {
            teacher.branch_for(branch)
            for name in needs_head
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
    return criterion.to(device)
