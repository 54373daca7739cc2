"""PCD: class logits distilled in groups of classes, grouped by how far student and teacher are apart."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import as_float
from yolokd.ops.anchors import selected_anchors, weighted_mean
from yolokd.ops.binary import binary_distillation
from yolokd.taps import Pair, Taps, Targets


def block_sizes(classes: int, groups: int) -> list[int]:
    """Return the sizes of consecutive groups that differ by at most one, larger ones first: 20 in 3 is 7, 7, 6."""
    size, larger = divmod(classes, groups)
    return [size + 1] * larger + [size] * (groups - larger)


def ranking(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the classes of each anchor in order of `|z_teacher - z_student|`, largest first.

    Args:
        student_logits (torch.Tensor): Raw class logits with shape (N, K).
        teacher_logits (torch.Tensor): Raw class logits with shape (N, K).

    Returns:
        (torch.Tensor): Class indices with shape (N, K), int64; lower indices come first among equals.
    """
    gap = (as_float(teacher_logits.detach()) - as_float(student_logits.detach())).abs()
    return gap.argsort(dim=-1, descending=True, stable=True)


def grouped_divergence(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, groupings: list[int], temperature: float
) -> torch.Tensor:
    """Return each anchor's divergence inside groups of ranked classes, summed over the groups of all groupings.

    The classes of an anchor are ranked by `|z_teacher - z_student|`, largest first, and cut into consecutive groups;
    in each group the term is `(1 - cos(p, q)) * T^2 * KL(p || q)` with the softmax distributions p (teacher) and q
    (student) over the group's classes alone. Rank and cosine factor carry no gradient.

    Args:
        student_logits (torch.Tensor): Raw class logits with shape (N, K).
        teacher_logits (torch.Tensor): Raw class logits with shape (N, K), taken as constants.
        groupings (list[int]): How many groups to cut into, once per grouping; at most K // 2 each.
        temperature (float): Temperature T of the softmax.

    Returns:
        (torch.Tensor): Values with shape (N,), in float32 (float64 for float64 input).
    """
    student, teacher = as_float(student_logits), as_float(teacher_logits).detach()
    order = ranking(student, teacher)
    student = student.gather(-1, order) / temperature
    teacher = teacher.gather(-1, order) / temperature
    total = student.new_zeros(len(student))
    for groups in groupings:
        sizes = block_sizes(student.shape[-1], groups)
        for s, t in zip(torch.split(student, sizes, dim=-1), torch.split(teacher, sizes, dim=-1)):
            log_q, log_p = s.log_softmax(-1), t.log_softmax(-1)
            p = log_p.exp()
            factor = 1 - F.cosine_similarity(p, log_q.detach().exp(), dim=-1)
            total = total + factor.clamp_min(0) * (p * (log_p - log_q)).sum(-1)  # (N, m) -> (N,)
    return total * temperature**2


class PCDLoss(DistillLoss):
    """Progressive class-level distillation on the class logits of selected anchors, beside a binary term on all.

    Li et al. 2025, arXiv 2505.24310. The paper states (abstract): classes ranked by the logit difference, stages from
    fine to coarse groups and back, logits aligned within the groups. Its formulas are known to us second-hand: S stages
    in each direction, in each group a softmax divergence weighted by one minus the cosine. Stage i of the first
    direction has the groups of stage S - i + 1 of the second, so with all stages at every step one direction counts
    twice. The released code (classification only) neither ranks nor divides the classes and is not followed.

    Our reading:
        - The logits of a sigmoid head at an anchor are taken as the paper's logit vector. Anchors are the task's
          positives and those where the teacher is confident; each weighs as the teacher's largest class probability,
          and the sum is divided by the sum of the weights.
        - The softmax sees no absolute confidence, so the binary term of BCKD on all anchors stands beside it, divided
          by the sum of the task's target scores, at least 1.
        - The cosine factor is detached. Groups differ in size by at most one, larger ones first.
        - `schedule="sequence"`: the 2S stages follow each other over the training, fine to coarse in the first half and
          back in the second, and the active stage's sum counts 2S times: for unchanged logits the average over the
          training is what `together` gives at every step.

    Attributes:
        stages (int): Number of stages S in use, at most half the classes.
    """

    name: ClassVar[str] = "pcd"
    paper: ClassVar[str] = "Li et al. 2025, arXiv 2505.24310"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "logits"
    part_names: ClassVar[tuple[str, ...]] = ("grouped", "binary")
    needs_logits: ClassVar[bool] = True

    def __init__(
        self,
        pair: Pair,
        grouped: float = 1.0,
        binary: float = 1.0,
        stages: int = 3,
        temperature: float = 4.0,
        confidence: float = 0.3,
        schedule: str = "together",
    ):
        """Fit the stages to the class count.

        Args:
            pair (Pair): Facts about the pair; the class count is read.
            grouped (float): Weight of the grouped softmax part; taken as 0 for one class.
            binary (float): Weight of the binary part.
            stages (int): Stages S, at least 1; reduced with a warning to half the classes.
            temperature (float): Temperature of the group softmax.
            confidence (float): Teacher probability above which an anchor counts beside the positives.
            schedule (str): `together` for all stages at every step, `sequence` for one after the other in time.

        Raises:
            UserError: If nothing would be distilled, or the schedule or the number of stages does not exist.
        """
        if schedule not in ("together", "sequence"):
            raise UserError(f"pcd_schedule='{schedule}' does not exist. Choose together or sequence")
        if stages < 1:
            raise UserError(f"pcd_stages={stages} is too few. Choose 1 or more")
        if pair.num_classes == 1:
            if binary == 0:
                raise UserError(
                    "pcd_binary=0 leaves nothing to distil: with one class there are no groups of classes. "
                    "Set pcd_binary=1.0 or choose another method"
                )
            if grouped:
                warnings.warn("pcd: one class has no groups, the binary part alone is distilled", stacklevel=2)
            grouped = 0.0
        elif grouped and stages > pair.num_classes // 2:
            fitting = pair.num_classes // 2
            warnings.warn(f"pcd_stages={stages} is reduced to {fitting}: {pair.num_classes} classes", stacklevel=2)
            stages = fitting
        if not grouped and not binary:
            raise UserError("pcd_grouped=0 and pcd_binary=0 leave nothing to distil. Set one of them above 0")
        super().__init__(pair, grouped=grouped, binary=binary)
        self.stages = stages
        self.temperature = temperature
        self.confidence = confidence
        self.schedule = schedule

    def groupings(self) -> tuple[list[int], int]:
        """Return how many groups each active stage has, and how often their sum counts; see the class."""
        if self.schedule == "together":
            return list(range(self.stages, 0, -1)), 2
        step = min(int(self.progress * 2 * self.stages), 2 * self.stages - 1)
        groups = self.stages - step if step < self.stages else step - self.stages + 1
        return [groups], 2 * self.stages

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the grouped and the binary part; see `DistillLoss.parts`."""
        assert student.logits is not None and teacher.logits is not None, "pcd needs class logits: Taps(..., logits=)"
        terms = {}
        if self.part_gains["grouped"]:
            rows, weights = selected_anchors(teacher.logits, targets.positives, self.confidence)
            groupings, times = self.groupings()
            values = grouped_divergence(student.logits[rows], teacher.logits[rows], groupings, self.temperature)
            terms["grouped"] = times * weighted_mean(values, weights)
        if self.part_gains["binary"]:
            values = binary_distillation(student.logits, teacher.logits)  # (B, A)
            terms["binary"] = values.sum() / targets.totals[1]
        return terms
