"""One teacher and how it is paired with the student: which levels and classes each side lends to the methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from yolokd.outputs import Output, View
from yolokd.pairs.levels import onto_grid
from yolokd.taps import Taps, Targets
from yolokd.task import Task
from yolokd.unlabeled.pseudo import joined, pseudo_targets, thinned


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

    def sides(
        self,
        student: Output,
        teacher: Output,
        branch: str,
        batch: dict[str, torch.Tensor],
        task: Task,
        confidence: float,
    ) -> tuple[Taps, Taps, Targets]:
        """Return the taps of both sides and the targets for one branch of the student.

        A one-to-one branch is taught on images without labels alone, where nothing else teaches it. With labels the
        task gives each object to one anchor, and a teacher that would take another may make two of it, which nothing
        suppresses (docs/results.md). Logits of a teacher without such a branch, which answers at many anchors of an
        object, are thinned to one.

        Args:
            student (Output): The student's raw output.
            teacher (Output): The teacher's.
            branch (str): The student's branch.
            batch (dict[str, torch.Tensor]): The host's batch.
            task (Task): The student's own criterion, which has assigned its anchors; told what the teacher detects.
            confidence (float): Teacher's probability from which an anchor of an image without labels is an object's.
        """
        own, other = self.taps(student, teacher, branch)
        labeled, one_each, parts = task.labeled(batch), branch == "one2one", []
        if labeled and not one_each:
            parts.append(self.targets(task.targets(batch, branch, own.image_size), student))
        if labeled < len(batch["img"]):
            parts.append(pseudo_targets(other, labeled, confidence, self.student_view.classes, one_each))
            task.detected[branch] = parts[-1]
        if not one_each:
            return own, other, joined(parts)
        (found,) = parts
        own, other = own.since(labeled), other.since(labeled)
        if branch not in self.teacher.branches:
            other = thinned(other, found.positives)
        return own, other, replace(found, image_index=found.image_index - labeled)

    def targets(self, targets: Targets, student: Output) -> Targets:
        """Return the targets with the assignment on the shared levels alone."""
        sizes = [(feat.shape[-2], feat.shape[-1]) for feat in student.feats]
        return replace(
            targets,
            positives=self.student_view.anchors(targets.positives, sizes),
            scores=self.student_view.anchors(targets.scores, sizes),
            sums=(targets.positives.sum(), targets.scores.sum()),
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
