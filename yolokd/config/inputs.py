"""Looking at the files that a command names before anything starts, so that mistakes are said in words."""

from __future__ import annotations

import os
import re
import zipfile
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolokd.errors import UserError
from yolokd.text import reason

ARCHITECTURES = {".yaml", ".yml"}


def weights(key: str, value: Any, trained: bool = True, torch_only: bool = True) -> str:
    """Return the path of a weights file, downloaded where Ultralytics knows it and there is a network.

    Args:
        key (str): The key that named it, for messages.
        value (Any): Path, or stem of an official model, e.g. `yolov8n`.
        trained (bool): Whether an architecture (`.yaml`) will not do.
        torch_only (bool): Whether it must be a `.pt` file; else exported formats are left to Ultralytics.

    Returns:
        (str): The file as Ultralytics finds it. Addresses of `.pt` files are downloaded where Ultralytics would put
            them; others with `://` are returned as they are.

    Raises:
        UserError: If there is no such file, or it is no checkpoint.
    """
    from ultralytics.utils import SETTINGS

    text = str(value).strip()
    if "://" in text:
        return _download(key, text) if re.match(r"https?://\S+\.pt([?#]|$)", text) else text
    path = Path(text)
    if not path.suffix and not path.exists():
        path = path.with_name(f"{path.name}.pt")
    if path.suffix in ARCHITECTURES:
        if trained:
            raise UserError(
                f"{key}={text} is an architecture without weights; give trained weights, e.g. {key}=yolov8s.pt"
            )
        _check_architecture(key, path)
        return str(path)
    if path.is_dir() and torch_only:
        raise UserError(
            f"{key}={text} is a folder; give the weights file in it, e.g. {key}={path / 'weights' / 'best.pt'}"
        )
    if path.suffix != ".pt" and path.exists() and not torch_only:
        return str(path)
    if path.suffix != ".pt" and torch_only:
        raise UserError(f"{key}={text} is no PyTorch checkpoint; give a .pt file, e.g. {key}=yolov8s.pt")
    found = next((p for p in (path, Path(SETTINGS["weights_dir"]) / path) if p.exists()), None)
    if found is None:
        return _fetch(key, text, path)
    _check_file(key, found)
    return str(path)


def _download(key: str, address: str) -> str:
    """Let Ultralytics download weights from an address to where its loader would, or say why that does not work."""
    from ultralytics.utils import SETTINGS
    from ultralytics.utils.checks import check_file

    from yolokd.config import quiet
    from yolokd.saving.handover import missing_folders, remove_empty

    made = missing_folders(Path(SETTINGS["weights_dir"]))
    try:
        with quiet():
            found = Path(check_file(address, download_dir=SETTINGS["weights_dir"]))
    except Exception as error:  # of the network, the address or the disk
        remove_empty(made)
        raise UserError(
            f"{key}={address} could not be downloaded ({reason(error)}); give the path of a file here, e.g. "
            f"{key}=path/to/best.pt"
        ) from error
    _check_file(key, found)
    return str(found)


def _fetch(key: str, text: str, path: Path) -> str:
    """Let Ultralytics download an official file, or say where the missing file should be."""
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    name = Path(check_yolov5u_filename(path.name, verbose=False)).name
    if name not in GITHUB_ASSETS_NAMES:
        here = [p.name for p in path.parent.glob("*.pt")] if path.parent.is_dir() else []
        official = sorted(GITHUB_ASSETS_NAMES) if path.parent == Path() else []  # none of them lies in a folder
        close = get_close_matches(path.name, [*here, *official], n=1)
        hint = f"did you mean {path.with_name(close[0])}? " if close else ""
        raise UserError(
            f"{key}={text}: there is no file {path.resolve()}, nor an official model of that name; "
            f"{hint}{'G' if hint else 'g'}ive the path of a .pt file or an official name, e.g. {key}=yolov8s.pt"
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


def _check_architecture(key: str, path: Path) -> None:
    """Refuse a YAML that describes no model; the host answers with the name of what it missed first."""
    from ultralytics.nn.tasks import yaml_model_load

    from yolokd.config import quiet

    try:
        with quiet():
            content = yaml_model_load(str(path))
    except Exception as error:  # whatever a file of somebody's makes the reader raise
        raise UserError(
            f"{key}={path} cannot be read as an architecture: {reason(error)}; give one, e.g. {key}=yolov8n.yaml"
        ) from error
    if missing := [part for part in ("backbone", "head") if not isinstance(content.get(part), list)]:
        raise UserError(
            f"{key}={path} is no architecture: it has no list '{missing[0]}:'; give one, e.g. {key}=yolov8n.yaml, or "
            f"weights, e.g. {key}=yolov8n.pt"
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


def run_folder(args: SimpleNamespace) -> Path:
    """Return the folder that a run with these arguments would get, which does not exist unless `exist_ok` is set.

    Raises:
        UserError: If it cannot be made or written to.
    """
    from ultralytics.cfg import get_save_dir

    folder = get_save_dir(args)
    if folder.is_file():
        check_place(folder, "name", folder.name, "name=second")
    check_place(folder, "project", args.project, "project=~/runs")
    return folder


def check_place(folder: Path, key: str, value: Any, example: str) -> None:
    """Refuse a folder for output that cannot be made or written to.

    Args:
        folder (Path): The folder to come.
        key (str): The key that named it.
        value (Any): Its value.
        example (str): What may be given instead.
    """
    from yolokd.saving.handover import missing_folders, remove_empty

    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise UserError(f"{key}={value}: {above} is a file, not a folder; choose another {key}=, e.g. {example}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{key}={value}: {above} is not writable; choose another folder, e.g. {example}")
    made = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{key}={value}: {folder} cannot be made ({error.strerror or error}); choose another folder, e.g. {example}"
        ) from error
    finally:
        remove_empty(made)
