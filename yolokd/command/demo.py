"""The demo on drawn images: a teacher, a student alone and the same student distilled, in one table and picture."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolokd.drawn.places import TEACHER, free_folder, write_student
from yolokd.errors import UserError

RECIPE: dict[
    str, Any
] = {  # Ultralytics' arguments for all three: many steps, as the runs are short and start from nothing
    "optimizer": "AdamW",
    "lr0": 0.002,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "scale": 0.2,
    "pretrained": False,
    "val": False,
    "plots": False,
    "verbose": False,
    "amp": False,
    "workers": 0,
    "exist_ok": True,
}


@dataclass(frozen=True)
class Arm:
    """One trained model of the demo.

    Attributes:
        name (str): What it is called in table and picture.
        weights (Path): Its checkpoint.
        parameters (int): Number of its parameters.
        epochs (int): Epochs that it was trained for.
        seconds (float): Time of its training, without the teacher's for the distilled one.
        evaluation (Any): Its `yolokd.evaluation.coco.Evaluation` on the validation images.
    """

    name: str
    weights: Path
    parameters: int
    epochs: int
    seconds: float
    evaluation: Any


def run_demo(
    out: str = "runs/demo",
    seed: int = 0,
    method: str = "bckd",
    epochs: int = 20,
    teacher_epochs: int = 30,
    images: int = 800,
    imgsz: int = 96,
    batch: int = 16,
    classes: int = 12,
    device: str = "",
) -> int:
    """Draw a dataset, train teacher, student and distilled student, export the last one, and compare the three.

    The teacher is a yolov8n, the student a yolov8n of half its width, all from random weights; nothing is downloaded.
    The two students differ in nothing but the distillation: same images, epochs, seed and order of batches. To that
    belongs where they start: the distilled one from weights fitted to its teacher (`kd_init`). A second call with the
    same arguments takes over the teacher and the student alone, so that methods can be tried one by one.

    Args:
        out (str): Folder of all files.
        seed (int): Seed of drawing and training.
        method (str): Distillation method, names joined by +.
        epochs (int): Epochs of both students.
        teacher_epochs (int): Epochs of the teacher.
        images (int): Training images; there are a quarter as many validation images.
        imgsz (int): Side of the images in pixels.
        batch (int): Images per batch.
        classes (int): Number of classes.
        device (str): Device as Ultralytics names it; by default its own choice.

    Returns:
        (int): 0, also where the distilled student is not better; 1 where the exported file differs from its weights.

    Raises:
        UserError: If a value is out of range, or the folder holds other files in the demo's places.
    """
    from yolokd import config
    from yolokd.config import consistency
    from yolokd.drawn.drawing import Drawing
    from yolokd.drawn.picture import draw_picture
    from yolokd.drawn.shapes import draw_dataset
    from yolokd.evaluation.coco import bootstrap
    from yolokd.evaluation.evaluate import coco_ground_truth
    from yolokd.export import export_and_check

    start = time.perf_counter()
    if not (config.terms(config.check({"method": method})["method"]) or method == "fit"):
        raise UserError(f"method={method} is not one of yolokd's, e.g. method=dfmsd+pcd")
    for key, value in {"epochs": epochs, "teacher_epochs": teacher_epochs, "images": images, "batch": batch}.items():
        if value < 1:
            raise UserError(f"{key}={value} must be at least 1")
    folder = free_folder(out)
    consistency.check_device(device)
    counts = (images, max(images // 4, 1))
    Drawing(images=counts, imgsz=imgsz, classes=classes)  # so that wrong values are named before anything is printed
    with _phase(f"draw {counts[0]} training and {counts[1]} validation images of {imgsz} pixels, {classes} classes"):
        name = f"shapes_{imgsz}px_{classes}classes_{images}images_seed{seed}"
        data = draw_dataset(folder / name, counts, imgsz=imgsz, seed=seed, classes=classes, noise=0.5)
    truth = coco_ground_truth(data)
    student = write_student(folder, classes)
    settings = {"data": str(data), "imgsz": imgsz, "batch": batch, "nbs": batch, "seed": seed, "project": str(folder)}
    settings.update(RECIPE, **({"device": device} if device else {}))
    teacher = _train(
        "teacher", f"{TEACHER}.yaml", {**settings, "name": "teacher", "epochs": teacher_epochs}, truth, keep=True
    )
    alone = _train("student alone", student, {**settings, "name": "alone", "epochs": epochs}, truth, keep=True)
    distillation = {"name": "distilled", "epochs": epochs, "teacher": str(teacher.weights), "method": method}
    distilled = _train("student distilled", student, {**settings, **distillation}, truth)
    with _phase("export the distilled student to ONNX and compare"):
        path, parity = export_and_check(distilled.weights, {"format": "onnx", "imgsz": imgsz})
    assert parity is not None
    arms = [teacher, alone, distilled]
    difference = bootstrap(distilled.evaluation, alone.evaluation)
    picture = draw_picture(folder / "demo.png", truth, arms)
    print(f"\n{table(arms)}\n\n{verdict(arms, difference, method)}\n\n{parity.summary()}")
    print(f"picture: {_short(picture)}\nONNX: {_short(path)}\ntotal time: {_clock(time.perf_counter() - start)}")
    record = {"method": method, "difference": vars(difference), "parity_ok": parity.ok}
    record["arms"] = {arm.name: {**arm.evaluation.to_dict(), "seconds": arm.seconds} for arm in arms}
    (folder / "demo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if parity.ok else 1


def table(arms: Sequence[Arm]) -> str:
    """Return the table of the results, one row per model."""
    rows = [("", "AP", "AP50", "parameters", "epochs", "training", "weights")]
    for arm in arms:
        rows.append(
            (
                arm.name,
                f"{100 * arm.evaluation.ap:.1f}",
                f"{100 * arm.evaluation.ap50:.1f}",
                f"{arm.parameters / 1e6:.2f} M",
                str(arm.epochs),
                _clock(arm.seconds),
                _short(arm.weights),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def verdict(arms: Sequence[Arm], difference: Any, method: str) -> str:
    """Return in words whether the distilled student is better, and how sure that is.

    Args:
        arms (Sequence[Arm]): Teacher, student alone and distilled student.
        difference (Bootstrap): AP of the distilled student minus that of the student alone.
        method (str): Name of the method.
    """
    teacher, alone, distilled = (100 * arm.evaluation.ap for arm in arms)
    gain, low, high = distilled - alone, 100 * difference.low, 100 * difference.high
    interval = f"95 % interval over the validation images: {low:+.1f} to {high:+.1f}"
    if low > 0:
        text = f"With {method} the student is better than alone by {gain:.1f} AP ({interval})"
        if teacher > alone and gain >= teacher - alone:
            text += f",\nand than its teacher by {gain - teacher + alone:.1f}"
        elif teacher > alone:
            text += (
                f",\nwhich is {100 * gain / (teacher - alone):.0f} % of the way from the student alone to the teacher"
            )
    elif high < 0:
        text = (
            f"With {method} the student is WORSE than alone by {-gain:.1f} AP ({interval}): distillation did harm here"
        )
    else:
        text = f"With {method} the student is not clearly better than alone: {gain:+.1f} AP ({interval})"
    return (
        f"{text}.\nIt starts from weights fitted to its teacher's (kd_init), the one alone from random ones.\n"
        "This is one run with one seed; another seed gives other numbers, try seed=1."
    )


def _train(name: str, model: str, settings: Mapping[str, Any], truth: Mapping[str, Any], keep: bool = False) -> Arm:
    """Train one model, or take over a finished one of the same settings, and evaluate it.

    Args:
        name (str): What the model is called.
        model (str): Model file.
        settings (Mapping[str, Any]): Arguments of the training; with `method` among them it is distilled.
        truth (Mapping[str, Any]): COCO ground truth of the validation images.
        keep (bool): Whether a finished run is taken over.
    """
    import torch
    import ultralytics

    import yolokd
    from yolokd.evaluation.evaluate import evaluate
    from yolokd.trainers import DistillationTrainer
    from yolokd.trust import open_model

    folder = Path(settings["project"]) / settings["name"]
    weights, record = folder / "weights" / "best.pt", folder / "demo.json"
    versions = [yolokd.__version__, ultralytics.__version__, torch.__version__]
    wanted = json.loads(json.dumps({"model": Path(model).name, "versions": versions, **settings}))
    done = json.loads(record.read_text(encoding="utf-8")) if keep and record.is_file() and weights.is_file() else {}
    taken = done.get("settings") == wanted
    record.unlink(missing_ok=True)  # until this run is done too
    with _phase(f"{name}, {'taken over' if taken else _count(settings['epochs'], 'epoch')}") as dot:
        seconds = done["seconds"] if taken else 0.0
        if not taken:
            start = time.perf_counter()
            student = open_model(model)
            student.add_callback("on_train_epoch_end", lambda trainer: dot(trainer.epoch + 1, trainer.epochs))
            student.train(**({"trainer": DistillationTrainer} if "method" in settings else {}), **settings)
            seconds = time.perf_counter() - start
        network: Any = open_model(weights).model
        parameters = sum(parameter.numel() for parameter in network.parameters())
        evaluation = evaluate(
            weights, settings["data"], imgsz=settings["imgsz"], ground_truth=truth, device=settings.get("device")
        )
        print(f" AP {100 * (evaluation.ap or 0):.1f}", end="")
    record.write_text(json.dumps({"settings": wanted, "seconds": seconds}, indent=2) + "\n", encoding="utf-8")
    return Arm(name, weights, parameters, int(settings["epochs"]), seconds, evaluation)


@contextmanager
def _phase(text: str) -> Iterator[Callable[[int, int], None]]:
    """Print one line for what happens within: its name, a dot for each tenth, and the time; the host keeps silent."""
    from ultralytics.utils import LOGGER

    def dot(done: int, total: int) -> None:
        tenths = 10 * done // total - 10 * (done - 1) // total
        print("." * tenths, end="", flush=True)

    print(f"{text} ", end="", flush=True)
    start, level = time.perf_counter(), LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield dot
    finally:
        LOGGER.setLevel(level)
        print(f" ({_clock(time.perf_counter() - start)})", flush=True)


def _clock(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _short(path: Path) -> str:
    """Return a path relative to the working directory where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _count(number: int, word: str) -> str:
    """Return a number with its word."""
    return f"{number} {word}{'s' * (number != 1)}"
