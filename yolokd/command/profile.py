"""`yolokd profile`: its words looked at first, and data drawn where none is named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from yolokd import config
from yolokd.errors import DONE, HOST_MISTAKES, UserError
from yolokd.trust import KEY, loading


def run_words(words: list[str]) -> int:
    """Run `yolokd profile` with its words and return the exit code."""
    from yolokd import datasets
    from yolokd.command.grammar import parse
    from yolokd.config import inputs
    from yolokd.costs import profiling
    from yolokd.students.kinds import kind_of
    from yolokd.teachers.teacher import load_teacher
    from yolokd.text import reason

    base = config.merged_base()
    given = config.check(parse(words, base))
    for key in ("model", "teacher"):
        if given.get(key) is None:
            raise UserError(f"profile needs {key}=, e.g. yolokd profile model=yolov8n.pt teacher=yolov8s.pt")
    given.pop("mode", None)
    given["model"] = inputs.weights("model", given["model"], trained=False)
    found = [inputs.weights("teacher", item) for item in config.teachers(given["teacher"])]
    given["teacher"] = found if isinstance(given["teacher"], list) else found[0]
    if not config.terms(given.get("method", config.DEFAULTS["method"])):
        raise UserError(
            f"method={given['method']} has no steps of its own; plain training and the built-in are always measured, "
            f"so name another, e.g. method=dfmsd"
        )
    with tempfile.TemporaryDirectory(prefix="yolokd-profile-data-") as folder, loading(given.get(KEY, True)):
        for item in found:
            load_teacher(item)
        if given.get("data") is None:
            if (kind := kind_of(given["model"])) not in {"detect", "rtdetr"}:
                raise UserError(
                    f"profile draws boxes where no data= is given, and model={given['model']} is made for "
                    f"{kind}, which learns more; name some, e.g. data=mine.yaml"
                )
            given["data"] = str(drawn(Path(folder), found[0], int(given.get("imgsz") or 640), given.get("batch")))
        datasets.dataset(given["data"])
        try:
            with config.quiet():
                result = profiling.profile(given)
        except UserError:
            raise
        except HOST_MISTAKES as error:
            raise UserError(reason(error, lines=2)) from error
    print(profiling.text(result))
    return DONE


def drawn(folder: Path, teacher: str, imgsz: int, batch: Any) -> Path:
    """Draw a small dataset under the names of a teacher's classes, for timing alone, and return its YAML."""
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils import YAML

    from yolokd.drawn.shapes import draw_dataset

    with loading(what=f"teacher={teacher}", file=teacher):
        names = {int(index): str(name) for index, name in load_checkpoint(teacher)[0].names.items()}
    count = max(int(batch), 1) if isinstance(batch, (int, float)) and batch >= 1 else 16
    path = draw_dataset(folder / "drawn", images=(count, 2), imgsz=imgsz, classes=min(len(names), 12))
    YAML.save(path, {**YAML.load(path), "names": names, "nc": len(names)})
    return path
