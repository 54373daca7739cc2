"""Looking at the files that a command names before anything starts, so that mistakes are said in words."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolokd.errors import UserError

ARCHITECTURES = {".yaml", ".yml"}


def reason(error: BaseException, lines: int = 1) -> str:
    """Return the first lines of an exception's message as one plain line, without colours and symbols."""
    from ultralytics.utils import remove_colorstr

    text = "".join(c for c in remove_colorstr(str(error)) if c.isascii() or c.isalpha())
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join(kept[:lines]) or type(error).__name__


def weights(key: str, value: Any, trained: bool = True, torch_only: bool = True) -> str:
    """Return the path of a weights file, downloaded where Ultralytics knows it and there is a network.

    Args:
        key (str): The key that named it, for messages.
        value (Any): Path, or stem of an official model, i.e. `yolov8n`.
        trained (bool): Whether an architecture (`.yaml`) will not do.
        torch_only (bool): Whether it must be a `.pt` file; else exported formats are left to Ultralytics.

    Returns:
        (str): The file as Ultralytics finds it; addresses with `://` are returned as they are.

    Raises:
        UserError: If there is no such file, or it is no checkpoint.
    """
    from ultralytics.utils import SETTINGS

    text = str(value).strip()
    if "://" in text:
        return text
    path = Path(text)
    if not path.suffix and not path.exists():
        path = path.with_name(f"{path.name}.pt")
    if path.suffix in ARCHITECTURES:
        if trained:
            raise UserError(
                f"{key}={text} is an architecture without weights; give trained weights, i.e. {key}=yolov8s.pt"
            )
        return str(path)
    if path.is_dir() and torch_only:
        raise UserError(
            f"{key}={text} is a folder; give the weights file in it, i.e. {key}={path / 'weights' / 'best.pt'}"
        )
    if path.suffix != ".pt" and path.exists() and not torch_only:
        return str(path)
    if path.suffix != ".pt" and torch_only:
        raise UserError(f"{key}={text} is no PyTorch checkpoint; give a .pt file, i.e. {key}=yolov8s.pt")
    found = next((p for p in (path, Path(SETTINGS["weights_dir"]) / path) if p.exists()), None)
    if found is None:
        return _fetch(key, text, path)
    _check_file(key, found)
    return str(path)


def _fetch(key: str, text: str, path: Path) -> str:
    """Let Ultralytics download an official file, or say where the missing file should be."""
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    name = Path(check_yolov5u_filename(path.name, verbose=False)).name
    if name not in GITHUB_ASSETS_NAMES:
        here = [p.name for p in path.parent.glob("*.pt")] if path.parent.is_dir() else []
        close = get_close_matches(path.name, [*here, *sorted(GITHUB_ASSETS_NAMES)], n=1)
        hint = f"did you mean {path.with_name(close[0])}? " if close else ""
        raise UserError(
            f"{key}={text}: there is no file {path.resolve()}, nor an official model of that name; "
            f"{hint}Give the path of a .pt file or an official name, i.e. {key}=yolov8s.pt"
        )
    try:
        found = Path(attempt_download_asset(path))
        if found.exists():
            return str(found)
        why = "the download left no file"
    except (OSError, ValueError) as error:  # the host's errors of connection and of damaged downloads are OSErrors
        why = reason(error)
    raise UserError(
        f"{key}={text}: {name} is not on this machine and could not be downloaded ({why})\n"
        f"put the file at {path.resolve().with_name(name)}, or give the path where it is: {key}=path/to/{name}"
    )


def _check_file(key: str, path: Path) -> None:
    """Refuse what cannot be a checkpoint; the host would delete a damaged file with an official name and fetch it."""
    try:
        if not path.stat().st_size:
            raise UserError(f"{key}={path} is empty (0 bytes); copy or download it again")
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror or error}; check its permissions") from error
    if start == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise UserError(f"{key}={path} is cut off or damaged; copy or download it again")
    elif start[:1] != b"\x80":  # neither a zip archive nor a pickle, the two forms of torch.save
        raise UserError(
            f"{key}={path} is no PyTorch checkpoint although its name ends in .pt; give a .pt file of a model"
        )


def dataset(value: Any, train: bool = True) -> None:
    """Check a detection dataset: its description, the images, and for training the labels.

    Args:
        value (Any): What `data=` names: a YAML file, folder, archive or official name, or a list of them.
        train (bool): Whether the training images need at least one label.

    Raises:
        UserError: If something is missing; the message names it.
    """
    if isinstance(value, (list, tuple)):
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
            f"put the dataset into {DATASETS_DIR}, or give your own, i.e. data=path/to/mine.yaml"
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
            f"data={text} cannot be used: {reason(error)}\n"
            f"it must be a dataset YAML with path, train, val and names, i.e. data=path/to/mine.yaml"
        ) from error
    for split in ("train", "val"):
        if next(_images(data.get(split)), None) is None:
            raise UserError(
                f"data={text}: no images for '{split}:' in {_where(data.get(split))}; check that line and path:"
            )
    if train and not any(_labelled(image) for image in _images(data["train"])):
        first = next(_images(data["train"]))
        raise UserError(
            f"data={text}: none of the training images has labels, i.e. {_label(first)} is missing or empty; "
            f"put a YOLO label file for each image beside images/ into labels/, or learn from a teacher alone, i.e. "
            f"kd_names=[car,bus]"
        )


def _where(source: Any) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list) else str(source)


def _images(source: Any) -> Iterator[str]:
    """Yield the image files of a split: a folder, a list in a text file, or several of these."""
    from ultralytics.data.utils import IMG_FORMATS

    for item in source if isinstance(source, list) else [source] if source else []:
        path = Path(item)
        if path.is_dir():
            names = (os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files)
        elif path.is_file():
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            names = (str(path.parent / line[2:]) if line.startswith("./") else line.strip() for line in lines)
        else:
            continue
        yield from (name for name in names if name.rpartition(".")[-1].lower() in IMG_FORMATS)


def _label(image: str) -> str:
    """Return the label file that Ultralytics reads for an image."""
    from ultralytics.data.utils import img2label_paths

    return str(img2label_paths([image])[0])


def _labelled(image: str) -> bool:
    """Return whether an image has a label file with something in it."""
    label = _label(image)
    return os.path.isfile(label) and os.path.getsize(label) > 0


def run_folder(args: SimpleNamespace) -> Path:
    """Return the folder that a run with these arguments would get, which does not exist unless `exist_ok` is set.

    Raises:
        UserError: If it cannot be made or written to.
    """
    from ultralytics.cfg import get_save_dir

    folder = get_save_dir(args)
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise UserError(f"project={args.project}: {above} is a file, not a folder; choose another project= or name=")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"project={args.project}: {above} is not writable; choose another folder, i.e. project=~/runs")
    return folder
