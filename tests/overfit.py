"""A small learnable task on which a feature term has to fall: 8 smooth teacher maps, student maps from one conv."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.loss_contract import random_taps, random_targets
from yolokd.losses.base import DistillLoss
from yolokd.taps import Pair

IMAGES = 8
SIZES = [(12, 12), (6, 6)]


def overfit(loss: type[DistillLoss], steps: int = 60, lr: float = 0.02, **options: Any) -> tuple[float, float]:
    """Train a student of one convolution per level, its logits and the method's parameters on one batch of 8 images.

    Args:
        loss (type[DistillLoss]): The method.
        steps (int): Number of Adam steps.
        lr (float): Learning rate.
        **options (Any): Options of the method other than its defaults.

    Returns:
        (tuple[float, float]): Mean value over the first and over the last three steps.
    """
    torch.manual_seed(0)
    pair = Pair(student_channels=(6, 8), teacher_channels=(8, 12), strides=(8, 16), num_classes=3)
    student, teacher = random_taps(pair, batch=IMAGES, sizes=SIZES)
    image = F.interpolate(torch.randn(IMAGES, 4, 4, 4), size=SIZES[0], mode="bilinear")
    images = [F.interpolate(image, size=size, mode="bilinear") for size in SIZES]
    with torch.no_grad():
        maps = [nn.Conv2d(4, channels, 3, padding=1)(x) for channels, x in zip(pair.teacher_channels, images)]
    teacher = dataclasses.replace(teacher, feats=maps)
    targets = random_targets(student)
    producer = nn.ModuleList(nn.Conv2d(4, channels, 3, padding=1) for channels in pair.student_channels)
    logits = nn.Parameter(student.logits.detach().clone())
    method = loss(pair, **options).train()
    optimizer = torch.optim.Adam([*producer.parameters(), logits, *method.parameters()], lr=lr)
    values = []
    for _ in range(steps):
        feats = [conv(x) for conv, x in zip(producer, images)]
        value = method(dataclasses.replace(student, feats=feats, logits=logits), teacher, targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return sum(values[:3]) / 3, sum(values[-3:]) / 3
