"""Average precision of resampled image sets, and the paired bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECALLS = np.linspace(0.0, 1.0, 101)  # recall points of the COCO average precision
CHUNK = 4_000_000  # resamples are worked off in parts of about so many weights


@dataclass(frozen=True)
class ClassMatches:
    """What a model found of one class, highest score first.

    Attributes:
        image (np.ndarray): Position of each detection's image with shape (D,), int64.
        hit (np.ndarray): Whether the detection found an object, per IoU threshold, with shape (T, D), bool.
        ignored (np.ndarray): Whether the detection does not count, e.g. it lies on a crowd, shape (T, D), bool.
        objects (np.ndarray): Objects to be found in each image with shape (I,), int64.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """The matches of detections and objects of all classes on all images, over all areas.

    Attributes:
        images (tuple[int, ...]): COCO image ids; the positions in this tuple are those that the classes refer to.
        classes (tuple[ClassMatches, ...]): The classes in the order of their ids.
    """

    images: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Bootstrap:
    """The difference in AP of two models on the same images, and how far it depends on these images.

    Attributes:
        difference (float | None): AP of the first model minus that of the second, in [-1, 1]; None without objects.
        low (float | None): Lower end of the percentile interval.
        high (float | None): Upper end of the percentile interval.
        p (float | None): Two-sided p value of no difference.
        images (int): Number of images.
        samples (int): Number of resamples that held objects.
        confidence (float): Confidence of the interval.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    images: int
    samples: int
    confidence: float


def collect_matches(evaluator: Any) -> Matches:
    """Read the matches from a pycocotools COCOeval whose `evaluate()` has run.

    Args:
        evaluator (pycocotools.cocoeval.COCOeval): The evaluator; its first area range must be the one over all areas.

    Returns:
        (Matches): The matches, in a form that can be reweighted.
    """
    params = evaluator.params
    count, areas, thresholds = len(params.imgIds), len(params.areaRng), len(params.iouThrs)
    classes = []
    for k in range(len(params.catIds)):
        start = k * areas * count  # evalImgs runs over classes, then areas, then images
        cells = [(i, cell) for i, cell in enumerate(evaluator.evalImgs[start : start + count]) if cell is not None]
        objects = np.zeros(count, dtype=np.int64)
        for i, cell in cells:
            objects[i] = np.count_nonzero(np.asarray(cell["gtIgnore"]) == 0)
        scores = np.concatenate([np.zeros(0), *(np.asarray(cell["dtScores"], dtype=np.float64) for _, cell in cells)])
        order = np.argsort(-scores, kind="stable")
        image = np.concatenate([np.zeros(0, np.int64), *(np.full(len(c["dtScores"]), i, np.int64) for i, c in cells)])
        empty = np.zeros((thresholds, 0), dtype=bool)
        hit = np.concatenate([empty, *(np.asarray(cell["dtMatches"]) > 0 for _, cell in cells)], axis=1)
        ignored = np.concatenate([empty, *(np.asarray(cell["dtIgnore"], dtype=bool) for _, cell in cells)], axis=1)
        classes.append(ClassMatches(image[order], hit[:, order], ignored[:, order], objects))
    return Matches(tuple(int(i) for i in params.imgIds), tuple(classes))


def average_precision(matches: Matches, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the AP (0.50:0.95) that pycocotools gives when each image is present a number of times.

    An image that is present twice weighs its detections and objects twice, which gives the same interpolated precision
    as listing it twice. The order among exactly equal scores within one image is the only freedom left.

    Args:
        matches (Matches): The matches on all images.
        counts (np.ndarray): How often each image is present in each resample, with shape (S, I), int64.

    Returns:
        (np.ndarray): AP of each resample with shape (S,), averaged over the classes that have objects in it; NaN where
            no class has any.
    """
    total = np.zeros(len(counts))
    present = np.zeros(len(counts), dtype=np.int64)
    for found in matches.classes:
        step = max(1, CHUNK // max(1, len(found.image)))
        ap = np.concatenate([_class_precision(found, counts[s : s + step]) for s in range(0, len(counts), step)])
        total += np.where(np.isnan(ap), 0.0, ap)
        present += ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / present)  # 0 / 0 = NaN


def _class_precision(found: ClassMatches, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return one class's AP in each resample with shape (S,), NaN where the class has no object."""
    objects = counts @ found.objects  # (S,)
    weights = counts[:, found.image]  # (S, D)
    total = np.zeros(len(counts))
    seen_of: dict[bytes, NDArray[np.int64]] = {}
    for hit, ignored in zip(found.hit, found.ignored):
        key = ignored.tobytes()
        if key not in seen_of:  # without crowds the same for all thresholds
            seen_of = {key: np.cumsum(np.where(ignored, 0, weights), axis=1)}
        hits = np.flatnonzero(hit & ~ignored)  # precision peaks at hits, so the other points never count
        true = np.cumsum(weights[:, hits], axis=1)  # (S, P)
        precision = true / (seen_of[key][:, hits] + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(objects, 1)[:, None]
        reached = np.searchsorted(RECALLS, recall, side="right")  # recall points at or below each point of the curve
        total += (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(objects > 0, total / len(found.hit), np.nan)


def paired_bootstrap(a: Matches, b: Matches, samples: int = 1000, seed: int = 0, confidence: float = 0.95) -> Bootstrap:
    """Bootstrap the AP difference of two models over the images, both on the same resamples.

    The interval says how far the difference of these two trained models depends on the choice of images. It knows
    nothing of how much two runs of one setting differ.

    Args:
        a (Matches): Matches of the first model.
        b (Matches): Matches of the second model on the same images.
        samples (int): Number of resamples.
        seed (int): Seed of the resampling.
        confidence (float): Confidence of the percentile interval, in (0, 1).

    Returns:
        (Bootstrap): AP of `a` minus AP of `b`, with its interval.

    Raises:
        ValueError: If the two were not evaluated on the same images and objects, or there is nothing to resample.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"samples={samples} must be positive and confidence={confidence} in (0, 1)")
    if not same_ground_truth((a, b)):
        raise ValueError("the two evaluations are not of the same images and objects")
    count = len(a.images)
    once = np.ones((1, count), dtype=np.int64)
    difference = float((average_precision(a, once) - average_precision(b, once))[0])
    if np.isnan(difference):
        return Bootstrap(None, None, None, None, images=count, samples=0, confidence=confidence)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(count, np.full(count, 1 / count), size=samples)
    spread = average_precision(a, counts) - average_precision(b, counts)
    spread = spread[~np.isnan(spread)]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(spread, [tail, 100 - tail]) if len(spread) else (difference, difference)
    rarer = min(np.count_nonzero(spread <= 0), np.count_nonzero(spread >= 0))
    p = min(1.0, 2 * (rarer + 1) / (len(spread) + 1))
    return Bootstrap(difference, float(low), float(high), float(p), count, len(spread), confidence)


def same_ground_truth(matches: Sequence[Matches]) -> bool:
    """Return whether all were evaluated on the same images with the same number of objects of each class."""
    first = matches[0]
    return all(
        m.images == first.images
        and len(m.classes) == len(first.classes)
        and all(np.array_equal(x.objects, y.objects) for x, y in zip(m.classes, first.classes))
        for m in matches[1:]
    )
