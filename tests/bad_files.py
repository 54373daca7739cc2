"""Good and bad files for the tests of bad input: weights, images, labels, datasets, recipes, run folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from tests.tiny import NAMES, save_model, tiny_model

SIDE = 64
OBJECT = "0 0.5 0.5 0.4 0.4\n"  # a label file's line: class, centre, extent


def picture(path: Path, seed: int = 0) -> Path:
    """Write a small image of noise with a square in its middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    image[20:44, 20:44] = (30, 200, 60)
    ok, buffer = cv2.imencode(".png", image)  # cv2.imwrite knows no unicode on some systems
    assert ok
    path.write_bytes(buffer.tobytes())
    return path


def dataset(
    root: Path,
    train: Iterable[str | None] = (OBJECT, "1 0.4 0.5 0.3 0.3\n"),
    val: Iterable[str | None] = (OBJECT,),
    touch: Callable[[Path], None] | None = None,
    **changes: Any,
) -> Path:
    """Write a dataset and return its description.

    Args:
        root (Path): Its folder.
        train (Iterable[str | None]): Text of the label file of each training image; None for an image without one.
        val (Iterable[str | None]): The same of the validation images.
        touch (Callable | None): What to do to the folder in the end.
        **changes (Any): Lines of the description that are otherwise, see `describe`.
    """
    for split, texts in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(texts):
            picture(root / "images" / split / f"{number}.png", seed=number)
            if text is not None:
                label = root / "labels" / split / f"{number}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(text, encoding="utf-8")
    path = describe(root, "data.yaml", **changes)
    if touch is not None:
        touch(root)
    return path


def describe(root: Path, name: str, **changes: Any) -> Path:
    """Write the description of the dataset in a folder; `...` leaves a line out."""
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    kept = {key: value for key, value in {**content, **changes}.items() if value is not ...}
    (root / name).write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
    return root / name


def spoil(*names: str, content: bytes = b"\x89PNG no image") -> Callable[[Path], None]:
    """Return what replaces images of a dataset by other bytes."""

    def run(root: Path) -> None:
        for name in names:
            for path in root.glob(f"images/{name}"):
                path.write_bytes(content)

    return run


def bad_datasets(root: Path) -> None:
    """Write datasets that cannot be used, and descriptions that are none, into a folder."""
    dataset(root / "nothing", train=(), val=(OBJECT,))
    dataset(root / "noval", val=())
    dataset(root / "unlabelled", train=(None, None))
    dataset(root / "emptylabels", train=("", "\n"))
    dataset(root / "classids", train=("7 0.5 0.5 0.2 0.2\n", "3 0.5 0.5 0.2 0.2\n"))
    dataset(root / "vallabels", val=("", ""))
    dataset(root / "valclassids", val=("7 0.5 0.5 0.2 0.2\n",))
    dataset(root / "pixels", train=("0 32 32 20 20\n", "1 40 40 10 10\n"))
    dataset(root / "negative", train=("0 -0.5 0.5 0.2 0.2\n",))
    dataset(root / "junk", train=("not a label\n", "0 zero half 1 1\n"))
    dataset(root / "binary", train=("x",), touch=lambda d: (d / "labels/train/0.txt").write_bytes(b"\xff\xfe\x00\x81"))
    dataset(root / "columns", train=("0 0.5 0.5 0.2\n", "0 0.5\n"))
    dataset(root / "fractions", train=("0.5 0.5 0.5 0.2 0.2\n",))
    dataset(root / "nan", train=("0 nan 0.5 0.2 0.2\n",))
    dataset(root / "corrupt", touch=spoil("train/*.png"))
    dataset(root / "corruptval", touch=spoil("val/*.png"))
    dataset(root / "emptyimages", touch=spoil("train/*.png", content=b""))
    (root / "here").mkdir()
    good = dataset(root / "good").parent
    for name, changes in {
        "elsewhere": {"val": "images/elsewhere"},
        "elsewheretrain": {"train": "images/elsewhere"},
        "nopath": {"path": str(root / "nowhere")},
        "notrain": {"train": ...},
        "noval": {"val": ...},
        "emptytrain": {"train": None},
        "nonames": {"names": ...},
        "emptynames": {"names": []},
        "ncmismatch": {"nc": 5},
        "nctext": {"nc": "many", "names": ...},
        "namestext": {"names": "car"},
        "namesgap": {"names": {0: "a", 7: "b"}},
        "trainnumber": {"train": 5},
        "list": {"train": "list.txt"},
        "binarylist": {"train": "binary.txt"},
        "channels": {"channels": "three"},
    }.items():
        describe(good, f"{name}.yaml", **changes)
    (good / "list.txt").write_text("./images/train/none.png\n./images/train/gone.png\n", encoding="utf-8")
    (good / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    (root / "empty.yaml").touch()
    (root / "broken.yaml").write_text("names: [a, b\ntrain: x", encoding="utf-8")
    (root / "scalar.yaml").write_text("just words", encoding="utf-8")
    (root / "listed.yaml").write_text("- a\n- b\n", encoding="utf-8")
    (root / "binary.yaml").write_bytes(b"\x80\x81\xff")
    (root / "empty.zip").touch()
    (root / "folder.yaml").mkdir()
    (root / "emptydata").mkdir()


def bad_files(root: Path, student: Path, teacher: Path) -> SimpleNamespace:
    """Write bad files of every kind into a folder, and return where they and the good ones are."""
    from ultralytics.nn.tasks import ClassificationModel

    bad_datasets(root)
    (root / "text.pt").write_text("not a model", encoding="utf-8")
    (root / "empty.pt").touch()
    (root / "cut.pt").write_bytes(student.read_bytes()[:200_000])
    (root / "folder.pt").mkdir()
    picture(root / "image.png")
    shutil.copy(root / "image.png", root / "image.pt")
    (root / "model.onnx").write_bytes(b"no network")
    (root / "text.png").write_text("not an image", encoding="utf-8")
    (root / "empty.png").touch()
    torch.save({"weights": 1}, root / "other.pt")
    torch.save([1, 2], root / "list.pt")
    torch.save({"model": None, "ema": None, "epoch": 3}, root / "hollow.pt")
    torch.save({"model": tiny_model().state_dict(), "ema": None, "train_args": {}}, root / "state.pt")
    classifier = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False)
    classifier.task = "classify"
    save_model(classifier, root / "classify.pt")
    (root / "recipe.yaml").write_text("method: pcd\npcd_stages: 0\n", encoding="utf-8")
    (root / "typo.yaml").write_text("metod: pcd\n", encoding="utf-8")
    (root / "map.yaml").write_text("circle: [1, {a: b}]\n", encoding="utf-8")
    (root / "unknown_map.yaml").write_text("lorry: truck\n", encoding="utf-8")
    run = root / "run"
    (run / "weights").mkdir(parents=True)
    (run / "args.yaml").write_text("epochs: 3\n", encoding="utf-8")
    shutil.copy(student, run / "weights" / "best.pt")
    for name, content in (("badjson", "{"), ("otherschema", '{"schema": 99}'), ("listjson", "[1]")):
        (root / name).mkdir()
        (root / name / "results.json").write_text(content, encoding="utf-8")
    last = {"epoch": 1, "model": tiny_model(), "ema": None, "optimizer": {"x": 1}, "train_args": {}}
    torch.save(last, root / "last.pt")
    return SimpleNamespace(root=root, student=student, teacher=teacher, data=root / "good" / "data.yaml")
