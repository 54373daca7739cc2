"""SGFI: each region's teacher feature imitated by a mixture of the student's levels that match it in meaning."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, as_float, standardize
from yolokd.ops.eager import eager_sum
from yolokd.ops.pooling import pool
from yolokd.ops.regions import Proposer, as_rois, filled, rows_by_level
from yolokd.taps import Pair, Taps, Targets

Match = Literal["soft", "same"]
SIZE = 7  # bins per side of a region; two convolutions of stride 2 take it to 1
MIN_TEMPERATURE = 0.01
SAMPLES = 1  # per side of a bin; with 2, pooling and its gradient take four times as long


def level_weights(
    student_keys: torch.Tensor, teacher_keys: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """Return how much each student level counts for each region: a softmax over the levels.

    Args:
        student_keys (torch.Tensor): Embeddings of the student's region features with shape (N, L, D).
        teacher_keys (torch.Tensor): Embeddings of the teacher's region features with shape (N, D).
        temperature (torch.Tensor | float): Temperature of the softmax.

    Returns:
        (torch.Tensor): Weights with shape (N, L), summing to 1 over the levels.
    """
    similarity = (student_keys * teacher_keys.unsqueeze(1)).sum(-1)  # (N, L, D) -> (N, L)
    return (similarity / temperature).softmax(-1)


def imitation_error(
    student_regions: torch.Tensor, teacher_regions: torch.Tensor, weights: torch.Tensor, align: bool = True
) -> torch.Tensor:
    """Return each region's mean squared error between the weighted student levels and the teacher.

    Args:
        student_regions (torch.Tensor): Adapted features of every level with shape (N, L, C, S, S).
        teacher_regions (torch.Tensor): Teacher's features with shape (N, C, S, S), taken as constants.
        weights (torch.Tensor): Weights of the levels with shape (N, L).
        align (bool): Standardise the mixture and the teacher per channel over all regions and positions before.

    Returns:
        (torch.Tensor): Errors with shape (N,), in float32 (float64 for float64 input).
    """
    teacher = as_float(teacher_regions).detach()
    regions = student_regions.movedim(2, -1)  # (N, L, S, S, C), as they lie in memory
    with torch.autocast(weights.device.type, enabled=False):  # (N, 1, L) x (N, L, S * S * C) -> (N, 1, S * S * C)
        flat = torch.bmm(weights.to(regions.dtype).unsqueeze(1), regions.flatten(2))
    mixture = as_float(flat).view(regions[:, 0].shape).movedim(-1, 1)  # (N, S, S, C) -> (N, C, S, S)
    if align and len(mixture):
        teacher = standardize(teacher)  # first, while the mixture has no graph beside it
        mixture = standardize(mixture)
    return F.mse_loss(mixture, teacher, reduction="none").sum(dim=(1, 2, 3)) / teacher.shape[1:].numel()


class Embedding(nn.Sequential):
    """The matching embedding f_embed: two convolutions of stride 2 that take a 7x7 region to one vector."""

    def __init__(self, channels: int, width: int):
        """Build the two convolutions.

        Args:
            channels (int): Input channels.
            width (int): Length D of the vector; the hidden layer has twice as many channels.
        """
        super().__init__(
            nn.Conv2d(channels, 2 * width, kernel_size=3, stride=2),  # 7x7 -> 3x3
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, width, kernel_size=3, stride=2),  # 3x3 -> 1x1
            nn.Flatten(),
        )


class SGFILoss(DistillLoss):
    """Semantic-guided feature imitation, the region part of G-DetKD.

    Yao et al. 2021, arXiv 2108.07482. The paper states (abstract): soft matching of feature pairs over all pyramid
    levels. Its equations are known to us second-hand: a region's teacher feature T comes from one level, its student
    features S_l from every level l; `alpha = softmax_l(f_embed(f_adap(S_l)) . f_embed(T) / tau)` with f_embed shared by
    both sides and tau learned; the term is the mean over the regions of `MSE(sum_l alpha_l f_adap(S_l), T)`.

    Our reading:
        - YOLO levels differ in width, so a region is compared at the width of the teacher level it is assigned to by
          its size. For each teacher level there is one f_embed and one 1x1 f_adap per student level.
        - Regions are the labelled boxes and the student's own detached predictions, positives by the task's assignment.
        - f_embed has its ReLU between the two convolutions, not after them, so that similarities have both signs.
        - tau is 0.01 plus the softplus of a parameter, which has a gradient everywhere, and starts at 1.
        - `align` standardises mixture and teacher per channel, over the regions of the same teacher level.
        - `match="same"` is the paper's comparison without its idea: the student's level of the same stride alone.

    Attributes:
        logit_scale (nn.Parameter): Its softplus is the temperature tau less 0.01; shape (1,). With `match="soft"` only.
    """

    name: ClassVar[str] = "sgfi"
    paper: ClassVar[str] = "Yao et al. 2021, arXiv 2108.07482"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "regions"

    def __init__(
        self,
        pair: Pair,
        regions: int = 32,
        positives: float = 0.25,
        embed: int = 64,
        match: Match = "soft",
        align: bool = True,
    ):
        """Build adapters and embeddings.

        Args:
            pair (Pair): Channels, strides and seed of the pair.
            regions (int): Regions per image.
            positives (float): Largest share of regions that are labelled boxes or positive predictions.
            embed (int): Length of the matching embedding.
            match (str): soft mixes the student's levels by their meaning, same takes the teacher's level alone.
            align (bool): Standardise the region features per channel.

        Raises:
            ValueError: If `match` is not known.
        """
        super().__init__(pair)
        if match not in get_args(Match):
            raise ValueError(f"sgfi_match='{match}' must be one of {', '.join(get_args(Match))}.")
        self.match = match
        self.align = align
        self.proposer = Proposer(per_image=regions, positives=positives, seed=pair.seed)
        levels = len(pair.student_channels)
        self.adapters = nn.ModuleList(Adapters(pair.student_channels, [c] * levels) for c in pair.teacher_channels)
        if match == "soft":
            self.embeddings = nn.ModuleList(Embedding(c, embed) for c in pair.teacher_channels)
            self.logit_scale = nn.Parameter(torch.full((1,), math.log(math.expm1(1 - MIN_TEMPERATURE))))  # tau is 1

    def temperature(self) -> torch.Tensor:
        """Return the temperature of the level softmax, at least 0.01, with shape (1,)."""
        return MIN_TEMPERATURE + F.softplus(as_float(self.logit_scale))

    def matched(
        self, student: Taps, teacher: Taps, level: int, rois: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the student's and the teacher's features of regions, and how much each student level counts.

        Args:
            student (Taps): The student's taps.
            teacher (Taps): The teacher's taps.
            level (int): Index of the teacher level that the regions are assigned to.
            rois (torch.Tensor): Image index and box in pixels with shape (n, 5).

        Returns:
            (tuple[torch.Tensor, torch.Tensor, torch.Tensor]): Adapted student features of all levels with shape
                (n, L, C, 7, 7), teacher features with shape (n, C, 7, 7), weights with shape (n, L).
        """
        # n regions of this teacher level, filled up to N; L student levels; C channels of the teacher level
        count, rois = len(rois), filled(rois, least=4)
        levels = zip(self.adapters[level].children(), student.feats, student.strides)
        shape = (len(student.feats), len(rois))
        rows = torch.cat([adapt(pool(feature, stride, rois, SIZE, SAMPLES)) for adapt, feature, stride in levels])
        adapted = rows.unflatten(0, shape).transpose(0, 1)  # (L * N, C, 7, 7) -> (N, L, C, 7, 7)
        reference = pool(teacher.feats[level].detach(), teacher.strides[level], rois, SIZE, SAMPLES)
        if self.match == "same":
            weights = adapted.new_zeros(adapted.shape[:2])
            weights[:, level] = 1
        else:
            student_keys = as_float(self.embeddings[level](rows)).unflatten(0, shape)  # (L, N, D)
            teacher_keys = as_float(self.embeddings[level](reference))
            weights = level_weights(student_keys.transpose(0, 1), teacher_keys, self.temperature())
        return adapted[:count], reference[:count], weights[:count]

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the one part; see `DistillLoss.parts`."""
        regions, real = self.proposer(student, targets)
        rois = as_rois(regions)
        levels = enumerate(rows_by_level(regions, real, student.strides))
        terms = [partial(self._level, student, teacher, level, rois[rows]) for level, rows in levels]
        return {"": eager_sum(terms, student.feats, self.parameters()) / real.sum().clamp_min(1)}

    def _level(
        self, student: Taps, teacher: Taps, level: int, rois: torch.Tensor, *feats: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of the errors of the regions of one teacher level, with the student's maps as given."""
        matched = self.matched(replace(student, feats=feats), teacher, level, rois)
        return imitation_error(*matched, self.align).sum()
