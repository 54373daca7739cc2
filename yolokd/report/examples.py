"""Example images of the report: objects that one student finds and the other misses."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolokd.config import CONTROLS
from yolokd.report import view
from yolokd.saving.records import read_detections

IOU, CONFIDENCE = 0.5, 0.25
SIDE, QUALITY = 340, 80  # longer side in pixels and JPEG quality of a thumbnail
CONTEXT = 4.0  # side of the part shown, in sides of the object
TRUTH_COLOUR, FOUND_COLOUR = (60, 200, 255), (255, 160, 40)  # blue, green, red


@dataclass(frozen=True)
class Example:
    """One object that one of two students finds.

    Attributes:
        image (str): Name of the image file.
        label (str): Class of the object.
        found (int): Seeds in which the distilled student finds it.
        found_plain (int): Seeds in which the plain student does.
        width (int): Width of the thumbnail.
        height (int): Height of the thumbnail.
        jpeg (str): The thumbnail, base64.
    """

    image: str
    label: str
    found: int
    found_plain: int
    width: int
    height: int
    jpeg: str


@dataclass(frozen=True)
class Tally:
    """How many objects an arm finds beside the plain student, in most of the seeds that both have.

    Attributes:
        arm (str): Name of the arm.
        seeds (int): Seeds that both have.
        both (int): Objects that both find.
        gained (int): Objects that only the arm finds.
        lost (int): Objects that only the plain student finds.
        neither (int): The other objects.
    """

    arm: str
    seeds: int
    both: int
    gained: int
    lost: int
    neither: int


@dataclass(frozen=True)
class Examples:
    """The examples of a report.

    Attributes:
        arm (str): The arm that the images are of: the one of highest AP among those that have predictions.
        tallies (list[Tally]): Counts of all arms.
        gained (list[Example]): Objects that the arm finds and the plain student misses.
        lost (list[Example]): The opposite.
        reason (str): Why there is nothing, or why images are missing; else empty.
    """

    arm: str = ""
    tallies: list[Tally] = field(default_factory=list)
    gained: list[Example] = field(default_factory=list)
    lost: list[Example] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class Truth:
    """The objects to be found, crowds left out.

    Attributes:
        boxes (np.ndarray): x, y, width, height with shape (N, 4).
        keys (list[tuple[int, int]]): Image and category of each.
        files (dict[int, str]): Path of each image.
        names (dict[int, str]): Name of each category.
    """

    boxes: NDArray[np.float64]
    keys: list[tuple[int, int]]
    files: dict[int, str]
    names: dict[int, str]


def find_examples(folder: Path, results: view.Results, limit: int = 6) -> Examples:
    """Find objects that most distilled students see and most plain ones miss, and the opposite.

    An object counts as found where a detection of its class with a confidence of at least 0.25 overlaps it with an IoU
    of at least 0.5, each detection for one object only. Only seeds that both arms finished are looked at.

    Args:
        folder (Path): Folder of results.json and ground_truth.json.
        results (Mapping): Content of results.json.
        limit (int): Largest number of images of each kind.

    Returns:
        (Examples): Counts for all arms and images for one of them.
    """
    plain = view.plain_arm(results)
    try:
        truth = _truth(json.loads((folder / "ground_truth.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return Examples(reason="There is no readable ground_truth.json beside results.json.")
    if plain is None:
        return Examples(reason="There is not one arm of plain training to compare with.")
    split = str((results.get("data") or {}).get("split") or "val")
    base = _found(folder, plain, truth, split)
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], list[Any]]] = {}
    tallies = []
    for arm in view.arms(results):
        hits = {} if arm is plain else _found(folder, arm, truth, split)
        fair = {run["seed"] for run in view.done(arm) for other in view.done(plain) if view.fair(run, other)}
        seeds = [seed for seed in hits if seed in base and seed in fair]
        if not seeds:
            continue
        ours, theirs = np.stack([hits[s] for s in seeds]), np.stack([base[s] for s in seeds])  # (S, N, 4)
        found[arm["name"]] = (ours, theirs, seeds)
        a, b = _shares(ours), _shares(theirs)
        counts = [(x & y) for x, y in ((a > 0.5, b > 0.5), (a > 0.5, b < 0.5), (a < 0.5, b > 0.5))]
        both, gained, lost = (int(c.sum()) for c in counts)
        tallies.append(Tally(arm["name"], len(seeds), both, gained, lost, len(a) - both - gained - lost))
    if not found:
        return Examples(reason="No seed has predictions of both a plain and a distilled student.")
    ranked = sorted(found, key=lambda name: (name in CONTROLS, -(_ap(results, name))))
    ours, theirs, _ = found[ranked[0]]
    a, b = _shares(ours), _shares(theirs)
    gained_images = _pick(truth, ours, a - b, (a > 0.5) & (b < 0.5), ours, theirs, limit)
    lost_images = _pick(truth, theirs, b - a, (b > 0.5) & (a < 0.5), ours, theirs, limit)
    tally = next(t for t in tallies if t.arm == ranked[0])
    missing = (tally.gained and not gained_images) or (tally.lost and not lost_images)
    reason = "The images are no longer where they were, so none can be shown." if missing else ""
    return Examples(ranked[0], tallies, gained_images, lost_images, reason)


def match(truth: Truth, detections: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Match detections with objects, highest confidence first, each to the free object that it overlaps most.

    Args:
        truth (Truth): The objects.
        detections (Sequence[Mapping]): Detections in COCO's form.

    Returns:
        (np.ndarray): Box of the detection that found each object, NaN where none did, with shape (N, 4).
    """
    objects: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, place in enumerate(truth.keys):
        objects[place].append(index)
    grouped: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for detection in detections:
        if detection["score"] >= CONFIDENCE:
            grouped[int(detection["image_id"]), int(detection["category_id"])].append(detection)
    result = np.full((len(truth.keys), 4), np.nan)
    for place, group in grouped.items():
        if place not in objects:
            continue
        free = list(objects[place])
        for detection in sorted(group, key=lambda d: -float(d["score"])):
            if not free:
                break
            box = np.asarray(detection["bbox"], dtype=np.float64)
            overlaps = _iou(truth.boxes[free], box)
            best = int(overlaps.argmax())
            if overlaps[best] >= IOU:
                result[free.pop(best)] = box
    return result


def _iou(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of boxes (N, 4) with one box, both as x, y, width, height."""
    first = np.maximum(boxes[:, :2], box[:2])
    last = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = np.clip(last - first, 0, None).prod(axis=1)
    return np.asarray(shared / np.maximum(boxes[:, 2:].prod(axis=1) + box[2:].prod() - shared, 1e-12))


def _truth(content: Mapping[str, Any]) -> Truth:
    """Return the objects of a ground truth in COCO's form."""
    real = [a for a in content["annotations"] if not a.get("iscrowd")]
    return Truth(
        np.asarray([a["bbox"] for a in real], dtype=np.float64).reshape(-1, 4),
        [(int(a["image_id"]), int(a["category_id"])) for a in real],
        {int(image["id"]): str(image["file_name"]) for image in content["images"]},
        {int(category["id"]): str(category["name"]) for category in content["categories"]},
    )


def _found(folder: Path, arm: view.Arm, truth: Truth, split: str) -> dict[Any, NDArray[np.float64]]:
    """Return the matches of each seed of an arm whose predictions can be read."""
    result = {}
    for run in view.done(arm):
        _, kept = read_detections(folder / str(run.get("folder") or ""), split)
        try:
            result[run.get("seed")] = match(truth, kept["detections"])
        except (ValueError, KeyError, TypeError):
            continue
    return result


def _shares(hits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return in which share of the seeds each object was found: (S, N, 4) -> (N,)."""
    return np.asarray((~np.isnan(hits[..., 0])).mean(axis=0))


def _ap(results: view.Results, name: str) -> float:
    arm = view.find(results, name)
    return (view.mean(arm, "ap") if arm else None) or 0.0


def _pick(
    truth: Truth,
    finder: NDArray[np.float64],
    margin: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    limit: int,
) -> list[Example]:
    """Return thumbnails of the clearest of the chosen objects: one per image, classes in turn."""
    area = truth.boxes[:, 2:].prod(axis=1)
    order = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: (-margin[i], -area[i]))
    turn: dict[int, int] = defaultdict(int)
    ranked = []
    for i in order:
        category = truth.keys[i][1]
        ranked.append((turn[category], -margin[i], i))
        turn[category] += 1
    result: list[Example] = []
    shown: set[int] = set()
    for _, _, i in sorted(ranked, key=lambda item: item[:2]):
        image, category = truth.keys[i]
        if image in shown or len(result) == limit:
            continue
        boxes = finder[:, i]
        thumbnail = _thumbnail(Path(truth.files[image]), truth.boxes[i], boxes[~np.isnan(boxes[:, 0])][0])
        if thumbnail:
            shown.add(image)
            counts = [int((~np.isnan(hits[:, i, 0])).sum()) for hits in (ours, theirs)]
            result.append(
                Example(Path(truth.files[image]).name, truth.names[category], counts[0], counts[1], *thumbnail)
            )
    return result


def _thumbnail(path: Path, box: NDArray[np.float64], found: NDArray[np.float64]) -> tuple[int, int, str] | None:
    """Return width, height and JPEG (base64) of the part of an image around an object, or None if it cannot be read."""
    try:
        image: Any = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_COLOR)  # any path, EXIF turned
    except (OSError, cv2.error):
        return None
    if image is None:
        return None
    height, width = image.shape[:2]
    x, y, w, h = box.tolist()
    side = max(CONTEXT * max(w, h), 0.3 * min(height, width))
    left, top = max(0, int(x + w / 2 - side / 2)), max(0, int(y + h / 2 - side / 2))
    right, bottom = min(width, int(x + w / 2 + side / 2) + 1), min(height, int(y + h / 2 + side / 2) + 1)
    part = image[top:bottom, left:right]
    if not part.size:
        return None
    scale = SIDE / max(part.shape[:2])
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for (bx, by, bw, bh), colour in ((found.tolist(), FOUND_COLOUR), ((x, y, w, h), TRUTH_COLOUR)):
        first = (round((bx - left) * scale), round((by - top) * scale))
        last = (round((bx + bw - left) * scale), round((by + bh - top) * scale))
        cv2.rectangle(part, first, last, (0, 0, 0), 4, cv2.LINE_AA)  # a rim that shows on any ground
        cv2.rectangle(part, first, last, colour, 2, cv2.LINE_AA)
    encoded, buffer = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return (*size, base64.b64encode(buffer.tobytes()).decode("ascii")) if encoded else None
