"""The state machine of a comparison, driven with processes that train nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolokd.compare.queue import Job, Progress, _stop, clock, run_queue
from yolokd.compare.state import Run, State, check_folder, locked
from yolokd.errors import UserError
from yolokd.saving.records import read_json, strict, write_json

ARMS = ("none", "pcd")
ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def runs() -> list[Run]:
    return [Run(f"seed{seed}/{arm}", arm, seed) for seed in (0, 1) for arm in ARMS]


def command(folder: Path, slot: int) -> tuple[list[str], Mapping[str, str]]:
    return [sys.executable, "-m", "tests.fake_worker", str(folder)], {"PYTHONPATH": str(ROOT)}


def plan(root: Path, fake: Mapping[str, str] | None = None, **more: Any) -> Path:
    write_json(root / "plan.json", {"id": "abc", "fake": fake or {}, **more})
    return root


def go(root: Path, slots: int = 1, retry: bool = False) -> tuple[State, str]:
    state, stream = State(root, "abc", runs()), io.StringIO()
    if retry:
        state.retry()
    run_queue(state, command, slots, epochs=2, stream=stream, poll=0.02)
    return state, stream.getvalue()


def statuses(root: Path) -> dict[str, str]:
    return {run["key"]: run["status"] for run in read_json(root / "state.json")["runs"]}


def started(root: Path) -> list[str]:
    return [line.split()[0] for line in (root / "started.txt").read_text(encoding="utf-8").splitlines()]


def wait_for(what: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a process that ended and was not waited for is still listed
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_runs_go_seed_by_seed_through_all_arms(tmp_path: Path) -> None:
    state, text = go(plan(tmp_path))
    assert started(tmp_path) == ["seed0/none", "seed0/pcd", "seed1/none", "seed1/pcd"]
    assert {run.status for run in state.runs} == {"done"} == set(statuses(tmp_path).values())
    assert "4/4 runs done" in text and "\r" not in text
    assert "working on pcd" in (tmp_path / "seed1/pcd/worker.log").read_text(encoding="utf-8")


@POSIX
def test_failed_runs_are_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan(tmp_path, {"seed0/none": "error", "seed0/pcd": "kill", "seed1/none": "mute"})
    state, text = go(tmp_path)
    assert statuses(tmp_path) == {
        "seed0/none": "failed",
        "seed0/pcd": "failed",
        "seed1/none": "failed",
        "seed1/pcd": "done",
    }
    first, second, third, _ = state.runs
    assert first.error == "ValueError: no luck" and first.traceback == "line 1\nline 2"
    assert second.error and "signal 9" in second.error and second.traceback == "working on pcd"
    assert third.error and "code 3" in third.error
    assert "seed0/none: failed: ValueError: no luck" in text and "3 failed" in text


def test_what_is_done_is_not_done_again_and_failures_wait_for_retry(tmp_path: Path) -> None:
    plan(tmp_path, {"seed0/none": "error"})
    go(tmp_path)
    plan(tmp_path)
    go(tmp_path)
    assert len(started(tmp_path)) == 4 and statuses(tmp_path)["seed0/none"] == "failed"
    state, _ = go(tmp_path, retry=True)
    assert started(tmp_path)[4:] == ["seed0/none"] and {run.status for run in state.runs} == {"done"}
    assert state.runs[0].error is None


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1, "plan": "other"}', '{"schema": 2, "plan": "abc"}', "[]"])
def test_a_record_that_is_damaged_or_of_another_plan_does_not_count(tmp_path: Path, content: str) -> None:
    go(plan(tmp_path))
    (tmp_path / "seed0/pcd/run.json").write_text(content, encoding="utf-8")
    go(tmp_path)
    assert started(tmp_path)[4:] == ["seed0/pcd"] and statuses(tmp_path)["seed0/pcd"] == "done"


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_lost_state_is_rebuilt_from_the_records(tmp_path: Path, content: str | None) -> None:
    go(plan(tmp_path))
    path = tmp_path / "state.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    go(tmp_path)
    assert len(started(tmp_path)) == 4 and set(statuses(tmp_path).values()) == {"done"}


def test_slots_run_at_the_same_time(tmp_path: Path) -> None:
    plan(tmp_path, {run.key: "meet" for run in runs()})  # each waits until all have begun
    go(tmp_path, slots=4)
    assert set(statuses(tmp_path).values()) == {"done"}


@POSIX
def test_interrupt_stops_the_processes_and_leaves_their_runs_pending(tmp_path: Path) -> None:
    plan(tmp_path, {"seed0/pcd": "hang"})
    state, stream = State(tmp_path, "abc", runs()), io.StringIO()

    def interrupt() -> None:
        wait_for(lambda: (tmp_path / "seed0/pcd/progress.jsonl").exists())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_queue(state, command, 1, epochs=2, stream=stream, poll=0.02)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert (tmp_path / "seed0/pcd/stopped").exists()
    assert list(statuses(tmp_path).values()) == ["done", "pending", "pending", "pending"]
    plan(tmp_path)
    go(tmp_path)
    assert started(tmp_path)[2:] == ["seed0/pcd", "seed1/none", "seed1/pcd"]


PARENT = """
import sys
from pathlib import Path
from tests.test_compare_state import command, runs
from yolokd.compare.queue import run_queue
from yolokd.compare.state import State, locked
root = Path(sys.argv[1])
with locked(root):
    run_queue(State(root, "abc", runs()), command, 1, epochs=2, poll=0.02)
"""


@POSIX
def test_a_killed_comparison_leaves_no_process_behind_and_goes_on(tmp_path: Path) -> None:
    plan(tmp_path, {"seed0/pcd": "hang"})
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: (tmp_path / "seed0/pcd/progress.jsonl").exists())
        with pytest.raises(UserError, match=rf"in use by process {parent.pid} on"), locked(tmp_path):
            pass
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "started.txt").read_text(encoding="utf-8").splitlines()[1].split()[1])
    wait_for(lambda: not alive(child))
    assert statuses(tmp_path)["seed0/pcd"] == "training"  # nobody was there to write otherwise
    plan(tmp_path)
    with locked(tmp_path):
        go(tmp_path)
    assert started(tmp_path)[2:] == ["seed0/pcd", "seed1/none", "seed1/pcd"]
    assert set(statuses(tmp_path).values()) == {"done"}


def test_a_run_that_ended_before_the_interruption_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(progress: Progress) -> None:
        wait_for(lambda: (tmp_path / "seed0/none/run.json").exists())
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "show", interrupted)
    state = State(plan(tmp_path), "abc", runs())
    with pytest.raises(KeyboardInterrupt):
        run_queue(state, command, 1, epochs=2, stream=io.StringIO(), poll=0.02)
    assert list(statuses(tmp_path).values()) == ["done", "pending", "pending", "pending"]


class Stubborn:
    """A process that ends at the second signal, and has no pipe."""

    def __init__(self) -> None:
        self.pid, self.stdin, self.asked = 123, None, 0

    def poll(self) -> int | None:
        return 0 if self.asked > 1 else None

    def terminate(self) -> None:
        self.asked += 1


@pytest.mark.parametrize("groups", [pytest.param(True, marks=POSIX), False])
def test_processes_are_asked_until_they_end(groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Stubborn()

    def killpg(pid: int, number: int) -> None:
        assert pid == process.pid
        process.terminate()
        if process.asked > 1:
            raise ProcessLookupError  # it has ended meanwhile

    monkeypatch.setattr(os, "killpg", killpg, raising=False)
    if not groups:
        monkeypatch.delattr(os, "killpg")  # as on Windows
    monkeypatch.setattr("yolokd.compare.queue.PATIENCE", 0.01)
    _stop([Job(runs()[0], 0, process)])  # type: ignore[arg-type]
    assert process.asked == 2


def test_a_run_without_a_log_has_no_traceback(tmp_path: Path) -> None:
    state = State(tmp_path, "abc", runs())
    state.finish(state.runs[0], 3)
    assert state.runs[0].status == "failed" and "code 3" in str(state.runs[0].error) and not state.runs[0].traceback


def test_an_empty_folder_can_be_that_of_a_comparison(tmp_path: Path) -> None:
    check_folder(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"holds something else \(thesis.txt\)"):
        check_folder(tmp_path)


def test_lock_is_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path), pytest.raises(UserError, match="in use"), locked(tmp_path):
            pass


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5, (1, None)], 3: Path("x"), "t": True, "n": np.float32(0.5)}
    assert strict(value) == {"a": None, "b": [None, 1.5, [1, None]], "3": "x", "t": True, "n": 0.5}
    for name in ("a.json", "a.json.gz"):
        write_json(tmp_path / name, value)
        assert read_json(tmp_path / name) == strict(value)
    assert json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes())) == strict(value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.json.gz"]
    (tmp_path / "a.json.gz").write_bytes((tmp_path / "a.json.gz").read_bytes()[:-9])
    assert read_json(tmp_path / "a.json.gz") is None and read_json(tmp_path / "b.json") is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="space"):
        write_json(path, {"new": 1})
    assert read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def tell(root: Path, key: str, *seconds: float) -> None:
    (root / key).mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"epoch": i, "seconds": s, "ap": None}) for i, s in enumerate(seconds, 1)]
    (root / key / "progress.jsonl").write_text("\n".join(rows) + '\n{"epoch": 9', encoding="utf-8")


def test_time_left_is_the_median_epoch_of_each_arm(tmp_path: Path) -> None:
    state = State(tmp_path, "abc", runs())
    progress = Progress(state, epochs=4, slots=1, stream=io.StringIO())
    assert progress.seconds_left() is None
    tell(tmp_path, "seed0/none", 10, 2, 2, 2)
    state.runs[0].status = "done"
    state.runs[1].status = "training"
    tell(tmp_path, "seed0/pcd", 5)
    # none: 4 epochs of seed 1 at 2 s; pcd: 3 of seed 0 and 4 of seed 1 at 5 s
    assert progress.seconds_left() == 4 * 2 + 7 * 5
    assert Progress(state, epochs=4, slots=2, stream=io.StringIO()).seconds_left() == (4 * 2 + 7 * 5) / 2
    assert Progress(state, epochs=4, slots=9, stream=io.StringIO()).seconds_left() == 4 * 5  # the longest run
    assert progress.line() == "1/4 runs done, seed0/pcd epoch 1/4"


def test_progress_is_one_line_in_place_on_a_terminal_and_lines_elsewhere(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    state = State(tmp_path, "abc", runs())
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        tell(tmp_path, "seed0/none", 1)
        state.runs[0].status = "training"
        progress = Progress(state, epochs=2, slots=1, stream=stream)
        progress.show()
        progress.show()
        tell(tmp_path, "seed0/none", 1, 1)
        progress.show()
        progress.close()
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r") == 2
    lines = file.getvalue().splitlines()
    assert lines == [
        "0/4 runs done, seed0/none epoch 1/2, about 7 s left",
        "0/4 runs done, seed0/none epoch 2/2, about 6 s left",
    ]


def test_at_the_end_there_is_no_time_left_to_say(tmp_path: Path) -> None:
    state, stream = State(tmp_path, "abc", runs()), io.StringIO()
    for run in state.runs:
        run.status = "done"
        tell(tmp_path, run.key, 1, 1)
    Progress(state, epochs=2, slots=1, stream=stream).show()
    assert stream.getvalue() == "4/4 runs done\n"


def test_clock() -> None:
    assert [clock(s) for s in (0, 45.4, 600, 11_100)] == ["0 s", "45 s", "10 min", "3 h 05 min"]
