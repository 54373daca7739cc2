"""Heads of teachers of every kind reduced to what is read of them: class logits and boxes on a dense grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.head import OBB, Detect, Pose, RTDETRDecoder, Segment, WorldDetect, YOLOEDetect

from yolokd.models import BRANCH_PREFIXES, class_names

READ = {"cv2", "cv3", "dfl"}


class Neck(nn.Module):
    """Stands in for a model's head where only its neck maps are used."""

    def __init__(self, head: nn.Module):
        """Take over the place of a head in the layer graph."""
        super().__init__()
        self.f: Any = head.f
        self.i: Any = head.i
        self.np = 0

    def forward(self, x: list[torch.Tensor], *_: Any) -> list[torch.Tensor]:
        """Return the maps that would enter the head; whatever else it is given is left aside."""
        return x


class Contrast(nn.Module):
    """The last step of an open-vocabulary head with its class embeddings held: from features to class logits."""

    def __init__(self, head: nn.Module, embeddings: torch.Tensor):
        """Hold the embeddings.

        Args:
            head (nn.Module): The contrastive head of one level.
            embeddings (torch.Tensor): Class embeddings with shape (1, K, E).
        """
        super().__init__()
        self.head = head
        self.register_buffer("embeddings", embeddings)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return class logits with shape (B, K, H, W) for features with shape (B, E, H, W)."""
        embeddings: Any = self.embeddings
        logits: torch.Tensor = self.head(features, embeddings.to(features.dtype).expand(len(features), -1, -1))
        return logits


def task_of(head: nn.Module) -> str:
    """Return the task that a head was made for: `detect`, `segment`, `pose` or `obb`."""
    if isinstance(head, OBB):
        return "obb"
    if isinstance(head, Pose):
        return "pose"
    is_segment = isinstance(head, Segment) or (isinstance(head, YOLOEDetect) and hasattr(head, "proto"))
    return "segment" if is_segment else "detect"


def text_embeddings(model: Any) -> torch.Tensor | None:
    """Return the class embeddings that an open-vocabulary model holds, with shape (1, K, E), or None."""
    kept = getattr(model, "txt_feats" if isinstance(model.model[-1], WorldDetect) else "pe", None)
    return kept.detach().clone().float() if isinstance(kept, torch.Tensor) else None


def why_not_dense(model: Any) -> str:
    """Return why a model has no class logits on a dense grid, with what to do about it; empty where it has."""
    head = model.model[-1]
    if isinstance(head, RTDETRDecoder):
        return "an RT-DETR teacher predicts by queries, which are no grid of anchors"
    if not isinstance(head, (WorldDetect, YOLOEDetect)) or hasattr(head, "lrpc"):
        return ""
    held, count = text_embeddings(model), len(class_names(model))
    way = 'e.g. model.set_classes(["car", "bus"]); model.save("teacher.pt")'
    if held is None:
        return f"this open-vocabulary teacher was given no classes (give it some in Ultralytics and save it, {way})"
    if held.shape[1] != count:
        return (
            f"this open-vocabulary teacher has {count} class names and embeddings of {held.shape[1]} classes (set its "
            f"classes anew in Ultralytics and save it, {way})"
        )
    return ""


def reduce_head(model: Any) -> None:
    """Turn the head of a dense model into a plain one of boxes and classes, in place.

    Open-vocabulary heads become closed-set ones: the class embeddings that the checkpoint holds are put behind the
    class layers. Mask and keypoint layers are dropped; the angles of rotated boxes are kept, since boxes need them.
    """
    head = model.model[-1]
    if isinstance(head, (WorldDetect, YOLOEDetect)):
        for prefix in BRANCH_PREFIXES.values():
            if getattr(head, f"{prefix}cv2", None) is not None:
                _close(head, prefix, text_embeddings(model))
        head.nc = len(class_names(model))
        head.no = head.nc + 4 * head.reg_max
        model.clip_model = None
    elif not isinstance(head, (Segment, Pose)):
        return
    kept = {prefix + name for prefix in BRANCH_PREFIXES.values() for name in READ}
    for name in [name for name in head._modules if name not in kept]:
        delattr(head, name)
    head.__class__ = Detect


def _close(head: Any, prefix: str, embeddings: torch.Tensor | None) -> None:
    """Put what follows the class layers of a branch behind them."""
    classes, boxes = getattr(head, f"{prefix}cv3"), getattr(head, f"{prefix}cv2")
    if hasattr(head, "lrpc"):  # prompt-free: the last layers lie in filters of proposals, which keep some anchors only
        filters = getattr(head, f"{prefix}lrpc", None) or head.lrpc
        for level, last in enumerate(filters):
            boxes[level] = nn.Sequential(*boxes[level], last.loc)
            classes[level] = nn.Sequential(*classes[level], _as_conv(last.vocab))
        return
    assert embeddings is not None
    if isinstance(head, YOLOEDetect):
        embeddings = nn.functional.normalize(embeddings, dim=-1)
    for level, contrastive in enumerate(getattr(head, f"{prefix}cv4")):
        fused = not list(contrastive.parameters())  # the embeddings are in the class layers already
        parts = () if fused else (Contrast(contrastive, embeddings),)
        classes[level] = nn.Sequential(*classes[level], *parts)


def _as_conv(layer: nn.Module) -> nn.Module:
    """Return a linear layer over channels as the 1x1 convolution that it is."""
    if not isinstance(layer, nn.Linear):
        return layer
    conv = nn.Conv2d(layer.in_features, layer.out_features, kernel_size=1)
    conv.weight.data = layer.weight.data[..., None, None]
    assert conv.bias is not None
    conv.bias.data = layer.bias.data
    return conv


class Skipped(nn.Module):
    """Stands in for layers whose output nothing reads: zeros, at no cost."""

    def __init__(self, channels: int):
        """Take the place of layers with so many output channels."""
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros with shape (B, channels, H, W)."""
        return x.new_zeros(()).expand(len(x), self.channels, *x.shape[-2:])


def skip_boxes(head: Any) -> None:
    """Take the box layers out of a head, in place."""
    for prefix in BRANCH_PREFIXES.values():
        layers = getattr(head, f"{prefix}cv2", None)
        if layers is not None:
            setattr(head, f"{prefix}cv2", nn.ModuleList(Skipped(4 * int(head.reg_max)) for _ in layers))
