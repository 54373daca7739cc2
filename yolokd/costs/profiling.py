"""Where the time of a training step goes, beside plain training and the built-in distillation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch

from yolokd import config
from yolokd.costs.moment import average
from yolokd.costs.rehearsal import Rehearsal
from yolokd.costs.timing import in_turn, ratio, seconds
from yolokd.memory import peak_bytes
from yolokd.students.kinds import why_no_built_in
from yolokd.text import aligned
from yolokd.trust import KEY

PLAIN, BUILT_IN, OURS = "plain training", "built-in distillation", "this run, a step that distils"
REST, MEAN = "this run, a step that kd_every leaves out", "this run, a step on average"


class Stopwatch:
    """Seconds by part of a step, parts within others being taken out of them.

    Attributes:
        parts (dict[str, list[float]]): Seconds of each step by part, in order of appearance.
    """

    def __init__(self, device: torch.device):
        """Start with nothing measured."""
        self.device = device
        self.parts: dict[str, list[float]] = {}
        self._inner: list[float] = []
        self._step: dict[str, float] = {}

    def next_step(self) -> None:
        """Begin a step: what was measured since the last beginning is kept as one step."""
        for name, value in self._step.items():
            self.parts.setdefault(name, []).append(value)
        self._step = {}

    @contextmanager
    def measuring(self, part: str) -> Iterator[None]:
        """Add the time within to a part, less what parts within it take."""
        start = seconds(self.device)
        self._inner.append(0.0)
        try:
            yield
        finally:
            total = seconds(self.device) - start
            own = total - self._inner.pop()
            self._step[part] = self._step.get(part, 0.0) + own
            if self._inner:
                self._inner[-1] += total


class Timed:
    """An object whose calls are measured, and which is otherwise the object itself."""

    def __init__(self, wrapped: Any, watch: Stopwatch, part: str):
        """Wrap an object."""
        self._wrapped, self._watch, self._part = wrapped, watch, part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the object and measure it."""
        with self._watch.measuring(self._part):
            return self._wrapped(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what the object has."""
        return getattr(self._wrapped, name)


def timed(function: Callable[..., Any], watch: Stopwatch, part: str) -> Callable[..., Any]:
    """Return a function that is measured."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with watch.measuring(part):
            return function(*args, **kwargs)

    return call


def watch_parts(rehearsal: Rehearsal) -> tuple[Stopwatch, Callable[[], None]]:
    """Return a stopwatch on the parts of a trainer's step, and the step that it measures."""
    watch, criterion = Stopwatch(rehearsal.device), rehearsal.trainer.criterion
    if criterion:
        criterion.task = Timed(criterion.task, watch, "task loss")
        criterion.links = [replace(link, teacher=Timed(link.teacher, watch, "teacher")) for link in criterion.links]
        for name, modules in criterion.methods.items():
            for module in modules:
                module.parts = timed(module.parts, watch, name)
        criterion.forward = timed(criterion.forward, watch, "other (pairing, gains)")

    def step() -> None:
        watch.next_step()
        with watch.measuring("student"):
            loss = rehearsal.forward()
        with watch.measuring("backward"):
            rehearsal.backward(loss)
        with watch.measuring("optimizer, EMA"):
            rehearsal.update()

    return watch, step


def profile(overrides: Mapping[str, Any], rounds: int = 10, memory: bool = True) -> dict[str, Any]:
    """Measure a training step, beside one of plain training and one of the built-in distillation.

    The three trainers are set up as for a run and do their steps by turns on the same batch; nothing is saved.

    Args:
        overrides (Mapping[str, Any]): Train arguments, the host's and ours, with `teacher`.
        rounds (int): Steps that are measured.
        memory (bool): Measure the peak memory too, in a new process for each of the three.

    Returns:
        (dict[str, Any]): `parts` (seconds by part of a step that distils), `steps` (median seconds, ratio to plain
            training and peak bytes by arm; with `kd_every` also of the steps left out and of the average) and `device`.
    """
    arms = _arms(overrides)
    with tempfile.TemporaryDirectory(prefix="yolokd-profile-") as folder, redirect_stdout(StringIO()):
        peaks = {name: peak(settings, folder) if memory else None for name, settings in arms.items()}
        rehearsals = {name: Rehearsal(settings, folder) for name, settings in arms.items()}
        for rehearsal in rehearsals.values():
            rehearsal.measure_gains()
        device = rehearsals[OURS].device
        steps = {name: rehearsal.step for name, rehearsal in rehearsals.items()}
        criterion = rehearsals[OURS].trainer.criterion
        every = criterion.every if criterion else 1
        if every > 1:
            steps[REST] = rehearsals[OURS].rest
        taken = in_turn(steps, device, rounds)
        if every > 1:
            taken[MEAN] = [average(a, b, every) for a, b in zip(taken[OURS], taken[REST])]
        watch, step = watch_parts(rehearsals[OURS])
        for _ in range(rounds + 2):
            step()
        watch.next_step()
    return {
        "device": str(device),
        "parts": {name: median(values[1:]) for name, values in watch.parts.items()},
        "steps": {
            name: {"seconds": median(values), "ratio": ratio(taken, name, PLAIN), "peak_bytes": peaks.get(name)}
            for name, values in taken.items()
        },
    }


def _arms(overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of plain training, of the built-in where it takes the pair, and of the run itself."""
    ours = {name: value for name, value in overrides.items() if name not in config.KEYS or name == KEY}
    arms = {PLAIN: {**ours, "method": "none"}}
    teachers = config.teachers(overrides.get("teacher"))
    if teachers and overrides.get("quantize") is None and not why_no_built_in(overrides["model"], teachers[-1]):
        arms[BUILT_IN] = {**ours, "method": "ultralytics", "teacher": teachers[-1]}
    return {**arms, OURS: dict(overrides)}


def peak(settings: Mapping[str, Any], folder: str) -> int:
    """Return the peak memory of some steps in bytes, in a process of their own: what others hold does not count."""
    with get_context("spawn").Pool(1) as pool:
        return int(pool.apply(steps_peak, (dict(settings), folder)))


def steps_peak(settings: dict[str, Any], folder: str) -> int:
    """Do some steps and return the peak memory of this process in bytes."""
    with redirect_stdout(StringIO()), config.quiet():
        rehearsal = Rehearsal(settings, folder)
        rehearsal.measure_gains()
        for _ in range(3):
            rehearsal.step()
    return peak_bytes(rehearsal.device)


def text(result: Mapping[str, Any]) -> str:
    """Return a profile as two tables."""
    whole = sum(result["parts"].values())
    plain = result["steps"][PLAIN]["seconds"]
    rows = [("part of a step that distils", "ms", "share", "of a plain step")]
    for name, value in result["parts"].items():
        rows.append((name, f"{value * 1e3:.1f}", f"{value / whole:.0%}", f"{value / plain:.2f}"))
    arms = [("step", "ms", "x plain", "peak memory")]
    for name, step in result["steps"].items():
        shown = f"{step['peak_bytes'] / 2**30:.2f} GB" if step["peak_bytes"] else ""
        arms.append((name, f"{step['seconds'] * 1e3:.1f}", f"{step['ratio']:.2f}", shown))
    return (
        f"{aligned(rows)}\n\n{aligned(arms)}\n\nmedians on {result['device']}; the steps of the second table took "
        f"turns, and x plain is the median of what they took by each plain step beside them"
    )
