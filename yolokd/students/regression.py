"""Ridge regression of many outputs on many inputs, from sums over pieces of the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

PIECE = 1 << 22  # numbers of inputs that are at hand at a time
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean of the inputs' squares, summed over samples
ORIGINS = (0.0, 1.0)  # of the filters that are there, what a ridge draws to


@dataclass
class Sums:
    """What a regression asks of its samples, with inputs and targets less their means.

    Attributes:
        centre (torch.Tensor): Means of the inputs with shape (groups, 1, D).
        middle (torch.Tensor): Means of the targets with shape (C,).
        basis (torch.Tensor | None): Where samples are fewer than inputs, what spans them, with shape (groups, D, K);
            else None, and K is D.
        count (int): Number of samples in the sums.
        grams (list[torch.Tensor]): Products of inputs with shape (groups, K, K), over those learned from and those held
            out.
        sides (list[torch.Tensor]): Products of inputs and targets with shape (groups, K, outputs of a group), likewise.
        energy (float): Squares of the targets held out.
    """

    centre: torch.Tensor
    middle: torch.Tensor
    basis: torch.Tensor | None
    count: int
    grams: list[torch.Tensor]
    sides: list[torch.Tensor]
    energy: float

    def _columns(self, filters: torch.Tensor) -> torch.Tensor:
        """Return filters of shape (C, ...) as columns for their groups' inputs, with shape (groups, D, outputs)."""
        return filters.flatten(1)[:, :, None] if len(self.centre) > 1 else filters.flatten(1).T[None]

    def _seen(self, columns: torch.Tensor) -> torch.Tensor:
        return columns if self.basis is None else self.basis.transpose(1, 2) @ columns

    def mean(self, filters: torch.Tensor) -> torch.Tensor:
        """Return the means of filters' outputs with shape (C,)."""
        return (self.centre @ self._columns(filters)).flatten()

    def variance(self, filters: torch.Tensor) -> torch.Tensor:
        """Return the variances of filters' outputs with shape (C,)."""
        seen = self._seen(self._columns(filters))
        squares = seen * (self.grams[0] @ seen + self.grams[1] @ seen)
        return (squares.sum(1).flatten() / self.count).clamp_min(0)

    def regress(self, prior: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the filters that predict the targets best, and the share of their variance explained where held out.

        The ridge, and whether it draws to zero or to the prior, is what errs least on what is held out; all samples
        give the filters then.

        Args:
            prior (torch.Tensor): Filters with shape (C, ...).

        Returns:
            filters (torch.Tensor): Filters with the prior's shape.
            explained (float): 1 - squared error / squared distance from the mean, on what is held out.
        """
        start = self._columns(prior)
        near = self._seen(start)
        means = [gram.diagonal(dim1=1, dim2=2).sum(1) / start.shape[1] for gram in self.grams]
        rest = [
            [side - origin * (gram @ near) for gram, side in zip(self.grams, self.sides)] for origin in ORIGINS
        ]  # what is left to learn, of those learned from and those held out
        errors = {}
        for ridge in RIDGES:
            found = _solve(self.grams[0], [known for known, _ in rest], ridge * means[0])
            for index, weight in enumerate(found):
                errors[ridge, index] = self._missed(ORIGINS[index] * near + weight)
        ridge, index = min(errors, key=errors.__getitem__)
        (weight,) = _solve(
            self.grams[0] + self.grams[1], [rest[index][0] + rest[index][1]], ridge * (means[0] + means[1])
        )
        weight = ORIGINS[index] * start + (weight if self.basis is None else self.basis @ weight)
        explained = 1 - errors[ridge, index] / max(self.energy, 1e-12)
        return (weight[..., 0] if len(weight) > 1 else weight[0].T).reshape(prior.shape), explained

    def _missed(self, weight: torch.Tensor) -> float:
        """Return the squared error of columns (groups, K, outputs) on what is held out."""
        products = weight * (self.grams[1] @ weight - 2 * self.sides[1])
        return max(self.energy + float(products.sum(dtype=torch.float64)), 0.0)


def add_up(inputs: Callable[[slice], torch.Tensor], targets: torch.Tensor, learned: int, width: int) -> Sums:
    """Return the sums of a regression, from a piece of the samples after the other.

    Args:
        inputs (Callable[[slice], torch.Tensor]): Returns inputs of some samples with shape (groups, rows, D).
        targets (torch.Tensor): What to predict, with shape (M, C); C is the number of groups where there are several.
        learned (int): How many of the M come before those held out; with 0 all are learned from and judge as well.
        width (int): Numbers of a sample's inputs, in all groups.
    """
    count = len(targets)
    cuts = sorted({*range(0, count, max(PIECE // width, 1)), learned, count})
    pieces = [slice(*ends) for ends in zip(cuts, cuts[1:])]
    centre = torch.stack([inputs(piece).sum(1, keepdim=True) for piece in pieces]).sum(0) / count
    groups, _, each = centre.shape
    middle = targets.mean(0, dtype=centre.dtype)
    basis = None
    if count < each:  # then what is learned lies in the span of the samples
        basis = torch.linalg.qr((inputs(slice(count)) - centre).transpose(1, 2)).Q
    size = each if basis is None else basis.shape[2]
    grams = [centre.new_zeros(groups, size, size) for _ in range(2)]
    sides = [centre.new_zeros(groups, size, targets.shape[1] // groups) for _ in range(2)]
    energy = 0.0
    for piece in pieces:
        x, y = inputs(piece) - centre, targets[piece].to(centre.dtype) - middle
        x, y = (x if basis is None else x @ basis).transpose(1, 2), y.T[:, :, None] if groups > 1 else y[None]
        for part in (0, 1) if not learned else (int(piece.start >= learned),):
            grams[part].baddbmm_(x, x.transpose(1, 2))
            sides[part].baddbmm_(x, y)
            energy += part * float(y.square().sum(dtype=torch.float64))
    return Sums(centre, middle, basis, count if learned else 2 * count, grams, sides, energy)


def _solve(gram: torch.Tensor, sides: list[torch.Tensor], strength: torch.Tensor) -> list[torch.Tensor]:
    """Return the solutions (groups, D, C) of regular systems with one matrix, in double precision inside."""
    matrix = gram.to(torch.float64, copy=True)
    matrix.diagonal(dim1=1, dim2=2).add_(strength.double().clamp_min(1e-12)[:, None])
    factor, _ = torch.linalg.cholesky_ex(matrix)
    del matrix  # as large as what is to come
    return [torch.cholesky_solve(side.double(), factor).to(gram) for side in sides]
