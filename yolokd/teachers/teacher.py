"""The frozen teacher: loaded, fused and stripped to what the chosen methods read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.head import Detect, RTDETRDecoder
from ultralytics.nn.tasks import load_checkpoint

from yolokd.errors import UserError
from yolokd.models import class_names, input_channels, model_strides, neck_channels
from yolokd.outputs import Output, View, read_output
from yolokd.teachers.convolutions import through_onednn
from yolokd.teachers.heads import Neck, reduce_head, skip_boxes, task_of, text_embeddings, why_not_dense
from yolokd.teachers.images import Sight
from yolokd.trust import loading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_teacher(source: str | Path | nn.Module, key: str = "teacher") -> tuple[Any, str]:
    """Return a private copy of a teacher's model in evaluation mode and its fingerprint.

    Args:
        source (str | Path | nn.Module): Weights file, or a model; a `YOLO` object is given as its `.model`.
        key (str): Name of the key in messages.

    Returns:
        model (nn.Module): The model, in float32, not fused.
        fingerprint (str): First 16 hex digits of the SHA-256 of its parameters and buffers.

    Raises:
        UserError: If the file cannot be read, needs more than the restricted loader rebuilds, or holds no detector.
    """
    if isinstance(source, nn.Module):
        model, label = deepcopy(source).float(), type(source).__name__
    else:
        label = str(source)
        try:
            with loading(what=f"{key}='{label}'", file=label):
                model = load_checkpoint(source)[0]
        except UserError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{key}='{label}' cannot be loaded: {reason}") from error
    head = getattr(model, "model", [None])[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else None
    if not isinstance(head, (Detect, RTDETRDecoder)):
        last = type(model if head is None else head).__name__
        raise UserError(
            f"{key}='{label}' ends in {last}; a teacher must be a YOLO detection model, e.g. yolov8x.pt, or one for "
            f"segmentation, poses or rotated boxes, or an RT-DETR"
        )
    return model.eval(), fingerprint(model)


def fingerprint(model: nn.Module) -> str:
    """Return the first 16 hex digits of the SHA-256 over a model's state, class embeddings included."""
    digest = hashlib.sha256()
    held = {"embeddings": text_embeddings(model)} if hasattr(model, "set_classes") else {}
    for name, value in (*model.state_dict().items(), *held.items()):
        if value is None:
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def is_untrained(model: nn.Module) -> bool:
    """Return whether every batch normalisation still holds its initial statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    pairs = [(m.running_mean, m.running_var) for m in norms]
    kept = [(mean, var) for mean, var in pairs if mean is not None and var is not None]
    return bool(kept) and all(not mean.any() and bool(torch.all(var == 1)) for mean, var in kept)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether the processor multiplies bfloat16 natively (avx512_bf16 or amx); False on other devices."""
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Teacher:
    """A frozen detector behind a plain handle.

    It is no module, so that it never appears in a student's parameters, state, EMA, optimizer or checkpoint; copying
    and pickling the student leaves it behind. Conv and batch normalisation are fused, nothing is decoded, and what
    the methods do not read is not computed.

    Attributes:
        names (dict[int, str]): Class names.
        task (str): What it was made for: `detect`, `segment`, `pose` or `obb`.
        rotated (bool): Whether its boxes are rotated.
        unprompted (bool): Whether it is an open-vocabulary model without classes.
        not_dense (str): Why it has no class logits and boxes on a dense grid; empty where it has.
        input_channels (int): Channels of the images that it takes.
        strides (tuple[int, ...]): Strides of the levels in pixels of its own images.
        channels (tuple[int, ...]): Channels of the neck maps.
        reg_max (int): Box bins per side.
        maps (torch.memory_format): How its neck maps lie in memory.
        sight (Sight): What it sees of the student's images.
        fingerprint (str): Identity of the weights.
        parameters (int): Number of parameters.
        untrained (bool): Whether its batch normalisations hold their initial statistics.
    """

    def __init__(self, model: Any, identity: str):
        """Read what pairing needs; `prepare` strips the model once the methods are known.

        Args:
            model (nn.Module): A private copy, in evaluation mode.
            identity (str): Fingerprint of its weights.
        """
        head = model.model[-1]
        self.input_channels = input_channels(model)
        self.names = class_names(model)
        self.task = task_of(head)
        self.rotated = self.task == "obb"
        self.not_dense = why_not_dense(model)
        self.unprompted = bool(self.not_dense) and not isinstance(head, RTDETRDecoder)
        self.strides = model_strides(model)
        self.channels = neck_channels(model, self.input_channels)
        self.reg_max = int(getattr(head, "reg_max", 1))
        self.sight, self.boxes = Sight(), True
        self.fingerprint = identity
        self.parameters = sum(p.numel() for p in model.parameters())
        self.untrained = is_untrained(model)
        branches = tuple(name for name in ("one2many", "one2one") if self._has(head, name))
        self.branches = branches if self.dense else ()
        self.model: Any = model
        self._run: Any = model
        self.dtype: torch.dtype | None = None
        self.layout = torch.channels_last

    @property
    def dense(self) -> bool:
        """Whether it has class logits and boxes on a dense grid, as logit methods need them."""
        return not self.not_dense

    @staticmethod
    def _has(head: nn.Module, branch: str) -> bool:
        return getattr(head, "cv2" if branch == "one2many" else "one2one_cv2", None) is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Return itself: a copy of the student shares the teacher."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as None."""
        return type(None), ()

    def branch_for(self, branch: str) -> str:
        """Return the teacher's branch that a student's branch learns from: its like, or the only one."""
        return branch if branch in self.branches else self.branches[0]

    def prepare(
        self,
        device: torch.device,
        branches: Sequence[str],
        dtype: str = "auto",
        boxes: bool = True,
        compiled: bool = False,
        maps: torch.memory_format = torch.contiguous_format,
    ) -> Teacher:
        """Fuse, freeze and strip the model to the given branches; none leaves the neck alone.

        Args:
            device (torch.device): Where it runs.
            branches (Sequence[str]): The teacher's branches that methods read.
            dtype (str): `auto`, `float32`, `bfloat16` or `float16`.
            boxes (bool): Whether boxes are read; without them their layers are left out, and boxes are None.
            compiled (bool): Whether the forward is compiled by torch.compile, at its first call.
            maps (torch.memory_format): How the student's neck maps lie in memory, and so are these to.
        """
        self.maps = maps
        head = self.model.model[-1]
        if branches:
            reduce_head(self.model)
        head.fuse = lambda: None  # the host's fusing would drop a branch by the inference mode, not by what is read
        self.model.fuse(verbose=False)
        del head.fuse
        self.model.eval().requires_grad_(False)
        if not branches:
            self.model.model[-1] = Neck(head)
        elif len(self.branches) == 2 and len(branches) == 1:
            unused = "one2one_" if branches[0] == "one2many" else ""
            for name in ("cv2", "cv3", "cv4", "cv5"):
                if getattr(head, unused + name, None) is not None:
                    setattr(head, unused + name, None)
        self.boxes = boxes
        if branches and not boxes:
            skip_boxes(head)
        head.training = True  # the head module alone: raw maps, no decoding; its layers stay in evaluation mode
        self.branches = tuple(branches)
        if device.type == "mps":  # which computes wrong numbers on maps laid out otherwise
            self.layout = torch.contiguous_format
        self.model.to(device, memory_format=self.layout)
        if device.type == "cpu" and not compiled:
            through_onednn(self.model)
        self._run = torch.compile(self.model) if compiled else self.model
        if dtype != "auto":
            self.dtype = DTYPES[dtype]
        elif bfloat16_is_fast(device):
            self.dtype = torch.bfloat16
        if self.dtype not in {None, torch.float32}:
            self._hold(self.dtype)
        return self

    def _hold(self, dtype: torch.dtype) -> None:
        """Keep the convolutions in the type that autocast would bring them to at every call."""
        self.dtype = dtype
        for module in self.model.model[:-1].modules():  # the head is read in float32 too, see `towers`
            if isinstance(module, nn.Conv2d):
                module.to(dtype)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Output:
        """Return neck maps and raw branches for the student's images with shape (B, C, H, W) in [0, 1]."""
        seen, kind = self.sight(images.float()), images.device.type
        if self.dtype is None and torch.is_autocast_enabled(kind):  # the student's mixed precision, from the first step
            self._hold(torch.get_autocast_dtype(kind))
        with self._precision(images.device):
            output = read_output(self._run(seen.contiguous(memory_format=self.layout)))
        branches = output.branches
        if not self.boxes:
            branches = {name: replace(branch, boxes=None) for name, branch in branches.items()}
        feats = [feat.contiguous(memory_format=self.maps) for feat in output.feats]
        return replace(output, feats=feats, branches=branches)

    def towers(self, branch: str, view: View) -> Any:
        """Return the frozen head of a branch as a function of the shared neck maps, with gradient to its input."""

        def run(feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            head = self.model.model[-1]
            parts = head.one2many if branch == "one2many" else head.one2one
            maps = [feat.float() for feat in feats]
            logits = [parts["cls_head"][i](feat).flatten(2) for i, feat in zip(view.levels, maps)]
            boxes = [parts["box_head"][i](feat).flatten(2) for i, feat in zip(view.levels, maps)]
            scores = view.select(torch.cat(logits, dim=-1).transpose(1, 2))
            return scores, torch.cat(boxes, dim=-1).transpose(1, 2)

        return run
