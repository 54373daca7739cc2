"""Fine-tuning a teacher on the user's data first, as an ordinary Ultralytics run beside the student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, YAML
from ultralytics.utils.checks import check_model_file_from_stem

from yolokd.errors import UserError
from yolokd.students.kinds import SAID, kind_of
from yolokd.trust import inspect_file, loading

SHARED = (
    "data", "imgsz", "batch", "device", "workers", "seed", "amp", "cache", "rect", "fraction", "single_cls", "classes",
)  # fmt: skip


def fine_tune(teacher: str, args: Any, folder: Path) -> Path:
    """Return the best weights of the teacher after `teacher_epochs` on the run's data.

    A finished run with the same settings is reused, an interrupted one is resumed.

    Args:
        teacher (str): Weights to start from.
        args (SimpleNamespace): The student run's arguments; data, image size, batch and device are shared.
        folder (Path): Where the student's run folder lies; the teacher's run goes beside it.

    Returns:
        (Path): The teacher's best.pt.

    Raises:
        UserError: If the teacher's task needs other labels than the data has.
    """
    weights = check_model_file_from_stem(teacher)
    _check_labels(str(weights), str(args.task))
    name = f"{Path(str(weights)).stem}-on-{Path(str(args.data)).stem}-{args.imgsz}-{args.teacher_epochs}e"
    wanted = {"model": str(weights), "epochs": args.teacher_epochs, **{k: getattr(args, k) for k in SHARED}}
    if Path(str(args.data)).exists():  # another folder's file of the same name is not the same data
        wanted["data"] = str(Path(str(args.data)).resolve())
    same = ("model", "epochs", "data", "imgsz", "fraction", "single_cls", "classes")
    number, run = 1, folder / name
    while (run / "args.yaml").exists() and any(
        str(YAML.load(run / "args.yaml").get(key)) != str(wanted[key]) for key in same
    ):
        number += 1
        run = folder / f"{name}-{number}"
    best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
    if last.exists() and not is_zipfile(last):  # the host writes in place, so a kill can cut it off
        LOGGER.warning(f"teacher_epochs={args.teacher_epochs}: {last} is cut off; the teacher's run starts anew")
    elif last.exists():
        with loading(what=str(last), file=last):
            epoch = load_checkpoint(last)[1].get("epoch", -1)
        if epoch == -1 and best.exists():
            LOGGER.info(f"teacher_epochs={args.teacher_epochs}: reusing the fine-tuned teacher {best}")
            return best
        if epoch >= 0:
            LOGGER.info(f"teacher_epochs={args.teacher_epochs}: resuming the teacher's run {run}")
            if best.exists():  # the host opens it at the end, without restriction since it is the run's own
                inspect_file(str(best), best)
            model = YOLO(last)
            model.add_callback("on_pretrain_routine_start", lambda trainer: _remember(trainer, str(weights)))
            model.train(resume=True)
            return best
    LOGGER.info(f"teacher_epochs={args.teacher_epochs}: fine-tuning the teacher on {args.data} in {run}")
    with loading(what=f"teacher={teacher}", file=str(weights)):
        model = YOLO(weights)
    model.train(project=str(folder), name=run.name, exist_ok=True, plots=False, **{**wanted, "model": weights})
    return best


def _check_labels(weights: str, task: str) -> None:
    """Refuse a teacher whose task needs other labels than the data has, which are those of the student's task."""
    kind = kind_of(weights)
    if kind == task or (kind in {"detect", "rtdetr", "open"} and task in {"detect", "segment", "obb"}):
        return  # polygons and corners have their boxes, which the host reads; keypoints it would take for polygons
    raise UserError(
        f"teacher_epochs= would train teacher={weights}, {SAID.get(kind, f'a {kind} model')}, on labels for {task}, "
        f"which it cannot read; give a {task} teacher, or one that is trained already with teacher_epochs=0"
    )


def _remember(trainer: Any, weights: str) -> None:
    """Keep the weights that a resumed run began with in its args.yaml, where the host writes last.pt."""
    path = Path(trainer.save_dir) / "args.yaml"
    YAML.save(path, {**YAML.load(path), "model": weights})
