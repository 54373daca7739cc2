"""Keys, methods, recipes and the checks of keys against each other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from yolokd import config
from yolokd.config import consistency
from yolokd.config.idle import idle
from yolokd.config.keys import Accepted, shown
from yolokd.errors import UserError

TEACHER = {"teacher": "t.pt"}
# A value of the wrong type or word for every kind of comment in default.yaml; None is one unless it is optional.
WRONG_TYPE: dict[str, list[Any]] = {
    "float >= 0": ["much", True, [1.0], None],
    "float > 0": ["much", False, {"a": 1}, None],
    "float in [0, 1]": ["half", True, [0.5], None],
    "float in [0, 0.3334]": ["short", True, None],
    "int >= 0": [1.5, "two", True, None],
    "int >= 1": [1.5, "two", False, None],
    "int >= 4": [8.5, "many", True, None],
    "bool": ["yes", 1, 0, None],
    "str": [5, 1.5, True, ["dfmsd"], ""],
    "str | list[str], optional": [5, True, {"a": 1}, ["a.pt", 3], ""],
    "int >= 32, optional": [64.5, "big", True],
    "list[int] >= 0, optional": [2, "2", [1.5], ["a"], [True]],
    "dict, optional": [5, True, ["car"], {}, "car", "{}", "{car}", {"car": []}, {"car": None}, {"car": {"a": "b"}}],
    "list[int] >= 1": [8, "8", [8.5], ["a"], [True], None],
    "list[int] >= 1, optional": [8, "8", [8.5], ["a"], [True]],
    "auto | list[float] in [0, 1]": ["manual", 0.5, ["a"], None],
    "auto | float >= 0": ["much", True, None],
    "auto | float > 0": ["much", True, None],
    "auto | teacher | none": ["student", 1],
    "mosaic | float in [0.1, 1]": ["end", True, None],
    "constant | cosine": ["linear", 1, None],
    "auto | float32 | bfloat16 | float16": ["bf16", 16, None],
    "high | low | random": ["middle", 1, None],
    "none | gain | gap | frequency": ["fft", 0, False],
    "soft | binary": ["hard", 1, None],
    "soft | same": ["hard", 1, None],
    "together | sequence": ["both", 1, None],
    "stages | together": ["both", 1, None],
    "equal | confidence": ["mean", 1, None],
    "float in [0.05, 0.95]": ["half", True, [0.5], None],
    "auto | float in [0.05, 0.95]": ["half", True, [0.5], None],
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "float >= 0": [-0.001, float("nan"), float("inf")],
    "float > 0": [0, -1.0, float("nan")],
    "float in [0, 1]": [-0.01, 1.01, float("nan")],
    "float in [0, 0.3334]": [-0.1, 0.34],
    "int >= 0": [-1],
    "int >= 1": [0, -3],
    "int >= 4": [3],
    "int >= 32, optional": [31, -64],
    "list[int] >= 0, optional": [[-1], [0, -2]],
    "list[int] >= 1": [[0], [1, -2]],
    "list[int] >= 1, optional": [[0], [8, -16]],
    "auto | list[float] in [0, 1]": [[1.5], [-0.1, 0.5]],
    "auto | float >= 0": [-1, float("inf")],
    "auto | float > 0": [0, -1, float("inf")],
    "mosaic | float in [0.1, 1]": [0.05, 1.1],
    "float in [0.05, 0.95]": [0.0, 0.04, 1.0],
    "auto | float in [0.05, 0.95]": [0.0, 0.96, float("nan")],
}
REFUSED = [
    (name, value)
    for name, key in config.KEYS.items()
    for t in (WRONG_TYPE, OUT_OF_RANGE)
    for value in t.get(key.types, [])
]


def args(**changes: Any) -> dict[str, Any]:
    return {"quantize": None, "distill_model": None, **config.DEFAULTS, **changes}


def test_every_kind_of_key_has_wrong_values_in_the_table():
    assert {key.types for key in config.KEYS.values()} == set(WRONG_TYPE)
    assert set(OUT_OF_RANGE) == {t for t in WRONG_TYPE if ">" in t or " in [" in t}


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=[f"{n}={v}" for n, v in REFUSED])
def test_a_wrong_value_is_refused_with_key_value_and_example(name, value):
    with pytest.raises(UserError) as error:
        config.KEYS[name].check(value)
    text = str(error.value)
    assert text.startswith(f"{name}={shown(value)}"[:60]) and "\n" not in text
    if name != "method":
        assert f"e.g. {name}={config.KEYS[name].example}" in text


@pytest.mark.parametrize("key", config.KEYS.values(), ids=list(config.KEYS))
def test_default_and_example_are_accepted_and_plain(key):
    assert key.check(key.default) == config.DEFAULTS[key.name]
    from ultralytics.cfg import smart_value

    key.check(smart_value(key.example))
    assert key.meaning and key.check(config.DEFAULTS[key.name]) == config.DEFAULTS[key.name]
    json.dumps(config.DEFAULTS[key.name])  # plain, so that args.yaml and checkpoints can hold it


def test_values_as_the_host_parser_leaves_them():
    check = {name: key.check for name, key in config.KEYS.items()}
    assert check["kd_levels"]("[8, 16]") == check["kd_levels"]((8, 16)) == [8, 16]
    assert check["kd_levels"]([1e1]) == [10] and check["kd_levels"](None) is None is check["kd_levels"]("none")
    assert check["teacher"]("[a.pt, 'b c.pt']") == ["a.pt", "b c.pt"]
    assert check["teacher"](Path("x") / "best.pt") == str(Path("x") / "best.pt")
    assert check["dfmsd_enhance"](None) == "none" == check["method"](None)
    assert check["dfmsd_stages"]("[]") == [] and check["dfmsd_stages"]((0.3, 0.7)) == [0.3, 0.7]
    gain = check["kd_gain"](2)
    assert gain == 2.0 and isinstance(gain, float)
    epochs = check["teacher_epochs"](1e2)
    assert epochs == 100 and isinstance(epochs, int)
    assert check["kd_gain"]("AUTO") == "auto"


@pytest.mark.parametrize(
    "value",
    [
        {"car": "automobile", "vehicle": ("bus", "truck")},
        "{car: automobile, vehicle: [bus, truck]}",
        "{car:automobile,vehicle:[bus,truck]}",
        "{'car': 'automobile', 'vehicle': ['bus', 'truck']}",
    ],
)
def test_a_mapping_reads_the_same_from_python_text_and_file(value, tmp_path):
    expected = {"car": "automobile", "vehicle": ["bus", "truck"]}
    key = config.KEYS["kd_class_map"]
    assert key.check(value) == expected
    path = tmp_path / "map.yaml"
    path.write_text("car: automobile\nvehicle:\n  - bus\n  - truck\n")
    assert key.check(path) == key.check(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("a: [", "cannot be read as YAML"),
        ("car", "holds no mapping"),
        ("", "holds no"),
    ],
)
def test_a_mapping_file_that_cannot_be_used_is_named(content, message, tmp_path):
    path = tmp_path / "map.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        config.KEYS["kd_class_map"].check(str(path))
    assert str(error.value).startswith(f"kd_class_map={path}") and message in str(error.value)


def test_a_mapping_that_is_no_yaml_is_refused():
    with pytest.raises(UserError, match=r"kd_class_map=\{car: \[\}"):
        config.check({"kd_class_map": "{car: [}"})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 64), max_size=4))
def test_a_list_reads_the_same_as_text(values):
    assert config.KEYS["kd_levels"].check(str(values)) == values == config.KEYS["kd_levels"].check(values)


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.sampled_from(["dfmsd_spatial_ratio", "pcd_confidence"]))
def test_a_fraction_in_range_is_unchanged(value, name):
    assert config.KEYS[name].check(value) == value


def test_check_passes_host_keys_on_and_converts_ours():
    given_keys = {"epochs": 3, "model": "m.pt", "save_dir": "x", "half": True, "kd_gain": 1, "method": None}
    assert config.check(given_keys) == {**given_keys, "kd_gain": 1.0, "method": "none"}
    assert given_keys["kd_gain"] == 1 and "half" in given_keys  # left as they were


def test_numbers_of_numpy_and_torch_are_taken_as_pythons_own():
    given_keys = {
        "imgsz": np.int32(64),
        "epochs": torch.tensor(2),
        "kd_gain": np.float32(0.5),
        "kd_val": np.bool_(True),
    }
    checked = config.check({**given_keys, "kd_levels": np.array([8, 16]), "classes": [np.int64(0)]})
    expected = {"imgsz": 64, "epochs": 2, "kd_gain": 0.5, "kd_val": True, "kd_levels": [8, 16], "classes": [0]}
    assert checked == expected
    assert all(type(checked[key]) is type(value) for key, value in expected.items())
    assert type(checked["classes"][0]) is int


def test_text_that_looks_like_a_number_or_a_word_is_shown_as_text():
    for given_keys, start in (
        ({"kd_preflight": "False"}, "kd_preflight='False' is not valid"),
        ({"kd_share": "0.5"}, "kd_share='0.5' is not valid"),
        ({"kd_val": "maybe"}, "kd_val=maybe is not valid"),
        ({"kd_every": 0}, "kd_every=0 is not valid"),
    ):
        with pytest.raises(UserError) as error:
            config.check(given_keys)
        assert str(error.value).startswith(start)
    with pytest.raises(UserError, match=r"^batch='8' is not valid"):
        consistency.validate(args(**TEACHER, batch="8"))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("metod", "method=bckd"),
        ("techer", "teacher="),
        ("dfmsd_ratio", "dfmsd_spatial_ratio=0.4"),
        ("pcd_stage", "pcd_stages=3"),
        ("pcd_zzzzzzzzz", "pcd_gain=1.0"),
        ("kd_warmp", "kd_warmup=0.1"),
        ("epoch", "epochs=100"),
        ("qqqqqq", "yolokd cfg"),
    ],
)
def test_an_unknown_key_gets_the_nearest_ones(key, hint):
    with pytest.raises(UserError, match=f"'{key}' is not a key") as error:
        config.check({"epochs": 1, key: 1})
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, ()),
        ("none", ()),
        ("ultralytics", ("ultralytics",)),
        ("pcd", ("pcd",)),
        ("dfmsd+pcd", ("dfmsd", "pcd")),
        ("gdetkd", ("sgfi", "ckd")),
        ("pcd + gdetkd", ("pcd", "sgfi", "ckd")),
    ],
)
def test_methods(value, names):
    assert config.methods(value) == names


def test_methods_with_a_term_of_their_own():
    assert {value: config.terms(value) for value in (None, "none", "fit", "ultralytics", "gdetkd+pcd")} == {
        None: (),
        "none": (),
        "fit": (),
        "ultralytics": (),
        "gdetkd+pcd": ("sgfi", "ckd", "pcd"),
    }


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("dfmds", "did you mean dfmsd?"),
        ("PCD", "did you mean pcd?"),
        ("pcd+", "no method ''"),
        ("pcd+pcd", "pcd twice"),
        ("gdetkd+ckd", "ckd twice"),
        ("none+pcd", "'none' stands alone"),
        ("fit+pcd", "'fit' stands alone"),
        ("pcd+ultralytics", "'ultralytics' stands alone"),
        ("zzz", "; methods: dfmsd, samkd"),
        ("pcd,ckd", "did you mean pcd+ckd? Methods: dfmsd"),
        ("[pcd,ckd]", "names joined by +, e.g. method=pcd+ckd"),
        (5, "names joined by +"),
        (["pcd"], "names joined by +, e.g. method=pcd"),
        (["pcd", "ckd"], "e.g. method=pcd+ckd"),
        ("", "names joined by +"),
    ],
)
def test_methods_refuse(value, part):
    with pytest.raises(UserError) as error:
        config.methods(value)
    assert part in str(error.value) and str(error.value).startswith("method=")


@pytest.mark.parametrize(
    "good",
    [
        {**TEACHER},
        {"method": "none"},
        {**TEACHER, "method": "ultralytics"},
        {**TEACHER, "method": "fit"},
        {"method": "ultralytics", "distill_model": "t.pt"},
        {**TEACHER, "method": "ultralytics", "distill_model": str(Path("t.pt").resolve())},
        {"teacher": "t", "method": "ultralytics", "distill_model": "t.pt"},
        {"teacher": ["a.pt", "b.pt"], "method": "dfmsd"},
        {"teacher": ["a.pt", "b.pt"], "method": "dfmsd+pcd", "dfmsd_stages": [0.4]},
        {"method": "dfmsd+pcd", "teacher": ["a.pt", "b.pt"], "epochs": 2},
        {**TEACHER, "epochs": 1},
        {"teacher": ["a.pt"], "method": "pcd", "teacher_epochs": 5},
        {**TEACHER, "dfmsd_stages": []},
        {**TEACHER, "dfmsd_stages": [0.2, 0.5, 0.9]},
        {**TEACHER, "kd_stop": "mosaic", "kd_warmup": 0.3},
        {"method": "none", "quantize": 8},
        {**TEACHER, "quantize": 16},
        {**TEACHER, "kd_gain": 1.0, "kd_levels": [8, 16]},
        {**TEACHER, "method": "pcd", "pcd_grouped": 0.0},
        {**TEACHER, "method": "dfmsd+pcd", "dfmsd_gain": 0.0},
    ],
    ids=str,
)
def test_validate_accepts(good):
    consistency.validate(args(**good))


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        ({}, ["method=bckd needs a teacher", "teacher=yolov8x.pt", "method=none"]),
        ({"teacher": [], "method": "pcd"}, ["method=pcd needs a teacher"]),
        ({"method": "ultralytics"}, ["method=ultralytics needs a teacher"]),
        ({**TEACHER, "distill_model": "u.pt"}, ["distill_model=u.pt", "leave distill_model out"]),
        ({"distill_model": "u.pt"}, ["use teacher=u.pt instead"]),
        ({"distill_model": "u.pt", "method": "none"}, ["method=ultralytics"]),
        ({**TEACHER, "distill_model": "u.pt", "method": "ultralytics"}, ["u.pt", "t.pt", "two teachers"]),
        ({"teacher": ["a.pt", "b.pt"], "method": "pcd"}, ["teacher=[a.pt,b.pt]", "dfmsd"]),
        ({"teacher": ["a.pt", "b.pt"], "method": "ultralytics"}, ["dfmsd"]),
        (
            {"method": "dfmsd+pcd", "teacher": ["a.pt", "b.pt"], "teacher_epochs": 3},
            ["teacher_epochs=3", "several teachers"],
        ),
        ({"method": "none", "teacher_epochs": 3}, ["teacher_epochs=3", "method=none"]),
        ({**TEACHER, "quantize": 8}, ["quantize=8", "adapters"]),
        ({**TEACHER, "quantize": "int8"}, ["quantize=8", "adapters"]),
        ({**TEACHER, "dfmsd_stages": [0.5, 0.3]}, ["dfmsd_stages=[0.5,0.3]", "rise"]),
        ({**TEACHER, "dfmsd_stages": [0.5, 0.5]}, ["rise"]),
        ({**TEACHER, "dfmsd_stages": [0.0]}, ["between 0 and 1"]),
        ({**TEACHER, "dfmsd_stages": [1.0]}, ["between 0 and 1"]),
        (
            {"method": "dfmsd+pcd", "teacher": ["a", "b"], "dfmsd_stages": []},
            ["1 stages", "2 teachers", "1 switching point;"],
        ),
        (
            {"method": "dfmsd+pcd", "teacher": ["a", "b", "c"], "dfmsd_stages": [0.5]},
            ["2 stages", "3 teachers", "2 switching points"],
        ),
        (
            {"method": "dfmsd+pcd", "teacher": ["a", "b"], "epochs": 1},
            ["epochs=1", "one of the 2 teachers", "0, 1 epochs"],
        ),
        (
            {"method": "dfmsd+pcd", "teacher": ["a", "b"], "epochs": 3, "dfmsd_stages": [0.9]},
            ["epochs=3", "0, 3 epochs"],
        ),
        ({**TEACHER, "kd_levels": []}, ["kd_levels=[]"]),
        ({**TEACHER, "kd_levels": [8, 8]}, ["each once"]),
        ({**TEACHER, "samkd_grids": []}, ["samkd_grids=[]"]),
        ({**TEACHER, "kd_warmup": 0.3, "kd_stop": 0.2}, ["kd_stop=0.2", "kd_warmup=0.3"]),
        ({**TEACHER, "kd_gain": 0.0}, ["kd_gain=0", "method=none"]),
        ({**TEACHER, "method": "dfmsd+pcd", "dfmsd_gain": 0.0, "pcd_gain": 0.0}, ["dfmsd_gain=0 pcd_gain=0"]),
        ({**TEACHER, "method": "dfmsd+pcd", "pcd_grouped": 0.0, "pcd_binary": 0.0}, ["pcd_grouped=0 pcd_binary=0"]),
        ({**TEACHER, "method": "samkd", "samkd_feature": 0.0, "samkd_logit": 0.0}, ["nothing of samkd"]),
    ],
    ids=str,
)
def test_validate_refuses(bad, parts):
    with pytest.raises(UserError) as error:
        consistency.validate(args(**bad))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("bckd", ["pkd_gain", "dfmsd_stages", "sgfi_regions"]),
        ("gdetkd", ["bckd_beta", "pkd_gain", "dfmsd_stages"]),
        ("dfmsd+pkd", ["bckd_beta", "sgfi_regions"]),
        ("none", ["bckd_beta", "pkd_gain", "kd_gain", "dfmsd_stages", "teacher", "sgfi_regions"]),
        ("fit", ["bckd_beta", "pkd_gain", "kd_gain", "dfmsd_stages", "sgfi_regions"]),
        ("ultralytics", ["bckd_beta", "pkd_gain", "kd_gain", "dfmsd_stages", "sgfi_regions"]),
        (None, ["bckd_beta", "pkd_gain", "kd_gain", "dfmsd_stages", "teacher", "sgfi_regions"]),
    ],
)
def test_keys_that_no_chosen_method_reads(method, found):
    keys = ["bckd_beta", "pkd_gain", "kd_gain", "dfmsd_stages", "epochs", "teacher", "sgfi_regions", "pkd_like"]
    assert sorted(config.unread(method, keys)) == sorted(found)
    more = ["kd_class_map", "teacher_imgsz", "kd_init", "kd_preflight", "kd_safe_load", "kd_unlabeled"]
    assert config.unread(method, more) == (more[:2] if method in {None, "none", "ultralytics"} else [])


def test_the_host_accepts_our_keys_in_the_merged_base():
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG

    made = get_cfg(config.merged_base(DEFAULT_CFG), {"kd_gain": 1.0, "epochs": 3})
    assert made.kd_gain == 1.0 and made.epochs == 3 and made.pcd_stages == 3
    assert config.merged_base({"epochs": 7, "kd_share": 0.5})["kd_share"] == 0.5
    assert config.merged_base({"epochs": 7})["imgsz"] == 640
    with pytest.raises(SyntaxError):
        get_cfg(config.merged_base(DEFAULT_CFG), {"kd_gian": 1.0})


def test_host_args_has_none_of_our_keys_and_all_others():
    full = SimpleNamespace(epochs=3, **config.DEFAULTS)
    assert vars(config.host_args(full)) == {"epochs": 3}
    assert full.method == config.DEFAULTS["method"]


@pytest.mark.parametrize("name", config.recipes())
def test_a_recipe_is_valid_and_shows_defaults_but_for_what_makes_it(name):
    path = config.recipe(name)
    text = path.read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    checked = config.check(keys)
    assert set(keys) <= set(config.KEYS)
    consistency.validate(args(**TEACHER, **checked))
    assert not idle(set(keys) - {"method", *(f"{part}_gain" for part in config.METHODS)}, args(**TEACHER, **checked))
    chosen = config.methods(keys["method"])
    assert chosen == {"dmkd": ("dfmsd",), "gdetkd": ("sgfi", "ckd"), "dfmsd+pcd": ("dfmsd", "pcd")}.get(name, (name,))
    assert all(key.split("_")[0] in {"method", "kd", *chosen} for key in keys)
    changed = {key for key, value in checked.items() if value != config.DEFAULTS[key]} - {"method"}
    assert changed == ({"dfmsd_stages", "dfmsd_enhance", "dfmsd_align"} if name == "dmkd" else set())
    for word in ("# Run:     yolokd train ", f"cfg={name}.yaml", "# Teacher: ", "# Paper:   ", "# Ours:    "):
        assert word in text
    assert all(f"train/{method}_loss" in text for method in chosen)


def test_recipe_by_name_and_the_error_lists_them():
    assert config.recipe("dfmsd") == config.recipe("dfmsd.yaml") and config.recipe("dfmsd").is_file()
    with pytest.raises(UserError, match=r"recipes: bckd, ckd, .*dfmsd"):
        config.recipe("default")


def test_a_recipe_works_as_cfg_in_python_as_the_host_reads_it():
    from ultralytics.utils import YAML, checks

    keys = YAML.load(checks.check_yaml(config.recipe("dmkd")))
    assert config.check(keys)["dfmsd_enhance"] == "none" and config.check(keys)["dfmsd_stages"] == []


def test_a_comment_that_is_no_type_is_an_error():
    with pytest.raises(ValueError, match="is no type"):
        Accepted.parse("list[thing] >= 1")
