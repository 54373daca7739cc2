"""The picture of the demo: what each student finds on the same images, and the AP of all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CONF = 0.25  # detections below this are not drawn
MATCH_IOU = 0.5  # a detection of the right class that overlaps an object this much is right
COLUMNS = 5  # images
TRUTH, RIGHT, WRONG, MISSED = "#1f4e9c", "#1a7f37", "#c62828", "#e08a00"
BARS = ("#8a8f98", "#c9a227", "#1a7f37")

Boxes = NDArray[np.float64]


def draw_picture(path: Path, truth: Mapping[str, Any], arms: Sequence[Any]) -> Path:
    """Draw the first validation images with objects and detections, and bars of AP beside them.

    The images are the first ones of the validation split, not chosen ones.

    Args:
        path (Path): The PNG to write.
        truth (Mapping[str, Any]): COCO ground truth of the validation images.
        arms (Sequence[Arm]): Teacher, student alone and distilled student, each with `name` and `evaluation`.

    Returns:
        (Path): The PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {int(item["id"]): str(item["name"]).replace("_", " ") for item in truth["categories"]}
    images = list(truth["images"])[:COLUMNS]
    rows = [("drawn objects", None), *((arm.name, arm) for arm in arms[1:])]
    figure = Figure(figsize=(2.15 * len(images) + 4.0, 2.35 * len(rows) + 0.8), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        len(images) + 1,
        width_ratios=[1.0] * len(images) + [1.25],
        left=0.03,
        right=0.98,
        top=0.93,
        bottom=0.07,
    )
    grid.update(wspace=0.05, hspace=0.07)
    for row, (title, arm) in enumerate(rows):
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column])
            pixels = cv2.imread(str(image["file_name"]))
            assert pixels is not None
            axes.imshow(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(title, fontsize=12, fontweight="bold")
            objects = _boxes(truth["annotations"], image["id"])
            if arm is None:
                for box in objects:
                    _draw(axes, box, TRUTH, names[int(box[4])])
                continue
            found = _boxes(arm.evaluation.detections, image["id"])
            right, missed = match(found, objects)
            for box in objects[missed]:
                _draw(axes, box, MISSED, "", style=(0, (2, 2)))
            for box, correct in zip(found, right):
                _draw(axes, box, RIGHT if correct else WRONG, names[int(box[4])])
    _draw_bars(figure.add_subplot(grid[:, -1]), arms)
    keys = [(TRUTH, "object"), (RIGHT, "right"), (WRONG, "wrong"), (MISSED, "missed")]
    for index, (colour, text) in enumerate(keys):
        figure.text(0.035 + 0.075 * index, 0.025, f"■ {text}", color=colour, fontsize=11)
    figure.text(
        0.345,
        0.025,
        f"confidence {CONF} and more; right: same class, IoU {MATCH_IOU} and more",
        fontsize=9,
        color="#555555",
    )
    figure.text(0.03, 0.955, "The first validation images", fontsize=13, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def match(found: Boxes, objects: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match detections to objects of their class, best scores first, each object once.

    Args:
        found (np.ndarray): Detections with shape (N, 6): x, y, width, height, class, score.
        objects (np.ndarray): Objects with shape (M, 6), their score is not read.

    Returns:
        right (np.ndarray): Whether each detection has an object, with shape (N,).
        missed (np.ndarray): Whether each object is left without a detection, with shape (M,).
    """
    right, missed = np.zeros(len(found), dtype=bool), np.ones(len(objects), dtype=bool)
    for index in np.argsort(-found[:, 5], kind="stable"):
        overlaps = _iou(found[index], objects) * missed * (objects[:, 4] == found[index, 4])
        if len(overlaps) and overlaps.max() >= MATCH_IOU:
            right[index], missed[int(overlaps.argmax())] = True, False
    return right, missed


def _iou(box: NDArray[np.float64], others: Boxes) -> NDArray[np.float64]:
    """Return the IoU of one box with others, all x, y, width, height, ..., with shape (M,)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:4], others[:, :2] + others[:, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    return shared / np.maximum(box[2] * box[3] + others[:, 2] * others[:, 3] - shared, 1e-9)


def _boxes(items: Sequence[Mapping[str, Any]], image: Any) -> Boxes:
    """Return the boxes of one image that are drawn, with shape (N, 6): x, y, width, height, class, score."""
    rows = [
        [*item["bbox"], item["category_id"], item.get("score", 1.0)]
        for item in items
        if item["image_id"] == image and item.get("score", 1.0) >= CONF
    ]
    return np.asarray(rows, dtype=np.float64).reshape(-1, 6)


def _draw(axes: Any, box: NDArray[np.float64], colour: str, text: str, style: Any = "-") -> None:
    """Draw one box with its name above it, or inside where there is no room above."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box[:4]
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.6, linestyle=style)
    )
    if text:
        room = y > 8
        label = {"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
        axes.text(
            x - 0.5,
            y - 1.5 if room else y + 0.5,
            text,
            fontsize=6.5,
            color="white",
            va="bottom" if room else "top",
            bbox=label,
            clip_on=True,
        )


def _draw_bars(axes: Any, arms: Sequence[Any]) -> None:
    """Draw one bar of AP for each model."""
    values = [100 * (arm.evaluation.ap or 0.0) for arm in arms]
    axes.bar(range(len(arms)), values, color=BARS[: len(arms)], width=0.65)
    for index, value in enumerate(values):
        axes.text(index, value, f"{value:.1f}", ha="center", va="bottom", fontsize=12, fontweight="bold")
    axes.set_xticks(range(len(arms)), [arm.name.replace(" ", "\n") for arm in arms], fontsize=10)
    axes.set_ylim(0, max(*values, 1.0) * 1.12)
    axes.set_title("AP on all validation images", fontsize=11)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
