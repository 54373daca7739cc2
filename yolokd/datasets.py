"""Datasets as the host describes them: what is missing or unusable in one, and where its images and labels are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolokd.errors import UserError
from yolokd.text import reason


def dataset(value: Any, train: bool = True) -> None:
    """Check a detection dataset: its description, the images, and for training the labels.

    Args:
        value (Any): What `data=` names: a YAML file, folder, archive or official name, or a list of them.
        train (bool): Whether the training images need at least one label.

    Raises:
        UserError: If something is missing; the message names it.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise UserError("data=[] names no dataset; give one, e.g. data=path/to/mine.yaml")
        for item in value:
            dataset(item, train)
        return
    import yaml
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import DATASETS_DIR

    from yolokd.config import quiet

    text = str(value)
    try:
        with quiet():
            data = check_det_dataset(text)
    except ConnectionError as error:
        raise UserError(
            f"data={text}: its images are not on this machine and could not be downloaded ({reason(error)})\n"
            f"put the dataset into {DATASETS_DIR}, or give your own, e.g. data=path/to/mine.yaml"
        ) from error
    except (
        OSError,
        ValueError,
        TypeError,
        SyntaxError,
        KeyError,
        AttributeError,
        AssertionError,
        yaml.YAMLError,
    ) as error:
        raise UserError(
            f"data={text} cannot be used: {reason(error, lines=2)}\n"
            f"it must be a dataset YAML with path, train, val and names, e.g. data=path/to/mine.yaml"
        ) from error
    if not isinstance(data["channels"], int) or data["channels"] < 1:
        raise UserError(
            f"data={text}: 'channels: {data['channels']}' must be a whole number above 0; 3 where that line is left out"
        )
    for split in ("train", "val"):
        try:
            found = next(images(data.get(split)), None)
        except UserError as error:
            raise UserError(f"data={text}: '{split}:' {error}") from None
        if found is None:
            raise UserError(
                f"data={text}: no images for '{split}:' in {_where(data.get(split))}; check that line and path:"
            )
        if not any(os.path.exists(image) for image in images(data.get(split))):
            raise UserError(
                f"data={text}: none of the images that {_where(data.get(split))} lists for '{split}:' is there, e.g. "
                f"{found} is missing; check the list"
            )
    if train and not any(labelled(image) for image in images(data["train"])):
        first = next(images(data["train"]))
        raise UserError(
            f"data={text}: none of the training images has labels, e.g. {_label(first)} is missing or empty; "
            f"put a YOLO label file for each image beside images/ into labels/, or learn from a teacher alone, e.g. "
            f"kd_names=[car,bus]"
        )


def _where(source: Any) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list) else str(source)


def images(source: Any) -> Iterator[str]:
    """Yield the image files of a split: a folder, a list in a text file, or several of these."""
    from ultralytics.data.utils import IMG_FORMATS

    for item in source if isinstance(source, list) else [source] if source else []:
        path = Path(item)
        if path.is_dir():
            names = (os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files)
        elif path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{path} is no list of images ({reason(error)}); give a folder, or a text file of one path per line"
                ) from error
            names = (str(path.parent / line[2:]) if line.startswith("./") else line.strip() for line in lines)
        else:
            continue
        yield from (name for name in names if name.rpartition(".")[-1].lower() in IMG_FORMATS)


def _label(image: str) -> str:
    """Return the label file that Ultralytics reads for an image."""
    from ultralytics.data.utils import img2label_paths

    return str(img2label_paths([image])[0])


def labelled(image: str) -> bool:
    """Return whether an image has a label file with something in it."""
    label = _label(image)
    return os.path.isfile(label) and os.path.getsize(label) > 0 and bool(Path(label).read_bytes().strip())


LEARNED = {  # what a row of a label file holds for the tasks beside detection
    "segment": "polygons (class x1 y1 x2 y2 x3 y3 ...)",
    "obb": "four corners (class x1 y1 x2 y2 x3 y3 x4 y4)",
    "pose": "keypoints behind its boxes (class x y width height px1 py1 ...)",
}


def check_rows(task: str, data: Any, source: Any) -> None:
    """Refuse labels of boxes alone for a task that learns more, which the first label file with content tells.

    Args:
        task (str): Task of the student.
        data (Any): What `data=` names.
        source (Any): Its training images.

    Raises:
        UserError: If that file holds boxes alone.
    """
    first = next((image for image in images(source) if labelled(image)), None) if task in LEARNED else None
    if first is None:
        return
    text = Path(_label(first)).read_text(encoding="utf-8", errors="replace")
    if all(len(line.split()) == 5 for line in text.splitlines() if line.strip()):
        raise UserError(
            f"data={data}: the labels are boxes alone, e.g. {_label(first)}, and task={task} learns from "
            f"{LEARNED[task]}; give such labels, or train a detection model, e.g. model=yolov8n.pt"
        )


def data_fault(error: Exception, key: str = "data=") -> UserError | None:
    """Return what the host says where it finds nothing usable in a dataset, with the fix; None for other errors.

    Args:
        error (Exception): What the host raised: it is a RuntimeError, which by itself may be anything.
        key (str): The key with its value, for the message.
    """
    text = str(error)
    if refused := re.search(r"No valid images found in (.+?)\.cache\b", text):
        lines = [reason(Exception(line)) for line in text.splitlines() if "ignoring" in line]
        where = refused[1].removesuffix("/unlabeled")
        return UserError(
            f"{key}: Ultralytics can use none of the images of {where}{f', e.g. {lines[0]}' if lines else ''}\n"
            f"check the images, their label files (class x y width height, as fractions of the image), and names: in "
            f"the YAML"
        )
    if "No labels found in" in text:
        return UserError(f"{key}: {reason(error)}; put a YOLO label file for each image beside images/ into labels/")
    if re.match(r"Dataset '.*' error", text):
        return UserError(f"{key} cannot be used: {reason(error)}; give a dataset YAML, e.g. data=path/to/mine.yaml")
    return None
