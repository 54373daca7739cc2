"""Running the processes of a comparison: slots, progress with the time left, and an orderly stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from yolokd.compare.state import Run, State
from yolokd.errors import INTERRUPTED

POLL = 0.2  # seconds between two looks at the processes
QUIET = 30.0  # seconds after which a line is written even though nothing changed, where there is no terminal
PATIENCE = 10.0  # seconds that a process gets to end after each signal

Command = Callable[[Path, int], tuple[list[str], Mapping[str, str]]]


@dataclass
class Job:
    """A run in its process.

    Attributes:
        run (Run): The run.
        slot (int): Which of the parallel places it has.
        process (subprocess.Popen): Its process.
    """

    run: Run
    slot: int
    process: subprocess.Popen[bytes]


def run_queue(
    state: State, command: Command, slots: int, epochs: int, stream: IO[str] | None = None, poll: float = POLL
) -> None:
    """Run all pending runs in order, each in a process of its own, and settle each in the state.

    A process reads its standard input to the end only when this process is gone, however that came about, and then
    ends too.

    Args:
        state (State): The runs.
        command (Callable): Returns words and further environment of the process for a run's folder and slot.
        slots (int): How many run at the same time.
        epochs (int): Epochs of a run, for the time left.
        stream (IO[str], optional): Where the progress is written; standard output if not given.
        poll (float): Seconds between two looks at the processes.

    Raises:
        KeyboardInterrupt: If interrupted; the processes have been ended and their runs are pending again.
    """
    waiting = [run for run in state.runs if run.status not in {"done", "failed"}]
    free, jobs = list(range(slots)), list[Job]()
    progress = Progress(state, epochs, slots, stream or sys.stdout)
    try:
        while waiting or jobs:
            while waiting and free:
                run, slot = waiting.pop(0), free.pop(0)
                jobs.append(Job(run, slot, _start(state.root / run.key, *command(state.root / run.key, slot))))
                state.set(run, "training")
            time.sleep(poll)
            for job in list(jobs):
                if job.process.poll() is None:
                    if (state.root / job.run.key / "evaluating").exists():
                        state.set(job.run, "evaluating")
                    continue
                jobs.remove(job)
                free = sorted([*free, job.slot])
                _close(job)
                state.finish(job.run, job.process.returncode)
                progress.settled(job.run)
            progress.show()
    except BaseException:
        _stop(jobs)
        for job in jobs:
            if job.process.poll() is not None and (state.root / job.run.key / "run.json").exists():
                state.finish(job.run, 0)
            else:
                state.set(job.run, "pending")
        raise
    finally:
        progress.close()


def _start(folder: Path, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, with its output in worker.log."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("error.json", "evaluating"):
        (folder / name).unlink(missing_ok=True)
    with open(folder / "worker.log", "ab") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its own
        )


def _stop(jobs: Sequence[Job]) -> None:
    """Interrupt processes, and insist where they do not end."""
    steps = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGKILL") if hasattr(signal, name)]
    for step in steps:
        alive = [job for job in jobs if job.process.poll() is None]
        for job in alive:
            try:
                if hasattr(os, "killpg"):
                    os.killpg(job.process.pid, step)  # the data loader's workers too
                else:
                    job.process.terminate()
            except (OSError, ValueError):
                pass  # it has just ended
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(job.process.poll() is None for job in alive):
            time.sleep(0.05)
    for job in jobs:
        _close(job)


def _close(job: Job) -> None:
    if job.process.stdin:
        job.process.stdin.close()


def follow_parent() -> None:
    """End this process as soon as the one that started it is gone, even where that was killed.

    The pipe of standard input, which nothing is written to, ends with the process at its other end.
    """

    def wait() -> None:
        while os.read(0, 1):  # not by sys.stdin, whose lock would be missed when the interpreter ends
            pass
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs that a run has told of: `epoch` from 1 on, `seconds`, `ap`; each epoch once, in order."""
    epochs: dict[int, dict[str, Any]] = {}
    try:
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
            epochs[int(row["epoch"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # a line that is being written
    return [epochs[epoch] for epoch in sorted(epochs)]


class Progress:
    """One line in place on a terminal, else a line per epoch or half minute."""

    def __init__(self, state: State, epochs: int, slots: int, stream: IO[str]):
        """Begin to show.

        Args:
            state (State): The runs.
            epochs (int): Epochs of each run.
            slots (int): Runs at the same time.
            stream (IO[str]): Where to write.
        """
        self.state, self.epochs, self.slots, self.stream = state, epochs, slots, stream
        self.terminal = stream.isatty()
        self.shown, self.when = "", time.monotonic() - QUIET
        self.kept: dict[str, list[dict[str, Any]]] = {}

    def seconds_left(self) -> float | None:
        """Return the time left by the epochs so far: the median of each arm, of all arms where an arm has none yet.

        Evaluations are not counted.
        """
        told = {run.key: self._told(run) for run in self.state.runs if run.seed is not None}
        by_arm: dict[str, list[float]] = {}
        for run in self.state.runs:
            by_arm.setdefault(run.arm, []).extend(float(row["seconds"]) for row in told.get(run.key, []))
        everything = [seconds for values in by_arm.values() for seconds in values]
        if not everything:
            return None
        overall, left, longest = statistics.median(everything), 0.0, 0.0
        for run in self.state.runs:
            if run.seed is None or run.status not in {"pending", "training"}:
                continue
            epochs = max(0, self.epochs - len(told[run.key]))
            own = epochs * (statistics.median(by_arm[run.arm]) if by_arm[run.arm] else overall)
            left, longest = left + own, max(longest, own)
        return max(left / self.slots, longest)

    def line(self) -> str:
        """Return what there is to say, without the time left."""
        runs = [run for run in self.state.runs if run.seed is not None]
        failed = sum(run.status == "failed" for run in runs)
        parts = [f"{sum(run.status == 'done' for run in runs)}/{len(runs)} runs done"]
        parts += [f"{failed} failed"] if failed else []
        for run in self.state.runs:
            if run.status == "training" and run.seed is not None:
                parts.append(f"{run.key} epoch {len(self._told(run))}/{self.epochs}")
            elif run.status in {"training", "evaluating"}:
                parts.append(f"{run.key} evaluating")
        return ", ".join(parts)

    def show(self) -> None:
        """Write the line where it changed, or where nothing was written for long."""
        line, age = self.line(), time.monotonic() - self.when
        if line == self.shown and age < (1.0 if self.terminal else QUIET):
            return
        left = self.seconds_left()
        text = f"{line}, about {clock(left)} left" if left else line
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r{text[:width]:<{width}}")
        else:
            self.stream.write(text + "\n")
        self.stream.flush()
        self.shown, self.when = line, time.monotonic()

    def settled(self, run: Run) -> None:
        """Say that a run has ended, on a line that stays."""
        text = f"{run.key}: {run.status}" + (f": {run.error}" if run.error else "")
        self.stream.write((f"\r{text:<{shutil.get_terminal_size().columns - 1}}" if self.terminal else text) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self.terminal and self.shown:
            self.stream.write("\n")
            self.stream.flush()

    def _told(self, run: Run) -> list[dict[str, Any]]:
        """Return a run's epochs; those of an ended one are read once."""
        if run.key in self.kept:
            return self.kept[run.key]
        rows = read_progress(self.state.root / run.key)
        if run.status in {"done", "failed"}:
            self.kept[run.key] = rows
        return rows


def clock(seconds: float) -> str:
    """Return a duration as people say it, e.g. `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
