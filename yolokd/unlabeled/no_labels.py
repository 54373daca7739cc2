"""Learning from a teacher alone: what a run with kd_names= takes in place of a labelled dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import YAML

from yolokd.classes import fold, match_classes
from yolokd.datasets import images, labelled
from yolokd.errors import UserError
from yolokd.text import reason
from yolokd.unlabeled.sources import files, train_split

FILE = "data.yaml"
LABELS = "kd_label_names"  # key of a description: the class names by which its label files are numbered


def class_names(value: str | Sequence[str]) -> dict[int, str]:
    """Return the class names of `kd_names` by index."""
    return dict(enumerate([value] if isinstance(value, str) else value))


def describe(data: Any, names: Mapping[int, str], split: str, folder: Path | None) -> dict[str, Any]:
    """Return the host's description of a dataset whose training labels are not read.

    Args:
        data (dict | str): The description that the host read, or a folder or list of images.
        names (Mapping[int, str]): The classes to learn.
        split (str): Split that is evaluated.
        folder (Path | None): Folder of the run, where the description is written; None leaves it unwritten.

    Returns:
        (dict[str, Any]): The description. Its `kd_label_names` are the names by which the label files of the evaluated
            split are numbered, and empty where nothing can be evaluated.
    """
    if isinstance(data, dict):
        old = {fold(name) for name in data["names"].values()}
        labeled = any(labelled(file) for file in images(data.get(split)))
        known = data["names"] if labeled and old & {fold(name) for name in names.values()} else {}
        described = {**data, "names": dict(names), "nc": len(names), LABELS: known}
    else:
        source = train_split(data, "data")
        root = Path(source[0] if isinstance(source, list) else source)
        described = {"path": root, "train": source, "val": source, split: source, "channels": 3}
        described |= {"names": dict(names), "nc": len(names), LABELS: {}}
    if folder is not None:
        parts = {key: _listed(described[key]) for key in ("train", "val", "test") if described.get(key)}
        kept = {"path": str(described["path"]), **parts, "names": dict(names), "channels": described["channels"]}
        note = "# What this run learned from, without labels."
        if described[LABELS] and list(described[LABELS].values()) != list(names.values()):
            note += " Label files of the other splits are numbered by the classes of the data it was given."
        YAML.save(folder / FILE, kept, header=f"{note}\n")
        described["yaml_file"] = str(folder / FILE)
    return described


def _listed(source: Any) -> list[str]:
    """Return a split as a list; the host takes a split that is one path for COCO's where it is called so."""
    return [str(item) for item in (source if isinstance(source, list) else [source])]


def renumber(labels: list[dict[str, Any]], old: Mapping[int, str], new: Mapping[int, str]) -> None:
    """Give labels the indices of the new class names, and drop those of other classes.

    Args:
        labels (list[dict]): The host's labels of each image; they are changed in place.
        old (Mapping[int, str]): Class names by which they are numbered.
        new (Mapping[int, str]): Class names to number them by.
    """
    index: dict[int, Any] = dict(match_classes(old, new))
    table = np.array([index.get(number, -1) for number in range(max(old) + 1)])
    for label in labels:
        found = table[label["cls"].reshape(-1).astype(int)]
        keep = found >= 0
        label["cls"] = found[keep].reshape(-1, 1).astype(label["cls"].dtype)
        label["bboxes"] = label["bboxes"][keep]
        if label.get("segments"):
            label["segments"] = [segment for segment, kept in zip(label["segments"], keep) if kept]


def training_files(data: Mapping[str, Any], split: str) -> list[str]:
    """Return the images to learn from; images that are evaluated on are left out of them."""
    found = files(data["train"], "data")
    if data[LABELS]:
        evaluated = set(files(data[split], "data"))
        found = [file for file in found if file not in evaluated]
    if not found:
        raise UserError("data=: all training images are validation images as well; give others to learn from")
    return found


def ready(models: Sequence[Any], names: Mapping[int, str], class_map: Mapping[str, Any] | None = None) -> None:
    """See that each teacher knows the classes to learn; one of open vocabulary is given them where it does not.

    Args:
        models (Sequence[nn.Module]): The teachers as they were loaded; classes of open-vocabulary ones are changed.
        names (Mapping[int, str]): Classes to learn.
        class_map (Mapping | None): `kd_class_map`.

    Raises:
        UserError: If a teacher does not know one of them.
    """
    for model in models:
        known = {int(i): str(name) for i, name in dict(model.names).items()}
        matched = {index for index, _ in match_classes(names, known, class_map)}
        missing = [name for index, name in names.items() if index not in matched]
        if missing and hasattr(model, "set_classes") and not class_map:
            _give_classes(model, names)
        elif missing:
            listed = ", ".join(list(known.values())[:12]) + (", ..." if len(known) > 12 else "")
            raise UserError(
                f"kd_names: the teacher does not know {', '.join(missing)}, and there are no labels to learn it from; "
                f"it knows {listed}. Leave the name out, say what the teacher calls it, e.g. "
                f"kd_class_map={{{missing[0]}: {next(iter(known.values()), 'name')}}}, or choose another teacher"
            )


def _give_classes(model: Any, names: Mapping[int, str]) -> None:
    """Let an open-vocabulary model look for other classes, by the text encoder that Ultralytics gets for it."""
    wanted = list(names.values())
    try:
        if hasattr(model, "get_visual_pe"):  # YOLOE takes the embeddings, YOLO-World makes them itself
            model.set_classes(wanted, model.get_text_pe(wanted))
        else:
            model.set_classes(wanted)
    except Exception as error:  # whatever is missing: the encoder's package, its weights, a network
        raise UserError(
            f"kd_names={wanted}: the teacher is of open vocabulary, but its text encoder is not at hand "
            f"({reason(error)}); where it is, set the classes and save the teacher, e.g. "
            f"model = YOLO('teacher.pt'); model.set_classes({wanted}); model.save('teacher-classes.pt')"
        ) from error
    model.names = dict(names)
