"""Drawing one image of easily confused shapes, with clutter, noise and labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolokd.errors import UserError

VERSION = 1  # raise when the drawing changes: datasets of another version are not reused
SUPERSAMPLE = 4  # shapes are drawn this much larger and averaged down, for soft edges
MIN_SIDE = 6.0  # smallest shape diameter in pixels

Points = NDArray[np.float64]  # (N, 2) in the unit frame: the shape lies within [-1, 1], y points down
Contours = list[Points]  # filled by the even-odd rule: a contour inside another one is a hole
Image = NDArray[np.uint8]


def _arc(start: float, stop: float, radius_x: float = 1.0, radius_y: float = 1.0, count: int = 48) -> Points:
    """Return points on an ellipse between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack((radius_x * np.cos(angle), radius_y * np.sin(angle)), axis=1)


def _regular(sides: int, start: float = -90.0) -> Points:
    """Return the corners of a regular polygon on the unit circle, the first one at an angle in degrees."""
    return _arc(start, start + 360.0 * (sides - 1) / sides, count=sides)


def _bars(width: float) -> Points:
    """Return an upright plus whose bars have the given width."""
    w = width / 2
    corners = [
        (-w, -1),
        (w, -1),
        (w, -w),
        (1, -w),
        (1, w),
        (w, w),
        (w, 1),
        (-w, 1),
        (-w, w),
        (-1, w),
        (-1, -w),
        (-w, -w),
    ]
    return np.asarray(corners, dtype=np.float64)


def _turned(points: Points, degrees: float) -> Points:
    """Return points turned clockwise as seen in the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _star(points: int, inner: float) -> Points:
    """Return a star with the given number of points and inner radius."""
    corners = _regular(2 * points)
    corners[1::2] *= inner
    return corners


def _half_moon() -> Points:
    """Return a crescent that opens to the right."""
    outer, bite = _arc(60, 300), _arc(300, 60, 0.75, 0.866)
    return np.concatenate((outer, bite + np.array([0.125, 0.0])))


# Name -> contours. The order spreads the families, so that the first few are easy and each further one has a twin.
SHAPES: dict[str, Contours] = {
    "circle": [_arc(0, 360)],
    "square": [_regular(4, -45)],
    "triangle_up": [_regular(3)],
    "ring": [_arc(0, 360), _arc(0, 360, 0.6, 0.6)],
    "diamond": [_regular(4)],
    "triangle_down": [_regular(3, 90)],
    "pentagon": [_regular(5)],
    "hexagon": [_regular(6)],
    "plus": [_bars(0.6)],
    "cross": [_turned(_bars(0.6), 45)],
    "star": [_star(5, 0.45)],
    "ellipse": [_arc(0, 360, 1.0, 0.72)],
    "frame": [_regular(4, -45), _regular(4, -45) * 0.6],
    "half_moon": [_half_moon()],
    "octagon": [_regular(8, -67.5)],
    "star_six": [_star(6, 0.55)],
}


def _blob(rng: np.random.Generator) -> Contours:
    """Return a distractor: an irregular polygon that belongs to no class."""
    count = int(rng.integers(5, 9))
    angle = np.sort(rng.uniform(0, 2 * math.pi, count))
    radius = rng.uniform(0.3, 1.0, (count, 1))
    return [np.stack((np.cos(angle), np.sin(angle)), axis=1) * radius]


def _letter(rng: np.random.Generator) -> Contours:
    """Return a distractor with the strokes of the plus: an L, a T or a single bar."""
    w = 0.3
    corners = [
        [(-0.8, -1), (-0.8 + 2 * w, -1), (-0.8 + 2 * w, 1 - 2 * w), (0.8, 1 - 2 * w), (0.8, 1), (-0.8, 1)],
        [(-1, -1), (1, -1), (1, -1 + 2 * w), (w, -1 + 2 * w), (w, 1), (-w, 1), (-w, -1 + 2 * w), (-1, -1 + 2 * w)],
        [(-w, -1), (w, -1), (w, 1), (-w, 1)],
    ][int(rng.integers(3))]
    return [np.asarray(corners, dtype=np.float64)]


def _open_arc(rng: np.random.Generator) -> Contours:
    """Return a distractor with the stroke of the ring: half of it or less."""
    start, span = float(rng.uniform(0, 360)), float(rng.uniform(90, 190))
    return [np.concatenate((_arc(start, start + span), _arc(start + span, start, 0.65, 0.65)))]


DISTRACTORS: tuple[Callable[[np.random.Generator], Contours], ...] = (_blob, _letter, _open_arc)


@dataclass(frozen=True)
class Drawing:
    """What a drawn dataset depends on; two datasets with equal values hold the same files.

    Attributes:
        images (tuple[int, int]): Number of training and of validation images.
        imgsz (int): Height and width of the images in pixels.
        seed (int): Seed of all random choices.
        classes (int): Number of classes, the first ones of `SHAPES`.
        channels (int): 3 for colour, 1 for grayscale.
        objects (tuple[int, int]): Smallest and largest number of objects per image.
        clutter (float): Amount of lines and distractors, 0 for none, 1 for the usual amount.
        noise (float): Strength of noise and blur, 0 for none, 1 for the usual strength.
    """

    images: tuple[int, int] = (600, 200)
    imgsz: int = 128
    seed: int = 0
    classes: int = 12
    channels: int = 3
    objects: tuple[int, int] = (2, 7)
    clutter: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: If a value is out of range.
        """
        if min(self.images) < 1:
            raise UserError(f"images={self.images} must hold at least one training and one validation image")
        if self.imgsz < 32:
            raise UserError(f"imgsz={self.imgsz} is too small to draw on, the least is 32")
        if not 1 <= self.classes <= len(SHAPES):
            raise UserError(f"classes={self.classes} must be between 1 and {len(SHAPES)}")
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels} must be 1 (grayscale) or 3 (colour)")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise UserError(f"objects={self.objects} must be a smallest and a largest number, at least 1")
        if self.clutter < 0 or self.noise < 0:
            raise UserError(f"clutter={self.clutter} and noise={self.noise} must not be negative")

    @property
    def names(self) -> list[str]:
        """Names of the classes in the order of their indices."""
        return list(SHAPES)[: self.classes]


def draw_image(drawing: Drawing, split: int, index: int) -> tuple[Image, NDArray[np.float64]]:
    """Draw one image, independently of all others.

    Args:
        drawing (Drawing): The dataset's values.
        split (int): 0 for training, 1 for validation.
        index (int): Number of the image in its split.

    Returns:
        image (np.ndarray): Image with shape (imgsz, imgsz, 3) in BGR order, or (imgsz, imgsz) in grayscale, uint8.
        labels (np.ndarray): One row per object with shape (N, 5): class index, then x centre, y centre, width and
            height as fractions of the image.
    """
    rng = np.random.default_rng([drawing.seed, split, index])
    size = drawing.imgsz
    canvas = _background(rng, size)
    for _ in range(rng.poisson(4 * drawing.clutter)):
        _draw_line(rng, canvas)
    things: list[int | None] = [None] * int(rng.poisson(3 * drawing.clutter))  # None marks a distractor
    things += [
        int(rng.integers(drawing.classes)) for _ in range(rng.integers(drawing.objects[0], drawing.objects[1] + 1))
    ]
    rng.shuffle(things)
    owner = np.full((size, size), -1, dtype=np.int64)  # which thing is seen at a pixel
    areas: list[int] = []
    rows: list[list[float]] = []
    for thing in things:
        shape = DISTRACTORS[int(rng.integers(len(DISTRACTORS)))](rng) if thing is None else list(SHAPES.values())[thing]
        for _ in range(20):  # a thing may cover others a little, never most of one
            alpha, box = _place(rng, shape, size)
            seen = alpha >= 0.5
            covered = owner[seen]
            lost = np.bincount(covered[covered >= 0], minlength=len(areas))
            kept = np.bincount(owner[owner >= 0], minlength=len(areas))
            if seen.any() and np.all((lost == 0) | (kept - lost >= 0.65 * np.asarray(areas))):
                break
        else:
            continue
        owner[seen] = len(areas)
        areas.append(int(seen.sum()))
        _paint(rng, canvas, alpha)
        if thing is not None:
            x1, y1, x2, y2 = (value / size for value in box)
            rows.append([thing, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
    image = _finish(rng, canvas, drawing.noise)
    if drawing.channels == 1:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    return image, np.asarray(rows, dtype=np.float64).reshape(-1, 5)


def _background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return a canvas (size, size, 3) in [0, 255]: a slope between two colours with soft spots."""
    first, second = rng.uniform(30, 225, (2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    slope = ((x * math.cos(angle) + y * math.sin(angle)) * 0.7 + 0.5)[..., None]
    spots = cv2.resize(rng.normal(0, 18, (6, 6, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(first + (second - first) * slope * 0.6 + spots, 0, 255).astype(np.float32)


def _draw_line(rng: np.random.Generator, canvas: NDArray[np.float32]) -> None:
    """Draw one straight line across a part of the canvas."""
    size = canvas.shape[0]
    start, stop = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
    colour = tuple(float(v) for v in rng.uniform(0, 255, 3))
    cv2.line(canvas, start, stop, colour, int(rng.integers(1, 2 + size // 100)))


def _place(
    rng: np.random.Generator, shape: Contours, size: int
) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
    """Return a shape's coverage of each pixel (size, size) and its box in pixels at a random place, size and turn."""
    smallest = max(MIN_SIDE, 0.12 * size)
    radius = smallest * (0.42 * size / smallest) ** rng.uniform() / 2  # small ones as often as large ones
    stretch = np.exp(rng.normal(0, 0.06, 2))
    turn = rng.uniform(-14, 14)  # less than half of what turns a square into a diamond
    margin = radius * 0.8
    centre = rng.uniform(margin, size - margin, 2)
    contours = [_turned(points * stretch, turn) * radius + centre for points in shape]
    corners = np.concatenate(contours)
    (x1, y1), (x2, y2) = np.clip(corners.min(0), 0, size), np.clip(corners.max(0), 0, size)
    left, top = int(x1), int(y1)
    width, height = min(size, math.ceil(x2)) - left, min(size, math.ceil(y2)) - top
    mask = np.zeros((max(height, 1) * SUPERSAMPLE, max(width, 1) * SUPERSAMPLE), dtype=np.uint8)
    polygons = [np.round((points - (left, top)) * SUPERSAMPLE - 0.5).astype(np.int32) for points in contours]
    cv2.fillPoly(mask, polygons, 255)
    small = cv2.resize(mask, (max(width, 1), max(height, 1)), interpolation=cv2.INTER_AREA)
    alpha = np.zeros((size, size), dtype=np.float32)
    alpha[top : top + small.shape[0], left : left + small.shape[1]] = small[: size - top, : size - left] / 255.0
    return alpha, (float(x1), float(y1), float(x2), float(y2))


def _paint(rng: np.random.Generator, canvas: NDArray[np.float32], alpha: NDArray[np.float32]) -> None:
    """Blend a shape into the canvas in a colour that stands out from what lies beneath, some more, some less."""
    weight = alpha[..., None]
    beneath = (canvas * weight).sum((0, 1)) / max(float(weight.sum()), 1e-6)
    contrast = rng.uniform(35, 140)
    direction = rng.normal(0, 1, 3)
    direction /= np.linalg.norm(direction) + 1e-6
    colour = beneath + direction * contrast * math.sqrt(3)
    colour = np.where((colour < 0) | (colour > 255), beneath - direction * contrast * math.sqrt(3), colour)
    canvas += weight * rng.uniform(0.8, 1.0) * (np.clip(colour, 0, 255) - canvas)


def _finish(rng: np.random.Generator, canvas: NDArray[np.float32], noise: float) -> Image:
    """Return the image after blur, a change of contrast and brightness, and noise."""
    sigma = noise * rng.uniform(0.0, 0.9)
    blurred = cv2.GaussianBlur(canvas, (0, 0), sigma) if sigma > 0.2 else canvas
    contrast, brightness = rng.uniform(0.55, 1.1), rng.uniform(-25, 25)
    changed = (blurred - 127.5) * contrast + 127.5 + brightness
    changed = changed + rng.normal(0, 1, changed.shape) * noise * rng.uniform(4, 20)
    return np.clip(changed, 0, 255).astype(np.uint8)
