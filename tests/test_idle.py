"""Keys that do nothing beside the values of others are those that change nothing in the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.loss_contract import random_pair, random_taps, random_targets
from yolokd import config
from yolokd.config.idle import ACTS, idle
from yolokd.losses import build

# A method's key with another value, the keys beside which it does nothing, and those beside which it acts.
CASES: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("dfmsd_spatial_ratio", 0.9, {"dfmsd_enhance": "gain"}, {}),
    ("dfmsd_channel_ratio", 0.9, {"dfmsd_enhance": "gain"}, {"dfmsd_enhance": "gain", "dfmsd_mask": "random"}),
    ("dfmsd_temperature", 0.05, {"dfmsd_mask": "random"}, {}),
    ("dfmsd_temperature", 0.05, {"dfmsd_enhance": "none"}, {"dfmsd_enhance": "gain", "dfmsd_gamma": 0.0}),
    ("dfmsd_temperature", 0.05, {"dfmsd_enhance": "frequency"}, {"dfmsd_mask": "low"}),
    ("dfmsd_temperature", 0.05, {"dfmsd_gamma": 0.0}, {}),
    ("dfmsd_enhance", "frequency", {"dfmsd_mask": "random"}, {}),
    ("dfmsd_enhance", "frequency", {"dfmsd_gamma": 0.0}, {}),
    ("dfmsd_gamma", 40.0, {"dfmsd_enhance": "none"}, {}),
    ("dfmsd_gamma", 40.0, {"dfmsd_mask": "random"}, {"dfmsd_enhance": "gain"}),
    ("samkd_ratio", 0.8, {"samkd_feature": 0.0}, {"samkd_feature": 0.0, "samkd_weight": "binary"}),
    ("samkd_channel_ratio", 0.9, {"samkd_feature": 0.0}, {}),
    ("samkd_temperature", 0.05, {"samkd_logit": 0.0}, {}),
    ("samkd_temperature", 0.05, {"samkd_weight": "binary"}, {"samkd_feature": 0.0}),
    ("samkd_weight", "binary", {"samkd_logit": 0.0}, {}),
    ("samkd_align", False, {"samkd_feature": 0.0}, {"samkd_logit": 0.0}),
    ("samkd_width", 16.0, {"samkd_feature": 0.0}, {}),
    ("sgfi_embed", 8, {"sgfi_match": "same"}, {}),
    ("pcd_stages", 1, {"pcd_grouped": 0.0}, {}),
    ("pcd_temperature", 1.0, {"pcd_grouped": 0.0}, {}),
    ("pcd_confidence", 1.0, {"pcd_grouped": 0.0}, {}),
    ("pcd_schedule", "sequence", {"pcd_grouped": 0.0}, {}),
    ("pcd_schedule", "sequence", {"pcd_stages": 1}, {"pcd_stages": 2}),
    ("bckd_beta", 2.0, {"bckd_cls": 0.0}, {"bckd_box": 0.0}),
    ("crosskd_beta", 2.0, {"crosskd_cls": 0.0}, {"crosskd_box": 0.0}),
]
OTHERS = {  # keys of a run: their value, the keys beside which they do nothing, and those beside which they act
    "kd_share": (0.2, {"kd_gain": 1.0}, {}),
    "kd_init": ("teacher", {"method": "none"}, {"method": "fit"}),
    "kd_stop": ("mosaic", {"close_mosaic": 0}, {"close_mosaic": 10}),
    "kd_unlabeled_ratio": (0.5, {"kd_names": ["car"]}, {"kd_unlabeled": "rest"}),
    "kd_unlabeled_confidence": (0.3, {}, {"kd_names": ["car"]}),
    "teacher_epochs": (3, {"method": "ultralytics"}, {}),
    "dfmsd_stages": ([0.3], {"dfmsd_mask": "random"}, {"dfmsd_mask": "random", "teacher": ["a.pt", "b.pt"]}),
    "pkd_gain": (0.5, {"method": "pkd"}, {"method": "pkd+cwd"}),
}


def value(name: str, keys: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    pair = random_pair(num_classes=6)
    student, teacher = random_taps(pair, sizes=[(20, 24), (10, 12), (5, 6)])
    loss = build(name, pair, {**config.DEFAULTS, **keys}).eval()
    loss.progress = 0.3
    return loss.parts(student, teacher, random_targets(student)), sum(part.numel() for part in loss.parameters())


def same(name: str, keys: dict[str, Any], others: dict[str, Any]) -> bool:
    torch.manual_seed(0)
    first, size = value(name, keys)
    torch.manual_seed(0)
    second, other = value(name, others)
    assert first.keys() == second.keys()
    return size == other and all(torch.allclose(first[part], second[part], rtol=1e-4) for part in first)


@pytest.mark.parametrize(("key", "other", "beside", "acting"), CASES, ids=str)
@pytest.mark.filterwarnings("ignore:pcd_stages")
def test_a_key_that_is_said_to_do_nothing_changes_nothing(
    key: str, other: Any, beside: dict[str, Any], acting: dict[str, Any]
) -> None:
    name = key.partition("_")[0]
    assert same(name, beside, {**beside, key: other})
    assert not same(name, acting, {**acting, key: other})
    assert list(idle([key], {**config.DEFAULTS, "method": name, **beside, key: other})) == [key]
    assert not idle([key], {**config.DEFAULTS, "method": name, **acting, key: other})


@pytest.mark.parametrize("key", OTHERS)
def test_keys_of_a_run_that_do_nothing_are_found_with_words(key: str) -> None:
    other, beside, acting = OTHERS[key]
    assert list(idle([key, "epochs"], {**config.DEFAULTS, **beside, key: other})) == [key]
    assert not idle([key, "epochs"], {**config.DEFAULTS, **acting, key: other})


def test_every_row_is_tested_and_has_words() -> None:
    assert {key for key, *_ in CASES} | set(OTHERS) == set(ACTS) - {f"{name}_gain" for name in config.METHODS} | {
        "pkd_gain"
    }
    assert set(ACTS) <= set(config.KEYS)
    for key in ACTS:
        words = ACTS[key][1].format_map(config.DEFAULTS)
        assert words.startswith("with") and "{" not in words
