"""What stands on one picture of an inspection, before it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Panel:
    """One map of a level.

    Attributes:
        title (str): What is shown, one or two lines.
        values (Array): The map with shape (H, W).
        kind (str): `map` for values from 0, `signed` for differences, `mask` for 0 = masked and 1 = kept.
        upper (float | None): Upper end of the colours; the map's own 99.5 % quantile if not given.
        grid (int): Cells per side, whose borders are drawn.
    """

    title: str
    values: Array
    kind: Literal["map", "signed", "mask"] = "map"
    upper: float | None = None
    grid: int = 1


@dataclass(frozen=True)
class Regions:
    """Regions of a level and how much each student level counts for them.

    Attributes:
        title (str): What is shown.
        boxes (Array): Boxes in pixels as x1, y1, x2, y2 with shape (N, 4); the first ones are numbered.
        weights (Array | None): Weights of the first N' regions with shape (N', L), or None where there are none.
        strides (tuple[int, ...]): Stride of each of the L levels.
        shown (int): How many regions are numbered.
    """

    title: str
    boxes: Array
    weights: Array | None
    strides: tuple[int, ...]
    shown: int = 12


@dataclass(frozen=True)
class Ranking:
    """The classes of one anchor in the order in which they are cut into groups.

    Attributes:
        title (str): Which anchor it is.
        names (Sequence[str]): Class names in order.
        teacher (Array): Teacher's logits in order, shape (K,).
        student (Array): Student's logits in order, shape (K,).
        groupings (Sequence[Sequence[tuple[int, float]]]): For each grouping the size and the term of each group.
    """

    title: str
    names: Sequence[str]
    teacher: Array
    student: Array
    groupings: Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Sheet:
    """Everything on one picture.

    Attributes:
        title (str): First line.
        notes (Sequence[str]): Lines under it.
        image (Array): The image with shape (height, width, 3), uint8.
        boxes (Array): Teacher's detections in pixels with shape (N, 4).
        labels (Sequence[str]): Class and probability of each.
        panels (Sequence[Panel]): Maps.
        regions (Sequence[Regions]): Regions.
        rankings (Sequence[Ranking]): Ranked classes.
    """

    title: str
    notes: Sequence[str]
    image: Array
    boxes: Array
    labels: Sequence[str]
    panels: Sequence[Panel] = field(default_factory=list)
    regions: Sequence[Regions] = field(default_factory=list)
    rankings: Sequence[Ranking] = field(default_factory=list)
