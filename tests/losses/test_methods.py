"""The methods by name, and their options from flat keys."""

from __future__ import annotations

import pytest
import yaml

from tests.loss_contract import DEFAULTS, random_pair
from yolokd.errors import UserError
from yolokd.losses import ALIASES, LOSSES, build, options


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
