"""Feature methods keep to their inputs' device: the meta device has no values, so reading one on the host raises."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.loss_contract import leaves, random_pair, random_taps, random_targets
from yolokd.losses import LOSSES

SIZES = [(21, 26), (11, 13), (6, 7)]  # cells of unequal size


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dfmsd", {}),
        ("dfmsd", {"mask": "random"}),
        ("dfmsd", {"enhance": "gain"}),
        ("dfmsd", {"enhance": "frequency"}),
        ("samkd", {}),
        ("samkd", {"weight": "binary", "feature": 0.0}),
        ("mgd", {}),
        ("cwd", {}),
        ("pkd", {}),
    ],
)
def test_nothing_is_read_on_the_host(name: str, options: dict[str, Any]) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=SIZES)
    targets = random_targets(student)
    module = LOSSES[name](pair, **options).to("meta")
    teacher = dataclasses.replace(leaves(teacher, requires_grad=False, device="meta"), towers=None)
    value = module(leaves(student, device="meta"), teacher, targets)
    value.backward()
    assert value.is_meta and all(p.grad is not None and p.grad.is_meta for p in module.parameters())
