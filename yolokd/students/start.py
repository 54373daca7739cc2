"""Where a student's weights come from before training: its own, or fitted to its teacher's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import distributed as dist

from yolokd.classes import learned_names, match_classes, some
from yolokd.errors import UserError
from yolokd.memory import Found, give_back, where_it_fits
from yolokd.models import class_names, input_channels
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import class_layers, output_layers, same_family, select_weights
from yolokd.students.new_classes import fit_classes
from yolokd.teachers.shown import as_shown

LOGGER = logging.getLogger("ultralytics")


@dataclass(frozen=True)
class Start:
    """What was done about the weights that a student starts from.

    Attributes:
        fitted (bool): Whether its layers were fitted to its teacher's.
        given (dict[str, torch.Tensor] | None): The given weights that `kd_init=auto` has replaced, which the preflight
            puts back where no teacher is better than they are; None where none were.
    """

    fitted: bool = False
    given: dict[str, torch.Tensor] | None = None


def start_from_teacher(
    student: Any,
    teachers: Sequence[Any],
    images: Callable[[], torch.Tensor],
    names: Mapping[int, str],
    args: Any,
    random: bool,
    new: Collection[int] = (),
) -> Start:
    """Let a student start from its teacher's weights where `kd_init` says so, or say why it does not.

    Random weights are replaced wherever a teacher is of the student's family. With `kd_init=auto`, others are where the
    fitted weights explain more of the teacher's outputs than the student's own do, whose last layers are fitted for the
    comparison alone, and the teacher knows all classes that are learned: the features of another task can be fitted
    well and be of no use. Where given weights stay, class layers that they do not bring are fitted by themselves, to a
    teacher of any family. Layers that `freeze` names keep given weights.

    Args:
        student (nn.Module): The student.
        teachers (Sequence[nn.Module]): Teachers in float32, not fused, which are moved to where a fit is computed; the
            first one of the student's family is taken.
        images (Callable[[], torch.Tensor]): Returns images of the data with shape (B, C, H, W) in [0, 1], or in bytes.
        names (Mapping[int, str]): The data's class names.
        args (Any): The run's arguments.
        random (bool): Whether the student's weights are random.
        new (Collection[int]): Classes whose logits given weights do not have.

    Returns:
        (Start): What was done.

    Raises:
        UserError: With `kd_init=teacher` or `method=fit` and no teacher of the student's family.
    """
    if args.kd_init == "none":
        return Start()
    layers = args.freeze if isinstance(args.freeze, list) else range(args.freeze or 0)  # checked with the keys
    frozen = () if random else tuple(f"model.{index}." for index in layers)
    chosen = getattr(args, "teacher_channels", None)
    teachers = [as_shown(teacher, input_channels(student), chosen) for teacher in teachers]
    teacher = next((teacher for teacher in teachers if same_family(student, teacher)), None)
    if teacher is None:
        fused = " (a fused one is of none; save it without fuse())" if any(t.is_fused() for t in teachers) else ""
        if args.kd_init == "teacher" or args.method == "fit":
            word = "method=fit" if args.method == "fit" else "kd_init=teacher"
            raise UserError(
                f"{word} needs a teacher of the student's family, built of the same layers at another scale, "
                f"e.g. yolov8x for yolov8n{fused}. Leave it out, or take such a teacher"
            )
        if random:
            LOGGER.info(f"distillation: no teacher is of the student's family{fused}, so it starts from random weights")
        else:
            if fused:
                LOGGER.info(f"distillation: no teacher is of the student's family{fused}, so it keeps its weights")
            _fit_new(student, teachers, images, names, args, new, frozen)
        return Start()
    learned = learned_names(names, args.classes)
    classes = _known(teacher, names, learned, args)
    unknown = {index: name for index, name in learned.items() if index not in classes}
    if unknown and not random and args.kd_init == "auto":
        LOGGER.info(
            f"distillation: the student keeps its own weights, since the teacher does not know {some(unknown)} "
            f"(kd_init=teacher takes weights fitted to it all the same)"
        )
        _fit_new(student, teachers, images, names, args, new, frozen)
        return Start()
    begin, last = perf_counter(), output_layers(student)
    seen = images() if last else torch.zeros(0)
    if not len(seen):  # no image can be read, or no grid of outputs is there to be fitted
        if random or args.kd_init == "teacher":
            share = _select(student, teacher, classes, frozen)
            LOGGER.info(f"distillation: the student starts from its teacher's weights, {share:.0%} of its own selected")
        return Start()
    LOGGER.info(f"distillation: fitting the student's layers to its teacher's on {len(seen)} images ...")
    compared = not random and args.kd_init == "auto"

    def fit(device: torch.device) -> tuple[Any, float, Any, float]:
        other, fitted, shown = teacher.to(device), deepcopy(student).to(device), seen.to(device)
        _select(fitted, other, classes, frozen)
        found = _mean(fit_weights(fitted, other, shown, classes, lambda name: not name.startswith(frozen)), last)
        if not compared:
            return fitted, found, None, 0.0
        probe = deepcopy(student).to(device)
        return fitted, found, probe, _mean(fit_weights(probe, other, shown, classes, last.__contains__), last)

    fitted, found, probe, own = _somewhere(fit, _device(student))
    if compared:
        if own >= found:
            LOGGER.info(
                f"distillation: the student keeps its own weights, which explain {own:.0%} of the teacher's outputs "
                f"({len(seen)} images); weights fitted to the teacher's {found:.0%} (kd_init=teacher takes them)"
            )
            _fit_new(student, [teacher], lambda: seen, names, args, new, frozen)
            return Start()
        text = f", its own {own:.0%} (kd_init=none keeps these)"
    else:
        text = "" if random else " (kd_init=none keeps its own)"
    if frozen:
        text = f", frozen layers keep theirs{text}"
    given = {key: value.detach().clone() for key, value in student.state_dict().items()}
    if compared:  # what the preflight compares has class layers that answer
        rows = [index for index in classes if index in set(new)]
        for name in class_layers(student):
            for key in (f"{name}.weight", f"{name}.bias"):
                if not key.startswith(frozen):
                    given[key][rows] = probe.state_dict()[key][rows].to(given[key])
    student.load_state_dict(fitted.state_dict())
    LOGGER.info(
        f"distillation: the student starts from weights fitted to its teacher, which explain {found:.0%} of the "
        f"teacher's outputs{text or ' (kd_init=none starts from random ones)'}; {len(seen)} images, "
        f"{perf_counter() - begin:.0f} s"
    )
    return Start(True, None if random or args.kd_init == "teacher" else given)


def shared_start(student: Any, start: Start) -> Start:
    """Give all processes of a run the student as it stands in the first one.

    Args:
        student (nn.Module): The student of this process.
        start (Start): What the first process has done; of the others it is not read.

    Returns:
        (Start): The first one's, but for the given weights, which stay with it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return start
    fitted = [start.fitted]
    dist.broadcast_object_list(fitted, 0)
    for value in student.state_dict().values():
        dist.broadcast(value, 0)
    return Start(fitted[0], start.given)


def _fit_new(
    student: Any,
    teachers: Sequence[Any],
    images: Callable[[], torch.Tensor],
    names: Mapping[int, str],
    args: Any,
    new: Collection[int],
    frozen: tuple[str, ...],
) -> None:
    """Fit the rows of class layers that given weights do not bring, to the first teacher that has them."""
    learned = learned_names(names, args.classes).keys() & set(new)
    if not learned:
        return
    for teacher in teachers:
        begin, classes = perf_counter(), _known(teacher, names, learned, args)

        def fit(device: torch.device, teacher: Any = teacher, classes: Any = classes) -> tuple[Any, float | None]:
            fitted, shown = deepcopy(student).to(device), lambda: images().to(device)
            return fitted, fit_classes(
                fitted, teacher.to(device), shown, classes, lambda name: not name.startswith(frozen)
            )

        fitted, share = _somewhere(fit, _device(student))
        if share is not None:
            student.load_state_dict(fitted.state_dict())
            LOGGER.info(
                f"distillation: the student's class layers had nothing for {some({i: names[i] for i in classes})}, and "
                f"were fitted to the teacher's logits, of which they explain {share:.0%} "
                f"({perf_counter() - begin:.0f} s; kd_init=none leaves them as they are)"
            )
            return


def _known(teacher: Any, names: Mapping[int, str], wanted: Collection[int], args: Any) -> dict[int, int]:
    """Return the teacher's class, the first where there are several, for each of the wanted ones that it knows."""
    matches = match_classes(names, class_names(teacher), args.kd_class_map)
    return {own: other if isinstance(other, int) else other[0] for own, other in matches if own in wanted}


def _device(student: Any) -> torch.device:
    """Return where a fit is computed: at the student, but for GPUs which may have no double precision, as Apple's."""
    device = next(student.parameters()).device
    return device if device.type in {"cpu", "cuda"} else torch.device("cpu")


def _somewhere(fit: Callable[[torch.device], Found], device: torch.device) -> Found:
    """Return what is fitted on a device, or on the CPU where the device has not the memory for it."""
    if device.type != "cpu":
        found = where_it_fits(lambda: fit(device))
        give_back()
        if found is not None:
            return found
        LOGGER.warning(
            f"distillation: {device} has not the memory for the fit of the start, so the CPU computes it, which takes "
            f"longer (kd_init=none leaves it out)"
        )
    return fit(torch.device("cpu"))


def _select(student: Any, teacher: Any, classes: Mapping[int, int], frozen: tuple[str, ...]) -> float:
    """Select the teacher's weights, except for layers whose names begin with one of the given words."""
    kept = {key: value.clone() for key, value in student.state_dict().items() if key.startswith(frozen)}
    share = select_weights(student, teacher, classes)
    student.load_state_dict(kept, strict=False)
    return share


def _mean(explained: Mapping[str, float], layers: set[str]) -> float:
    shares = [share for name, share in explained.items() if name in layers]
    return sum(shares) / max(len(shares), 1)
