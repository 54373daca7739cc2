"""DFMSD: the teacher's map regenerated from student maps masked in space and in channels by teacher attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters, Generator, as_float, standardize
from yolokd.ops.attention import Direction, RandomSource, log_attentions, quantile_mask
from yolokd.ops.eager import level_mean
from yolokd.taps import Pair, Taps, Targets

Block = Callable[[torch.Tensor], torch.Tensor]
Enhance = Literal["none", "gain", "gap", "frequency"]


def gap(adapted: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return |F^T - F^S| averaged over channels and scaled to mean 1 in each image: what the student still misses.

    Args:
        adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).

    Returns:
        (torch.Tensor): Map with shape (B, 1, H, W), detached, in float32; 0 where the maps are equal.
    """
    difference = (as_float(teacher.detach()) - as_float(adapted.detach())).abs().mean(dim=1, keepdim=True)
    return difference / difference.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)


def high_pass(feature: torch.Tensor, radius: float = 0.1) -> torch.Tensor:
    """Return the fine detail of a map: its spectrum times 1 - exp(-(u^2 + v^2) / (2 r^2)).

    Args:
        feature (torch.Tensor): Map with shape (B, C, H, W).
        radius (float): Width r of the removed centre; frequencies u, v are 1 at Nyquist.

    Returns:
        (torch.Tensor): Map with shape (B, C, H, W), detached, in float32.
    """
    feature = as_float(feature.detach())
    height, width = feature.shape[-2:]
    u = torch.fft.fftfreq(height, device=feature.device, dtype=feature.dtype) * 2
    v = torch.fft.rfftfreq(width, device=feature.device, dtype=feature.dtype) * 2
    kept = 1 - torch.exp(-(u[:, None] ** 2 + v[None, :] ** 2) / (2 * radius**2))  # (H, W // 2 + 1)
    detail: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(feature.contiguous()) * kept, s=(height, width))
    return detail


def soft_mask(attention: torch.Tensor, slope: float, direction: Direction = "high") -> torch.Tensor:
    """Return 1 - clip(slope * (A - 1), 0, 1), or with direction `low` 1 - clip(slope * (1 - A), 0, 1).

    Args:
        attention (torch.Tensor): Attention with mean 1, any shape.
        slope (float): Steepness beta, above 0.
        direction (Direction): Weaken the `high` or the `low` entries.

    Returns:
        (torch.Tensor): Mask in [0, 1] shaped like the attention, detached.
    """
    excess = attention.detach() - 1 if direction == "high" else 1 - attention.detach()
    return 1 - (slope * excess).clamp(0, 1)


def dual_masked_generation(
    adapted: torch.Tensor,
    teacher: torch.Tensor,
    spatial_mask: torch.Tensor,
    channel_mask: torch.Tensor,
    spatial_generator: Block,
    channel_generator: Block,
    fusion: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error between w_s * G_s(F^S * M_s) + w_c * G_c(F^S * M_c) and F^T.

    Args:
        adapted (torch.Tensor): Student's map in teacher channels with shape (B, C, H, W).
        teacher (torch.Tensor): Teacher's map with shape (B, C, H, W).
        spatial_mask (torch.Tensor): Mask M_s with shape (B, 1, H, W).
        channel_mask (torch.Tensor): Mask M_c with shape (B, C, 1, 1).
        spatial_generator (Callable): The block G_s, from and to (B, C, H, W).
        channel_generator (Callable): The block G_c, from and to (B, C, H, W).
        fusion (torch.Tensor): Two scalars with shape (2,), whose softmax is (w_s, w_c).

    Returns:
        (torch.Tensor): Scalar, not negative.
    """
    spatial = spatial_generator(adapted * spatial_mask)
    channel = channel_generator(adapted * channel_mask)
    weight = as_float(fusion).softmax(dim=0).to(spatial.dtype)  # half precision keeps half the memory for the gradient
    return F.mse_loss(as_float(weight[0] * spatial + weight[1] * channel), as_float(teacher.detach()))


class DFMSDLoss(DistillLoss):
    """DFMSD, Zhang et al. 2024, arXiv 2407.13147: `dual_masked_generation` on neck maps, averaged over levels.

    The paper states (abstract; there is no public code): dual masking of features, in space and in channels; stage-wise
    adaptation of the student to the teachers; masking enhancement, tied to the stages, which strengthens object-aware
    masking regions; semantic alignment of the feature distributions at each FPN layer. Of the kin: masks by the
    teacher's attention in FGD's form (temperature 0.5), MGD's generator, and DMKD's self-adjusting fusion of the two
    reconstructions.

    Our reading, not the paper's words:
        - the entries of high attention are zeroed (`mask` turns that round), by quantiles of each image;
        - attention is computed on the raw teacher map's |F|, scaled to unit deviation in each image;
        - fusion by the softmax of two learnable scalars shared by the levels, generators narrowed by `width`;
        - enhancement by one of three forms. `gap`: the spatial attention is multiplied by 1 + gamma * D, where D is the
          teacher-student difference, so that positions which the student still misses are masked more. `frequency`:
          attention of F^T + gamma * high-passed F^T. `gain`: a soft mask in place of the quantiles,
          1 - clip(beta * (A - 1), 0, 1) with beta = 1 + gamma. In the first of several stages gamma counts as 0;
        - alignment by standardising both maps per channel over batch and positions;
        - MEAN and equal weight of the levels.

    Random masks ignore attention, and so enhancement. A module serves one teacher; the criterion holds one for each.
    """

    name = "dfmsd"
    paper = "Zhang et al. 2024, arXiv 2407.13147"
    signal = "features"
    takes_stages = True

    def __init__(
        self,
        pair: Pair,
        spatial_ratio: float = 0.4,
        channel_ratio: float = 0.3,
        temperature: float = 0.5,
        mask: Direction = "high",
        enhance: Enhance = "gap",
        gamma: float = 1.0,
        align: bool = True,
        width: float = 0.25,
    ):
        """Build adapters, generators and fusion.

        Args:
            pair (Pair): Channels, strides and seed of the teacher-student pair.
            spatial_ratio (float): Share of positions masked in each image and level, in [0, 1].
            channel_ratio (float): Share of channels masked in each image and level, in [0, 1].
            temperature (float): Temperature of the attention softmax, above 0.
            mask (Direction): Mask entries of `high` attention, of `low` attention, or `random` ones.
            enhance (Enhance): Masking enhancement: `none`, `gain`, `gap` or `frequency`.
            gamma (float): Strength of the enhancement, not negative.
            align (bool): Standardise both maps per channel.
            width (float): Hidden width of the generators as a fraction of the teacher's channels.

        Raises:
            ValueError: If an option is out of its range.
        """
        super().__init__(pair)
        for key, ratio in (("spatial_ratio", spatial_ratio), ("channel_ratio", channel_ratio)):
            if not 0 <= ratio <= 1:
                raise ValueError(f"dfmsd_{key}={ratio} must be in [0, 1].")
        if temperature <= 0:
            raise ValueError(f"dfmsd_temperature={temperature} must be above 0.")
        if mask not in get_args(Direction):
            raise ValueError(f"dfmsd_mask='{mask}' must be one of {', '.join(get_args(Direction))}.")
        if enhance not in get_args(Enhance):
            raise ValueError(f"dfmsd_enhance='{enhance}' must be one of {', '.join(get_args(Enhance))}.")
        self.spatial_ratio = spatial_ratio
        self.channel_ratio = channel_ratio
        self.temperature = temperature
        self.mask = mask
        self.enhance = enhance
        self.gamma = gamma
        self.align = align
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels, bias=not align)
        self.spatial_generators = nn.ModuleList(Generator(channels, width) for channels in pair.teacher_channels)
        self.channel_generators = nn.ModuleList(Generator(channels, width) for channels in pair.teacher_channels)
        self.fusion_bias = nn.Parameter(torch.zeros(2))  # optimizers leave 1-D parameters named `bias` undecayed
        self.random = RandomSource(pair.seed)

    def active_gamma(self) -> float:
        """Return the strength of the enhancement in this stage: 0 in the first of several stages."""
        return self.gamma if self.stage >= 1 or not self.staged else 0.0

    def masks(
        self, raw_teacher: torch.Tensor, adapted: torch.Tensor, teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the spatial mask (B, 1, H, W) and the channel mask (B, C, 1, 1) of a level.

        Args:
            raw_teacher (torch.Tensor): Teacher's map before the alignment with shape (B, C, H, W).
            adapted (torch.Tensor): Student's map in teacher channels, aligned, same shape.
            teacher (torch.Tensor): Teacher's map, aligned, same shape.

        Returns:
            (tuple[torch.Tensor, torch.Tensor]): Masks, detached, in float32.
        """
        gamma = self.active_gamma()
        if self.enhance == "frequency" and gamma > 0:
            raw_teacher = as_float(raw_teacher.detach()) + gamma * high_pass(raw_teacher)
        spatial, channel = log_attentions(raw_teacher, self.temperature)
        if self.enhance == "gain" and self.mask != "random":
            return soft_mask(spatial.exp(), 1 + gamma, self.mask), soft_mask(channel.exp(), 1 + gamma, self.mask)
        if self.enhance == "gap" and gamma > 0:
            spatial = spatial + torch.log1p(gamma * gap(adapted, teacher))
        source = self.random.generator() if self.mask == "random" else None
        return (
            quantile_mask(spatial, self.spatial_ratio, self.mask, source),
            quantile_mask(channel, self.channel_ratio, self.mask, source),
        )

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the mean over levels; see the base class."""
        modules = self.adapters, self.spatial_generators, self.channel_generators
        return {"": level_mean(self._level, student.feats, teacher.feats, *modules, shared=[self.fusion_bias])}

    def _level(self, index: int, raw: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        """Return the term of one level."""
        adapted, wanted = self.adapters[index](feat), raw
        if self.align:
            adapted, wanted = standardize(adapted), standardize(wanted)
        masks = self.masks(raw, adapted, wanted)
        generators = self.spatial_generators[index], self.channel_generators[index]
        return dual_masked_generation(adapted, wanted, *masks, *generators, self.fusion_bias)
