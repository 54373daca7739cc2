"""The contract that every distillation method keeps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from yolokd.taps import Pair, Taps, Targets


class DistillLoss(nn.Module):
    """Base class of the methods: a module from two sets of taps to a bare mean.

    A method knows no gain, no batch size and no schedule: the criterion applies those once. A method may consist of
    several parts (for instance a feature part and a logit part), whose gradients are balanced separately; their
    relative weights are constructor arguments named like the parts, and a weight of 0 switches a part off.

    Attributes:
        name (str): The method's name in keys, columns, recipe and file name.
        paper (str): Authors, year and arXiv id.
        signal (str): What is distilled: `features`, `logits` or `regions`. Logit methods need matching classes. Of a
            two-branch head the one-to-many branch is distilled; on images without labels logit methods run on both.
        part_names (tuple[str, ...]): Names of the parts; empty for a method of one part.
        needs_logits (bool): Whether `Taps.logits` of the teacher is read.
        needs_boxes (bool): Whether `Taps.boxes` of the teacher is read.
        takes_stages (bool): Whether the method changes with the stages of the training. The points between them are its
            key `NAME_stages`, which the criterion reads and the constructor does not.
        share (float): Its share of the task's gradient norm at the neck with `kd_share=auto`, divided among its parts.
        part_gains (dict[str, float]): Weight of each part, {"": 1.0} for a method of one part.
        stage (int): Index of the current training stage, set by the criterion.
        staged (bool): Whether the run has several stages and the method takes them, set by the criterion.
        progress (float): Fraction of the training done, in [0, 1], set by the criterion.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    signal: ClassVar[Literal["features", "logits", "regions"]]
    part_names: ClassVar[tuple[str, ...]] = ()
    needs_logits: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    takes_stages: ClassVar[bool] = False
    share: ClassVar[float] = 0.3

    def __init__(self, pair: Pair, **part_gains: float):
        """Keep the pair and the weights of the parts.

        Args:
            pair (Pair): Channels, strides and class count of the teacher-student pair.
            **part_gains (float): Weight of each part by name, not negative.
        """
        super().__init__()
        self.pair = pair
        self.part_gains = part_gains or {"": 1.0}
        self.stage = 0
        self.staged = False
        self.progress = 0.0

    @property
    def units(self) -> dict[str, float]:
        """Name and weight of each part that acts, as `NAME` or `NAME_part`."""
        return {f"{self.name}_{part}" if part else self.name: gain for part, gain in self.part_gains.items() if gain}

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        """Return the bare mean of each part whose weight is not 0, by name.

        Args:
            student (Taps): The student's taps, with gradient.
            teacher (Taps): The teacher's taps, without gradient.
            targets (Targets): The batch's objects and the task's assignment.

        Returns:
            (dict[str, torch.Tensor]): Scalars in float32, each connected to the student's graph even where it is 0.
        """
        raise NotImplementedError

    def forward(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        """Return the weighted sum of the parts as a scalar; see `parts` for the arguments."""
        terms = [self.part_gains[name] * term for name, term in self.parts(student, teacher, targets).items()]
        return torch.stack(terms).sum()
