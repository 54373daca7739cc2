"""How far the outputs of two copies of one detector are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.utils.nms import non_max_suppression

SAME_PLACE = 0.05  # corners this far apart, as a fraction of the longer side, are one place (or half a pixel)
LEAST_SCALE = 1e-3  # classes that are nowhere seen are compared to this: ONNX Runtime's sigmoid errs by 2e-7 anywhere

Array = NDArray[np.float32]


def detections(
    output: Array, conf: float, iou: float, nc: int, final: bool, rotated: bool, most: int = 300, agnostic: bool = False
) -> Array:
    """Return the detections (N, 6) of one image as x1, y1, x2, y2, score, class; rotated boxes as if they were not.

    With an IoU of 1 these are all that there are, of every class of a box and not of its best one alone.
    """
    if not final:
        raw = torch.from_numpy(output[:, : 4 + nc + rotated].copy())
        whole = iou >= 1
        settings: Any = {"nc": nc, "max_det": raw.shape[2] * nc if whole else most, "multi_label": whole}
        settings |= {"agnostic": agnostic, "max_time_img": 60.0, "rotated": rotated}
        rows = non_max_suppression(raw, conf, iou, **settings)[0].numpy()[:, :6]
    else:
        rows = output[0][output[0][:, 4] >= conf][:, :6]
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    return np.hstack((centre - half, centre + half, rows[:, 4:])) if rotated else rows


def difference(ours: Sequence[Array], theirs: Sequence[Array]) -> tuple[float, float]:
    """Return the largest difference of raw outputs.

    Args:
        ours (Sequence[np.ndarray]): Outputs to compare with, each with shape (1, 4 + nc, A): boxes, then scores.
        theirs (Sequence[np.ndarray]): The outputs compared, in the same order.

    Returns:
        absolute (float): The largest difference; infinite where shapes differ or a value is not a number.
        relative (float): The largest difference divided by the largest value of its channel over all outputs.
    """
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(ours, theirs)):
        return math.inf, math.inf
    gap = np.max([np.abs(a - b).max(axis=(0, 2)) for a, b in zip(ours, theirs)], axis=0)  # (4 + nc,)
    scale = np.max([np.abs(a).max(axis=(0, 2)) for a in ours], axis=0)
    return float(gap.max()), float((gap / np.maximum(scale, LEAST_SCALE)).max())


def ordered_difference(ours: Sequence[Array], theirs: Sequence[Array], tolerance: float) -> tuple[float, float]:
    """Return the largest difference of final detections, which come in the order of their scores.

    Args:
        ours (Sequence[np.ndarray]): Detections to compare with, each with shape (N, 6): box, score, class.
        theirs (Sequence[np.ndarray]): The detections compared, in the same order.
        tolerance (float): Scores that differ by less than this fraction of the highest one may change places.

    Returns:
        absolute (float): The largest difference; infinite where shapes differ or a detection has no like.
        relative (float): The largest difference divided by the largest value of boxes or scores.
    """
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in zip(ours, theirs)):
        return math.inf, math.inf
    top = max(1e-12, *(float(rows[:, 4].max()) for rows in ours))
    side = max(1e-12, *(float(np.abs(rows[:, :4]).max()) for rows in ours))
    box_gap = score_gap = 0.0
    for a, b in zip(ours, theirs):
        score_gap = max(score_gap, float(np.abs(np.sort(a[:, 4]) - np.sort(b[:, 4])).max()))
        sure = a[:, 4] > a[:, 4].min() + 2 * tolerance * top  # the last ones may fall out of the list on one side
        box_gap = max(box_gap, _nearest(a[sure], b, tolerance * top))
    return max(box_gap, score_gap), max(box_gap / side, score_gap / top)


def matched_difference(ours: Sequence[Array], theirs: Sequence[Array], conf: float) -> tuple[float, float]:
    """Return the largest difference of detections after NMS from the nearest ones of their class on the other side.

    Args:
        ours (Sequence[np.ndarray]): Detections to compare with, each with shape (N, 6): box, score, class.
        theirs (Sequence[np.ndarray]): The detections compared, in the same order.
        conf (float): Score from which on detections are compared; those below serve as partners only.

    Returns:
        absolute (float): The largest difference; infinite where a detection has no like, 0 where there are none.
        relative (float): The largest difference divided by the largest box coordinate.
    """
    gap, side = 0.0, 1e-12
    for a, b in zip(ours, theirs):
        gap = max(gap, _nearest(a[a[:, 4] >= conf], b, 1.0), _nearest(b[b[:, 4] >= conf], a, 1.0))
        side = max(side, float(np.abs(a[:, :4]).max(initial=0.0)))
    return gap, gap / side


def partnered(rows: Array, others: Array, conf: float, tolerance: float) -> bool:
    """Return whether each detection from a score on has a partner of its class, place and score.

    Args:
        rows (np.ndarray): Detections with shape (N, 6): box, score, class.
        others (np.ndarray): Possible partners with shape (M, 6).
        conf (float): Score from which on a detection needs a partner.
        tolerance (float): Largest difference of the two scores.
    """
    rows = rows[rows[:, 4] >= conf]
    if not len(rows) or not len(others):
        return not len(rows)
    apart = np.abs(rows[:, None, :4] - others[None, :, :4]).max(axis=2)  # (N, M)
    side = np.abs(rows[:, 2:4] - rows[:, :2]).max(axis=1, keepdims=True)
    fits = (apart <= np.maximum(SAME_PLACE * side, 0.5)) & (rows[:, None, 5] == others[None, :, 5])
    fits &= np.abs(rows[:, None, 4] - others[None, :, 4]) <= tolerance
    return bool(fits.any(axis=1).all())


def not_checked(exported: Path) -> str:
    """Return why an exported file was not compared with its weights."""
    if exported.suffix == ".onnx":
        return (
            f"parity not checked: {exported} is 8-bit, which does not repeat its weights' outputs; validate it, e.g. "
            f"yolokd val model={exported} data=mine.yaml"
        )
    return (
        f"parity not checked: {exported} is no ONNX file; validate it, e.g. yolokd val model={exported} data=mine.yaml"
    )


def _nearest(rows: Array, others: Array, slack: float) -> float:
    """Return how far in pixels the worst row's box is from the nearest box of its class and score."""
    if not len(rows) or not len(others):
        return 0.0 if not len(rows) else math.inf
    apart = np.abs(rows[:, None, :4] - others[None, :, :4]).max(axis=2)  # (N, M)
    fits = (rows[:, None, 5] == others[None, :, 5]) & (np.abs(rows[:, None, 4] - others[None, :, 4]) <= slack)
    return float(np.where(fits, apart, math.inf).min(axis=1).max())
