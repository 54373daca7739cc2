"""A drawn detection dataset of easily confused shapes, for the demo, the tests and the export check."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import cv2

from yolokd.drawn.drawing import VERSION, Drawing, draw_image
from yolokd.errors import UserError


def draw_dataset(
    root: str | Path,
    images: tuple[int, int] = (600, 200),
    imgsz: int = 128,
    seed: int = 0,
    classes: int = 12,
    channels: int = 3,
    objects: tuple[int, int] = (2, 7),
    clutter: float = 1.0,
    noise: float = 1.0,
) -> Path:
    """Draw a detection dataset in YOLO layout, or return the one that is there already.

    The folder appears only when complete, so that an interrupted call leaves nothing half done. The files depend on
    the arguments alone: they are the same bit by bit wherever the same OpenCV and NumPy run.

    Args:
        root (str | Path): Folder of the dataset; it must not hold anything else.
        images (tuple[int, int]): Number of training and of validation images.
        imgsz (int): Height and width of the images in pixels.
        seed (int): Seed of all random choices; training and validation images differ for every seed.
        classes (int): Number of classes, the first ones of `SHAPES`.
        channels (int): 3 for colour, 1 for grayscale.
        objects (tuple[int, int]): Smallest and largest number of objects per image.
        clutter (float): Amount of lines and distractors, 0 for none, 1 for the usual amount.
        noise (float): Strength of noise and blur, 0 for none, 1 for the usual strength.

    Returns:
        (Path): The data.yaml, whose paths are relative to its own folder.

    Raises:
        UserError: If a value is out of range or the folder holds something else.

    Examples:
        >>> data = draw_dataset("datasets/shapes", images=(600, 200), imgsz=128, seed=0)
        >>> YOLO("yolov8n.yaml").train(data=data, imgsz=128)
    """
    drawing = Drawing(
        images=(int(images[0]), int(images[1])),
        imgsz=int(imgsz),
        seed=int(seed),
        classes=int(classes),
        channels=int(channels),
        objects=(int(objects[0]), int(objects[1])),
        clutter=float(clutter),
        noise=float(noise),
    )
    root = Path(root)
    if _holds(root, drawing):
        return root / "data.yaml"
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(temporary, drawing)
        temporary.chmod(0o755)
        os.replace(temporary, root)
    except OSError:
        if not _holds(root, drawing):  # otherwise another process finished the same dataset first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root / "data.yaml"


def _holds(root: Path, drawing: Drawing) -> bool:
    """Return whether the folder holds this very dataset; False if it is missing or empty, an error otherwise."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    record = root / "drawing.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == _record(drawing):
        counts = [len(list((root / "images" / split).glob("*.png"))) for split in ("train", "val")]
        if (root / "data.yaml").is_file() and counts == list(drawing.images):
            return True
        raise UserError(f"the drawn dataset in '{root}' has lost files; delete the folder to draw it anew")
    raise UserError(f"'{root}' holds something else than this drawn dataset; choose another folder or delete it")


def _record(drawing: Drawing) -> dict[str, object]:
    """Return what drawing.json holds, as JSON gives it back."""
    record: dict[str, object] = json.loads(json.dumps({"version": VERSION, **asdict(drawing)}))
    return record


def _write(root: Path, drawing: Drawing) -> None:
    """Write all files of a dataset into an empty folder."""
    for split, name in enumerate(("train", "val")):
        (root / "images" / name).mkdir(parents=True)
        (root / "labels" / name).mkdir(parents=True)
        for index in range(drawing.images[split]):
            image, labels = draw_image(drawing, split, index)
            encoded, buffer = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
            assert encoded
            (root / "images" / name / f"{index:05d}.png").write_bytes(buffer.tobytes())
            text = "".join(f"{int(row[0])} " + " ".join(f"{v:.6f}" for v in row[1:]) + "\n" for row in labels)
            (root / "labels" / name / f"{index:05d}.txt").write_text(text, encoding="utf-8")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(drawing.names))
    text = "# Drawn shapes; what they were drawn with is in drawing.json\ntrain: images/train\nval: images/val\n"
    text += f"channels: {drawing.channels}\n" if drawing.channels != 3 else ""
    (root / "drawing.json").write_text(json.dumps(_record(drawing), indent=2) + "\n", encoding="utf-8")
    (root / "data.yaml").write_text(f"{text}names:\n{names}", encoding="utf-8")
