"""COCO numbers of detections by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolokd.evaluation.bootstrap import Bootstrap, Matches, collect_matches, paired_bootstrap

AREAS = ("all", "small", "medium", "large")  # below 32, 32 to 96 and above 96 pixels square, of the original image
MAX_DETECTIONS = 100  # per image and class, as COCO has it


@dataclass(frozen=True)
class Evaluation:
    """COCO numbers of one model on one split, as fractions; None where there is no object to find.

    Attributes:
        ap (float | None): Average precision, mean over IoU thresholds 0.50:0.95 and classes.
        ap50 (float | None): Average precision at IoU 0.50.
        ap75 (float | None): Average precision at IoU 0.75.
        ap_small (float | None): AP of objects under 32 x 32 pixels of the original image.
        ap_medium (float | None): AP of objects from 32 x 32 to 96 x 96 pixels.
        ap_large (float | None): AP of objects over 96 x 96 pixels.
        ar (float | None): Average recall over IoU thresholds and classes.
        per_class (dict[str, float | None]): AP of each class.
        objects (dict[str, int]): Objects of each class, crowds left out.
        images (int): Number of images.
        max_detections (int): Detections per image and class that counted.
        host_ap (float | None): AP that Ultralytics computed on the very same predictions; None where it did not run or
            its class list is another one.
        detections (list[dict[str, Any]]): The detections in COCO's form.
        matches (Matches): The matches behind the AP, for the bootstrap over images.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    per_class: dict[str, float | None]
    objects: dict[str, int]
    images: int
    max_detections: int
    host_ap: float | None = None
    detections: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)
    matches: Matches = field(default_factory=lambda: Matches((), ()), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, without detections and matches, as plain values that JSON can hold."""
        hidden = ("detections", "matches")
        return {key: deepcopy(value) for key, value in vars(self).items() if key not in hidden}


def score(
    ground_truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], host_ap: float | None = None
) -> Evaluation:
    """Compute the COCO numbers of detections with pycocotools.

    Args:
        ground_truth (Mapping[str, Any]): COCO ground truth; it is not changed.
        detections (Sequence[Mapping[str, Any]]): Detections in COCO's form; may be empty.
        host_ap (float, optional): AP by Ultralytics, to be kept beside.

    Returns:
        (Evaluation): The numbers. Where an image holds more than 100 objects of a class, so many detections count.
    """
    from pycocotools.cocoeval import COCOeval

    found = [{**d, "id": i, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for i, d in enumerate(detections, 1)]
    real = [a for a in ground_truth["annotations"] if not a.get("iscrowd")]
    keys = np.asarray([(a["image_id"], a["category_id"]) for a in real], dtype=np.int64).reshape(-1, 2)
    crowded = int(np.unique(keys, axis=0, return_counts=True)[1].max(initial=0))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(ground_truth, [dict(a) for a in ground_truth["annotations"]])
        evaluator = COCOeval(truth, _index(ground_truth, found), "bbox")
        evaluator.params.maxDets = [1, 10, max(MAX_DETECTIONS, crowded)]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    ids = [int(k) for k in evaluator.params.catIds]
    names = _unique({int(c["id"]): str(c["name"]) for c in ground_truth["categories"]})
    sizes = {area: _mean(precision[:, :, :, a, -1]) for a, area in enumerate(AREAS)}
    return Evaluation(
        ap=sizes["all"],
        ap50=_mean(precision[0, :, :, 0, -1]),
        ap75=_mean(precision[5, :, :, 0, -1]),
        ap_small=sizes["small"],
        ap_medium=sizes["medium"],
        ap_large=sizes["large"],
        ar=_mean(recall[:, :, 0, -1]),
        per_class={names[c]: _mean(precision[:, :, k, 0, -1]) for k, c in enumerate(ids)},
        objects={names[c]: int(np.count_nonzero(keys[:, 1] == c)) for c in ids},
        images=len(ground_truth["images"]),
        max_detections=evaluator.params.maxDets[-1],
        host_ap=host_ap,
        detections=[dict(d) for d in detections],
        matches=collect_matches(evaluator),
    )


def bootstrap(
    evaluation_a: Evaluation, evaluation_b: Evaluation, samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Bootstrap:
    """Bootstrap the AP difference of two evaluations over their images.

    Args:
        evaluation_a (Evaluation): Evaluation of the first model.
        evaluation_b (Evaluation): Evaluation of the second model on the same images.
        samples (int): Number of resamples.
        seed (int): Seed of the resampling.
        confidence (float): Confidence of the percentile interval.

    Returns:
        (Bootstrap): AP of the first minus AP of the second, with its interval.

    Raises:
        ValueError: If the two were not evaluated on the same images and objects.
    """
    return paired_bootstrap(evaluation_a.matches, evaluation_b.matches, samples, seed, confidence)


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> Any:
    """Return annotations as a pycocotools COCO over the ground truth's images and categories."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {**{key: ground_truth[key] for key in ("images", "categories")}, "annotations": annotations}
    coco.createIndex()
    return coco


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values that exist (pycocotools writes -1 for those that don't), or None."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _unique(names: Mapping[int, str]) -> dict[int, str]:
    """Return names that differ from each other: those that occur more than once get their index behind them."""
    seen = list(names.values())
    return {index: name if seen.count(name) == 1 else f"{name} ({index})" for index, name in names.items()}
