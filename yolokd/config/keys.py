"""One key of cfg/default.yaml: its accepted forms, read from the comment beside it, and the check of a value."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolokd.config.mappings import read_mapping
from yolokd.errors import UserError

SCALARS: dict[str, tuple[type, ...]] = {"bool": (bool,), "int": (int,), "float": (float, int), "str": (str,)}
MAPPING = "a mapping of names (with its braces in quotes) or a YAML file of one"


@dataclass(frozen=True)
class Accepted:
    """One accepted form of a value: a literal word, or a scalar type, single or as a list, within a range.

    Attributes:
        kind (str): `bool`, `int`, `float`, `str`, `dict`, or the word itself.
        many (bool): Whether a list of such values is meant; the range then holds for each.
        low (float): Smallest value.
        high (float): Largest value.
        above (bool): Whether the smallest value itself is excluded.
        text (str): The form as written in default.yaml.
    """

    kind: str
    many: bool
    low: float
    high: float
    above: bool
    text: str

    @classmethod
    def parse(cls, text: str) -> Accepted:
        """Read one alternative of the comment in default.yaml, e.g. `float in [0, 1]`, `list[int] >= 1`, `auto`."""
        match = re.fullmatch(r"(?:list\[(\w+)\]|(\w+))(?: (>=|>) ([\d.]+)| in \[([\d.]+), ([\d.]+)\])?", text)
        if match is None or (match[1] and match[1] not in SCALARS):
            raise ValueError(f"cfg/default.yaml: '{text}' is no type")
        low = float(match[4] or match[5] or -math.inf)
        return cls(match[1] or match[2], bool(match[1]), low, float(match[6] or math.inf), match[3] == ">", text)

    @property
    def words(self) -> str:
        """The form in words, for messages."""
        if self.many:
            return f"a list of {self.text[5:].replace(']', '', 1)}"
        if self.kind in {"bool", "dict"}:
            return "True or False" if self.kind == "bool" else MAPPING
        article = "an " if self.kind == "int" else "a "
        return article + self.text if self.kind in SCALARS else self.text

    def convert(self, value: Any) -> Any:
        """Return the value in this form, or raise ValueError."""
        if self.many:
            single = Accepted(self.kind, False, self.low, self.high, self.above, self.text)
            return [single.convert(item) for item in _as_list(value)]
        if self.kind == "dict":
            return read_mapping(value)
        if self.kind not in SCALARS:
            if str(value).lower() != self.kind or isinstance(value, bool):
                raise ValueError
            return self.kind
        if isinstance(value, Path) and self.kind == "str":
            value = str(value)
        if self.kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e2, as Ultralytics takes it
        if not isinstance(value, SCALARS[self.kind]) or (isinstance(value, bool) and self.kind != "bool"):
            raise ValueError
        if self.kind in {"int", "float"}:
            assert isinstance(value, (int, float))
            if not math.isfinite(value) or not self.low <= value <= self.high or (self.above and value == self.low):
                raise ValueError
        if isinstance(value, str) and (not value.strip() or value.strip()[0] in "[("):
            raise ValueError
        return float(value) if self.kind == "float" else value


def plain(value: Any) -> Any:
    """Return numbers and arrays of numpy and torch as Python's own, also in a list, and anything else as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def shown(value: Any) -> str:
    """Return a value for a message: shortened, and text in quotes where it could be taken for another type."""
    text = str(value)
    if isinstance(value, str) and re.fullmatch(r"True|False|None|[-+.\d]+(e[-+]?\d+)?", value.strip()):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_list(value: Any) -> list[Any]:
    """Return a list, also from a tuple or from `[a,b]` as text, which is how Ultralytics' parser leaves words."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not (isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]")):
        raise ValueError
    items = []
    for item in filter(None, (part.strip() for part in value.strip()[1:-1].split(","))):
        try:
            items.append(ast.literal_eval(item))
        except (ValueError, SyntaxError):
            items.append(item)
    return items


@dataclass(frozen=True)
class Key:
    """One key of default.yaml.

    Attributes:
        name (str): The key.
        default (Any): Its default.
        types (str): Accepted forms as written in default.yaml, joined by ` | `, `, optional` where None is one.
        meaning (str): What it does, in words.
    """

    name: str
    default: Any
    types: str
    meaning: str
    accepted: tuple[Accepted, ...] = field(init=False, repr=False)
    optional: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the accepted forms from `types`."""
        text = self.types.removesuffix(", optional")
        object.__setattr__(self, "optional", text != self.types)
        object.__setattr__(self, "accepted", tuple(Accepted.parse(part) for part in text.split(" | ")))

    @property
    def example(self) -> str:
        """A valid value as typed on the command line: the one given in the meaning, else the default."""
        match = re.search(r"e\.g\. (\[[^\]]*\]|\{[^}]*\}|[\w./-]+)", self.meaning)
        return match[1] if match else str(self.default).replace(" ", "")

    def check(self, value: Any) -> Any:
        """Return a value in the key's own type.

        Args:
            value (Any): A value from Python, from a recipe, or from Ultralytics' command line parser.

        Returns:
            (Any): The value: numbers converted, lists parsed from `[a,b]`, None read as `none` where that is a word.

        Raises:
            UserError: If the value has no accepted form; the message says which are.
        """
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null"}):
            if any(form.kind == "none" for form in self.accepted) or self.name == "method":
                return "none"
            if self.optional:
                return None
        for form in self.accepted:
            try:
                return form.convert(value)
            except UserError as error:  # about a file that was named
                raise UserError(f"{self.name}={error}") from None
            except ValueError:
                continue
        forms = " or ".join([form.words for form in self.accepted] + ["none"] * self.optional)
        raise UserError(f"{self.name}={shown(value)} is not valid: it must be {forms}, e.g. {self.name}={self.example}")
