"""CrossKD: the student's neck maps sent through the teacher's frozen head, and judged by its predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, as_float, standardize
from yolokd.ops.anchors import bin_divergence, confidence, overlap_distance, weighted_mean
from yolokd.ops.binary import binary_distillation
from yolokd.taps import Pair, Taps, Targets


def restyle(feature: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Give a map the mean and deviation of a reference map in each channel.

    Args:
        feature (torch.Tensor): Map with shape (B, C, H, W).
        reference (torch.Tensor): Map with shape (B, C, H, W), taken as a constant.

    Returns:
        (torch.Tensor): Map with shape (B, C, H, W) in the dtype of the reference.
    """
    reference = reference.detach()
    values = as_float(reference)
    deviation, mean = torch.std_mean(values, dim=(0, 2, 3), unbiased=False, keepdim=True)
    return (standardize(feature) * deviation + mean).to(reference.dtype)


class CrossKDLoss(DistillLoss):
    """Distillation of cross-head predictions: teacher's head on student's features against teacher's head on its own.

    Wang et al. 2024, arXiv 2306.11369. `cls`: binary cross entropy to the teacher's probabilities, weighted by the
    difference of probabilities to the power of beta, on all anchors, divided by the number of positives, at least 1.
    `box`: softmax divergence over the bins at temperature 1, summed over the bins and averaged over the sides, or one
    minus the generalised IoU where the teacher's head has no bins; anchors weigh as the teacher's largest class
    probability and the sum is divided by the sum of the weights. As in the released code the student's features take
    on the teacher's channel statistics before they enter its head.

    Our reading: the paper enters the head between its convolutions, where the widths of YOLO heads depend on the model
    size; here the whole frozen head follows a 1x1 adapter from the student's neck map.
    """

    name: ClassVar[str] = "crosskd"
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2306.11369"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "features"
    part_names: ClassVar[tuple[str, ...]] = ("cls", "box")
    needs_logits: ClassVar[bool] = True
    needs_boxes: ClassVar[bool] = True

    def __init__(self, pair: Pair, cls: float = 1.0, box: float = 1.0, beta: float = 1.0):
        """Build the adapters.

        Args:
            pair (Pair): Channels of the pair.
            cls (float): Weight of the class part.
            box (float): Weight of the box part.
            beta (float): Exponent of the difference of probabilities.

        Raises:
            UserError: If both parts are switched off.
        """
        if not cls and not box:
            raise UserError("crosskd_cls=0 and crosskd_box=0 leave nothing to distil. Set one of them above 0")
        super().__init__(pair, cls=cls, box=box)
        self.beta = beta
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=False)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the class and the box part; see `DistillLoss.parts`."""
        assert teacher.logits is not None, "crosskd needs the teacher's class logits: Taps(..., logits=)"
        assert teacher.boxes is not None, "crosskd needs the teacher's box bins: Taps(..., boxes=)"
        if teacher.towers is None:
            raise UserError(
                "method='crosskd' sends features through the teacher's head, and this teacher offers none. "
                "Use a YOLO teacher, or choose bckd"
            )
        adapted = self.adapters(student.feats)
        logits, boxes = teacher.towers([restyle(a, f) for a, f in zip(adapted, teacher.feats)])
        terms = {}
        if self.part_gains["cls"]:
            values = binary_distillation(logits, teacher.logits, self.beta)  # (B, A)
            terms["cls"] = values.sum() / targets.totals[0]
        if self.part_gains["box"]:
            if boxes.shape[-1] > 4:
                distance = bin_divergence(boxes, teacher.boxes)
            else:
                distance = overlap_distance(replace(teacher, boxes=boxes).decoded(), teacher.decoded())
            terms["box"] = weighted_mean(distance, confidence(teacher.logits))
        return terms
