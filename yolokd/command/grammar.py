"""Ultralytics' command-line grammar: words of the form `key=value`, recipes and bare flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd.errors import HOST_MISTAKES, UserError

BARE = {"half", "int8", "end2end", "nms"}  # flags of the host whose default is not a bool
WORDS_OF_TASK = ("detect", "segment", "semantic", "depth", "classify", "pose", "obb")


def parse(words: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Read `key=value` words as Ultralytics does: spaces around `=`, bare booleans, tasks, leading dashes, `cfg=`.

    Args:
        words (Sequence[str]): Words after the mode.
        known (Mapping[str, Any]): Valid keys with their defaults.

    Returns:
        (dict[str, Any]): Values by key; a recipe's values stand under those given explicitly.

    Raises:
        UserError: If a word cannot be read.
    """
    from ultralytics.cfg import merge_equals_args, parse_key_value_pair

    from yolokd.config import unknown_key
    from yolokd.config.consistency import check_host_values

    given: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    try:
        merged = merge_equals_args(join_braces(words))
    except (SyntaxError, IndexError) as error:
        raise UserError(f"{' '.join(words)}: {error}; write key=value or key=[a,b]") from None
    for word in merged:
        word = word.removeprefix("--").removesuffix(",")
        if "=" in word:
            try:
                key, value = parse_key_value_pair(word)
            except AssertionError:
                raise UserError(f"'{word}' has no value; write {word}VALUE, or leave it out") from None
            if not key:
                raise UserError(f"'{word}' has no key; write key=value")
            if key == "cfg" and value is not None:
                recipe = read_recipe(str(value))
            else:
                given[key] = value
        elif word in WORDS_OF_TASK:
            given["task"] = word
        elif isinstance(known.get(word), bool) or word in BARE:
            given[word] = True
        elif word in known:
            shown = "VALUE" if known[word] is None else known[word]
            raise UserError(f"'{word}' needs a value, e.g. {word}={shown}")
        else:
            raise UserError(f"{unknown_key(word, known)}; arguments are written key=value")
    values = {**recipe, **given}
    check_host_values(values)
    return values


def join_braces(words: Sequence[str]) -> list[str]:
    """Return the words with those between braces joined, as `kd_class_map={car: automobile}` comes from a shell."""
    joined: list[str] = []
    depth = 0
    for word in words:
        if depth > 0:
            joined[-1] += f" {word}"
        else:
            joined.append(word)
        depth += word.count("{") - word.count("}")
    return joined


def read_recipe(value: str) -> dict[str, Any]:
    """Return the keys of a recipe: a file, else one of ours by name, else what Ultralytics finds by that name."""
    import yaml
    from ultralytics.utils.checks import check_yaml

    from yolokd.config import recipe, recipes

    path = Path(value)
    if not path.is_file():
        if path.stem in recipes() and path.parent == Path():
            path = recipe(path.stem)
        else:
            try:
                path = Path(check_yaml(value))
            except HOST_MISTAKES:
                raise UserError(f"cfg={value}: there is no such file; recipes: {', '.join(recipes())}") from None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cfg={value} cannot be read as YAML: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(content, dict):
        raise UserError(f"cfg={value} holds no keys; a recipe has lines of the form key: value, e.g. method: dfmsd")
    return {str(key): item for key, item in content.items() if key not in {"cfg", "mode"}}


def host_keys() -> dict[str, Any]:
    """Return Ultralytics' keys with their defaults."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    return dict(DEFAULT_CFG_DICT)
