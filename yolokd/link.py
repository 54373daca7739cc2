"""One teacher and how it is paired with the student: which levels and classes each side lends to the methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from yolokd.outputs import Output, View
from yolokd.taps import Taps, Targets


@dataclass(frozen=True)
class Link:
    """One teacher and how it is paired with the student.

    Attributes:
        teacher (Any): Callable from images to `Output`, with `branch_for` and `towers`.
        student_view (View): Levels and classes of the student that take part.
        teacher_view (View): Levels and classes of the teacher that take part.
    """

    teacher: Any
    student_view: View
    teacher_view: View

    def taps(self, student: Output, teacher: Output, branch: str) -> tuple[Taps, Taps]:
        """Return the taps of both sides for one branch of the student."""
        other = self.teacher.branch_for(branch) if teacher.branches else None
        towers = self.teacher.towers(other, self.teacher_view) if other else None
        return self.student_view.taps(student, branch), self.teacher_view.taps(teacher, other, towers)

    def targets(self, targets: Targets, student: Output) -> Targets:
        """Return the targets with the assignment on the shared levels alone."""
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in student.feats]
        return replace(
            targets,
            positives=self.student_view.anchors(targets.positives, sizes),
            scores=self.student_view.anchors(targets.scores, sizes),
        )
