"""Random generators are left as they were found."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from yolokd.rng import preserved_rng


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def seed() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def test_streams_go_on_as_if_nothing_had_been_drawn() -> None:
    seed()
    first, second = draw(), draw()
    seed()
    assert draw() == first
    with preserved_rng():
        draw()
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)
    assert draw() == second


def test_a_seed_makes_torch_independent_of_the_past() -> None:
    seen = []
    for past in (1, 2):
        torch.manual_seed(past)
        with preserved_rng(seed=3):
            seen.append(torch.rand(4))
    assert torch.equal(seen[0], seen[1])


def test_streams_are_restored_after_an_error() -> None:
    seed()
    expected = draw()
    seed()
    with pytest.raises(ValueError, match="inside"), preserved_rng():
        draw()
        raise ValueError("inside")
    assert draw() == expected
