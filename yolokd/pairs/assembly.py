"""The distillation criterion of a run, put together from student, teachers, methods and arguments."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from yolokd import config
from yolokd.classes import match_classes, some
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.losses import LOSSES, build
from yolokd.models import input_channels, neck_channels
from yolokd.pairs.link import Link, is_resampled
from yolokd.pairs.pairing import check_grid, link
from yolokd.pairs.suitability import check, reads, student_head, teacher_head
from yolokd.rng import preserved_rng
from yolokd.taps import Pair
from yolokd.teachers.images import sight_of
from yolokd.teachers.teacher import Teacher
from yolokd.terms.schedule import Schedule, Stages

LOGGER = logging.getLogger("ultralytics")
BOXES = {"overlap", "bins", "tower", "hull"}  # what methods read of a teacher that is made of its box layers


def unit_shares(modules: Mapping[str, Any], args: Any) -> dict[str, float]:
    """Return each unit's gradient share (`kd_gain=auto`) or fixed gain.

    The share, `kd_share` or each method's own, is divided among the methods by their gains, and within a method among
    its parts by theirs; a fixed gain is `kd_gain` times the method's gain times the part's.

    Args:
        modules (Mapping[str, DistillLoss]): One module per method.
        args (SimpleNamespace): The run's arguments.
    """
    gains = {name: float(getattr(args, f"{name}_gain")) for name in modules}
    shares = {}
    for name, module in modules.items():
        share = module.share if args.kd_share == "auto" else float(args.kd_share)
        for unit, weight in module.units.items():
            if args.kd_gain == "auto":
                total = sum(gains.values()) * sum(module.units.values())
                shares[unit] = share * gains[name] * weight / total if total else 0.0
            else:
                shares[unit] = float(args.kd_gain) * gains[name] * weight
    return shares


def stage_shares(modules: Mapping[str, Sequence[Any]], stages: Stages, args: Any) -> list[dict[str, float]]:
    """Return for each stage the shares or fixed gains of all units of the run, 0 for those that its teachers have not.

    A teacher that knows a single one of the data's classes has no classes to rank, for one. A gradient share is the
    mean over teachers that act together, as their terms are; a fixed gain is that of those which have the unit.

    Args:
        modules (Mapping[str, Sequence[DistillLoss]]): For each method one module per teacher.
        stages (Stages): Which teacher acts when.
        args (SimpleNamespace): The run's arguments.
    """
    own = [unit_shares({name: items[i] for name, items in modules.items()}, args) for i in range(stages.teachers)]
    units = dict.fromkeys(unit for shares in own for unit in shares)
    found = []
    for stage in range(stages.count):
        acting = [own[index] for index in stages.acting(stage)]
        if args.kd_gain == "auto":
            found.append({unit: sum(shares.get(unit, 0.0) for shares in acting) / len(acting) for unit in units})
        else:
            found.append({unit: max(shares.get(unit, 0.0) for shares in acting) for unit in units})
    return found


def build_criterion(
    model: Any, teachers: Sequence[Teacher], methods: Sequence[str], args: Any, boxes: bool = False
) -> DistillationLoss:
    """Build the distillation criterion of a student; its random streams are left as they were.

    Args:
        model (nn.Module): The student on its device, with `args` and `names` attached.
        teachers (Sequence[Teacher]): The teachers in order of their stages, not yet prepared.
        methods (Sequence[str]): Names of the methods.
        args (SimpleNamespace): The run's arguments.
        boxes (bool): Have the teachers' boxes read even where no method does.

    Returns:
        (DistillationLoss): The criterion, on the student's device.

    Raises:
        UserError: If student, teacher and methods do not fit.
    """
    device, layout = next(model.parameters()).device, _layout(model)
    own = neck_channels(model, input_channels(model))
    links, pairs = [], []
    for teacher in teachers:
        joined = _link(model, teacher, methods, args)
        links.append(joined)
        pairs.append(_pair(model, joined, own, args))
    with preserved_rng(seed=int(args.seed)), warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        modules = {name: [build(name, pair, vars(args)) for pair in pairs] for name in methods}
    for text in dict.fromkeys(str(note.message) for note in noted):
        LOGGER.warning(f"distillation: {text}")
    for teacher in teachers:
        wanted, read_boxes = _wanted(model, teacher, methods, args)
        read = [branch for branch in teacher.branches if branch in wanted]
        teacher.prepare(device, read, args.kd_teacher_dtype, boxes or read_boxes, args.kd_compile, layout)
    points = args.dfmsd_stages if "dfmsd" in methods else []
    stages = Stages.parse(points, len(teachers), args.kd_teachers == "together")
    criterion = DistillationLoss(
        base=model.init_criterion(),
        links=links,
        methods=modules,
        shares=stage_shares(modules, stages, args),
        schedule=Schedule(args.kd_warmup, args.kd_decay, args.kd_stop),
        stages=stages,
        calibrate=args.kd_gain == "auto",
        by_confidence=args.kd_teacher_weights == "confidence",
        every=int(args.kd_every),
        confidence=float(args.kd_unlabeled_confidence),
    )
    return criterion.to(device).to(memory_format=layout)


def check_pairs(model: Any, teachers: Sequence[Teacher], methods: Sequence[str], args: Any) -> None:
    """Refuse what `build_criterion` would refuse of each teacher and the methods, without a word and at no cost."""
    with config.quiet():
        for number, teacher in enumerate(teachers, start=1):
            try:
                _link(model, teacher, methods, args)
            except UserError as error:
                if len(teachers) == 1:
                    raise
                raise UserError(f"teacher {number} of {len(teachers)}: {error}") from error


def _class_methods(methods: Sequence[str], args: Any) -> list[str]:
    """Return the methods that read class logits."""
    return [name for name in methods if {"logits", "tower"} & reads(name, vars(args))]


def _link(model: Any, teacher: Teacher, methods: Sequence[str], args: Any) -> Link:
    """Pair a teacher with the student, and refuse methods that cannot act between the two."""
    check(methods, vars(args), student_head(model), teacher_head(teacher))
    teacher.sight = sight_of(teacher, input_channels(model), args)
    needs = _class_methods(methods, args)
    joined = link(model, model.names, teacher, args.kd_levels, needs, args.kd_class_map, args.classes)
    if is_resampled(joined, args):
        check_grid(methods, teacher, args)
    if args.kd_teacher_weights == "confidence":
        _check_confidence(model, teacher, args)
    return joined


def _check_confidence(model: Any, teacher: Teacher, args: Any) -> None:
    """Refuse to weigh a teacher by class probabilities that it has not."""
    if not teacher.dense:
        why = f"and {teacher.not_dense}"
    elif not match_classes(model.names, teacher.names, args.kd_class_map):
        why = f"but one of them knows none of the data's classes ({some(model.names)})"
    else:
        return
    raise UserError(
        f"kd_teacher_weights=confidence weighs teachers by their class probabilities, {why}; use "
        f"kd_teacher_weights=equal"
    )


def _pair(model: Any, joined: Link, channels: Sequence[int], args: Any) -> Pair:
    """Return the fixed facts of a pair that methods build their adapters from."""
    student, other, classes = joined.student_view, joined.teacher_view, joined.student_view.classes
    return Pair(
        student_channels=tuple(channels[i] for i in student.levels),
        teacher_channels=tuple(joined.teacher.channels[i] for i in other.levels),
        strides=tuple(student.strides[i] for i in student.levels),
        num_classes=len(model.names) if classes is None else len(classes),
        student_reg_max=int(getattr(model.model[-1], "reg_max", 1)),
        teacher_reg_max=1 if is_resampled(joined, args) else joined.teacher.reg_max,
        seed=int(args.seed),
    )


def _layout(model: Any) -> torch.memory_format:
    """Return how a student's weights, and so its maps, lie in memory: on CUDA the host puts channels last."""
    lies = [weight.is_contiguous() for weight in model.parameters() if weight.ndim == 4]
    return torch.contiguous_format if all(lies) else torch.channels_last


def _two_branches(model: Any) -> bool:
    """Return whether a student has a one-to-one branch beside its one-to-many branch."""
    return getattr(model.model[-1], "one2one_cv2", None) is not None


def _wanted(model: Any, teacher: Teacher, methods: Sequence[str], args: Any) -> tuple[set[str], bool]:
    """Return the teacher's head branches that are read, and whether their boxes are."""
    readers = _class_methods(methods, args)
    without_labels = bool(args.kd_unlabeled or args.kd_names)  # where a one-to-one branch is taught
    if args.kd_unlabeled and teacher.dense:  # its detections are the objects there
        readers += [name for name in methods if LOSSES[name].signal == "regions"]
    branches = {"one2many"} if readers else set()
    if without_labels and _two_branches(model) and any(LOSSES[name].signal == "logits" for name in readers):
        branches.add("one2one")
    if args.kd_teacher_weights == "confidence":
        branches.add("one2many")
    boxes = without_labels or any(BOXES & reads(name, vars(args)) for name in methods)
    return {teacher.branch_for(branch) for branch in branches}, boxes
