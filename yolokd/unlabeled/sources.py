"""Which images are meant where no labels are: those of kd_unlabeled=, and of data= with kd_names=."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolokd.config import REST
from yolokd.datasets import dataset, images
from yolokd.errors import UserError
from yolokd.text import reason

DESCRIPTIONS = {".yaml", ".yml"}


def is_description(value: Any) -> bool:
    """Return whether `data=` names a dataset's description or its name, rather than images themselves."""
    path = Path(str(value))
    if path.is_dir():
        return any(path.glob("*.y*ml")) or (next(images(str(path)), None) is None and any(path.rglob("*.y*ml")))
    return path.suffix != ".txt"


def train_split(value: Any, key: str) -> Any:
    """Return what a source of images means as Ultralytics' `train:` does; of a description, its `train:`.

    Args:
        value (str | list[str]): Folder, list in a text file, description of a dataset, or several of these.
        key (str): Name of the key in messages.

    Raises:
        UserError: If something is not there or cannot be read.
    """
    if isinstance(value, (list, tuple)):
        found = [train_split(item, key) for item in value]
        return [part for item in found for part in (item if isinstance(item, list) else [item])]
    path = Path(str(value)).expanduser()
    if path.suffix in DESCRIPTIONS:
        from ultralytics.data.utils import check_det_dataset

        from yolokd.config import quiet

        try:
            with quiet():
                return check_det_dataset(str(path))["train"]
        except Exception as error:  # whatever is wrong with a file of somebody's
            raise UserError(f"{key}={value} cannot be used as a dataset: {reason(error)}") from error
    if not path.exists():
        raise UserError(
            f"{key}={value}: there is no {path.resolve()}; give a folder of images, a .txt file that lists them, or a "
            f"dataset YAML, e.g. {key}=path/to/images"
        )
    return str(path.resolve())


def files(value: Any, key: str) -> list[str]:
    """Return the image files of a source, sorted, each once.

    Args:
        value (str | list[str]): What `train_split` takes.
        key (str): Name of the key in messages.

    Raises:
        UserError: If there are none.
    """
    split = train_split(value, key)
    try:
        found = sorted({os.path.abspath(file) for file in images(split)})
    except UserError as error:
        raise UserError(f"{key}={value}: {error}") from None
    if not found:
        raise UserError(f"{key}={value}: there are no images in it; give a folder of images, e.g. {key}=path/to/images")
    if not any(os.path.exists(file) for file in found):
        raise UserError(
            f"{key}={value}: none of the images listed is there, e.g. {found[0]} is missing; check the list"
        )
    return found


def unlabeled_files(value: Any, train: Any, labeled: Iterable[str], held_out: Any) -> tuple[list[str], dict[str, int]]:
    """Return the images of `kd_unlabeled`, without those that are learned with their labels or evaluated on.

    Args:
        value (str | list[str]): The key's value; `rest` for the training images that `fraction` left out.
        train (str | list[str]): The data's training images.
        labeled (Iterable[str]): Image files that are learned with their labels.
        held_out (list): The data's other splits.

    Returns:
        files (list[str]): Image files, sorted, each once.
        left_out (dict[str, int]): How many were left out, by reason.

    Raises:
        UserError: If none are left.
    """
    found = files(train if value == REST else value, "kd_unlabeled")
    known = {os.path.realpath(file) for file in labeled}
    others = {os.path.realpath(file) for source in held_out for file in images(source)}
    kept, left_out = [], {"labelled training images": 0, "validation or test images": 0}
    for file in found:
        real = os.path.realpath(file)
        if real in known:
            left_out["labelled training images"] += 1
        elif real in others:
            left_out["validation or test images"] += 1
        else:
            kept.append(file)
    if not kept:
        why = " and ".join(f"{count} are {name}" for name, count in left_out.items() if count)
        fix = "set fraction= below 1" if value == REST else "give a folder with other images, or fraction= below 1"
        raise UserError(f"kd_unlabeled={value}: no image is left: of {len(found)}, {why}; {fix}")
    if value == REST:  # which means that they are left out
        del left_out["labelled training images"]
    return kept, {name: count for name, count in left_out.items() if count}


def absolute(value: Any) -> Any:
    """Return a source with absolute paths, so that a resumed run finds it from another folder."""
    if isinstance(value, (list, tuple)):
        return [absolute(item) for item in value]
    path = Path(str(value)).expanduser()
    return str(path.resolve()) if value != REST and path.exists() else value


def check_images(overrides: Mapping[str, Any]) -> None:
    """Check the images of a run before it starts: a labelled dataset, images without labels, or both.

    Args:
        overrides (Mapping[str, Any]): Train arguments.

    Raises:
        UserError: If something is missing.
    """
    if not overrides.get("kd_names"):
        dataset(overrides["data"])
    elif is_description(overrides["data"]):
        dataset(overrides["data"], train=False)
    else:
        files(overrides["data"], "data")
    unlabeled = overrides.get("kd_unlabeled")
    if unlabeled and unlabeled != REST:
        files(unlabeled, "kd_unlabeled")
