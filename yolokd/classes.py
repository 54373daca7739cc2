"""The data's classes and the teacher's matched by name, with a map for those that are called otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from yolokd.errors import UserError

Match = tuple[int, "int | tuple[int, ...]"]


def fold(name: str) -> str:
    """Return a class name with case, spaces, hyphens and underscores folded."""
    return " ".join(str(name).lower().replace("_", " ").replace("-", " ").split())


def match_classes(
    student: Mapping[int, str], teacher: Mapping[int, str], class_map: Mapping[str, str | list[str]] | None = None
) -> list[Match]:
    """Return the index pairs of the classes that both sides have, in the student's order.

    A class that the map names has the teacher's classes that it says, others that of the very name, else of the same
    folded name, unless the data has several that are folded alike and so tells them apart by such signs. Several of
    the data's classes may have the same one of the teacher's: each then learns from it. Where one of the data's classes
    has several, an image shows it as surely as the likeliest of them.

    Args:
        student (Mapping[int, str]): The data's class names by index.
        teacher (Mapping[int, str]): The teacher's class names by index.
        class_map (Mapping[str, str | list[str]] | None): `kd_class_map`: from the data's names to the teacher's.

    Returns:
        (list[tuple[int, int | tuple[int, ...]]]): The data's index with the teacher's, or with several of them.

    Raises:
        UserError: If the map has a name that one side does not know.
    """
    own, known = _finder(student), _finder(teacher)
    mapped: dict[int, int | tuple[int, ...]] = {}
    for name, wanted in (class_map or {}).items():
        index = _known(name, own, student, "the data")
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        indices = tuple(dict.fromkeys(_known(item, known, teacher, "the teacher") for item in names))
        mapped[index] = indices[0] if len(indices) == 1 else indices
    alike = Counter(map(fold, student.values()))
    exact = {str(name) for name in teacher.values()}
    matches: list[Match] = []
    for index, name in student.items():
        sure = str(name) in exact or alike[fold(name)] == 1
        found = mapped.get(index, known(name) if sure else None)
        if found is not None:
            matches.append((index, found))
    return matches


def _finder(names: Mapping[int, str]) -> Callable[[str], int | None]:
    """Return the function from a name to its class: that of the very name, else the first folded alike."""
    exact: dict[str, int] = {}
    folded: dict[str, int] = {}
    for index, name in names.items():
        exact.setdefault(str(name), index)
        folded.setdefault(fold(name), index)
    return lambda name: exact.get(str(name), folded.get(fold(name)))


def learned_names(names: Mapping[int, str], classes: int | Sequence[int] | None) -> dict[int, str]:
    """Return the data's class names without those that the host's `classes=` leaves out.

    Args:
        names (Mapping[int, str]): The data's class names by index.
        classes (int | Sequence[int] | None): The indices that are learned, all if None.

    Raises:
        UserError: If none is left.
    """
    chosen = {classes} if isinstance(classes, int) else set(names if classes is None else classes)
    if left := {index: name for index, name in names.items() if index in chosen}:
        return left
    raise UserError(f"classes={classes} are none of the data's, which are numbered 0 to {len(names) - 1}; leave it out")


def data_classes(matches: list[Match]) -> dict[int, int]:
    """Return the data's class for each of the teacher's that was matched; the first one where there are several."""
    found: dict[int, int] = {}
    for own, theirs in matches:
        for index in (theirs,) if isinstance(theirs, int) else theirs:
            found.setdefault(index, own)
    return found


def _known(name: str, find: Callable[[str], int | None], names: Mapping[int, str], side: str) -> int:
    """Return the class of a name of the map, or refuse one that a side does not know, with those most like it."""
    index = find(name)
    if index is not None:
        return index
    known = {fold(value): value for value in names.values()}
    close = [known[item] for item in get_close_matches(fold(name), known, n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"it knows {some(names)}"
    raise UserError(f"kd_class_map names '{name}', and {side} has no class of that name; {hint}")


def some(names: Mapping[int, str]) -> str:
    """Return the first class names, and how many more there are."""
    values = list(names.values())
    return ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
