"""`yolokd train`: everything that can be checked is, before Ultralytics starts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from yolokd.command.grammar import parse
from yolokd.errors import DONE, HOST_MISTAKES, INTERRUPTED, TERMINATED, UserError


def run_train(words: list[str]) -> int:
    """Train a student, with every Ultralytics train argument and ours."""
    from yolokd import config, trust
    from yolokd.config.defaults import complete

    base = config.merged_base()
    given = parse(words, base)
    overrides = complete(config.check(given))
    with trust.loading(overrides.get(trust.KEY, True)):
        return _look_and_train(overrides, base)


def _look_and_train(overrides: dict[str, Any], base: dict[str, Any]) -> int:
    """Look at all that checked keys name, then train."""
    from ultralytics.cfg import TASK2DATA, get_cfg
    from ultralytics.utils import LOGGER

    from yolokd import config, trust
    from yolokd.config import consistency, inputs
    from yolokd.students.kinds import check_kind
    from yolokd.text import reason
    from yolokd.unlabeled.sources import check_images

    resume = overrides.get("resume")
    if resume:
        _prepare_resume(overrides)
    if overrides.get("model") is None:
        overrides["model"] = "yolo26n.pt"
        LOGGER.warning("'model' argument is missing. Using default 'model=yolo26n.pt'.")
    overrides.pop("mode", None)
    task = overrides.pop("task", None)
    args = folder = None
    if not resume:
        try:
            with config.quiet():
                args = get_cfg(base, dict(overrides))
        except HOST_MISTAKES as error:
            raise UserError(reason(error)) from error
        consistency.validate(vars(args))
    overrides["model"] = inputs.weights("model", overrides["model"], trained=bool(resume))
    if isinstance(overrides.get("pretrained"), str):
        overrides["pretrained"] = inputs.weights("pretrained", overrides["pretrained"])
    _check_teachers(overrides)
    trust.inspect_start(overrides.get("pretrained"))
    model = load_model(overrides["model"], None)  # by itself: a task that is not the model's is refused below
    kind = check_kind(model.model, name=str(overrides["model"]))
    if task not in {None, model.task}:
        raise UserError(
            f"task={task}: model={overrides['model']} is a {model.task} model; leave task out, or give a {task} model"
        )
    if args is not None:
        args.task = model.task
        folder = inputs.run_folder(args)
    if resume and not (model.ckpt and model.ckpt.get("epoch", -1) >= 0 and model.ckpt.get("optimizer") is not None):
        raise UserError(
            f"resume model={overrides['model']}: the file holds no unfinished run (a finished one keeps no optimizer); "
            f"to train on from it, leave resume out"
        )
    if not resume:
        if overrides.get("data") is None:
            overrides["data"] = TASK2DATA[model.task]
            LOGGER.warning(f"'data' argument is missing. Using default 'data={overrides['data']}'.")
        check_images(overrides)  # last, since it may download
    return _train(model, kind, overrides, folder)


def _prepare_resume(overrides: dict[str, Any]) -> None:
    """Read `resume=path` as `resume model=path`, and ask for the checkpoint where none is named."""
    if not isinstance(overrides["resume"], (str, bool)):
        raise UserError(
            f"resume={overrides['resume']} is not valid: it must be the checkpoint of a run, e.g. "
            f"resume=runs/detect/train/weights/last.pt"
        )
    if isinstance(overrides["resume"], str):
        overrides["model"], overrides["resume"] = overrides["resume"], True
    if overrides.get("model") is None:
        raise UserError(
            "resume needs the checkpoint of the run, e.g. yolokd train resume model=runs/detect/train/weights/last.pt"
        )


def _check_teachers(overrides: dict[str, Any]) -> None:
    """Find the teachers' files, and load each once to see that it can teach."""
    from yolokd import config
    from yolokd.config import inputs
    from yolokd.teachers.teacher import load_teacher

    if overrides.get("teacher") is None or not config.methods(overrides.get("method", config.DEFAULTS["method"])):
        return
    found = [inputs.weights("teacher", item) for item in config.teachers(overrides["teacher"])]
    for item in found:
        load_teacher(item)
    overrides["teacher"] = found if isinstance(overrides["teacher"], list) else found[0]


def load_model(path: str, task: str | None) -> Any:
    """Return the student as a model object of the host."""
    from ultralytics import RTDETR, YOLO

    from yolokd import trust
    from yolokd.config.inputs import ARCHITECTURES
    from yolokd.students.kinds import kind_of
    from yolokd.text import reason

    try:
        with trust.loading(what=f"model={path}", file=path):
            if Path(path).suffix in ARCHITECTURES and kind_of(path) == "rtdetr":
                return RTDETR(path)  # the host's own guess stops at RT-DETR's architectures
            return YOLO(path, task=task)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes the loader raise
        raise UserError(f"model={path} cannot be loaded: {reason(error)}") from error


def _train(model: Any, kind: str, overrides: dict[str, Any], folder: Path | None) -> int:
    """Run the training; `folder` is the run folder to come, which is taken away again where nothing was trained."""
    from yolokd.command.signals import Terminated, terminable
    from yolokd.saving.ending import resumable, way_on
    from yolokd.saving.handover import missing_folders
    from yolokd.text import reason
    from yolokd.trainers import TRAINERS

    new = missing_folders(folder) if folder is not None else []
    try:
        with terminable():
            model.train(trainer=TRAINERS[kind], **overrides)
        return DONE
    except KeyboardInterrupt as stop:
        why, code = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        ways = ""
        if not resumable(model.trainer):
            _discard(folder, new)
            ways = "; the same command goes on where the teacher's run stopped" * bool(overrides.get("teacher_epochs"))
        print(f"\n{way_on(model.trainer, why)}{ways}", file=sys.stderr)
        return code
    except HOST_MISTAKES as error:
        if hasattr(model.trainer, "train_time_start"):  # the first epoch had begun: no longer about arguments
            _tell_way_on(model.trainer, error)
            raise
        _discard(folder, new)
        if isinstance(error, UserError):
            raise
        raise UserError(reason(error, lines=2)) from error
    except Exception as error:
        _tell_way_on(model.trainer, error)
        raise


def _tell_way_on(trainer: Any, error: Exception) -> None:
    """Say how a run that failed can go on, where an epoch of it was saved."""
    from yolokd.saving.ending import resumable, way_on

    if resumable(trainer) and not getattr(trainer, "complete", False):
        smaller = " batch=N, smaller than before" * ("out of memory" in str(error).lower())
        print(f"{way_on(trainer, 'the epochs that are saved stay')}{smaller}", file=sys.stderr)


def _discard(folder: Path | None, new: list[Path]) -> None:
    """Take a new run folder away again where it holds no weights, with the folders made for it."""
    from yolokd.saving.handover import remove_empty

    if new and folder is not None and not any(folder.rglob("*.pt")):
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(new)
