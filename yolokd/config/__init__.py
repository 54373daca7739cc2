"""The keys that yolokd adds to Ultralytics' own: defaults, checks, method names and recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from yolokd.config.keys import Key, plain
from yolokd.errors import UserError


def _folder() -> Path:
    """Return the folder of the settings: `yolokd.cfg` where yolokd is installed, else `cfg/` of the checkout."""
    try:
        return Path(str(files("yolokd.cfg")))
    except ModuleNotFoundError:  # run from a checkout that is not installed
        return Path(__file__).parents[2] / "cfg"


FOLDER = _folder()


def _read() -> tuple[dict[str, Any], dict[str, Key]]:
    """Read default.yaml: the values, and of each key the type and meaning in its comment."""
    text = (FOLDER / "default.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    comments = {m[1]: (m[2], m[3]) for m in re.finditer(r"^(\w+):.*?# \((.+?)\) (.+)$", text, flags=re.MULTILINE)}
    keys = {name: Key(name, value, *comments[name]) for name, value in values.items()}
    return {name: key.check(key.default) for name, key in keys.items()}, keys


def methods(value: Any) -> tuple[str, ...]:
    """Return the names of the methods in `method=`.

    Args:
        value (Any): Names joined by `+`, e.g. `dfmsd+pcd`; None or `none` for plain training; `ultralytics` for the
            built-in distillation; `fit` for plain training from a start fitted to the teacher.

    Returns:
        (tuple[str, ...]): Names in order, aliases such as `gdetkd` written out; empty for plain training.

    Raises:
        UserError: If a name is unknown, given twice, or does not go together with others.
    """
    if value is None or str(value).lower() in {"none", "null"}:
        return ()
    words = re.findall(r"\w+", str(value))
    if not isinstance(value, str) or not words or value.strip()[0] in "[(":
        example = "+".join(words) if words and set(words) <= set(METHODS) else "dfmsd+pcd"
        raise UserError(f"method={value} is not valid: it must be names joined by +, e.g. method={example}")
    names = [name.strip() for name in value.split("+")]
    if set(names) <= set(METHODS) and len(set(names)) == len(names):
        return tuple(names)  # without importing torch
    from yolokd.losses import ALIASES

    known = [*METHODS, *ALIASES, *ALONE]
    for name in names:
        if name not in known:
            parts = re.findall(r"\w+", name)
            joined = ["+".join(parts)] if len(parts) > 1 and set(parts) <= set(known) else []
            close = joined or get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}? M" if close else "m"
            raise UserError(f"method={value}: there is no method '{name}'; {hint}ethods: {', '.join(known)}")
        if name in ALONE and len(names) > 1:
            raise UserError(f"method={value}: '{name}' stands alone; take it out, or use method={name}")
    expanded = [part for name in names for part in ALIASES.get(name, (name,))]
    if twice := [name for name in dict.fromkeys(expanded) if expanded.count(name) > 1]:
        raise UserError(f"method={value} names {twice[0]} twice; use {twice[0]}_gain= to give it more weight")
    return tuple(expanded)


def unread(value: Any, keys: Iterable[str]) -> list[str]:
    """Return those of some keys that a value of `method=` makes nothing of.

    They are those of methods which it does not name, e.g. `pkd_gain` beside `bckd`; where no term is added to the loss
    those of the terms' course, e.g. `kd_gain` beside `fit`; where the teacher gives no start either, those of how it is
    seen, and with `none` the teacher itself. Not those that can switch something off, `kd_init` and `kd_preflight`.

    Args:
        value (Any): A value of `method=`.
        keys (Iterable[str]): Names of keys.
    """
    others = set(METHODS) - set(methods(value))
    idle = set() if terms(value) else {*COURSE}
    if methods(value) in {(), ("ultralytics",)}:
        idle |= SEEN
    if not methods(value):
        idle.add("teacher")
    return [key for key in keys if key in KEYS and (key.partition("_")[0] in others or key in idle)]


def terms(value: Any) -> tuple[str, ...]:
    """Return the methods in `method=` that add a term to the loss: all but the words that stand alone."""
    return () if value in ALONE else methods(value)


REST = "rest"  # of kd_unlabeled: a word, though a file may be called so
CONTROLS = {"none": "plain training", "ultralytics": "Ultralytics' distillation"}  # arms to compare with, in words
ALONE = ("none", "ultralytics", "fit")  # values of `method` that stand alone and add no term of ours
SEEN = {"kd_class_map", "teacher_imgsz", "teacher_channels"}  # keys that say what the teacher sees and means
COURSE = {  # keys that say how terms act
    *("kd_gain", "kd_share", "kd_warmup", "kd_decay", "kd_stop", "kd_every", "kd_levels", "kd_val"),
    *("kd_teacher_dtype", "kd_compile", "kd_teachers", "kd_teacher_weights", "kd_unlabeled_confidence"),
}
# The methods are the names with a gain of their own; this avoids importing torch for their names.
METHODS: tuple[str, ...] = tuple(
    re.findall(r"^(?!kd_)(\w+)_gain:", (FOLDER / "default.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE)
)
DEFAULTS, KEYS = _read()


def teachers(value: Any) -> list[Any]:
    """Return the teachers of a checked `teacher` value in order; none, one or several."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def merged_base(cfg: Any = None) -> dict[str, Any]:
    """Return the base that Ultralytics' `get_cfg` checks overrides against: our defaults beside the host's.

    Args:
        cfg (str | Path | dict | SimpleNamespace | None): The host's configuration, as a trainer is given it.

    Returns:
        (dict[str, Any]): The host's defaults and ours, under what `cfg` sets.
    """
    from ultralytics.cfg import cfg2dict
    from ultralytics.utils import DEFAULT_CFG_DICT

    return {**DEFAULT_CFG_DICT, **DEFAULTS, **(cfg2dict(cfg) if cfg is not None else {})}


def host_args(args: SimpleNamespace) -> SimpleNamespace:
    """Return a copy of a namespace without our keys, for parts of the host that check against stock defaults."""
    return type(args)(**{name: value for name, value in vars(args).items() if name not in KEYS})


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ultralytics' logger silent; what it would repeat is said elsewhere."""
    from ultralytics.utils import LOGGER

    before, LOGGER.disabled = LOGGER.disabled, True
    try:
        yield
    finally:
        LOGGER.disabled = before


def check(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides with our keys in their own types; the host's keys are passed on, their numbers as Python's own.

    Args:
        overrides (Mapping[str, Any]): Keys and values of a training run, ours and the host's.

    Raises:
        UserError: If a key is unknown to both, or a value of ours has the wrong type or range.
    """
    from ultralytics.cfg import check_dict_alignment

    base = merged_base()
    for name, value in overrides.items():
        if name in base:
            continue
        try:
            with quiet():
                check_dict_alignment(base, {name: value})  # the host knows its deprecated names
        except SyntaxError:
            raise UserError(unknown_key(name, base)) from None
    if "method" in overrides:
        methods(overrides["method"])
    given = {name: plain(value) for name, value in overrides.items()}
    return {name: KEYS[name].check(value) if name in KEYS else value for name, value in given.items()}


def unknown_key(name: str, base: Mapping[str, Any], place: str = "see `yolokd cfg` and `yolo cfg`") -> str:
    """Return the message for a key that is not in the base, with the nearest ones that are, or where they are said."""
    first, last = name.split("_")[0], name.split("_")[-1]
    alike = [k for k in base if k.startswith(f"{first}_") and k.endswith(f"_{last}")] if first != last else []
    close = list(dict.fromkeys([*alike, *get_close_matches(name, base, n=3)]))
    close = close or [k for k in base if k.startswith(f"{first}_")]
    shown = ", ".join(f"{k}={base[k]}" if base[k] is not None else f"{k}=" for k in close[:12])
    return f"'{name}' is not a key" + (f"; similar: {shown}" if close else f"; {place}")


def recipes() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "default")


def recipe(name: str) -> Path:
    """Return the path of a recipe, for `model.train(cfg=yolokd.recipe("dfmsd"), ...)`.

    Args:
        name (str): Name of a method that has a recipe, with or without `.yaml`.

    Raises:
        UserError: If there is no such recipe; the message lists those there are.
    """
    stem = str(name).removesuffix(".yaml")
    if stem not in recipes():
        raise UserError(f"there is no recipe '{name}'; recipes: {', '.join(recipes())}")
    return FOLDER / f"{stem}.yaml"
