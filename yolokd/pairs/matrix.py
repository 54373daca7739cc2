"""Which method works for which task and head, as a table made from what `suitability` decides."""

from __future__ import annotations

from yolokd.losses import LOSSES
from yolokd.pairs.suitability import Head, Refusal, parts_of, refusals
from yolokd.text import aligned

PLAIN, BINLESS = Head(), Head(reg_max=1)
ROTATED, ROTATED_BINLESS = Head(rotated=True), Head(rotated=True, reg_max=1)
QUERIES = Head(dense=False, reg_max=1)

# Column: student and teacher. A student stands with a teacher of its own kind, but RT-DETR with a YOLO one, which has
# more to lend; a teacher stands with a detection student of one branch and with box bins.
STUDENTS: dict[str, tuple[Head, Head]] = {
    "detect": (PLAIN, PLAIN),
    "detect v10": (PLAIN, PLAIN),
    "detect 26": (BINLESS, BINLESS),
    "segment": (PLAIN, PLAIN),
    "pose": (PLAIN, PLAIN),
    "obb": (ROTATED, ROTATED),
    "obb 26": (ROTATED_BINLESS, ROTATED_BINLESS),
    "RT-DETR": (QUERIES, PLAIN),
}
TEACHERS: dict[str, tuple[Head, Head]] = {
    "detect, segment, pose": (PLAIN, PLAIN),
    "26": (PLAIN, BINLESS),
    "obb": (PLAIN, ROTATED),
    "RT-DETR": (PLAIN, QUERIES),
}


def cell(name: str, student: Head, teacher: Head) -> str:
    """Return `yes`, `no`, or which parts of a method work."""
    parts, refused = parts_of(name), {refusal.part for refusal in refusals(name, None, student, teacher)}
    working = [part for part in parts if part not in refused]
    if not refused:
        return "yes"
    return " ".join(f"{name}_{part}=0" for part in parts if part in refused) if working else "no"


def table(columns: dict[str, tuple[Head, Head]], side: str) -> list[list[str]]:
    """Return the rows of one table, the head of the columns first."""
    rows = [["method", *(f"{label} {side}" for label in columns)]]
    return rows + [[name, *(cell(name, *heads) for heads in columns.values())] for name in LOSSES]


def reasons() -> list[str]:
    """Return why methods do not work where they do not: each reason once, with the units and columns it is about."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for side, columns in (("student", STUDENTS), ("teacher", TEACHERS)):
        for label, (student, teacher) in columns.items():
            for name in LOSSES:
                for refusal in refusals(name, None, student, teacher):
                    units, where = found.setdefault(refusal.reason, ([], []))
                    units += [unit] if (unit := _unit(name, refusal)) not in units else []
                    where += [place] if (place := f"{label} {side}") not in where else []
    return [f"{', '.join(units)} ({', '.join(where)}): {reason}" for reason, (units, where) in found.items()]


def _unit(name: str, refusal: Refusal) -> str:
    return f"{name}_{refusal.part}" if refusal.part else name


NOTE = (
    "A part of a method that does not work is switched off by the key in the cell; a refusal says so too. The "
    "student columns hold for a teacher of the same kind (a YOLO one for RT-DETR), the teacher columns for a YOLOv8 "
    "detection student."
)


def tasks_markdown() -> str:
    """Return the tables of students and of teachers with the reasons, as Markdown."""
    lines = [NOTE, ""]
    for columns, side in ((STUDENTS, "student"), (TEACHERS, "teacher")):
        head, *rows = table(columns, side)
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| `{row[0]}` | {' | '.join(_marked(value) for value in row[1:])} |" for row in rows]
        lines.append("")
    return "\n".join([*lines, *(f"- {reason}." for reason in reasons())])


def _marked(value: str) -> str:
    return f"`{value}`" if "=" in value else value


def tasks_text() -> str:
    """Return the same as text for the screen."""
    tables = [aligned(table(columns, side)) for columns, side in ((STUDENTS, "student"), (TEACHERS, "teacher"))]
    return "\n\n".join(["Which method works for which task and head", *tables, "\n".join(reasons()), NOTE])
