"""Where a student's weights come from before training: its own, or fitted to its teacher's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch

from yolokd.errors import UserError
from yolokd.pairs.classes import learned_names, match_classes
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import output_layers, same_family, select_weights
from yolokd.teachers.heads import class_names

LOGGER = logging.getLogger("ultralytics")


def start_from_teacher(
    student: Any,
    teachers: Sequence[Any],
    images: Callable[[], torch.Tensor],
    names: Mapping[int, str],
    args: Any,
    random: bool,
) -> None:
    """Let a student start from its teacher's weights where `kd_init` says so, or say why it does not.

    Random weights are replaced wherever a teacher is of the student's family. With `kd_init=auto`, others are where the
    fitted weights explain more of the teacher's outputs than the student's own do, whose last layers are fitted for the
    comparison alone.

    Args:
        student (nn.Module): The student.
        teachers (Sequence[nn.Module]): Teachers, not fused; the first one of the student's family is taken.
        images (Callable[[], torch.Tensor]): Returns images of the data with shape (B, C, H, W) in [0, 1].
        names (Mapping[int, str]): The data's class names.
        args (Any): The run's arguments.
        random (bool): Whether the student's weights are random.

    Raises:
        UserError: With `kd_init=teacher` or `method=fit` and no teacher of the student's family.
    """
    if args.kd_init == "none":
        return
    teacher = next((teacher for teacher in teachers if same_family(student, teacher)), None)
    if teacher is None:
        if args.kd_init == "teacher" or args.method == "fit":
            word = "method=fit" if args.method == "fit" else "kd_init=teacher"
            raise UserError(
                f"{word} needs a teacher of the student's family, built of the same layers at another scale, "
                f"i.e. yolov8x for yolov8n. Leave it out, or take such a teacher"
            )
        if random:
            LOGGER.info("distillation: no teacher is of the student's family, so it starts from random weights")
        return
    matches, learned = match_classes(names, class_names(teacher), args.kd_class_map), learned_names(names, args.classes)
    classes = {own: other if isinstance(other, int) else other[0] for own, other in matches if own in learned}
    begin, last = perf_counter(), output_layers(student)
    seen = images() if last else torch.zeros(0)
    if not len(seen):  # no image can be read, or no grid of outputs is there to be fitted
        if random or args.kd_init == "teacher":
            share = select_weights(student, teacher, classes)
            LOGGER.info(f"distillation: the student starts from its teacher's weights, {share:.0%} of its own selected")
        return
    LOGGER.info(f"distillation: fitting the student's layers to its teacher's on {len(seen)} images ...")
    device = next(student.parameters()).device
    device = torch.device("cpu") if device.type == "mps" else device  # which has no double precision
    other, fitted, seen = deepcopy(teacher).to(device).float(), deepcopy(student).to(device), seen.to(device)
    select_weights(fitted, other, classes)
    found = _mean(fit_weights(fitted, other, seen, classes), last)
    if not random and args.kd_init == "auto":
        own = _mean(fit_weights(deepcopy(student).to(device), other, seen, classes, last.__contains__), last)
        if own >= found:
            LOGGER.info(
                f"distillation: the student keeps its own weights, which explain {own:.0%} of the teacher's outputs "
                f"({len(seen)} images); weights fitted to the teacher's {found:.0%} (kd_init=teacher takes them)"
            )
            return
        text = f", its own {own:.0%} (kd_init=none keeps these)"
    else:
        text = "" if random else " (kd_init=none keeps its own)"
    student.load_state_dict(fitted.state_dict())
    LOGGER.info(
        f"distillation: the student starts from weights fitted to its teacher, which explain {found:.0%} of the "
        f"teacher's outputs{text or ' (kd_init=none starts from random ones)'}; {len(seen)} images, "
        f"{perf_counter() - begin:.0f} s"
    )


def _mean(explained: Mapping[str, float], layers: set[str]) -> float:
    shares = [share for name, share in explained.items() if name in layers]
    return sum(shares) / max(len(shares), 1)
