"""What a comparison keeps on disk: the lock of its folder, and the state of its runs."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

from yolokd.errors import UserError
from yolokd.saving.records import SCHEMA, TRACEBACK_LINES, now, read_json, read_record, write_json

Status = Literal["pending", "training", "evaluating", "done", "failed"]


@dataclass
class Run:
    """One run of a comparison.

    Attributes:
        key (str): Its folder within that of the comparison, e.g. `seed0/pcd`, or `teacher`, which is only evaluated.
        arm (str): Name of its arm.
        seed (int | None): Its seed; None for the teacher.
        status (str): `pending`, `training`, `evaluating`, `done` or `failed`.
        error (str | None): Why it failed, in one line.
        traceback (str | None): The last lines of the traceback.
    """

    key: str
    arm: str
    seed: int | None
    status: Status = "pending"
    error: str | None = None
    traceback: str | None = None


class State:
    """The runs of a comparison, in the order in which they are run; written to state.json at every change."""

    def __init__(self, root: Path, plan: str, runs: Sequence[Run]):
        """Take up what the disk holds.

        Args:
            root (Path): Folder of the comparison.
            plan (str): Identity of the plan; a record of another one does not count.
            runs (Sequence[Run]): All runs in order.
        """
        self.root, self.plan, self.runs = root, plan, list(runs)
        saved = read_json(root / "state.json") or {}
        before = {run["key"]: run for run in saved.get("runs", [])}
        for run in self.runs:
            old = before.get(run.key, {})
            if read_record(root / run.key, plan):
                run.status = "done"
            elif old.get("status") == "failed":
                run.status, run.error, run.traceback = "failed", old.get("error"), old.get("traceback")
        self.save()

    def retry(self) -> None:
        """Let failed runs run again."""
        for run in self.runs:
            if run.status == "failed":
                (self.root / run.key / "error.json").unlink(missing_ok=True)
                run.status, run.error, run.traceback = "pending", None, None
        self.save()

    def set(self, run: Run, status: Status) -> None:
        """Change the status of a run."""
        if run.status != status:
            run.status = status
            self.save()

    def finish(self, run: Run, code: int) -> None:
        """Settle a run whose process has ended: done if its record is there, else failed with what is known.

        Args:
            run (Run): The run.
            code (int): Exit code of the process, negative for a signal.
        """
        folder = self.root / run.key
        if read_record(folder, self.plan):
            run.status, run.error, run.traceback = "done", None, None
        else:
            told = read_json(folder / "error.json") or {}
            ended = f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
            run.status, run.error = "failed", str(told.get("error") or f"{ended} without a word; see worker.log")
            run.traceback = told.get("traceback") or tail(folder / "worker.log")
        self.save()

    def save(self) -> None:
        """Write state.json."""
        write_json(
            self.root / "state.json", {"schema": SCHEMA, "plan": self.plan, "runs": [asdict(run) for run in self.runs]}
        )


def tail(path: Path) -> str:
    """Return the last lines of a text file, or an empty text."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-TRACEBACK_LINES:])
    except OSError:
        return ""


def check_folder(root: Path) -> None:
    """Refuse a folder that cannot be one of a comparison, before anything is written there.

    Raises:
        UserError: If it is a file or below one, or holds something else.
    """
    above = next(path for path in (root, *root.parents) if path.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file, and the comparison is to be written to {root}; choose another project=")
    if root.exists() and not (root / "plan.json").exists():
        if others := [path.name for path in root.iterdir() if path.name not in {"lock", "lock.json"}]:
            raise UserError(f"{root} holds something else ({others[0]}); choose another name=")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the lock of a folder; the system lets go of it when the process ends, however it ends.

    Args:
        root (Path): The folder.

    Raises:
        UserError: If another process holds it; the message says which.
    """
    path = root / "lock"
    with open(path, "a+", encoding="utf-8") as file:
        if not _lock(file):
            told = read_json(root / "lock.json") or {}
            who = f"process {told['pid']} on {told['host']}, since {told['start']}" if told else "another process"
            raise UserError(f"{root} is in use by {who}; wait for it, or choose another name=")
        write_json(root / "lock.json", {"pid": os.getpid(), "host": socket.gethostname(), "start": now()})
        try:
            yield
        finally:
            (root / "lock.json").unlink(missing_ok=True)


def _lock(file: IO[str]) -> bool:
    """Lock an open file for this process alone and return whether that worked."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
