"""Guards against the worst fault of a distillation run: a term that does nothing, or is not a number."""

from __future__ import annotations

import logging

import torch

LIMIT = 20
TEACHER = "teacher"  # the name under which the teachers' outputs are noted
LOGGER = logging.getLogger("ultralytics")


class TermWatch:
    """Counts steps in a row on which a term was exactly zero or not finite, without stopping the device each step.

    Attributes:
        limit (int): Steps in a row after which a term is reported; the counters are read every `limit` steps.
    """

    def __init__(self, limit: int = LIMIT):
        """Start with nothing seen."""
        self.limit = limit
        self.steps = 0
        self.warned: set[str] = set()
        self._zero: dict[str, torch.Tensor] = {}
        self._bad: dict[str, torch.Tensor] = {}
        self._acted: dict[str, torch.Tensor] = {}
        self._left_out: dict[str, torch.Tensor] = {}

    def see(
        self, name: str, term: torch.Tensor, objects: torch.Tensor | None, sound: torch.Tensor | None = None
    ) -> None:
        """Note one step of a term whose gain and schedule are above 0.

        Args:
            name (str): Name of the method.
            term (torch.Tensor): Its scalar value.
            objects (torch.Tensor | None): Number of positives in the batch where the method acts on those, so that a
                zero without any is legitimate; None where the method always has something to act on.
            sound (torch.Tensor | None): False where the term was left out of the step; None where its value tells.
        """
        term = term.detach()
        finite = torch.isfinite(term) if sound is None else sound & torch.isfinite(term)
        zero = ((term == 0) & finite).long()
        bad = (~finite).long()
        blank = torch.zeros_like(zero)
        self._zero[name] = (self._zero.get(name, blank) + 1) * zero
        self._bad[name] = (self._bad.get(name, blank) + 1) * bad
        self._left_out[name] = self._left_out.get(name, blank) + bad
        acted = torch.ones_like(zero) if objects is None else (objects > 0).long()
        self._acted[name] = (self._acted.get(name, blank) + acted) * zero

    def see_teachers(self, sound: torch.Tensor) -> None:
        """Note whether the output of all teachers of a step was finite, a scalar, bool."""
        self.see(TEACHER, torch.ones_like(sound, dtype=torch.float32), None, sound)

    def check(self) -> None:
        """Read the counters every `limit` steps.

        Raises:
            RuntimeError: If a term was not finite, or zero although it had something to act on, `limit` steps running.
        """
        self.steps += 1
        if self.steps % self.limit:
            return
        for name in sorted(self._zero, key=lambda name: name != TEACHER):  # a cause before what follows from it
            zero, bad, acted = (int(c[name]) for c in (self._zero, self._bad, self._acted))
            if bad >= self.limit and name == TEACHER:
                raise RuntimeError(
                    f"the teacher's output was not finite for {bad} steps running. Try kd_teacher_dtype=float32, and "
                    f"look whether its weights are whole."
                )
            if bad >= self.limit:
                raise RuntimeError(
                    f"method={name}: its term was not finite for {bad} steps running. Lower {name}_gain or kd_share, "
                    f"or train with amp=False."
                )
            if zero >= self.limit and acted:
                raise RuntimeError(
                    f"method={name}: its term was exactly zero for {zero} steps running although its gain is above 0; "
                    f"nothing is distilled. Check the teacher with kd_preflight=True, or leave {name} out of method=."
                )
            if zero >= self.limit and name not in self.warned:
                self.warned.add(name)
                LOGGER.warning(f"method={name}: no positives in the last {zero} batches, so its term is zero.")

    def tell(self, steps: int) -> None:
        """Say what was left out since the last time, a line for each method, and start the count anew.

        Args:
            steps (int): Steps since then.
        """
        for name, count in self._left_out.items():
            if number := int(count):
                what = "the teacher's output was" if name == TEACHER else f"method={name}: its term was"
                LOGGER.warning(f"{what} not finite in {number} of {steps} steps, which were done without it")
        self._left_out = {}
