"""Regions of interest on the student's own predictions, and the levels that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from yolokd.taps import Taps, Targets


def corner(like: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Return width and height, in pixels, of images of a size (height, width), without waiting for the device."""
    return torch.cat([like.new_full((1,), side) for side in reversed(image_size)])


def valid_boxes(boxes: torch.Tensor, image_size: tuple[int, int], smallest: float = 1.0) -> torch.Tensor:
    """Return boxes inside the image with a side of at least `smallest`, whatever was put in.

    Args:
        boxes (torch.Tensor): Boxes in pixels as x1, y1, x2, y2 with shape (..., 4); may be reversed or not finite.
        image_size (tuple[int, int]): Height and width in pixels.
        smallest (float): Smallest width and height in pixels.

    Returns:
        (torch.Tensor): Boxes in pixels with shape (..., 4).
    """
    limit = corner(boxes, image_size)
    first, second = boxes.nan_to_num(nan=0.0).chunk(2, dim=-1)
    low = torch.minimum(torch.minimum(first, second).clamp_min(0), limit - smallest)
    high = torch.minimum(torch.maximum(first, second), limit)
    return torch.cat((low, torch.maximum(high, low + smallest)), dim=-1)


def propose(
    student: Taps, targets: Targets, per_image: int, positives: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the same number of regions in every image: labelled boxes first, then the student's predictions.

    The positive part of an image is at most `round(per_image * positives)` long and consists of its labelled boxes (a
    random choice where there are too many) and of the predictions at its positive anchors. Predictions at the other
    anchors follow, as many as are needed to fill up, and what is left of the positive ones where even they run out.

    Args:
        student (Taps): The student's taps; the boxes are detached.
        targets (Targets): Labelled boxes and positive anchors.
        per_image (int): Regions R per image.
        positives (float): Largest share of positive regions.
        generator (torch.Generator): Generator on the CPU that the choice is drawn from.

    Returns:
        (tuple[torch.Tensor, torch.Tensor]): Valid boxes inside the image in pixels with shape (B, R, 4), float32, and
            a mask with shape (B, R), bool, which is False on rows left over because an image has too few anchors.
    """
    # B images, A anchors (or queries), G labelled boxes, P positive slots, R regions
    # Queries are matched with objects rather than assigned to them: the labelled boxes alone are positive then.
    positive = targets.positives
    assigned = positive if student.regions is None else positive.new_zeros(student.regions.shape[:2])
    (batch, count), device = assigned.shape, assigned.device
    slots = min(round(per_image * positives), per_image)
    labelled = torch.zeros(batch, slots + 1, 4, device=device)
    present = torch.zeros(batch, slots + 1, dtype=torch.bool, device=device)
    shuffle = torch.randperm(len(targets.boxes), generator=generator).to(device, non_blocking=True)
    image = targets.image_index[shuffle]
    owner = (image[:, None] == torch.arange(batch, device=device)).long()  # (G, B)
    slot = ((owner.cumsum(0) - 1) * owner).sum(1).clamp_max(slots)  # place within the image; the last one is spare
    labelled[image, slot] = targets.boxes[shuffle].to(labelled.dtype)
    present[image, slot] = True
    present = present[:, :slots]

    # Order of the candidates: 3 labelled, 2 positive while there is room, 1 others, 0 surplus positive, -1 nothing.
    chance = torch.rand(batch, count, generator=generator).to(device, non_blocking=True)
    best, first = chance.masked_fill(~assigned, -1).topk(min(slots, count), dim=1)  # (B, P)
    room = slots - present.sum(1, keepdim=True)
    taken = (torch.arange(best.shape[1], device=device) < room) & (best >= 0)
    chosen = torch.zeros_like(assigned).scatter(1, first, taken)
    anchor_key = chance + torch.where(chosen, 2.0, torch.where(assigned, 0.0, 1.0))
    key = torch.cat((torch.where(present, 3.0, -1.0), anchor_key), dim=1)  # (B, P + A)
    key = nn.functional.pad(key, (0, max(0, per_image - key.shape[1])), value=-1.0)
    key, index = key.topk(per_image, dim=1)  # (B, R)
    real = key >= 0
    rows = torch.arange(batch, device=device)[:, None].expand_as(index), (index - slots).clamp(0, count - 1)
    drawn = labelled.gather(1, index.clamp_max(slots).unsqueeze(-1).expand(-1, -1, 4))
    regions = torch.where((index < slots).unsqueeze(-1), drawn, student.proposals(rows))
    return valid_boxes(regions.masked_fill(~real.unsqueeze(-1), 0), student.image_size), real


class Proposer(nn.Module):
    """`propose` with its own random stream, which is saved and restored with the module's state.

    In evaluation the stream starts anew at every call and the kept one does not move, so that validating does not
    change the training. Methods with equal settings and streams choose alike, so the first one chooses for all of them
    where the student's taps have a memo.
    """

    def __init__(self, per_image: int, positives: float, seed: int):
        """Seed the stream.

        Args:
            per_image (int): Regions per image.
            positives (float): Largest share of positive regions.
            seed (int): Seed of the stream.
        """
        super().__init__()
        self.per_image = per_image
        self.positives = positives
        self.seed = seed
        self.state = torch.Generator().manual_seed(seed).get_state()  # a tensor, so that the module can be copied

    def forward(self, student: Taps, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Return regions with shape (B, R, 4) and the mask of real ones with shape (B, R); see `propose`."""
        state = self.state if self.training else torch.Generator().manual_seed(self.seed).get_state()
        memo = {} if student.memo is None else student.memo
        key = Proposer, id(targets), self.per_image, self.positives, state.numpy().tobytes()
        if key not in memo:
            generator = torch.Generator()
            generator.set_state(state)
            chosen = propose(student, targets, self.per_image, self.positives, generator)
            memo[key] = targets, chosen, generator.get_state()  # the targets, so that no others have their id
        _, chosen, state = memo[key]
        if self.training:
            self.state = state
        return chosen

    def get_extra_state(self) -> torch.Tensor:
        """Return the state of the random stream."""
        return self.state

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore the state of the random stream."""
        self.state = state.cpu()


def assigned_level(regions: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Return the level whose teacher map a region is compared on: the coarsest with `stride <= sqrt(w * h) / 8`.

    For strides 8, 16 and 32 this is `clamp(floor(3 + log2(sqrt(w * h) / 64)), 3, 5)`; smaller regions take the finest
    level.

    Args:
        regions (torch.Tensor): Boxes in pixels with shape (..., 4).
        strides (Sequence[int]): Strides of the levels, finest first.

    Returns:
        (torch.Tensor): Indices into the levels with shape (...), int64.
    """
    size = ((regions[..., 2] - regions[..., 0]) * (regions[..., 3] - regions[..., 1])).sqrt().contiguous()
    return sum((size >= 8.0 * stride for stride in strides[1:]), torch.zeros_like(size, dtype=torch.int64))


def rows_by_level(regions: torch.Tensor, real: torch.Tensor, strides: Sequence[int]) -> list[torch.Tensor]:
    """Return which regions belong to each level, so that each is pooled and adapted on its own level alone.

    The lengths of the lists are read back to the host, once for all levels. Without that every region would run
    through the layers of every level.

    Args:
        regions (torch.Tensor): Boxes in pixels with shape (B, R, 4).
        real (torch.Tensor): Mask of the rows that count with shape (B, R), bool.
        strides (Sequence[int]): Strides of the levels, finest first.

    Returns:
        (list[torch.Tensor]): For each level, indices into the B * R regions, int64; rows that do not count are nowhere.
    """
    return split_by_level(assigned_level(regions, strides).flatten(), real.flatten(), len(strides))


def split_by_level(level: torch.Tensor, real: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the indices of the rows of each level, read back to the host once for all of them.

    Args:
        level (torch.Tensor): Level of each row with shape (N,), int64.
        real (torch.Tensor): Which rows count, shape (N,), bool.
        count (int): Number of levels.

    Returns:
        (list[torch.Tensor]): For each level, indices into the N rows in order, int64.
    """
    kept = level.masked_fill(~real, count)
    counts = (kept == torch.arange(count + 1, device=level.device)[:, None]).sum(1)
    return list(torch.split(kept.argsort(stable=True), counts.tolist())[:count])


def filled(rows: torch.Tensor, least: int) -> torch.Tensor:
    """Return rows filled up with zeros to a multiple of `least`, which doubles at 8, 16, 32 and so on times `least`.

    So there are four lengths between a power of two and the next. The number of a level's regions changes from step to
    step, and oneDNN keeps memory for every length that a layer has met. It lies between the maps of a step, which then
    find less and less room in one piece.

    Args:
        rows (torch.Tensor): Rows with shape (n, D).
        least (int): Smallest length, at least 1.

    Returns:
        (torch.Tensor): Rows with shape (N, D), N from n to `max(n + least, 1.25 n)`, the first n as they were.
    """
    step = least << max(0, (len(rows) // least).bit_length() - 3)
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % step))


def pairwise_iou(regions: torch.Tensor) -> torch.Tensor:
    """Return the IoU of the regions of an image with each other.

    Args:
        regions (torch.Tensor): Boxes with an area as x1, y1, x2, y2 with shape (B, R, 4).

    Returns:
        (torch.Tensor): IoU in [0, 1] with shape (B, R, R).
    """
    low, high = regions.chunk(2, dim=-1)  # (B, R, 2)
    width, height = (high - low).unbind(-1)
    area = width * height
    first, last = torch.maximum(low[:, :, None], low[:, None]), torch.minimum(high[:, :, None], high[:, None])
    width, height = (last - first).clamp_min(0).unbind(-1)  # (B, R, R)
    inner = width * height
    return inner / (area[:, :, None] + area[:, None] - inner)


def as_rois(regions: torch.Tensor) -> torch.Tensor:
    """Return boxes with shape (B, R, 4) as rows of image index and box with shape (B * R, 5)."""
    batch, count = regions.shape[:2]
    image = torch.arange(batch, device=regions.device, dtype=regions.dtype).view(-1, 1, 1).expand(-1, count, 1)
    return torch.cat((image, regions), dim=-1).flatten(0, 1)
