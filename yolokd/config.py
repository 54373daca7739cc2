"""The keys that yolokd adds to Ultralytics' own: defaults, checks, method names and recipes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from yolokd.errors import UserError
from yolokd.keys import Key
from yolokd.schedule import Stages


def _folder() -> Path:
    """Return the folder of the settings: `yolokd.cfg` where yolokd is installed, else `cfg/` of the checkout."""
    try:
        return Path(str(files("yolokd.cfg")))
    except ModuleNotFoundError:  # run from a checkout that is not installed
        return Path(__file__).parent.parent / "cfg"


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
        value (Any): Names joined by `+`, i.e. `dfmsd+pcd`; None or `none` for plain training; `ultralytics` for the
            built-in distillation.

    Returns:
        (tuple[str, ...]): Names in order, aliases such as `gdetkd` written out; empty for plain training.

    Raises:
        UserError: If a name is unknown, given twice, or does not go together with others.
    """
    if value is None or value == "none":
        return ()
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"method={value} is not valid: it must be names joined by +, i.e. method=dfmsd+pcd")
    names = [name.strip() for name in value.split("+")]
    if set(names) <= set(METHODS) and len(set(names)) == len(names):
        return tuple(names)  # without importing torch
    from yolokd.losses import ALIASES

    known = [*METHODS, *ALIASES, "none", "ultralytics"]
    for name in names:
        if name not in known:
            close = get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"method={value}: there is no method '{name}'; {hint}Methods: {', '.join(known)}")
        if name in {"none", "ultralytics"} and len(names) > 1:
            raise UserError(f"method={value}: '{name}' stands alone; take it out, or use method={name}")
    expanded = [part for name in names for part in ALIASES.get(name, (name,))]
    if twice := [name for name in dict.fromkeys(expanded) if expanded.count(name) > 1]:
        raise UserError(f"method={value} names {twice[0]} twice; use {twice[0]}_gain= to give it more weight")
    return tuple(expanded)


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
    """Return overrides with our keys in their own types; the host's keys are passed on as they are.

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
    checked = {name: KEYS[name].check(value) if name in KEYS else value for name, value in overrides.items()}
    if "method" in checked:
        methods(checked["method"])
    return checked


def unknown_key(name: str, base: Mapping[str, Any]) -> str:
    """Return the message for a key that is not in the base, with the nearest ones that are."""
    first, last = name.split("_")[0], name.split("_")[-1]
    alike = [k for k in base if k.startswith(f"{first}_") and k.endswith(f"_{last}")] if first != last else []
    close = list(dict.fromkeys([*alike, *get_close_matches(name, base, n=3)]))
    close = close or [k for k in base if k.startswith(f"{first}_")]
    shown = ", ".join(f"{k}={base[k]}" if base[k] is not None else f"{k}=" for k in close[:12])
    return f"'{name}' is not a key" + (f"; similar: {shown}" if close else "; see `yolokd cfg` and `yolo cfg`")


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


def validate(args: Mapping[str, Any]) -> None:
    """Check keys against each other, before anything is written.

    Args:
        args (Mapping[str, Any]): All arguments of a run, the host's and ours, each checked by itself.

    Raises:
        UserError: If they contradict each other; the message says which and how to mend it.
    """
    chosen = methods(args["method"])
    given = teachers(args.get("teacher"))
    _check_teachers(args, chosen, given)
    _check_gains(args, chosen)
    for name in ("kd_levels", "samkd_grids"):
        value = args[name]
        if value is not None and (not value or len(set(value)) < len(value)):
            raise UserError(f"{name}={value} must name at least one value, each once, i.e. {name}={KEYS[name].example}")
    if args["kd_stop"] != "mosaic" and args["kd_stop"] <= args["kd_warmup"]:
        raise UserError(
            f"kd_stop={args['kd_stop']} comes before the end of the ramp, kd_warmup={args['kd_warmup']}; "
            f"set kd_stop above it, i.e. kd_stop=1.0"
        )
    _check_stages(args["dfmsd_stages"], max(len(given), 1) if "dfmsd" in chosen else 0, args.get("epochs"))


def _file(weights: Any) -> Path:
    """Return the absolute path that weights mean; a worker's arguments name the same file in two ways."""
    return Path(str(weights)).with_suffix(".pt").resolve()


def _check_teachers(args: Mapping[str, Any], chosen: tuple[str, ...], given: list[Any]) -> None:
    """Check what depends on the teacher or on its absence."""
    method, built_in = args["method"], args.get("distill_model")
    if built_in is not None and chosen != ("ultralytics",):
        fix = "leave distill_model out" if given else f"use teacher={built_in} instead"
        raise UserError(
            f"distill_model={built_in} would distil a second time beside method={method}; {fix}, "
            f"or run the built-in alone with teacher={built_in} method=ultralytics"
        )
    if chosen == ("ultralytics",) and given and built_in is not None and _file(built_in) != _file(given[0]):
        raise UserError(f"distill_model={built_in} and teacher={given[0]} name two teachers; leave distill_model out")
    if chosen and not given and built_in is None:
        raise UserError(
            f"method={method} needs a teacher, i.e. teacher=yolov8x.pt or teacher=path/to/best.pt; "
            f"method=none trains without one"
        )
    if len(given) > 1 and chosen and "dfmsd" not in chosen:
        raise UserError(
            f"teacher=[{','.join(map(str, given))}] with method={method}: several teachers need dfmsd, which takes "
            f"them one after the other; give one teacher, or add dfmsd, i.e. method=dfmsd+pcd"
        )
    if args["teacher_epochs"] and (not chosen or len(given) > 1):
        why = "several teachers" if chosen else "method=none"
        raise UserError(
            f"teacher_epochs={args['teacher_epochs']} fine-tunes the one teacher of a distillation and does not go "
            f"with {why}; set teacher_epochs=0"
        )
    if chosen and (args.get("int8") is True or str(args.get("quantize")).lower() in {"8", "int8", "w8a8"}):
        raise UserError(
            "quantize=8 does not go with a teacher: quantisation-aware training would quantise the adapters too; "
            "distil first, then train with quantize=8 method=none, or export with quantize=8"
        )
    if given and not chosen:
        from ultralytics.utils import LOGGER

        LOGGER.warning(f"teacher={args['teacher']} is ignored: method=none trains without a teacher")


def _check_gains(args: Mapping[str, Any], chosen: tuple[str, ...]) -> None:
    """Refuse a distillation of which nothing would be left."""
    if not chosen or chosen == ("ultralytics",):
        return
    from yolokd.losses import LOSSES

    if args["kd_gain"] == 0 or all(args[f"{name}_gain"] == 0 for name in chosen):
        zero = "kd_gain=0" if args["kd_gain"] == 0 else " ".join(f"{name}_gain=0" for name in chosen)
        raise UserError(f"{zero} switches method={args['method']} off altogether; for plain training use method=none")
    for name in chosen:
        parts = [f"{name}_{part}" for part in LOSSES[name].part_names] if name in LOSSES else []
        if parts and not any(args[part] for part in parts):
            raise UserError(
                f"{' '.join(f'{part}=0' for part in parts)} leaves nothing of {name}; set one of them above 0"
            )


def _check_stages(points: Any, count: int, epochs: int | None) -> None:
    """Check dfmsd's switching points for a number of teachers; 0 means that dfmsd does not run."""
    if points != "auto":
        _check_points(points, count)
    if count > 1 and epochs:
        starts = Stages.parse(points, count).starts(epochs)
        if any(first >= last for first, last in zip(starts, [*starts[1:], epochs])):
            raise UserError(
                f"epochs={epochs} leaves one of the {count} teachers without an epoch, since the stages would begin "
                f"after {', '.join(map(str, starts))} epochs; train longer, or give fewer teachers"
            )


def _check_points(points: list[float], count: int) -> None:
    """Check switching points given as numbers."""
    shown = f"dfmsd_stages=[{','.join(f'{point:g}' for point in points)}]"
    if any(not 0 < point < 1 for point in points) or any(a >= b for a, b in zip(points, points[1:])):
        raise UserError(f"{shown} must rise and lie between 0 and 1, i.e. dfmsd_stages=[0.3,0.7]")
    if count > 1 and len(points) != count - 1:
        raise UserError(
            f"{shown} makes {len(points) + 1} stages and there are {count} teachers, which need {count - 1} switching "
            f"point{'s' * (count > 2)}; or use dfmsd_stages=auto for equal parts"
        )
