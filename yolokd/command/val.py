"""`yolokd val` with `teacher=` or `baseline=`: several models side by side with the COCO numbers of one split."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolokd.errors import DONE, HOST_MISTAKES, UserError
from yolokd.results import METRICS
from yolokd.results.table import Table
from yolokd.text import aligned

LOGGER = logging.getLogger("ultralytics")
MODELS = ("model", "teacher", "baseline")


def side_by_side(
    models: Mapping[str, str | Path], data: str | Path, split: str = "val", imgsz: int = 640, **settings: Any
) -> Table:
    """Evaluate models on a split with pycocotools, on the original images.

    Args:
        models (Mapping[str, str | Path]): Weights by the name they get in the table.
        data (str | Path): Dataset yaml.
        split (str): Split of the yaml.
        imgsz (int): Longer side of the images that the networks see.
        **settings (Any): Further arguments of Ultralytics' validation, e.g. `batch`, `device`, `conf` or `iou`, and
            those of the run that the teacher sees its images by: `teacher_imgsz`, `teacher_channels`, `kd_class_map`.

    Returns:
        (Table): One row per model: its COCO numbers, the AP by Ultralytics, and the AP of each class as `AP CLASS`;
            None for a model that knows none of the data's classes, which is said.

    Raises:
        UserError: If the split is missing, a model does not fit the data, or none knows a class of it.
    """
    from yolokd.evaluation.asteacher import KEYS, as_teacher
    from yolokd.evaluation.evaluate import NoCommonClass, check_labels, coco_ground_truth, evaluate

    single, classes = bool(settings.pop("single_cls", False)), settings.pop("classes", None)
    truth = coco_ground_truth(data, split, single, classes)
    check_labels(len(truth["annotations"]), data, split)
    rows: list[dict[str, Any]] = []
    unknown: list[str] = []
    own = as_teacher({key: settings.pop(key, None) for key in KEYS}, imgsz)
    for name, weights in models.items():
        way = own if name == "teacher" else {"imgsz": imgsz}
        try:
            found = evaluate(weights, data, split, ground_truth=truth, **way, **settings).to_dict()
        except NoCommonClass as error:
            unknown.append(f"{name}={weights}: {error}")
            rows.append({"name": name, "weights": str(weights)})
            continue
        except UserError as error:
            raise UserError(f"{name}={weights}: {error}") from error
        by_class = {f"AP {label}": value for label, value in found["per_class"].items()}
        numbers = {key: found[key] for key in METRICS}
        rows.append({"name": name, "weights": str(weights), **numbers, "host_ap": found["host_ap"], **by_class})
    if len(unknown) == len(rows):
        raise UserError(unknown[0])
    for text in unknown:
        LOGGER.warning(text)
    return Table(rows, next(list(row) for row in rows if len(row) > 2))


def run_words(words: list[str]) -> int:
    """Run `yolokd val model= teacher= baseline= data= [split=] ...` and return the exit code.

    Args:
        words (list[str]): Words after the mode.

    Raises:
        UserError: If something asked for cannot be done.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    from yolokd import datasets, trust
    from yolokd.command.grammar import parse
    from yolokd.config import inputs, unknown_key
    from yolokd.config.consistency import check_device
    from yolokd.evaluation.asteacher import KEYS
    from yolokd.text import reason

    known = {**DEFAULT_CFG_DICT, "teacher": None, "baseline": None, trust.KEY: True, **dict.fromkeys(KEYS)}
    given = parse(words, known)
    for key in ("mode", "task"):
        given.pop(key, None)
    for key in given:
        if key not in known:
            raise UserError(unknown_key(key, known))
    for key in KEYS:
        if given.get(key) is not None and given.get("teacher") is None:
            raise UserError(f"{key}= says how the teacher sees the images; give teacher= too, or leave {key}= out")
    for key in ("model", "data"):
        if given.get(key) is None:
            raise UserError(f"val with teacher= or baseline= needs {key}=, e.g. {key}={EXAMPLES[key]}")
    safe = trust.take(given)
    check_device(given.get("device"))
    named = {key: given.pop(key, None) for key in MODELS}
    models = {key: inputs.weights(key, value) for key, value in named.items() if value is not None}
    data, split, imgsz = given.pop("data"), given.pop("split", "val"), given.pop("imgsz", None)
    datasets.dataset(data, train=False)
    try:
        with trust.loading(safe):
            imgsz = trained_size(models["model"]) if imgsz is None else imgsz
            table = side_by_side(models, data, split, imgsz, **given)
    except UserError:
        raise
    except HOST_MISTAKES as error:
        raise UserError(reason(error, lines=2)) from error
    own = f", the teacher's {given['teacher_imgsz']}" if given.get("teacher_imgsz") else ""
    print(f"{show(table)}\nimages: {imgsz} pixels{own}")
    return DONE


def trained_size(weights: str | Path) -> int:
    """Return the image size that a checkpoint was trained at, which the host validates at too; 640 if it says none."""
    from ultralytics.nn.tasks import load_checkpoint

    said = load_checkpoint(weights)[1].get("train_args") if Path(weights).suffix == ".pt" else None
    return int((said or {}).get("imgsz") or 640)


EXAMPLES = {"model": "runs/detect/train/weights/best.pt", "data": "path/to/mine.yaml"}


def show(table: Table) -> str:
    """Return models as columns and numbers times 100 as rows, which stays legible with many classes."""
    keys = [column for column in table.columns if column not in {"name", "weights"}]
    cells = [["" if row[key] is None else f"{100 * row[key]:.2f}" for row in table] for key in keys]
    labels = ["AP by Ultralytics" if key == "host_ap" else key for key in keys]
    lines = aligned([["x 100", *table["name"]], *([label, *row] for label, row in zip(labels, cells))])
    weights = "\n".join(f"{row['name']}: {row['weights']}" for row in table)
    return f"{lines}\n\n{weights}"
