"""One teacher and how it is paired with the student: which levels and classes each side lends to the methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from yolokd.outputs import Output, View
from yolokd.pairs.levels import onto_grid
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
        """Return the taps of both sides for one branch of the student, both on its grid and in its pixels."""
        other = self.teacher.branch_for(branch) if teacher.branches else None
        towers = self.teacher.towers(other, self.teacher_view) if other else None
        own = self.student_view.taps(student, branch if student.branches else None)
        return own, onto_grid(self.teacher_view.taps(teacher, other, towers), own)

    def targets(self, targets: Targets, student: Output) -> Targets:
        """Return the targets with the assignment on the shared levels alone."""
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in student.feats]
        return replace(
            targets,
            positives=self.student_view.anchors(targets.positives, sizes),
            scores=self.student_view.anchors(targets.scores, sizes),
        )


def is_resampled(joined: Link, args: Any) -> bool:
    """Return whether a teacher's maps are brought onto another grid, in some of a run's batches at least.

    Args:
        joined (Link): The teacher with its levels.
        args (SimpleNamespace): The run's arguments.
    """
    own, other, sight = joined.student_view, joined.teacher_view, joined.teacher.sight
    pairs = [(own.strides[i], other.strides[j] / sight.ratio) for i, j in zip(own.levels, other.levels)]
    if any(abs(mine - theirs) > 1e-6 for mine, theirs in pairs):
        return True
    varies = float(args.multi_scale) > 0 or bool(args.rect) or bool(args.kd_val)
    step = max(*own.strides, 32) * sight.ratio  # by which the sides of batches differ, in the teacher's pixels
    return varies and step % sight.multiple != 0
