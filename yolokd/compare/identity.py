"""What identifies a comparison: its inputs by their content, its arguments, the versions; and where two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolokd.config import REST
from yolokd.saving.records import file_hash

NOT_IDENTITY = {"device", "plots", "verbose", "save_period", "kd_safe_load"}  # what a continued comparison may change


def identify(arguments: Mapping[str, Any], teachers: Iterable[str], split: str) -> dict[str, Any]:
    """Return what must be the same for runs to be compared, by name: inputs by their content, arguments, versions.

    Args:
        arguments (Mapping[str, Any]): Train arguments.
        teachers (Iterable[str]): Teachers' weights.
        split (str): Split that is evaluated.
    """
    from yolokd.environment import versions

    kept = {k: v for k, v in arguments.items() if k not in NOT_IDENTITY | {"model", "data", "project", "name"}}
    packages = {key: value for key, value in versions().items() if key in {"yolokd", "ultralytics", "torch"}}
    return {
        "model": _model_hash(str(arguments["model"])),
        "teacher": [file_hash(Path(teacher)) for teacher in teachers],
        "data": data_hash(arguments["data"], split),
        "split": split,
        **{key: _content(key, kept[key]) for key in sorted(kept)},
        **{f"version of {name}": version for name, version in packages.items()},
    }


def _model_hash(model: str) -> str:
    """Return a hash of weights, or the name of an architecture with a hash of it as the host reads it."""
    from ultralytics.nn.tasks import yaml_model_load

    if Path(model).suffix == ".pt":
        return file_hash(Path(model))
    described = {key: value for key, value in yaml_model_load(model).items() if key != "yaml_file"}
    return f"{model} {hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]}"


def _content(key: str, value: Any) -> Any:
    """Return an argument, with what it names by content: given weights, and images by name and size."""
    from yolokd.datasets import images
    from yolokd.unlabeled.sources import train_split

    if key == "pretrained" and isinstance(value, str) and Path(value).is_file():
        return f"{value} {file_hash(Path(value))[:16]}"
    if key == "kd_unlabeled" and value and value != REST:
        files = sorted(Path(file) for file in images(train_split(value, key)))
        listed = "".join(f"{file.name} {file.stat().st_size};" for file in files if file.is_file())
        return f"{value} {hashlib.sha256(listed.encode()).hexdigest()[:16]}"
    return value


def data_hash(data: str, split: str) -> str:
    """Return a hash of a dataset's class names, labels by content, and images by name and size.

    Args:
        data (str): Dataset yaml.
        split (str): Split that is evaluated, beside `train` and `val`.
    """
    from ultralytics.data.utils import check_det_dataset, img2label_paths

    from yolokd.config import quiet
    from yolokd.datasets import images

    with quiet():
        description = check_det_dataset(data)
    digest = hashlib.sha256(json.dumps({str(k): v for k, v in description["names"].items()}).encode())
    for part in dict.fromkeys(("train", "val", split)):
        files: list[Any] = sorted(images(description.get(part)))
        for image, label in zip(files, img2label_paths(files)):
            path = Path(label)
            content = path.read_bytes() if path.is_file() else b""
            size = Path(image).stat().st_size if Path(image).is_file() else "missing"
            about = f"{part} {Path(image).name} {size} {len(content)};"
            digest.update(about.encode() + content)
    return digest.hexdigest()


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return in words where two plans differ in what must be the same; more arms or seeds are no difference.

    Args:
        old (Mapping[str, Any]): The plan on disk.
        new (Mapping[str, Any]): The plan of this command.
    """
    a, b = old.get("fingerprint", {}), new["fingerprint"]
    found = []
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            hashed = key in {"model", "teacher", "data"} and "yaml" not in f"{a.get(key)}{b.get(key)}"
            found.append(f"{key} (another content)" if hashed else f"{key} ({a.get(key)} there, {b.get(key)} now)")
    arms = [{arm["name"] for arm in plan.get("arms", [])} for plan in (old, new)]
    if gone := sorted(arms[0] - arms[1]):
        found.append(f"methods ({', '.join(gone)} there, not now)")
    if lost := sorted(set(old.get("seeds", [])) - set(new["seeds"])):
        found.append(f"seeds ({', '.join(map(str, lost))} there, not now)")
    return found
