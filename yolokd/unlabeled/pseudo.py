"""What a teacher surely detects, in place of labels where there are none: where methods act, not what is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torchvision.ops import batched_nms

from yolokd.ops.constants import constant
from yolokd.ops.regions import corner
from yolokd.taps import Taps, Targets

OVERLAP = 0.7  # the host's threshold in prediction


@torch.no_grad()
def pseudo_targets(
    teacher: Taps,
    first: int,
    confidence: float,
    classes: Sequence[int | tuple[int, ...]] | None = None,
    one_each: bool = False,
) -> Targets:
    """Return a teacher's confident detections as targets of the images from `first` on.

    An anchor counts where its largest class probability over the matched classes is above `confidence`; it is a
    positive, and that probability is its score. The boxes at such anchors are the objects after non-maximum
    suppression within a class at IoU 0.7.

    Args:
        teacher (Taps): The teacher's taps on a batch of B images; without logits nothing is detected, which is right
            for methods that read no targets.
        first (int): Index of the first image without labels; the U = B - first last images have none.
        confidence (float): Probability above which an anchor counts.
        classes (Sequence[int] | None): The data's class index of each matched class, None where they are the same.
        one_each (bool): Whether an object keeps one positive, its most probable anchor, as in one-to-one branches.

    Returns:
        (Targets): Boxes inside the image in the order of the images, labels as the data's class indices, image indices
            into the batch, and positives and scores of the U last images, with shape (U, A).
    """
    size, device = teacher.image_size, teacher.feats[0].device
    images = teacher.feats[0].shape[0] - first
    if teacher.logits is None or teacher.boxes is None or not teacher.logits.shape[-1]:
        anchors = sum(height * width for height, width in teacher.sizes)
        empty = torch.zeros(0, dtype=torch.long, device=device)
        none = torch.zeros(images, anchors, device=device)
        return Targets(none.new_zeros(0, 4), empty, empty, none.bool(), none)
    probability, best = teacher.logits[first:].float().sigmoid().max(-1)  # (U, A, K) -> (U, A)
    positives = probability > confidence
    image, anchor = positives.nonzero(as_tuple=True)  # N confident anchors, image by image
    angles = None if teacher.angles is None else teacher.angles[first:]
    boxes = replace(teacher, boxes=teacher.boxes[first:], angles=angles).decoded()[image, anchor]
    limit = corner(boxes, size).repeat(2)
    boxes = torch.minimum(boxes.clamp_min(0), limit)
    group = image * teacher.logits.shape[-1] + best[image, anchor]  # boxes of other images or classes do not compete
    kept = batched_nms(boxes, probability[image, anchor], group, OVERLAP).sort().values  # image by image again
    if one_each:
        positives = torch.zeros_like(positives)
        positives[image[kept], anchor[kept]] = True
    labels = best[image, anchor][kept]
    if classes is not None:
        own = tuple(item if isinstance(item, int) else item[0] for item in classes)
        labels = constant(own, device, torch.long)[labels]
    return Targets(boxes[kept], labels, image[kept] + first, positives, probability * positives)


def thinned(teacher: Taps, chosen: torch.Tensor) -> Taps:
    """Return a one-to-many teacher's taps as a one-to-one branch would give them: one anchor answers for an object.

    Args:
        teacher (Taps): The teacher's taps on U images.
        chosen (torch.Tensor): The anchor of each object, with shape (U, A), bool.

    Returns:
        (Taps): The same, with logits at all other anchors at most the median of their class in that image.
    """
    if teacher.logits is None:
        return teacher
    background = teacher.logits.median(dim=1, keepdim=True).values  # (U, A, K) -> (U, 1, K)
    logits = torch.where(chosen.unsqueeze(-1), teacher.logits, torch.minimum(teacher.logits, background))
    return replace(teacher, logits=logits)


def joined(parts: Sequence[Targets]) -> Targets:
    """Return the targets of consecutive images of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(Targets) if field.name != "sums"]
    numbers, scores = zip(*(part.sums or (part.positives.sum(), part.scores.sum()) for part in parts))
    together = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Targets(**together, sums=(torch.stack(numbers).sum(), torch.stack(scores).sum()))
