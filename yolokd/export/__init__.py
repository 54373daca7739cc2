"""Export, and the proof that an exported ONNX file computes what the PyTorch weights compute."""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from ultralytics.engine.model import Model
from ultralytics.nn.modules.head import RTDETRDecoder

from yolokd.drawn.drawing import Drawing, draw_image
from yolokd.errors import UserError
from yolokd.export.parity import Array, detections, difference, matched_difference, ordered_difference, partnered
from yolokd.models import input_channels
from yolokd.trust import open_model

NOISE_INPUTS, DRAWN_INPUTS = 2, 6
TOLERANCE = {32: 1e-3, 16: 5e-2}  # largest difference as a fraction of the channel's largest value, by bits
CONF, IOU, MOST = 0.25, 0.7, 300  # the host's values for detections
TASKS = ("detect", "segment", "pose", "obb")
LEAST_CONF = 0.01  # below this a score says nothing


@dataclass(frozen=True)
class Parity:
    """How far an exported model agrees with its weights on the same inputs.

    Attributes:
        exported (str): Path of the exported file.
        inputs (int): Number of images compared.
        max_abs (float): Largest difference of the outputs: pixels for boxes, 1 for scores.
        max_rel (float): Largest difference divided by the largest value of that output channel over all inputs.
        tolerance (float): What max_rel may be at the most.
        detections_torch (int): Detections of the weights at `conf`, after NMS where the model needs it.
        detections_onnx (int): Detections of the exported file at `conf`.
        conf (float): Confidence threshold; below the usual one where the weights detect nothing on the inputs.
        same_detections (bool): Whether each detection of either side has a partner of its class and score on the
            other side, its corners within a twentieth of its longer side; NMS may have dropped the partner there.
        end2end (bool): Whether the exported file gives final detections by itself.
        bits (int): Precision of the exported file, 32 or 16.
        nms (bool): Whether NMS is built into the file, which then gives the detections at `conf` alone.
    """

    exported: str
    inputs: int
    max_abs: float
    max_rel: float
    tolerance: float
    detections_torch: int
    detections_onnx: int
    conf: float
    same_detections: bool
    end2end: bool
    bits: int
    nms: bool

    @property
    def ok(self) -> bool:
        """Whether the outputs agree within the tolerance and the detections are the same."""
        return self.max_rel <= self.tolerance and self.same_detections

    def summary(self) -> str:
        """Return the result in two lines."""
        verdict = "agrees with" if self.ok else "DIFFERS from"
        same = "the same" if self.same_detections else "NOT the same"
        if self.same_detections and self.detections_torch != self.detections_onnx:
            same += ", but for what NMS chose among like scores"
        counts = (
            f"{self.detections_torch} detections in PyTorch, {self.detections_onnx} in ONNX at conf {self.conf:.2g}"
        )
        detections = f"{counts}, {same}"
        if not self.detections_torch and not self.detections_onnx:
            if self.nms:
                return (
                    f"parity: {self.exported} gives final detections, and neither it nor its weights detect anything "
                    f"on {self.inputs} images at conf {self.conf:.2g}:\n        there was nothing to compare; for a "
                    f"comparison export with a lower threshold, e.g. conf={LEAST_CONF}"
                )
            detections = f"nothing detected at conf {self.conf:.2g}, the raw outputs alone were compared"
        return (
            f"parity: {self.exported} ({self.bits} bit{', end-to-end' if self.end2end else ''}) {verdict} its weights "
            f"on {self.inputs} images\n"
            f"        largest difference {self.max_abs:.2g}, relative {self.max_rel:.2g} (allowed {self.tolerance:g}); "
            f"{detections}"
        )


def export_and_check(model: str | Path | Model, overrides: Mapping[str, Any]) -> tuple[Path, Parity | None]:
    """Export a model as Ultralytics does, and compare the file with the weights where that is possible.

    Args:
        model (str | Path | Model): The weights, or a loaded model.
        overrides (Mapping[str, Any]): Ultralytics' export arguments, e.g. `{"format": "onnx", "imgsz": 640}`.

    Returns:
        path (Path): The exported file or folder.
        parity (Parity | None): The comparison; None for formats other than ONNX and for 8-bit files, which do not
            repeat their weights' outputs.

    Examples:
        >>> path, parity = export_and_check("best.pt", {"format": "onnx"})
        >>> print(parity.summary())
    """
    loaded = model if isinstance(model, Model) else open_model(model)
    path = Path(loaded.export(**overrides))
    if path.suffix != ".onnx" or _bits(_read(path)[1]) not in TOLERANCE:
        return path, None
    conf, iou, most = (overrides.get(key) or usual for key, usual in (("conf", CONF), ("iou", IOU), ("max_det", MOST)))
    agnostic = bool(overrides.get("agnostic_nms"))
    return path, check_export(loaded, path, conf=float(conf), iou=float(iou), max_det=int(most), agnostic_nms=agnostic)


def check_export(
    weights: str | Path | Model | nn.Module,
    exported: str | Path,
    imgsz: int | Sequence[int] | None = None,
    conf: float = CONF,
    iou: float = IOU,
    seed: int = 0,
    max_det: int = MOST,
    agnostic_nms: bool = False,
) -> Parity:
    """Compare an exported ONNX detector with its weights on noise and drawn images, on the CPU.

    The outputs are compared value by value, and the detections after them. An end-to-end file gives its detections in
    the order of their scores: there the sorted scores are compared, and each box with the nearest one of its class and
    score, since equal scores may come in another order. A file of dynamic shape is tried at a second size too. Of
    other tasks the mask coefficients, keypoints and angles are compared in raw outputs, and mask prototypes always.

    Args:
        weights (str | Path | Model | nn.Module): The weights that were exported; a given model is left as it is.
        exported (str | Path): The ONNX file.
        imgsz (int | Sequence[int] | None): Input height and width in pixels; by default those of the file.
        conf (float): Confidence threshold for detections; one built into the file must be the same.
        iou (float): IoU threshold of NMS; one built into the file must be the same.
        seed (int): Seed of the inputs.
        max_det (int): Most detections of an image; one built into the file must be the same.
        agnostic_nms (bool): Whether NMS looks at all classes together; what is built into the file must be the same.

    Returns:
        (Parity): The largest differences and whether the file may be trusted.

    Raises:
        UserError: If the file is no ONNX detector of Ultralytics, is 8-bit, or takes another size or channel count.
    """
    session, meta = _read(Path(exported))
    bits = _bits(meta)
    if bits not in TOLERANCE:
        raise UserError(f"{exported} is quantised to {bits} bits; parity can be checked for 32 and 16 bits")
    if meta["task"] not in TASKS:
        raise UserError(f"{exported} is a {meta['task']} model; parity can be checked for {', '.join(TASKS)}")
    end2end, with_nms = bool(meta.get("end2end")), bool(meta.get("args", {}).get("nms"))
    model = _reference(weights, end2end, max_det, agnostic_nms)
    queries = isinstance(model.model[-1], RTDETRDecoder)
    end2end = end2end or queries
    width = session.get_inputs()[0].shape[1]
    channels = input_channels(model)
    if isinstance(width, int) and width != channels:
        raise UserError(f"{exported} takes {width} channels and the weights {channels}: they do not belong together")

    pairs = []  # outputs of (torch, onnx), each (1, rows, columns)
    protos = []  # prototypes of a segmentation model, each (1, masks, places)
    for batch in _batches(session, meta, channels, imgsz, seed):
        with torch.inference_mode():
            expected = _outputs(model(torch.from_numpy(batch)))
        given = [np.asarray(o, dtype=np.float32) for o in session.run(None, {session.get_inputs()[0].name: batch})]
        if end2end or with_nms:  # rows of box, score, class, and what else a task has
            sides = (*batch.shape[:1:-1], *batch.shape[:1:-1]) if queries else (1, 1, 1, 1)
            unit = np.array([*sides, 1, 1], dtype=np.float32)  # queries give fractions of the image
            expected[0] = expected[0][:, :max_det, :6] * unit if end2end else expected[0]
            given[0] = given[0][..., :6] * unit
        pairs += [(expected[0][i : i + 1], given[0][i : i + 1]) for i in range(len(batch))]
        if len(expected) > 1 and not with_nms:
            protos.append([side[1].reshape(1, side[1].shape[1], -1) for side in (expected, given)])

    nc, tolerance = len(meta["names"]), TOLERANCE[bits]
    if not with_nms:  # lower the threshold for models that are not sure of anything
        best = max(float((o[..., 4] if end2end else o[:, 4 : 4 + nc]).max()) for o, _ in pairs)
        conf = min(conf, max(0.5 * best, LEAST_CONF))
    slack = conf * tolerance
    obb = meta["task"] == "obb"
    nms: Any = {"most": max_det, "agnostic": agnostic_nms}
    ours = [detections(output, conf - slack, iou, nc, end2end, obb, **nms) for output, _ in pairs]
    theirs = [detections(output, conf - slack, iou, nc, end2end or with_nms, obb, **nms) for _, output in pairs]
    if with_nms:
        max_abs, max_rel = matched_difference(ours, theirs, conf + slack)
    elif end2end:
        max_abs, max_rel = ordered_difference([a[0] for a, _ in pairs], [b[0] for _, b in pairs], tolerance)
    else:
        max_abs, max_rel = difference([a for a, _ in pairs], [b for _, b in pairs])
    if protos:
        worst = difference([a for a, _ in protos], [b for _, b in protos])
        max_abs, max_rel = max(max_abs, worst[0]), max(max_rel, worst[1])
    # which of two boxes with like scores NMS keeps may differ, or which of a box's classes: a partner may be dropped
    more = [detections(output, conf - slack, 1.0, nc, end2end, obb) for output, _ in pairs]
    others = [detections(output, conf - slack, 1.0, nc, end2end or with_nms, obb) for _, output in pairs]
    same = all(partnered(a, b, conf + slack, tolerance) for a, b in zip(ours + theirs, others + more))
    return Parity(
        exported=str(exported),
        inputs=len(pairs),
        max_abs=max_abs,
        max_rel=max_rel,
        tolerance=tolerance,
        detections_torch=sum(int((rows[:, 4] >= conf).sum()) for rows in ours),
        detections_onnx=sum(int((rows[:, 4] >= conf).sum()) for rows in theirs),
        conf=conf,
        same_detections=same,
        end2end=end2end or with_nms,
        bits=bits,
        nms=with_nms,
    )


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return an ONNX Runtime session on the CPU and the metadata that Ultralytics wrote into the file."""
    import onnxruntime

    if path.suffix != ".onnx" or not path.is_file():
        raise UserError(f"{path} is no ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    meta: dict[str, Any] = dict(session.get_modelmeta().custom_metadata_map)
    if "task" not in meta or "names" not in meta:
        raise UserError(f"{path} was not exported by Ultralytics: it carries no task and names")
    for key in meta.keys() & {"names", "args", "imgsz", "batch", "end2end", "stride"}:
        meta[key] = ast.literal_eval(meta[key])
    return session, meta


def _bits(meta: Mapping[str, Any]) -> int:
    """Return the precision of an exported file in bits."""
    args = meta.get("args", {})
    value = args.get("quantize") or (16 if args.get("half") else 8 if args.get("int8") else 32)
    return int(value) if str(value) in {"8", "16", "32"} else 8


def _reference(weights: str | Path | Model | nn.Module, end2end: bool, max_det: int, agnostic_nms: bool) -> Any:
    """Return an own copy of the model in float32 on the CPU, not fused, that gives what the file should give."""
    if isinstance(weights, (str, Path)):
        weights = open_model(weights)
    model: Any = weights.model if isinstance(weights, Model) else weights
    model = copy.deepcopy(model).float().cpu().eval()
    head = model.model[-1]
    if not isinstance(head, RTDETRDecoder) and (end2end or getattr(model, "end2end", False)):
        model.end2end = end2end
    head.export, head.dynamic, head.shape = False, False, None
    head.max_det, head.agnostic_nms = max_det, agnostic_nms
    return model


def _outputs(output: Any) -> list[Array]:
    """Return what a model gives in evaluation: detections, and of a segmentation model the prototypes after them."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    return [tensor.float().numpy() for tensor in (first if isinstance(first, (tuple, list)) else [first])]


def _batches(
    session: Any, meta: Mapping[str, Any], channels: int, imgsz: int | Sequence[int] | None, seed: int
) -> list[Array]:
    """Return the inputs, each (B, C, H, W) in [0, 1]: noise and drawn images, at a second size for dynamic files."""
    shape = session.get_inputs()[0].shape
    stride = int(meta.get("stride", 32))
    size = list(meta["imgsz"]) if imgsz is None else [imgsz, imgsz] if isinstance(imgsz, int) else list(imgsz)
    for index, (wanted, fixed) in enumerate(zip(size, shape[2:])):
        if isinstance(fixed, int) and fixed != wanted:
            raise UserError(f"imgsz={imgsz}: the file was exported for {shape[2]} x {shape[3]} pixels")
        size[index] = max(math.ceil(int(wanted) / stride), 1) * stride
    batch = shape[0] if isinstance(shape[0], int) else int(meta.get("batch", 1))
    sizes = [size] if isinstance(shape[2], int) else [size, [size[0] + stride, size[1]]]
    count = math.ceil((NOISE_INPUTS + DRAWN_INPUTS) / batch) * batch
    batches: list[Array] = []
    for height, width in sizes:
        images = np.stack([_image(index, height, width, channels, seed) for index in range(count)])
        batches += [images[start : start + batch] for start in range(0, count, batch)]
        if not isinstance(shape[0], int) and not meta.get("args", {}).get("nms"):
            batches.append(images[NOISE_INPUTS - 1 : NOISE_INPUTS + batch])  # one more image than exported with
    return batches


def _image(index: int, height: int, width: int, channels: int, seed: int) -> Array:
    """Return one input (C, H, W): noise first, then drawn images stretched to the size."""
    if index < NOISE_INPUTS:
        return np.random.default_rng([seed, index]).random((channels, height, width), dtype=np.float32)
    drawing = Drawing(imgsz=max(64, min(height, width)), seed=seed, noise=0.3, channels=1 if channels == 1 else 3)
    image, _ = draw_image(drawing, split=1, index=index)
    image = np.asarray(cv2.resize(image, (width, height)), dtype=np.uint8).reshape(height, width, -1)
    image = np.resize(image.transpose(2, 0, 1), (channels, height, width))  # repeats planes beyond the third
    return np.ascontiguousarray(image / 255, dtype=np.float32)
