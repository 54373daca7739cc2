"""SAMKD: maps masked cell by cell, coarse to fine, and logits weighted by where teacher and student differ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, Generator, as_float, standardize
from yolokd.ops.attention import cell_mask, cell_mean, keep_grids, log_attentions, quantile_mask
from yolokd.ops.eager import eager_sum, level_mean
from yolokd.taps import Pair, Taps, Targets

Weight = Literal["soft", "binary"]


def pyramid_generation(
    adapted: torch.Tensor,
    teacher: torch.Tensor,
    spatial_masks: Sequence[torch.Tensor],
    channel_mask: torch.Tensor,
    generator: nn.Module,
) -> torch.Tensor:
    """Return the mean over grids k of the mean squared error between G(F^S * M^k * M_c) and F^T.

    Args:
        adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).
        spatial_masks (Sequence[torch.Tensor]): Mask M^k of each grid with shape (B, 1, H, W).
        channel_mask (torch.Tensor): Mask M_c with shape (B, C, 1, 1).
        generator (nn.Module): The block G, from and to (B, C, H, W).

    Returns:
        (torch.Tensor): Scalar, not negative.
    """
    masked, wanted = adapted * channel_mask, as_float(teacher.detach())

    def error(mask: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(as_float(generator(given * mask)), wanted)

    errors = [partial(error, mask) for mask in spatial_masks]
    return eager_sum(errors, [masked], generator.parameters()) / len(errors)


def discrepancy(adapted: torch.Tensor, teacher: torch.Tensor, grids: Sequence[int]) -> torch.Tensor:
    """Return D: the squared difference averaged in the cells of each grid, then over grids, with mean 1 and at most 4.

    Args:
        adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W), standardised.
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W), standardised.
        grids (Sequence[int]): Cells per side of each grid.

    Returns:
        (torch.Tensor): Map with shape (B, 1, H, W), detached, in float32: scaled to mean 1 in each image, then clipped
            to [0, 4]; 0 where the maps are equal.
    """
    difference = (as_float(teacher.detach()) - as_float(adapted.detach())).square().mean(dim=1, keepdim=True)
    regional = torch.stack([cell_mean(difference, grid) for grid in grids]).mean(dim=0)
    return (regional / regional.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)).clamp(0, 4)


def largest_regions(difference: torch.Tensor, share: float) -> torch.Tensor:
    """Return 1 on the regions of largest D that hold at least the given share of each image, and 0 elsewhere.

    Regions are taken whole, so more than the share is kept where its limit falls into one, and at least one is kept.

    Args:
        difference (torch.Tensor): Difference D by regions with shape (B, 1, H, W).
        share (float): Share of positions, in [0, 1].

    Returns:
        (torch.Tensor): Map with shape (B, 1, H, W), detached, in float32.
    """
    scores = difference.detach().flatten(1)
    count = max(1, round(share * scores.shape[1]))
    threshold = scores.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    return scores.ge(threshold).float().view_as(difference)


def weighted_binary(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return sum of W * KD over anchors / sum of W, KD = sum over classes of BCE(z^S, p^T) * |p^S - p^T|.

    Args:
        student (torch.Tensor): Student's class logits z^S with shape (B, A, K).
        teacher (torch.Tensor): Teacher's class logits with shape (B, A, K).
        weight (torch.Tensor): Weight W of each anchor with shape (B, A), not negative.

    Returns:
        (torch.Tensor): Scalar, not negative; 0 where all weights are 0.
    """
    student, probability = as_float(student), as_float(teacher.detach()).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, probability, reduction="none")
    divergence = (entropy * (student.sigmoid() - probability).abs()).sum(dim=-1)  # (B, A, K) -> (B, A)
    weight = weight.detach()
    return (weight * divergence).sum() / weight.sum().clamp_min(1e-6)


class SAMKDLoss(DistillLoss):
    """SAMKD, Zhang et al. 2025, arXiv 2501.07101: masked features (`feature`) and region-weighted logits (`logit`).

    The paper states (abstract; there is no public code): masked feature reconstruction that goes from coarse to fine
    regions, led by two attention maps of the teacher; logit distillation weighted adaptively by the teacher-student
    feature difference of regions. Cutting the maps into patches with attention of their own is also known from GLAMD
    (ECCV 2022).

    Our reading, not the paper's words:
        - attention in FGD's form on the raw teacher map's |F|, scaled to unit deviation in each image;
        - grids 1, 2, 4, independent of each other and averaged; a grid is kept where its cells are at least 5x5, and
          each cell masks the same share of its positions, those of highest spatial attention. The channel mask is of
          the whole map and shared by the grids;
        - one generator for each level, shared by its grids: which grids a map can carry depends on the image size, so
          generators of their own would go untrained on small images;
        - logits: binary distillation (BCE times probability difference, exponent 1, summed over classes), weighted by
          W = D * A_s, D = squared difference of the standardised maps by regions, A_s = the teacher's spatial
          attention, both detached; divided by the sum of W over batch and levels. With weight `binary` W is 1 on the
          regions of largest D that make up the share `ratio` of an image and level, and 0 elsewhere;
        - with the feature part off, the adapters, which D needs, learn to fit the standardised teacher map on their
          own: that adds their gradient to the logit part, but nothing to its value nor to the student's gradient.
    """

    name = "samkd"
    paper = "Zhang et al. 2025, arXiv 2501.07101"
    signal = "features"
    part_names = ("feature", "logit")
    needs_logits = True

    def __init__(
        self,
        pair: Pair,
        feature: float = 1.0,
        logit: float = 1.0,
        grids: Sequence[int] = (1, 2, 4),
        ratio: float = 0.4,
        channel_ratio: float = 0.3,
        temperature: float = 0.5,
        weight: Weight = "soft",
        align: bool = True,
        width: float = 0.25,
    ):
        """Build the adapters and, for the feature part, the generators.

        Args:
            pair (Pair): Channels and strides of the teacher-student pair.
            feature (float): Weight of the masked feature part, 0 switches it off.
            logit (float): Weight of the region-weighted logit part, 0 switches it off.
            grids (Sequence[int]): Cells per side of each grid, coarse to fine.
            ratio (float): Share of positions masked in each cell, in [0, 1].
            channel_ratio (float): Share of channels masked, in [0, 1].
            temperature (float): Temperature of the attention softmax, above 0.
            weight (Weight): Region weights as they are (`soft`), or 1 on the regions that differ most (`binary`).
            align (bool): Standardise both maps per channel in the feature part; the logit part always does.
            width (float): Hidden width of the generators as a fraction of the teacher's channels.

        Raises:
            ValueError: If an option is out of its range.
        """
        super().__init__(pair, feature=feature, logit=logit)
        if feature < 0 or logit < 0 or feature == logit == 0:
            raise ValueError(f"samkd_feature={feature} and samkd_logit={logit} must not be negative, nor both 0.")
        for key, share in (("ratio", ratio), ("channel_ratio", channel_ratio)):
            if not 0 <= share <= 1:
                raise ValueError(f"samkd_{key}={share} must be in [0, 1].")
        if temperature <= 0:
            raise ValueError(f"samkd_temperature={temperature} must be above 0.")
        if weight not in get_args(Weight):
            raise ValueError(f"samkd_weight='{weight}' must be one of {', '.join(get_args(Weight))}.")
        if not grids or min(grids) < 1:
            raise ValueError(f"samkd_grids={list(grids)} must be one or more numbers of cells, each at least 1.")
        self.grids = tuple(grids)
        self.ratio = ratio
        self.channel_ratio = channel_ratio
        self.temperature = temperature
        self.weight = weight
        self.align = align
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=bool(feature) and not align)
        widths = pair.teacher_channels if feature else ()
        self.generators = nn.ModuleList(Generator(channels, width) for channels in widths)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the parts whose weight is not 0; see the base class."""
        weights: list[torch.Tensor] = []
        trained = [self.adapters, self.generators] if self.generators else [self.adapters]
        feats = student.feats if self.generators else [feat.detach() for feat in student.feats]
        mean = level_mean(partial(self._level, weights), feats, teacher.feats, *trained)
        terms = {}
        if self.part_gains["feature"]:
            terms["feature"] = mean
        if self.part_gains["logit"]:
            assert student.logits is not None and teacher.logits is not None, "samkd's logit part needs class logits"
            terms["logit"] = weighted_binary(student.logits, teacher.logits, torch.cat(weights, dim=1))
            if not self.generators:  # nothing else trains the adapters
                terms["logit"] = terms["logit"] + (mean - mean.detach())
        return terms

    def _level(self, weights: list[torch.Tensor], index: int, raw: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        """Return a level's masked feature term, or how well its map fits, and add its region weights to the list."""
        adapted = self.adapters[index](feat)
        spatial, channel = log_attentions(raw, self.temperature)
        aligned = adapted, raw
        if self.align or self.part_gains["logit"]:
            known = standardize(raw)  # first, while the adapted map has no graph beside it
            aligned = standardize(adapted), known
        if self.part_gains["logit"]:
            weights.append(self.region_weight(*aligned, spatial.exp()).flatten(1))  # (B, 1, H, W) -> (B, H * W)
        if not self.generators:
            return F.mse_loss(*aligned)
        adapted, wanted = aligned if self.align else (adapted, raw)
        spatial_masks, channel_mask = self.masks(spatial, channel)
        return pyramid_generation(adapted, wanted, list(spatial_masks.values()), channel_mask, self.generators[index])

    def masks(self, spatial: torch.Tensor, channel: torch.Tensor) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Return the spatial mask (B, 1, H, W) of each kept grid and the channel mask (B, C, 1, 1) of a level.

        Args:
            spatial (torch.Tensor): Logarithm of the teacher's spatial attention with shape (B, 1, H, W).
            channel (torch.Tensor): Logarithm of its channel attention with shape (B, C, 1, 1).

        Returns:
            (tuple[dict[int, torch.Tensor], torch.Tensor]): Masks by cells per side, and the mask that all share.
        """
        grids = keep_grids((spatial.shape[-2], spatial.shape[-1]), self.grids)
        channel_mask = quantile_mask(channel, self.channel_ratio)
        return {grid: cell_mask(spatial, self.ratio, grid) for grid in grids}, channel_mask

    def region_weight(self, adapted: torch.Tensor, teacher: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return the weight W of a level's positions in the logit part.

        Args:
            adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W), standardised.
            teacher (torch.Tensor): Teacher's map, standardised, same shape.
            attention (torch.Tensor): Teacher's spatial attention with shape (B, 1, H, W).

        Returns:
            (torch.Tensor): Weights with shape (B, 1, H, W), detached, in float32.
        """
        grids = keep_grids((teacher.shape[-2], teacher.shape[-1]), self.grids)
        difference = discrepancy(adapted, teacher, grids)
        return difference * attention if self.weight == "soft" else largest_regions(difference, self.ratio)
