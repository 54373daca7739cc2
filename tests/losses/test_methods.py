"""The methods by name, and their options from flat keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from tests.loss_contract import DEFAULTS, random_pair, random_taps, random_targets
from yolokd.errors import UserError
from yolokd.losses import ALIASES, LOSSES, build, options
from yolokd.ops.adapters import Adapters, Generator


def test_options_are_the_methods_own_keys_without_prefix_gain_and_stage_points() -> None:
    keys = {"dfmsd_gain": 2.0, "dfmsd_stages": [0.5], "dfmsd_gamma": 3.0, "dfmsd_mask": "low", "epochs": 3}
    keys |= {"pcd_stages": 4, "pcd_gain": 1.0, "bckd_beta": 2.0, "ld_temperature": 5.0}
    assert options("dfmsd", keys) == {"gamma": 3.0, "mask": "low"}
    assert options("pcd", keys) == {"stages": 4}  # these stages are the method's own
    assert [name for name, loss in LOSSES.items() if loss.takes_stages] == ["dfmsd"]
    assert options("ld", keys) == {"temperature": 5.0} and options("cwd", keys) == {}


@pytest.mark.parametrize("name", LOSSES)
def test_every_method_is_built_from_the_shipped_keys(name: str) -> None:
    pair = random_pair(num_classes=6)
    module = build(name, pair, yaml.safe_load(DEFAULTS.read_text(encoding="utf-8")))
    assert type(module) is LOSSES[name] and module.name == name and module.pair is pair


def test_the_keys_given_reach_the_method() -> None:
    module = build("mgd", random_pair(), {"mgd_ratio": 0.2, "mgd_gain": 7.0, "cwd_temperature": 9.0})
    assert module.ratio == 0.2 and module.align is True


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"method='kd' does not exist.*dfmsd, .*softkd, gdetkd"):
        build("kd", random_pair(), {})
    assert all(set(members) <= set(LOSSES) for members in ALIASES.values())


def test_parts_of_weight_zero_are_no_units() -> None:
    assert build("pcd", random_pair(num_classes=6), {}).units == {"pcd_grouped": 1.0, "pcd_binary": 1.0}
    assert build("samkd", random_pair(), {"samkd_logit": 0.0, "samkd_feature": 0.5}).units == {"samkd_feature": 0.5}
    assert build("cwd", random_pair(), {}).units == {"cwd": 1.0}


@pytest.mark.parametrize(("name", "count"), [("dfmsd", 2), ("samkd", 1), ("mgd", 1)])
def test_the_width_reaches_all_generators(name: str, count: int) -> None:
    """A half of 32 and of 64 channels; one generator for each level and branch."""
    module = build(name, random_pair(2, teacher_channels=(32, 64)), {f"{name}_width": 0.5})
    found = [block[0].out_channels for block in module.modules() if isinstance(block, Generator)]
    assert sorted(found) == [16] * count + [32] * count


@pytest.mark.parametrize("name", ["dfmsd", "samkd", "mgd", "cwd", "pkd", "crosskd"])
def test_no_adapter_has_a_bias_that_the_standardisation_would_remove(name: str) -> None:
    module = build(name, random_pair(), {})
    adapters = [child for child in module.modules() if isinstance(child, Adapters)]
    assert adapters and all(isinstance(conv, nn.Conv2d) and conv.bias is None for conv in adapters[0])


@pytest.mark.parametrize(
    ("name", "parts"), [("bckd", {"cls": 3, "box": 3}), ("crosskd", {"cls": 3, "box": 1}), ("pcd", {"binary": 5})]
)
def test_sums_are_divided_by_the_numbers_of_all_the_students_levels(name: str, parts: dict[str, float]) -> None:
    """Three times the positives and five times the scores of the shared levels lie on all; means stay as they are."""
    pair = random_pair()
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    number, score = targets.positives.sum(), targets.scores.sum()
    assert number > 1 and score > 1
    module = build(name, pair, {"pcd_grouped": 0.0}).double()
    shared = module.parts(student, teacher, targets)
    whole = module.parts(student, teacher, replace(targets, sums=(3 * number, 5 * score)))
    assert {part: (shared[part] / whole[part]).item() for part in whole} == pytest.approx(parts, rel=1e-5)
