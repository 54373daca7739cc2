"""Values that are mappings from name to name: from Python, from text as typed in a shell, or from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolokd.errors import UserError

SUFFIXES = {".yaml", ".yml"}


def read_mapping(value: Any) -> dict[str, str | list[str]]:
    """Return a mapping from names to names or lists of names, as plain values.

    Args:
        value (Any): A mapping; `{a: b, c: [d, e]}` as text, with or without spaces behind the colons; or the path of
            a YAML file of such lines.

    Returns:
        (dict[str, str | list[str]]): The mapping, with at least one name.

    Raises:
        ValueError: If it is something else.
        UserError: If it names a file that cannot be read; the message begins with the file.
    """
    if isinstance(value, Path) or (isinstance(value, str) and Path(value.strip()).suffix in SUFFIXES):
        value = _from_file(Path(str(value).strip()))
    elif isinstance(value, str):
        if not (value.strip().startswith("{") and value.strip().endswith("}")):
            raise ValueError
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError from None
    if not isinstance(value, Mapping) or not value:
        raise ValueError
    return dict(_pair(name, item) for name, item in value.items())


def _from_file(path: Path) -> Any:
    """Return what a YAML file holds."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; its lines are to be of the form car: automobile") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no mapping; its lines are to be of the form car: automobile")
    return content


def _pair(name: Any, item: Any) -> tuple[str, str | list[str]]:
    """Return one name with what it maps to; `{car:automobile}` is one word to YAML."""
    if item is None and isinstance(name, str) and ":" in name:
        name, _, item = name.partition(":")
    items = list(item) if isinstance(item, (list, tuple)) else [item]
    for part in (name, *items):
        if not isinstance(part, (str, int, float)) or not str(part).strip():
            raise ValueError
    if not items:
        raise ValueError
    texts = [str(part).strip() for part in items]
    return str(name).strip(), texts if isinstance(item, (list, tuple)) else texts[0]
