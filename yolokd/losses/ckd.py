"""CKD: regions of the student drawn to the teacher's view of the same region and away from all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import as_float, standardize
from yolokd.ops.pooling import pool
from yolokd.ops.regions import Proposer, as_rois, filled, pairwise_iou, rows_by_level, split_by_level
from yolokd.taps import Pair, Taps, Targets


def contrast(
    student: torch.Tensor,
    teacher: torch.Tensor,
    excluded: torch.Tensor,
    queue: torch.Tensor,
    queue_valid: torch.Tensor,
    temperature: float = 0.07,
) -> torch.Tensor:
    """Return each region's InfoNCE term: minus the log-probability of its own teacher vector among all.

    The positive pair is part of the denominator. Vectors are scaled to unit length here.

    Args:
        student (torch.Tensor): Student's vectors with shape (N, D).
        teacher (torch.Tensor): Teacher's vectors of the same regions with shape (N, D).
        excluded (torch.Tensor): True where teacher row j is no negative of region i, shape (N, N), bool; the diagonal
            is not read.
        queue (torch.Tensor): Further negatives with shape (Q, D).
        queue_valid (torch.Tensor): False for places of the queue not filled yet, shape (Q,), bool.
        temperature (float): Divides the cosine similarities.

    Returns:
        (torch.Tensor): Terms with shape (N,), in float32 (float64 for float64 input).
    """
    student, teacher = F.normalize(as_float(student), dim=-1), F.normalize(as_float(teacher), dim=-1)
    with torch.autocast(student.device.type, enabled=False):
        similarity = student @ torch.cat((teacher, queue.to(teacher.dtype))).T / temperature  # (N, N + Q)
    own = torch.eye(len(student), dtype=torch.bool, device=student.device)
    hidden = torch.cat((excluded & ~own, ~queue_valid.expand(len(student), -1)), dim=1)
    similarity = similarity.masked_fill(hidden, float("-inf"))
    terms: torch.Tensor = similarity.logsumexp(-1) - similarity.diagonal()
    return terms


def overlapping(regions: torch.Tensor, real: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return which regions are no negatives of each other: those of one image that overlap, and rows that do not count.

    Args:
        regions (torch.Tensor): Boxes in pixels with shape (B, R, 4).
        real (torch.Tensor): Mask of the rows that count with shape (B, R), bool.
        threshold (float): IoU above which two regions of one image are not negatives.

    Returns:
        (torch.Tensor): Mask with shape (B * R, B * R), bool.
    """
    close = pairwise_iou(regions) > threshold  # (B, R, R)
    blocks = torch.diag_embed(close.permute(1, 2, 0), dim1=0, dim2=2)  # (R, R, B) -> (B, R, B, R)
    return blocks.flatten(2).flatten(0, 1) | ~real.flatten()


def gathered(keys: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors and masks of all processes; their counts may differ.

    Args:
        keys (torch.Tensor): This process's vectors with shape (N, D).
        valid (torch.Tensor): Their mask with shape (N,), bool.

    Returns:
        (tuple[torch.Tensor, torch.Tensor]): The same for all processes in order of rank, padded with masked rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return keys, valid
    most = keys.new_full((), len(keys), dtype=torch.int64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    missing = int(most) - len(keys)
    rows = F.pad(torch.cat((keys, valid[:, None].to(keys.dtype)), dim=1), (0, 0, 0, missing))  # the mask rides along
    everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, rows.contiguous())
    everything = torch.cat(everyone)
    return everything[:, :-1], everything[:, -1] > 0


class CKDLoss(DistillLoss):
    """Contrastive distillation, the relation part of G-DetKD.

    Yao et al. 2021, arXiv 2108.07482. The paper states (abstract): contrastive distillation of the relations between
    regions. Its equations are known to us second-hand: student and teacher feature of one region are a positive pair;
    the teacher's features of other regions and of a memory queue filled by all processes are negatives, except regions
    that overlap this one; a shared projection, cosine similarity, temperature, InfoNCE.

    Our reading:
        - A region's feature is the mean of its 7x7 RoIAlign bins, of one sample each, on the level it is assigned to by
          its size, for both sides (the paper takes the last layers of the heads).
        - Levels and sides differ in width, so the projection is one linear layer per side and level, a ReLU, and one
          linear layer shared by all.
        - The teacher's projection is trained too. Under a mean squared error that would invite the constant map; here
          the negatives forbid it, since equal vectors everywhere give the value `log(number of keys)`, and a vector
          that ignores the input cannot do better.
        - The queue keeps the teacher's pooled features, which never grow old since the teacher is frozen, and projects
          them anew at every step. Projected vectors of earlier steps would be of another projection.
        - `align` standardises both maps per channel over batch and positions. Raw maps share a large common part, on
          which the contrast hardly learns.
        - The queue is filled in training only.

    Attributes:
        queue (torch.Tensor): Teacher's pooled features of earlier batches with shape (Q, C), C the widest level's
            channels; narrower levels fill the first ones.
        queue_level (torch.Tensor): Level of each of them with shape (Q,), int64.
        queue_valid (torch.Tensor): Which places are filled, shape (Q,), bool.
        queue_next (torch.Tensor): Place that is written next, shape (), int64.
    """

    name: ClassVar[str] = "ckd"
    paper: ClassVar[str] = "Yao et al. 2021, arXiv 2108.07482"
    signal: ClassVar[Literal["features", "logits", "regions"]] = "regions"

    queue: torch.Tensor
    queue_level: torch.Tensor
    queue_valid: torch.Tensor
    queue_next: torch.Tensor

    def __init__(
        self,
        pair: Pair,
        regions: int = 32,
        positives: float = 0.25,
        temperature: float = 0.07,
        dim: int = 128,
        iou: float = 0.5,
        queue: int = 4096,
        align: bool = True,
    ):
        """Build projections and queue.

        Args:
            pair (Pair): Channels, strides and seed of the pair.
            regions (int): Regions per image.
            positives (float): Largest share of regions that are labelled boxes or positive predictions.
            temperature (float): Temperature of the contrast.
            dim (int): Length of the projected vectors.
            iou (float): Regions of one image that overlap more than this are not negatives of each other.
            queue (int): Length of the queue; 0 for none.
            align (bool): Standardise both maps per channel before the regions are pooled.
        """
        super().__init__(pair)
        self.temperature = temperature
        self.dim = dim
        self.iou = iou
        self.align = align
        self.proposer = Proposer(per_image=regions, positives=positives, seed=pair.seed)
        self.student_entry = nn.ModuleList(nn.Linear(c, dim) for c in pair.student_channels)
        self.teacher_entry = nn.ModuleList(nn.Linear(c, dim) for c in pair.teacher_channels)
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim))
        self.register_buffer("queue", torch.zeros(queue, max(pair.teacher_channels)))
        self.register_buffer("queue_level", torch.zeros(queue, dtype=torch.int64))
        self.register_buffer("queue_valid", torch.zeros(queue, dtype=torch.bool))
        self.register_buffer("queue_next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, features: torch.Tensor, levels: torch.Tensor, valid: torch.Tensor) -> None:
        """Write the teacher's pooled features of all processes over the oldest ones of the queue.

        Args:
            features (torch.Tensor): Features with shape (N, C), padded to the widest level.
            levels (torch.Tensor): Level of each, shape (N,).
            valid (torch.Tensor): Which of them count, shape (N,), bool.
        """
        length = len(self.queue)
        if length == 0:
            return
        features = features.detach().to(self.queue.dtype)
        finite = features.isfinite().all(1)
        features = torch.where(finite[:, None], features, torch.zeros_like(features))
        rows = torch.cat((features, levels[:, None].to(self.queue.dtype)), dim=1)
        rows, valid = gathered(rows, valid & finite)
        rows, valid = rows[-length:], valid[-length:]
        places = (self.queue_next + torch.arange(len(rows), device=rows.device)) % length
        self.queue[places], self.queue_level[places] = rows[:, :-1], rows[:, -1].long()
        self.queue_valid[places] = valid
        self.queue_next.copy_((self.queue_next + len(rows)) % length)

    def queue_rows(self) -> list[torch.Tensor]:
        """Return which places of the queue hold features of each level."""
        return split_by_level(self.queue_level, self.queue_valid, len(self.teacher_entry))

    def queued(self, rows: list[torch.Tensor]) -> torch.Tensor:
        """Return the queue as unit vectors of the present projection with shape (Q, D), zero where nothing is yet.

        Args:
            rows (list[torch.Tensor]): What `queue_rows` returned.
        """
        places = zip(rows, self.pair.teacher_channels)
        kept = [self.queue[index, :count] for index, count in places]  # copies, which the gradient needs
        return F.normalize(self.vectors(kept, self.teacher_entry, rows, len(self.queue)), dim=-1)

    def pooled(self, feats: Sequence[torch.Tensor], rois: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the feature of each region on its own level, as one tensor with shape (n, C) per level.

        Args:
            feats (Sequence[torch.Tensor]): Neck maps of one side, each with shape (B, C, H, W).
            rois (torch.Tensor): Image index and box in pixels with shape (N, 5).
            rows (list[torch.Tensor]): Indices of the regions of each level.
        """
        features = []
        for feature, stride, index in zip(feats, self.pair.strides, rows):
            feature = standardize(feature) if self.align else feature
            # One bin of 7x7 samples is the mean of 7x7 bins of one sample each, at 1/49 of the memory.
            features.append(pool(feature, stride, rois[index], size=1, samples=7).flatten(1))  # (n, C, 1, 1) -> (n, C)
        return features

    def vectors(
        self, features: list[torch.Tensor], entry: nn.ModuleList, rows: list[torch.Tensor], count: int
    ) -> torch.Tensor:
        """Return the projected feature of each region with shape (N, D), zero for regions of no level.

        Args:
            features (list[torch.Tensor]): Pooled features of each level with shape (n, C).
            entry (nn.ModuleList): That side's first layer of each level.
            rows (list[torch.Tensor]): Indices of the regions of each level.
            count (int): Number N of regions.
        """
        least = max(1, count // 16)
        values = [
            as_float(self.projection(layer(filled(value, least))))[: len(value)]
            for layer, value in zip(entry, features)
        ]
        found = torch.cat(values)
        return found.new_zeros(count, found.shape[1]).index_copy(0, torch.cat(rows), found)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the one part; see `DistillLoss.parts`."""
        regions, real = self.proposer(student, targets)
        rois, rows = as_rois(regions), rows_by_level(regions, real, student.strides)
        held = self.queue_rows()  # read back before the device has more to do
        references = self.pooled([feature.detach() for feature in teacher.feats], rois, rows)
        queries = self.vectors(self.pooled(student.feats, rois, rows), self.student_entry, rows, len(rois))
        keys = self.vectors(references, self.teacher_entry, rows, len(rois))
        excluded = overlapping(regions, real, self.iou)
        terms = contrast(queries, keys, excluded, self.queued(held), self.queue_valid, self.temperature)
        if self.training and len(self.queue):
            padded = torch.cat([F.pad(value, (0, self.queue.shape[1] - value.shape[1])) for value in references])
            levels = torch.cat([torch.full_like(index, level) for level, index in enumerate(rows)])
            self.enqueue(padded, levels, (padded != 0).any(1))  # zeros stand for a teacher's output that was not finite
        real = real.flatten()
        return {"": (terms * real).sum() / real.sum().clamp_min(1)}
