"""Looking at a run before it starts: what cannot work is refused, what is unwise is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.utils._pytree import tree_flatten
from ultralytics.nn.tasks import DetectionModel, OBBModel
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.classes import data_classes, learned_names, match_classes
from yolokd.costs.moment import average, set_acting
from yolokd.costs.timing import in_turn, precision, ratio
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.evaluation.quick import quick_ap50
from yolokd.memory import where_it_fits
from yolokd.rng import preserved_rng
from yolokd.students.query_task import QueryTask
from yolokd.teachers.teacher import Teacher

PREFIX = colorstr("preflight: ")
QUICK_BATCHES = 4
SPARE = 0.5  # seconds for more rounds of short steps
FEW_STEPS = 100  # by then students that a fit had set back were ahead (docs/start.md)


def check_teachers(model: nn.Module, teachers: Sequence[Teacher], names: Mapping[int, str], args: Any) -> None:
    """Check what is known before any data is read.

    Args:
        model (nn.Module): The student.
        teachers (Sequence[Teacher]): The teachers, not yet prepared.
        names (Mapping[int, str]): The data's class names.
        args (SimpleNamespace): The run's arguments.

    Raises:
        UserError: If a teacher was never trained.
    """
    student = sum(p.numel() for p in model.parameters())
    for position, teacher in enumerate(teachers):
        label = _label(position, teachers)
        if teacher.untrained:
            which = f"teacher={args.teacher}" + (f": {label}" if len(teachers) > 1 else "")
            raise UserError(
                f"{which} was never trained (its batch normalisation holds initial values). Give trained weights, add "
                f"teacher_epochs=20 to train it on the data first, or kd_preflight=False to go on anyway"
            )
        if teacher.parameters < student:
            LOGGER.warning(
                f"{PREFIX}{label} ({teacher.parameters / 1e6:.1f} M parameters) is smaller than the student "
                f"({student / 1e6:.1f} M); a larger one usually teaches more"
            )
        matched = match_classes(names, teacher.names, args.kd_class_map)
        if not matched:
            LOGGER.warning(
                f"{PREFIX}{label} knows none of the data's classes by name; its feature maps are of another task. "
                f"teacher_epochs=20 would fine-tune it on the data first"
            )
        else:
            LOGGER.info(f"{PREFIX}{label} knows {len(matched)} of the data's {len(names)} classes")


def _label(position: int, teachers: Sequence[Any]) -> str:
    return "teacher" if len(teachers) == 1 else f"teacher {position + 1}"


def check_run(trainer: Any, teacher_models: Sequence[Any], given: Mapping[str, torch.Tensor] | None = None) -> bool:
    """Compare teacher and student on a few validation batches and estimate the cost of a step.

    Generators are left as they were found, and so is the student.

    Args:
        trainer (DistillationTrainer): A trainer that is set up.
        teacher_models (Sequence[nn.Module]): The teachers, not fused.
        given (Mapping[str, torch.Tensor] | None): The student's own weights where fitted ones have replaced them.

    Returns:
        (bool): Whether the student should keep its own weights: it is better with them than every teacher, or better
            than with the fitted ones in a run of few steps.
    """
    with preserved_rng(seed=0):
        batches = _first_batches(trainer)
        if not any(len(batch["cls"]) for batch in batches):
            LOGGER.warning(f"{PREFIX}no labelled validation images at hand; the teacher was not compared")
            return False
        keep = _compare(trainer, teacher_models, batches, given)
        if trainer.world_size <= 1:  # methods may wait for the other processes, which are not here
            _tell_cost(trainer, _batch(trainer, 0, trainer.batch_size))
    return keep


def _compare(
    trainer: Any, teacher_models: Sequence[Any], batches: Sequence[Any], given: Mapping[str, torch.Tensor] | None
) -> bool:
    """Say how teachers and student do on some batches, and return whether the student should keep its own weights."""
    names = trainer.data["names"]
    learned = learned_names(names, trainer.args.classes)

    def ap50(model: Any, classes: Mapping[int, int], sight: Any = lambda images: images) -> float:
        seen = (_on_device(trainer, batch) for batch in batches)
        found = ({**batch, "img": sight(batch["img"])} for batch in seen)
        kept = {own: data for own, data in classes.items() if data in learned}
        return quick_ap50(model.to(trainer.device), found, kept)

    def before() -> float:
        model = deepcopy(trainer.ema.ema)
        model.load_state_dict(given)
        return ap50(model, {i: i for i in names})

    student = where_it_fits(partial(ap50, trainer.ema.ema, {i: i for i in names}))
    fitted = trainer._random_start or trainer.args.kd_init == "teacher"
    own: float | None = 0.0 if fitted else student  # what the teacher has given is no reason to doubt it
    if given is not None and student is not None:
        own = where_it_fits(before)
    if student is None or own is None:
        LOGGER.warning(f"{PREFIX}nothing was compared: not enough memory to look at validation images")
        return False
    others: list[float] = []
    unknown = False
    for position, model in enumerate(teacher_models):
        teacher = trainer.criterion.links[position].teacher
        known = data_classes(match_classes(names, teacher.names, trainer.args.kd_class_map))
        if not known or teacher.unprompted:
            continue
        label = _label(position, teacher_models)
        found = where_it_fits(partial(ap50, model, known, teacher.sight))
        model.cpu()  # room for the next one
        if found is None:
            LOGGER.warning(f"{PREFIX}{label} was not compared: not enough memory for it beside the student")
            unknown = True
            continue
        text = f"{PREFIX}AP50 on {sum(len(b['img']) for b in batches)} validation images: {label} {found:.3f}, "
        LOGGER.info(f"{text}student at the start {student:.3f}{f', with its own weights {own:.3f}' * bool(given)}")
        if found <= own:
            LOGGER.warning(f"{PREFIX}{label} is not better than the student; distillation can hardly help")
        others.append(found)
    steps, why = len(trainer.train_loader) * trainer.epochs, ""
    if given is not None and others and max(others) <= own and not unknown:
        why = "no teacher is better"
    elif given is not None and student < own and steps < FEW_STEPS:
        why = f"fitted ones begin lower, and {steps} steps are few to make up for that"
    if why:
        rows = ", with class layers fitted to the teacher where they had nothing" * bool(trainer._new_classes)
        LOGGER.info(f"{PREFIX}the student keeps its own weights{rows}: {why} (kd_init=teacher takes the fitted ones)")
    return bool(why)


def settle_start(trainer: Any, given: Mapping[str, torch.Tensor] | None, keep: bool) -> bool:
    """Put the student's own weights back where the look at the run asked for it, in all processes.

    Args:
        trainer (DistillationTrainer): A trainer that is set up.
        given (Mapping[str, torch.Tensor] | None): The student's own weights.
        keep (bool): What `check_run` returned in the first process; others are told.

    Returns:
        (bool): Whether they were put back.
    """
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    decision = [keep]
    if together:
        dist.broadcast_object_list(decision, 0)
    if not decision[0]:
        return False
    student = unwrap_model(trainer.model)
    if given is not None:
        student.load_state_dict(given, strict=False)  # the criterion is not among them
    if together:
        for name, value in student.state_dict().items():
            if not name.startswith("criterion."):
                dist.broadcast(value, 0)
    if trainer.ema:
        now = student.state_dict()
        trainer.ema.ema.load_state_dict({key: now[key] for key in trainer.ema.ema.state_dict()})
    return True


def _first_batches(trainer: Any) -> list[dict[str, Any]]:
    """Return the first validation batches, halved, as the dataset gives them.

    They are read past the loader, whose iterator would go on from where it was left.
    """
    size = trainer.test_loader.batch_size
    count = min(len(trainer.test_loader.dataset), QUICK_BATCHES * size)
    ends = [*range(0, count, size), count]  # of the loader's own, which have one shape with rect=True
    cuts = sorted({*ends, *((first + last + 1) // 2 for first, last in zip(ends, ends[1:]))})
    return [_batch(trainer, first, last - first) for first, last in zip(cuts, cuts[1:])]


def _batch(trainer: Any, start: int, size: int) -> dict[str, Any]:
    """Return a batch of validation images as the dataset gives it."""
    dataset = trainer.test_loader.dataset
    batch: dict[str, Any] = dataset.collate_fn([dataset[i] for i in range(start, min(start + size, len(dataset)))])
    return batch


def _on_device(trainer: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch as the host preprocesses it."""
    moved = {k: v.to(trainer.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    return {**moved, "img": moved["img"].float() / 255}


def _tell_cost(trainer: Any, batch: dict[str, Any]) -> None:
    """Say what a step costs, where there is memory enough for a second student beside the first."""
    taken = where_it_fits(lambda: _cost(trainer, _on_device(trainer, batch)))
    if taken is None:
        LOGGER.warning(f"{PREFIX}the cost of a step was not measured: not enough memory for a copy of the student")
        return
    times, every = _times(taken, "distilled"), trainer.criterion.every
    text = f"{PREFIX}a step that distils takes about {times:.1f} times as long as in plain training"
    if every > 1:
        mean = average(times, _times(taken, "left out"), every)
        text += f", one on average with kd_every={every} about {mean:.1f} times"
    LOGGER.info(text)


def _times(taken: Mapping[str, list[float]], name: str) -> float:
    """Return how long a step takes in plain ones; it holds a plain step, so that less than 1 is other work's doing."""
    return max(ratio(taken, name, "plain"), 1.0)


def _cost(trainer: Any, batch: dict[str, Any]) -> dict[str, list[float]]:
    """Return the seconds of training steps by kind, taken on a copy of the student."""
    model: Any = deepcopy(unwrap_model(trainer.model)).train()
    distilled = model.criterion
    set_acting(distilled, trainer.epochs, trainer.args.close_mosaic)
    first = distilled.clock.step
    distilled.calibration = None  # measuring takes time in a few steps only

    def step(criterion: Any, later: int = 0) -> None:
        del model.criterion
        model.criterion = criterion
        distilled.clock.step = first + later
        with precision(trainer):
            loss = model(batch)[0].sum()
        loss.backward()

    arms = {"plain": partial(step, distilled.task.base), "distilled": partial(step, distilled)}
    if distilled.every > 1:
        arms["left out"] = partial(step, distilled, 1)
    return in_turn(arms, trainer.device, rounds=1, warmup=1, spare=SPARE)


class Beside(nn.Module):
    """A student and its distillation in one forward, for profiling memory."""

    def __init__(self, student: nn.Module, criterion: DistillationLoss, epochs: int = 100, close_mosaic: int = 0):
        """Join a student and a copy of its criterion, set to a step that distils.

        Args:
            student (nn.Module): The student.
            criterion (DistillationLoss): Its criterion, whose teachers are shared.
            epochs (int): Epochs of the run.
            close_mosaic (int): Number of last epochs without mosaic.
        """
        super().__init__()
        self.student, self.stride, self.names, self.yaml = student, student.stride, student.names, student.yaml
        self.criterion = deepcopy(criterion)
        self.criterion.calibration = None
        self.criterion.shares = [dict.fromkeys(units, 1.0) for units in criterion.shares]
        set_acting(self.criterion, epochs, close_mosaic)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the student's output and the losses as a list of tensors, which the host sums up and goes back from.

        There is one object in each image where boxes are all that the student learns.

        What a criterion of other students reads of its labels differs; it has none to read. RT-DETR computes its own
        within the student, so the teachers' output alone is held beside it.
        """
        if isinstance(self.criterion.task, QueryTask):
            held = [link.teacher(images) for link in self.criterion.links]
            output = self.student(images)
            del held
            return _tensors(output)
        output, count = self.student(images), len(images) if type(self.student) is DetectionModel else 0
        batch = {"img": images, "batch_idx": torch.arange(count), "cls": torch.zeros(count, 1)}
        batch["bboxes"] = torch.full((count, 5 if isinstance(self.student, OBBModel) else 4), 0.5)
        loss, _ = self.criterion(output, {key: value.to(images.device) for key, value in batch.items()})
        return [*_tensors(output), loss]


def _tensors(output: Any) -> list[torch.Tensor]:
    """Return all tensors of a model's output, however nested."""
    return [part for part in tree_flatten(output)[0] if isinstance(part, torch.Tensor)]
